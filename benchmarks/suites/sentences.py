"""Three modalities: image and sound of avmnist-small, and a sentence that hints at the digit.

Sentences are drawn from a small artificial vocabulary: padding (0), a few words for each digit, and distractors. A
sentence has at most one hint. Given the label it is independent of image and sound.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from suites import avmnist
from suites.encoders import TextEncoder
from suites.folders import SPLITS
from suites.suite import Split, Suite

NUM_CLASSES = 10
WORDS_PER_CLASS = 3
NUM_DISTRACTORS = 50
VOCABULARY_SIZE = 1 + NUM_CLASSES * WORDS_PER_CLASS + NUM_DISTRACTORS
# Tokens of the shortest and of the longest sentence.
LENGTHS = (4, 10)
# Shares of sentences that hint at the label and at another class; the others hold no hint.
TRUE_HINT, FALSE_HINT = 0.55, 0.25
SEED = 1948


def three_modalities() -> Suite:
    """The suite `three-modalities`: the 2 000 / 500 / 500 rows of avmnist-small, each with a sentence."""
    suite = avmnist.small()
    generator = torch.Generator().manual_seed(SEED)
    splits = {}
    for name in SPLITS:
        rows = getattr(suite, name)
        splits[name] = Split({**rows.inputs, "text": draw_sentences(rows.labels, generator)}, rows.labels)
    return replace(
        suite,
        name="three-modalities",
        description=(
            "avmnist-small with a sentence of token ids, in which one word hints at the digit or misleads: text alone "
            "cannot pass 57 %, and is fast."
        ),
        **splits,
        build_encoders=build_encoders,
    )


def build_encoders() -> dict[str, nn.Module]:
    """Small convnets for image and audio, a bag of words for text."""
    return {**avmnist.build_encoders(), "text": TextEncoder(VOCABULARY_SIZE)}


def draw_sentences(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Token ids (N, 10) int64, padded with 0 at the end, for labels (N,).

    Every token is a distractor but for one, at a random place: a word of the label with probability 0.55, a word of
    another class, all alike, with 0.25. The best guess is the hint's class, right in 0.55 + 0.2 / 10 = 57 %.
    """
    size, longest = len(labels), LENGTHS[1]

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape or (size,), generator=generator)

    tokens = draw(1 + NUM_CLASSES * WORDS_PER_CLASS, VOCABULARY_SIZE, size, longest)
    lengths = draw(LENGTHS[0], longest + 1)
    places = (torch.rand(size, generator=generator) * lengths).long()
    chance = torch.rand(size, generator=generator)
    other = (labels + draw(1, NUM_CLASSES)) % NUM_CLASSES
    classes = torch.where(chance < TRUE_HINT, labels, other)
    hints = 1 + WORDS_PER_CLASS * classes + draw(0, WORDS_PER_CLASS)
    hinted = (chance < TRUE_HINT + FALSE_HINT).nonzero()[:, 0]
    tokens[hinted, places[hinted]] = hints[hinted]
    tokens[torch.arange(longest) >= lengths[:, None]] = 0
    return tokens
