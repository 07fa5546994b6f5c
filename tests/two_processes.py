"""One rank of `test_two_processes_train_as_one`: trains, and writes what this rank saw to a file of its own."""

import json
import sys
from pathlib import Path

from fusion_fixtures import TwoViews, two_views

from ecsfusion import FusionTrainer, FusionTrainingArguments

ROWS = 49  # odd: the last batch of an evaluation is padded for one of the processes


def main(folder: Path) -> None:
    args = FusionTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=4,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        learning_rate=3e-3,
        rule="fixed",  # the first phase starts with a paused modality
        rule_options={"schedule": [[0.25, ["right"]], [0.25, ["left", "right"]]]},
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
    )
    trainer = FusionTrainer(
        model=two_views(), args=args, train_dataset=TwoViews(64, 0), eval_dataset=TwoViews(ROWS, 1)
    )
    trainer.train()
    trainer.evaluate(TwoViews(ROWS, 2), metric_key_prefix="test")
    trainer.save_model()
    trainer.create_model_card(dataset="two views")
    seen = {
        "processes": args.world_size,
        "wrapped": type(trainer.model_wrapped).__name__,
        "history": trainer.record.history,
        "rows": trainer.reports["test"]["rows"],
        "weights": {name: float(p.detach().double().sum()) for name, p in trainer.model.named_parameters()},
        "readout": trainer.model.config.readout,
    }
    (folder / f"rank{args.process_index}.json").write_text(json.dumps(seen))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
