"""Mistakes that everybody makes once are answered in one sentence: the argument, what was found, what to do."""

from __future__ import annotations

import pytest
import torch
from fusion_fixtures import TwoViews, tiny_vit, two_views

from ecsfusion import (
    ArrayProcessor,
    FusionForClassification,
    FusionProcessor,
    FusionTrainer,
    FusionTrainingArguments,
)


def changed(number: int, seed: int, change) -> list[dict]:
    rows = TwoViews(number, seed)
    return [change(index, rows[index]) for index in range(number)]


def same(index: int, row: dict) -> dict:
    return row


def named_label(index: int, row: dict) -> dict:
    return {**row, "labels": ("cat", "dog", "owl")[row["labels"]]}


def no_label(index: int, row: dict) -> dict:
    return {name: row[name] for name in ("left", "right")}


def other_length(index: int, row: dict) -> dict:
    return {**row, "right": {"input_ids": torch.zeros(4 + index % 3, dtype=torch.long)}}


def nan_in_row_five(index: int, row: dict) -> dict:
    return (
        {**row, "right": {"pixel_values": row["right"]["pixel_values"] * float("nan")}} if index == 5 else row
    )


@pytest.mark.parametrize(
    ("train", "validation", "kind", "message"),
    [
        ((0, same), (40, same), ValueError, "train_dataset has no rows"),
        ((16, same), (0, same), ValueError, "eval_dataset has no rows"),
        ((16, named_label), (40, same), TypeError, "is a str; give class numbers from 0 .*label2id"),
        ((16, no_label), (40, same), ValueError, r"train_dataset has \['left', 'right'\] but no labels"),
        ((16, other_length), (40, same), ValueError, "rows of 'right' cannot be stacked .* FusionProcessor"),
        (
            (16, same),
            (40, nan_in_row_five),
            ValueError,
            "logits of right are NaN in 1 of 40 rows .* in row 5",
        ),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, train, validation, kind, message):
    trainer = FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=2, use_cpu=True, disable_tqdm=True, report_to="none"
        ),
        train_dataset=changed(train[0], 0, train[1]),
        eval_dataset=changed(validation[0], 1, validation[1]),
    )
    with pytest.raises(kind, match=message):
        trainer.train()


@pytest.mark.parametrize(
    ("processor", "kind", "message"),
    [
        (ArrayProcessor(), TypeError, "processing_class is a ArrayProcessor; give a FusionProcessor"),
        (
            FusionProcessor({"left": ArrayProcessor(), "write": ArrayProcessor()}),
            ValueError,
            r"\['left', 'write'\], but the model has \['left', 'right'\]",
        ),
    ],
)
def test_a_processor_of_something_else(tmp_path, processor, kind, message):
    args = FusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(kind, match=message):
        FusionTrainer(model=two_views(), args=args, eval_dataset=TwoViews(40, 1), processing_class=processor)


def test_names_of_classes_in_both_directions():
    encoders = {"left": tiny_vit(), "right": tiny_vit()}
    names = {0: "cat", 1: "dog", 2: "owl"}
    label2id = {name: index for index, name in names.items()}
    both = {"id2label": names, "label2id": label2id}
    for given in (both, {"num_labels": 3, **both}, {"label2id": label2id}):
        config = FusionForClassification.from_modality_pretrained(encoders, **given).config
        assert config.id2label == names
        assert config.label2id == label2id
    with pytest.raises(ValueError, match="but label2id is"):
        FusionForClassification.from_modality_pretrained(encoders, id2label=names, label2id={"cat": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_labels": 3, "problem_type": "multi"}, "problem_type is 'multi'; give one of"),
        ({"num_labels": 0}, "num_labels is 0"),
    ],
)
def test_a_problem_that_there_is_not(options, message):
    with pytest.raises(ValueError, match=message):
        FusionForClassification.from_modality_pretrained({"left": tiny_vit(), "right": tiny_vit()}, **options)
