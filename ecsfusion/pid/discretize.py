"""Cluster indices of embeddings: the rows are scaled, projected on principal directions and clustered by k-means.

`Discretizer.fit` learns the clusters from some rows and `Discretizer.assign` gives the cluster of any rows, such as
held-out ones or the chunks of a stream. Modalities are fitted together: their restarts are one batch of k-means
problems. On a GPU the host reads nothing.
"""

import functools
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from ecsfusion_kernels import (
    lloyd_inertia,
    median_norm,
    project,
    project_nearest,
    scale_rows,
    scaled_rows,
    seed,
    uniform,
)
from ecsfusion_kernels import principal_directions as leading_directions
from ecsfusion_kernels.precision import in_full_precision
from torch import Tensor

MAX_ROWS = 8192
"""The most rows that k-means is fitted on; all rows are assigned."""
MAX_PRINCIPAL_ROWS = 4096
"""The most rows that principal directions are fitted on."""
RESTARTS = 4
"""How often k-means starts anew; the lowest inertia is kept."""
CPU_ROWS = 1 << 16
"""Rows that are assigned at a time on the CPU. On a GPU no intermediate array is as wide as the embeddings."""
HASHED_ROWS = 1 << 22
"""Row indices that are hashed at a time."""
KEY_BITS = 24
"""Bits of the hash of a row index."""


