"""Union information of posteriors: what two modalities know together at least, whatever couples them.

The posterior p(y | x_m) is all that a modality knows about the label (it is sufficient), and the union information of
Bertschinger et al. depends on the pairs (posterior, label) alone. The posteriors of one modality are gathered into K
clusters with tables T(k, y), the mean posteriors; what this loses, delta_m = I(X_m; Y) - I(K_m; Y), is known exactly,
and the union information of the rows lies in [U_K, U_K + delta_1 + delta_2]: the optimal coupling of the clusters, with
the rows drawn within each cluster as they are, is one of the couplings of the rows. Where in between follows from a
second, coarser clustering, because the union information falls in proportion to what is lost.
"""

from typing import NamedTuple

import torch
from ecsfusion_kernels import broja, cluster_tables, lloyd_centers, match_prior, nearest, pointwise_union
from ecsfusion_kernels.ops.broja import MIN_TOLERANCE
from ecsfusion_kernels.precision import in_full_precision
from ecsfusion_kernels.reference.broja import BrojaSolution
from ecsfusion_kernels.reference.cluster_tables import half_of
from ecsfusion_kernels.reference.match_prior import MATCHED
from ecsfusion_kernels.reference.match_prior import match_prior as reference_match_prior
from torch import Tensor

from ecsfusion.pid.copies import moved
from ecsfusion.pid.decomposition import entropy
from ecsfusion.pid.replayed import MAX_VALUES, replayed
from ecsfusion.pid.soft_tables import start_centers

MAX_CLUSTERED_ROWS = 2048
MAX_SOLVED_TOGETHER = 64
"""The most clusters whose tables are solved together with their halves."""


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
    unresolved: Tensor
    """(B,): how far what the clusters lose leaves `value` open, either way."""


class Solved(NamedTuple):
    """What the device finds of B pairs of posteriors; float64, in bits."""

    prior: Tensor
    """(C,): the mean of the posteriors."""
    unsure: Tensor
    """(2 B,): their mean entropy."""
    told: Tensor
    """(2 B, 2): what the clusters of each side know about the label, and half as many."""
    left: Tensor
    """(B, 2): the largest conditional entropy H(Y | X1, X2) of both."""
    gap: Tensor
    """(B,): the certified width of the first."""
    change: Tensor
    """(B,): as in `Union`."""
    pointwise: Tensor
    """(B, N): as in `Union`."""


ON_HOST = Solved._fields[:-1]
"""What `union_of` reads on the host."""


def matched(posteriors: Tensor, prior: Tensor, nearly: float = MATCHED) -> Tensor:
    """Posteriors (..., N, C) float64 scaled until their mean is the prior (C,), or nearly so where they are certain.

    A relative distance of `nearly` ends the scaling; with 0, which gradients need, nothing ends it early.
    """
    if posteriors.requires_grad:
        return reference_match_prior(posteriors, prior, 0.0)
    return match_prior(posteriors, prior, nearly)


