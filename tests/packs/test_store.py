"""Damage is found before a row is used, shards are several, and parts are joined."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from rmcli.errors import RmcliError
from rmcli.packs.manifest import read_manifest, write_manifest
from rmcli.packs.merge import merge
from rmcli.packs.pack import pack
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.packs.writer import PackWriter
from rmcli.records import Reject, TokenGroup
from support.networks import random_group

FIRST = "data-00000-of-00001.arrow"


def groups_of(count: int, first_row: int = 0) -> list[TokenGroup]:
    generator = np.random.default_rng(first_row)
    return [random_group(generator, 20, (5, 7), row_id=first_row + number) for number in range(count)]


def write(folder: Path, groups: list[TokenGroup], **manifest: object) -> Path:
    with PackWriter(folder) as writer:
        writer.add_packs("train", pack(groups[:-10], 128, shuffle=True, seed=0))
        writer.add_packs("eval", pack(groups[-10:], 128, shuffle=True, seed=0))
        writer.add_eval_text({"prompt": [], "row": groups[-1].row_id})
        writer.add_reject(Reject("bad_json", "a.jsonl", groups[0].row_id, "{"))
        writer.finish(manifest)
    return folder


def row_ids(folder: Path, split: str) -> list[int]:
    return sorted(PackedSplit(folder, split).row_ids.tolist())


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("rmcli.packs.writer.PACKS_PER_BATCH", 3)


# --- damage ---


def refused(folder: Path, name: str, said: str) -> None:
    """Opening either split, as train does before its first step, names the file in one line."""

    def open_both() -> None:
        for split in SPLITS:
            PackedSplit(folder, split)

    with pytest.raises(RmcliError) as error:
        open_both()
    assert f"{folder / name} {said}" in error.value.message
    assert "\n" not in error.value.message
    assert error.value.hint == "prepare it again with --overwrite"


def batch_ends(shard: Path) -> list[int]:
    """The offsets in the file after the schema and after each record batch."""
    with pa.OSFile(str(shard)) as file, pa.ipc.open_stream(file) as reader:
        ends = [file.tell()]
        for _ in reader:
            ends.append(file.tell())
    return ends


def test_a_shard_cut_at_any_batch_boundary_is_refused_though_arrow_reads_it(tmp_path, small_batches):
    folder = write(tmp_path / "set", groups_of(100))
    shard = folder / "train" / FIRST
    whole = shard.read_bytes()
    ends = batch_ends(shard)
    assert len(ends) == 1 + 8  # 90 groups, 4 to a row, 3 rows to a batch
    for number, end in enumerate(ends):
        shard.write_bytes(whole[:end])
        assert pa.ipc.open_stream(whole[:end]).read_all().num_rows == min(3 * number, 23)  # arrow sees no fault
        refused(folder, f"train/{FIRST}", "is damaged: sha256")
    shard.write_bytes(whole[: ends[3] + 5])
    refused(folder, f"train/{FIRST}", "is damaged: sha256")


@pytest.mark.parametrize("name", [f"train/{FIRST}", f"eval/{FIRST}"])
def test_a_hundred_random_flipped_bytes_are_found(tmp_path, name):
    folder = write(tmp_path / "set", groups_of(100))
    whole = (folder / name).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[generator.integers(len(whole))] ^= generator.integers(1, 256)
        (folder / name).write_bytes(flipped)
        refused(folder, name, "is damaged: sha256")


def test_a_hundred_random_flipped_bytes_of_the_manifest_change_nothing_unseen(tmp_path):
    folder = write(tmp_path / "set", groups_of(100), reward_token="<|r|>", reward_token_id=4, rows={"in": 100})
    path = folder / "manifest.json"
    whole = path.read_bytes()
    manifest = read_manifest(folder)
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            assert read_manifest(folder) == manifest  # white space between values says nothing
        except RmcliError as error:
            found += 1
            assert str(path) in error.message  # noqa: PT017
    assert found >= 70


def test_an_edited_manifest_is_refused(tmp_path):
    folder = write(tmp_path / "set", groups_of(30), reward_token_id=4)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"reward_token_id": 4', '"reward_token_id": 5'))
    refused(folder, "manifest.json", "is damaged or was edited: sha256")


def test_a_deleted_and_a_swapped_shard_are_found(tmp_path):
    folder = write(tmp_path / "set", groups_of(100))
    train, held_out, aside = folder / "train" / FIRST, folder / "eval" / FIRST, tmp_path / "aside"
    train.rename(aside)
    refused(folder, f"train/{FIRST}", "cannot be read: ")
    held_out.rename(train)
    aside.rename(held_out)
    refused(folder, f"train/{FIRST}", "is damaged: sha256")


def test_two_shards_of_one_split_that_changed_places_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("rmcli.packs.writer.SHARD_BYTES", 20_000)
    folder = write(tmp_path / "set", groups_of(400))
    first, second, *_ = sorted((folder / "train").iterdir())
    aside = tmp_path / "aside"
    for one, other in ((first, aside), (second, first), (aside, second)):
        one.rename(other)
    refused(folder, f"train/{first.name}", "is damaged: ")


def test_a_wrong_number_of_rows_is_found_when_the_sha256_is_right(tmp_path):
    folder = write(tmp_path / "set", groups_of(100))
    manifest = read_manifest(folder)
    manifest["shards"][f"train/{FIRST}"]["num_rows"] = 24
    write_manifest(folder, manifest)
    refused(folder, f"train/{FIRST}", "is damaged: 23 rows, the manifest says 24")


def test_train_stops_before_it_makes_a_run_folder(cli, tmp_path):
    assert cli("prepare", "tasks:200", "--preset", "tiny", "-o", "data").code == 0
    shard = tmp_path / "data" / "eval" / FIRST
    shard.write_bytes(shard.read_bytes()[:-9] + b"x" + shard.read_bytes()[-8:])
    result = cli("train", "--preset", "tiny", "--data", "data", "-o", "run")
    assert result.code == 1
    assert f"error: data/eval/{FIRST} is damaged: sha256" in result.stderr
    assert not (tmp_path / "run").exists()


# --- several shards ---


def test_a_split_takes_a_new_shard_when_one_is_full_and_reads_back_the_same(tmp_path, monkeypatch, small_batches):
    groups = groups_of(100)
    one = write(tmp_path / "one", groups)
    monkeypatch.setattr("rmcli.packs.writer.SHARD_BYTES", 4096)
    many = write(tmp_path / "many", groups)
    names = sorted(path.name for path in (many / "train").glob("*.arrow"))
    assert len(names) > 3
    assert names == [f"data-{number:05}-of-{len(names):05}.arrow" for number in range(len(names))]
    manifest = read_manifest(many)
    shards = {name: shard["num_rows"] for name, shard in manifest["shards"].items() if name.startswith("train/")}
    assert sum(shards.values()) == manifest["splits"]["train"]["num_rows"] == 23
    sizes = [pa.ipc.open_stream((many / name).read_bytes()).read_all().nbytes for name in shards]
    assert max(sizes) <= 4096 < min(size + following for size, following in pairwise(sizes))
    for split in SPLITS:
        whole, parts = PackedSplit(one, split), PackedSplit(many, split)
        assert len(whole) == len(parts)
        for row in range(len(whole)):
            for expected, got in zip(whole.groups(row), parts.groups(row), strict=True):
                assert expected.row_id == got.row_id
                assert np.array_equal(expected.prefix, got.prefix)
                assert all(map(np.array_equal, expected.responses, got.responses))
    opened = datasets.load_from_disk(str(many))
    assert opened["train"]["input_ids"][:] == datasets.load_from_disk(str(one))["train"]["input_ids"][:]


# --- merge ---

CONFIG = {"config": {"data": {"max_length": 64}}, "sources": ["/a.jsonl"], "tokenizer_sha256": "t", "preset": "tiny"}


def part(folder: Path, shard: str, first_row: int, **changes: object) -> Path:
    rows = {"in": 51, "kept": 50, "rejected": 1, "reasons": {"bad_json": 1, f"only_in_{shard[0]}": 2}}
    return write(folder, groups_of(50, first_row), **{**CONFIG, "rows": rows, "shard": shard, **changes})


def test_merged_parts_hold_every_group_and_add_up(tmp_path):
    parts = [part(tmp_path / f"p{n}", f"{n}/3", 100 * n) for n in (1, 2, 3)]
    whole = tmp_path / "whole"
    manifest = merge([parts[2], parts[0], parts[1]], whole)
    assert manifest == read_manifest(whole)
    for split, count in (("train", 40), ("eval", 10)):
        assert row_ids(whole, split) == sorted(row for folder in parts for row in row_ids(folder, split))
        assert manifest["splits"][split]["num_groups"] == 3 * count
    assert manifest["rows"] == {
        "in": 153,
        "kept": 150,
        "rejected": 3,
        "reasons": {"bad_json": 3, "only_in_1": 2, "only_in_2": 2, "only_in_3": 2},
    }
    assert "shard" not in manifest
    assert {key: manifest[key] for key in CONFIG} == CONFIG
    assert sorted(path.name for path in (whole / "train").glob("*.arrow")) == [
        f"data-0000{number}-of-00003.arrow" for number in range(3)
    ]
    assert os.path.samefile(whole / "train" / "data-00001-of-00003.arrow", parts[1] / "train" / FIRST)
    rejects = [json.loads(line)["line"] for line in (whole / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [100, 200, 300]
    assert len((whole / "eval.jsonl").read_text().splitlines()) == 3
    assert len(datasets.load_from_disk(str(whole))["train"]) == 3 * len(PackedSplit(parts[0], "train"))
    shutil.rmtree(parts[0])  # links, not references
    assert len(row_ids(whole, "train")) == 120


def test_merging_copies_where_links_cannot_be(tmp_path, monkeypatch):
    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    parts = [part(tmp_path / f"p{n}", f"{n}/2", 100 * n) for n in (1, 2)]
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    merge(parts, linked)
    monkeypatch.setattr(os, "link", no_links)
    merge(parts, copied)
    assert not os.path.samefile(copied / "train" / "data-00000-of-00002.arrow", parts[0] / "train" / FIRST)
    for path in linked.rglob("*.*"):
        assert path.read_bytes() == (copied / path.relative_to(linked)).read_bytes()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"shard": "1/2"}, "p1 and .*p2 are both shard 1/2"),
        ({"shard": "2/3"}, "parts of 2 and of 3 shards"),
        ({"shard": "3/2"}, "shard 2/2 is missing"),
        ({"shard": None}, "p2 is a whole set, not a part of one"),
        ({"first_row": 149}, "p2 holds input row 149, which an earlier part holds too"),
        ({"config": {"data": {"max_length": 65}}}, "prepared differently: config.data.max_length = 64, 65"),
        ({"tokenizer_sha256": "u"}, "prepared differently: tokenizer_sha256 = 't', 'u'"),
        ({"sources": ["/b.jsonl"]}, "prepared differently: sources"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, second, message):
    parts = [part(tmp_path / "p1", "1/2", 100)]
    values = {"shard": "2/2", "first_row": 200, **second}
    if values["shard"] is None:
        values["shard"] = "whole"
    parts.append(part(tmp_path / "p2", **values))
    with pytest.raises(RmcliError, match=message):
        merge(parts, tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p1", "p2"]


def test_a_damaged_part_and_a_missing_one_are_refused(tmp_path):
    parts = [part(tmp_path / f"p{n}", f"{n}/2", 100 * n) for n in (1, 2)]
    with pytest.raises(RmcliError, match="shard 2/2 is missing"):
        merge(parts[:1], tmp_path / "whole")
    shard = parts[1] / "eval" / FIRST
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RmcliError, match="is damaged"):
        merge(parts, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_of_two_writers_of_one_folder_the_loser_learns_why(tmp_path, capsys):
    other = tmp_path / f".data.tmp-{os.getppid()}"  # of a process that runs
    other.mkdir()

    def fill_and_lose() -> None:
        with PackWriter(tmp_path / "data") as writer:
            other.rename(tmp_path / "data")
            (tmp_path / "data" / "manifest.json").write_text("{}")
            writer.finish(CONFIG)

    with pytest.raises(RmcliError, match="data was filled by another command meanwhile") as error:
        fill_and_lose()
    assert "--overwrite" in (error.value.hint or "")
    said = f"process {os.getppid()} is writing {tmp_path / 'data'} too: the last one to end will find it full"
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["eval.jsonl", "rejects.jsonl", "train/state.json", "dataset_dict.json"])
@pytest.mark.parametrize("damage", ["cut", "edited", "gone"])
def test_a_part_is_proven_file_by_file(tmp_path, name, damage):
    parts = [part(tmp_path / f"p{n}", f"{n}/2", 100 * n) for n in (1, 2)]
    path = parts[1] / name
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-4] if damage == "cut" else b"[" + data[1:])
    words = "cannot be read: No such file" if damage == "gone" else "is damaged or was edited"
    with pytest.raises(RmcliError, match=f"p2/{name} {words}"):
        merge(parts, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_parts_of_an_older_rmcli_are_merged_but_no_cut_text_of_theirs(tmp_path, capsys):
    """Their manifests have no hashes of the texts, and each part knew its own duplicates alone."""
    parts = [part(tmp_path / f"p{n}", f"{n}/2", 100 * n) for n in (1, 2)]
    for folder in parts:
        manifest = read_manifest(folder)
        write_manifest(folder, {key: manifest[key] for key in manifest.keys() - {"files", "manifest_sha256"}})
    merge(parts, tmp_path / "whole")
    assert "rows that repeat a row of another part are kept twice" in capsys.readouterr().err
    text = parts[0] / "eval.jsonl"
    text.write_bytes(text.read_bytes()[:-1])
    with pytest.raises(RmcliError, match=r"eval\.jsonl is cut short: its last line has no end"):
        merge(parts, tmp_path / "again")


def test_merge_through_the_command_line(cli, tmp_path):
    parts = [part(tmp_path / f"p{n}", f"{n}/2", 100 * n, config={"data": {"max_packed_length": 128}}) for n in (1, 2)]
    result = cli("prepare", "--merge", *parts, "-o", "whole", "--no-audit")
    assert (result.code, result.stdout) == (0, "whole\n"), result.stderr
    assert "rows: 102 in = 100 kept + 2 rejected + 0 duplicates + 0 not taken" in result.stderr
    assert "next: rmcli train --preset tiny --data whole" in result.stderr
    again = cli("prepare", "--merge", *parts, "-o", "whole", "--no-audit")
    assert (again.code, "output folder whole is not empty" in again.stderr) == (1, True)
    assert cli("prepare", "--merge", *parts, "-o", "whole", "--overwrite", "--json", "--no-audit").code == 0
    assert cli("prepare", "--merge", *parts).code == 2
    refused = cli("prepare", "--merge", *parts, "-o", "other", "--dry-run")
    assert (refused.code, "--merge goes with folders" in refused.stderr) == (2, True)
