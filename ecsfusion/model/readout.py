"""The readout: a calibrated combination of all heads of a model, the fused one and one per modality.

The heads' log-probabilities are weighed and added, and the sum is normalized (a logarithmic opinion pool,
Genest and Zidek 1986; with one head it is temperature scaling, Guo et al. 2017, arXiv 1706.04599):

    p(y) proportional to prod_h softmax(z_h)[y] ** w_h,    w_h >= 0

A weight w_h is both the weight of a head beside others and its inverse temperature. In multi-label classification,
every label is combined by itself, as a choice between 0 and 1, and all labels share the weights. In regression the
combination is b + sum_h w_h z_h. The weights are fitted on a validation set (see `ecsfusion.model.readout_weights`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ecsfusion.data.values import check_values
from ecsfusion.model.names import FUSED
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL, check_problem_type
from ecsfusion.model.readout_weights import pool_opinions, weigh_predictions
from ecsfusion.model.rows import join_rows
from ecsfusion.pid.inputs import as_tensor, check_not_masked

MAX_PREDICTION = 1e100
"""Largest absolute prediction in regression: squares of larger ones overflow."""

MIN_LOG_PROBABILITY = -36.0
"""Lower bound of a class's log-probability under one head, so that infinite logits stay finite. exp(-36) is the
resolution of a float64 probability."""

MAX_MODALITIES_FOR_ALL_SUBSETS = 4
"""With more modalities, weights are fitted for all of them together and for each alone, and for no other subset."""


@dataclass(frozen=True)
class Readout:
    """Weights of the heads, for every set of heads that a row may have.

    The fused head is used in rows with all modalities. In other rows the heads of the row's modalities are combined,
    with weights that were fitted for this set. In a row with one modality, that is its own calibrated head. Where the
    heads of modalities were never trained, the calibrated fused head answers every row (`fused_head_alone`).

    Attributes:
        modalities: names of the unimodal heads.
        num_classes: C, the number of classes, labels or targets.
        fitted: weight per head, for each fitted set of heads.
        problem_type: see `ecsfusion.model.problem_types`.
        offsets: in regression, the C numbers that are added to the targets, for each fitted set of heads.
        prior: (C,) what is answered without any modality: the frequency of each class in the rows of the fit, where one
            more row of each class is counted; of each label; in regression the means of the targets. None in readouts
            of earlier versions.
    """

    modalities: tuple[str, ...]
    num_classes: int
    fitted: dict[frozenset[str], dict[str, float]]
    problem_type: str = SINGLE_LABEL
    offsets: dict[frozenset[str], list[float]] = field(default_factory=dict)
    prior: list[float] | None = None

    @classmethod
    def fit(
        cls,
        logits: Mapping[str, Tensor | np.ndarray],
        labels: Tensor | np.ndarray,
        present: Mapping[str, Tensor | np.ndarray] | None = None,
        problem_type: str = SINGLE_LABEL,
        subsets: bool = True,
        excluded_from_readout: Collection[str] = (),
        groups: Tensor | np.ndarray | None = None,
    ) -> Readout:
        """Fit the weights on validation samples that were not used for training.

        With the fused head among the heads, the weights are pulled towards half of its calibrated answer and half of
        the mean of the others, with the strength of `readout_weights.PULL` samples, because validation rows may be of
        other subjects than those of tomorrow. On these samples the combination is then never less accurate than the
        fused head, and its loss (cross-entropy) is never above that of the calibrated fused head. Without the fused
        head, and in regression, the loss (in regression the squared error) is never above that of the best single
        calibrated head. Where the accuracy of a combination without the fused head is below that of the most accurate
        head, which is usually a matter of a few samples, the weights are moved towards this head, as far as needed and
        as the bound on cross-entropy allows. Heads that lower the loss by less than (log N) / 2 nats over all N
        samples, or beside the fused head not at all, get the weight zero.

        With up to 4 modalities every subset of them is fitted; with more, all together and each alone. A set of
        heads is fitted on the rows that have all of its modalities, and left out if there is no such row.

        Args:
            logits: (N, C) per head; names of modalities, and "fused" for the fused head.
            labels: (N,) class indices, or labels as the problem type asks for. Not every class needs to occur.
            present: (N,) bool per modality, which rows have it; by default all. The logits of other rows are ignored.
            problem_type: see `ecsfusion.model.problem_types`.
            subsets: False to fit only the combination of all heads, for rows that have every modality.
            excluded_from_readout: modalities whose own heads get the weight zero in every set that has other heads
                (see `Rule.excluded_from_readout`). The combination's loss may then be above theirs. If these are all
                modalities, the fused head also answers rows that lack some. "fused" among them is a fused head that
                nothing has trained.
            groups: (N,) whole numbers, equal for rows of one source such as a subject. Rows of a group then count as
                one in the pull.

        Returns:
            The fitted readout.

        Raises:
            ValueError: an argument of a wrong shape or value; the message names it.
            TypeError: an argument of a wrong type; the message names it.
        """
        check_problem_type(problem_type)
        if isinstance(excluded_from_readout, str) or not isinstance(excluded_from_readout, Collection):
            raise TypeError(
                f"excluded_from_readout must be names of modalities, like ['image'], got {excluded_from_readout!r}."
            )
        labels = _as_tensor(labels, "labels")
        if not labels.ndim or not len(labels):
            raise ValueError(f"labels must have one entry per row, got the shape {tuple(labels.shape)}.")
        rows = _check_present(present, logits, len(labels))
        heads = _check_logits(logits, rows, problem_type)
        N, C = next(iter(heads.values())).shape[:2]
        targets = _check_targets(labels, N, C, problem_type)
        sources = None if groups is None else _check_groups(groups, N)
        modalities = tuple(name for name in heads if name != FUSED)
        fitted, offsets = {}, {}
        weights_alone: dict[bytes, dict[str, float]] = {}
        sets = _head_sets(modalities, with_fused=FUSED in heads) if subsets else [tuple(heads)]
        trusted = {*heads} - {*excluded_from_readout}
        only_fused = bool(modalities) and trusted == {FUSED}
        if only_fused:
            sets = [names for names in sets if FUSED in names]
        for names in sets:
            needed = modalities if FUSED in names else names
            # Where the fused head answers alone, it is calibrated on every row that it answers.
            join = np.logical_or if only_fused and names == (FUSED,) else np.logical_and
            chosen = join.reduce([rows[name] for name in needed]) if needed else np.ones(N, bool)
            if not chosen.any():
                continue
            weighed = [name for name in names if name not in excluded_from_readout] or names
            stacked = np.stack([heads[name][chosen] for name in weighed])
            share = 1.0 if sources is None else len(np.unique(sources[chosen])) / int(chosen.sum())
            if problem_type == REGRESSION:
                weights, offset = weigh_predictions(stacked, targets[chosen], share)
                offsets[frozenset(names)] = offset.tolist()
            else:
                # In multi-label classification, every label of every row is a sample of its own.
                flat = stacked.reshape(len(weighed), -1, stacked.shape[-1])
                reference = weighed.index(FUSED) if FUSED in weighed else None
                alone = weights_alone.setdefault(chosen.tobytes(), {})
                weights = pool_opinions(flat, targets[chosen].reshape(-1), reference, share, weighed, alone)
            weight = dict(zip(weighed, weights.tolist(), strict=True))
            fitted[frozenset(names)] = {name: weight.get(name, 0.0) for name in names}
        return cls(modalities, C, fitted, problem_type, offsets, prior_of(labels, C, problem_type))

    @property
    def fused_head_alone(self) -> bool:
        """Whether the fused head answers alone, also in rows that lack a modality: no other head was trained."""
        alone = frozenset([FUSED])
        return bool(self.modalities) and alone in self.fitted and all(FUSED in names for names in self.fitted)

    def weights(self, heads: Collection[str] | None = None) -> dict[str, float]:
        """The weight of each head in the combination of these heads.

        Args:
            heads: their names; by default all.

        Raises:
            ValueError: a set of heads with the fused one that was not fitted, or an unknown name.
        """
        if heads is None:
            return self.fitted[max(self.fitted, key=len)]
        names = frozenset(heads)
        if names in self.fitted:
            return self.fitted[names]
        if not names or not names <= set(self.modalities):
            raise ValueError(
                f"heads {sorted(names)} were not fitted together; the modalities are {self.modalities}."
            )
        # They were not fitted together: the (geometric) mean of the calibrated heads. If none of them was fitted at
        # all, because no row of the validation set had any of these modalities, the mean of the heads as they are.
        known = [name for name in self.modalities if name in names and frozenset([name]) in self.fitted]
        if not known:
            return dict.fromkeys(names, 1 / len(names))
        return {
            name: self.fitted[frozenset([name])][name] / len(known) if name in known else 0.0
            for name in self.modalities
            if name in names
        }

    @property
    def prior_or_even(self) -> list[float]:
        """What is answered without any modality, (C,); in readouts of earlier versions all classes alike."""
        even = {REGRESSION: 0.0, MULTI_LABEL: 0.5}.get(self.problem_type, 1 / self.num_classes)
        return self.prior or [even] * self.num_classes

    def heads_for(self, modalities: Collection[str], has_fused: bool = True) -> frozenset[str]:
        """The heads that answer a row, by the modalities that it has.

        Args:
            modalities: those of the row.
            has_fused: whether there is an answer of the fused head.
        """
        names = frozenset(modalities)
        if not has_fused:
            return names
        if len(names) == len(self.modalities) and any(FUSED in fitted for fitted in self.fitted):
            names |= {FUSED}
        return frozenset([FUSED]) if self.fused_head_alone and names not in self.fitted else names

    def offset(self, heads: Collection[str]) -> list[float]:
        """The C numbers that are added to the targets when these heads are combined in regression."""
        names = frozenset(heads)
        if names in self.offsets:
            return self.offsets[names]
        known = [self.offsets[key] for key in map(frozenset, zip(names)) if key in self.offsets]
        return np.mean(known, axis=0).tolist() if known else [0.0] * self.num_classes

    def __call__(
        self,
        logits: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | Collection[str] | None = None,
    ) -> Tensor:
        """Combine the heads.

        Args:
            logits: (B, C) per head. The fused head is used where all modalities are present, when it is the only head,
                or with `fused_head_alone`.
            present: the modalities to use, for all rows; or for each modality which rows have it, (B,) bool. By default
                all modalities with logits. With `fused_head_alone` its logits must be those without the others.

        Returns:
            (B, C), in float32 or the logits' wider type: log-probabilities of the classes; in multi-label
            classification the log-probability of each label; in regression the predictions.

        Raises:
            TypeError: logits that are no tensors by name, or `present` of another type.
            ValueError: different numbers of rows, a mask of another shape, an unknown head, a row without a head,
                or NaN in the logits of a row that has the modality.
        """
        if not isinstance(logits, Mapping) or not all(isinstance(z, Tensor) for z in logits.values()):
            raise TypeError("logits must be a mapping of a head's name to a tensor (B, C).")
        if isinstance(present, str) or not isinstance(present, Mapping | Collection | None):
            raise TypeError(f"present must be names of modalities, or masks by name, got {present!r}.")
        if len({len(z) if z.ndim else -1 for z in logits.values()}) > 1:
            raise ValueError(
                f"logits must have one row per sample, got { {n: tuple(z.shape) for n, z in logits.items()} }."
            )
        if not isinstance(present, Mapping):
            return self._combine(logits, present)
        names = [name for name in present if name in logits]
        for name in present:
            mask, some = present[name], next(iter(logits.values()), None)
            if (
                not isinstance(mask, Tensor)
                or mask.dtype != torch.bool
                or some is None
                or mask.shape != some.shape[:1]
            ):
                raise ValueError(f"present[{name!r}] must be one bool for each row of the logits.")
        if not names or not len(present[names[0]]):
            raise ValueError(
                "present and logits have no row or no modality in common; give at least one of each."
            )
        masks = torch.stack([present[name] for name in names], dim=1)
        if bool(masks.all()):
            return self._combine(logits, names)
        patterns, pattern_of_row = masks.unique(dim=0, return_inverse=True)
        parts, rows_of_parts = [], []
        for k, pattern in enumerate(patterns.tolist()):
            rows = (pattern_of_row == k).nonzero()[:, 0]
            modalities = [name for name, has_it in zip(names, pattern, strict=True) if has_it]
            parts.append(self._combine({name: z[rows] for name, z in logits.items()}, modalities))
            rows_of_parts.append(rows)
        return join_rows(parts, rows_of_parts)

    def _combine(self, logits: Mapping[str, Tensor], present: Collection[str] | None) -> Tensor:
        """The combination (B, C) for rows that have the same modalities."""
        names = {*logits} - {FUSED} if present is None else {*present}
        unknown = sorted(name for name in {*logits, *names} if name not in {*self.modalities, FUSED})
        if unknown or not names <= {*logits}:
            wrong = unknown[0] if unknown else min(names - {*logits})
            raise ValueError(
                f"there is no head for {wrong!r}: the readout has {[*self.modalities, FUSED]}, logits "
                f"{list(logits)}."
            )
        if names or present is not None:
            names = {*self.heads_for(names, FUSED in logits)}
        elif FUSED in logits and any(FUSED in fitted for fitted in self.fitted):
            names = {FUSED}
        if not names:
            raise ValueError("present and logits have no head in common; give at least one modality.")
        # A modality comes before the fused head, which its NaN reaches.
        heads = {
            name: log_probabilities(logits[name], name, self.problem_type, self.num_classes)
            for name in sorted(names, key=lambda name: (name == FUSED, name))
        }
        for name, head in heads.items():
            bad = head.detach().isnan().flatten(1).any(-1).nonzero()
            if len(bad):
                raise ValueError(
                    f"logits[{name!r}] holds NaN in {len(bad)} rows that have it; check its inputs and weights."
                )
        pooled = torch.zeros_like(next(iter(heads.values())))
        for name, weight in self.weights(names).items():
            pooled = pooled + weight * heads[name]
        if self.problem_type == REGRESSION:
            return pooled + pooled.new_tensor(self.offset(names))
        log_p = pooled.log_softmax(dim=-1)
        return log_p[..., 1] if self.problem_type == MULTI_LABEL else log_p

    def answers(self, logits: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """The answer to every row, also to rows without any modality, which get the prior.

        Args:
            logits: (B, C) by head.
            present: which rows have a modality, (B,) bool, by modality.

        Returns:
            (B, C) probabilities, or in regression predictions, in the type that the call returns.

        Raises:
            TypeError, ValueError: see the call.
        """
        regression = self.problem_type == REGRESSION
        some = torch.stack(list(present.values())).any(dim=0)
        rows = some.nonzero()[:, 0]
        parts, rows_of_parts = [], []
        if len(rows):
            part = {name: z[rows] for name, z in logits.items()}
            answers = self(part, {name: mask[rows] for name, mask in present.items()})
            parts, rows_of_parts = [answers if regression else answers.exp()], [rows]
        if len(rows) < len(some):
            rest = (~some).nonzero()[:, 0]
            kind = parts[0].dtype if parts else next(iter(logits.values())).dtype
            prior = torch.tensor(self.prior_or_even, dtype=kind, device=some.device)
            parts.append(prior.expand(len(rest), -1))
            rows_of_parts.append(rest)
        return join_rows(parts, rows_of_parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, which `from_dict` reads."""
        sets = sorted(self.fitted.values(), key=lambda weights: (-len(weights), list(weights)))
        values = {
            "modalities": list(self.modalities),
            "num_classes": self.num_classes,
            "problem_type": self.problem_type,
            "weights": [dict(weights) for weights in sets],
            "prior": self.prior,
        }
        if self.offsets:
            values["offsets"] = [self.offsets[frozenset(weights)] for weights in sets]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Readout:
        """The readout that `to_dict` wrote.

        Raises:
            ValueError: a key is missing, or a weight is no number from 0.
        """
        for key in ("modalities", "num_classes", "weights"):
            if key not in values:
                raise ValueError(f"values lacks {key!r}: it is not the dictionary of a Readout.")
        for weights in values["weights"]:
            for head, weight in weights.items():
                if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                    raise ValueError(
                        f"the weight of the head {head!r} in a readout is {weight!r}; give a number that is not "
                        "negative, or fit the readout again."
                    )
        sets = [frozenset(weights) for weights in values["weights"]]
        return cls(
            tuple(values["modalities"]),
            values["num_classes"],
            {names: dict(weights) for names, weights in zip(sets, values["weights"], strict=True)},
            values.get("problem_type", SINGLE_LABEL),
            dict(zip(sets, values["offsets"], strict=True)) if "offsets" in values else {},
            values.get("prior"),
        )


