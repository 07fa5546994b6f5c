"""The protocol of the comparison: what is chosen by what, what is trained, what a run costs, and what is reported."""

import json
import sys
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

# The benchmarks are scripts, not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import compare
from environment import COMMIT
from protocol import training
from protocol.methods import (
    AVERAGE,
    BEST_SINGLE,
    CALIBRATED,
    CALIBRATED_ENSEMBLE,
    CONTROLS,
    FUSED,
    METHODS,
    ONE_EPOCH,
    SOUP,
    STACKING,
    STRONGEST,
    answers_of,
)
from protocol.report import interval, method_table, paired, verdicts, write_report
from protocol.results import (
    Run,
    chosen_setting,
    method_lines,
    methods_path,
    read_lines,
    runs_path,
    settings_of,
)
from protocol.starts import starts
from protocol.training import Snapshots, answers, judge, modality_steps, training_arguments
from suites import SUITES, Split, Suite
from tiny_suites import CLASSES, NAMES, WIDTH, patterns

from ecsfusion import FusionForClassification

ROWS, BATCH, EPOCHS = 64, 16, 2
STEPS = EPOCHS * ROWS // BATCH
READOUTS = (FUSED, *NAMES, AVERAGE, BEST_SINGLE, CALIBRATED_ENSEMBLE, CALIBRATED, ONE_EPOCH)
ON_DEMAND = (STACKING, SOUP)


def split(rows: int, seed: int) -> Split:
    """A pattern for each class, under little noise on the left and more on the right."""
    return patterns(rows, seed, (0.5, 1.5))


TINY = Suite(
    name="tiny",
    description="Two patterns: the right one is weaker.",
    num_classes=CLASSES,
    train=split(ROWS, 0),
    validation=split(60, 1),
    test=split(60, 2),
    build_encoders=lambda: {name: nn.Linear(WIDTH, 5) for name in NAMES},
    epochs=EPOCHS,
    batch_size=BATCH,
    learning_rates=(1e-2, 1e-1),
    sgd_learning_rates=(0.03, 0.1),
)


class HereAndNow:
    """In place of a pool of processes: runs at once, in this process; `started` are the runs."""

    def __init__(self) -> None:
        self.started: list[Run] = []

    def __call__(self, *args, **kwargs):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, function, suite, run):
        self.started.append(run)
        future, stdout = Future(), sys.stdout
        try:
            future.set_result(function(suite, run))
        except Exception as error:
            # A pool does the same.
            future.set_exception(error)
        finally:
            # The function may replace it, because it expects a process of its own.
            sys.stdout = stdout
        return future


def settings(method: str, optimizer: str = "adamw"):
    return settings_of(METHODS[method], TINY, optimizer)


def run_line(setting, seed=0, validation=0.5, test=0.5, **changes):
    """A line of a run; accuracies are one number for all readouts, or numbers by readout."""
    by_readout = [
        {name: value.get(name, 0.5) if isinstance(value, dict) else value for name in (*READOUTS, *ON_DEMAND)}
        for value in (validation, test)
    ]
    return {
        "suite": "tiny",
        "description": TINY.description,
        **Run(setting, seed).to_json(),
        "validation": by_readout[0],
        "test": by_readout[1],
        "modality_steps": 2 * STEPS,
        "seconds": 1.0,
        "trajectory": trajectory(seed),
        "versions": {"torch": "2"},
        "processor": "a processor",
        "device": "cpu",
        "threads": 1,
        **changes,
    }


def trajectory(seed: int) -> dict[str, list]:
    """Three probes, the last of stage 2."""
    columns = {"step": [2, 4, 8], "stage": [1, 1, 2], "paused": [[], ["left"], []]}
    columns |= {key: [0.1, 0.2 + seed, 0.3] for key in ("redundancy", "synergy")}
    for name in NAMES:
        columns |= {f"unique_{name}": [0.5, 0.4, 0.3], f"accuracy_{name}": [0.5, 0.6 + 0.1 * seed, 0.8]}
    return columns


# ---- what validation chooses ----


def test_a_setting_is_chosen_by_the_answer_of_the_method_on_validation():
    slow, fast = settings("best-single")
    assert settings("calibrated-ensemble") == [slow, fast]
    lines = [
        # The rows of test, and the other answers, point the other way.
        run_line(slow, validation={BEST_SINGLE: 0.8, CALIBRATED_ENSEMBLE: 0.6}, test=0.1),
        run_line(fast, validation={BEST_SINGLE: 0.7, CALIBRATED_ENSEMBLE: 0.9}, test=0.9),
    ]
    assert chosen_setting(lines, METHODS["best-single"], [slow, fast], 0) == slow
    assert chosen_setting(lines, METHODS["calibrated-ensemble"], [slow, fast], 0) == fast


def test_the_first_seed_chooses():
    slow, fast = settings("joint")
    lines = [
        run_line(slow, 3, validation=0.6),
        run_line(fast, 3, validation=0.7),
        run_line(slow, 4, validation=0.9),
        run_line(fast, 4, validation=0.1),
    ]
    assert chosen_setting(lines, METHODS["joint"], [slow, fast], 3) == fast
    assert chosen_setting(lines, METHODS["joint"], [slow, fast], 4) == slow


