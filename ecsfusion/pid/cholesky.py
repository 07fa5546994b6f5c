"""Cholesky factors of covariances, and what their inverses make of vectors.

A CPU solves triangular systems. A GPU does so in many small steps, one after another, so there the inverse of a factor
stands in its place, and vectors are multiplied by it. Both are called a factor, and only this module looks into one.
"""

import torch
from torch import Tensor

FLAT = 1e6
"""The diagonal of a factor that stands for one that cannot be found: what is divided by it is nearly 0."""
LARGEST_BLOCK = 64
"""Columns of the blocks of a factor that are inverted at once."""
FACTORED_BLOCK = 96
"""Columns of the blocks by which a CPU factors a matrix."""
MANY_VECTORS = 2
"""Vectors for each column of a factor, from which it is inverted on a CPU, too."""


def keeps_inverse(tensor: Tensor) -> bool:
    """Whether the factors on its device are inverses."""
    return tensor.device.type != "cpu"


def factored(matrices: Tensor) -> Tensor:
    """The factors (T, D, D) of symmetric matrices (T, D, D), which may be overwritten; flat where there is none."""
    factor, failed = _cholesky(matrices)
    if bool(failed.any()):
        flat = FLAT * torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        factor = torch.where((failed > 0)[..., None, None], flat, factor)
    return inverted(factor) if keeps_inverse(factor) else factor


def half_solved(factor: Tensor, right: Tensor) -> Tensor:
    """L^-1 right, (T, D, n), of factors (T, D, D) of matrices L L^T: covariances of the rows of the result are 1."""
    if keeps_inverse(factor):
        return factor @ right
    if right.shape[-1] >= MANY_VECTORS * factor.shape[-1]:
        # Of many vectors the inverse and a product take a third of the time.
        return inverted(factor) @ right
    return torch.linalg.solve_triangular(factor, right, upper=False)


def transposed_solved(factor: Tensor, right: Tensor) -> Tensor:
    """L^-T right, (T, D, n), of factors (T, D, D) of matrices L L^T."""
    if keeps_inverse(factor):
        return factor.mT @ right
    return torch.linalg.solve_triangular(factor.mT, right, upper=True)


def solved(factor: Tensor, right: Tensor) -> Tensor:
    """The solutions (T, D, n) of systems with matrices L L^T."""
    # Faster than `cholesky_solve`, which goes through each system column by column.
    return transposed_solved(factor, half_solved(factor, right))


def log_diagonal(factor: Tensor) -> Tensor:
    """The sum of the logarithms of the diagonal of each L: (T,), half of the logarithm of the determinant of L L^T."""
    size = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -size if keeps_inverse(factor) else size


def inverted(factor: Tensor) -> Tensor:
    """The inverses (..., D, D) of lower triangular matrices, from inverses of the blocks along the diagonal.

    The inverse of [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]]: two blocks become one of twice the size.
    """
    *batch, _, columns = factor.shape
    doublings = max(0, (columns - 1).bit_length() - LARGEST_BLOCK.bit_length() + 1)
    block = -(-columns // 2**doublings)
    size = block * 2**doublings
    # A multiple of the blocks: with ones on the diagonal the added columns stay apart.
    whole = torch.eye(size, dtype=factor.dtype, device=factor.device).expand(*batch, -1, -1).clone()
    whole[..., :columns, :columns] = factor
    blocks = _diagonal_blocks(whole, block)
    one = torch.eye(block, dtype=factor.dtype, device=factor.device)
    found = torch.linalg.solve_triangular(blocks, one.expand_as(blocks), upper=False)
    while block < size:
        first, second = found[..., 0::2, :, :], found[..., 1::2, :, :]
        below = _diagonal_blocks(whole, 2 * block)[..., block:, :block]
        pairs = found.new_zeros(*first.shape[:-2], 2 * block, 2 * block)
        pairs[..., :block, :block], pairs[..., block:, block:] = first, second
        pairs[..., block:, :block] = -(second @ below @ first)
        found, block = pairs, 2 * block
    return found[..., 0, :columns, :columns].contiguous()


def _diagonal_blocks(matrices: Tensor, block: int) -> Tensor:
    """The blocks (..., D / block, block, block) along the diagonal of matrices (..., D, D)."""
    number = matrices.shape[-1] // block
    parts = matrices.unflatten(-1, (number, block)).unflatten(-3, (number, block))
    return parts.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _cholesky(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors (..., D, D) of matrices, which they may replace, and (...) where there is none: not 0."""
    columns = matrices.shape[-1]
    if matrices.device.type != "cpu" or columns <= FACTORED_BLOCK:
        return torch.linalg.cholesky_ex(matrices)
    # By blocks of columns most of the work are products, which every library does well.
    failed = torch.zeros(matrices.shape[:-2], dtype=torch.int32, device=matrices.device)
    for start in range(0, columns, FACTORED_BLOCK):
        end = min(start + FACTORED_BLOCK, columns)
        factor, code = torch.linalg.cholesky_ex(matrices[..., start:end, start:end])
        failed = torch.maximum(failed, code)
        matrices[..., start:end, start:end] = factor
        matrices[..., start:end, end:] = 0
        below = torch.linalg.solve_triangular(
            factor.mT, matrices[..., end:, start:end], upper=True, left=False
        )
        matrices[..., end:, start:end] = below
        for first in range(end, columns, FACTORED_BLOCK):
            last = min(first + FACTORED_BLOCK, columns)
            own = below[..., first - end : last - end, :]
            matrices[..., first:, first:last] -= below[..., first - end :, :] @ own.mT
    return matrices, failed
