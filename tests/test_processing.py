"""FusionProcessor and FusionCollator: raw media to batches, saved without a trace of this machine."""

import io
import json
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Subset
from transformers import (
    ASTFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from ecsfusion.data.arrays import ArrayProcessor
from ecsfusion.data.lengths import row_lengths
from ecsfusion.data.media import read_audio, read_image, read_video
from ecsfusion.data.numbered_rows import NumberedRows
from ecsfusion.processing import FusionCollator, FusionProcessor, TensorCollator

RATE = 16_000


def make_image_processor(folder, **options):
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": False} | options
    folder.mkdir(parents=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return AutoImageProcessor.from_pretrained(folder)


def make_tokenizer(folder, **options):
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 4} | options
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
    # real tokenizers on the Hub carry such remains of the machine that made them
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"special_tokens_map_file": str(folder / "special.json"), "name_or_path": str(folder)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return FusionProcessor(
        {
            "image": make_image_processor(folder / "image", image_mean=[0.5], image_std=[0.5]),
            "audio": ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=16, max_length=10),
            "speech": Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True),
            "text": make_tokenizer(folder / "text"),
        }
    )


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def wave():
    return (0.5 * np.sin(2 * np.pi * 697 * np.arange(RATE // 8) / RATE)).astype(np.float32)


def encoded(samples, rate, kind="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


# --- reading raw media


def test_every_way_to_give_an_image_is_the_same_image(processor, image, tmp_path):
    (tmp_path / "digit.png").write_bytes(png(image))
    ways = [
        Image.fromarray(image),
        Image.fromarray(image).convert("RGB"),
        image,
        image[None],
        image[..., None],
        np.repeat(image[..., None], 3, axis=-1),
        image / 255.0,
        torch.from_numpy(image),
        png(image),
        {"bytes": png(image), "path": None},
        {"bytes": None, "path": str(tmp_path / "digit.png")},
        str(tmp_path / "digit.png"),
        tmp_path / "digit.png",
    ]
    expected = torch.from_numpy(image).float()[None] / 255 * 2 - 1
    batch = processor(image=ways)["image"]["pixel_values"]
    assert batch.shape == (len(ways), 1, 8, 8)
    for row in batch:
        torch.testing.assert_close(row, expected)


def test_every_way_to_give_a_sound_is_the_same_sound(wave, tmp_path):
    soundfile.write(tmp_path / "digit.wav", wave, RATE, subtype="FLOAT")
    stereo = np.stack([1.5 * wave, 0.5 * wave], axis=1)
    exact = [
        wave,
        wave.astype(np.float64),
        wave.tolist(),
        torch.from_numpy(wave),
        {"array": wave, "sampling_rate": RATE},
        {"bytes": encoded(wave, RATE), "path": None},
        {"bytes": None, "path": str(tmp_path / "digit.wav")},
        encoded(wave, RATE),
        encoded(stereo, RATE),
        tmp_path / "digit.wav",
    ]
    for value in exact:
        np.testing.assert_allclose(read_audio(value, RATE), wave, atol=1e-6)
    rounded = [np.round(wave * 32768).astype(np.int16), encoded(wave, RATE, "FLAC", "PCM_16")]
    for value in rounded:
        np.testing.assert_allclose(read_audio(value, RATE), wave, atol=1e-4)


def test_floats_that_are_cast_integers_are_refused_where_their_scale_counts(wave):
    cast = np.round(wave * 32768).astype(np.float32)
    whisper = FusionProcessor({"audio": WhisperFeatureExtractor()})
    with pytest.raises(ValueError, match=r"audio, row 0: the sound has floats up to .* takes -1\.\.1"):
        whisper(audio=cast)
    # Standardized waveforms are some times larger than 1.
    whisper(audio=wave / wave.std())
    scaled = FusionProcessor({"audio": Wav2Vec2FeatureExtractor()})
    given, expected = (scaled(audio=each)["audio"]["input_values"] for each in (cast, wave))
    torch.testing.assert_close(given, expected, atol=1e-2, rtol=0)


def test_resampling_keeps_frequency_level_and_length():
    for rate in (8000, 11_025, 44_100):
        tone = np.sin(2 * np.pi * 1336 * np.arange(rate // 2) / rate)
        heard = read_audio({"array": tone, "sampling_rate": rate}, RATE)
        assert abs(len(heard) - RATE // 2) <= 1
        middle = heard[1000:-1000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 17))
        assert spectrum.argmax() * RATE / (1 << 17) == pytest.approx(1336, abs=1)
        assert np.abs(middle).max() == pytest.approx(1, abs=0.02)


def test_sixteen_bit_images_are_scaled_and_exif_turns_are_applied():
    deep = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    assert np.asarray(read_image(Image.fromarray(deep), 1)).tolist() == [[0, 100], [200, 255]]
    file = io.BytesIO()
    exif = Image.Exif()
    # The camera was turned: show it rotated by 90 degrees.
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(file, "PNG", exif=exif)
    opened = Image.open(file)
    assert read_image(file.getvalue()).size == read_image(opened).size == (4, 8)
    assert opened.size == (8, 4), "the user's own image is left as it is"


@pytest.mark.parametrize("kind", ["data set", "series", "array"])
def test_a_column_is_the_values_of_many_rows(tmp_path, kind):
    texts, rows = ["a b", "a", "b"], [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    data = datasets.Dataset.from_dict({"text": texts, "sensor": rows})
    text, sensor = {
        "data set": (data["text"], data["sensor"]),
        "series": (data.to_pandas()["text"], data.to_pandas()["sensor"]),
        "array": (np.array(texts), data.to_pandas()["sensor"].to_numpy()),
    }[kind]
    processor = FusionProcessor({"text": make_tokenizer(tmp_path / "text"), "sensor": ArrayProcessor()})
    batch, expected = processor(text=text, sensor=sensor), processor(text=texts, sensor=rows)
    assert torch.equal(batch["text"]["input_ids"], expected["text"]["input_ids"])
    assert batch["sensor"]["values"].tolist() == expected["sensor"]["values"].tolist() == rows


@pytest.mark.parametrize("kind", [ASTFeatureExtractor, SeamlessM4TFeatureExtractor])
def test_a_sound_shorter_than_two_windows_is_followed_by_silence(kind):
    processor = FusionProcessor({"audio": kind()})
    sounds = [np.ones(length, np.float32) for length in (1, 100, 400, 600)]
    inputs = processor(audio=sounds)["audio"]
    assert len(inputs[kind.model_input_names[0]]) == 4
    assert all(value.isfinite().all() for value in inputs.values())


def test_an_opened_image_that_is_damaged_is_named_with_its_row(tmp_path):
    processor = FusionProcessor({"image": make_image_processor(tmp_path / "rgb")})
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(file, "JPEG")
    damaged = Image.open(io.BytesIO(file.getvalue()[:-400]))
    with pytest.raises(
        ValueError, match=r"image, row 1: the PIL image cannot be read as an image \(.*truncated"
    ):
        processor(image=[Image.new("RGB", (8, 8)), damaged])


def test_processors_of_three_channels_get_rgb(tmp_path, image):
    processor = FusionProcessor({"image": make_image_processor(tmp_path / "rgb")})
    batch = processor(
        image=[image, Image.fromarray(image).convert("RGBA"), Image.fromarray(image).convert("P")]
    )
    assert batch["image"]["pixel_values"].shape == (3, 3, 8, 8)


# --- batches


def test_single_raw_files_are_a_batch_of_one(processor, image, wave, tmp_path):
    (tmp_path / "digit.png").write_bytes(png(image))
    soundfile.write(tmp_path / "digit.wav", wave, RATE)
    batch = processor(image=str(tmp_path / "digit.png"), audio=str(tmp_path / "digit.wav"), text="two")
    assert {
        name: {key: tuple(value.shape) for key, value in inputs.items()} for name, inputs in batch.items()
    } == {
        "image": {"pixel_values": (1, 1, 8, 8)},
        "audio": {"input_values": (1, 10, 16)},
        "text": {"input_ids": (1, 1), "attention_mask": (1, 1)},
    }


def test_audio_and_text_are_padded_to_the_longest_with_masks(processor, wave):
    batch = processor(speech=[wave, wave[:500]], text=["one two three", "three"])
    assert batch["speech"]["input_values"].shape == (2, len(wave))
    assert batch["speech"]["attention_mask"].sum(dim=1).tolist() == [len(wave), 500]
    assert not batch["speech"]["input_values"][1, 500:].any()
    assert batch["text"]["input_ids"].tolist() == [[2, 3, 4], [4, 0, 0]]
    assert batch["text"]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_text_is_cut_at_the_tokenizers_limit(processor):
    assert processor(text="one two three one two three")["text"]["input_ids"].shape == (1, 4)


def test_batches_move_and_cast_floats_only(processor, image):
    batch = processor(image=image, text="one").to(torch.float16)
    assert batch["image"]["pixel_values"].dtype == torch.float16
    assert batch["text"]["input_ids"].dtype == torch.int64
    assert processor(image=image).to("meta")["image"]["pixel_values"].device.type == "meta"


def test_collator_gives_the_same_batch_for_raw_and_processed_rows(processor, image, wave):
    waves, texts = [wave, wave[:700], wave[:1100]], ["one", "two three", "three"]
    raw = [
        {"image": image, "speech": sound, "text": text, "label": label, "speaker": "theo"}
        for label, (sound, text) in enumerate(zip(waves, texts, strict=True))
    ]
    processed = [
        {
            name: {key: value[0] for key, value in processor.process(name, [row[name]]).items()}
            for name in ("image", "speech", "text")
        }
        | {"labels": row["label"]}
        for row in raw
    ]
    collate = FusionCollator(processor)
    one, other = collate(raw), collate(processed)
    assert set(one) == set(other) == {"image", "speech", "text", "labels", "present"}
    assert set(one["present"]) == {"audio"}
    assert one["labels"].tolist() == other["labels"].tolist() == [0, 1, 2]
    for name in ("image", "speech", "text"):
        assert set(one[name]) == set(other[name])
        for key in one[name]:
            torch.testing.assert_close(one[name][key], other[name][key])


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([1, 2], torch.int64), ([0.5, 2.0], torch.float32), ([[1, 0], [1, 1]], torch.float32)],
)
def test_label_types(processor, labels, dtype):
    batch = FusionCollator(processor)([{"text": "one", "label": label} for label in labels])
    assert batch["labels"].dtype == dtype
    assert batch["labels"].tolist() == labels


def test_modalities_and_labels_absent_in_all_rows(processor, image):
    assert set(processor(image=[image, image], audio=None)) == {"image"}
    batch = processor(image=[image, image], text=[None, None])
    assert set(batch) == {"image", "present"}
    assert batch["present"]["text"].tolist() == [False, False]
    # every batch of a data set says it alike, whatever rows it drew
    for row in ({"image": image, "audio": None}, {"image": image}):
        batch = FusionCollator(processor)([row])
        assert set(batch) == {"image", "present"}
        assert {name: mask.tolist() for name, mask in batch["present"].items()} == {
            "audio": [False],
            "speech": [False],
            "text": [False],
        }


@pytest.mark.parametrize("processed", [False, True])
def test_rows_that_lack_a_modality_are_zeros_under_a_mask(processor, image, wave, processed):
    sounds, texts = [wave, None, wave[:700]], [None, "two three", "one"]
    rows = [
        {"image": image, "speech": sound, "text": text, "label": 1}
        for sound, text in zip(sounds, texts, strict=True)
    ]
    if processed:
        for row in rows:
            for name in ("image", "speech", "text"):
                if row[name] is not None:
                    features = processor.process(name, [row[name]])
                    row[name] = {key: value[0] for key, value in features.items()}
    processor = FusionProcessor({name: processor.processors[name] for name in ("image", "speech", "text")})
    batch = FusionCollator(processor)(rows)
    assert {name: mask.tolist() for name, mask in batch["present"].items()} == {
        "speech": [True, False, True],
        "text": [False, True, True],
    }
    assert batch["speech"]["input_values"].shape == (3, len(wave))
    assert batch["speech"]["attention_mask"].sum(dim=1).tolist() == [len(wave), 0, 700]
    assert batch["text"]["input_ids"].tolist() == [[0, 0], [3, 4], [2, 0]]
    alone = processor.process("speech", [wave, wave[:700]])["input_values"]
    assert torch.equal(batch["speech"]["input_values"][[0, 2]], alone)
    assert batch.to(torch.float16)["present"]["text"].dtype == torch.bool


def test_a_sound_gets_a_mask_even_if_its_processor_would_not_make_one(wave):
    # As wav2vec 2.0 base.
    base = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False)
    processor = FusionProcessor({"speech": base})
    raw = processor(speech=[wave, wave[:500]])
    assert raw["speech"]["attention_mask"].sum(dim=1).tolist() == [len(wave), 500]
    rows = [
        {"speech": {k: v[0] for k, v in processor.process("speech", [w]).items()}} for w in (wave, wave[:500])
    ]
    batch = FusionCollator(processor)(rows)
    assert torch.equal(batch["speech"]["attention_mask"], raw["speech"]["attention_mask"])


def test_whisper_is_told_where_the_sound_ends(wave):
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=2, sampling_rate=RATE)
    batch = FusionProcessor({"speech": extractor})(speech=[wave, np.tile(wave, 8)])
    assert batch["speech"]["input_features"].shape == (2, 8, 200)
    assert batch["speech"]["attention_mask"].sum(dim=1).tolist() == [13, 100]


# --- videos, tables and series


def _saved_and_loaded(processor, folder):
    processor.save_pretrained(folder)
    return FusionProcessor.from_pretrained(folder)


def test_videos_are_lists_of_frames(image, tmp_path):
    options = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    folder = tmp_path / "video"
    folder.mkdir()
    config = {"image_processor_type": "VideoMAEImageProcessor", **options}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    processor = FusionProcessor({"video": AutoImageProcessor.from_pretrained(folder)})
    frames = [image, 255 - image, image]
    expected = processor(video=[frames, frames])["video"]["pixel_values"]
    assert expected.shape == (2, 3, 3, 8, 8)
    array = np.repeat(np.stack(frames)[..., None], 3, axis=-1)
    pictures = [Image.fromarray(frame) for frame in frames]
    for one in (frames, array, torch.from_numpy(array), pictures):
        assert torch.equal(processor(video=one)["video"]["pixel_values"], expected[:1])
    batch = FusionCollator(processor)([{"video": frames, "label": 0}, {"video": array, "label": 1}])
    assert torch.equal(batch["video"]["pixel_values"], expected)
    # The encoder takes so many.
    config["num_frames"] = 2
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    two = FusionProcessor({"video": AutoImageProcessor.from_pretrained(folder)})
    for each in (two, _saved_and_loaded(two, tmp_path / "two")):
        long = [frames[0], *[np.zeros_like(image)] * 6, frames[1]]
        assert torch.equal(each(video=long)["video"]["pixel_values"], expected[:1, :2])
    with pytest.raises(TypeError, match=r"video, row 0: a video cannot be a str; give a list of its frames"):
        processor(video="film.mp4")
    processor.save_pretrained(tmp_path / "saved")
    again = FusionProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(video=frames)["video"]["pixel_values"], expected[:1])


def test_rows_of_numbers_are_normalized_and_series_padded(tmp_path):
    table = np.array([[1.0, 10.0, 5.0], [3.0, 30.0, 5.0]])
    columns = ArrayProcessor.fit(table)
    series = [np.arange(6.0).reshape(3, 2), np.ones((5, 2))]
    processor = FusionProcessor({"columns": columns, "sensor": ArrayProcessor()})
    processor.save_pretrained(tmp_path)
    for each in (processor, FusionProcessor.from_pretrained(tmp_path)):
        batch = each(columns=list(table), sensor=series)
        assert batch["columns"]["values"].tolist() == [[-1, -1, 0], [1, 1, 0]]
        assert set(batch["columns"]) == {"values"}
        assert batch["sensor"]["values"].shape == (2, 5, 2)
        assert batch["sensor"]["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
        assert not batch["sensor"]["values"][0, 3:].any()
    one = processor(columns=[2.0, 20.0, 5.0], sensor=series[0])
    assert one["columns"]["values"].tolist() == [[0, 0, 0]]
    assert set(one["sensor"]) == {"values"}
    rows = [
        {name: {key: value[0] for key, value in processor.process(name, [raw]).items()} for name, raw in each}
        for each in (
            [("columns", table[0]), ("sensor", series[0])],
            [("columns", table[1]), ("sensor", series[1])],
        )
    ]
    again = FusionCollator(processor)(rows)
    assert torch.equal(again["sensor"]["values"], batch["sensor"]["values"])
    assert torch.equal(again["sensor"]["attention_mask"], batch["sensor"]["attention_mask"])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], ValueError, "a row has 2 features, but the processor was made for 3"),
        ([[1.0, np.nan, 0.0]], ValueError, "columns, row 0: the row has values that are NaN"),
        (["red"], TypeError, "columns, row 0: a row of numbers cannot be a str"),
        ([np.zeros((2, 2, 3))], ValueError, r"columns, row 0: the row has shape \(2, 2, 3\)"),
    ],
)
def test_numbers_that_cannot_be_used_are_named(rows, error, message):
    processor = FusionProcessor({"columns": ArrayProcessor([0.0, 0.0, 0.0])})
    with pytest.raises(error, match=message):
        processor(columns=rows)
    with pytest.raises(ValueError, match="positive ones as std"):
        ArrayProcessor(0.0, 0.0)


