"""The two-stage Trainer: who trains, what is restored, what is saved."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from fusion_fixtures import TwoViews, stage_one_only, tiny_vit, two_views
from safetensors.torch import load_file
from transformers import TrainerCallback

from ecsfusion import (
    Decision,
    FusionForClassification,
    FusionTrainer,
    FusionTrainingArguments,
    Rule,
    Strategy,
)
from ecsfusion.evaluation.logged_values import logged_names
from ecsfusion.reporting.results import results_table

pytestmark = pytest.mark.usefixtures("quick_probes")

EPOCHS, BATCH, ROWS = 4, 16, 64
STEPS_PER_EPOCH = ROWS // BATCH


class Scripted(Rule):
    """A rule that reads its decisions from a list: one entry per reading of stage 1."""

    def __init__(self, script: list[dict]) -> None:
        super().__init__(("left", "right"), max_unimodal_share=1.0)
        self.script = script
        self.state = {"readings": 0}
        self.resets = any("reset" in entry for entry in script)

    def decide_unimodal(self, reading) -> Decision:
        entry = self.script[self.state["readings"]]
        self.state["readings"] += 1
        return Decision(**{"training": ("left", "right"), "reason": "scripted", **entry})


class Snapshots(TrainerCallback):
    """Weights and optimizer state before every optimizer step (so before the first joint step as well)."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.states: list[dict[str, dict[str, torch.Tensor]]] = []
        self.rates: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.weights.append({name: p.detach().clone() for p, name in names.items()})
        inner = optimizer.optimizer
        self.states.append(
            {
                names[p]: {key: value.clone() for key, value in values.items() if torch.is_tensor(value)}
                for p, values in inner.state.items()
            }
        )
        self.rates.append(optimizer.param_groups[0]["lr"])


def arguments(folder: Path, **overrides: object) -> FusionTrainingArguments:
    options: dict[str, object] = {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 64,
        "learning_rate": 3e-3,
        "save_strategy": "no",
        "logging_strategy": "epoch",
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        "seed": 3,
        **overrides,
    }
    return FusionTrainingArguments(**options)


def trainer(
    folder: Path, *, strategy: Rule | Strategy | None = None, callbacks=None, **overrides: object
) -> FusionTrainer:
    return FusionTrainer(
        model=two_views(),
        args=arguments(folder, **overrides),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        strategy=strategy,
        callbacks=callbacks,
    )


PEAK_FIRST_THEN_RESTORE = [
    {"peak": True},
    {},
    {"ends_stage": True, "restore": STEPS_PER_EPOCH},
]


def test_the_first_joint_step_starts_at_the_restored_peak(tmp_path):
    seen = Snapshots()
    run = trainer(tmp_path, strategy=Scripted(PEAK_FIRST_THEN_RESTORE), callbacks=[seen])
    run.train()
    peak = load_file(tmp_path / "unimodal" / "model.safetensors")
    first_joint = seen.weights[3 * STEPS_PER_EPOCH]
    assert set(first_joint) == set(peak)
    assert all(torch.equal(first_joint[name], peak[name]) for name in peak)
    before = seen.weights[3 * STEPS_PER_EPOCH - 1]
    assert any(not torch.equal(before[name], peak[name]) for name in peak), "the peak was never left"


def test_the_joint_stage_starts_with_a_fresh_optimizer_and_schedule(tmp_path):
    seen = Snapshots()
    run = trainer(tmp_path, strategy=Scripted(PEAK_FIRST_THEN_RESTORE), callbacks=[seen])
    run.train()
    change = 3 * STEPS_PER_EPOCH
    assert seen.states[change - 1] != {}
    assert seen.states[change] == {}
    assert seen.rates[change] == pytest.approx(3e-3)
    assert seen.rates[change + 1] == pytest.approx(3e-3 * (1 - 1 / STEPS_PER_EPOCH))
    assert run.record.stage == "joint"
    assert run.record.stage_start == change


