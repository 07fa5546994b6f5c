"""Autocast, TF32, the default dtype and device, deterministic and inference mode change no value of the estimates."""

import contextlib
import inspect
import tempfile

import numpy as np
import pytest
import torch
from ecsfusion_kernels import reference, row_information
from ecsfusion_kernels.precision import full_precision, in_full_precision
from torch.utils._python_dispatch import TorchDispatchMode

from ecsfusion import (
    cluster_centers,
    decompose,
    differentiable_pid,
    fast_pid,
    fast_pids,
    pid_tensors,
    soft_assignments,
    soft_joint,
)
from ecsfusion.data.embedding_files import ArrayTable
from ecsfusion.pid.dependence import held_out_dependence
from ecsfusion.pid.discretize import Discretizer
from ecsfusion.pid.pooling import pool
from ecsfusion.pid.stream import stream_pid
from ecsfusion.pid.union import union_information

NUM_CLASSES = 3
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(NUM_CLASSES, (120,), generator=GENERATOR)


def embeddings(width):
    centers = torch.randn(NUM_CLASSES, width, generator=GENERATOR)
    return centers[LABELS] + torch.randn(len(LABELS), width, generator=GENERATOR)


NAMED = {"image": embeddings(12), "audio": embeddings(9)}
THREE = {**NAMED, "text": embeddings(5)}
POSTERIORS = torch.softmax(
    torch.randn(2, len(LABELS), NUM_CLASSES, generator=GENERATOR, dtype=torch.float64), -1
)
LOGITS = (POSTERIORS + 0.2 * torch.nn.functional.one_hot(LABELS, NUM_CLASSES)).float().unsqueeze(0)
POINTS = torch.randn(2, 100, 9, generator=GENERATOR)
CENTERS, BASIS, OFFSET = POINTS[:, ::20].clone(), POINTS[0, :9, :4].clone(), POINTS[0, 0, :4].clone()
TABLES = POINTS.abs().double()[:, :60].reshape(2, 9, 10, 6)
TABLES = TABLES / TABLES.sum((1, 2, 3), keepdim=True)
COUNTER = torch.arange(50)


def loss_and_gradients():
    """Of a loss on soft clusters; in inference mode the loss alone."""
    rows = [x.clone().requires_grad_() for x in NAMED.values()]
    assigned = [soft_assignments(x, cluster_centers(x, 4)) for x in rows]
    pid = differentiable_pid(soft_joint(*assigned, LABELS, NUM_CLASSES))
    loss = pid.synergy - pid.redundancy
    if not loss.requires_grad:
        return [loss]
    loss.backward()
    return [loss.detach(), *(x.grad for x in rows)]


