"""FlashAttention 3, Hopper's own kernels, behind torch's flash operators: `varlen_attn` then runs on them.

torch takes other kernels in the place of its own for a whole process (`activate_flash_attention_impl`, torch 2.11 and
later), SDPA's too. They are in while a network is told to run on them and out again when it is told otherwise.
"""

import ctypes
import logging
import sys
import warnings
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import attention
from torch.nn.attention import _fa3

from rmcli.errors import ConfigError

# What holds torch.ops.flash_attn_3, where it is looked for in turn: FlashAttention's own build, its wheel, xformers'.
MODULES = ("flash_attn_interface", "flash_attn_3._C", "xformers.flash_attn_3._C")
NAME = "rmcli-FA3"
HOPPER = (9, 0)
HINT = "pip install --no-deps xformers==0.0.34 brings its kernels (docs/attention.md), or set model.attention=varlen"
# xformers' are built for CUDA 12, and a torch for CUDA 13 brings the runtime of that alone.
RUNTIME = "libcudart.so.12"
RUNTIME_HINT = "pip install nvidia-cuda-runtime-cu12 brings it beside any other, or set model.attention=varlen"


def check(device: torch.device) -> None:
    """Raise ConfigError where its kernels are not installed or do not load, or are not made for the device."""
    known = torch.cuda.get_device_properties(device)
    if (known.major, known.minor) != HOPPER:
        raise ConfigError(
            f"model.attention = 'fa3' runs on Hopper (compute capability 9.0), and {device} has "
            f"{known.major}.{known.minor}",
            "set model.attention=varlen",
        )
    _load(_module())


def is_on() -> bool:
    return attention.current_flash_attention_impl() == NAME


def switch(on: bool) -> None:
    """Put its kernels in, or torch's own back, unless they are. Raises ConfigError when they cannot be loaded."""
    if on and not is_on():
        module = _module()
        _load(module)
        attention.register_flash_attention_impl(
            NAME, register_fn=partial(_fa3.register_flash_attention_fa3, module_path=module)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")  # that they are in its place is the point
            try:
                attention.activate_flash_attention_impl(NAME)
            except RuntimeError as error:
                raise ConfigError(f"model.attention = 'fa3': {module} is of no use: {error}", HINT) from error
    elif is_on() and not on:
        attention.restore_flash_attention_impl()


def package() -> str:
    """What the kernels come from, for a run's record: name and version of the package."""
    top = _module().partition(".")[0]
    name = next(iter(packages_distributions().get(top, ())), top)
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def _module() -> str:
    """The first of MODULES that is installed; nothing is loaded for that. Raises ConfigError when there is none."""
    for module in MODULES:
        if module in sys.modules and sys.modules[module] is not None:
            return module
        top, *inner = module.split(".")
        found = find_spec(top) if sys.modules.get(top, top) is not None else None
        if found is None:
            continue
        places = [Path(place, *inner[:-1]) for place in found.submodule_search_locations or ()]
        if not inner or any(next(place.glob(f"{inner[-1]}*.so"), None) for place in places):
            return module
    raise ConfigError("model.attention = 'fa3': no package with FlashAttention 3's kernels is installed", HINT)


def _load(module: str) -> None:
    _load_cuda_runtime()
    logging.getLogger("xformers").setLevel(logging.ERROR)  # of its other kernels, which want another torch
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        hint = RUNTIME_HINT if RUNTIME in str(error) else HINT
        raise ConfigError(f"model.attention = 'fa3': {module} cannot be loaded: {error}", hint) from error


def _load_cuda_runtime() -> None:
    """From the package nvidia-cuda-runtime-cu12, where no linker looks for it."""
    spec = find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place) / "cuda_runtime" / "lib" / RUNTIME
        if path.is_file():
            with suppress(OSError):  # what needs it says that it is missing
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
