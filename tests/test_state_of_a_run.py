"""What belongs to a run ends with it, and what is measured, found or given beside it changes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from fusion_fixtures import NUM_CLASSES, Sensor, StopAfterSaving, TwoViews, tiny_bert, tiny_vit, two_views
from safetensors.torch import save_file
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.diagnostics.probed_training_rows import probed_training_rows
from ecsfusion.reporting.results import run_summary
from ecsfusion.training.best_metric import check_best_metric, check_reported
from ecsfusion.training.checkpoints import inexact_because
from ecsfusion.training.divergence import DivergenceError, raise_divergence
from ecsfusion.training.evaluator import check_rows_to_decide_on, checked_values
from ecsfusion.training.setup import check_checkpointing, check_model, check_not_all_dropped
from ecsfusion.training.stages import check_trainable, trainable_modalities
from ecsfusion.training.untouched import kept_random_state


def trainer(folder: Path, *, model=None, kind: type = FusionTrainer, eval_dataset=None, **options: object):
    given = {
        name: options.pop(name)
        for name in ("callbacks", "optimizers", "compute_metrics", "preprocess_logits_for_metrics")
        if name in options
    }
    arguments: dict[str, object] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        **options,
    }
    return kind(
        model=two_views() if model is None else model,
        args=FusionTrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=TwoViews(32, seed=0),
        eval_dataset=TwoViews(40, seed=1) if eval_dataset is None else eval_dataset,
        **given,
    )


def weights(run: FusionTrainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in run.model.state_dict().items() if "best_heads" not in key}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Rates(TrainerCallback):
    def __init__(self) -> None:
        self.rates: list[list[float]] = [[]]

    def on_train_end(self, args, state, control, **kwargs):
        self.rates.append([])

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.rates[-1].append(optimizer.param_groups[0]["lr"])


def falling(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 5)


@pytest.mark.parametrize("own_optimizer", [False, True, "and schedule"])
def test_a_second_run_has_the_rates_of_the_first(tmp_path, own_optimizer):
    model, rates = two_views(), Rates()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = falling(optimizer) if own_optimizer == "and schedule" else None
    given = {"optimizers": (optimizer, schedule)} if own_optimizer else {}
    run = trainer(tmp_path, model=model, callbacks=[rates], unimodal_epochs=1, **given)
    run.train()
    used = run.optimizer
    run.train()
    first, second, _ = rates.rates
    assert first == second
    # A step of stage 2, whose schedule starts again from the fresh rate.
    assert second[3] > 0
    assert own_optimizer or used is not run.optimizer
    assert max(int(state["step"]) for state in run.optimizer.state.values()) == 2


class LooksBefore(TrainerCallback):
    """Evaluates other rows when the Trainer is about to evaluate its own."""

    trainer: FusionTrainer

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.evaluate(TwoViews(9, seed=5), metric_key_prefix="test")


@pytest.mark.parametrize("number", [1, 2])
def test_an_evaluation_by_a_callback_takes_none_from_the_run(tmp_path, number):
    looks, rows = LooksBefore(), TwoViews(40, seed=1)
    run = trainer(
        tmp_path,
        strategy="joint",
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        logging_steps=1,
        callbacks=[looks],
        eval_dataset=rows if number == 1 else {"one": rows, "other": rows},
    )
    looks.trainer = run
    run.train()
    assert [probe.step for probe in run.record.history] == [1, 2]
    assert [logs["step"] for logs in run.state.log_history if "loss" in logs] == [1, 2]


class StopAfterThree(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_a_run_that_is_stopped_in_stage_one_fuses_its_last_heads(tmp_path):
    run = trainer(
        tmp_path,
        strategy="warm-up",
        num_train_epochs=8,
        eval_strategy="steps",
        eval_steps=2,
        keep_best_heads=False,
        callbacks=[StopAfterThree()],
    )
    run.train()
    rows = TwoViews(5, seed=5)
    with torch.no_grad():
        outputs = run.model.eval()(**run.data_collator([rows[index] for index in range(5)]))
    assert (run.record.stage, run.record.history[-1].step) == ("unimodal", 2)
    torch.testing.assert_close(outputs.logits, sum(outputs.unimodal_logits.values()))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("two-stage", "joint", "was saved in stage 1, and the strategy 'joint' has none"),
        ("joint", "two-stage", "is of a run without a stage 1, which the strategy 'two-stage' begins with"),
    ],
)
def test_a_checkpoint_of_a_stage_that_the_strategy_has_not_is_refused(tmp_path, first, second, message):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
    killed = trainer(tmp_path, strategy=first, callbacks=[StopAfterSaving(1)], **options)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, strategy=second, **options).train(resume_from_checkpoint=True)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        rows = TwoViews(32, seed=0)
        return (rows[index] for index in range(32))


def test_two_evaluations_of_the_same_weights_are_one_reading(tmp_path):
    run = trainer(tmp_path, max_steps=4)
    # Stage 1 ends at step 2 at the latest, where the stream ends too.
    run.train_dataset = Stream()
    run.train()
    assert [probe.step for probe in run.record.history] == [2, 4]


class LogitsAlone(FusionTrainer):
    def prediction_step(self, *args, **kwargs):
        loss, outputs, labels = super().prediction_step(*args, **kwargs)
        return loss, self.shortened(outputs), labels


@pytest.mark.parametrize(
    "shortened", [lambda outputs: outputs[0], lambda outputs: (outputs[0].argmax(-1), *outputs[1:])]
)
def test_an_evaluation_that_is_no_reading_is_said(tmp_path, shortened):
    run = trainer(tmp_path, kind=LogitsAlone)
    run.shortened = shortened
    with pytest.raises(
        ValueError, match="If prediction_step is replaced, let it return all outputs of super"
    ):
        run.train()


class FullAtStageTwo(TrainerCallback):
    def __init__(self) -> None:
        self.was_full = False

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if model.stage == "joint" and not self.was_full:
            self.was_full = True
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_retry_with_a_smaller_batch_is_as_a_run_with_that_batch(tmp_path):
    options = {"unimodal_epochs": 1, "keep_best_heads": False}
    retried = trainer(tmp_path / "1", auto_find_batch_size=True, callbacks=[FullAtStageTwo()], **options)
    retried.train()
    # accelerate tries nine tenths of 16.
    plain = trainer(tmp_path / "2", **options | {"per_device_train_batch_size": 14})
    plain.train()
    assert (retried.record.stage, retried.record.stage_start) == ("joint", plain.record.stage_start)
    assert same(weights(retried), weights(plain))


class FullAfterBetterHeads(TrainerCallback):
    """Memory is used up at step 3, when better heads than those of the checkpoint have been kept."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_begin(self, args, state, control, **kwargs):
        file = Path(args.output_dir, "best_heads-left", "step.json")
        self.steps.append(json.loads(file.read_text())["step"])
        if state.global_step == 3 and 99 not in self.steps:
            self.steps.append(99)
            file.unlink()
            file.write_text('{"step": 99}')
            weights = file.parent / "model.safetensors"
            save_file({"other": torch.ones(1)}, f"{weights}.new")
            Path(f"{weights}.new").replace(weights)
            raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_retry_of_a_resumed_run_has_the_heads_of_the_checkpoint(tmp_path):
    options = {"max_steps": 4, "strategy": "joint-auxiliary", "save_strategy": "steps", "save_steps": 2}
    killed = trainer(tmp_path, callbacks=[StopAfterSaving(2)], **options)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    full = FullAfterBetterHeads()
    trainer(tmp_path, auto_find_batch_size=True, callbacks=[full], **options).train(True)
    assert full.steps[:4] == [2, 2, 99, 2]


