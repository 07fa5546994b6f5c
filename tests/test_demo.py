"""The page of `ecsfusion demo`: the functions behind it, and the page itself over HTTP where Gradio is installed."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soundfile
import torch
from finished_models import finished_model, save_finished_model
from fusion_fixtures import tiny_bert, tiny_vit
from transformers import Wav2Vec2FeatureExtractor

from ecsfusion import ArrayProcessor, FusionForClassification, FusionProcessor
from ecsfusion.cli import main
from ecsfusion.demo.answers import answer_row
from ecsfusion.demo.card import NO_CARD, card_of
from ecsfusion.demo.embeddings import columns_of, measure_file
from ecsfusion.demo.inputs import numbers_of, raw_value
from ecsfusion.demo.page import build_page, launch
from ecsfusion.demo.tables import answer_html, contributions_html, error_html


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished model with its processor, a card, and files to upload."""
    folder = tmp_path_factory.mktemp("model")
    save_finished_model(folder, "trajectory.png")
    (folder / "README.md").write_text(
        "---\ntags: [toy]\n---\n# Toy\n\n![t](trajectory.png)\n\n| unique to image | 0.5 |\n\n"
        '![spy](https://elsewhere.example/a.png) <img src="https://elsewhere.example/b.png">\n'
    )
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return FusionForClassification.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """Two views of a label, which both know."""
    rng = np.random.default_rng(0)
    label = np.arange(120) % 2
    views = {name: np.eye(2)[label] + 0.1 * rng.normal(size=(120, 2)) for name in ("left", "right")}
    file = tmp_path_factory.mktemp("embeddings") / "views.npz"
    np.savez(file, **views, label=label, words=np.where(label, "yes", "no"))
    return file


def test_an_answer_is_that_of_predict_with_every_head_beside_it(folder, model):
    values = {"image": {"bytes": (folder / "trajectory.png").read_bytes()}, "text": "two three"}
    row = answer_row(model, model.processor(), values)
    predicted = {each["label"]: each["score"] for each in model.predict(**values)}
    assert dict(zip(row.labels, row.answer, strict=True)) == pytest.approx(predicted)
    batch = model.processor()(**values)
    with torch.no_grad():
        outputs = model(**batch)
    for name, logits in {**outputs.unimodal_logits, "fused": outputs.logits}.items():
        assert row.heads[name] == pytest.approx(logits[0].softmax(0).tolist(), abs=1e-6)
    for name, bits in model.contributions(**batch).items():
        assert row.contributions[name] == pytest.approx(bits.tolist())
    assert row.missing == ()
    assert row.is_fused_asked


def test_a_modality_that_is_left_out_has_no_head_and_no_contribution(model):
    row = answer_row(model, model.processor(), {"image": None, "text": "one"})
    assert row.missing == ("image",)
    assert set(row.heads) == {"text", "fused"}
    assert not row.is_fused_asked
    assert set(row.contributions) == {"text"}
    assert "without image" in answer_html(row)
    assert "not asked, as image is missing" in answer_html(row)
    with pytest.raises(ValueError, match="give at least one of image, text"):
        answer_row(model, model.processor(), {})


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_targets_and_several_labels_are_said_in_their_own_words(folder, problem_type):
    model = finished_model({"image": tiny_vit(), "text": tiny_bert()}, problem_type=problem_type)
    row = answer_row(model, FusionProcessor.from_pretrained(folder), {"text": "one"})
    said, counted = answer_html(row), contributions_html(row)
    if problem_type == "regression":
        assert "The prediction is <strong>a = " in said
        assert "%" not in said
        assert len(row.contributions["text"]) == 3
        assert "text, b" in counted
    else:
        assert "The labels are <strong>" in said
        assert len(row.contributions["text"]) == 1


def test_a_model_without_a_readout_says_why_nothing_is_divided(folder):
    model = finished_model({"image": tiny_vit(), "text": tiny_bert()})
    model.config.readout = None
    row = answer_row(model, FusionProcessor.from_pretrained(folder), {"text": "one"})
    assert row.answer == pytest.approx(row.heads["fused"])
    assert "cannot be divided" in contributions_html(row)


def test_every_text_is_escaped():
    assert "&lt;script&gt;" in error_html("<script>")
    assert error_html("") == error_html(" ")


def test_inputs_are_read_from_the_uploaded_file_alone(tmp_path, folder):
    assert raw_value("image", str(folder / "trajectory.png"))["bytes"].startswith(b"\x89PNG")
    # A path that somebody writes into a text field is a text.
    assert raw_value("text", "/etc/passwd") == "/etc/passwd"
    assert raw_value("text", "  ") is raw_value("image", None) is raw_value("video", []) is None
    soundfile.write(tmp_path / "long.flac", np.zeros(301 * 8000), 8000)
    with pytest.raises(ValueError, match="lasts 301 seconds; the page takes at most 300"):
        raw_value("audio", str(tmp_path / "long.flac"))
    with pytest.raises(ValueError, match="at most 50,000"):
        raw_value("text", "a" * 50_001)


def test_numbers_are_a_row_or_a_series():
    assert raw_value("numbers", "1, 2;3\t4e-1") == [1, 2, 3, 0.4]
    assert numbers_of("1 2\n\n3,4\n") == [[1, 2], [3, 4]]
    for text, message in {
        "1, x": "'x' is no number",
        "1 inf": "'inf' is no number",
        "1 2\n3": "as many",
    }.items():
        with pytest.raises(ValueError, match=message):
            numbers_of(text)


