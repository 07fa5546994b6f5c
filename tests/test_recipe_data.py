"""The recipe's way to data: the embedded digits, a YAML with any data set, and sentences for what is wrong."""

import io
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import tokenizers
import torch
import yaml
from transformers import PreTrainedTokenizerFast

from ecsfusion import FusionCollator
from hf_recipes.configuration import DEFAULT_CONFIG, parse_arguments
from hf_recipes.data import load_splits, prepare_splits
from hf_recipes.digits import COLUMNS, FREQUENCIES, NUM_SAMPLES, ROWS, SAMPLING_RATE, dial, load_digits_splits
from hf_recipes.encoders import build_encoders, build_processor

AVMNIST = Path(__file__).resolve().parents[1] / "hf_recipes" / "configs" / "avmnist.yaml"


@pytest.fixture(scope="module")
def digits():
    return load_digits_splits()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# --- the embedded data set


def test_splits_share_no_source_image_and_no_sound(digits):
    sources = {name: set(split["source"]) for name, split in digits.items()}
    sounds = {name: [row["bytes"] for row in split["audio"]] for name, split in digits.items()}
    pictures = {
        name: {row["bytes"] for row in split.cast_column("image", datasets.Image(decode=False))["image"]}
        for name, split in digits.items()
    }
    assert sum(map(len, sources.values())) == 1797
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not sources[one] & sources[other]
        assert not pictures[one] & pictures[other]
    everything = [sound for split in sounds.values() for sound in split]
    assert len(set(everything)) == len(everything)


def test_splits_are_stratified_large_enough_and_pair_by_digit(digits):
    assert len(digits["validation"]) >= 1200
    for split in digits.values():
        counts = Counter(split["label"])
        assert len(counts) == 10
        assert max(counts.values()) < 1.15 * min(counts.values())
        assert np.corrcoef(split["snr_db"], split["label"])[0, 1] == pytest.approx(0, abs=0.1)


def test_the_same_seed_gives_the_same_bytes(monkeypatch):
    # A part: all rows are made alike.
    few = {"train": (60, 1), "validation": (40, 2), "test": (50, 1)}
    monkeypatch.setattr("hf_recipes.digits.SPLITS", few)
    first, again, other = (load_digits_splits(seed=seed) for seed in (0, 0, 1))
    for name in few:
        assert first[name].data.table.equals(again[name].data.table)
    assert first["test"]["audio"] != other["test"]["audio"]
    assert first["test"]["source"] != other["test"]["source"]


@pytest.mark.parametrize("digit", range(10))
def test_the_clean_signal_has_the_two_frequencies_of_its_key_and_no_other(digit):
    signal = dial(digit, np.random.default_rng(digit))
    size = 1 << 16
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(NUM_SAMPLES), size))
    hertz = np.arange(len(spectrum)) * SAMPLING_RATE / size
    for group, frequency in zip((ROWS, COLUMNS), FREQUENCIES[digit], strict=True):
        band = (hertz > group[0] - 40) & (hertz < group[-1] + 40)
        assert hertz[band][spectrum[band].argmax()] == pytest.approx(frequency, abs=4)
    near = np.any([np.abs(hertz - frequency) < 60 for frequency in FREQUENCIES[digit]], axis=0)
    assert np.square(spectrum[near]).sum() > 0.98 * np.square(spectrum).sum()


def test_every_key_has_its_own_pair_of_frequencies():
    assert FREQUENCIES[1] == (697, 1209)
    assert FREQUENCIES[5] == (770, 1336)
    assert FREQUENCIES[9] == (852, 1477)
    assert FREQUENCIES[0] == (941, 1336)
    assert len(set(FREQUENCIES.values())) == 10


