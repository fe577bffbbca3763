"""A run and its export, to be made hostile."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from support.cli import run_cli
from support.hostile import BEFORE


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its export beside it, as nobody has touched them: `run` and `model`."""
    place = tmp_path_factory.mktemp("exported")
    shutil.copytree(BEFORE / "run", place / "run")
    result = run_cli("export", place / "run", "-o", place / "model")
    assert result.code == 0, result.stderr
    return place


@pytest.fixture
def model(exported: Path, cli: Any) -> Path:
    """A model folder in the working folder, to be made hostile."""
    shutil.copytree(exported / "model", "model")
    return Path("model")


@pytest.fixture
def run(exported: Path, cli: Any) -> Path:
    """A run in the working folder, to be made hostile."""
    shutil.copytree(exported / "run", "run")
    return Path("run")
