"""Whether the label ties two modalities: what both together know beyond the product of their posteriors.

Two modalities that are independent given the label have p(y | x1, x2) ~ p(y | x1) p(y | x2) / p(y), so that the
posteriors of the single modalities are all that there is. Readouts are fitted and judged as in
`ecsfusion.pid.posteriors`; those of the embeddings see what the heads of a model have not learned yet.
"""

from collections.abc import Mapping, Sequence

import torch
from ecsfusion_kernels.precision import in_full_precision
from torch import Tensor

from ecsfusion.pid.decomposition import LN2
from ecsfusion.pid.posteriors import TINY, Pair, Side, of_pairs, read_sides


@in_full_precision
def held_out_dependence(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    num_classes: int,
    sides: Sequence[tuple[Sequence[str], Sequence[str]]],
    random_seed: int,
    groups: Tensor | None = None,
) -> Tensor:
    """What readouts of both sides of each pair know beyond the product of the posteriors of the sides; (P,) bits.

    Args:
        embeddings: (N, D_m) by modality, floating point.
        labels: (N,) int64.
        num_classes: C.
        sides: pairs of sides; a side is some modalities.
        random_seed: of folds and clusters.
        groups: (N,) int64 or None, see `ecsfusion.pid.folds.make_folds`.
    """
    _, prior, read = read_sides(embeddings, labels, num_classes, sides, groups, random_seed)
    log_prior = prior.clamp_min(TINY).log().float()

    def beyond_product(first: Side, second: Side, both: Pair) -> Tensor:
        own = first.sums.sets.labels[:, None]
        gain = (both.log_posterior[0] - both.product).gather(1, own).double()
        return (gain.mean() / LN2).clamp_min(0.0)

    return torch.stack(of_pairs(beyond_product, sides, read, log_prior, random_seed))
