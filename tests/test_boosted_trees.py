"""Boosted trees of thresholds: rules of several columns."""

import numpy as np
import pytest
import torch
from sorted_sets import FOLDS, sets_of
from torch.utils._python_dispatch import TorchDispatchMode

from ecsfusion import fast_pid, fast_pids
from ecsfusion.pid import boosted_trees
from ecsfusion.pid.boosted_trees import (
    TRIAL,
    UNIT,
    WHOLE,
    binned,
    boosted,
    fine_bins,
    grow,
    route,
    tree_readouts,
)
from ecsfusion.pid.dependence import held_out_dependence
from ecsfusion.pid.linear import TrainingSets, standardize
from ecsfusion.pid.posteriors import held_out_information
from ecsfusion.pid.uncertainty import measure


def rules(rows, columns, seed):
    """Columns of noise, and classes by rules of which each holds where those before it do not."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, columns))
    labels = np.zeros(rows, dtype=np.int64)
    for place, (first, second) in enumerate([(0, 1), (2, 3), (4, 0), (1, 5)]):
        labels[(values[:, first] > 0.1 * place) & (values[:, second] < 0.3)] = place % 3 + 1
    return torch.from_numpy(values).float(), torch.from_numpy(labels)


def bits_of(labels):
    share = torch.bincount(labels).double() / len(labels)
    return float(-(share * share.clamp_min(1e-12).log2()).sum())


def told(logits, sets):
    """The mean log-posterior of the labels, in nats."""
    log_prior = sets.one_hot.mean(0).log()
    return float(torch.log_softmax(logits + log_prior, 1).gather(1, sets.labels[:, None]).mean())


@pytest.mark.parametrize(("rows", "columns"), [(3000, 8), (3000, 100), (3000, 400)])
def test_rules_of_several_columns_are_known(rows, columns):
    values, labels = rules(rows, columns, rows + columns)
    noise = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    pid = fast_pid({"table": values, "noise": noise}, labels)
    known, all_bits = float(pid.held_out.mutual_information[0]), bits_of(labels)
    # Lines know half of it.
    assert 0.88 * all_bits < known < all_bits
    assert float(pid.unique[0]) > 0.88 * all_bits
    assert float(pid.synergy) < 0.02


def test_a_rule_of_both_modalities_is_synergy():
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=(2, 4000, 3))
    side, inside = first[:, 0] > 0.2, np.abs(second[:, 1] - 0.4) < 0.7
    labels = np.where(first[:, 2] > 0.6, side ^ inside, side ^ (second[:, 0] > -0.3)).astype(np.int64)
    pid = fast_pid([first, second], labels)
    assert 0.8 < float(pid.held_out.joint_mutual_information) <= bits_of(torch.from_numpy(labels))
    assert float(pid.synergy) > 0.6
    assert float(pid.synergy_interval[0]) > 0.5


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize("columns", [40, 300])
def test_a_rule_of_modalities_of_many_columns_is_synergy(columns):
    """The one says which half of the other holds: alone it tells nothing, and the other tells half a bit."""
    generator = np.random.default_rng(columns)
    first, second = generator.normal(size=(2, 3000, columns))
    labels = np.where(first[:, 0] > 0, second[:, 1] > 0, second[:, 2] > 0).astype(np.int64)
    # Folds are dealt by luck.
    pids = [fast_pid([first, second], labels, seed=seed) for seed in range(3)]
    assert sum(float(pid.synergy) for pid in pids) / 3 == pytest.approx(0.5, abs=0.07)
    assert sum(float(pid.unique[1]) for pid in pids) / 3 == pytest.approx(0.5, abs=0.07)
    assert all(float(pid.unique[0]) + float(pid.redundancy) < 0.02 for pid in pids)


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [600, 2000])
def test_two_rules_of_which_each_modality_tells_one_are_unique(rows, seed):
    """Each side learns noise about the other's rule, which the two together do not: it seemed to be synergy."""
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(2, rows, 6))
    one, other = (np.where(part[:, 0] > 0.2, part[:, 1] > 0, part[:, 2] > 0) for part in (first, second))
    pid = fast_pid([first, second], (2 * one + other).astype(np.int64))
    assert float(pid.synergy_interval[0]) < 0.01
    assert float(pid.synergy) < 0.06
    assert float(pid.redundancy) < 0.06
    assert float(pid.unique.min()) > 0.85


def test_a_rule_that_the_trial_of_a_side_has_missed_is_no_synergy(monkeypatch):
    values, labels = rules(2500, 6, 2)
    noise = torch.randn(2500, 2, generator=torch.Generator().manual_seed(1))
    trial = boosted_trees._trial_tells_more

    def of_both_alone(sides, *rest):
        return len(sides) > 1 and trial(sides, *rest)

    monkeypatch.setattr(boosted_trees, "_trial_tells_more", of_both_alone)
    pid = fast_pid([values, noise], labels)
    assert float(pid.unique[0]) > 0.85 * bits_of(labels)
    assert float(pid.synergy) < 0.02