class Looks(TrainerCallback):
    """Evaluates other rows under the name of the probe set, after the probe of the last step too."""

    trainer: FusionTrainer

    def on_evaluate(self, args, state, control, **kwargs):
        if self.trainer is not None:
            own, self.trainer = self.trainer, None
            own.evaluate(TwoViews(9, seed=5))
            self.trainer = own


def test_measuring_changes_nothing(tmp_path):
    quiet = trainer(tmp_path / "1", strategy="published", keep_best_heads=False)
    quiet.train()
    looks = Looks()
    looked_at = trainer(
        tmp_path / "2",
        strategy="published",
        keep_best_heads=False,
        eval_on_start=True,
        bf16_full_eval=True,
        callbacks=[looks],
    )
    looks.trainer = looked_at
    before = weights(looked_at)
    looked_at.evaluate()
    assert same(before, weights(looked_at))
    looked_at.train()
    steps = [[probe.step for probe in run.record.history] for run in (quiet, looked_at)]
    assert steps[0] == steps[1]
    assert same(weights(quiet), weights(looked_at))
    assert looked_at.model.config.readout == quiet.model.config.readout
    looked_at.evaluate()
    looked_at.predict(TwoViews(9, seed=5))
    assert {value.dtype for value in weights(looked_at).values() if value.is_floating_point()} == {
        torch.float32
    }
    assert same(weights(quiet), weights(looked_at))