def test_noise_has_the_power_that_the_ratio_says():
    ratios = []
    for seed in range(40):
        clean = dial(3, np.random.default_rng(seed)).astype(float)
        noisy = dial(3, np.random.default_rng(seed), snr_db=-6.0).astype(float)
        sounding = np.flatnonzero(clean)
        clean, noisy = clean[sounding[0] : sounding[-1] + 1], noisy[sounding[0] : sounding[-1] + 1]
        # Both are brought to one level, which the scale undoes.
        scale = clean @ noisy / (clean @ clean)
        ratios.append(np.square(scale * clean).sum() / np.square(noisy - scale * clean).sum())
    assert 10 * np.log10(np.mean(ratios)) == pytest.approx(-6, abs=0.5)


# --- from a config to batches


def load(argv, directory, **kwargs):
    recipe, arguments = parse_arguments([*map(str, argv), "--output_dir", str(directory)])
    encoders = build_encoders(recipe)
    processor = build_processor(recipe, encoders)
    splits = load_splits(recipe, **kwargs)
    return recipe, arguments, encoders, processor, splits


@pytest.fixture
def stored(digits, tmp_path):
    """A few rows of the digits as a folder of Parquet files, with other column names, and a config for it."""
    folder = tmp_path / "stored"
    folder.mkdir()

    def store(change=None, options=None, sizes=None, modalities=None):
        for name, size in (sizes or {"train": 120, "validation": 20, "test": 20}).items():
            rows = digits[name].select(range(size)).rename_columns({"image": "picture", "label": "digit"})
            rows = change(rows, name) if change else rows
            rows.to_parquet(folder / f"{name}.parquet")
        config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
        del config["dataset"]
        config["label_column"] = "digit"
        config["modalities"]["image"]["column"] = "picture"
        config |= options or {}
        for name, fields in (modalities or {}).items():
            config["modalities"][name] |= fields
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        return ["--config", file, "--data_dir", folder]

    return store


def test_any_folder_goes_through_encoders_ahead_and_on_the_fly_alike(stored, tmp_path):
    recipe, _, encoders, processor, splits = load(stored(), tmp_path)
    assert splits["train"].features["label"].names == [str(digit) for digit in range(10)]
    assert set(splits["train"].column_names) == {"image", "audio", "label", "place"}
    ahead = prepare_splits(recipe, splits, encoders, processor, show_progress=False)
    recipe.preprocess = "on-the-fly"
    lazy = prepare_splits(recipe, splits, encoders, processor, show_progress=False)
    assert {name: len(split) for name, split in ahead.items()} == {"train": 120, "validation": 20, "test": 20}
    collate = FusionCollator(processor)
    batches = [collate([split["test"][index] for index in range(8)]) for split in (ahead, lazy)]
    raw = collate([splits["test"][index] for index in range(8)])
    for batch in batches:
        assert batch["labels"].tolist() == splits["test"]["label"][:8] == ahead["test"].labels[:8]
        for name, key in (("image", "pixel_values"), ("audio", "input_values")):
            torch.testing.assert_close(batch[name][key], raw[name][key])
            hidden = encoders[name](**batch[name]).last_hidden_state
            assert len(hidden) == 8
            assert hidden.isfinite().all()


@pytest.mark.parametrize(
    ("to_label", "names"),
    [
        (lambda digit: f"digit {digit}", [f"digit {digit}" for digit in range(10)]),
        (lambda digit: digit + 1, [str(digit + 1) for digit in range(10)]),
        (lambda digit: digit > 4, ["False", "True"]),
    ],
)
def test_labels_are_strings_numbers_or_booleans_and_keep_their_names(stored, tmp_path, to_label, names):
    def change(rows, name):
        values = [to_label(digit) for digit in rows["digit"]]
        return rows.remove_columns("digit").add_column("digit", values)

    *_, splits = load(stored(change), tmp_path)
    assert splits["train"].features["label"].names == names
    stored_file = datasets.Dataset.from_parquet(str(tmp_path / "stored" / "test.parquet"))
    assert [names[label] for label in splits["test"]["label"]] == [
        str(label) for label in stored_file["digit"]
    ]


