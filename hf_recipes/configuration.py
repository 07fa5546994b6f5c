"""One YAML file and the command line, as two dataclasses: what to train on, and how.

The YAML holds the fields of `RecipeArguments` and, under `training`, any field of `FusionTrainingArguments`.
All of them can also be given on the command line under the same name, which then wins; of a modality with dots,
`--modalities.image.encoder FOLDER`.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ecsfusion import FusionTrainingArguments
from ecsfusion.model.fused_heads import FUSION_HEADS
from hf_recipes.yaml_values import read_yaml

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = CONFIGS / "digits.yaml"
PREPROCESS = ("ahead", "on-the-fly")
COMPARE = ("joint",)
MODALITY_OPTION = "--modalities."
# More allowed keys than these are not listed in an error.
MAX_LISTED = 40
# A key that is so much like an allowed one is misspelt; before others that are a little like it come those that have
# all of its words, of which so many are named.
ALIKE = 0.8
MAX_MEANT = 4


@dataclass(frozen=True)
class ModalityArguments:
    """One modality.

    Args:
        column: the column that holds it.
        encoder: name on the Hub or folder of a pretrained model, or a mapping with `model_type` and any
            fields of its config for one with random weights.
        processor: name or folder (default: the encoder's), or a mapping of options that replace its own; for
            random weights `type` may name its class.
        freeze: keep the encoder's weights as they are; its head trains.
    """

    column: str
    encoder: str | dict[str, Any]
    processor: str | dict[str, Any] | None = None
    freeze: bool = False


@dataclass
class RecipeArguments:
    r"""What to train on.

    Args:
        dataset: "digits" (embedded, no network), or a data set's name on the Hub; `data_dir` has priority.
        dataset_config: the data set's configuration on the Hub, where it has several.
        data_dir: a folder of one of these: a table per split (CSV, JSON lines or Parquet), with the media in it or
            their paths; a layout imagefolder or audiofolder; what `Dataset.save_to_disk` wrote. Or a single table.
        media_dir: the folder to which paths of media are relative; by default that of the table, or else `data_dir`.
            Paths that lead out of both folders are refused.
        train_split, validation_split, test_split: the names of the splits.
        test_files: further test sets, by the names under which they are reported, such as `{other_style: noto.csv}`:
            each a file in `data_dir` of the kind of the others, or a split of the data set. They take the place of an
            absent test split. On the command line in JSON.
        validation_share: share of the training rows that becomes an absent validation or test split.
        label_column: the column with the class: names, strings or whole numbers.
        group_column: the column that says what two splits must not share: an actor, a video. An absent split is made
            of whole groups, and splits that are there must not share any (of `test_files` the run says it). Rows of one
            group count as one in what the run measures. Default: rows stand alone.
        group_pattern: regular expression that finds the group in that column, such as `^(\d+)_` in a file's name; the
            group is what its first brackets hold, or all that it finds. Default: the whole value.
        preprocess: "ahead" (every row once, kept in memory) or "on-the-fly" (every row at every use).
        streaming: read the training rows while they are trained on, from Parquet or WebDataset files, on the Hub or in
            `data_dir`; other splits are read at the start. It needs `max_steps`, and a validation split.
        shuffle_buffer: with `streaming`, each row is drawn from so many; 0 for the order of the files.
        skip_undecodable: leave out rows whose image, sound or text cannot be read, and say how many; by default the
            first of them is an error.
        fusion: name of the fused head, see `ecsfusion.model.fused_heads`.
        compare: "joint" to train the same model jointly, with the same budget, as well.
        modalities: what the model sees; the YAML names them.
    """

    dataset: str | None = field(default=None, metadata={"help": "'digits' or a name on the Hub"})
    dataset_config: str | None = field(default=None, metadata={"help": "the data set's configuration"})
    data_dir: str | None = field(default=None, metadata={"help": "folder with a file per split, or a file"})
    media_dir: str | None = field(default=None, metadata={"help": "folder that paths of media start from"})
    train_split: str = field(default="train", metadata={"help": "name of the training split"})
    validation_split: str = field(default="validation", metadata={"help": "name of the validation split"})
    test_split: str = field(default="test", metadata={"help": "name of the test split"})
    test_files: dict[str, str] | str | None = field(
        default=None, metadata={"help": "further test sets: name to file or split"}
    )
    validation_share: float = field(default=0.1, metadata={"help": "share of train where a split is absent"})
    label_column: str = field(default="label", metadata={"help": "the column with the class"})
    group_column: str | None = field(default=None, metadata={"help": "what no two splits may share"})
    group_pattern: str | None = field(default=None, metadata={"help": "regular expression for the group"})
    preprocess: str = field(default="ahead", metadata={"help": "ahead or on-the-fly"})
    streaming: bool = field(default=False, metadata={"help": "read training rows while they are trained on"})
    shuffle_buffer: int = field(default=1000, metadata={"help": "rows of a stream that each is drawn from"})
    skip_undecodable: bool = field(default=False, metadata={"help": "leave out rows that cannot be read"})
    fusion: str = field(default="concatenation", metadata={"help": ", ".join(FUSION_HEADS)})
    compare: str | None = field(default=None, metadata={"help": "joint: train jointly as well"})
    modalities: dict[str, ModalityArguments] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.preprocess not in PREPROCESS:
            raise ValueError(f"preprocess is {self.preprocess!r}; give one of {', '.join(PREPROCESS)}")
        if self.fusion not in FUSION_HEADS:
            raise ValueError(f"fusion is {self.fusion!r}; give one of {', '.join(FUSION_HEADS)}")
        if self.compare is not None and self.compare not in COMPARE:
            raise ValueError(f"compare is {self.compare!r}; give {', '.join(COMPARE)}, or leave it out")
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {self.shuffle_buffer}; give a number of rows, or 0")
        self.test_files = _read_test_files(self.test_files)
        if not 0 < self.validation_share < 0.5:
            raise ValueError(f"validation_share is {self.validation_share}; give a share between 0 and 0.5")
        if self.group_pattern is not None:
            if self.group_column is None:
                raise ValueError("group_pattern is given without group_column; name the column it searches")
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise ValueError(
                    f"group_pattern {self.group_pattern!r} is no regular expression ({error}); correct it"
                ) from error
        if self.media_dir is not None and not Path(self.media_dir).is_dir():
            raise ValueError(f"there is no folder {self.media_dir!r}; give media_dir an existing one")
        if self.dataset is None and self.data_dir is None:
            raise ValueError(
                "neither dataset nor data_dir is given; add --data_dir FOLDER or --dataset NAME; what "
                "the data are, the first lines of the config say"
            )


def _read_test_files(given: Any) -> dict[str, str]:
    """Further test sets, file or split by name; on the command line they are JSON."""
    files = given
    if isinstance(given, str):
        try:
            files = json.loads(given)
        except json.JSONDecodeError:
            files = given
    if files is None:
        return {}
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"test_files is {given!r}; map a name to a file, such as {{other_style: noto.csv}}")
    for name in files:
        if not str(name).isidentifier() or name in ("train", "validation", "eval", "joint"):
            raise ValueError(
                f"test_files names a test set {name!r}; name it by a word of its own, such as 'other_style'"
            )
    return {str(name): file for name, file in files.items()}


class _Parser(HfArgumentParser):
    """A parser that raises ValueError for a wrong value, and does not exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(argv: Sequence[str]) -> tuple[RecipeArguments, FusionTrainingArguments]:
    """Read `--config FILE` (default: the embedded digits), then what the command line changes in it.

    Raises:
        ValueError: the file is absent or no YAML mapping; a key or value in it or on the command line is not
            allowed. The message names file and key, and the nearest key that is allowed.
    """
    first = _Parser((), add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    chosen, rest = first.parse_known_args(list(argv))
    chosen.config = config_file(chosen.config)
    config = load_config(chosen.config)
    section, rest = take_modality_options(config.pop("modalities"), rest, chosen.config)
    modalities = read_modalities(section, chosen.config)
    training = config.pop("training", {})
    recipe_keys = [each.name for each in fields(RecipeArguments) if each.init]
    training_keys = [each.name for each in fields(FusionTrainingArguments) if each.init]
    _check_keys(config, [*recipe_keys, "modalities", "training"], str(chosen.config))
    _check_keys(training, training_keys, f"{chosen.config}, training")

    parser = _Parser(
        (RecipeArguments, FusionTrainingArguments),
        allow_abbrev=False,
        epilog="--config FILE: the YAML with the data set, the modalities, and other defaults than the above; "
        "--modalities.NAME.encoder FOLDER, likewise column, processor and freeze: for a modality that it names",
    )
    from_file = _as_options(config | training)
    try:
        parser.parse_args(from_file)
    except ValueError as error:
        raise ValueError(f"{chosen.config}: {error}") from error
    recipe, arguments, unknown = parser.parse_args_into_dataclasses(
        [*from_file, *rest], return_remaining_strings=True
    )
    for option in unknown:
        if Path(option).suffix in (".yaml", ".yml"):
            raise ValueError(f"{option!r} on the command line is a file; write --config {option}")
        if not option.startswith("--"):
            raise ValueError(f"{option!r} on the command line belongs to no option; write --name value")
        key = option[2:].split("=")[0].replace("-", "_")
        _check_keys([key], [*recipe_keys, *training_keys, "config"], "the command line")
    recipe.modalities = modalities
    return recipe, arguments


def config_file(given: Path) -> Path:
    """The file that `--config` means: a path, or the name of one of `configs`, such as `avmnist`."""
    own = CONFIGS / f"{given}.yaml"
    return own if given.name == str(given) and not given.exists() and own.is_file() else given


def load_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: options as they are written, see `hf_recipes.yaml_values`."""
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise ValueError(
            f"there is no config {str(path)!r}; give --config an existing YAML file, or one of {names}"
        )
    try:
        config = read_yaml(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); save it as such") from error
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}; write a mapping of keys to values")
    if not config.get("modalities"):
        raise ValueError(f"{path}: modalities is missing; name each modality with its column and encoder")
    for section in ("modalities", "training"):
        if not isinstance(config.get(section, {}), dict):
            raise ValueError(f"{path}: {section} must be a mapping of keys to values")
    return config


def take_modality_options(
    section: Mapping[str, Any], options: Sequence[str], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """The section `modalities` with what `--modalities.NAME.KEY VALUE` changes in it, and the other options.

    A value that begins with a brace is a mapping in JSON.

    Raises:
        ValueError: the config has no such modality, the value is missing, or it is no JSON.
    """
    changed = {name: dict(each) if isinstance(each, dict) else each for name, each in section.items()}
    rest: list[str] = []
    given = list(options)
    while given:
        option = given.pop(0)
        if not option.startswith(MODALITY_OPTION):
            rest.append(option)
            continue
        option, has_value, value = option.partition("=")
        name, _, key = option.removeprefix(MODALITY_OPTION).partition(".")
        if not isinstance(changed.get(name), dict) or not key:
            names = ", ".join(map(str, changed))
            raise ValueError(
                f"{option} on the command line names no modality of {path}, which has {names}; write "
                f"{MODALITY_OPTION}NAME.encoder and a value"
            )
        if not has_value:
            if not given or given[0].startswith("--"):
                raise ValueError(f"{option} on the command line has no value; write it behind the name")
            value = given.pop(0)
        try:
            changed[name][key] = json.loads(value) if value.startswith("{") else value
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{option} on the command line is {value!r}, which is not JSON ({error}); correct it"
            ) from error
    return changed, rest


def read_modalities(section: Mapping[str, Any], path: Path) -> dict[str, ModalityArguments]:
    """The section `modalities`: name to column (default: the name), encoder and processor."""
    modalities = {}
    for name, options in section.items():
        where = f"{path}, modalities.{name}"
        if not isinstance(options, dict) or not isinstance(options.get("encoder"), (str, dict)):
            raise ValueError(
                f"{where}: encoder is missing; give a name, a folder, or a mapping with model_type"
            )
        _check_keys(options, [each.name for each in fields(ModalityArguments)], where)
        if isinstance(options["encoder"], dict) and "model_type" not in options["encoder"]:
            raise ValueError(f"{where}: encoder has no model_type; add one, for example model_type: vit")
        if not isinstance(options.get("processor"), (str, dict, type(None))):
            raise ValueError(f"{where}: processor must be a name, a folder, or a mapping of options")
        freeze = str(options.get("freeze", False)).lower()
        if freeze not in ("true", "false"):
            raise ValueError(f"{where}: freeze is {options['freeze']!r}; give true or false")
        modalities[str(name)] = ModalityArguments(
            column=str(options.get("column", name)),
            encoder=options["encoder"],
            processor=options.get("processor"),
            freeze=freeze == "true",
        )
    return modalities


def nearest(key: str, allowed: Sequence[str]) -> str:
    """What to write instead of a key that is not allowed."""
    longer = [name for name in allowed if {*key.split("_")} <= {*name.split("_")}]
    close = (
        difflib.get_close_matches(key, allowed, n=1, cutoff=ALIKE)
        or sorted(longer)[:MAX_MEANT]
        or difflib.get_close_matches(key, allowed, n=1)
    )
    return (
        f"did you mean {' or '.join(map(repr, close))}?"
        if close
        else f"allowed are {', '.join(sorted(allowed))}"
    )


def _check_keys(keys: Any, allowed: Sequence[str], where: str) -> None:
    for key in keys:
        if key not in allowed:
            remedy = nearest(str(key), allowed)
            if len(allowed) > MAX_LISTED and not remedy.startswith("did you mean"):
                remedy = "--help lists those that are allowed"
            raise ValueError(f"{where}: unknown key {key!r}; {remedy}")


def _as_options(values: Mapping[str, Any]) -> list[str]:
    """YAML values as command-line options, so that both ways are parsed and checked by the same code."""
    options: list[str] = []
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, list):
            options.extend([f"--{key}", *(str(item) for item in value)])
        else:
            # In one word: a value such as -1e-4 would be taken for an option.
            options.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return options
