"""AV-MNIST rebuilt from its sources: the recipe of the card, on stand-ins of the three sources."""

import csv
import io
import shutil
import struct
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import build_avmnist
from build_avmnist import (
    FOLDS,
    PEAK,
    RMS,
    SAMPLING_PLUS,
    SECOND,
    SPLITS,
    TAKES,
    as_table,
    build,
    loudest_second,
    main,
    mix,
    noise_window,
    ogg_checksum,
    opus,
    powers,
    principal_components,
    rebuild,
)

pytestmark = pytest.mark.slow

SIZES = {
    "small": {"train": 3, "validation": 1, "test": 1},
    "full": {"train": 7, "validation": 2, "test": 3},
}
SPEAKERS = ("ada", "bob")


def write_idx(path, array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """MNIST of 12 and 4 images a digit, FSDD of two speakers and six takes, ESC of two classes in five folds."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    (folder / "mnist").mkdir()
    for prefix, per_class in (("train", 12), ("t10k", 4)):
        labels = rng.permutation(np.repeat(np.arange(10), per_class))
        write_idx(
            folder / "mnist" / f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (len(labels), 28, 28))
        )
        write_idx(folder / "mnist" / f"{prefix}-labels-idx1-ubyte", labels)
    (folder / "fsdd" / "recordings").mkdir(parents=True)
    for digit in range(10):
        for number, speaker in enumerate(SPEAKERS):
            for take in (0, 4, 5, 9, 10, 49):
                length = SECOND + 2000 if (digit, speaker, take) == (3, "ada", 10) else 2500 + 50 * take
                tone = np.sin(np.arange(length) * (digit + 3) / 20) * (0.2 + 0.1 * number)
                soundfile.write(folder / "fsdd" / "recordings" / f"{digit}_{speaker}_{take}.wav", tone, 8000)
    (folder / "esc" / "audio").mkdir(parents=True)
    (folder / "esc" / "meta").mkdir()
    with (folder / "esc" / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        names = [(f"{fold}-{100 + fold}-A-0.wav", fold, "dog", True) for fold in range(1, 6)]
        names += [(f"{fold}-{200 + fold}-B-1.wav", fold, "rooster", True) for fold in range(1, 6)]
        names += [(f"{name}-1.wav", int(name[0]), "rooster", True) for name in sorted(SAMPLING_PLUS)]
        names += [("1-300-A-2.wav", 1, "pig", False)]
        for name, fold, category, esc10 in names:
            table.writerow([name, fold, 0, category, esc10, name.split("-")[1], "A"])
            noise = rng.normal(0, 0.1, 22050 * 2)
            noise[:22050] *= 0.01
            soundfile.write(folder / "esc" / "audio" / name, noise, 22050)
    return folder


def run(sources, output, **changes):
    options = {"sizes": SIZES, "pool_size": 4} | changes
    return build(sources / "mnist", sources / "fsdd", sources / "esc", output, **options)


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory):
    output = tmp_path_factory.mktemp("built")
    return output, run(sources, output)


def rows(folder, size, split):
    return pq.read_table(folder / size / f"{split}.parquet").to_pylist()


# --- what comes out


def test_every_size_is_balanced_and_counted(built):
    folder, counts = built
    for size, splits in SIZES.items():
        for split, per_class in splits.items():
            labels = Counter(row["label"] for row in rows(folder, size, split))
            assert labels == dict.fromkeys(range(10), per_class)
            (counted,) = [each for each in counts if each["file"] == f"{size}/{split}"]
            assert (counted["rows"], counted["per class"]) == (10 * per_class, per_class)
    assert as_table(counts).count("\n") == 1 + len(counts)


def test_splits_share_no_source_and_keep_the_rule(built):
    folder, _ = built
    splits = {split: rows(folder, "full", split) for split in SPLITS}
    for column in ("mnist_index", "recording", "noise_clip"):
        values = {split: {row[column] for row in content} for split, content in splits.items()}
        assert sum(map(len, values.values())) == len(set.union(*values.values()))
    for split, content in splits.items():
        assert len({row["mnist_index"] for row in content}) == len(content)
        for row in content:
            digit, speaker, take = row["recording"].split("_")
            assert (int(digit), speaker) == (row["label"], row["speaker"])
            assert int(take) in TAKES[split]
            assert int(row["noise_clip"][0]) in FOLDS[split]
            assert row["noise_clip"] not in SAMPLING_PLUS
            assert row["noise_category"] in ("dog bark", "rooster")
            assert (row["mnist_index"] >= 60_000) == (split == "test")
            assert -15 <= row["snr_db"] <= 5


def test_recordings_are_used_in_rounds(built):
    folder, _ = built
    content = rows(folder, "full", "train")
    # 7 rows of 2 speakers x 2 takes: every one once, then three of them again.
    for digit in range(10):
        uses = Counter(row["recording"] for row in content if row["label"] == digit)
        assert sorted(uses.values()) == [1, 2, 2, 2]


def test_small_is_a_part_of_full_in_its_order_and_the_same_alone(sources, built, tmp_path):
    folder, _ = built
    run(sources, tmp_path, names=["small"])
    for split in SPLITS:
        small, full = rows(folder, "small", split), rows(folder, "full", split)
        assert [row for row in full if row in small] == small
        assert (tmp_path / "small" / f"{split}.parquet").read_bytes() == (
            folder / "small" / f"{split}.parquet"
        ).read_bytes()
    assert not (tmp_path / "full").exists()


def test_the_seed_decides_every_byte(sources, built, tmp_path):
    folder, _ = built
    run(sources, tmp_path / "again", names=["full"])
    run(sources, tmp_path / "other", names=["small"], seed=1)
    for split in SPLITS:
        name = f"full/{split}.parquet"
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert rows(tmp_path / "other", "small", split) != rows(folder, "small", split)


def test_rows_decode_as_the_card_says(built):
    folder, _ = built
    stored = datasets.Dataset.from_parquet(
        str(folder / "full" / "test.parquet"), cache_dir=str(folder / "cache")
    )
    row = stored[0]
    assert (row["image"].size, row["image"].mode) == ((28, 28), "L")
    wave, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
    assert (wave.shape, rate) == ((8000,), 8000)
    # Opus is lossy.
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(RMS, rel=0.35)
    assert stored.features["label"].names == [str(digit) for digit in range(10)]


def test_the_schema_is_that_of_the_shared_files(built, shared_data):
    folder, _ = built
    ours = pq.read_schema(folder / "full" / "train.parquet")
    theirs = pq.read_schema(shared_data / "avmnist" / "full" / "train.parquet")
    assert ours.equals(theirs)
    assert datasets.Features.from_arrow_schema(ours) == datasets.Features.from_arrow_schema(theirs)


def test_mnist_may_be_the_parquet_of_the_hub(sources, built, tmp_path):
    folder, _ = built
    images, labels = build_avmnist.read_mnist(sources / "mnist")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for split in ("train", "test"):
        pngs = [{"bytes": build_avmnist.png(image), "path": None} for image in images[split]]
        table = datasets.Dataset.from_dict({"image": pngs, "label": labels[split].tolist()}, features)
        (tmp_path / "hub" / "mnist").mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / "hub" / "mnist" / f"{split}-00000-of-00001.parquet")
    build(tmp_path / "hub", sources / "fsdd", sources / "esc", tmp_path, ["small"], SIZES, 4)
    assert rows(tmp_path, "small", "train") == rows(folder, "small", "train")


# --- how it is made


@pytest.mark.parametrize("snr_db", [-15.0, -2.5, 5.0])
@pytest.mark.parametrize("impulsive", [False, True])
def test_the_ratio_is_that_of_the_speech_over_its_own_length(snr_db, impulsive):
    rng = np.random.default_rng(0)
    speech, noise = rng.normal(0, 0.3, 3000), rng.normal(0, 0.01, SECOND)
    if impulsive:
        noise[100:] *= 1e-4
    voice, background = mix(speech, 1234, noise, snr_db)
    assert not voice[:1234].any()
    assert not voice[4234:].any()
    power = np.mean(voice[1234:4234] ** 2) / np.mean(background**2)
    assert 10 * np.log10(power) == pytest.approx(snr_db, abs=1e-9)
    mixture = voice + background
    rms, peak = np.sqrt(np.mean(mixture**2)), np.abs(mixture).max()
    assert max(rms / RMS, peak / PEAK) == pytest.approx(1)
    assert (peak / PEAK == pytest.approx(1)) == impulsive


@pytest.mark.parametrize(("share", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 3)])
def test_the_fewest_components_that_hold_the_share(share, kept):
    # Variances 5 : 3 : 2, along the axes.
    rows = np.kron(np.diag([5.0, 3.0, 2.0]) ** 0.5, [[1.0], [-1.0]]) + 7
    mean, components = principal_components(rows, share)
    assert np.allclose(mean, 7)
    assert np.allclose(np.abs(components), np.eye(3)[:kept])


def test_an_image_is_rebuilt_as_far_as_the_components_hold_it():
    mean, components = np.array([10.0, 20.0, 30.0, 250.0]), np.array([[0.0, 0.0, 0.6, 0.8]])
    image = np.array([[99, 99], [90, 255]], np.uint8)
    weight = 60 * 0.6 + 5 * 0.8
    assert rebuild(image, mean, components).tolist() == [[10, 20], [round(30 + 0.6 * weight), 255]]


def test_long_speech_is_cut_to_its_loudest_second_and_no_other():
    speech = np.full(SECOND + 500, 0.1)
    speech[300:1000] = 0.5
    speech[SECOND + 200 :] = 0.5
    assert np.array_equal(loudest_second(speech), speech[300 : SECOND + 300])
    assert loudest_second(speech[:1000]) is not None
    assert len(loudest_second(speech[:1000])) == 1000


def test_a_noise_window_has_a_twentieth_of_the_power_of_the_loudest():
    noise = np.zeros(4 * SECOND)
    noise[2 * SECOND : 2 * SECOND + 400] = 0.5
    onsets, rng = set(), np.random.default_rng(0)
    # By the ramp one sees where a cut begins.
    ramp = noise + 1e-9 * np.arange(len(noise))
    for _ in range(200):
        window = noise_window(ramp, rng)
        assert np.mean(window**2) >= 0.05 * powers(ramp).max() * (1 - 1e-9)
        onsets.add(round((window[0] % 0.5) / 1e-9))
    assert SECOND < min(onsets) < 1.3 * SECOND
    assert 1.9 * SECOND < max(onsets) < 2 * SECOND + 400


def test_an_ogg_page_has_the_checksum_that_libsndfile_writes():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(800), 8000, format="OGG", subtype="OPUS")
    # The first page: a header of 28 bytes and OpusHead, of 19.
    page = bytearray(buffer.getvalue()[:47])
    stored = struct.unpack_from("<I", page, 22)[0]
    page[22:26] = bytes(4)
    assert ogg_checksum(page) == stored


def test_opus_is_the_same_each_time_and_as_small_and_as_near_as_the_card_says(shared_data):
    stored = pq.read_table(shared_data / "avmnist" / "small" / "test.parquet", columns=["audio"])
    sizes, errors = [], []
    for row in stored.slice(0, 20).to_pylist():
        samples, _ = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        encoded = opus(samples)
        assert opus(samples) == encoded
        decoded, _ = soundfile.read(io.BytesIO(encoded))
        sizes.append(len(encoded) / len(row["audio"]["bytes"]))
        errors.append(10 * np.log10(np.mean(samples**2) / np.mean((decoded - samples) ** 2)))
    assert np.median(sizes) == pytest.approx(1, abs=0.05)
    assert np.median(errors) == pytest.approx(12, abs=1)


# --- what is wrong with the sources


@pytest.mark.parametrize(
    ("argument", "path", "message"),
    [
        ("mnist", "t10k-labels-idx1-ubyte", "--mnist: there is no file .*t10k-labels-idx1-ubyte; see --help"),
        ("esc", "meta/esc50.csv", "--esc: there is no file .*esc50.csv; see --help"),
        ("esc", "audio/3-103-A-0.wav", "--esc: there is no file .*3-103-A-0.wav; see --help"),
        ("fsdd", "recordings", "--fsdd: there is no recordings/\\*.wav in .*; see --help"),
    ],
)
def test_a_missing_file_is_named_in_one_sentence(sources, tmp_path, argument, path, message):
    copy = tmp_path / "sources"
    shutil.copytree(sources, copy)
    missing = copy / argument / path
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    argv = [word for name in ("mnist", "fsdd", "esc") for word in (f"--{name}", str(copy / name))]
    with pytest.raises(SystemExit, match=rf"^error: {message}[^\n]*$"):
        main([*argv, "--output", str(tmp_path / "out")])


def test_nothing_outside_of_the_folders_is_read(sources, tmp_path):
    copy = tmp_path / "sources"
    shutil.copytree(sources, copy)
    table = copy / "esc" / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("1-101-A-0.wav", "../../secret.wav"))
    shutil.copy(sources / "esc" / "audio" / "1-101-A-0.wav", copy / "secret.wav")
    with pytest.raises(
        ValueError, match=r"--esc: .*secret\.wav leads out of .*esc; put the file itself there"
    ):
        run(copy, tmp_path)


def test_what_is_too_little_is_said(sources, tmp_path):
    many = {"full": {"train": 9, "validation": 2, "test": 3}}
    with pytest.raises(ValueError, match="--mnist: 9 images of the digit 0 are needed, but there are 8"):
        run(sources, tmp_path, sizes=many, names=["full"])
    copy = tmp_path / "sources"
    shutil.copytree(sources, copy)
    for path in (copy / "fsdd" / "recordings").glob("7_*_[04].wav"):
        path.unlink()
    with pytest.raises(ValueError, match="no recording of the digit 7 has a take from 0 to 4, those of test"):
        run(copy, tmp_path)
    (copy / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"not idx")
    with pytest.raises(ValueError, match=r"--mnist: .*train-labels-idx1-ubyte is no idx file"):
        run(copy, tmp_path)
