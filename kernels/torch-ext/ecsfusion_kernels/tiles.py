"""What kernels of points and centers have in common: tiles of rows, the lowest score of each, and what is stored."""

from __future__ import annotations

from torch import Tensor

from .language import jit, tl

STEPS = dict.fromkeys(("problem_stride", "point_stride", "dim_stride"), "i64")
"""Types of the strides of points."""


def vector_of(points: Tensor) -> int:
    """Numbers that are loaded at once: 4 where every point is a whole number of 16-byte pieces, else 1."""
    problem_stride, point_stride, dim_stride = points.stride()
    steps = (points.shape[-1], problem_stride, point_stride)
    aligned = points.data_ptr() % 16 == 0 and all(step % 4 == 0 for step in steps)
    return 4 if aligned and dim_stride == 1 else 1


@jit
def in_pieces(num_dims, problem_stride, point_stride, dim_stride, VECTOR: tl.constexpr):
    """The same numbers; with VECTOR those of rows without gaps that consist of pieces of so many values.

    The values do not change, but the compiler then knows that they are divisible.
    """
    if VECTOR > 1:
        num_dims = num_dims // VECTOR * VECTOR
        problem_stride = problem_stride // VECTOR * VECTOR
        point_stride = point_stride // VECTOR * VECTOR
        dim_stride = 1
    return num_dims, problem_stride, point_stride, dim_stride


@jit
def load_tile(ptr, row, num_rows, column, num_columns, row_stride, column_stride):
    """A tile (BLOCK_ROWS, BLOCK_COLUMNS) of a matrix, zero outside of it."""
    mask = (row < num_rows)[:, None] & (column < num_columns)[None, :]
    return tl.load(ptr + row[:, None] * row_stride + column[None, :] * column_stride, mask, other=0.0)


@jit
def first_minimum(scores, index, END: tl.constexpr):
    """The lowest score of each row and its index, the first among equals."""
    lowest = tl.min(scores, 1)
    return lowest, tl.min(tl.where(scores == lowest[:, None], index[None, :], END), 1)


@jit
def store_nearest(labels_ptr, distance_ptr, point, num_points, lowest, label, length):
    """A point whose square is not finite has label -1 and distance NaN; nothing is stored beyond the last point."""
    is_finite = length < float("inf")
    distance = tl.where(is_finite, tl.maximum(lowest + length, 0.0), float("nan"))
    tl.store(labels_ptr + point, tl.where(is_finite, label, -1).to(tl.int64), point < num_points)
    tl.store(distance_ptr + point, distance, point < num_points)
