"""Fits of the heads' weights in a readout: by cross-entropy for probabilities, by least squares for predictions.

Both fits are convex, so they end at the optimum, and drop heads that lower the loss too little. Where there is a fused
head, probabilities are pulled towards it and the mean of the others with the weight of ten observations, and are never
worse than the fused head on the rows of the fit. Without a fused head, and for predictions, the pull is towards the
plain mean with the weight of one observation, and the combination is never worse than the best single head.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import minimize, nnls
from threadpoolctl import ThreadpoolController

RIDGE = 1.0
"""Strength of the pull towards the plain (geometric) mean, where there is no fused head: the fit minimizes, in nats
over the whole validation set, cross-entropy + RIDGE / 2 * sum_h (w_h - 1/H)^2. A few dozen samples outweigh it. Without
it, the best weights on a validation set without errors would be infinite."""

FUSED_SHARE = 0.5
PULL = 10.0
"""Where there is a fused head, the pull is towards half of it and half of the mean of the others, each calibrated, with
the weight of ten observations. The rows of validation may be of other subjects, voices or pictures than those of
tomorrow: weights that fit few of these closely are wrong for the others."""

MIN_WEIGHT_ALONE = 1e-3
"""The smallest weight of a head that answers alone. It leaves the probabilities near 1/C and keeps their order."""


def min_gain(num_samples: int) -> float:
    """Nats a sample by which a head must lower the loss to keep a weight: (log N) / 2 over all N samples.

    That is Schwarz's criterion (1978). It drops a second head that only makes certain probabilities more certain, and
    would do so where it errs as well. Rows of a group count here by themselves: two subjects as two samples would ask
    for 0.17 nats a row, and drop most heads.
    """
    return float(np.log(max(num_samples, 2))) / (2 * num_samples)


_BLAS = ThreadpoolController().select(user_api="blas")
_LOCK = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A context with one thread of BLAS: with so few weights more take ten times as long, as they wait for each other.

    Their number is that of the whole process. So one fit runs at a time: a second one would find 1, and put 1 back.
    """
    with _LOCK, _BLAS.limit(limits=1):
        yield


@_one_thread()
def pool_opinions(
    log_p: np.ndarray,
    targets: np.ndarray,
    reference: int | None = None,
    share: float = 1.0,
    names: Sequence[str] = (),
    weights_alone: dict[str, float] | None = None,
) -> np.ndarray:
    """Weights (H,) of heads that give probabilities.

    With a fused head they are pulled towards its answer and those of the others. On these samples the combination's
    cross-entropy is then never above that of the fused head, and its accuracy never below. Without one they are pulled
    towards the plain mean, and the cross-entropy is never above that of the best single head with a fitted weight.

    Args:
        log_p: (H, N, C), log-probabilities.
        targets: (N,), class indices.
        reference: the index of the fused head; None if it is not among the heads.
        share: independent samples per sample: 1, or groups / N where rows of a group count as one.
        names: of the heads, if `weights_alone` is given.
        weights_alone: by name, the weights of heads that answer alone, on these samples. Those that are missing are
            fitted and added, so that sets which share heads do not fit them again.
    """
    H, samples, _ = log_p.shape
    N = share * samples
    names = names or [str(h) for h in range(H)]
    known = {} if weights_alone is None else weights_alone
    for name, head in zip(names, log_p, strict=True):
        if name not in known:
            known[name] = float(_fit_weights(_Heads(head[None], targets), N)[0])
    # With a weight of zero a head would say nothing, where its own answers may still be right.
    alone = np.array([known[name] for name in names]).clip(min=MIN_WEIGHT_ALONE)
    if H == 1:
        return alone
    if reference is not None:
        return _around_the_fused(log_p, targets, reference, N, alone)
    heads = _Heads(log_p, targets)
    weights, kept = _fit_useful(heads, N, np.full(H, 1 / H), RIDGE, min_gain(samples))
    singles = np.diag(alone)
    bound = min(heads.cross_entropy(single) for single in singles)
    needed_gain = (kept.sum() - 1) * min_gain(samples)
    if heads.cross_entropy(weights) + needed_gain > bound:
        weights = min(singles, key=lambda single: heads.cross_entropy(single))
    best = max(singles, key=heads.accuracy)
    # On the way from the combination to the most accurate head, take the first weights that are not less accurate.
    path = [(1 - t) * weights + t * best for t in np.linspace(0, 1, 21)]
    allowed = [w for w in path if heads.cross_entropy(w) <= bound]
    return max(allowed, key=lambda w: min(heads.accuracy(w), heads.accuracy(best)))


def _around_the_fused(
    log_p: np.ndarray, targets: np.ndarray, fused: int, N: float, alone: np.ndarray
) -> np.ndarray:
    """Weights (H,) near half of the fused head and half of the mean of the others, in units of weights alone (H,)."""
    H = len(log_p)
    heads = _Heads(log_p * alone[:, None, None], targets)
    single = np.eye(H)[fused]
    center = FUSED_SHARE * single + (1 - FUSED_SHARE) * (1 - single) / (H - 1)
    # Here a head may stay that lowers the loss by little: few independent rows show no more.
    weights, _ = _fit_useful(heads, N, center, PULL, needed=0.0)
    # On the way to the fused head, take the first weights that are nowhere worse than it.
    path = [(1 - t) * weights + t * single for t in np.linspace(0, 1, 21)]
    least, most = heads.accuracy(single), heads.cross_entropy(single)
    good = (w for w in path if heads.accuracy(w) >= least and heads.cross_entropy(w) <= most + 1e-12)
    return alone * next(good, single)


