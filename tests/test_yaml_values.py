"""What the YAML of a recipe says is what is read: numbers at every depth, words as words, nothing silently."""

import math

import pytest
import yaml

from hf_recipes.configuration import DEFAULT_CONFIG, parse_arguments
from hf_recipes.yaml_values import read_yaml


def parsed(tmp_path, *lines, recipe=""):
    """The arguments that the embedded data set has with these lines under `training`."""
    config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    del config["training"]
    file = tmp_path / "run.yaml"
    training = "".join(f"  {line}\n" for line in (f"output_dir: {tmp_path}", *lines))
    file.write_text(f"{yaml.safe_dump(config)}{recipe}\ntraining:\n{training}", encoding="utf-8")
    return parse_arguments(["--config", str(file)])


def test_numbers_are_numbers_at_every_depth(tmp_path):
    _, arguments = parsed(
        tmp_path,
        "learning_rate: 1e-3",
        "modality_learning_rates: {audio: 1e-4, image: -0, fusion: 2.}",
        "modality_weight_decays: {audio: 1E-2}",
        "strategy: ogm",
        "strategy_options: {alpha: 5e-1}",
        "lr_scheduler_type: cosine_with_min_lr",
        "lr_scheduler_kwargs:",
        "  min_lr: 1e-7",
        "max_steps: -1",
    )
    assert arguments.learning_rate == 1e-3
    assert arguments.modality_learning_rates == {"audio": 1e-4, "image": 0, "fusion": 2.0}
    assert arguments.modality_weight_decays == {"audio": 0.01}
    assert arguments.strategy_options == {"alpha": 0.5}
    assert arguments.lr_scheduler_kwargs == {"min_lr": 1e-7}
    assert arguments.max_steps == -1


def test_a_word_stays_a_word_where_a_word_is_expected(tmp_path):
    recipe, arguments = parsed(
        tmp_path,
        "save_strategy: no",
        "logging_strategy: no",
        "run_name: no",
        "project: 0123",
        "report_to: [none]",
        "logging_first_step: no",
        recipe="dataset_config: 1.10\ntrain_split: on\nskip_undecodable: yes",
    )
    assert [arguments.save_strategy.value, arguments.logging_strategy.value] == ["no", "no"]
    assert (arguments.run_name, arguments.project, arguments.logging_first_step) == ("no", "0123", False)
    assert (recipe.dataset_config, recipe.train_split, recipe.skip_undecodable) == ("1.10", "on", True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1e-4, 5E+3, .5, 1., 010, 0x1f, 1_000, -.inf]", [1e-4, 5e3, 0.5, 1.0, 10, 31, 1000, -math.inf]),
        (
            "[1:30, 2024-01-01, true, null, ~, 'no', \"1e3\", v1e3]",
            ["1:30", "2024-01-01", True, None, None, "no", "1e3", "v1e3"],
        ),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_inside_of_an_option_follow_yaml_1_2(text, value):
    assert read_yaml(f"encoder: {{deep: {text}}}") == {"encoder": {"deep": value}}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["strategy_options: {beta: no}"], r"run\.yaml, line \d+: no may be a word or mean true or false"),
        (["seed: 1", "seed: 2"], r"run\.yaml, line \d+: the key 'seed' is given twice"),
        (["strategy_options: {a: 1, a: 2}"], r"run\.yaml, line \d+: the key 'a' is given twice"),
        (["? [a]", ": 1"], r"run\.yaml, line \d+: a key is no word"),
        (["run_name: !!python/name:os.system"], "not valid YAML: could not determine a constructor"),
        (["report_to: [!!python/name:os.system ]"], "not valid YAML: could not determine a constructor"),
        (["save_strategy: maybe"], r"argument --save_strategy\S*: invalid choice: 'maybe'"),
    ],
)
def test_what_has_two_meanings_is_an_error_with_its_line(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        parsed(tmp_path, *lines)


def test_a_file_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("label_column: größe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml is not text in UTF-8"):
        parse_arguments(["--config", str(file)])
