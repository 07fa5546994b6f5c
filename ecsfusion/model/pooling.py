"""Pooling of an encoder's output to one embedding per sample, as its family needs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Encoders that learn a classification token: its state is the embedding, as in their own classifiers. In DINOv2 it is
# the output that the self-supervised loss trains.
CLASS_TOKEN_FAMILIES = frozenset(
    {
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "timesformer",
        "vit",
        "vit_msn",
        "vivit",
    }
)

# Encoders whose `pooler_output` is trained with them: the mean of two tokens after the last norm (AST), attention
# pooling (SigLIP), a normalized classification token (CLIP), the state of the end-of-text token (CLIP's text), a
# normalized mean (ConvNeXt). The pooler of other families is often a layer with random weights.
TRAINED_POOLER_FAMILIES = frozenset(
    {
        "audio-spectrogram-transformer",
        "clip_text_model",
        "clip_vision_model",
        "convnext",
        "convnextv2",
        "siglip2_vision_model",
        "siglip_text_model",
        "siglip_vision_model",
    }
)


def embedding_dim(encoder: nn.Module) -> int:
    """Width D of the embedding that `pool` makes of this encoder's output.

    It is read from the configuration of a Hugging Face encoder. For any other module it is read from the attribute
    `embedding_dim`, or `out_features` as in `nn.Linear`; of an `nn.Sequential` the last part may have it.

    Raises:
        ValueError: the encoder has none of these.
    """
    config = getattr(encoder, "config", None)
    sizes = getattr(config, "hidden_sizes", None)
    if isinstance(sizes, list | tuple) and sizes:
        return int(sizes[-1])
    for name in ("hidden_size", "d_model", "hidden_dim", "embed_dim"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return size
    if config is not None:
        raise ValueError(
            f"encoder {type(encoder).__name__} has no hidden size: its config needs one of `hidden_sizes`, "
            "`hidden_size`, `d_model`, `hidden_dim` or `embed_dim`."
        )
    last = encoder
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    for module in (encoder, last):
        for name in ("embedding_dim", "out_features"):
            size = getattr(module, name, None)
            if isinstance(size, int):
                return size
    raise ValueError(
        f"encoder {type(encoder).__name__} does not declare the width D of its embeddings (B, D): "
        "set its attribute `embedding_dim` to D."
    )


def pool(encoder: nn.Module, outputs: object, attention_mask: Tensor | None = None) -> Tensor:
    """Pool an encoder's output to one embedding per sample.

    Convolutional maps are averaged over space. Of families that train a pooler or a classification token, that is the
    embedding. All other sequences are averaged over the positions that are not padding.

    Args:
        encoder: the module that produced `outputs`; its `config.model_type` names the family.
        outputs: a `ModelOutput` with `last_hidden_state`, or a tensor of shape (B, D) that is already pooled.
        attention_mask: (B, T) with 1 on real input positions, or None when nothing is padded.

    Returns:
        Tensor of shape (B, D), in the encoder's dtype.

    Raises:
        ValueError: outputs of another kind, or a mask that cannot be brought to the hidden states' resolution.
    """
    if isinstance(outputs, Tensor):
        if outputs.ndim != 2:
            raise ValueError(
                f"encoder {type(encoder).__name__} returned a tensor of shape {tuple(outputs.shape)}; "
                "an embedding has the shape (B, D)."
            )
        return outputs
    pooled = getattr(outputs, "pooler_output", None)
    hidden = getattr(outputs, "last_hidden_state", None)
    family = getattr(getattr(encoder, "config", None), "model_type", "")
    if family in TRAINED_POOLER_FAMILIES and pooled is not None:
        return pooled
    if not isinstance(hidden, Tensor):
        raise ValueError(
            f"encoder {type(encoder).__name__} returned {type(outputs).__name__} without `last_hidden_state`; "
            "an encoder must return hidden states or a tensor of shape (B, D)."
        )
    if hidden.dim() == 4:
        return hidden.mean(dim=(2, 3))
    if family in CLASS_TOKEN_FAMILIES:
        return hidden[:, 0]
    if attention_mask is None or hidden.dim() != 3:
        return hidden.mean(dim=1)
    return _masked_mean(hidden, _mask_over_positions(encoder, hidden, attention_mask))


def _mask_over_positions(encoder: nn.Module, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mask at the resolution of the hidden states, which strided audio encoders have a method for."""
    positions = hidden.shape[1]
    if attention_mask.shape[1] == positions:
        return attention_mask
    # wav2vec 2.0, HuBERT, WavLM
    shorten = getattr(encoder, "_get_feature_vector_attention_mask", None)
    if shorten is not None:
        return shorten(positions, attention_mask)
    # Whisper
    shorter_lengths = getattr(encoder, "_get_feat_extract_output_lengths", None)
    if shorter_lengths is not None:
        lengths = shorter_lengths(attention_mask.sum(dim=1))
        return torch.arange(positions, device=hidden.device) < lengths[:, None]
    raise ValueError(
        f"encoder {type(encoder).__name__} maps {attention_mask.shape[1]} input positions to {positions} hidden "
        "states and has no method that tells which of them are padding; pad to a fixed length."
    )


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(torch.finfo(hidden.dtype).tiny)