def test_of_equals_the_earlier_is_chosen():
    # There are two orders and two rates.
    tried = settings("sequential")
    assert len(tried) == 4
    lines = [
        run_line(setting, validation=value)
        for setting, value in zip(tried, (0.5, 0.7, 0.7, 0.6), strict=True)
    ]
    for given in (lines, lines[::-1]):
        assert chosen_setting(given, METHODS["sequential"], tried, 0) == tried[1]


def test_nothing_is_chosen_before_all_settings_were_tried():
    slow, fast = settings("joint")
    assert chosen_setting([run_line(fast)], METHODS["joint"], [slow, fast], 0) is None
    lines = [run_line(slow), run_line(fast, seed=1)]
    assert chosen_setting(lines, METHODS["joint"], [slow, fast], 0) is None
    assert method_lines(lines, [METHODS["joint"]], TINY, "adamw", 0) == []


def test_a_line_for_each_method_and_seed_of_what_was_chosen():
    slow, fast = settings("ensemble")
    lines = [
        run_line(slow, 0, validation=0.6),
        run_line(fast, 0, validation={AVERAGE: 0.7, BEST_SINGLE: 0.5}, test={AVERAGE: 0.71}),
        run_line(slow, 1, test={BEST_SINGLE: 0.62}),
        run_line(fast, 1, test={AVERAGE: 0.72}),
    ]
    lines_by_method = method_lines(lines, [METHODS["ensemble"], METHODS["best-single"]], TINY, "adamw", 0)
    assert [(each["method"], each["seed"], each["test_accuracy"]) for each in lines_by_method] == [
        ("ensemble", 0, 0.71),
        ("ensemble", 1, 0.72),
        ("best-single", 0, 0.5),
        ("best-single", 1, 0.62),
    ]
    assert all(each["answer"] == METHODS[each["method"]].answer for each in lines_by_method)


def test_a_run_is_what_its_line_says():
    for method in METHODS.values():
        for optimizer in ("adamw", "sgd"):
            for setting in settings_of(method, TINY, optimizer):
                again = json.loads(json.dumps(run_line(setting, 2)))
                assert Run.of_line(again) == Run(setting, 2)
                assert setting.learning_rate in (
                    TINY.learning_rates if optimizer == "adamw" else TINY.sgd_learning_rates
                )


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("peak-synergy", {"rule": "peak-synergy"}), ("not-paused", {"own_rule": "not-paused"})],
)
def test_lines_from_before_a_rule_was_a_strategy_are_read(method, arguments):
    setting = settings(method)[0]
    assert setting.strategy == method
    line = run_line(setting)
    line["setting"] |= {"strategy": "two-stage", "arguments": json.dumps(arguments)}
    assert Run.of_line(line) == Run(setting, 0)


def test_all_recorded_runs_of_the_repository_are_of_present_methods():
    present = {(method.strategy, json.dumps(method.arguments)) for method in METHODS.values()}
    lines = [line for path in (compare.RESULTS / "runs").glob("*.jsonl") for line in read_lines(path)]
    recorded = {(run.setting.strategy, run.setting.arguments) for run in map(Run.of_line, lines)}
    assert recorded <= present


# ---- what is trained ----


@pytest.fixture
def pool(monkeypatch):
    """Trains nothing: each run is a made-up line."""
    monkeypatch.setitem(SUITES, "tiny", lambda: TINY)
    monkeypatch.setattr(compare, "train_one", lambda suite, run: run_line(run.setting, run.seed))
    return HereAndNow()


def test_methods_that_share_a_run_train_it_once(pool, tmp_path):
    methods = [METHODS[name] for name in ("best-single", "ensemble", "calibrated-ensemble", "stage-1-only")]
    comparison = compare.Comparison("tiny", "adamw", tmp_path)
    compare.train_all(pool, [comparison], methods, range(3))
    assert pool.started[:2] == [Run(setting, 0) for setting in settings("ensemble")]
    # All are equally good, so the first rate.
    assert pool.started[2:] == [Run(settings("ensemble")[0], seed) for seed in (1, 2)]


def test_a_run_on_disk_is_not_trained_again(pool, tmp_path):
    slow, fast = settings("joint")
    path = runs_path(tmp_path, "tiny", "adamw")
    path.parent.mkdir()
    whole = json.dumps(run_line(slow)) + "\n"
    # A crash in the middle of the second line, which is of the other rate.
    path.write_text(whole + json.dumps(run_line(fast))[:-20])
    assert [Run.of_line(line) for line in read_lines(path)] == [Run(slow, 0)]
    comparison = compare.Comparison("tiny", "adamw", tmp_path)
    compare.train_all(pool, [comparison], [METHODS["joint"]], [0])
    assert pool.started == [Run(fast, 0)]
    # What is written afterwards is not lost behind the half line.
    assert [Run.of_line(line) for line in read_lines(path)] == [Run(slow, 0), Run(fast, 0)]
    again = compare.Comparison("tiny", "adamw", tmp_path)
    compare.train_all(pool, [again], [METHODS["joint"]], [0])
    assert len(pool.started) == 1


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_a_run_that_fails_does_not_end_the_others(pool, tmp_path, monkeypatch, capfd):
    slow, fast = settings("joint")

    def fails(suite, run):
        if run.setting == slow:
            raise ValueError("a bad rate")
        return run_line(run.setting, run.seed)

    monkeypatch.setattr(compare, "train_one", fails)
    comparison = compare.Comparison("tiny", "adamw", tmp_path)
    compare.train_all(pool, [comparison], [METHODS["joint"]], [0])
    assert [Run.of_line(line) for line in read_lines(comparison.path)] == [Run(fast, 0)]
    assert "a bad rate" in "".join(capfd.readouterr())
    assert comparison.chosen([METHODS["joint"]], range(3)) == []


