"""No test touches the network, draws on a screen, or needs a GPU unless it says so."""

import gc
import os
import re
import socket
import sys
from functools import partial
from pathlib import Path

# Set before any test module imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# Models and tables are tiny: a second thread only waits. And a process that is forked after torch has used a second
# one waits for it forever.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

# What is imported stays: until all tests are collected, looking for garbage among it is a quarter of the time.
gc.disable()

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A connection to another machine fails at once with a sentence; processes on this machine may talk."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"tests use no network, but something connects to {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="module", autouse=True)
def _light_collections():
    """Every `train()` collects garbage: that need not walk through all that was imported."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """What was set aside is cleared away in order when the process ends."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """Drawing its history takes as long as the training of a tiny run; `pictures` is for tests that look at it."""
    with pytest.MonkeyPatch.context() as patch:
        # Not imported: `pytest -m gpu` needs no transformers, and what does not train draws nothing.
        if publishing := sys.modules.get("ecsfusion.training.publishing"):
            patch.setattr(publishing, "plot_trajectory", lambda *_: None)
        yield


@pytest.fixture
def pictures(monkeypatch):
    """Runs leave their pictures."""
    from ecsfusion.reporting.trajectory import plot_trajectory
    from ecsfusion.training import publishing

    monkeypatch.setattr(publishing, "plot_trajectory", plot_trajectory)


@pytest.fixture(scope="module")
def quick_probes():
    """For modules that ask what a run does, not how well it measures: two replicates, heads weighed alike.

    Fitting weights and drawing replicates is a third of the time of a tiny run. `exact_probes` is for tests that look.
    """
    import numpy as np

    from ecsfusion.evaluation import information
    from ecsfusion.model import readout

    def alike(log_p, *_):
        return np.full(len(log_p), 1 / len(log_p))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "pool_opinions", alike)
        for measure in ("fast_pid", "fast_pids"):
            patch.setattr(information, measure, partial(getattr(information, measure), permutations=2))
        yield


@pytest.fixture
def exact_probes(monkeypatch):
    """Probes as they are."""
    from ecsfusion.evaluation import information
    from ecsfusion.model import readout, readout_weights
    from ecsfusion.pid import estimate

    monkeypatch.setattr(readout, "pool_opinions", readout_weights.pool_opinions)
    for measure in ("fast_pid", "fast_pids"):
        monkeypatch.setattr(information, measure, getattr(estimate, measure))


@pytest.fixture(scope="session")
def shared_data():
    """The folder ../shared/data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            f"{SHARED_DATA} is absent: this test compares with data that is not part of the repository"
        )
    return SHARED_DATA


def pytest_ignore_collect(collection_path, config):
    """`pytest -m gpu` imports the tests of the kernels only: they need torch and Triton, nothing else."""
    if config.option.markexpr == "gpu" and collection_path.suffix == ".py":
        return True if collection_path.parent.name != "kernels" else None
    return None


def pytest_collection_finish():
    """From now on garbage is collected as usual."""
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`pytest -n 2` gives a file to one worker, so that what its tests share is trained once, not once a worker."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            # Its tests are long, and share nothing.
            return nodeid if file.endswith("test_kernels.py") else file

    # In the order of the collection, not by the number of tests.
    config.option.loadscopereorder = False
    return ByFile(config, log) if config.getvalue("dist") == "load" else None


# A module trains if it names the trainer, or the helper with which the tests of the strategies make theirs.
TRAINS = re.compile(r"\bFusionTrainer\b|\bstrategy_runs\b")


# The files that take longest come first, so that two workers of `pytest -n 2` end together.
LONGEST = ("test_kernels", "test_every_strategy", "test_training_options", "test_processes", "test_resume")


def pytest_collection_modifyitems(items):
    """Mark the tests of the modules that train: `pytest -m trains` runs them, for instance with other arithmetic."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    trains = {
        path: bool(TRAINS.search(path.read_text(encoding="utf-8"))) for path in {item.path for item in items}
    }
    for item in items:
        if trains[item.path]:
            item.add_marker("trains")
