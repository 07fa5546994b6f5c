"""PID of a table of embeddings that is too large for memory, read in chunks, by one process or several.

By held-out posteriors the table is read once, for a sample of rows, which the first process measures. By clusters it is
read three times: for the classes of the labels, for a sample of rows that the clusters are fitted on, and for the
counts of all rows. The samples depend on the number of rows and the seed alone (`sample_rows`) and the counts are
integers. So several processes, each with a part of the rows, give exactly the result of one process that reads all
rows.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from ecsfusion_kernels import histogram
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ecsfusion.data.embedding_files import Table, as_rows
from ecsfusion.data.text_tables import first_that_is_unlike
from ecsfusion.pid.checks import check_positive
from ecsfusion.pid.clusters import choose_clusters, estimate, split_by_pair
from ecsfusion.pid.decomposition import PID
from ecsfusion.pid.discretize import MAX_ROWS, ModalityPairs, sample_rows
from ecsfusion.pid.estimate import fast_pids
from ecsfusion.pid.inputs import named_modalities
from ecsfusion.pid.options import CLUSTERS, EstimatorOptions

MAX_CLASSES = 10_000
MAX_SHOWN = 20
"""The most columns that an error lists."""
MAX_STREAMED_ROWS = 65_536
"""The most rows that held-out posteriors are fitted on and read from."""


def stream_pid(
    table: Table,
    modalities: Mapping[str, str],
    label: str,
    *,
    group: str | None = None,
    rows: range | None = None,
    bins: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
    **options: Any,
) -> dict[str, PID]:
    """`fast_pids` of columns of a table in bounded memory.

    By default, with `method="posteriors"`, at most `MAX_STREAMED_ROWS` = 65536 rows decide: of a longer table a random
    sample, whose size is `num_samples` of the result. The result is `fast_pids` of these rows. With
    `method="clusters"` all rows are counted.

    When `torch.distributed` is initialized, every process calls this with its part of the rows, and all get the same
    result: that of all parts in the order of the ranks.

    Args:
        table: see `ecsfusion.data.embedding_files`.
        modalities: column by modality name, two or more.
        label: the column of the label: integers or strings, whose sorted distinct values are the classes; whole
            numbers stored as real ones are integers. Other real numbers with `bins`.
        group: the column of the source of each row, integers or strings, as `groups` of `fast_pids`; None where every
            row has a source of its own.
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
    chosen = EstimatorOptions(**options)
    if group is not None and chosen.method == "clusters":
        raise ValueError('group is an option of method="posteriors"; leave it out')
    rows = range(table.num_rows) if rows is None else rows
    columns = list(dict.fromkeys([label, *modalities.values(), *([] if group is None else [group])]))
    for column in columns:
        if column not in table.columns:
            shown = ", ".join(map(repr, table.columns[:MAX_SHOWN]))
            more = len(table.columns) - MAX_SHOWN
            parts = [each for each in table.columns if re.fullmatch(rf"{re.escape(column)}\W?_?\d+", each)]
            remedy = "; an embedding is one column of lists of numbers: join these" if len(parts) > 1 else ""
            raise ValueError(
                f"there is no column {column!r}; the columns are [{shown}{f', ... {more} more' if more > 0 else ''}]"
                f"{remedy}"
            )
    sizes = _gather(len(rows))
    num_rows, rows_before = sum(sizes), sum(sizes[: dist.get_rank()] if _distributed() else [])
    if num_rows == 0:
        raise ValueError("there are no rows; give a table with at least one")
    sampled = sample_rows(
        num_rows, MAX_ROWS if chosen.method == "clusters" else MAX_STREAMED_ROWS, chosen.seed, "cpu"
    )
    is_local = (sampled >= rows_before) & (sampled < rows_before + len(rows))
    local_sample = (sampled[is_local] - rows_before).numpy()
    source = _Source(table, dict(modalities), label, rows, local_sample, bins, device, progress)
    if chosen.method == "clusters":
        pids = _by_clusters(source, num_rows, chosen)
    else:
        sample = source.sample(columns, everywhere=False)
        pids = _in_first_process(lambda: _by_posteriors(source, sample, group, options))
    seconds = time.perf_counter() - start
    return {pair: replace(pid, seconds=seconds) for pair, pid in pids.items()}


