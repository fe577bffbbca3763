"""Every backend of the attention over packed rows, as far as a CPU can show it.

varlen and flash are called against fakes of their published signatures that compute the right answer in a loop;
FlexAttention runs in torch's own dense form, whose backward torch keeps from CPU users by one check.
"""

import sys
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError
from rmcli.installed import install_command
from rmcli.model import batch
from rmcli.model.attention import by_segment, fa3, varlen
from rmcli.model.attention.call import Call
from rmcli.model.attention.layout import PackedLayout, Segment
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, BACKENDS, _choose
from rmcli.model.backend import check_attention, set_attention
from rmcli.model.forward import scores
from rmcli.model.network import trim
from rmcli.model.self_test import settle_batches
from support.exactness import backbone_scores, gradients, largest_relative, tiny_network, uneven_groups
from support.networks import tiny_model
from support.places import REPOSITORY


def reference_varlen(query, key, value, cu_seq_q, cu_seq_k, scale, window_size, softcap=0.0):
    """What the kernels compute, written out per segment: causal at the bottom right, grouped queries repeated."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert query.shape[2] % 8 == 0
    assert len(query) == cu_seq_q[-1]
    assert len(key) == len(value) == cu_seq_k[-1]
    assert window_size[1] == 0
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    outputs = []
    for n in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[n] : cu_seq_q[n + 1]].transpose(0, 1)
        k, v = (t[cu_seq_k[n] : cu_seq_k[n + 1]].transpose(0, 1) for t in (key, value))
        logits = q @ k.transpose(1, 2) * scale
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        rows, columns = logits.shape[1:]
        distance = torch.arange(rows)[:, None] + columns - rows - torch.arange(columns)
        allowed = (distance >= 0) & (distance <= (window_size[0] if window_size[0] >= 0 else columns))
        outputs.append((logits.masked_fill(~allowed, float("-inf")).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


def varlen_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    return reference_varlen(query, key, value, cu_seq_q, cu_seq_k, scale, window_size)


def varlen_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return varlen_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """flash_attn 2.6 to 2.8."""
    assert max_seqlen_q == cu_seqlens_q.diff().max()
    assert max_seqlen_k == cu_seqlens_k.diff().max()
    assert causal is True
    assert dropout_p == 0
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    assert alibi_slopes is block_table is None
    return reference_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, softmax_scale, window_size, softcap)


@pytest.fixture
def fake_kernels(monkeypatch):
    """All made to run on CPU, gradients included; fa3 is varlen's function on other kernels."""
    from torch.nn.attention import flex_attention
    from torch.nn.attention import varlen as torch_varlen

    package = SimpleNamespace(__version__="2.8.3", flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setattr(torch_varlen, "varlen_attn", varlen_2_13)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(fa3, "switch", lambda on: None)
    monkeypatch.setattr(fa3, "is_on", lambda: True)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    return monkeypatch


# The second is torch's own, on its way through the dense form with gradients.
UNCOMPILED = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
FITS = {
    "llama": ("varlen", "fa3", "flash", "sdpa", "flex"),
    "mistral": ("varlen", "fa3", "flash", "sdpa", "flex"),  # a window
    "gemma2": ("flash", "sdpa", "flex"),  # soft-capping, and a window in some layers
    "gpt_oss": ("sdpa", "flex"),  # sinks, and a window in some layers
    "deepseek_v3": ("varlen", "fa3", "flash", "sdpa", "flex"),  # heads of keys and values differ
}


@UNCOMPILED
@pytest.mark.parametrize("rows", ["whole", "trimmed"])
@pytest.mark.parametrize(("name", "backend"), [(name, backend) for name in FITS for backend in FITS[name]])
def test_every_backend_scores_and_learns_as_single_conversations_do(name, backend, rows, fake_kernels):
    network, groups = tiny_network(name), uneven_groups()
    expected = backbone_scores(network, groups)
    expected_gradients = gradients(network, expected)
    network.set_attn_implementation(ATTENTION_NAME)
    set_attention(network, backend)
    if rows == "trimmed":
        trim(network)
    called = []
    for known, attend in BACKENDS.items():
        spy = lambda call, known=known, attend=attend: (called.append(known), attend(call))[1]  # noqa: E731
        fake_kernels.setitem(BACKENDS, known, spy)
    actual = scores(network, batch.build_packed(groups))
    assert set(called) == {backend}
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert largest_relative(gradients(network, actual), expected_gradients) < 1e-4


@UNCOMPILED
@pytest.mark.parametrize(("name", "column", "shift"), [("llama", 0, -1), ("llama", 2, 1), ("mistral", 3, 1)])
def test_one_key_too_many_is_noticed_under_flex(name, column, shift, fake_kernels):
    """The token before a segment, the one after a prefix; and queries of later responses one place further on."""
    network, packed = tiny_network(name), batch.build_packed(uneven_groups())
    network.set_attn_implementation(ATTENTION_NAME)
    set_attention(network, "flex")
    with torch.no_grad():
        expected = scores(network, packed)
        layout = batch.build_packed(uneven_groups()).layout
        later = layout.token_table[2] > layout.token_table[1]
        layout.token_table[column, later] += shift
        actual = scores(network, replace(packed, layout=layout))
    assert (actual - expected).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", [varlen_2_11, varlen_2_13])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("kv_heads", [2, 6])
@pytest.mark.parametrize("size", [8, 12])
def test_the_varlen_call_equals_the_loop_over_segments(kernel, window, kv_heads, size, monkeypatch):
    from torch.nn.attention import varlen as torch_varlen

    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    layout = batch.build_packed(uneven_groups()).layout
    torch.manual_seed(0)
    query = torch.randn(1, 6, layout.num_tokens, size, requires_grad=True)
    key, value = (torch.randn(1, kv_heads, layout.num_tokens, size, requires_grad=True) for _ in range(2))
    results = []
    for attend in (varlen.attend, by_segment.attend):
        output = attend(Call(query, key, value, layout, window=window))
        results.append((output, *torch.autograd.grad(output.square().sum(), (query, key, value))))
    for by_kernel, by_loop in zip(*results, strict=True):
        torch.testing.assert_close(by_kernel, by_loop, atol=2e-5, rtol=1e-5)


@UNCOMPILED
def test_the_gradient_through_flex_attentions_sinks_is_exact_in_float64(fake_kernels):
    """Other kernels drop the gradient of lse, by which a sink enters: errors of some per cent, not of 1e-12."""
    layout = batch.build_packed(uneven_groups()).layout
    torch.manual_seed(0)
    shapes = [(1, 6, layout.num_tokens, 8), (1, 2, layout.num_tokens, 8), (1, 2, layout.num_tokens, 8), (6,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    query, key, value, sinks = tensors
    results = []
    for backend in ("flex", "sdpa"):
        call = Call(query, key, value, layout, scaling=0.3, window=6, softcap=2.0, sinks=sinks)
        output = BACKENDS[backend](call)
        results.append((output, *torch.autograd.grad(output.square().sum(), tensors)))
    for by_flex, by_loop in zip(*results, strict=True):
        torch.testing.assert_close(by_flex, by_loop, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["varlen", "fa3", "flash", "sdpa"])
def test_a_bfloat16_forward_gives_every_kernel_bfloat16(backend, fake_kernels):
    """Rotary embeddings give float32 back under autocast."""
    network, packed = tiny_model("qwen3"), batch.build_packed(uneven_groups())
    seen = []
    attend = BACKENDS[backend]
    spy = lambda call: (seen.extend(t.dtype for t in call[:3]), attend(call))[1]  # noqa: E731
    fake_kernels.setitem(BACKENDS, backend, spy)
    set_attention(network, backend)
    with torch.no_grad():
        reduced = scores(network, packed, "bfloat16")
        full = scores(network, packed, "float32")
    assert seen == [torch.bfloat16] * 9 + [torch.float32] * 9  # 3 layers
    assert 1e-4 < (reduced - full).abs().max() < 0.2


# --- what auto means, and what cannot run ---


def test_auto_is_sdpa_on_cpu_and_in_float32_varlen_on_cuda_and_flex_where_varlen_cannot():
    def chosen(is_cuda: bool, dtype: torch.dtype, **needs: object) -> str:
        return _choose(Call(SimpleNamespace(is_cuda=is_cuda, dtype=dtype), None, None, None, **needs))

    assert chosen(False, torch.bfloat16) == "sdpa"
    assert chosen(False, torch.float32, softcap=2.0) == "sdpa"
    assert chosen(True, torch.float32, softcap=2.0) == "sdpa"
    assert chosen(True, torch.bfloat16) == "varlen"
    assert chosen(True, torch.bfloat16, window=6) == "varlen"
    assert chosen(True, torch.bfloat16, softcap=2.0) == "flex"
    assert chosen(True, torch.bfloat16, sinks=torch.zeros(6)) == "flex"


CUDA = torch.device("cuda")


def checked(
    backend: str,
    device: torch.device,
    rows: str = "packed",
    dtype: str = "auto",
    settings: tuple[str, ...] = (),
    **text: object,
) -> None:
    config = resolve("tiny", (), (f"model.attention={backend}", f"model.dtype={dtype}", *settings)).config
    model_config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text))
    check_attention(config, model_config, rows, device)


def test_what_cannot_run_is_refused_in_one_line_before_loading(monkeypatch):
    cpu = torch.device("cpu")
    for backend in ("varlen", "fa3", "flash", "flex"):
        with pytest.raises(
            ConfigError, match=f"model.attention = '{backend}' runs on CUDA only, and the device is cpu"
        ):
            checked(backend, cpu)
    for backend in ("varlen", "fa3", "flash"):
        with pytest.raises(ConfigError, match=f"'{backend}' computes in bfloat16 only, and model.dtype is float32"):
            checked(backend, CUDA, dtype="float32")
    with pytest.raises(
        ConfigError, match=r"config.json has attention_dropout = 0.1, and model.attention = 'auto' has"
    ):
        checked("auto", CUDA, attention_dropout=0.1)
    with pytest.raises(ConfigError, match=r"config.json has attn_pdrop = 0.1, and model.attention = 'flex' has"):
        checked("flex", CUDA, attn_pdrop=0.1)
    checked("auto", cpu, attention_dropout=0.1)
    checked("auto", CUDA, attention_dropout=0.1, dtype="float32")
    checked("sdpa", CUDA, attention_dropout=0.1)
    checked("varlen", CUDA)
    checked("flex", CUDA, dtype="float32")
    monkeypatch.setattr(fa3, "check", lambda device: None)
    with pytest.raises(ConfigError, match="no deterministic backward for heads of 256 numbers, only up to 192"):
        checked("fa3", CUDA, settings=("train.deterministic=true",), head_dim=256)
    checked("fa3", CUDA, settings=("train.deterministic=true",), hidden_size=512, num_attention_heads=8)
    for backend in ("varlen", "fa3"):
        for needs in ({"attn_logit_softcapping": 50.0, "model_type": "gemma2"}, {"model_type": "gpt_oss"}):
            with pytest.raises(
                ConfigError,
                match=f"'{backend}' has no soft-capping of logits and no sinks, which {needs['model_type']} has",
            ):
                checked(backend, CUDA, **needs)


def test_flash_names_the_package_it_misses_and_the_version_it_cannot_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ConfigError, match=r"model.attention = 'flash': flash-attn cannot be imported") as missing:
        checked("flash", CUDA)
    assert install_command("flash", "--no-build-isolation") in missing.value.hint
    for version in ("2.5.9", "3.0.0"):
        monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(__version__=version))
        with pytest.raises(ConfigError, match=f"takes flash-attn 2.6 or a later 2.x, not {version}"):
            checked("flash", CUDA)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(__version__="2.7.4.post1"))
    checked("flash", CUDA)


