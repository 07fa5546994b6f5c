"""Diagnosing & Re-learning: an encoder that has memorized training rows is moved towards its initial weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ecsfusion.pid.discretize import Discretizer
from ecsfusion.strategies.strategy import Strategy, TrainerOfStrategy, mean_over_processes

if TYPE_CHECKING:
    from ecsfusion.evaluation.outputs import Evaluation
    from ecsfusion.modeling import FusionForClassification


class DiagnosingRelearning(Strategy):
    """Move each encoder back towards its initial weights, by how much it has memorized its training rows.

    Diagnosing & Re-learning, Wei et al. 2024, arXiv 2407.09705. At the first evaluation after each of some
    shares of the budget, for every modality:

        p_m = purity of k-means with C clusters of h_m, on training rows and on the evaluation set
        a_m = tanh(strength |p_m(training) - p_m(evaluation)|)
        theta_m <- a_m theta_m(initial) + (1 - a_m) theta_m, the parameters of the encoder

    The encoders are changed before the next step, so that an evaluation and its checkpoint have the same weights. At
    most as many training rows are used as the evaluation set has. The k-means is that of the probe (scaled rows, C
    principal directions, a fixed seed); the authors scale each feature to [-1, 1] instead.

    Args:
        modalities: names of the modalities of the model.
        shares: ascending shares of the budget. The default is the authors' epochs 20, 40 and 60 of 90.
        strength: factor of the difference between the purities.

    Raises:
        ValueError: shares that are not ascending or not between 0 and 1, or a strength that is not positive.
    """

    name = "diagnosing-relearning"
    stages = "joint"
    auxiliary_weight = 0.0
    only_single_label = "the purity of a cluster is that of its class"
    needs_evaluations = "it compares the training rows with those of the evaluation set"
    resets = True
    not_sharded = "it moves whole weights towards the initial ones"

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        shares: Sequence[float] = (20 / 90, 40 / 90, 60 / 90),
        strength: float = 3.0,
    ) -> None:
        super().__init__(modalities)
        if not shares or list(shares) != sorted(set(shares)) or not 0.0 < shares[0] <= shares[-1] < 1.0:
            raise ValueError(
                f"shares is {list(shares)}; give ascending shares of the budget, between 0 and 1."
            )
        if not strength > 0:
            raise ValueError(f"strength is {strength}; it must be positive.")
        self.shares, self.strength = tuple(shares), strength
        self.state = {"done": 0, "pending": {}}

    def begin_stage(self, trainer: TrainerOfStrategy) -> None:
        """Remember the trainer, which can load the initial weights."""
        self._trainer = trainer

    def after_evaluation(self, trainer: TrainerOfStrategy, evaluation: Evaluation) -> None:
        """Compute the coefficients a_m, if another of the shares of the budget has been reached."""
        progress = trainer.state.global_step / max(trainer.state.max_steps, 1)
        due = sum(progress >= share - 1e-9 for share in self.shares)
        if due <= self.state["done"]:
            return
        self.state["done"] = due
        training = trainer.evaluate_training_rows()
        classes, device = trainer.model.config.num_labels, trainer.args.device
        purities = torch.tensor(
            [
                [purity_of(part, name, classes, device) for name in self.modalities]
                for part in (training, evaluation)
            ]
        )
        strengths = self.coefficients(mean_over_processes(purities))
        self.state["pending"] = dict(zip(self.modalities, strengths.tolist(), strict=True))

    def coefficients(self, purities: Tensor) -> Tensor:
        """The coefficients a_m (M,) for purities (2, M); zeros where a purity is NaN."""
        return torch.tanh(self.strength * (purities[0] - purities[1]).abs()).nan_to_num(0.0)

    def prepare_inputs(self, model: FusionForClassification, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the encoders if an evaluation asked for it, and return the batch unchanged."""
        if self.state["pending"]:
            move_towards_initial_weights(model, self._trainer.load_folder("initial"), self.state["pending"])
            self.state["pending"] = {}
        return inputs


@torch.no_grad()
def move_towards_initial_weights(
    model: FusionForClassification, initial: FusionForClassification, strengths: Mapping[str, float]
) -> None:
    """Move each encoder by its share of the way to its initial weights."""
    for name, strength in strengths.items():
        initial_parameters = dict(initial.encoders[name].named_parameters())
        for key, parameter in model.encoders[name].named_parameters():
            parameter.lerp_(initial_parameters[key].to(parameter), strength)


def purity_of(evaluation: Evaluation, name: str, num_classes: int, device: torch.device) -> float:
    """The purity of a modality's clusters over the rows that have it; NaN if there is no such row."""
    rows = evaluation.present[name]
    if not bool(rows.any()):
        return math.nan
    embeddings = evaluation.embedded(name, rows).float().to(device)
    clusters = Discretizer.fit(embeddings, num_classes, num_components=num_classes).assign(embeddings)
    return purity(clusters, evaluation.labels[rows].to(device), num_classes)


def purity(clusters: Tensor, labels: Tensor, num_classes: int) -> float:
    """The share of rows (N,) that belong to the most frequent class of their cluster."""
    pairs = (clusters * num_classes + labels).bincount(minlength=(int(clusters.max()) + 1) * num_classes)
    return float(pairs.reshape(-1, num_classes).amax(dim=1).sum() / len(labels))
