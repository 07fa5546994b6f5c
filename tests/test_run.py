"""The recipe from command line to output folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ecsfusion import FusionForClassification, FusionProcessor
from hf_recipes import digits, run
from hf_recipes.configuration import DEFAULT_CONFIG, RecipeArguments


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(digits, "SPLITS", {"train": (48, 1), "validation": (45, 1), "test": (40, 1)})


def options(folder: Path, **changes: object) -> list[str]:
    values = {"output_dir": folder, "num_train_epochs": 2, "save_strategy": "epoch", "disable_tqdm": True}
    return [word for key, value in (values | changes).items() for word in (f"--{key}", str(value))]


@pytest.mark.usefixtures("few_rows", "pictures")
def test_the_recipe_leaves_both_models_a_card_and_a_picture(tmp_path, capsys):
    folder = tmp_path / "a" / "run"
    run.main(options(folder, compare="joint", save_total_limit=2))
    printed = capsys.readouterr().out
    assert printed.startswith("digits: 48 train, 45 validation, 40 test rows, 10 classes, image (")
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("step")] == ["1", "2"] * 2
    for row in ("image alone", "audio alone", "fused head", "calibrated combination", "plain joint training"):
        assert row in printed
    assert "eval_loss" not in printed
    assert "image alone" in (folder / "README.md").read_text()
    assert (folder / "trajectory.png").stat().st_size > 10_000
    for place, stage in ((folder, "joint"), (folder / "unimodal", "unimodal")):
        assert FusionForClassification.from_pretrained(place).config.stage == stage
        assert FusionProcessor.from_pretrained(place).modalities == ("image", "audio")

    # The saved model on raw media makes the same answers as the one that was just trained.
    model, processor = (
        FusionForClassification.from_pretrained(folder),
        FusionProcessor.from_pretrained(folder),
    )
    rows = digits.load_digits_splits()["test"][:]
    with torch.no_grad():
        out = model(**processor(image=rows["image"], audio=rows["audio"]))
    answers = {**out.unimodal_logits, "fused": out.logits, "calibrated": out.probabilities}
    labels = torch.tensor(rows["label"])
    for head, label in (("audio", "audio alone"), ("fused", "fused head"), ("calibrated", "calibrated comb")):
        share = float((answers[head].argmax(-1) == labels).double().mean())
        assert re.search(rf"^{label}.* {100 * share:.1f}$", printed, re.MULTILINE), f"{head} {share}"

    weights = load_file(folder / "model.safetensors")
    # The run is over: nothing may change.
    run.main(options(folder, resume_from_checkpoint="true"))
    resumed = load_file(folder / "model.safetensors")
    assert all((weights[name] == resumed[name]).all() for name in weights)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "strong-first"}, "strategy is 'strong-first'; it must be one of"),
        ({"metric_for_best_model": "accurac"}, "metric_for_best_model is 'accurac'.*accuracy_calibrated"),
        ({"modality_learning_rates": '{"video": 1}'}, r"modality_learning_rates names \['video'\]"),
        ({"modality_learning_rates": '{"audio": "fast"}'}, r"modality_learning_rates\['audio'\] is 'fast'"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint is 'nowhere'.*checkpoint-STEP"),
        ({"prediction_loss_only": True}, "prediction_loss_only is True.*leave it False"),
        ({"per_device_train_batch_size": 0}, "batch_size should be a positive integer"),
        ({"num_train_epochs": -1}, "num_train_epochs is -1"),
        ({"output_dir": "/dev/null/run"}, "/dev/null"),
    ],
)
def test_what_the_user_can_set_right_ends_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(SystemExit, match=rf"^error: .*{message}") as stopped:
        run.main(options(tmp_path, **changes))
    assert "\n" not in stopped.value.code


def test_interrupting_the_recipe_ends_in_one_line(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        run.main([])
    assert stop.value.code == 130
    shown = capsys.readouterr().err
    assert shown.startswith("interrupted; --resume_from_checkpoint true")
    assert shown.count("\n") == 1


def test_the_card_names_the_data_and_not_the_way_to_it(tmp_path):
    recipe = run.RecipeArguments(data_dir=str(tmp_path / "avmnist" / ".." / "avmnist"))
    (tmp_path / "avmnist").mkdir()
    assert run.name_of_data(recipe) == "avmnist"
    assert run.name_of_data(run.RecipeArguments(dataset=str(tmp_path / "avmnist"))) == "avmnist"
    assert run.name_of_data(run.RecipeArguments(dataset="somebody/words")) == "somebody/words"


@pytest.mark.usefixtures("few_rows")
def test_an_unreadable_row_is_named_even_by_a_worker_of_the_data_loader(tmp_path, monkeypatch):
    splits = digits.load_digits_splits()
    monkeypatch.setattr(digits.soundfile, "write", lambda file, *args, **kwargs: file.write(b"no sound"))
    splits["train"] = digits.load_digits_splits()["train"]
    monkeypatch.setattr("hf_recipes.digits.load_digits_splits", lambda: splits)
    changes = {"preprocess": "on-the-fly", "dataloader_num_workers": 1}
    with pytest.raises(
        SystemExit, match=r"^error: data set 'digits', split 'train': audio, row \d+: 8 bytes"
    ):
        run.main(options(tmp_path, **changes))


@pytest.fixture
def natural(tmp_path) -> Path:
    """A config like that of natural data: a frozen encoder, groups, rows that lack a sound, two test sets."""
    splits, folder = digits.load_digits_splits(), tmp_path / "data"
    folder.mkdir()
    names = (("train", "train", 48), ("validation", "validation", 45), ("test", "other_style", 20))
    for name, stored, size in names:
        rows = splits[name].select(range(size))
        # Two rows of each subject, of which the last test set shares some with training.
        first = 0 if stored in ("train", "other_style") else 100
        rows = rows.add_column("subject", [first + row // 2 for row in range(size)])
        kept = rows.features
        sounds = [None if row % 10 == 0 else sound for row, sound in enumerate(rows["audio"])]
        rows = rows.remove_columns("audio").add_column("audio", sounds, feature=kept["audio"])
        rows.to_parquet(folder / f"{stored}.parquet")
    config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    del config["dataset"]
    config["modalities"]["image"]["freeze"] = True
    config |= {"data_dir": str(folder), "group_column": "subject"}
    config["test_files"] = {"other_style": "other_style.parquet"}
    config["training"] |= {"head_learning_rate": 0.05, "warmup_steps": 0}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


@pytest.mark.usefixtures("few_rows", "quick_probes")
def test_natural_data_is_a_matter_of_the_yaml(natural, tmp_path):
    job = run.prepare(["--config", str(natural), *options(tmp_path / "run")])
    before = {name: p.clone() for name, p in job.model.named_parameters()}
    trainer = run.train(job, job.model, job.args)
    after = dict(job.model.named_parameters())
    changed = {name for name, p in before.items() if not p.equal(after[name])}
    assert not any(name.startswith("encoders.image.") for name in changed)
    assert any(name.startswith("heads.image.") for name in changed)
    assert any(name.startswith("encoders.audio.") for name in changed)
    assert {"image.head", "audio.head"} <= {group["name"] for group in trainer.optimizer.param_groups}
    assert not trainer.model.train().encoders["image"].training
    assert [*trainer.measurements] == ["validation", "other_style"]
    assert trainer.measurements["validation"].num_groups == 23
    assert trainer.measurements["validation"].complete_rows == 40
    (shared,) = [each for each in trainer.record.warnings if each["diagnostic"] == "shared groups"]
    assert shared["about"] == "other_style"
    assert "10 of the 10 groups of other_style are in the training rows, too" in shared["sentence"]
    trainer.create_model_card(dataset="natural")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| other_style | 20 | 10 |" in card
    assert re.search(r"^\| image \| ViTModel .*, frozen \|$", card, re.MULTILINE)


def test_the_card_names_data_on_the_hub_and_no_folder_of_this_machine(tmp_path):
    def card(**options: object) -> dict[str, str]:
        return run.card_of_data(RecipeArguments(**options))

    on_the_hub = {"dataset": "someone/data", "dataset_tags": "someone/data", "dataset_args": "small"}
    assert card(dataset="someone/data", dataset_config="small") == on_the_hub
    assert card(dataset="digits") == {"dataset": "digits"}
    assert card(dataset=str(tmp_path)) == card(data_dir=str(tmp_path)) == {"dataset": tmp_path.name}
