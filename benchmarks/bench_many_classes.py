"""Many classes of natural text: does `fast_pid` know what classifiers prove of them?

    OMP_NUM_THREADS=1 python benchmarks/bench_many_classes.py

The rows are functions and classes of Python's standard library, NumPy, SciPy, scikit-learn and torch, as they are
installed. One modality is the name, by its letters, and the other the first paragraph of the docstring, by its words,
each as a latent semantic embedding (Deerwester et al. 1990). The label is the package, or the first word of the
docstring. Each modality and both together are compared with the classifiers of bench_classifiers.py, each on held-out
rows, with hindsight the best. One JSON line for each number and seed of the folds in
benchmarks/results/many_classes.jsonl; many_classes.png shows them.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench_classifiers import RESULTS
from bench_kinds import draw, report
from bench_real_tables import compared
from environment import environment
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

PACKAGES = (
    "argparse ast asyncio collections concurrent configparser csv ctypes datetime decimal difflib email fractions "
    "ftplib html http imaplib inspect io json logging mailbox multiprocessing numpy pathlib pickle random scipy shelve "
    "shutil sklearn smtplib socket sqlite3 ssl statistics string subprocess tarfile tempfile textwrap threading torch "
    "typing unittest urllib wsgiref xml xmlrpc zipfile"
)
SHORTEST = 15
"""Letters of a paragraph that counts,"""
LONGEST = 200
"""and those that are read."""
MOST_ROWS = 120
"""Of a package or a word."""
FEWEST_ROWS = 20
"""Of a class."""
LETTERS, WORDS = 96, 192
"""Columns of the embeddings."""
Row = tuple[str, str, str]


def docstrings() -> list[Row]:
    """The package, the name and the first paragraph of what is public; every paragraph once."""
    found: dict[str, Row] = {}
    for package in PACKAGES.split():
        for module in modules(package):
            for name, value in vars(module).items():
                if name.startswith("_") or not callable(value):
                    continue
                if str(getattr(value, "__module__", "")).split(".")[0].lstrip("_") != package:
                    continue
                members = vars(value).items() if inspect.isclass(value) else ()
                public = [
                    (name, value),
                    *((n, v) for n, v in members if not n.startswith("_") and callable(v)),
                ]
                for own_name, own in public:
                    text = re.split(r"\n\s*\n", inspect.getdoc(own) or "")[0]
                    paragraph = text.replace("\n", " ")[:LONGEST]
                    if len(paragraph) >= SHORTEST:
                        found.setdefault(paragraph, (package, own_name, paragraph))
    return sorted(found.values())


def modules(package: str) -> Iterator[object]:
    """A package and the public modules in it that can be imported."""
    whole = importlib.import_module(package)
    yield whole
    for part in pkgutil.iter_modules(getattr(whole, "__path__", [])):
        if part.name.startswith("_") or "test" in part.name:
            continue
        try:
            yield importlib.import_module(f"{package}.{part.name}")
        except ImportError:
            continue


def of_classes(rows: list[Row], labels: list[str], random_seed: int = 0) -> tuple[list[Row], np.ndarray]:
    """Rows in random order, at most `MOST_ROWS` of a label, and classes (N,) int64 of at least `FEWEST_ROWS`."""
    order = np.random.default_rng(random_seed).permutation(len(rows))
    taken: Counter[str] = Counter()
    kept = []
    for place in order:
        taken[labels[place]] += 1
        if taken[labels[place]] <= MOST_ROWS:
            kept.append(place)
    kept = [place for place in kept if taken[labels[place]] >= FEWEST_ROWS]
    classes = np.unique([labels[place] for place in kept], return_inverse=True)[1]
    return [rows[place] for place in kept], classes.astype(np.int64)


def embedding(texts: list[str], columns: int, **options: object) -> np.ndarray:
    """(N, columns) float32."""
    counts = TfidfVectorizer(min_df=3, sublinear_tf=True, **options).fit_transform(texts)
    return TruncatedSVD(columns, random_state=0).fit_transform(counts).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="of the folds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    machine = environment("scikit-learn", "scipy")
    every = docstrings()
    labels = {
        "package": [package for package, _, _ in every],
        "first word": [paragraph.split()[0].strip(".,:;()`'\"").lower() for _, _, paragraph in every],
    }
    lines = []
    for label, of_rows in tqdm(labels.items(), unit=" labels"):
        rows, classes = of_classes(every, of_rows)
        modalities = {
            "name": embedding([name for _, name, _ in rows], LETTERS, analyzer="char_wb", ngram_range=(2, 4)),
            "docstring": embedding([text for _, _, text in rows], WORDS, ngram_range=(1, 2)),
        }
        lines += [line | machine for line in compared(label, modalities, classes, options.seeds)]
    (options.output / "many_classes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(report(lines))
    draw({"": lines}, options.output / "many_classes.png")


if __name__ == "__main__":
    main()
