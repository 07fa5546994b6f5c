"""What every strategy promises, ours and the others: resuming, precision, gaps, two processes, contradictions."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import two_process_strategies
from ranks import ends, start_ranks
from safetensors.torch import load_file
from strategy_runs import (
    MODELS,
    NO_READOUTS,
    OPTIONS,
    STEPS,
    VIEWS,
    by_name,
    trained,
    trainer,
    views,
    weights,
)
from torch.nn import functional as F  # noqa: N812
from transformers import TrainerCallback

from ecsfusion import Decision, FusionTrainer, Rule
from ecsfusion.controller.fixed import FixedSchedule
from ecsfusion.controller.peak_synergy import PeakSynergy
from ecsfusion.controller.probe import Probe
from ecsfusion.reporting.facts import run_facts
from ecsfusion.strategies import STRATEGIES, Strategy, make_strategy
from ecsfusion.strategies.two_stage import TwoStage
from ecsfusion.training.evaluator import untrained_heads

TWO = VIEWS[:2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*samples are few"),
    pytest.mark.usefixtures("quick_probes"),
]


STRATEGIES_OF_TWO = {
    name: make_strategy(name, TWO, **OPTIONS.get(name, lambda names: {})(TWO)) for name in STRATEGIES
}
"""Each of them by name: one that is registered and cannot be made so needs a line in `OPTIONS`."""


@pytest.fixture(autouse=True)
def _no_readouts(monkeypatch):
    """Half of a tiny run's time; the readout is tested elsewhere."""
    for name, replacement in NO_READOUTS.items():
        monkeypatch.setattr(name, replacement)


def finite(run: FusionTrainer) -> bool:
    losses = [entry[key] for entry in run.state.log_history for key in ("loss", "grad_norm") if key in entry]
    return all(map(math.isfinite, losses)) and all(v.isfinite().all() for v in weights(run).values())


def assert_near(found: dict, expected: dict, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, n=name: f"{n}: {text}")


# Plain SGD, which rounding moves a little and no more.
PLAIN = two_process_strategies.options()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Runs by plain SGD, saved, by name: to compare other ways with; each is made once."""
    made = {}

    def run(name: str) -> FusionTrainer:
        if name not in made:
            made[name] = by_name(tmp_path_factory.mktemp(name), name, **PLAIN)
            made[name].train()
            made[name].save_model()
        return made[name]

    return run


def test_the_table_names_strategies():
    assert set(OPTIONS) | set(MODELS) <= set(STRATEGIES)


# ---- modalities ----


@pytest.mark.parametrize("name", STRATEGIES)
def test_three_modalities_are_trained_or_refused_with_a_reason(tmp_path, name):
    if STRATEGIES[name].only_two:
        sentence = rf"the strategy '{name}' is for two modalities \(.+\), and the model has .*'noise'"
        with pytest.raises(ValueError, match=sentence):
            by_name(tmp_path, name, VIEWS)
        return
    # A probe measures each of three views against the others: few of them.
    run = by_name(tmp_path, name, VIEWS, eval_steps=STEPS // 2)
    before = weights(run)
    run.train()
    assert run.state.global_step == STEPS
    assert finite(run)
    for part in (f"encoders.{view}.first.weight" for view in VIEWS):
        assert not torch.equal(weights(run)[part], before[part]), part
    assert run.record.stage == ("unimodal" if name == "unimodal" else "joint")


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_and_batches_that_lack_a_modality_do_no_harm(tmp_path, name):
    """Batches of two rows, of which half lack one view: in some of them nobody has it."""
    run = by_name(tmp_path, name, gaps=True, per_device_train_batch_size=2, max_steps=24, eval_steps=12)
    lacking = set()
    original = run.training_step

    def look(model, inputs, *rest):
        lacking.update(
            view for view in TWO if not (inputs.get("present") or {}).get(view, torch.tensor(True)).any()
        )
        return original(model, inputs, *rest)

    run.training_step = look
    run.train()
    assert finite(run)
    assert lacking == set(TWO), "no batch lacked a view altogether"


# ---- resuming ----


class SaveAt(TrainerCallback):
    """Checkpoints after these steps only."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps


# Of ten steps, in epochs of four.
AFTER_AN_EVALUATION, BETWEEN = 6, 7
# Random numbers and batch statistics.
NOISY = {"dropout": 0.2, "norm": True}


