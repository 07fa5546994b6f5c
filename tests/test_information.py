"""What a probe measures: heads where they are trained, readouts of the embeddings where a rule asks, else clusters."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from readings import make_information, make_measurement, make_reading
from transformers.utils import logging as transformers_logging

from ecsfusion import FusionTrainer, FusionTrainingArguments
from ecsfusion.controller import make_rule
from ecsfusion.controller.rule import Rule, RunContext
from ecsfusion.diagnostics.duplicate import duplicate
from ecsfusion.diagnostics.estimate import few_rows, wide_certificate
from ecsfusion.evaluation.information import decompose
from ecsfusion.evaluation.logged_values import log_values
from ecsfusion.evaluation.measurement import Information
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.model.problem_types import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ecsfusion.training.best_metric import check_best_metric
from ecsfusion.training.evaluator import asks_for_dependence, reads_heads

ROWS = 600
OPTIONS = {"num_clusters": "auto", "num_components": None, "bootstrap": 0, "permutations": 2, "seed": 0}


def evaluation(names=("image", "audio"), kind=SINGLE_LABEL):
    """The embedding of the image knows the label, its head knows nothing; of the others it is the other way round."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (ROWS,), generator=generator)
    noise = torch.randn(2, len(names), ROWS, 3, generator=generator)
    embeddings = {name: noise[0, place].numpy() for place, name in enumerate(names)}
    embeddings["image"] = embeddings["image"] + 4 * labels[:, None].numpy()
    signs = (2.0 * labels - 1)[:, None]
    width = 2 if kind == SINGLE_LABEL else 1
    spread = torch.cat([-signs, signs], 1) if width == 2 else signs
    heads = {name: 0.8 * spread + noise[1, place, :, :width] for place, name in enumerate(names)}
    heads["image"] = noise[1, 0, :, :width]
    heads["fused"] = torch.zeros(ROWS, width)
    target = labels if kind == SINGLE_LABEL else labels[:, None].float()
    present = dict.fromkeys(names, torch.ones(ROWS, dtype=torch.bool))
    return Evaluation(heads, embeddings, present, target)


def decomposed(record, names=None, **options):
    classes = 2 if record.labels.ndim == 1 else 1
    return decompose(record, np.arange(ROWS), names, num_classes=classes, **OPTIONS, **options)


@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL])
def test_heads_are_read_where_they_are_trained_and_embeddings_are_clustered_where_not(kind):
    record = evaluation(kind=kind)
    by_heads = decomposed(record, reads_heads=True, problem_type=kind)
    assert by_heads.redundancy.ndim == 0
    assert float(by_heads.unique[1]) > 0.3
    assert float(by_heads.mutual_information[0]) < 0.05
    assert (by_heads.conditional_mutual_information, by_heads.dependence) == (None, None)
    by_clusters = decomposed(record, problem_type=kind)
    assert float(by_clusters.unique[0]) > 0.5
    assert float(by_clusters.mutual_information[1]) < 0.05
    assert by_clusters.conditional_mutual_information is not None


def test_in_regression_embeddings_are_clustered_for_heads_have_no_posteriors():
    record = evaluation(kind=REGRESSION)
    record.labels = record.labels + 0.1 * torch.randn(ROWS, 1, generator=torch.Generator().manual_seed(1))
    pid = decomposed(record, reads_heads=True, problem_type=REGRESSION)
    assert pid.num_clusters
    assert float(pid.unique[0]) > 0.5


def test_more_modalities_are_read_against_the_rest_and_a_pair_without_the_fused_head():
    record = evaluation(("image", "audio", "text"))
    # Only the fused head knows more than its part of the label.
    record.heads["fused"] = 6 * torch.nn.functional.one_hot(record.labels, 2).float()
    pid = decomposed(record, reads_heads=True)
    assert pid.names == ("image", "audio", "text")
    assert pid.unique.shape == pid.mutual_information.shape == (3,)
    assert float(pid.joint_mutual_information) > 0.95
    pair = decomposed(record, ("image", "audio"), reads_heads=True)
    assert pair.names == ("image", "audio")
    assert float(pair.joint_mutual_information) < 0.9
    assert Information.from_pid(pid).is_by_heads


