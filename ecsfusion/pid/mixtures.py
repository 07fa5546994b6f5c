"""Readouts of what a linear readout is blind to: structure inside a modality, and interaction between modalities.

Directions come first. Inside a modality they are those along which the covariance differs most from class to class
(sliced average variance estimation, Cook and Weisberg 1991), between modalities those along which the cross-covariance
does; and in both cases those along which the rows are no Gaussian, whatever the label (`ecsfusion.pid.shape`). Along
them the rows are clustered softly, and a table tells the label from the clusters: p(y | k), or p(y | k, l) for both
modalities. A parity or a sum of hidden states is exactly such a table.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from ecsfusion_kernels import uniform
from torch import Tensor

from ecsfusion.pid.cholesky import half_solved, transposed_solved
from ecsfusion.pid.linear import LinearSums, TrainingSets, halves_of, products_of_slices
from ecsfusion.pid.shape import Shape
from ecsfusion.pid.smooth import is_worth, smooth_readout
from ecsfusion.pid.soft_tables import soft_clusters, table_readout

WHITENING = 1e-4
"""Share of the identity in the covariance that directions are sought in."""
MAX_VALUES = 1 << 23
"""Values C x D x D of the covariances by class; where there were more, rows are too few for them in any case."""
MIN_ROWS_PER_COLUMN = 0.5
"""Rows per class and column below which covariances by class are noise."""
MIN_RECURRENCE = 1.0
"""Standard errors by which differences of covariance recur in held-out rows; noise does so in one of six cases."""
ITERATIONS = 3
"""Of the search for directions."""
INNER_CLUSTERS = (8, 24)
MANY_CLUSTERS = 20
MAX_CHANGING = 9
"""The most directions along which the cross-covariance changes from class to class."""
SOURCE_CLUSTERS = 32
"""Along directions that are no Gaussian; four bits, and angles of a circle, are about half as many places."""
MAX_FORMED = 128 * 128
"""The most values of a covariance that is formed for each class of a half."""
MIN_ROWS_OF_SLICE = 64
"""With fewer rows for each fold and class, one product of all rows costs less than the calls of many."""
TINY = 1e-30


def has_enough_rows(first: LinearSums, second: LinearSums) -> bool:
    """Whether covariances by class between the columns of two sides, or of one with itself, tell anything."""
    rows, classes = first.sets.one_hot.shape
    sizes = first.rows.shape[1], second.rows.shape[1]
    enough = rows / classes >= MIN_ROWS_PER_COLUMN * max(sizes)
    return enough and classes * sizes[0] * sizes[1] <= MAX_VALUES


class ClassDifferences(NamedTuple):
    """Covariances of the columns of two sides within each class, minus their mean: (T, C, D1, D2), as an operator."""

    from_left: Callable[[Tensor], Tensor]
    """Of vectors (T, D1, w), the products (T, C, D2, w) of the transposed matrices with them."""
    from_right: Callable[[Tensor], Tensor]
    """Of vectors (T, C, D2, w), the products of the matrices with them, averaged over the classes: (T, D1, w)."""


def class_differences(first: LinearSums, second: LinearSums) -> ClassDifferences:
    """The operator; of halves with many columns, that are read piece by piece, the matrices are never formed."""
    if first.sets.is_in_pieces and first.rows.shape[1] * second.rows.shape[1] > MAX_FORMED:
        rows = _rows_of_sets(first.sets)
        if rows is not None:
            return _by_rows(first, second, rows)
    differences = class_products(first, second)
    share = first.share[..., None, None]
    return ClassDifferences(
        lambda vectors: differences.mT @ vectors.unsqueeze(1),
        lambda vectors: ((differences @ vectors) * share).sum(1),
    )


def _rows_of_sets(sets: TrainingSets) -> list[slice] | None:
    """The rows of each training set, where these are one piece and no row is in two: halves, or one of them."""
    slices, rows = sets.slices(), []
    for folds in sets.folds_in.bool():
        place = folds.nonzero().squeeze(1).tolist()
        if place[-1] - place[0] != len(place) - 1:
            return None
        rows.append(slice(slices[place[0]].start, slices[place[-1]].stop))
    return rows if sum(part.stop - part.start for part in rows) <= len(sets.fold) else None


def _by_rows(first: LinearSums, second: LinearSums, rows_of_set: list[slice]) -> ClassDifferences:
    """The operator of sets of rows without a common row, from products of the rows with a few vectors."""
    sets, classes = first.sets, first.sets.num_classes
    cells = sets.cells or ()
    share = first.share[..., None, None]
    sizes = sets.counts.clamp_min(1)[..., None, None]
    # The rows of one class in one fold: set, class, rows.
    parts = [
        (number, cell % classes, slice(start, end))
        for cell, (start, end) in enumerate(pairwise(cells))
        for number, own in enumerate(rows_of_set)
        if own.start <= start and end <= own.stop and start < end
    ]
    means = [side.deviation + side.center[:, None] for side in (first, second)]

    # A product with few columns is read fastest from the left.
    def from_left(vectors: Tensor) -> Tensor:
        by_row = vectors.mT.contiguous()
        offsets = -(means[0] @ vectors).unsqueeze(-1)
        sums = vectors.new_zeros(len(vectors), classes, vectors.shape[-1], second.rows.shape[1])
        for number, label, rows in parts:
            along = torch.addmm(offsets[number, label], by_row[number], first.rows[rows].T)
            sums[number, label].addmm_(along, second.rows[rows])
        sums /= sizes
        return (sums - (sums * share).sum(1, keepdim=True)).mT

    def from_right(vectors: Tensor) -> Tensor:
        vectors = vectors - (vectors * share).sum(1, keepdim=True)
        weighted = (vectors * (share / sizes)).mT.contiguous()
        offsets = -(weighted @ means[1].unsqueeze(-1))
        sums = vectors.new_zeros(len(vectors), vectors.shape[-1], first.rows.shape[1])
        for number, label, rows in parts:
            along = torch.addmm(offsets[number, label], weighted[number, label], second.rows[rows].T)
            sums[number].addmm_(along, first.rows[rows])
        return sums.mT

    return ClassDifferences(from_left, from_right)


def class_products(first: LinearSums, second: LinearSums) -> Tensor:
    """Covariances of the columns of two sides within each class, minus their mean: (T, C, D1, D2)."""
    sets = first.sets
    classes, folds = sets.num_classes, sets.num_folds
    if sets.cells is not None:
        slices = [slice(start, end) for start, end in pairwise(sets.cells)]
        parts = products_of_slices(first.rows, second.rows, slices)
    else:
        parts = torch.stack(
            [
                (first.rows * ((sets.fold == k)[:, None] * sets.one_hot[:, c : c + 1])).T @ second.rows
                for k in range(folds)
                for c in range(classes)
            ]
        )
    sums = sets.sums(parts.view(folds, classes, *parts.shape[1:]))
    means = [side.deviation + side.center[:, None] for side in (first, second)]
    covariance = sums.div_(sets.counts.clamp_min(1)[..., None, None])
    covariance -= means[0][..., :, None] * means[1][..., None, :]
    covariance *= (sets.counts > 0)[..., None, None]
    return covariance.sub_(torch.einsum("tc,tcde->tde", first.share, covariance).unsqueeze(1))


def coordinates(first: LinearSums, second: LinearSums, number: int) -> tuple[Tensor, ...]:
    """Both sides along the directions in which their covariance differs most from class to class: (N, T, q) each.

    Each coordinate is scaled by how far it stands out from noise. There are none where the differences do not recur in
    the rows that each set is read by; of two halves with many columns one is tried before the other.
    """
    many = first.rows.shape[1] * second.rows.shape[1] > MAX_FORMED
    if many and first.sets.cells is not None and len(first.sets.counts) == 2:
        half = first.one_set(0)
        if not _coordinates(half, half if first is second else second.one_set(0), number, ITERATIONS - 1):
            return ()
    return _coordinates(first, second, number, ITERATIONS)


def _coordinates(first: LinearSums, second: LinearSums, number: int, iterations: int) -> tuple[Tensor, ...]:
    """`coordinates` of all sets at once."""
    whitening = torch.tensor(WHITENING, dtype=first.rows.dtype, device=first.rows.device)
    factor = first.factor(whitening)
    factors = factor, factor if first is second else second.factor(whitening)
    differences = class_differences(first, second)
    share = first.share[..., None, None]
    sizes = first.rows.shape[1], second.rows.shape[1]
    number = min(number, *sizes)
    width = min(number + 4, *sizes)

    def whiten(factor: Tensor, vectors: Tensor, transposed: bool) -> Tensor:
        """The inverse of a factor (T, D, D), or of its transpose, applied to vectors (T, C or 1, D, w)."""
        flat = vectors.transpose(1, 2).flatten(2)
        found = (transposed_solved if transposed else half_solved)(factor, flat)
        return found.view(len(flat), vectors.shape[2], *vectors.shape[1::2]).transpose(1, 2)

    start = uniform(torch.arange(sizes[0] * width, device=first.rows.device), 7).view(sizes[0], width) - 0.5
    left = torch.linalg.qr(start.expand(len(first.center), -1, -1)).Q

    def from_left() -> Tensor:
        return whiten(
            factors[1], differences.from_left(whiten(factors[0], left.unsqueeze(1), True)[:, 0]), False
        )

    for _ in range(iterations):
        back = differences.from_right(whiten(factors[1], from_left(), True))
        left = torch.linalg.qr(whiten(factors[0], back.unsqueeze(1), False).squeeze(1)).Q
    there = from_left()
    # (T, D2, C w) -> its leading left vectors are the directions of the second side.
    stacked = (there * share.sqrt()).transpose(1, 2).flatten(2)
    energy = torch.einsum("tcdw,tcde->twe", there * share, there)
    values, rotation = (part.to(left.dtype) for part in torch.linalg.eigh(energy.double()))
    left = left @ rotation.flip(-1)[..., :number]
    values = values.flip(-1).clamp_min(0)
    right = _leading_left_vectors(stacked, number)
    noise = values[..., -1:]
    weight = ((values[..., :number] - noise).clamp_min(0) / values[..., :1].clamp_min(TINY)).sqrt()
    along, within = [], []
    for side, factor, directions in zip((first, second), factors, (left, right), strict=True):
        weights = transposed_solved(factor, directions)
        along.append(_scores(side, weights))
        means = (side.deviation @ weights).index_select(1, side.sets.labels)
        within.append(along[-1] - means.transpose(0, 1))
    forms = rotation.flip(-1)[..., :number].mT.unsqueeze(1) @ (there.mT @ right.unsqueeze(1))
    if not recurs(within[0], within[1], forms, first.sets):
        return ()
    return along[0] * weight, along[1] * weight


def _scores(side: LinearSums, weights: Tensor) -> Tensor:
    """A side less its centers along weights (T, D, q): (N, T, q); of half 0 alone in the rows of the other, else 0."""
    offset = -(side.center[:, None] @ weights)[:, 0]
    if len(weights) > 1:
        return side.scores(weights, offset)
    read = halves_of(side.sets)[0][1]
    scores = offset.new_zeros(len(side.rows), *offset.shape)
    scores[read] = side._replace(rows=side.rows[read]).scores(weights, offset)
    return scores


def recurs(left: Tensor, right: Tensor, forms: Tensor, sets: TrainingSets) -> bool:
    """Whether coordinates (N, T, q) from the means of the classes vary in held-out rows as forms (T, C, q, q) say.

    A form is the covariance of a class minus the mean over classes, on the training rows. Without such differences the
    statistic is that of a standard normal.
    """
    many = sets.is_in_pieces and len(sets.fold) >= MIN_ROWS_OF_SLICE * len(sets.cells or ())
    told = (_told_by_cell if many else _told)(left, right, forms, sets)
    error = (told - told.mean()).square().mean().sqrt() / len(told) ** 0.5
    return bool(told.mean() > MIN_RECURRENCE * error)


def _told(left: Tensor, right: Tensor, forms: Tensor, sets: TrainingSets) -> Tensor:
    """The form of its own class at each held-out row, (n,) float64."""
    products = (left.unsqueeze(-1) * right.unsqueeze(-2)).flatten(2).transpose(0, 1)
    every = (products @ forms.flatten(2).mT).transpose(0, 1)
    if len(forms) == 1:
        # A set alone, which reads the other rows.
        read = sets.member[:, 0] == 0
        values, labels = every[None, read, 0], sets.labels[read]
    else:
        values, labels = sets.held_out(every), sets.labels
    return values.gather(2, labels.expand(len(values), -1).unsqueeze(2)).mean((0, 2)).double()


def _told_by_cell(left: Tensor, right: Tensor, forms: Tensor, sets: TrainingSets) -> Tensor:
    """`_told` of rows that are sorted by fold and class, without the forms of other classes and sets."""
    told = []
    for cell, (start, end) in enumerate(pairwise(sets.cells or ())):
        fold, label = divmod(cell, sets.num_classes)
        if len(forms) > 1:
            place = sets.readers[0][fold]
        elif not sets.folds_in[0, fold]:
            place = 0
        else:
            continue
        rows = slice(start, end)
        told.append(((left[rows, place] @ forms[place, label]) * right[rows, place]).sum(-1))
    return torch.cat(told).double()


def _leading_left_vectors(matrix: Tensor, number: int) -> Tensor:
    """The first left singular vectors of matrices (T, D, n), as columns (T, D, q)."""
    wide = matrix.double()
    if matrix.shape[1] <= matrix.shape[2]:
        return torch.linalg.eigh(wide @ wide.mT).eigenvectors.flip(-1)[..., :number].to(matrix.dtype)
    vectors = wide @ torch.linalg.eigh(wide.mT @ wide).eigenvectors.flip(-1)[..., :number]
    return (vectors / vectors.norm(dim=1, keepdim=True).clamp_min(TINY)).to(matrix.dtype)


def discriminant_coordinates(side: LinearSums, factor: Tensor, number: int) -> Tensor:
    """A side along the leading directions of its discriminant analysis, (N, T, q), scaled by what they separate."""
    span = half_solved(factor, (side.deviation * side.share.sqrt()[..., None]).mT)
    values, rotation = (part.to(span.dtype) for part in torch.linalg.eigh((span.mT @ span).double()))
    number = min(number, span.shape[-1])
    directions = span @ rotation.flip(-1)[..., :number]
    weights = transposed_solved(factor, directions)
    weights = weights / values[:, None, -1:].clamp_min(TINY).sqrt()
    return side.scores(weights, -(side.center[:, None] @ weights)[:, 0])


class Search(NamedTuple):
    """Coordinates in which clusters are sought, and how many."""

    coordinates: Callable[[], tuple[Tensor, ...]]
    """Gives one (N, T or 1, q) for each side, or none where nothing is to be found."""
    num_clusters: tuple[int, ...]
    """For each table."""
    is_smooth: bool = False
    """Whether a smooth readout of the coordinates of all sides is made, too."""


def _side_by_side(points: Sequence[Tensor]) -> Tensor | None:
    """Coordinates (N, T or 1, q) of all sides as one (N, T or 1, sum of q); None where there are none."""
    number = max((part.shape[1] for part in points), default=0)
    return torch.cat([part.expand(-1, number, -1) for part in points], 2) if points else None


def inner_searches(side: LinearSums, factor: Tensor, shape: Shape) -> list[Search]:
    """Where the structure inside one side is sought.

    Along the directions of the largest variance and of the length of the rows, and those that are no Gaussian, which
    see what is there before the label is known; along the directions in which the covariance changes from class to
    class; and along these and those of the discriminant analysis, by a smooth function.

    Args:
        side: its sums.
        factor: of its discriminant analysis.
        shape: of its rows.
    """
    enough = has_enough_rows(side, side)

    @cache
    def changing() -> tuple[Tensor, ...]:
        return coordinates(side, side, 4)[:1] if enough else ()

    def known() -> tuple[Tensor, ...]:
        return (discriminant_coordinates(side, factor, 3), *changing())

    searches = [Search(lambda: (shape.leading,), (MANY_CLUSTERS,))]
    if enough:
        searches.append(Search(changing, INNER_CLUSTERS))
    searches.append(Search(lambda: shape.sources, (SOURCE_CLUSTERS,), is_smooth=True))
    return [*searches, Search(known, (), is_smooth=True)]


def cross_searches(
    first: LinearSums,
    second: LinearSums,
    factors: tuple[Tensor, Tensor],
    shapes: tuple[Shape, Shape],
) -> list[Search]:
    """Where the interaction between two sides is sought.

    Args:
        first: the sums of one side.
        second: those of the other.
        factors: of their discriminant analysis.
        shapes: of their rows. In place of the sources of a side without any stand the directions of its discriminant
            analysis.
    """
    classes = first.sets.one_hot.shape[1]
    enough = has_enough_rows(first, second)

    @cache
    def by_class() -> tuple[Tensor, ...]:
        sides = zip((first, second), factors, strict=True)
        return tuple(discriminant_coordinates(side, factor, 3) for side, factor in sides)

    number = min(max(classes - 1, 2), MAX_CHANGING)

    @cache
    def changing() -> tuple[Tensor, ...]:
        return coordinates(first, second, number) if enough else ()

    @cache
    def widely() -> tuple[Tensor, ...]:
        return coordinates(first, second, MAX_CHANGING) if changing() else ()

    def shaped() -> tuple[Tensor, ...]:
        if not any(shape.sources for shape in shapes):
            return ()
        both = zip(shapes, by_class(), strict=True)
        return tuple(shape.sources[0] if shape.sources else known for shape, known in both)

    def known() -> tuple[Tensor, ...]:
        return (*by_class(), *(part[..., :3] for part in changing()))

    searches = [Search(by_class, (12,))]
    if enough:
        searches.append(Search(changing, (min(max(classes + 1, 4), 16), MANY_CLUSTERS)))
        if number < MAX_CHANGING:
            # Kinds of things that are the same or not lie along more directions than there are classes.
            searches.append(Search(widely, (SOURCE_CLUSTERS,)))
    searches.append(Search(shaped, (SOURCE_CLUSTERS,), is_smooth=True))
    searches.append(Search(lambda: tuple(shape.spread for shape in shapes), (SOURCE_CLUSTERS,)))
    return [*searches, Search(known, (), is_smooth=True)]


def table_readouts(
    searches: Sequence[Search],
    sets: TrainingSets,
    log_prior: Tensor,
    random_seed: int,
    wanted: Tensor | None = None,
    known: Tensor | None = None,
) -> tuple[list[Tensor], list[int]]:
    """Held-out logits (N, C) of all tables and smooth readouts of the searches, and the place of each among them.

    Args:
        searches: where to look.
        sets: T training sets, one of which reads each row.
        log_prior: (C,).
        random_seed: of the clusters.
        wanted: boolean, one for each table; None for all of them. The others are not made.
        known: (K, N, C) held-out logits of the linear readouts, by halves, where a smooth readout is tried on few rows
            before it is made; else None.
    """
    chosen = None if wanted is None else wanted.tolist()
    readouts: list[Tensor] = []
    places: list[int] = []
    place = 0
    for search in searches:
        points: tuple[Tensor, ...] | None = None
        for number in search.num_clusters:
            if chosen is None or chosen[place]:
                points = search.coordinates() if points is None else points
                if points:
                    shares = soft_clusters(points, number, random_seed)
                    readouts.append(table_readout(shares, sets, log_prior))
                    places.append(place)
            place += 1
        if search.is_smooth:
            if chosen is None or chosen[place]:
                every = _side_by_side(search.coordinates())
                if every is not None and (
                    known is None or is_worth(every, known, sets, log_prior, random_seed)
                ):
                    readouts.append(smooth_readout(every, sets, log_prior, random_seed))
                    places.append(place)
            place += 1
    return readouts, places
