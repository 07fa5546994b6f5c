"""Fused heads: what they start from, what a missing modality does to them, how they are saved; heads of one's own."""

from __future__ import annotations

import math
import re

import pytest
import torch
from fusion_fixtures import NUM_CLASSES, Sensor, tiny_bert, tiny_resnet, tiny_vit
from torch import nn

from ecsfusion import FusionForClassification
from ecsfusion.model.fused_heads import FUSION_HEADS, EntropyAverageHead, GatedSumHead

ENSEMBLES = [
    name for name, head in FUSION_HEADS.items() if name == "late-average" or hasattr(head, "start_from")
]
MAKERS = {"image": tiny_vit, "text": tiny_bert, "map": tiny_resnet, "sensor": Sensor}


def model_of(
    count: int, fusion: str | nn.Module = "concatenation", **options: object
) -> FusionForClassification:
    torch.manual_seed(0)
    encoders = {name: make() for name, make in list(MAKERS.items())[:count]}
    return FusionForClassification.from_modality_pretrained(
        encoders, num_labels=NUM_CLASSES, fusion=fusion, **options
    ).eval()


def inputs_of(count: int, size: int = 6) -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    every = {
        "image": {"pixel_values": torch.randn(size, 1, 4, 4, generator=generator)},
        "text": {"input_ids": torch.randint(1, 20, (size, 5), generator=generator)},
        "map": {"pixel_values": torch.randn(size, 1, 8, 8, generator=generator)},
        "sensor": torch.randn(size, 5, 3, generator=generator),
    }
    return dict(list(every.items())[:count])


def loaded(model: FusionForClassification, folder, **own: object) -> FusionForClassification:
    model.save_pretrained(folder)
    modules = model.own_modules() | own
    return FusionForClassification.from_pretrained(folder, **modules).eval()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("fusion", FUSION_HEADS)
