"""`rmcli serve` under load and under abuse, its clients beside it on the same machine.

    python benchmarks/serve.py --output serve.json

The model is the preset tiny's, trained for a few steps (its scores matter, not how good they are). What is told:

- load: 64 clients, 200 requests each, of 1 to 4 conversations (most of one, as slime sends them), through every
  protocol. Every score is held against `RewardModel`'s; WRONG is how far off is wrong.
- one at a time: the same server and the same requests, its queue limited to one request a batch. The two take turns;
  what is told is the median over turns, and how much processor time each took for a request, which a busy machine
  changes little.
- health: `/health` asked every 20 ms meanwhile, each time on a new connection. It must answer within the time of one
  batch and 100 ms; the time of one batch is that of the largest one, asked alone. `bare` is what a server that does
  nothing but answer takes beside it at the same time: what the machine itself adds.
- abuse: bodies of 16 MiB, 100,000 items, deep JSON, slow clients, wrong types, the reward token inside text, and more
  conversations than may wait, while others are served: which status each got, what became of the others' scores,
  and how far the server's memory rose above what it was after the load.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

import figures
from rmcli import RewardModel

WRONG = 1e-4  # float32, other additions: 1e-6 is usual
MIB = 2**20
RECEIVE_SECONDS = 3.0
TURNS = 5  # of the two servers: what else the machine does meets both
REWARD = "<|reserved_special_token_0|>"
END = "<|im_end|>"
FRONT, MIDDLE = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


# --- the model and its servers ---


def make_model(folder: Path) -> Path:
    """The preset tiny's model after a few steps."""
    data, run = folder / "data", folder / "run"
    rmcli = [sys.executable, "-m", "rmcli"]
    subprocess.run([*rmcli, "prepare", "tasks:600", "-q", "-p", "tiny", "-o", data, "--no-audit"], check=True)
    steps = ("-s", "train.max_steps=20", "-s", "train.max_epochs=9")
    subprocess.run([*rmcli, "train", "-q", "-p", "tiny", "--data", data, "-o", run, *steps], check=True)
    return run / "model"


@dataclass
class Serving:
    port: int
    process: psutil.Process

    @property
    def memory(self) -> float:
        """MiB resident."""
        return self.process.memory_info().rss / MIB

    @property
    def processor_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