def streamed():
    """Of a table of the same rows, by clusters."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.npz"
        np.savez(path, label=LABELS.numpy(), **{name: rows.numpy() for name, rows in NAMED.items()})
        table = ArrayTable(path)
    options = {"method": "clusters", "num_clusters": "auto", "permutations": 2, "bootstrap": 0}
    return stream_pid(table, {name: name for name in NAMED}, "label", **options)


def further_problems():
    """Labels that each need other readouts: thresholds of six classes, pairs that belong together, islands, lapses."""
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 700, 40, generator=generator)
    bits = (first[:, :3] > 0.3).long()
    second[::2, :6] = first[::2, :6] + 0.3 * second[::2, :6]
    belongs = torch.arange(700) % 2
    anew = torch.rand(700, generator=generator) < 0.3
    thresholds = 2 * (bits[:, 0] + bits[:, 1] * bits[:, 2]) + bits[:, 1]
    islands = first[:, :2].round().long().sum(1) % 2
    lapses = torch.where(anew, torch.randint(4, (700,), generator=generator), bits.sum(1))
    whole, few = [first, second], [first[:, :2], second[:, :3]]
    return [(whole, thresholds), (whole, belongs), (few, islands), (whole, lapses)]


FURTHER = further_problems()
CLUSTERS = {"num_clusters": 4, "permutations": 4}
CALLS = {
    "fast_pid": lambda: fast_pid(NAMED, LABELS, num_clusters=16),
    "fast_pid of further readouts": lambda: [fast_pid(*problem) for problem in FURTHER],
    "fast_pid by clusters": lambda: fast_pid(NAMED, LABELS, method="clusters", bootstrap=3, **CLUSTERS),
    "fast_pids by clusters": lambda: fast_pids(THREE, LABELS, method="clusters", bootstrap=0, **CLUSTERS),
    "pid_tensors": lambda: pid_tensors(NAMED, LABELS, num_classes=NUM_CLASSES, bootstrap=0, **CLUSTERS),
    "stream_pid": streamed,
    "decompose": lambda: decompose(TABLES, tolerance=1e-3),
    "union": lambda: union_information(
        POSTERIORS,
        *row_information(POSTERIORS, LABELS, POSTERIORS[0].mean(0).log())[1:],
        LABELS,
        8,
        1e-3,
        300,
        0,
    ),
    "pool": lambda: pool(LOGITS, LABELS, torch.full((NUM_CLASSES,), -1.1, dtype=torch.float32, device="cpu")),
    "dependence": lambda: held_out_dependence(NAMED, LABELS, NUM_CLASSES, [(["image"], ["audio"])], 0),
    "loss": loss_and_gradients,
    "discretizer": lambda: Discretizer.fit(NAMED["image"].bfloat16(), 4, 5).assign(NAMED["image"]),
    "principal_directions": lambda: reference.principal_directions(POINTS, 3),
    "project": lambda: reference.project(POINTS[0], BASIS, OFFSET, 0.5),
    "lloyd": lambda: reference.lloyd(POINTS, CENTERS),
    "project_nearest": lambda: reference.project_nearest(
        POINTS[0], BASIS, OFFSET, 0.5, BASIS.mT[:, : len(OFFSET)]
    ),
    "nearest": lambda: reference.nearest(POINTS, CENTERS),
    "seed": lambda: reference.seed(POINTS, 4),
    "broja": lambda: reference.broja(TABLES.sum(2), TABLES.sum(1), tolerance=1e-3),
    "loglinear": lambda: reference.loglinear(*(TABLES.sum(dim).float() for dim in (3, 2, 1))),
    "poisson": lambda: reference.poisson(50 * TABLES, 2, 0),
    "uniform": lambda: reference.uniform(COUNTER, 0),
    "pool_weights": lambda: reference.pool_weights(LOGITS, LABELS, LOGITS[0, 0, 0]),
    "gather_posteriors": lambda: reference.gather_posteriors(LOGITS[0], COUNTER[:9]),
    "pool_posteriors": lambda: reference.pool_posteriors(
        LOGITS, POSTERIORS[:, :1, :2], LABELS % 2, POSTERIORS[0, 0].log()
    ),
    "match_prior": lambda: reference.match_prior(POSTERIORS, POSTERIORS[0, 0]),
    "lloyd_centers": lambda: reference.lloyd_centers(POINTS, CENTERS),
    "lloyd_inertia": lambda: reference.lloyd_inertia(POINTS, CENTERS),
    "median_norm": lambda: reference.median_norm(TABLES.flatten(1)),
    "pair_noise": lambda: reference.pair_noise(TABLES.flatten()[:135].view(3, 3, 15)),
    "scaled_rows": lambda: reference.scaled_rows(POINTS[0, :9], TABLES.flatten()[:9], TABLES.flatten()[0]),
    "table_sums": lambda: reference.table_sums(TABLES),
    "pair_tables": lambda: reference.pair_tables(50 * TABLES[0], 50),
    "label_model": lambda: reference.label_model(50 * TABLES, TABLES[0, 0, 0, :2], 3),
    "dirichlet_information": lambda: reference.dirichlet_information(
        50 * TABLES.flatten(1, 2), TABLES.flatten(1, 2), TABLES[0, 0, 0]
    ),
    "pointwise_union": lambda: reference.pointwise_union(
        POSTERIORS, LABELS.expand(2, -1), POSTERIORS[:1, :3], POSTERIORS[1:, :3], POSTERIORS[0, 0], LABELS
    ),
    "row_information": lambda: reference.row_information(POSTERIORS, LABELS, POSTERIORS[0, 0].log()),
    "cluster_tables": lambda: reference.cluster_tables(POSTERIORS[:, :9]),
    "group_squares": lambda: reference.group_squares(TABLES.flatten(1), torch.arange(540, device="cpu") // 2),
    "hash_rows": lambda: reference.hash_rows(POINTS[0], COUNTER[:9], 0),
}


def tensors(value):
    """The tensors and numbers of a result, without the time that it took."""
    if hasattr(value, "to_dict"):
        value = {key: part for key, part in value.to_dict().items() if key != "seconds"}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in tensors(part)]
    if isinstance(value, float):
        return [torch.tensor(value, dtype=torch.float64, device="cpu")]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.fixture(scope="module")
def plain():
    """The results without any setting, each computed once."""
    found = {}
    return lambda name: found.setdefault(name, tensors(CALLS[name]()))


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def every_other_setting():
    with default_dtype(torch.float64), torch.device("meta"), deterministic(), torch.inference_mode():
        yield


SETTINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "every other setting": every_other_setting,
}


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CALLS)
def test_a_setting_of_the_caller_changes_no_value(plain, name, setting):
    expected = plain(name)
    with SETTINGS[setting]():
        found = tensors(CALLS[name]())
    assert expected
    assert len(found) == len(expected) or (name, setting) == ("loss", "every other setting")
    for one, other in zip(found, expected, strict=False):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_every_reference_is_among_them():
    assert {name for name in reference.__all__ if inspect.isfunction(getattr(reference, name))} <= {
        *CALLS,
        "histogram",  # counts alone
        "groups_of_rows",  # whole numbers
        "scale_rows",  # of `project`
    }


@contextlib.contextmanager
def tf32_by(way):
    """The ways in which a program asks for TF32."""
    saved = torch.backends.fp32_precision
    try:
        if way == "set_float32_matmul_precision":
            torch.set_float32_matmul_precision("high")
        elif way == "allow_tf32":
            torch.backends.cuda.matmul.allow_tf32 = True
        elif way == "fp32_precision of products":
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        else:
            torch.backends.fp32_precision = "tf32"
        yield
    finally:
        torch.backends.fp32_precision = saved
        torch.set_float32_matmul_precision("highest")
        for flags in PRODUCTS:
            flags.fp32_precision = "none"


PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
WAYS = ["set_float32_matmul_precision", "allow_tf32", "fp32_precision of products", "fp32_precision of all"]


def flags_now():
    return [flags.fp32_precision for flags in PRODUCTS]


def older_flags():
    """Where PyTorch tells them."""
    try:
        return torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@pytest.mark.parametrize("way", WAYS)
def test_the_flags_of_the_caller_are_as_before(way):
    with tf32_by(way):
        before, older = flags_now(), older_flags()
        assert "tf32" in before
        with full_precision():
            # PyTorch refuses to say so where its older and newer flags disagree.
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
            assert not {"tf32", "bf16"} & set(flags_now())
            with full_precision():
                pass
            assert not {"tf32", "bf16"} & set(flags_now())
        assert (flags_now(), older_flags()) == (before, older)
        with pytest.raises(KeyError, match="inside"):
            in_full_precision({}.__getitem__)("inside")
        assert flags_now() == before


def test_a_precision_of_all_backends_can_still_be_changed():
    with tf32_by("fp32_precision of all"):
        with full_precision():
            pass
        torch.backends.fp32_precision = "ieee"
        assert flags_now() == ["ieee", "ieee"]


def test_the_flags_stay_off_while_another_thread_computes():
    one, other = full_precision(), full_precision()
    with tf32_by("set_float32_matmul_precision"):
        before = flags_now()
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert "tf32" not in flags_now()
        other.__exit__(None, None, None)
        assert flags_now() == before


def test_without_flags_none_is_set():
    before = flags_now()
    with full_precision():
        assert flags_now() == before


class Watch(TorchDispatchMode):
    """The flags at every product of float32 numbers, and what a GPU refuses in deterministic mode."""

    PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "linalg_vecdot")

    def __init__(self):
        super().__init__()
        self.flags, self.refused = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name in self.PRODUCTS and args[0].dtype == torch.float32:
            self.flags += flags_now()
        is_sum_of_floats = name in ("cumsum", "cumsum_") and args[0].is_floating_point()
        is_weighed = name == "bincount" and len(args) > 1 and args[1] is not None
        if (
            is_sum_of_floats
            or is_weighed
            or str(function).startswith(("aten.median.dim", "aten.histc", "aten.put"))
        ):
            self.refused.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.*samples are few")
@pytest.mark.parametrize(
    "name", ["fast_pid", "fast_pid by clusters", "loss", "lloyd", "loglinear", "poisson"]
)
def test_products_are_not_reduced_and_nothing_is_refused(name):
    with tf32_by("set_float32_matmul_precision"), Watch() as watch:
        CALLS[name]()
    assert "tf32" not in watch.flags
    assert bool(watch.flags) == (name in ("fast_pid", "loss", "lloyd", "loglinear"))
    assert not watch.refused
