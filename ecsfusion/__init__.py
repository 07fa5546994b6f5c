"""Two-stage multimodal training, steered by partial information decomposition (arXiv 2509.20840).

A public name is imported when it is first used, so that measuring information does not import `transformers`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ecsfusion.auto_classes import register_with_transformers
from ecsfusion.extras import extra_for

if TYPE_CHECKING:
    from ecsfusion.controller.decision import Decision
    from ecsfusion.controller.reading import Reading
    from ecsfusion.controller.registry import make_rule
    from ecsfusion.controller.rule import Rule
    from ecsfusion.data.arrays import ArrayProcessor
    from ecsfusion.metrics import ModalityAccuracy, PIDMetric
    from ecsfusion.model.configuration import FusionConfig
    from ecsfusion.model.readout import Readout
    from ecsfusion.modeling import FusionForClassification, FusionOutput
    from ecsfusion.pid.clusters import FewSamplesWarning, pid_tensors
    from ecsfusion.pid.decomposition import PID, decompose
    from ecsfusion.pid.differentiable import cluster_centers, differentiable_pid, soft_assignments, soft_joint
    from ecsfusion.pid.estimate import RepeatedRowsWarning, fast_pid, fast_pids
    from ecsfusion.pid.head_outputs import logit_pid
    from ecsfusion.processing import FusionCollator, FusionProcessor
    from ecsfusion.reporting.hub import NotPublishedError
    from ecsfusion.strategies import make_strategy
    from ecsfusion.strategies.strategy import Strategy
    from ecsfusion.trainer import FusionTrainer
    from ecsfusion.training.divergence import DivergenceError
    from ecsfusion.training.saving import SavingError
    from ecsfusion.training_args import FusionTrainingArguments

    __version__: str

_MODULES = {
    "PID": "pid.decomposition",
    "ArrayProcessor": "data.arrays",
    "Decision": "controller.decision",
    "DivergenceError": "training.divergence",
    "FewSamplesWarning": "pid.clusters",
    "FusionCollator": "processing",
    "FusionConfig": "model.configuration",
    "FusionForClassification": "modeling",
    "FusionOutput": "modeling",
    "FusionProcessor": "processing",
    "FusionTrainer": "trainer",
    "FusionTrainingArguments": "training_args",
    "ModalityAccuracy": "metrics",
    "NotPublishedError": "reporting.hub",
    "PIDMetric": "metrics",
    "Readout": "model.readout",
    "Reading": "controller.reading",
    "RepeatedRowsWarning": "pid.estimate",
    "Rule": "controller.rule",
    "SavingError": "training.saving",
    "Strategy": "strategies.strategy",
    "cluster_centers": "pid.differentiable",
    "decompose": "pid.decomposition",
    "differentiable_pid": "pid.differentiable",
    "fast_pid": "pid.estimate",
    "fast_pids": "pid.estimate",
    "logit_pid": "pid.head_outputs",
    "make_rule": "controller.registry",
    "make_strategy": "strategies",
    "pid_tensors": "pid.clusters",
    "soft_assignments": "pid.differentiable",
    "soft_joint": "pid.differentiable",
}

__all__ = [
    "PID",
    "ArrayProcessor",
    "Decision",
    "DivergenceError",
    "FewSamplesWarning",
    "FusionCollator",
    "FusionConfig",
    "FusionForClassification",
    "FusionOutput",
    "FusionProcessor",
    "FusionTrainer",
    "FusionTrainingArguments",
    "ModalityAccuracy",
    "NotPublishedError",
    "PIDMetric",
    "Reading",
    "Readout",
    "RepeatedRowsWarning",
    "Rule",
    "SavingError",
    "Strategy",
    "cluster_centers",
    "decompose",
    "differentiable_pid",
    "fast_pid",
    "fast_pids",
    "logit_pid",
    "make_rule",
    "make_strategy",
    "pid_tensors",
    "soft_assignments",
    "soft_joint",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _MODULES:
        raise AttributeError(f"module 'ecsfusion' has no attribute {name!r}; it has {', '.join(__all__)}.")
    with extra_for(name, "train"):
        return getattr(import_module(f"ecsfusion.{_MODULES[name]}"), name)


def _version() -> str:
    """The number in pyproject.toml, which an installation has copied and a checkout on the path has as it is."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ecsfusion")
    except PackageNotFoundError:
        import tomllib
        from pathlib import Path

        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Last, because what it may import needs the names above.
register_with_transformers()
