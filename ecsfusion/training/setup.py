"""Checks the arguments of a trainer before anything is made from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.trainer_utils import has_length
from transformers.utils import logging

from ecsfusion.data.columns import LABEL_COLUMNS, keys_of_first_row
from ecsfusion.modeling import FusionForClassification
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator
from ecsfusion.strategies import stages_of
from ecsfusion.training.plan import chosen_strategy
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)

PROBED_OUTPUTS = ("logits", "unimodal_logits", "embeddings", "present")
"""The outputs of the model that every evaluation needs."""


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
    if model is not None:
        check_model(model)
    choice = chosen_strategy(strategy, args)
    if stages_of(choice) != "joint" and not has_evaluation_set:
        raise ValueError(
            f"eval_dataset is missing, which the controller probes in stage 1 of the strategy {choice!r}; give one, or "
            "train jointly, with strategy='joint-auxiliary'."
        )


def check_model(model: Any) -> None:
    """Check that this is a fusion model without a wrapper.

    Raises:
        TypeError: it is something else; the message says how adapters belong into it.
    """
    has_adapters = isinstance(model, FusionForClassification) and getattr(
        model, "_hf_peft_config_loaded", False
    )
    if has_adapters or (hasattr(model, "peft_config") and hasattr(model, "get_base_model")):
        what = "has adapters of its own" if has_adapters else f"is a {type(model).__name__}"
        raise TypeError(
            f"model {what}; heads and fused head have to train whole, so give adapters to the encoders instead, before "
            "the model is built: FusionForClassification.from_modality_pretrained({'text': get_peft_model(encoder, "
            "LoraConfig(...)), ...}, num_labels=...)."
        )
    if not isinstance(model, FusionForClassification):
        raise TypeError(
            f"model is a {type(model).__name__}; give a FusionForClassification, for instance from "
            "FusionForClassification.from_modality_pretrained({...}, num_labels=...)."
        )


def check_ignored_outputs(argument: str, names: Sequence[str] | None) -> None:
    """Check that an evaluation keeps the outputs that a probe reads.

    Args:
        argument: the name of the argument that lists outputs to leave out.
        names: its value.

    Raises:
        ValueError: it names one of these outputs.
    """
    needed = [name for name in names or () if name in PROBED_OUTPUTS]
    if needed:
        raise ValueError(
            f"{argument} holds {needed[0]!r}, which a probe reads; leave out {', '.join(needed)}. (The function "
            "compute_metrics gets the logits of the fused head alone.)"
        )


def check_not_all_dropped(argument: str, dataset: Any, batch_size: int) -> None:
    """Check that a data set has at least one whole batch, where `dataloader_drop_last` drops the others.

    Args:
        argument: the name of the data set in the message.
        dataset: the rows; a stream is not checked.
        batch_size: rows of a batch of all processes together.

    Raises:
        ValueError: it has fewer rows, which would all be dropped.
    """
    if has_length(dataset) and len(dataset) < batch_size:
        raise ValueError(
            f"{argument} has {len(dataset)} rows and a batch {batch_size}, so that dataloader_drop_last=True drops all "
            "of them; leave dataloader_drop_last out, or choose smaller batches."
        )


def check_checkpointing(model: FusionForClassification, args: FusionTrainingArguments) -> None:
    """Check that activation checkpointing has layers to work on, and lets gradients through frozen ones.

    The reentrant kind gives no gradient to layers whose inputs require none, as behind frozen embeddings. PyTorch only
    warns, and no adapter would move.

    Raises:
        ValueError: no encoder can do it, or an encoder with frozen weights uses the reentrant kind.
    """
    option = (
        "activation_checkpointing" if hasattr(args, "activation_checkpointing") else "gradient_checkpointing"
    )
    if getattr(args, option) and not any(hasattr(each, "gradient_checkpointing") for each in model.modules()):
        kinds = ", ".join(f"{name!r} ({type(each).__name__})" for name, each in model.encoders.items())
        raise ValueError(
            f"{option} (or gradient_checkpointing) is True, but no layer of the encoders {kinds} can do it; leave it "
            "out."
        )
    for name, encoder in model.encoders.items():
        keys = [f"encoders.{name}.{key}" for key, p in encoder.named_parameters() if not p.requires_grad]
        functions = [
            getattr(module, "_gradient_checkpointing_func", None)
            for module in encoder.modules()
            if getattr(module, "gradient_checkpointing", False)
        ]
        is_reentrant = any(getattr(each, "keywords", {}).get("use_reentrant", False) for each in functions)
        if is_reentrant and any(not model.is_held(key) for key in keys):
            raise ValueError(
                "activation_checkpointing_kwargs (or gradient_checkpointing_kwargs) has use_reentrant=True, "
                f"which gives no gradient to layers behind frozen ones, as the encoder of {name!r} has them; "
                "leave it out, or set it to False."
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


def warn_of_other_columns(
    dataset: Any, modalities: Sequence[str], group_column: str | None, argument: str
) -> None:
    """Warn where the rows of a set lack a modality, and have a key that may be another name for it.

    Args:
        dataset: an evaluation or test set; one that cannot be indexed is not looked at.
        modalities: names of the model's modalities.
        group_column: the column of what rows share, or None.
        argument: what to call the set.
    """
    columns = keys_of_first_row(dataset) or []
    missing = [name for name in modalities if name not in columns]
    others = [name for name in columns if name not in (*modalities, *LABEL_COLUMNS, group_column)]
    if missing and others:
        logger.warning(
            f"{argument} has the columns {columns} but no {' and no '.join(map(repr, missing))}, so that its rows are "
            f"answered without; if that is one of {others}, rename the column."
        )


def check_set_names(sets: Mapping[Any, Any], name: str | None = None) -> None:
    """Check the names of several evaluation sets, and that this one is among them.

    Raises:
        TypeError: a name that is no text.
        ValueError: there is no set at all, or none of this name.
    """
    if not sets and name is None:
        raise ValueError("eval_dataset has no sets; give at least one by name, or leave eval_dataset out.")
    wrong = [each for each in sets if not isinstance(each, str)]
    if wrong:
        raise TypeError(f"eval_dataset has the name {wrong[0]!r}; give its sets texts as names.")
    if name is not None and name not in sets:
        raise ValueError(f"eval_dataset has no set {name!r}; it has {[*sets]}.")