def test_random_numbers_go_on():
    torch.manual_seed(0)
    np.random.seed(0)
    with kept_random_state(torch.device("cpu")):
        inside = torch.rand(1), np.random.rand()
    assert (torch.rand(1), np.random.rand()) == inside


def probabilities(logits, labels):
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def test_preprocessed_logits_are_for_the_user(tmp_path):
    def metrics(prediction):
        assert prediction.predictions.ndim == 1
        return {"own": float((prediction.predictions == prediction.label_ids).mean())}

    run = trainer(tmp_path, compute_metrics=metrics, preprocess_logits_for_metrics=probabilities)
    values = run.evaluate()
    assert values["eval_own"] == values["eval_accuracy"]
    assert "eval_synergy" in values
    predicted = run.predict(TwoViews(9, seed=5))
    assert predicted.predictions.shape == (9,)
    assert predicted.metrics["test_own"] == predicted.metrics["test_accuracy"]
    with pytest.raises(ValueError, match="ignore_keys_for_eval holds 'embeddings'"):
        run.train(ignore_keys_for_eval=["embeddings"])


@pytest.mark.parametrize(
    ("metric", "sets", "user_metrics", "message"),
    [
        ("loss", [], False, None),
        ("f1", [], True, None),
        ("acuracy", [], False, "no evaluation reports"),
        ("loss", ["validation", "shifted"], False, "'validation_loss'"),
        ("f1", ["validation", "shifted"], True, "'validation_f1'"),
        ("eval_validation_synergy", ["validation", "shifted"], False, None),
        ("eval_shifted_accuracy", ["validation", "shifted"], False, None),
        ("shifted_synergy", ["validation", "shifted"], False, "only the first"),
        ("validation_acuracy", ["validation", "shifted"], False, "no evaluation reports"),
        ("validation_f1", ["validation", "shifted"], True, None),
    ],
)
def test_the_metric_of_the_best_model_is_one_that_is_reported(metric, sets, user_metrics, message):
    def check():
        check_best_metric(metric, ("left", "right"), "accuracy", sets, user_metrics)

    if message is None:
        check()
    else:
        with pytest.raises(ValueError, match=message):
            check()


def test_several_sets_ask_for_the_name_of_one_before_training(tmp_path):
    sets = {"validation": TwoViews(40, seed=1), "shifted": TwoViews(40, seed=2)}
    options = {"save_strategy": "epoch", "load_best_model_at_end": True}
    with pytest.raises(ValueError, match="say of which set"):
        trainer(tmp_path, eval_dataset=sets, **options)
    with pytest.raises(ValueError, match="does not report"):
        check_reported("f2", {"eval_f1": 1.0})
    check_reported("f1", {"eval_f1": 1.0})


