"""Slow or weak: will the modality that is behind know as much as the leader, given time?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ecsfusion.controller.reading import Reading, check_finite

EPOCHS = 2.0
"""The pace is that of the last so many epochs, and the forecast reaches as far ahead."""
SLOW = 0.6
"""A modality that will have more than this share of the leader's information counts as slow, otherwise as weak."""


@dataclass(frozen=True)
class Forecast:
    """What a modality knows now and will know soon, as shares of the leader's information about the label.

    It was right in about 7 to 8 of 10 runs after one or two epochs, in 9 after three and in nearly all after five
    (benchmarks/controller_response.py), so the rules put it into words only.
    """

    name: str
    leader: str
    now: float
    soon: float

    @property
    def is_slow(self) -> bool:
        """Slow: it will be good. Otherwise it is weak."""
        return self.soon > SLOW

    def __str__(self) -> str:
        kind = "slow, not weak" if self.is_slow else "weak, not slow"
        return (
            f"{self.name} looks {kind}: it knows {self.now:.0%} of what {self.leader} knows, and at its pace "
            f"{max(self.soon, 0.0):.0%} in {EPOCHS:g} epochs"
        )


def remember(seen: list[Any], reading: Reading, names: Iterable[str]) -> None:
    """Add a reading, [epoch, bits by modality], and drop those that are too old for an forecast. JSON values.

    A second reading of the same moment replaces the first; one without information is left out.

    Raises:
        ValueError: the reading tells the information of some modalities only, or what is no number.
    """
    if reading.epoch <= 0 or not reading.mutual_information:
        return
    bits = {name: reading.mutual_information.get(name) for name in names}
    check_finite({f"mutual_information[{name!r}]": value for name, value in bits.items()})
    while seen and seen[-1][0] >= reading.epoch:
        del seen[-1]
    while len(seen) > 1 and seen[1][0] <= reading.epoch - EPOCHS:
        del seen[0]
    seen.append([reading.epoch, bits])


def forecasts(seen: Sequence[Any], names: Iterable[str], leader: str) -> str:
    """The forecasts of modalities behind a leader, to follow a reason; nothing where no reading tells information."""
    if not seen or seen[-1][1][leader] <= 0:
        return ""
    epochs, ahead = [epoch for epoch, _ in seen], [bits[leader] for _, bits in seen]
    found = (Forecast(name, leader, *forecast(epochs, [b[name] for _, b in seen], ahead)) for name in names)
    return "".join(f"; {judged}" for judged in found)


def forecast(epochs: Sequence[float], behind: Sequence[float], ahead: Sequence[float]) -> tuple[float, float]:
    """Shares of the leader's present information: what the modality behind has, and what it will have.

    Its gain in the last `EPOCHS` epochs (all of them, where there were fewer) is expected once more; per epoch, over
    the next `EPOCHS`. Before training both knew nothing. Information, not accuracy: it grows more evenly, and needs no
    level of chance.

    Args:
        epochs: of the readings, rising, above 0.
        behind: bits that the modality behind knew about the label at each of them.
        ahead: bits that the leader knew.

    Raises:
        ValueError: no readings, columns of different lengths, epochs that do not rise, or a leader that knows nothing.
    """
    if not epochs or not len(epochs) == len(behind) == len(ahead):
        raise ValueError(
            f"epochs, behind and ahead have {len(epochs)}, {len(behind)} and {len(ahead)} values; give one each for "
            "every reading, and at least one."
        )
    if epochs[0] <= 0 or any(b <= a for a, b in pairwise(epochs)):
        raise ValueError(f"epochs is {list(epochs)}; give epochs above 0 that rise.")
    if ahead[-1] <= 0:
        raise ValueError(f"ahead ends with {ahead[-1]} bits; a leader knows something about the label.")
    earlier = [(0.0, 0.0), *zip(epochs[:-1], behind[:-1], strict=True)]
    since = epochs[-1] - EPOCHS
    start, had = next(((e, bits) for e, bits in reversed(earlier) if e <= since + 1e-9), earlier[0])
    pace = (behind[-1] - had) / (epochs[-1] - start)
    return behind[-1] / ahead[-1], (behind[-1] + EPOCHS * pace) / ahead[-1]
