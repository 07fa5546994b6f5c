"""What an installed copy promises. `.ci/run` builds the wheel and tries it in an empty environment."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels" / "torch-ext" / "ecsfusion_kernels"


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run_python(code, cwd, *paths):
    """Standard output of `code` in a new interpreter whose first entry of sys.path is `cwd`, then `paths`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), *map(str, paths)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def packages_below(folder, name):
    """Dotted names of every folder below that holds Python files."""
    folders = {file.parent.relative_to(folder) for file in folder.rglob("*.py")}
    return {".".join([name, *path.parts]) for path in folders}


def test_every_folder_with_code_is_packaged(pyproject):
    present = packages_below(ROOT / "ecsfusion", "ecsfusion") | packages_below(KERNELS, "ecsfusion_kernels")
    present |= packages_below(ROOT / "hf_recipes", "hf_recipes")
    assert set(pyproject["tool"]["setuptools"]["packages"]) == present


@pytest.mark.parametrize(
    ("package", "file"),
    [("ecsfusion", "py.typed"), ("ecsfusion.reporting", "model_card.md"), ("ecsfusion_kernels", "py.typed")],
)
def test_data_files_are_packaged_and_found(pyproject, package, file):
    assert file in pyproject["tool"]["setuptools"]["package-data"][package]
    assert resources.files(package).joinpath(file).is_file()


