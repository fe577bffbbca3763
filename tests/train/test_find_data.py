"""`rmcli train` without --data: what a prepared folder may decide by itself, and what the user has to name again."""

import json
import shutil
from pathlib import Path

import pytest

from rmcli.config.resolve import resolve
from rmcli.packs.manifest import read_manifest, write_manifest
from support.places import write_lines

TINY = ("--preset", "tiny")
RAN = "ran.txt"
OWN = f"""
from pathlib import Path

Path({RAN!r}).write_text("imported")


def pair(row):
    return {{"prompt": row["q"], "chosen": row["good"], "rejected": row["bad"]}}
"""


@pytest.fixture
def elsewhere(cli, tmp_path) -> Path:
    """A set in data/ prepared for another preset with a function of its own; nothing has run since."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "other.toml").write_text(resolve("tiny").toml().replace('name = "tiny"', 'name = "other"'))
    write_lines(tmp_path / "rows.jsonl", [{"q": f"Count to {n}.", "good": f"{n}", "bad": "no"} for n in range(60)])
    prepared = cli("prepare", "rows.jsonl", "--map-fn", "own.py:pair", "-c", "other.toml", "-o", "data/own")
    assert prepared.code == 0, prepared.stderr
    (tmp_path / RAN).unlink()
    return tmp_path / "data" / "own"


def rewritten(folder: Path, **changes: object) -> None:
    """The manifest with other values and a seal that fits, as anyone can write it."""
    write_manifest(folder, {**read_manifest(folder), **changes})


@pytest.mark.parametrize("options", [("-n",), ()])
def test_a_map_function_that_only_a_manifest_names_is_never_loaded(cli, elsewhere, tmp_path, options):
    result = cli("train", *TINY, "-s", "train.max_steps=1", *options)
    assert result.code == 1
    assert "data/own names the map function own.py:pair, which runs code" in result.stderr
    assert "hint: if you trust it: rmcli prepare " in result.stderr
    assert "--map-fn own.py:pair --preset tiny" in result.stderr
    assert not (tmp_path / RAN).exists()


def test_nor_one_that_it_names_for_a_single_source(cli, elsewhere, tmp_path):
    own = [{"path": str(tmp_path / "rows.jsonl"), "dataset_map_fn": "own.py:pair"}]
    rewritten(elsewhere, sources=own, dataset_map_fn="canonical")
    result = cli("train", *TINY, "-n")
    assert (result.code, "names the map function own.py:pair" in result.stderr) == (1, True)
    assert not (tmp_path / RAN).exists()


def test_nor_a_module_or_a_plugin(cli, elsewhere, tmp_path):
    for name in ("own:pair", "a_plugin"):
        rewritten(elsewhere, dataset_map_fn=name)
        result = cli("train", *TINY, "-n")
        assert (result.code, f"names the map function {name}," in result.stderr) == (1, True)
    assert not (tmp_path / RAN).exists()


def test_named_again_it_prepares_the_data(cli, elsewhere, tmp_path):
    settings = ("-s", "data.dataset_map_fn=own.py:pair", "-s", "train.max_steps=1")
    result = cli("train", *TINY, *settings)
    assert result.code == 0, result.stderr
    assert "with own.py:pair is prepared for it first" in result.stderr
    assert "has changed" not in result.stderr
    assert (tmp_path / "data" / "own-tiny" / "manifest.json").is_file()


def test_a_function_that_has_changed_since_is_said(cli, elsewhere, tmp_path):
    (tmp_path / "own.py").write_text(
        OWN.replace('row["good"], "rejected": row["bad"]', 'row["bad"], "rejected": "-"')
    )
    result = cli("train", *TINY, "-s", "data.dataset_map_fn=own.py:pair", "-n")
    there = read_manifest(elsewhere)["map_fn_sha256"]["own.py:pair"]
    assert f"note: map function own.py:pair has changed since data/own was prepared with it: sha256 {there[:12]}" in (
        result.stderr
    )
    other = cli("train", *TINY, "-s", "data.dataset_map_fn=canonical", "-n")
    assert "note: map function canonical, where data/own was prepared with own.py:pair" in other.stderr


def test_sources_that_the_user_names_are_not_replaced(cli, elsewhere, tmp_path):
    result = cli("train", *TINY, "-s", 'data.sources=["tasks:50"]', "-s", "data.dataset_map_fn=canonical", "-n")
    assert "no data for preset tiny yet: tasks:50 with canonical would be prepared" in result.stderr


@pytest.mark.parametrize("changes", [{"config": {}}, {"sources": 7}, {"map_fn_sha256": []}, {"config": {"data": []}}])
def test_a_manifest_that_does_not_say_how_rows_were_read_is_left_out(cli, elsewhere, changes):
    rewritten(elsewhere, **changes)
    result = cli("train", *TINY, "-n")
    assert result.code == 1
    assert "note: data/own is left out: its manifest does not say how rows were read" in result.stderr
    assert json.loads((elsewhere / "manifest.json").read_text())


def test_dry_run_without_data_shows_the_configuration_and_what_is_missing(cli):
    result = cli("train", *TINY, "-n", "-s", "train.max_steps=7")
    assert result.code == 1
    assert "max_steps = 7 # --set train.max_steps" in result.stdout
    assert "# missing = no data for preset tiny: nothing is prepared in data/" in result.stdout
    assert "error: no data for preset tiny: nothing is prepared in data/" in result.stderr
    as_json = json.loads(cli("train", *TINY, "-n", "--json").stdout)
    assert as_json["plan"] == {"missing": "no data for preset tiny: nothing is prepared in data/"}
    assert as_json["config"]["train"]["pairs_per_step"] == 64


def test_dry_run_shows_what_changes_nothing_in_the_data_as_the_user_has_it(cli, tiny_run, tmp_path):
    (tmp_path / "own.toml").write_text("[data]\nnum_proc = 3\n")
    shown = cli("train", *TINY, "-c", "own.toml", "--data", tiny_run.data, "-n").stdout
    assert "num_proc = 3 # own.toml" in shown
    assert f"max_length = 256 # prepared in {tiny_run.data}" in shown


def test_a_setting_that_the_set_does_not_know_is_not_given_up_in_silence(cli, tiny_run, tmp_path):
    """A set of an older rmcli, which had no such key."""
    older = tmp_path / "older"
    shutil.copytree(tiny_run.data, older)
    config = read_manifest(older)["config"]
    del config["data"]["pairs"]
    rewritten(older, config=config)
    assert cli("train", *TINY, "--data", older, "-n").code == 0
    refused = cli("train", *TINY, "--data", older, "-n", "-s", "data.pairs=adjacent")
    assert refused.code == 2
    assert "data.pairs = 'adjacent' (--set data.pairs), but" in refused.stderr
    assert "was prepared before there was such a setting" in refused.stderr
