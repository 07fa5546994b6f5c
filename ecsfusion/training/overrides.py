"""Finds methods that a subclass of the trainer, or a script, replaced without calling the original ones."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

REMEDIES = {
    "compute_loss": (
        "the unimodal losses and that of the strategy would be lost; give the function of a head's loss as "
        "compute_loss_func=function, called as function(outputs, labels, num_items_in_batch=...) for every head, or "
        "set model.head_loss, for instance to torch.nn.CrossEntropyLoss(weight=...)"
    ),
    "training_step": "decisions of the rule would never be carried out; call super().training_step, or use callbacks",
    "create_optimizer": (
        "learning rates by modality and the stages would not be set up; use modality_learning_rates, optimizer_cls_and_"
        "kwargs=(class, options) or optimizers=(optimizer, None), or call super().create_optimizer"
    ),
    "evaluate": "no rule would get a reading; call super().evaluate, or give compute_metrics",
}
"""The methods that a run cannot do without, and what to do instead of replacing each of them."""


def check_overrides(trainer: Any, base: type) -> None:
    """Check that the methods that a run cannot do without still reach those of the library.

    A method that calls `super()`, or the original one, is left alone.

    Args:
        trainer: the trainer, whose class or whose own attributes may have replaced them.
        base: the class of the library, `FusionTrainer`.

    Raises:
        ValueError: names the first method that does not, and what to do.
    """
    for name, remedy in REMEDIES.items():
        method = getattr(trainer, name)
        function = inspect.unwrap(getattr(method, "__func__", method))
        if function is getattr(base, name) or not hasattr(function, "__code__"):
            continue
        if not _names(function.__code__, name):
            owner = type(trainer).__name__
            raise ValueError(f"{owner}.{name} is replaced by a function that does not call it: {remedy}.")


def _names(code: CodeType, name: str) -> bool:
    """Whether a function, or one inside of it, uses an attribute or a variable of this name."""
    return name in (*code.co_names, *code.co_freevars) or any(
        _names(inner, name) for inner in code.co_consts if isinstance(inner, CodeType)
    )
