"""The data of clipart and stamps, and the encoders, built from made-up packages by the rules of the real ones."""

import hashlib
import io
import random
import shlex
import struct
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from PIL import Image, ImageDraw

# The benchmarks are scripts, and the recipe is imported from the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

import build_clipart
import build_encoders
import build_stamps
from natural_data import embeddings
from natural_data.ctranslate2 import read_tensors
from natural_data.debian import DebianPackage, unpacked
from natural_data.groups import DisjointSets, split_groups
from natural_data.pictures import framed, on_white

from hf_recipes.configuration import parse_arguments

SPLITS = ("train", "validation", "test")
SVG = """<svg><metadata><rdf:RDF>
<dc:title>{title}</dc:title><dc:creator><cc:Agent><dc:title>{creator}</dc:title></cc:Agent></dc:creator>
<rdf:Bag>{keywords}</rdf:Bag><cc:license rdf:resource="http://web.resource.org/cc/{licence}"/>
</rdf:RDF></metadata></svg>"""


def draw(seed, size=48):
    """A picture of a few random boxes on transparent ground."""
    rng = random.Random(seed)  # noqa: S311
    picture = Image.new("RGBA", (size, size))
    canvas = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = rng.randrange(size - 6), rng.randrange(size - 6)
        color = (rng.randrange(200), rng.randrange(200), rng.randrange(200), 255)
        canvas.rectangle((x, y, x + rng.randrange(4, 16), y + rng.randrange(4, 16)), fill=color)
    return picture


def rows_of(folder):
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in SPLITS}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        content.save(path)
    else:
        path.write_text(content)


# --- packages


