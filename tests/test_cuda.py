"""On a GPU: the kernels, compiled layers, Liger, and whole runs. A machine without CUDA has none of it to test.

References are float32 on the CPU, transformers' eager attention, one conversation at a time; distances are those of
whole tensors, |actual - expected| / |expected|. bfloat16 keeps 8 bits, so that they are some thousandths.
"""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from torch import distributed
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

import nano_run
from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError
from rmcli.model import batch, forward, kernels, optim
from rmcli.model.attention import by_segment, fa3, varlen
from rmcli.model.attention.call import Call
from rmcli.model.attention.layout import BatchShape
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, BACKENDS
from rmcli.model.network import score_head, trim, whole_row_layers
from rmcli.model.recompute import checkpoint_activations
from rmcli.model.shard import fill, shard
from rmcli.parallel import parts
from rmcli.parallel.mesh import MeshShape, build_mesh
from rmcli.train import run
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer
from support.cli import as_options, run_cli
from support.exactness import backbone_scores, gradients, packs, tiny_network, uneven_groups
from support.networks import random_group, tiny_model
from support.places import REPOSITORY, write_lines

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, from many places while it compiles and profiles
]
CUDA = torch.device("cuda")
TINY = ("--preset", "tiny", "-s", "train.log_every=1")


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert torch.isfinite(actual).all()
    return float((actual - expected).norm() / expected.norm())


def combined(scores: torch.Tensor) -> torch.Tensor:
    """As `gradients` combines them."""
    return (scores * torch.linspace(-1, 2, len(scores), device=scores.device)).sum()


def learned(network: torch.nn.Module, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    combined(scores).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def furthest(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest distance of a parameter's gradient; what is all but zero is held against the largest one."""
    assert actual.keys() == expected.keys()
    floor = 1e-2 * max(float(gradient.norm()) for gradient in expected.values())
    return max(
        float((actual[name].cpu().float() - expected[name].cpu()).norm()) / max(float(expected[name].norm()), floor)
        for name in expected
    )


def skip_without_packages(way: str) -> None:
    if way == "liger":
        pytest.importorskip("liger_kernel", reason="the extra rmcli[liger] is not installed")
    if "FP8" in way:
        pytest.importorskip("torchao", reason="the extra rmcli[fp8] is not installed")
    if "fa3" in way:
        skip_without_fa3()


def skip_without_fa3() -> None:
    try:
        fa3.check(CUDA)
    except ConfigError as error:
        pytest.skip(error.message)


# --- one call of a kernel ---


def call_of(layout, heads: int, kv_heads: int, size: int, dtype: torch.dtype, **options) -> tuple[Call, list]:
    torch.manual_seed(0)
    shapes = [(1, heads, layout.num_tokens, size), *[(1, kv_heads, layout.num_tokens, size)] * 2]
    tensors = [torch.randn(shape, device=CUDA).to(dtype).requires_grad_() for shape in shapes]
    return Call(*tensors, layout, **options), tensors


@pytest.mark.parametrize("backend", ["varlen", "fa3", "flex"])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 64), (4, 4, 128), (6, 6, 40)])
def test_a_kernel_and_its_gradients_are_those_of_float32_segments(backend, window, heads, kv_heads, size, request):
    if backend == "flex" and size == 40:
        size = 48
    if backend == "fa3":
        skip_without_fa3()
        fa3.switch(True)
        request.addfinalizer(lambda: fa3.switch(False))
    layout = batch.build_packed(uneven_groups(), CUDA).layout
    call, tensors = call_of(layout, heads, kv_heads, size, torch.bfloat16, window=window)
    full = [tensor.detach().float().requires_grad_() for tensor in tensors]
    expected = by_segment.attend(Call(*full, layout, window=window))
    actual = BACKENDS[backend](call)
    above = torch.randn_like(expected)
    assert distance(actual, expected) < 5e-3
    found = torch.autograd.grad(actual, tensors, above.to(torch.bfloat16))
    wanted = torch.autograd.grad(expected, full, above)
    for one, other in zip(found, wanted, strict=True):
        assert distance(one, other) < 1e-2


def test_one_key_too_few_is_further_away_than_any_rounding():
    layout = batch.build_packed(uneven_groups(), CUDA).layout
    call, _ = call_of(layout, 6, 2, 64, torch.bfloat16)
    narrow = call._replace(window=19)  # one below the longest conversation but two
    assert distance(BACKENDS["varlen"](narrow), BACKENDS["varlen"](call)) > 2e-2


