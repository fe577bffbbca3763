"""Packs to disk: Arrow files that `datasets.load_from_disk` opens, and a manifest that proves them.

Everything is written beside the target and put in place whole: a failed run leaves the old folder as it was. Nothing
written depends on the clock: the same input gives the same bytes. See docs/format.md.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.packs.manifest import (
    DATASET,
    MANIFEST,
    REJECTS,
    TEXT,
    TEXTS,
    file_sha256,
    write_json,
    write_manifest,
    writing,
)
from rmcli.packs.schema import FEATURES, FORMAT_VERSION, SCHEMA, SPLITS
from rmcli.packs.staging import StagedFolder, check_writable, put_back, refuse_own_folder
from rmcli.records import Pack, Reject

PACKS_PER_BATCH = 64
SHARD_BYTES = 450_000_000  # a shard is closed before the batch that would take it past so much data


class PackWriter:
    """Writes one data set. Use as a context: leaving it before `finish` is done removes what was written.

    Raises RmcliError when the folder cannot be written or holds something that must stay.
    """

    def __init__(self, folder: Path, overwrite: bool = False) -> None:
        self.folder = folder
        self._overwrite = overwrite
        self._shards = {split: _ShardWriter() for split in SPLITS}
        self._pending: dict[str, list[Pack]] = {split: [] for split in SPLITS}
        self._counts = {split: _Counts() for split in SPLITS}
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        with writing(self.folder):
            self._staged = stage(self.folder, self._overwrite)
            try:
                for split in SPLITS:
                    (self._staged.path / split).mkdir()
                    self._shards[split].open(self._staged.path / split)
                    self._open_files.callback(self._shards[split].close)
                self._eval_text, self._rejects = (
                    self._open_files.enter_context((self._staged.path / name).open("w", **TEXT)) for name in TEXTS
                )
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writing(self.folder):
            self._discard()
            if isinstance(error, OSError):
                raise error

    def add_packs(self, split: str, packs: Iterable[Pack]) -> None:
        for pack in packs:
            self._pending[split].append(pack)
            self._counts[split].add(pack)
            if len(self._pending[split]) == PACKS_PER_BATCH:
                self._flush(split)

    def add_reject(self, reject: Reject) -> None:
        known = {key: value for key, value in asdict(reject).items() if value is not None}
        self._rejects.write(json.dumps(known, ensure_ascii=False) + "\n")

    def save_rejects(self, file: Path) -> None:
        """Copy the rejects so far to a file that stays when nothing else does. Raises OSError."""
        self._rejects.flush()
        shutil.copyfile(self._staged.path / REJECTS, file)

    def add_eval_text(self, conversations: Mapping[str, Any]) -> None:
        """One held-out pair as a canonical row, for `rmcli score`."""
        self._eval_text.write(json.dumps(conversations, ensure_ascii=False) + "\n")

    @property
    def statistics(self) -> dict[str, dict[str, int]]:
        """Per split: packs, pairs, tokens stored, tokens unshared."""
        return {split: dict(vars(counts)) for split, counts in self._counts.items()}

    def finish(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write metadata and manifest, sync, and put the folder in place. Returns the whole manifest."""
        for split in SPLITS:
            self._flush(split)
        self._open_files.close()
        shards = {split: name_shards(self._staged.path / split, self._shards[split].num_rows) for split in SPLITS}
        whole = write_metadata(self._staged.path, {**manifest, "splits": self.statistics}, shards)
        self._staged.publish(self._overwrite)
        return whole

    def _flush(self, split: str) -> None:
        packs = self._pending[split]
        if packs:
            self._shards[split].write(_record_batch(packs))
            self._pending[split] = []

    def _discard(self) -> None:
        with suppress(OSError, pa.ArrowException, ValueError):  # closing may fail for the reason we leave for
            self._open_files.close()
        self._staged.discard()


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

    def add(self, pack: Pack) -> None:
        self.num_rows += 1
        for group in pack.groups:
            self.num_groups += 1
            self.num_pairs += len(group.comparisons)
            self.num_tokens += group.num_tokens
            self.num_unshared_tokens += group.num_unshared_tokens
            self.num_truncated += group.truncated


def _record_batch(packs: list[Pack]) -> pa.RecordBatch:
    columns = {
        "input_ids": [
            np.concatenate([ids for g in pack.groups for ids in (g.prefix, *g.responses)]) for pack in packs
        ],
        "prefix_lengths": [[len(g.prefix) for g in pack.groups] for pack in packs],
        "num_responses": [[len(g.responses) for g in pack.groups] for pack in packs],
        "response_lengths": [[len(r) for g in pack.groups for r in g.responses] for pack in packs],
        "row_ids": [[g.row_id for g in pack.groups] for pack in packs],
        "source_ids": [[g.source_id for g in pack.groups] for pack in packs],
        "weights": [[g.weight for g in pack.groups] for pack in packs],
        "ordered": [[int(g.ordered) for g in pack.groups] for pack in packs],
        "num_comparisons": [[len(g.comparisons) for g in pack.groups] for pack in packs],
        "comparison_first": [[c.first for g in pack.groups for c in g.comparisons] for pack in packs],
        "comparison_second": [[c.second for g in pack.groups for c in g.comparisons] for pack in packs],
        "comparison_labels": [[c.label for g in pack.groups for c in g.comparisons] for pack in packs],
        "comparison_margins": [[c.margin for g in pack.groups for c in g.comparisons] for pack in packs],
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


def stage(folder: Path, overwrite: bool) -> StagedFolder:
    """A place to write what will become `folder`. Raises RmcliError when that holds something that must stay."""
    check_free(folder, overwrite)
    staged = StagedFolder(folder)
    for path in staged.path.parent.iterdir():  # what ended processes left is gone by now
        if path != staged.path and path.name.startswith(f".{staged.folder.name}.tmp-"):
            outcome = (
                "the last one to end replaces the other's" if overwrite else "the last one to end will find it full"
            )
            output.warn(f"process {path.name.rpartition('-')[2]} is writing {folder} too: {outcome}")
    return staged


def check_free(folder: Path, overwrite: bool) -> None:
    """Raise RmcliError when `folder` holds something that must stay, OSError where nothing can be written."""
    refuse_own_folder(folder)
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
    check_writable(folder)


def _shard_name(number: int, count: int) -> str:
    return f"data-{number:05}-of-{count:05}.arrow"


def name_shards(folder: Path, num_rows: Sequence[int]) -> dict[str, int]:
    """Give 0.arrow, 1.arrow, ... their names. Returns rows by name."""
    named = {_shard_name(number, len(num_rows)): rows for number, rows in enumerate(num_rows)}
    for number, name in enumerate(named):
        (folder / f"{number}.arrow").rename(folder / name)
    return named


def write_metadata(
    folder: Path, manifest: Mapping[str, Any], shards: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """What `datasets` and the loader need beside the shards (split -> name -> rows). Returns the whole manifest."""
    proofs = {}
    for split, named in shards.items():
        write_json(folder / split / "state.json", _state(split, list(named)))
        write_json(folder / split / "dataset_info.json", {"features": FEATURES})
        for name, num_rows in named.items():
            proofs[f"{split}/{name}"] = {"num_rows": num_rows, "sha256": file_sha256(folder / split / name)}
    write_json(folder / DATASET, {"splits": list(SPLITS)})
    others = [*TEXTS, DATASET]
    others += [f"{split}/{name}" for split in shards for name in ("state.json", "dataset_info.json")]
    files = {name: file_sha256(folder / name) for name in others}
    return write_manifest(folder, {"format_version": FORMAT_VERSION, **manifest, "shards": proofs, "files": files})


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
