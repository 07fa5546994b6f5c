"""PID of a table of embeddings that is too large for memory, read in chunks, by one process or several.

Three passes: labels (which classes there are), a sample of rows for the clusters, counts. The sample is a function of
the number of rows and the seed (`sample_rows`) and the counts are integers, so several processes that hold a part of
the rows each, in order, give exactly the answer of one process that holds all.
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
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.discretize import MAX_ROWS, ModalityPairs, sample_rows
from ecsfusion.pid.estimate import by_pair, choose_clusters, cluster_sizes, estimate
from ecsfusion.pid.inputs import check_finite, check_positive, named_modalities

MAX_CLASSES = 10_000


def stream_pid(
    table: Table,
    modalities: Mapping[str, str],
    label: str,
    *,
    rows: range | None = None,
    num_clusters: int | None = 20,
    num_components: int | None = None,
    bins: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
    **options: Any,
) -> dict[str, PID]:
    """`fast_pids` of columns of a table in bounded memory.

    When `torch.distributed` is initialized, every process calls this with its part and all get the same answer: that
    of the parts put together in the order of the ranks.

    Args:
        table: see `ecsfusion.data.embedding_files`.
        modalities: column by modality name, two or more.
        label: the column of the label: integers or strings, whose sorted distinct values are the classes; real
            numbers with `bins`.
        rows: the part of the table to read; None for all.
        num_clusters, num_components, seed: as in `fast_pid`.
        bins: cut a real label into so many classes at the quantiles of the sample.
        device: where clusters are found and assigned.
        progress: show progress bars.
        **options: as in `ecsfusion.pid.estimate.estimate`.

    Returns:
        PIDs by name, as `fast_pids`.

    Raises:
        ValueError, TypeError: for a missing column, unusable values, no rows.
    """
    start = time.perf_counter()
    rows = range(table.num_rows) if rows is None else rows
    for column in (label, *modalities.values()):
        if column not in table.columns:
            raise ValueError(f"there is no column {column!r}; the columns are {list(table.columns)}")
    sizes = _gather(len(rows))
    total, before = sum(sizes), sum(sizes[: dist.get_rank()] if _distributed() else [])
    if total == 0:
        raise ValueError("there are no rows; give a table with at least one")

    chosen = sample_rows(total, MAX_ROWS, seed)
    mine = (chosen[(chosen >= before) & (chosen < before + len(rows))] - before).numpy()
    counter = _count_classes(table, label, rows, progress) if bins is None else Counter()
    sample = _sample(table, [label, *modalities.values()], rows, mine, progress)
    if bins is None:
        classes = np.array(sorted(counter))
        frequency = torch.tensor([counter[value] for value in classes.tolist()])
    else:
        classes = _cuts(sample[label], label, bins)
        frequency = torch.full((bins,), total // bins + 1)
    if num_clusters is None:
        num_clusters = choose_clusters(frequency)
    num_clusters, num_components = cluster_sizes(num_clusters, num_components, len(frequency))
    rows_by_name = {name: as_rows(sample[column], column).to(device) for name, column in modalities.items()}
    questions = ModalityPairs.fit(_checked(rows_by_name), num_clusters, num_components, seed)

    shape = (len(questions.pairs), num_clusters, num_clusters, len(frequency))
    counts = torch.zeros(shape, dtype=torch.int64)
    for chunk in _chunks(table, [label, *modalities.values()], rows, progress, "count"):
        part = {name: as_rows(chunk[column], column).to(device) for name, column in modalities.items()}
        labels = _class_indices(chunk[label], classes, bins).to(device)
        counts += histogram(*questions.assign(_checked(part)), labels, *shape[1:]).cpu()
    if _distributed():
        dist.all_reduce(counts)
    together = estimate(counts.to(device), seed=seed, **options)
    return by_pair(together, questions.pairs, time.perf_counter() - start)


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
        found, times = np.unique(values, return_counts=True)
        counter.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
        if len(counter) > MAX_CLASSES:
            raise ValueError(
                f"column {label!r} has more than {MAX_CLASSES} distinct values; is it the label?"
            )
    return sum(_gather(counter), Counter())


def _sample(
    table: Table, columns: Sequence[str], rows: range, chosen: NDArray[Any], progress: bool
) -> dict[str, NDArray[Any]]:
    """The chosen rows of all processes, by column; `chosen` counts from the first of `rows`, ascending."""
    columns = list(dict.fromkeys(columns))
    parts: dict[str, list[NDArray[Any]]] = {column: [] for column in columns}
    first = 0
    for chunk in _chunks(table, columns, rows, progress, "sample"):
        length = len(chunk[columns[0]])
        low, high = np.searchsorted(chosen, [first, first + length])
        for column in columns:
            parts[column].append(chunk[column][chosen[low:high] - first])
        first += length
    gathered = _gather({column: np.concatenate(values) for column, values in parts.items() if values})
    return {column: np.concatenate([part[column] for part in gathered if part]) for column in columns}


def _cuts(values: NDArray[Any], label: str, bins: int) -> NDArray[Any]:
    """Where a real label is cut into classes."""
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
