"""Both stages on the Hub: stage 1's peak on the branch `unimodal`, the final model on `main`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

# The error of whichever HTTP library this version of huggingface_hub uses.
from huggingface_hub.errors import HTTPError

from ecsfusion.reporting.eval_results import EVAL_RESULTS
from ecsfusion.reporting.privacy import check_no_secrets
from ecsfusion.reporting.space import publish_space

UNIMODAL_BRANCH = "unimodal"
"""The branch on the Hub that holds stage 1's peak."""
PUBLIC_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md", "*.png")
"""Everything that is ever published: weights, configurations, processors, the card and its pictures."""
TEXT_FILES = frozenset({".json", ".txt", ".md", ".yaml"})
"""Suffixes of the files that are searched for local paths and tokens."""
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})
"""Text files that are not searched: a byte-pair vocabulary has pieces such as "../" and "/usr/bin", which say nothing
about this machine."""


class NotPublishedError(ConnectionError):
    """The Hub could not be reached, or refused; what was to be published is in its folder."""


@contextmanager
def reachable(folder: str | Path, command: str) -> Iterator[None]:
    """A context for requests to the Hub: if one fails, the error says that nothing is lost, and what to do.

    Args:
        folder: the folder that is to be published.
        command: the command that publishes it, see `push_command`.

    Raises:
        NotPublishedError: the Hub cannot be reached, or refuses.
    """
    try:
        yield
    except (OSError, HTTPError) as error:
        reason = " ".join(str(error).split())
        raise NotPublishedError(
            f"{folder} could not be published ({type(error).__name__}: {reason}). Nothing of it is lost. When the Hub "
            f"can be reached, and `hf auth login` has been given a token that may write, push it by: {command}"
        ) from error


@contextmanager
def reachable_at_start(repo_id: str) -> Iterator[None]:
    """A context for the request by which a run begins that will be published.

    Raises:
        NotPublishedError: the Hub cannot be reached, or refuses; nothing has been trained yet.
    """
    try:
        yield
    except (OSError, HTTPError) as error:
        reason = " ".join(str(error).split())
        raise NotPublishedError(
            f"The repository {repo_id!r} could not be created ({type(error).__name__}: {reason}). Nothing has been "
            "trained yet. Start again when the Hub can be reached, and `hf auth login` has been given a token that may "
            "write; or train without push_to_hub, and publish the output folder afterwards by: "
            f"{shlex.join(['ecsfusion', 'push', 'OUTPUT_FOLDER', repo_id])}"
        ) from error


def push_command(
    repo_id: str,
    final_folder: str | Path,
    unimodal_folder: str | Path | None = None,
    revision: str | None = None,
    private: bool | None = None,
    space: bool = False,
) -> str:
    """The shell command that publishes what is in these folders; the arguments are those of `publish`."""
    words = ["ecsfusion", "push", str(final_folder), repo_id]
    words += [] if unimodal_folder is None else ["--peak", str(unimodal_folder)]
    words += [] if revision is None else ["--revision", revision]
    words += ["--private"] if private else []
    return shlex.join([*words, *(["--space"] if space else [])])


def push(
    repo_id: str,
    final_folder: str | Path,
    unimodal_folder: str | Path | None = None,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    space: bool = False,
) -> CommitInfo:
    """Publish what a run left in its output folder, once more or for the first time.

    Args:
        repo_id: name of the repository on the Hub, which is made where there is none.
        final_folder: as in `publish`.
        unimodal_folder: as in `publish`.
        revision: as in `publish`.
        private: whether a repository that is made is private.
        token: as in `publish`.
        space: as in `publish`.

    Returns:
        What `HfApi.upload_folder` answers about the final model.

    Raises:
        ValueError: the folder holds no model, or a text that names a local path or a token; nothing is uploaded.
        NotPublishedError: the Hub cannot be reached, or refuses.
    """
    for folder in (final_folder, unimodal_folder):
        if folder is not None and not Path(folder, "config.json").is_file():
            raise ValueError(f"{str(folder)!r} holds no model (config.json); give the output folder of a run")
    config = json.loads(Path(final_folder, "config.json").read_text(encoding="utf-8"))
    command = push_command(repo_id, final_folder, unimodal_folder, revision, private, space)
    with reachable(final_folder, command):
        full_repo_id = HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    return publish(
        full_repo_id,
        final_folder,
        unimodal_folder,
        modalities=tuple(config.get("modalities", ())),
        revision=revision,
        private=private,
        token=token,
        forbidden=(str(final_folder), str(Path.cwd())),
        space=space,
    )


def publish(
    repo_id: str,
    final_folder: str | Path,
    unimodal_folder: str | Path | None,
    *,
    modalities: tuple[str, ...],
    commit_message: str = "End of training",
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    forbidden: tuple[str, ...] = (),
    space: bool = False,
) -> CommitInfo:
    """Upload a trained model, and stage 1's peak to the branch `unimodal`.

    Args:
        repo_id: an existing repository on the Hub.
        final_folder: holds the final model, its processor, card and picture; anything else there stays here.
        unimodal_folder: the same for stage 1's peak, or None when there was no stage 1.
        modalities: names of the modalities; the processors are in folders of these names.
        commit_message: of the commit of the final model.
        revision: branch of the final model, `main` by default.
        private: whether the repository is private; only the command in an error needs it.
        token: with permission to write; by default the one that `hf auth login` keeps.
        forbidden: strings that no published text may contain (local paths, tokens).
        space: also publish the model's page, as a Space of the same name.

    Returns:
        What `HfApi.upload_folder` answers about the final model.

    Raises:
        ValueError: a text file that would be published names a local path or a token; nothing is uploaded.
        NotPublishedError: the Hub cannot be reached, or refuses.
    """
    chosen: dict[str | Path, list[str]] = {}
    for folder in (final_folder, unimodal_folder):
        if folder is None:
            continue
        files = published_files(folder, modalities)
        for file in files:
            if file.suffix in TEXT_FILES and file.name not in VOCABULARIES:
                try:
                    check_no_secrets(file.read_text(encoding="utf-8"), forbidden)
                except ValueError as error:
                    raise ValueError(f"{file.name} is not fit to be published: {error}") from error
        # Exact names: in the Hub's patterns a star also matches what lies in sub-folders.
        chosen[folder] = [file.relative_to(folder).as_posix() for file in files]
    api = HfApi(token=token)
    command = push_command(repo_id, final_folder, unimodal_folder, revision, private, space)
    with reachable(final_folder, command):
        if unimodal_folder is not None:
            api.create_branch(repo_id, branch=UNIMODAL_BRANCH, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=str(unimodal_folder),
                revision=UNIMODAL_BRANCH,
                commit_message="Peak of stage 1 (unimodal)",
                allow_patterns=chosen[unimodal_folder],
            )
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(final_folder),
            revision=revision,
            commit_message=commit_message,
            allow_patterns=chosen[final_folder],
        )
        if space:
            publish_space(repo_id, private=private, token=token)
        return commit


def published_files(folder: str | Path, modalities: tuple[str, ...]) -> list[Path]:
    """The files of a folder that `publish` uploads: its own, and those in the folders of the processors.

    Args:
        folder: of a model.
        modalities: names of the processors' folders.
    """
    folder = Path(folder)
    folders = [folder, *(folder / name for name in modalities)]
    found = [file for each in folders for pattern in PUBLIC_FILES for file in each.glob(pattern)]
    return sorted(file for file in [*found, *folder.glob(f"{EVAL_RESULTS}/*.yaml")] if file.is_file())
