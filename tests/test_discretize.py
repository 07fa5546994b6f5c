"""Projection, k-means and cluster assignment against plain NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from ecsfusion_kernels import histogram, lloyd, nearest, project, seed, uniform
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from ecsfusion.pid.discretize import Discretizer, ModalityPairs, principal_directions, sample_rows


def blobs(number=600, clusters=6, dimension=12, spread=0.05, random_seed=0):
    """Well separated points on the sphere and the blob of each."""
    generator = torch.Generator().manual_seed(random_seed)
    centers = torch.nn.functional.normalize(torch.randn(clusters, dimension, generator=generator), dim=-1)
    blob = torch.arange(number) % clusters
    return centers[blob] + spread * torch.randn(number, dimension, generator=generator), blob


def same_partition(first, second):
    """Whether two labelings split the points alike, up to the names of the parts."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_project_is_normalization_then_basis_then_offset(dtype):
    rows = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    basis, offset = torch.randn(7, 3), torch.randn(3)
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    expected = unit @ basis.double() - offset.double()
    torch.testing.assert_close(project(rows, basis, offset).double(), expected, atol=1e-5, rtol=1e-5)


def test_scaling_is_one_to_one_bounded_and_survives_extreme_rows():
    line = torch.tensor([[-1e30], [-3.0], [-1.0], [0.0], [1e-10], [0.5], [2.0], [1e30]])
    scaled = project(line, torch.ones(1, 1), torch.zeros(1), radius=1.0).squeeze(-1)
    assert torch.isfinite(scaled).all()
    assert scaled.abs().max() <= 1.0
    assert (scaled.diff() >= 0).all()
    assert len(scaled.unique()) == len(line)


def test_uniform_numbers_are_uniform_and_seeds_are_unrelated():
    counter = torch.arange(200_000)
    first, second = uniform(counter, 0).double(), uniform(counter, 1).double()
    assert 0 < float(first.min()) <= float(first.max()) < 1
    histogram_of_first = torch.histc(first, 100, 0, 1)
    # 2000 expected in each of 100 cells, standard deviation 44.5
    assert float(((histogram_of_first - 2000) / 44.5).square().sum()) < 150
    for other in (second, first.roll(1), uniform(counter + (1 << 32), 0).double()):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.01


def test_seeding_draws_distinct_points_far_apart():
    points, blob = blobs(clusters=6)
    centers = seed(points.expand(20, -1, -1), 6, 3)
    hit = torch.stack([blob[nearest(c.unsqueeze(0), points.unsqueeze(0))[0][0]] for c in centers])
    assert all(len(set(row.tolist())) >= 5 for row in hit)
    assert len({tuple(row.tolist()) for row in hit}) > 1, "problems of one batch must draw differently"


def test_lloyd_reaches_the_inertia_of_scikit_learn():
    points = torch.randn(4, 800, 5, generator=torch.Generator().manual_seed(2))
    start = seed(points, 12)
    for one, first, found in zip(points, start, lloyd(points, start, 300, 0.0).inertia, strict=True):
        reference = KMeans(12, init=first.numpy(), n_init=1, max_iter=300, tol=0.0).fit(one.numpy())
        assert float(found) == pytest.approx(reference.inertia_, rel=0.01)


def test_an_empty_cluster_keeps_its_centre():
    points = torch.tensor([[[0.0], [1.0], [2.0]]])
    found = lloyd(points, torch.tensor([[[1.0], [50.0]]]))
    assert found.centers.flatten().tolist() == [1.0, 50.0]
    assert found.sizes.tolist() == [[3, 0]]


def test_histogram_counts_like_numpy():
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 4, (3, 500)), generator.integers(0, 5, (3, 500))
    labels = generator.integers(0, 2, 500)
    counts = histogram(torch.tensor(first), torch.tensor(second), torch.tensor(labels), 4, 5, 2)
    assert counts.dtype == torch.int32
    for i in range(3):
        samples = np.stack([first[i], second[i], labels], -1)
        edges = [np.arange(n + 1) - 0.5 for n in (4, 5, 2)]
        np.testing.assert_array_equal(counts[i].numpy(), np.histogramdd(samples, edges)[0])


@pytest.mark.parametrize("dimension", [20, 400])
def test_principal_directions_hold_the_variance_that_scikit_learn_finds(dimension):
    rows = torch.randn(300, dimension, generator=torch.Generator().manual_seed(3))
    rows = rows * torch.linspace(3, 0.1, dimension).square()
    rows -= rows.mean(0)
    ours = principal_directions(rows.unsqueeze(0), 3)[0]
    best = PCA(3, svd_solver="full").fit(rows.numpy()).explained_variance_.sum()
    assert float((rows @ ours).var(0).sum()) == pytest.approx(best, rel=0.01)
    torch.testing.assert_close(ours.mT @ ours, torch.eye(3), atol=1e-4, rtol=0)
    assert bool((ours.gather(0, ours.abs().argmax(0, keepdim=True)) > 0).all())


def test_fit_finds_the_blobs_and_assign_labels_rows_it_has_not_seen():
    points, blob = blobs(900)
    fitted = Discretizer.fit(points[:600], 6, 5)
    assert same_partition(fitted.assign(points[:600]), blob[:600])
    assert same_partition(fitted.assign(points[600:]), blob[600:])


@pytest.mark.parametrize("number", [300, 20_000])
def test_fit_is_a_function_of_rows_and_seed_alone(number):
    points = torch.randn(number, 8, generator=torch.Generator().manual_seed(4))
    state = torch.get_rng_state()
    first = Discretizer.fit(points, 20).assign(points)
    torch.manual_seed(123)
    second = Discretizer.fit(points, 20).assign(points)
    assert torch.equal(first, second)
    torch.set_rng_state(state)
    Discretizer.fit(points, 20)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_norm_of_a_row_is_not_lost():
    length = torch.arange(200) % 2
    direction = torch.nn.functional.normalize(torch.randn(200, 6, generator=torch.Generator().manual_seed(5)))
    points = torch.cat([direction * 0.01, torch.ones(200, 1) * (1 + 3.0 * length.unsqueeze(-1))], -1)
    assert same_partition(Discretizer.fit(points, 2).assign(points), length)


def test_fewer_distinct_rows_than_clusters_leave_clusters_empty():
    points = torch.eye(3).repeat(10, 1)
    fitted = Discretizer.fit(points, 8)
    assert int((fitted.sizes > 0).sum()) == 3
    assert same_partition(fitted.assign(points), torch.arange(30) % 3)


def test_sampled_rows_are_distinct_ascending_and_spread():
    rows = sample_rows(100_000, 5000, 7)
    assert len(rows) == 5000
    assert bool((rows.diff() > 0).all())
    assert abs(float(rows.double().mean()) - 50_000) < 5 * 100_000 / 12**0.5 / 5000**0.5
    assert torch.equal(sample_rows(10, 20), torch.arange(10))


def test_three_modalities_are_asked_in_pairs_and_against_the_rest():
    named = {
        name: torch.randn(90, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")
    }
    questions = ModalityPairs.fit(named, 5, 3, 0)
    assert questions.pairs == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
        ("a", "rest"),
        ("b", "rest"),
        ("c", "rest"),
    ]
    first, second = questions.assign(named)
    assert first.shape == second.shape == (6, 90)
    assert torch.equal(first[0], first[1])
    assert torch.equal(second[1], second[2])
    assert torch.equal(questions.rest(named, "a")[:, :4].argmax(-1), named["b"].argmax(-1))