def test_rows_of_tensors_need_no_processor():
    rows = [
        {"left": {"pixel_values": torch.ones(1, 2, 2)}, "right": torch.ones(3), "labels": 1},
        {"left": None, "right": 2 * torch.ones(3), "labels": 0},
    ]
    for collate in (TensorCollator(), TensorCollator(("left", "right"))):
        batch = collate(rows)
        assert batch["left"]["pixel_values"][:, 0, 0, 0].tolist() == [1, 0]
        assert batch["right"].tolist() == [[1, 1, 1], [2, 2, 2]]
        assert {name: mask.tolist() for name, mask in batch["present"].items()} == {"left": [True, False]}
        assert batch["labels"].tolist() == [1, 0]
    assert set(TensorCollator()(rows[:1])) == {"left", "right", "labels"}


# --- saving and loading


def test_round_trip_gives_identical_outputs_and_leaves_no_local_path(processor, image, wave, tmp_path):
    files = processor.save_pretrained(tmp_path / "saved")
    loaded = FusionProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.modalities == processor.modalities
    raw = {"image": image, "audio": wave, "speech": wave, "text": "one two"}
    before, after = processor(**raw), loaded(**raw)
    for name in raw:
        for key in before[name]:
            assert torch.equal(before[name][key], after[name][key])
    # Loaded from a local folder, so it has a path to leak.
    again = loaded.save_pretrained(tmp_path / "again")
    for file in [*files, *again]:
        content = Path(file).read_text(encoding="utf-8")
        for secret in (
            str(tmp_path),
            str(tmp_path.parent),
            tempfile.gettempdir(),
            "name_or_path",
            "is_local",
        ):
            assert secret not in content, file
    assert {"image", "audio", "speech", "text"} <= {path.name for path in (tmp_path / "again").iterdir()}


