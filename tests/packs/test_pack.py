"""Packing, and what is on disk."""

import itertools
import json

import datasets
import numpy as np
import pytest

from rmcli.errors import RmcliError
from rmcli.packs.manifest import read_manifest
from rmcli.packs.pack import best_fit_decreasing, pack
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SCHEMA
from rmcli.packs.writer import PackWriter
from rmcli.records import Pack, Reject, TokenGroup
from support.networks import random_group


def groups_of(count: int, seed: int = 0) -> list[TokenGroup]:
    generator = np.random.default_rng(seed)
    return [
        random_group(generator, int(generator.integers(0, 40)), generator.integers(1, 30, 2).tolist())
        for _ in range(count)
    ]


def numbered(groups: list[TokenGroup]) -> list[TokenGroup]:
    return [
        TokenGroup(group.prefix, group.responses, row_id=number, source_id=number % 3, weight=1 + number / 8)
        for number, group in enumerate(groups)
    ]


def test_best_fit_decreasing_by_hand():
    assert best_fit_decreasing([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]
    assert best_fit_decreasing([], 10) == []


def test_packs_hold_every_group_once_and_are_nearly_full():
    groups = numbered(groups_of(3000))
    rows = list(pack(groups, 512, shuffle=True, seed=1))
    assert sorted(group.row_id for row in rows for group in row.groups) == list(range(3000))
    assert max(row.num_tokens for row in rows) <= 512
    assert sum(row.num_tokens for row in rows) / (512 * len(rows)) > 0.99


def test_packing_is_decided_by_its_seed():
    groups = numbered(groups_of(300))

    def order(seed: int) -> list[int]:
        return [group.row_id for row in pack(groups, 512, True, seed) for group in row.groups]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_without_shuffle_input_order_is_kept():
    groups = numbered(groups_of(300))
    rows = list(pack(groups, 256, shuffle=False, seed=1))
    assert [group.row_id for row in rows for group in row.groups] == list(range(300))
    for row, following in itertools.pairwise(rows):
        assert row.num_tokens + following.groups[0].num_tokens > 256


def test_shuffled_packs_are_not_sorted_by_length():
    (row, *_) = pack(groups_of(400), 4096, shuffle=True, seed=0)
    lengths = np.array([group.num_tokens for group in row.groups], dtype=float)
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.3


# --- on disk ---


def write_set(folder, count: int = 200, overwrite: bool = False, **manifest) -> list[Pack]:
    rows = list(pack(numbered(groups_of(count)), 512, shuffle=True, seed=0))
    with PackWriter(folder, overwrite) as writer:
        writer.add_packs("train", rows)
        writer.add_reject(Reject("bad_json", "a.jsonl", 3, "{"))
        writer.finish(manifest)
    return rows


def test_what_is_written_is_read_back(tmp_path):
    rows = write_set(tmp_path / "set", preset="p")
    split = PackedSplit(tmp_path / "set", "train")
    assert len(split) == len(rows)
    for number, row in enumerate(rows):
        assert split.group_tokens(number).tolist() == [group.num_tokens for group in row.groups]
        for written, read in zip(row.groups, split.groups(number), strict=True):
            assert np.array_equal(read.prefix, written.prefix)
            assert all(map(np.array_equal, read.responses, written.responses))
            assert (read.row_id, read.source_id, read.weight) == (written.row_id, written.source_id, written.weight)
    part = split.groups(1, 2, 4)
    assert [group.row_id for group in part] == [group.row_id for group in rows[1].groups[2:4]]
    assert len(PackedSplit(tmp_path / "set", "eval")) == 0


def test_datasets_opens_it_with_the_documented_columns(tmp_path):
    rows = write_set(tmp_path / "set")
    opened = datasets.load_from_disk(str(tmp_path / "set"))
    assert sorted(opened) == ["eval", "train"]
    assert opened["train"].column_names == SCHEMA.names
    assert opened["train"].features.arrow_schema.types == SCHEMA.types
    first = opened["train"][0]
    assert first["prefix_lengths"] == [len(group.prefix) for group in rows[0].groups]
    assert len(first["input_ids"]) == rows[0].num_tokens
    assert first["weights"] == [group.weight for group in rows[0].groups]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_set(tmp_path / name)
    files = [sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("one", "two")]
    assert len(files[0]) == 10
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes(), one


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_found_before_it_is_used(tmp_path, damage):
    write_set(tmp_path / "set")
    shard = tmp_path / "set" / "train" / "data-00000-of-00001.arrow"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "cut":
        shard.write_bytes(data[: len(data) // 2])
    else:
        shard.unlink()
    with pytest.raises(RmcliError, match=r"data-00000-of-00001\.arrow"):
        PackedSplit(tmp_path / "set", "train")


def test_an_occupied_folder_is_left_alone_without_overwrite(tmp_path):
    write_set(tmp_path / "set", count=20, preset="old")
    with pytest.raises(RmcliError, match="is not empty"):
        write_set(tmp_path / "set", count=50)
    assert read_manifest(tmp_path / "set")["preset"] == "old"
    write_set(tmp_path / "set", count=50, overwrite=True, preset="new")
    assert read_manifest(tmp_path / "set")["preset"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_overwrite_never_deletes_what_is_no_prepared_data(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(RmcliError, match="holds no prepared data"):
        write_set(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


def test_a_failed_write_leaves_nothing_and_keeps_the_old_set(tmp_path):
    write_set(tmp_path / "set", count=20, preset="old")

    def fail() -> None:
        with PackWriter(tmp_path / "set", overwrite=True) as writer:
            writer.add_packs("train", pack(groups_of(300), 512, True, 0))
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert read_manifest(tmp_path / "set")["preset"] == "old"


def test_manifests_of_another_version_are_refused(tmp_path):
    write_set(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(RmcliError, match="format version 99, this rmcli reads 2"):
        read_manifest(tmp_path / "set")
