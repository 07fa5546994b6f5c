"""What strangers may hand us: checkpoints, configurations, data sets, media. None of it runs or leads astray."""

import ast
import io
import json
import pickle
import re
import struct
import threading
import warnings
from pathlib import Path

import datasets
import killed_run
import numpy as np
import pytest
import soundfile
import torch
import yaml
from fusion_fixtures import tiny_vit, two_views
from PIL import Image, PngImagePlugin
from transformers import Wav2Vec2FeatureExtractor

from ecsfusion import FusionForClassification, FusionProcessor
from ecsfusion.cli import main as ecsfusion_command
from ecsfusion.data import media
from ecsfusion.data.media import read_audio, read_image
from ecsfusion.data.paths import check_data_files, confined
from ecsfusion.training.checkpoints import seal
from hf_recipes.configuration import parse_arguments
from hf_recipes.data import ProcessedSplit, load_splits
from hf_recipes.encoders import build_encoders, build_processor

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for folder in ("ecsfusion", "hf_recipes", "kernels", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)

# ---- nothing is unpickled or evaluated ----

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "code",
    "runpy",
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load", "torch.package"),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.full_load",
        "pandas.read_pickle",
        "os.system",
        "os.popen",
    ),
    *("shutil.unpack_archive", "tarfile.open", "np.fromfile", "numpy.fromfile"),
}


# Scripts that build benchmark data from archives and weights that they know by checksum, as data alone: `weights_only`
# and no extraction beside the data filter.
BY_CHECKSUM = {
    "benchmarks/build_encoders.py": ["torch.load"],
    "benchmarks/natural_data/debian.py": ["tarfile.open"],
}


def name_of(node: ast.expr) -> str:
    return (
        f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    )


