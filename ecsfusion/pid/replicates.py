"""Replicates of joint tables of counts: null distributions by permutation, sampling error by bootstrap.

All functions need only the table of counts (K1, K2, C), so the result is the same whether the table came from one
array, a stream or several processes. Up to `MAX_ROWS` samples, replicates are drawn by permuting or resampling the
samples. With more samples that would be slow, so they are drawn cell by cell from the Poisson distribution; the
difference is then negligible. The random numbers are a hash of (seed, replicate, sample or cell). The number of
samples is an argument, so that the host need not read the table.
"""

import torch
from ecsfusion_kernels import histogram, pair_tables, poisson, uniform
from torch import Tensor

MAX_ROWS = 16_384
"""The most samples that are permuted or resampled one by one."""
ONE = 1 << 32
"""Probability 1 in whole numbers; the uniform numbers have 24 bits."""


def samples(table: Tensor, num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """The samples behind a table of counts (K1, K2, C), class by class.

    Returns:
        The first index, the second index and the class of each sample, (N,) int64. If the table has fewer than
        `num_samples` samples, the missing ones get the last cell.
    """
    repeats = table.permute(2, 0, 1).flatten().to(torch.int64)
    missing = (num_samples - repeats.sum()).clamp_min(0).unsqueeze(0)
    cells = torch.repeat_interleave(torch.cat([repeats, missing]), output_size=num_samples)
    cells = cells.clamp_max(table.numel() - 1)
    rows, columns, _ = table.shape
    return cells // columns % rows, cells % columns, cells // (columns * rows)


def shuffle_pairs(table: Tensor, num_samples: int, num_replicates: int, random_seed: int = 0) -> Tensor:
    """The pair tables of `table`, and replicates in which the two variables of a pair are independent.

    One variable is shuffled among the samples and the other is kept.

    Returns:
        (3, 1 + replicates, max(K1, K2), max(C, K2)) float64, with the observed `pair_tables` first.
    """
    observed, expected = pair_tables(table.double(), num_samples)
    if num_samples > MAX_ROWS:
        drawn = poisson(expected, num_replicates, random_seed).transpose(0, 1)
    else:
        first, second, labels = samples(table, num_samples)
        order = _keys(num_samples, num_replicates, random_seed, table.device).argsort(dim=-1, stable=True)
        shuffled = labels[order]
        kept = torch.stack([first, second, first]).unsqueeze(1)
        others = torch.stack([shuffled, shuffled, second[order]])
        zero = torch.zeros_like(first)
        drawn = histogram(kept, zero, others, observed.shape[1], 1, observed.shape[2]).squeeze(-2)
    return torch.cat([observed.unsqueeze(1), drawn], 1)


def draw_labels(
    table: Tensor, expected: Tensor, num_samples: int, num_replicates: int, random_seed: int = 0
) -> Tensor:
    """Replicates in which every sample keeps its pair (x1, x2) and draws its label.

    Args:
        table: (K1, K2, C) counts.
        expected: (K1, K2, C) float64, to whose numbers the probabilities of the labels of a pair are proportional; with
            positive mass for every pair that occurs in the table, and the expectations of the counts where there are
            over `MAX_ROWS` samples.
        num_samples: the samples of the table.
        num_replicates: the number of tables to draw.
        random_seed: of the draw.

    Returns:
        Counts (replicates, K1, K2, C) float64.
    """
    rows, columns, classes = table.shape
    if num_samples > MAX_ROWS:
        return poisson(expected, num_replicates, random_seed)
    conditional = expected / expected.sum(-1, keepdim=True).clamp_min(1e-300)
    first, second, _ = samples(table, num_samples)
    cell = first * columns + second
    # The label is the smallest whose cumulative probability exceeds a uniform number. Adding its index to the
    # cumulative probabilities of every cell makes one increasing sequence, in which all are found by one search.
    # In whole multiples of 1 / ONE: sums of floats depend on their order, and on a GPU PyTorch refuses them where
    # deterministic algorithms are asked for.
    line = (conditional.flatten(0, 1) * ONE).round().to(torch.int64).cumsum(-1).clamp_max(ONE)
    line = (line + ONE * torch.arange(rows * columns, device=line.device).unsqueeze(-1)).flatten()
    keys = (_keys(num_samples, num_replicates, random_seed, table.device) * ONE).to(torch.int64)
    drawn = torch.searchsorted(line, ONE * cell + keys, right=True)
    labels = torch.minimum(drawn - cell * classes, torch.full_like(drawn, classes - 1))
    return histogram(first, second, labels, rows, columns, classes).double()


def bootstrap(table: Tensor, num_samples: int, num_replicates: int, random_seed: int = 0) -> Tensor:
    """Replicates drawn from the samples with replacement: counts (replicates, K1, K2, C) float64."""
    rows, columns, classes = table.shape
    if num_samples > MAX_ROWS:
        return poisson(table, num_replicates, random_seed)
    first, second, labels = samples(table, num_samples)
    drawn = (_keys(num_samples, num_replicates, random_seed, table.device) * num_samples).to(torch.int64)
    return histogram(first[drawn], second[drawn], labels[drawn], rows, columns, classes).double()


def _keys(num_samples: int, num_replicates: int, random_seed: int, device: torch.device) -> Tensor:
    """Uniform numbers in (0, 1), (replicates, num_samples) float64."""
    counter = torch.arange(num_replicates * num_samples, device=device).reshape(num_replicates, num_samples)
    return uniform(counter, random_seed).double()
