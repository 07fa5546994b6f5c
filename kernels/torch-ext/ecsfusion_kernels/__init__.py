"""GPU kernels of the probe, with plain PyTorch references."""

from .histogram import histogram
from .loglinear import loglinear
from .poisson import poisson
from .principal import principal_directions
from .random import uniform
from .reference import (
    BrojaSolution,
    Clustering,
    broja,
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
    "loglinear",
    "nearest",
    "poisson",
    "principal_directions",
    "project",
    "scale_rows",
    "seed",
    "uniform",
]
