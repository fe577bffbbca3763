"""rmcli's worker: `rmcli train` as it is, stopped between optimizer steps.

python benchmarks/_rmcli_worker.py JOB.json

The job holds `preset`, `settings` (as for --set), `data` (a prepared folder) and `alone`. Everything runs through
`rmcli train`; only the trainer's `fit` and `run_step` are wrapped, to wait and to report. A span goes from `go`
at the end of one step to the end of the next, so planning, batches, logging and the optimizer are in it: batches are
not built ahead here, where they would be built while others have their turn; with `alone`, when there are no others,
they are.
"""

from _gate import GATE

# isort: split
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import rmcli
from rmcli.config.resolve import resolve
from rmcli.train import loop
from rmcli.train import run as train_run
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer


class GatedTrainer(Trainer):
    """The real trainer, one step at a time."""

    def fit(self, *arguments: Any) -> dict[str, Any]:
        versions = {"rmcli": rmcli.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        GATE.ready(versions=versions, threads=torch.get_num_threads(), rows=self.kind)
        return super().fit(*arguments)

    def run_step(self, feed: Any) -> Any:
        step = feed.step
        before = self.window.num_tokens
        skipped = super().run_step(feed)
        loss = float(self.window.losses[-1][0])
        seconds = GATE.stop()
        groups = [
            group
            for forward in step.forwards[0]
            for part in forward
            for group in self.job.train_split.groups(part.pack, part.start, part.stop)
        ]
        GATE.report(
            step=step.number,
            seconds=seconds,
            loss=loss,
            real_tokens=sum(group.num_unshared_tokens for group in groups),
            computed_tokens=self.window.num_tokens - before,
            row_ids=sorted(group.row_id for group in groups),
        )
        GATE.wait()
        return skipped


if __name__ == "__main__":
    description = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    train_run.Trainer = GatedTrainer  # type: ignore[misc]
    if not description["alone"]:
        loop.ahead = map  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        resolved = resolve(description["preset"], settings=description["settings"])
        train_run.run(build_job(resolved, Path(description["data"]), Path(folder) / "run"))
