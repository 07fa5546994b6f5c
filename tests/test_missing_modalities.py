"""Rows that lack a modality: what they do to loss, gradient, embeddings, readout, probe and training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fusion_fixtures import NUM_CLASSES, TwoViews, tiny_resnet, tiny_vit, two_views

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments, Readout
from ecsfusion.model.fused_heads import FUSION_HEADS
from ecsfusion.training.evaluator import fuses_at_random
from ecsfusion.training.head_losses import LossOfAllHeads

pytestmark = pytest.mark.usefixtures("quick_probes")

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
MASKS = {
    "left": torch.tensor([True, True, False, True, True, False]),
    "right": torch.tensor([True, False, True, True, False, True]),
}


def batch(size: int = 6) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: {"pixel_values": torch.randn(size, 1, 4, 4, generator=generator)} for name in ("left", "right")
    }


def row(inputs: dict, i: int) -> dict[str, object]:
    """Row `i` alone, with what it has."""
    return {
        name: {key: value[i : i + 1] for key, value in inputs[name].items()}
        for name in inputs
        if bool(MASKS[name][i])
    }


def gradient(model: FusionForClassification) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", ["unimodal", "joint"])
@pytest.mark.parametrize("fusion", FUSION_HEADS)
def test_it_does_not_matter_which_rows_share_a_batch(fusion, stage):
    model = two_views(fusion=fusion).train()
    model.set_stage(stage)
    inputs = batch()
    together = model(**inputs, present=MASKS, labels=LABELS)
    together.loss.backward()
    found = gradient(model)
    model.zero_grad()
    alone = [model(**row(inputs, i), labels=LABELS[i : i + 1]) for i in range(6)]
    loss = torch.stack([out.loss for out in alone]).mean()
    loss.backward()
    torch.testing.assert_close(together.loss, loss)
    expected = gradient(model)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


def test_a_row_without_a_modality_leaves_no_trace_in_its_encoder():
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {"left": tiny_vit(), "right": tiny_resnet()}, num_labels=NUM_CLASSES
    ).train()
    inputs = {"left": torch.randn(6, 1, 4, 4), "right": torch.randn(6, 1, 8, 8)}
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def train(filling: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model.load_state_dict(state)
        model.zero_grad()
        right = inputs["right"].clone()
        right[~MASKS["right"]] = filling
        model(
            left=inputs["left"], right=right, present={"right": MASKS["right"]}, labels=LABELS
        ).loss.backward()
        return gradient(model), {name: value.clone() for name, value in model.named_buffers()}

    (gradients, buffers), (others, other_buffers) = train(0.0), train(1e6)
    assert all(torch.equal(value, others[name]) for name, value in gradients.items())
    # Batch norm
    assert all(torch.equal(value, other_buffers[name]) for name, value in buffers.items())
    # and its own loss counts it with zero: the gradient of the head is that of the four rows over six
    model.load_state_dict(state)
    model.zero_grad()
    model.set_stage("unimodal")
    seen = MASKS["right"]
    model(right=inputs["right"][seen], labels=LABELS[seen]).loss.backward()
    of_four = model.heads["right"].weight.grad.clone()
    model.load_state_dict(state)
    model.zero_grad()
    model(**inputs, present={"right": seen}, labels=LABELS).loss.backward()
    torch.testing.assert_close(model.heads["right"].weight.grad, of_four * 4 / 6)


def test_outputs_say_which_rows_they_are_about():
    model = two_views().eval()
    out = model(**batch(), present=MASKS)
    for name, mask in MASKS.items():
        assert torch.equal(out.present[name], mask)
        for values in (out.embeddings[name], out.unimodal_logits[name]):
            assert torch.equal(values.isnan().all(dim=1), ~mask)
            assert torch.equal(values.isnan().any(dim=1), ~mask)
    assert out.logits.isfinite().all()
    with torch.no_grad():
        for i in range(6):
            alone = model(**row(batch(), i))
            torch.testing.assert_close(alone.logits[0], out.logits[i])


def test_a_modality_that_no_row_has_is_not_run():
    model = two_views().train()
    calls = []
    model.encoders["right"].register_forward_hook(lambda *_: calls.append("right"))
    none = torch.zeros(6, dtype=torch.bool)
    out = model(left=batch()["left"], present={"right": none}, labels=LABELS)
    out.loss.backward()
    filled = model(**batch(), present={"right": none}, labels=LABELS)
    assert calls == []
    torch.testing.assert_close(out.loss, filled.loss)
    assert out.unimodal_logits["right"].isnan().all()
    model.set_stage("unimodal")
    model.set_active(["right"])
    model.zero_grad()
    lost = model(left=batch()["left"], right=None, present={"right": none}, labels=LABELS)
    # Nothing to learn from, and nothing that fails.
    lost.loss.backward()
    assert float(lost.loss.detach()) == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_masks_that_cannot_be_are_named():
    model = two_views()
    with pytest.raises(ValueError, match=r"present\['left'\] has shape \(5,\) .* each of the 6 rows"):
        model(**batch(), present={"left": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"dtype torch\.int64; give one bool"):
        model(**batch(), present={"left": torch.ones(6, dtype=torch.long)})
    with pytest.raises(ValueError, match=r"present\['right'\] says that rows have it, but its inputs"):
        model(left=batch()["left"], present={"right": MASKS["right"]})
    with pytest.raises(ValueError, match="row 2 has no modality at all"):
        model(**batch(), present={"left": MASKS["left"], "right": MASKS["left"]})
    with pytest.raises(ValueError, match="not modalities of this model"):
        model(**batch(), present={"top": MASKS["left"]})


def test_the_readout_answers_every_row_by_what_it_has():
    torch.manual_seed(0)
    model = two_views().eval()
    heads = {name: torch.randn(300, NUM_CLASSES) for name in ("fused", "left", "right")}
    readout = Readout.fit(heads, heads["left"].argmax(dim=1))
    model.config.readout = readout.to_dict()
    with torch.no_grad():
        together = model(**batch(), present=MASKS).probabilities
        alone = [model(**row(batch(), i)).probabilities for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("right", [True, False])
def test_where_no_head_of_a_modality_was_trained_the_fused_head_answers_every_row(kind, right):
    generator = torch.Generator().manual_seed(0)
    onehot = torch.eye(3)[torch.arange(90) % 3]
    logits = {name: torch.randn(90, 3, generator=generator) for name in ("left", "right")}
    logits["fused"] = 4 * onehot - 2
    labels = onehot.argmax(1) if kind.startswith("single") else onehot
    present = {"left": torch.ones(90, dtype=torch.bool), "right": (torch.arange(90) < 60) & right}
    logits["right"][~present["right"]] = torch.nan
    readout = Readout.fit(logits, labels, present, kind, excluded_from_readout=("left", "right"))
    readout = Readout.from_dict(readout.to_dict())
    assert readout.fused_head_alone
    for given in (present, {**present, "right": torch.zeros(90, dtype=torch.bool)}):
        assert torch.equal(readout.answers(logits, given).argmax(1), onehot.argmax(1))
    # Heads that were trained answer for themselves in rows that lack the other.
    trained = Readout.fit({**logits, "left": logits["fused"], "fused": logits["left"]}, labels, present, kind)
    assert not trained.fused_head_alone
    assert torch.equal(
        trained.answers({**logits, "left": logits["fused"]}, given).argmax(1), onehot.argmax(1)
    )


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [("concatenation", False), ("transformer", True), ("late-average", False), ("entropy-average", False)],
)
def test_a_fused_head_that_nothing_trains_is_not_read_out(fusion, expected):
    model = two_views(fusion=fusion)
    for stage in ("joint", "unimodal"):
        model.set_stage(stage)
        assert fuses_at_random(SimpleNamespace(model=model)) == (expected and stage == "unimodal")
    onehot = torch.eye(3)[torch.arange(30) % 3]
    logits = {"left": onehot, "right": 0 * onehot, "fused": -onehot}
    logits["fused"][0] = 9 * onehot[0]
    weights = Readout.fit(logits, onehot.argmax(1), excluded_from_readout=("fused",)).weights()
    assert weights["fused"] == 0 < weights["left"]


@pytest.mark.parametrize("fusion", FUSION_HEADS)
def test_an_untrained_head_contributes_what_the_fused_head_makes_of_its_modality(fusion):
    model = two_views(fusion=fusion).eval()
    generator = torch.Generator().manual_seed(0)
    logits = {name: torch.randn(30, 3, generator=generator) for name in ("left", "right", "fused")}
    readout = Readout.fit(logits, torch.arange(30) % 3, excluded_from_readout=("left", "right"))
    model.config.readout = readout.to_dict()
    inputs = batch()
    answers = {
        names: model(**{name: inputs[name] for name in names}).probabilities.double().log2()
        for names in (("left", "right"), ("left",), ("right",))
    }
    prior = torch.tensor(readout.prior, dtype=torch.float64).log2()
    for given in (LABELS, LABELS.int()):
        parts = model.contributions(labels=given, **inputs)
        both, left, right = (each[torch.arange(6), LABELS] for each in answers.values())
        expected = (left - prior[LABELS] + both - right) / 2
        torch.testing.assert_close(parts["left"], expected.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            parts["left"] + parts["right"], (both - prior[LABELS]).detach(), atol=1e-5, rtol=0
        )


class TwoViewsWithGaps(TwoViews):
    """Every third row lacks the left view, and every third the right one."""

    def __getitem__(self, index: int) -> dict[str, object]:
        found = super().__getitem__(index)
        if index % 3:
            found["left" if index % 3 == 1 else "right"] = None
        return found


def test_training_probe_and_readout_with_gaps(tmp_path, caplog):
    trainer = FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=5,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=7,
            learning_rate=1e-2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=TwoViewsWithGaps(240, seed=0, noise=(0.3, 0.3)),
        eval_dataset=TwoViewsWithGaps(60, seed=1, noise=(0.3, 0.3)),
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_complete_rows"] == 20
    assert trainer.pid.num_samples == 20
    assert min(metrics["eval_accuracy_left"], metrics["eval_accuracy_right"]) > 0.6
    assert metrics["eval_accuracy_calibrated"] > 0.6
    assert "20 of 60 rows have every modality" in caplog.text
    trainer.save_model(str(tmp_path / "final"))
    model = FusionForClassification.from_pretrained(tmp_path / "final").eval()
    assert model.config.readout is not None
    rows = [trainer.eval_dataset[i] for i in range(9)]
    probabilities = model(**trainer.data_collator(rows)).probabilities
    assert probabilities.isfinite().all()


def test_a_probe_without_complete_rows_says_so(tmp_path):
    class Never(TwoViews):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"left" if index % 2 else "right": None}

    trainer = FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(
            output_dir=str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True
        ),
        train_dataset=Never(30, seed=1),
        eval_dataset=Never(30, seed=0),
    )
    metrics = trainer.evaluate()
    assert (metrics["eval_complete_rows"], "eval_synergy" in metrics) == (0.0, False)
    # Rules decide by the decomposition of the probe set.
    trainer.args.eval_on_start = True
    with pytest.raises(
        ValueError, match=r"no row .* has every modality \(of 30, 15 have left, 15 have right\)"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loss_of_ones_own_on_rows_that_lack_what_trains():
    model = two_views().train()
    model.set_stage("unimodal")
    model.set_active(["right"])

    def mean(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    loss_of_all = LossOfAllHeads(mean, lambda: model)
    none = {"right": torch.zeros(6, dtype=torch.bool)}
    loss = loss_of_all(model(left=batch()["left"], present=none), LABELS)
    loss.backward()
    assert float(loss.detach()) == 0
    model.set_active(["left", "right"])
    for stage in ("unimodal", "joint"):
        # And otherwise it is the model's own.
        model.set_stage(stage)
        out = model(**batch(), present=MASKS, labels=LABELS)
        torch.testing.assert_close(loss_of_all(out, LABELS), out.loss)


@pytest.mark.parametrize("fusion", FUSION_HEADS)
def test_rows_whose_only_modality_is_paused_count_as_rows_and_not_in_the_loss(fusion):
    model = two_views(fusion=fusion, auxiliary_weight=0.6).train()
    model.set_stage("joint")
    model.set_active(["right"])
    # Rows 1 and 4 have the left view only.
    seen = MASKS["right"]
    out = model(**batch(), present=MASKS, labels=LABELS)
    four = model(right={"pixel_values": batch()["right"]["pixel_values"][seen]})
    cross_entropy = torch.nn.functional.cross_entropy
    fused, right = (
        cross_entropy(four.logits, LABELS[seen]),
        cross_entropy(four.unimodal_logits["right"], LABELS[seen]),
    )
    torch.testing.assert_close(out.loss, 4 / 6 * (fused + 0.6 * right))

    def mean(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs.logits, labels)

    def over_items(outputs, labels, num_items_in_batch=None):
        return cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    torch.testing.assert_close(LossOfAllHeads(mean, lambda: model)(out, LABELS), out.loss)
    # of twelve rows in two batches, these are six
    torch.testing.assert_close(LossOfAllHeads(over_items, lambda: model)(out, LABELS, 12), out.loss / 2)


@pytest.mark.parametrize("inputs_given", [True, False])
def test_a_batch_whose_only_modality_is_paused_teaches_nothing(inputs_given):
    model = two_views().train()
    model.set_stage("joint")
    model.set_active(["right"])
    inputs = batch() if inputs_given else {"left": batch()["left"]}
    none = {"right": torch.zeros(6, dtype=torch.bool)}

    def mean(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    for present in ({}, none) if not inputs_given else (none,):
        out = model(**inputs, present=present, labels=LABELS)
        for loss in (out.loss, LossOfAllHeads(mean, lambda: model)(out, LABELS)):
            model.zero_grad()
            loss.backward(retain_graph=True)
            assert float(loss.detach()) == 0
            assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("fusion", FUSION_HEADS)
def test_gaps_in_mixed_and_in_half_precision(fusion):
    model = two_views(fusion=fusion).train()
    left = {"left": batch()["left"]}
    none = {"right": torch.zeros(6, dtype=torch.bool)}
    with torch.autocast("cpu", torch.bfloat16):
        for out in (
            model(**batch(), present=MASKS, labels=LABELS),
            model(**left, present=none, labels=LABELS),
            model(**left, labels=LABELS),
        ):
            model.zero_grad()
            out.loss.backward()
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model = model.to(torch.bfloat16).eval()
    assert model(**batch(), present=MASKS).logits.isfinite().all()
    assert model(**left, present=none).logits.isfinite().all()