def test_optimizers_have_files_of_their_own(tmp_path):
    assert runs_path(tmp_path, "tiny", "sgd") == tmp_path / "runs" / "tiny-sgd.jsonl"
    assert methods_path(tmp_path, "tiny", "sgd") == tmp_path / "tiny-sgd.jsonl"
    assert methods_path(tmp_path, "tiny", "adamw") == tmp_path / "tiny.jsonl"


def test_a_method_for_two_modalities_is_left_out_with_three():
    third = Split({**TINY.train.inputs, "third": TINY.train.inputs["left"]}, TINY.train.labels)
    suite = SimpleNamespace(
        modalities=tuple(third.inputs),
        fusion="concatenation",
        learning_rates=(1.0,),
        sgd_learning_rates=(1.0,),
    )
    only_two = [name for name, method in METHODS.items() if not settings_of(method, suite, "adamw")]
    assert only_two == ["published", "ogm", "ogm-ge", "pmr"]
    assert len(settings_of(METHODS["sequential"], suite, "adamw")) == 3


def test_arguments_of_a_suite_are_those_of_every_method_but_give_way_to_its_own():
    groups = torch.arange(ROWS)
    suite = replace(
        TINY,
        train=replace(TINY.train, groups=groups),
        arguments={"head_learning_rate": 0.5, "modality_learning_rates": {"left": 0.25}},
    )
    args = training_arguments(suite, "", 0, "adamw", 0.1, modality_learning_rates={"right": 0.75})
    assert args.head_learning_rate == 0.5
    assert args.modality_learning_rates == {"right": 0.75}
    assert args.group_column_name == "group"
    assert training_arguments(TINY, "", 0, "adamw", 0.1).group_column_name is None


# ---- what a run costs ----


def fake_run(history, strategy="two-stage", modalities_per_step=None):
    probes = [SimpleNamespace(step=step, stage=stage, training=training) for step, stage, training in history]
    return SimpleNamespace(
        record=SimpleNamespace(history=probes),
        strategy=SimpleNamespace(name=strategy, modalities_per_step=modalities_per_step),
    )


HISTORY = [(4, "unimodal", ["left", "right"]), (10, "unimodal", ["right"]), (20, "joint", ["left", "right"])]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (fake_run(HISTORY), 4 * 2 + 6 * 1 + 10 * 2),
        # Frozen encoders learn nothing in stage 2.
        (fake_run(HISTORY, "uni-pre-frozen"), 4 * 2 + 6 * 1),
        # Of the active ones, each step trains one.
        (fake_run([(8, "joint", ["left", "right"]), (20, "joint", ["left", "right"])], "mla", 1), 20),
        # Half of the steps train one, half all three.
        (fake_run([(8, "joint", ["left", "right", "third"])], "reconboost", 2.0), 16),
        (fake_run([*HISTORY[:2], (20, "joint", ["left"])]), 4 * 2 + 6 * 1 + 10 * 1),
        (fake_run([]), 0),
    ],
)
def test_paused_and_frozen_modalities_cost_nothing(run, expected):
    assert modality_steps(run) == expected


@pytest.fixture(scope="module")
def real_runs():
    """One real run of each of these methods."""
    names = ("joint", "uni-pre-frozen", "sequential", "mla", "ends-by-accuracy")
    return {name: training.train(TINY, Run(settings(name)[1], 0)) for name in names}


@pytest.mark.parametrize("method", ["uni-pre-frozen", "sequential", "mla"])
def test_methods_of_other_lengths_cost_what_joint_training_does(real_runs, method):
    joint, other = real_runs["joint"], real_runs[method]
    assert joint["steps"] == STEPS
    assert joint["modality_steps"] == 2 * STEPS
    length = METHODS[method].length(2)
    assert other["steps"] == pytest.approx(length * STEPS, abs=1)
    # Steps are whole: that of the budget, and that of each phase.
    assert other["modality_steps"] == pytest.approx(2 * STEPS, abs=2)


def test_lengths_by_hand():
    # A half of the steps with one of M encoders, a half with all: M / (1/2 + M/2) as many steps.
    assert METHODS["sequential"].length(2) == pytest.approx(4 / 3)
    assert METHODS["sequential"].length(3) == pytest.approx(3 / 2)
    assert METHODS["mla"].length(3) == 3.0
    # 0.8 of the steps train encoders.
    assert METHODS["uni-pre-frozen"].length(2) * 0.8 == pytest.approx(1.0)
    assert {name for name, method in METHODS.items() if method.length(2) != 1.0} == {
        "sequential",
        "reconboost",
        "mla",
        "uni-pre-frozen",
    }
    assert METHODS["reconboost"].length(3) == METHODS["sequential"].length(3)


