"""What the benchmarks write down: the machine, the command, medians and ratios. Imports nothing heavy."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from statistics import median
from typing import Any

LN_2 = log(2)
GIB = 2**30
OF_OTHERS = {"--trl-python": "TRL_PYTHON", "--old-python": "OLD_PYTHON"}  # paths that say nothing to another reader


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> dict[str, Any]:
    """Neither names nor paths: what a figure depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {"processor": processor(), "cores": os.cpu_count(), "memory_gib": round(memory / GIB, 1)}
    return facts | {"load_before": round(os.getloadavg()[0], 2)}


def shown_command(script: str, arguments: Sequence[str]) -> str:
    """The command as another reader would type it: absolute paths by their last part."""
    shown, option = [], ""
    for argument in arguments:
        name, equals, value = argument.rpartition("=")
        if os.path.isabs(value) or (name or option) in OF_OTHERS:
            value = OF_OTHERS.get(name or option, Path(value).name)
        shown.append(name + equals + value)
        option = argument
    return shlex.join(["python", f"benchmarks/{script}", *shown])


def heading(script: str, **more: Any) -> dict[str, Any]:
    """The first keys of every result."""
    return {"command": shown_command(script, sys.argv[1:]), "machine": machine(), **more}


def write(path: Path | None, result: dict[str, Any]) -> None:
    result["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def ratio_of_medians_by_step(others: Sequence[float], ours: Sequence[float]) -> float:
    """The median over steps of other seconds / our seconds of the same step: how many times faster we are."""
    return median(other / own for other, own in zip(others, ours, strict=True))


def summarize(
    rounds: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], ours: str, warmup: int, pairs_per_step: int
) -> dict[str, dict[str, Any]]:
    """Per contender what its step reports come to. `rounds`: contender -> its reports, in the order of the steps.

    `ours` is in every round and is the base of the ratios there: of seconds step by step, of memory as our peak over
    theirs. Only steps after the first `warmup` are timed; memory is the peak of the whole process.
    """
    every: dict[str, list[Mapping[str, Any]]] = {}
    against: dict[str, Sequence[Mapping[str, Any]]] = {}
    for reports_of in rounds:
        for name, reports in reports_of.items():
            every.setdefault(name, []).extend(reports[warmup:])
            against[name] = reports_of[ours]
    peaks = {name: max(report["peak_rss"] for report in reports) for name, reports in every.items()}
    on_device = {name: max(report["peak_device"] for report in reports) for name, reports in every.items()}
    table = {}
    for name, reports in every.items():
        seconds = [report["seconds"] for report in reports]
        row = {
            "seconds_per_step": median(seconds),
            "pairs_per_s": pairs_per_step / median(seconds),
            "real_tokens_per_step": sum(report["real_tokens"] for report in reports) / len(reports),
            "computed_tokens_per_step": sum(report["computed_tokens"] for report in reports) / len(reports),
            "peak_rss_gib": peaks[name] / GIB,
        }
        if on_device[name]:
            row["peak_device_gib"] = on_device[name] / GIB
        if name != ours:
            own = [report["seconds"] for report in against[name][warmup:]]
            row["rmcli_is_faster"] = ratio_of_medians_by_step(seconds, own)
            row["rmcli_is_faster_in_all"] = sum(seconds) / sum(own)
            measured = on_device if on_device[name] else peaks
            row["rmcli_peak_share"] = measured[ours] / measured[name]
        table[name] = row
    return table


def best_of(table: Mapping[str, Mapping[str, Any]], prefix: str) -> str | None:
    """The fastest contender whose name begins so: what a comparison has to be with."""
    names = [name for name in table if name.startswith(prefix)]
    return min(names, key=lambda name: table[name]["seconds_per_step"]) if names else None


def check_steps(
    rounds: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], ours: str, tolerance: float
) -> dict[str, float]:
    """The largest difference of each contender's losses to ours, in the steps of its round.

    Raises ValueError when a first loss is not ln 2, which a zero head must give; when a step's pairs are not ours
    (by their ids, or by their tokens to two a conversation: a reward token, the template's tail); or when the losses
    of one that is rmcli too differ by more than `tolerance` in the first three steps (later ones drift apart: AdamW
    magnifies rounding).
    """
    largest = {}
    for reports_of in rounds:
        own = reports_of[ours]
        for name, reports in reports_of.items():
            if abs(reports[0]["loss"] - LN_2) > 1e-6:
                raise ValueError(f"the first loss of {name} is {reports[0]['loss']}, not ln 2")
            differences = [abs(a["loss"] - b["loss"]) for a, b in zip(reports, own, strict=True)]
            if name != ours:
                largest[name] = max(differences)
            for report, our_report in zip(reports, own, strict=True):
                pairs = our_report["row_ids"]
                tokens_apart = abs(report["real_tokens"] - our_report["real_tokens"])
                if report.get("row_ids", pairs) != pairs or tokens_apart > 4 * len(pairs):
                    raise ValueError(f"{name} and {ours} saw different pairs in step {report['step']}")
            if name.startswith(ours) and max(differences[:3]) > tolerance:
                raise ValueError(f"the losses of {name} and {ours} differ by {max(differences[:3])}")
    return largest
