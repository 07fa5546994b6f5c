"""Weights of pooled readouts by damped Newton steps; programs share the rows of a pool."""

# Tuples grow in kernels, where an annotation of their type means something else.
# mypy: disable-error-code="assignment, misc, var-annotated"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..grid_barrier import resident_programs, wait_for_programs
from ..language import Variant, aligned, jit, options, padded, runs_kernels, skips_dispatch, tl
from ..reference.pool_weights import (
    CAUTION,
    FIRST_DAMPING,
    FIRST_SUM,
    ITERATIONS,
    LARGEST,
    MAX_FITTED_ROWS,
    MAX_RISE,
    TINY,
    WEIGHT_COST,
)
from ..reference.pool_weights import pool_weights as reference_pool_weights

__all__ = ["pool_weights"]

MAX_READOUTS = 8
NUM_WARPS = 4
"""Few, so that many programs share a pool, and each thread has one row."""
MAX_PARTS = 32
"""The most parts of the rows of a pool: every program adds up the sums of all."""
STILL = 1e-6
"""The steps of a pool end when no weight changes by more."""
CONSTANTS = {
    "CAUTION": CAUTION,
    "FIRST_DAMPING": FIRST_DAMPING,
    "FIRST_SUM": FIRST_SUM,
    "LARGEST": LARGEST,
    "MAX_RISE": MAX_RISE,
    "STILL": STILL,
    "TINY": TINY,
    "WEIGHT_COST": WEIGHT_COST,
}


@jit
def _clamped(logits, LARGEST):
    """Within the bounds, and 0 where it is not finite."""
    finite = (logits < float("inf")) & (logits > -float("inf"))
    return tl.where(finite, tl.minimum(tl.maximum(logits, -LARGEST), LARGEST), 0.0)


@jit
def _zeros(NUMBER: tl.constexpr, ROWS: tl.constexpr, DTYPE: tl.constexpr):
    """A tuple of vectors: a thread has the same rows in all of them, so that sums over classes need no other thread."""
    found = ()
    for _ in tl.static_range(NUMBER):
        found += (tl.zeros((ROWS,), DTYPE),)
    return found


@jit
def _sum(first, second, NUMBER: tl.constexpr):
    """The sum of two tuples; of the wider type."""
    found = ()
    for k in tl.static_range(NUMBER):
        found += (first[k] + second[k],)
    return found


@jit
def _where(condition, first, second, NUMBER: tl.constexpr):
    """One of two tuples."""
    found = ()
    for k in tl.static_range(NUMBER):
        found += (tl.where(condition, first[k], second[k]),)
    return found


@jit
def _sum_over_rows(
    vectors, FIRST: tl.constexpr, NUMBER: tl.constexpr, ROWS: tl.constexpr, LEVELS: tl.constexpr
):
    """The sums (2 ** LEVELS,) of as many vectors (ROWS,) from the one at FIRST, in one reduction; 0 beyond the last."""
    columns = ()
    for k in tl.static_range(FIRST, FIRST + (1 << LEVELS)):
        if k < NUMBER:
            columns += (vectors[k],)
        else:
            columns += (tl.zeros((ROWS,), tl.float64),)
    for level in tl.static_range(LEVELS):
        joined = ()
        for k in tl.static_range(1 << (LEVELS - level - 1)):
            joined += (tl.join(columns[k], columns[k + (1 << (LEVELS - level - 1))]),)
        columns = joined
    return tl.sum(tl.reshape(columns[0], (ROWS, 1 << LEVELS)), 0)


@jit
def _store_sum_of_parts(sums_ptr, total_ptr, num_parts, PARTS: tl.constexpr, SUMS: tl.constexpr):
    """Stores the sums over the parts where all threads can read them, after all have read what was there.

    Their order does not depend on who has stored them.
    """
    parts, index = tl.arange(0, PARTS), tl.arange(0, SUMS)
    place = sums_ptr + parts[:, None] * SUMS + index[None, :]
    total = tl.sum(tl.load(place, (parts < num_parts)[:, None], other=0.0, cache_modifier=".cg"), 0)
    tl.debug_barrier()
    tl.store(total_ptr + index, total)
    tl.debug_barrier()


