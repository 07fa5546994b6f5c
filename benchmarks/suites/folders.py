"""Where the data lie that are not part of the repository, and where what was computed from them is kept."""

import os
from pathlib import Path

DATA_VARIABLE, MODELS_VARIABLE, CACHE_VARIABLE = "ECSFUSION_DATA", "ECSFUSION_MODELS", "ECSFUSION_CACHE"
SPLITS = ("train", "validation", "test")


def data_file(name: str) -> Path:
    """Path of a file of the data folder: `../shared/data` beside the checkout, or `$ECSFUSION_DATA`.

    Raises:
        FileNotFoundError: it is absent.
    """
    folder = Path(os.environ.get(DATA_VARIABLE) or Path(__file__).resolve().parents[3] / "shared" / "data")
    file = folder / name
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is absent: this suite needs data that are not part of the repository. Set {DATA_VARIABLE} to the "
            "folder that holds avmnist/, clipart/, mnist/ and stamps/ (benchmarks/ has build_avmnist.py, "
            "build_clipart.py and build_stamps.py), or choose the suite 'digits', which needs none."
        )
    return file


def model_folder(name: str) -> Path:
    """Path of a pretrained encoder: in `../shared/models` beside the checkout, or in `$ECSFUSION_MODELS`.

    Raises:
        FileNotFoundError: it is absent.
    """
    models = os.environ.get(MODELS_VARIABLE) or Path(__file__).resolve().parents[3] / "shared" / "models"
    folder = Path(models) / name
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is absent: this needs pretrained encoders that are not part of the repository. Set "
            f"{MODELS_VARIABLE} to the folder that holds efficientnet-lite0/ and whisper-tiny-en-encoder-3s/, which "
            "benchmarks/build_encoders.py makes."
        )
    return folder


def cache_folder() -> Path:
    """`~/.cache/ecsfusion/suites`, or `$ECSFUSION_CACHE`; made if it is absent."""
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "ecsfusion" / "suites")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
