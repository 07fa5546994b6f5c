"""The default against every rival over all suites, in one small table: how far ahead, how often, and where behind."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, median

from protocol.methods import CONTROLS, METHODS, PUBLISHED, SIMPLE_READOUTS
from protocol.report import JOINT, OURS, Lines, difference, paired

COLUMNS = ("rival", "suites", "mean", "median", "ahead", "behind", "worst suite")


def rivals_table(suites: Mapping[str, Lines]) -> str:
    """Test accuracy of ours minus each rival's, in points, over the suites that the rival was run on.

    Columns: the number of suites; mean and median of the difference; on how many suites ours is ahead, and behind,
    beyond the 95 % interval of paired seeds; and the suite with the smallest difference, with its interval.

    Args:
        suites: the lines of each suite by its name.
    """
    rows = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    for rival in (JOINT, *CONTROLS, *SIMPLE_READOUTS, *PUBLISHED):
        compared = {suite: paired(lines, OURS, rival) for suite, lines in suites.items()}
        found = {suite: value for suite, value in compared.items() if value is not None}
        if not found:
            continue
        differences = [value[0] for value in found.values()]
        worst = min(found, key=lambda suite: found[suite][0])
        cells = [
            METHODS[rival].label,
            str(len(found)),
            f"{mean(differences):+.1f}",
            f"{median(differences):+.1f}",
            str(sum(center - half > 0 for center, half, _ in found.values())),
            str(sum(center + half < 0 for center, half, _ in found.values())),
            f"{worst} {difference(found[worst])}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
