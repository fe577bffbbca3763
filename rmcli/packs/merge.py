"""Packed rows on disk: Arrow files that `datasets.load_from_disk` opens, and a manifest that proves them.

Everything is written beside the target and put in place whole: a failed run leaves the old folder as it was. Nothing
written depends on the clock: the same input gives the same bytes. See docs/format.md.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from rmcli.errors import RmcliError
from rmcli.packs.staging import StagedFolder, put_back, put_back_all
from rmcli.records import Comparison, PackedRow, Reject, TokenGroup

FORMAT_VERSION = 2
SPLITS: tuple[str, ...] = ("train", "eval")
ROWS_PER_BATCH = 64
SHARD_BYTES = 450_000_000  # a shard is closed before the batch that would take it past so much data
MANIFEST = "manifest.json"
TEXTS = ("eval.jsonl", "rejects.jsonl")
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # file names may hold any bytes
REQUIRED_KEYS = {"format_version", "splits", "shards", "manifest_sha256"}

SCHEMA = pa.schema(
    {
        "input_ids": pa.large_list(pa.int32()),
        "prefix_lengths": pa.list_(pa.int32()),
        "num_responses": pa.list_(pa.int32()),
        "response_lengths": pa.list_(pa.int32()),
        "row_ids": pa.list_(pa.int64()),
        "source_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "ordered": pa.list_(pa.int8()),
        "num_comparisons": pa.list_(pa.int32()),
        "comparison_first": pa.list_(pa.int32()),
        "comparison_second": pa.list_(pa.int32()),
        "comparison_labels": pa.list_(pa.float32()),
        "comparison_margins": pa.list_(pa.float32()),
    }
)
_FEATURES = {
    name: {
        "feature": {"dtype": str(field.type.value_type).replace("float", "float32"), "_type": "Value"},
        "_type": "LargeList" if pa.types.is_large_list(field.type) else "List",
    }
    for name, field in zip(SCHEMA.names, SCHEMA, strict=True)
}


class StoreWriter:
    """Writes one data set. Use as a context: leaving it before `finish` is done removes what was written.

    Raises RmcliError when the folder cannot be written or holds something that must stay.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        self._shards = {split: _ShardWriter() for split in SPLITS}
        self._pending: dict[str, list[PackedRow]] = {split: [] for split in SPLITS}
        self._counts = {split: _Counts() for split in SPLITS}
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        with _one_line(self.folder):
            self._staged = _stage(self.folder, self._overwrite)
            try:
                for split in SPLITS:
                    (self._staged.path / split).mkdir()
                    self._shards[split].open(self._staged.path / split)
                    self._open_files.callback(self._shards[split].close)
                self._eval_text, self._rejects = (
                    self._open_files.enter_context((self._staged.path / name).open("w", **_TEXT)) for name in TEXTS
                )
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _one_line(self.folder):
            self._discard()
            if isinstance(error, OSError):
                raise error

    def add_rows(self, split: str, rows: Iterable[PackedRow]) -> None:
        for row in rows:
            self._pending[split].append(row)
            self._counts[split].add(row)
            if len(self._pending[split]) == ROWS_PER_BATCH:
                self._flush(split)

    def add_reject(self, reject: Reject) -> None:
        known = {key: value for key, value in asdict(reject).items() if value is not None}
        self._rejects.write(json.dumps(known, ensure_ascii=False) + "\n")

    def add_eval_text(self, conversations: Mapping[str, Any]) -> None:
        """One held-out pair as a canonical row, for `rmcli score`."""
        self._eval_text.write(json.dumps(conversations, ensure_ascii=False) + "\n")

    @property
    def statistics(self) -> dict[str, dict[str, int]]:
        """Per split: rows, pairs, tokens stored, tokens unshared."""
        return {split: dict(vars(counts)) for split, counts in self._counts.items()}

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write metadata and manifest, sync, and put the folder in place. Returns the whole manifest."""
        for split in SPLITS:
            self._flush(split)
        self._open_files.close()
        shards = {split: _name_shards(self._staged.path / split, self._shards[split].num_rows) for split in SPLITS}
        whole = _write_metadata(self._staged.path, {**manifest, "splits": self.statistics}, shards)
        self._staged.publish(self._overwrite)
        return whole

    def _flush(self, split: str) -> None:
        rows = self._pending[split]
        if rows:
            self._shards[split].write(_record_batch(rows))
            self._pending[split] = []

    def _discard(self) -> None:
        with suppress(OSError, pa.ArrowException, ValueError):  # closing may fail for the reason we leave for
            self._open_files.close()
        self._staged.discard()


def merge(folders: Sequence[Path], target: Path, overwrite: bool = False) -> dict[str, Any]:
    """Join sets prepared as shards 1/n to n/n of the same sources and configuration. Returns the whole manifest.

    Their Arrow files are checked and hard-linked, or copied where links cannot be; counts are added up. Raises
    RmcliError when a shard is missing, comes twice, is damaged, or was prepared differently.
    """
    manifests = {folder: read_manifest(folder) for folder in folders}
    parts = _in_order(manifests)
    whole = _add_up([manifests[folder] for folder in parts], parts)
    _check_no_row_twice(parts)
    with _one_line(target):
        staged = _stage(target, overwrite)
        try:
            for name in TEXTS:
                with (staged.path / name).open("wb") as joined:
                    for folder in parts:
                        with (folder / name).open("rb") as file:
                            shutil.copyfileobj(file, joined)
            shards = {split: _join_shards(parts, manifests, split, staged.path / split) for split in SPLITS}
            manifest = _write_metadata(staged.path, whole, shards)
            staged.publish(overwrite)
        finally:
            staged.discard()
    return manifest


# What parts of one data set do not share. Counts are added up; the rest is made anew.
_ADDED = ("rows", "rows_by_source", "splits")
_OWN = ("shard", "shards", "manifest_sha256")
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
    """Two JSON values with the numbers in the same place added, and what only one has kept."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return {key: _sum(one.get(key), other.get(key)) for key in keys}
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
    return _name_shards(target, [rows for _, rows in kept])


