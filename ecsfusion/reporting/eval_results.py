"""Results as the Hub's leaderboards read them: `.eval_results/NAME.yaml` beside the card, one file a data set.

The format is that of https://huggingface.co/docs/hub/eval-results. The header of the card has the same results as
`model-index`, which pages of models show.
"""

from __future__ import annotations

import datetime
import re
import shutil
from itertools import zip_longest
from pathlib import Path

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.reporting.card import CardFacts, hub_datasets
from ecsfusion.reporting.heads import COMBINED_HEADS

EVAL_RESULTS = ".eval_results"
"""The folder that the Hub reads."""


def eval_results(facts: CardFacts, date: str | None = None) -> dict[str, str]:
    """The files of the folder, by name. Without a data set on the Hub there is nothing to compare, and no file.

    A file has the score of what the model answers, the calibrated combination or else the fused head, on the last
    split. An accuracy is in percent, as leaderboards have it.

    Args:
        facts: what the card states.
        date: ISO date of the evaluation; None for today.
    """
    split, heads = list(facts.accuracy.items())[-1]
    head = next((head for head in (CALIBRATED, FUSED) if head in heads), None)
    if head is None:
        return {}
    value = round(100 * heads[head], 2) if facts.score == "accuracy" else round(heads[head], 4)
    source = {} if facts.repo_id is None else {"source_url": f"https://huggingface.co/{facts.repo_id}"}
    names = hub_datasets(facts)
    files = {}
    for dataset, args in zip_longest(names, facts.dataset_args[: len(names)]):
        entry = EvalResultEntry(
            dataset_id=dataset,
            task_id=args or "default",
            value=value,
            date=date or datetime.date.today().isoformat(),
            notes=f"{facts.score} of the {COMBINED_HEADS[head]} on the split {split}",
            **source,
            **({"source_name": "Model card"} if source else {}),
        )
        file = re.sub(r"[^\w.-]", "-", f"{dataset}-{args}" if args else dataset)
        files[f"{file}.yaml"] = yaml_dump(eval_result_entries_to_yaml([entry]))
    return files


def write_eval_results(facts: CardFacts, folder: Path) -> None:
    """Write the files into the model's folder, in place of those that an earlier run left."""
    target = folder / EVAL_RESULTS
    shutil.rmtree(target, ignore_errors=True)
    for name, text in eval_results(facts).items():
        target.mkdir(exist_ok=True)
        (target / name).write_text(text, encoding="utf-8")