def test_a_processor_says_what_its_values_are(folder):
    loaded = FusionProcessor.from_pretrained(folder)
    processor = FusionProcessor(
        {**loaded.processors, "sound": Wav2Vec2FeatureExtractor(), "table": ArrayProcessor()}
    )
    kinds = {name: processor.kind(name) for name in processor.modalities}
    assert kinds == {"image": "image", "text": "text", "sound": "audio", "table": "numbers"}
    with pytest.raises(ValueError, match="unknown modality"):
        processor.kind("video")


def test_the_card_has_its_pictures_in_place_and_none_from_elsewhere(model):
    (before, picture), (after, none) = card_of(model)
    assert before == "# Toy"
    assert picture[0].startswith("How it was trained")
    assert none is None
    assert "unique to image" in after
    assert "![" not in after
    assert "<img" not in after
    assert card_of(finished_model({"image": tiny_vit(), "text": tiny_bert()})) == [(NO_CARD, None)]


def test_columns_are_found_and_measured(embeddings):
    assert columns_of(str(embeddings)) == (
        ["left", "right", "label", "words"],
        ["left", "right"],
        "label",
    )
    (pid,) = measure_file(str(embeddings), "words", ["left", "right", "words"]).values()
    assert pid.names == ("left", "right")
    assert float(pid.redundancy) > 0.8
    with pytest.raises(ValueError, match="no label is chosen"):
        measure_file(str(embeddings), None, ["left", "right"])
    with pytest.raises(ValueError, match="1 columns of embeddings are chosen"):
        measure_file(str(embeddings), "label", ["left", "label"])


def bomb(path: Path) -> None:
    """An npz of a few bytes whose header claims an array of 8 TB."""
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("left.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)


@pytest.mark.parametrize("make", ["bomb", "damaged", "other", "folder", "hub"])
def test_a_file_that_cannot_be_measured_is_said_without_a_path(tmp_path, make):
    file, said = tmp_path / "up.npz", "not a zip file"
    if make == "bomb":
        bomb(file)
        said = "holds 7,629,395 MiB; the page takes at most 512"
    elif make == "damaged":
        file.write_bytes(b"PK nothing")
    elif make == "hub":
        file, said = Path("somebody/data"), "is no file of embeddings"
    else:
        file, said = tmp_path / ("up.txt" if make == "other" else "up.npz"), "is no file of embeddings"
        file.write_text("{}") if make == "other" else file.mkdir()
    with pytest.raises(ValueError, match=said) as found:
        columns_of(str(file))
    assert str(tmp_path) not in str(found.value)


def test_without_gradio_one_sentence_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", str(folder)]) == 2
    assert 'gradio, which is not installed; run: pip install "ecsfusion[demo]"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def page(model):
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'ecsfusion[demo]'")
    page = launch(build_page(model, model.processor()), block=False)
    yield page
    page.close()


@pytest.fixture(scope="module")
def client(page):
    from gradio_client import Client

    return Client(page.local_url, verbose=False)


def test_the_page_answers_over_http(page, client, folder, model):
    from gradio_client import handle_file

    assert page.local_url.startswith("http://127.0.0.1:")
    assert page.share is False
    picture = handle_file(str(folder / "trajectory.png"))
    said, counted = client.predict(picture, "one", True, True, api_name="/ask")
    best = model.predict(image=str(folder / "trajectory.png"), text="one")[0]
    assert f"<strong>{best['label']} ({best['score']:.1%})</strong>" in said
    assert "image" in counted
    assert "without image" in client.predict(picture, "one", False, True, api_name="/ask")[0]


def test_a_broken_file_is_answered_by_a_sentence(client, tmp_path):
    from gradio_client import handle_file

    for name in ("broken.png", "broken.npz"):
        (tmp_path / name).write_bytes(b"nothing")
    said, counted = client.predict(handle_file(str(tmp_path / "broken.png")), "", True, True, api_name="/ask")
    assert "Image: 7 bytes cannot be read as an image" in said
    assert "object at" not in said
    assert counted == ""
    columns = ("label", ["left", "right"], "rows stand alone")
    said = client.predict(handle_file(str(tmp_path / "broken.npz")), *columns, api_name="/measure")
    assert said.startswith('<p class="ecs-error"')
    assert str(tmp_path) not in said
    assert "ecsfusion-demo" not in said


def test_a_file_of_embeddings_is_shown_with_its_picture(client, embeddings):
    from gradio_client import handle_file

    file = handle_file(str(embeddings))
    *_, said = client.predict(file, api_name="/columns")
    assert "4 columns" in said
    shown = client.predict(file, "label", ["left", "right"], "rows stand alone", api_name="/measure")
    assert 'src="data:image/png;base64,' in shown
    assert "redundancy" in shown
    said = client.predict(file, "nothing", ["left", "right"], "rows stand alone", api_name="/measure")
    assert "There is no column &#x27;nothing&#x27;" in said


def test_no_file_of_this_machine_is_served_and_nobody_else_is_asked(page, folder):
    address = page.local_url
    for path in (str(folder / "config.json"), "/etc/passwd", "pyproject.toml", "../../etc/passwd"):
        with pytest.raises(HTTPError, match=r"40[34]"):
            asked(f"{address}gradio_api/file={path}")
    given = {"path": str(folder / "trajectory.png"), "meta": {"_type": "gradio.FileData"}}
    called = json.loads(asked(f"{address}gradio_api/call/ask", {"data": [given, "one", True, True]}))
    assert "event: error" in asked(f"{address}gradio_api/call/ask/{called['event_id']}")
    assert "fonts.googleapis" not in asked(address)
    assert json.loads(asked(f"{address}config"))["analytics_enabled"] is False


def asked(address: str, body: dict | None = None) -> str:
    """What the server answers to a GET, or with a body to a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(address, data, {"Content-Type": "application/json"})  # noqa: S310
    with urlopen(request, timeout=60) as answer:  # noqa: S310
        return answer.read().decode()
