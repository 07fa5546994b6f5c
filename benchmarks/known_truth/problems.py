"""Two modalities and a label whose decomposition is known: `problems()` lists a hundred, `truth()` tells the answer.

    OMP_NUM_THREADS=1 python -m benchmarks.known_truth.problems      # compute truth.json anew, where it is out of date
    python -m benchmarks.known_truth.problems --table                # print the problems and their truth

All are built alike. A hidden state z has probabilities p(z) and gives the label by P(y | z). Each modality shows z as
a point of a space of few signal directions, with Gaussian noise of spread 1. This point, directions without any
information (nuisance, of any spread) and unit noise are then turned into D dimensions by a random rotation; after
that the columns may be given other units. Neither nuisance nor rotation nor units change what a modality knows, so
the exact posteriors follow from the few signal directions:

- I_m = H(Y) - E[H(pi_m)], the mean over many draws (posteriors are exact, labels are not used).
- The union information: the posteriors of these draws are gathered into K clusters with soft tables T(k, y). The
  certified solver's value for the clusters can only be too small, and by at most what the clusters lose of I_1 and
  I_2, which is known. Two sizes of K give the limit without any loss. In the Gaussian family of two classes, for
  exclusive or, sums modulo C, copies and noise, the closed form is used instead.

The seed of a problem comes from its name and `suite_seed`, so another suite seed gives fresh problems of the same
kinds.
"""

import argparse
import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ecsfusion_kernels import broja
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

TRUTH_FILE = Path(__file__).with_name("truth.json")
NUM_ROWS = 200_000
ATOMS = 1200
# Directions of one modality that hold no information: how many, and of which spread.
Nuisance = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Truth:
    """Information about the label in bits, and how far any of the numbers may be off."""

    I1: float
    I2: float
    I12: float
    R: float
    U1: float
    U2: float
    S: float
    error: float
    entropy: float

    @property
    def atoms(self) -> tuple[float, float, float, float]:
        """R, U1, U2, S: the order of `ATOMS` in the other benchmarks."""
        return self.R, self.U1, self.U2, self.S

    @property
    def tolerance(self) -> float:
        """What an estimate from 20 000 rows may be off: 0.05 bits or 5 % of H(Y)."""
        return max(0.05, 0.05 * self.entropy)


@dataclass(frozen=True)
class View:
    """How one modality is made of its signal: columns, nuisance, units, shape of a modality without any signal."""

    columns: int
    nuisance: Nuisance = ()
    # Every column has its own factor, from 1e-3 to 1e3, and its own offset.
    units: bool = False
    # "gaussian", "heavy" (Student's t, 2 degrees of freedom) or "clustered": the last two hold no signal.
    shape: str = "gaussian"


