"""What a step would cost on 8 and 64 GPUs, on paper: compute by the FLOP counter, communication by link bandwidths.

    python benchmarks/scaling.py        prints the tables of docs/scaling.md, which a test holds against it

Only the MFU is measured, on one GPU and the lengths of hh; every assumption is a constant below. Prompt and response
lengths of hh are the means of what `rmcli prepare` stores of hh_rlhf_harmless (243 tokens a pair, sharing 1.61).
"""

from dataclasses import dataclass

from rmcli.model.flops import FlopCounter
from rmcli.records import TokenGroup

PEAK = 989e12  # bf16 FLOP/s of an H200
MFU = {"InternLM2-1.8B": 0.489, "Llama-8B": 0.505}  # benchmarks/results/mfu-*-2026-11-25.json
NVLINK = 370e9  # bytes/s per GPU and direction that collectives reach inside one machine
NETWORK = 40e9  # bytes/s per GPU between machines (one 400 Gbit/s link each)
GPUS_PER_MACHINE = 8
PAIRS_PER_GPU = 64
TOKENS_PER_PACK = 16384
LENGTHS = {"hh": (149, 47), "long": (600, 800)}  # tokens of prompt and of each response


@dataclass(frozen=True)
class Shape:
    """A backbone: parameters that are sharded, and what the FLOP counter needs."""

    parameters: float
    counter: FlopCounter


def llama_shape(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Shape:
    head = hidden // heads
    key_value = 2 * hidden * kv_heads * head
    layer = 2 * hidden * hidden + key_value + 3 * hidden * mlp
    counter = FlopCounter(layer * layers, layer, key_value, (None,) * layers, heads, head, head, trimmed=True)
    return Shape(layer * layers + vocabulary * hidden, counter)


SHAPES = {
    "InternLM2-1.8B": llama_shape(2048, 8192, 24, 16, 8, 92544),
    "Llama-8B": llama_shape(4096, 14336, 32, 32, 8, 128256),
}


def compute_seconds(model: str, lengths: str, pairs: int) -> float:
    """Of one GPU's pairs, forward and backward; the optimizer is inside the MFU."""
    prompt, response = LENGTHS[lengths]
    pair = TokenGroup([0] * prompt, ([0] * response, [0] * response))  # pyright: ignore[reportArgumentType]
    return pairs * SHAPES[model].counter.of_groups([pair]) / (PEAK * MFU[model])


def packs(lengths: str, pairs: int) -> int:
    prompt, response = LENGTHS[lengths]
    return -(-pairs * (prompt + 2 * response) // TOKENS_PER_PACK)


def communication_seconds(model: str, lengths: str, gpus: int) -> float:
    """For every pack weights gathered for forward and backward, 2 bytes each, and gradients scattered, 4 bytes each,
    inside a machine (FSDP2); between machines the gradients of each GPU's eighth summed once a step (HSDP).
    """
    number = SHAPES[model].parameters
    inside = packs(lengths, PAIRS_PER_GPU) * (2 + 2 + 4) * number * (GPUS_PER_MACHINE - 1) / GPUS_PER_MACHINE / NVLINK
    machines = gpus // GPUS_PER_MACHINE
    between = 2 * 4 * number / GPUS_PER_MACHINE * (machines - 1) / machines / NETWORK
    return inside + between


def table() -> str:
    lines = [
        "| model | lengths | GPUs | pairs per step | compute, s | communication, s "
        "| pairs/s, none hidden | all hidden |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model in SHAPES:
        for lengths in LENGTHS:
            for gpus in (1, 8, 64):
                compute = compute_seconds(model, lengths, PAIRS_PER_GPU)
                communication = communication_seconds(model, lengths, gpus) if gpus > 1 else 0.0
                pairs = PAIRS_PER_GPU * gpus
                slow, fast = pairs / (compute + communication), pairs / max(compute, communication)
                lines.append(
                    f"| {model} | {lengths} | {gpus} | {pairs:,} | {compute:.3f} | {communication:.3f} | "
                    f"{slow:,.0f} | {fast:,.0f} |"
                )
    return "\n".join(lines)


def sharing_table() -> str:
    """Model FLOPs of one pair, unshared over shared, by the prompt's length at responses of 200 tokens."""
    lines = ["| prompt tokens | sharing ratio in tokens | in FLOPs (Llama-8B) |", "|---:|---:|---:|"]
    counter = SHAPES["Llama-8B"].counter
    for prompt in (0, 50, 100, 200, 400, 800, 1600):
        pair = TokenGroup([0] * prompt, ([0] * 200, [0] * 200))  # pyright: ignore[reportArgumentType]
        tokens = 2 * (prompt + 200) / (prompt + 400)
        flops = counter.of_groups([pair], shared=False) / counter.of_groups([pair])
        lines.append(f"| {prompt:,} | {tokens:.2f} | {flops:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
    print()
    print(sharing_table())
