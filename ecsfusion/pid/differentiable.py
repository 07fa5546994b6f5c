"""Gradients of a PID with respect to joint tables and, through soft clusters, to embeddings.

By the envelope theorem the dual solution of the BROJA problem is the gradient of its optimal value: with A and B the
factors of the optimum, scaled to A B^T <= 1, dH*/dP(x1, y) = -log A and dH*/dP(x2, y) = -log B. So the iterations
are not unrolled and memory does not grow with them; all other terms of the atoms are entropies of the table.
"""

import math
from typing import Any

import torch
from ecsfusion_kernels import broja, lloyd, seed
from ecsfusion_kernels.precision import full_precision
from ecsfusion_kernels.reference.broja import dual_shift
from torch import Tensor
from torch.autograd.function import once_differentiable

from ecsfusion.data.values import check_values
from ecsfusion.pid.checks import check_positive, check_seed, is_number
from ecsfusion.pid.decomposition import LN2, Decomposition, checked_options, scaled_to_one
from ecsfusion.pid.inputs import check_cells, check_classes, class_labels


def differentiable_pid(joint: Tensor, tolerance: float = 1e-6, max_iterations: int = 20_000) -> Decomposition:
    """Partial information decomposition (Bertschinger et al. 2014) with gradients with respect to the table.

    The atoms of a table do not depend on its scale, so gradients are orthogonal to it. They cannot be differentiated
    twice. The true slope at an empty cell is infinite and zero is returned: use soft tables.

    Args:
        joint: (..., K1, K2, C) floating point, non-negative, each table with mass; divided by its sum. CPU or CUDA.
        tolerance: certified width in bits at which the solver stops. The error of the gradient is proportional to its
            square root: about 1e-4 at 1e-6, 1e-7 at 1e-9.
        max_iterations: the number of iterations after which the solver stops in any case.

    Returns:
        Decomposition, float64, in bits, without floors and intervals. Every atom is within `gap` of its true value;
        unlike those of `decompose` the atoms are not clamped, so they may be below zero by that much. All values
        but `gap` have gradients.

    Raises:
        TypeError: for a `joint` that is no floating point tensor.
        ValueError: for a `joint` that is no non-negative finite table with mass, and bad options.
    """
    if not isinstance(joint, Tensor) or not joint.is_floating_point():
        kind = joint.dtype if isinstance(joint, Tensor) else type(joint).__name__
        raise TypeError(f"joint must be a floating point tensor, got {kind}; use decompose for counts")
    check_values(joint, "joint")
    checked_options(tolerance, max_iterations, None)
    if joint.ndim < 3 or 0 in joint.shape:
        raise ValueError(f"joint must have the shape (..., K1, K2, C), got {tuple(joint.shape)}")
    cells = joint.detach().to(torch.float64)
    if not bool((cells >= 0).all() and torch.isfinite(cells).all()):
        raise ValueError("joint must be finite and not negative; soft assignments give such a table")
    table = scaled_to_one(joint.to(torch.float64))

    p1y, p2y, p12 = table.sum(-2), table.sum(-3), table.sum(-1)
    label = entropy_with_gradient(p1y.sum(-2), 1)
    x1y, x2y, whole = (
        entropy_with_gradient(p1y, 2),
        entropy_with_gradient(p2y, 2),
        entropy_with_gradient(table, 3),
    )
    given1, given2 = x1y - entropy_with_gradient(p1y.sum(-1), 1), x2y - entropy_with_gradient(p2y.sum(-1), 1)
    given_both = whole - entropy_with_gradient(p12, 2)
    largest, gap = largest_conditional_entropy(p1y, p2y, tolerance, max_iterations)
    return Decomposition(
        redundancy=label - given1 - given2 + largest,
        unique=torch.stack([given2 - largest, given1 - largest], -1),
        synergy=largest - given_both,
        mutual_information=torch.stack([label - given1, label - given2], -1),
        joint_mutual_information=label - given_both,
        conditional_mutual_information=x1y + x2y - whole - label,
        gap=gap,
    )


