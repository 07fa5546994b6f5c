"""PMR: prototypes, their losses and who gets them, on numbers worked out by hand; and one run."""

from __future__ import annotations

import math

import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from torch import nn

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.modeling import FusionOutput
from ecsfusion.strategies import make_strategy
from ecsfusion.strategies.pmr import class_means

pytestmark = pytest.mark.usefixtures("quick_probes")

NAN = math.nan


def strategy_with_prototypes(**options):
    """Left: classes at (0, 0) and (3, 4), 5 apart. Right: classes at 0 and log 3."""
    strategy = make_strategy("pmr", ["left", "right"], **options)
    strategy.prototypes = {
        "left": torch.tensor([[0.0, 0.0], [3.0, 4.0]]),
        "right": torch.tensor([[0.0], [math.log(3)]]),
    }
    return strategy


def outputs_of(left, right, present_right, loss=1.0):
    return FusionOutput(
        loss=torch.tensor(loss),
        embeddings={"left": left, "right": right},
        present={"left": torch.ones(len(left), dtype=torch.bool), "right": torch.tensor(present_right)},
    )


# Left: p = 1 / (1 + exp(-5)) = 0.9933071, PCE = -log p = 0.0067153,
#       H = 0.9933071 * 0.0067153 + 0.0066929 * 5.0067153 = 0.0401799.
# Right: p = 1 / (1 + 1/3) = 0.75, PCE = log(4/3) = 0.2876821.
# r = 0.9933071 / 0.75 = 1.3244095: right is behind, b_2 = 0.3244095, b_1 = 0.
B_2, PCE_2, H_1 = 0.3244095, 0.2876821, 0.0401799


def test_the_modality_that_is_behind_gets_its_prototype_loss():
    strategy = strategy_with_prototypes(alpha=0.5, mu=0.0)
    outputs = outputs_of(torch.zeros(1, 2), torch.zeros(1, 1), [True])
    loss = strategy.loss(None, outputs, torch.tensor([0]))
    assert loss.item() == pytest.approx(1.0 + 0.5 * B_2 * PCE_2, abs=1e-6)


def test_early_the_entropy_of_the_other_is_subtracted():
    strategy = strategy_with_prototypes(mu=2.0, entropy_share=0.1)
    outputs = outputs_of(torch.zeros(1, 2), torch.zeros(1, 1), [True])
    early = float(strategy.loss(None, outputs, torch.tensor([0])))
    assert early == pytest.approx(1.0 + B_2 * PCE_2 - 2.0 * B_2 * H_1, abs=1e-6)
    strategy.state["progress"] = 0.1
    late = float(strategy.loss(None, outputs, torch.tensor([0])))
    assert late == pytest.approx(1.0 + B_2 * PCE_2, abs=1e-6)


def test_coefficients_are_clipped():
    strategy = make_strategy("pmr", ["left", "right"])
    assert strategy.coefficients(torch.tensor([0.5, 0.5])).tolist() == [0.0, 0.0]
    assert strategy.coefficients(torch.tensor([0.4, 0.5])).tolist() == pytest.approx([0.25, 0.0])
    # 3 - 1 is over 1.
    assert strategy.coefficients(torch.tensor([0.9, 0.3])).tolist() == [0.0, 1.0]
    assert strategy.coefficients(torch.tensor([0.0, 0.3])).tolist() == [1.0, 0.0]
    # Nobody has the first.
    assert strategy.coefficients(torch.tensor([NAN, 0.3])).tolist() == [0.0, 0.0]


def test_rows_that_lack_a_modality_count_as_zero_and_leave_no_nan():
    strategy = strategy_with_prototypes(mu=0.0)
    # On top of a prototype.
    left = torch.zeros(2, 2, requires_grad=True)
    right = torch.tensor([[0.0], [NAN]], requires_grad=True)
    loss = strategy.loss(None, outputs_of(left, right, [True, False]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx(1.0 + B_2 * PCE_2 / 2, abs=1e-6)
    loss.backward()
    assert left.grad.isfinite().all()
    assert right.grad.isfinite().all()


def test_a_class_that_was_never_seen_takes_no_part():
    strategy = strategy_with_prototypes(mu=0.0)
    for name, prototypes in strategy.prototypes.items():
        strategy.prototypes[name] = torch.cat([torch.full_like(prototypes[:1], NAN), prototypes])
    outputs = outputs_of(torch.zeros(2, 2), torch.zeros(2, 1), [True, True])
    loss = float(strategy.loss(None, outputs, torch.tensor([1, 0])))
    assert loss == pytest.approx(1.0 + B_2 * PCE_2 / 2, abs=1e-6)


def test_prototypes_are_class_means_with_a_moving_average():
    means = class_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 2]), 3)
    assert means[:, 0].tolist() == pytest.approx([2.0, NAN, 7.0], nan_ok=True)
    strategy = make_strategy("pmr", ["left", "right"], momentum=0.2)
    strategy.update("left", torch.tensor([[10.0], [5.0], [NAN]]))
    assert strategy.prototypes["left"][:, 0].tolist() == pytest.approx([10.0, 5.0, NAN], nan_ok=True)
    # 0.2 * 10 + 0.8 * 20 = 18.
    strategy.update("left", torch.tensor([[20.0], [NAN], [4.0]]))
    assert strategy.prototypes["left"][:, 0].tolist() == pytest.approx([18.0, 5.0, 4.0])


def test_before_there_are_prototypes_the_loss_is_the_models():
    assert make_strategy("pmr", ["left", "right"]).loss(None, FusionOutput(), torch.tensor([0])) is None


def trainer_of(folder, eval_rows=60, **kwargs):
    args = FusionTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        strategy="pmr",
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        **kwargs,
    )
    evaluated = TwoViews(eval_rows, 1) if eval_rows else None
    return FusionTrainer(model=two_views(), args=args, train_dataset=TwoViews(96, 0), eval_dataset=evaluated)


def test_a_run_ends_with_the_prototypes_of_its_weights(tmp_path):
    trainer = trainer_of(tmp_path, strategy_options={"momentum": 0.0})
    trainer.train()
    rows = trainer.evaluate_training_rows()
    # At most as many as are evaluated.
    assert len(rows.labels) == 60
    # Training rows are no probe.
    assert len(trainer.record.history) == 2
    for name, prototypes in trainer.strategy.prototypes.items():
        for k in range(3):
            mean = rows.embeddings[name][rows.labels == k].mean(dim=0)
            torch.testing.assert_close(prototypes[k], mean)
    again = make_strategy("pmr", ["left", "right"])
    again.load_state_dict(trainer.strategy.state_dict())
    assert again.state == {"progress": 1.0}
    assert all(torch.equal(again.prototypes[name], c) for name, c in trainer.strategy.prototypes.items())


def test_what_it_cannot_do_is_said(tmp_path):
    with pytest.raises(ValueError, match="'pmr' is for two modalities"):
        make_strategy("pmr", ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"momentum is 1\.5; it must be in"):
        make_strategy("pmr", ["a", "b"], momentum=1.5)
    with pytest.raises(ValueError, match="prototypes are computed after each; give an eval_dataset"):
        trainer_of(tmp_path, eval_rows=0, eval_strategy="no")
    with pytest.raises(ValueError, match="compute_loss_func is given, but the strategy 'pmr'"):
        FusionTrainer(
            model=two_views(),
            args=FusionTrainingArguments(output_dir=str(tmp_path), strategy="pmr", use_cpu=True),
            train_dataset=TwoViews(96, 0),
            eval_dataset=TwoViews(60, 1),
            compute_loss_func=nn.CrossEntropyLoss(),
        )
