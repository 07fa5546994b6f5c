"""The fusion model: what is run, what is trained, what is saved."""

from __future__ import annotations

import json

import pytest
import torch
from fusion_fixtures import (
    NUM_CLASSES,
    tiny_bert,
    tiny_resnet,
    tiny_vit,
    tiny_wav2vec2,
    two_views,
)
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, ViTForImageClassification

from ecsfusion import FusionForClassification
from ecsfusion.model.pooling import pool
from ecsfusion.model.readout import Readout
from ecsfusion.modeling import FusionConfig


def batch(size: int = 5) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"pixel_values": torch.randn(size, 1, 4, 4)} for name in ("left", "right")}


def test_forward_gives_one_set_of_logits_and_embeddings_per_modality():
    model = two_views().eval()
    out = model(**batch(5), labels=torch.tensor([0, 1, 2, 0, 1]))
    assert out.logits.shape == (5, NUM_CLASSES)
    assert {name: tuple(z.shape) for name, z in out.unimodal_logits.items()} == {
        "left": (5, NUM_CLASSES),
        "right": (5, NUM_CLASSES),
    }
    assert {name: tuple(h.shape) for name, h in out.embeddings.items()} == {"left": (5, 16), "right": (5, 16)}
    assert out.probabilities is None


def test_losses_of_both_stages_are_the_published_sums():
    model = two_views(auxiliary_weight=0.6).eval()
    inputs, labels = batch(6), torch.tensor([0, 1, 2, 0, 1, 2])
    model.set_stage("joint")
    out = model(**inputs, labels=labels)
    unimodal = sum(F.cross_entropy(z, labels) for z in out.unimodal_logits.values())
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels) + 0.6 * unimodal)
    model.set_stage("unimodal")
    torch.testing.assert_close(model(**inputs, labels=labels).loss, unimodal)


def test_a_paused_modality_is_not_run_and_gets_no_gradient():
    model = two_views().train()
    model.set_stage("unimodal")
    model.set_active(["right"])
    calls = []
    model.encoders["left"].register_forward_hook(lambda *_: calls.append("left"))
    out = model(**batch(), labels=torch.zeros(5, dtype=torch.long))
    out.loss.backward()
    assert calls == []
    assert set(out.unimodal_logits) == {"right"}
    assert all(p.grad is None for p in model.modality_parameters("left").values())
    assert any(p.grad is not None for p in model.modality_parameters("right").values())
    model.set_active(["left", "right"])
    assert all(p.requires_grad for p in model.parameters())


def test_in_stage_two_a_paused_modality_is_a_missing_one():
    model = two_views(auxiliary_weight=0.6).train()
    model.set_stage("joint")
    inputs, labels = batch(), torch.tensor([0, 1, 2, 0, 1])
    missing = model(right=inputs["right"], labels=labels)
    missing.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    calls = []
    model.encoders["left"].register_forward_hook(lambda *_: calls.append("left"))
    model.set_active(["right"])
    out = model(**inputs, labels=labels)
    out.loss.backward()
    assert calls == []
    assert set(out.unimodal_logits) == set(out.embeddings) == set(out.present) == {"right"}
    assert torch.equal(out.logits, missing.logits)
    assert torch.equal(out.loss, missing.loss)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    with torch.no_grad():
        evaluated = model.eval()(**inputs, labels=labels)
    assert calls == ["left"]
    assert set(evaluated.unimodal_logits) == {"left", "right"}
    losses = [F.cross_entropy(z, labels) for z in (evaluated.logits, *evaluated.unimodal_logits.values())]
    torch.testing.assert_close(evaluated.loss, losses[0] + 0.6 * (losses[1] + losses[2]))


def test_a_modality_both_paused_and_frozen_trains_again_only_when_it_is_neither():
    model = two_views()
    by_hand = model.encoders["left"].embeddings.cls_token
    by_hand.requires_grad_(False)

    def trains() -> bool:
        states = {p.requires_grad for p in model.modality_parameters("left").values() if p is not by_hand}
        assert len(states) == 1
        assert not by_hand.requires_grad
        assert all(p.requires_grad for p in model.modality_parameters("right").values())
        return states.pop()

    for first, second in ((model.set_frozen, model.set_active), (model.set_active, model.set_frozen)):
        for last, other in ((first, second), (second, first)):
            for action in (first, second):
                action(["left"] if action == model.set_frozen else ["right"])
            assert not trains()
            last([] if last == model.set_frozen else ["left", "right"])
            assert not trains(), "the other reason still holds"
            other([] if other == model.set_frozen else ["left", "right"])
            assert trains()


