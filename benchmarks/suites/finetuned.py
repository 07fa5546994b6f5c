"""Suites whose pretrained encoders are trained further: whole, with adapters, or beside one of random weights."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import pyarrow.parquet as parquet
import torch
from datasets import Features
from torch import nn

from suites import pretrained
from suites.encoders import ImageEncoder, SpectrogramEncoder
from suites.folders import SPLITS, data_file
from suites.suite import Split, Suite

KINDS = {
    "finetuned": "pretrained encoders, trained further as a whole",
    "lora": "pretrained encoders, trained further with low-rank adapters",
    "scratch": "the encoder of one modality starts from random weights beside pretrained ones",
}
# Of pretrained weights or adapters; heads and random weights have a rate of their own.
LEARNING_RATES = {"finetuned": (5e-5, 2e-4), "lora": (5e-4, 2e-3), "scratch": (5e-5, 2e-4)}
SGD_LEARNING_RATES = {"finetuned": (3e-3, 1e-2), "lora": (1e-2, 3e-2), "scratch": (3e-3, 1e-2)}
HEAD_LEARNING_RATE = 3e-3
SEED = 2005
# Mel bands of Whisper.
NUM_BANDS = 80

Rows = Sequence[Mapping[str, Any]]


def suite_of(
    data: str,
    modalities: Sequence[str],
    what: str,
    kind: str,
    *,
    group: str,
    scratch: str,
    number_of_rows: Mapping[str, int] | None,
    shifted: tuple[str, Rows],
    is_known: Callable[[Mapping[str, Any]], bool] = bool,
    epochs: int = 4,
) -> Suite:
    """The suite DATA-KIND of a folder of parquet files, with one row of each group.

    Args:
        data: the folder, and the beginning of the suite's name.
        modalities: the columns.
        what: what the rows are, for the description.
        kind: in `KINDS`.
        group: the column of groups.
        scratch: the modality that starts from random weights, where the kind is "scratch".
        number_of_rows: how many rows of each split and of the further test set; None for one of every group, in a suite
            whose name ends in -full.
        shifted: name and rows of the further test set.
        is_known: whether a row is of the kind that train, validation and test have.
        epochs: of training.

    Raises:
        FileNotFoundError: the data or an encoder are absent.
    """
    is_random = scratch if kind == "scratch" else None
    labels = {row["label"] for row in read_rows(data, "train")}
    further, unknown = shifted
    stored = {name: [row for row in read_rows(data, name) if is_known(row)] for name in SPLITS}
    splits: dict[str, Split] = {}
    # A row is the only one of its group in a split; the further test set may have other rows of test's groups.
    numbers: dict[Any, int] = {}
    for name, known in (stored | {further: unknown}).items():
        rows = draw_rows(known, group, None if number_of_rows is None else number_of_rows[name])
        values = {each: [_value(row[each]) for row in rows] for each in modalities}
        inputs = {each: _process(each, values[each], each == is_random) for each in modalities}
        splits[name] = Split(
            inputs,
            torch.tensor([row["label"] for row in rows]),
            torch.tensor([numbers.setdefault(row[group], len(numbers)) for row in rows]),
        )
    return Suite(
        name=f"{data}-{kind}" + ("-full" if number_of_rows is None else ""),
        description=f"{what}; {KINDS[kind]}.",
        num_classes=len(labels),
        **{name: splits[name] for name in SPLITS},
        shifted={further: splits[further]},
        build_encoders=partial(build_encoders, tuple(modalities), kind, is_random),
        epochs=epochs,
        batch_size=16,
        learning_rates=LEARNING_RATES[kind],
        sgd_learning_rates=SGD_LEARNING_RATES[kind],
        arguments={
            "head_learning_rate": HEAD_LEARNING_RATE,
            **({} if is_random is None else {"modality_learning_rates": {is_random: HEAD_LEARNING_RATE}}),
        },
    )


def build_encoders(modalities: Sequence[str], kind: str, is_random: str | None) -> dict[str, nn.Module]:
    """The encoders of a suite.

    Args:
        modalities: their names.
        kind: in `KINDS`.
        is_random: the modality whose encoder has random weights; None for no one.
    """
    load = pretrained.load_encoder_with_lora if kind == "lora" else pretrained.load_encoder
    return {name: _random_encoder(name) if name == is_random else load(name) for name in modalities}


@cache
def read_rows(data: str, split: str) -> list[dict[str, Any]]:
    """The rows of a file of the data folder, media as bytes; "label" is a number.

    Raises:
        FileNotFoundError: the data are absent.
    """
    return parquet.read_table(data_file(f"{data}/{split}.parquet")).to_pylist()


def class_names(data: str) -> list[str]:
    """The names of the classes of a data set.

    Raises:
        FileNotFoundError: the data are absent.
    """
    schema = parquet.read_schema(data_file(f"{data}/train.parquet"))
    return Features.from_arrow_schema(schema)["label"].names


def draw_rows(rows: Rows, group: str, number: int | None) -> list[Mapping[str, Any]]:
    """One row of each group, in an order that is drawn once, and no more than a number; None for all groups."""
    of_group: dict[Any, Mapping[str, Any]] = {}
    for row in torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED)).tolist():
        of_group.setdefault(rows[row][group], rows[row])
    return list(of_group.values())[:number]


def _value(value: Any) -> Any:
    """Media are stored as {"bytes": ..., "path": ...}."""
    return value["bytes"] if isinstance(value, Mapping) else value


def _process(modality: str, values: Sequence[Any], is_random: bool) -> Any:
    inputs = pretrained.process(modality, values)
    if not is_random:
        return inputs
    return inputs["pixel_values"] if modality == "image" else inputs["input_features"].unsqueeze(1)


def _random_encoder(modality: str) -> nn.Module:
    if modality == "image":
        return ImageEncoder((3, pretrained.IMAGE_SIZE, pretrained.IMAGE_SIZE), channels=(16, 32, 64, 64))
    return SpectrogramEncoder(NUM_BANDS)
