"""Partial information decomposition of a label by the posteriors of heads that were trained on other rows.

A head that has not seen these rows is a held-out readout of its modality, and costs nothing more. Its logits are
calibrated: in q(y | x) ~ p(y) exp(w z(y | x)), the weight w of each fold is fitted on the other fold
(`ecsfusion.pid.pooling`), so that an overconfident head claims no more than it knows, and one that knows nothing says
the prior. All modalities together are read by the pool of all heads. The union information follows from the posteriors
(`ecsfusion.pid.union`), as it does from readouts that are fitted here (`ecsfusion.pid.posteriors`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from ecsfusion_kernels import gather_posteriors, pool_posteriors, pool_weights, row_information
from ecsfusion_kernels.ops.pool_weights import MAX_READOUTS
from torch import Tensor

from ecsfusion.pid.by_row import squared_sums
from ecsfusion.pid.copies import moved
from ecsfusion.pid.decomposition import PID, entropy
from ecsfusion.pid.folds import Folds, folds_by_place, logit_keys, make_folds
from ecsfusion.pid.inputs import check_classes
from ecsfusion.pid.posteriors import TINY, Known, Posteriors, best_of, change_by_labels
from ecsfusion.pid.replayed import replayed
from ecsfusion.pid.threads import one_thread
from ecsfusion.pid.uncertainty import measure, on_device
from ecsfusion.pid.union import Solved, matched, most_captured, solve_union, union_of

CALIBRATION_FOLDS = 2
MIN_CLUSTERS, MAX_CLUSTERS = 24, 128
"""Clusters of posteriors in the union information: two per class within these bounds. What they lose is part of the
interval; with more of them few rows seem to know what is not in them."""
TOLERANCE = 1e-2
"""Certified width in bits at which the solver may stop, which is less than the posteriors are known to."""
MAX_ITERATIONS = 100
"""Of the solver. Heads that are nearly sure of hundreds of classes take more, which changes no value (3 000 rows, 300
classes: 5 s of one core, and 18 s with 500)."""
JOINT = ""
"""The key of the head that reads all modalities, which no modality has."""


def head_pids(
    logits: Mapping[str, Tensor],
    joint_logits: Tensor | None,
    labels: Tensor,
    pairs: Sequence[tuple[str, str]],
    num_clusters: int | None = None,
    random_seed: int = 0,
    groups: Tensor | None = None,
) -> dict[str, PID]:
    """What modalities know about the label, as their heads show it; in bits.

    Args:
        logits: (N, C) floating point, by modality: of the head that reads this modality alone.
        joint_logits: (N, C) of a head that reads all modalities; None where there is none.
        labels: (N,) int64 class indices.
        pairs: names of two modalities, or of one and then "rest", all the others.
        num_clusters: clusters of posteriors in the union information; None for two per class, at least 24.
        random_seed: of clusters, and of the keys by which equal rows are found.
        groups: (N,) int64 numbers from 0 of the source of each row, see `make_folds`; None where every row has its own.
            Rows are dealt to folds by where they stand, so that the values are those of rows in this order.

    Returns:
        A PID for each pair, by name ("image, audio"), with floors and intervals. Its values are what the heads prove on
        these rows, to the interval of the union information. `conditional_mutual_information` and `dependence` are
        None: heads do not show whether the label ties the modalities (`ecsfusion.pid.dependence`). A logit that is NaN
        is read as 0, and an infinite one as the largest finite number.

    Raises:
        TypeError: for labels that are not int64, and logits that are no floating point numbers.
        ValueError: for shapes that do not fit, pairs that are not of two sides, and, on a CPU, labels that are no
            classes.
    """
    _check(logits, joint_logits, labels, pairs, groups)
    logits = {name: rows.detach() for name, rows in logits.items()}
    joint_logits = None if joint_logits is None else joint_logits.detach()
    others = {name: [other for other in logits if other != name] for name in logits}
    sides = [([a], others[a] if b == "rest" else [b]) for a, b in pairs]
    classes = next(iter(logits.values())).shape[1]
    if num_clusters is None:
        num_clusters = min(max(2 * classes, MIN_CLUSTERS), MAX_CLUSTERS)
    with one_thread():
        posteriors = information_of_heads(
            logits,
            joint_logits,
            labels,
            sides,
            min(num_clusters, len(labels)),
            TOLERANCE,
            random_seed,
            groups,
        )
        measured = on_device(measure(posteriors).limit._replace(dependence=None), labels.device)
    pids = {}
    for place, (a, b) in enumerate(pairs):
        atoms: dict[str, Any] = {
            part: None if values is None else values[place] for part, values in measured._asdict().items()
        }
        pids[f"{a}, {b}"] = PID(**atoms, names=(a, b), num_samples=len(labels), num_classes=classes)
    return pids


def _check(
    logits: Mapping[str, Tensor],
    joint_logits: Tensor | None,
    labels: Tensor,
    pairs: Sequence[tuple[str, str]],
    groups: Tensor | None,
) -> None:
    """Check what `head_pids` is given; the host reads labels that are on a CPU, and nothing of a GPU."""
    if not pairs:
        raise ValueError('pairs must hold at least one pair, such as ("image", "audio") or ("image", "rest")')
    for a, b in pairs:
        unknown = next((name for name in (a, b) if name not in (*logits, "rest")), None)
        if unknown is not None:
            raise ValueError(
                f'pairs name {unknown!r}, but logits hold {list(logits)}; name one of them, or "rest"'
            )
        if a not in logits or a == b:
            raise ValueError(f'pairs must name a modality and another one or "rest", got {(a, b)}')
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}; convert classes with labels.long()")
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"labels must hold one class for each of N > 0 rows, got shape {tuple(labels.shape)}"
        )
    first = next(iter(logits.values()))
    every = {f"logits[{name!r}]": rows for name, rows in logits.items()}
    for name, rows in (every if joint_logits is None else {**every, "joint_logits": joint_logits}).items():
        if not rows.is_floating_point():
            raise TypeError(f"{name} must be floating point numbers, got {rows.dtype}; convert with .float()")
        if rows.ndim != 2 or rows.shape != (len(labels), first.shape[1]):
            raise ValueError(
                f"{name} must have a row for each of the {len(labels)} labels, and the classes of every other head, "
                f"got the shape {tuple(rows.shape)}"
            )
    if groups is not None and groups.shape != labels.shape:
        raise ValueError(
            f"groups must hold one number for each of the {len(labels)} rows, got shape {tuple(groups.shape)}"
        )
    if labels.device.type == "cpu":
        check_classes(labels, first.shape[1])


def information_of_heads(
    logits: Mapping[str, Tensor],
    joint_logits: Tensor | None,
    labels: Tensor,
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    num_clusters: int,
    tolerance: float,
    random_seed: int,
    groups: Tensor | None = None,
) -> Posteriors:
    """What the heads of both sides of each pair know about the label.

    The heads were fitted on other rows, so there is no limit for many rows: both halves of `Known` are the same.

    Args:
        logits: as in `head_pids`.
        joint_logits: as in `head_pids`; it is read where the two sides of a pair are all modalities.
        labels: (N,) int64.
        sides: pairs of sides; a side is some modalities.
        num_clusters: clusters of posteriors in the union information.
        tolerance: of the solver, in bits.
        random_seed: of clusters, and of the keys by which equal rows are found.
        groups: as in `head_pids`.
    """
    names = list(logits)
    every = [*logits.values(), *([] if joint_logits is None else [joint_logits])]
    alone = [frozenset(side) for pair in sides for side in pair]
    together = [frozenset([*first, *second]) for first, second in sides]
    singles = [frozenset([name]) for side in alone for name in names if name in side]
    pools = list(dict.fromkeys([*singles, *alone, *together]))
    heads = tuple(
        tuple(
            k
            for k in range(len(every))
            if (k < len(names) and names[k] in pool_) or len(pool_) == k == len(names)
        )
        for pool_ in pools
    )
    # The weights of one fold may suit the other less than a single head does.
    members = tuple(
        tuple(pools.index(frozenset([name])) for name in names if name in pool_)
        if pool_ in alone and len(pool_) > 1
        else ()
        for pool_ in pools
    )
    chosen = tuple(pools.index(pool_) for pool_ in [*alone[::2], *alone[1::2], *together])
    of_groups: Sequence[Tensor] = ()
    if groups is not None:
        places = torch.arange(len(labels), device=labels.device)
        of_groups = make_folds(places, labels, groups, CALIBRATION_FOLDS)
    found = replayed(
        _of_heads,
        [*every, labels, *of_groups],
        (Pools(heads, members, chosen), num_clusters, tolerance, random_seed),
        # The weights of more heads are not fitted by a kernel.
        most_captured(tolerance) if len(every) <= MAX_READOUTS else 0,
    )
    # The host reads all that it needs at once.
    prior, known, squares, num_groups, worth, *solved = moved(found[:-1], "cpu")
    union = union_of(Solved._make([*solved, found[-1]]))
    label_bits = entropy(prior, 1)
    known = known.clamp_min(0.0)
    nothing = torch.zeros_like(known)
    change = change_by_labels(union, known[:2], label_bits)

    def twice(part: Tensor) -> Tensor:
        return part.expand(2, -1)

    return Posteriors(
        Known(
            first=twice(known[0]),
            second=twice(known[1]),
            joint=twice(known[2]),
            # The labels in place of the posteriors.
            union=twice(union.value + change),
            lost=twice(union.high - union.low),
            product=known[2],
            beyond_lines=nothing,
            rules=nothing,
            unresolved=union.unresolved,
            displaced=(union.change - change).abs(),
        ),
        squares,
        len(labels),
        num_groups,
        prior,
        worth,
        sides,
    )


class Pools(NamedTuple):
    """Which heads are read together."""

    heads: tuple[tuple[int, ...], ...]
    """The numbers of the heads of each pool."""
    members: tuple[tuple[int, ...], ...]
    """Those of the pools that may know more than this one, for each pool."""
    chosen: tuple[int, ...]
    """The pools of the first sides of P pairs, of the second, and of both together."""


def _of_heads(*given: Any) -> tuple[Tensor, ...]:
    """All that heads show, as far as the host need not read it.

    Args:
        given: the logits (N, C) of each head; labels (N,); the parts of `Folds`, where the rows have groups; the pools;
            and of the union information the number of clusters, the tolerance and the random seed.

    Returns:
        p(y), (C,); what the first sides of P pairs, the second, and both together tell about the labels, (3, P) in
        bits; `squared_sums`, (4, P); the number of groups, and what they are worth; and the parts of `Solved`.
    """
    *tensors, pools, num_clusters, tolerance, random_seed = given
    num_heads = 1 + max(number for numbers in pools.heads for number in numbers)
    logits, labels, of_groups = tensors[:num_heads], tensors[num_heads], tensors[num_heads + 1 :]
    by_group = None
    if of_groups:
        folds = Folds(*of_groups)
    else:
        folds, by_group = folds_by_place(logit_keys(logits, random_seed), labels, CALIBRATION_FOLDS)
    labels = labels[folds.order]
    # `bincount` lets the host wait for the largest label.
    counts = torch.zeros(logits[0].shape[1], dtype=torch.float64, device=labels.device)
    prior = counts.scatter_(0, labels, 1.0, reduce="add") / len(labels)
    log_prior = prior.clamp_min(TINY).log()
    of_sides = _of_sides(logits, labels, folds, pools, prior, log_prior)
    rows, unsure, roots = row_information(of_sides, labels, log_prior)
    rows, sides = rows.view(3, -1, len(labels)), 2 * len(of_sides) // 3
    solved = solve_union(
        of_sides[:sides],
        unsure[:sides],
        roots[:sides],
        labels,
        num_clusters,
        tolerance,
        MAX_ITERATIONS,
        random_seed,
    )
    by_row = torch.cat([rows, solved.pointwise.unsqueeze(0)]).unsqueeze(1)
    if by_group is not None:
        by_row = by_row[..., by_group]
    squares = squared_sums(by_row, folds.group, bool(of_groups))
    return prior, rows.mean(-1), squares, folds.num_groups, folds.worth, *solved


def _of_sides(
    logits: Sequence[Tensor], labels: Tensor, folds: Folds, pools: Pools, prior: Tensor, log_prior: Tensor
) -> Tensor:
    """Calibrated posteriors of both sides of P pairs and of both together, (3 P, N, C) float64.

    Args:
        logits: (N, C) of each head.
        labels: (N,) int64, in the order of the folds, as the results.
        folds: of the rows.
        pools: which heads are read together.
        prior: p(y), (C,) float64.
        log_prior: its natural logarithm.
    """
    # A head may favour a class everywhere, as untrained ones do; that is taken from it before its weight is fitted.
    told = gather_posteriors(torch.stack(list(logits)), folds.order)
    # Each head ends as soon as its own mean is near the prior; on a GPU so it is in one call.
    on_cpu = told.device.type == "cpu"
    told = torch.stack([matched(one, prior) for one in told]) if on_cpu else matched(told, prior)
    scores = (told.clamp_min(TINY).log() - log_prior).float()
    posteriors = matched(_calibrated(scores, pools.heads, labels, log_prior, folds.fold), prior)
    if any(pools.members):
        posteriors = torch.stack(
            [
                _best(torch.stack([posteriors[k] for k in (pool_, *others)]), labels)
                for pool_, others in enumerate(pools.members)
            ]
        )
    if pools.chosen != tuple(range(len(posteriors))):
        posteriors = torch.stack([posteriors[pool_] for pool_ in pools.chosen])
    return posteriors


def _best(posteriors: Tensor, labels: Tensor) -> Tensor:
    """That (N, C) of several posteriors (K, N, C) which tells most about the labels (N,)."""
    if len(posteriors) == 1:
        return posteriors[0]
    return posteriors.index_select(0, best_of(posteriors.clamp_min(TINY).log(), labels).view(1))[0]


def _calibrated(
    scores: Tensor, heads: Sequence[Sequence[int]], labels: Tensor, log_prior: Tensor, fold: Tensor
) -> Tensor:
    """Posteriors (B, N, C) float64 of pools of heads; the weights of each fold are fitted on the other.

    Args:
        scores: (M, N, C) float32: the logarithm of the posterior of each head over the prior.
        heads: the numbers of the heads of B pools.
        labels: (N,) int64.
        log_prior: (C,) float64.
        fold: (N,) int64, 0 or 1.
    """
    most = max(len(numbers) for numbers in heads)
    nothing = torch.zeros_like(scores[0])
    padded = [[*(scores[k] for k in numbers), *[nothing] * (most - len(numbers))] for numbers in heads]
    parts = torch.stack([part for pool_ in padded for part in pool_]).unflatten(0, (len(heads), most))
    # The rows of the first fold, then those of the other; a pool is fitted on each.
    # Sorted as bytes, which is an eighth of the work.
    by_fold = fold.to(torch.uint8).argsort(stable=True)
    ends = torch.arange(CALIBRATION_FOLDS + 1, device=labels.device)
    bounds = (fold[:, None] < ends).sum(0)
    weights = pool_weights(parts, labels, log_prior.float(), by_fold, bounds)
    return pool_posteriors(parts, weights, fold, log_prior)
