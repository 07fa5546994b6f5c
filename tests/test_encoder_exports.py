"""Which families of encoders are exported as ONNX, as the table of `docs/encoders.md` says."""

from __future__ import annotations

import encoder_families
import pytest
import torch
from fusion_fixtures import Sensor

from ecsfusion import FusionForClassification

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", list(encoder_families.FAMILIES))
def test_a_family_is_exported_or_said_not_to_be(name, tmp_path):
    encoders = {"it": encoder_families.FAMILIES[name].make(), "table": Sensor()}
    model = FusionForClassification.from_modality_pretrained(encoders, num_labels=3).eval()
    example = {"table": torch.randn(1, 4, 3)}
    if name not in encoder_families.NOT_AS_ONNX:
        # It raises where ONNX Runtime answers otherwise than the model.
        model.export(tmp_path / "onnx", "onnx", example=example)
        return
    with pytest.raises(
        ValueError, match=r"the encoder of 'it' .* as ONNX: torch.onnx failed .*Give format='torch'"
    ):
        model.export(tmp_path / "onnx", "onnx", example=example)
    model.export(tmp_path / "torch", "torch", example=example)
