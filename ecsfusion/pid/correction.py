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
   noise: `ecsfusion_kernels.label_model`). Its concentration is integrated out (empirical Bayes; the posterior mean
   of the entropy is that of Wolpert and Wolf 1995). What the same estimate adds on replicates drawn from T itself is
   subtracted, in the share that the prior has. T is the null distribution of synergy. Shuffled labels would not do:
   they also remove what each modality says alone. Nor would one modality shuffled within the classes: that also removes
   the dependence between the modalities.
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import dirichlet_information, label_model, pair_noise, table_sums
from ecsfusion_kernels.reference.pair_noise import pair_bits
from torch import Tensor

from ecsfusion.pid.decomposition import LN2
from ecsfusion.pid.replicates import draw_labels, shuffle_pairs

TINY = 1e-300
CONCENTRATIONS = (-2, 4, 13)
"""Grid of the concentration of the prior: first and last power of ten, and the number of values."""


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


class Nulls(NamedTuple):
    """A table of counts beside replicates of what would be there by chance; float64, R replicates.

    Attributes:
        pairs: (3, 1 + R, 15): `table_sums` of the pair tables (x1, y), (x2, y) and (x1, x2), of the table first, then
            of replicates in which the two are independent.
        labels: (2 + R, 15): those of the model without three-way interaction, of the table, and of replicates drawn
            from the model.
        evidence: (3, G, 1 + R): `dirichlet_information` of the table and of these replicates.
    """

    pairs: Tensor
    labels: Tensor
    evidence: Tensor


def draw_nulls(counts: Tensor, num_samples: int, num_replicates: int, random_seed: int) -> Nulls:
    """The null distributions of one table; the host reads nothing.

    Args:
        counts: (K1, K2, C), float64.
        num_samples: the samples of the table.
        num_replicates: tables drawn under each null distribution.
        random_seed: of the replicates.
    """
    # A table of two variables is one of three with a single label.
    _, _, pairs = table_sums(shuffle_pairs(counts, num_samples, num_replicates, random_seed).unsqueeze(-1))
    noise = pair_noise(pairs)[:2]
    # Of the table alone, and below of the table and its replicates.
    model = label_model(counts.unsqueeze(0), noise)
    expected = counts.sum(-1, keepdim=True) * model[0]
    drawn = draw_labels(counts, expected, num_samples, num_replicates, random_seed + 1)
    tables = torch.cat([expected.unsqueeze(0), counts.unsqueeze(0), drawn])
    _, _, labels = table_sums(tables)
    prior = label_model(tables[1:], noise)
    grid = torch.logspace(*CONCENTRATIONS, dtype=counts.dtype, device=counts.device)
    evidence = dirichlet_information(tables[1:].flatten(1, 2), prior.flatten(1, 2), grid)
    return Nulls(pairs, labels, evidence)


def correct(nulls: Nulls, single: Tensor, redundancy: Tensor) -> Information:
    """Correct the plug-in values of one table: operations on a few numbers.

    Args:
        nulls: what `draw_nulls` finds for the table.
        single: (2,): plug-in I(X_m; Y).
        redundancy: (): plug-in redundancy.
    """
    bits = pair_bits(nulls.pairs)
    observed, noise = bits[:, 0], bits[:, 1:]
    bias_of_pairs = pair_noise(nulls.pairs)
    bias = bias_of_pairs[:2]
    kept = (1 - bias / single.clamp_min(1e-12)).clamp(0.0, 1.0)
    shared = redundancy * (1 - kept.amin())

    posterior = _posterior(nulls.evidence, nulls.labels[1:])
    # The plug-in values of the model, and of what is drawn from it.
    joint_bits = _joint_bits(nulls.labels)
    known, chance = joint_bits[0], joint_bits[2:]
    mean, share = posterior.mean[0], posterior.share[0]
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
        coupling=(observed[2] - bias_of_pairs[2]).clamp_min(0.0),
        single_noise=noise[:2].std(-1),
        joint_noise=posterior.mean[1:].std(),
        single_doubt=bias * kept,
        joint_doubt=from_prior + torch.stack([down, up + hidden]),
        single_bias=noise[:2].mean(-1),
        joint_bias=joint_bias,
    )


def posterior_information(counts: Tensor, prior: Tensor) -> Posterior:
    """I(X1, X2; Y) of counts under a Dirichlet prior around given tables.

    p(y | x1, x2) ~ Dirichlet(a prior(y | x1, x2)), with log a uniform on a grid from 0.01 to 10 000.

    Args:
        counts: (B, K1, K2, C) float64.
        prior: (B, K1, K2, C): the tables around which the prior is centered.
    """
    base = prior / prior.sum(-1, keepdim=True).clamp_min(TINY)
    grid = torch.logspace(*CONCENTRATIONS, dtype=counts.dtype, device=counts.device)
    evidence = dirichlet_information(counts.flatten(1, 2), base.flatten(1, 2), grid)
    return _posterior(evidence, table_sums(counts)[2])


def _posterior(evidence: Tensor, sums: Tensor) -> Posterior:
    """That of B tables, from `dirichlet_information` (3, G, B) and `table_sums` (B, 15)."""
    log_likelihood, conditional, share = evidence
    total = sums[:, -1]
    belief = torch.softmax(log_likelihood, 0)
    gained = sums[:, 0] / -LN2 - conditional / (total * LN2)
    plausible = log_likelihood >= log_likelihood.amax(0) - 2.0
    return Posterior(
        mean=(belief * gained).sum(0),
        low=gained.where(plausible, torch.inf).amin(0),
        high=gained.where(plausible, -torch.inf).amax(0),
        share=(belief * share).sum(0) / total,
    )


def _joint_bits(sums: Tensor) -> Tensor:
    """Plug-in I(X1, X2; Y) in bits of tables, (...), from their `table_sums` (..., 15)."""
    return ((sums[..., 6] - sums[..., 0] - sums[..., 5]) / LN2).clamp_min(0.0)
