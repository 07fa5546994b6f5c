"""Embeddings -> cluster indices: scale the rows, project on principal directions, k-means.

`Discretizer.fit` learns from some rows, `Discretizer.assign` labels any rows: held-out ones, or the chunks
of a stream. Modalities are fitted together: their restarts are one batch of k-means problems. On a GPU the host
reads nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from ecsfusion_kernels import lloyd, nearest, project, scale_rows, seed, uniform
from ecsfusion_kernels import principal_directions as leading_directions
from torch import Tensor

MAX_ROWS = 8192
"""k-means is fitted on at most so many rows; all rows are assigned."""
PRINCIPAL_ROWS = 4096
RESTARTS = 4
CPU_ROWS = 1 << 16  # assigned at a time on the CPU; kernels keep nothing of the width of the embeddings
HASHED_ROWS = 1 << 22  # keys at a time
KEY_BITS = 24  # of the hash


class Discretizer(NamedTuple):
    """A fitted map from the embeddings of one modality to K cluster indices.

    A row x becomes x / sqrt(|x|^2 + radius^2): near L2 normalization for rows of the usual norm or longer,
    so that outliers are bounded, yet one to one, so that a norm that says something is not lost. Then it is
    projected on the leading principal directions and goes to the nearest of the K centers.
    """

    radius: Tensor
    """() float64: the median norm of the rows that it was fitted on."""
    basis: Tensor
    """(D, d) float32: principal directions as columns, zeros where there are less than d."""
    offset: Tensor
    """(d,) float32: the projected mean."""
    centers: Tensor
    """(K, d) float32."""
    sizes: Tensor
    """(K,) int64: fitted rows per cluster. Zeros mean fewer distinct rows than clusters: those stay empty."""

    @classmethod
    def fit(
        cls, embeddings: Tensor, num_clusters: int = 20, num_components: int = 9, random_seed: int = 0
    ) -> "Discretizer":
        """Fit to embeddings (N, D), floating point, on their device.

        k-means++ seeding with 4 restarts, of which the lowest inertia wins. At most 8192 rows take part,
        chosen by `sample_rows`. Where there are fewer distinct rows than clusters the surplus clusters stay
        empty, which changes no information. The result depends on the arguments and the seed alone, never
        on the state of a random generator.
        """
        return fit_together([embeddings], num_clusters, num_components, random_seed)[0]

    def assign(self, embeddings: Tensor) -> Tensor:
        """Cluster indices (N,) int64 of embeddings (N, D); -1 for a row with NaN or infinite values."""
        return assign_together([self], [embeddings])[0]


class ModalityPairs(NamedTuple):
    """Which pairs of cluster indices are to be counted: two modalities, or each pair and each against the rest.

    With three or more modalities "the rest" of one is all others: each scaled to the unit ball, concatenated and
    clustered as one. Its K clusters hold less than the modalities do one by one, so what is unique against the rest
    is an upper estimate.
    """

    modalities: dict[str, Discretizer]
    rests: dict[str, Discretizer]
    """By the modality left out; empty for two modalities."""

    @classmethod
    def fit(
        cls, embeddings: Mapping[str, Tensor], num_clusters: int, num_components: int, random_seed: int
    ) -> "ModalityPairs":
        """Fit to embeddings (N, D_m) by modality name; see `Discretizer.fit`."""
        options = (num_clusters, num_components, random_seed)
        names = list(embeddings)
        modalities = dict(zip(names, fit_together(list(embeddings.values()), *options), strict=True))
        partial = cls(modalities, {})
        if len(names) == 2:
            return partial
        rests = fit_together([partial.rest(embeddings, name) for name in names], *options)
        return cls(modalities, dict(zip(names, rests, strict=True)))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of the two sides of each question, in the order of `assign`."""
        return [*combinations(self.modalities, 2), *((name, "rest") for name in self.rests)]

    def assign(self, embeddings: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cluster indices of both sides of every question, (questions, N) int64 each."""
        names = list(self.modalities)
        single = assign_together(list(self.modalities.values()), [embeddings[name] for name in names])
        if not self.rests:
            return single[:1], single[1:]
        rest = assign_together(list(self.rests.values()), [self.rest(embeddings, name) for name in names])
        pairs = list(combinations(range(len(names)), 2))
        first = [*(single[a] for a, _ in pairs), *single]
        second = [*(single[b] for _, b in pairs), *rest]
        return torch.stack(first), torch.stack(second)

    def rest(self, embeddings: Mapping[str, Tensor], name: str) -> Tensor:
        """All modalities but `name` as one, (N, sum of the other D_m) float32."""
        others = [other for other in self.modalities if other != name]
        scaled = [scale_rows(embeddings[other], self.modalities[other].radius).float() for other in others]
        return torch.cat(scaled, -1)


def fit_together(
    embeddings: Sequence[Tensor], num_clusters: int, num_components: int, random_seed: int
) -> list[Discretizer]:
    """`Discretizer.fit` of several matrices (N, D_m) with the same N, in one batch of k-means problems."""
    number = len(embeddings[0])
    if number > MAX_ROWS:
        chosen = sample_rows(number, MAX_ROWS, random_seed, embeddings[0].device)
        embeddings = [rows[chosen] for rows in embeddings]
    norms = torch.stack([torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64) for rows in embeddings])
    radii = median_norm(norms)
    bases, offsets = _bases(embeddings, norms, radii, num_components)
    each = zip(embeddings, bases, offsets, radii.unbind(), strict=True)
    points = torch.stack([project(*one) for one in each])  # (M, n, d)

    problems = points.unsqueeze(1).expand(-1, RESTARTS, -1, -1).flatten(0, 1)
    clustering = lloyd(problems, seed(problems, num_clusters, random_seed))
    best = clustering.inertia.reshape(-1, RESTARTS).argmin(-1)
    best = best + RESTARTS * torch.arange(len(best), device=best.device)
    fitted = (radii, bases, offsets, clustering.centers[best], clustering.sizes[best])
    return [Discretizer(*(values[m] for values in fitted)) for m in range(len(embeddings))]


def assign_together(fitted: Sequence[Discretizer], embeddings: Sequence[Tensor]) -> Tensor:
    """`Discretizer.assign` of each matrix (N, D_m) by its own map; (M, N) int64."""
    centers = torch.stack([one.centers for one in fitted])
    at_once = CPU_ROWS if centers.device.type == "cpu" else max(len(embeddings[0]), 1)
    parts = []
    for chunk in zip(*(rows.split(at_once) for rows in embeddings), strict=True):
        points = [
            project(rows, one.basis, one.offset, one.radius) for rows, one in zip(chunk, fitted, strict=True)
        ]
        parts.append(nearest(torch.stack(points), centers)[0])
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _bases(
    embeddings: Sequence[Tensor], norms: Tensor, radii: Tensor, number: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Principal directions (D_m, d) and the projected mean (d,) of each matrix, float32."""
    norms = norms[:, :PRINCIPAL_ROWS]
    factors = torch.hypot(norms, radii.unsqueeze(-1)).reciprocal().unsqueeze(-1)
    # The product in float64 is finite for every finite row. Others say nothing: their rows are zero here.
    scaled = [
        (rows[:PRINCIPAL_ROWS] * factor).float().nan_to_num(0.0, 0.0, 0.0)
        for rows, factor in zip(embeddings, factors, strict=True)
    ]
    bases, offsets = [norms] * len(scaled), [norms] * len(scaled)
    for dimension in dict.fromkeys(rows.shape[1] for rows in scaled):
        members = [m for m, rows in enumerate(scaled) if rows.shape[1] == dimension]
        rows = torch.stack([scaled[m] for m in members])
        mean = rows.mean(1, keepdim=True)
        basis = principal_directions(rows - mean, number)
        offset = torch.bmm(mean, basis).squeeze(1)
        for i, m in enumerate(members):
            bases[m], offsets[m] = basis[i], offset[i]
    return bases, offsets


def median_norm(norms: Tensor) -> Tensor:
    """The (lower) median of those of `norms` (..., n) that are positive numbers, (...); 1 where none is."""
    counted = norms > 0  # false for NaN
    ordered = torch.where(counted, norms, torch.inf).sort(-1).values
    middle = (counted.sum(-1, keepdim=True) - 1) // 2
    median = ordered.gather(-1, middle.clamp_min(0)).squeeze(-1)
    return torch.where(middle.squeeze(-1) < 0, 1.0, median)


def principal_directions(rows: Tensor, number: int) -> Tensor:
    """The leading `number` principal directions of centred rows (B, n, D), as columns (B, D, number) float32.

    The largest entry of each is positive. Where there are no more than `number` dimensions nothing is to be left
    out: they come as they are, with columns of zeros.
    """
    batch, _, dimension = rows.shape
    if dimension <= number:
        return torch.eye(dimension, number, device=rows.device).expand(batch, -1, -1)
    vectors = leading_directions(rows, number)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def sample_rows(
    num_rows: int, most: int, random_seed: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Indices of at most `most` of `num_rows` rows, int64, ascending; a function of its arguments alone.

    The rows with the smallest hashed index, so shards of one data set agree on the sample without talking.
    """
    if num_rows <= most:
        return torch.arange(num_rows, device=device)
    smallest = []
    for start in range(0, num_rows, HASHED_ROWS):
        index = torch.arange(start, min(start + HASHED_ROWS, num_rows), device=device)
        # Rows share hashes; the smaller index wins among equals.
        key = (uniform(index, random_seed) * 2**KEY_BITS).to(torch.int64) << (63 - KEY_BITS) | index
        smallest.append(key.topk(min(most, len(key)), largest=False, sorted=False).values)
    keys = smallest[0] if len(smallest) == 1 else torch.cat(smallest).topk(most, largest=False).values
    return (keys & ((1 << (63 - KEY_BITS)) - 1)).sort().values
