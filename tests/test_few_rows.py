"""fast_pid of many classes with a few rows each, whose readouts misplace the classes independently on either side."""

import math
from dataclasses import replace

import pytest
import torch
from known_answers import assert_consistent, intervals, true_values, values

from benchmarks.known_truth.problems import find, gaussian
from ecsfusion import fast_pid
from ecsfusion.pid.posteriors import Known, Posteriors, change_by_labels
from ecsfusion.pid.uncertainty import measure
from ecsfusion.pid.union import Union

pytestmark = pytest.mark.filterwarnings("ignore:.*are few for these embeddings")


def degraded(columns, share):
    """100 Gaussian classes; the second modality shows a share of the distances of the first, and nothing of its own."""
    base = gaussian(f"degraded-{columns}", "few", 100, columns, (2.5, 2.5), directions=8)
    means = base.means[0], share * base.means[0]
    # All that a noisier copy knows is redundant, whatever couples it to the original.
    return replace(base, means=means, closed_form="better")


@pytest.mark.parametrize("columns", [8, 32])
def test_a_noisier_copy_knows_hardly_anything_of_its_own_by_twenty_rows_a_class(columns):
    problem = degraded(columns, 0.7)
    truth = true_values(problem.truth(num_rows=50_000))
    found, own, shared, held = [], [], [], []
    # Every kind of processor draws other rows, whose values are up to 0.2 bits off: of many draws.
    for draw in range(1, 13):
        first, second, labels = problem.draw(2000, draw)
        pid = fast_pid([first, second], labels)
        assert_consistent(pid)
        own.append(float(pid.held_out.unique[1]))
        shared.append(float(pid.held_out.redundancy) / float(pid.held_out.mutual_information[1]))
        low, high = intervals(pid).T
        held += ((low <= truth[3:]) & (truth[3:] <= high)).tolist()
        found.append(values(pid))
    # What readouts of few rows know is less than all, but hardly unique.
    assert sum(own) / len(own) < 0.25
    assert sum(shared) / len(shared) > 0.85
    # As many as 1 of 16: of 48 atoms, intervals of 95 % miss 2 or 3.
    assert held.count(False) <= 3
    torch.testing.assert_close(torch.stack(found).mean(0), truth, rtol=0, atol=0.2)


def union_of(value, change, unsure):
    """A `Union` of one pair: its value, what the labels add, and the entropies that its sides leave, in bits."""
    value = torch.tensor([value], dtype=torch.float64)
    return Union(
        value,
        value,
        value,
        torch.zeros(1, 4),
        torch.full_like(value, change),
        torch.tensor(unsure).double(),
        torch.zeros_like(value),
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [(0.5, 0.3), (-0.5, -0.3), (0.2, 0.2), (0.0, 0.0)],
    ids=["up", "down", "near", "none"],
)
def test_labels_move_the_union_information_no_more_than_the_sides(change, expected):
    """Of 3 bits the sides expect to know 2 and 1.5; the labels say 2.1 and 1.3."""
    told = torch.tensor([[2.1], [1.3]], dtype=torch.float64)
    found = change_by_labels(union_of(2.4, change, [1.0, 1.5]), told, torch.tensor(3.0).double())
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_intervals_are_wider_where_labels_and_posteriors_disagree():
    """The same decomposition, once with posteriors that are right about the union information and once without."""
    squares = torch.zeros(12, 1, dtype=torch.float64)
    two = torch.ones(2, 1, dtype=torch.float64)
    widths = []
    for displaced in (0.0, 0.4):
        known = Known(
            two,
            0.8 * two,
            1.5 * two,
            1.2 * two,
            0 * two,
            1.5 * two[0],
            torch.zeros(3, 1).double(),
            torch.zeros(3, 1).double(),
            0 * two[0],
            displaced * two[0],
        )
        number = torch.tensor(1000)
        posteriors = Posteriors(
            known,
            squares,
            1000,
            number,
            torch.full((8,), 1 / 8, dtype=torch.float64),
            number,
            [(["a"], ["b"])],
            torch.full((3, 1), 16.0, dtype=torch.float64),
        )
        found = measure(posteriors).limit
        widths.append((found.redundancy_interval[:, 1] - found.redundancy_interval[:, 0]).item())
    # Half of it on either side.
    assert widths[1] - widths[0] == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["gaussian-10-d256", "gaussian-28-d768", "gaussian-10-d768"])
def test_what_few_rows_of_many_columns_hide_is_in_the_intervals(name):
    """The weaker modality has far more to tell than readouts of so few rows can show.

    Columns per row say how much that may be. Every kind of processor draws other rows.
    """
    problem = find(name)
    truth = true_values(problem.truth())
    held = []
    for draw in range(4):
        first, second, labels = problem.draw(500, draw)
        pid = fast_pid([first, second], labels)
        assert float(pid.mutual_information.amin()) < float(truth[:2].amin()) - 0.1
        low, high = intervals(pid).T
        held += ((low <= truth[3:] + 0.01) & (truth[3:] <= high + 0.01)).tolist()
        assert float(high.amax()) <= math.log2(len(labels.unique())) + 1e-6
    assert held.count(False) <= 1
