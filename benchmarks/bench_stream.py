"""Memory and rows per second of `ecsfusion pid --method clusters` on a parquet file that grows.

    OMP_NUM_THREADS=1 python benchmarks/bench_stream.py

writes files of embeddings (two modalities of 32 and 16 float16 dimensions, 10 classes) into a temporary folder, lets
the command line read each in a process of its own, and notes its peak resident memory (VmHWM), its time and the
answer: one JSON line per file in benchmarks/results/stream.jsonl. The peak must not grow with the rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from environment import environment

RESULTS = Path(__file__).parent / "results"
DIMENSIONS = (32, 16)
CLASSES = 10
GROUP = 131_072


def write(path: Path, rows: int) -> None:
    """Modality 1 knows the class with 70 % probability, modality 2 its parity with 90 %."""
    generator = np.random.default_rng(0)
    centers = [2 * generator.normal(size=(CLASSES, d)) for d in DIMENSIONS]
    schema = pa.schema(
        [
            ("label", pa.int16()),
            *((f"x{i + 1}", pa.list_(pa.float16(), d)) for i, d in enumerate(DIMENSIONS)),
        ]
    )
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, GROUP):
            number = min(GROUP, rows - start)
            label = generator.integers(0, CLASSES, number)
            known = np.where(generator.random(number) < 0.7, label, generator.integers(0, CLASSES, number))
            parity = np.where(generator.random(number) < 0.9, label % 2, 1 - label % 2)
            columns = [pa.array(label.astype(np.int16))]
            for state, center, d in zip((known, parity), centers, DIMENSIONS, strict=True):
                points = center[state] + generator.standard_normal((number, d), dtype=np.float32)
                columns.append(
                    pa.FixedSizeListArray.from_arrays(pa.array(points.astype(np.float16).ravel()), d)
                )
            writer.write_table(pa.table(columns, schema=schema))


def read(path: Path, rows: int) -> dict[str, Any]:
    """One run of the command line in a process of its own."""
    code = (
        "import json, sys; from ecsfusion.cli import main; code = main();"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line);"
        "print(json.dumps({'peak_mb': int(status['VmHWM'].split()[0]) / 1024}), file=sys.stderr); sys.exit(code)"
    )
    arguments = ["pid", str(path), "--label", "label", "--modality", "first=x1", "--modality", "second=x2"]
    arguments += ["--method", "clusters"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json", "--quiet"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds = time.perf_counter() - start
    pid = json.loads(done.stdout)
    return {
        "rows": rows,
        "file_mb": path.stat().st_size / 2**20,
        "peak_mb": json.loads(done.stderr.splitlines()[-1])["peak_mb"],
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        **{name: pid[name] for name in ("redundancy", "unique", "synergy", "interval")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with open(options.output / "stream.jsonl", "w") as out, tempfile.TemporaryDirectory() as folder:
        out.write(json.dumps({"environment": environment("pyarrow")}) + "\n")
        for rows in options.rows:
            path = Path(folder) / "embeddings.parquet"
            write(path, rows)
            found = read(path, rows)
            out.write(json.dumps(found) + "\n")
            out.flush()
            print(f"{rows:>12,} rows  {found['peak_mb']:8.0f} MB  {found['rows_per_second']:12,.0f} rows/s")


if __name__ == "__main__":
    main()
