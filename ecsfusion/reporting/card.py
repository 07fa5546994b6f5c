"""The model card: what was trained, on what, how well each part does, and why training went as it did.

`render_card` turns a `CardFacts` into the text of a Hugging Face model card (`README.md`). The fixed prose is in
`model_card.md`. This file makes the tables, the sentences that depend on the numbers, and the YAML header.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ecsfusion.evaluation.measurement import Information
from ecsfusion.model.names import CALIBRATED, FUSED
from ecsfusion.reporting.heads import COMBINED_HEADS, compare_heads, head_label, percent
from ecsfusion.reporting.privacy import check_no_secrets, hub_name

_TRAINED = {
    "two-stage": "in two stages: first each modality by itself, then all of them jointly",
    "scouted": "in two stages: first each modality by itself, after some joint training to scout, then all of them "
    "jointly",
    "scouting": "jointly: stage 1 ended while it scouted, and no modality was trained by itself",
    "joint": "in one stage, all modalities jointly",
    "unimodal": "in one stage, each modality by itself",
}
_STAGES = ("two-stage", "joint", "unimodal")


@dataclass(frozen=True)
class EncoderFacts:
    """One modality's encoder.

    Attributes:
        type: the model's class or `model_type`, such as "ViTModel".
        parameters: number of parameters.
        hub_name: name on the Hub of the weights that it started from; None when there is none.
        pretrained: whether the weights were pretrained. Without a `hub_name` the card then says "pretrained, from local
            files"; otherwise "randomly initialised".
        kind: "image", "audio", "text" or another tag of the Hub for the input; None for none.
        frozen: whether its weights were not trained.
        own: whether it is a module of the user's own, whose code is not saved: who loads the model gives it again.
    """

    type: str
    parameters: int
    hub_name: str | None = None
    pretrained: bool = False
    kind: str | None = None
    frozen: bool = False
    own: bool = False


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers; absent libraries are left out."""
    versions = {"python": platform.python_version()}
    for name in ("ecsfusion", "torch", "triton", "transformers", "accelerate", "datasets", "huggingface_hub"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class CardFacts:
    """Everything a card states. Accuracies and calibration errors are shares (0 to 1), information is in bits.

    Attributes:
        title: headline of the card.
        encoders: `EncoderFacts` by modality name, in the model's order.
        accuracy: `{split: {head: accuracy}}`; a head is a modality's name, "fused" or "calibrated". The headline speaks
            of the last split: give "validation", then "test".
        dataset: plain name of the data, such as "AV-MNIST".
        rows: number of rows by split.
        groups: number of groups of these rows, such as subjects, by split; a split may be absent.
        num_classes: number of classes.
        dataset_hub_name: name of the data on the Hub, or the names of several; None for local data.
        dataset_names: plain names of these, where there are several.
        dataset_args: their configurations, in the same order; may be shorter.
        tasks: the tasks of the Hub for which the results count, such as "image-text-to-text".
        languages: codes of the languages of the data.
        finetuned_from: names on the Hub of further models that this one started from.
        repo_id: name of the model on the Hub; None while it only lives in a folder.
        peak_folder: folder inside the model's folder that holds the peak of stage 1; None when there is none.
        stages: "two-stage", "joint" or "unimodal": how the model was trained.
        phases: what training was made of, in order, of "scouting" (stage 1 with the fused head in training too, to see
            what to do), "unimodal" and "joint"; empty when not known.
        num_parameters: parameters of the whole model; None leaves the sentence out.
        best_heads: step of the weights that answer for a modality alone and in the calibrated combination, for each
            modality with a second copy of its encoder for that.
        excluded_from_readout: modalities that waited in stage 1, and so have no weight of their own in the calibrated
            combination.
        calibration_error: expected calibration error on the last split of "fused", which is before calibration, and of
            "calibrated", which is after; empty in regression.
        score: what the accuracies are: "accuracy", or "r2" in regression, where they are shares of variance explained.
        comparison: accuracy of the fused head on the last split by schedule, such as
            `{"two stages": 0.91, "joint training": 0.88}`.
        information: by moment, in order, the training step and the decomposition, such as
            `{"end of stage 1": (120, ...), "end of training": (240, ...)}`. Floors and intervals may be absent.
        contributions: what each modality contributes on the last split, as `Measurement.contributions` has it; None
            where that cannot be told.
        contributions_picture: file name of the picture of the contributions; None for no picture.
        rule: name of the controller's rule.
        decisions: pairs (step, reason) of the controller's decisions, in order.
        warnings: pairs (step, sentence) of what the run warned of, in order.
        trajectory: file name of the picture of the run beside the card; None for no picture.
        reliability: file name of the picture of confidence and accuracy; None for no picture.
        hyperparameters: values by name; entries that are None are left out.
        limitations: more sentences for the list of limitations.
        license: identifier of the license of the weights; None leaves it out of the header.
        tags: more tags for the header.
        versions: versions of the libraries by name.
    """

    title: str
    encoders: Mapping[str, EncoderFacts]
    accuracy: Mapping[str, Mapping[str, float]]
    dataset: str
    rows: Mapping[str, int]
    num_classes: int
    groups: Mapping[str, int] = field(default_factory=dict)
    dataset_hub_name: str | Sequence[str] | None = None
    dataset_names: Sequence[str] = ()
    dataset_args: Sequence[str] = ()
    tasks: Sequence[str] = ()
    languages: Sequence[str] = ()
    finetuned_from: Sequence[str] = ()
    repo_id: str | None = None
    peak_folder: str | None = None
    stages: str = "two-stage"
    phases: Sequence[str] = ()
    num_parameters: int | None = None
    best_heads: Mapping[str, int] = field(default_factory=dict)
    excluded_from_readout: Sequence[str] = ()
    calibration_error: Mapping[str, float] = field(default_factory=dict)
    score: str = "accuracy"
    comparison: Mapping[str, float] = field(default_factory=dict)
    information: Mapping[str, tuple[int, Information]] = field(default_factory=dict)
    contributions: Mapping[str, Any] | None = None
    contributions_picture: str | None = None
    rule: str = ""
    decisions: Sequence[tuple[int, str]] = ()
    warnings: Sequence[tuple[int, str]] = ()
    trajectory: str | None = None
    reliability: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    limitations: Sequence[str] = ()
    license: str | None = None
    tags: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=installed_versions)


