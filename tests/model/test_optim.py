"""Optimizers in less memory: 16 + 16 bit masters bit by bit, 8-bit states, and what `train` makes of them."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, MixtralConfig

from rmcli.config.resolve import resolve
from rmcli.config.sections import TrainSection
from rmcli.model import batch, compact_adamw, forward, optim
from rmcli.model.compact_adamw import CompactAdamW, dequantize, dynamic_map, join_bits, quantize, round_bits
from rmcli.model.memory import estimate, sizes_of, state_bytes
from rmcli.runs import checkpoint, state
from support.cli import as_options
from support.networks import random_group, tiny_model
from support.places import REPOSITORY
from support.tiny_backbones import tiny_config

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CPU = torch.device("cpu")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(bits(first), bits(second))


def groups_of_seed(seed: int) -> list:
    generator = np.random.default_rng(seed)
    return [random_group(generator, 5, (4, 6)), random_group(generator, 3, (2, 7))]


def backward(network, seed: int, factor: float = 1.0) -> torch.Tensor:
    """A loss whose gradient reaches every weight; returns the scores."""
    packed = batch.build_packed(groups_of_seed(seed), network.device)
    scores = forward.scores(network, packed, "bfloat16")
    (scores * torch.arange(1.0, 5.0, device=scores.device) * factor).sum().backward()
    return scores.detach()


# --- 16 + 16 bits ---


def test_every_upper_half_comes_back_bit_by_bit():
    """All signs, exponents (denormal, infinite, NaN) and upper mantissas, with low halves around every edge."""
    upper = np.arange(2**16, dtype=np.uint32)[:, None] << 16
    drawn = np.random.default_rng(0).integers(0, 2**16, 58, dtype=np.uint32)
    lower = np.array([0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF, *drawn], dtype=np.uint32)
    patterns = torch.from_numpy((upper | lower).reshape(-1).view(np.int32))
    weight, low = round_bits(patterns.view(torch.float32))
    assert (weight.dtype, low.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(join_bits(weight, low).view(torch.int32), patterns)
    # The weight is what a cast gives, but for exact ties, which go away from zero.
    masters = patterns.view(torch.float32)
    tie = (patterns & 0xFFFF) == 0x8000
    plain = ~tie & ~masters.isnan()
    assert torch.equal(bits(weight)[plain], bits(masters.bfloat16())[plain])
    assert ((weight.double() - masters.double()).abs() == (masters.bfloat16().double() - masters.double()).abs())[
        tie & masters.isfinite() & weight.isfinite() & masters.bfloat16().isfinite()
    ].all()


@pytest.mark.parametrize(
    ("master", "weight", "low"),
    [
        (1.0, 1.0, 0),
        (1.0 + 2**-8, 1.0 + 2**-7, -32768),  # a tie
        (1.0 + 2**-8 - 2**-23, 1.0, 32767),
        (-1.0 - 2**-23, -1.0, 1),
        (2.0 - 2**-23, 2.0, -1),  # carries into the exponent
        (3.4028234663852886e38, float("inf"), -1),  # the largest number: a cast overflows, too
        (2**-149, 0.0, 1),
    ],
)
def test_the_halves_of_some_numbers(master, weight, low):
    high, rest = round_bits(torch.tensor([master]))
    assert (float(high), int(rest)) == (weight, low)
    assert float(join_bits(high, rest)) == master


class Reference:
    """Float32 masters under torch's fused AdamW; a model of their rounded bfloat16 weights makes the gradients."""

    def __init__(self, network, train: TrainSection) -> None:
        self.network = copy.deepcopy(network)
        self.masters = copy.deepcopy(network)
        self.optimizer = optim.build_optimizer(self.masters, self.masters.score, train)
        assert type(self.optimizer) is torch.optim.AdamW
        self.pairs = list(zip(self.network.parameters(), self.masters.parameters(), strict=True))
        for weight, master in self.pairs:
            if master is not self.masters.score.weight:
                weight.data = self.rounded(master)

    @staticmethod
    def rounded(master: torch.Tensor) -> torch.Tensor:
        """Half away from zero, in numpy's unsigned numbers."""
        upper = (master.detach().cpu().numpy().view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)
        return torch.from_numpy(upper.astype(np.uint16)).view(torch.bfloat16).to(master.device)

    def step(self, seeds, max_norm: float, factor: float) -> torch.Tensor:
        for _, master in self.pairs:
            master.grad = torch.zeros_like(master)
        for seed in seeds:
            scores = backward(self.network, seed, factor)
            for weight, master in self.pairs:
                master.grad += weight.grad.float()
                weight.grad = None
        optim.clip_and_step(self.masters, self.optimizer, max_norm, scores.sum())
        for weight, master in self.pairs:
            weight.data.copy_(self.rounded(master) if weight.dtype == torch.bfloat16 else master.data)
        return scores


