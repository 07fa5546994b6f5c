"""PMR: the embeddings of the modality that is behind are drawn towards the means of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, mean_over_processes, rows_of
from ecsfusion.strategies.tensors import from_json, to_json

if TYPE_CHECKING:
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class PMR(Strategy):
    """Draw the embeddings of the modality that is behind towards the means of their classes (PMR, Fan et al. 2023).

    Prototypical modality rebalance, arXiv 2211.07089:

        c_m^k <- momentum c_m^k + (1 - momentum) mean of h_m over class k
        sim_m = -|h_m - c_m^k| for each class k (not squared),   PCE_m = CE(sim_m, y),   H_m = entropy of softmax(sim_m)
        s_m = mean over the batch of softmax(sim_m)[y],   r = s_1 / s_2
        b_1 = clip(1/r - 1, 0, 1),   b_2 = clip(r - 1, 0, 1)
        L = CE(z) + alpha (b_1 PCE_1 + b_2 PCE_2) - mu (b_2 H_1 + b_1 H_2), the last term early in training only

    The prototypes c_m^k are computed after every evaluation (the authors compute them after every epoch), from at most
    as many rows of the training set as the evaluation set has. Before the first evaluation the loss is CE(z).

    Args:
        modalities: names of the two modalities of the model.
        alpha: weight of the prototype losses.
        momentum: weight of the former prototypes when they are updated.
        mu: weight of the entropies.
        entropy_share: the share of the budget, from its start, in which the entropies are part of the loss.

    Raises:
        ValueError: more or fewer than two modalities, or an option that is out of its range.
    """

    name = "pmr"
    stages = "joint"
    auxiliary_weight = 0.0
    only_two = "a modality is compared with the other one"
    only_single_label = "a prototype belongs to one class"
    needs_evaluations = "prototypes are computed after each"
    has_own_loss = True
    loss_trains_heads = False

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        alpha: float = 1.0,
        momentum: float = 0.2,
        mu: float = 0.01,
        entropy_share: float = 0.1,
    ) -> None:
        super().__init__(modalities)
        for name, value in (("alpha", alpha), ("mu", mu)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; a weight must not be negative.")
        for name, value in (("momentum", momentum), ("entropy_share", entropy_share)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; it must be in [0, 1].")
        self.alpha, self.momentum, self.mu, self.entropy_share = alpha, momentum, mu, entropy_share
        self.state = {"progress": 0.0}
        self.prototypes: dict[str, Tensor] = {}
        """The prototypes (C, D_m) by modality; NaN for classes of which there was no row yet."""

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Update the prototypes from training rows."""
        self.state["progress"] = trainer.state.global_step / max(trainer.state.max_steps, 1)
        rows = trainer.evaluate_training_rows()
        for name in self.modalities:
            mask = rows.present[name]
            # On the CPU sums have one order, so that a run that is resumed has the same prototypes.
            embeddings = rows.embedded(name, mask).float().cpu()
            self.update(name, class_means(embeddings, rows.labels[mask], trainer.model.config.num_labels))

    def update(self, name: str, means: Tensor) -> None:
        """Move the prototypes of a modality towards means (C, D_m). NaN rows of the means are left out."""
        old = self.prototypes.get(name, torch.full_like(means, torch.nan))
        moved = self.momentum * old + (1 - self.momentum) * means
        self.prototypes[name] = torch.where(means.isnan(), old, torch.where(old.isnan(), means, moved))

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor | None:
        """CE(z), the prototype losses and the entropies; None, which keeps CE(z), before there are prototypes."""
        if not self.prototypes:
            return None
        scores, errors, entropies = [], [], []
        for name in self.modalities:
            similarity, target = self.similarities(outputs, labels, name)
            log_p = similarity.log_softmax(dim=1)
            p = log_p.detach().exp().gather(1, target[:, None])
            scores.append(torch.stack([p.sum(), p.new_tensor(float(len(p)))]))
            # The means are over all rows of the batch; a row that lacks the modality counts as zero.
            errors.append(functional.nll_loss(log_p, target, reduction="sum") / len(labels))
            entropies.append(-(log_p.exp() * log_p).sum() / len(labels))
        total = mean_over_processes(torch.stack(scores))
        first, second = self.coefficients(total[:, 0] / total[:, 1]).unbind()
        loss = cast("Tensor", outputs.loss) + self.alpha * (first * errors[0] + second * errors[1])
        if self.state["progress"] < self.entropy_share:
            loss = loss - self.mu * (second * entropies[0] + first * entropies[1])
        return loss

    def similarities(self, outputs: FusionOutput, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The similarities of embeddings to the prototypes, and which prototype is that of the row's class.

        Args:
            outputs: of the model, for a batch of B rows.
            labels: (B,) class indices.
            name: the modality.

        Returns:
            sim_m (n, K) of the n rows that have the modality and whose class has a prototype, to the K prototypes; and
            the index (n,) of the prototype of each row's class.
        """
        embeddings = outputs.embeddings or {}
        prototypes = self.prototypes[name].to(labels.device)
        known = ~prototypes.isnan().any(dim=1)
        rows = rows_of(outputs, name)
        rows = rows[known[labels[rows]]]
        difference = embeddings[name][rows].float()[:, None] - prototypes[known]
        squared = difference.square().sum(dim=2)
        # The square root of zero has no finite gradient, so a distance of zero is made without it.
        distance = torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
        return -distance, (known.cumsum(0) - 1)[labels[rows]]

    def coefficients(self, scores: Tensor) -> Tensor:
        """The weights b_m (2,) for scores s_m (2,); zeros if a score is NaN."""
        ratio = scores / scores.flip(0)
        return (1 / ratio - 1).nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The state and the prototypes."""
        return {**super().state_dict(), "prototypes": {m: to_json(c) for m, c in self.prototypes.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state and the prototypes."""
        self.prototypes = {name: from_json(saved) for name, saved in state["prototypes"].items()}
        super().load_state_dict({key: value for key, value in state.items() if key != "prototypes"})


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The means (C, D) of embeddings (N, D) over the rows of each class; NaN for a class without rows."""
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / labels.bincount(minlength=num_classes)[:, None]
