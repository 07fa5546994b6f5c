"""The compiled PTX of every kernel variant, executed on a CPU, against the plain PyTorch references.

The interpreter runs Triton's language; this runs what the compiler made of it: layouts in shared memory, pipelined
copies, barriers, tensor cores. See `ptx_memory` for what counts as a race.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from ecsfusion_kernels import language, nearest_by_halves, ops, reference
from ecsfusion_kernels.ops import kmeans, principal
from ecsfusion_kernels.ops import nearest as nearest_module
from ecsfusion_kernels.ops import seed as seed_module
from ecsfusion_kernels.reference import principal as reference_principal

pytestmark = [
    pytest.mark.skipif(
        language.triton is None, reason="Triton, which compiles the kernels, exists for Linux only"
    ),
    pytest.mark.skipif(
        language.INTERPRETED, reason="TRITON_INTERPRET is 1: the interpreter compiles nothing"
    ),
]


class Case(NamedTuple):
    """One call of an op.

    Attributes:
        call: returns what the op returns, its launches being executed.
        check: asserts that this is right.
        limits: (module, name, value) of limits that make a small problem go the way of a large one.
    """

    call: Callable[[], Any]
    check: Callable[[Any], None]
    limits: tuple[tuple[Any, str, int], ...] = ()


def make(*shape, dtype=torch.float32, random_seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(random_seed)).to(dtype)


def unaligned(tensor):
    """The same numbers, from an address that is not a multiple of 16 bytes."""
    return torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)


def as_it_is(tensor):
    return tensor


def close(expected, **tolerances):
    return lambda found: torch.testing.assert_close(found, expected, **tolerances)


def project(dtype, columns, vector, placed):
    """More tiles of dimensions than there are buffers, a block of rows that is not full, rows that are scaled."""
    size = 128 // dtype.itemsize
    rows = make(140 if columns == 8 else 70, 6 * size + 8 if vector else 3 * size + 5, dtype=dtype)
    if columns == 8:
        rows[3], rows[132] = rows[3].clamp(-2, 2) * (3e4 if dtype == torch.float16 else 1e25), 0
    basis, offset = make(rows.shape[1], columns, random_seed=1), make(columns)
    scale = basis.double().square().sum(0).sqrt() + offset.abs()

    def check(found):
        expected = reference.project(rows.double(), basis.double(), offset.double(), 0.0)
        assert float(((found.double() - expected).abs() / scale).max()) < 4e-7

    return Case(lambda: ops.project.project(placed(rows), unaligned(basis), unaligned(offset)), check)


def project_nearest(dtype, vector, placed):
    """The same, two tiles of centers, and rows that are not finite."""
    size = 128 // dtype.itemsize
    rows = make(140, 6 * size + 8 if vector else 3 * size + 5, dtype=dtype)
    rows[3], rows[132] = rows[3].clamp(-2, 2) * (3e4 if dtype == torch.float16 else 1e25), 0
    rows[7, 1], rows[139, -1] = torch.nan, -torch.inf
    basis, offset = make(rows.shape[1], 9, random_seed=1), make(9)
    centers = make(40, 9, random_seed=2) - offset
    expected = reference.project_nearest(rows, basis, offset, 0.5, centers)
    assert expected[[7, 139]].tolist() == [-1, -1]
    assert int((expected >= 32).sum()) > 5
    given = placed(rows), basis, unaligned(offset), 0.5, unaligned(centers)
    return Case(lambda: ops.project_nearest.project_nearest(*given), close(expected))


def lloyd(num_points, num_clusters, num_dims, limits=(), placed=as_it_is):
    """Well separated blobs, so that rounding decides no label; centers move once where loads are wide."""
    iterations = 1 if num_dims % 4 == 0 and placed is as_it_is else 0
    blob = torch.arange(num_points) % num_clusters
    points = 8 * make(1, num_clusters, num_dims, random_seed=2)[:, blob] + make(
        1, num_points, num_dims, random_seed=3
    )
    start = points[:, :num_clusters] + 1
    points[0, -2, 0] = torch.nan

    def check(found):
        expected = reference.lloyd(points, start, iterations)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.sizes, expected.sizes)
        torch.testing.assert_close(found.centers, expected.centers, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.inertia, expected.inertia, rtol=1e-3, atol=1e-3)

    return Case(lambda: kmeans.lloyd(placed(points), start, iterations), check, limits)


def nearest(num_clusters, num_dims, placed, num_points=70, limits=()):
    """Centers that are not aligned."""
    points, centers = make(1, num_points, num_dims), make(1, num_clusters, num_dims, random_seed=1)
    return Case(
        lambda: nearest_module.nearest(placed(points), unaligned(centers)),
        close(tuple(reference.nearest(points, centers)), rtol=1e-4, atol=1e-4),
        limits,
    )


def seed(num_points, num_dims, limits=(), placed=as_it_is):
    points = make(1, num_points, num_dims)
    return Case(
        lambda: seed_module.seed(placed(points), 3, 1),
        close(reference.seed(points, 3, 1), rtol=0, atol=0),
        limits,
    )


def orthonormalize(width, rotate):
    """Columns of different lengths that are nearly orthogonal, as in the last iterations, and one without length."""
    basis = torch.linalg.qr(make(40, width, dtype=torch.float64)).Q
    image = (basis * torch.linspace(3, 1, width) + 1e-6 * make(40, width, random_seed=1)).float()[None]
    image[..., -1] = 0

    def check(found):
        gram = found[0].double().T @ found[0].double()
        assert int((gram.diagonal() > 0.5).sum()) == width - 1
        torch.testing.assert_close(gram, gram.diagonal().round().diag(), rtol=0, atol=1e-5)
        span = found[0].double() @ found[0].double().T @ image[0].double()
        torch.testing.assert_close(span, image[0].double(), rtol=0, atol=1e-4)
        if rotate:
            variances = image[0].double().T @ found[0].double()
            squares = variances.T @ variances
            torch.testing.assert_close(squares, squares.diagonal().diag(), rtol=0, atol=1e-4)
            assert bool((squares.diagonal().diff() <= 1e-6).all())

    return Case(lambda: principal._launch_orthonormalize(image, rotate), check)


def directions(dims, columns):
    """Three parts of the rows, and dimensions of which no tile is full: programs wait for each other."""
    rows = make(1, 150, dims) * torch.logspace(0, -2, dims)

    def check(found):
        # With as few iterations.
        torch.testing.assert_close(found, reference.principal_directions(rows, columns), rtol=0, atol=1e-3)

    limits = ((principal, "ITERATIONS", 2), (reference_principal, "ITERATIONS", 2))
    return Case(lambda: principal.principal_directions(unaligned(rows), columns), check, limits)


def tables(num1, num2, num_classes):
    p = (
        torch.rand(
            2, num1, num2, num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        ** 0.25
    )
    p[1, 0], p[1, :, 1] = 0, 0
    return p / p.sum((1, 2, 3), keepdim=True)


def loglinear(*shape):
    p = tables(*shape)
    pairs = p.sum(3), p.sum(2), p.sum(1)
    return Case(
        lambda: ops.loglinear.loglinear(*pairs, 2),
        close(reference.loglinear(*pairs, 2), rtol=1e-4, atol=1e-8),
    )


def table_sums(*shape):
    p = 9 * tables(*shape)
    return Case(
        lambda: ops.table_sums.table_sums(unaligned(p)),
        close(reference.table_sums(p), rtol=1e-11, atol=1e-13),
    )


def pair_tables(*shape):
    p = 9 * tables(*shape)[0]
    return Case(
        lambda: ops.pair_tables.pair_tables(unaligned(p), 9),
        close(reference.pair_tables(p, 9), rtol=1e-12, atol=0),
    )


def label_model(*shape):
    p, noise = 9 * tables(*shape), torch.tensor([0.01, 0.0], dtype=torch.float64)
    return Case(
        lambda: ops.label_model.label_model(unaligned(p), unaligned(noise), 2),
        close(reference.label_model(p, noise, 2), rtol=2e-3, atol=1e-5),
    )


def dirichlet_information():
    """Two parts, of which one is not full, cells without samples, and concentrations of all sizes."""
    given = 9 * tables(10, 9, 5).flatten(1, 2), tables(10, 9, 5).flatten(1, 2)
    grid = torch.logspace(-2, 4, 3, dtype=torch.float64)
    return Case(
        lambda: ops.dirichlet_information.dirichlet_information(*map(unaligned, (*given, grid))),
        close(reference.dirichlet_information(*given, grid), rtol=1e-9, atol=1e-9),
    )


def median_norm():
    norms = make(2, 131, dtype=torch.float64)
    return Case(
        lambda: ops.median_norm.median_norm(unaligned(norms)),
        close(reference.median_norm(norms), rtol=0, atol=0),
    )


def pair_noise():
    sums = make(3, 140, 15, dtype=torch.float64).abs()
    return Case(
        lambda: ops.pair_noise.pair_noise(unaligned(sums)),
        close(reference.pair_noise(sums), rtol=1e-12, atol=1e-14),
    )


def scaled_rows(dtype):
    rows, norms = make(30, 70, dtype=dtype), make(30, dtype=torch.float64).exp()
    radius = torch.tensor(0.7, dtype=torch.float64)
    return Case(
        lambda: ops.scaled_rows.scaled_rows(*map(unaligned, (rows, norms, radius))),
        close(reference.scaled_rows(rows, norms, radius), rtol=1e-6, atol=1e-30),
    )


def broja(*shape):
    """The same state as the reference after two iterations, in float32."""
    p = tables(*shape)[:1]

    def check(found):
        expected = reference.broja(p.sum(2), p.sum(1), 1e-9, 2)
        assert found.iterations.item() == 2
        torch.testing.assert_close(found.coupling, expected.coupling, rtol=2e-3, atol=1e-8)
        torch.testing.assert_close(found.conditional_entropy, expected.conditional_entropy, rtol=0, atol=1e-4)
        torch.testing.assert_close(found.gap, expected.gap, rtol=2e-2, atol=1e-4)

    return Case(lambda: ops.broja.broja(p.sum(2), p.sum(1), 2e-5, 2), check)


def histogram(placed=as_it_is):
    generator = torch.Generator().manual_seed(0)
    indices = [torch.randint(-1, size + 1, (2, 1100), generator=generator) for size in (5, 4, 3)]
    return Case(
        lambda: ops.histogram.histogram(*map(placed, indices), 5, 4, 3),
        close(reference.histogram(*indices, 5, 4, 3)),
    )


def uniform(placed=as_it_is):
    counter = torch.cat([torch.arange(1000), torch.arange(1000) + (1 << 40)])
    return Case(
        lambda: ops.random.uniform(placed(counter), 1), close(reference.uniform(counter, 1), rtol=0, atol=0)
    )


def poisson(placed=as_it_is):
    expected = torch.rand(11, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30
    return Case(
        lambda: ops.poisson.poisson(placed(expected), 2, 1),
        close(reference.poisson(expected, 2, 1), rtol=0, atol=0),
    )


def pool_weights(number):
    """Two sets of rows and two programs each: one has rows for both, the other is read in part. And two steps."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(3, (421,), generator=generator)
    quality = torch.linspace(0, 1.5, number)[:, None, None]
    logits = quality * torch.eye(3)[labels] + torch.randn(1, number, 421, 3, generator=generator)
    given = logits, labels, torch.tensor([0.2, 0.3, 0.5]).log(), torch.randperm(421, generator=generator)
    limits = torch.tensor([0, 140, 421]), 140, 2
    return Case(
        lambda: ops.pool_weights.pool_weights(*map(unaligned, given), *limits),
        close(reference.pool_weights(*given, *limits), rtol=1e-4, atol=1e-5),
    )