@pytest.mark.parametrize("device", DEVICES)
def test_split_masters_are_float32_masters_bit_by_bit(device):
    """Weights, masters, states and scores, over steps of one and two forwards, clipped, decayed and left out."""
    network = tiny_model("llama").to(device)
    train = {"lr": 3e-3, "head_lr": 1e-2, "weight_decay": 0.1}
    reference = Reference(network, TrainSection.model_validate(train))
    split = TrainSection.model_validate(train | {"master_weights": "split"})
    optimizer = optim.build_optimizer(network, network.score, split)
    dtypes = {parameter.dtype for name, parameter in network.named_parameters() if name != "score.weight"}
    assert (dtypes, network.score.weight.dtype) == ({torch.bfloat16}, torch.float32)
    for step in range(8):
        seeds = [step] if step % 2 else [step, 100 + step]
        max_norm = 1e9 if step == 3 else 1.0
        factor = float("inf") if step == 5 else 1.0  # this step is left out
        share = (step + 1) / 8
        optim.set_rates(optimizer, share)
        optim.set_rates(reference.optimizer, share)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optim.expect_gradients(optimizer, several=len(seeds) > 1)
        for seed in seeds:
            scores = backward(network, seed, factor)
        norm, skipped = optim.clip_and_step(network, optimizer, max_norm, scores.sum())
        assert same_bits(scores, reference.step(seeds, max_norm, factor))
        assert float(skipped) == (step == 5)
        assert (step == 5) == all(map(same_bits, before, network.parameters()))
        assert bool(norm > 1.0) or step == 5  # clipping is felt
        for weight, (_, master) in zip(network.parameters(), reference.pairs, strict=True):
            state, expected = optimizer.state[weight], reference.optimizer.state[master]
            joined = join_bits(weight.detach(), state["master_low"]) if "master_low" in state else weight
            assert same_bits(joined, master)
            assert same_bits(state["exp_avg"], expected["exp_avg"])
            assert same_bits(state["exp_avg_sq"], expected["exp_avg_sq"])
            assert float(state["step"]) == float(expected["step"]) == step + 1 - (step >= 5)
    optim.restore_float32(optimizer)
    assert all(map(same_bits, network.parameters(), reference.masters.parameters()))


@pytest.mark.parametrize("optimizer_name", ["adamw", "adamw_8bit"])
def test_an_update_in_pieces_is_the_same(monkeypatch, optimizer_name):
    train = TrainSection.model_validate({"master_weights": "split", "optimizer": optimizer_name})
    results = []
    for piece in (2**24, 512):
        monkeypatch.setattr(compact_adamw, "PIECE", piece)
        network = tiny_model("llama", hidden_size=64)
        optimizer = optim.build_optimizer(network, network.score, train)
        for step in range(3):
            backward(network, step)
            optim.clip_and_step(network, optimizer, 1.0, torch.zeros(()))
        optim.restore_float32(optimizer)
        results.append([*network.parameters(), *(state["exp_avg_sq"] for state in optimizer.state.values())])
    assert all(map(same_bits, *results))