def render_card(facts: CardFacts, forbidden: Iterable[str | Path] = ()) -> str:
    """Write the text of the model card.

    Args:
        facts: what the card states.
        forbidden: paths that must not appear in it, see `check_no_secrets`.

    Returns:
        Markdown with a YAML header, ready to be written as `README.md`.

    Raises:
        ValueError: no accuracy or no encoder is given, an accuracy is not between 0 and 1, a name on the Hub is a path,
            or a local path or a token would be published.
    """
    _check(facts)
    template = resources.files("ecsfusion.reporting").joinpath("model_card.md").read_text(encoding="utf-8")
    # A difference in R² is no number of rows.
    counted = facts.rows if facts.score == "accuracy" else {}
    content = ModelCard.from_template(
        _header(facts),
        template_str=template,
        title=facts.title,
        summary=_summary(facts),
        headline=compare_heads(facts.accuracy, list(facts.encoders), counted, last_only=True),
        source=facts.repo_id or "path/to/this/folder",
        on_hub=facts.repo_id is not None,
        peak_folder=facts.peak_folder,
        own_encoders=_own_encoders(facts.encoders),
        call=", ".join(f"{name}=[...]" for name in facts.encoders),
        encoder_table=_encoder_table(facts.encoders),
        parameter_sentence=_parameter_sentence(facts),
        data_sentence=_data_sentence(facts),
        data_table=_data_table(facts),
        score_title="Accuracy" if facts.score == "accuracy" else "Explained variance (R²)",
        accuracy_table=_accuracy_table(facts.accuracy, list(facts.encoders)),
        accuracy_sentences=compare_heads(facts.accuracy, list(facts.encoders), counted),
        best_heads_sentence=_best_heads_sentence(facts.best_heads),
        excluded_sentence=_excluded_sentence(facts.excluded_from_readout),
        calibration_sentence=_calibration_sentence(facts.calibration_error, list(facts.accuracy)[-1]),
        comparison_table=_comparison_table(facts),
        pid_table=_information_table(facts.information),
        pid_sentence=_information_sentence(facts.information),
        information_source=_information_source(facts.information),
        contributions_table=_contributions_table(facts),
        contributions_split=list(facts.accuracy)[-1],
        contributions_picture=facts.contributions_picture,
        trajectory=facts.trajectory,
        reliability=facts.reliability,
        rule=facts.rule,
        decision_table=_table(["step", "why"], [[f"{step:,}", why] for step, why in facts.decisions]),
        warning_table=_table(
            ["step", "what was found, and what to do"],
            [[f"{step:,}", sentence[0].upper() + sentence[1:]] for step, sentence in facts.warnings],
        ),
        limitations=facts.limitations,
        hyperparameter_table=_table(
            ["name", "value"],
            [[f"`{name}`", value] for name, value in facts.hyperparameters.items() if value is not None],
        ),
        version_table=_table(["library", "version"], [list(pair) for pair in facts.versions.items()]),
    ).content
    text = re.sub(r"\n{3,}", "\n\n", content).strip() + "\n"
    check_no_secrets(text, forbidden)
    return text


