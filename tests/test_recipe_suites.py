"""The suites in hf_recipes/configs for data that users have: the recipe runs on samples of the format they describe."""

import csv
import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import tokenizers
import torch
import yaml
from PIL import Image
from transformers import PreTrainedTokenizerFast

# `hf_recipes` is not installed; it is imported from the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from ecsfusion import FusionProcessor
from ecsfusion.model.names import CALIBRATED, FUSED
from hf_recipes import run
from hf_recipes.configuration import parse_arguments
from hf_recipes.data import load_splits

CONFIGS = Path(__file__).resolve().parents[1] / "hf_recipes" / "configs"

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SIZE = {"size": {"height": 8, "width": 8}}
MEL = {"num_mel_bins": 16, "max_length": 24}
# For each pretrained encoder: one of its model type with random weights, and a processor that fits.
TINY = {
    "google/vit-base-patch16-224-in21k": (
        {"model_type": "vit", "image_size": 8, "patch_size": 4} | SMALL,
        SIZE,
    ),
    "MCG-NJU/videomae-base": (
        {"model_type": "videomae", "image_size": 8, "patch_size": 4, "num_frames": 4} | SMALL,
        {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}},
    ),
    "facebook/wav2vec2-base": (
        {"model_type": "wav2vec2", "conv_dim": [8, 8], "conv_stride": [10, 8], "conv_kernel": [10, 8]}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
        | SMALL,
        None,
    ),
    "MIT/ast-finetuned-audioset-10-10-0.4593": (
        {"model_type": "audio-spectrogram-transformer", "patch_size": 8} | MEL | SMALL,
        MEL,
    ),
    "google/efficientnet-b0": (
        {"model_type": "efficientnet", "width_coefficient": 0.5, "hidden_dim": 640, "in_channels": [32]}
        | {"out_channels": [16], "kernel_sizes": [3], "strides": [1], "expand_ratios": [1]}
        | {"num_block_repeats": [1], "num_hidden_layers": 1},
        SIZE,
    ),
    "openai/whisper-tiny.en": (
        {"model_type": "whisper", "num_mel_bins": 16, "d_model": 8, "max_source_positions": 50}
        | {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
        }
        | {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 0}
        | {"eos_token_id": 0, "decoder_start_token_id": 0},
        {"type": "WhisperFeatureExtractor", "feature_size": 16, "chunk_length": 1},
    ),
    "sentence-transformers/all-MiniLM-L6-v2": ({"model_type": "bert", "vocab_size": 8} | SMALL, "tokenizer"),
    "google-bert/bert-base-uncased": ({"model_type": "bert", "vocab_size": 8} | SMALL, "tokenizer"),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- samples of each format, without a row being anything


