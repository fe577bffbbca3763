"""A connection on which the client must get on: headers and bodies that do not come are not waited for."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_MORE = 5.0  # seconds: a body that is late is answered by the application, in words


class Connection(H11Protocol):
    """uvicorn's, which waits for ever for a request that has begun, and for the first one.

    `seconds`: for the headers of a request, from the connection's start or the request's first byte; and for its
    body.
    """

    seconds = 30.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late: asyncio.TimerHandle | None = None
        self._is_first = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Run the clock while the client owes the rest of something."""
        waits_for_headers = self.conn.their_state is h11.IDLE and (self._is_first or bool(self.conn.trailing_data[0]))
        waits_for_body = self.conn.their_state is h11.SEND_BODY
        self._is_first = self._is_first and waits_for_headers
        if not (waits_for_headers or waits_for_body):
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds + _MORE * waits_for_body, self._give_up)
            self._for_headers = waits_for_headers
        elif self._for_headers and waits_for_body:  # the headers are there: the body has its own time
            self._stop()
            self._watch()

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            if self.conn.their_state is h11.IDLE:
                self.transport.write(_LATE)
            self.transport.close()
