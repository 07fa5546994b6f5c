"""Stacking: a logistic regression on the log-probabilities of the unimodal heads, fitted on validation rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""The values of C to choose from; the smaller, the more regularized."""
NUM_FOLDS = 5
SEED = 0
MIN_PROBABILITY = 1e-6


class Stacking:
    """A multinomial logistic regression on the log-probabilities of all heads; its C is chosen by cross-validation.

    The folds are stratified by class, and keep the rows of a group on one side. C is that of the smallest log-loss over
    all held-out rows; ties go to the smaller one.

    Args:
        heads: logits (N, C) by head; what a head answers in rows without its modality is up to the caller.
        labels: (N,) class indices.
        groups: (N,) whole numbers, by which rows depend on each other; None where they are independent.

    Attributes:
        strength: the C that was chosen.
        held_out: (N, C) log-probabilities of each row by a regression with this C that has not seen its fold.

    Raises:
        ValueError: there is only one class, or one group.
    """

    def __init__(self, heads: Mapping[str, Tensor], labels: Tensor, groups: Tensor | None = None) -> None:
        self.names = tuple(heads)
        features, y = self._features(heads), labels.numpy()
        self.num_classes = next(iter(heads.values())).shape[1]
        of_rows = None if groups is None else groups.numpy()
        separate = len(np.unique(y if of_rows is None else of_rows))
        if separate < 2 or len(np.unique(y)) < 2:
            raise ValueError("stacking needs at least two classes, and two groups; give more rows.")
        if of_rows is None:
            folds = min(NUM_FOLDS, max(int(np.bincount(y).max()), 2))
            splitter = StratifiedKFold(folds, shuffle=True, random_state=SEED)
        else:
            splitter = StratifiedGroupKFold(min(NUM_FOLDS, separate), shuffle=True, random_state=SEED)
        with warnings.catch_warnings():
            # A class with fewer rows than folds is missing from some of them.
            warnings.filterwarnings("ignore", message="The least populated class")
            splits = list(splitter.split(features, y, of_rows))
        held_out = {}
        for strength in STRENGTHS:
            held_out[strength] = np.empty((len(y), self.num_classes))
            for fitted, judged in splits:
                model = self._fit(features[fitted], y[fitted], strength)
                held_out[strength][judged] = self._log_p(model, features[judged])
        loss = {strength: -log_p[np.arange(len(y)), y].mean() for strength, log_p in held_out.items()}
        self.strength = min(STRENGTHS, key=lambda strength: loss[strength])
        self.held_out = torch.from_numpy(held_out[self.strength])
        self._model = self._fit(features, y, self.strength)

    def __call__(self, heads: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities (N, C) from the logits of the same heads on other rows."""
        return torch.from_numpy(self._log_p(self._model, self._features(heads)))

    def _features(self, heads: Mapping[str, Tensor]) -> np.ndarray:
        log_p = [heads[name].double().log_softmax(dim=1) for name in self.names]
        # A certain head says no more than the probability that a validation set can tell from zero.
        return torch.cat(log_p, dim=1).clamp_min(float(np.log(MIN_PROBABILITY))).numpy()

    def _fit(self, features: np.ndarray, labels: np.ndarray, strength: float) -> LogisticRegression | int:
        """A regression, or the only class that there is."""
        if len(np.unique(labels)) == 1:
            return int(labels[0])
        return LogisticRegression(C=strength, max_iter=1000).fit(features, labels)

    def _log_p(self, model: LogisticRegression | int, features: np.ndarray) -> np.ndarray:
        """With the smallest probability for classes that the regression has not seen."""
        p = np.full((len(features), self.num_classes), MIN_PROBABILITY)
        if isinstance(model, int):
            p[:, model] = 1.0
        else:
            p[:, model.classes_] = np.maximum(model.predict_proba(features), MIN_PROBABILITY)
        return np.log(p / p.sum(axis=1, keepdims=True))