class Discretizer(NamedTuple):
    """A fitted map from the embeddings of one modality to K cluster indices.

    A row x becomes x / sqrt(|x|^2 + radius^2). For rows of the usual norm or longer this is close to L2
    normalization, so outliers are bounded; it is also one to one, so information in the norm is not lost. The row is
    then projected on the leading principal directions and assigned to the nearest of the K centers.
    """

    radius: Tensor
    """() float64: the median norm of the rows that it was fitted on."""
    basis: Tensor
    """(D, d) float32: principal directions as columns, zeros where there are less than d."""
    offset: Tensor
    """(d,) float32: the projected mean."""
    centers: Tensor
    """(K, d) float32: the cluster centers."""
    sizes: Tensor
    """(K,) int64: fitted rows per cluster. With fewer distinct rows than clusters some clusters stay empty."""

    @classmethod
    def fit(
        cls, embeddings: Tensor, num_clusters: int = 20, num_components: int = 9, random_seed: int = 0
    ) -> "Discretizer":
        """Fit to embeddings (N, D), floating point, on their device.

        k-means++ seeding with 4 restarts, of which the one of lowest inertia is kept. At most 8192 rows are used,
        chosen by `sample_rows`. With fewer distinct rows than clusters some clusters stay empty, which does not
        change the information. The result depends on the arguments alone, never on the state of a random generator.

        Args:
            embeddings: (N, D), floating point.
            num_clusters: K.
            num_components: d, principal directions that are kept.
            random_seed: of the sample of rows and of k-means++.
        """
        return fit_together([embeddings], num_clusters, num_components, random_seed)[0]

    def assign(self, embeddings: Tensor) -> Tensor:
        """Cluster indices (N,) int64 of embeddings (N, D); -1 for a row with NaN or infinite values."""
        chunk_size = CPU_ROWS if embeddings.device.type == "cpu" else max(len(embeddings), 1)
        fitted = (self.basis, self.offset, self.radius, self.centers)
        parts = [project_nearest(rows, *fitted) for rows in embeddings.split(chunk_size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class ModalityPairs(NamedTuple):
    """The pairs of modalities whose cluster indices are counted.

    With two modalities there is one pair. With three or more there is every pair of modalities, and every modality
    against "the rest": all others, each scaled to the unit ball, concatenated and clustered as one. The K clusters of
    the rest hold less information than the modalities one by one, so uniqueness against the rest is an upper estimate.
    """

    modalities: dict[str, Discretizer]
    """By modality name."""
    rests: dict[str, Discretizer]
    """By the name of the modality that is left out; empty for two modalities."""

    @classmethod
    def fit(
        cls,
        embeddings: Mapping[str, Tensor],
        num_clusters: int,
        num_components: int,
        random_seed: int,
        sampled: Tensor | None = None,
    ) -> "ModalityPairs":
        """Fit to embeddings (N, D_m) by modality name; the arguments are those of `fit_together`."""
        options = (num_clusters, num_components, random_seed, sampled)
        names = list(embeddings)
        modalities = dict(zip(names, fit_together(list(embeddings.values()), *options), strict=True))
        partial = cls(modalities, {})
        if len(names) == 2:
            return partial
        rests = fit_together([partial.rest(embeddings, name) for name in names], *options)
        return cls(modalities, dict(zip(names, rests, strict=True)))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of the two sides of each pair, in the order of `assign`."""
        return pair_names(list(self.modalities))

    def assign(self, embeddings: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cluster indices of both sides of every pair, (pairs, N) int64 each."""
        single = [fitted.assign(embeddings[name]) for name, fitted in self.modalities.items()]
        if not self.rests:
            return single[0].unsqueeze(0), single[1].unsqueeze(0)
        rest = [fitted.assign(self.rest(embeddings, name)) for name, fitted in self.rests.items()]
        index_pairs = list(combinations(range(len(single)), 2))
        first = [*(single[a] for a, _ in index_pairs), *single]
        second = [*(single[b] for _, b in index_pairs), *rest]
        return torch.stack(first), torch.stack(second)

    def rest(self, embeddings: Mapping[str, Tensor], name: str) -> Tensor:
        """All modalities but `name`, scaled and concatenated: (N, sum of the other D_m) float32."""
        others = [other for other in self.modalities if other != name]
        scaled = [scale_rows(embeddings[other], self.modalities[other].radius).float() for other in others]
        return torch.cat(scaled, -1)


def pair_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """The names of the two sides of each pair: every two modalities and, of three or more, each against the rest."""
    rests = [(name, "rest") for name in names] if len(names) > 2 else []
    return [*combinations(names, 2), *rests]


@in_full_precision
def fit_together(
    embeddings: Sequence[Tensor],
    num_clusters: int,
    num_components: int,
    random_seed: int,
    sampled: Tensor | None = None,
) -> list[Discretizer]:
    """`Discretizer.fit` of several matrices (N, D_m) with the same N, in one batch of k-means problems.

    `sampled` are the rows that it is fitted to; those of `sample_rows` where it is None.
    """
    num_rows = len(embeddings[0])
    if num_rows > MAX_ROWS:
        if sampled is None:
            sampled = sample_rows(num_rows, MAX_ROWS, random_seed, embeddings[0].device)
        embeddings = [rows[sampled] for rows in embeddings]
    norms = torch.stack([torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float64) for rows in embeddings])
    radii = median_norm(norms)
    bases, offsets = _bases(embeddings, norms, radii, num_components)
    each = zip(embeddings, bases, offsets, radii.unbind(), strict=True)
    # (M, n, d)
    points = torch.stack([project(*arguments) for arguments in each])

    # This copies the points once a restart: no strides repeat each of several matrices.
    problems = points.unsqueeze(1).expand(-1, RESTARTS, -1, -1).flatten(0, 1)
    clustering = lloyd_inertia(problems, seed(problems, num_clusters, random_seed))
    best = clustering.inertia.reshape(-1, RESTARTS).argmin(-1, keepdim=True)
    # Of the restarts of each matrix.
    centers, sizes = (part.unflatten(0, (-1, RESTARTS)) for part in (clustering.centers, clustering.sizes))
    centers = centers.gather(1, best[..., None, None].expand(-1, -1, *centers.shape[2:])).squeeze(1)
    sizes = sizes.gather(1, best[..., None].expand(-1, -1, *sizes.shape[2:])).squeeze(1)
    fitted = (radii, bases, offsets, centers, sizes)
    return [Discretizer(*(values[m] for values in fitted)) for m in range(len(embeddings))]


def _bases(
    embeddings: Sequence[Tensor], norms: Tensor, radii: Tensor, num_components: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Principal directions (D_m, d) and the projected mean (d,) of each matrix, float32."""
    norms = norms[:, :MAX_PRINCIPAL_ROWS]
    # Rows that are not finite count as zeros here.
    scaled = [
        scaled_rows(rows[:MAX_PRINCIPAL_ROWS], norm, radius)
        for rows, norm, radius in zip(embeddings, norms, radii, strict=True)
    ]
    bases, offsets = [norms] * len(scaled), [norms] * len(scaled)
    for dimension in dict.fromkeys(rows.shape[1] for rows in scaled):
        members = [m for m, rows in enumerate(scaled) if rows.shape[1] == dimension]
        rows = torch.stack([scaled[m] for m in members])
        mean = rows.mean(1, keepdim=True)
        basis = principal_directions(rows - mean, num_components)
        # Not a matrix product, which a compiled graph would round as the flags say.
        offset = (mean.mT * basis).sum(1)
        for i, m in enumerate(members):
            bases[m], offsets[m] = basis[i], offset[i]
    return bases, offsets


def principal_directions(rows: Tensor, num_components: int) -> Tensor:
    """The leading principal directions of centered rows.

    The largest entry of each direction is positive. Where D is at most `num_components` all dimensions are kept, so
    the unit vectors are returned, followed by columns of zeros.

    Args:
        rows: (B, n, D) float32, each matrix of mean zero.
        num_components: d.

    Returns:
        (B, D, d) float32, the directions as columns.
    """
    batch, _, dimension = rows.shape
    if dimension <= num_components:
        return torch.eye(dimension, num_components, dtype=rows.dtype, device=rows.device).expand(
            batch, -1, -1
        )
    return leading_directions(rows, num_components)


def sample_rows(
    num_rows: int, max_rows: int, random_seed: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Indices of at most `max_rows` of `num_rows` rows, int64, ascending.

    They are the rows whose hashed indices are smallest. The result depends on the arguments alone, so processes that
    hold parts of one data set agree on the sample without communication.
    """
    if num_rows <= max_rows:
        return torch.arange(num_rows, device=device)
    smallest = []
    for start in range(0, num_rows, HASHED_ROWS):
        index = torch.arange(start, min(start + HASHED_ROWS, num_rows), device=device)
        # Rows share hashes; the smaller index wins among equals.
        key = (uniform(index, random_seed) * 2**KEY_BITS).to(torch.int64) << (63 - KEY_BITS) | index
        smallest.append(key.topk(min(max_rows, len(key)), largest=False, sorted=False).values)
    keys = smallest[0] if len(smallest) == 1 else torch.cat(smallest).topk(max_rows, largest=False).values
    return (keys & ((1 << (63 - KEY_BITS)) - 1)).sort().values


def kept_sample(num_rows: int, random_seed: int, device: torch.device) -> Tensor | None:
    """The rows of `sample_rows` that clusters are fitted to, kept for the next call; None where these are all.

    Not for a CUDA graph that is being captured, nor for a function that is traced: what is kept may be given up again.
    """
    if num_rows <= MAX_ROWS:
        return None
    # What one stream computes, another may not read yet.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _kept_sample(num_rows, random_seed, device, stream)


@functools.lru_cache(maxsize=16)
def _kept_sample(num_rows: int, random_seed: int, device: torch.device, stream: int) -> Tensor:
    # Made where gradients are off, it could not be used where they are on.
    with torch.inference_mode(False):
        return sample_rows(num_rows, MAX_ROWS, random_seed, device)