def test_the_gathers_backward_repeats_bit_by_bit():
    """Six responses of one long prompt: atomics would add its gradients in another order each time."""
    generator = torch.Generator().manual_seed(0)
    groups = [random_group(np.random.default_rng(0), 700, (5, 300, 40, 7, 9, 200))]
    layout = batch.build_packed(groups, CUDA).layout
    tensor = torch.randn(layout.num_tokens, 4, 64, generator=generator).to(CUDA, torch.bfloat16).requires_grad_()
    above = torch.randn(len(layout.kv_index), 4, 64, generator=generator).to(CUDA, torch.bfloat16)
    results = [torch.autograd.grad(varlen.gather_keys(tensor, layout), tensor, above)[0] for _ in range(20)]
    assert all(torch.equal(result, results[0]) for result in results)
    exact = torch.zeros(tensor.shape, dtype=torch.float64, device=CUDA)
    exact.index_add_(0, layout.kv_index, above.double())
    assert distance(results[0], exact) < 3e-3


# --- whole models ---


@pytest.mark.parametrize("rows", ["whole", "trimmed"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "phi3", "olmo2"])
def test_models_in_bfloat16_are_near_single_conversations_in_float32(name, rows):
    # Rounding sends tokens to other experts: none of them here.
    changes = {"first_k_dense_replace": 3} if name == "deepseek_v3" else {}
    network, groups = tiny_network(name, **changes), uneven_groups()
    expected = backbone_scores(network, groups)
    expected_gradients = gradients(network, expected)
    network.to(CUDA).set_attn_implementation(ATTENTION_NAME)
    if rows == "trimmed":
        trim(network)
    actual = forward.scores(network, batch.build_packed(groups, CUDA))
    assert actual.dtype == torch.float32
    assert distance(actual, expected) < 3e-2
    assert furthest(learned(network, actual), expected_gradients) < 0.1


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_models_in_float32_are_exact_on_cuda_too(name):
    network, groups = tiny_network(name), uneven_groups()
    expected = backbone_scores(network, groups)
    expected_gradients = gradients(network, expected)
    network.to(CUDA).set_attn_implementation(ATTENTION_NAME)
    actual = forward.scores(network, batch.build_packed(groups, CUDA), "float32")
    torch.testing.assert_close(actual.cpu(), expected, atol=2e-5, rtol=0)
    assert furthest(learned(network, actual), expected_gradients) < 1e-4


@pytest.mark.parametrize("split", [False, True], ids=["float32", "split"])
@pytest.mark.parametrize("recomputed", ["none", "selective", "full"])
def test_one_compiled_graph_runs_different_rows(split, recomputed):
    """Against the same kernel without compiling. Inductor keeps float32 where torch's operators round to bfloat16."""
    if recomputed == "selective" and "__call__" in GradientCheckpointingLayer.__dict__:
        pytest.skip("transformers below 5.18 cannot compile inside a selective checkpoint (refused by name)")
    torch._dynamo.reset()
    network = tiny_model("llama").to(CUDA).train()
    if split:
        train = resolve("tiny", settings=("train.master_weights=split",)).config.train
        optim.build_optimizer(network, score_head(network), train)
    trim(network)
    if recomputed != "none":
        checkpoint_activations(network, recomputed)
    expected = []
    for groups in packs():
        scores = forward.scores(network, batch.build_packed(groups, CUDA))
        expected.append((scores.detach(), learned(network, scores)))
    shape = BatchShape(num_tokens=192, longest=32)
    for groups in packs():
        shape = batch.build_packed(groups, CUDA, shape).layout.shape
    kernels.compile_layers(whole_row_layers(network))
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for groups, (scores, whole) in zip(packs(), expected, strict=True):
        actual = forward.scores(network, batch.build_packed(groups, CUDA, shape))
        assert distance(actual, scores) < 3e-2
        assert furthest(learned(network, actual), {name: one.float().cpu() for name, one in whole.items()}) < 0.1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 1
    torch._dynamo.reset()


