"""Rows of an input embedding: from files by seeking, from a server by ranges, never the whole."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rmcli.backbones.embedding_rows import open_embedding, spans_of
from rmcli.backbones.weight_files import RowsUnavailableError
from rmcli.errors import RmcliError
from support.hub_server import (
    NAME,
    ROW_BYTES,
    point_at,
    write_llama_70b,
)


def test_a_70b_embedding_costs_its_rows_over_the_network(hub_server):
    """64 reserved rows and 256 ordinary ones in runs of 8 are 320 x 16 kB = 5.2 MB of 2.1 GB."""
    write_llama_70b(hub_server.folder / "model.safetensors", {5: 1.5, 128_002: 0.0, 128_255: -2.0})
    reserved = list(range(128_002, 128_066))
    ordinary = [start + offset for start in range(0, 128_000, 4_000) for offset in range(8)]
    embedding = open_embedding("org/llama-70b")
    rows = embedding.read([*reserved, *ordinary, 128_255])
    assert embedding.num_rows == 128_256
    assert rows.shape == (321, 8_192)
    assert rows.dtype == np.float32
    assert (rows[0] == 0).all()
    assert (rows[64 + 5] == 1.5).all()
    assert (rows[-1] == -2.0).all()
    assert embedding.bytes_read == 321 * ROW_BYTES + 65_536
    assert hub_server.bytes_sent == embedding.bytes_read + 1  # and the byte that proves range requests
    assert hub_server.num_requests == 36  # that byte, the header, the reserved rows, 32 runs, the last row
    assert hub_server.authorizations == {"Bearer hf_tested"}


def test_a_server_without_ranges_is_refused_without_a_download(hub_server):
    write_llama_70b(hub_server.folder / "model.safetensors", {})
    hub_server.ignores_ranges = True
    with pytest.raises(RowsUnavailableError, match=r"org/m/model.safetensors: the server does not answer range"):
        open_embedding("org/m")
    assert hub_server.bytes_sent < 30_000_000  # what fits into socket buffers, of 2.1 GB


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "access refused"), (403, "access refused"), (404, "has no weights"), (451, "status 451")],
)
def test_a_refusing_server_is_one_line(hub_server, status, message):
    (hub_server.folder / "model.safetensors").write_bytes(b"")
    hub_server.statuses["model.safetensors"] = status
    with pytest.raises(RowsUnavailableError, match=message) as caught:
        open_embedding("org/m")
    assert "org/m" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_server_that_is_gone_is_one_line(hub_server, monkeypatch):
    monkeypatch.setattr("rmcli.backbones.hub.is_reachable", lambda endpoint: True)  # a moment ago
    monkeypatch.setattr("rmcli.backbones.weight_files.MAX_RETRIES", 0)
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(RowsUnavailableError, match=r"model.safetensors cannot be fetched"):
        open_embedding("org/m")


def test_off_line_is_one_line(monkeypatch):
    monkeypatch.setattr("rmcli.backbones.hub.is_reachable", lambda endpoint: False)
    with pytest.raises(RowsUnavailableError, match="the Hub cannot be reached and its cache has no copy"):
        open_embedding("org/never-cached")


def test_shards_are_found_by_the_index_over_the_network(hub_server):
    shard = {NAME: torch.arange(12.0).reshape(4, 3), "other": torch.zeros(1000, 100)}
    save_file(shard, hub_server.folder / "model-00002-of-00002.safetensors")
    index = {"weight_map": {"lm_head.weight": "gone", NAME: "model-00002-of-00002.safetensors"}}
    (hub_server.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_embedding("org/m").read([3, 0]).tolist() == [[9, 10, 11], [0, 1, 2]]


def test_a_pickle_is_not_read_over_the_network(hub_server):
    torch.save({NAME: torch.zeros(4, 3)}, hub_server.folder / "pytorch_model.bin")
    with pytest.raises(RowsUnavailableError, match="of which no part can be read over the network"):
        open_embedding("org/m")


def test_a_file_that_ends_early_on_the_server_is_damaged(hub_server):
    write_llama_70b(hub_server.folder / "model.safetensors", {})
    with (hub_server.folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(RmcliError, match=r"org/m/model.safetensors is damaged"):
        open_embedding("org/m").read([100_000])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "wte.weight", "model.tok_embeddings.weight"])
def test_every_precision_and_name(tmp_path, dtype, name):
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({name: table, "model.norm.weight": torch.ones(6)}, tmp_path / "model.safetensors")
    embedding = open_embedding(str(tmp_path))
    wanted = [49, 3, 4, 3, 0]
    assert embedding.num_rows == 50
    assert np.array_equal(embedding.read(wanted), table[wanted].float().numpy())


def test_local_rows_are_sought_and_neighbours_merged(tmp_path):
    write_llama_70b(tmp_path / "model.safetensors", {7: 3.0})
    embedding = open_embedding(str(tmp_path))
    before = embedding.bytes_read
    assert embedding.read([7, 6])[:, 0].tolist() == [3.0, 0.0]
    assert embedding.bytes_read - before == 2 * ROW_BYTES
    assert spans_of(np.array([1, 2, 5, 9]), 0) == [(1, 3), (5, 6), (9, 10)]
    assert spans_of(np.array([1, 2, 5, 9]), 2) == [(1, 6), (9, 10)]


def test_pytorch_files_and_their_index(tmp_path):
    table = torch.arange(12.0).reshape(4, 3)
    torch.save({"gpt_neox.embed_in.weight": table}, tmp_path / "part.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"gpt_neox.embed_in.weight": "part.bin"}})
    )
    embedding = open_embedding(str(tmp_path))
    assert embedding.read([2]).tolist() == [[6, 7, 8]]
    assert (embedding.num_rows, embedding.bytes_read) == (4, 12)


def test_a_gguf_gives_its_own_rows(gguf):
    """The rows of the quantized file, against the package's dequantization of the whole table."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    embedding = open_embedding(str(gguf))
    (tensor,) = (tensor for tensor in GGUFReader(gguf).tensors if tensor.name == "token_embd.weight")
    rows = embedding.read([16, 8, 100])
    assert (embedding.num_rows, embedding.bytes_read) == (49_152, 3 * 612)
    assert np.array_equal(rows, dequantize(tensor.data[:101], tensor.tensor_type)[[16, 8, 100]])
    assert np.array_equal(rows[0], rows[1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def no_json(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 20) + b"{" * 20)


def wrong_length(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**40) + path.read_bytes()[8:])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def wrong_shape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[50,6]", b"[60,6]"))


