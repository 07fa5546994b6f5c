"""Rows that share a source: the column of their groups reaches probe, readout, diagnostics and card, and no model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fusion_fixtures import TwoViews, two_views
from ranks import ends, start_ranks
from readings import make_information
from torch.utils.data import IterableDataset, Subset

from ecsfusion import FusionTrainer, FusionTrainingArguments, Readout, fast_pid
from ecsfusion.data.groups import GroupCollator, column_of, group_key, keys_of
from ecsfusion.diagnostics.groups import few_groups, repeating_rows, shared_groups
from ecsfusion.evaluation.information import decompose
from ecsfusion.evaluation.outputs import Evaluation
from ecsfusion.evaluation.scores import calibrated_answers, scale_of
from ecsfusion.model.problem_types import REGRESSION, SINGLE_LABEL
from ecsfusion.pid.folds import independent_rows
from ecsfusion.processing import TensorCollator
from ecsfusion.training.groups import RunGroups

pytestmark = pytest.mark.usefixtures("quick_probes")
ROWS = 96


class Subjects(TwoViews):
    """Two rows of each subject; the label is that of the row."""

    def __init__(self, num_rows: int, seed: int, first: int) -> None:
        super().__init__(num_rows, seed)
        self.subjects = [f"subject {first + row // 2}" for row in range(num_rows)]

    def __getitem__(self, index: int) -> dict[str, object]:
        return {**super().__getitem__(index), "subject": self.subjects[index]}


class AsStream(IterableDataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self):
        return (self.rows[index] for index in range(len(self.rows)))


def arguments(folder: Path, **options: object) -> FusionTrainingArguments:
    return FusionTrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 10,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "report_to": "none",
            "group_column_name": "subject",
            **options,
        }
    )


def heads_of(
    num_groups: int, rows_per_group: int, seed: int = 0, problem_type: str = SINGLE_LABEL
) -> Evaluation:
    """Rows of groups that are all alike inside, in an order that mixes them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_groups,), generator=generator)
    logits = {name: torch.randn(num_groups, 3, generator=generator) for name in ("left", "right", "fused")}
    logits["left"][torch.arange(num_groups), labels] += 2.0
    order = torch.randperm(num_groups * rows_per_group, generator=generator)
    source = torch.arange(num_groups).repeat_interleave(rows_per_group)[order]
    everyone = torch.ones(len(source), dtype=torch.bool)
    return Evaluation(
        {name: values[source] for name, values in logits.items()},
        {name: logits[name][source].numpy() for name in ("left", "right")},
        {"left": everyone, "right": everyone},
        labels[source] if problem_type == SINGLE_LABEL else labels[source].float(),
        groups=source * 1_000_003,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_probes) -> FusionTrainer:
    """Trained on subjects 0 to 47, judged on 40 to 87: eight of them are in both sets."""
    trainer = FusionTrainer(
        model=two_views(),
        args=arguments(tmp_path_factory.mktemp("groups")),
        train_dataset=Subjects(ROWS, 0, first=0),
        eval_dataset=Subjects(ROWS, 1, first=40),
    )
    trainer.train()
    return trainer


