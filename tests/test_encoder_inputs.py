"""What encoders are given: short sounds, masks, one row, attention, and how their errors are passed on."""

from __future__ import annotations

import random

import encoder_families as families
import fusion_fixtures as tiny
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, ClapConfig, ClapModel

from ecsfusion import FusionForClassification
from ecsfusion.model import padding
from ecsfusion.model.encoders import describe_encoder, embed, load_encoder, measure
from ecsfusion.model.sample_inputs import first_window

BATCH = {"x": torch.randn(4, 3), "y": torch.randn(4, 3)}


def family(name: str) -> nn.Module:
    return load_encoder("it", families.FAMILIES[name].make())


def fused(first: nn.Module, second: nn.Module | None = None, **options: object) -> FusionForClassification:
    torch.manual_seed(0)
    encoders = {"x": first, "y": nn.Linear(3, 5) if second is None else second}
    return FusionForClassification.from_modality_pretrained(encoders, num_labels=3, **options)


# ---- measured when the model is made ----


@pytest.mark.parametrize(
    ("name", "expected"), [("data2vec-audio", True), ("wav2vec 2.0 base", True), ("BERT", False)]
)
def test_an_encoder_that_mixes_padding_is_found_though_nobody_knows_its_name(name, expected, monkeypatch):
    encoder = families.FAMILIES[name].make()
    monkeypatch.setattr(padding, "PADDING_MIXING_FAMILIES", frozenset())
    encoder.config.feat_extract_norm, norm = "unknown", getattr(encoder.config, "feat_extract_norm", None)
    assert measure("it", encoder).unpadded is expected
    encoder.config.feat_extract_norm = norm


def test_measuring_changes_nothing():
    encoder = families.FAMILIES["BERT"].make().train()
    encoder.encoder.eval()
    modes = [part.training for part in encoder.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert measure("it", encoder).embedding_dim == 12
    assert [part.training for part in encoder.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_what_was_measured_is_saved_and_goes_before_the_configuration(tmp_path):
    model = fused(families.FAMILIES["MobileViT"].make())
    assert model.config.embedding_dims == {"x": 20, "y": 5}
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path, encoders={"y": nn.Linear(3, 5)})
    assert again.embedding_dims == {"x": 20, "y": 5}


def test_an_encoder_that_cannot_be_run_and_says_no_width_is_named():
    class Silent(tiny.transformers.PreTrainedModel):
        config_class = tiny.transformers.PreTrainedConfig
        main_input_name = "smell"

    with pytest.raises(
        ValueError, match=r"modality 'it' is not known: its encoder Silent .*no sample of 'smell'.*wrap"
    ):
        measure("it", Silent(tiny.transformers.PreTrainedConfig()))


# ---- masks and lengths ----


def test_a_mask_with_no_position_left_is_no_row_of_zeros():
    ids, mask = torch.randint(3, 20, (2, 4)), torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    with torch.no_grad():
        found = embed(family("BERT"), {"input_ids": ids, "attention_mask": mask})
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    with pytest.raises(ValueError, match="nothing is left of row 1"):
        embed(
            family("data2vec-audio"),
            {"input_values": torch.randn(2, 90), "attention_mask": mask[:, :1].repeat(1, 90)},
        )


@pytest.mark.parametrize("name", ["wav2vec 2.0 large", "wav2vec 2.0 base"])
def test_a_sound_shorter_than_the_first_window_is_followed_by_silence(name):
    encoder = family(name)
    window = first_window(encoder.config)
    # Two layers: one position of the second takes 4 of the first, which take 8 and 3 strides of 4.
    assert window == 20
    short, values = torch.randn(window - 7), torch.zeros(2, 90)
    values[0, : len(short)], values[1] = short, torch.randn(90)
    mask = torch.zeros(2, 90, dtype=torch.long)
    mask[0, : len(short)], mask[1] = 1, 1
    with torch.no_grad():
        alone = embed(encoder, {"input_values": short[None]})
        filled = embed(encoder, {"input_values": torch.cat([short, torch.zeros(7)])[None]})
        together = embed(encoder, {"input_values": values, "attention_mask": mask})
    assert alone.isfinite().all()
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(alone, filled)
    torch.testing.assert_close(together[:1], filled, atol=1e-5, rtol=1e-4)


def test_a_clip_shorter_than_the_spans_of_spec_augment_trains():
    spans = {"feat_extract_norm": "layer", "mask_time_prob": 0.5, "mask_time_length": 10}
    encoder = families.Family("Wav2Vec2Model", {**families.WAVES, **spans}, "waves").make()
    encoder = load_encoder("it", encoder.train())
    assert encoder.config.apply_spec_augment
    with pytest.raises(ValueError, match="mask_length"):
        encoder(torch.randn(2, 40))
    assert embed(encoder, {"input_values": torch.randn(2, 40)}).isfinite().all()
    # One that masks nothing has no vector to put there.
    plain = load_encoder("it", tiny.tiny_wav2vec2().train())
    assert embed(plain, {"input_values": torch.randn(2, 40)}).isfinite().all()
    # Longer ones are masked as before.
    torch.manual_seed(0)
    long = torch.randn(2, 400)
    assert not torch.equal(
        embed(encoder, {"input_values": long}), embed(encoder.eval(), {"input_values": long})
    )


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_encoder_of_ones_own_may_compute_in_another_precision(kind, autocast):
    class Other(nn.Linear):
        embedding_dim = 4

        def forward(self, values: Tensor) -> Tensor:
            return super().forward(values).to(kind)

    model = FusionForClassification.from_modality_pretrained(
        {"x": Other(3, 4), "y": Other(3, 4)}, num_labels=2
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(x=torch.randn(5, 3), y=torch.randn(5, 3), labels=torch.arange(5) % 2)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Mean(nn.Module):
    """Series (B, T, 3) to embeddings (B, 5), without a mask."""

    embedding_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, values: Tensor) -> Tensor:
        return self.layer(values.mean(dim=1))


def test_a_module_that_takes_no_mask_is_run_on_the_rows_of_each_length():
    model = fused(Mean())
    rows = torch.randn(3, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    found = model.embed("x", {"values": rows, "attention_mask": mask})
    expected = torch.cat([model.embed("x", row[None, :n]) for row, n in zip(rows, (2, 4, 2), strict=True)])
    torch.testing.assert_close(found, expected)


# ---- one row under batch normalization ----


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5))