def expected_calibration_error(
    probabilities: Tensor | np.ndarray, labels: Tensor | np.ndarray, num_bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy: sum over bins of n_b / N * |accuracy_b - confidence_b|.

    Confidence is the largest probability; the bins (of equal width) are closed on the right. Guo et al.
    2017, arXiv 1706.04599, eq. 3.

    Args:
        probabilities: (N, C), rows that sum to 1.
        labels: (N,) class indices.
        num_bins: number of bins.

    Returns:
        The error, between 0 and 1.

    Raises:
        ValueError: no bin, probabilities of another shape or whose rows do not sum to 1, or labels that do not fit.
        TypeError: no numbers.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    p = _as_tensor(probabilities, "probabilities").to(torch.float64)
    if (
        p.ndim != 2
        or not len(p)
        or not torch.allclose(p.sum(dim=1), torch.ones(len(p), dtype=p.dtype), atol=1e-2)
    ):
        raise ValueError(f"probabilities must be (N, C) with rows that sum to 1, got shape {tuple(p.shape)}.")
    targets = _check_targets(labels, len(p), p.shape[1], SINGLE_LABEL)
    confidence, predicted = p.max(dim=1)
    correct = (predicted == torch.from_numpy(targets)).double()
    bins = (confidence * num_bins).ceil().clamp(1, num_bins).long() - 1
    gap = torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, correct - confidence)
    return float(gap.abs().sum() / len(p))