def test_a_stage_that_only_warms_up_is_told(tmp_path):
    seen = Snapshots()
    few = 2 * STEPS_PER_EPOCH
    run = trainer(tmp_path, strategy=Scripted(PEAK_FIRST_THEN_RESTORE), callbacks=[seen], warmup_steps=few)
    run.train()
    # The schedule of stage 1 is that of the whole run, and stage 2 is its last epoch.
    (told,) = [each for each in run.record.warnings if each["diagnostic"] == "long warm-up"]
    assert (told["step"], told["about"]) == (3 * STEPS_PER_EPOCH, "stage 2")
    rates = [seen.rates[step] for step in range(3 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(3e-3 * (STEPS_PER_EPOCH - 1) / few)


def test_pausing_leaves_weights_and_optimizer_state_bit_identical(tmp_path):
    seen = Snapshots()
    script = [{"training": ("right",)}, {"training": ("right",)}, {}]
    run = trainer(
        tmp_path, strategy=stage_one_only(Scripted([*script, {}])), callbacks=[seen], weight_decay=0.1
    )
    run.train()
    start, end = STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH
    left = [name for name in seen.weights[0] if name.startswith(("encoders.left", "heads.left"))]
    right = [name for name in seen.weights[0] if name.startswith(("encoders.right", "heads.right"))]
    for name in left:
        assert torch.equal(seen.weights[start][name], seen.weights[end][name])
        assert seen.states[start][name].keys() == seen.states[end][name].keys()
        for key, value in seen.states[start][name].items():
            assert torch.equal(value, seen.states[end][name][key])
    assert any(not torch.equal(seen.weights[start][name], seen.weights[end][name]) for name in right)
    assert any(not torch.equal(seen.weights[end][n], seen.weights[end + 1][n]) for n in left), "never resumed"


def test_a_reset_modality_goes_back_to_its_initial_weights(tmp_path):
    seen = Snapshots()
    initial = {name: p.detach().clone() for name, p in two_views().named_parameters()}
    script = [{"training": ("right",), "reset": ("left",)}, {"training": ("right",)}, {}, {}]
    run = trainer(tmp_path, strategy=stage_one_only(Scripted(script)), callbacks=[seen])
    run.train()
    after = seen.weights[STEPS_PER_EPOCH]
    for name, value in initial.items():
        if name.startswith(("encoders.left", "heads.left")):
            assert torch.equal(after[name], value)
            assert name not in seen.states[STEPS_PER_EPOCH]
        elif name.startswith("encoders.right") and value.ndim == 2:
            assert not torch.equal(after[name], value)


def test_output_folder_holds_both_stages_and_no_pickle(tmp_path, pictures):
    run = trainer(tmp_path, strategy=Scripted(PEAK_FIRST_THEN_RESTORE))
    run.train()
    run.save_model()
    final = FusionForClassification.from_pretrained(tmp_path).eval()
    unimodal = FusionForClassification.from_pretrained(tmp_path / "unimodal").eval()
    assert (final.config.stage, unimodal.config.stage) == ("joint", "unimodal")
    assert unimodal.config.step == STEPS_PER_EPOCH
    rows = TwoViews(10, seed=2)
    inputs = {
        name: {"pixel_values": torch.stack([rows[i][name]["pixel_values"] for i in range(10)])}
        for name in ("left", "right")
    }
    for model in (final, unimodal):
        with torch.no_grad():
            probabilities = model(**inputs).probabilities
        torch.testing.assert_close(probabilities.sum(1), torch.ones(10, dtype=probabilities.dtype))
    with torch.no_grad():
        out = unimodal(**inputs)
    torch.testing.assert_close(out.logits, sum(out.unimodal_logits.values()))
    assert (tmp_path / "trajectory.png").stat().st_size > 10_000
    pickles = [file for file in tmp_path.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []


def test_learning_beats_chance_and_every_evaluation_has_the_same_keys(tmp_path):
    run = trainer(tmp_path, num_train_epochs=8)
    run.train()
    evaluations = [entry for entry in run.state.log_history if "eval_synergy" in entry]
    # What the rule asks for once is measured once.
    assert sum("eval_dependence" in entry for entry in evaluations) == 1
    assert len({frozenset(entry) - {"eval_dependence"} for entry in evaluations}) == 1
    assert evaluations[-1]["eval_accuracy"] > 0.8
    assert evaluations[-1]["eval_accuracy_left"] > evaluations[0]["eval_accuracy_left"] - 0.05
    assert run.record.stage == "joint"
    assert [entry.step for entry in run.record.history] == [
        STEPS_PER_EPOCH * (epoch + 1) for epoch in range(8)
    ]


def test_a_probe_is_one_readable_line(tmp_path, capsys):
    run = trainer(tmp_path, strategy=Scripted([{"training": ("right",), "reason": "left leads"}] + [{}] * 9))
    run.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == EPOCHS
    assert "unimodal" in lines[0]
    assert "training left, right" in lines[0]
    assert "training right | paused left" in lines[1]
    for word in ("R ", "U left ", "right ", "S ", "bits", "accuracy left", "fused"):
        assert word in lines[0]


def test_joint_training_never_enters_stage_one(tmp_path):
    run = trainer(tmp_path, strategy="joint-auxiliary")
    run.train()
    assert {entry.stage for entry in run.record.history} == {"joint"}
    assert not (tmp_path / "unimodal").exists()


def test_unimodal_training_stops_at_its_peak(tmp_path):
    script = Scripted(PEAK_FIRST_THEN_RESTORE)
    run = trainer(tmp_path, strategy=stage_one_only(script), keep_best_heads=False)
    run.train()
    assert run.state.global_step == 3 * STEPS_PER_EPOCH
    peak = load_file(tmp_path / "unimodal" / "model.safetensors")
    assert all(torch.equal(p.detach(), peak[name]) for name, p in run.model.named_parameters())


def test_learning_rates_go_by_modality(tmp_path):
    run = trainer(tmp_path, modality_learning_rates={"right": 1e-2}, modality_weight_decays={"left": 0.5})
    run.create_optimizer()
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    assert set(groups) == {
        f"{name}{suffix}" for name in ("left", "right", "fusion") for suffix in ("", ".no_decay")
    }
    assert {name: group["lr"] for name, group in groups.items() if "no_decay" not in name} == {
        "left": 3e-3,
        "right": 1e-2,
        "fusion": 3e-3,
    }
    assert groups["left"]["weight_decay"] == 0.5
    assert groups["left.no_decay"]["weight_decay"] == 0.0
    members = [p for group in groups.values() for p in group["params"]]
    assert len(members) == len(list(run.model.parameters()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"head_learning_rate": 0.1},
            {"left": 3e-3, "left.head": 0.1, "right": 3e-3, "right.head": 0.1, "fusion": 0.1},
        ),
        (
            {
                "head_learning_rate": 0.1,
                "modality_learning_rates": {"right": 0.2, "left.head": 0.3, "fusion": 0.4},
            },
            {"left": 3e-3, "left.head": 0.3, "right": 0.2, "right.head": 0.1, "fusion": 0.4},
        ),
        (
            {"modality_learning_rates": {"right.head": 0.3}},
            {"left": 3e-3, "right": 3e-3, "right.head": 0.3, "fusion": 3e-3},
        ),
        # A head apart from its encoder for another reason keeps the rate of its modality.
        (
            {"modality_weight_decays": {"right.head": 0.3}, "modality_learning_rates": {"right": 0.2}},
            {"left": 3e-3, "right": 0.2, "right.head": 0.2, "fusion": 3e-3},
        ),
    ],
)
def test_heads_have_rates_apart_from_encoders(tmp_path, options, expected):
    run = trainer(tmp_path, **options)
    run.create_optimizer()
    groups = {group["name"]: group for group in run.optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items() if "no_decay" not in name} == expected
    assert groups["left.no_decay"]["lr"] == expected["left"]
    if "right.head" in expected:
        of_head = {id(p) for name, p in run.model.named_parameters() if name.startswith("heads.right.")}
        named = [
            p for name, group in groups.items() if name.startswith("right.head") for p in group["params"]
        ]
        assert {id(p) for p in named} == of_head
        assert groups["right.head.no_decay"]["lr"] == expected["right.head"]
    members = [p for group in groups.values() for p in group["params"]]
    assert len({id(p) for p in members}) == len(members) == len(list(run.model.parameters()))


@pytest.mark.parametrize("steps", [2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH])
def test_a_resumed_run_ends_with_the_same_weights_and_decisions(tmp_path, steps):
    options = {"save_strategy": "epoch", "num_train_epochs": 6, "lr_scheduler_type": "cosine"}
    whole = trainer(tmp_path, **options)
    whole.train()
    resumed = trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{steps}"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.record.history == resumed.record.history
    assert whole.record.stage_start == resumed.record.stage_start


def test_the_best_model_at_the_end_is_a_joint_one(tmp_path):
    run = trainer(
        tmp_path,
        strategy=Scripted(PEAK_FIRST_THEN_RESTORE),
        num_train_epochs=5,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy_calibrated",
    )
    run.train()
    assert run.state.best_global_step > 3 * STEPS_PER_EPOCH


def test_label_smoothing_reaches_every_head(tmp_path):
    run = trainer(tmp_path, label_smoothing_factor=0.1)
    run.train()
    assert run.model.label_smoothing == 0.1
    logs = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert all(math.isfinite(loss) for loss in logs)


def test_user_metrics_see_the_fused_logits(tmp_path):
    shapes = []

    def count(prediction):
        shapes.append(prediction.predictions.shape)
        return {"rows": float(len(prediction.label_ids))}

    run = FusionTrainer(
        model=two_views(),
        args=arguments(tmp_path, num_train_epochs=1),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        compute_metrics=count,
    )
    metrics = run.evaluate()
    assert metrics["eval_rows"] == 80.0
    predicted = run.predict(TwoViews(7, seed=4))
    assert predicted.predictions.shape == (7, 3)
    assert shapes == [(80, 3), (7, 3)]


def test_metrics_of_the_user_are_logged_and_steer_nothing(tmp_path):
    def own(prediction):
        return {"accuracy": 0.123, "synergy": -7.0}

    def run_of(folder, compute_metrics):
        run = FusionTrainer(
            model=two_views(),
            args=arguments(tmp_path / folder, num_train_epochs=2),
            train_dataset=TwoViews(ROWS, seed=0),
            eval_dataset=TwoViews(80, seed=1),
            compute_metrics=compute_metrics,
        )
        run.train()
        return run

    plain, owned = run_of("plain", None), run_of("own", own)
    assert owned.record.history == plain.record.history
    assert owned.measurements == plain.measurements
    logged = [entry for entry in owned.state.log_history if "eval_synergy" in entry]
    assert len(logged) == len(owned.record.history) + 1
    assert {(entry["eval_accuracy"], entry["eval_synergy"]) for entry in logged} == {(0.123, -7.0)}


def test_other_rows_do_not_become_the_validation(tmp_path):
    run = trainer(tmp_path, num_train_epochs=1)
    run.train()
    validation = run.measurements["validation"]
    run.evaluate(TwoViews(30, seed=5))
    assert run.measurements["validation"] is validation
    assert run.measurements["eval"].num_rows == 30


class EvaluatesOtherRows(TrainerCallback):
    """At the end of every epoch, as transformers advises to look at training rows."""

    def on_epoch_end(self, args, state, control, **kwargs):
        kept = copy.deepcopy(control)
        self.trainer.evaluate(TwoViews(40, seed=9))
        return kept


def test_what_is_evaluated_in_a_callback_decides_nothing(tmp_path):
    plain = trainer(tmp_path / "plain")
    plain.train()
    look = EvaluatesOtherRows()
    watched = trainer(tmp_path / "watched", callbacks=[look])
    look.trainer = watched
    watched.train()
    assert watched.record.history == plain.record.history
    assert watched.record.best_heads == plain.record.best_heads
    weights, others = watched.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in others)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strategy": "three"}, "must be one of two-stage, joint"),
        ({"max_unimodal_share": 1.5}, "between 0 and 1"),
        ({"eval_strategy": "no"}, "eval_strategy is 'no'"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"restore_callback_states_from_checkpoint": False}, "controller's state"),
        ({"hub_strategy": "every_save"}, "use 'end'"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics is True"),
        ({"probe_clusters": 0}, "probe_clusters is 0"),
        ({"label_names": ["target"]}, "label_names"),
        ({"metric_for_best_model": "acuracy"}, "metric_for_best_model is 'acuracy'"),
        ({"modality_learning_rates": {"audio": 0.1}}, r"names \['audio'\]"),
        ({"modality_learning_rates": {"left.heads": 0.1}}, r"names \['left.heads'\].*'left.head'"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3', which is text; give a number"),
        ({"per_device_train_batch_size": "8"}, "per_device_train_batch_size is '8', which is text"),
        ({"head_learning_rate": -1.0}, "head_learning_rate is -1.0; give a number"),
        ({"head_learning_rate": "1e-3"}, "head_learning_rate is '1e-3'; give a number"),
        ({"head_learning_rate": float("inf")}, "head_learning_rate is inf; give a number"),
        ({"modality_learning_rates": {"left": float("inf")}}, r"\['left'\] is inf; give a number"),
        (
            {"group_column_name": ["subject"]},
            r"group_column_name is \['subject'\]; give the name of one column",
        ),
        ({"group_column_name": " "}, "group_column_name is ' '; give the name of one column"),
        ({"strategy": "strong-first"}, "strategy is 'strong-first'"),
        ({"strategy_options": {"patients": 2}}, "unknown option 'patients'"),
        ({"strategy_options": {"ratio": "large"}}, "ratio must be a positive number, got 'large'"),
        ({"strategy": "fixed", "strategy_options": {"schedule": 3}}, "schedule must be a list of pairs"),
        (
            {"strategy": "fixed", "strategy_options": {"schedule": [["x", ["left"]]]}},
            "schedule must hold pairs",
        ),
    ],
)
def test_bad_arguments_are_named(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **overrides)


