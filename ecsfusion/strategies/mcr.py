"""MCR: the modalities play a game for influence on the fused answer, and agree on what they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from ecsfusion.strategies.strategy import rows_of
from ecsfusion.strategies.unimodal import ThenFused

if TYPE_CHECKING:
    from ecsfusion.modeling import FusionForClassification, FusionOutput

GAMES = {"greedy": -1, "independent": 0, "collaborative": 1}
"""k by the name of the game: what a modality makes of the influence of another one."""


class MCR(ThenFused):
    """Train each modality alone, then jointly in a game for influence on the answer (MCR, Kontras et al. 2025).

    The multimodal competition regularizer of "Balancing multimodal training through game-theoretic regularization",
    NeurIPS 2025, arXiv 2411.07335:

        L = CE(z) + auxiliary_weight sum_m CE(z_m) + influence (sum_m D_m) + contrast C
        D_m = -JS(p, p_m with respect to h_m) - k JS(p, p_m with respect to all other h_j)
        p = softmax(z),   p_m the same with the h_m of the batch permuted over the rows
        k = -1 "greedy", 0 "independent", 1 "collaborative"

    JS is the Jensen-Shannon divergence in nats, the mean over the rows and over some random permutations. "With respect
    to" means that the other embeddings have no gradient in this term: the encoder of m makes its own permutation
    matter, and (greedy) those of the others matter less. C is a contrastive loss (NT-Xent) over the normalized
    embeddings of all modalities and rows: of every pair of one class, -log of its share against the pairs of the same
    first row with other classes, at a temperature.

    Weights, pretraining and C are those of the authors' code for CREMA-D with ResNets; the temperature is the default
    of that code. A term that is off there is left out: L_CEB, which needs a network of its own that predicts the
    embeddings from z. The authors draw 32 permutations, run the encoders again for them in evaluation mode, and let
    the columns of a linear fused head take the side of their modality. Here the embeddings of the step are used, and a
    fused head gets no gradient from a greedy game. The game is played by rows that have every modality. Embeddings of
    different widths are compared in C after zeros were appended, which the authors' models do not need.

    Args:
        modalities: names of the modalities of the model.
        share: the share of the budget in which each modality trains alone.
        influence: weight of the game; the authors use 0.001 to 0.1.
        game: "greedy", "independent" or "collaborative".
        contrast: weight of C.
        temperature: of C.
        permutations: how many are drawn for each modality and batch.

    Raises:
        ValueError: an option that is out of its range.
    """

    name = "mcr"
    auxiliary_weight = 0.01
    only_single_label = "rows of one class are drawn together"
    has_own_loss = True

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        share: float = 2 / 3,
        influence: float = 0.1,
        game: str = "greedy",
        contrast: float = 1.0,
        temperature: float = 0.5,
        permutations: int = 8,
    ) -> None:
        super().__init__(modalities, share=share)
        for name, value in (("influence", influence), ("contrast", contrast)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; a weight must not be negative.")
        if game not in GAMES:
            raise ValueError(f"game is {game!r}; it must be one of {', '.join(GAMES)}.")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive.")
        if permutations < 1:
            raise ValueError(f"permutations is {permutations}; give at least 1.")
        self.influence, self.game, self.contrast = influence, game, contrast
        self.temperature, self.permutations = temperature, permutations

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """CE(z) and the unimodal losses, which are the model's own loss, the game, and C."""
        loss = cast("Tensor", outputs.loss)
        rows = torch.stack([*(outputs.present or {}).values()]).all(dim=0).nonzero()[:, 0]
        if self.influence > 0 and len(outputs.embeddings or {}) > 1 and len(rows) > 1:
            orders = torch.stack([torch.randperm(len(rows)) for _ in range(self.permutations)])
            game = self.play(model, outputs, rows, orders.to(rows.device))
            loss = loss + self.influence * game * (len(rows) / len(labels))
        if self.contrast > 0:
            h, y = stacked_embeddings(outputs, labels)
            loss = loss + self.contrast * contrastive_loss(h, y, self.temperature)
        return loss

    def play(
        self, model: FusionForClassification, outputs: FusionOutput, rows: Tensor, orders: Tensor
    ) -> Tensor:
        """sum_m D_m, a scalar.

        Args:
            model: whose fused head answers.
            outputs: of the batch.
            rows: (n,) indices of the rows that have every modality.
            orders: (P, n) permutations of them.
        """
        h = {name: value[rows] for name, value in (outputs.embeddings or {}).items()}
        z = {name: value[rows] for name, value in (outputs.unimodal_logits or {}).items()}
        p = cast("Tensor", outputs.logits)[rows].repeat(len(orders), 1)
        k, total = GAMES[self.game], p.new_zeros(())
        for name in h:
            others = [other for other in h if other != name]
            if k == 1:
                total = total - divergence(p, permuted_answer(model, h, z, name, orders, learning=h))
                continue
            total = total - divergence(p, permuted_answer(model, h, z, name, orders, learning=[name]))
            if k == -1:
                total = total + divergence(p, permuted_answer(model, h, z, name, orders, learning=others))
        return total


