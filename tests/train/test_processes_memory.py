"""A model that is loaded on several processes takes the memory of less than two, all of them together."""

import ctypes
import gc
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import nano_run
from nano_run import settings
from rmcli.config.resolve import resolve
from rmcli.model.shard import gathered
from rmcli.parallel import world
from rmcli.train.job import Job, build_job
from rmcli.train.network import network_of
from support.cli import run_cli
from support.ranks import on_ranks

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


def job_of(folder: str, run: str, keys: tuple[str, ...]) -> Job:
    job = build_job(resolve("tiny", (), keys), Path(folder) / "data", Path(folder) / run, processes=world.size())
    if world.is_first():
        job.run_folder.mkdir()
    return job


def loaded(folder: str, run: str, keys: tuple[str, ...]) -> tuple[list[tuple[float, int]], int]:
    """What the process held at each time while the network was made, and the bytes of its parts of the weights."""
    job = job_of(folder, run, keys)
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


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """A folder with a model of 100M parameters and data for it, and the keys of a run that cuts it."""
    folder = tmp_path_factory.mktemp("memory")
    small = nano_run.make_model(folder / "nano")
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
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    keys = (
        f"model.pretrained_model_name_or_path={folder / 'model'}",
        "model.random_weights=false",
        "parallel.data_parallel=shard",
    )
    prepared = run_cli("prepare", "tasks:90", "-p", "tiny", "-o", folder / "data", "--no-audit", *settings(*keys))
    assert prepared.code == 0, prepared.stderr
    return folder, keys


def test_four_processes_load_a_model_in_the_memory_of_less_than_two(model):
    found = on_ranks(4, loaded, str(model[0]), "loaded", model[1])
    whole = sum(held for _, held in found)
    assert whole > 300 * 2**20
    assert most_at_once([seen for seen, _ in found]) < 2 * whole


def put_together(folder: str, run: str, keys: tuple[str, ...]) -> tuple[float, int]:
    """What the process held most beside its part while the weights were put together to be exported, in models."""
    job = job_of(folder, run, keys)
    network = network_of(job)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed would be taken again, and not be seen
    watch = Watch()
    watch.start()
    weights = gathered(network)
    time.sleep(0.02)  # it is seen whole
    whole_bytes = sum(weight.numel() * weight.element_size() for weight in network.parameters())
    watch.is_over = True
    watch.join()
    return max(held for _, held in watch.seen) / whole_bytes, len(weights)


def test_an_export_of_four_processes_holds_the_model_once(model):
    (first, number), *others = on_ranks(4, put_together, str(model[0]), "exported", model[1])
    assert number > 50
    assert 0.9 < first < 1.2
    for most, weights in others:
        assert weights == 0
        assert most < 0.4  # the largest weight, which each sees whole, and what is on its way
