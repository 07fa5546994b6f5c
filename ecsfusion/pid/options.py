"""Options of the estimator, checked once. No torch."""

from dataclasses import dataclass
from typing import Literal

from ecsfusion.pid.checks import check_positive, check_seed, check_tolerance, is_whole

METHODS = ("posteriors", "clusters")
MAX_DEFAULT_COMPONENTS = 16
MAX_COMPONENTS = 1 << 12
CLUSTERS = 20
"""Clusters of embeddings, in the method of clusters."""
POSTERIOR_CLUSTERS = 128
"""Clusters of posteriors, in the method of posteriors, where there are rows enough."""
FEW_POSTERIOR_CLUSTERS = 64
MANY_ROWS = 4000
ONLY_CLUSTERS = {"num_components": None, "correction": True, "permutations": 16, "bootstrap": 50}
"""Options of the method of clusters alone, with their defaults."""


def asks_for_no_replicates(name: str, value: object) -> bool:
    """Whether an option of clusters asks for no bootstrap, which holds in the method of posteriors anyway."""
    return name == "bootstrap" and is_whole(value) and value == 0


@dataclass(frozen=True)
class EstimatorOptions:
    """How a partial information decomposition is estimated from embeddings and labels.

    `fast_pid`, `fast_pids`, `pid_tensors` and `stream_pid` take these values as keyword arguments and make one such
    object, which checks them. All code below them takes the object. An option that is None has its default.

    Attributes:
        method: "posteriors" for held-out posteriors (`ecsfusion.pid.posteriors`), "clusters" for clusters of the
            embeddings (`ecsfusion.pid.clusters`), as in arXiv 2509.20840.
        num_clusters: clusters per modality: of posteriors, 128, or 64 where rows are few; of embeddings, 20, or "auto"
            to choose the number from the samples per class.
        num_components: clusters only: principal directions kept before clustering; max(5, C - 1), at most 16.
        correction: clusters only: False for plug-in values, without correction of the bias of small samples.
        permutations: clusters only: replicates per null distribution, for the correction and the noise floors; 16.
        bootstrap: clusters only: replicates for the confidence intervals, 0 for none; 50. The intervals of posteriors
            need none, so 0 changes nothing there.
        tolerance: certified width in bits at which the solver may stop.
        seed: of folds, clustering and replicates.

    Raises:
        TypeError: for replicates or a seed that are no whole numbers.
        ValueError: for values out of range, and options of the other method.
    """

    method: str = "posteriors"
    num_clusters: int | Literal["auto"] | None = None
    num_components: int | None = None
    correction: bool | None = None
    permutations: int | None = None
    bootstrap: int | None = None
    tolerance: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {list(METHODS)}, got {self.method!r}")
        for name, default in ONLY_CLUSTERS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
            elif self.method != "clusters" and not asks_for_no_replicates(name, getattr(self, name)):
                raise ValueError(
                    f'{name} is an option of method="clusters", and method is {self.method!r}; '
                    'leave it out, or give method="clusters"'
                )
        for name, value in (("permutations", self.permutations), ("bootstrap", self.bootstrap)):
            if not is_whole(value):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
        if self.num_permutations < 2:
            raise ValueError(f"permutations must be at least 2, got {self.permutations}")
        if self.num_replicates == 1 or self.num_replicates < 0:
            raise ValueError(f"bootstrap must be 0 or at least 2 replicates, got {self.bootstrap}")
        check_tolerance(self.tolerance)
        check_seed(self.seed)
        if self.num_clusters == "auto":
            if self.method != "clusters":
                raise ValueError('num_clusters="auto" is an option of method="clusters"; leave it out')
        elif self.num_clusters is not None:
            check_positive(self.num_clusters, "num_clusters")
        if self.num_components is not None:
            check_positive(self.num_components, "num_components")
            if self.num_components > MAX_COMPONENTS:
                raise ValueError(
                    f"num_components must be at most {MAX_COMPONENTS}, got {self.num_components}"
                )

    @property
    def num_permutations(self) -> int:
        """Replicates per null distribution."""
        return int(self.permutations or 0)

    @property
    def num_replicates(self) -> int:
        """Replicates for the confidence intervals."""
        return int(self.bootstrap or 0)

    def components(self, num_classes: int) -> int:
        """The number of principal directions for labels of `num_classes` classes."""
        if self.num_components is not None:
            return self.num_components
        return min(max(5, num_classes - 1), MAX_DEFAULT_COMPONENTS)

    def posterior_clusters(self, num_rows: int) -> int:
        """The number of clusters of posteriors for so many rows."""
        if isinstance(self.num_clusters, int):
            return self.num_clusters
        return POSTERIOR_CLUSTERS if num_rows >= MANY_ROWS else FEW_POSTERIOR_CLUSTERS
