# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = ["ecsfusion[recipes]"]
# ///
"""Train a fusion model in two stages: on the embedded digits, on AV-MNIST, or on your own data.

    accelerate launch hf_recipes/run.py
    accelerate launch hf_recipes/run.py --config hf_recipes/configs/avmnist.yaml --data_dir FOLDER
    accelerate launch hf_recipes/run.py --compare joint --num_train_epochs 30

The installed library has the same script: `ecsfusion train`, and for several processes `accelerate launch -m
hf_recipes.run`. Of the configurations in `hf_recipes/configs` the name is enough, `--config avmnist`.

On a machine of Hugging Face, without any installation, where uv reads the lines above:

    hf jobs uv run --flavor a10g-small --secrets HF_TOKEN hf_recipes/run.py --push_to_hub true --hub_model_id you/digits

Every key of the YAML can be given on the command line. The output folder holds the final model, the peak of stage 1
in `unimodal/`, the model card `README.md`, and `trajectory.png`.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Python must find hf_recipes from any working directory.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from ecsfusion.extras import extra_for

with extra_for("the recipe", "recipes"):
    import datasets
    import yaml  # noqa: F401
    from transformers import set_seed
    from transformers.utils import logging

from ecsfusion import FusionForClassification, FusionProcessor, FusionTrainer, FusionTrainingArguments
from ecsfusion.model.names import FUSED
from ecsfusion.reporting.results import results_table
from hf_recipes.configuration import RecipeArguments, parse_arguments
from hf_recipes.data import GROUP, ProcessedSplit, load_splits, prepare_splits
from hf_recipes.encoders import build_encoders, build_processor
from hf_recipes.streams import check_streaming


@dataclass
class Job:
    """Everything that training needs, read and checked."""

    recipe: RecipeArguments
    args: FusionTrainingArguments
    splits: Mapping[str, Any]
    model: FusionForClassification
    processor: FusionProcessor

    @property
    def test_sets(self) -> list[str]:
        """The names of the splits that are evaluated once, after training."""
        return [name for name in self.splits if name not in ("train", "validation")]


def prepare(argv: Sequence[str]) -> Job:
    """Read the configuration, load and process the data, build the model."""
    recipe, args = parse_arguments(argv)
    check_streaming(recipe, args.max_steps)
    set_seed(args.seed)
    raw = load_splits(recipe, args.seed)
    names = raw["validation"].features["label"].names
    encoders = build_encoders(recipe)
    processor = build_processor(recipe, encoders)
    shows_bars = args.local_process_index == 0 and sys.stderr.isatty()
    splits = prepare_splits(recipe, raw, encoders, processor, show_progress=shows_bars, seed=args.seed)
    model = FusionForClassification.from_modality_pretrained(
        encoders, id2label=dict(enumerate(names)), fusion=recipe.fusion
    )
    for name, modality in recipe.modalities.items():
        if modality.freeze:
            model.encoders[name].requires_grad_(False)
    if recipe.group_column is not None:
        args.group_column_name = GROUP
    elif args.group_column_name is not None:
        raise ValueError(
            f"group_column_name is {args.group_column_name!r}; in a recipe name the column by group_column, outside of "
            "training"
        )
    return Job(recipe, args, splits, model, processor)


def checkpoint_to_resume(args: FusionTrainingArguments) -> str | bool:
    """What `--resume_from_checkpoint` means: "true" is the latest whole checkpoint of the output folder."""
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() in ("true", "false"):
        return str(wanted).lower() == "true"
    return str(wanted)


def train(job: Job, model: FusionForClassification, args: FusionTrainingArguments) -> FusionTrainer:
    """Train, then evaluate once on the rows of every test set."""
    trainer = FusionTrainer(
        model=model,
        args=args,
        train_dataset=job.splits["train"],
        eval_dataset=job.splits["validation"],
        processing_class=job.processor,
    )
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(args))
    for name in job.test_sets:
        trainer.evaluate(job.splits[name], metric_key_prefix=name)
    return trainer


def joint_accuracy(job: Job, model: FusionForClassification) -> float:
    """Accuracy on the last test set of plain joint training: one loss, one stage, the same budget and start."""
    if job.args.process_index == 0:
        print("\nPlain joint training, for comparison", flush=True)
    args = replace(
        job.args,
        output_dir=str(Path(job.args.output_dir) / "joint"),
        strategy="joint",
        strategy_options=None,
        auxiliary_weight=None,
        unimodal_epochs=None,
        max_unimodal_share=None,
        joint_pausing=False,
        push_to_hub=False,
        resume_from_checkpoint=None,
    )
    return train(job, model, args).measurements[job.test_sets[-1]].scores[FUSED]


def name_of_data(recipe: RecipeArguments) -> str:
    """The name of the data set on the Hub, or the name of its folder without the path."""
    source = recipe.data_dir or recipe.dataset
    return Path(source).resolve().name if Path(source).exists() else source


def card_of_data(recipe: RecipeArguments) -> dict[str, str]:
    """What the model card says of the data: its name, and where it is on the Hub."""
    card = {"dataset": name_of_data(recipe)}
    source = recipe.dataset
    if recipe.data_dir is None and source is not None and source != "digits" and not Path(source).exists():
        card["dataset_tags"] = source
        if recipe.dataset_config is not None:
            card["dataset_args"] = recipe.dataset_config
    return card


def rows_and_encoders(job: Job) -> str:
    """One line: how many rows of how many classes there are, and by what each modality is encoded.

    Rows of a stream are not counted.
    """
    rows = ", ".join(
        f"{len(split):,} {name}" for name, split in job.splits.items() if hasattr(split, "__len__")
    )
    encoders = ", ".join(f"{name} ({type(encoder).__name__})" for name, encoder in job.model.encoders.items())
    return f"{name_of_data(job.recipe)}: {rows} rows, {job.model.config.num_labels} classes, {encoders}"


def skipped_rows(splits: Mapping[str, Any]) -> str:
    """A line for each split of which rows were skipped, because they could not be read."""
    return "".join(
        f"Skipped, because they cannot be read: {len(split.undecodable):,} of "
        f"{len(split) + len(split.undecodable):,} rows of {name}\n"
        for name, split in splits.items()
        if isinstance(split, ProcessedSplit) and split.undecodable
    )


def run(argv: Sequence[str]) -> None:
    """Prepare, train, compare, save, publish if asked to, and print the table."""
    job = prepare(argv)
    if job.args.process_index == 0:
        print(rows_and_encoders(job), flush=True)
    initial = copy.deepcopy(job.model) if job.recipe.compare else None
    trainer = train(job, job.model, job.args)
    comparison = {"plain joint training": joint_accuracy(job, initial)} if initial is not None else {}

    card = {**card_of_data(job.recipe), "comparison": comparison}
    # An external call would publish at once, without the facts for the card.
    trainer.save_model(_internal_call=True)
    trainer.create_model_card(**card)
    if trainer.is_world_process_zero():
        skipped = skipped_rows(job.splits)
        print(
            f"\n{results_table(trainer, comparison)}\n{skipped}\nWritten to {job.args.output_dir}", flush=True
        )
    if job.args.push_to_hub:
        # Publish last, because the Hub may not be reachable.
        trainer.push_to_hub(**card)
    trainer.end_training()


def main(argv: Sequence[str]) -> None:
    """Run the recipe. An error that the user can correct ends it with one sentence."""
    # These progress bars are those of reading and writing weights; training has other ones.
    logging.disable_progress_bar()
    if not sys.stderr.isatty():
        # The bars of a log file would be lines.
        datasets.disable_progress_bars()
    try:
        run(argv)
    except KeyboardInterrupt:
        print(
            "interrupted; --resume_from_checkpoint true goes on from the latest checkpoint", file=sys.stderr
        )
        sys.exit(130)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        message = str(error).strip() or type(error).__name__
        if "Original Traceback" in message:
            # The error comes from a worker of the data loader. Its last line is "Kind: sentence".
            message = message.splitlines()[-1].partition(": ")[2]
        sys.exit(f"error: {' '.join(message.split())}")


if __name__ == "__main__":
    main(sys.argv[1:])
