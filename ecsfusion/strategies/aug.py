"""AUG: the modality that is behind gets more classifiers, each of which learns what those before it leave open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, mean_over_processes, rows_of

if TYPE_CHECKING:
    from typing import Any

    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.model.fused_heads import BoostedHead
    from ecsfusion.modeling import FusionForClassification, FusionOutput


class AUG(Strategy):
    """Give the modality that is behind more classifiers, which learn the residual of the others (AUG, 2025).

    Rethinking multimodal learning from the perspective of mitigating classification ability disproportion (sustained
    boosting), Jiang et al., NeurIPS 2025, arXiv 2502.20120:

        F_m = f_m1 + ... + f_mK,   f_mk = W relu(V_mk h_m),   z = mean of the F_m   (the fused head "boosted")
        L = sum_m L_m,   L_m = CE(F_m, y) as long as K = 1, then
        L_m = CE(F_m, y) + CE(F_m - f_mK, y) + mean of (1 - residual q) CE(f_mK, y),   q = softmax(F_m - f_mK)[y]

    q has no gradient. At the first evaluation and then `checks` times in a run s_m is the mean of softmax(F_m)[y] over
    the training batches since the evaluation before. The modality with the smallest s_m gets one more classifier
    (K + 1) if the largest s_m is more than 1 + tolerance times as large.

    The factors of the three errors, `residual`, `checks`, `tolerance` and the shared W are those of the authors' code.
    There each modality takes an optimizer step of its own in a batch, which moves W twice, a new classifier begins with
    larger weights, and the weight of each F_m in z is tuned. With more than two modalities, which that code does not
    have, the rule is the one above.

    The unimodal heads of the model are not trained: a modality's own answer is F_m.

    Args:
        modalities: names of the modalities of the model.
        residual: how much less a new classifier learns of a row that those before it get right.
        checks: how often it is checked which modality is behind, evenly over the budget.
        tolerance: how much more the best modality may score.

    Raises:
        ValueError: an option that is out of its range.
    """

    name = "aug"
    stages = "joint"
    auxiliary_weight = 0.0
    only_single_label = "a modality's score is the probability of the row's class"
    needs_evaluations = "classifiers are added after them"
    only_fusion = "boosted"
    not_sharded = "it adds classifiers while it trains"
    has_own_loss = True
    loss_trains_heads = False

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        residual: float = 0.5,
        checks: int = 10,
        tolerance: float = 0.01,
    ) -> None:
        super().__init__(modalities)
        if not 0.0 <= residual <= 1.0:
            raise ValueError(f"residual is {residual}; it must be in [0, 1].")
        if checks < 1:
            raise ValueError(f"checks is {checks}; give at least 1.")
        if not tolerance >= 0:
            raise ValueError(f"tolerance is {tolerance}; it must not be negative.")
        self.residual, self.checks, self.tolerance = residual, checks, tolerance
        self.state = {
            # The number of checks, the modality that gets a classifier before the next step, and for each modality
            # the sum of softmax(F_m)[y] and the number of rows since the last evaluation.
            "done": 0,
            "pending": None,
            "scores": {name: [0.0, 0.0] for name in self.modalities},
        }
        self._step: Tensor | None = None
        """(M, 2): sums and rows of the present optimizer step, in this process."""

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add a classifier if an evaluation asked for it, and return the batch unchanged."""
        if self.state["pending"] is not None:
            head_of(model).add_classifier(self.state["pending"])
            self.state["pending"] = None
        return inputs

    def loss(self, model: FusionForClassification, outputs: FusionOutput, labels: Tensor) -> Tensor:
        """The sum of the L_m; a row that lacks a modality counts as zero for it."""
        embeddings = outputs.embeddings or {}
        if self._step is None:
            self._step = torch.zeros(len(self.modalities), 2, device=labels.device)
        # It is zero, and gives every part of the model that was run a gradient.
        total = 0.0 * cast("Tensor", outputs.loss)
        for index, name in enumerate(self.modalities):
            if name not in embeddings or not len(rows := rows_of(outputs, name)):
                continue
            scores, y = head_of(model).scores(name, embeddings[name][rows]), labels[rows]
            total = total + self.boosting_loss(model, scores, y) * (len(rows) / len(labels))
            p = torch.stack(scores).sum(dim=0).detach().float().softmax(dim=1).gather(1, y[:, None])
            self._step[index] += torch.stack([p.sum(), p.new_tensor(float(len(p)))])
        return total

    def boosting_loss(
        self, model: FusionForClassification, scores: Sequence[Tensor], labels: Tensor
    ) -> Tensor:
        """L_m of rows that have the modality, a scalar.

        Args:
            model: whose `head_loss` is the error.
            scores: f_mk (N, C) of the classifiers in use, the newest last.
            labels: (N,) class indices.
        """
        whole = model.head_loss(torch.stack(list(scores)).sum(dim=0), labels)
        if len(scores) == 1:
            return whole
        before, newest = torch.stack(list(scores[:-1])).sum(dim=0), scores[-1]
        q = before.detach().float().softmax(dim=1).gather(1, labels[:, None])[:, 0]
        errors = functional.cross_entropy(newest.float(), labels, reduction="none")
        return whole + model.head_loss(before, labels) + ((1.0 - self.residual * q) * errors).mean()

    def adjust_gradients(self, model: FusionForClassification) -> None:
        """Add the scores of this step, over all processes, to the state. Gradients are not changed."""
        if self._step is None:
            return
        for name, values in zip(self.modalities, mean_over_processes(self._step).tolist(), strict=True):
            self.state["scores"][name] = [
                a + b for a, b in zip(self.state["scores"][name], values, strict=True)
            ]
        self._step = None

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Choose the modality that gets a classifier, if a check is due."""
        scores = {name: total / rows for name, (total, rows) in self.state["scores"].items() if rows}
        self.state["scores"] = {name: [0.0, 0.0] for name in self.modalities}
        progress = trainer.state.global_step / max(trainer.state.max_steps, 1)
        # The first check is at the first evaluation.
        due = 1 + int(progress * self.checks + 1e-9)
        if due > self.state["done"]:
            self.state["done"] = due
            self.state["pending"] = self.behind(scores)

    def behind(self, scores: Mapping[str, float]) -> str | None:
        """The modality that gets one more classifier, from s_m by modality; None if none is behind."""
        if len(scores) < 2:
            return None
        last = min(scores, key=lambda name: scores[name])
        return last if max(scores.values()) > (1.0 + self.tolerance) * scores[last] else None


def head_of(model: FusionForClassification) -> BoostedHead:
    """The fused head, which holds the classifiers."""
    return cast("BoostedHead", model.fusion)
