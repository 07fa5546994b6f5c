"""Embeddings of an evaluation stay on the device that made them, whatever runs beside it, and no row is lost."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fusion_fixtures import NUM_CLASSES, TwoViews, two_views
from ranks import ends, start_ranks
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.evaluation.embeddings import HeldEmbeddings
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.training.evaluator import Evaluated, Evaluator

pytestmark = pytest.mark.usefixtures("quick_probes")

WIDTH = 16
# No matrix of weights of this width has so many rows, nor as many as a batch of 23 leaves of them.
ROWS, TRAINING_ROWS, BATCH = 41, 31, 23
ROWS_AT_ONCE = {ROWS, TRAINING_ROWS, BATCH, ROWS - BATCH, TRAINING_ROWS - BATCH}


def trainer(folder, *, callbacks=(), **options) -> FusionTrainer:
    arguments = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": BATCH,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        **options,
    }
    return FusionTrainer(
        model=two_views(WIDTH),
        args=FusionTrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=TwoViews(TRAINING_ROWS, seed=0),
        eval_dataset=TwoViews(ROWS, seed=1),
        callbacks=list(callbacks),
    )


def on_device(*batches: int, steps: int | None = None) -> HeldEmbeddings:
    """Embeddings on a device from which nothing can be copied: reading a value raises an error."""
    held = HeldEmbeddings({"left": 3, "right": 2}, steps)
    for rows in batches:
        held.add({"left": torch.empty(rows, 3, device="meta")})
    return held


class TestHeldEmbeddings:
    def test_batches_are_put_together_on_their_device(self):
        held = on_device(4, 4, 1)
        assert [(name, tuple(rows.shape), rows.device.type) for name, rows in held.items()] == [
            ("left", (9, 3), "meta"),
            ("right", (9, 2), "meta"),
        ]

    def test_rows_keep_their_order_and_a_modality_that_was_not_run_is_nan(self):
        rows = torch.arange(10.0).reshape(5, 2)
        held = HeldEmbeddings({"left": 3, "right": 2})
        held.add({"right": rows[:4]})
        held.add({"right": rows[4:]})
        assert torch.equal(held["right"], rows)
        assert held["left"].shape == (5, 3)
        assert bool(held["left"].isnan().all())

    def test_half_precision_is_what_an_array_of_it_would_be(self):
        held = HeldEmbeddings({"left": 2, "right": 2})
        values = torch.randn(3, 2)
        held.add({"left": values.bfloat16(), "right": values.half()})
        assert torch.equal(held["left"], values.bfloat16().float())
        assert held["right"].dtype == torch.float16

    def test_one_batch_is_not_copied(self):
        held, rows = HeldEmbeddings({"left": 2}), torch.randn(3, 2)
        held.add({"left": rows})
        assert held["left"].data_ptr() == rows.data_ptr()

    @pytest.mark.parametrize(
        "rows", [torch.randn(3, 50, 2)[:, 0], torch.randn(30, 2)[:3], torch.randn(3, 2).share_memory_()]
    )
    def test_no_memory_of_others_is_held(self, rows):
        held = HeldEmbeddings({"left": 2})
        held.add({"left": rows})
        assert torch.equal(held["left"], rows)
        assert not held["left"].is_shared()
        assert held["left"].untyped_storage().nbytes() == rows.nbytes

    def test_after_the_steps_that_the_user_chose_they_move_to_the_cpu(self):
        held = on_device(4, 4, steps=3)
        with pytest.raises(NotImplementedError, match="meta"):
            held.add({"left": torch.empty(4, 3, device="meta")})

    def test_what_was_not_kept_is_said(self):
        dropped = on_device(4).dropped()
        assert list(dropped) == ["left", "right"]
        assert "left" in dropped
        with pytest.raises(
            ValueError, match="the embeddings of 'left' were not kept; evaluate the rows again"
        ):
            dropped["left"]


def test_rows_of_a_probe_are_those_of_an_array():
    values = torch.randn(6, 2)
    evaluation = Evaluation({}, {"left": values}, {}, torch.zeros(6))
    for rows in (np.array([0, 3]), torch.tensor([True, False, True, True, False, False])):
        assert torch.equal(evaluation.embedded("left", rows), torch.from_numpy(values.numpy()[rows]))
    assert evaluation.embedded("left", np.arange(6)) is values


class LeavesOfEmbeddings(TorchFunctionMode):
    """The embeddings that leave torch or ask for the CPU, by their number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("cpu", "numpy", "tolist", "__array__"):
            self.rows += [len(x) for x in args[:1] if x.shape[1:] == (WIDTH,) and len(x) in ROWS_AT_ONCE]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("strategy", ["two-stage", "published"])