class _ShardWriter:
    """The shards of one split, one after the other, as 0.arrow, 1.arrow, ...: their number is known at the end."""

    def __init__(self) -> None:
        self.num_rows: list[int] = []  # of each shard

    def open(self, folder: Path) -> None:
        self._folder = folder
        self._num_bytes = 0
        self._stream = pa.ipc.new_stream(folder / f"{len(self.num_rows)}.arrow", SCHEMA)
        self.num_rows.append(0)

    def write(self, batch: pa.RecordBatch) -> None:
        if self.num_rows[-1] and self._num_bytes + batch.nbytes > SHARD_BYTES:
            self.close()
            self.open(self._folder)
        self._stream.write_batch(batch)
        self._num_bytes += batch.nbytes
        self.num_rows[-1] += batch.num_rows

    def close(self) -> None:
        self._stream.close()


class _Counts:
    def __init__(self) -> None:
        self.num_rows = self.num_groups = self.num_pairs = 0
        self.num_tokens = self.num_unshared_tokens = self.num_truncated = 0

    def add(self, row: PackedRow) -> None:
        self.num_rows += 1
        for group in row.groups:
            self.num_groups += 1
            self.num_pairs += len(group.comparisons)
            self.num_tokens += group.num_tokens
            self.num_unshared_tokens += group.num_unshared_tokens
            self.num_truncated += group.truncated


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder. Raises RmcliError when it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        put_back(folder)
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RmcliError(f"{folder} holds no prepared data: no manifest.json", "run rmcli prepare -o DIR") from error
    except ValueError as error:
        raise RmcliError(f"{path} is damaged: {error}", "prepare it again with --overwrite") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= REQUIRED_KEYS:
        raise RmcliError(f"{path} is no manifest of rmcli", "prepare it again with --overwrite")
    if manifest["format_version"] != FORMAT_VERSION:
        raise RmcliError(
            f"{path}: format version {manifest['format_version']}, this rmcli reads {FORMAT_VERSION}",
            "prepare it again with --overwrite",
        )
    said, actual = str(manifest["manifest_sha256"]), _seal(manifest)
    if said != actual:
        raise RmcliError(
            f"{path} is damaged or was edited: sha256 {actual[:12]}, it says {said[:12]}",
            "prepare it again with --overwrite",
        )
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write it with the sha256 of its own content, which `read_manifest` checks. Returns what was written."""
    whole = {**manifest, "manifest_sha256": _seal(manifest)}
    _write_json(folder / MANIFEST, whole)
    return whole


def _seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's content, its own `manifest_sha256` left out; independent of white space."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def find_prepared(root: Path) -> list[Path]:
    """The prepared folders directly under `root`, by name. Raises RmcliError."""
    try:
        put_back_all(root)
    except OSError as error:
        raise RmcliError(f"{root} cannot be read: {error.strerror or error}") from error
    return sorted(path.parent for path in root.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


class PackedSplit:
    """The rows of one split, memory-mapped. Checked against the manifest when opened."""

    def __init__(self, folder: Path, split: str) -> None:
        manifest = read_manifest(folder)
        tables = []
        for name, shard in manifest["shards"].items():
            if not name.startswith(f"{split}/"):
                continue
            tables.append(_open_shard(folder / name, shard["num_rows"], shard["sha256"]))
        self._table = pa.concat_tables(tables)
        self._prefix_lengths = self._column_of_lists("prefix_lengths")
        self._num_responses = self._column_of_lists("num_responses")
        self._response_lengths = self._column_of_lists("response_lengths")

    def __len__(self) -> int:
        return self._table.num_rows

    @property
    def row_ids(self) -> np.ndarray:
        """(groups,) the input row of each."""
        return np.concatenate([np.empty(0, np.int64), *self._column_of_lists("row_ids")])

    @property
    def groups_per_row(self) -> list[int]:
        return [len(lengths) for lengths in self._prefix_lengths]

    def group_tokens(self, row: int) -> np.ndarray:
        """(groups of the row,) tokens each of them takes."""
        ends = np.cumsum(self._num_responses[row])
        starts = np.concatenate([[0], ends[:-1]])
        return self._prefix_lengths[row] + np.add.reduceat(self._response_lengths[row], starts)

    def group_conversations(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(groups of the row,) each: how many conversations, tokens of the prefix, those of the longest of them."""
        numbers, prefixes = self._num_responses[row], self._prefix_lengths[row]
        longest = np.maximum.reduceat(self._response_lengths[row], np.cumsum(numbers) - numbers)
        return numbers, prefixes, prefixes + longest

    @property
    def tokens_per_row(self) -> np.ndarray:
        """(rows,) int64."""
        lengths = [chunk.value_lengths().to_numpy() for chunk in self._table["input_ids"].chunks]
        return np.concatenate([np.empty(0, np.int64), *lengths])

    def columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The stored columns of rows `start` to `stop`, by their names in SCHEMA, one row's after the other's."""
        rows = self._table.slice(start, stop - start)
        return {name: rows[name].combine_chunks().flatten().to_numpy() for name in SCHEMA.names}

    def groups(self, row: int, start: int = 0, stop: int | None = None) -> list[TokenGroup]:
        """Groups `start` to `stop` of one row."""
        tokens_before = np.concatenate([[0], np.cumsum(self.group_tokens(row))])
        responses_before = np.concatenate([[0], np.cumsum(self._num_responses[row])])
        ids = self._table["input_ids"][row].values.to_numpy()
        weights, row_ids, source_ids, ordered, num_comparisons = (
            self._table[name][row].values.to_numpy()
            for name in ("weights", "row_ids", "source_ids", "ordered", "num_comparisons")
        )
        comparisons = self._comparisons(row)
        comparisons_before = np.concatenate([[0], np.cumsum(num_comparisons)])
        groups = []
        for index in range(len(self._prefix_lengths[row]))[start:stop]:
            lengths = self._response_lengths[row][responses_before[index] : responses_before[index + 1]]
            cuts = np.cumsum([self._prefix_lengths[row][index], *lengths])
            prefix, *responses = np.split(ids[tokens_before[index] : tokens_before[index + 1]], cuts[:-1])
            groups.append(
                TokenGroup(
                    prefix=prefix,
                    responses=tuple(responses),
                    row_id=int(row_ids[index]),
                    source_id=int(source_ids[index]),
                    weight=float(weights[index]),
                    comparisons=comparisons[comparisons_before[index] : comparisons_before[index + 1]],
                    ordered=bool(ordered[index]),
                )
            )
        return groups

    def _comparisons(self, row: int) -> tuple[Comparison, ...]:
        columns = [
            self._table[f"comparison_{name}"][row].as_py() for name in ("first", "second", "labels", "margins")
        ]
        return tuple(Comparison(*values) for values in zip(*columns, strict=True))

    def _column_of_lists(self, name: str) -> list[np.ndarray]:
        return [value.values.to_numpy() for value in self._table[name]]


def _open_shard(path: Path, num_rows: int, sha256: str) -> pa.Table:
    try:
        actual = _file_sha256(path)
        if actual != sha256:
            raise RmcliError(
                f"{path} is damaged: sha256 {actual[:12]}, the manifest says {sha256[:12]}",
                "prepare it again with --overwrite",
            )
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise RmcliError(f"{path} cannot be read: {error}", "prepare it again with --overwrite") from error
    if table.num_rows != num_rows:
        raise RmcliError(
            f"{path} is damaged: {table.num_rows:,} rows, the manifest says {num_rows:,}",
            "prepare it again with --overwrite",
        )
    return table


def _record_batch(rows: list[PackedRow]) -> pa.RecordBatch:
    columns = {
        "input_ids": [np.concatenate([ids for g in row.groups for ids in (g.prefix, *g.responses)]) for row in rows],
        "prefix_lengths": [[len(g.prefix) for g in row.groups] for row in rows],
        "num_responses": [[len(g.responses) for g in row.groups] for row in rows],
        "response_lengths": [[len(r) for g in row.groups for r in g.responses] for row in rows],
        "row_ids": [[g.row_id for g in row.groups] for row in rows],
        "source_ids": [[g.source_id for g in row.groups] for row in rows],
        "weights": [[g.weight for g in row.groups] for row in rows],
        "ordered": [[int(g.ordered) for g in row.groups] for row in rows],
        "num_comparisons": [[len(g.comparisons) for g in row.groups] for row in rows],
        "comparison_first": [[c.first for g in row.groups for c in g.comparisons] for row in rows],
        "comparison_second": [[c.second for g in row.groups for c in g.comparisons] for row in rows],
        "comparison_labels": [[c.label for g in row.groups for c in g.comparisons] for row in rows],
        "comparison_margins": [[c.margin for g in row.groups for c in g.comparisons] for row in rows],
    }
    arrays = []
    for name, values in columns.items():
        kind = SCHEMA.field(name).type
        flat = np.concatenate([np.asarray(value) for value in values])
        offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])])
        large = pa.types.is_large_list(kind)
        array_type = pa.LargeListArray if large else pa.ListArray
        offsets = pa.array(offsets, pa.int64() if large else pa.int32())
        arrays.append(array_type.from_arrays(offsets, pa.array(flat.astype(kind.value_type.to_pandas_dtype()))))
    return pa.record_batch(arrays, schema=SCHEMA)


def _stage(folder: Path, overwrite: bool) -> StagedFolder:
    """A place to write what will become `folder`. Raises RmcliError when that holds something that must stay."""
    put_back(folder)
    if folder.exists() and not folder.is_dir():
        raise RmcliError(f"output {folder} is a file", "choose another folder with -o")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise RmcliError(f"output folder {folder} is not empty", "choose another with -o, or give --overwrite")
        if not (folder / MANIFEST).is_file():
            raise RmcliError(
                f"output folder {folder} holds no prepared data, so --overwrite leaves it alone",
                "choose another folder with -o",
            )
    return StagedFolder(folder)


def _shard_name(number: int, count: int) -> str:
    return f"data-{number:05}-of-{count:05}.arrow"


def _name_shards(folder: Path, num_rows: Sequence[int]) -> dict[str, int]:
    """Give 0.arrow, 1.arrow, ... their names. Returns rows by name."""
    named = {_shard_name(number, len(num_rows)): rows for number, rows in enumerate(num_rows)}
    for number, name in enumerate(named):
        (folder / f"{number}.arrow").rename(folder / name)
    return named


def _write_metadata(
    folder: Path, manifest: Mapping[str, Any], shards: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """What `datasets` and the loader need beside the shards (split -> name -> rows). Returns the whole manifest."""
    proofs = {}
    for split, named in shards.items():
        _write_json(folder / split / "state.json", _state(split, list(named)))
        _write_json(folder / split / "dataset_info.json", {"features": _FEATURES})
        for name, num_rows in named.items():
            proofs[f"{split}/{name}"] = {"num_rows": num_rows, "sha256": _file_sha256(folder / split / name)}
    _write_json(folder / "dataset_dict.json", {"splits": list(SPLITS)})
    return write_manifest(folder, {"format_version": FORMAT_VERSION, **manifest, "shards": proofs})


def _state(split: str, shards: Sequence[str]) -> dict[str, Any]:
    """What `datasets` keeps beside its files; the fingerprint only has to be a text."""
    return {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": f"rmcli-{FORMAT_VERSION}-{split}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", **_TEXT)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """An OSError while `folder` is written becomes an RmcliError."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)  # pyarrow's own text is longer
        hint = "free some space, or choose another folder with -o" if error.errno in _FULL else None
        raise RmcliError(f"cannot write {folder}: {reason}", hint or "choose another folder with -o") from error
