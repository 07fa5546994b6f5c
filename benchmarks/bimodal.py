"""The synthetic bimodal data of Huang et al. 2022 (arXiv 2203.12221), and gradient descent on many data sets at once.

Modality r of a sample of class j shows its class with strength z in [1, 2]. With probability 1/K, independently in each
modality, z is below 0.02 instead: the modality is insufficient for this sample. Any other class shows, with probability
1/K, with a strength below 0.1. The network is that of `competition.py`, trained on all samples at every step.
"""

import math
from typing import NamedTuple

import torch
from competition import competitive_strength, smoothed_relu
from torch import Tensor
from torch.nn.functional import one_hot

MODALITIES = 2
ORDER, THRESHOLD = 3, 0.5
NEURONS = 8
NOISE = 0.1
# Training samples of each class.
PER_CLASS = 60


class Problem(NamedTuple):
    """S data sets of N samples with K classes; lists have one entry per modality.

    Attributes:
        labels: (S, N).
        inputs: (S, N, K).
        strengths: (S, N), z of the sample's own class.
        sufficient: (S, N), whether the modality shows the sample's class.
        directions: (S, K, K), orthonormal columns: the direction along which each class shows.
    """

    labels: Tensor
    inputs: list[Tensor]
    strengths: list[Tensor]
    sufficient: list[Tensor]
    directions: list[Tensor]


def directions_of(seeds: int, classes: int, generator: torch.Generator) -> list[Tensor]:
    """Random orthonormal directions (S, K, K) of each modality."""
    draws = (torch.randn(seeds, classes, classes, generator=generator) for _ in range(MODALITIES))
    return [torch.linalg.qr(draw).Q for draw in draws]


def sample(number: int, directions: list[Tensor], generator: torch.Generator) -> Problem:
    """`number` samples of each data set."""
    seeds, _, classes = directions[0].shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    labels = torch.randint(classes, (seeds, number), generator=generator)
    inputs, strengths, sufficient = [], [], []
    for basis in directions:
        shown = 0.1 * uniform(seeds, number, classes)
        shown *= uniform(seeds, number, classes) < 1 / classes
        enough = uniform(seeds, number) >= 1 / classes
        own = torch.where(enough, 1 + uniform(seeds, number), 0.02 * uniform(seeds, number))
        shown.scatter_(2, labels.unsqueeze(2), own.unsqueeze(2))
        noise = NOISE * torch.randn(seeds, number, classes, generator=generator)
        inputs.append(shown @ basis.mT + noise)
        strengths.append(own)
        sufficient.append(enough)
    return Problem(labels, inputs, strengths, sufficient, directions)


def start_of(
    classes: int, seeds: int, scale: float, generator: torch.Generator
) -> tuple[Problem, list[Tensor]]:
    """Training sets, and initial weights (S, D, K, L) per modality with standard deviation `scale`."""
    problem = sample(PER_CLASS * classes, directions_of(seeds, classes, generator), generator)
    shape = (seeds, classes, classes, NEURONS)
    return problem, [scale * torch.randn(shape, generator=generator) for _ in range(MODALITIES)]


def logits(inputs: Tensor, weights: Tensor) -> Tensor:
    """(S, N, K) of one modality: the sum of each class's neurons."""
    products = inputs @ weights.flatten(2)
    return smoothed_relu(products, ORDER, THRESHOLD).unflatten(2, weights.shape[2:]).sum(-1)


def alignment(weights: list[Tensor], problem: Problem) -> Tensor:
    """(S, K, M, L): how far every neuron points along its class."""
    both = zip(weights, problem.directions, strict=True)
    return torch.stack([torch.einsum("sdkl,sdk->skl", w, basis) for w, basis in both], 2)


