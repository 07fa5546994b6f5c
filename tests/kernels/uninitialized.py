"""Memory that `torch.empty` returns, filled: with NaN, or with the largest integer."""

import contextlib

import torch


@contextlib.contextmanager
def filled():
    """Within it, what a kernel reads before it was written shows in its results, or is an address out of range."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills
