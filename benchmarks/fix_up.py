"""A reward model mended with a few pairs: what it gets wrong before and after, and what it still gets right.

In the base's training data the pairs about square brackets have their answers swapped, as a fault of labelling would.
60 right ones then train it further, mixed with rows of its other tasks (replay), and once more without those. What is
told is the accuracy on two fixed sets that no run has seen: square brackets, and everything else. Three minutes or so
on two quiet cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import figures
from rmcli.rows.tasks import generate

FIX_UPS, COPIES = 60, 10  # pairs, and how often each is taken
REPLAY = 0.5  # how often a row of the replay is: one half of them
RATE = "1e-3"  # a quarter of the base's
EPOCHS = 2


def rows(number: int, seed: int, square: bool) -> list[dict[str, Any]]:
    """The first so many of the tasks about square brackets, or of all others."""
    wanted = (row for row in generate(16 * number, seed) if is_square(row) == square)
    return list(islice(wanted, number))


def is_square(row: dict[str, Any]) -> bool:
    return "square" in row["prompt"][0]["content"]


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def write(path: Path, found: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def rmcli(folder: Path, *arguments: str) -> Any:
    """What the command gives with --json."""
    line = [sys.executable, "-m", "rmcli", *arguments, "-q", "--json"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def prepared(folder: Path, name: str, *options: str) -> None:
    common = ("-p", "tiny", "--map-fn", "canonical", "--no-audit", "--decontaminate", "square.jsonl")
    rmcli(folder, "prepare", *options, *common, "--decontaminate", "others.jsonl", "-o", name)


def accuracies(folder: Path, model: str) -> dict[str, float]:
    """Of this model on both fixed sets, as it is shipped."""
    return {
        name: rmcli(folder, "score", f"{model}/model", f"{name}.jsonl", "-o", f"{model}-{name}.jsonl")["accuracy"]
        for name in ("square", "others")
    }


def mended(folder: Path, name: str, *sources: str) -> dict[str, float]:
    """The base trained further on these sources."""
    prepared(folder, f"{name}-data", *(part for source in sources for part in ("--source", source)))
    keys = ("model.pretrained_model_name_or_path=base/model", f"train.lr={RATE}", f"train.max_epochs={EPOCHS}")
    options = [part for key in keys for part in ("-s", key)]
    rmcli(folder, "train", "-p", "tiny", "--data", f"{name}-data", "-o", name, *options)
    return accuracies(folder, name)


def main() -> None:
    parser = argparse.ArgumentParser(description="A reward model mended with a few pairs; see the head of this file.")
    parser.add_argument("--rows", type=int, default=6000, help="rows that the base is trained on")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    report = figures.heading("fix_up.py")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "square.jsonl", rows(300, 1, True))
        write(folder / "others.jsonl", rows(600, 2, False))
        write(folder / "base.jsonl", [swapped(row) if is_square(row) else row for row in generate(arguments.rows, 3)])
        write(folder / "replay.jsonl", rows(arguments.rows // 4, 3, False))
        write(folder / "fix-ups.jsonl", rows(FIX_UPS, 4, True))
        prepared(folder, "base-data", "base.jsonl")
        rmcli(folder, "train", "-p", "tiny", "--data", "base-data", "-o", "base")
        fix_ups = f"path=fix-ups.jsonl,weight={COPIES}"
        found = {"before": accuracies(folder, "base")}
        print(f"before: {found['before']}", flush=True)
        found["fix-ups and replay"] = mended(folder, "mended", fix_ups, f"path=replay.jsonl,weight={REPLAY}")
        print(f"fix-ups and replay: {found['fix-ups and replay']}", flush=True)
        found["fix-ups alone"] = mended(folder, "alone", fix_ups)
        print(f"fix-ups alone: {found['fix-ups alone']}", flush=True)
    settings = {"rows": arguments.rows, "fix_ups": FIX_UPS, "copies": COPIES, "replay": REPLAY, "lr": RATE}
    figures.write(arguments.output, {**report, "settings": {**settings, "epochs": EPOCHS}, "accuracy": found})


if __name__ == "__main__":
    main()
