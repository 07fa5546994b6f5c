"""Does the wheel hold what it should, and does its installed copy work outside a checkout?

    python check_wheel.py dist/ecsfusion-*.whl

Run by `.ci/run` in an environment that has the wheel with the extra `recipes`, in an empty folder.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path


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


def check_installed() -> None:
    import ecsfusion_kernels
    import torch

    import ecsfusion
    from ecsfusion.reporting.card import CardFacts, EncoderFacts, render_card

    for module in (ecsfusion, ecsfusion_kernels):
        location = Path(str(module.__file__))
        assert "site-packages" in location.parts, f"{module.__name__} was imported from {location}"
    assert importlib.util.find_spec("kernels") is None, "a top-level module called kernels was installed"
    missing = [name for name in ecsfusion.__all__ if not hasattr(ecsfusion, name)]
    assert not missing, f"public names that cannot be imported: {missing}"
    for command in importlib.metadata.distribution("ecsfusion").entry_points.select(group="console_scripts"):
        command.load()
    script = Path(sysconfig.get_path("scripts")) / "ecsfusion"
    answer = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)  # noqa: S603
    assert "usage: ecsfusion" in answer.stdout, f"ecsfusion --help answers {answer.stdout!r}"

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

    card = render_card(
        CardFacts(
            "title", {"image": EncoderFacts("ViTModel", 1)}, {"test": {"image": 0.5}}, "data", {"test": 1}, 2
        )
    )
    assert "library_name: ecsfusion" in card


def check_recipe() -> None:
    """One epoch of the recipe, and its model loaded by the Auto classes."""
    script = Path(sysconfig.get_path("scripts")) / "ecsfusion"
    options = [
        "--config",
        "digits",
        "--strategy",
        "joint",
        "--num_train_epochs",
        "1",
        "--output_dir",
        "trained",
    ]
    subprocess.run([script, "train", *options, "--report_to", "none", "--use_cpu", "true"], check=True)  # noqa: S603
    import numpy as np
    from transformers import AutoModel

    answer = AutoModel.from_pretrained("trained").predict(image=np.zeros((8, 8), dtype=np.uint8))
    assert len(answer) == 10, f"a model of ten digits answers {answer}"


check_contents(sys.argv[1])
check_installed()
check_recipe()
print("the wheel works outside the checkout")