def test_ligers_kernels_are_near_torchs():
    pytest.importorskip("liger_kernel", reason="the extra rmcli[liger] is not installed")
    network, groups = tiny_model("llama").to(CUDA), uneven_groups()
    packed = batch.build_packed(groups, CUDA)
    scores = forward.scores(network, packed)
    expected = {name: one.float().cpu() for name, one in learned(network, scores).items()}
    kernels.use_liger(network)
    actual = forward.scores(network, packed)
    assert distance(actual, scores) < 3e-2
    assert furthest(learned(network, actual), expected) < 0.1


# --- whole runs ---


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cuda") / "data"
    assert run_cli("prepare", "tasks:400", "--preset", "tiny", "-o", folder).code == 0
    return folder


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


WAYS = {
    "plain": (),
    "split": ("train.master_weights=split",),
    "8 bits": ("train.master_weights=split", "train.optimizer=adamw_8bit"),
    "compile": ("train.kernels=compile",),
    "compile, split, 8 bits": ("train.kernels=compile", "train.master_weights=split", "train.optimizer=adamw_8bit"),
    "liger": ("train.kernels=liger",),
    "compile, split, full": (
        "train.kernels=compile",
        "train.master_weights=split",
        "train.activation_checkpointing=full",
    ),
    "selective": ("train.activation_checkpointing=selective",),
    "flex": ("model.attention=flex",),
    "fa3": ("model.attention=fa3",),
    "compile, fa3": ("train.kernels=compile", "model.attention=fa3"),
    "compile, FP8": ("train.kernels=compile", "train.fp8=rowwise"),
    "compile, split, FP8": ("train.kernels=compile", "train.master_weights=split", "train.fp8=tensorwise"),
    "float32": ("model.dtype=float32",),
    "padded": ("model.use_varlen_attn=false",),
    "deterministic": ("train.deterministic=true",),
}


def losses_of(data: Path, run: Path, settings: tuple[str, ...], steps: int) -> list[float]:
    chosen = as_options(f"train.max_steps={steps}", *settings)
    result = run_cli("train", *TINY, "--data", data, "-o", run, *chosen)
    assert result.code == 0, result.stderr
    return [line["loss"] for line in lines_of(run) if "loss" in line]


def going_on(tiny_run) -> tuple[str, ...]:
    """From trained weights, whose losses move at once: from random ones the first steps are all ln 2."""
    tokenizer = REPOSITORY / "presets" / "tiny"  # of the data; the model folder's template appends the token itself
    model_keys = (f"pretrained_model_name_or_path={tiny_run.model}", "random_weights=false")
    keys = (*model_keys, f"tokenizer_name_or_path={tokenizer}")
    return (*(f"model.{key}" for key in keys), "train.lr=1e-3")


@pytest.fixture(scope="module")
def on_cpu(tiny_run, tmp_path_factory) -> list[float]:
    """Losses of eight steps in float32 on the CPU."""
    run = tmp_path_factory.mktemp("cpu") / "run"
    return losses_of(tiny_run.data, run, (*going_on(tiny_run), "train.device=cpu"), 8)


@pytest.mark.parametrize("way", WAYS)
def test_train_learns_on_cuda_as_on_the_cpu(way, tiny_run, on_cpu, tmp_path):
    """Split weights are bfloat16 in every sum of a forward; under autocast only products are; FP8 has 8 bits."""
    skip_without_packages(way)
    torch._dynamo.reset()
    settings = WAYS[way]
    losses = losses_of(tiny_run.data, tmp_path / "run", (*going_on(tiny_run), *settings), 8)
    assert losses[:2] == pytest.approx(on_cpu[:2], abs=0.03 if "FP8" in way else 5e-3)
    is_near = "train.master_weights=split" not in settings and "FP8" not in way
    assert losses == pytest.approx(on_cpu, abs=0.01 if is_near else 0.06)
    assert max(on_cpu) - min(on_cpu) > 0.1


def test_deterministic_runs_on_cuda_are_bitwise_equal(data, tmp_path):
    settings = ("train.deterministic=true",)
    first, second = (losses_of(data, tmp_path / run, settings, 20) for run in ("one", "two"))
    assert first == second
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("way", ["plain", "split", "8 bits", "compile, split, 8 bits"])
def test_a_stopped_deterministic_run_goes_on_bit_by_bit_on_cuda(way, data, tmp_path, monkeypatch):
    """Against the run that was never stopped: every field of its lines but times and rates, and the weights."""
    settings = ("train.deterministic=true", "train.eval_steps=4", *WAYS[way])
    losses_of(data, tmp_path / "whole", settings, 12)
    run_step = Trainer.run_step

    def stopping(self, feed):
        if feed.step.number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return run_step(self, feed)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", stopping)
        chosen = as_options("train.max_steps=12", *settings)
        assert run_cli("train", *TINY, "--data", data, "-o", tmp_path / "run", *chosen).code == 143
    torch._dynamo.reset()
    gone_on = run_cli("train", "--resume", "-o", tmp_path / "run")
    assert gone_on.code == 0, gone_on.stderr
    timeless = [nano_run.lines(tmp_path / name) for name in ("run", "whole")]
    assert timeless[0] == timeless[1]
    weights = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("way", ["plain", "split", "8 bits"])
