"""The command line of the scripts that build a data set."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def read_arguments(argv: Sequence[str], description: str | None, packages: str) -> argparse.Namespace:
    """`packages` and `output`, folders, and whether it is `without_embeddings`.

    Args:
        argv: what was typed.
        description: of the script.
        packages: what the folder of packages holds.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, required=True, help=packages)
    parser.add_argument("--output", type=Path, required=True, help="where to write")
    parser.add_argument(
        "--without-embeddings", action="store_true", help="no embeddings.npz: needs no encoders"
    )
    return parser.parse_args(argv)
