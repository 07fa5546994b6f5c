"""Rows of a few sources, such as sensors that ten subjects wore: what they are worth, and how sure it is."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from ecsfusion import FewSamplesWarning, fast_pid
from ecsfusion.pid.by_row import squared_sums
from ecsfusion.pid.folds import make_folds
from ecsfusion.pid.uncertainty import CONFIDENCE, largest_entropy, students_t

ROWS, CLASSES = 1200, 4


def worn_by(subjects: int, seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A generator, and the subject and the label of each row: every subject does everything."""
    generator = np.random.default_rng([seed, subjects])
    return generator, generator.integers(0, subjects, ROWS), generator.integers(0, CLASSES, ROWS)


def of_subjects(generator: np.random.Generator, subject: np.ndarray, columns: int = 8) -> np.ndarray:
    """Embeddings that tell the subject, and nothing else."""
    own = generator.normal(size=(subject.max() + 1, columns))
    return own[subject] + generator.normal(size=(len(subject), columns))


@pytest.mark.parametrize("subjects", [3, 10])
def test_noise_of_few_subjects_who_do_everything_is_known_to_be_noise(subjects):
    generator, subject, labels = worn_by(subjects, 0)
    pid = fast_pid([of_subjects(generator, subject) for _ in range(2)], labels, groups=subject)
    assert float(pid.redundancy_floor) == pytest.approx(8 / (ROWS * math.log(2)), rel=0.3)
    ends = torch.cat([pid.redundancy_interval[None], pid.unique_interval, pid.synergy_interval[None]])
    assert bool((ends[:, 0] == 0).all())
    assert bool((ends[:, 1] < 0.1).all())


@pytest.mark.parametrize("subjects", [2, 3, 10, 40])
def test_what_is_told_is_told_of_few_subjects_too(subjects):
    """Means of classes that are one step apart, with offsets of subjects: I(X; Y) of a new one is 0.61 bits."""
    generator, subject, labels = worn_by(subjects, 1)
    means = 2.0 * (labels[:, None] == np.arange(8))
    first = of_subjects(generator, subject) + means
    pid = fast_pid([first, of_subjects(generator, subject)], labels, groups=subject)
    # What a Gaussian with the offsets in its covariance tells.
    rows = np.random.default_rng(0).normal(size=(50_000, 8)) * math.sqrt(2) + 2.0 * (np.arange(8) == 0)
    log_likelihood = rows[:, :CLASSES]
    posterior = scipy.special.log_softmax(log_likelihood, axis=1)[:, 0]
    truth = math.log2(CLASSES) + posterior.mean() / math.log(2)
    low, high = pid.unique_interval[0].tolist()
    assert low <= truth <= high
    assert float(pid.unique[0] - pid.unique_floor[0]) > 0.3
    assert float(pid.unique_interval[1, 0]) == 0.0


@pytest.mark.parametrize("subjects", [2, 3, 6])
def test_what_no_line_tells_is_found_though_subjects_are_few(subjects):
    generator, subject, _ = worn_by(subjects, 2)
    radius, angle = generator.uniform(0, 3, ROWS), generator.uniform(0, 2 * np.pi, ROWS)
    labels = (radius * CLASSES / 3).astype(int)
    first = 0.3 * of_subjects(generator, subject, 4)
    first[:, 0], first[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
    pid = fast_pid([first, of_subjects(generator, subject)], labels, groups=subject)
    assert float(pid.unique[0]) > 1.2


@pytest.mark.filterwarnings("ignore::ecsfusion.FewSamplesWarning")
def test_no_interval_exceeds_what_there_is_to_tell():
    """Eight sources of one label each are worth eight rows, which hardly show anything."""
    generator = np.random.default_rng(3)
    source = np.arange(ROWS) % 8
    labels = source % CLASSES
    rows = [of_subjects(generator, source) + 3.0 * (labels[:, None] == np.arange(8)) for _ in range(2)]
    pid = fast_pid(rows, labels, groups=source)
    ends = torch.cat([pid.redundancy_interval[None], pid.unique_interval, pid.synergy_interval[None]])
    assert float(ends.amax()) == pytest.approx(math.log2(CLASSES))
    assert float(pid.redundancy_floor) == pytest.approx(8 / (8 * math.log(2)))


def test_few_sources_are_said_to_be_few():
    generator = np.random.default_rng(4)
    source = np.arange(ROWS) % 12
    labels = source % CLASSES
    rows = [of_subjects(generator, source) + 1.0 * (labels[:, None] == np.arange(8)) for _ in range(2)]
    with pytest.warns(FewSamplesWarning, match="12 groups are few"):
        fast_pid(rows, labels, groups=source)


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_neither_half_of_the_folds_is_empty(groups):
    """Readouts that are fitted on one half of the folds are read on the other."""
    keys = torch.arange(300)
    folds = make_folds(keys, keys % 3, keys % groups, 6)
    sizes = torch.bincount(folds.fold // 3, minlength=2)
    assert int(sizes.min()) >= 300 // groups * (groups // 2)


def test_errors_of_sources_of_any_size_are_those_of_the_jackknife():
    generator = torch.Generator().manual_seed(0)
    group = torch.repeat_interleave(torch.arange(5), torch.tensor([70, 1, 9, 15, 5]))
    rows = torch.randn(4, 1, 1, 100, generator=generator, dtype=torch.float64) + 0.1 * group
    found = squared_sums(rows, group, are_sources=True)
    redundancy = (rows[0] + rows[1] - rows[3]).flatten()
    moved = torch.stack([redundancy[group != g].mean() - redundancy.mean() for g in range(5)])
    # As `measure` takes it: G / (G - 1) times the sums over N squared.
    assert float(found[0]) * 5 / 4 / 100**2 == pytest.approx(float(moved.square().sum()) * 4 / 5)
    alike = torch.arange(20).repeat_interleave(5)
    torch.testing.assert_close(squared_sums(rows, alike, are_sources=True), squared_sums(rows, alike))


def test_the_quantile_of_students_t():
    for freedom, tolerance in ((1, 0.25), (2, 0.05), (3, 0.01), (10, 1e-3), (1000, 1e-5)):
        expected = scipy.stats.t.ppf(scipy.stats.norm.cdf(CONFIDENCE), freedom)
        found = float(students_t(CONFIDENCE, torch.tensor(freedom)))
        assert found == pytest.approx(expected, rel=tolerance)
    assert float(students_t(CONFIDENCE, torch.tensor(0))) == float(students_t(CONFIDENCE, torch.tensor(1)))


@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize("share", [[0.25] * 4, [0.9, 0.05, 0.03, 0.02], [0.5, 0.5]])
def test_the_entropy_of_a_label_is_rarely_above_the_largest(rows, share):
    truth = scipy.stats.entropy(share, base=2)
    drawn = np.random.default_rng(0).multinomial(rows, share, size=400) / rows
    most = [float(largest_entropy(torch.from_numpy(each), torch.tensor(rows))) for each in drawn]
    assert np.mean([truth > bits + 1e-9 for bits in most]) < (0.05 if rows >= 200 else 0.25)
    assert max(most) <= math.log2(len(share)) + 1e-9