def test_a_real_run_says_all_of_itself(real_runs):
    for name, line in real_runs.items():
        again = json.loads(json.dumps(line))
        assert Run.of_line(again) == Run(settings(name)[1], 0)
        asked = answers_of(line["setting"]["strategy"]) & set(ON_DEMAND)
        assert asked == ({SOUP} if name == "joint" else set())
        assert set(line["validation"]) == set(line["test"]) == set(READOUTS) | asked
        assert all(0.0 <= value <= 1.0 for part in ("validation", "test") for value in line[part].values())
        trajectory = line["trajectory"]
        assert trajectory["step"][-1] == line["steps"]
        assert len({len(values) for key, values in trajectory.items() if key != "restored"}) == 1
    config = {name: line["config"] for name, line in real_runs.items()}
    assert config["ends-by-accuracy"]["rule"] == "ends-by-accuracy"
    assert config["joint"]["rule"] is None
    assert {name: each["stages"] for name, each in config.items()} == {
        "joint": "joint",
        "uni-pre-frozen": "two-stage",
        "sequential": "two-stage",
        "mla": "joint",
        "ends-by-accuracy": "two-stage",
    }
    assert config["joint"]["auxiliary_weight"] == 0.0
    assert config["ends-by-accuracy"]["auxiliary_weight"] == 0.6
    assert real_runs["sequential"]["trajectory"]["paused"][0] == ["right"]
    assert real_runs["joint"]["trajectory"]["stage"] == [2, 2]


# ---- how a run is judged ----


def test_snapshots_are_of_the_best_epochs_of_the_stage():
    weight, frozen = nn.Parameter(torch.zeros(1)), torch.ones(1)
    model = SimpleNamespace(
        modalities=NAMES, state_dict=lambda: {"weight": weight.detach(), "frozen": frozen}
    )
    record = SimpleNamespace(stage="unimodal")
    snapshots = Snapshots(keeps_epochs=True)
    snapshots.trainer = SimpleNamespace(model=model, record=record, plan=SimpleNamespace(stages="two-stage"))
    # The stage, and the accuracies of fused, calibrated, left and right.
    epochs = [
        ("unimodal", 0.9, 0.9, 0.5, 0.6),
        ("unimodal", 0.9, 0.9, 0.7, 0.6),
        ("joint", 0.6, 0.8, 0.6, 0.5),
        ("joint", 0.7, 0.8, 0.7, 0.7),
    ]
    for number, (record.stage, fused, calibrated, left, right) in enumerate(epochs):
        weight.data.fill_(number)
        metrics = {
            "eval_accuracy": fused,
            "eval_accuracy_calibrated": calibrated,
            "eval_accuracy_left": left,
            "eval_accuracy_right": right,
        }
        snapshots.on_evaluate(None, None, None, metrics)
    best = {name: (value, int(weights["weight"])) for name, (value, weights) in snapshots.best.items()}
    assert best == {"left": (0.7, 1), "right": (0.7, 3), FUSED: (0.7, 3), CALIBRATED: (0.8, 2)}
    # A soup is made of the epochs of stage 2; what has not changed is kept once.
    kept = [weights for _, weights in snapshots.epochs]
    assert [(value, int(weights["weight"])) for value, weights in snapshots.epochs] == [(0.6, 2), (0.7, 3)]
    assert kept[0]["frozen"] is kept[1]["frozen"] is not frozen


def test_of_unimodal_training_all_epochs_count():
    snapshots = Snapshots()
    model = SimpleNamespace(modalities=(), state_dict=dict)
    snapshots.trainer = SimpleNamespace(
        model=model, record=SimpleNamespace(stage="unimodal"), plan=SimpleNamespace(stages="unimodal")
    )
    metrics = {"eval_accuracy": 0.4, "eval_accuracy_calibrated": 0.5}
    snapshots.on_evaluate(None, None, None, metrics)
    assert {name: value for name, (value, _) in snapshots.best.items()} == {FUSED: 0.4, CALIBRATED: 0.5}


def test_answers_of_all_heads_row_by_row(monkeypatch):
    # There are 60 rows: the last batch has four.
    monkeypatch.setattr(training, "EVALUATION_BATCH", 7)
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        TINY.build_encoders(), num_labels=CLASSES
    ).train()
    by_head = answers(model, TINY.test)
    assert list(by_head) == [FUSED, *NAMES]
    with torch.no_grad():
        whole = model.eval()(**TINY.test.inputs)
    torch.testing.assert_close(by_head[FUSED], whole.logits)
    for name in NAMES:
        torch.testing.assert_close(by_head[name], whole.unimodal_logits[name])
    as_mappings = Split({name: {"values": x} for name, x in TINY.test.inputs.items()}, TINY.test.labels)
    torch.testing.assert_close(answers(model, as_mappings)[FUSED], by_head[FUSED])