def checkpoint(folder: Path, epoch: float = 0.5, files: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": epoch}), encoding="utf-8")
    return folder


STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
FSDP_STATE = ("optimizer.bin", "optimizer_0")


@pytest.mark.parametrize(
    ("files", "epoch", "changes", "expected"),
    [
        (STATE, 3.0, {}, []),
        (STATE, 0.5, {"is_stream": True}, []),
        (STATE, 3.0, {"is_stream": True}, ["began again 3 times"]),
        (STATE, 3.0, {"skips_rows": False}, ["ignore_data_skip"]),
        (STATE, 3.0, {"needs_scaler": True}, ["scale of the loss"]),
        (STATE, 3.0, {"process": 1}, ["random numbers"]),
        ((), 3.0, {}, ["random numbers", "optimizer", "schedule"]),
        (("rng_state.pth",), 3.0, {"optimizer_names": ()}, []),
        (("rng_state.pth", "optimizer.bin"), 3.0, {"optimizer_names": FSDP_STATE}, ["schedule"]),
        (("rng_state.pth", "scheduler.pt"), 3.0, {"optimizer_names": FSDP_STATE}, ["optimizer"]),
    ],
)
def test_a_resume_that_is_not_exact_is_said(tmp_path, files, epoch, changes, expected):
    options = {
        "process": None,
        "optimizer_names": ("optimizer.pt",),
        "needs_scaler": False,
        "is_stream": False,
        "skips_rows": True,
    }
    clauses = inexact_because(checkpoint(tmp_path / "checkpoint-4", epoch, files), **options | changes)
    assert len(clauses) == len(expected)
    assert all(part in clause for part, clause in zip(expected, clauses, strict=True))


def test_the_best_checkpoint_is_looked_for_beside_the_one_that_is_resumed(tmp_path, caplog):
    run = trainer(tmp_path, save_strategy="epoch", load_best_model_at_end=True)
    (tmp_path / "there" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    here = checkpoint(tmp_path / "here" / "checkpoint-4")
    run._latest_of_run = tmp_path / "here" / "checkpoint-8"
    run.state.best_global_step = 4
    run.state.best_model_checkpoint = str(tmp_path / "there" / "checkpoint-4")
    run._find_best_checkpoint()
    assert run.state.best_model_checkpoint == str(here)
    run.state.best_global_step = 2
    logging.getLogger("transformers").propagate = True
    run._find_best_checkpoint()
    assert run.state.best_model_checkpoint is None
    # Nothing was loaded, and so nothing says so.
    metrics = {"train_runtime": 1.0, "probe_seconds": 0.0, "probe_share": 0.0, "measuring_share": 0.0}
    assert run.loaded_best_step is None
    assert "best weights" not in run_summary(run, metrics)


def test_only_checkpoints_of_the_run_are_named(tmp_path):
    run = trainer(tmp_path)
    checkpoint(tmp_path / "checkpoint-100")
    with pytest.raises(DivergenceError, match="this run has saved no checkpoint"):
        raise_divergence(run, "the loss is nan", "look")
    run._latest_of_run = checkpoint(tmp_path / "checkpoint-3")
    with pytest.raises(DivergenceError, match=r"checkpoint-3, is unchanged"):
        raise_divergence(run, "the loss is nan", "look")


def test_a_checkpoint_at_the_end_of_an_epoch_holds_its_probe(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2, num_train_epochs=1, strategy="joint")
    run.train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    record = state["stateful_callbacks"]["ControllerCallback"]["attributes"]["saved_record"]
    assert [probe["reading"]["step"] for probe in record["history"]] == [2]
    # The passes of the model count as time of the probes too, not only what is computed from them.
    measured = sum(probe.reading.measurement.seconds for probe in run.record.history)
    assert run.evaluator.seconds > measured


class WeighsClasses(FusionTrainer):
    """The recipe of the documentation of transformers."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs.get("logits"), labels)
        return (loss, outputs) if return_outputs else loss


class Doubles(FusionTrainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


def test_a_loss_that_would_drop_those_of_the_modalities_is_answered(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func"):
        trainer(tmp_path, kind=WeighsClasses)
    assert trainer(tmp_path, kind=Doubles).plan.strategy.name == "two-stage"


def test_adapters_belong_into_the_encoders(tmp_path):
    peft = pytest.importorskip("peft")
    model = two_views()
    target = next(
        name.rpartition(".")[2] for name, _ in model.named_modules() if name.endswith(("query", "q_proj"))
    )
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=[target]))
    with pytest.raises(TypeError, match="give adapters to the encoders"):
        check_model(wrapped)
    whole = two_views()
    # As `add_adapter` marks it.
    whole._hf_peft_config_loaded = True
    with pytest.raises(TypeError, match="give adapters to the encoders"):
        check_model(whole)


def freeze(model: FusionForClassification, *names: str) -> FusionForClassification:
    for name in names:
        for parameter in model.modality_parameters(name).values():
            parameter.requires_grad_(False)
    return model


def test_a_frozen_modality_never_trains_alone(tmp_path):
    options = {"schedule": [(0.5, ["right"])], "max_unimodal_share": 0.5}
    run = trainer(tmp_path, model=freeze(two_views(), "right"), strategy="fixed", strategy_options=options)
    before = weights(run)
    run.train()
    first = run.record.history[0]
    assert (first.stage, set(first.training)) == ("unimodal", {"left", "right"})
    after = weights(run)
    moved = {key.split(".")[1] for key in after if not torch.equal(before[key], after[key])}
    assert "left" in moved
    assert "right" not in moved
    with pytest.raises(ValueError, match="stage 1 has nothing to train"):
        trainer(tmp_path, model=freeze(two_views(), "left", "right"))


def test_what_would_be_dropped_whole_is_named():
    rows = TwoViews(5, seed=0)
    check_not_all_dropped("eval_dataset", rows, 5)
    with pytest.raises(ValueError, match="eval_dataset has 5 rows and a batch 8"):
        check_not_all_dropped("eval_dataset", rows, 8)


def test_loaders_that_are_kept_are_those_of_their_own_rows(tmp_path):
    run = trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    other = TwoViews(9, seed=5)
    assert len(run.get_eval_dataloader(other).dataset) == 9
    kept = run.get_eval_dataloader()
    assert len(kept.dataset) == 40
    assert len(run.get_eval_dataloader(other).dataset) == 9
    assert run.get_eval_dataloader() is kept


def test_noise_needs_one_text_encoder(tmp_path):
    with pytest.raises(ValueError, match="neftune_noise_alpha"):
        trainer(tmp_path, neftune_noise_alpha=5.0)
    model = FusionForClassification.from_modality_pretrained(
        {"text": tiny_bert(), "image": tiny_vit()}, num_labels=NUM_CLASSES
    )
    assert model.get_input_embeddings() is model.encoders["text"].get_input_embeddings()


def test_reentrant_checkpointing_behind_frozen_layers_is_refused():
    def with_kind(is_reentrant: bool) -> FusionForClassification:
        model = two_views()
        next(model.encoders["left"].parameters()).requires_grad_(False)
        model._set_gradient_checkpointing(True, SimpleNamespace(keywords={"use_reentrant": is_reentrant}))
        return model

    plain = SimpleNamespace(activation_checkpointing=False)
    check_checkpointing(with_kind(False), plain)
    with pytest.raises(ValueError, match="encoder of 'left'"):
        check_checkpointing(with_kind(True), plain)


def test_checkpointing_that_no_encoder_can_do_is_refused_with_its_name():
    own = FusionForClassification.from_modality_pretrained(
        {"left": Sensor(), "right": Sensor()}, num_labels=3
    )
    check_checkpointing(two_views(), SimpleNamespace(activation_checkpointing=True))
    with pytest.raises(
        ValueError, match=r"checkpointing\) is True, but no layer of the encoders 'left' \(Sensor\)"
    ):
        check_checkpointing(own, SimpleNamespace(activation_checkpointing=True))


def test_an_optimizer_of_other_weights_is_refused_and_one_of_some_weights_is_said():
    model = two_views()
    assert check_trainable(model, "unimodal", torch.optim.SGD(model.parameters(), lr=0.1)) is None
    with pytest.raises(ValueError, match="the optimizer in `optimizers` holds no weight of the model"):
        check_trainable(model, "joint", torch.optim.SGD(two_views().parameters(), lr=0.1))
    fused = torch.optim.SGD(model.fusion.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="holds no weight of a modality that could train"):
        check_trainable(model, "unimodal", fused)
    assert "first 'encoders.left." in (check_trainable(model, "joint", fused) or "")
    left = torch.optim.SGD(model.modality_parameters("left").values(), lr=0.1)
    assert trainable_modalities(model, left) == {"left"}


def test_a_probe_of_the_training_rows_is_said():
    rows = TwoViews(4, seed=0)
    (found,) = probed_training_rows(
        rows, {"eval_dataset['train']": rows, "eval_dataset['test']": TwoViews(4, 1)}
    )
    assert found.sentence.startswith("eval_dataset['train'], which is measured, is train_dataset itself")
    assert not [*probed_training_rows(rows, {"eval_dataset": TwoViews(4, 1), "watched": rows})]


def test_targets_far_from_where_heads_start_are_told(tmp_path):
    """The heads' outputs begin near 0: of years and prices R² is hugely negative to the end."""
    rows = [TwoViews(48, 0)[i] for i in range(48)]
    for targets, told in (
        (np.linspace(-2, 2, 48), ""),
        (
            np.linspace(1990, 2020, 48),
            "the targets of train_dataset have the mean 2e+03 and the deviation 8.84",
        ),
        (np.linspace(-900, 900, 48), "the deviation 531"),
        (np.linspace([-2, 9.5], [2, 10.5], 48), "targets 1 of train_dataset have the mean 10 and"),
    ):
        labelled = [{**row, "labels": target.tolist()} for row, target in zip(rows, targets, strict=True)]
        run = FusionTrainer(
            FusionForClassification.from_modality_pretrained(
                {"left": tiny_vit(), "right": tiny_vit()},
                num_labels=targets[0].size,
                problem_type="regression",
            ),
            FusionTrainingArguments(output_dir=str(tmp_path), strategy="joint", max_steps=1, use_cpu=True),
            train_dataset=labelled,
            eval_dataset=labelled[:40],
        )
        run.train()
        found = [w["sentence"] for w in run.record.warnings if w["diagnostic"] == "scale of targets"]
        assert len(found) == bool(told)
        assert all(told in sentence and "subtract the mean" in sentence for sentence in found)


def test_a_class_without_training_rows_is_told(tmp_path):
    """Rows that are sorted by class were split by their place; the labels are a column of a list of rows."""
    rows = sorted((TwoViews(90, 0)[i] for i in range(90)), key=lambda row: row["labels"])
    labels = [row["labels"] for row in rows]
    few = labels.index(2)
    for train, told in ((rows[:few], 1), (rows[: few + 1], 0)):
        run = FusionTrainer(
            two_views(),
            FusionTrainingArguments(output_dir=str(tmp_path), strategy="joint", max_steps=1, use_cpu=True),
            train_dataset=train,
            eval_dataset=rows,
        )
        run.train()
        found = [w["sentence"] for w in run.record.warnings if w["diagnostic"] == "no training rows"]
        assert len(found) == told
        assert all(
            f"no row of class 2 (LABEL_2), of which eval_dataset has {90 - few}," in each for each in found
        )


def test_too_few_rows_and_absent_classes_of_the_probe_set_are_said_before_the_first_step(tmp_path):
    rows = [{"left": 0, "right": 0, "label": i % 2} for i in range(24)]
    for given, message in (
        (rows, r"no row of class 2 \(LABEL_2\)"),
        (datasets.Dataset.from_list(rows), r"no row of class 2 \(LABEL_2\)"),
        (TwoViews(4, seed=1), "has 4 usable rows, too few to decide on; give at least 12"),
    ):
        run = trainer(tmp_path, eval_dataset=given)
        with pytest.raises(ValueError, match=message):
            run.train()
        assert run.state.global_step == 0
    joint = trainer(tmp_path, eval_dataset=rows, strategy="joint")
    check_rows_to_decide_on(joint, rows)


def test_a_metric_that_chooses_the_best_model_is_a_number():
    check_reported("f1", {"eval_f1": 0.5})
    with pytest.raises(ValueError, match="metric_for_best_model is 'f1', whose value is a list"):
        check_reported("f1", {"eval_f1": [0.5, 0.1]})


def test_metrics_are_a_dictionary_and_arrays_become_lists():
    given = {"f1": 0.5, "by_class": np.arange(2), "deep": {"matrix": torch.eye(1), "empty": np.array([])}}
    assert (
        json.dumps(checked_values(given))
        == '{"f1": 0.5, "by_class": [0, 1], "deep": {"matrix": 1.0, "empty": []}}'
    )
    for wrong in (None, 0.5, {1: 0.5}):
        with pytest.raises(TypeError, match=r"compute_metrics returned .*; let it return a dictionary"):
            checked_values(wrong)


class Tied(torch.nn.Module):
    embedding_dim = 8

    def __init__(self, inner: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(16, 8, bias=False) if inner is None else inner
        self.outer = torch.nn.Linear(16, 8, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.outer(values.flatten(1))


def test_weights_tied_in_an_encoder_are_saved_and_shared_ones_refused(tmp_path):
    model = FusionForClassification.from_modality_pretrained({"a": Tied(), "b": Tied()}, num_labels=2)
    part = torch.nn.ModuleDict({"encoder": model.encoders["a"], "head": model.heads["a"]})
    model.set_best_heads({"a": part.state_dict()})
    model.save_pretrained(tmp_path)
    loaded, info = FusionForClassification.from_pretrained(
        tmp_path, encoders={"a": Tied(), "b": Tied()}, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert loaded.encoders["a"].outer.weight is loaded.encoders["a"].inner.weight
    assert same(dict(model.state_dict()), dict(loaded.state_dict()))
    inner = torch.nn.Linear(16, 8, bias=False)
    with pytest.raises(ValueError, match=r"share the weight 'inner\.weight'"):
        FusionForClassification.from_modality_pretrained({"a": Tied(inner), "b": Tied(inner)}, num_labels=2)


def test_what_depends_on_old_heads_goes_with_them(tmp_path):
    model = two_views()
    part = torch.nn.ModuleDict({"encoder": model.encoders["left"], "head": model.heads["left"]})
    model.set_best_heads({"left": part.state_dict()})
    alone = [{"left": 1.0}, {"right": 1.0}, {"fused": 1.0}, {"left": 0.0, "right": 0.0, "fused": 1.0}]
    model.config.readout = {"modalities": ["left", "right"], "num_classes": NUM_CLASSES, "weights": alone}
    model.save_pretrained(tmp_path)
    same_classes = FusionForClassification.from_pretrained(tmp_path)
    assert same_classes.config.readout is not None
    assert [*same_classes.best_heads] == ["left"]
    other = FusionForClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert other.config.readout is None
    assert (len(other.best_heads), other.config.best_heads) == (0, [])
    pixels = {"pixel_values": torch.zeros(2, 1, 4, 4)}
    assert other.eval()(left=pixels, right=pixels).logits.shape == (2, 5)
