"""A network over several processes gives the gradients of one process, and their memory is shared out."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.attention import varlen as torch_varlen

from rmcli.config.resolve import resolve
from rmcli.config.sections import LossSection, TrainSection
from rmcli.model import adapter, kernels, optim, shard
from rmcli.model.attention.layout import BatchShape
from rmcli.model.backend import set_attention
from rmcli.model.batch import build_batch, build_targets
from rmcli.model.forward import scores
from rmcli.model.losses import objective
from rmcli.model.network import trim, whole_row_layers
from rmcli.model.recompute import checkpoint_activations
from rmcli.parallel import world
from rmcli.parallel.mesh import MeshShape, build_mesh
from rmcli.parallel.parts import joined, own_part, part_of, whole
from support.exactness import largest_relative, packs, uneven_groups
from support.networks import tiny_model
from support.ranks import on_ranks
from support.varlen_on_cpu import varlen_attn

LOSS = LossSection(loss_type="focal", penalty_type="log_barrier")
CPU = torch.device("cpu")


def sharded(full: torch.nn.Module, shape: MeshShape, **changes) -> torch.nn.Module:
    """The same network cut over all processes."""
    with init_empty_weights(include_buffers=False):
        network = tiny_model("llama", dtype=full.dtype, **changes)
    shard.shard(network, build_mesh(shape, CPU), is_reduced=False, device=CPU)
    state = {**dict(full.named_parameters()), **dict(full.named_buffers())}
    shard.fill(network, state if world.is_first() else {})
    return network


def step(network: torch.nn.Module, forwards, kind="packed", factor=1.0) -> torch.Tensor:
    """Gradients of these forwards' share of a step; returns their share of its loss."""
    groups = uneven_groups()
    weight, number = sum(group.weight for group in groups), sum(len(group.responses) for group in groups)
    total = torch.zeros((), dtype=network.score.weight.dtype)
    for at, chosen in enumerate(forwards):
        shard.expect_last_forward(network, at == len(forwards) - 1)
        mine = [groups[index] for index in chosen]
        found = scores(network, build_batch(kind, mine, 0))
        targets = build_targets(mine, LOSS.loss_type)
        loss = sum(objective(found, targets, LOSS, weight, number)) * factor
        loss.backward()
        total += loss.detach()
    return total


def gradients(network):
    return {name: whole(weight.grad) for name, weight in network.named_parameters() if weight.grad is not None}


def norm(network) -> torch.Tensor:
    return whole(torch.nn.utils.clip_grad_norm_(network.parameters(), 1e9))


def compare(dtype, shape, kind, factor) -> tuple[float, float]:
    """Relative distances of gradients and of the unclipped norm from those of one process."""
    reference = tiny_model("llama", dtype=dtype)
    step(reference, [range(6)], kind)
    expected = gradients(reference)
    network = sharded(reference, shape)
    rank, size = world.rank(), world.size()
    # Uneven forwards, as many on each: 0 has four groups, 1 one ...
    dealt = [[[0, 3], [2]], [[1], [4, 5]]] if size == 2 else [[[0], [3]], [[1], [4]], [[2], [5]], [[0], [1]]]
    if size == 4 and rank == 3:
        dealt[3] = [[], []]
    mine = dealt[rank]
    if any(not chosen for chosen in mine):
        for at in range(2):
            shard.expect_last_forward(network, at == 1)
            (scores(network, build_batch(kind, uneven_groups()[:1], 0)).sum() * 0).backward()
    else:
        step(network, mine, kind, factor)
    distance = largest_relative(gradients(network), expected)
    length = float(norm(network))
    expected_length = float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 1e9))
    return distance, abs(length - expected_length) / expected_length


UNITS = {"model", "score", "model.layers.0", "model.layers.1", "model.layers.2"}


def units() -> set[str]:
    network = sharded(tiny_model("llama"), MeshShape(1, 2))
    return {name for name, module in network.named_modules() if isinstance(module, FSDPModule)}


def test_training_calls_each_unit_that_is_cut_and_nothing_around_them():
    """Only a call of a unit puts its weights together; the network itself is none."""
    assert on_ranks(2, units) == [UNITS] * 2
    network, called = tiny_model("llama"), []
    for name, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    scores(network, build_batch("packed", uneven_groups(), 0))
    assert sorted(name for name in called if name in UNITS | {""}) == sorted(UNITS)


SHAPES = {2: (MeshShape(2, 1), MeshShape(1, 2)), 4: (MeshShape(4, 1), MeshShape(1, 4), MeshShape(2, 2))}
CASES = [(ranks, shape) for ranks, shapes in SHAPES.items() for shape in shapes]


@pytest.mark.parametrize(("ranks", "shape"), CASES)
def test_gradients_are_those_of_one_process(ranks, shape):
    for distance in on_ranks(ranks, compare, torch.float64, shape, "packed", 1.0):
        assert max(distance) < 1e-12
    for distance in on_ranks(ranks, compare, torch.float32, shape, "packed", 1.0):
        assert max(distance) < 1e-5


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_factor_is_seen(factor):
    for distance in on_ranks(2, compare, torch.float64, MeshShape(1, 2), "packed", factor):
        assert min(distance) > 0.4


