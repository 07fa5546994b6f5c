"""`ecsfusion pid FILE --label LABEL --modality image=COL --modality audio=COL`, and `ecsfusion push FOLDER NAME`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from ecsfusion.data.embedding_files import open_table
from ecsfusion.pid.stream import stream_pid


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after an error, which is one sentence on stderr."""
    options = _parser().parse_args(arguments)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        dist.init_process_group("gloo")
    try:
        return {"pid": _pid, "push": _push}[options.command](options)
    except (ValueError, TypeError, OSError) as error:
        print(f"ecsfusion {options.command}: error: {error}", file=sys.stderr)
        return 2
    finally:
        if processes > 1:
            dist.destroy_process_group()


def _pid(options: argparse.Namespace) -> int:
    modalities = dict(options.modality)
    if len(modalities) < 2 or len(modalities) < len(options.modality):
        raise ValueError(
            f"--modality must be given for two or more different names, got {sorted(modalities)}"
        )
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    table = open_table(options.file.replace("{rank}", str(rank)), options.split)
    rows = range(table.num_rows)
    if "{rank}" not in options.file:
        rows = range(table.num_rows * rank // processes, table.num_rows * (rank + 1) // processes)
    pids = stream_pid(
        table,
        modalities,
        options.label,
        rows=rows,
        num_clusters=options.clusters,
        num_components=options.components,
        bins=options.bins,
        seed=options.seed,
        device=options.device,
        progress=not options.quiet and rank == 0,
        correction=not options.no_correction,
        bootstrap=options.bootstrap,
        permutations=options.permutations,
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


def _push(options: argparse.Namespace) -> int:
    from ecsfusion.reporting.hub import push  # which measuring has no use for

    commit = push(
        options.name, options.folder, options.peak, revision=options.revision, private=options.private or None
    )
    print(f"Published: {commit.repo_url or options.name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ecsfusion", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pid = commands.add_parser(
        "pid",
        help="what each modality knows about a label, in bits",
        description="What each modality's embeddings know about a label: alone, both, only together; in bits. Under"
        " torchrun the processes share the rows of FILE, or each reads its own when FILE holds {rank}.",
    )
    pid.add_argument(
        "file", metavar="FILE", help=".parquet, .npz, .safetensors, or a data set by name or folder"
    )
    pid.add_argument("--label", required=True, metavar="COL", help="column of integers or strings")
    pid.add_argument(
        "--modality",
        required=True,
        action="append",
        type=_named_column,
        metavar="NAME=COL",
        help="a modality's name and the column of its embeddings; two or more",
    )
    pid.add_argument("--split", default="train", help="of a data set (default: %(default)s)")
    pid.add_argument(
        "--clusters", default=20, type=_clusters, metavar="K", help="or auto (default: %(default)s)"
    )
    pid.add_argument("--components", type=int, metavar="D", help="principal directions (default: from C)")
    pid.add_argument("--bins", type=int, metavar="B", help="cut a real label at its quantiles into B classes")
    pid.add_argument("--no-correction", action="store_true", help="plug-in values, biased upward")
    pid.add_argument(
        "--bootstrap", type=int, default=200, metavar="N", help="replicates (default: %(default)s)"
    )
    pid.add_argument(
        "--permutations", type=int, default=32, metavar="N", help="per null (default: %(default)s)"
    )
    pid.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    pid.add_argument("--device", default="cpu", type=torch.device, help="(default: %(default)s)")
    pid.add_argument("--json", action="store_true", help="print JSON instead of a table")
    pid.add_argument("--plot", metavar="PNG", help="draw atoms, intervals and noise floor; one file per pair")
    pid.add_argument("--quiet", action="store_true", help="no progress bars")
    publish = commands.add_parser(
        "push",
        help="publish on the Hub what a run left in its output folder",
        description="Publish the model of a run on the Hub: weights, configurations, processors, card and pictures."
        " The token is the one that `hf auth login` keeps, or HF_TOKEN.",
    )
    publish.add_argument("folder", metavar="FOLDER", help="output folder of the run")
    publish.add_argument(
        "name", metavar="NAME", help="of the repository, such as you/digits; made if there is none"
    )
    publish.add_argument("--peak", metavar="FOLDER", help="peak of stage 1, published on the branch unimodal")
    publish.add_argument("--revision", metavar="BRANCH", help="for the model (default: main)")
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


def _clusters(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto")
    return int(text)


def _named_column(text: str) -> tuple[str, str]:
    name, separator, column = text.partition("=")
    if not (name and separator and column):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COL, for example image=image_embedding")
    return name, column


if __name__ == "__main__":
    sys.exit(main())
