"""Joint tables of counts and their replicates: nulls by permutation, spread by bootstrap.

Everything here starts from the table of counts (K1, K2, C) alone, so it works the same whether the table
came from one array, from a stream or from several processes. Up to `MAX_ROWS` samples the replicates are
drawn by permuting or resampling the samples themselves; beyond, where that would be slow and the difference
is nil, cell by cell from the Poisson distribution. The random numbers are a hash of (seed, replicate,
sample or cell). How many samples there are is an argument, so that the host need not read the table.
"""

import torch
from ecsfusion_kernels import histogram, poisson, uniform
from torch import Tensor

MAX_ROWS = 16_384


def samples(table: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `number` samples behind a table of counts (K1, K2, C), class by class.

    Returns the first index, the second index and the class of each, (N,) int64. Samples that the table lacks are
    given the last cell.
    """
    repeats = table.permute(2, 0, 1).flatten().to(torch.int64)
    missing = (number - repeats.sum()).clamp_min(0).unsqueeze(0)
    cells = torch.repeat_interleave(torch.cat([repeats, missing]), output_size=number)
    cells = cells.clamp_max(table.numel() - 1)
    rows, columns, _ = table.shape
    return cells // columns % rows, cells % columns, cells // (columns * rows)


def pair_tables(table: Tensor) -> Tensor:
    """The counts of (x1, y), (x2, y) and (x1, x2) in a table (K1, K2, C), with empty rows and columns to one size.

    (3, max(K1, K2), max(C, K2)) float64.
    """
    rows, columns, classes = table.shape
    pairs = table.new_zeros(3, max(rows, columns), max(classes, columns), dtype=torch.float64)
    pairs[0, :rows, :classes] = table.sum(1)
    pairs[1, :columns, :classes] = table.sum(0)
    pairs[2, :rows, :columns] = table.sum(2)
    return pairs


def shuffle_pairs(table: Tensor, number: int, replicates: int, random_seed: int = 0) -> Tensor:
    """The pair tables of `table`, and replicates in which neither of a pair says anything about the other.

    One is shuffled among the samples, the other kept. Returns (3, 1 + replicates, ...) float64, the observed
    `pair_tables` first.
    """
    observed = pair_tables(table)
    if number > MAX_ROWS:
        expected = observed.sum(2, keepdim=True) * (observed.sum(1, keepdim=True) / number)
        drawn = poisson(expected, replicates, random_seed).transpose(0, 1)
    else:
        first, second, labels = samples(table, number)
        order = _keys(number, replicates, random_seed, table.device).argsort(dim=-1, stable=True)
        shuffled = labels[order]
        kept = torch.stack([first, second, first]).unsqueeze(1)
        others = torch.stack([shuffled, shuffled, second[order]])
        zero = torch.zeros_like(first)
        drawn = histogram(kept, zero, others, observed.shape[1], 1, observed.shape[2]).squeeze(-2)
    return torch.cat([observed.unsqueeze(1), drawn], 1)


def draw_labels(table: Tensor, model: Tensor, number: int, replicates: int, random_seed: int = 0) -> Tensor:
    """Replicates in which every sample keeps its pair (x1, x2) and draws its label from model(y | x1, x2).

    Args:
        table: (K1, K2, C) counts of `number` samples.
        model: (K1, K2, C) probabilities, positive mass wherever the table has a pair.

    Returns counts (replicates, K1, K2, C) float64.
    """
    rows, columns, classes = table.shape
    conditional = model / model.sum(-1, keepdim=True).clamp_min(1e-300)
    if number > MAX_ROWS:
        return poisson(table.sum(-1, keepdim=True) * conditional, replicates, random_seed)
    first, second, _ = samples(table, number)
    cell = first * columns + second
    # The smallest label whose cumulative probability exceeds a uniform number: all cells on one increasing
    # line.
    line = conditional.flatten(0, 1).cumsum(-1).clamp_max(1.0)
    line = (line + torch.arange(rows * columns, device=line.device).unsqueeze(-1)).flatten()
    drawn = torch.searchsorted(line, cell + _keys(number, replicates, random_seed, table.device), right=True)
    labels = torch.minimum(drawn - cell * classes, torch.full_like(drawn, classes - 1))
    return histogram(first, second, labels, rows, columns, classes).double()


def bootstrap(table: Tensor, number: int, replicates: int, random_seed: int = 0) -> Tensor:
    """Replicates drawn from the `number` samples with replacement: counts (replicates, K1, K2, C) float64."""
    rows, columns, classes = table.shape
    if number > MAX_ROWS:
        return poisson(table, replicates, random_seed)
    first, second, labels = samples(table, number)
    drawn = (_keys(number, replicates, random_seed, table.device) * number).to(torch.int64)
    return histogram(first[drawn], second[drawn], labels[drawn], rows, columns, classes).double()


def _keys(number: int, replicates: int, random_seed: int, device: torch.device) -> Tensor:
    """(replicates, number) float64 in (0, 1)."""
    counter = torch.arange(replicates * number, device=device).reshape(replicates, number)
    return uniform(counter, random_seed).double()