def held(shape) -> dict[str, float]:
    """The share of one process's numbers that lies here, of weights and of states; whether buffers are true."""
    reference = tiny_model("llama")
    network = sharded(reference, shape)
    optimizer = optim.build_optimizer(network, network.score, TrainSection())
    step(network, [[world.rank()]])
    optim.clip_and_step(network, optimizer, 1.0, torch.zeros(()))
    weights = sum(weight.numel() for weight in reference.parameters())
    states = [state for kept in optimizer.state.values() for name, state in kept.items() if name != "step"]
    return {
        "weights": sum(own_part(weight).numel() for weight in network.parameters()) / weights,
        "states": sum(own_part(state).numel() for state in states) / (2 * weights),
        "buffers": all(
            torch.equal(buffer, dict(reference.named_buffers())[name]) for name, buffer in network.named_buffers()
        ),
        "cut": all(isinstance(weight, DTensor) for weight in network.parameters()),
    }


@pytest.mark.parametrize(("ranks", "shape", "share"), [(2, MeshShape(1, 2), 0.5), (4, MeshShape(1, 4), 0.25)])
def test_weights_and_states_are_shared_out_and_rotations_are_not_forgotten(ranks, shape, share):
    for found in on_ranks(ranks, held, shape):
        assert found["buffers"]
        assert found["cut"]
        assert found["weights"] == pytest.approx(share, rel=0.03)  # 97 rows and one of the head do not divide
        assert found["states"] == pytest.approx(share, rel=0.03)


def eight_bits(shape) -> bool:
    """Three steps by given gradients: are weights and 8-bit states bitwise those of one process?"""
    reference = tiny_model("llama", hidden_size=64, intermediate_size=320)
    network = sharded(reference, shape, hidden_size=64, intermediate_size=320)
    train = TrainSection(optimizer="adamw_8bit")
    each = [(one, optim.build_optimizer(one, one.score, train)) for one in (reference, network)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        given = {name: torch.randn(w.shape, generator=generator) for name, w in reference.named_parameters()}
        for one, optimizer in each:
            for name, weight in one.named_parameters():
                weight.grad = joined(part_of(given[name], weight).clone(), weight, tuple(weight.shape))
            optim.set_rates(optimizer, 1e3)
            optimizer.step()
    (_, one), (_, cut) = each
    pairs = zip(reference.named_parameters(), network.named_parameters(), strict=True)
    return all(
        torch.equal(weight, whole(part))
        and all(torch.equal(value, whole(cut.state[part][name])) for name, value in one.state[weight].items())
        for (_, weight), (_, part) in pairs
    )


@pytest.mark.parametrize(("ranks", "shape"), CASES)
def test_8_bit_states_are_bitwise_those_of_one_process(ranks, shape):
    assert all(on_ranks(ranks, eight_bits, shape))


def beside_frozen(shape) -> tuple[float, bool]:
    """With adapters: how far their gradients are from one process's; whether what is frozen gets none."""
    config = resolve("tiny", (), ("lora.r=4",)).config
    reward = SimpleNamespace(reward_token_id=3, mode="reserved")
    reference = tiny_model("llama", dtype=torch.float64)
    adapter.put(reference, config, reward)
    with init_empty_weights(include_buffers=False):
        network = tiny_model("llama", dtype=torch.float64)
        adapter.put(network, config, reward)
    for one in (reference, network):
        trim(one)
    shard.shard(network, build_mesh(shape, CPU), is_reduced=False, device=CPU)
    state = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    shard.fill(network, state if world.is_first() else {})
    step(reference, [range(6)])
    step(network, [[0, 3], [2]] if world.is_first() else [[1], [4, 5]])
    gathered = shard.gathered(network)
    held = not world.is_first() or gathered.keys() == adapter.trained(reference).keys()
    return largest_relative(gradients(network), gradients(reference)), held


@pytest.mark.parametrize("shape", [MeshShape(1, 2), MeshShape(2, 1)])
def test_adapters_get_the_gradients_of_one_process_and_are_gathered_alone(shape):
    for distance, held in on_ranks(2, beside_frozen, shape):
        assert distance < 1e-12
        assert held


def spared(activation_checkpointing) -> float:
    """With a trimmed last layer and activations computed again: how far gradients are from one process's."""
    reference = tiny_model("llama", dtype=torch.float64)
    network = sharded(reference, MeshShape(1, 2))
    for one in (reference, network):
        trim(one)
        checkpoint_activations(one, activation_checkpointing)
        one.train()
    step(reference, [range(6)])
    step(network, [[0, 3], [2]] if world.is_first() else [[1], [4, 5]])
    return largest_relative(gradients(network), gradients(reference))


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_a_trimmed_last_layer_and_recomputed_activations_go_together_with_it(kind):
    assert max(on_ranks(2, spared, kind)) < 1e-12


def compiled_graphs() -> tuple[float, int]:
    """Distance of the gradients of compiled, cut layers from one process's, and how many graphs they took."""
    groups = [packs()[world.rank()], packs()[2 + world.rank()]]
    shape = BatchShape(num_tokens=192, longest=32)
    for some in packs():
        shape = build_batch("packed", some, 0, shape=shape).layout.shape
    reference = tiny_model("llama").train()
    sum(scores(reference, build_batch("packed", some, 0)).square().sum() for some in packs()).backward()
    own, torch_varlen.varlen_attn = torch_varlen.varlen_attn, varlen_attn
    try:
        network = sharded(reference, MeshShape(1, 2)).train()
        set_attention(network, "varlen")
        trim(network)
        counter = CompileCounterWithBackend("aot_eager")
        kernels.compile_layers(whole_row_layers(network), backend=counter)
        for some in groups:
            scores(network, build_batch("packed", some, 0, shape=shape)).square().sum().backward()
    finally:
        torch_varlen.varlen_attn = own
        torch._dynamo.reset()
    return largest_relative(gradients(network), gradients(reference)), counter.frame_count


def test_compiled_layers_go_together_with_it():
    for distance, graphs in on_ranks(2, compiled_graphs):
        assert distance < 1e-4
        assert graphs == 1
