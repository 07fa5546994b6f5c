"""MLA: the projection of the head's gradient on numbers worked out by hand, whose turn it is, and one run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fusion_fixtures import NUM_CLASSES, TwoViews, tiny_bert, tiny_vit, two_views
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.strategies import make_strategy

pytestmark = pytest.mark.usefixtures("quick_probes")


def test_the_projection_after_one_step_and_after_two():
    strategy = make_strategy("mla", ["left", "right"], alpha=25.0)
    strategy.protect(torch.tensor([3.0, 4.0]))
    # r r' = [[9, 12], [12, 16]], r'r = 25: P = I - r r' / 50 = [[0.82, -0.24], [-0.24, 0.68]],
    # |P|^2 = 0.6724 + 2 * 0.0576 + 0.4624 = 1.25.
    first = torch.tensor([[0.82, -0.24], [-0.24, 0.68]]) / 1.25**0.5
    torch.testing.assert_close(strategy.projection, first)
    strategy.protect(torch.tensor([0.0, 5.0]))
    # P r = (-1.2, 3.4) / sqrt(1.25), r'P r = 17 / sqrt(1.25) = 15.205262, alpha + that = 40.205262;
    # (P r)(P r)' = [[1.44, -4.08], [-4.08, 11.56]] / 1.25 = [[1.152, -3.264], [-3.264, 9.248]].
    second = first - torch.tensor([[1.152, -3.264], [-3.264, 9.248]]) / 40.205262
    torch.testing.assert_close(strategy.projection, second / second.square().sum().sqrt())


def head_of(weight_gradient):
    head = torch.nn.Linear(2, len(weight_gradient))
    head.weight.grad = torch.tensor(weight_gradient)
    return head


def test_a_gradient_along_what_was_seen_is_projected_away():
    strategy = make_strategy("mla", ["left", "right"], alpha=1e-6)
    model = SimpleNamespace(
        heads={"left": head_of([[1.0, 2.0]]), "right": head_of([[3.0, 4.0], [4.0, -3.0]])}
    )
    # Two rows, mean (3, 4)
    strategy._features = torch.tensor([6.0, 8.0, 2.0])
    strategy.adjust_gradients(model)
    # Nothing had been seen before.
    assert model.heads["left"].weight.grad.tolist() == [[1.0, 2.0]]
    strategy.state["steps"] = 1
    strategy.adjust_gradients(model)
    # (3, 4) is gone; (4, -3), at right angles, is as it was: what is left of P has norm 1.
    torch.testing.assert_close(
        model.heads["right"].weight.grad, torch.tensor([[0.0, 0.0], [4.0, -3.0]]), atol=1e-4, rtol=1e-4
    )


def test_a_step_is_given_one_modality_in_the_rows_that_have_it():
    strategy = make_strategy("mla", ["left", "right"])
    model = two_views(fusion="entropy-average").train()
    strategy._features = torch.zeros(17)
    rows = TwoViews(4, 0)
    batch = {"left": rows.views[0], "right": rows.views[1], "labels": rows.labels}
    assert set(strategy.prepare_inputs(model, batch)) == {"left", "labels"}
    strategy.state["steps"] = 1
    mask = torch.tensor([True, False, True, False])
    inputs = strategy.prepare_inputs(model, {**batch, "present": {"right": mask}})
    assert set(inputs) == {"right", "labels"}
    assert torch.equal(inputs["labels"], rows.labels[[0, 2]])
    outputs = model(**inputs)
    loss = strategy.loss(model, outputs, inputs["labels"])
    error = torch.nn.functional.cross_entropy(outputs.unimodal_logits["right"], inputs["labels"])
    # Rows without it count as zero.
    torch.testing.assert_close(loss, error / 2)
    torch.testing.assert_close(strategy._features[:-1] / 2, outputs.embeddings["right"].mean(dim=0))
    nobody = {**batch, "present": {"right": torch.zeros(4, dtype=torch.bool)}}
    outputs = model(**strategy.prepare_inputs(model, nobody))
    assert float(strategy.loss(model, outputs, rows.labels)) == 0.0


class WhoMoved(TrainerCallback):
    """For each step, which encoders and heads changed in it."""

    def __init__(self):
        self.before, self.steps = None, []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.before = {key: value.clone() for key, value in model.state_dict().items()}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        grads = {key.split(".")[1] for key, p in model.named_parameters() if p.grad is not None}
        self.steps.append([grads])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        moved = {
            key.split(".")[1]
            for key, value in model.state_dict().items()
            if key.startswith("encoders.") and not torch.equal(value, self.before[key])
        }
        self.steps[-1].append(moved)


def arguments(folder, **kwargs):
    return FusionTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=8,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        strategy="mla",
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        use_cpu=True,
        **kwargs,
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_trains_the_modalities_in_turn_and_keeps_one_head(tmp_path, accumulation):
    moved = WhoMoved()
    model = two_views(fusion="entropy-average")
    trainer = FusionTrainer(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=accumulation),
        train_dataset=TwoViews(128, 0),
        callbacks=[moved],
    )
    trainer.train()
    names = ["left", "right"]
    turns = [{names[step % 2]} for step in range(64 // accumulation)]
    assert [step[0] for step in moved.steps] == turns
    assert [step[1] for step in moved.steps] == turns
    assert torch.equal(model.heads["left"].weight, model.heads["right"].weight)
    assert torch.equal(model.heads["left"].bias, model.heads["right"].bias)
    again = make_strategy("mla", names)
    again.load_state_dict(trainer.strategy.state_dict())
    assert torch.equal(again.projection, trainer.strategy.projection)
    assert again.turn == trainer.strategy.turn == names[len(turns) % 2]
    metrics = trainer.evaluate(TwoViews(200, 2), metric_key_prefix="test")
    # Chance is a third.
    assert metrics["test_accuracy_left"] > 0.5


def test_what_it_needs_is_said(tmp_path):
    with pytest.raises(
        ValueError, match="'mla' needs the fused head 'entropy-average', and the model has 'concat"
    ):
        FusionTrainer(model=two_views(), args=arguments(tmp_path), train_dataset=TwoViews(32, 0))
    uneven = FusionForClassification.from_modality_pretrained(
        {"image": tiny_vit(), "text": tiny_bert()}, num_labels=NUM_CLASSES, fusion="entropy-average"
    )
    data = [{"image": torch.zeros(1, 4, 4), "text": torch.ones(3, dtype=torch.long), "labels": 0}] * 4
    with pytest.raises(ValueError, match="one head for all modalities, and the widths"):
        FusionTrainer(model=uneven, args=arguments(tmp_path), train_dataset=data).train()
