"""Union information of posteriors against the certified solver of exact tables."""

import math

import pytest
import torch
from ecsfusion_kernels import cluster_tables, row_information

from ecsfusion.pid.decomposition import decompose
from ecsfusion.pid.uncertainty import SHARE_OF_LOSS
from ecsfusion.pid.union import (
    cluster_posteriors,
    cluster_sums,
    matched,
    union_information,
)

A_THOUSAND = 1000


def bits(*masses):
    return -sum(p * math.log2(p) for p in masses if p > 0)


def table_of(gate, flips=0.0, noise=0.0):
    """The exact table (K1, K2, C) of a gate of two bits; labels are flipped, and each modality misreads its bit."""
    classes = max(gate(a, b) for a in range(2) for b in range(2)) + 1
    table = torch.zeros(2, 2, classes, dtype=torch.float64)
    for a in range(2):
        for b in range(2):
            label = torch.full((classes,), flips / max(classes - 1, 1), dtype=torch.float64)
            label[gate(a, b)] = 1 - flips
            for c in range(2):
                for d in range(2):
                    seen = (noise if a != c else 1 - noise) * (noise if b != d else 1 - noise)
                    table[c, d] += 0.25 * seen * label
    return table


def rows_of(table, number, generator=None):
    """Rows in the exact shares of a table (K1, K2, C): posteriors of both sides (N, C), and labels."""
    counts = (table * number).round().long()
    cells = counts.nonzero().repeat_interleave(counts[counts > 0], 0)
    sides = [table.sum(1), table.sum(0)]
    first, second = (
        (side / side.sum(-1, keepdim=True).clamp_min(1e-30))[cells[:, i]] for i, side in enumerate(sides)
    )
    return first, second, cells[:, 2]


def union_of(first, second, labels, number=16, tolerance=1e-5):
    return union_of_sides(torch.stack([first, second]), labels, number, tolerance, 5000)


def union_of_sides(posteriors, labels, *options):
    log_prior = posteriors[0].mean(0).log()
    return union_information(
        posteriors, *row_information(posteriors, labels, log_prior)[1:], labels, *options, 0
    )


GATES = {
    "xor": (lambda a, b: a ^ b, 0.0),
    "and": (lambda a, b: a & b, None),
    "copy of the first": (lambda a, b: a, None),
    "both bits": (lambda a, b: 2 * a + b, None),
}


@pytest.mark.parametrize("flips", [0.0, 0.1])
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("gate", GATES)
def test_gates_have_the_union_information_of_their_table(gate, flips, noise):
    table = table_of(GATES[gate][0], flips, noise)
    exact = decompose(table, tolerance=1e-6, max_iterations=50_000)
    expected = float(exact.mutual_information.sum() - exact.redundancy)
    found = union_of(*rows_of(table, 40_000))
    assert abs(float(found.value) - expected) < 2e-3
    assert float(found.low) - 1e-6 <= expected <= float(found.high) + 2e-5
    # Nothing is lost where posteriors take four values.
    assert float(found.high - found.low) < 1e-3


def test_known_values():
    for gate, expected in (
        ("xor", 0.0),
        ("copy of the first", 1.0),
        ("both bits", 2.0),
        ("and", bits(0.25, 0.75) - 0.5),
    ):
        found = union_of(*rows_of(table_of(GATES[gate][0]), 4000))
        assert abs(float(found.value) - expected) < 1e-3, gate


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_random_tables_of_few_values(classes):
    generator = torch.Generator().manual_seed(classes)
    table = torch.rand(4, 5, classes, generator=generator, dtype=torch.float64).pow(3)
    counts = (table / table.sum() * 20_000).round()
    table = counts / counts.sum()
    exact = decompose(table, tolerance=1e-6, max_iterations=50_000)
    expected = float(exact.mutual_information.sum() - exact.redundancy)
    found = union_of(*rows_of(table, int(counts.sum())))
    assert abs(float(found.value) - expected) < 2e-3


def gaussian_posteriors(number, random_seed, classes=3):
    """Exact posteriors of two modalities that are independent given the label."""
    generator = torch.Generator().manual_seed(random_seed)
    labels = torch.arange(number) % classes
    sides = []
    for strength in (2.0, 1.2):
        means = strength * torch.eye(classes)
        rows = means[labels] + torch.randn(number, classes, generator=generator)
        sides.append((rows @ means.T).double().softmax(-1))
    return *sides, labels