def soft_joint(
    assignments1: Tensor, assignments2: Tensor, labels: Tensor, num_classes: int | None = None
) -> Tensor:
    """The joint table of soft assignments, (K1, K2, C), of sum 1, with gradients.

    Args:
        assignments1: (N, K1) each row a distribution over the clusters of the first modality.
        assignments2: (N, K2) the same of the second.
        labels: (N,) class indices from 0.
        num_classes: C; None for the largest label + 1.

    Raises:
        TypeError: for assignments that are no floating point tensors, and labels that are no integers.
        ValueError: for other shapes, values or devices than those above.
    """
    sides = (("assignments1", assignments1), ("assignments2", assignments2))
    for name, rows in sides:
        _check_floats(rows, name)
    sizes = [
        len(assignments1),
        len(assignments2),
        len(labels) if hasattr(labels, "shape") and labels.ndim else None,
    ]
    if len({size for size in sizes if size is not None}) > 1:
        raise ValueError(
            "assignments1, assignments2 and labels must have one row per sample, got "
            f"{sizes[0]}, {sizes[1]} and {sizes[2]} rows"
        )
    for name, rows in sides:
        is_negative = ~(rows.detach() >= 0).all(-1)
        if bool(is_negative.any()):
            raise ValueError(
                f"{name} must not be negative, as row {int(is_negative.nonzero()[0])} is; take the rows of "
                "soft_assignments"
            )
        sums = rows.detach().double().sum(-1)
        is_off = ~((sums - 1).abs() < 0.05)
        if bool(is_off.any()):
            row = int(is_off.nonzero()[0])
            raise ValueError(
                f"{name} must have rows that sum to 1, and row {row} sums to {float(sums[row]):.3g}; take those of "
                "soft_assignments"
            )
    if assignments1.dtype != assignments2.dtype or assignments1.device != assignments2.device:
        raise ValueError(
            f"assignments1 is {assignments1.dtype} on {assignments1.device}, assignments2 {assignments2.dtype} on "
            f"{assignments2.device}; convert one of them"
        )
    if num_classes is not None:
        check_positive(num_classes, "num_classes")
    labels = class_labels(labels, len(assignments1), assignments1.device, None)
    if labels.ndim != 1:
        raise ValueError(
            f"labels must have the shape (N,), got {tuple(labels.shape)}; take one label at a time"
        )
    num_classes = check_classes(labels, num_classes)
    check_cells(assignments1.shape[1], assignments2.shape[1], num_classes)
    one_hot = torch.nn.functional.one_hot(labels, num_classes).to(assignments1.dtype)
    # (N, K1 * C), then (K1, C, K2)
    by_class = (assignments1.unsqueeze(-1) * one_hot.unsqueeze(-2)).flatten(1)
    table = product(by_class.mT, assignments2).unflatten(0, (assignments1.shape[1], -1))
    return table.mT / len(labels)


def soft_assignments(embeddings: Tensor, centers: Tensor, temperature: float = 0.5) -> Tensor:
    """Soft clusters: softmax over the centers of minus the squared distance, (N, K), with gradients.

    Args:
        embeddings: (N, D).
        centers: (K, D), from `cluster_centers`.
        temperature: in units of the mean squared distance of a row to its nearest center. As it approaches 0 the
            assignments become hard and the gradients vanish.

    Raises:
        TypeError: for embeddings or centers that are no floating point tensors.
        ValueError: for shapes or devices that do not fit together, and a temperature that is not positive.
    """
    if not is_number(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature!r}; use hard clusters for 0")
    _check_floats(embeddings, "embeddings")
    _check_floats(centers, "centers")
    if embeddings.shape[1] != centers.shape[1]:
        raise ValueError(
            f"centers must be as wide as the embeddings, got {tuple(centers.shape)} for {tuple(embeddings.shape)}"
        )
    if embeddings.device != centers.device:
        raise ValueError(
            f"centers are on {centers.device}, embeddings on {embeddings.device}; move one of them"
        )
    # The result does not depend on the unit of the embeddings. In this one no square overflows or underflows.
    unit = _power_of_two(torch.stack([_largest(embeddings), _largest(centers)]).amax())
    wide = torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)
    x, c = (embeddings / unit).to(wide), (centers / unit).to(wide)
    squared = (x.square().sum(-1, keepdim=True) + c.square().sum(-1) - 2 * product(x, c.mT)).clamp_min(0.0)
    nearest = squared.amin(-1).mean().clamp_min(torch.finfo(wide).eps ** 2)
    return torch.softmax(-squared / (temperature * nearest), -1).to(embeddings.dtype)


