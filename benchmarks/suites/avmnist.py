"""AV-MNIST, rebuilt: a handwritten digit of which little is left, and the digit spoken under noise.

The sounds are decoded and their log-mel spectrograms computed once; they are cached as safetensors.
"""

import hashlib
import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from suites.encoders import ImageEncoder, SpectrogramEncoder
from suites.folders import SPLITS, cache_folder, data_file
from suites.log_mel import NUM_BANDS, SAMPLING_RATE, log_mel
from suites.suite import Split, Suite, standardize

# Raise the number whenever `decode` or `log_mel` changes: older files of the cache are then not read.
RECIPE = "log-mel 1"
IMAGE_SHAPE = (1, 28, 28)


def load_rows(config: str, split: str) -> dict[str, Tensor]:
    """The rows of one file, decoded, from the cache where it has them.

    Args:
        config: "small" (2 000 / 500 / 500 rows) or "full" (16 000 / 2 500 / 4 000).
        split: "train", "validation", or "test".

    Returns:
        "image" (N, 1, 28, 28) uint8, "audio" (N, 1, 40, 32) float32 log-mel, "labels" (N,) int64, "snr_db" (N,)
        float32.

    Raises:
        FileNotFoundError: the data are absent.
    """
    file = data_file(f"avmnist/{config}/{split}.parquet")
    key = hashlib.sha256(f"{config}/{file.name} {file.stat().st_size} {RECIPE}".encode()).hexdigest()[:16]
    cached = cache_folder() / f"avmnist-{config}-{split}-{key}.safetensors"
    if not cached.is_file():
        _save(decode(file), cached)
    return load_file(cached)


def decode(file: Path) -> dict[str, Tensor]:
    """The rows of a parquet file, as `load_rows` gives them."""
    table = parquet.read_table(file, columns=["image", "audio", "label", "snr_db"])
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    waves = [_read_sound(row["bytes"]) for row in table["audio"].to_pylist()]
    return {
        "image": torch.from_numpy(np.stack(images)).unsqueeze(1),
        "audio": log_mel(torch.from_numpy(np.stack(waves))),
        "labels": torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        "snr_db": torch.from_numpy(table["snr_db"].to_numpy().astype(np.float32)),
    }


def load_splits(config: str) -> dict[str, Split]:
    """Train, validation and test: "image" (N, 1, 28, 28) and "audio" (N, 1, 40, 32), float32, standardized.

    By the training rows: pixels by one mean and one standard deviation, audio by those of each mel band.
    """
    rows = [load_rows(config, split) for split in SPLITS]
    images = standardize([split["image"].float() for split in rows], dims=(0, 1, 2, 3))
    sounds = standardize([split["audio"] for split in rows], dims=(0, 1, 3))
    return {
        name: Split({"image": image, "audio": audio}, split["labels"])
        for name, image, audio, split in zip(SPLITS, images, sounds, rows, strict=True)
    }


def build_encoders(batch_norm: bool = False) -> dict[str, nn.Module]:
    """Small convnets for image and audio, with batch-normalized embeddings or without."""
    return {
        "image": ImageEncoder(IMAGE_SHAPE, batch_norm=batch_norm),
        "audio": SpectrogramEncoder(NUM_BANDS, batch_norm=batch_norm),
    }


def small() -> Suite:
    """The suite `avmnist-small`: 2 000 / 500 / 500 rows."""
    return Suite(
        name="avmnist-small",
        description=(
            "Digit from 4 principal components of its image and from the spoken digit in noise: audio is weaker, "
            "slower, and overfits its 2 000 clips."
        ),
        num_classes=10,
        **load_splits("small"),
        build_encoders=build_encoders,
        epochs=20,
        batch_size=64,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.03, 0.1),
    )


def full() -> Suite:
    """The suite `avmnist-full`: 16 000 / 2 500 / 4 000 rows."""
    return replace(
        small(),
        name="avmnist-full",
        description=(
            "As avmnist-small with 16 000 rows, so that audio overfits less: slower than the image, and little weaker."
        ),
        **load_splits("full"),
        epochs=8,
    )


def _read_sound(data: bytes) -> np.ndarray:
    """Samples (8000,) float32."""
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    if rate != SAMPLING_RATE or wave.shape != (SAMPLING_RATE,):
        raise ValueError(
            f"a sound has {wave.shape} samples at {rate} Hz; avmnist has one second at {SAMPLING_RATE} Hz, mono."
        )
    return wave


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file that other processes see whole or not at all."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        save_file(tensors, Path(folder, file.name))
        os.replace(Path(folder, file.name), file)
