"""The whole path on the embedded default: prepare, train, score, inspect-token. `make demo` runs it.

Each command is printed before it runs. The held-out accuracy at the end comes from the scores of the exported model
folder on the prompts that prepare held out, not from the training loop.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

FOLDER = Path("demo")
COMMANDS = [
    "rmcli prepare --preset tiny -o demo/data",
    "rmcli train --preset tiny --data demo/data -o demo/run",
    "rmcli score demo/run/model demo/data/eval.jsonl -o demo/scores.jsonl",
    "rmcli inspect-token demo/run/model",
]


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for command in COMMANDS:
        print(f"\n$ {command}", flush=True)
        subprocess.run([sys.executable, "-m", *command.split()], check=True)
    show_scores(time.monotonic() - started)
    line = path_line(scripts_folder(), os.environ.get("PATH", ""))
    if line is not None:
        print(f"\nto use rmcli in this shell, run:\n  {line}")
    print("\nnext, on your data: docs/quickstart.md")


def scripts_folder() -> Path:
    """Where this environment has its commands."""
    return Path(sysconfig.get_path("scripts"))


def path_line(scripts: Path, path: str) -> str | None:
    """The line that puts `rmcli` on the PATH of a shell; None where it is there."""
    found = shutil.which("rmcli", path=path)
    if found is not None and Path(found).parent == scripts:
        return None
    if (scripts / "activate").is_file():
        here = Path.cwd()
        activate = scripts / "activate"
        return f"source {shlex.quote(str(activate.relative_to(here) if activate.is_relative_to(here) else activate))}"
    return f'export PATH={shlex.quote(str(scripts))}:"$PATH"'


def show_scores(seconds: float) -> None:
    pairs = [json.loads(line) for line in (FOLDER / "data" / "eval.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (FOLDER / "scores.jsonl").read_text().splitlines()]
    print("\nsix held-out pairs, better answer against worse:")
    shown: dict[str, int] = {}
    for pair, score in zip(pairs, scores, strict=True):
        question = pair["prompt"][0]["content"]
        task = question.split()[0]
        shown[task] = shown.get(task, 0) + 1
        if shown[task] > 2 or sum(min(count, 2) for count in shown.values()) > 6:
            continue
        better, worse = (pair[side][0]["content"] for side in ("chosen", "rejected"))
        chosen, rejected = score["chosen_score"], score["rejected_score"]
        print(f"  {question:32} {better:12} {chosen:6.2f}    {worse:12} {rejected:6.2f}")
    right = sum((score["margin"] > 0) + 0.5 * (score["margin"] == 0) for score in scores)
    print(f"\nheld-out accuracy {right / len(scores):.3f} ({len(scores)} pairs, {seconds:.0f} s in all)")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