def test_nothing_but_its_own_extra_asks_for_flash_attn():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name, packages in extras.items() if any("flash" in package for package in packages)] == ["flash"]
    assert "flash" not in (REPOSITORY / "constraints.txt").read_text()


def test_a_choice_without_effect_is_said(capsys):
    checked("varlen", torch.device("cpu"), rows="padded")
    assert "model.attention = 'varlen' has no effect: it is for packed rows, and these are padded" in (
        capsys.readouterr().err
    )
    checked("auto", torch.device("cpu"), rows="padded")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("backend", "needs", "said"),
    [
        ("varlen", {"softcap": 2.0}, "attention varlen has no soft-capping of logits"),
        ("varlen", {"sinks": torch.zeros(6)}, "attention varlen has no sinks"),
        ("varlen", {"dropout": 0.1}, "attention varlen has no dropout, and the model has 0.1"),
        ("fa3", {"softcap": 2.0}, "attention fa3 has no soft-capping of logits"),
        ("flash", {"sinks": torch.zeros(6)}, "attention flash has no sinks"),
        ("flex", {"dropout": 0.1}, "attention flex has no dropout, and the model has 0.1"),
    ],
)
def test_what_a_layer_needs_and_a_backend_lacks_is_refused(backend, needs, said):
    layout = batch.build_packed(uneven_groups()).layout
    row = torch.zeros(1, 6, layout.num_tokens, 8)
    with pytest.raises(ConfigError, match=said):
        BACKENDS[backend](Call(row, row, row, layout, **needs))


