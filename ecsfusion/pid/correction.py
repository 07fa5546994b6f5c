"""Bias correction: information of the population from a table of counts.

A table with many cells for its samples makes noise look like information. Three parts, each exact on
average where there is nothing to find:

1. I(X_m; Y). Shuffled labels tell the bias under independence. Under dependence fewer cells are reachable
   and the bias is smaller, in proportion to the degrees of freedom (occupied cells - rows - columns + 1),
   as in the Miller-Madow term.
2. Redundancy depends on the two pair tables alone. It takes that share of the bias of I(X_m; Y) which it
   has of I(X_m; Y) itself, for the modality where that is more; uniqueness takes the rest.
3. I(X1, X2; Y). p(y | x1, x2) has a Dirichlet prior around a table T without three-way interaction (the
   log-linear model with the pair tables of the sample, those with the label first shrunk by their own
   noise). Its concentration is integrated out (empirical Bayes; the posterior mean of the entropy is that
   of Wolpert and Wolf 1995). What the same estimate adds on replicates drawn from T itself is subtracted, in
   the share that the prior has. T is the null of synergy: shuffled labels would take away what each modality
   says alone, and one modality shuffled within the classes how the two go together.
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import loglinear
from torch import Tensor

from ecsfusion.pid.decomposition import LN2, entropy
from ecsfusion.pid.replicates import draw_labels, shuffle_pairs

TINY = 1e-300
CONCENTRATIONS = (-2, 4, 13)  # powers of ten, first and last, and how many
CPU_ELEMENTS = 1 << 18  # over concentrations, tables and cells at a time: what stays in a cache
GPU_ELEMENTS = 1 << 22  # the fewest launches, in 32 MB an array


class Information(NamedTuple):
    """Corrected information of a table, in bits, and how far it may be off; float64."""

    single: Tensor  # (2,): I(X_m; Y)
    redundancy: Tensor  # ()
    joint: Tensor  # (): I(X1, X2; Y)
    coupling: Tensor  # (): I(X1; X2)
    single_noise: Tensor  # (2,): standard deviation of I(X_m; Y) under shuffled labels
    joint_noise: Tensor  # (): standard deviation of I(X1, X2; Y) without three-way interaction
    single_doubt: Tensor  # (2,): how far the correction of I(X_m; Y) may be off
    joint_doubt: Tensor  # (2,): the same for I(X1, X2; Y), down and up
    single_bias: Tensor  # (2,): mean of the plug-in I(X_m; Y) under shuffled labels
    joint_bias: Tensor  # (): what the plug-in I(X1, X2; Y) gains on average without three-way interaction


class Posterior(NamedTuple):
    """I(X1, X2; Y) in bits as `posterior_information` sees it; (B,) float64."""

    mean: Tensor
    low: Tensor  # at the concentrations whose likelihood is within a factor exp(2) of the best
    high: Tensor
    share: Tensor  # of the prior in the posterior, average over the samples: 0 for cells full of samples


def correct(
    counts: Tensor, number: int, single: Tensor, redundancy: Tensor, replicates: int, random_seed: int
) -> Information:
    """Correct the plug-in values of one table; the host reads nothing.

    Args:
        counts: (K1, K2, C), float64.
        number: of samples in it.
        single: (2,): plug-in I(X_m; Y).
        redundancy: (): plug-in.
        replicates: tables drawn under each null.
    """
    pairs = shuffle_pairs(counts, number, replicates, random_seed)
    observed, noise = information(pairs).split((1, replicates), -1)
    pair_bias = noise.mean(-1) * _freedom_left(pairs)
    bias = pair_bias[:2]
    kept = (1 - bias / single.clamp_min(1e-12)).clamp(0.0, 1.0)
    shared = redundancy * (1 - kept.amin())

    without = without_interaction(counts.unsqueeze(0), bias)
    drawn = draw_labels(counts, without[0], number, replicates, random_seed + 1)
    tables = torch.cat([counts.unsqueeze(0), drawn])
    posterior = posterior_information(tables, without_interaction(tables, bias))
    known, chance = joint_information(torch.cat([without, drawn])).split((1, replicates))
    known, mean, share = known[0], posterior.mean[0], posterior.share[0]
    # Where the samples of the cells outweigh the prior, what happens without interaction is beside the point.
    joint = mean - share * (posterior.mean[1:].mean() - known)
    # Interaction that the prior rather than the samples of a cell accounts for may have another shape.
    guessed = (joint - known).clamp_min(0.0) * share
    joint_bias = chance.mean() - known
    # Many weak interactions look like none: the prior's part of the correction is trusted to a tenth upward.
    hidden = 0.1 * joint_bias * share
    down, up = mean - posterior.low[0], posterior.high[0] - mean
    return Information(
        single=(single - bias).clamp_min(0.0),
        redundancy=redundancy - shared,
        joint=joint,
        coupling=(observed[2, 0] - pair_bias[2]).clamp_min(0.0),
        single_noise=noise[:2].std(-1),
        joint_noise=posterior.mean[1:].std(),
        single_doubt=bias * kept,
        joint_doubt=guessed + torch.stack([down, up + hidden]),
        single_bias=noise[:2].mean(-1),
        joint_bias=joint_bias,
    )


def without_interaction(counts: Tensor, bias: Tensor, sweeps: int = 30) -> Tensor:
    """Tables without three-way interaction that fit the pair tables of `counts` (B, K1, K2, C);
    probabilities.

    p(x1, x2) is that of the sample; p(x1, y) and p(x2, y) are first mixed with independence until about as
    much information is gone as `bias` (2,) says is noise. Iterative proportional fitting on the factors of
    R(x1, x2) A(x1, y) B(x2, y).
    """
    rows, columns = counts.shape[1:3]
    total = counts.sum((1, 2, 3)).clamp_min(TINY)[:, None, None]
    pairs = counts.new_zeros(2, len(counts), max(rows, columns), counts.shape[3])
    pairs[0, :, :rows] = counts.sum(2)
    pairs[1, :, :columns] = counts.sum(1)
    first, second = _shrunk(pairs / total, bias.unsqueeze(-1))
    return loglinear(counts.sum(3) / total, first[:, :rows], second[:, :columns], sweeps)


def posterior_information(counts: Tensor, prior: Tensor) -> Posterior:
    """I(X1, X2; Y) for counts and prior tables (B, K1, K2, C).

    p(y | x1, x2) ~ Dirichlet(a prior(y | x1, x2)), with log a uniform on a grid from 0.01 to 10 000.
    """
    n = counts.flatten(1, 2)
    base = prior.flatten(1, 2)
    base = base / base.sum(-1, keepdim=True).clamp_min(TINY)
    per_cell = n.sum(-1)
    total = per_cell.sum(-1)
    grid = torch.logspace(*CONCENTRATIONS, dtype=n.dtype, device=n.device)
    evidence, conditional, share = [], [], []
    at_once = CPU_ELEMENTS if n.device.type == "cpu" else GPU_ELEMENTS
    for part in grid.split(max(1, at_once // max(n.numel(), 1))):
        a = part[:, None, None]
        cell = per_cell + a
        weight = a.unsqueeze(-1) * base
        posterior = n + weight
        seen = torch.where(n > 0, torch.lgamma(posterior) - torch.lgamma(weight.clamp_min(TINY)), 0.0)
        evidence.append((torch.lgamma(a) - torch.lgamma(cell)).sum(-1) + seen.sum((-2, -1)))
        expected = (posterior * torch.digamma(posterior + 1)).sum(-1) / cell
        entropies = torch.digamma(cell + 1) - expected
        conditional.append((per_cell * entropies).sum(-1))
        share.append((per_cell / cell).sum(-1) * part.unsqueeze(-1))
    log_likelihood = torch.cat(evidence)
    belief = torch.softmax(log_likelihood, 0)
    labels = counts.sum((1, 2))
    gained = entropy(labels / labels.sum(-1, keepdim=True), 1) - torch.cat(conditional) / (total * LN2)
    plausible = log_likelihood >= log_likelihood.amax(0) - 2.0
    return Posterior(
        mean=(belief * gained).sum(0),
        low=gained.where(plausible, torch.inf).amin(0),
        high=gained.where(plausible, -torch.inf).amax(0),
        share=(belief * torch.cat(share)).sum(0) / total,
    )


def information(counts: Tensor) -> Tensor:
    """Plug-in I(X; Y) in bits of counts or probabilities (..., K, C); (...) float64."""
    rows, columns = counts.sum(-1), counts.sum(-2)
    total = rows.sum(-1)
    shared = torch.xlogy(counts, counts).sum((-2, -1)) + torch.xlogy(total, total)
    shared = shared - torch.xlogy(rows, rows).sum(-1) - torch.xlogy(columns, columns).sum(-1)
    return (shared / (total * LN2).clamp_min(TINY)).clamp_min(0.0)


def joint_information(table: Tensor) -> Tensor:
    """Plug-in I(X1, X2; Y) in bits of counts or probabilities (..., K1, K2, C); (...)."""
    return information(table.flatten(-3, -2))


def _shrunk(pairs: Tensor, bias: Tensor) -> Tensor:
    """Pair tables (..., K, C) of probabilities, mixed with independence until `bias` (...) less is left."""
    independent = pairs.sum(-2, keepdim=True) * pairs.sum(-1, keepdim=True)
    # Near independence the information of a mixture grows with the square of its share.
    share = (1 - bias / information(pairs).clamp_min(1e-9)).clamp(0.0, 1.0).sqrt()
    return independent + share[..., None, None] * (pairs - independent)


def _freedom_left(pairs: Tensor) -> Tensor:
    """Degrees of freedom of the first of tables (3, 1 + B, K, C) as a share of the mean of the others, (3,).

    As many as the occupied cells leave to it: cells - rows - columns + 1.
    """
    occupied = pairs > 0
    freedom = occupied.sum((-2, -1)) - occupied.any(-1).sum(-1) - occupied.any(-2).sum(-1) + 1
    return (freedom[:, 0] / freedom[:, 1:].double().mean(-1).clamp_min(1e-9)).clamp(0.0, 1.0)