def test_absent_splits_are_split_off_by_the_seed_and_it_is_said(stored, tmp_path, caplog):
    argv = [*stored(sizes={"train": 100}), "--validation_share", "0.2"]
    *_, splits = load(argv, tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {"train": 60, "validation": 20, "test": 20}
    assert "has no split 'validation': 20 of its 100 training rows, drawn with seed 0" in caplog.text
    *_, again = load(argv, tmp_path)
    *_, other = load(argv, tmp_path, seed=1)
    assert splits["test"]["audio"] == again["test"]["audio"] != other["test"]["audio"]
    sounds = [row["bytes"] for split in splits.values() for row in split["audio"]]
    assert len(set(sounds)) == 100


def test_encoders_and_processors_come_from_saved_folders_too(stored, tmp_path):
    _, _, encoders, processor, _ = load(stored(), tmp_path)
    encoders["image"].save_pretrained(tmp_path / "vit")
    processor.processors["image"].save_pretrained(tmp_path / "vit")
    saved = {"image": {"encoder": str(tmp_path / "vit"), "processor": {"image_mean": [0.25]}}}
    _, _, loaded, options, _ = load(stored(modalities=saved), tmp_path)
    for one, other in zip(encoders["image"].parameters(), loaded["image"].parameters(), strict=True):
        assert torch.equal(one, other)
    assert list(options.processors["image"].image_mean) == [0.25]
    assert list(options.processors["image"].image_std) == [0.5]


def test_a_text_column_needs_a_tokenizer_and_is_padded_in_the_batch(stored, tmp_path):
    def change(rows, name):
        return rows.add_column(
            "words", ["even" if digit % 2 == 0 else "odd indeed" for digit in rows["digit"]]
        )

    vocabulary = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "even": 2, "odd": 3}, unk_token="[UNK]")  # noqa: S106
    tokenizer = tokenizers.Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(tmp_path / "words")  # noqa: S106
    bert = {"model_type": "bert", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 2, "intermediate_size": 8}
    argv = stored(change)
    config = yaml.safe_load(argv[1].read_text(encoding="utf-8"))
    config["modalities"]["words"] = {"encoder": bert, "processor": str(tmp_path / "words")}
    argv[1].write_text(yaml.safe_dump(config), encoding="utf-8")
    recipe, _, encoders, processor, splits = load(argv, tmp_path)
    small = {name: split.select(range(8)) for name, split in splits.items()}
    ready = prepare_splits(recipe, small, encoders, processor, show_progress=False)["test"]
    batch = FusionCollator(processor)([ready[index] for index in range(8)])
    assert batch["words"]["input_ids"].shape == (8, 2)
    assert batch["words"]["attention_mask"].sum(dim=1).tolist() == [1 + label % 2 for label in ready.labels]
    assert encoders["words"](**batch["words"]).last_hidden_state.shape == (8, 2, 8)


