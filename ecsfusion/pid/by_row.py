"""What each row tells, as far as intervals need it: squared sums over groups of rows."""

import torch
from ecsfusion_kernels import group_squares
from torch import Tensor


def squared_sums(rows: Tensor, group: Tensor) -> Tensor:
    """Squared sums over groups (12, P) of the growth of the information by row, of that of the atoms, and of the atoms.

    Args:
        rows: (4, 2, P, N) float64, the part of each row in the information of the first side of each of P pairs, of the
            second, of both, and of the union; by readouts fitted on all but one fold, and on half of the rows. Or
            (4, 1, P, N) where nothing grows: then the result is (4, P), of the atoms alone.
        group: (N,) int64, the group of each row, ascending from 0.
    """
    varying = atoms = _atom_rows(rows[:, 0])
    if rows.shape[1] > 1:
        grown = rows[:, 0] - rows[:, 1]
        varying = torch.cat([grown, atoms - _atom_rows(rows[:, 1]), atoms])
    return group_squares(varying.flatten(0, 1), group).view(varying.shape[:-1])


def _atom_rows(parts: Tensor) -> Tensor:
    """Redundancy, both kinds of uniqueness and synergy by row, from information by row (4, ...)."""
    beside = parts[3] - parts[:2]
    return torch.cat([parts[:1] - beside[1:], beside[1:], beside[:1], parts[2:3] - parts[3:]])
