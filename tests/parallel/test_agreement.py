"""What must be the same on all processes, and which of several errors is heard."""

import pytest

from rmcli.errors import ConfigError, FailedElsewhere, RmcliError
from rmcli.parallel import agreement, world
from support.ranks import on_ranks


def told_by(work) -> tuple[str, str, int]:
    """The class, message and exit code of the error that work ends with."""
    try:
        return "none", str(work()), 0
    except RmcliError as error:
        return type(error).__name__, error.message, error.exit_code


def fails_on(ranks: tuple[int, ...]) -> int:
    if world.rank() in ranks:
        raise ConfigError(f"wrong on {world.rank()}")
    return world.rank()


def on_each(ranks: tuple[int, ...]) -> tuple[str, str, int]:
    return told_by(lambda: agreement.on_each(lambda: fails_on(ranks)))


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_the_lowest_that_fails_is_heard_and_all_end_with_its_code(ranks):
    lowest = ranks[0]
    told = on_ranks(2, on_each, ranks)
    assert told[lowest] == ("ConfigError", f"wrong on {lowest}", 2)
    assert told[1 - lowest] == ("FailedElsewhere", f"process {lowest}: wrong on {lowest}", 2)


def test_where_none_fails_each_has_its_own():
    assert on_ranks(2, on_each, ()) == [("none", "0", 0), ("none", "1", 0)]
    assert agreement.on_each(lambda: 7) == 7


def same(key: str, values: tuple[object, object]) -> tuple[str, str, int]:
    facts = {"train.seed": 1, key: values[world.rank()], "torch's version": "2"}
    return told_by(lambda: agreement.check_same(facts))


def test_what_differs_is_named_with_both_values():
    """As the learning rate of one command, or the data of one machine."""
    first, second = on_ranks(2, same, "train.lr", (1e-5, 2e-5))
    assert first == ("ConfigError", "train.lr is 1e-05 on process 0 and 2e-05 on process 1", 2)
    assert second[0] == "FailedElsewhere"
    assert on_ranks(2, same, "train.lr", (1e-5, 1e-5)) == [("none", "None", 0)] * 2


def test_an_error_without_a_message_says_that_nobody_has_told_it():
    assert not FailedElsewhere().is_told
    assert FailedElsewhere("process 1: full", 2).is_told
