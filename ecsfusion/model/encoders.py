"""Encoders of a modality: loading, describing in a configuration, building from it, and running.

An encoder is one of these:

- An encoder of `transformers`: a name on the Hub, a folder, or the loaded model. Of a model with an encoder and a
  decoder (Whisper, T5) the encoder is taken.
- The same with adapters inside (LoRA and other layers that PEFT injects), as `get_peft_model` or `add_adapter` made it.
- Any `nn.Module` of the user's own that returns embeddings (B, D). Its attribute `embedding_dim` is D (or it ends in an
  `nn.Linear`). Its weights are saved with the model, its code is not. So it is passed again when the model is loaded:
  `FusionForClassification.from_pretrained(folder, encoders={"sensor": Sensor()})`.
- A `SentenceTransformer` of sentence-transformers, with its own pooling; it is saved and loaded like a module of the
  user's own.

The padding of a row changes no embedding. Rows that are padded on the left are moved to the right, because many
encoders count positions from the first. Encoders that mix padding into the rest whatever the mask says run the rows of
each length together, without padding.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_peft_available, logging

from ecsfusion.model.batch_norm import running_statistics_for_one_value
from ecsfusion.model.own_modules import OWN_MODULE, keep_weights
from ecsfusion.model.padding import (
    FIXED_LENGTH_FAMILIES,
    at_fixed_length,
    filled_to_first_window,
    mixes_padding,
    padded_on_the_right,
)
from ecsfusion.model.pooling import TRAINED_POOLER_FAMILIES, embedding_dim, is_sentence_transformer, pool
from ecsfusion.model.rows import join_rows
from ecsfusion.model.sample_inputs import padded_sample, sample_inputs

logger = logging.get_logger(__name__)

HEAD = re.compile(r"For[A-Z]|Head|Decoder")
"""What the names of classes have that are no encoders."""


def load_encoder(name: str, encoder: str | nn.Module, trust_remote_code: bool = False) -> nn.Module:
    """The module that encodes a modality, without decoder, head or wrapper.

    Args:
        name: the modality, for error messages.
        encoder: a name on the Hub, a folder, or a module.
        trust_remote_code: run code that comes with a model on the Hub.

    Raises:
        TypeError: neither a name nor a module; a model with a head; adapters that are not inside the layers.
        ValueError: a model of several towers.
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
        _set_up(module)
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
    if not _auto_model_builds(module):
        values["class_name"] = type(module).__name__
    return values


@dataclass(frozen=True)
class Measured:
    """What was found by running an encoder on one small row.

    Attributes:
        embedding_dim: the width D of its embeddings.
        unpadded: whether padding changes the embedding in spite of the mask, so that rows are run without it.
    """

    embedding_dim: int
    unpadded: bool = False


