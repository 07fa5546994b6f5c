"""Errors that an encoder raises, with the name of its modality, what it was given, and a remedy where one is likely.

Also a warning of one that does not train.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

DEVICE_ERROR_WORDS = ("memory", "CUDA", "cuDNN", "CUBLAS", "NCCL", "HIP", "Triton")
"""Words in a `RuntimeError` that is about the device and not about the inputs."""
SHAPE_WORDS = ("size", "shape", "channel", "dimension", "index", "length", "match")
"""Words in an error that is about inputs of another kind than the encoder takes."""
UNUSED_POSITIONS = 2
"""RoBERTa and its relatives count positions from behind the number of the padding token, so that two are never used."""
KEPT_TYPES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    LookupError,
    NameError,
    NotImplementedError,
    OSError,
    TypeError,
    ZeroDivisionError,
)
"""Types of errors that can be made anew from a sentence, and keep their type. Others get the sentence as a note."""


def encoder_error(
    name: str, encoder: nn.Module, inputs: Mapping[str, Tensor], error: Exception
) -> Exception | None:
    """The error to raise in place of one that an encoder raised; None if that one is to be raised, now with a note.

    Args:
        name: the modality.
        encoder: its encoder.
        inputs: what it was given, by name.
        error: what it raised.
    """
    given = {key: tuple(value.shape) for key, value in inputs.items()}
    what = f"the encoder {type(encoder).__name__} of modality {name!r}"
    if type(error) is RuntimeError and any(word in str(error) for word in DEVICE_ERROR_WORDS):
        # It stays a RuntimeError: `auto_find_batch_size` catches it and reduces the batch.
        return RuntimeError(f"{what} failed on {given}: {error}")
    if type(error) in (ValueError, RuntimeError, IndexError):
        return ValueError(f"{what} cannot take {given}: {error}{_remedy(encoder, inputs, str(error))}")
    sentence = f"{what} failed on {given}: {error}{_remedy_for_call(encoder, inputs, error)}"
    if type(error) in KEPT_TYPES:
        return type(error)(sentence)
    # Subclasses, such as torch.OutOfMemoryError, are looked for by their type.
    error.add_note(sentence)
    return None


def warn_without_gradient(name: str, encoder: nn.Module, embeddings: Tensor) -> None:
    """Warn once of an encoder whose weights would train, but whose embeddings carry no gradient to them.

    Args:
        name: the modality.
        encoder: its encoder.
        embeddings: what it returned in training.
    """
    if not embeddings.requires_grad and any(p.requires_grad for p in encoder.parameters()):
        logger.warning_once(
            f"The embeddings of the encoder {type(encoder).__name__} of modality {name!r} carry no gradient, so that "
            "it does not train: leave no_grad() and detach() out of its forward, or freeze it, "
            "encoder.requires_grad_(False)."
        )


def _remedy(encoder: nn.Module, inputs: Mapping[str, Tensor], text: str) -> str:
    if "more than 1 value per channel" in text or "more than 1 spatial element" in text:
        return (
            " One row has this modality in this batch: give larger batches, or a norm that needs no others."
        )
    if isinstance(encoder, PreTrainedModel) and any(word in text for word in SHAPE_WORDS):
        return (
            _remedy_for_tokens(encoder, inputs.get("input_ids"))
            or " Is this the processor that belongs to it?"
        )
    return ""


def _remedy_for_tokens(encoder: PreTrainedModel, tokens: Tensor | None) -> str:
    """A remedy for texts that are too long, or of another vocabulary; empty if they are neither."""
    if tokens is None or tokens.ndim != 2 or tokens.is_floating_point():
        return ""
    vocabulary = getattr(encoder.config, "vocab_size", None)
    if vocabulary is not None and tokens.device.type == "cpu" and int(tokens.max()) >= vocabulary:
        return (
            f" There is a token with the number {int(tokens.max())}, and the encoder knows {vocabulary} tokens: give "
            "the tokenizer that belongs to it."
        )
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if isinstance(positions, int) and tokens.shape[1] > positions - UNUSED_POSITIONS:
        return (
            f" A text of this batch has {tokens.shape[1]} tokens, and the encoder {positions} positions: set "
            "model_max_length of its tokenizer, so that longer texts are cut."
        )
    return ""


def _remedy_for_call(encoder: nn.Module, inputs: Mapping[str, Tensor], error: Exception) -> str:
    if isinstance(encoder, PreTrainedModel) or not isinstance(error, TypeError | AttributeError):
        return ""
    main, *others = inputs
    call = ", ".join([main, *(f"{key}=..." for key in others)])
    return f" A module of your own is called as forward({call}) with tensors, and returns embeddings (B, D)."
