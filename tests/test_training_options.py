"""What `TrainingArguments` promise holds in both stages: each option is judged by what it does."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fusion_fixtures import TwoViews, stage_one_only, tiny_bert, tiny_resnet, tiny_vit, two_views
from test_trainer import (
    EPOCHS,
    PEAK_FIRST_THEN_RESTORE,
    ROWS,
    STEPS_PER_EPOCH,
    Scripted,
    Snapshots,
    arguments,
    trainer,
)
from torch.nn import functional as F  # noqa: N812
from transformers import EarlyStoppingCallback, TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer
from ecsfusion.data.lengths import SeededLengthGroupedSampler, row_lengths

pytestmark = pytest.mark.usefixtures("quick_probes")

ALL_TRAIN = [{}] * 20


def run_with(
    folder: Path, *, model=None, train=None, evaluation=None, callbacks=None, **options
) -> FusionTrainer:
    extra = {key: options.pop(key) for key in ("compute_loss_func", "optimizers") if key in options}
    # A name goes to the arguments; what is no name can only be given to the trainer.
    if not isinstance(options.get("strategy", ""), str):
        extra["strategy"] = options.pop("strategy")
    run = FusionTrainer(
        model=model or two_views(),
        args=arguments(folder, **options),
        train_dataset=train or TwoViews(ROWS, seed=0),
        eval_dataset=evaluation or TwoViews(80, seed=1),
        callbacks=callbacks,
        **extra,
    )
    run.train()
    return run


def weights(run: FusionTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def assert_same(first: dict, second: dict, **tolerance: float) -> None:
    for name, value in first.items():
        torch.testing.assert_close(
            value, second[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def logged(run: FusionTrainer, key: str) -> list:
    return [entry[key] for entry in run.state.log_history if key in entry]


# ---- gradients ----


def test_gradient_accumulation_equals_the_large_batch(tmp_path):
    options = {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 2, "max_grad_norm": 0.5}
    large = run_with(tmp_path / "large", per_device_train_batch_size=16, **options)
    small = run_with(
        tmp_path / "small", per_device_train_batch_size=4, gradient_accumulation_steps=4, **options
    )
    assert large.state.global_step == small.state.global_step == 2 * STEPS_PER_EPOCH
    assert {entry.stage for entry in small.record.history} == {"unimodal", "joint"}
    assert_same(weights(large), weights(small), rtol=1e-4, atol=1e-5)


class LoudLeft(TwoViews):
    """The left view's pixels are scaled; what is right of it stays bit for bit the same."""

    def __init__(self, *args, scale: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.views[0] = scale * self.views[0]


def one_step(folder: Path, scale: float, **options) -> FusionTrainer:
    options = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_steps": 1,
        "strategy": stage_one_only("adaptive"),
        **options,
    }
    return run_with(
        folder, train=LoudLeft(16, 0, scale=scale), logging_steps=1, logging_strategy="steps", **options
    )


def test_one_modalitys_gradient_never_scales_anothers(tmp_path):
    before = {name: p.detach().clone() for name, p in two_views().named_parameters()}
    quiet, loud = (one_step(tmp_path / str(k), k, max_grad_norm=0.01) for k in (1.0, 50.0))
    for name, value in weights(quiet).items():
        if name.startswith(("encoders.right", "heads.right")):
            assert torch.equal(value, weights(loud)[name]), name
    for side in ("left", "right"):
        moved = [
            (weights(loud)[name] - before[name]).square().sum()
            for name in before
            if name.startswith((f"encoders.{side}", f"heads.{side}"))
        ]
        assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.0])
