"""GPU kernels of the probe, with plain PyTorch references."""

from .random import uniform
from .reference import (
    BrojaSolution,
    Clustering,
    broja,
    histogram,
    lloyd,
    nearest,
    project,
    scale_rows,
    seed,
)

__all__ = [
    "BrojaSolution",
    "Clustering",
    "broja",
    "histogram",
    "lloyd",
    "nearest",
    "project",
    "scale_rows",
    "seed",
    "uniform",
]
