"""Build the data of the suite `stamps`, pictures, voices and texts, from the stamps of Tux Paint as Debian packs them.

    apt-get download tuxpaint-stamps-default=2022.06.04-1
    apt-get install librsvg2-bin
    python benchmarks/build_stamps.py --packages . --output FOLDER/stamps

The package is checked by its sha256 and unpacked, not installed; any mirror or archive of Debian has it. `rsvg-convert`
of librsvg2-bin draws the pictures that are SVG. FOLDER is what `ECSFUSION_DATA` names for `compare.py`, and for the
recipe `stamps.yaml` FOLDER/stamps is the `--data_dir`. It then holds train.parquet, validation.parquet, test.parquet
and, by the frozen encoders that `build_encoders.py` makes, embeddings.npz. Takes about fifteen minutes on one core. The
stamps are GPL-2, and so is what is built of them: do not put it into a package of another licence.

A class is a folder of stamps with 30 usable pictures or more: animals are birds, mammals and others, symbols are
letters (90 of them, drawn) and others, hobbies and sports are one. A row is one spoken description, in one of 14
languages: of a picture up to six, English where there is one, the others drawn. Sounds are mono, at 16 kHz, without the
silence at their ends, and 3 s at most. The text is the English description without the words of all classes. Pictures
of equal text or that look alike stay together, and no picture is in two splits.

With Pillow 12.3, librsvg 2.54 and libsndfile 1.2 all rows, texts, labels and splits of the recorded suites come out.
The same packages and versions give the same files.
"""

from __future__ import annotations

import io
import random
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path, PurePath
from typing import Any

import datasets
import numpy as np
import soundfile
from build_avmnist import with_serial
from natural_data.arguments import read_arguments
from natural_data.debian import DebianPackage, unpacked
from natural_data.embeddings import check_encoders, write_embeddings
from natural_data.groups import DisjointSets, split_groups
from natural_data.pictures import framed, grey_patterns, jpeg, on_white
from natural_data.tables import count_rows, write_splits
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import resample_poly

PACKAGE = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "usr/share/tuxpaint/stamps",
)
CONVERTER = "rsvg-convert"
RENDERED_SIZE, MIN_INK = "256", 20
# The words of all classes, in every row.
MASKED = re.compile(
    r"\b(birds?|animals?|mammals?|clothes|clothing|foods?|households?|hobby|hobbies|sports?|people|persons?|plants?|"
    r"seasons?|seasonal|symbols?|letters?|towns?|vehicles?)\b",
    re.IGNORECASE,
)
TOP_FOLDERS = ("clothes", "food", "household", "people", "plants", "seasonal", "town", "vehicles")
ENGLISH = "en"
# Rows of a picture, pictures of a class.
MAX_PER_PICTURE, MIN_PER_CLASS = 6, 30
MAX_OF_CLASS = {"letters": 90}
SPLITS = {"train": 0.66, "validation": 0.12, "test": 0.22}
SEED = 0
# Correlation of grey values at 32 x 32 pixels.
ALIKE = 0.95
SAMPLING_RATE = 16_000
MIN_SECONDS, MAX_SECONDS = 0.25, 3.0
PEAK, SILENCE = 0.9, 0.03
# Samples of a frame of 10 ms, and what is kept before the first loud frame and after the last.
FRAME, BEFORE, AFTER = 160, 800, 1600


@dataclass(frozen=True, eq=False)
class Stamp:
    """A picture with its descriptions.

    Args:
        name: its path without the ending.
        label: its class.
        text: in English.
        voices: files of the spoken description by language.
        picture: RGB (128, 128).
    """

    name: str
    label: str
    text: str
    voices: Mapping[str, Path]
    picture: Image.Image


class UnusableStampError(Exception):
    """A stamp is left out; the message is the reason."""


def label_of(path: PurePath) -> str | None:
    """The class of a stamp by its path; None for folders that are no class."""
    top, sub = path.parts[0], path.parts[1] if len(path.parts) > 2 else ""
    if top == "animals":
        return (
            "birds" if sub == "birds" else "mammals" if sub in ("mammals", "marsupials") else "other_animals"
        )
    if top == "symbols":
        return "letters" if sub == "alphabets" else "symbols"
    if top in ("hobbies", "sports"):
        return "hobbies_and_sports"
    return top if top in TOP_FOLDERS else None


