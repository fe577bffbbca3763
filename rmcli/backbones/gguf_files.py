"""The package gguf, made quick: it cuts each of a vocabulary's texts out of a `numpy.memmap`, seconds per file.

Cutting the same bytes out of a plain array takes a third of that. transformers asks for the reader anew in each call,
so that it can be given this one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gguf import GGUFReader


@cache
def quick_reader() -> "type[GGUFReader]":
    """gguf's own reader, over a plain view of the mapped file. Raises ImportError where gguf is not installed."""
    from gguf import GGUFReader

    class QuickReader(GGUFReader):
        def _get(self, *args: Any, **kwargs: Any) -> np.ndarray:
            self.data = self.data.view(np.ndarray)  # each slice of a memmap is made a memmap again
            return super()._get(*args, **kwargs)

    return QuickReader


@contextmanager
def read_quickly() -> Iterator[None]:
    """Inside, whoever imports `gguf.GGUFReader` gets the quick one. Nothing happens where gguf is not installed."""
    try:
        import gguf
    except ImportError:
        yield
        return
    original = gguf.GGUFReader
    gguf.GGUFReader = quick_reader()
    try:
        yield
    finally:
        gguf.GGUFReader = original