def test_heads_of_two_three_and_four_modalities_learn_and_come_back(fusion, count, tmp_path):
    model = model_of(count, fusion).train()
    inputs, labels = inputs_of(count), torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        out = model(**inputs, labels=labels)
        losses.append(float(nn.functional.cross_entropy(out.logits.detach(), labels)))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    # A boosted head begins with one classifier for each modality; the others wait.
    used = [
        p for name, p in model.fusion.named_parameters() if not re.match(r"classifiers\.\w+\.[1-9]", name)
    ]
    assert all(p.grad is not None for p in used)
    model.eval()
    again = loaded(model, tmp_path)
    assert again.config.fusion == fusion
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("fusion", ENSEMBLES)
def test_every_head_but_two_can_start_as_an_ensemble(fusion, count):
    model = model_of(count, fusion)
    model.start_fusion_from_heads()
    with torch.no_grad():
        out = model(**inputs_of(count))
    ensemble = torch.stack(list(out.unimodal_logits.values())).sum(dim=0)
    if fusion == "late-average":
        ensemble = ensemble / count
    torch.testing.assert_close(out.logits, ensemble, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", ENSEMBLES)
def test_in_regression_the_ensemble_is_the_mean(fusion):
    model = model_of(3, fusion, problem_type="regression")
    before = {name: head.weight.clone() for name, head in model.heads.items()}
    model.start_fusion_from_heads()
    with torch.no_grad():
        out = model(**inputs_of(3))
    mean = torch.stack(list(out.unimodal_logits.values())).mean(dim=0)
    torch.testing.assert_close(out.logits, mean, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(head.weight, before[name]) for name, head in model.heads.items())


@pytest.mark.parametrize("fusion", FUSION_HEADS)
def test_what_fills_a_missing_row_makes_no_difference(fusion):
    model, inputs = model_of(3, fusion), inputs_of(3)
    mask = torch.tensor([True, False, True, True, False, True])
    other = {**inputs, "map": {"pixel_values": inputs["map"]["pixel_values"].clone()}}
    other["map"]["pixel_values"][~mask] = 1e9
    with torch.no_grad():
        one = model(**inputs, present={"map": mask}).logits
        assert torch.equal(one, model(**other, present={"map": mask}).logits)
        absent = model(image=inputs["image"], text=inputs["text"]).logits
    torch.testing.assert_close(one[~mask], absent[~mask])
    assert not torch.allclose(one[mask], absent[mask])


def test_gates_are_shared_among_those_present():
    model, inputs = model_of(3, "gated-sum"), inputs_of(3)
    mask = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        model.fusion.gate.weight.mul_(100)
        out = model(**inputs)
        everyone = {name: torch.ones(6, dtype=torch.bool) for name in model.modalities}
        gates = model.fusion.gates(out.embeddings, everyone | {"text": mask})
    assert isinstance(model.fusion, GatedSumHead)
    assert (gates[~mask, 1] == 0).all()
    torch.testing.assert_close(gates.sum(dim=1), 2.0 + mask)
    # They look at the row.
    assert gates.std(dim=0).max() > 0


def test_late_average_is_that_of_those_present():
    model, inputs = model_of(3, "late-average"), inputs_of(3)
    mask = torch.tensor([True, False] * 3)
    with torch.no_grad():
        out = model(**inputs, present={"text": mask})
    z = out.unimodal_logits
    expected = torch.where(
        mask[:, None], (z["image"] + z["text"].nan_to_num() + z["map"]) / 3, (z["image"] + z["map"]) / 2
    )
    torch.testing.assert_close(out.logits, expected)
    assert list(model.fusion.parameters()) == []


def test_entropy_average_listens_to_who_is_sure():
    head = EntropyAverageHead({"image": 4, "text": 4}, 2)
    logits = {
        # P = (3/4, 1/4)
        "image": torch.tensor([[math.log(3), 0.0]]).repeat(2, 1),
        # P = (1/2, 1/2)
        "text": torch.tensor([[0.0, 0.0]]).repeat(2, 1),
    }
    present = {"image": torch.tensor([True, True]), "text": torch.tensor([True, False])}
    # Entropies: 3/4 log(4/3) + 1/4 log 4 = 0.562335 and log 2; exp of minus them: 0.569877 and 0.5.
    weight = 0.569877 / 1.069877
    torch.testing.assert_close(
        head.weights(logits, present), torch.tensor([[weight, 1 - weight], [1.0, 0.0]]), atol=1e-5, rtol=1e-5
    )
    expected = torch.tensor([[weight * math.log(3), 0.0], [math.log(3), 0.0]])
    torch.testing.assert_close(head({}, logits, present), expected, atol=1e-5, rtol=1e-5)
    assert list(head.parameters()) == []


@pytest.mark.parametrize("fusion", sorted(set(FUSION_HEADS) - set(ENSEMBLES)))
def test_a_head_that_cannot_start_as_an_ensemble_is_left_as_it_is(fusion):
    model = model_of(2, fusion)
    before = {key: value.clone() for key, value in model.fusion.state_dict().items()}
    model.start_fusion_from_heads()
    assert all(torch.equal(value, before[key]) for key, value in model.fusion.state_dict().items())


def test_a_transformer_attends_to_the_modalities_that_are_present():
    model, inputs = model_of(3, "transformer"), inputs_of(3)
    with torch.no_grad():
        alone = model(image=inputs["image"]).logits
        head = model.fusion
        h = model(**inputs).embeddings
        tokens = torch.cat(
            [head.class_token.expand(6, -1, -1), head.project["image"](h["image"])[:, None]], dim=1
        )
        for layer in head.layers:
            # A sequence of two tokens, and nothing masked.
            tokens = layer(tokens)
        torch.testing.assert_close(alone, head.classifier(tokens[:, 0]), atol=1e-5, rtol=1e-4)


def test_options_reach_the_head_and_are_saved(tmp_path):
    options = {"width": 8, "num_layers": 1, "num_attention_heads": 2}
    model = model_of(2, "transformer", fusion_options=options)
    assert model.fusion.class_token.shape[-1] == 8
    assert len(loaded(model, tmp_path / "transformer").fusion.layers) == 1
    model = model_of(2, "cross-attention", fusion_options={"width": 8, "num_attention_heads": 2})
    assert model.fusion.query.shape[-1] == 8
    assert loaded(model, tmp_path).fusion.attention.num_heads == 2


class Bilinear(nn.Module):
    """A head of one's own, without `start_from`: it looks at products."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(16, 12, NUM_CLASSES)

    def forward(self, embeddings, unimodal_logits, present):
        both = (present["image"] & present["text"]).unsqueeze(1)
        return unimodal_logits["image"] + both * self.product(embeddings["image"], embeddings["text"])


def test_a_head_of_ones_own_is_trained_saved_and_given_again(tmp_path):
    head = Bilinear()
    weight = head.product.weight.clone()
    model = model_of(2, head)
    # Transformers drew no new ones.
    assert torch.equal(model.fusion.product.weight, weight)
    # It has no ensemble to start from.
    model.start_fusion_from_heads()
    assert torch.equal(model.fusion.product.weight, weight)
    inputs, labels = inputs_of(2), torch.tensor([0, 1, 2, 0, 1, 2])
    model(**inputs, labels=labels).loss.backward()
    assert model.fusion.product.weight.grad.any()
    assert model.own_modules()["fusion"] is not model.fusion
    again = loaded(model, tmp_path, fusion=Bilinear())
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match=r"fusion is 'Bilinear'.*from_pretrained\(..., fusion=Bilinear"):
        FusionForClassification.from_pretrained(tmp_path)


class Wrong(nn.Module):
    def forward(self, embeddings, unimodal_logits, present):
        return embeddings["image"]


def test_what_is_wrong_with_a_head_is_said():
    with pytest.raises(ValueError, match="fusion is 'bilinear'; choose one of concatenation, mlp, gated-sum"):
        model_of(2, "bilinear")
    with pytest.raises(
        ValueError, match=r"fusion_options is \{'depth': 2\}, which 'gated-sum' does not take"
    ):
        model_of(2, "gated-sum", fusion_options={"depth": 2})
    for fusion in ("cross-attention", "transformer"):
        with pytest.raises(ValueError, match="width is 10, which is no multiple"):
            model_of(2, fusion, fusion_options={"width": 10})
    with pytest.raises(ValueError, match="num_layers is 0; give at least one"):
        model_of(2, "transformer", fusion_options={"num_layers": 0})
    with pytest.raises(ValueError, match=r"head Wrong returned \(6, 16\); it must return .* \(6, 3\)"):
        model_of(2, Wrong())(**inputs_of(2))


def test_hidden_units_say_what_no_sum_over_modalities_can():
    """The label is whether two modalities agree: neither alone, nor any sum of the two, is better than guessing."""
    torch.manual_seed(0)
    bits = torch.randint(2, (400, 2))
    labels = (bits[:, 0] == bits[:, 1]).long()
    embeddings = {
        name: (2.0 * bits[:, [m]] - 1.0) * torch.ones(1, 3) for m, name in enumerate(("left", "right"))
    }
    present = {name: torch.ones(400, dtype=torch.bool) for name in embeddings}
    accuracies = {}
    for fusion in ("concatenation", "mlp"):
        head = FUSION_HEADS[fusion]({"left": 3, "right": 3}, 2)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(embeddings, {}, present), labels).backward()
            optimizer.step()
        accuracies[fusion] = float((head(embeddings, {}, present).argmax(dim=1) == labels).double().mean())
    # Three of the four combinations at most.
    assert accuracies["concatenation"] < 0.8
    assert accuracies["mlp"] == 1.0
