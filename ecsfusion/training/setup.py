"""What a trainer is given, checked before anything is built of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import logging

from ecsfusion.modeling import FusionForClassification
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator
from ecsfusion.strategies import stages_of
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)


def check_arguments(model: Any, args: Any, strategy: Any, has_evaluation_set: bool) -> None:
    """Check the kinds of what a trainer is given.

    Args:
        model: the model, or None where `model_init` makes it.
        args: the arguments.
        strategy: the choice that is given to the trainer, or None.
        has_evaluation_set: whether the trainer is given one.

    Raises:
        TypeError: a model or arguments of another kind.
        ValueError: two choices of a strategy; a stage 1 without an evaluation set.
    """
    if not isinstance(args, FusionTrainingArguments):
        raise TypeError(f"args is a {type(args).__name__}; give FusionTrainingArguments.")
    if model is not None and not isinstance(model, FusionForClassification):
        raise TypeError(
            f"model is a {type(model).__name__}; give a FusionForClassification, for instance from "
            "FusionForClassification.from_modality_pretrained({...}, num_labels=...)."
        )
    if strategy is not None and args.strategy != "two-stage":
        raise ValueError(
            f"strategy is {strategy!r}, but args.strategy is {args.strategy!r}; give one of them."
        )
    choice = args.strategy if strategy is None else strategy
    if stages_of(choice) != "joint" and not has_evaluation_set:
        raise ValueError(
            f"eval_dataset is missing, which the controller probes in stage 1 of the strategy {choice!r}; give one, or "
            "train jointly, with strategy='joint-auxiliary'."
        )


def collator_for(
    processor: FusionProcessor | None, model: FusionForClassification | None
) -> Callable[[Sequence[Any]], Any]:
    """The collator of a processor, or that of rows of tensors where there is none.

    Raises:
        TypeError: a processor of another kind.
        ValueError: a processor for other modalities than the model's.
    """
    if processor is None:
        return TensorCollator(None if model is None else model.modalities)
    if not isinstance(processor, FusionProcessor):
        raise TypeError(
            f"processing_class is a {type(processor).__name__}; give a FusionProcessor of one processor per "
            "modality, or a data_collator of your own with it."
        )
    if model is not None and set(processor.modalities) != set(model.modalities):
        raise ValueError(
            f"processing_class has the modalities {list(processor.modalities)}, but the model has "
            f"{list(model.modalities)}; give both the same names."
        )
    return FusionCollator(processor)


def warn_of_older_checkpoint(checkpoint: str, absent: Sequence[str]) -> None:
    """Say that a checkpoint of an older version lacks a part of the state."""
    logger.warning(
        f"{checkpoint} was saved by an older version, which did not keep {', '.join(absent)}: training goes on, and "
        "may end otherwise than it would have without the interruption."
    )