def offences(source: str) -> list[str]:
    """Imports, calls and arguments that could run what is read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                f"import {each.name}" for each in node.names if each.name.split(".")[0] in FORBIDDEN_MODULES
            ]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        if name in FORBIDDEN_CALLS:
            found.append(name)
        options = {each.arg: each.value for each in node.keywords}
        if (
            name in ("np.load", "numpy.load")
            and getattr(options.get("allow_pickle"), "value", None) is not False
        ):
            found.append(f"{name} without allow_pickle=False")
        for key, wrong in (
            ("allow_pickle", True),
            ("weights_only", False),
            ("trust_remote_code", True),
            ("shell", True),
        ):
            if getattr(options.get(key), "value", None) is wrong:
                found.append(f"{key}={wrong}")
    return found


def test_no_source_unpickles_evaluates_or_trusts_code():
    assert len(SOURCES) > 60
    assert {
        str(path.relative_to(ROOT)): found for path in SOURCES if (found := offences(path.read_text()))
    } == BY_CHECKSUM
    assert "weights_only=True" in (ROOT / "benchmarks/build_encoders.py").read_text()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "yaml.load(f)",
        "x.from_pretrained(y, trust_remote_code=True)",
        "run(x, shell=True)",
    ],
)
def test_the_search_finds_them(source):
    assert offences(source)


# ---- checkpoints ----


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = {"max_steps": 2, "save_steps": 1, "eval_steps": 2, "save_total_limit": 5}
    killed_run.train(folder, False, moves=False, **options)
    return folder / "checkpoint-1"


def poisoned(checkpoint, folder, names, target, zipped):
    """A copy whose files would make `target`, under a manifest that fits: who makes a checkpoint makes that too."""
    copy = folder / "run" / checkpoint.name
    copy.mkdir(parents=True)
    for path in checkpoint.rglob("*"):
        if path.is_file():
            place = copy / path.relative_to(checkpoint)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    for name in names:
        if zipped:
            torch.save(Evil(target), copy / name)
        else:
            (copy / name).write_bytes(pickle.dumps(Evil(target)))
    seal(copy)
    return copy


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"]
)
def test_to_resume_executes_nothing(checkpoint, tmp_path, name, zipped):
    target = tmp_path / "executed"
    copy = poisoned(checkpoint, tmp_path, [name], target, zipped)
    if name == "pytorch_model.bin":
        (copy / "model.safetensors").unlink()
        seal(copy)
    arguments = (copy.parent, str(copy))
    options = {"max_steps": 2, "save_steps": 1, "eval_steps": 2, "moves": False}
    if name == "training_args.bin":
        # Which nothing reads
        killed_run.train(*arguments, **options)
    else:
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            killed_run.train(*arguments, **options)
    assert not target.exists()


def test_to_load_a_model_executes_nothing(checkpoint, tmp_path):
    target = tmp_path / "executed"
    names = ["training_args.bin", "optimizer.pt", "rng_state.pth", "pytorch_model.bin"]
    copy = poisoned(checkpoint, tmp_path, names, target, False)
    # From safetensors
    FusionForClassification.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        FusionForClassification.from_pretrained(copy)
    assert not target.exists()


def test_a_saved_model_holds_no_pickle(tmp_path):
    two_views().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


# ---- code of a model ----


@pytest.fixture
def with_code(tmp_path):
    """A saved model of an unknown type whose own code, if it ran, would make the file `executed`."""
    folder = tmp_path / "with_code"
    tiny_vit().save_pretrained(folder)
    code = f"open({str(tmp_path / 'executed')!r}, 'w')\n"
    code += "from transformers import ViTConfig, ViTModel\nclass MyConfig(ViTConfig): model_type = 'mine'\n"
    (folder / "mine.py").write_text(code + "class MyModel(ViTModel): config_class = MyConfig\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "auto_map": {"AutoImageProcessor": "mine.MyProcessor"},
        "image_processor_type": "MyProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_code_of_a_model_is_refused(with_code, tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        FusionForClassification.from_modality_pretrained(
            {"left": str(with_code), "right": tiny_vit()}, num_labels=2
        )
    assert not (tmp_path / "executed").exists()


def config_file(folder, **image):
    image = {
        "encoder": {"model_type": "vit", "image_size": 4, "patch_size": 2, "num_hidden_layers": 1}
    } | image
    config = {"dataset": "digits", "modalities": {"image": image}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "config.yaml")


def test_a_recipe_refuses_code_too(with_code, tmp_path):
    recipe, _ = parse_arguments(
        ["--config", config_file(tmp_path, encoder=str(with_code)), "--output_dir", str(tmp_path)]
    )
    with pytest.raises(
        ValueError, match=r"modalities\.image: the encoder .* cannot be loaded .*trust_remote_code"
    ):
        build_encoders(recipe)
    for options in ({"trust_remote_code": True}, {"auto_map": {"AutoImageProcessor": "mine.MyProcessor"}}):
        recipe, _ = parse_arguments(
            ["--config", config_file(tmp_path, processor=options), "--output_dir", str(tmp_path)]
        )
        with pytest.raises(ValueError, match=r"modalities\.image\.processor: \w+ would run code"):
            build_processor(recipe, {"image": tiny_vit()})
    recipe, _ = parse_arguments(
        ["--config", config_file(tmp_path, processor=str(with_code)), "--output_dir", str(tmp_path)]
    )
    with pytest.raises(ValueError, match=r"modalities\.image: the processor .* cannot be made"):
        build_processor(recipe, {"image": tiny_vit()})
    assert not (tmp_path / "executed").exists()


def test_a_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"dataset: digits\nmodalities: !!python/object/apply:builtins.open ['{tmp_path}/executed', 'w']\n"
    )
    with pytest.raises(
        ValueError, match=r"config\.yaml is not valid YAML: .*could not determine a constructor"
    ):
        parse_arguments(["--config", str(path)])
    assert not (tmp_path / "executed").exists()


# ---- paths in data sets ----


def png(size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder beside a secret."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    (folder / "media").mkdir(parents=True)
    for place in (tmp_path / "secret.png", folder / "media" / "mine.png"):
        place.write_bytes(png())
    (folder / "media" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "media" / "loop.png").symlink_to(folder / "media" / "loop.png")
    (folder / "inside.png").symlink_to(folder / "media" / "mine.png")
    return folder


def test_a_path_inside_of_the_folder_is_found_from_anywhere(data):
    for path in ("media/mine.png", "media/../media/mine.png", "inside.png", str(data / "media" / "mine.png")):
        for value in (path, {"bytes": None, "path": path}):
            found = confined(value, str(data))
            assert (found if isinstance(found, str) else found["path"]) == str(
                (data / "media" / "mine.png").resolve()
            )
            assert read_image(found).size == (8, 8)
    assert confined({"bytes": png(), "path": "../../name/only.png"}, str(data))["bytes"] == png()
    assert confined(["media/mine.png"] * 2, str(data)) == [str((data / "media" / "mine.png").resolve())] * 2
    array = np.zeros(3)
    assert confined(array, str(data)) is array


@pytest.mark.parametrize(
    "path", ["../secret.png", "media/../../secret.png", "/etc/passwd", "media/link.png", "media/loop.png"]
)
@pytest.mark.parametrize(
    "form", [str, Path, lambda path: {"bytes": None, "path": path}, lambda path: [[path]]]
)
def test_a_path_that_leads_out_is_refused(data, path, form):
    with pytest.raises(ValueError, match=re.escape(path) + r".*(leads out of the folder|is no path)"):
        confined(form(path), str(data))


def test_a_data_set_of_the_hub_names_no_local_file(tmp_path):
    for path in ("/etc/passwd", "secret.png", str(tmp_path)):
        with pytest.raises(ValueError, match="leads out of the data set"):
            confined({"bytes": None, "path": path}, None)


def two_modalities(tmp_path, data):
    modalities = {
        name: {
            "column": name,
            "encoder": {"model_type": "vit", "image_size": 8, "patch_size": 8, "num_hidden_layers": 1},
        }
        for name in ("image", "other")
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"modalities": modalities}))
    arguments = [
        "--config",
        str(tmp_path / "config.yaml"),
        "--data_dir",
        str(data),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    return parse_arguments(arguments)[0]


@pytest.mark.parametrize("kind", ["string", "image"])
def test_the_recipe_confines_rows_and_names_them(data, tmp_path, kind):
    rows = {
        "image": ["media/mine.png"] * 10,
        "other": ["media/mine.png"] * 9 + ["../secret.png"],
        "label": [0, 1] * 5,
    }
    features = None
    if kind == "image":
        rows |= {name: [{"bytes": None, "path": path} for path in rows[name]] for name in ("image", "other")}
        media_type = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = datasets.Features(
            {"image": media_type, "other": media_type, "label": datasets.Value("int64")}
        )
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_dict(rows, features).to_parquet(data / f"{split}.parquet")
    recipe = two_modalities(tmp_path, data)
    splits = load_splits(recipe)
    encoders = build_encoders(recipe)
    split = ProcessedSplit(splits["test"], build_processor(recipe, encoders), "split 'test'", recipe.data_dir)
    assert split[0]["image"]["pixel_values"].ndim == 3
    with pytest.raises(
        ValueError, match=r"split 'test': other, row 9: '\.\./secret\.png' leads out of the folder"
    ):
        split[9]


@pytest.mark.parametrize("pattern", ["../other/rows.csv", "{absolute}", "linked.csv"])
def test_the_recipe_loads_no_table_from_elsewhere(data, tmp_path, pattern):
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows.csv").write_text("image,other,label\na,b,0\n")
    (data / "linked.csv").symlink_to(other / "rows.csv")
    pattern = pattern.format(absolute=other / "rows.csv")
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {pattern}\n---\n")
    with pytest.raises(ValueError, match=r"rows\.csv' leads out of the folder|linked\.csv' leads out"):
        load_splits(two_modalities(tmp_path, data))


def test_a_data_set_of_the_hub_loads_no_local_table(data):
    check_data_files(["hf://datasets/you/it@main/train.parquet", "https://example.org/train.csv"], None)
    check_data_files([str(data / "train.csv")], str(data))
    with pytest.raises(ValueError, match="names the local file '/etc/passwd', which is not its own"):
        check_data_files(["/etc/passwd"], None)


EMBEDDINGS = {"image": [[0.0, 1.0], [1.0, 0.0]] * 20, "audio": [[1.0], [0.0]] * 20, "label": [0, 1] * 20}
PID = ("--label", "label", "--modality", "image=image", "--modality", "audio=audio")


def pid_of(capsys, source, *arguments):
    """Exit code of `ecsfusion pid`, and what it says on stderr."""
    code = ecsfusion_command(["pid", str(source), *PID, *arguments, "--quiet"])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["../other/rows.parquet", "{absolute}", "linked.parquet"])
def test_the_command_loads_no_table_from_elsewhere(data, tmp_path, capsys, monkeypatch, pattern):
    (tmp_path / "other").mkdir()
    datasets.Dataset.from_dict(EMBEDDINGS).to_parquet(tmp_path / "other" / "rows.parquet")
    (data / "linked.parquet").symlink_to(tmp_path / "other" / "rows.parquet")
    pattern = pattern.format(absolute=tmp_path / "other" / "rows.parquet")
    (data / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {pattern}\n---\n")
    code, error = pid_of(capsys, data)
    assert code == 2
    assert "leads out of the folder" in error
    (data / "linked.parquet").unlink()
    (tmp_path / "other" / "rows.parquet").rename(data / "rows.parquet")
    (data / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: rows.parquet\n---\n"
    )
    monkeypatch.chdir(data.parent)
    for source in (data, data.name):
        code, error = pid_of(capsys, source)
        assert code == 0, error


@pytest.mark.parametrize("way", ["../../other/data.arrow", "{absolute}", "linked.arrow"])
def test_the_command_loads_no_saved_table_from_elsewhere(data, tmp_path, capsys, way):
    rows = datasets.Dataset.from_dict(EMBEDDINGS)
    rows.save_to_disk(tmp_path / "other")
    table = next((tmp_path / "other").glob("*.arrow")).rename(tmp_path / "other" / "data.arrow")
    datasets.DatasetDict(train=rows).save_to_disk(data / "saved")
    (data / "saved" / "train" / "linked.arrow").symlink_to(table)
    state_file = data / "saved" / "train" / "state.json"
    assert pid_of(capsys, data / "saved")[0] == 0
    state = json.loads(state_file.read_text())
    state["_data_files"] = [{"filename": way.format(absolute=table)}]
    state_file.write_text(json.dumps(state))
    for source in (data / "saved", data / "saved" / "train"):
        code, error = pid_of(capsys, source)
        assert code == 2
        assert "leads out of the folder" in error
    state_file.write_text("{}")
    code, error = pid_of(capsys, data / "saved")
    assert code == 2
    assert "state.json does not name the parts of a data set (KeyError('_data_files')); save" in error


def test_the_command_loads_no_split_from_elsewhere(data, tmp_path, capsys):
    rows = datasets.Dataset.from_dict(EMBEDDINGS)
    rows.save_to_disk(tmp_path / "other")
    datasets.DatasetDict(train=rows).save_to_disk(data / "saved")
    code, error = pid_of(capsys, data / "saved", "--split", "test")
    assert code == 2
    assert "has the splits ['train'] but no 'test'" in error
    for split in ("../../other", str(tmp_path / "other")):
        (data / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
        code, error = pid_of(capsys, data / "saved", "--split", split)
        assert code == 2
        assert "leads out of the folder" in error


def test_the_command_opens_no_media(data, tmp_path, capsys):
    features = datasets.Features(
        {"image": datasets.Image(), "audio": datasets.Value("float32"), "label": datasets.Value("int64")}
    )
    media = {"bytes": None, "path": str(tmp_path / "secret.png")}
    rows = {"image": [media] * 40, "audio": [0.0, 1.0] * 20, "label": [0, 1] * 20}
    datasets.Dataset.from_dict(rows, features).to_parquet(data / "train.parquet")
    for source in (data, data / "train.parquet"):
        code, error = pid_of(capsys, source)
        assert code == 2
        assert "column 'image' must hold numbers or lists of numbers, got struct" in error


def test_paths_of_ones_own_rows_are_ones_own(data, tmp_path, monkeypatch):
    processor = FusionProcessor({"audio": Wav2Vec2FeatureExtractor(sampling_rate=8000)})
    soundfile.write(tmp_path / "sound.wav", np.zeros(400), 8000)
    monkeypatch.chdir(data)
    assert processor(audio="../sound.wav")["audio"]["input_values"].shape == (1, 400)


# ---- media that are too large ----


def huge_png(width, height):
    """A valid header, and one row's worth of data."""

    def chunk(kind, content):
        import zlib

        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000, 2_000_000])
