"""Fewer rows than columns: coordinates in the space of the rows lose nothing."""

import pytest
import torch
from known_answers import intervals, values, widths

from ecsfusion import fast_pid
from ecsfusion.pid import posteriors
from ecsfusion.pid.span import in_their_span

pytestmark = pytest.mark.filterwarnings("ignore:.*are few for these embeddings")


@pytest.mark.parametrize(("number", "columns"), [(1, 2), (2, 3), (31, 500), (64, 65)])
def test_inner_products_stay(number: int, columns: int) -> None:
    rows = torch.randn(number, columns, generator=torch.Generator().manual_seed(number))
    found = in_their_span(rows)
    assert found.shape == (number, number)
    exact = rows.double() @ rows.double().T
    assert (found.double() @ found.double().T - exact).abs().max() < 1e-5 * columns


def test_rows_of_no_more_columns_than_rows_stay() -> None:
    rows = torch.randn(8, 8)
    assert in_their_span(rows) is rows


def test_rows_that_repeat_or_are_zero_stay_so() -> None:
    rows = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    found = in_their_span(rows)
    assert (torch.cdist(found, found)[:20, 20:].diagonal() < 1e-2).all()
    assert not in_their_span(torch.zeros(5, 9)).any()


@pytest.mark.parametrize("seed", [3, 4])
def test_the_estimate_is_that_of_all_columns(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (240,), generator=generator)
    first, second = (
        (0.15 * torch.randn(4, 700, generator=generator))[labels]
        + torch.randn(240, 700, generator=generator)
        + 3 * torch.randn(240, 2, generator=generator) @ torch.randn(2, 700, generator=generator)
        for _ in range(2)
    )
    found = fast_pid([first, second], labels)
    monkeypatch.setattr(posteriors, "in_their_span", lambda rows: rows)
    whole = fast_pid([first, second], labels)
    assert float(whole.held_out.mutual_information.min()) > 0.3
    # Shrinkage is a share of the mean variance of N columns in place of D, so the values are not the same.
    assert (values(found.held_out) - values(whole.held_out)).abs().max() < 0.06
    assert (values(found) - values(whole)).abs()[3:].le(0.5 * widths(whole)).all(), (
        intervals(found),
        intervals(whole),
    )
