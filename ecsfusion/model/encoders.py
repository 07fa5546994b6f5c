"""Encoders of a modality: loading, describing in a configuration, building from it, and running.

An encoder is one of these:

- An encoder of `transformers`: a name on the Hub, a folder, or the loaded model. Of a model with an encoder and a
  decoder (Whisper, T5) the encoder is taken.
- The same with adapters inside (LoRA and other layers that PEFT injects), as `get_peft_model` or `add_adapter` made it.
- Any `nn.Module` of the user's own that returns embeddings (B, D). Its attribute `embedding_dim` is D (or it ends in an
  `nn.Linear`). Its weights are saved with the model, its code is not. So it is passed again when the model is loaded:
  `FusionForClassification.from_pretrained(folder, encoders={"sensor": Sensor()})`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_peft_available

from ecsfusion.model.own_modules import OWN_MODULE, keep_weights
from ecsfusion.model.pooling import TRAINED_POOLER_FAMILIES, embedding_dim, pool
from ecsfusion.model.rows import join_rows


def load_encoder(name: str, encoder: str | nn.Module, trust_remote_code: bool = False) -> nn.Module:
    """The module that encodes a modality, without decoder, head or wrapper.

    Args:
        name: the modality, for error messages.
        encoder: a name on the Hub, a folder, or a module.
        trust_remote_code: run code that comes with a model on the Hub.

    Raises:
        TypeError: neither a name nor a module; a model with a head; adapters that are not inside the layers.
        ValueError: a model of several towers, or one without a hidden size.
    """
    module: Any = encoder
    if isinstance(encoder, str):
        module = AutoModel.from_pretrained(encoder, trust_remote_code=trust_remote_code)
    module = _inside_of_peft(name, module)
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"encoder of modality {name!r} is a {type(module).__name__}; give a Hub name, a folder, a "
            "transformers PreTrainedModel, or an nn.Module that returns embeddings (B, D)."
        )
    if isinstance(module, PreTrainedModel):
        module = _without_decoder(module)
        _check_one_tower(name, module)
        _drop_unused_pooler(module)
    embedding_dim(module)
    return module


def describe_encoder(module: nn.Module) -> dict[str, Any]:
    """The encoder's configuration as JSON, without the path or name that its weights were loaded from."""
    if not isinstance(module, PreTrainedModel):
        return {
            "model_type": OWN_MODULE,
            "class_name": type(module).__name__,
            "embedding_dim": embedding_dim(module),
        }
    values = module.config.to_dict()
    for key in ("_name_or_path", "name_or_path", "_commit_hash", "transformers_version"):
        values.pop(key, None)
    return values


def describe_adapters(module: nn.Module) -> dict[str, Any]:
    """The PEFT configurations of the adapters in an encoder, by adapter, as JSON; empty without adapters."""
    configs = getattr(module, "peft_config", None) or {}
    return {adapter: _plain(config.to_dict()) for adapter, config in configs.items()}


def build_encoder(
    name: str, values: Mapping[str, Any], adapters: Mapping[str, Any] | None, own: nn.Module | None = None
) -> nn.Module:
    """Build the encoder that `describe_encoder` and `describe_adapters` described, with random weights.

    Args:
        name: its modality.
        values: its entry in `config.encoders`.
        adapters: its entry in `config.adapters`, if it has one.
        own: the module itself, where it is the user's own.

    Raises:
        ValueError: an incomplete description, or a module of the user's own that is missing or has another width.
        ImportError: there are adapters, and PEFT is not installed.
    """
    if "model_type" not in values:
        raise ValueError(f"config.encoders[{name!r}] has no `model_type`, which names the encoder to build.")
    if values["model_type"] == OWN_MODULE:
        return _check_own(name, values, own)
    if own is not None:
        raise ValueError(
            f"encoders has the key {name!r}, but that is a {values['model_type']}, which is built from its "
            "configuration; leave it out."
        )
    rest = {key: value for key, value in values.items() if key != "model_type"}
    encoder = _without_decoder(AutoModel.from_config(AutoConfig.for_model(values["model_type"], **rest)))
    _drop_unused_pooler(encoder)
    if adapters:
        _add_adapters(name, encoder, adapters)
    return encoder


def main_input(encoder: nn.Module) -> str | None:
    """Name of the encoder's first input, such as "pixel_values"; None for a module without `main_input_name`."""
    return getattr(encoder, "main_input_name", None)


