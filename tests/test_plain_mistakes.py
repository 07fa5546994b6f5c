"""Mistakes that everybody makes once are answered in one sentence: the argument, what was found, what to do."""

from __future__ import annotations

import datasets
import pytest
import torch
from fusion_fixtures import NUM_CLASSES, TwoViews, tiny_bert, tiny_vit, two_views
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

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


def other_size(index: int, row: dict) -> dict:
    return {**row, "right": {"pixel_values": torch.zeros(1, 6, 6)}}


def without_names(index: int, row: dict) -> tuple:
    return tuple(row.values())


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
        ((16, no_label), (40, same), ValueError, r"train_dataset has .* but neither 'labels' nor 'label'"),
        ((16, same), (40, no_label), ValueError, r"eval_dataset has .* but neither 'labels' nor 'label'"),
        ((16, other_length), (40, same), ValueError, "rows of 'right' cannot be stacked .* FusionProcessor"),
        (
            (16, without_names),
            (40, same),
            TypeError,
            r"is a tuple.* \{'left': ..., 'right': ..., 'labels': ...\}",
        ),
        ((16, same), (40, without_names), TypeError, "row 0 of eval_dataset is a tuple"),
        (
            (16, other_size),
            (40, same),
            ValueError,
            r"modality 'right' cannot take .*\(8, 1, 6, 6\).* processor",
        ),
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


def image_processor(size: int) -> ViTImageProcessor:
    sides = {"height": size, "width": size}
    return ViTImageProcessor(size=sides, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            same,
            ValueError,
            r"ViTModel of modality 'right' cannot take .*\(8, 1, 8, 8\).*\(8\*8\).* processor that",
        ),
        (without_names, TypeError, "is a tuple"),
    ],
)
def test_a_processor_of_another_size(tmp_path, change, kind, message):
    picture = Image.new("L", (6, 6))
    rows = [
        change(index, {"left": picture, "right": picture, "labels": index % NUM_CLASSES})
        for index in range(40)
    ]
    trainer = FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=FusionProcessor({"left": image_processor(4), "right": image_processor(8)}),
    )
    with pytest.raises(kind, match=message):
        trainer.train()


def test_tokens_that_the_encoder_does_not_know():
    model = FusionForClassification.from_modality_pretrained(
        {"image": tiny_vit(), "text": tiny_bert()}, num_labels=NUM_CLASSES
    )
    with pytest.raises(ValueError, match=r"BertModel of modality 'text' cannot take .*'input_ids': \(1, 2\)"):
        model(text={"input_ids": torch.tensor([[1, 5000]])})


def out_of_memory(*_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_memory_that_is_used_up_is_no_mistake_of_the_inputs():
    # `auto_find_batch_size` waits for this error.
    model = two_views()
    model.encoders["left"].register_forward_pre_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory"):
        model(left={"pixel_values": torch.zeros(1, 1, 4, 4)})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run")
    args = FusionTrainingArguments(
        output_dir=str(folder),
        max_steps=1,
        save_steps=1,
        strategy="joint-auxiliary",
        eval_strategy="no",
        use_cpu=True,
        report_to="none",
    )
    FusionTrainer(model=two_views(), args=args, train_dataset=TwoViews(8, 0)).train()
    return str(folder / "checkpoint-1")


def deeper() -> ViTModel:
    config = tiny_vit().config.to_dict()
    return ViTModel(ViTConfig(**{**config, "num_hidden_layers": 2}), add_pooling_layer=False)


@pytest.mark.parametrize(
    ("encoders", "options", "message"),
    [
        (
            lambda: {"left": tiny_vit(), "right": tiny_vit(24)},
            {},
            r"another encoder of modality 'right' than .* shape \(1, 1, 16\) there and of shape \(1, 1, 24\) here",
        ),
        (
            lambda: {"left": tiny_vit(), "right": deeper()},
            {},
            r"another encoder of modality 'right' than .*layers\.1.* is missing there",
        ),
        (
            lambda: {"left": tiny_vit(), "right": tiny_vit()},
            {"num_labels": 5},
            "another head of modality 'left'",
        ),
        (lambda: {"left": tiny_vit(), "right": tiny_vit()}, {"fusion": "gated-sum"}, "another fused head"),
    ],
)
def test_resuming_with_another_model(checkpoint, tmp_path, encoders, options, message):
    trainer = FusionTrainer(
        model=FusionForClassification.from_modality_pretrained(encoders(), **{"num_labels": 3, **options}),
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            strategy="joint-auxiliary",
            eval_strategy="no",
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=TwoViews(8, 0),
    )
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)


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
        ({"id2label": {0: "cat", 2: "dog"}}, "id2label is .*; number the classes from 0 to 1"),
        ({"label2id": {"cat": 1, "dog": 2}}, "id2label is .*; number the classes from 0 to 1"),
        ({"id2label": {0: "cat", 1: "cat"}}, "id2label is .* give each its own name"),
        ({"label2id": {"cat": 0, "dog": 0}}, "label2id is .*, in which two classes have one number"),
    ],
)
def test_a_problem_that_there_is_not(options, message):
    with pytest.raises(ValueError, match=message):
        FusionForClassification.from_modality_pretrained({"left": tiny_vit(), "right": tiny_vit()}, **options)


