"""What processes tell each other, and how a test on several of them fails."""

import pytest
import torch

from rmcli.errors import FailedElsewhere
from rmcli.parallel import collectives, world
from support.ranks import RankFailed, on_ranks


def told() -> dict[str, object]:
    rank = world.rank()
    return {
        "size": world.size(),
        "first": world.is_first(),
        "sum": collectives.add_up(torch.tensor([1.0, rank])).tolist(),
        "largest": collectives.largest_number(10 - rank),
        "all": collectives.gather(f"rank {rank}"),
        "from_first": collectives.from_first(rank + 5),
    }


def test_every_process_hears_the_same():
    first, second = on_ranks(2, told)
    assert first == {**second, "first": True}
    assert second == {
        "size": 2,
        "first": False,
        "sum": [2.0, 1.0],
        "largest": 10,
        "all": ["rank 0", "rank 1"],
        "from_first": 5,
    }


def test_one_process_hears_itself():
    assert told() == {"size": 1, "first": True, "sum": [1.0, 0.0], "largest": 10, "all": ["rank 0"], "from_first": 5}


def fail_on_the_second() -> None:
    if world.rank() == 1:
        raise ValueError("the second has failed")
    collectives.gather(None)


def test_a_failure_is_that_of_the_rank_that_failed():
    with pytest.raises(RankFailed, match=r"rank 1 of 2:[\s\S]*the second has failed"):
        on_ranks(2, fail_on_the_second)
    assert on_ranks(2, world.size) == [2, 2]


def one_fails(rank: int) -> str:
    try:
        with collectives.together():
            if world.rank() == rank:
                raise ValueError("a fault of its own")
    except FailedElsewhere:
        return "elsewhere"
    except ValueError as error:
        return str(error)
    return "nothing"


def test_where_one_fails_all_do():
    assert on_ranks(2, one_fails, 0) == ["a fault of its own", "elsewhere"]
    assert on_ranks(2, one_fails, 1) == ["elsewhere", "a fault of its own"]
    assert on_ranks(2, one_fails, 2) == ["nothing", "nothing"]


def asked_of_the_first() -> int:
    return collectives.on_first(lambda: world.rank() + 7)


def test_what_the_first_does_alone_all_are_told():
    assert on_ranks(2, asked_of_the_first) == [7, 7]
    assert asked_of_the_first() == 7
