"""What each row tells, as far as intervals need it: squared sums over groups of rows."""

import torch
from ecsfusion_kernels import group_squares
from torch import Tensor


def squared_sums(rows: Tensor, group: Tensor, are_sources: bool = False) -> Tensor:
    """Squared sums over groups (12, P) of the growth of the information by row, of that of the atoms, and of the atoms.

    Args:
        rows: (4, 2, P, N) float64, the part of each row in the information of the first side of each of P pairs, of the
            second, of both, and of the union; by readouts fitted on all but one fold, and on half of the rows. Or
            (4, 1, P, N) where nothing grows: then the result is (4, P), of the atoms alone.
        group: (N,) int64, the group of each row, ascending from 0.
        are_sources: whether groups may be of any size. One that has many of the rows draws the mean to its own, and so
            looks less different than it is: its sum counts as by how much the mean would move without it (jackknife).
    """
    varying = atoms = _atom_rows(rows[:, 0])
    if rows.shape[1] > 1:
        grown = rows[:, 0] - rows[:, 1]
        varying = torch.cat([grown, atoms - _atom_rows(rows[:, 1]), atoms])
    if not are_sources:
        return group_squares(varying.flatten(0, 1), group).view(varying.shape[:-1])
    deviations = varying - varying.mean(-1, keepdim=True)
    sums = torch.zeros_like(varying).index_add_(-1, group, deviations)
    share = torch.zeros_like(varying[0, 0]).index_add_(0, group, torch.ones_like(varying[0, 0])) / len(group)
    # Of sources of one size these are the sums themselves.
    return (sums * (1 - 1 / (share > 0).sum()) / (1 - share)).square().sum(-1)


def _atom_rows(parts: Tensor) -> Tensor:
    """Redundancy, both kinds of uniqueness and synergy by row, from information by row (4, ...)."""
    beside = parts[3] - parts[:2]
    return torch.cat([parts[:1] - beside[1:], beside[1:], beside[:1], parts[2:3] - parts[3:]])
