"""Rows of an input embedding: from files by seeking, from a server by ranges, never the whole."""

import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rmcli.backbones.embedding_rows import open_embedding, spans_of
from rmcli.backbones.weight_files import RowsUnavailableError
from rmcli.errors import RmcliError

NAME = "model.embed_tokens.weight"
NUM_ROWS, WIDTH = 128_256, 8_192  # Llama-3 70B
ROW_BYTES = 2 * WIDTH


class Server(ThreadingHTTPServer):
    """Serves a folder as https://huggingface.co/org/name/resolve/main/FILE would be, and counts body bytes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.bytes_sent, self.num_requests = folder, 0, 0
        self.statuses: dict[str, int] = {}
        self.ignores_ranges = False
        self.authorizations: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        file = self.path.partition("/resolve/main/")[2]
        path = self.server.folder / file
        status = self.server.statuses.get(file, 200 if file and path.is_file() else 404)
        if file:  # the client also asks for other things, without a token
            self.server.authorizations.add(self.headers["Authorization"])
        if status != 200:
            return self._send(status, b"", {"X-Error-Code": "EntryNotFound"} if status == 404 else {}, with_body)
        size = path.stat().st_size
        headers = {"X-Repo-Commit": "0" * 40, "ETag": f'"{file}"'}
        wanted = self.headers["Range"]
        if wanted is None or self.server.ignores_ranges:
            if size > 2**27:
                return self._send_endless(size)
            return self._send(200, path.read_bytes(), headers, with_body)
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        if first >= size:
            return self._send(416, b"", {}, with_body)
        with path.open("rb") as opened:
            opened.seek(first)
            data = opened.read(last - first + 1)
        headers["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{size}"
        return self._send(206, data, headers, with_body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        with self.server.lock:
            self.server.num_requests += "/resolve/" in self.path
            self.server.bytes_sent += len(data) * with_body
        if with_body:
            self.wfile.write(data)

    def _send_endless(self, size: int) -> None:
        """The whole file, for as long as the other side takes it."""
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.close_connection = True
        try:
            for _ in range(0, size, 2**16):
                self.wfile.write(bytes(2**16))
                with self.server.lock:
                    self.server.bytes_sent += 2**16
        except ConnectionError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


def _point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub_server(tmp_path, monkeypatch):
    """A server of tmp_path/remote; the Hub's endpoint and cache are replaced by it."""
    from huggingface_hub import close_session, constants

    (tmp_path / "remote").mkdir()
    server = Server(tmp_path / "remote")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    _point_at(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_tested")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def bfloat16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


def write_llama_70b(path: Path, filled: dict[int, float]) -> None:
    """A file of Llama-3 70B's embedding shape. It is sparse: only the rows in `filled` take space on disk."""
    size = NUM_ROWS * ROW_BYTES
    header = json.dumps({NAME: {"dtype": "BF16", "shape": [NUM_ROWS, WIDTH], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        start = file.tell()
        file.truncate(start + size)
        for row, value in filled.items():
            file.seek(start + row * ROW_BYTES)
            file.write(bfloat16(value) * WIDTH)


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
    monkeypatch.setattr("rmcli.backbones.weight_files.MAX_RETRIES", 0)
    _point_at("http://127.0.0.1:9", monkeypatch)
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
