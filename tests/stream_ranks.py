"""One rank of the runs of `test_streams`: training rows from shards, of which each process reads some."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from fusion_fixtures import NUM_CLASSES, StopAfterSaving
from torch import nn

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments

SCHEDULE = [[0.25, ["right"]], [0.25, ["left", "right"]]]


class Numbers(nn.Linear):
    """An encoder of four numbers."""

    embedding_dim = 3

    def __init__(self) -> None:
        super().__init__(4, self.embedding_dim)


def rows(first: int, number: int) -> list[dict[str, Any]]:
    """Rows that carry their number: the first value on the left, in thousandths."""
    drawn = np.random.default_rng(first).normal(size=(number, 8)).astype(np.float32)
    return [
        {
            "left": [(first + i) / 1000, *map(float, values[1:4])],
            "right": [*map(float, values[4:7]), float((first + i) % NUM_CLASSES)],
            "labels": (first + i) % NUM_CLASSES,
        }
        for i, values in enumerate(drawn)
    ]


def shards(folder: Path, sizes: Sequence[int], kind: str) -> list[str]:
    """Files of so many rows each, numbered throughout."""
    files = []
    for index, size in enumerate(sizes):
        file, some = folder / f"{len(sizes)}-{index}.{kind}", rows(sum(sizes[:index]), size)
        (write_tar if kind == "tar" else write_parquet)(file, some)
        files.append(str(file))
    return files


def write_parquet(file: Path, some: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(some).to_parquet(file)


def write_tar(file: Path, some: list[dict[str, Any]]) -> None:
    """As WebDataset has it: the files of a row share the part of their names before the first dot."""
    with tarfile.open(file, "w") as archive:
        for row in some:
            key = f"{round(row['left'][0] * 1000):04}"
            for name in ("left", "right"):
                content = io.BytesIO()
                np.save(content, np.array(row[name], np.float32))
                add(archive, f"{key}.{name}.npy", content.getvalue())
            add(archive, f"{key}.cls", str(row["labels"]).encode())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def stream(files: Sequence[str]) -> datasets.IterableDataset:
    if files[0].endswith(".parquet"):
        return datasets.load_dataset("parquet", data_files=files, streaming=True, split="train").with_format(
            "torch"
        )
    loaded = datasets.load_dataset("webdataset", data_files=files, streaming=True, split="train")
    names = {"left.npy": "left", "right.npy": "right", "cls": "labels"}
    return loaded.select_columns([*names]).rename_columns(names).with_format("torch")


def trainer(folder: Path, train: Any, **options: Any) -> FusionTrainer:
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {"left": Numbers(), "right": Numbers()}, num_labels=NUM_CLASSES
    )
    defaults = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "max_steps": 8,
        "strategy": "fixed",
        "strategy_options": {"schedule": SCHEDULE},
    }
    args = FusionTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        keep_best_heads=False,
        learning_rate=1e-2,
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
        **defaults | options,
    )
    evaluated = [
        {**row, "left": torch.tensor(row["left"]), "right": torch.tensor(row["right"])}
        for row in rows(900, 31)
    ]
    return FusionTrainer(model, args, train_dataset=train, eval_dataset=evaluated)


def passes(run: FusionTrainer, number: int) -> list[list[list[int]]]:
    """The numbers of the rows of this process, by pass and batch."""
    loader, found = run.get_train_dataloader(), []
    for _ in range(number):
        batches, of_pass = iter(loader), []
        while taken := run.get_batch_samples(batches, 1, torch.device("cpu"))[0]:
            of_pass.append((taken[0]["left"][:, 0] * 1000).round().int().tolist())
        found.append(of_pass)
    return found


def main(folder: Path, files: dict[str, list[str]]) -> None:
    rank = int(os.environ["RANK"])
    seen: dict[str, Any] = {"passes": {}, "weights": {}}
    for name in files:
        seen["passes"][name] = passes(trainer(folder / name, stream(files[name])), 2)
    with suppress(ValueError):
        trainer(
            folder / "split", split_dataset_by_node(stream(files["even"]), rank, 2)
        ).get_train_dataloader()
        seen["split"] = "not refused"
    uneven = trainer(folder / "uneven", stream(files["uneven"]), eval_strategy="epoch", save_strategy="no")
    uneven.train()
    seen["uneven"] = [probe.step for probe in uneven.record.history]
    for name in ("whole", "resumed"):
        run = trainer(folder / name, stream(files["tar"]))
        if name == "resumed":
            run.add_callback(StopAfterSaving(2))
            with suppress(KeyboardInterrupt):
                run.train()
            run = trainer(folder / name, stream(files["tar"]))
        run.train(resume_from_checkpoint=name == "resumed")
        seen["weights"][name] = {key: value.tolist() for key, value in run.model.state_dict().items()}
        seen["stages"] = [probe.stage for probe in run.record.history]
    del uneven
    run.end_training()
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
