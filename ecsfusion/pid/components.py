"""The components of held-out logits: what a readout tells of classes in one direction, apart from noise in others.

A label such as "which word and which speaker" has classes that differ in two ways, of which a modality may tell one. A
readout that is fitted to all classes learns noise about the other, and no single weight keeps the one without the
noise. So logits are cut into components, each of which gets a weight of its own where readouts are pooled.
"""

import torch
from torch import Tensor

from ecsfusion.pid.cholesky import half_solved, transposed_solved
from ecsfusion.pid.linear import LinearSums, TrainingSets

SHRINKAGE = 0.03
"""The share of the covariance of logits that is replaced by the identity: logits of C classes have C - 1 directions."""


def components(logits: Tensor, sets: TrainingSets) -> list[Tensor]:
    """The parts (N, C) of held-out logits (N, C) along their canonical directions; their sum is the logits, centered.

    The directions are those that tell the classes apart, in the metric of the covariance within the classes (linear
    discriminant analysis of the logits), in the order of how well: the first, the second, two more, four more and so
    on. Those of a row are of the rows of all folds but its own.

    Args:
        logits: of one reader of each row, up to a constant by row.
        sets: all training sets.
    """
    centered = logits - logits.mean(1, keepdim=True)
    sums = LinearSums.make(centered, sets.folds())
    shrinkage = torch.tensor(SHRINKAGE, dtype=logits.dtype, device=logits.device)
    covariance, factor = sums.shrunk(shrinkage), sums.factor(shrinkage)
    means = half_solved(factor, (sums.deviation * sums.share.sqrt().unsqueeze(2)).mT).double()
    vectors = torch.linalg.eigh(means @ means.mT).eigenvectors.flip(2)
    directions = transposed_solved(factor, vectors.to(logits.dtype))
    offset = torch.zeros_like(sums.share)
    parts: list[Tensor] = []
    start, size = 0, 1
    while start + size < sets.num_classes - 1:
        chosen = directions[:, :, start : start + size]
        parts.append(sums.read(chosen @ (covariance @ chosen).mT, offset)[0])
        start, size = start + size, max(1, start + size)
    return [*parts, centered - torch.stack(parts).sum(0) if parts else centered]
