"""FlashAttention 3 in torch's place, by a package that only looks like its kernels. What they compute: test_cuda."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import attention

from rmcli.errors import ConfigError
from rmcli.model.attention import fa3, varlen
from rmcli.model.attention.call import Call
from rmcli.model.backend import attention_backend, set_attention

CUDA = torch.device("cuda")


@pytest.fixture
def kernels(monkeypatch):
    """A package of their name that holds none, on a Hopper that is none; torch's own are back at the end."""
    monkeypatch.setattr(fa3._fa3, "_fa3_import_module", lambda module_path: None)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", ModuleType("flash_attn_interface"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=9, minor=0))
    yield monkeypatch
    fa3.switch(False)


def test_they_are_in_while_a_network_is_told_to_run_on_them_and_out_again(kernels):
    network = SimpleNamespace()
    assert attention.current_flash_attention_impl() is None
    set_attention(network, "fa3")
    assert attention.current_flash_attention_impl() == fa3.NAME
    set_attention(network, "fa3")
    with attention_backend(network, "sdpa"):
        assert attention.current_flash_attention_impl() is None
    assert attention.current_flash_attention_impl() == fa3.NAME
    set_attention(network, "varlen")
    assert attention.current_flash_attention_impl() is None


def test_torchs_operators_really_are_theirs(kernels):
    """torch's dispatcher says who computes them on CUDA."""
    name = "aten::_flash_attention_forward"
    before = torch._C._dispatch_dump(name)
    fa3.switch(True)
    assert "_fa3" in torch._C._dispatch_dump(name).partition("CUDA")[2].splitlines()[0]
    fa3.switch(False)
    assert torch._C._dispatch_dump(name) == before


def test_what_is_missing_or_no_hopper_is_one_line(kernels):
    fa3.check(CUDA)
    kernels.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=8, minor=0))
    with pytest.raises(ConfigError, match=r"'fa3' runs on Hopper \(compute capability 9.0\), and cuda has 8.0"):
        fa3.check(CUDA)
    kernels.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=9, minor=0))
    kernels.setattr(fa3, "MODULES", ("rmcli_no_such_kernels", "email.flash_attn_3._C"))
    for use in (lambda: fa3.check(CUDA), lambda: fa3.switch(True)):
        with pytest.raises(ConfigError, match="no package with FlashAttention 3's kernels is installed") as missing:
            use()
        assert "pip install --no-deps xformers==0.0.34" in missing.value.hint


@pytest.mark.parametrize(
    ("says", "hint"),
    [
        ("libcudart.so.12: cannot open shared object file", "pip install nvidia-cuda-runtime-cu12"),
        ("undefined symbol: aoti_torch_call", "pip install --no-deps xformers==0.0.34"),
    ],
)
def test_kernels_that_do_not_load_are_one_line_and_torchs_own_stay(kernels, tmp_path, says, hint):
    """Found by the file, without loading it; xformers' lie two folders down."""
    folder = tmp_path / "rmcli_kernels" / "flash_attn_3"
    folder.mkdir(parents=True)
    for place in (folder.parent, folder):
        (place / "__init__.py").write_text("")
    (folder / "_C.abi3.so").write_text("no library")
    (folder / "_C.py").write_text(f"raise OSError({says!r})")
    kernels.syspath_prepend(tmp_path)
    kernels.setattr(fa3, "MODULES", ("rmcli_kernels.flash_attn_3._C",))
    kernels.setattr(fa3, "_load_cuda_runtime", lambda: None)
    (folder / "_C.abi3.so").rename(folder / "_C_other.so")  # the .py is what Python finds
    for use in (lambda: fa3.check(CUDA), lambda: fa3.switch(True)):
        with pytest.raises(ConfigError, match=f"rmcli_kernels.flash_attn_3._C cannot be loaded: {says}") as broken:
            use()
        assert hint in broken.value.hint
    assert attention.current_flash_attention_impl() is None
    sys.modules.pop("rmcli_kernels.flash_attn_3", None)
    sys.modules.pop("rmcli_kernels", None)


def test_the_runtime_of_cuda_12_is_found_where_pip_puts_it(tmp_path, monkeypatch):
    library = tmp_path / "nvidia" / "cuda_runtime" / "lib" / fa3.RUNTIME
    library.parent.mkdir(parents=True)
    library.write_text("")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "other"), str(tmp_path / "nvidia")])
    monkeypatch.setattr(fa3, "find_spec", lambda name: spec if name == "nvidia" else None)
    loaded = []
    monkeypatch.setattr(fa3.ctypes, "CDLL", lambda path, mode: loaded.append(path))
    fa3._load_cuda_runtime()
    assert loaded == [str(library)]


def test_a_network_whose_kernels_another_has_put_out_says_so(kernels):
    layout = SimpleNamespace(cu_seq_q=None, cu_seq_k=None, max_q=4, max_k=4)
    call = Call(torch.zeros(1, 6, 4, 64), *[torch.zeros(1, 2, 4, 64)] * 2, layout)
    set_attention(SimpleNamespace(), "fa3")
    set_attention(SimpleNamespace(), "auto")
    with pytest.raises(ConfigError, match="another network of this process has put torch's own kernels back"):
        varlen.attend_with_fa3(call)


def test_the_package_is_named_for_the_record(kernels):
    assert fa3.package() == "flash_attn_interface"
    kernels.setattr(fa3, "MODULES", ("pytest",))
    assert fa3.package() == f"pytest {pytest.__version__}"


@pytest.mark.parametrize("is_compiling", [False, True])
def test_grouped_heads_reach_its_kernel_as_they_are(is_compiling, monkeypatch):
    """Compiled layers spread them for torch's own kernel alone."""
    seen = {}

    def spy(query, key, value, *rest, **more):
        seen[len(seen)] = (query.shape[1], key.shape[1])
        return torch.zeros_like(query)

    monkeypatch.setattr(varlen.varlen, "varlen_attn", spy)
    monkeypatch.setattr(varlen, "gather_keys", lambda tensor, layout: tensor)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: is_compiling)
    monkeypatch.setattr(fa3, "is_on", lambda: True)
    layout = SimpleNamespace(cu_seq_q=None, cu_seq_k=None, max_q=4, max_k=4)
    call = Call(torch.zeros(1, 6, 4, 64), *[torch.zeros(1, 2, 4, 64)] * 2, layout)
    varlen.attend_with_fa3(call)
    varlen.attend(call)
    assert seen == {0: (6, 2), 1: (6, 6 if is_compiling else 2)}
