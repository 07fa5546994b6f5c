"""A `Trainer` that can be killed at any moment and resumed with the same result."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import (
    IntervalStrategy,
    SaveStrategy,
    TrainOutput,
    has_length,
    rotate_checkpoints,
)
from transformers.utils import logging

from ecsfusion.training.checkpoints import (
    check_fits,
    check_layout,
    check_written,
    clear_up,
    inexact_because,
    link_folder,
    replace_folder,
    same_weights,
    seal,
    whole_checkpoint,
)
from ecsfusion.training.saving import UNFINISHED, saving
from ecsfusion.training.sharding import is_sharded, requiring_gradients_of
from ecsfusion.training_args import FusionTrainingArguments

logger = logging.get_logger(__name__)

OPTIMIZED_NAME = "optimized_parameters.json"
"""The file of a checkpoint under FSDP version 2 that names the parameters of which the optimizer has a state."""


class ResumableTrainer(Trainer):
    """The base class of [`FusionTrainer`] that saves and resumes. It trains like any `Trainer`.

    - A checkpoint gets its name only when all processes have written it completely. Older checkpoints are removed after
      that. What is replaced stays until the new content is in place.
    - A checkpoint also holds the folders of the run that it refers to (`folders_in_use`), as hard links.
    - A damaged checkpoint is reported, and the one before it is used.
    - A run that had ended before it was killed is not trained any further.
    - If a file cannot be written, the run ends with an error that names the file. All that was saved before is kept.
    """

    args: FusionTrainingArguments
    model: nn.Module

    folder_names: Sequence[str] = ()
    """The names of all folders of weights that the run may keep in its output folder."""

    _staging: str | None = None
    _is_saving = False
    _over_at: int | None = None
    _saves_after_evaluation = False
    _passes_without_step = 0
    """The latest passes in a row in which the optimizer made no step."""
    _latest_of_run: Path | None = None

    @property
    def latest_checkpoint_of_run(self) -> Path | None:
        """The latest checkpoint that this run has written or was resumed from, and that still exists."""
        latest = self._latest_of_run
        return latest if latest is not None and latest.is_dir() else None

    def folders_in_use(self) -> Sequence[str]:
        """The names among `folder_names` to which a checkpoint written now refers."""
        return ()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as `transformers.Trainer.train` does, and resume only from a complete checkpoint.

        Args:
            resume_from_checkpoint: a folder checkpoint-STEP, or True for the latest one. For a damaged checkpoint a
                warning is logged and the one before it is used. With True and no complete checkpoint, a warning is
                logged and training starts from the beginning.
            trial: as in `transformers.Trainer.train`.
            ignore_keys_for_eval: as in `transformers.Trainer.train`.

        Returns:
            The result of `transformers.Trainer.train`.

        Raises:
            ValueError: a folder that does not exist, or a damaged one without a complete one before it.
        """
        checkpoint = self._prepare_folders(resume_from_checkpoint)
        self._latest_of_run = None if checkpoint is None else Path(checkpoint)
        self._saves_after_evaluation = False
        self._passes_without_step = 0
        if self.is_world_process_zero():
            self._warn_of_inexact_resume(checkpoint)
        self._over_at = None if checkpoint is None else _steps_of_a_run_that_was_over(checkpoint)
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _warn_of_inexact_resume(self, checkpoint: str | None) -> None:
        """Say what keeps a resumed run from being the same as one without an interruption."""
        args = self.args
        if args.save_only_model and args.save_strategy != SaveStrategy.NO:
            logger.warning(
                "save_only_model is True, so the checkpoints of this run lack the states of the optimizer, the "
                "schedule and the random numbers: a run that is resumed from them will differ from one without an "
                "interruption."
            )
        if checkpoint is None:
            return
        differences = inexact_because(
            checkpoint,
            process=args.process_index if args.world_size > 1 else None,
            optimizer_names=self._names_of_optimizer(),
            needs_scaler=args.fp16 and not self.is_deepspeed_enabled,
            is_stream=not has_length(self.train_dataset),
            skips_rows=not args.ignore_data_skip,
        )
        if differences:
            logger.warning(
                f"The resumed run will differ from one without an interruption: {'; '.join(differences)}."
            )

    def _names_of_optimizer(self) -> Sequence[str]:
        """Under which names the Trainer saves the state of the optimizer: one of them; none with DeepSpeed."""
        if self.is_deepspeed_enabled:
            return ()
        # A file of all, or a folder of what each process has.
        return ("optimizer.bin", "optimizer_0") if self.is_fsdp_enabled else ("optimizer.pt",)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._init_training_state(*args, **kwargs)
        self._find_best_checkpoint()
        step, last = self.state.global_step, self.state.max_steps
        if step > last and self.is_world_process_zero():
            logger.warning(
                f"The checkpoint is at step {step}, behind the last step of this run, {last}: nothing is trained. "
                "num_train_epochs and max_steps count from the beginning of the training, not from the checkpoint; "
                "give more."
            )
        return result

    def _find_best_checkpoint(self) -> None:
        """Look for the best checkpoint beside the one that the run resumes from: the folder may have been moved.

        The Trainer looks where it was when it was saved, where nothing or something else may be now.
        """
        if self._latest_of_run is None or not self.state.best_global_step:
            return
        beside = self._latest_of_run.parent / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(beside) if beside.is_dir() else None
        if self.args.load_best_model_at_end and not beside.is_dir() and self.is_world_process_zero():
            logger.warning(
                f"The best weights so far, of step {self.state.best_global_step}, are not in {beside}: only later "
                "weights that are better can be loaded at the end. Put the folder there, and resume again."
            )

    def _prepare_folders(self, wanted: str | bool | None) -> str | None:
        """Clear up after a crash, find the checkpoint, and bring back the folders that it refers to."""
        output_dir = self.args.output_dir
        if self.args.should_save:
            clear_up(output_dir, self.folder_names)
        self.accelerator.wait_for_everyone()
        if not wanted:
            return None
        # The first process looks for the checkpoint, so that all use the same one. All raise its error.
        result: list[Any] = [None]
        if self.is_world_process_zero():
            try:
                result = [whole_checkpoint(wanted, output_dir)]
                if result[0][0] is not None and not self.is_deepspeed_enabled:
                    check_layout(result[0][0], self._layout())
            except ValueError as error:
                result = [error]
        checkpoint_or_error = broadcast_object_list(result)[0]
        if isinstance(checkpoint_or_error, ValueError):
            raise checkpoint_or_error
        checkpoint, damaged = checkpoint_or_error
        if self.is_world_process_zero():
            for sentence in damaged:
                logger.warning(sentence)
            if checkpoint is None:
                logger.warning(
                    f"resume_from_checkpoint is True, but there is no whole checkpoint in {output_dir}: training "
                    "starts from the beginning."
                )
            elif damaged:
                logger.warning(f"Training resumes from the checkpoint before: {checkpoint}.")
        if checkpoint is not None:
            self._bring_back_folders(checkpoint)
        self.accelerator.wait_for_everyone()
        return checkpoint

    def _layout(self) -> str | None:
        """How FSDP writes the weights of a checkpoint; None without FSDP."""
        if not self.is_fsdp_enabled:
            return None
        return str(self.accelerator.state.fsdp_plugin.state_dict_type).rpartition(".")[2]

    def _bring_back_folders(self, checkpoint: str) -> None:
        """Put the folders that a checkpoint holds in the place of those that the run has written since."""
        if self.args.should_save:
            for name in self.folder_names:
                inside, outside = os.path.join(checkpoint, name), os.path.join(self.args.output_dir, name)
                if os.path.isdir(inside) and not same_weights(inside, outside):
                    with self.saving(f"The folder {name!r} of {checkpoint}", f"{outside}.writing"):
                        link_folder(inside, f"{outside}.writing")
                        replace_folder(f"{outside}.writing", outside)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            # FSDP has another format: there each process has a part of every weight.
            check_fits(resume_from_checkpoint, self.model if model is None else model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer would make one more step before it checks whether the run should stop.
        if self._over_at is not None and self._over_at == self.state.max_steps:
            self.control.should_training_stop = True
            return
        step = self.state.global_step
        super()._run_epoch(*args, **kwargs)
        is_stuck = self.state.global_step == step and not self.control.should_training_stop
        self._passes_without_step = self._passes_without_step + 1 if is_stuck else 0
        # The first pass of a run that is resumed may have been read to its end before.
        if self._passes_without_step > 1:
            raise ValueError(
                "a pass of train_dataset has fewer batches than gradient_accumulation_steps "
                f"({self.args.gradient_accumulation_steps}), so that no step would ever be made; lower it, or give "
                "more rows."
            )

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # At the last step of an epoch or of the run, the Trainer saves by steps before it evaluates by epochs, with
        # another call of this method. A run that is resumed from such a checkpoint would never make this evaluation.
        control = self.control
        if self._saves_after_evaluation:
            control.should_save, self._saves_after_evaluation = True, False
        elif control.should_save and not control.should_evaluate:
            another_call = (
                float(self.state.epoch or 0.0).is_integer()
                or control.should_training_stop
                or control.should_epoch_stop
            )
            is_due = self.args.eval_strategy == IntervalStrategy.EPOCH
            # At the end of an epoch, saving by epochs comes with this evaluation already.
            if another_call and is_due and self.args.save_strategy == SaveStrategy.STEPS:
                self._saves_after_evaluation, control.should_save = True, False
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        names = Path(checkpoint or "", OPTIMIZED_NAME)
        with ExitStack() as stack:
            if checkpoint is not None and names.is_file():
                stack.enter_context(requiring_gradients_of(self.model, json.loads(names.read_text("utf-8"))))
            super()._load_optimizer_and_scheduler(checkpoint)

    # ---- saving ----

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if is_sharded(self.model) and self.optimizer is not None and self.args.should_save:
            states = self.optimizer.state
            names = [name for name, parameter in self.model.named_parameters() if parameter in states]
            Path(output_dir, OPTIMIZED_NAME).write_text(json.dumps(names), encoding="utf-8")

    @contextmanager
    def saving(self, what: str, folder: str) -> Iterator[None]:
        """A context for code that writes to a folder of this run; see `ecsfusion.training.saving.saving`.

        In nested contexts, only the outermost has an effect.
        """
        if self._is_saving:
            yield
            return
        self._is_saving = True
        try:
            latest = self.latest_checkpoint_of_run
            with saving(what, folder, latest, remove=self.args.should_save):
                yield
        finally:
            self._is_saving = False

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as `transformers.Trainer` does, and also where each process saves its part of the checkpoints.

        With `SHARDED_STATE_DICT`, the default of accelerate, the Trainer would write nothing that can be loaded.
        """
        if self._layout() not in (None, "FULL_STATE_DICT") and self._staging is None:
            self._save(output_dir, state_dict=self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_dir = self._get_output_dir(trial)
        staging, name = os.path.join(run_dir, UNFINISHED), f"checkpoint-{self.state.global_step}"
        with self.saving(f"{name} of {run_dir}", staging):
            self._write_checkpoint(model, trial, run_dir, staging, name)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, model: Any, trial: Any, run_dir: str, staging: str, name: str) -> None:
        written, final = os.path.join(staging, name), os.path.join(run_dir, name)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            # By this folder every process sees that the best checkpoint is this one, also where each writes its part.
            os.makedirs(written)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        is_best = self.state.best_model_checkpoint == written
        if is_best:
            self.state.best_model_checkpoint = final
        # Every process has written its random state.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if is_best:
                self.state.save_to_json(os.path.join(written, TRAINER_STATE_NAME))
            for folder in self.folders_in_use():
                link_folder(os.path.join(self.args.output_dir, folder), os.path.join(written, folder))
            check_written(written)
            seal(written)
            replace_folder(written, final)
            self._latest_of_run = Path(final)
            shutil.rmtree(staging, ignore_errors=True)
            # The Trainer has removed old checkpoints only in `staging`.
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def save_folder(self, name: str) -> None:
        """Write model and processor to a folder of the output directory, completely or not at all."""
        folder = os.path.join(self.args.output_dir, name)
        with self.saving(f"The folder {name!r} of {self.args.output_dir}", f"{folder}.writing"):
            self.save_model(f"{folder}.writing", _internal_call=True)
            if self.args.should_save:
                replace_folder(f"{folder}.writing", folder)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        target = Path(output_dir or self.args.output_dir)
        aside = target / UNFINISHED if target.is_dir() else target
        with self.saving(f"The model of {target}", str(aside)):
            super()._save(str(aside), state_dict)
        if not self.args.should_save:
            return
        # The Trainer pickles its arguments beside the weights. They may hold paths and tokens, and nothing reads them.
        (aside / "training_args.bin").unlink(missing_ok=True)
        if aside != target:
            # An earlier model in this folder was kept until now, when the new one is complete.
            for path in sorted(aside.rglob("*"), key=lambda path: path.suffix != ".safetensors"):
                if path.is_file():
                    destination = target / path.relative_to(aside)
                    destination.parent.mkdir(exist_ok=True)
                    os.replace(path, destination)
            shutil.rmtree(aside)


def _steps_of_a_run_that_was_over(checkpoint: str) -> int | None:
    """The budget in steps of a run that had ended when this checkpoint was saved; None if it had not."""
    state = json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    return state["max_steps"] if control.get("should_training_stop") else None
