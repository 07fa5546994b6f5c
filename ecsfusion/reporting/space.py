"""A Space of the Hub that serves `ecsfusion demo` for a published model: its three files, and their upload."""

from __future__ import annotations

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from ecsfusion import __version__

GRADIO_VERSION = "6.31.0"
"""The version that the Space is made for; the Hub installs it because of the front matter."""
PYTHON_VERSION = "3.12"


def space_files(model_id: str, is_private: bool = False) -> dict[str, str]:
    """The files of the Space of a model, by name.

    Args:
        model_id: the full name of the model on the Hub.
        is_private: whether the model is, so that the Space needs a token to read it.
    """
    title = model_id.rpartition("/")[2]
    token = (
        "\nThe model is private: give the Space a secret `HF_TOKEN` that may read it, in its settings.\n"
        if is_private
        else ""
    )
    readme = f"""---
title: {title}
emoji: 🧩
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {GRADIO_VERSION}
python_version: "{PYTHON_VERSION}"
app_file: app.py
pinned: false
models:
- {model_id}
tags:
- ecsfusion
- multimodal
short_description: Ask a multimodal model, modality by modality
---

# {title}

Ask [{model_id}](https://huggingface.co/{model_id}) with any of its modalities, see what each head says and what each
modality contributes, and measure embeddings of your own. The same page on your machine: `ecsfusion demo {model_id}`.
{token}"""
    requirements = f"--extra-index-url https://download.pytorch.org/whl/cpu\necsfusion[demo]=={__version__}\n"
    app = (
        '"""The page of a model, as `ecsfusion demo` serves it."""\n\n'
        "from ecsfusion.demo.page import load_and_launch\n\n"
        f'load_and_launch("{model_id}")\n'
    )
    return {"README.md": readme, "app.py": app, "requirements.txt": requirements}


def publish_space(model_id: str, *, private: bool | None = None, token: str | None = None) -> CommitInfo:
    """Make the Space of a model, under the model's own name, or bring it up to date.

    Args:
        model_id: the full name of the model on the Hub.
        private: whether a Space that is made is private.
        token: a token that may write.

    Returns:
        The commit.
    """
    api = HfApi(token=token)
    api.create_repo(model_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=text.encode())
        for name, text in space_files(model_id, bool(private)).items()
    ]
    return api.create_commit(model_id, operations, repo_type="space", commit_message="The page of the model")
