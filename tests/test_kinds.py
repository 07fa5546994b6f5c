"""The kinds of columns of benchmarks/bench_kinds.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from column_kinds import ACROSS, ALONE, KINDS
from published_kinds import PUBLISHED

ROWS = 400


@pytest.mark.parametrize("kind", [*KINDS, *PUBLISHED])
def test_a_kind_draws_finite_columns_and_classes(kind):
    draw = (KINDS | PUBLISHED)[kind]
    first, second, labels = draw(np.random.default_rng(0), ROWS)
    for columns in (first, second):
        assert columns.ndim == 2
        assert len(columns) == ROWS
        assert np.isfinite(columns.astype(np.float32)).all()
    assert labels.shape == (ROWS,)
    found = np.unique(labels)
    assert len(found) >= 2
    assert np.array_equal(found, found.astype(np.int64))
    again = draw(np.random.default_rng(0), ROWS)
    for one, other in zip((first, second, labels), again, strict=True):
        assert np.array_equal(one, other)


def test_no_name_stands_for_two_kinds():
    """Of two with one name a union of both would hold one, and the seeds of those behind it would be others."""
    assert len(KINDS) == len(ALONE) + len(ACROSS)
    assert not KINDS.keys() & PUBLISHED.keys()
