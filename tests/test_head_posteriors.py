"""What heads show that modalities know: known answers, calibration, and nothing where nothing is known."""

import pytest
import torch
from ecsfusion_kernels.reference.broja import LN2
from known_answers import intervals, true_values, values

from benchmarks.known_truth.problems import find
from ecsfusion.pid.by_row import squared_sums
from ecsfusion.pid.dependence import held_out_dependence
from ecsfusion.pid.head_posteriors import head_pids
from ecsfusion.pid.posteriors import Known, Posteriors
from ecsfusion.pid.uncertainty import measure


def exact_heads(name, rows=2000):
    """The exact logits of a problem of the known-truth suite, for both modalities and both together; and labels."""
    problem = find(name)
    *_, labels, posteriors = problem.draw_with_posteriors(rows, seed=3)
    first, second, both = (torch.from_numpy(part).clamp_min(1e-30).log() for part in posteriors)
    return {"first": first, "second": second}, both, labels, true_values(problem.truth())


@pytest.mark.parametrize("confidence", [1.0, 3.0, 0.3])
@pytest.mark.parametrize("name", ["gaussian-2-d64", "gaussian-4-d16"])
def test_exact_posteriors_give_the_truth_however_confident_they_are(name, confidence):
    logits, both, labels, truth = exact_heads(name)
    # A head that favours a class everywhere says no less.
    favoured = torch.zeros(both.shape[1])
    favoured[0] = 1.0
    logits = {head: confidence * z + favoured for head, z in logits.items()}
    pid = head_pids(logits, confidence * both, labels, [("first", "second")])["first, second"]
    assert (values(pid) - truth).abs().amax() < 0.05
    low, high = intervals(pid).T
    assert (low <= truth[3:] + 0.01).all()
    assert (truth[3:] - 0.01 <= high).all()
    assert (high - low).amax() < 0.2


def test_an_exclusive_or_is_known_to_the_joint_head_alone():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (1000,), generator=generator)
    noise = [torch.randn(1000, 2, generator=generator) for _ in range(2)]
    both = 2 * torch.eye(2)[labels] + 0.5 * noise[0]
    pid = head_pids({"first": noise[0], "second": noise[1]}, both, labels, [("first", "second")])
    one = pid["first, second"]
    assert float(one.synergy) > 0.8
    assert (one.mutual_information <= one.redundancy_floor).all()
    assert float(one.redundancy) <= float(one.redundancy_floor)
    # Without the joint head nothing is known of it.
    alone = head_pids({"first": noise[0], "second": noise[1]}, None, labels, [("first", "second")])
    assert float(alone["first, second"].synergy) <= float(one.synergy_floor)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_heads_of_noise_know_nothing(scale):
    exceeded = 0
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        first, second, both = scale * torch.randn(3, 300, 5, generator=generator)
        labels = torch.randint(5, (300,), generator=generator)
        pid = head_pids({"first": first, "second": second}, both, labels, [("first", "second")])
        one = pid["first, second"]
        assert (intervals(one)[:, 0] == 0).all()
        exceeded += int((values(one)[3:] > one.synergy_floor).sum())
    assert exceeded <= 1


def test_the_rest_is_read_by_all_of_its_heads_and_the_pool_of_all_knows_most():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (900,), generator=generator)
    logits = {
        name: 2.5 * torch.eye(3)[labels] * weight + torch.randn(900, 3, generator=generator)
        for name, weight in (("image", 1.0), ("audio", 0.5), ("text", 0.0))
    }
    pids = head_pids(logits, None, labels, [(name, "rest") for name in logits])
    image, text = pids["image, rest"], pids["text, rest"]
    assert image.names == ("image", "rest")
    assert float(image.unique[0]) > 0.2
    assert float(text.mutual_information[0]) <= float(text.redundancy_floor)
    # The rest of text is image and audio together, which is all that is known.
    assert float(text.mutual_information[1]) > float(image.mutual_information[0]) + 0.02
    assert float(text.joint_mutual_information) == pytest.approx(
        float(image.joint_mutual_information), abs=0.01
    )


@pytest.mark.parametrize("has_groups", [False, True])
def test_the_last_digits_of_the_logits_do_not_deal_the_rows_anew(has_groups):
    """As of another batch size, another device, or the next step of training."""
    logits, both, labels, _ = exact_heads("gaussian-4-d16", rows=400)
    groups = torch.arange(400) // 5 if has_groups else None
    generator = torch.Generator().manual_seed(0)
    found = head_pids(logits, both, labels, [("first", "second")], groups=groups)["first, second"]
    for _ in range(3):
        nearly = {
            name: z + 1e-6 * torch.randn(z.shape, generator=generator, dtype=z.dtype)
            for name, z in logits.items()
        }
        again = head_pids(nearly, both, labels, [("first", "second")], groups=groups)["first, second"]
        torch.testing.assert_close(values(again), values(found), rtol=0, atol=1e-4)
        torch.testing.assert_close(intervals(again), intervals(found), rtol=0, atol=1e-4)


def test_the_order_of_the_rows_moves_values_within_their_intervals():
    logits, both, labels, _ = exact_heads("gaussian-4-d16", rows=400)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    found = head_pids(logits, both, labels, [("first", "second")])["first, second"]
    shuffled = {name: z[order] for name, z in logits.items()}
    again = head_pids(shuffled, both[order], labels[order], [("first", "second")])["first, second"]
    half = (intervals(found)[:, 1] - intervals(found)[:, 0]) / 2
    assert bool(((values(again) - values(found))[3:].abs() < half / 3).all())