def gather_posteriors(dtype):
    """More rows than a block has and more classes than a tile, what is no number or infinite, some rows again."""
    logits = 5 * make(2, 40, 18, dtype=dtype)
    logits[0, 7, [1, 17]] = torch.nan
    logits[1, :3, 3], logits[1, 1:4, 17] = torch.inf, -torch.inf
    order = torch.arange(70) % 40
    return Case(
        lambda: ops.gather_posteriors.gather_posteriors(unaligned(logits), unaligned(order)),
        close(reference.gather_posteriors(logits, order), rtol=1e-12, atol=0),
    )


def pool_posteriors():
    """More rows than a block has, and more classes than a tile."""
    logits, weights = 5 * make(2, 3, 70, 18), make(2, 2, 3, dtype=torch.float64)
    given = logits, weights, torch.arange(70) // 2 % 2, make(18, dtype=torch.float64)
    return Case(
        lambda: ops.pool_posteriors.pool_posteriors(*map(unaligned, given)),
        close(reference.pool_posteriors(*given), rtol=1e-12, atol=0),
    )


def match_prior(classes):
    """More rows than a tile has, so that programs wait for each other; one problem is near at once, and one is not."""
    rows = make(2, 600 if classes == 3 else 35, classes, dtype=torch.float64).softmax(-1)
    prior = rows[0].mean(0)
    return Case(
        lambda: ops.match_prior.match_prior(unaligned(rows), prior, 1e-3, 2),
        close(
            torch.cat([reference.match_prior(each[None], prior, 1e-3, 2) for each in rows]),
            rtol=1e-10,
            atol=1e-14,
        ),
        ((ops.match_prior, "TILES_OF_PART", 1),),
    )