def cluster_centers(embeddings: Tensor, num_clusters: int, random_seed: int = 0) -> Tensor:
    """Centers (K, D) of k-means on embeddings (N, D), without gradients, for `soft_assignments`.

    Args:
        embeddings: (N, D) floating point.
        num_clusters: K.
        random_seed: of k-means++.

    Raises:
        TypeError: for embeddings that are no floating point tensor, and a seed that is no whole number.
        ValueError: for embeddings that are no finite matrix with rows, and for K under 1.
    """
    _check_floats(embeddings, "embeddings")
    check_positive(num_clusters, "num_clusters")
    check_seed(random_seed, "random_seed")
    with torch.no_grad():
        unit = _power_of_two(_largest(embeddings))
        points = (embeddings.detach() / unit).float().unsqueeze(0)
        centers = lloyd(points, seed(points, num_clusters, random_seed)).centers[0]
        return (centers.double() * unit).to(embeddings.dtype)


def _check_floats(value: Tensor, name: str) -> None:
    """Raise TypeError or ValueError unless `value` is a finite floating point matrix with rows and columns."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.itemsize < 2:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating point tensor, got {kind}; convert it with .float()")
    check_values(value, name)
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must be a matrix with rows and columns, got the shape {tuple(value.shape)}")
    finite = torch.isfinite(value.detach()).all(-1)
    if not bool(finite.all()):
        raise ValueError(
            f"{name} must be finite, found NaN or infinite values, first in row {int((~finite).nonzero()[0])}; look at "
            "the encoder and its rate"
        )


def _largest(value: Tensor) -> Tensor:
    return value.detach().abs().amax().double()


def _power_of_two(value: Tensor) -> Tensor:
    """A power of two near `value` (a scalar, float64), by which dividing is exact; 1 for 0."""
    exponent = torch.frexp(value).exponent.clamp(-1000, 1000)
    return torch.where(value > 0, torch.ldexp(torch.ones_like(value), exponent), 1.0)


def product(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product in the dtype of its factors, with gradients, whatever autocast and the TF32 flags say."""
    result: Tensor = _Product.apply(first, second)
    return result


class _Product(torch.autograd.Function):
    """A matrix product whose backward pass is in full precision too, wherever it is called."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        with full_precision():
            return first @ second

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        first, second = ctx.saved_tensors
        needs_first, needs_second = ctx.needs_input_grad
        with full_precision():
            return grad @ second.mT if needs_first else None, first.mT @ grad if needs_second else None


def largest_conditional_entropy(
    p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """The largest H_Q(Y | X1, X2) of pair marginals (..., K1, C) and (..., K2, C), with gradients; and its gap."""
    largest, gap = _LargestConditionalEntropy.apply(p1y, p2y, tolerance, max_iterations)
    return largest, gap


class _LargestConditionalEntropy(torch.autograd.Function):
    """max H_Q(Y | X1, X2) in bits as a function of the two pair marginals, and its certified gap.

    Only the two gradients are kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, p1y: Tensor, p2y: Tensor, tolerance: float, max_iterations: int
    ) -> tuple[Tensor, Tensor]:
        solution = broja(p1y, p2y, tolerance=tolerance, max_iterations=max_iterations)
        shift1, shift2 = dual_shift(torch, solution.factor1, solution.factor2, p1y.sum(-1), p2y.sum(-1))
        slope1 = (shift1.unsqueeze(-1) - solution.factor1.clamp_min(1e-300).log()) / LN2
        slope2 = (shift2.unsqueeze(-1) - solution.factor2.clamp_min(1e-300).log()) / LN2
        ctx.save_for_backward(torch.where(p1y > 0, slope1, 0.0), torch.where(p2y > 0, slope2, 0.0))
        ctx.mark_non_differentiable(solution.gap)
        return solution.conditional_entropy, solution.gap

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _gap_grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        slope1, slope2 = ctx.saved_tensors
        grad = grad.unsqueeze(-1).unsqueeze(-1)
        return grad * slope1, grad * slope2, None, None


def entropy_with_gradient(table: Tensor, dims: int) -> Tensor:
    """Entropy in bits over the last `dims` dimensions, whose gradient at an empty cell is zero.

    `ecsfusion.pid.decomposition.entropy` has the same value but an infinite gradient there.
    """
    p = table.flatten(-dims)
    return -(p * torch.where(p > 0, p, 1.0).log()).sum(-1) / LN2
