"""A script for `transformers.Trainer` trains in two stages once three names in it are changed, as the README says."""

from __future__ import annotations

import torch
from fusion_fixtures import TwoViews, tiny_vit
from torch import nn
from transformers import PretrainedConfig

from ecsfusion.controller.adaptive import Adaptive

SCRIPT = """
from torch.utils.data import default_collate
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

model = TwoEncoders({"left": tiny_vit(), "right": tiny_vit()}, num_labels=3)
args = TrainingArguments(
    output_dir=folder,
    num_train_epochs=4,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    warmup_steps=2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    label_smoothing_factor=0.1,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=2,
    load_best_model_at_end=True,
    metric_for_best_model="accuracy",
    remove_unused_columns=False,
    report_to="none",
    use_cpu=True,
)
trainer = Trainer(
    model=model,
    args=args,
    train_dataset=train,
    eval_dataset=validation,
    data_collator=default_collate,
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
)
trainer.train()
metrics = trainer.evaluate()
trainer.save_model()
"""
NAMES = {
    "from transformers import EarlyStoppingCallback, Trainer, TrainingArguments": (
        "from transformers import EarlyStoppingCallback\n"
        "from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments"
    ),
    "TwoEncoders(": "FusionForClassification.from_modality_pretrained(",
    " TrainingArguments(": " FusionTrainingArguments(",
    " Trainer(": " FusionTrainer(",
}


class TwoEncoders(nn.Module):
    """What people write for a plain Trainer."""

    def __init__(self, encoders: dict[str, nn.Module], num_labels: int) -> None:
        super().__init__()
        # Label smoothing looks at it.
        self.config = PretrainedConfig()
        self.encoders = nn.ModuleDict(encoders)
        self.head = nn.Linear(32, num_labels)

    def forward(self, left, right, labels=None):
        inputs = {"left": left, "right": right}
        pooled = [self.encoders[name](**inputs[name]).last_hidden_state[:, 0] for name in self.encoders]
        logits = self.head(torch.cat(pooled, dim=1))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def run_script(script: str, folder: str) -> dict:
    torch.manual_seed(0)
    names = {
        "TwoEncoders": TwoEncoders,
        "tiny_vit": tiny_vit,
        "folder": folder,
        "train": TwoViews(64, seed=0),
        "validation": TwoViews(80, seed=1),
    }
    exec(script, names)  # noqa: S102  (the very script that a user has)
    return names


def test_three_names_turn_a_trainer_script_into_two_stages(tmp_path, monkeypatch):
    # What the rule would see in so short a training depends on the machine; so stage 1 uses its whole share.
    monkeypatch.setattr(
        Adaptive, "decide_unimodal", lambda self, reading: self.train(reading, self.modalities, "all train")
    )
    before = run_script(SCRIPT, str(tmp_path / "before"))
    converted = SCRIPT
    for old, new in NAMES.items():
        assert converted.count(old) == 1
        converted = converted.replace(old, new)
    after = run_script(converted, str(tmp_path / "after"))
    assert before["metrics"].keys() <= after["metrics"].keys(), "what was reported before still is"
    assert before["trainer"].state.global_step == after["trainer"].state.global_step == 16
    assert [entry.stage for entry in after["trainer"].record.history] == ["unimodal"] * 2 + ["joint"] * 2
    assert after["metrics"]["eval_accuracy"] > 0.7
    assert (tmp_path / "after" / "unimodal" / "model.safetensors").exists()