def test_norms_are_logged_by_modality_and_in_all(tmp_path, max_grad_norm):
    run = run_with(
        tmp_path,
        max_grad_norm=max_grad_norm,
        logging_strategy="steps",
        logging_steps=1,
        max_steps=8,
        # The fused head does not train in stage 1.
        strategy_options={"scouting_readings": 0},
    )
    first, last = (
        [entry for entry in run.state.log_history if "grad_norm" in entry][index] for index in (0, -1)
    )
    assert (first["stage"], last["stage"]) == (1, 2)
    assert "grad_norm_fusion" not in first
    assert first["training_left"] == first["training_right"] == 1
    for entry, parts in ((first, ("left", "right")), (last, ("left", "right", "fusion"))):
        norms = [entry[f"grad_norm_{part}"] for part in parts]
        assert entry["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-4)
        assert min(norms) > 0.01


def test_gradient_checkpointing_computes_the_same_and_runs_layers_again(tmp_path):
    counts = []

    def count(model):
        calls = [0]
        layer = (
            model.encoders["left"].encoder.layer[0] if hasattr(model.encoders["left"], "encoder") else None
        )
        layer = layer if layer is not None else model.encoders["left"].layers[0]
        layer.attention.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
        counts.append(calls)
        return model

    options = {"num_train_epochs": 1, "eval_strategy": "epoch"}
    plain = run_with(tmp_path / "plain", model=count(two_views()), **options)
    # Its name from transformers 5.2x on.
    option = "activation_checkpointing"
    option = option if hasattr(plain.args, option) else "gradient_checkpointing"
    again = run_with(tmp_path / "again", model=count(two_views()), **{option: True}, **options)
    assert_same(weights(plain), weights(again), rtol=1e-5, atol=1e-6)
    assert counts[1][0] == counts[0][0] + STEPS_PER_EPOCH


# ---- precision and compilation ----


def test_bfloat16_trains_float32_weights(tmp_path):
    full = run_with(tmp_path / "full", num_train_epochs=2)
    half = run_with(tmp_path / "half", num_train_epochs=2, bf16=True)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    name = "encoders.left.layernorm.weight"
    assert not torch.equal(weights(full)[name], weights(half)[name])
    losses = [logged(run, "eval_loss")[-1] for run in (full, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert half.record.stage == "joint"


class HalfOnCpu(FusionTrainer):
    """float16 with a loss scale; accelerate sets these two up on accelerators only."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        assert self.accelerator.mixed_precision == "fp16"
        self.accelerator.native_amp = True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)


SCALE = 4096.0
# Of the backward passes in which a modality trains, the one that gives it an infinite gradient.
OVERFLOW = 6


class EveryStep(Snapshots):
    """Also the loss scale after every step, and left's gradient as backward finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.scales: list[float] = []
        self.backward: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.scales.append(optimizer.scaler.get_scale() if optimizer.scaler else 1.0)


def half_or_full(folder: Path, half: bool, overflow: str | None = None, **options):
    model, seen = two_views(), EveryStep()
    kind = HalfOnCpu if half else FusionTrainer
    heads = set()
    model.heads["left"].register_forward_hook(lambda module, args, output: heads.add(output.dtype))
    model.heads["left"].weight.register_hook(lambda gradient: seen.backward.append(gradient.clone()))
    if overflow is not None:
        steps = [0]

        def burst(gradient: torch.Tensor) -> torch.Tensor:
            steps[0] += 1
            return gradient * math.inf if steps[0] == OVERFLOW else gradient

        model.heads[overflow].bias.register_hook(burst)
    run = kind(
        model=model,
        args=arguments(
            folder,
            fp16=half,
            logging_strategy="steps",
            logging_steps=1,
            **{"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.01, **options},
        ),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        callbacks=[seen],
        strategy=Scripted([{"training": ("right",)}, {}, {"ends_stage": True}]),
    )
    run.train()
    assert heads == {torch.float16 if half else torch.float32}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert [entry.stage for entry in run.record.history] == ["unimodal"] * 3 + ["joint"]
    return run, seen


@pytest.mark.parametrize("accumulation", [1, 2])
def test_float16_scales_the_loss_and_clips_what_is_unscaled(tmp_path, accumulation):
    options = {
        "per_device_train_batch_size": 16 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    (full, plain), (half, scaled) = (
        half_or_full(tmp_path / str(half), half, **options) for half in (False, True)
    )
    assert scaled.scales == [SCALE] * EPOCHS * STEPS_PER_EPOCH
    assert len(scaled.backward) == len(plain.backward)
    for large, small in zip(scaled.backward, plain.backward, strict=True):
        torch.testing.assert_close(large, SCALE * small, rtol=0.02, atol=0.02 * SCALE * float(small.norm()))
    # One step of a clipped part is learning_rate * max_grad_norm long, so a wrong scale would show in the weights too.
    norms = [[entry for entry in run.state.log_history if "grad_norm" in entry] for run in (half, full)]
    for found, expected in zip(*norms, strict=True):
        names = [key for key in expected if key.startswith("grad_norm")]
        assert [key for key in found if key.startswith("grad_norm")] == names
        assert [found[key] for key in names] == pytest.approx([expected[key] for key in names], rel=0.02)
        assert min(expected[key] for key in names) > 0.01, "nothing was clipped"
    start = {name: p.detach() for name, p in two_views().named_parameters()}
    for part in ("encoders.left", "heads.left", "encoders.right", "heads.right", "fusion"):
        moved, apart = (
            math.sqrt(
                sum(
                    float((weights(half)[name] - other[name]).square().sum())
                    for name in start
                    if name.startswith(part)
                )
            )
            for other in (start, weights(full))
        )
        assert apart < 0.05 * moved, part


@pytest.mark.parametrize(
    "options", [{}, {"optim": "adamw_torch", "learning_rate": 3e-3, "weight_decay": 0.1}]
)
def test_float16_leaves_a_paused_modality_bit_identical(tmp_path, options):
    _, seen = half_or_full(tmp_path, True, **options)
    first, last = STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH
    for name, value in seen.weights[first].items():
        if name.startswith(("encoders.left", "heads.left")):
            assert torch.equal(value, seen.weights[last][name]), name
            if name in seen.states[first]:
                for key, state in seen.states[first][name].items():
                    assert torch.equal(state, seen.states[last][name][key]), (name, key)
    name = "heads.right.weight"
    assert not torch.equal(seen.weights[first][name], seen.weights[last][name])


@pytest.mark.parametrize(
    ("part", "step"),
    [
        # Left is paused
        ("right", OVERFLOW),
        # It has been paused for an epoch: both train.
        ("left", OVERFLOW + STEPS_PER_EPOCH),
    ],
)
def test_float16_skips_a_step_that_overflows_and_goes_on(tmp_path, part, step):
    run, seen = half_or_full(tmp_path, True, overflow=part, optim="adamw_torch", learning_rate=3e-3)
    assert run.state.global_step == EPOCHS * STEPS_PER_EPOCH
    assert seen.scales == [SCALE] * (step - 1) + [SCALE / 2] * (run.state.global_step - step + 1)
    before, after = seen.weights[step - 1], seen.weights[step]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name, values in seen.states[step - 1].items():
        for key, value in values.items():
            assert torch.equal(value, seen.states[step][name][key]), (name, key)
    name = f"heads.{part}.weight"
    assert not torch.equal(after[name], seen.weights[step + 1][name]), "training did not go on"
    entry = next(e for e in run.state.log_history if e.get("step") == step and "grad_norm" in e)
    assert not math.isfinite(entry[f"grad_norm_{part}"])
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


def test_float16_resumes_with_its_loss_scale(tmp_path):
    options = {"save_strategy": "steps", "save_steps": OVERFLOW + 1, "optim": "adamw_torch"}
    whole, _ = half_or_full(tmp_path, True, overflow="right", **options)
    again = HalfOnCpu(
        model=two_views(),
        args=whole.args,
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        strategy=Scripted([{"training": ("right",)}, {}, {"ends_stage": True}]),
    )
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{OVERFLOW + 1}"))
    assert again.accelerator.scaler.get_scale() == whole.accelerator.scaler.get_scale() == SCALE / 2
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(again).items())


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(tmp_path):
    script = [{"training": ("right",)}, {"ends_stage": True}]
    options = {"num_train_epochs": 3}
    plain = run_with(tmp_path / "plain", strategy=Scripted(script), **options)
    compiled = run_with(
        tmp_path / "compiled",
        strategy=Scripted(script),
        torch_compile=True,
        torch_compile_backend="eager",
        **options,
    )
    assert [list(entry.training) for entry in plain.record.history] == [
        list(entry.training) for entry in compiled.record.history
    ]
    assert_same(weights(plain), weights(compiled), rtol=1e-4, atol=1e-5)


# ---- losses ----


def weighted(outputs, labels, num_items_in_batch=None):
    weight = torch.tensor([1.0, 1.0, 20.0])
    return F.cross_entropy(outputs.logits, labels, weight=weight, reduction="sum") / num_items_in_batch


def plain_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_function_is_applied_to_every_head_as_the_models_own(tmp_path, accumulation):
    options = {
        "optim": "sgd",
        "learning_rate": 0.1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    own = run_with(tmp_path / "own", **options)
    given = run_with(tmp_path / "given", compute_loss_func=plain_loss, **options)
    assert_same(weights(own), weights(given), rtol=1e-4, atol=1e-5)
    assert logged(given, "eval_loss") == pytest.approx(logged(own, "eval_loss"), rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, labels, num_items_in_batch=None: outputs.loss, "returned None"),
        (
            lambda outputs, labels, num_items_in_batch=None: F.cross_entropy(
                outputs.logits, labels, reduction="none"
            ),
            r"returned a tensor of shape \(16,\)",
        ),
    ],
)
def test_a_loss_function_without_a_scalar_is_named(tmp_path, loss, message):
    with pytest.raises(TypeError, match=f"compute_loss_func {message}; let it make a scalar tensor"):
        run_with(tmp_path, compute_loss_func=loss)


def test_class_weights_move_every_head_to_the_heavy_class(tmp_path):
    class Noise(TwoViews):
        def __init__(self, rows: int, seed: int) -> None:
            super().__init__(rows, seed, noise=(30.0, 30.0))

    run = run_with(
        tmp_path,
        train=Noise(ROWS, 0),
        evaluation=Noise(80, 1),
        compute_loss_func=weighted,
        num_train_epochs=8,
    )
    rows = TwoViews(60, seed=4, noise=(30.0, 30.0))
    with torch.no_grad():
        out = run.model.eval()(
            **{
                side: {"pixel_values": torch.stack([rows[i][side]["pixel_values"] for i in range(60)])}
                for side in ("left", "right")
            }
        )
    for logits in (out.logits, *out.unimodal_logits.values()):
        assert float((logits.argmax(-1) == 2).float().mean()) > 0.7


# ---- lengths ----


class Sentences(torch.utils.data.Dataset):
    """Sentences of 1 to 20 tokens beside a picture; token and picture know the label."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.views = TwoViews(rows, seed)
        self.lengths = torch.randint(1, 21, (rows,), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict:
        row = self.views[index]
        tokens = torch.full((self.lengths[index],), row["labels"] + 1)
        return {"image": row["left"], "text": {"input_ids": tokens}, "labels": row["labels"]}


def collate_sentences(rows: list[dict]) -> dict:
    ids = [row["text"]["input_ids"] for row in rows]
    return {
        "image": {"pixel_values": torch.stack([row["image"]["pixel_values"] for row in rows])},
        "text": {
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(
                [torch.ones_like(i) for i in ids], batch_first=True
            ),
        },
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_rows_of_similar_length_share_a_batch(tmp_path, strategy):
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {"image": tiny_vit(), "text": tiny_bert()}, num_labels=3
    )
    padded = []

    def collate(rows):
        lengths = [len(row["text"]["input_ids"]) for row in rows]
        padded.append(sum(max(lengths) - length for length in lengths) / sum(lengths))
        return collate_sentences(rows)

    run = FusionTrainer(
        model=model,
        args=arguments(
            tmp_path, train_sampling_strategy=strategy, num_train_epochs=1, per_device_train_batch_size=8
        ),
        train_dataset=Sentences(128, 0),
        eval_dataset=Sentences(40, 1),
        data_collator=collate,
    )
    batches = list(run.get_train_dataloader())
    assert sorted(int(label) for b in batches for label in b["labels"]) == sorted(
        int(label) for label in Sentences(128, 0).views.labels
    )
    share = sum(padded) / len(padded)
    assert share < 0.4 if strategy == "group_by_length" else share > 0.6, share
    run.train()
    assert run.record.stage == "joint"


def test_lengths_of_several_modalities_count_alike():
    rows = [
        {"text": "abcd", "audio": {"array": [0.0] * 100}},
        {"text": "ab", "audio": None},
        {"text": "abcd", "audio": [0.0] * 50},
    ]
    assert row_lengths(rows, ("text", "audio"), "length") == pytest.approx([2.0, 0.5, 1.5])
    rows = [{"text": "a", "length": 3}, {"text": "b", "length": 1}]
    assert row_lengths(rows, ("text", "audio"), "length") == pytest.approx([1.0, 1 / 3])
    with pytest.raises(ValueError, match=r"row 0 has its audio as a bytes.*add a column 'length'"):
        row_lengths([{"audio": b""}], ("audio",), "length")


def test_batches_by_length_are_new_in_every_epoch_and_the_same_in_a_resumed_one():
    lengths = [float(n % 17) for n in range(200)]
    sampler, resumed = (SeededLengthGroupedSampler(4, lengths, seed=1) for _ in range(2))
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert epochs[0] != epochs[1] != epochs[2]


# ---- stopping, saving, searching ----


class Falling:
    """Metrics of the user by evaluation: the same "score" falls from the first one on."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, prediction) -> dict[str, float]:
        self.seen += 1
        return {"score": -float(self.seen)}


def test_early_stopping_counts_in_stage_two_only(tmp_path):
    run = FusionTrainer(
        model=two_views(),
        args=arguments(
            tmp_path,
            num_train_epochs=20,
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            greater_is_better=True,
        ),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        compute_metrics=Falling(),
        strategy=Scripted([{}, {}, {}, {"ends_stage": True}]),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    run.train()
    stages = [entry.stage for entry in run.record.history]
    assert stages == ["unimodal"] * 4 + ["joint"] * 3, "one joint best, then two that are worse"
    assert run.state.best_global_step == 5 * STEPS_PER_EPOCH
    kept = {folder.name for folder in tmp_path.glob("checkpoint-*")}
    assert f"checkpoint-{5 * STEPS_PER_EPOCH}" in kept
    assert len(kept) <= 2
    assert (tmp_path / "unimodal" / "model.safetensors").exists()


class CountForwards(TrainerCallback):
    """Rows that each encoder sees, in training and in evaluation."""

    def __init__(self, model: FusionForClassification) -> None:
        self.rows = {True: {}, False: {}}
        for name, encoder in model.encoders.items():
            encoder.register_forward_hook(lambda module, *_, name=name: self.count(module, name))

    def count(self, module, name) -> None:
        calls = self.rows[module.training]
        calls[name] = calls.get(name, 0) + 1


@pytest.mark.parametrize("best", [False, True])
def test_the_end_of_training_evaluates_nothing_twice(tmp_path, best):
    model = two_views()
    counter = CountForwards(model)
    saving = {
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy_calibrated",
    }
    options = {"per_device_eval_batch_size": 80, "keep_best_heads": False, **(saving if best else {})}
    run = run_with(tmp_path, model=model, **options)
    # Passes that look for memorized rows: at the hand-over and at the end.
    training_rows = 2
    assert counter.rows[False]["left"] == EPOCHS + training_rows, "one pass per probe and none at the end"
    reported, of_training = run.measurements["validation"], run.pid
    evaluated = run.evaluate()
    assert reported.scores["fused"] == pytest.approx(evaluated["eval_accuracy"], abs=1e-9)
    assert reported.information.synergy == pytest.approx(evaluated["eval_synergy"], abs=1e-9)
    assert reported.information.unique["left"] == pytest.approx(evaluated["eval_unique_left"], abs=1e-9)
    assert set(reported.information.interval) == {"left", "right", "redundancy", "synergy"}
    assert of_training.synergy_interval is not None
    assert run.model.config.readout is not None


def test_memorized_rows_are_looked_for_only_when_all_were_trained_on(tmp_path):
    model = two_views()
    counter = CountForwards(model)
    steps = {"max_steps": STEPS_PER_EPOCH - 1, "eval_strategy": "steps", "eval_steps": 1}
    run = run_with(tmp_path, model=model, per_device_eval_batch_size=80, keep_best_heads=False, **steps)
    assert run.record.stage == "joint"
    assert counter.rows[False]["left"] == STEPS_PER_EPOCH - 1, "a pass per probe and none over training rows"


def test_a_paused_modality_is_not_run_at_all(tmp_path):
    model = two_views()
    counter = CountForwards(model)
    run_with(tmp_path, model=model, strategy=stage_one_only(Scripted([{"training": ("right",)}] * 4)))
    assert counter.rows[True] == {"left": STEPS_PER_EPOCH, "right": EPOCHS * STEPS_PER_EPOCH}


class AnswersByRate(TrainerCallback):
    """At the larger rate the fused head names the most frequent class in every row, at the smaller one the least."""

    COUNTS = TwoViews(80, seed=1).labels.bincount()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        label = self.COUNTS.argmax() if args.learning_rate == 1e-2 else self.COUNTS.argmin()
        with torch.no_grad():
            model.fusion.linear.bias.copy_(1000.0 * torch.eye(3)[label])


def test_a_search_maximizes_the_metric_for_the_best_model(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = FusionTrainer(
        model_init=lambda trial: two_views(),
        args=arguments(tmp_path, num_train_epochs=2, metric_for_best_model="accuracy"),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        callbacks=[AnswersByRate()],
    )

    def space(trial):
        return {"learning_rate": trial.suggest_categorical("learning_rate", [1e-9, 1e-2])}

    best = run.hyperparameter_search(
        space,
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e-9, 1e-2]}),
    )
    assert best.hyperparameters == {"learning_rate": 1e-2}
    accuracy = int(AnswersByRate.COUNTS.max()) / 80
    assert best.objective == pytest.approx(accuracy), "an accuracy, not a sum of metrics"


class StagesOfTrials(TrainerCallback):
    """What each run of a search starts with: the strategy of the arguments, the stage, and the weight of the losses."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, float]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.seen.append((args.strategy, model.stage, model.config.auxiliary_weight))


def test_a_search_over_strategies_trains_what_it_says(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stages = StagesOfTrials()
    run = FusionTrainer(
        model_init=lambda trial: two_views(),
        args=arguments(tmp_path, num_train_epochs=1),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        callbacks=[stages],
    )
    choices = {"strategy": ["joint", "weak-first", "mmpareto"]}
    run.hyperparameter_search(
        lambda trial: {"strategy": trial.suggest_categorical("strategy", choices["strategy"])},
        n_trials=3,
        backend="optuna",
        sampler=optuna.samplers.GridSampler(choices),
    )
    assert sorted(stages.seen) == [
        ("joint", "joint", 0.0),
        ("mmpareto", "joint", 1.0),
        ("weak-first", "unimodal", 0.6),
    ]


# ---- optimizers and schedules ----


@pytest.mark.parametrize(
    "optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"]
)
def test_every_optimizer_pauses_and_starts_stage_two_afresh(tmp_path, optim):
    seen = Snapshots()
    script = [{"training": ("right",)}, {"ends_stage": True}]
    run_with(
        tmp_path,
        optim=optim,
        strategy=Scripted(script),
        callbacks=[seen],
        weight_decay=0.1,
        num_train_epochs=3,
    )
    start, end = STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH - 1
    for name, value in seen.weights[start].items():
        if name.startswith(("encoders.left", "heads.left")):
            assert torch.equal(value, seen.weights[end][name]), name
    fresh, joint = seen.states[0], seen.states[2 * STEPS_PER_EPOCH]
    assert joint.keys() == fresh.keys()
    for name, state in joint.items():
        assert all(torch.equal(value, fresh[name][key]) for key, value in state.items())
    assert not torch.equal(seen.weights[-1]["heads.left.weight"], seen.weights[-2]["heads.left.weight"])


def test_an_optimizer_with_groups_of_its_own_is_refused_beside_rates_by_modality(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.Trainer.get_optimizer_cls_and_kwargs",
        staticmethod(
            lambda args, model=None: (torch.optim.SGD, {"params": list(model.parameters()), "lr": 0.1})
        ),
    )
    with pytest.raises(ValueError, match="parameter groups of its own"):
        run_with(tmp_path / "refused", modality_learning_rates={"left": 1e-3})
    assert run_with(tmp_path / "fine", num_train_epochs=1).record.stage == "joint"


def test_an_optimizer_of_ones_own_is_refused_beside_rates_by_modality(tmp_path):
    model = two_views()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers holds an optimizer"):
        run_with(tmp_path, model=model, optimizers=(optimizer, None), modality_learning_rates={"left": 1e-3})


def test_stage_one_has_its_given_length_and_schedule(tmp_path):
    seen = Snapshots()
    run = run_with(
        tmp_path,
        strategy=Scripted([{"ends_stage": True}, *ALL_TRAIN]),
        num_train_epochs=5,
        unimodal_epochs=2,
        unimodal_lr_scheduler_type="constant",
        lr_scheduler_type="linear",
        callbacks=[seen],
    )
    change = 2 * STEPS_PER_EPOCH
    assert run.record.stage_start == change
    assert run.record.history[0].decision.reason.startswith("stage 1 goes on, for its length is given")
    assert seen.rates[:change] == pytest.approx([3e-3] * change)
    steps = 3 * STEPS_PER_EPOCH
    assert seen.rates[change:] == pytest.approx([3e-3 * (1 - step / steps) for step in range(steps)])


def test_the_schedule_of_stage_one_ends_with_it(tmp_path):
    seen = Snapshots()
    run_with(tmp_path, unimodal_epochs=2, num_train_epochs=4, lr_scheduler_type="linear", callbacks=[seen])
    length = 2 * STEPS_PER_EPOCH
    expected = [3e-3 * (1 - step / length) for step in range(length)]
    assert seen.rates == pytest.approx(expected * 2)


def test_a_plateau_schedule_starts_again_too(tmp_path):
    seen = Snapshots()
    run_with(
        tmp_path,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "factor": 0.1, "threshold": 10.0, "threshold_mode": "abs"},
        metric_for_best_model="loss",
        strategy=Scripted([{}, {}, {"ends_stage": True}]),
        callbacks=[seen],
    )
    assert seen.rates[2 * STEPS_PER_EPOCH + 1] < 3e-3
    assert seen.rates[3 * STEPS_PER_EPOCH] == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unimodal_epochs": 9.0}, "part of num_train_epochs, 4"),
        ({"unimodal_epochs": 1.0, "max_steps": 5}, "unimodal_epochs and max_steps"),
        ({"unimodal_epochs": 1.0, "max_unimodal_share": 0.3}, "unimodal_epochs and max_unimodal_share"),
        ({"unimodal_epochs": 1.0, "strategy": "joint-auxiliary"}, "no stage 1 whose length"),
        ({"joint_pausing": True, "strategy": "weak-first"}, "'weak-first' has no decide_joint"),
        ({"probe_rows": 0}, "probe_rows is 0"),
    ],
)
def test_contradictions_are_named(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **overrides)


# ---- data and logs ----


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __iter__(self):
        rows = TwoViews(ROWS, seed=0)
        while True:
            yield from (rows[index] for index in range(len(rows)))


def test_a_stream_of_rows_trains_in_two_stages(tmp_path):
    run = run_with(
        tmp_path,
        train=Stream(),
        max_steps=12,
        eval_strategy="steps",
        eval_steps=4,
        strategy="fixed",
        strategy_options={"schedule": [[0.5, ["left", "right"]]]},
    )
    assert run.state.global_step == 12
    assert [entry.step for entry in run.record.history] == [4, 6, 8, 12]
    assert (run.record.stage, run.record.stage_start) == ("joint", 6)


def test_tensorboard_sees_stage_modalities_and_the_cost_of_probes(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_with(
        tmp_path / "run",
        strategy=Scripted([{"training": ("right",)}, {"ends_stage": True}]),
        report_to="tensorboard",
        num_train_epochs=3,
        logging_strategy="epoch",
    )
    folder = next(Path(run.args.output_dir).rglob("events.*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["train/stage"] == [1, 1, 2]
    assert scalars["train/training_left"] == [1, 0, 1]
    assert len(scalars["train/grad_norm_left"]) == 2
    assert len(scalars["eval/unique_left"]) >= 3
    assert "train/probe_share" in scalars


def test_trackio_sees_the_same(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    sent: list[dict] = []
    monkeypatch.setattr(trackio, "init", lambda *args, **kwargs: None)
    monkeypatch.setattr(trackio, "log", lambda values, **kwargs: sent.append(values))
    monkeypatch.setattr(trackio, "finish", lambda: None)
    monkeypatch.setattr(trackio, "config", {}, raising=False)
    run_with(tmp_path, report_to="trackio", num_train_epochs=2)
    assert [values["train/stage"] for values in sent if "train/stage" in values] == [1, 2]
    assert any("eval/unique_left" in values for values in sent)


def test_the_cost_of_probes_is_reported(tmp_path, capsys):
    run = trainer(tmp_path, strategy=Scripted([{}, {"ends_stage": True}]))
    result = run.train()
    metrics = result.metrics
    assert metrics["probe_seconds"] > 0
    assert metrics["probe_share"] == pytest.approx(
        metrics["probe_seconds"] / metrics["train_runtime"], rel=0.05
    )
    seconds = sum(
        entry["eval_probe_seconds"] for entry in run.state.log_history[:-2] if "eval_probe_seconds" in entry
    )
    # Beside what is computed from the outputs, the passes of the model count.
    assert metrics["probe_seconds"] > metrics["measuring_seconds"] >= seconds - 0.01
    ending = capsys.readouterr().out.partition("Training is over")[2]
    for phrase in (
        "stage 1, steps 1 to 8",
        "stage 2, steps 9 to 16",
        "left ",
        "calibrated ",
        "probes took",
        "what is measured",
    ):
        assert phrase in ending


def test_only_so_many_rows_are_decomposed(tmp_path):
    few = trainer(tmp_path, probe_rows=50)
    metrics = few.evaluate()
    assert few.pid.num_samples == 50
    assert few.measurements["validation"].num_rows == 80
    assert metrics["eval_accuracy"] == trainer(tmp_path).evaluate()["eval_accuracy"]
    again = trainer(tmp_path, probe_rows=50).evaluate()
    assert again["eval_synergy"] == metrics["eval_synergy"]


# ---- stage 2 ----


class PauseLeft(Scripted):
    """Stage 1 ends at once; in stage 2 the left view is paused at its second reading, and then resumed."""

    def __init__(self) -> None:
        super().__init__([{"ends_stage": True}])
        self.state["joint"] = 0

    def decide_joint(self, reading):
        self.state["joint"] += 1
        names = ("right",) if self.state["joint"] == 1 else ("left", "right")
        return (
            super()
            .decide_joint(reading)
            .__class__(names, "left paused: a script" if len(names) == 1 else "all")
        )


def test_the_rule_may_pause_in_stage_two_if_it_is_allowed_to(tmp_path, capsys):
    seen, model = Snapshots(), two_views()
    counter = CountForwards(model)
    run = run_with(
        tmp_path,
        model=model,
        strategy=PauseLeft(),
        joint_pausing=True,
        callbacks=[seen],
        weight_decay=0.1,
        keep_best_heads=False,
    )
    both = ["left", "right"]
    assert [list(entry.training) for entry in run.record.history] == [both, both, ["right"], both]
    start, end = 2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH
    names = [name for name in seen.weights[0] if name.startswith(("encoders.left", "heads.left"))]
    assert all(torch.equal(seen.weights[start][name], seen.weights[end][name]) for name in names)
    for name in names:
        # The state of the optimizer as well: neither decay nor momentum moved on.
        assert seen.states[start][name].keys() == seen.states[end][name].keys() != set()
        for key, value in seen.states[start][name].items():
            assert torch.equal(value, seen.states[end][name][key])
    assert counter.rows[True] == {"left": 3 * STEPS_PER_EPOCH, "right": EPOCHS * STEPS_PER_EPOCH}
    assert counter.rows[False] == dict.fromkeys(("left", "right"), 2 * EPOCHS + 2), (
        "evaluation runs everything"
    )
    assert any(not torch.equal(seen.weights[end][name], seen.weights[end + 1][name]) for name in names)
    moved = [name for name in seen.weights[0] if name.startswith(("encoders.right", "fusion"))]
    assert any(not torch.equal(seen.weights[start][name], seen.weights[end][name]) for name in moved)
    assert "    -> left paused: a script" in capsys.readouterr().out
    off = run_with(tmp_path / "off", strategy=PauseLeft())
    assert all(list(entry.training) == ["left", "right"] for entry in off.record.history)


def test_pausing_in_stage_two_with_gaps_and_a_loss_of_ones_own(tmp_path):
    """Batches of one row: for those that have the paused view only, there is nothing to learn from."""

    class Gaps(TwoViews):
        def __getitem__(self, index):
            lost = {0: {}, 1: {"left": None}, 2: {"right": None}}[index % 3]
            return super().__getitem__(index) | lost

    options = {
        "train": Gaps(18, seed=0),
        "joint_pausing": True,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
    }
    own = run_with(tmp_path / "own", strategy=PauseLeft(), **options)
    given = run_with(tmp_path / "given", strategy=PauseLeft(), compute_loss_func=plain_loss, **options)
    assert [list(entry.training) for entry in own.record.history][2] == ["right"]
    assert all(value.isfinite().all() for value in weights(own).values())
    assert_same(weights(own), weights(given), rtol=1e-4, atol=1e-5)


def test_a_modality_paused_in_stage_two_keeps_its_batch_statistics():
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {"left": tiny_resnet(), "right": tiny_resnet()}, num_labels=3
    )
    model.set_stage("joint")
    model.set_active(("right",))
    before = {name: value.clone() for name, value in model.named_buffers()}
    pixels = {"pixel_values": torch.randn(4, 1, 32, 32)}

    def changed_by_a_step() -> set[str]:
        model.train()(left=pixels, right=pixels, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        return {
            name.split(".")[1]
            for name, value in model.named_buffers()
            if not torch.equal(value, before[name])
        }

    assert changed_by_a_step() == {"right"}
    model.set_active(("left", "right"))
    # Which is run, unlike a paused one.
    model.set_frozen(("left",))
    assert changed_by_a_step() == {"right"}
    model.set_frozen(())
    model.set_active(("left", "right"))
    assert all(module.training for module in model.train().encoders.modules())


def test_bars_say_stage_pauses_and_probes(tmp_path, capsys):
    run_with(
        tmp_path,
        strategy=Scripted([{"training": ("right",)}, {}, {"ends_stage": True}]),
        disable_tqdm=False,
        logging_strategy="steps",
        logging_steps=1,
    )
    bars = capsys.readouterr().err
    for text in ("stage 1:", "stage 1, left paused:", "stage 2:", "probe: "):
        assert text in bars


def test_without_a_second_stage_no_sentence_announces_one(tmp_path, capsys):
    run = run_with(tmp_path, strategy=stage_one_only(Scripted(PEAK_FIRST_THEN_RESTORE)))
    assert run.record.stage == "unimodal"
    default = run_with(tmp_path / "default", strategy=stage_one_only("adaptive"))
    assert "stage 2" not in capsys.readouterr().out
    assert "; the model keeps the " in default.record.history[-1].decision.reason


# ---- errors ----


class Broken(TwoViews):
    """The right view of row 5 holds NaN."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.views[1][5] = torch.nan


def test_a_loss_of_nan_names_modality_and_step_and_keeps_the_last_checkpoint(tmp_path):
    first = run_with(tmp_path, num_train_epochs=1, save_strategy="epoch")
    saved = (tmp_path / f"checkpoint-{STEPS_PER_EPOCH}" / "model.safetensors").read_bytes()
    # The checkpoint is that of another run.
    message = (
        r"after \d steps, the loss is nan: the inputs of right hold NaN.*first in row 5 of train_dataset"
        ".*this run has saved no checkpoint"
    )
    with pytest.raises(FloatingPointError, match=message):
        run_with(tmp_path, train=Broken(ROWS, 0), num_train_epochs=1, save_strategy="no")
    assert (tmp_path / f"checkpoint-{STEPS_PER_EPOCH}" / "model.safetensors").read_bytes() == saved
    assert first.state.global_step == STEPS_PER_EPOCH


def test_a_gradient_of_nan_is_no_step(tmp_path):
    model = two_views()
    model.heads["right"].weight.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match=r"the gradient of right is not finite.*no checkpoint"):
        run_with(tmp_path, model=model)
    assert all(torch.equal(p.detach(), before[name]) for name, p in model.named_parameters())


def test_a_column_of_another_name_is_named(tmp_path):
    class Other(TwoViews):
        def __getitem__(self, index: int) -> dict:
            row = super().__getitem__(index)
            return {"picture": row["left"], "right": row["right"], "labels": row["labels"]}

    with pytest.raises(ValueError, match=r"train_dataset has the columns \['picture'.*no 'left'.*rename"):
        run_with(tmp_path, train=Other(ROWS, 0))


def test_a_named_column_that_is_missing_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"left": [[0.0]], "labels": [1]})
    with pytest.raises(ValueError, match=r"eval_dataset has the columns \['left', 'labels'\] but no 'right'"):
        run_with(tmp_path, evaluation=rows)


