"""AGM: the gradient through each modality's part of the fused logits is scaled in every batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ecsfusion.strategies.strategy import Strategy, mean_over_processes, rows_of

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class AGM(Strategy):
    """Slow down a modality in batches where it is ahead by more than usual, else speed it up (AGM, Li et al. 2023).

    Adaptive gradient modulation, arXiv 2308.07686:

        phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! * (f(S and m) - f(S)),   f(nothing) = 0
        s_m = mean CE(phi_m, y),   r_m = exp((mean_j s_j - s_m) M / (M - 1))
        tau_m = r_m of the running means of s, up to the batch before
        kappa_m = exp(alpha min(tau_m - r_m, cap)),   loss = CE(z) with kappa_m times the gradient through phi_m

    f(S) are the logits of the fused head if only the modalities in S are present; the phi_m (Shapley values) sum to z.
    Here the other modalities count as missing, with an embedding of zero; in the paper their inputs are set to zero and
    the encoders run again. A row that lacks modality m does not count in s_m. The fused head runs 2^M - 2 more times in
    each batch, in evaluation mode as in the authors' code, from which alpha and cap are taken. Adam divides a gradient
    by its running size, which cancels what kappa_m has in common over many batches.

    Args:
        modalities: names of the modalities of the model.
        alpha: strength of the scaling.
        cap: the largest value of tau_m - r_m that is used.

    Raises:
        ValueError: alpha is not positive.
    """

    name = "agm"
    stages = "joint"
    auxiliary_weight = 0.0
    has_own_loss = True
    loss_trains_heads = False

    def __init__(self, modalities: Sequence[str], *, alpha: float = 1.0, cap: float = 10.0) -> None:
        super().__init__(modalities)
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}; it must be positive.")
        self.alpha, self.cap = alpha, cap
        self.state = {
            # The running mean of s_m over the batches that have modality m, and the number of these batches.
            "means": dict.fromkeys(self.modalities, 0.0),
            "batches": dict.fromkeys(self.modalities, 0),
        }

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """CE(z), with the gradient through each phi_m scaled."""
        responses = mono_modal_responses(model, outputs)
        coefficients = self.coefficients(self._scores(model, outputs, labels, responses))
        logits = cast("Tensor", outputs.logits)
        for name, kappa in coefficients.items():
            # The added term is zero, so z keeps its value; its gradient scales the part phi_m of z by kappa_m.
            logits = logits + (kappa - 1.0) * (responses[name] - responses[name].detach())
        loss = model.fused_loss(logits, labels, outputs.present or {})
        # DistributedDataParallel waits for a gradient of every output of the model, also of the unimodal heads.
        return loss + 0.0 * cast("Tensor", outputs.loss)

    def _scores(
        self,
        model: FusionForClassification,
        outputs: FusionOutput,
        labels: Tensor,
        responses: Mapping[str, Tensor],
    ) -> dict[str, float]:
        """s_m by modality, over the rows of all processes that have it; modalities that no row has are left out."""
        sums = torch.zeros(len(self.modalities), 2, device=labels.device)
        for name, response in responses.items():
            rows, index = rows_of(outputs, name), self.modalities.index(name)
            if len(rows):
                score = model.head_loss(response[rows].detach().float(), labels[rows])
                sums[index, 0], sums[index, 1] = score * len(rows), len(rows)
        totals = zip(self.modalities, mean_over_processes(sums).tolist(), strict=True)
        return {name: total / rows for name, (total, rows) in totals if rows}

    def coefficients(self, scores: Mapping[str, float]) -> dict[str, float]:
        """kappa_m of a batch with the scores s_m. Afterwards the scores are added to the running means."""
        means, batches = self.state["means"], self.state["batches"]
        current, usual = ratios(scores), ratios({name: means[name] for name in scores})
        for name, score in scores.items():
            batches[name] += 1
            means[name] += (score - means[name]) / batches[name]
        return {name: math.exp(self.alpha * min(usual[name] - current[name], self.cap)) for name in scores}


def ratios(scores: Mapping[str, float]) -> dict[str, float]:
    """r_m = exp((mean_j s_j - s_m) M / (M - 1)); 1 if there is only one modality."""
    if len(scores) < 2:
        return dict.fromkeys(scores, 1.0)
    mean, factor = sum(scores.values()) / len(scores), len(scores) / (len(scores) - 1)
    return {name: math.exp(min((mean - score) * factor, 700.0)) for name, score in scores.items()}


def mono_modal_responses(model: FusionForClassification, outputs: FusionOutput) -> dict[str, Tensor]:
    """The parts phi_m (B, C) of the fused logits, by modality."""
    names, fused = tuple(outputs.embeddings or {}), cast("Tensor", outputs.logits)
    size = len(names)
    answers: dict[tuple[str, ...], Tensor] = {(): torch.zeros_like(fused), names: fused}
    # Evaluation mode: the additional runs must not change batch statistics.
    model.fusion.eval()
    for coalition in itertools.chain(*(itertools.combinations(names, k) for k in range(1, size))):
        answers[coalition] = _answer(model, outputs, coalition)
    model.fusion.train()
    responses = {}
    for name in names:
        total = torch.zeros_like(fused)
        for coalition, answer in answers.items():
            if name in coalition:
                without = tuple(other for other in coalition if other != name)
                # This equals |S|! (M - |S| - 1)! / M!, with S the coalition without this modality.
                weight = 1 / (size * math.comb(size - 1, len(without)))
                total = total + weight * (answer - answers[without])
        responses[name] = total
    return responses


def _answer(model: FusionForClassification, outputs: FusionOutput, coalition: Sequence[str]) -> Tensor:
    """The logits f(S) (B, C) of the fused head with these modalities alone; zero in rows that have none of them."""
    embeddings, logits, present = (
        outputs.embeddings or {},
        outputs.unimodal_logits or {},
        outputs.present or {},
    )
    rows = torch.stack([present[name] for name in coalition]).any(dim=0).nonzero()[:, 0]
    zeros = torch.zeros_like(logits[coalition[0]])
    if not len(rows):
        return zeros
    h, z, masks = (
        {name: values[name][rows] for name in coalition} for values in (embeddings, logits, present)
    )
    return zeros.index_copy(0, rows, model.fuse(h, z, masks).to(zeros.dtype))