def strength(weights: list[Tensor], problem: Problem) -> Tensor:
    """Effective competitive strength (S, K, M)."""
    signals = []
    for own, enough in zip(problem.strengths, problem.sufficient, strict=True):
        cubes = torch.where(enough, own**ORDER, 0.0)
        zero = torch.zeros(len(cubes), problem.directions[0].shape[2])
        signals.append(zero.scatter_add(1, problem.labels, cubes))
    number = problem.labels.shape[1]
    return competitive_strength(
        alignment(weights, problem), torch.stack(signals, 2), number, ORDER, THRESHOLD
    )


def information(weights: list[Tensor], problem: Problem) -> Tensor:
    """(S, K, M): bits that each modality's answer (is it this class or not?) has about whether it is this class."""
    classes = torch.arange(weights[0].shape[2])
    # (S, N, K)
    truth = problem.labels.unsqueeze(2) == classes
    by_modality = []
    for inputs, own in zip(problem.inputs, weights, strict=True):
        answer = logits(inputs, own).argmax(-1).unsqueeze(2) == classes
        cells = [[(x & y).float().mean(1) for y in (truth, ~truth)] for x in (answer, ~answer)]
        # (2, 2, S, K)
        joint = torch.stack([torch.stack(row) for row in cells])
        independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
        bits = joint * (joint / independent.clamp_min(1e-12)).log2()
        by_modality.append(torch.where(joint > 0, bits, 0.0).sum((0, 1)))
    return torch.stack(by_modality, 2)


def train(
    weights: list[Tensor], problem: Problem, joint: bool, steps: int, until_decided: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Gradient descent on the cross-entropy of the sum (joint) or of each modality by itself.

    The learning rate is K / 2: time runs K times slower with K classes.

    Args:
        weights: (S, D, K, L) per modality, which stay as they are.
        problem: what to learn.
        joint: one loss, of the sum of the logits, or one for each modality.
        steps: at most so many.
        until_decided: stop when, of every class, one modality has left the bend (each has, if not `joint`).

    Returns:
        The weights, and the step (S, K, M), with fractions, at which a modality's first neuron of a class left the bend
        of the activation (infinite: none did).
    """
    weights = [w.clone() for w in weights]
    classes, number = weights[0].shape[2], problem.labels.shape[1]
    truth = one_hot(problem.labels, classes)
    before = alignment(weights, problem).amax(-1)
    moment = torch.full_like(before, math.inf)
    for step in range(steps):
        values, slopes = zip(*map(activations, problem.inputs, weights), strict=True)
        outputs = [values[0] + values[1]] * MODALITIES if joint else values
        for w, x, slope, z in zip(weights, problem.inputs, slopes, outputs, strict=True):
            residual = (z.softmax(-1) - truth) / number
            gradient = x.mT @ slope.mul_(residual.unsqueeze(3)).flatten(2)
            w -= classes / 2 * gradient.unflatten(2, w.shape[2:])
        reach = alignment(weights, problem).amax(-1)
        left = moment.isinf() & (reach >= THRESHOLD)
        moment = torch.where(left, step + (THRESHOLD - before) / (reach - before), moment)
        before = reach
        if until_decided and bool((moment.amin(-1) if joint else moment).isfinite().all()):
            break
    return weights, moment


def activations(inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (S, N, K) of one modality, and the slope (S, N, K, L) of every neuron's activation.

    The same as `logits` and its derivative, in half of the passes over memory.
    """
    products = inputs @ weights.flatten(2)
    bent = products.clamp(0.0, THRESHOLD)
    slope = (bent / THRESHOLD).pow_(ORDER - 1)
    value = products.sub_(bent).clamp_min_(0.0).add_(bent.mul_(slope), alpha=1 / ORDER)
    shape = weights.shape[2:]
    return value.unflatten(2, shape).sum(-1), slope.unflatten(2, shape)


def error(weights: list[Tensor], problem: Problem, modalities: tuple[int, ...] = (0, 1)) -> Tensor:
    """Share of wrong answers of the sum of these modalities' logits, (S,)."""
    outputs = [logits(problem.inputs[m], weights[m]) for m in modalities]
    return (sum(outputs[1:], outputs[0]).argmax(-1) != problem.labels).float().mean(1)
