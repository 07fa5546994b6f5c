"""Bad and odd input for every public function, and what must come of it: a right result or an error of ours.

`CASES` maps the name of a function to a test of one drawn input; it returns "result" or "error". `test_fuzz.py` runs a
fixed sample, `fuzz_campaign.py` as many as one likes.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fusion_fixtures
import numpy as np
import soundfile
import torch
from hypothesis import strategies as st
from PIL import Image
from readings import make_reading
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoImageProcessor, PreTrainedTokenizerFast, Wav2Vec2FeatureExtractor

import ecsfusion
from ecsfusion import (
    ArrayProcessor,
    FusionCollator,
    FusionForClassification,
    FusionProcessor,
    Readout,
    cluster_centers,
    decompose,
    differentiable_pid,
    fast_pid,
    fast_pids,
    make_rule,
    pid_tensors,
    soft_assignments,
    soft_joint,
)
from ecsfusion.controller import RULES
from ecsfusion.metrics import ModalityAccuracy, PIDMetric
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ecsfusion.pid.inputs import as_tensor
from ecsfusion.processing import TensorCollator

SECONDS = 30
"""A case that takes longer hangs."""

OURS = str(Path(ecsfusion.__file__).parent)
Draw = Callable[[Any], Any]


# ---- what must come of a call ----


def attempt(call: Callable[[], Any], *arguments: str) -> Any:
    """The result of a call, or None where it is refused: by a sentence of ours with one of these words in it.

    Every other exception goes through: it is a crash. So do NumPy's warnings of an overflow or a division by zero.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return call()
        except (ValueError, TypeError) as error:
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            if not raised_in.startswith(OURS):
                raise
            text = str(error)
            assert any(word in text for word in arguments), f"{text!r} names none of {arguments}"
            return None


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise AssertionError(f"the case takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- odd tensors ----

KINDS = ("plain", "constant", "duplicates", "zeros", "huge", "tiny", "nan", "infinite", "one-hot", "offset")
BAD_KINDS = ("nan", "infinite")
GOOD_KINDS = tuple(kind for kind in KINDS if kind not in BAD_KINDS)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ODD_TYPES = (torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64)
LAYOUTS = ("plain", "transposed", "strided", "zero-stride", "grad", "numpy", "numpy-reversed")
BAD_LAYOUTS = ("meta", "sparse", "list", "text", "nothing", "numpy-object", "numpy-long", "numpy-swapped")
NUMPY_TYPES = {"numpy-object": object, "numpy-long": np.longdouble, "numpy-swapped": ">f4"}


def mostly(common: Any, rare: Any) -> st.SearchStrategy:
    """`common` in nine of ten draws."""
    return st.integers(0, 9).flatmap(lambda n: rare if n == 5 else common)


def seldom(draw: Draw, most: int) -> bool:
    """True in one of `most` + 1 draws; not at an end of the range, which is tried more often."""
    return draw(st.integers(0, most)) == most // 2 + 1


def numbers(draw: Draw, *shape: int, dtype: torch.dtype = torch.float32, kind: str = "plain") -> torch.Tensor:
    """A tensor of one of `KINDS`; the elements come from a seed, which is what is drawn."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    limits = torch.finfo(dtype if dtype.is_floating_point else torch.float32)
    if kind == "constant":
        values = torch.full(shape, 0.37, dtype=torch.float64)
    elif kind == "duplicates" and shape and shape[0]:
        values = values[torch.randint(min(3, shape[0]), shape[:1], generator=generator)]
    elif kind == "zeros":
        values = torch.zeros(shape, dtype=torch.float64)
    elif kind == "huge":
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * limits.max * (1 - limits.eps)
    elif kind == "tiny":
        values = values * limits.smallest_normal
    elif kind == "one-hot":
        values = (values > 1).double()
    elif kind == "offset":
        values = values * 1e-3 + 1000.0
    values = values.abs() * 100 if dtype in (torch.uint8, torch.bool) else values
    made = values.to(dtype)
    if kind in BAD_KINDS and made.numel() and dtype.is_floating_point:
        bad = math.nan if kind == "nan" or dtype == torch.float8_e4m3fn else math.inf
        made.view(-1)[draw(st.integers(0, made.numel() - 1))] = bad
    return made


def laid_out(value: torch.Tensor, layout: str) -> Any:
    """The same values in another layout or kind of array; of "zero-stride" the first row repeated."""
    if layout in ("transposed", "zero-stride", "strided") and value.ndim:
        if layout == "strided":
            return torch.stack([value, value], -1)[..., 0]
        if layout == "transposed" or not len(value):
            return value.mT.contiguous().mT if value.ndim > 1 else value
        return value[:1].expand_as(value)
    if layout == "grad" and value.is_floating_point() and value.itemsize > 1:
        return value.clone().requires_grad_()
    if layout == "meta":
        return value.to("meta")
    if layout == "sparse":
        return value.to_sparse() if value.itemsize > 1 and not value.is_complex() else value.to("meta")
    if layout in ("list", "text", "nothing"):
        return {
            "list": value.float().tolist() if not value.is_complex() else [1j],
            "text": "abc",
            "nothing": None,
        }[layout]
    if layout.startswith("numpy") and value.dtype not in (torch.bfloat16, torch.float8_e4m3fn):
        array = value.numpy().copy()
        if layout in NUMPY_TYPES and array.dtype.kind != "c":
            array = array.astype(NUMPY_TYPES[layout])
        return array[::-1] if layout == "numpy-reversed" and array.ndim else array
    return value


def is_finite(value: Any) -> bool:
    return bool(
        np.isfinite(value.detach().double().numpy() if isinstance(value, torch.Tensor) else value).all()
    )


def odd_matrix(draw: Draw, rows: int, columns: int | None = None) -> tuple[Any, bool]:
    """An odd array (rows, D), and whether it may give a result: finite numbers in two dimensions."""
    if seldom(draw, 29):
        return draw(
            st.sampled_from([torch.zeros(rows), torch.zeros(rows, 0), torch.zeros(()), 3, [], {}])
        ), False
    columns = draw(st.integers(1, 6)) if columns is None else columns
    dtype = draw(mostly(st.sampled_from(FLOATS), st.sampled_from(ODD_TYPES)))
    kind = draw(mostly(st.sampled_from(GOOD_KINDS), st.sampled_from(KINDS)))
    layout = draw(mostly(st.sampled_from(LAYOUTS), st.sampled_from(BAD_LAYOUTS)))
    made = numbers(draw, rows, columns, dtype=dtype, kind=kind)
    value = laid_out(made, layout)
    if made.is_complex():
        return value, False
    seen = value.double() if isinstance(value, torch.Tensor) and layout not in ("meta", "sparse") else made
    refused = layout in ("meta", "sparse", "list", "text", "nothing") or (
        isinstance(value, np.ndarray) and value.dtype.kind == "O"
    )
    return value, not refused and bool(seen.double().isfinite().all())


def odd_labels(draw: Draw, rows: int) -> Any:
    """Labels that are mostly class indices."""
    classes = draw(st.sampled_from([1, 2, 2, 3, 3, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    labels = torch.randint(classes, (rows,), generator=generator)
    kind = draw(
        mostly(
            st.sampled_from(
                ["plain", "list", "numpy", "int32", "uint8", "bool", "zero-stride", "strided", "two"]
            ),
            st.sampled_from(
                [
                    "text",
                    "texts",
                    "none",
                    "nones",
                    "float",
                    "nan",
                    "negative",
                    "short",
                    "long",
                    "vast",
                    "beyond",
                    "ragged",
                    "empty",
                    "scalar",
                    "meta",
                    "complex",
                    "three",
                    "set",
                    "no columns",
                    "int16",
                    "uint16",
                ]
            ),
        )
    )
    long = torch.cat([labels, labels.new_zeros(3)])
    odd: dict[str, Callable[[], Any]] = {
        "plain": lambda: labels,
        "list": labels.tolist,
        "numpy": labels.numpy,
        "int32": labels.int,
        "int16": labels.short,
        "uint16": lambda: labels.to(torch.uint16),
        "uint8": labels.byte,
        "bool": labels.bool,
        "zero-stride": lambda: labels[:1].expand(rows) if rows else labels,
        "strided": lambda: torch.stack([labels, labels], 1)[:, 0],
        "two": lambda: torch.stack([labels, labels.flip(0)], 1),
        "text": lambda: "abc",
        "texts": lambda: [str(label) for label in labels.tolist()],
        "none": lambda: None,
        "nones": lambda: [None] * rows,
        "float": labels.float,
        "nan": lambda: labels.float() * math.nan,
        "negative": lambda: labels - 1,
        "short": lambda: labels[1:],
        "long": lambda: long,
        "vast": lambda: labels + 10**12,
        "beyond": lambda: [2**70] * rows,
        "ragged": lambda: [[0]] * (rows // 2) + [[0, 1]] * (rows - rows // 2),
        "empty": list,
        "scalar": lambda: torch.tensor(1),
        "meta": lambda: labels.to("meta"),
        "complex": lambda: labels * 1j,
        "three": lambda: labels[:, None, None],
        "set": lambda: set(labels.tolist()),
        "no columns": lambda: labels.new_zeros(rows, 0),
    }
    return odd[kind]()


def some_rows(draw: Draw) -> int:
    return draw(st.sampled_from([1, 1, 2, 3, 5, 5, 20, 20, 60, 60, 60, 0]))


# ---- information ----

PID_WORDS = (
    "embeddings",
    "labels",
    "num_clusters",
    "num_components",
    "num_classes",
    "bins",
    "seed",
    "tolerance",
    "method",
    "groups",
)
REPLICATES = ("permutations", "bootstrap", "correction")


def check_pid(pid: Any, classes: int | None = None) -> None:
    """Atoms that are finite, not negative, and add up."""
    for part in (pid, pid.plugin, pid.held_out):
        if part is None:
            continue
        unique, single = part.unique, part.mutual_information
        values = [part.redundancy, unique, part.synergy, single, part.joint_mutual_information, part.gap]
        coupling = (part.conditional_mutual_information, part.dependence)
        values += [value for value in coupling if value is not None]
        floors = [part.redundancy_floor, part.unique_floor, part.synergy_floor]
        for value in [*values, *(floor for floor in floors if floor is not None)]:
            assert value.isfinite().all(), part
            assert (value >= -1e-9).all(), part
        torch.testing.assert_close(part.redundancy.unsqueeze(-1) + unique, single, atol=1e-9, rtol=0)
        union = part.redundancy + unique.sum(-1) + part.synergy
        torch.testing.assert_close(union, part.joint_mutual_information, atol=1e-9, rtol=0)
        assert (single <= math.log2(part.num_classes) + 1e-9).all(), part
        for interval in (part.redundancy_interval, part.unique_interval, part.synergy_interval):
            if interval is not None:
                assert interval.isfinite().all()
                assert (interval[..., 0] <= interval[..., 1]).all(), part.to_dict()
                assert (interval >= 0).all()
    json.dumps(pid.to_dict(), allow_nan=False)
    assert "PID" in str(pid)
    assert classes is None or pid.num_classes >= classes


def pid_options(draw: Draw, method: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_clusters": draw(
            mostly(st.integers(1, 6), st.sampled_from([None, "auto", 40, 0, -1, 2.5, "3", True, 10**9]))
        ),
    }
    of_clusters = {
        "permutations": draw(mostly(st.just(2), st.sampled_from([0, 1, -5, 2.5, "4", None, 3]))),
        "bootstrap": draw(mostly(st.sampled_from([0, 2]), st.sampled_from([1, -1, 1.5, "2", None]))),
        "correction": draw(st.sampled_from([True, True, False])),
    }
    if method == "clusters" or seldom(draw, 14):
        options |= of_clusters
    rare = {
        "num_components": st.sampled_from([None, 1, 3, 30, 0, -2, 1.5, "2", 10**9]),
        "num_classes": st.sampled_from([None, 1, 2, 5, 0, -1, "2", 3.0, 10**12]),
        "bins": st.sampled_from([None, 1, 2, 3, 0, -4, "2", 2.0, 10**12]),
        "tolerance": st.sampled_from([1e-3, 1.0, 0.0, -1.0, math.nan, math.inf, "1", None]),
        "seed": st.sampled_from([0, -1, 2**40, 2**80, 1.5, "x", None]),
    }
    for name, values in rare.items():
        if seldom(draw, 14):
            options[name] = draw(values)
    return options


def method_options(draw: Draw, rows: int) -> dict[str, Any]:
    """Options of `fast_pid`, of either method."""
    method = draw(mostly(st.sampled_from(["posteriors", "clusters"]), st.sampled_from(["x", None, 1])))
    options = {"method": method, **pid_options(draw, method)}
    if seldom(draw, 4 if method == "posteriors" else 14):
        options["groups"] = draw(
            mostly(
                st.sampled_from([[i // 2 for i in range(rows)], [f"s{i % 3}" for i in range(rows)]]),
                st.sampled_from([None, [0] * rows, [0.5] * rows, [1], "abc", np.zeros((rows, 2), int)]),
            )
        )
    return options


def odd_embeddings(draw: Draw, rows: int, modalities: int) -> tuple[Any, bool]:
    made = [odd_matrix(draw, rows) for _ in range(modalities)]
    if seldom(draw, 19):
        made[-1] = odd_matrix(draw, rows + 1)
        return [value for value, _ in made], False
    names = ["image", "audio", "text", "video"][:modalities]
    embeddings: Any = dict(zip(names, (value for value, _ in made), strict=True))
    if draw(st.booleans()):
        embeddings = list(embeddings.values())
    if seldom(draw, 29):
        return draw(st.sampled_from([None, [], {}, "ab", torch.zeros(2, rows, 3), 7])), False
    return embeddings, all(usable for _, usable in made)


def case_fast_pid(draw: Draw) -> str:
    rows = some_rows(draw)
    embeddings, usable = odd_embeddings(draw, rows, 2)
    labels, options = odd_labels(draw, rows), method_options(draw, rows)
    pid = attempt(lambda: fast_pid(embeddings, labels, **options), *PID_WORDS, *REPLICATES)
    if pid is None:
        return "error"
    assert usable, "not finite, and yet a result"
    check_pid(pid)
    assert pid.num_samples == rows > 0
    return "result"


def case_fast_pids(draw: Draw) -> str:
    rows = some_rows(draw)
    embeddings, usable = odd_embeddings(draw, rows, draw(st.sampled_from([1, 2, 3, 3, 4])))
    labels, options = odd_labels(draw, rows), method_options(draw, rows)
    pids = attempt(lambda: fast_pids(embeddings, labels, **options), *PID_WORDS, *REPLICATES)
    if pids is None:
        return "error"
    assert usable, "not finite, and yet a result"
    for pid in pids.values():
        check_pid(pid)
    return "result"


def case_probe_tensors(draw: Draw) -> str:
    """Without a look at the values: rows that cannot be counted are not, and `counted` says so."""
    rows = some_rows(draw)
    embeddings, usable = odd_embeddings(draw, rows, 2)
    labels = odd_labels(draw, rows)
    options = {key: value for key, value in pid_options(draw, "clusters").items() if key != "bins"}
    options["num_classes"] = draw(mostly(st.integers(1, 6), st.sampled_from([0, -1, None, "2", 10**12])))
    found = attempt(lambda: pid_tensors(embeddings, labels, **options), *PID_WORDS, *REPLICATES)
    if found is None:
        return "error"
    whole = found.counted == rows
    if not whole.all():
        # The caller is told.
        return "result"
    assert usable
    for part in (found.corrected, found.plugin):
        for value in part:
            assert value is None or (value.isfinite().all() and (value >= -1e-9).all())
        single = part.redundancy.unsqueeze(-1) + part.unique
        torch.testing.assert_close(single, part.mutual_information, atol=1e-9, rtol=0)
    return "result"


def odd_table(draw: Draw) -> torch.Tensor:
    """A joint table (..., K1, K2, C) of probabilities or counts, or what is none."""
    shape = [draw(st.integers(1, 4)) for _ in range(3)]
    batch = draw(mostly(st.just([]), st.sampled_from([[2], [2, 1], [0]])))
    if seldom(draw, 19):
        shape = draw(st.sampled_from([[3, 3], [], [0, 2, 2], [2, 2, 0], [4]]))
    kind = draw(st.sampled_from(KINDS))
    dtype = draw(mostly(st.sampled_from(FLOATS), st.sampled_from(ODD_TYPES)))
    table = numbers(draw, *batch, *shape, dtype=dtype, kind=kind)
    negative = seldom(draw, 19)
    if not (negative or dtype in (torch.bool, torch.uint8, torch.float8_e4m3fn)) and not table.is_complex():
        table = table.abs()
    if draw(st.booleans()) and table.ndim and table.numel() and not table.is_complex():
        table = table.clone()
        # An empty row, column or class.
        table.movedim(draw(st.integers(0, table.ndim - 1)), 0)[0] = 0
    return table


def case_decompose(draw: Draw) -> str:
    table = odd_table(draw)
    joint = laid_out(table, draw(mostly(st.sampled_from(LAYOUTS), st.sampled_from(BAD_LAYOUTS))))
    options: dict[str, Any] = {}
    if seldom(draw, 3):
        options["tolerance"] = draw(st.sampled_from([1e-3, 1e-7, 0.0, -1.0, math.nan, math.inf, "x", None]))
        options["max_iterations"] = draw(st.sampled_from([1, 50, 0, -3, 1.5, "2", None]))
        options["names"] = draw(st.sampled_from([None, ("a", "b"), ("a", "a"), "ab", "a", 3, [1, 2], ["a"]]))
    pid = attempt(lambda: decompose(joint, **options), "joint", *options)
    if pid is None:
        return "error"
    assert is_finite(joint)
    check_pid(pid)
    return "result"


def case_differentiable_pid(draw: Draw) -> str:
    table = odd_table(draw)
    joint = laid_out(table, draw(mostly(st.sampled_from(LAYOUTS), st.sampled_from(BAD_LAYOUTS))))
    tolerance = draw(mostly(st.just(1e-5), st.sampled_from([0.0, -1.0, math.nan, "x", None])))
    if isinstance(joint, torch.Tensor) and joint.is_floating_point() and joint.layout == torch.strided:
        joint = joint.detach().requires_grad_()
    atoms = attempt(lambda: differentiable_pid(joint, tolerance), "joint", "tolerance")
    if atoms is None:
        return "error"
    values = (atoms.redundancy, atoms.unique, atoms.synergy)
    for value in values:
        assert value.isfinite().all()
        assert (value >= -2e-5).all()
    sum(value.sum() for value in values).backward()
    if float(table.double().abs().amax()) > 1e-30 and joint.dtype == torch.float64:
        assert joint.grad.isfinite().all()
    return "result"


def case_soft_clusters(draw: Draw) -> str:
    """`cluster_centers`, `soft_assignments`, `soft_joint` and the decomposition of their table, with its gradient."""
    rows = some_rows(draw)
    sides = [odd_matrix(draw, rows) for _ in range(2)]
    clusters = draw(mostly(st.integers(1, 6), st.sampled_from([0, -1, 30, 2.5, "3", None, True])))
    temperature = draw(
        mostly(st.sampled_from([0.1, 0.5, 2.0]), st.sampled_from([0.0, -1.0, math.nan, math.inf, "x"]))
    )
    seed = draw(mostly(st.integers(0, 9), st.sampled_from([-1, 2**80, "x", 1.5])))
    soft = []
    for value, _ in sides:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not seldom(draw, 9):
            value = as_tensor(value)
        if isinstance(value, torch.Tensor) and not value.is_floating_point() and not seldom(draw, 9):
            value = value if value.is_complex() or value.device.type == "meta" else value.to_dense().float()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.layout == torch.strided:
            value = value.detach().requires_grad_()
        centers = attempt(
            lambda value=value: cluster_centers(value, clusters, seed),
            "embeddings",
            "num_clusters",
            "random_seed",
        )
        if centers is None:
            return "error"
        assert is_finite(value)
        assert centers.isfinite().all()
        assert centers.shape == (clusters, value.shape[1])
        odd = draw(
            mostly(st.just(centers), st.sampled_from([centers[:, :0], centers * math.nan, "abc", centers[0]]))
        )
        assigned = attempt(
            lambda value=value, odd=odd: soft_assignments(value, odd, temperature),
            "embeddings",
            "centers",
            "temperature",
        )
        if assigned is None:
            return "error"
        assert isinstance(odd, torch.Tensor)
        assert odd.isfinite().all()
        assert assigned.isfinite().all()
        loose = 1e-2 if value.itemsize == 2 else 1e-5
        torch.testing.assert_close(assigned.sum(-1).double(), torch.ones(rows).double(), atol=loose, rtol=0)
        soft.append(assigned)
    labels = odd_labels(draw, rows)
    classes = draw(mostly(st.sampled_from([None, 6]), st.sampled_from([1, 0, -1, "2", 2.5, 10**12])))
    if seldom(draw, 9):
        soft[1] = draw(
            st.sampled_from(
                [soft[1][:-1], soft[1] * math.nan, soft[1] - 1, soft[1][:, 0], "abc", soft[1].long()]
            )
        )
    table = attempt(
        lambda: soft_joint(*soft, labels, classes), "assignments1", "assignments2", "labels", "num_classes"
    )
    if table is None:
        return "error"
    assert table.isfinite().all()
    assert abs(float(table.detach().double().sum()) - 1) < 0.06
    atoms = differentiable_pid(table, 1e-4)
    if table.requires_grad:
        atoms.synergy.backward()
        for value, _ in sides:
            # Arrays have none
            gradient = getattr(value, "grad", None)
            assert gradient is None or gradient.isfinite().all()
    return "result"


# ---- readout ----


def case_readout(draw: Draw) -> str:
    rows, classes = some_rows(draw), draw(st.sampled_from([1, 2, 3]))
    problem = draw(
        mostly(st.sampled_from([SINGLE_LABEL, MULTI_LABEL, REGRESSION]), st.sampled_from(["guess", None]))
    )
    names = draw(st.sampled_from([["image", "audio"], ["image", "audio", "fused"], ["fused"], ["image"], []]))
    logits: Any = {}
    for name in names:
        kind = draw(
            mostly(st.sampled_from(["plain", "constant", "duplicates", "zeros"]), st.sampled_from(KINDS))
        )
        dtype = draw(st.sampled_from([*FLOATS, torch.int64]))
        made = numbers(draw, rows, classes, dtype=dtype, kind=kind)
        logits[name] = laid_out(made, draw(mostly(st.sampled_from(LAYOUTS), st.sampled_from(BAD_LAYOUTS))))
    if names and seldom(draw, 19):
        logits[names[-1]] = torch.zeros(rows + 1, classes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    right = {
        SINGLE_LABEL: torch.randint(classes, (rows,), generator=generator),
        MULTI_LABEL: torch.randint(2, (rows, classes), generator=generator),
        REGRESSION: torch.randn(rows, classes, generator=generator),
    }.get(problem, torch.zeros(rows).long())
    labels = odd_labels(draw, rows) if seldom(draw, 3) else right
    present = None
    if names and seldom(draw, 3):
        masks = st.sampled_from(
            [
                torch.ones(rows).bool(),
                torch.arange(rows) > 0,
                torch.ones(rows),
                torch.ones(rows + 1).bool(),
                "x",
                None,
                3,
            ]
        )
        present = {draw(st.sampled_from([*names, "smell"])): draw(masks)}
    excluded_from_readout = draw(
        mostly(st.just(()), st.sampled_from([["image"], ["smell"], "image", None, 3]))
    )
    words = ("logits", "labels", "present", "problem_type", "excluded_from_readout")
    readout = attempt(
        lambda: Readout.fit(logits, labels, present, problem, excluded_from_readout=excluded_from_readout),
        *words,
    )
    if readout is None:
        return "error"
    again = Readout.from_dict(json.loads(json.dumps(readout.to_dict(), allow_nan=False)))
    assert again.fitted == readout.fitted
    for weights in readout.fitted.values():
        assert all(math.isfinite(weight) and weight >= 0 for weight in weights.values())
    given: Any = {
        name: as_tensor(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
        for name, value in logits.items()
    }
    here: Any = draw(
        mostly(
            st.just(None),
            st.sampled_from(
                [["image"], ["smell"], [], {"image": torch.arange(rows) > 0}, {}, {"image": "x"}, 3, "image"]
            ),
        )
    )
    if seldom(draw, 9):
        given = draw(
            st.sampled_from(
                [{}, {"smell": torch.zeros(2, classes)}, None, {**given, names[0]: torch.zeros(2)}]
            )
        )
    answer = attempt(lambda: readout(given, here), "logits", "present")
    if answer is None:
        return "error"
    assert not answer.isnan().any()
    if problem == SINGLE_LABEL:
        torch.testing.assert_close(answer.exp().sum(-1), torch.ones_like(answer[:, 0]), atol=1e-4, rtol=0)
    elif problem == MULTI_LABEL:
        assert (answer <= 0).all()
    return "result"


# ---- rules ----


def odd_number(draw: Draw) -> Any:
    return draw(
        mostly(
            st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0, 3]),
            st.sampled_from(
                [
                    math.nan,
                    math.inf,
                    -math.inf,
                    -1.0,
                    1e308,
                    5e-324,
                    None,
                    "x",
                    [1],
                    True,
                    np.float32(0.5),
                    1j,
                ]
            ),
        )
    )


def odd_values(draw: Draw, names: list[str]) -> Any:
    if seldom(draw, 39):
        return draw(st.sampled_from([None, {}, [], "x", 1.0]))
    return {
        name: odd_number(draw) if seldom(draw, 9) else draw(st.sampled_from([0.0, 0.1, 1.0]))
        for name in names
    }


def case_rule(draw: Draw) -> str:
    modalities = draw(
        mostly(
            st.just(["image", "audio"]),
            st.sampled_from([["a", "b", "c"], ["a"], ["a", "a"], [], "ab", ["fused", "a"], None, 3, [1, 2]]),
        )
    )
    kind = draw(mostly(st.sampled_from(sorted(RULES)), st.sampled_from(["guess", None, 3, int])))
    options: dict[str, Any] = {}
    if kind == "fixed":
        pairs = [[(0.2, ["image"]), (0.2, ["audio"])], [(0.1, "image")]]
        options["schedule"] = draw(
            mostly(
                st.sampled_from(pairs),
                st.sampled_from(
                    [
                        [],
                        None,
                        [1],
                        [(0, ["image"])],
                        [(9.0, ["image"])],
                        [(0.1, ["smell"])],
                        [(math.nan, ["image"])],
                        "x",
                        [(0.1, 3)],
                    ]
                ),
            )
        )
    for name in (
        "ratio",
        "margin",
        "patience",
        "max_unimodal_share",
        "accuracy_tolerance",
        "tau",
        "unit",
        "nonsense",
        "stop_patience",
        "hysteresis",
        "min_epochs",
        "max_epochs",
        "plateau_patience",
        "wait",
        "synergy_margin",
        "saturation",
        "scouting_readings",
        "dependence",
    ):
        if seldom(draw, 19):
            options[name] = odd_number(draw)
    words = ("modalities", "rule", *options)
    rule = attempt(lambda: make_rule(kind, modalities, **options), *words)
    if rule is None:
        return "error"
    names = list(rule.modalities)
    for step in range(draw(st.integers(1, 6))):
        reading = make_reading(
            step=step if not seldom(draw, 9) else odd_number(draw),
            epoch=float(step) if not seldom(draw, 9) else odd_number(draw),
            progress=step / 10 if not seldom(draw, 9) else odd_number(draw),
            stage=draw(mostly(st.just("unimodal"), st.sampled_from(["joint", "third", None, 3]))),
            training=names,
            modalities=names,
            redundancy=odd_number(draw) if seldom(draw, 9) else 0.1,
            unique=odd_values(draw, names),
            synergy=odd_number(draw) if seldom(draw, 9) else 0.1,
            mutual_information=dict.fromkeys(names, 0.2),
            floor=odd_values(draw, [*names, "redundancy", "synergy"]),
            accuracy=odd_values(draw, [*names, "fused"]),
            plugin={"redundancy": 0.1, "synergy": odd_number(draw), "unique": odd_values(draw, names)},
            conditional_mutual_information=odd_number(draw) if seldom(draw, 9) else 0.0,
        )
        decision = attempt(lambda reading=reading: rule.decide(reading), "reading")
        if decision is None:
            return "error"
        assert decision.training
        assert set(decision.training) <= set(names)
        assert decision.reason
        assert "nan" not in decision.reason
        state = json.loads(json.dumps(rule.state_dict(), allow_nan=False))
        rule.load_state_dict(state)
        if decision.ends_stage:
            break
    return "result"


# ---- raw rows ----


@cache
def processor() -> FusionProcessor:
    with tempfile.TemporaryDirectory() as folder:
        options = {"image_processor_type": "ViTImageProcessor", "size": {"height": 4, "width": 4}}
        options |= {"image_mean": [0.5], "image_std": [0.5]}
        Path(folder, "preprocessor_config.json").write_text(json.dumps(options))
        image = AutoImageProcessor.from_pretrained(folder)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "one": 2}, unk_token="[UNK]"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    text = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=4, **special)
    return FusionProcessor(
        {
            "image": image,
            "audio": Wav2Vec2FeatureExtractor(sampling_rate=8000, return_attention_mask=True),
            "text": text,
            "table": ArrayProcessor(),
        }
    )


@cache
def encoded() -> tuple[bytes, bytes, bytes]:
    """A PNG, a WAV, and the first half of the PNG."""
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture, "PNG")
    soundfile.write(sound, np.linspace(-0.5, 0.5, 800), 8000, format="WAV")
    return picture.getvalue(), sound.getvalue(), picture.getvalue()[:40]


def raw_value(draw: Draw, name: str) -> Any:
    """What a row may hold under the name of a modality: right, of another modality, or nonsense."""
    picture, sound, half = encoded()
    if seldom(draw, 2):
        rows, columns = draw(st.sampled_from([(8, 8), (1, 1), (0, 3), (3, 0), (300, 1), (4, 3)]))
        dtype = draw(st.sampled_from([*FLOATS, torch.uint8, torch.int16, torch.bool, torch.complex64]))
        made = numbers(draw, rows, columns, dtype=dtype, kind=draw(st.sampled_from(KINDS)))
        value = laid_out(made, draw(st.sampled_from([*LAYOUTS, *BAD_LAYOUTS])))
        if isinstance(value, (torch.Tensor, np.ndarray)) and draw(st.booleans()):
            return value.reshape(-1) if not getattr(value, "is_sparse", False) else value
        return value
    right = {
        "image": [Image.new("L", (8, 8)), Image.new("RGBA", (3, 5)), np.zeros((8, 8), np.uint8), picture],
        "audio": [
            np.zeros(800, np.float32),
            sound,
            {"array": np.ones(500), "sampling_rate": 16000},
            [0.1] * 500,
        ],
        "text": ["one two", "", "one " * 50, "\x00\ud800"],
        "table": [np.arange(3.0), [[1.0, 2.0, 3.0]] * 2, [1, 2, 3]],
    }[name]
    wrong = [
        picture,
        sound,
        half,
        b"",
        b"RIFF",
        "",
        "/no/such/file",
        "\x00",
        {},
        {"bytes": None, "path": None},
    ]
    wrong += [
        {"bytes": "text"},
        {"bytes": 3, "path": None},
        {"path": 7},
        {"array": None},
        {"array": "x"},
        3,
        2.5,
        [],
        [[]],
    ]
    wrong += [
        {"array": [0.1] * 9, "sampling_rate": rate}
        for rate in (0, -1, None, "x", 1.5, math.nan, math.inf, True, 10**15, 1)
    ]
    wrong += [
        Image.new("I", (3, 3)),
        Image.new("1", (3, 3)),
        Image.new("F", (2, 2)),
        None,
        object(),
        [None],
        ["a", 1],
        1j,
    ]
    return draw(mostly(st.sampled_from(right), st.sampled_from(wrong)))


def check_inputs(batch: Mapping[str, Any]) -> None:
    sizes = set()
    for name, inputs in batch.items():
        for value in (inputs if isinstance(inputs, Mapping) else {name: inputs}).values():
            sizes.add(len(value))
            assert name == "labels" or not value.is_floating_point() or value.isfinite().all(), name
    assert len(sizes) == 1


def case_processor(draw: Draw) -> str:
    names = draw(
        st.lists(st.sampled_from(["image", "audio", "text", "table"]), min_size=0, max_size=3, unique=True)
    )
    batch: dict[str, Any] = {}
    for name in names:
        many = draw(st.integers(0, 3))
        batch[name] = (
            [raw_value(draw, name) for _ in range(many)] if draw(st.booleans()) else raw_value(draw, name)
        )
    if seldom(draw, 29):
        batch["smell"] = 3
    found = attempt(lambda: processor()(**batch), *names, "modality", "rows", "nothing to process")
    if found is None:
        return "error"
    check_inputs(found)
    return "result"


def odd_rows(draw: Draw, make: Callable[[str], Any], names: list[str]) -> Any:
    if seldom(draw, 29):
        return draw(st.sampled_from([[], None, {}, [None], [3], [[]], [{}], "ab", [(1, 2)]]))
    labels = st.sampled_from([0, 1, 2, True, np.int64(1), torch.tensor(1), 0.5, [0, 1], [1.0, 0.0]])
    wrong = st.sampled_from(
        [
            None,
            "cat",
            [0],
            [[1]],
            math.nan,
            {},
            object(),
            torch.zeros(2),
            1j,
            2**70,
            torch.zeros(2, device="meta"),
        ]
    )
    label = draw(labels)
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = {name: make(name) for name in names if not seldom(draw, 9)}
        if not seldom(draw, 9):
            row[draw(st.sampled_from(["label", "labels"]))] = draw(mostly(st.just(label), wrong))
        rows.append(row)
    if seldom(draw, 19):
        rows.append(draw(st.sampled_from([None, 3, (1, 2), "x", {}])))
    return rows


def case_fusion_collator(draw: Draw) -> str:
    names = draw(st.sampled_from([["image", "audio"], ["text", "table"], ["table"]]))

    def value(name: str) -> Any:
        if seldom(draw, 4):
            # Processed, or what looks like it.
            length = draw(st.sampled_from([3, 3, 5, 0]))
            key = {"image": "pixel_values", "audio": "input_values", "text": "input_ids", "table": "values"}[
                name
            ]
            made = torch.ones(1, 4, 4) if name == "image" else torch.ones(length)
            odd = st.sampled_from(["abc", None, made.to("meta"), 3, {}, [1, "x"]])
            return {key: draw(mostly(st.just(made), odd))}
        return raw_value(draw, name)

    rows = odd_rows(draw, value, names)
    collate = FusionCollator(processor())
    batch = attempt(lambda: collate(rows), *processor().modalities, "label", "row", "modality", "modalities")
    if batch is None:
        return "error"
    check_inputs(batch)
    return "result"


def case_tensor_collator(draw: Draw) -> str:
    def value(name: str) -> Any:
        made = torch.ones(draw(mostly(st.just(3), st.integers(0, 4))))
        odd = st.sampled_from(
            [None, "abc", made.to("meta"), 3, [1, 2], {}, object(), made.numpy(), 1j, made.to_sparse()]
        )
        inner = draw(mostly(st.just(made), odd))
        return {"values": inner} if draw(st.booleans()) else inner

    names = ["left", "right"]
    rows = odd_rows(draw, value, names)
    given = draw(mostly(st.just(None), st.sampled_from([names, ["left"], ["smell"], [], "left", 3])))
    words = (*names, "smell", "label", "row", "modality", "modalities")
    batch = attempt(lambda: TensorCollator(given)(rows), *words)
    return "error" if batch is None else "result"


def case_array_processor(draw: Draw) -> str:
    width = draw(st.integers(1, 3))

    def row() -> Any:
        shape = draw(
            mostly(
                st.sampled_from([(width,), (4, width), (2, width)]),
                st.sampled_from([(), (0,), (1, 2, 3), (7,)]),
            )
        )
        dtype = draw(mostly(st.sampled_from(FLOATS), st.sampled_from(ODD_TYPES)))
        made = numbers(draw, *shape, dtype=dtype, kind=draw(st.sampled_from(KINDS)))
        return laid_out(made, draw(mostly(st.sampled_from(LAYOUTS), st.sampled_from(BAD_LAYOUTS))))

    rows = [row() for _ in range(draw(st.integers(0, 3)))]
    if seldom(draw, 19):
        rows = draw(st.sampled_from([None, 3, "abc", [[]], [["a"]], [object()], [[1, [2]]]]))
    if draw(st.booleans()):
        made = attempt(lambda: ArrayProcessor.fit(rows), "row")
    else:
        odd = st.sampled_from(
            [0.0, -1.0, math.nan, math.inf, [], [[1.0]], "x", None, [1.0] * 7, 1j, 1e-45, 1e300]
        )
        mean, std = draw(mostly(st.just(0.5), odd)), draw(mostly(st.just([2.0] * width), odd))
        made = attempt(lambda: ArrayProcessor(mean, std), "mean", "std")
    if made is None:
        return "error"
    batch = attempt(lambda: made(rows), "row")
    if batch is None:
        return "error"
    assert batch["values"].isfinite().all()
    return "result"


# ---- the model ----


@cache
def model(problem: str, with_readout: bool) -> FusionForClassification:
    torch.manual_seed(0)
    left = fusion_fixtures.Sensor()
    made = FusionForClassification.from_modality_pretrained(
        {"left": left, "right": fusion_fixtures.tiny_vit(4)}, num_labels=3, problem_type=problem
    ).eval()
    if with_readout:
        heads = {name: torch.randn(20, 3) for name in ("left", "right", "fused")}
        labels = torch.randint(3, (20,)) if problem == SINGLE_LABEL else torch.randint(2, (20, 3))
        made.config.readout = Readout.fit(heads, labels, problem_type=problem).to_dict()
    return made


def case_model(draw: Draw) -> str:
    problem = draw(st.sampled_from([SINGLE_LABEL, MULTI_LABEL, REGRESSION]))
    fusion = model(problem, draw(st.booleans()))
    size = draw(st.sampled_from([0, 1, 2, 3]))
    inputs: dict[str, Any] = {}
    finite = True
    for name, shape in {"left": (size, 2, 3), "right": (size, 1, 4, 4)}.items():
        if seldom(draw, 9):
            shape = draw(st.sampled_from([(size + 1, *shape[1:]), (size,), (size, 5, 5), ()]))
        kind, dtype = (
            draw(mostly(st.just("plain"), st.sampled_from(KINDS))),
            draw(mostly(st.sampled_from(FLOATS), st.sampled_from(ODD_TYPES))),
        )
        made = numbers(draw, *shape, dtype=dtype, kind=kind)
        value = laid_out(
            made, draw(mostly(st.sampled_from(LAYOUTS[:5]), st.sampled_from([*LAYOUTS[5:], *BAD_LAYOUTS])))
        )
        finite = finite and (made.is_complex() or bool(made.float().isfinite().all())) and kind != "huge"
        key = draw(
            mostly(
                st.just("values" if name == "left" else "pixel_values"),
                st.sampled_from(["input_ids", "values"]),
            )
        )
        inputs[name] = {key: value} if draw(st.booleans()) else value
    if seldom(draw, 4):
        inputs.pop(draw(st.sampled_from(["left", "right"])))
    if seldom(draw, 29):
        inputs["smell"] = torch.zeros(size)
    labels: Any = {
        SINGLE_LABEL: torch.zeros(size).long(),
        MULTI_LABEL: torch.ones(size, 3),
        REGRESSION: torch.zeros(size, 3),
    }[problem]
    labels = (
        draw(mostly(st.just(labels), st.just(None)))
        if draw(st.integers(0, 3)) < 3
        else odd_labels(draw, size)
    )
    present: Any = None
    if seldom(draw, 3):
        masks = [
            torch.arange(size) > 0,
            torch.zeros(size).bool(),
            torch.ones(size),
            torch.ones(size + 1).bool(),
            None,
            "x",
            [True] * size,
        ]
        present = {draw(st.sampled_from(["left", "right", "smell"])): draw(st.sampled_from(masks))}
        if seldom(draw, 9):
            present = draw(st.sampled_from(["x", 3, [], {}]))
    words = ("left", "right", "smell", "labels", "present", "modality", "logits", "row")
    with torch.no_grad():
        output = attempt(lambda: fusion(labels=labels, present=present, **inputs), *words)
    if output is None:
        return "error"
    answer = output.predictions if problem == REGRESSION else output.probabilities
    if answer is not None and finite:
        assert answer.isfinite().all()
    if answer is not None and problem == SINGLE_LABEL and finite:
        torch.testing.assert_close(answer.sum(-1), torch.ones(len(answer)), atol=1e-3, rtol=0)
    if finite:
        assert output.logits.isfinite().all()
    elif labels is not None and size:
        # What is not finite in shows in the loss.
        assert output.loss.ndim == 0
    return "result"


# ---- the rest ----


def odd_references(draw: Draw, rows: int) -> Any:
    return odd_labels(draw, rows) if draw(st.booleans()) else [index % 2 for index in range(rows)]


def case_pid_metric(draw: Draw) -> str:
    rows = some_rows(draw)
    values = {name: odd_matrix(draw, rows)[0] for name in ("image", "audio")}
    references = odd_references(draw, rows)
    options: dict[str, Any] = {"num_clusters": 3}
    if draw(st.booleans()):
        options |= {"method": "clusters", "permutations": 2, "bootstrap": 0}
    if seldom(draw, 9):
        options["num_clusters"] = draw(st.sampled_from([0, "x", None, "auto"]))
    with tempfile.TemporaryDirectory() as folder:
        metric = PIDMetric(("image", "audio"), cache_dir=folder)
        found = attempt(
            lambda: metric.compute(**values, references=references, **options),
            "image",
            "audio",
            "references",
            *PID_WORDS,
        )
    if found is None:
        return "error"
    json.dumps(found, allow_nan=False)
    assert found["redundancy"] + found["unique"]["image"] == _close(found["mutual_information"]["image"])
    return "result"


def case_accuracy_metric(draw: Draw) -> str:
    rows = some_rows(draw)
    classes = draw(st.integers(1, 3))
    values = {name: odd_matrix(draw, rows, classes)[0] for name in ("image", "audio")}
    references = odd_references(draw, rows)
    with tempfile.TemporaryDirectory() as folder:
        metric = ModalityAccuracy(("image", "audio"), cache_dir=folder)
        found = attempt(
            lambda: metric.compute(**values, references=references), "image", "audio", "references"
        )
    if found is None:
        return "error"
    assert set(found) == {"accuracy_image", "accuracy_audio"}
    assert all(0 <= value <= 1 for value in found.values())
    return "result"


def _close(value: float) -> Any:
    import pytest

    return pytest.approx(value, abs=1e-9)


CASES: dict[str, Callable[[Draw], str]] = {
    "fast_pid": case_fast_pid,
    "fast_pids": case_fast_pids,
    "pid_tensors": case_probe_tensors,
    "decompose": case_decompose,
    "differentiable_pid": case_differentiable_pid,
    "soft clusters": case_soft_clusters,
    "Readout": case_readout,
    "Rule": case_rule,
    "FusionProcessor": case_processor,
    "FusionCollator": case_fusion_collator,
    "TensorCollator": case_tensor_collator,
    "ArrayProcessor": case_array_processor,
    "FusionForClassification": case_model,
    "PIDMetric": case_pid_metric,
    "ModalityAccuracy": case_accuracy_metric,
}
