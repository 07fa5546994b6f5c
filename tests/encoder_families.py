"""Tiny encoders of many families, and the table of `docs/encoders.md` that is measured on them.

    python tests/encoder_families.py            # writes the table

Do not edit the text between the markers of the table by hand.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# A model is imported where it is made: a process that needs one kind starts sooner.
import transformers
from fusion_fixtures import TRANSFORMER, WAVES
from torch import Tensor, nn

from ecsfusion import FusionForClassification
from ecsfusion.model.encoders import embed, load_encoder
from ecsfusion.model.pooling import OWN_POOLING, TRAINED_POOLER_FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "encoders.md"
MARKER = "families"

TEXT = {**TRANSFORMER, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": 20, "d_model": 12, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_heads": 2}
PATCHES = {**TRANSFORMER, "image_size": 16, "patch_size": 8}
CLAP_AUDIO = {
    "patch_embeds_hidden_size": 8,
    "depths": [1, 1],
    "num_hidden_layers": 2,
    "num_attention_heads": [1, 2],
    "spec_size": 32,
    "num_mel_bins": 8,
    "window_size": 2,
    "hidden_size": 16,
    "projection_dim": 16,
}


@dataclass(frozen=True)
class Family:
    """How to make a tiny encoder, and what it reads.

    Attributes:
        model: the class of transformers, of which the encoder is taken.
        config: the arguments of its configuration.
        reads: "pictures", "videos", "texts", "waves", "spectrograms" or "series".
        classifier: the class of its own classifier of whole inputs, if it has one.
        options: the arguments of the model beside its configuration.
    """

    model: str
    config: dict[str, Any]
    reads: str
    classifier: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def make(self) -> nn.Module:
        """The model, with the same weights every time."""
        torch.manual_seed(0)
        kind = getattr(transformers, self.model)
        return livened(kind(kind.config_class(**self.config), **dict(self.options)))


def livened(model: nn.Module) -> nn.Module:
    """The model with weights that are large enough for a row to be seen in what comes out of many layers."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    return model.eval()


