"""Publishing both stages, against a stand-in of the Hub that stores files by revision."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from fusion_fixtures import TwoViews
from huggingface_hub import HfApi, constants, parse_eval_result_entries
from huggingface_hub.errors import HTTPError
from packaging.requirements import Requirement
from stand_in_hub import StandInHub
from test_trainer import PEAK_FIRST_THEN_RESTORE, Scripted, arguments, two_views
from transformers import TrainerCallback, ViTImageProcessor
from transformers.integrations import TrackioCallback

from ecsfusion import FusionProcessor, FusionTrainer, __version__
from ecsfusion.cli import main
from ecsfusion.demo import page
from ecsfusion.reporting.facts import decisions_of
from ecsfusion.reporting.hub import NotPublishedError, publish
from ecsfusion.reporting.space import GRADIO_VERSION
from ecsfusion.reporting.trajectory import plot_trajectory
from ecsfusion.training import publishing
from ecsfusion.training.record import StageRecord
from ecsfusion.training.trackio_alerts import TrackioAlerts, alert_on_trackio

pytestmark = pytest.mark.usefixtures("quick_probes")

TOKEN = "hf_" + "Secret0123456789abcdefghijklmnopqr"


@pytest.fixture(scope="module")
def server():
    """The stand-in, as the only Hub that this process knows."""
    with StandInHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def hub(server) -> StandInHub:
    """The stand-in, empty."""
    for kept in (server.revisions, server.received, server.requests):
        kept.clear()
    return server


def files(hub: StandInHub, revision: str) -> dict[str, bytes]:
    return hub.revisions["somebody/two-views"][revision]


def snippets(hub: StandInHub, revision: str = "main") -> list[str]:
    return re.findall(r"```python\n(.*?)```", files(hub, revision)["README.md"].decode(), flags=re.DOTALL)


def processor() -> FusionProcessor:
    return FusionProcessor(
        {
            name: ViTImageProcessor(
                size={"height": 4, "width": 4}, do_normalize=False, image_mean=[0.5], image_std=[0.5]
            )
            for name in ("left", "right")
        }
    )


@pytest.fixture(scope="module")
def once(server, quick_probes, tmp_path_factory) -> FusionTrainer:
    """The run, with its pictures."""
    run = FusionTrainer(
        model=two_views(),
        args=arguments(
            tmp_path_factory.mktemp("once"),
            hub_model_id="somebody/two-views",
            hub_token=TOKEN,
            save_strategy="epoch",
        ),
        train_dataset=TwoViews(64, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        processing_class=processor(),
        strategy=Scripted(PEAK_FIRST_THEN_RESTORE),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "plot_trajectory", plot_trajectory)
        run.train()
    run.evaluate(TwoViews(60, seed=2), metric_key_prefix="test")
    return run


@pytest.fixture
def trained(once, tmp_path, hub, pictures, monkeypatch) -> FusionTrainer:
    """The run, whose folder is a copy: each test pushes it."""
    shutil.copytree(once.args.output_dir, tmp_path / "run")
    monkeypatch.setattr(once.args, "output_dir", str(tmp_path / "run"))
    # Nothing has been pushed yet.
    monkeypatch.setattr(once, "hub_model_id", None)
    return once


PUBLISHED = {
    "README.md",
    "config.json",
    "contributions.png",
    "model.safetensors",
    "reliability.png",
    "trajectory.png",
    "fusion_processor_config.json",
    "left/preprocessor_config.json",
    "right/preprocessor_config.json",
}


def test_both_stages_are_published_and_nothing_else(trained, hub):
    trained.push_to_hub(dataset="two synthetic views")
    assert set(hub.revisions) == {"somebody/two-views"}
    assert set(hub.revisions["somebody/two-views"]) == {"main", "unimodal"}
    assert set(files(hub, "main")) == set(files(hub, "unimodal")) == PUBLISHED
    for picture in ("contributions.png", "reliability.png", "trajectory.png"):
        assert files(hub, "main")[picture].startswith(b"\x89PNG")
    steps = [json.loads(files(hub, revision)["config.json"])["step"] for revision in ("main", "unimodal")]
    assert steps == [None, 4]


def test_no_byte_that_was_sent_names_a_local_path_the_token_or_the_environment(
    trained, hub, tmp_path, tmp_path_factory, monkeypatch
):
    trained.push_to_hub(dataset="two synthetic views")
    forbidden = [
        str(tmp_path),
        str(tmp_path_factory.getbasetemp()),
        str(Path.home()),
        str(Path.cwd()),
        TOKEN,
        socket.gethostname(),
    ]
    forbidden += [
        value for key, value in os.environ.items() if key in ("PATH", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST")
    ]
    assert len(hub.received) > 2 * len(PUBLISHED)
    for content in hub.received:
        found = [secret for secret in forbidden if len(secret) > 4 and secret.encode() in content]
        assert found == [], f"{found} in {content[:200]!r}"
        assert b"\x80\x04" not in content[:2], "a pickle"


def test_an_empty_environment_loads_each_stage_by_the_lines_of_the_card(trained, hub, tmp_path):
    trained.push_to_hub(dataset="two synthetic views")
    rows = TwoViews(6, seed=9)
    inputs = {
        name: torch.stack([rows[i][name]["pixel_values"] for i in range(6)]) for name in ("left", "right")
    }
    script = """