def debian_package(file, members):
    """A package file with the members, name to bytes or TarInfo; returns its sha256."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as data:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                data.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                data.addfile(info, io.BytesIO(content))

    def member(name, content):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    parts = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": archive.getvalue()}
    file.write_bytes(b"!<arch>\n" + b"".join(member(name, content) for name, content in parts.items()))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_package_is_checked_and_unpacked(tmp_path):
    sha256 = debian_package(tmp_path / "a_1%3a2_all.deb", {"./usr/share/a/x.txt": b"hello"})
    package = DebianPackage("a", "1:2", sha256, "usr/share/a")
    with unpacked([package], tmp_path) as (folder,):
        assert (folder / "x.txt").read_text() == "hello"
    assert not folder.exists()
    # A copy that is unpacked already is read where it is.
    (tmp_path / "copy" / "usr" / "share" / "a").mkdir(parents=True)
    with unpacked([package], tmp_path / "copy") as (folder,):
        assert folder == tmp_path / "copy" / "usr" / "share" / "a"
    other = DebianPackage("a", "1:2", "0" * 64, "usr/share/a")
    with pytest.raises(ValueError, match="is pinned; fetch it again with 'apt-get download a=1:2'"):
        other.find(tmp_path)
    with pytest.raises(ValueError, match=r"has no file b_\*\.deb; fetch it there"):
        DebianPackage("b", "1", sha256, "usr").find(tmp_path)
    with (
        pytest.raises(ValueError, match="has no folder usr/share/b"),
        unpacked([DebianPackage("a", "1:2", sha256, "usr/share/b")], tmp_path),
    ):
        pass


def test_nothing_is_written_outside_of_the_folder(tmp_path):
    link = tarfile.TarInfo("./usr/out")
    link.type, link.linkname = tarfile.SYMTYPE, "../../../secret"
    for members in ({"../outside.txt": b"x"}, {"./usr/out": link}):
        sha256 = debian_package(tmp_path / "a_1_all.deb", members)
        with (
            pytest.raises(ValueError, match="is no Debian package of files"),
            unpacked([DebianPackage("a", "1", sha256, "usr")], tmp_path),
        ):
            pass
    assert not (tmp_path.parent / "outside.txt").exists()
    (tmp_path / "a_1_all.deb").write_bytes(b"<html>not found</html>")
    sha256 = hashlib.sha256(b"<html>not found</html>").hexdigest()
    with (
        pytest.raises(ValueError, match="is no Debian package"),
        unpacked([DebianPackage("a", "1", sha256, "usr")], tmp_path),
    ):
        pass


# --- groups and pictures


def test_groups_stay_whole_and_classes_have_their_shares():
    sets = DisjointSets(6)
    sets.unite(4, 2)
    sets.unite_equal(5, "key")
    sets.unite_equal(4, "key")
    assert [sets.find(row) for row in range(6)] == [0, 1, 2, 3, 2, 2]
    # A class of 40 in groups of 2, and one of 50 whose groups of 30 and 5 have rows that are learned from.
    members = {row: [row, row + 1] for row in range(0, 40, 2)}
    members |= {
        100: list(range(100, 130)),
        **{start: list(range(start, start + 5)) for start in range(130, 150, 5)},
    }
    labels = {row: "small" if row < 100 else "large" for rows in members.values() for row in rows}
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    generator = random.Random(0)  # noqa: S311
    split_of = split_groups(members, labels, shares, generator, max_size=24)
    counts = Counter((labels[row], split_of[group]) for group, rows in members.items() for row in rows)
    assert [counts["small", name] for name in SPLITS] == [24, 8, 8]
    assert [counts["large", name] for name in SPLITS] == [30, 10, 10]
    assert split_groups({0: [0, 1]}, {0: "a", 1: "a"}, shares, generator) == {0: "train"}


def test_a_picture_is_framed_on_white():
    picture = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (10, 20, 30, 30))
    canvas = np.asarray(framed(on_white(picture), 40))
    assert canvas.shape == (128, 128, 3)
    # 20 x 10 pixels of ink become 120 x 60, in the middle; hidden colours do not show.
    rows, columns = np.nonzero(canvas[..., 0] < 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (34, 93, 4, 123)
    assert (canvas[:30] == 255).all()
    assert framed(on_white(picture), 201) is None


# --- clipart


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Two folders of drawings that are classes, and what is left out."""
    root = tmp_path_factory.mktemp("library")

    def add(path, seed, title, creator="Ada", licence="PublicDomain", keywords=(), picture=None):
        items = "".join(f"<rdf:li>{each}</rdf:li>" for each in keywords)
        content = SVG.format(title=title, creator=creator, licence=licence, keywords=items)
        write(root / "svg" / f"{path}.svg", content)
        write(root / "png" / f"{path}.png", picture or draw(seed))

    words = ["ash", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kid", "lynx"]
    for number, word in enumerate(words):
        add(
            f"animals/{word}",
            number,
            f"{word} animal",
            f"author {word}",
            keywords=["animal", "Drawn", "hash(1)"],
        )
        add(f"plants/{word}", 100 + number, f"leaf of {word}", f"author {word}")
    # Names that differ in digits.
    for number in range(4):
        add(f"animals/owl_{number}", 200 + number, f"{words[number]}, {words[-number - 1]} and owl")
    # Deep folders are series.
    for number, word in enumerate(words[:4]):
        add(f"plants/sets/tree/{word}", 300 + number, f"{word} tree", f"author {number}")
    add("animals/again", 0, "another ash", "author again")
    add("animals/sold", 400, "sold", licence="Restricted")
    add("plants/clip", 401, "plants clipart")
    add("plants/blank", 402, "blank", picture=Image.new("RGBA", (40, 40)))
    add("plants/nude", 403, "nude")
    add("logos/one", 404, "one")
    add("tools/saw", 405, "saw")
    write(
        root / "svg" / "plants" / "lost.svg",
        SVG.format(title="x", creator="", licence="PublicDomain", keywords=""),
    )
    write(root / "png" / "plants" / "broken.png", "no picture")
    write(root / "svg" / "plants" / "broken.svg", (root / "svg/plants/ash.svg").read_text())
    return root


def test_clipart_is_built_by_the_rules(library, tmp_path, monkeypatch):
    monkeypatch.setattr(build_clipart, "MIN_PER_CLASS", 5)
    said = []
    build_clipart.build(library / "svg", library / "png", tmp_path / "a", said.append)
    reasons = (
        "no metadata or licence",
        "no text left",
        "empty picture",
        "not for everyone",
        "no picture",
        "unreadable",
    )
    assert all(f"'{reason}': 1" in said[0] for reason in reasons), said[0]
    splits = rows_of(tmp_path / "a")
    rows = [row for split in splits.values() for row in split]
    # 12 + 4 animals, 12 + 4 plants; the second drawing of an ash is left out, tools have too few.
    assert Counter(row["label"] for row in rows) == {0: 16, 1: 16}
    assert embeddings.class_names(tmp_path / "a") == ["animals", "plants"]
    texts = {row["image"]["path"]: row["text"] for row in rows}
    assert texts["animals/bee.jpg"] == "bee; drawn"
    assert texts["plants/fox.jpg"] == "leaf of fox"
    assert "animals/again.jpg" not in texts or "animals/ash.jpg" not in texts
    groups = {row["image"]["path"]: row["group"] for row in rows}
    assert len({groups[f"animals/owl_{number}.jpg"] for number in range(4)}) == 1
    assert len({groups[f"plants/sets/tree/{word}.jpg"] for word in ("ash", "bee", "cat", "dog")}) == 1
    assert groups["plants/ash.jpg"] != groups["animals/bee.jpg"]
    of_split = [{row["group"] for row in split} for split in splits.values()]
    assert len(set.union(*of_split)) == sum(map(len, of_split))
    assert all(len(split) for split in splits.values())
    picture = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    assert (picture.size, picture.mode, picture.format) == ((128, 128), "RGB", "JPEG")
    build_clipart.build(library / "svg", library / "png", tmp_path / "b", said.append)
    for name in SPLITS:
        assert (tmp_path / "a" / f"{name}.parquet").read_bytes() == (
            tmp_path / "b" / f"{name}.parquet"
        ).read_bytes()


def test_titles_lose_the_words_of_folders():
    svg = SVG.format(
        title="Flag &amp;amp; Signs by Ada",
        creator="Ada",
        licence="PublicDomain",
        keywords="<rdf:li>signs and symbols</rdf:li><rdf:li>Red_Flag</rdf:li><rdf:li>ada</rdf:li>",
    )
    assert build_clipart.read_metadata(svg) == ("Flag & by; red flag", "flag amp amp signs by ada", "ada")


def test_wrong_sources_end_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ECSFUSION_MODELS", str(tmp_path))
    with pytest.raises(SystemExit, match="efficientnet-lite0 is absent"):
        build_clipart.main(["--packages", str(tmp_path), "--output", str(tmp_path / "x")])
    with pytest.raises(
        SystemExit, match=r"has no file openclipart-svg_\*\.deb; fetch it there with 'apt-get download"
    ):
        build_clipart.main(
            ["--packages", str(tmp_path), "--output", str(tmp_path / "x"), "--without-embeddings"]
        )
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="no program rsvg-convert; install librsvg2-bin"):
        build_stamps.main(["--packages", str(tmp_path), "--output", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
    for folder in ("svg", "png"):
        (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="has no usable drawings"):
        build_clipart.build(tmp_path / "svg", tmp_path / "png", tmp_path / "x")
    with pytest.raises(ValueError, match="has no usable stamps"):
        build_stamps.build(tmp_path / "svg", tmp_path / "x")


# --- stamps


def tone(seconds, silence=0.0, rate=22_050):
    time = np.arange(int(seconds * rate)) / rate
    quiet = np.zeros(int(silence * rate), np.float32)
    return np.concatenate([quiet, 0.3 * np.sin(2 * np.pi * 440 * time), quiet]).astype(np.float32)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    """Two classes of stamps with voices in up to eight languages, and what is left out."""
    root = tmp_path_factory.mktemp("stamps")

    def add(path, seed, text, languages=("", "_fr"), ending="png", seconds=0.5):
        file = root / f"{path}.{ending}"
        write(file, draw(seed))
        if text is not None:
            write(file.with_suffix(".txt"), text)
        for language in languages:
            soundfile.write(file.with_name(f"{file.stem}_desc{language}.ogg"), tone(seconds), 22_050)

    for number in range(6):
        add(f"food/fruit/f{number}", number, f"A food, number {number}.\nfr.utf8=Un fruit.")
        add(f"animals/birds/b{number}", 50 + number, f"A bird called robin {number}")
    add(
        "food/many",
        10,
        "Many voices",
        tuple(f"_{name}" for name in ("fr", "bg", "ro", "ru", "ca", "es", "pt_BR")),
    )
    add("food/same", 11, "a FOOD, number 0!", ("",))
    add("food/mirrored_mirror", 12, "Mirrored")
    add("food/foreign", 13, "fr.utf8=Un fruit.")
    add("food/mute", 14, "Mute", ())
    add("space/star", 15, "Star")
    add("people/child", 16, "Child")
    add("food/quiet", 17, "Quiet")
    soundfile.write(root / "food" / "quiet_desc_fr.ogg", np.zeros(20_000, np.float32), 22_050)
    return root


def test_stamps_are_built_by_the_rules(stamps, tmp_path, monkeypatch):
    monkeypatch.setattr(build_stamps, "MIN_PER_CLASS", 2)
    said = []
    build_stamps.build(stamps, tmp_path / "a", said.append)
    reasons = ("no English text", "no spoken description", "category of few pictures")
    assert all(f"'{reason}': 1" in said[0] for reason in reasons), said[0]
    splits = rows_of(tmp_path / "a")
    rows = [row for split in splits.values() for row in split]
    assert embeddings.class_names(tmp_path / "a") == ["birds", "food"]
    pictures = Counter(row["picture"] for row in rows)
    # English and French of each; six of seven voices; one that is silent has no row.
    assert pictures == {
        **{f"food/fruit/f{number}": 2 for number in range(6)},
        **{f"animals/birds/b{number}": 2 for number in range(6)},
        "food/many": 6,
        "food/same": 1,
        "food/quiet": 1,
    }
    texts = {row["picture"]: row["text"] for row in rows}
    assert texts["food/fruit/f3"] == "A , number 3."
    assert texts["animals/birds/b4"] == "A called robin 4"
    split_of = {row["picture"]: name for name, split in splits.items() for row in split}
    assert all({split_of[row["picture"]]} == {name} for name, split in splits.items() for row in split)
    # Of equal text.
    assert split_of["food/same"] == split_of["food/fruit/f0"]
    for row in rows[:3]:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert rate == 16_000
        assert len(samples) / rate == pytest.approx(0.5, abs=0.05)
    build_stamps.build(stamps, tmp_path / "b", said.append)
    assert rows_of(tmp_path / "b") == splits


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (tone(1.0, silence=1.0), 1.15),
        (tone(5.0), 3.0),
        (tone(0.05), None),
        (np.zeros(22_050, np.float32), None),
        (np.zeros(0, np.float32), None),
    ],
)
def test_sounds_are_trimmed(samples, expected):
    found = build_stamps.trimmed(samples, 22_050)
    if expected is None:
        assert found is None
    else:
        assert len(found) / 16_000 == pytest.approx(expected, abs=0.02)
        assert np.abs(found).max() == pytest.approx(0.9, abs=0.05)
        assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("animals/birds/owl.png", "birds"),
        ("animals/marsupials/koala.png", "mammals"),
        ("animals/frog.png", "other_animals"),
        ("symbols/alphabets/a.png", "letters"),
        ("symbols/coin.png", "symbols"),
        ("sports/ball.png", "hobbies_and_sports"),
        ("medical/pill.png", None),
    ],
)
def test_classes_are_folders(path, label):
    assert build_stamps.label_of(Path(path)) == label