def test_the_class_of_a_processor_can_be_named(stored, tmp_path):
    options = {"type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000}
    replaced = {
        "audio": {
            "processor": options,
            "encoder": {"model_type": "wav2vec2-bert", "num_hidden_layers": 1, "hidden_size": 16},
        }
    }
    recipe, _ = parse_arguments([*map(str, stored(modalities=replaced)), "--output_dir", str(tmp_path)])
    encoders = build_encoders(recipe)
    audio = build_processor(recipe, encoders).processors["audio"]
    assert type(audio).__name__ == "Wav2Vec2FeatureExtractor"
    assert audio.sampling_rate == 8000
    options["type"] = "NoseFeatureExtractor"
    recipe, _ = parse_arguments([*map(str, stored(modalities=replaced)), "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"modalities\.audio: the processor .* cannot be made"):
        build_processor(recipe, encoders)


def test_avmnist_is_read_as_the_config_says(shared_data, tmp_path):
    folder = shared_data / "avmnist" / "small"
    recipe, _, encoders, processor, splits = load(["--config", AVMNIST, "--data_dir", folder], tmp_path)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 2000,
        "validation": 500,
        "test": 500,
    }
    small = {name: split.select(range(4)) for name, split in splits.items()}
    ready = prepare_splits(recipe, small, encoders, processor, show_progress=False)
    batch = FusionCollator(processor)([ready["test"][index] for index in range(4)])
    assert batch["image"]["pixel_values"].shape == (4, 1, 28, 28)
    for name, encoder in encoders.items():
        assert encoder(**batch[name]).last_hidden_state.isfinite().all()


# --- command line and YAML


def test_no_argument_is_the_embedded_data_set_and_options_win_over_the_file(tmp_path):
    recipe, arguments = parse_arguments(["--output_dir", str(tmp_path)])
    assert recipe.dataset == "digits"
    assert arguments.learning_rate == pytest.approx(1e-3)
    recipe, arguments = parse_arguments(
        ["--output_dir", str(tmp_path), "--learning_rate", "0.5", "--compare", "joint", "--seed", "7"]
    )
    assert (recipe.compare, arguments.learning_rate, arguments.seed) == ("joint", 0.5, 7)
    assert set(recipe.modalities) == {"image", "audio"}


def test_yaml_and_command_line_take_the_same_values(tmp_path, stored):
    training = {"learning_rate": "2e-3", "modality_learning_rates": {"audio": 0.01}, "do_train": True}
    argv = stored(options={"training": training | {"output_dir": str(tmp_path), "num_train_epochs": 3}})
    _, arguments = parse_arguments(list(map(str, argv)))
    assert arguments.learning_rate == pytest.approx(2e-3)
    assert arguments.modality_learning_rates == {"audio": 0.01}
    assert arguments.do_train is True
    assert arguments.num_train_epochs == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "x"}, r"config\.yaml: unknown key 'labels'"),
        ({"label_colum": "x"}, r"config\.yaml: unknown key 'label_colum'; did you mean 'label_column'\?"),
        (
            {"training": {"learning_rat": 1}},
            r"training: unknown key 'learning_rat'; did you mean 'learning_rate'",
        ),
        (
            {"training": {"num_train_epochs": "many"}},
            r"config\.yaml: argument --num_train_epochs\S*: invalid float",
        ),
        ({"training": [1]}, r"config\.yaml: training must be a mapping"),
        ({"modalities": None}, r"config\.yaml: modalities is missing"),
        ({"modalities": {"image": {"column": "x"}}}, r"modalities\.image: encoder is missing"),
        (
            {"modalities": {"image": {"encoder": {"hidden_size": 4}}}},
            r"modalities\.image: encoder has no model_type",
        ),
        (
            {"modalities": {"image": {"encoder": "x", "colum": "y"}}},
            r"unknown key 'colum'; did you mean 'column'",
        ),
        (
            {"modalities": {"image": {"encoder": "x", "freeze": "half"}}},
            r"modalities\.image: freeze is 'half'; give true or false",
        ),
        ({"preprocess": "later"}, "preprocess is 'later'; give one of ahead, on-the-fly"),
        ({"compare": "nothing"}, "compare is 'nothing'; give joint"),
        ({"fusion": "gate"}, "fusion is 'gate'; give one of concatenation, mlp, gated-sum"),
        ({"validation_share": 2}, "validation_share is 2.0; give a share between 0 and 0.5"),
    ],
)
def test_what_is_wrong_in_the_yaml_is_named(stored, options, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(list(map(str, stored(options=options))))


def test_a_modality_is_changed_on_the_command_line():
    image = ["--modalities.image.encoder=folder/a=b", "--modalities.image.processor", '{"size": 32}']
    recipe, args = parse_arguments([*image, "--seed", "7", "--modalities.audio.freeze", "true"])
    unchanged, _ = parse_arguments([])
    assert args.seed == 7
    image = recipe.modalities["image"]
    assert (image.encoder, image.processor, image.freeze) == ("folder/a=b", {"size": 32}, False)
    assert image.column == unchanged.modalities["image"].column
    audio = recipe.modalities["audio"]
    assert (audio.encoder, audio.freeze) == (unchanged.modalities["audio"].encoder, True)


def test_what_is_wrong_on_the_command_line_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    wrong = [
        (["--config", "absent.yaml"], "there is no config 'absent.yaml'"),
        (["--config", str(tmp_path / "broken.yaml")], r"broken\.yaml is not valid YAML: .*line 1"),
        (["--config", str(tmp_path / "list.yaml")], r"list\.yaml holds a list; write a mapping"),
        (
            ["--learning_rat", "1"],
            r"the command line: unknown key 'learning_rat'; did you mean 'learning_rate'\?",
        ),
        (["--learning_rate", "fast"], r"argument --learning_rate\S*: invalid float value: 'fast'"),
        (["--epochs", "1"], "unknown key 'epochs'; did you mean 'num_train_epochs' or 'unimodal_epochs'"),
        (["--batch_size", "1"], "unknown key 'batch_size'; did you mean .* or 'per_device_train_batch_size'"),
        (["--zzzz", "1"], "unknown key 'zzzz'; --help lists those that are allowed"),
        (["--modalities.image.encoder"], "image.encoder on the command line has no value"),
        (["--modalities.image.encoder", "--seed", "1"], "image.encoder on the command line has no value"),
        (
            ["--modalities.video.encoder", "x"],
            r"names no modality of \S*digits\.yaml, which has image, audio",
        ),
        (["--modalities.image", "x"], r"write --modalities\.NAME\.encoder and a value"),
        (["--modalities.image.colum", "x"], r"image: unknown key 'colum'; did you mean 'column'\?"),
        (["--modalities.image.processor", "{size"], "is '{size', which is not JSON"),
        (["digits"], "'digits' on the command line belongs to no option"),
        (["configs/clipart.yaml"], "is a file; write --config configs/clipart.yaml"),
        (["--config", str(AVMNIST)], "neither dataset nor data_dir is given; add --data_dir FOLDER"),
    ]
    for argv, message in wrong:
        with pytest.raises(ValueError, match=message):
            parse_arguments(argv)


# --- what is wrong in a data set, an encoder or a processor


def replaced(column, row, value):
    def change(rows, name):
        if name != "test":
            return rows
        values = rows.cast_column("picture", datasets.Image(decode=False))[column][:]
        values[row] = value
        feature = rows.features[column]
        if not isinstance(feature, datasets.ClassLabel):
            feature = datasets.Features({"bytes": datasets.Value("binary"), "path": datasets.Value("string")})
        changed = rows.remove_columns(column).add_column(column, values, feature=None)
        return changed.cast_column(column, rows.features[column])

    return change


def test_a_sample_that_cannot_be_read_is_named_by_split_and_row(stored, tmp_path):
    empty = io.BytesIO()
    soundfile.write(empty, np.zeros(0), 8000, format="WAV")
    wrong = [
        (
            "picture",
            {"bytes": b"no image", "path": None},
            "split 'test': image, row 7: 8 bytes cannot be read",
        ),
        (
            "audio",
            {"bytes": b"no sound", "path": None},
            "split 'test': audio, row 7: 8 bytes cannot be decoded",
        ),
        ("audio", {"bytes": empty.getvalue(), "path": None}, "audio, row 7: the sound has no samples"),
    ]
    for column, value, message in wrong:
        recipe, _, encoders, processor, splits = load(stored(replaced(column, 7, value)), tmp_path)
        with pytest.raises(ValueError, match=message):
            prepare_splits(
                recipe, {"train": splits["train"], "test": splits["test"]}, encoders, processor, False
            )


@pytest.mark.parametrize("preprocess", ["ahead", "on-the-fly"])
def test_rows_that_cannot_be_read_are_skipped_where_it_is_wanted(stored, tmp_path, preprocess):
    argv = stored(replaced("picture", 7, {"bytes": b"no image", "path": None}))
    options = [*argv, "--skip_undecodable", "true", "--preprocess", preprocess]
    recipe, _, encoders, processor, splits = load(options, tmp_path)
    two = {"train": splits["train"], "test": splits["test"]}
    ready = prepare_splits(recipe, two, encoders, processor, show_progress=False)
    labels = splits["test"]["label"][:]
    assert ready["test"].labels == labels[:7] + labels[8:] == [row["labels"] for row in ready["test"]]
    assert len(ready["train"]) == 120
    assert ready["train"].undecodable == []
    assert len(ready["test"].undecodable) == 1
    assert "image, row 7: 8 bytes cannot be read" in ready["test"].undecodable[0]
    assert "(row 7 of test.parquet)" in ready["test"].undecodable[0]


def test_a_row_may_lack_a_picture_or_a_sound_but_not_both(stored, tmp_path):
    argv = [*stored(replaced("audio", 7, None)), "--preprocess", "on-the-fly"]
    recipe, _, encoders, processor, splits = load(argv, tmp_path)
    ready = prepare_splits(recipe, splits, encoders, processor, show_progress=False)
    batch = FusionCollator(processor)([ready["test"][row] for row in (6, 7)])
    assert batch["present"]["audio"].tolist() == [True, False]
    assert "image" not in batch["present"]

    def neither(rows, name):
        return replaced("picture", 7, None)(replaced("audio", 7, None)(rows, name), name)

    # Such a row could be read: it has nothing to read.
    argv = [*stored(neither), "--skip_undecodable", "true"]
    recipe, _, encoders, processor, splits = load(argv, tmp_path)
    splits = {"train": splits["train"].select(range(8)), "test": splits["test"]}
    message = r"row 7: there is neither audio nor image; leave this row out \(row 7 of test\.parquet\)"
    with pytest.raises(ValueError, match=message):
        prepare_splits(recipe, splits, encoders, processor, show_progress=False)


def test_further_test_sets_are_files_or_splits_by_their_names(stored, tmp_path):
    argv = stored()
    folder = tmp_path / "stored"
    other = datasets.Dataset.from_parquet(str(folder / "test.parquet")).select(range(9))
    # Whose own name would make it a part of the test rows.
    other.to_parquet(folder / "test_other.parquet")
    further = '{"other_style": "test_other.parquet"}'
    splits = load([*argv, "--test_files", further], tmp_path)[-1]
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 120,
        "validation": 20,
        "test": 20,
        "other_style": 9,
    }
    assert splits["other_style"]["place"][3] == "row 3 of test_other.parquet"
    # They take the place of an absent test split; a split of the data set has a name.
    (folder / "test.parquet").rename(folder / "strange.parquet")
    splits = load([*argv, "--test_files", '{"strange": "strange.parquet", "other": "test"}'], tmp_path)[-1]
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 120,
        "validation": 20,
        "strange": 20,
        "other": 9,
    }
    wrong = [
        (
            '{"new": "absent.parquet"}',
            "test_files names 'absent.parquet' for 'new', which is neither a file in it nor",
        ),
        (
            '{"validation": "strange.parquet"}',
            "test_files names a test set 'validation'; name it by a word of its own",
        ),
        ('{"a b": "strange.parquet"}', "test_files names a test set 'a b'"),
        ('{"test": "strange.parquet"}', "but the split 'test' is there by itself"),
        ("strange.parquet", "map a name to a file"),
        ('{"out": "../config.yaml"}', "of several kinds"),
    ]
    for value, message in wrong:
        with pytest.raises(ValueError, match=message):
            load([*argv, "--test_files", value], tmp_path)