@pytest.mark.parametrize("backend", ["varlen", "fa3", "flash"])
def test_heads_that_are_too_large_are_refused(backend, monkeypatch):
    monkeypatch.setattr(fa3, "is_on", lambda: True)
    layout = batch.build_packed(uneven_groups()).layout
    row = torch.zeros(1, 1, layout.num_tokens, 257)
    with pytest.raises(ConfigError, match="heads of 264 numbers are too large for this kernel, which takes 256"):
        BACKENDS[backend](Call(row, row, row, layout))


def test_the_self_test_passes_such_a_refusal_on():
    network = tiny_network("gemma2")
    network.set_attn_implementation(ATTENTION_NAME)
    set_attention(network, "varlen")
    with pytest.raises(ConfigError, match="attention varlen has no soft-capping of logits"):
        settle_batches(network, SimpleNamespace(kind="packed"), "float32")


def test_the_key_goes_through_the_commands(cli, tiny_run):
    steps = ("--preset", "tiny", "--data", tiny_run.data, "-s", "train.max_steps=1")
    refused = cli("train", *steps, "-o", "refused", "-s", "model.attention=varlen")
    assert refused.code == 2
    assert "error: model.attention = 'varlen' runs on CUDA only, and the device is cpu" in refused.stderr
    assert "hint: set model.attention=auto, or sdpa" in refused.stderr
    assert cli("train", *steps, "-o", "run", "-s", "model.attention=sdpa").code == 0
    refused = cli("score", tiny_run.model, tiny_run.data / "eval.jsonl", "-s", "model.attention=flex")
    assert refused.code == 2
    assert "error: model.attention = 'flex' runs on CUDA only" in refused.stderr


