"""A finished model as one graph: the same answers for every set of modalities, without this library."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from finished_models import finished_model, fitted_readout
from fusion_fixtures import Sensor, tiny_ast, tiny_bert, tiny_vit
from PIL import Image
from test_processing import make_image_processor, make_tokenizer
from transformers import SwinConfig, SwinModel

from ecsfusion import ArrayProcessor, FusionForClassification, FusionProcessor
from ecsfusion.cli import main
from ecsfusion.export import failures
from ecsfusion.export.failures import export_error
from ecsfusion.export.inputs import graph_inputs
from ecsfusion.model.readout_table import look_up, readout_table

NAMES = ("image", "audio", "text", "table")
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


def batch_of(num_rows, length=5):
    """Inputs in which rows differ in length."""
    generator = torch.Generator().manual_seed(num_rows)
    mask = torch.ones(num_rows, length, dtype=torch.long)
    mask[1::2, length - 2 :] = 0
    return {
        "image": {"pixel_values": torch.randn(num_rows, 1, 4, 4, generator=generator)},
        "audio": {"input_values": torch.randn(num_rows, 16, 8, generator=generator)},
        "text": {
            "input_ids": torch.randint(1, 5, (num_rows, length), generator=generator),
            "attention_mask": mask,
        },
        "table": {"values": torch.randn(num_rows, length + 2, 3, generator=generator)},
    }


def subsets(names):
    return [set(some) for size in range(1, len(names) + 1) for some in itertools.combinations(names, size)]


def masks_of(names, given, num_rows):
    return {name: torch.full((num_rows,), name in given) for name in names}


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize(
    "excluded", [(), ("x", "y", "z"), ("fused",)], ids=["all", "fused alone", "no fused"]
)
def test_the_table_answers_as_the_readout(problem_type, excluded):
    """One row for each set of modalities, the empty one included."""
    names = ("x", "y", "z")
    readout = fitted_readout([*names, "fused"], problem_type, excluded)
    logits = {
        head: torch.randn(8, 3, generator=torch.Generator().manual_seed(2)) for head in (*names, "fused")
    }
    present = {name: torch.tensor([bool(k >> m & 1) for k in range(8)]) for m, name in enumerate(names)}
    seen = {
        name: z if name == "fused" else z.where(present[name][:, None], torch.nan)
        for name, z in logits.items()
    }
    expected = readout.answers(seen, present)
    found = look_up(readout_table(readout, names), seen, present, problem_type)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fusion", ["gated-sum", "transformer", "boosted"])
def test_a_model_compiles_as_one_graph(fusion):
    """With best heads, a readout, and rows that lack a modality."""
    encoders = {"left": Sensor(), "right": Sensor()}
    model = finished_model(encoders, "left", PROBLEMS[0], fusion=fusion)
    if fusion == "boosted":
        model.fusion.add_classifier("left")
    inputs = {name: torch.randn(5, 4, 3) for name in encoders}
    present = {"right": torch.tensor([True, False, True, False, True])}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected, found = model(present=present, **inputs), compiled(present=present, **inputs)
    torch.testing.assert_close(found.probabilities, expected.probabilities, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.embeddings["right"], expected.embeddings["right"], equal_nan=True)


def test_torch_export_leaves_the_number_of_rows_free(tmp_path):
    model = finished_model({"image": tiny_vit(), "table": Sensor()}, "table")
    facts = model.export(tmp_path / "graph", "torch", example={"table": torch.randn(1, 4, 3)})
    assert facts["max_difference_to_the_model"] < 1e-5
    program = torch.export.load(tmp_path / "graph" / "model.pt2").module()
    for num_rows, length in ((1, 2), (7, 5)):
        batch = {
            name: value for name, value in batch_of(num_rows, length).items() if name in ("image", "table")
        }
        for given in subsets(("image", "table")):
            present = masks_of(("image", "table"), given, num_rows)
            with torch.no_grad():
                expected = model(present=present, **batch).probabilities
                found = program(batch["image"]["pixel_values"], batch["table"]["values"], *present.values())
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def tiny_swin():
    """Its attention has a learned bias."""
    config = SwinConfig(
        image_size=4,
        patch_size=1,
        num_channels=1,
        embed_dim=8,
        depths=[1],
        num_heads=[2],
        window_size=2,
    )
    return SwinModel(config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of pictures, sounds, texts and tables, its folder, and what was exported from it."""
    folder = tmp_path_factory.mktemp("exported")
    model = finished_model(
        {"image": tiny_swin(), "audio": tiny_ast(), "text": tiny_bert(), "table": Sensor()}, "table"
    )
    processor = FusionProcessor(
        {
            "image": make_image_processor(folder / "sources" / "image", image_mean=[0.5], image_std=[0.5]),
            "text": make_tokenizer(folder / "sources" / "text"),
            "table": ArrayProcessor(mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 4.0]),
        }
    )
    facts = model.export(folder / "onnx", processor=processor)
    return model, processor, folder / "onnx", facts