@pytest.fixture
def trials_see_rules_of_both_alone(monkeypatch):
    """Of the 6 columns of rules a trial sees nothing, and of them beside 3 others it does."""
    monkeypatch.setattr(
        boosted_trees, "_trial_tells_more", lambda sides, *_: sum(rows.shape[1] for rows in sides) == 9
    )


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.usefixtures("trials_see_rules_of_both_alone")
def test_a_modality_tells_the_same_in_all_pairs():
    """It is read with trees once the pair with the fewest columns has rules; with the 60 others no trees are grown."""
    values, labels = rules(1500, 6, 2)
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (torch.randn(1500, columns, generator=generator) for columns in (60, 3))
    pids = fast_pids({"table": values, "wide": wide, "narrow": narrow}, labels)
    told = [float(pids[f"table, {other}"].mutual_information[0]) for other in ("wide", "narrow", "rest")]
    assert told[0] == told[1] == told[2]
    assert 0.8 * bits_of(labels) < told[0]
    assert float(pids["wide, rest"].mutual_information[1]) >= told[0]
    assert float(pids["wide, rest"].synergy) < 0.02


@pytest.mark.usefixtures("trials_see_rules_of_both_alone")
def test_a_rule_of_one_modality_is_no_dependence():
    values, labels = rules(1500, 6, 2)
    narrow = torch.randn(1500, 3, generator=torch.Generator().manual_seed(0))
    sides = [(("table",), ("narrow",))]
    found = held_out_dependence({"table": values, "narrow": narrow}, labels, 4, sides, 0)
    assert float(found[0]) < 0.02


def random_tree(rows, columns, depth, classes, seed):
    """Columns of noise, labels drawn from the shares of the leaves of a random tree, and what it tells in bits."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, columns))
    leaf = np.zeros(rows, dtype=np.int64)
    for _ in range(depth):
        before, leaf = leaf, leaf * 2
        for node in np.unique(before):
            mine, column = before == node, generator.integers(columns)
            threshold = np.quantile(values[mine, column], generator.uniform(0.3, 0.7))
            leaf += mine & (values[:, column] > threshold)
    shares = generator.dirichlet(np.full(classes, 0.3), size=1 << depth)
    labels = np.array([generator.choice(classes, p=shares[place]) for place in leaf])
    weight = np.bincount(leaf, minlength=1 << depth) / rows
    ratio = np.log2(np.maximum(shares, 1e-12) / (weight @ shares))
    return values, labels, float((weight[:, None] * shares * ratio).sum())


@pytest.mark.filterwarnings("ignore:.*samples are few")
def test_intervals_know_that_there_may_be_more_rules_than_rows_show():
    held = 0
    for seed in range(6):
        values, labels, truth = random_tree(2500, 10, 5, 3, seed)
        pid = fast_pid([values, np.random.default_rng(seed).normal(size=(2500, 2))], labels)
        low, high = pid.unique_interval[0].tolist()
        held += low <= truth <= high
        assert float(pid.held_out.mutual_information[0]) < truth + 0.02
        assert 0.5 * truth < float(pid.unique[0])
    assert held >= 5


def test_trees_that_tell_little_hide_little():
    """Of embeddings trees often tell next to nothing beside lines. Then no half of a bit is hidden."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(1500) % 12
    sides = {
        name: torch.randn(12, 6, generator=generator)[labels]
        + 1.5 * torch.randn(1500, 6, generator=generator)
        for name in ("image", "audio")
    }
    found = held_out_information(sides, labels, 12, [(["image"], ["audio"])], None, 64, 1e-3, 0)
    assert not found.known.rules.any()

    def upper_ends(told):
        of_image = torch.tensor([[told], [0.0], [0.0]], dtype=torch.float64)
        limit = measure(found._replace(known=found.known._replace(rules=of_image))).limit
        return torch.stack([limit.unique_interval[0, 0, 1], limit.redundancy_interval[0, 1]]), limit

    (none, limit), (little, _), (much, _) = upper_ends(0.0), upper_ends(0.01), upper_ends(1.0)
    least = torch.stack([limit.unique[0, 0], limit.mutual_information[0, 1]])
    assert (little <= torch.maximum(none, least + 0.1 + 1e-9)).all()
    # By 0.3 of what is left of the label.
    left = np.log2(12) - float(limit.mutual_information[0, 0])
    assert float(much[0]) >= float(least[0]) + 0.3 * left


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize("seed", [0, 2])
def test_rules_that_both_sides_together_show_better_may_be_no_synergy(seed):
    """Each modality tells its own half of the label, which for the other is noise that hides its rules."""
    first, one, _ = random_tree(1500, 6, 3, 3, seed)
    second, other, _ = random_tree(1500, 6, 3, 3, seed + 100)
    pid = fast_pid([first, second], 3 * one + other)
    assert float(pid.synergy_interval[0]) == 0


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize("seed", [0, 2])
def test_rules_of_noisy_labels_are_not_learned_by_heart(seed):
    """What trees of one modality have learned by heart the trees of both average out: it seems to be synergy."""
    values, labels, truth = random_tree(3000, 10, 4, 10, seed)
    pid = fast_pid([values, np.random.default_rng(seed).normal(size=(3000, 2))], labels)
    assert float(pid.held_out.mutual_information[0]) > 0.71 * truth
    assert float(pid.synergy) < 0.01


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 7])
def test_noise_grows_no_trees(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (1500,), generator=generator)
    order, sets = sets_of(labels, seed)
    rows = standardize(torch.randn(1500, 9, generator=generator)[order])
    assert tree_readouts([rows], sets, [torch.zeros(2, 1500, classes)], sets.one_hot.mean(0).log()) == []