def log_probabilities(logits: Tensor, name: str, problem_type: str, num_classes: int | None = None) -> Tensor:
    """The values of a head that are weighed.

    Returns:
        The log softmax (N, C); in multi-label classification the log-probabilities of 0 and 1, (N, C, 2); in regression
        the predictions as they are. Log-probabilities are bounded from below, and infinite logits count as very large.
    """
    if logits.ndim != 2 or (num_classes is not None and logits.shape[1] != num_classes):
        wanted = "C" if num_classes is None else num_classes
        raise ValueError(f"logits[{name!r}] must have shape (N, {wanted}), got {tuple(logits.shape)}.")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if problem_type == REGRESSION:
        return wide
    finite = wide.nan_to_num(nan=torch.nan, posinf=1e30, neginf=-1e30)
    if problem_type == MULTI_LABEL:
        log_p = torch.stack([F.logsigmoid(-finite), F.logsigmoid(finite)], dim=-1)
    else:
        log_p = finite.log_softmax(dim=-1)
    return log_p.clamp_min(MIN_LOG_PROBABILITY)


def _as_tensor(values: Any, name: str) -> Tensor:
    """`values` detached on the CPU; raises TypeError or ValueError with `name` in it."""
    check_not_masked(values, name)
    try:
        is_array = isinstance(values, np.ndarray) and values.dtype.kind in "biuf"
        tensor = as_tensor(values) if is_array else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} must be a tensor or an array of numbers, got {type(values).__name__} ({error})."
        ) from error
    check_values(tensor, name)
    if tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers, got dtype {tensor.dtype}.")
    return tensor.detach().cpu()


