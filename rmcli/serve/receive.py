"""A request's body off the wire: no more bytes than agreed, of one request and of all, and no slower."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rmcli.serve.limits import MIB, Limits
from rmcli.serve.refusal import Refused, too_busy

_AT_ONCE = 4  # bodies of the largest size that may be held at the same time


class Gone(Exception):
    """The client has closed its connection: nobody waits for an answer."""


class Receiver:
    """Reads bodies, and counts the bytes that all requests hold together. Of one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    @asynccontextmanager
    async def body_of(self, receive: Any, content_length: str | None) -> AsyncIterator[bytearray]:
        """The whole body; its bytes count as held inside. Raises Refused (408, 413, 429) and Gone."""
        self._check_announced(content_length)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self.limits.receive_seconds):
                    await self._read(receive, body)
            except TimeoutError:
                raise Refused(
                    408,
                    f"the request was not sent within {self.limits.receive_seconds:g} s: {len(body):,} bytes came",
                    "send it at once, or start the server with a larger --receive-timeout",
                    headers={"Connection": "close"},
                ) from None
            yield body
        finally:
            self.held -= len(body)

    def _check_announced(self, content_length: str | None) -> None:
        """A body that says that it is too large is not read."""
        if content_length is not None and content_length.isdecimal() and int(content_length) > self.limits.max_body:
            raise self._too_large(f"{int(content_length):,} bytes")

    async def _read(self, receive: Any, body: bytearray) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(chunk) > self.limits.max_body:
                raise self._too_large("more bytes")
            if self.held + len(chunk) > _AT_ONCE * self.limits.max_body:
                raise too_busy(f"{self.held / MIB:.1f} MiB of requests are being read", 1)
            body += chunk
            self.held += len(chunk)

    def _too_large(self, size: str) -> Refused:
        return Refused(
            413,
            f"the body has {size}, the limit is {self.limits.max_body:,}",
            "split the request, or start the server with a larger --max-body",
        )
