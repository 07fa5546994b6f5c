"""Rows of numbers that need no media processor: tabular features and time series."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.utils import cached_file

from ecsfusion.data.values import check_values

FILE_NAME = "array_processor.json"


class ArrayProcessor:
    """Makes one tensor of tabular rows (D,) or time series (T,) or (T, D), for encoders of the user's own.

    Rows are normalized, `(x - mean) / std`, and series of different lengths are padded with zeros.
    `ArrayProcessor.fit(rows)` computes mean and std from training rows.

    Args:
        mean: one number, or one per feature (D of them).
        std: the same.

    Raises:
        ValueError: different numbers of both, a number that is not finite, or a std that is not positive.
        TypeError: no numbers.
    """

    def __init__(self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> None:
        self.mean, self.std = _statistic(mean, "mean"), _statistic(std, "std")
        sizes = {self.mean.size, self.std.size} - {1}
        if self.mean.ndim > 1 or self.std.ndim > 1 or len(sizes) > 1 or not (self.std > 0).all():
            raise ValueError(
                f"mean has shape {self.mean.shape} and std {self.std.shape}; give as many numbers, one per feature, "
                "and positive ones as std."
            )

    @classmethod
    def fit(cls, rows: Sequence[Any]) -> ArrayProcessor:
        """A processor with the mean and the standard deviation of each feature over training rows (and steps).

        A feature that never changes gets the standard deviation 1.

        Args:
            rows: as `__call__` takes them.

        Raises:
            ValueError: no rows, or rows with different numbers of features.
            TypeError: no list of rows of numbers.
        """
        arrays = _read_rows(rows)
        widths = [array.shape[-1] for array in arrays]
        for row, width in enumerate(widths):
            if width != widths[0]:
                raise ValueError(
                    f"row {row} has {width} features and row 0 has {widths[0]}; give as many in every row."
                )
        steps = np.concatenate([np.atleast_2d(array) for array in arrays])
        std = steps.std(axis=0)
        # A feature counts as constant if float32 cannot divide by its standard deviation.
        return cls(steps.mean(axis=0).tolist(), np.where(std > np.finfo(np.float32).tiny, std, 1.0).tolist())

    def __call__(self, rows: Sequence[Any], return_tensors: str = "pt") -> BatchFeature:
        """Normalize rows and make them a batch.

        Args:
            rows: arrays or lists of numbers, (D,), (T,) or (T, D).
            return_tensors: ignored; the tensors are torch's.

        Returns:
            `values` (B, D), (B, T) or (B, T, D), float32, and `attention_mask` (B, T) where the lengths T differ.

        Raises:
            ValueError: rows with different numbers of features, or another number than `mean` has.
        """
        normalized = []
        for index, row in enumerate(_read_rows(rows)):
            try:
                normalized.append(self._normalize(row))
            except ValueError as error:
                raise ValueError(f"row {index}: {error}") from error
        return self.pad({"values": normalized})

    def pad(self, features: Mapping[str, Sequence[Any]], **_: Any) -> BatchFeature:
        """Make normalized rows a batch; the result is the same as that of calling the processor on the raw rows.

        Raises:
            ValueError: shapes that differ in more than the length of series.
        """
        rows = [np.asarray(row, dtype=np.float32) for row in features["values"]]
        other = next((index for index, row in enumerate(rows) if row.shape != rows[0].shape), None)
        if other is None:
            return BatchFeature({"values": torch.from_numpy(np.stack(rows))})
        wider = next((index for index, row in enumerate(rows) if row.shape[1:] != rows[0].shape[1:]), None)
        if wider is not None or (self.mean.size > 1 and rows[0].ndim == 1):
            index = other if wider is None else wider
            raise ValueError(
                f"row {index} has the shape {rows[index].shape} and row 0 {rows[0].shape}; only the length of series "
                "may differ."
            )
        length = max(len(row) for row in rows)
        values = torch.zeros(len(rows), length, *rows[0].shape[1:])
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows):
            values[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row), 1
        return BatchFeature({"values": values, "attention_mask": mask})

    def save_pretrained(self, save_directory: str | os.PathLike, **_: Any) -> list[str]:
        """Write `array_processor.json`; returns its path."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        (folder / FILE_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        return [str(folder / FILE_NAME)]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> ArrayProcessor:
        """Load what `save_pretrained` wrote, from a folder or (with `subfolder`, `revision`, ...) from the Hub."""
        file = cached_file(os.fspath(pretrained_model_name_or_path), FILE_NAME, **kwargs)
        return cls(**json.loads(Path(str(file)).read_text(encoding="utf-8")))

    def _normalize(self, row: np.ndarray) -> np.ndarray:
        features = row.shape[-1] if self.mean.size > 1 or self.std.size > 1 else 1
        for values in (self.mean, self.std):
            if values.size not in (1, features):
                raise ValueError(
                    f"a row has {features} features, but the processor was made for {values.size}."
                )
        normalized = (row - self.mean) / self.std
        if np.abs(normalized).max() > np.finfo(np.float32).max:
            raise ValueError(
                "the row has values that are too large for float32 after normalization; rescale them."
            )
        return normalized.astype(np.float32)


def _statistic(values: Any, name: str) -> np.ndarray:
    """One finite number, or one per feature, (1,) or (D,) float64."""
    try:
        array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or one per feature, got {values!r}.") from error
    # The comparison is false for NaN too.
    if not array.size or not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{name} must be a finite number or one per feature, got {values!r}.")
    return array


def _read_rows(rows: Any) -> list[np.ndarray]:
    if isinstance(rows, str) or not hasattr(rows, "__len__") or not hasattr(rows, "__iter__"):
        raise TypeError(f"rows must be a list of rows of numbers, got a {type(rows).__name__}.")
    if not len(rows):
        raise ValueError("there are no rows; give at least one.")
    arrays = []
    for index, row in enumerate(rows):
        try:
            arrays.append(read_array(row))
        except (TypeError, ValueError) as error:
            raise type(error)(f"row {index}: {error}") from error
    return arrays


def array_of(value: Any, what: str) -> np.ndarray:
    """A NumPy array of a tensor, or of another value that NumPy can convert.

    Args:
        value: the tensor or other value.
        what: what it is, as the beginning of error messages.

    Raises:
        ValueError: a tensor without values, or rows of different lengths.
    """
    if isinstance(value, torch.Tensor):
        check_values(value, what)
        # NumPy has neither bfloat16 nor floats of 8 bits.
        if value.dtype == torch.bfloat16 or (value.itemsize < 2 and value.is_floating_point()):
            value = value.float()
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{what} is no array of one shape ({error})") from error


def to_float32(array: np.ndarray) -> np.ndarray:
    """The array as float32, where numbers that are too large become infinite, without a warning."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def read_array(value: Any) -> np.ndarray:
    """One row of numbers, (D,), (T,) or (T, D), as float64: float32 would not tell apart what is far from zero.

    Raises:
        ValueError: another shape, or a number that is NaN or infinite.
        TypeError: not numbers.
    """
    array = array_of(value, "the row of numbers")
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a row of numbers cannot be a {type(value).__name__} of {array.dtype}; give an array"
        )
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"the row has shape {array.shape}; give features (D,) or a series (T, D) of at least one"
        )
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("the row has values that are NaN or infinite; fill them in or leave this row out")
    return array