def _check(facts: CardFacts) -> None:
    if not facts.encoders:
        raise ValueError("encoders is empty; give one EncoderFacts per modality.")
    if not any(facts.accuracy.values()):
        raise ValueError("accuracy is empty; give at least one split with the accuracy of its heads.")
    for split, heads in facts.accuracy.items():
        for head, value in heads.items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"accuracy of {head!r} on {split!r} is {value}; give a share between 0 and 1."
                )
    if facts.stages not in _STAGES:
        raise ValueError(f"stages is {facts.stages!r}; give one of {', '.join(_STAGES)}.")
    names = {f"encoders[{name!r}].hub_name": encoder.hub_name for name, encoder in facts.encoders.items()}
    if isinstance(facts.dataset_hub_name, str):
        names["dataset_hub_name"] = facts.dataset_hub_name
    else:
        names |= {f"dataset_hub_name[{index}]": name for index, name in enumerate(hub_datasets(facts))}
    names |= {f"finetuned_from[{index}]": name for index, name in enumerate(facts.finetuned_from)}
    names |= {"repo_id": facts.repo_id}
    for argument, name in names.items():
        if name is not None and hub_name(name) is None:
            raise ValueError(
                f"{argument} is {name!r}, a path or no valid name; give a name on the Hub, or None."
            )


def _header(facts: CardFacts) -> ModelCardData:
    kinds = sorted({encoder.kind for encoder in facts.encoders.values() if encoder.kind})
    base_models = sorted({encoder.hub_name for encoder in facts.encoders.values() if encoder.hub_name})
    base_models += [name for name in facts.finetuned_from if name not in base_models]
    split, heads = list(facts.accuracy.items())[-1]
    datasets = hub_datasets(facts)
    names = dict(zip(datasets, facts.dataset_names or [facts.dataset], strict=False))
    # The Hub ties a result to a data set that it holds, so local data gets no entry.
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=names.get(dataset, dataset),
            dataset_split=split,
            dataset_args=args,  # type: ignore[arg-type]  # the Trainer of transformers writes a string as well
            metric_type=facts.score,
            metric_name=f"{facts.score} ({COMBINED_HEADS[head]})",
            metric_value=heads[head],
        )
        for task in facts.tasks or ["multimodal-classification"]
        for dataset, args in zip_longest(datasets, facts.dataset_args[: len(datasets)])
        for head in (FUSED, CALIBRATED)
        if head in heads
    ]
    tasks = facts.tasks or _tasks_of_kinds(facts)
    tags = [
        "multimodal",
        facts.stages,
        "partial-information-decomposition",
        *kinds,
        *facts.tasks[1:],
        *facts.tags,
    ]
    return ModelCardData(
        language=list(facts.languages) or None,
        library_name="ecsfusion",
        license=facts.license,
        tags=list(dict.fromkeys(tags)),
        base_model=base_models or None,
        # The Hub takes a model with several of them for a merge.
        base_model_relation="finetune" if base_models else None,
        datasets=datasets or None,
        pipeline_tag=tasks[0] if tasks else None,
        metrics=[facts.score],
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _tasks_of_kinds(facts: CardFacts) -> list[str]:
    """The Hub's tasks of a classifier that answers from any of its modalities, in their order.

    The Hub has no task for several modalities and none for a regression on pictures, sounds or texts.
    """
    if facts.score != "accuracy":
        return []
    return list(dict.fromkeys(f"{each.kind}-classification" for each in facts.encoders.values() if each.kind))


def _summary(facts: CardFacts) -> str:
    start = ""
    if facts.finetuned_from:
        start = f" It started from {_enumerate([_link(name) for name in facts.finetuned_from])}."
    return (
        f"A classifier of {facts.num_classes} classes that fuses {_enumerate(list(facts.encoders))}: one "
        f"encoder and one head per modality, and a fused head over all embeddings. It was trained with "
        f"`ecsfusion` on {facts.dataset} {_TRAINED[_way(facts)]}.{start}{_curves(facts.tags)}"
    )


def _curves(tags: Sequence[str]) -> str:
    """A sentence on the Space with the curves of the run, which Trackio names in a tag."""
    spaces = [tag.removeprefix("trackio:") for tag in tags if tag.startswith("trackio:https://")]
    return f" Its curves are [on Trackio]({spaces[-1]})." if spaces else ""


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})"


