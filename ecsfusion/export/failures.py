"""Why a model cannot be exported: which encoder it is, what failed, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ecsfusion.export.graph import only, trace
from ecsfusion.export.inputs import GraphInput
from ecsfusion.export.onnx import converted

LONGEST = 300
"""Characters of what another library said."""


class EncoderGraph(nn.Module):
    """The encoder of one modality as a function of tensors.

    Args:
        model: a `FusionForClassification` in evaluation mode.
        name: the modality.
        inputs: what the encoder is called with, in order.
    """

    def __init__(self, model: Any, name: str, inputs: Sequence[GraphInput]) -> None:
        super().__init__()
        self.model = only(model, {name})
        self.name = name
        self.keys = [str(each.key) for each in inputs]
        # As in `Graph`.
        self.training = False

    def forward(self, *values: Tensor) -> Tensor:
        """Embeddings (B, D)."""
        return self.model.embed(self.name, dict(zip(self.keys, values, strict=True)))


def export_error(model: Any, inputs: Sequence[GraphInput], format: str, error: Exception) -> ValueError:
    """The sentence for an export that failed, although the model itself answers.

    Each encoder is exported alone, to see which it is.

    Args:
        model: a `FusionForClassification` in evaluation mode.
        inputs: those of the graph.
        format: "onnx" or "torch".
        error: what was raised.
    """
    written = "ONNX" if format == "onnx" else "torch.export's file"
    names = list(dict.fromkeys(each.modality for each in inputs))
    for name in names:
        own = [each for each in inputs if each.modality == name and each.key is not None]
        step = "torch.export"
        try:
            program = trace(EncoderGraph(model, name, own), own)
            if format == "onnx":
                step = "torch.onnx"
                converted(program, [each.name for each in own], "embeddings")
        except Exception as reason:
            # The tracer and the exporter raise errors of any type.
            encoder = model.encoders[name]
            kind = getattr(getattr(encoder, "config", None), "model_type", None)
            return ValueError(
                f"the encoder of {name!r} ({type(encoder).__name__}{f', {kind}' if kind else ''}) cannot be written as "
                f"{written}: {step} failed ({_in_short(reason)}). {_remedy(encoder, step, len(names))}"
            )
    return ValueError(
        f"the model cannot be written as {written}, although each of its encoders can ({_in_short(error)}); please "
        f"report the fused head {model.config.fusion!r} and the encoders "
        f"({', '.join(type(encoder).__name__ for encoder in model.encoders.values())}) as a bug."
    )


def _remedy(encoder: Any, step: str, num_modalities: int) -> str:
    """What to do about an encoder that fails at this step."""
    ways = ["give format='torch' (--format torch)"] if step == "torch.onnx" else []
    if getattr(getattr(encoder, "config", None), "_attn_implementation", None) not in (None, "eager"):
        ways.append("load the model with attn_implementation='eager' (--attn-implementation eager)")
    if num_modalities > 1:
        ways.append("leave the modality out (modalities=[...], --modalities)")
    ways.append("train with another encoder")
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _in_short(error: BaseException) -> str:
    """The first line of the error that began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:LONGEST].rstrip(":. ")