def test_version_of_the_installed_distribution_is_that_of_the_tree(pyproject):
    assert metadata.version("ecsfusion") == pyproject["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {pyproject['project']['version']}\n" in citation


def test_commands_resolve_to_a_function():
    commands = metadata.distribution("ecsfusion").entry_points.select(group="console_scripts")
    for command in commands:
        assert callable(command.load())


def test_promised_lower_bounds(pyproject):
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    required = [Requirement(text) for text in [*project["dependencies"], *extras["data"], *extras["train"]]]
    floors = {requirement.name: str(requirement.specifier) for requirement in required}
    for name, floor in {
        "torch": ">=2.11",
        "transformers": ">=5.18",
        "accelerate": ">=1.15",
        "datasets": ">=5.0",
        "evaluate": ">=0.4.6",
    }.items():
        assert floors[name] == floor
    triton = [Requirement(text) for text in project["optional-dependencies"]["triton"]]
    assert [(requirement.name, str(requirement.specifier)) for requirement in triton] == [("triton", ">=3.6")]
    assert triton[0].marker is not None
    assert not triton[0].marker.evaluate({"platform_system": "Darwin"})


def test_plain_dependencies_name_nothing_of_cuda(pyproject):
    plain = pyproject["project"]["dependencies"]
    assert not [text for text in plain if re.match(r"(nvidia|cuda|triton|cupy|torchcodec)", text)]


def test_uv_runs_the_recipe_by_itself_with_what_the_project_declares(pyproject):
    """The header of PEP 723, which `hf jobs uv run hf_recipes/run.py` reads."""
    text = (ROOT / "hf_recipes" / "run.py").read_text(encoding="utf-8")
    header = re.match(r"# /// script\n((?:# .*\n)+?)# ///\n", text)
    script = tomllib.loads(re.sub("^# ", "", header[1], flags=re.MULTILINE))
    project = pyproject["project"]
    assert script["requires-python"] == project["requires-python"]
    (needed,) = map(Requirement, script["dependencies"])
    assert needed.name == project["name"]
    assert needed.extras <= set(project["optional-dependencies"])


def test_no_package_is_called_kernels(pyproject):
    assert not (ROOT / "kernels" / "__init__.py").exists()
    installed = (metadata.distribution("ecsfusion").read_text("top_level.txt") or "").split()
    assert "kernels" not in installed
    assert {name.split(".")[0] for name in pyproject["tool"]["setuptools"]["packages"]} == {
        "ecsfusion",
        "ecsfusion_kernels",
        "hf_recipes",
    }


def test_transformers_finds_the_same_kernels_in_the_root_as_elsewhere(tmp_path):
    code = (
        "import transformers.utils.import_utils as u; "
        "print(u._is_package_available('kernels', return_version=True)[0], u.is_kernels_available())"
    )
    assert run_python(code, ROOT) == run_python(code, tmp_path)


def test_the_real_kernels_package_wins_over_the_folder(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    code = "import kernels; print(kernels.__file__)"
    assert run_python(code, ROOT, tmp_path) == str(package / "__init__.py")


def test_kernel_package_has_the_layout_of_the_hub():
    build = tomllib.loads((ROOT / "kernels" / "build.toml").read_text(encoding="utf-8"))
    assert set(build) == {"general", "torch-noarch"}
    name = build["general"]["name"]
    assert re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", name)
    assert (ROOT / "kernels" / "torch-ext" / name.replace("-", "_") / "__init__.py").is_file()
    assert {"version", "edition", "license", "backends"} <= set(build["general"])


def test_kernel_package_loads_by_path_under_another_name(tmp_path):
    """As the Hub's loader does it: from a folder off the path, under its own name, without ecsfusion."""
    copy = tmp_path / "torch-universal"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("loaded_kernels", {str(copy / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["loaded_kernels"] = module
spec.loader.exec_module(module)
assert not [name for name in sys.modules if name.split(".")[0] in ("ecsfusion", "ecsfusion_kernels")]
import torch
print(module.broja.__name__)
"""
    assert run_python(code, tmp_path) == "broja"


def test_nothing_but_tests_benchmarks_and_recipes_knows_the_shared_data():
    for file in [*(ROOT / "ecsfusion").rglob("*"), *KERNELS.rglob("*")]:
        if file.suffix in {".py", ".md"}:
            assert "shared/data" not in file.read_text(encoding="utf-8"), file


def readme_commands():
    """First line of the code block after each marker `<!-- name -->` of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- (main job|tests) -->\n```\w*\n([^\n]*)\n", text))


def test_readme_has_two_commands_of_one_line_each():
    commands = readme_commands()
    assert set(commands) == {"main job", "tests"}
    for command in commands.values():
        assert "pip install torch==2.13.0" in command
        assert not command.endswith("\\")
    assert commands["main job"].endswith("accelerate launch hf_recipes/run.py")
    assert commands["tests"].endswith("pytest -n 2")


def test_public_names_exist():
    import ecsfusion

    assert ecsfusion.__all__
    assert [name for name in ecsfusion.__all__ if not hasattr(ecsfusion, name)] == []


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load_workflow(name):
    """A workflow as a mapping; YAML reads the key `on` as True."""
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def shell_commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_gate_and_the_tests_run_for_every_change():
    workflow = load_workflow("ci.yml")
    assert {"push", "pull_request"} <= set(workflow[True])
    assert shell_commands(workflow["jobs"]["gate"]) == [".ci/run"]
    assert shell_commands(workflow["jobs"]["tests"]) == [readme_commands()["tests"]]


def test_every_supported_python_is_tested(pyproject):
    jobs = load_workflow("ci.yml")["jobs"]
    setup = next(step["with"] for step in jobs["gate"]["steps"] if "setup-python" in step.get("uses", ""))
    tested = {setup["python-version"].split()[-1], *jobs["tests"]["strategy"]["matrix"]["python-version"]}
    words = [text.split(" :: ")[-1] for text in pyproject["project"]["classifiers"]]
    assert tested == {word for word in words if re.fullmatch(r"3\.\d+", word)}


def test_newest_dependencies_are_tried_every_week():
    workflow = load_workflow("newest.yml")
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", workflow[True]["schedule"][0]["cron"])
    assert "workflow_dispatch" in workflow[True]
    commands = shell_commands(workflow["jobs"]["tests"])
    assert "pip install --upgrade --pre transformers accelerate triton" in commands
    assert commands[-2:] == ["pytest", "pytest -m slow"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read_and_name_versions(path):
    workflow = load_workflow(path.name)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60
        # To publish on PyPI, and the documentation as a site, are the only other rights that any job has.
        allowed = {
            ("release.yml", "publish"): {"id-token": "write"},
            ("docs.yml", "publish"): {"pages": "write", "id-token": "write"},
        }
        assert job.get("permissions") == allowed.get((path.name, name))
        for step in job["steps"]:
            assert re.fullmatch(
                r"actions/[a-z-]+@v\d+|pypa/\S+@release/v1", step.get("uses", "actions/none@v0")
            )
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_publishing_waits_for_the_checked_wheel_and_an_approval():
    jobs = load_workflow("release.yml")["jobs"]
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == "pypi"
    assert any("check_wheel.py" in command for command in shell_commands(jobs["build"]))


def test_issue_forms_are_complete_and_the_command_for_versions_runs(tmp_path):
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*.yml")}
    assert set(forms) == {"config", "bug_report", "feature_request"}
    for name in ("bug_report", "feature_request"):
        assert forms[name]["name"]
        assert forms[name]["description"]
        fields = [field for field in forms[name]["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
    versions = next(field for field in forms["bug_report"]["body"] if field.get("id") == "versions")
    command = re.search(r"`python -c \"(.*)\"`", versions["attributes"]["description"]).group(1)
    printed = run_python(command, tmp_path).splitlines()
    assert f"torch=={metadata.version('torch')}" in printed
    assert f"ecsfusion=={metadata.version('ecsfusion')}" in printed


def test_the_version_is_written_in_pyproject_and_in_the_citation_alone(pyproject):
    import ecsfusion

    version = pyproject["project"]["version"]
    assert ecsfusion.__version__ == version
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "ecsfusion").rglob("*.py")]
    assert not [text for text in sources if f'"{version}"' in text]


def test_a_checkout_on_the_path_knows_its_version(pyproject, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    import ecsfusion

    monkeypatch.setattr(metadata, "version", absent)
    assert ecsfusion.__version__ == pyproject["project"]["version"]