def cluster_posteriors(roots: Tensor, num_clusters: int, random_seed: int) -> Tensor:
    """Clusters (B, N) int64 of posteriors, by k-means of their square roots (B, N, C) float32."""
    step = max(1, -(-roots.shape[1] // MAX_CLUSTERED_ROWS))
    sample = roots[:, ::step].contiguous()
    start = start_centers(sample, num_clusters, random_seed)
    return nearest(roots, lloyd_centers(sample, start, max_iterations=6))[0]


def cluster_sums(posteriors: Tensor, clusters: Tensor, num_clusters: int) -> Tensor:
    """Sums (B, K, C) of the posteriors (B, N, C) of each cluster; clusters (B, N) int64."""
    batch, _, classes = posteriors.shape
    begins = torch.arange(0, batch * num_clusters, num_clusters, device=clusters.device)
    place = clusters + begins[:, None]
    sums = posteriors.new_zeros(batch * num_clusters, classes)
    return sums.index_add_(0, place.flatten(), posteriors.flatten(0, 1)).view(batch, num_clusters, classes)


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
    solved = replayed(
        solve_union,
        [posteriors, unsure, roots, labels],
        (num_clusters, tolerance, max_iterations, random_seed),
        most_captured(tolerance),
    )
    on_host = moved([getattr(solved, name) for name in ON_HOST], "cpu")
    return union_of(Solved._make([*on_host, solved.pointwise]))


def most_captured(tolerance: float) -> int:
    """The most numbers of which `solve_union` becomes a graph: with smaller tolerances the solver asks the host."""
    return MAX_VALUES if tolerance >= MIN_TOLERANCE else 0


@in_full_precision
def solve_union(
    posteriors: Tensor,
    unsure: Tensor,
    roots: Tensor,
    labels: Tensor,
    num_clusters: int,
    tolerance: float,
    max_iterations: int,
    random_seed: int,
) -> Solved:
    """`union_information` as far as the host need not read it, with the same arguments."""
    batch = len(posteriors) // 2
    clusters = cluster_posteriors(roots, num_clusters, random_seed)
    tables, told = cluster_tables(cluster_sums(posteriors, clusters, num_clusters))
    prior = posteriors[0].mean(0)
    if num_clusters <= MAX_SOLVED_TOGETHER:
        # The arithmetic of small tables costs less than its calls.
        problems = [tables.view(2, 2 * batch, *tables.shape[2:])]
    else:
        sides = tables.unflatten(0, (2, batch))
        problems = [sides[:, :, 0], sides[:, :, 1, : half_of(num_clusters)]]
    # The coarser one only gives a slope.
    found = [
        broja(*sides, tolerance=tolerance, max_iterations=-(-max_iterations // (place + 1)))
        for place, sides in enumerate(problems)
    ]
    # Of problems that are solved together every other one is coarse.
    apart = 2 // len(found)
    fine = [part[::apart] for part in found[0]]
    left = torch.stack([fine[0], found[-1].conditional_entropy[apart - 1 :: apart]], 1)
    solution = BrojaSolution(*fine)
    # Each row's part: the logarithm of the optimal Q(y | clusters) is log A + log B wherever Q has mass.
    at_label, expected = pointwise_union(
        posteriors, clusters, solution.factor1, solution.factor2, prior, labels
    )
    change = (at_label - expected).mean(-1)
    return Solved(prior, unsure.mean(-1), told, left, solution.gap, change, at_label)


def union_of(solved: Solved) -> Union:
    """The union information of the rows from that of two clusterings, on the host; `pointwise` may be elsewhere."""
    label_bits = entropy(solved.prior, 1)
    of_sides = ((label_bits - solved.unsure).unsqueeze(-1) - solved.told).clamp_min(0.0).view(2, -1, 2)
    lost, coarse_lost = of_sides.sum(0).unbind(-1)
    union, coarse = (label_bits - solved.left).unbind(-1)
    slope = ((union - coarse) / (coarse_lost - lost).clamp_min(1e-9)).clamp(0.0, 1.0)
    slope = torch.where(coarse_lost - lost > 1e-4, slope, 0.5)
    value = union + slope * lost
    # What both sides lose, as of a copy, the union loses. The coarser clusters may hardly tell the classes apart, and
    # show less: half of the distance is taken to be theirs. But what the union has beyond the larger side is at most
    # tripled: of a copy that is nothing, and no loss makes it unique.
    both = of_sides[..., 0].amin(0) / lost.clamp_min(1e-9)
    unresolved = 0.5 * (both - slope).clamp_min(0.0) * lost
    larger = (label_bits - solved.unsure).view(2, -1).amax(0)
    value = torch.minimum(value + unresolved, torch.maximum(larger, 3 * value - 2 * larger))
    low, high = union - solved.gap, union + lost
    return Union(value, low, high, solved.pointwise, solved.change, solved.unsure, unresolved)
