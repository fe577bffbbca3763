"""Tiny random networks and groups, and a guard against waiting for the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, Gemma2Config, LlamaConfig, Qwen3Config

from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.batch import build_padded
from rmcli.records import TokenGroup

VOCABULARY = 97


def random_group(
    generator: np.random.Generator, prefix: int, responses: Sequence[int], **values: float
) -> TokenGroup:
    def draw(length: int) -> np.ndarray:
        return generator.integers(0, VOCABULARY, length).astype(np.int32)

    return TokenGroup(draw(prefix), tuple(draw(length) for length in responses), **values)


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_labels": 1,
    "pad_token_id": 0,
}


# Large enough weights that attention matters; the Gemma's window and soft-cap must be felt in short sequences.
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, initializer_range=0.15),
    "qwen3": lambda: Qwen3Config(**_SIZES, initializer_range=0.15),
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        initializer_range=0.15,
        sliding_window=6,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def tiny_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> torch.nn.Module:
    """A random reward model with a seeded non-zero head, on the shared-prefix attention."""
    register()
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    network = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    torch.nn.init.normal_(network.score.weight, std=0.3)
    network.set_attn_implementation(ATTENTION_NAME)
    return network.eval()


class NoWaiting(TorchDispatchMode):
    """Reading a number from a tensor, or a shape that depends on numbers, stops the host until the device is done."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "unique", "equal")
        return function(*args, **(kwargs or {}))


def single_batches(groups: Sequence[TokenGroup]) -> list:
    """Each conversation alone, unpadded, in score order."""
    empty = np.empty(0, dtype=np.int32)
    return [
        build_padded([TokenGroup(empty, (np.concatenate([group.prefix, response]),))], 0)
        for group in groups
        for response in group.responses
    ]
