"""Single-label, multi-label and regression: loss, labels, readout, scores, the probe, and a whole run."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from fusion_fixtures import TwoViews, tiny_vit, two_views
from torch.nn import functional as F  # noqa: N812

from ecsfusion import FusionConfig, FusionForClassification, FusionTrainer, FusionTrainingArguments, Readout
from ecsfusion.evaluation.measure import measure
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import score
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL, problem_type_of
from ecsfusion.reporting.results import results_table

BATCH = {name: {"pixel_values": torch.randn(5, 1, 4, 4)} for name in ("left", "right")}


def model_for(problem_type: str | None, num_labels: int = 3) -> FusionForClassification:
    torch.manual_seed(0)
    return FusionForClassification.from_modality_pretrained(
        {"left": tiny_vit(), "right": tiny_vit()}, num_labels=num_labels, problem_type=problem_type
    )


def test_the_loss_of_every_head_is_that_of_the_problem():
    several = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]])
    reals = torch.randn(5, 3)
    for kind, labels, loss in (
        (MULTI_LABEL, several, F.binary_cross_entropy_with_logits),
        (MULTI_LABEL, several.long(), lambda z, y: F.binary_cross_entropy_with_logits(z, y.float())),
        (REGRESSION, reals, F.mse_loss),
    ):
        model = model_for(kind).eval()
        out = model(**BATCH, labels=labels)
        unimodal = sum(loss(z, labels) for z in out.unimodal_logits.values())
        torch.testing.assert_close(out.loss, loss(out.logits, labels) + 0.6 * unimodal)
    one = model_for(None, num_labels=1).eval()
    out = one(**BATCH, labels=reals[:, 0])
    torch.testing.assert_close(one(**BATCH, labels=reals[:, :1]).loss, out.loss)
    assert one.problem_type == REGRESSION
    assert problem_type_of(FusionConfig(num_labels=4)) == SINGLE_LABEL


def test_label_smoothing_in_each_problem():
    model = model_for(MULTI_LABEL).eval()
    labels = torch.tensor([[1.0, 0, 1]]).repeat(5, 1)
    model.label_smoothing = 0.2
    z = torch.randn(5, 3)
    torch.testing.assert_close(
        model.head_loss(z, labels), F.binary_cross_entropy_with_logits(z, 0.8 * labels + 0.1)
    )
    # transformers says that it smooths no label, and it does not: the model does.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        FusionTrainer(
            model,
            FusionTrainingArguments(
                label_smoothing_factor=0.2,
                strategy="joint",
                eval_strategy="no",
                use_cpu=True,
                report_to="none",
            ),
        )
    model = model_for(REGRESSION)
    model.label_smoothing = 0.2
    with pytest.raises(ValueError, match="a real target has no classes"):
        model(**BATCH, labels=torch.randn(5, 3))


def test_a_loss_of_ones_own_replaces_that_of_every_head():
    model = model_for(None).eval()
    weight = torch.tensor([1.0, 5.0, 0.5])
    model.head_loss = torch.nn.CrossEntropyLoss(weight=weight)
    labels = torch.tensor([0, 1, 2, 0, 1])
    out = model(**BATCH, labels=labels)
    of = [F.cross_entropy(z, labels, weight=weight) for z in (out.logits, *out.unimodal_logits.values())]
    torch.testing.assert_close(out.loss, of[0] + 0.6 * (of[1] + of[2]))


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        (MULTI_LABEL, torch.tensor([0, 1, 2, 0, 1]), r"shape \(5,\); give 0 or 1 for each of the 3"),
        (MULTI_LABEL, torch.full((5, 3), 2.0), "not all between 0 and 1"),
        (REGRESSION, torch.randn(5), r"shape \(5,\); give the targets as \(B, 3\)"),
        (REGRESSION, torch.full((5, 3), torch.nan), "NaN or infinite"),
    ],
)
def test_labels_that_do_not_fit_are_named(kind, labels, message):
    with pytest.raises(ValueError, match=message):
        model_for(kind)(**BATCH, labels=labels)


# ---- readout ----


def several_labels(rows: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Exact log-odds of views that are independent given labels of probability one half, in wrong temperatures."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (rows, 4), generator=generator).double()
    logits = {}
    for name, distance, temperature in (("image", 1.0, 3.0), ("audio", 1.5, 0.5)):
        x = distance * (labels - 0.5) + torch.randn(rows, 4, generator=generator, dtype=torch.float64)
        logits[name] = temperature * distance * x
    logits["noise"] = 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return logits, labels


def test_readout_of_several_labels_finds_the_temperatures_and_drops_noise():
    logits, labels = several_labels(5000)
    readout = Readout.fit(logits, labels, problem_type=MULTI_LABEL)
    assert readout.weights() == pytest.approx({"image": 1 / 3, "audio": 2.0, "noise": 0.0}, abs=0.1)
    odds = logits["image"] / 3 + 2 * logits["audio"]
    assert float((readout(logits).exp() - odds.sigmoid()).abs().mean()) < 0.01
    alone = readout({"audio": logits["audio"]})
    assert readout.weights(["audio"])["audio"] == pytest.approx(2.0, rel=0.1)
    torch.testing.assert_close(alone, F.logsigmoid(readout.weights(["audio"])["audio"] * logits["audio"]))
    again = Readout.from_dict(json.loads(json.dumps(readout.to_dict())))
    assert again == readout


def real_targets(rows: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(rows, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 100.0]) + 50

    def noise(level: float) -> torch.Tensor:
        unit = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
        return level * unit * torch.tensor([1.0, 100.0])

    # the second head is in other units and off by a constant
    return {
        "image": targets + noise(0.5),
        "audio": 2 * (targets + noise(1.0)) + 7,
        "noise": noise(1.0),
    }, targets


def test_readout_in_regression_is_the_least_squares_combination():
    predictions, targets = real_targets(4000)
    readout = Readout.fit(predictions, targets, problem_type=REGRESSION)
    weights = readout.weights()
    # of a normal prior and normal errors: precisions 1, 4 and 1
    assert weights == pytest.approx({"image": 4 / 6, "audio": 1 / 6 / 2, "noise": 0.0}, abs=0.02)
    assert score(readout(predictions), targets, REGRESSION) == pytest.approx(1 - 1 / 6, abs=0.02)
    alone = readout({"audio": predictions["audio"]})
    assert score(alone, targets, REGRESSION) == pytest.approx(0.5, abs=0.03)
    again = Readout.from_dict(json.loads(json.dumps(readout.to_dict())))
    assert torch.equal(again(predictions), readout(predictions))


@pytest.mark.parametrize("rows", [1, 2, 5, 30, 200])
@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_the_readout_is_never_behind_a_single_head_on_its_rows(kind, rows):
    for seed in range(8):
        heads, labels = (several_labels if kind == MULTI_LABEL else real_targets)(rows, seed)
        readout = Readout.fit(heads, labels, problem_type=kind)

        def loss(answers: torch.Tensor, labels: torch.Tensor = labels) -> float:
            if kind == REGRESSION:
                # Targets count alike, whatever their units.
                scale = labels.std(dim=0, correction=0)
                error = (answers - labels) / torch.where(scale > 0, scale, 1.0)
                return float(error.square().mean())
            return float(F.binary_cross_entropy(answers.exp(), labels))

        combined = loss(readout(heads))
        for name, z in heads.items():
            alone = Readout.fit({name: z}, labels, problem_type=kind)
            assert combined <= loss(alone({name: z})) + 1e-6, (seed, name)
            assert combined <= loss(z if kind == REGRESSION else F.logsigmoid(z)) + 1e-6, (seed, name)


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_gaps_in_the_validation_set(kind):
    heads, labels = (several_labels if kind == MULTI_LABEL else real_targets)(300)
    present = {"image": torch.arange(300) % 3 != 0, "audio": torch.arange(300) % 3 != 1}
    for name, mask in present.items():
        heads[name] = torch.where(mask[:, None], heads[name], torch.nan)
    readout = Readout.fit(heads, labels, present, problem_type=kind)
    masks = {**present, "noise": torch.ones(300, dtype=torch.bool)}
    answers = readout(heads, masks)
    assert answers.isfinite().all()
    only = ~present["image"]
    two = {name: heads[name] for name in ("audio", "noise")}
    rows = present["audio"]
    expected = Readout.fit({n: z[rows] for n, z in two.items()}, labels[rows], problem_type=kind)
    torch.testing.assert_close(answers[only], expected({n: z[only] for n, z in two.items()}))
    never = {"image": torch.zeros(300, dtype=torch.bool)}
    unseen = Readout.fit(heads, labels, {**present, **never}, problem_type=kind)
    assert unseen({"image": torch.randn(4, labels.shape[1])}).isfinite().all()


# ---- scores and probe ----


def test_scores():
    assert score(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([1, 1]), SINGLE_LABEL) == 0.5
    assert score(torch.tensor([[0.2, 0.8], [0.6, 0.4]]), torch.tensor([[0, 1], [0, 0]]), MULTI_LABEL) == 0.75
    y = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert score(y[:, None], y, REGRESSION) == 1
    assert score(torch.full((4, 1), 2.5), y, REGRESSION) == 0
    assert score(y.flip(0)[:, None], y, REGRESSION) == pytest.approx(-3)
    # Where a target is the same in all rows there is no variance to explain.
    constant = torch.stack([y, torch.full((4,), 1.0)], dim=1)
    assert score(torch.stack([y, y], dim=1), constant, REGRESSION) == 1
    assert score(y[:, None], constant[:, 1], REGRESSION) == 0
    assert math.isnan(score(y[:0, None], y[:0], REGRESSION))


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_a_probe_finds_who_knows_the_target(kind, modalities):
    generator = torch.Generator().manual_seed(0)
    names = ("image", "audio", "text")[:modalities]
    embeddings = {name: torch.randn(1500, 4, generator=generator).numpy() for name in names}
    signs = (torch.randn(1500, 2, generator=generator) > 0).float()
    labels = signs if kind == MULTI_LABEL else torch.randn(1500, 1, generator=generator)
    # Only the audio knows it.
    embeddings["audio"][:, : labels.shape[1]] += 3 * labels.numpy()
    heads = {name: torch.randn(1500, labels.shape[1], generator=generator) for name in names}
    measurement, pid = measure(
        Evaluation(
            {"fused": labels * 4 - 2 if kind == MULTI_LABEL else labels, **heads},
            embeddings,
            dict.fromkeys(names, torch.ones(1500, dtype=torch.bool)),
            labels,
        ),
        np.arange(1500),
        readout=None,
        problem_type=kind,
        num_classes=labels.shape[1],
        num_clusters=8,
        bootstrap=0,
    )
    assert pid.redundancy.ndim == 0
    information, scores = measurement.information, measurement.scores
    assert information.unique["audio"] > 0.4 > 0.1 > information.unique["image"]
    assert measurement.score == ("r2" if kind == REGRESSION else "accuracy")
    assert scores["fused"] == 1
    assert scores["calibrated"] > 0.99
    assert scores["image"] < 0.6


class Targets(TwoViews):
    """The two views of `TwoViews` with several labels or a real target instead of the class."""

    def __init__(self, kind: str, num_rows: int, seed: int) -> None:
        super().__init__(num_rows, seed, noise=(0.2, 0.5))
        one_hot = F.one_hot(self.labels, 3).float()
        self.targets = one_hot if kind == MULTI_LABEL else self.labels.float()

    def __getitem__(self, index: int) -> dict[str, object]:
        target = self.targets[index]
        return super().__getitem__(index) | {"labels": target.tolist()}


@pytest.mark.parametrize("kind", [MULTI_LABEL, REGRESSION])
def test_a_whole_run(kind, tmp_path):
    trainer = FusionTrainer(
        model=model_for(kind, num_labels=3 if kind == MULTI_LABEL else 1),
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=6,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            eval_strategy="epoch",
        ),
        train_dataset=Targets(kind, 96, seed=0),
        eval_dataset=Targets(kind, 64, seed=1),
    )
    trainer.train()
    name = "r2" if kind == REGRESSION else "accuracy"
    metrics = trainer.evaluate()
    assert metrics[f"eval_{name}_calibrated"] > 0.7
    assert metrics[f"eval_{name}_calibrated"] >= metrics[f"eval_{name}_left"] - 0.02
    assert trainer.record.history
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert ("## Explained variance (R²)" in card) == (kind == REGRESSION) == ("## Accuracy" not in card)
    assert ("calibration error" in card) == (kind == MULTI_LABEL)
    assert ("explained variance in %" in results_table(trainer)) == (kind == REGRESSION)
    trainer.save_model(str(tmp_path / "final"))
    model = FusionForClassification.from_pretrained(tmp_path / "final").eval()
    out = model(**trainer.data_collator([trainer.eval_dataset[i] for i in range(4)]))
    answer = out.predictions if kind == REGRESSION else out.probabilities
    assert answer.shape == (4, 1 if kind == REGRESSION else 3)
    assert (out.probabilities is None) == (kind == REGRESSION)
    assert set(trainer.predict(trainer.eval_dataset).metrics) >= {f"test_{name}"}


def test_two_views_are_single_label():
    assert two_views().problem_type == SINGLE_LABEL
