"""Numbers in sentences that compare them: with so many digits that what is said of them can be seen."""

from __future__ import annotations

MAX_DIGITS = 8


def told_apart(first: float, second: float, digits: int = 2, percent: bool = False) -> tuple[str, str]:
    """Two numbers with as many digits behind the point as it takes to tell them apart, if they differ at all.

    Args:
        first: a number.
        second: the number it is compared with.
        digits: the fewest digits.
        percent: write shares in percent, such as "84.1 %".
    """
    scale, unit = (100.0, " %") if percent else (1.0, "")
    texts = ("", "")
    for places in range(digits, max(digits, MAX_DIGITS) + 1):
        texts = (f"{scale * first:.{places}f}{unit}", f"{scale * second:.{places}f}{unit}")
        if texts[0] != texts[1] or first == second:
            break
    return texts
