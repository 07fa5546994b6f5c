"""Auto classes, `pipeline("multimodal-classification")` and `model.predict`: raw values in, names and scores out."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from finished_models import finished_model, save_finished_model
from fusion_fixtures import tiny_bert, tiny_vit, tiny_wav2vec2
from PIL import Image
from test_processing import make_image_processor
from transformers import AutoConfig, AutoModel, AutoProcessor, Wav2Vec2FeatureExtractor, pipeline

from ecsfusion import FusionConfig, FusionForClassification, FusionProcessor
from ecsfusion.auto_classes import _AfterImport

NAMES = ("image", "text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished model with its processor, and a picture."""
    folder = tmp_path_factory.mktemp("finished")
    save_finished_model(folder, "a.png")
    return folder


@pytest.fixture(scope="module")
def classify(folder):
    return pipeline("multimodal-classification", model=str(folder), device="cpu")


def scores_of(answer):
    return {each["label"]: each["score"] for each in answer}


def test_the_auto_classes_load_a_folder(folder):
    assert type(AutoConfig.from_pretrained(folder)) is FusionConfig
    assert type(AutoModel.from_pretrained(folder)) is FusionForClassification
    assert type(AutoProcessor.from_pretrained(folder)) is FusionProcessor


@pytest.mark.parametrize("first", ["import ecsfusion", "from transformers import AutoConfig"])
def test_either_may_be_imported_first(first):
    code = f"{first}; import ecsfusion; from transformers import AutoConfig; print(AutoConfig.for_model('ecsfusion'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("FusionConfig"), done.stderr


