"""The repository, the real data, the tokenizers, and files that tests write."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


def missing(what: str) -> None:
    """A laptop without the data may skip what needs it; CI may not."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must test with it")
    pytest.skip(f"{what} is missing on this machine")


def find_tokenizer(name: str) -> Path:
    """Where tests/fetch_tokenizers.py put it, beside the interpreter's packages: a folder, or a .gguf file."""
    path = Path(sys.prefix) / "tokenizers" / name
    if not path.exists():
        missing(f"the tokenizer {name} in {path} (make test fetches it; make test-slow those in big packages)")
    return path


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