# --- keys and values gathered per segment ---


def gathered(layout: PackedLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of a row's keys: of `gather_keys` and of `index_select`, from one random gradient."""
    torch.manual_seed(0)
    row = torch.randn(layout.num_tokens, 2, 8, dtype=torch.float64, requires_grad=True)
    above = torch.randn(len(layout.kv_index), 2, 8, dtype=torch.float64)
    results = varlen.gather_keys(row, layout), row.index_select(0, layout.kv_index)
    assert torch.equal(*results)
    ours, torchs = (torch.autograd.grad(result, row, above)[0] for result in results)
    return ours, torchs


def test_gathered_keys_have_the_gradient_of_index_select():
    layout = batch.build_packed(uneven_groups()).layout
    ours, torchs = gathered(layout)
    torch.testing.assert_close(ours, torchs, atol=1e-12, rtol=0)
    assert torch.equal(gathered(layout)[0], ours)
    at_scores, _ = gathered(layout.at_scores)
    assert torch.equal(at_scores, ours)


def test_a_prefix_of_eight_responses_sums_its_gradients_in_float32():
    layout = PackedLayout.from_segments((Segment(0, 5, 0, 0), *(Segment(5 + 2 * n, 2, 0, 3) for n in range(7))))
    torch.manual_seed(0)
    row = torch.randn(layout.num_tokens, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    above = torch.randn(len(layout.kv_index), 2, 8, dtype=torch.bfloat16)
    (ours,) = torch.autograd.grad(varlen.gather_keys(row, layout), row, above)
    exact = torch.zeros(layout.num_tokens, 2, 8, dtype=torch.float64).index_add(0, layout.kv_index, above.double())
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.to(torch.bfloat16))


def test_the_copies_of_two_groups_by_hand():
    layout = PackedLayout.from_segments(
        (
            Segment(0, 3, 0, 0),
            Segment(3, 2, 0, 2),
            Segment(5, 1, 0, 2),
            Segment(6, 2, 6, 0),
            Segment(8, 1, 6, 1),
        )
    )
    assert layout.kv_index.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 5, 6, 7, 6, 8]
    assert layout.copies.tolist() == [
        [0, 1, 2, 5, 6, 9, 10, 11, 13],
        [3, 4, -1, -1, -1, -1, 12, -1, -1],
        [7, 8, -1, -1, -1, -1, -1, -1, -1],
    ]
    assert layout.token_table.tolist() == [
        [0, 0, 0, 3, 3, 5, 6, 6, 8],
        [0, 0, 0, 0, 0, 0, 6, 6, 6],
        [0, 0, 0, 2, 2, 2, 6, 6, 7],
        [0, 1, 2, 2, 3, 2, 0, 1, 1],
    ]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracer does
def test_gathering_compiles_into_one_graph():
    layout = batch.build_packed(uneven_groups()).layout
    row = torch.randn(layout.num_tokens, 2, 8, requires_grad=True)
    copies = layout.copies

    @torch.compile(fullgraph=True, backend="aot_eager")
    def gather(row_THD: torch.Tensor) -> torch.Tensor:
        return varlen._GatherKeys.apply(row_THD, layout.kv_index, copies).square().sum()

    (compiled,) = torch.autograd.grad(gather(row), row)
    (plain,) = torch.autograd.grad(varlen.gather_keys(row, layout).square().sum(), row)
    torch.testing.assert_close(compiled, plain)
