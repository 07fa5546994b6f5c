"""Kinds of columns that are, or are like, problems that others published for classifiers; their rules are known.

Each is a function of a generator and a number of rows, to columns (N, D) and labels (N,), as in column_kinds.py. Where
a rule is drawn, each generator draws another.
"""

import numpy as np
from column_kinds import Array, Draw, beside_noise, named
from numpy.random import Generator
from sklearn import datasets

SEGMENTS = np.array(
    [
        [1, 1, 1, 0, 1, 1, 1],
        [0, 0, 1, 0, 0, 1, 0],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 1, 0, 1, 1],
        [0, 1, 1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0, 1, 1],
        [1, 1, 0, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 1, 1],
    ]
)
"""The lights of each digit: upper, upper left, upper right, middle, lower left, lower right, lower."""
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
"""Of the fields of a board of 3 x 3."""


def drawn_anew(rng: Generator, labels: Array, share: float) -> Array:
    """Labels, a share of which is drawn anew."""
    return np.where(rng.random(len(labels)) < share, rng.integers(labels.max() + 1, size=len(labels)), labels)


def quartiles(values: Array) -> Array:
    """The quartile of each value."""
    return np.digitize(values, np.quantile(values, (0.25, 0.5, 0.75)))


def random_state(rng: Generator) -> int:
    """The seed of a generator of scikit-learn."""
    return int(rng.integers(10**9))


def tree_labels(rng: Generator, columns: Array, depth: int, classes: int) -> Array:
    """Labels of a random tree of thresholds, which splits no fewer than twenty rows."""
    if not depth or len(columns) < 20:
        return np.full(len(columns), rng.integers(classes))
    column = columns[:, rng.integers(columns.shape[1])]
    is_above = column > np.quantile(column, rng.uniform(0.3, 0.7))
    labels = np.empty(len(columns), dtype=int)
    for side in (is_above, ~is_above):
        labels[side] = tree_labels(rng, columns[side], depth - 1, classes)
    return labels


def _monk(rng: Generator, rows: int) -> Array:
    return rng.integers(0, [3, 3, 2, 3, 4, 2], size=(rows, 6))


def monk_1(rng: Generator, rows: int) -> tuple[Array, Array]:
    """MONK's problem 1 (Thrun et al. 1991): two columns are the same, or a third has its first value."""
    columns = _monk(rng, rows)
    return columns, ((columns[:, 0] == columns[:, 1]) | (columns[:, 4] == 0)).astype(int)


def monk_2(rng: Generator, rows: int) -> tuple[Array, Array]:
    """MONK's problem 2 (Thrun et al. 1991): exactly two of six columns have their first value."""
    columns = _monk(rng, rows)
    return columns, ((columns == 0).sum(1) == 2).astype(int)


def monk_3(rng: Generator, rows: int) -> tuple[Array, Array]:
    """MONK's problem 3 (Thrun et al. 1991): either of two rules, and one of twenty labels is wrong."""
    columns = _monk(rng, rows)
    either = (columns[:, 4] == 2) & (columns[:, 3] == 0) | (columns[:, 4] != 3) & (columns[:, 1] != 2)
    return columns, drawn_anew(rng, either.astype(int), 0.1)