@pytest.mark.parametrize("num_rows", [1, 7])
def test_onnx_answers_as_the_model_for_every_set_of_modalities(exported, num_rows):
    model, _, folder, _ = exported
    batch = batch_of(num_rows, length=num_rows + 3)
    file = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    flat = {f"{name}.{key}": value.numpy() for name, inputs in batch.items() for key, value in inputs.items()}
    for given in subsets(NAMES):
        present = masks_of(NAMES, given, num_rows)
        with torch.no_grad():
            expected = model(present=present, **batch).probabilities
        masks = {f"{name}.present": mask.numpy() for name, mask in present.items()}
        (found,) = session.run(None, flat | masks)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_model_in_bfloat16_is_written_in_float32(tmp_path):
    """ONNX Runtime has no convolution in bfloat16; the model stays as it is."""
    model = finished_model({"image": tiny_vit(), "table": Sensor()}).to(torch.bfloat16)
    example = {"table": {"values": torch.randn(2, 4, 3, dtype=torch.bfloat16)}}
    facts = model.export(tmp_path / "onnx", example=example)
    assert model.dtype == torch.bfloat16
    assert facts["max_difference_to_the_model"] < 1e-5
    assert {each["dtype"] for each in facts["inputs"]} == {"float32", "bool"}


def test_the_folder_says_what_is_needed_and_nothing_of_this_machine(exported):
    _, _, folder, facts = exported
    assert json.loads((folder / "export.json").read_text()) == facts
    assert facts["classes"] == ["a", "b", "c"]
    shapes = {each["name"]: each["shape"] for each in facts["inputs"]}
    assert shapes["image.pixel_values"] == ["batch", 1, 4, 4]
    assert shapes["audio.input_values"] == ["batch", 16, 8]
    assert shapes["text.input_ids"] == ["batch", "text.length"]
    assert shapes["table.present"] == ["batch"]
    assert (folder / "image" / "preprocessor_config.json").exists()
    for file in (file for file in folder.rglob("*") if file.is_file()):
        assert b"site-packages" not in file.read_bytes(), file
        assert b"ecsfusion/" not in file.read_bytes(), file


def test_the_code_in_the_readme_answers_without_the_library(exported, tmp_path):
    """In a process that cannot import this library; the sound is processed by hand, and the text is too long."""
    text = "two three one two three one"
    model, processor, folder, _ = exported
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)).save(
        tmp_path / "image.png"
    )
    code = code.replace('Path(".")', f"Path({str(folder)!r})").replace('"a text"', f'"{text}"')
    assert "`pip install numpy onnxruntime pillow transformers`" in (folder / "README.md").read_text()
    blocked = "import sys\nsys.modules['ecsfusion'] = sys.modules['torch'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    batch = processor(image=str(tmp_path / "image.png"), text=text, table=np.zeros((8, 3)))
    with torch.no_grad():
        expected = model(audio={"input_values": torch.zeros(1, 16, 8)}, **batch).probabilities[0].tolist()
    assert eval(done.stdout) == pytest.approx(dict(zip("abc", expected, strict=True)), abs=1e-5)  # noqa: S307


def test_what_cannot_be_exported_is_said(exported, tmp_path):
    model = exported[0]
    with pytest.raises(ValueError, match="format is 'tflite'; give one of onnx, torch"):
        model.export(tmp_path, "tflite")
    with pytest.raises(ValueError, match="modalities is 'image'; give a list of some of"):
        model.export(tmp_path, modalities="image")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model, whose card would be overwritten"):
        model.export(tmp_path)
    with pytest.raises(ValueError, match=r"the inputs of 'table' are not known, .* give example="):
        graph_inputs(model, ["table"])
    unfinished = finished_model({"x": Sensor(), "y": Sensor()}, stage="unimodal")
    unfinished.config.readout = None
    with pytest.raises(ValueError, match="of stage 1 and has no readout"):
        unfinished.export(tmp_path / "new", example=dict.fromkeys("xy", torch.randn(1, 4, 3)))


