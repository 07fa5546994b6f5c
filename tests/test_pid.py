"""Decomposition of joint tables: known answers, identities, invariances, and what a user may hand in."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ecsfusion.pid.decomposition import PID, decompose

ROUNDING = 1e-9


def gate(outcomes: list[tuple[int, int, int]]) -> np.ndarray:
    """The table of equally likely outcomes (x1, x2, y)."""
    table = np.zeros(np.array(outcomes).max(0) + 1)
    for outcome in outcomes:
        table[outcome] += 1
    return table


BITS = list(product([0, 1], repeat=2))
# name: outcomes, (R, U1, U2, S); Griffith and Koch 2014, Bertschinger et al. 2014, table 1
AND = 0.75 * np.log2(4 / 3)
GATES = {
    "RDN": ([(a, a, a) for a in (0, 1)], (1, 0, 0, 0)),
    "UNQ": ([(a, b, a) for a, b in BITS], (0, 1, 0, 0)),
    "XOR": ([(a, b, a ^ b) for a, b in BITS], (0, 0, 0, 1)),
    "AND": ([(a, b, a & b) for a, b in BITS], (AND, 0, 0, 0.5)),
    "OR": ([(a, b, a | b) for a, b in BITS], (AND, 0, 0, 0.5)),
    "COPY": ([(a, b, 2 * a + b) for a, b in BITS], (0, 1, 1, 0)),
    "SUM": ([(a, b, a + b) for a, b in BITS], (0.5, 0, 0, 1)),
    "RDNXOR": ([(2 * r + a, 2 * r + b, 2 * r + (a ^ b)) for r in (0, 1) for a, b in BITS], (1, 0, 0, 1)),
    "RDNUNQXOR": (
        [
            (4 * r + 2 * u + a, 4 * r + 2 * v + b, 8 * r + 4 * u + 2 * v + (a ^ b))
            for r, u, v, a, b in product([0, 1], repeat=5)
        ],
        (1, 1, 1, 1),
    ),
}


def atoms(pid: PID) -> list[float]:
    return [float(pid.redundancy), *pid.unique.tolist(), float(pid.synergy)]


def tables() -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
    counts = npst.arrays(np.int64, shapes, elements=st.one_of(st.just(0), st.integers(0, 9)))
    return counts.filter(lambda table: table.sum() > 0)


def random_table(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(int(np.prod(shape)), 0.3)).reshape(shape)


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str) -> None:
    outcomes, known = GATES[name]
    pid = decompose(gate(outcomes), tolerance=1e-6)
    assert atoms(pid) == pytest.approx(known, abs=1e-6)
    assert float(pid.joint_mutual_information) == pytest.approx(sum(known), abs=1e-12)


def test_conditional_mutual_information() -> None:
    """Given the label of XOR, one bit determines the other; given that of UNQ, it says nothing."""
    assert float(decompose(gate(GATES["XOR"][0])).conditional_mutual_information) == pytest.approx(1)
    assert float(decompose(gate(GATES["UNQ"][0])).conditional_mutual_information) == pytest.approx(0)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(tables())
def test_atoms_are_nonnegative_and_add_up(table: np.ndarray) -> None:
    pid = decompose(table)
    redundancy, unique1, unique2, synergy = atoms(pid)
    assert min(atoms(pid)) >= -ROUNDING
    assert redundancy + unique1 == pytest.approx(float(pid.mutual_information[0]), abs=ROUNDING)
    assert redundancy + unique2 == pytest.approx(float(pid.mutual_information[1]), abs=ROUNDING)
    assert redundancy + unique1 + unique2 + synergy == pytest.approx(
        float(pid.joint_mutual_information), abs=ROUNDING
    )
    assert 0 <= float(pid.gap) <= 1e-4
    assert float(pid.conditional_mutual_information) >= 0


@settings(deadline=None, max_examples=40, derandomize=True)
@given(tables(), st.randoms(use_true_random=False))
def test_invariances(table: np.ndarray, random: Random) -> None:
    """Names of clusters and classes, the order of the modalities, empty cells and the scale do not matter."""
    pid = decompose(table)
    orders = [random.sample(range(size), size) for size in table.shape]
    padded = np.zeros(np.add(table.shape, 1))
    padded[:-1, 1:, :-1] = table
    for variant in (table[np.ix_(*orders)], 1e6 * table, padded):
        other = decompose(variant)
        slack = float(pid.gap + other.gap) + ROUNDING
        assert atoms(other) == pytest.approx(atoms(pid), abs=slack)
    swapped = decompose(table.swapaxes(0, 1))
    redundancy, unique1, unique2, synergy = atoms(swapped)
    assert [redundancy, unique2, unique1, synergy] == pytest.approx(
        atoms(pid), abs=float(pid.gap + swapped.gap) + ROUNDING
    )


@settings(deadline=None, max_examples=40, derandomize=True)
@given(tables(), st.floats(0.05, 0.95))
def test_splitting_a_cluster_at_random_changes_nothing(table: np.ndarray, share: float) -> None:
    """Two clusters whose rows are proportional say what their union says."""
    split = np.concatenate([share * table[:1], (1 - share) * table[:1], table[1:]])
    pid, other = decompose(table), decompose(split)
    assert atoms(other) == pytest.approx(atoms(pid), abs=float(pid.gap + other.gap) + ROUNDING)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(tables())
def test_coarser_clusters_never_know_more(table: np.ndarray) -> None:
    """Data processing: merging clusters of x1 lowers I(x1; y), I(x1, x2; y) and the uniqueness of x1."""
    coarse = np.concatenate([table[:2].sum(0, keepdims=True), table[2:]])
    fine, merged = decompose(table), decompose(coarse)
    assert merged.mutual_information[0] <= fine.mutual_information[0] + ROUNDING
    assert merged.joint_mutual_information <= fine.joint_mutual_information + ROUNDING
    assert merged.unique[0] - merged.gap <= fine.unique[0] + ROUNDING


@pytest.mark.parametrize(
    "convert",
    [
        lambda table: table.astype(np.uint8),
        lambda table: table.astype(np.uint16),
        lambda table: table.astype(np.float16),
        lambda table: np.asfortranarray(table)[::-1][::-1],
        lambda table: torch.tensor(table, dtype=torch.int32),
        lambda table: torch.tensor(table, dtype=torch.float16),
        lambda table: torch.tensor(table, dtype=torch.bfloat16),
        lambda table: torch.tensor(table.transpose(2, 0, 1).copy()).permute(1, 2, 0),
        lambda table: torch.tensor(table, requires_grad=True),
        lambda table: torch.tensor(table * 1e300),
        lambda table: torch.tensor(table * 1e-300),
        lambda table: torch.tensor(table.astype(np.int64)) * 2**50,
    ],
)
def test_any_real_table_is_read(convert: Callable) -> None:
    table = np.random.default_rng(3).integers(0, 60, (4, 5, 3)).astype(float)
    pid = decompose(convert(table))
    assert atoms(pid) == pytest.approx(atoms(decompose(table)), abs=1e-12)
    assert pid.redundancy.dtype == torch.float64
    assert not pid.redundancy.requires_grad


def test_leading_dimensions() -> None:
    batch = np.stack([[random_table(4, 5, 3, seed=3 * i + j) for j in range(3)] for i in range(2)])
    pid = decompose(batch)
    assert (
        pid.redundancy.shape
        == pid.synergy.shape
        == pid.gap.shape
        == pid.joint_mutual_information.shape
        == (2, 3)
    )
    assert pid.unique.shape == pid.mutual_information.shape == (2, 3, 2)
    alone = decompose(batch[1, 2])
    together = [float(pid.redundancy[1, 2]), *pid.unique[1, 2].tolist(), float(pid.synergy[1, 2])]
    assert together == pytest.approx(atoms(alone), abs=1e-4)
    assert decompose(np.ones((0, 2, 2, 2))).gap.shape == (0,)
    assert "6 tables (2, 3)" in str(pid)


def test_more_iterations_needed_is_a_warning_and_the_interval_holds() -> None:
    table = random_table(8, 8, 3, seed=1)
    with pytest.warns(
        UserWarning, match=r"1 of 1 tables did not reach the tolerance of 1e-06 bits in 5 iterations"
    ):
        early = decompose(table, tolerance=1e-6, max_iterations=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late = decompose(table, tolerance=1e-6)
    assert early.gap > 1e-6
    assert early.redundancy <= late.redundancy + late.gap <= early.redundancy + early.gap + 1e-6


@pytest.mark.parametrize(
    ("joint", "options", "error", "sentence"),
    [
        ([[[1]]], {}, TypeError, "joint must be a torch.Tensor or numpy array, got list"),
        (np.ones((2, 2, 2), dtype=complex), {}, TypeError, "joint must be real numbers"),
        (torch.ones(2, 2, 2, dtype=torch.complex64), {}, TypeError, "joint must be real numbers"),
        (np.array([[["a"]]]), {}, TypeError, "joint must be real numbers"),
        (
            np.ma.masked_equal(np.eye(8).reshape(4, 8, 2), 1),
            {},
            ValueError,
            "joint has masked values, first in row 0",
        ),
        (torch.ones(2, 2), {}, ValueError, r"joint must have the shape \(..., K1, K2, C\), got \(2, 2\)"),
        (torch.ones(2, 0, 2), {}, ValueError, r"joint must have the shape"),
        (torch.full((2, 2, 2), torch.nan), {}, ValueError, "joint must be finite"),
        (-torch.ones(2, 2, 2), {}, ValueError, "joint must not be negative, found -1"),
        (torch.zeros(3, 2, 2, 2), {}, ValueError, "joint has a table whose cells are all zero"),
        (torch.ones(2, 2, 2), {"tolerance": 0.0}, ValueError, "tolerance must be a positive"),
        (torch.ones(2, 2, 2), {"tolerance": float("nan")}, ValueError, "tolerance must be a positive"),
        (torch.ones(2, 2, 2), {"max_iterations": 0}, ValueError, "max_iterations must be at least 1"),
        (torch.ones(2, 2, 2), {"names": ("image",)}, ValueError, "names must be two different"),
        (torch.ones(2, 2, 2), {"names": ("image", "image")}, ValueError, "names must be two different"),
    ],
)
def test_bad_input_is_named(joint: object, options: dict, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        decompose(joint, **options)


def with_uncertainty(pid: PID) -> PID:
    half = torch.tensor([-0.05, 0.05], dtype=torch.float64)
    return replace(
        pid,
        redundancy_floor=pid.redundancy * 0 + 0.02,
        unique_floor=pid.unique * 0 + 0.03,
        synergy_floor=pid.synergy * 0 + 0.04,
        redundancy_interval=pid.redundancy + half,
        unique_interval=pid.unique.unsqueeze(-1) + half,
        synergy_interval=pid.synergy + half,
        plugin=pid,
        num_samples=1280,
    )


def test_prints_as_a_table_by_modality() -> None:
    pid = decompose(gate(GATES["UNQ"][0]), names=("image", "audio"))
    lines = str(pid).splitlines()
    assert lines[0] == "PID in bits, 2 x 2 clusters, 2 classes"
    values = {line[:18].strip(): line[18:].split() for line in lines[1:-1]}
    assert values["unique image"] == ["1.0000"]
    assert values["unique audio"] == values["redundancy"] == values["synergy"] == ["0.0000"]
    assert values["I(image; label)"] == values["I(all; label)"] == ["1.0000"]
    assert len({line.index(".") for line in lines[1:-1]}) == 1
    full = str(with_uncertainty(pid))
    assert "1280 samples" in full
    assert "[ 0.9500,  1.0500]  noise  0.0300" in full


def test_to_dict_is_plain_json() -> None:
    pid = with_uncertainty(decompose(gate(GATES["AND"][0]), names=("image", "audio")))
    read = json.loads(json.dumps(pid.to_dict()))
    assert read["unique"].keys() == {"image", "audio"}
    assert read["synergy"] == pytest.approx(0.5, abs=1e-4)
    assert read["interval"]["unique"]["audio"] == pytest.approx([-0.05, 0.05], abs=1e-4)
    assert read["floor"]["unique"] == {"image": 0.03, "audio": 0.03}
    assert read["plugin"]["synergy"] == read["synergy"]
    assert read["num_samples"] == 1280


def test_plot_shows_every_atom(tmp_path: Path) -> None:
    pid = decompose(gate(GATES["RDNXOR"][0]), names=("image", "audio"))
    axes = pid.plot().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "redundancy",
        "unique\nimage",
        "unique\naudio",
        "synergy",
    ]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(atoms(pid))
    assert len(axes.lines) == 0
    path = tmp_path / "atoms.png"
    drawn = with_uncertainty(pid).plot(str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    # An interval and a floor for each of four atoms.
    assert len(drawn.axes[0].lines) >= 8
    with pytest.raises(ValueError, match="2 tables; plot one at a time"):
        decompose(np.ones((2, 2, 2, 2))).plot()
