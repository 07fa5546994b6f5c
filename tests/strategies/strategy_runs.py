"""Tiny runs for the tests of the strategies: a few steps over two or three views of 16 numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fusion_fixtures import NUM_CLASSES, TwoViews
from torch import nn
from transformers.trainer_callback import PrinterCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.model.names import FUSED

VIEWS = ("left", "right", "noise")
STEPS = 8
# Of a batch of 16: two epochs.
ROWS = 64
CLASSES = NUM_CLASSES


class Encoder(nn.Module):
    """Two layers; the hidden ones normed over the batch where asked for, with dropout where asked for."""

    def __init__(self, width: int = 6, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_dim = width
        self.first, self.second = nn.Linear(16, 10), nn.Linear(10, width)
        self.norm = nn.BatchNorm1d(10) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(torch.tanh(self.norm(self.first(values)))))


def views(
    names: tuple[str, ...] = VIEWS[:2],
    *,
    norm: bool = False,
    dropout: float = 0.0,
    same_width: bool = False,
    **config: Any,
) -> FusionForClassification:
    """A model of these views, always the same; embeddings have 6, 5, and 4 numbers, or 6 each."""
    torch.manual_seed(0)
    encoders = {
        name: Encoder(6 if same_width else 6 - index, norm, dropout) for index, name in enumerate(names)
    }
    return FusionForClassification.from_modality_pretrained(encoders, num_labels=CLASSES, **config)


class Views(torch.utils.data.Dataset):
    """The label under little noise on the left and more on the right; a third view has nothing but noise.

    Args:
        gaps: every fourth row lacks the left view, and every fourth the right one.
    """

    def __init__(
        self, rows: int, seed: int, names: tuple[str, ...] = VIEWS[:2], *, gaps: bool = False
    ) -> None:
        two = TwoViews(rows, seed)
        noise = torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed + 100))
        every = dict(zip(VIEWS, [*(view.flatten(1) for view in two.views), noise], strict=True))
        self.values, self.labels, self.gaps = {name: every[name] for name in names}, two.labels, gaps

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {name: value[index] for name, value in self.values.items()}
        if self.gaps and index % 4 in (1, 2):
            row["left" if index % 4 == 1 else "right"] = None
        return {**row, "labels": int(self.labels[index])}

    def batch(self) -> dict[str, Any]:
        """All rows as one batch."""
        return {**self.values, "labels": self.labels}


def arguments(folder: Path, **options: Any) -> FusionTrainingArguments:
    """Eight steps of 16 rows, the probe after every second one."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        # The model's own weights are what a strategy is judged by.
        "keep_best_heads": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "use_cpu": True,
        "report_to": "none",
        "seed": 3,
    }
    return FusionTrainingArguments(**{**defaults, **options})


def trainer(
    folder: Path,
    names: tuple[str, ...] = VIEWS[:2],
    *,
    model: dict[str, Any] | FusionForClassification | None = None,
    gaps: bool = False,
    more: dict[str, Any] | None = None,
    **options: Any,
) -> FusionTrainer:
    """The trainer of such a run.

    Args:
        folder: where it writes.
        names: the views.
        model: the model, or arguments of `views`.
        gaps: as in `Views`.
        more: arguments of `FusionTrainer`.
        **options: fields of its arguments.
    """
    run = FusionTrainer(
        model=model if isinstance(model, FusionForClassification) else views(names, **(model or {})),
        args=arguments(folder, **options),
        train_dataset=Views(ROWS, 0, names, gaps=gaps),
        eval_dataset=Views(40, 1, names, gaps=gaps),
        **(more or {}),
    )
    run.pop_callback(PrinterCallback)
    return run


def trained(folder: Path, names: tuple[str, ...] = VIEWS[:2], **options: Any) -> FusionTrainer:
    """The same, after training."""
    run = trainer(folder, names, **options)
    run.train()
    return run


# What a strategy needs that has no default; a new one that needs nothing is tested without a line here.
OPTIONS: dict[str, Any] = {
    "modality-dropout": lambda names: {"probability": 0.5},
    "rate-per-modality": lambda names: {"slow": names[1]},
    "sequential": lambda names: {"order": list(reversed(names)), "share": 0.2},
    "pmr": lambda names: {"entropy_share": 0.8},
    "diagnosing-relearning": lambda names: {"shares": [0.2, 0.6], "strength": 10.0},
    "mcr": lambda names: {"permutations": 2},
    "reconboost": lambda names: {"rounds": 1},
    "aug": lambda names: {"tolerance": 0.0},
}
MODELS: dict[str, dict[str, Any]] = {
    "mla": {"fusion": "entropy-average", "same_width": True},
    "lfm": {"fusion": "late-average"},
    "reconboost": {"fusion": "late-average"},
    "aug": {"fusion": "boosted"},
}


def by_name(
    folder: Path,
    name: str,
    names: tuple[str, ...] = VIEWS[:2],
    *,
    model: dict[str, Any] | None = None,
    **options: Any,
) -> FusionTrainer:
    """The trainer of the strategy of this name, with the options and the model that it needs."""
    options = {"strategy": name, "strategy_options": OPTIONS.get(name, lambda names: {})(names), **options}
    return trainer(folder, names, model={**MODELS.get(name, {}), **(model or {})}, **options)


def weights(run: FusionTrainer) -> dict[str, torch.Tensor]:
    """Copies of everything that a model saves, batch statistics too."""
    return {name: value.detach().clone() for name, value in run.model.state_dict().items()}


def fused_only(heads: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
    """In place of the calibrated answers of a probe, which are fitted twice: the fused ones."""
    return heads[FUSED].softmax(dim=1)


NO_PICTURES = {"ecsfusion.training.publishing.plot_trajectory": lambda *_: None}
"""What makes a tiny run quicker: what to replace, by what."""
NO_READOUTS = {
    "ecsfusion.evaluation.measure.calibrated_answers": fused_only,
    "ecsfusion.trainer.FusionTrainer._fit_readout_once_evaluated": lambda self: None,
}
