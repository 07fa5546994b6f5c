"""The processor of several modalities, and collators, which make batches of the rows of a data set.

A fusion model is called as `model(image={...}, audio={...}, labels=...)`: the inputs are nested by modality
name, and each inner mapping is what the modality's own Hugging Face processor returns.
"""

from __future__ import annotations

import inspect
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    FeatureExtractionMixin,
    PreTrainedTokenizerBase,
)
from transformers.utils import PushToHubMixin, cached_file

from ecsfusion.data.arrays import ArrayProcessor, read_array
from ecsfusion.data.columns import LABEL_COLUMNS, check_rows, nested_form
from ecsfusion.data.media import read_audio, read_image, read_video, seconds_of
from ecsfusion.data.missing import is_missing
from ecsfusion.data.numbered_rows import place_of
from ecsfusion.model.configuration import FusionConfig

CONFIG_NAME = "fusion_processor_config.json"

UNLIMITED = 1_000_000
"""A tokenizer without a limit says that its texts may be longer than this."""
# The kinds of processors: their classes, and the classes that load them. Names of modalities are free (a model may have
# two cameras), so the kind follows from the processor's class and never from the name.
KINDS: dict[str, tuple[type, Any]] = {
    "image_processor": (BaseImageProcessor, AutoImageProcessor),
    "feature_extractor": (FeatureExtractionMixin, AutoFeatureExtractor),
    "tokenizer": (PreTrainedTokenizerBase, AutoTokenizer),
    "array_processor": (ArrayProcessor, ArrayProcessor),
}
WINDOWS_SECONDS = 0.035
"""The length of two windows of Kaldi's filter banks: of one, SeamlessM4T's extractor makes NaN."""
MAX_AMPLITUDE = 100.0
"""Floats of a sound are in -1..1, or a few times larger where they were standardized; cast integers are thousands."""
RAW_KEYS = frozenset({"bytes", "path", "array", "sampling_rate"})
"""Keys of a mapping that holds a raw value and not processed inputs."""
LOCAL_KEYS = frozenset({"name_or_path", "cache_dir", "is_local", "local_files_only", "token"})
"""Keys of a processor's configuration that are about this machine, and are not saved."""


