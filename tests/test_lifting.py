"""An invertible map of an embedding changes nothing that it knows, however unlike the variances of its directions."""

import pytest
import torch
from known_answers import intervals, values

from ecsfusion import fast_pid
from ecsfusion.pid.lifting import LEAST_VARIANCE, lifted
from ecsfusion.pid.linear import standardize


def mixed(columns: int, condition: float, generator: torch.Generator) -> torch.Tensor:
    """A matrix with this ratio of its largest to its smallest singular value, (columns, columns) float64."""
    shape = (columns, columns)
    turns = [
        torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q for _ in range(2)
    ]
    sizes = torch.logspace(0, torch.tensor(condition).log10().item(), columns, dtype=torch.float64)
    return turns[0] * sizes @ turns[1]


def problem(kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two modalities (1500, 12) float64 and a label that they tell by class means, alone by a parity, or together."""
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(1500, 12, generator=generator, dtype=torch.float64) for _ in range(2)]
    bits = torch.randint(2, (1500, 2), generator=generator)
    if kind == "means":
        labels = torch.randint(4, (1500,), generator=generator)
        means = torch.randn(2, 4, 12, generator=generator, dtype=torch.float64) / 2
        return noise[0] + means[0, labels], noise[1] + means[1, labels], labels
    labels = bits[:, 0] ^ bits[:, 1]
    first, second = noise
    signs = 4.0 * bits - 2.0
    first[:, 0] += signs[:, 0]
    (first if kind == "parity" else second)[:, 1] += signs[:, 1]
    return first, second, labels


@pytest.mark.filterwarnings("ignore::ecsfusion.FewSamplesWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["means", "parity", "together"])
def test_a_map_of_any_condition_moves_no_atom_out_of_its_interval(kind: str, dtype: torch.dtype) -> None:
    first, second, labels = problem(kind)
    found = fast_pid([first, second], labels)
    generator = torch.Generator().manual_seed(2)
    matrix = mixed(12, 1e4, generator)
    shift = 1e3 * torch.randn(12, generator=generator, dtype=torch.float64)
    again = fast_pid([(first @ matrix + shift).to(dtype), second.to(dtype)], labels)
    low, high = intervals(found).T
    assert (low - 0.005 <= values(again)[3:]).all()
    assert (values(again)[3:] <= high + 0.005).all()
    assert (values(again) - values(found)).abs().amax() < 0.1


def test_rows_whose_directions_are_alike_and_copies_of_columns_stay_as_they_are() -> None:
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    rows = standardize(torch.cat([rows, rows[:, :2], rows.sum(1, keepdim=True), torch.ones(400, 1)], 1))
    assert lifted(rows) is rows
    few = rows[:30]
    assert lifted(few) is few


def test_a_small_direction_is_lifted_and_the_others_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, generator=generator)
    rows[:, 1] = rows[:, 0] + 1e-3 * rows[:, 1]
    found = lifted(rows)
    torch.testing.assert_close(found[:, 2], rows[:, 2], rtol=0, atol=1e-2)
    variance = torch.linalg.eigvalsh((found.T @ found / len(found)).double())
    assert float(variance[0]) == pytest.approx(LEAST_VARIANCE, rel=0.01)
    assert float(variance[2]) == pytest.approx(2.0, rel=0.1)
