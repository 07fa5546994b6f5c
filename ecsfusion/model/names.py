"""Names of the heads, and names that no modality may have."""

from __future__ import annotations

from collections.abc import Sequence

FUSED = "fused"
"""The fused head."""

CALIBRATED = "calibrated"
"""The calibrated combination of all heads."""

REST = "rest"
"""All other modalities than one, where there are three or more."""

FLOOR = "floor_"
"""What stands between "unique_" and a modality in the name of the noise floor of its uniqueness."""

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
        "self",
        "synergy",
        "unimodal",
    }
)
"""Names that inputs, metrics, the readout, parameter groups or the folders of a run use."""


def check_modality_names(names: Sequence[str]) -> None:
    """Check that modalities can have these names.

    Raises:
        ValueError: one is no Python identifier, or is used for something else, or two would log under one name.
    """
    # Imported here, because the controller reads the names above without torch.
    from torch import nn

    # A submodule's name becomes an attribute of the nn.ModuleDict, which has others already, such as "type".
    attributes = {*dir(nn.ModuleDict())}
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED_NAMES:
            raise ValueError(
                f"{name!r} cannot name a modality: use a Python identifier other than {sorted(RESERVED_NAMES)}."
            )
        if name in attributes:
            raise ValueError(
                f"{name!r} cannot name a modality: torch.nn modules have an attribute of this name."
            )
    if len(names) > 2 and REST in names:
        raise ValueError(
            f"{REST!r} cannot name one of {len(names)} modalities: there it stands for all others of one; rename it."
        )
    for name in names:
        if name.removeprefix(FLOOR) in names and name.startswith(FLOOR):
            raise ValueError(
                f"the modalities {[*names]} would log two values as {f'unique_{name}'!r}, the uniqueness of one and "
                "the noise floor of the other; rename one."
            )