def test_a_run_counts_the_groups_of_its_evaluation(run, capsys) -> None:
    measured = run.measurements["validation"]
    assert (measured.num_rows, measured.num_groups, measured.information.num_groups) == (ROWS, 48, 48)
    assert measured.scale.rows == 48
    # 8 nats over what the rows are worth.
    rows = independent_rows(torch.arange(ROWS) // 2, run.eval_dataset.labels)
    assert 48 < rows < ROWS
    assert measured.information.floor["synergy"] == pytest.approx(8 / (rows * np.log(2)))
    for probe in run.record.history:
        assert probe.reading.measurement.num_groups == 48


def test_groups_that_were_trained_on_are_found_though_the_rows_are_made_one_by_one(run) -> None:
    (found,) = [each for each in run.record.warnings if each["diagnostic"] == "shared groups"]
    assert found["about"] == "validation"
    assert found["sentence"].startswith(
        "8 of the 48 groups of validation are in the training rows, too (16 of its 96"
    )


def test_summary_and_card_say_how_many_groups_there_are(run) -> None:
    from ecsfusion.reporting.results import run_summary

    metrics = {"train_runtime": 1.0, "probe_seconds": 0.5, "probe_share": 0.5, "measuring_share": 0.1}
    assert "on 96 validation rows of 48 groups: accuracy" in run_summary(run, metrics)
    run.create_model_card(dataset="two views")
    card = Path(run.args.output_dir, "README.md").read_text()
    assert "| split | rows | groups |" in card
    assert "| validation | 96 | 48 |" in card
    assert re.search(r"\| train \| \d+ \| not counted \|", card)
    assert "| `group_column_name` | subject |" in card


def test_sets_without_the_column_and_predictions_are_as_without_groups(run) -> None:
    run.evaluate(TwoViews(20, 5), metric_key_prefix="other")
    assert run.measurements["other"].num_groups is None
    for ignored in (None, []):
        grouped, single = (
            run.predict(rows, ignored).predictions for rows in (Subjects(20, 5, 0), TwoViews(20, 5))
        )
        assert len(grouped) == len(single)


@pytest.mark.parametrize("stream", [False, True])
def test_groups_come_in_the_order_of_the_rows(run, stream) -> None:
    rows = Subjects(30, 5, first=100)
    found = run.evaluate_rows(AsStream(rows) if stream else rows).groups
    expected = [group_key(name, "subject", "a row") for name in rows.subjects]
    assert found.tolist() == expected


def test_a_probe_set_without_the_column_is_refused(tmp_path) -> None:
    def begin(evaluation: Any, column: str) -> None:
        FusionTrainer(
            model=two_views(),
            args=arguments(tmp_path, group_column_name=column),
            train_dataset=Subjects(8, 0, 0),
            eval_dataset=evaluation,
        ).create_optimizer()

    message = r"group_column_name is 'subjekt', but the rows of eval_dataset have .*subject"
    with pytest.raises(ValueError, match=message):
        begin(Subjects(8, 0, 0), "subjekt")
    with pytest.raises(ValueError, match="group_column_name is 'left', which the model reads"):
        begin(Subjects(8, 0, 0), "left")
    # Also where nothing trains.
    with pytest.raises(ValueError, match=message):
        FusionTrainer(
            model=two_views(),
            args=arguments(tmp_path, group_column_name="subjekt"),
            eval_dataset=Subjects(8, 0, 0),
            strategy="joint",
        ).evaluate()


def test_a_collator_of_the_users_own_does_not_see_the_column(tmp_path) -> None:
    keys = []

    def collate(rows: Any) -> Any:
        keys.append({key for row in rows for key in row})
        return TensorCollator(("left", "right"))(rows)

    trainer = FusionTrainer(
        model=two_views(),
        args=arguments(tmp_path),
        train_dataset=Subjects(8, 0, first=0),
        eval_dataset=Subjects(8, 1, first=2),
        data_collator=collate,
    )
    # In the order of a run.
    for _ in trainer.get_train_dataloader():
        pass
    trainer.create_optimizer()
    assert set.union(*keys) == {"left", "right", "labels"}
    found = trainer.groups.shared(trainer.evaluate_rows(trainer.eval_dataset).groups, "validation")
    assert [finding.sentence.split(":")[0] for finding in found] == [
        "2 of the 4 groups of validation are in the training rows, too (4 of its 8 rows)"
    ]


def evaluate_on_two_processes(folder: Path) -> None:
    trainer = FusionTrainer(
        model=two_views(), args=arguments(folder), eval_dataset=Subjects(31, 1, 0), strategy="joint"
    )
    trainer.evaluate()
    groups = trainer.evaluate_rows(Subjects(31, 1, 0)).groups.tolist()
    rank = trainer.args.process_index
    (folder / f"{rank}.json").write_text(json.dumps([trainer.measurements["validation"].num_groups, groups]))
    trainer.end_training()


def test_two_processes_gather_groups_as_they_do_labels(tmp_path) -> None:
    assert ends(start_ranks(lambda: evaluate_on_two_processes(tmp_path), 2)) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first == [16, [group_key(f"subject {row // 2}", "", "") for row in range(31)]]


# ---- the collator ----


def test_the_collator_takes_the_column_out_of_the_rows() -> None:
    rows = [{"left": torch.zeros(2), "labels": 0, "subject": name} for name in ("a", "b", "a")]
    # A collator that takes every key for a modality.
    batch = GroupCollator(TensorCollator(), "subject", carries=True)(rows)
    assert set(batch) == {"left", "labels", "_groups"}
    assert batch["_groups"].dtype == torch.int64
    assert batch["_groups"][0] == batch["_groups"][2] != batch["_groups"][1]
    training = GroupCollator(TensorCollator(), "subject")
    assert set(training(rows)) == {"left", "labels"}
    assert training.seen == keys_of(["a", "b"])


def test_a_group_is_a_text_or_a_whole_number() -> None:
    same = [3, "3", 3.0, np.int64(3), torch.tensor(3)]
    assert len({group_key(value, "subject", "row 0") for value in same}) == 1
    for missing in (None, float("nan"), "", " "):
        with pytest.raises(ValueError, match=r"row 7 has no 'subject'.*name the group of every row"):
            group_key(missing, "subject", "row 7")
    for wrong in (1.5, [1], {"a": 1}):
        with pytest.raises(
            TypeError, match=r"'subject' of row 7 is .* name a group by a text or a whole number"
        ):
            group_key(wrong, "subject", "row 7")


def test_a_row_without_a_group_is_named_before_the_first_step() -> None:
    def begin(subjects: list[Any], other: dict[str, Any]) -> list[Any]:
        sets = {
            "eval_dataset['known']": [{"left": 0, "subject": subject} for subject in subjects],
            "eval_dataset['shifted']": [other],
        }
        run = SimpleNamespace(
            args=SimpleNamespace(group_column_name="subject"),
            train_dataset=[{"left": 0, "subject": None}],
            evaluation_sets=lambda: sets,
            model=SimpleNamespace(modalities=("left", "right")),
        )
        return list(RunGroups(run).begin())

    with pytest.raises(ValueError, match=r"row 1 of eval_dataset\['known'\] has no 'subject'"):
        begin(["a", None], {"left": 0})
    with pytest.raises(TypeError, match=r"'subject' of row 0 of eval_dataset\['shifted'\] is 0.5"):
        begin(["a", "b"], {"left": 0, "subject": 0.5})
    # Training rows without a group, and further sets without the column, are allowed.
    assert begin(["a", "b"], {"left": 0}) == []


def test_columns_are_read_where_no_row_need_be_made() -> None:
    import datasets

    table = datasets.Dataset.from_dict({"subject": ["a", "b", "c"], "x": [1, 2, 3]})
    assert column_of(table, "subject") == ["a", "b", "c"]
    # A transform makes the rows: the column itself is read.
    assert column_of(table.with_transform(lambda rows: 1 / 0), "subject") == ["a", "b", "c"]
    assert column_of(Subset(table, [2, 0]), "subject") == ["c", "a"]
    assert column_of([{"subject": 1}, {}], "subject") == [1, None]
    assert column_of(table, "person") is None
    assert column_of(TwoViews(4, 0), "subject") is None


# ---- what is counted ----


def test_rows_of_a_group_count_as_one_where_heads_are_read() -> None:
    alone, repeated = heads_of(60, 1), heads_of(60, 5)
    pids = [decompose(each, np.arange(len(each.labels)), reads_heads=True) for each in (alone, repeated)]
    assert [float(pid.synergy_floor) for pid in pids] == pytest.approx([8 / (60 * np.log(2))] * 2)
    width = [float(pid.unique_interval[0, 1] - pid.unique_interval[0, 0]) for pid in pids]
    assert width[1] == pytest.approx(width[0], rel=0.5)
    without = decompose(heads_without_groups(repeated), np.arange(300), reads_heads=True)
    assert float(without.synergy_floor) == pytest.approx(
        8 / (60 * np.log(2))
    )  # equal rows are found by themselves
    assert scale_of(repeated, SINGLE_LABEL).rows == 60
    assert scale_of(heads_without_groups(repeated), SINGLE_LABEL).rows == 300


def test_rows_are_worth_more_where_the_labels_of_a_group_are_mixed() -> None:
    groups = torch.arange(40).repeat_interleave(10)
    one_label, mixed = groups % 4, torch.arange(400) % 4
    assert independent_rows(groups, one_label) == pytest.approx(40)
    assert independent_rows(groups, mixed) == 400
    half = torch.where(torch.arange(400) % 2 == 0, one_label, torch.randint(4, (400,)))
    assert 60 < independent_rows(groups, half) < 250
    assert independent_rows(torch.arange(30), torch.zeros(30, dtype=torch.int64)) == 30


@pytest.mark.parametrize("labels_mixed", [False, True])
def test_noise_that_is_alike_in_a_group_stays_below_the_floor(labels_mixed) -> None:
    exceeded = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        groups = torch.arange(24).repeat_interleave(12)
        of_group = torch.randint(3, (24,), generator=generator)
        labels = torch.randint(3, (288,), generator=generator) if labels_mixed else of_group[groups]
        everyone = torch.ones(288, dtype=torch.bool)
        heads = {
            name: 2 * torch.randn(24, 3, generator=generator)[groups] for name in ("left", "right", "fused")
        }
        noise = Evaluation(
            heads, {"left": None, "right": None}, {"left": everyone, "right": everyone}, labels, groups=groups
        )
        pid = decompose(noise, np.arange(288), reads_heads=True)
        exceeded += bool((pid.mutual_information > pid.unique_floor).any())
        if labels_mixed:
            assert float(pid.unique_floor[0]) < 8 / (100 * np.log(2))
    assert exceeded <= 1


def heads_without_groups(evaluation: Evaluation) -> Evaluation:
    return Evaluation(evaluation.heads, evaluation.embeddings, evaluation.present, evaluation.labels)


@pytest.mark.filterwarnings("ignore::ecsfusion.FewSamplesWarning")
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, REGRESSION])
def test_by_clusters_floors_and_intervals_are_those_of_the_groups(problem_type) -> None:
    evaluation = heads_of(60, 4, problem_type=problem_type)
    rows = np.arange(240)
    options = {"problem_type": problem_type, "num_classes": 3, "permutations": 4, "bootstrap": 8}
    grouped = decompose(evaluation, rows, **options)
    single = decompose(heads_without_groups(evaluation), rows, **options)
    assert torch.equal(grouped.synergy, single.synergy)
    assert bool((grouped.synergy_floor >= 4 * single.synergy_floor).all())
    assert bool((grouped.unique_floor >= 4 * single.unique_floor).all())
    reach = [float(pid.redundancy_interval[1] - pid.redundancy) for pid in (grouped, single)]
    assert reach[0] == pytest.approx(2 * reach[1])


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, REGRESSION])
def test_the_calibrated_answer_to_a_group_is_fitted_on_others(problem_type, monkeypatch) -> None:
    """A readout that knows which rows it was fitted on."""
    evaluation = heads_of(20, 3, problem_type=problem_type)
    numbers, judged = evaluation.group_numbers(), []

    def fit(cls, logits, labels, present, problem_type, subsets=True, excluded_from_readout=(), groups=None):
        fitted_on = set(logits["mark"].flatten().long().tolist())
        assert groups is not None
        assert set(groups.tolist()) == fitted_on

        def answers(heads, masks):
            own = set(heads["mark"].flatten().long().tolist())
            judged.append((own, fitted_on))
            return heads["fused"]

        return SimpleNamespace(answers=answers)

    monkeypatch.setattr(Readout, "fit", classmethod(fit))
    heads = {**evaluation.heads, "mark": numbers[:, None].float()}
    present = {name: mask.numpy() for name, mask in evaluation.present.items()}
    calibrated_answers(heads, evaluation.labels, None, present, problem_type, (), numbers)
    assert len(judged) == 2
    assert not any(own & fitted for own, fitted in judged)
    assert set.union(*(own for own, _ in judged)) == set(range(20))


