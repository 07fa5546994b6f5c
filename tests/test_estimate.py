"""fast_pid: known answers, noise, uncertainty, inputs of every kind."""

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from ecsfusion.pid.clusters import FewSamplesWarning, choose_clusters, enough_samples, estimate, pid_tensors
from ecsfusion.pid.decomposition import decompose
from ecsfusion.pid.estimate import RepeatedRowsWarning, fast_pid, fast_pids
from ecsfusion.pid.options import METHODS, EstimatorOptions

pytestmark = pytest.mark.filterwarnings("ignore:.* are few for ")

by_each_method = pytest.mark.parametrize("method", METHODS)


def embed(state, dimension, spread=0.1, random_seed=0):
    """Discrete states as points around random directions, with nuisance; (N, dimension) float32."""
    generator = np.random.default_rng(random_seed)
    centers = generator.normal(size=(int(state.max()) + 1, dimension))
    return (centers[state] + spread * generator.normal(size=(len(state), dimension))).astype(np.float32)


def atoms(pid):
    return [float(pid.redundancy), *pid.unique.tolist(), float(pid.synergy)]


def intervals(pid):
    return [pid.redundancy_interval, *pid.unique_interval, pid.synergy_interval]


def noise(kind, number, random_seed):
    generator = np.random.default_rng(random_seed)
    x = generator.normal(size=(number, 16))
    if kind == "heavy tails":
        x = generator.standard_cauchy(size=(number, 16))
    elif kind == "anisotropic":
        x = x * np.logspace(0, -3, 16)
    elif kind == "discrete":
        x = generator.integers(0, 3, (number, 2))
    elif kind == "clustered":
        x = x * 0.05 + generator.normal(size=(5, 16))[generator.integers(0, 5, number)]
    return x


@pytest.mark.parametrize("number", [40, 80])
def test_few_samples_of_a_perfect_modality_beside_noise_give_numbers(number):
    """Every cluster of the one has one label, and the clusters of the other have nothing to do with it."""
    generator = torch.Generator().manual_seed(number)
    for _ in range(5):
        noise, known = torch.randint(12, (2, number), generator=generator)
        counts = torch.zeros(12, 12, 3, dtype=torch.int64)
        counts.index_put_((noise, known, known % 3), torch.ones_like(known), accumulate=True)
        found = atoms(estimate(counts, EstimatorOptions("clusters", bootstrap=0)))
        assert np.isfinite(found).all()
        assert found[2] == max(found) > 0.9


@by_each_method
@pytest.mark.parametrize(
    "kind", ["gaussian", "heavy tails", "anisotropic", "discrete", "clustered", "same twice"]
)
@pytest.mark.parametrize(("number", "classes"), [(500, 28), (1300, 6), (5000, 2)])
def test_noise_has_no_atoms_within_the_intervals_while_the_plugin_does(kind, number, classes, method):
    first = noise(kind, number, 1)
    second = first if kind == "same twice" else noise(kind, number, 2)
    frequency = np.random.default_rng(3).dirichlet(np.full(classes, 2.0))
    labels = np.random.default_rng(4).choice(classes, number, p=frequency)
    pid = fast_pid([first, second], labels, num_classes=classes, method=method)
    for value, (low, high) in zip(atoms(pid), intervals(pid), strict=True):
        assert low <= value <= high
        assert low <= 0 <= high
        assert abs(value) < 0.15
    if kind == "gaussian" and method == "clusters":
        assert float(pid.plugin.synergy) > 5 * abs(float(pid.synergy))


@pytest.mark.parametrize("random_seed", [2, 4, 6])
def test_a_table_of_categories_says_nothing_of_noise(random_seed):
    """Equal rows that were dealt to the folds in turn made a table of 81 cells as right about other rows as its own."""
    first, second = (noise("discrete", 3000, start + random_seed) for start in (1000, 5000))
    labels = np.random.default_rng(random_seed).integers(0, 2, 3000)
    assert float(fast_pid([first, second], labels).held_out.joint_mutual_information) < 1e-3


