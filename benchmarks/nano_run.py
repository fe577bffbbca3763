"""A run of a second: a model of two small layers with dropout, 90 pairs, 12 steps; and when two such runs are one.

The proofs that a run loses nothing (kills.py, tests/train/) are about this one.
"""

import json
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# What no clock says twice.
RATES = (
    "tokens_per_s",
    "pairs_per_s",
    "flops_per_s",
    "effective_flops_per_s",
    "mfu",
    "effective_mfu",
    "mfu_fp8",
    "effective_mfu_fp8",
)
PREPARE = ("data.eval_fraction=0.1", "data.max_packed_length=512")


def settings(*keys: str) -> list[str]:
    return [part for key in keys for part in ("-s", key)]


def make_model(folder: Path) -> Path:
    """The tiny preset's model, smaller, with dropout."""
    shutil.copytree(REPOSITORY / "presets" / "tiny", folder)
    path = folder / "config.json"
    smaller = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "attention_dropout": 0.2}
    path.write_text(json.dumps(json.loads(path.read_text()) | smaller))
    return folder


def of_model(model: Path) -> list[str]:
    """What makes the tiny preset a run of this model."""
    return ["-p", "tiny", *settings(f"model.pretrained_model_name_or_path={model}")]


def prepare_line(model: Path, data: Path) -> list[str]:
    """90 pairs: with 16 a step, 6 steps an epoch."""
    return ["prepare", "tasks:90", "-o", str(data), "--no-audit", *of_model(model), *settings(*PREPARE)]


def lines(run: Path | str) -> list[dict]:
    """metrics.jsonl without what no clock says twice."""
    found = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in RATES} for line in found]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
