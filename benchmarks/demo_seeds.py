"""Whether the demo's accuracy repeats: its training by several seeds, with one thread and with two.

The seed of training draws weights and data order; the data is the demo's own. What is told is the accuracy on the
prompts held out, as `make demo` prints it. About 70 seconds a run on two quiet cores. Several runs at a time
(--at-once) change no accuracy.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import figures

GOAL = 0.97


def train(data: Path, run: Path, seed: int, threads: int) -> float:
    """The held-out accuracy of one run."""
    command = [sys.executable, "-m", "rmcli", "train", "-q", "--preset", "tiny", "--data", str(data), "-o", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*command, "-s", f"train.seed={seed}", "--json"], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["eval_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's accuracy by seed; see the head of this file.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    report = figures.heading("demo_seeds.py")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.at_once) as pool:
        data = Path(folder) / "data"
        prepare = [sys.executable, "-m", "rmcli", "prepare", "-q", "--preset", "tiny", "-o", str(data), "--no-audit"]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)

        def one(seed: int, threads: int) -> dict[str, float]:
            accuracy = train(data, Path(folder) / f"run-{seed}-{threads}", seed, threads)
            print(f"seed {seed}, {threads} threads: {accuracy:.3f}", flush=True)
            return {"seed": seed, "threads": threads, "accuracy": accuracy}

        cases = [(seed, threads) for seed in range(arguments.seeds) for threads in arguments.threads]
        found = list(pool.map(one, *zip(*cases, strict=True)))
    accuracies = [one["accuracy"] for one in found]
    print(f"{min(accuracies):.3f} to {max(accuracies):.3f} in {len(found)} runs (goal: each at least {GOAL})")
    figures.write(arguments.output, {**report, "runs": found})


if __name__ == "__main__":
    main()