def test_equal_rows_count_as_one():
    logits, both, labels, _ = exact_heads("gaussian-4-d16", rows=400)
    once = head_pids(logits, both, labels, [("first", "second")])["first, second"]
    twice = {name: torch.cat([z, z]) for name, z in logits.items()}
    found = head_pids(twice, torch.cat([both, both]), torch.cat([labels] * 2), [("first", "second")])
    torch.testing.assert_close(intervals(found["first, second"]), intervals(once), rtol=0, atol=0.03)
    assert float(found["first, second"].synergy_floor) == pytest.approx(float(once.synergy_floor))


def test_a_head_that_overflowed_in_some_rows_keeps_what_it_knows_in_others():
    logits, both, labels, _ = exact_heads("gaussian-4-d16", rows=600)
    found = head_pids(logits, both, labels, [("first", "second")])["first, second"]
    logits["first"][:3, 0] = torch.inf
    again = head_pids(logits, both, labels, [("first", "second")])["first, second"]
    assert torch.isfinite(values(again)).all()
    assert (values(again) - values(found)).abs().amax() < 0.2


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (
            {"labels": torch.tensor([0, 1, 0], dtype=torch.int32)},
            TypeError,
            r"labels.*int32.*labels.long\(\)",
        ),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"logits\['a'\].*each of the 2 labels.*\(3, 2\)"),
        ({"labels": torch.tensor([[0], [1], [0]])}, ValueError, r"labels.*\(3, 1\)"),
        (
            {"labels": torch.tensor([0, 2, 0])},
            ValueError,
            "labels must be below num_classes=2, found 2 in row 1",
        ),
        ({"labels": torch.tensor([0, -1, 0])}, ValueError, "found -1 in row 1"),
        ({"joint_logits": torch.zeros(3, 3)}, ValueError, r"joint_logits.*\(3, 3\)"),
        ({"joint_logits": torch.zeros(3, 2).long()}, TypeError, "joint_logits.*int64.*float"),
        ({"pairs": [("a", "c")]}, ValueError, "pairs name 'c'.*'a', 'b'"),
        ({"pairs": []}, ValueError, "pairs must hold at least one pair"),
        ({"pairs": [("rest", "a")]}, ValueError, r"pairs must name a modality and.*\('rest', 'a'\)"),
        ({"pairs": [("a", "a")]}, ValueError, r"pairs must name a modality and another.*\('a', 'a'\)"),
        ({"groups": torch.tensor([0, 1])}, ValueError, r"groups.*each of the 3 rows.*\(2,\)"),
    ],
)
def test_what_cannot_be_read_is_named(change, error, sentence):
    given = {
        "logits": {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)},
        "joint_logits": None,
        "labels": torch.tensor([0, 1, 0]),
        "pairs": [("a", "b")],
    }
    with pytest.raises(error, match=sentence):
        head_pids(**{**given, **change})


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_few_rows_give_finite_values_that_are_not_negative(rows):
    logits = torch.randn(3, rows, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % 3
    one = head_pids({"first": logits[0], "second": logits[1]}, logits[2], labels, [("first", "second")])
    assert torch.isfinite(values(one["first, second"])).all()
    assert (values(one["first, second"]) >= 0).all()


def test_dependence_is_what_the_embeddings_of_both_know_beyond_the_product_of_their_posteriors():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (600,), generator=generator)
    coin = torch.randint(2, (600,), generator=generator)
    noise = [0.3 * torch.randn(600, 3, generator=generator) for _ in range(2)]
    tied = {"first": noise[0] + coin[:, None], "second": noise[1] + (coin ^ labels)[:, None]}
    views = {name: rows + labels[:, None] for name, rows in zip(("first", "second"), noise, strict=True)}
    sides = [(["first"], ["second"])]
    # Given the label one modality tells the other, and both together tell the label: one bit.
    assert float(held_out_dependence(tied, labels, 2, sides, 0)) > 0.7
    assert float(held_out_dependence(views, labels, 2, sides, 0)) < 8 / (600 * LN2)


def test_each_pair_has_its_own_dependence():
    """What both sides know beyond the product of their posteriors; of two pairs."""
    same = torch.tensor([[0.5, 0.2]] * 2, dtype=torch.float64)
    joint, product = torch.tensor([[1.0, 0.9]] * 2, dtype=torch.float64), torch.tensor([0.7, 0.4]).double()
    nothing = torch.zeros(3, 2, dtype=torch.float64)
    known = Known(same, same, joint, same, 0 * same, product, nothing, nothing, 0 * product, 0 * product)
    squares = squared_sums(torch.randn(4, 2, 2, 12, dtype=torch.float64), torch.arange(12))
    one = torch.ones((), dtype=torch.float64)
    sides = [(["a"], ["b"]), (["a"], ["c"])]
    found = measure(Posteriors(known, squares, 12, torch.tensor(12), 2 * one, 12 * one, sides))
    torch.testing.assert_close(found.limit.dependence, torch.tensor([0.3, 0.5]).double())
    torch.testing.assert_close(found.held_out.dependence, torch.tensor([0.3, 0.5]).double())
