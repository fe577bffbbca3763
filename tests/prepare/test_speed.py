"""The speed of prepare against its bounds: in CPU seconds where they can tell, that a busy machine hardly changes."""

import json
import os
import subprocess
import sys

import pytest

from rmcli.config.resolve import resolve
from rmcli.tokens.tokenizer import load_tokenizer
from support.places import REPOSITORY, find_tokenizer

MOST_ROUNDS = 8


@pytest.mark.slow  # a minute
def test_prepare_is_as_fast_as_the_tokenizer_allows(gguf, real_data, tmp_path):
    figures = tmp_path / "figures.json"
    tokenizers = ("--gguf", gguf, "--llama3", find_tokenizer("llama3"))
    command = [sys.executable, REPOSITORY / "benchmarks" / "prepare.py", real_data / "hh_rlhf_harmless.jsonl.gz"]
    done = subprocess.run(
        [*map(str, command), *map(str, tokenizers), "--alternations", "5", "--output", str(figures)],
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


@pytest.mark.slow  # half a minute, or more on a busy machine
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two threads need two cores")
def test_two_threads_encode_1_7_times_as_fast_as_one(gguf, real_data, monkeypatch):
    """By the clock, the least of each: what else runs adds to it. Ends with the first round that shows it."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import prepare as benchmark

    reward = load_tokenizer(
        resolve("smollm2-135m", settings=[f"model.pretrained_model_name_or_path={gguf}"]).config.model
    )
    groups = benchmark.encodable(reward, benchmark.read_groups(real_data / "hh_rlhf_harmless.jsonl.gz")) * 10
    encoder = benchmark.settled(reward, "transformers", groups)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(MOST_ROUNDS):
        for num_proc, taken in seconds.items():
            taken.append(benchmark.measure(lambda n=num_proc: benchmark.our_way(encoder, groups, n))["wall"])
        if len(seconds[1]) > 1 and min(seconds[1]) / min(seconds[2]) >= 1.7:
            return
    pytest.fail(f"seconds by number of threads: {seconds}")
