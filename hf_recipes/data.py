"""Loads a data set and makes the processed splits that a trainer takes."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ecsfusion import FusionProcessor
from ecsfusion.data.missing_files import shortened
from ecsfusion.data.paths import check_data_files, check_saved_files, confined
from ecsfusion.extras import extra_for
from hf_recipes.configuration import RecipeArguments
from hf_recipes.encoders import media_of
from hf_recipes.folders import KINDS, left_out, loading_options, renamed_columns, tables_of
from hf_recipes.places import folder_of_place, places_of_rows, unreadable_parquet
from hf_recipes.streams import check_stream, evaluation_rows, processed_stream

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
LABEL = "label"
GROUP = "group"
PLACE = "place"
NUMBERS = "change the column: a recipe takes pictures, sounds and texts, and numbers need Python and a module of yours"
"""What an error says where a column holds numbers."""


def load_splits(recipe: RecipeArguments, seed: int = 0) -> dict[str, Any]:
    """Train, validation and test with one column per modality, under the modality's name, and "label".

    Labels are 0..C-1, and their names are `splits["validation"].features["label"].names`. An absent validation or
    test split is split off the training rows, by `seed`, and that is logged; with `test_files` an absent test split
    stays absent. Where the recipe has a `group_column`, there is a column "group" as well, and no two of the three
    share a group. The column "place" says where a row comes from.

    With `streaming` the training split is a stream of the rows as they are stored. Where their labels are no
    `ClassLabel`, the classes are those of the other splits.

    Raises:
        ValueError: the data set cannot be loaded; a split or column is missing; a label is out of range; two
            splits share a group.
    """
    where = _describe(recipe)
    loaded, files = _load(recipe)
    stored_names = (recipe.train_split, recipe.validation_split, recipe.test_split)
    stored_as = {name: stored for name, stored in zip(SPLITS, stored_names, strict=True) if stored in loaded}
    further = _stored_test_files(recipe, loaded, stored_as, where)
    # A split that has a name in `test_files` is that test set, and no other one.
    stored_as = {
        name: stored for name, stored in stored_as.items() if stored not in further.values()
    } | further
    splits = {name: loaded[stored] for name, stored in stored_as.items()}
    if "train" not in splits:
        raise ValueError(
            f"{where} has the splits {sorted(loaded)} but no {recipe.train_split!r}; name the right one by "
            "train_split"
        )
    columns = {name: modality.column for name, modality in recipe.modalities.items()}
    for name in columns:
        if name == PLACE or (name == GROUP and recipe.group_column is not None):
            raise ValueError(f"modalities.{name}: the recipe makes a column of this name; choose another one")
    others = (
        [recipe.label_column] if recipe.group_column is None else [recipe.label_column, recipe.group_column]
    )
    stream = splits.pop("train") if recipe.streaming else None
    if recipe.streaming:
        check_stream(stream, [*columns.values(), *others], f"{where}, split 'train'")
        if "validation" not in splits:
            raise ValueError(
                f"{where} has the splits {sorted(loaded)} but no {recipe.validation_split!r}, and of a stream none is "
                "split off; name it by validation_split"
            )
        splits = {name: evaluation_rows(split) for name, split in splits.items()}
    for name, split in splits.items():
        for column in [*columns.values(), *others]:
            if column not in split.column_names:
                unread = "".join(_left_out(recipe, files).values())
                raise ValueError(
                    f"{where}, split {name!r}: there is no column {column!r} among {split.column_names}; "
                    f"correct its name in the config{unread}"
                )
    labels = {name: _whole(split[recipe.label_column]) for name, split in splits.items()}
    feature = (splits["train"] if stream is None else stream).features[recipe.label_column]
    names, classes = _class_labels(feature, labels, where)
    label_feature = datasets.ClassLabel(names=names)
    groups = {name: _groups(split, recipe, f"{where}, split {name!r}") for name, split in splits.items()}
    for name, split in splits.items():
        parts = [_raw_column(split, column, modality) for modality, column in columns.items()]
        renamed = datasets.concatenate_datasets(parts, axis=1)
        splits[name] = renamed.add_column(LABEL, classes[name], feature=label_feature)
        places = places_of_rows(stored_as[name], split, files, folder_of(recipe))
        splits[name] = splits[name].add_column(PLACE, places)
        if recipe.group_column is not None:
            splits[name] = splits[name].add_column(GROUP, groups[name])
    if stream is not None:
        return {"train": stream, **splits}
    made = ("validation",) if recipe.test_files else ("test", "validation")
    unread = {} if all(name in splits for name in made) else _left_out(recipe, files)
    return datasets.DatasetDict(_complete(splits, made, recipe.validation_share, seed, where, unread))


def prepare_splits(
    recipe: RecipeArguments,
    splits: Mapping[str, Any],
    encoders: Mapping[str, PreTrainedModel],
    processor: FusionProcessor,
    show_progress: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """What the trainer takes: per split rows of tensors, made now (`preprocess: ahead`) or at every use.

    A training split that is a stream stays one, shuffled by `seed`.

    With `skip_undecodable` every row is read once now, so that a run and one that resumes it have the same rows.

    Raises:
        ValueError: an encoder is of the wrong kind for its column, or a row cannot be read.
    """
    columns = splits["validation" if recipe.streaming else "train"].features
    for name, encoder in encoders.items():
        _check_kind(name, encoder, columns[name])
    places = {name: f"{_describe(recipe)}, split {name!r}" for name in splits}
    folders = folder_of(recipe), recipe.media_dir
    prepared = {
        name: ProcessedSplit(rows, processor, places[name], *folders)
        for name, rows in splits.items()
        if not (recipe.streaming and name == "train")
    }
    ahead = recipe.preprocess == "ahead"
    for name, split in prepared.items():
        if ahead or recipe.skip_undecodable:
            what = f"Processing {name}" if ahead else f"Looking for rows of {name} that cannot be read"
            split.read_all(what, ahead, recipe.skip_undecodable, show_progress)
    if not recipe.streaming:
        return prepared
    names = splits["validation"].features[LABEL].names
    is_encoded = isinstance(splits["train"].features[recipe.label_column], datasets.ClassLabel)
    stored = StoredRows(recipe, names, is_encoded, RowReader(processor, places["train"], *folders))
    stream = processed_stream(splits["train"], stored.read, shuffle_buffer=recipe.shuffle_buffer, seed=seed)
    return {"train": stream, **prepared}


class UndecodableError(ValueError):
    """A row whose image, sound or text cannot be read."""


class ProcessedSplit(torch.utils.data.Dataset):
    """Rows of a split as the encoders take them: `{"image": {"pixel_values": tensor}, ..., "labels": 3}`.

    Args:
        rows: one column per modality of `processor`, and "label"; None in a column is a row that lacks the modality.
            "place" names a row in errors, where there is one, and "group" is passed on.
        processor: what turns a raw value into tensors.
        where: names the split in errors.
        data_dir: as of `RowReader`.
        media_dir: as of `RowReader`.

    Attributes:
        labels: the class of every row.
        undecodable: a sentence for every row that was skipped.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        processor: FusionProcessor,
        where: str,
        data_dir: str | None = None,
        media_dir: str | None = None,
    ) -> None:
        self.rows = rows
        self.reader = RowReader(processor, where, data_dir, media_dir)
        self.where = where
        self.labels: list[int] = list(rows[LABEL])
        self.undecodable: list[str] = []
        self._ahead: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.reader.read(self.rows[index], index) if self._ahead is None else self._ahead[index]

    def read_all(self, description: str, keep: bool, skip: bool, show_progress: bool = True) -> None:
        """Process every row now.

        Args:
            description: of the progress bar.
            keep: the tensors in memory.
            skip: rows that cannot be decoded, of which the number is logged.
            show_progress: whether there is a bar.

        Raises:
            ValueError: a row cannot be read; with `skip`, no row can.
        """
        readable, processed = [], []
        for index in tqdm(range(len(self)), desc=description, unit=" rows", disable=not show_progress):
            try:
                row = self.reader.read(self.rows[index], index)
            except UndecodableError as error:
                if not skip:
                    raise
                self.undecodable.append(str(error).removeprefix(f"{self.where}: "))
                continue
            readable.append(index)
            if keep:
                processed.append(row)
        if self.undecodable:
            number = f"{len(self.undecodable):,} of {len(self):,} rows cannot be read"
            if not readable:
                raise ValueError(
                    f"{self.where}: {number}, so there is nothing left; the first: {self.undecodable[0]}"
                )
            logger.warning(f"{self.where}: {number} and are skipped; the first: {self.undecodable[0]}")
            self.rows = self.rows.select(readable)
            self.labels = list(self.rows[LABEL])
        self._ahead = processed if keep else None


