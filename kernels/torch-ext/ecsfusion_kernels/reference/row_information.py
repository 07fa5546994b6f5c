"""What the posterior of each row says, in plain PyTorch."""

from torch import Tensor

from .broja import LN2
from .match_prior import TINY

__all__ = ["row_information"]


def row_information(posteriors: Tensor, labels: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What posteriors (Q, N, C) tell of labels (N,), in bits, and their entropies and square roots.

    The logarithm of the prior is (C,), a natural one; see the op of this name.
    """
    at_label = posteriors.gather(2, labels.expand(len(posteriors), -1).unsqueeze(-1)).squeeze(-1)
    told = (at_label.clamp_min(TINY).log() - log_prior[labels]) / LN2
    rounded = posteriors.float()
    # Several times faster than by `xlogy` and in float64, and in place than with more memory.
    unsure = rounded.clamp_min(TINY).log2_().mul_(rounded).sum(-1).double().neg_()
    return told, unsure, rounded.sqrt_()
