"""From a request to its answer: received, read, scored, written; each step in its own place."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from math import exp
from typing import Any, TypeVar

from starlette.requests import Request

from rmcli.scorer.scorer import Score, Scorer
from rmcli.serve.json_body import parse
from rmcli.serve.limits import Limits
from rmcli.serve.metrics import Metrics
from rmcli.serve.protocols.known import ANY_ERROR, ERROR_HINTS, FIELD_HINTS
from rmcli.serve.protocols.protocol import Answer, Body, Protocol, Served, validated
from rmcli.serve.queue import Queue
from rmcli.serve.reading import Asked, Reader
from rmcli.serve.ready import Golden, Ready
from rmcli.serve.receive import Gone, Receiver
from rmcli.serve.refusal import Refused, shown, too_busy

_NAMED = 3  # conversations that an error line names; its `items` has them all
Found = TypeVar("Found")
MakeQueue = Callable[[Scorer, int, Metrics], Queue]


class Service:
    """One model, its queue and its counts. Of one event loop; `active`: requests that are being answered."""

    def __init__(
        self,
        scorer: Scorer,
        reader: Reader,
        served: Served,
        golden: Golden,
        limits: Limits,
        reading_threads: int = 1,
        make_queue: MakeQueue = Queue,
    ) -> None:
        self.limits, self.served, self.reader = limits, served, reader
        self.metrics = Metrics()
        self.queue = make_queue(scorer, limits.max_queue, self.metrics)
        self.ready = Ready(golden, reader, self.queue)
        self.receiver = Receiver(limits)
        self.is_draining = False
        self.active = 0
        self._threads = ThreadPoolExecutor(reading_threads, thread_name_prefix="rmcli-read")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside, what is asked is scored."""
        scoring = asyncio.create_task(self.queue.run())
        try:
            yield
        finally:
            scoring.cancel()
            with suppress(asyncio.CancelledError):
                await scoring
            self.queue.close()
            self._threads.shutdown(cancel_futures=True)

    async def answer(self, protocol: Protocol, request: Request) -> Any:
        """What the request is answered with. Raises Refused, and Gone where nobody waits for it."""
        if self.is_draining:
            headers = {"Retry-After": "5", "Connection": "close"}
            raise Refused(503, "the server is shutting down", "send it to another, or again later", headers=headers)
        packed = request.headers.get("content-encoding", "identity")
        if packed != "identity":
            raise Refused(415, f"the body is packed: Content-Encoding {shown(packed)}", "send JSON as it is")
        async with self.receiver.body_of(request.receive, request.headers.get("content-length")) as content:
            until = asyncio.get_running_loop().time() + self.limits.score_seconds
            body, asked = await self._waited(until, request, self._read(protocol, content))
        scores = await self._waited(until, request, self.queue.score(asked.sides, self.limits.score_seconds))
        self._count(scores)
        _check_errors(protocol, scores)
        values = [self._value(score, asked) for score in scores]
        return protocol.write(body, Answer(self.served, scores, values, asked.num_tokens))

    async def _waited(self, until: float, request: Request, work: Coroutine[Any, Any, Found]) -> Found:
        """What the work finds, given up where its client is Gone or (Refused, 429) its time is over."""
        try:
            async with asyncio.timeout_at(until):
                return await _unless_gone(request, work)
        except TimeoutError:
            raise too_busy(f"not scored within {self.limits.score_seconds:g} s", self.queue.seconds_left()) from None

    async def _read(self, protocol: Protocol, content: bytearray) -> tuple[Body, Asked]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._asked, protocol, content)

    def _asked(self, protocol: Protocol, content: bytearray) -> tuple[Body, Asked]:
        """In a thread: tokenizing takes long."""
        body = validated(protocol, parse(content, self.limits.max_values), FIELD_HINTS)
        if body.num_items > self.limits.max_items:
            raise self._too_many("conversations", body.num_items, self.limits.max_items, "--max-items")
        asked = protocol.read(body, self.reader)
        if asked.num_tokens > self.limits.max_tokens:
            raise self._too_many("tokens", asked.num_tokens, self.limits.max_tokens, "--max-tokens")
        return body, asked

    def _too_many(self, what: str, count: int, limit: int, option: str) -> Refused:
        return Refused(
            413,
            f"the request has {count:,} {what}, the limit is {limit:,}",
            f"split it, or start the server with a larger {option}",
        )

    def _value(self, score: Score, asked: Asked) -> float | None:
        if score.value is None or not (asked.activation and self.served.applies_sigmoid):
            return score.value
        return 1 / (1 + exp(-score.value)) if score.value >= 0 else exp(score.value) / (1 + exp(score.value))

    def _count(self, scores: list[Score]) -> None:
        for score in scores:  # a reason's first word: what may follow it is the client's own
            self.metrics.conversations["scored" if score.error is None else score.error.split()[0]] += 1


def _check_errors(protocol: Protocol, scores: list[Score]) -> None:
    """Raise Refused where a conversation has no score and the protocol has no place to say so."""
    errors = [(index, score.error) for index, score in enumerate(scores) if score.error is not None]
    if not errors or protocol.tells_errors:
        return
    named = ", ".join(f"[{index}] {error}" for index, error in errors[:_NAMED])
    more = f" and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    raise Refused(
        422,
        f"{protocol.path}: {len(errors)} of {len(scores)} conversations have no score: {named}{more}",
        ERROR_HINTS.get(errors[0][1].split()[0], ANY_ERROR),
        errors,
    )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Found]) -> Found:
    """What the work finds; it is given up as soon as the client closes its connection."""
    found = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({found, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise Gone
        return found.result()
    finally:
        found.cancel()
        gone.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
