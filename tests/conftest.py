"""No test touches the network, draws on a screen, or needs a GPU unless it says so."""

import os
import re
import socket
from pathlib import Path

# Set before any test module imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# Models and tables are tiny: a second thread only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

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


# A module trains if it names the trainer, or the helper with which the tests of the strategies make theirs.
TRAINS = re.compile(r"\bFusionTrainer\b|\bstrategy_runs\b")


def pytest_collection_modifyitems(items):
    """Mark the tests of the modules that train: `pytest -m trains` runs them, for instance with other arithmetic."""
    trains = {
        path: bool(TRAINS.search(path.read_text(encoding="utf-8"))) for path in {item.path for item in items}
    }
    for item in items:
        if trains[item.path]:
            item.add_marker("trains")
