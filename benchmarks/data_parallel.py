"""What processes that train together send in a step: collectives and bytes, counted and by formula, on a CPU.

    python benchmarks/data_parallel.py        prints the table of docs/scaling.md

A random Llama in float32, a step of one forward or of three on each of 1, 2 and 4 gloo processes, its weights
replicated, sharded, or both. No time is taken: the processes share one machine's cores.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import distributed, multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, LlamaConfig

from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.batch import build_packed
from rmcli.model.forward import scores
from rmcli.model.network import trim
from rmcli.model.shard import expect_last_forward, shard
from rmcli.parallel.mesh import MeshShape, build_mesh
from rmcli.records import TokenGroup

LAYERS, SIZES = 6, {"vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
SHAPES = (MeshShape(2, 1), MeshShape(1, 2), MeshShape(4, 1), MeshShape(1, 4), MeshShape(2, 2))
GATHER, SCATTER, REDUCE = "all-gather", "reduce-scatter", "all-reduce"


class Sent(TorchDispatchMode):
    """How often this process takes part in each collective, and the bytes that it sends in them.

    In a ring: of what is put together or shared out all but one part, of what is added up twice as much.
    """

    def __init__(self) -> None:
        super().__init__()
        self.times = dict.fromkeys((GATHER, SCATTER, REDUCE), 0)
        self.bytes = dict(self.times)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if "allgather_base" in name:
            self._count(GATHER, args[0].nbytes - args[1].nbytes)
        elif "reduce_scatter_base" in name:
            self._count(SCATTER, args[1].nbytes - args[0].nbytes)
        elif "allreduce" in name or "all_reduce" in name:
            tensors = args[0] if isinstance(args[0], list) else [args[0]]
            size = _size_of(args)
            self._count(REDUCE, sum(2 * (size - 1) * tensor.nbytes // size for tensor in tensors))
        return function(*args, **(kwargs or {}))

    def _count(self, kind: str, num_bytes: int) -> None:
        if num_bytes:
            self.times[kind] += 1
            self.bytes[kind] += num_bytes


def _size_of(args: Any) -> int:
    """Of the group that a call is for: the operators of c10d are given it as an object, others by its name."""
    group = args[1] if isinstance(args[0], list) else None
    return distributed.ProcessGroup.unbox(group).size() if group is not None else distributed.get_world_size()


def run(rank: int, shape: MeshShape, forwards: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=shape.size)
    register()
    config = LlamaConfig(num_labels=1, num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, **SIZES)
    with init_empty_weights(include_buffers=False):
        network: Any = AutoModelForSequenceClassification.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    network.set_attn_implementation(ATTENTION_NAME)
    trim(network.train())
    shard(network, build_mesh(shape, torch.device("cpu")), is_reduced=False, device=torch.device("cpu"))
    for weight in network.parameters():
        torch.nn.init.normal_(weight.to_local(), std=0.02)
    tokens = np.arange(64, dtype=np.int32)
    batch = build_packed([TokenGroup(tokens, (tokens[:16], tokens[16:32]))])
    with Sent() as sent:
        for number in range(1, forwards + 1):
            expect_last_forward(network, number == forwards)
            better, worse = scores(network, batch)
            ((worse - better) / forwards / shape.size).backward()
    figures: dict[str, Any] = {"times": sent.times, "bytes": sent.bytes}
    figures["weights"] = sum(weight.numel() for weight in network.parameters())
    Path(folder, f"{rank}.json").write_text(json.dumps(figures), encoding="ascii")
    distributed.destroy_process_group()


def measure(shape: MeshShape, forwards: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run, (shape, forwards, folder), nprocs=shape.size)
        return json.loads(Path(folder, "0.json").read_text(encoding="ascii"))


def by_formula(shape: MeshShape, forwards: int, weights: int) -> dict[str, tuple[int, int]]:
    """(times, bytes sent by each) of each collective. Units: each layer, the rest of the backbone, the head.

    Where weights are cut, each forward puts every unit together and its backward once more, and shares its gradients
    out; copies add theirs up once a step.
    """
    units, cut, copies = LAYERS + 2, shape.shard, shape.replicate
    once = 4 * weights * (cut - 1) // cut
    added = 2 * (copies - 1) * 4 * (weights // cut) // copies
    return {
        GATHER: (2 * forwards * units, 2 * forwards * once) if cut > 1 else (0, 0),
        SCATTER: (forwards * units, forwards * once) if cut > 1 else (0, 0),
        REDUCE: (units, added) if copies > 1 else (0, 0),
    }


def main() -> None:
    print("| copies x parts | forwards | collective | times | by formula | MB sent by each | by formula |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for shape in SHAPES:
        for forwards in (1, 3):
            found = measure(shape, forwards)
            start = f"| {shape.replicate} x {shape.shard} | {forwards}"
            for kind, (times, num_bytes) in by_formula(shape, forwards, found["weights"]).items():
                if times or found["times"][kind]:
                    sent = f"{found['bytes'][kind] / 1e6:,.1f} | {num_bytes / 1e6:,.1f}"
                    print(f"{start} | {kind} | {found['times'][kind]} | {times} | {sent} |", flush=True)


if __name__ == "__main__":
    main()
