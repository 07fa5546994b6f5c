"""The union information of each row: the kernel against the reference, and by hand."""

import pytest
import torch
from ecsfusion_kernels import pointwise_union, reference


def arguments(problems, rows, clusters, classes):
    generator = torch.Generator().manual_seed(rows)

    def random(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return (
        random(2 * problems, rows, classes).softmax(-1),
        torch.randint(clusters, (2 * problems, rows), generator=generator),
        *random(2, problems, clusters, classes),
        random(classes).softmax(-1),
        torch.randint(classes, (rows,), generator=generator),
    )


# More rows than a block has, and more classes than a tile.
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 150, 5, 3), (1, 20, 3, 20)])
def test_the_kernel_has_the_bits_of_its_reference(device, shape):
    given = arguments(*shape)
    found = pointwise_union(*(x.to(device) for x in given))
    for one, other in zip(found, reference.pointwise_union(*given), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-10, atol=1e-10)


def test_what_both_sides_know_for_certain(device):
    """Two classes of half a chance each, known from either side: one bit, and one for a factor of 2."""
    certain = torch.eye(2, dtype=torch.float64)
    prior, labels = torch.full((2,), 0.5, dtype=torch.float64), torch.arange(2)
    given = certain.expand(2, 2, 2), labels.expand(2, 2), certain[None], certain[None] + 1, prior, labels
    for found in pointwise_union(*(x.to(device) for x in given)):
        assert found.tolist() == [[2.0, 2.0]]


def test_no_pairs_no_rows_strides_and_other_dtypes(device):
    posteriors, clusters, *factors, prior, labels = (x.to(device) for x in arguments(2, 20, 3, 4))
    expected = pointwise_union(posteriors, clusters, *factors, prior, labels)
    strided = (x.mT.contiguous().mT for x in (posteriors, clusters, *factors))
    for one, other in zip(pointwise_union(*strided, prior, labels), expected, strict=True):
        assert torch.equal(one, other)
    none = pointwise_union(posteriors[:0], clusters[:0], *(x[:0] for x in factors), prior, labels)
    assert none[0].shape == (0, 20)
    none = pointwise_union(posteriors[:, :0], clusters[:, :0], *factors, prior, labels[:0])
    assert none[1].shape == (2, 0)
    with pytest.raises(TypeError, match=r"posteriors must be float64, got torch.float32"):
        pointwise_union(posteriors.float(), clusters, *factors, prior, labels)
