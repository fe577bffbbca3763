"""Rows of one shape, layers compiled into one graph, Liger: exact, counted, refused where they cannot run."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import varlen as torch_varlen

from rmcli.config.resolve import resolve
from rmcli.config.sections import Config, TrainSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import batch, forward, kernels
from rmcli.model.attention.layout import BatchShape, Segment
from rmcli.model.backend import set_attention
from rmcli.model.kernels import check_compilable
from rmcli.model.network import trim, whole_row_layers
from rmcli.model.recompute import checkpoint_activations
from rmcli.packs.pack import pack
from rmcli.packs.reader import PackedSplit
from rmcli.packs.writer import PackWriter
from rmcli.records import PAIR, Comparison
from rmcli.train.evaluate import evaluate
from rmcli.train.feed import groups_of, shape_of_all
from rmcli.train.pieces import PackSizes
from rmcli.train.plan import plan
from rmcli.train.spread import Spread
from support.exactness import gradients, largest_relative, packs, uneven_groups
from support.networks import random_group, tiny_model
from support.varlen_on_cpu import varlen_attn

SHAPE = BatchShape(num_tokens=192, longest=32)


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_attn)


# --- rows of one shape ---


def test_what_fills_a_row_up_changes_no_score_and_no_gradient():
    network = tiny_model("llama")
    for groups in packs():
        plain, filled = batch.build_packed(groups), batch.build_packed(groups, shape=SHAPE)
        assert filled.num_tokens == plain.num_tokens == plain.input_ids.shape[1] < filled.input_ids.shape[1] == 192
        expected = forward.scores(network, plain)
        expected_gradients = gradients(network, expected)
        actual = forward.scores(network, filled)
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
        assert largest_relative(gradients(network, actual), expected_gradients) < 1e-5


def test_rows_of_one_shape_have_tensors_of_one_size():
    shape, sizes = SHAPE, []
    for groups in packs():  # the largest sizes are known after the first pass
        shape = batch.build_packed(groups, shape=shape).layout.shape
    for groups in packs():
        built = batch.build_packed(groups, shape=shape)
        layout = built.layout
        assert layout.shape == shape
        tensors = (
            built.input_ids,
            built.position_ids,
            layout.kv_index,
            layout.cu_seq_q,
            layout.cu_seq_k,
            layout.copies,
        )
        sizes.append((layout.max_q, layout.max_k, *(tensor.shape for tensor in tensors)))
    assert len(set(sizes)) == 1


def test_a_shape_grows_where_it_must_and_never_shrinks():
    small = BatchShape(num_tokens=8, longest=4).grown_for([Segment(0, 5, 0, 0), Segment(5, 3, 0, 2)])
    assert small == BatchShape(num_tokens=8, longest=8, num_keys=10, num_segments=2, num_copies=1)
    assert small.grown_for([Segment(0, 2, 0, 0)]) == small
    large = small.grown_for([Segment(0, 9, 0, 0)])
    assert (large.num_tokens, large.longest) == (1024, 16)


PAIRS = {"pairs_per_step": 7, "max_epochs": 2}


PACKS = {"batch_size": 2, "accumulative_counts": 3}


@pytest.mark.parametrize("train", [PAIRS, PACKS], ids=["pairs", "packs"])
def test_one_shape_holds_every_forward_of_a_run_and_is_no_larger(train, tmp_path):
    """Pairs and lists of three, some without a shared prompt; under focal, groups of ties alone are left out."""
    generator = np.random.default_rng(0)
    tie = (Comparison(0, 1, 0.5),)
    groups = [
        random_group(
            generator,
            int(generator.integers(0, 40)) * (number % 5 > 0),
            [int(n) for n in generator.integers(1, 90, 2 + number % 2)],
            comparisons=tie if number % 7 == 0 else PAIR,
        )
        for number in range(60)
    ]
    with PackWriter(tmp_path / "set") as writer:
        writer.add_packs("train", pack(groups, 300, shuffle=True, seed=0))
        writer.finish({})
    split = PackedSplit(tmp_path / "set", "train")
    sizes = PackSizes([split.group_tokens(row) for row in range(len(split))])
    steps = plan(sizes, TrainSection.model_validate(train), "packed", 300)
    forwards = [forward for step in steps for forward in step.forwards[0]]
    shape = shape_of_all(forwards, split)
    for loss_type in ("ties", "focal"):
        used = filter(None, (groups_of(split, one, loss_type) for one in forwards))
        layouts = [batch.build_packed(own, shape=shape).layout for own in used]
        assert {layout.shape for layout in layouts} == {shape}
        if loss_type == "ties":  # all groups are used
            lengths = [[len(one.segments), int(one.cu_seq_k[-1]), len(one.copies)] for one in layouts]
            largest = tuple(map(max, zip(*lengths, strict=True)))
            assert largest == (shape.num_segments, shape.num_keys, 1 + shape.num_copies)
    assert shape.num_copies == 2
    longest = max(len(group.prefix) + len(one) for group in groups for one in group.responses)
    own = max(int(sum(sizes.group_tokens[p.pack][p.start : p.stop].sum() for p in one)) for one in forwards)
    assert 0 <= shape.longest - longest < 128
    assert 0 <= shape.num_tokens - own < 128
    assert shape.num_tokens % 128 == shape.longest % 128 == 0


# --- compiled layers ---


# torch's own, while it traces a layer: its input is no leaf, and of an autograd function it makes an instance.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)
@pytest.mark.parametrize(
    ("trimmed", "recomputed"), [(False, "none"), (True, "none"), (True, "full"), (True, "selective")]
)
def test_one_graph_runs_different_rows_exactly(trimmed, recomputed, varlen_on_cpu):
    """Against rows of their own size, segment by segment and not compiled."""
    torch._dynamo.reset()
    network = tiny_model("llama").train()
    expected = []
    for groups in packs():
        scores = forward.scores(network, batch.build_packed(groups))
        expected.append((scores.detach(), gradients(network, scores)))
    set_attention(network, "varlen")
    if trimmed:
        trim(network)
    if recomputed != "none":
        checkpoint_activations(network, recomputed)
    shape = SHAPE
    for groups in packs():
        shape = batch.build_packed(groups, shape=shape).layout.shape
    counter = CompileCounterWithBackend("aot_eager")
    kernels.compile_layers(whole_row_layers(network), backend=counter)
    for groups, (scores, whole) in zip(packs(), expected, strict=True):
        actual = forward.scores(network, batch.build_packed(groups, shape=shape))
        torch.testing.assert_close(actual, scores, atol=1e-5, rtol=0)
        assert largest_relative(gradients(network, actual), whole) < 1e-5
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
)
def test_evaluating_sets_compiles_nothing(tmp_path, varlen_on_cpu):
    """Rows of a set have sizes of their own, and each would be compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    network = tiny_model("llama")
    set_attention(network, "varlen")
    kernels.compile_layers(whole_row_layers(network), backend=counter)
    forward.scores(network, batch.build_packed(packs()[0], shape=SHAPE))
    assert counter.frame_count == 1
    with PackWriter(tmp_path / "set") as writer:
        for split, groups in zip(("train", "eval"), packs()[1:3], strict=True):
            writer.add_packs(split, pack(groups, 512, shuffle=False, seed=0))
        writer.finish({})
    config = Config.model_validate({"loss": {"loss_type": "ranking"}, "train": {"kernels": "compile"}})
    for split in ("train", "eval"):
        assert evaluate(network, PackedSplit(tmp_path / "set", split), config, 0, "packed", Spread()).figures["pairs"]
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_what_cannot_be_compiled_is_one_line():
    torch._dynamo.reset()
    network = tiny_model("llama").train()
    kernels.compile_layers(whole_row_layers(network), backend="eager")
    network.model.layers[0].mlp.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(RmcliError, match="cannot take this model"), kernels.explained():
        forward.scores(network, batch.build_packed(uneven_groups()))
    torch._dynamo.reset()


