"""What each modality of real data knows: frozen embeddings of pretrained encoders in ../shared/data.

    OMP_NUM_THREADS=1 python benchmarks/bench_embeddings.py

For clipart (image, text) and stamps (image, sound, text) with 13 classes each: what `fast_pids` proves on held-out rows
and its limit for many rows, beside what a logistic regression (scikit-learn, strength chosen on the training rows)
proves on the same rows. Rows of one picture stay on one side of every split. One JSON line per set in
benchmarks/results/embeddings.jsonl, and the tables of docs/pid.md on the screen. Where the data are absent it says so.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from environment import environment
from numpy.typing import NDArray

from ecsfusion import fast_pids
from ecsfusion.pid.decomposition import PID

DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "embeddings.jsonl"
FOLDS = 5


def logistic_bits(rows: NDArray[Any], labels: NDArray[Any], groups: NDArray[Any]) -> float:
    """The information in bits that a logistic regression proves by its log-loss on rows of other groups."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    split = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    told = np.empty(len(labels))
    for train, test in split.split(rows, labels, groups):
        inner = StratifiedGroupKFold(3, shuffle=True, random_state=1)
        model = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(
                Cs=np.logspace(-5, -1, 5),
                cv=list(inner.split(rows[train], labels[train], groups[train])),
                scoring="neg_log_loss",
                max_iter=300,
                use_legacy_attributes=False,
                l1_ratios=(0.0,),
            ),
        )
        model.fit(rows[train], labels[train])
        log_posterior = model.predict_log_proba(rows[test])
        told[test] = log_posterior[np.arange(len(test)), labels[test]]
    share = np.bincount(labels) / len(labels)
    entropy = -(share * np.log2(share)).sum()
    return float(entropy + told.mean() / np.log(2))


def measure(name: str, path: Path) -> dict[str, Any]:
    """One line: what each modality of a set knows, alone and with the others."""
    with np.load(path, allow_pickle=False) as stored:
        modalities = [key for key in ("image", "audio", "text") if key in stored]
        embeddings = {key: stored[key].astype(np.float32) for key in modalities}
        labels, groups = stored["label"].astype(np.int64), stored["group"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pids = fast_pids(embeddings, labels, groups=groups)
        proofs = {key: logistic_bits(rows, labels, groups) for key, rows in embeddings.items()}
        proofs["all"] = logistic_bits(np.concatenate(list(embeddings.values()), 1), labels, groups)
    share = np.bincount(labels) / len(labels)
    return {
        "set": name,
        "rows": len(labels),
        "groups": len(np.unique(groups)),
        "entropy": round(float(-(share * np.log2(share)).sum()), 3),
        "known": {key: known(key, pids, modalities) for key in modalities},
        "joint": joint(pids),
        "logistic": {key: round(value, 3) for key, value in proofs.items()},
        "pairs": {pair: {**pid.to_dict(), "seconds": None} for pair, pid in pids.items()},
        "seconds": round(max(pid.seconds for pid in pids.values()), 2),
        **environment("scikit-learn"),
    }


def known(name: str, pids: dict[str, PID], modalities: list[str]) -> dict[str, float]:
    """What one modality knows: held out, in the limit, and alone (which no other modality knows)."""
    pid = pids[f"{name}, rest"] if len(modalities) > 2 else pids[", ".join(modalities)]
    place = 0 if len(modalities) > 2 else modalities.index(name)
    proven = pid.held_out
    if proven is None:
        raise RuntimeError("fast_pids returned no held-out values.")
    return {
        "proven": round(float(proven.mutual_information[place]), 3),
        "limit": round(float(pid.mutual_information[place]), 3),
        "alone": round(float(pid.unique[place]), 3),
    }


def joint(pids: dict[str, PID]) -> dict[str, float]:
    """What all modalities know together."""
    every = [pid for pair, pid in pids.items() if pair.endswith(", rest")] or list(pids.values())
    best = max(every, key=lambda pid: float(pid.joint_mutual_information))
    proven = max(float(pid.held_out.joint_mutual_information) for pid in every if pid.held_out is not None)
    return {"proven": round(proven, 3), "limit": round(float(best.joint_mutual_information), 3)}


def table(line: dict[str, Any]) -> str:
    """A table of Markdown."""
    rows = [
        f"| {line['set']}: {line['rows']} rows of {line['groups']} pictures, H(Y) {line['entropy']:.2f} bits "
        "| proven by `fast_pids` | limit | known to it alone | proven by logistic regression |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in line["known"].items():
        rows.append(
            f"| {name} | {values['proven']:.2f} | {values['limit']:.2f} | {values['alone']:.2f} |"
            f" {line['logistic'][name]:.2f} |"
        )
    together = line["joint"]
    rows.append(
        f"| all | {together['proven']:.2f} | {together['limit']:.2f} | | {line['logistic']['all']:.2f} |"
    )
    return "\n".join(rows)


def main() -> None:
    """Measure both sets."""
    lines = []
    for name in ("clipart", "stamps"):
        path = DATA / name / "embeddings.npz"
        if not path.exists():
            print(f"{path} is not here; {name} is left out.", file=sys.stderr)
            continue
        lines.append(measure(name, path))
        print(table(lines[-1]) + "\n", flush=True)
    if lines:
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
