"""The rows of a batch: their number, which of them have a modality, and selecting and restoring rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def size_and_device(
    inputs_by_name: Mapping[str, Any], model_device: torch.device
) -> tuple[int, torch.device]:
    """The number of rows of a batch, and its device.

    Args:
        inputs_by_name: by modality, a tensor (B, ...) or tensors by name.
        model_device: where the model is.

    Raises:
        TypeError: inputs that are no dense tensors of real numbers.
        ValueError: no rows, different numbers of rows, or a tensor on the device meta.
    """
    first: Tensor | None = None
    for name, inputs in inputs_by_name.items():
        if not isinstance(inputs, Tensor) and not (isinstance(inputs, Mapping) and inputs):
            raise TypeError(
                f"the inputs of {name!r} are a {type(inputs).__name__}; give a tensor (B, ...), or tensors by name."
            )
        for key, value in {"": inputs}.items() if isinstance(inputs, Tensor) else inputs.items():
            what = f"{name}[{key!r}]" if key else name
            if not isinstance(value, Tensor) or value.is_complex() or value.layout != torch.strided:
                kind = (
                    f"{value.dtype} of {value.layout}" if isinstance(value, Tensor) else type(value).__name__
                )
                raise TypeError(f"{what} must be a dense tensor (B, ...) of real numbers, got {kind}.")
            if not value.ndim or not len(value):
                raise ValueError(f"{what} has the shape {tuple(value.shape)}; give at least one row.")
            if value.device.type == "meta" != model_device.type:
                raise ValueError(
                    f"{what} is on the device meta, the model on {model_device}; give it its values."
                )
            first = value if first is None else first
            if len(value) != len(first):
                raise ValueError(
                    f"{what} has {len(value)} rows, and {next(iter(inputs_by_name))!r} {len(first)}; give one row per "
                    "sample."
                )
    if first is None:
        raise ValueError("there are no inputs; give those of at least one modality.")
    return len(first), first.device


def rows_present(
    inputs_by_name: Mapping[str, Any], present: Mapping[str, Tensor], size: int, device: torch.device
) -> dict[str, Tensor | None]:
    """For each modality that has inputs or a mask: which rows have it.

    Args:
        inputs_by_name: by modality, its inputs.
        present: masks (B,) bool by modality.
        size: B.
        device: of the batch.

    Returns:
        By modality a mask (B,) bool on the device, or None for all rows.

    Raises:
        ValueError: a mask of another shape or dtype, one that claims inputs that are missing, or a row without any
            modality.
    """
    rows: dict[str, Tensor | None] = dict.fromkeys(inputs_by_name)
    for name, mask in present.items():
        if not isinstance(mask, Tensor) or mask.shape != (size,) or mask.dtype != torch.bool:
            kind = (
                f"shape {tuple(mask.shape)} and dtype {mask.dtype}"
                if isinstance(mask, Tensor)
                else f"type {type(mask).__name__}"
            )
            raise ValueError(f"present[{name!r}] has {kind}; give one bool for each of the {size} rows.")
        if name not in inputs_by_name and bool(mask.any()):
            raise ValueError(f"present[{name!r}] says that rows have it, but its inputs are missing.")
        rows[name] = mask.to(device)
    if all(mask is not None for mask in rows.values()):
        empty = ~torch.stack(list(rows.values())).any(dim=0)  # type: ignore[arg-type]
        if bool(empty.any()):
            raise ValueError(f"row {int(empty.nonzero()[0])} has no modality at all; leave it out.")
    return rows


def spread(values: Tensor, index: Tensor | None, size: int) -> Tensor:
    """Values (N, ...) of the rows `index` (or of all rows, where it is None) as (size, ...), NaN in other rows."""
    if index is None:
        return values
    return values.new_full((size, *values.shape[1:]), torch.nan).index_copy(0, index, values)


def mask_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values (B, ...), NaN in the rows that the mask (B,) leaves out; None leaves out none."""
    if mask is None:
        return values
    return values.where(mask.reshape(-1, *[1] * (values.ndim - 1)), torch.nan)


def take(inputs: Mapping[str, Tensor] | Tensor, rows: Tensor) -> Mapping[str, Tensor] | Tensor:
    """These rows of a modality's inputs."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return {key: value[rows] for key, value in inputs.items()}


def join_rows(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Parts of a batch, each (N_k, ...), as one tensor (B, ...); `rows` are the indices (N_k,) of each part's rows."""
    return torch.cat([*parts])[torch.cat([*rows]).argsort()]