@pytest.mark.usefixtures("exact_probes")
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, REGRESSION])
def test_a_readout_of_repeated_rows_is_that_of_the_rows(problem_type) -> None:
    alone, repeated = (heads_of(40, copies, problem_type=problem_type) for copies in (1, 6))

    def fit(evaluation: Evaluation, groups: Any) -> np.ndarray:
        labels = (
            evaluation.labels if problem_type == SINGLE_LABEL else evaluation.labels[:, None].expand(-1, 3)
        )
        readout = Readout.fit(evaluation.heads, labels, problem_type=problem_type, groups=groups)
        return np.array(list(readout.weights().values()))

    np.testing.assert_allclose(fit(repeated, repeated.groups), fit(alone, None), atol=1e-3)
    assert not np.allclose(fit(repeated, None), fit(alone, None), atol=1e-3)
    with pytest.raises(ValueError, match=r"groups is .*give one whole number for each of the 40 rows"):
        fit(alone, torch.zeros(3))


# ---- what is said ----


def test_shared_groups_are_counted_with_their_rows() -> None:
    assert not [*shared_groups({1, 2}, [3, 4, None], "test")]
    (found,) = shared_groups({1, 2}, [1, 1, 3, None, 2], "test")
    assert found.sentence.startswith(
        "2 of the 3 groups of test are in the training rows, too (3 of its 5 rows)"
    )


