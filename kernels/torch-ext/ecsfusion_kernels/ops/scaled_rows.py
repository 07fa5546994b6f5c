"""Rows scaled by their norms, in one read of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, aligned, jit, options, runs_kernels, skips_dispatch, tl
from ..reference.scaled_rows import scaled_rows as reference_scaled_rows
from .project import TYPES

__all__ = ["scaled_rows"]

BLOCK = 1024


@jit(do_not_specialize=["num_values", "num_dims"])
def _scaled_rows(
    rows_ptr, norms_ptr, radius_ptr, out_ptr, num_values: tl.int64, num_dims: tl.int64, BLOCK: tl.constexpr
):
    """Stores x / sqrt(norm^2 + radius^2) of each entry x, and 0 where that is not finite."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_values
    norm = tl.load(norms_ptr + place // num_dims, inside, other=1.0)
    radius = tl.load(radius_ptr)
    x = tl.load(rows_ptr + place, inside, other=0.0).to(tl.float64)
    scaled = (x * (1.0 / tl.sqrt(norm * norm + radius * radius))).to(tl.float32)
    tl.store(out_ptr + place, tl.where(tl.abs(scaled) < float("inf"), scaled, 0.0), inside)


def _launch_scaled_rows(embeddings: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    if embeddings.dtype not in TYPES:
        # The squares of a float64 norm may be infinite.
        return reference_scaled_rows(embeddings, norms, radius)
    out = torch.empty(embeddings.shape, dtype=torch.float32, device=embeddings.device)
    if out.numel():
        _scaled_rows[(-(-out.numel() // BLOCK),)](
            aligned(embeddings),
            aligned(norms),
            aligned(radius),
            out,
            out.numel(),
            out.shape[1],
            BLOCK=BLOCK,
            **options(4),
        )
    return out


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"norms_ptr": "*fp64", "radius_ptr": "*fp64", "out_ptr": "*fp32"}
    types |= {"num_values": "i64", "num_dims": "i64"}
    return [
        Variant(_scaled_rows, {"rows_ptr": f"*{name}", **types}, {"BLOCK": BLOCK}, 4)
        for name in TYPES.values()
    ]


@custom_op(add_op_namespace_prefix("scaled_rows"), mutates_args=())
def _scaled_rows_op(embeddings: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    if runs_kernels(embeddings):
        return _launch_scaled_rows(embeddings, norms, radius)
    return reference_scaled_rows(embeddings, norms, radius).contiguous()


@_scaled_rows_op.register_fake
def _(embeddings: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    return embeddings.new_empty(embeddings.shape, dtype=torch.float32)


def scaled_rows(embeddings: Tensor, norms: Tensor, radius: Tensor) -> Tensor:
    """Rows x / sqrt(norm^2 + radius^2), in float32; entries that are not finite then are zeros.

    Args:
        embeddings: (N, D) floating point.
        norms: (N,) float64, |x|.
        radius: () float64.

    Returns:
        (N, D) float32.

    Raises:
        TypeError: for embeddings that are no floating point numbers, and norms or a radius that are not float64.
        ValueError: for shapes that do not fit.
    """
    if not embeddings.is_floating_point() or norms.dtype != torch.float64 or radius.dtype != torch.float64:
        raise TypeError(
            "embeddings must be floating point, norms and radius float64, got "
            f"{embeddings.dtype}, {norms.dtype} and {radius.dtype}"
        )
    if embeddings.ndim != 2 or norms.shape != embeddings.shape[:1] or radius.ndim:
        raise ValueError(
            "embeddings must be (N, D), norms (N,) and radius a number, got shapes "
            f"{tuple(embeddings.shape)}, {tuple(norms.shape)} and {tuple(radius.shape)}"
        )
    function = reference_scaled_rows if skips_dispatch(embeddings, norms, radius) else _scaled_rows_op
    return function(embeddings, norms, radius)