@pytest.mark.parametrize(("kind", "plan"), [("folds", TRIAL), ("folds", WHOLE), ("halves", TRIAL)])
@pytest.mark.parametrize("columns", [6, 200])
def test_a_row_is_read_by_trees_that_have_not_seen_its_label(columns, kind, plan):
    values, labels = rules(900, columns, 0)
    order, sets = sets_of(labels)
    mine = sets.fold == 2 if kind == "folds" else sets.fold < FOLDS // 2
    other = torch.where(mine, (sets.labels + 1) % sets.num_classes, sets.labels)
    renamed = TrainingSets.make(sets.fold, FOLDS, other, sets.num_classes)
    some = [getattr(each, kind)() for each in (sets, renamed)]
    before, after = (boosted(binned([values[order]], each, 128), each, plan)[-1] for each in some)
    assert torch.equal(before[mine], after[mine])
    assert not torch.equal(before[~mine], after[~mine])


def test_more_rounds_tell_more():
    values, labels = rules(3000, 6, 4)
    order, sets = sets_of(labels)
    sets = sets.folds()
    few, many = boosted(
        binned([values[order]], sets, 128), sets, WHOLE._replace(stages=((2, 0.3), (22, 0.3)))
    )
    prior = float((sets.one_hot.mean(0).log() * sets.one_hot.mean(0)).sum())
    assert prior + 0.3 < told(few, sets) < told(many, sets) - 0.1


def best_split(bins, gradient, turn, least):
    """The best gain of a threshold, over all columns and thresholds of the joined bins, in float64."""
    found = 0.0
    joined = (bins.astype(np.int64) + (turn * 5) % boosted_trees.JOINED) // boosted_trees.JOINED

    def score(part):
        return np.square(gradient[part].sum(0)).sum() / (part.sum() + boosted_trees.PRIOR_ROWS)

    every = np.ones(len(bins), dtype=bool)
    for column in joined.T:
        for threshold in np.unique(column):
            left = column <= threshold
            if min(left.sum(), (~left).sum()) >= least:
                found = max(found, score(left) + score(~left) - score(every))
    return found


@pytest.mark.parametrize("turn", [0, 1, 6])
@pytest.mark.parametrize("gradients", [1, 3])
def test_a_split_is_the_best_of_all(turn, gradients):
    generator = np.random.default_rng(turn)
    bins = generator.integers(256, size=(300, 5)).astype(np.uint8)
    gradient = generator.uniform(-1, 1, size=(300, gradients)) + (bins[:, [3]] > 90) * 0.5
    whole = np.round(gradient / UNIT).astype(np.int32)
    values = torch.from_numpy(np.concatenate([np.full((300, 1), 1 / UNIT, dtype=np.int32), whole], 1).T[None])
    kept = torch.arange(5)[None]
    trees = grow(torch.from_numpy(bins)[None], values.contiguous(), kept, 1, turn)
    leaf = route(torch.from_numpy(bins), trees)[0].numpy()
    expected = best_split(bins, gradient, turn, boosted_trees.MIN_ROWS_OF_LEAF)
    every = np.ones(300, dtype=bool)
    parts = [leaf == 0, leaf == 1]
    gain = sum(
        np.square(gradient[part].sum(0)).sum() / (part.sum() + boosted_trees.PRIOR_ROWS) for part in parts
    )
    gain -= np.square(gradient[every].sum(0)).sum() / (300 + boosted_trees.PRIOR_ROWS)
    assert min(part.sum() for part in parts) >= boosted_trees.MIN_ROWS_OF_LEAF
    assert gain == pytest.approx(expected, rel=1e-3)
    assert float(trees.told.max()) == pytest.approx(expected, rel=1e-3)


