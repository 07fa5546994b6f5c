"""One rank of the runs of `test_sharded`: FSDP version 2 on CPUs, which shards there as it does on GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from fusion_fixtures import TwoViews, two_views

from ecsfusion import FusionTrainer, FusionTrainingArguments, Rule

GLOBAL_BATCH = 8


class PausesAndGoesBack(Rule):
    """Pauses both modalities in turn, resets one, and ends stage 1 at step 8 with the weights of step 6."""

    resets = True
    initial_training = ("right",)

    def decide_unimodal(self, reading):
        if reading.step == 2:
            return self.train(reading, ["left", "right"], "both")
        if reading.step == 4:
            return self.train(reading, ["left"], "right starts anew, and waits", reset=["right"])
        if reading.step == 6:
            self.mark_peak(reading)
            return self.train(reading, ["left", "right"], "both")
        return self.end_stage(reading, "step 8")


def shard_on_cpus(args: FusionTrainingArguments) -> None:
    """Let accelerate shard on CPUs: it does so on the devices of a list, and elsewhere trains whole weights."""
    assert args.world_size == 2
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def trainer(folder: Path, processes: int = 2, fsdp: dict[str, Any] | None = None, **options: Any) -> FusionTrainer:
    """The trainer of 12 steps, eight of them in stage 1; `fsdp` is the configuration of FSDP."""
    defaults = {
        "num_train_epochs": 6,
        "learning_rate": 3e-3,
        "max_grad_norm": 0.5,
        "strategy": None if "strategy" in options else PausesAndGoesBack(("left", "right"), max_unimodal_share=0.7),
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    options = defaults | options
    rule, strategy = (None, options.pop("strategy")) if isinstance(options["strategy"], str) else (options.pop("strategy"), None)
    args = FusionTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=GLOBAL_BATCH // processes,
        per_device_eval_batch_size=16,
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
        strategy=strategy,
        fsdp=fsdp is not None,
        fsdp_config=fsdp,
        **options,
    )
    if fsdp is not None:
        shard_on_cpus(args)
    return FusionTrainer(
        two_views(), args, strategy=rule, train_dataset=TwoViews(16, 0), eval_dataset=TwoViews(31, 1)
    )
