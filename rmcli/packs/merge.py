"""Parts of one data set, prepared as shards i/n, joined."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.packs.manifest import TEXTS, check_files, read_manifest, writing
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.packs.writer import name_shards, stage, write_metadata


def merge(folders: Sequence[Path], target: Path, overwrite: bool = False) -> dict[str, Any]:
    """Join sets prepared as shards 1/n to n/n of the same sources and configuration. Returns the whole manifest.

    All their files are checked; Arrow files are hard-linked, or copied where links cannot be; counts are added up.
    Raises RmcliError when a shard is missing, comes twice, is damaged, or was prepared differently.
    """
    manifests = {folder: read_manifest(folder) for folder in folders}
    parts = _in_order(manifests)
    for folder in parts:
        check_files(folder, manifests[folder])
    whole = _add_up([manifests[folder] for folder in parts], parts)
    _check_no_row_twice(parts)
    older = [folder for folder in parts if "files" not in manifests[folder]]
    if older:
        output.warn(
            f"{older[0]} was prepared by an older rmcli, which found duplicates within one part only: rows that "
            "repeat a row of another part are kept twice"
        )
    with writing(target):
        staged = stage(target, overwrite)
        try:
            for name in TEXTS:
                with (staged.path / name).open("wb") as joined:
                    for folder in parts:
                        with (folder / name).open("rb") as file:
                            shutil.copyfileobj(file, joined)
            shards = {split: _join_shards(parts, manifests, split, staged.path / split) for split in SPLITS}
            manifest = write_metadata(staged.path, whole, shards)
            staged.publish(overwrite)
        finally:
            staged.discard()
    return manifest


# What parts of one data set do not share. Counts are added up; the rest is made anew.
_ADDED = ("rows", "rows_by_source", "splits")
_OWN = ("shard", "shards", "files", "manifest_sha256")
_ENGINE = "tokenizer_engine"  # each gives the same ids, which it has proven


def _in_order(manifests: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    """The folders by their place in the whole. Raises RmcliError unless each of 1/n to n/n is there once."""
    by_number: dict[int, Path] = {}
    counts = set()
    for folder, manifest in manifests.items():
        number, slash, count = str(manifest.get("shard")).partition("/")
        if not (slash and number.isdecimal() and count.isdecimal()):
            raise RmcliError(f"{folder} is a whole set, not a part of one", "prepare each part with --shard i/n")
        if int(number) in by_number:
            raise RmcliError(
                f"{by_number[int(number)]} and {folder} are both shard {number}/{count}", "give each once"
            )
        by_number[int(number)] = folder
        counts.add(int(count))
    if len(counts) != 1:
        raise RmcliError(f"parts of {' and of '.join(map(str, sorted(counts)))} shards cannot be merged")
    (count,) = counts
    missing = sorted(set(range(1, count + 1)) - by_number.keys())
    if missing:
        raise RmcliError(f"shard {', '.join(f'{number}/{count}' for number in missing)} is missing", "give all parts")
    return [by_number[number] for number in range(1, count + 1)]


def _add_up(manifests: Sequence[Mapping[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """One manifest for all. Raises RmcliError naming the first setting in which two of them differ."""
    first = manifests[0]
    whole = {key: value for key, value in first.items() if key not in _OWN}
    for manifest, folder in zip(manifests[1:], folders[1:], strict=True):
        for key in sorted((first.keys() | manifest.keys()) - {*_ADDED, *_OWN, _ENGINE}):
            difference = _first_difference(key, first.get(key), manifest.get(key))
            if difference:
                raise RmcliError(
                    f"{folders[0]} and {folder} were prepared differently: {difference}",
                    "prepare all parts with the same configuration, sources and rmcli",
                )
        for key in (key for key in _ADDED if key in whole or key in manifest):
            whole[key] = _sum(whole.get(key), manifest.get(key))
    if _ENGINE in whole:
        whole[_ENGINE] = ", ".join(dict.fromkeys(manifest[_ENGINE] for manifest in manifests))
    return whole


def _first_difference(name: str, one: Any, other: Any) -> str | None:
    """`name: one, other` for the first place in which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        below = (_first_difference(f"{name}.{key}", one.get(key), other.get(key)) for key in sorted(one | other))
        return next(filter(None, below), None)
    return None if one == other else f"{name} = {one!r}, {other!r}"


def _sum(one: Any, other: Any) -> Any:
    """Two JSON values with the numbers in the same place added, names united, and what only one has kept."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return {key: _sum(one.get(key), other.get(key)) for key in keys}
    if isinstance(one, list) and isinstance(other, list) and all(isinstance(name, str) for name in one + other):
        return sorted({*one, *other})
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_sum(*values) for values in zip(one, other, strict=True)]
    if isinstance(one, int | float) and isinstance(other, int | float) and not isinstance(one, bool):
        return one + other
    return other if one is None else one


def _check_no_row_twice(folders: Sequence[Path]) -> None:
    """Open every part, which checks its shards, and see that no input row stands in two of them."""
    seen = np.empty(0, dtype=np.int64)
    for folder in folders:
        splits = [PackedSplit(folder, split) for split in SPLITS]
        row_ids = np.unique(np.concatenate([split.row_ids for split in splits]))
        twice = np.intersect1d(seen, row_ids, assume_unique=True)
        if len(twice):
            raise RmcliError(
                f"{folder} holds input row {twice[0]}, which an earlier part holds too", "give each once"
            )
        seen = np.concatenate([seen, row_ids])


def _join_shards(
    folders: Sequence[Path], manifests: Mapping[Path, Mapping[str, Any]], split: str, target: Path
) -> dict[str, int]:
    """All shards of one split under new names. Returns rows by name."""
    target.mkdir()
    found = [
        (folder / name, shard["num_rows"])
        for folder in folders
        for name, shard in manifests[folder]["shards"].items()
        if name.startswith(f"{split}/")
    ]
    kept = [(path, rows) for path, rows in found if rows] or found[:1]
    for number, (path, _) in enumerate(kept):
        try:
            os.link(path, target / f"{number}.arrow")
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, target / f"{number}.arrow")
    return name_shards(target, [rows for _, rows in kept])
