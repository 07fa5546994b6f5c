"""The suites of the benchmarks: shapes, balance, splits, and that each is what its description says."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

# The benchmarks are scripts, not an installed package.
sys.path += [
    str(Path(__file__).resolve().parents[1] / "benchmarks"),
    str(Path(__file__).resolve().parents[1]),
]

from suites import SUITES, Split, load_suite
from suites.avmnist import load_rows
from suites.coloured import MEAN_COLOURS, choose_shades, paint
from suites.encoders import EMBEDDING_DIM
from suites.folders import SPLITS
from suites.imbalance import NOISE_LEVELS, add_noise, rescale, strong_image
from suites.log_mel import log_mel
from suites.modular import all_pairs, draw_rows, equal_pairs, mixture, sum_labels, synergy
from suites.sentences import (
    FALSE_HINT,
    NUM_CLASSES,
    TRUE_HINT,
    VOCABULARY_SIZE,
    WORDS_PER_CLASS,
    draw_sentences,
)

from ecsfusion.processing import TensorCollator
from hf_recipes import digits as recipe

# What the other suites cost to decode is too much for a test.
LARGE = {"avmnist-full", "strong-image", "synergy", "mixture"}
# Of natural data, see test_natural_suites.py.
NATURAL = {name for name in SUITES if name.startswith(("clipart", "stamps", "watch", "multifeature", "tcga"))}
SMALL = [name for name in SUITES if name not in {"digits", *LARGE, *NATURAL}]
FEW_PAIRS = {"train": 4, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def cache(shared_data, tmp_path_factory):
    """A folder of its own for decoded files; what the tests below decode is decoded once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ECSFUSION_DATA", str(shared_data))
        patch.setenv("ECSFUSION_CACHE", str(folder))
        yield folder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def splits_of(suite):
    return [getattr(suite, name) for name in SPLITS]


def check(suite, tolerance=0):
    """What holds for every suite."""
    assert suite.description.endswith(".")
    assert suite.epochs > 0
    assert suite.learning_rates[0] < suite.learning_rates[1]
    assert suite.sgd_learning_rates[0] < suite.sgd_learning_rates[1]
    torch.manual_seed(0)
    encoders = suite.build_encoders()
    assert tuple(encoders) == suite.modalities
    for split in splits_of(suite):
        assert tuple(split.inputs) == suite.modalities
        assert split.labels.dtype == torch.int64
        counts = Counter(split.labels.tolist())
        assert set(counts) == set(range(suite.num_classes))
        assert max(counts.values()) - min(counts.values()) <= tolerance
        batch = TensorCollator()([split[row] for row in (0, 1, len(split) - 1)])
        torch.testing.assert_close(batch["labels"], split.labels[[0, 1, -1]])
        for name, encoder in encoders.items():
            values = split.inputs[name]
            assert values.dtype == (torch.int64 if name == "text" else torch.float32)
            assert values.shape[1:] == suite.train.inputs[name].shape[1:]
            if values.is_floating_point():
                assert values.isfinite().all()
            torch.testing.assert_close(batch[name], values[[0, 1, -1]])
            assert encoder.embedding_dim == EMBEDDING_DIM
            assert encoder(batch[name]).shape == (3, EMBEDDING_DIM)
    for name, encoder in encoders.items():
        assert sum(weights.numel() for weights in encoder.parameters()) <= 60_000, name
    torch.manual_seed(0)
    again = suite.build_encoders()
    other = suite.build_encoders()
    for name, encoder in encoders.items():
        weights = next(encoder.parameters())
        assert torch.equal(weights, next(again[name].parameters()))
        assert not torch.equal(weights, next(other[name].parameters()))


def check_equal(first, second):
    for split, other in zip(splits_of(first), splits_of(second), strict=True):
        assert torch.equal(split.labels, other.labels)
        for name in first.modalities:
            assert torch.equal(split.inputs[name], other.inputs[name]), name


def check_disjoint(suite, modality):
    """No row of this modality is in two splits, nor twice in one."""
    rows = [values.numpy().tobytes() for split in splits_of(suite) for values in split.inputs[modality]]
    assert len(set(rows)) == len(rows)


