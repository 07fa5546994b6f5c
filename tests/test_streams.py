"""Training rows from shards of Parquet and WebDataset: by two processes, killed and resumed, and in the recipe."""

from __future__ import annotations

import json
import logging
import tarfile
from itertools import chain
from pathlib import Path

import datasets
import pytest
import stream_ranks
import torch
import yaml
from ranks import ends, start_ranks

from ecsfusion.processing import FusionCollator
from ecsfusion.training.even_batches import warn_of_uneven_shards
from hf_recipes import digits, run
from hf_recipes.configuration import DEFAULT_CONFIG, parse_arguments
from hf_recipes.data import load_splits, prepare_splits
from hf_recipes.encoders import build_encoders, build_processor
from hf_recipes.streams import check_streaming

pytestmark = pytest.mark.usefixtures("quick_probes")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, quick_probes) -> list[dict]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("streams")
    files = {
        name: stream_ranks.shards(folder, sizes, kind)
        for name, sizes, kind in (
            ("even", (8, 8), "parquet"),
            ("tar", (32, 32), "tar"),
            ("uneven", (12, 6, 2, 4), "parquet"),
            ("one", (10,), "parquet"),
        )
    }
    assert ends(start_ranks(lambda: stream_ranks.main(folder, files), 2)) == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def numbers(by_two: list[dict], name: str) -> list[list[int]]:
    """The rows of a pass, by process."""
    return [[*chain(*process["passes"][name][0])] for process in by_two]


