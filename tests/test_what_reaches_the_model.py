"""Transforms, collators of the user's own and streams: what reaches the model counts, and its keys do not change."""

from __future__ import annotations

import random

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from fusion_fixtures import TwoViews, tiny_bert, tiny_vit, two_views
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainingArguments

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.data.class_names import check_class_names
from ecsfusion.data.columns import check_has_rows
from ecsfusion.processing import SameKeysCollator, TensorCollator
from ecsfusion.training.labels import LabelCheckingCollator

NAMES = ("left", "right")
ROWS = datasets.Dataset.from_list([{"label": 0}])


def trainer(tmp_path, train, evaluation=None, model=None, **options):
    return FusionTrainer(
        model=two_views() if model is None else model,
        args=FusionTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none"),
        train_dataset=train,
        eval_dataset=TwoViews(8, 1) if evaluation is None else evaluation,
        **options,
    )


def table() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"photo": [[0.0]] * 4, "sound": [[1.0]] * 4, "class": [0, 1, 2, 0]})


def to_modalities(batch: dict) -> dict:
    random.shuffle([0, 1, 2]), np.random.random(), torch.rand(1)
    return {"left": batch["photo"], "right": batch["sound"], "labels": batch["class"]}


def stacked(rows: list[dict]) -> dict:
    return {
        "left": torch.stack([row["photo"] for row in rows]),
        "right": torch.stack([row["sound"] for row in rows]),
        "labels": torch.tensor([row["target"] for row in rows]),
    }


class Photos(TwoViews):
    """Rows whose keys no model takes."""

    def __getitem__(self, index: int) -> dict:
        row = super().__getitem__(index)
        left, right = (row[name]["pixel_values"] for name in NAMES)
        return {"photo": left, "sound": right, "target": row["labels"]}


def test_the_rows_after_a_transform_count_and_looking_at_them_draws_nothing(tmp_path):
    rows = table().with_transform(to_modalities)
    run = trainer(tmp_path, rows, rows)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    run.create_optimizer()
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_transform_that_makes_other_names_is_refused(tmp_path):
    rows = table().rename_columns({"photo": "left", "sound": "right", "class": "labels"})
    other = rows.with_transform(lambda batch: {"picture": batch["left"], "labels": batch["labels"]})
    with pytest.raises(
        ValueError, match=r"train_dataset has the columns \['picture', 'labels'\] but no 'left'"
    ):
        trainer(tmp_path, other, rows).create_optimizer()


def test_what_a_collator_makes_counts(tmp_path):
    run = trainer(tmp_path, Photos(8, 0), Photos(8, 1), data_collator=stacked)
    run.create_optimizer()
    with pytest.raises(ValueError, match=r"train_dataset has the columns \['photo', 'sound', 'target'\]"):
        trainer(tmp_path, Photos(8, 0)).create_optimizer()


@pytest.mark.parametrize(
    ("collate", "error", "message"),
    [
        (
            lambda rows: {**stacked(rows), "extra": 1},
            ValueError,
            r"batch of train_dataset .* not take \['extra'\]; rename",
        ),
        (
            lambda rows: {"left": stacked(rows)["left"]},
            ValueError,
            r"keys \['left'\] but no 'labels'; add them",
        ),
        (
            lambda rows: [stacked(rows)],
            TypeError,
            r"returned a list for train_dataset; let it return \{'left'",
        ),
        (
            lambda rows: {"left": stacked(rows)["left"], "input_ids": 1, "labels": 1},
            ValueError,
            r"'input_ids' is an input of one encoder .*: \{'right': \{'input_ids': ...\}",
        ),
    ],
)
def test_a_batch_that_the_model_does_not_take_is_refused_before_the_first_step(
    tmp_path, collate, error, message
):
    with pytest.raises(error, match=message):
        trainer(tmp_path, Photos(8, 0), data_collator=collate).create_optimizer()


def test_an_error_of_a_collator_is_passed_on_with_the_data_set(tmp_path):
    with pytest.raises(KeyError, match="photo") as caught:
        trainer(tmp_path, TwoViews(8, 0), data_collator=stacked).create_optimizer()
    assert "the first 2 rows of train_dataset" in caught.value.__notes__[0]


