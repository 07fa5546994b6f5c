"""The outputs of one pass over an evaluation set, from which the measurement and the readout are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecsfusion.data.groups import GROUPS
from ecsfusion.evaluation.embeddings import HeldEmbeddings
from ecsfusion.model.names import FUSED
from ecsfusion.model.readout import Readout

MIN_ROWS_PER_CLASS = 4


@dataclass
class Evaluation:
    """The outputs of the model on an evaluation set, row by row.

    Attributes:
        heads: logits (N, C) by head; NaN in rows that lack the modality of the head.
        embeddings: (N, D_m) by modality, on the device that made them; NaN in rows that lack the modality.
        present: which rows have a modality, (N,) bool, by modality.
        labels: (N,) class indices, or the labels of another problem type.
        excluded_from_readout: modalities whose own heads get no weight in the readout in rows that have others; see
            `Rule.excluded_from_readout`. With "fused" the fused head gets none.
        groups: (N,) int64, equal for rows of one source such as a subject; None where rows stand alone.
    """

    heads: dict[str, Tensor]
    embeddings: Mapping[str, Tensor]
    present: dict[str, Tensor]
    labels: Tensor
    excluded_from_readout: tuple[str, ...] = ()
    groups: Tensor | None = None

    @classmethod
    def from_outputs(cls, outputs: Any, labels: Any, embedding_dims: Mapping[str, int]) -> Evaluation:
        """Make the record from the gathered outputs of the model: logits, unimodal logits, embeddings, present.

        A modality that was not run, because the set lacks it, is missing in all rows.

        Args:
            outputs: the four outputs, as arrays (the embeddings perhaps as `HeldEmbeddings`), and perhaps a mapping
                that holds the groups under `GROUPS`; further ones are ignored.
            labels: of all N rows.
            embedding_dims: D_m by modality of the model.
        """
        # The types that transformers declares, an array or a tuple of one array, do not fit these outputs.
        logits, run_logits, run_embeddings, run_present = outputs[:4]
        unimodal_logits, present = {}, {}
        for name in embedding_dims:
            is_run = name in run_logits
            unimodal_logits[name] = run_logits[name] if is_run else np.full_like(logits, np.nan)
            present[name] = run_present[name] if is_run else np.zeros(len(logits), dtype=bool)
        heads = {FUSED: logits, **unimodal_logits}
        embeddings = run_embeddings
        if not isinstance(embeddings, HeldEmbeddings):
            embeddings = HeldEmbeddings(embedding_dims)
            embeddings.add({name: torch.from_numpy(values) for name, values in run_embeddings.items()})
        groups = next(
            (each[GROUPS] for each in outputs[4:] if isinstance(each, Mapping) and GROUPS in each), None
        )
        return cls(
            {name: torch.from_numpy(values) for name, values in heads.items()},
            embeddings,
            {name: torch.from_numpy(values) for name, values in present.items()},
            torch.from_numpy(labels),
            groups=None if groups is None else torch.from_numpy(groups),
        )

    def embedded(self, name: str, rows: np.ndarray | Tensor) -> Tensor:
        """The embeddings (n, D_m) of a modality in these rows, on the device that they are on.

        Args:
            name: the modality.
            rows: (n,) increasing indices, or (N,) bool.
        """
        values = torch.as_tensor(self.embeddings[name])
        index = torch.as_tensor(rows)
        number = int(index.sum()) if index.dtype == torch.bool else len(index)
        return values if number == len(values) else values[index]

    def check_finite(self) -> None:
        """Check that no head has NaN in a row that has its modality.

        Raises:
            ValueError: names the first head whose logits are NaN, and the first such row.
        """
        for name in [*self.present, FUSED]:
            bad = self.heads[name].isnan().flatten(1).any(dim=1) & self.present.get(name, torch.tensor(True))
            if bool(bad.any()):
                raise ValueError(
                    f"the logits of {name} are NaN in {int(bad.sum())} of {len(bad)} rows of the evaluation set, first "
                    f"in row {int(bad.nonzero()[0, 0])}; look at the inputs there, or, if all rows have it, at the "
                    "weights: lower the learning rate."
                )

    def check_complete_rows(self) -> None:
        """Check that some row has every modality.

        Raises:
            ValueError: none has; the message counts the rows of each modality.
        """
        if bool(torch.stack(list(self.present.values())).all(dim=0).any()):
            return
        counts = ", ".join(f"{int(mask.sum())} have {name}" for name, mask in self.present.items())
        raise ValueError(
            f"no row of the probe set (the first evaluation set) has every modality (of {len(self.labels)}, {counts}); "
            "a probe needs such rows. Give them in the first evaluation set; others may lack a modality."
        )

    def group_numbers(self, rows: Any = slice(None)) -> Tensor | None:
        """The group of each of these rows as a number from 0, (n,) int64; None where rows stand alone.

        Where all rows are of one group they stand alone, too: there is no other group to judge a readout on.
        """
        if self.groups is None:
            return None
        numbers = self.groups[rows].unique(return_inverse=True)[1]
        return numbers if len(numbers) and int(numbers.max()) > 0 else None

    def count(self, rows: Any = slice(None)) -> int:
        """How many of these rows are independent of each other: their groups, or the rows where they stand alone."""
        numbers = self.group_numbers(rows)
        return len(self.labels[rows]) if numbers is None else int(numbers.max()) + 1

    def probed_rows(self, max_rows: int | None, seed: int) -> np.ndarray:
        """The rows (n,) that a probe decomposes: at most `max_rows` of those with every modality, drawn by the seed."""
        complete = torch.stack(list(self.present.values())).all(dim=0).nonzero()[:, 0].numpy()
        if max_rows is None or len(complete) <= max_rows:
            return complete
        return np.sort(np.random.default_rng(seed).choice(complete, max_rows, replace=False))

    def fit_readout(self, problem_type: str) -> Readout:
        """The calibrated combination of the heads, fitted on these rows."""
        return Readout.fit(
            self.heads,
            self.labels,
            self.present,
            problem_type,
            excluded_from_readout=self.excluded_from_readout,
            groups=self.group_numbers(),
        )


def check_enough_rows(number: int, num_classes: int, clusters: int | None) -> None:
    """Check that a probe set has enough rows for decisions.

    Args:
        number: of the rows that are decomposed.
        num_classes: of the model.
        clusters: the number of clusters per modality, if the user chose one.

    Raises:
        ValueError: there are too few.
    """
    needed = max(MIN_ROWS_PER_CLASS * num_classes, clusters or min(max(num_classes, 12), 20))
    if number < needed:
        raise ValueError(
            f"the probe set (the first evaluation set) has {number} usable rows, too few to decide on; give at "
            f"least {needed}, {MIN_ROWS_PER_CLASS} per class and one per cluster, or train jointly, with "
            "strategy='joint-auxiliary'."
        )


def check_probe_set(
    labels: np.ndarray, names: Mapping[int, str], clusters: int | None, num_rows: int | None = None
) -> None:
    """Check that a probe set has enough rows of every class for decisions.

    Args:
        labels: the class labels (N,) of the rows that are decomposed.
        names: the names of all classes, by index.
        clusters: the number of clusters per modality, if the user chose one.
        num_rows: of the probe set; None for N.

    Raises:
        ValueError: there are too few rows, or a class has no row.
    """
    check_enough_rows(len(labels), len(names), clusters)
    classes = set(np.unique(labels).tolist())
    missing = [f"{index} ({names[index]})" for index in sorted(names) if index not in classes]
    if missing:
        among = (
            ""
            if num_rows in (None, len(labels))
            else f" among the {len(labels)} of {num_rows} that a probe reads (with every modality, at most probe_rows)"
        )
        raise ValueError(
            f"the probe set (the first evaluation set) has no row of class {', '.join(missing)}{among}; give rows of "
            "every class, for instance by a stratified split, or train jointly, with strategy='joint-auxiliary'."
        )
