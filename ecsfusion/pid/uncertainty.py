"""From held-out information to a decomposition with limits, intervals, floors, and the rows that would settle it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ecsfusion.pid.copies import moved
from ecsfusion.pid.decomposition import LN2, Decomposition, entropy
from ecsfusion.pid.posteriors import NUM_FOLDS, Known, Posteriors, largest_limit, limit, unseen_limit

DEVIATIONS = 2.5
"""Half the width of an interval in standard errors, where nothing but the rows is uncertain,"""
CONFIDENCE = 1.96
"""and of that a normal distribution is within, in 95 % of cases: of few groups the errors themselves are uncertain."""
SHARE_OF_LOSS = 0.1
"""The union information of the rows may be wrong by this share of what their clusters lose."""
SHARE_OF_TABLES = 0.05
"""Tables of soft clusters may miss this share of what they tell beyond linear readouts."""
SHARE_OF_COARSE = 0.25
"""Cells whose edges are not where the label changes tell less than it does: what is unique to a side may be larger by
this share of what only its tables tell, and the synergy by this share of what only those of both sides tell."""
RULE_ROWS = 150.0
"""Where trees tell what no other readout does there may be more rules than rows show, in 95 of 100 random trees at most
a share of what is left of the label, whose square is so many per row,"""
RULES_PER_RULE = 10.0
"""and in 9 of 10 at most so many times what the trees tell. Of embeddings they often tell next to nothing."""
SHARE_OF_DISPLACED = 0.5
"""The union information may be wrong by this share of how far labels and posteriors disagree about it alone,"""
CLEARLY = 4.0
"""less what so many standard errors of the redundancy explain."""
NOISE = 8.0
"""Log-likelihood, in nats, that pooled readouts of pure noise exceed in 1 to 2 of 100 estimates."""
SETTLED_SHARE = 0.05
"""The limit is settled where it exceeds the held-out information by at most this share of H(Y), or"""
SETTLED_BITS = 0.05
"""by at most so many bits."""


class Measured(NamedTuple):
    """Decompositions of P pairs; (P,) float64, on the host."""

    limit: Decomposition
    """What readouts that are fitted on very many rows would find, with intervals and floors."""
    held_out: Decomposition
    """What the readouts know about rows that they were not fitted on: lower bounds of the information."""
    enough: Tensor
    """The rows, or groups, with which the limit would be settled, and noise would reach no more than that."""


def measure(posteriors: Posteriors) -> Measured:
    """Decompose what is known.

    This is the algebra of a few numbers for each pair, which would be hundreds of launches on a GPU: it is done by the
    host, which waits for them once.
    """
    *parts, prior, num_groups, worth, squares = moved(
        [
            *posteriors.known,
            posteriors.prior,
            posteriors.num_groups,
            posteriors.worth,
            posteriors.squares,
        ],
        "cpu",
    )
    columns_per_row = None
    if posteriors.columns is not None:
        columns_per_row = posteriors.columns / worth
    else:
        # Heads that were fitted on other rows have no limit to grow to.
        squares = torch.cat([squares.new_zeros(8, squares.shape[1]), squares])
    # The rows of a group count as one.
    errors = (squares * num_groups / (num_groups - 1).clamp_min(1)).sqrt() / posteriors.num_rows
    return _decomposed(
        Known(*parts), prior, num_groups, worth, errors.split(4), posteriors.sides, columns_per_row
    )


def on_device(decomposition: Decomposition, device: torch.device) -> Decomposition:
    """The parts of a decomposition on a device, by one copy."""
    there = {name: part for name, part in decomposition._asdict().items() if part is not None}
    return decomposition._replace(**dict(zip(there, moved(list(there.values()), device), strict=True)))


def hides_much(posteriors: Posteriors) -> bool:
    """Whether classes that no readout could see may tell more than is settled."""
    unseen = posteriors.unseen
    return unseen is not None and bool(unseen.sum() > _settled(entropy(posteriors.prior, 1)))


def _settled(label_bits: Tensor) -> Tensor:
    """How many bits may be missing from what is known, of a label of so many bits."""
    return (SETTLED_SHARE * label_bits).clamp_min(SETTLED_BITS)


def largest_entropy(prior: Tensor, worth: Tensor) -> Tensor:
    """The largest H(Y) in bits, (), that the shares (C,) of so many independent rows leave open: no atom has more."""
    shares = prior[prior > 0]
    surprise = -shares.log2()
    bits = (shares * surprise).sum()
    error = ((shares * (surprise - bits).square()).sum() / worth).sqrt()
    # Entropy of shares is too small by the second term (Miller 1955).
    found = bits + DEVIATIONS * error + (len(shares) - 1) / (2 * worth * LN2)
    return found.clamp_max(math.log2(max(len(shares), 1)))


def students_t(deviations: float, freedom: Tensor) -> Tensor:
    """The quantile of Student's t where that of the normal distribution is so many deviations.

    By the expansion of Abramowitz & Stegun (26.7.5); of one degree of freedom it is a quarter too small.
    """
    z, n = deviations, freedom.clamp_min(1)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _decomposed(
    known: Known,
    prior: Tensor,
    num_groups: Tensor,
    worth: Tensor,
    errors: Sequence[Tensor],
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    columns_per_row: Tensor | None,
) -> Measured:
    """`measure`, of sums over the rows.

    Args:
        known: what is known.
        prior: as in `Posteriors`.
        num_groups: likewise.
        worth: likewise.
        errors: standard errors (4, P) of the growth of the information, of that of the atoms, and of the atoms.
        sides: as in `Posteriors`.
        columns_per_row: (3, P), the columns of both sides and of them together over the independent rows; None where
            more rows would not tell more.
    """
    label_bits = entropy(prior, 1)
    parts = (known.first, known.second, known.joint, known.union)
    bound = _atoms(*(part[0] for part in parts))
    values = [
        part[0] if columns_per_row is None else limit(part[0], part[1], label_bits, error)
        for part, error in zip(parts, errors[0], strict=True)
    ]
    deviations = DEVIATIONS * students_t(CONFIDENCE, num_groups - 1) / CONFIDENCE
    floor = NOISE / (worth * LN2)
    hidden = rules = [torch.zeros_like(known.product)] * 3
    unseen = torch.zeros_like(known.rules)
    if columns_per_row is not None:
        # What more rows would show, also where these show nothing,
        unseen = unseen_limit(floor, label_bits, columns_per_row)
        hidden = [
            largest_limit(part[0], part[1], label_bits, deviations * error, wide) - value
            for part, error, wide, value in zip(
                parts[:3], errors[0][:3], columns_per_row, values[:3], strict=True
            )
        ]
        # and what trees of more rows would.
        of_both = known.joint[0] - known.product > floor
        found = [*known.rules[:2], known.rules[2] * of_both]
        share = (RULE_ROWS / worth).sqrt().clamp_max(1.0)
        rules = [
            torch.minimum(share * (label_bits - value), RULES_PER_RULE * told)
            for value, told in zip(values[:3], found, strict=True)
        ]
        hidden = [
            torch.stack([some, other, most - value]).amax(0).clamp_min(0.0)
            for some, other, most, value in zip(hidden, rules, unseen, values[:3], strict=True)
        ]
    values[0], values[1] = _not_below_members(values[0], values[1], sides)
    # The union can grow by no more than what the sides learn.
    learned = values[0] - parts[0][0] + values[1] - parts[1][0]
    values[3] = torch.minimum(values[3], parts[3][0] + learned)
    reached = _atoms(*values)
    gap = known.lost[0]

    near = NUM_FOLDS / (NUM_FOLDS - 1)
    error = torch.hypot(errors[2], near / (2 - near) * errors[1])
    most = largest_entropy(prior, worth)
    blind = SHARE_OF_TABLES * known.beyond_lines
    disagreement = (known.displaced - CLEARLY * errors[2][0]).clamp_min(0.0)
    alone, together = known.beyond_lines[:2].sum(0), known.beyond_lines[2]
    # No more than what is left of the label.
    left = (label_bits - reached.joint_mutual_information).clamp_min(0.0)
    across = torch.minimum(SHARE_OF_COARSE * (together - alone).clamp_min(0.0), left)
    inside = torch.minimum(SHARE_OF_COARSE * known.beyond_lines[:2], left).T
    shortfall = torch.stack(
        [value - part[0] for value, part in zip(values[:3], parts[:3], strict=True)]
    ).amax(0)
    # Of all atoms.
    doubts = [
        SHARE_OF_LOSS * gap,
        known.unresolved,
        SHARE_OF_DISPLACED * disagreement,
    ]

    def interval(held_out: Tensor, value: Tensor, place: int) -> Tensor:
        """Around the limit, and never without the held-out value; unrelated reasons of doubt add by squares."""
        tables = blind.sum(0) if place == 3 else blind[0] + blind[1]
        apart = torch.stack([deviations * error[place], value - held_out, tables, *doubts])
        around = apart.square().sum(0).sqrt() + floor
        return torch.stack([value - around, value + around], -1).clamp_min(0.0)

    redundancy = interval(bound.redundancy, reached.redundancy, 0)
    unique = torch.stack([interval(bound.unique[:, m], reached.unique[:, m], 1 + m) for m in range(2)], -2)
    unique[..., 1] += inside
    synergy = interval(bound.synergy, reached.synergy, 3)
    synergy[..., 1] += across
    # What is hidden of one side may be its own, or the other has it, too: nothing that is added makes them less alike.
    of_sides = torch.stack(hidden[:2], -1)
    unique[..., 1] = torch.maximum(unique[..., 1], reached.unique + of_sides)
    unique[..., 0] = torch.minimum(unique[..., 0], (reached.unique - of_sides.flip(-1)).clamp_min(0.0))
    shared = (reached.mutual_information + of_sides).amin(-1)
    shared = torch.minimum(shared, reached.redundancy + of_sides.sum(-1))
    redundancy[..., 1] = torch.maximum(redundancy[..., 1], shared)
    synergy[..., 1] = torch.maximum(synergy[..., 1], reached.synergy + hidden[2])
    # What is hidden of a side both may show together: there the rules of the other explain noise that hides its own.
    synergy[..., 0] = torch.minimum(synergy[..., 0], (reached.synergy - rules[0] - rules[1]).clamp_min(0.0))
    dependence = (known.joint[0] - known.product).clamp_min(0.0)
    floors = floor.expand_as(dependence)
    decomposition = reached._replace(
        gap=gap,
        dependence=dependence,
        redundancy_floor=floors,
        unique_floor=floors.unsqueeze(-1).expand(-1, 2),
        synergy_floor=floors,
        redundancy_interval=redundancy.clamp_max(most),
        unique_interval=unique.clamp_max(most),
        synergy_interval=synergy.clamp_max(most),
    )
    return Measured(
        decomposition,
        bound._replace(gap=gap, dependence=dependence),
        torch.ceil(num_groups * torch.stack([shortfall, floors, *unseen]).amax(0) / _settled(label_bits)),
    )


def _not_below_members(
    first: Tensor, second: Tensor, sides: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> tuple[Tensor, Tensor]:
    """The limits (P,) of both sides of each pair, those of several modalities at least those of each of them.

    What a side proves is not below what its members prove; its limit is an estimate of its own.
    """
    limits = {
        side[0]: values[p]
        for p, pair in enumerate(sides)
        for side, values in zip(pair, (first, second), strict=True)
        if len(side) == 1
    }

    def raised(values: Tensor, place: int) -> Tensor:
        least = [
            torch.stack([values[p], *(limits[name] for name in pair[place] if name in limits)]).amax()
            if len(pair[place]) > 1
            else values[p]
            for p, pair in enumerate(sides)
        ]
        return torch.stack(least)

    return raised(first, 0), raised(second, 1)


def _atoms(first: Tensor, second: Tensor, joint: Tensor, union: Tensor) -> Decomposition:
    """The atoms of information (P,), brought into the order that information has."""
    larger, both = torch.maximum(first, second), first + second
    joint = torch.maximum(joint, larger)
    union = torch.minimum(torch.maximum(union, larger), torch.minimum(both, joint))
    return Decomposition(
        redundancy=both - union,
        unique=torch.stack([union - second, union - first], -1),
        synergy=joint - union,
        mutual_information=torch.stack([first, second], -1),
        joint_mutual_information=joint,
        # Posteriors do not show it.
        conditional_mutual_information=None,
        gap=torch.zeros_like(joint),
    )
