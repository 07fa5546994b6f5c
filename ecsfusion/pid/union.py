"""Union information of posteriors: what two modalities know together at least, whatever couples them.

The posterior p(y | x_m) is all that a modality knows about the label (it is sufficient), and the union information of
Bertschinger et al. depends on the pairs (posterior, label) alone. The posteriors of one modality are gathered into K
clusters with tables T(k, y), the mean posteriors; what this loses, delta_m = I(X_m; Y) - I(K_m; Y), is known exactly,
and the union information of the rows lies in [U_K, U_K + delta_1 + delta_2]: the optimal coupling of the clusters, with
the rows drawn within each cluster as they are, is one of the couplings of the rows. Where in between follows from a
second, coarser clustering, because the union information falls in proportion to what is lost.
"""

import math
from typing import Any, NamedTuple

import torch
from ecsfusion_kernels import broja, lloyd_centers, match_prior, nearest, pointwise_union
from ecsfusion_kernels.ops.broja import MIN_TOLERANCE
from ecsfusion_kernels.precision import in_full_precision
from ecsfusion_kernels.reference.match_prior import MATCHED
from ecsfusion_kernels.reference.match_prior import match_prior as reference_match_prior
from torch import Tensor

from ecsfusion.pid.copies import moved
from ecsfusion.pid.decomposition import entropy
from ecsfusion.pid.mixtures import start_centers
from ecsfusion.pid.replayed import MAX_VALUES, replayed

MAX_CLUSTERED_ROWS = 2048
SHARE_OF_LOSS = 0.01
"""Of what the clusters lose, as the width in which the solver certifies its value."""
MAX_SOLVED_TOGETHER = 64
"""The most clusters whose tables are solved together with their halves."""
TINY = 1e-30


class Union(NamedTuple):
    """Union information in bits, float64 for B pairs of modalities; what is (B,) is on the host."""

    value: Tensor
    """(B,): for the rows, extrapolated from two clusterings."""
    low: Tensor
    """(B,): certified for the finer clusters, and so for the rows."""
    high: Tensor
    """(B,): certified for the rows."""
    pointwise: Tensor
    """(B, N): the part of each row, from its own label; without what the clusters lose."""
    change: Tensor
    """(B,): the mean of `pointwise`, less what the rows' posteriors expect of it: that of the table."""
    unsure: Tensor
    """(2 B,): the mean entropy of the posteriors."""


def matched(posteriors: Tensor, prior: Tensor, nearly: float = MATCHED) -> Tensor:
    """Posteriors (..., N, C) float64 scaled until their mean is the prior (C,), or nearly so where they are certain.

    A relative distance of `nearly` ends the scaling; with 0, which gradients need, nothing ends it early.
    """
    if posteriors.requires_grad:
        return reference_match_prior(posteriors, prior, 0.0)
    return match_prior(posteriors, prior, nearly)


def cluster_posteriors(posteriors: Tensor, num_clusters: int, random_seed: int) -> Tensor:
    """Clusters (B, N) int64 of posteriors (B, N, C), by k-means of their square roots."""
    return _nearest_centers(posteriors.float().sqrt(), num_clusters, random_seed)