def read_text(file: Path) -> str:
    """The English description, the first line of a file, without the words of all classes.

    Raises:
        UnusableStampError: there is none.
    """
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    # A file without English begins with the line of a language, "fr.utf8=...".
    line = lines[0] if lines and "utf8=" not in lines[0] else ""
    text = re.sub(r"\s+", " ", MASKED.sub(" ", line)).replace(" .", ".").strip()
    if not re.search("[A-Za-z]", text):
        raise UnusableStampError("no English text")
    return text


def find_voices(file: Path) -> dict[str, Path]:
    """The sounds `STAMP_desc_LANGUAGE.ogg` beside a stamp, by language; English has no language in its name.

    Raises:
        UnusableStampError: there is none.
    """
    voices: dict[str, Path] = {}
    name = re.compile(re.escape(file.stem) + r"_desc(?:_([A-Za-z]+(?:_[A-Z]+)?))?\.(ogg|wav)")
    for sound in sorted(file.parent.glob(file.stem + "_desc*")):
        parts = name.fullmatch(sound.name)
        if parts is not None:
            voices.setdefault(parts[1] or ENGLISH, sound)
    if not voices:
        raise UnusableStampError("no spoken description")
    return voices


def read_picture(file: Path) -> Image.Image:
    """The picture, framed.

    Raises:
        UnusableStampError: it is damaged or empty.
    """
    if file.suffix == ".svg":
        size = ["-w", RENDERED_SIZE, "-h", RENDERED_SIZE, "--keep-aspect-ratio"]
        done = subprocess.run([CONVERTER, *size, str(file)], capture_output=True)
        if done.returncode:
            raise UnusableStampError("picture unreadable or empty")
        picture = Image.open(io.BytesIO(done.stdout))
    else:
        picture = Image.open(file)
    canvas = framed(on_white(picture), MIN_INK)
    if canvas is None:
        raise UnusableStampError("picture unreadable or empty")
    return canvas


def read_stamp(folder: Path, file: Path) -> Stamp:
    """The stamp of a file.

    Raises:
        UnusableStampError: it is left out.
    """
    path = file.relative_to(folder)
    label = label_of(path)
    if label is None:
        raise UnusableStampError("category of few pictures")
    text = read_text(file.with_suffix(".txt"))
    return Stamp(str(path.with_suffix("")), label, text, find_voices(file), read_picture(file))


def read_stamps(folder: Path, report: Callable[[str], None] = print) -> list[Stamp]:
    """All stamps that may become rows, by the paths of their files.

    Raises:
        ValueError: there is none.
    """
    stamps, left_out, seen = [], Counter(), set()
    for file in sorted([*folder.rglob("*.png"), *folder.rglob("*.svg")]):
        name = file.relative_to(folder).with_suffix("")
        if re.search("_(mirror|flip)$", str(name)) or name in seen:
            continue
        seen.add(name)
        try:
            stamps.append(read_stamp(folder, file))
        except UnusableStampError as reason:
            left_out[str(reason)] += 1
    if not stamps:
        raise ValueError(f"{folder} has no usable stamps (*.png or *.svg with *.txt and *_desc*.ogg)")
    report(f"{len(stamps)} pictures; left out: {dict(left_out)}")
    return stamps


def group_stamps(stamps: Sequence[Stamp]) -> DisjointSets:
    """Stamps of equal text or that look alike are a group."""
    patterns = grey_patterns([stamp.picture for stamp in stamps], 32)
    sets = DisjointSets(len(stamps))
    for row, stamp in enumerate(stamps):
        for other in np.flatnonzero(patterns @ patterns[row] > ALIKE):
            sets.unite(row, int(other))
        sets.unite_equal(row, re.sub("[^a-z0-9 ]", "", stamp.text.lower()))
    return sets