def test_every_readout_is_of_the_heads_and_epochs_that_its_name_says(monkeypatch):
    labels = {"validation": TINY.validation.labels, "test": TINY.test.labels}
    splits = {"validation": TINY.validation, "test": TINY.test}
    right = {name: nn.functional.one_hot(y, CLASSES).float() for name, y in labels.items()}
    generator = torch.Generator().manual_seed(3)

    def guesses(name: str, share: float) -> torch.Tensor:
        """Logits that are right, with little confidence, in the first rows; the next class's in the others."""
        y = labels[name]
        wrong = torch.arange(len(y)) >= round(share * len(y))
        hit = nn.functional.one_hot((y + wrong.long()) % CLASSES, CLASSES).float()
        return hit + 0.01 * torch.rand(len(y), CLASSES, generator=generator)

    # By snapshot: only the fused head of its own best epoch knows everything.
    shares = {
        "left": {"left": 0.7, "right": 0.4, FUSED: 0.3},
        "right": {"left": 0.4, "right": 0.6, FUSED: 0.3},
        FUSED: {"left": 0.4, "right": 0.4, FUSED: 1.0},
        CALIBRATED: {"left": 0.5, "right": 0.5, FUSED: 0.8},
    }
    logits = {
        snapshot: {name: {head: guesses(name, share) for head, share in heads.items()} for name in splits}
        for snapshot, heads in shares.items()
    }
    for name in splits:
        logits[FUSED][name][FUSED] = 9.0 * right[name]
    loaded = []
    model = SimpleNamespace(load_state_dict=loaded.append)
    snapshots = Snapshots()
    # The snapshot's name stands in for its weights.
    snapshots.best = {name: (0.0, name) for name in shares}

    def fake_answers(model, rows):
        name = next(each for each, split in splits.items() if split is rows)
        return logits[loaded[-1]][name]

    monkeypatch.setattr(training, "answers", fake_answers)
    judged = judge(model, snapshots, TINY, ())
    for name in splits:
        accuracy = judged[name]
        assert set(accuracy) == set(READOUTS)
        assert accuracy[FUSED] == accuracy[CALIBRATED] == 1.0
        assert accuracy["left"] == accuracy[BEST_SINGLE] == pytest.approx(0.7)
        assert accuracy["right"] == pytest.approx(0.6)
        own = [logits[each][name][each].softmax(dim=1) for each in NAMES]
        mean = ((own[0] + own[1]) / 2).argmax(dim=1)
        assert accuracy[AVERAGE] == pytest.approx(float((mean == labels[name]).double().mean()), abs=1e-6)
        # Without the fused head no head is right in the last 30 % of the rows.
        assert 0.5 <= accuracy[CALIBRATED_ENSEMBLE] <= 0.7
        assert 0.7 <= accuracy[ONE_EPOCH] <= 0.8
    assert set(judged["calibration_error"]) == {CALIBRATED_ENSEMBLE, CALIBRATED, ONE_EPOCH}


def test_shifted_test_sets_are_judged_by_what_validation_chose(monkeypatch):
    # Left is better on validation, right where rows are of another kind.
    hits = {
        "validation": {"left": 0.8, "right": 0.6},
        "test": {"left": 0.7, "right": 0.6},
        "other": {"left": 0.2, "right": 0.9},
    }
    suite = replace(TINY, shifted={"other": split(60, 3)})
    rows_of = {"validation": suite.validation, "test": suite.test, "other": suite.shifted["other"]}

    def fake_answers(model, rows):
        name = next(each for each, known in rows_of.items() if known is rows)
        logits = {}
        for head, share in {**hits[name], FUSED: 0.5}.items():
            wrong = torch.arange(60) >= round(share * 60)
            logits[head] = nn.functional.one_hot((rows.labels + wrong.long()) % CLASSES, CLASSES).float()
        return logits

    monkeypatch.setattr(training, "answers", fake_answers)
    snapshots = Snapshots()
    snapshots.best = {name: (0.0, {}) for name in (*NAMES, FUSED, CALIBRATED)}
    judged = judge(SimpleNamespace(load_state_dict=lambda weights: None), snapshots, suite, ())
    assert set(judged["shifted"]) == {"other"}
    other = judged["shifted"]["other"]
    assert set(other) == set(READOUTS)
    assert (other["left"], other["right"]) == (pytest.approx(0.2), pytest.approx(0.9))
    assert other[BEST_SINGLE] == pytest.approx(0.2)
    assert judged["test"][BEST_SINGLE] == pytest.approx(0.7)
    # A table has a column for it.
    line = method_line("best-single", 0, 0.7) | {"shifted": judged["shifted"]}
    header, _, row = method_table([line]).splitlines()
    assert dict(zip(header.split(" | "), row.split(" | "), strict=True))["other"] == "20.0"


