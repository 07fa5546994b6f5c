"""Each strategy does what its rule says, on numbers that are worked out here."""

from __future__ import annotations

import math

import pytest
import torch
from strategy_runs import CLASSES, ROWS, STEPS, VIEWS, Views, trained, trainer, views, weights
from torch.nn import functional as F  # noqa: N812
from transformers import TrainerCallback

from ecsfusion.controller.published import Published as PublishedRule
from ecsfusion.strategies import STRATEGIES, make_strategy
from ecsfusion.strategies.ogm import OGM, OGMGE, parts_of_fused_logits

TWO = VIEWS[:2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*samples are few"),
    pytest.mark.usefixtures("quick_probes"),
]


class Watch(TrainerCallback):
    """Weights before every step and after the last; stage and rate at every step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.stages: list[str] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})
        self.stages.append(model.stage)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({name: value.detach().clone() for name, value in model.state_dict().items()})

    def moved(self, step: int) -> set[str]:
        """The parts whose weights the step changed: views, and "fusion"."""
        before, after = self.weights[step], self.weights[step + 1]
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        return {name.split(".")[1] if not name.startswith("fusion") else "fusion" for name in changed}


def loss_of(run, stage: str, **batch) -> tuple[torch.Tensor, object]:
    """The loss that the trainer would step on, and the outputs."""
    run.create_optimizer()
    run.model.train().set_stage(stage)
    return run.compute_loss(run.model, {**run.train_dataset.batch(), **batch}, return_outputs=True)


def cross_entropies(outputs, labels) -> dict[str, torch.Tensor]:
    return {name: F.cross_entropy(z, labels) for name, z in outputs.unimodal_logits.items()}


# ---- joint ----


@pytest.mark.parametrize(
    ("strategy", "options", "weight"),
    [
        ("joint", {}, 0.0),
        ("joint-auxiliary", {}, 0.6),
        ("joint-auxiliary", {"auxiliary_weight": 0.25}, 0.25),
        ("modality-dropout", {"strategy_options": {"probability": 0.0}}, 0.0),
        ("rate-per-modality", {"strategy_options": {"slow": "left"}}, 0.0),
        ("ogm", {}, 0.0),
        ("ogm-ge", {}, 0.0),
        ("uni-pre-frozen", {}, 0.0),
        ("uni-pre-finetuned", {}, 0.0),
        ("warm-up", {}, 0.6),
        ("sequential", {"strategy_options": {"order": ["right", "left"]}}, 0.0),
        ("published", {}, 0.6),
        ("two-stage", {}, 0.6),
    ],
)
def test_the_joint_loss_is_the_fused_cross_entropy_and_so_much_of_the_unimodal_ones(
    tmp_path, strategy, options, weight
):
    loss, outputs = loss_of(trainer(tmp_path, strategy=strategy, **options), "joint")
    labels = Views(ROWS, 0).labels
    expected = F.cross_entropy(outputs.logits, labels)
    for value in cross_entropies(outputs, labels).values():
        expected = expected + weight * value
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("strategy", ["unimodal", "uni-pre-frozen", "uni-pre-finetuned", "warm-up"])
def test_the_unimodal_loss_is_the_sum_over_modalities(tmp_path, strategy):
    loss, outputs = loss_of(trainer(tmp_path, VIEWS, strategy=strategy), "unimodal")
    assert outputs.logits is None
    torch.testing.assert_close(loss, sum(cross_entropies(outputs, Views(ROWS, 0).labels).values()))


def test_joint_training_leaves_the_unimodal_heads_alone(tmp_path):
    seen = Watch()
    trained(tmp_path, strategy="joint", more={"callbacks": [seen]})
    assert seen.stages == ["joint"] * STEPS
    assert all(seen.moved(step) == {"left", "right", "fusion"} for step in range(STEPS))
    first, last = seen.weights[0], seen.weights[-1]
    assert all(torch.equal(first[name], last[name]) for name in first if name.startswith("heads"))


# ---- modality dropout ----


def present_after(probability: float, names: tuple[str, ...], rows: int, given=None) -> torch.Tensor:
    """Which modalities (M, rows) are left."""
    torch.manual_seed(1)
    strategy = make_strategy("modality-dropout", names, probability=probability)
    inputs = {
        "labels": torch.zeros(rows, dtype=torch.long),
        **{name: torch.zeros(rows, 16) for name in names},
    }
    if given is not None:
        inputs["present"] = given
    answer = strategy.prepare_inputs(views(names), inputs)
    assert ("present" in inputs) == (given is not None), "the batch that came in was changed"
    return torch.stack([answer["present"][name] for name in names])


@pytest.mark.parametrize("names", [TWO, VIEWS])
@pytest.mark.parametrize("probability", [0.3, 0.75])
def test_dropout_takes_each_of_the_modalities_equally_often(names, probability):
    rows, count = 6000, len(names)
    lost = ~present_after(probability, names, rows)
    assert int(lost.sum(dim=0).max()) == 1, "a row lost two"
    share = probability / count
    spread = math.sqrt(rows * share * (1 - share))
    for number in lost.sum(dim=1).tolist():
        assert abs(number - rows * share) < 4.5 * spread


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropout_at_its_ends_takes_none_or_one_of_every_row(probability):
    lost = ~present_after(probability, VIEWS, 3000)
    assert (lost.sum(dim=0) == probability).all()
    assert not probability or all(900 < number < 1100 for number in lost.sum(dim=1).tolist())


def test_dropout_never_takes_the_only_modality_of_a_row_and_takes_only_what_is_there():
    rows = 3000
    given = {name: torch.zeros(rows, dtype=torch.bool) for name in VIEWS}
    # A thousand rows have the left view only,.
    given["left"][:1000] = True
    # Two thousand the two others.
    given["right"][1000:] = given["noise"][1000:] = True
    left = present_after(1.0, VIEWS, rows, given)
    assert left[0, :1000].all()
    assert (left.sum(dim=0) == 1).all()
    assert not left[1:, :1000].any()
    assert all(abs(number - 1000) < 4.5 * math.sqrt(500) for number in left[1:, 1000:].sum(dim=1).tolist())
    # an input that is left out for the whole batch is not asked for either
    strategy = make_strategy("modality-dropout", TWO, probability=1.0)
    only = {"labels": torch.zeros(5, dtype=torch.long), "left": torch.zeros(5, 16), "right": None}
    assert strategy.prepare_inputs(views(), only)["present"]["left"].all()


def test_dropout_is_for_training_only(tmp_path):
    run = trainer(tmp_path, strategy="modality-dropout", strategy_options={"probability": 1.0})
    loss, outputs = loss_of(run, "joint")
    there = torch.stack([outputs.present[name] for name in TWO])
    assert (there.sum(dim=0) == 1).all()
    # what the missing half counts for is in tests/test_missing_modalities.py
    labels = Views(ROWS, 0).labels
    torch.testing.assert_close(loss, F.cross_entropy(outputs.logits, labels))
    batch = run.train_dataset.batch()
    outputs = run.compute_loss(run.model.eval(), batch, return_outputs=True)[1]
    assert all(mask.all() for mask in outputs.present.values())


# ---- rates ----


def rates(run) -> dict[str, float]:
    run.create_optimizer()
    return {group["name"]: group["lr"] for group in run.optimizer.param_groups}


def test_the_slow_encoder_learns_at_a_multiple_of_the_rate(tmp_path):
    options = {"strategy": "rate-per-modality", "learning_rate": 0.01}
    found = rates(trainer(tmp_path, VIEWS, strategy_options={"slow": "right", "factor": 4.0}, **options))
    assert found == {
        **{f"{name}{suffix}": 0.01 for name in ("left", "noise", "fusion") for suffix in ("", ".no_decay")},
        "right": 0.04,
        "right.no_decay": 0.04,
    }
    slow = {"slow": "right"}
    given = trainer(tmp_path, strategy_options=slow, modality_learning_rates={"left": 0.5}, **options)
    assert (rates(given)["left"], rates(given)["right"]) == (0.5, pytest.approx(0.03))
    against = trainer(tmp_path, strategy_options=slow, modality_learning_rates={"right": 0.5}, **options)
    assert rates(against)["right"] == 0.5, "what the user says goes"


def test_a_search_over_the_rate_moves_the_slow_ones_with_it(tmp_path):
    run = trainer(
        tmp_path, strategy="rate-per-modality", strategy_options={"slow": "right"}, learning_rate=0.01
    )
    assert rates(run)["right"] == pytest.approx(0.03)
    run.args.learning_rate, run.optimizer = 0.1, None
    assert (rates(run)["right"], rates(run)["left"]) == (pytest.approx(0.3), 0.1)


def test_a_rate_is_not_lost_on_an_optimizer_of_ones_own(tmp_path):
    model = views()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"strategy": "rate-per-modality", "strategy_options": {"slow": "right"}}
    with pytest.raises(ValueError, match=r"optimizers holds an optimizer.*or set by the strategy"):
        trainer(tmp_path, model=model, more={"optimizers": (optimizer, None)}, **options)


# ---- OGM ----


def test_ogm_scales_by_the_ratio_of_the_scores():
    ogm = OGM(TWO, alpha=0.5)
    # ratio 3: 1 - tanh(1.5) = 1 - (e^3 - 1) / (e^3 + 1) = 2 / (e^3 + 1)
    k = ogm.coefficients(torch.tensor([6.0, 2.0]))
    torch.testing.assert_close(k, torch.tensor([2 / (math.exp(3.0) + 1), 1.0]))
    assert ogm.coefficients(torch.tensor([5.0, 5.0])).tolist() == [1.0, 1.0]
    k = OGM(TWO, alpha=1.0).coefficients(torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(k, torch.tensor([1.0, 2 / (math.exp(3.0) + 1)]))
    assert ogm.coefficients(torch.tensor([0.0, 3.0])).tolist() == [1.0, 0.0], "nothing to compare with"
    assert ogm.coefficients(torch.tensor([0.0, 0.0])).tolist() == [1.0, 1.0]


def test_the_parts_of_the_fused_logits_are_their_sum_and_each_has_half_of_the_bias():
    model = views()
    torch.nn.init.normal_(model.fusion.linear.bias)
    outputs = model(**Views(9, 0).batch())
    parts = parts_of_fused_logits(model, outputs)
    torch.testing.assert_close(parts["left"] + parts["right"], outputs.logits)
    weight, bias = model.fusion.linear.weight, model.fusion.linear.bias
    torch.testing.assert_close(parts["left"], outputs.embeddings["left"] @ weight[:, :6].T + bias / 2)
    torch.testing.assert_close(parts["right"], outputs.embeddings["right"] @ weight[:, 6:].T + bias / 2)
    other = views(fusion="gated-sum")
    outputs = other(**Views(9, 0).batch())
    assert parts_of_fused_logits(other, outputs) == outputs.unimodal_logits


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def look_at(strategy, model, rows: range, present=None) -> dict[str, torch.Tensor]:
    """One batch of training that the strategy sees; the scores of these rows, computed by hand."""
    batch = {name: value[rows.start : rows.stop] for name, value in Views(ROWS, 0).batch().items()}
    outputs = model.train()(**batch, present=present)
    F.cross_entropy(outputs.logits, batch["labels"]).backward()
    assert strategy.loss(model, outputs, batch["labels"]) is None
    scores, weight = {}, model.fusion.linear.weight.detach().split([6, 5], dim=1)
    for name, w in zip(TWO, weight, strict=True):
        p = (outputs.embeddings[name].detach() @ w.T + model.fusion.linear.bias.detach() / 2).softmax(1)
        of_label = p[torch.arange(len(p)), batch["labels"]]
        scores[name] = of_label[outputs.present[name]].sum()
    return scores


@pytest.mark.parametrize("ahead", TWO)
def test_ogm_makes_the_gradient_of_the_encoder_that_is_ahead_smaller(ahead):
    """The scores are those of all batches of the step, of rows that have the modality."""
    model = views()
    behind = "left" if ahead == "right" else "right"
    with torch.no_grad():
        for parameter in model.encoders[behind].second.parameters():
            # It says the same of every row.
            parameter.zero_()
        # the other one's part of the fused logits speaks for the commonest class
        common = Views(ROWS, 0).labels.bincount().argmax()
        columns = slice(0, 6) if ahead == "left" else slice(6, None)
        model.encoders[ahead].second.bias.fill_(1.0)
        model.fusion.linear.weight[common, columns] = 0.2
    strategy, gaps = OGM(TWO, alpha=0.5), {behind: torch.arange(32) % 2 == 0}
    first, second = (range(32), gaps), (range(32, 64), None)
    for batches in ([first, second], [first]):
        # The second step starts from nothing again.
        model.zero_grad()
        parts = [look_at(strategy, model, *batch) for batch in batches]
        scores = {name: torch.stack([part[name] for part in parts]).sum() for name in TWO}
        before = gradients(model)
        strategy.adjust_gradients(model)
        ratio = float(scores[ahead] / scores[behind])
        assert ratio > 1, "nobody is ahead"
        k = 1 - math.tanh(0.5 * ratio)
        for name, value in gradients(model).items():
            factor = k if name.startswith(f"encoders.{ahead}") else 1.0
            torch.testing.assert_close(value, factor * before[name])


def test_the_noise_of_ogm_ge_has_the_spread_of_the_gradient_and_comes_again():
    class Fixed(OGMGE):
        def coefficients(self, scores):
            return torch.tensor([0.25, 1.0])

    gradient = 0.3 + 2.0 * torch.randn(300, 200, generator=torch.Generator().manual_seed(2))
    model = views()
    model.encoders["left"].first.weight = torch.nn.Parameter(torch.zeros(300, 200))

    def noise_of(strategy) -> torch.Tensor:
        model.encoders["left"].first.weight.grad = gradient.clone()
        model.encoders["right"].first.weight.grad = torch.ones(10, 16)
        strategy.adjust_gradients(model)
        assert (model.encoders["right"].first.weight.grad == 1.0).all(), "it was not scaled"
        return model.encoders["left"].first.weight.grad - 0.25 * gradient

    torch.manual_seed(7)
    first = Fixed(TWO)
    noises = [noise_of(first) for _ in range(3)]
    spread = float(gradient.std(correction=0))
    for noise in noises:
        assert float(noise.std()) == pytest.approx(spread, rel=0.02)
        assert abs(float(noise.mean())) < 5 * spread / math.sqrt(noise.numel())
        assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), gradient.flatten()]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([n.flatten() for n in noises[:2]]))[0, 1])) < 0.02
    # On another process, or after a restart, the global generator stands elsewhere, but was seeded alike.
    torch.manual_seed(7)
    torch.rand(12345)
    again, state = Fixed(TWO), torch.get_rng_state()
    assert torch.equal(noise_of(again), noises[0])
    assert torch.equal(torch.get_rng_state(), state), "the noise takes nothing from the global generator"
    resumed = Fixed(TWO)
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(noise_of(resumed), noises[1])
    torch.manual_seed(8)
    assert not torch.equal(noise_of(Fixed(TWO)), noises[0])


# ---- one after another ----


@pytest.mark.parametrize(
    ("strategy", "options", "steps", "length"),
    [
        ("uni-pre-frozen", {}, 10, 8),
        ("uni-pre-finetuned", {}, 9, 6),
        ("warm-up", {}, 8, 4),
        ("warm-up", {"share": 0.3}, 10, 3),
        ("uni-pre-frozen", {"share": 0.5}, 7, 4),
    ],
)
def test_stage_one_takes_its_share_of_the_budget(tmp_path, strategy, options, steps, length):
    """Evaluated rarely: the change does not wait for an evaluation that is due."""
    seen = Watch()
    run = trained(
        tmp_path,
        strategy=strategy,
        strategy_options=options,
        max_steps=steps,
        eval_steps=100,
        more={"callbacks": [seen]},
    )
    assert seen.stages == ["unimodal"] * length + ["joint"] * (steps - length)
    assert run.record.stage_start == length
    frozen = strategy == "uni-pre-frozen"
    assert all(seen.moved(step) == set(TWO) for step in range(length - 1))
    expected = {"fusion"} if frozen else {*TWO, "fusion"}
    assert all(seen.moved(step) == expected for step in range(length, steps))


def test_frozen_encoders_stay_bit_for_bit_what_they_are_and_the_fused_head_learns(tmp_path):
    seen = Watch()
    model = views(norm=True)
    run = trained(
        tmp_path,
        model=model,
        strategy="uni-pre-frozen",
        strategy_options={"share": 0.5},
        weight_decay=0.1,
        more={"callbacks": [seen]},
    )
    change = run.record.stage_start
    assert change == STEPS // 2
    first, last = seen.weights[change], seen.weights[STEPS]
    statistics = [name for name in first if "running" in name or "tracked" in name]
    assert len(statistics) == 6
    assert any(not torch.equal(seen.weights[0][name], first[name]) for name in statistics)
    for name, value in first.items():
        if not name.startswith("fusion"):
            assert torch.equal(value, last[name]), name
    for before, after in zip(seen.weights[change:-1], seen.weights[change + 1 :], strict=True):
        assert not torch.equal(before["fusion.linear.weight"], after["fusion.linear.weight"])
        assert not torch.equal(before["fusion.linear.bias"], after["fusion.linear.bias"])
    # The fused head starts as the sum of the unimodal ones.
    heads = [first[f"heads.{name}.weight"] for name in TWO]
    start = seen.weights[change]["fusion.linear.weight"]
    torch.testing.assert_close(start, torch.cat(heads, dim=1))
    # Afterwards the model is as it was given, for whoever trains it next.
    assert all(p.requires_grad for p in run.model.parameters())
    assert all(module.training for module in run.model.train().encoders.modules())


def test_sequential_trains_the_weakest_first_and_then_the_next(tmp_path):
    seen = Watch()
    order = ["noise", "right", "left"]
    run = trained(
        tmp_path,
        VIEWS,
        strategy="sequential",
        strategy_options={"order": order, "share": 0.2},
        max_steps=10,
        more={"callbacks": [seen]},
    )
    assert seen.stages == ["unimodal"] * 6 + ["joint"] * 4
    moved = [seen.moved(step) - {"fusion"} for step in range(10)]
    assert moved == [{"noise"}] * 2 + [{"right"}] * 2 + [{"left"}] * 2 + [set(VIEWS)] * 4
    assert [list(entry.training) for entry in run.record.history[:4]] == [
        *([name] for name in order),
        list(VIEWS),
    ]


@pytest.mark.usefixtures("exact_probes")
def test_unimodal_training_ends_in_both_ensembles(tmp_path):
    """The fused answer is the product of the softmaxes; the readout's is the same with weights, fitted here."""
    run = trained(tmp_path, VIEWS, strategy="unimodal", max_steps=40, eval_steps=20, learning_rate=0.02)
    assert run.record.stage == "unimodal"
    assert run.state.global_step == 40
    rows = run.eval_dataset.batch()
    labels = rows.pop("labels")
    with torch.no_grad():
        outputs = run.model.eval()(**rows)
    product = torch.ones(len(labels), CLASSES)
    for z in outputs.unimodal_logits.values():
        product = product * z.softmax(dim=1)
    torch.testing.assert_close(outputs.logits.softmax(dim=1), product / product.sum(dim=1, keepdim=True))

    def loss(probabilities) -> float:
        return float(F.nll_loss(probabilities.log(), labels))

    single = [z.softmax(dim=1) for z in outputs.unimodal_logits.values()]
    mean = torch.stack(single).mean(dim=0)
    calibrated = loss(outputs.probabilities)
    assert calibrated <= min(loss(p) for p in (outputs.logits.softmax(dim=1), *single)) + 1e-6
    assert calibrated < loss(mean)
    ahead = max(float((p.argmax(1) == labels).float().mean()) for p in single)
    assert ahead > 0.6, "nothing was learned"