def test_a_class_without_rows_in_the_probe_set_is_named(tmp_path):
    class TwoClasses(TwoViews):
        def __getitem__(self, index: int) -> dict:
            return super().__getitem__(index) | {"labels": int(self.labels[index]) % 2}

    with pytest.raises(ValueError, match=r"no row of class 2 \(LABEL_2\)"):
        run_with(tmp_path, evaluation=TwoClasses(80, 1))
    assert (
        run_with(tmp_path, evaluation=TwoClasses(80, 1), strategy="joint-auxiliary", num_train_epochs=1).pid
        is not None
    )


def test_a_class_whose_rows_lack_a_modality_is_named_among_the_rows_of_a_probe(tmp_path):
    class Gaps(TwoViews):
        def __getitem__(self, index: int) -> dict:
            row = super().__getitem__(index)
            return {**row, "right": None} if row["labels"] == 2 else row

    with pytest.raises(
        ValueError, match=r"no row of class 2 \(LABEL_2\) among the \d+ of 80 that a probe reads"
    ):
        run_with(tmp_path, evaluation=Gaps(80, 1))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_weights_that_are_unfrozen_too_late_are_said(tmp_path, is_frozen):
    class Unfreezes(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step:
                model.encoders["left"].requires_grad_(True)

    model = two_views()
    model.encoders["left"].requires_grad_(not is_frozen)
    run = run_with(tmp_path, model=model, callbacks=[Unfreezes()], num_train_epochs=3)
    told = [w for w in run.record.warnings if w["diagnostic"] == "unfrozen late"]
    assert [w["about"] for w in told] == ["left"] * is_frozen
    assert all(w["step"] > STEPS_PER_EPOCH for w in told)


def test_a_modality_that_every_training_row_lacks_is_said(tmp_path):
    class Gaps(TwoViews):
        def __getitem__(self, index: int) -> dict:
            return {**super().__getitem__(index), "right": None}

    class RareGaps(Gaps):
        def __getitem__(self, index: int) -> dict:
            return super().__getitem__(index) if index else TwoViews.__getitem__(self, index)

    for kind, about in ((Gaps, ["right"]), (RareGaps, [])):
        run = run_with(tmp_path, train=kind(ROWS, 0), num_train_epochs=2)
        assert [w["about"] for w in run.record.warnings if w["diagnostic"] == "no training rows"] == about


def test_a_probe_set_that_is_too_small_is_named_with_the_number_needed(tmp_path):
    with pytest.raises(ValueError, match=r"has 9 usable rows, too few.*at least 12"):
        run_with(tmp_path, evaluation=TwoViews(9, 1))


class AsIfByTwo(TrainerCallback):
    """Checkpoints say that two processes wrote them."""

    def on_step_end(self, args, state, control, **kwargs):
        self.run.record.processes = 2


def test_another_number_of_processes_is_named(tmp_path):
    two = AsIfByTwo()
    two.run = trainer(tmp_path, save_strategy="epoch", num_train_epochs=1, callbacks=[two])
    two.run.train()
    resumed = trainer(tmp_path, save_strategy="epoch", num_train_epochs=1)
    with pytest.raises(ValueError, match="written by 2 processes and this run has 1"):
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS_PER_EPOCH}"))
