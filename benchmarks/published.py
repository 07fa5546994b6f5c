"""The published FastPID (arXiv 2509.20840), written from its description: the solver and the probe to compare with.

Solver: the logarithms of the whole table are parameters, started at Q0 = P(x1, y) P(x2, y) / P(y). A step takes the
softmax over the table, rescales it 10 times in turn to the two pair marginals, and descends on -H_Q(Y | X1, X2) by
Adam with learning rate 0.1, in float32. It stops when no cell changed by more than 1e-5, or after 2000 steps.

Probe: the first 20 batches of 64 samples, unshuffled (in training they come through its augmentation); each modality
L2-normalized, reduced to 5 principal components and clustered into 20 by scikit-learn's k-means; the plug-in
histogram, without bias correction.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEARNING_RATE = 0.1
RESCALINGS = 10
SMALLEST_CHANGE = 1e-5
MAX_STEPS = 2000
MAX_SAMPLES = 1280
COMPONENTS = 5
CLUSTERS = 20
# Keeps logarithms and divisions finite in float32.
TINY = 1e-12


@dataclass(frozen=True)
class PublishedPID:
    """Atoms in bits, as the published solver reports them, and how far its Q is from the marginals."""

    redundancy: float
    unique1: float
    unique2: float
    synergy: float
    infeasibility: float
    """|| Q(x1, y) - P(x1, y) ||_1 + || Q(x2, y) - P(x2, y) ||_1."""
    steps: int
    seconds: float


def published_solver(joint: Tensor, watch: Callable[[int, Tensor], None] | None = None) -> PublishedPID:
    """Decompose one table (K1, K2, C) of counts or probabilities; `watch` sees (step, Q) after every step."""
    start = time.perf_counter()
    p = (joint / joint.sum()).to(torch.float32)
    p1y, p2y = p.sum(1), p.sum(0)
    q0 = p1y.unsqueeze(1) * p2y.unsqueeze(0) / p.sum((0, 1)).clamp_min(TINY)
    logits = q0.clamp_min(TINY).log().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    last = torch.full_like(q0, torch.inf)
    step = 0
    for step in range(1, MAX_STEPS + 1):
        q = torch.softmax(logits.flatten(), 0).view_as(p)
        for _ in range(RESCALINGS):
            q = q * (p1y / q.sum(1).clamp_min(TINY)).unsqueeze(1)
            q = q * (p2y / q.sum(0).clamp_min(TINY)).unsqueeze(0)
        conditional = q / q.sum(-1, keepdim=True).clamp_min(TINY)
        loss = (q * conditional.clamp_min(TINY).log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        q = q.detach()
        if watch is not None:
            watch(step, q)
        if float((q - last).abs().max()) < SMALLEST_CHANGE:
            break
        last = q
    seconds = time.perf_counter() - start
    return measure(joint, q, step, seconds)


def measure(joint: Tensor, q: Tensor, steps: int = 0, seconds: float = 0.0) -> PublishedPID:
    """The atoms of P = `joint` that follow from Q, as published: the marginals of each are taken as they are."""
    p, q = (joint / joint.sum()).double(), q.double()
    q = q / q.sum()
    information1, information2 = _information(p.sum(1)), _information(p.sum(0))
    union = _information(q.flatten(0, 1))
    infeasibility = (q.sum(1) - p.sum(1)).abs().sum() + (q.sum(0) - p.sum(0)).abs().sum()
    return PublishedPID(
        redundancy=information1 + information2 - union,
        unique1=union - information2,
        unique2=union - information1,
        synergy=_information(p.flatten(0, 1)) - union,
        infeasibility=float(infeasibility),
        steps=steps,
        seconds=seconds,
    )


def published_probe(
    embeddings1: NDArray[np.floating],
    embeddings2: NDArray[np.floating],
    labels: NDArray[np.integer],
    seed: int = 0,
) -> PublishedPID:
    """The published probe of two modalities (N, D1) and (N, D2) with class indices (N,); `seconds` is the whole."""
    start = time.perf_counter()
    # As they stand: of rows that are sorted by class it sees a few classes only.
    chosen = slice(MAX_SAMPLES)
    table = published_histogram(embeddings1[chosen], embeddings2[chosen], labels[chosen], seed)
    pid = published_solver(table)
    return PublishedPID(**{**pid.__dict__, "seconds": time.perf_counter() - start})


def published_histogram(
    embeddings1: NDArray[np.floating],
    embeddings2: NDArray[np.floating],
    labels: NDArray[np.integer],
    seed: int = 0,
) -> Tensor:
    """Counts (20, 20, C) of the clusters of two modalities and the labels."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    clusters = []
    for rows in (embeddings1, embeddings2):
        reduced = normalize(rows)
        if reduced.shape[1] > COMPONENTS:
            reduced = PCA(COMPONENTS, random_state=seed).fit_transform(reduced)
        clusters.append(KMeans(CLUSTERS, random_state=seed).fit_predict(reduced))
    table = np.zeros((CLUSTERS, CLUSTERS, int(labels.max()) + 1))
    np.add.at(table, (*clusters, labels), 1)
    return torch.from_numpy(table)


def _information(table: Tensor) -> float:
    """I(X; Y) in bits of P(x, y)."""
    independent = table.sum(-1, keepdim=True) * table.sum(-2, keepdim=True)
    ratio = torch.where(table > 0, table / independent, 1.0)
    return float((table * ratio.log2()).sum())
