"""What is distributed beside the wheel: the images, the recipe for conda-forge, and the list of licences."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ecsfusion.cli import main

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))

import licences  # noqa: E402

CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "soundfile": "pysoundfile"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def instructions_by_target():
    """The instructions of the Dockerfile, (word, rest), by the name of their stage; those before any under ""."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    stages, target = {"": []}, ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            target = rest.rpartition(" AS ")[2]
            stages[target] = []
        stages[target].append((word, rest))
    return stages


@pytest.fixture(scope="module")
def stages():
    return instructions_by_target()


def of(stage, word):
    return [rest for name, rest in stage if name == word]


def test_images_start_from_one_version_of_python(stages, project):
    assert set(stages) == {"", "build", "common", "cuda", "cpu"}
    (version,) = of(stages[""], "ARG")
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+", version)
    assert f"Programming Language :: Python :: {version[7:11]}" in project["project"]["classifiers"]
    starts = [of(stage, "FROM")[0].partition(" AS ")[0] for name, stage in stages.items() if name]
    assert starts == ["python:${PYTHON}", "python:${PYTHON}", "common", "common"]


def test_the_wheel_of_an_image_is_built_from_all_that_it_needs(stages, project):
    copied = [source for rest in of(stages["build"], "COPY") for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    settings = project["tool"]["setuptools"]
    needed = ["pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]]
    for package in settings["packages"]:
        top = package.partition(".")[0]
        folder = settings["package-dir"].get(top, top) + package.removeprefix(top).replace(".", "/")
        assert (ROOT / folder / "__init__.py").is_file()
        needed.append(folder)
    for path in needed:
        assert any(path == source or path.startswith(f"{source}/") for source in copied), path


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_installs_what_pyproject_names_and_runs_as_a_user(stages, project, target):
    arguments = dict(rest.split("=", 1) for rest in of(stages[target], "ARG"))
    extras = project["project"]["optional-dependencies"]
    assert set(arguments["EXTRAS"].split(",")) <= set(extras)
    assert ("triton" in arguments["EXTRAS"].split(",")) == (target == "cuda")
    assert f"torch=={arguments['TORCH']}" in (ROOT / "README.md").read_text(encoding="utf-8")
    commands = " ".join(of(stages[target], "RUN"))
    assert ("download.pytorch.org/whl/cpu" in commands) == (target == "cpu")
    assert "pip check" in commands
    # What is installed belongs to root, and what runs does not.
    assert stages[target][-1] == ("USER", "user")
    assert "useradd --create-home user" in of(stages["common"], "RUN")[0]


def test_an_image_runs_the_command(stages, project, capsys):
    (name,) = yaml.safe_load(of(stages["common"], "ENTRYPOINT")[0])
    assert project["project"]["scripts"] == {name: f"{main.__module__}:{main.__name__}"}
    with pytest.raises(SystemExit) as stop:
        main(yaml.safe_load(of(stages["common"], "CMD")[0]))
    assert stop.value.code == 0
    assert "usage: ecsfusion" in capsys.readouterr().out


def conda_names(requirements):
    """Requirements as conda writes them, sorted; the library itself left out."""
    wanted = [Requirement(text) for text in requirements]
    return sorted(
        f"{CONDA_NAMES.get(each.name, each.name)} {each.specifier}"
        for each in wanted
        if each.name != "ecsfusion"
    )


def test_the_recipe_of_conda_asks_for_what_pyproject_asks_for(project):
    recipe = yaml.safe_load((ROOT / ".packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    metadata_of = project["project"]
    assert recipe["context"]["version"] == metadata_of["version"]
    assert metadata_of["requires-python"] == f">={recipe['context']['python_min']},<3.14"
    host, run = recipe["requirements"]["host"], recipe["requirements"]["run"]
    assert set(project["build-system"]["requires"]) == {each.replace(" ", "") for each in host if ">" in each}
    assert run[0] == "python >=${{ python_min }},<3.14"
    assert sorted(run[1:]) == conda_names(metadata_of["dependencies"])
    extras = metadata_of["optional-dependencies"]
    users = [extras[name] for name in list(extras)[: list(extras).index("all")]]
    optional = {text for requirements in users for text in requirements}
    assert sorted(recipe["requirements"]["run_constraints"]) == conda_names(optional)
    (entry,) = recipe["build"]["python"]["entry_points"]
    assert dict([entry.split(" = ")]) == metadata_of["scripts"]
    assert recipe["about"]["license"] == metadata_of["license"]
    assert recipe["about"]["summary"] == metadata_of["description"]
    assert (ROOT / recipe["about"]["license_file"]).is_file()


def listed_licences():
    """The rows of the page, by the extra; the base is ""."""
    groups, name = {}, None
    for line in licences.PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            name = (re.findall(r"extra `(\w+)`", line) or [""])[0]
            groups[name] = []
        elif cells := re.fullmatch(r"\| ([\w.-]+) \| (\d\S*) \| (.+) \|", line):
            groups[name].append(licences.Row(*cells.groups()))
    return groups


def test_the_licence_of_every_dependency_is_listed(project):
    groups = listed_licences()
    extras = project["project"]["optional-dependencies"]
    assert list(groups) == ["", *list(extras)[: list(extras).index("all")]]
    names = {row.name for rows in groups.values() for row in rows}
    for requirements in (project["project"]["dependencies"], *(extras[name] for name in groups if name)):
        assert {canonicalize_name(Requirement(text).name) for text in requirements} - {"ecsfusion"} <= names


def test_the_listed_licences_are_what_the_packages_say():
    """Of those that are here in the version of the page."""
    compared = 0
    for row in (row for rows in listed_licences().values() for row in rows):
        try:
            package = metadata.distribution(row.name)
        except metadata.PackageNotFoundError:
            continue
        if package.version.partition("+")[0] == row.version:
            assert licences.licence_of(package) == row.licence, row.name
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT", "License": "the text"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License", "License": "the text"}, "BSD License"),
        ({"Classifier": "License :: OSI Approved", "License": "ISC"}, "ISC"),
        ({"License": "Permission is hereby granted, " * 9}, "see its files"),
        ({}, "see its files"),
    ],
)
def test_the_licence_is_read_from_the_newest_field_that_has_it(tmp_path, fields, licence):
    folder = tmp_path / "thing-1.dist-info"
    folder.mkdir()
    lines = [f"{key}: {value}" for key, value in {"Name": "thing", "Version": "1", **fields}.items()]
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert licences.licence_of(metadata.PathDistribution(folder)) == licence
