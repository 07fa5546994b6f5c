"""The recipes of CONTRIBUTING, "How to add something", followed to the letter in a copy of the library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "kernels/torch-ext/ecsfusion_kernels"

RULE = '''"""All modalities train alone until the first reading after half of stage 1."""

from __future__ import annotations

from ecsfusion.controller.decision import Decision
from ecsfusion.controller.reading import Reading
from ecsfusion.controller.rule import Rule


class Steady(Rule):
    """All modalities train alone for `share` of the budget."""

    name = "steady"

    def __init__(self, modalities, *, share: float = 0.25, max_unimodal_share: float = 0.5) -> None:
        super().__init__(modalities, max_unimodal_share=max_unimodal_share)
        self.share = share

    def decide_unimodal(self, reading: Reading) -> Decision:
        """End stage 1 when the share is used."""
        if reading.progress >= self.share:
            return self.end_stage(reading, "the share is used")
        return self.train(reading, self.modalities, "all train")
'''

STRATEGY = '''"""Joint training in which the first modality has gradients of twice the size."""

from __future__ import annotations

from ecsfusion.strategies.strategy import Strategy


class Louder(Strategy):
    """Joint training in which the first modality has gradients of twice the size."""

    name = "louder"
    stages = "joint"
    auxiliary_weight = 0.0

    def adjust_gradients(self, model) -> None:
        """Double the gradients of the first modality."""
        for parameter in model.modality_parameters(self.modalities[0]).values():
            if parameter.grad is not None:
                parameter.grad.mul_(2.0)
'''

KERNEL = '''"""Twice the values of a vector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..language import Variant, jit, options, runs_kernels, tl
from ..reference.double import double as reference_double

__all__ = ["double"]

BLOCK = 256


@jit(do_not_specialize=["num_values"])
def _double(values_ptr, result_ptr, num_values: tl.int64, BLOCK: tl.constexpr):
    """result = 2 values, one block of values."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_values
    tl.store(result_ptr + index, 2 * tl.load(values_ptr + index, inside, other=0.0), inside)


def _launch_double(values: Tensor) -> Tensor:
    result = torch.empty_like(values)
    if len(values):
        _double[(-(-len(values) // BLOCK),)](values, result, len(values), BLOCK=BLOCK, **options(4))
    return result


def variants() -> list[Variant]:
    """Every compilation that the launcher can ask for."""
    types = {"values_ptr": "*fp32", "result_ptr": "*fp32", "num_values": "i64"}
    return [Variant(_double, types, {"BLOCK": BLOCK}, num_warps=4)]


@custom_op(add_op_namespace_prefix("double"), mutates_args=())
def double(values: Tensor) -> Tensor:
    """Twice the values (N,) float32."""
    function = _launch_double if runs_kernels(values) else reference_double
    return function(values)


@double.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)
'''

REFERENCE = '''"""Twice the values of a vector, in plain PyTorch."""

from torch import Tensor

__all__ = ["double"]


def double(values: Tensor) -> Tensor:
    """Twice the values (N,) float32."""
    return 2 * values
'''

NEW_FILES = {
    "ecsfusion/controller/steady.py": RULE,
    "ecsfusion/strategies/louder.py": STRATEGY,
    f"{KERNELS}/ops/double.py": KERNEL,
    f"{KERNELS}/reference/double.py": REFERENCE,
}
REGISTRY_LINES = {
    "ecsfusion/controller/registry.py": [
        (
            "from ecsfusion.controller.rule import",
            "from ecsfusion.controller.steady import Steady\nfrom ecsfusion.controller.rule import",
        ),
        ("for rule in (Adaptive, ", "for rule in (Steady, Adaptive, "),
    ],
    "ecsfusion/strategies/__init__.py": [
        (
            "from ecsfusion.strategies.mla import",
            "from ecsfusion.strategies.louder import Louder\nfrom ecsfusion.strategies.mla import",
        ),
        ("        TwoStage,\n", "        TwoStage,\n        Louder,\n"),
    ],
    "ecsfusion/model/pooling.py": [
        ('        "deit",\n', '        "deit",\n        "videomae",\n'),
    ],
    "ecsfusion/evaluation/logged_values.py": [
        (
            '    _information("redundancy", lambda i: i.redundancy, in_tables=True),\n',
            '    _information("redundancy", lambda i: i.redundancy, in_tables=True),\n'
            '    _information("joint_information", lambda i: i.joint_mutual_information),\n',
        ),
    ],
}

LOOK = """
import json, sys
import torch
sys.path.append(sys.argv[1])
import fusion_fixtures as tiny
from readings import make_measurement, make_reading
import ecsfusion_kernels
from ecsfusion_kernels import compile_check, reference
from ecsfusion import FusionTrainingArguments, make_rule
from ecsfusion.evaluation.logged_values import log_values, logged_names
from ecsfusion.model.pooling import pool
from ecsfusion.strategies import STRATEGIES
from ecsfusion.training.plan import make_plan

