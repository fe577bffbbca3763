"""Linear layers in 4 bits, on any machine: what trains beside them, and what is taken out of them."""

from types import SimpleNamespace

import pytest
import torch

from rmcli.config.resolve import resolve
from rmcli.model import adapter, quantize
from rmcli.model.batch import build_batch
from rmcli.model.forward import scores
from support.exactness import uneven_groups
from support.networks import tiny_model

pytestmark = pytest.mark.slow  # bitsandbytes is installed for those
REWARD = SimpleNamespace(reward_token_id=3, mode="reserved")
BATCH = build_batch("packed", uneven_groups(), 0)


def packed() -> torch.nn.Module:
    network = tiny_model("llama", hidden_size=64, intermediate_size=128)
    adapter.put(network, resolve("tiny", (), ("lora.r=4", "model.quantization=nf4")).config, REWARD)
    network.to("cpu")
    optimizer = torch.optim.AdamW(adapter.trained(network).values(), lr=1e-2)
    for _ in range(3):
        scores(network, BATCH).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def test_training_and_evaluation_score_bitwise_alike_again_and_again():
    """On CPUs with avx512_bf16 a first evaluation would pack the weights anew."""
    network = packed()
    found = []
    with torch.no_grad():
        for mode in (True, False, True, False):
            found.append(scores(network.train(mode), BATCH))
    assert all(torch.equal(one, found[0]) for one in found)
    layers = [module for module in network.modules() if quantize.is_quantized(module)]
    assert len(layers) == 7 * 3
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_what_is_merged_scores_as_beside_4_bits_and_the_base_itself_does_not():
    network = packed().eval()
    with torch.no_grad():
        beside = scores(network, BATCH)
        trained = {name: weight.detach().clone() for name, weight in adapter.trained(network).items()}
        merged = scores(adapter.merge(network), BATCH)
        whole = tiny_model("llama", hidden_size=64, intermediate_size=128)
        adapter.put(whole, resolve("tiny", (), ("lora.r=4",)).config, REWARD)
        adapter.fill(whole, trained)
        elsewhere = scores(adapter.merge(whole), BATCH)
    assert (beside - merged).abs().max() < 1e-5
    assert (beside - elsewhere).abs().max() > 0.01
    assert all(weight.dtype == torch.float32 for weight in network.parameters())


def test_numbers_of_4_bits_take_what_is_reckoned():
    network = tiny_model("llama", hidden_size=1024, intermediate_size=4096)
    numbers = sum(module.weight.numel() for module in network.model.modules() if type(module) is torch.nn.Linear)
    quantize.quantize(network.model)
    network.to("cpu")
    taken = 0
    for module in network.modules():
        if quantize.is_quantized(module):
            state = module.weight.quant_state
            scales = (state.absmax, state.state2.absmax)
            taken += module.weight.nbytes + sum(tensor.nbytes for tensor in scales)
    assert taken == pytest.approx(numbers * quantize.BITS_PER_WEIGHT / 8, rel=1e-3)
