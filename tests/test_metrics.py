"""The evaluate metrics, instantiated without a network."""

import numpy as np
import pytest

from ecsfusion.metrics import ModalityAccuracy, PIDMetric
from ecsfusion.pid.estimate import fast_pid

pytestmark = pytest.mark.filterwarnings("ignore:.* are few for ")


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 240)
    image = generator.normal(size=(240, 5)).astype(np.float32)
    image[:, 0] += 4 * labels
    return {"image": image, "audio": generator.normal(size=(240, 4)).astype(np.float32)}, labels


@pytest.mark.parametrize(
    "options",
    [
        {"bootstrap": 0},
        {"groups": np.arange(240) // 2},
        {"method": "clusters", "num_clusters": 6, "bootstrap": 0},
    ],
    ids=["posteriors", "groups", "clusters"],
)
def test_batches_add_up_to_fast_pid(data, tmp_path, options):
    embeddings, labels = data
    metric = PIDMetric(("image", "audio"), cache_dir=str(tmp_path))
    for part in np.array_split(np.arange(240), 3):
        metric.add_batch(**{name: rows[part] for name, rows in embeddings.items()}, references=labels[part])
    found = metric.compute(**options)
    expected = fast_pid(embeddings, labels, **options).to_dict()
    assert found["unique"] == pytest.approx(expected["unique"])
    assert found["synergy"] == pytest.approx(expected["synergy"])
    assert found["unique"]["image"] > 0.8


def test_three_modalities_by_pair(data, tmp_path):
    embeddings, labels = data
    metric = PIDMetric(("image", "audio", "text"), cache_dir=str(tmp_path))
    found = metric.compute(**embeddings, text=embeddings["audio"], references=labels)
    assert set(found) >= {"image, audio", "text, rest"}


def test_accuracy_per_modality(data, tmp_path):
    _, labels = data
    right, wrong = np.eye(3)[labels], np.eye(3)[(labels + 1) % 3]
    metric = ModalityAccuracy(("image", "audio"), cache_dir=str(tmp_path))
    found = metric.compute(image=right, audio=wrong, references=labels)
    assert found == {"accuracy_image": 1.0, "accuracy_audio": 0.0}


@pytest.mark.parametrize("names", [(), ("image", "image"), ("image", "references")])
def test_names_are_checked(names):
    with pytest.raises(ValueError, match="modalities must be different names"):
        PIDMetric(names)


def test_batches_of_another_width_are_named(data, tmp_path):
    embeddings, labels = data
    metric = PIDMetric(("image", "audio"), cache_dir=str(tmp_path))
    metric.add_batch(**embeddings, references=labels)
    metric.add_batch(**{**embeddings, "audio": embeddings["audio"][:, :2]}, references=labels)
    with pytest.raises(ValueError, match=r"audio is no matrix .*, first in row 240; give rows of one length"):
        metric.compute()


def test_what_is_far_from_zero_is_told_apart(data, tmp_path):
    embeddings, labels = data
    far = {name: rows.astype(np.float64) + 1e9 for name, rows in embeddings.items()}
    found = PIDMetric(("image", "audio"), cache_dir=str(tmp_path)).compute(**far, references=labels)
    assert found["unique"]["image"] > 0.8