def test_groups_go_with_the_rows_and_only_the_run_says_which_a_further_test_set_shares(stored, tmp_path):
    def with_source(rows, name):
        return rows.add_column("source_of", [f"{name} {row // 2}" for row in range(len(rows))])

    argv = [*stored(with_source), "--group_column", "source_of", "--test_files", '{"again": "again.parquet"}']
    folder = tmp_path / "stored"
    datasets.Dataset.from_parquet(str(folder / "train.parquet")).to_parquet(folder / "again.parquet")
    recipe, _, encoders, processor, splits = load(argv, tmp_path)
    few = {name: splits[name].select(range(8)) for name in ("train", "again")}
    ready = prepare_splits(recipe, few, encoders, processor, show_progress=False)
    assert [ready["again"][row]["group"] for row in range(4)] == ["train 0", "train 0", "train 1", "train 1"]


def test_a_split_keeps_a_row(stored, tmp_path):
    def no_image(rows, name):
        bad = [{"bytes": b"no image", "path": None}] * len(rows)
        features = rows.features["picture"]
        rows = rows.remove_columns("picture").add_column("picture", bad)
        return rows.cast_column("picture", features)

    argv = [*stored(no_image), "--skip_undecodable", "true"]
    recipe, _, encoders, processor, splits = load(argv, tmp_path)
    with pytest.raises(
        ValueError, match=r"split 'train': 120 of 120 rows cannot be read, so there is nothing left"
    ):
        prepare_splits(recipe, splits, encoders, processor, show_progress=False)