def measure(name: str, encoder: nn.Module) -> Measured:
    """Run an encoder on one small row, alone and padded; what it declares, where it cannot be run.

    It changes neither the encoder nor the state of any random generator.

    Args:
        name: the modality, for error messages.
        encoder: the encoder; one on the device meta, and a module of the user's own, are not run.

    Raises:
        ValueError: the encoder can neither be run on a sample nor declares a width.
    """
    if not isinstance(encoder, PreTrainedModel) or any(p.is_meta for p in encoder.parameters()):
        return Measured(embedding_dim(encoder))
    modes = {module: module.training for module in encoder.modules()}
    devices = {p.device for p in encoder.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            sample = sample_inputs(encoder.eval())
            alone = embed(encoder, sample)
            return Measured(alone.shape[1], _padding_shows(encoder, sample, alone))
    except Exception as error:
        # What an encoder that is not known here raises for inputs that it does not take.
        try:
            return Measured(embedding_dim(encoder))
        except ValueError:
            raise ValueError(
                f"the width of the embeddings of modality {name!r} is not known: its encoder {type(encoder).__name__} "
                f"declares none, and cannot be run on a sample ({error}); wrap it in an nn.Module of your own that "
                "returns embeddings (B, D) and has D as `embedding_dim`."
            ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _padding_shows(encoder: PreTrainedModel, sample: Mapping[str, Tensor], alone: Tensor) -> bool:
    padded = padded_sample(encoder, sample)
    if padded is None or not _takes(encoder, "attention_mask"):
        return padded is not None
    try:
        difference = (embed(encoder, padded) - alone).abs().max()
    except Exception:
        # Such as hidden states at a resolution for which there is no mask.
        return True
    # Half precision rounds by more than the padding could matter in single precision.
    tolerance = 1e-3 if alone.dtype in (torch.float32, torch.float64) else 5e-2
    return bool(difference > tolerance * alone.abs().max())


def set_attention(encoders: Mapping[str, nn.Module], implementation: str | Mapping[str, str]) -> None:
    """Choose the attention of encoders, as `attn_implementation` of `transformers` does.

    Args:
        encoders: by modality. Modules of the user's own are left as they are.
        implementation: such as "sdpa" or "eager", for all encoders that have it; or by modality.

    Raises:
        ValueError: an encoder does not have what is chosen for it by its name, or none of them has it; or a name that
            is no modality.
    """
    by_name = isinstance(implementation, Mapping)
    chosen = (
        dict(implementation)
        if isinstance(implementation, Mapping)
        else dict.fromkeys(encoders, implementation)
    )
    unknown = [name for name in chosen if name not in encoders]
    if unknown:
        raise ValueError(f"attn_implementation names {unknown}, but the modalities are {list(encoders)}.")
    refused: dict[str, ValueError | ImportError] = {}
    taken = False
    for name, value in chosen.items():
        encoder = encoders[name]
        if not isinstance(encoder, PreTrainedModel):
            if by_name:
                raise ValueError(
                    f"attn_implementation is {value!r} for modality {name!r}, whose encoder is your own module, "
                    f"{type(encoder).__name__}; leave it out."
                )
            continue
        try:
            encoder.set_attn_implementation(value)
            taken = True
        except (ValueError, ImportError) as error:
            refused[name] = error
    if refused and (by_name or not taken):
        name, reason = next(iter(refused.items()))
        raise ValueError(
            f"attn_implementation is {chosen[name]!r}, which the encoder {type(encoders[name]).__name__} of modality "
            f"{name!r} does not have: {reason}"
        ) from reason
    for name in refused:
        logger.warning(
            f"attn_implementation={chosen[name]!r} has no effect on modality {name!r}: its encoder "
            f"{type(encoders[name]).__name__} does not have it."
        )


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
    rest = {key: value for key, value in values.items() if key not in ("model_type", "class_name")}
    config = AutoConfig.for_model(values["model_type"], **rest)
    if "class_name" in values:
        encoder: PreTrainedModel = _class_named(name, type(config), values["class_name"])(config)
    else:
        encoder = _without_decoder(AutoModel.from_config(config))
    _drop_unused_pooler(encoder)
    _set_up(encoder)
    if adapters:
        _add_adapters(name, encoder, adapters)
    return encoder


def main_input(encoder: nn.Module) -> str | None:
    """Name of the encoder's first input, such as "pixel_values"; None for a module without `main_input_name`."""
    return getattr(encoder, "main_input_name", None)


def embed(encoder: nn.Module, inputs: Mapping[str, Tensor], unpadded: bool = False) -> Tensor:
    """Embeddings (B, D) of processed inputs, each (B, ...).

    A Hugging Face encoder is called with its inputs by name. Any other module is called with the first one by
    position and the others by name, `module(values, attention_mask=...)`; if its `forward` has no such argument, the
    rows of each length are run together, without padding.

    Args:
        encoder: the encoder.
        inputs: by name.
        unpadded: run an encoder of transformers on rows without padding, as is done anyway where it is known to mix
            padding into the rest.
    """
    # Processors return float32, whatever the precision that the model was loaded in.
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    # A module of the user's own may write to its inputs, which its second copy reads after it.
    is_own = not isinstance(encoder, PreTrainedModel)
    inputs = {
        key: value.to(dtype if value.is_floating_point() else value.dtype, copy=is_own)
        for key, value in inputs.items()
    }
    if is_sentence_transformer(encoder):
        inputs = padded_on_the_right(inputs)
        return pool(encoder, _outputs(encoder, next(iter(inputs)), inputs))
    if not isinstance(encoder, PreTrainedModel):
        return _embed_by_own_module(encoder, inputs)
    inputs = padded_on_the_right(inputs)
    if encoder.config.model_type in FIXED_LENGTH_FAMILIES:
        inputs = at_fixed_length(encoder.config, inputs)
    elif encoder.main_input_name == "input_values":
        inputs = filled_to_first_window(encoder.config, inputs)
    mask = inputs.get("attention_mask")
    main = str(encoder.main_input_name)
    if mask is not None and needs_one_length(encoder, unpadded):
        return _embed_by_length(encoder, main, inputs, mask.bool())
    return pool(encoder, _outputs(encoder, main, inputs), mask)


def needs_one_length(encoder: nn.Module, unpadded: bool = False) -> bool:
    """Whether rows of different lengths are run one length after another, because padding would change them.

    Args:
        encoder: the encoder.
        unpadded: whether it was found to mix padding into the rest.
    """
    if is_sentence_transformer(encoder):
        return False
    if isinstance(encoder, PreTrainedModel):
        return unpadded or mixes_padding(encoder.config)
    return not _takes(encoder, "attention_mask")


def _embed_by_own_module(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    main, mask = next(iter(inputs)), inputs.get("attention_mask")
    if mask is not None and main != "attention_mask" and needs_one_length(encoder):
        return _embed_by_length(encoder, main, inputs, mask.bool())
    return pool(encoder, _outputs(encoder, main, inputs), mask)


def _outputs(encoder: nn.Module, main: str, inputs: Mapping[str, Tensor]) -> Any:
    """What an encoder returns for inputs (B, ...), of which `main` is the first."""
    with running_statistics_for_one_value(encoder, inputs[main].shape[0]):
        if isinstance(encoder, PreTrainedModel):
            return encoder(**inputs, **_options(encoder, inputs))
        if is_sentence_transformer(encoder):
            return encoder(dict(inputs))
        return encoder(inputs[main], **{key: value for key, value in inputs.items() if key != main})


def _embed_by_length(encoder: nn.Module, main: str, inputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Embeddings of rows of different lengths, where all rows of one length are run together and without padding.

    Args:
        encoder: the encoder.
        main: the name of its first input.
        inputs: by name, each (B, ...).
        mask: (B, T) bool.
    """
    if torch.compiler.is_compiling():
        raise ValueError(
            f"the encoder {type(encoder).__name__} runs rows of each length apart, which cannot be compiled; give rows "
            "of one length, without an attention mask"
        )
    lengths = mask.sum(dim=1)
    parts, rows_of_parts = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        if not length:
            raise ValueError(f"nothing is left of row {int(rows[0])}: its attention mask is 0 everywhere")
        unpadded = {
            key: value[rows][mask[rows]].reshape(len(rows), length, *value.shape[2:])
            if value.shape[:2] == mask.shape
            else value[rows]
            for key, value in inputs.items()
            if key != "attention_mask"
        }
        parts.append(pool(encoder, _outputs(encoder, main, unpadded)))
        rows_of_parts.append(rows)
    return join_rows(parts, rows_of_parts)


def _takes(module: nn.Module, argument: str) -> bool:
    """Whether `forward` of a module has an argument of this name, or takes any."""
    parameters = inspect.signature(module.forward).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _options(encoder: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Further arguments of a call, in place of what the encoder would draw at random and cannot, or must not."""
    config = encoder.config
    if config.model_type == "vit_mae":
        pixels = inputs["pixel_values"]
        positions = encoder.embeddings.patch_embeddings.num_patches
        # No patch is masked (`_set_up`), and none changes its place.
        return {
            "noise": torch.arange(positions, device=pixels.device)
            .expand(pixels.shape[0], -1)
            .to(pixels.dtype)
        }
    if (
        encoder.training
        and getattr(config, "apply_spec_augment", False)
        and getattr(config, "mask_time_prob", 0) > 0
        and _takes(encoder, "mask_time_indices")
    ):
        values = inputs[str(encoder.main_input_name)]
        length_of = getattr(encoder, "_get_feat_extract_output_lengths", None)
        positions = values.shape[1]
        if length_of is not None and encoder.main_input_name == "input_values":
            positions = int(length_of(positions))
        # SpecAugment masks spans of a fixed length, and refuses sounds that are shorter: these are left as they are.
        if positions < getattr(config, "mask_time_length", 0):
            return {"mask_time_indices": values.new_zeros(len(values), positions, dtype=torch.bool)}
    return {}


def _set_up(encoder: PreTrainedModel) -> None:
    """Set what an encoder inside a fusion model always has: outputs with names, and no masking of its own training."""
    for part in encoder.modules():
        if isinstance(part, PreTrainedModel):
            part.config.return_dict = True
    if encoder.config.model_type == "vit_mae":
        # Masked patches are for its own training; they would be drawn in evaluation too.
        encoder.config.mask_ratio = 0.0


def _without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of a model with a decoder, and of a wrapper that has nothing but an encoder (`T5EncoderModel`)."""
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    parts = {name for name, _ in model.named_children()}
    if isinstance(encoder, PreTrainedModel) and (decoder is not None or parts <= {"encoder", "shared"}):
        return encoder
    return model


def _drop_unused_pooler(encoder: Any) -> None:
    """Remove a pooler that does not make the embedding, because nothing would train its weights."""
    optional = "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters
    if optional and encoder.config.model_type not in TRAINED_POOLER_FAMILIES:
        encoder.pooler = None


def _check_one_tower(name: str, model: PreTrainedModel) -> None:
    kind = type(model).__name__
    towers = {part: child for part, child in model.named_children() if isinstance(child, PreTrainedModel)}
    if len(towers) > 1:
        # Of some families the class of one tower does not find its weights in the file of the whole.
        choices = " or ".join(
            f"{type(child).__name__}.from_pretrained(...)"
            if _class_of(type(child.config)) is type(child)
            else f"{kind}.from_pretrained(...).{part}"
            for part, child in towers.items()
        )
        raise ValueError(
            f"encoder of modality {name!r} is a {kind}, a model of several towers; give the one for this modality: "
            f"{choices}."
        )
    if _auto_model_builds(model):
        return
    rebuilt = _class_of(type(model.config))
    if HEAD.search(kind) or _class_in_transformers(type(model.config), kind) is not type(model):
        advice = (
            f"give the {rebuilt.__name__} inside of it, without a head, which is what from_pretrained builds again."
            if rebuilt is not None
            else "from_pretrained could not build it again: wrap it in an nn.Module of your own."
        )
        raise TypeError(f"encoder of modality {name!r} is a {kind}; {advice}")


def _auto_model_builds(model: PreTrainedModel) -> bool:
    """Whether `AutoModel` builds this class from its configuration, perhaps with a decoder around it."""
    rebuilt = _class_of(type(model.config))
    return rebuilt is not None and (type(model) is rebuilt or _is_encoder_of(model, rebuilt))


def _class_in_transformers(config_class: type[PreTrainedConfig], class_name: str) -> type | None:
    """The model of this name in the module of `transformers` that has such configurations; None if there is none."""
    module_name = config_class.__module__.replace(".configuration_", ".modeling_")
    if not module_name.startswith("transformers.models."):
        return None
    found = getattr(importlib.import_module(module_name), class_name, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def _class_named(name: str, config_class: type[PreTrainedConfig], class_name: str) -> Any:
    found = _class_in_transformers(config_class, class_name)
    if found is None or HEAD.search(class_name):
        raise ValueError(
            f"config.encoders[{name!r}] has the class_name {class_name!r}, which is no encoder of transformers for "
            f"{config_class.__name__}."
        )
    return found


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
