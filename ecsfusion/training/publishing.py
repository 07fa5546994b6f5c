"""Draws the pictures of a run, writes its model card, and publishes the models of both stages on the Hub."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers.utils import logging

from ecsfusion.extras import MissingExtraError
from ecsfusion.reporting.card import render_card
from ecsfusion.reporting.contributions import plot_contributions
from ecsfusion.reporting.eval_results import write_eval_results
from ecsfusion.reporting.facts import run_facts
from ecsfusion.reporting.hub import publish, push_command, reachable
from ecsfusion.reporting.privacy import hub_name
from ecsfusion.reporting.reliability import plot_reliability
from ecsfusion.reporting.run import ReportedRun
from ecsfusion.reporting.trajectory import plot_trajectory
from ecsfusion.training.run import Run
from ecsfusion.training.saving import UNFINISHED, written_whole
from ecsfusion.training.stages import UNIMODAL_FOLDER

logger = logging.get_logger(__name__)

TRAJECTORY_FILE = "trajectory.png"
RELIABILITY_FILE = "reliability.png"
CONTRIBUTIONS_FILE = "contributions.png"
LEFT_OUT = "a path or no valid name on the Hub: it is left out of the model card."


class PublishedRun(Run, ReportedRun, Protocol):
    """For `Publishing`: the trainer, as reports read it and with what is needed to save and publish its model."""

    @property
    def hub_model_id(self) -> str | None:
        """The name of the repository on the Hub; None until it has been created."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write model and processor."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card."""

    def init_hf_repo(self, token: str | None = None) -> None:
        """Create the repository on the Hub."""


class Publishing:
    """Draws the pictures of a run, writes its card, and publishes it.

    Args:
        run: the trainer.
    """

    def __init__(self, run: PublishedRun) -> None:
        self._run = run

    @property
    def _output(self) -> Path:
        return Path(self._run.args.output_dir)

    def peak_folder(self) -> Path | None:
        """The folder of the peak of stage 1; None if the run did not have two stages."""
        folder = self._output / UNIMODAL_FOLDER
        return folder if folder.is_dir() and self._run.plan.stages == "two-stage" else None

    def private_paths(self) -> tuple[str, ...]:
        """Local paths that no published text may contain."""
        return (self._run.args.output_dir, str(Path.cwd()))

    def draw_trajectory(self) -> None:
        """Draw the history of the run."""
        history, names = self._run.record.history, self._run.model.modalities
        self._draw(TRAJECTORY_FILE, lambda file: plot_trajectory(history, names, file))

    def _draw_reliability(self) -> str | None:
        """Draw the reliability of the last split that was evaluated.

        Returns:
            The name of the file; None if nothing was drawn.
        """
        if not self._run.measurements:
            return None
        split, measurement = list(self._run.measurements.items())[-1]
        # In regression there are no probabilities and so no reliability.
        if not measurement.reliability:
            return None
        drawn = self._draw(RELIABILITY_FILE, lambda file: plot_reliability(measurement, split, file))
        return RELIABILITY_FILE if drawn else None

    def _draw_contributions(self) -> str | None:
        """Draw what the modalities contribute to the last split that was evaluated.

        Returns:
            The name of the file; None if nothing was drawn.
        """
        if not self._run.measurements:
            return None
        split, measurement = list(self._run.measurements.items())[-1]
        if not measurement.contributions:
            return None
        drawn = self._draw(CONTRIBUTIONS_FILE, lambda file: plot_contributions(measurement, split, file))
        return CONTRIBUTIONS_FILE if drawn else None

    def _draw(self, name: str, draw: Callable[[Path], object]) -> bool:
        """Write a picture to the output folder. Where that fails, a warning is logged and the run goes on."""
        path = self._output / name
        try:
            with written_whole(path) as aside:
                draw(aside)
        except MissingExtraError as error:
            logger.warning_once(f"{error}. The run goes on without pictures, and nothing else is lost.")
            return False
        except OSError as error:
            logger.warning(
                f"{path} was not drawn ({error.strerror or error}); {shutil.disk_usage(path.parent).free:,} bytes are "
                "free there. The run goes on without the picture, and nothing else is lost."
            )
            return False
        return True

    def write_card(
        self,
        *,
        title: str | None,
        license: str | None,
        tags: list[str],
        dataset: Sequence[str],
        dataset_hub_names: Sequence[str],
        dataset_args: Sequence[str],
        tasks: Sequence[str],
        languages: Sequence[str],
        finetuned_from: Sequence[str],
        comparison: Mapping[str, float] | None,
    ) -> None:
        """Write the model card to `README.md` in the output folder, and to the folder of the peak of stage 1.

        Args:
            title: the title of the card; None for the name of the repository or of the output folder.
            license: identifier of the license of the weights.
            tags: further tags of the model.
            dataset: plain names of the data; none for "the training data". Here and in the next arguments, names that
                are paths on this machine are left out, with a warning: a script gives what it was started with.
            dataset_hub_names: names of the data on the Hub, in the same order, if they are there.
            dataset_args: their configurations, in the same order.
            tasks: the tasks of the Hub.
            languages: codes of languages.
            finetuned_from: names on the Hub of models that this one started from, beside those of the encoders.
            comparison: accuracy of other schedules on the last split, by name.

        Raises:
            ValueError: nothing has been evaluated, or the card would contain a local path or a token.
        """
        run, output, peak = self._run, self._output, self.peak_folder()
        finetuned_from = [finetuned_from[i] for i in on_the_hub("finetuned_from", finetuned_from)]
        kept = on_the_hub("dataset_tags", dataset_hub_names)
        dataset_hub_names = [dataset_hub_names[i] for i in kept]
        dataset_args = [dataset_args[i] for i in kept if i < len(dataset_args)]
        # The names of the data on the Hub come first, in the order of these.
        named = [i for i in kept if i < len(dataset)]
        named += [i for i in range(len(dataset)) if i not in named]
        dataset = [dataset[i] for i in named if not is_path("dataset", dataset[i])]
        reliability, contributions = self._draw_reliability(), self._draw_contributions()
        facts = run_facts(
            run,
            title=title or (run.args.hub_model_id or output.absolute().name).split("/")[-1],
            dataset=" and ".join(dataset) or "the training data",
            dataset_hub_name=dataset_hub_names,
            dataset_names=dataset,
            dataset_args=dataset_args,
            tasks=tasks,
            languages=languages,
            finetuned_from=finetuned_from,
            repo_id=run.hub_model_id or run.args.hub_model_id,
            license=license,
            tags=[*tags, *(run.model.model_tags or ())],
            peak_folder=peak.name if peak else None,
            trajectory=TRAJECTORY_FILE if (output / TRAJECTORY_FILE).exists() else None,
            reliability=reliability,
            contributions_picture=contributions,
            comparison=comparison,
        )
        card = render_card(facts, self.private_paths())
        with run.saving("The model card", str(output / UNFINISHED)):
            write_eval_results(facts, output)
            with written_whole(output / "README.md") as aside:
                aside.write_text(card, encoding="utf-8")
            if peak:
                # The branch of stage 1 gets the same card.
                for name in filter(None, ("README.md", facts.trajectory, reliability, contributions)):
                    with written_whole(peak / name) as aside:
                        shutil.copyfile(output / name, aside)

    def push(
        self,
        commit_message: str,
        *,
        token: str | None,
        revision: str | None,
        private: bool | None,
        space: bool,
        card: Mapping[str, Any],
    ) -> Any:
        """Publish the final model, and stage 1's peak on the branch `unimodal`.

        Args:
            commit_message: the message of the commit of the final model.
            token: a token with permission to write; None for that of the arguments.
            revision: the branch of the final model; None for that of the arguments.
            private: whether a new repository is private; None for what the arguments say.
            space: also publish the model's page, as a Space of the same name.
            card: arguments of `create_model_card`.

        Returns:
            The commit of the final model; None in all processes but the first.

        Raises:
            ValueError: a file to be published contains a local path or a token; nothing is uploaded.
            NotPublishedError: the Hub cannot be reached or refuses; the message holds the command that repeats the
                push.
        """
        run, output = self._run, self._output
        token = token if token is not None else run.args.hub_token
        run.save_model(_internal_call=True)
        if not run.is_world_process_zero():
            return None
        peak = self.peak_folder()
        revision = revision or run.args.hub_revision
        is_private = run.args.hub_private_repo if private is None else private
        try:
            if run.hub_model_id is None:
                name = run.args.hub_model_id or output.absolute().name
                with reachable(output, push_command(name, output, peak, revision, is_private, space)):
                    self._make_repository(token, private)
        finally:
            # Write the card even if the Hub cannot be reached. It has the full name of the repository if the Hub
            # has answered.
            run.create_model_card(**card)
        return publish(
            run.hub_model_id or "",
            output,
            peak,
            modalities=run.model.modalities,
            commit_message=commit_message,
            token=token,
            forbidden=self.private_paths(),
            revision=revision,
            private=is_private,
            space=space,
        )

    def _make_repository(self, token: str | None, private: bool | None) -> None:
        """Create the repository as the Trainer does, with this choice of `private`.

        Only transformers 5.23 and later take `private` as an argument, so it is set in a copy of the arguments.
        """
        original_args = self._run.args
        if private is not None:
            self._run.args = copy.copy(original_args)
            self._run.args.hub_private_repo = private
        try:
            self._run.init_hf_repo(token=token)
        finally:
            self._run.args = original_args


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """One name, several or none, as `transformers.Trainer.create_model_card` takes them, as a list."""
    return [names] if isinstance(names, str) else list(names or ())


def on_the_hub(argument: str, names: Sequence[str]) -> list[int]:
    """The places of those names that can be names on the Hub. Of each other one, a warning says that it is left out."""
    kept = []
    for place, name in enumerate(names):
        if hub_name(name) is None:
            logger.warning(f"{argument} holds {name!r}, {LEFT_OUT}")
        else:
            kept.append(place)
    return kept


def is_path(argument: str, name: str) -> bool:
    """Whether a plain name of data is a path on this machine, which a warning then says is left out."""
    found = Path(name).is_absolute() or name.startswith(("./", "../", "~"))
    if found:
        logger.warning(f"{argument} holds {name!r}, {LEFT_OUT}")
    return found
