"""Build the data of the suite `clipart`, drawings and their titles, from the Open Clip Art Library as Debian packs it.

    apt-get download openclipart-png=1:0.18+dfsg-19 openclipart-svg=1:0.18+dfsg-19
    python benchmarks/build_clipart.py --packages . --output FOLDER/clipart

The packages, of 2005 and in the public domain, are checked by their sha256 and unpacked, not installed; any mirror or
archive of Debian has them. FOLDER is what `ECSFUSION_DATA` names for `compare.py`, and for the recipe `clipart.yaml`
FOLDER/clipart is the `--data_dir`. It then holds train.parquet, validation.parquet, test.parquet and, by the frozen
encoders that `build_encoders.py` makes, embeddings.npz. Takes about ten minutes on one core, and 2 GB on the disk.

A class is a top folder of the library with 60 usable drawings or more; unsorted and special ones, buttons and logos
are no subjects. The text is a drawing's title and keywords, without the words of all folders. Left out are drawings
whose metadata do not say that they are in the public domain, what a list of words finds to be not for everyone, what is
empty, unreadable or larger than 20 million pixels, and all but one of drawings that are equal or nearly so.

Drawings that depend on each other are a group, and no group is in two splits: the same title and author; names of
files that differ in digits; an icon theme or a deck of cards, which is a folder at depth 3; drawings of one folder that
look alike. Groups of more than 24 rows are in train.

With Pillow 12.3 all rows, texts, labels, groups and splits of the recorded suites come out, and 96 % of the drawings
byte by byte; other versions scale a few pixels differently. The same packages and versions give the same files.
"""

from __future__ import annotations

import hashlib
import html
import random
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import datasets
import numpy as np
from natural_data.arguments import read_arguments
from natural_data.debian import DebianPackage, unpacked
from natural_data.embeddings import check_encoders, write_embeddings
from natural_data.groups import MAX_GROUP_OF_EVALUATION, DisjointSets, split_groups
from natural_data.pictures import colour_patterns, framed, grey_patterns, jpeg, on_white
from natural_data.tables import count_rows, write_splits
from PIL import Image

VERSION = "1:0.18+dfsg-19"
PACKAGES = (
    DebianPackage(
        "openclipart-svg",
        VERSION,
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "usr/share/openclipart/svg",
    ),
    DebianPackage(
        "openclipart-png",
        VERSION,
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "usr/share/openclipart/png",
    ),
)
SKIPPED = {"unsorted", "special", "buttons", "logos"}
# The words of all folders, in every row, so that neither their presence nor their absence tells.
MASKED = re.compile(
    r"\b(signs and symbols|animals?|buildings?|computers?|computing|containers?|decorations?|decorative|educations?|"
    r"educational|electronics?|foods?|geography|geographics?|geographical|offices?|people|peoples|persons?|plants?|"
    r"recreations?|recreational|sciences?|scientific|shapes?|signs?|symbols?|tools?|transports?|transportations?|"
    r"clip ?arts?)\b",
    re.IGNORECASE,
)
NOT_FOR_EVERYONE = re.compile(
    r"sexy|eroti|nude|naked|lingerie|pantyhose|collant|babe|pin.?up|topless", re.IGNORECASE
)
DROPPED = {"", "hash", "unsorted", "special", "duplicates", "open clip art library", "openclipart"}
MAX_TEXT, MAX_KEYWORD = 240, 30
MAX_PIXELS, MIN_INK = 20_000_000, 40
# Before drawings are cropped.
MAX_SIDE = 1024
# Drawings of a class, rows of a group, and rows of a class.
MIN_PER_CLASS, MAX_PER_GROUP, MAX_PER_CLASS = 60, 300, 700
MAX_OF_CLASS = {"signs_and_symbols": 800, "shapes": 450}
SPLITS = {"train": 0.70, "validation": 0.12, "test": 0.18}
SEED = 0
# Correlations of grey values at 32 x 32 and 16 x 16 pixels, and the root mean square difference of colours at 8 x 8.
SAME, SAME_COLOURS = 0.99, 6.0
ALIKE, ALIKE_COARSE, ALIKE_FINE = 0.94, 0.98, 0.88


@dataclass(frozen=True, eq=False)
class Drawing:
    """A drawing that may become a row.

    Args:
        path: in the library, of the PNG.
        text: title and keywords.
        title: letters of the title.
        creator: of the drawing, as the metadata say.
        picture: RGB (128, 128).
    """

    path: PurePath
    text: str
    title: str
    creator: str
    picture: Image.Image

    @property
    def label(self) -> str:
        """The top folder."""
        return self.path.parts[0]


class UnusableDrawingError(Exception):
    """A drawing is left out; the message is the reason."""


