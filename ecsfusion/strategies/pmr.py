"""PMR: the modality that is behind is drawn towards its class means."""

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
    """Prototypical modality rebalance (Fan et al. 2023, arXiv 2211.07089).

        c_m^k <- momentum c_m^k + (1 - momentum) mean of h_m over class k
        sim_m = -|h_m - c_m^k| for each class k (not squared),   PCE_m = CE(sim_m, y),   H_m = entropy of softmax(sim_m)
        s_m = mean over the batch of softmax(sim_m)[y],   r = s_1 / s_2
        b_1 = clip(1/r - 1, 0, 1),   b_2 = clip(r - 1, 0, 1)
        L = CE(z) + alpha (b_1 PCE_1 + b_2 PCE_2) - mu (b_2 H_1 + b_1 H_2), the last term early in training only

    The prototypes c_m^k are computed after every evaluation (the authors: every epoch), from rows of the training set,
    at most as many as are evaluated. Before the first one the loss is CE(z).

    Args:
        modalities: two of them.
        alpha: weight of the prototype losses.
        momentum: weight of the former prototypes.
        mu: weight of the entropies.
        entropy_share: of the budget in which the entropies count.
    """

    name = "pmr"
    stages = "joint"
    auxiliary_weight = 0.0
    only_two = "a modality is compared with the other one"
    only_single_label = "a prototype belongs to one class"
    needs_evaluations = "prototypes are computed after each"
    has_own_loss = True

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
        """(C, D_m) by modality; NaN for classes that were never seen."""

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Move the prototypes."""
        self.state["progress"] = trainer.state.global_step / max(trainer.state.max_steps, 1)
        rows = trainer.evaluate_training_rows()
        for name in self.modalities:
            there = rows.present[name]
            embeddings = torch.from_numpy(rows.embeddings[name])[there].float()
            self.update(name, class_means(embeddings, rows.labels[there], trainer.model.config.num_labels))

    def update(self, name: str, means: Tensor) -> None:
        """Move the prototypes of a modality towards means (C, D_m), of which NaN rows say nothing."""
        old = self.prototypes.get(name, torch.full_like(means, torch.nan))
        moved = self.momentum * old + (1 - self.momentum) * means
        self.prototypes[name] = torch.where(means.isnan(), old, torch.where(old.isnan(), means, moved))

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor | None:
        """CE(z) and what the prototypes add to it."""
        if not self.prototypes:
            return None
        scores, errors, entropies = [], [], []
        for name in self.modalities:
            similarity, target = self.similarities(outputs, labels, name)
            log_p = similarity.log_softmax(dim=1)
            p = log_p.detach().exp().gather(1, target[:, None])
            scores.append(torch.stack([p.sum(), p.new_tensor(float(len(p)))]))
            # Means over the batch: rows that lack the modality count as zeros.
            errors.append(functional.nll_loss(log_p, target, reduction="sum") / len(labels))
            entropies.append(-(log_p.exp() * log_p).sum() / len(labels))
        total = mean_over_processes(torch.stack(scores))
        first, second = self.coefficients(total[:, 0] / total[:, 1]).unbind()
        loss = cast("Tensor", outputs.loss) + self.alpha * (first * errors[0] + second * errors[1])
        if self.state["progress"] < self.entropy_share:
            loss = loss - self.mu * (second * entropies[0] + first * entropies[1])
        return loss

    def similarities(self, outputs: FusionOutput, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """sim_m (n, K) of the rows that have the modality, to the classes that have a prototype, and theirs (n,)."""
        embeddings = outputs.embeddings or {}
        prototypes = self.prototypes[name].to(labels.device)
        known = ~prototypes.isnan().any(dim=1)
        rows = rows_of(outputs, name)
        rows = rows[known[labels[rows]]]
        difference = embeddings[name][rows].float()[:, None] - prototypes[known]
        # The gradient of a distance of zero is zero, not NaN.
        squared = difference.square().sum(dim=2)
        distance = torch.where(squared > 0, squared, 1.0).sqrt() * (squared > 0)
        return -distance, (known.cumsum(0) - 1)[labels[rows]]

    def coefficients(self, scores: Tensor) -> Tensor:
        """b_m (2,) of scores s_m (2,); zeros where one is not known."""
        ratio = scores / scores.flip(0)
        return (1 / ratio - 1).nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """With the prototypes."""
        return {**super().state_dict(), "prototypes": {m: to_json(c) for m, c in self.prototypes.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """With the prototypes."""
        self.prototypes = {name: from_json(saved) for name, saved in state["prototypes"].items()}
        super().load_state_dict({key: value for key, value in state.items() if key != "prototypes"})


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Means (C, D) of embeddings (N, D) by class; NaN for a class without rows."""
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / labels.bincount(minlength=num_classes)[:, None]