def trimmed(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32] | None:
    """A sound at 16 kHz and a peak of 0.9, without the silence at its ends, 3 s at most.

    Args:
        samples: mono, (T,).
        rate: of the samples, in Hz.

    Returns:
        (T,) float32; None where it is silent or shorter than 0.25 s.
    """
    if rate != SAMPLING_RATE:
        divisor = gcd(rate, SAMPLING_RATE)
        samples = resample_poly(samples, SAMPLING_RATE // divisor, rate // divisor)
    peak = np.abs(samples).max() if len(samples) else 0
    if peak < 1e-3:
        return None
    samples = samples * (PEAK / peak)
    frames = np.abs(samples[: len(samples) // FRAME * FRAME]).reshape(-1, FRAME).max(1)
    loud = np.flatnonzero(frames > SILENCE)
    if not len(loud):
        return None
    samples = samples[max(0, loud[0] * FRAME - BEFORE) : (loud[-1] + 1) * FRAME + AFTER]
    samples = samples[: int(MAX_SECONDS * SAMPLING_RATE)]
    return samples.astype(np.float32) if len(samples) >= MIN_SECONDS * SAMPLING_RATE else None


def read_sound(file: Path) -> bytes | None:
    """A spoken description as Ogg Opus; None where it is silent or damaged."""
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    sound = trimmed(samples.mean(1), rate)
    if sound is None:
        return None
    buffer = io.BytesIO()
    soundfile.write(buffer, sound, SAMPLING_RATE, format="OGG", subtype="OPUS")
    return with_serial(buffer.getvalue(), 1)


def rows_of(stamp: Stamp, label: int, generator: random.Random) -> list[dict[str, Any]]:
    """A row for each of up to six descriptions: English, and others as they are drawn."""
    others = [language for language in stamp.voices if language != ENGLISH]
    generator.shuffle(others)
    image = {"bytes": jpeg(stamp.picture), "path": f"{stamp.name}.jpg"}
    rows: list[dict[str, Any]] = []
    for language in [*([ENGLISH] if ENGLISH in stamp.voices else []), *others]:
        if len(rows) == MAX_PER_PICTURE:
            break
        sound = read_sound(stamp.voices[language])
        if sound is not None:
            audio = {"bytes": sound, "path": f"{stamp.name}_{language}.ogg"}
            row = {"image": image, "audio": audio, "text": stamp.text, "label": label}
            rows.append({**row, "language": language, "picture": stamp.name})
    return rows


def build(folder: Path, output: Path, report: Callable[[str], None] = print) -> None:
    """Write train.parquet, validation.parquet and test.parquet.

    Args:
        folder: of the stamps.
        output: where to write.
        report: takes what is said of the rows.

    Raises:
        ValueError: there are no stamps, or no class has enough of them.
    """
    stamps = read_stamps(folder, report)
    sets = group_stamps(stamps)
    generator = random.Random(SEED)  # noqa: S311
    of_class: defaultdict[str, list[int]] = defaultdict(list)
    for row, stamp in enumerate(stamps):
        of_class[stamp.label].append(row)
    names = sorted(name for name, rows in of_class.items() if len(rows) >= MIN_PER_CLASS)
    if not names:
        raise ValueError(f"no class of {folder} has {MIN_PER_CLASS} usable pictures")
    chosen: list[int] = []
    for name in names:
        rows, limit = of_class[name], MAX_OF_CLASS.get(name, len(stamps))
        chosen += generator.sample(rows, limit) if len(rows) > limit else rows
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in chosen:
        groups[sets.find(row)].append(row)
    split_of = split_groups(groups, {row: stamps[row].label for row in chosen}, SPLITS, generator)
    splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for row in chosen:
        label = names.index(stamps[row].label)
        splits[split_of[sets.find(row)]] += rows_of(stamps[row], label, generator)
    for split in splits.values():
        generator.shuffle(split)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "audio": datasets.Audio(sampling_rate=SAMPLING_RATE),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "language": datasets.Value("string"),
            "picture": datasets.Value("string"),
        }
    )
    write_splits(splits, features, output, row_group_size=2000)
    report(count_rows(splits, names, "picture"))


def main(argv: Sequence[str]) -> None:
    """Build what the command line says; what the user can set right ends in one sentence."""
    given = read_arguments(argv, __doc__, "folder with the .deb file, or with its unpacked usr/")
    modalities = ("image", "audio", "text")
    try:
        if shutil.which(CONVERTER) is None:
            raise ValueError(f"there is no program {CONVERTER}; install librsvg2-bin (librsvg elsewhere)")
        if not given.without_embeddings:
            check_encoders(modalities)
        with unpacked([PACKAGE], given.packages) as (folder,):
            build(folder, given.output)
        if not given.without_embeddings:
            write_embeddings(given.output, modalities, group="picture", image_size=224)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
