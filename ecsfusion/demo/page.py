"""The page of `ecsfusion demo`, made with Gradio: inputs and answers, files of embeddings, and the model's card."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ecsfusion.data.embedding_files import READERS
from ecsfusion.demo.answers import answer_row
from ecsfusion.demo.card import card_of
from ecsfusion.demo.embeddings import columns_of, measure_file
from ecsfusion.demo.inputs import MAX_FILE_BYTES, raw_value
from ecsfusion.demo.tables import answer_html, contributions_html, error_html, picture_html, pids_html
from ecsfusion.extras import extra_for
from ecsfusion.modeling import FusionForClassification
from ecsfusion.processing import FusionProcessor

logger = logging.get_logger(__name__)

NO_GROUPS = "rows stand alone"
SOUNDS = [".wav", ".flac", ".ogg", ".mp3"]
"""The kinds of files that libsndfile reads and browsers play."""
HINTS = {
    "image": "a picture: PNG, JPEG or another format that Pillow reads",
    "video": "the frames of a video, as pictures in their order",
    "audio": "a sound: WAV, FLAC, OGG or MP3",
    "text": "a text",
    "numbers": "numbers with commas or spaces between them; of a time series one line for each step",
}
STYLE = """
.ecs-answer {font-size: 1.25em}
.ecs-error {border-left: 4px solid #b3261e; padding: .6em 1em; background: rgba(179, 38, 30, .12)}
.ecs-table {overflow-x: auto}
.ecs-table table {border-collapse: collapse; width: 100%; border: none !important}
.ecs-table th, .ecs-table td {
  border: none !important; border-bottom: 1px solid rgba(128, 128, 128, .35) !important;
  padding: .35em .6em !important; text-align: left
}
.ecs-table th {font-weight: 600}
.ecs-cell {display: block; min-width: 4em}
.ecs-bar {display: block; height: .55em; min-width: 1px; border-radius: 2px}
.ecs-for {background: #0072b2}
.ecs-against {background: #d55e00}
.ecs-table td:has(> .ecs-bar) {width: 45%}
figure {margin: 1em 0}
figure img {max-width: 100%; background: white; border-radius: 4px}
"""


def load_and_launch(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    block: bool = True,
) -> Any:
    """Load a model with its processor, and serve its page.

    Args:
        source: a folder, or a name on the Hub.
        revision: the branch on the Hub.
        host: the address to listen on; None for GRADIO_SERVER_NAME, as Spaces set it, or else this machine alone.
        port: None for the first free one from 7860.
        share: also give the page a public address for a week, through a server of Gradio's.
        block: serve until Ctrl-C; otherwise return at once.

    Returns:
        The `gradio.Blocks`, which has the address in `local_url` and ends with `close()`.

    Raises:
        ImportError: Gradio is not installed.
        OSError: there is no model, or the port is taken.
        ValueError: there is no processor beside the model, or the model has encoders of the user's own.
    """
    # Before the model is loaded, which may take minutes.
    _gradio()
    model = FusionForClassification.from_pretrained(source, revision=revision or "main")
    return launch(build_page(model, model.processor()), host=host, port=port, share=share, block=block)


def launch(
    page: Any, *, host: str | None = None, port: int | None = None, share: bool = False, block: bool = True
) -> Any:
    """Serve a page of `build_page`; the arguments and the result are those of `load_and_launch`.

    No file of this machine is served but what a visitor uploaded in this run, and nothing is told to Gradio's makers.
    """
    blocked = [str(Path.home()), str(Path.cwd())]
    uploads = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    page.queue(max_size=32, default_concurrency_limit=1)
    page.launch(
        server_name=host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1",
        server_port=port,
        share=share,
        max_file_size=MAX_FILE_BYTES,
        allowed_paths=[],
        # What is blocked wins, so a folder that holds the uploads cannot be named.
        blocked_paths=[folder for folder in blocked if not uploads.is_relative_to(Path(folder).resolve())],
        show_error=False,
        strict_cors=True,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        footer_links=[],
        theme=_theme(),
        css=STYLE,
        prevent_thread_lock=True,
        quiet=not share,
    )
    print(f"The page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return page


def build_page(model: FusionForClassification, processor: FusionProcessor) -> Any:
    """The page of a model, as `gradio.Blocks`.

    Args:
        model: it is put into evaluation mode.
        processor: that of the model.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: the processor lacks a modality of the model.
    """
    gr = _gradio()
    absent = [name for name in model.modalities if name not in processor.modalities]
    if absent:
        raise ValueError(
            f"the processor has no modality {absent[0]!r}; give the one that made the training rows."
        )
    model.eval()
    title = Path(model.name_or_path or "model").name
    with gr.Blocks(title=f"{title} · ecsfusion", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {title}\n{_introduction(model, processor)}")
        with gr.Tab("Ask the model"):
            _add_answers(gr, model, processor)
        with gr.Tab("Measure embeddings"):
            _add_measuring(gr)
        with gr.Tab("What the card knows"):
            for text, picture in card_of(model):
                gr.Markdown(text, sanitize_html=True)
                if picture is not None:
                    gr.HTML(picture_html(*picture))
    return page


def _introduction(model: FusionForClassification, processor: FusionProcessor) -> str:
    kinds = ", ".join(
        f"**{name}**" + ("" if processor.kind(name) == name else f" ({processor.kind(name)})")
        for name in model.modalities
    )
    classes = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    listed = ", ".join(classes[:12]) + (f" and {len(classes) - 12} more" if len(classes) > 12 else "")
    return (
        f"This model reads {kinds} and answers with one of: {listed}. Every input may be left out: compare what the "
        "model says with and without it."
    )


def _add_answers(gr: Any, model: FusionForClassification, processor: FusionProcessor) -> None:
    names = list(model.modalities)
    kinds = {name: processor.kind(name) for name in names}
    with gr.Row():
        with gr.Column(scale=2):
            gr.Markdown("### 1. Give inputs")
            fields, uses = [], []
            for name in names:
                with gr.Column(variant="panel"):
                    fields.append(_field(gr, name, kinds[name]))
                    uses.append(
                        gr.Checkbox(
                            True, label=f"use {name}", info="untick to ask without it", container=True
                        )
                    )
            asked = gr.Button("Ask the model", variant="primary")
        with gr.Column(scale=3):
            gr.Markdown("### 2. What each head says, and the calibrated answer")
            answer = gr.HTML("<p>Give an input and press <em>Ask the model</em>.</p>", elem_id="answer")
            gr.Markdown("### 3. What each modality contributes to this answer")
            contributions = gr.HTML(
                "<p>Shapley values, once there is an answer.</p>", elem_id="contributions"
            )

    def ask(*values: Any) -> tuple[str, str]:
        def answered() -> tuple[str, str]:
            raw = {}
            for name, value, is_used in zip(names, values[: len(names)], values[len(names) :], strict=True):
                if is_used:
                    try:
                        raw[name] = raw_value(kinds[name], value)
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from error
            row = answer_row(model, processor, raw)
            return answer_html(row), contributions_html(row)

        return _or_sentence(answered, lambda sentence: (error_html(sentence), ""), _paths(values))

    asked.click(ask, [*fields, *uses], [answer, contributions], api_name="ask")


def _field(gr: Any, name: str, kind: str) -> Any:
    if kind == "image":
        field = gr.Image(
            type="filepath",
            sources=["upload", "webcam", "clipboard"],
            label=name,
            height=220,
            buttons=["fullscreen"],
        )
    elif kind == "video":
        field = gr.File(file_count="multiple", file_types=["image"], label=f"{name}: {HINTS[kind]}")
    elif kind == "audio":
        field = gr.Audio(
            type="filepath", sources=["upload", "microphone"], editable=False, label=name, buttons=[]
        )
    else:
        lines = 4 if kind == "text" else 3
        return gr.Textbox(label=name, lines=lines, max_lines=12, placeholder=HINTS[kind])
    return _as_uploaded(field)


def _as_uploaded(field: Any) -> Any:
    """Let a component pass on the path of the uploaded file.

    Gradio would decode a file before it calls our functions, and answer a broken one with a message of its own.
    """
    field.preprocess = _uploaded_paths
    return field


def _uploaded_paths(payload: Any) -> Any:
    """The path of a file, or the list of those of several, that Gradio has found in its folder of uploads."""
    if payload is None:
        return None
    if hasattr(payload, "root"):
        return [each.path for each in payload.root]
    return [each.path for each in payload] if isinstance(payload, list) else payload.path


def _add_measuring(gr: Any) -> None:
    gr.Markdown(
        "What do embeddings know about a label? Upload a file with a row for each sample, the embeddings of two or "
        "more modalities, and a label. FastPID divides what they know, in bits, into what several know (redundancy), "
        "what one alone knows (unique) and what only all together know (synergy). The file stays on this server for at "
        "most an hour."
    )
    with gr.Row():
        with gr.Column(scale=2):
            file = _as_uploaded(
                gr.File(file_types=[*READERS], label=f"file of embeddings: {', '.join(READERS)}", height=120)
            )
            # Names that are no columns are answered by a sentence of the reader, not by one of Gradio.
            free = {"allow_custom_value": True, "interactive": True}
            label = gr.Dropdown([], label="label", info="whole numbers or texts", **free)
            columns = gr.Dropdown(
                [], label="modalities", multiselect=True, info="two or more columns", **free
            )
            group = gr.Dropdown(
                [NO_GROUPS],
                value=NO_GROUPS,
                label="groups",
                info="the column of what rows share, such as a subject or a picture",
                **free,
            )
            measured = gr.Button("Measure", variant="primary")
        with gr.Column(scale=3):
            result = gr.HTML("<p>Upload a file and press <em>Measure</em>.</p>", elem_id="measured")

    def look(path: str | None) -> tuple[Any, Any, Any, str]:
        def empty(sentence: str) -> tuple[Any, Any, Any, str]:
            none = gr.Dropdown(choices=[], value=None)
            return (
                none,
                gr.Dropdown(choices=[], value=[]),
                gr.Dropdown(choices=[NO_GROUPS], value=NO_GROUPS),
                sentence,
            )

        def found() -> tuple[Any, Any, Any, str]:
            names, embeddings, guess = columns_of(str(path))
            return (
                gr.Dropdown(choices=names, value=guess),
                gr.Dropdown(choices=names, value=embeddings),
                gr.Dropdown(choices=[NO_GROUPS, *names], value=NO_GROUPS),
                f"<p>The file has {len(names)} columns. Check the label and the modalities, then press "
                "<em>Measure</em>.</p>",
            )

        if path is None:
            return empty("<p>Upload a file and press <em>Measure</em>.</p>")
        return _or_sentence(found, lambda sentence: empty(error_html(sentence)), [path])

    def measure(path: str | None, label: str | None, columns: Sequence[str], group: str | None) -> str:
        if path is None:
            return error_html("no file is uploaded; upload one.")
        rows = None if group == NO_GROUPS else group
        return _or_sentence(lambda: pids_html(measure_file(path, label, columns, rows)), error_html, [path])

    file.change(look, file, [label, columns, group, result], api_name="columns")
    measured.click(measure, [file, label, columns, group], result, api_name="measure")


def _or_sentence(work: Callable[[], Any], said: Callable[[str], Any], paths: Sequence[str]) -> Any:
    """What `work` returns, or what `said` makes of the sentence of its error.

    Args:
        work: the function.
        said: makes the outputs of a sentence.
        paths: of uploaded files, which no sentence may name.
    """
    try:
        return work()
    except (ValueError, TypeError, ImportError) as error:
        sentence = str(error)
    except Exception as error:
        # Whatever it is, the visitor can do nothing about it, and whoever runs the page should see it.
        logger.warning("".join(traceback.format_exception(error)))
        sentence = f"this could not be answered ({type(error).__name__}); try another input."
    for path in paths:
        sentence = sentence.replace(path, Path(path).name).replace(str(Path(path).parent), "")
    # The page has one row, whose files have no name for the reader.
    return said(re.sub(r", row 0\b| <_io\.BytesIO[^>]*>", "", sentence))


def _paths(values: Sequence[Any]) -> list[str]:
    """The paths of uploaded files among the values of inputs."""
    uploads = os.environ["GRADIO_TEMP_DIR"]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in flat if isinstance(item, str) and item.startswith(uploads)]


def _theme() -> Any:
    """Gradio's theme with the fonts of the visitor's machine: its own ones come from another server."""
    gr = _gradio()
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Default(font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])


def _gradio() -> Any:
    """Gradio, told to report nothing, with a folder for uploads that only this user can read.

    Raises:
        ImportError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = uploads = tempfile.mkdtemp(prefix="ecsfusion-demo-")
        atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    with extra_for("the page of a model"):
        import gradio
    return gradio