def hash_rows(has_columns, has_keys):
    rows, columns = make(70, 35), 3 * torch.arange(35) if has_columns else None
    keys = torch.arange(70) << 40 if has_keys else None
    given = columns, 1, keys, 40 if has_keys else 0
    return Case(
        lambda: ops.hash_rows.hash_rows(unaligned(rows), *given),
        close(reference.hash_rows(rows, *given)),
    )


def lloyd_centers(num_clusters, num_dims):
    """Well separated blobs, three parts, so that programs wait for each other, and a start that has to move."""
    blob = torch.arange(150) % num_clusters
    points = 8 * make(2, num_clusters, num_dims)[:, blob] + make(2, 150, num_dims, random_seed=1)
    start = points[:, :num_clusters] + 1
    return Case(
        lambda: ops.lloyd_centers.lloyd_inertia(unaligned(points), start, 3, -1.0),
        close(reference.lloyd_inertia(points, start, 3, -1.0), rtol=1e-4, atol=1e-3),
    )


def group_squares():
    rows, group = make(2, 1100, dtype=torch.float64), torch.arange(1100) // 3
    return Case(
        lambda: ops.group_squares.group_squares(unaligned(rows), group),
        close(reference.group_squares(rows, group), rtol=1e-10, atol=1e-10),
    )