# ---- tokenized columns at the top level ----

FLAT = {
    "picture": torch.zeros(1, 4, 4),
    "input_ids": torch.ones(3).long(),
    "attention_mask": torch.ones(3),
    "labels": 1,
}
NESTED = (
    r"'input_ids' and 'attention_mask' are inputs .*\{'text': \{'input_ids': ..., 'attention_mask': ...\}"
)


@pytest.fixture(scope="module")
def picture_and_text() -> FusionForClassification:
    encoders = {"picture": tiny_vit(), "text": tiny_bert()}
    return FusionForClassification.from_modality_pretrained(encoders, num_labels=3)


@pytest.mark.parametrize(
    "rows", [[FLAT] * 4, datasets.Dataset.from_list([FLAT] * 4)], ids=["list", "datasets"]
)
def test_flat_tokenized_columns_are_shown_the_nested_form(tmp_path, picture_and_text, rows):
    with pytest.raises(ValueError, match=f"train_dataset has the columns .* but no 'text'.*{NESTED}"):
        trainer(tmp_path, rows, model=picture_and_text).create_optimizer()


def test_flat_inputs_of_a_collator_or_a_call_are_shown_the_nested_form(picture_and_text):
    with pytest.raises(ValueError, match=NESTED):
        TensorCollator(["picture", "text"])([FLAT] * 2)
    batch = {
        key: torch.stack([torch.as_tensor(value)] * 2) for key, value in FLAT.items() if key != "picture"
    }
    with pytest.raises(
        ValueError, match=r"\['input_ids', 'attention_mask'\] are not modalities.*under the name"
    ):
        picture_and_text(**batch)


def test_flat_inputs_of_two_encoders_are_told_apart(tmp_path, picture_and_text):
    row = {"pixel_values": torch.zeros(1, 4, 4), "input_ids": [2], "attention_mask": [1], "labels": 0}
    form = r"NAME: {'pixel_values': ...}, NAME: {'input_ids': ..., 'attention_mask': ...}, 'labels'"
    with pytest.raises(ValueError, match=f"{form}.* one of \\['picture', 'text'\\]"):
        trainer(tmp_path, [row] * 4, model=picture_and_text).create_optimizer()


# ---- what is no data set of rows ----


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            datasets.DatasetDict(train=ROWS, test=ROWS),
            r"is a DatasetDict of \['train', 'test'\]; give one of",
        ),
        (torch.utils.data.DataLoader([FLAT]), "is a DataLoader, but the Trainer makes the batches"),
        (iter([FLAT]), "is a list_iterator, which ends after one pass"),
        (ROWS.with_format("arrow"), "has the format 'arrow', whose rows are tables"),
    ],
)
def test_what_holds_no_rows_is_named(rows, message):
    with pytest.raises(TypeError, match=f"train_dataset {message}"):
        check_has_rows(rows, "train_dataset")


