"""A server in a thread of this process, and clients that speak HTTP as it is written down."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from rmcli.logs import as_library
from rmcli.records import Message
from rmcli.scorer.load import configuration_of, load_encoder, load_scorer
from rmcli.serve.limits import Limits
from rmcli.serve.queue import Queue
from rmcli.serve.run import Place, Server, bound, load_service
from rmcli.ship import golden
from support.places import REPOSITORY

WRITTEN_BEFORE = REPOSITORY / "tests" / "written_before" / "model"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Running:
    server: Server
    port: int

    @property
    def service(self) -> Any:
        return self.server._service

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Reply:
        """`body`: JSON, or bytes as they are. Names of headers with `_` for `-`."""
        return ask(self.port, path, body, method, **headers)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


def ask(port: int, path: str, body: Any = None, method: str | None = None, **headers: str) -> Reply:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    connection.request(method, path, content, {name.replace("_", "-"): value for name, value in headers.items()})
    reply = connection.getresponse()
    found = Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read().decode())
    connection.close()
    return found


def with_golden(folder: Path, source: Path = WRITTEN_BEFORE) -> Path:
    """A model folder as an export has it: with the scores of golden conversations."""
    shutil.copytree(source, folder)
    config = configuration_of(folder, settings=["model.use_varlen_attn=false"]).config
    encoder = load_encoder(config)
    network = load_scorer(config, encoder).runner.network
    talks = [talk for talk in golden.conversations() if len(str(talk)) < 300]
    golden.write(folder, golden.score(network, encoder, encoder.reward.tokenizer.chat_template, talks))
    return folder


class Watched(Queue):
    """Notes its batches; each takes as long as it is told to."""

    def __init__(self, *arguments, seconds=0.0, fails=(), **options):
        super().__init__(*arguments, **options)
        self.batches, self._seconds, self._fails = [], seconds, fails

    def _forward(self, sides):
        self.batches.append(len(sides))
        time.sleep(self._seconds)
        if len(self.batches) in self._fails:
            raise RuntimeError("a kernel failed")
        return super()._forward(sides)


@contextmanager
def serving(
    folder: Path,
    limits: Limits | None = None,
    token: str | None = None,
    settings: tuple[str, ...] = (),
    queue: Any = Queue,
) -> Iterator[Running]:
    """A server of the folder; at the end it is drained."""
    limits, place = limits or Limits(), Place("127.0.0.1", 0, token)
    with as_library():
        service = load_service(configuration_of(folder, settings=settings), folder, limits, queue)
    listener = bound(place)
    server = Server(service, place, limits)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(server, listener.getsockname()[1])
    finally:
        assert server.loop is not None
        if not server.should_exit:
            server.loop.call_soon_threadsafe(server.drain)
        thread.join(30)
        assert not thread.is_alive()
        listener.close()


def talk(*texts: str) -> list[Message]:
    return [Message(role=("user", "assistant")[number % 2], content=text) for number, text in enumerate(texts)]