def test_hub_names_are_loaded_by_sub_folder_and_revision(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path / "saved")
    calls = []

    def cached_file(name, file, *, revision, **kwargs):
        calls.append(("config", name, revision))
        return str(tmp_path / "saved" / file)

    def from_pretrained(name, *, subfolder, revision, trust_remote_code):
        calls.append((subfolder, name, revision, trust_remote_code))
        return processor.processors[subfolder]

    monkeypatch.setattr("ecsfusion.processing.cached_file", cached_file)
    for kind in ("AutoImageProcessor", "AutoFeatureExtractor", "AutoTokenizer"):
        monkeypatch.setattr(f"ecsfusion.processing.{kind}.from_pretrained", from_pretrained)
    FusionProcessor.from_pretrained("someone/digits", revision="unimodal")
    expected = [(name, "someone/digits", "unimodal", False) for name in processor.modalities]
    assert calls == [("config", "someone/digits", "unimodal"), *expected]


def test_push_to_hub_uploads_the_config_and_every_sub_folder(processor, monkeypatch):
    pushed = {}

    def upload(self, working_dir, repo_id, **kwargs):
        root = Path(working_dir)
        files = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}
        pushed.update(repo_id=repo_id, revision=kwargs["revision"], files=files)

    class Api:
        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": f"someone/{repo_id}"})

    class Card:
        def save(self, path):
            Path(path).write_text("card", encoding="utf-8")

    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: Api())
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: Card())
    monkeypatch.setattr(FusionProcessor, "_upload_modified_files", upload)
    processor.push_to_hub("digits", revision="unimodal")
    assert pushed["repo_id"] == "someone/digits"
    assert pushed["revision"] == "unimodal"
    assert {
        "fusion_processor_config.json",
        "image/preprocessor_config.json",
        "text/tokenizer.json",
    } <= pushed["files"]