def test_the_bracket_holds_the_union_information_of_finer_clusters():
    first, second, labels = gaussian_posteriors(A_THOUSAND, 0)
    prior = torch.full((3,), 1 / 3, dtype=torch.float64)
    first, second = matched(first, prior), matched(second, prior)
    coarse, fine, finest = (union_of(first, second, labels, k, 1e-3) for k in (12, 40, 250))
    for rough in (coarse, fine):
        assert float(rough.low) <= float(finest.high)
        assert float(rough.low) <= float(finest.value) <= float(rough.high)
        assert float(rough.low) <= float(rough.value) <= float(rough.high)
    # What is lost falls, and what is certified grows.
    widths = [float(u.high - u.low) for u in (coarse, fine, finest)]
    assert widths[0] > widths[1] > widths[2]
    assert float(coarse.low) < float(fine.low) + 1e-3 < float(finest.low) + 2e-3
    assert abs(float(fine.value) - float(finest.value)) < 0.2 * widths[1]


def test_the_parts_of_the_rows_add_up():
    first, second, labels = gaussian_posteriors(A_THOUSAND, 1)
    prior = torch.full((3,), 1 / 3, dtype=torch.float64)
    found = union_of(matched(first, prior), matched(second, prior), labels, 40, 1e-4)
    assert found.pointwise.shape == (1, A_THOUSAND)
    assert abs(float(found.pointwise.mean() - found.change) - float(found.low)) < 2e-3
    # Exact posteriors are calibrated: the labels say the same, within three standard errors.
    assert abs(float(found.change)) < 3 * float(found.pointwise.std()) / math.sqrt(A_THOUSAND)


def test_swapped_sides_have_the_same_union_information():
    first, second, labels = gaussian_posteriors(600, 2)
    prior = torch.full((3,), 1 / 3, dtype=torch.float64)
    first, second = matched(first, prior), matched(second, prior)
    one, other = union_of(first, second, labels, 32), union_of(second, first, labels, 32)
    assert abs(float(one.value) - float(other.value)) < 0.01


def test_a_side_that_knows_nothing_adds_nothing():
    first, _, labels = gaussian_posteriors(600, 3)
    prior = torch.full((3,), 1 / 3, dtype=torch.float64)
    first = matched(first, prior)
    found = union_of(first, prior.expand(600, 3).contiguous(), labels, 64)
    alone = float(math.log2(3) + (first * first.clamp_min(1e-30).log2()).sum(-1).mean())
    assert abs(float(found.value) - alone) < 0.01


def test_pairs_in_a_batch_do_not_see_each_other():
    first, second, labels = gaussian_posteriors(400, 4)
    prior = torch.full((3,), 1 / 3, dtype=torch.float64)
    first, second = matched(first, prior), matched(second, prior)
    both = union_of_sides(torch.stack([first, second, second, second]), labels, 24, 1e-4, 2000)
    alone = float(math.log2(3) + (second * second.clamp_min(1e-30).log2()).sum(-1).mean())
    assert abs(float(both.value[1]) - alone) < 0.02
    assert float(both.value[0]) > float(both.value[1]) + 0.1


def test_matched_posteriors_have_the_prior_as_their_mean():
    first, _, _ = gaussian_posteriors(500, 5)
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = matched(first, prior)
    torch.testing.assert_close(found.mean(0), prior, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.sum(-1), torch.ones(500, dtype=torch.float64))
    exact = matched(first, first.mean(0))
    torch.testing.assert_close(exact, first, rtol=0, atol=1e-9)


def test_matched_posteriors_are_the_same_with_a_gradient_and_without():
    first, _, _ = gaussian_posteriors(500, 5)
    first = torch.cat([first, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)])
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    plain = matched(torch.stack([first, first.square()]), prior, 0.0)
    followed = matched(torch.stack([first, first.square()]).requires_grad_(), prior, 0.0)
    torch.testing.assert_close(plain, followed.detach(), rtol=0, atol=1e-9)


def tables_of(posteriors, number):
    clusters = cluster_posteriors(posteriors.float().sqrt(), number, 0)
    sums = cluster_sums(posteriors, clusters, number)
    tables, told = cluster_tables(sums)
    return tables[:, 0], told[:, 0]


def test_clusters_keep_the_mass_and_no_more_than_the_information():
    first, _, _ = gaussian_posteriors(500, 6)
    whole = float(row_information(first[None], torch.zeros(500).long(), first.mean(0).log())[1].mean())
    whole = bits(*first.mean(0).tolist()) - whole
    values = []
    for number in (2, 8, 64):
        tables, told = tables_of(first[None], number)
        assert tables.shape == (1, number, 3)
        torch.testing.assert_close(tables.sum((1, 2)), torch.ones(1, dtype=torch.float64))
        values.append(float(told))
    assert values[0] < values[1] < values[2] <= whole + 1e-9
    assert whole - values[2] < 0.01


