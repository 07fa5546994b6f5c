"""All iterations of k-means in one launch against the reference."""

import pytest
import torch
from ecsfusion_kernels import lloyd_centers, lloyd_inertia, ops, reference


def blobs(problems, rows, clusters, dimensions):
    """Points around separated centers, so that rounding decides no label, and a start that has to move."""
    generator = torch.Generator().manual_seed(problems + rows)
    centers = 8 * torch.randn(problems, clusters, dimensions, generator=generator)
    member = torch.arange(rows) % max(1, clusters)
    points = centers[:, member] + torch.randn(problems, rows, dimensions, generator=generator)
    return points, points[:, :clusters] + 1


# Three parts, parts of two tiles each, two tiles that are one part, fewer points than centers, and many dimensions.
@pytest.mark.parametrize(
    "shape", [(2, 150, 5, 3), (1, 2100, 5, 3), (1, 90, 4, 3), (1, 9, 20, 16), (1, 40, 33, 20), (1, 70, 4, 64)]
)
def test_the_kernel_finds_the_centers_of_its_reference(device, shape):
    points, start = blobs(*shape) if shape[1] > shape[2] else (blobs(1, 9, 4, 16)[0], blobs(1, 40, 20, 16)[1])
    expected = reference.lloyd_centers(points, start, 3)
    found = lloyd_centers(points.to(device), start.to(device), 3).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, start, atol=1e-2)


@pytest.mark.parametrize("iterations", [0, 1, 3, 30])
def test_the_inertia_and_the_sizes_are_those_of_the_centers_that_are_found(device, iterations):
    points, start = blobs(2, 150, 5, 3)
    points[0, 7, 1] = torch.nan
    expected = reference.lloyd_inertia(points, start, iterations)
    found = lloyd_inertia(points.to(device), start.to(device), iterations)
    torch.testing.assert_close(found.centers.cpu(), expected.centers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.inertia.cpu(), expected.inertia, rtol=1e-4, atol=0)
    assert torch.equal(found.sizes.cpu(), expected.sizes)
    assert found.sizes.sum(1).tolist() == [149, 150]
    assert torch.equal(found.centers, lloyd_centers(points.to(device), start.to(device), iterations))


def test_the_iterations_end_where_the_inertia_settles(device):
    points, start = blobs(2, 60, 3, 4)
    settled = lloyd_centers(points.to(device), start.to(device), 30)
    assert torch.equal(
        lloyd_centers(points.to(device), settled, 1, 2.0), lloyd_centers(points.to(device), settled, 9, 2.0)
    )
    assert torch.equal(lloyd_centers(points.to(device), start.to(device), 0).cpu(), start)


def test_points_that_are_not_finite_are_left_out(device):
    points, start = blobs(1, 40, 3, 4)
    expected = reference.lloyd_centers(points[:, :38], start, 3)
    points[0, 38, 1], points[0, 39, 2] = torch.nan, torch.inf
    found = lloyd_centers(points.to(device), start.to(device), 3).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_no_problems_no_points_and_strides(device):
    points, start = (x.to(device) for x in blobs(2, 30, 3, 4))
    assert lloyd_centers(points[:0], start[:0]).shape == (0, 3, 4)
    assert torch.equal(lloyd_centers(points[:, :0], start), start)
    expected = lloyd_centers(points, start, 2)
    assert torch.equal(lloyd_centers(points.mT.contiguous().mT, start.flip(0).flip(0), 2), expected)


def test_a_problem_keeps_its_bits_beside_others(device):
    """Of many problems each has one program, alone it has several."""
    points, start = (x.to(device) for x in blobs(140 if device.type == "cuda" else 2, 300, 5, 3))
    assert torch.equal(lloyd_centers(points[1:2], start[1:2], 4), lloyd_centers(points, start, 4)[1:2])


def test_many_points_are_many_launches(device, monkeypatch):
    points, start = blobs(1, 150, 3, 4)
    expected = lloyd_centers(points.to(device), start.to(device), 2)
    module = next(m for m in ops.modules() if m.__name__.endswith(".lloyd_centers"))
    measured = lloyd_inertia(points.to(device), start.to(device), 2)
    monkeypatch.setattr(module, "MAX_POINTS", 100)
    found = lloyd_centers(points.to(device), start.to(device), 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(lloyd_inertia(points.to(device), start.to(device), 2), measured, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