@by_each_method
@pytest.mark.parametrize(
    ("label_of", "expected", "random_seed"),
    [
        (lambda a, b: a, (0.0, 2.0, 0.0, 0.0), 0),
        (lambda a, b: (a + b) % 4, (0.0, 0.0, 0.0, 2.0), 0),
        *((lambda a, b: a // 2 * 2 + b // 2, (0.0, 1.0, 1.0, 0.0), seed) for seed in (0, 3, 5)),
    ],
    ids=["unique", "xor", *["both unique"] * 3],
)
def test_gates_hidden_in_embeddings(label_of, expected, random_seed, method):
    generator = np.random.default_rng(random_seed)
    a, b = generator.integers(0, 4, (2, 3000))
    pid = fast_pid(
        {"image": embed(a, 64), "audio": embed(b, 32, random_seed=1)}, label_of(a, b), method=method
    )
    for value, (low, high), truth in zip(atoms(pid), intervals(pid), expected, strict=True):
        assert value == pytest.approx(truth, abs=0.05)
        assert low - 0.01 <= truth <= high + 0.01
    assert pid.names == ("image", "audio")
    assert pid.num_samples == 3000


@by_each_method
def test_redundant_modalities(method):
    generator = np.random.default_rng(0)
    state = generator.integers(0, 4, 2000)
    pid = fast_pid([embed(state, 64), embed(state, 32, random_seed=1)], state, method=method)
    np.testing.assert_allclose(atoms(pid), [2.0, 0.0, 0.0, 0.0], atol=0.05)


def test_the_error_is_at_most_half_of_the_plugins_on_tables_with_known_answers():
    generator = np.random.default_rng(5)
    ours, plugin = [], []
    for classes in (6, 28):
        for number in (600, 1500):
            for interaction in (0.0, 0.5):
                rows, columns = generator.integers(0, 5, (2, 16))
                cells = np.zeros((16, 16, classes))
                for i in range(16):
                    for j in range(16):
                        cells[i, j] = (1 - interaction) / classes
                        cells[i, j, (rows[i] + columns[j]) % classes] += interaction
                cells /= cells.sum()
                counts = torch.tensor(generator.multinomial(number, cells.ravel()).reshape(cells.shape))
                truth = np.array(atoms(decompose(cells, tolerance=1e-3)))
                pid = estimate(counts, EstimatorOptions("clusters", bootstrap=0))
                ours.append(atoms(pid) - truth)
                plugin.append(atoms(pid.plugin) - truth)
    for error, raw in zip(np.transpose(ours), np.transpose(plugin), strict=True):
        assert np.sqrt(np.mean(error**2)) <= 0.5 * np.sqrt(np.mean(raw**2))


@by_each_method
def test_the_parts_add_up(method):
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 5, (2, 800))
    pid = fast_pid([embed(a, 8), embed(b, 8)], (a * b) % 5, method=method)
    for one in (pid, pid.plugin if method == "clusters" else pid.held_out):
        total = one.redundancy + one.unique.sum() + one.synergy
        torch.testing.assert_close(total, one.joint_mutual_information, atol=2e-3, rtol=0)
        torch.testing.assert_close(one.redundancy + one.unique, one.mutual_information, atol=2e-3, rtol=0)


@by_each_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision_and_container_hardly_matter(dtype, method):
    generator = np.random.default_rng(0)
    state = generator.integers(0, 4, 900)
    first, second = embed(state, 16), embed(generator.integers(0, 4, 900), 16)
    reference = fast_pid([first, second], state, method=method)
    tensors = [torch.tensor(first).to(dtype), torch.tensor(second).to(dtype)]
    other = fast_pid(tensors, torch.tensor(state), method=method)
    np.testing.assert_allclose(atoms(other), atoms(reference), atol=0.03)


@by_each_method
def test_an_answer_is_a_function_of_its_arguments_and_leaves_the_generators_alone(method):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 400, 6))
    labels = generator.integers(0, 3, 400)
    first[:, 0] += labels
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    once = fast_pid([first, second], labels, method=method, seed=3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    torch.manual_seed(99)
    again = fast_pid([first, second], labels, method=method, seed=3)
    times = {"seconds": 0, "plugin": 0, "held_out": 0}
    assert once.to_dict() | times == again.to_dict() | times
    assert atoms(fast_pid([first, second], labels, method=method, seed=4)) != atoms(once)


def test_without_correction_the_values_are_those_of_the_table():
    generator = np.random.default_rng(0)
    counts = torch.tensor(generator.poisson(1.0, (6, 7, 3)))
    raw = estimate(counts, EstimatorOptions("clusters", correction=False))
    np.testing.assert_allclose(atoms(raw), atoms(decompose(counts, tolerance=1e-3)), atol=1e-6)
    np.testing.assert_allclose(atoms(estimate(counts).plugin), atoms(raw), atol=1e-9)
    assert raw.synergy_interval is None


def test_floors_are_where_noise_stays_below():
    above = []
    for i in range(20):
        generator = np.random.default_rng(i)
        counts = generator.multinomial(800, np.full(12 * 12 * 5, 1 / 720)).reshape(12, 12, 5)
        pid = estimate(torch.tensor(counts), EstimatorOptions("clusters", bootstrap=0, seed=i))
        above.append([*(pid.unique > pid.unique_floor).tolist(), bool(pid.synergy > pid.synergy_floor)])
    assert np.mean(above) < 0.12


@by_each_method
def test_several_labels_are_decomposed_one_by_one(method):
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 3, (2, 900))
    embeddings = {"image": embed(a, 8), "audio": embed(b, 8)}
    labels = np.stack([a, (a + b) % 3], 1)
    together = fast_pid(embeddings, labels, method=method)
    assert together.unique.shape == (2, 2)
    alone = fast_pid(embeddings, labels[:, 1], method=method)
    # A batch is solved in float32.
    np.testing.assert_allclose(atoms(together[1]), atoms(alone), atol=1e-5)
    # At this tolerance both are solved in float64.
    together, alone = (fast_pid(embeddings, y, method=method, tolerance=1e-7) for y in (labels, labels[:, 1]))
    np.testing.assert_allclose(atoms(together[1]), atoms(alone), atol=1e-9)
    assert "2 tables" in str(together)