@jit
def _gather(
    logits_ptr,
    labels_ptr,
    prior_ptr,
    rows_ptr,
    fitted_ptr,
    sums_ptr,
    first,
    step,
    begin,
    end,
    num_readouts,
    num_rows,
    num_classes,
    max_fitted_rows,
    by_rows,
    LARGEST: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Stores the logits of the fitted rows from `begin` to `end`, centered and less that of the label.

    Stores at `sums_ptr` the sums over the rows of log p(label), and of the squares of each readout.
    """
    index = tl.arange(0, SUMS)
    told = tl.zeros((ROWS,), tl.float64)
    sums = tl.zeros((SUMS,), tl.float64)
    for readout in range(num_readouts):
        square = tl.zeros((ROWS,), tl.float64)
        for start in range(begin, end, ROWS):
            place = start + tl.arange(0, ROWS)
            inside = place < end
            row = first + place * step
            if by_rows:
                row = tl.load(rows_ptr + row, inside, other=0)
            label = tl.load(labels_ptr + row, inside, other=0)
            if readout == 0:
                told += tl.load(prior_ptr + label, inside, other=0.0)
            given = logits_ptr + (readout * num_rows + row) * num_classes
            mean = tl.zeros((ROWS,), tl.float32)
            for c in range(0, num_classes, CLASSES):
                for i in tl.static_range(CLASSES):
                    there = place < tl.where(c + i < num_classes, end, 0)
                    mean += tl.load(given + c + i, there, other=0.0)
            mean /= num_classes
            at_label = _clamped(tl.load(given + label, inside, other=0.0) - mean, LARGEST)
            for c in range(0, num_classes, CLASSES):
                for i in tl.static_range(CLASSES):
                    there = place < tl.where(c + i < num_classes, end, 0)
                    logits = _clamped(tl.load(given + c + i, there, other=0.0) - mean, LARGEST)
                    logits = tl.where(there, logits, 0.0)
                    square += logits * logits
                    # Rows beside rows. From the logit of the label: of rows that are told fully, sums of large logits
                    # would leave only rounding.
                    kept = fitted_ptr + (readout * num_classes + c + i) * max_fitted_rows.to(tl.int64) + place
                    tl.store(kept, logits - at_label, there)
        sums = tl.where(index == readout + 1, tl.sum(square, 0), sums)
    tl.store(sums_ptr + index, tl.where(index == 0, tl.sum(told, 0), sums))


@jit
def _logits_at(of_class, row, end, step, num_readouts, READOUTS: tl.constexpr):
    """The logits of rows below `end` for one class, a vector for each readout; `step` lies between two readouts."""
    found = ()
    for k in tl.static_range(READOUTS):
        inside = row < tl.where(k < num_readouts, end, 0)
        found += (tl.load(of_class + k * step + row, inside, other=0.0),)
    return found


@jit
def _score(prior, logits, weights, READOUTS: tl.constexpr):
    """Log p(y) + sum_k w_k z_k(y | x)."""
    score = prior + logits[0] * weights[0]
    for k in tl.static_range(1, READOUTS):
        score += logits[k] * weights[k]
    # Not below a number, so that differences of two are numbers.
    return tl.maximum(score, -1e30)


@jit
def _store_moments(
    fitted_ptr,
    prior_ptr,
    sums_ptr,
    candidate,
    begin,
    end,
    max_fitted_rows,
    num_readouts,
    num_classes,
    READOUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    GROUPS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Stores sums over the rows: the log norm, the mean of each readout, the lower triangle of their covariances.

    Some classes are read at once, and each only once: sums of before shrink where a larger score is found.
    """
    weights = ()
    for k in tl.static_range(READOUTS):
        weights += (candidate[k].to(tl.float32),)
    step = max_fitted_rows.to(tl.int64) * num_classes
    sums = _zeros(GROUPS, 1 << LEVELS, tl.float64)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        largest, norm = tl.full((ROWS,), -1e30, tl.float32), tl.zeros((ROWS,), tl.float32)
        mean = _zeros(READOUTS, ROWS, tl.float32)
        square = _zeros(PAIRS, ROWS, tl.float32)
        for c in range(0, num_classes, CLASSES):
            logits, scores = (), ()
            larger = largest
            for i in tl.static_range(CLASSES):
                of_class = fitted_ptr + (c + i) * max_fitted_rows.to(tl.int64)
                there = tl.where(c + i < num_classes, end, 0)
                of_readouts = _logits_at(of_class, row, there, step, num_readouts, READOUTS)
                prior = tl.load(prior_ptr + c + i, c + i < num_classes, other=-float("inf"))
                score = _score(prior, of_readouts, weights, READOUTS)
                larger = tl.maximum(larger, score)
                logits += (of_readouts,)
                scores += (score,)
            shrunk = tl.exp(largest - larger)
            largest = larger
            norm *= shrunk
            grown, products = (), ()
            for k in tl.static_range(READOUTS):
                grown += (mean[k] * shrunk,)
                for other in tl.static_range(k + 1):
                    products += (square[k * (k + 1) // 2 + other] * shrunk,)
            for i in tl.static_range(CLASSES):
                mass = tl.exp(scores[i] - largest)
                norm += mass
                shares, of_pairs = (), ()
                for k in tl.static_range(READOUTS):
                    share = mass * logits[i][k]
                    shares += (share,)
                    for other in tl.static_range(k + 1):
                        of_pairs += (share * logits[i][other],)
                grown = _sum(grown, shares, READOUTS)
                products = _sum(products, of_pairs, PAIRS)
            mean, square = grown, products
        inverse = 1.0 / norm
        means, found = (), (tl.where(row < end, tl.log(norm) + largest, 0.0).to(tl.float64),)
        for k in tl.static_range(READOUTS):
            means += (mean[k] * inverse,)
        for k in tl.static_range(READOUTS):
            found += (means[k].to(tl.float64),)
        for k in tl.static_range(READOUTS):
            for other in tl.static_range(k + 1):
                of_means = means[k].to(tl.float64) * means[other]
                found += ((square[k * (k + 1) // 2 + other] * inverse).to(tl.float64) - of_means,)
        # For each tile of rows: a thread has not the registers to keep as many float64 numbers from one to the next.
        of_groups = ()
        for group in tl.static_range(GROUPS):
            of_groups += (_sum_over_rows(found, group << LEVELS, 1 + READOUTS + PAIRS, ROWS, LEVELS),)
        sums = _sum(sums, of_groups, GROUPS)
    for group in tl.static_range(GROUPS):
        tl.store(sums_ptr + (group << LEVELS) + tl.arange(0, 1 << LEVELS), sums[group])


@jit
def _solved(system, right, READOUTS: tl.constexpr):
    """The solution of a positive definite system, of which the lower triangle is given, by Gauss's elimination."""
    inverses = ()
    for k in tl.static_range(READOUTS):
        inverse = 1.0 / system[k * (k + 1) // 2 + k]
        inverses += (inverse,)
        left, left_right = (), ()
        for i in tl.static_range(READOUTS):
            if i > k:
                factor = system[i * (i + 1) // 2 + k] * inverse
                left_right += (right[i] - factor * right[k],)
            else:
                left_right += (right[i],)
            for j in tl.static_range(i + 1):
                if j > k:
                    left += (system[i * (i + 1) // 2 + j] - factor * system[j * (j + 1) // 2 + k],)
                else:
                    left += (system[i * (i + 1) // 2 + j],)
        system, right = left, left_right
    # From the last number to the first; `found` has them in this order.
    found = ()
    for k in tl.static_range(READOUTS - 1, -1, -1):
        number = right[k]
        for i in tl.static_range(READOUTS - 1, k, -1):
            number -= system[i * (i + 1) // 2 + k] * found[READOUTS - 1 - i]
        found += (number * inverses[k],)
    solution = ()
    for k in tl.static_range(READOUTS):
        solution += (found[READOUTS - 1 - k],)
    return solution


@jit
def _step(
    weights,
    sums_ptr,
    number,
    cost_ptr,
    num_readouts,
    damping,
    rejected,
    CAUTION: tl.constexpr,
    FIRST_SUM: tl.constexpr,
    MAX_RISE: tl.constexpr,
    TINY: tl.constexpr,
    READOUTS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """The weights after a damped Newton step, none of them below 0; `sums_ptr` has the sums at the weights."""
    share = 1.0 / number
    sums_of_pairs_ptr = sums_ptr + 1 + READOUTS
    diagonal = ()
    for k in tl.static_range(READOUTS):
        diagonal += (tl.load(sums_of_pairs_ptr + k * (k + 1) // 2 + k) * share,)
    largest = diagonal[0]
    for k in tl.static_range(1, READOUTS):
        largest = tl.maximum(largest, diagonal[k])
    free, right, ridges = (), (), ()
    for k in tl.static_range(READOUTS):
        gradient = tl.load(sums_ptr + 1 + k) * share + tl.load(cost_ptr + k)
        is_free = tl.where((weights[k] > 0) | (gradient < 0), 1.0, 0.0).to(tl.float64)
        free += (is_free,)
        right += (gradient * is_free,)
        ridge = damping * diagonal[k] + 1e-9 * largest + 1e-12
        # After a step that went too far no weight falls to 0 at once, however flat the loss is around it.
        ridge += CAUTION * rejected * tl.maximum(gradient, 0.0) / tl.maximum(weights[k], TINY)
        ridges += (ridge + 1.0 - is_free,)
    system = ()
    for k in tl.static_range(READOUTS):
        for other in tl.static_range(k + 1):
            if other == k:
                system += (diagonal[k] * free[k] + ridges[k],)
            else:
                covariance = tl.load(sums_of_pairs_ptr + k * (k + 1) // 2 + other) * share
                system += (covariance * free[k] * free[other],)
    direction = _solved(system, right, READOUTS)
    found = ()
    for k in tl.static_range(READOUTS):
        # Where the loss is nearly flat its curvature says nothing about what is far away.
        begin = tl.where(k < num_readouts, tl.full((), FIRST_SUM, tl.float64) / num_readouts, 0.0)
        most = MAX_RISE * weights[k] + begin
        found += (tl.minimum(tl.maximum(weights[k] - direction[k], 0.0), most),)
    return found


@jit(
    do_not_specialize=[
        "num_pools",
        "num_readouts",
        "num_rows",
        "num_classes",
        "max_fitted_rows",
        "rows_of_part",
        "num_parts",
        "num_programs",
        "iterations",
        "by_rows",
    ]
)
def _pool_weights(
    logits_ptr,
    labels_ptr,
    prior_ptr,
    rows_ptr,
    bounds_ptr,
    fitted_ptr,
    weights_ptr,
    sums_ptr,
    totals_ptr,
    arrivals_ptr,
    num_pools: tl.int32,
    num_readouts: tl.int32,
    num_rows: tl.int64,
    num_classes: tl.int32,
    max_fitted_rows: tl.int32,
    rows_of_part: tl.int32,
    num_parts: tl.int32,
    num_programs: tl.int32,
    iterations: tl.int32,
    by_rows: tl.int32,
    CAUTION: tl.constexpr,
    FIRST_DAMPING: tl.constexpr,
    FIRST_SUM: tl.constexpr,
    LARGEST: tl.constexpr,
    MAX_RISE: tl.constexpr,
    STILL: tl.constexpr,
    TINY: tl.constexpr,
    WEIGHT_COST: tl.constexpr,
    READOUTS: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
    PARTS: tl.constexpr,
    SUMS: tl.constexpr,
    GROUPS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Minimize mean(log sum_y p(y) exp(w z(y)) - w z(label)) + cost w over w >= 0.

    The programs of a pool share the parts of its rows. Each adds up the sums of all parts, and makes the same steps.
    The logits of the fitted rows are gathered once. Sums over rows are float64.
    """
    problem, program = (tl.program_id(0) // num_programs).to(tl.int64), tl.program_id(0) % num_programs
    pool, of_set = problem % num_pools, problem // num_pools
    first, size = of_set * 0, of_set * 0 + num_rows
    if by_rows:
        first = tl.load(bounds_ptr + of_set)
        size = tl.load(bounds_ptr + of_set + 1) - first
    step = tl.maximum((size + max_fitted_rows - 1) // max_fitted_rows, 1)
    fitted = ((size + step - 1) // step).to(tl.int32)
    logits_ptr += pool * num_readouts * num_rows * num_classes
    fitted_ptr += problem * num_readouts * max_fitted_rows * num_classes
    arrivals_ptr += problem
    # Sums of the parts, by turns in two places, so that a program that is ahead does not change what another still
    # reads. A part without rows has sums of 0.
    size_of_sums = num_parts * SUMS
    sums_ptr += problem * 2 * size_of_sums
    # What this program has added up for itself: the sums over all parts, at the weights and at the candidate, which
    # change places when it is taken, and in the third place the costs.
    totals_ptr += tl.program_id(0).to(tl.int64) * 3 * SUMS

    for part in range(program, num_parts, num_programs):
        begin = part * rows_of_part
        _gather(
            logits_ptr,
            labels_ptr,
            prior_ptr,
            rows_ptr,
            fitted_ptr,
            sums_ptr + part * SUMS,
            first,
            step,
            begin,
            tl.minimum(begin + rows_of_part, fitted),
            num_readouts,
            num_rows,
            num_classes,
            max_fitted_rows,
            by_rows,
            LARGEST,
            ROWS,
            CLASSES,
            SUMS,
        )
    wait_for_programs(arrivals_ptr, 1, num_programs)
    _store_sum_of_parts(sums_ptr, totals_ptr, num_parts, PARTS, SUMS)
    # Without a row the weights stay 0.
    number = tl.maximum(fitted, 1).to(tl.float64)
    prior_loss = -tl.load(totals_ptr) / number
    cost_ptr, candidate = totals_ptr + 2 * SUMS, ()
    for k in tl.static_range(READOUTS):
        # Bare numbers would be rounded to float32.
        size_of_logits = tl.sqrt(tl.load(totals_ptr + 1 + k) / (number * num_classes))
        tl.store(cost_ptr + k, tl.minimum(size_of_logits, 1.0) * WEIGHT_COST / number)
        candidate += (tl.where(k < num_readouts, tl.full((), FIRST_SUM, tl.float64) / num_readouts, 0.0),)

    weights = ()
    for _ in tl.static_range(READOUTS):
        weights += (tl.full((), 0.0, tl.float64),)
    of_weights = 0
    loss = prior_loss
    damping, rejected = tl.full((), FIRST_DAMPING, tl.float64), tl.full((), 0.0, tl.float64)
    # Before the steps: 0 at the start, and 1 at the prior, where the start overflows or does worse.
    turn, times = 0, 1
    while turn < iterations + 2:
        times += 1
        now_ptr = sums_ptr + (times + 1) % 2 * size_of_sums
        for part in range(program, num_parts, num_programs):
            begin = part * rows_of_part
            _store_moments(
                fitted_ptr,
                prior_ptr,
                now_ptr + part * SUMS,
                candidate,
                begin,
                tl.minimum(begin + rows_of_part, fitted),
                max_fitted_rows,
                num_readouts,
                num_classes,
                READOUTS,
                PAIRS,
                ROWS,
                CLASSES,
                GROUPS,
                LEVELS,
            )
        wait_for_programs(arrivals_ptr, times, num_programs)
        _store_sum_of_parts(now_ptr, totals_ptr + (1 - of_weights) * SUMS, num_parts, PARTS, SUMS)
        new_loss = tl.load(totals_ptr + (1 - of_weights) * SUMS) / number + prior_loss
        for k in tl.static_range(READOUTS):
            new_loss += tl.load(cost_ptr + k) * candidate[k]

        better = new_loss < loss
        taken = better | (turn == 1)
        weights = _where(taken, candidate, weights, READOUTS)
        of_weights = tl.where(taken, 1 - of_weights, of_weights)
        loss = tl.where(taken, new_loss, loss)
        if turn > 1:
            rejected = tl.where(better, tl.minimum(rejected, 1.0), rejected + 1.0)
            damping = tl.where(better, damping / 5.0, damping * 10.0)
            damping = tl.minimum(tl.maximum(damping, 1e-6), 1e6)
        found = _step(
            weights,
            totals_ptr + of_weights * SUMS,
            number,
            cost_ptr,
            num_readouts,
            damping,
            rejected,
            CAUTION,
            FIRST_SUM,
            MAX_RISE,
            TINY,
            READOUTS,
            PAIRS,
        )
        from_prior = (turn == 0) & (better == 0)
        candidate = _where(from_prior, weights, found, READOUTS)
        moved = tl.abs(candidate[0] - weights[0])
        for k in tl.static_range(1, READOUTS):
            moved = tl.maximum(moved, tl.abs(candidate[k] - weights[k]))
        turn = tl.where(from_prior, 1, tl.maximum(turn + 1, 2))
        turn = tl.where((moved <= STILL) & (from_prior == 0), iterations + 2, turn)
    if program == 0:
        for k in tl.static_range(READOUTS):
            tl.store(weights_ptr + problem * num_readouts + k, weights[k], k < num_readouts)


def configuration(num_readouts: int) -> tuple[dict[str, int], int]:
    """The constants of a pool of so many readouts, and its warps: a thread has a row, and several classes at once."""
    readouts = padded(num_readouts, 2)
    pairs = readouts * (readouts + 1) // 2
    sums = 1 + readouts + pairs
    # More than 2 ** 4 sums are reduced in groups, for which a thread has the registers.
    levels = 3 if readouts == 2 else 4
    constants = {"READOUTS": readouts, "PAIRS": pairs, "ROWS": 32 * NUM_WARPS}
    constants |= {"CLASSES": {2: 5, 4: 4}.get(readouts, 2), "PARTS": MAX_PARTS}
    constants |= {"SUMS": padded(sums), "GROUPS": -(-sums >> levels), "LEVELS": levels}
    return constants, NUM_WARPS


def _launch_pool_weights(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None,
    bounds: Tensor | None,
    max_fitted_rows: int,
    iterations: int,
) -> Tensor:
    num_pools, num_readouts, num_rows, num_classes = logits.shape
    num_sets = 1 if bounds is None else len(bounds) - 1
    shape = (num_sets, num_pools, num_readouts)
    if not logits.numel() or not num_sets:
        return torch.zeros(shape, dtype=torch.float64, device=logits.device)
    found = torch.empty(shape, dtype=torch.float64, device=logits.device)
    most, num_problems = min(max_fitted_rows, num_rows), num_sets * num_pools
    fitted = logits.new_empty(num_problems, num_readouts, most, num_classes)
    constants, num_warps = configuration(num_readouts)
    # A function of the shape of a pool alone: the order of the sums must not depend on the batch.
    tiles = -(-most // constants["ROWS"])
    rows_of_part = constants["ROWS"] * -(-tiles // MAX_PARTS)
    num_parts = -(-most // rows_of_part)
    num_programs = max(1, min(num_parts, resident_programs(logits.device, num_warps) // num_problems))
    make_arrivals = torch.zeros if num_programs > 1 else torch.empty
    given = [aligned(tensor) for tensor in (logits, labels, log_prior)]
    _pool_weights[(num_problems * num_programs,)](
        *given,
        *(given[1] if tensor is None else aligned(tensor) for tensor in (rows, bounds)),
        fitted,
        found,
        found.new_empty(num_problems, 2, num_parts, constants["SUMS"]),
        found.new_empty(num_problems * num_programs, 3, constants["SUMS"]),
        make_arrivals(num_problems, dtype=torch.int32, device=logits.device),
        num_pools,
        num_readouts,
        num_rows,
        num_classes,
        most,
        rows_of_part,
        num_parts,
        num_programs,
        iterations,
        int(bounds is not None),
        **CONSTANTS,
        **constants,
        **options(num_warps),
        launch_cooperative_grid=num_programs > 1,
    )
    return found


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {f"{name}_ptr": "*fp32" for name in ("logits", "prior", "fitted")}
    types |= {f"{name}_ptr": "*i64" for name in ("labels", "rows", "bounds")}
    types |= {
        "weights_ptr": "*fp64",
        "sums_ptr": "*fp64",
        "totals_ptr": "*fp64",
        "arrivals_ptr": "*i32",
        "num_rows": "i64",
    }
    sizes = ("num_pools", "num_readouts", "num_classes", "max_fitted_rows", "rows_of_part", "num_parts")
    types |= dict.fromkeys((*sizes, "num_programs", "iterations", "by_rows"), "i32")
    return [
        Variant(_pool_weights, types, {**CONSTANTS, **constants}, num_warps)
        for constants, num_warps in map(configuration, (2, 4, MAX_READOUTS))
    ]


@custom_op(add_op_namespace_prefix("pool_weights"), mutates_args=())
def _pool_weights_op(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None,
    bounds: Tensor | None,
    max_fitted_rows: int,
    iterations: int,
) -> Tensor:
    runs = runs_kernels(logits) and logits.shape[1] <= MAX_READOUTS
    fit: Any = _launch_pool_weights if runs else reference_pool_weights
    return fit(logits, labels, log_prior, rows, bounds, max_fitted_rows, iterations)


@_pool_weights_op.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None,
    bounds: Tensor | None,
    max_fitted_rows: int,
    iterations: int,
) -> Tensor:
    parts = 1 if bounds is None else len(bounds) - 1
    return logits.new_empty(parts, *logits.shape[:2], dtype=torch.float64)


def pool_weights(
    logits: Tensor,
    labels: Tensor,
    log_prior: Tensor,
    rows: Tensor | None = None,
    bounds: Tensor | None = None,
    max_fitted_rows: int = MAX_FITTED_ROWS,
    iterations: int = ITERATIONS,
) -> Tensor:
    """The weights of B pools of K readouts, q(y | x) ~ p(y) exp(sum_k w_k z_k(y | x)), fitted on S sets of rows.

    The w >= 0 minimize the log-loss, and a small cost for each. On a GPU pools of up to 8 readouts are one launch,
    whose programs wait for each other, and the host reads nothing; of more, the reference is used. The result has no
    gradient.

    Args:
        logits: (B, K, N, C) float32: the logarithm of each readout's posterior over the prior, up to a constant by row.
        labels: (N,) int64 classes.
        log_prior: (C,) float32, natural logarithm.
        rows: the rows (R,) int64 of all sets, one set after another; None for one set of all rows.
        bounds: where in `rows` each set begins, and the end of the last: (S + 1,) int64; None with `rows`.
        max_fitted_rows: the most rows of a set that are read; of more, evenly apart.
        iterations: the most Newton steps.

    Returns:
        (S, B, K) float64, on the device of the logits; 0 where a set has no rows.

    Raises:
        TypeError: the logits or the prior are not float32.
        ValueError: one of `rows` and `bounds` is given without the other.
    """
    if logits.dtype != torch.float32 or log_prior.dtype != torch.float32:
        raise TypeError(
            f"logits and log_prior must be float32, got {logits.dtype} and {log_prior.dtype}; convert with .float()"
        )
    if (rows is None) != (bounds is None):
        raise ValueError("rows and bounds must be given together, got one of them; give both or none")
    fit = reference_pool_weights if skips_dispatch(logits, labels) else _pool_weights_op
    return fit(logits, labels, log_prior, rows, bounds, max_fitted_rows, iterations)