def picture(rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def sound(rng):
    buffer = io.BytesIO()
    soundfile.write(buffer, rng.normal(0, 0.1, rng.integers(3000, 4000)), 16000, format="WAV")
    return {"bytes": buffer.getvalue(), "path": None}


def words(rng):
    return " ".join(rng.choice(["good", "bad", "pie"], rng.integers(1, 5)))


IMAGE, AUDIO, TEXT = datasets.Image(), datasets.Audio(), datasets.Value("string")


def cremad(rng):
    """All clips in one file: 20 actors, 3 emotions, 2 sentences; as in the original, a level may be one letter."""
    rows = [
        {
            "image": picture(rng),
            "audio": sound(rng),
            "emotion": name,
            "file": f"{actor}_{line}_{code}_{'X' if actor == 1004 else 'XX'}.wav",
        }
        for actor in range(1001, 1021)
        for line in ("DFA", "IEO")
        for name, code in (("anger", "ANG"), ("happy", "HAP"), ("sad", "SAD"))
    ]
    return {"image": IMAGE, "audio": AUDIO, "emotion": TEXT, "file": TEXT}, {"train": rows}


def kinetics_sounds(rng):
    """Splits for train, validation and test, as they are published."""
    splits = {
        split: [
            {"image": picture(rng), "audio": sound(rng), "label": name, "video_id": f"{split}{number}"}
            for number in range(size)
            for name in ("playing guitar", "tap dancing")
        ]
        for split, size in (("train", 8), ("validation", 6), ("test", 6))
    }
    return {"image": IMAGE, "audio": AUDIO, "label": TEXT, "video_id": TEXT}, splits


def ucf101(rng):
    """The official split by groups, without a validation split; frames are lists of images."""
    splits = {
        split: [
            {
                "frames": [picture(rng) for _ in range(6)],
                "flow": picture(rng),
                "label": name,
                "clip_id": f"v_{name}_g{group:02d}_c{clip:02d}",
            }
            for name in ("Archery", "Bowling")
            for group in groups
            for clip in range(1, 5)
        ]
        for split, groups in (("train", range(8, 26)), ("test", range(1, 5)))
    }
    return {"frames": datasets.List(IMAGE), "flow": IMAGE, "label": TEXT, "clip_id": TEXT}, splits


def food101(rng):
    """The authors' train and test."""
    splits = {
        split: [
            {"image": picture(rng), "text": words(rng), "label": name}
            for name in ("apple_pie", "waffles")
            for _ in range(size)
        ]
        for split, size in (("train", 60), ("test", 6))
    }
    return {"image": IMAGE, "text": TEXT, "label": TEXT}, splits


def mosi(rng):
    """Splits by video; the middle one is called valid there."""
    splits = {
        split: [
            {"text": words(rng), "audio": sound(rng), "annotation": name, "video_id": f"{split}{video}"}
            for video in range(videos)
            for name in ("Negative", "Neutral", "Positive")
        ]
        for split, videos in (("train", 6), ("valid", 4), ("test", 4))
    }
    return {"text": TEXT, "audio": AUDIO, "annotation": TEXT, "video_id": TEXT}, splits


def clipart(rng):
    """Splits for train, validation and test, which share no series of drawings."""
    splits = {
        split: [
            {"image": picture(rng), "text": words(rng), "label": name, "group": f"{split}{number}"}
            for number in range(size)
            for name in ("animals", "food")
        ]
        for split, size in (("train", 8), ("validation", 6), ("test", 6))
    }
    return {"image": IMAGE, "text": TEXT, "label": TEXT, "group": TEXT}, splits


def stamps(rng):
    """Splits of pictures, each with two voices."""
    splits = {}
    for split, size in (("train", 6), ("validation", 4), ("test", 4)):
        pictures = [
            {"image": picture(rng), "text": words(rng), "label": name, "picture": f"{split}-{name}{number}"}
            for number in range(size)
            for name in ("birds", "plants")
        ]
        splits[split] = [{**row, "audio": sound(rng)} for row in pictures for _ in range(2)]
    return {"image": IMAGE, "audio": AUDIO, "text": TEXT, "label": TEXT, "picture": TEXT}, splits


def ave(rng):
    """Splits of the authors: a frame and the sound of each clip."""
    return kinetics_sounds(rng)


SUITES = [cremad, kinetics_sounds, ucf101, food101, mosi, clipart, stamps, ave]
# The others have no kind of encoder or data that these do not have.
TRAINED = [suite for suite in SUITES if suite not in (clipart, ave)]


def store(suite, folder):
    """The samples as Parquet, one file per split."""
    features, splits = suite(np.random.default_rng(0))
    folder.mkdir()
    for split, rows in splits.items():
        table = pa.Table.from_pylist(rows, schema=datasets.Features(features).arrow_schema)
        pq.write_table(table, folder / f"{split}.parquet")


def store_paths(suite, folder):
    """The samples as CSV, or as JSON lines where a row has lists, with the paths of media that lie beside them."""
    features, splits = suite(np.random.default_rng(0))
    has_lists = any(isinstance(feature, datasets.List) for feature in features.values())
    media = folder / "media"
    folder.mkdir()
    media.mkdir()

    def written(value):
        if isinstance(value, list):
            return [written(each) for each in value]
        if not isinstance(value, dict):
            return value
        suffix = ".png" if value["bytes"].startswith(b"\x89PNG") else ".wav"
        path = media / f"{len(list(media.iterdir()))}{suffix}"
        path.write_bytes(value["bytes"])
        return f"media/{path.name}"

    for split, rows in splits.items():
        stored = [{key: written(value) for key, value in row.items()} for row in rows]
        if has_lists:
            lines = [json.dumps(row) for row in stored]
            (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            continue
        with (folder / f"{split}_titles.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(features))
            writer.writeheader()
            writer.writerows(stored)


def with_tiny_encoders(name, folder):
    """The suite's config, its pretrained encoders replaced by tiny ones of the same kind."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    for options in config["modalities"].values():
        encoder, processor = TINY[options["encoder"]]
        if processor == "tokenizer":
            processor = str(folder / "tokenizer")
            vocabulary = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "pie": 4}
            model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")  # noqa: S106
            tokenizer = tokenizers.Tokenizer(model)
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
            fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")  # noqa: S106
            fast.save_pretrained(processor)
        options |= {"encoder": encoder} | ({} if processor is None else {"processor": processor})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


# --- the recipe on them


@pytest.mark.parametrize(
    ("suite", "stored"),
    [(suite, store) for suite in TRAINED] + [(ucf101, store_paths), (food101, store_paths)],
    ids=lambda value: value.__name__,
)
def test_a_suite_trains_and_evaluates_on_splits_that_share_no_group(suite, stored, tmp_path):
    stored(suite, tmp_path / "data")
    config = with_tiny_encoders(suite.__name__, tmp_path)
    argv = ["--config", config, "--data_dir", tmp_path / "data", "--output_dir", tmp_path / "output"]
    argv += [
        "--max_steps",
        2,
        "--per_device_train_batch_size",
        8,
        "--warmup_steps",
        0,
        "--disable_tqdm",
        "true",
    ]
    job = run.prepare([str(word) for word in argv])

    sizes = {name: len(split) for name, split in job.splits.items()}
    assert all(sizes.values())
    assert sum(sizes.values()) == sum(map(len, suite(np.random.default_rng(0))[1].values()))
    if job.recipe.group_column is not None:
        groups = {name: set(split.rows["group"]) for name, split in job.splits.items()}
        assert sum(map(len, groups.values())) == len(set.union(*groups.values()))
    for split in job.splits.values():
        assert set(split.labels) == set(range(job.model.config.num_labels))

    before = {name: parameter.detach().cpu().clone() for name, parameter in job.model.named_parameters()}
    trainer = run.train(job, job.model, job.args)
    assert trainer.state.global_step == 2
    for name in job.recipe.modalities:
        encoder = [(key, value) for key, value in job.model.named_parameters() if f".{name}." in f".{key}"]
        assert any(not value.cpu().equal(before[key]) for key, value in encoder), name
        assert all(torch.isfinite(value).all() for _, value in encoder)
    scores = trainer.measurements["test"].scores
    assert set(scores) == {*job.recipe.modalities, FUSED, CALIBRATED}
    assert all(0 <= score <= 1 for score in scores.values())


def test_of_a_longer_video_as_many_frames_are_seen_as_the_encoder_takes(tmp_path):
    store(ucf101, tmp_path / "data")
    config = with_tiny_encoders("ucf101", tmp_path)
    job = run.prepare([f"--config={config}", f"--data_dir={tmp_path / 'data'}", f"--output_dir={tmp_path}"])
    assert len(job.splits["train"].rows[0]["frames"]) == 6
    assert job.splits["train"][0]["frames"]["pixel_values"].shape == (4, 3, 8, 8)
    job.processor.save_pretrained(tmp_path / "saved")
    assert FusionProcessor.from_pretrained(tmp_path / "saved").processors["frames"].num_frames == 4


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__)
def test_the_config_itself_names_pretrained_encoders_and_says_its_columns(suite):
    path = CONFIGS / f"{suite.__name__}.yaml"
    recipe, arguments = parse_arguments(["--config", str(path), "--data_dir", "."])
    features, _ = suite(np.random.default_rng(0))
    columns = {modality.column for modality in recipe.modalities.values()} | {recipe.label_column}
    assert columns | ({recipe.group_column} - {None}) == set(features)
    assert all(modality.encoder in TINY for modality in recipe.modalities.values())
    # The rows do not fit in memory.
    assert recipe.preprocess == "on-the-fly"
    assert arguments.output_dir == f"output/{suite.__name__}"
    comment = path.read_text(encoding="utf-8").split("label_column:")[0]
    assert all(f"#   {column} " in comment for column in features)


# --- splits by groups


def write_rows(folder, groups, labels, **others):
    """Text rows with a class and a group, for splits alone."""
    folder.mkdir(exist_ok=True)
    columns = {"text": [f"row {number}" for number in range(len(groups))], "label": labels, "who": groups}
    datasets.Dataset.from_dict(columns | others).to_parquet(folder / "train.parquet")


def recipe_for(folder, tmp_path, *argv):
    config = {"modalities": {"text": {"encoder": "some/encoder"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["--config", tmp_path / "config.yaml", "--data_dir", folder, "--output_dir", tmp_path, *argv]
    return parse_arguments([str(word) for word in words])[0]


def test_whole_groups_are_split_off_by_the_seed_near_the_share_of_every_class(tmp_path):
    rng = np.random.default_rng(0)
    groups = [f"actor {number}" for number in rng.integers(0, 60, 1200)]
    labels = [int(label) for label in rng.choice(4, 1200, p=[0.4, 0.3, 0.2, 0.1])]
    write_rows(tmp_path / "data", groups, labels)
    recipe = recipe_for(tmp_path / "data", tmp_path, "--group_column", "who", "--validation_share", "0.2")
    splits, again, other = load_splits(recipe), load_splits(recipe), load_splits(recipe, seed=1)
    assert splits["test"]["text"] == again["test"]["text"] != other["test"]["text"]
    assert sorted(text for split in splits.values() for text in split["text"]) == sorted(
        f"row {number}" for number in range(1200)
    )
    who = dict(zip([f"row {number}" for number in range(1200)], groups, strict=True))
    for split in splits.values():
        assert [who[text] for text in split["text"]] == split["group"]
    owners = [set(split["group"]) for split in splits.values()]
    assert sum(map(len, owners)) == len(set(groups))
    for name in ("validation", "test"):
        counts = np.bincount(splits[name]["label"], minlength=4)
        assert np.abs(counts - 0.2 * np.bincount(labels)).sum() < 0.25 * 240


def test_a_class_keeps_groups_in_every_split_where_each_group_has_one_class(tmp_path):
    names = [f"{label}_g{group:02d}_c{clip}" for label in "abc" for group in range(18) for clip in range(4)]
    write_rows(tmp_path / "data", names, [name[0] for name in names])
    argv = ["--group_column", "who", "--group_pattern", r"(\w+_g\d+)_c\d"]
    splits = load_splits(recipe_for(tmp_path / "data", tmp_path, *argv))
    for name in ("validation", "test"):
        # Two of each class.
        assert len(set(splits[name]["group"])) == 6
        assert np.bincount(splits[name]["label"]).tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--group_pattern", "x"], "group_pattern is given without group_column; name the column"),
        (
            ["--group_column", "who", "--group_pattern", "("],
            r"group_pattern '\(' is no regular expression .*correct it",
        ),
        (["--group_column", "whom"], "there is no column 'whom' among"),
        (
            ["--group_column", "who", "--group_pattern", r"(\d+)"],
            r"row 2: 'nobody' in 'who' names no group; correct",
        ),
        (["--group_column", "gap"], r"split 'train', row 1: None in 'gap' names no group"),
        (
            ["--group_column", "one"],
            "no group is small enough to be a split 'test' of 1 rows; raise validation_share",
        ),
    ],
)
def test_what_is_wrong_with_groups_is_said(tmp_path, argv, message):
    others = {"gap": ["a", None, *"bcdefgh"], "one": ["a"] * 9}
    write_rows(tmp_path / "data", ["1", "2", "nobody", *"345678"], [0, 1, 0, 1, 0, 1, 0, 1, 0], **others)
    with pytest.raises(ValueError, match=message):
        load_splits(recipe_for(tmp_path / "data", tmp_path, *argv))


def test_stored_splits_that_share_a_group_are_refused(tmp_path):
    write_rows(tmp_path / "data", ["a", "b", "c", "d"], [0, 1, 0, 1])
    (tmp_path / "data" / "train.parquet").rename(tmp_path / "data" / "test.parquet")
    write_rows(tmp_path / "data", ["d", "e", "f", "g"], [0, 1, 0, 1])
    recipe = recipe_for(tmp_path / "data", tmp_path, "--group_column", "who", "--validation_share", "0.3")
    with pytest.raises(
        ValueError, match=r"'train' and 'test' share 1 groups, such as 'd'; put their rows into one"
    ):
        load_splits(recipe)
    recipe.group_column = None
    assert set(load_splits(recipe)["train"].column_names) == {"text", "label", "place"}