def test_in_training_no_embedding_becomes_an_array(tmp_path, strategy):
    run = trainer(tmp_path, strategy=strategy, max_steps=3, eval_strategy="steps", eval_steps=1)
    with LeavesOfEmbeddings() as leaves:
        run.train()
    assert len(run.record.history) == 3
    assert leaves.rows == []


def test_predictions_are_arrays_as_ever(tmp_path):
    run = trainer(tmp_path)
    logits, unimodal, embeddings, _ = run.predict(TwoViews(9, seed=2), ignore_keys=[]).predictions
    assert isinstance(logits, np.ndarray)
    assert logits.shape == (9, NUM_CLASSES)
    assert {name: rows.shape for name, rows in embeddings.items()} == dict.fromkeys(unimodal, (9, WIDTH))
    assert all(isinstance(rows, np.ndarray) for rows in embeddings.values())


class LooksInBetween(TrainerCallback):
    """Evaluates, predicts and embeds other rows between two batches of an evaluation."""

    def __init__(self) -> None:
        self.trainer: FusionTrainer | None = None
        self.lengths: list[int] = []
        self.metrics: dict[str, float] = {}

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.trainer is not None:
            own, self.trainer = self.trainer, None
            self.metrics = own.evaluate(TwoViews(19, seed=5), metric_key_prefix="inner")
            own.predict(TwoViews(9, seed=5), ignore_keys=[])
            self.lengths.append(len(own.evaluate_rows(TwoViews(11, seed=6)).embeddings["left"]))


def readings(run: FusionTrainer) -> list[dict]:
    probes = [probe.to_json() for probe in run.record.history]
    for probe in probes:
        probe["reading"]["measurement"].pop("seconds")
    return probes


