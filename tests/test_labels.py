"""Labels are checked where they are on the CPU and their row is known, and before the first step where they can be."""

from __future__ import annotations

import datasets
import pytest
import torch

from ecsfusion.data.numbered_rows import NumberedRow
from ecsfusion.processing import FusionCollator, TensorCollator, labels_of
from ecsfusion.training.labels import LabelCheckingCollator, check_label_columns

THREE = (3, "single_label_classification")


def rows(labels):
    return [NumberedRow({"x": torch.zeros(2), "label": label}, 10 + i) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "problem", "message"),
    [
        ([0, -100, 2], THREE, "label, row 11: labels hold the class -100"),
        ([0, 1, 3], THREE, "label, row 12: labels hold the class 3"),
        ([[0, 1], [2, 0]], (2, "multi_label_classification"), "label, row 11: .* found 2"),
        ([[0.0], [float("inf")]], (1, "regression"), "label, row 11: labels hold NaN or infinite"),
        ([0.0, 1.0], THREE, r"^labels have shape \(2,\) and dtype torch.float32"),
    ],
)
def test_the_row_of_a_wrong_label_is_named_when_its_batch_is_made(labels, problem, message):
    """On a GPU, cross-entropy would leave a row of class -100 out, and the model reads no values there."""
    collate = LabelCheckingCollator(TensorCollator(["x"]), *problem)
    with pytest.raises(ValueError, match=message):
        collate(rows(labels))


def test_right_labels_and_batches_without_labels_pass():
    collate = LabelCheckingCollator(TensorCollator(["x"]), *THREE)
    assert collate(rows([0, 2]))["labels"].tolist() == [0, 2]
    assert "labels" not in collate(rows([None, None]))
    # What is no dictionary is left to others to refuse.
    assert len(LabelCheckingCollator(tuple, *THREE)(rows([7]))) == 1


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list], ids=["list", "datasets"])
def test_a_column_of_labels_is_checked_before_the_first_step(kind):
    def check(labels):
        check_label_columns({"eval_dataset": kind([{"label": label} for label in labels])}, *THREE)

    check([0, 1, 2])
    check([None, None])
    with pytest.raises(ValueError, match="eval_dataset, label, row 2: labels hold the class 3"):
        check([0, 1, 3])
    with pytest.raises(TypeError, match="eval_dataset, label, row 0: 'cat' is a str"):
        check(["cat", "dog"])
    with pytest.raises(ValueError, match="eval_dataset, label, row 1: missing"):
        check([0, None])


def test_labels_that_a_transform_makes_are_not_looked_for_in_the_column():
    names = datasets.Dataset.from_dict({"label": ["cat", "dog"]})
    check_label_columns({"train_dataset": names.with_transform(lambda batch: {"label": [0, 1]})}, *THREE)


def test_the_gap_of_a_table_is_a_missing_label():
    with pytest.raises(ValueError, match="label, row 11: missing"):
        labels_of(rows([0.0, float("nan")]))


def test_nan_of_a_table_is_a_missing_modality():
    class Texts:
        modalities = ("image", "text")

        def process(self, name, values, places):
            return {"values": torch.tensor([[len(value)] for value in values])}

    nothing = type("NAType", (), {})()
    for value in (float("nan"), nothing):
        batch = FusionCollator(Texts())([{"image": "ab", "text": value}, {"image": "ab", "text": "abc"}])
        assert batch["present"]["text"].tolist() == [False, True]
        assert batch["text"]["values"].tolist() == [[0], [3]]
