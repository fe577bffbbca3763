"""Which files of a folder are read: those that hold rows, of one split; what is left out is said."""

import json

import fsspec
import pytest

from rmcli.errors import ConfigError
from rmcli.rows import sources
from rmcli.rows.folders import find_files
from rmcli.rows.splits import split_of
from support.cli import run_cli


@pytest.fixture(params=["path", "memory://"])
def folder(request, tmp_path):
    """Writes empty files below a folder, and gives its address."""

    def write(*names: str) -> str:
        root = str(tmp_path / "set") if request.param == "path" else f"memory://{tmp_path}/set"
        for name in names:
            with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
                file.write(b"")
        return root

    return write


def below(root: str, *arguments: str | None) -> list[str]:
    return [file.removeprefix(f"{root}/") for file in find_files(root, *arguments).files]


def test_hidden_files_caches_and_the_files_of_other_tools_are_not_read_but_said(folder):
    root = folder(
        *("b.jsonl", "a.csv", "inner/c.parquet", "inner/d.tsv"),
        *(".hidden.jsonl", "._a.csv", ".cache/huggingface/x.json", ".ipynb_checkpoints/b-checkpoint.jsonl"),
        *("__MACOSX/._b.jsonl", "inner/.git/y.json", "_delta_log/0.json"),
        *(
            "dataset_infos.json",
            "inner/dataset_info.json",
            "inner/state.json",
            "tokenizer_config.json",
            "README.json",
        ),
        *("rejects.jsonl", "LICENSE", "inner/picture.png"),
    )
    found = find_files(root)
    assert below(root) == ["a.csv", "b.jsonl", "inner/c.parquet", "inner/d.tsv"]
    left_out = {why: sorted(names) for why, names in found.left_out.items()}
    hidden = [".cache/", ".hidden.jsonl", ".ipynb_checkpoints/", "._a.csv", "__MACOSX/", "_delta_log/", "inner/.git/"]
    assert left_out == {
        "hidden": sorted(hidden),
        "of other tools": [
            *("README.json", "dataset_infos.json", "inner/dataset_info.json", "inner/state.json", "rejects.jsonl"),
            "tokenizer_config.json",
        ],
        "no data file": ["LICENSE", "inner/picture.png"],
    }
    # What is named itself is read, whatever it is called.
    assert find_files(f"{root}/._a.csv").files == [f"{root}/._a.csv"]
    assert below(f"{root}/.cache/huggingface") == ["x.json"]


@pytest.mark.parametrize(
    ("files", "asked", "read"),
    [
        (["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"], None, ["data/train"]),
        (["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"], "test", ["data/test"]),
        (
            ["data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet"],
            None,
            ["data/train_p"],
        ),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], "validation", ["validation"]),
        (["train/0.jsonl", "dev/0.jsonl", "train/1.jsonl"], None, ["train/0", "train/1"]),
        (["hh.train.jsonl.gz", "hh.eval.jsonl.gz"], None, ["hh.train"]),
        (["pairs.jsonl", "held_out.jsonl"], None, ["pairs"]),
        (["pairs.jsonl", "held_out.jsonl"], "test", ["held_out"]),
        (["pairs.jsonl", "train.jsonl"], None, ["pairs", "train"]),
        (["a/train.jsonl", "a/test.jsonl", "b/train.jsonl", "more.jsonl"], None, ["a/train", "b/train"]),
        (["latest.jsonl", "contest.jsonl", "trains.jsonl"], None, ["contest", "latest", "trains"]),
        (["test/a.jsonl", "test/b.jsonl"], None, ["test/a", "test/b"]),
        (["math-00000-of-00002.jsonl", "code-00000-of-00002.jsonl"], None, ["code", "math"]),
    ],
)
def test_of_several_splits_one_is_read(folder, files, asked, read):
    root = folder(*files)
    got = below(root, asked)
    assert len(got) == len(read)
    assert all(name.startswith(start) for name, start in zip(got, read, strict=True))


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        (["data/raw-00000-of-00001.parquet", "data/filtered-00000-of-00001.parquet"], None, "splits: filtered, raw$"),
        (
            ["data/train_a-00000-of-00001.arrow", "data/train_b-00000-of-00001.arrow"],
            None,
            "splits: train_a, train_b$",
        ),
        (["validation.jsonl", "test.jsonl"], None, "several splits: test, validation"),
        (["train.jsonl", "test.jsonl"], "validation", "has no split validation"),
        (["a.jsonl", "b.jsonl"], "test", "has no split test"),
    ],
)
def test_where_no_split_is_the_obvious_one_it_is_asked_for(folder, files, asked, message):
    root = folder(*files)
    with pytest.raises(ConfigError, match=message) as error:
        find_files(root, asked)
    assert error.value.hint is not None
    assert "split" in error.value.hint