def _check_present(
    present: Mapping[str, Tensor | np.ndarray] | None, logits: Any, num_rows: int
) -> dict[str, np.ndarray]:
    """Which rows (N,) have each modality."""
    if not isinstance(logits, Mapping) or not logits:
        raise TypeError("logits must be a mapping with at least one head, name to (N, C).")
    if not isinstance(present, Mapping | None):
        raise TypeError(
            f"present must be a mapping of a modality's name to (N,) bool, got {type(present).__name__}."
        )
    rows = {name: np.ones(num_rows, dtype=bool) for name in logits if name != FUSED}
    for name, mask in (present or {}).items():
        values = _as_tensor(mask, f"present[{name!r}]").numpy()
        if name not in rows or values.shape != (num_rows,) or values.dtype != bool:
            raise ValueError(
                f"present[{name!r}] is {values.dtype} of shape {values.shape}; give one bool for each "
                f"of the {num_rows} rows and modalities with logits, {list(rows)}."
            )
        rows[name] = values
    return rows


def _check_groups(groups: Any, num_rows: int) -> np.ndarray:
    """The group (N,) of each row."""
    values = _as_tensor(groups, "groups").numpy()
    if values.shape != (num_rows,) or values.dtype.kind not in "iu":
        raise ValueError(
            f"groups is {values.dtype} of shape {values.shape}; give one whole number for each of the {num_rows} rows."
        )
    return values