# --- embeddings and encoders


def test_equal_values_are_embedded_once():
    seen = []

    def embed(values):
        seen.append(list(values))
        return torch.tensor([[float(len(value)), 0.5] for value in values])

    found = embeddings.embed_values(["a", "bbb", "a", "cc", "bbb"], 2, embed)
    assert seen == [["a", "bbb"], ["cc"]]
    assert found.dtype == np.float16
    assert found[:, 0].tolist() == [1, 3, 1, 2, 3]


def test_embeddings_are_those_of_the_rows(library, tmp_path, monkeypatch):
    monkeypatch.setattr(build_clipart, "MIN_PER_CLASS", 5)
    build_clipart.build(library / "svg", library / "png", tmp_path, lambda said: None)
    # Encoders that count: what a value is can be read from its embedding.
    monkeypatch.setattr(
        embeddings,
        "image_embedder",
        lambda size: lambda files: torch.tensor([[float(len(f) // size)] for f in files]),
    )
    monkeypatch.setattr(
        embeddings,
        "text_embedder",
        lambda: lambda texts: torch.tensor([[float(len(text))] for text in texts]),
    )
    embeddings.write_embeddings(tmp_path, ("image", "text"), group="group", image_size=10)
    rows = [row for split in rows_of(tmp_path).values() for row in split]
    with np.load(tmp_path / "embeddings.npz", allow_pickle=False) as stored:
        assert stored["text"][:, 0].tolist() == [len(row["text"]) for row in rows]
        assert stored["image"][:, 0].tolist() == [len(row["image"]["bytes"]) // 10 for row in rows]
        assert stored["label"].tolist() == [row["label"] for row in rows]
        assert Counter(stored["split"].tolist()) == {
            name: len(split) for name, split in rows_of(tmp_path).items()
        }
        same = np.array([row["group"] for row in rows])
        assert np.array_equal(same[:, None] == same, stored["group"][:, None] == stored["group"])
        assert stored["names"].tolist() == ["animals", "plants"]


def test_tensors_of_ctranslate2():
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    tensor = (
        text("a/weight")
        + struct.pack("<B2I", 2, 2, 3)
        + struct.pack("<BI", 4, values.nbytes)
        + values.tobytes()
    )
    data = struct.pack("<I", 6) + text("Whisper") + struct.pack("<2I", 3, 1) + tensor + struct.pack("<I", 0)
    found = read_tensors(data)
    assert list(found) == ["a/weight"]
    assert np.array_equal(found["a/weight"], values)
    with pytest.raises(ValueError, match="has version 7 of the format; only 6"):
        read_tensors(struct.pack("<I", 7) + data[4:])
    for end in (3, 20, len(data) - 10):
        with pytest.raises(ValueError, match="is no model of CTranslate2, or is cut"):
            read_tensors(data[:end])


def test_weights_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"do not fit the model: embeddings\.convolution\.weight"):
        build_encoders.build_efficientnet({})


def test_queries_keys_and_values_are_taken_apart():
    rng = np.random.default_rng(0)
    shapes = {
        **{f"encoder/conv{number}/{what}": (2,) for number in (1, 2) for what in ("weight", "bias")},
        **{f"encoder/layer_norm/{what}": (2,) for what in ("gamma", "beta")},
        "encoder/position_encodings/encodings": (8, 2),
        "encoder/layer_0/self_attention/linear_0/weight": (6, 2),
        "encoder/layer_0/self_attention/linear_0/bias": (6,),
        **{
            f"encoder/layer_0/{part}/{what}": (2,)
            for part in ("self_attention/linear_1", "ffn/linear_0", "ffn/linear_1")
            for what in ("weight", "bias")
        },
        **{
            f"encoder/layer_0/{part}/layer_norm/{what}": (2,)
            for part in ("self_attention", "ffn")
            for what in ("gamma", "beta")
        },
    }
    stored = {name: rng.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    found = build_encoders.rename_whisper(stored, num_layers=1, num_positions=3)
    fused = stored["encoder/layer_0/self_attention/linear_0/weight"]
    for number, name in enumerate("qkv"):
        weight = found[f"encoder.layers.0.self_attn.{name}_proj.weight"].numpy()
        assert np.array_equal(weight, fused[2 * number : 2 * number + 2])
    assert "encoder.layers.0.self_attn.k_proj.bias" not in found
    assert found["encoder.embed_positions.weight"].shape == (3, 2)
    assert all(values.dtype == torch.float32 for values in found.values())


def test_the_encoders_are_printed_as_options_that_the_recipe_reads(tmp_path, monkeypatch):
    package = tmp_path / "site" / "a package"
    monkeypatch.setattr(build_encoders, "text_folder", lambda: package)
    options = build_encoders.recipe_options(tmp_path / "models")
    argv = ["--config", "stamps", "--data_dir", "data", *shlex.split(options)]
    encoders = {name: each.encoder for name, each in parse_arguments(argv)[0].modalities.items()}
    assert encoders == {
        "image": str(tmp_path / "models" / "efficientnet-lite0"),
        "audio": str(tmp_path / "models" / "whisper-tiny-en-encoder-3s"),
        "text": str(package),
    }