def test_rows_that_are_not_in_a_set_change_nothing():
    """Sets of unequal size have rows of value 0 among their own."""
    generator = torch.Generator().manual_seed(0)
    bins = torch.randint(256, (1, 200, 4), generator=generator).to(torch.uint8)
    gradient = (torch.randn(1, 2, 200, generator=generator) * 1e4).int()
    values = torch.cat([torch.full((1, 1, 200), 1 << 16, dtype=torch.int32), gradient], 1)
    kept = torch.arange(4)[None]
    alone = grow(bins, values, kept, 4, 2)
    more = torch.cat([bins, bins.flip(1)], 1), torch.cat([values, torch.zeros_like(values)], 2)
    beside = grow(*more, kept, 4, 2)
    for first, second in zip(
        (*alone.columns, *alone.thresholds), (*beside.columns, *beside.thresholds), strict=True
    ):
        assert torch.equal(first, second)


def test_order_of_rows_changes_nothing_and_that_of_columns_only_ties():
    values, labels = rules(1200, 7, 8)
    order, sets = sets_of(labels)
    sets = sets.folds()
    logits = boosted(binned([values[order]], sets, 128), sets, WHOLE)[-1]
    mixed = torch.randperm(1200, generator=torch.Generator().manual_seed(3))
    other = TrainingSets.make(sets.fold[mixed], FOLDS, sets.labels[mixed], sets.num_classes)
    again = boosted(binned([values[order][mixed]], other.folds(), 128), other.folds(), WHOLE)[-1]
    torch.testing.assert_close(again, logits[mixed], rtol=0, atol=1e-3)
    columns = boosted(binned([values[order].flip(1)], sets, 128), sets, WHOLE)[-1]
    assert told(columns, sets) == pytest.approx(told(logits, sets), abs=0.02)


def test_many_rows_take_turns_in_choosing_splits(monkeypatch):
    values, labels = rules(3000, 6, 9)
    order, sets = sets_of(labels)
    sets = sets.folds()
    bins = binned([values[order]], sets, 128)
    whole = told(boosted(bins, sets, WHOLE)[-1], sets)
    monkeypatch.setattr(boosted_trees, "MAX_ROWS", 1000)
    turns = told(boosted(bins, sets, WHOLE)[-1], sets)
    monkeypatch.setattr(boosted_trees, "MAX_ROWS", 64)
    few = told(boosted(bins, sets, WHOLE)[-1], sets)
    assert whole - 0.1 < turns
    assert few < turns


def test_bins_have_equally_many_rows_and_keep_the_order():
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(6000, 2, generator=generator).exp()
    values[:, 1] = values[:, 1].round()
    bins = fine_bins(values)
    assert bins.dtype == torch.uint8
    assert torch.bincount(bins[:, 0].long(), minlength=256).min() >= 10
    for column in range(2):
        ascending = bins[values[:, column].argsort(), column].long()
        assert bool((ascending.diff() >= 0).all())
    # Equal values have one bin.
    assert len(torch.unique(torch.stack([values[:, 1], bins[:, 1].float()]), dim=1).T) == len(
        values[:, 1].unique()
    )


def test_too_much_grows_no_trees():
    rows, classes = 40_000, 60
    order, sets = sets_of(torch.arange(rows) % classes)
    values = (torch.arange(rows) % classes)[order, None].float()
    assert tree_readouts([values], sets, [torch.zeros(2, rows, classes)], torch.full((classes,), -1.0)) == []


def test_more_classes_than_gradients():
    generator = np.random.default_rng(0)
    values = generator.random((4000, 4))
    labels = (values[:, 0] * 3).astype(int) * 4 + (values[:, 1] * 4).astype(int)
    order, sets = sets_of(torch.from_numpy(labels))
    sets = sets.folds()
    logits = boosted(binned([torch.from_numpy(values)[order].float()], sets, 128), sets, WHOLE)[-1]
    assert float((logits.argmax(1) == sets.labels).float().mean()) > 0.9


class Sums(TorchDispatchMode):
    """The dtypes of what is cumulated: of floats a GPU refuses it in deterministic mode."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.removeprefix("aten::") in ("cumsum", "cumsum_"):
            self.dtypes.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_only_integers_are_cumulated():
    values, labels = rules(400, 6, 1)
    order, sets = sets_of(labels)
    with Sums() as sums:
        boosted(binned([values[order]], sets.folds(), 128), sets.folds(), TRIAL)
    assert sums.dtypes
    assert not any(dtype.is_floating_point for dtype in sums.dtypes)