class _Heads:
    """Heads that give probabilities, with what every step of a fit reads of them.

    Args:
        log_p: (H, N, C), log-probabilities.
        targets: (N,), class indices.
    """

    def __init__(self, log_p: np.ndarray, targets: np.ndarray) -> None:
        self.log_p, self.targets = log_p, targets
        # Classes before samples: sums over a few classes are then sums of long vectors.
        self._by_class = np.ascontiguousarray(log_p.swapaxes(1, 2))
        self._flat = self._by_class.reshape(len(log_p), -1)
        self._rows = np.arange(len(targets))
        self._mean_at_target = log_p[:, self._rows, targets].mean(axis=1)

    def __len__(self) -> int:
        return len(self.log_p)

    def only(self, kept: np.ndarray) -> _Heads:
        """Those of the heads that are kept, (H,) bool."""
        return _Heads(self.log_p[kept], self.targets)

    def _pooled(self, weights: np.ndarray) -> np.ndarray:
        """The pool with these weights (H,), up to a constant by sample: (C, N)."""
        return np.dot(weights[None], self._flat).reshape(self._by_class.shape[1:])

    def cross_entropy(self, weights: np.ndarray) -> float:
        """Mean cross-entropy in nats of the pool with these weights (H,)."""
        return self._loss_and_posteriors(weights)[0]

    def with_gradient(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The cross-entropy, and its gradient (H,)."""
        loss, p = self._loss_and_posteriors(weights)
        return loss, self._flat @ p.ravel() / len(self.targets) - self._mean_at_target

    def _loss_and_posteriors(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        pooled = self._pooled(weights)
        pooled -= pooled.max(axis=0)
        at_target = pooled[self.targets, self._rows].sum()
        p = np.exp(pooled, out=pooled)
        mass = p.sum(axis=0)
        p /= mass
        return float(np.log(mass).sum() - at_target) / len(self.targets), p

    def accuracy(self, weights: np.ndarray) -> float:
        """The share of samples whose target is the most probable class of the pool with these weights (H,)."""
        return float((self._pooled(weights).argmax(axis=0) == self.targets).mean())


def _fit_useful(
    heads: _Heads, N: float, center: np.ndarray, strength: float, needed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (H,) of heads that lower the loss by more than `needed` nats a sample, else 0; and which, (H,) bool."""
    H = len(heads)
    kept = np.ones(H, dtype=bool)
    weights = _fit_weights(heads, N, center, strength)
    while kept.sum() > 1:
        loss = heads.cross_entropy(weights)
        cost = np.full(H, np.inf)
        for h in np.flatnonzero(kept):
            cost[h] = heads.cross_entropy(np.where(np.arange(H) == h, 0.0, weights)) - loss
        if cost.min() > needed:
            break
        kept[cost.argmin()] = False
        weights = np.zeros(H)
        weights[kept] = _fit_weights(heads.only(kept), N, center[kept] / center[kept].sum(), strength)
    return weights, kept


def _fit_weights(
    heads: _Heads, N: float, center: np.ndarray | None = None, strength: float = RIDGE
) -> np.ndarray:
    """Weights (H,) >= 0 with the lowest cross-entropy plus pull: L-BFGS-B in float64.

    The samples count as N, which is less where they are not independent. The pull is towards `center` (H,), by default
    the plain mean.
    """
    H = len(heads)
    middle = np.full(H, 1 / H) if center is None else center

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = heads.with_gradient(weights)
        pull = strength / N * (weights - middle)
        return loss + float(pull @ (weights - middle)) / 2, gradient + pull

    options = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 1000}
    result = minimize(objective, middle, jac=True, method="L-BFGS-B", bounds=[(0, None)] * H, options=options)
    return result.x


@_one_thread()
def weigh_predictions(
    predictions: np.ndarray, targets: np.ndarray, share: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (H,) and offsets (L,) of heads that predict real targets: non-negative least squares.

    The combination is `offset_l + sum_h w_h prediction_hl` (stacked regressions: Breiman 1996). Targets count alike,
    whatever their units. On these rows its mean squared error is never above that of the best single head, both as it
    is and with a weight and an offset of its own.

    Args:
        predictions: (H, N, L).
        targets: (N, L).
        share: as in `pool_opinions`.
    """
    H, N, L = predictions.shape
    scale = targets.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    z = ((predictions - predictions.mean(axis=1, keepdims=True)) / scale).reshape(H, N * L)
    y = ((targets - targets.mean(axis=0)) / scale).reshape(N * L)

    def error(weights: np.ndarray) -> float:
        return float(((y - weights @ z) ** 2).mean())

    singles = np.diag([_least_squares(head[None], y, share)[0] for head in z])
    kept = np.ones(H, dtype=bool)
    weights = _least_squares(z, y, share)
    while kept.sum() > 1:
        cost = np.full(H, np.inf)
        for h in np.flatnonzero(kept):
            ratio = (error(np.where(np.arange(H) == h, 0.0, weights)) + 1e-12) / (error(weights) + 1e-12)
            # The gain in the log-likelihood of a normal distribution with the residual variance.
            cost[h] = np.log(ratio) / 2
        if cost.min() >= min_gain(N * L):
            break
        kept[cost.argmin()] = False
        weights = np.zeros(H)
        weights[kept] = _least_squares(z[kept], y, share)
    best = min(singles, key=error)
    if error(weights) > error(best):
        weights = best
    offsets = targets.mean(axis=0) - weights @ predictions.mean(axis=1)
    return weights, offsets


def _least_squares(z: np.ndarray, y: np.ndarray, share: float) -> np.ndarray:
    """Weights (H,) >= 0 with the least share |y - w z|^2 + RIDGE |w - 1/H|^2, for heads (H, N)."""
    H = len(z)
    pull = np.sqrt(RIDGE / share) * np.eye(H)
    return nnls(np.concatenate([z.T, pull]), np.concatenate([y, pull.sum(axis=1) / H]))[0]
