"""One run: a model trained from one seed, and what its heads answer at the epochs that validation chose."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from environment import environment
from suites import Split, Suite
from suites.suite import GROUP
from torch import Tensor
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.controller.probe import Probe
from ecsfusion.evaluation.scores import calibrated_answers
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import SINGLE_LABEL
from ecsfusion.model.readout import Readout, expected_calibration_error
from ecsfusion.strategies import STRATEGIES
from protocol.ablations import RULES
from protocol.methods import (
    AVERAGE,
    BEST_SINGLE,
    CALIBRATED,
    CALIBRATED_ENSEMBLE,
    ONE_EPOCH,
    SOUP,
    STACKING,
    answers_of,
)
from protocol.results import Run
from protocol.soup import greedy_soup
from protocol.stacking import Stacking

WEIGHT_DECAY = {"adamw": 0.05, "sgd": 1e-4}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"optim": "adamw_torch"},
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
}
EVALUATION_BATCH = 512
FEW_ROWS = 100
"""Rows of a probe that decides nothing: clusters of all would be a third of the time of joint training."""


class Snapshots(TrainerCallback):
    """The weights of the best validation epoch: by the fused head, by the calibrated answer, and by each head alone.

    Of a run in two stages the epochs of stage 2 count, for each modality's own head all do. Ties go to the earlier one,
    as in the Trainer.

    Args:
        keeps_epochs: whether the weights of all epochs are kept, too, for a soup.
    """

    def __init__(self, keeps_epochs: bool = False) -> None:
        self.best: dict[str, tuple[float, dict[str, Tensor]]] = {}
        self.keeps_epochs = keeps_epochs
        self.epochs: list[tuple[float, dict[str, Tensor]]] = []
        """Validation accuracy of the fused head, and weights."""
        self._last: dict[str, Tensor] = {}
        self.trainer: FusionTrainer

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Compare this epoch with the best ones."""
        model = self.trainer.model
        in_stage = self.trainer.record.stage == "joint" or self.trainer.plan.stages == "unimodal"
        keys = {name: f"eval_accuracy_{name}" for name in model.modalities}
        if in_stage:
            keys |= {FUSED: "eval_accuracy", CALIBRATED: "eval_accuracy_calibrated"}
        weights = None
        for what, key in keys.items():
            if what not in self.best or metrics[key] > self.best[what][0]:
                if weights is None:
                    weights = self._copy(model)
                self.best[what] = (metrics[key], weights)
        if self.keeps_epochs and in_stage:
            self.epochs.append((metrics["eval_accuracy"], weights or self._copy(model)))

    def _copy(self, model: FusionForClassification) -> dict[str, Tensor]:
        """The weights of now; those that have not changed since the last copy, such as frozen ones, are that copy's."""
        last = self._last
        self._last = {
            name: last[name] if name in last and torch.equal(last[name], value) else value.clone()
            for name, value in model.state_dict().items()
        }
        return self._last


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
    set_seed(seed)
    model = FusionForClassification.from_modality_pretrained(
        suite.build_encoders(), num_labels=suite.num_classes, fusion=setting.fusion
    )
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(
            suite,
            folder,
            seed,
            setting.optimizer,
            setting.learning_rate,
            length=setting.length,
            strategy_options=json.loads(setting.options),
            probe_rows=FEW_ROWS if decides_nothing(setting.strategy) else None,
            **json.loads(setting.arguments),
        )
        wanted = answers_of(setting.strategy)
        snapshots = Snapshots(keeps_epochs=SOUP in wanted)
        trainer = Quiet(
            model=model,
            args=args,
            train_dataset=suite.train,
            eval_dataset=suite.validation,
            callbacks=[snapshots, *callbacks],
            strategy=RULES.get(setting.strategy, setting.strategy),
        )
        snapshots.trainer = trainer
        trainer.train()
    plan = trainer.plan
    figures = judge(trainer.model, snapshots, suite, plan.excluded_from_readout, wanted)
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
            "stages": plan.stages,
            "rule": None if plan.rule is None else plan.rule.label,
            "auxiliary_weight": plan.auxiliary_weight,
        },
        "trajectory": trajectory(trainer.record.history, suite.modalities),
        **environment("transformers", "accelerate"),
    }