NO_POOLER = (("add_pooling_layer", False),)
FAMILIES = {
    "ViT": Family("ViTModel", PATCHES, "pictures", "ViTForImageClassification", NO_POOLER),
    "DeiT": Family("DeiTModel", PATCHES, "pictures", "DeiTForImageClassification", NO_POOLER),
    "ViT-MAE": Family("ViTMAEModel", PATCHES, "pictures"),
    "ViT-MSN": Family("ViTMSNModel", PATCHES, "pictures", "ViTMSNForImageClassification"),
    "BEiT": Family("BeitModel", PATCHES, "pictures", "BeitForImageClassification"),
    "DINOv2": Family("Dinov2Model", PATCHES, "pictures", "Dinov2ForImageClassification"),
    "Swin": Family(
        "SwinModel",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        },
        "pictures",
        "SwinForImageClassification",
    ),
    "CvT": Family(
        "CvtModel",
        {"embed_dim": [8, 8, 12], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
        "pictures",
        "CvtForImageClassification",
    ),
    "ResNet": Family(
        "ResNetModel",
        {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
        "pictures",
        "ResNetForImageClassification",
    ),
    "ConvNeXt": Family(
        "ConvNextModel",
        {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2},
        "pictures",
        "ConvNextForImageClassification",
    ),
    "MobileNetV1": Family(
        "MobileNetV1Model", {"depth_multiplier": 0.25}, "pictures", "MobileNetV1ForImageClassification"
    ),
    "MobileNetV2": Family(
        "MobileNetV2Model", {"depth_multiplier": 0.1}, "pictures", "MobileNetV2ForImageClassification"
    ),
    "MobileViT": Family(
        "MobileViTModel",
        {
            "image_size": 64,
            "hidden_sizes": [12, 12, 12],
            "neck_hidden_sizes": [4, 4, 4, 4, 4, 4, 20],
            "intermediate_size": 8,
        },
        "pictures",
        "MobileViTForImageClassification",
    ),
    "MobileViTV2": Family(
        "MobileViTV2Model",
        {"image_size": 64, "width_multiplier": 0.125},
        "pictures",
        "MobileViTV2ForImageClassification",
    ),
    "EfficientNet": Family(
        "EfficientNetModel",
        {
            "width_coefficient": 0.5,
            "hidden_dim": 640,
            "in_channels": [32],
            "out_channels": [16],
            "kernel_sizes": [3],
            "strides": [2],
            "num_block_repeats": [1],
            "expand_ratios": [1],
        },
        "pictures",
        "EfficientNetForImageClassification",
    ),
    "FocalNet": Family(
        "FocalNetModel",
        {
            "image_size": 16,
            "embed_dim": 8,
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
        },
        "pictures",
        "FocalNetForImageClassification",
    ),
    "PoolFormer": Family(
        "PoolFormerModel",
        {"hidden_sizes": [4, 8, 8, 12], "depths": [1, 1, 1, 1]},
        "pictures",
        "PoolFormerForImageClassification",
    ),
    "CLIP vision": Family("CLIPVisionModel", PATCHES, "pictures"),
    "CLIP vision with projection": Family(
        "CLIPVisionModelWithProjection", {**PATCHES, "projection_dim": 6}, "pictures"
    ),
    "SigLIP vision": Family("SiglipVisionModel", PATCHES, "pictures"),
    "VideoMAE": Family(
        "VideoMAEModel", {**PATCHES, "num_frames": 4}, "videos", "VideoMAEForVideoClassification"
    ),
    "TimeSformer": Family(
        "TimesformerModel", {**PATCHES, "num_frames": 4}, "videos", "TimesformerForVideoClassification"
    ),
    "BERT": Family("BertModel", TEXT, "texts", None, NO_POOLER),
    "BERT with `return_dict=False`": Family(
        "BertModel", {**TEXT, "return_dict": False}, "texts", None, NO_POOLER
    ),
    "RoBERTa": Family("RobertaModel", TEXT, "texts", None, NO_POOLER),
    "DistilBERT": Family(
        "DistilBertModel",
        {"vocab_size": 20, "dim": 12, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
        "texts",
    ),
    "ELECTRA": Family("ElectraModel", {**TEXT, "embedding_size": 12}, "texts"),
    "DeBERTa-v2": Family("DebertaV2Model", {**TEXT, "max_position_embeddings": 64}, "texts"),
    "ALBERT": Family("AlbertModel", {**TEXT, "embedding_size": 12}, "texts", None, NO_POOLER),
    "MPNet": Family("MPNetModel", TEXT, "texts", None, NO_POOLER),
    "ModernBERT": Family("ModernBertModel", {**TEXT, "cls_token_id": 1}, "texts"),
    "ConvBERT": Family("ConvBertModel", {**TEXT, "embedding_size": 12, "head_ratio": 1}, "texts"),
    "FNet": Family("FNetModel", TEXT, "texts"),
    "XLNet": Family(
        "XLNetModel", {"vocab_size": 20, "d_model": 12, "n_layer": 1, "n_head": 2, "d_inner": 24}, "texts"
    ),
    "T5 encoder": Family("T5EncoderModel", T5, "texts"),
    "T5": Family("T5Model", T5, "texts"),
    "GPT-2": Family(
        "GPT2Model",
        {
            "vocab_size": 20,
            "n_embd": 12,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "texts",
    ),
    "OPT": Family(
        "OPTModel",
        {
            "vocab_size": 20,
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 24,
            "word_embed_proj_dim": 12,
            "max_position_embeddings": 64,
        },
        "texts",
    ),
    "Qwen2": Family("Qwen2Model", {**TEXT, "num_key_value_heads": 2}, "texts"),
    "CLIP text": Family("CLIPTextModel", TEXT, "texts"),
    "CLIP text with projection": Family(
        "CLIPTextModelWithProjection", {**TEXT, "projection_dim": 6}, "texts"
    ),
    "CLAP text": Family("ClapTextModel", TEXT, "texts"),
    "SigLIP text": Family(
        "SiglipTextModel", {**TEXT, "max_position_embeddings": 16, "projection_size": 12}, "texts"
    ),
    "wav2vec 2.0 base": Family("Wav2Vec2Model", {**WAVES, "feat_extract_norm": "group"}, "waves"),
    "wav2vec 2.0 large": Family("Wav2Vec2Model", {**WAVES, "feat_extract_norm": "layer"}, "waves"),
    "HuBERT large": Family("HubertModel", {**WAVES, "feat_extract_norm": "layer"}, "waves"),
    "WavLM large": Family("WavLMModel", {**WAVES, "feat_extract_norm": "layer"}, "waves"),
    "SEW": Family("SEWModel", {**WAVES, "feat_extract_norm": "layer", "squeeze_factor": 2}, "waves"),
    "data2vec-audio": Family("Data2VecAudioModel", {**WAVES, "conv_pos_kernel_size": 3}, "waves"),
    "Whisper": Family(
        "WhisperModel",
        {
            "vocab_size": 20,
            "num_mel_bins": 8,
            "d_model": 12,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_source_positions": 8,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "spectrograms",
    ),
    "AST": Family(
        "ASTModel",
        {
            **TRANSFORMER,
            "patch_size": 4,
            "frequency_stride": 4,
            "time_stride": 4,
            "max_length": 16,
            "num_mel_bins": 8,
        },
        "spectrograms",
        "ASTForAudioClassification",
    ),
    "CLAP audio": Family("ClapAudioModel", CLAP_AUDIO, "spectrograms"),
    "CLAP audio with projection": Family("ClapAudioModelWithProjection", CLAP_AUDIO, "spectrograms"),
    "PatchTST": Family(
        "PatchTSTModel",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 16,
        },
        "series",
        "PatchTSTForClassification",
    ),
}

NOT_AS_ONNX = ("XLNet",)
"""Families that torch.onnx does not convert, as `tests/test_encoder_exports.py` finds."""


def inputs_of(family: Family, encoder: Any) -> dict[str, Tensor]:
    """Two rows of random inputs, without padding."""
    generator = torch.Generator().manual_seed(1)
    config = encoder.config
    if family.reads == "texts":
        return {"input_ids": torch.randint(3, 20, (2, 5), generator=generator)}
    shapes: dict[str, Callable[[], tuple[int, ...]]] = {
        "pictures": lambda: (3, *[family.config.get("image_size", 32)] * 2),
        "videos": lambda: (config.num_frames, 3, config.image_size, config.image_size),
        "waves": lambda: (90,),
        "spectrograms": lambda: {
            "whisper": (8, 16),
            "audio-spectrogram-transformer": (16, 8),
            "clap_audio_model": (1, 32, 8),
        }[config.model_type],
        "series": lambda: (config.context_length, config.num_input_channels),
    }
    return {encoder.main_input_name: torch.randn(2, *shapes[family.reads](), generator=generator)}


def padded(inputs: dict[str, Tensor], side: str) -> dict[str, Tensor]:
    """The first row alone, with padding on one side and a mask."""
    ((name, values),) = inputs.items()
    real, padding = torch.ones(1, values.shape[1], dtype=torch.long), torch.zeros(1, 7, dtype=torch.long)
    parts = [values[:1], values.new_zeros(1, 7)]
    masks = [real, padding]
    order = slice(None) if side == "right" else slice(None, None, -1)
    return {name: torch.cat(parts[order], dim=1), "attention_mask": torch.cat(masks[order], dim=1)}


def change(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Whether both are equal up to rounding."""
    return found.shape == expected.shape and change(found, expected) < 1e-4


def taken(encoder: Any, inputs: dict[str, Tensor], embedding: Tensor) -> str:
    """What of the encoder's output the embedding is, found by comparing them."""
    if encoder.config.model_type in OWN_POOLING and encoder.config.model_type not in TRAINED_POOLER_FAMILIES:
        return (
            " ".join((OWN_POOLING[encoder.config.model_type].__doc__ or "").split("\n")[0].split())
            .rstrip(".")
            .lower()
        )
    options = {"noise": torch.arange(4.0).expand(2, -1)} if encoder.config.model_type == "vit_mae" else {}
    outputs = encoder(**inputs, **options)
    for name in ("image_embeds", "text_embeds", "audio_embeds", "pooler_output"):
        value = getattr(outputs, name, None)
        if value is not None and is_same(embedding, value.flatten(1)):
            return f"`{name}`"
    hidden = outputs.last_hidden_state
    if hidden.dim() == 4:
        return "mean over space" if is_same(embedding, hidden.mean(dim=(2, 3))) else "?"
    if is_same(embedding, hidden[:, 0]):
        return "class token"
    return "mean over positions" if is_same(embedding, hidden.mean(dim=1)) else "pooled at full length"


def read_by_classifier(family: Family) -> str:
    """Whether the last layer of the family's own classifier reads the embedding, perhaps after a norm."""
    if family.classifier is None:
        return ""
    torch.manual_seed(0)
    kind = getattr(transformers, family.classifier)
    classifier: Any = livened(kind(kind.config_class(**family.config)))
    base = getattr(classifier, classifier.base_model_prefix)
    last = [part for part in classifier.modules() if isinstance(part, nn.Linear)][-1]
    seen: list[Tensor] = []
    last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs = inputs_of(family, base)
    with torch.no_grad():
        classifier(**inputs)
        embedding = embed(load_encoder("it", base), inputs)
    if is_same(embedding, seen[0]):
        return "yes"
    return (
        "after a norm"
        if is_same(nn.functional.layer_norm(embedding, embedding.shape[1:]), seen[0])
        else "another"
    )


def row(name: str) -> list[str]:
    """The cells of a family in the table, measured."""
    family = FAMILIES[name]
    given = family.make()
    rest = nn.Linear(4, 8)
    model = FusionForClassification.from_modality_pretrained(
        {"it": given, "table": rest}, num_labels=3
    ).eval()
    encoder: Any = model.encoders["it"]
    inputs = inputs_of(family, encoder)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        embedding = model.embed("it", inputs)
        model.save_pretrained(folder)
        again = FusionForClassification.from_pretrained(folder, encoders={"table": nn.Linear(4, 8)}).eval()
        loaded = is_same(again.embed("it", inputs), embedding)
        sides = ["", ""]
        if family.reads in ("texts", "waves"):
            sides = [
                "same" if is_same(model.embed("it", padded(inputs, side)), embedding[:1]) else "CHANGES"
                for side in ("right", "left")
            ]
        kind = f"`{family.model}`"
        what = taken(encoder, inputs, embedding)
    cells = [
        name,
        kind,
        family.reads,
        what,
        read_by_classifier(family),
        *sides,
        "same" if loaded else "CHANGES",
        "no" if name in NOT_AS_ONNX else "yes",
    ]
    if embedding.shape[1] != model.embedding_dims["it"] or again.embedding_dims != model.embedding_dims:
        raise AssertionError(f"{name}: the width is another one than measured")
    return cells


def table() -> str:
    """The table of all families."""
    lines = [
        "| family | class | reads | embedding | its own classifier reads it | padded right | left | saved and loaded |"
        " as ONNX |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines += [f"| {' | '.join(row(name))} |" for name in FAMILIES]
    return "\n".join(lines)


def main() -> None:
    """Write the table into the page."""
    sys.path.append(str(ROOT / "benchmarks"))
    from protocol.pages import filled

    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), MARKER, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