class FusionBatch(dict):
    """Inputs nested by modality name, with `to` for devices and dtypes: `model(**batch.to("cuda"))`."""

    def to(self, device: Any = None, dtype: torch.dtype | None = None, **kwargs: Any) -> FusionBatch:
        """A batch with every tensor moved to `device`, and the floating-point ones cast to `dtype`.

        Args:
            device: a device, or a dtype as in `torch.Tensor.to`.
            dtype: dtype of the floating-point tensors; None leaves it.
            **kwargs: arguments of `torch.Tensor.to`, for example `non_blocking=True`.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        def move(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: move(inner) for key, inner in value.items()}
            if not isinstance(value, torch.Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None, **kwargs)

        return FusionBatch({key: move(value) for key, value in self.items()})


class FusionProcessor(PushToHubMixin):
    """Image processors, audio feature extractors, tokenizers and array processors behind one call.

    Args:
        processors: for each modality of the model an image processor (of videos as well), feature extractor,
            tokenizer, or `ArrayProcessor` for tabular rows and time series.
        value_ranges: for modalities of pictures whose type does not say what their values mean, those of black and
            white, such as `{"scan": (0, 4095)}` for 12 bits (see `ecsfusion.data.media.read_image`). It is saved.

    Raises:
        ValueError: no processor is given, a name is no Python identifier, a tokenizer cannot pad, or a range is none.
        TypeError: a value is none of the four kinds.

    Example:
        >>> processor = FusionProcessor({"image": image_processor, "audio": feature_extractor})
        >>> batch = processor(image="digit.png", audio="digit.wav")
        >>> logits = model(**batch).logits
    """

    def __init__(
        self, processors: Mapping[str, Any], value_ranges: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        if not processors:
            raise ValueError("processors is empty; give at least one, as in {'image': image_processor}")
        if not isinstance(processors, Mapping):
            raise TypeError(
                f"processors must map names of modalities to processors, as in {{'image': image_processor}}; found "
                f"{type(processors).__name__}"
            )
        for name, processor in processors.items():
            if not name.isidentifier() or name in (*LABEL_COLUMNS, "present"):
                raise ValueError(f"modality {name!r} cannot be an argument's name; choose one like 'image'")
            if _kind(processor) is None:
                raise TypeError(
                    f"the processor of {name!r} is a {type(processor).__name__}; give an image processor, a "
                    "feature extractor, a tokenizer or an ArrayProcessor (of a combined processor its "
                    ".image_processor, .feature_extractor or .tokenizer)"
                )
            if isinstance(processor, PreTrainedTokenizerBase) and processor.pad_token is None:
                raise ValueError(
                    f"the tokenizer of {name!r} has no padding token; set its pad_token, for example to its "
                    "eos_token"
                )
        self.processors = dict(processors)
        self.value_ranges = {
            name: _checked_range(name, values, self.processors.get(name))
            for name, values in (value_ranges or {}).items()
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modality names, in the order of `processors`."""
        return tuple(self.processors)

    def kind(self, name: str) -> str:
        """What the raw values of a modality are: "image", "video", "audio", "text" or "numbers".

        Raises:
            ValueError: an unknown modality.
        """
        self._check_names([name])
        processor = self.processors[name]
        if isinstance(processor, BaseImageProcessor):
            return "video" if _takes_videos(processor) else "image"
        if isinstance(processor, PreTrainedTokenizerBase):
            return "text"
        return "numbers" if isinstance(processor, ArrayProcessor) else "audio"

    def __repr__(self) -> str:
        inner = (f"{name}: {type(processor).__name__}" for name, processor in self.processors.items())
        return f"FusionProcessor({', '.join(inner)})"

    def __call__(self, **modalities: Any) -> FusionBatch:
        """Turn raw media into a batch.

        Args:
            **modalities: per modality name a list of B raw values, or one raw value (a batch of one), or None
                (the modality is absent). In a list, None is a row that lacks the modality, and so is NaN, which tables
                of pandas have in its place. Images, sounds and videos as `ecsfusion.data.media` reads them, text as
                str, rows of numbers as arrays or lists of floats.

        Returns:
            Modality name to the inputs of its encoder, tensors (B, ...): "pixel_values" (B, C, H, W)
            float32, of videos (B, T, C, H, W); "input_values" or "input_features" (B, T) or (B, T, F) float32;
            "input_ids" (B, L) int64; "values" (B, D) or (B, T, D); "attention_mask" (B, L) where lengths may differ.
            Audio, text and series are padded to the longest of the batch. Where rows lack a modality, "present" has
            for it which rows have it, (B,) bool, and their inputs are zeros.

        Raises:
            ValueError: an unknown modality, different numbers of rows, or a row that cannot be read.
            TypeError: a raw value of the wrong type.
        """
        self._check_names(modalities)
        batches = {
            name: _as_batch(values, _takes_videos(self.processors[name]))
            for name in self.processors
            if not is_missing(values := modalities.get(name))
        }
        sizes = {name: len(values) for name, values in batches.items()}
        if all(is_missing(value) for values in batches.values() for value in values):
            raise ValueError(f"nothing to process; give at least one modality of {list(self.modalities)}")
        if len(set(sizes.values())) > 1:
            counts = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
            raise ValueError(f"the numbers of rows differ: {counts}; give one value per row and modality")
        return _with_missing_rows(batches, self.process)

    def process(
        self, name: str, values: Sequence[Any], first_row: int | Sequence[int | str] = 0
    ) -> dict[str, torch.Tensor]:
        """Process the raw values of one modality.

        Args:
            name: the modality.
            values: B raw values, none of them missing.
            first_row: for error messages, the number of the first value, for callers that process a data set in
                parts; or for each value its number, or what to call its row, such as "row 3 of the batch".

        Returns:
            The inputs of the modality's encoder, tensors (B, ...).

        Raises:
            ValueError: an unknown modality, or a row that cannot be read.
            TypeError: a raw value of the wrong type.
        """
        self._check_names([name])
        processor = self.processors[name]
        places = _places(first_row, len(values))
        rows = [self._read(name, value, place) for place, value in zip(places, values, strict=True)]
        options = _call_options(processor)
        try:
            features = processor(rows, return_tensors="pt", **options)
        except Exception as error:
            # Processors raise errors of any type, which do not name the modality and the row.
            kind_of = _kind_of_numbers if isinstance(processor, ArrayProcessor) else None
            where = _culprit(
                places, rows, lambda row: processor([row], return_tensors="pt", **options), kind_of
            )
            raise ValueError(
                f"{name}, {where}: {type(processor).__name__} failed ({error}); check the processor's options against "
                "the shape and length of this row"
            ) from error
        inputs = {key: value for key, value in features.items() if isinstance(value, torch.Tensor)}
        if isinstance(processor, PreTrainedTokenizerBase):
            _check_texts(name, inputs, values, places)
        return inputs

    def pad(
        self, name: str, rows: Sequence[Mapping[str, Any]], first_row: int | Sequence[int | str] = 0
    ) -> dict[str, torch.Tensor]:
        """Pad processed rows of one modality to a batch.

        Args:
            name: the modality.
            rows: processed inputs, without a batch dimension.
            first_row: as in `process`.

        Returns:
            Tensors (B, ...).

        Raises:
            ValueError: the shapes differ and the processor cannot pad.
        """
        places = _places(first_row, len(rows))
        for place, row in zip(places, rows, strict=True):
            if row.keys() != rows[0].keys():
                raise ValueError(
                    f"{name}, {place}: it has {sorted(row)} and {places[0]} has {sorted(rows[0])}; give the same "
                    "inputs in every row"
                )
        tensors = {key: [torch.as_tensor(row[key]) for row in rows] for key in rows[0]}
        if all(len({tensor.shape for tensor in column}) == 1 for column in tensors.values()):
            return {key: torch.stack(column) for key, column in tensors.items()}
        processor: Any = self.processors[name]
        if isinstance(processor, BaseImageProcessor) or not hasattr(processor, "pad"):
            key, index = next(
                (key, index)
                for key, column in tensors.items()
                for index, tensor in enumerate(column)
                if tensor.shape != column[0].shape
            )
            shape, first = tuple(tensors[key][index].shape), tuple(tensors[key][0].shape)
            raise ValueError(
                f"{name}, {places[index]}: its {key} have the shape {shape} and those of {places[0]} {first}, which "
                f"{type(processor).__name__} cannot pad; give the processor a fixed size"
            )
        arrays = {key: [tensor.numpy() for tensor in column] for key, column in tensors.items()}
        options = {"return_attention_mask": True} if isinstance(processor, FeatureExtractionMixin) else {}
        padded = processor.pad(arrays, padding=True, return_tensors="pt", **options)
        inputs = {key: value for key, value in padded.items() if isinstance(value, torch.Tensor)}
        if isinstance(processor, PreTrainedTokenizerBase):
            _check_texts(name, inputs, rows, _places(first_row, len(rows)))
        return inputs

    def length(self, name: str, value: Any) -> float:
        """How long a raw or processed value of one modality is, without decoding it.

        Args:
            name: the modality.
            value: as `process` takes it, or processed inputs.

        Returns:
            Of text the number of characters, of sound seconds, of series steps, of videos frames; 1 for images, and for
            videos of which as many frames are taken from each. Of processed inputs the length of the first of them.

        Raises:
            ValueError: an unknown modality, or a value whose length is not known before it is decoded.
        """
        self._check_names([name])
        processor = self.processors[name]
        if _is_processed(value):
            return float(len(next(iter(value.values()))))
        if isinstance(processor, BaseImageProcessor):
            takes_all = _takes_videos(processor) and getattr(processor, "num_frames", None) is None
            return float(len(value)) if takes_all else 1.0
        if isinstance(processor, (PreTrainedTokenizerBase, ArrayProcessor)):
            return float(len(value))
        return seconds_of(value, getattr(processor, "sampling_rate", None))

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write `fusion_processor_config.json` and one sub-folder per modality, without any local path.

        Args:
            save_directory: the folder; made when absent.
            push_to_hub: also upload it, to `repo_id` (default: the folder's name).
            **kwargs: arguments of `push_to_hub`.

        Returns:
            The paths of the files written.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        # push_to_hub passes this option to every kind of object.
        kwargs.pop("max_shard_size", None)
        for name, processor in self.processors.items():
            processor.save_pretrained(folder / name)
            for file in (folder / name).glob("*config.json"):
                _forget_local_paths(file)
        config = {
            "processor_class": type(self).__name__,
            "modalities": {name: _kind(processor) for name, processor in self.processors.items()},
        }
        if self.value_ranges:
            config["value_ranges"] = {name: list(values) for name, values in self.value_ranges.items()}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.resolve().name), **kwargs)
        files = (file for name in self.processors for file in sorted((folder / name).rglob("*")))
        return [str(folder / CONFIG_NAME), *(str(file) for file in files if file.is_file())]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, revision: str | None = None, **kwargs: Any
    ) -> FusionProcessor:
        """Load what `save_pretrained` or `push_to_hub` stored. Code from a repository is never run.

        Args:
            pretrained_model_name_or_path: a local folder or the name of a repository on the Hub.
            revision: branch, tag or commit on the Hub.
            **kwargs: `token`, `cache_dir`, `force_download`, `local_files_only`, as everywhere in
                Hugging Face.

        Raises:
            OSError: the folder or repository does not exist or holds no fusion processor.
            ValueError: its config names a kind of processor that this version does not know.
        """
        source = os.fspath(pretrained_model_name_or_path)
        file = cached_file(
            source, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False, **kwargs
        )
        if file is None:
            raise OSError(f"{source!r} has no {CONFIG_NAME}; give what FusionProcessor.save_pretrained wrote")
        config = json.loads(Path(file).read_text(encoding="utf-8"))
        kinds = config["modalities"]
        processors = {}
        for name, kind in kinds.items():
            if kind not in KINDS:
                raise ValueError(
                    f"{file}: the kind of modality {name!r} is {kind!r}; this version knows {sorted(KINDS)}"
                )
            if os.path.isdir(source):
                location, options = os.path.join(source, name), {}
            else:
                location, options = source, {"subfolder": name, "revision": revision}
            try:
                processors[name] = KINDS[kind][1].from_pretrained(
                    location, **options, trust_remote_code=False, **kwargs
                )
            except ImportError as error:
                # Such as torchvision, which some image processors need.
                raise ImportError(f"the processor of modality {name!r} cannot be loaded: {error}") from error
        return cls(processors, config.get("value_ranges"))

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.processors:
                raise ValueError(f"unknown modality {name!r}; this processor has {list(self.modalities)}")

    def _read(self, name: str, value: Any, place: str) -> Any:
        processor = self.processors[name]
        try:
            if isinstance(processor, BaseImageProcessor):
                value_range = self.value_ranges.get(name)
                if _takes_videos(processor):
                    frames = getattr(processor, "num_frames", None)
                    return read_video(value, _num_channels(processor), frames, value_range)
                return read_image(value, _num_channels(processor), value_range)
            if isinstance(processor, ArrayProcessor):
                return read_array(value)
            if isinstance(processor, PreTrainedTokenizerBase):
                if not isinstance(value, str):
                    raise TypeError(
                        f"text cannot be a {type(value).__name__}; give a str (found {_shown(value)})"
                    )
                return value
            samples = read_audio(value, getattr(processor, "sampling_rate", None))
            _check_amplitude(samples, processor)
            return _filled_to_windows(samples, processor)
        except (TypeError, ValueError) as error:
            path = value.get("path") if isinstance(value, Mapping) else None
            source = "" if path is None or str(path) in str(error) else f" ({path!r})"
            # Subclasses of ValueError, such as UnicodeDecodeError, may not be made of a text alone.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}, {place}{source}: {error}") from error


