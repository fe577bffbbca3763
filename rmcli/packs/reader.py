"""Packed rows read back from disk, memory-mapped and checked against the manifest."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from rmcli.errors import RmcliError
from rmcli.packs.manifest import file_sha256, read_manifest
from rmcli.packs.schema import SCHEMA
from rmcli.records import Comparison, TokenGroup


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
    def groups_per_pack(self) -> list[int]:
        return [len(lengths) for lengths in self._prefix_lengths]

    def group_tokens(self, pack: int) -> np.ndarray:
        """(groups of the pack,) tokens each of them takes."""
        ends = np.cumsum(self._num_responses[pack])
        starts = np.concatenate([[0], ends[:-1]])
        return self._prefix_lengths[pack] + np.add.reduceat(self._response_lengths[pack], starts)

    def group_conversations(self, pack: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(groups of the pack,) each: how many conversations, tokens of the prefix, those of the longest of them."""
        numbers, prefixes = self._num_responses[pack], self._prefix_lengths[pack]
        longest = np.maximum.reduceat(self._response_lengths[pack], np.cumsum(numbers) - numbers)
        return numbers, prefixes, prefixes + longest

    def conversation_lengths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(groups,) tokens of each prefix and how many responses it has, and (responses,) tokens of each response."""
        columns = self._prefix_lengths, self._num_responses, self._response_lengths
        prefixes, numbers, responses = (np.concatenate([np.empty(0, np.int64), *column]) for column in columns)
        return prefixes, numbers, responses

    @property
    def tokens_per_pack(self) -> np.ndarray:
        """(rows,) int64."""
        lengths = [chunk.value_lengths().to_numpy() for chunk in self._table["input_ids"].chunks]
        return np.concatenate([np.empty(0, np.int64), *lengths])

    def columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The stored columns of packs `start` to `stop`, by their names in SCHEMA, one pack's after the other's."""
        rows = self._table.slice(start, stop - start)
        return {name: rows[name].combine_chunks().flatten().to_numpy() for name in SCHEMA.names}

    def groups(self, pack: int, start: int = 0, stop: int | None = None) -> list[TokenGroup]:
        """Groups `start` to `stop` of one pack."""
        tokens_before = np.concatenate([[0], np.cumsum(self.group_tokens(pack))])
        responses_before = np.concatenate([[0], np.cumsum(self._num_responses[pack])])
        ids = self._table["input_ids"][pack].values.to_numpy()
        weights, row_ids, source_ids, ordered, num_comparisons = (
            self._table[name][pack].values.to_numpy()
            for name in ("weights", "row_ids", "source_ids", "ordered", "num_comparisons")
        )
        comparisons = self._comparisons(pack)
        comparisons_before = np.concatenate([[0], np.cumsum(num_comparisons)])
        groups = []
        for index in range(len(self._prefix_lengths[pack]))[start:stop]:
            lengths = self._response_lengths[pack][responses_before[index] : responses_before[index + 1]]
            cuts = np.cumsum([self._prefix_lengths[pack][index], *lengths])
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

    def _comparisons(self, pack: int) -> tuple[Comparison, ...]:
        columns = [
            self._table[f"comparison_{name}"][pack].as_py() for name in ("first", "second", "labels", "margins")
        ]
        return tuple(Comparison(*values) for values in zip(*columns, strict=True))

    def _column_of_lists(self, name: str) -> list[np.ndarray]:
        return [value.values.to_numpy() for value in self._table[name]]


def _open_shard(path: Path, num_rows: int, sha256: str) -> pa.Table:
    try:
        actual = file_sha256(path)
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
