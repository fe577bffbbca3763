"""A server's life: the model is loaded and proven, then it listens; a signal lets it finish what it holds."""

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvicorn

from rmcli import output
from rmcli.config.files import read_json
from rmcli.config.layers import Resolved
from rmcli.errors import ENDING_SIGNALS, ConfigError
from rmcli.scorer.load import load_encoder, load_scorer
from rmcli.scorer.scorer import Scorer
from rmcli.serve.app import build_app
from rmcli.serve.connection import Connection
from rmcli.serve.limits import Limits
from rmcli.serve.protocols.protocol import Served
from rmcli.serve.reading import Reader
from rmcli.serve.ready import Golden
from rmcli.serve.service import MakeQueue, Queue, Service

_CHARACTERS = 200_000  # of a conversation, or 16 for each token of max_length: tokenizing takes 100 bytes for each
_KEEP_ALIVE = 75  # seconds that a connection may do nothing: clients keep them between steps of training


@dataclass(frozen=True)
class Place:
    """Where it listens. Port 0 is any that is free. `token`: what clients must send; None is nothing."""

    host: str
    port: int
    token: str | None


def run(
    resolved: Resolved,
    folder: Path,
    place: Place,
    limits: Limits,
    make_queue: MakeQueue = Queue,
    announce: Callable[[str], None] = output.answer,
) -> None:
    """Serve until a signal comes and all that was asked is answered.

    `announce` is told the address once it can be asked.

    Raises ConfigError for a place where nothing can listen, RmcliError for a model that is not what it was.
    """
    # Requests are small: tokenizers' threads for each of them cost more than they save, and cores are the model's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    listener = bound(place)
    with listener:
        service = load_service(resolved, folder, limits, make_queue)
        server = Server(service, place, limits)
        # What is loaded stays to the end. Looking through it again would hold up every answer for half a second.
        gc.collect()
        gc.freeze()
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        output.say(f"serving {folder}: {address}/docs; Ctrl-C or SIGTERM ends it once all is answered")
        output.doing(None)
        server.run_until_drained(listener, lambda: announce(address))


def bound(place: Place) -> socket.socket:
    """Taken before the model is loaded: a port in use is said at once."""
    with ExitStack() as closing:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)[
                0
            ]
            listener = closing.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {place.host}:{place.port}: {error.strerror}", "--port 0 takes any free port"
            ) from None
        closing.pop_all()
    return listener


def load_service(resolved: Resolved, folder: Path, limits: Limits, make_queue: MakeQueue = Queue) -> Service:
    """The model, proven to give its golden scores. Raises RmcliError where it does not."""
    config = resolved.config
    encoder = load_encoder(config)
    most = max(_CHARACTERS, 16 * config.data.max_length)
    encoder = replace(encoder, max_characters=min(encoder.max_characters, most))
    scorer = load_scorer(config, encoder)
    reader = Reader(encoder, config.data.allow_no_prompt)
    golden = Golden.of(folder, _dtype_of(scorer))
    golden.check(scorer, reader)
    if not golden.lines:
        output.warn("the folder has no golden.jsonl: nothing says which scores it should give")
    threads = max(1, (os.cpu_count() or 1) // 4)
    return Service(scorer, reader, _served(folder), golden, limits, threads, make_queue)


def _dtype_of(scorer: Scorer) -> str:
    """What the arithmetic of a score is done in, as far as golden scores can tell."""
    dtype = scorer.runner.dtype
    weights = str(scorer.runner.network.dtype).removeprefix("torch.")
    on_gpu = scorer.runner.network.device.type != "cpu"
    return weights if dtype == "auto" and not on_gpu else "bfloat16" if dtype == "auto" else dtype


def _served(folder: Path) -> Served:
    config = read_json(folder / "config.json")
    labels: dict[str, Any] = config.get("id2label") or {}
    return Served(folder.absolute().name, labels.get("0", "LABEL_0"), config.get("problem_type") != "regression")


class Server(uvicorn.Server):
    """uvicorn's, which a first signal lets finish; at a second one the process is left."""

    def __init__(self, service: Service, place: Place, limits: Limits) -> None:
        connection = type("TimedConnection", (Connection,), {"seconds": limits.receive_seconds})
        super().__init__(
            uvicorn.Config(
                build_app(service, place.token),
                http=connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
            )
        )
        self._service = service
        self._announce: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None  # once it has started
        self._draining: asyncio.Task[None] | None = None

    def run_until_drained(self, listener: socket.socket, announce: Callable[[], None]) -> None:
        self._announce = announce
        self.run([listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._announce()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals that are ignored (nohup) stay so; in a thread of a program they are the program's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = [getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        for number in taken:
            loop.add_signal_handler(number, self.told_to_end, signal.Signals(number).name)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)
                with suppress(TypeError):
                    signal.signal(number, before[number])

    def told_to_end(self, name: str) -> None:
        """By a signal. Told again, the process is left: threads that read and score are not waited for."""
        if self._draining is None:
            self.drain()
            return
        try:
            os.write(2, f"error: {name} once more: left at once, before all was answered\n".encode())
        finally:
            os._exit(ENDING_SIGNALS[name])

    def drain(self) -> None:
        """Answer what is asked already and refuse what comes."""
        if self._draining is not None:
            return
        self._service.is_draining = True
        output.say("draining: what was asked is answered, then the server ends")
        self._draining = asyncio.get_running_loop().create_task(self._exit_when_idle())

    async def _exit_when_idle(self) -> None:
        while self._service.active:
            await asyncio.sleep(0.05)
        self.should_exit = True
