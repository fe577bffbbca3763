"""Talk of a library: to Python's logging, under the name `rmcli`; the streams are another program's."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_logger = logging.getLogger("rmcli")
_logger.addHandler(logging.NullHandler())  # else Python prints warnings of a program that has set up no logging
_is_library: ContextVar[bool] = ContextVar("rmcli_is_library", default=False)


@contextmanager
def as_library() -> Iterator[None]:
    """Inside, in this thread, what would be said on stderr is logged."""
    token = _is_library.set(True)
    try:
        yield
    finally:
        _is_library.reset(token)


def is_library() -> bool:
    return _is_library.get()


def logged(level: int, text: str) -> bool:
    """Log the text, inside `as_library`; returns whether that is so."""
    if is_library():
        _logger.log(level, text)
    return is_library()
