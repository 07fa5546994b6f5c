"""Rebuild AV-MNIST from its three public sources: a degraded digit image and the spoken digit in noise.

    python benchmarks/build_avmnist.py --mnist DIR --fsdd DIR --esc DIR --output DIR [--sizes small full]

Get the sources first, each into its own folder; nothing is downloaded here:

- `--mnist`: the four idx files of MNIST (`train-images-idx3-ubyte`, ..., also as `.gz`), or the Parquet files of the
  Hub's copy: `hf download ylecun/mnist --repo-type dataset --local-dir DIR`.
- `--fsdd`: the Free Spoken Digit Dataset, `git clone https://github.com/Jakobovski/free-spoken-digit-dataset DIR`, with
  `recordings/{digit}_{speaker}_{take}.wav`.
- `--esc`: ESC-50, of which ESC-10 is a part, `git clone https://github.com/karolpiczak/ESC-50 DIR`, with
  `audio/*.wav` and `meta/esc50.csv`.

The output has one folder per size, with train.parquet, validation.parquet and test.parquet; `hf_recipes/run.py --config
hf_recipes/configs/avmnist.yaml --data_dir OUTPUT/small` trains on it. Recipe, split rule, sizes, columns and balance
are those of the data card of ../shared/data/avmnist, but the draws may differ, and the bytes of a codec do from version
to version: the files are of the same kind, not the same files. The same sources, versions and seed give the same bytes.
Needs soundfile 0.13 or newer.

Image: rebuilt from the fewest leading principal components of the training images outside the validation pool that hold
a quarter of the variance. Sound: one recording at a random onset in 1 s, and 1 s of an environmental noise, at a ratio
drawn from [-15, 5] dB. The two are paired by digit only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from ecsfusion.data.media import read_audio, read_image

SEED = 20180813
SPLITS = ("train", "validation", "test")
# rows of each of the ten digits; the largest size is drawn, and every other one is a part of it
SIZES = {
    "small": {"train": 200, "validation": 50, "test": 50},
    "full": {"train": 1600, "validation": 250, "test": 400},
}
# Training images of each digit that only validation may use.
POOL = 500
# Largest size of an unpacked idx file: MNIST's largest has 47 million.
MAX_BYTES = 1 << 26
# Test images are numbered from here.
NUM_TRAINING_IMAGES = 60_000
TAKES = {"train": range(10, 50), "validation": range(5, 10), "test": range(5)}
FOLDS = {"train": (1, 2, 3), "validation": (4,), "test": (5,)}
# Clips whose licence does not allow this use.
SAMPLING_PLUS = frozenset({"1-40730-A", "2-96460-A"})
# ESC-50's names as ESC-10 writes them.
CATEGORIES = {
    "dog": "dog bark",
    "crackling_fire": "fire crackling",
    "crying_baby": "baby cry",
    "sneezing": "person sneeze",
}

SAMPLING_RATE = 8000
SECOND = SAMPLING_RATE
SNR_DB = (-15.0, 5.0)
VARIANCE_SHARE = 0.25
# A second of noise must have this share of the power of the clip's loudest second.
POWER_SHARE = 0.05
RMS, PEAK = 0.08, 0.97
# On libsndfile's scale from 0 to 1: 2.7 kB a second, the error about 12 dB below the mixture.
OPUS_LEVEL = 0.965

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "audio": datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False),
        "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)]),
        "speaker": datasets.Value("string"),
        "snr_db": datasets.Value("float32"),
        "mnist_index": datasets.Value("int32"),
        "recording": datasets.Value("string"),
        "noise_clip": datasets.Value("string"),
        "noise_category": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class Recording:
    """One spoken digit."""

    path: Path
    digit: int
    speaker: str
    take: int


@dataclass(frozen=True)
class Clip:
    """One environmental noise."""

    path: Path
    category: str
    fold: int


@dataclass(frozen=True)
class Sources:
    """What the three folders hold: images (N, 28, 28) uint8 with labels (N,), recordings, clips."""

    images: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    recordings: Sequence[Recording]
    clips: Sequence[Clip]


# --- sources


def inside(folder: Path, path: Path, argument: str) -> Path:
    """The path, if it exists and does not lead out of its folder."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{argument}: {path} leads out of {folder}; put the file itself there, not a link to it"
        )
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {path}; see --help for where to get it")
    return path


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file of unsigned bytes, packed by gzip or not."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
        if (zeros, kind) != (0, 8):
            raise ValueError("its first bytes are those of another format")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (struct.error, ValueError, OSError, EOFError) as error:
        raise ValueError(f"--mnist: {path} is no idx file of bytes ({error}); download it again") from error


