"""The recipe's own data as a suite: small written digits, and the digit dialled on a noisy line."""

import io
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from suites.encoders import ImageEncoder, SpectrogramEncoder
from suites.folders import SPLITS
from suites.suite import Split, Suite, standardize

# In samples at 8 kHz: 32 and 8 ms.
WINDOW, HOP = 256, 64
# The frequencies up to 2 kHz: all keys lie below.
NUM_FREQUENCIES = 64
FLOOR = 1e-6
IMAGE_SHAPE = (1, 8, 8)


def digits() -> Suite:
    """The suite `digits`: 1 600 / 1 200 / 1 594 rows; no file outside the installed packages is read."""
    # `hf_recipes` is not installed; it is imported from the checkout.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    # The import takes a second, and only this suite needs it.
    from hf_recipes.digits import load_digits_splits

    rows = load_digits_splits()
    images = standardize([_images(rows[split]) for split in SPLITS], dims=(0, 1, 2, 3))
    sounds = standardize([log_spectrogram(_waves(rows[split])) for split in SPLITS], dims=(0, 1, 3))
    splits = {
        name: Split({"image": image, "audio": audio}, torch.tensor(rows[name]["label"]))
        for name, image, audio in zip(SPLITS, images, sounds, strict=True)
    }
    return Suite(
        name="digits",
        description=(
            "Digit from an 8 x 8 image and from the tones of its dialled key in noise: the image is strong and fast, "
            "audio is weaker and overfits."
        ),
        num_classes=10,
        **splits,
        build_encoders=build_encoders,
        epochs=20,
        batch_size=64,
        learning_rates=(1e-3, 3e-3),
        sgd_learning_rates=(0.03, 0.1),
    )


def build_encoders() -> dict[str, nn.Module]:
    """Small convnets for image and audio."""
    return {
        "image": ImageEncoder(IMAGE_SHAPE, channels=(16, 32)),
        "audio": SpectrogramEncoder(NUM_FREQUENCIES),
    }


def log_spectrogram(waves: Tensor) -> Tensor:
    """Natural logarithm of the power below 2 kHz of waves (N, 1200), 8 kHz: (N, 1, 64, 15) float32."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(waves, WINDOW, HOP, window=window, center=False, return_complex=True)
    return (spectrum[:, :NUM_FREQUENCIES].abs().square() + FLOOR).log().unsqueeze(1)


def _images(rows) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in rows["image"]])).float().unsqueeze(1)


def _waves(rows) -> Tensor:
    waves = [soundfile.read(io.BytesIO(sound["bytes"]), dtype="float32")[0] for sound in rows["audio"]]
    return torch.from_numpy(np.stack(waves))
