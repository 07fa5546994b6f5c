"""Contributions of modalities: Shapley values against known answers, in the report of a run, and for single rows."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fusion_fixtures import two_views
from torch import Tensor

from ecsfusion.evaluation.contributions import contributions_of
from ecsfusion.evaluation.measurement import Measurement, Scale
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.contributions import row_contributions, shapley_values
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ecsfusion.model.readout import Readout
from ecsfusion.reporting.contributions import contributions_sentence, plot_contributions


def evaluation_of(heads: dict[str, Tensor], labels: Tensor, **more) -> Evaluation:
    names = [name for name in heads if name != FUSED]
    everywhere = {name: torch.ones(len(labels), dtype=torch.bool) for name in names}
    embeddings = {name: np.zeros((len(labels), 2)) for name in names}
    return Evaluation(heads, embeddings, more.pop("present", everywhere), labels, **more)


def exact_heads(
    num_rows: int, distances: dict[str, float], seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Exact posteriors of views that are independent given the label, and their product as the fused head."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (num_rows,), generator=generator)
    onehot = torch.nn.functional.one_hot(labels, 4).double()
    heads = {
        name: distance
        * (distance * onehot + torch.randn(num_rows, 4, generator=generator, dtype=torch.float64))
        for name, distance in distances.items()
    }
    return {**heads, FUSED: sum(heads.values())}, labels


class TestShapley:
    @pytest.mark.parametrize("number", [1, 2, 3, 6])
    def test_it_is_the_mean_over_all_orders(self, number):
        names = tuple("abcdef"[:number])
        generator = torch.Generator().manual_seed(number)
        sets = [s for size in range(number + 1) for s in itertools.combinations(names, size)]
        values = {s: torch.randn(3, generator=generator, dtype=torch.float64) for s in sets}
        mean = {name: torch.zeros(3, dtype=torch.float64) for name in names}
        orders = list(itertools.permutations(names))
        for order in orders:
            for place, name in enumerate(order):
                before = tuple(sorted(order[:place]))
                mean[name] += (values[tuple(sorted((*before, name)))] - values[before]) / len(orders)
        found = shapley_values(names, values.__getitem__)
        for name in names:
            torch.testing.assert_close(found[name], mean[name])

    def test_seven_modalities_are_refused_before_any_answer(self):
        with pytest.raises(ValueError, match=r"7 modalities .* up to 6"):
            shapley_values("abcdefg", lambda names: pytest.fail("it asked"))


class TestOfAModel:
    def test_bits_are_what_each_view_knows_where_the_log_probabilities_add(self):
        heads, labels = exact_heads(4000, {"image": 1.5, "audio": 1.5, "text": 0.0})
        found = contributions_of(evaluation_of(heads, labels), None)
        bits, score = found["bits"], found["score"]
        assert bits["text"] == pytest.approx(0.0, abs=0.01)
        assert score["text"] == pytest.approx(0.0, abs=0.01)
        assert bits["image"] == pytest.approx(bits["audio"], abs=0.05)
        told = torch.log2(heads[FUSED].softmax(1).gather(1, labels[:, None])).mean()
        entropy = -sum(p * math.log2(p) for p in (labels.bincount() / len(labels)).tolist())
        assert sum(bits.values()) == pytest.approx(entropy + float(told), abs=0.02)
        right = float((heads[FUSED].argmax(1) == labels).double().mean())
        chance = float(labels.bincount().max()) / len(labels)
        assert sum(score.values()) == pytest.approx(right - chance, abs=0.01)

    def test_the_commonest_answer_is_that_of_all_rows_where_classes_are_equally_frequent(self):
        # The rows of a half that cross-fitting fits to have most of the class of which the other half has least.
        labels = torch.tensor([0, 0, 0, 1, 1, 1] * 10)[
            torch.randperm(60, generator=torch.Generator().manual_seed(1))
        ]
        heads = {name: 9.0 * torch.nn.functional.one_hot(labels, 2).double() for name in ("a", "b", FUSED)}
        found = contributions_of(evaluation_of(heads, labels), None)
        assert 1 - sum(found["score"].values()) == pytest.approx(0.5)
        assert sum(found["bits"].values()) == pytest.approx(1.0, abs=1e-3)

    def test_a_copy_shares_what_both_know(self):
        heads, labels = exact_heads(2000, {"image": 2.0})
        copies = {"image": heads["image"], "copy": heads["image"], FUSED: heads["image"]}
        bits = contributions_of(evaluation_of(copies, labels), None)["bits"]
        alone = contributions_of(evaluation_of(heads, labels), None)["bits"]
        assert bits["image"] == pytest.approx(bits["copy"], abs=0.02)
        assert bits["image"] == pytest.approx(alone["image"] / 2, abs=0.02)

    def test_what_only_both_know_is_divided(self):
        # An exclusive or: the heads of single modalities know nothing, the fused head everything.
        generator = torch.Generator().manual_seed(3)
        labels = torch.randint(2, (1000,), generator=generator)
        noise = {
            m: 0.01 * torch.randn(1000, 2, generator=generator, dtype=torch.float64)
            for m in ("image", "audio")
        }
        heads = {**noise, FUSED: 12.0 * torch.nn.functional.one_hot(labels, 2).double()}
        found = contributions_of(evaluation_of(heads, labels), None)
        for bits in found["bits"].values():
            assert bits == pytest.approx(0.5, abs=0.03)

    def test_a_modality_that_rows_lack_contributes_only_where_it_is(self):
        heads, labels = exact_heads(4000, {"image": 1.5, "audio": 1.5})
        lacks = torch.arange(4000) % 2 == 0
        heads["audio"][lacks] = torch.nan
        present = {"image": torch.ones(4000, dtype=torch.bool), "audio": ~lacks}
        bits = contributions_of(evaluation_of(heads, labels, present=present), None)["bits"]
        assert 0.3 * bits["image"] < bits["audio"] < 0.7 * bits["image"]

    def test_untrained_heads_and_one_row_tell_nothing(self):
        heads, labels = exact_heads(50, {"image": 1.5, "audio": 1.5})
        assert (
            contributions_of(evaluation_of(heads, labels, excluded_from_readout=("image", "audio")), None)
            is None
        )
        joint = Readout.fit(heads, labels, excluded_from_readout=("image", "audio"))
        # A model that was loaded says it by its readout.
        assert contributions_of(evaluation_of(heads, labels), Readout.from_dict(joint.to_dict())) is None
        single = {name: z[:1] for name, z in heads.items()}
        assert contributions_of(evaluation_of(single, labels[:1]), None) is None

    def test_regression_shares_the_explained_variance(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2000, 2, generator=generator, dtype=torch.float64)
        target = x.sum(1, keepdim=True)
        heads = {"image": x[:, :1], "audio": x[:, 1:], FUSED: target}
        found = contributions_of(evaluation_of(heads, target), None, REGRESSION)
        assert found["bits"] == {}
        assert found["score"] == {
            "image": pytest.approx(0.5, abs=0.05),
            "audio": pytest.approx(0.5, abs=0.05),
        }


class TestOfARow:
    @pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
    def test_they_add_up_to_the_answer(self, kind):
        generator = torch.Generator().manual_seed(1)
        heads = {
            name: torch.randn(60, 3, generator=generator, dtype=torch.float64) for name in ("a", "b", FUSED)
        }
        labels = {
            SINGLE_LABEL: torch.randint(3, (60,), generator=generator),
            MULTI_LABEL: torch.randint(2, (60, 3), generator=generator).double(),
            REGRESSION: torch.randn(60, 3, generator=generator, dtype=torch.float64),
        }[kind]
        readout = Readout.fit(heads, labels, problem_type=kind)
        present = {"a": torch.ones(60, dtype=torch.bool), "b": torch.arange(60) % 3 > 0}
        found = row_contributions(readout, heads, present)
        assert (found["b"][::3] == 0).all()
        answers, prior = readout.answers(heads, present), torch.tensor(readout.prior, dtype=torch.float64)
        if kind == SINGLE_LABEL:
            predicted = answers.argmax(1)
            expected = answers.gather(1, predicted[:, None])[:, 0].log2() - prior[predicted].log2()
        elif kind == MULTI_LABEL:
            yes = answers > 0.5
            expected = (
                (torch.where(yes, answers, 1 - answers) / torch.where(yes, prior, 1 - prior)).log2().sum(1)
            )
        else:
            expected = answers - prior
        torch.testing.assert_close(found["a"] + found["b"], expected)

    def test_a_row_without_any_modality_gets_the_prior(self):
        heads, labels = exact_heads(100, {"image": 1.0, "audio": 1.0})
        readout = Readout.fit(heads, labels)
        nowhere = {name: torch.zeros(100, dtype=torch.bool) for name in ("image", "audio")}
        counts = labels.bincount(minlength=4) + 1
        torch.testing.assert_close(readout.answers(heads, nowhere)[0], (counts / counts.sum()).double())
        again = Readout.from_dict(readout.to_dict())
        assert again.prior == readout.prior
        # A readout of an earlier version knows no frequencies.
        older = {key: value for key, value in readout.to_dict().items() if key != "prior"}
        assert Readout.from_dict(older).answers(heads, nowhere)[0].tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 9]), "class 9"),
        (torch.tensor([0, 1, -100]), "class -100"),
        (torch.tensor([0, 1]), "each of the 3"),
        (torch.ones(3, 3), "one class index per row"),
        ([0, 1, 2], "no tensor: list"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels, message):
    model = two_views().eval()
    logits = {name: torch.eye(3) for name in ("left", "right", FUSED)}
    model.config.readout = Readout.fit(logits, torch.arange(3)).to_dict()
    rows = {name: torch.zeros(3, 1, 4, 4) for name in ("left", "right")}
    with pytest.raises((ValueError, TypeError), match=message):
        model.contributions(labels=labels, **rows)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, None, "1"])
def test_a_saved_weight_that_is_none_is_named(weight):
    values = Readout.fit({"a": torch.eye(3), FUSED: torch.eye(3)}, torch.arange(3)).to_dict()
    values["weights"][0]["a"] = weight
    with pytest.raises(ValueError, match="weight of the head 'a' in a readout"):
        Readout.from_dict(values)


def measured(**more) -> Measurement:
    return Measurement(
        "accuracy",
        {"image": 0.6, "audio": 0.3, FUSED: 0.7, "calibrated": 0.72},
        {},
        100,
        100,
        Scale(100, 0.1),
        contributions={"score": {"image": 0.45, "audio": 0.17}, "bits": {"image": 1.2, "audio": 0.4}},
        **more,
    )


def test_the_sentence_has_the_numbers():
    assert contributions_sentence(measured()) == (
        "image 45.0 and audio 17.0 points of accuracy beyond the 10.0 of the commonest answer; image 1.20 and audio "
        "0.40 bits"
    )


def test_the_sentence_of_a_regression_adds_up():
    found = {"score": {"image": 0.5, "audio": 0.25}, "bits": {}}
    sentence = contributions_sentence(replace(measured(), score="r2", contributions=found))
    assert sentence == "image 0.50 and audio 0.25 of R² beyond the -0.03 of the mean of the fit"


@pytest.mark.parametrize(
    ("score", "shares"), [("accuracy", (0.62, 0.0)), ("r2", (0.9, -0.05)), ("r2", (-0.3, 0.0))]
)
def test_labels_of_the_picture_have_room_above_the_bars(score, shares):
    found = {"score": dict(zip(("image", "audio"), shares, strict=True)), "bits": {}}
    axes = plot_contributions(replace(measured(), score=score, contributions=found), "test").axes[0]
    low, high = axes.get_ylim()
    assert max(bar.get_y() + max(bar.get_height(), 0) for bar in axes.patches) < high - 0.05 * (high - low)
    # No bar hangs out of the picture.
    assert min(bar.get_y() + min(bar.get_height(), 0) for bar in axes.patches) >= low
    assert axes.get_title(loc="left").startswith("accuracy" if score == "accuracy" else "R²")


def test_a_modality_that_no_row_has_is_not_said_to_contribute_nothing():
    here = measured()
    lacking = replace(here, scores={name: s for name, s in here.scores.items() if name != "audio"})
    assert contributions_sentence(lacking).startswith("image 45.0 points of accuracy")
    assert "audio" not in contributions_sentence(lacking)
    labels = [text.get_text() for text in plot_contributions(lacking, "test").axes[0].get_xticklabels()]
    assert labels == ["none", "image", "all"]


def test_the_picture_is_drawn_and_a_measurement_survives_json(tmp_path):
    plot_contributions(measured(), "test", tmp_path / "contributions.png")
    assert (tmp_path / "contributions.png").stat().st_size > 5000
    assert Measurement.from_json(measured().to_json()) == measured()