def tidy(text: str) -> str:
    """The text of metadata without markup, addresses, dates and names of formats."""
    text = html.unescape(html.unescape(html.unescape(text)))
    text = re.sub(r"\S+@\S+|https?://\S+", " ", text)
    text = re.sub(r"\((?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [^)]*\)", " ", text)
    text = re.sub(r"\.(svg|png)\b", " ", text, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", re.sub(r"[_/\\]+", " ", text)).strip()


def masked(text: str) -> str:
    """The text without the words of folders, and without the punctuation that they leave."""
    text = re.sub(r"\s+", " ", MASKED.sub(" ", text))
    return re.sub(r"\s*([,;:])(?:\s*[,;:])*", r"\1", text).strip(" ,;:-")


def letters(text: str) -> str:
    """The letters of a text in lower case, all else as single spaces."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def read_metadata(svg: str) -> tuple[str, str, str]:
    """Text, letters of the title, and creator of a drawing.

    Args:
        svg: content of the SVG.

    Raises:
        UnusableDrawingError: it does not say that it is in the public domain.
    """
    metadata = re.search(r"<metadata.*?</metadata>", svg, re.DOTALL)
    if metadata is None or "PublicDomain" not in metadata[0]:
        raise UnusableDrawingError("no metadata or licence")
    titles = re.findall(r"<dc:title[^>]*>(.*?)</dc:title>", metadata[0], re.DOTALL)
    title = tidy(titles[0]) if titles else ""
    found = re.search(r"<dc:creator>.*?<dc:title[^>]*>(.*?)</dc:title>", metadata[0], re.DOTALL)
    creator = tidy(found[1]) if found else ""
    keywords: list[str] = []
    for item in re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", metadata[0], re.DOTALL):
        keyword = tidy(item).lower()
        is_name = keyword == creator.lower() or (creator and keyword in creator.lower())
        is_noise = keyword.startswith("hash(") or len(keyword) > MAX_KEYWORD or keyword in DROPPED
        if not is_name and not is_noise and keyword not in keywords:
            keywords.append(keyword)
    if creator:
        title = re.sub(re.escape(creator), " ", title, flags=re.IGNORECASE)
    title = masked(re.sub(r"\bclip ?art by\b", " ", title, flags=re.IGNORECASE))
    listed = ", ".join(keyword for keyword in map(masked, keywords) if keyword)
    text = masked(title + ("; " if title else "") + listed)[:MAX_TEXT]
    return text, letters(titles[0] if titles else ""), creator.lower()


def read_picture(file: Path) -> Image.Image:
    """The drawing, framed.

    Raises:
        UnusableDrawingError: it is too large, damaged or empty.
    """
    try:
        with warnings.catch_warnings():
            # Larger ones are left out below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(file)
        if picture.width * picture.height > MAX_PIXELS:
            raise UnusableDrawingError("more than 20 million pixels")
        picture = picture.convert("RGBA")
    except Image.DecompressionBombError as error:
        raise UnusableDrawingError("more than 20 million pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnusableDrawingError("unreadable") from error
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    canvas = framed(on_white(picture), MIN_INK)
    if canvas is None:
        raise UnusableDrawingError("empty picture")
    return canvas


def read_drawing(svg: Path, png: Path, path: PurePath) -> Drawing:
    """The drawing of a path.

    Args:
        svg: the folder of SVG files.
        png: the folder of PNG files.
        path: of the PNG in its folder.

    Raises:
        UnusableDrawingError: it is left out.
    """
    if not (png / path).exists():
        raise UnusableDrawingError("no picture")
    text, title, creator = read_metadata((svg / path.with_suffix(".svg")).read_text(errors="replace"))
    if NOT_FOR_EVERYONE.search(f"{path.with_suffix('.svg')} {text}"):
        raise UnusableDrawingError("not for everyone")
    if not letters(text):
        raise UnusableDrawingError("no text left")
    return Drawing(path, text, title, creator, read_picture(png / path))


def read_drawings(svg: Path, png: Path, report: Callable[[str], None] = print) -> list[Drawing]:
    """All drawings that may become rows, by the paths of their files.

    Raises:
        ValueError: there is none.
    """
    drawings, left_out = [], Counter()
    for file in sorted(svg.rglob("*.svg")):
        path = file.relative_to(svg).with_suffix(".png")
        if path.parts[0] in SKIPPED:
            continue
        try:
            drawings.append(read_drawing(svg, png, path))
        except UnusableDrawingError as reason:
            left_out[str(reason)] += 1
    if not drawings:
        raise ValueError(f"{svg} has no usable drawings (*.svg with a PNG in {png})")
    report(f"{len(drawings)} drawings; left out: {dict(left_out)}")
    return drawings


def without_equal(drawings: Sequence[Drawing]) -> list[Drawing]:
    """One of the drawings with equal pixels, that in the smallest folder; drawings of small folders come first."""
    size = Counter(drawing.label for drawing in drawings)
    by_pixels: dict[str, Drawing] = {}
    for drawing in sorted(drawings, key=lambda each: (size[each.label], str(each.path))):
        by_pixels.setdefault(hashlib.sha256(drawing.picture.tobytes()).hexdigest(), drawing)
    return list(by_pixels.values())


def group_drawings(drawings: Sequence[Drawing]) -> tuple[DisjointSets, set[int]]:
    """The groups of drawings, and those that nearly equal an earlier one and are no rows.

    Args:
        drawings: of different pixels.
    """
    pictures = [drawing.picture for drawing in drawings]
    fine, coarse = grey_patterns(pictures, 32), grey_patterns(pictures, 16)
    colours = colour_patterns(pictures, 8)
    norms = (colours**2).sum(1)
    sets, repeated = DisjointSets(len(drawings)), set()
    for row, drawing in enumerate(drawings):
        correlation, coarse_correlation = fine @ fine[row], coarse @ coarse[row]
        squares = norms[row] + norms - 2 * colours @ colours[row]
        difference = np.sqrt(np.maximum(squares, 0) / colours.shape[1])
        if row not in repeated:
            is_same = (correlation > SAME) & (difference < SAME_COLOURS)
            repeated |= {int(other) for other in np.flatnonzero(is_same) if other > row}
        is_alike = (correlation > ALIKE) | ((coarse_correlation > ALIKE_COARSE) & (correlation > ALIKE_FINE))
        for other in np.flatnonzero(is_alike):
            if other > row and is_variant(drawing, drawings[other]):
                sets.unite(row, int(other))
    for row, drawing in enumerate(drawings):
        for key in series_of(drawing):
            sets.unite_equal(row, key)
    return sets, repeated


def is_variant(drawing: Drawing, other: Drawing) -> bool:
    """Whether drawings that look alike are variants: of one class, and not stars of different folders."""
    is_star = "/stars/" in str(drawing.path)
    return drawing.label == other.label and not (is_star and drawing.path.parent != other.path.parent)


def series_of(drawing: Drawing) -> list[tuple[str, ...]]:
    """What a drawing has in common with others of its group."""
    parent = str(drawing.path.parent)
    series: list[tuple[str, ...]] = [("file", parent, letters(drawing.path.stem), drawing.creator)]
    if len(drawing.title) >= 3:
        series.append(("title", drawing.title, drawing.creator, drawing.label))
    # Icon themes and decks of cards; each flag is a drawing of its own.
    if len(drawing.path.parts) >= 4 and "flags" not in str(drawing.path):
        series.append(("folder", *drawing.path.parts[:3]))
    return series


def at_most(rows: list[int], number: int, generator: random.Random) -> list[int]:
    """The rows, or as many as are wanted, drawn."""
    return generator.sample(rows, number) if len(rows) > number else rows


def build(svg: Path, png: Path, output: Path, report: Callable[[str], None] = print) -> None:
    """Write train.parquet, validation.parquet and test.parquet.

    Args:
        svg: the folder of SVG files, whose metadata are read.
        png: the folder of PNG files.
        output: where to write.
        report: takes what is said of the rows.

    Raises:
        ValueError: there are no drawings, or no folder has enough of them.
    """
    drawings = without_equal(read_drawings(svg, png, report))
    sets, repeated = group_drawings(drawings)
    generator = random.Random(SEED)  # noqa: S311
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row in range(len(drawings)):
        if row not in repeated:
            members[sets.find(row)].append(row)
    kept = [row for rows in members.values() for row in at_most(rows, MAX_PER_GROUP, generator)]
    of_class: defaultdict[str, list[int]] = defaultdict(list)
    for row in kept:
        of_class[drawings[row].label].append(row)
    names = sorted(name for name, rows in of_class.items() if len(rows) >= MIN_PER_CLASS)
    if not names:
        raise ValueError(f"no folder of {png} has {MIN_PER_CLASS} usable drawings")
    chosen = [
        row
        for name in names
        for row in at_most(of_class[name], MAX_OF_CLASS.get(name, MAX_PER_CLASS), generator)
    ]
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in chosen:
        groups[sets.find(row)].append(row)
    labels = {row: drawings[row].label for row in chosen}
    split_of = split_groups(groups, labels, SPLITS, generator, MAX_GROUP_OF_EVALUATION)
    numbers = {group: number for number, group in enumerate(sorted(groups))}
    splits = {}
    for name in SPLITS:
        rows = [row for row in chosen if split_of[sets.find(row)] == name]
        generator.shuffle(rows)
        splits[name] = [
            {
                "image": {
                    "bytes": jpeg(drawings[row].picture),
                    "path": str(drawings[row].path.with_suffix(".jpg")),
                },
                "text": drawings[row].text,
                "label": names.index(drawings[row].label),
                "group": numbers[sets.find(row)],
            }
            for row in rows
        ]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "group": datasets.Value("int32"),
        }
    )
    write_splits(splits, features, output, row_group_size=500)
    report(count_rows(splits, names, "group"))


def main(argv: Sequence[str]) -> None:
    """Build what the command line says; what the user can set right ends in one sentence."""
    given = read_arguments(argv, __doc__, "folder with the two .deb files, or with their unpacked usr/")
    try:
        if not given.without_embeddings:
            check_encoders(("image", "text"))
        with unpacked(PACKAGES, given.packages) as (svg, png):
            build(svg, png, given.output)
        if not given.without_embeddings:
            write_embeddings(given.output, ("image", "text"), group="group", image_size=160)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
