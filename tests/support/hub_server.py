"""A local server that answers as the Hub does, and a large file to ask it for."""

import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

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

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that goes away
            super().handle_error(request, client_address)

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


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    point_at(server.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
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
