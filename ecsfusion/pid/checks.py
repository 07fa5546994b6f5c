"""Checks of single numbers that a user gives. No torch."""

from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether `value` is a real number of Python or NumPy; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer of Python or NumPy; booleans are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_positive(value: int, name: str) -> None:
    """Check that `value` is a whole number, of Python or NumPy, of at least 1.

    Raises:
        ValueError: if it is not. The message names the argument `name`.
    """
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_seed(seed: int, name: str = "seed") -> None:
    """Check that `seed` is a whole number of 64 bits.

    Raises:
        TypeError: if it is no whole number. The message names the argument `name`.
        ValueError: if it does not fit.
    """
    if not is_whole(seed):
        raise TypeError(f"{name} must be a whole number, got {seed!r}")
    if not -(2**63) <= seed < 2**63 - 2:
        raise ValueError(f"{name} must fit into 64 bits, got {seed}")


def check_tolerance(tolerance: float) -> None:
    """Check the certified width, in bits, at which a solver may stop.

    Raises:
        ValueError: if it is no positive number.
    """
    if not is_number(tolerance) or not tolerance > 0:
        raise ValueError(f"tolerance must be a positive number of bits, got {tolerance!r}")
