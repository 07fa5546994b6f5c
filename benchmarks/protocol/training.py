"""One run: a model trained from one seed, and what its heads answer at the epochs that validation chose."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from environment import environment
from suites import Split, Suite
from torch import Tensor
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.evaluation.probe import calibrated_answers
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.model.readout import Readout, expected_calibration_error
from protocol.ablations import RULES
from protocol.methods import AVERAGE, BEST_SINGLE, CALIBRATED, CALIBRATED_ENSEMBLE, ONE_EPOCH
from protocol.results import Run

WEIGHT_DECAY = {"adamw": 0.05, "sgd": 1e-4}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optim": "adamw_torch"},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
}
EVALUATION_BATCH = 512


class Snapshots(TrainerCallback):
    """The weights of the best validation epoch: by the fused head, by the calibrated answer, and by each head alone.

    Of a run in two stages the epochs of stage 2 count, for each modality's own head all do. Ties go to the earlier one,
    as in the Trainer.
    """

    def __init__(self) -> None:
        self.best: dict[str, tuple[float, dict[str, Tensor]]] = {}
        self.trainer: FusionTrainer

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Compare this epoch with the best ones."""
        model = self.trainer.model
        in_stage = self.trainer.record.stage == "joint" or args.stages == "unimodal"
        keys = {name: f"eval_accuracy_{name}" for name in model.modalities}
        if in_stage:
            keys |= {FUSED: "eval_accuracy", CALIBRATED: "eval_accuracy_calibrated"}
        weights = None
        for what, key in keys.items():
            if what not in self.best or metrics[key] > self.best[what][0]:
                if weights is None:
                    weights = {name: value.clone() for name, value in model.state_dict().items()}
                self.best[what] = (metrics[key], weights)


