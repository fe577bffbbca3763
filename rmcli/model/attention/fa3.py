"""FlashAttention 3, Hopper's own kernels, behind torch's flash operators: `varlen_attn` then runs on them.

torch takes other kernels in the place of its own for a whole process (`activate_flash_attention_impl`, torch 2.11 and
later), SDPA's too. They are in while a network is told to run on them and out again when it is told otherwise.
"""

import warnings
from functools import partial
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

import torch
from torch.nn import attention
from torch.nn.attention import _fa3

from rmcli.errors import ConfigError

# What holds torch.ops.flash_attn_3, where it is looked for in turn: FlashAttention's own build, its wheel, xformers'.
MODULES = ("flash_attn_interface", "flash_attn_3._C", "xformers.flash_attn_3._C")
NAME = "rmcli-FA3"
HOPPER = (9, 0)
HINT = "pip install --no-deps xformers==0.0.34 brings its kernels (docs/attention.md), or set model.attention=varlen"


def check(device: torch.device) -> None:
    """Raise ConfigError where its kernels are not installed, or the device is none that they are made for."""
    _module()
    capability = torch.cuda.get_device_capability(device)
    if capability != HOPPER:
        raise ConfigError(
            f"model.attention = 'fa3' runs on Hopper (compute capability 9.0), and {device} has "
            f"{capability[0]}.{capability[1]}",
            "set model.attention=varlen",
        )


def switch(on: bool) -> None:
    """Put its kernels in, or torch's own back, unless they are. Raises ConfigError when they cannot be loaded."""
    is_on = attention.current_flash_attention_impl() == NAME
    if on and not is_on:
        module = _module()
        attention.register_flash_attention_impl(
            NAME, register_fn=partial(_fa3.register_flash_attention_fa3, module_path=module)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")  # that they are in its place is the point
            try:
                attention.activate_flash_attention_impl(NAME)
            except (ImportError, OSError, RuntimeError) as error:
                raise ConfigError(f"model.attention = 'fa3': {module} cannot be loaded: {error}", HINT) from error
    elif is_on and not on:
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
    """The first of MODULES that is installed, not loaded yet. Raises ConfigError when there is none."""
    for module in MODULES:
        try:
            if find_spec(module) is not None:
                return module
        except ImportError:  # of what a dotted name lies in
            continue
        except ValueError:  # put in by hand, without a spec
            return module
    raise ConfigError("model.attention = 'fa3': no package with FlashAttention 3's kernels is installed", HINT)
