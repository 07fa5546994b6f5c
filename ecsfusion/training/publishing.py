"""What a run leaves behind: folders of weights, the model card, and both stages on the Hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ecsfusion.modeling import FusionForClassification
from ecsfusion.reporting.card import render_card
from ecsfusion.reporting.hub import publish, push_command, reachable
from ecsfusion.reporting.reliability import plot_reliability
from ecsfusion.reporting.summary import run_facts
from ecsfusion.training.resuming import ResumableTrainer
from ecsfusion.training.saving import UNFINISHED, written_whole

logger = logging.get_logger(__name__)

UNIMODAL_FOLDER = "unimodal"  # stage 1's peak, in the output folder and as a branch on the Hub
INITIAL_FOLDER = "initial"  # the weights before training, kept when the rule may go back to them
TRAJECTORY_FILE = "trajectory.png"
RELIABILITY_FILE = "reliability.png"


class PublishingTrainer(ResumableTrainer):
    """The part of [`FusionTrainer`] that writes folders, the card, and the Hub; it trains as any `Trainer`."""

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        comparison: Mapping[str, float] | None = None,
    ) -> None:
        """Write the model card to `README.md` in the output folder, and stage 1's into its folder.

        Args:
            license: identifier of the license of the weights.
            model_name: title of the card; by default the name of the repository or of the output folder.
            dataset: plain name of the data.
            dataset_tags: name of the data on the Hub, when it is there.
            comparison: accuracy of other schedules on the last split, by name.
            tags: more tags of the model, beside those that the card finds.
            language, finetuned_from, tasks, dataset_args: not used; the card finds these facts itself.

        Raises:
            ValueError: nothing has been evaluated, or the card would name a local path or a token.
        """
        if not self.is_world_process_zero():
            return
        output = Path(self.args.output_dir)
        peak = self._published_peak()
        reliability = self._draw_reliability(output)
        facts = run_facts(
            self,
            title=model_name or (self.args.hub_model_id or output.absolute().name).split("/")[-1],
            dataset=dataset if isinstance(dataset, str) else "the training data",
            dataset_hub_name=dataset_tags if isinstance(dataset_tags, str) else None,
            repo_id=self.hub_model_id or self.args.hub_model_id,
            license=license,
            tags=[tags] if isinstance(tags, str) else list(tags or ()),
            peak_folder=peak.name if peak else None,
            trajectory=TRAJECTORY_FILE if (output / TRAJECTORY_FILE).exists() else None,
            reliability=reliability,
            comparison=comparison,
        )
        card = render_card(facts, self._private_paths())
        with self.saving("The model card", str(output / UNFINISHED)):
            with written_whole(output / "README.md") as aside:
                aside.write_text(card, encoding="utf-8")
            if peak:  # the branch of stage 1 shows the same card
                for name in filter(None, ("README.md", facts.trajectory, reliability)):
                    with written_whole(peak / name) as aside:
                        shutil.copyfile(output / name, aside)

    def _draw_reliability(self, output: Path) -> str | None:
        """The picture of the last split that was evaluated; None where it has no probabilities."""
        if not self.reports:
            return None
        split, report = list(self.reports.items())[-1]
        found = report["reliability"]
        if not found:  # a regression
            return None
        drawn = self._draw(RELIABILITY_FILE, lambda file: plot_reliability(found, split, file))
        return RELIABILITY_FILE if drawn else None

    def _draw(self, name: str, draw: Callable[[Path], object]) -> bool:
        """Write a picture to the output folder; a disk that does not take it is no reason to end a run."""
        path = Path(self.args.output_dir, name)
        try:
            with written_whole(path) as aside:
                draw(aside)
        except OSError as error:
            logger.warning(
                f"{path} was not drawn ({error.strerror or error}); {shutil.disk_usage(path.parent).free:,} bytes are "
                "free there. The run goes on without the picture, and nothing else is lost."
            )
            return False
        return True

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the final model on `main` (or `revision`) and stage 1's peak on the branch `unimodal`.

        Everything is written to the output folder first. Uploaded are weights (safetensors), configurations,
        processors, card and picture, and nothing else; the upload always blocks. Keyword arguments go to
        `create_model_card`.

        Raises:
            ValueError: something to be published names a local path or a token; nothing is uploaded.
            NotPublishedError: the Hub cannot be reached, or refuses; the sentence has the command that repeats the
                push of the folder.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        output = Path(self.args.output_dir)
        peak = self._published_peak()
        if private is not None:  # only transformers 5.23 and later takes it as an argument
            self.args.hub_private_repo = private
        where = {"revision": revision or self.args.hub_revision, "private": self.args.hub_private_repo}
        try:
            if self.hub_model_id is None:
                name = self.args.hub_model_id or output.absolute().name
                with reachable(output, push_command(name, output, peak, **where)):
                    self.init_hf_repo(token=token)
        finally:  # the card is part of what is safe in the folder; it knows the whole name where the Hub has answered
            self.create_model_card(**kwargs)
        return publish(
            self.hub_model_id,
            output,
            peak,
            modalities=self.model.modalities,
            commit_message=commit_message or "End of training",
            token=token,
            forbidden=self._private_paths(),
            **where,
        )

    def _published_peak(self) -> Path | None:
        """The folder of stage 1's peak, where the run has had a stage 1."""
        folder = Path(self.args.output_dir, UNIMODAL_FOLDER)
        return folder if folder.is_dir() and self.args.stages == "two-stage" else None

    def _private_paths(self) -> tuple[str, ...]:
        return (self.args.output_dir, str(Path.cwd()))

    def load_folder(self, name: str) -> FusionForClassification:
        """The model that a folder of the output directory holds, on the device."""
        folder = os.path.join(self.args.output_dir, name)
        return FusionForClassification.from_pretrained(folder, **self.model.own_modules()).to(
            self.args.device
        )