class Wavering(Sensor):
    """An encoder that asks the data which way to take."""

    def forward(self, values):
        return super().forward(values if values.sum() > 0 else -values)


def test_an_encoder_that_cannot_be_traced_is_named(tmp_path):
    model = finished_model({"left": Sensor(), "right": Wavering()})
    message = (
        r"the encoder of 'right' \(Wavering\) cannot be written as torch.export's file: torch.export failed "
        r"\(GuardOnDataDependentSymNode: .*\). Leave the modality out \(.*\), or train with another encoder.$"
    )
    with pytest.raises(ValueError, match=message):
        model.export(tmp_path, "torch", example=dict.fromkeys(("left", "right"), torch.randn(1, 4, 3)))
    model.export(tmp_path, "torch", ["left"], example={"left": torch.randn(1, 4, 3)})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_encoder_that_torch_does_not_convert_is_named(monkeypatch, attention):
    def fail(program, names, output):
        if names == ["image.pixel_values"]:
            raise RuntimeError("in the second of three steps") from TypeError(
                "\x1b[96maten.sub\x1b[0m\nTried:"
            )

    monkeypatch.setattr(failures, "converted", fail)
    model = finished_model({"table": Sensor(), "image": tiny_vit()})
    model.encoders["image"].config._attn_implementation = attention
    inputs = graph_inputs(model, ["table", "image"], example={"table": torch.randn(1, 4, 3)})
    said = str(export_error(model, inputs, "onnx", RuntimeError("of the whole")))
    assert "the encoder of 'image' (ViTModel, vit) cannot be written as ONNX: " in said
    assert "torch.onnx failed (TypeError: aten.sub). Give format='torch' (--format torch), or " in said
    assert ("attn_implementation='eager'" in said) == (attention == "sdpa")


def test_a_failure_of_no_encoder_is_said_as_one(monkeypatch):
    monkeypatch.setattr(failures, "converted", lambda program, names, output: None)
    model = finished_model({"left": Sensor(), "right": Sensor()}, fusion="gated-sum")
    inputs = graph_inputs(
        model, ["left", "right"], example=dict.fromkeys(("left", "right"), torch.randn(1, 4, 3))
    )
    said = str(export_error(model, inputs, "onnx", RuntimeError("no such operator\nat line 3")))
    assert "although each of its encoders can (RuntimeError: no such operator); please report" in said
    assert "'gated-sum'" in said


def test_an_encoder_that_mixes_padding_gets_no_mask():
    """Its rows are run one length after another, which is a branch on the data."""
    model = finished_model({"image": tiny_vit(), "text": tiny_bert()})
    assert [each.name for each in graph_inputs(model, ["text"])] == ["text.input_ids", "text.attention_mask"]
    model.config.unpadded = ["text"]
    assert [each.name for each in graph_inputs(model, ["text"])] == ["text.input_ids"]


def test_the_command_exports_the_modalities_that_it_is_asked_for(tmp_path, capsys, monkeypatch):
    asked = {}

    def export(self, folder, format, modalities):
        asked.update(
            folder=folder, format=format, modalities=modalities, attention=self.encoders["image"].config
        )
        return {"file": "model.onnx", "inputs": [{"name": "image.pixel_values"}]}

    monkeypatch.setattr(FusionForClassification, "export", export)
    finished_model({"image": tiny_vit(), "other": tiny_vit()}).save_pretrained(tmp_path)
    words = ["export", str(tmp_path), "--modalities", "image", "--attn-implementation", "eager"]
    assert main(words) == 0
    assert asked["folder"] == str(tmp_path / "onnx")
    assert (asked["format"], asked["modalities"]) == ("onnx", ["image"])
    assert asked["attention"]._attn_implementation == "eager"
    assert "image.pixel_values" in capsys.readouterr().out
    assert main(["export", "you/digits"]) == 2
    assert "add --output FOLDER" in capsys.readouterr().err