model = tiny.two_views()

def plan(**options):
    args = FusionTrainingArguments(output_dir=sys.argv[2], use_cpu=True, report_to="none", **options)
    return make_plan(None, args, model)

steady, louder = plan(strategy="steady", strategy_options={"share": 0.1}), plan(strategy="louder")
each = {"left": 0.5, "right": 0.5}
floor = {**each, "redundancy": 0.1, "synergy": 0.1}
reading = make_reading(step=1, progress=0.2, training=tuple(each), unique=each, accuracy=each, floor=floor)
video = tiny.tiny_videomae().eval()
with torch.no_grad():
    outputs = video(pixel_values=torch.randn(2, 4, 1, 4, 4))
values = log_values(make_measurement())
print(json.dumps({
    "rule": [steady.stages, steady.rule.name, steady.rule.share, steady.rule.decide(reading).reason],
    "strategy": [louder.stages, louder.strategy.name, louder.auxiliary_weight, "louder" in STRATEGIES],
    "kernel": [
        ecsfusion_kernels.double(torch.ones(3)).tolist(),
        reference.double(torch.ones(3)).tolist(),
        "double" in ecsfusion_kernels.__all__,
        any("_double" in str(variant) for variant in compile_check.all_variants()),
    ],
    "encoder": bool(torch.equal(pool(video, outputs), outputs.last_hidden_state[:, 0])),
    "logged": ["joint_information" in values, "joint_information" in logged_names(("left", "right"), "accuracy")],
}))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a copy of the library can do, to which one thing of each kind was added."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("ecsfusion", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for path, text in NEW_FILES.items():
        (folder / path).write_text(text, encoding="utf-8")
    for path, changes in REGISTRY_LINES.items():
        text = (folder / path).read_text(encoding="utf-8")
        for before, after in changes:
            assert text.count(before) == 1, f"{path}: {before!r}"
            text = text.replace(before, after)
        (folder / path).write_text(text, encoding="utf-8")
    places = os.pathsep.join([str(folder), str(folder / "kernels/torch-ext")])
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(ROOT / "tests"), str(folder / "run")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_rule_steers_two_stages_by_its_name(library):
    stages, name, share, reason = library["rule"]
    assert (stages, name, share) == ("two-stage", "steady", 0.1)
    assert reason.startswith("stage 1 ends: the share is used")


def test_a_strategy_is_chosen_by_its_name(library):
    assert library["strategy"] == ["joint", "louder", 0.0, True]


def test_a_kernel_is_found_with_its_reference_and_its_compilations(library):
    assert library["kernel"] == [[2.0] * 3, [2.0] * 3, True, True]


def test_an_encoder_family_is_pooled_as_its_line_says(library):
    assert library["encoder"]


def test_a_logged_value_is_in_every_log(library):
    assert library["logged"] == [True, True]


def test_contributing_names_the_files_that_these_tests_touch():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in REGISTRY_LINES:
        assert f"`{path}`" in text, path
    for folder in (f"{KERNELS}/ops", f"{KERNELS}/reference", "ecsfusion/controller", "ecsfusion/strategies"):
        assert f"`{folder}/NAME.py`" in text, folder