def test_a_class_has_one_number_everywhere():
    def rows(*names: str) -> datasets.Dataset:
        features = datasets.Features({"label": datasets.ClassLabel(names=[*names])})
        return datasets.Dataset.from_dict({"label": [0]}, features=features)

    sets = {"train_dataset": rows("bird", "cat", "dog"), "eval_dataset": rows("cat", "dog")}
    unnamed = {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    with pytest.raises(
        ValueError, match="class 'cat' has the number 0 in eval_dataset and 1 in train_dataset"
    ):
        check_class_names(sets, unnamed)
    with pytest.raises(
        ValueError, match=r"'bird' has the number 0 in train_dataset and 1 in model\.config\.id2label"
    ):
        check_class_names(sets, {0: "cat", 1: "bird", 2: "dog"})
    check_class_names({**sets, "eval_dataset": rows("bird", "cat")}, {"0": "bird"})
    with pytest.raises(
        ValueError, match="number 1 is the class 'dog' in eval_dataset and 'cat' in train_dataset"
    ):
        check_class_names(
            {"train_dataset": rows("bird", "cat"), "eval_dataset": rows("bird", "dog")}, unnamed
        )
    # A transform may make other numbers of them.
    check_class_names(
        {**sets, "eval_dataset": sets["eval_dataset"].with_transform(lambda batch: batch)}, unnamed
    )


def test_a_set_that_is_evaluated_later_has_the_same_classes(tmp_path):
    def rows(number: int, *names: str) -> datasets.Dataset:
        plain = [TwoViews(number, 0)[i] for i in range(number)]
        features = {"labels": datasets.ClassLabel(names=[*names])}
        columns = {"labels": [row["labels"] for row in plain]}
        for name in ("left", "right"):
            columns[name] = [row[name] for row in plain]
            features[name] = {"pixel_values": datasets.Array3D((1, 4, 4), "float32")}
        return datasets.Dataset.from_dict(columns, datasets.Features(features)).with_format("torch")

    names = ("bird", "cat", "dog")
    args = FusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    run = FusionTrainer(two_views(), args, train_dataset=rows(4, *names), eval_dataset=rows(40, *names))
    other = rows(4, *reversed(names))
    for ask in (run.evaluate, run.evaluate_rows, run.predict):
        with pytest.raises(
            ValueError, match=r"class 'dog' has the number 0 in (eval|test)_dataset and 2 in train"
        ):
            ask(other)
    assert run.predict(rows(4, *names)).predictions.shape == (4, 3)


# ---- streams ----


def rows_with_gaps(number: int) -> list[dict]:
    """Every second batch of four has rows without the right view."""
    rows = [dict(TwoViews(number, 0)[i]) for i in range(number)]
    return [{**row, "right": None} if i // 4 % 2 and i % 2 else row for i, row in enumerate(rows)]


class Stream(IterableDataset):
    def __iter__(self):
        yield from rows_with_gaps(16)


def test_keys_of_batches_do_not_depend_on_their_rows():
    collate = SameKeysCollator(TensorCollator(NAMES), NAMES)
    full, gaps = collate(rows_with_gaps(8)[:4]), collate(rows_with_gaps(8)[4:])
    assert set(full) == set(gaps) == {*NAMES, "labels", "present"}
    assert {name: mask.tolist() for name, mask in full["present"].items()} == {
        name: [True] * 4 for name in NAMES
    }
    assert gaps["present"]["right"].tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"no row of a batch has 'right'.*give a data set that has a length"):
        collate([{**row, "right": None} for row in rows_with_gaps(4)])


@pytest.mark.parametrize(
    ("chosen", "training", "evaluation"),
    [
        (None, (False, LabelCheckingCollator), (None, SameKeysCollator)),
        (True, (True, SameKeysCollator), (True, SameKeysCollator)),
        (False, (False, LabelCheckingCollator), (False, LabelCheckingCollator)),
    ],
)
def test_several_processes_read_a_training_stream_each_and_keep_its_masks(
    tmp_path, monkeypatch, chosen, training, evaluation
):
    run = trainer(tmp_path, Stream(), Stream())
    run.accelerator.dataloader_config.dispatch_batches = chosen
    monkeypatch.setattr(TrainingArguments, "world_size", 2)

    def look(self, dataset, *args, **kwargs):
        return self.accelerator.dataloader_config.dispatch_batches, type(self.data_collator)

    monkeypatch.setattr(Trainer, "_get_dataloader", look)
    assert run.get_train_dataloader() == training
    assert run.get_eval_dataloader() == evaluation
    # Nothing of it is left, and data sets with a length are read as before.
    assert run.accelerator.dataloader_config.dispatch_batches is chosen
    assert run.get_eval_dataloader(TwoViews(8, 1)) == (chosen, LabelCheckingCollator)


def test_a_process_gets_the_masks_of_its_share_of_a_stream():
    masks = []
    for process in range(2):
        loader = DataLoader(Stream(), batch_size=4, collate_fn=TensorCollator(NAMES))
        # As accelerate does for `dispatch_batches=False`.
        share = prepare_data_loader(
            loader, num_processes=2, process_index=process, put_on_device=False, dispatch_batches=False
        )
        masks.append([batch.get("present", {}).get("right") for batch in share])
    assert masks[0] == [None, None]
    assert [mask.tolist() for mask in masks[1]] == [[True, False, True, False]] * 2
