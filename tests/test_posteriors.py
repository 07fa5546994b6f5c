"""fast_pid by held-out posteriors: what must not change the answer, and inputs at the edge."""

import numpy as np
import pytest
import torch
from known_answers import assert_consistent, intervals, values, widths

from benchmarks.known_truth.problems import find
from ecsfusion import fast_pid
from ecsfusion.pid.clusters import FewSamplesWarning
from ecsfusion.pid.decomposition import decompose
from ecsfusion.pid.estimate import RepeatedRowsWarning, fast_pids
from ecsfusion.pid.head_posteriors import head_pids

pytestmark = pytest.mark.filterwarnings("ignore:.*are few for these embeddings")

ROWS = 800


@pytest.fixture(scope="module")
def drawn():
    """Four Gaussian classes: all atoms but synergy are well above zero."""
    return find("gaussian-4-d16").draw(ROWS, 1)


@pytest.fixture(scope="module")
def base(drawn):
    first, second, labels = drawn
    return fast_pid([first, second], labels)


def affine(rows, generator):
    """Rows under an invertible map of condition 10, and an offset."""
    columns = rows.shape[1]
    left, right = (torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0] for _ in range(2))
    offset = 5 * torch.randn(columns, generator=generator)
    return rows @ (left * torch.logspace(0, 1, columns)) @ right + offset


def assert_near(found, base, share=0.5):
    """No atom moves by more than a share of its interval, no information by more than that of an atom's."""
    moved = (values(found) - values(base)).abs()
    assert (moved[3:] <= share * widths(base)).all(), (moved, widths(base))
    assert (moved[:3] <= share * widths(base).amax()).all(), (moved, widths(base))


def assert_same(found, base):
    assert torch.equal(values(found), values(base))
    assert torch.equal(intervals(found), intervals(base))
    assert torch.equal(values(found.held_out), values(base.held_out))
    assert torch.equal(found.enough_samples, base.enough_samples)


@pytest.mark.parametrize("order", ["again", "shuffled", "reversed", "by class"])
def test_the_order_of_rows_changes_nothing(drawn, base, order):
    first, second, labels = drawn
    place = {
        "again": torch.arange(ROWS),
        "shuffled": torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)),
        "reversed": torch.arange(ROWS).flip(0),
        "by class": labels.argsort(stable=True),
    }[order]
    assert_same(fast_pid([first[place], second[place]], labels[place]), base)


def test_the_memory_layout_and_the_kind_of_array_change_nothing(drawn, base):
    first, second, labels = drawn
    transposed = [rows.T.contiguous().T for rows in (first, second)]
    assert not transposed[0].is_contiguous()
    assert_same(fast_pid(transposed, labels), base)
    backwards = [rows.numpy()[::-1] for rows in (first, second)]
    assert_same(fast_pid(backwards, labels.numpy()[::-1].tolist()), base)
    wide = torch.randn(ROWS, 40)
    wide[:, 3:35:2] = first
    assert_same(fast_pid({"a": wide[:, 3:35:2], "b": second}, labels.int()), base)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, g: affine(x, g),
        lambda x, g: x * torch.logspace(-3, 3, x.shape[1]) + torch.randn(x.shape[1], generator=g),
        lambda x, g: torch.cat([x, x[:, :1]], 1),
        lambda x, g: torch.cat([x, x], 1),
        lambda x, g: torch.cat([x, torch.full((len(x), 3), 7.0)], 1),
        lambda x, g: x.double(),
        lambda x, g: x.half(),
        lambda x, g: x.bfloat16(),
    ],
    ids=[
        "affine",
        "units",
        "column twice",
        "all twice",
        "constant columns",
        "float64",
        "float16",
        "bfloat16",
    ],
)
def test_what_an_embedding_looks_like_moves_no_atom_beyond_its_interval(drawn, base, change):
    first, second, labels = drawn
    generator = torch.Generator().manual_seed(2)
    assert_near(fast_pid([change(first, generator), change(second, generator)], labels), base, share=1.0)


def test_nuisance_columns_move_no_atom_beyond_its_interval(drawn, base):
    first, second, labels = drawn
    generator = torch.Generator().manual_seed(3)
    noisy = [torch.cat([x, 10 * torch.randn(ROWS, 8, generator=generator)], 1) for x in (first, second)]
    assert_near(fast_pid(noisy, labels), base, share=1.0)


