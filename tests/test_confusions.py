"""Labels that are confused with others: the readout of hidden classes, and `fast_pid`."""

import pytest
import torch
from known_answers import assert_consistent, intervals

from ecsfusion import fast_pid
from ecsfusion.pid.confusions import confusion_readouts, fit_channel
from ecsfusion.pid.linear import TrainingSets

ROWS, FOLDS = 4000, 6


def channel(kind, classes, rate):
    """p(label | hidden class), a row for each hidden class."""
    one = torch.eye(classes)
    others = {
        "next": one.roll(1, 1),
        "pairs": one[(torch.arange(classes) ^ 1).clamp_max(classes - 1)],
        # Only the first class is taken for the second.
        "one way": torch.cat([one[1:2], one[1:]]),
        "none": one,
    }
    return (1 - rate) * one + rate * others[kind]


class Confused:
    """Gaussian hidden classes of which both modalities see their own directions, and labels from a channel."""

    def __init__(self, table, columns=16, strength=0.8, random_seed=0):
        self.table = table
        self.generator = torch.Generator().manual_seed(random_seed)
        self.means = strength * torch.randn(2, len(table), columns, generator=self.generator)

    def draw(self, rows):
        hidden = torch.randint(len(self.table), (rows,), generator=self.generator)
        noise = torch.randn(2, rows, self.means.shape[2], generator=self.generator)
        labels = self.table[hidden].multinomial(1, generator=self.generator)[:, 0]
        return self.means[:, hidden] + noise, labels

    def scores(self, rows):
        """Log densities (2, N, C) of rows (2, N, D), up to a constant by row."""
        return rows @ self.means.mT - 0.5 * self.means.square().sum(2)[:, None]

    def information(self, rows=40_000):
        """I1, I2 and I12 in bits, by true posteriors."""
        points, _ = self.draw(rows)
        first, second = self.scores(points).double()
        prior = self.table.double().mean(0)
        entropy = -torch.special.xlogy(prior, prior).sum()
        posteriors = [s.softmax(1) @ self.table.double() for s in (first, second, first + second)]
        known = [entropy + torch.special.xlogy(p, p).sum(1).mean() for p in posteriors]
        return (torch.stack(known) / torch.tensor(2.0).log()).tolist()


def sorted_sets(labels, classes):
    """Training sets whose rows are in any order: a fold for every sixth row."""
    return TrainingSets.make(torch.arange(len(labels)) % FOLDS, FOLDS, labels, classes)


def confused_logits(kind, rate, classes=5, rows=ROWS, random_seed=0):
    """Logits (2, N, C) that are the true scores of the first modality, labels, the table and log p(y)."""
    problem = Confused(channel(kind, classes, rate), random_seed=random_seed)
    points, labels = problem.draw(rows)
    scores = problem.scores(points)[0]
    log_prior = torch.bincount(labels, minlength=classes).float().div(rows).log()
    return scores.expand(2, -1, -1), labels, problem.table, log_prior


@pytest.mark.parametrize("kind", ["next", "one way"])
def test_the_table_is_that_of_the_labels(kind):
    logits, labels, table, log_prior = confused_logits(kind, 0.3)
    centered = logits[0] - logits[0].mean(1, keepdim=True)
    found = fit_channel(centered, sorted_sets(labels, 5).halves(), log_prior).table
    assert found.shape == (2, 5, 5)
    assert (found.sum(2) - 1).abs().max() < 1e-4
    assert (found - table).abs().max() < 0.12
    assert (found - table).abs().mean() < 0.03


@pytest.mark.parametrize("kind", ["next", "one way"])
def test_the_readout_is_the_posterior(kind):
    logits, labels, table, log_prior = confused_logits(kind, 0.3)
    (found,) = confusion_readouts(logits, sorted_sets(labels, 5), [logits], log_prior)
    right = logits[0].softmax(1) @ table
    for by in found:
        assert ((by + log_prior).exp() - right).abs().mean() < 0.02


@pytest.mark.parametrize("random_seed", range(6))
def test_labels_without_confusions_need_no_table(random_seed):
    logits, labels, _, log_prior = confused_logits("none", 0.0, random_seed=random_seed)
    assert confusion_readouts(logits, sorted_sets(labels, 5), [logits], log_prior) == []


def test_the_label_of_a_row_is_not_read():
    logits, labels, _, log_prior = confused_logits("next", 0.3)
    sets = sorted_sets(labels, 5)
    (before,) = confusion_readouts(logits, sets, [logits], log_prior)
    in_first = sets.fold == 0
    # Few enough for the table to be worth it still.
    others = torch.where(torch.arange(len(labels)) % (10 * FOLDS) == 0, (labels + 2) % 5, labels)
    (after,) = confusion_readouts(logits, sorted_sets(others, 5), [logits], log_prior)
    torch.testing.assert_close(after[0, in_first], before[0, in_first], rtol=0, atol=0)
    assert not torch.equal(after[0, ~in_first], before[0, ~in_first])


def test_other_names_of_the_classes_change_nothing():
    logits, labels, _, log_prior = confused_logits("next", 0.3)
    (before,) = confusion_readouts(logits, sorted_sets(labels, 5), [logits], log_prior)
    names = torch.tensor([3, 0, 4, 1, 2])
    place = names.argsort()
    renamed = logits[..., place]
    (after,) = confusion_readouts(renamed, sorted_sets(names[labels], 5), [renamed], log_prior[place])
    torch.testing.assert_close(after[..., names], before, rtol=0, atol=1e-3)


def test_where_rows_are_few_for_the_classes_no_table_is_made():
    classes = 30
    logits, labels, _, log_prior = confused_logits("next", 0.4, classes, rows=800)
    assert confusion_readouts(logits, sorted_sets(labels, classes), [logits], log_prior) == []


@pytest.mark.parametrize(
    ("kind", "classes", "rate"),
    [("next", 10, 0.2), ("pairs", 10, 0.2), ("next", 4, 0.4), ("one way", 4, 0.5)],
)
def test_what_confused_labels_know_is_found(kind, classes, rate):
    problem = Confused(channel(kind, classes, rate))
    right = problem.information()
    (first, second), labels = problem.draw(2 * ROWS)
    found = fast_pid({"first": first, "second": second}, labels)
    values = [*found.mutual_information.tolist(), float(found.joint_mutual_information)]
    assert values == pytest.approx(right, abs=0.09)
    assert_consistent(found)


def test_modalities_that_both_see_the_hidden_class_are_redundant():
    problem = Confused(channel("next", 6, 0.3), strength=2.0)
    (first, second), labels = problem.draw(ROWS)
    found = fast_pid([first, second], labels)
    rate = torch.tensor([0.3, 0.7])
    # Both know the hidden class of every row, and no more of the label.
    right = float(torch.tensor(6.0).log2() + (rate * rate.log2()).sum())
    assert float(found.redundancy) == pytest.approx(right, abs=0.05)
    truth = torch.tensor([right, 0.0, 0.0, 0.0], dtype=torch.float64)
    low, high = intervals(found).T
    assert (low - 0.005 <= truth).all()
    assert (truth <= high + 0.005).all()
