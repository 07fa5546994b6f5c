"""Two-stage multimodal training, steered by partial information decomposition (arXiv 2509.20840).

Names are loaded when they are first used: measuring information does not import the Trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecsfusion.competition import competitive_strength
    from ecsfusion.controller import Decision, Reading, Rule, make_rule
    from ecsfusion.data.arrays import ArrayProcessor
    from ecsfusion.estimate import fast_pid, fast_pids, probe_tensors
    from ecsfusion.gradient import cluster_centres, differentiable_pid, soft_assignments, soft_joint
    from ecsfusion.modeling import FusionConfig, FusionForClassification, FusionOutput
    from ecsfusion.pid import PID, decompose
    from ecsfusion.processing import FusionCollator, FusionProcessor
    from ecsfusion.readout import Readout
    from ecsfusion.trainer import FusionTrainer
    from ecsfusion.training_args import FusionTrainingArguments

__version__ = "0.1.0"

_MODULES = {
    "PID": "pid",
    "ArrayProcessor": "data.arrays",
    "Decision": "controller",
    "FusionCollator": "processing",
    "FusionConfig": "modeling",
    "FusionForClassification": "modeling",
    "FusionOutput": "modeling",
    "FusionProcessor": "processing",
    "FusionTrainer": "trainer",
    "FusionTrainingArguments": "training_args",
    "Readout": "readout",
    "Reading": "controller",
    "Rule": "controller",
    "decompose": "pid",
    "fast_pid": "estimate",
    "fast_pids": "estimate",
    "cluster_centres": "gradient",
    "competitive_strength": "competition",
    "differentiable_pid": "gradient",
    "make_rule": "controller",
    "probe_tensors": "estimate",
    "soft_assignments": "gradient",
    "soft_joint": "gradient",
}

__all__ = [
    "PID",
    "ArrayProcessor",
    "Decision",
    "FusionCollator",
    "FusionConfig",
    "FusionForClassification",
    "FusionOutput",
    "FusionProcessor",
    "FusionTrainer",
    "FusionTrainingArguments",
    "Reading",
    "Readout",
    "Rule",
    "cluster_centres",
    "competitive_strength",
    "decompose",
    "differentiable_pid",
    "fast_pid",
    "fast_pids",
    "make_rule",
    "probe_tensors",
    "soft_assignments",
    "soft_joint",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ecsfusion' has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"ecsfusion.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