class RowReader:
    """Makes of a raw row the one that the encoders take.

    Args:
        processor: what turns a raw value into tensors.
        where: names the split in errors.
        data_dir: the folder of the data set, in which its paths must stay; None for one on the Hub.
        media_dir: another folder, from which its paths start; None to start from that of the table, or `data_dir`.
    """

    def __init__(
        self,
        processor: FusionProcessor,
        where: str,
        data_dir: str | None = None,
        media_dir: str | None = None,
    ) -> None:
        self.processor = processor
        self.where = where
        self.data_dir = data_dir
        self.media_dir = media_dir

    def read(self, raw: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The tensors of a row by modality, and "labels".

        Args:
            raw: one value per modality, None where the row lacks it, and "label". "place" names the row in errors,
                where there is one, and "group" is passed on.
            index: the number of the row, for errors.

        Raises:
            UndecodableError: a value that cannot be read.
            ValueError: a row without any modality, or a path that leads out of the folders.
        """
        where = f" ({raw[PLACE]})" if PLACE in raw else ""
        row: dict[str, Any] = {"labels": raw[LABEL]}
        if GROUP in raw:
            row[GROUP] = raw[GROUP]
        names = self.processor.modalities
        if all(raw[name] is None for name in names):
            raise ValueError(
                f"{self.where}: row {index}: there is neither {' nor '.join(names)}; leave this row out{where}"
            )
        for name in names:
            if raw[name] is None:
                # The row lacks this modality.
                row[name] = None
                continue
            value = self._confined(name, raw, index, where)
            try:
                features = self.processor.process(name, [value], first_row=index)
            except (TypeError, ValueError) as error:
                raise UndecodableError(f"{self.where}: {error}{where}") from error
            row[name] = {key: tensor[0] for key, tensor in features.items()}
        return row

    def _confined(self, name: str, raw: Mapping[str, Any], index: int, where: str) -> Any:
        if isinstance(self.processor.processors[name], PreTrainedTokenizerBase):
            # A text is never taken for a path.
            return raw[name]
        starts = []
        if self.media_dir is not None:
            starts = [self.media_dir]
        elif self.data_dir is not None:
            starts = [folder_of_place(raw.get(PLACE) or "", self.data_dir), self.data_dir]
        try:
            value = confined(raw[name], self.data_dir, starts)
        except ValueError as error:
            remedy = "" if self.media_dir is not None else ", or name the folder of the media by media_dir"
            raise ValueError(f"{self.where}: {name}, row {index}: {error}{remedy}{where}") from error
        if isinstance(raw[name], str) and _is_number(raw[name]) and not Path(value).is_file():
            # A table of text has columns of numbers as text.
            raise ValueError(
                f"{self.where}: {name}, row {index}: {raw[name]!r} is a number and no file; {NUMBERS}{where}"
            )
        return value


@dataclass(frozen=True)
class StoredRows:
    """Makes rows for the encoders of rows of a stream, which have their stored columns.

    Args:
        recipe: names the columns.
        names: the names of the classes.
        is_encoded: whether a label is stored as the number of its class, and not as its name.
        reader: of the training split.
    """

    recipe: RecipeArguments
    names: Sequence[str]
    is_encoded: bool
    reader: RowReader

    def read(self, stored: Mapping[str, Any], index: int) -> dict[str, Any]:
        """The row that the encoders take; `index` counts the rows of this process.

        Raises:
            ValueError: a row that cannot be read, or whose label is none of the classes.
        """
        recipe = self.recipe
        raw = {name: stored[modality.column] for name, modality in recipe.modalities.items()}
        # A ClassLabel is stored as the number of its class.
        label = _whole([stored[recipe.label_column]])[0]
        name = self.names[label] if self.is_encoded and label in range(len(self.names)) else str(label)
        if name not in self.names:
            raise ValueError(
                f"{self.reader.where}, row {index}: the label {label!r} is none of the {len(self.names)} classes "
                f"{_listed(self.names)}; correct it or leave this row out"
            )
        raw[LABEL] = self.names.index(name)
        if recipe.group_column is not None:
            raw[GROUP] = _group_of(stored[recipe.group_column], recipe, f"{self.reader.where}, row {index}")
        return self.reader.read(raw, index)


def _describe(recipe: RecipeArguments) -> str:
    return f"data set {recipe.data_dir or recipe.dataset!r}"


def _load(recipe: RecipeArguments) -> tuple[datasets.DatasetDict, Mapping[str, list[str]]]:
    """The data set, and the files of each of its splits."""
    if recipe.data_dir is None and recipe.dataset == "digits":
        # Other data need neither scikit-learn nor, without sounds, soundfile.
        with extra_for("the data set 'digits'", "recipes"):
            from hf_recipes.digits import load_digits_splits

        return load_digits_splits(), {}
    if recipe.data_dir is not None and not Path(recipe.data_dir).exists():
        raise ValueError(f"there is no folder {recipe.data_dir!r}; give data_dir an existing one")
    if (
        recipe.data_dir is not None
        and Path(recipe.data_dir).is_file()
        and Path(recipe.data_dir).suffix not in KINDS
    ):
        raise ValueError(
            f"data_dir is the file {recipe.data_dir!r}; give a folder, or one of {', '.join(KINDS)}"
        )
    folder = folder_of(recipe)
    files: Mapping[str, list[str]] = {}
    try:
        if folder is not None and any(
            Path(folder, name).is_file() for name in ("dataset_dict.json", "state.json")
        ):
            check_saved_files(folder)
            saved = datasets.load_from_disk(folder)
            return datasets.DatasetDict({"train": saved}) if isinstance(
                saved, datasets.Dataset
            ) else saved, {}
        names = (recipe.train_split, recipe.validation_split, recipe.test_split)
        tables = {}
        if folder is not None and recipe.dataset_config is None:
            tables = tables_of(Path(str(recipe.data_dir)), names, recipe.label_column)
            tables = _with_test_files(recipe, tables)
        if tables:
            files = {split: [str(path.absolute()) for path in paths] for split, paths in tables.items()}
            check_data_files((file for paths in files.values() for file in paths), folder)
            return _load_tables(recipe, tables, files), files
        place = (recipe.data_dir or recipe.dataset, recipe.dataset_config)
        files = datasets.load_dataset_builder(*place).config.data_files or {}
        check_data_files((file for paths in files.values() for file in paths), recipe.data_dir)
        return datasets.load_dataset(*place, streaming=recipe.streaming), files
    except Exception as error:
        # The network, files and formats raise many kinds of errors, which datasets wraps. Show the first one.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        message = " ".join(str(first).split())
        damaged = unreadable_parquet(files)
        remedy = (
            "give dataset a name on the Hub, or data_dir a folder with a file per split, such as train.parquet"
            if damaged is None
            else f"{damaged} is damaged: get or write this file anew"
        )
        raise ValueError(
            f"{_describe(recipe)} cannot be loaded ({type(first).__name__}: {message}); {remedy}"
        ) from error


def _with_test_files(recipe: RecipeArguments, tables: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
    """The tables of each split, and each of `test_files` that is a file as a split of its own."""
    folder = Path(str(folder_of(recipe)))
    further = {name: folder / file for name, file in recipe.test_files.items() if (folder / file).is_file()}
    own = {path.resolve() for path in further.values()}
    rest = {split: [path for path in paths if path.resolve() not in own] for split, paths in tables.items()}
    kinds = {path.suffix.lower() for paths in (*rest.values(), list(further.values())) for path in paths}
    if len(kinds) > 1 and further:
        raise ValueError(
            f"the tables and test_files are of several kinds ({', '.join(sorted(kinds))}); give one kind"
        )
    return {split: paths for split, paths in rest.items() if paths} | {
        _stored_name(name): [path] for name, path in further.items()
    }


def _stored_name(name: str) -> str:
    """The name of a split that is made of one of `test_files`, which no split that is there has."""
    return f"{name}_of_test_files"


def _stored_test_files(
    recipe: RecipeArguments, loaded: Mapping[str, Any], stored_as: Mapping[str, str], where: str
) -> dict[str, str]:
    """The stored split of each of `test_files`."""
    found = {}
    for name, file in recipe.test_files.items():
        stored = _stored_name(name) if _stored_name(name) in loaded else file
        if stored not in loaded:
            raise ValueError(
                f"{where}: test_files names {file!r} for {name!r}, which is neither a file in it nor one of its splits "
                f"{sorted(loaded)}; correct it"
            )
        taken = [
            each for each, other in stored_as.items() if each == name or (other == stored and each != "test")
        ]
        if taken:
            raise ValueError(
                f"{where}: test_files names {name!r}: {file!r}, but the split {taken[0]!r} is there by itself; give "
                "the test set another name, or leave it out of test_files"
            )
        found[name] = stored
    return found


def _load_tables(
    recipe: RecipeArguments, tables: Mapping[str, list[Path]], files: Mapping[str, list[str]]
) -> datasets.DatasetDict:
    """Tables as splits, with columns of paths under the names that the recipe uses."""
    first = next(path for paths in tables.values() for path in paths)
    columns = [modality.column for modality in recipe.modalities.values()]
    as_text = [*columns, *([] if recipe.group_column is None else [recipe.group_column])]
    kind = KINDS[first.suffix.lower()]
    loaded = datasets.load_dataset(
        kind, data_files=dict(files), streaming=recipe.streaming, **loading_options(first, as_text)
    )
    names = next(iter(loaded.values())).column_names
    if names is None:
        # A stream of a format whose columns are not known; it is refused.
        return loaded
    # The values alone: the rows may hold pictures, which are decoded when they are read.
    paths = {"file_name": _first_value(loaded, "file_name")} if "file_name" in names else {}
    return loaded.rename_columns(renamed_columns(names, columns, paths))


def _left_out(recipe: RecipeArguments, files: Mapping[str, list[str]]) -> dict[str, str]:
    """A clause for each split of which the folder of the data has a table that is not read."""
    folder = folder_of(recipe)
    if folder is None or folder != recipe.data_dir:
        return {}
    used = [file for paths in files.values() for file in paths]
    names = (recipe.train_split, recipe.validation_split, recipe.test_split)
    return {
        split: f"; for want of a column {recipe.label_column!r} there is left out {table}"
        for split, table in left_out(Path(folder), used, names).items()
    }


def _first_value(loaded: datasets.DatasetDict, column: str) -> Any:
    first = next(iter(next(iter(loaded.values())).select_columns([column])), None)
    return None if first is None else first[column]


def folder_of(recipe: RecipeArguments) -> str | None:
    """The folder of a local data set; None for one on the Hub."""
    if recipe.data_dir is None or not Path(recipe.data_dir).is_file():
        return recipe.data_dir
    return str(Path(recipe.data_dir).parent)


def _raw_column(split: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    """One column under another name, media as bytes: ecsfusion decodes them, and its errors name the row."""
    part = split.select_columns([column]).rename_columns({column: name})
    feature = part.features[name]
    if isinstance(feature, (datasets.Image, datasets.Audio)):
        part = part.cast_column(name, type(feature)(decode=False))
    return part


def _whole(labels: Sequence[Any]) -> list[Any]:
    """Labels as they are; whole numbers that a gap in a CSV file has made real are whole again."""
    given = [label for label in labels if label is not None]
    if given and all(isinstance(label, float) and label.is_integer() for label in given):
        return [None if label is None else int(label) for label in labels]
    return list(labels)


def _class_labels(
    feature: Any, labels: Mapping[str, list[Any]], where: str
) -> tuple[list[str], dict[str, list[int]]]:
    """Names of the classes, and every label as its class, from ClassLabel, integers, strings or booleans."""
    if isinstance(feature, datasets.ClassLabel):
        values: list[Any] = list(range(feature.num_classes))
        names = list(feature.names)
    else:
        # Of a stream, the labels of the other splits are known.
        known_labels = (
            labels["train"] if "train" in labels else [each for column in labels.values() for each in column]
        )
        present = {label for label in known_labels if isinstance(label, (bool, int, str))}
        values = sorted(present, key=lambda label: (isinstance(label, str), label))
        names = [str(value) for value in values]
    index = {value: position for position, value in enumerate(values)}
    known = _listed(names)
    classes = {}
    for split, column in labels.items():
        for row, label in enumerate(column):
            if not isinstance(label, (bool, int, str)):
                row = next((row for row, label in enumerate(column) if _is_fraction(label)), row)
                raise ValueError(
                    f"{where}, split {split!r}, row {row}: the label is {shortened(column[row])}; give the class as a "
                    "whole number or a string in every row"
                )
            if label not in index:
                raise ValueError(
                    f"{where}, split {split!r}, row {row}: the label {label!r} is out of range; the "
                    f"{len(names)} classes are {known}: correct it or leave this row out"
                )
        classes[split] = [index[label] for label in column]
    if len(names) < 2:
        raise ValueError(f"{where}: there is only the class {known}; at least 2 are needed")
    _warn_of_like_names(names, where)
    return names, classes


def _warn_of_like_names(names: Sequence[str], where: str) -> None:
    """Warn of two classes that a slip of the keyboard may have made of one."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            logger.warning(
                f"{where}: the classes {other!r} and {name!r} differ in case or spaces alone; if they are one, correct "
                "the labels"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) if len(names) <= 12 else f"{names[0]!r} to {names[-1]!r}"


