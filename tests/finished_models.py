"""Models as training leaves them, without a training: heads that answer, a fitted readout, best heads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from fusion_fixtures import tiny_bert, tiny_vit
from PIL import Image
from test_processing import make_image_processor, make_tokenizer

from ecsfusion import FusionForClassification, FusionProcessor, Readout


def finished_model(
    encoders: Mapping[str, torch.nn.Module],
    best_head: str | None = None,
    problem_type: str = "single_label_classification",
    **config: object,
) -> FusionForClassification:
    """A model of three classes, whose `best_head` has other weights than the encoder that the fused head sees."""
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        encoders, id2label={0: "a", 1: "b", 2: "c"}, problem_type=problem_type, **config
    )
    with torch.no_grad():
        for parameter in [*model.heads.parameters(), *model.fusion.parameters()]:
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.config.readout = fitted_readout([*encoders, "fused"], problem_type).to_dict()
    if best_head is not None:
        parts = {"encoder": model.encoders[best_head], "head": model.heads[best_head]}
        copies = torch.nn.ModuleDict(copy.deepcopy(parts))
        with torch.no_grad():
            for parameter in copies.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.set_best_heads({best_head: copies.state_dict()})
    return model.eval()


def fitted_readout(heads: list[str], problem_type: str, excluded: tuple[str, ...] = ()) -> Readout:
    """A readout in which every head of 60 rows knows something."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(3, (60,), generator=generator)
    one_hot = torch.nn.functional.one_hot(classes, 3).float()
    logits = {name: 1.5 * one_hot + torch.randn(60, 3, generator=generator) for name in heads}
    labels = classes if problem_type == "single_label_classification" else one_hot
    return Readout.fit(logits, labels, problem_type=problem_type, excluded_from_readout=excluded)


def save_finished_model(folder: Path, picture: str) -> None:
    """A model of pictures and texts with its processor, and a picture of this name to ask it about."""
    image = make_image_processor(folder / "sources" / "image", image_mean=[0.5], image_std=[0.5])
    processor = FusionProcessor({"image": image, "text": make_tokenizer(folder / "sources" / "text")})
    finished_model({"image": tiny_vit(), "text": tiny_bert()}, "image").save_pretrained(folder)
    processor.save_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / picture)