def test_dependence_is_measured_by_the_embeddings_where_it_is_asked_for():
    record = evaluation()
    coin = torch.randint(2, (ROWS,), generator=torch.Generator().manual_seed(1))
    for name, bit in (("image", coin), ("audio", coin ^ record.labels)):
        noise = torch.from_numpy(record.embeddings[name]) - (
            4 * record.labels[:, None] if name == "image" else 0
        )
        record.embeddings[name] = (0.3 * noise + bit[:, None]).float().numpy()
    asked = Information.from_pid(decomposed(record, reads_heads=True, measures_dependence=True))
    not_asked = Information.from_pid(decomposed(record, reads_heads=True))
    assert asked.dependence > 0.7
    assert (not_asked.measured_dependence, not_asked.dependence) == (None, 0.0)
    few = make_information(
        conditional_mutual_information=None, measured_dependence=0.5, num_samples=30, num_classes=2
    )
    assert few.dependence == 0.0


def test_diagnostics_of_clusters_say_nothing_of_heads():
    by_heads = {"conditional_mutual_information": None, "num_clusters": ()}
    information = make_information(gap=0.3, num_samples=300, **by_heads)
    assert [*few_rows(information), *wide_certificate(information), *duplicate(information)] == []
    assert [*few_rows(make_information(num_samples=30, **by_heads))]
    # Nobody decides by the dependence, so nobody needs rows for it.
    assert not [*few_rows(make_information(num_samples=30, **by_heads), asks_for_dependence=False)]
    assert [*wide_certificate(make_information(gap=0.3))]
    assert not math.isnan(information.dependence)


def run_of(rule, stage, auxiliary_weight, step=10):
    return SimpleNamespace(
        rule=None if rule is None else make_rule(rule, ("image", "audio")),
        record=SimpleNamespace(stage=stage),
        model=SimpleNamespace(config=SimpleNamespace(stage=stage, auxiliary_weight=auxiliary_weight)),
        state=SimpleNamespace(global_step=step),
    )


@pytest.mark.parametrize(
    ("rule", "stage", "auxiliary_weight", "expected"),
    [
        ("adaptive", "unimodal", 0.6, True),
        ("peak-synergy", "joint", 0.6, True),
        # The paper's thresholds are those of clusters.
        ("published", "unimodal", 0.6, False),
        ("published", "joint", 0.6, False),
        # In joint training without unimodal losses the heads stay as they are.
        ("adaptive", "joint", 0.0, False),
        (None, "joint", 0.0, False),
        (None, "joint", 1.0, True),
    ],
)
def test_heads_are_read_where_they_train_and_the_rule_takes_them(rule, stage, auxiliary_weight, expected):
    assert reads_heads(run_of(rule, stage, auxiliary_weight)) == expected


def test_the_heads_of_a_loaded_model_are_read_as_it_was_trained_whatever_this_run_would_do(tmp_path):
    model = two_views(auxiliary_weight=0.0, stage="joint")
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    rows = TwoViews(24, seed=1)
    run = FusionTrainer(
        model=model, args=FusionTrainingArguments(str(tmp_path), **options), eval_dataset=rows
    )
    run.evaluate()
    assert run.pid.num_clusters
    model.config.auxiliary_weight = 0.6
    run.evaluate()
    assert not run.pid.num_clusters


def test_dependence_is_asked_for_by_the_rule_in_stage_one_of_a_run_that_has_begun():
    run = run_of("adaptive", "unimodal", 0.6)
    run.rule.state["readings"] = 1
    assert asks_for_dependence(run)
    run.state.global_step = 0
    assert not asks_for_dependence(run)
    assert not asks_for_dependence(run_of("peak-synergy", "unimodal", 0.6))
    assert not asks_for_dependence(run_of(None, "joint", 1.0))
    ended = run_of("adaptive", "joint", 0.6)
    ended.rule.state["readings"] = 1
    assert not asks_for_dependence(ended)