class FusionCollator:
    """Makes a batch of rows of a data set: the `data_collator` of a `FusionTrainer`.

    A row is raw (`{"image": PIL image, "audio": {"bytes": ...}, "label": 3}`) or already processed
    (`{"image": {"pixel_values": tensor}, ..., "labels": 3}`, no batch dimension). Keys that are neither a
    modality nor "label" or "labels" are ignored. A modality that is absent, None or NaN is missing in this row; the
    batch then has "present" (see `FusionForClassification.forward`).

    Args:
        processor: a `FusionProcessor`; its modality names are the keys of the rows.
    """

    def __init__(self, processor: FusionProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> FusionBatch:
        """Make a batch.

        Args:
            rows: B rows.

        Returns:
            The batch, nested by modality name, with "labels" where the rows have them: (B,) int64 for whole numbers,
            (B,) float32 for real ones (regression), (B, C) float32 for lists (multi-label).

        Raises:
            ValueError: no modality is found in the rows or in one of them, the label is missing in some, or a row
                cannot be read.
            TypeError: a raw value of the wrong type, or rows that are no dictionaries.
        """
        names = self.processor.modalities
        check_rows(rows, names)
        columns = {name: [row.get(name) for row in rows] for name in names}
        batch = _with_missing_rows(columns, self._inputs, [place_of(*pair) for pair in _indexed(rows)])
        if not any(name in batch for name in names):
            advice = nested_form(rows[0], names) or "rename the columns to the modality names"
            raise ValueError(
                f"the rows have the keys {sorted(rows[0])} but none of the modalities {list(names)}; {advice}"
            )
        _check_no_flat_inputs(batch, rows, names)
        return _with_labels(batch, rows)

    def _inputs(self, name: str, values: Sequence[Any], places: Sequence[str]) -> dict[str, torch.Tensor]:
        if all(_is_processed(value) for value in values):
            try:
                return self.processor.pad(name, values, places)
            except Exception as error:
                # torch and processors raise errors of any type.
                where = _culprit(places, values, lambda value: self.processor.pad(name, [value]))
                raise ValueError(
                    f"{name}, {where}: processed inputs cannot be made a batch ({error}); give tensors of one kind"
                ) from error
        return self.processor.process(name, values, places)


class TensorCollator:
    """Makes a batch of rows of tensors: the `data_collator` of a `FusionTrainer` without a processor.

    A row has for each modality one tensor, or processed inputs as for a `FusionCollator`; shapes are equal in all rows.

    Args:
        modalities: names of the modalities; by default all keys of the rows but "label" and "labels".

    Raises:
        TypeError: `modalities` is no list of names.
    """

    def __init__(self, modalities: Sequence[str] | None = None) -> None:
        if modalities is not None and (isinstance(modalities, str) or not isinstance(modalities, Sequence)):
            raise TypeError(f"modalities must be a list of names, got {modalities!r}.")
        self.modalities = modalities

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> FusionBatch:
        """Make a batch, as `FusionCollator` does.

        Args:
            rows: B rows.

        Returns:
            The batch, nested by modality name.

        Raises:
            ValueError: no modality, labels that are missing in some rows, or tensors of different shapes.
            TypeError: rows that are no dictionaries, or labels that are no numbers.
        """
        check_rows(rows, self.modalities or ())
        names = self.modalities or [key for key in rows[0] if key not in LABEL_COLUMNS]
        if not names:
            raise ValueError(f"the rows have the keys {sorted(rows[0])} but no modality; leave such rows out")
        columns = {name: [row.get(name) for row in rows] for name in names}
        batch = _with_missing_rows(columns, _stack, [place_of(*pair) for pair in _indexed(rows)])
        _check_no_flat_inputs(batch, rows, names)
        return _with_labels(batch, rows)


class SameKeysCollator:
    """Gives the batches of a collator the same keys, whatever rows they hold.

    accelerate puts the batches of several processes together (streams, `dispatch_batches`), by the keys of the first:
    a mask that only another one has would be lost, and the zeros in place of missing rows would be trained on.

    Args:
        collate: the collator.
        modalities: names of the model's modalities.
    """

    def __init__(self, collate: Callable[[Any], Any], modalities: Sequence[str]) -> None:
        self.collate = collate
        self.modalities = modalities

    def __call__(self, rows: Any) -> Any:
        """Make a batch, with "present" for every modality.

        Raises:
            ValueError: no row of the batch has one of the modalities, whose inputs are then not known.
        """
        batch: Any = self.collate(rows)
        if not isinstance(batch, Mapping):
            return batch
        absent = [name for name in self.modalities if name not in batch]
        if absent:
            raise ValueError(
                f"no row of a batch has {absent[0]!r}, and batches of a stream that one process reads for several must "
                "have the same keys; give a data set that has a length, or one process."
            )
        sizes = {name: _num_rows(batch[name]) for name in self.modalities}
        masks = {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}
        return FusionBatch({**batch, "present": {**masks, **batch.get("present", {})}})


def _num_rows(inputs: Any) -> int:
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def _check_no_flat_inputs(
    batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]
) -> None:
    """Raises ValueError for a modality that no row has, where the rows have inputs of an encoder at the top level."""
    missing = [name for name in modalities if name not in batch]
    advice = nested_form(rows[0], modalities) if missing else None
    if advice is not None:
        raise ValueError(f"the rows have the keys {sorted(rows[0])} but no {missing[0]!r}; {advice}")


