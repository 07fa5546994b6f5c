"""Partial information decomposition by clusters of the embeddings, as in arXiv 2509.20840, and without its bias.

Each modality is clustered (`Discretizer`), clusters and labels are counted, the table is decomposed and the bias of
small samples is removed (`ecsfusion.pid.correction`). What the clusters do not hold is not counted: they follow the
directions of the largest variance, whatever these tell about the label.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from ecsfusion_kernels import histogram, table_sums
from ecsfusion_kernels.ops.broja import MIN_TOLERANCE
from torch import Tensor

from ecsfusion.pid.checks import check_positive
from ecsfusion.pid.copies import tree_moved
from ecsfusion.pid.correction import Information, Nulls, correct, draw_nulls
from ecsfusion.pid.decomposition import (
    LN2,
    PID,
    Decomposition,
    SolvedTables,
    checked_names,
    decomposition_of,
    entropy,
    normalized_table,
    solve_tables,
)
from ecsfusion.pid.discretize import ModalityPairs, kept_sample, pair_names
from ecsfusion.pid.inputs import (
    check_cells,
    check_classes,
    check_finite,
    class_labels,
    named_modalities,
)
from ecsfusion.pid.options import CLUSTERS, EstimatorOptions
from ecsfusion.pid.replayed import replayed
from ecsfusion.pid.replicates import bootstrap as resample

MAX_ITERATIONS = 1000
MAX_COMPONENTS_ON_DEVICE = 24
"""More principal directions need host reads."""
MAX_REPLAYED_VALUES = 1 << 25
"""Numbers in embeddings whose estimate is kept as a CUDA graph, which keeps a copy of them."""


def estimate_pairs(
    named: dict[str, Tensor], targets: Tensor, num_classes: int, options: EstimatorOptions
) -> PID:
    """`fast_pids` by clusters, of embeddings and labels that are checked; one PID of all pairs and labels."""
    first = next(iter(named.values()))
    num_clusters = clusters_for(options, targets, num_classes)
    check_cells(num_clusters, num_clusters, num_classes)
    sampled = kept_sample(len(first), options.seed, first.device)
    estimated = _estimate(named, targets, sampled, num_clusters, num_classes, options)
    counted, enough = estimated.counted.tolist(), estimated.enough.tolist()
    if min(counted) < len(first):
        check_classes(targets, num_classes)
        check_finite(named)
        raise ValueError(
            f"embeddings have {len(first) - min(counted):.0f} rows that are too large to be clustered"
        )
    _warn_of_few_samples(counted, enough, num_clusters, num_clusters, num_classes, stacklevel=5)
    batch = (len(pair_names(list(named))), *targets.shape[1:])
    return _as_pid(estimated, batch, (num_clusters, num_clusters), num_classes, len(first), options)


def clusters_for(options: EstimatorOptions, targets: Tensor, num_classes: int) -> int:
    """The number of clusters of embeddings; "auto" reads the samples per class of the first label."""
    if options.num_clusters == "auto":
        first = targets.reshape(len(targets), -1)[:, 0]
        return choose_clusters(torch.bincount(first, minlength=num_classes))
    return CLUSTERS if options.num_clusters is None else options.num_clusters


class PIDTensors(NamedTuple):
    """The result of `pid_tensors` and `estimate_tensors` for T tables; float64 on the device of the input."""

    corrected: Decomposition
    """(T,) and (T, 2): values after correction, with floors and, where replicates were drawn, intervals."""
    plugin: Decomposition
    """The values before correction, with the level that noise reaches there."""
    counted: Tensor
    """(T,): samples in the table. If they are fewer than N, there were rows with NaN or infinite values, or labels
    outside 0 .. C - 1. These are in no cell, so the table must not be used."""
    enough: Tensor
    """(T,): the samples that `enough_samples` asks for."""


class Observed(NamedTuple):
    """All that the estimate of T tables follows from, by operations on a few numbers of each; float64."""

    tables: SolvedTables
    """(T, ...)."""
    nulls: Nulls
    """(T, ...)."""
    replicates: SolvedTables | None
    """(R, T, ...), by bootstrap; None where none were drawn."""


def _estimate(
    named: dict[str, Tensor],
    targets: Tensor,
    sampled: Tensor | None,
    num_clusters: int,
    num_classes: int,
    options: EstimatorOptions,
) -> PIDTensors:
    """The estimate, whose `counted` and `enough` are on the host; the rest is on the device of the embeddings.

    The host waits once, for what is observed of the tables, and does the algebra of a few numbers itself.
    """
    runs_on_device = (
        options.components(num_classes) <= MAX_COMPONENTS_ON_DEVICE and options.tolerance >= MIN_TOLERANCE
    )
    observed = replayed(
        _observe_embeddings,
        [*named.values(), targets, *([] if sampled is None else [sampled])],
        (tuple(named), num_clusters, num_classes, options),
        MAX_REPLAYED_VALUES if runs_on_device else 0,
    )
    estimated = estimate_of(tree_moved(observed, "cpu"), options)
    corrected, plugin = tree_moved((estimated.corrected, estimated.plugin), targets.device)
    return PIDTensors(corrected, plugin, estimated.counted, estimated.enough)


def pid_tensors(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    num_clusters: int = CLUSTERS,
    num_components: int = 9,
    correction: bool = True,
    permutations: int = 16,
    bootstrap: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> PIDTensors:
    """`fast_pids(method="clusters")` from tensors to tensors, without reading their values.

    On CUDA with Triton the host reads nothing, so it can be captured in a CUDA graph, compiled with
    `torch.compile(fullgraph=True)`, and launched ahead of other work. Rows and labels that cannot be counted show in
    `counted`.

    Args:
        embeddings: two or more modalities by name, each (N, D_m), floating point, on one device.
        labels: (N,) or (N, L) int64 on the same device.
        num_classes: C, an int like all other numbers here.
        num_clusters: K, up to 256.
        num_components: principal directions kept before clustering, up to 24; more of them need host reads.
        correction: False draws no bootstrap replicates.
        permutations: as in `fast_pid`.
        bootstrap: as in `fast_pid`.
        tolerance: as in `fast_pid`.
        seed: as in `fast_pid`.

    Returns:
        PIDTensors with T = pairs x L, in the order of `pair_names`, then of the labels.

    Raises:
        TypeError: for embeddings, labels or options of the wrong type; not checked while compiling.
        ValueError: for shapes and options out of range; not checked while compiling.
    """
    options = EstimatorOptions(
        "clusters", num_clusters, num_components, correction, permutations, bootstrap, tolerance, seed
    )
    if not torch.compiler.is_compiling():
        # These checks read no values.
        check_positive(num_classes, "num_classes")
        check_positive(num_clusters, "num_clusters")
        check_cells(num_clusters, num_clusters, num_classes)
        embeddings = named_modalities(embeddings)
        first_rows = next(iter(embeddings.values()))
        labels = class_labels(labels, len(first_rows), first_rows.device, None)
    given = (*embeddings.values(), labels, tuple(embeddings), num_clusters, num_classes, options)
    return estimate_of(_observe_embeddings(*given), options)


def _observe_embeddings(*given: Any) -> Observed:
    """What the clusters of embeddings show.

    Args:
        given: the embeddings of each modality; labels; the rows of `kept_sample`, if there are any; the names of the
            modalities, the numbers of clusters and classes, and the options.
    """
    *tensors, names, num_clusters, num_classes, options = given
    embeddings = dict(zip(names, tensors, strict=False))
    labels, *sampled = tensors[len(names) :]
    components = options.components(num_classes)
    pairs = ModalityPairs.fit(embeddings, num_clusters, components, options.seed, *sampled)
    first, second = pairs.assign(embeddings)
    sizes = (num_clusters, num_clusters, num_classes)
    # (L, N)
    by_label = labels.reshape(len(labels), -1).mT
    counts = histogram(first.unsqueeze(1), second.unsqueeze(1), by_label, *sizes)
    num_samples = [len(labels)] * (len(counts) * len(by_label))
    return observe(counts.flatten(0, 1), num_samples, options)


def estimate(
    counts: Tensor, options: EstimatorOptions | None = None, names: Sequence[str] | None = None
) -> PID:
    """`fast_pid` of joint tables that are counted already.

    Args:
        counts: (..., K1, K2, C) samples per cell.
        options: how the values are estimated (`num_clusters` and `num_components` have no effect); None for the
            defaults.
        names: the two modalities; "x1" and "x2" when None.

    Raises:
        TypeError: for `counts` that hold no real numbers.
        ValueError: for `counts` that are no non-negative finite table with mass, and for bad names.

    Warns:
        FewSamplesWarning: when there are fewer samples than `enough_samples` asks for.
    """
    start = time.perf_counter()
    options = EstimatorOptions("clusters") if options is None else options
    names = checked_names(names)
    # This raises an error if `counts` is no table.
    normalized_table(counts)
    tables = counts.flatten(0, -4) if counts.ndim > 3 else counts.unsqueeze(0)
    num_samples = [int(total) for total in tables.sum((1, 2, 3)).tolist()]
    estimated = estimate_tensors(tables, num_samples, options)
    counted, enough = torch.stack([estimated.counted, estimated.enough]).tolist()
    rows, columns, classes = counts.shape[-3:]
    _warn_of_few_samples(counted, enough, rows, columns, classes, stacklevel=3)
    pid = _as_pid(estimated, counts.shape[:-3], (rows, columns), classes, num_samples[0], options)
    plugin = None if pid.plugin is None else replace(pid.plugin, names=names)
    return replace(pid, names=names, plugin=plugin, seconds=time.perf_counter() - start)


def estimate_tensors(counts: Tensor, num_samples: Sequence[int], options: EstimatorOptions) -> PIDTensors:
    """The arithmetic of `estimate`, without checks.

    Args:
        counts: (T, K1, K2, C) samples per cell.
        num_samples: T numbers, the samples of each table.
        options: how the values are estimated.
    """
    return estimate_of(observe(counts, num_samples, options), options)


def observe(counts: Tensor, num_samples: Sequence[int], options: EstimatorOptions) -> Observed:
    """Solve tables and draw what is to be compared with them; the arguments are those of `estimate_tensors`."""
    counts = counts.double()
    each = list(zip(counts, num_samples, strict=True))
    drawn = [draw_nulls(table, n, options.num_permutations, options.seed) for table, n in each]
    nulls = Nulls(*(torch.stack(parts) for parts in zip(*drawn, strict=True)))
    if not (options.num_replicates and options.correction):
        return Observed(_solve(counts, options.tolerance), nulls, None)
    replicates = [resample(table, n, options.num_replicates, options.seed + 2) for table, n in each]
    if counts.device.type == "cpu":
        # There a single table is solved by code of its own.
        solved = (_solve(tables, options.tolerance) for tables in (counts, torch.stack(replicates, 1)))
        return Observed(next(solved), nulls, next(solved))
    # By one launch: a table has a program to itself.
    together = _solve(
        torch.cat([counts.unsqueeze(0), torch.stack(replicates, 1)]).flatten(0, 1), options.tolerance
    )
    parts = [part.unflatten(0, (-1, len(counts))) for part in together]
    return Observed(
        SolvedTables(*(part[0] for part in parts)), nulls, SolvedTables(*(part[1:] for part in parts))
    )


def estimate_of(observed: Observed, options: EstimatorOptions) -> PIDTensors:
    """The estimate of T tables: operations on a few numbers of each."""
    plugin = decomposition_of(observed.tables)
    nulls = (Nulls(*parts) for parts in zip(*observed.nulls, strict=True))
    each = zip(nulls, plugin.mutual_information, plugin.redundancy, strict=True)
    corrected = [correct(*table) for table in each]
    information = Information(*(torch.stack(values) for values in zip(*corrected, strict=True)))

    union = information.single.sum(-1) - information.redundancy
    synergy = (information.joint - union).clamp_min(0.0)
    dependence = union + synergy - information.single.sum(-1) + information.coupling
    noise = 2 * information.single_noise
    # Few replicates may err downward, to a bias below zero.
    floors = {
        "redundancy_floor": (information.single_bias + noise).amin(-1).clamp_min(0.0),
        "unique_floor": (information.single_bias + noise).clamp_min(0.0),
        "synergy_floor": (information.joint_bias + 2 * information.joint_noise).clamp_min(0.0),
    }
    # Not `_replace`: PyTorch 2.11 does not compile what it gives back.
    plugin = Decomposition(**plugin._asdict() | floors)
    pid = Decomposition(
        redundancy=information.redundancy,
        unique=information.single - information.redundancy.unsqueeze(-1),
        synergy=synergy,
        mutual_information=information.single,
        joint_mutual_information=union + synergy,
        conditional_mutual_information=dependence.clamp_min(0.0),
        gap=plugin.gap,
        redundancy_floor=noise.amin(-1),
        unique_floor=noise,
        synergy_floor=2 * information.joint_noise,
    )
    if observed.replicates is not None:
        pid = _with_intervals(pid, information, decomposition_of(observed.replicates))
    sums = observed.tables.sums
    return PIDTensors(pid, plugin, sums[:, -1], _enough_samples(sums))


def split_by_pair(pids: PID, pairs: Sequence[tuple[str, str]], seconds: float) -> dict[str, PID]:
    """The PIDs of a batch (pairs, ...), each under the names of its two sides, such as "image, audio"."""
    named = {}
    for i, pair in enumerate(pairs):
        pid = pids[i]
        plugin = None if pid.plugin is None else replace(pid.plugin, names=pair)
        held_out = None if pid.held_out is None else replace(pid.held_out, names=pair)
        named[", ".join(pair)] = replace(pid, names=pair, plugin=plugin, held_out=held_out, seconds=seconds)
    return named


def choose_clusters(frequency: Tensor) -> int:
    """The number of clusters per modality for `frequency` (C,), the samples per class.

    It is the largest number for which the samples are enough (`enough_samples`), but at most 24 and at least C,
    where C is first brought into 12 to 20. Too few clusters lose information; too many only widen the intervals
    (benchmarks/bench_estimate.py).
    """
    num_samples = float(frequency.sum())
    bits = float(entropy(frequency.double() / num_samples, 1))
    affordable = int(math.sqrt(num_samples * bits * LN2 / max(len(frequency) - 1, 1)))
    return min(max(affordable, min(max(len(frequency), 12), 20)), 24)


def enough_samples(counts: Tensor) -> int:
    """The samples with which the bias of the plug-in values is at most half of the label's entropy H.

    It is K1 K2 (C - 1) / (H ln 2) for the occupied clusters and classes of a table (K1, K2, C), because the
    first-order bias of I(X1, X2; Y) is the degrees of freedom over 2 N ln 2.
    """
    return int(_enough_samples(table_sums(counts.double())[2]))


def _enough_samples(sums: Tensor) -> Tensor:
    """`enough_samples` of tables, (...) float64, from their `table_sums` (..., 15)."""
    bits = sums[..., 0] / -LN2
    classes, rows, columns = sums[..., 7:10].unbind(-1)
    enough = torch.ceil(rows * columns * (classes - 1) / (bits * LN2))
    return torch.where(classes < 2, 0.0, enough)


def _with_intervals(pid: Decomposition, information: Information, spread: Decomposition) -> Decomposition:
    """Intervals of 2 standard deviations of sampling and noise, plus the correction's possible error and the gap."""

    def deviation(values: Tensor, noise: Tensor) -> Tensor:
        return 2 * torch.hypot(values.std(0), noise)

    shared_doubt = information.single_doubt.amin(-1)
    redundancy = deviation(spread.redundancy, information.single_noise.amin(-1))
    unique = deviation(spread.unique, information.single_noise)
    # Near zero the replicates of a uniqueness vary little. It can still move as much as the redundancy, because the
    # two add up to the information of the modality.
    unique = torch.maximum(unique, redundancy.unsqueeze(-1)) + information.single_doubt
    redundancy = redundancy + shared_doubt
    synergy_noise = torch.hypot(information.joint_noise, information.single_noise.amax(-1))
    synergy = deviation(spread.synergy, synergy_noise) + shared_doubt
    # Clamped, so that the value itself lies in its interval.
    down, up = information.joint_doubt.clamp_min(0.0).unbind(-1)
    gap = pid.gap

    def interval(low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([low, high], -1).clamp_min(0.0)

    intervals = {
        "redundancy_interval": interval(pid.redundancy - redundancy, pid.redundancy + redundancy + gap),
        "unique_interval": interval(pid.unique - unique - gap.unsqueeze(-1), pid.unique + unique),
        "synergy_interval": interval(pid.synergy - synergy - down, pid.synergy + synergy + up + gap),
    }
    return Decomposition(**pid._asdict() | intervals)


def _solve(counts: Tensor, tolerance: float) -> SolvedTables:
    # A table that stops at the limit keeps a wider certified gap, which the intervals include.
    return solve_tables(counts, tolerance, MAX_ITERATIONS)


def _as_pid(
    estimated: PIDTensors,
    batch: tuple[int, ...],
    num_clusters: tuple[int, int],
    num_classes: int,
    num_samples: int,
    options: EstimatorOptions,
) -> PID:
    """The tensors, whose leading dimension becomes `batch`, as a PID of "x1" and "x2"."""

    def pid(part: Decomposition) -> PID:
        tensors: dict[str, Any] = {
            name: None if value is None else value.reshape((*batch, *value.shape[1:]))
            for name, value in part._asdict().items()
        }
        return PID(
            **tensors,
            names=("x1", "x2"),
            num_samples=num_samples,
            num_clusters=num_clusters,
            num_classes=num_classes,
        )

    plugin = pid(estimated.plugin)
    return replace(pid(estimated.corrected) if options.correction else plugin, plugin=plugin)


class FewSamplesWarning(UserWarning):
    """There are fewer samples than `enough_samples` asks for."""


def _warn_of_few_samples(
    counted: Sequence[float], enough: Sequence[float], rows: int, columns: int, classes: int, stacklevel: int
) -> None:
    for num_samples, recommended in zip(counted, enough, strict=True):
        if num_samples < recommended:
            warnings.warn(
                f"{num_samples:.0f} samples are few for {rows} x {columns} clusters and {classes} classes:"
                f" {recommended:.0f}"
                " would keep noise under half of the label's entropy before correction; trust the intervals, take"
                " more samples or fewer clusters",
                FewSamplesWarning,
                stacklevel=stacklevel,
            )
            return
