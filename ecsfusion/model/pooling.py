"""Pooling of an encoder's output to one embedding per sample, as its family needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Encoders that learn a classification token: its state is the embedding, as in their own classifiers. In DINOv2 it is
# the output that the self-supervised loss trains.
CLASS_TOKEN_FAMILIES = frozenset(
    {
        "deit",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "pvt",
        "timesformer",
        "vit",
        "vit_mae",
        "vit_msn",
        "vivit",
    }
)

# Encoders whose `pooler_output` is trained with them, or is what their own classifiers read: the mean of two tokens
# after the last norm (AST), attention pooling (SigLIP), a normalized classification token (CLIP), the state of the
# end-of-text token (CLIP's text), a normalized mean (ConvNeXt, BEiT). The pooler of other families is often a layer
# with random weights.
TRAINED_POOLER_FAMILIES = frozenset(
    {
        "altclip_vision_model",
        "audio-spectrogram-transformer",
        "beit",
        "bit",
        "blip_vision_model",
        "chinese_clip_vision_model",
        "clap_audio_model",
        "clap_text_model",
        "clip_text_model",
        "clip_vision_model",
        "clipseg_text_model",
        "clipseg_vision_model",
        "convnext",
        "convnextv2",
        "data2vec-vision",
        "groupvit_text_model",
        "groupvit_vision_model",
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilevit",
        "mobilevitv2",
        "owlvit_text_model",
        "owlvit_vision_model",
        "owlv2_text_model",
        "owlv2_vision_model",
        "siglip2_text_model",
        "siglip2_vision_model",
        "siglip_text_model",
        "siglip_vision_model",
        "timm_wrapper",
        "xclip_text_model",
        "xclip_vision_model",
    }
)

PROJECTED = ("image_embeds", "text_embeds", "audio_embeds")
"""Names of the output of models `...WithProjection`: the embedding in the space that several towers share."""


def embedding_dim(encoder: nn.Module) -> int:
    """Width D of the embeddings that an encoder says it returns.

    A module says it by the attribute `embedding_dim`, a `SentenceTransformer` by its method, a layer by `out_features`
    as `nn.Linear` does; of an `nn.Sequential` the last part may have it. Of an encoder of `transformers` it is the
    hidden size in the configuration, which is not always the width of the embedding: `ecsfusion.model.encoders.measure`
    runs the encoder.

    Raises:
        ValueError: the encoder has none of these.
    """
    if is_sentence_transformer(encoder):
        return int(encoder.get_sentence_embedding_dimension())  # type: ignore[operator]
    config = getattr(encoder, "config", None)
    width = _configured_dim(config) if isinstance(encoder, PreTrainedModel) else None
    width = _declared_dim(encoder) if width is None else width
    width = _configured_dim(config) if width is None else width
    if width is not None:
        return width
    if config is not None:
        raise ValueError(
            f"encoder {type(encoder).__name__} has no hidden size: its config needs one of `hidden_sizes`, "
            "`hidden_size`, `d_model`, `hidden_dim` or `embed_dim`."
        )
    raise ValueError(
        f"encoder {type(encoder).__name__} does not declare the width D of its embeddings (B, D): "
        "set its attribute `embedding_dim` to D."
    )


def _configured_dim(config: Any) -> int | None:
    sizes = getattr(config, "hidden_sizes", None)
    if isinstance(sizes, list | tuple) and sizes:
        return int(sizes[-1])
    sizes = (getattr(config, name, None) for name in ("hidden_size", "d_model", "hidden_dim", "embed_dim"))
    return next((size for size in sizes if isinstance(size, int)), None)


def _declared_dim(encoder: nn.Module) -> int | None:
    last = encoder
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    sizes = (
        getattr(module, name, None)
        for module in (encoder, last)
        for name in ("embedding_dim", "out_features")
    )
    return next((size for size in sizes if isinstance(size, int)), None)


def is_sentence_transformer(encoder: nn.Module) -> bool:
    """Whether an encoder takes and returns a dictionary, as those of sentence-transformers do."""
    return callable(getattr(encoder, "get_sentence_embedding_dimension", None))


def pool(encoder: nn.Module, outputs: object, attention_mask: Tensor | None = None) -> Tensor:
    """Pool an encoder's output to one embedding per sample.

    Convolutional maps are averaged over space. Of families that train a projection, a pooler or a classification token,
    that is the embedding. All other sequences are averaged over the positions that are not padding.

    Args:
        encoder: the module that produced `outputs`; its `config.model_type` names the family.
        outputs: a `ModelOutput` with `last_hidden_state`, a dictionary with "sentence_embedding", or a tensor of shape
            (B, D) that is already pooled.
        attention_mask: (B, T) with 1 on real input positions, or None when nothing is padded.

    Returns:
        Tensor of shape (B, D), in the encoder's dtype; NaN in rows of which nothing is left.

    Raises:
        ValueError: outputs of another kind, or a mask that cannot be brought to the hidden states' resolution.
    """
    if isinstance(outputs, Mapping) and isinstance(outputs.get("sentence_embedding"), Tensor):
        outputs = outputs["sentence_embedding"]
    if isinstance(outputs, Tensor):
        if outputs.ndim != 2:
            raise ValueError(
                f"encoder {type(encoder).__name__} returned a tensor of shape {tuple(outputs.shape)}; "
                "an embedding has the shape (B, D)."
            )
        return outputs
    for name in PROJECTED:
        projected = getattr(outputs, name, None)
        if isinstance(projected, Tensor):
            return projected
    pooled = getattr(outputs, "pooler_output", None)
    hidden = getattr(outputs, "last_hidden_state", None)
    family = getattr(getattr(encoder, "config", None), "model_type", "")
    if isinstance(pooled, Tensor) and (family in TRAINED_POOLER_FAMILIES or hidden is None):
        return pooled.flatten(1)
    if not isinstance(hidden, Tensor):
        raise ValueError(
            f"encoder {type(encoder).__name__} returned {_kind_of(outputs)} without `last_hidden_state`; "
            "an encoder must return hidden states or a tensor of shape (B, D)."
        )
    if family in OWN_POOLING:
        return OWN_POOLING[family](encoder, outputs)
    if hidden.dim() == 4:
        return hidden.mean(dim=(2, 3))
    if family in CLASS_TOKEN_FAMILIES:
        return hidden[:, 0]
    if attention_mask is None or hidden.dim() != 3:
        return hidden.mean(dim=1)
    return _masked_mean(hidden, _mask_over_positions(encoder, hidden, attention_mask))


def _kind_of(outputs: object) -> str:
    kind = type(outputs).__name__
    if isinstance(outputs, Mapping):
        return f"a {kind} with the keys {list(outputs)}"
    return kind


def _of_cvt(_: nn.Module, outputs: Any) -> Tensor:
    """The classification token, or the map where the last stage has none, normalized and averaged.

    The weights of this norm belong to CvT's classifier and not to the encoder; a linear head can take their place.
    """
    token = outputs.cls_token_value
    states = outputs.last_hidden_state.flatten(2).mT if token is None else token
    return nn.functional.layer_norm(states, states.shape[-1:]).mean(dim=1)


def _of_patches(encoder: Any, outputs: Any) -> Tensor:
    """Of each channel the classification token, the largest or the mean value over patches, side by side."""
    hidden = outputs.last_hidden_state
    kind = getattr(encoder.config, "pooling_type", None) or getattr(encoder.config, "head_aggregation", None)
    if getattr(encoder.config, "use_cls_token", False):
        pooled = hidden[:, :, 0]
    elif kind == "use_last":
        pooled = hidden[:, :, -1]
    elif kind in ("max", "max_pool"):
        pooled = hidden.amax(dim=2)
    else:
        pooled = hidden.mean(dim=2)
    return pooled.flatten(1)


def _of_channels(_: nn.Module, outputs: Any) -> Tensor:
    """The mean of a map after a norm over its channels, whose weights belong to the classifier."""
    hidden = outputs.last_hidden_state
    return nn.functional.group_norm(hidden, 1).mean(dim=(2, 3))


def _of_patch_tokens(_: nn.Module, outputs: Any) -> Tensor:
    """The mean over patches, without the class token."""
    return outputs.last_hidden_state[:, 1:].mean(dim=1)


OWN_POOLING: Mapping[str, Callable[[Any, Any], Tensor]] = {
    # Where these are without the pooler that does the same before a norm.
    "beit": _of_patch_tokens,
    "cvt": _of_cvt,
    "data2vec-vision": _of_patch_tokens,
    "patchtsmixer": _of_patches,
    "patchtst": _of_patches,
    "poolformer": _of_channels,
}
"""Families whose classifiers do something that no other family's do, and the function that does the same."""


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
    # A row of which nothing is left is divided by zero: a NaN is reported with its row, zeros would be trained on.
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)