def test_no_step_waits_for_the_device(way, data, tmp_path, monkeypatch):
    """torch raises where a call would wait, in a step and in the building of its batches."""
    settings = ("train.max_steps=4", *WAYS[way])
    run_step = Trainer.run_step

    def strict(self, feed):
        built = self.feeder.build(feed.step)
        if feed.step.number > 1:
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.feeder.build(feed.step)
            return run_step(self, built)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "run_step", strict)
    run.run(build_job(resolve("tiny", settings=settings), data, tmp_path / "run"))


def test_the_model_folder_scores_on_cuda_as_transformers_does_on_the_cpu(data, tmp_path):
    losses_of(data, tmp_path / "run", (), 30)
    folder = tmp_path / "run" / "model"
    texts = [f"{number} + {number}?" for number in range(12)]
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "24"}]} for text in texts
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    expected = []
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in rows:
        ids = tokenizer.apply_chat_template(row["messages"], return_tensors="pt", return_dict=True)
        with torch.no_grad():
            expected.append(float(network(**ids).logits))
    for dtype, tolerance in (("float32", 1e-4), ("auto", 0.1)):
        result = run_cli("score", folder, path, "-o", tmp_path / "scores.jsonl", "-s", f"model.dtype={dtype}")
        assert result.code == 0, result.stderr
        scores = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
        assert scores == pytest.approx(expected, abs=tolerance)


def test_a_profile_on_cuda_counts_kernels(data, tmp_path):
    result = run_cli("train", *TINY, "--data", data, "-o", tmp_path / "run", "-s", "train.max_steps=6", "--profile")
    assert result.code == 0, result.stderr
    summary = (tmp_path / "run" / "profile" / "summary.txt").read_text()
    assert "matmul" in summary
    assert "attention" in summary


def test_metrics_name_the_share_of_the_chip(data, tmp_path):
    settings = (*WAYS["plain"], "train.peak_tflops=989")
    losses_of(data, tmp_path / "run", settings, 3)
    line = lines_of(tmp_path / "run")[0]
    assert line["mfu"] == pytest.approx(line["flops_per_s"] / 989e12)
    assert 0 < line["mfu"] < 0.66


# --- several processes, as far as one GPU goes ---


@pytest.fixture
def nccl(tmp_path):
    """One process joined by gloo and NCCL: the collectives of `fully_shard` run, over one GPU."""
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("cpu:gloo,cuda:nccl", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("reduced", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.usefixtures("nccl")
def test_a_sharded_network_over_nccl(reduced):
    """Its gradients and its first update, against the same network on the CPU."""
    reference, groups = tiny_model("llama").train(), uneven_groups()
    expected = learned(reference, forward.scores(reference, batch.build_packed(groups)))
    with init_empty_weights(include_buffers=False):
        network = tiny_model("llama").train()
    shard(network, build_mesh(MeshShape(1, 1), CUDA), reduced, CUDA)
    fill(network, {**dict(reference.named_parameters()), **dict(reference.named_buffers())})
    dtype = "bfloat16" if reduced else "float32"
    combined(forward.scores(network, batch.build_packed(groups, CUDA), dtype)).backward()
    found = {name: parts.whole(weight.grad) for name, weight in network.named_parameters()}
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert furthest(found, expected) < (0.1 if reduced else 1e-4)
    optimizer = optim.build_optimizer(network, score_head(network), resolve("tiny").config.train)
    before = parts.whole(score_head(network).weight.detach()).clone()
    norm, skipped = optim.clip_and_step(network, optimizer, 1.0, torch.zeros((), device=CUDA))
    assert not skipped
    assert torch.isfinite(norm)
    assert not torch.equal(parts.whole(score_head(network).weight.detach()), before)