def test_an_evaluation_inside_of_another_one_changes_nothing_of_it(tmp_path):
    options = {"strategy": "published", "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    quiet = trainer(tmp_path / "1", **options)
    quiet.train()
    looks = LooksInBetween()
    looked_at = trainer(tmp_path / "2", callbacks=[looks], **options)
    looks.trainer = looked_at
    looked_at.train()
    assert looks.lengths == [11]
    assert readings(looked_at) == readings(quiet)


class TrainsInBetween(TrainerCallback):
    """Trains another model between two batches of an evaluation, and not to the end of its rows."""

    def __init__(self, other: FusionTrainer) -> None:
        self.other: FusionTrainer | None = other

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.other is not None:
            other, self.other = self.other, None
            other.train()


class EvaluatesInVain(TrainerCallback):
    """Evaluates other rows between two batches of an evaluation, which fails at their last batch."""

    def __init__(self) -> None:
        self.trainer: FusionTrainer | None = None
        self.batches = 0

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.trainer is not None:
            own, self.trainer = self.trainer, None
            with pytest.raises(RuntimeError, match="a broken row"):
                own.evaluate_rows(TwoViews(BATCH + 5, seed=5))
            self.batches = -1
        elif self.batches >= 0:
            self.batches += 1
            if self.batches == 2:
                raise RuntimeError("a broken row")


@pytest.mark.parametrize("way", ["trains", "evaluates"])
def test_what_ends_early_inside_of_an_evaluation_takes_no_rows_from_it(tmp_path, way):
    # At its last batch accelerate would leave out rows, as many as fill up the last batch of what ended early.
    options = {"strategy": "joint", "max_steps": 2, "eval_strategy": "no"}
    inner = TrainsInBetween(trainer(tmp_path / "1", **options)) if way == "trains" else EvaluatesInVain()
    run = trainer(tmp_path / "2", callbacks=[inner])
    if way == "evaluates":
        inner.trainer = run
    found = run.evaluate_rows(TwoViews(ROWS, seed=1))
    assert found.labels.tolist() == TwoViews(ROWS, seed=1).labels.tolist()
    assert len(found.embeddings["left"]) == ROWS


def test_rows_that_cannot_be_evaluated_are_said(tmp_path):
    run = trainer(tmp_path)
    unlabelled = [{name: row[name] for name in ("left", "right")} for row in TwoViews(3, seed=1)]
    with pytest.raises(ValueError, match="dataset has rows without 'labels' or 'label'"):
        run.evaluate_rows(unlabelled)
    for evaluate in (run.evaluate, run.evaluate_rows):
        with pytest.raises(ValueError, match="dataset has no rows"):
            evaluate([])
    run.eval_dataset = []
    with pytest.raises(ValueError, match="eval_dataset has no rows"):
        run.evaluate()


def test_an_evaluation_is_one_also_while_rows_are_embedded(tmp_path):
    looks = LooksInBetween()
    run = trainer(tmp_path, callbacks=[looks])
    looks.trainer = run
    assert run.evaluate_rows(TwoViews(5, seed=1)).labels.tolist() == TwoViews(5, seed=1).labels.tolist()
    assert "inner_accuracy" in looks.metrics


def test_processes_have_all_rows_in_order_and_none_twice(tmp_path):
    # Odd: the last batch is padded for one of two processes.
    rows = 49

    def rank() -> None:
        run = trainer(tmp_path)
        found = run.evaluate_rows(TwoViews(rows, seed=1)).embeddings
        torch.save(dict(found), tmp_path / f"rank{run.args.process_index}.pt")
        run.end_training()

    assert ends(start_ranks(rank, 2), 120) == [0, 0]
    views = TwoViews(rows, seed=1)
    model = two_views(WIDTH).eval()
    for number in (0, 1):
        found = torch.load(tmp_path / f"rank{number}.pt", weights_only=True)
        for name, view in zip(model.modalities, views.views, strict=True):
            torch.testing.assert_close(found[name], model.embed(name, view).detach())


class TestKept:
    """`on_device` embeddings cannot be copied, so an error tells which of them are moved."""

    def run(self, *, by_clusters: bool, step: int = 0, best: int | None = None):
        return SimpleNamespace(
            rule=SimpleNamespace(reads_heads=not by_clusters),
            model=SimpleNamespace(config=SimpleNamespace(stage="unimodal"), problem_type=""),
            state=SimpleNamespace(global_step=step, best_global_step=best),
            record=SimpleNamespace(peak_step=None),
        )

    def evaluated(self):
        return Evaluated(Evaluation({}, on_device(2), {}, torch.zeros(2)), None, frozenset(), False, {})

    def test_embeddings_that_nobody_will_read_are_dropped(self):
        evaluator, run = Evaluator(None), self.run(by_clusters=False)
        evaluator.keep(run, "eval", self.evaluated())
        assert evaluator.at(run, "eval", 0).outputs.embeddings.is_empty
        # Where clusters are to be counted after all, the rows are evaluated again.
        assert evaluator.at(self.run(by_clusters=True), "eval", 0) is None

    def test_clusters_keep_those_of_the_latest_evaluation_where_they_are(self):
        evaluator = Evaluator(None)
        for step in (0, 1):
            run = self.run(by_clusters=True, step=step)
            evaluator.keep(run, "eval", self.evaluated())
            assert evaluator.at(run, "eval", step).outputs.embeddings["left"].device.type == "meta"
        assert evaluator.at(run, "eval", 0) is None
        with pytest.raises(NotImplementedError, match="meta"):
            evaluator.keep(self.run(by_clusters=True, step=2, best=1), "eval", self.evaluated())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("steps", [None, 1])
def test_on_a_gpu_embeddings_stay_there_unless_the_user_asks(tmp_path, steps):
    run = trainer(tmp_path, use_cpu=False, eval_accumulation_steps=steps)
    with LeavesOfEmbeddings() as leaves:
        found = run.evaluate_rows(TwoViews(ROWS, seed=1)).embeddings
        run.evaluate()
    assert {rows.device.type for rows in found.values()} == {"cuda" if steps is None else "cpu"}
    assert (leaves.rows == []) == (steps is None)