def test_rows_that_lack_a_modality_are_judged_by_the_others(monkeypatch):
    # Every head is right in every row that has its modality; half of the rows lack the left one.
    lacks = torch.arange(60) % 2 == 0
    suite = replace(
        TINY,
        train=replace(TINY.train, labels=torch.full_like(TINY.train.labels, 2)),
        validation=replace(TINY.validation, present={"left": ~lacks}),
        test=replace(TINY.test, present={"left": ~lacks}),
    )

    def fake_answers(model, rows):
        right = 9.0 * nn.functional.one_hot(rows.labels, CLASSES)
        return {"left": right.where(~lacks[:, None], 0.0), "right": right, FUSED: right}

    monkeypatch.setattr(training, "answers", fake_answers)
    snapshots = Snapshots()
    snapshots.best = {name: (0.0, {}) for name in (*NAMES, FUSED, CALIBRATED)}
    judged = judge(SimpleNamespace(load_state_dict=lambda weights: None), snapshots, suite, ())
    for name in ("validation", "test"):
        # The commonest class in training is 2, as is a third of the rows that lack left.
        guessed = float((getattr(suite, name).labels[lacks] == 2).double().mean())
        assert judged[name]["left"] == pytest.approx(0.5 + 0.5 * guessed, abs=1e-6)
        for readout in ("right", BEST_SINGLE, AVERAGE, CALIBRATED_ENSEMBLE, CALIBRATED):
            assert judged[name][readout] == 1.0


def test_the_best_single_modality_is_chosen_on_validation(monkeypatch):
    # Left is better on validation, right on test.
    hits = {"validation": {"left": 0.8, "right": 0.7}, "test": {"left": 0.2, "right": 0.9}}

    def fake_answers(model, rows):
        name = "test" if rows is TINY.test else "validation"
        y = rows.labels
        logits = {}
        for head, share in {**hits[name], FUSED: 0.5}.items():
            wrong = torch.arange(len(y)) >= round(share * len(y))
            logits[head] = nn.functional.one_hot((y + wrong.long()) % CLASSES, CLASSES).float()
        return logits

    monkeypatch.setattr(training, "answers", fake_answers)
    snapshots = Snapshots()
    snapshots.best = {name: (0.0, {}) for name in (*NAMES, FUSED, CALIBRATED)}
    judged = judge(SimpleNamespace(load_state_dict=lambda weights: None), snapshots, TINY, ())
    assert judged["validation"][BEST_SINGLE] == pytest.approx(0.8)
    assert judged["test"][BEST_SINGLE] == pytest.approx(0.2)


def test_stacking_and_a_soup_are_judged_where_a_method_asks(monkeypatch):
    # The left head names the class after the right one; the right head knows nothing.
    shifted = {"validation": TINY.validation, "test": TINY.test}

    class Model:
        value = 0.0

        def load_state_dict(self, weights):
            self.value = float(weights["w"])

    model = Model()

    def fake_answers(model, rows):
        assert any(rows is known for known in shifted.values())
        left = 9.0 * nn.functional.one_hot((rows.labels + 1) % CLASSES, CLASSES)
        # The fused head is right in a share of the rows: all of them at a weight of 3, none at 0 and 6.
        wrong = torch.arange(60) >= 60 - 20 * abs(model.value - 3.0)
        fused = nn.functional.one_hot((rows.labels + wrong.long()) % CLASSES, CLASSES).float()
        return {"left": left, "right": torch.zeros(60, CLASSES), FUSED: fused}

    monkeypatch.setattr(training, "answers", fake_answers)
    snapshots = Snapshots()
    snapshots.best = {name: (0.0, {"w": torch.tensor(4.0)}) for name in (*NAMES, FUSED, CALIBRATED)}
    snapshots.epochs = [(2 / 3, {"w": torch.tensor(4.0)}), (2 / 3, {"w": torch.tensor(2.0)})]
    judged = judge(model, snapshots, TINY, (), {STACKING, SOUP})
    for name in shifted:
        assert judged[name]["left"] == 0.0
        assert judged[name][STACKING] == 1.0
        assert judged[name][FUSED] == pytest.approx(2 / 3, abs=1e-6)
        assert judged[name][SOUP] == 1.0


# ---- what is reported ----


def method_line(method: str, seed: int, test: float, **changes):
    setting = settings(method)[0]
    line = run_line(setting, seed, test=test, **changes)
    return {**line, "method": method, "answer": METHODS[method].answer, "test_accuracy": test}