import json, sys
import torch
inputs, snippets = json.load(sys.stdin)
space = {}
for snippet in snippets:
    exec(snippet, space)
    assert space["processor"].modalities == ("left", "right")
    with torch.no_grad():
        out = space["model"](**{name: torch.tensor(values) for name, values in inputs.items()})
    print(json.dumps([space["model"].config.stage, out.probabilities.tolist()]))
"""
    code = snippets(hub)
    assert [len(snippet.splitlines()) for snippet in code] == [3, 1]
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HOME": str(empty),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([{name: values.tolist() for name, values in inputs.items()}, code]),
        capture_output=True,
        text=True,
        cwd=empty,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (stage, p), (first_stage, first_p) = map(json.loads, done.stdout.splitlines())
    assert (stage, first_stage) == ("joint", "unimodal")
    with torch.no_grad():
        expected = trained.model.eval()(**inputs).probabilities
    torch.testing.assert_close(torch.tensor(p), expected, check_dtype=False)
    assert not torch.allclose(torch.tensor(first_p), torch.tensor(p))


def test_the_card_says_what_a_reader_needs(trained, hub):
    trained.push_to_hub(dataset="two synthetic views", tags=["toy"], license="mit")
    card = files(hub, "main")["README.md"].decode()
    assert card == files(hub, "unimodal")["README.md"].decode()
    assert card.startswith("---\n")
    header = yaml.safe_load(card.split("---\n")[1])
    assert {"multimodal", "two-stage", "toy"} <= set(header["tags"])
    assert header["license"] == "mit"
    for phrase in (
        "two synthetic views",
        "](trajectory.png)",
        "](reliability.png)",
        "](contributions.png)",
        'revision="unimodal"',
        "somebody/two-views",
        "ViTModel",
        "| uniqueness of left |",
        "`learning_rate` | 0.003",
        "| transformers |",
        "scripted",
    ):
        assert phrase in card, phrase
    for head in ("left alone", "right alone", "fused head", "calibrated combination"):
        assert re.search(rf"\| {head} \| \d+\.\d % \| \d+\.\d % \|", card)
    assert re.search(r"Expected calibration error on test: 0\.\d+ before and 0\.\d+ after", card)
    assert re.search(r"\| redundancy \|.*\d\.\d+ to \d\.\d+, floor", card)


def test_a_text_with_a_token_is_refused_before_anything_is_uploaded(tmp_path, hub):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"token": "%s"}' % TOKEN)  # noqa: UP031
    with pytest.raises(ValueError, match=r"config\.json is not fit to be published"):
        publish("somebody/x", folder, None, modalities=())
    assert hub.requests == []


def test_a_text_with_a_local_path_is_refused(tmp_path, hub):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"data": "{tmp_path}/data"}}')
    with pytest.raises(ValueError, match="local path"):
        publish("somebody/x", folder, None, modalities=(), forbidden=(str(tmp_path),))
    assert hub.requests == []


def test_a_vocabulary_may_hold_pieces_that_look_like_paths(hub, tmp_path):
    folder = tmp_path / "model"
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "tokenizer.json").write_text('{"../": 1, "/usr/bin": 2}', encoding="utf-8")
    HfApi(endpoint=hub.endpoint).create_repo("somebody/words", token=TOKEN)
    publish("somebody/words", folder, None, modalities=("text",), token=TOKEN)
    assert set(hub.revisions["somebody/words"]["main"]) == {"text/tokenizer.json"}
    (folder / "text" / "tokenizer_config.json").write_text('{"name": "../mine"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not fit .*'\.\./'"):
        publish("somebody/words", folder, None, modalities=("text",))


# The port "discard", which nothing listens to.
NOBODY = "http://127.0.0.1:9"


def test_where_the_hub_cannot_be_reached_the_model_is_safe_and_one_command_repeats_the_push(
    trained, hub, tmp_path, monkeypatch, capsys
):
    hub.revisions.clear()
    with monkeypatch.context() as away:
        away.setattr(constants, "ENDPOINT", NOBODY)
        with pytest.raises(NotPublishedError, match="Nothing of it is lost") as found:
            trained.push_to_hub(dataset="two synthetic views", private=True)
    command = str(found.value).partition("push it by: ")[2]
    folder = tmp_path / "run"
    assert command == f"ecsfusion push {folder} somebody/two-views --peak {folder / 'unimodal'} --private"
    assert {name for name in PUBLISHED if (folder / name).is_file()} == PUBLISHED
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(shlex.split(command)[1:]) == 0
    assert "somebody/two-views" in capsys.readouterr().out
    assert set(files(hub, "main")) == set(files(hub, "unimodal")) == PUBLISHED
    steps = [json.loads(files(hub, revision)["config.json"])["step"] for revision in ("main", "unimodal")]
    assert steps == [None, 4]
    assert 'from_pretrained("somebody/two-views"' in files(hub, "main")["README.md"].decode()
    for name in ("README.md", "model.safetensors"):
        assert files(hub, "main")[name] == (folder / name).read_bytes()


def test_a_push_that_breaks_off_in_the_middle_can_be_repeated(trained, hub, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ConnectionResetError("the line broke")

    with monkeypatch.context() as breaking:
        breaking.setattr(HfApi, "upload_folder", broken)
        with pytest.raises(
            NotPublishedError, match=r"ConnectionResetError: the line broke.*push it by: ecsf"
        ):
            trained.push_to_hub(revision="tried")
    command = "push {0} somebody/two-views --peak {0}/unimodal --revision tried".format(tmp_path / "run")
    hub.revisions["somebody/two-views"]["tried"] = {}
    assert main(shlex.split(command)) == 0
    assert set(files(hub, "tried")) == PUBLISHED
    assert files(hub, "main").keys() <= {".gitattributes"}


def test_results_are_beside_the_card_as_leaderboards_read_them(trained, hub, tmp_path):
    left = tmp_path / "run" / ".eval_results" / "of-an-earlier-run.yaml"
    left.parent.mkdir()
    left.write_text("[]")
    trained.push_to_hub(dataset_tags=["someone/views", "someone/more"], dataset_args="small")
    published = files(hub, "main")
    names = {name for name in published if name.startswith(".eval_results/")}
    assert names == {".eval_results/someone-views-small.yaml", ".eval_results/someone-more.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(published[".eval_results/someone-views-small.yaml"]))
    score = trained.measurements["test"].scores["calibrated"]
    assert (entry.dataset_id, entry.task_id) == ("someone/views", "small")
    assert entry.value == pytest.approx(100 * score, abs=0.006)
    assert entry.source_url == "https://huggingface.co/somebody/two-views"
    assert entry.notes == "accuracy of the calibrated combination on the split test"
    header = yaml.safe_load(published["README.md"].decode().split("---\n")[1])
    assert header["datasets"] == ["someone/views", "someone/more"]
    assert header["pipeline_tag"] == "image-classification"
    assert header["model-index"][0]["results"][-1]["metrics"][-1]["value"] == pytest.approx(score)


def test_the_tag_of_trackio_reaches_the_card_and_its_space_is_linked(trained, hub, monkeypatch):
    class Tags(TrainerCallback):
        """As the callback of Trackio does when a push begins."""

        def on_push_begin(self, args, state, control, model, **kwargs):
            model.model_tags = ["mine", "trackio", "trackio:https://huggingface.co/spaces/somebody/curves"]

    monkeypatch.setattr(trained.model, "model_tags", None)
    tags = Tags()
    trained.add_callback(tags)
    trained.push_to_hub(dataset="two synthetic views")
    trained.remove_callback(tags)
    card = files(hub, "main")["README.md"].decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert {"mine", "trackio", "trackio:https://huggingface.co/spaces/somebody/curves"} <= set(header["tags"])
    assert "[on Trackio](https://huggingface.co/spaces/somebody/curves)" in card


def test_decisions_and_warnings_are_alerts_of_trackio_once(once, monkeypatch):
    sent = []
    run = SimpleNamespace(get=lambda: None)
    stub = SimpleNamespace(
        context_vars=SimpleNamespace(current_run=run),
        AlertLevel=str,
        alert=lambda **values: sent.append((values["level"], values["title"], values["text"])),
    )
    monkeypatch.setitem(sys.modules, "trackio", stub)
    warnings = [{"step": 3, "diagnostic": "shortcut", "sentence": "one head knows it all"}]
    record = StageRecord(history=once.record.history)
    alerts = TrackioAlerts(SimpleNamespace(record=record))
    state = SimpleNamespace(is_world_process_zero=True)
    record.history = []
    alerts.on_train_begin(None, state, None)
    record.history, record.warnings = once.record.history, warnings
    # Before Trackio has opened its run nothing is sent, and nothing is lost.
    alerts.on_log(None, state, None)
    assert sent == []
    run.get = object
    alerts.on_log(None, state, None)
    alerts.on_train_end(None, state, None)
    decisions = [("info", f"decision, step {step}", reason) for step, reason in decisions_of(record.history)]
    assert decisions
    assert sent == [*decisions, ("warn", "shortcut, step 3", "one head knows it all")]


def test_alerts_are_sent_only_where_the_run_reports_to_trackio_and_before_it_ends(once):
    assert not any(isinstance(each, TrackioAlerts) for each in once.callback_handler.callbacks)
    tracker = TrackioCallback.__new__(TrackioCallback)
    handler = SimpleNamespace(callbacks=["first", tracker])
    alert_on_trackio(SimpleNamespace(callback_handler=handler))
    assert [type(each) for each in handler.callbacks] == [str, TrackioAlerts, TrackioCallback]


def test_the_page_of_the_model_is_published_as_a_space(trained, hub, monkeypatch):
    trained.push_to_hub(dataset="two synthetic views", space=True, private=True)
    assert set(files(hub, "main")) == PUBLISHED
    space = {name: text.decode() for name, text in hub.revisions["spaces/somebody/two-views"]["main"].items()}
    assert set(space) == {"README.md", "app.py", "requirements.txt"}
    header = yaml.safe_load(space["README.md"].split("---\n")[1])
    assert (header["sdk"], header["app_file"], header["models"]) == (
        "gradio",
        "app.py",
        ["somebody/two-views"],
    )
    assert len(header["short_description"]) <= 60
    assert "secret `HF_TOKEN`" in space["README.md"]
    assert f"ecsfusion[demo]=={__version__}" in space["requirements.txt"]
    served = []
    monkeypatch.setattr(page, "load_and_launch", served.append)
    exec(space["app.py"], {})  # noqa: S102
    assert served == ["somebody/two-views"]


def test_the_space_is_made_for_a_version_that_the_extra_allows():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(each) for each in project["optional-dependencies"]["demo"]]
    (gradio,) = (each for each in wanted if each.name == "gradio")
    assert GRADIO_VERSION in gradio.specifier


def test_a_push_with_a_space_that_breaks_off_is_repeated_with_it(trained, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    with pytest.raises(NotPublishedError, match=r"ecsfusion push \S+ somebody/two-views .*--space$"):
        trained.push_to_hub(space=True)


def test_a_hub_that_is_away_at_the_start_is_answered_by_a_sentence(hub, tmp_path, monkeypatch):
    def away(*args, **kwargs):
        raise HTTPError("no route to the Hub")

    monkeypatch.setattr(HfApi, "create_repo", away)
    with pytest.raises(NotPublishedError, match=r"no route to the Hub\)\. Nothing has been trained") as found:
        FusionTrainer(
            model=two_views(),
            args=arguments(tmp_path, push_to_hub=True, hub_model_id="somebody/two-views"),
            train_dataset=TwoViews(8, seed=0),
            eval_dataset=TwoViews(8, seed=1),
            processing_class=processor(),
        )
    assert str(found.value).endswith("ecsfusion push OUTPUT_FOLDER somebody/two-views")


def test_a_folder_without_a_model_is_not_pushed(tmp_path, hub, capsys):
    assert main(["push", str(tmp_path), "somebody/nothing"]) == 2
    assert "holds no model (config.json)" in capsys.readouterr().err
    assert hub.requests == []