def _groups(split: datasets.Dataset, recipe: RecipeArguments, where: str) -> list[str]:
    """The group of every row; none where the recipe has no `group_column`."""
    if recipe.group_column is None:
        return []
    values = split[recipe.group_column]
    return [_group_of(value, recipe, f"{where}, row {row}") for row, value in enumerate(values)]


def _group_of(value: Any, recipe: RecipeArguments, where: str) -> str:
    """The group that a value of `group_column` names."""
    pattern = re.compile(recipe.group_pattern or r"(?s).+")
    match = pattern.search(str(value)) if isinstance(value, (int, str)) else None
    group = match and (match[1] if pattern.groups else match[0])
    if not group:
        raise ValueError(
            f"{where}: {value!r} in {recipe.group_column!r} names no group; correct group_column or group_pattern, or "
            "leave this row out"
        )
    return group


def _complete(
    splits: dict[str, datasets.Dataset],
    made: Sequence[str],
    share: float,
    seed: int,
    where: str,
    unread: Mapping[str, str],
) -> dict[str, datasets.Dataset]:
    """Split off what is absent of `made` from the training rows: whole groups where there are any, else single rows."""
    grouped = GROUP in splits["train"].features
    if grouped:
        _check_groups({name: rows for name, rows in splits.items() if name in SPLITS}, where)
    num_train = len(splits["train"])
    for name in made:
        if name in splits:
            continue
        size = round(share * num_train)
        take = _take_groups if grouped else _take_rows
        splits["train"], splits[name] = take(splits["train"], size, seed)
        if not len(splits[name]):
            raise ValueError(
                f"{where}: no group is small enough to be a split {name!r} of {size} rows; raise "
                "validation_share, or give more groups"
            )
        logger.warning(
            f"{where} has no split {name!r}: {len(splits[name])} of its {num_train} training rows, drawn with "
            f"seed {seed}, take its place{unread.get(name, '')}"
        )
    further = [name for name in splits if name not in SPLITS]
    return {name: splits[name] for name in (*SPLITS, *further) if name in splits}


