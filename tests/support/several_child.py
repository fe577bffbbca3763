"""One of several processes, ended as those of `rmcli train` are: `python several_child.py WHAT [ARGUMENT]`."""

import atexit
import os
import signal
import sys
import time
import warnings

import typer

from rmcli import output
from rmcli.__main__ import begin
from rmcli.cli.ending import one_line_for_everything
from rmcli.errors import ConfigError, RmcliError, Stopped
from rmcli.parallel import collectives, end, world
from rmcli.parallel.processes import started_processes
from rmcli.parallel.word import is_one_of_others, peers_explained
from rmcli.train.signals import stop_on_signals


def talk_and_fail() -> None:
    rank = world.rank()
    output.say(f"say {rank}")
    output.warn(f"warn {rank}")
    warnings.warn(f"warning {rank}", stacklevel=1)
    os.write(2, f"stderr {rank}\n".encode())
    os.write(1, f"stdout {rank}\n".encode())
    output.answer(f"answer {rank}")
    collectives.gather(None)
    if rank == 1:
        raise ConfigError("a key is wrong", "mend it")
    collectives.gather(None)


def error_while_others_are_busy() -> None:
    if world.rank() == 1:
        raise ConfigError("a key is wrong", "mend it")
    time.sleep(600)


def error_while_others_step() -> None:
    """Those hear only of it by a signal of their launcher, as while NCCL waits."""
    with stop_on_signals():
        error_while_others_are_busy()


def error_of_all() -> None:
    atexit.register(os.abort)  # as torch's threads may, while Python clears itself up
    collectives.gather(None)
    raise ConfigError("a key is wrong", "mend it")


def bug() -> None:
    if world.rank() == 1:
        raise ZeroDivisionError("a bug")
    collectives.gather(None)


def killed() -> None:
    if world.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    collectives.gather(None)


def end_before_all_met() -> None:
    """See `main`."""


def _say_who_takes_steps() -> None:
    output.say(" ".join(["processes", *map(str, collectives.gather(os.getpid()))]))


def killed_while_another_writes() -> None:
    """What the first one is at makes an error of its own of it."""
    try:
        killed()
    except RuntimeError:
        raise RmcliError("cannot write") from None


def steps() -> None:
    """As the loop does; what each process has done by then is told by the first."""
    step = 0
    with stop_on_signals() as stop:
        _say_who_takes_steps()
        while not stop.agreed():
            step += 1
            time.sleep(0.002 * (1 + world.rank()))
            if sys.argv[2:] == [str(step)] and world.rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
        reached = collectives.gather(step)
        raise Stopped(f"stopped by {stop.signal.name} after steps {reached}", "go on", stop.exit_code)


def long_step() -> None:
    with stop_on_signals():
        _say_who_takes_steps()
        while True:
            time.sleep(600)


def main(what: str) -> None:
    if is_one_of_others(os.environ):
        output.fall_silent()
        if what == "end_before_all_met":
            sys.exit(3)
    try:
        with world.joined(started_processes(os.environ)), one_line_for_everything(), peers_explained():
            globals()[what]()
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    begin()
    with end.at_once():
        main(sys.argv[1])