def test_swapped_modalities_swap_their_uniqueness(drawn, base):
    first, second, labels = drawn
    found = values(fast_pid([second, first], labels))[[1, 0, 2, 3, 5, 4, 6]]
    # The folds are the same, and so is what each side knows alone.
    assert torch.equal(found[:2], values(base)[:2])
    moved = (found - values(base)).abs()
    assert (moved[3:] <= 0.5 * widths(base)).all(), (moved, widths(base))
    assert (moved[:3] <= 0.5 * widths(base).amax()).all(), (moved, widths(base))


@pytest.mark.parametrize("with_groups", [False, True], ids=["by content", "by groups"])
def test_renamed_classes_change_nothing(drawn, with_groups):
    first, second, labels = drawn
    groups = torch.arange(ROWS) // 3 if with_groups else None
    base = fast_pid([first, second], labels, groups=groups)
    assert_same(fast_pid([first, second], torch.tensor([2, 0, 3, 1])[labels], groups=groups), base)


@pytest.mark.parametrize("kind", [list, np.asarray, lambda words: np.asarray(words, dtype=object)])
def test_labels_may_be_the_names_of_their_classes(drawn, base, kind):
    first, second, labels = drawn
    words = [("pear", "fig", "plum", "apple")[label] for label in labels.tolist()]
    assert_same(fast_pid([first, second], kind(words)), base)
    both = [[word, f"{label % 2}"] for word, label in zip(words, labels.tolist(), strict=True)]
    found = fast_pid([first, second], kind(both))
    expected = fast_pid([first, second], torch.stack([labels, labels % 2], 1))
    for name in ("redundancy", "unique", "synergy", "joint_mutual_information"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_warning_names_classes_by_their_names():
    first = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    words = [[f"kind {i % 3}", f"row {i:03}"] for i in range(200)]
    with pytest.warns(
        FewSamplesWarning, match=r"^labels\[:, 1\] have only .* \(200 in all\): row 000, row 001"
    ):
        fast_pid([first, first.flip(0)], words)


def test_classes_that_do_not_occur_change_nothing(drawn, base):
    first, second, labels = drawn
    for names, number in ((torch.arange(4), 7), (torch.tensor([0, 3, 4, 9]), 12)):
        assert_same(fast_pid([first, second], names[labels], num_classes=number), base)


@pytest.mark.parametrize("with_groups", [False, True], ids=["by content", "by groups"])
def test_rows_that_stand_twice_tell_nothing_more(drawn, base, with_groups):
    first, second, labels = drawn
    groups = [f"row {i % ROWS}" for i in range(2 * ROWS)] if with_groups else None
    twice = fast_pid([first.repeat(2, 1), second.repeat(2, 1)], labels.repeat(2), groups=groups)
    # Some steps look at every second row where there are more than 1 024.
    assert_near(twice, base, share=0.4)
    # The rows of a group count as one: intervals are no narrower.
    assert (widths(twice) >= 0.6 * widths(base)).all()
    assert (widths(twice) <= 1.5 * widths(base)).all()


def test_groups_of_any_name_and_number_give_the_same(drawn):
    first, second, labels = drawn
    number = torch.arange(ROWS) // 4
    found = fast_pid([first, second], labels, groups=number)
    assert_same(fast_pid([first, second], labels, groups=[f"s{int(i)}" for i in number]), found)
    assert_same(fast_pid([first, second], labels, groups=10**6 - 3 * number.numpy()), found)


def test_groups_that_repeat_their_label_widen_the_intervals():
    """50 sources of 20 rows, each with a place of its own: 1 000 rows are only 50 observations."""
    generator = torch.Generator().manual_seed(4)
    labels = (torch.arange(50) % 2).repeat_interleave(20)
    places = torch.randn(50, 4, generator=generator).repeat_interleave(20, 0)
    first = places + torch.nn.functional.one_hot(labels, 4) + 0.3 * torch.randn(1000, 4, generator=generator)
    second = torch.randn(1000, 4, generator=generator)
    groups = torch.arange(50).repeat_interleave(20)
    grouped = fast_pid([first, second], labels, groups=groups)
    alone = fast_pid([first, second], labels)
    assert widths(grouped)[1] > 1.5 * widths(alone)[1]
    # Rows of one place prove each other's label.
    assert grouped.held_out.mutual_information[0] < alone.held_out.mutual_information[0] - 0.1


def test_repeated_rows_of_one_modality_are_named_in_a_warning():
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(400) % 2
    picture = torch.randn(400, 6, generator=generator).repeat(2, 1)
    caption = torch.randn(800, 4, generator=generator)
    with pytest.warns(RepeatedRowsWarning, match="'picture'"):
        fast_pid({"picture": picture, "caption": caption}, labels.repeat(2))


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_in_one_process_agree_to_the_last_bit(threads):
    labels = BITS[:60]
    first, second = signal(labels, 3, 3), signal(labels, 4, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = [fast_pid([first, second], labels) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert_same(found[0], found[1])


def test_the_global_generators_are_neither_used_nor_changed(drawn, base):
    first, second, labels = drawn
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    assert_same(fast_pid([first, second], labels), base)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


# ---- edges ----


def signal(labels, columns, random_seed, strength=2.0):
    """Rows around a corner for each class, (N, columns) float32."""
    generator = np.random.default_rng(random_seed)
    corners = strength * np.eye(max(columns, int(labels.max()) + 1))[labels][:, :columns]
    return (corners + generator.normal(size=(len(labels), columns))).astype(np.float32)


BITS = np.random.default_rng(0).integers(0, 2, 200)
TEN = np.random.default_rng(1).integers(0, 10, 200)
NOISE = np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)

EDGES = {
    **{f"{n} rows": (NOISE[:n], NOISE[-n:], np.arange(n) % 2, {}) for n in (1, 2, 5, 7)},
    "one class": (NOISE, NOISE[::-1], np.zeros(200, int), {}),
    "one class of three": (NOISE, NOISE[::-1], np.zeros(200, int), {"num_classes": 3}),
    "a class of one row": (NOISE, NOISE[::-1], (np.arange(200) == 9).astype(int), {}),
    "a class per row": (NOISE[:40], NOISE[40:80], np.arange(40), {}),
    "classes without rows": (signal(BITS, 3, 3), signal(BITS, 4, 4), 4 * BITS, {"num_classes": 9}),
    "all rows equal": (np.ones((50, 3), np.float32), np.ones((50, 2), np.float32), BITS[:50], {}),
    "all zeros": (np.zeros((200, 3), np.float32), np.zeros((200, 2), np.float32), BITS, {}),
    "zeros beside signal": (np.zeros((200, 3), np.float32), signal(BITS, 3, 5), BITS, {}),
    "more columns than rows": (signal(BITS[:60], 100, 6), signal(BITS[:60], 150, 7), BITS[:60], {}),
    "two sources": (signal(BITS, 3, 3), signal(BITS, 4, 4), BITS, {"groups": np.arange(200) % 2}),
    "a source per class": (signal(BITS, 3, 3), signal(BITS, 4, 4), BITS, {"groups": BITS}),
    "a source per class of ten": (signal(TEN, 9, 3), signal(TEN, 9, 4), TEN, {"groups": TEN}),
    "one cluster": (signal(BITS, 3, 3), signal(BITS, 4, 4), BITS, {"num_clusters": 1}),
    "more clusters than rows": (
        signal(BITS[:50], 3, 3),
        signal(BITS[:50], 4, 4),
        BITS[:50],
        {"num_clusters": 200},
    ),
    "real target": (signal(BITS, 3, 3), signal(BITS, 4, 4), BITS + 0.1 * NOISE[:, 0], {"bins": 4}),
    "one row in 1e30": (
        np.concatenate([signal(BITS, 3, 3)[:-1], np.full((1, 3), 1e30, np.float32)]),
        signal(BITS, 4, 4),
        BITS,
        {},
    ),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges_give_consistent_numbers(edge):
    first, second, labels, options = EDGES[edge]
    assert_consistent(fast_pid([first, second], labels, **options))


def test_a_label_of_one_class_and_embeddings_of_zeros_tell_exactly_nothing():
    for edge in ("1 rows", "one class", "one class of three", "all rows equal", "all zeros"):
        first, second, labels, options = EDGES[edge]
        pid = fast_pid([first, second], labels, **options)
        assert (values(pid) == 0).all(), edge


def test_a_modality_of_zeros_has_no_part_in_what_the_other_knows():
    first, second, labels, _ = EDGES["zeros beside signal"]
    information = values(fast_pid([first, second], labels))
    assert information[1] > 0.4
    assert information[0] == 0
    torch.testing.assert_close(information[5], information[1], rtol=0, atol=0.02)
    assert information[6] < 0.03


@pytest.mark.parametrize("factor", [1e-38, 1e-30, 1e30, 1e37])
def test_units_near_the_ends_of_float32_tell_the_same(factor):
    first, second = signal(BITS, 3, 3), signal(BITS, 4, 4)
    base = values(fast_pid([first, second], BITS))
    found = values(fast_pid([first * np.float32(factor), second], BITS))
    assert base[0] > 0.4
    torch.testing.assert_close(found, base, rtol=0, atol=0.15)


@pytest.mark.parametrize(("kind", "factor"), [(np.float64, 1e200), (np.float64, 1e-200), (np.float32, 4e37)])
def test_units_beyond_the_precision_that_is_computed_in_tell_the_same(kind, factor):
    first, second = signal(BITS, 3, 3), signal(BITS, 4, 4)
    scaled = first.astype(kind) * kind(factor)
    # Other values are dealt to other folds: of several deals.
    found, base = (
        torch.stack([values(fast_pid([rows, second], BITS, seed=seed)) for seed in range(3)]).mean(0)
        for rows in (scaled, first)
    )
    torch.testing.assert_close(found, base, rtol=0, atol=0.08)


@pytest.mark.parametrize("far", [1e30, 3e38, 1e39, 1e300])
def test_a_value_beyond_float32_is_an_outlier_like_any_other(far):
    first, second = signal(BITS, 3, 3).astype(np.float64), signal(BITS, 4, 4)
    base = fast_pid([first, second], BITS)
    first[5, 1] = far
    found = fast_pid([first, second], BITS)
    assert_consistent(found)
    assert_near(found, base, share=1.0)


def test_of_several_labels_the_one_with_classes_that_cannot_be_known_is_named():
    first = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.stack([torch.arange(200) % 3, torch.arange(200)], 1)
    with pytest.warns(
        FewSamplesWarning, match=r"^labels\[:, 1\] have only one distinct row .* \(200 in all\): 0, 1"
    ):
        fast_pid([first, first.flip(0)], labels)


@pytest.mark.parametrize("classes", [2, 4, 200])
def test_classes_that_no_readout_has_seen_are_not_known_by_their_absence(classes):
    """All rows of a class stand in one fold, so that it is never among those of its readout."""
    labels = np.arange(200) % classes
    first = NOISE if classes == 200 else signal(labels, 3, 3)
    pid = fast_pid([first, NOISE[::-1]], labels, groups=labels)
    assert (values(pid.held_out) == 0).all()
    assert (values(pid) == 0).all()


def test_every_label_of_several_is_decomposed_as_alone():
    labels = np.stack([BITS, TEN % 3], 1)
    first, second = signal(BITS, 3, 3), signal(TEN % 3, 4, 4)
    pid = fast_pid([first, second], labels, num_classes=3)
    assert_consistent(pid)
    assert pid.redundancy.shape == (2,)
    for column in range(2):
        alone = fast_pid([first, second], labels[:, column], num_classes=3)
        torch.testing.assert_close(values(pid[column]), values(alone), rtol=0, atol=1e-9)


def test_three_modalities_give_the_pairs_and_the_rest():
    rows = {"a": signal(BITS, 3, 3), "b": NOISE, "c": signal(BITS, 2, 5)}
    pids = fast_pids(rows, BITS)
    assert list(pids) == ["a, b", "a, c", "b, c", "a, rest", "b, rest", "c, rest"]
    for pid in pids.values():
        assert_consistent(pid)
    # A modality knows the same in every pair.
    assert pids["a, b"].mutual_information[0] == pids["a, c"].mutual_information[0]
    assert pids["b, rest"].unique[0] < 0.05
    assert pids["b, rest"].mutual_information[1] > 0.7


# ---- cases of users ----


def test_a_flag_keeps_its_bit_beside_columns_of_large_units():
    """A table as it comes: a flag that is the label, an age, an income, a zip code, a time."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 1500)
    columns = [
        labels,
        generator.normal(40, 12, 1500),
        generator.lognormal(10.5, 0.6, 1500),
        generator.integers(10_000, 99_999, 1500),
        generator.uniform(1.6e9, 1.7e9, 1500),
    ]
    table = np.stack(columns, 1).astype(np.float32)
    for number in (1, 2, 5):
        pid = fast_pid({"table": table[:, :number], "image": signal(labels, 8, 1, 1.0)}, labels)
        assert 0.98 < float(pid.mutual_information[0]) <= 1.0
        assert float(pid.unique[0]) > 0.5
        low, high = pid.unique_interval[0].tolist()
        assert high - low < 0.25


@pytest.mark.parametrize("spread", [0.0, 10.0])
def test_nuisance_directions_do_not_hide_the_leader(spread):
    """Four classes in three directions beside 24 directions of any spread; the other modality knows their parity."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (1500,), generator=generator)
    means = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0], [-3.0, -3, -3]])
    signals = means[labels] + torch.randn(1500, 3, generator=generator)
    nuisance = spread * torch.randn(1500, 24, generator=generator)
    second = 2 * torch.randn(2, 8, generator=generator)[labels % 2]
    second = second + torch.randn(1500, 8, generator=generator)
    pid = fast_pid([torch.cat([signals, nuisance], 1), second], labels)
    assert 1.8 < float(pid.mutual_information[0]) < 2.0
    assert float(pid.unique[0]) > float(pid.unique[1]) + 0.5