@by_each_method
def test_a_real_target_is_binned_at_its_quantiles(method):
    generator = np.random.default_rng(0)
    target = generator.standard_cauchy(1200)
    first = np.stack([np.arctan(target), np.ones(1200)], 1)
    pid = fast_pid([first, generator.normal(size=(1200, 4))], target, bins=4, method=method)
    assert pid.num_classes == 4
    assert float(pid.unique[0]) > 1.6
    assert abs(float(pid.unique[1])) < 0.05


@by_each_method
def test_three_modalities_in_pairs_and_against_the_rest(method):
    generator = np.random.default_rng(0)
    a, b, c = generator.integers(0, 3, (3, 2500))
    named = {"image": embed(a, 8), "audio": embed(b, 8, random_seed=1), "text": embed(c, 8, random_seed=2)}
    pids = fast_pids(named, (a + b) % 3, method=method)
    assert set(pids) == {
        "image, audio",
        "image, text",
        "audio, text",
        "image, rest",
        "audio, rest",
        "text, rest",
    }
    assert float(pids["image, audio"].synergy) == pytest.approx(np.log2(3), abs=0.06)
    assert float(pids["image, rest"].synergy) == pytest.approx(np.log2(3), abs=0.15)
    assert abs(float(pids["image, text"].synergy)) < 0.06
    assert abs(float(pids["text, rest"].unique[0])) < 0.06
    assert pids["text, rest"].names == ("text", "rest")


@by_each_method
def test_an_answer_prints_serializes_and_draws(tmp_path, method):
    generator = np.random.default_rng(0)
    a = generator.integers(0, 3, 300)
    pid = fast_pid({"image": embed(a, 4), "audio": embed(a, 4)}, a, method=method)
    assert "unique image" in str(pid)
    other = "plugin" if method == "clusters" else "held_out"
    assert json.loads(json.dumps(pid.to_dict()))[other]["unique"]["audio"] >= 0
    pid.plot(str(tmp_path / "pid.png"))
    assert (tmp_path / "pid.png").stat().st_size > 1000


@by_each_method
@pytest.mark.parametrize("number", [1, 5, 30])
def test_tiny_and_constant_data_have_an_answer(number, method):
    pid = fast_pid([np.zeros((number, 3)), np.ones((number, 1))], np.arange(number) % 2, method=method)
    np.testing.assert_allclose(atoms(pid), 0.0, atol=0.01)
    assert all(torch.isfinite(interval).all() for interval in intervals(pid))


@pytest.mark.filterwarnings("default:.* are few for ")
def test_too_few_samples_are_warned_of_with_a_number():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 300, 8))
    labels = generator.integers(0, 10, 300)
    with pytest.warns(
        UserWarning, match=r"300 samples are few for 20 x 20 clusters and 10 classes: 1\d\d\d would"
    ):
        fast_pid([first, second], labels, method="clusters")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast_pid([first, second], labels, method="clusters", num_clusters=8)


