"""What chance adds to the information of pairs, in plain PyTorch."""

from torch import Tensor

from .broja import LN2

__all__ = ["pair_noise"]

MIN_FREEDOM = 1e-9


def pair_noise(sums: Tensor) -> Tensor:
    """(3,) bits from the `table_sums` (3, 1 + R, 15) of pair tables. See the op of this name."""
    return pair_bits(sums[:, 1:]).mean(-1) * _freedom_left(sums)


def pair_bits(sums: Tensor) -> Tensor:
    """Plug-in I(X1; X2) in bits of pair tables (K1, K2, 1), (...), from their `table_sums` (..., 15)."""
    return ((sums[..., 5] - sums[..., 1] - sums[..., 2]) / LN2).clamp_min(0.0)


def _freedom_left(sums: Tensor) -> Tensor:
    """Degrees of freedom of the first table of each pair, divided by the mean of the others; (3,).

    The degrees of freedom are occupied cells - rows - columns + 1.
    """
    freedom = sums[..., 12] - sums[..., 8] - sums[..., 9] + 1
    return (freedom[:, 0] / freedom[:, 1:].mean(-1).clamp_min(MIN_FREEDOM)).clamp(0.0, 1.0)
