"""`fast_pid` and `fast_pids`: from embeddings and labels to a partial information decomposition, in bits.

They check their arguments, let one of two methods measure (`ecsfusion.pid.posteriors`, `ecsfusion.pid.clusters`), and
return a `PID` for each pair of modalities.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ecsfusion.pid.checks import check_positive
from ecsfusion.pid.clusters import FewSamplesWarning, estimate_pairs, split_by_pair
from ecsfusion.pid.decomposition import PID, Decomposition
from ecsfusion.pid.discretize import pair_names
from ecsfusion.pid.folds import (
    are_categories,
    copies_of_rows,
    has_sparse_cells,
    numbered_by_rows,
    row_keys,
)
from ecsfusion.pid.inputs import (
    Array,
    check_cells,
    check_classes,
    check_finite,
    check_rows_per_class,
    class_labels,
    named_modalities,
    numbered_words,
    row_groups,
)
from ecsfusion.pid.options import EstimatorOptions
from ecsfusion.pid.posteriors import held_out_information
from ecsfusion.pid.series import alike_neighbours
from ecsfusion.pid.threads import one_thread
from ecsfusion.pid.uncertainty import Measured, hides_much, measure, on_device

MAX_REPEATS = 0.2
"""The share of the rows of a modality that may repeat others before a warning asks for groups."""
MIN_DISTINCT = 64
"""With fewer distinct rows a modality is taken for a table of categories, whose rows repeat by nature."""


class RepeatedRowsWarning(UserWarning):
    """Rows may share a source: many of a modality are equal where others are not, or neighbours are alike."""


def fast_pid(
    embeddings: Mapping[str, Array] | Sequence[Array],
    labels: Array | Sequence[Any],
    *,
    groups: Array | Sequence[Any] | None = None,
    num_classes: int | None = None,
    bins: int | None = None,
    method: Literal["posteriors", "clusters"] = "posteriors",
    num_clusters: int | Literal["auto"] | None = None,
    num_components: int | None = None,
    correction: bool | None = None,
    permutations: int | None = None,
    bootstrap: int | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> PID:
    """What two modalities know about the label: each alone, both alike, and only both together; in bits.

    By default the decomposition is that of held-out posteriors (`ecsfusion.pid.posteriors`): readouts of each modality
    and of both together are fitted on some of the rows and judged on the others. What they know there is a lower bound
    of the information, in `held_out`. Readouts that are fitted on half of the rows know less; how much less gives the
    limit for many rows, which the values of the result are. The intervals hold both. Neither the order of the rows nor
    the units of the columns matter, and variance that says nothing about the label does not either.

    `method="clusters"` clusters the embeddings and counts, as published (arXiv 2509.20840), with the bias of counting
    removed. It sees what 20 clusters of the largest variance know.

    Args:
        embeddings: two modalities by name, or a sequence of two ("x1", "x2"); each (N, D_m), tensor or
            array, real, all on one device. The computation runs on that device.
        labels: (N,) class indices from 0, or the names of classes as strings; (N, L) for L labels, decomposed one by
            one; real numbers with `bins`.
        groups: (N,) the source of each row, such as a picture or a subject; integers or strings. Rows of one source
            stay in one fold and count as one in intervals; in floors they do where they have one label, and for more
            where their labels are mixed. None where every row has a source of its own.
        num_classes: C; None for the largest label + 1.
        bins: the number of classes into which a real target is cut at its quantiles.
        method: "posteriors" or "clusters".
        num_clusters: clusters per modality: of posteriors, by default 128, or 64 for less than 4000 rows, which only
            bounds the cost; of embeddings 20, or "auto".
        num_components: clusters only: principal directions kept before clustering; None for max(5, C - 1), at most 16.
        correction: clusters only: False for plug-in values, as published.
        permutations: clusters only: replicates per null distribution, for the correction and the floors; 16.
        bootstrap: clusters only: replicates for the intervals, 0 for none; 50. Those of posteriors need none, so that 0
            changes nothing there.
        tolerance: certified width in bits at which the solver may stop.
        seed: of folds, clustering and replicates. The global random generators are neither used nor changed.

    Returns:
        PID; with leading dimension (L,) for labels (N, L). In 1 to 2 of 100 estimates an atom of pure noise exceeds its
        floor. The intervals cover at least 95 of 100 true values (benchmarks/bench_known_truth.py) where the rows are
        enough; `enough_samples` says how many would be.

    Raises:
        TypeError: for embeddings or labels of the wrong type.
        ValueError: for anything else that is not two finite matrices and N class indices, and for bad options.

    Warns:
        FewSamplesWarning: when there are fewer samples than `enough_samples` asks for, and when classes of one row
            or of one source hold much of the label's entropy.
        RepeatedRowsWarning: when `groups` is not given and many rows of one modality are equal, or rows that follow
            each other are alike beyond their class, as in recordings.
    """
    options = EstimatorOptions(
        method, num_clusters, num_components, correction, permutations, bootstrap, tolerance, seed
    )
    with one_thread():
        named = named_modalities(embeddings)
        if len(named) != 2:
            raise ValueError(f"embeddings must hold two modalities, got {list(named)}; fast_pids takes more")
        (pid,) = _estimate_pairs(named, labels, groups, num_classes, bins, options).values()
    return pid


def fast_pids(
    embeddings: Mapping[str, Array] | Sequence[Array],
    labels: Array | Sequence[Any],
    *,
    groups: Array | Sequence[Any] | None = None,
    num_classes: int | None = None,
    bins: int | None = None,
    method: Literal["posteriors", "clusters"] = "posteriors",
    num_clusters: int | Literal["auto"] | None = None,
    num_components: int | None = None,
    correction: bool | None = None,
    permutations: int | None = None,
    bootstrap: int | None = None,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> dict[str, PID]:
    """`fast_pid` for two or more modalities: every pair, and each modality against all others together.

    The readouts of a modality are fitted once and serve all of its pairs. "The rest" is all other modalities side by
    side, and knows no less than the best of them; by clusters it is explained at
    `ecsfusion.pid.discretize.ModalityPairs`.

    Args:
        embeddings: two or more modalities, otherwise as in `fast_pid`.
        labels: as in `fast_pid`.
        groups: as in `fast_pid`.
        num_classes: as in `fast_pid`.
        bins: as in `fast_pid`.
        method: as in `fast_pid`.
        num_clusters: as in `fast_pid`.
        num_components: as in `fast_pid`.
        correction: as in `fast_pid`.
        permutations: as in `fast_pid`.
        bootstrap: as in `fast_pid`.
        tolerance: as in `fast_pid`.
        seed: as in `fast_pid`.

    Returns:
        PIDs by name: "image, audio" for pairs, and with three or more modalities "image, rest" and so on.

    Raises:
        TypeError: as in `fast_pid`.
        ValueError: as in `fast_pid`.

    Warns:
        FewSamplesWarning: as in `fast_pid`.
        RepeatedRowsWarning: as in `fast_pid`.
    """
    options = EstimatorOptions(
        method, num_clusters, num_components, correction, permutations, bootstrap, tolerance, seed
    )
    with one_thread():
        return _estimate_pairs(named_modalities(embeddings), labels, groups, num_classes, bins, options)


def _estimate_pairs(
    named: dict[str, Tensor],
    labels: Array | Sequence[Any],
    groups: Array | Sequence[Any] | None,
    num_classes: int | None,
    bins: int | None,
    options: EstimatorOptions,
) -> dict[str, PID]:
    """`fast_pids` of checked embeddings."""
    start = time.perf_counter()
    first = next(iter(named.values()))
    labels, words = (labels, None) if bins is not None else numbered_words(labels)
    targets = class_labels(labels, len(first), first.device, bins)
    if num_classes is not None:
        check_positive(num_classes, "num_classes")
    if first.device.type == "cpu" or num_classes is None or options.method == "posteriors":
        num_classes = check_classes(targets, num_classes)
    if first.device.type == "cpu" or options.method == "posteriors":
        check_finite(named)
    given_clusters = options.num_clusters if isinstance(options.num_clusters, int) else 1
    check_cells(given_clusters, given_clusters, num_classes)
    numbered = None if groups is None else row_groups(groups, len(first), first.device)
    if options.method == "clusters":
        if numbered is not None:
            raise ValueError('groups is an option of method="posteriors"; leave it out')
        pids = estimate_pairs(named, targets, num_classes, options)
    else:
        if numbered is None:
            _warn_of_shared_sources(named, targets, options.seed)
        pids = _by_posteriors(named, targets, num_classes, numbered, options, words)
    return split_by_pair(pids, pair_names(list(named)), time.perf_counter() - start)


def _by_posteriors(
    named: dict[str, Tensor],
    targets: Tensor,
    num_classes: int,
    groups: Tensor | None,
    options: EstimatorOptions,
    words: list[list[str]] | None,
) -> PID:
    """One PID of all pairs and labels, from held-out posteriors; a warning names classes by their words."""
    num_groups = None if groups is None else int(groups.max()) + 1
    names = list(named)
    pairs = pair_names(names)
    others = {name: [other for other in names if other != name] for name in names}
    sides = [([a], others[a] if b == "rest" and len(names) > 2 else [b]) for a, b in pairs]
    num_clusters = options.posterior_clusters(len(targets))
    number = num_groups or len(targets)
    measured: list[Measured] = []
    unseen: tuple[str, list[Any]] | None = None
    keys = row_keys(list(named.values()), options.seed)
    numbered = [numbered_by_rows(keys, column) for column in targets.reshape(len(targets), -1).T]
    for classes, _ in numbered:
        check_rows_per_class(len(targets), len(classes))
    for place, (classes, label) in enumerate(numbered):
        posteriors = held_out_information(
            named, label, len(classes), sides, groups, num_clusters, options.tolerance, options.seed
        )
        measured.append(measure(posteriors))
        if posteriors.unseen is not None and hides_much(posteriors):
            label_name = "labels" if targets.ndim == 1 else f"labels[:, {place}]"
            hidden = classes[posteriors.unseen > 0].sort().values.tolist()
            unseen = unseen or (
                label_name,
                hidden if words is None else [words[place][n] for n in hidden],
            )
            # How many would do, nobody can know: not those that there are.
            measured[-1] = measured[-1]._replace(enough=measured[-1].enough.clamp_min(2 * number))
    shape = (len(pairs), *targets.shape[1:])

    def tensor(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values, 1)
        return stacked.reshape(*shape, *values[0].shape[1:])

    def pid(parts: list[Decomposition], **more: Any) -> PID:
        each: dict[str, Any] = {
            name: None if getattr(parts[0], name) is None else tensor([getattr(part, name) for part in parts])
            for name in Decomposition._fields
        }
        return PID(
            **on_device(Decomposition(**each), targets.device)._asdict(),
            names=("x1", "x2"),
            num_samples=len(targets),
            num_groups=num_groups,
            num_classes=num_classes,
            **more,
        )

    enough = tensor([part.enough for part in measured])
    if unseen is not None:
        _warn_of_unseen_classes(*unseen, groups)
    else:
        floors = [part.limit.synergy_floor for part in measured]
        floor = max(float(each.max()) for each in floors if each is not None)
        _warn_of_few_samples(number, float(enough.max()), floor, groups)
    return pid(
        [part.limit for part in measured],
        held_out=pid([part.held_out for part in measured]),
        enough_samples=enough.to(targets.device),
    )


def _warn_of_few_samples(num_samples: int, enough: float, floor: float, groups: Tensor | None) -> None:
    if num_samples < enough:
        what = "samples" if groups is None else "groups"
        warnings.warn(
            f"{num_samples} {what} are few for these embeddings: the readouts know less than the limit that is"
            f" reported, noise alone reaches {floor:.2g} bits, or so many columns hide what there is; about"
            f" {enough:.3g} would settle it; held_out has what is proven, and the intervals hold both",
            FewSamplesWarning,
            stacklevel=5,
        )


def _warn_of_unseen_classes(name: str, classes: list[Any], groups: Tensor | None) -> None:
    """Warn of classes of one row or of one source, of which nothing can be known."""
    named = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
    what, todo = (
        (
            "distinct row",
            "give more rows of each class, or fewer classes (numbers that name rows are no labels)",
        )
        if groups is None
        else ("source", "give rows of more sources of each class; groups= must not follow from the labels")
    )
    warnings.warn(
        f"{name} have only one {what} of each of these classes ({len(classes)} in all): {named}; no readout can see"
        " such a class and be judged on it, so nothing is known of them, and the intervals do not hold what they tell;"
        f" {todo}",
        FewSamplesWarning,
        stacklevel=5,
    )


def _warn_of_shared_sources(named: dict[str, Tensor], targets: Tensor, random_seed: int) -> None:
    """Warn of a modality whose rows repeat where those of another differ, or are like their neighbours.

    Cross-fitting would leak.
    """
    leaks = "would be read by readouts that have seen them; give groups=, the source of each row"
    columns = targets.reshape(len(targets), -1).T
    embeddings = list(named.values())
    repeated, keys = None, row_keys(embeddings, random_seed)
    if are_categories(embeddings, keys, random_seed):
        if any(has_sparse_cells(keys, copies_of_rows(keys, column)) for column in columns):
            warnings.warn(
                "embeddings have few distinct rows, as tables of categories have, and few rows that are equal in all of"
                " them: these are read as copies of each other, so that nothing is known of what tells only in their"
                " cell; give groups=range(len(labels)) where each row was observed by itself, or the number of the row"
                " that each is a copy of",
                RepeatedRowsWarning,
                stacklevel=4,
            )
            return
    else:
        repeated = repeated_rows(named, random_seed)
    series = next(filter(None, (alike_neighbours(named, column) for column in columns)), None)
    if repeated is not None:
        name, number = repeated
        found = (
            f"embeddings[{name!r}] has only {number} distinct rows of {len(named[name])}: rows that share a source"
            f" (a picture, a subject) {leaks}"
        )
    elif series is not None:
        name, correlation = series
        found = (
            f"embeddings[{name!r}] has rows that are like the rows beside them, beyond their class (correlation"
            f" {correlation:.2g}): rows of a recording, a subject or a time {leaks}, such as its recording or a longer"
            " stretch of time; only in a table that is sorted by its values this means nothing"
        )
    else:
        return
    warnings.warn(found, RepeatedRowsWarning, stacklevel=4)


def repeated_rows(embeddings: Mapping[str, Tensor], random_seed: int = 0) -> tuple[str, int] | None:
    """The first modality whose rows (N, D_m) repeat where those of another differ, and how many of them are distinct.

    It is None if there is none, or if a modality has so few distinct rows that it is a table of categories.
    """
    distinct = {name: len(row_keys([rows], random_seed).unique()) for name, rows in embeddings.items()}
    whole = max(distinct.values())
    return next(
        (
            (name, number)
            for name, number in distinct.items()
            if MIN_DISTINCT <= number < (1 - MAX_REPEATS) * whole
        ),
        None,
    )