def test_a_folder_without_a_fusion_processor_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"has no fusion_processor_config\.json"):
        FusionProcessor.from_pretrained(tmp_path)
    (tmp_path / "fusion_processor_config.json").write_text('{"modalities": {"smell": "nose"}}')
    with pytest.raises(ValueError, match=r"kind of modality 'smell' is 'nose'"):
        FusionProcessor.from_pretrained(tmp_path)


# --- errors


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ({"video": [1]}, ValueError, r"unknown modality 'video'; this processor has \['image', 'audio'"),
        ({}, ValueError, "nothing to process"),
        ({"image": "absent.png"}, ValueError, "image, row 0: there is no file 'absent.png'"),
        ({"image": b"not an image"}, ValueError, "image, row 0: 12 bytes cannot be read as an image"),
        ({"image": np.zeros((8, 8, 7))}, ValueError, r"image, row 0: the image array has shape \(8, 8, 7\)"),
        ({"image": np.full((8, 8), -1.0)}, ValueError, "values from -1.0 to -1.0"),
        ({"image": np.full((8, 8), np.nan)}, ValueError, "values from nan to nan"),
        ({"image": 7}, TypeError, "image, row 0: an image cannot be a int"),
        ({"image": {"bytes": None, "path": None}}, ValueError, r"holds no media; fill \"bytes\" or \"path\""),
        ({"audio": "absent.wav"}, ValueError, "audio, row 0: there is no file 'absent.wav'"),
        ({"audio": b"not a sound"}, ValueError, "audio, row 0: 11 bytes cannot be decoded as sound"),
        ({"audio": np.zeros((2, 800))}, ValueError, r"audio, row 0: the sound has shape \(2, 800\)"),
        (
            {"audio": [(np.zeros(800), 8000)]},
            ValueError,
            "audio, row 0: the sound is a pair, as of samples and",
        ),
        (
            {"audio": {"raw": np.zeros(800)}},
            ValueError,
            r"the keys \['raw'\] holds no media; .* of a sound \"array\"",
        ),
        ({"audio": np.zeros(0)}, ValueError, "audio, row 0: the sound has no samples"),
        ({"audio": np.full(800, np.nan)}, ValueError, "audio, row 0: the sound has samples that are NaN"),
        ({"audio": {"array": np.zeros(800)}}, ValueError, 'no "sampling_rate"; add it'),
        ({"audio": {"array": np.zeros(800), "sampling_rate": 0}}, ValueError, "the sampling rate is 0"),
        ({"audio": {"array": np.zeros(800), "sampling_rate": "8k"}}, ValueError, "the sampling rate is '8k'"),
        ({"audio": 7}, TypeError, "audio, row 0: a sound cannot be a int"),
        ({"text": ["one", 2]}, TypeError, "text, row 1: text cannot be a int; give a str"),
        ({"text": [None, None]}, ValueError, "nothing to process"),
        ({"text": ["one", None]}, ValueError, "row 1 has none of the modalities"),
        ({"text": ["one", None, 2]}, TypeError, "text, row 2: text cannot be a int"),
        ({"text": ["one", "two"], "image": np.zeros((8, 8))}, ValueError, "1 of 'image', 2 of 'text'"),
        ({"image": [np.zeros((8, 8)), np.zeros((9, 8))]}, ValueError, "image, row 1: .* failed"),
    ],
)
def test_bad_input_is_named_with_its_row(processor, raw, error, message):
    with pytest.raises(error, match=message):
        processor(**raw)


