"""Which attention a network runs: a backend for packed rows (`model.attention`), or one of transformers' own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rmcli import output
from rmcli.config.sections import Config
from rmcli.errors import ConfigError
from rmcli.model.attention import fa3
from rmcli.model.attention.needs import wants_flex
from rmcli.model.attention.shared_prefix import check_backend
from rmcli.model.device import is_reduced
from rmcli.model.network import backbone
from rmcli.records import BatchKind

LARGEST_DETERMINISTIC = 192  # of FlashAttention 3's heads


def set_attention(network: Any, backend: str) -> None:
    """Let packed rows be run by this backend, a value of `model.attention`; a network never told runs auto.

    FlashAttention 3 is then in for the process, or out: networks that run side by side agree on it.
    """
    fa3.switch(backend == "fa3")
    network.packed_backend = backend


@contextmanager
def attention_backend(network: Any, backend: str) -> Iterator[None]:
    """Run packed rows by another backend for a while."""
    before = getattr(network, "packed_backend", "auto")
    set_attention(network, backend)
    try:
        yield
    finally:
        set_attention(network, before)


def check_attention(config: Config, model_config: PreTrainedConfig, kind: BatchKind, device: torch.device) -> None:
    """Raise ConfigError when `model.attention` cannot run this model here, before its weights are loaded."""
    backend = config.model.attention
    if kind != "packed":
        if backend != "auto":
            output.warn(f"model.attention = {backend!r} has no effect: it is for packed rows, and these are {kind}")
        return
    reduced = is_reduced(config.model.dtype, device)
    check_backend(backend, device, reduced)
    text = model_config.get_text_config()
    if backend in ("varlen", "fa3") and wants_flex(text):
        raise ConfigError(
            f"model.attention = {backend!r} has no soft-capping of logits and no sinks, which {text.model_type} has",
            "set model.attention=auto",
        )
    heads = getattr(text, "num_attention_heads", 1)
    size = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // heads
    if backend == "fa3" and config.train.deterministic and size > LARGEST_DETERMINISTIC:
        raise ConfigError(
            f"model.attention = 'fa3' has no deterministic backward for heads of {size} numbers, only up to "
            f"{LARGEST_DETERMINISTIC}",
            "set model.attention=varlen, or leave train.deterministic out",
        )
    no_dropout = backend in ("varlen", "fa3", "flex") or (backend == "auto" and device.type == "cuda" and reduced)
    for key in ("attention_dropout", "attn_pdrop"):
        if no_dropout and getattr(text, key, 0):
            raise ConfigError(
                f"config.json has {key} = {getattr(text, key)}, and model.attention = {backend!r} has no dropout",
                f"set {key} to 0 there, or model.attention=sdpa",
            )


def use_stock_attention(network: PreTrainedModel) -> None:
    """One of transformers' own attentions, for good: the fastest the architecture takes."""
    network.set_attn_implementation("sdpa" if backbone(network)._supports_sdpa else "eager")


@contextmanager
def stock_attention(network: PreTrainedModel, name: str) -> Iterator[None]:
    """Run with one of transformers' own attentions for a while."""
    before = str(network.config._attn_implementation)
    network.set_attn_implementation(name)
    try:
        yield
    finally:
        network.set_attn_implementation(before)
