"""The calibrated combination of heads: known answers, bounds that must hold on every sample, bad input."""

import itertools
import json
import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

from ecsfusion.model import readout_weights
from ecsfusion.model.names import FUSED
from ecsfusion.model.readout import Readout, expected_calibration_error


def gaussian_views(
    num_samples: int, distances: dict[str, float], num_classes: int = 5, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Exact posteriors of views x = distance * onehot(y) + noise, independent given y: logits distance * x."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    onehot = torch.nn.functional.one_hot(labels, num_classes).double()
    logits = {}
    for name, distance in distances.items():
        noise = torch.randn(num_samples, num_classes, generator=generator, dtype=torch.float64)
        logits[name] = distance * (distance * onehot + noise)
    return logits, labels


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("seed", [15, 194, 426, 994])
def test_it_is_never_less_accurate_than_the_fused_head_on_the_rows_of_the_fit(seed: int) -> None:
    # Of 3 000 draws of a few rows with meaningless logits, those that were worse, one of them 0 % for 83 %.
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_classes = (
        int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((2, 12), (2, 5))
    )
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    scale = 10 ** float(torch.rand(1, generator=generator) * 3 - 1)
    logits = {
        name: scale * torch.randn(num_rows, num_classes, generator=generator)
        for name in ("image", "audio", FUSED)
    }
    answers = Readout.fit(logits, labels)(logits)
    assert accuracy(answers, labels) >= accuracy(logits[FUSED], labels)


class TestKnownAnswers:
    def test_exact_independent_posteriors_need_weight_one(self) -> None:
        # uniform classes, views independent given the label: the posterior is the product of the posteriors
        logits, labels = gaussian_views(20_000, {"image": 1.2, "audio": 1.8})
        readout = Readout.fit(logits, labels)
        assert readout.weights() == pytest.approx({"image": 1.0, "audio": 1.0}, abs=0.05)
        product = (logits["image"] + logits["audio"]).log_softmax(1)
        assert torch.allclose(readout(logits), product, atol=0.5)
        assert float((readout(logits).exp() - product.exp()).abs().mean()) < 0.01

    @pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
    def test_one_head_is_temperature_scaling(self, temperature: float) -> None:
        logits, labels = gaussian_views(20_000, {"image": 1.5})
        readout = Readout.fit({"image": logits["image"] * temperature}, labels)
        assert readout.weights() == pytest.approx({"image": 1 / temperature}, rel=0.05)

    def test_the_fit_is_the_optimum_of_a_grid(self) -> None:
        logits, labels = gaussian_views(500, {"image": 1.0, "audio": 2.0}, seed=3)
        logits["audio"] = 3 * logits["audio"]
        weights = Readout.fit(logits, labels).weights()

        def objective(image: float, audio: float) -> float:
            log_p = image * logits["image"].log_softmax(1) + audio * logits["audio"].log_softmax(1).clamp_min(
                -36
            )
            pull = ((image - 0.5) ** 2 + (audio - 0.5) ** 2) / (2 * len(labels))
            return float(cross_entropy(log_p, labels)) + pull

        best = objective(weights["image"], weights["audio"])
        grid = np.linspace(0, 2, 41)
        assert best <= min(objective(image, audio) for image in grid for audio in grid) + 1e-9

    def test_a_useless_modality_gets_weight_zero(self) -> None:
        zeros = 0
        for seed in range(10):
            logits, labels = gaussian_views(500, {"image": 1.5, "audio": 1.5}, seed=seed)
            logits["audio"] = logits["audio"][
                torch.randperm(500, generator=torch.Generator().manual_seed(seed))
            ]
            weights = Readout.fit(logits, labels).weights()
            assert weights["image"] == pytest.approx(1.0, abs=0.3)
            assert weights["audio"] < 0.15
            zeros += weights["audio"] == 0
        assert zeros >= 8

    @pytest.mark.parametrize("num_groups", [2, 4])
    def test_a_useful_modality_keeps_its_weight_where_groups_are_few(self, num_groups: int) -> None:
        logits, labels = gaussian_views(400, {"image": 1.5, "audio": 0.7})
        weights = Readout.fit(logits, labels, groups=torch.arange(400) % num_groups).weights()
        assert weights["audio"] > 0.3

    def test_a_useful_predictor_keeps_its_weight_where_groups_are_few(self) -> None:
        generator = torch.Generator().manual_seed(0)
        targets = torch.randn(400, 1, generator=generator)
        noise = {"image": 0.8, "audio": 1.6}
        heads = {
            name: targets + std * torch.randn(400, 1, generator=generator) for name, std in noise.items()
        }
        readout = Readout.fit(heads, targets, problem_type="regression", groups=torch.arange(400) % 2)
        assert readout.weights()["audio"] > 0.1

    def test_a_constant_head_gets_weight_zero(self) -> None:
        logits, labels = gaussian_views(300, {"image": 1.5})
        logits["audio"] = torch.zeros(300, 5)
        assert Readout.fit(logits, labels).weights()["audio"] == 0

    def test_a_misleading_head_gets_weight_zero_not_a_negative_one(self) -> None:
        logits, labels = gaussian_views(500, {"image": 1.0, "audio": 1.5})
        logits["audio"] = -logits["audio"]
        assert Readout.fit(logits, labels).weights()["audio"] == 0

    def test_scaled_logits_give_the_same_answer(self) -> None:
        logits, labels = gaussian_views(4000, {"image": 1.0, "audio": 1.5, FUSED: 2.0})
        scaled = {"image": 5 * logits["image"], "audio": 0.3 * logits["audio"], FUSED: 2 * logits[FUSED]}
        difference = Readout.fit(logits, labels)(logits).exp() - Readout.fit(scaled, labels)(scaled).exp()
        assert float(difference.abs().max()) < 0.02


def noisy_heads(seed: int, num_samples: int) -> tuple[dict[str, Tensor], Tensor]:
    """Heads of any quality and confidence; the fused one is a noisy sum of the others."""
    rng = np.random.default_rng(seed)
    logits, labels = gaussian_views(
        num_samples, {m: rng.uniform(0, 2.5) for m in ("image", "audio")}, 4, seed
    )
    fused = logits["image"] + rng.uniform(0, 2) * logits["audio"]
    logits[FUSED] = fused + rng.uniform(0, 4) * torch.from_numpy(rng.standard_normal(fused.shape))
    return {name: float(np.exp(rng.normal(0, 1))) * z for name, z in logits.items()}, labels


class TestPullTowardsTheFusedHead:
    """Validation rows of two subjects may prefer a head that is worse for all others."""

    def test_rows_of_few_groups_move_the_answer_less(self) -> None:
        for seed in range(5):
            # Of two heads of the same worth, one is right about the subjects of validation.
            logits, labels = gaussian_views(400, {"image": 1.0, "audio": 1.0, FUSED: 1.5}, seed=seed)
            logits["audio"] += 3 * torch.nn.functional.one_hot(labels, 5)
            logits[FUSED] += torch.nn.functional.one_hot(labels, 5)
            by_rows = Readout.fit(logits, labels)
            by_groups = Readout.fit(logits, labels, groups=torch.arange(400) % 2)
            shares = []
            for readout in (by_rows, by_groups):
                alone = {name: readout.weights([name])[name] for name in ("image", "audio")}
                units = {name: readout.weights()[name] / alone[name] for name in alone}
                shares.append(units["audio"] - units["image"])
            assert shares[0] > 0.15
            assert shares[1] < 0.5 * shares[0]

    def test_a_single_group_is_near_the_even_mixture(self) -> None:
        logits, labels = gaussian_views(400, {"image": 1.5, "audio": 1.5, FUSED: 2.0}, seed=1)
        weights = Readout.fit(logits, labels, groups=torch.zeros(400, dtype=torch.long)).weights()
        # The weights of calibrated heads are 1: half of the fused head, a quarter of the others.
        assert list(weights.values()) == pytest.approx([0.25, 0.25, 0.5], abs=0.15)

    def test_clear_evidence_outweighs_it(self) -> None:
        # The fused head is noise: many rows say so.
        logits, labels = gaussian_views(4000, {"image": 1.5, "audio": 1.5}, seed=1)
        logits[FUSED] = torch.randn(4000, 5, generator=torch.Generator().manual_seed(1))
        weights = Readout.fit(logits, labels).weights()
        assert (weights["image"], weights["audio"]) == pytest.approx((1.0, 1.0), abs=0.1)

    def test_the_scale_of_a_heads_logits_does_not_matter(self) -> None:
        logits, labels = gaussian_views(300, {"image": 1.0, "audio": 1.5, FUSED: 2.0})
        scaled = {"image": 8 * logits["image"], "audio": 0.2 * logits["audio"], FUSED: 5 * logits[FUSED]}
        difference = Readout.fit(logits, labels)(logits).exp() - Readout.fit(scaled, labels)(scaled).exp()
        assert float(difference.abs().max()) < 0.05


class TestNeverWorse:
    @pytest.mark.parametrize("num_samples", [1, 2, 5, 30, 250])
    def test_cross_entropy_on_validation(self, num_samples: int) -> None:
        for seed in range(12):
            logits, labels = noisy_heads(seed, num_samples)
            readout = Readout.fit(logits, labels)
            combined = float(nll_loss(readout(logits), labels))
            alone = {name: Readout.fit({name: z}, labels)({name: z}) for name, z in logits.items()}
            assert combined <= float(nll_loss(alone[FUSED], labels)) + 1e-6, seed
            heads = {name: z for name, z in logits.items() if name != FUSED}
            without = float(nll_loss(Readout.fit(heads, labels)(heads), labels))
            for name in heads:
                assert without <= float(nll_loss(alone[name], labels)) + 1e-6, (seed, name)

    @pytest.mark.parametrize("num_samples", [5, 30, 250])
    def test_accuracy_on_validation(self, num_samples: int) -> None:
        for seed in range(12):
            logits, labels = noisy_heads(seed, num_samples)
            assert accuracy(Readout.fit(logits, labels)(logits), labels) >= accuracy(logits[FUSED], labels)
            del logits[FUSED]
            readout = Readout.fit(logits, labels)
            alone = {name: Readout.fit({name: z}, labels)({name: z}) for name, z in logits.items()}
            most_accurate = max(alone, key=lambda name: accuracy(logits[name], labels))
            least_loss = min(float(nll_loss(log_p, labels)) for log_p in alone.values())
            if float(nll_loss(alone[most_accurate], labels)) <= least_loss:
                # Both bounds can be met.
                assert accuracy(readout(logits), labels) >= accuracy(logits[most_accurate], labels), seed

    def test_on_fresh_samples_it_is_ahead_of_every_head(self) -> None:
        logits, labels = gaussian_views(4250, {"image": 1.2, "audio": 1.0, "text": 0.8}, seed=5)
        logits = {name: scale * z for (name, z), scale in zip(logits.items(), (3.0, 0.5, 2.0), strict=True)}
        readout = Readout.fit({name: z[:250] for name, z in logits.items()}, labels[:250])
        fresh = {name: z[250:] for name, z in logits.items()}
        best = max(accuracy(z, labels[250:]) for z in fresh.values())
        assert accuracy(readout(fresh), labels[250:]) > best + 0.05
        error = expected_calibration_error(readout(fresh).exp(), labels[250:])
        assert error < 0.05 < expected_calibration_error(fresh["image"].softmax(1), labels[250:])


class TestMissingModalities:
    @pytest.fixture
    def fitted(self) -> tuple[dict[str, Tensor], Tensor, Readout]:
        logits, labels = gaussian_views(400, {"image": 1.0, "audio": 1.5, "text": 0.7, FUSED: 2.0})
        logits = {name: 2 * z for name, z in logits.items()}
        return logits, labels, Readout.fit(logits, labels)

    @pytest.mark.parametrize(
        "present", [s for size in (1, 2) for s in itertools.combinations(("image", "audio", "text"), size)]
    )
    def test_the_answer_is_that_of_the_present_heads_alone(
        self, fitted: tuple[dict[str, Tensor], Tensor, Readout], present: tuple[str, ...]
    ) -> None:
        logits, labels, readout = fitted
        some = {name: logits[name] for name in present}
        expected = Readout.fit(some, labels)(some)
        assert torch.equal(readout(some), expected)
        # The fused head is dropped.
        assert torch.equal(readout(logits, present=present), expected)

    def test_all_present_uses_the_fused_head(self, fitted: tuple[dict[str, Tensor], Tensor, Readout]) -> None:
        logits, _, readout = fitted
        assert readout.weights()[FUSED] > 0
        assert torch.equal(readout(logits, present=["text", "audio", "image"]), readout(logits))

    def test_the_fused_head_alone_is_calibrated(
        self, fitted: tuple[dict[str, Tensor], Tensor, Readout]
    ) -> None:
        logits, labels, readout = fitted
        fused = {FUSED: logits[FUSED]}
        assert torch.equal(readout(fused), Readout.fit(fused, labels)(fused))
        assert readout.weights([FUSED])[FUSED] == pytest.approx(0.5, rel=0.2)

    def test_five_modalities(self) -> None:
        names = [f"view{i}" for i in range(5)]
        logits, labels = gaussian_views(2000, dict.fromkeys(names, 1.0))
        readout = Readout.fit(logits, labels)
        single = [readout.weights([name])[name] for name in names[:2]]
        pair = {name: logits[name] for name in names[:2]}
        # no weights of this pair's own: the geometric mean of the two calibrated answers
        mean = sum(w / 2 * z for w, z in zip(single, pair.values(), strict=True))
        assert torch.allclose(readout(pair), mean.log_softmax(1))

    def test_a_fused_head_that_was_not_fitted_is_left_out(self) -> None:
        logits, labels = gaussian_views(100, {"image": 1.0, "audio": 1.0})
        readout = Readout.fit(logits, labels)
        assert torch.equal(readout({**logits, FUSED: torch.randn(100, 5)}), readout(logits))


class TestSaved:
    def test_round_trip_through_json_is_exact(self) -> None:
        logits, labels = noisy_heads(1, 100)
        readout = Readout.fit(logits, labels)
        saved = json.loads(json.dumps(readout.to_dict(), allow_nan=False))
        restored = Readout.from_dict(saved)
        assert restored == readout
        assert restored.to_dict() == saved
        assert torch.equal(restored(logits), readout(logits))

    def test_another_dictionary_is_refused(self) -> None:
        with pytest.raises(ValueError, match="lacks 'weights'"):
            Readout.from_dict({"modalities": ["image"], "num_classes": 3})


class TestHardCases:
    def test_answers_are_normalized_log_probabilities_in_the_logits_type(self) -> None:
        logits, labels = noisy_heads(2, 50)
        readout = Readout.fit(logits, labels)
        for given, expected in (("float64", "float64"), ("float32", "float32"), ("bfloat16", "float32")):
            answer = readout({name: z.to(getattr(torch, given)) for name, z in logits.items()})
            assert answer.dtype == getattr(torch, expected)
            assert torch.allclose(answer.exp().sum(1), torch.ones(50, dtype=answer.dtype), atol=1e-5)

    def test_infinite_logits(self) -> None:
        logits, labels = gaussian_views(200, {"image": 1.0, "audio": 1.5})
        logits["image"][0] = torch.tensor([math.inf, 0, 0, 0, 0])
        logits["image"][1] = -math.inf
        # True for some of these rows.
        logits["audio"][:50, 4] = -math.inf
        readout = Readout.fit(logits, labels)
        assert all(math.isfinite(w) for w in readout.weights().values())
        assert readout.weights()["image"] > 0.3
        for dtype in (torch.float64, torch.float32):
            assert readout({name: z.to(dtype) for name, z in logits.items()}).isfinite().all()

    def test_a_class_that_validation_lacks(self) -> None:
        logits, labels = gaussian_views(400, {"image": 1.5, "audio": 1.0})
        kept = labels != 3
        readout = Readout.fit({name: z[kept] for name, z in logits.items()}, labels[kept])
        missing = {name: z[~kept] for name, z in logits.items()}
        assert accuracy(readout(missing), labels[~kept]) > 0.5
        assert all(0.5 < w < 2 for w in readout.weights().values())

    def test_a_tiny_validation_set_without_errors_is_no_reason_for_certainty(self) -> None:
        labels = torch.tensor([0, 1, 2])
        logits = {name: 0.5 * torch.nn.functional.one_hot(labels, 3).double() for name in ("image", "audio")}
        weights = Readout.fit(logits, labels).weights()
        assert all(w < 2 for w in weights.values())
        assert sum(w > 0.3 for w in weights.values()) >= 1

    def test_one_head_that_says_it_all_answers_alone(self) -> None:
        """More heads would make right answers more certain still, and be trusted where they are wrong."""
        labels = torch.arange(600) % 5
        sure = 8.0 * torch.nn.functional.one_hot(labels, 5).double()
        shortcut = 6.0 * torch.nn.functional.one_hot(labels, 5).double()
        wrong = torch.arange(0, 600, 100)
        shortcut[wrong] = shortcut[wrong].roll(1, dims=1)
        weights = Readout.fit({"image": 0.0 * sure, "colour": shortcut, "fused": sure}, labels).weights()
        assert weights["fused"] > 0.5
        assert weights["colour"] == weights["image"] == 0.0

    def test_one_sample_or_one_class(self) -> None:
        one = Readout.fit({"image": torch.randn(1, 3), "audio": torch.randn(1, 3)}, torch.tensor([2]))
        assert one({"image": torch.randn(4, 3)}).isfinite().all()
        trivial = Readout.fit({"image": torch.randn(5, 1), "audio": torch.randn(5, 1)}, torch.zeros(5).long())
        assert torch.equal(trivial({"image": torch.randn(2, 1)}), torch.zeros(2, 1))

    def test_gradients_reach_the_heads(self) -> None:
        logits, labels = noisy_heads(2, 50)
        readout = Readout.fit(logits, labels)
        leaf = logits["image"].clone().requires_grad_()
        nll_loss(readout({"image": leaf}), labels).backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0


LOGITS = {"image": torch.zeros(4, 3), "audio": torch.zeros(4, 3)}
LABELS = torch.tensor([0, 1, 2, 0])


class TestBadInput:
    @pytest.mark.parametrize(
        ("logits", "labels", "message"),
        [
            ({}, LABELS, "logits must be a mapping"),
            (LOGITS["image"], LABELS, "logits must be a mapping"),
            ({**LOGITS, "audio": torch.zeros(3, 3)}, LABELS, r"logits\['audio'\] has shape \(3, 3\)"),
            ({"image": torch.zeros(4)}, LABELS, r"logits\['image'\] has shape \(4,\)"),
            (
                {"image": torch.zeros(0, 3)},
                LABELS[:0],
                r"labels must have one entry per row, got the shape \(0,\)",
            ),
            (
                {"image": torch.tensor([[0.0, 1], [0, math.nan]])},
                LABELS[:2],
                r"logits\['image'\] holds NaN, .*row 1",
            ),
            (LOGITS, LABELS[:3], "labels must be 4 class indices"),
            (LOGITS, LABELS.float(), "labels must be 4 class indices.*float32"),
            (LOGITS, torch.tensor([0, 1, 3, 0]), r"labels\[2\] is 3, outside of 0\.\.2"),
            (LOGITS, torch.tensor([0, -1, 1, 0]), r"labels\[1\] is -1"),
        ],
    )
    def test_fit(self, logits: Any, labels: Tensor, message: str) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            Readout.fit(logits, labels)

    def test_call(self) -> None:
        readout = Readout.fit(LOGITS, LABELS)
        with pytest.raises(ValueError, match=r"no head for 'text'.*'image', 'audio'"):
            readout({"text": torch.zeros(2, 3)})
        with pytest.raises(ValueError, match="no head for 'audio'"):
            readout({"image": torch.zeros(2, 3)}, present=["audio"])
        with pytest.raises(ValueError, match="at least one modality"):
            readout(LOGITS, present=[])
        with pytest.raises(ValueError, match=r"logits\['image'\] must have shape \(N, 3\), got \(2, 4\)"):
            readout({"image": torch.zeros(2, 4)})


class TestExpectedCalibrationError:
    def test_by_hand(self) -> None:
        # ten bins, one sample in each of three: 0.62 wrong, 0.74 right, 0.93 right
        p = torch.tensor([[0.62, 0.38], [0.74, 0.26], [0.07, 0.93]])
        labels = torch.tensor([1, 0, 1])
        assert expected_calibration_error(p, labels, num_bins=10) == pytest.approx((0.62 + 0.26 + 0.07) / 3)
        # one bin: accuracy 2/3, mean confidence 2.29/3
        assert expected_calibration_error(p, labels, num_bins=1) == pytest.approx(0.29 / 3)

    def test_calibrated_predictions_have_almost_none(self) -> None:
        logits, labels = gaussian_views(20_000, {"image": 1.5})
        assert expected_calibration_error(logits["image"].softmax(1), labels) < 0.02
        assert expected_calibration_error((4 * logits["image"]).softmax(1), labels) > 0.1

    def test_certain_and_right_is_zero(self) -> None:
        assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0

    @pytest.mark.parametrize(
        ("p", "labels", "bins", "message"),
        [
            (torch.eye(3), torch.arange(3), 0, "num_bins"),
            (torch.ones(3), torch.arange(3), 15, "probabilities must be"),
            (2 * torch.eye(3), torch.arange(3), 15, "probabilities must be"),
            (torch.eye(3), torch.arange(2), 15, "labels must be 3"),
        ],
    )
    def test_bad_input(self, p: Tensor, labels: Tensor, bins: int, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            expected_calibration_error(p, labels, bins)


def test_a_head_is_fitted_alone_once_however_many_sets_it_is_in(monkeypatch) -> None:
    fits: list[int] = []

    def counted(objective, start, **options):
        fits.append(len(start))
        return minimize(objective, start, **options)

    monkeypatch.setattr(readout_weights, "minimize", counted)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    hot = torch.nn.functional.one_hot(labels, 3)
    heads = {name: hot + torch.randn(60, 3, generator=generator) for name in ("a", "b", "c", "fused")}
    Readout.fit(heads, labels)
    assert fits.count(1) == 4
    fits.clear()
    # Of the rows that have "c" every head is fitted again.
    fewer = {"a": torch.ones(60, dtype=torch.bool), "b": torch.ones(60, dtype=torch.bool), "c": labels < 2}
    Readout.fit(heads, labels, fewer)
    assert fits.count(1) == 4 + 2


def test_two_fits_at_once_leave_the_threads_of_blas_as_they_were(monkeypatch) -> None:
    """Their number is that of the whole process: a fit that began within another would put back the other's 1."""
    log_p, targets = np.log(np.full((1, 4, 2), 0.5)), np.array([0, 1, 1, 0])
    first_ended, second_began, fit = threading.Event(), threading.Event(), readout_weights._fit_weights
    second = threading.Thread(target=lambda: readout_weights.pool_opinions(log_p, targets))

    def within(*arguments: Any) -> np.ndarray:
        if threading.current_thread() is second:
            second_began.set()
            first_ended.wait()
        else:
            second.start()
            second_began.wait(0.3)
        return fit(*arguments)

    def in_blas() -> int:
        return max(library["num_threads"] for library in readout_weights._BLAS.info())

    def use(threads: int) -> None:
        # By a thread that ends: the one that has set the number last stands in the way of others while it lives.
        setting = threading.Thread(target=lambda: readout_weights._BLAS.limit(limits=threads))
        setting.start()
        setting.join()

    monkeypatch.setattr(readout_weights, "_fit_weights", within)
    before = in_blas()
    use(2)
    try:
        readout_weights.pool_opinions(log_p, targets)
        first_ended.set()
        second.join()
        assert in_blas() == 2
    finally:
        use(before)


def test_of_what_is_not_a_number_the_modality_is_named():
    """Its NaN reaches the fused head, too."""
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(40, 3, generator=generator) for name in ("a", "b", "fused")}
    readout = Readout.fit(logits, torch.arange(40) % 3)
    for broken in ("a", "b"):
        with_nan = {**logits, "fused": logits["fused"].clone(), broken: logits[broken].clone()}
        with_nan["fused"][5] = with_nan[broken][5] = torch.nan
        with pytest.raises(ValueError, match=rf"logits\['{broken}'\] holds NaN in 1 rows"):
            readout(with_nan)
