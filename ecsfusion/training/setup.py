"""Checks the arguments of a trainer before anything is made from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers.utils import logging

from ecsfusion.modeling import FusionForClassification
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator
from ecsfusion.strategies import stages_of
from ecsfusion.training.plan import chosen_strategy
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)


def check_arguments(model: Any, args: Any, strategy: Any, has_evaluation_set: bool) -> None:
    """Check the types of the arguments of a trainer, and that they fit each other.

    Args:
        model: the model, or None if `model_init` makes it.
        args: the training arguments.
        strategy: the strategy that was given to the trainer, or None.
        has_evaluation_set: whether the trainer was given an evaluation set.

    Raises:
        TypeError: a model or training arguments of a wrong type.
        ValueError: two choices of a strategy, or a stage 1 without an evaluation set.
    """
    if not isinstance(args, FusionTrainingArguments):
        raise TypeError(f"args is a {type(args).__name__}; give FusionTrainingArguments.")
    if model is not None and not isinstance(model, FusionForClassification):
        raise TypeError(
            f"model is a {type(model).__name__}; give a FusionForClassification, for instance from "
            "FusionForClassification.from_modality_pretrained({...}, num_labels=...)."
        )
    choice = chosen_strategy(strategy, args)
    if stages_of(choice) != "joint" and not has_evaluation_set:
        raise ValueError(
            f"eval_dataset is missing, which the controller probes in stage 1 of the strategy {choice!r}; give one, or "
            "train jointly, with strategy='joint-auxiliary'."
        )


def collator_for(
    processor: FusionProcessor | None, model: FusionForClassification | None
) -> Callable[[Sequence[Any]], Any]:
    """The collator of a processor, or one for rows of tensors if there is no processor.

    Raises:
        TypeError: a processor of a wrong type.
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
    """Warn that a checkpoint of an older version lacks a part of the state."""
    logger.warning(
        f"{checkpoint} was saved by an older version, which did not save {', '.join(absent)}: training goes on, but "
        "its result may differ from that of a run without an interruption."
    )