def training_arguments(
    suite: Suite,
    folder: str,
    seed: int,
    optimizer: str,
    learning_rate: float,
    *,
    length: float = 1.0,
    **more: Any,
) -> FusionTrainingArguments:
    """The arguments of every run on a suite.

    Args:
        suite: what to train on.
        folder: the output folder.
        seed: of the run.
        optimizer: a name in `OPTIMIZERS`.
        learning_rate: of all parts.
        length: the budget, in those of the suite.
        **more: further arguments.
    """
    return FusionTrainingArguments(
        output_dir=folder,
        num_train_epochs=suite.epochs * length,
        per_device_train_batch_size=suite.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=learning_rate,
        weight_decay=WEIGHT_DECAY[optimizer],
        warmup_steps=0.05,
        seed=seed,
        save_strategy="no",
        # `Snapshots` keeps the best weights in memory, for every readout.
        keep_best_heads=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        group_column_name=None if suite.train.groups is None else GROUP,
        **OPTIMIZERS[optimizer],
        **{**suite.arguments, **more},
    )


def decides_nothing(strategy: str) -> bool:
    """Whether the strategy of this name trains jointly from the start, so that nothing is decided by its probes."""
    return strategy in STRATEGIES and STRATEGIES[strategy].stages == "joint"


class Quiet(FusionTrainer):
    """A trainer that fits no readout after training: `judge` fits every readout that is compared."""

    def fit_readout(self) -> None:
        """Do nothing."""

    _fit_readout_once_evaluated = fit_readout


def trajectory(history: Sequence[Probe], modalities: Sequence[str]) -> dict[str, Any]:
    """All probes of a run, column by column: bits and accuracies with three digits."""
    columns: dict[str, list[Any]] = {
        "step": [probe.step for probe in history],
        "stage": [1 if probe.stage == "unimodal" else 2 for probe in history],
        "paused": [[name for name in modalities if name not in probe.training] for probe in history],
        "redundancy": [probe.reading.redundancy for probe in history],
        "synergy": [probe.reading.synergy for probe in history],
        "synergy_floor": [probe.reading.floor["synergy"] for probe in history],
        "dependence": [probe.reading.information.dependence for probe in history],
    }
    for name in modalities:
        columns[f"unique_{name}"] = [probe.reading.unique[name] for probe in history]
    for name in (*modalities, FUSED):
        columns[f"accuracy_{name}"] = [probe.reading.accuracy[name] for probe in history]
    columns["accuracy_calibrated"] = [probe.reading.accuracy[CALIBRATED] for probe in history]
    return {
        key: [round(value, 3) if isinstance(value, float) else value for value in values]
        for key, values in columns.items()
    } | {"restored": [probe.restored for probe in history if probe.restored is not None]}


def modality_steps(trainer: FusionTrainer) -> int:
    """Steps of encoders: how many modalities trained, summed over the optimizer steps."""
    steps, before = 0.0, 0
    for probe in trainer.record.history:
        if probe.stage == "unimodal" or trainer.strategy.name != "uni-pre-frozen":
            per_step = trainer.strategy.modalities_per_step or len(probe.training)
            steps += per_step * (probe.step - before)
        before = probe.step
    return round(steps)


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
        outputs = model(**inputs, present={name: mask.to(device) for name, mask in rows.present.items()})
        parts.append(
            {FUSED: outputs.logits.cpu(), **{n: z.cpu() for n, z in outputs.unimodal_logits.items()}}
        )
    return {head: torch.cat([part[head] for part in parts]) for head in parts[0]}


