"""From the modalities of a recipe to Hugging Face encoders and their processors."""

import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from ecsfusion import FusionProcessor
from hf_recipes.configuration import ModalityArguments, RecipeArguments, nearest

# What an encoder takes, by the name of its main input.
MEDIA = {
    "pixel_values": "images",
    "input_values": "sounds",
    "input_features": "sounds",
    "input_ids": "text",
}
AUTO_PROCESSORS = {"images": AutoImageProcessor, "sounds": AutoFeatureExtractor, "text": AutoTokenizer}
CODE_KEYS = ("trust_remote_code", "auto_map", "code_revision")
TYPE_KEYS = {"images": "image_processor_type", "sounds": "feature_extractor_type"}


def build_encoders(recipe: RecipeArguments) -> dict[str, PreTrainedModel]:
    """The encoder of each modality; random weights are drawn from torch's generator, so seed it before.

    Raises:
        ValueError: an encoder cannot be loaded, or its model type or a field of its config is unknown.
    """
    return {name: _build_encoder(name, modality.encoder) for name, modality in recipe.modalities.items()}


def build_processor(recipe: RecipeArguments, encoders: Mapping[str, PreTrainedModel]) -> FusionProcessor:
    """The processor of each encoder, with the recipe's options, as one `FusionProcessor`.

    Raises:
        ValueError: a processor cannot be loaded, or has no such option.
    """
    return FusionProcessor(
        {name: _build_processor(name, recipe.modalities[name], encoders[name]) for name in recipe.modalities}
    )


def media_of(name: str, encoder: PreTrainedModel) -> str:
    """What the encoder of modality `name` takes, "images", "sounds" or "text"; ValueError for all else."""
    media = MEDIA.get(encoder.main_input_name)
    if media is None:
        raise ValueError(
            f"modalities.{name}: {type(encoder).__name__} takes {encoder.main_input_name!r}; give an encoder "
            "of images (pixel_values), sounds (input_values, input_features) or text (input_ids)"
        )
    return media


def _build_encoder(name: str, encoder: str | Mapping[str, Any]) -> PreTrainedModel:
    if isinstance(encoder, str):
        try:
            return AutoModel.from_pretrained(encoder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"modalities.{name}: the encoder {encoder!r} cannot be loaded ({_one_line(error)}); give "
                f"another name on the Hub, a folder with a saved model (--modalities.{name}.encoder FOLDER), or in the "
                "YAML a mapping with model_type"
            ) from error
    fields = dict(encoder)
    model_type = fields.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        remedy = nearest(str(model_type), list(CONFIG_MAPPING.keys()))
        raise ValueError(f"modalities.{name}.encoder: unknown model_type {model_type!r}; {remedy}")
    allowed = [key for key in AutoConfig.for_model(model_type).to_dict() if key != "model_type"]
    for key in fields:
        if key not in allowed:
            remedy = nearest(str(key), allowed)
            raise ValueError(f"modalities.{name}.encoder: unknown key {key!r} for {model_type}; {remedy}")
    try:
        return AutoModel.from_config(AutoConfig.for_model(model_type, **fields))
    except Exception as error:
        # Configs and models raise many kinds of errors for wrong values.
        raise ValueError(
            f"modalities.{name}.encoder: {_one_line(error)}; correct the fields of {model_type}"
        ) from error


def _build_processor(name: str, modality: ModalityArguments, encoder: PreTrainedModel) -> Any:
    """The named processor, or else the encoder's; for random weights the one of its model type."""
    media = media_of(name, encoder)
    options = modality.processor if isinstance(modality.processor, dict) else {}
    for key in CODE_KEYS:
        if key in options:
            raise ValueError(
                f"modalities.{name}.processor: {key} would run code that comes with a model, which a recipe never "
                "does; leave it out"
            )
    place = modality.processor if isinstance(modality.processor, str) else modality.encoder
    if isinstance(place, dict) and media == "text":
        raise ValueError(
            f"modalities.{name}: a text encoder with random weights has no vocabulary; give the name or "
            "folder of a tokenizer as processor"
        )
    try:
        if isinstance(place, str):
            processor = AUTO_PROCESSORS[media].from_pretrained(place, trust_remote_code=False, **options)
        else:
            processor = _default_processor(media, encoder, options)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"modalities.{name}: the processor of {type(encoder).__name__} cannot be made "
            f"({_one_line(error)}); correct its options, or name another one as processor"
        ) from error
    allowed = _options_of(processor) | (set() if isinstance(place, str) else {"type"})
    for key in options:
        if key not in allowed:
            remedy = nearest(str(key), sorted(allowed))
            kind = type(processor).__name__
            raise ValueError(f"modalities.{name}.processor: unknown key {key!r} for {kind}; {remedy}")
    frames = getattr(encoder.config, "num_frames", None)
    if frames is not None and getattr(processor, "num_frames", None) is None:
        # The processor takes as many frames from a video as its encoder needs.
        processor.num_frames = frames
    return processor


def _default_processor(media: str, encoder: PreTrainedModel, options: Mapping[str, Any]) -> Any:
    """The processor that transformers pairs with a model type, or the class that the option `type` names."""
    fields = {TYPE_KEYS[media] if key == "type" else key: value for key, value in options.items()}
    verbosity = logging.get_verbosity()
    # Without torchvision, transformers uses Pillow and logs a warning each time.
    logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as folder:
            encoder.config.save_pretrained(folder)
            Path(folder, "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
            return AUTO_PROCESSORS[media].from_pretrained(folder, trust_remote_code=False)
    finally:
        logging.set_verbosity(verbosity)


def _options_of(processor: Any) -> set[str]:
    """The names of the options of a processor. The loaders of transformers accept any name without a warning."""
    names = set(getattr(getattr(type(processor), "valid_kwargs", None), "__annotations__", ()))
    if isinstance(processor, PreTrainedTokenizerBase):
        names |= set(vars(processor))
    for each in type(processor).__mro__:
        names |= {
            key for key, value in vars(each).items() if isinstance(value, (bool, float, int, str, list))
        }
        if "__init__" in vars(each):
            names |= set(inspect.signature(each.__init__).parameters) - {"self", "args", "kwargs"}
    return {name for name in names if not name.startswith("_")}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