def permuted_answer(
    model: FusionForClassification,
    embeddings: Mapping[str, Tensor],
    unimodal_logits: Mapping[str, Tensor],
    name: str,
    orders: Tensor,
    learning: Sequence[str] | Mapping[str, Tensor],
) -> Tensor:
    """The logits (P n, C) of the fused head where one modality comes from other rows.

    Args:
        model: whose fused head answers.
        embeddings: (n, D_m) by modality.
        unimodal_logits: (n, C) by modality.
        name: the modality that is permuted.
        orders: (P, n) permutations.
        learning: the modalities that have a gradient.
    """
    same = torch.arange(orders.shape[1], device=orders.device).repeat(len(orders))

    def of(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            other: (value if other in learning else value.detach())[
                orders.flatten() if other == name else same
            ]
            for other, value in values.items()
        }

    everyone = torch.ones(len(same), dtype=torch.bool, device=same.device)
    # Evaluation mode: the additional runs must not change batch statistics.
    model.fusion.eval()
    logits = model.fuse(of(embeddings), of(unimodal_logits), dict.fromkeys(embeddings, everyone))
    model.fusion.train()
    return logits


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """The mean over the rows of the Jensen-Shannon divergence of softmax of logits (N, C), in nats."""
    log_p, log_q = one.float().log_softmax(dim=1), other.float().log_softmax(dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(dim=1).mean()


def stacked_embeddings(outputs: FusionOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings (N, D) of all modalities, one under another, in the rows that have them, and their labels (N,)."""
    embeddings = outputs.embeddings or {}
    width = max(value.shape[1] for value in embeddings.values())
    rows = {name: rows_of(outputs, name) for name in embeddings}
    h = [
        functional.pad(value[rows[name]].float(), (0, width - value.shape[1]))
        for name, value in embeddings.items()
    ]
    return torch.cat(h), torch.cat([labels[index] for index in rows.values()])


def contrastive_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The mean over all pairs of one class of -log(e^s / (e^s + sum over the other classes of e^s')), a scalar.

    Args:
        embeddings: (N, D), which are normalized.
        labels: (N,) class indices.
        temperature: by which the cosines s are divided.

    Returns:
        Zero, with a gradient of zero, where no two rows are of one class, or all are.
    """
    h = functional.normalize(embeddings, dim=1)
    cosines = h @ h.T / temperature
    same = labels[:, None] == labels
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if not bool(pairs.any()) or bool(same.all()):
        return embeddings.sum() * 0.0
    against = cosines.masked_fill(same, -torch.inf).logsumexp(dim=1, keepdim=True)
    return functional.softplus(against - cosines)[pairs].mean()
