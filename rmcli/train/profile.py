"""`rmcli train --profile`: a trace of a few steps, and a short table of where a step goes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rmcli import output

SKIPPED, PROFILED = 2, 3  # steps: the first ones allocate and warm up

# What an operator (CPU) or kernel (CUDA) is called, to where it belongs; the first that fits.
KINDS = (
    ("attention", ("scaled_dot_product", "flash", "varlen", "fmha", "softmax", "flex")),
    ("optimizer", ("adam", "foreach", "multi_tensor")),
    ("matmul", ("mm", "gemm", "linear", "cutlass", "nvjet", "matmul", "xmma")),
    (
        "moving data",
        ("copy", "memcpy", "memset", "cat", "index", "gather", "scatter", "clone", "fill", "zero", "embedding"),
    ),
)


@contextmanager
def profiled(folder: Path | None, device: torch.device, num_steps: int) -> Iterator[Any]:
    """A profiler whose `step()` is called after each step, or None without a folder.

    Writes `trace.json.gz` (for chrome://tracing or Perfetto) and `summary.txt` into the folder, and says the table.
    """
    if folder is None:
        yield None
        return
    if num_steps <= SKIPPED:
        output.warn(f"--profile looks at steps from {SKIPPED + 1} on: {num_steps} steps are too few, no profile")
        yield None
        return
    active = min(PROFILED, num_steps - SKIPPED)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]

    def write(profiler: profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))
        rows = summarize(profiler.key_averages(), device.type, active)
        lines = [f"{kind:<12} {milliseconds:>10,.2f} ms {share:>7.1%}" for kind, milliseconds, share in rows]
        (folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        output.table(
            [f"of one step ({active} profiled)", "ms", "share"],
            [[kind, round(milliseconds, 2), f"{share:.1%}"] for kind, milliseconds, share in rows],
            to_answer=False,
        )
        output.say(f"trace in {folder / 'trace.json.gz'}")

    plan = schedule(wait=SKIPPED - 1, warmup=1, active=active, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler


def summarize(events: Any, device_type: str, num_steps: int) -> list[tuple[str, float, float]]:
    """(kind, milliseconds of one step, share), the largest first: operators' own time, on the device they ran on."""
    times: Counter[str] = Counter()
    for event in events:
        if device_type != "cpu" and (event.device_type.name == "CPU" or event.is_user_annotation):
            continue  # an operator is given its kernels' time as well
        own = event.self_cpu_time_total if device_type == "cpu" else event.self_device_time_total
        if own and not event.key.startswith("ProfilerStep"):
            times[kind_of(event.key)] += own
    whole = sum(times.values())
    return [(kind, time / 1000 / num_steps, time / whole) for kind, time in times.most_common()]


def kind_of(name: str) -> str:
    """attention, optimizer, matmul, moving data, or the rest: norms, activations, sums."""
    lowered = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lowered for part in parts)), "elementwise")