def test_a_row_that_was_split_off_is_named_by_the_file_that_it_lies_in(stored, tmp_path):
    argv = stored(sizes={"train": 60})
    *_, splits = load(argv, tmp_path)
    places = {name: set(split["place"]) for name, split in splits.items()}
    assert set.union(*places.values()) == {f"row {row} of train.parquet" for row in range(60)}
    assert sum(map(len, places.values())) == 60


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2, None], r"split 'test', row 3: the label is None; give the class"),
        ([0, 1, 2, 11], r"split 'test', row 3: the label 11 is out of range; the 10 classes are '0', '1'"),
        ([0, 1, 2, -1], r"split 'test', row 3: the label -1 is out of range"),
    ],
)
def test_a_label_out_of_range_is_named_by_split_and_row(stored, tmp_path, values, message):
    def change(rows, name):
        labels = list(rows["digit"])
        labels = values + labels[len(values) :] if name == "test" else labels
        return rows.remove_columns("digit").add_column("digit", labels)

    with pytest.raises(ValueError, match=message):
        load(stored(change), tmp_path)


def test_real_numbers_are_no_classes(stored, tmp_path):
    """The first that is none is named, and not a whole one before it."""

    def change(rows, name):
        labels = [float(digit) for digit in rows["digit"]]
        return rows.remove_columns("digit").add_column("digit", [*labels[:3], 1.5, *labels[4:]])

    with pytest.raises(
        ValueError, match=r"split 'train', row 3: the label is 1\.5; give the class as a whole"
    ):
        load(stored(change), tmp_path)


