"""Iterative proportional fitting of the model without three-way interaction, in plain PyTorch."""

import torch
from torch import Tensor

from ..precision import in_full_precision

__all__ = ["loglinear"]


@in_full_precision
def loglinear(p12: Tensor, first: Tensor, second: Tensor, sweeps: int = 30) -> Tensor:
    """Tables R(x1, x2) A(x1, y) B(x2, y) with the pair tables p12 (B, K1, K2), first (B, K1, C), second (B, K2, C).

    (B, K1, K2, C), in the dtype of the pair tables; p12 is met up to rounding, the others up to the convergence of
    the sweeps: R = p12 / (A B^T), A = first / (R B), B = second / (R^T A). Where the pair tables contradict each
    other, a class may have mass in a row whose cells cannot hold it, R B = 0: then A = 0, and likewise B.
    """
    tiny = torch.finfo(p12.dtype).tiny * 1e7
    a, b = first, second / second.sum(1, keepdim=True).clamp_min(tiny)
    for _ in range(sweeps):
        r = p12 / (a @ b.mT).clamp_min(tiny)
        a = _scaled(first, r @ b, tiny)
        b = _scaled(second, r.mT @ a, tiny)
    r = p12 / (a @ b.mT).clamp_min(tiny)
    return (r.unsqueeze(3) * a.unsqueeze(2) * b.unsqueeze(1)).contiguous()


def _scaled(target: Tensor, current: Tensor, tiny: float) -> Tensor:
    return torch.where(current > tiny, target / current.clamp_min(tiny), 0.0)