def test_pausing_and_resuming_leaves_frozen_parameters_frozen():
    model = two_views()
    frozen = model.encoders["left"].embeddings.cls_token
    frozen.requires_grad_(False)
    model.set_active(["right"])
    model.set_active(["left", "right"])
    assert not frozen.requires_grad
    assert model.heads["left"].weight.requires_grad


def test_the_fused_head_trains_in_stage_two_always_and_in_stage_one_where_that_is_said():
    model = two_views()
    assert model.trains_fused_head
    for stage, value, expected in (
        ("unimodal", None, False),
        ("unimodal", True, True),
        ("unimodal", None, False),
        ("unimodal", False, False),
        ("joint", False, True),
        ("joint", None, True),
    ):
        model.set_stage(stage, value)
        assert model.trains_fused_head == expected, (stage, value)
        assert model.stage == model.config.stage == stage
    model.set_stage("unimodal", trains_fused_head=True)
    inputs, labels = batch(6), torch.tensor([0, 1, 2, 0, 1, 2])
    scouting = model(**inputs, labels=labels)
    model.set_stage("joint")
    assert torch.equal(scouting.loss, model(**inputs, labels=labels).loss)
    assert not two_views(stage="unimodal").trains_fused_head


def test_fusion_started_from_the_heads_is_their_sum():
    model = two_views().eval()
    model.start_fusion_from_heads()
    out = model(**batch(7))
    torch.testing.assert_close(out.logits, out.unimodal_logits["left"] + out.unimodal_logits["right"])


def test_a_missing_modality_leaves_the_other_and_counts_as_zero_in_the_fusion():
    model = two_views().eval()
    inputs = batch(4)
    out = model(left=inputs["left"], right=None)
    expected = F.linear(out.embeddings["left"], model.fusion.linear.weight[:, :16], model.fusion.linear.bias)
    torch.testing.assert_close(out.logits, expected)
    assert set(out.unimodal_logits) == {"left"}


def test_saved_model_comes_back_identical_and_names_no_path(tmp_path):
    image_folder = tmp_path / "encoders" / "image"
    tiny_vit().save_pretrained(image_folder)
    model = FusionForClassification.from_modality_pretrained(
        {"image": str(image_folder), "other": tiny_resnet()}, id2label={0: "no", 1: "yes"}
    ).eval()
    model.save_pretrained(tmp_path / "fusion")
    written = "".join(file.read_text() for file in (tmp_path / "fusion").glob("*.json"))
    assert str(tmp_path) not in written
    again = FusionForClassification.from_pretrained(tmp_path / "fusion").eval()
    inputs = {"image": torch.randn(3, 1, 4, 4), "other": torch.randn(3, 1, 8, 8)}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    assert again.config.id2label == {0: "no", 1: "yes"}
    assert [file.suffix for file in (tmp_path / "fusion").iterdir() if file.suffix in (".bin", ".pt")] == []


def test_pretrained_weights_are_taken_over():
    encoder = tiny_vit()
    model = FusionForClassification.from_modality_pretrained({"a": encoder, "b": tiny_vit()}, num_labels=2)
    assert torch.equal(model.encoders["a"].embeddings.cls_token, encoder.embeddings.cls_token)


def test_a_model_with_a_readout_returns_calibrated_probabilities(tmp_path):
    model = two_views().eval()
    heads = {name: torch.randn(200, NUM_CLASSES) for name in ("fused", "left", "right")}
    readout = Readout.fit(heads, torch.randint(NUM_CLASSES, (200,)))
    model.config.readout = readout.to_dict()
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path).eval()
    inputs = batch(6)
    with torch.no_grad():
        out = again(**inputs)
        alone = again(left=inputs["left"])
    expected = readout({"fused": out.logits, **out.unimodal_logits}).exp()
    torch.testing.assert_close(out.probabilities, expected.to(out.probabilities.dtype))
    torch.testing.assert_close(out.probabilities.sum(1), torch.ones(6, dtype=out.probabilities.dtype))
    torch.testing.assert_close(
        alone.probabilities,
        readout({"left": out.unimodal_logits["left"]}).exp().to(alone.probabilities.dtype),
    )


