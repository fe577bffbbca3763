"""Work that all processes must have done before one goes on, and what must be the same on all."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from rmcli.errors import ConfigError, RmcliError
from rmcli.parallel import collectives, world
from rmcli.parallel.word import PeerEnded

Value = TypeVar("Value")


def on_each(work: Callable[[], Value]) -> Value:
    """What `work` gives here, once it is done on every process.

    Where it raises RmcliError on some, the lowest of them raises its own, and all others PeerEnded.
    """
    if world.size() == 1:
        return work()
    try:
        value, error = work(), None
    except RmcliError as caught:
        value, error = None, caught
    told = collectives.gather(None if error is None else (error.message, error.exit_code))
    failed = [rank for rank, one in enumerate(told) if one is not None]
    if not failed:
        return value  # type: ignore[return-value]
    if error is not None and failed[0] == world.rank():
        raise error
    message, exit_code = told[failed[0]]  # type: ignore[misc]
    raise PeerEnded(f"process {failed[0]}: {message}", exit_code)


def by_first(work: Callable[[], Value]) -> Value:
    """What `work` gives on the first process, told to all. Where it raises RmcliError there, all others PeerEnded."""
    value = on_each(lambda: work() if world.is_first() else None)
    return collectives.from_first(value)  # type: ignore[return-value]


def one_per_machine_first(work: Callable[[], Value]) -> Value:
    """What `work` gives here, where it leaves files on the machine: its first process is done before the others."""
    on_each(lambda: work() if world.local_rank() == 0 else None)
    return on_each(work)


def check_same(facts: Mapping[str, object]) -> None:
    """Raises ConfigError on the first process, PeerEnded on the others, where a fact is not the same on all."""
    told = collectives.gather(dict(facts))

    def compare() -> None:
        for rank, there in enumerate(told):
            for name, here in facts.items():
                if there.get(name) != here:
                    raise ConfigError(
                        f"{name} is {here} on process 0 and {there.get(name)} on process {rank}",
                        "start all processes with the same command, files and versions",
                    )

    on_each(lambda: compare() if world.is_first() else None)