def hub_datasets(facts: CardFacts) -> list[str]:
    """The names of the data on the Hub."""
    given = facts.dataset_hub_name
    return [given] if isinstance(given, str) else list(given or ())


def _way(facts: CardFacts) -> str:
    if facts.stages != "two-stage" or "scouting" not in facts.phases:
        return facts.stages
    return "scouted" if "unimodal" in facts.phases else "scouting"


def _own_encoders(encoders: Mapping[str, EncoderFacts]) -> str:
    """The argument by which `from_pretrained` takes the user's own modules, after a comma; empty if there is none."""
    own = [f'"{name}": {encoder.type}(...)' for name, encoder in encoders.items() if encoder.own]
    return f", encoders={{{', '.join(own)}}}" if own else ""


def _encoder_table(encoders: Mapping[str, EncoderFacts]) -> str:
    rows = []
    for name, encoder in encoders.items():
        if encoder.hub_name:
            start = f"[{encoder.hub_name}](https://huggingface.co/{encoder.hub_name})"
        else:
            start = "pretrained, from local files" if encoder.pretrained else "randomly initialised"
        start += ", frozen" if encoder.frozen else ""
        rows.append([name, encoder.type, f"{encoder.parameters:,}", start])
    return _table(["modality", "encoder", "parameters", "started from"], rows)


def _parameter_sentence(facts: CardFacts) -> str:
    if not facts.num_parameters:
        return ""
    names = " and of ".join(facts.best_heads)
    copies = f", a second encoder and head of {names} included" if names else ""
    return f"The whole model has {facts.num_parameters:,} parameters{copies}."


def _data_sentence(facts: CardFacts) -> str:
    datasets = hub_datasets(facts)
    names = list(facts.dataset_names or [facts.dataset])
    names += datasets[len(names) :]
    linked = [
        f"[{each}](https://huggingface.co/datasets/{hub})" if hub else str(each)
        for each, hub in zip_longest(names, datasets)
    ]
    return f"{_enumerate(linked)}, {facts.num_classes} classes."


def _heads(accuracy: Mapping[str, Mapping[str, float]], modalities: Sequence[str]) -> list[str]:
    given = {head for heads in accuracy.values() for head in heads}
    return [head for head in (*modalities, FUSED, CALIBRATED) if head in given]


def _accuracy_table(accuracy: Mapping[str, Mapping[str, float]], modalities: Sequence[str]) -> str:
    splits = list(accuracy)
    rows = [
        [
            head_label(head),
            *(percent(accuracy[split][head]) if head in accuracy[split] else "" for split in splits),
        ]
        for head in _heads(accuracy, modalities)
    ]
    return _table(["head", *splits], rows)


def _data_table(facts: CardFacts) -> str:
    rows = [[split, f"{number:,}"] for split, number in facts.rows.items()]
    if not facts.groups:
        return _table(["split", "rows"], rows)
    groups = [f"{facts.groups[split]:,}" if split in facts.groups else "not counted" for split in facts.rows]
    return _table(["split", "rows", "groups"], [[*row, each] for row, each in zip(rows, groups, strict=True)])


def _best_heads_sentence(best_heads: Mapping[str, int]) -> str:
    if not best_heads:
        return ""
    steps = _enumerate([f"{name} with the weights of step {step:,}" for name, step in best_heads.items()])
    if len(best_heads) == 1:
        copies = (
            "its own best on validation: a second copy of its encoder and head, beside that which the fused"
        )
    else:
        copies = (
            "each its own best on validation: second copies of encoder and head, beside those which the fused"
        )
    return f"Alone, and in the calibrated combination, the model answers for {steps}, {copies} head reads."


def _excluded_sentence(excluded_from_readout: Sequence[str]) -> str:
    if not excluded_from_readout:
        return ""
    return (
        f"{_enumerate(list(excluded_from_readout))} was paused in stage 1, so that the other modalities could learn. "
        "In the calibrated combination its own head has no weight where other modalities are present, because it would "
        "outvote them; where it is the only modality, its head answers."
    )


def _calibration_sentence(errors: Mapping[str, float], split: str) -> str:
    if not errors:
        return ""
    before_and_after = _enumerate(
        [f"{errors[head]:.3f} {when}" for head, when in ((FUSED, "before"), (CALIBRATED, "after"))]
    )
    return (
        f"Expected calibration error on {split}: {before_and_after} calibration (the fused head alone, and the "
        "calibrated combination)."
    )


