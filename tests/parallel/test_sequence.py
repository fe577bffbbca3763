"""Which processes share a sequence, and whether what they send has its true adjoint."""

import pytest
import torch

from ranks import on_ranks
from rmcli.errors import ConfigError
from rmcli.parallel import sequence
from support.adjoints import products, sent


def test_adjacent_processes_are_a_group():
    places = on_ranks(4, place_of, 2)
    assert [(rank, size) for _, rank, size in places] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    first, second, third, fourth = (name for name, _, _ in places)
    assert first == second != third == fourth


def place_of(size: int) -> tuple[str, int, int]:
    group = sequence.own_group(size)
    assert group is not None
    return group.name, group.rank, group.size


def test_a_process_alone_has_no_group():
    assert sequence.own_group(1) is None
    assert on_ranks(2, sequence.own_group, 1) == [None, None]


@pytest.mark.parametrize(
    ("size", "processes", "hint"),
    [(3, 4, "set it to 1, 2 or 4"), (4, 2, "set it to 1 or 2"), (2, 1, "start more processes")],
)
def test_a_size_that_does_not_divide(size, processes, hint):
    with pytest.raises(ConfigError) as error:
        sequence.check_size(size, processes)
    message = f"parallel.sequence_parallel_size = {size} does not divide the number of processes, {processes}"
    assert (error.value.message, error.value.hint) == (message, hint)


@pytest.mark.parametrize("name", ["add_up", "swap"])
def test_backward_is_the_adjoint_of_forward(name):
    """<A x, y> = <x, A* y>, summed over two groups of two."""
    for forward, backward in on_ranks(4, products, name):
        assert forward == pytest.approx(backward, rel=1e-12)
        assert abs(forward) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
def test_what_arrives(dtype):
    first, second = on_ranks(2, sent, dtype)
    assert first["sum"] == second["sum"] == [10, 12]
    if not dtype.is_complex:
        assert (first["swapped"], second["swapped"]) == ([0, 10], [1, 11])