class Couples(Rule):
    """A rule for both stages."""

    asks_for_dependence = True

    def decide_joint(self, reading):
        return self.train(reading, self.modalities, "all train")


def test_a_rule_that_decides_in_stage_two_is_asked_there_too():
    run = run_of(None, "joint", 0.6)
    run.rule = Couples(("image", "audio")).in_context(RunContext(joint_pausing=True))
    assert asks_for_dependence(run)
    run.rule = Couples(("image", "audio"))
    assert not asks_for_dependence(run)


@pytest.mark.parametrize("reads_heads", [True, False])
def test_floors_of_a_mean_over_labels_are_those_of_the_mean(reads_heads):
    rows = 200

    def floor(labels):
        generator = torch.Generator().manual_seed(0)
        names = ("image", "audio")
        noise = {name: torch.randn(rows, 4, generator=generator).numpy() for name in names}
        logits = {name: torch.randn(rows, labels.shape[1], generator=generator) for name in (*names, "fused")}
        record = Evaluation(logits, noise, dict.fromkeys(names, torch.ones(rows, dtype=torch.bool)), labels)
        options = {} if reads_heads else {"permutations": 4, "bootstrap": 0, "num_clusters": 4}
        pid = decompose(record, np.arange(rows), reads_heads=reads_heads, problem_type=MULTI_LABEL, **options)
        return float(pid.synergy_floor)

    many = torch.randint(2, (rows, 4), generator=torch.Generator().manual_seed(1)).float()
    alone = np.mean([floor(label[:, None]) for label in many.T])
    assert floor(many) == pytest.approx(alone / 2, rel=0.05)
    # Labels that are all alike are one label.
    same = many[:, :1]
    assert floor(same.expand(-1, 4)) == pytest.approx(floor(same), rel=1e-6)


def test_a_rule_that_reads_the_dependence_without_asking_is_told():
    by_heads = {"conditional_mutual_information": None, "num_clusters": ()}
    with pytest.raises(
        ValueError, match="not measured at step 40, because the rule did not ask for it; let its property"
    ):
        _ = make_reading(40, **by_heads).dependence
    assert make_reading(0, **by_heads).dependence == 0.0
    assert make_reading(40, **by_heads, measured_dependence=0.3).dependence == 0.3
    # By clusters it is there at every reading.
    assert make_reading(40).dependence == 0.02


def test_the_dependence_is_logged_where_it_was_measured():
    by_heads = {"conditional_mutual_information": None, "num_clusters": ()}
    assert "dependence" not in log_values(make_measurement(**by_heads))
    assert "dependence" not in log_values(make_measurement(**by_heads, measured_dependence=0.3, rows=40))
    assert log_values(make_measurement(**by_heads, measured_dependence=0.3))["dependence"] == 0.3
    for sets, metric in (([], "eval_dependence"), (["a", "b"], "a_dependence")):
        with pytest.raises(
            ValueError, match=r"is measured only where a rule asks for it.*such as 'accuracy_calibrated'"
        ):
            check_best_metric(metric, ("image", "audio"), "accuracy", sets, False)


@pytest.mark.usefixtures("quick_probes")
def test_an_evaluation_before_training_says_that_the_heads_answer_at_random(tmp_path, caplog):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    model = two_views()

    def said(**changes) -> int:
        caplog.clear()
        for name, value in changes.items():
            setattr(model.config, name, value)
        run = FusionTrainer(
            model=model, args=FusionTrainingArguments(**options), eval_dataset=TwoViews(20, 1)
        )
        run.evaluate()
        run.evaluate()
        return caplog.text.count("This model has not trained yet")

    transformers_logging.get_logger("ecsfusion.training.evaluator").warning_once.__func__.cache_clear()
    assert said() == 1
    # A model that was loaded was trained somewhere.
    transformers_logging.get_logger("ecsfusion.training.evaluator").warning_once.__func__.cache_clear()
    assert said(_name_or_path="a/model") == 0