@pytest.mark.parametrize("damage", [cut, no_json, wrong_length, empty, wrong_shape])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_file({NAME: torch.ones(50, 6)}, path)
    damage(path)
    with pytest.raises(RmcliError, match="is damaged") as caught:
        open_embedding(str(tmp_path)).read([49])
    assert not isinstance(caught.value, RowsUnavailableError)
    assert str(path) in caught.value.message


def test_damaged_other_formats_are_one_line(tmp_path, gguf):
    (tmp_path / "cut.gguf").write_bytes(gguf.read_bytes()[:4_000_000])
    with pytest.raises(RmcliError, match=r"cut.gguf is damaged"):
        open_embedding(str(tmp_path / "cut.gguf"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(RmcliError, match=r"pytorch_model.bin cannot be read"):
        open_embedding(str(tmp_path))


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(RowsUnavailableError, match="has no weights"):
        open_embedding(str(tmp_path))
    save_file({"model.norm.weight": torch.ones(6)}, tmp_path / "model.safetensors")
    with pytest.raises(RowsUnavailableError, match="no tensor is named like an input embedding"):
        open_embedding(str(tmp_path))
    save_file({NAME: torch.ones(4, 6, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(RowsUnavailableError, match="stored as I8"):
        open_embedding(str(tmp_path))
