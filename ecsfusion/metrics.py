"""Metrics of the `evaluate` library: the PID of embeddings, and the accuracy of each modality's head.

Both are made directly, such as `PIDMetric(("image", "audio"))`, so nothing is downloaded. Values are added batch by
batch or given at once, under the modality's name:

    metric = PIDMetric(("image", "audio"))
    metric.add_batch(image=image_embeddings, audio=audio_embeddings, references=labels)
    metric.compute()
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from ecsfusion.pid.estimate import fast_pids
from ecsfusion.pid.inputs import as_embeddings, class_labels, first_of_other_length

CITATION = """@article{bertschinger2014quantifying,
  title={Quantifying unique information},
  author={Bertschinger, Nils and Rauh, Johannes and Olbrich, Eckehard and Jost, J{\\"u}rgen and Ay, Nihat},
  journal={Entropy}, volume={16}, number={4}, pages={2161--2183}, year={2014}
}"""


class _PerModality(evaluate.Metric):
    """A metric with one matrix of floats per modality and integer references."""

    description = ""

    def __init__(self, modalities: Sequence[str], **options: Any) -> None:
        self.modalities = tuple(modalities)
        reserved = {"references", "predictions"} & set(self.modalities)
        if not self.modalities or len(set(self.modalities)) < len(self.modalities) or reserved:
            raise ValueError(
                f"modalities must be different names other than references and predictions, got {self.modalities}"
            )
        super().__init__(**options)

    def add_batch(self, **inputs: Any) -> None:
        """Add a batch, after checking it: see `evaluate.Metric.add_batch`.

        Args:
            **inputs: a matrix (n, D) per modality, by name, and `references`, (n,) class indices.

        Raises:
            TypeError: for values of the wrong type. The message names one of the inputs.
            ValueError: for inputs that are missing, of another shape or NaN.
        """
        super().add_batch(**self._checked(inputs))

    def compute(self, **inputs: Any) -> Any:
        """The metric of all inputs given here or added before: see `evaluate.Metric.compute`.

        Args:
            **inputs: as in `add_batch`, or none of them if they were added before; and options of the metric.

        Raises:
            TypeError: as in `add_batch`.
            ValueError: as in `add_batch`.
        """
        return super().compute(**self._checked(inputs))

    def _checked(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with matrices as float64 arrays and references as int64; other entries are not changed."""
        names = (*self.modalities, "references")
        missing = [name for name in names if inputs.get(name) is None]
        # All of them were added before.
        if len(missing) == len(names):
            return inputs
        if missing:
            raise ValueError(f"{missing[0]} is missing; give {', '.join(names)}")
        rows = {name: self._matrix(inputs[name], name) for name in self.modalities}
        sizes = {name: len(matrix) for name, matrix in rows.items()}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"{', '.join(sizes)} must have the same rows, at least one, got {sizes} rows")
        try:
            labels = class_labels(inputs["references"], sizes[self.modalities[0]], torch.device("cpu"), None)
        except (TypeError, ValueError) as error:
            raise type(error)(f"references: {error}") from error
        if labels.ndim != 1:
            raise ValueError(f"references must have the shape (N,), got {tuple(labels.shape)}")
        return {**inputs, **rows, "references": labels.numpy()}

    def _matrix(self, value: Any, name: str) -> np.ndarray:
        if isinstance(value, (list, tuple)):
            try:
                value = np.asarray(value)
            except ValueError as error:
                # The rows have different lengths.
                row = first_of_other_length(value)
                where = "" if row is None else f", first in row {row}"
                raise ValueError(f"{name} is no matrix ({error}){where}; give rows of one length") from error
        # float32 would not tell apart what is far from zero, such as times.
        matrix = as_embeddings(value, name).cpu().double().numpy()
        if np.isnan(matrix).any():
            raise ValueError(
                f"{name} holds NaN, first in row {int(np.isnan(matrix).any(-1).argmax())}; remove such rows"
            )
        return matrix

    def _info(self) -> evaluate.MetricInfo:
        matrix = datasets.Sequence(datasets.Value("float64"))
        features = {**dict.fromkeys(self.modalities, matrix), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.description,
            citation=CITATION,
            inputs_description=f"{', '.join(self.modalities)}: (N, D) floats; references: (N,) class indices",
            features=datasets.Features(features),
        )


def _narrow(matrix: np.ndarray) -> np.ndarray:
    """A float64 matrix as float32, where that holds all of its values."""
    with np.errstate(over="ignore"):
        narrow = matrix.astype(np.float32)
    return narrow if (narrow == matrix).all() else matrix


class PIDMetric(_PerModality):
    """Corrected partial information decomposition of two or more modalities' embeddings (see `fast_pid`)."""

    description = "What each modality's embeddings know about the label: alone, both, only together; in bits."

    def _compute(self, references: Sequence[int], **inputs: Any) -> dict[str, Any]:
        """The values by name, as `PID.to_dict`, for two modalities; for more, such dictionaries by pair.

        Other inputs than the embeddings are options of `fast_pids`.
        """
        embeddings = {name: _narrow(self._matrix(inputs.pop(name), name)) for name in self.modalities}
        pids = {name: pid.to_dict() for name, pid in fast_pids(embeddings, references, **inputs).items()}
        return next(iter(pids.values())) if len(pids) == 1 else pids


class ModalityAccuracy(_PerModality):
    """Accuracy of the head of each modality, from its logits (N, C)."""

    description = "Share of the samples whose largest logit is the label's, for each modality."

    def _compute(self, references: Sequence[int], **logits: Any) -> dict[str, float]:
        """The accuracy of each modality as "accuracy_NAME"."""
        return {
            f"accuracy_{name}": float((np.asarray(logits[name]).argmax(-1) == np.asarray(references)).mean())
            for name in self.modalities
        }