def _nearest_centers(points: Tensor, num_clusters: int, random_seed: int) -> Tensor:
    """Clusters (B, N) int64 of points (B, N, C) float32."""
    step = max(1, -(-points.shape[1] // MAX_CLUSTERED_ROWS))
    sample = points[:, ::step].contiguous()
    start = start_centers(sample, num_clusters, random_seed)
    return nearest(points, lloyd_centers(sample, start, max_iterations=6))[0]


def cluster_sums(posteriors: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """Sums (B, K, C) of the posteriors (B, N, C) of each cluster; clusters (B, N) int64."""
    batch, _, classes = posteriors.shape
    begins = torch.arange(0, batch * num_clusters, num_clusters, device=clusters.device)
    place = clusters + begins[:, None]
    sums = posteriors.new_zeros(batch * num_clusters, classes)
    return sums.index_add_(0, place.flatten(), posteriors.flatten(0, 1)).view(batch, num_clusters, classes)


def soft_tables(sums: Tensor, num_rows: int) -> Tensor:
    """Joint tables (B, K, C) of cluster and label, of sum 1, all with the same share of each class.

    Only such tables are marginals of one distribution. Posteriors of rows that are certain cannot be scaled to have the
    prior as their mean, so the tables are.

    Args:
        sums: (B, K, C) of the posteriors of each cluster.
        num_rows: N.
    """
    tables = sums / num_rows
    share = tables.sum(1, keepdim=True)
    prior = share[:1]
    possible = (share > 0).all(0, keepdim=True)
    tables = torch.where(possible, tables * (prior / share.clamp_min(TINY)), 0.0)
    return tables / tables.sum((1, 2), keepdim=True)


def halved_tables(tables: Tensor, random_seed: int) -> Tensor:
    """Tables (B, max(K / 2, 2), C) of clusters that are joined from those of tables (B, K, C)."""
    number = max(tables.shape[1] // 2, min(2, tables.shape[1]))
    posteriors = tables / tables.sum(-1, keepdim=True).clamp_min(TINY)
    clusters = cluster_posteriors(posteriors, number, random_seed)
    place = clusters.unsqueeze(-1).expand_as(tables)
    return tables.new_zeros(len(tables), number, tables.shape[2]).scatter_add_(1, place, tables)


def information(tables: Tensor) -> Tensor:
    """I(K; Y) in bits of tables (..., K, C)."""
    return entropy(tables.sum(-2), 1) + entropy(tables.sum(-1), 1) - entropy(tables, 2)


@in_full_precision
def union_information(
    posteriors: Tensor,
    unsure: Tensor,
    roots: Tensor,
    labels: Tensor,
    num_clusters: int,
    tolerance: float,
    max_iterations: int,
    random_seed: int,
) -> Union:
    """The union information of B pairs of posteriors.

    Args:
        posteriors: (2 B, N, C) float64, of mean p(y) (`matched`): of the first sides of the pairs, then of the second.
        unsure: (2 B, N) float64, their entropies in bits (`row_information`).
        roots: (2 B, N, C) float32, their square roots.
        labels: (N,) int64.
        num_clusters: K of the finer clustering; the coarser has half.
        tolerance: certified width in bits at which the solver may stop.
        max_iterations: of the solver.
        random_seed: of the clustering.
    """
    batch = len(posteriors) // 2
    prior, unsure, clusters, sums = replayed(
        _clustered, [posteriors, unsure, roots], (num_clusters, random_seed)
    )
    # Tables of clusters are small: the host makes them.
    share, unsure, sums = moved([prior, unsure, sums], "cpu")
    label_bits = entropy(share, 1)
    whole = label_bits - unsure
    tables = soft_tables(sums, posteriors.shape[1])
    halved = halved_tables(tables, random_seed)
    lost, coarse_lost = ((whole - information(each)).clamp_min(0.0) for each in (tables, halved))
    lost, coarse_lost = lost[:batch] + lost[batch:], coarse_lost[:batch] + coarse_lost[batch:]
    # Much closer than what the clusters lose the solver need not come; a power of two, so that calls are alike.
    most = max(SHARE_OF_LOSS * float(lost.amin()), TINY)
    tolerance = max(tolerance, 2.0 ** round(math.log2(most)))
    if num_clusters <= MAX_SOLVED_TOGETHER:
        # The arithmetic of small tables costs less than its calls.
        missing = tables.new_zeros(2 * batch, num_clusters - halved.shape[1], tables.shape[2])
        sides = torch.stack([tables, torch.cat([halved, missing], 1)]).unflatten(1, (2, batch))
        problems = [sides.transpose(0, 1).flatten(1, 2)]
    else:
        problems = [tables.unflatten(0, (2, batch)), halved.unflatten(0, (2, batch))]
    solved = replayed(
        _solved,
        [posteriors, clusters, prior, labels, *(each.to(posteriors.device) for each in problems)],
        (tolerance, max_iterations),
        # With smaller tolerances the solver asks the host.
        MAX_VALUES if tolerance >= MIN_TOLERANCE else 0,
    )
    left, coarse_left, gap, change = moved(solved[:4], "cpu")
    union, coarse = label_bits - left, label_bits - coarse_left
    slope = ((union - coarse) / (coarse_lost - lost).clamp_min(1e-9)).clamp(0.0, 1.0)
    slope = torch.where(coarse_lost - lost > 1e-4, slope, 0.5)
    return Union(union + slope * lost, union - gap, union + lost, solved[4], change, unsure)


def _clustered(
    posteriors: Tensor, unsure: Tensor, roots: Tensor, num_clusters: int, random_seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The prior (C,) of posteriors (B, N, C), their mean entropy (B,), clusters (B, N) and their sums (B, K, C)."""
    clusters = _nearest_centers(roots, num_clusters, random_seed)
    sums = cluster_sums(posteriors, clusters, num_clusters)
    return posteriors[0].mean(0), unsure.mean(-1), clusters, sums


def _solved(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the solver finds for B pairs of tables, and for those of half as many clusters; of the rows, too.

    Args:
        given: posteriors (2 B, N, C), clusters (2 B, N), prior (C,), labels (N,); tables of both sides, (2, B, K, C)
            and then of half as many clusters, or (2, 2 B, K, C) of both; tolerance and iterations of the solver.

    Returns:
        In bits: the conditional entropies of both (B,), the certified width of the first (B,), the mean (B,) of the
        union information of each row at its label, less that averaged over its posteriors, and the former (B, N).
    """
    posteriors, clusters, prior, labels, *problems, tolerance, max_iterations = given
    # The coarser one only gives a slope.
    found = [
        broja(*sides, tolerance=tolerance, max_iterations=-(-max_iterations // (place + 1)))
        for place, sides in enumerate(problems)
    ]
    batch = len(posteriors) // 2
    left, solution, coarse_left = found[0].conditional_entropy, found[0], found[-1].conditional_entropy
    # Each row's part: the logarithm of the optimal Q(y | clusters) is log A + log B wherever Q has mass.
    at_label, expected = pointwise_union(
        posteriors, clusters, solution.factor1[:batch], solution.factor2[:batch], prior, labels
    )
    return left[:batch], coarse_left[-batch:], solution.gap[:batch], (at_label - expected).mean(-1), at_label