def test_text_embedding_does_not_depend_on_padding():
    encoder = tiny_bert().eval()
    short = torch.tensor([[2, 5, 7, 3]])
    padded = torch.tensor([[2, 5, 7, 3, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        alone = pool(encoder, encoder(input_ids=short, attention_mask=torch.ones_like(short)), None)
        in_batch = pool(encoder, encoder(input_ids=padded, attention_mask=mask), mask)
    torch.testing.assert_close(alone, in_batch)


def test_audio_embedding_averages_only_real_frames():
    encoder = tiny_wav2vec2().eval()
    wave = torch.randn(1, 400)
    mask = torch.cat([torch.ones(1, 400), torch.zeros(1, 240)], dim=1).long()
    padded = torch.cat([wave, torch.zeros(1, 240)], dim=1)
    with torch.no_grad():
        outputs = encoder(input_values=padded, attention_mask=mask)
        pooled = pool(encoder, outputs, mask)
        frames = int(encoder._get_feat_extract_output_lengths(torch.tensor([400])))
    torch.testing.assert_close(pooled, outputs.last_hidden_state[:, :frames].mean(dim=1))


def test_convolutional_maps_are_averaged_over_space():
    encoder = tiny_resnet().eval()
    outputs = encoder(torch.randn(2, 1, 16, 16))
    torch.testing.assert_close(pool(encoder, outputs), outputs.last_hidden_state.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: two_views().set_stage("fusion"), "stage is 'fusion'"),
        (lambda: two_views().set_active([]), "at least one of the modalities"),
        (lambda: two_views().set_active(["audio"]), "at least one of the modalities"),
        (lambda: two_views()(), "no modality to run"),
        (lambda: two_views()(middle=torch.zeros(1, 1, 4, 4)), "not modalities of this model"),
        (lambda: two_views()(left={"input_ids": torch.zeros(1, 4)}), "Is this the right processor"),
        (lambda: FusionForClassification(FusionConfig(encoders={})), "fusion needs at least two"),
        (
            lambda: FusionForClassification.from_modality_pretrained({"a": tiny_vit(), "b": tiny_vit()}),
            "num_labels is missing",
        ),
        (
            lambda: FusionForClassification.from_modality_pretrained(
                {"fused": tiny_vit(), "b": tiny_vit()}, num_labels=2
            ),
            "cannot name a modality",
        ),
        (
            lambda: FusionForClassification.from_modality_pretrained(
                {"type": tiny_vit(), "b": tiny_vit()}, num_labels=2
            ),
            "'type' cannot name a modality: torch.nn modules have an attribute",
        ),
        (
            lambda: two_views().embed("left", torch.zeros(3, 1, 4, 4), _FirstRow()),
            r"encoder _FirstRow of modality 'left' returned embeddings of shape \(1, 16\) for 3 rows",
        ),
    ],
)
def test_bad_input_is_named(action, message):
    with pytest.raises(ValueError, match=message):
        action()


class _FirstRow(torch.nn.Module):
    """An encoder that loses rows."""

    def forward(self, values):
        return values.flatten(1)[:1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["self", "b"], "'self' cannot name a modality"),
        (["training", "b"], "'training' cannot name a modality: torch.nn modules have an attribute"),
        (["a", "b", "rest"], "'rest' cannot name one of 3 modalities: there it stands for all others"),
        (["floor_b", "b"], r"\['floor_b', 'b'\] would log two values as 'unique_floor_b', .* rename"),
    ],
)
def test_names_that_mean_something_else_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        FusionForClassification.from_modality_pretrained({name: tiny_vit() for name in names}, num_labels=2)


def test_two_modalities_have_no_rest():
    FusionForClassification.from_modality_pretrained({"a": tiny_vit(), "rest": tiny_vit()}, num_labels=2)


def test_an_encoder_of_the_wrong_kind_is_named():
    with pytest.raises(TypeError, match="encoder of modality 'b' is a function"):
        FusionForClassification.from_modality_pretrained({"a": tiny_vit(), "b": tiny_vit}, num_labels=2)


def test_config_is_plain_json():
    model = two_views()
    assert json.loads(model.config.to_json_string())["encoders"]["left"]["model_type"] == "vit"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 3]), "labels hold the class 3, but the model has 3"),
        (
            torch.tensor([0, -1, 2]),
            "labels hold the class -1, but classes .* leave 'labels' out of rows that have none",
        ),
        (torch.tensor([0.0, 1.0, 2.0]), "one class index per row"),
        # cross_entropy would take them for probabilities.
        (torch.eye(3), "one class index per row"),
    ],
)
def test_labels_that_are_no_class_indices_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        two_views()(**batch(3), labels=labels)


def test_an_encoder_with_a_head_is_refused():
    whole = ViTForImageClassification(tiny_vit().config)
    with pytest.raises(TypeError, match="'left' is a ViTForImageClassification; give the ViTModel"):
        FusionForClassification.from_modality_pretrained({"left": whole, "right": tiny_vit()}, num_labels=3)