def test_collator_errors_name_row_and_keys(processor, image):
    collate = FusionCollator(processor)
    with pytest.raises(ValueError, match=r"keys \['label', 'picture'\] but none of the modalities"):
        collate([{"picture": image, "label": 1}])
    with pytest.raises(ValueError, match="row 1 of the batch has none of the modalities"):
        collate([{"image": image}, {"image": None}])
    with pytest.raises(ValueError, match="label, row 0 of the batch: missing"):
        collate([{"image": image}, {"image": image, "label": 1}])
    rows = [{"image": {"pixel_values": torch.zeros(1, side, side)}} for side in (8, 9)]
    with pytest.raises(
        ValueError, match=r"image, row 1 of the batch: .*cannot pad; give the processor a fixed size"
    ):
        collate(rows)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": b"no image"}, ValueError, "image, row 46: 8 bytes cannot be read"),
        ({"image": {"bytes": b"x", "path": "a.png"}}, ValueError, r"image, row 46 \('a.png'\): 1 bytes"),
        ({"text": 7}, TypeError, r"text, row 46: text cannot be a int; give a str \(found 7\)"),
        ({"image": None, "text": None}, ValueError, "row 46 has none of the modalities"),
        ({"label": None}, ValueError, "label, row 46: missing"),
        ({"label": "cat"}, TypeError, "label, row 46: 'cat' is a str; give class numbers"),
        ({"label": [1, 2]}, ValueError, "label, row 46: the rows hold no labels of one kind"),
        ({"image": np.zeros((9, 8), np.uint8)}, ValueError, "image, row 46: ViTImageProcessor.* failed"),
    ],
)
def test_a_row_of_a_shuffled_batch_is_named_by_its_number_in_the_data_set(
    processor, image, change, error, message
):
    rows = [{"image": image, "text": "one", "label": 1} for _ in range(50)]
    rows[46] = {**rows[46], **change}
    shuffled = Subset(rows, [*range(49, 10, -1)])
    numbered = NumberedRows(shuffled)
    collate = FusionCollator(processor)
    assert collate(numbered.__getitems__([8, 9]))["labels"].tolist() == [1, 1]
    for batch in (numbered.__getitems__([8, 3, 9]), [numbered[8], numbered[3]]):
        with pytest.raises(error, match=f"^{message}"):
            collate(batch)


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_columns_that_are_far_from_zero_keep_their_differences(kind):
    """Such as times in seconds, of which float32 tells those of two minutes apart."""
    near = np.random.default_rng(0).integers(0, 100, (50, 2))
    far = (near + 1_700_000_000).astype(kind)
    values = [ArrayProcessor.fit(rows)(rows)["values"] for rows in (near, far)]
    torch.testing.assert_close(values[0], values[1])