# --- what is asked for and cannot run ---


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("compile", "packed", "auto", "cpu"), "train.kernels = 'compile' is for CUDA, and the device is cpu"),
        (("liger", "packed", "auto", "cpu"), "train.kernels = 'liger' is for CUDA, and the device is cpu"),
        (
            ("compile", "padded", "auto", "cuda"),
            "needs packed rows and attention in one kernel call; rows are padded",
        ),
        (("compile", "packed", "sdpa", "cuda"), "model.attention = 'sdpa'"),
        (("compile", "packed", "flex", "cuda"), "model.attention = 'flex'"),
    ],
)
def test_kernels_that_cannot_run_are_refused(asked, message):
    *choice, device = asked
    with pytest.raises(ConfigError, match=message):
        kernels.check_kernels(*choice, torch.device(device))


def test_models_whose_layers_cannot_be_compiled_are_refused():
    config = resolve("tiny").config
    check_compilable(config, tiny_model("llama").config)
    with pytest.raises(ConfigError, match="cannot take gemma2: its attention has soft-capping or sinks"):
        check_compilable(config, tiny_model("gemma2").config)


def test_train_refuses_them_before_loading(cli, tiny_run):
    result = cli("train", "-p", "tiny", "--data", tiny_run.data, "-o", "run", "-s", "train.kernels=compile")
    assert result.code == 2
    assert result.stderr.startswith("error: train.kernels = 'compile' is for CUDA")


def test_liger_is_called_as_it_is_published_and_missing_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ConfigError, match="liger-kernel cannot be imported"):
        kernels.check_kernels("liger", "packed", "auto", torch.device("cuda"))
    called = []

    def apply(model, **switches):  # liger_kernel 0.8: _apply_liger_kernel_to_instance(model, **kwargs)
        called.append((model, switches))

    fake = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None}, _apply_liger_kernel_to_instance=apply)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", fake)
    kernels.check_kernels("liger", "packed", "auto", torch.device("cuda"))
    network = tiny_model("llama")
    kernels.use_liger(network)
    assert called == [(network, {"cross_entropy": False, "fused_linear_cross_entropy": False})]
    with pytest.raises(RmcliError, match="Liger has no kernels for qwen3"):
        kernels.use_liger(tiny_model("qwen3"))
