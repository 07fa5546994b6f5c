"""The embeddings of a data set by frozen pretrained encoders, as the suites that train on them read them."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from suites.folders import SPLITS, model_folder
from suites.pretrained import AUDIO, IMAGE, SAMPLING_RATE, read_sound, text_folder
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

MAX_TOKENS = 64
BATCH_SIZES = {"image": 32, "audio": 32, "text": 64}


def check_encoders(modalities: Sequence[str]) -> None:
    """Find the encoders of "image", "audio" and "text".

    Raises:
        FileNotFoundError: one is absent.
    """
    for name in modalities:
        if name == "text":
            text_folder()
        else:
            model_folder(IMAGE if name == "image" else AUDIO)


def write_embeddings(folder: Path, modalities: Sequence[str], *, group: str, image_size: int) -> None:
    """Write `embeddings.npz` beside the parquet files of a data set.

    Rows are in the order train, validation, test: float16 embeddings (N, D) by modality, "label" (N,) int16, "split",
    "group" (N,) int32, "language" where the files have it, and "names" of the classes.

    Args:
        folder: of the parquet files.
        modalities: of the columns "image", "audio", "text".
        group: the column of groups.
        image_size: pixels of a side.

    Raises:
        FileNotFoundError: an encoder is absent.
    """
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SPLITS}
    rows = [row for table in tables.values() for row in table.to_pylist()]
    embed = {"image": lambda: image_embedder(image_size), "audio": audio_embedder, "text": text_embedder}
    embeddings = {
        name: embed_values(
            [row[name] if name == "text" else row[name]["bytes"] for row in rows],
            BATCH_SIZES[name],
            embed[name](),
        )
        for name in modalities
    }
    # Groups are numbered in the order of their names.
    _, numbers = np.unique([str(row[group]) for row in rows], return_inverse=True)
    more = {"language": np.array([row["language"] for row in rows])} if "language" in rows[0] else {}
    np.savez_compressed(
        folder / "embeddings.npz",
        **embeddings,
        label=np.array([row["label"] for row in rows], dtype=np.int16),
        split=np.repeat(list(tables), [len(table) for table in tables.values()]),
        group=numbers.astype(np.int32),
        names=np.array(class_names(folder)),
        **more,
    )


def class_names(folder: Path) -> list[str]:
    """The names of the classes, by the schema of the training file."""
    from datasets import Features

    return Features.from_arrow_schema(pq.read_schema(folder / "train.parquet"))["label"].names


def embed_values(
    values: Sequence[Any], batch_size: int, embed: Callable[[Sequence[Any]], Tensor]
) -> NDArray[np.float16]:
    """The embeddings of values, (N, D); equal ones are computed once."""
    numbers: dict[Any, int] = {}
    place = [numbers.setdefault(value, len(numbers)) for value in values]
    different = list(numbers)
    with torch.no_grad():
        batches = [
            embed(different[start : start + batch_size]).numpy()
            for start in range(0, len(different), batch_size)
        ]
    return np.concatenate(batches)[place].astype(np.float16)


def image_embedder(size: int) -> Callable[[Sequence[bytes]], Tensor]:
    """The mean over positions of EfficientNet-Lite0, at size x size pixels."""
    processor = AutoImageProcessor.from_pretrained(model_folder(IMAGE))
    processor.size = {"height": size, "width": size}
    model = AutoModel.from_pretrained(model_folder(IMAGE)).eval()

    def embed(files: Sequence[bytes]) -> Tensor:
        pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        return model(**processor(pictures, return_tensors="pt")).last_hidden_state.mean((2, 3))

    return embed


def audio_embedder() -> Callable[[Sequence[bytes]], Tensor]:
    """The mean of Whisper's encoder over the positions that hold sound."""
    extractor = AutoFeatureExtractor.from_pretrained(model_folder(AUDIO))
    encoder = AutoModel.from_pretrained(model_folder(AUDIO)).get_encoder().eval()

    def embed(files: Sequence[bytes]) -> Tensor:
        inputs = extractor(
            [read_sound(file) for file in files],
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
            return_attention_mask=True,
        )
        hidden = encoder(inputs["input_features"]).last_hidden_state
        # A position is two frames of the spectrogram.
        return _mean(hidden, inputs["attention_mask"][:, ::2][:, : hidden.shape[1]])

    return embed


def text_embedder() -> Callable[[Sequence[str]], Tensor]:
    """The mean of all-MiniLM-L6-v2 over the tokens."""
    tokenizer = AutoTokenizer.from_pretrained(text_folder())
    model = AutoModel.from_pretrained(text_folder()).eval()

    def embed(texts: Sequence[str]) -> Tensor:
        inputs = tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return _mean(model(**inputs).last_hidden_state, inputs["attention_mask"])

    return embed


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(1) / weights.sum(1)