def pointwise_union():
    posteriors = make(2, 140, 18, dtype=torch.float64).softmax(-1)
    factors = make(2, 1, 4, 18, dtype=torch.float64).exp()
    clusters, labels = torch.arange(280).view(2, 140) % 4, torch.arange(140) % 18
    given = posteriors, clusters, *factors, factors[0, 0, 0], labels
    return Case(
        lambda: ops.pointwise_union.pointwise_union(*map(unaligned, given)),
        close(reference.pointwise_union(*given), rtol=1e-9, atol=1e-9),
    )


def row_information():
    """More rows than a block has, more classes than a tile, and some that have no chance."""
    posteriors = (30 * make(2, 70, 18, dtype=torch.float64)).softmax(-1)
    posteriors[:, :9, :7] = 0
    given = posteriors, torch.arange(70) % 18, make(18, dtype=torch.float64)
    expected = reference.row_information(*given)

    def check(found):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        # By float64 logarithms.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-13)

    return Case(lambda: ops.row_information.row_information(*map(unaligned, given)), check)


def cluster_tables(clusters, classes):
    """Three problems, of which one has not every class, and an empty cluster."""
    sums = make(3, clusters, classes, dtype=torch.float64).mul(2).exp()
    sums[1, :, 1], sums[2, 3] = 0, 0
    return Case(
        lambda: ops.cluster_tables.cluster_tables(unaligned(sums)),
        close(reference.cluster_tables(sums), rtol=1e-11, atol=1e-14),
    )