# ---- the paper's ----


def test_published_is_the_papers_rule_and_weight(tmp_path):
    run = trainer(tmp_path, strategy="published")
    assert (run.plan.stages, run.rule.name, run.plan.auxiliary_weight) == ("two-stage", "published", 0.6)
    assert isinstance(run.rule, PublishedRule)
    options = trainer(tmp_path, strategy="published", strategy_options={"tau": 2.0})
    assert options.rule.tau == 2.0
    with pytest.raises(ValueError, match=r"the rule 'published' is defined for two modalities"):
        trainer(tmp_path, VIEWS, strategy="published")


def test_two_stage_is_what_the_trainer_did_without_strategies(tmp_path):
    named = trained(tmp_path / "named", strategy="two-stage")
    default = trained(tmp_path / "default")
    assert named.record.history == default.record.history
    assert all(torch.equal(value, weights(default)[name]) for name, value in weights(named).items())


# ---- options ----


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("modality-dropout", {"probability": 1.5}, "probability is 1.5; it must be in"),
        ("rate-per-modality", {}, "slow"),
        ("rate-per-modality", {"slow": "top"}, "slow is 'top'; it must be one of the modalities"),
        ("rate-per-modality", {"slow": "left", "factor": 0.0}, "factor is 0.0; it must be positive"),
        ("ogm", {"alpha": -1.0}, "alpha is -1.0; it must be positive"),
        ("uni-pre-frozen", {"share": 1.0}, "share is 1.0; it is a part of the budget"),
        ("sequential", {"order": ["left"]}, r"order is \['left'\]; it must hold each of"),
        (
            "sequential",
            {"order": ["left", "right"], "share": 0.5},
            "2 times this share must be above 0 and below 1",
        ),
        ("joint", {"alpha": 1.0}, "alpha"),
    ],
)
def test_bad_options_are_named(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(strategy, TWO, **options)


def test_every_strategy_says_what_it_is():
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert (strategy.__doc__ or "").strip(), name
