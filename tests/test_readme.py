"""The README and the pages of `docs/`: examples can be typed in, links lead somewhere, tables are current."""

from __future__ import annotations

import contextlib
import functools
import re
import runpy
import shutil
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import test_layers
import torch
from documented_code import Executed, blocks_of, execute_page
from finished_models import finished_model
from fusion_fixtures import tiny_vit, tiny_wav2vec2
from PIL import Image
from transformers import TrainingArguments, ViTImageProcessor, Wav2Vec2FeatureExtractor

import ecsfusion
from ecsfusion.controller.registry import RULES
from ecsfusion.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "RELEASE")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "kernels" / "README.md",
]
MAX_README_LINES = 150


def text_of(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def snippets_of(page: str | Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL)


def snippet(page: str, phrase: str) -> str:
    (found,) = [code for code in snippets_of(page) if phrase in code]
    return found


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_exists(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, section = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} does not exist"
        if section:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert section in map(anchor, headings), f"{target} has no such heading"


# The changelog names scripts of the past.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "CHANGELOG.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_scripts_that_are_named_exist(page):
    for script in re.findall(
        r"\b(?:benchmarks|tests|hf_recipes|docs|tools)/[\w/]+\.(?:py|yaml)\b", text_of(page)
    ):
        assert (ROOT / script).exists() or "NAME" in script, f"{script} does not exist"


def test_every_page_of_the_documentation_is_linked_from_its_start():
    start = text_of("docs/README.md")
    for page in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/README.md")]:
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in start


def test_tables_of_the_registries_are_current():
    """`python docs/tables.py` writes them."""
    outdated = runpy.run_path(str(ROOT / "docs" / "tables.py"))["outdated_pages"]()
    assert [path.name for path in outdated] == []


def test_all_options_are_in_the_table():
    inherited = {field.name for field in fields(TrainingArguments)}
    own = {field.name for field in fields(ecsfusion.FusionTrainingArguments)} - inherited
    rows = re.findall(r"^\| (`.*?) \|", text_of("docs/training.md"), flags=re.MULTILINE)
    assert own <= set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_the_layout_lists_every_part_in_the_order_of_imports():
    section = text_of("docs/layout.md").split("## `ecsfusion/`")[1]
    parts = re.findall(r"^\| `(\w+)/?` \|", section, flags=re.MULTILINE)
    assert tuple(parts) == test_layers.LAYERS


# ---- the code of the pages ----

EXECUTED = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]
STAND_INS = {
    "google/vit-base-patch16-224-in21k": "./vit",
    "facebook/wav2vec2-base": "./wav2vec2",
    "num_train_epochs=20": "num_train_epochs=3, report_to='none', use_cpu=True",
    "num_labels=10": "num_labels=3",
    "trainer.push_to_hub()": "trainer.save_model()",
}
# Of the pages whose code does not make the model that it loads: one that is finished.
FINISHED = {"you/digits": "./output/digits"}


def rows(number: int) -> list[dict]:
    """Rows as the example has them: a PIL image, an array of samples, a label."""
    generator = np.random.default_rng(number)
    return [
        {
            "image": Image.fromarray(
                generator.integers(0, 64, (4, 4), dtype=np.uint8) + np.uint8(90 * label)
            ),
            "audio": generator.normal(size=80).astype(np.float32),
            "label": label,
        }
        for label in (n % 3 for n in range(number))
    ]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """What the pages take for granted, in a folder: tiny encoders, a finished model, media, embeddings."""
    folder = tmp_path_factory.mktemp("material")
    processors = {
        "image": ViTImageProcessor(size={"height": 4, "width": 4}, image_mean=[0.5], image_std=[0.5]),
        "audio": Wav2Vec2FeatureExtractor(return_attention_mask=True),
    }
    encoders = {"image": tiny_vit(), "audio": tiny_wav2vec2()}
    for name, place in {"image": "vit", "audio": "wav2vec2"}.items():
        encoders[name].save_pretrained(folder / place)
        processors[name].save_pretrained(folder / place)
    finished_model(encoders).save_pretrained(folder / "output" / "digits")
    ecsfusion.FusionProcessor(processors).save_pretrained(folder / "output" / "digits")
    Image.new("L", (4, 4)).save(folder / "three.png")
    soundfile.write(folder / "three.wav", np.zeros(80, dtype=np.float32), 16_000)
    generator = np.random.default_rng(0)
    digit = np.arange(300) % 3
    columns = {
        f"{name}_embedding": (np.eye(3, 4)[digit] + generator.normal(0, 0.5, (300, 4))).tolist()
        for name in ("image", "audio")
    }
    pq.write_table(pa.table({"digit": digit, **columns}), folder / "embeddings.parquet")
    return folder