def read_mnist(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images (N, 28, 28) and labels (N,) of "train" and "test", from Parquet or else idx files."""
    images, labels = {}, {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        tables = sorted(path for path in folder.rglob(f"{split}-*.parquet"))
        if tables:
            rows = pa.concat_tables(
                [
                    pq.read_table(inside(folder, path, "--mnist"), columns=["image", "label"])
                    for path in tables
                ]
            ).to_pylist()
            images[split] = np.stack([np.asarray(read_image(row["image"], 1)) for row in rows])
            labels[split] = np.array([row["label"] for row in rows])
            continue
        for kind, into in (("images-idx3", images), ("labels-idx1", labels)):
            names = [f"{prefix}-{kind}-ubyte", f"{prefix}-{kind.replace('-idx', '.idx')}-ubyte"]
            files = [path for name in names for end in ("", ".gz") for path in folder.rglob(name + end)]
            into[split] = read_idx(inside(folder, files[0] if files else folder / names[0], "--mnist"))
    return images, labels


def read_recordings(folder: Path) -> list[Recording]:
    """All recordings `recordings/{digit}_{speaker}_{take}.wav`, by name."""
    recordings = []
    for path in sorted((folder / "recordings").glob("*.wav")):
        parts = re.fullmatch(r"(\d)_([^_]+)_(\d+)", path.stem)
        if parts is None:
            raise ValueError(
                f"--fsdd: {path} is not named {{digit}}_{{speaker}}_{{take}}.wav; take it out of the folder"
            )
        path = inside(folder, path, "--fsdd")
        recordings.append(Recording(path, int(parts[1]), parts[2], int(parts[3])))
    if not recordings:
        raise ValueError(f"--fsdd: there is no recordings/*.wav in {folder}; see --help for where to get it")
    return recordings


def read_clips(folder: Path) -> list[Clip]:
    """The clips of ESC-10, without the two under a Sampling+ licence."""
    table = inside(folder, folder / "meta" / "esc50.csv", "--esc")
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("esc10", "").lower() == "true"]
    clips = []
    for row in rows:
        path = inside(folder, folder / "audio" / row["filename"], "--esc")
        clip = Clip(
            path, CATEGORIES.get(row["category"], row["category"].replace("_", " ")), int(row["fold"])
        )
        if name_of(clip) not in SAMPLING_PLUS:
            clips.append(clip)
    if not clips:
        raise ValueError(f"--esc: {table} marks no clip as esc10; download it again")
    return clips


def name_of(clip: Clip) -> str:
    """Fold, Freesound id and take, without the class that ESC-50 puts at the end of a file's name."""
    return clip.path.stem.rsplit("-", 1)[0]


# --- images


def pool_of(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Training images (indices) that only validation may use: `size` of each digit."""
    return np.sort(np.concatenate([draw(labels, digit, size, rng) for digit in range(10)]))


def draw(labels: np.ndarray, digit: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `size` different images of a digit."""
    rows = np.flatnonzero(labels == digit)
    if len(rows) < size:
        raise ValueError(f"--mnist: {size} images of the digit {digit} are needed, but there are {len(rows)}")
    return rng.permutation(rows)[:size]


def principal_components(images: np.ndarray, share: float = VARIANCE_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and the fewest leading components (k, D) that hold at least `share` of the variance."""
    rows = images.reshape(len(images), -1)
    mean = rows.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((rows.shape[1],) * 2)
    # All rows as floats would take ten times the memory.
    for start in range(0, len(rows), 4096):
        centered = rows[start : start + 4096] - mean
        covariance += centered.T @ centered
    variances, vectors = np.linalg.eigh(covariance)
    variances, vectors = variances[::-1], vectors.T[::-1]
    shares = np.cumsum(variances) / variances.sum()
    return mean, vectors[: np.searchsorted(shares, share - 1e-9) + 1]


def rebuild(image: np.ndarray, mean: np.ndarray, components: np.ndarray) -> np.ndarray:
    """The image as far as the components hold it, clipped and rounded to 8 bits."""
    weights = components @ (image.reshape(-1) - mean)
    return np.rint(np.clip(mean + weights @ components, 0, 255)).astype(np.uint8).reshape(image.shape)


def png(image: np.ndarray) -> bytes:
    """Not compressed: Parquet does it better, over all images."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


# --- sounds


@cache
def read_sound(path: Path) -> np.ndarray:
    """Mono samples at 8 kHz."""
    return read_audio(path, SAMPLING_RATE)


def powers(samples: np.ndarray) -> np.ndarray:
    """Mean power of every window of one second, by its onset."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    return np.maximum(energy[SECOND:] - energy[:-SECOND], 0.0) / SECOND


def loudest_second(samples: np.ndarray) -> np.ndarray:
    """At most one second: the one with the most power."""
    if len(samples) <= SECOND:
        return samples
    onset = int(powers(samples).argmax())
    return samples[onset : onset + SECOND]


def noise_window(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A second with at least a twentieth of the power of the loudest one, drawn uniformly."""
    if len(samples) < SECOND or not np.any(samples):
        raise ValueError("a noise must last a second and not be silent; take its clip out of meta/esc50.csv")
    power = powers(samples)
    onset = int(rng.choice(np.flatnonzero(power >= POWER_SHARE * power.max())))
    return samples[onset : onset + SECOND]


def mix(speech: np.ndarray, onset: int, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, np.ndarray]:
    """Speech and noise as they stand in the mixture, which is their sum.

    Args:
        speech: samples of the recording, one second at most.
        onset: where in the second it starts.
        noise: samples of one second.
        snr_db: mean power of the speech over its own length against that of the noise over the second.

    Returns:
        Two arrays of one second, scaled so that their sum has an RMS of 0.08, or a peak of 0.97 where that is quieter.
    """
    ratio = np.mean(np.square(speech, dtype=np.float64)) / np.mean(np.square(noise, dtype=np.float64))
    voice = np.zeros(SECOND)
    voice[onset : onset + len(speech)] = speech
    scaled = noise * np.sqrt(ratio / 10 ** (snr_db / 10))
    mixture = voice + scaled
    scale = min(RMS / np.sqrt(np.mean(np.square(mixture))), PEAK / np.abs(mixture).max())
    return scale * voice, scale * scaled


def opus(samples: np.ndarray) -> bytes:
    """Ogg Opus at 8 kHz, the same bytes for the same samples."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, samples, SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_LEVEL
    )
    return with_serial(buffer.getvalue(), 1)


def with_serial(stream: bytes, serial: int) -> bytes:
    """An Ogg stream under another serial number: libsndfile draws it from the clock."""
    pages = []
    for start in (match.start() for match in re.finditer(rb"OggS\x00", stream)):
        segments = stream[start + 26]
        size = 27 + segments + sum(stream[start + 27 : start + 27 + segments])
        page = bytearray(stream[start : start + size])
        page[14:18], page[22:26] = struct.pack("<I", serial), bytes(4)
        page[22:26] = struct.pack("<I", ogg_checksum(page))
        pages.append(bytes(page))
    return b"".join(pages)


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of an Ogg page (polynomial 0x04C11DB7, highest bit first) whose checksum is zeroed."""
    checksum = 0
    for byte in page:
        checksum = (checksum << 8) & 0xFFFFFFFF ^ crc_table()[checksum >> 24 ^ byte]
    return checksum


@cache
def crc_table() -> tuple[int, ...]:
    """Checksums of the 256 bytes."""
    table = []
    for checksum in (byte << 24 for byte in range(256)):
        for _ in range(8):
            checksum = (checksum << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if checksum >> 31 else 0)
        table.append(checksum)
    return tuple(table)


# --- rows


def in_rounds(items: Sequence[Any], size: int, rng: np.random.Generator) -> list[Any]:
    """`size` items: all of them once in a random order, then again in another one, and so on."""
    rounds = -(-size // len(items))
    return [items[index] for _ in range(rounds) for index in rng.permutation(len(items))][:size]


class Split:
    """The rows of one split: their sources drawn at once, in the largest size; each row made on demand.

    Row `n` draws from a generator of its own, so that it has the same bytes in every size.
    """

    def __init__(
        self,
        name: str,
        per_class: int,
        sources: Sources,
        pool: np.ndarray,
        basis: tuple[np.ndarray, np.ndarray],
        seed: int,
    ) -> None:
        self.name, self.basis = name, basis
        self.seed = (seed, SPLITS.index(name))
        rng = np.random.default_rng(self.seed)
        stored = "test" if name == "test" else "train"
        labels = sources.labels[stored].astype(int)
        if name != "test":
            in_pool = np.isin(np.arange(len(labels)), pool)
            labels = np.where(in_pool == (name == "validation"), labels, -1)
        self.images = sources.images[stored]
        self.first_index = NUM_TRAINING_IMAGES if name == "test" else 0
        self.clips = defaultdict(list)
        for clip in sources.clips:
            if clip.fold in FOLDS[name]:
                self.clips[clip.category].append(clip)
        if not self.clips:
            raise ValueError(f"--esc: no clip is in the folds {FOLDS[name]} of {name}; download it again")
        # Pairs of an image and a recording, digit by digit.
        self.drawn: list[tuple[int, Recording]] = []
        for digit in range(10):
            own = [each for each in sources.recordings if each.digit == digit and each.take in TAKES[name]]
            if not own:
                raise ValueError(
                    f"--fsdd: no recording of the digit {digit} has a take from {TAKES[name][0]} to "
                    f"{TAKES[name][-1]}, those of {name}; complete the folder"
                )
            chosen = draw(labels, digit, per_class, rng).tolist()
            self.drawn += zip(chosen, in_rounds(own, per_class, rng), strict=True)
        self.order = rng.permutation(len(self.drawn))
        self.per_class = per_class

    def rows(self, per_class: int) -> Iterable[dict[str, Any]]:
        """The rows in the order of the largest size, `per_class` of each digit."""
        for number, position in enumerate(self.order):
            if position % self.per_class < per_class:
                yield self.row(number)

    def row(self, number: int) -> dict[str, Any]:
        """One row: its image rebuilt, its sound mixed."""
        rng = np.random.default_rng((*self.seed, number))
        index, recording = self.drawn[self.order[number]]
        speech = loudest_second(read_sound(recording.path))
        if not np.any(speech):
            raise ValueError(f"--fsdd: {recording.path} is silent; take it out of the folder")
        category = rng.choice(sorted(self.clips))
        clip = self.clips[category][rng.integers(len(self.clips[category]))]
        try:
            noise = noise_window(read_sound(clip.path), rng)
        except ValueError as error:
            raise ValueError(f"--esc: {clip.path}: {error}") from error
        onset = int(rng.integers(SECOND - len(speech) + 1))
        snr_db = round(float(rng.uniform(*SNR_DB)), 2)
        voice, background = mix(speech, onset, noise, snr_db)
        return {
            "image": {
                "bytes": png(rebuild(self.images[index], *self.basis)),
                "path": f"{self.first_index + index:05d}.png",
            },
            "audio": {"bytes": opus(voice + background), "path": f"{self.name}-{number:05d}.opus"},
            "label": recording.digit,
            "speaker": recording.speaker,
            "snr_db": snr_db,
            "mnist_index": self.first_index + index,
            "recording": recording.path.stem,
            "noise_clip": name_of(clip),
            "noise_category": clip.category,
        }


# --- files


def build(
    mnist: Path,
    fsdd: Path,
    esc: Path,
    output: Path,
    names: Sequence[str] = ("small", "full"),
    sizes: Mapping[str, Mapping[str, int]] = SIZES,
    pool_size: int = POOL,
    seed: int = SEED,
) -> list[dict[str, Any]]:
    """Write `output/{name}/{split}.parquet` for the sizes `names`, and count what is in them.

    Args:
        mnist, fsdd, esc: the folders of the sources; nothing outside of them is read.
        output: where to write.
        names: which of `sizes` to write; the bytes of a row are the same whichever are.
        sizes: rows per digit of each size and split.
        pool_size: training images per digit that only validation may use.
        seed: of every draw.

    Raises:
        ValueError: a source is absent, damaged or too small.
    """
    images, labels = read_mnist(mnist)
    sources = Sources(images, labels, read_recordings(fsdd), read_clips(esc))
    pool = pool_of(labels["train"], pool_size, np.random.default_rng((seed, len(SPLITS))))
    basis = principal_components(np.delete(images["train"], pool, axis=0))
    largest = {split: max(size[split] for size in sizes.values()) for split in SPLITS}
    splits = [Split(split, largest[split], sources, pool, basis, seed) for split in SPLITS]
    counts = []
    for split in splits:
        for name in names:
            table = pa.Table.from_pylist(
                list(split.rows(sizes[name][split.name])), schema=FEATURES.arrow_schema
            )
            path = output / name / f"{split.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path, compression="zstd", row_group_size=2000)
            counts.append({"file": f"{name}/{split.name}", **count(table), "MB": path.stat().st_size / 1e6})
    return counts


def count(table: pa.Table) -> dict[str, Any]:
    """Rows, rows per class, recordings, clips and mean ratio of a table."""
    per_class = sorted(Counter(table["label"].to_pylist()).values())
    return {
        "rows": len(table),
        "per class": per_class[0] if per_class[0] == per_class[-1] else f"{per_class[0]}-{per_class[-1]}",
        "recordings": len(table["recording"].unique()),
        "clips": len(table["noise_clip"].unique()),
        "mean SNR (dB)": float(np.mean(table["snr_db"].to_numpy())),
    }


def as_table(counts: Sequence[Mapping[str, Any]]) -> str:
    """The counts in Markdown."""
    lines = [list(counts[0]), ["---"] * len(counts[0])]
    lines += [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()]
        for row in counts
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(argv: Sequence[str]) -> None:
    """Build what the command line says; what the user can set right ends in one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, required=True, help="folder with MNIST (idx or Parquet)")
    parser.add_argument("--fsdd", type=Path, required=True, help="folder with recordings/*.wav")
    parser.add_argument("--esc", type=Path, required=True, help="folder with audio/*.wav and meta/esc50.csv")
    parser.add_argument("--output", type=Path, required=True, help="where to write")
    parser.add_argument(
        "--sizes", nargs="+", choices=sorted(SIZES), default=sorted(SIZES), help="default: both"
    )
    given = parser.parse_args(argv)
    try:
        print(as_table(build(given.mnist, given.fsdd, given.esc, given.output, given.sizes)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
