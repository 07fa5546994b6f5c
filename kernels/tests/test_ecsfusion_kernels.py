"""The published kernels against their references, by kernel-builder's continuous integration: seconds on a GPU.

It sets LOCAL_KERNELS to the build. The tests of every kernel, over shapes and dtypes, are in the repository's tests/.
"""

import pytest
import torch

from kernels import get_kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def kernels():
    return get_kernel("ecsfusion/ecsfusion-kernels", version=1)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_project(kernels, dtype):
    rows, basis, offset = numbers(1001, 96).to(dtype), numbers(96, 8), numbers(8)
    radius = torch.tensor(0.5, device=DEVICE)
    exact = (
        rows.double() / (rows.double().square().sum(1, keepdim=True) + 0.25).sqrt() @ basis.double() - offset
    )
    torch.testing.assert_close(
        kernels.project(rows, basis, offset, radius), exact.float(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.kernels_ci
def test_clusters(kernels):
    """Rows about far centers: each is nearest to the center that it was drawn about."""
    centers = 20.0 * torch.eye(8, device=DEVICE)[None]
    true = torch.arange(2000, device=DEVICE) % 8
    points = centers[:, true] + numbers(1, 2000, 8)
    labels, distance = kernels.nearest(points, centers)
    assert torch.equal(labels[0], true)
    torch.testing.assert_close(
        distance[0], (points - centers[:, true])[0].square().sum(1), rtol=1e-3, atol=1e-2
    )
    found = kernels.lloyd(points, kernels.seed(points, 8, seed=0))
    sizes = torch.stack([torch.bincount(found.labels[0][true == each], minlength=8) for each in range(8)])
    assert (sizes > 0).sum() == 8, "the clusters are not those of the rows"


@pytest.mark.kernels_ci
def test_histogram(kernels):
    generator = torch.Generator().manual_seed(1)
    first, second, label = (torch.randint(0, k, (5003,), generator=generator).to(DEVICE) for k in (7, 5, 3))
    flat = torch.bincount((first * 5 + second) * 3 + label, minlength=105).reshape(7, 5, 3)
    assert torch.equal(kernels.histogram(first, second, label, 7, 5, 3), flat.to(torch.int32))


@pytest.mark.kernels_ci
def test_broja(kernels):
    """Y = X1 and X2 has half a bit of uncertainty left, 0.5 = H(Y | X1, X2) at the optimum of AND."""
    table = torch.zeros(2, 2, 2, device=DEVICE, dtype=torch.float64)
    for first in (0, 1):
        for second in (0, 1):
            table[first, second, first & second] = 0.25
    solution = kernels.broja(table.sum(1), table.sum(0), tolerance=1e-4)
    assert abs(float(solution.conditional_entropy) - 0.5) < 1e-3
