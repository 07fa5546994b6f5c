"""Small inputs that an encoder of `transformers` can be run on, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NUM_TOKENS = 6
NUM_PADDED = 5
"""Positions of padding, in tokens; sounds get as many first windows."""
IMAGE_SIZE = 64
"""Height and width in pixels for encoders that take any; their configurations may name much larger ones."""
NUM_FRAMES = 8


def sample_inputs(encoder: Any) -> dict[str, Tensor]:
    """One row of random inputs on the encoder's device, always the same.

    Args:
        encoder: a `PreTrainedModel`; its `main_input_name` says what it takes.

    Raises:
        ValueError: nothing is known about this kind of input.
    """
    config, name = encoder.config, encoder.main_input_name
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids":
        vocabulary = getattr(config, "vocab_size", None) or 10
        ids = torch.randint(vocabulary, (1, NUM_TOKENS), generator=generator)
        ids = torch.where(ids == _padding_id(config), (ids + 1) % vocabulary, ids)
        return {name: ids.to(device)}
    if config.model_type == "timm_wrapper":
        # The configuration of transformers does not have the size.
        size = encoder.timm_model.pretrained_cfg.get("input_size", (3, IMAGE_SIZE, IMAGE_SIZE))
        return {name: torch.randn((1, *size), generator=generator).to(device)}
    shape = {
        "pixel_values": _image_shape,
        "pixel_values_videos": _video_shape,
        "input_values": _sound_shape,
        "input_features": _feature_shape,
        "past_values": _series_shape,
    }.get(name)
    if shape is None:
        raise ValueError(f"there is no sample of {name!r}")
    return {name: torch.randn(shape(config), generator=generator).to(device)}


def padded_sample(encoder: Any, sample: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The row of `sample_inputs` with padding on the right and a mask; None for inputs of one length."""
    config, name = encoder.config, encoder.main_input_name
    values = sample[name]
    has_lengths = (
        values.ndim == 2
        if name in ("input_ids", "input_values")
        else hasattr(config, "feature_projection_input_dim")
    )
    if not has_lengths:
        return None
    amount = NUM_PADDED * (1 if name == "input_ids" else first_window(config))
    padding = values.new_full(
        (1, amount, *values.shape[2:]), _padding_id(config) if name == "input_ids" else 0
    )
    mask = torch.ones(1, values.shape[1] + amount, dtype=torch.long, device=values.device)
    mask[:, values.shape[1] :] = 0
    return {name: torch.cat([values, padding], dim=1), "attention_mask": mask}


def _padding_id(config: Any) -> int:
    found = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) else 0


def first_window(config: Any) -> int:
    """Samples of a raw sound that give one position of the encoder's output; 1 for encoders without convolutions."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not isinstance(kernels, list | tuple) or not isinstance(strides, list | tuple):
        return 1
    window = int(getattr(config, "squeeze_factor", 1))
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        window = (window - 1) * stride + kernel
    return window


def _image_shape(config: Any) -> tuple[int, ...]:
    frames = getattr(config, "num_frames", None)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3
    # Only encoders with patches are bound to the size in their configuration.
    bound = any(hasattr(config, name) for name in ("patch_size", "patch_sizes", "tubelet_size"))
    size = getattr(config, "image_size", None) if bound else None
    height, width = size if isinstance(size, list | tuple) else (size or IMAGE_SIZE,) * 2
    return (1, *([frames] if isinstance(frames, int) else []), channels, height, width)


def _video_shape(config: Any) -> tuple[int, ...]:
    frames = getattr(config, "frames_per_clip", None) or getattr(config, "num_frames", None) or NUM_FRAMES
    size = getattr(config, "crop_size", None) or getattr(config, "image_size", None) or IMAGE_SIZE
    return (1, frames, getattr(config, "in_chans", 3), size, size)


def _sound_shape(config: Any) -> tuple[int, ...]:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):
        return (1, config.max_length, config.num_mel_bins)
    # Several positions, for what lies over the convolutions.
    return (1, 16 * first_window(config) if first_window(config) > 1 else 16_000)


def _feature_shape(config: Any) -> tuple[int, ...]:
    if hasattr(config, "spec_size"):
        ratio = config.spec_size // config.num_mel_bins
        return (1, 1, config.spec_size * ratio, config.num_mel_bins)
    if hasattr(config, "feature_projection_input_dim"):
        return (1, 16, config.feature_projection_input_dim)
    return (1, config.num_mel_bins, 2 * config.max_source_positions)


def _series_shape(config: Any) -> tuple[int, ...]:
    return (1, config.context_length, config.num_input_channels)