def test_a_checkpoint_behind_the_last_step_is_told(tmp_path, caplog):
    """The epochs of a resumed run count from the beginning, not from the checkpoint."""
    trainer(tmp_path, num_train_epochs=2, save_strategy="epoch", strategy="joint").train()
    for epochs, is_told in ((2, False), (1, True)):
        caplog.clear()
        run = trainer(tmp_path, num_train_epochs=epochs, save_strategy="epoch", strategy="joint")
        run.train(resume_from_checkpoint=True)
        assert run.state.global_step == 2 * STEPS_PER_EPOCH
        assert ("behind the last step of this run, 4: nothing is trained" in caplog.text) == is_told


def subclass_that_evaluates(choose) -> type[FusionTrainer]:
    class Subclass(FusionTrainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            return super().evaluate(choose(self, eval_dataset), ignore_keys, metric_key_prefix)

    return Subclass


def run_of(kind: type[FusionTrainer], folder: Path, evaluation) -> FusionTrainer:
    options = {"train_dataset": TwoViews(ROWS, seed=0), "eval_dataset": evaluation}
    run = kind(two_views(), arguments(folder, num_train_epochs=2), strategy=Scripted([{}, {}]), **options)
    run.train()
    return run


@pytest.mark.parametrize("several", [False, True])
def test_a_subclass_may_hand_on_the_evaluation_set_itself(tmp_path, several):
    """As Trainers do that look at it first: `eval_dataset = self.eval_dataset if eval_dataset is None else ...`."""
    evaluation = TwoViews(80, seed=1)
    sets = {"first": evaluation, "second": TwoViews(40, seed=2)} if several else evaluation
    kind = subclass_that_evaluates(lambda self, given: self.eval_dataset if given is None else given)
    run, plain = (run_of(each, tmp_path / each.__name__, sets) for each in (kind, FusionTrainer))
    assert [probe.step for probe in run.record.history] == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    assert [probe.reading.unique for probe in run.record.history] == [
        probe.reading.unique for probe in plain.record.history
    ]


def test_a_subclass_that_never_evaluates_the_probe_set_is_named(tmp_path):
    other = TwoViews(40, seed=2)
    with pytest.raises(
        ValueError, match=r"Subclass\.evaluate did not evaluate the probe set .* no rule gets a reading"
    ):
        run_of(subclass_that_evaluates(lambda self, given: other), tmp_path, TwoViews(80, seed=1))


def test_a_missing_evaluation_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset is missing"):
        FusionTrainer(model=two_views(), args=arguments(tmp_path), train_dataset=TwoViews(ROWS, seed=0))


def test_a_model_of_another_kind_is_named(tmp_path):
    with pytest.raises(TypeError, match="model is a Linear"):
        FusionTrainer(model=torch.nn.Linear(2, 2), args=arguments(tmp_path))


def test_stage_one_ends_at_its_share_although_no_evaluation_is_due(tmp_path):
    run = trainer(tmp_path, num_train_epochs=1)
    run.train()
    assert [entry.step for entry in run.record.history] == [STEPS_PER_EPOCH // 2, STEPS_PER_EPOCH]
    assert (run.record.stage, run.record.stage_start) == ("joint", STEPS_PER_EPOCH // 2)
    assert (tmp_path / "unimodal" / "model.safetensors").exists()


def test_the_readout_is_fitted_on_the_first_evaluation_set(tmp_path):
    def fitted(evaluation_set: object) -> dict:
        run = FusionTrainer(
            model=two_views(),
            args=arguments(tmp_path, num_train_epochs=1),
            train_dataset=TwoViews(ROWS, seed=0),
            eval_dataset=evaluation_set,
        )
        run.train()
        return run.model.config.readout

    probed = TwoViews(80, seed=1)
    assert fitted({"probed": probed, "other": TwoViews(70, seed=2)}) == fitted(probed)


def test_a_model_made_for_the_run_is_set_up_like_a_given_one(tmp_path):
    run = FusionTrainer(
        model_init=lambda: two_views(),
        args=arguments(tmp_path, num_train_epochs=1, label_smoothing_factor=0.1, auxiliary_weight=0.2),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
    )
    run.train()
    assert (run.model.label_smoothing, run.model.config.auxiliary_weight) == (0.1, 0.2)


class ThreeViews(TwoViews):
    """A third view, "noise", says nothing."""

    def __getitem__(self, index: int) -> dict[str, object]:
        noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(index))
        return {**super().__getitem__(index), "noise": {"pixel_values": noise}}


@pytest.mark.filterwarnings("ignore:.*samples are few")
def test_three_modalities_are_probed_each_against_the_rest(tmp_path, pictures):
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {name: tiny_vit() for name in ("left", "right", "noise")}, num_labels=3
    )
    run = FusionTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=ThreeViews(ROWS, seed=0),
        eval_dataset=ThreeViews(300, seed=1),
    )
    run.train()
    run.create_model_card(dataset="three views")
    last = run.record.history[-1].reading
    assert set(last.unique) == {"left", "right", "noise"}
    assert last.unique["left"] > last.floor["left"]
    assert abs(last.unique["noise"]) < 0.1
    assert last.redundancy > 0.3
    card = (tmp_path / "README.md").read_text()
    assert "uniqueness of noise" in card
    assert "known to a modality and to the others as well" in card
    assert (tmp_path / "trajectory.png").exists()
    assert run.pid.names == ("left", "right", "noise")
    assert run.pid.unique_interval.shape == (3, 2)