def test_a_label_that_is_long_is_shown_in_short(stored, tmp_path):
    def change(rows, name):
        return rows.remove_columns("digit").add_column("digit", [list(range(10_000))] * len(rows))

    with pytest.raises(ValueError, match=r"the label is \[0, 1, .*\.\.\..* 9999\]; give the class") as raised:
        load(stored(change), tmp_path)
    assert len(str(raised.value)) < 1000


def test_classes_that_differ_in_case_or_spaces_alone_are_said(stored, tmp_path, caplog):
    names = ["seven", "Seven", "eight", "eight ", "nine"]

    def change(rows, name):
        labels = [names[row % 5] for row in range(len(rows))]
        return rows.remove_columns("digit").add_column("digit", labels)

    load(stored(change), tmp_path)
    assert "the classes 'Seven' and 'seven' differ in case or spaces alone" in caplog.text
    assert "the classes 'eight' and 'eight ' differ" in caplog.text
    assert "nine" not in caplog.text


def test_files_that_do_not_fit_together_are_reported_with_the_first_cause(stored, tmp_path):
    def change(rows, name):
        rows = rows.remove_columns("digit")
        return rows.add_column("digit", [0.5 if name == "test" else 1] * len(rows))

    with pytest.raises(ValueError, match=r"cannot be loaded \(ArrowInvalid: Float value 0.5"):
        load(stored(change), tmp_path)


