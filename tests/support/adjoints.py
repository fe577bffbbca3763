"""What runs on the ranks of tests/parallel/test_sequence.py."""

import functools

import torch

from rmcli.parallel import adjoints, collectives, sequence, world

own_group = functools.cache(sequence.own_group)  # processes stay for many tests


def products(name: str) -> tuple[float, float]:
    """<A x, y> and <x, A* y>, summed over all processes."""
    generator = torch.Generator().manual_seed(world.rank())
    group = own_group(2)
    assert group is not None
    x = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    y = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    result = getattr(adjoints, name)(x, group)
    result.backward(y)
    assert x.grad is not None
    both = torch.stack([(result.detach() * y).sum(), (x.detach() * x.grad).sum()])
    forward, backward = collectives.add_up(both).tolist()
    return forward, backward


def sent(dtype: torch.dtype) -> dict[str, list]:
    """Process r gives 10 r and 10 r + 1."""
    group = own_group(2)
    assert group is not None
    given = torch.tensor([10 * world.rank(), 10 * world.rank() + 1]).to(dtype)
    found = {"sum": adjoints.add_up(given, group)}
    if not dtype.is_complex:  # rotations are added up, never swapped
        found["swapped"] = adjoints.swap(given, group)
    return {name: tensor.real.tolist() for name, tensor in found.items()}
