"""Inputs of different lengths in one batch, so that the padding of a row does not change its embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ecsfusion.model.sample_inputs import first_window

# Encoders that mix positions beside attention (by convolutions, a Fourier transform, landmarks, shorter sequences),
# padding included, whatever the mask says. Further ones are found when a model is made, see
# `ecsfusion.model.encoders.measure`.
PADDING_MIXING_FAMILIES = frozenset(
    {
        "canine",
        "convbert",
        "data2vec-audio",
        "fnet",
        "funnel",
        "mobilebert",
        "nystromformer",
        "sew",
        "sew-d",
        "wav2vec2-conformer",
        "yoso",
    }
)

# Text encoders that were trained on texts of one length, padding included and without a mask. They read the last
# position.
FIXED_LENGTH_FAMILIES = frozenset({"siglip2_text_model", "siglip_text_model"})


def mixes_padding(config: Any) -> bool:
    """Whether padding changes an encoder's hidden states in spite of the mask.

    The first layer of wav2vec 2.0 base, HuBERT base and similar encoders normalizes every channel over time, padding
    included, and no mask can undo that. They were trained without padding and without a mask.
    """
    return (
        config.model_type in PADDING_MIXING_FAMILIES
        or getattr(config, "feat_extract_norm", None) == "group"
        or bool(getattr(config, "add_adapter", False))
    )


def padded_on_the_right(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same rows, each beginning with its first real position; the padding before it follows at the end.

    Args:
        inputs: by name, each (B, ...); every input of the shape (B, T, ...) or (B, ..., T) of the "attention_mask"
            (B, T) is moved. Without a mask nothing is known to be padding.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or not mask.shape[1]:
        return dict(inputs)
    # Without a condition on values, for which the device would have to be waited for.
    first = mask.bool().int().argmax(dim=1)
    index = torch.arange(mask.shape[1], device=mask.device) + first[:, None]
    # Not by a remainder, which ONNX does not have for a length that is not known before.
    index = torch.where(index < mask.shape[1], index, index - mask.shape[1])
    return {key: _moved(value, index) for key, value in inputs.items()}


def _moved(value: Tensor, index: Tensor) -> Tensor:
    if value.shape[:2] == index.shape:
        dim = 1
    elif value.ndim == 3 and (value.shape[0], value.shape[2]) == tuple(index.shape):
        dim = 2
    else:
        return value
    shape = [value.shape[0]] + [1] * (value.ndim - 1)
    shape[dim] = index.shape[1]
    return value.gather(dim, index.view(shape).expand(*value.shape))


def at_fixed_length(config: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Texts padded on the right to the one length that the encoder was trained on, without a mask.

    Args:
        config: the encoder's configuration, with `max_position_embeddings` and `pad_token_id`.
        inputs: "input_ids" (B, T), padded on the right, and perhaps "attention_mask" (B, T).
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    pad = getattr(config, "pad_token_id", None) or 0
    missing = config.max_position_embeddings - ids.shape[1]
    ids = functional.pad(ids, (0, max(missing, 0)), value=pad)
    if mask is not None:
        padding = ~functional.pad(mask.bool(), (0, max(missing, 0)))
        ids = ids.masked_fill(padding, pad)
    return {**{key: value for key, value in inputs.items() if key != "attention_mask"}, "input_ids": ids}


def filled_to_first_window(config: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raw sounds, of which those that are shorter than the encoder's first window are followed by silence up to it.

    Without this, nothing would be left of them after the convolutions.

    Args:
        config: the encoder's configuration.
        inputs: "input_values" (B, T), padded on the right, and perhaps "attention_mask" (B, T).
    """
    values, mask = inputs["input_values"], inputs.get("attention_mask")
    window = first_window(config)
    if window == 1 or values.ndim != 2:
        return dict(inputs)
    missing = max(window - values.shape[1], 0)
    values = functional.pad(values, (0, missing))
    if mask is None:
        return {**inputs, "input_values": values}
    mask = functional.pad(mask, (0, missing))
    lengths = mask.sum(dim=1, keepdim=True)
    filled = torch.arange(values.shape[1], device=mask.device) < lengths.clamp_min(window)
    # A row of which nothing is left at all is no short sound.
    filled = filled & (lengths > 0)
    values = values.masked_fill(~mask.bool(), 0.0)
    return {**inputs, "input_values": values, "attention_mask": filled.to(mask.dtype)}