def test_missing_data_sets_splits_columns_and_classes_are_named(stored, tmp_path):
    wrong = [
        (["--data_dir", "absent"], "there is no folder 'absent'; give data_dir an existing one"),
        (["--label_column", "class"], r"split 'train': there is no column 'class' among \['picture'"),
        (
            ["--train_split", "training"],
            r"has the splits \['test', 'train', 'validation'\] but no 'training'",
        ),
    ]
    for extra, message in wrong:
        with pytest.raises(ValueError, match=message):
            load([*stored(), *extra], tmp_path)
    with pytest.raises(ValueError, match=r"data set 'nobody/nothing' cannot be loaded"):
        load(["--dataset", "nobody/nothing"], tmp_path)

    def one_class(rows, name):
        return rows.remove_columns("digit").add_column("digit", ["seven"] * len(rows))

    with pytest.raises(ValueError, match="there is only the class 'seven'; at least 2 are needed"):
        load(stored(one_class), tmp_path)


def test_an_encoder_of_the_wrong_kind_for_its_column_is_refused(stored, tmp_path):
    swapped = {"image": {"column": "audio"}}
    recipe, _, encoders, processor, splits = load(stored(modalities=swapped), tmp_path)
    with pytest.raises(
        ValueError, match=r"modalities\.image: ViTModel takes images but its column holds sounds"
    ):
        prepare_splits(recipe, splits, encoders, processor, show_progress=False)
    numbers = {"audio": {"column": "snr_db"}}
    recipe, _, encoders, processor, splits = load(stored(modalities=numbers), tmp_path)
    with pytest.raises(
        ValueError, match=r"ASTModel takes sounds but its column holds float32 numbers; .* Python"
    ):
        prepare_splits(recipe, splits, encoders, processor, show_progress=False)


def test_a_column_of_numbers_in_a_csv_file_is_not_taken_for_one_of_files(stored, tmp_path):
    folder = tmp_path / "numbers"
    folder.mkdir()
    lines = ["radius,texture,digit", *(f"{n / 7:.3f},{n / 9:.3f},{'ab'[n % 2]}" for n in range(40))]
    (folder / "train.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = stored(modalities={"image": {"column": "radius"}, "audio": {"column": "texture"}})
    recipe, _, encoders, processor, splits = load([*columns, "--data_dir", folder], tmp_path)
    with pytest.raises(ValueError, match=r"row 0: '\d\.\d+' is a number and no file; .* Python"):
        prepare_splits(recipe, splits, encoders, processor, show_progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"encoder": {"model_type": "vitt"}},
            r"modalities\.image\.encoder: unknown model_type 'vitt'; did you mean",
        ),
        (
            {"encoder": {"model_type": "vit", "hiden_size": 8}},
            r"unknown key 'hiden_size' for vit; did you mean 'hidden_size'",
        ),
        (
            {"encoder": {"model_type": "vit", "image_size": "big"}},
            r"modalities\.image\.encoder: .*image_size",
        ),
        ({"encoder": "absent/folder"}, r"modalities\.image: the encoder 'absent/folder' cannot be loaded"),
        (
            {"encoder": "absent/folder"},
            r"a folder with a saved model \(--modalities\.image\.encoder FOLDER\)",
        ),
        (
            {"encoder": {"model_type": "bert", "hidden_size": 12}},
            "has no vocabulary; give the name or folder of a tok",
        ),
        (
            {"processor": {"image_men": [0.5]}},
            r"processor: unknown key 'image_men' for \w+; did you mean 'image_mean'",
        ),
        ({"processor": "absent/folder"}, r"modalities\.image: the processor of ViTModel cannot be made"),
    ],
)
def test_what_is_wrong_with_an_encoder_or_processor_is_named(stored, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        load(stored(modalities={"image": fields}), tmp_path)
