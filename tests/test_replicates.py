"""Replicates of joint tables keep what they promise to keep and forget the rest."""

import numpy as np
import pytest
import scipy.stats
import torch
from ecsfusion_kernels import label_model, pair_tables, poisson, table_sums

from ecsfusion.pid import replicates
from ecsfusion.pid.correction import (
    correct,
    draw_nulls,
    posterior_information,
)
from ecsfusion.pid.decomposition import decompose


def joint_bits(tables):
    """Plug-in I(X1, X2; Y) of tables (..., K1, K2, C), in bits."""
    sums = table_sums(tables.double())[2]
    return (sums[..., 6] - sums[..., 0] - sums[..., 5]) / np.log(2)


def without_interaction(table, sweeps):
    """The table without three-way interaction that has the pair tables of one."""
    model = label_model(table.double().unsqueeze(0), torch.zeros(2).double(), sweeps)[0]
    return table.sum(-1, keepdim=True) / table.sum() * model


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    cells = generator.dirichlet(np.full(5 * 6 * 3, 0.4))
    return torch.tensor(generator.multinomial(700, cells).reshape(5, 6, 3))


@pytest.fixture(params=["samples", "cells"])
def drawn_by(request, monkeypatch):
    """Both ways to draw: sample by sample, and cell by cell for tables of many samples."""
    if request.param == "cells":
        monkeypatch.setattr(replicates, "MAX_ROWS", 0)
    return request.param


def test_samples_are_the_table(table):
    first, second, label = replicates.samples(table, 700)
    counted = torch.zeros_like(table)
    counted.index_put_((first, second, label), torch.ones_like(first), accumulate=True)
    assert torch.equal(counted, table)
    assert bool((label.diff() >= 0).all())


def test_shuffled_labels_keep_pairs_and_classes_and_carry_no_information(table, drawn_by):
    pairs = replicates.shuffle_pairs(table, 700, 40)
    assert pairs.shape == (3, 41, 6, 6)
    assert torch.equal(pairs[:, 0], pair_tables(table.double(), 700)[0])
    first, second = pairs[0, 1:, :5, :3], pairs[1, 1:, :6, :3]
    assert first.sum() + second.sum() == pairs[:2, 1:].sum()
    if drawn_by == "samples":
        assert torch.equal(first.sum(-1), table.sum((1, 2)).double().expand(40, -1))
        assert torch.equal(second.sum(1), table.sum((0, 1)).double().expand(40, -1))
    degrees = torch.tensor([(5 - 1) * (3 - 1), (6 - 1) * (3 - 1)])
    expected = degrees / (2 * 700 * np.log(2))
    found = torch.stack([joint_bits(pair.unsqueeze(-2)).mean() for pair in (first, second)])
    assert bool(((found - expected).abs() < 0.4 * expected).all())


def test_replicates_average_to_what_they_are_drawn_from(table, drawn_by):
    number = 400
    expected = 700 * without_interaction(table, 30)
    means = {
        "bootstrap": (replicates.bootstrap(table, 700, number), table.double()),
        "labels": (replicates.draw_labels(table, expected, 700, number), expected),
    }
    for name, (drawn, expected) in means.items():
        error = (drawn.mean(0) - expected) / (expected.clamp_min(0.5) / number).sqrt()
        assert float(error.abs().max()) < 6, name


@pytest.mark.parametrize("mean", [0.05, 1.0, 7.5, 15.9, 16.1, 40.0, 900.0])
def test_poisson_numbers_have_the_law_of_poisson(mean):
    drawn = poisson(torch.full((200,), mean), 300, 3).flatten().numpy()
    edges = np.unique(scipy.stats.poisson.ppf(np.linspace(0.02, 0.98, 25), mean))
    expected = np.diff(scipy.stats.poisson.cdf(edges, mean), prepend=0.0, append=1.0)
    found = np.bincount(np.searchsorted(edges, drawn), minlength=len(expected))
    assert scipy.stats.chisquare(found, expected * len(drawn)).pvalue > 1e-4


def test_replicates_depend_on_the_seed_alone(table):
    assert torch.equal(replicates.bootstrap(table, 700, 3, 1), replicates.bootstrap(table, 700, 3, 1))
    assert not torch.equal(replicates.bootstrap(table, 700, 3, 1), replicates.bootstrap(table, 700, 3, 2))


def test_the_model_without_interaction_fits_all_three_pair_tables(table):
    model = without_interaction(table, 300)
    target = table / table.sum()
    for dim in range(3):
        torch.testing.assert_close(model.sum(dim), target.double().sum(dim), atol=1e-6, rtol=0)
    # No three-way interaction: every odds ratio of two rows and columns is the same in all classes.
    ratio = model[0, 0] * model[1, 1] / (model[0, 1] * model[1, 0])
    torch.testing.assert_close(ratio / ratio[0], torch.ones(3).double(), atol=1e-4, rtol=1e-4)


def test_conditional_independence_has_no_interaction():
    generator = np.random.default_rng(1)
    first, second = generator.dirichlet(np.ones(4), 3), generator.dirichlet(np.ones(5), 3)
    independent = torch.tensor(np.einsum("ci,cj->ijc", first, second) / 3)
    model = without_interaction(independent, 300)
    assert float(joint_bits(model)) <= float(joint_bits(independent)) + 1e-9


def test_the_posterior_is_the_plugin_where_cells_are_full_and_the_prior_where_nothing_is_seen():
    xor = torch.zeros(2, 2, 2).double()
    xor[[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]] = 5000.0
    prior = torch.full((1, 2, 2, 2), 0.125).double()
    seen = posterior_information(xor.unsqueeze(0), prior)
    assert float(seen.mean) == pytest.approx(1.0, abs=0.01)
    assert float(seen.share) < 0.01
    once = torch.zeros(1, 30, 30, 2).double()
    once[0, range(30), range(30), torch.arange(30) % 2] = 1.0
    unseen = posterior_information(once, torch.full_like(once, 1 / 1800))
    assert float(unseen.share) > 0.3
    assert float(unseen.high - unseen.low) > 0.3


def test_shuffled_tables_come_out_as_zero_on_average():
    generator = np.random.default_rng(2)
    joint_values, plugin_values = [], []
    for _ in range(8):
        cells = np.einsum("i,j,c->ijc", *(generator.dirichlet(np.full(n, 3.0)) for n in (12, 12, 8)))
        counts = torch.tensor(generator.multinomial(600, cells.ravel()).reshape(cells.shape)).double()
        plugin = decompose(counts, tolerance=1e-2)
        found = correct(draw_nulls(counts, 600, 16, 0), plugin.mutual_information, plugin.redundancy)
        joint_values.append(float(found.joint))
        plugin_values.append(float(plugin.joint_mutual_information))
    assert abs(np.mean(joint_values)) < 0.02
    assert np.mean(plugin_values) > 0.5
