"""What of two-stage training cannot run where weights or optimizer states are sharded among processes."""

from __future__ import annotations

from typing import Any, Protocol

from ecsfusion.strategies import Strategy


class Sharding(Protocol):
    """What is asked of the [`FusionTrainer`]."""

    is_deepspeed_enabled: Any
    is_fsdp_enabled: Any
    args: Any
    strategy: Strategy


def check_sharding(trainer: Sharding) -> None:
    """Refuse what would silently train something else.

    Pausing a modality and restoring the peak of stage 1 need the weights and the optimizer's state as they are.
    DeepSpeed (ZeRO-2 as well) trains flat copies of its own, which neither would reach: a paused modality would go on
    with its momentum, and the next step would undo the restored peak. FSDP leaves each process a part of every weight.

    They do not show a strategy the gradients of a modality either.

    Raises:
        ValueError: DeepSpeed or FSDP with `stages` other than "joint", with `joint_pausing`, or with a strategy that
            changes gradients.
    """
    strategy = trainer.strategy
    kind = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP" if trainer.is_fsdp_enabled else None
    args = trainer.args
    if kind is not None and type(strategy).adjust_gradients is not Strategy.adjust_gradients:
        raise ValueError(
            f"the strategy {strategy.name or type(strategy).__name__!r} changes gradients, which {kind} keeps to "
            "itself; use another strategy, or DistributedDataParallel (torchrun or accelerate launch --multi_gpu)."
        )
    if kind is None or (args.stages == "joint" and not args.joint_pausing):
        return
    found = "joint_pausing is True" if args.stages == "joint" else f"stages is {args.stages!r}"
    raise ValueError(
        f"{found}, but training runs under {kind}, whose weights can be neither paused by modality nor put back to "
        "stage 1's peak; use stages='joint' without joint_pausing, or DistributedDataParallel (torchrun or "
        "accelerate launch --multi_gpu), which needs the whole model on every device."
    )
