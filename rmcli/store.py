"""Packed rows on disk: Arrow files that `datasets.load_from_disk` opens, and a manifest that proves them.

Everything is written beside the target, synced, and renamed: a failed run leaves the old folder as it was. Nothing
written depends on the clock: the same input gives the same bytes. See docs/format.md.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from rmcli.errors import RmcliError
from rmcli.records import Comparison, PackedRow, Reject, TokenGroup

FORMAT_VERSION = 2
SPLITS: tuple[str, ...] = ("train", "eval")
ROWS_PER_BATCH = 64
REQUIRED_KEYS = {"format_version", "splits", "shards"}

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
    """Writes one data set. Use as a context: leaving it by an exception removes what was written."""

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self.temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        try:
            if folder.exists() and not folder.is_dir():
                raise RmcliError(f"output {folder} is a file", "choose another folder with -o")
            if folder.is_dir() and any(folder.iterdir()) and not overwrite:
                raise RmcliError(
                    f"output folder {folder} is not empty", "choose another with -o, or give --overwrite"
                )
            if folder.is_dir() and any(folder.iterdir()) and not (folder / "manifest.json").is_file():
                raise RmcliError(
                    f"output folder {folder} holds no prepared data, so --overwrite leaves it alone",
                    "choose another folder with -o",
                )
            self._made = [parent for parent in folder.absolute().parents if not parent.exists()]
            folder.parent.mkdir(parents=True, exist_ok=True)
            for stale in folder.parent.glob(f".{folder.name}.tmp-*"):
                if not _is_running(int(stale.name.rpartition("-")[2])):
                    shutil.rmtree(stale)
            self.temporary.mkdir()
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self._writers: dict[str, pa.RecordBatchStreamWriter] = {}
        self._pending: dict[str, list[PackedRow]] = {split: [] for split in SPLITS}
        self._counts = {split: _Counts() for split in SPLITS}
        for split in SPLITS:
            (self.temporary / split).mkdir()
            self._writers[split] = pa.ipc.new_stream(self.temporary / split / _shard_name(), SCHEMA)
        self._rejects = (self.temporary / "rejects.jsonl").open("w", encoding="utf-8")
        self._eval_text = (self.temporary / "eval.jsonl").open("w", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.temporary.exists():
            with suppress(OSError, pa.ArrowException, ValueError):  # closing may fail for the reason we leave for
                self._close()
            shutil.rmtree(self.temporary)
            for parent in self._made:  # innermost first; all empty again
                parent.rmdir()
        if isinstance(error, OSError):
            raise _cannot_write(self.folder, error) from error

    def add_rows(self, split: str, rows: Iterable[PackedRow]) -> None:
        for row in rows:
            self._pending[split].append(row)
            self._counts[split].add(row)
            if len(self._pending[split]) == ROWS_PER_BATCH:
                self._flush(split)

    def add_reject(self, reject: Reject) -> None:
        self._rejects.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")

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
        self._close()
        shards = {}
        for split in SPLITS:
            _write_json(self.temporary / split / "state.json", _state(split))
            _write_json(self.temporary / split / "dataset_info.json", {"features": _FEATURES})
            shard = self.temporary / split / _shard_name()
            shards[f"{split}/{_shard_name()}"] = {
                "num_rows": self._counts[split].num_rows,
                "sha256": _file_sha256(shard),
            }
        _write_json(self.temporary / "dataset_dict.json", {"splits": list(SPLITS)})
        whole = {"format_version": FORMAT_VERSION, **manifest, "splits": self.statistics, "shards": shards}
        _write_json(self.temporary / "manifest.json", whole)
        for path in [*self.temporary.rglob("*"), self.temporary]:
            _sync(path)
        if self.folder.exists():
            replaced = self.folder.with_name(f".{self.folder.name}.old-{os.getpid()}")
            self.folder.rename(replaced)
            self.temporary.rename(self.folder)
            shutil.rmtree(replaced)
        else:
            self.temporary.rename(self.folder)
        _sync(self.folder.parent)
        return whole

    def _flush(self, split: str) -> None:
        rows = self._pending[split]
        if rows:
            self._writers[split].write_batch(_record_batch(rows))
            self._pending[split] = []

    def _close(self) -> None:
        with ExitStack() as stack:  # each is closed whatever the others say
            for file in (*self._writers.values(), self._rejects, self._eval_text):
                stack.callback(file.close)


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
    """The manifest of a prepared folder. Raises RmcliError when there is none or it is of another version."""
    path = folder / "manifest.json"
    try:
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
    return manifest


def find_prepared(root: Path) -> list[Path]:
    """The prepared folders directly under `root`, by name."""
    return sorted(path.parent for path in root.glob("*/manifest.json"))


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
    def groups_per_row(self) -> list[int]:
        return [len(lengths) for lengths in self._prefix_lengths]

    def group_tokens(self, row: int) -> np.ndarray:
        """(groups of the row,) tokens each of them takes."""
        ends = np.cumsum(self._num_responses[row])
        starts = np.concatenate([[0], ends[:-1]])
        return self._prefix_lengths[row] + np.add.reduceat(self._response_lengths[row], starts)

    def columns(self, row: int) -> dict[str, np.ndarray]:
        """The stored columns of one row, by their names in SCHEMA; nothing is copied."""
        return {name: self._table[name][row].values.to_numpy() for name in SCHEMA.names}

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
    assert table.num_rows == num_rows
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


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _shard_name() -> str:
    return "data-00000-of-00001.arrow"


def _state(split: str) -> dict[str, Any]:
    """What `datasets` keeps beside its files; the fingerprint only has to be a text."""
    return {
        "_data_files": [{"filename": _shard_name()}],
        "_fingerprint": f"rmcli-{FORMAT_VERSION}-{split}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: OSError) -> RmcliError:
    return RmcliError(f"cannot write {folder}: {error.strerror or error}", "choose another folder with -o")
