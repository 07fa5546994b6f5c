"""The namespace of the ops of this package.

kernel-builder puts a file of this name in its place, with a namespace of its own for every build, so that two builds
can be loaded into one process.
"""

import torch

ops = torch.ops.ecsfusion_kernels


def add_op_namespace_prefix(op_name: str) -> str:
    """The full name of an op of this package."""
    return f"ecsfusion_kernels::{op_name}"