def groups_of_rows():
    """Pairs, and then a table of two categories, whose rows are dealt one by one."""
    keys, labels = torch.arange(1100) // 2, torch.arange(1100) % 2
    table = torch.arange(40) // 20
    return Case(
        lambda: [
            ops.groups_of_rows.groups_of_rows(unaligned(keys), labels),
            ops.groups_of_rows.groups_of_rows(table, labels[:40]),
        ],
        close([reference.groups_of_rows(keys, labels), reference.groups_of_rows(table, labels[:40])]),
    )


ONE_PROGRAM = (nearest_module, "MAX_ASSIGN_BLOCKS", 1)
TWO_GROUPS = (kmeans, "MAX_GROUPS", 2)
ONE_BLOCK = (nearest_by_halves, "MAX_BLOCKS", 1)
BY_THREAD = (nearest_module, "MIN_POINTS_BY_THREAD", 0)
BY_RUNS = tuple(
    (kmeans, name, 0 if name.startswith("MIN") else 9)
    for name in ("MIN_CLUSTERS_TO_SORT", "MIN_SUMS_TO_SORT", "MIN_POINTS_TO_SORT", "POINTS_OF_PIECE")
)
MANY_BLOCKS = (seed_module, "MAX_POINTS_AT_ONCE", 0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of rows: whether they are pieces of 16 bytes, and where they lie.
LOADS = {"vector": (True, as_it_is), "scalar": (False, as_it_is), "unaligned": (False, unaligned)}
CASES = {
    **{
        f"project {str(dtype)[6:]} {columns} {name}": functools.partial(project, dtype, columns, *loads)
        for dtype in DTYPES
        for columns in (8, 17)
        for name, loads in LOADS.items()
    },
    **{
        f"project_nearest {str(dtype)[6:]} {name}": functools.partial(project_nearest, dtype, *loads)
        for dtype in DTYPES
        for name, loads in LOADS.items()
    },
    "lloyd pipelined": lambda: lloyd(700, 5, 8, (ONE_PROGRAM, TWO_GROUPS)),
    "lloyd of several parts": lambda: lloyd(80, 66, 72),
    **{
        f"lloyd {clusters} x {dims}": functools.partial(lloyd, 130, clusters, dims)
        for clusters in (5, 40)
        for dims in (8, 9, 24, 25, 40, 41)
    },
    **{f"seed {dims}": functools.partial(seed, 300, dims) for dims in (5, 12, 40)},
    "seed with blocks that wait": lambda: seed(1100, 9),
    "seed with many blocks": lambda: seed(1100, 9, (MANY_BLOCKS,)),
    **{
        f"orthonormalize {width} {rotate}": functools.partial(orthonormalize, width, rotate)
        for width in (11, 28)
        for rotate in (False, True)
    },
    **{
        f"{solver.__name__} {' x '.join(map(str, shape))}": functools.partial(solver, *shape)
        for solver in (loglinear, broja)
        for shape in ((5, 4, 3), (5, 4, 20), (20, 17, 3), (20, 17, 20), (40, 66, 3))
    },
    **{
        f"lloyd {clusters} x {dims} unaligned": functools.partial(
            lloyd, 130, clusters, dims, placed=unaligned
        )
        for clusters in (5, 40)
        for dims in (8, 24, 40)
    },
    **{
        f"nearest {clusters} x {dims} {placed.__name__}": functools.partial(nearest, clusters, dims, placed)
        for clusters, dims in ((5, 8), (5, 24), (40, 24))
        for placed in (as_it_is, unaligned)
    },
    **{
        f"nearest {clusters} x {dims}": functools.partial(nearest, clusters, dims, as_it_is)
        for clusters, dims in ((40, 8), (70, 8), (140, 8), (5, 136), (40, 136), (70, 136))
    },
    **{
        f"nearest by halves {clusters} x {dims}": functools.partial(
            nearest, clusters, dims, as_it_is, 140, (ONE_BLOCK,)
        )
        for clusters, dims in ((260, 8), (70, 24), (140, 24), (140, 40), (5, 72))
    },
    **{
        f"nearest by thread {clusters} x {dims}": functools.partial(
            nearest, clusters, dims, as_it_is, 1100, (BY_THREAD,)
        )
        for clusters, dims in ((1, 4), (3, 8), (5, 8), (30, 4))
    },
    **{
        f"lloyd by runs {dims} {placed.__name__}": functools.partial(lloyd, 130, 5, dims, BY_RUNS, placed)
        for dims, placed in (
            *((dims, as_it_is) for dims in (8, 9, 24, 25, 40, 41, 136, 137)),
            *((dims, unaligned) for dims in (8, 24, 40, 136)),
        )
    },
    "lloyd by thread": lambda: lloyd(1100, 5, 8, (BY_THREAD, ONE_PROGRAM)),
    **{f"seed {dims} unaligned": functools.partial(seed, 300, dims, (), unaligned) for dims in (5, 12, 40)},
    **{
        f"{make_case.__name__} unaligned": functools.partial(make_case, unaligned)
        for make_case in (histogram, uniform, poisson)
    },
    **{f"pool_weights {number}": functools.partial(pool_weights, number) for number in (2, 3, 5)},
    **{
        f"gather_posteriors {str(dtype)[6:]}": functools.partial(gather_posteriors, dtype)
        for dtype in (torch.float32, torch.float64)
    },
    **{f"match_prior {classes}": functools.partial(match_prior, classes) for classes in (3, 20, 140)},
    **{
        f"hash_rows {has_columns} {has_keys}": functools.partial(hash_rows, has_columns, has_keys)
        for has_columns in (False, True)
        for has_keys in (False, True)
    },
    **{
        f"lloyd_centers {clusters} x {dims}": functools.partial(lloyd_centers, clusters, dims)
        for clusters, dims in ((5, 3), (5, 20))
    },
    **{
        f"directions {dims} x {columns}": functools.partial(directions, dims, columns)
        for dims in (70, 72)
        for columns in (3, 9)
    },
    "pool_posteriors": pool_posteriors,
    "group_squares": group_squares,
    "pointwise_union": pointwise_union,
    "row_information": row_information,
    "cluster_tables": lambda: cluster_tables(19, 5),
    "cluster_tables, large": lambda: cluster_tables(33, 18),
    "median_norm": median_norm,
    "pair_noise": pair_noise,
    **{
        f"scaled_rows {str(dtype)[6:]}": functools.partial(scaled_rows, dtype)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    },
    "table_sums": lambda: table_sums(5, 4, 3),
    "table_sums, large": lambda: table_sums(18, 4, 3),
    "pair_tables": lambda: pair_tables(5, 4, 3),
    "pair_tables, large": lambda: pair_tables(5, 33, 3),
    **{
        f"label_model {'x'.join(map(str, shape))}": functools.partial(label_model, *shape)
        for shape in ((5, 4, 3), (5, 4, 17), (18, 4, 3), (18, 4, 17), (33, 4, 3))
    },
    "dirichlet_information": dirichlet_information,
    "groups_of_rows": groups_of_rows,
    "histogram": histogram,
    "uniform": uniform,
    "poisson": poisson,
}


@pytest.fixture
def kernels(monkeypatch):
    """Executes the launches of a case; `kernels(case, change=None)` only lists them."""
    # Not imported where there is no Triton.
    from ptx_launch import executed

    limits = pytest.MonkeyPatch()

    def run(case, **options):
        # Those of the case before; the check of a case needs its own, too.
        limits.undo()
        for limit in case.limits:
            limits.setattr(*limit)
        with executed(monkeypatch, **options) as launches:
            result = case.call()
        return result, launches

    yield run
    limits.undo()


@pytest.mark.parametrize("dims", [32, 64, 128, 256])
def test_distances_are_as_exact_as_is_said(kernels, dims):
    """Points and centers that lie close together and far from the origin, where products cancel most."""
    place = make(1, 1, dims)
    points, centers = (
        place + 0.3 * make(1, 16, dims, random_seed=1),
        place + 0.3 * make(1, 33, dims, random_seed=2),
    )
    (labels, distance), _ = kernels(Case(lambda: nearest_module.nearest(points, centers), lambda _: None))
    exact = (points - centers[0, labels]).double().square().sum(-1)
    error = (distance - exact).abs() / points.double().square().sum(-1)
    # Every sum of tensor cores is cut off, never rounded up.
    assert float(error.max()) < 2.0**-25 * dims


@pytest.mark.parametrize("name", CASES)
def test_executed_ptx_equals_the_reference(kernels, name):
    case = CASES[name]()
    result, launches = kernels(case)
    assert launches
    case.check(result)


# Of every variant whose products are those of warpgroups on Hopper. All other cases pass for sm_90, too.
HOPPER = (
    *(f"project {str(dtype)[6:]} 8 {loads}" for dtype in DTYPES for loads in LOADS),
    *(f"project {str(dtype)[6:]} 17 vector" for dtype in DTYPES),
    *(f"project_nearest {str(dtype)[6:]} {loads}" for dtype in DTYPES for loads in LOADS),
    "lloyd pipelined",
    *(f"lloyd {size}" for size in ("5 x 9", "5 x 24", "5 x 25", "40 x 8", "40 x 24", "40 x 40")),
    *(f"lloyd {size} unaligned" for size in ("5 x 8", "5 x 24")),
    *(f"nearest {size}" for size in ("70 x 8", "140 x 8", "5 x 136", "40 x 136", "70 x 136")),
    *(f"nearest by halves {size}" for size in ("260 x 8", "140 x 24", "5 x 72")),
    "loglinear 40 x 66 x 3",
    "broja 40 x 66 x 3",
)


@pytest.mark.parametrize("name", HOPPER)
def test_executed_ptx_of_hopper_equals_the_reference(kernels, name):
    """There a product runs beside the threads: what it reads must stay until it is waited for."""
    from ptx_launch import compiled

    case = CASES[name]()
    result, launches = kernels(case, architecture=90)
    assert any("wgmma.mma_async" in compiled(launch, 90)[0] for launch in launches)
    case.check(result)


def test_the_cases_of_hopper_reach_every_variant_with_such_products(kernels):
    """Of the kernels that have them in some case."""
    from ptx_launch import compiled, variant_compilations

    def is_by_warpgroups(compilation):
        return "wgmma.mma_async" in compiled(compilation, 90)[0]

    reached = {launch for name in HOPPER for launch in kernels(CASES[name](), change=None)[1]}
    multiplying = {launch.kernel for launch in reached if is_by_warpgroups(launch)}
    others = [key for key in variant_compilations() if key.kernel in multiplying and key not in reached]
    missing = [(key.kernel.__name__, key.constants) for key in others if is_by_warpgroups(key)]
    assert not missing, f"no case of HOPPER executes {missing}"


def test_the_cases_reach_every_variant_and_no_other(kernels):
    """A new variant needs a case; a launch that is no variant is one that `compile_check` does not compile."""
    from ptx_launch import variant_compilations

    known, reached = variant_compilations(), set()
    for case in CASES.values():
        reached |= set(kernels(case(), change=None)[1])
    missing = [(key.kernel.__name__, key.constants) for key in known.keys() - reached]
    assert not missing, f"no case executes {missing}"
    others = [(key.kernel.__name__, *key[1:]) for key in reached - known.keys()]
    assert not others, f"no variant is like {others}"