def test_the_chosen_number_of_clusters_is_affordable():
    for classes, number, expected in [
        (2, 500, 18),
        (6, 1280, 21),
        (6, 200, 12),
        (101, 1280, 20),
        (6, 50_000, 24),
    ]:
        chosen = choose_clusters(torch.full((classes,), number // classes))
        assert chosen == pytest.approx(expected, abs=1)
        if 12 < chosen < 20:
            assert enough_samples(torch.ones(chosen, chosen, classes)) <= number
    first, second = np.random.default_rng(0).normal(size=(2, 400, 5))
    pid = fast_pid([first, second], np.arange(400) % 6, method="clusters", num_clusters="auto")
    assert pid.num_clusters == (choose_clusters(torch.bincount(torch.arange(400) % 6)),) * 2


GOOD = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 2


@pytest.mark.parametrize(
    ("embeddings", "labels", "options", "error", "message"),
    [
        ([GOOD], LABELS, {}, ValueError, "two modalities"),
        ([GOOD] * 3, LABELS, {}, ValueError, "fast_pids"),
        (GOOD, LABELS, {}, TypeError, "embeddings must be a mapping"),
        ([GOOD, "text"], LABELS, {}, TypeError, r"embeddings\['x2'\] must be a torch.Tensor"),
        ([GOOD, pd.DataFrame(GOOD)], LABELS, {}, TypeError, r"got DataFrame; convert it by its to_numpy\(\)"),
        ([GOOD, GOOD.tolist()], LABELS, {}, TypeError, "got list; convert it by numpy.asarray"),
        (
            [np.eye(600)] * 2,
            np.arange(600),
            {},
            ValueError,
            "labels have 600 classes in 600 rows, .* pass bins=8",
        ),
        ([GOOD, np.array([["a"]] * 20)], LABELS, {}, TypeError, r"embeddings\['x2'\] must hold real numbers"),
        ([GOOD, GOOD[:, 0]], LABELS, {}, ValueError, r"shape \(N, D\)"),
        ([GOOD, GOOD[:, :0]], LABELS, {}, ValueError, "no columns"),
        ([GOOD, GOOD[:19]], LABELS, {}, ValueError, "one row per sample"),
        ([GOOD[:0], GOOD[:0]], LABELS[:0], {}, ValueError, "no rows"),
        (
            {"a": GOOD, "b": np.where(GOOD > 1, np.nan, GOOD)},
            LABELS,
            {},
            ValueError,
            r"\['b'\] has NaN or inf",
        ),
        ([GOOD, GOOD * np.inf], LABELS, {}, ValueError, "NaN or infinite values in 20 of 20 rows"),
        ([GOOD, GOOD], LABELS[:19], {}, ValueError, "19 for 20 rows"),
        ([GOOD, GOOD], LABELS * 1.0, {}, TypeError, "bins"),
        ([GOOD, GOOD], LABELS - 1, {}, ValueError, "negative"),
        (
            [GOOD, GOOD],
            ["a", None] * 10,
            {},
            TypeError,
            "labels must be all integers or all strings, .* None in row 1",
        ),
        (
            [GOOD, GOOD],
            ["a"] * 20,
            {"bins": 2},
            TypeError,
            "labels must be real numbers to be binned, .*'a'.* in row 0",
        ),
        ([GOOD, GOOD], None, {}, TypeError, "labels must be a sequence of one class per row, got NoneType"),
        ([GOOD, GOOD], np.where(LABELS, np.nan, 1), {}, ValueError, "labels must .* NaN in row 1; remove"),
        (
            [GOOD, GOOD],
            pd.Series(pd.to_datetime(["2020-01-01"] * 20), index=[f"row {i}" for i in range(20)]),
            {},
            TypeError,
            "labels must be integers from 0, got dtype datetime64",
        ),
        ([GOOD, GOOD], np.ma.masked_equal(LABELS, 1), {}, ValueError, "labels has masked .* in row 1"),
        (
            [GOOD, np.ma.masked_equal(GOOD, GOOD[7, 1])],
            LABELS,
            {},
            ValueError,
            r"\['x2'\] has masked .* in row 7",
        ),
        ({0: GOOD, "0": GOOD, 1: GOOD}, LABELS, {}, ValueError, r"the same as text, got \[0, '0', 1\]"),
        ([GOOD, GOOD], ["a"] * 19, {}, ValueError, "labels must have one entry per row"),
        ([GOOD, GOOD], LABELS.reshape(20, 1, 1), {}, ValueError, "labels must have the shape"),
        ([GOOD, GOOD], LABELS, {"num_classes": 1}, ValueError, "below num_classes=1"),
        ([GOOD, GOOD], LABELS, {"num_clusters": 0}, ValueError, "num_clusters"),
        ([GOOD, GOOD], LABELS, {"method": "clusters", "num_components": 1.5}, ValueError, "num_components"),
        ([GOOD, GOOD], LABELS, {"method": "clusters", "permutations": 1}, ValueError, "permutations"),
        ([GOOD, GOOD], LABELS, {"method": "clusters", "bootstrap": 1}, ValueError, "bootstrap"),
        ([GOOD, GOOD], LABELS, {"tolerance": 0.0}, ValueError, "tolerance"),
        ([GOOD, GOOD], GOOD[:, 0] * np.inf, {"bins": 4}, ValueError, "labels must be finite"),
        ([GOOD, GOOD], LABELS, {"method": "magic"}, ValueError, "method must be one of"),
        ([GOOD, GOOD], LABELS, {"bootstrap": 50}, ValueError, 'bootstrap is an option of method="clusters"'),
        (
            [GOOD, GOOD],
            LABELS,
            {"bootstrap": False},
            ValueError,
            'bootstrap is an option of method="clusters"',
        ),
        ([GOOD, GOOD], LABELS, {"permutations": 16}, ValueError, "permutations is an option"),
        ([GOOD, GOOD], LABELS, {"num_components": 3}, ValueError, "num_components is an option"),
        ([GOOD, GOOD], LABELS, {"correction": False}, ValueError, "correction is an option"),
        ([GOOD, GOOD], LABELS, {"num_clusters": "auto"}, ValueError, 'num_clusters="auto" is an option'),
        ([GOOD, GOOD], LABELS, {"num_clusters": "many"}, ValueError, "num_clusters"),
        ([GOOD, GOOD], LABELS, {"groups": LABELS, "method": "clusters"}, ValueError, "groups is an option"),
        ([GOOD, GOOD], LABELS, {"groups": LABELS[:9]}, ValueError, "groups must have one entry per row"),
        ([GOOD, GOOD], LABELS, {"groups": LABELS * 0}, ValueError, "at least two sources"),
        ([GOOD, GOOD], LABELS, {"groups": LABELS * 0.5}, TypeError, "groups must be integers or strings"),
    ],
)
def test_bad_input_is_refused_with_its_name(embeddings, labels, options, error, message):
    with pytest.raises(error, match=message):
        fast_pid(embeddings, labels, **options)


def test_large_integers_are_told_apart():
    """Times and identifiers are far from zero, where float32 has steps of thousands."""
    generator = np.random.default_rng(0)
    state = generator.integers(0, 2, 400)
    near = np.stack([100 * state + generator.integers(0, 50, 400)] * 2, 1)
    far = [fast_pid([near + (1 << shift), GOOD.repeat(20, 0)], state) for shift in (0, 40)]
    assert float(far[0].mutual_information[0]) > 0.9
    np.testing.assert_allclose(atoms(far[1]), atoms(far[0]), atol=0.03)


@pytest.fixture
def _every_warning():
    """torch shows some warnings once a process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("_every_warning")
def test_arrays_of_pandas_and_numbers_of_numpy_are_taken_without_a_warning():
    """The arrays of pandas 3 may not be written to, and `labels.max() + 1` is no int."""
    rows, labels = pd.DataFrame(GOOD).to_numpy(), pd.Series(LABELS).to_numpy()
    rows.flags.writeable = labels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* are few for ")
        found = fast_pid([rows, GOOD], labels, num_classes=labels.max() + 1)
    assert atoms(found) == atoms(fast_pid([GOOD, GOOD], LABELS))


@pytest.mark.filterwarnings("ignore:.* are few for ")
def test_whole_numbers_of_pandas_objects_are_classes():
    found = fast_pid([GOOD, GOOD], pd.Series(LABELS.tolist(), dtype=object))
    assert {**found.to_dict(), "seconds": 0} == {**fast_pid([GOOD, GOOD], LABELS).to_dict(), "seconds": 0}
    target = GOOD[:, 0]
    found = fast_pid([GOOD, GOOD], pd.Series(target, dtype=object), bins=2)
    assert {**found.to_dict(), "seconds": 0} == {
        **fast_pid([GOOD, GOOD], target, bins=2).to_dict(),
        "seconds": 0,
    }


@pytest.mark.filterwarnings("ignore:.* are few for ")
def test_no_bootstrap_may_be_asked_for_where_none_is_made():
    plain, without = (fast_pid([GOOD, GOOD], LABELS, **options) for options in ({}, {"bootstrap": 0}))
    assert {**without.to_dict(), "seconds": 0} == {**plain.to_dict(), "seconds": 0}


@by_each_method
@pytest.mark.parametrize(
    ("embeddings", "labels", "options", "error", "message"),
    [
        ([GOOD, GOOD * np.inf], LABELS, {}, ValueError, "NaN or infinite values in 20 of 20 rows"),
        ([GOOD, GOOD], LABELS, {"num_classes": 1}, ValueError, "below num_classes=1"),
        ([GOOD, GOOD], LABELS - 1, {}, ValueError, "negative"),
        ([GOOD, GOOD], LABELS, {"num_clusters": 0}, ValueError, "num_clusters"),
        ([GOOD, GOOD], LABELS, {"num_clusters": 10**9}, ValueError, "num_clusters=1000000000 make a table"),
        ([GOOD, GOOD], LABELS, {"tolerance": 0.0}, ValueError, "tolerance"),
        ([GOOD, GOOD], LABELS, {"seed": "x"}, TypeError, "seed"),
    ],
)
def test_both_methods_refuse_the_same(embeddings, labels, options, error, message, method):
    with pytest.raises(error, match=message):
        fast_pid(embeddings, labels, method=method, **options)


def test_rows_that_repeat_in_one_modality_ask_for_groups():
    generator = np.random.default_rng(0)
    picture = np.arange(600) % 100
    image, text = generator.normal(size=(100, 6))[picture], generator.normal(size=(600, 4))
    labels = (picture * 7 % 3) % 2
    with pytest.warns(RepeatedRowsWarning, match=r"embeddings\['image'\] has only 100 distinct rows of 600"):
        leaking = fast_pid({"image": image, "text": text}, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedRowsWarning)
        grouped = fast_pid({"image": image, "text": text}, labels, groups=[f"picture {i}" for i in picture])
    assert float(leaking.mutual_information[0]) > 0.2
    assert float(grouped.mutual_information[0]) <= float(grouped.unique_floor[0])


def autocorrelated(rows: int, columns: int, seed: int) -> np.ndarray:
    """Noise in which each row is near the one before it."""
    steps = np.random.default_rng(seed).normal(size=(rows, columns))
    for row in range(1, rows):
        steps[row] = 0.9 * steps[row - 1] + 0.19**0.5 * steps[row]
    return steps


def test_rows_of_a_recording_that_follow_each_other_ask_for_groups():
    """Readouts recognize the stretch of a row of noise, and know its label from the rows beside it."""
    sensors = {"motion": autocorrelated(1000, 8, 0), "pulse": autocorrelated(1000, 8, 1)}
    labels = np.repeat(np.random.default_rng(2).integers(0, 3, 50), 20)
    with pytest.warns(
        RepeatedRowsWarning, match=r"embeddings\['motion'\] has rows that are like the rows beside"
    ):
        leaking = fast_pid(sensors, labels)
    assert float(leaking.held_out.mutual_information[0]) > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedRowsWarning)
        grouped = fast_pid(sensors, labels, groups=np.arange(1000) // 100)
    assert float(grouped.mutual_information[0]) <= float(grouped.unique_floor[0])


def test_rows_that_are_in_order_but_not_alike_ask_for_nothing():
    """Sorted by class, or labelled at random: neither makes a readout recognize a label."""
    labels = np.arange(600) % 3
    known = np.random.default_rng(0).normal(size=(600, 6)) + labels[:, None]
    by_class = labels.argsort(kind="stable")
    at_random = np.random.default_rng(1).integers(0, 3, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedRowsWarning)
        fast_pid([known[by_class], known[by_class, ::-1]], labels[by_class])
        # Rows that are there four times stay together in any case.
        four = np.repeat(np.arange(300), 4)
        fast_pid([known[four], known[four, ::-1]], labels[four])
        for each in (at_random, np.zeros_like(at_random)):
            fast_pid([autocorrelated(1000, 8, 0), autocorrelated(1000, 8, 1)], each)


@pytest.mark.parametrize(
    ("labels", "groups", "sentence"),
    [
        (np.arange(200), None, r"one distinct row of .*\(200 in all\): 0, 1, 2, 3, 4, \.\.\.;"),
        (np.arange(200) % 3, np.arange(200) % 3, r"one source of .*\(3 in all\): 0, 1, 2;"),
        (
            np.arange(200) % 3,
            np.minimum(np.arange(200) % 3, 1) * np.arange(200),
            r"one source of .*\(1 in all\): 0;",
        ),
    ],
)
def test_classes_of_which_nothing_can_be_known_are_said(labels, groups, sentence):
    """Their modalities tell all; what is reported is 0, and its interval cannot hold that."""
    generator = np.random.default_rng(0)
    first, second = (labels[:, None] + 0.01 * generator.normal(size=(200, 3)) for _ in range(2))
    with pytest.warns(FewSamplesWarning, match=sentence) as caught:
        pid = fast_pid({"first": first, "second": second}, labels, groups=groups)
    assert len(caught) == 1
    assert float(pid.enough_samples) >= 2 * (len(np.unique(labels if groups is None else groups)))
    # A class of one row among many is nothing to speak of.
    rare = np.append(np.arange(199) % 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast_pid([rare[:, None] + 0.1 * first, rare[:, None] + 0.1 * second], rare)


@pytest.mark.parametrize(("categories", "rows"), [(12, 3000), (20, 3000), (50, 10_000)])
def test_whether_two_categories_are_the_same_is_synergy(categories, rows):
    """Equal rows of tables of categories are no copies: what one fold has seen may be told of another."""
    generator = np.random.default_rng(categories)
    labels = np.arange(rows) % 2
    first = generator.integers(categories, size=rows)
    second = np.where(labels == 1, first, generator.integers(categories, size=rows))
    pid = fast_pid([np.eye(categories)[first], np.eye(categories)[second]], labels)
    # Half of the rows are equal, and some of the others by chance.
    equal = 0.5 + 0.5 / categories
    paired = 0.5 / equal
    left = -paired * math.log2(paired) - (1 - paired) * math.log2(1 - paired)
    truth = 1 - equal * left
    assert float(pid.synergy) == pytest.approx(truth, abs=0.06)
    low, high = pid.synergy_interval.tolist()
    assert low - 0.03 <= truth <= high + 0.03
    assert pid.num_groups is None


def test_few_groups_are_said_where_the_result_is_read():
    """600 rows of 40 groups ask for some hundred groups, which are fewer than the rows."""
    generator = np.random.default_rng(0)
    group = np.arange(600) % 40
    labels = group % 4
    first, second = (
        2.0 * (labels[:, None] == np.arange(20)) + generator.normal(size=(40, 20))[group] for _ in range(2)
    )
    pid = fast_pid([first, second], labels, groups=group)
    assert 40 < float(pid.enough_samples) < 600
    assert pid.num_groups == pid.to_dict()["num_groups"] == 40
    assert str(pid).startswith("PID in bits, 600 samples of 40 groups, ")
    assert f"few groups: {float(pid.enough_samples):.3g} would settle" in str(pid)


@pytest.mark.parametrize("number", [300, 17_000])
def test_the_probe_compiles_as_one_graph(number):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (number,), generator=generator)
    rows = {name: torch.randn(number, 6, generator=generator) for name in "ab"}
    options = {"num_classes": 3, "num_clusters": 4, "num_components": 3, "permutations": 3, "bootstrap": 3}
    compiled = torch.compile(lambda x, y: pid_tensors(x, y, **options), fullgraph=True, backend="eager")
    found, expected = compiled(rows, labels), pid_tensors(rows, labels, **options)
    torch.testing.assert_close(found.corrected.synergy_interval, expected.corrected.synergy_interval)
    torch.testing.assert_close(found.plugin.unique, expected.plugin.unique)
    assert found.counted.tolist() == [float(number)]


def test_rows_and_labels_that_cannot_be_counted_are_left_out_and_reported():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (400,), generator=generator)
    rows = {name: torch.randn(400, 6, generator=generator) for name in "ab"}
    rows["a"][3], rows["b"][7, 3] = torch.nan, torch.inf
    labels[10], labels[11] = -1, 3
    found = pid_tensors(rows, labels, num_classes=3, num_clusters=5, bootstrap=0)
    assert found.counted.tolist() == [396.0]
    assert bool(torch.isfinite(found.corrected.synergy).all())
