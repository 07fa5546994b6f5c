"""Every modality's own best epoch answers for it alone: kept, carried by the model, saved, resumed."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from fusion_fixtures import StopAfterSaving, TwoViews, tiny_vit, two_views
from safetensors.torch import load_file
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.training.best_heads import folder_of, load_modality

pytestmark = pytest.mark.usefixtures("quick_probes")

ROWS, BATCH, EPOCHS = 64, 16, 6
SETTINGS = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-2,
    "lr_scheduler_type": "constant",
    "save_strategy": "epoch",
    "disable_tqdm": True,
    "use_cpu": True,
    "report_to": "none",
    "seed": 5,
}

# How good each modality is at the end of each epoch, whatever it has learned: the left view is at its best in the
# middle of the run, and the right one at its end. The evaluated rows are of class 0 most often, of class 1 least often.
COMMON, RARE = 0, 1
ANSWERS = {
    "left": (RARE, COMMON, RARE, RARE, RARE, RARE),
    "right": (RARE, RARE, RARE, RARE, RARE, COMMON),
}
BEST_EPOCH = {name: answers.index(COMMON) + 1 for name, answers in ANSWERS.items()}


class Answers(TrainerCallback):
    """At the end of each epoch every head is given a bias that decides its answer, beside its trained weights."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        epoch, within = divmod(state.global_step, ROWS // BATCH)
        if within:
            return
        with torch.no_grad():
            for name, answers in ANSWERS.items():
                # Far more than embeddings that are normed over 16 numbers and these few steps can outweigh.
                model.heads[name].bias.copy_(100.0 * torch.eye(3)[answers[epoch - 1]])


def trainer(folder, callbacks=(), **overrides) -> FusionTrainer:
    return FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(output_dir=str(folder), **{**SETTINGS, **overrides}),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        callbacks=[Answers(), *callbacks],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trained = trainer(folder, keep_best_heads=True)
    trained.train()
    trained.save_model(str(folder / "final"))
    return trained, folder


def by_step(trained, name):
    return {e.step: e.reading.accuracy[name] for e in trained.record.history}


def test_the_best_step_of_every_modality_is_kept(run):
    trained, folder = run
    last = folder / f"checkpoint-{trained.state.global_step}"
    for name in trained.model.modalities:
        history = by_step(trained, name)
        step, score, _ = trained.record.best_heads[name]
        assert score == pytest.approx(max(history.values()))
        assert history[step] == max(history.values())
        assert step == BEST_EPOCH[name] * ROWS // BATCH
        assert json.loads((last / f"best_heads-{name}" / "step.json").read_text()) == {"step": step}


def test_the_model_answers_with_it_and_keeps_its_fused_head(run):
    trained, folder = run
    model, last = trained.model, trained.state.global_step
    other = [name for name, best in trained.record.best_heads.items() if best[0] != last]
    assert other == ["left"]
    assert list(model.best_heads) == model.config.best_heads == other
    scores = trained.measurements["validation"].scores
    for name in model.modalities:
        assert scores[name] == pytest.approx(max(by_step(trained, name).values()))
    # The fused head and the embeddings are those of the last step.
    rows = [TwoViews(80, seed=1)[i] for i in range(8)]
    batch = trained.data_collator(rows)
    weights = load_file(folder / f"checkpoint-{last}" / "model.safetensors")
    plain = two_views()
    plain.load_state_dict(weights)
    with torch.no_grad():
        ours, theirs = model.eval()(**batch), plain.eval()(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits)
    for name in model.modalities:
        torch.testing.assert_close(ours.embeddings[name], theirs.embeddings[name])
        same = torch.allclose(ours.unimodal_logits[name], theirs.unimodal_logits[name])
        assert same == (name not in other)


def test_a_reloaded_model_gives_the_same_probabilities(run):
    trained, folder = run
    again = FusionForClassification.from_pretrained(folder / "final").eval()
    assert again.config.best_heads == trained.model.config.best_heads
    assert not any(p.requires_grad for p in again.best_heads.parameters())
    batch = trained.data_collator([TwoViews(80, seed=1)[i] for i in range(80)])
    with torch.no_grad():
        expected = trained.model.eval()(**batch)
        found = again(**batch)
    assert torch.equal(found.probabilities, expected.probabilities)
    # One modality alone: the readout uses its own best head.
    name = again.config.best_heads[0]
    with torch.no_grad():
        alone = again(**{key: value for key, value in batch.items() if key in (name, "labels")})
    torch.testing.assert_close(alone.unimodal_logits[name], expected.unimodal_logits[name])


def test_an_interrupted_run_ends_with_the_same_heads(run, tmp_path):
    whole, _ = run
    stop = 3 * ROWS // BATCH
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, [StopAfterSaving(stop)], keep_best_heads=True).train()
    # What was written after the checkpoint must not matter.
    resumed = trainer(tmp_path, keep_best_heads=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.record.best_heads == whole.record.best_heads
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert resumed.model.config.readout == whole.model.config.readout


def test_a_new_training_starts_without_the_copies(run, tmp_path):
    folder = run[1]
    model = FusionForClassification.from_pretrained(folder / "final")
    assert len(model.best_heads)
    again = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(output_dir=str(tmp_path), **{**SETTINGS, "num_train_epochs": 1}),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
    )
    again.train()
    assert not len(model.best_heads)
    assert model.config.best_heads == []


