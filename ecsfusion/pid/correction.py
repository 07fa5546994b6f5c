"""Bias correction: estimates of the information of the population from a table of counts.

In a table that has many cells for its samples, noise looks like information. The correction has three parts, each
exact on average where there is no information:

1. I(X_m; Y). Shuffled labels tell the bias under independence. Under dependence fewer cells are reachable
   and the bias is smaller, in proportion to the degrees of freedom (occupied cells - rows - columns + 1),
   as in the Miller-Madow term.
2. Redundancy depends on the two pair tables alone. Of the bias of I(X_m; Y), redundancy gets the same share that
   it has of I(X_m; Y) itself, for the modality where this is larger; uniqueness gets the rest.
3. I(X1, X2; Y). p(y | x1, x2) has a Dirichlet prior around a table T without three-way interaction (the
   log-linear model with the pair tables of the sample, those with the label first shrunk by their own
   noise). Its concentration is integrated out (empirical Bayes; the posterior mean of the entropy is that
   of Wolpert and Wolf 1995). What the same estimate adds on replicates drawn from T itself is subtracted, in
   the share that the prior has. T is the null distribution of synergy. Shuffled labels would not do: they also remove
   what each modality says alone. Nor would one modality shuffled within the classes: that also removes the dependence
   between the modalities.
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import loglinear
from torch import Tensor

from ecsfusion.pid.decomposition import LN2, entropy
from ecsfusion.pid.replicates import draw_labels, shuffle_pairs

TINY = 1e-300
CONCENTRATIONS = (-2, 4, 13)
"""Grid of the concentration of the prior: first and last power of ten, and the number of values."""
CPU_ELEMENTS = 1 << 18
"""Elements (concentrations x tables x cells) that are computed at a time on the CPU: they fit into its cache."""
GPU_ELEMENTS = 1 << 22
"""The same on a GPU: few launches, with 32 MB per array."""


class Information(NamedTuple):
    """Corrected information of a table, in bits, and its possible errors; float64.

    Attributes:
        single: (2,): I(X_m; Y).
        redundancy: ().
        joint: (): I(X1, X2; Y).
        coupling: (): I(X1; X2).
        single_noise: (2,): standard deviation of I(X_m; Y) under shuffled labels.
        joint_noise: (): standard deviation of I(X1, X2; Y) without three-way interaction.
        single_doubt: (2,): the possible error of the correction of I(X_m; Y).
        joint_doubt: (2,): the same for I(X1, X2; Y), downward and upward.
        single_bias: (2,): mean of the plug-in I(X_m; Y) under shuffled labels.
        joint_bias: (): mean increase of the plug-in I(X1, X2; Y) without three-way interaction.
    """

    single: Tensor
    redundancy: Tensor
    joint: Tensor
    coupling: Tensor
    single_noise: Tensor
    joint_noise: Tensor
    single_doubt: Tensor
    joint_doubt: Tensor
    single_bias: Tensor
    joint_bias: Tensor


class Posterior(NamedTuple):
    """The result of `posterior_information`: I(X1, X2; Y) in bits; (B,) float64.

    Attributes:
        mean: averaged over the concentrations by their likelihood.
        low: the smallest value at a concentration whose likelihood is within a factor exp(2) of the best.
        high: the largest such value.
        share: of the prior in the posterior, averaged over the samples; 0 where every cell has many samples.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    share: Tensor