def _stack(name: str, values: Sequence[Any], places: Sequence[str]) -> Any:
    """Tensors of equal shapes as one."""
    try:
        stacked = default_collate(list(values))
        parts = list(stacked.values()) if isinstance(stacked, Mapping) else [stacked]
        if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
            form = ", which with_format('torch') of a data set changes" if isinstance(values[0], list) else ""
            raise TypeError(f"they are {type(values[0]).__name__}, not tensors{form}")
        return stacked
    except Exception as error:
        # torch raises errors of any type for values that it cannot stack.
        raise ValueError(
            f"the rows of {name!r} cannot be stacked ({error}; see {_culprit(places, values)}); give a FusionProcessor "
            "as processing_class, which reads and pads them, or rows that hold tensors of equal shapes."
        ) from error


def _indexed(rows: Sequence[Any]) -> list[tuple[Any, int]]:
    return [(row, index) for index, row in enumerate(rows)]


def _places(first_row: int | Sequence[int | str], size: int) -> list[str]:
    """What to call each row in an error."""
    numbers = range(first_row, first_row + size) if isinstance(first_row, int) else first_row
    return [number if isinstance(number, str) else f"row {number}" for number in numbers]


def _culprit(
    places: Sequence[str], rows: Sequence[Any], alone: Any = None, kind_of: Callable[[Any], Any] | None = None
) -> str:
    """The row for which a batch could not be made: the first that fails alone, or that is unlike most rows.

    Args:
        places: what to call the rows.
        rows: the rows.
        alone: processes one row; None where one row cannot fail.
        kind_of: what rows of a batch have in common; None for type and shape.
    """
    for place, row in zip(places, rows, strict=True):
        if alone is not None:
            try:
                alone(row)
            except Exception:
                return place
    kinds = [(kind_of or _kind_of)(row) for row in rows]
    usual = max(kinds, key=kinds.count)
    other = next((place for place, kind in zip(places, kinds, strict=True) if kind != usual), None)
    return other or (places[0] if len(places) == 1 else f"{places[0]} to {places[-1]}")


