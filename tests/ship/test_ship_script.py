"""examples/ship.sh from its first line to its last, with the real 135M model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

import consumers
from support.places import REPOSITORY, missing, write_lines

SCRIPT = REPOSITORY / "examples" / "ship.sh"


@pytest.fixture(scope="module")
def policy(gguf, tmp_path_factory) -> Path:
    """The language model itself, as a folder that transformers loads by name."""
    folder = tmp_path_factory.mktemp("policy")
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    plain = GgufConfig(gguf_file=gguf.name, dequantize=True)
    AutoModelForCausalLM.from_pretrained(gguf.parent, quantization_config=plain, **options).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_script_trains_verifies_and_is_the_reward_of_grpo(gguf, policy, real_data, tmp_path):
    trl = consumers.python_of("trl")
    if not trl.is_file():
        missing("the environment .venv-trl (make .venv-trl/.installed)")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "rmcli").write_text(f'#!/bin/bash\nexec {sys.executable} -m rmcli "$@"\n')
    (commands / "rmcli").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "BASE": str(gguf),
        "POLICY": str(policy),
        "TRL_PYTHON": str(trl),
        "HF_HUB_OFFLINE": "1",
    }
    pairs = real_data / "instruction_preference.jsonl.gz"
    command = ["bash", SCRIPT, pairs, tmp_path / "out"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    assert ran.stderr.count("next: hf upload YOUR-NAME/model") == 2
    assert "8 scores are the same" in ran.stdout


def test_scores_that_differ_fail(tmp_path):
    one = write_lines(tmp_path / "one.jsonl", [{"score": 1.0}, {"score": 2.0}])
    for other, said in (([{"score": 1.0}, {"score": 2.01}], "differ by 0.01 in 2 scores"), ([], "")):
        path = write_lines(tmp_path / "other.jsonl", other)
        script = REPOSITORY / "examples" / "same_scores.py"
        ran = subprocess.run([sys.executable, script, one, path], capture_output=True, text=True)
        assert ran.returncode == 1
        assert said in ran.stderr