@contextmanager
def server(model: Path, one_at_a_time: bool = False) -> Iterator[Serving]:
    """In a process of its own, with one thread for the model; at the end it must drain and exit with 0."""
    script = (
        [__file__, "--serve-one-at-a-time", str(model)] if one_at_a_time else ["-m", "rmcli", "serve", str(model)]
    )
    options = [] if one_at_a_time else ["-q", "--port", "0", "--receive-timeout", str(RECEIVE_SECONDS)]
    process = subprocess.Popen(
        [sys.executable, *script, *options],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    address = process.stdout.readline()
    try:
        yield Serving(int(address.rpartition(":")[2]), psutil.Process(process.pid))
    finally:
        process.terminate()
        process.stdout.close()
        if process.wait(60) != 0:
            raise SystemExit(f"the server ended with {process.returncode}")


def serve_one_at_a_time(model: Path) -> None:
    """The server, but that no two requests share a batch."""
    from rmcli.scorer.load import configuration_of
    from rmcli.serve.limits import Limits
    from rmcli.serve.queue import Queue
    from rmcli.serve.run import Place, run

    place = Place("127.0.0.1", 0, None)
    run(configuration_of(model), model, place, Limits(), partial(Queue, max_requests=1))


# --- what is asked ---


@dataclass(frozen=True)
class Request:
    path: str
    body: bytes
    scores: Sequence[float]  # that must come back

    def scores_of(self, reply: Any) -> list[float]:
        match self.path:
            case "/get_reward":
                return reply["rewards"]
            case "/classify":
                return [entry["probs"][0] for entry in reply["data"]]
            case "/v1/score/evaluation":
                return reply["scores"]
            case "/slime":
                return [reply]
        return [one["value"] for one in reply["scores"]]


def make_requests(model: Path, count: int, seed: int = 0) -> list[Request]:
    """Of mixed sizes and protocols, with the scores that Python gives."""
    draw = random.Random(seed)
    pairs = [(_question(draw), [_reply(draw) for _ in range(draw.choice([1, 1, 1, 1, 2, 4]))]) for _ in range(count)]
    reward_model = RewardModel.load(model)
    scored = [reward_model.score_responses(question, replies) for question, replies in pairs]
    values = [[score.value for score in scores] for scores in scored]
    assert all(value is not None for some in values for value in some)
    return [
        _request(draw.choice(["/score", "/get_reward", "/classify", "/v1/score/evaluation", "/slime"]), *pair, some)
        for pair, some in zip(pairs, values, strict=True)
    ]


def _question(draw: random.Random) -> str:
    return "Sort: " + " ".join(str(draw.randrange(10)) for _ in range(draw.choice([3, 6, 20])))


def _reply(draw: random.Random) -> str:
    return " ".join(str(draw.randrange(10)) for _ in range(draw.choice([3, 6, 20])))


def _request(path: str, question: str, replies: list[str], scores: list[Any]) -> Request:
    texts = [f"{FRONT}{question}{MIDDLE}{reply}<|im_end|>\n" for reply in replies]
    match path:
        case "/get_reward":
            body: Any = {"query": texts}
        case "/classify":
            body = {"input": texts, "use_activation": False}
        case "/v1/score/evaluation":
            body = {"model": "tiny", "messages": texts}
        case "/slime":
            body, scores = {"prompt": question, "response": replies[0], "label": None}, scores[:1]
        case _:
            body = {"prompt": question, "responses": replies}
    return Request(path, json.dumps(body).encode(), scores)


# --- clients ---

BARE = """
import asyncio
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 0\\r\\n\\r\\n")
    await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


class Connection:
    """HTTP/1.1 on one connection, kept open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        verb = "GET" if body is None else "POST"
        head = f"{verb} {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body or b'')}\r\n\r\n"
        writer.write(head.encode() + (body or b""))
        await writer.drain()
        return await read_reply(reader)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


@dataclass
class Load:
    """What clients saw. `busy`: answers that told them to come again, which they did."""

    seconds: float = 0.0
    requests: int = 0
    conversations: int = 0
    wrong: int = 0
    busy: int = 0
    largest_difference: float = 0.0
    processor: float = 0.0  # seconds that the server's process took
    last_rate: float = 0.0  # requests a second of the last turn
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def processor_ms(self) -> float:
        """Of the server's process, for each request."""
        return 1000 * self.processor / self.requests

    async def client(self, port: int, requests: Sequence[Request]) -> None:
        connection = Connection(port)
        for request in requests:
            status, content = await connection.ask(request.path, request.body)
            while status == 429:
                self.busy += 1
                await asyncio.sleep(0.2)
                status, content = await connection.ask(request.path, request.body)
            self.statuses[status] += 1
            self.requests += 1
            self.conversations += len(request.scores)
            found = request.scores_of(json.loads(content)) if status == 200 else []
            self._compare(found, request.scores)
        connection.close()

    def _compare(self, found: Sequence[float], wanted: Sequence[float]) -> None:
        if len(found) != len(wanted):
            self.wrong += len(wanted)
            return
        off = [abs(one - other) for one, other in zip(found, wanted, strict=True)]
        self.largest_difference = max([self.largest_difference, *off])
        self.wrong += sum(difference > WRONG for difference in off)

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 2),
            "requests_per_second": round(self.requests / self.seconds, 1),
            "conversations_per_second": round(self.conversations / self.seconds, 1),
            "processor_ms_per_request": round(self.processor_ms, 2),
            "requests": self.requests,
            "conversations": self.conversations,
            "wrong": self.wrong,
            "largest_difference": self.largest_difference,
            "statuses": dict(sorted(self.statuses.items())),
            "asked_again": self.busy,
        }


async def run_load(serving: Serving, requests: Sequence[Request], clients: int, each: int, load: Load) -> None:
    before, started, processor = load.requests, time.perf_counter(), serving.processor_seconds
    turns = [
        [requests[(before + number * 37 + turn) % len(requests)] for turn in range(each)] for number in range(clients)
    ]
    await asyncio.gather(*(load.client(serving.port, turn) for turn in turns))
    seconds = time.perf_counter() - started
    load.seconds += seconds
    load.processor += serving.processor_seconds - processor
    load.last_rate = (load.requests - before) / seconds


class Health:
    """`/health`, asked again and again in a thread of its own, and the server's memory with it."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()))
        self.seconds: list[float] = []
        self.bare: list[float] = []
        self.most_memory = 0.0

    async def _ask(self) -> None:
        bare = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True)
        assert bare.stdout is not None
        port = int(bare.stdout.readline())
        while not self._ends.is_set():
            self.seconds.append(await self._asked(self._serving.port))
            self.bare.append(await self._asked(port))
            self.most_memory = max(self.most_memory, self._serving.memory)
            await asyncio.sleep(0.02)
        bare.kill()
        bare.stdout.close()
        bare.wait()

    async def _asked(self, port: int) -> float:
        connection, started = Connection(port), time.perf_counter()
        status, _ = await connection.ask("/health")
        connection.close()
        return time.perf_counter() - started if status == 200 else float("inf")

    def __enter__(self) -> "Health":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"asked": len(self.seconds)}
        for prefix, seconds in (("", sorted(self.seconds)), ("bare_", sorted(self.bare))):
            some = {"median": median(seconds), "p99": seconds[int(0.99 * (len(seconds) - 1))], "largest": seconds[-1]}
            found |= {prefix + name: round(1000 * value, 1) for name, value in some.items()}
        return found


async def one_batch(port: int) -> float:
    """Seconds of the largest batch, asked alone: a request of many long conversations, by the server's own clock."""
    texts = [f"{FRONT}Sort: {number} {'7 ' * 100}{MIDDLE}{'1 ' * 10}" for number in range(400)]
    connection = Connection(port)
    status, content = await connection.ask("/classify", json.dumps({"input": texts}).encode())
    assert status == 200, content
    _, before = await connection.ask("/metrics")
    await connection.ask("/classify", json.dumps({"input": texts}).encode())
    _, after = await connection.ask("/metrics")
    connection.close()
    sums, counts = (
        [_metric(page, f"rmcli_batch_seconds_{what}") for page in (before, after)] for what in ("sum", "count")
    )
    return (sums[1] - sums[0]) / (counts[1] - counts[0])


