"""The recipe takes data as people have it: tables with paths of media, and the layouts of `datasets`."""

import json
import shutil

import datasets
import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image
from test_processing import make_tokenizer
from transformers import ViTImageProcessor, Wav2Vec2FeatureExtractor

from ecsfusion import FusionProcessor
from hf_recipes.configuration import parse_arguments
from hf_recipes.data import ProcessedSplit, folder_of, load_splits
from hf_recipes.folders import tables_of

ROWS = 6
ENCODERS = {"image": "some/vit", "audio": "some/wav2vec2", "text": "some/bert"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """Of images, sounds and text, without their encoders."""
    size = {"height": 4, "width": 4}
    return FusionProcessor(
        {
            "image": ViTImageProcessor(size=size, image_mean=[0.0], image_std=[1.0], do_convert_rgb=False),
            "audio": Wav2Vec2FeatureExtractor(do_normalize=False),
            "text": make_tokenizer(tmp_path_factory.mktemp("words")),
        }
    )


def make_media(folder, first=0):
    """Pictures whose grey is the number of their row, and sounds of as many samples; in folders of their own."""
    for row in range(first, first + ROWS):
        for kind, write in (("images", picture), ("sounds", sound)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write(folder / kind, row)


def picture(folder, row):
    Image.fromarray(np.full((4, 4), 10 * row, np.uint8)).save(folder / f"{row}.png")


def sound(folder, row):
    soundfile.write(folder / f"{row}.wav", np.full(100 + row, 0.01), 16_000)


def rows_of(first=0, images="images/{}.png", sounds="sounds/{}.wav"):
    texts = ["NA", "007", "1e5", "null", "one, two", "3"]
    return [
        {
            "image": images.format(row),
            "audio": sounds.format(row),
            "text": texts[row - first],
            "label": ("pie", "NA")[row % 2],
        }
        for row in range(first, first + ROWS)
    ]


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [[*rows[0]], *([row[name] for name in rows[0]] for row in rows)]
        quoted = [[f'"{cell}"' if "," in str(cell) else str(cell) for cell in line] for line in lines]
        path.write_text("\n".join(map(separator.join, quoted)), encoding="utf-8")


def load(tmp_path, data_dir, *argv, modalities=ENCODERS):
    config = {"modalities": {name: {"encoder": encoder} for name, encoder in modalities.items()}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["--config", tmp_path / "config.yaml", "--data_dir", data_dir, "--output_dir", tmp_path, *argv]
    recipe = parse_arguments([*map(str, words)])[0]
    return recipe, load_splits(recipe)


def check_rows(recipe, splits, processor, numbers):
    """Every row of every split has the picture, the sound and the text of its number."""
    used = {name: processor.processors[name] for name in recipe.modalities}
    for name, first in numbers.items():
        ready = ProcessedSplit(splits[name], FusionProcessor(used), name, folder_of(recipe), recipe.media_dir)
        assert len(ready) == ROWS
        for index in range(ROWS):
            row, number = ready[index], first + index
            assert row["labels"] == splits["train"].features["label"].names.index(("pie", "NA")[number % 2])
            if "image" in used:
                assert row["image"]["pixel_values"].max() * 255 == pytest.approx(10 * number, abs=0.01)
            if "audio" in used:
                assert row["audio"]["input_values"].shape == (100 + number,)
            if "text" in used:
                assert splits[name][index]["text"] == rows_of(first)[index]["text"]


ALL = {"train": 0, "validation": ROWS, "test": 2 * ROWS}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_per_split_with_paths_beside_it(tmp_path, processor, suffix):
    folder = tmp_path / "data"
    for split, first in {"train": 0, "valid": ROWS, "test_titles": 2 * ROWS}.items():
        make_media(folder, first)
        write_table(folder / f"{split}.{suffix}", rows_of(first))
    (folder / "notes.csv").write_text("who,what\nme,this")
    recipe, splits = load(tmp_path, folder)
    check_rows(recipe, splits, processor, ALL)
    assert splits["test"][3]["place"] == f"row 3 of test_titles.{suffix}"


def test_tables_in_folders_of_their_own_with_paths_beside_each(tmp_path, processor):
    """The same names in each folder are other pictures."""
    folder = tmp_path / "data"
    for split, first in ALL.items():
        make_media(folder / split, first)
        for kind, suffix in (("images", "png"), ("sounds", "wav")):
            for row in range(first, first + ROWS):
                media = folder / split / kind
                (media / f"{row}.{suffix}").rename(media / f"part {row - first}.{suffix}")
        rows = rows_of(first, images="images/part {}.png", sounds="sounds/part {}.wav")
        for row in rows:
            for name in ("image", "audio"):
                start, number = row[name].split("part ")
                row[name] = f"{start}part {int(number.split('.')[0]) - first}.{number.split('.')[1]}"
        write_table(folder / split / "rows.csv", rows)
    recipe, splits = load(tmp_path, folder)
    check_rows(recipe, splits, processor, ALL)
    assert splits["test"][3]["place"] == "row 3 of test/rows.csv"


def test_paths_below_a_folder_that_is_named_and_no_others(tmp_path, processor):
    make_media(tmp_path / "media")
    rows = rows_of(sounds=str(tmp_path / "media" / "sounds" / "{}.wav"))
    for split in ALL:
        write_table(tmp_path / "data" / f"{split}.csv", rows)
    recipe, splits = load(tmp_path, tmp_path / "data", "--media_dir", tmp_path / "media")
    check_rows(recipe, splits, processor, dict.fromkeys(ALL, 0))
    recipe, splits = load(tmp_path, tmp_path / "data")
    with pytest.raises(
        ValueError, match=r"audio, row 0: .*leads out of .* by media_dir \(row 0 of train.csv\)"
    ):
        check_rows(recipe, splits, processor, ALL)
    (tmp_path / "secret.png").write_bytes(b"")
    rows[2]["image"] = "../secret.png"
    write_table(tmp_path / "data" / "train.csv", rows)
    recipe, splits = load(tmp_path, tmp_path / "data", "--media_dir", tmp_path / "media")
    with pytest.raises(
        ValueError, match=r"image, row 2: '\.\./secret\.png' leads out of .*\(row 2 of train.csv\)"
    ):
        check_rows(recipe, splits, processor, ALL)
    with pytest.raises(ValueError, match="there is no folder 'absent'; give media_dir"):
        load(tmp_path, tmp_path / "data", "--media_dir", "absent")


@pytest.mark.parametrize(("suffix", "per_split"), [("csv", True), ("jsonl", False)])
def test_the_layouts_imagefolder_and_audiofolder(tmp_path, processor, suffix, per_split):
    """Pictures beside a table `metadata`, here with sounds as well, and without one in a folder per class."""
    folder = tmp_path / "data"
    for split, first in ALL.items():
        make_media(folder / split, first)
        rows = [
            {f"{k}_file_name" if k == "audio" else k: v for k, v in row.items()} for row in rows_of(first)
        ]
        for row in rows:
            row["file_name"] = row.pop("image")
        write_table(folder / split / f"metadata.{suffix}", rows)
    recipe, splits = load(tmp_path, folder)
    check_rows(recipe, splits, processor, ALL)


def test_a_folder_per_class(tmp_path, processor):
    for split in ALL:
        for row in range(ROWS):
            place = tmp_path / "data" / split / ("pie", "waffle")[row % 2]
            place.mkdir(parents=True, exist_ok=True)
            picture(place, row)
    recipe, splits = load(tmp_path, tmp_path / "data", modalities={"image": ENCODERS["image"]})
    assert splits["train"].features["label"].names == ["pie", "waffle"]
    used = FusionProcessor({"image": processor.processors["image"]})
    ready = ProcessedSplit(splits["test"], used, "test", folder_of(recipe))
    greys = [float(ready[index]["image"]["pixel_values"].max() * 255) for index in range(ROWS)]
    assert sorted(greys) == pytest.approx([0, 10, 20, 30, 40, 50], abs=0.01)
    assert [round(grey / 10) % 2 for grey in greys] == splits["test"]["label"][:]


def test_one_table_and_what_was_saved_to_disk(tmp_path, processor):
    make_media(tmp_path / "data")
    write_table(tmp_path / "data" / "all.csv", rows_of() * 10)
    recipe, splits = load(tmp_path, tmp_path / "data" / "all.csv")
    assert {name: len(split) for name, split in splits.items()} == {"train": 48, "validation": 6, "test": 6}
    used = ProcessedSplit(splits["test"], processor, "test", folder_of(recipe))
    assert all(used[index]["image"]["pixel_values"].shape == (1, 4, 4) for index in range(6))
    datasets.Dataset.from_list(rows_of() * 10).save_to_disk(tmp_path / "data" / "saved")
    for kind, suffix in (("images", "png"), ("sounds", "wav")):
        (tmp_path / "data" / "saved" / kind).mkdir()
        for row in range(ROWS):
            name = f"{kind}/{row}.{suffix}"
            (tmp_path / "data" / name).rename(tmp_path / "data" / "saved" / name)
    recipe, splits = load(tmp_path, tmp_path / "data" / "saved")
    used = ProcessedSplit(splits["test"], processor, "test", folder_of(recipe))
    assert all(used[index]["image"]["pixel_values"].shape == (1, 4, 4) for index in range(6))


def test_a_gap_among_whole_numbers_is_named_and_not_its_neighbours(tmp_path):
    rows = [{"text": "a", "label": row % 2} for row in range(ROWS)]
    rows[4]["label"] = ""
    write_table(tmp_path / "data" / "train.csv", rows)
    with pytest.raises(ValueError, match="row 4: the label is None; give the class"):
        load(tmp_path, tmp_path / "data", modalities={"text": "some/bert"})
    rows[4]["label"] = 1
    write_table(tmp_path / "data" / "train.csv", [dict(row) for row in rows] * 5)
    _, splits = load(tmp_path, tmp_path / "data", modalities={"text": "some/bert"})
    assert splits["train"].features["label"].names == ["0", "1"]


def test_a_folder_of_several_data_sets_is_named(tmp_path):
    for folder, header in (("drawings", "image,text,label"), ("stamps", "image,audio,label")):
        (tmp_path / folder).mkdir()
        for split in ("train", "test"):
            (tmp_path / folder / f"{split}.csv").write_text(f"{header}\na,b,c\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"have different columns.*give one folder: drawings, stamps"):
        tables_of(tmp_path, (), "label")
    assert set(tables_of(tmp_path / "stamps", (), "label")) == {"train", "test"}
    # Parts of one table may lie in several folders.
    (tmp_path / "stamps" / "train").mkdir()
    (tmp_path / "stamps" / "train" / "more.csv").write_text("image,audio,label\nd,e,f\n", encoding="utf-8")
    assert len(tables_of(tmp_path / "stamps", (), "label")["train"]) == 2


def test_tables_of_several_kinds_are_named(tmp_path):
    write_table(tmp_path / "data" / "train.csv", rows_of())
    write_table(tmp_path / "data" / "test.jsonl", rows_of())
    with pytest.raises(ValueError, match=r"tables of several kinds \(test.jsonl, train.csv\); give one kind"):
        load(tmp_path, tmp_path / "data")


def test_a_table_that_is_left_out_is_said_where_something_is_missing(tmp_path, caplog):
    """Beside pictures a table without the label is taken for a description; often it is the table that was meant."""
    folder = tmp_path / "data"
    make_media(folder)
    rows = rows_of()
    write_table(folder / "train.csv", rows)
    write_table(folder / "test.csv", [{key: row[key] for key in row if key != "label"} for row in rows])
    load(tmp_path, folder)
    assert (
        "take its place; for want of a column 'label' there is left out test.csv, which has the"
        in caplog.text
    )

    (folder / "test.csv").unlink()
    shutil.rmtree(folder / "sounds")
    # Where most files of the split are pictures, `datasets` takes the folder for one of pictures.
    (folder / "images").rename(folder / "train")
    (folder / "train.csv").write_text((folder / "train.csv").read_text().replace(",", ";"))
    with pytest.raises(
        ValueError, match=r"no column .* in the config; for want of .* left out train.csv, which has .*;label"
    ):
        load(tmp_path, folder)
    (folder / "train.csv").rename(folder / "train.xlsx")
    with pytest.raises(ValueError, match=r"train.xlsx, which is none of \.csv"):
        load(tmp_path, folder)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("images\\0.png", r"images\\\\0.png'; with / in place of"),
        ("https://example.com/0.png", "there is no file 'https://example.com/0.png'; addresses are not read"),
        (
            "data:image/png;base64," + "A" * 10_000,
            r"'data:image/png;base64,A*\.\.\.A*'; addresses are not read",
        ),
    ],
)
def test_a_path_that_is_none_says_what_it_is(tmp_path, processor, written, said):
    folder = tmp_path / "data"
    make_media(folder)
    write_table(folder / "train.csv", [{**row, "image": written} for row in rows_of()] * 3)
    recipe, splits = load(tmp_path, folder, modalities={"image": "some/vit"})
    used = FusionProcessor({"image": processor.processors["image"]})
    rows = ProcessedSplit(splits["train"], used, "train", folder_of(recipe), recipe.media_dir)
    with pytest.raises(ValueError, match=said) as raised:
        rows[0]
    assert len(str(raised.value)) < 1000
