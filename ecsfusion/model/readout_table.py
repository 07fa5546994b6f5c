"""The readout as a table: the weights of the heads for every set of modalities that a row may have.

A row's weights are looked up by the number of its set, so that nothing in the computation depends on the data but the
values: no branch, no selection of rows, no wait for the device. So it can be compiled and exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION
from ecsfusion.model.readout import Readout, log_probabilities

MAX_MODALITIES = 12
"""With more modalities, the table would have more than 4096 rows."""

Table = tuple[tuple[str, ...], Tensor, Tensor, Tensor]


def readout_table(readout: Readout, modalities: Sequence[str]) -> Table:
    """The weights and offsets of a readout for every set of these modalities.

    Args:
        readout: the readout.
        modalities: names of the M modalities that rows may have, some or all of the readout's.

    Returns:
        - names of the H heads that some row needs.
        - (2^M, H) float32, their weights; row k is that of the set of modalities m with bit m of k.
        - (2^M, C) float32, what is added to predictions in regression; otherwise zeros.
        - (C,) float32, the answer to a row without any modality.

    Raises:
        ValueError: more than `MAX_MODALITIES`.
    """
    M, C = len(modalities), readout.num_classes
    if M > MAX_MODALITIES:
        raise ValueError(
            f"the readout of {M} modalities has {2**M:,} sets of them; a model can be compiled or exported with up to "
            f"{MAX_MODALITIES}."
        )
    sets = [[name for m, name in enumerate(modalities) if k >> m & 1] for k in range(2**M)]
    answering = [readout.heads_for(names) if names else frozenset() for names in sets]
    weights = [readout.weights(names) if names else {} for names in answering]
    # What no row needs is not even run, where the graph is cut down to its answer.
    heads = tuple(name for name in (*modalities, FUSED) if any(given.get(name, 0.0) > 0 for given in weights))
    offsets = [readout.offset(names) if names else [0.0] * C for names in answering]
    # Made of numbers: the values of tensors cannot be read while a model is compiled.
    by_head = torch.tensor([[given.get(name, 0.0) for name in heads] for given in weights])
    return heads, by_head, torch.tensor(offsets), torch.tensor(readout.prior_or_even)


def look_up(
    table: Table, logits: Mapping[str, Tensor], present: Mapping[str, Tensor], problem_type: str
) -> Tensor:
    """Combine the heads, as `Readout.answers` does.

    Args:
        table: what `readout_table` returned for the modalities of `present`.
        logits: (B, C) by head; those of rows without the modality may hold any values.
        present: (B,) bool by modality, in order.
        problem_type: see `ecsfusion.model.problem_types`.

    Returns:
        (B, C) float32: probabilities, or in regression predictions. NaN where the logits of a row are NaN.
    """
    heads = table[0]
    some = next(iter(present.values()))
    weights, offsets, prior = (part.to(some.device) for part in table[1:])
    index = torch.zeros_like(some, dtype=torch.long)
    for m, mask in enumerate(present.values()):
        index = index + mask.long() * 2**m
    by_head = weights[index]
    pooled = torch.zeros((), device=some.device)
    for h, name in enumerate(heads):
        z = logits[name].float()
        if name != FUSED:
            z = z.where(present[name].unsqueeze(1), 0.0)
        pooled = pooled + by_head[:, h : h + 1] * log_probabilities(z, name, problem_type).flatten(1)
    if problem_type == REGRESSION:
        answer = pooled + offsets[index]
    elif problem_type == MULTI_LABEL:
        answer = pooled.unflatten(1, (-1, 2)).softmax(dim=-1)[..., 1]
    else:
        answer = pooled.softmax(dim=-1)
    return torch.where((index == 0).unsqueeze(1), prior, answer)