def embed(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Embeddings (B, D) of processed inputs, each (B, ...).

    A Hugging Face encoder is called with its inputs by name. Any other module is called with the first one by
    position and the others by name, `module(values, attention_mask=...)`.
    """
    # Processors return float32, whatever the precision that the model was loaded in.
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    mask = inputs.get("attention_mask")
    if not isinstance(encoder, PreTrainedModel):
        main, *others = inputs
        return pool(encoder, encoder(inputs[main], **{key: inputs[key] for key in others}), mask)
    if mask is not None and getattr(encoder.config, "feat_extract_norm", None) == "group":
        return _embed_by_length(encoder, inputs, mask.bool())
    return pool(encoder, encoder(**inputs), mask)


def _embed_by_length(encoder: nn.Module, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Embeddings of rows of different lengths, where all rows of one length are run together and without padding.

    The first layer of wav2vec 2.0 base, HuBERT base and similar encoders normalizes every channel over time, padding
    included, and no mask can undo that. They were trained without padding and without a mask.
    """
    name = main_input(encoder)
    values = inputs[str(name)]
    lengths = mask.sum(dim=1)
    parts, rows_of_parts = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        unpadded = values[rows][mask[rows]].reshape(len(rows), length)
        parts.append(pool(encoder, encoder(**{str(name): unpadded})))
        rows_of_parts.append(rows)
    return join_rows(parts, rows_of_parts)


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    return encoder if isinstance(encoder, PreTrainedModel) and decoder is not None else model


def _drop_unused_pooler(encoder: Any) -> None:
    """Remove a pooler that does not make the embedding, because nothing would train its weights."""
    optional = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
    if optional and encoder.config.model_type not in TRAINED_POOLER_FAMILIES:
        encoder.pooler = None


def _check_one_tower(name: str, model: PreTrainedModel) -> None:
    towers = [
        tower.__name__
        for kind in getattr(type(model.config), "sub_configs", {}).values()
        if (tower := _class_of(kind)) is not None
    ]
    if len(towers) > 1:
        choices = " or ".join(f"{tower}.from_pretrained(...)" for tower in towers)
        raise ValueError(
            f"encoder of modality {name!r} is a {type(model).__name__}, a model of several towers; give the one "
            f"for this modality: {choices}."
        )
    rebuilt = _class_of(type(model.config))
    if rebuilt is not None and type(model) is not rebuilt and not _is_encoder_of(model, rebuilt):
        raise TypeError(
            f"encoder of modality {name!r} is a {type(model).__name__}; give the {rebuilt.__name__} inside of it, "
            "without a head, which is what from_pretrained builds again."
        )


def _class_of(config_class: type[PreTrainedConfig]) -> type | None:
    """The class that `AutoModel` builds from such a configuration; None for one that it does not know."""
    classes = MODEL_MAPPING.get(config_class, None)
    return classes[0] if isinstance(classes, list | tuple) else classes


def _is_encoder_of(model: PreTrainedModel, whole: type) -> bool:
    """Whether `model` is the encoder of the class `whole`, a model with an encoder and a decoder."""
    with torch.device("meta"):
        return type(_without_decoder(whole(model.config))) is type(model)


def _check_own(name: str, values: Mapping[str, Any], own: nn.Module | None) -> nn.Module:
    class_name, width = values.get("class_name", "module"), values.get("embedding_dim")
    if own is None:
        raise ValueError(
            f"the encoder of modality {name!r} is your own module, {class_name}, whose code is not saved: pass "
            f"it again, from_pretrained(..., encoders={{{name!r}: {class_name}(...)}})."
        )
    if embedding_dim(own) != width:
        raise ValueError(
            f"encoders[{name!r}] returns embeddings of width {embedding_dim(own)}, but the saved one of {width}; "
            f"make the {class_name} with the arguments that it had."
        )
    return keep_weights(own)


def _inside_of_peft(name: str, module: Any) -> Any:
    """The encoder with its adapters in it, without the wrapper of `get_peft_model`."""
    if not is_peft_available():
        return module
    from peft import PeftModel

    if not isinstance(module, PeftModel):
        return module
    if any(config.is_prompt_learning for config in module.peft_config.values()):
        raise TypeError(
            f"the adapter of modality {name!r} learns a prompt, which lies outside of the encoder's layers; use one "
            "that changes the layers, such as LoRA."
        )
    base: Any = module.get_base_model()
    base.peft_config = module.peft_config
    return base


def _add_adapters(name: str, encoder: PreTrainedModel, adapters: Mapping[str, Any]) -> None:
    if not is_peft_available():
        raise ImportError(
            f"the encoder of modality {name!r} has adapters {list(adapters)}: pip install peft to load it."
        )
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, inject_adapter_in_model

    configs: dict[str, Any] = {}
    for adapter, values in adapters.items():
        configs[adapter] = PEFT_TYPE_TO_CONFIG_MAPPING[values["peft_type"]](**values)
        inject_adapter_in_model(configs[adapter], encoder, adapter)
    encoder.peft_config = configs


def _plain(values: Any) -> Any:
    """A PEFT configuration as JSON, without the path or name of the base model."""
    if isinstance(values, Mapping):
        dropped = ("base_model_name_or_path", "revision", "auto_mapping", "inference_mode", "peft_version")
        return {str(key): _plain(value) for key, value in values.items() if key not in dropped}
    if isinstance(values, list | tuple | set | frozenset):
        return [
            _plain(value) for value in (sorted(values) if isinstance(values, set | frozenset) else values)
        ]
    # The value of an enumeration, or the value itself.
    return getattr(values, "value", values)
