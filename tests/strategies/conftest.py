"""What makes dozens of tiny runs quick."""

import gc

import pytest


@pytest.fixture(scope="session", autouse=True)
def _light_collections():
    """Every `train()` collects garbage: that need not walk through all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than the training."""
    # Not above: `pytest -m gpu` reads this file without transformers.
    from strategy_runs import NO_PICTURES

    for name, replacement in NO_PICTURES.items():
        monkeypatch.setattr(name, replacement)
