"""A short soak: after many probes and switches nothing is open, alive or running that was not before."""

import sys
from pathlib import Path

import numpy as np
import pytest

# No installed package
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import soak
from test_compare import TINY

pytestmark = pytest.mark.slow

PROBES, PER_SAMPLE = 60, soak.PROBES_PER_CHECKPOINT


@pytest.fixture(scope="module")
def watch(quick_probes):
    return soak.soak(TINY, soak.Length(probes=PROBES), seed=0, probes_per_sample=PER_SAMPLE)


def test_every_probe_switches_in_both_stages(watch):
    # The readout's evaluation counts, too.
    assert watch.probes >= PROBES
    assert watch.switches > 0.9 * PROBES
    assert set(watch.samples["stage"]) == {1, 2}
    assert all(len(column) == PROBES // PER_SAMPLE - 1 for column in watch.samples.values())


@pytest.mark.parametrize("figure", ["files", "threads", "tensors"])
def test_nothing_stays_open_alive_or_running(watch, figure):
    for stage in (1, 2):
        values = [v for v, s in zip(watch.samples[figure], watch.samples["stage"], strict=True) if s == stage]
        half = len(values) // 2
        assert max(values[half:]) <= max(values[:half])


def test_what_is_left_of_a_probe_is_its_record(watch):
    """A probe with its reading, measurement and decomposition; their copy in the state as JSON; the log."""
    objects, probes = (np.diff(watch.samples[name][2:]) for name in ("objects", "probes"))
    assert np.median(objects / probes) < 32


class TestGrowth:
    """On samples whose growth is known."""

    def samples(self, values, stages):
        return {"probes": [10.0 * k for k in range(len(values))], "stage": stages, "rss_mb": values}

    def test_a_level_of_each_stage_is_no_growth(self):
        found = soak.growth(self.samples([5.0] * 50 + [9.0] * 50, [1] * 50 + [2] * 50), "rss_mb")
        assert (found["first_quarter"], found["last_quarter"]) == ([5.0, 9.0], [5.0, 9.0])
        assert found["per_1000_probes"] == 0.0

    def test_a_leak_is_found_within_noise(self):
        noise = np.random.default_rng(0).normal(size=200)
        # 0.02 a probe
        leak = [0.02 * 10 * k + noise[k] for k in range(200)]
        found = soak.growth(self.samples(leak, [1] * 100 + [2] * 100), "rss_mb")
        low, high = found["interval"]
        assert low < 20.0 < high
        assert low > 0.0

    def test_noise_is_no_leak(self):
        noise = [float(v) for v in np.random.default_rng(1).normal(size=200)]
        low, high = soak.growth(self.samples(noise, [1] * 100 + [2] * 100), "rss_mb")["interval"]
        assert low < 0.0 < high