def mutual_information(first, second):
    """Plug-in estimate in bits, of class numbers (N,)."""
    table = np.zeros((10, 10))
    np.add.at(table, (first.numpy(), second.numpy()), 1 / len(first))
    independent = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    seen = table > 0
    return float((table[seen] * np.log2(table[seen] / independent[seen])).sum())


def test_digits(monkeypatch):
    # A part of it: all rows are made alike, and that it is cut as the recipe says is tested there.
    monkeypatch.setattr(recipe, "SPLITS", {"train": (200, 2), "validation": (100, 2), "test": (100, 1)})
    suite = load_suite("digits")
    assert suite.modalities == ("image", "audio")
    assert [len(split) for split in splits_of(suite)] == [400, 200, 100]
    # scikit-learn's set is nearly balanced
    check(suite, tolerance=8)
    check_disjoint(replace(suite, train=suite.train.select(torch.arange(0, 400, 2))), "audio")
    check_equal(suite, load_suite("digits"))


@pytest.mark.slow
def test_strong_image_is_a_whole_digit_of_the_spoken_label(cache):
    suite, heard = strong_image("small"), load_suite("avmnist-small")
    check(suite)
    for split, other in zip(splits_of(suite), splits_of(heard), strict=True):
        assert torch.equal(split.labels, other.labels)
        assert torch.equal(split.inputs["audio"], other.inputs["audio"])
    # A nearest mean is right in most rows of whole digits, and in few of what four components leave of them.
    accuracy = {}
    for name, each in (("strong", suite), ("heard", heard)):
        rows, labels = each.train.inputs["image"].flatten(1), each.train.labels
        means = torch.stack([rows[labels == digit].mean(dim=0) for digit in range(10)])
        nearest = torch.cdist(each.test.inputs["image"].flatten(1), means).argmin(dim=1)
        accuracy[name] = float((nearest == each.test.labels).double().mean())
    assert accuracy["strong"] > 0.65 > accuracy["heard"]


def test_names():
    assert {"digits", "avmnist-small", "avmnist-full", "cg-mnist", "halves", "synergy", "mixture"} <= set(
        SUITES
    )
    with pytest.raises(ValueError, match=r"'digit'.*digits, avmnist-small"):
        load_suite("digit")


@pytest.mark.parametrize("name", ["cg-mnist", "avmnist-small", "synergy", "clipart", "stamps"])
def test_absent_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ECSFUSION_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="ECSFUSION_DATA"):
        load_suite(name)


