"""The probe's functions in plain PyTorch: the truth that the GPU kernels are tested against."""

from .broja import BrojaSolution, broja
from .histogram import histogram
from .kmeans import Clustering, lloyd, nearest, seed
from .loglinear import loglinear
from .poisson import poisson
from .principal import principal_directions
from .project import project, scale_rows
from .random import uniform

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