def _check_logits(
    logits: Mapping[str, Tensor | np.ndarray], present: Mapping[str, np.ndarray], problem_type: str
) -> dict[str, np.ndarray]:
    """The values that are weighed, (N, C) or (N, C, 2) float64 per head; arbitrary in rows without the modality."""
    heads: dict[str, np.ndarray] = {}
    tensors = {name: _as_tensor(values, f"logits[{name!r}]") for name, values in logits.items()}
    shape = tuple(next(iter(tensors.values())).shape)
    for name, values in tensors.items():
        head = values.to(torch.float64)
        if tuple(head.shape) != shape or len(shape) != 2 or not head.numel():
            raise ValueError(
                f"logits[{name!r}] has shape {tuple(head.shape)}; all heads need the same (N, C)."
            )
        if name in present and len(head) == len(present[name]):
            head = torch.where(torch.from_numpy(present[name])[:, None], head, 0.0)
        bad = head.isnan().nonzero()
        if len(bad):
            raise ValueError(f"logits[{name!r}] holds NaN, first in row {int(bad[0, 0])}.")
        if problem_type == REGRESSION and bool((head.abs() > MAX_PREDICTION).any()):
            raise ValueError(
                f"logits[{name!r}] holds predictions beyond {MAX_PREDICTION:g}; lower the learning rate."
            )
        heads[name] = log_probabilities(head, name, problem_type).numpy()
    return heads


