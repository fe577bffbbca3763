"""Adapters: what trains, what stays as it is bit by bit, and what is merged scores as it did beside its base."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import varlen as torch_varlen
from transformers import AutoModelForSequenceClassification

from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError
from rmcli.model import adapter, kernels, optim
from rmcli.model.attention.layout import BatchShape
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.backend import set_attention
from rmcli.model.batch import build_batch
from rmcli.model.forward import scores
from rmcli.model.last_layer import is_trimmed
from rmcli.model.network import last_decoder_layer, trim, whole_row_layers
from support.exactness import largest_relative, packs, uneven_groups
from support.networks import tiny_model
from support.tiny_backbones import tiny_config
from support.varlen_on_cpu import varlen_attn

RESERVED, NATURAL = (SimpleNamespace(reward_token_id=3, mode=mode) for mode in ("reserved", "natural"))


def adapted(*keys: str, reward=RESERVED, trimmed: bool = True) -> nn.Module:
    network = tiny_model("llama")
    if trimmed:
        trim(network)
    adapter.put(network, resolve("tiny", (), ("lora.r=4", *keys)).config, reward)
    return network


def train(network, steps: int = 3, kind: str = "packed") -> None:
    optimizer = optim.build_optimizer(network, network.score, resolve("tiny", (), ("train.lr=1e-2",)).config.train)
    optim.set_rates(optimizer, 1.0)
    for _ in range(steps):
        loss = scores(network, build_batch(kind, uneven_groups(), 0)).square().sum()
        loss.backward()
        optim.clip_and_step(network, optimizer, 1e9, loss.detach())


@pytest.mark.parametrize("reward", [RESERVED, NATURAL])
def test_adapters_head_and_the_reward_tokens_row_train_and_nothing_else(reward):
    network = adapted(reward=reward)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    train(network)
    moved = {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == adapter.trained(network).keys()
    assert len(moved) == 2 * 7 * 3 + 2  # two matrices beside each of seven linear layers, three times; row and head
    assert "score.weight" in moved
    assert all(weight.dtype == torch.float32 for weight in adapter.trained(network).values())


def test_the_adapters_of_a_trimmed_last_layer_get_the_gradients_of_a_whole_one():
    gradients = []
    for trimmed in (True, False):
        network = adapted(trimmed=trimmed)
        assert is_trimmed(last_decoder_layer(network)) == trimmed
        scores(network, build_batch("packed", uneven_groups(), 0)).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in adapter.trained(network).items()})
    for name, gradient in gradients[0].items():
        assert gradient.count_nonzero() > 0 or "lora_A" in name, name  # B is zero at first: A learns from step 2 on
        assert (gradient - gradients[1][name]).norm() <= 1e-5 * gradients[1][name].norm(), name


@pytest.mark.parametrize("keys", [(), ("lora.use_rslora=true",), ('lora.target_modules=["q_proj", "down_proj"]',)])
def test_what_is_merged_scores_as_it_did(keys):
    network = adapted(*keys)
    train(network)
    network.eval()
    batch = build_batch("packed", uneven_groups(), 0)
    with torch.no_grad():
        beside = scores(network, batch)
        merged = scores(adapter.merge(network), batch)
        untrained = scores(adapted(), batch)
    assert (beside - merged).abs().max() < 1e-5
    assert (beside - untrained).abs().max() > 0.1
    assert network.state_dict().keys() == tiny_model("llama").state_dict().keys()


def test_the_head_is_never_an_adapter_and_unknown_names_are_refused():
    for names in ('["no_proj"]', '["q_proj", "no_proj"]', '["score"]', '["embed_tokens", "q_proj"]'):
        with pytest.raises(ConfigError, match=r"lora.target_modules: LlamaForSequenceClassification has no linear"):
            adapted(f"lora.target_modules={names}")
    assert type(adapted().score) is nn.Linear


def test_the_same_seed_gives_the_same_adapters():
    one, other = (adapter.trained(adapted()) for _ in range(2))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    elsewhere = adapter.trained(adapted("train.seed=1"))
    assert any(not torch.equal(weight, elsewhere[name]) for name, weight in one.items())


def test_a_base_model_is_known_by_every_weight_but_the_head():
    network = tiny_model("llama")
    known = adapter.digest(network)
    with torch.no_grad():
        network.score.weight += 1
        assert adapter.digest(network) == known
        weight = network.model.layers[1].mlp.up_proj.weight
        weight.copy_(weight.flip(0))
        assert adapter.digest(network) != known
        weight.copy_(weight.flip(0))
        assert adapter.digest(network) == known
        weight[3, 5] *= 1 + 2**-23
    assert adapter.digest(network) != known


@pytest.mark.filterwarnings(  # torch's own, while it traces
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)
@pytest.mark.parametrize("quantization", ["none", pytest.param("nf4", marks=pytest.mark.slow)])
def test_compiled_layers_go_together_with_adapters(monkeypatch, quantization):
    """One graph for all layers, and the gradients of plain ones."""
    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_attn)
    shape = BatchShape(num_tokens=192, longest=32)
    for some in packs():
        shape = build_batch("packed", some, 0, shape=shape).layout.shape
    keys = ("lora.r=4", f"model.quantization={quantization}")
    found, counter = [], CompileCounterWithBackend("aot_eager")
    try:
        for compiled in (False, True):
            network = tiny_model("llama", hidden_size=64, intermediate_size=128).train()
            trim(network)
            set_attention(network, "varlen")
            adapter.put(network, resolve("tiny", (), keys).config, RESERVED)
            network.to("cpu")
            if compiled:
                kernels.compile_layers(whole_row_layers(network), backend=counter)
            for some in packs():
                scores(network, build_batch("packed", some, 0, shape=shape)).square().sum().backward()
            found.append({name: weight.grad for name, weight in adapter.trained(network).items()})
    finally:
        torch._dynamo.reset()
    assert counter.frame_count == 1
    assert largest_relative(found[1], found[0]) < 1e-4


def test_experts_that_are_one_tensor_stay_frozen_and_what_is_merged_scores_as_it_did():
    register()
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(tiny_config("mixtral"), dtype=torch.float32)
    network.set_attn_implementation(ATTENTION_NAME)
    adapter.put(network, resolve("tiny", (), ("lora.r=4",)).config, RESERVED)
    assert not any("experts" in name for name in adapter.trained(network))
    assert any("q_proj" in name for name in adapter.trained(network))
    train(network)
    network.eval()
    batch = build_batch("packed", uneven_groups(), 0)
    with torch.no_grad():
        beside = scores(network, batch)
        assert (beside - scores(adapter.merge(network), batch)).abs().max() < 1e-5