def test_the_data_folder_itself_knows_the_hubs_names(folder):
    root = folder("data/raw-00000-of-00001.parquet", "data/filtered-00000-of-00001.parquet")
    assert below(f"{root}/data", "raw") == ["raw-00000-of-00001.parquet"]
    assert split_of("data-00000-of-00001.arrow", "here/data") is None


def test_a_saved_set_has_the_splits_of_its_folders_whatever_they_are_called(folder):
    names = [f"{part}/{file}" for part in ("easy", "hard") for file in ("a.arrow", "state.json", "dataset_info.json")]
    root = folder("dataset_dict.json", *names)
    with pytest.raises(ConfigError, match="several splits: easy, hard"):
        find_files(root)
    assert below(root, "hard") == ["hard/a.arrow"]


def test_a_prepared_set_is_no_source(folder):
    prepared = [f"out/{name}" for name in ("manifest.json", "eval.jsonl", "rejects.jsonl", "dataset_dict.json")]
    root = folder("a.jsonl", *prepared, "out/train/data-00000-of-00001.arrow")
    found = find_files(root)
    assert below(root) == ["a.jsonl"]
    assert found.left_out == {"prepared by rmcli": ["out/"]}
    with pytest.raises(ConfigError, match="is what rmcli prepare wrote"):
        find_files(f"{root}/out")


def test_links_that_lead_nowhere_or_to_folders_are_said(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text("")
    (tmp_path / "set" / "b.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "set" / "loop").symlink_to(".")
    found = find_files(str(tmp_path / "set"))
    assert found.left_out == {"linked folders": ["loop/"], "links to nothing": ["b.jsonl"]}


def pair(number: int) -> str:
    return json.dumps({"prompt": f"Count to {number}", "chosen": f"To {number}", "rejected": "No"}) + "\n"


def test_prepare_says_what_it_reads_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(9):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "train" / f"{number}.jsonl").write_text(pair(number))
    (tmp_path / "set" / "test.jsonl").write_text(pair(99))
    (tmp_path / "set" / "README.md").write_text("about")
    arguments = ("--map-fn", "canonical", "-p", "tiny", "--no-audit", "-o", "out")
    result = run_cli("prepare", "set", *arguments)
    first = "train/0.jsonl, train/1.jsonl, train/2.jsonl ... train/8.jsonl (9 in all)"
    assert f"reading 9 files of {tmp_path}/set: {first}\n" in result.stderr
    assert f"note: not read of {tmp_path}/set, split test: test.jsonl\n" in result.stderr
    assert f"not read of {tmp_path}/set, no data file: README.md\n" in result.stderr
    assert "rows: 9 in = 9 kept" in result.stderr
    named = run_cli("prepare", "--source", "path=set,split=test", *arguments, "--overwrite")
    assert "rows: 1 in = 1 kept" in named.stderr
    # An evaluation folder of several splits is never searched in part.
    result = run_cli("prepare", "set", "--decontaminate", "set", *arguments, "--overwrite")
    assert result.code == 2
    assert "several splits: test, train" in result.stderr


def test_an_evaluation_folder_of_one_split_is_read_whole(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}_test.jsonl").write_text(pair(1))
    assert len(list(sources.read_evaluation_rows(str(tmp_path), "train"))) == 2