@pytest.fixture(scope="module")
def executed(material, tmp_path_factory, quick_probes):
    """The blocks of a page as they were executed, once, in a folder of the page."""

    @functools.cache
    def execute(name: str) -> list[Executed]:
        folder = tmp_path_factory.mktemp("page")
        shutil.copytree(material, folder, dirs_exist_ok=True)
        with contextlib.chdir(folder):
            torch.manual_seed(0)
            names = {"train": rows(48), "validation": rows(60), "folder": folder}
            stand_ins = STAND_INS | ({"you/digits": "./digits"} if name == "docs/training.md" else FINISHED)
            return execute_page(ROOT / name, names, stand_ins)

    return execute


def block_with(done: list[Executed], phrase: str) -> Executed:
    (found,) = [each for each in done if phrase in each.block.code]
    return found


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_can_be_typed_in(page, executed):
    assert executed(str(page.relative_to(ROOT)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_reason_why_code_is_not_executed_is_a_sentence(page):
    for block in blocks_of(page):
        assert block.reason is None or len(block.reason.split()) > 3


def test_extras_that_are_named_exist():
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for page in PAGES:
        for names in re.findall(r"(?:ecsfusion|\.)\[([\w,]+)\]['\"]", page.read_text(encoding="utf-8")):
            assert page.name == "CHANGELOG.md" or set(names.split(",")) <= set(extras)


@pytest.mark.parametrize("page", ["README.md", "docs/pid.md"])
def test_the_example_of_fast_pid_says_who_knows_what(page, executed):
    done = block_with(executed(page), 'pid.plot("pid.png")')
    pid = done.names["pid"]
    assert isinstance(pid, ecsfusion.PID)
    assert (done.names["folder"] / "pid.png").stat().st_size > 5_000
    assert "unique image" in done.printed
    image, audio = pid.unique.tolist()
    assert float(pid.redundancy) > 0.7, "audio's one bit is known to the image too"
    assert image > 0.7
    assert audio < 0.1


def test_the_wrong_uses_that_are_shown_are_wrong(executed):
    """In the words of the page: by heart, by source, by counting there is information, and in truth there is none."""
    done = executed("docs/reading.md")
    for phrase in ("sources_wrong.png", "training_rows_wrong.png"):
        found = block_with(done, phrase).names
        assert float(found["wrong"].mutual_information[0]) > 1.0
        assert float(found["right"].held_out.mutual_information[0]) < 0.1
    found = block_with(done, "counts_wrong.png").names
    assert float(found["wrong"].synergy) > 1.0
    assert float(found["right"].synergy) < 0.1


def test_the_example_of_a_loss_gives_both_heads_a_gradient(executed):
    names = block_with(executed("docs/pid.md"), "logit_pid(image_logits").names
    for name in ("image_logits", "audio_logits"):
        assert names[name].grad.abs().sum() > 0


def test_the_example_of_the_gradient_raises_hard_synergy(executed):
    printed = block_with(executed("docs/pid.md"), "differentiable_pid(soft_joint").printed
    synergy = [float(line.split()[1]) for line in printed.splitlines()]
    assert synergy[-1] > synergy[0] + 0.2


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/start.md"])
def test_the_example_of_the_trainer_trains(page, executed):
    """With tiny encoders in place of those of the Hub, and fewer epochs."""
    trainer = block_with(executed(page), "trainer.train()").names["trainer"]
    assert trainer.plan.strategy.name == "two-stage"
    assert trainer.measurements["validation"].scores.keys() == {"image", "audio", "fused", "calibrated"}
    assert trainer.record.history


def test_the_choices_of_strategy_that_are_shown_can_be_made():
    code = snippet("docs/strategies.md", "FusionTrainingArguments(")
    for name in re.findall(r'strategy="([^"]*)"', code):
        assert name in STRATEGIES or name in RULES


@pytest.mark.parametrize(
    ("page", "name", "registry_of"),
    [("docs/strategies.md", "LouderAudio", "Strategy"), ("docs/controller.md", "AudioFirst", "Rule")],
)
def test_the_strategy_and_the_rule_that_are_shown_can_be_used(page, name, registry_of, executed):
    names = block_with(executed(page), f"class {name}").names
    assert issubclass(names[name], getattr(ecsfusion, registry_of))
    made = ecsfusion.make_strategy(names[name], ("image", "audio"))
    assert made.stages == ("joint" if registry_of == "Strategy" else "two-stage")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_example_is_python_and_names_what_exists(page):
    for code in snippets_of(page):
        compile(code, page.name, "exec")
        for names in re.findall(r"from ecsfusion import ([\w, ]+)", code):
            for name in names.split(", "):
                assert hasattr(ecsfusion, name)
