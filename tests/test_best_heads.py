"""Every modality's own best epoch answers for it alone: kept, carried by the model, saved, resumed."""

from __future__ import annotations

import json

import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from safetensors.torch import load_file
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.training.best_heads import load_modality

ROWS, BATCH, EPOCHS = 64, 16, 6
SETTINGS = {
    "num_train_epochs": EPOCHS,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 64,
    "learning_rate": 2e-2,
    "lr_scheduler_type": "constant",
    "modality_learning_rates": {"left": 0.5},  # so large that it gets worse again
    "save_strategy": "epoch",
    "disable_tqdm": True,
    "use_cpu": True,
    "report_to": "none",
    "seed": 5,
}


class Interrupted(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer(folder, callbacks=(), **overrides) -> FusionTrainer:
    return FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(output_dir=str(folder), **{**SETTINGS, **overrides}),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trained = trainer(folder, keep_best_heads=True)
    trained.train()
    trained.save_model(str(folder / "final"))
    return trained, folder


def by_step(trained, name):
    return {e["step"]: e["accuracy"][name] for e in trained.record.history}


def test_the_best_step_of_every_modality_is_kept(run):
    trained, folder = run
    for name in trained.model.modalities:
        history = by_step(trained, name)
        step, score, _ = trained.record.best_heads[name]
        assert score == pytest.approx(max(history.values()))
        assert history[step] == max(history.values())
        assert json.loads((folder / f"best-{name}" / "step.json").read_text()) == {"step": step}


def test_the_model_answers_with_it_and_keeps_its_fused_head(run):
    trained, folder = run
    model, last = trained.model, trained.state.global_step
    other = [name for name, best in trained.record.best_heads.items() if best[0] != last]
    assert other, "every modality was best at the end: this run shows nothing"
    assert list(model.standalone) == model.config.standalone == other
    metrics = trained.reports["validation"]["metrics"]
    for name in model.modalities:
        assert metrics[f"eval_accuracy_{name}"] == pytest.approx(max(by_step(trained, name).values()))
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
    assert again.config.standalone == trained.model.config.standalone
    assert not any(p.requires_grad for p in again.standalone.parameters())
    batch = trained.data_collator([TwoViews(80, seed=1)[i] for i in range(80)])
    with torch.no_grad():
        expected = trained.model.eval()(**batch)
        found = again(**batch)
    assert torch.equal(found.probabilities, expected.probabilities)
    # One modality alone: the readout uses its own best head.
    name = again.config.standalone[0]
    with torch.no_grad():
        alone = again(**{key: value for key, value in batch.items() if key in (name, "labels")})
    torch.testing.assert_close(alone.unimodal_logits[name], expected.unimodal_logits[name])


def test_an_interrupted_run_ends_with_the_same_heads(run, tmp_path):
    whole, _ = run
    stop = 3 * ROWS // BATCH
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, [Interrupted(stop)], keep_best_heads=True).train()
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
    assert len(model.standalone)
    again = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(output_dir=str(tmp_path), **{**SETTINGS, "num_train_epochs": 1}),
        train_dataset=TwoViews(ROWS, seed=0),
        eval_dataset=TwoViews(80, seed=1),
    )
    again.train()
    assert not len(model.standalone)
    assert model.config.standalone == []


def test_it_is_an_option(tmp_path):
    plain = trainer(tmp_path, num_train_epochs=1)
    plain.train()
    assert plain.record.best_heads == {}
    assert not list(tmp_path.glob("best-*"))
    assert not len(plain.model.standalone)


def test_a_folder_of_another_run_is_refused(run):
    trained, folder = run
    name = trained.model.modalities[0]
    step = int(trained.record.best_heads[name][0])
    assert load_modality(str(folder / f"best-{name}"), step)
    with pytest.raises(ValueError, match="another run"):
        load_modality(str(folder / f"best-{name}"), step + 1)