def test_tables_of_certain_rows_have_one_prior():
    """Rows that are certain of different shares of the classes cannot be scaled to one prior, but their tables can."""
    labels = torch.arange(600) % 3
    sides = []
    for share in (0.05, 0.2):
        named = torch.where(torch.arange(600) < 600 * share, 0, labels)
        posteriors = torch.nn.functional.one_hot(named, 3).double() * (1 - 3e-9) + 1e-9
        sides.append(matched(posteriors, torch.full((3,), 1 / 3, dtype=torch.float64)))
    tables = [tables_of(side[None], 8)[0] for side in sides]
    both, _ = tables_of(torch.stack(sides), 8)
    assert float((tables[0].sum(1) - tables[1].sum(1)).abs().max()) > 0.01
    torch.testing.assert_close(both[0].sum(0), both[1].sum(0))
    # The bounds of the solver do not cross, as they do for marginals of no distribution.
    found = union_of(sides[0], sides[1], labels, 8)
    assert float(found.low) <= float(found.value) <= float(found.high) + 1e-9
    assert float(found.high - found.low) > 0


@pytest.mark.parametrize("random_seed", [3, 4, 5, 6])
def test_what_clusters_lose_of_many_classes_is_not_taken_for_redundancy(random_seed):
    """Twenty clusters of sixteen classes against 400: half of the twenty hardly tell the classes apart."""
    generator = torch.Generator().manual_seed(random_seed)
    labels = torch.randint(16, (3000,), generator=generator)
    sides = []
    for _ in range(2):
        means = 0.7 * torch.randn(16, 16, generator=generator)
        rows = means[labels] + torch.randn(3000, 16, generator=generator)
        sides.append((rows @ means.T - means.square().sum(1) / 2).double().softmax(-1))
    posteriors = matched(torch.stack(sides), torch.bincount(labels).double() / 3000)
    few, many = (union_of_sides(posteriors, labels, number, 2e-3, 200) for number in (20, 400))
    # As close as intervals say: to a tenth of what the clusters lose.
    assert abs(float(few.value - many.value)) < SHARE_OF_LOSS * float(few.high - few.low)


@pytest.mark.parametrize("random_seed", [0, 1, 2])
def test_what_clusters_lose_of_a_copy_is_not_unique(random_seed):
    """Two views of 100 classes with equal centers and noise of their own: neither knows what the other does not."""
    generator = torch.Generator().manual_seed(random_seed)
    means = 0.7 * torch.randn(100, 16, generator=generator)
    labels = torch.randint(100, (5000,), generator=generator)
    sides = []
    for _ in range(2):
        rows = means[labels] + torch.randn(5000, 16, generator=generator)
        sides.append((rows @ means.T - means.square().sum(1) / 2).double().softmax(-1))
    posteriors = matched(torch.stack(sides), torch.bincount(labels, minlength=100).double() / 5000)
    found = union_of_sides(posteriors, labels, 128, 1e-2, 100)
    larger = float((-(posteriors[0].mean(0) * posteriors[0].mean(0).log2()).sum() - found.unsure).amax())
    assert abs(float(found.value) - larger) < 0.05


@pytest.mark.parametrize("random_seed", [3, 4])
def test_what_clusters_leave_open_holds_views_of_one_code_and_of_two(random_seed):
    """Clusters cannot tell noisy views of the same centers from views of other centers; their doubt holds both."""
    generator = torch.Generator().manual_seed(random_seed)
    labels = torch.randint(28, (3000,), generator=generator)
    centers = 0.3 * torch.randn(2, 28, 64, generator=generator)
    for other in (0, 1):
        sides = []
        for means in (centers[0], centers[other]):
            rows = means[labels] + torch.randn(3000, 64, generator=generator)
            sides.append((rows @ means.T - means.square().sum(1) / 2).double().softmax(-1))
        posteriors = matched(torch.stack(sides), torch.bincount(labels, minlength=28).double() / 3000)
        few, many = (union_of_sides(posteriors, labels, number, 2e-3, 200) for number in (56, 600))
        truth = many if other else few._replace(value=(math.log2(28) - few.unsure).amax().view(1))
        around = few.unresolved + SHARE_OF_LOSS * (few.high - few.low)
        assert abs(float(few.value - truth.value)) < float(around)