def test_an_image_with_too_many_pixels_is_an_error(side):
    """One a little above Pillow's limit, at which it only warns, and one far above."""
    with pytest.raises(ValueError, match=r"cannot be read as an image .*(decompression bomb|exceeds limit)"):
        read_image(huge_png(side, side))


def test_the_limit_of_pixels_can_be_set(monkeypatch):
    assert read_image(png((64, 64))).size == (64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="decompression bomb"):
        read_image(png((64, 64)))


def test_threads_that_read_images_at_once_leave_the_filters_of_warnings_as_they_were(monkeypatch):
    """They are those of the whole process: who ends last would put back what the other one set."""
    before, opened = list(warnings.filters), Image.open
    first_opens, second_opens, first_ended = threading.Event(), threading.Event(), threading.Event()

    def first():
        read_image(png((8, 8)))
        first_ended.set()

    def second():
        first_opens.wait(60)
        read_image(png((8, 8)))

    threads = [threading.Thread(target=target) for target in (first, second)]

    def wait(file):
        if threading.current_thread() is threads[0]:
            first_opens.set()
            second_opens.wait(60)
        else:
            second_opens.set()
            first_ended.wait(60)
        return opened(file)

    monkeypatch.setattr(Image, "open", wait)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_a_large_text_in_a_png_is_an_error():
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG", pnginfo=info)
    assert len(buffer.getvalue()) < 10_000
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(buffer.getvalue())


