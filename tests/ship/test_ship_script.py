"""examples/ship.sh from its first line to its last, with the real 135M model; what it calls, with a small one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

import consumers
from support.places import REPOSITORY, missing, write_lines
from support.serving import serving, with_golden

EXAMPLES = REPOSITORY / "examples"
PROTOCOLS = ("openrlhf", "vllm", "llamafactory")


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
def test_the_script_trains_verifies_is_the_reward_of_grpo_and_serves(gguf, policy, real_data, tmp_path):
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
    command = ["bash", EXAMPLES / "ship.sh", pairs, tmp_path / "out"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    assert ran.stderr.count("next: hf upload YOUR-NAME/model") == 2
    assert "8 scores are the same" in ran.stdout
    for mode in ("reserved", "natural"):
        assert ran.stdout.count(f"{mode}-over-http/scores.jsonl") == len(PROTOCOLS)
        lines = (tmp_path / "out" / f"{mode}-over-http" / "scores.jsonl").read_text().splitlines()
        assert len({json.loads(line)["score"] for line in lines}) > 5
    assert ran.stderr.count("draining: what was asked is answered, then the server ends") == 2


def test_a_server_gives_the_golden_scores_in_three_shapes(tmp_path):
    spec = importlib.util.spec_from_file_location("over_http", EXAMPLES / "over_http.py")
    over_http = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(over_http)
    model = with_golden(tmp_path / "model")
    golden = [json.loads(line) for line in (model / "golden.jsonl").read_text().splitlines()]
    with serving(model) as running:
        address = f"http://127.0.0.1:{running.port}"
        over_http.main(address, model / "golden.jsonl", tmp_path)
        running.service.ready._off = 1.0
        with pytest.raises(HTTPError, match="503") as unready:
            over_http.main(address, model / "golden.jsonl", tmp_path)
        unready.value.close()
    for name in PROTOCOLS:
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        found = [json.loads(line)["score"] for line in lines]
        assert found == pytest.approx([line["score"] for line in golden], abs=1e-5)


def test_scores_that_differ_fail(tmp_path):
    one = write_lines(tmp_path / "one.jsonl", [{"score": 1.0}, {"score": 2.0}])
    for other, limit, said in (
        ([{"score": 1.0}, {"score": 2.01}], [], "differ by 0.01 in 2 scores"),
        ([{"score": 1.0}, {"score": 2.00002}], ["1e-5"], "differ by 2e-05 in 2 scores"),
        ([], [], ""),
    ):
        path = write_lines(tmp_path / "other.jsonl", other)
        command = [sys.executable, EXAMPLES / "same_scores.py", one, path, *limit]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 1
        assert said in ran.stderr
