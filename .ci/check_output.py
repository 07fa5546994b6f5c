"""Did the main job leave a model that loads, its peak of stage 1, a card whose code runs, and a picture?

    python .ci/check_output.py FOLDER

Run by `.ci/run` with the output folder of `hf_recipes/run.py`.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

# What a card says while the model lives in a folder only.
PLACEHOLDER = "path/to/this/folder"


def check_card(folder: Path) -> dict[str, Any]:
    """Run the card's code with the folder in place of the placeholder; returns what the code defines."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["library_name"] == "ecsfusion", f"the card's header is {header}"
    assert "![trajectory](trajectory.png)" in card, "the card does not show the picture"
    for word in ("fused head", "calibrated combination", "redundancy", "synergy", "High uniqueness is not"):
        assert word in card, f"the card says nothing of: {word}"
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(snippets) == 2, f"the card has {len(snippets)} pieces of code, not one per stage"
    defined: dict[str, Any] = {}
    models = []
    for snippet in snippets:
        exec(snippet.replace(PLACEHOLDER, str(folder)), defined)  # noqa: S102  (this very code is what is checked)
        models.append(defined["model"])
    return {"processor": defined["processor"], "final": models[0], "peak": models[1]}


def check_models(folder: Path, final: torch.nn.Module, peak: torch.nn.Module) -> None:
    assert (folder / "model.safetensors").is_file(), "the final weights are not in safetensors"
    for name, model in (("final model", final), ("peak of stage 1", peak)):
        for key, value in model.state_dict().items():
            assert not value.is_floating_point() or value.isfinite().all(), f"{name}: {key} is not finite"
    weights = peak.state_dict()
    assert any(not torch.equal(value, weights[key]) for key, value in final.state_dict().items()), (
        "the final model and the peak of stage 1 have the same weights"
    )


def check_picture(folder: Path) -> None:
    with Image.open(folder / "trajectory.png") as picture:
        picture.load()
        extrema = picture.convert("L").getextrema()
        assert min(picture.size) >= 300, f"the picture is only {picture.size} pixels"
    assert extrema[0] != extrema[1], "the picture is empty"


output = Path(sys.argv[1]).resolve()
loaded = check_card(output)
check_models(output, loaded["final"], loaded["peak"])
check_picture(output)
print(f"{output.name}/: final model, peak of stage 1, card and picture are there and load")