def test_few_groups_are_said_where_noise_reaches_what_there_is_to_know() -> None:
    def information(groups: int | None, floor: float) -> Any:
        return make_information(num_classes=4, num_samples=600, floor=floor, num_groups=groups)

    assert not [*few_groups(information(None, 2.0))]
    assert not [*few_groups(information(97, 0.12))]
    (few,) = few_groups(information(12, 2.0))
    assert "600 probed rows are of 12 groups: noise alone may reach 2.00 bits of the 2.00" in few.sentence
    assert "give about 48 groups" in few.sentence
    (all_of_it,) = few_groups(information(12, 5.0))
    assert "noise alone may reach 2.00 bits of the 2.00" in all_of_it.sentence
    assert "give about 120 groups" in all_of_it.sentence
    (two,) = few_groups(information(2, 0.02))
    assert "give about 10 groups" in two.sentence
    (one,) = few_groups(information(1, 0.1))
    assert "of one group" in one.sentence


def test_rows_of_one_group_stand_alone() -> None:
    evaluation = heads_of(40, 1)
    evaluation.groups = torch.zeros(40, dtype=torch.int64)
    assert evaluation.group_numbers() is None
    assert evaluation.count() == 40


def test_rows_that_repeat_are_found_though_batches_change_their_last_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.arange(400) % 100
    left = torch.randn(100, 24, generator=generator)[source] + 50
    left += 1e-5 * torch.randn(400, 24, generator=generator)
    right = torch.randn(400, 24, generator=generator)
    everyone = torch.ones(400, dtype=torch.bool)

    def findings(left: torch.Tensor, groups: torch.Tensor | None = None) -> list[str]:
        evaluation = Evaluation(
            {},
            {"left": left.numpy(), "right": right.numpy()},
            {"left": everyone, "right": everyone},
            source % 3,
            groups=groups,
        )
        return [found.sentence for found in repeating_rows(evaluation)]

    (sentence,) = findings(left)
    assert sentence.startswith("left has only 1")
    assert "group_column_name" in sentence
    assert not findings(left, source)
    assert not findings(torch.randn(400, 24, generator=generator))


@pytest.mark.parametrize("number", [2, 3])
def test_so_few_groups_that_folds_are_empty(number: int) -> None:
    labels = torch.arange(300) % 5
    generator = torch.Generator().manual_seed(0)
    sides = {name: torch.randn(300, 8, generator=generator) for name in ("a", "b")}
    for rows in sides.values():
        rows[torch.arange(300), labels] += 4
    pid = fast_pid(sides, labels, groups=torch.arange(300) // 5 % number)
    # Both know nearly all of log2 5 = 2.32 bits.
    assert float(pid.redundancy) > 1.5
