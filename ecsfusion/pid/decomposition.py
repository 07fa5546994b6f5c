"""Partial information decomposition (PID) of joint tables: redundancy, uniqueness, synergy.

The definition is that of Bertschinger et al. 2014, "Quantifying unique information" (BROJA): with Q the
distribution of largest H_Q(Y | X1, X2) among those with P's pair marginals (X1, Y) and (X2, Y), in bits,

    R  = I(Y; X1) + I(Y; X2) - I_Q(Y; X1, X2)        U1 = I_Q(Y; X1, X2) - I(Y; X2)
    S  = I_P(Y; X1, X2) - I_Q(Y; X1, X2)             U2 = I_Q(Y; X1, X2) - I(Y; X1)
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ecsfusion_kernels import broja, table_sums
from ecsfusion_kernels.reference.broja import LN2
from numpy.typing import NDArray
from torch import Tensor

from ecsfusion.data.values import check_values
from ecsfusion.extras import extra_for
from ecsfusion.pid.checks import check_tolerance, is_whole
from ecsfusion.pid.inputs import as_tensor, check_not_masked


@dataclass(frozen=True)
class PID:
    """A partial information decomposition, in bits; (...) are the leading dimensions of the tables.

    All tensors are float64 on the device of the tables. What `decompose` returns is certified: the redundancy of
    the table lies in [redundancy, redundancy + gap], its synergy in [synergy, synergy + gap] and each uniqueness
    in [unique - gap, unique].
    """

    names: tuple[str, ...]
    """The modalities, in the order of `unique` and `mutual_information`."""
    redundancy: Tensor
    """(...): the information about the label that both modalities share."""
    unique: Tensor
    """(..., M): the information about the label that one modality has and the other does not."""
    synergy: Tensor
    """(...): the information about the label that only both modalities together have."""
    mutual_information: Tensor
    """(..., M): I(X_m; Y) of each modality."""
    joint_mutual_information: Tensor
    """(...): I(X1, X2; Y)."""
    conditional_mutual_information: Tensor | None
    """(...): I(X1; X2 | Y); zero when the modalities are independent given the label. None by held-out posteriors,
    which have `dependence` instead."""
    gap: Tensor
    """(...): the width of the certified interval."""
    redundancy_floor: Tensor | None = None
    """(...): the redundancy that pure noise reaches; None where no noise was drawn."""
    unique_floor: Tensor | None = None
    """(..., M): the same for the uniqueness of each modality."""
    synergy_floor: Tensor | None = None
    """(...): the same for the synergy."""
    redundancy_interval: Tensor | None = None
    """(..., 2): the lower and the upper end of the confidence interval; None where none was estimated."""
    unique_interval: Tensor | None = None
    """(..., M, 2): the same for the uniqueness of each modality."""
    synergy_interval: Tensor | None = None
    """(..., 2): the same for the synergy."""
    plugin: "PID | None" = None
    """The values before bias correction; None where none was corrected."""
    held_out: "PID | None" = None
    """By held-out posteriors: what readouts know about rows that they were not fitted on. Its `mutual_information` and
    `joint_mutual_information` are lower bounds of the information. None by clusters."""
    dependence: Tensor | None = None
    """(...): by held-out posteriors: what readouts of both modalities know beyond the product of their posteriors.
    Zero when the modalities are independent given the label. None by clusters."""
    enough_samples: Tensor | None = None
    """(...): by held-out posteriors: the rows, or groups, with which `held_out` would be within 5 % of H(Y) of the
    values here, and the floors below that. With fewer, `held_out` is what is proven. None by clusters."""
    num_samples: int | None = None
    """The samples behind the table; None where it may hold probabilities."""
    num_groups: int | None = None
    """The groups of these samples, where they were given; `enough_samples` then counts groups."""
    num_clusters: tuple[int, ...] = ()
    """Rows and columns of the table: the number of clusters of each modality."""
    num_classes: int = 0
    """Classes of the label."""
    seconds: float = 0.0
    """The time that the computation took."""

    def __str__(self) -> str:
        if self.redundancy.ndim:
            return f"PID of {self.redundancy.numel()} tables {tuple(self.redundancy.shape)}, {self._size()}"
        rows = self._atoms()
        width = max(len(f"I({name}; label)") for name in self.names)
        width = max(width, *(len(row[0]) for row in rows), len("I(all; label)"))
        lines = [f"PID in bits, {self._size()}"]
        for label, value, floor, interval in rows:
            line = f"  {label:<{width}}  {float(value):7.4f}"
            if interval is not None:
                line += f"  [{float(interval[0]):7.4f}, {float(interval[1]):7.4f}]"
            if floor is not None:
                line += f"  noise {float(floor):7.4f}"
            lines.append(line)
        known = [*self.mutual_information.tolist(), float(self.joint_mutual_information)]
        proven = [""] * len(known)
        if self.held_out is not None:
            bounds = [
                *self.held_out.mutual_information.tolist(),
                float(self.held_out.joint_mutual_information),
            ]
            proven = [f"  at least {bound:.4f}" for bound in bounds]
        for name, value, bound in zip([*self.names, "all"], known, proven, strict=True):
            lines.append(f"  {f'I({name}; label)':<{width}}  {value:7.4f}{bound}")
        what, number = ("rows", self.num_samples) if self.num_groups is None else ("groups", self.num_groups)
        if self.enough_samples is not None and float(self.enough_samples) > (number or 0):
            lines.append(f"  few {what}: {float(self.enough_samples):.3g} would settle these values")
        lines.append(f"  certified to {float(self.gap):.1e} bits, {self.seconds:.3g} s")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        from ecsfusion.pid.html import html_of_pid

        return html_of_pid(self)

    def _atoms(self) -> list[tuple[str, Tensor, Tensor | None, Tensor | None]]:
        """Label, value, noise floor and interval of every atom of a single table."""
        return [
            ("redundancy", self.redundancy, self.redundancy_floor, self.redundancy_interval),
            *(
                (
                    f"unique {name}",
                    self.unique[i],
                    _part(self.unique_floor, i),
                    _part(self.unique_interval, i),
                )
                for i, name in enumerate(self.names)
            ),
            ("synergy", self.synergy, self.synergy_floor, self.synergy_interval),
        ]

    def __getitem__(self, index: Any) -> "PID":
        """The decomposition of one table, or of some, of a batch: `index` goes to the leading dimensions."""
        if not self.redundancy.ndim:
            raise IndexError("this PID holds a single table")
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        values: dict[str, Any] = {name: v[index] for name, v in parts.items() if isinstance(v, (Tensor, PID))}
        return replace(self, **values)

    def _size(self) -> str:
        clusters = " x ".join(str(k) for k in self.num_clusters)
        table = f"{clusters} clusters" if clusters else "held-out posteriors"
        size = f"{table}, {self.num_classes} classes"
        if self.num_samples is None:
            return size
        groups = "" if self.num_groups is None else f" of {self.num_groups} groups"
        return f"{self.num_samples} samples{groups}, {size}"

    def to_dict(self) -> dict[str, Any]:
        """The values as plain floats, lists and dictionaries, ready for JSON.

        Where there is one value per modality, a dictionary by modality name.
        """

        def per_modality(values: Tensor | None, axis: int) -> dict[str, Any] | None:
            if values is None:
                return None
            return {name: values.select(axis, i).tolist() for i, name in enumerate(self.names)}

        def plain(values: Tensor | None) -> Any:
            return None if values is None else values.tolist()

        return {
            "redundancy": plain(self.redundancy),
            "unique": per_modality(self.unique, -1),
            "synergy": plain(self.synergy),
            "mutual_information": per_modality(self.mutual_information, -1),
            "joint_mutual_information": plain(self.joint_mutual_information),
            "conditional_mutual_information": plain(self.conditional_mutual_information),
            "gap": plain(self.gap),
            "floor": {
                "redundancy": plain(self.redundancy_floor),
                "unique": per_modality(self.unique_floor, -1),
                "synergy": plain(self.synergy_floor),
            },
            "interval": {
                "redundancy": plain(self.redundancy_interval),
                "unique": per_modality(self.unique_interval, -2),
                "synergy": plain(self.synergy_interval),
            },
            "plugin": None if self.plugin is None else self.plugin.to_dict(),
            "held_out": None if self.held_out is None else self.held_out.to_dict(),
            "dependence": plain(self.dependence),
            "enough_samples": plain(self.enough_samples),
            "num_samples": self.num_samples,
            "num_groups": self.num_groups,
            "num_clusters": list(self.num_clusters),
            "num_classes": self.num_classes,
            "seconds": self.seconds,
        }

    def plot(self, path: str | None = None) -> Any:
        """Draw the atoms as bars with intervals and noise floors.

        Args:
            path: the file to save the picture to; None to save nothing.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ValueError: for a batch of tables, and a path that is no picture's.
            ImportError: the extra `plots` is not installed.
        """
        with extra_for("a picture"):
            from ecsfusion.pid.plotting import plot_pid

        return plot_pid(self, path)


class Decomposition(NamedTuple):
    """The tensors of a `PID`, under the same names."""

    redundancy: Tensor
    unique: Tensor
    synergy: Tensor
    mutual_information: Tensor
    joint_mutual_information: Tensor
    conditional_mutual_information: Tensor | None
    gap: Tensor
    redundancy_floor: Tensor | None = None
    unique_floor: Tensor | None = None
    synergy_floor: Tensor | None = None
    redundancy_interval: Tensor | None = None
    unique_interval: Tensor | None = None
    synergy_interval: Tensor | None = None
    dependence: Tensor | None = None


def decompose(
    joint: Tensor | NDArray[Any],
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 20_000,
    names: Sequence[str] | None = None,
) -> PID:
    """Partial information decomposition (Bertschinger et al. 2014) of joint tables, with certified bounds.

    Args:
        joint: (..., K1, K2, C) tensor or array of counts or probabilities, any real dtype, on any device; each
            table is divided by its sum. Rows, columns, cells and classes may be empty.
        tolerance: the certified width, in bits, at which the solver stops.
        max_iterations: the number of iterations after which the solver stops in any case. The certified interval
            is then wider than `tolerance` but still valid, and a warning is given.
        names: the two modalities; "x1" and "x2" when None.

    Returns:
        PID with plug-in values (no bias correction), on the device of `joint`.

    Raises:
        TypeError: for a `joint` that holds no real numbers.
        ValueError: for a `joint` that is no non-negative finite table with mass, and bad options.
    """
    start = time.perf_counter()
    table = normalized_table(joint)
    names = checked_options(tolerance, max_iterations, names)
    decomposition = decompose_tensors(table, tolerance, max_iterations)
    gap = decomposition.gap
    if gap.numel() and float(gap.max()) > tolerance:
        warnings.warn(
            f"{int((gap > tolerance).sum())} of {gap.numel()} tables did not reach the tolerance of {tolerance:g} bits"
            f" in {max_iterations} iterations; the largest certified gap is {float(gap.max()):.2g} bits",
            stacklevel=2,
        )
    return PID(
        **decomposition._asdict(),
        names=names,
        num_clusters=tuple(table.shape[-3:-1]),
        num_classes=table.shape[-1],
        seconds=time.perf_counter() - start,
    )


def checked_options(tolerance: float, max_iterations: int, names: Sequence[str] | None) -> tuple[str, str]:
    """Check the options of `decompose` and return the names of the two modalities.

    Raises:
        ValueError: for a bad option.
    """
    check_tolerance(tolerance)
    if not is_whole(max_iterations) or max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations!r}")
    return checked_names(names)


def checked_names(names: Sequence[str] | None) -> tuple[str, str]:
    """The names of the two modalities, "x1" and "x2" when None.

    Raises:
        ValueError: unless they are two different strings.
    """
    if names is None:
        names = ("x1", "x2")
    if (
        isinstance(names, str)
        or not isinstance(names, Sequence)
        or not all(isinstance(n, str) for n in names)
    ):
        raise ValueError(f"names must be two different modality names, got {names!r}")
    names = tuple(names)
    if len(names) != 2 or len(set(names)) != 2:
        raise ValueError(f"names must be two different modality names, got {names}")
    return names[0], names[1]


def decompose_tensors(table: Tensor, tolerance: float, max_iterations: int) -> Decomposition:
    """The arithmetic of `decompose`, without checks.

    Where the solver runs as a kernel the host reads nothing.

    Args:
        table: (..., K1, K2, C) float64, not negative; each is divided by its sum.
        tolerance: as in `decompose`.
        max_iterations: as in `decompose`.
    """
    return decomposition_of(solve_tables(table, tolerance, max_iterations))


class SolvedTables(NamedTuple):
    """All that the decomposition of tables (...) follows from; float64."""

    sums: Tensor
    """(..., 15): those of `table_sums`."""
    conditional_entropy: Tensor
    """(...): a certified lower bound of the largest H_Q(Y | X1, X2), in bits."""
    gap: Tensor
    """(...): the certified width of it."""


def solve_tables(table: Tensor, tolerance: float, max_iterations: int) -> SolvedTables:
    """The entropies of tables and the solver's bounds; the arguments are those of `decompose_tensors`."""
    p1y, p2y, sums = table_sums(table)
    solution = broja(p1y, p2y, tolerance=tolerance, max_iterations=max_iterations)
    return SolvedTables(sums, solution.conditional_entropy, solution.gap)


