"""Options of the estimator, checked once. No torch."""

from dataclasses import dataclass

from ecsfusion.pid.checks import check_positive, check_seed, check_tolerance, is_whole

MAX_DEFAULT_COMPONENTS = 16
MAX_COMPONENTS = 1 << 12


@dataclass(frozen=True)
class EstimatorOptions:
    """How a partial information decomposition is estimated from embeddings and labels.

    `fast_pid`, `fast_pids`, `pid_tensors` and `stream_pid` take these values as keyword arguments and make one such
    object, which checks them. All code below them takes the object.

    Attributes:
        num_clusters: clusters per modality; None to choose the number from the samples per class
            (`ecsfusion.pid.estimate.choose_clusters`).
        num_components: principal directions kept before clustering; None for max(5, C - 1), at most 16.
        correction: False for plug-in values, without correction of the bias of small samples.
        permutations: replicates per null distribution, for the correction and the noise floors.
        bootstrap: replicates for the confidence intervals; 0 for none.
        tolerance: certified width in bits at which the solver may stop.
        seed: of clustering and replicates.

    Raises:
        TypeError: for replicates or a seed that are no whole numbers.
        ValueError: for values out of range.
    """

    num_clusters: int | None = 20
    num_components: int | None = None
    correction: bool = True
    permutations: int = 16
    bootstrap: int = 50
    tolerance: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("permutations", self.permutations), ("bootstrap", self.bootstrap)):
            if not is_whole(value):
                raise TypeError(f"{name} must be a whole number, got {value!r}")
        if self.permutations < 2:
            raise ValueError(f"permutations must be at least 2, got {self.permutations}")
        if self.bootstrap == 1 or self.bootstrap < 0:
            raise ValueError(f"bootstrap must be 0 or at least 2 replicates, got {self.bootstrap}")
        check_tolerance(self.tolerance)
        check_seed(self.seed)
        if self.num_clusters is not None:
            check_positive(self.num_clusters, "num_clusters")
        if self.num_components is not None:
            check_positive(self.num_components, "num_components")
            if self.num_components > MAX_COMPONENTS:
                raise ValueError(
                    f"num_components must be at most {MAX_COMPONENTS}, got {self.num_components}"
                )

    def components(self, num_classes: int) -> int:
        """The number of principal directions for labels of `num_classes` classes."""
        if self.num_components is not None:
            return self.num_components
        return min(max(5, num_classes - 1), MAX_DEFAULT_COMPONENTS)