def train(suite: Suite, run: Run, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train one model, and judge every readout of it on validation and, once, on test.

    Args:
        suite: what to train on.
        run: how, and from which seed.
        callbacks: what happens to the run on the way.

    Returns:
        A line of results, without a method's name: several methods may read the same run.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()
    setting, seed = run.setting, run.seed
    arguments = json.loads(setting.arguments)
    own_rule = arguments.pop("own_rule", None)
    set_seed(seed)
    model = FusionForClassification.from_modality_pretrained(
        suite.build_encoders(), num_labels=suite.num_classes, fusion=setting.fusion
    )
    with tempfile.TemporaryDirectory() as folder:
        args = FusionTrainingArguments(
            output_dir=folder,
            strategy=setting.strategy,
            strategy_options=json.loads(setting.options),
            num_train_epochs=suite.epochs * setting.length,
            per_device_train_batch_size=suite.batch_size,
            per_device_eval_batch_size=EVALUATION_BATCH,
            learning_rate=setting.learning_rate,
            weight_decay=WEIGHT_DECAY[setting.optimizer],
            warmup_steps=0.05,
            seed=seed,
            save_strategy="no",
            keep_best_heads=False,  # `Snapshots` keeps them in memory, for every readout
            disable_tqdm=True,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            **OPTIMIZERS[setting.optimizer],
            **arguments,
        )
        snapshots = Snapshots()
        trainer = Quiet(
            model=model,
            args=args,
            train_dataset=suite.train,
            eval_dataset=suite.validation,
            callbacks=[snapshots, *callbacks],
            rule=None if own_rule is None else RULES[own_rule],
        )
        snapshots.trainer = trainer
        trainer.train()
    rule = trainer.controller.rule
    figures = judge(trainer.model, snapshots, suite, () if rule is None else rule.excluded_from_readout)
    return {
        "suite": suite.name,
        "description": suite.description,
        **run.to_json(),
        **figures,
        "modality_steps": modality_steps(trainer),
        "steps": trainer.state.global_step,
        "epochs": round(float(args.num_train_epochs), 3),
        "seconds": round(time.perf_counter() - start, 2),
        "config": {
            "batch_size": args.per_device_train_batch_size,
            "weight_decay": args.weight_decay,
            "warmup_steps": args.warmup_steps,
            "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
            "stages": args.stages,
            "rule": own_rule or args.rule,
            "auxiliary_weight": args.auxiliary_weight,
        },
        "trajectory": trajectory(trainer.record.history, suite.modalities),
        **environment("transformers", "accelerate"),
    }


class Quiet(FusionTrainer):
    """A trainer that keeps its thoughts to itself, and is judged elsewhere."""

    def fit_readout(self) -> None:
        """Not here: it is fitted to every readout that is compared."""

    _fit_readout_once_evaluated = fit_readout


def trajectory(history: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> dict[str, Any]:
    """All probes of a run, column by column: bits and accuracies with three digits."""
    columns: dict[str, list[Any]] = {
        "step": [entry.step for entry in history],
        "stage": [1 if entry.stage == "unimodal" else 2 for entry in history],
        "paused": [[name for name in modalities if name not in list(entry.training)] for entry in history],
        "redundancy": [entry.reading.redundancy for entry in history],
        "synergy": [entry.reading.synergy for entry in history],
        "synergy_floor": [entry.reading.floor["synergy"] for entry in history],
        "conditional_mutual_information": [entry["conditional_mutual_information"] for entry in history],
    }
    for name in modalities:
        columns[f"unique_{name}"] = [entry.reading.unique[name] for entry in history]
    for name in (*modalities, FUSED):
        columns[f"accuracy_{name}"] = [entry.reading.accuracy[name] for entry in history]
    columns["accuracy_calibrated"] = [entry["calibrated"] for entry in history]
    return {
        key: [round(value, 3) if isinstance(value, float) else value for value in values]
        for key, values in columns.items()
    } | {"restored": [entry.restored for entry in history if entry.restored is not None]}


def modality_steps(trainer: FusionTrainer) -> int:
    """Steps of encoders: how many modalities trained, summed over the optimizer steps."""
    steps, before = 0, 0
    for entry in trainer.record.history:
        if entry.stage == "unimodal" or trainer.args.strategy != "uni-pre-frozen":
            per_step = trainer.strategy.modalities_per_step or len(list(entry.training))
            steps += per_step * (entry["step"] - before)
        before = entry["step"]
    return steps


@torch.no_grad()
def answers(model: FusionForClassification, split: Split) -> dict[str, Tensor]:
    """Logits (N, C) of all heads."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for first in range(0, len(split), EVALUATION_BATCH):
        rows = split.select(torch.arange(first, min(first + EVALUATION_BATCH, len(split))))
        inputs = {
            name: {k: v.to(device) for k, v in values.items()}
            if isinstance(values, Mapping)
            else values.to(device)
            for name, values in rows.inputs.items()
        }
        outputs = model(**inputs)
        parts.append(
            {FUSED: outputs.logits.cpu(), **{n: z.cpu() for n, z in outputs.unimodal_logits.items()}}
        )
    return {head: torch.cat([part[head] for part in parts]) for head in parts[0]}


def judge(
    model: FusionForClassification, snapshots: Snapshots, suite: Suite, excluded_from_readout: Sequence[str]
) -> dict[str, Any]:
    """Accuracy of every readout on validation and test, each from the epoch that is best for it on validation."""
    splits = {"validation": suite.validation, "test": suite.test}
    found: dict[str, dict[str, dict[str, Tensor]]] = {}  # by snapshot and split
    for what, (_, weights) in snapshots.best.items():
        model.load_state_dict(weights)
        found[what] = {split: answers(model, rows) for split, rows in splits.items()}
    labels = {split: rows.labels for split, rows in splits.items()}
    accuracy: dict[str, dict[str, float]] = {split: {} for split in splits}

    def note(name: str, log_p: Mapping[str, Tensor]) -> None:
        for split in splits:
            hits = (log_p[split].argmax(dim=1) == labels[split]).double()
            accuracy[split][name] = round(float(hits.mean()), 6)

    note(FUSED, {split: found[FUSED][split][FUSED] for split in splits})
    for name in suite.modalities:
        note(name, {split: found[name][split][name] for split in splits})
    own = {split: {name: found[name][split][name] for name in suite.modalities} for split in splits}
    average = {
        split: torch.stack([z.softmax(dim=1) for z in own[split].values()]).mean(dim=0) for split in splits
    }
    note(AVERAGE, average)
    best = max(suite.modalities, key=lambda name: accuracy["validation"][name])
    note(BEST_SINGLE, {split: own[split][best] for split in splits})
    everyone = {name: np.ones(len(labels["validation"]), dtype=bool) for name in suite.modalities}
    errors = {}
    for name, heads in (
        (CALIBRATED_ENSEMBLE, own),
        (CALIBRATED, {split: {**own[split], FUSED: found[FUSED][split][FUSED]} for split in splits}),
        (ONE_EPOCH, found[CALIBRATED]),
    ):
        readout = Readout.fit(
            heads["validation"], labels["validation"], excluded_from_readout=excluded_from_readout
        )
        log_p = {
            # On validation by two-fold cross-fitting: the fit has seen these rows.
            "validation": calibrated_answers(
                heads["validation"], labels["validation"], None, everyone, SINGLE_LABEL, excluded_from_readout
            ),
            "test": readout(heads["test"]),
        }
        note(name, log_p)
        errors[name] = round(expected_calibration_error(log_p["test"].exp(), labels["test"]), 4)
    return {**{f"{split}": accuracy[split] for split in splits}, "calibration_error": errors}