def decomposition_of(solution: SolvedTables) -> Decomposition:
    """The atoms of solved tables: some operations on a few numbers of each."""
    label, x1, x2, x1y, x2y, x1x2, whole = (solution.sums[..., :7] / -LN2).unbind(-1)
    single = torch.stack([label + x1 - x1y, label + x2 - x2y], -1).clamp_min(0.0)

    # I_Q lies in [union - gap, union]; R, S >= 0 and U1, U2 >= 0 bound it as well, so no atom is below zero.
    larger, both = single.amax(-1), single.sum(-1)
    joint = torch.maximum(label + x1x2 - whole, larger)
    union = torch.minimum(label - solution.conditional_entropy, torch.minimum(both, joint))
    lower = torch.maximum(label - solution.conditional_entropy - solution.gap, larger)
    union = torch.maximum(union, larger)
    return Decomposition(
        redundancy=both - union,
        unique=union.unsqueeze(-1) - single.flip(-1),
        synergy=joint - union,
        mutual_information=single,
        joint_mutual_information=joint,
        conditional_mutual_information=(x1y + x2y - whole - label).clamp_min(0.0),
        gap=(union - lower).clamp_min(0.0),
    )


def normalized_table(joint: Tensor | NDArray[Any]) -> Tensor:
    """Counts or probabilities (..., K1, K2, C) as float64 tables of sum 1 on the same device.

    Raises:
        TypeError: for a `joint` that holds no real numbers.
        ValueError: for a `joint` that is no non-negative finite table with mass.
    """
    if isinstance(joint, np.ndarray):
        check_not_masked(joint, "joint")
        if joint.dtype.kind not in "biuf":
            raise TypeError(f"joint must be real numbers, got dtype {joint.dtype}")
        joint = as_tensor(joint)
    if not isinstance(joint, Tensor):
        raise TypeError(f"joint must be a torch.Tensor or numpy array, got {type(joint).__name__}")
    check_values(joint, "joint")
    if joint.is_complex():
        raise TypeError(f"joint must be real numbers, got dtype {joint.dtype}")
    if joint.ndim < 3 or 0 in joint.shape[-3:]:
        raise ValueError(f"joint must have the shape (..., K1, K2, C), got {tuple(joint.shape)}")
    table = joint.detach().to(torch.float64)
    if not bool(torch.isfinite(table).all()):
        raise ValueError("joint must be finite, found NaN or infinite cells; remove them before counting")
    if bool((table < 0).any()):
        raise ValueError(
            f"joint must not be negative, found {float(table.min()):g}; give counts or probabilities"
        )
    return scaled_to_one(table)


def scaled_to_one(table: Tensor) -> Tensor:
    """Tables (..., K1, K2, C) of numbers that are not negative, each divided by its sum.

    Raises:
        ValueError: for a table whose cells are all zero.
    """
    # Dividing by the largest cell first keeps the sum finite.
    peak = table.detach().amax((-3, -2, -1), keepdim=True)
    if bool((peak == 0).any()):
        raise ValueError("joint has a table whose cells are all zero; leave tables without samples out")
    table = table / peak
    return table / table.sum((-3, -2, -1), keepdim=True)


def entropy(table: Tensor, dims: int) -> Tensor:
    """Entropy in bits of distributions over the last `dims` dimensions of `table`; (...) float64."""
    return _nats(table.flatten(-dims)) / -LN2


def _nats(p: Tensor) -> Tensor:
    return torch.xlogy(p, p).sum(-1)


def _part(values: Tensor | None, index: int) -> Tensor | None:
    return None if values is None else values[index]