def test_no_program_is_run_for_an_image():
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="EPS is a program, which is not run"):
        read_image(header)


def flac(claimed):
    """A FLAC whose header claims so many samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(4096), 8000, format="FLAC")
    content = bytearray(buffer.getvalue())
    # STREAMINFO starts at byte 8; its total of samples is the lowest 36 bits of the 8 bytes from its byte 10 on
    bits = int.from_bytes(content[18:26], "big")
    content[18:26] = (bits >> 36 << 36 | claimed).to_bytes(8, "big")
    return bytes(content)


@pytest.mark.parametrize("claimed", [10**9, 2**36 - 1])
def test_a_sound_that_claims_hours_is_not_decoded(claimed):
    with pytest.raises(ValueError, match=r"its header claims [\d,]+ samples, more than the 268,435,456"):
        read_audio(flac(claimed), 8000)
    assert read_audio(flac(4096), 8000).shape == (4096,)


def test_a_wav_that_claims_more_than_it_has_ends_where_it_ends():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(800), 8000, format="WAV", subtype="PCM_16")
    content = bytearray(buffer.getvalue())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", 2**31 - 1)
    assert read_audio(bytes(content), 8000).size <= 800


def test_the_limit_of_samples_can_be_set_and_holds_after_the_change_of_rates(monkeypatch):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(900), 8000, format="WAV")
    monkeypatch.setattr(media, "MAX_SAMPLES", 1000)
    assert read_audio(buffer.getvalue(), 8000).size == 900
    with pytest.raises(
        ValueError, match=r"at 16000 Hz instead of 8000 the sound has more than the 1,000 samples"
    ):
        read_audio(buffer.getvalue(), 16000)
    monkeypatch.setattr(media, "MAX_SAMPLES", 800)
    with pytest.raises(ValueError, match="its header claims 900 samples"):
        read_audio(buffer.getvalue(), 8000)


@pytest.mark.parametrize("rate", [2**31 - 1, 999_983])
def test_an_absurd_rate_asks_for_no_filter_of_that_length(rate):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(800), rate, format="WAV")
    with pytest.raises(ValueError, match=f"the sampling rate is {rate}; give .* at most 768000"):
        read_audio(buffer.getvalue(), 8000)
    with pytest.raises(ValueError, match="more than the 268,435,456 samples"):
        read_audio({"array": np.zeros(10**5, np.float32), "sampling_rate": 1}, 16000)


def test_the_row_is_named():
    processor = FusionProcessor({"audio": Wav2Vec2FeatureExtractor(sampling_rate=8000)})
    with pytest.raises(ValueError, match=r"audio, row 1: .*its header claims"):
        processor(audio=[np.zeros(800, np.float32), flac(10**10)])
