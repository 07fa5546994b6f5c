"""Names of the heads, and names that no modality may have."""

from __future__ import annotations

FUSED = "fused"
"""The fused head."""

CALIBRATED = "calibrated"
"""The calibrated combination of all heads."""

RESERVED_NAMES = frozenset(
    {
        CALIBRATED,
        "fusion",
        FUSED,
        "initial",
        "label",
        "labels",
        "present",
        "redundancy",
        "synergy",
        "unimodal",
    }
)
"""Names that inputs, metrics, the readout, parameter groups or the folders of a run use."""


def check_modality_name(name: str) -> None:
    """Check that a modality can have this name.

    Raises:
        ValueError: it is no Python identifier, or it is used for something else.
    """
    # Imported here, because the controller reads the names above without torch.
    from torch import nn

    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_NAMES:
        raise ValueError(
            f"{name!r} cannot name a modality: use a Python identifier other than {sorted(RESERVED_NAMES)}."
        )
    # A submodule's name becomes an attribute of the nn.ModuleDict, which has others already, such as "type".
    if hasattr(nn.ModuleDict, name):
        raise ValueError(f"{name!r} cannot name a modality: torch.nn modules have an attribute of this name.")
