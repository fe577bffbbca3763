"""Functions run on N gloo processes at once, which fail with the error of the process that failed.

Processes stay for the next call of as many: what they import is imported once. After a failure all of them end.
"""

import atexit
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PATIENCE = 240.0  # seconds of one call
_PRELOADED = ["torch", "transformers", "rmcli.model.load", "support.ranks"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


class RankFailed(AssertionError):
    """Carries what the process that failed first said."""


class Ranks:
    """N processes of one thread each, joined by gloo."""

    def __init__(self, number: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(number):
            here, there = _context.Pipe()
            process = _context.Process(target=_serve, args=(there, rank, number, store), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)` gave on each, by rank. Raises RankFailed."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results: dict[int, Any] = {}
        until = time.monotonic() + PATIENCE
        while len(results) < len(self._pipes):
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = wait(waiting, max(0.0, until - time.monotonic()))
            if not ready:
                self.end()
                raise RankFailed(f"ranks {sorted(set(range(len(self._pipes))) - set(results))} never came back")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    failed, value = pipe.recv()
                except EOFError:
                    failed, value = True, "ended without a word"
                if failed:
                    self.end()
                    raise RankFailed(f"rank {rank} of {len(self._pipes)}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(len(self._pipes))]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        _running.pop(len(self._pipes), None)
        self._folder.cleanup()


_running: dict[int, Ranks] = {}


def on_ranks(number: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)`, of a module that can be imported, gives on each of `number` gloo processes."""
    if number not in _running:
        _running[number] = Ranks(number)
    return _running[number].run(function, *arguments)


@atexit.register
def _end_all() -> None:
    for ranks in list(_running.values()):
        ranks.end()


def _serve(pipe: Connection, rank: int, number: int, store: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=number)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (False, function(*arguments))
        except BaseException:  # noqa: BLE001 (whatever it is; torch's CheckpointException is no Exception)
            answer = (True, traceback.format_exc())
        pipe.send(answer)