def test_to_import_the_library_imports_nothing_large():
    code = "import ecsfusion, sys; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_ours_is_imported_after_theirs(tmp_path, monkeypatch):
    """And theirs is what it was: its own loader, its own spec."""
    (tmp_path / "theirs_a.py").write_text("kind = 'theirs'\n")
    (tmp_path / "ours_a.py").write_text("import theirs_a\nkind = theirs_a.kind\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [_AfterImport({"theirs_a": "ours_a"}), *sys.meta_path])
    import theirs_a  # type: ignore[import-not-found]

    assert sys.modules["ours_a"].kind == "theirs"
    assert theirs_a.__spec__.origin == str(tmp_path / "theirs_a.py")
    for name in ("theirs_a", "ours_a"):
        del sys.modules[name]


def test_a_row_is_answered_as_the_model_answers_it(folder, classify):
    model, processor = (
        FusionForClassification.from_pretrained(folder),
        FusionProcessor.from_pretrained(folder),
    )
    row = {"image": str(folder / "a.png"), "text": "two three"}
    for given in (row, {"text": "one"}, {"image": Image.open(folder / "a.png"), "text": None, "label": 3}):
        raw = {name: given.get(name) for name in NAMES}
        with torch.no_grad():
            expected = model(**processor(**raw)).probabilities[0].tolist()
        answer = classify(given)
        assert scores_of(answer) == pytest.approx(dict(zip("abc", expected, strict=True)))
        assert [each["score"] for each in answer] == sorted(expected, reverse=True)
        assert model.predict(**raw) == answer
    assert classify(**row) == classify(row)
    assert classify(row, top_k=1) == classify(row)[:1] == model.predict(top_k=1, **row)


def test_lists_batches_and_streams_are_answered_row_by_row(folder, classify):
    rows = [
        {"image": str(folder / "a.png"), "text": "two three one"},
        {"text": "one"},
        {"image": np.zeros((4, 4), dtype=np.uint8)},
        {"text": "three two"},
        {"image": Image.open(folder / "a.png"), "text": "one"},
    ]
    alone = [scores_of(classify(row)) for row in rows]
    for answers in (
        classify(rows),
        classify(rows, batch_size=2),
        classify((row for row in rows), batch_size=3),
    ):
        assert [scores_of(answer) for answer in answers] == [pytest.approx(each, abs=1e-6) for each in alone]
    assert classify([]) == []
    # The keys of a table, in which an empty cell is None.
    table = datasets.Dataset.from_list([{"image": None, "text": None, **row} for row in rows[:2]])
    assert [scores_of(answer) for answer in classify(table, batch_size=2)] == [
        pytest.approx(each, abs=1e-6) for each in alone[:2]
    ]
    assert [scores_of(answer) for answer in classify(map(dict, rows[:2]))] == alone[:2]


def test_an_error_names_the_row_of_a_list_a_data_set_and_a_stream(folder, classify):
    rows = [{"text": "one"}, {"image": str(folder / "absent.png")}]
    for given in (rows, datasets.Dataset.from_list([{"image": None, "text": None, **row} for row in rows])):
        with pytest.raises(ValueError, match="image, row 1: there is no file"):
            list(classify(given, batch_size=2))
    with pytest.raises(ValueError, match=r"row 1 has the keys \['label'\]"):
        list(classify(row for row in [{"text": "one"}, {"label": 1}]))


def test_nan_of_a_table_is_a_missing_modality(classify):
    row = {"image": float("nan"), "text": "one"}
    assert classify(row) == classify.model.predict(**row) == classify({"text": "one"})


def test_another_name_for_a_modality_is_said(classify, caplog, monkeypatch):
    logger = logging.getLogger("ecsfusion.pipeline")
    monkeypatch.setattr(logger, "warning_once", logger.warning, raising=False)
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level("WARNING", logger="ecsfusion.pipeline"):
        classify({"text": "one", "image": None, "row": 3})
        assert not caplog.records
        classify({"text": "one", "picture": "a.png"})
    assert "['picture'], which are no modalities of the model, and lack ['image']" in caplog.text


def test_a_saved_pipeline_is_loaded_without_code_of_others(classify, tmp_path):
    """And with its processor."""
    classify.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.py"))
    loaded = pipeline("multimodal-classification", model=str(tmp_path), processor=str(tmp_path))
    assert loaded({"text": "one"}) == classify({"text": "one"})


def test_what_is_no_row_is_said(folder, classify):
    with pytest.raises(TypeError, match="a row is a str; give a dictionary of the values by modality"):
        classify("a.png")
    with pytest.raises(ValueError, match="none of the modalities"):
        classify({"picture": "a.png"})
    with pytest.raises(ValueError, match=r"give rows, .* or the values of one row by name"):
        classify()
    with pytest.raises(ValueError, match="'sound' is no modality of this model and no option"):
        classify({"text": "one"}, sound="a.wav")
    with pytest.raises(ValueError, match="give processor="):
        finished_model({"image": tiny_vit(), "text": tiny_bert()}).predict(text="one")
    for top_k in (0, -1, "2"):
        with pytest.raises(ValueError, match="top_k is"):
            classify({"text": "one"}, top_k=top_k)
    other = FusionProcessor({"text": classify.processor.processors["text"]})
    with pytest.raises(ValueError, match=r"processor has .* and lacks the model's \['image'\]"):
        pipeline("multimodal-classification", model=classify.model, processor=other)
    with pytest.raises(ValueError, match="predict answers one"):
        classify.model.predict(text=["one", "two"])


def test_without_a_readout_the_fused_head_answers(folder):
    model, processor = (
        FusionForClassification.from_pretrained(folder),
        FusionProcessor.from_pretrained(folder),
    )
    model.config.readout = None
    with torch.no_grad():
        expected = model(**processor(text="one")).logits.softmax(1)[0].tolist()
    assert scores_of(model.predict(text="one")) == pytest.approx(dict(zip("abc", expected, strict=True)))


def test_a_regression_answers_with_predictions_in_their_order():
    model = finished_model({"image": tiny_vit(), "text": tiny_bert()}, problem_type="regression")
    inputs = {"image": torch.randn(1, 1, 4, 4)}

    class Ready:
        def __call__(self, **_):
            from ecsfusion.processing import FusionBatch

            return FusionBatch(inputs)

    with torch.no_grad():
        expected = model(**inputs).predictions[0].tolist()
    answer = model.predict(processor=Ready(), top_k=1, image="...")
    assert [each["label"] for each in answer] == ["a", "b", "c"]
    assert [each["score"] for each in answer] == pytest.approx(expected)


def test_the_example_of_the_documentation_runs(folder, tmp_path, monkeypatch):
    image, sound = (
        make_image_processor(tmp_path / "i", image_mean=[0.5], image_std=[0.5]),
        Wav2Vec2FeatureExtractor(),
    )
    FusionProcessor({"image": image, "audio": sound}).save_pretrained(tmp_path / "digits")
    finished_model({"image": tiny_vit(), "audio": tiny_wav2vec2()}).save_pretrained(tmp_path / "digits")
    Image.open(folder / "a.png").save(tmp_path / "three.png")
    soundfile.write(tmp_path / "three.wav", np.zeros(400, dtype=np.float32), 16_000)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[1] / "docs" / "export.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict = {}
    exec(code.replace("you/digits", "./digits"), names)  # noqa: S102  (this very code is what is shown)
    assert {each["label"] for each in names["answer"]} == {*"abc"}
