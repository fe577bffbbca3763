"""TRL's worker: `RewardTrainer` as its users run it, stopped between optimizer steps. Does not import rmcli.

TRL_PYTHON benchmarks/_trl_worker.py JOB.json

The job holds `model` (a folder), `random_weights`, `steps` (a JSON-lines file: one list of {chosen, rejected} per
optimizer step), `num_steps`, `pairs_per_step`, `batch_size` (pairs per forward; the rest is gradient accumulation),
`lr`, `liger` and `device`. No gradient checkpointing, fused AdamW, the same clipping and rate as rmcli's worker, the
head zero as there. A span goes from `go` at the end of one step (`on_step_end`) to the end of the next: fetching,
collation, forwards, backwards, clipping, optimizer, TRL's own metrics and its logging.
"""

from _gate import GATE

# isort: split
import json
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer


class GatedTrainer(RewardTrainer):
    """The real trainer; keeps losses and token counts of its forwards."""

    forwards: list[tuple[torch.Tensor, torch.Tensor, int]]

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        mask = inputs["attention_mask"]
        loss = super().compute_loss(model, inputs, *arguments, **options)
        self.forwards.append((loss.detach(), mask.sum(), mask.numel()))
        return loss


class StepGate(TrainerCallback):
    """Waits for `go` before each optimizer step and reports after it."""

    trainer: GatedTrainer

    def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.forwards = []
        versions = {name: known_version(name) for name in ("trl", "torch", "transformers", "liger-kernel")}
        GATE.ready(versions=versions, threads=torch.get_num_threads())

    def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
        seconds = GATE.stop()
        losses, real, computed = zip(*self.trainer.forwards, strict=True)
        self.trainer.forwards = []
        GATE.report(
            step=state.global_step,
            seconds=seconds,
            loss=float(torch.stack(losses).mean()),
            real_tokens=int(sum(real)),
            computed_tokens=sum(computed),
        )
        GATE.wait()


def known_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_model(job: dict[str, Any]) -> Any:
    """In float32, with a zero head."""
    if job["random_weights"]:
        config = AutoConfig.from_pretrained(job["model"], num_labels=1, trust_remote_code=False)
        torch.manual_seed(0)
        with torch.device(job["device"]):
            network = AutoModelForSequenceClassification.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
    else:
        network = AutoModelForSequenceClassification.from_pretrained(
            job["model"], num_labels=1, dtype=torch.float32, trust_remote_code=False
        )
    torch.nn.init.zeros_(network.score.weight)
    return network


def train(job: dict[str, Any], output: str) -> None:
    with Path(job["steps"]).open(encoding="utf-8") as lines:
        pairs = [pair for line in islice(lines, job["num_steps"]) for pair in json.loads(line)]
    tokenizer = AutoTokenizer.from_pretrained(job["model"], trust_remote_code=False)
    network = load_model(job)
    network.config.pad_token_id = tokenizer.pad_token_id
    on_cuda = job["device"] == "cuda"
    config = RewardConfig(
        output_dir=output,
        max_steps=job["num_steps"],
        per_device_train_batch_size=job["batch_size"],
        gradient_accumulation_steps=job["pairs_per_step"] // job["batch_size"],
        train_sampling_strategy="sequential",
        max_length=None,
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.999,
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        use_liger_kernel=job["liger"],
        bf16=on_cuda,
        use_cpu=not on_cuda,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    gate = StepGate()
    dataset = Dataset.from_list(pairs)
    trainer = GatedTrainer(
        model=network, args=config, processing_class=tokenizer, train_dataset=dataset, callbacks=[gate]
    )
    gate.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), folder)