def judge(
    model: FusionForClassification,
    snapshots: Snapshots,
    suite: Suite,
    excluded_from_readout: Sequence[str],
    wanted: Collection[str] = (),
) -> dict[str, Any]:
    """Accuracy of every readout on validation and the test sets, each from the epoch that is best on validation.

    Args:
        model: takes the weights.
        snapshots: of the run.
        suite: what it was trained on.
        excluded_from_readout: heads that were not trained.
        wanted: `STACKING` and `SOUP` are judged only if they are among these.
    """
    tests = {"test": suite.test, **suite.shifted}
    splits = {"validation": suite.validation, **tests}
    # By snapshot, split and head.
    logits: dict[str, dict[str, dict[str, Tensor]]] = {}
    # One epoch may be the best for several readouts, with one and the same dictionary of weights.
    of_weights: dict[int, dict[str, dict[str, Tensor]]] = {}
    for what, (_, weights) in snapshots.best.items():
        if id(weights) not in of_weights:
            model.load_state_dict(weights)
            of_weights[id(weights)] = {split: answers(model, rows) for split, rows in splits.items()}
        logits[what] = of_weights[id(weights)]
    labels = {split: rows.labels for split, rows in splits.items()}
    masks = {split: rows.masks() for split, rows in splits.items()}
    # What a modality's own head answers where the modality is missing: the commonest class.
    prior = suite.train.labels.bincount(minlength=suite.num_classes).log()
    accuracy: dict[str, dict[str, float]] = {split: {} for split in splits}

    def note(name: str, log_p: Mapping[str, Tensor]) -> None:
        for split in splits:
            hits = (log_p[split].argmax(dim=1) == labels[split]).double()
            accuracy[split][name] = round(float(hits.mean()), 6)

    note(FUSED, {split: logits[FUSED][split][FUSED] for split in splits})
    own = {split: {name: logits[name][split][name] for name in suite.modalities} for split in splits}
    single = {
        name: {split: own[split][name].where(masks[split][name][:, None], prior) for split in splits}
        for name in suite.modalities
    }
    for name in suite.modalities:
        note(name, single[name])
    average = {
        split: sum(z.softmax(dim=1) * masks[split][name][:, None] for name, z in own[split].items())
        for split in splits
    }
    note(AVERAGE, average)
    best = max(suite.modalities, key=lambda name: accuracy["validation"][name])
    note(BEST_SINGLE, single[best])
    groups = (
        None if suite.validation.groups is None else suite.validation.groups.unique(return_inverse=True)[1]
    )
    on_validation = {name: mask.numpy() for name, mask in masks["validation"].items()}
    errors = {}
    for name, heads in (
        (CALIBRATED_ENSEMBLE, own),
        (CALIBRATED, {split: {**own[split], FUSED: logits[FUSED][split][FUSED]} for split in splits}),
        (ONE_EPOCH, logits[CALIBRATED]),
    ):
        readout = Readout.fit(
            heads["validation"],
            labels["validation"],
            masks["validation"],
            excluded_from_readout=excluded_from_readout,
            groups=groups,
        )
        log_p = {
            # On validation by two-fold cross-fitting: the fit has seen these rows.
            "validation": calibrated_answers(
                heads["validation"],
                labels["validation"],
                None,
                on_validation,
                SINGLE_LABEL,
                excluded_from_readout,
                groups,
            ),
            **{split: readout(heads[split], masks[split]) for split in tests},
        }
        note(name, log_p)
        errors[name] = round(expected_calibration_error(log_p["test"].exp(), labels["test"]), 4)
    if STACKING in wanted:
        answered = {
            split: {name: single[name][split].log_softmax(dim=1) for name in suite.modalities}
            for split in splits
        }
        stacking = Stacking(answered["validation"], labels["validation"], groups)
        log_p = {split: stacking(answered[split]) for split in tests}
        note(STACKING, {"validation": stacking.held_out, **log_p})
        errors[STACKING] = round(expected_calibration_error(log_p["test"].exp(), labels["test"]), 4)
    if SOUP in wanted:

        def validate(weights: Mapping[str, Tensor]) -> float:
            model.load_state_dict(weights)
            hits = answers(model, suite.validation)[FUSED].argmax(dim=1) == labels["validation"]
            return float(hits.double().mean())

        model.load_state_dict(greedy_soup(snapshots.epochs, validate))
        note(SOUP, {split: answers(model, rows)[FUSED] for split, rows in splits.items()})
    return {
        "validation": accuracy["validation"],
        "test": accuracy["test"],
        "shifted": {name: accuracy[name] for name in suite.shifted},
        "calibration_error": errors,
    }
