"""A model that is loaded on several processes takes the memory of less than two, all of them together."""

import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import nano_run
from nano_run import settings
from ranks import on_ranks
from rmcli.config.resolve import resolve
from rmcli.parallel import world
from rmcli.train.job import build_job
from rmcli.train.network import network_of
from support.cli import run_cli

pytestmark = pytest.mark.slow


def anonymous_bytes() -> int:
    """Of this process, without files that the system may drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Watch(threading.Thread):
    """(time, memory above that of its start), again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_bytes, self.seen, self.is_over = anonymous_bytes(), [(time.time(), 0)], False

    def run(self) -> None:
        while not self.is_over:
            self.seen.append((time.time(), anonymous_bytes() - self.start_bytes))
            time.sleep(0.002)


def loaded(folder: str, keys: tuple[str, ...]) -> tuple[list[tuple[float, int]], int]:
    """What the process held at each time while the network was made, and the bytes of its parts of the weights."""
    job = build_job(resolve("tiny", (), keys), Path(folder) / "data", Path(folder) / "run", processes=world.size())
    if world.is_first():
        job.run_folder.mkdir()
    watch = Watch()
    watch.start()
    network = network_of(job)
    watch.is_over = True
    watch.join()
    return watch.seen, sum(weight.to_local().nbytes for weight in network.parameters())


def most_at_once(seen: list[list[tuple[float, int]]]) -> int:
    """The largest sum over the processes at any time."""
    now, most = [0] * len(seen), 0
    events = sorted((when, process, held) for process, one in enumerate(seen) for when, held in one)
    for _, process, held in events:
        now[process] = held
        most = max(most, sum(now))
    return most


def test_four_processes_load_a_model_in_the_memory_of_less_than_two(tmp_path):
    small = nano_run.make_model(tmp_path / "nano")
    tokenizer = AutoTokenizer.from_pretrained(small)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    keys = (
        f"model.pretrained_model_name_or_path={tmp_path / 'model'}",
        "model.random_weights=false",
        "parallel.data_parallel=shard",
    )
    prepared = run_cli("prepare", "tasks:90", "-p", "tiny", "-o", tmp_path / "data", "--no-audit", *settings(*keys))
    assert prepared.code == 0, prepared.stderr
    found = on_ranks(4, loaded, str(tmp_path), keys)
    whole = sum(held for _, held in found)
    assert whole > 300 * 2**20
    assert most_at_once([seen for seen, _ in found]) < 2 * whole
