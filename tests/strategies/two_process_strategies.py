"""One rank of a run of `test_every_strategy`: trains by every strategy in turn, and writes what this rank saw.

It tells the number of processes by itself, and keeps the global batch at 16 rows.
"""

import gc
import json
import os
from pathlib import Path

import pytest
from strategy_runs import NO_PICTURES, NO_READOUTS, by_name, trainer, weights

from ecsfusion.strategies import STRATEGIES, Strategy

GLOBAL_BATCH = 16


class Alone(Strategy):
    """It cannot be trained by several."""

    name = "alone"
    only_one_process = "it must see all rows"


def options() -> dict:
    """Of every run: plain SGD, which rounding moves a little and no more."""
    return {
        "per_device_train_batch_size": GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_steps": 6,
        "eval_steps": 3,
    }


def main(folder: Path) -> None:
    # The rest of the process is garbage of this function only: what was imported is not looked at again.
    gc.freeze()
    seen: dict = {}
    patches = pytest.MonkeyPatch()
    for place, replacement in {**NO_PICTURES, **NO_READOUTS}.items():
        patches.setattr(place, replacement)
    for name in STRATEGIES:
        try:
            run = by_name(folder / name, name, **options())
        except ValueError as error:
            seen[name] = {"refused": str(error)}
            continue
        run.train()
        seen[name] = {
            "processes": run.args.world_size,
            "history": [probe.to_json() for probe in run.record.history],
            "weights": {key: float(value.double().sum()) for key, value in weights(run).items()},
            "state": run.strategy.state_dict(),
        }
        run.save_model()
        # The wrapper would keep the process group.
        run.model_wrapped = run.model
        gc.collect()
    try:
        trainer(folder / "alone", more={"strategy": Alone}, **options())
        seen["alone"] = {"refused": ""}
    except ValueError as error:
        seen["alone"] = {"refused": str(error)}
    run.end_training()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    seen["alone"]["threads_left"] = [name for name in threads if "gloo" in name]
    (folder / f"rank{run.args.process_index}.json").write_text(json.dumps(seen))