def test_split_scores_are_those_of_a_bfloat16_model():
    network = tiny_model("llama")
    plain = copy.deepcopy(network).to(torch.bfloat16)
    plain.score.weight.data = network.score.weight.data.clone()
    plain.model.rotary_emb = copy.deepcopy(network.model.rotary_emb)  # frequencies stay float32
    packed = batch.build_packed(groups_of_seed(0))
    float32 = forward.scores(network, packed)
    optim.build_optimizer(network, network.score, TrainSection.model_validate({"master_weights": "split"}))
    split = forward.scores(network, packed, "bfloat16")
    with torch.no_grad():
        hidden = plain.model(
            packed.input_ids, position_ids=packed.position_ids, packed_layout=packed.layout
        ).last_hidden_state[0, packed.score_index]
        assert same_bits(split, (hidden.float() @ plain.score.weight.T).squeeze(-1))
    assert split.dtype == torch.float32
    assert not torch.equal(split, float32)
    assert torch.allclose(split, float32, atol=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state_bits", [32, 8])
@pytest.mark.parametrize("split", [True, False])
def test_compiled_passes_change_no_bit_but_for_8_bit_codes_on_cuda(split, state_bits, device, monkeypatch):
    """On a CPU traced but not compiled: a compiler need not be there. Step 3 of 5 is left out."""
    if device == "cpu":
        monkeypatch.setattr(
            compact_adamw, "_compiled", lambda f: torch.compile(f, dynamic=True, fullgraph=True, backend="aot_eager")
        )
    results = []
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=generator) for shape in ((300, 512), (64,), (70, 33))]
        weights = [torch.nn.Parameter(weight.to(device)) for weight in drawn]
        group = {"params": weights, "split": split, "state_bits": state_bits}
        optimizer = CompactAdamW([group], lr=1e-3, betas=(0.9, 0.95), compiled=compiled)
        for number in range(1, 6):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)
            optimizer.clip(weights, 1.0)
            optimizer.found_inf = torch.tensor(float(number == 3), device=device)
            optimizer.step()
        optimizer.restore_masters()
        results.append(weights)
    for plain, made in zip(*results, strict=True):
        if device == "cpu" or state_bits == 32:
            assert same_bits(plain, made)
        else:  # a code may be that of the other of two equally near values
            torch.testing.assert_close(plain, made, atol=1e-4, rtol=0)


def test_gradients_of_several_forwards_add_up_in_float32():
    """1 + 2**-9 is 1 in bfloat16: also where one backward adds up two uses of a weight."""
    weight = torch.nn.Parameter(torch.ones(8))
    optimizer = CompactAdamW([{"params": [weight], "split": True}], lr=1e-3, betas=(0.9, 0.95))
    small = 2.0**-9
    for several, dtype, total in ((False, torch.bfloat16, 1.0), (True, torch.float32, 1.0 + small)):
        optim.expect_gradients(optimizer, several)
        weight.sum().backward()
        (weight * small).sum().backward()
        assert (weight.grad.dtype, float(weight.grad[0])) == (dtype, total)
        optimizer.zero_grad()
        (weight.sum() + (weight * small).sum()).backward()
        assert (weight.grad.dtype, float(weight.grad[0])) == (dtype, total)
        optimizer.zero_grad()


@pytest.mark.parametrize("settings", [{}, {"master_weights": "split"}, {"optimizer": "adamw_8bit"}])
def test_a_checkpoint_continues_bit_by_bit(tmp_path, settings):
    train = TrainSection.model_validate({"lr": 1e-3} | settings)

    def step(network, optimizer, number):
        backward(network, number)
        optim.clip_and_step(network, optimizer, 1.0, torch.zeros(()))

    network = tiny_model("llama", hidden_size=64)
    optimizer = optim.build_optimizer(network, network.score, train)
    for number in range(2):
        step(network, optimizer, number)
    saved = checkpoint.save(tmp_path, 2, state.tensors_of(network, optimizer), {}, keep=1)
    step(network, optimizer, 2)

    again = tiny_model("llama", 1, hidden_size=64)
    state.read_weights(saved, again)
    its_optimizer = optim.build_optimizer(again, again.score, train)
    state.read_optimizer(saved, again, its_optimizer)
    step(again, its_optimizer, 2)
    assert all(map(same_bits, network.parameters(), again.parameters()))
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        first, second = optimizer.state[one], its_optimizer.state[other]
        assert first.keys() == second.keys()
        assert all(same_bits(first[name], second[name]) for name in first)


# --- 8 bits ---


def test_the_dynamic_map():
    """Literal values of bitsandbytes' and torchao's map."""
    signed, unsigned = dynamic_map(True, CPU), dynamic_map(False, CPU)
    at = [0, 1, 100, 128, 200, 254, 255]
    assert signed[at].tolist() == pytest.approx(
        [-0.9929687, -0.9789063, -0.00746875, 5.5e-7, 0.23359375, 0.99296874, 1.0], rel=1e-6
    )
    assert unsigned[at].tolist() == pytest.approx(
        [0.0, 3.25e-7, 0.06273438, 0.11054687, 0.61679685, 0.99648440, 1.0], rel=1e-6
    )
    for values in (signed, unsigned):
        assert (len(values), int((values == 0).sum())) == (256, 1)
        assert bool((values.diff() > 0).all())


