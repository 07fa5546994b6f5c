"""`pipeline("multimodal-classification")` of transformers: raw values in, names of classes and scores out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from ecsfusion.data.columns import LABEL_COLUMNS
from ecsfusion.data.missing import is_missing
from ecsfusion.model.answers import answer_of, labelled
from ecsfusion.processing import FusionCollator, FusionProcessor

logger = logging.get_logger(__name__)

TASK = "multimodal-classification"


class _Rows(Dataset):
    """Rows that can be indexed, as a data set of torch."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class _Numbered(_Rows):
    """Rows with their numbers."""

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.rows[index]


class MultimodalClassificationPipeline(Pipeline):
    """Classifies rows of several modalities, of which each may be missing.

    A row is a dictionary of raw values by modality, as `FusionProcessor` takes them: paths, pictures, arrays of
    samples, texts, rows of numbers. Other keys, such as the label, are ignored.

    Example:
        >>> classify = pipeline("multimodal-classification", model="you/digits")
        >>> classify({"image": "three.png", "audio": "three.wav"}, top_k=2)
        [{'label': '3', 'score': 0.98}, {'label': '8', 'score': 0.01}]
        >>> classify(image="three.png")
    """

    # What the base class says of them holds for its own kinds of models.
    model: Any
    processor: Any

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            self.processor = self.model.processor()
        elif isinstance(self.processor, str | os.PathLike):
            self.processor = FusionProcessor.from_pretrained(self.processor)
        absent = [name for name in self.model.modalities if name not in self.processor.modalities]
        if absent:
            raise ValueError(
                f"processor has the modalities {list(self.processor.modalities)} and lacks the model's {absent}; give "
                "the one that made the training rows."
            )
        self.model.eval()
        self._collate = FusionCollator(self.processor)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Classify.

        Args:
            inputs: a row, a list of rows, a data set (of torch or of `datasets`) or an iterator of rows; or None, where
                the values of one row are given by name.
            **kwargs: values of one row by modality; `top_k`, `batch_size`, `num_workers` as in other pipelines.

        Returns:
            For a row a list of `{"label": ..., "score": ...}`, the most probable class first: the first `top_k`
            (5, or None for all), in regression all targets; for several rows a list of such lists, or for a data set
            or an iterator an iterator over them.

        Raises:
            ValueError: no row, a row without any modality of the model, or a value that cannot be read; the message
                names the row.
            TypeError: a row that is no dictionary, or a raw value of a wrong type.
        """
        row = {name: kwargs.pop(name) for name in self.model.modalities if name in kwargs}
        if (inputs is None) == (not row):
            raise ValueError(
                f"give rows, such as {dict.fromkeys(self.model.modalities, '...')}, or the values of one row by name."
            )
        if isinstance(inputs, list | tuple) and not inputs:
            return []
        if inputs is None:
            inputs = row
        elif isinstance(inputs, tuple):
            inputs = list(inputs)
        elif isinstance(inputs, Iterator):
            inputs = (each for each in inputs)
        elif (
            hasattr(inputs, "column_names") and isinstance(inputs, Sized) and not isinstance(inputs, Dataset)
        ):
            # A `datasets.Dataset` is none of torch, which is all that the base class looks for.
            inputs = _Rows(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        top_k = {"top_k": parameters.pop("top_k")} if "top_k" in parameters else {}
        if parameters:
            raise ValueError(
                f"{sorted(parameters)[0]!r} is no modality of this model and no option of the pipeline; the modalities "
                f"are {list(self.model.modalities)}, the option is 'top_k'."
            )
        return {}, {}, top_k

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write model and processor to a folder, from which both and the pipeline can be loaded again.

        Args:
            save_directory: the folder, which is made if it does not exist.
            **kwargs: as in `FusionForClassification.save_pretrained`.
        """
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def preprocess(self, input_: Any, place: Any = None, **_: Any) -> dict[str, Any]:
        """The processed inputs of one row by modality, without a batch dimension; `place` is what to call it."""
        names = self.model.modalities
        if not isinstance(input_, Mapping):
            raise TypeError(
                f"{place or 'a row'} is a {type(input_).__name__}; give a dictionary of the values by modality, "
                f"{dict.fromkeys(names, '...')}."
            )
        values = {name: input_[name] for name in names if not is_missing(input_.get(name))}
        if not values:
            raise ValueError(
                f"{place or 'a row'} has the keys {list(input_)} but a value of none of the modalities {list(names)}."
            )
        absent = [name for name in names if name not in input_]
        unknown = [key for key in input_ if key not in names and key not in LABEL_COLUMNS]
        if absent and unknown:
            logger.warning_once(
                f"Rows have the keys {unknown}, which are no modalities of the model, and lack {absent}: they are "
                "answered without. Is it another name for the same?"
            )
        first_row = 0 if place is None else [place]
        # As a list, because one row may itself be a list, of numbers or of the frames of a video.
        return {
            name: {key: tensor[0] for key, tensor in self.processor.process(name, [value], first_row).items()}
            for name, value in values.items()
        }

    def _preprocess_numbered(self, numbered: tuple[int, Any], **parameters: Any) -> dict[str, Any]:
        number, row = numbered
        return self.preprocess(row, f"row {number}", **parameters)

    def _forward(self, input_tensors: Any, **_: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"answer": answer_of(self.model(**input_tensors), self.model.config)}

    def postprocess(self, model_outputs: Any, **parameters: Any) -> list[dict[str, Any]]:
        """Names and scores, of the answer (1, C) to one row."""
        return labelled(model_outputs["answer"][0], self.model.config, parameters.get("top_k", 5))

    def run_single(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> list[dict[str, Any]]:
        """Classify one row."""
        batch = self._collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterable[Any]:
        """As in other pipelines, where batches are padded by the processors of the modalities."""
        kind = PipelineDataset if isinstance(inputs, Sized) else PipelineIterator
        numbered: Any = _Numbered(inputs) if isinstance(inputs, Sized) else enumerate(inputs)
        rows = kind(numbered, self._preprocess_numbered, preprocess_params)
        # More processes would each read all of a stream.
        workers = num_workers if isinstance(inputs, Sized) else min(num_workers, 1)
        loader: Any = DataLoader(rows, num_workers=workers, batch_size=batch_size, collate_fn=self._collate)
        answers = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(answers, self.postprocess, postprocess_params)


PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=MultimodalClassificationPipeline, pt_model=AutoModel)
# So that a saved pipeline needs no copy of this file, and no `trust_remote_code`.
delattr(MultimodalClassificationPipeline, "_registered_impl")