def test_a_saved_model_answers_alike_whatever_the_order_of_its_modalities(tmp_path):
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {name: tiny_vit() for name in ("right", "left")}, num_labels=NUM_CLASSES
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = FusionForClassification.from_pretrained(tmp_path).eval()
    inputs = batch(4)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.modalities == ("right", "left")


def test_a_model_in_half_precision_takes_what_processors_give(tmp_path):
    model = two_views().eval()
    model.save_pretrained(tmp_path)
    half = FusionForClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    inputs = batch(4)
    with torch.no_grad():
        logits, expected = half(**inputs).logits, model(**inputs).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("left", "right"), [("bfloat16", "float32"), ("float32", "float16")])
def test_every_weight_is_loaded_in_the_precision_that_it_was_saved_in(tmp_path, left, right):
    """Encoders come from the Hub in the precision of their checkpoint; the heads and adapters are float32."""
    torch.manual_seed(0)
    encoders = {
        name: tiny_vit().to(getattr(torch, kind)) for name, kind in (("left", left), ("right", right))
    }
    model = FusionForClassification.from_modality_pretrained(encoders, num_labels=NUM_CLASSES).eval()
    # As an adapter inside of an encoder.
    layer = model.encoders["left"].layernorm.float()
    layer.weight.data.mul_(1 + 1e-6)
    parts = torch.nn.ModuleDict({"encoder": model.encoders["right"], "head": model.heads["right"]})
    model.set_best_heads({"right": parts.state_dict()})
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path).eval()
    assert again.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(again.state_dict()[name], value), name
    asked = FusionForClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in asked.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"id2label": ["x", "y"]},
            r"id2label is a list; give a mapping, .* id2label=dict\(enumerate\(names\)\)",
        ),
        ({"label2id": ["x", "y"]}, "label2id is a list; give a mapping"),
        ({"num_labels": "3"}, "num_labels is '3'; give the number of classes, a whole number"),
        ({"num_labels": 3.0}, "num_labels is 3.0; give the number of classes, a whole number"),
    ],
)
def test_classes_of_another_kind_are_refused(labels, message):
    encoders = {"left": tiny_vit(), "right": tiny_vit()}
    with pytest.raises(TypeError, match=message):
        FusionForClassification.from_modality_pretrained(encoders, **labels)


def test_auto_model_loads_it(tmp_path):
    model = two_views().eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again, FusionForClassification)
    inputs = batch(3)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


class _Columns(torch.nn.Linear):
    embedding_dim = 5

    def __init__(self):
        super().__init__(4, 5)


def test_auto_model_takes_modules_of_the_users_own(tmp_path):
    """The configuration has a field of the same name, into which transformers put the modules."""
    own = {name: _Columns() for name in ("left", "right")}
    model = FusionForClassification.from_modality_pretrained(own, num_labels=3).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, encoders={name: _Columns() for name in own}).eval()
    values = {name: torch.randn(3, 4) for name in own}
    with torch.no_grad():
        assert torch.equal(again(**values).logits, model(**values).logits)


def test_one_encoder_for_two_modalities_is_refused():
    encoder = tiny_vit()
    with pytest.raises(ValueError, match=r"encoders\['left'\] and encoders\['right'\] are the same object"):
        FusionForClassification.from_modality_pretrained({"left": encoder, "right": encoder}, num_labels=3)


def test_best_heads_of_a_model_that_an_earlier_version_saved(tmp_path):
    model = two_views().eval()
    parts = torch.nn.ModuleDict({"encoder": model.encoders["right"], "head": model.heads["right"]})
    model.set_best_heads({"right": {key: value + 0.1 for key, value in parts.state_dict().items()}})
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert any(key.startswith("best_heads.right.encoder.") for key in weights)
    older = {key.replace("best_heads.", "standalone.", 1): value for key, value in weights.items()}
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["standalone"] = config.pop("best_heads")
    (tmp_path / "config.json").write_text(json.dumps(config))

    again, loading = FusionForClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = batch(4)
    with torch.no_grad():
        expected = model(**inputs)
        for loaded in (again.eval(), AutoModel.from_pretrained(tmp_path).eval()):
            out = loaded(**inputs)
            assert torch.equal(out.unimodal_logits["right"], expected.unimodal_logits["right"])
            assert torch.equal(out.logits, expected.logits)
        model.set_best_heads({})
        assert not torch.equal(model(**inputs).unimodal_logits["right"], expected.unimodal_logits["right"])
    again.save_pretrained(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["best_heads"] == ["right"]
    assert "standalone" not in saved
    assert load_file(tmp_path / "new" / "model.safetensors").keys() == weights.keys()
