"""The rows of a batch: how many there are, which of them have a modality, and from those to all and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def size_and_device(given: Mapping[str, Any], model_device: torch.device) -> tuple[int, torch.device]:
    """Of the batch; raises ValueError or TypeError for what is no batch of tensors with rows."""
    first: Tensor | None = None
    for name, inputs in given.items():
        if not isinstance(inputs, Tensor) and not (isinstance(inputs, Mapping) and inputs):
            raise TypeError(
                f"the inputs of {name!r} are a {type(inputs).__name__}; give a tensor (B, ...), or tensors by name."
            )
        for key, value in {"": inputs}.items() if isinstance(inputs, Tensor) else inputs.items():
            what = f"{name}[{key!r}]" if key else name
            if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
                found = (
                    f"{value.dtype} of {value.layout}" if isinstance(value, Tensor) else type(value).__name__
                )
                raise TypeError(f"{what} must be a dense tensor (B, ...) of real numbers, got {found}.")
            if not value.ndim or not len(value):
                raise ValueError(f"{what} has the shape {tuple(value.shape)}; give at least one row.")
            if value.device.type == "meta" != model_device.type:
                raise ValueError(
                    f"{what} is on the device meta, the model on {model_device}; give it its values."
                )
            first = value if first is None else first
            if len(value) != len(first):
                raise ValueError(
                    f"{what} has {len(value)} rows, and {next(iter(given))!r} {len(first)}; give one row per sample."
                )
    assert first is not None  # noqa: S101
    return len(first), first.device


def rows_present(
    given: Mapping[str, Any], present: Mapping[str, Tensor], size: int, device: torch.device
) -> dict[str, Tensor | None]:
    """For each modality that is given or has a mask: which rows have it, or None for all."""
    rows: dict[str, Tensor | None] = dict.fromkeys(given)
    for name, mask in present.items():
        if not isinstance(mask, Tensor) or mask.shape != (size,) or mask.dtype != torch.bool:
            is_tensor = isinstance(mask, Tensor)
            found = (
                f"shape {tuple(mask.shape)} and dtype {mask.dtype}"
                if is_tensor
                else f"type {type(mask).__name__}"
            )
            raise ValueError(f"present[{name!r}] has {found}; give one bool for each of the {size} rows.")
        if name not in given and bool(mask.any()):
            raise ValueError(f"present[{name!r}] says that rows have it, but its inputs are missing.")
        rows[name] = mask.to(device)
    if all(mask is not None for mask in rows.values()):
        nothing = ~torch.stack(list(rows.values())).any(dim=0)  # type: ignore[arg-type]
        if bool(nothing.any()):
            raise ValueError(f"row {int(nothing.nonzero()[0])} has no modality at all; leave it out.")
    return rows


def spread(values: Tensor, index: Tensor | None, size: int) -> Tensor:
    """Values (N, ...) of the rows `index` as (size, ...), NaN elsewhere."""
    if index is None:
        return values
    return values.new_full((size, *values.shape[1:]), torch.nan).index_copy(0, index, values)


def take(inputs: Mapping[str, Tensor] | Tensor, rows: Tensor) -> Mapping[str, Tensor] | Tensor:
    """These rows of a modality's inputs."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return {key: value[rows] for key, value in inputs.items()}
