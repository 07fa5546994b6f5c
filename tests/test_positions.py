"""An error about one row of embeddings, labels, groups or logits names the row, or the value that is wrong."""

import numpy as np
import pytest
import torch

from ecsfusion import PIDMetric, fast_pid, logit_pid, soft_joint
from ecsfusion.model.problem_types import check_labels
from ecsfusion.model.readout import Readout
from ecsfusion.pid.differentiable import cluster_centers

N = 12
LABELS = np.arange(N) % 3
ROWS = {name: np.random.default_rng(seed).normal(size=(N, 2)) for seed, name in enumerate(("image", "audio"))}


def changed(values, row, value):
    values = list(values) if isinstance(value, (str, type(None), list)) else np.array(values)
    values[row] = value
    return values


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": changed(LABELS, 5, None)}, TypeError, "with None in row 5"),
        ({"labels": changed(LABELS, 5, "cat")}, TypeError, "with 'cat' in row 5"),
        ({"labels": changed(LABELS, 5, [0, 1])}, ValueError, "first in row 5; give one class per row"),
        ({"labels": changed(LABELS, 5, -1)}, ValueError, "found -1 in row 5; remove unlabelled rows"),
        ({"labels": changed(LABELS, 5, 7), "num_classes": 3}, ValueError, "=3, found 7 in row 5"),
        ({"labels": changed(LABELS + 0.5, 5, np.nan), "bins": 2}, ValueError, "first in row 5; remove"),
        ({"groups": changed(LABELS, 5, None)}, TypeError, "got None in row 5; name the source"),
        ({"audio": changed(ROWS["audio"], 5, np.inf)}, ValueError, r"\['audio'\] .* first in row 5"),
    ],
)
def test_a_row_of_fast_pid_is_named(arguments, error, message):
    options = {"labels": LABELS, "audio": ROWS["audio"], **arguments}
    embeddings = {"image": ROWS["image"], "audio": options.pop("audio")}
    with pytest.raises(error, match=message):
        fast_pid(embeddings, **options)


def test_a_row_of_logits_and_soft_clusters_is_named():
    rows = torch.full((N, 3), 1 / 3)
    for wrong, message in ((-1.0, "as row 5 is"), (2.0, "row 5 sums to 2.67")):
        bad = rows.clone()
        bad[5, 0] = wrong
        with pytest.raises(ValueError, match=f"assignments2 .*{message}"):
            soft_joint(rows, bad, torch.as_tensor(LABELS))
    bad = rows.clone()
    bad[5, 1] = torch.nan
    with pytest.raises(ValueError, match=r"logits2 must be finite, .*first in row 5"):
        logit_pid(rows, bad, torch.as_tensor(LABELS))
    with pytest.raises(ValueError, match=r"embeddings must be finite, .*first in row 5"):
        cluster_centers(bad, 2)


def test_a_row_of_a_metric_and_a_readout_is_named():
    metric = PIDMetric(("image", "audio"))
    image = [*ROWS["image"].tolist()]
    image[5] = [1.0]
    with pytest.raises(ValueError, match=r"image is no matrix .*first in row 5"):
        metric.add_batch(image=image, audio=ROWS["audio"], references=LABELS)
    targets = torch.zeros(N, 1)
    targets[5] = torch.nan
    heads = {"image": torch.zeros(N, 1), "audio": torch.zeros(N, 1), "fused": torch.zeros(N, 1)}
    with pytest.raises(ValueError, match="NaN or infinite values, first in row 5"):
        Readout.fit(heads, targets, problem_type="regression")


def test_a_value_is_named_where_the_row_is_not_known():
    labels = torch.zeros(4, 2)
    labels[1, 1] = 1.5
    with pytest.raises(ValueError, match=r"not all between 0 and 1, found 1.5; give"):
        check_labels(labels, 2, "multi_label_classification")
