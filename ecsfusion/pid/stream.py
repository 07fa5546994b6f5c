"""PID of a table of embeddings that is too large for memory, read in chunks, by one process or several.

The table is read three times: for the classes of the labels, for a sample of rows that the clusters are fitted on, and
for the counts. The sample depends on the number of rows and the seed alone (`sample_rows`) and the counts are integers.
So several processes, each with a part of the rows, give exactly the result of one process that reads all rows.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from ecsfusion_kernels import histogram
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ecsfusion.data.embedding_files import Table, as_rows
from ecsfusion.pid.checks import check_positive
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.discretize import MAX_ROWS, ModalityPairs, sample_rows
from ecsfusion.pid.estimate import choose_clusters, estimate, split_by_pair
from ecsfusion.pid.inputs import check_finite, named_modalities
from ecsfusion.pid.options import EstimatorOptions

MAX_CLASSES = 10_000


def stream_pid(
    table: Table,
    modalities: Mapping[str, str],
    label: str,
    *,
    rows: range | None = None,
    bins: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    **options: Any,
) -> dict[str, PID]:
    """`fast_pids` of columns of a table in bounded memory.

    When `torch.distributed` is initialized, every process calls this with its part of the rows, and all get the same
    result: that of all parts in the order of the ranks.

    Args:
        table: see `ecsfusion.data.embedding_files`.
        modalities: column by modality name, two or more.
        label: the column of the label: integers or strings, whose sorted distinct values are the classes; real
            numbers with `bins`.
        rows: the part of the table to read; None for all.
        bins: the number of classes into which a real label is cut at the quantiles of the sample.
        device: where clusters are found and assigned.
        progress: whether to show progress bars.
        **options: the attributes of `EstimatorOptions`.

    Returns:
        PIDs by name, as `fast_pids`.

    Raises:
        TypeError: for columns whose values are of no usable type, and unknown options.
        ValueError: for a missing column, unusable values, no rows, and bad options.
    """
    start = time.perf_counter()
    chosen_options = EstimatorOptions(**options)
    rows = range(table.num_rows) if rows is None else rows
    for column in (label, *modalities.values()):
        if column not in table.columns:
            raise ValueError(f"there is no column {column!r}; the columns are {list(table.columns)}")
    sizes = _gather(len(rows))
    num_rows, rows_before = sum(sizes), sum(sizes[: dist.get_rank()] if _distributed() else [])
    if num_rows == 0:
        raise ValueError("there are no rows; give a table with at least one")

    sampled = sample_rows(num_rows, MAX_ROWS, chosen_options.seed)
    is_local = (sampled >= rows_before) & (sampled < rows_before + len(rows))
    local_sample = (sampled[is_local] - rows_before).numpy()
    counter = _count_classes(table, label, rows, progress) if bins is None else Counter()
    sample = _sample(table, [label, *modalities.values()], rows, local_sample, progress)
    if bins is None:
        classes = np.array(sorted(counter))
        frequency = torch.tensor([counter[value] for value in classes.tolist()])
    else:
        classes = _cuts(sample[label], label, bins)
        frequency = torch.full((bins,), num_rows // bins + 1)
    num_clusters = chosen_options.num_clusters
    if num_clusters is None:
        num_clusters = choose_clusters(frequency)
    num_components = chosen_options.components(len(frequency))
    rows_by_name = {name: as_rows(sample[column], column).to(device) for name, column in modalities.items()}
    fitted = ModalityPairs.fit(_checked(rows_by_name), num_clusters, num_components, chosen_options.seed)

    shape = (len(fitted.pairs), num_clusters, num_clusters, len(frequency))
    counts = torch.zeros(shape, dtype=torch.int64)
    for chunk in _chunks(table, [label, *modalities.values()], rows, progress, "count"):
        part = {name: as_rows(chunk[column], column).to(device) for name, column in modalities.items()}
        labels = _class_indices(chunk[label], classes, bins).to(device)
        counts += histogram(*fitted.assign(_checked(part)), labels, *shape[1:]).cpu()
    if _distributed():
        dist.all_reduce(counts)
    pids = estimate(counts.to(device), chosen_options)
    return split_by_pair(pids, fitted.pairs, time.perf_counter() - start)


def _checked(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = named_modalities(rows)
    check_finite(named)
    return named


def _count_classes(table: Table, label: str, rows: range, progress: bool) -> Counter[Any]:
    """How often each label occurs, in all processes."""
    counter: Counter[Any] = Counter()
    for chunk in _chunks(table, [label], rows, progress, "labels"):
        values = chunk[label]
        if values.ndim != 1 or values.dtype.kind not in "biuOUS":
            raise TypeError(
                f"column {label!r} must hold one integer or string per row, got {values.dtype} of shape"
                f" {values.shape}; for a real target give the number of bins"
            )
        classes, counts = np.unique(values, return_counts=True)
        counter.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
        if len(counter) > MAX_CLASSES:
            raise ValueError(
                f"column {label!r} has more than {MAX_CLASSES} distinct values; is it the label?"
            )
    return sum(_gather(counter), Counter())


def _sample(
    table: Table, columns: Sequence[str], rows: range, local_sample: NDArray[Any], progress: bool
) -> dict[str, NDArray[Any]]:
    """The sampled rows of all processes, by column.

    `local_sample` holds the sampled rows of this process, ascending, counted from the first of `rows`.
    """
    columns = list(dict.fromkeys(columns))
    parts: dict[str, list[NDArray[Any]]] = {column: [] for column in columns}
    first = 0
    for chunk in _chunks(table, columns, rows, progress, "sample"):
        length = len(chunk[columns[0]])
        low, high = np.searchsorted(local_sample, [first, first + length])
        for column in columns:
            parts[column].append(chunk[column][local_sample[low:high] - first])
        first += length
    gathered = _gather({column: np.concatenate(values) for column, values in parts.items() if values})
    return {column: np.concatenate([part[column] for part in gathered if part]) for column in columns}


def _cuts(values: NDArray[Any], label: str, bins: int) -> NDArray[Any]:
    """The values at which a real label is cut into classes."""
    check_positive(bins, "bins")
    if (
        values.ndim != 1
        or values.dtype.kind not in "biuf"
        or not np.isfinite(values.astype(np.float64)).all()
    ):
        raise TypeError(f"column {label!r} must hold one finite number per row to be binned")
    ordered = np.sort(values.astype(np.float64))
    return ordered[[len(ordered) * k // bins for k in range(1, bins)]]


def _class_indices(values: NDArray[Any], classes: NDArray[Any], bins: int | None) -> Tensor:
    side: Literal["left", "right"] = "left" if bins is None else "right"
    return torch.from_numpy(np.searchsorted(classes, values, side=side))


def _chunks(
    table: Table, columns: Sequence[str], rows: range, progress: bool, title: str
) -> Iterator[dict[str, NDArray[Any]]]:
    with tqdm(total=len(rows), desc=title, unit=" rows", unit_scale=True, disable=not progress) as bar:
        for chunk in table.chunks(columns, rows.start, rows.stop):
            yield chunk
            bar.update(len(chunk[columns[0]]))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(value: Any) -> list[Any]:
    """`value` of every process, in the order of the ranks."""
    if not _distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
