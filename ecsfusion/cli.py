"""The command line: `pid` measures embeddings, `train` runs the recipe, `export`, `push` and `demo` take a model out.

Arguments are parsed with the standard library alone. Each command imports what it needs after that, so that help and
misspelt options do not wait for torch.
"""

import argparse
import importlib
import json
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ecsfusion.extras import extra_for

if TYPE_CHECKING:
    import torch

DEFAULTS_OF_CLUSTERS = {"components": None, "bootstrap": 200, "permutations": 32, "no_correction": False}
"""Options of `ecsfusion pid --method clusters` alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `ecsfusion`.

    Args:
        arguments: The words after `ecsfusion`; those of `sys.argv` if None.

    Returns:
        The exit code: 0, also where nobody reads the output any more; 2 after an error, which is printed as one
        sentence on stderr; 130 after Ctrl-C.

    Raises:
        SystemExit: From argparse, with the code 0 after `--help` and 2 for arguments that it does not accept.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:
        # Its options are those of the recipe, which parses them itself.
        return _train(words[1:])
    options = _parser().parse_args(words)
    interrupts: list[int] = []
    with _noting_interrupts(interrupts), _warnings_as_sentences(options.command):
        try:
            return {"pid": _pid, "push": _push, "export": _export, "demo": _demo}[options.command](options)
        except BaseException as error:
            # A library that is interrupted while it is imported may raise ImportError instead.
            if interrupts or isinstance(error, KeyboardInterrupt):
                print(f"ecsfusion {options.command}: interrupted", file=sys.stderr)
                return 130
            if isinstance(error, BrokenPipeError) and _has_no_reader():
                # Who reads the output, such as `head`, has enough; what is left in the buffer goes nowhere.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                return 0
            if not isinstance(error, (ValueError, TypeError, OSError, ImportError)):
                raise
            print(f"ecsfusion {options.command}: error: {error}", file=sys.stderr)
            return 2


def _has_no_reader() -> bool:
    """Whether the output is a pipe that nobody reads; a connection that breaks raises the same error.

    A pipe without a reader is in error. Where a system cannot say so, the error is taken for that of a connection.
    """
    if not hasattr(select, "poll"):
        return False
    waiting = select.poll()
    waiting.register(1, 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


@contextmanager
def _noting_interrupts(interrupts: list[int]) -> Iterator[None]:
    """A context in which each Ctrl-C is appended to `interrupts` before it raises KeyboardInterrupt."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    # In the background Ctrl-C is ignored, and only the main thread may say what it does.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _warnings_as_sentences(command: str) -> Iterator[None]:
    """A context in which a warning is printed as one sentence, without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_args, **_more: f"ecsfusion {command}: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _pid(options: argparse.Namespace) -> int:
    """Measure a file; under torchrun, as one of several processes."""
    modalities = dict(options.modality)
    if len(modalities) < 2 or len(modalities) < len(options.modality):
        raise ValueError(
            f"--modality must be given for two or more different names, got {sorted(modalities)}"
        )
    if options.method != "clusters":
        given = [name for name in DEFAULTS_OF_CLUSTERS if getattr(options, name) is not None]
        if options.bootstrap == 0:
            # No replicates are drawn for posteriors anyway.
            given.remove("bootstrap")
        words = [f"--{name.replace('_', '-')}" for name in given]
        words += ["--clusters auto"] if options.clusters == "auto" else []
        if words:
            raise ValueError(
                f"{words[0]} is an option of --method clusters; leave it out, or give --method clusters"
            )
    elif options.group is not None:
        raise ValueError("--group is an option of --method posteriors; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _measure(options, modalities, 0, 1)

    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        return _measure(options, modalities, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _measure(options: argparse.Namespace, modalities: dict[str, str], rank: int, processes: int) -> int:
    """Measure the rows of this process together with the others'; the first process prints the answer."""
    if options.plot is not None:
        with extra_for("a picture"):
            from ecsfusion.pid.plotting import check_picture_path

        check_picture_path(options.plot)

    from ecsfusion.data.embedding_files import open_tables
    from ecsfusion.pid.stream import stream_pid

    device = _device(options.device)
    # A log file has no use for progress bars.
    shows_progress = not options.quiet and rank == 0 and sys.stderr.isatty()
    if not shows_progress:
        _silence_data_sets()
    columns = [options.label, *modalities.values(), *([options.group] if options.group else [])]
    table = open_tables([file.replace("{rank}", str(rank)) for file in options.files], options.split, columns)
    rows = range(table.num_rows)
    if not any("{rank}" in file for file in options.files):
        rows = range(table.num_rows * rank // processes, table.num_rows * (rank + 1) // processes)
    pids = stream_pid(
        table,
        modalities,
        options.label,
        group=options.group,
        rows=rows,
        method=options.method,
        num_clusters=options.clusters,
        bins=options.bins,
        seed=options.seed,
        device=device,
        progress=shows_progress,
        **(_options_of_clusters(options) if options.method == "clusters" else {}),
    )
    if rank > 0:
        return 0
    if options.json:
        plain = {name: pid.to_dict() for name, pid in pids.items()}
        print(json.dumps(next(iter(plain.values())) if len(plain) == 1 else plain, indent=2))
    else:
        for name, pid in pids.items():
            print(pid if len(pids) == 1 else f"{name}\n{pid}\n")
    if options.plot is not None:
        target = Path(options.plot)
        for name, pid in pids.items():
            suffix = "" if len(pids) == 1 else "-" + name.replace(", ", "-")
            pid.plot(str(target.with_name(f"{target.stem}{suffix}{target.suffix}")))
    return 0


def _silence_data_sets() -> None:
    """Let `datasets` show no progress bars, without importing it where no data set is read."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _options_of_clusters(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `stream_pid` that belong to the method of clusters."""
    chosen = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS_OF_CLUSTERS.items()
    }
    return {
        "num_components": chosen["components"],
        "bootstrap": chosen["bootstrap"],
        "permutations": chosen["permutations"],
        "correction": not chosen["no_correction"],
    }


