"""Each domain of natural rows has one modality that is less reliable there, which one and how much differs.

A domain is what shares its conditions: in `watch-1-reliability` and its like a subject with the watch on one arm, in
`stamps-reliability` a picture. It lies inside a group, so no domain is in two splits. Gaussian noise is added once to
the standardized values of one modality of a domain; its other modalities stay as they are. Which modality that is, and
the level, from none to one at which the modality alone knows next to nothing, go in turn through the domains of every
split, in an order that is drawn once. Nothing tells a model which domain a row is of.

Levels were set by what an encoder with a linear head reaches on validation rows, when all rows of training and
validation have the noise: accelerometer 54, 38, 30 and 23 %, gyroscope 52, 44, 28 and 16 %; image 79, 63, 42 and 16 %,
text 80, 64, 33 and 12 %, sound 25, 17, 14 and 13 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suites import stamps, watch
from suites.folders import SPLITS
from suites.suite import Split, Suite

# Standard deviations of the noise; those of the signal are 1.
NOISE_LEVELS = (0.0, 2.0, 4.0, 8.0)
SEED = 2030


@dataclass(frozen=True)
class Condition:
    """What holds in a domain.

    Args:
        modality: which is unreliable there.
        std: standard deviation of its noise.
    """

    modality: str
    std: float


def watch_reliability(partition: int) -> Suite:
    """The suites `watch-1-reliability` to `watch-5-reliability`: the rows of `watch-1` ...; 12 / 4 / 4 domains.

    Args:
        partition: 1 to 5.
    """
    suite = watch.watch(partition)
    return _suite(
        suite,
        domains_of_watch(partition),
        {name: getattr(suite, name).groups for name in SPLITS},
        f"As {suite.name}; one sensor of a subject's arm is noisy, which one and how much differs, up to nearly "
        "useless.",
    )


def stamps_reliability() -> Suite:
    """The suite `stamps-reliability`: the rows of `stamps`; 523 / 97 / 174 domains."""
    suite = stamps.stamps()
    splits = {name: getattr(suite, name) for name in SPLITS} | dict(suite.shifted)
    return _suite(
        suite,
        {name: split.groups for name, split in splits.items()},
        {name: split.labels for name, split in splits.items()},
        "As stamps; image, sound or text of a picture is noisy, which one and how much differs, up to nearly useless.",
    )


def domains_of_watch(partition: int) -> dict[str, Tensor]:
    """By split of `watch-1` to `watch-5` the domain of its rows, (N,) int64: the subject and the arm.

    Args:
        partition: 1 to 5.
    """
    rows, _, arms = watch.load_windows()
    domains = 2 * rows.groups + arms
    return {name: domains[chosen] for name, chosen in watch.choose_rows(partition).items()}


def draw_conditions(
    domains: Tensor, strata: Tensor, modalities: tuple[str, ...], generator: torch.Generator
) -> dict[int, Condition]:
    """The condition of each domain: every modality is unreliable in as many, at all levels alike.

    Where there are fewer domains than conditions, levels lie as far apart as they can.

    Args:
        domains: of the rows of a split, (N,) int64.
        strata: of the rows, (N,) int64, the same for all rows of a domain: domains of one stratum (a class, a subject)
            take turns, so that conditions say nothing of the stratum.
        modalities: their names.
        generator: of the order of the domains.
    """
    numbers = domains.unique()
    stratum = torch.stack([strata[domains == number][0] for number in numbers])
    order = torch.randperm(len(numbers), generator=generator)
    order = order[stratum[order].argsort(stable=True)]
    conditions = {}
    for index, modality in enumerate(modalities):
        mine = numbers[order][index :: len(modalities)].tolist()
        for place, domain in enumerate(mine):
            # Neighbours differ in the modality and in the level.
            level = _level((place + index) % len(mine), len(mine))
            conditions[domain] = Condition(modality, NOISE_LEVELS[level])
    return conditions


def add_noise(
    split: Split, domains: Tensor, conditions: Mapping[int, Condition], generator: torch.Generator
) -> Split:
    """The split with the noise of each row's domain, the same whenever a row is read.

    Args:
        split: of standardized values.
        domains: of its rows, (N,) int64.
        conditions: of the domains.
        generator: of the noise.
    """
    inputs = {}
    for name, values in split.inputs.items():
        of_row = [conditions[domain] for domain in domains.tolist()]
        stds = torch.tensor([each.std if each.modality == name else 0.0 for each in of_row])
        noise = torch.randn(values.shape, generator=generator)
        inputs[name] = values + stds.view(-1, *[1] * (values.ndim - 1)) * noise
    return replace(split, inputs=inputs)


def _level(place: int, number: int) -> int:
    """Index of the level of a domain, of as many that have the same unreliable modality."""
    count = len(NOISE_LEVELS)
    return place % count if number >= count else (2 * place + 1) * count // (2 * number)


def _suite(
    suite: Suite, domains: Mapping[str, Tensor], strata: Mapping[str, Tensor], description: str
) -> Suite:
    generator = torch.Generator().manual_seed(SEED)
    conditions: dict[int, Condition] = {}
    for name in SPLITS:
        conditions |= draw_conditions(domains[name], strata[name], suite.modalities, generator)
    # A further test set has other rows of domains that are in one of the splits.
    return replace(
        suite,
        name=f"{suite.name}-reliability",
        description=description,
        **{name: add_noise(getattr(suite, name), domains[name], conditions, generator) for name in SPLITS},
        shifted={
            name: add_noise(split, domains[name], conditions, generator)
            for name, split in suite.shifted.items()
        },
    )
