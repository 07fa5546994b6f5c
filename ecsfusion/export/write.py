"""A folder with a finished model that runs without this library: the graph, its description, the processors' files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ecsfusion import __version__
from ecsfusion.export.failures import export_error
from ecsfusion.export.graph import export_graph, shapes_of
from ecsfusion.export.inputs import MASK, GraphInput, graph_inputs
from ecsfusion.export.onnx import check_packages, run_onnx, write_onnx
from ecsfusion.export.readme import readme_of
from ecsfusion.model.answers import answer_of
from ecsfusion.model.encoders import needs_one_length
from ecsfusion.model.problem_types import REGRESSION
from ecsfusion.processing import KINDS, UNLIMITED, FusionProcessor

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
"""Formats, and the file that each is written to."""
DESCRIPTION = "export.json"
TRIED_ROWS = (1, 7)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""How far the file's probabilities may be from the model's, by the precision of its weights; 0.02 in others."""


def export_model(
    model: Any,
    folder: str | os.PathLike,
    format: str = "onnx",
    modalities: Sequence[str] | None = None,
    processor: FusionProcessor | None = None,
    example: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """See `FusionForClassification.export`."""
    if format not in FILES:
        raise ValueError(f"format is {format!r}; give one of {', '.join(FILES)}.")
    names = _chosen(model, modalities)
    target = Path(folder)
    if (target / "config.json").exists():
        raise ValueError(
            f"{target} holds a model, whose card would be overwritten; give another folder, such as {target / format}."
        )
    if format == "onnx":
        # Before the minutes that the rest may take.
        check_packages()
    if format == "onnx" and torch.bfloat16 in {parameter.dtype for parameter in model.parameters()}:
        # ONNX Runtime has few operators for bfloat16, which float32 holds exactly.
        model = copy.deepcopy(model).float()
        example = {name: _as_float32(part) for name, part in (example or {}).items()}
    was_training = model.training
    model.eval()
    try:
        inputs = graph_inputs(model, names, processor, example)
        with _failures_explained(model, inputs, format):
            program = export_graph(model, inputs)
            shapes = shapes_of(program, inputs)
            target.mkdir(parents=True, exist_ok=True)
            file = target / FILES[format]
            output = "predictions" if model.problem_type == REGRESSION else "probabilities"
            opset = None
            if format == "onnx":
                opset = write_onnx(program, file, [each.name for each in inputs], shapes, output)
            else:
                _write_torch(program, file)
            difference = max(_difference(model, inputs, program, file, format, rows) for rows in TRIED_ROWS)
    finally:
        model.train(was_training)
    limit = max(TOLERANCE.get(p.dtype, 0.02) for p in model.parameters() if p.is_floating_point())
    if not difference <= limit and output == "probabilities":
        raise ValueError(
            f"{file} answers otherwise than the model, by up to {difference:.2g}; please report the encoders "
            f"({', '.join(type(model.encoders[name]).__name__ for name in names)}) as a bug."
        )
    facts = {
        "format": format,
        "file": file.name,
        "opset": opset,
        "inputs": [_describe(each, shape) for each, shape in zip(inputs, shapes, strict=True)],
        "output": {"name": output, "shape": ["batch", model.config.num_labels], "dtype": "float32"},
        "problem_type": model.problem_type,
        "classes": [model.config.id2label[index] for index in range(model.config.num_labels)],
        "modalities": {name: _preprocessing(model, name, processor) for name in names},
        "max_difference_to_the_model": difference,
        "made_with": {
            "ecsfusion": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    if opset is None:
        del facts["opset"]
    if processor is not None:
        chosen = {name: part for name, part in processor.processors.items() if name in names}
        ranges = {name: values for name, values in processor.value_ranges.items() if name in names}
        FusionProcessor(chosen, ranges).save_pretrained(target)
    (target / "README.md").write_text(readme_of(facts), encoding="utf-8")
    (target / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


@contextmanager
def _failures_explained(model: Any, inputs: Sequence[GraphInput], format: str) -> Iterator[None]:
    """A context in which an export may fail with errors of any type, from the tracer, the exporter or ONNX Runtime."""
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        # What the model itself raises is no failure of the export.
        _answers(model, inputs, [each.sample for each in inputs])
        raise export_error(model, inputs, format, error) from error


def _chosen(model: Any, modalities: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities of the graph, in the order of the model."""
    given = model.modalities if modalities is None else modalities
    if isinstance(given, str) or not given or any(name not in model.modalities for name in given):
        raise ValueError(
            f"modalities is {modalities!r}; give a list of some of {list(model.modalities)}, or None for all."
        )
    return tuple(name for name in model.modalities if name in given)


def _as_float32(part: Any) -> Any:
    """A part of a batch whose bfloat16 values are float32."""
    if isinstance(part, Mapping):
        return {key: _as_float32(value) for key, value in part.items()}
    return part.float() if isinstance(part, Tensor) and part.dtype == torch.bfloat16 else part


def _write_torch(program: torch.export.ExportedProgram, file: Path) -> None:
    for node in program.graph.nodes:
        # It names files of this machine.
        node.meta.pop("stack_trace", None)
    torch.export.save(program, file)


def _describe(each: GraphInput, shape: Sequence[int | str]) -> dict[str, Any]:
    return {
        "name": each.name,
        "modality": each.modality,
        "key": each.key or "present",
        "shape": list(shape),
        "dtype": str(each.sample.dtype).removeprefix("torch."),
    }


def _preprocessing(model: Any, name: str, processor: FusionProcessor | None) -> dict[str, Any]:
    """What a user must know to make the inputs of a modality."""
    part = None if processor is None else processor.processors.get(name)
    facts: dict[str, Any] = {
        "encoder": type(model.encoders[name]).__name__,
        # Padding would change the embeddings of this encoder.
        "rows_of_one_length": needs_one_length(model.encoders[name], name in model.config.unpadded),
    }
    if part is not None:
        kind = next(kind for kind, (base, _) in KINDS.items() if isinstance(part, base))
        facts |= {"processor": type(part).__name__, "kind": kind, "folder": name}
        if kind == "tokenizer" and part.model_max_length < UNLIMITED:
            facts["max_length"] = part.model_max_length
        for key in ("sampling_rate", "image_mean"):
            value = getattr(part, key, None)
            if value is not None:
                facts[key] = list(value) if isinstance(value, tuple) else value
    return facts


def _difference(
    model: Any,
    inputs: Sequence[GraphInput],
    program: torch.export.ExportedProgram,
    file: Path,
    format: str,
    num_rows: int,
) -> float:
    """The largest distance of the file's answers from the model's, where rows lack modalities and differ in length."""
    values = [_rows(each, num_rows, index) for index, each in enumerate(inputs)]
    expected = _answers(model, inputs, values)
    with torch.no_grad():
        if format == "onnx":
            by_name = {each.name: value for each, value in zip(inputs, values, strict=True)}
            answers = torch.from_numpy(run_onnx(file, by_name))
        else:
            answers = program.module()(*values)
    return float((answers.cpu() - expected.cpu()).abs().max())


@torch.no_grad()
def _answers(model: Any, inputs: Sequence[GraphInput], values: Sequence[Tensor]) -> Tensor:
    """What the model answers to values of these inputs."""
    batch: dict[str, Any] = {}
    present: dict[str, Tensor] = {}
    for each, value in zip(inputs, values, strict=True):
        if each.key is None:
            present[each.modality] = value
        else:
            batch.setdefault(each.modality, {})[each.key] = value
    return answer_of(model(present=present, **batch), model.config).float()


def _rows(each: GraphInput, num_rows: int, index: int) -> Tensor:
    """Values of an input to try: other ones in every row, and rows that lack modalities."""
    sample = each.sample[:1].expand(num_rows, *each.sample.shape[1:]).clone()
    row = torch.arange(num_rows, device=sample.device)
    if each.key is None:
        return (row + index) % 2 == 0 if num_rows > 1 else sample
    if each.key == MASK and sample.shape[1] > 2:
        sample[1::2, sample.shape[1] - sample.shape[1] // 3 :] = 0
    elif sample.is_floating_point():
        generator = torch.Generator().manual_seed(index)
        sample = sample + torch.randn(sample.shape, generator=generator).to(sample)
    return sample
