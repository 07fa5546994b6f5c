"""Kinds of columns that real tables and embeddings have, in two modalities: skewed, discrete, curved, in thresholds.

Each is a function of a generator and a number of rows, to columns (N, D1) and (N, D2) and labels (N,). Of most the
truth is not known, so what they tell is compared with what classifiers prove. Problems that others published are in
published_kinds.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]
Draw = Callable[[Generator, int], tuple[Array, Array, Array]]


def named(*draws: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Functions by their names, as words."""
    return {draw.__name__.replace("_", " "): draw for draw in draws}


def beside_noise(draw: Callable[[Generator, int], tuple[Array, Array]]) -> Draw:
    """Columns and labels, and a second modality of noise."""

    def both(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
        columns, labels = draw(rng, rows)
        return columns, rng.normal(size=(rows, 4)), labels

    return both


def around_means(rng: Generator, labels: Array, columns: int, strength: float) -> Array:
    """Gaussian columns around a mean of each class."""
    means = strength * rng.normal(size=(labels.max() + 1, columns))
    return means[labels] + rng.normal(size=(len(labels), columns))


def unit_length(rows: Array) -> Array:
    """Rows divided by their length."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def words(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Counts of 500 words in short texts of six topics."""
    labels = rng.integers(6, size=rows)
    usual = rng.dirichlet(np.full(500, 0.05))
    topics = np.stack([rng.dirichlet(usual * 500 + 1e-3) for _ in range(6)])
    return np.stack([rng.multinomial(40, 0.15 * topics[k] + 0.85 * usual) for k in labels]), labels


def weighted_words(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The same by inverse document frequency, of unit length."""
    counts, labels = words(rng, rows)
    return unit_length(counts * np.log(len(counts) / (1 + (counts > 0).sum(0)))), labels


def rectified(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A layer with rectifiers, of unit length, over Gaussian classes."""
    labels = rng.integers(8, size=rows)
    hidden = around_means(rng, labels, 32, 0.5) @ rng.normal(size=(32, 128)) / 6
    return unit_length(np.maximum(0, hidden - 0.5)), labels


def signs(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Signs of projections of Gaussian classes."""
    labels = rng.integers(8, size=rows)
    return np.sign(around_means(rng, labels, 32, 0.5) @ rng.normal(size=(32, 64))), labels


def probabilities(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Another model's probabilities of twenty classes."""
    labels = rng.integers(8, size=rows)
    logits = 0.5 * around_means(rng, labels, 32, 0.5) @ rng.normal(size=(32, 20))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True), labels


def heavy_tails(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Cauchy noise."""
    labels = rng.integers(8, size=rows)
    return 0.8 * rng.normal(size=(8, 32))[labels] + rng.standard_cauchy(size=(rows, 32)), labels


def outliers(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Ten rows that are a hundred thousand times as long."""
    labels = rng.integers(8, size=rows)
    columns = around_means(rng, labels, 32, 0.5)
    columns[rng.integers(rows, size=10)] *= 1e5
    return columns, labels


def rare_class(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Two positives in a hundred."""
    labels = (rng.random(rows) < 0.02).astype(int)
    return around_means(rng, labels, 16, 1.0), labels


def wrong_labels(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Three of ten labels drawn anew."""
    labels = rng.integers(8, size=rows)
    columns = around_means(rng, labels, 64, 1.0)
    return columns, np.where(rng.random(rows) < 0.3, rng.integers(8, size=rows), labels)


def radius(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Inside or outside of a circle in a plane of sixteen mixed columns."""
    hidden = rng.normal(size=(rows, 16))
    return hidden @ rng.normal(size=(16, 16)), (np.square(hidden[:, :2]).sum(1) > 1.4).astype(int)


def _spiral(rng: Generator, rows: int) -> tuple[Array, Array]:
    turn, arm = rng.random(rows) * 4 * np.pi, rng.integers(2, size=rows)
    places = turn[:, None] * np.stack([np.cos(turn + np.pi * arm), np.sin(turn + np.pi * arm)], 1)
    return places + 0.6 * rng.normal(size=(rows, 2)), arm


def spirals(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Two arms of a spiral."""
    return _spiral(rng, rows)


def _board(rng: Generator, rows: int) -> tuple[Array, Array]:
    fields = rng.integers(4, size=(rows, 2))
    return fields + rng.random((rows, 2)), fields.sum(1) % 2


def board(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The colour of a field of a board of 4 x 4."""
    return _board(rng, rows)


def board_in_noise(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The same among twelve columns of noise."""
    places, labels = _board(rng, rows)
    return np.concatenate([places, rng.normal(size=(rows, 12))], 1), labels


def islands(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Forty islands of five classes in sixteen columns."""
    means, island = 2 * rng.normal(size=(40, 16)), rng.integers(40, size=rows)
    return means[island] + 0.7 * rng.normal(size=(rows, 16)), island % 5


def scales(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Classes that differ in how far their rows are from the middle."""
    labels = rng.integers(4, size=rows)
    return rng.normal(size=(rows, 64)) * np.array([0.9, 1.0, 1.11, 1.23])[labels][:, None], labels


def covariances(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Classes that differ in their covariance."""
    labels = rng.integers(4, size=rows)
    maps = np.eye(16) + rng.normal(size=(4, 16, 16)) / 4
    return np.einsum("nij,nj->ni", maps[labels], rng.normal(size=(rows, 16))), labels


def categories(rng: Generator, rows: int) -> tuple[Array, Array]:
    """One of two hundred categories, nine of which tell the class."""
    labels = rng.integers(3, size=rows)
    telling = labels * 3 + rng.integers(3, size=rows)
    return np.eye(200)[np.where(rng.random(rows) < 0.5, telling, rng.integers(9, 200, size=rows))], labels


def missing_values(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A fifth of the values missing, written as -999."""
    labels = rng.integers(8, size=rows)
    columns = around_means(rng, labels, 24, 0.8).round(1)
    return np.where(rng.random(columns.shape) < 0.2, -999, columns), labels


def tree(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Thresholds of columns that depend on other columns."""
    columns = rng.normal(size=(rows, 6))
    left = np.where(columns[:, 0] > 0, columns[:, 1] > 0.5, columns[:, 2] < -0.3)
    return columns, left * 2 + ((columns[:, 3] > 0) & (columns[:, 4] > 0))


def both_thresholds(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Two columns of twelve that must both be beyond a threshold, twice."""
    columns = rng.normal(size=(rows, 12))
    first = (columns[:, 0] > 0.3) & (columns[:, 5] < 0.2)
    return columns, first + 2 * ((columns[:, 7] > 0.5) & (columns[:, 2] > -0.2))


def largest(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Which of four columns is the largest."""
    columns = rng.normal(size=(rows, 6))
    return columns, columns[:, :4].argmax(1)


def parity(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The parity of three of ten bits."""
    bits = rng.integers(2, size=(rows, 10))
    return bits.astype(float), bits[:, :3].sum(1) % 2


def gaussian(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Gaussian classes, which a line tells."""
    labels = rng.integers(8, size=rows)
    return around_means(rng, labels, 48, 0.5), labels


def noise(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Nothing."""
    return rng.normal(size=(rows, 24)), rng.integers(4, size=rows)


def board_across(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """Each side has a column of the board."""
    places, labels = _board(rng, rows)
    return places[:, :1], places[:, 1:], labels


def board_across_in_noise(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """The same, each among nine columns of noise."""
    places, labels = _board(rng, rows)
    sides = (np.concatenate([places[:, [m]], rng.normal(size=(rows, 9))], 1) for m in (0, 1))
    return *sides, labels


def spiral_across(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """Each side has a coordinate of two arms of a spiral."""
    places, labels = _spiral(rng, rows)
    return places[:, :1], places[:, 1:], labels


def correlation(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """The sign of the correlation of both sides."""
    labels = rng.integers(2, size=rows)
    first = rng.normal(size=(rows, 4))
    return first, 0.8 * (2 * labels - 1)[:, None] * first + 0.6 * rng.normal(size=(rows, 4)), labels


def rotations(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """Which of three rotations of the first side the second is."""
    labels, first = rng.integers(3, size=rows), rng.normal(size=(rows, 16))
    turns = np.linalg.qr(rng.normal(size=(3, 16, 16)))[0]
    return (
        first,
        0.8 * np.einsum("nij,nj->ni", turns[labels], first) + 0.6 * rng.normal(size=(rows, 16)),
        labels,
    )


def product(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """The sign of the product of a mixed direction of each side."""
    hidden = rng.normal(size=(2, rows, 8))
    sides = (part @ rng.normal(size=(8, 8)) for part in hidden)
    return *sides, (hidden[0, :, 0] * hidden[1, :, 0] > 0).astype(int)


def distance(rng: Generator, rows: int) -> tuple[Array, Array, Array]:
    """Whether a column of each side are near each other."""
    first, second = rng.normal(size=(2, rows, 1))
    return first, second, (np.abs(first - second)[:, 0] < 0.7).astype(int)


ALONE = (
    words,
    weighted_words,
    rectified,
    signs,
    probabilities,
    heavy_tails,
    outliers,
    rare_class,
    wrong_labels,
    radius,
    spirals,
    board,
    board_in_noise,
    islands,
    scales,
    covariances,
    categories,
    missing_values,
    tree,
    both_thresholds,
    largest,
    parity,
    gaussian,
    noise,
)
ACROSS = (board_across, board_across_in_noise, spiral_across, correlation, rotations, product, distance)
KINDS: dict[str, Draw] = {
    **{name: beside_noise(draw) for name, draw in named(*ALONE).items()},
    **named(*ACROSS),
}
"""By name: those of one modality beside noise, and those across two."""