def lines_of(**accuracies: list[float]):
    """Lines by method (with _ for -): test accuracies of the seeds 0, 1, ..., in %."""
    return [
        method_line(method.replace("_", "-"), seed, value / 100)
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_intervals_by_hand():
    # Differences 1, 2, 3, 6: mean 3, squared deviations 4 + 1 + 0 + 9 = 14, s = sqrt(14 / 3) = 2.160247,
    # s / sqrt(4) = 1.080123; Student's t with 3 degrees of freedom at 97.5 % is 3.182446: half = 3.437434.
    lines = lines_of(two_stage=[81, 82, 83, 86], joint=[80, 80, 80, 80])
    assert paired(lines, "two-stage", "joint") == (pytest.approx(3.0), pytest.approx(3.437434, abs=1e-5), 4)
    # Differences 1 and 3: s = sqrt(2), s / sqrt(2) = 1; t with one degree of freedom is 12.706205.
    assert interval([1.0, 3.0]) == (2.0, pytest.approx(12.706205, abs=1e-5))
    # At 90 % it is 6.313752.
    assert interval([1.0, 3.0], 0.9)[1] == pytest.approx(6.313752, abs=1e-5)
    assert interval([5.0]) == (5.0, float("inf"))


def test_only_seeds_that_both_have_are_paired():
    lines = lines_of(two_stage=[80, 90, 70], joint=[79, 87])
    # 1 and 3; the third seed of ours has no counterpart.
    assert paired(lines, "two-stage", "joint") == (pytest.approx(2.0), pytest.approx(12.706205, abs=1e-5), 2)
    assert paired(lines, "two-stage", "warm-up") is None
    # They have the seeds 0 and 1.
    assert paired([lines[0], lines[-1]], "two-stage", "joint") is None


def test_another_readout_can_be_paired():
    lines = [
        method_line("two-stage", 0, 0.5, test_accuracy=None) | {"test": {CALIBRATED: 0.75}},
        method_line("joint", 0, 0.9) | {"test": {CALIBRATED: 0.5}},
    ]
    assert paired(lines, "two-stage", "joint", CALIBRATED)[0] == pytest.approx(25.0)


def test_a_rival_that_is_ahead_is_named():
    behind = lines_of(
        two_stage=[80, 81, 82],
        joint=[70, 71, 72],
        # Ahead by 5.03 +- 0.14.
        best_single=[85, 86.1, 87],
        # Ahead by 1.0 +- 6.6: may be noise.
        joint_auxiliary=[80, 85, 81],
        ogm=[70, 72, 74],
    )
    fine = lines_of(two_stage=[90, 91, 92], joint=[70, 71, 72], best_single=[80, 81, 82])
    sentences = verdicts({"one": behind, "two": fine})
    assert sentences[0] == (
        "- Ours minus plain joint training: +15.00 points on average of 2 suites; "
        "median +15.00, largest +20.0 (two)."
    )
    start = "- Behind a simple rival beyond the 95 % interval of paired seeds, of 3 comparisons: "
    assert sentences[1].startswith(f"{start}one, best single modality -5.0")
    assert "joint + unimodal losses" not in sentences[1]
    assert "two" not in sentences[1].removeprefix(start)
    average = "- Ours minus published methods, on average over the suites that each was run on"
    assert sentences[2] == f"{average}: OGM +9.0."


def test_where_no_rival_is_ahead_it_says_so():
    lines = lines_of(two_stage=[80, 81, 82], **{name.replace("-", "_"): [79, 80.1, 81] for name in CONTROLS})
    sentences = verdicts({"one": lines})
    number = len(CONTROLS)
    assert sentences == [
        f"- Behind a simple rival beyond the 95 % interval of paired seeds, of {number} comparisons: nowhere."
    ]
    # One seed has no interval.
    assert verdicts({"one": [line for line in lines if line["seed"] == 0]}) == []


def test_tables_and_pictures_of_every_method(tmp_path):
    names = [name for name in METHODS if settings(name)]
    for suite in ("one", "two"):
        lines = [
            method_line(name, seed, 0.5 + number / 200 + seed / 100)
            for number, name in enumerate(names)
            for seed in (0, 1)
        ]
        (tmp_path / f"{suite}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # A suite whose runs all failed.
    (tmp_path / "three.jsonl").write_text("")
    text = write_report(tmp_path)
    assert text == (tmp_path / "tables.md").read_text()
    summary, one, two = text.split("\n## ")
    for name in names:
        row = f"\n| {METHODS[name].label} | "
        assert row in one
        assert row in two
        assert (row in summary) == (name != "two-stage")
    assert one.startswith("one\n")
    assert TINY.description in one
    assert "a processor, cpu, 1 thread per run; torch 2." in one
    # Joint training does not train the heads of the modalities, so their cells are empty.
    joint = next(row for row in one.splitlines() if row.startswith("| joint |"))
    place = 0.5 + names.index("joint") / 200
    assert joint.split(" | ")[2:6] == [f"{100 * place + 0.5:.1f} ± 0.7", "", "", ""]
    for picture in ("one.png", "one-starts.png", "two.png", "overview.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    assert not (tmp_path / "three.png").exists()


def test_the_starting_point_is_the_last_probe_of_stage_1():
    lines = [method_line("start-at-30", seed, 0.5 + 0.1 * seed) for seed in (0, 1)]
    others = [method_line(f"start-at-{share}", 0, 0.5) for share in (50, 70)]
    first, second, *rest = starts([*lines, method_line("joint", 0, 0.9), *others])
    assert [run["share"] for run in rest] == [50, 70]
    # One share alone, or two, sweep nothing.
    assert starts([*lines, others[0]]) == []
    assert first == {
        "share": 30,
        "seed": 0,
        "accuracy": 50.0,
        "fused": 50.0,
        "synergy": 0.2,
        "redundancy": 0.2,
        "unimodal": pytest.approx(60.0),
    }
    assert (second["seed"], second["synergy"], second["unimodal"]) == (1, 1.2, pytest.approx(70.0))


# ---- the command line ----


def call(monkeypatch, folder, *argv):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--results", str(folder), *argv])
    compare.main()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A real comparison, from its command line to its tables."""
    folder, pool = tmp_path_factory.mktemp("compare"), HereAndNow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SUITES, "tiny", lambda: TINY)
        patch.setattr(compare, "ProcessPoolExecutor", pool)
        methods = ("two-stage", "joint", "best-single", "calibrated-ensemble")
        call(patch, folder, "--suite", "tiny", "--methods", *methods, "--seeds", "2", "--first-seed", "5")
        first = list(pool.started)
        pool.started.clear()
        call(
            patch,
            folder,
            "--suite",
            "tiny",
            "--methods",
            "ensemble",
            *methods[::-1],
            "--seeds",
            "2",
            "--first-seed",
            "5",
        )
    return folder, first, list(pool.started)


def test_the_first_seed_is_trained_at_every_rate_and_the_others_as_chosen(compared):
    folder, started, _ = compared
    strategies = ("two-stage", "joint", "unimodal")
    grid = [(run.setting.strategy, run.setting.learning_rate) for run in started if run.seed == 5]
    assert sorted(grid) == sorted((name, rate) for name in strategies for rate in TINY.learning_rates)
    lines = {Run.of_line(line): line for line in read_lines(folder / "runs" / "tiny.jsonl")}
    assert set(lines) == set(started)
    by_method = read_lines(folder / "tiny.jsonl")
    assert all(line["commit"] == COMMIT for line in (*lines.values(), *by_method))
    for name in ("two-stage", "joint", "best-single", "calibrated-ensemble"):
        tried = [Run(setting, 5) for setting in settings(name)]
        best = max(tried, key=lambda run: lines[run]["validation"][METHODS[name].answer])
        chosen = [line for line in by_method if line["method"] == name]
        assert [line["seed"] for line in chosen if Run.of_line(line).setting == best.setting] == [5, 6]
        for line in chosen:
            assert line["test_accuracy"] == lines[Run.of_line(line)]["test"][METHODS[name].answer]


def test_the_second_call_trains_what_is_new_only(compared):
    _, first, second = compared
    assert not set(first) & set(second)
    # The ensemble reads the runs of the best single modality; at most its own rate is another one.
    assert {(run.setting.strategy, run.seed) for run in second} <= {("unimodal", 6)}


def test_seeds_differ_and_strategies_start_from_the_same_weights(compared):
    lines = read_lines(compared[0] / "runs" / "tiny.jsonl")
    trajectories = [line["trajectory"]["accuracy_left"] + line["trajectory"]["synergy"] for line in lines]
    assert len({json.dumps(each) for each in trajectories}) == len(lines)


def test_the_report_is_made_of_lines_on_disk(compared, monkeypatch, capsys):
    folder = compared[0]
    text = (folder / "tables.md").read_text()
    for made in ("tables.md", "tiny.png"):
        (folder / made).unlink()
    monkeypatch.setattr(compare, "train_one", None)
    call(monkeypatch, folder, "--report")
    assert capsys.readouterr().out == text + "\n"
    assert (folder / "tables.md").read_text() == text
    assert (folder / "tiny.png").exists()
    for label in (
        "two-stage (default)",
        "joint",
        "best single modality",
        "unimodal ensemble",
        "calibrated ensemble",
    ):
        assert f"\n| {label} | 2 | " in text


def test_a_report_of_nothing(monkeypatch, tmp_path, capsys):
    call(monkeypatch, tmp_path, "--report")
    assert capsys.readouterr().out == "no results yet\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["--suite", "tiny", "--methods", "joint", "jiont"],
            "--methods names 'jiont'; choose among all, strongest, ",
        ),
        (["--suite", "tinny"], "name is 'tinny'; the suites are digits, "),
        ([], "give --suite, or --report"),
    ],
)
def test_what_is_unknown_ends_in_a_sentence(argv, sentence, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SUITES, "tiny", lambda: TINY)
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, tmp_path, *argv)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_line_that_is_older_than_an_answer_is_trained_again_for_it_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(SUITES, "tiny", lambda: TINY)
    comparison = compare.Comparison("tiny", "adamw", tmp_path)
    slow, fast = settings("joint")
    old, new = run_line(slow), run_line(fast)
    del old["validation"][SOUP], old["test"][SOUP]
    comparison.lines = [old, new]
    joint, soup = METHODS["joint"], METHODS["greedy-soup"]
    runs = comparison.grid([soup], 0)
    assert runs == comparison.grid([joint], 0) == [Run(slow, 0), Run(fast, 0)]
    assert comparison.missing(runs, [joint]) == []
    assert chosen_setting(comparison.lines, soup, [slow, fast], 0) is None
    assert comparison.missing(runs, [joint, soup]) == [Run(slow, 0)]
    assert {line["method"] for line in method_lines([old, new], [joint, soup], TINY, "adamw", 0)} == {"joint"}


def test_groups_of_methods():
    assert [method.name for method in compare.methods_named(["strongest", "joint"])] == list(STRONGEST)
    everyone = compare.methods_named(["all", "ablations"])
    assert [method.name for method in everyone] == list(METHODS)
    assert set(CONTROLS) <= set(STRONGEST)


def test_every_setting_can_be_told_apart():
    """Methods of one setting share a run, so what they differ in must not be more than how they answer."""
    by_setting = {}
    for method in METHODS.values():
        for setting in settings(method.name):
            by_setting.setdefault(json.dumps(asdict(setting), sort_keys=True), []).append(method)
    for methods in by_setting.values():
        first = methods[0]
        for other in methods[1:]:
            assert (other.strategy, other.fusion, dict(other.arguments), other.length(2)) == (
                first.strategy,
                first.fusion,
                dict(first.arguments),
                first.length(2),
            )