def test_tensors_that_do_not_fit_are_named_by_their_row(processor):
    rows = [{"left": torch.zeros(3), "labels": 0} for _ in range(9)]
    rows[5]["left"] = torch.zeros(4)
    for order in ([8, 5, 2], [5, 8, 2]):
        with pytest.raises(ValueError, match=r"rows of 'left' cannot be stacked \(.*see row 5\)"):
            TensorCollator()(NumberedRows(rows).__getitems__(order))
    with pytest.raises(
        ValueError, match=r"they are list, not tensors, which with_format\('torch'\) of a data set"
    ):
        TensorCollator()([{"left": [0.0, 1.0], "labels": 0}])
    series = [{"motion": np.zeros((4 + i, 3)), "label": 0} for i in range(9)]
    series[5]["motion"] = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"^motion, row 5: ArrayProcessor failed"):
        FusionCollator(FusionProcessor({"motion": ArrayProcessor()}))(
            NumberedRows(series).__getitems__([8, 2, 5])
        )
    processed = [{"image": {"pixel_values": torch.zeros(1, 8, 8)}} for _ in range(9)]
    processed[5]["image"]["pixel_mask"] = torch.zeros(8, 8)
    collate = FusionCollator(processor)
    with pytest.raises(
        ValueError, match=r"image, row 5: .*it has \['pixel_mask', 'pixel_values'\] and row 8"
    ):
        collate(NumberedRows(processed).__getitems__([8, 5, 2]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [1.0, float("nan")]], "row 1: the row has values that are NaN"),
        ([[1.0, 2.0], [1.0]], "row 1 has 1 features and row 0 has 2"),
    ],
)
def test_a_row_of_numbers_is_named(rows, message):
    for use in (ArrayProcessor.fit, ArrayProcessor(mean=[0.0, 0.0])):
        with pytest.raises(ValueError, match=message if use == ArrayProcessor.fit else "row 1"):
            use(rows)