def _metric(page: bytes, name: str) -> float:
    (line,) = [line for line in page.decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


# --- abuse ---


async def sent(port: int, content: bytes) -> int:
    """The status of what is sent as it is; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        await writer.drain()
        return (await read_reply(reader))[0]
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0
    finally:
        writer.close()


def _post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def _chunked(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


async def trickled(port: int, content: bytes) -> int:
    """A byte every tenth of a second, then nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reply = asyncio.ensure_future(read_reply(reader))
    try:
        for at in range(len(content)):
            if reply.done():
                break
            writer.write(content[at : at + 1])
            await asyncio.sleep(0.1)
        return (await asyncio.wait_for(reply, 30))[0]
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0
    finally:
        reply.cancel()
        writer.close()


HUGE = b'{"query": ["' + b"a" * (16 * MIB) + b'"]}'
RENDERED = f"{FRONT}Sort: 3 1 2{MIDDLE}"
ABUSES: dict[str, tuple[bytes, int]] = {
    "16 MiB, announced": (_post("/get_reward", HUGE), 413),
    "16 MiB, in chunks": (_chunked("/get_reward", HUGE), 413),
    "100,000 texts": (_post("/get_reward", json.dumps({"query": ["a"] * 100_000}).encode()), 413),
    "a million empty lists": (_post("/classify", b'{"input": [' + b"[]," * 1_000_000 + b"[]]}"), 413),
    "JSON 100,000 deep": (_post("/score", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 422),
    "a text of 4 MB": (_post("/get_reward", json.dumps({"query": ["7 " * 2_000_000]}).encode()), 422),
    "1,000 texts of 4,000 characters": (
        _post("/get_reward", json.dumps({"query": ["7 " * 2000] * 1000}).encode()),
        422,
    ),
    "a number among texts": (_post("/get_reward", b'{"query": ["a", 5]}'), 422),
    "600,000 numbers for conversations": (_post("/score", b'{"conversations": [' + b"1," * 600_000 + b"1]}"), 422),
    "20,000 unknown fields": (_post("/slime", json.dumps({f"x{n}": n for n in range(20_000)}).encode()), 422),
    "200,000 ends of a turn": (
        _post("/get_reward", json.dumps({"query": [f"{RENDERED}1{END * 200_000}"]}).encode()),
        422,
    ),
    "no JSON": (_post("/score", b"{"), 422),
    "the reward token inside": (
        _post("/get_reward", json.dumps({"query": [f"{RENDERED}1 {REWARD} 2"]}).encode()),
        422,
    ),
    "BOS twice": (_post("/classify", json.dumps({"input": f"<|im_start|>{RENDERED}1"}).encode()), 422),
}
SLOW = {
    "slow headers": b"POST /score HTTP/1.1\r\nhost: bench\r\n" + b"x" * 200,
    "slow body": b"POST /score HTTP/1.1\r\ncontent-length: 999\r\n\r\n" + b"x" * 200,
    "nothing at all": b"",
}


async def run_abuse(port: int, rounds: int, at_once: int) -> dict[str, dict[str, Any]]:
    """Per abuse the statuses it got, and the one that it should get."""
    found: dict[str, Counter[int]] = {name: Counter() for name in [*ABUSES, *SLOW, "a flood"]}

    async def one(name: str) -> None:
        found[name][await sent(port, ABUSES[name][0])] += 1

    async def slow(name: str) -> None:
        found[name][await trickled(port, SLOW[name])] += 1

    slowly = [asyncio.ensure_future(slow(name)) for name in SLOW for _ in range(at_once)]
    for _ in range(rounds):
        for name in ABUSES:
            await asyncio.gather(*(one(name) for _ in range(at_once)))
    await asyncio.gather(*slowly)
    flood = _post("/get_reward", json.dumps({"query": [f"{RENDERED}{number}" for number in range(1024)]}).encode())
    for status in await asyncio.gather(*(sent(port, flood) for _ in range(32))):
        found["a flood"][status] += 1
    wanted = {**{name: [status] for name, (_, status) in ABUSES.items()}, **{name: [408] for name in SLOW}}
    wanted["a flood"] = [200, 429]
    return {name: {"statuses": dict(sorted(some.items())), "wanted": wanted[name]} for name, some in found.items()}


async def load_and_abuse(port: int, requests: Sequence[Request], rounds: int, at_once: int) -> tuple[Load, Any]:
    """Abuse while 8 clients are served; they go on until it is over."""
    load, started = Load(), time.perf_counter()
    abuse = asyncio.ensure_future(run_abuse(port, rounds, at_once))

    async def until_over(number: int) -> None:
        turn = number
        while not abuse.done():
            await load.client(port, [requests[(turn := turn + 1) % len(requests)]])

    await asyncio.gather(abuse, *(until_over(number) for number in range(8)))
    load.seconds = time.perf_counter() - started
    return load, abuse.result()


# --- the report ---


def measure(model: Path, clients: int, each: int, rounds: int, at_once: int) -> dict[str, Any]:
    requests = make_requests(model, 400)
    with server(model, one_at_a_time=True) as slow, server(model) as serving:
        batch = asyncio.run(one_batch(serving.port))
        asyncio.run(run_load(slow, requests, clients, 2, Load()))  # warm
        asyncio.run(run_load(serving, requests, clients, 2, Load()))
        alone, load = Load(), Load()
        ratios: list[float] = []
        with Health(serving) as health:
            for number in range(TURNS):
                asyncio.run(run_load(slow, requests, clients, max(each // TURNS // 4, 1), alone))
                asyncio.run(run_load(serving, requests, clients, each // TURNS + (number < each % TURNS), load))
                ratios.append(load.last_rate / alone.last_rate)
        before = serving.memory
        with Health(serving) as abused:
            beside, abuse = asyncio.run(load_and_abuse(serving.port, requests, rounds, at_once))
    return {
        "load": load.as_dict(),
        "one_at_a_time": alone.as_dict(),
        "times_one_at_a_time": round(median(ratios), 2),
        "times_by_turn": [round(ratio, 2) for ratio in ratios],
        "times_by_processor_time": round(alone.processor_ms / load.processor_ms, 2),
        "one_batch_ms": round(1000 * batch, 1),
        "health_under_load_ms": health.as_dict(),
        "abuse": abuse,
        "beside_abuse": beside.as_dict(),
        "health_under_abuse_ms": abused.as_dict(),
        "memory_mib": {"after_load": round(before, 1), "rise_under_abuse": round(abused.most_memory - before, 1)},
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What must not be, whatever else the machine does."""
    wrong = [name for name in ("load", "one_at_a_time", "beside_abuse") if found[name]["wrong"]]
    said = [f"{name}: {found[name]['wrong']} wrong scores" for name in wrong]
    for name, one in found["abuse"].items():
        if not set(one["statuses"]) <= set(one["wanted"]):
            said.append(f"{name}: {one['statuses']}, wanted {one['wanted']}")
    if found["memory_mib"]["rise_under_abuse"] > 50:
        said.append(f"memory rose by {found['memory_mib']['rise_under_abuse']} MiB under abuse, limit 50")
    return said


def slow_faults(found: dict[str, Any]) -> list[str]:
    """What a machine that does other things as well may miss."""
    said = []
    if found["times_one_at_a_time"] < 2:
        said.append(f"{found['times_one_at_a_time']} times one at a time, goal 2")
    for name in ("health_under_load_ms", "health_under_abuse_ms"):
        if found[name]["largest"] > found["one_batch_ms"] + 100:
            said.append(f"{name}: {found[name]['largest']}, goal {found['one_batch_ms'] + 100:.1f}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description="rmcli serve under load and abuse; see the head of this file.")
    parser.add_argument("--model", type=Path, help="a model folder of the preset tiny; else one is made")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=200, help="of each client")
    parser.add_argument("--rounds", type=int, default=2, help="of all abuses")
    parser.add_argument("--at-once", type=int, default=4, help="of each abuse")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--serve-one-at-a-time", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_one_at_a_time:
        serve_one_at_a_time(arguments.serve_one_at_a_time)
        return
    report = figures.heading("serve.py")
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or make_model(Path(folder))
        found = measure(model, arguments.clients, arguments.requests, arguments.rounds, arguments.at_once)
    print(json.dumps(found, indent=2))
    for fault in (said := faults(found) + slow_faults(found)):
        print(f"not as it must be: {fault}")
    figures.write(arguments.output, {**report, **found, "faults": said})
    sys.exit(bool(faults(found)))


if __name__ == "__main__":
    main()