def _push(options: argparse.Namespace) -> int:
    """Publish the model of a run."""
    with extra_for("publishing", "train"):
        from ecsfusion.reporting.hub import push

    commit = push(
        options.name,
        options.folder,
        options.peak,
        revision=options.revision,
        private=options.private or None,
        space=options.space,
    )
    print(f"Published: {commit.repo_url or options.name}")
    return 0


def _export(options: argparse.Namespace) -> int:
    """Write a finished model as one graph."""
    target = options.output
    if target is None:
        if not Path(options.folder).is_dir():
            raise ValueError(f"{options.folder!r} is no folder; for a model on the Hub add --output FOLDER")
        target = str(Path(options.folder) / options.format)
    with extra_for("exporting", "export" if options.format == "onnx" else "train"):
        from transformers.utils import logging

        from ecsfusion.modeling import FusionForClassification

    logging.disable_progress_bar()
    model = FusionForClassification.from_pretrained(
        options.folder, revision=options.revision or "main", attn_implementation=options.attn_implementation
    )
    facts = model.export(target, options.format, options.modalities)
    inputs = ", ".join(each["name"] for each in facts["inputs"])
    print(f"Written: {target} ({facts['file']} with the inputs {inputs}; how to run it is in README.md)")
    return 0


def _demo(options: argparse.Namespace) -> int:
    """Serve the page of a model until Ctrl-C."""
    with extra_for("the page", "demo"):
        from transformers.utils import logging

        from ecsfusion.demo.page import load_and_launch

    logging.disable_progress_bar()
    load_and_launch(
        options.folder, revision=options.revision, host=options.host, port=options.port, share=options.share
    )
    return 0


def _train(words: Sequence[str]) -> int:
    """Run the recipe, as `hf_recipes/run.py` does from a clone."""
    try:
        with extra_for("training", "recipes"):
            # By its name: the recipe imports this library, not the other way round.
            recipe = importlib.import_module("hf_recipes.run")
    except ImportError as error:
        print(f"ecsfusion train: error: {error}", file=sys.stderr)
        return 2
    recipe.main(words)
    return 0


def _device(text: str) -> "torch.device":
    """The device called `text`; raises ValueError where it is misspelt or this machine does not have it."""
    import torch

    available = ["cpu"]
    if torch.accelerator.is_available():
        kind = str(torch.accelerator.current_accelerator())
        available += [kind, *(f"{kind}:{index}" for index in range(torch.accelerator.device_count()))]
    if text not in available:
        raise ValueError(f"--device must be a device of this machine, one of {available}, got {text!r}")
    return torch.device(text)