def test_raw_rows_are_measured_without_being_decoded(processor, image, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(4000), 8000, format="WAV")
    (tmp_path / "half a second.wav").write_bytes(buffer.getvalue())
    monkeypatch.setattr("ecsfusion.data.media._decode_audio", None)
    monkeypatch.setattr("ecsfusion.data.media._decode_image", None)
    sounds = [
        buffer.getvalue(),
        str(tmp_path / "half a second.wav"),
        {"bytes": buffer.getvalue(), "path": None},
        {"array": np.zeros(24000), "sampling_rate": 48000},
        np.zeros(8000),
    ]
    assert processor.processors["audio"].sampling_rate == 16000
    assert [processor.length("audio", sound) for sound in sounds] == [0.5] * 5
    assert [processor.length("image", value) for value in (image, b"...", "a.png")] == [1.0] * 3
    assert processor.length("text", "four") == 4.0
    assert processor.length("text", {"input_ids": [1, 2, 3]}) == 3.0
    rows = [{"text": "four", "audio": sounds[0]}, {"text": "by", "audio": sounds[3]}, {"text": "by"}]
    assert row_lengths(rows, ("text", "audio"), "length", processor.length) == pytest.approx([2.0, 1.5, 0.5])
    rows[1]["audio"] = b"no sound"
    with pytest.raises(ValueError, match=r"length of audio in row 1 is not known .*add a column 'length'"):
        row_lengths(rows, ("text", "audio"), "length", processor.length)
    with pytest.raises(ValueError, match=r"column 'length' holds 'long' in row 0"):
        row_lengths([{"text": "four", "length": "long"}], ("text",), "length")


