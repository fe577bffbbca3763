"""Which processes share a sequence, and whether what they send has its true adjoint."""

import pytest
import torch

from rmcli.parallel import sequence
from support.adjoints import products, sent
from support.ranks import on_ranks


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
