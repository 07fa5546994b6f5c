"""Does the wheel hold what it should, and does its installed copy work outside a checkout?

    python check_wheel.py base dist/ecsfusion-*.whl       # after `pip install` of the wheel alone
    python check_wheel.py recipes dist/ecsfusion-*.whl    # after that of its extra `recipes` in the same environment

Run by `.ci/run` in an empty folder.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

INSTALL = 'pip install "ecsfusion[{}]"'


def check_contents(wheel: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top_level == {"ecsfusion", "ecsfusion_kernels", "hf_recipes"}, (
        f"the wheel installs {sorted(top_level)}"
    )
    for file in (
        "ecsfusion/py.typed",
        "ecsfusion/reporting/model_card.md",
        "ecsfusion_kernels/py.typed",
        "hf_recipes/configs/digits.yaml",
    ):
        assert file in names, f"the wheel lacks {file}"
    assert any(name.endswith("/LICENSE") for name in names), "the wheel lacks the license"


def check_base() -> None:
    """Measuring works, and whatever an extra brings is answered by the line that installs it."""
    import ecsfusion_kernels
    import numpy as np
    import torch

    import ecsfusion
    from ecsfusion.cli import main

    for module in (ecsfusion, ecsfusion_kernels):
        location = Path(str(module.__file__))
        assert "site-packages" in location.parts, f"{module.__name__} was imported from {location}"
    assert importlib.util.find_spec("kernels") is None, "a top-level module called kernels was installed"
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"pip check: {done.stdout}"
    extras = {
        "transformers",
        "datasets",
        "accelerate",
        "evaluate",
        "matplotlib",
        "soundfile",
        "pyarrow",
        "PIL",
    }
    brought = {name for name in extras if importlib.util.find_spec(name) is not None}
    assert not brought, f"the wheel without extras brings {sorted(brought)}"

    xor = torch.zeros(2, 2, 2)
    for x1 in range(2):
        for x2 in range(2):
            xor[x1, x2, x1 ^ x2] = 0.25
    synergy = float(ecsfusion.decompose(xor).synergy)
    assert abs(synergy - 1) < 1e-3, f"XOR has 1 bit of synergy, not {synergy}"

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (2000,), generator=generator)
    knows = torch.nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(2000, 3, generator=generator)
    noise = torch.randn(2000, 3, generator=generator)
    pid = ecsfusion.fast_pid({"knows": knows, "noise": noise}, labels)
    unique = pid.unique.flatten().tolist()
    assert unique[0] > 1, f"a copy of the label is unique by {unique[0]} bits"
    assert abs(unique[1]) < 0.1, f"noise is unique by {unique[1]} bits"

    np.savez("data.npz", knows=knows.numpy(), noise=noise.numpy(), label=labels.numpy())
    Path("data.parquet").touch()
    columns = ["--label", "label", "--modality", "knows=knows", "--modality", "noise=noise"]
    assert main(["pid", "data.npz", *columns]) == 0

    told = {}
    for name in ecsfusion.__all__:
        try:
            getattr(ecsfusion, name)
        except ImportError as error:
            told[name] = str(error)
    assert "FusionTrainer" in told
    assert "fast_pid" not in told
    assert {sentence.partition("run: ")[2] for sentence in told.values()} == {INSTALL.format("train")}
    for words, extra in (
        (["pid", "data.npz", *columns, "--plot", "pid.png"], "plots"),
        (["pid", "data.parquet", *columns], "data"),
        (["pid", "somebody/data", *columns], "data"),
        (["train"], "recipes"),
        (["export", "."], "export"),
        (["push", ".", "somebody/model"], "train"),
        (["demo", "."], "demo"),
    ):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = main(words)
        assert status == 2, f"ecsfusion {words} exits with {status}"
        assert said.getvalue().endswith(f"run: {INSTALL.format(extra)}\n"), said.getvalue()


def check_names() -> None:
    """Every public name and command, with the extra."""
    import ecsfusion
    from ecsfusion.reporting.card import CardFacts, EncoderFacts, render_card

    missing = [name for name in ecsfusion.__all__ if not hasattr(ecsfusion, name)]
    assert not missing, f"public names that cannot be imported: {missing}"
    for command in importlib.metadata.distribution("ecsfusion").entry_points.select(group="console_scripts"):
        command.load()

    card = render_card(
        CardFacts(
            "title", {"image": EncoderFacts("ViTModel", 1)}, {"test": {"image": 0.5}}, "data", {"test": 1}, 2
        )
    )
    assert "library_name: ecsfusion" in card


def check_recipe() -> None:
    """Two steps of the recipe, and its model loaded by the Auto classes."""
    script = Path(sysconfig.get_path("scripts")) / "ecsfusion"
    options = [
        "--config",
        "digits",
        "--strategy",
        "joint",
        "--max_steps",
        "2",
        "--output_dir",
        "trained",
    ]
    subprocess.run([script, "train", *options, "--report_to", "none", "--use_cpu", "true"], check=True)  # noqa: S603
    import numpy as np
    from transformers import AutoModel

    answer = AutoModel.from_pretrained("trained").predict(image=np.zeros((8, 8), dtype=np.uint8))
    assert len(answer) == 10, f"a model of ten digits answers {answer}"


installed, wheel = sys.argv[1:]
if installed == "base":
    check_contents(wheel)
    check_base()
else:
    check_names()
    check_recipe()
print(f"the wheel works outside the checkout ({installed})")
