"""One rank of a run of `test_processes`: trains, and writes what this rank saw to a file of its own.

It tells the number of processes by itself, and keeps the global batch at 16 rows.
"""

import json
import os
import sys
from pathlib import Path

from fusion_fixtures import TwoViews, two_views
from transformers import EvalPrediction

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.training import publishing

# Odd: the last batch of an evaluation is padded for one of the processes.
ROWS = 49
GLOBAL_BATCH = 16


class Groups(TwoViews):
    """Rows of which seven after one another share a subject, so that an evaluation has seven of them."""

    def __getitem__(self, index: int) -> dict[str, object]:
        return {**super().__getitem__(index), "subject": f"{len(self)} {index // 7}"}


def main(folder: Path, *words: str) -> None:
    args = FusionTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        # The first phase starts with a paused modality.
        strategy="fixed",
        strategy_options={"schedule": [[0.25, ["right"]], [0.25, ["left", "right"]]]},
        save_strategy="no",
        disable_tqdm=True,
        use_cpu="--use_cpu" in words,
        report_to="none",
        group_column_name="subject",
    )
    labels: list[int] = []

    def look(prediction: EvalPrediction) -> dict[str, float]:
        labels[:] = prediction.label_ids.tolist()
        return {}

    trainer = FusionTrainer(
        model=two_views(),
        args=args,
        train_dataset=Groups(64, 0),
        eval_dataset=Groups(ROWS, 1),
        compute_metrics=look,
    )
    trainer.train()
    trainer.evaluate(Groups(ROWS, 2), metric_key_prefix="test")
    trainer.save_model()
    trainer.create_model_card(dataset="two views")
    seen = {
        "processes": args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "history": [probe.to_json() for probe in trainer.record.history],
        "warnings": trainer.record.warnings,
        "rows": trainer.measurements["test"].num_rows,
        "groups": trainer.measurements["test"].num_groups,
        "labels": labels,
        "weights": {name: float(p.detach().double().sum()) for name, p in trainer.model.named_parameters()},
        "readout": trainer.model.config.readout,
    }
    trainer.end_training()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    seen["threads_left"] = [name for name in threads if "gloo" in name]
    (folder / f"rank{args.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    # Which takes longer than the training
    publishing.plot_trajectory = lambda *_: None
    main(Path(sys.argv[1]), *sys.argv[2:])
