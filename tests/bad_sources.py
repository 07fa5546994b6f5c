"""Data that cannot be decoded, and a Hub that is away."""

from __future__ import annotations

import io
import os
import shlex
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from unittest import mock

import datasets
import killed_run
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from faults import Runs, heard, seen, train
from huggingface_hub import constants
from stand_in_hub import StandInHub

from ecsfusion import cli
from ecsfusion.reporting.hub import NotPublishedError
from hf_recipes import run
from hf_recipes.configuration import DEFAULT_CONFIG
from hf_recipes.digits import load_digits_splits

# The port "discard", which nothing listens to.
NOBODY = "http://127.0.0.1:9"


def undecodable(folder: Path, runs: Runs) -> dict[str, object]:
    """Two samples in the second of two shards: an error names the row; if wanted, they are skipped and counted."""
    folder.mkdir()
    argv = shards(folder / "shards", damaged=(1, 5))
    options = ["--output_dir", str(folder / "run"), "--num_train_epochs", "1", "--disable_tqdm", "true"]
    message, printed = "nothing was raised", io.StringIO()
    try:
        run.main([*argv, *options])
    except SystemExit as error:
        message = str(error.code)
    with heard("hf_recipes") as warnings, redirect_stdout(printed):
        run.main([*argv, *options, "--skip_undecodable", "true"])
    wanted = [
        "split 'train': image, row 46: ",
        "cannot be read as an image",
        "(row 1 of train-00001-of-00002.parquet)",
    ]
    wanted += ["split 'train': 2 of 90 rows cannot be read and are skipped; the first: "]
    count = "Skipped, because they cannot be read: 2 of 90 rows of train"
    return seen(
        f"{message} | {' '.join(warnings)}",
        wanted,
        [] if count in printed.getvalue() else ["the summary does not have the count"],
        summary=[line for line in printed.getvalue().splitlines() if "cannot be read" in line],
    )


def truncated_shard(folder: Path, runs: Runs) -> dict[str, object]:
    """A Parquet file that ends in the middle."""
    folder.mkdir()
    argv = shards(folder / "shards")
    file = folder / "shards" / "train-00001-of-00002.parquet"
    os.truncate(file, file.stat().st_size // 2)
    message = "nothing was raised"
    try:
        run.main([*argv, "--output_dir", str(folder / "run")])
    except SystemExit as error:
        message = str(error.code)
    return seen(
        message,
        ["error: data set ", "cannot be loaded", f"{file} is damaged: get or write this file anew"],
        [],
    )


def shards(folder: Path, damaged: tuple[int, ...] = (), rows: int = 45) -> list[str]:
    """Digits in Parquet, the training rows in two files, of the second of which some images are cut off; arguments."""
    folder.mkdir()
    files = {"train-00000-of-00002": ("train", 0), "train-00001-of-00002": ("train", rows)}
    files |= {"validation": ("validation", 0), "test": ("test", 0)}
    for name, (split, start) in files.items():
        part = (
            digits()[split].select(range(4 * start, 4 * (start + rows), 4)).to_list()
            # Each with its own image.
        )
        for row in damaged if start else ():
            part[row]["image"] = {"bytes": part[row]["image"]["bytes"][:40]}
        kept = [
            {"image": row["image"]["bytes"], "audio": row["audio"]["bytes"], "label": row["label"]}
            for row in part
        ]
        pq.write_table(pa.Table.from_pylist(kept), folder / f"{name}.parquet")
    config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    del config["dataset"]
    (folder.parent / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return ["--config", str(folder.parent / "config.yaml"), "--data_dir", str(folder)]


@cache
def digits() -> datasets.DatasetDict:
    """The embedded digits, as bytes."""
    return load_digits_splits().cast_column("image", datasets.Image(decode=False))


def hub_away(folder: Path, runs: Runs) -> dict[str, object]:
    """When training is over; then it is back, and the printed command is given."""
    name = "somebody/two-views"
    with StandInHub() as hub, mock.patch.multiple(constants, HF_HUB_OFFLINE=False, ENDPOINT=NOBODY):
        trainer = train(folder, False, hub_model_id=name)
        message = "nothing was raised"
        try:
            trainer.push_to_hub()
        except NotPublishedError as error:
            message = str(error)
        problems = killed_run.differences(runs.whole, killed_run.outcome(folder))
        command = message.partition("push it by: ")[2]
        with (
            mock.patch.object(constants, "ENDPOINT", hub.endpoint),
            mock.patch.dict(os.environ, HF_TOKEN="hf_" + "x" * 34),
            redirect_stdout(io.StringIO()),
        ):
            status = cli.main(shlex.split(command)[1:]) if command else 1
        sent = {
            branch: files.get("model.safetensors") for branch, files in hub.revisions.get(name, {}).items()
        }
    for branch, place in {"main": folder, "unimodal": folder / "unimodal"}.items():
        if sent.get(branch) != (place / "model.safetensors").read_bytes():
            problems.append(f"{branch} was not published")
    problems += [f"the command ended with status {status}"] if status else []
    return seen(
        message,
        [str(folder), "Nothing of it is lost", f"push it by: ecsfusion push {folder} {name}"],
        problems,
    )
