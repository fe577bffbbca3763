"""`--num-processes N`: the processes of this machine, as torchrun would start them, but watched as one command.

Signals go to all, once. When one fails the others end within seconds, and so do all when this process ends, in
whatever way. What they say goes to this process's own streams.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from rmcli import output
from rmcli.errors import ENDING_SIGNALS
from rmcli.parallel import parent, word

GRACE = 2.0  # seconds in which the others end by themselves when one has failed
GRACE_TO_STOP = 60.0  # the same where a signal ends them: a checkpoint is being written
_LOOK_EVERY = 0.05


@dataclass
class _Processes:
    """In order of rank, and which of them ended in which order."""

    all: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def look(self) -> None:
        self.ended += [rank for rank, one in enumerate(self.all) if rank not in self.ended and one.poll() is not None]

    def codes(self) -> dict[int, int]:
        """Rank to exit code (below zero the signal), the first that ended first."""
        return {rank: self.all[rank].returncode for rank in self.ended}

    def send(self, number: int) -> None:
        for one in self.all:
            one.send_signal(number)  # nothing where it has ended

    def kill(self) -> None:
        """With what they have started themselves: each has a session of its own."""
        for one in self.all:
            if one.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(one.pid, signal.SIGKILL)
        for one in self.all:
            one.wait()


def run_together(command: Sequence[str], number: int) -> int:
    """Run `python COMMAND` on `number` processes until all have ended. Returns the exit code of the command.

    That is the exit code of the process that said why all end; 128 and the signal where one was killed.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server(("127.0.0.1", 0))  # no other machine gets in
    port = listener.getsockname()[1]
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    processes = _Processes()
    with _parents_pipe() as pipe, _taken_signals() as came:
        try:
            with _blocked_signals():  # in each process until it knows what to do with them
                for rank in range(number):
                    processes.all.append(_start(command, rank, number, port, pipe))
            _wait(processes, store, came)
        finally:
            processes.kill()
    return _exit_code(processes, store, came)


def _start(command: Sequence[str], rank: int, number: int, port: int, pipe: int) -> subprocess.Popen[bytes]:
    # Where this program was not found in the working folder, others are not to look there.
    safe = [] if sys.path[0] in ("", os.getcwd()) else ["-P"]
    return subprocess.Popen(
        [sys.executable, *safe, *command],
        env=_environment(rank, number, port) | {parent.PIPE: str(pipe)},
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        pass_fds=[pipe],
        start_new_session=True,  # Ctrl-C comes to this process alone
    )


def _environment(rank: int, number: int, port: int) -> dict[str, str]:
    """What torchrun gives its workers. This process has the store where they meet, as torchrun's agent has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // number)
    preset = {"OMP_NUM_THREADS": str(threads), **_loopback()}
    return (
        preset
        | os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    )


def _loopback() -> dict[str, str]:
    """Tensors on the host stay inside it: a host's own name may not lead to itself."""
    names = {name for _, name in socket.if_nameindex()}
    return {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in names else {}


@contextmanager
def _parents_pipe() -> Iterator[int]:
    """The end that the processes read; this process alone has the other, which closes with it."""
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def _ending_signals() -> set[signal.Signals]:
    """Those that are not ignored: what nohup has this process ignore, all ignore."""
    numbers = {getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)}
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


@contextmanager
def _taken_signals() -> Iterator[list[int]]:
    """Yields the signals to end that have come, for all processes; what they do to this one is to wait for those."""
    came: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in _ending_signals()}
    for number in before:
        signal.signal(number, take)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes started inside get no signal before they ask for it (`parent.allow_signals`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ending_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(processes: _Processes, store: Any, came: Sequence[int]) -> None:
    """Until all have ended; until the grace is over, where one has failed."""
    failed_at: float | None = None
    num_sent = 0
    while len(processes.ended) < len(processes.all):
        while num_sent < len(came):
            processes.send(came[num_sent])
            num_sent += 1
        time.sleep(_LOOK_EVERY)
        processes.look()
        codes = {*processes.codes().values(), *_code_of_word(store)} - {0}
        if not codes:
            continue
        failed_at = failed_at or time.monotonic()
        is_stopping = codes <= {*ENDING_SIGNALS.values()} and len(came) < 2  # a second signal leaves at once
        grace = GRACE_TO_STOP if is_stopping else GRACE
        if time.monotonic() - failed_at > grace:
            return


def _code_of_word(store: Any) -> list[int]:
    said = word.read(store)
    return [] if said is None else [said.exit_code]


def _exit_code(processes: _Processes, store: Any, came: Sequence[int]) -> int:
    """Of the process that has said why; where none has, this one does."""
    said, codes, number = word.read(store), processes.codes(), len(processes.all)
    killed = {rank: -code for rank, code in codes.items() if code < 0}
    for rank, by in killed.items():
        if by in came and said is None:  # it had nothing yet that takes signals
            return ENDING_SIGNALS[signal.Signals(by).name]
        # What others say of such an end, if they do, is what followed from it.
        if said is None or by == signal.SIGKILL:
            _say_who_was_killed(rank, number, by, store)
            return 128 + by
    if said is not None:
        return said.exit_code
    rank, code = next(((rank, code) for rank, code in codes.items() if code), (0, 0))
    if rank > 0 and code not in ENDING_SIGNALS.values():  # it was silent; rank 0 says what it ends of
        output.error(f"process {rank} of {number} ended with exit code {code} and without a word", None)
    return code


def _say_who_was_killed(rank: int, number: int, by: int, store: Any) -> None:
    kept, hint = word.read_what_is_kept(store)
    why = " (out of memory?)" if by == signal.SIGKILL else ""
    output.error(f"process {rank} of {number} was killed by {signal.Signals(by).name}{why}{kept}", hint)