def quiet(folder, **options) -> FusionTrainer:
    args = FusionTrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    return FusionTrainer(two_views(), args, train_dataset=TwoViews(8, 0), **options)


def test_rows_of_a_data_set_with_the_format_of_pandas(tmp_path):
    """Its first row alone is a table, and its batches are rows."""
    encoders = {name: torch.nn.Linear(3, 4) for name in ("left", "right")}
    model = FusionForClassification.from_modality_pretrained(encoders, num_labels=2)
    columns = {name: torch.randn(40, 3).tolist() for name in encoders} | {"label": [0, 1] * 20}
    rows = datasets.Dataset.from_dict(columns).with_format("pandas")
    args = FusionTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=2)
    trainer = FusionTrainer(model, args, train_dataset=rows, eval_dataset=rows)
    assert trainer.train().global_step == 2


def test_a_test_set_of_other_columns_is_told(tmp_path, caplog):
    """Its rows are answered without a modality, as rows may be, and the scores would look like those of the model."""
    trainer = quiet(tmp_path, eval_dataset=TwoViews(40, 1))
    rows = [TwoViews(4, 2)[i] for i in range(4)]
    renamed = [{"left": row["left"], "rihgt": row["right"], "labels": row["labels"]} for row in rows]
    for name, ask in (("eval", trainer.evaluate), ("test", trainer.predict)):
        caplog.clear()
        ask([{"left": row["left"], "labels": row["labels"]} for row in rows])
        ask(rows)
        assert "has the columns" not in caplog.text
        ask(renamed)
        assert f"{name}_dataset has the columns ['left', 'rihgt', 'labels'] but no 'right'" in caplog.text


def test_names_of_evaluation_sets(tmp_path):
    with pytest.raises(TypeError, match="eval_dataset has the name 1; give its sets texts as names"):
        quiet(tmp_path, eval_dataset={1: TwoViews(40, 1)})
    with pytest.raises(ValueError, match="eval_dataset has no sets; give at least one by name"):
        quiet(tmp_path, eval_dataset={})
    with pytest.raises(ValueError, match=r"eval_dataset has no set 'tset'; it has \['test'\]"):
        quiet(tmp_path, eval_dataset={"test": TwoViews(40, 1)}).evaluate("tset")


def test_a_data_frame_is_answered_by_what_to_give(tmp_path):
    class Frame(list):
        iloc = None

    trainer = FusionTrainer(
        model=two_views(),
        args=FusionTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        train_dataset=Frame([TwoViews(1, 0)[0]]),
        eval_dataset=TwoViews(4, 1),
    )
    with pytest.raises(TypeError, match=r"train_dataset is a Frame, .* datasets\.Dataset\.from_pandas"):
        trainer.train()