# ---- faults that are known ----


@pytest.mark.parametrize(
    "label_of",
    [lambda a, b: a ^ b, lambda a, b: a, lambda a, b: a & b, lambda a, b: 2 * a + b],
    ids=["xor", "a", "and", "both"],
)
def test_modalities_of_one_bit_each_have_the_atoms_of_their_table(label_of):
    a, b = np.random.default_rng(1).integers(0, 2, (2, 1000))
    labels = label_of(a, b)
    counts = torch.zeros(2, 2, 4, dtype=torch.float64)
    np.add.at(counts.numpy(), (a, b, labels), 1 / 1000)
    truth = decompose(counts)
    expected = torch.stack([truth.redundancy, *truth.unique, truth.synergy])
    torch.testing.assert_close(
        values(fast_pid([a[:, None], b[:, None]], labels))[3:], expected, rtol=0, atol=0.03
    )


def test_one_row_in_other_units_does_not_silence_its_modality():
    first, second, labels, _ = EDGES["one row in 1e30"]
    assert float(fast_pid([first, second], labels).mutual_information[0]) > 0.4


def test_an_offset_that_float64_resolves_changes_nothing():
    first, second = signal(BITS, 3, 3).astype(np.float64), signal(BITS, 4, 4)
    assert float(fast_pid([first + 1e9, second], BITS).mutual_information[0]) > 0.4