def _check_targets(
    labels: Tensor | np.ndarray, num_samples: int, num_classes: int, problem_type: str
) -> np.ndarray:
    """Class indices (N,), zeros and ones (N, C), or real targets (N, C)."""
    targets = _as_tensor(labels, "labels")
    if problem_type == SINGLE_LABEL:
        if targets.shape != (num_samples,) or targets.is_floating_point() or targets.is_complex():
            raise ValueError(
                f"labels must be {num_samples} class indices, one per row of the logits, got shape "
                f"{tuple(targets.shape)} of {targets.dtype}."
            )
        wrong = ((targets < 0) | (targets >= num_classes)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(f"labels[{row}] is {int(targets[row])}, outside of 0..{num_classes - 1}.")
        return targets.long().numpy()
    if targets.numel() != num_samples * num_classes or len(targets) != num_samples:
        raise ValueError(
            f"labels must have the shape {(num_samples, num_classes)} of the logits, got {tuple(targets.shape)}."
        )
    values = targets.double().reshape(num_samples, num_classes)
    finite = values.isfinite().all(-1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"labels hold NaN or infinite values, first in row {row}; remove these rows.")
    return values.numpy() if problem_type == REGRESSION else (values > 0.5).long().numpy()


def prior_of(labels: Tensor | np.ndarray, num_classes: int, problem_type: str) -> list[float]:
    """What is answered without any modality, (C,), where the labels of the rows are these, as in `Readout.fit`."""
    targets = _check_targets(labels, len(labels), num_classes, problem_type)
    if problem_type == REGRESSION:
        return [float(mean) for mean in targets.mean(axis=0)]
    if problem_type == MULTI_LABEL:
        return [float(share) for share in (targets.sum(axis=0) + 1) / (len(targets) + 2)]
    counts = np.bincount(targets, minlength=num_classes) + 1
    return [float(share) for share in counts / counts.sum()]


def _head_sets(modalities: tuple[str, ...], with_fused: bool) -> list[tuple[str, ...]]:
    """The sets of heads to fit: subsets of the modalities, and the fused head with all of them and alone."""
    M = len(modalities)
    sizes = range(1, M + 1) if M <= MAX_MODALITIES_FOR_ALL_SUBSETS else (1, M)
    sets = [names for size in sizes for names in itertools.combinations(modalities, size)]
    if with_fused:
        sets.append((FUSED,))
        if modalities:
            sets.append((*modalities, FUSED))
    return sets