def _comparison_table(facts: CardFacts) -> str:
    split = list(facts.accuracy)[-1]
    rows = [[schedule, percent(value)] for schedule, value in facts.comparison.items()]
    return _table(["schedule", f"fused head, {split}"], rows)


def _labeled_atoms(information: Information) -> list[tuple[str, str, float]]:
    """Key of floor and interval, label, and bits of every atom, in the order of the table."""
    return [
        ("redundancy", "redundancy", information.redundancy),
        *((name, f"uniqueness of {name}", bits) for name, bits in information.unique.items()),
        ("synergy", "synergy", information.synergy),
    ]


def _information_table(moments: Mapping[str, tuple[int, Information]]) -> str:
    if not moments:
        return ""
    columns = []
    for _, information in moments.values():
        cells = {}
        for key, label, bits in _labeled_atoms(information):
            ends = information.interval.get(key)
            notes = [f"{ends[0]:.3f} to {ends[1]:.3f}"] if ends else []
            notes += [f"floor {information.floor[key]:.3f}"] if key in information.floor else []
            cells[label] = f"{bits:.3f}" + (f" ({', '.join(notes)})" if notes else "")
        columns.append(cells)
    headers = [f"{moment} (step {step:,})" for moment, (step, _) in moments.items()]
    rows = [[label, *(column.get(label, "") for column in columns)] for label in columns[-1]]
    return _table(["bits", *headers], rows)


def _contributions_table(facts: CardFacts) -> str:
    found = facts.contributions
    if not found:
        return ""
    if facts.score == "accuracy":
        headers = ["modality", "accuracy, points"]
        rows = [[name, f"{100 * share:+.1f}"] for name, share in found["score"].items()]
    else:
        headers, rows = (
            ["modality", "R²"],
            [[name, f"{share:+.3f}"] for name, share in found["score"].items()],
        )
    if found["bits"]:
        headers.append("bits")
        rows = [[*row, f"{bits:+.3f}"] for row, bits in zip(rows, found["bits"].values(), strict=True)]
    return _table(headers, rows)


def _information_source(moments: Mapping[str, tuple[int, Information]]) -> str:
    """What the decompositions were made of."""
    sources = ("the answers of each modality's head", "clusters of the embeddings")
    is_by_heads = {information.is_by_heads for _, information in moments.values()}
    if is_by_heads == {True, False}:
        return f"{sources[0]} (where they are not trained, of {sources[1]})"
    return sources[0] if True in is_by_heads else sources[1]


def _information_sentence(moments: Mapping[str, tuple[int, Information]]) -> str:
    """One sentence on the last moment: what all know, what one modality alone knows, and what only the whole shows."""
    if not moments:
        return ""
    moment, (_, information) = list(moments.items())[-1]
    above = [
        atom
        for atom in _labeled_atoms(information)
        if atom[2] > max(information.floor.get(atom[0], 0.0), 0.0)
    ]
    clear = [atom for atom in above if information.interval.get(atom[0], (atom[2], atom[2]))[0] > 0]
    if not above:
        return f"At the {moment} nothing that the modalities say about the label rises above the noise floor."
    if not clear:
        groups = information.num_groups
        of = "so few rows" if groups is None else f"rows of {groups} groups"
        return f"At the {moment} each value may be zero: the intervals of {of} are wide."
    # Of more than two modalities, each is compared with all others together.
    knowers = "both modalities" if len(information.unique) == 2 else "a modality and to the others as well"
    meaning = {
        "redundancy": "{bits:.2f} bits about the label are known to " + knowers,
        "synergy": "{bits:.2f} bits appear only when the modalities are read together",
    }
    parts = [
        meaning.get(key, "{bits:.2f} bits are known to {name} alone").format(bits=bits, name=key)
        for key, _, bits in sorted(clear, key=lambda atom: -atom[2])
    ]
    unsure = [label for _, label, _ in above if label not in {each for _, each, _ in clear}]
    silent = [
        label for _, label, _ in _labeled_atoms(information) if label not in {each for _, each, _ in above}
    ]
    noise = (
        f"; {_enumerate(silent)} {'is' if len(silent) == 1 else 'are'} not above the noise" if silent else ""
    )
    noise += f"; {_enumerate(unsure)} may be zero" if unsure else ""
    return f"At the {moment}, {_enumerate(parts)}{noise}."


def _enumerate(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; empty without rows, so that the template leaves the section out."""
    if not rows:
        return ""

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(headers), line(["---"] * len(headers)), *map(line, rows)])