def test_a_frame_that_cannot_be_read_is_named(image):
    with pytest.raises(ValueError, match="frame 2: 8 bytes cannot be read"):
        read_video([image, image, b"no image"])


def test_processors_of_the_wrong_kind_are_refused(processor, tmp_path):
    with pytest.raises(
        TypeError, match=r"processors must map names of modalities to processors, .* found list"
    ):
        FusionProcessor([ArrayProcessor()])
    with pytest.raises(ValueError, match="processors is empty"):
        FusionProcessor({})
    with pytest.raises(TypeError, match=r"the processor of 'image' is a str; give an image processor"):
        FusionProcessor({"image": "google/vit"})
    with pytest.raises(ValueError, match="modality 'left camera' cannot be an argument's name"):
        FusionProcessor({"left camera": processor.processors["image"]})
    with pytest.raises(ValueError, match="tokenizer of 'text' has no padding token"):
        FusionProcessor({"text": make_tokenizer(tmp_path / "text", pad_token=None)})


def test_a_text_without_a_token_is_named_with_its_row(processor, image):
    with pytest.raises(ValueError, match=r"text, row 2: the text '' has no token; give None"):
        processor(text=["one", "two one", ""])
    with pytest.raises(ValueError, match=r"text, row 0: the text ' ' has no token"):
        processor(text=[" "])
    rows = [{"text": {"input_ids": torch.tensor(ids, dtype=torch.long)}, "label": 0} for ids in ([2], [])]
    with pytest.raises(ValueError, match=r"text, row 1.*: the text has no token"):
        FusionCollator(FusionProcessor({"text": processor.processors["text"]}))(rows)
    # With another modality, None says that it is missing.
    assert processor(text=["one", None], image=[image, image])["present"]["text"].tolist() == [True, False]


def test_the_row_that_its_processor_cannot_take_is_named(tmp_path):
    processor = FusionProcessor({"text": make_tokenizer(tmp_path / "text")})
    with pytest.raises(ValueError, match=r"text, row 1: \w+ failed"):
        processor(text=["one", "half of a pair: \ud800"])


def test_texts_of_one_length_without_a_mask_are_padded_on_one_side(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "text", padding_side="left", model_input_names=["input_ids"])
    found = FusionProcessor({"text": tokenizer})(text=["two", "one two"])["text"]
    assert {key: value.tolist() for key, value in found.items()} == {
        "input_ids": [[3, 0, 0, 0], [2, 3, 0, 0]]
    }


def test_a_processor_that_needs_another_package_is_named_with_its_modality(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise ImportError("requires the Torchvision library")

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", refuse)
    with pytest.raises(
        ImportError, match="the processor of modality 'image' cannot be loaded: requires the Torch"
    ):
        FusionProcessor.from_pretrained(tmp_path)
