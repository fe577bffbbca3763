"""Windows shared out among processes: the first one reads and writes, each of them scores."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from rmcli.parallel import world
from rmcli.parallel.collectives import gather, on_first, together

Window = TypeVar("Window")
Scores = TypeVar("Scores")


def scored(windows: Iterator[Window], score: Callable[[Window], Scores]) -> Iterator[tuple[Window, Scores]]:
    """Each window with its scores, in order, on the first process; the others score beside it and give nothing.

    What is scored together is the same on any number of processes. `windows` is read on the first one alone, and as
    many of them at a time as there are processes. Raises on all where one fails.
    """
    while taken := on_first(lambda: list(islice(windows, world.size()))):
        own = taken[world.rank()] if world.rank() < len(taken) else None
        with together():
            mine = None if own is None else score(own)
        found = gather(mine)
        if world.is_first():
            for window, scores in zip(taken, found, strict=False):  # the last windows may be fewer than processes
                assert scores is not None
                yield window, scores
