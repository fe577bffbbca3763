"""Where a profiled step stands in no kernel: the gaps of a trace that `rmcli train --profile` has written.

    python benchmarks/gaps.py runs/NAME/profile/trace.json.gz

Busy is the union of all kernels, copies and fills on the device, from the first to the last of the profiled steps; a
gap is the time between two of them. Each of the longest is named by the kernels around it and by what Python's thread
did in its middle. Gaps of a few microseconds are the price of a launch; long ones are work the device waits for. A
trace without kernels (from a CPU) is read by its operators instead, and says so.
"""

import argparse
import gzip
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
ON_HOST = {"cpu_op", "cuda_runtime", "cuda_driver"}
NUM_LISTED = 20
BOUNDS = (5, 50, 500)  # microseconds: launches, bubbles, waits


@dataclass(frozen=True)
class Event:
    """One of the trace: what, and when it began and ended, in microseconds."""

    name: str
    start: float
    end: float


def read_events(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [event for event in json.loads(data)["traceEvents"] if event.get("ph") == "X"]


def of_kind(events: Iterable[dict[str, Any]], kinds: set[str]) -> list[Event]:
    """By their beginning."""
    chosen = [event for event in events if event.get("cat") in kinds]
    found = [Event(event["name"], event["ts"], event["ts"] + event["dur"]) for event in chosen]
    return sorted(found, key=lambda event: (event.start, event.end))


def num_steps(events: Iterable[dict[str, Any]]) -> int:
    named = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    return len(named) or 1


def gaps_between(busy: Sequence[Event]) -> list[tuple[float, float, str, str]]:
    """(start, end, name of what ended before, name of what begins) of each stretch without any of them."""
    found = []
    last = busy[0]
    for event in busy[1:]:
        if event.start > last.end:
            found.append((last.end, event.start, last.name, event.name))
        if event.end > last.end:
            last = event
    return found


def at_time(host: Sequence[Event], time: float) -> str | None:
    """The innermost operator or call of the host that runs then: of those that do, the last to begin."""
    starts = [event.start for event in host]
    for index in range(bisect_right(starts, time) - 1, max(bisect_right(starts, time) - 200, -1), -1):
        if host[index].end > time:
            return host[index].name
    return None


def figures_of(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of one step: in all, in kernels, in none; the gaps by length; the longest ones."""
    busy = of_kind(events, ON_DEVICE)
    host = of_kind(events, ON_HOST)
    read_by = "kernels"
    if not busy:
        busy, read_by = of_kind(events, {"cpu_op"}), "operators of a CPU"
    if not busy:
        raise SystemExit("the trace holds neither kernels nor operators")
    steps = num_steps(events)
    gaps = gaps_between(busy)
    whole = max(event.end for event in busy) - busy[0].start
    idle = sum(end - start for start, end, _, _ in gaps)
    by_length: Counter[str] = Counter()
    names = [f"below {BOUNDS[0]} us", *(f"{a} to {b} us" for a, b in pairwise(BOUNDS)), f"{BOUNDS[-1]} us on"]
    for start, end, _, _ in gaps:
        by_length[names[bisect_right(BOUNDS, end - start)]] += end - start
    before: Counter[str] = Counter()
    for start, end, _, following in gaps:
        before[following] += end - start
    longest = sorted(gaps, key=lambda gap: gap[0] - gap[1])[:NUM_LISTED]
    per_step = 1000 * steps
    return {
        "read_by": read_by,
        "steps": steps,
        "ms_per_step": whole / per_step,
        "busy_ms_per_step": (whole - idle) / per_step,
        "idle_ms_per_step": idle / per_step,
        "idle_share": idle / whole if whole else 0.0,
        "idle_ms_per_step_by_length": {name: by_length[name] / per_step for name in names},
        "idle_ms_per_step_before": {name[:120]: us / per_step for name, us in before.most_common(NUM_LISTED)},
        "longest": [
            {
                "ms": (end - start) / 1000,
                "after": previous[:120],
                "before": following[:120],
                "host": at_time(host, (start + end) / 2),
            }
            for start, end, previous, following in longest
        ],
    }


def of_trace(path: Path) -> dict[str, Any]:
    return figures_of(read_events(path))


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['idle_ms_per_step']:.1f} of {found['ms_per_step']:.1f} ms a step stand in none of the "
        f"{found['read_by']} ({found['idle_share']:.1%})"
    )
    for name, milliseconds in found["idle_ms_per_step_by_length"].items():
        print(f"  gaps {name:<15} {milliseconds:9.2f} ms a step")
    for gap in found["longest"]:
        print(f"  {gap['ms']:9.3f} ms  {gap['after'][:40]:<40} -> {gap['before'][:40]:<40} host: {gap['host']}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time in no kernel; see the head of this file.")
    parser.add_argument("trace", type=Path, help="trace.json.gz of rmcli train --profile")
    show(of_trace(parser.parse_args().trace))


if __name__ == "__main__":
    main()
