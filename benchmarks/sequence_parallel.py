"""What sharing one row between processes saves and sends: peak memory and bytes, on a CPU.

    python benchmarks/sequence_parallel.py        prints the table of docs/scaling.md

One pair of 8,192 tokens (a prompt of 4,096, responses of 2,048) through 6 layers of a random Llama in float32 and
back, the last one at the reward positions only, by 1, 2 and 4 gloo processes. The peak is that of the largest process
above what it holds once its network is built. No time is taken: the processes share one machine's cores.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import distributed, multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, LlamaConfig

from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.batch import build_packed
from rmcli.model.forward import scores
from rmcli.model.network import trim
from rmcli.model.recompute import checkpoint_activations
from rmcli.model.sequence_parallel import set_sequence_group
from rmcli.parallel.sequence import own_group
from rmcli.records import TokenGroup

PROMPT, RESPONSE = 4096, 2048
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
}


class Sent(TorchDispatchMode):
    """Bytes that this process sends to others: of what is swapped and of what is added up."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.swapped, self.added = size, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if "all_to_all_single" in name:
            self.swapped += args[0].nbytes * (self.size - 1) // self.size
        elif "all_reduce" in name:
            self.added += 2 * args[0].nbytes * (self.size - 1) // self.size
        return function(*args, **(kwargs or {}))


def run(rank: int, size: int, recompute: str, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    register()
    torch.manual_seed(0)
    network: Any = AutoModelForSequenceClassification.from_config(
        LlamaConfig(num_labels=1, **SIZES), trust_remote_code=False
    )
    network.set_attn_implementation(ATTENTION_NAME)
    trim(network.train())
    set_sequence_group(network, own_group(size))
    if recompute != "none":
        checkpoint_activations(network, recompute)
    generator = np.random.default_rng(0)
    prompt, *responses = (
        generator.integers(0, SIZES["vocab_size"], n).astype(np.int32) for n in (PROMPT, RESPONSE, RESPONSE)
    )
    pair = build_packed([TokenGroup(prompt, tuple(responses))])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    before = psutil.Process().memory_info().rss
    with Sent(size) as sent:
        better, worse = scores(network, pair)
        ((worse - better) / size).backward()
    highest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert highest is not None
    figures = {"peak": int(highest[1]) * 1024 - before, "swapped": sent.swapped, "added": sent.added}
    Path(folder, f"{rank}.json").write_text(json.dumps(figures), encoding="ascii")
    distributed.destroy_process_group()


def measure(size: int, recompute: str = "none") -> dict[str, int]:
    """Bytes, of the process that has most of each. Memory that is freed goes back at once: the peak is of tensors."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run, (size, recompute, folder), nprocs=size)
        of_each = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="ascii")) for rank in range(size)]
    return {name: max(figures[name] for figures in of_each) for name in of_each[0]}


def swapped_by_formula(size: int) -> int:
    """Bytes that each process sends, forward and backward, where heads of keys divide by `size` or it by them.

    A layer swaps its queries, keys and values, and its results back; the last one keys and values alone.
    """
    heads, keys = SIZES["num_attention_heads"], max(SIZES["num_key_value_heads"], size)
    head_size, layers = SIZES["hidden_size"] // heads, SIZES["num_hidden_layers"]
    of_token = 4 * head_size * ((layers - 1) * (2 * heads + 2 * keys) + 2 * keys)
    own_tokens = (PROMPT + 2 * RESPONSE) // size
    return 2 * own_tokens * of_token * (size - 1) // size


def main() -> None:
    print("| computed again | processes | peak, MiB | of one's | swapped, MiB sent by each | by formula |")
    print("|---|---:|---:|---:|---:|---:|")
    for recompute in ("none", "selective", "full"):
        alone = 0.0
        for size in (1, 2, 4):
            figures = measure(size, recompute)
            peak, swapped, formula = (
                number / 2**20 for number in (figures["peak"], figures["swapped"], swapped_by_formula(size))
            )
            alone = alone or peak
            line = f"| {recompute} | {size} | {peak:,.0f} | {peak / alone:.2f} | {swapped:,.1f} | {formula:,.1f} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
