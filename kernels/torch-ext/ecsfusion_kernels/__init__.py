"""GPU kernels of the probe, with plain PyTorch references."""

from .broja import broja
from .histogram import histogram
from .kmeans import lloyd, nearest
from .loglinear import loglinear
from .poisson import poisson
from .principal import principal_directions
from .project import project
from .random import uniform
from .reference import BrojaSolution, Clustering, scale_rows
from .seed import seed

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