def _check_groups(splits: Mapping[str, datasets.Dataset], where: str) -> None:
    for one, other in combinations(splits, 2):
        shared = sorted(set(splits[one][GROUP]) & set(splits[other][GROUP]))
        if shared:
            raise ValueError(
                f"{where}: the splits {one!r} and {other!r} share {len(shared)} groups, such as {shared[0]!r}; put "
                "their rows into one file and have the splits made from it, or leave out group_column"
            )


def _take_rows(rows: datasets.Dataset, size: int, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rest and `size` rows, stratified by class where every class allows it."""
    try:
        parts = rows.train_test_split(size, seed=seed, stratify_by_column=LABEL)
    except ValueError:
        # Stratification fails if a class has a single row, or if there are more classes than rows.
        parts = rows.train_test_split(size, seed=seed)
    return parts["train"], parts["test"]


def _take_groups(rows: datasets.Dataset, size: int, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rest and about `size` rows in whole groups, drawn so that the classes come near their shares.

    In a random order, a group is taken if the number of rows of each class is closer to the wanted one with it.
    """
    names, group = np.unique(rows[GROUP], return_inverse=True)
    labels = np.asarray(rows[LABEL])
    counts = np.zeros((len(names), labels.max() + 1))
    np.add.at(counts, (group, labels), 1)
    wanted = counts.sum(axis=0) * size / len(rows)
    taken = np.zeros(len(names), bool)
    for each in np.random.default_rng(seed).permutation(len(names)):
        if np.abs(wanted - counts[each]).sum() < np.abs(wanted).sum():
            taken[each] = True
            wanted -= counts[each]
    in_part = taken[group]
    return rows.select(np.flatnonzero(~in_part)), rows.select(np.flatnonzero(in_part))


def _is_fraction(label: Any) -> bool:
    return isinstance(label, float) and not label.is_integer()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_kind(name: str, encoder: PreTrainedModel, feature: Any) -> None:
    """Refuse an encoder that cannot take what its column holds, as far as the column's type tells."""
    takes = media_of(name, encoder)
    holds = None
    if isinstance(feature, datasets.Image):
        holds = "images"
    elif isinstance(feature, datasets.Audio):
        holds = "sounds"
    elif isinstance(feature, datasets.ClassLabel):
        holds = "labels"
    elif isinstance(feature, datasets.Value) and feature.dtype not in ("string", "large_string", "binary"):
        holds = f"{feature.dtype} numbers"
    if holds is not None and holds != takes:
        remedy = NUMBERS if holds.endswith("numbers") else "change the encoder or the column"
        raise ValueError(
            f"modalities.{name}: {type(encoder).__name__} takes {takes} but its column holds {holds}; {remedy}"
        )
