"""A traced graph as an ONNX file, and the same graph run by ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecsfusion.extras import extra_for

MAX_PROTOBUF_BYTES = 1_900_000_000
"""Larger files than 2 GB cannot be one protobuf message; the weights are then beside it."""


def check_packages() -> None:
    """Check that what this module imports later is installed.

    Raises:
        ImportError: it is not.
    """
    with extra_for("an ONNX file"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (torch needs it)


def write_onnx(
    program: torch.export.ExportedProgram,
    file: Path,
    names: Sequence[str],
    shapes: Sequence[Any],
    output: str,
) -> int:
    """Write the file.

    Args:
        program: the traced graph.
        file: where to write.
        names: of its inputs, in order.
        shapes: of its inputs: sizes, and names of those that are free.
        output: name of its output.

    Returns:
        The version of the operators (opset).
    """
    import onnx

    proto = converted(program, names, output)
    _name_dims(proto.graph, shapes)
    _forget_sources(proto)
    large = proto.ByteSize() > MAX_PROTOBUF_BYTES
    onnx.save_model(
        proto, str(file), save_as_external_data=large, location=f"{file.name}.data" if large else None
    )
    return next(each.version for each in proto.opset_import if not each.domain)


def converted(program: torch.export.ExportedProgram, names: Sequence[str], output: str) -> Any:
    """The message of ONNX, a `ModelProto`, for a traced graph with inputs of these names."""
    # That torchvision is not installed, and what torch's own code deprecates, says nothing about the model.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        # As it was traced: where gradients are wanted, attention with a learned bias takes another way, whose result
        # lies otherwise in memory.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            found = torch.onnx.export(program, input_names=list(names), output_names=[output], verbose=False)
    finally:
        registration.setLevel(level)
    return found.model_proto  # type: ignore[union-attr]


def run_onnx(file: Path, inputs: dict[str, Tensor]) -> np.ndarray:
    """What ONNX Runtime answers on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.cpu().numpy() for name, value in inputs.items()})[0]


def _name_dims(graph: Any, shapes: Sequence[Any]) -> None:
    """Give free dimensions the names that the description of the file uses."""
    names: dict[str, str] = {}
    for value, shape in zip(graph.input, shapes, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if dim.dim_param:
                dim.dim_param = names.setdefault(dim.dim_param, size)
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)
    # Shapes in between, in the symbols of the tracer; whoever needs them infers them.
    del graph.value_info[:]


def _forget_sources(proto: Any) -> None:
    """Remove what names files of this machine: for every node the lines of code that it comes from."""
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        for part in (graph, *graph.node, *getattr(graph, "initializer", ()), *graph.input, *graph.output):
            for field in ("metadata_props", "doc_string"):
                # Inputs of functions are plain names.
                if hasattr(part, field):
                    part.ClearField(field)