def test_one_row_uses_the_running_statistics_and_leaves_them():
    model = fused(normed(), normed()).train()
    present = {"x": torch.tensor([True, False, False, False])}
    model(**BATCH, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    statistics = model.encoders["x"][1].running_mean.clone()
    out = model(**BATCH, present=present, labels=torch.tensor([0, 1, 2, 0]))
    out.loss.backward()
    assert torch.equal(model.encoders["x"][1].running_mean, statistics)
    assert model.encoders["x"][1].training
    with torch.no_grad():
        torch.testing.assert_close(out.embeddings["x"][0], model.eval().embed("x", BATCH["x"][:1])[0])
    # The other modality has four rows, and normalizes by them.
    assert not torch.allclose(out.embeddings["y"], model.embed("y", BATCH["y"]))


def test_one_row_of_a_length_and_a_fused_head_with_batch_normalization():
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))

        def forward(self, embeddings: dict, logits: dict, present: dict) -> Tensor:
            return self.layers(embeddings["x"])

    class Normed(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def forward(self, values: Tensor) -> Tensor:
            return self.norm(super().forward(values))

    model = fused(Normed(), fusion=Head()).train()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    series = {"values": torch.randn(3, 4, 3), "attention_mask": mask}
    assert model(x=series, y=torch.randn(3, 3)).logits.isfinite().all()
    assert model(x=torch.randn(1, 4, 3), y=torch.randn(1, 3)).logits.isfinite().all()


# ---- attention ----


def test_the_attention_that_is_chosen_reaches_the_encoders(tmp_path):
    def chosen(model: FusionForClassification) -> list[str]:
        return [encoder.config._attn_implementation for encoder in model.encoders.values()]

    model = fused(tiny.tiny_vit(), tiny.tiny_bert(), attn_implementation="eager")
    assert chosen(model) == ["eager", "eager"]
    model.set_best_heads(
        {"x": nn.ModuleDict({"encoder": model.encoders["x"], "head": model.heads["x"]}).state_dict()}
    )
    model.save_pretrained(tmp_path)
    assert chosen(FusionForClassification.from_pretrained(tmp_path)) == ["sdpa", "sdpa"]
    for choice, expected in (("eager", ["eager", "eager"]), ({"y": "eager"}, ["sdpa", "eager"])):
        again = FusionForClassification.from_pretrained(tmp_path, attn_implementation=choice)
        assert chosen(again) == expected
        assert again.best_heads["x"]["encoder"].config._attn_implementation == expected[0]
    # A model made of the same configuration chooses nothing.
    assert chosen(FusionForClassification(again.config)) == ["sdpa", "sdpa"]


def test_an_attention_that_an_encoder_does_not_have(caplog):
    tiny.transformers.utils.logging.enable_propagation()
    model = fused(tiny.tiny_vit(), tiny.tiny_resnet(), attn_implementation="sdpa")
    assert model.encoders["x"].config._attn_implementation == "sdpa"
    assert "no effect on modality 'y'" in caplog.text
    for choice, message in (
        ({"y": "sdpa"}, "the encoder ResNetModel of modality 'y' does not have"),
        ("magic", "the encoder ViTModel of modality 'x' does not have"),
        ({"z": "sdpa"}, r"names \['z'\], but the modalities are \['x', 'y'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_attn_implementation(choice)
    with pytest.raises(ValueError, match="modality 'y', whose encoder is your own module, Linear"):
        fused(tiny.tiny_vit(), attn_implementation={"y": "eager"})


# ---- what may be an encoder ----


class Sentences(nn.Sequential):
    """Of the structure of a `SentenceTransformer`: a dictionary goes in, and comes out with more in it."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 6)

        def forward(self, features: dict) -> dict:
            # Positions count from the first.
            positions = torch.arange(features["input_ids"].shape[1])[:, None]
            return {**features, "token_embeddings": self.words(features["input_ids"]) * (1 + positions)}

    class Pooling(nn.Module):
        def forward(self, features: dict) -> dict:
            mask = features["attention_mask"][:, :, None]
            return {
                **features,
                "sentence_embedding": (features["token_embeddings"] * mask).sum(1) / mask.sum(1),
            }

    def __init__(self) -> None:
        super().__init__(self.Words(), self.Pooling())

    def get_sentence_embedding_dimension(self) -> int:
        return 6


def test_a_sentence_transformer_is_an_encoder(tmp_path):
    model = fused(Sentences())
    assert model.embedding_dims["x"] == 6
    ids = torch.tensor([[3, 4, 5, 0], [0, 3, 4, 5]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    found = model.embed("x", inputs)
    torch.testing.assert_close(found[0], found[1])
    model.save_pretrained(tmp_path)
    own = {"x": Sentences(), "y": nn.Linear(3, 5)}
    again = FusionForClassification.from_pretrained(tmp_path, encoders=own)
    assert torch.equal(again.embed("x", inputs), found)


def test_of_a_clap_the_part_to_give_is_named_and_taken():
    text = {key: value for key, value in families.TEXT.items() if not key.endswith("_token_id")}
    clap = ClapModel(ClapConfig(text_config=text, audio_config=families.CLAP_AUDIO, projection_dim=16))
    with pytest.raises(ValueError, match=r"several towers.*ClapModel.from_pretrained\(...\).audio_model"):
        load_encoder("x", clap)
    assert describe_encoder(load_encoder("x", clap.audio_model))["class_name"] == "ClapAudioModel"
    with pytest.raises(TypeError, match="BertForMaskedLM; give the BertModel inside"):
        load_encoder("x", BertForMaskedLM(tiny.tiny_bert().config))


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "os", "PreTrainedConfig"])
def test_a_configuration_cannot_name_any_class(class_name):
    model = fused(tiny.tiny_bert())
    model.config.encoders["x"]["class_name"] = class_name
    with pytest.raises(ValueError, match=r"config.encoders\['x'\] has the class_name .*no encoder"):
        FusionForClassification(model.config, {"y": nn.Linear(3, 5)})


# ---- errors ----


def failing(error: Exception) -> nn.Module:
    class Failing(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            raise error

    return Failing(3, 5)


class SpecialError(Exception):
    """One that a sentence alone does not make."""

    def __init__(self, code: int, place: str) -> None:
        super().__init__(code, place)


@pytest.mark.parametrize(
    "error",
    [AttributeError("no x"), KeyError("k"), TypeError("t"), AssertionError("a"), NotImplementedError("n")],
)
def test_errors_of_an_encoder_keep_their_type_and_name_the_modality(error):
    with pytest.raises(
        type(error), match=r"encoder Failing of modality 'x' failed on \{'values': \(4, 3\)\}"
    ) as caught:
        fused(failing(error))(**BATCH)
    assert "processor" not in str(caught.value)


def test_an_error_of_a_type_of_its_own_is_passed_on_with_a_note():
    with pytest.raises(SpecialError) as caught:
        fused(failing(SpecialError(3, "there")))(**BATCH)
    assert "of modality 'x' failed on" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("error", "asks"),
    [
        (ValueError("the sky is low"), False),
        (RuntimeError("CUDA: size"), False),
        (RuntimeError("size of it"), False),
    ],
)
def test_the_processor_is_not_suspected_where_it_cannot_be_at_fault(error, asks):
    with pytest.raises(type(error) if "CUDA" in str(error) else ValueError, match="modality 'x'") as caught:
        fused(failing(error))(**BATCH)
    assert ("processor" in str(caught.value)) is asks


def test_a_module_that_is_called_otherwise_is_told_how():
    class Other(nn.Linear):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first

    with pytest.raises(TypeError, match=r"of modality 'x' failed.*'second'.*called as forward\(values\)"):
        fused(Other(3, 5))(**BATCH)


def test_texts_that_are_too_long_and_tokens_of_another_vocabulary_are_named():
    model = fused(tiny.tiny_bert())
    for tokens, remedy in (
        (torch.full((1, 600), 2), "has 600 tokens, and the encoder 512 positions: set model_max_length"),
        (torch.full((1, 3), 99), "a token with the number 99, and the encoder knows 20 tokens"),
    ):
        with pytest.raises(ValueError, match=remedy):
            model(x={"input_ids": tokens}, y=torch.zeros(1, 3))
