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

Table = tuple[Tensor, Tensor, Tensor]


def readout_table(readout: Readout, modalities: Sequence[str]) -> Table:
    """The weights and offsets of a readout for every set of modalities.

    Args:
        readout: the readout.
        modalities: names of the M modalities of the model.

    Returns:
        - (2^M, M + 1) float32 weights of the modalities' heads, and of the fused one last. Row k is that of the set of
          modalities m with bit m of k.
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
    weights, offsets = torch.zeros(2**M, M + 1), torch.zeros(2**M, C)
    for k in range(1, 2**M):
        answering = readout.heads_for([name for m, name in enumerate(modalities) if k >> m & 1])
        given = readout.weights(answering)
        weights[k] = torch.tensor([given.get(name, 0.0) for name in (*modalities, FUSED)])
        if readout.problem_type == REGRESSION:
            offsets[k] = torch.tensor(readout.offset(answering))
    return weights, offsets, torch.tensor(readout.prior_or_even)


def look_up(
    table: Table,
    modalities: Sequence[str],
    logits: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    problem_type: str,
) -> Tensor:
    """Combine the heads, as `Readout.answers` does.

    Args:
        table: what `readout_table` returned.
        modalities: as there.
        logits: (B, C) by head; the fused one, and those of all modalities in `present`. Those of rows without the
            modality may hold any values.
        present: (B,) bool for each modality that is run.
        problem_type: see `ecsfusion.model.problem_types`.

    Returns:
        (B, C) float32: probabilities, or in regression predictions. NaN where the logits of a row are NaN.
    """
    fused = logits[FUSED]
    weights, offsets, prior = (part.to(fused.device) for part in table)
    index = torch.zeros(len(fused), dtype=torch.long, device=fused.device)
    for m, name in enumerate(modalities):
        if name in present:
            index = index + present[name].long() * 2**m
    by_head = weights[index]
    pooled = by_head[:, -1:] * _flat(fused, problem_type)
    for m, name in enumerate(modalities):
        if name in present:
            z = logits[name].where(present[name].unsqueeze(1), 0.0)
            pooled = pooled + by_head[:, m : m + 1] * _flat(z, problem_type)
    if problem_type == REGRESSION:
        answer = pooled + offsets[index]
    elif problem_type == MULTI_LABEL:
        answer = pooled.unflatten(1, (-1, 2)).softmax(dim=-1)[..., 1]
    else:
        answer = pooled.softmax(dim=-1)
    return torch.where((index == 0).unsqueeze(1), prior, answer)


def _flat(logits: Tensor, problem_type: str) -> Tensor:
    """The values of a head that are weighed, (B, C) or (B, 2 C)."""
    return log_probabilities(logits.float(), "", problem_type).flatten(1)
