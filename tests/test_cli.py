"""`ecsfusion pid`: every format gives the same answer, in one process or two; errors are one sentence."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from ecsfusion.cli import main
from ecsfusion.data import embedding_files
from ecsfusion.pid import stream
from ecsfusion.pid.discretize import sample_rows
from ecsfusion.pid.estimate import fast_pid, fast_pids

pytestmark = pytest.mark.filterwarnings("ignore:.* are few for ")
NUMBER = 1200


@pytest.fixture(scope="module")
def columns():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, NUMBER)
    image = generator.normal(size=(NUMBER, 12)).astype(np.float32)
    audio = generator.normal(size=(NUMBER, 5)).astype(np.float32)
    image[:, 0] += 4 * label
    audio[:, 0] += 4 * (label % 2)
    return {
        "label": label,
        "image": image,
        "audio": audio,
        "real": label + generator.normal(size=NUMBER),
        "source": np.arange(NUMBER) // 3,
    }


def as_table(columns):
    arrays = {
        "label": columns["label"],
        "name": [f"class {i}" for i in columns["label"]],
        "real": columns["real"],
        "source": columns["source"],
        "speaker": [f"speaker {i}" for i in columns["source"]],
        "image": pa.FixedSizeListArray.from_arrays(columns["image"].ravel(), 12),
        "audio": columns["audio"].tolist(),
    }
    return pa.table(arrays)


@pytest.fixture(scope="module")
def files(columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    np.savez(folder / "data.npz", **columns)
    save_file({name: torch.tensor(values) for name, values in columns.items()}, folder / "data.safetensors")
    pq.write_table(as_table(columns), folder / "data.parquet", row_group_size=170)
    (folder / "notes.txt").write_text("nothing")
    return folder


def run(capsys, *arguments):
    code = main(["pid", *map(str, arguments), "--quiet"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


MODALITIES = ("--modality", "image=image", "--modality", "audio=audio")
BY_CLUSTERS = ("--method", "clusters", "--bootstrap", "0")
by_each_method = pytest.mark.parametrize("method", [(), BY_CLUSTERS], ids=["posteriors", "clusters"])


def answer(capsys, *arguments):
    code, out, err = run(capsys, *arguments, *MODALITIES, "--json")
    assert code == 0, err
    found = json.loads(out)
    return {name: found[name] for name in ("redundancy", "unique", "synergy", "num_samples", "floor")}


def test_a_reader_that_leaves_is_no_error(files):
    """As of `ecsfusion pid ... | head -3`."""
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-m",
        "ecsfusion",
        "pid",
        str(files / "data.npz"),
        "--label",
        "label",
        *MODALITIES,
    ]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_connection_that_breaks_is_an_error(monkeypatch, capsys):
    def broken(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ecsfusion.cli._push", broken)
    assert main(["push", "folder", "you/model"]) == 2
    assert "ecsfusion push: error: [Errno 32] Broken pipe" in capsys.readouterr().err


@by_each_method
def test_every_format_gives_the_answer_of_fast_pid(files, columns, capsys, monkeypatch, method):
    monkeypatch.setattr(embedding_files, "CHUNK", 333)
    options = {"method": "clusters", "bootstrap": 0, "permutations": 32} if method else {}
    pid = fast_pid({"image": columns["image"], "audio": columns["audio"]}, columns["label"], **options)
    expected = answer(capsys, files / "data.npz", "--label", "label", *method)
    assert expected["unique"]["image"] == pytest.approx(float(pid.unique[0]), abs=1e-9)
    assert expected["synergy"] == pytest.approx(float(pid.synergy), abs=1e-9)
    assert expected["num_samples"] == NUMBER
    no_bootstrap = ("--bootstrap", "0")
    assert answer(capsys, files / "data.safetensors", "--label", "label", *method, *no_bootstrap) == expected
    assert answer(capsys, files / "data.parquet", "--label", "label", *method) == expected
    assert answer(capsys, files / "data.parquet", "--label", "name", *method) == expected


def write_text(folder, columns, rows, name):
    """Rows as CSV with lists in cells, TSV with arrays as NumPy prints them, JSON lines, and one JSON list."""
    labels, names = columns["label"][rows].tolist(), [f"class {i}" for i in columns["label"][rows]]
    lists = {key: columns[key][rows].tolist() for key in ("image", "audio")}
    objects = [
        {"label": label, "name": word, "image": image, "audio": audio}
        for label, word, image, audio in zip(labels, names, *lists.values(), strict=True)
    ]
    (folder / f"{name}.json").write_text(json.dumps(objects))
    (folder / f"{name}.jsonl").write_text("\n\n".join(map(json.dumps, objects)))
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        with (folder / f"{name}.{suffix}").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerow(objects[0])
            for row in objects:
                cells = [json.dumps(row[key]) for key in ("image", "audio")]
                if suffix == "tsv":
                    cells = [cell.replace(",", " ") for cell in cells]
                writer.writerow([row["label"], row["name"], *cells])


def test_text_files_several_files_and_patterns_hold_the_same_rows(columns, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, columns, slice(None), "all")
    write_text(tmp_path, columns, slice(0, 500), "part-0")
    write_text(tmp_path, columns, slice(500, NUMBER), "part-1")
    pq.write_table(as_table(columns).slice(500), tmp_path / "rest.parquet")
    names = [f"class {i}" for i in columns["label"]]
    monkeypatch.setattr(embedding_files, "CHUNK", 333)
    for given in (
        ["all.csv"],
        ["all.tsv"],
        ["all.json"],
        ["part-?.jsonl"],
        ["part-0.csv", "rest.parquet"],
    ):
        table = embedding_files.open_tables(given)
        chunks = list(table.chunks(["label", "name", "image", "audio"], 0, table.num_rows))
        assert max(len(chunk["label"]) for chunk in chunks) <= 333
        found = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        assert np.array_equal(found["label"], columns["label"]), given
        assert found["name"].tolist() == names
        for name in ("image", "audio"):
            assert np.array_equal(found[name].astype(np.float32), columns[name])
        part = next(table.chunks(["label"], 480, 530))["label"]
        assert np.array_equal(part, columns["label"][480 : 480 + len(part)])
        last = {"part-?.jsonl": "row 699 of part-1.jsonl", "part-0.csv": "row 699 of rest.parquet"}
        assert table.place(NUMBER - 1) == last.get(given[0], f"row {NUMBER - 1} of {given[0]}")
    options = ("--label", "name", *BY_CLUSTERS)
    assert answer(capsys, "part-?.jsonl", *options) == answer(capsys, "all.csv", *options)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "y,a,b\n0,[1],[1]\n1,,[1]\n", "column 'a' has no value in row 1 of t.csv"),
        ("t.csv", "y,a,b\n0,[1],[1]\n1,[1 2],[1]\n", "column 'a' has 2 numbers in row 1 of t.csv"),
        ("t.csv", "y,a,b\n0,[1],[1]\n1,1,2,[1]\n", "line 3 of t.csv has 4 cells, and the header 3"),
        ("t.csv", "y,a,a\n0,[1],[1]\n", "two columns 'a'"),
        ("t.csv", "", "t.csv holds no header"),
        (
            "t.csv",
            "y,a,b\n0,[1 ... 2],[1]\n",
            "column 'a' must hold numbers or lists of numbers, got '[1 ... 2]' in row 0 of t.csv",
        ),
        (
            "t.csv",
            "y,a,b\n0,1,1\n1,x,1\n",
            "column 'a' must hold numbers or lists of numbers, got 'x' in row 1 of t.csv",
        ),
        ("t.csv", "y,a,b\n0,[1],1\n1,[x],1\n", "lists of numbers, got '[x]' in row 1 of t.csv"),
        ("t.csv", "y,a,b\n0,[1],1\n1,1,1\n", "lists of numbers, got '1' in row 1 of t.csv"),
        ("t.csv", "y;a;b\n0;1;1\n", "one cell with semicolons, 'y;a;b'"),
        ("t.jsonl", '{"y": 0, "a": [1], "b": [1]}\n{"y": 1, "b": [1]}\n', "no value in row 1 of t.jsonl"),
        ("t.jsonl", '{"y": 0, "a": [1], "b": [1]}\n{"y": 1\n', "line 2 of t.jsonl is no JSON"),
        ("t.jsonl", '{"y": 0, "a": [1], "b": [1]}\n[1]\n', "line 2 of t.jsonl is a list"),
        ("t.jsonl", '{"y": 0, "a": [1], "b": [1]}\n{"y": 0, "a": 1, "b": [1]}', "a number in row 1 of t.js"),
        ("t.json", '[{"y": 0, "a": {"c": 1}, "b": [1]}]', "got {'c': 1} in row 0 of t.json"),
        ("t.json", '[{"y": 0, "a": [null], "b": [1]}]', "got [None] in row 0 of t.json"),
        ("t.json", "[]", "t.json holds no rows"),
    ],
)
def test_what_is_wrong_in_a_text_file_is_named(capsys, tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    code, _, err = run(capsys, name, "--label", "y", "--modality", "a=a", "--modality", "b=b")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_a_warning_is_one_sentence_without_a_place_in_the_code(files):
    options = ["--label", "label", *MODALITIES, "--group", "label"]
    done = subprocess.run(
        [sys.executable, "-m", "ecsfusion", "pid", "data.npz", *options],
        cwd=files,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("ecsfusion pid: warning: labels have only one source of each of these classes")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_file_is_named(files, capsys, tmp_path, suffix, share):
    whole = (files / f"data{suffix}").read_bytes()
    damaged = tmp_path / f"part{suffix}"
    damaged.write_bytes(whole[: int(share * len(whole))])
    code, _, err = run(capsys, str(damaged), "--label", "label", *MODALITIES)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{damaged} cannot be read (" in err


def test_what_lies_beside_the_columns_of_a_file_does_not_matter(columns, capsys, tmp_path):
    """Names of classes, a version, objects; and a label with gaps, which pandas has made real."""
    arrays = {name: columns[name] for name in ("label", "image", "audio")}
    other = {"names": np.array(["a", "b"]), "version": np.array(3), "odd": np.array([{}], dtype=object)}
    np.savez(tmp_path / "t.npz", **arrays | other | {"label": columns["label"].astype(float)})
    named = {"names": torch.ones(2), "version": torch.tensor(3)}
    save_file({k: torch.from_numpy(v) for k, v in arrays.items()} | named, tmp_path / "t.safetensors")
    expected = fast_pid({"image": columns["image"], "audio": columns["audio"]}, columns["label"])
    for name in ("t.npz", "t.safetensors"):
        code, out, _ = run(capsys, str(tmp_path / name), "--label", "label", *MODALITIES, "--json")
        assert code == 0
        assert json.loads(out)["redundancy"] == pytest.approx(float(expected.redundancy))
    code, _, err = run(capsys, str(tmp_path / "t.npz"), "--label", "odd", *MODALITIES)
    assert (code, "column 'odd' of" in err, "holds objects of Python" in err) == (2, True, True)


@pytest.mark.parametrize("method", [(), BY_CLUSTERS, ("--bins", "3")], ids=["posteriors", "clusters", "bins"])
def test_a_bad_row_of_a_large_table_is_named_by_its_place_in_the_file(
    columns, capsys, monkeypatch, tmp_path, method
):
    """Whether it is in the sample or not, and whatever file, row group or chunk it lies in."""
    monkeypatch.setattr(embedding_files, "CHUNK", 100)
    monkeypatch.setattr(stream, "MAX_STREAMED_ROWS", 300)
    monkeypatch.setattr(stream, "MAX_ROWS", 300)
    sampled = set(sample_rows(2 * NUMBER, 300, 0).tolist())
    label = "real" if "--bins" in method else "label"
    for bad in (NUMBER + 701, NUMBER + 702, NUMBER + 703, NUMBER + 704):
        table = as_table(columns)
        if label == "real":
            column = columns["real"].copy()
            column[bad - NUMBER] = np.nan
        else:
            column = columns["audio"].copy()
            column[bad - NUMBER, 2] = np.inf
            column = column.tolist()
        name = "real" if label == "real" else "audio"
        broken = table.set_column(table.column_names.index(name), name, pa.array(column))
        pq.write_table(table, tmp_path / "first.parquet", row_group_size=170)
        pq.write_table(broken, tmp_path / "second.parquet", row_group_size=170)
        files = (tmp_path / "first.parquet", tmp_path / "second.parquet")
        code, _, err = run(capsys, *files, "--label", label, *MODALITIES, *method)
        assert code == 2
        assert f"first in row {bad - NUMBER} of second.parquet" in err
        if bad in sampled:
            break
    assert bad > NUMBER + 701 or bad in sampled


def test_a_table_that_changes_on_the_way_is_named_by_its_row(columns, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(embedding_files, "CHUNK", 100)
    pq.write_table(as_table(columns), tmp_path / "first.parquet")
    for name, values in (("audio", columns["image"].tolist()), ("label", ["word"] * NUMBER)):
        table = as_table(columns)
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
        pq.write_table(table, tmp_path / "second.parquet")
        files = (tmp_path / "first.parquet", tmp_path / "second.parquet")
        code, _, err = run(capsys, *files, "--label", "label", *MODALITIES)
        assert code == 2
        assert f"column {name!r} holds" in err
        assert "from row 0 of second.parquet on" in err


def test_a_saved_data_set_gives_the_same_answer(files, columns, capsys, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset(as_table(columns)).save_to_disk(tmp_path / "data")
    assert answer(capsys, tmp_path / "data", "--label", "label") == answer(
        capsys, files / "data.npz", "--label", "label"
    )


def test_the_source_of_each_row_is_a_column(files, columns, capsys):
    embeddings = {"image": columns["image"], "audio": columns["audio"]}
    pid = fast_pid(embeddings, columns["label"], groups=columns["source"])
    source = ("--label", "label", "--group", "source")
    expected = answer(capsys, files / "data.npz", *source)
    assert expected["synergy"] == float(pid.synergy)
    assert expected["floor"]["synergy"] == pytest.approx(float(pid.synergy_floor))
    assert answer(capsys, files / "data.parquet", *source) == expected
    assert answer(capsys, files / "data.parquet", "--label", "name", "--group", "speaker") == expected


def test_a_sample_smaller_than_the_table_decides(files, columns, capsys, monkeypatch):
    monkeypatch.setattr(stream, "MAX_STREAMED_ROWS", 400)
    monkeypatch.setattr(embedding_files, "CHUNK", 100)
    group = ("--label", "label", "--group", "source")
    first = answer(capsys, files / "data.parquet", *group)
    monkeypatch.setattr(embedding_files, "CHUNK", 1000)
    assert answer(capsys, files / "data.npz", *group) == first
    assert first["num_samples"] == 400
    chosen = sample_rows(NUMBER, 400, 0).numpy()
    (pid,) = fast_pids(
        {"image": columns["image"][chosen], "audio": columns["audio"][chosen]},
        columns["label"][chosen],
        groups=columns["source"][chosen],
    ).values()
    assert first["unique"]["image"] == float(pid.unique[0])


def test_a_sample_smaller_than_the_table_decides_the_clusters(files, capsys, monkeypatch):
    monkeypatch.setattr(stream, "MAX_ROWS", 400)
    monkeypatch.setattr(embedding_files, "CHUNK", 100)
    first = answer(capsys, files / "data.parquet", "--label", "label", *BY_CLUSTERS)
    monkeypatch.setattr(embedding_files, "CHUNK", 1000)
    assert answer(capsys, files / "data.npz", "--label", "label", *BY_CLUSTERS) == first
    assert first["num_samples"] == NUMBER
    assert first["unique"]["image"] > 0.7


def test_two_processes_give_the_answer_of_one(files, columns, capsys, tmp_path):
    """Which read a part of one file each, or a file of their own; each rank measures both by both methods, in turn."""
    table = as_table(columns)
    pq.write_table(table.slice(0, 700), tmp_path / "part-0.parquet")
    pq.write_table(table.slice(700), tmp_path / "part-1.parquet")
    options = ("--label", "label", *MODALITIES, "--json", "--quiet")
    runs = [
        ["pid", str(source), *options, *method]
        for method in ((), BY_CLUSTERS)
        for source in (files / "data.parquet", tmp_path / "part-{rank}.parquet")
    ]
    script = tmp_path / "pid.py"
    script.write_text(
        "import json, os, sys\n"
        "import torch.distributed as dist\n"
        "from ecsfusion import cli\nfrom ecsfusion.pid import stream\n"
        "stream.MAX_ROWS = stream.MAX_STREAMED_ROWS = 500\n"
        "whole = stream.stream_pid\n"
        "def checked(*arguments, **options):\n"
        "    assert dist.get_world_size() == 2 and os.environ['WORLD_SIZE'] == '2'\n"
        "    sys.stderr.write(f'rank {dist.get_rank()} of {dist.get_world_size()}\\n')\n"
        "    return whole(*arguments, **options)\n"
        "stream.stream_pid = checked\n"
        # One group serves all: a second one would find the addresses of the first in torchrun's store.
        "leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None\n"
        "*runs, last = json.loads(sys.argv[1])\n"
        "for run in runs:\n"
        "    if cli.main(run):\n"
        "        sys.exit(1)\n"
        "    dist.init_process_group = lambda backend: None\n"
        "dist.destroy_process_group = leave\n"
        "sys.exit(cli.main(last))\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
        json.dumps(runs),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rank 0 of 2") == 4
    assert done.stderr.count("rank 1 of 2") == 4
    answers, decoder, text = [], json.JSONDecoder(), done.stdout
    while text.strip():
        found, end = decoder.raw_decode(text.lstrip())
        answers.append(found)
        text = text.lstrip()[end:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "MAX_ROWS", 500)
        patch.setattr(stream, "MAX_STREAMED_ROWS", 500)
        alone = [
            answer(capsys, files / "data.parquet", "--label", "label", *method)
            for method in ((), BY_CLUSTERS)
        ]
    by_two = [{name: found[name] for name in alone[0]} for found in answers]
    assert by_two == [alone[0], alone[0], alone[1], alone[1]]


def test_three_modalities_bins_and_pictures(files, capsys, tmp_path):
    third = ("--modality", "copy=audio", "--label", "real", "--bins", "3", "--plot", str(tmp_path / "o.png"))
    code, out, err = run(capsys, files / "data.parquet", *MODALITIES, *third)
    assert code == 0, err
    assert "image, audio" in out
    assert "copy, rest" in out
    assert (tmp_path / "o-image-audio.png").stat().st_size > 1000


@pytest.mark.parametrize(("method", "title"), [((), "sample"), (BY_CLUSTERS, "count")])
def test_progress_is_shown_on_a_terminal_unless_quiet(files, capsys, monkeypatch, method, title):
    words = ["pid", str(files / "data.npz"), "--label", "label", *MODALITIES, *method]
    assert main(words) == 0
    assert capsys.readouterr().err == "", "a log file has no use for bars"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(words) == 0
    assert title in capsys.readouterr().err


def test_options_of_clusters_are_given_on_with_defaults_of_their_own(files, monkeypatch):
    given = []
    monkeypatch.setattr(stream, "stream_pid", lambda *arguments, **options: given.append(options) or {})
    for words in ([], ["--method", "clusters"], [*BY_CLUSTERS, "--clusters", "auto", "--no-correction"]):
        assert main(["pid", str(files / "data.npz"), "--label", "label", *MODALITIES, *words]) == 0
    by_posteriors, by_clusters, chosen = given
    own = {"num_components", "bootstrap", "permutations", "correction"}
    assert own.isdisjoint(by_posteriors)
    assert by_posteriors["num_clusters"] is None
    assert {name: by_clusters[name] for name in own} == {
        "num_components": None,
        "bootstrap": 200,
        "permutations": 32,
        "correction": True,
    }
    assert (chosen["bootstrap"], chosen["num_clusters"], chosen["correction"]) == (0, "auto", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.npz", "--label", "label", *MODALITIES], "missing.npz does not exist"),
        (["data.npz", "--label", "nothing", *MODALITIES], "there is no column 'nothing'; the columns are"),
        (["data.npz", "--label", "real", *MODALITIES], "one integer or string per row"),
        (["data.parquet", "--label", "image", *MODALITIES], "one integer or string per row"),
        (["data.npz", "--label", "label", "--modality", "image=image"], "two or more different names"),
        (
            ["data.parquet", "--label", "label", "--modality", "a=name", "--modality", "b=image"],
            "column 'name' must hold numbers or lists of numbers, got 'class ",
        ),
        (["data.parquet", "--label", "name", "--bins", "3", *MODALITIES], "one finite number per row"),
        (["data.npz", "--label", "label", "--clusters", "0", *MODALITIES], "num_clusters"),
        (
            ["data.npz", "--label", "label", *MODALITIES, "--bootstrap", "50"],
            "--bootstrap is an option of --method",
        ),
        (["data.npz", "--label", "label", *MODALITIES, "--permutations", "9"], "--permutations is an option"),
        (["data.npz", "--label", "label", *MODALITIES, "--components", "9"], "--components is an option"),
        (["data.npz", "--label", "label", *MODALITIES, "--no-correction"], "--no-correction is an option"),
        (["data.npz", "--label", "label", *MODALITIES, "--clusters", "auto"], "--clusters auto is an option"),
        (["data.npz", "--label", "label", *MODALITIES, "--group", "who"], "there is no column 'who'"),
        (
            ["data.npz", "--label", "label", *MODALITIES, "--group", "real"],
            "groups must be integers or strings",
        ),
        (
            ["data.npz", "--label", "label", *MODALITIES, "--group", "source", "--method", "clusters"],
            "--group is an option of --method posteriors",
        ),
        (["data.npz", "--label", "real", *MODALITIES, *BY_CLUSTERS], "one integer or string per row"),
        (["data.npz", "--label", "label", "--device", "gpu", *MODALITIES], "one of ['cpu'"),
        (["part-*.npz", "--label", "label", *MODALITIES], "no file matches 'part-*.npz'"),
        (["notes.txt", "--label", "label", *MODALITIES], "files must be .parquet, .npz,"),
        (
            ["missing.npz", "--label", "y", *MODALITIES, "--plot", "o.doc"],
            "ends in 'doc', which is no format",
        ),
        (["missing.npz", "--label", "y", *MODALITIES, "--plot", "no/o.png"], "there is no folder 'no'"),
        (["data.npz", "--label", "label", "--device", "cuda:99", *MODALITIES], "got 'cuda:99'"),
        (["data.npz", "--label", "label", "--device", "meta", *MODALITIES], "got 'meta'"),
    ],
)
def test_errors_are_one_sentence(files, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_columns_of_single_numbers_are_answered_by_what_an_embedding_is(tmp_path, capsys):
    (tmp_path / "wide.csv").write_text(
        "image_0,image_1,audio_0,audio_1,label\n" + "1,2,3,4,0\n5,6,7,8,1\n" * 9
    )
    _, _, err = run(capsys, tmp_path / "wide.csv", "--label", "label", *MODALITIES)
    assert err.endswith("'label']; an embedding is one column of lists of numbers: join these\n")


def test_a_folder_is_a_data_set_from_within_too(files, tmp_path, capsys, monkeypatch):
    shutil.copy(files / "data.parquet", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    expected = answer(capsys, "data.parquet", "--label", "label")
    assert answer(capsys, ".", "--label", "label") == expected
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "data.parquet").unlink()
    code, _, err = run(capsys, ".", "--label", "label", *MODALITIES)
    assert code == 2
    last = err.splitlines()[-1]
    assert last.startswith("ecsfusion pid: error: the data set '.' cannot be loaded (EmptyDataError: ")


def test_an_interrupt_that_an_import_hides_ends_in_one_line_too(files, capsys, monkeypatch):
    """NumPy, for instance, raises ImportError with a page of advice if Ctrl-C comes while it is imported."""

    def hidden(*arguments, **options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("this is unlikely to be an issue of the library") from None

    monkeypatch.setattr(stream, "stream_pid", hidden)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, err = run(capsys, files / "data.npz", "--label", "label", *MODALITIES)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (code, out, err) == (130, "", "ecsfusion pid: interrupted\n")
    monkeypatch.setattr(stream, "stream_pid", lambda *arguments, **options: {}["a fault of the library"])
    with pytest.raises(KeyError):
        run(capsys, files / "data.npz", "--label", "label", *MODALITIES)


def test_ragged_and_missing_values_are_named_with_their_row(capsys, tmp_path):
    lists = [[1.0, 2.0]] * 5
    nested = [[[1.0, 2.0], [3.0, 4.0]]] * 5
    for column, message in [
        ([*lists[:4], [1.0]], "row 4 of t.parquet"),
        ([None, *lists[1:]], "row 0"),
        ([*lists[:3], [1.0, None], lists[4]], "no value in row 3"),
        ([*nested[:3], [[1.0, 2.0], [3.0]], nested[4]], "1 numbers in row 3"),
        (lists, None),
    ]:
        pq.write_table(pa.table({"y": [0, 1, 0, 1, 0], "a": column, "b": lists}), tmp_path / "t.parquet")
        modalities = ["--modality", "a=a", "--modality", "b=b"]
        code, _, err = run(capsys, tmp_path / "t.parquet", "--label", "y", *modalities)
        assert code == (0 if message is None else 2)
        assert message is None or message in err


@pytest.mark.parametrize(
    ("argument", "message"), [(["--modality", "image"], "NAME=COL"), (["--clusters", "many"], "nor auto")]
)
def test_malformed_arguments_show_the_usage(capsys, argument, message):
    with pytest.raises(SystemExit) as stop:
        main(["pid", "data.npz", "--label", "y", *MODALITIES, *argument])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_train_runs_the_recipe_with_its_own_options(monkeypatch):
    from hf_recipes import run

    given = []
    monkeypatch.setattr(run, "main", given.append)
    assert main(["train", "--config", "digits", "--num_train_epochs", "3"]) == 0
    assert given == [["--config", "digits", "--num_train_epochs", "3"]]


def test_train_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "yaml", None)
    for name in [name for name in sys.modules if name.startswith("hf_recipes")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train"]) == 2
    assert (
        'the recipe needs yaml, which is not installed; run: pip install "ecsfusion[recipes]"'
        in capsys.readouterr().err
    )


def test_a_configuration_of_the_recipe_is_found_by_its_name(tmp_path, monkeypatch):
    from hf_recipes.configuration import CONFIGS, config_file

    monkeypatch.chdir(tmp_path)
    assert config_file(Path("avmnist")) == CONFIGS / "avmnist.yaml"
    (tmp_path / "avmnist").touch()
    assert config_file(Path("avmnist")) == Path("avmnist")
    assert config_file(Path("absent")) == Path("absent")