def test_the_names_of_the_metrics_are_those_that_are_reported(tmp_path):
    reported = {key.removeprefix("eval_") for key in trainer(tmp_path).evaluate()}
    timing = {
        "epoch",
        "loss",
        "runtime",
        "samples_per_second",
        "steps_per_second",
        "model_preparation_time",
    }
    assert reported - timing == set(logged_names(("left", "right"), "accuracy"))


class OneView(TwoViews):
    def __init__(self, num_rows: int, seed: int, leaves_out: bool = False) -> None:
        super().__init__(num_rows, seed)
        self.leaves_out = leaves_out

    def __getitem__(self, index: int) -> dict[str, object]:
        row = super().__getitem__(index) | {"right": None}
        return {key: value for key, value in row.items() if value is not None or not self.leaves_out}


@pytest.mark.parametrize("leaves_out", [False, True])
def test_a_set_without_a_modality_gets_the_scores_of_what_is_there(tmp_path, leaves_out):
    whole = trainer(tmp_path)
    rows = OneView(20, seed=1, leaves_out=leaves_out)
    metrics = whole.evaluate(rows, metric_key_prefix="left_only")
    assert metrics["left_only_complete_rows"] == 0.0
    assert "left_only_synergy" not in metrics
    assert "left_only_accuracy_right" not in metrics
    batch = torch.stack([rows[i]["left"]["pixel_values"] for i in range(20)])
    with torch.no_grad():
        logits = whole.model.eval()(left={"pixel_values": batch}).logits
    assert metrics["left_only_accuracy"] == float((logits.argmax(-1) == rows.labels).double().mean())
    whole.evaluate()
    assert "right alone" in results_table(whole)
