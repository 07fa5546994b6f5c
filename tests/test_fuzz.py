"""A fixed sample of bad and odd input; `python tests/fuzz_campaign.py` runs more of it."""

import numpy as np
import pytest
import torch
from fuzz_inputs import CASES, no_hang
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecsfusion import cluster_centers, differentiable_pid, fast_pid, pid_tensors, soft_assignments
from ecsfusion.pid.inputs import as_embeddings

SAMPLE = 40


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=SAMPLE,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_right_result_or_an_error_of_ours(name, data):
    with no_hang():
        assert CASES[name](data.draw) in ("result", "error")


# What the campaign found, once and for all.


def test_arrays_of_one_row_backwards_of_another_byte_order_and_of_long_doubles():
    rows = np.arange(12.0).reshape(6, 2)
    expected = torch.from_numpy(rows)
    for array in (rows[::-1][::-1], rows.astype(">f8"), rows.astype(np.longdouble)):
        assert torch.equal(as_embeddings(array, "x"), expected)
    assert torch.equal(as_embeddings(rows[:1][::-1], "x"), expected[:1])


def test_a_probe_without_a_row_that_can_be_counted_says_so():
    nothing = {"image": torch.full((8, 2), torch.nan), "audio": torch.randn(8, 2)}
    found = pid_tensors(
        nothing, torch.arange(8) % 2, num_classes=2, num_clusters=2, permutations=2, bootstrap=0
    )
    assert found.counted.tolist() == [0]


@pytest.mark.parametrize("unit", [1e-30, 1e-7, 1e12, 1e30])
def test_soft_clusters_do_not_depend_on_the_unit(unit):
    torch.manual_seed(0)
    rows = torch.randn(30, 3)
    expected = soft_assignments(rows, cluster_centers(rows, 4))
    rows = (rows * unit).requires_grad_()
    found = soft_assignments(rows, cluster_centers(rows, 4))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    found[:, 0].sum().backward()
    assert rows.grad.isfinite().all()


def test_a_large_table_has_the_atoms_of_a_small_one():
    table = torch.rand(3, 3, 2, dtype=torch.float64)
    small, large = differentiable_pid(table)._asdict(), differentiable_pid(table * 1e307)._asdict()
    torch.testing.assert_close(
        *({name: value for name, value in values.items() if value is not None} for values in (small, large))
    )


def test_a_class_number_that_is_none_does_not_fill_the_memory():
    embeddings = [torch.randn(9, 2), torch.randn(9, 2)]
    with pytest.raises(ValueError, match=r"labels with num_classes=.* make a table of"):
        fast_pid(embeddings, torch.arange(9) + 10**12)
    with pytest.raises(ValueError, match=r"labels with num_classes=.* make a table of"):
        fast_pid(embeddings, torch.arange(9), num_classes=10**12)
    with pytest.raises(ValueError, match=r"labels with num_classes=.* make a table of"):
        fast_pid(embeddings, torch.arange(9), num_classes=10**12, method="clusters", num_clusters="auto")
