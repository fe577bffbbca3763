"""Runs jobs in forked children and kills them. Imports once: a fork takes milliseconds, a fresh rmcli seconds.

Each line of stdin is a job, each line of stdout what became of it:
{"write": DIR, "marker": TEXT, "overwrite": BOOL, "exchange": BOOL} writes a small set, {"command": [...]} runs the
command line. `kill_at`: SIGKILL before the n-th call that changes the disk; `kill_after`: after so many seconds.
The answer: exit status (-9 when killed), calls that change the disk, seconds.
"""

import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from rmcli.cli import app
from rmcli.config.resolve import resolve
from rmcli.packs import staging
from rmcli.packs.writer import PackWriter
from rmcli.records import Pack, Reject, TokenGroup
from rmcli.tokens.tokenizer import load_tokenizer


def write_set(folder: Path, marker: str, overwrite: bool) -> None:
    """Five rows; the marker decides what is in them."""
    ids = np.frombuffer(marker.encode(), dtype=np.uint8).astype(np.int32)
    rows = [Pack((TokenGroup(ids, (ids[:1], ids[:2]), row_id=number),)) for number in range(5)]
    with PackWriter(folder, overwrite) as writer:
        writer.add_packs("train", rows[:4])
        writer.add_packs("eval", rows[4:])
        writer.add_reject(Reject("bad_json", "a.jsonl", 3, marker))
        writer.finish({"marker": marker})


class Interrupted:
    """Counts the calls that change what is on the disk and runs `act` before number `at`, counted from 0."""

    def __init__(
        self, at: int | None, act: Callable[[], None], patch: Callable = setattr, removing: bool = True
    ) -> None:
        self.count, self.at, self.act = 0, at, act
        for name in ("mkdir", "rename", "fsync", *(("unlink", "rmdir") if removing else ())):
            patch(os, name, self.counted(getattr(os, name), name))
        patch(io, "open", self.counted(io.open, "open"))
        patch(staging, "_exchange", self.counted(staging._exchange, "exchange"))
        new_stream = pa.ipc.new_stream
        patch(pa.ipc, "new_stream", lambda *arguments: Interrupted.Stream(self, new_stream(*arguments)))

    def counted(self, function: Callable, name: str) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count - 1 == self.at:
                self.act()
            if name != "fsync":  # not needed against a kill, and slow
                return function(*arguments, **options)

        return call

    class Stream:
        def __init__(self, calls: "Interrupted", stream: Any) -> None:
            self.write_batch = calls.counted(stream.write_batch, "write")
            self.close = calls.counted(stream.close, "close")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(job: dict, report: int) -> None:
    """In the child."""
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    if not job.get("exchange", True):
        staging._exchange = lambda one, other: False  # as on a system without it
    if "command" in job:
        sys.argv = ["rmcli", *job["command"]]
        app.main()
    else:
        calls = Interrupted(job.get("kill_at"), die)
        write_set(Path(job["write"]), job["marker"], job["overwrite"])
        os.write(report, json.dumps(calls.count).encode())


def main() -> None:
    # What a first use imports is imported here, not in every child.
    load_tokenizer(resolve("tiny").config.model)
    with TemporaryDirectory() as folder:
        write_set(Path(folder) / "set", "warm", overwrite=False)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.perf_counter()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run(job, write)
                status = 0
            except SystemExit as exit_:
                status = exit_.code or 0
            finally:
                os._exit(status)
        os.close(write)
        if job.get("kill_after") is not None:
            time.sleep(job["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        calls = os.read(read, 100).decode()
        os.close(read)
        answer = {
            "status": os.waitstatus_to_exitcode(status),
            "calls": json.loads(calls or "null"),
            "seconds": time.perf_counter() - start,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