@dataclass(frozen=True)
class _Source:
    """What `stream_pid` reads.

    `local_sample` holds the sampled rows of this process, ascending, counted from the first of `rows`.
    """

    table: Table
    modalities: dict[str, str]
    label: str
    rows: range
    local_sample: NDArray[Any]
    bins: int | None
    device: str | torch.device
    progress: bool

    def chunks(self, columns: Sequence[str], title: str) -> Iterator[dict[str, NDArray[Any]]]:
        """The rows of this process in chunks, checked, under a progress bar."""
        rows, first = self.rows, self.rows.start
        before: dict[str, NDArray[Any]] = {}
        with tqdm(
            total=len(rows), desc=title, unit=" rows", unit_scale=True, disable=not self.progress
        ) as bar:
            for chunk in self.table.chunks(columns, rows.start, rows.stop):
                for name, values in chunk.items():
                    # Not the values themselves, which would stay in memory.
                    like = before.setdefault(name, np.empty((0, *values.shape[1:]), values.dtype))
                    self._check(values, like, name, first)
                yield chunk
                first += len(chunk[columns[0]])
                bar.update(len(chunk[columns[0]]))

    def _check(self, values: NDArray[Any], first: NDArray[Any], column: str, first_row: int) -> None:
        """Check a chunk of a column; `first` has the shape and type of its first chunk, without the rows.

        Raises:
            TypeError: a modality that is not of numbers, and a label that cannot be one.
            ValueError: NaN or infinite values, and a chunk that is unlike the first; the message names the row.
        """
        is_modality = column in self.modalities.values()
        if is_modality and values.dtype.kind not in "biuf":
            row = first_that_is_unlike(values)
            raise TypeError(
                f"column {column!r} must hold numbers or lists of numbers, got {str(values[row])[:60]!r} in "
                f"{self.table.place(first_row + row)}"
            )
        if column == self.label and self.bins is None:
            _checked_labels(values, column)
        if values.shape[1:] != first.shape[1:] or _is_text(values) != _is_text(first):
            raise ValueError(
                f"column {column!r} holds {_described(values)} from {self.table.place(first_row)} on, and "
                f"{_described(first)} before; give one kind"
            )
        if values.dtype.kind == "f" and (is_modality or column == self.label):
            finite = np.isfinite(values).reshape(len(values), -1).all(-1)
            if not finite.all():
                raise ValueError(
                    f"column {column!r} has NaN or infinite values, first in "
                    f"{self.table.place(first_row + int(finite.argmin()))}; remove such rows from the table"
                )

    def sample(self, columns: Sequence[str], *, everywhere: bool) -> dict[str, NDArray[Any]]:
        """The sampled rows of all processes, by column; empty in all but the first process unless `everywhere`."""
        parts: dict[str, list[NDArray[Any]]] = {column: [] for column in columns}
        first = 0
        for chunk in self.chunks(columns, "sample"):
            length = len(chunk[columns[0]])
            low, high = np.searchsorted(self.local_sample, [first, first + length])
            for column in columns:
                parts[column].append(chunk[column][self.local_sample[low:high] - first])
            first += length
        own = {column: np.concatenate(values) for column, values in parts.items() if values}
        gathered = [part for part in _gather(own, everywhere) if part]
        for column in columns if gathered else ():
            for part in gathered[1:]:
                values, others = part[column], gathered[0][column]
                if values.shape[1:] != others.shape[1:] or _is_text(values) != _is_text(others):
                    raise ValueError(
                        f"column {column!r} holds {_described(others)} in the rows of one process and "
                        f"{_described(values)} in those of another; give one kind"
                    )
        return {column: np.concatenate([part[column] for part in gathered]) for column in columns if gathered}

    def embeddings(self, chunk: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The rows of every modality on the device, not checked."""
        return {
            name: as_rows(chunk[column], column).to(self.device) for name, column in self.modalities.items()
        }


def _by_posteriors(
    source: _Source, sample: Mapping[str, NDArray[Any]], group: str | None, options: Mapping[str, Any]
) -> dict[str, PID]:
    """`fast_pids` of the sample."""
    values = sample[source.label]
    if source.bins is None:
        classes = np.unique(_checked_labels(values, source.label))
        _check_number_of_classes(len(classes), source.label)
    else:
        classes = _cuts(values, source.label, source.bins)
    # Words stay words, by which a warning names classes.
    targets: Any = values.astype(str)
    if source.bins is not None or not _is_text(values):
        targets = _class_indices(values, classes, source.bins).to(source.device)
    groups = None if group is None else sample[group]
    return fast_pids(source.embeddings(sample), targets, groups=groups, **options)


def _by_clusters(source: _Source, num_rows: int, options: EstimatorOptions) -> dict[str, PID]:
    """Clusters of the sample, and counts of all rows."""
    columns = list(dict.fromkeys([source.label, *source.modalities.values()]))
    counter = _count_classes(source) if source.bins is None else Counter()
    sample = source.sample(columns, everywhere=True)
    if source.bins is None:
        classes = np.array(sorted(counter))
        frequency = torch.tensor([counter[value] for value in classes.tolist()], device="cpu")
    else:
        classes = _cuts(sample[source.label], source.label, source.bins)
        frequency = torch.full((source.bins,), num_rows // source.bins + 1, device="cpu")
    num_clusters = CLUSTERS if options.num_clusters is None else options.num_clusters
    if num_clusters == "auto":
        num_clusters = choose_clusters(frequency)
    num_components = options.components(len(frequency))
    rows_by_name = named_modalities(source.embeddings(sample))
    fitted = ModalityPairs.fit(rows_by_name, num_clusters, num_components, options.seed)

    shape = (len(fitted.pairs), num_clusters, num_clusters, len(frequency))
    counts = torch.zeros(shape, dtype=torch.int64, device="cpu")
    for chunk in source.chunks(columns, "count"):
        labels = _class_indices(chunk[source.label], classes, source.bins).to(source.device)
        counts += histogram(
            *fitted.assign(named_modalities(source.embeddings(chunk))), labels, *shape[1:]
        ).cpu()
    if _distributed():
        dist.all_reduce(counts)
    return split_by_pair(estimate(counts.to(source.device), options), fitted.pairs, 0.0)


def _is_text(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "OUS"


def _described(values: NDArray[Any]) -> str:
    """What a row of a chunk is: "strings", "numbers" or "lists of 64 numbers"."""
    if _is_text(values):
        return "strings"
    return "numbers" if values.ndim == 1 else f"lists of {int(np.prod(values.shape[1:]))} numbers"


def _count_classes(source: _Source) -> Counter[Any]:
    """How often each label occurs, in all processes."""
    counter: Counter[Any] = Counter()
    for chunk in source.chunks([source.label], "labels"):
        values = _checked_labels(chunk[source.label], source.label)
        classes, counts = np.unique(values, return_counts=True)
        counter.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))
        _check_number_of_classes(len(counter), source.label)
    return sum(_gather(counter), Counter())


def _checked_labels(values: NDArray[Any], label: str) -> NDArray[Any]:
    # A table that had gaps has whole numbers as real ones.
    if values.dtype.kind == "f" and values.ndim == 1 and (values == np.round(values)).all():
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if (whole == values).all():
            return whole
    if values.ndim != 1 or values.dtype.kind not in "biuOUS":
        raise TypeError(
            f"column {label!r} must hold one integer or string per row, got {values.dtype} of shape"
            f" {values.shape}; for a real target give the number of bins"
        )
    return values


def _check_number_of_classes(number: int, label: str) -> None:
    if number > MAX_CLASSES:
        raise ValueError(f"column {label!r} has more than {MAX_CLASSES} distinct values; is it the label?")


def _cuts(values: NDArray[Any], label: str, bins: int) -> NDArray[Any]:
    """The values at which a real label is cut into classes."""
    check_positive(bins, "bins")
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise TypeError(f"column {label!r} must hold one finite number per row to be binned")
    ordered = np.sort(values.astype(np.float64))
    return ordered[[len(ordered) * k // bins for k in range(1, bins)]]


def _class_indices(values: NDArray[Any], classes: NDArray[Any], bins: int | None) -> Tensor:
    side: Literal["left", "right"] = "left" if bins is None else "right"
    return torch.from_numpy(np.searchsorted(classes, values, side=side))


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather(value: Any, everywhere: bool = True) -> list[Any]:
    """`value` of every process, in the order of the ranks; unless `everywhere`, for the first process alone."""
    if not _distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    if everywhere:
        dist.all_gather_object(gathered, value)
    else:
        dist.gather_object(value, gathered if dist.get_rank() == 0 else None)
    return gathered


def _in_first_process(measure: Callable[[], dict[str, PID]]) -> dict[str, PID]:
    """What `measure` returns in the first process, for all; an error of input is raised in all."""
    outcome: list[Any] = [None, None]
    if not _distributed() or dist.get_rank() == 0:
        try:
            outcome[0] = measure()
        except (TypeError, ValueError) as error:
            outcome[1] = error
    if _distributed():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