def correct(
    counts: Tensor,
    num_samples: int,
    single: Tensor,
    redundancy: Tensor,
    num_replicates: int,
    random_seed: int,
) -> Information:
    """Correct the plug-in values of one table; the host reads nothing.

    Args:
        counts: (K1, K2, C), float64.
        num_samples: the samples of the table.
        single: (2,): plug-in I(X_m; Y).
        redundancy: (): plug-in redundancy.
        num_replicates: tables drawn under each null distribution.
        random_seed: of the replicates.
    """
    pairs = shuffle_pairs(counts, num_samples, num_replicates, random_seed)
    observed, noise = information(pairs).split((1, num_replicates), -1)
    pair_bias = noise.mean(-1) * _freedom_left(pairs)
    bias = pair_bias[:2]
    kept = (1 - bias / single.clamp_min(1e-12)).clamp(0.0, 1.0)
    shared = redundancy * (1 - kept.amin())

    without = without_interaction(counts.unsqueeze(0), bias)
    drawn = draw_labels(counts, without[0], num_samples, num_replicates, random_seed + 1)
    tables = torch.cat([counts.unsqueeze(0), drawn])
    posterior = posterior_information(tables, without_interaction(tables, bias))
    known, chance = joint_information(torch.cat([without, drawn])).split((1, num_replicates))
    known, mean, share = known[0], posterior.mean[0], posterior.share[0]
    # Where the samples of the cells outweigh the prior, the correction under the null distribution does not apply.
    joint = mean - share * (posterior.mean[1:].mean() - known)
    # The part of the interaction that comes from the prior, not from the samples of a cell, may be wrong.
    from_prior = (joint - known).clamp_min(0.0) * share
    joint_bias = chance.mean() - known
    # Many weak interactions look like none. So a tenth of the prior's part of the correction may be missing.
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
        joint_doubt=from_prior + torch.stack([down, up + hidden]),
        single_bias=noise[:2].mean(-1),
        joint_bias=joint_bias,
    )


def without_interaction(counts: Tensor, bias: Tensor, sweeps: int = 30) -> Tensor:
    """Probability tables without three-way interaction that fit the pair tables of `counts`.

    p(x1, x2) is that of the sample; p(x1, y) and p(x2, y) are first mixed with independence until they have lost
    about `bias` bits of information. Iterative proportional fitting on the factors of R(x1, x2) A(x1, y) B(x2, y).

    Args:
        counts: (B, K1, K2, C) float64.
        bias: (2,): the part of I(X_m; Y) in bits that is noise.
        sweeps: iterations of the fit.

    Returns:
        (B, K1, K2, C) probabilities.
    """
    rows, columns = counts.shape[1:3]
    total = counts.sum((1, 2, 3)).clamp_min(TINY)[:, None, None]
    pairs = counts.new_zeros(2, len(counts), max(rows, columns), counts.shape[3])
    pairs[0, :, :rows] = counts.sum(2)
    pairs[1, :, :columns] = counts.sum(1)
    first, second = _shrunk(pairs / total, bias.unsqueeze(-1))
    return loglinear(counts.sum(3) / total, first[:, :rows], second[:, :columns], sweeps)


def posterior_information(counts: Tensor, prior: Tensor) -> Posterior:
    """I(X1, X2; Y) of counts under a Dirichlet prior around given tables.

    p(y | x1, x2) ~ Dirichlet(a prior(y | x1, x2)), with log a uniform on a grid from 0.01 to 10 000.

    Args:
        counts: (B, K1, K2, C) float64.
        prior: (B, K1, K2, C): the tables around which the prior is centered.
    """
    n = counts.flatten(1, 2)
    base = prior.flatten(1, 2)
    base = base / base.sum(-1, keepdim=True).clamp_min(TINY)
    per_cell = n.sum(-1)
    total = per_cell.sum(-1)
    grid = torch.logspace(*CONCENTRATIONS, dtype=n.dtype, device=n.device)
    evidence, conditional, share = [], [], []
    max_elements = CPU_ELEMENTS if n.device.type == "cpu" else GPU_ELEMENTS
    for part in grid.split(max(1, max_elements // max(n.numel(), 1))):
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
    """Degrees of freedom of the first of tables (3, 1 + B, K, C), divided by the mean of the others; (3,).

    The degrees of freedom are occupied cells - rows - columns + 1.
    """
    occupied = pairs > 0
    freedom = occupied.sum((-2, -1)) - occupied.any(-1).sum(-1) - occupied.any(-2).sum(-1) + 1
    return (freedom[:, 0] / freedom[:, 1:].double().mean(-1).clamp_min(1e-9)).clamp(0.0, 1.0)