def resumable(folder: Path, name: str) -> FusionTrainer:
    save = SaveAt(AFTER_AN_EVALUATION, BETWEEN)
    return by_name(
        folder,
        name,
        model=NOISY,
        max_steps=10,
        lr_scheduler_type="cosine",
        keep_best_heads=True,
        more={"callbacks": [save]},
    )


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Runs that were not interrupted, by name; each is made once."""
    made = {}

    def whole(name: str) -> FusionTrainer:
        if name not in made:
            made[name] = resumable(tmp_path_factory.mktemp(name), name)
            made[name].train()
        return made[name]

    return whole


def resume(whole: FusionTrainer, name: str, step: int) -> FusionTrainer:
    folder = Path(whole.args.output_dir)
    resumed = resumable(folder, name)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    return resumed


def differing(whole: FusionTrainer, resumed: FusionTrainer) -> list[str]:
    first, second = weights(whole), weights(resumed)
    found = [name for name, value in first.items() if not torch.equal(value, second[name])]
    found += ["state"] if whole.strategy.state_dict() != resumed.strategy.state_dict() else []
    return found + (["history"] if whole.record.history != resumed.record.history else [])


@pytest.mark.parametrize("step", [AFTER_AN_EVALUATION, BETWEEN])
@pytest.mark.parametrize("name", STRATEGIES)
def test_stopped_in_the_second_half_and_resumed_it_ends_bit_for_bit_the_same(wholes, name, step):
    whole = wholes(name)
    assert differing(whole, resume(whole, name, step)) == []


@pytest.mark.parametrize("name", [name for name, made in STRATEGIES_OF_TWO.items() if made.state_dict()])
def test_a_state_that_is_lost_makes_a_difference(wholes, name, monkeypatch):
    """So the test before this one sees the state."""
    whole = wholes(name)
    monkeypatch.setattr(STRATEGIES[name], "load_state_dict", lambda self, state: None)
    try:
        resumed = resume(whole, name, AFTER_AN_EVALUATION)
    except (IndexError, KeyError, ValueError):
        return
    assert [part for part in differing(whole, resumed) if part not in ("state", "history")]


# ---- precision and accumulation ----


@pytest.mark.parametrize("name", STRATEGIES)
def test_bfloat16_trains_float32_weights(tmp_path, name):
    run = by_name(tmp_path, name, bf16=True, max_steps=4)
    before = weights(run)
    run.train()
    assert finite(run)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    first = "encoders.right.first.weight"
    assert not torch.equal(weights(run)[first], before[first])


DEPENDS_ON_THE_BATCH = {
    "modality-dropout": "what is dropped is drawn batch by batch",
    "agm": "the gradients of a batch are scaled by an exponential of that batch's losses",
    "pmr": "the weights of the prototype losses are those of a batch",
    "mcr": "the rows of a batch are compared with one another",
}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in DEPENDS_ON_THE_BATCH])
def test_accumulated_gradients_are_those_of_the_large_batch(plain, tmp_path, name):
    options = PLAIN | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    run = by_name(tmp_path, name, **options)
    run.train()
    assert run.state.global_step == plain(name).state.global_step == 6
    assert_near(weights(run), weights(plain(name)), rtol=1e-3, atol=1e-4)


# ---- contradictions ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strategy": "joint", "auxiliary_weight": 0.3},
            "auxiliary_weight is 0.3, but the strategy 'joint' sets it",
        ),
        (
            {"strategy": "warm-up", "strategy_options": {"tau": 2}},
            "unknown option 'tau' of the strategy 'warm-up'; allowed",
        ),
        (
            {"strategy": "published", "strategy_options": {"patience": 2}},
            "unknown option 'patience' of the rule",
        ),
        (
            {"strategy": "warm-up", "max_unimodal_share": 0.5},
            "max_unimodal_share is 0.5, but the strategy 'warm-up' has no stage 1 whose length could be chosen",
        ),
        ({"strategy": "joint", "joint_pausing": True}, "the strategy 'joint' has no rule that pauses"),
        (
            {"strategy": "unimodal", "max_unimodal_share": 0.5},
            "max_unimodal_share is 0.5, but the strategy 'unimodal'",
        ),
        ({"strategy": "stronger"}, r"strategy is 'stronger'; it must be one of two-stage, joint"),
        (
            {"strategy": "ogm", "strategy_options": {"beta": 1}},
            "unknown option 'beta' of the strategy 'ogm'; allowed",
        ),
        ({"strategy": "ogm", "strategy_options": '{"alpha": -1}'}, "alpha is -1; it must be positive"),
        (
            {"strategy": "ogm", "strategy_options": "alpha=1"},
            "strategy_options is 'alpha=1', which is not JSON",
        ),
        (
            {"strategy": "sequential"},
            "the strategy 'sequential' needs the option 'order'; give strategy_options=",
        ),
    ],
)
def test_contradictions_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_weight_that_a_strategy_sets_is_set_and_defended(tmp_path, name):
    weight = STRATEGIES[name].auxiliary_weight
    run = by_name(tmp_path, name)
    assert run.plan.auxiliary_weight == (0.6 if weight is None else weight)
    assert run.plan.stages == STRATEGIES[name].stages
    assert run.args.auxiliary_weight is None
    if weight is None:
        assert by_name(tmp_path, name, auxiliary_weight=0.123).plan.auxiliary_weight == 0.123
        return
    message = f"auxiliary_weight is 0.123, but the strategy '{name}' sets it to {weight}"
    with pytest.raises(ValueError, match=message):
        by_name(tmp_path, name, auxiliary_weight=0.123)


@pytest.mark.parametrize("name", STRATEGIES)
def test_heads_count_in_the_readout_where_they_are_trained(plain, tmp_path, name):
    before, after = weights(by_name(tmp_path, name, **PLAIN)), weights(plain(name))
    moved = [
        view for view in TWO if not torch.equal(before[f"heads.{view}.weight"], after[f"heads.{view}.weight"])
    ]
    excluded = {*plain(name).plan.excluded_from_readout, *untrained_heads(plain(name))}
    assert moved == [view for view in TWO if view not in excluded]


def of_ones_own(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loss_function_is_applied_or_refused(plain, tmp_path, name):
    """Where a strategy has no loss of its own, the function of the same values trains the same."""
    more = {"compute_loss_func": of_ones_own}
    if STRATEGIES[name].has_own_loss:
        sentence = f"compute_loss_func is given, but the strategy '{name}' has a loss of its own"
        with pytest.raises(ValueError, match=sentence):
            by_name(tmp_path, name, more=more)
        return
    looks_only = (Strategy.loss, STRATEGIES["ogm"].loss)
    assert STRATEGIES[name].loss in looks_only, "it has a loss of its own, and does not say so"
    given = by_name(tmp_path, name, more=more, **PLAIN)
    given.train()
    assert_near(weights(given), weights(plain(name)), rtol=1e-3, atol=1e-4)


class Pauses(Rule):
    """Stage 1 ends after the first evaluation; in stage 2 one view is paused, then the other, then none."""

    name = "pauses"

    def __init__(self) -> None:
        super().__init__(TWO, max_unimodal_share=0.25)
        self.state = {"readings": 0}

    def decide_unimodal(self, reading):
        return Decision(TWO, "a script", ends_stage=True)

    def decide_joint(self, reading):
        self.state["readings"] += 1
        return Decision([("right",), ("left",), TWO][self.state["readings"] % 3], "a script")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_rule_that_pauses_in_stage_two_works_or_is_refused(tmp_path, name):
    options = {"joint_pausing": True, "gaps": True, "per_device_train_batch_size": 2, "max_steps": 10}
    if name != "two-stage":
        sentence = f"the strategy '{name}' has no rule that pauses"
        with pytest.raises(ValueError, match=sentence):
            by_name(tmp_path, name, **options)
        return
    run = trainer(tmp_path, more={"strategy": Pauses()}, **options)
    run.train()
    assert {probe.training for probe in run.record.history} == {("right",), ("left",), TWO}
    assert finite(run)


def test_two_choices_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"the trainer was given the strategy <.*Pauses.*>, and args.strategy is 'published'; give one",
    ):
        by_name(tmp_path, "published", more={"strategy": Pauses()})


class Endless(Strategy):
    """Two stages without a rule that ends the first."""

    stages = "two-stage"


def test_a_stage_one_without_a_rule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the strategy 'Endless' has a stage 1 and no rule that ends it"):
        trainer(tmp_path, more={"strategy": Endless})


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_strategy_cannot_work_with_is_refused_with_its_reason(tmp_path, name):
    strategy, found = STRATEGIES[name], []
    if strategy.only_fusion:
        found.append(
            ({"model": {"fusion": "concatenation"}}, f"needs the fused head '{strategy.only_fusion}'")
        )
    if strategy.only_single_label:
        found.append(({"model": {"problem_type": "multi_label_classification"}}, strategy.only_single_label))
    if strategy.needs_evaluations:
        found.append(({"eval_strategy": "no"}, strategy.needs_evaluations))
    for options, reason in found:
        with pytest.raises(ValueError, match=f"the strategy '{name}'.*{reason}"):
            by_name(tmp_path, name, **options)
    if not found:
        assert by_name(tmp_path, name, model={"fusion": "gated-sum"}).strategy.name == name


# ---- one's own ----


class LouderLeft(Strategy):
    """As in the docstring of `Strategy`."""

    name = "louder-left"
    stages = "joint"

    def adjust_gradients(self, model):
        for parameter in model.modality_parameters("left").values():
            if parameter.grad is not None:
                parameter.grad.mul_(2.0)


def one_step(folder: Path, **options) -> dict[str, torch.Tensor]:
    """How far one step of SGD moves each weight."""
    run = trainer(folder, optim="sgd", learning_rate=0.1, max_steps=1, max_grad_norm=0.0, **options)
    before = weights(run)
    run.train()
    return {name: value - before[name] for name, value in weights(run).items()}


def test_a_strategy_of_ones_own_doubles_the_gradient(tmp_path):
    plain = one_step(tmp_path / "plain", strategy="joint-auxiliary")
    louder = one_step(tmp_path / "louder", more={"strategy": LouderLeft})
    for name, value in louder.items():
        factor = 2.0 if name.startswith(("encoders.left", "heads.left")) else 1.0
        torch.testing.assert_close(value, factor * plain[name], rtol=1e-4, atol=1e-6)
        assert name.startswith("heads") or float(value.abs().max()) > 0


def test_gradients_are_adjusted_before_they_are_clipped(tmp_path):
    moved = one_step(tmp_path, more={"strategy": LouderLeft})
    clipped = trained(
        tmp_path / "clipped",
        more={"strategy": LouderLeft},
        optim="sgd",
        learning_rate=0.1,
        max_steps=1,
        max_grad_norm=1e-3,
    )
    start = views().state_dict()
    names = [name for name in start if name.startswith(("encoders.left", "heads.left"))]
    norm = torch.stack([(weights(clipped)[name] - start[name]).square().sum() for name in names]).sum().sqrt()
    assert float(norm) == pytest.approx(0.1 * 1e-3, rel=1e-3)
    assert float(torch.stack([moved[name].square().sum() for name in names]).sum().sqrt()) > 0.1 * 1e-3


class Diary(TwoStage):
    """Writes down what it is told, and remembers it in checkpoints."""

    def __init__(self, modalities, *, title: str = "diary", **options):
        super().__init__(modalities, **options)
        self.state = {"title": title, "lines": []}

    def begin_stage(self, trainer):
        self.state["lines"].append(["stage", trainer.model.stage, trainer.state.global_step])

    def adjust_gradients(self, model):
        self.state["lines"].append(["gradients", sum(p.grad is not None for p in model.parameters())])

    def after_step(self, model):
        self.state["lines"].append("step")

    def after_evaluation(self, trainer, evaluation):
        self.state["lines"].append(["evaluation", trainer.state.global_step, len(evaluation.labels)])


def test_hooks_are_called_in_the_order_that_is_promised(tmp_path):
    run = trained(
        tmp_path,
        more={"strategy": Diary},
        strategy_options={"title": "of four steps", "rule": "fixed", "schedule": [[0.5, list(TWO)]]},
        max_steps=4,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=8,
    )
    assert run.strategy.state["title"] == "of four steps"
    # Parameters with a gradient: two views, and the fused head.
    alone, together = 2 * 6, 2 * 6 + 2
    one, two = [["gradients", alone], "step"], [["gradients", together], "step"]
    assert run.strategy.state["lines"] == [
        ["stage", "unimodal", 0],
        *one * 2,
        ["evaluation", 2, 40],
        ["stage", "joint", 2],
        *two * 2,
        ["evaluation", 4, 40],
    ]


def test_a_strategy_is_given_by_name_class_or_instance(tmp_path):
    runs = [
        trainer(tmp_path, strategy="ogm", strategy_options={"alpha": 0.25}),
        trainer(tmp_path, more={"strategy": "ogm"}, strategy_options={"alpha": 0.25}),
        trainer(tmp_path, more={"strategy": STRATEGIES["ogm"]}, strategy_options={"alpha": 0.25}),
        trainer(tmp_path, more={"strategy": STRATEGIES["ogm"](TWO, alpha=0.25)}),
    ]
    assert [(run.strategy.name, run.strategy.alpha, run.plan.stages) for run in runs] == [
        ("ogm", 0.25, "joint")
    ] * 4


def test_a_rule_is_given_by_name_class_or_instance(tmp_path):
    runs = [
        trainer(tmp_path, strategy="peak-synergy", strategy_options={"patience": 3}),
        trainer(tmp_path, strategy="two-stage", strategy_options={"rule": "peak-synergy", "patience": 3}),
        trainer(tmp_path, more={"strategy": PeakSynergy}, strategy_options={"patience": 3}),
        trainer(tmp_path, more={"strategy": PeakSynergy(TWO, patience=3)}),
    ]
    described = [(run.strategy.name, run.rule.name, run.rule.patience, run.plan.stages) for run in runs]
    assert described == [("two-stage", "peak-synergy", 3, "two-stage")] * 4
    assert {run.strategy.label for run in runs} == {"peak-synergy"}


def test_an_instance_is_not_trained_with(tmp_path):
    given = STRATEGIES["g-blending"](TWO)
    state = given.state_dict()
    run = trained(tmp_path, more={"strategy": given}, max_steps=4, eval_steps=2)
    assert given.state_dict() == state
    assert run.strategy.state_dict() != state


def test_what_is_no_strategy_is_named(tmp_path):
    with pytest.raises(
        TypeError, match="strategy must be the name, the class or an instance of a strategy or of a"
    ):
        trainer(tmp_path, more={"strategy": 3})
    with pytest.raises(ValueError, match="strategy is ''; it must be one of"):
        trainer(tmp_path, more={"strategy": ""})
    with pytest.raises(ValueError, match="which has its options; leave them out"):
        trainer(tmp_path, more={"strategy": LouderLeft(TWO)}, strategy_options={"title": "x"})
    with pytest.raises(ValueError, match=r"the strategy is for the modalities \['a', 'b'\], the model has"):
        trainer(tmp_path, more={"strategy": LouderLeft(("a", "b"))})
    with pytest.raises(ValueError, match=r"LouderLeft.*, and args\.strategy is 'ogm'; give one of them"):
        trainer(tmp_path, more={"strategy": LouderLeft}, strategy="ogm")


@pytest.mark.parametrize(
    "options", [{"max_unimodal_share": 0.8}, {"unimodal_epochs": 3.0, "num_train_epochs": 4}]
)
def test_the_share_of_the_arguments_counts_before_a_schedule_is_judged(tmp_path, options):
    schedule = [[0.7, list(TWO)]]
    run = trainer(
        tmp_path, strategy="fixed", strategy_options={"schedule": schedule}, **{"max_steps": -1, **options}
    )
    assert run.rule.max_unimodal_share == options.get("max_unimodal_share", 0.75)
    given = FixedSchedule(TWO, schedule=[[0.4, TWO]])
    with pytest.raises(
        ValueError, match=r"schedule uses 0.4 of the budget and max_unimodal_share allows 0.2"
    ):
        trainer(tmp_path, more={"strategy": given}, max_unimodal_share=0.2)


def test_a_share_that_is_given_twice_is_refused(tmp_path):
    options = {"strategy": "adaptive", "strategy_options": {"max_unimodal_share": 0.3}}
    assert trainer(tmp_path, **options).rule.max_unimodal_share == 0.3
    with pytest.raises(
        ValueError, match=r"given twice, as 0.3 among the options of the rule 'adaptive' and as 0.7"
    ):
        trainer(tmp_path, max_unimodal_share=0.7, **options)


def test_a_search_over_strategies_is_refused_where_the_trainer_has_one(tmp_path):
    """A search writes to the arguments; what the trainer was given would silently win."""
    run = trainer(tmp_path, more={"strategy": STRATEGIES["ogm"]}, max_steps=2)
    run.args.strategy = "joint"
    with pytest.raises(
        ValueError, match=r"the trainer was given the strategy .*OGM.*, and args\.strategy is 'joint'"
    ):
        run.train()


def test_the_card_names_what_can_be_typed_again(tmp_path):
    options = {"strategy": "peak-synergy", "strategy_options": {"patience": 3}}
    run = trained(tmp_path, max_steps=2, **options)
    run.evaluate()
    listed = run_facts(run, title="x", dataset="y").hyperparameters
    assert (listed["strategy"], listed["strategy_options"]) == ("peak-synergy", {"patience": 3})


def test_the_same_arguments_serve_two_trainers(tmp_path):
    """Nothing is written to the arguments, so the second trainer trains what they say."""
    first = trainer(tmp_path, more={"strategy": STRATEGIES["ogm"]})
    given = first.args.to_dict()
    first.train()
    assert first.args.to_dict() == given
    second = FusionTrainer(
        model=views(), args=first.args, train_dataset=first.train_dataset, eval_dataset=first.eval_dataset
    )
    assert (first.plan.stages, second.plan.stages) == ("joint", "two-stage")
    assert second.plan.auxiliary_weight == 0.6
    for name in ("rate-per-modality", "two-stage", "joint", "unimodal"):
        options = {"slow": "left"} if name == "rate-per-modality" else None
        args = dataclasses.replace(first.args, strategy=name, strategy_options=options)
        run = FusionTrainer(
            model=views(), args=args, train_dataset=first.train_dataset, eval_dataset=first.eval_dataset
        )
        rates = {"left": 3 * args.learning_rate} if name == "rate-per-modality" else {}
        assert (run.plan.stages, dict(run.plan.learning_rates)) == (STRATEGIES[name].stages, rates)


class Picky(Strategy):
    """It has a reason against everything."""

    name = "picky"
    not_fp16 = "its numbers are large"


def test_float16_is_refused_where_a_strategy_says_so(tmp_path):
    run = trainer(tmp_path, more={"strategy": Picky})
    # Which TrainingArguments refuse on a CPU.
    run.args.fp16 = True
    with pytest.raises(
        ValueError, match="'picky' cannot be trained like this: its numbers are large; use bf16"
    ):
        run.train()


# ---- two processes ----

RANDOM_BY_PROCESS = {
    "modality-dropout": "each process draws what it drops",
    "mcr": "each process permutes the rows of its own batch",
}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Every strategy trained by two processes: their folder, and what each saw."""
    folder = tmp_path_factory.mktemp("two")
    assert ends(start_ranks(lambda: two_process_strategies.main(folder), 2)) == [0, 0]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_end_alike(by_two):
    first, second = by_two[1]
    assert set(first) == {*STRATEGIES, "alone"}
    for name, seen in first.items():
        assert seen == second[name], name


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in RANDOM_BY_PROCESS])
def test_two_processes_train_as_one(by_two, plain, name):
    folder, (seen, _) = by_two
    reason = STRATEGIES[name].only_one_process
    if reason:
        assert f"'{name}' cannot be trained like this: {reason}; start one process" in seen[name]["refused"]
        return
    assert "refused" not in seen[name], seen[name]
    assert seen[name]["processes"] == 2
    run = plain(name)
    probes = [Probe.from_json(values) for values in seen[name]["history"]]
    for one, other in zip(probes, run.record.history, strict=True):
        assert (one.step, one.stage, one.training, one.decision) == (
            other.step,
            other.stage,
            other.training,
            other.decision,
        )
    found, expected = (
        load_file(place / "model.safetensors") for place in (folder / name, Path(run.args.output_dir))
    )
    assert_near(found, expected, rtol=1e-3, atol=2e-4)


def test_a_strategy_for_one_process_refuses_two(by_two):
    sentence = "the strategy 'alone' cannot be trained like this: it must see all rows; start one process."
    assert by_two[1][0]["alone"] == {"refused": sentence, "threads_left": []}
