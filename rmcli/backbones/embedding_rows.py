"""Chosen rows of a model's input embedding, read without loading the model.

Safetensors are read in pieces (weight_files): the header, then only the rows asked for; GGUF and PyTorch files are
memory-mapped. A 70B model costs a few MB and a few seconds.

Format of safetensors: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rmcli.backbones import gguf_files, hub
from rmcli.backbones.shards import shard_name
from rmcli.backbones.weight_files import SINGLE_FILES, ByteSource, Files, Folder, HubFiles, RowsUnavailableError
from rmcli.config.presets import pretrained_arguments
from rmcli.errors import RmcliError
from rmcli.installed import install_command

EMBEDDING_NAME = re.compile(r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in|embeddings)\.weight$")
GGUF_EMBEDDING_NAME = "token_embd.weight"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
FIRST_READ_BYTES = 65_536  # most headers are shorter: one request
MAX_GAP_BYTES = 16_384  # rows closer than this are fetched in one request


class Embedding(Protocol):
    """An input embedding that is read row by row. `bytes_read` counts what was taken from the file or network."""

    where: str
    num_rows: int
    bytes_read: int

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """(len(ids), hidden) float32, in the order of `ids`; each id must be below num_rows."""
        ...


def open_embedding(name_or_path: str, revision: str | None = None) -> Embedding:
    """The input embedding of a folder, `.gguf` file or Hub id.

    Raises RowsUnavailableError when there are no weights or they cannot be read in part, RmcliError when a file
    is damaged.
    """
    arguments = pretrained_arguments(name_or_path, revision)
    place = arguments["pretrained_model_name_or_path"]
    if "gguf_file" in arguments:
        return GgufEmbedding(Path(place) / arguments["gguf_file"])
    if Path(place).is_dir():
        return _open_files(Folder(Path(place)))
    with hub.asking():
        return _open_files(HubFiles(place, revision))


def _open_files(files: Files) -> Embedding:
    for single in SINGLE_FILES:
        source = files.find(single)
        if source is not None:
            return _open_file(files, single, None, source)
        index = f"{single}.index.json"
        if files.find(index) is not None:
            weight_map = files.read_json(index)
            weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
            if not isinstance(weight_map, dict):
                raise RmcliError(f"{files.name}/{index} is damaged: it has no weight_map", "download it again")
            tensor = embedding_name(weight_map, f"{files.name}/{index}")
            shard = shard_name(weight_map[tensor], f"{files.name}/{index}")
            return _open_file(files, shard, tensor, files.find(shard))
    raise RowsUnavailableError(
        f"{files.name} has no weights: none of {', '.join(SINGLE_FILES)} nor their index files"
    )


def _open_file(files: Files, file: str, tensor: str | None, source: ByteSource | None) -> Embedding:
    if source is None:
        raise RowsUnavailableError(f"{files.name}/{file} is named by the index and is not there")
    if file.endswith(".safetensors"):
        return SafetensorsEmbedding(source, tensor)
    return TorchEmbedding(files.local_path(file), tensor)


def embedding_name(names: Sequence[str] | dict[str, Any], where: str) -> str:
    """The tensor that is the input embedding; of several (a model of many parts) the one with the shortest name."""
    found = sorted((name for name in names if EMBEDDING_NAME.search(name)), key=lambda name: (len(name), name))
    if not found:
        raise RowsUnavailableError(
            f"{where}: no tensor is named like an input embedding (e.g. model.embed_tokens.weight)"
        )
    return found[0]


# --- the formats ---


def _from_bfloat16(raw: np.ndarray) -> np.ndarray:
    return (raw.astype(np.uint32) << 16).view(np.float32)


# name in the file -> (type of the bytes, how they become float32)
DTYPES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "BF16": ("<u2", _from_bfloat16),
    "F16": ("<f2", lambda raw: raw.astype(np.float32)),
    "F32": ("<f4", lambda raw: raw.astype(np.float32)),
    "F64": ("<f8", lambda raw: raw.astype(np.float32)),
}


@dataclass
class SafetensorsEmbedding:
    source: ByteSource
    tensor: str | None = None

    def __post_init__(self) -> None:
        self.bytes_read = 0
        header, data_start = self._header()
        self.tensor = self.tensor or embedding_name(header, self.source.name)
        self.where = f"{self.tensor} in {self.source.name}"
        try:
            entry = header[self.tensor]
            dtype, (self.num_rows, self.width) = entry["dtype"], entry["shape"]
            begin, end = entry["data_offsets"]
            consistent = dtype not in DTYPES or end - begin == self.num_rows * self.width * _size_of(dtype)
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"no two-dimensional {self.tensor} in its header") from error
        if dtype not in DTYPES:
            raise RowsUnavailableError(f"{self.where} is stored as {dtype}, not as one of {', '.join(DTYPES)}")
        if not consistent:
            raise self._damaged(f"{self.tensor} has {end - begin} bytes for shape {entry['shape']} of {dtype}")
        self._start = data_start + begin
        self._row_bytes = self.width * _size_of(dtype)
        self._raw_type, self._to_float32 = DTYPES[dtype]

    def read(self, ids: Sequence[int]) -> np.ndarray:
        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        spans = spans_of(wanted, MAX_GAP_BYTES // self._row_bytes)
        with ThreadPoolExecutor(self.source.num_connections) as pool:
            pieces = list(pool.map(self._read_span, spans))
        position = {
            row: (piece, row - start) for piece, (start, stop) in enumerate(spans) for row in range(start, stop)
        }
        return np.stack([pieces[piece][offset] for piece, offset in (position[int(row)] for row in ids)])

    def _read_span(self, span: tuple[int, int]) -> np.ndarray:
        start, stop = span
        data = self._bytes(self._start + start * self._row_bytes, (stop - start) * self._row_bytes)
        return self._to_float32(np.frombuffer(data, self._raw_type).reshape(stop - start, self.width))

    def _header(self) -> tuple[dict[str, Any], int]:
        first = self.source.read(0, FIRST_READ_BYTES)
        self.bytes_read += len(first)
        if len(first) < 8:
            raise self._damaged(f"it has {len(first)} bytes")
        (length,) = struct.unpack("<Q", first[:8])
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise self._damaged(f"a header of {length} bytes")
        text = first[8 : 8 + length]
        if len(text) < length:
            text += self._bytes(8 + len(text), length - len(text))
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is no JSON: {error}") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is no JSON object")
        return header, 8 + length

    def _bytes(self, start: int, length: int) -> bytes:
        data = self.source.read(start, length)
        self.bytes_read += len(data)
        if len(data) != length:
            raise self._damaged(f"it ends {length - len(data)} bytes too early")
        return data

    def _damaged(self, why: str) -> RmcliError:
        return RmcliError(f"{self.source.name} is damaged: {why}", "download it again")


def _size_of(dtype: str) -> int:
    return np.dtype(DTYPES[dtype][0]).itemsize


def spans_of(rows: np.ndarray, max_gap: int) -> list[tuple[int, int]]:
    """Spans [start, stop) that cover sorted distinct `rows`; rows at most `max_gap` unwanted rows apart share one."""
    spans: list[tuple[int, int]] = []
    for row in map(int, rows):
        if spans and row - spans[-1][1] <= max_gap:
            spans[-1] = (spans[-1][0], row + 1)
        else:
            spans.append((row, row + 1))
    return spans


class GgufEmbedding:
    """token_embd.weight of a memory-mapped GGUF file; only the rows asked for are dequantized."""

    def __init__(self, path: Path) -> None:
        try:
            reader = gguf_files.quick_reader()
        except ImportError as error:
            raise RmcliError(f"{path} needs the package gguf", install_command("gguf")) from error
        try:
            tensors = {tensor.name: tensor for tensor in reader(path).tensors}
        except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
            raise RmcliError(f"{path} is damaged: {error or type(error).__name__}", "download it again") from error
        if GGUF_EMBEDDING_NAME not in tensors:
            raise RowsUnavailableError(f"{path} has no {GGUF_EMBEDDING_NAME}: a vocabulary without a model")
        self._tensor = tensors[GGUF_EMBEDDING_NAME]
        self.num_rows = len(self._tensor.data)
        self.where = f"{GGUF_EMBEDDING_NAME} in {path}"
        self.bytes_read = 0

    def read(self, ids: Sequence[int]) -> np.ndarray:
        from gguf.quants import dequantize

        raw = self._tensor.data[np.asarray(ids, dtype=np.int64)]
        self.bytes_read += raw.nbytes
        try:
            return np.asarray(dequantize(raw, self._tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise RowsUnavailableError(f"{self.where} cannot be read: {error}") from error


class TorchEmbedding:
    """The embedding of a memory-mapped pytorch_model*.bin; nothing in it is executed."""

    def __init__(self, path: Path, tensor: str | None) -> None:
        import pickle

        import torch

        try:
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            name = tensor or embedding_name(tensors, str(path))
            self._tensor = tensors[name]
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()
            raise RmcliError(f"{path} cannot be read: {reason[0] if reason else type(error).__name__}") from error
        self.num_rows = len(self._tensor)
        self.where = f"{name} in {path}"
        self.bytes_read = 0

    def read(self, ids: Sequence[int]) -> np.ndarray:
        rows = self._tensor[list(ids)]
        self.bytes_read += rows.nbytes
        return rows.float().numpy()
