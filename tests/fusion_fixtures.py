"""Tiny models and data for the tests of model and trainer: they learn in seconds and need no network."""

from __future__ import annotations

import torch

# A model is imported where it is made: a process that needs one kind starts sooner.
import transformers
from transformers import PreTrainedModel, TrainerCallback

from ecsfusion import FusionForClassification, Rule
from ecsfusion.strategies.unimodal import Unimodal

NUM_CLASSES = 3


def tiny_vit(width: int = 16) -> PreTrainedModel:
    return transformers.ViTModel(
        transformers.ViTConfig(
            image_size=4,
            patch_size=2,
            num_channels=1,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * width,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )


def tiny_resnet() -> PreTrainedModel:
    return transformers.ResNetModel(
        transformers.ResNetConfig(
            num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"
        )
    )


def tiny_bert() -> PreTrainedModel:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=20, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
        ),
        add_pooling_layer=False,
    )


WIDTH = 12
TRANSFORMER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IMAGES = {"image_size": 4, "patch_size": 2, "num_channels": 1}
WAVES = {
    **TRANSFORMER,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}


def tiny_wav2vec2(norm: str = "layer") -> PreTrainedModel:
    """With `norm` "group" as wav2vec 2.0 base, whose first layer norms over time, padding included."""
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVES, feat_extract_norm=norm))


def tiny_hubert(norm: str = "layer") -> PreTrainedModel:
    return transformers.HubertModel(transformers.HubertConfig(**WAVES, feat_extract_norm=norm))


def tiny_dinov2() -> PreTrainedModel:
    return transformers.Dinov2Model(transformers.Dinov2Config(**TRANSFORMER, **IMAGES))


def tiny_siglip() -> PreTrainedModel:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TRANSFORMER, **IMAGES))


def tiny_ast() -> PreTrainedModel:
    return transformers.ASTModel(
        transformers.ASTConfig(
            **TRANSFORMER, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8
        )
    )


def tiny_whisper() -> transformers.WhisperModel:
    """The whole of it, with its decoder: 40 frames of 8 Mel bands become 20 positions."""
    return transformers.WhisperModel(
        transformers.WhisperConfig(
            vocab_size=20,
            num_mel_bins=8,
            d_model=WIDTH,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_source_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def tiny_modernbert() -> PreTrainedModel:
    return transformers.ModernBertModel(
        transformers.ModernBertConfig(
            **TRANSFORMER, vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1
        )
    )


def tiny_roberta() -> PreTrainedModel:
    return transformers.RobertaModel(
        transformers.RobertaConfig(**TRANSFORMER, vocab_size=20, pad_token_id=0), add_pooling_layer=False
    )


def tiny_videomae() -> PreTrainedModel:
    return transformers.VideoMAEModel(
        transformers.VideoMAEConfig(**TRANSFORMER, **IMAGES, num_frames=4, tubelet_size=2)
    )


class Sensor(torch.nn.Module):
    """An encoder of one's own: series (B, T, 3) of which some steps may be padding, to embeddings (B, 6)."""

    embedding_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 6)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        steps = torch.tanh(self.linear(values)) * self.scale
        if attention_mask is None:
            return steps.mean(dim=1)
        weight = attention_mask.to(steps.dtype).unsqueeze(-1)
        return (steps * weight).sum(dim=1) / weight.sum(dim=1)


def two_views(width: int = 16, seed: int = 0, **config: object) -> FusionForClassification:
    """A model of two image-like modalities, "left" and "right", of (1, 4, 4) pixels and three classes."""
    torch.manual_seed(seed)
    return FusionForClassification.from_modality_pretrained(
        {"left": tiny_vit(width), "right": tiny_vit(width)}, num_labels=NUM_CLASSES, **config
    )


class TwoViews(torch.utils.data.Dataset):
    """Rows whose label is written into both views: cleanly on the left, under noise on the right."""

    def __init__(self, num_rows: int, seed: int, noise: tuple[float, float] = (0.3, 1.0)) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(NUM_CLASSES, (num_rows,), generator=generator)
        patterns = torch.randn(NUM_CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(7))
        self.views = [
            patterns[self.labels] + level * torch.randn(num_rows, 1, 4, 4, generator=generator)
            for level in noise
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        left, right = (view[index] for view in self.views)
        return {
            "left": {"pixel_values": left},
            "right": {"pixel_values": right},
            "labels": int(self.labels[index]),
        }


def stage_one_only(rule: Rule | type[Rule] | str, *modalities: str) -> Unimodal:
    """Unimodal training that this rule steers, without a stage 2."""
    return Unimodal(modalities or ("left", "right"), rule=rule)


class StopAfterSaving(TrainerCallback):
    """As a kill after the checkpoint of this step was written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt
