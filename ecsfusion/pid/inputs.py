"""Checks of embeddings and labels: what users pass becomes tensors by modality name and class indices.

The message of every error names the argument, what was given and what to do.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecsfusion.data.values import check_values
from ecsfusion.pid.checks import check_positive, is_number, is_whole

Array = Tensor | NDArray[Any]

MAX_BINS = 1 << 16
MAX_CELLS = 1 << 25
"""The most cells of a joint table. Labels that are no class indices, such as identifiers, would need more."""
MIN_ROWS_PER_CLASS = 2
"""With fewer in the mean, labels name rows or measure something,"""
MAX_SINGLE = 1 << 18
"""and are refused where rows times classes are more: minutes would show that nothing is known of them."""


def named_modalities(embeddings: Mapping[str, Array] | Sequence[Array]) -> dict[str, Tensor]:
    """Embeddings as tensors (N, D_m) by modality name, on one device; `check_finite` checks their values.

    Args:
        embeddings: two or more matrices (N, D_m) with N > 0, by name or in a sequence ("x1", "x2", ...).

    Raises:
        TypeError: for values that are no matrices of real numbers.
        ValueError: for fewer than two modalities, matrices of different lengths or devices, or no rows.
    """
    if isinstance(embeddings, (Tensor, np.ndarray)) or not isinstance(embeddings, (Mapping, Sequence)):
        raise TypeError(
            "embeddings must be a mapping of modality name to (N, D) matrix, or a sequence of matrices, got"
            f" {type(embeddings).__name__}"
        )
    if isinstance(embeddings, Mapping):
        pairs = [(str(name), value) for name, value in embeddings.items()]
        if len(dict(pairs)) < len(pairs):
            raise ValueError(
                f"embeddings has names that are the same as text, got {list(embeddings)}; rename one of them"
            )
    else:
        pairs = [(f"x{i + 1}", value) for i, value in enumerate(embeddings)]
    if len(pairs) < 2:
        raise ValueError(
            f"embeddings must hold at least two modalities, got {len(pairs)}: {[name for name, _ in pairs]}"
        )
    if len(pairs) > 2 and "rest" in dict(pairs):
        raise ValueError('embeddings must not name a modality "rest", which stands for all others; rename it')
    named = {name: as_embeddings(value, f"embeddings[{name!r}]") for name, value in pairs}
    if len({len(rows) for rows in named.values()}) > 1:
        sizes = {name: len(rows) for name, rows in named.items()}
        raise ValueError(f"embeddings must have one row per sample in every modality, got {sizes} rows")
    if len(next(iter(named.values()))) == 0:
        raise ValueError("embeddings have no rows; give at least one sample")
    devices = {name: rows.device for name, rows in named.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"embeddings must be on one device, got { {n: str(d) for n, d in devices.items()} }")
    return named


def numbered_words(labels: Array | Sequence[Any]) -> tuple[Array | Sequence[Any], list[list[str]] | None]:
    """Labels (N,) or (N, L) that are strings as numbers in the order of the alphabet, and the words of each label.

    Labels that are no strings stay as they are, and there are no words.

    Raises:
        TypeError: for labels of which some are strings and others are not.
    """
    if isinstance(labels, Tensor):
        return labels, None
    try:
        array = np.asarray(labels)
    except ValueError:
        return labels, None
    if array.ndim not in (1, 2) or array.dtype.kind not in "OU":
        return labels, None
    # NumPy makes words of numbers that stand beside words.
    values = array.ravel() if isinstance(labels, np.ndarray) else np.asarray(labels, dtype=object).ravel()
    is_word = [isinstance(value, str) for value in values]
    if not any(is_word):
        return labels, None
    if not all(is_word):
        # The exception is what there is less of.
        exception = 2 * sum(is_word) < len(is_word)
        place = is_word.index(exception)
        beside = "integers" if exception else "strings"
        raise TypeError(
            f"labels must be all integers or all strings, got {beside}, with {values[place]!r} in row"
            f" {place * len(array) // len(values)}; leave this row out, or correct its class"
        )
    columns = array.astype(str).reshape(len(array), -1).T
    words, numbers = zip(*(np.unique(column, return_inverse=True) for column in columns), strict=True)
    return np.stack(numbers, 1).reshape(array.shape), [found.tolist() for found in words]


def class_labels(
    labels: Array | Sequence[Any], num_rows: int, device: torch.device, bins: int | None
) -> Tensor:
    """Labels as class indices (N,) or (N, L), int64; `check_classes` checks their values.

    Args:
        labels: integers from 0, one per row of the embeddings; real numbers with `bins`.
        num_rows: N, the rows of the embeddings.
        device: the device of the embeddings.
        bins: the number of classes into which a real target is cut at its quantiles; None for class indices.

    Raises:
        TypeError: for labels that are no integers, without `bins`.
        ValueError: for labels of another length, shape or device.
    """
    if isinstance(labels, Tensor):
        given = labels.detach()
        check_values(given, "labels")
    else:
        check_not_masked(labels, "labels")
        try:
            array = np.asarray(labels)
        except ValueError as error:
            # The rows have different lengths.
            row = first_of_other_length(labels)
            where = "" if row is None else f", first in row {row}"
            raise ValueError(
                f"labels are no array of one shape ({error}){where}; give one class per row"
            ) from error
        if not array.ndim:
            raise TypeError(f"labels must be a sequence of one class per row, got {type(labels).__name__}")
        if array.dtype.kind == "O" and all(
            is_whole(label) and abs(label) < 1 << 63 for label in array.ravel()
        ):
            # As pandas stores a column that has held other values, too.
            array = array.astype(np.int64)
        if array.dtype.kind == "O" and bins is not None and all(map(is_number, array.ravel())):
            array = array.astype(np.float64)
        if array.dtype.kind not in "biuf":
            row = next((i for i, label in enumerate(array) if not _is_numeric(label)), 0)
            found = f"got dtype {array.dtype}, with {array[row]!r} in row {row}"
            if bins is not None:
                raise TypeError(
                    f"labels must be real numbers to be binned, {found}; convert them, or leave bins out"
                )
            raise TypeError(
                f"labels must be integers from 0, {found}; map the classes to 0 .. C - 1, or leave this row out"
            )
        given = as_tensor(array).to(device)
    if given.ndim not in (1, 2) or 0 in given.shape[1:]:
        raise ValueError(f"labels must have the shape (N,), or (N, L) for L labels, got {tuple(given.shape)}")
    if len(given) != num_rows:
        raise ValueError(
            f"labels must have one entry per row of the embeddings, got {len(given)} for {num_rows} rows"
        )
    if given.device != device:
        raise ValueError(f"labels are on {given.device}, embeddings on {device}; move them to one device")
    if bins is not None:
        return quantile_bins(given, bins)
    if given.is_floating_point() and given.device.type == "cpu" and bool(given.isnan().any()):
        row, _ = _first(given, given.isnan())
        raise ValueError(f"labels must be integers from 0, found NaN in row {row}; remove unlabelled rows")
    if given.is_floating_point() or given.is_complex():
        raise TypeError(
            f"labels must be integers from 0, got dtype {given.dtype}; convert classes, as labels.long() does, and for "
            "a real target pass bins=8, say"
        )
    return given.to(torch.int64)


def row_groups(groups: Array | Sequence[Any], num_rows: int, device: torch.device) -> Tensor:
    """The source of each row as a number from 0, (N,) int64.

    Args:
        groups: (N,) integers or strings.
        num_rows: N.
        device: the device of the embeddings.

    Raises:
        TypeError: for groups that are neither integers nor strings.
        ValueError: for another length or shape, and for fewer than two groups.
    """
    check_not_masked(groups, "groups")
    array = groups.detach().cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if array.dtype.kind not in "biuOUS":
        raise TypeError(
            f"groups must be integers or strings, got dtype {array.dtype}; number the"
            " sources, or name them by strings"
        )
    if array.dtype.kind == "O":
        for row, value in enumerate(array.ravel()):
            if not isinstance(value, (str, bytes)) and not is_whole(value):
                raise TypeError(
                    f"groups must be integers or strings, got {value!r} in row {row}; name the source of this row"
                )
    if array.shape != (num_rows,):
        raise ValueError(
            f"groups must have one entry per row of the embeddings, got the shape {array.shape} for {num_rows} rows"
        )
    values, numbers = np.unique(array.astype(str) if array.dtype.kind == "O" else array, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"groups must hold at least two sources, got {values.tolist()}; leave groups out")
    return torch.from_numpy(numbers.astype(np.int64)).to(device)


def check_classes(labels: Tensor, num_classes: int | None) -> int:
    """The number of classes: `num_classes`, or the largest label + 1 where that is None.

    The host reads the smallest and the largest label.

    Raises:
        ValueError: for a label below 0 or at least `num_classes`.
    """
    smallest, largest = torch.stack([labels.min(), labels.max()]).tolist()
    if smallest < 0:
        row, value = _first(labels, labels < 0)
        raise ValueError(f"labels must not be negative, found {value} in row {row}; remove unlabelled rows")
    if num_classes is not None and largest >= num_classes:
        row, value = _first(labels, labels >= num_classes)
        raise ValueError(f"labels must be below num_classes={num_classes}, found {value} in row {row}")
    return largest + 1 if num_classes is None else num_classes


def check_rows_per_class(num_rows: int, num_classes: int) -> None:
    """Check that labels that occur are classes, and not names of rows or measured values, where these would cost much.

    Raises:
        ValueError: for many classes of which most have a single row.
    """
    if num_rows < MIN_ROWS_PER_CLASS * num_classes and num_rows * num_classes > MAX_SINGLE:
        raise ValueError(
            f"labels have {num_classes} classes in {num_rows} rows, so that most have a single row; for a real target "
            "pass bins=8, say; names of rows are no labels, and of many rare classes leave out or join the rarest"
        )


def check_finite(embeddings: Mapping[str, Tensor]) -> None:
    """Check that all values are finite; the host reads one flag per modality.

    Raises:
        ValueError: for the first modality with NaN or infinite values.
    """
    for name, rows in embeddings.items():
        # One pass and no table of flags: an extreme value of rows with a NaN is NaN.
        if rows.numel() and bool(torch.isfinite(torch.stack(rows.aminmax())).all()):
            continue
        finite = torch.isfinite(rows).all(-1)
        if not bool(finite.all()):
            raise ValueError(
                f"embeddings[{name!r}] has NaN or infinite values in {int((~finite).sum())} of {len(finite)} rows,"
                f" first in row {int((~finite).nonzero()[0])}; remove these rows from all modalities and labels"
            )


def first_of_other_length(rows: Iterable[Any]) -> int | None:
    """The first row whose shape differs from that of row 0; None if there is none."""
    try:
        shapes = [np.shape(row) for row in rows]
    except (TypeError, ValueError):
        # A row is itself no array of one shape.
        return None
    return next((index for index, shape in enumerate(shapes) if shape != shapes[0]), None)


def _first(labels: Tensor, is_wrong: Tensor) -> tuple[int, int | float]:
    """The row and the value of the first label, (N,) or (N, L), that is wrong."""
    place = is_wrong.nonzero()[0]
    return int(place[0]), labels[tuple(place)].item()


def _is_numeric(label: Any) -> bool:
    try:
        return np.asarray(label).dtype.kind in "biuf"
    except ValueError:
        return False


def quantile_bins(target: Tensor, bins: int) -> Tensor:
    """A real target (N,) or (N, L) cut at its quantiles into `bins` classes, int64.

    Equal values get the same class.

    Raises:
        ValueError: for a number of bins that is not positive or too large, and for values that are not finite.
    """
    check_positive(bins, "bins")
    if bins > MAX_BINS:
        raise ValueError(f"bins must be at most {MAX_BINS}, got {bins}")
    values = target.to(torch.float64)
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        row, _ = _first(values, ~finite)
        raise ValueError(
            f"labels must be finite to be binned, found NaN or infinite values, first in row {row}; remove these rows"
        )
    columns = values.reshape(len(values), -1).mT.contiguous()
    ordered = columns.sort(-1).values
    cuts = ordered[:, [len(values) * k // bins for k in range(1, bins)]]
    return torch.searchsorted(cuts.contiguous(), columns, right=True).mT.reshape(target.shape)


def as_embeddings(value: Tensor | NDArray[Any], name: str) -> Tensor:
    """A matrix (N, D) as a detached tensor on its device.

    Floating dtypes of at least 16 bits are kept; 8-bit floats, booleans and integers of up to 16 bits become float32,
    wider integers float64, because float32 does not tell large ones apart.

    Raises:
        TypeError: if `value` is no tensor or array of real numbers. The message names the argument `name`.
        ValueError: for another shape, no columns, or a tensor without values.
    """
    if isinstance(value, np.ndarray):
        check_not_masked(value, name)
        if value.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} must hold real numbers, got dtype {value.dtype}; convert it to a float array"
            )
        value = as_tensor(value)
    if not isinstance(value, Tensor):
        ways = {"to_numpy": "by its to_numpy()", "toarray": "by its toarray()"}
        how = next((words for way, words in ways.items() if hasattr(value, way)), "by numpy.asarray")
        raise TypeError(
            f"{name} must be a torch.Tensor or numpy array (N, D), got {type(value).__name__}; convert it {how}"
        )
    check_values(value, name)
    if value.is_complex():
        raise TypeError(
            f"{name} must hold real numbers, got dtype {value.dtype}; pass real and imaginary parts"
        )
    if value.ndim != 2:
        raise ValueError(
            f"{name} must have the shape (N, D), got {tuple(value.shape)}; flatten or pool it to one row each"
        )
    if value.shape[1] == 0:
        raise ValueError(
            f"{name} has no columns, got the shape {tuple(value.shape)}; give at least one feature"
        )
    if value.is_floating_point():
        # Nothing is computed in 8 bits.
        return value.detach() if value.itemsize > 1 else value.detach().to(torch.float32)
    return value.detach().to(torch.float32 if value.itemsize <= 2 else torch.float64)


def check_not_masked(value: Any, name: str) -> None:
    """Raises ValueError for a masked array of NumPy in which something is masked: below a mask lies any value."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        row = int(np.ma.getmaskarray(value).reshape(len(value), -1).any(-1).argmax())
        raise ValueError(f"{name} has masked values, first in row {row}; remove these rows everywhere")


def as_tensor(array: NDArray[Any]) -> Tensor:
    """An array of real numbers as a tensor of the same values.

    Long doubles become float64, and the bytes get the order of this machine: torch has no other dtypes.
    """
    long = array.dtype.kind == "f" and array.dtype.itemsize > 8
    dtype = np.dtype(np.float64) if long else array.dtype.newbyteorder("=")
    # NumPy may take negative strides for contiguous where there is one row; torch does not. And torch warns of arrays
    # that may not be written to, such as those of pandas.
    if min(array.strides, default=0) < 0 or not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))


def check_cells(rows: int, columns: int, num_classes: int) -> None:
    """Check the size of a joint table (rows, columns, num_classes).

    Raises:
        ValueError: for more than `MAX_CELLS` cells.
    """
    cells = rows * columns * num_classes
    if cells > MAX_CELLS:
        raise ValueError(
            f"labels with num_classes={num_classes} and num_clusters={max(rows, columns)} make a table of "
            f"{cells:.3g} cells, more than {MAX_CELLS:.3g}; number the classes that there are from 0, or take fewer "
            "clusters"
        )
