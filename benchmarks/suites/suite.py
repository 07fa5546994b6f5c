"""What a suite is: splits held as tensors, the encoders to train on them, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from suites.folders import SPLITS

EPSILON = 1e-6
GROUP = "group"
"""The key of a row that holds its group."""


@dataclass(frozen=True, eq=False)
class Split(Dataset):
    """Rows of a data set, held as tensors: `{modality: tensor or dictionary of tensors, ..., "labels": int}`.

    In a row that lacks a modality it is None.

    A row is a view, which `ecsfusion.processing.TensorCollator`, the default of a `FusionTrainer`, stacks.

    Args:
        inputs: by modality (N, ...), float32, or int64 where they are token ids; or a dictionary of such tensors.
        labels: (N,) int64.
        groups: (N,) int64, by which rows depend on each other (a picture, a subject, a series): the rows of a group
            have one number, and are all in train, in validation, or in test; None where rows are independent. A row
            has its number as "group".
        present: (N,) bool for each modality that some rows lack: which rows have it. Their other inputs are ignored.

    Raises:
        ValueError: the inputs of a modality, the groups, or a mask are not as many as the labels.
    """

    inputs: Mapping[str, Tensor | Mapping[str, Tensor]]
    labels: Tensor
    groups: Tensor | None = None
    present: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.inputs.items():
            for tensor in values.values() if isinstance(values, Mapping) else [values]:
                if len(tensor) != len(self.labels):
                    raise ValueError(
                        f"inputs[{name!r}] has {len(tensor)} rows, but labels {len(self.labels)}; give as many."
                    )
        if self.groups is not None and len(self.groups) != len(self.labels):
            raise ValueError(
                f"groups has {len(self.groups)} rows, but labels {len(self.labels)}; give as many, or None."
            )
        for name, mask in self.present.items():
            if len(mask) != len(self.labels):
                raise ValueError(
                    f"present[{name!r}] has {len(mask)} rows, but labels {len(self.labels)}; give as many."
                )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            name: _take(values, index) if name not in self.present or self.present[name][index] else None
            for name, values in self.inputs.items()
        }
        row["labels"] = int(self.labels[index])
        if self.groups is not None:
            row[GROUP] = int(self.groups[index])
        return row

    def select(self, rows: Tensor) -> Split:
        """The split that has only these rows, (n,) int64 or bool."""
        return Split(
            {name: _take(values, rows) for name, values in self.inputs.items()},
            self.labels[rows],
            None if self.groups is None else self.groups[rows],
            {name: mask[rows] for name, mask in self.present.items()},
        )

    def masks(self) -> dict[str, Tensor]:
        """For every modality which rows have it, (N,) bool."""
        everyone = torch.ones(len(self), dtype=torch.bool)
        return {name: self.present.get(name, everyone) for name in self.inputs}


@dataclass(frozen=True, eq=False)
class Suite:
    """A multimodal classification problem on which training methods are compared.

    Args:
        name: as in `SUITES`.
        description: one sentence: what is special, and which modality is weak, slow, or noisy.
        num_classes: K; labels are 0 to K - 1.
        train: to learn from.
        validation: to choose on.
        test: touched once.
        build_encoders: fresh encoders by modality, with random weights from torch's global generator. Each has an
            attribute `embedding_dim` and maps the values (B, ...) of its modality to embeddings (B, D).
        epochs: after which plain joint training is near convergence.
        batch_size: of training.
        learning_rates: the two to choose from with AdamW.
        sgd_learning_rates: the two to choose from with SGD and momentum 0.9.
        fusion: name of the fused head, for all methods that do not bring their own.
        arguments: of every training on the suite, such as the rate of heads apart from their encoders; a method's own
            take their place.
        shifted: further test sets by name, touched once: rows of another kind than those that were trained and
            validated on (other subjects, another language, another style). Not every class need be among them.

    Raises:
        ValueError: a shifted test set has the name of one of the three splits.
    """

    name: str
    description: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    build_encoders: Callable[[], dict[str, nn.Module]]
    epochs: int
    batch_size: int
    learning_rates: tuple[float, float]
    sgd_learning_rates: tuple[float, float]
    fusion: str = "concatenation"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shifted: Mapping[str, Split] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = [name for name in self.shifted if name in SPLITS]
        if taken:
            raise ValueError(
                f"shifted has {taken[0]!r}, the name of a split of every suite; give it another name."
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the inputs."""
        return tuple(self.train.inputs)


def standardize(values: list[Tensor], dims: tuple[int, ...]) -> list[Tensor]:
    """Tensors of all splits minus the mean of the first, the training one, over its standard deviation.

    Args:
        values: of train, validation, test: (N, ...) float32.
        dims: over which mean and standard deviation are taken; the others keep their own.
    """
    std, mean = torch.std_mean(values[0], dim=dims, keepdim=True)
    return [(split - mean) / (std + EPSILON) for split in values]


def standardize_splits(splits: Mapping[str, Split], dims: tuple[int, ...]) -> dict[str, Split]:
    """The same splits with every modality standardized by the rows of the first, the training one.

    Args:
        splits: by name, the training one first; every modality is a tensor (N, ...) float32.
        dims: see `standardize`.
    """
    inputs: dict[str, dict[str, Tensor]] = {name: {} for name in splits}
    for modality in next(iter(splits.values())).inputs:
        values = standardize([split.inputs[modality] for split in splits.values()], dims)
        for name, value in zip(splits, values, strict=True):
            inputs[name][modality] = value
    return {name: replace(split, inputs=inputs[name]) for name, split in splits.items()}


def _take(values: Any, rows: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: tensor[rows] for key, tensor in values.items()}
    return values[rows]
