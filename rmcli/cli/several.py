"""How a command runs on several processes: begun by a launcher, or started by itself for `--num-processes`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple, NoReturn

import typer

from rmcli.cli.ending import one_line_for_everything

NumProcesses = Annotated[
    int | None,
    typer.Option(
        "--num-processes",
        metavar="N",
        min=0,
        help="On N processes of this machine, one per GPU; 0: all its GPUs. Several machines: torchrun.",
    ),
]


class Several(NamedTuple):
    """Processes that are `wanted` of this command, and those that a launcher has `started` it on."""

    wanted: int
    started: int

    @property
    def number(self) -> int:
        return max(self)


@contextmanager
def joined(num_processes: int | None) -> Iterator[Several]:
    """Inside, this process is one of those that a launcher started, if it did; the first of them speaks."""
    from rmcli.parallel import world
    from rmcli.parallel.processes import started_processes, wanted_processes
    from rmcli.parallel.word import peers_explained

    several = Several(wanted_processes(num_processes, os.environ), started_processes(os.environ))
    with world.joined(several.started), one_line_for_everything(), peers_explained():
        yield several


def start_and_leave(several: Several, device_type: str) -> NoReturn:
    """Run this command on the processes that are wanted. Raises ConfigError where GPUs are fewer."""
    from rmcli.parallel.launch import run_together
    from rmcli.parallel.processes import check_gpus

    check_gpus(several.wanted, device_type)
    raise typer.Exit(run_together(["-m", "rmcli", *sys.argv[1:]], several.wanted))