@dataclass(frozen=True, eq=False)
class Problem:
    """One distribution of (x1, x2, y)."""

    name: str
    kind: str
    num_classes: int
    dims: tuple[int, int]
    views: tuple[View, View]
    states: Floats = field(repr=False)
    """(Z,): p(z)."""
    label_given_state: Floats = field(repr=False)
    """(Z, C): P(y | z)."""
    means: tuple[Floats, Floats] = field(repr=False)
    """(Z, d1) and (Z, d2): where each modality shows z, in its signal directions."""
    correlation: float = 0.0
    """Of the noise of the first signal directions, pair by pair."""
    copy: str = ""
    """x2 is a map of x1: "affine" or "arcsinh" (column by column)."""
    closed_form: str = ""
    """Where the union information is known: "better" (that of the better modality), "zero", or "" for the solver."""
    shared_nuisance: bool = False
    """The nuisance of x2 has the values of that of x1."""
    seed: int = 0
    suite_seed: int = 0

    @property
    def prior(self) -> Floats:
        """(C,): p(y)."""
        return self.states @ self.label_given_state

    @property
    def entropy(self) -> float:
        """H(Y), bits."""
        return float(entropy(self.prior))

    def draw(self, num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x1 (N, D1) and x2 (N, D2) float32, and y (N,) int64."""
        return self.draw_with_posteriors(num_rows, seed)[:3]

    def draw_with_posteriors(
        self, num_rows: int, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Floats, Floats, Floats]]:
        """`draw`, and the exact posteriors of these rows: given x1, given x2, given both; each (N, C)."""
        rng = np.random.default_rng([self.seed, seed])
        state = rng.choice(len(self.states), num_rows, p=self.states / self.states.sum())
        label = sample_rows(self.label_given_state[state], rng)
        first, second = self._signals(state, rng)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{seed}".encode()))
        x1, nuisance = self._show(0, first, generator, None)
        if self.copy:
            x2 = self._map(x1)
        else:
            x2, _ = self._show(1, second, generator, nuisance if self.shared_nuisance else None)
        return x1, x2, torch.from_numpy(label), self.posteriors(first, second)

    def posteriors(self, first: Floats, second: Floats) -> tuple[Floats, Floats, Floats]:
        """P(y | x1), P(y | x2), P(y | x1, x2), each (N, C), of signals (N, d1) and (N, d2)."""
        means1, means2 = self.means
        one = log_densities(first, means1)
        alone = self._label(one)
        if self.copy:
            return alone, alone, alone
        two = log_densities(second, means2)
        given_first = two
        if self.correlation:
            pairs, r = min(means1.shape[1], means2.shape[1]), self.correlation
            second, means2 = second.copy(), means2.copy()
            second[:, :pairs] = (second[:, :pairs] - r * first[:, :pairs]) / math.sqrt(1 - r * r)
            means2[:, :pairs] = (means2[:, :pairs] - r * means1[:, :pairs]) / math.sqrt(1 - r * r)
            given_first = log_densities(second, means2)
        return alone, self._label(two), self._label(one + given_first)

    def draw_signals(self, num_rows: int, seed: int = 0) -> tuple[Floats, Floats]:
        """The signal directions alone, with every state in its exact share, for the truth."""
        rng = np.random.default_rng([self.seed, seed, 1])
        edges = np.cumsum(self.states / self.states.sum())
        places = (np.arange(num_rows) + rng.uniform()) / num_rows
        state = np.minimum(np.searchsorted(edges, places), len(edges) - 1)
        return self._signals(state, rng)

    def truth(self, num_rows: int = NUM_ROWS, atoms: int = ATOMS) -> Truth:
        """The decomposition in bits; from truth.json where it is there and nothing has been changed.

        Args:
            num_rows: draws for the means.
            atoms: clusters of posteriors per modality, where the solver is needed.
        """
        if self.suite_seed == 0 and (num_rows, atoms) == (NUM_ROWS, ATOMS):
            stored = stored_truths().get(self.name)
            if stored is not None and stored["fingerprint"] == self.fingerprint:
                return Truth(**{name: stored[name] for name in Truth.__dataclass_fields__})
        return computed(self, num_rows, atoms)

    @property
    def fingerprint(self) -> int:
        """Another number for every other distribution of signals and labels."""
        parts = (self.states, self.label_given_state, *self.means, np.array([self.correlation]))
        data = b"".join(np.round(part, 9).tobytes() for part in parts)
        return zlib.crc32(data + f"{self.copy}/{self.closed_form}".encode())

    def _signals(self, state: NDArray[np.int64], rng: np.random.Generator) -> tuple[Floats, Floats]:
        first, second = (rng.normal(size=(len(state), mean.shape[1])) for mean in self.means)
        pairs, r = min(first.shape[1], second.shape[1]), self.correlation
        second[:, :pairs] = r * first[:, :pairs] + math.sqrt(1 - r * r) * second[:, :pairs]
        return first + self.means[0][state], second + self.means[1][state]

    def _label(self, log_density: Floats) -> Floats:
        """P(y | signal) from log p(signal | z), (N, Z)."""
        density = np.exp(log_density - log_density.max(1, keepdims=True)) * self.states
        joint = density @ self.label_given_state
        return joint / joint.sum(1, keepdims=True)

    def _show(
        self, modality: int, signal: Floats, generator: torch.Generator, nuisance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The columns of one modality (N, D), and its nuisance."""
        view = self.views[modality]
        rng = np.random.default_rng([self.seed, modality, 2])
        number = len(signal)
        if view.shape != "gaussian":
            return self._noise(view, number, rng, generator), torch.empty(number, 0)
        if nuisance is None:
            parts = [sd * torch.randn(number, k, generator=generator) for k, sd in view.nuisance]
            nuisance = torch.cat(parts, 1) if parts else torch.empty(number, 0)
        shown = torch.cat([torch.from_numpy(signal).float(), nuisance], 1)
        directions = np.linalg.qr(rng.normal(size=(view.columns, shown.shape[1])))[0]
        basis = torch.from_numpy(directions).float()
        rows = torch.randn(number, view.columns, generator=generator)
        # Unit noise in all other directions of the rotated space.
        rows += (shown - rows @ basis) @ basis.T
        if view.units:
            factors = 10 ** rng.uniform(-3, 3, view.columns)
            offsets = factors * rng.normal(0, 10, view.columns)
            rows = rows * torch.from_numpy(factors).float() + torch.from_numpy(offsets).float()
        return rows, nuisance

    def _noise(self, view: View, number: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        rows = torch.randn(number, view.columns, generator=generator)
        if view.shape == "heavy":
            chi = torch.randn(number, view.columns, 2, generator=generator).square().mean(-1)
            return rows / chi.sqrt().clamp_min(1e-3)
        centers = torch.from_numpy(rng.normal(size=(9, view.columns))).float()
        return 0.3 * rows + centers[torch.randint(9, (number,), generator=generator)]

    def _map(self, rows: Tensor) -> Tensor:
        """The invertible map of a copy."""
        if self.copy == "arcsinh":
            return torch.arcsinh(rows)
        rng = np.random.default_rng([self.seed, 3])
        columns = rows.shape[1]
        left, right = (np.linalg.qr(rng.normal(size=(columns, columns)))[0] for _ in range(2))
        matrix = torch.from_numpy(left * rng.uniform(0.2, 5.0, columns) @ right).float()
        return rows @ matrix + torch.from_numpy(rng.normal(0, 3, columns)).float()


def entropy(probabilities: Floats) -> Floats:
    """Entropy of the last dimension, bits."""
    return -(probabilities * np.log2(np.maximum(probabilities, 1e-300))).sum(-1)


def log_densities(points: Floats, means: Floats) -> Floats:
    """log N(points; means, 1) up to a constant of the point, (N, Z)."""
    return points @ means.T - 0.5 * (means**2).sum(1)


def sample_rows(probabilities: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """One class per row."""
    edges = np.cumsum(probabilities, 1)
    draws = rng.uniform(size=(len(edges), 1)) * edges[:, -1:]
    return (draws >= edges).sum(1).clip(max=edges.shape[1] - 1)


def gaussian_information(distance: float) -> float:
    """J(m): what a Gaussian of spread 1 around -m or m knows about the sign, bits."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(160)
    lost = np.logaddexp(0, -2 * distance * (distance + nodes)) / math.log(2)
    return 1 - float(weights @ lost / weights.sum())


_computed: dict[tuple[str, int, int, int], Truth] = {}


@cache
def stored_truths() -> dict[str, dict[str, Any]]:
    """truth.json by name."""
    return json.loads(TRUTH_FILE.read_text()) if TRUTH_FILE.exists() else {}


def computed(problem: Problem, num_rows: int, atoms: int) -> Truth:
    """The truth, computed now, once per process."""
    key = (problem.name, problem.fingerprint, num_rows, atoms)
    if key not in _computed:
        _computed[key] = _compute(problem, num_rows, atoms)
    return _computed[key]


def _compute(problem: Problem, num_rows: int, atoms: int) -> Truth:
    posteriors = problem.posteriors(*problem.draw_signals(num_rows))
    uncertain = [entropy(p) for p in posteriors]
    total = problem.entropy
    one, two, both = (max(total - float(u.mean()), 0.0) for u in uncertain)
    error = 2 * max(float(u.std()) for u in uncertain) / math.sqrt(num_rows)
    if problem.kind == "correlated" and problem.closed_form == "better":
        one, two, both = closed_gaussian_family(problem)
        error = 0.0
    if problem.closed_form == "zero":
        union, more = 0.0, 0.0
    elif problem.closed_form == "better":
        union, more = max(one, two), 0.0
    else:
        union, more = union_information(problem.prior, posteriors[0], posteriors[1], atoms, problem.seed)
    both = max(both, one, two)
    union = min(max(union, one, two), one + two, both)
    parts = {"R": one + two - union, "U1": union - two, "U2": union - one, "S": both - union}
    return Truth(one, two, both, **parts, error=error + more, entropy=total)


def closed_gaussian_family(problem: Problem) -> tuple[float, float, float]:
    """I1, I2, I12 of two classes at -m and m with correlated noise (METHODS.md, section 6)."""
    m1, m2 = (abs(float(mean[0, 0])) for mean in problem.means)
    r = problem.correlation
    together = math.sqrt((m1 * m1 - 2 * r * m1 * m2 + m2 * m2) / (1 - r * r))
    return gaussian_information(m1), gaussian_information(m2), gaussian_information(together)


def union_information(
    prior: Floats, first: Floats, second: Floats, atoms: int, seed: int = 0
) -> tuple[float, float]:
    """I_Q* in bits from posteriors (N, C), and how far it may be off."""
    values: list[float] = []
    losses: list[float] = []
    error = math.inf
    for number in (atoms // 9, atoms // 3, atoms):
        (table1, lost1), (table2, lost2) = (
            clustered(p, prior, number, seed + i) for i, p in enumerate((first, second))
        )
        value, gap = table_union(table1, table2)
        values.append(value)
        losses.append(lost1 + lost2)
        if len(values) > 1:
            # Straight in what is lost: checked against rows as atoms, where it is right to a tenth of the step.
            slope = (value - values[-2]) / max(losses[-2] - losses[-1], 1e-9)
            step = min(max(slope, 0.0), 1.0) * losses[-1]
            error = gap + 0.12 * step
        if error < 0.004 * float(entropy(prior)):
            break
    return values[-1] + step, error


def table_union(table1: Floats, table2: Floats, tolerance: float = 5e-4) -> tuple[float, float]:
    """The solver's I_Q* of two tables (K, C) with the same class marginals, and half the certified gap; bits."""
    solved = broja(
        torch.from_numpy(table1), torch.from_numpy(table2), tolerance=tolerance, max_iterations=6000
    )
    half = float(solved.gap) / 2
    return float(entropy(table1.sum(0))) - float(solved.conditional_entropy) - half, half


def row_union(first: Floats, second: Floats, prior: Floats) -> tuple[float, float, float]:
    """The solver's I_Q*, I1 and I2 with the rows themselves as atoms."""
    tables = [p / p.sum(0) * prior for p in (first, second)]
    one, two = (float(entropy(prior) + entropy(t.sum(1)) - entropy(t.ravel())) for t in tables)
    return table_union(*tables)[0], one, two


def clustered(posteriors: Floats, prior: Floats, number: int, seed: int) -> tuple[Floats, float]:
    """Soft table T(k, y) of clusters of posteriors, k-means in sqrt space, and the bits that it loses."""
    points = torch.from_numpy(np.sqrt(posteriors)).float()
    generator = torch.Generator().manual_seed(seed % 2**31)
    order = torch.randperm(len(points), generator=generator)
    # Rounded, so that equal points give one center.
    some = points[order[: 20 * number]]
    centers = torch.unique((some[: 4 * number] * 1e5).round() / 1e5, dim=0)
    centers = centers[torch.randperm(len(centers), generator=generator)[:number]]
    for _ in range(12):
        place = nearest(some, centers)
        sums = torch.zeros_like(centers).index_add_(0, place, some)
        counts = torch.bincount(place, minlength=len(centers))[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
    cluster = nearest(points, centers).numpy()
    table = np.zeros((len(centers), posteriors.shape[1]))
    np.add.at(table, cluster, posteriors)
    table = table[table.sum(1) > 0] / len(posteriors)
    lost = float(entropy(table.ravel()) - entropy(table.sum(1)) - entropy(posteriors).mean())
    # The marginals over y become the same for both modalities.
    return table / table.sum(0) * prior, max(lost, 0.0)


def nearest(points: Tensor, centers: Tensor) -> Tensor:
    half = 0.5 * centers.square().sum(1)
    return torch.cat([(half - part @ centers.T).argmin(1) for part in points.split(8192)])


# ---- how the problems are built ----


def seed_of(name: str, suite_seed: int) -> int:
    return zlib.crc32(f"{name}/{suite_seed}".encode())


def class_means(rng: np.random.Generator, classes: int, directions: int, strength: float) -> Floats:
    """Random points around 0 whose root mean square distance from it is `strength`, in spreads of the noise."""
    means = rng.normal(size=(classes, directions))
    means -= means.mean(0)
    return means * strength / math.sqrt((means**2).sum(1).mean())


def zipf(classes: int, power: float = 1.0) -> Floats:
    shares = np.arange(1, classes + 1, dtype=float) ** -power
    return shares / shares.sum()


def gaussian(
    name: str,
    kind: str,
    classes: int,
    dims: int | tuple[int, int],
    strengths: tuple[float, float],
    *,
    directions: int | tuple[int, int] | None = None,
    nuisance: tuple[Nuisance, Nuisance] = ((), ()),
    units: bool = False,
    prior: Floats | None = None,
    groups: tuple[Sequence[int] | None, Sequence[int] | None] = (None, None),
    complement: bool = False,
    correlation: float = 0.0,
    shapes: tuple[str, str] = ("gaussian", "gaussian"),
    closed_form: str = "",
    suite_seed: int = 0,
    **more: Any,
) -> Problem:
    """One Gaussian cluster per class in each modality.

    Args:
        directions: of the signal; None for C - 1, at most 9.
        groups: per modality the group of every class; classes of a group share one cluster.
        complement: x1 knows little about the second half of the classes, x2 little about the first.
        more: fields of `Problem`.
    """
    dims = (dims, dims) if isinstance(dims, int) else dims
    number = min(classes - 1, 9) if directions is None else directions
    numbers = (number, number) if isinstance(number, int) else number
    seed = seed_of(name, suite_seed)
    means: list[Floats] = []
    for i in range(2):
        rng = np.random.default_rng([seed, i])
        group = np.arange(classes) if groups[i] is None else np.asarray(groups[i])
        points = class_means(rng, int(group.max()) + 1, numbers[i], strengths[i])[group]
        if complement:
            faint = np.arange(classes) >= (classes + 1) // 2
            points = np.where((faint if i == 0 else ~faint)[:, None], 0.25 * points, points)
        means.append(points)
    return Problem(
        name=name,
        kind=kind,
        num_classes=classes,
        dims=dims,
        views=(View(dims[0], nuisance[0], units, shapes[0]), View(dims[1], nuisance[1], units, shapes[1])),
        states=np.full(classes, 1 / classes) if prior is None else prior,
        label_given_state=np.eye(classes),
        means=(means[0], means[1]),
        correlation=correlation,
        closed_form=closed_form,
        seed=seed,
        suite_seed=suite_seed,
        **more,
    )


def from_states(
    name: str,
    kind: str,
    dims: tuple[int, int],
    labels: Sequence[int] | Floats,
    means: tuple[Any, Any],
    *,
    states: Floats | None = None,
    nuisance: tuple[Nuisance, Nuisance] = ((), ()),
    units: bool = False,
    closed_form: str = "",
    suite_seed: int = 0,
) -> Problem:
    """A problem of equally likely states (or of `states`), with a label or P(y | z) and two points for each."""
    given = np.asarray(labels)
    table = given.astype(float) if given.ndim == 2 else np.eye(int(given.max()) + 1)[given]
    first, second = (np.asarray(mean, dtype=float) for mean in means)
    return Problem(
        name=name,
        kind=kind,
        num_classes=table.shape[1],
        dims=dims,
        views=(View(dims[0], nuisance[0], units), View(dims[1], nuisance[1], units)),
        states=np.full(len(table), 1 / len(table)) if states is None else states,
        label_given_state=table,
        means=(first, second),
        closed_form=closed_form,
        seed=seed_of(name, suite_seed),
        suite_seed=suite_seed,
    )


def parity(
    name: str,
    columns: int,
    distance: float,
    other: float,
    nuisance: Nuisance = (),
    both: bool = False,
    second_bit: float = 0.0,
    suite_seed: int = 0,
) -> Problem:
    """y is the exclusive or of two signs in x1; x2 shows y itself at `other`, or has its own two bits (`both`).

    With `second_bit` the label has four classes: twice the parity and a bit that x2 shows at that distance.
    """
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=float)
    product = signs[:, 0] * signs[:, 1]
    labels = (product < 0).astype(int)
    second = other * product[:, None]
    closed_form = ""
    if other == 0 and not second_bit:
        closed_form = "better"
    if second_bit:
        labels = 2 * labels + (signs[:, 2] > 0)
        second = np.stack([other * product, second_bit * signs[:, 2]], 1)
    if both:
        # The two signs of x2 have the product of those of x1.
        second = other * np.stack([signs[:, 2], signs[:, 2] * product], 1)
    return from_states(
        name,
        "parity",
        (columns, columns),
        labels,
        (distance * signs[:, :2], second),
        nuisance=(nuisance, nuisance),
        closed_form=closed_form,
        suite_seed=suite_seed,
    )


def curve(
    name: str,
    columns: int,
    rule: Callable[[Floats, Floats], Floats],
    nuisance: Nuisance = (),
    suite_seed: int = 0,
) -> Problem:
    """Each modality is a place on a line of 12, one apart, with noise of spread 1; a rule of both gives p(y = 1)."""
    places = np.linspace(-1.0, 1.0, 12)
    first, second = (grid.ravel() for grid in np.meshgrid(places, places, indexing="ij"))
    share = np.broadcast_to(rule(first, second), first.shape)
    return from_states(
        name,
        "curve",
        (columns, columns),
        np.stack([1 - share, share], 1),
        (5.5 * first[:, None], 5.5 * second[:, None]),
        nuisance=(nuisance, nuisance),
        suite_seed=suite_seed,
    )


def across(
    name: str,
    kind: str,
    classes: int,
    columns: int,
    strength: float,
    nuisance: Nuisance = (),
    suite_seed: int = 0,
    flips: float = 0.0,
    units: bool = False,
) -> Problem:
    """x1 shows a, x2 shows b; y = (a + b) mod C ("xor" for 2), or for "and" both bits, each label flipped sometimes."""
    seed = seed_of(name, suite_seed)
    first, second = (
        class_means(np.random.default_rng([seed, i]), classes, classes - 1, strength) for i in (0, 1)
    )
    a, b = np.divmod(np.arange(classes * classes), classes)
    labels: Any = a * b if kind == "and" else (a + b) % classes
    if kind == "and":
        labels = np.eye(2)[labels] * (1 - 2 * flips) + flips
    return from_states(
        name,
        kind,
        (columns, columns),
        labels,
        (first[a], second[b]),
        nuisance=(nuisance, nuisance),
        units=units,
        closed_form="" if kind == "and" else "zero",
        suite_seed=suite_seed,
    )


def lapses(
    name: str,
    classes: int,
    columns: int,
    strengths: tuple[float, float],
    rate: float,
    of_pairs: bool = False,
    suite_seed: int = 0,
) -> Problem:
    """A share of the labels is drawn anew, or in a share of the rows what x2 shows, which is less than x1 shows."""
    seed = seed_of(name, suite_seed)
    points = class_means(np.random.default_rng(seed), classes, min(classes - 1, 9), 1.0)
    often = (1 - rate) * np.eye(classes) + rate / classes
    a, b = np.divmod(np.arange(classes * classes), classes) if of_pairs else (np.arange(classes),) * 2
    return from_states(
        name,
        "lapses",
        (columns, columns),
        a if of_pairs else often,
        (strengths[0] * points[a], strengths[1] * points[b]),
        states=often.ravel() / classes if of_pairs else None,
        closed_form="better",
        suite_seed=suite_seed,
    )


def confusions(
    name: str,
    table: Floats,
    columns: int,
    strengths: tuple[float, float],
    suite_seed: int = 0,
) -> Problem:
    """Labels that are confused with others: p(y | z) is a row of the table for each hidden class z."""
    rng = np.random.default_rng(seed_of(name, suite_seed))
    directions = min(len(table) - 1, 9)
    first, second = (strength * class_means(rng, len(table), directions, 1.0) for strength in strengths)
    return from_states(name, "confusions", (columns, columns), table, (first, second), suite_seed=suite_seed)


def match(name: str, columns: int, shown: Floats, suite_seed: int = 0) -> Problem:
    """y says whether x2 shows the same as x1, or what is drawn anew: a caption of another picture.

    `shown` are the points of all things that may be shown, in the directions of either side.
    """
    a, b = np.divmod(np.arange(len(shown) ** 2), len(shown))
    anew, same = len(a), len(shown)
    return from_states(
        name,
        "match",
        (columns, columns),
        np.repeat([0, 1], [anew, same]),
        (np.concatenate([shown[a], shown]), np.concatenate([shown[b], shown])),
        states=0.5 / np.repeat([anew, same], [anew, same]),
        closed_form="zero",
        suite_seed=suite_seed,
    )


def pair(
    name: str,
    m1: float,
    m2: float,
    r: float,
    columns: int,
    nuisance: Nuisance = (),
    units: bool = False,
    suite_seed: int = 0,
) -> Problem:
    """The closed-form Gaussian family: y = -1 or 1, x_i ~ N(y m_i, 1), noise correlation r (METHODS.md, section 6)."""
    sign = np.array([[-1.0], [1.0]])
    made = from_states(
        name,
        "correlated",
        (columns, columns),
        [0, 1],
        (m1 * sign, m2 * sign),
        nuisance=(nuisance, nuisance),
        units=units,
        closed_form="better",
        suite_seed=suite_seed,
    )
    return replace(made, correlation=r)


def swapped(problem: Problem, name: str) -> Problem:
    """The same problem with its modalities exchanged."""
    first, second = problem.means
    return replace(
        problem,
        name=name,
        kind="swapped",
        dims=problem.dims[::-1],
        views=problem.views[::-1],
        means=(second, first),
    )


def problems(suite_seed: int = 0, kinds: Iterable[str] | None = None) -> list[Problem]:
    """All problems, or those of `kinds`."""
    made = [
        *_gaussian(suite_seed),
        *_nuisance(suite_seed),
        *_units(suite_seed),
        *_skewed(suite_seed),
        *_shared_cluster(suite_seed),
        *_parity(suite_seed),
        *_across(suite_seed),
        *_curve(suite_seed),
        *_lapses(suite_seed),
        *_confusions(suite_seed),
        *_match(suite_seed),
        *_correlated(suite_seed),
        *_special(suite_seed),
    ]
    wanted = None if kinds is None else set(kinds)
    return [problem for problem in made if wanted is None or problem.kind in wanted]


def _gaussian(suite_seed: int) -> list[Problem]:
    rows: list[tuple[int, int, tuple[float, float]]] = [
        (2, 8, (1.5, 0.7)),
        (2, 64, (1.2, 1.0)),
        (2, 768, (1.5, 0.8)),
        (4, 16, (2.2, 1.2)),
        (4, 128, (1.5, 1.4)),
        (4, 768, (2.0, 1.0)),
        (10, 32, (2.6, 1.7)),
        (10, 256, (2.3, 1.5)),
        (10, 768, (2.65, 1.8)),
        (28, 64, (3.2, 2.4)),
        (28, 128, (3.5, 2.2)),
        (28, 768, (3.5, 2.5)),
        (100, 64, (2.5, 2.0)),
        (100, 128, (4.5, 3.0)),
        (100, 768, (5.0, 4.0)),
    ]
    plain = [
        gaussian(f"gaussian-{c}-d{d}", "gaussian", c, d, strengths, suite_seed=suite_seed)
        for c, d, strengths in rows
    ]
    halves = [
        gaussian(
            f"gaussian-{c}-d{d}-halves", "gaussian", c, d, strengths, complement=True, suite_seed=suite_seed
        )
        for c, d, strengths in [(4, 32, (2.5, 2.5)), (10, 64, (3.5, 3.0)), (28, 256, (4.5, 3.5))]
    ]
    return plain + halves


def _nuisance(suite_seed: int) -> list[Problem]:
    def make(name: str, classes: int, dims: Any, strengths: tuple[float, float], **more: Any) -> Problem:
        return gaussian(
            f"nuisance-{name}", "nuisance", classes, dims, strengths, suite_seed=suite_seed, **more
        )

    return [
        make("2-sd10-d32", 2, 32, (1.5, 0.8), nuisance=(((8, 10.0),), ((8, 10.0),))),
        make("2-sd100-d16", 2, 16, (1.0, 1.4), nuisance=(((4, 100.0),), ((4, 100.0),))),
        make(
            "4-sd3-d27-halves",
            4,
            (27, 8),
            (3.3, 2.8),
            groups=(None, (0, 1, 0, 1)),
            directions=(3, 1),
            nuisance=(((24, 3.0),), ()),
        ),
        make(
            "4-sd10-d27-halves",
            4,
            (27, 8),
            (3.3, 2.8),
            groups=(None, (0, 1, 0, 1)),
            directions=(3, 1),
            nuisance=(((24, 10.0),), ()),
        ),
        make("4-sd100-d64", 4, 64, (2.0, 1.5), nuisance=(((24, 100.0),), ((24, 100.0),))),
        make("10-sd10-d64", 10, 64, (2.6, 1.7), nuisance=(((16, 10.0),), ((16, 10.0),))),
        make("10-sd10-d256", 10, 256, (2.6, 2.2), nuisance=(((100, 10.0),), ((30, 10.0),))),
        make(
            "10-sd1to100-d128",
            10,
            128,
            (2.2, 2.6),
            nuisance=(((16, 3.0), (16, 10.0), (16, 100.0)), ((16, 3.0), (16, 10.0), (16, 100.0))),
        ),
        make("10-sd100-d768", 10, 768, (2.8, 2.0), nuisance=(((64, 100.0),), ((64, 100.0),))),
        make("28-sd10-d128", 28, 128, (3.5, 2.5), nuisance=(((32, 10.0),), ((32, 10.0),))),
        make(
            "10-sd10-d64-common",
            10,
            64,
            (2.4, 1.8),
            nuisance=(((16, 10.0),), ((16, 10.0),)),
            shared_nuisance=True,
        ),
    ]


def _units(suite_seed: int) -> list[Problem]:
    def make(name: str, classes: int, dims: Any, strengths: tuple[float, float], **more: Any) -> Problem:
        return gaussian(
            f"units-{name}", "units", classes, dims, strengths, units=True, suite_seed=suite_seed, **more
        )

    return [
        make("2-table", 2, (5, 8), (6.0, 0.7)),
        make("4-d32", 4, 32, (2.0, 1.2)),
        make("10-d64", 10, 64, (2.6, 1.7)),
        make("10-d256-nuisance", 10, 256, (2.6, 2.0), nuisance=(((30, 10.0),), ((30, 10.0),))),
        make("28-d128", 28, 128, (3.5, 2.5)),
    ]


def _skewed(suite_seed: int) -> list[Problem]:
    rows: list[tuple[str, int, int, tuple[float, float], float]] = [
        ("2-d32", 2, 32, (1.5, 1.0), 3.0),
        ("4-d64", 4, 64, (2.0, 1.5), 1.5),
        ("10-d128", 10, 128, (2.6, 1.8), 1.0),
        ("28-d64", 28, 64, (3.5, 2.5), 1.0),
        ("100-d256", 100, 256, (4.5, 3.5), 1.0),
    ]
    return [
        gaussian(f"skewed-{name}", "skewed", c, d, strengths, prior=zipf(c, power), suite_seed=suite_seed)
        for name, c, d, strengths, power in rows
    ]


def _shared_cluster(suite_seed: int) -> list[Problem]:
    def make(
        name: str,
        classes: int,
        dims: Any,
        strengths: tuple[float, float],
        groups: tuple[Sequence[int] | None, Sequence[int] | None],
        **more: Any,
    ) -> Problem:
        groups_of = [classes if g is None else max(g) + 1 for g in groups]
        directions = (min(groups_of[0] - 1, 9), min(groups_of[1] - 1, 9))
        return gaussian(
            f"shared-{name}",
            "shared_cluster",
            classes,
            dims,
            strengths,
            groups=groups,
            directions=directions,
            suite_seed=suite_seed,
            **more,
        )

    return [
        make("4-d16-pairs", 4, 16, (2.0, 2.0), ((0, 0, 1, 1), (0, 1, 0, 1))),
        make("4-d64-three", 4, 64, (2.5, 2.0), ((0, 1, 1, 1), (0, 0, 0, 1))),
        make("10-d64-pairs", 10, 64, (3.0, 2.0), (None, [c // 2 for c in range(10)])),
        make("10-d256-fives", 10, 256, (2.5, 2.5), ([c // 5 for c in range(10)], [c % 5 for c in range(10)])),
        make(
            "28-d128-fours", 28, 128, (3.5, 3.0), ([c // 4 for c in range(28)], [c % 14 for c in range(28)])
        ),
        make(
            "100-d128-tens",
            100,
            128,
            (4.5, 4.0),
            ([c // 10 for c in range(100)], [c % 10 for c in range(100)]),
        ),
    ]


def _parity(suite_seed: int) -> list[Problem]:
    return [
        parity("parity-d16", 16, 2.0, 0.5, suite_seed=suite_seed),
        parity("parity-d32-other-noise", 32, 2.0, 0.0, suite_seed=suite_seed),
        parity("parity-d64", 64, 2.5, 0.8, suite_seed=suite_seed),
        parity("parity-d16-nuisance", 16, 2.0, 0.5, ((4, 5.0),), suite_seed=suite_seed),
        parity("parity-d32-nuisance", 32, 2.5, 0.5, ((8, 10.0),), suite_seed=suite_seed),
        parity("parity-d16-both", 16, 2.0, 1.5, both=True, suite_seed=suite_seed),
        parity("parity-d32-four-classes", 32, 2.0, 0.3, second_bit=1.5, suite_seed=suite_seed),
    ]


def _across(suite_seed: int) -> list[Problem]:
    def make(name: str, kind: str, classes: int, columns: int, strength: float, **more: Any) -> Problem:
        return across(name, kind, classes, columns, strength, suite_seed=suite_seed, **more)

    return [
        make("xor-d8", "xor", 2, 8, 2.0),
        make("xor-d16-sd2", "xor", 2, 16, 2.0, nuisance=((4, 2.0),)),
        make("xor-d16-sd5", "xor", 2, 16, 2.5, nuisance=((4, 5.0),)),
        make("xor-d64-sd3", "xor", 2, 64, 2.5, nuisance=((8, 3.0),)),
        make("xor-d16-weak", "xor", 2, 16, 1.0),
        make("sum-3-d16", "sum_mod", 3, 16, 3.0),
        make("sum-3-d32-sd5", "sum_mod", 3, 32, 3.0, nuisance=((4, 5.0),)),
        make("sum-5-d16-sd2", "sum_mod", 5, 16, 3.5, nuisance=((4, 2.0),)),
        make("sum-10-d32", "sum_mod", 10, 32, 4.5, nuisance=((4, 3.0),)),
        make("and-d8", "and", 2, 8, 2.0, flips=0.05),
        make("and-d32-sd3", "and", 2, 32, 2.0, flips=0.02, nuisance=((6, 3.0),)),
        make("and-d16-sd5-units", "and", 2, 16, 1.5, flips=0.05, nuisance=((4, 5.0),), units=True),
    ]


def _curve(suite_seed: int) -> list[Problem]:
    def make(name: str, columns: int, rule: Callable[[Floats, Floats], Floats], *nuisance: Any) -> Problem:
        return curve(name, columns, rule, tuple(nuisance), suite_seed)

    return [
        make("curve-ring-d8", 8, lambda a, b: (a**2 + 0.2 * b > 0.4) * 0.9 + 0.05),
        make("curve-wave-d16", 16, lambda a, b: 0.5 + 0.45 * np.sin(6 * a)),
        make("curve-steps-d8", 8, lambda a, b: ((np.abs(a) < 0.35) | (b > 0.5)) * 0.9 + 0.05),
        make("curve-product-d16", 16, lambda a, b: 0.5 + 0.45 * np.tanh(6 * a * b)),
        make("curve-both-d32-sd3", 32, lambda a, b: 0.5 + 0.45 * np.tanh(4 * (a**2 + b**2 - 0.7)), (4, 3.0)),
        make("curve-board-d8", 8, lambda a, b: (np.sin(5 * a) * np.sin(5 * b) > 0) * 0.9 + 0.05),
    ]


def _correlated(suite_seed: int) -> list[Problem]:
    many: Nuisance = ((6, 3.0), (2, 10.0))
    return [
        pair("pair-1.5-0.8-r0-d16", 1.5, 0.8, 0.0, 16, suite_seed=suite_seed),
        pair("pair-1.2-1.0-r0.5-d16", 1.2, 1.0, 0.5, 16, ((4, 3.0),), suite_seed=suite_seed),
        pair("pair-1.2-1.0-minus0.6-d32", 1.2, 1.0, -0.6, 32, many, suite_seed=suite_seed),
        pair("pair-0.6-1.4-r0.7-d64", 0.6, 1.4, 0.7, 64, suite_seed=suite_seed),
        pair("pair-cancelling-d16", 0.8, 0.0, 0.8, 16, suite_seed=suite_seed),
        pair("pair-cancelling-d32-nuisance", 1.0, 0.0, 0.8, 32, ((6, 5.0),), suite_seed=suite_seed),
        pair("pair-cancelling-d128", 1.0, 0.0, 0.9, 128, suite_seed=suite_seed),
        gaussian("coupled-4-d32", "correlated", 4, 32, (1.6, 1.2), correlation=0.6, suite_seed=suite_seed),
        gaussian(
            "coupled-10-d128", "correlated", 10, 128, (2.0, 1.6), correlation=-0.5, suite_seed=suite_seed
        ),
    ]


def _special(suite_seed: int) -> list[Problem]:
    def noise(name: str, classes: int, dims: int, strength: float, shapes: tuple[str, str]) -> Problem:
        return gaussian(
            f"noise-{name}",
            "noise",
            classes,
            dims,
            (strength, 0.0),
            shapes=shapes,
            closed_form="better",
            suite_seed=suite_seed,
        )

    def copy(name: str, classes: int, dims: int, strength: float, how: str) -> Problem:
        return gaussian(
            f"copy-{name}",
            "copy",
            classes,
            dims,
            (strength, strength),
            copy=how,
            closed_form="better",
            suite_seed=suite_seed,
        )

    known = {p.name: p for p in (*_gaussian(suite_seed), *_nuisance(suite_seed), *_parity(suite_seed))}
    return [
        copy("2-d16", 2, 16, 1.2, "affine"),
        copy("10-d64", 10, 64, 2.4, "affine"),
        copy("28-d128", 28, 128, 3.2, "affine"),
        copy("4-d16-arcsinh", 4, 16, 1.8, "arcsinh"),
        swapped(known["gaussian-10-d256"], "swapped-gaussian-10-d256"),
        swapped(known["nuisance-4-sd10-d27-halves"], "swapped-nuisance-4-sd10-d27-halves"),
        swapped(known["parity-d16"], "swapped-parity-d16"),
        noise("second-gaussian-10-d64", 10, 64, 2.4, ("gaussian", "gaussian")),
        noise("second-heavy-4-d32", 4, 32, 1.8, ("gaussian", "heavy")),
        noise("second-clustered-2-d64", 2, 64, 1.2, ("gaussian", "clustered")),
        noise("both-gaussian-2-d64", 2, 64, 0.0, ("gaussian", "gaussian")),
        noise("both-heavy-10-d32", 10, 32, 0.0, ("heavy", "heavy")),
        noise("both-clustered-28-d64", 28, 64, 0.0, ("clustered", "clustered")),
        noise("both-gaussian-10-d768", 10, 768, 0.0, ("gaussian", "gaussian")),
    ]


def _lapses(suite_seed: int) -> list[Problem]:
    def make(name: str, *parts: Any, **more: Any) -> Problem:
        return lapses(f"lapses-{name}", *parts, **more, suite_seed=suite_seed)

    return [
        make("labels-4-d16", 4, 16, (2.5, 1.8), 0.2),
        make("labels-10-d64", 10, 64, (4.0, 3.0), 0.3),
        make("labels-28-d128", 28, 128, (4.5, 3.5), 0.1),
        make("pairs-2-d32", 2, 32, (1.5, 1.5), 0.4, of_pairs=True),
        make("pairs-10-d48", 10, 48, (3.5, 3.5), 0.25, of_pairs=True),
        make("pairs-10-d256", 10, 256, (4.0, 3.5), 0.1, of_pairs=True),
    ]


def _confusions(suite_seed: int) -> list[Problem]:
    def make(name: str, classes: int, others: Any, rate: float, *parts: Any) -> Problem:
        one = np.eye(classes)
        table = (1 - rate) * one + rate * one[others]
        return confusions(f"confusions-{name}", table, *parts, suite_seed)

    following = (np.arange(10) + 1) % 10
    return [
        # One class bears the name of another in half of its rows.
        make("one-way-4-d16", 4, [1, 1, 2, 3], 0.5, 16, (2.0, 1.5)),
        make("pairs-4-d32", 4, [1, 0, 3, 2], 0.3, 32, (2.5, 2.0)),
        make("next-10-d32", 10, following, 0.3, 32, (3.0, 2.5)),
        make("next-10-d256", 10, following, 0.2, 256, (4.0, 3.0)),
        make("pairs-28-d64", 28, np.arange(28) ^ 1, 0.2, 64, (4.0, 3.5)),
    ]


def _match(suite_seed: int) -> list[Problem]:
    def signs(latents: int) -> Floats:
        return 2.0 * (2.0 * ((np.arange(2**latents)[:, None] >> np.arange(latents)) & 1) - 1)

    def kinds(name: str, number: int, columns: int, strength: float) -> Problem:
        """Kinds of things that are not the same number of steps apart, as objects in pictures are."""
        points = class_means(np.random.default_rng(seed_of(name, suite_seed)), number, 9, strength)
        return match(name, columns, points, suite_seed)

    return [
        match("match-d16", 16, signs(3), suite_seed),
        match("match-d64", 64, signs(3), suite_seed),
        match("match-d256", 256, signs(4), suite_seed),
        kinds("match-kinds-5-d32", 5, 32, 4.0),
        kinds("match-kinds-10-d128", 10, 128, 5.0),
    ]


DEVELOPMENT: tuple[str, ...] = (
    "gaussian-2-d8",
    "gaussian-10-d256",
    "gaussian-28-d128",
    "gaussian-10-d64-halves",
    "nuisance-4-sd10-d27-halves",
    "nuisance-10-sd1to100-d128",
    "units-10-d64",
    "skewed-10-d128",
    "shared-10-d256-fives",
    "parity-d16",
    "parity-d32-nuisance",
    "xor-d16-sd5",
    "sum-3-d16",
    "and-d32-sd3",
    "curve-steps-d8",
    "pair-1.2-1.0-r0.5-d16",
    "pair-cancelling-d32-nuisance",
    "copy-10-d64",
    "noise-second-heavy-4-d32",
    "noise-both-gaussian-2-d64",
)
"""Names of a few problems of every kind, for a quick look."""


def development(suite_seed: int = 0) -> list[Problem]:
    """The problems of `DEVELOPMENT`."""
    return [problem for problem in problems(suite_seed) if problem.name in DEVELOPMENT]


def find(name: str, suite_seed: int = 0) -> Problem:
    """The problem of that name."""
    return next(problem for problem in problems(suite_seed) if problem.name == name)


def line(problem: Problem, truth: Truth) -> str:
    values = " ".join(f"{v:5.2f}" for v in (truth.entropy, truth.I1, truth.I2, truth.I12, *truth.atoms))
    first, second = problem.dims
    return f"{problem.name:36s} {problem.num_classes:3d} {first:4d} {second:4d} {values} {truth.error:6.4f}"


def table(shown: Sequence[Problem]) -> str:
    """Problems and their truth, one a line."""
    head = (
        f"{'problem':36s} {'C':>3} {'D1':>4} {'D2':>4}  H(Y)    I1    I2   I12     R    U1    U2     S  error"
    )
    return "\n".join([head, *(line(problem, problem.truth()) for problem in shown)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--names", nargs="*", help="only these problems")
    options = parser.parse_args()
    chosen = [p for p in problems() if not options.names or p.name in options.names]
    if not options.table:
        torch.set_num_threads(1)
        stored = dict(stored_truths())
        for problem in chosen:
            start = time.perf_counter()
            if stored.get(problem.name, {}).get("fingerprint") == problem.fingerprint:
                continue
            truth = computed(problem, NUM_ROWS, ATOMS)
            stored[problem.name] = {k: round(v, 5) for k, v in asdict(truth).items()}
            stored[problem.name]["fingerprint"] = problem.fingerprint
            names = [p.name for p in problems()]
            kept = {name: stored[name] for name in names if name in stored}
            lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(kept[name])}" for name in kept)
            TRUTH_FILE.write_text(f"{{\n{lines}\n}}\n")
            print(f"{line(problem, truth)} {time.perf_counter() - start:6.1f} s", flush=True)
        stored_truths.cache_clear()
    print(table(chosen))


if __name__ == "__main__":
    main()
