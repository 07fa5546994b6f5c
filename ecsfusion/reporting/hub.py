"""Both stages on the Hub: stage 1's peak on the branch `unimodal`, the final model on `main`."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from ecsfusion.reporting.card import check_no_secrets

UNIMODAL_BRANCH = "unimodal"
# All that is ever published: weights, configurations, processors, the card and its pictures.
PUBLIC_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "README.md", "*.png")
TEXT_FILES = frozenset({".json", ".txt", ".md"})
# A byte-pair vocabulary has pieces such as "../" and "/usr/bin"; they say nothing about this machine.
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt"})


def publish(
    repo_id: str,
    final_folder: str | Path,
    unimodal_folder: str | Path | None,
    *,
    modalities: tuple[str, ...],
    commit_message: str = "End of training",
    revision: str | None = None,
    token: str | None = None,
    forbidden: tuple[str, ...] = (),
) -> CommitInfo:
    """Upload a trained model, and stage 1's peak to the branch `unimodal`.

    Args:
        repo_id: an existing repository on the Hub.
        final_folder: holds the final model, its processor, card and picture; anything else there stays here.
        unimodal_folder: the same for stage 1's peak, or None when there was no stage 1.
        modalities: their names; the processors are in folders of these names.
        commit_message: of the commit on `revision` (`main` by default).
        token: with permission to write; by default the one that `hf auth login` keeps.
        forbidden: strings that no published text may contain (local paths, tokens).

    Returns:
        What `HfApi.upload_folder` says of the final model.

    Raises:
        ValueError: a text file that would be published names a local path or a token; nothing is uploaded.
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
    if unimodal_folder is not None:
        api.create_branch(repo_id, branch=UNIMODAL_BRANCH, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(unimodal_folder),
            revision=UNIMODAL_BRANCH,
            commit_message="Peak of stage 1 (unimodal)",
            allow_patterns=chosen[unimodal_folder],
        )
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=str(final_folder),
        revision=revision,
        commit_message=commit_message,
        allow_patterns=chosen[final_folder],
    )


def published_files(folder: str | Path, modalities: tuple[str, ...]) -> list[Path]:
    """The files of a folder that `publish` uploads: its own, and those of the processors' folders."""
    folder = Path(folder)
    places = [folder, *(folder / name for name in modalities)]
    return sorted(
        file for place in places for pattern in PUBLIC_FILES for file in place.glob(pattern) if file.is_file()
    )