@pytest.mark.parametrize(("name", "rows"), [("even", 16), ("tar", 64)])
def test_each_process_reads_its_own_shards_once(by_two, name, rows):
    assert numbers(by_two, name) == [[*range(rows // 2)], [*range(rows // 2, rows)]]
    assert all(process["passes"][name][0] == process["passes"][name][1] for process in by_two)


def test_shards_of_fewer_rows_begin_again_until_the_longest_have_ended(by_two):
    # Of 12 and 6 rows, and of 2 and 4.
    long, short = numbers(by_two, "uneven")
    assert long == [*range(18)]
    assert short[:6] == [*range(18, 24)]
    assert set(short) == set(range(18, 24))
    lengths = [[len(each) for each in process["passes"]["uneven"]] for process in by_two]
    assert lengths == [[5, 5]] * 2
    # One process would evaluate at the end of its pass while the other trains.
    assert [process["uneven"] for process in by_two] == [[4, 5, 8]] * 2


def test_a_single_shard_is_divided_row_by_row(by_two):
    first, second = numbers(by_two, "one")
    assert set(first) | set(second) == set(range(10))
    assert len(first) == len(second) == 8


def test_what_each_process_was_given_is_not_divided_once_more(by_two):
    assert all("split" not in process for process in by_two)


def test_a_run_in_two_stages_that_was_killed_resumes_exactly(by_two):
    for process in by_two:
        assert process["stages"] == ["unimodal", "unimodal", "joint", "joint"]
        assert process["weights"]["whole"] == process["weights"]["resumed"]
    assert by_two[0]["weights"] == by_two[1]["weights"]


def test_a_pass_too_short_for_a_step_is_said(tmp_path):
    # The Trainer takes a pass of a stream for endless, and would begin one after the other.
    stream = stream_ranks.stream(stream_ranks.shards(tmp_path, [8], "parquet"))
    options = {"strategy": "joint", "strategy_options": None, "eval_strategy": "no"}
    run = stream_ranks.trainer(tmp_path, stream, gradient_accumulation_steps=3, **options)
    with pytest.raises(ValueError, match=r"fewer batches than gradient_accumulation_steps \(3\)"):
        run.train()


@pytest.mark.parametrize(
    ("shards", "said"),
    [(4, ""), (3, "3 shards for 2 processes: each process reads its own"), (1, "reads all of them")],
)
def test_a_number_of_shards_that_cannot_be_shared_is_said(tmp_path, caplog, shards, said):
    logging.getLogger("transformers").propagate = True
    files = stream_ranks.shards(tmp_path, [2] * shards, "parquet")
    warn_of_uneven_shards(stream_ranks.stream(files), 2)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


# ---- the recipe ----


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of digits, the training rows in two files."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "SPLITS", {"train": (48, 1), "validation": (45, 1), "test": (40, 1)})
        rows = digits.load_digits_splits()
    for name, split, first, last in (
        ("train-0", "train", 0, 30),
        ("train-1", "train", 30, 48),
        ("validation", "validation", 0, 45),
        ("test", "test", 0, 12),
    ):
        part = rows[split].select(range(first, last))
        part.to_parquet(folder / f"{name}.parquet")
        tars = tmp_path_factory.getbasetemp() / "tars"
        tars.mkdir(exist_ok=True)
        with tarfile.open(tars / f"{name}.tar", "w") as archive:
            media = part.cast_column("image", datasets.Image(decode=False))
            for index, row in enumerate(media.cast_column("audio", datasets.Audio(decode=False))):
                stream_ranks.add(archive, f"{index:03}.png", row["image"]["bytes"])
                stream_ranks.add(archive, f"{index:03}.wav", row["audio"]["bytes"])
                stream_ranks.add(archive, f"{index:03}.cls", str(row["label"]).encode())
    return folder


@pytest.fixture
def recipe(tmp_path, data):
    """Makes the words of the command line for these rows."""
    config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    del config["dataset"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def words(**changes: object) -> list[str]:
        values = {
            "config": tmp_path / "config.yaml",
            "data_dir": data,
            "output_dir": tmp_path / "out",
            "streaming": True,
            "preprocess": "on-the-fly",
            "max_steps": 4,
            "disable_tqdm": True,
        }
        return [word for key, value in (values | changes).items() for word in (f"--{key}", str(value))]

    return words


@pytest.fixture(scope="module")
def prepared(data):
    """Makes the splits that the words of the command line ask for."""
    arguments, _ = parse_arguments(["--output_dir", str(data)])
    encoders = build_encoders(arguments)
    processor = build_processor(arguments, encoders)

    def prepare(words: list[str]) -> dict:
        arguments, _ = parse_arguments(words)
        return prepare_splits(arguments, load_splits(arguments), encoders, processor, show_progress=False)

    return prepare


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_rows_of_a_stream_are_those_of_the_loaded_data_set(
    recipe, prepared, tmp_path, tmp_path_factory, kind
):
    changes: dict[str, object] = {"shuffle_buffer": 0}
    if kind == "tar":
        config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
        config["modalities"]["image"]["column"], config["modalities"]["audio"]["column"] = "png", "wav"
        (tmp_path / "tar.yaml").write_text(yaml.safe_dump(config | {"label_column": "cls"}), encoding="utf-8")
        changes |= {"config": tmp_path / "tar.yaml", "data_dir": tmp_path_factory.getbasetemp() / "tars"}
    found = prepared(recipe(**changes))
    loaded = prepared(recipe(streaming=False))
    assert found["train"].num_shards == 2
    streamed = [*found["train"]]
    assert len(streamed) == len(loaded["train"]) == 48
    for row, reference in zip(streamed, loaded["train"], strict=True):
        assert row["labels"] == reference["labels"]
        for name in ("image", "audio"):
            assert row[name].keys() == reference[name].keys()
            assert all(
                torch.equal(torch.as_tensor(row[name][key]), reference[name][key]) for key in row[name]
            )
    order = [row["labels"] for row in prepared(recipe(**changes | {"shuffle_buffer": 100}))["train"]]
    assert order != [row["labels"] for row in streamed]
    assert sorted(order) == sorted(row["labels"] for row in streamed)


def test_the_recipe_gives_the_trainer_the_stream(recipe):
    job = run.prepare(recipe())
    assert isinstance(job.splits["train"], datasets.IterableDataset)
    assert job.test_sets == ["test"]
    assert run.skipped_rows(job.splits) == ""
    batch = FusionCollator(job.processor)(
        [row for _, row in zip(range(4), job.splits["train"], strict=False)]
    )
    # It goes through the model, with a label of each row.
    assert job.model(**batch).loss.isfinite()
    assert batch["labels"].shape == (4,)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_steps": -1}, "a stream has no length: give max_steps"),
        ({"skip_undecodable": True}, "skip_undecodable is true, and looks at every row"),
        ({"shuffle_buffer": -1}, "shuffle_buffer is -1"),
    ],
)
def test_options_that_a_stream_cannot_have(recipe, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_streaming(*(lambda given: (given[0], given[1].max_steps))(parse_arguments(recipe(**changes))))


def test_a_stream_needs_files_with_known_columns_and_a_validation_split(recipe, tmp_path):
    (tmp_path / "train.csv").write_text("image,audio,label\na.png,a.wav,1\n")
    for changes, sentence in (
        ({"label_column": "nothing"}, "no column 'nothing' among"),
        ({"validation_split": "valid"}, "no 'valid', and of a stream none is split off"),
        ({"data_dir": tmp_path / "train.csv"}, "read from Parquet or WebDataset files alone"),
    ):
        with pytest.raises(ValueError, match=sentence):
            load_splits(parse_arguments(recipe(**changes))[0])