def _kind_of(row: Any) -> Any:
    """What rows of a batch have in common: type and shape, by key."""
    if isinstance(row, Mapping):
        return {key: _kind_of(value) for key, value in row.items()}
    # The size of a PIL image.
    return type(row), getattr(row, "shape", getattr(row, "size", None))


def _kind_of_numbers(row: Any) -> Any:
    """What rows of numbers have in common: the shape, without the length of series."""
    shape = np.shape(row)
    return shape if len(shape) == 1 else (None, *shape[1:])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _with_missing_rows(
    columns: Mapping[str, list[Any]], make_inputs: Any, places: Sequence[str] | None = None
) -> FusionBatch:
    """A batch of columns in which None (or NaN) marks a row that lacks the modality; its inputs are zeros.

    Args:
        columns: by modality, one value per row.
        make_inputs: called as `make_inputs(name, values, places)` with the values that are not None and what to call
            their rows in error messages; returns their inputs, tensors (N, ...).
        places: what to call the rows; None for their numbers.
    """
    if places is None:
        places = _places(0, len(next(iter(columns.values()))))
    columns = {
        name: [None if is_missing(value) else value for value in values] for name, values in columns.items()
    }
    batch, masks = FusionBatch(), {}
    for name, values in columns.items():
        rows = [row for row, value in enumerate(values) if value is not None]
        if rows:
            inputs = make_inputs(name, [values[row] for row in rows], [places[row] for row in rows])
            batch[name] = inputs if len(rows) == len(values) else _fill(inputs, rows, len(values))
        if len(rows) < len(values):
            masks[name] = torch.tensor([value is not None for value in values])
    if masks:
        batch["present"] = masks
    size = len(next(iter(columns.values())))
    empty = [row for row in range(size) if all(values[row] is None for values in columns.values())]
    if empty and len(empty) < size:
        raise ValueError(f"{places[empty[0]]} has none of the modalities {list(columns)}; leave this row out")
    return batch


