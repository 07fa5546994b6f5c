"""The problems on which `benchmarks/compare.py` compares training methods.

    from suites import load_suite

    suite = load_suite("avmnist-small")

All but `digits` need data that are not part of the repository, see `folders.py`.
"""

from collections.abc import Callable
from functools import partial

from suites import (
    avmnist,
    clipart,
    coloured,
    digits,
    finetuned,
    imbalance,
    modular,
    multifeature,
    reliability,
    sentences,
    stamps,
    tcga,
    watch,
)
from suites.suite import Split, Suite

__all__ = ["SUITES", "Split", "Suite", "load_suite"]

# By name; nothing is read or drawn until the function is called.
SUITES: dict[str, Callable[[], Suite]] = {
    "digits": digits.digits,
    "avmnist-small": avmnist.small,
    "avmnist-full": avmnist.full,
    "cg-mnist": coloured.cg_mnist,
    "three-modalities": sentences.three_modalities,
    "noisy-audio-1": partial(imbalance.noisy, "audio", 1),
    "noisy-audio-2": partial(imbalance.noisy, "audio", 2),
    "noisy-image-1": partial(imbalance.noisy, "image", 1),
    "noisy-image-2": partial(imbalance.noisy, "image", 2),
    "slow-audio": partial(imbalance.slow, "audio"),
    "slow-image": partial(imbalance.slow, "image"),
    "strong-image": imbalance.strong_image,
    "halves": imbalance.halves,
    "synergy": modular.synergy,
    "mixture": modular.mixture,
    "clipart": clipart.clipart,
    "stamps": stamps.stamps,
    **{
        f"{name}-{kind}{size}": partial(make, kind, full=bool(size))
        for name, make in (("clipart", clipart.further_trained), ("stamps", stamps.further_trained))
        for kind in finetuned.KINDS
        for size in ("", "-full")
    },
    **{f"watch-{partition}": partial(watch.watch, partition) for partition in range(1, 6)},
    "watch-known": watch.watch_known,
    **{
        f"watch-{partition}-reliability": partial(reliability.watch_reliability, partition)
        for partition in range(1, 6)
    },
    "stamps-reliability": reliability.stamps_reliability,
    "multifeature": multifeature.multifeature,
    "multifeature-two": partial(multifeature.multifeature, "fourier", "shape"),
    "tcga-brca": tcga.brca,
    "tcga-brca-missing": tcga.brca_missing,
}


def load_suite(name: str) -> Suite:
    """The suite of this name, the same at every call.

    Raises:
        ValueError: there is none.
        FileNotFoundError: its data are absent.
    """
    if name not in SUITES:
        raise ValueError(f"name is {name!r}; the suites are {', '.join(SUITES)}.")
    return SUITES[name]()