def _parser() -> argparse.ArgumentParser:
    """The options of all commands but `train`, which has those of the recipe."""
    parser = argparse.ArgumentParser(
        prog="ecsfusion",
        description="Measure what the embeddings of each modality know about a label; train a fusion model; export or"
        " publish it.",
    )
    parser.add_argument("--version", action=_PrintVersion, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True)
    pid = commands.add_parser(
        "pid",
        help="measure what each modality knows about a label, in bits",
        description="Measure what the embeddings of each modality know about a label, in bits: what both know"
        " (redundancy), what one alone knows (unique), and what only both together know (synergy). Under torchrun the"
        " processes share the rows of the files; if FILE contains {rank}, each process reads a file of its own.",
    )
    pid.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a .parquet, .npz, .safetensors, .csv, .tsv, .json or .jsonl file, a pattern such as 'part-*.parquet', or"
        " the name or folder of a data set; several are read as one",
    )
    pid.add_argument(
        "--label", required=True, metavar="COL", help="the column of the label: integers or strings"
    )
    pid.add_argument(
        "--modality",
        required=True,
        action="append",
        type=_named_column,
        metavar="NAME=COL",
        help="the name of a modality and the column of its embeddings; give it twice or more",
    )
    pid.add_argument(
        "--split", default="train", help="the split of a data set to read (default: %(default)s)"
    )
    pid.add_argument(
        "--group",
        metavar="COL",
        help="the column of the source of each row, such as a picture or a subject, if rows share sources",
    )
    pid.add_argument(
        "--method",
        choices=["posteriors", "clusters"],
        default="posteriors",
        help="held-out posteriors of at most 65536 rows, or clusters of the embeddings (default: %(default)s)",
    )
    pid.add_argument(
        "--clusters",
        type=_clusters,
        metavar="K",
        help="clusters per modality: of posteriors (default: 128, 64 for few rows), or with --method clusters of"
        " embeddings (default: 20), or auto to choose them from the classes",
    )
    pid.add_argument(
        "--bins", type=int, metavar="B", help="cut a label of real numbers into B classes at its quantiles"
    )
    pid.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    pid.add_argument(
        "--device", default="cpu", help="where to compute: cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    pid.add_argument("--json", action="store_true", help="print JSON instead of a table")
    pid.add_argument(
        "--plot",
        metavar="PICTURE",
        help="also draw values, intervals and noise floors, in the format of the file's suffix; one file per pair",
    )
    pid.add_argument("--quiet", action="store_true", help="show no progress bars, even on a terminal")
    clusters = pid.add_argument_group("options of --method clusters")
    clusters.add_argument(
        "--components",
        type=int,
        metavar="D",
        help="principal directions per modality (default: chosen from the number of classes)",
    )
    clusters.add_argument(
        "--no-correction",
        action="store_true",
        default=None,
        help="print plug-in values, which are too large on average",
    )
    clusters.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="bootstrap replicates for the intervals; 0 for none (default: 200)",
    )
    clusters.add_argument(
        "--permutations", type=int, metavar="N", help="random tables per noise floor (default: 32)"
    )
    commands.add_parser(
        "train",
        help="train a fusion model in two stages on your data, as a YAML file says",
        description="Train a fusion model; see `ecsfusion train --help`.",
        add_help=False,
    )
    export = commands.add_parser(
        "export",
        help="write a finished model as one graph that runs without this library",
        description="Write a folder with the graph of a finished model, its description, the processors' files and a"
        " README with code that runs it.",
    )
    export.add_argument("folder", metavar="FOLDER", help="the model: a folder, or a name on the Hub")
    export.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to write (default: a folder named as the format in the model's)",
    )
    export.add_argument(
        "--format",
        choices=["onnx", "torch"],
        default="onnx",
        help="ONNX, or torch.export (default: %(default)s)",
    )
    export.add_argument(
        "--modalities", nargs="+", metavar="NAME", help="the modalities that rows may have (default: all)"
    )
    export.add_argument(
        "--attn-implementation", metavar="NAME", help="the attention of the encoders, such as eager"
    )
    export.add_argument("--revision", metavar="BRANCH", help="the branch on the Hub (default: main)")
    demo = commands.add_parser(
        "demo",
        help="serve a page on which anybody can ask a model, and measure a file of embeddings",
        description="Serve a page with an input for each modality, the answers of all heads, what each modality"
        " contributes, what the model's card knows, and FastPID of an uploaded file of embeddings. Only this machine"
        " can open it, unless --host or --share says otherwise. It needs the extra demo.",
    )
    demo.add_argument("folder", metavar="FOLDER", help="the model: a folder, or a name on the Hub")
    demo.add_argument("--revision", metavar="BRANCH", help="the branch on the Hub (default: main)")
    demo.add_argument(
        "--host", metavar="ADDRESS", help="the address to listen on; 0.0.0.0 for all (default: 127.0.0.1)"
    )
    demo.add_argument(
        "--port", type=int, metavar="N", help="the port (default: the first free one from 7860)"
    )
    demo.add_argument(
        "--share", action="store_true", help="also give the page a public address, through Gradio's server"
    )
    publish = commands.add_parser(
        "push",
        help="publish on the Hub the model in the output folder of a run",
        description="Publish the model of a run on the Hub: weights, configurations, processors, card and pictures."
        " The token is taken from HF_TOKEN, or from `hf auth login`.",
    )
    publish.add_argument("folder", metavar="FOLDER", help="the output folder of the run")
    publish.add_argument(
        "name", metavar="NAME", help="the repository, such as you/digits; it is created if it does not exist"
    )
    publish.add_argument(
        "--peak", metavar="FOLDER", help="the folder of the peak of stage 1, published on the branch unimodal"
    )
    publish.add_argument("--revision", metavar="BRANCH", help="the branch of the model (default: main)")
    publish.add_argument(
        "--private", action="store_true", help="make the repository private if it is created"
    )
    publish.add_argument(
        "--space", action="store_true", help="also publish the page of `ecsfusion demo`, as a Space"
    )
    return parser


class _PrintVersion(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from ecsfusion import __version__

        print(f"ecsfusion {__version__}")
        parser.exit()


def _clusters(text: str) -> int | str:
    """The number of clusters, or "auto"."""
    if text == "auto":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto")
    return int(text)


def _named_column(text: str) -> tuple[str, str]:
    """The name of a modality and its column, from NAME=COL."""
    name, separator, column = text.partition("=")
    if not (name and separator and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COL, for example image=image_embedding")
    return name, column


if __name__ == "__main__":
    sys.exit(main())
