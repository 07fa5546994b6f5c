"""The inputs of an exported graph: their names, shapes and types, and a sample of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ecsfusion.data.arrays import ArrayProcessor
from ecsfusion.model.encoders import needs_one_length
from ecsfusion.model.padding import FIXED_LENGTH_FAMILIES, at_fixed_length, padded_on_the_right
from ecsfusion.model.sample_inputs import IMAGE_SIZE, NUM_FRAMES, padded_sample, sample_inputs
from ecsfusion.processing import FusionProcessor

MASK = "attention_mask"
BATCH = "batch"
SECONDS = 1.0
STEPS = 8
"""Lengths of the sounds and series that a graph is traced with; it can be given others."""


@dataclass(frozen=True)
class GraphInput:
    """One input of a graph.

    Attributes:
        modality: the modality that it belongs to.
        key: its name among the processed inputs of the modality; None for the mask of the rows that have it.
        sample: (2, ...) values that the graph is traced with.
        dims: names of the dimensions whose size is free, by index; lengths only as far as the encoder allows it.
    """

    modality: str
    key: str | None
    sample: Tensor
    dims: Mapping[int, str]

    @property
    def name(self) -> str:
        """Its name in the graph, such as `image.pixel_values` or `image.present`."""
        return f"{self.modality}.{self.key or 'present'}"


def graph_inputs(
    model: Any,
    modalities: Sequence[str],
    processor: FusionProcessor | None = None,
    example: Mapping[str, Any] | None = None,
) -> list[GraphInput]:
    """The inputs of a graph of these modalities, in order.

    Each modality has its processed inputs and, if there are several, the mask of the rows that have it.

    Args:
        model: a `FusionForClassification`.
        modalities: names.
        processor: the model's processor, which is asked for its inputs; None to take what the encoder says of itself.
        example: a batch as the model takes it, which is used in place of both for the modalities in it.

    Raises:
        ValueError: nothing is known of the inputs of a modality.
    """
    inputs = []
    for name in modalities:
        sample = _sample(model, name, processor, (example or {}).get(name))
        if MASK in sample and needs_one_length(model.encoders[name], name in model.config.unpadded):
            # To run rows of different lengths one length after another is a branch on the data.
            del sample[MASK]
        # One row would be taken for a dimension that is always 1.
        sample = {key: torch.cat([value[:1], value[:1]]).to(model.device) for key, value in sample.items()}
        with_length = _with_length(model.encoders[name], sample)
        for key, value in sample.items():
            dims = {0: BATCH} | ({1: f"{name}.length"} if key in with_length else {})
            inputs.append(GraphInput(name, key, value, dims))
    if len(modalities) > 1:
        masks = torch.ones(len(modalities), 2, dtype=torch.bool, device=model.device)
        inputs += [
            GraphInput(name, None, mask.clone(), {0: BATCH})
            for name, mask in zip(modalities, masks, strict=True)
        ]
    return inputs


def _sample(model: Any, name: str, processor: FusionProcessor | None, example: Any) -> dict[str, Tensor]:
    """Processed inputs of one row or more, by name."""
    encoder = model.encoders[name]
    if isinstance(example, Tensor):
        return {getattr(encoder, "main_input_name", None) or "values": example}
    if example is not None:
        return dict(example)
    if processor is not None and name in processor.processors:
        for raw in _raw_samples(encoder, processor.processors[name]):
            processed = processor.process(name, [raw])
            if _fits(model, name, processed):
                return _at_its_length(encoder, processed)
    elif isinstance(encoder, PreTrainedModel):
        sample = sample_inputs(encoder)
        if padded_sample(encoder, sample) is not None:
            main = sample[str(encoder.main_input_name)]
            sample[MASK] = torch.ones(main.shape[:2], dtype=torch.long)
        return _at_its_length(encoder, sample)
    raise ValueError(
        f"the inputs of {name!r} are not known, whose encoder is a {type(encoder).__name__}; give "
        f"example={{{name!r}: ...}}, its part of a batch as the model takes it."
    )


def _fits(model: Any, name: str, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the encoder takes these inputs."""
    try:
        with torch.no_grad():
            model.embed(name, {key: value.to(model.device) for key, value in inputs.items()})
    except Exception:
        # Encoders raise errors of any type.
        return False
    return True


def _at_its_length(encoder: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Texts of an encoder that takes one length only, at this length."""
    if isinstance(encoder, PreTrainedModel) and encoder.config.model_type in FIXED_LENGTH_FAMILIES:
        return at_fixed_length(encoder.config, padded_on_the_right(inputs))
    return inputs


def _raw_samples(encoder: nn.Module, processor: Any) -> list[Any]:
    """Raw values, of which an encoder takes one after it was processed."""
    generator = np.random.default_rng(0)
    if isinstance(processor, PreTrainedTokenizerBase):
        return ["a sample of text"]
    if isinstance(processor, ArrayProcessor):
        width = max(processor.mean.size, processor.std.size)
        return [] if width == 1 else [np.zeros(width), np.zeros((STEPS, width))]
    if isinstance(processor, BaseImageProcessor):
        shape: tuple[int, ...] = (IMAGE_SIZE, IMAGE_SIZE)
        if isinstance(encoder, PreTrainedModel):
            shape = tuple(next(iter(sample_inputs(encoder).values())).shape)
        picture = generator.integers(0, 256, (*shape[-2:], 3), dtype=np.uint8)
        return [picture, [picture] * (shape[1] if len(shape) == 5 else NUM_FRAMES)]
    rate = getattr(processor, "sampling_rate", None) or 16_000
    return [generator.normal(0, 0.1, int(SECONDS * rate)).astype(np.float32)]


def _with_length(encoder: nn.Module, sample: Mapping[str, Tensor]) -> set[str]:
    """The inputs whose second dimension is a length that may be another one in every batch."""
    main = next(iter(sample.values()))
    mask = sample.get(MASK)
    if isinstance(encoder, PreTrainedModel) and encoder.config.model_type in FIXED_LENGTH_FAMILIES:
        return set()
    if mask is not None:
        return {key for key, value in sample.items() if value.shape[:2] == mask.shape == main.shape[:2]}
    is_sequence = main.ndim == 3 if not isinstance(encoder, PreTrainedModel) else main.ndim == 2
    return {key for key, value in sample.items() if is_sequence and value.shape[:2] == main.shape[:2]}
