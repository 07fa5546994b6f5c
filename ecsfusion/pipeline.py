"""`pipeline("multimodal-classification")` of transformers: raw values in, names of classes and scores out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from ecsfusion.data.missing import is_missing
from ecsfusion.model.answers import answer_of, labelled
from ecsfusion.processing import FusionCollator

TASK = "multimodal-classification"


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
        self.model.eval()
        self._collate = FusionCollator(self.processor)

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Classify.

        Args:
            inputs: a row, a list of rows, a data set or a generator of rows; or None, where the values of one row are
                given by name.
            **kwargs: values of one row by modality; `top_k`, `batch_size`, `num_workers` as in other pipelines.

        Returns:
            For a row a list of `{"label": ..., "score": ...}`, the most probable class first: the first `top_k`
            (5, or None for all), in regression all targets; for several rows a list of such lists, or for a data set
            or a generator an iterator over them.

        Raises:
            ValueError: no row, a row without any modality of the model, or a value that cannot be read.
            TypeError: a row that is no dictionary, or a raw value of a wrong type.
        """
        row = {name: kwargs.pop(name) for name in self.model.modalities if name in kwargs}
        if (inputs is None) == (not row):
            raise ValueError(
                f"give rows, such as {dict.fromkeys(self.model.modalities, '...')}, or the values of one row by name."
            )
        if isinstance(inputs, list | tuple) and not inputs:
            return []
        return super().__call__(
            row if inputs is None else list(inputs) if isinstance(inputs, tuple) else inputs, **kwargs
        )

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        top_k = {"top_k": parameters.pop("top_k")} if "top_k" in parameters else {}
        if parameters:
            raise ValueError(
                f"{sorted(parameters)[0]!r} is no modality of this model and no option of the pipeline; the modalities "
                f"are {list(self.model.modalities)}, the option is 'top_k'."
            )
        return {}, {}, top_k

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        """The processed inputs of one row by modality, without a batch dimension."""
        names = self.model.modalities
        if not isinstance(input_, Mapping):
            raise TypeError(
                f"a row is a {type(input_).__name__}; give a dictionary of the values by modality, "
                f"{dict.fromkeys(names, '...')}."
            )
        values = {name: input_[name] for name in names if not is_missing(input_.get(name))}
        if not values:
            raise ValueError(f"a row has the keys {list(input_)} but none of the modalities {list(names)}.")
        # As a list, because one row may itself be a list, of numbers or of the frames of a video.
        return {
            name: {key: tensor[0] for key, tensor in self.processor.process(name, [value]).items()}
            for name, value in values.items()
        }

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
        rows = kind(inputs, self.preprocess, preprocess_params)
        # More processes would each read all of a stream.
        workers = num_workers if isinstance(inputs, Sized) else min(num_workers, 1)
        loader: Any = DataLoader(rows, num_workers=workers, batch_size=batch_size, collate_fn=self._collate)
        answers = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(answers, self.postprocess, postprocess_params)


PIPELINE_REGISTRY.register_pipeline(TASK, pipeline_class=MultimodalClassificationPipeline, pt_model=AutoModel)
