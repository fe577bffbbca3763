"""What others make of a folder that rmcli exports: each loads it, scores it, and is held against rmcli's own scores.

    python benchmarks/consumers.py --trl-python TRL_PYTHON --old-python OLD_PYTHON

A random model of a few layers is exported in each mode; its weights are large, so that a token more or less moves a
score by far more than rounding does. Consumers that install run for real, each in its environment (`make
.venv-trl/.installed .venv-old/.installed`): `_consumer_*.py`. Of those that do not (they need a GPU, or more than a
CPU's wheel), what they do to a folder is written down with its source in `consumer_reads.py`, and done here: the ids
that they would score, scored; what their clients send, sent to `rmcli serve` (`consumer_wire.py`). docs/consumers.md
is made of the figures (`make docs`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import consumer_reads
import consumer_wire
import figures

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENTS = {"own": sys.executable, "trl": ".venv-trl/bin/python", "old": ".venv-old/bin/python"}
# What to set, by the way in; nothing where there is no key.
SETTINGS = {
    "GRPOTrainer": "`reward_funcs=DIR`",
    "RLOOTrainer": "`reward_funcs=DIR`",
    "RewardTrainer": "`model=DIR`",
    "CrossEncoder": "`predict` takes the messages of each conversation; it applies the template",
}
MODES = ("reserved", "natural", "last")
OTHERS = ("qwen3", "gemma3_text")  # beside llama, in reserved mode: other rotations, other keys in config.json


class Worker(NamedTuple):
    """A script beside this one, and the environment it runs in."""

    script: str
    environment: str
    architectures: tuple[str, ...] = ()  # beside llama


WORKERS = (
    Worker("_consumer_transformers.py", "own", OTHERS),
    Worker("_consumer_transformers.py", "old", OTHERS),
    Worker("_consumer_trl.py", "trl"),
    Worker("_consumer_cross_encoder.py", "trl"),
    Worker("_consumer_rewardbench.py", "old"),
)


def make_folder(folder: Path, mode: str, architecture: str = "llama") -> Path:
    """An export of random weights, in that mode, with the tiny preset's tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rmcli.config.resolve import resolve
    from rmcli.model.load import label_for_reward
    from rmcli.ship.export import Run, export
    from rmcli.tokens.tokenizer import load_tokenizer

    keys = [] if mode == "reserved" else [f"model.reward_token={mode}", "model.reward_token_id=none"]
    resolved = resolve("tiny", settings=["data.max_length=512", *keys])
    reward = load_tokenizer(resolved.config.model)
    config = _config(architecture, reward.num_embedding_rows)
    label_for_reward(config, "random", reward)
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
    torch.nn.init.normal_(network.score.weight, std=0.3)
    export(Run(Path("none"), resolved.toml(), resolved.config, reward, []), network.eval(), folder)
    return folder


def _config(architecture: str, rows: int) -> Any:
    """Small; its rotations are none that a loader would fall back to."""
    from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config

    sizes = {
        "vocab_size": rows,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rates = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    }
    if architecture == "llama":
        scaled |= {"original_max_position_embeddings": 64, "rope_theta": 100.0}
        return LlamaConfig(**sizes, rope_parameters=scaled)
    if architecture == "qwen3":
        return Qwen3Config(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    types = ["sliding_attention", "full_attention"]
    more = {"query_pre_attn_scalar": 12, "sliding_window": 16, "layer_types": types}
    return Gemma3TextConfig(**sizes, **more, rope_parameters=rates)


def python_of(environment: str) -> Path:
    """Its interpreter, which need not be there."""
    return REPOSITORY / ENVIRONMENTS[environment]


def run(worker: Worker, python: Path, folders: Iterable[Path]) -> dict[str, Any]:
    """What the worker says: {"versions", "folders": {name: {way: [{"score", "messages" or "ids"}]}}}.

    Raises RuntimeError with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place) / "answer.json"
        script = Path(__file__).parent / worker.script
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [str(python), str(script), str(answer), *map(str, folders)],
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | quiet,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=place,
        )
        if done.returncode:
            raise RuntimeError(f"{worker.script}: {(done.stdout + done.stderr)[-3000:]}")
        return json.loads(answer.read_text(encoding="utf-8"))


def golden(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


def differences(folder: Path, found: Sequence[dict[str, Any]]) -> list[float]:
    """Between each score and rmcli's for the same conversation: the golden one where there is one."""
    from rmcli import RewardModel

    known = {json.dumps(line["messages"]): line["score"] for line in golden(folder)}
    known |= {json.dumps(line["input_ids"]): line["score"] for line in golden(folder)}
    missing = [one for one in found if _key(one) not in known]
    if missing:
        model = RewardModel.load(folder, device="cpu")
        for one in missing:
            (score,) = model.score_ids([one["ids"]]) if "ids" in one else model.score([one["messages"]])
            if score.value is None:
                raise RuntimeError(f"rmcli does not score {one}: {score.error}")
            known[_key(one)] = score.value
    return [abs(one["score"] - known[_key(one)]) for one in found]


def _key(one: dict[str, Any]) -> str:
    return json.dumps(one.get("ids") or one["messages"])


def scorer(folder: Path) -> Any:
    """The score of ids by plain transformers: each alone, at its last token."""
    import torch
    from transformers import AutoModelForSequenceClassification

    network = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).eval()

    @torch.no_grad()
    def score(ids: list[int]) -> float:
        return network(input_ids=torch.tensor([ids])).logits.item()

    return score


def all_reads(folders: dict[str, Path]) -> list[dict[str, Any]]:
    """What each property comes to in each mode; see `consumer_reads.outcome`."""
    found = {mode: _outcomes(folders[mode]) for mode in MODES}
    return [
        {
            "consumer": read.consumer,
            "relies_on": read.relies_on,
            "outcomes": {mode: found[mode][number] for mode in MODES},
        }
        for number, read in enumerate(consumer_reads.READS)
    ]


def _outcomes(folder: Path) -> list[bool | float]:
    import serve  # it needs more than the page does, which reads this file

    with serve.server(folder) as serving:
        post = consumer_wire.posting(serving.port)
        score = scorer(folder)
        return [consumer_reads.outcome(read, folder, score, post) for read in consumer_reads.READS]


def main() -> None:
    parser = argparse.ArgumentParser(description="Consumers of an exported folder; see the head of this file.")
    parser.add_argument("--trl-python", type=Path, default=python_of("trl"))
    parser.add_argument("--old-python", type=Path, default=python_of("old"), help="with transformers 4.57")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    pythons = {"own": Path(sys.executable), "trl": arguments.trl_python, "old": arguments.old_python}
    report = figures.heading("consumers.py", ran=[])
    with tempfile.TemporaryDirectory() as place:
        folders = {mode: make_folder(Path(place) / mode, mode) for mode in MODES}
        folders |= {name: make_folder(Path(place) / name, "reserved", name) for name in OTHERS}
        for worker in WORKERS:
            names = [*MODES, *worker.architectures]
            told = run(worker, pythons[worker.environment], [folders[name] for name in names])
            ways: dict[str, dict[str, float]] = {}
            for name, found in told["folders"].items():
                for way, scores in found.items():
                    ways.setdefault(way, {})[name] = max(differences(folders[name], scores))
            for way, apart in ways.items():
                print(f"{way}, {told['versions']}: {max(apart.values()):.1e}", flush=True)
                report["ran"].append({"consumer": way, "versions": told["versions"], "largest_difference": apart})
        report["reads"] = all_reads(folders)
    figures.write(arguments.output, report)


if __name__ == "__main__":
    main()