def _fill(inputs: Any, rows: list[int], size: int) -> Any:
    """Tensors of some rows as those of `size` rows, with zeros in the others."""
    if isinstance(inputs, Mapping):
        return {key: _fill(value, rows, size) for key, value in inputs.items()}
    filled = inputs.new_zeros(size, *inputs.shape[1:])
    filled[rows] = inputs
    return filled


def labels_of(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
    """The labels of rows: (B,) int64 for whole numbers, (B,) float32 for real ones, (B, C) float32 for lists.

    Args:
        rows: B rows.

    Returns:
        The labels, or None if no row has any.

    Raises:
        ValueError: some rows lack a label, or their labels are of several kinds.
        TypeError: a label that is no number.
    """
    labels = [row.get("labels", row.get("label")) for row in rows]
    if all(label is None for label in labels):
        return None
    missing = [row for row, label in enumerate(labels) if is_missing(label)]
    if missing:
        place = place_of(rows[missing[0]], missing[0])
        raise ValueError(f"label, {place}: missing (None or NaN); leave such rows out")
    try:
        array = np.asarray([label.tolist() if isinstance(label, torch.Tensor) else label for label in labels])
    except (ValueError, TypeError, RuntimeError) as error:
        # Such as lists of different lengths, or tensors without values.
        where = _culprit([place_of(*pair) for pair in _indexed(rows)], labels, kind_of=_label_shape)
        raise ValueError(
            f"label, {where}: the rows hold no labels of one kind and length ({error}); correct them"
        ) from error
    if array.dtype.kind not in "biuf":
        wrong = next((row for row, label in enumerate(labels) if not _is_numeric(label)), 0)
        raise TypeError(
            f"label, {place_of(rows[wrong], wrong)}: {_shown(labels[wrong])} is a {type(labels[wrong]).__name__}; "
            "give class numbers from 0 (model.config.label2id maps names to them), or one list of numbers per row, "
            "all of one length."
        )
    tensor = torch.as_tensor(array)
    is_class = tensor.ndim == 1 and not tensor.is_floating_point()
    return tensor.to(torch.int64 if is_class else torch.float32)


def _with_labels(batch: FusionBatch, rows: Sequence[Mapping[str, Any]]) -> FusionBatch:
    labels = labels_of(rows)
    if labels is not None:
        batch["labels"] = labels
    return batch


def _label_shape(label: Any) -> Any:
    try:
        return tuple(label.shape) if hasattr(label, "shape") else np.shape(label)
    except ValueError:
        # Lists of different lengths.
        return "ragged"


def _is_numeric(label: Any) -> bool:
    return isinstance(label, torch.Tensor) or np.asarray(label).dtype.kind in "biuf"


def _check_texts(
    name: str, inputs: Mapping[str, torch.Tensor], texts: Sequence[Any], places: Sequence[str]
) -> None:
    """Raises ValueError for a text of which no token is left, such as an empty one."""
    lengths = inputs["attention_mask" if "attention_mask" in inputs else "input_ids"]
    empty = (lengths.sum(dim=1) == 0) if "attention_mask" in inputs else torch.tensor([not lengths.shape[1]])
    if bool(empty.any()):
        row = int(empty.nonzero()[0, 0])
        text = f"the text {texts[row]!r}" if isinstance(texts[row], str) else "the text"
        raise ValueError(
            f"{name}, {places[row]}: {text} has no token; give None, if the row has no text, or leave it out"
        )


def _checked_range(name: str, values: Any, processor: Any) -> tuple[float, float]:
    if not isinstance(processor, BaseImageProcessor):
        raise ValueError(f"value_ranges has the key {name!r}, which is no modality of pictures; leave it out")
    numbers_given = isinstance(values, (list, tuple)) and all(
        isinstance(value, numbers.Real) for value in values
    )
    if not numbers_given or len(values) != 2 or not -np.inf < values[0] < values[1] < np.inf:
        raise ValueError(
            f"value_ranges[{name!r}] is {values!r}; give the values of black and white, such as (0, 4095)"
        )
    return float(values[0]), float(values[1])


def _kind(processor: Any) -> str | None:
    return next((kind for kind, (base, _) in KINDS.items() if isinstance(processor, base)), None)


def _as_batch(values: Any, videos: bool = False) -> list[Any]:
    """The raw values of all rows; a value that is not a list of them is a batch of one."""
    if _is_column(values):
        values = list(values)
    array = isinstance(values, (np.ndarray, torch.Tensor))
    # One video is itself a list of frames, or an array of four dimensions.
    if videos:
        listed = isinstance(values, (list, tuple))
        many = values.ndim == 5 if array else listed and any(_is_video(value) for value in values)
        return list(values) if many else [values]
    if isinstance(values, (list, tuple)):
        return [values] if values and isinstance(values[0], numbers.Number) else list(values)
    if array and values.ndim == 4:
        return list(values)
    return [values]


def _check_amplitude(samples: np.ndarray, processor: Any) -> None:
    """Check that the floats of a sound are no integers of 16 bits that were cast without dividing.

    A processor that scales every waveform to variance 1, as that of wav2vec 2.0, takes them in any unit.

    Raises:
        ValueError: they are far beyond -1..1.
    """
    scales = getattr(processor, "do_normalize", False) and not hasattr(processor, "num_mel_bins")
    peak = 0.0 if scales and getattr(processor, "feature_size", None) == 1 else float(np.abs(samples).max())
    if peak > MAX_AMPLITUDE:
        raise ValueError(
            f"the sound has floats up to {peak:g}, and this processor takes -1..1; give the integers that they were "
            "(int16), or divide them by their range (32768 for 16 bits)"
        )


def _filled_to_windows(samples: np.ndarray, processor: Any) -> np.ndarray:
    """A sound, followed by silence up to two windows of the filter banks of AST, SeamlessM4T and others."""
    if not hasattr(processor, "num_mel_bins") or not hasattr(processor, "sampling_rate"):
        return samples
    missing = math.ceil(WINDOWS_SECONDS * processor.sampling_rate) - len(samples)
    return np.pad(samples, (0, max(missing, 0)))


def _is_column(values: Any) -> bool:
    """Whether these are the values of many rows: `dataset["text"]`, a pandas series, an array of texts or objects."""
    if isinstance(values, np.ndarray):
        return values.ndim == 1 and values.dtype.kind in "OUS"
    if isinstance(values, (str, bytes, bytearray, list, tuple)):
        return False
    return isinstance(values, Sequence) or (hasattr(values, "iloc") and values.ndim == 1)


def _is_video(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 4


def _takes_videos(processor: Any) -> bool:
    """Whether the processor takes videos, like VideoMAE's."""
    return (
        isinstance(processor, BaseImageProcessor)
        and "videos" in inspect.signature(processor.preprocess).parameters
    )


def _is_processed(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and RAW_KEYS.isdisjoint(value)


def _num_channels(processor: Any) -> int | None:
    """Number of channels that the encoder expects; None if the processor's configuration does not tell.

    A pretrained encoder needs RGB even where the images are grey.
    """
    if getattr(processor, "do_convert_rgb", False):
        return 3
    mean = getattr(processor, "image_mean", None)
    return len(mean) if isinstance(mean, (list, tuple)) and len(mean) in (1, 3) else None


def _call_options(processor: Any) -> dict[str, Any]:
    if isinstance(processor, PreTrainedTokenizerBase):
        # Without a limit the tokenizer would warn at every call that it cannot truncate.
        limited = processor.model_max_length < UNLIMITED
        # Where the tokenizer makes no mask (SigLIP), the encoder was trained on texts of one length.
        fixed = limited and "attention_mask" not in processor.model_input_names
        if fixed:
            # Without a mask nothing tells which positions are padding, so all batches have it on one side.
            return {"padding": "max_length", "truncation": True, "padding_side": "right"}
        return {"padding": True, "truncation": limited}
    if isinstance(processor, (BaseImageProcessor, ArrayProcessor)):
        return {}
    options: dict[str, Any] = {}
    if hasattr(processor, "sampling_rate"):
        options["sampling_rate"] = processor.sampling_rate
    parameters = inspect.signature(processor.__call__).parameters
    # Without a mask, the silence of the padding would count as sound.
    if "return_attention_mask" in parameters:
        options["return_attention_mask"] = True
    padding = parameters.get("padding")
    # Other feature extractors pad by default, some to the one length that their encoder takes.
    if padding is not None and padding.default is False:
        options["padding"] = True
    return options


def _forget_local_paths(file: Path) -> None:
    """Remove paths and keys about this machine from a saved configuration: they are private, and useless elsewhere."""
    config = json.loads(file.read_text(encoding="utf-8"))
    kept = {
        key: value
        for key, value in config.items()
        if key not in LOCAL_KEYS
        and not (isinstance(value, str) and os.path.isabs(value) and not key.endswith("_token"))
    }
    if kept != config:
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


AutoProcessor.register(FusionConfig, FusionProcessor)
