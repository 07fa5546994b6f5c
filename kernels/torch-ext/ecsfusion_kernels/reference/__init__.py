"""The probe's functions in plain PyTorch: the truth that the GPU kernels are tested against."""

from .broja import BrojaSolution, broja
from .histogram import histogram
from .kmeans import Clustering, lloyd, nearest, seed
from .project import project, scale_rows
from .random import uniform

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
