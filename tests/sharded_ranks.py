"""One rank of the runs of `test_sharded`: FSDP version 2 on CPUs, which shards there as it does on GPUs."""

from __future__ import annotations

import copy
import gc
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from fusion_fixtures import StopAfterSaving, TwoViews, two_views
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from ecsfusion import FusionForClassification, FusionTrainer, FusionTrainingArguments, Rule
from ecsfusion.model.fused_heads import FUSION_HEADS
from ecsfusion.training.sharding import whole

GLOBAL_BATCH = 8
STARTED = [name for name, head in FUSION_HEADS.items() if hasattr(head, "start_from")]
WHOLE, PARTS = "FULL_STATE_DICT", "SHARDED_STATE_DICT"


class PausesAndGoesBack(Rule):
    """Pauses both modalities in turn, resets one, and ends stage 1 at step 4 with the weights of step 3."""

    resets = True
    initial_training = ("right",)

    def decide_unimodal(self, reading):
        if reading.step == 1:
            return self.train(reading, ["left", "right"], "both")
        if reading.step == 2:
            return self.train(reading, ["left"], "right starts anew, and waits", reset=["right"])
        if reading.step == 3:
            self.mark_peak(reading)
            return self.train(reading, ["left", "right"], "both")
        return self.end_stage(reading, "step 4")


class SavesAt(TrainerCallback):
    """Leaves out the checkpoints of all other steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


def trainer(
    folder: Path, fsdp: dict[str, Any] | None = None, saves: tuple[int, ...] = (1, 5, 6), **options: Any
) -> FusionTrainer:
    """The trainer of six steps, four of them in stage 1; by two processes where `fsdp` configures FSDP."""
    args = FusionTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=GLOBAL_BATCH if fsdp is None else GLOBAL_BATCH // 2,
        per_device_eval_batch_size=16,
        num_train_epochs=6,
        learning_rate=3e-3,
        # It clips, by modality.
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
        fsdp=fsdp is not None,
        fsdp_config=fsdp,
        **options,
    )
    if fsdp is not None:
        # accelerate shards on the devices of a list alone, and elsewhere trains whole weights without a word.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return FusionTrainer(
        two_views(),
        args,
        strategy=PausesAndGoesBack(("left", "right"), max_unimodal_share=0.7),
        train_dataset=TwoViews(GLOBAL_BATCH, 0),
        eval_dataset=TwoViews(31, 1),
        callbacks=[SavesAt(*saves)],
    )


def start_of(fusion: str) -> tuple[FusionForClassification, FusionForClassification]:
    """A model and the same one sharded, whose fused heads have become the sum of the others."""
    model = two_views(fusion=fusion)
    sharded = fully_shard(copy.deepcopy(model))
    for each in (model, sharded):
        each.start_fusion_from_heads()
    return model, sharded


def norms(run: FusionTrainer) -> list[dict[str, float]]:
    """The norm of the gradients of each modality, step by step."""
    logs = [entry for entry in run.state.log_history if "grad_norm" in entry]
    return [{key: value for key, value in entry.items() if key.startswith("grad_norm")} for entry in logs]


def refusal(function, *arguments: Any) -> str:
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    # What was imported is not looked at again, after every run.
    gc.freeze()
    seen: dict[str, Any] = {"refused": {}}
    # Killed in stage 1, where a modality has been paused from the start, and in stage 2. There nothing is saved before:
    # to save leaves the weights sharded, and to evaluate does not.
    for name, kind, killed in (("whole", WHOLE, 1), ("parts", PARTS, 5)):
        run = trainer(folder / name, {"version": 2, "state_dict_type": kind}, (killed, 5, 6))
        run.add_callback(StopAfterSaving(killed))
        with suppress(KeyboardInterrupt):
            run.train()
        run = trainer(folder / name, {"version": 2, "state_dict_type": kind})
        run.train(resume_from_checkpoint=True)
        run.save_model()
        seen[name] = {
            "history": [probe.to_json() for probe in run.record.history],
            "norms": norms(run),
        }
    # Of the encoders' layers each one, beside the model itself.
    seen["sharded"] = sorted(
        {type(module).__name__ for module in run.model.modules() if type(module).__name__.startswith("FSDP")}
    )
    rank, rows = run.args.process_index, TwoViews(2, 0)
    views = dict(zip(("left", "right"), rows.views, strict=True))
    present = {"right": torch.full((2,), rank == 0)}
    seen["refused"]["modalities"] = refusal(lambda: run.model(**views, present=present))
    seen["refused"]["neither"] = refusal(lambda: run.model(left=rows.views[0]))
    seen["refused"]["again"] = refusal(run.train)
    seen["refused"]["saved"] = refusal(run.model.save_pretrained, folder / "saved")
    seen["refused"]["exported"] = refusal(run.model.export, folder / "exported")
    seen["refused"]["layout"] = refusal(
        lambda: trainer(folder / "parts", {"version": 2, "state_dict_type": WHOLE}).train(
            resume_from_checkpoint=True
        )
    )
    early = trainer(folder / "early", {"version": 2})
    seen["refused"]["evaluation"] = refusal(early.evaluate)
    adagrad = trainer(folder / "adagrad", {"version": 2}, optim="adagrad")
    seen["refused"]["adagrad"] = refusal(adagrad.train)
    by_size = trainer(folder / "size", {"version": 2, "auto_wrap_policy": "SIZE_BASED_WRAP"})
    seen["refused"]["size"] = refusal(by_size.train)
    del early, adagrad, by_size
    seen["starts"] = {}
    for fusion in STARTED:
        model, sharded = start_of(fusion)
        seen["starts"][fusion] = all(
            torch.equal(value, whole(other))
            for value, other in zip(model.parameters(), sharded.parameters(), strict=True)
        )
    del model, sharded
    run.end_training()
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
