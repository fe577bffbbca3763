"""What processes must have done before one goes on, and what must be the same on all."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from rmcli.errors import ConfigError
from rmcli.parallel import collectives, world

Value = TypeVar("Value")


def on_each(work: Callable[[], Value]) -> Value:
    """What `work` gives here, once it is done on every process. Raises as `collectives.together` does."""
    with collectives.together():
        value = work()
    return value


def one_per_machine_first(work: Callable[[], Value]) -> Value:
    """As `on_each`, where work leaves files on its machine: one process of each is done before its others begin."""
    on_each(lambda: work() if world.local_rank() == 0 else None)
    return on_each(work)


def check_same(facts: Mapping[str, object]) -> None:
    """Raises ConfigError on the first process, FailedElsewhere on the others, where a fact is not the same on all."""
    told = collectives.gather(dict(facts))
    collectives.on_first(lambda: _compare(facts, told))


def _compare(facts: Mapping[str, object], told: list[dict[str, object]]) -> None:
    for rank, there in enumerate(told):
        for name, here in facts.items():
            if there.get(name) != here:
                raise ConfigError(
                    f"{name} is {here} on process 0 and {there.get(name)} on process {rank}",
                    "start all processes with the same command, files and versions",
                )
