"""The speed of prepare against its bounds, in CPU seconds, which a busy machine hardly changes."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, find_tokenizer


@pytest.mark.slow  # a minute
def test_prepare_is_as_fast_as_the_tokenizer_allows(gguf, real_data, tmp_path):
    """How threads scale by the clock is in docs/prepare-speed.md alone: that depends on what else runs."""
    figures = tmp_path / "figures.json"
    tokenizers = ("--gguf", gguf, "--llama3", find_tokenizer("llama3"))
    command = [sys.executable, REPOSITORY / "benchmarks" / "prepare.py", real_data / "hh_rlhf_harmless.jsonl.gz"]
    done = subprocess.run(
        [*map(str, command), *map(str, tokenizers), "--alternations", "3", "--output", str(figures)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    for name in ("smollm2", "llama3"):
        # The least of the rounds: even CPU seconds grow when the host's other machines are busy.
        cpu = {way: min(one["cpu"] for one in rounds) for way, rounds in found[name]["rounds"].items()}
        assert cpu["xtuner"] / cpu["transformers"] >= 1.8
        assert cpu["transformers"] / cpu["bare"] <= 1.3
        assert cpu["transformers, num_proc 2"] / cpu["transformers"] <= 1.3
        assert name == "smollm2" or cpu["xtuner"] / cpu["gigatoken"] >= 15