@pytest.mark.parametrize("signed", [True, False])
def test_a_number_is_stored_as_the_nearest_value_of_its_block(signed):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16 * 256, generator=generator) * torch.rand(16 * 256, generator=generator) ** 4
    values = (values if signed else values.square()) * 1e-6  # far below 1: blocks have scales of their own
    codes, scale = quantize(values[None], signed)
    assert (codes.dtype, codes.shape, scale.shape) == (torch.uint8, (1, 4096), (1, 16))
    assert torch.equal(scale[0], values.view(16, 256).abs().amax(1))
    scale = scale[0]
    scaled = values.view(16, 256).double() / scale.double()[:, None]
    distance = (scaled[..., None] - dynamic_map(signed, CPU).double()).abs()
    stored = (dequantize(codes, scale[None], signed).view(16, 256).double() / scale.double()[:, None] - scaled).abs()
    assert float((stored - distance.amin(-1)).max()) < 1e-6
    assert torch.equal(dequantize(*quantize(torch.zeros(1, 256), signed), signed), torch.zeros(1, 256))


@pytest.mark.parametrize("shape", [(96, 100), (96, 256), (96, 576), (6, 16, 300)])
def test_a_weight_cut_along_its_first_axis_keeps_its_states(shape):
    """As over ranks: the states of its parts are the whole one's, cut; also on from there."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(shape, generator=generator))
    cut = shape[0] // 2
    halves = [torch.nn.Parameter(whole[:cut].detach().clone()), torch.nn.Parameter(whole[cut:].detach().clone())]
    group = {"split": False, "state_bits": 8}
    one, two = (CompactAdamW([{"params": p, **group}], lr=1e-2, betas=(0.9, 0.95)) for p in ([whole], halves))
    for _ in range(3):
        whole.grad = torch.randn(whole.shape, generator=generator)
        halves[0].grad, halves[1].grad = whole.grad[:cut].clone(), whole.grad[cut:].clone()
        one.step()
        two.step()
    assert one.state[whole]["exp_avg_scale"].shape == (*shape[:-1], -(-shape[-1] // 256))
    for name in ("exp_avg", "exp_avg_scale", "exp_avg_sq", "exp_avg_sq_scale"):
        assert same_bits(torch.cat([two.state[half][name] for half in halves]), one.state[whole][name]), name
    assert same_bits(torch.cat([half.detach() for half in halves]), whole.detach())


@pytest.mark.parametrize(("shape", "eight"), [((2, 2048), True), ((2, 2047), False), ((8192,), False)])
def test_vectors_and_small_weights_keep_float32_states(shape, eight):
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = CompactAdamW([{"params": [weight], "state_bits": 8}], lr=1e-2, betas=(0.9, 0.95))
    for name in ("exp_avg", "exp_avg_sq"):
        assert optimizer.state[weight][name].dtype == (torch.uint8 if eight else torch.float32)
        assert (f"{name}_scale" in optimizer.state[weight]) == eight


STACKED_EXPERTS = MixtralConfig(
    vocab_size=97,
    hidden_size=4160,  # its rows end within a block; the head and the vectors have more than 4096 numbers
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=3,
    num_labels=1,
)


@pytest.mark.parametrize("master_weights", ["float32", "split"])
@pytest.mark.parametrize("optimizer_name", ["adamw", "adamw_8bit"])
def test_bytes_of_states_are_counted_exactly(optimizer_name, master_weights):
    levers = [f"train.optimizer={optimizer_name}", f"train.master_weights={master_weights}", "model.dtype=bfloat16"]
    config = resolve("tiny", settings=levers).config
    network = AutoModelForSequenceClassification.from_config(STACKED_EXPERTS)
    assert any(weight.ndim == 3 for weight in network.parameters())
    optimizer = optim.build_optimizer(network, network.score, config.train)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    sizes = sizes_of(config, STACKED_EXPERTS)
    assert state_bytes(sizes, config.train) == sum(value.numel() * value.element_size() for value in kept)


@pytest.mark.parametrize(
    ("settings", "bytes_per_number"),
    [
        # Without gradients. 8 bits have a scale of 4 bytes per 256 numbers, twice.
        ({}, 4 + 8),
        ({"master_weights": "split"}, 2 + 2 + 8),
        ({"optimizer": "adamw_8bit"}, 4 + 2 + 8 / 256),
        ({"master_weights": "split", "optimizer": "adamw_8bit"}, 2 + 2 + 2 + 8 / 256),
    ],
)
def test_bytes_of_weights_and_states(settings, bytes_per_number):
    network = torch.nn.Sequential(torch.nn.Linear(256, 512, bias=False), torch.nn.Linear(512, 1, bias=False))
    optimizer = optim.build_optimizer(network, network[1], TrainSection.model_validate(settings))
    weight = network[0].weight
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = [weight, *(value for name, value in optimizer.state[weight].items() if name != "step")]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == bytes_per_number * 256 * 512
    assert all(value.dtype == torch.float32 for value in optimizer.state[network[1].weight].values())


@pytest.mark.parametrize("master_weights", ["float32", "split"])
def test_a_step_left_out_changes_no_bit_of_8_bit_states(master_weights):
    train = TrainSection.model_validate({"optimizer": "adamw_8bit", "master_weights": master_weights})
    network = tiny_model("llama", hidden_size=64)
    optimizer = optim.build_optimizer(network, network.score, train)
    optim.expect_gradients(optimizer, several=False)
    backward(network, 0)
    optim.clip_and_step(network, optimizer, 1.0, torch.zeros(()))
    quantized = [held for held in optimizer.state.values() if held["exp_avg"].dtype == torch.uint8]
    assert len(quantized) == 10  # the MLPs, 64 x 80, and the embedding
    assert all(int((held["exp_avg"] != 0).sum()) for held in quantized)
    before = copy.deepcopy(state.tensors_of(network, optimizer))
    backward(network, 1, float("nan"))
    _, skipped = optim.clip_and_step(network, optimizer, 1.0, torch.zeros(()))
    assert float(skipped) == 1.0
    after = state.tensors_of(network, optimizer)
    assert before.keys() == after.keys()
    assert all(same_bits(before[name], value) for name, value in after.items())


def losses_of(settings: dict) -> list[float]:
    """16 bfloat16 steps on the same 16 pairs, which a tiny model learns by heart."""
    network = tiny_model("llama", hidden_size=64, vocab_size=128)
    section = TrainSection.model_validate({"lr": 1e-4} | settings)
    optimizer = optim.build_optimizer(network, network.score, section)
    generator = np.random.default_rng(0)
    pairs = batch.build_packed([random_group(generator, 2, (4, 4)) for _ in range(16)])
    losses = []
    for _ in range(16):
        scores = forward.scores(network, pairs, "bfloat16").view(16, 2)
        loss = -torch.nn.functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()
        loss.backward()
        optim.clip_and_step(network, optimizer, 1.0, loss.detach())
        losses.append(float(loss.detach()))
    return losses


def test_training_in_less_memory_learns_as_fast():
    plain = losses_of({})
    split, eight = {"master_weights": "split"}, {"optimizer": "adamw_8bit"}
    assert (plain[0], plain[4], plain[-1]) == pytest.approx((1.996, 0.677, 0.005), abs=0.01)
    for settings in (split, eight, split | eight):
        assert losses_of(settings) == pytest.approx(plain, abs=0.02)


# --- train ---


def test_train_ships_the_float32_masters(cli, tiny_run):
    """Three bfloat16 steps with both levers, against none: the same losses, and a float32 model folder."""
    levers = ("-s", "train.master_weights=split", "-s", "train.optimizer=adamw_8bit")
    steps = ("-s", "model.dtype=bfloat16", "-s", "train.max_steps=3", "-s", "train.log_every=1")
    losses = {}
    for name, settings in (("plain", ()), ("small", levers)):
        result = cli("train", "--preset", "tiny", "--data", tiny_run.data, "-o", name, *steps, *settings)
        assert result.code == 0, result.stderr
        assert re.search(r"self-test: .* \(limits? .*\) ok", result.stderr)
        lines = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if "loss" in line]
    assert losses["small"] == pytest.approx(losses["plain"], abs=2e-3)
    shipped = AutoModelForSequenceClassification.from_pretrained("small/model")
    assert {value.dtype for value in shipped.state_dict().values()} == {torch.float32}
    assert json.loads(Path("small/model/config.json").read_text())["dtype"] == "float32"
    embedding = shipped.get_input_embeddings().weight.detach()
    assert not torch.equal(embedding, embedding.bfloat16().float())  # masters, not their upper halves


def test_gradients_are_float32_where_a_step_has_several_forwards(cli, tiny_run, tmp_path, monkeypatch):
    """One forward per step, several, and a backbone that runs one conversation per forward."""
    seen = []
    real = optim.expect_gradients
    monkeypatch.setattr(optim, "expect_gradients", lambda opt, several: (seen.append(several), real(opt, several)))
    tiny_config("qwen3_next", vocab_size=384, max_position_embeddings=256).save_pretrained(tmp_path / "single")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPOSITORY / "presets" / "tiny" / file, tmp_path / "single")
    levers = ("train.max_steps=2", "train.master_weights=split", "model.dtype=bfloat16", "train.check_memory=false")
    runs = {
        "one": ("train.pairs_per_step=8",),
        "several": ("train.accumulative_counts=2", "train.batch_size=1"),
        "single": ("train.pairs_per_step=4", f"model.pretrained_model_name_or_path={tmp_path / 'single'}"),
    }
    for name, settings in runs.items():
        seen.clear()
        options = as_options(*levers, *settings)
        result = cli("train", "--preset", "tiny", "--data", tiny_run.data, "-o", f"run_{name}", *options)
        assert result.code == 0, result.stderr
        assert seen == [name != "one"] * 2, name


def test_split_masters_need_bfloat16_arithmetic(cli, tiny_run):
    options = ("--data", tiny_run.data, "-s", "train.device=cpu", "-s", "train.master_weights=split")
    result = cli("train", "--preset", "tiny", *options, "-o", "run")
    assert result.code == 2
    assert (
        "train.master_weights = 'split' trains bfloat16 weights, but model.dtype = 'auto' is float32" in result.stderr
    )
    assert "hint: set model.dtype=bfloat16" in result.stderr


LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def test_an_8b_model_in_4_bits_trains_in_24_gb(monkeypatch):
    monkeypatch.setattr("rmcli.model.memory.pick_device", lambda config: torch.device("cuda"))
    config = resolve("llama3-8b-qlora", settings=["model.dtype=bfloat16"]).config
    reward = SimpleNamespace(reward_token_id=128002, mode="reserved")
    sizes = sizes_of(config, LlamaConfig(**LLAMA_3_8B), reward=reward)
    assert sizes.in_4_bits == 32 * (4096 * (4096 + 1024) * 2 + 3 * 4096 * 14336)
    # r beside each matrix, the row of the reward token, the head.
    assert sizes.trained == 32 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)) + 2 * 4096
    need = estimate(sizes, config, 8192, several_forwards=True)
    assert 10e9 < need.total < 24e9
    assert need.states == 8 * sizes.trained


@pytest.mark.parametrize(
    ("settings", "dtype", "several_forwards", "bytes_each"),
    [
        ({}, "float32", True, 16),
        ({}, "bfloat16", True, 18),  # autocast's copies
        ({"optimizer": "adamw_8bit"}, "bfloat16", True, 12),
        ({"master_weights": "split"}, "bfloat16", False, 14),
        ({"master_weights": "split"}, "bfloat16", True, 16),
        ({"master_weights": "split", "optimizer": "adamw_8bit"}, "bfloat16", False, 8),
        ({"master_weights": "split", "optimizer": "adamw_8bit"}, "bfloat16", True, 10),
    ],
)
def test_the_memory_of_an_8b_model(settings, dtype, several_forwards, bytes_each):
    levers = [f"train.{key}={value}" for key, value in settings.items()]
    config = resolve("llama3-8b", settings=[f"model.dtype={dtype}", *levers]).config
    need = estimate(sizes_of(config, LlamaConfig(**LLAMA_3_8B)), config, 16384, several_forwards)
    assert need.num_parameters == 7_504_928_768
    scales = 2 * 4 / 256 if settings.get("optimizer") else 0  # of 8-bit states
    assert need.held == pytest.approx((bytes_each + scales) * 7_504_928_768, rel=1e-4)
