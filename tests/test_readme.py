"""The README and the pages of `docs/`: examples can be typed in, links lead somewhere, tables are current."""

from __future__ import annotations

import re
import runpy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import test_layers
import torch
from fusion_fixtures import tiny_vit, tiny_wav2vec2
from PIL import Image
from transformers import TrainingArguments, ViTImageProcessor, Wav2Vec2FeatureExtractor

import ecsfusion
from ecsfusion.controller.registry import RULES
from ecsfusion.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "RELEASE")),
    *sorted((ROOT / "docs").glob("*.md")),
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
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in start


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


@pytest.mark.parametrize("page", ["README.md", "docs/pid.md"])
def test_the_example_of_fast_pid_says_who_knows_what(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(snippet(page, 'pid.plot("pid.png")'), names)  # noqa: S102  (this very code is what is shown)
    pid = names["pid"]
    assert isinstance(pid, ecsfusion.PID)
    assert (tmp_path / "pid.png").stat().st_size > 5_000
    assert "unique image" in capsys.readouterr().out
    image, audio = pid.unique.tolist()
    assert float(pid.redundancy) > 0.7, "audio's one bit is known to the image too"
    assert image > 0.7
    assert audio < 0.1


def test_the_example_of_a_loss_gives_both_heads_a_gradient():
    scope: dict = {}
    exec(snippet("docs/pid.md", "logit_pid(image_logits"), scope)  # noqa: S102
    for name in ("image_logits", "audio_logits"):
        assert scope[name].grad.abs().sum() > 0


def test_the_example_of_the_gradient_raises_hard_synergy(capsys):
    exec(snippet("docs/pid.md", "differentiable_pid(soft_joint"), {})  # noqa: S102
    synergy = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert synergy[-1] > synergy[0] + 0.2


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


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_the_example_of_the_trainer_trains(page, tmp_path, monkeypatch):
    """With tiny encoders in place of those of the Hub, and fewer epochs."""
    tiny_vit().save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 4, "width": 4}, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        tmp_path / "vit"
    )
    tiny_wav2vec2().save_pretrained(tmp_path / "wav2vec2")
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(tmp_path / "wav2vec2")
    monkeypatch.chdir(tmp_path)
    code = snippet(page, "trainer.train()")
    for shown, stand_in in {
        "google/vit-base-patch16-224-in21k": "./vit",
        "facebook/wav2vec2-base": "./wav2vec2",
        "num_train_epochs=20": "num_train_epochs=3, report_to='none', use_cpu=True",
        "num_labels=10": "num_labels=3",
        "trainer.push_to_hub()": "",
    }.items():
        assert shown in code or shown == "trainer.push_to_hub()"
        code = code.replace(shown, stand_in)
    torch.manual_seed(0)
    names = {"train": rows(48), "validation": rows(60)}
    exec(code, names)  # noqa: S102
    trainer = names["trainer"]
    assert trainer.plan.strategy.name == "two-stage"
    assert trainer.measurements["validation"].scores.keys() == {"image", "audio", "fused", "calibrated"}
    assert trainer.record.history
    trainer.save_model()
    Image.new("L", (4, 4)).save("three.png")
    soundfile.write("three.wav", np.zeros(80, dtype=np.float32), 16_000)
    used = snippet("docs/training.md", "processor(image=").replace("you/digits", "./digits")
    exec(used, vars(ecsfusion) | {name: getattr(ecsfusion, name) for name in ecsfusion.__all__})  # noqa: S102


def test_the_choices_of_strategy_that_are_shown_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = snippet("docs/strategies.md", "FusionTrainingArguments(")
    exec(code, {})  # noqa: S102
    for name in re.findall(r'strategy="([^"]*)"', code):
        assert name in STRATEGIES or name in RULES


@pytest.mark.parametrize(
    ("page", "name", "registry_of"),
    [("docs/strategies.md", "LouderAudio", "Strategy"), ("docs/controller.md", "AudioFirst", "Rule")],
)
def test_the_strategy_and_the_rule_that_are_shown_can_be_used(page, name, registry_of):
    names: dict[str, object] = {}
    exec(snippet(page, f"class {name}"), names)  # noqa: S102
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