def tic_tac_toe(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Whether a line of tic-tac-toe is all crosses (as of Matheus and Rendell 1989, but of random fields)."""
    fields = rng.integers(3, size=(rows, 9))
    return fields, (fields[:, LINES] == 1).all(2).any(1).astype(int)


def balance_scale(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Which side of a balance goes down, by weights and distances (Siegler 1976)."""
    columns = rng.integers(1, 6, size=(rows, 4))
    return columns, np.sign(columns[:, 0] * columns[:, 1] - columns[:, 2] * columns[:, 3]) + 1


def cars(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Rules of grades like those of the evaluation of cars (Bohanec and Rajkovic 1988), not the same."""
    columns = rng.integers(0, [4, 4, 4, 3, 3, 3], size=(rows, 6))
    price, comfort, safety = columns[:, :2].max(1), columns[:, 2:5].min(1), columns[:, 5]
    is_bad = (safety == 0) | (columns[:, 3] == 0) | (price == 3)
    is_good = (comfort >= 1) & (price <= 1)
    return columns, np.where(is_bad, 0, np.where(is_good, 2 + (safety == 2), 1))


def friedman_1(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Quartiles of a sine of a product, a square and a line, with noise, beside five idle columns (Friedman 1991)."""
    columns, values = datasets.make_friedman1(rows, noise=1, random_state=random_state(rng))
    return columns, quartiles(values)


def friedman_2(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Quartiles of the impedance of a circuit (Friedman 1991)."""
    columns, values = datasets.make_friedman2(rows, random_state=random_state(rng))
    return columns, quartiles(values)


def friedman_3(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Quartiles of the phase of a circuit, with noise (Friedman 1991)."""
    columns, values = datasets.make_friedman3(rows, noise=0.05, random_state=random_state(rng))
    return columns, quartiles(values)


def shell(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Whether ten Gaussian columns are far from the middle (Hastie et al. 2009, equation 10.2)."""
    columns, labels = datasets.make_hastie_10_2(rows, random_state=random_state(rng))
    return columns, (labels > 0).astype(int)


def madelon(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Sixteen clusters at corners of a cube of five columns, beside ten idle ones (like Madelon, Guyon 2003)."""
    columns, labels = datasets.make_classification(
        rows,
        n_features=20,
        n_informative=5,
        n_redundant=5,
        n_clusters_per_class=8,
        class_sep=1.5,
        random_state=random_state(rng),
    )
    return columns, labels


def madelon_of_three(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Five clusters of each of three classes, beside thirty idle columns (like Madelon, Guyon 2003)."""
    columns, labels = datasets.make_classification(
        rows,
        n_features=40,
        n_informative=6,
        n_redundant=4,
        n_classes=3,
        n_clusters_per_class=5,
        class_sep=1.5,
        random_state=random_state(rng),
    )
    return columns, labels


def tree_of_depth_4_in_noise(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A random tree of six of a hundred columns (a generator like that of Domingos and Hulten 2000)."""
    columns = rng.normal(size=(rows, 100))
    return columns, tree_labels(rng, columns[:, :6], 4, 3)


def tree_of_depth_5(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A random tree of eight columns (as above)."""
    columns = rng.normal(size=(rows, 8))
    return columns, tree_labels(rng, columns, 5, 4)


def tree_of_depth_7(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A random tree of twelve columns, with twenty rows a leaf (as above)."""
    columns = rng.normal(size=(rows, 12))
    return columns, tree_labels(rng, columns, 7, 2)


def votes_of_trees(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The vote of fifteen random trees (a forest, Breiman 2001)."""
    columns = rng.normal(size=(rows, 10))
    votes = np.stack([tree_labels(rng, columns, 3, 3) for _ in range(15)])
    return columns, np.stack([(votes == label).sum(0) for label in range(3)]).argmax(0)


def decision_list(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A list of five rules of two thresholds (a decision list, Rivest 1987)."""
    columns = rng.normal(size=(rows, 10))
    labels = np.zeros(rows, dtype=int)
    for label in (1, 2, 3, 1, 2):
        is_above = columns[:, rng.choice(10, 2, replace=False)] > 0.5 * rng.normal(size=2)
        labels[is_above.all(1)] = label
    return columns, labels


def _multiplexer(bits: Array, address: int) -> tuple[Array, Array]:
    place = address + bits[:, :address] @ (1 << np.arange(address))
    return bits, bits[np.arange(len(bits)), place]


def multiplexer_of_6(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Which of four bits counts two others say, beside four idle ones (Wilson 1987)."""
    return _multiplexer(rng.integers(2, size=(rows, 10)), 2)


def multiplexer_of_11(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Which of eight bits counts three others say (Koza 1992)."""
    return _multiplexer(rng.integers(2, size=(rows, 11)), 3)


def majority(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The majority of nine of twelve bits (m of n, Towell and Shavlik 1993)."""
    bits = rng.integers(2, size=(rows, 12))
    return bits, (bits[:, :9].sum(1) > 4).astype(int)


def cells(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Which of 25 points of a plane is the nearest, in five classes (cells of Voronoi 1908)."""
    centers, columns = rng.normal(size=(25, 2)), rng.normal(size=(rows, 5))
    return columns, np.square(columns[:, None, :2] - centers).sum(2).argmin(1) % 5


def exclusive_or(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Exactly one of two thresholds, of twenty columns (Minsky and Papert 1969)."""
    columns = rng.normal(size=(rows, 20))
    return columns, ((columns[:, 3] > 0.2) ^ (columns[:, 11] > -0.1)).astype(int)


def parity_of_signs(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The parity of the signs of three of eight columns (Minsky and Papert 1969)."""
    columns = rng.normal(size=(rows, 8))
    return columns, (columns[:, [1, 3, 6]] > 0).sum(1) % 2


def ratios(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Thresholds of a ratio times a third column (of the kind that Heaton 2016 compares)."""
    columns = np.exp(rng.normal(size=(rows, 8)))
    return columns, np.digitize(columns[:, 0] / columns[:, 1] * columns[:, 2], (0.5, 2))


def digit_display(rng: Generator, rows: int) -> tuple[Array, Array]:
    """The lights of a digit, one in ten wrong, beside 17 idle ones (Breiman et al. 1984)."""
    labels = rng.integers(10, size=rows)
    lights = SEGMENTS[labels] ^ (rng.random((rows, 7)) < 0.1)
    return np.concatenate([lights, rng.integers(2, size=(rows, 17))], 1), labels


def waveform(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Random mixtures of two of three triangular waves, with noise (Breiman et al. 1984)."""
    labels = rng.integers(3, size=rows)
    waves = np.maximum(0, 6 - np.abs(np.arange(1, 22) - np.array([[11], [15], [7]])))
    one, other = np.array([[0, 1], [0, 2], [1, 2]])[labels].T
    share = rng.random((rows, 1))
    return share * waves[one] + (1 - share) * waves[other] + rng.normal(size=(rows, 21)), labels


def ringnorm(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A Gaussian class inside of a wider one (Breiman 1996)."""
    labels = rng.integers(2, size=rows)
    columns = rng.normal(size=(rows, 20))
    return np.where(labels[:, None] == 0, 2 * columns, columns + 1 / np.sqrt(20)), labels


def threenorm(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Two Gaussians of one class, and between them one of the other (Breiman 1996)."""
    labels, sign = rng.integers(2, size=rows), rng.choice([-1, 1], size=rows)
    means = np.where(labels[:, None] == 0, sign[:, None], np.tile([1, -1], 10)) * 2 / np.sqrt(20)
    return means + rng.normal(size=(rows, 20)), labels


def _applicants(rng: Generator, rows: int) -> Array:
    """Salary, commission, age, education, car, district, value and age of the house, and loan of people."""
    salary, district = rng.uniform(20e3, 150e3, rows), rng.integers(9, size=rows)
    return np.stack(
        [
            salary,
            np.where(salary >= 75e3, 0, rng.uniform(10e3, 75e3, rows)),
            rng.integers(20, 81, rows),
            rng.integers(5, size=rows),
            rng.integers(1, 21, rows),
            district,
            (9 - district) * 100e3 * rng.uniform(0.5, 1.5, rows),
            rng.integers(1, 31, rows),
            rng.uniform(0, 500e3, rows),
        ],
        1,
    )


def _by_age(columns: Array, young: Array, middle: Array, old: Array) -> Array:
    return np.where(columns[:, 2] < 40, young, np.where(columns[:, 2] < 60, middle, old))


def _within(values: Array, low: float, high: float) -> Array:
    return (values >= low) & (values <= high)


def _granted(rng: Generator, columns: Array, is_granted: Array) -> tuple[Array, Array]:
    return columns, drawn_anew(rng, is_granted.astype(int), 0.05)


def loans_1(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Function 1 of Agrawal et al. (1992): young or old; of each of the six a label in twenty is drawn anew."""
    columns = _applicants(rng, rows)
    return _granted(rng, columns, (columns[:, 2] < 40) | (columns[:, 2] >= 60))


def loans_2(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Function 2 of Agrawal et al. (1992): salary by age."""
    columns = _applicants(rng, rows)
    low, middle, high = (_within(columns[:, 0], at, at + 50e3) for at in (25e3, 50e3, 75e3))
    return _granted(rng, columns, _by_age(columns, middle, high, low))


def loans_3(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Function 3 of Agrawal et al. (1992): education by age."""
    columns = _applicants(rng, rows)
    level = columns[:, 3]
    return _granted(rng, columns, _by_age(columns, level <= 1, _within(level, 1, 3), level >= 2))


def loans_4(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Function 4 of Agrawal et al. (1992): salary by age and education."""
    columns = _applicants(rng, rows)
    level = columns[:, 3]
    low, middle, high = (_within(columns[:, 0], at, at + 50e3) for at in (25e3, 50e3, 75e3))
    young = np.where(level <= 1, low, middle)
    medium = np.where(_within(level, 1, 3), middle, high)
    return _granted(rng, columns, _by_age(columns, young, medium, np.where(level >= 2, middle, low)))


def loans_5(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Function 5 of Agrawal et al. (1992): loan by age and salary."""
    columns = _applicants(rng, rows)
    low, middle, high = (_within(columns[:, 0], at, at + 50e3) for at in (25e3, 50e3, 75e3))
    first, second, third = (_within(columns[:, 8], at, at + 200e3) for at in (100e3, 200e3, 300e3))
    young, medium = np.where(middle, first, second), np.where(high, second, third)
    return _granted(rng, columns, _by_age(columns, young, medium, np.where(low, third, first)))


def loans_9(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Function 9 of Agrawal et al. (1992): income less costs."""
    columns = _applicants(rng, rows)
    left = 0.67 * columns[:, :2].sum(1) - 5e3 * columns[:, 3] - 0.2 * columns[:, 8] - 10e3
    return _granted(rng, columns, left > 0)


def sea(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Whether the sum of two of three columns is small, one in ten wrong (Street and Kim 2001)."""
    columns = rng.uniform(0, 10, size=(rows, 3))
    return columns, drawn_anew(rng, (columns[:, :2].sum(1) <= 8).astype(int), 0.2)


def boxes(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Five boxes, each of three of six columns (of the kind that Salzberg 1991 learns)."""
    columns = rng.random((rows, 6))
    labels = np.zeros(rows, dtype=int)
    for label in range(1, 6):
        low, sides = rng.uniform(0, 0.4, size=3), rng.choice(6, 3, replace=False)
        labels[_within(columns[:, sides] - low, 0, 0.55).all(1)] = label
    return columns, labels


def calendar(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Night, busy or not, by hour, weekday and month (like rented bicycles, Fanaee-T and Gama 2014)."""
    hour, day, month = (rng.integers(most, size=rows) for most in (24, 7, 12))
    at_work = (day < 5) & _within(hour, 8, 17)
    on_trips = (day >= 5) & _within(hour, 11, 21) & _within(month, 5, 8)
    labels = np.where(hour < 6, 2, at_work | on_trips)
    columns = np.concatenate([np.stack([hour, day, month], 1), rng.normal(size=(rows, 3))], 1)
    return columns, drawn_anew(rng, labels, 0.1)


def hands_of_cards(rng: Generator, rows: int) -> tuple[Array, Array]:
    """A flush, a pair or neither, of three cards (like hands of poker, Cattral et al. 2002)."""
    suits, ranks = rng.integers(4, size=(rows, 3)), rng.integers(6, size=(rows, 3))
    is_flush = (suits == suits[:, :1]).all(1)
    is_pair = (ranks == np.roll(ranks, 1, 1)).any(1)
    return np.concatenate([suits, ranks], 1), np.where(is_flush, 2, is_pair)


def counts(rng: Generator, rows: int) -> tuple[Array, Array]:
    """Either of two rules of how often things occur, of thirty (of the kind that Cohen 1996 learns of e-mail)."""
    columns = rng.poisson(0.7, size=(rows, 30))
    first = (columns[:, 0] > 0) & (columns[:, 1] == 0)
    return columns, (first | (columns[:, 2] > 1) & (columns[:, 3] > 0)).astype(int)


PUBLISHED: dict[str, Draw] = {
    name: beside_noise(draw)
    for name, draw in named(
        monk_1,
        monk_2,
        monk_3,
        tic_tac_toe,
        balance_scale,
        cars,
        friedman_1,
        friedman_2,
        friedman_3,
        shell,
        madelon,
        madelon_of_three,
        tree_of_depth_4_in_noise,
        tree_of_depth_5,
        tree_of_depth_7,
        votes_of_trees,
        decision_list,
        multiplexer_of_6,
        multiplexer_of_11,
        majority,
        cells,
        exclusive_or,
        parity_of_signs,
        ratios,
        digit_display,
        waveform,
        ringnorm,
        threenorm,
        loans_1,
        loans_2,
        loans_3,
        loans_4,
        loans_5,
        loans_9,
        sea,
        boxes,
        calendar,
        hands_of_cards,
        counts,
    ).items()
}
"""By name: each inside a modality, beside noise."""