def test_a_few_rows_of_noise_prove_nothing():
    for n in (7, 12):
        for random_seed in range(4):
            x = np.random.default_rng(random_seed).normal(size=(n, 5)).astype(np.float32)
            pid = fast_pid([x[:, :3], x[:, 3:]], np.arange(n) % 2)
            assert float(pid.held_out.joint_mutual_information) < 0.1


def test_the_rest_knows_no_less_than_its_best_member_whatever_noise_is_beside_it():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (240,), generator=generator)
    means = 0.6 * torch.randn(4, 16, generator=generator)
    first, second = (means[labels] + torch.randn(240, 16, generator=generator) for _ in range(2))
    noise = 30 * torch.randn(240, 400, generator=generator)
    found = fast_pids({"a": first, "b": second, "noise": noise}, labels)
    for pid in (found["a, rest"], found["a, rest"].held_out):
        pair = found["a, b"] if pid.held_out is not None else found["a, b"].held_out
        assert float(pid.mutual_information[1]) >= float(pair.mutual_information[1])
        assert float(pid.redundancy) == pytest.approx(float(pair.redundancy), abs=0.1)
    # And what the rest of the noise knows is not below either of two that do know.
    both, single = found["noise, rest"].held_out, found["a, b"].held_out
    assert float(both.mutual_information[1]) >= float(single.mutual_information.max())


def test_by_heads_the_rest_knows_no_less_than_its_best_member():
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(3, (60,), generator=generator)
        logits = {name: 0.5 * torch.randn(60, 3, generator=generator) for name in ("a", "b", "noise")}
        for name in ("a", "b"):
            logits[name][torch.arange(60), labels] += 1.0
        pairs = [(name, "rest") for name in logits]
        found = head_pids(logits, None, labels, pairs)
        alone = {name: float(found[f"{name}, rest"].mutual_information[0]) for name in logits}
        for name in logits:
            rest = float(found[f"{name}, rest"].mutual_information[1])
            assert rest >= max(bits for other, bits in alone.items() if other != name) - 1e-9