def test_split_is_rows_of_views():
    images, ids = torch.arange(12.0).reshape(3, 4), torch.arange(6).reshape(3, 2)
    split = Split({"image": images, "text": {"input_ids": ids}}, torch.tensor([2, 0, 1]))
    row = split[1]
    assert row["labels"] == 0
    assert row["image"].data_ptr() == images[1].data_ptr()
    assert row["text"]["input_ids"].tolist() == [2, 3]
    batch = TensorCollator()([split[0], split[2]])
    torch.testing.assert_close(batch["text"]["input_ids"], ids[[0, 2]])
    assert split.select(torch.tensor([2])).labels.tolist() == [1]
    assert split.select(torch.tensor([2])).groups is None
    grouped = replace(split, groups=torch.tensor([7, 7, 9]))
    assert grouped.select(torch.tensor([False, True, True])).groups.tolist() == [7, 9]
    assert grouped[2]["group"] == 9
    assert "group" not in row
    partly = replace(split, present={"text": torch.tensor([True, False, True])})
    assert partly[0]["text"] is not None
    assert partly[1]["text"] is None
    assert TensorCollator()([partly[0], partly[1]])["present"]["text"].tolist() == [True, False]
    assert partly.select(torch.tensor([1])).masks()["text"].tolist() == [False]
    assert partly.masks()["image"].all()
    with pytest.raises(ValueError, match=r"present\['text'\] has 2 rows, but labels 3"):
        replace(split, present={"text": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="groups has 2 rows, but labels 3"):
        replace(split, groups=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"inputs\['image'\] has 3 rows, but labels 2"):
        Split({"image": images}, torch.tensor([0, 1]))


def test_log_mel_of_a_tone():
    time = torch.arange(8000) / 8000
    waves = torch.stack([torch.sin(2 * torch.pi * hertz * time) for hertz in (500.0, 1500.0, 3500.0)])
    spectrograms = log_mel(waves)
    assert spectrograms.shape == (3, 1, 40, 32)
    # bands are equally spaced in mel, 2595 log10(1 + f / 700), up to 4 kHz
    mel = 2595 * torch.log10(1 + torch.tensor([500.0, 1500.0, 3500.0]) / 700)
    expected = mel / (2595 * np.log10(1 + 4000 / 700)) * 41 - 1
    assert ((spectrograms[:, 0, :, 5:27].mean(2).argmax(1) - expected).abs() <= 1).all()


def test_colours_of_their_own_digit():
    labels = torch.arange(10).repeat(2000)
    assert torch.equal(choose_shades(labels, 1.0, generator()), labels)
    assert mutual_information(choose_shades(labels, 0.0, generator()), labels) < 0.01
    patches = paint(labels, generator())
    assert patches.shape == (20_000, 3, 8, 8)
    # A plain colour.
    assert torch.equal(patches, patches[:, :, :1, :1].expand_as(patches))
    means = 2 * torch.tensor(MEAN_COLOURS) / 255 - 1
    nearest = torch.cdist(patches[:, :, 0, 0], means).argmin(dim=1)
    assert 0.995 < (nearest == labels).double().mean() < 0.999


def test_sentences_hint_at_the_label():
    labels = torch.arange(10).repeat(1000)
    tokens = draw_sentences(labels, generator())
    assert torch.equal(tokens, draw_sentences(labels, generator()))
    assert tokens.min() == 0
    assert tokens.max() == VOCABULARY_SIZE - 1
    # Padding is at the end.
    assert (tokens[:, :-1].eq(0) <= tokens[:, 1:].eq(0)).all()
    is_hint = (tokens > 0) & (tokens <= WORDS_PER_CLASS * NUM_CLASSES)
    assert (is_hint.sum(dim=1) <= 1).all()
    rows = is_hint.any(dim=1)
    classes = (tokens * is_hint).sum(dim=1).sub(1).div(WORDS_PER_CLASS, rounding_mode="floor")
    assert abs(float(rows.double().mean()) - TRUE_HINT - FALSE_HINT) < 0.02
    assert abs(float((classes == labels)[rows].double().sum() / len(labels)) - TRUE_HINT) < 0.02


def test_noise_and_scale_change_one_modality():
    split = Split(
        {"image": torch.zeros(50, 400), "audio": torch.ones(50, 400)}, torch.zeros(50, dtype=torch.int64)
    )
    noisy = add_noise(split, "image", 2.0, generator())
    assert abs(float(noisy.inputs["image"].std()) - 2.0) < 0.05
    assert noisy.inputs["audio"] is split.inputs["audio"]
    assert torch.equal(rescale(split, "audio", 0.1).inputs["audio"], torch.full((50, 400), 0.1))
    assert not split.inputs["image"].any()
    for first, second in NOISE_LEVELS.values():
        assert 0 < first < second


def test_no_modality_alone_knows_a_sum():
    pairs = all_pairs(7)
    labels = sum_labels(pairs, torch.ones(700, dtype=torch.bool))
    assert set(Counter(labels.tolist()).values()) == {70}
    for modality in range(2):
        assert mutual_information(pairs[:, modality], labels) == pytest.approx(0, abs=1e-12)
    assert torch.equal((pairs[:, 0] + pairs[:, 1]) % 10, labels)


def test_pairs_that_are_redundant():
    pairs = equal_pairs(3)
    assert pairs.shape == (30, 2)
    labels = sum_labels(pairs, torch.zeros(30, dtype=torch.bool))
    assert torch.equal(labels, pairs[:, 0])
    assert torch.equal(labels, pairs[:, 1])


def test_rows_are_drawn_in_rounds():
    digits = torch.arange(10).repeat(6)
    wanted = torch.arange(10).repeat_interleave(15)
    rows = draw_rows(wanted, digits, generator())
    assert torch.equal(digits[rows], wanted)
    assert set(Counter(rows.tolist()).values()) == {2, 3}
    assert torch.equal(rows, draw_rows(wanted, digits, generator()))
    assert not torch.equal(rows, draw_rows(wanted, digits, generator(1)))


@pytest.mark.parametrize("name", SMALL)
def test_suite(name, cache):
    suite = load_suite(name)
    assert suite.name == name
    check(suite)
    check_equal(suite, load_suite(name))


def test_splits_are_disjoint(cache):
    check_disjoint(load_suite("avmnist-small"), "audio")
    check_disjoint(load_suite("cg-mnist"), "gray")


def test_decoded_files_are_cached_as_safetensors(cache, monkeypatch):
    rows = load_rows("small", "validation")
    assert rows["image"].dtype == torch.uint8
    assert {file.suffix for file in cache.iterdir()} == {".safetensors"}
    file = next(cache.glob("avmnist-small-validation-*"))
    data = file.read_bytes()
    # Not a pickle.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == set(rows) == {"image", "audio", "labels", "snr_db"}

    def decode(file):
        raise AssertionError("decoded again")

    monkeypatch.setattr("suites.avmnist.decode", decode)
    assert torch.equal(load_rows("small", "validation")["audio"], rows["audio"])
    monkeypatch.setattr("suites.avmnist.RECIPE", "another")
    with pytest.raises(AssertionError, match="decoded again"):
        load_rows("small", "validation")


def test_standardized_by_the_training_rows(cache):
    train = load_suite("avmnist-small").train
    std, mean = torch.std_mean(train.inputs["audio"], dim=(0, 1, 3))
    torch.testing.assert_close(mean, torch.zeros(40), atol=1e-3, rtol=0)
    torch.testing.assert_close(std, torch.ones(40), atol=1e-3, rtol=0)


def test_colour_is_a_shortcut_but_not_in_test(cache):
    suite = load_suite("cg-mnist")
    means = 2 * torch.tensor(MEAN_COLOURS) / 255 - 1
    for name, low, high in (("train", 0.99, 1.0), ("validation", 0.99, 1.0), ("test", 0.07, 0.13)):
        split = getattr(suite, name)
        nearest = torch.cdist(split.inputs["colour"][:, :, 0, 0], means).argmin(dim=1)
        assert low < (nearest == split.labels).double().mean() < high


@pytest.mark.parametrize("modality", ["audio", "image"])
def test_noise_grows(modality, cache):
    clean = load_suite("avmnist-small")
    other = "image" if modality == "audio" else "audio"
    for level in (1, 2):
        suite = load_suite(f"noisy-{modality}-{level}")
        for split, noisy in zip(splits_of(clean), splits_of(suite), strict=True):
            noise = noisy.inputs[modality] - split.inputs[modality]
            assert float(noise.std()) == pytest.approx(NOISE_LEVELS[modality][level - 1], rel=0.01)
            assert torch.equal(noisy.inputs[other], split.inputs[other])


def test_a_slow_modality_can_be_scaled_back(cache):
    clean = load_suite("avmnist-small").test
    for modality in ("audio", "image"):
        slow = load_suite(f"slow-{modality}").test.inputs[modality]
        factor = clean.inputs[modality].std() / slow.std()
        assert factor > 3
        torch.testing.assert_close(factor * slow, clean.inputs[modality], atol=1e-4, rtol=1e-4)


def test_sums_of_real_digits(cache):
    suite = synergy("small", FEW_PAIRS)
    assert [len(split) for split in splits_of(suite)] == [400, 200, 200]
    check(suite)
    check_equal(suite, synergy("small", FEW_PAIRS))


def test_mixture_marks_the_rows_that_need_both(cache):
    suite = mixture("small", FEW_PAIRS)
    check(suite)
    for split in splits_of(suite):
        corner = split.inputs["image"][:, 0, :5, :5]
        marked = (corner > 1).all(dim=(1, 2))
        assert int(marked.sum()) == len(split) // 2
        assert (corner[~marked] < 0).all()
