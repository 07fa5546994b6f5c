"""Embeddings whose information about the label is known: discrete states behind continuous rows.

A label is drawn; each modality sees a state; the state chooses a direction in a space of realistic dimension, to which
continuous nuisance of lower rank and isotropic noise are added. The table of states and label is known, and so is its
decomposition, up to the states that the noise confuses (none at the default spread).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecsfusion.pid.decomposition import decompose

KINDS = ("unique", "redundant", "synergy")


class Flow(NamedTuple):
    """N samples of two modalities with the certified decomposition of their population, in bits."""

    # (N, D1)
    first: NDArray[np.float32]
    # (N, D2)
    second: NDArray[np.float32]
    # (N,)
    labels: NDArray[np.int64]
    redundancy: float
    unique: tuple[float, float]
    synergy: float


def population(kind: str, amount: float, classes: int) -> NDArray[np.float64]:
    """P(state 1, state 2, y), (2 C, 2 C, C): with probability `amount` the label follows its source, else chance.

    The source is the state of modality 1 ("unique"), a state that both see ("redundant") or the sum of both states
    modulo C ("synergy"). A second, uninformative half of each state keeps the clusters busy.
    """
    table = np.zeros((classes, classes, classes))
    for a in range(classes):
        for b in range(classes):
            if kind == "redundant" and a != b:
                continue
            source = (a + b) % classes if kind == "synergy" else a
            table[a, b] += (1 - amount) / classes
            table[a, b, source] += amount
    busy = np.full((2, 2), 0.25)
    both = np.einsum("abc,ij->aibjc", table / table.sum(), busy)
    return both.reshape(2 * classes, 2 * classes, classes)


def draw(
    table: NDArray[np.float64],
    samples: int,
    dimensions: tuple[int, int] = (256, 128),
    spread: float = 0.25,
    seed: int = 0,
) -> Flow:
    """Embeddings of `samples` draws from P(state 1, state 2, y)."""
    generator = np.random.default_rng(seed)
    cells = generator.choice(table.size, samples, p=table.ravel())
    first, second, labels = np.unravel_index(cells, table.shape)
    truth = decompose(table, tolerance=1e-4)
    rows = [
        _embed(state, number, dimension, spread, generator)
        for state, number, dimension in zip((first, second), table.shape[:2], dimensions, strict=True)
    ]
    unique1, unique2 = truth.unique.tolist()
    return Flow(*rows, labels, float(truth.redundancy), (unique1, unique2), float(truth.synergy))


def _embed(
    state: NDArray[np.int64], number: int, dimension: int, spread: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    directions = generator.normal(size=(number, dimension)) / np.sqrt(dimension)
    nuisance = (
        generator.normal(size=(len(state), 4))
        @ generator.normal(size=(4, dimension))
        / np.sqrt(4 * dimension)
    )
    noise = generator.normal(size=(len(state), dimension)) / np.sqrt(dimension)
    return (directions[state] + spread * (nuisance + noise)).astype(np.float32)