def test_it_is_an_option(tmp_path):
    plain = trainer(tmp_path, num_train_epochs=1, keep_best_heads=False)
    plain.train()
    assert plain.record.best_heads == {}
    assert not list(tmp_path.glob("best-*"))
    assert not len(plain.model.best_heads)


def test_a_folder_of_another_run_is_refused(run):
    trained, folder = run
    folder = folder / f"checkpoint-{trained.state.global_step}"
    name = trained.model.modalities[0]
    step = int(trained.record.best_heads[name][0])
    assert load_modality(str(folder / f"best_heads-{name}"), step)
    with pytest.raises(ValueError, match="another run"):
        load_modality(str(folder / f"best_heads-{name}"), step + 1)


def test_what_only_a_run_that_goes_on_needs_is_gone(run):
    _, folder = run
    left = {
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("checkpoint-")
    }
    assert left == {"unimodal", "final"}


def test_the_loss_is_that_of_the_logits_that_are_returned(run):
    trained, _ = run
    batch = trained.data_collator([TwoViews(80, seed=1)[i] for i in range(8)])
    with torch.no_grad():
        out = trained.model.eval()(**batch)
    labels = batch["labels"]
    heads = [torch.nn.functional.cross_entropy(z, labels) for z in out.unimodal_logits.values()]
    fused = torch.nn.functional.cross_entropy(out.logits, labels)
    torch.testing.assert_close(out.loss, fused + trained.plan.auxiliary_weight * sum(heads))


def test_a_model_that_has_copies_is_trained_killed_and_resumed(run, tmp_path):
    _, source = run

    def again(callbacks=()) -> FusionTrainer:
        model = FusionForClassification.from_pretrained(source / "final")
        assert len(model.best_heads)
        return FusionTrainer(
            model=model,
            args=FusionTrainingArguments(output_dir=str(tmp_path), **{**SETTINGS, "num_train_epochs": 3}),
            train_dataset=TwoViews(ROWS, seed=0),
            eval_dataset=TwoViews(80, seed=1),
            callbacks=list(callbacks),
        )

    with pytest.raises(KeyboardInterrupt):
        again([StopAfterSaving(2 * ROWS // BATCH)]).train()
    resumed = again()
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3 * ROWS // BATCH
    # The same trainer, whose model may have copies by now.
    resumed.train(resume_from_checkpoint=True)
    assert resumed.record.best_heads


@pytest.mark.parametrize("stages", ["joint", "unimodal"])
def test_with_one_stage_and_the_best_model_at_the_end(tmp_path, stages):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    by_stages = {
        "joint": {"strategy": "joint-auxiliary"},
        "unimodal": {"strategy": "unimodal", "strategy_options": {"rule": "adaptive"}},
    }
    run = trainer(tmp_path, **by_stages[stages], **options)
    run.train()
    scores = run.measurements["validation"].scores
    best = run.state.best_global_step if stages == "joint" else run._final_step()
    assert scores["fused"] == pytest.approx(by_step(run, "fused")[best])
    for name in run.model.modalities:
        assert scores[name] == pytest.approx(max(by_step(run, name).values()))
        assert (name in run.model.best_heads) == (run.record.best_heads[name][0] != best)


def test_heads_that_nothing_trains_get_no_copies(tmp_path):
    trained = trainer(tmp_path, strategy="joint")
    trained.train()
    assert not trained.record.best_heads
    assert not trained.model.best_heads


def test_an_encoder_that_cannot_be_copied_trains_without(tmp_path, caplog):
    class Locked(torch.nn.Module):
        embedding_dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(16, 4)
            self.lock = threading.Lock()

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.linear(values.flatten(1))

    class Plain(TwoViews):
        def __getitem__(self, index: int) -> dict[str, object]:
            left, right = (view[index] for view in self.views)
            return {"left": {"pixel_values": left}, "right": right, "labels": int(self.labels[index])}

    model = FusionForClassification.from_modality_pretrained(
        {"left": tiny_vit(), "right": Locked()}, num_labels=3
    )
    run = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            **{**SETTINGS, "num_train_epochs": 2, "strategy": "joint-auxiliary", "save_strategy": "no"},
        ),
        train_dataset=Plain(ROWS, seed=0),
        eval_dataset=Plain(80, seed=1),
    )
    run.train()
    assert (
        "keep_best_heads is off in this run: a second copy of the encoder Locked of 'right' cannot"
        in caplog.text
    )
    assert run.record.best_heads == {}
    assert run.model.config.readout is not None


def test_where_weights_are_sharded_none_are_kept(tmp_path, caplog):
    run = trainer(tmp_path, strategy="joint-auxiliary")
    run.is_fsdp_enabled = True
    run.controller.record.stage = "joint"
    run.create_optimizer()
    assert (
        "keep_best_heads is off in this run: no process has whole heads under FSDP version 1." in caplog.text
    )
    run.best_heads.keep(None)
    assert run.record.best_heads == {}


def test_no_modality_has_the_name_of_such_a_folder():
    """A modality's own folder, of its name, holds its processor."""
    assert not folder_of("left").isidentifier()
