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

import math
from typing import NamedTuple

import torch
from ecsfusion_kernels import loglinear
from torch import Tensor

from ecsfusion.joint import draw_labels, shuffle_labels
from ecsfusion.pid import LN2, entropy, mutual_information

TINY = 1e-300
CONCENTRATIONS = tuple(10 ** (k / 2) for k in range(-4, 9))


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
    counts: Tensor, single: Tensor, redundancy: Tensor, replicates: int, random_seed: int
) -> Information:
    """Correct the plug-in values of one table.

    Args:
        counts: (K1, K2, C), float64.
        single: (2,): plug-in I(X_m; Y).
        redundancy: (): plug-in.
        replicates: tables drawn under each null.
    """
    shuffled = shuffle_labels(counts, replicates, random_seed)
    noise = torch.stack([information(table) for table in shuffled])
    pair_tables = (counts.sum(1), counts.sum(0))
    bias = torch.stack([information_bias(p, s) for p, s in zip(pair_tables, shuffled, strict=True)])
    kept = (1 - bias / single.clamp_min(1e-12)).clamp(0.0, 1.0)
    shared = redundancy * (1 - kept.amin())

    pairs = counts.sum(-1)
    uncoupled, _ = shuffle_labels(pairs.unsqueeze(1), replicates, random_seed)
    coupling = (information(pairs) - information_bias(pairs, uncoupled)).clamp_min(0.0)

    without = without_interaction(counts.unsqueeze(0), bias)[0]
    drawn = draw_labels(counts, without, replicates, random_seed + 1)
    tables = torch.cat([counts.unsqueeze(0), drawn])
    posterior = posterior_information(tables, without_interaction(tables, bias))
    known = joint_information(without)
    # Where the samples of the cells outweigh the prior, what happens without interaction is beside the point.
    joint = posterior.mean[0] - posterior.share[0] * (posterior.mean[1:].mean() - known)
    # Interaction that the prior rather than the samples of a cell accounts for may have another shape.
    guessed = (joint - known).clamp_min(0.0) * posterior.share[0]
    joint_bias = joint_information(drawn).mean() - known
    # Many weak interactions look like none: the prior's part of the correction is trusted to a tenth upward.
    hidden = 0.1 * joint_bias * posterior.share[0]
    down, up = posterior.mean[0] - posterior.low[0], posterior.high[0] - posterior.mean[0]
    return Information(
        single=(single - bias).clamp_min(0.0),
        redundancy=redundancy - shared,
        joint=joint,
        coupling=coupling,
        single_noise=noise.std(-1),
        joint_noise=posterior.mean[1:].std(),
        single_doubt=bias * kept,
        joint_doubt=guessed + torch.stack([down, up + hidden]),
        single_bias=noise.mean(-1),
        joint_bias=joint_bias,
    )


def without_interaction(counts: Tensor, bias: Tensor, sweeps: int = 30) -> Tensor:
    """Tables without three-way interaction that fit the pair tables of `counts` (B, K1, K2, C);
    probabilities.

    p(x1, x2) is that of the sample; p(x1, y) and p(x2, y) are first mixed with independence until about as
    much information is gone as `bias` (2,) says is noise. Iterative proportional fitting on the factors of
    R(x1, x2) A(x1, y) B(x2, y).
    """
    p12 = counts.sum(3)
    p12 = p12 / p12.sum((1, 2), keepdim=True)
    first = _shrunk(counts.sum(2), bias[0])
    second = _shrunk(counts.sum(1), bias[1])
    return loglinear(p12, first, second, sweeps)


def posterior_information(counts: Tensor, prior: Tensor) -> Posterior:
    """I(X1, X2; Y) for counts and prior tables (B, K1, K2, C).

    p(y | x1, x2) ~ Dirichlet(a prior(y | x1, x2)), with log a uniform on a grid from 0.01 to 10 000.
    """
    n = counts.flatten(1, 2)
    base = prior.flatten(1, 2)
    base = base / base.sum(-1, keepdim=True).clamp_min(TINY)
    per_cell = n.sum(-1)
    total = per_cell.sum(-1)
    evidence, conditional, share = [], [], []
    for a in CONCENTRATIONS:
        weight = a * base
        seen = torch.where(n > 0, torch.lgamma(n + weight) - torch.lgamma(weight.clamp_min(TINY)), 0.0)
        evidence.append((math.lgamma(a) - torch.lgamma(per_cell + a)).sum(-1) + seen.sum((-2, -1)))
        posterior = n + weight
        expected = (posterior * torch.digamma(posterior + 1)).sum(-1) / (per_cell + a)
        entropies = torch.digamma(per_cell + a + 1) - expected
        conditional.append((per_cell * entropies).sum(-1) / total / LN2)
        share.append((per_cell * a / (per_cell + a)).sum(-1) / total)
    log_likelihood = torch.stack(evidence)
    belief = torch.softmax(log_likelihood, 0)
    labels = counts.sum((1, 2))
    gained = entropy(labels / labels.sum(-1, keepdim=True), 1) - torch.stack(conditional)
    plausible = log_likelihood >= log_likelihood.amax(0) - 2.0
    return Posterior(
        mean=(belief * gained).sum(0),
        low=gained.where(plausible, torch.inf).amin(0),
        high=gained.where(plausible, -torch.inf).amax(0),
        share=(belief * torch.stack(share)).sum(0),
    )


def information_bias(pairs: Tensor, shuffled: Tensor) -> Tensor:
    """Bias of the plug-in information of counts (K, C), in bits, from shuffled ones (B, K, C)."""
    share = (_freedom(pairs) / _freedom(shuffled).mean().clamp_min(1e-9)).clamp(0.0, 1.0)
    return information(shuffled).mean() * share


def information(counts: Tensor) -> Tensor:
    """Plug-in I(X; Y) in bits of counts (..., K, C); (...)."""
    return mutual_information(counts / counts.sum((-2, -1), keepdim=True))


def joint_information(table: Tensor) -> Tensor:
    """Plug-in I(X1, X2; Y) in bits of counts or probabilities (..., K1, K2, C); (...)."""
    return information(table.flatten(-3, -2))


def _shrunk(pairs: Tensor, bias: Tensor) -> Tensor:
    """Pair tables (B, K, C) of counts, mixed with independence; probabilities."""
    pairs = pairs / pairs.sum((1, 2), keepdim=True)
    independent = pairs.sum(1, keepdim=True) * pairs.sum(2, keepdim=True)
    # Near independence the information of a mixture grows with the square of its share.
    share = (1 - bias / mutual_information(pairs).clamp_min(1e-9)).clamp(0.0, 1.0).sqrt()
    return independent + share[:, None, None] * (pairs - independent)


def _freedom(pairs: Tensor) -> Tensor:
    """Degrees of freedom that the occupied cells of pair tables (..., K, C) leave; (...) float64."""
    occupied = pairs > 0
    rows, columns = occupied.any(-1).sum(-1), occupied.any(-2).sum(-1)
    return (occupied.sum((-2, -1)) - rows - columns + 1).double()
