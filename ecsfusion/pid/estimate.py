"""Embeddings and labels -> a corrected partial information decomposition with intervals and noise floors.

`fast_pid` checks what it is given, `pid_tensors` does the work and waits for nothing, and `fast_pid` reads what was
found.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
from ecsfusion_kernels import histogram
from torch import Tensor

from ecsfusion.pid.correction import Information, correct
from ecsfusion.pid.decomposition import (
    LN2,
    PID,
    Decomposition,
    checked_options,
    decompose_tensors,
    entropy,
    normalized_table,
)
from ecsfusion.pid.discretize import ModalityPairs
from ecsfusion.pid.inputs import (
    Array,
    check_cells,
    check_classes,
    check_finite,
    check_positive,
    check_seed,
    class_labels,
    is_whole,
    named_modalities,
)
from ecsfusion.pid.replicates import bootstrap as resample

MAX_ITERATIONS = 1000
MAX_COMPONENTS = 16
MAX_DIRECTIONS = 1 << 12


def fast_pid(
    embeddings: Mapping[str, Array] | Sequence[Array],
    labels: Array | Sequence[Any],
    *,
    num_clusters: int | None = 20,
    num_components: int | None = None,
    num_classes: int | None = None,
    bins: int | None = None,
    correction: bool = True,
    permutations: int = 16,
    bootstrap: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> PID:
    """What two modalities know about the label: each alone, both, only together; in bits.

    Each modality is clustered (`Discretizer`), clusters and labels are counted, the table is decomposed
    (Bertschinger et al. 2014) and freed of the bias of small samples (`ecsfusion.pid.correction`).

    Args:
        embeddings: two modalities by name, or a sequence of two ("x1", "x2"); each (N, D_m), tensor or
            array, real, all on one device. The work is done there.
        labels: (N,) class indices from 0; (N, L) for L labels, decomposed one by one; real numbers with
            `bins`.
        num_clusters: per modality. None for `choose_clusters`. Fewer distinct rows than clusters leave
            clusters empty, which is harmless.
        num_components: principal directions kept before clustering; None for max(5, C - 1), at most 16.
        num_classes: C; None for the largest label + 1, which the host then reads first.
        bins: cut a real target at its quantiles into so many classes.
        correction: False for plug-in values, as published (arXiv 2509.20840). Corrected atoms are never negative:
            noise comes out as zero or a little above.
        permutations: replicates per null, for the correction and the floors.
        bootstrap: replicates for the intervals; 0 for none.
        tolerance: certified width in bits at which the solver may stop.
        seed: of clustering and replicates. The global random generators are neither used nor changed.

    Returns:
        PID; with leading dimension (L,) for labels (N, L). Floors are what pure noise reaches in 2 of 100
        such readings. Intervals cover at least 95 of 100: sampling, noise, and how far the correction may
        be off. `plugin` has the values before correction, with the level that noise reaches there.

    Warns:
        when there are fewer samples than `enough_samples` asks for.

    Raises:
        TypeError, ValueError: for anything that is not two finite matrices and N class indices.

    Clusters can lose information, never add any: what the embeddings know beyond their K clusters is not counted.

    On CUDA with Triton, with `num_classes` and `num_clusters` given, everything is launched without waiting
    (`pid_tensors`), and the host reads two numbers per table at the end: bad rows and labels are found then.
    """
    named = named_modalities(embeddings)
    if len(named) != 2:
        raise ValueError(f"embeddings must hold two modalities, got {list(named)}; fast_pids takes more")
    (pid,) = fast_pids(
        named,
        labels,
        num_clusters=num_clusters,
        num_components=num_components,
        num_classes=num_classes,
        bins=bins,
        correction=correction,
        permutations=permutations,
        bootstrap=bootstrap,
        tolerance=tolerance,
        seed=seed,
    ).values()
    return pid


def fast_pids(
    embeddings: Mapping[str, Array] | Sequence[Array],
    labels: Array | Sequence[Any],
    *,
    num_clusters: int | None = 20,
    num_components: int | None = None,
    num_classes: int | None = None,
    bins: int | None = None,
    correction: bool = True,
    permutations: int = 16,
    bootstrap: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> dict[str, PID]:
    """`fast_pid` for two or more modalities: every pair, and each against all others; one batched solve.

    What "the rest" is and why uniqueness against it is an upper estimate: `ecsfusion.pid.discretize.ModalityPairs`. The
    arguments are those of `fast_pid`.

    Returns:
        PIDs by name: "image, audio" for pairs, and with three or more modalities "image, rest" and so on.
    """
    start = time.perf_counter()
    _check_replicates(permutations, bootstrap)
    checked_options(tolerance, MAX_ITERATIONS, None)
    check_seed(seed)
    named = named_modalities(embeddings)
    first = next(iter(named.values()))
    targets = class_labels(labels, len(first), first.device, bins)
    if num_classes is not None:
        check_positive(num_classes, "num_classes")
    on_host = first.device.type == "cpu"
    if on_host or num_classes is None:
        num_classes = check_classes(targets, num_classes)
    if on_host:
        check_finite(named)
    check_cells(1, 1, num_classes)
    if num_clusters is None:
        frequency = torch.bincount(targets.reshape(len(first), -1)[:, 0], minlength=num_classes)
        num_clusters = choose_clusters(frequency)
    num_clusters, num_components = cluster_sizes(num_clusters, num_components, num_classes)
    check_cells(num_clusters, num_clusters, num_classes)

    found = pid_tensors(
        named,
        targets,
        num_classes=num_classes,
        num_clusters=num_clusters,
        num_components=num_components,
        correction=correction,
        permutations=permutations,
        bootstrap=bootstrap,
        tolerance=tolerance,
        seed=seed,
    )
    counted, enough = torch.stack([found.counted, found.enough]).tolist()
    if min(counted) < len(first):
        check_classes(targets, num_classes)
        check_finite(named)
        raise ValueError(
            f"embeddings have {len(first) - min(counted):.0f} rows that are too large to be clustered"
        )
    _warn_of_few_samples(counted, enough, num_clusters, num_clusters, num_classes)
    questions = pair_names(list(named))
    batch = (len(questions), *targets.shape[1:])
    together = _as_pid(found, batch, (num_clusters, num_clusters), num_classes, len(first), correction)
    return by_pair(together, questions, time.perf_counter() - start)


class PIDTensors(NamedTuple):
    """What `pid_tensors` and `estimate_tensors` return for T tables; float64 on the device of the input."""

    corrected: Decomposition
    """(T,) and (T, 2): freed of bias, with floors and, where replicates were drawn, intervals."""
    plugin: Decomposition
    """The values before correction, with the level that noise reaches there."""
    counted: Tensor
    """(T,): samples in the table. Fewer than N: there were NaN or infinite rows, or labels outside 0 .. C - 1, which
    are in no cell, and the table is not to be trusted."""
    enough: Tensor
    """(T,): the samples that `enough_samples` asks for."""


def pid_tensors(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    *,
    num_classes: int,
    num_clusters: int = 20,
    num_components: int = 9,
    correction: bool = True,
    permutations: int = 16,
    bootstrap: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> PIDTensors:
    """`fast_pids` from tensors to tensors, without a look at the values and, on CUDA with Triton, without a host read.

    So it can be captured in a CUDA graph, compiled with `torch.compile(fullgraph=True)`, and launched ahead of other
    work. Rows and labels that cannot be counted show in `counted`.

    Args:
        embeddings: two or more modalities by name, each (N, D_m), floating point, on one device.
        labels: (N,) or (N, L) int64 on the same device.
        num_classes: C. All other numbers are Python's too: `num_clusters` K up to 256, `num_components` d up to 24
            (more directions are found with host reads), the rest as in `fast_pid`.
        correction: False draws no bootstrap replicates.

    Returns:
        PIDTensors with T = questions x L, in the order of `pair_names`, then of the labels.
    """
    if not torch.compiler.is_compiling():  # what can be known without a look at the values
        _check_replicates(permutations, bootstrap)
        checked_options(tolerance, MAX_ITERATIONS, None)
        check_seed(seed)
        check_positive(num_classes, "num_classes")
        num_clusters, num_components = cluster_sizes(num_clusters, num_components, num_classes)
        check_cells(num_clusters, num_clusters, num_classes)
        embeddings = named_modalities(embeddings)
        first_rows = next(iter(embeddings.values()))
        labels = class_labels(labels, len(first_rows), first_rows.device, None)
    questions = ModalityPairs.fit(embeddings, num_clusters, num_components, seed)
    first, second = questions.assign(embeddings)
    sizes = (num_clusters, num_clusters, num_classes)
    by_label = labels.reshape(len(labels), -1).mT  # (L, N)
    counts = histogram(first.unsqueeze(1), second.unsqueeze(1), by_label, *sizes)
    return estimate_tensors(
        counts.flatten(0, 1),
        [len(labels)] * (len(counts) * len(by_label)),
        correction=correction,
        permutations=permutations,
        bootstrap=bootstrap,
        tolerance=tolerance,
        seed=seed,
    )


def estimate(
    counts: Tensor,
    *,
    names: Sequence[str] | None = None,
    correction: bool = True,
    permutations: int = 16,
    bootstrap: int = 50,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> PID:
    """`fast_pid` from the joint tables on: counts (..., K1, K2, C) of samples per cell."""
    start = time.perf_counter()
    _check_replicates(permutations, bootstrap)
    names = checked_options(tolerance, MAX_ITERATIONS, names)
    normalized_table(counts)  # raises for what is no table
    tables = counts.flatten(0, -4) if counts.ndim > 3 else counts.unsqueeze(0)
    numbers = [int(number) for number in tables.sum((1, 2, 3)).tolist()]
    found = estimate_tensors(
        tables,
        numbers,
        correction=correction,
        permutations=permutations,
        bootstrap=bootstrap,
        tolerance=tolerance,
        seed=seed,
    )
    counted, enough = torch.stack([found.counted, found.enough]).tolist()
    rows, columns, classes = counts.shape[-3:]
    _warn_of_few_samples(counted, enough, rows, columns, classes)
    pid = _as_pid(found, counts.shape[:-3], (rows, columns), classes, numbers[0], correction)
    plugin = None if pid.plugin is None else replace(pid.plugin, names=names)
    return replace(pid, names=names, plugin=plugin, seconds=time.perf_counter() - start)


def estimate_tensors(
    counts: Tensor,
    numbers: Sequence[int],
    *,
    correction: bool,
    permutations: int,
    bootstrap: int,
    tolerance: float,
    seed: int,
) -> PIDTensors:
    """The arithmetic of `estimate`: counts (T, K1, K2, C), of so many samples each, -> tensors, unchecked."""
    counts = counts.double()
    plugin = _solve(counts, tolerance)
    each = zip(counts, numbers, plugin.mutual_information, plugin.redundancy, strict=True)
    corrected = [correct(*table, permutations, seed) for table in each]
    found = Information(*(torch.stack(values) for values in zip(*corrected, strict=True)))

    union = found.single.sum(-1) - found.redundancy
    synergy = (found.joint - union).clamp_min(0.0)
    dependence = union + synergy - found.single.sum(-1) + found.coupling
    noise = 2 * found.single_noise
    # Few replicates may err downward, to a bias below zero.
    plugin = plugin._replace(
        redundancy_floor=(found.single_bias + noise).amin(-1).clamp_min(0.0),
        unique_floor=(found.single_bias + noise).clamp_min(0.0),
        synergy_floor=(found.joint_bias + 2 * found.joint_noise).clamp_min(0.0),
    )
    pid = Decomposition(
        redundancy=found.redundancy,
        unique=found.single - found.redundancy.unsqueeze(-1),
        synergy=synergy,
        mutual_information=found.single,
        joint_mutual_information=union + synergy,
        conditional_mutual_information=dependence.clamp_min(0.0),
        gap=plugin.gap,
        redundancy_floor=noise.amin(-1),
        unique_floor=noise,
        synergy_floor=2 * found.joint_noise,
    )
    if bootstrap and correction:
        drawn = [resample(table, n, bootstrap, seed + 2) for table, n in zip(counts, numbers, strict=True)]
        pid = _with_intervals(pid, found, _solve(torch.stack(drawn, 1), tolerance))
    return PIDTensors(pid, plugin, counts.sum((1, 2, 3)), _enough_samples(counts))


def by_pair(together: PID, pairs: Sequence[tuple[str, str]], seconds: float) -> dict[str, PID]:
    """The PIDs of a batch (questions, ...) by the names of the two sides."""
    named = {}
    for i, pair in enumerate(pairs):
        pid = together[i]
        plugin = None if pid.plugin is None else replace(pid.plugin, names=pair)
        named[", ".join(pair)] = replace(pid, names=pair, plugin=plugin, seconds=seconds)
    return named


def choose_clusters(frequency: Tensor) -> int:
    """Clusters per modality from the samples per class, `frequency` (C,).

    As many as the samples are enough for (`enough_samples`), but at most 24, and at least C within 12 to 20: too few
    clusters lose information outright, too many only widen the intervals (benchmarks/bench_estimate.py).
    """
    number = float(frequency.sum())
    bits = float(entropy(frequency.double() / number, 1))
    affordable = int(math.sqrt(number * bits * LN2 / max(len(frequency) - 1, 1)))
    return min(max(affordable, min(max(len(frequency), 12), 20)), 24)


def enough_samples(counts: Tensor) -> int:
    """Samples from which on noise alone fills less than half of the label's entropy H in the plug-in values.

    K1 K2 (C - 1) / (H ln 2) for the occupied clusters and classes of a table (K1, K2, C): the first-order
    bias of I(X1, X2; Y) is the degrees of freedom over 2 N ln 2.
    """
    return int(_enough_samples(counts.double()))


def _enough_samples(counts: Tensor) -> Tensor:
    """`enough_samples` of float64 counts (..., K1, K2, C): (...) float64."""
    rows, columns = counts.sum((-2, -1)), counts.sum((-3, -1))
    frequency = counts.sum((-3, -2))
    bits = entropy(frequency / frequency.sum(-1, keepdim=True).clamp_min(1.0), 1)
    rows, columns, classes = (part.count_nonzero(-1) for part in (rows, columns, frequency))
    enough = torch.ceil(rows * columns * (classes - 1) / (bits * LN2))
    return torch.where(classes < 2, 0.0, enough)


def pair_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """The two sides of each question: every pair and, of three or more modalities, each against the rest."""
    rests = [(name, "rest") for name in names] if len(names) > 2 else []
    return [*combinations(names, 2), *rests]


def _with_intervals(pid: Decomposition, found: Information, spread: Decomposition) -> Decomposition:
    """Intervals of 2 standard deviations of sampling and noise, plus the doubt of the correction and the gap."""

    def deviation(values: Tensor, noise: Tensor) -> Tensor:
        return 2 * torch.hypot(values.std(0), noise)

    shared_doubt = found.single_doubt.amin(-1)
    redundancy = deviation(spread.redundancy, found.single_noise.amin(-1))
    unique = deviation(spread.unique, found.single_noise)
    # Near zero the replicates of a uniqueness crowd; it still moves as much as the redundancy it trades with.
    unique = torch.maximum(unique, redundancy.unsqueeze(-1)) + found.single_doubt
    redundancy = redundancy + shared_doubt
    synergy_noise = torch.hypot(found.joint_noise, found.single_noise.amax(-1))
    synergy = deviation(spread.synergy, synergy_noise) + shared_doubt
    down, up = found.joint_doubt.clamp_min(0.0).unbind(-1)  # the value itself lies in its interval
    gap = pid.gap

    def interval(low: Tensor, high: Tensor) -> Tensor:
        return torch.stack([low, high], -1).clamp_min(0.0)

    return pid._replace(
        redundancy_interval=interval(pid.redundancy - redundancy, pid.redundancy + redundancy + gap),
        unique_interval=interval(pid.unique - unique - gap.unsqueeze(-1), pid.unique + unique),
        synergy_interval=interval(pid.synergy - synergy - down, pid.synergy + synergy + up + gap),
    )


def _solve(counts: Tensor, tolerance: float) -> Decomposition:
    # A table that stops at the limit keeps a wider certified gap, which the intervals include.
    table = counts / counts.sum((-3, -2, -1), keepdim=True).clamp_min(1.0)
    return decompose_tensors(table, tolerance, MAX_ITERATIONS)


def _as_pid(
    found: PIDTensors,
    batch: tuple[int, ...],
    num_clusters: tuple[int, int],
    num_classes: int,
    num_samples: int,
    correction: bool,
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

    plugin = pid(found.plugin)
    return replace(pid(found.corrected) if correction else plugin, plugin=plugin)


def cluster_sizes(num_clusters: int, num_components: int | None, num_classes: int) -> tuple[int, int]:
    """Checked number of clusters and components, the latter chosen where None."""
    if num_components is None:
        num_components = min(max(5, num_classes - 1), MAX_COMPONENTS)
    check_positive(num_clusters, "num_clusters")
    check_positive(num_components, "num_components")
    if num_components > MAX_DIRECTIONS:
        raise ValueError(f"num_components must be at most {MAX_DIRECTIONS}, got {num_components}")
    return num_clusters, num_components


def _check_replicates(permutations: int, bootstrap: int) -> None:
    for name, value in (("permutations", permutations), ("bootstrap", bootstrap)):
        if not is_whole(value):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    if permutations < 2:
        raise ValueError(f"permutations must be at least 2, got {permutations}")
    if bootstrap == 1 or bootstrap < 0:
        raise ValueError(f"bootstrap must be 0 or at least 2 replicates, got {bootstrap}")


class FewSamplesWarning(UserWarning):
    """There are fewer samples than `enough_samples` asks for."""


def _warn_of_few_samples(
    counted: Sequence[float], enough: Sequence[float], rows: int, columns: int, classes: int
) -> None:
    for number, wanted in zip(counted, enough, strict=True):
        if number < wanted:
            warnings.warn(
                f"{number:.0f} samples are few for {rows} x {columns} clusters and {classes} classes: {wanted:.0f}"
                " would keep noise under half of the label's entropy before correction; trust the intervals, take"
                " more samples or fewer clusters",
                FewSamplesWarning,
                stacklevel=3,
            )
            return
