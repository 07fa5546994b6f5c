"""What a model answers: the calibrated combination of its heads, or its fused head where no readout was fitted."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, problem_type_of


def answer_of(outputs: Any, config: Any) -> Tensor:
    """The answer to each row.

    Args:
        outputs: a `FusionOutput` of a model in evaluation.
        config: its configuration.

    Returns:
        (B, C): probabilities of the classes, or of each label; in regression predictions.

    Raises:
        ValueError: the model has no readout, and its fused head was not trained.
    """
    found = outputs.predictions if outputs.probabilities is None else outputs.probabilities
    if found is not None:
        return found
    if config.stage == "unimodal":
        raise ValueError(
            "the model is of stage 1 and has no readout, so that nothing answers for all modalities; fit one by "
            "trainer.fit_readout() and save the model."
        )
    kind, logits = problem_type_of(config), outputs.logits.float()
    if kind == REGRESSION:
        return logits
    return logits.sigmoid() if kind == MULTI_LABEL else logits.softmax(dim=-1)


def labelled(answer: Tensor, config: Any, top_k: int | None = None) -> list[dict[str, Any]]:
    """The answer to one row as pipelines of transformers give it, the most probable first.

    Args:
        answer: (C,), a row of `answer_of`.
        config: of the model, with the names of classes.
        top_k: how many classes; None for all.

    Returns:
        `{"label": name, "score": probability}` for each of them; in regression all predictions, in their order.

    Raises:
        ValueError: `top_k` is no whole number from 1.
    """
    if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
        raise ValueError(f"top_k is {top_k!r}; give the number of classes to return, or None for all.")
    values = answer.tolist()
    order = list(range(len(values)))
    if problem_type_of(config) != REGRESSION:
        order = torch.argsort(answer, descending=True, stable=True).tolist()[:top_k]
    return [{"label": config.id2label[index], "score": values[index]} for index in order]
