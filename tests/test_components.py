"""Components of held-out logits."""

import pytest
import torch
from sorted_sets import FOLDS, sets_of

from ecsfusion.pid.components import components
from ecsfusion.pid.linear import TrainingSets
from ecsfusion.pid.pooling import pool


def noisy_logits(rows, seed):
    """Logits of classes (a, b) that tell a, and noise about b that is as large; and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(6, (rows,), generator=generator)
    told = 2.0 * torch.nn.functional.one_hot(labels // 2, 3) + torch.randn(rows, 3, generator=generator)
    noise = 3.0 * torch.randn(rows, 1, generator=generator) * torch.tensor([1.0, -1, 1, -1, 1, -1])
    return told.repeat_interleave(2, 1) + noise, labels


@pytest.mark.parametrize(("rows", "classes"), [(400, 2), (400, 3), (400, 4), (300, 17), (300, 40)])
def test_their_sum_is_the_logits_and_there_are_few(rows, classes):
    generator = torch.Generator().manual_seed(rows + classes)
    _, sets = sets_of(torch.randint(classes, (rows,), generator=generator).sort().values)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    parts = components(logits, sets)
    assert len(parts) == (1 if classes < 3 else 2 + max(0, (classes - 2).bit_length() - 1))
    whole = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-4, atol=1e-3)
    # What is the same for all classes changes nothing.
    for part, other in zip(parts, components(logits + 7, sets), strict=True):
        torch.testing.assert_close(part, other, rtol=1e-2, atol=1e-2)


def test_those_of_a_row_are_of_labels_of_other_folds():
    logits, labels = noisy_logits(600, 1)
    order, sets = sets_of(labels)
    mine = sets.fold == 3
    renamed = torch.where(mine, (sets.labels + 1) % 6, sets.labels)
    other = TrainingSets.make(sets.fold, FOLDS, renamed, 6)
    before, after = (components(logits[order], each) for each in (sets, other))
    for part, changed in zip(before, after, strict=True):
        torch.testing.assert_close(changed[mine], part[mine])
    assert not torch.allclose(before[0][~mine], after[0][~mine], atol=1e-3)


def test_weights_of_components_keep_what_is_told_without_the_noise():
    logits, labels = noisy_logits(1500, 2)
    order, sets = sets_of(labels)
    logits, log_prior = logits[order], sets.one_hot.mean(0).log()
    told = []
    for parts in ([logits], components(logits, sets)):
        pooled = pool(torch.stack(parts).unsqueeze(0), sets.labels, log_prior).log_posterior[0]
        told.append(float((pooled - log_prior).gather(1, sets.labels[:, None]).mean()))
    generator = torch.Generator().manual_seed(3)
    a = torch.arange(200_000) % 3
    exact = 2.0 * torch.nn.functional.one_hot(a, 3) + torch.randn(200_000, 3, generator=generator)
    # With weights of 2 these logits are the posterior.
    truth = float((torch.log_softmax(2 * exact, 1).gather(1, a[:, None]) + torch.tensor(3.0).log()).mean())
    assert told[0] < 0.5 * truth
    assert told[1] == pytest.approx(truth, abs=0.05)
