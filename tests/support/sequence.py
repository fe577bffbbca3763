"""Packed rows that several processes share, against whole rows on one: what runs on the ranks."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from rmcli import output
from rmcli.backbones import architectures
from rmcli.errors import RmcliError
from rmcli.model import batch, forward
from rmcli.model.attention.shared_prefix import ATTENTION_NAME
from rmcli.model.network import is_trimmed, trim
from rmcli.model.recompute import checkpoint_activations
from rmcli.model.self_test import Probe, settle_batches
from rmcli.model.sequence_parallel import set_sequence_group
from rmcli.parallel import adjoints, collectives, sequence, world
from support.exactness import SHAPES, largest_relative, tiny_network
from support.networks import NoWaiting, random_group

own_group = functools.cache(sequence.own_group)  # processes stay for many tests


@dataclass(frozen=True)
class Case:
    """`shapes` are of the first pack; there are as many packs as sequence groups of `size`, each of other groups."""

    name: str = "llama"
    size: int | None = None  # None: all processes
    shapes: tuple[tuple[int, tuple[int, ...]], ...] = tuple(SHAPES)
    trimmed: bool = True
    recompute: str = "none"
    dtype: str = "float32"
    arithmetic: str = "auto"
    changes: tuple[tuple[str, Any], ...] = ()
    sharded: bool = False
    fault: str = "none"

    def network(self) -> Any:
        network = tiny_network(self.name, **dict(self.changes)).to(getattr(torch, self.dtype))
        network.set_attn_implementation(ATTENTION_NAME)
        if self.trimmed:
            trim(network)
        return network

    def packs(self, number: int) -> list[batch.PackedBatch]:
        generator = np.random.default_rng(0)
        shapes = [self.shapes, *[tuple(SHAPES[::-1])] * (number - 1)]
        return [
            batch.build_packed([random_group(generator, prefix, responses) for prefix, responses in pack])
            for pack in shapes
        ]


def errors(case: Case) -> tuple[float, float]:
    """How far this process's scores are from those of a whole row, and the gradients of all from one process's."""
    network, size = case.network(), case.size or world.size()
    packs = case.packs(world.size() // size)
    own = world.rank() // size
    expected = [forward.scores(network, pack, case.arithmetic) for pack in packs]
    sum(map(_loss, expected)).backward()
    expected_gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    set_sequence_group(network, own_group(size))
    if case.recompute != "none":
        network.train()
        checkpoint_activations(network, case.recompute)
    if case.sharded:
        _shard(network)
    with _FAULTS[case.fault]():
        actual = _scores(network, packs[own], case.arithmetic)
        (_loss(actual) / (1 if case.fault == "no share" else size)).backward()
    gradients = {name: _summed(p.grad) for name, p in network.named_parameters() if p.grad is not None}
    assert expected[own].std() > 0.1
    assert is_trimmed(network) == case.trimmed
    with torch.no_grad():
        torch.testing.assert_close(
            _scores(network, packs[own], case.arithmetic), actual, atol=0, rtol=0
        )  # evaluation
        return float((actual - expected[own]).abs().max()), largest_relative(gradients, expected_gradients)


def _scores(network: Any, pack: batch.PackedBatch, arithmetic: str) -> Tensor:
    """The head is called: its weight may be sharded."""
    hidden = forward.hidden_at_scores(network, pack, arithmetic)
    return network.score(hidden.to(network.score.weight.dtype)).squeeze(-1)


def _loss(scores: Tensor) -> Tensor:
    return (scores * torch.linspace(-1, 2, len(scores), dtype=scores.dtype)).sum()


def _shard(network: Any) -> None:
    for part in (*network.base_model.layers, network.base_model, network.score):
        fully_shard(part)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _summed(gradient: Any) -> Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else collectives.add_up(gradient)


def errors_of_all_layers(name: str) -> list[tuple[float, float]]:
    """With the whole last layer, and trimmed where that can be."""
    kinds = [False] if name in architectures.WHOLE_LAST_LAYER else [False, True]
    return [errors(Case(name, trimmed=trimmed)) for trimmed in kinds]


class Exchanges(TorchDispatchMode):
    """Counts what is sent."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.namespace == "_c10d_functional" and function.overloadpacket.__name__ != "wait_tensor"
        return function(*args, **(kwargs or {}))


def exchanges(trimmed: bool) -> list[int]:
    """Of one forward and backward: nothing computed again, selective, full."""
    numbers = []
    for kind in ("none", "selective", "full"):
        case = Case(trimmed=trimmed)
        network, (pack,) = case.network().train(), case.packs(1)
        set_sequence_group(network, own_group(world.size()))
        if kind != "none":
            checkpoint_activations(network, kind)
        with Exchanges() as counter:
            _loss(forward.scores(network, pack)).backward()
        numbers.append(counter.number)
    return numbers


def scored_without_waiting() -> bool:
    for trimmed in (False, True):
        case = Case(trimmed=trimmed)
        network, (pack,) = case.network(), case.packs(1)
        set_sequence_group(network, own_group(world.size()))
        with NoWaiting():
            _loss(forward.scores(network, pack)).backward()
    return True


def distances_of_the_self_test() -> list[tuple[float, float]]:
    """Of scores and gradients of shared rows from those of single conversations: right, and by a wrong adjoint."""
    network = Case("qwen3").network()
    set_sequence_group(network, own_group(world.size()))
    probe = Probe.of(network)
    found = []
    for fault in ("none", "gradients not sent back"):
        with _FAULTS[fault]():
            found.append(probe.run_packed(network, "float32").distances(probe.run_alone(network, "float32")))
    return found


def fall_back() -> str:
    """What is said of a backbone that carries state, had it claimed that it does not."""
    network = Case("lfm2", trimmed=False).network()
    set_sequence_group(network, own_group(world.size()))
    output.set_verbosity(-1)
    with pytest.raises(RmcliError) as error:
        settle_batches(network, architectures.BatchChoice("packed"), "float32")
    return error.value.message


@contextmanager
def _no_fault() -> Iterator[None]:
    yield


@contextmanager
def _patched(name: str, backward: Callable[..., Any]) -> Iterator[None]:
    function = getattr(adjoints, name)
    before = function.backward
    function.backward = staticmethod(backward)
    try:
        yield
    finally:
        function.backward = before


_FAULTS: dict[str, Callable[[], Any]] = {
    "none": _no_fault,
    "no share": _no_fault,
    "own gradient of a sum": lambda: _patched("_AddUp", lambda ctx, gradient: (gradient, None)),
    "gradients not sent back": lambda: _patched("_Swap", lambda ctx, gradient: (gradient, None)),
}
