"""Model FLOPs of a step: what the mathematics needs, whatever was recomputed or padded (MFU: PaLM, arXiv 2204.02311).

    F = 6 * N * T + 6 * H * (d_k + d_v) * A        per layer, forward and backward

N matmul weights that are active for a token (4 * N where they are frozen), T tokens, H heads of d_k (keys) and d_v
(values) numbers, A allowed (query, key) pairs. A group of a prompt of P tokens and responses of R_j that share it has
A = P (P + 1) / 2 + sum_j [R_j P + R_j (R_j + 1) / 2]; a sliding window of W bounds what one query sees. Embeddings,
norms and the head are not counted. "Effective" is the same for the conversations unshared, each with its own prompt.

Axes: G groups, R responses of all groups end to end.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from rmcli.records import TokenGroup

# Dense bf16 matrix FLOP/s, as the makers' data sheets have them (without sparsity).
PEAK_FLOPS = {
    r"H100 PCIe": 756e12,
    r"H100 NVL": 835e12,
    r"H200 NVL": 835e12,
    r"H100|H200|GH200": 989e12,
    r"B200": 2250e12,
    r"A100|A800": 312e12,
    r"L40S": 362e12,
    r"L40\b": 181e12,
    r"\bL4\b": 121e12,
    r"A10G\b": 70e12,
    r"A10\b": 125e12,
    r"RTX 4090": 165e12,
    r"RTX 3090": 71e12,
}


def peak_flops(device_name: str, in_fp8: bool = False) -> float | None:
    """Dense bf16 FLOP/s of a CUDA device by its name, or those in FP8, twice as many; None when it is not known."""
    found = next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, device_name)), None)
    return found and found * (2 if in_fp8 else 1)


@dataclass(frozen=True)
class FlopCounter:
    """What the formula needs of a model. `windows` has one entry per layer, None where it sees everything.

    `weights` are those of all layers; when the last layer is trimmed to the reward positions, `last_weights` of them
    run there only, but for the `key_value_weights`, which every token needs.
    """

    weights: int
    last_weights: int
    key_value_weights: int
    windows: tuple[int | None, ...]
    num_heads: int
    key_size: int
    value_size: int
    trimmed: bool
    per_weight: float = 6.0  # forward, gradients of what goes in and, of what trains, of the weight: 2 each

    @staticmethod
    def of(backbone: nn.Module, last_layer: nn.Module | None, config: Any, trimmed: bool) -> "FlopCounter":
        """`config`: the text model's. `last_layer` is needed when it is trimmed."""
        num_heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        rope_size = getattr(config, "qk_rope_head_dim", None)
        nope_size = getattr(config, "qk_nope_head_dim", None)
        num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
        value_size = getattr(config, "v_head_dim", None) or head_size
        return FlopCounter(
            weights=_matmul_weights(backbone, config),
            last_weights=_matmul_weights(last_layer, config) if trimmed and last_layer is not None else 0,
            key_value_weights=_key_value_weights(config, num_kv_heads, head_size, value_size),
            windows=_windows(config),
            num_heads=num_heads,
            key_size=nope_size + rope_size if nope_size and rope_size else head_size,
            value_size=value_size,
            trimmed=trimmed,
        )

    def of_groups(self, groups: Sequence[TokenGroup], shared: bool = True) -> float:
        """Forward and backward FLOPs; with `shared=False` as if each conversation ran its own prompt."""
        prefixes_G = np.array([len(group.prefix) for group in groups], np.int64)
        numbers_G = np.array([len(group.responses) for group in groups], np.int64)
        responses_R = np.array([len(response) for group in groups for response in group.responses], np.int64)
        return float(self.of_lengths(prefixes_G, numbers_G, responses_R, shared).sum())

    def of_lengths(
        self, prefixes_G: np.ndarray, numbers_G: np.ndarray, responses_R: np.ndarray, shared: bool = True
    ) -> np.ndarray:
        """(G,) the same of each group: tokens of its prefix, how many responses it has; tokens of each response."""
        starts_G = np.cumsum(numbers_G) - numbers_G
        if shared:
            return self._of_groups(prefixes_G, numbers_G, responses_R, starts_G)
        alone_R = np.repeat(prefixes_G, numbers_G) + responses_R
        none_R, one_R = np.zeros_like(alone_R), np.ones_like(alone_R)
        return np.add.reduceat(self._of_groups(none_R, one_R, alone_R, np.arange(len(alone_R))), starts_G)

    def _of_groups(
        self, prefixes_G: np.ndarray, numbers_G: np.ndarray, responses_R: np.ndarray, starts_G: np.ndarray
    ) -> np.ndarray:
        prefixes_R = np.repeat(prefixes_G, numbers_G)
        ends_R = prefixes_R + responses_R
        tokens_G = prefixes_G + np.add.reduceat(responses_R, starts_G)
        allowed_G = np.zeros(len(prefixes_G))
        for window, layers in Counter(self.windows[:-1] if self.trimmed else self.windows).items():
            beyond_R = _pairs(ends_R, window) - _pairs(prefixes_R, window)
            allowed_G += layers * (_pairs(prefixes_G, window) + np.add.reduceat(beyond_R, starts_G))
        flops_G = self.per_weight * (self.weights - self.last_weights) * tokens_G
        if self.trimmed:
            window = self.windows[-1]
            allowed_G += np.add.reduceat(ends_R if window is None else np.minimum(ends_R, window), starts_G)
            flops_G += self.per_weight * self.key_value_weights * tokens_G
            flops_G += self.per_weight * (self.last_weights - self.key_value_weights) * numbers_G
        return flops_G + 6.0 * self.num_heads * (self.key_size + self.value_size) * allowed_G


def _pairs(lengths: np.ndarray, window: int | None) -> np.ndarray:
    """Allowed (query, key) pairs of causal sequences."""
    seen = lengths if window is None else np.minimum(lengths, window)
    return seen * (seen + 1) // 2 + (lengths - seen) * seen


def _key_value_weights(config: Any, num_kv_heads: int, head_size: int, value_size: int) -> int:
    """Of the projections that give one layer's keys and values; in multi-head latent attention by way of a rank."""
    rank = getattr(config, "kv_lora_rank", None)
    if not rank:
        return config.hidden_size * num_kv_heads * (head_size + value_size)
    nope_size, rope_size = config.qk_nope_head_dim, config.qk_rope_head_dim
    return config.hidden_size * (rank + rope_size) + rank * config.num_attention_heads * (nope_size + value_size)


ACTIVE_EXPERTS = ("num_experts_per_tok", "moe_k", "moe_topk")  # what configs call the experts of one token


def _matmul_weights(module: nn.Module, config: Any) -> int:
    """Numbers in the matrices that one token meets; of E experts, stored as one tensor, the share that is active."""
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    active = next((getattr(config, name) for name in ACTIVE_EXPERTS if getattr(config, name, None)), None)
    total = 0
    for name, parameter in module.named_parameters():
        if id(parameter) in embeddings or name.endswith("bias"):
            continue
        if parameter.ndim == 2:
            total += parameter.numel()
        elif parameter.ndim == 3 and active:
            total += parameter.numel() * active // parameter.shape[0]
    return total


def _windows(config: Any) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        applies = window is not None and getattr(config, "use_sliding_window", True)
        return (window if applies else None,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
