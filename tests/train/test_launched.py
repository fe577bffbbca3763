"""A run that is started on two processes is one command: three launchers, signals, a killed process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano_run import files, lines, of_model, settings
from support.places import REPOSITORY

STEPS = 60
KEYS = ("train.pairs_per_step=16", "train.max_epochs=50", f"train.max_steps={STEPS}", "train.log_every=1")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 143}
AGAIN = ": this step ends, and a checkpoint is written; once more leaves at once"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
LAUNCHERS = {
    "ours": ["-m", "rmcli"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "rmcli"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "-m", "rmcli"],
}


@pytest.fixture
def line(nano, nano_data, tmp_path, monkeypatch) -> list[str]:
    """The options of a training, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return ["train", "--data", str(nano_data), *of_model(nano), *settings(*KEYS)]


def start(launcher: str, line: list[str], *more: str) -> subprocess.Popen:
    if launcher == "ours":
        more = (*more, "--num-processes", "2")
    return subprocess.Popen(
        [sys.executable, *LAUNCHERS[launcher], *line, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    path = Path("run/metrics.jsonl")
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def result_of(process: subprocess.Popen) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


@pytest.mark.slow
def test_three_launchers_start_the_same_run(line):
    """And its folder's name is chosen once."""
    short = settings("train.max_steps=6")
    for number, launcher in enumerate(LAUNCHERS, 1):
        code, stdout, stderr = result_of(start(launcher, line, *short))
        assert (code, stdout) == (0, f"runs/tiny-{number}/model\n"), stderr
        assert stderr.count("self-test") == 1
        assert lines(f"runs/tiny-{number}") == lines("runs/tiny-1")
        assert files(Path(f"runs/tiny-{number}/model")) == files(Path("runs/tiny-1/model"))
        assert json.loads(Path(f"runs/tiny-{number}/run.json").read_text())["processes"] == 2
    assert len(list(Path("runs").iterdir())) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("seed", range(5))
def test_twenty_of_twenty_signals_end_both_processes_after_the_same_step(line, number, seed):
    process = start("ours", line, "-o", "run")
    wait_for_step(process, random.Random(f"{number.name} {seed}").randint(1, STEPS // 2))
    process.send_signal(number)
    code, _, said = result_of(process)
    assert code == CODES[number], said
    (last,) = [path.name for path in Path("run/checkpoints").glob("step-*")]
    reached = int(last.removeprefix("step-"))
    assert said.count(f"{number.name}{AGAIN}\n") == 1
    kept = f"the last checkpoint is run/checkpoints/{last}"
    ending = (
        f"error: stopped by {number.name} after step {reached} of {STEPS}; {kept}",
        "hint: go on with: rmcli train --resume -o run",
    )
    assert tuple(said.splitlines()[-2:]) == ending
    assert said.count("error: ") == 1
    assert len(lines("run")) == reached
    assert json.loads(Path("run/run.json").read_text())["result"] == {"status": "interrupted"}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(line, launcher):
    code, _, stderr = result_of(start(launcher, line, "-o", "whole"))
    assert code == 0, stderr
    process = start(launcher, line, "-o", "run")
    wait_for_step(process, 9)
    process.send_signal(signal.SIGTERM)
    code, _, stderr = result_of(process)
    assert code == (143 if launcher == "ours" else 1), stderr
    assert stderr.count("note: SIGTERM" + AGAIN) == stderr.count("error: stopped by SIGTERM after step") == 1
    code, _, stderr = result_of(start(launcher, ["train"], "--resume", "-o", "run"))
    assert code == 0, stderr
    assert "not bitwise" not in stderr
    assert lines("run") == lines("whole")
    assert files(Path("run/model")) == files(Path("whole/model"))


@pytest.mark.slow
def test_runs_killed_at_random_go_on_by_themselves_and_end_bitwise_as_one_never_killed(line):
    """With dropout and a checkpoint every other step. One of the two processes is killed, or what started them."""
    keys = settings("train.max_steps=12", "train.save_steps=2", "train.log_every=4", "train.async_checkpoint=true")
    code, _, said = result_of(start("ours", line, *keys, "-o", "whole"))
    assert code == 0, said
    chance, kills = random.Random(0), 0
    for number in range(2):
        out = f"run-{number}"
        for _ in range(3):
            process = start("ours", line, *keys, "--resume", "-o", out)
            while process.poll() is None and not Path(out, "metrics.jsonl").exists():
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 1.5))
            if process.poll() is None:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(chance.choice([process.pid, *map(int, children)]), signal.SIGKILL)
                kills += 1
            result_of(process)
        code, _, said = result_of(start("ours", ["train"], "--resume", "-o", out))
        assert code == 0, said
        assert lines(out) == lines("whole")
        assert files(Path(out, "model")) == files(Path("whole/model"))
        assert not [*Path(out).rglob("*.tmp-*"), *Path(out).glob("lock")]
    assert kills > 3


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_named_with_the_way_on(line, rank):
    process = start("ours", line, "-o", "run", *settings("train.save_steps=3"))
    wait_for_step(process, 5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[rank]), signal.SIGKILL)
    code, _, stderr = result_of(process)
    assert code == 128 + 9
    said = stderr[stderr.index("error: ") :]
    assert said.startswith(f"error: process {rank} of 2 was killed by SIGKILL (out of memory?)")
    assert "; the last checkpoint is run/checkpoints/step-" in said
    assert said.endswith("hint: go on with: rmcli train --resume -o run\n")
    if rank == 1:
        assert json.loads(Path("run/run.json").read_text())["result"]["status"] == "failed"
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_an_error_of_one_process_is_said_once_with_its_hint(line, tmp_path):
    """The second process of a run whose weights it cannot hold."""
    faulty = tmp_path / "sitecustomize.py"
    faulty.write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from rmcli.errors import RmcliError\n"
        "    from rmcli.train.loop import Trainer\n"
        "    whole = Trainer.run_step\n"
        "    def run_step(self, feed):\n"
        "        if feed.step.number == 3:\n"
        "            raise RmcliError('no room for a forward', 'take less')\n"
        "        return whole(self, feed)\n"
        "    Trainer.run_step = run_step\n"
    )
    ENVIRONMENT["PYTHONPATH"] = f"{tmp_path}:{REPOSITORY}"
    try:
        code, _, stderr = result_of(start("ours", line, "-o", "run"))
    finally:
        ENVIRONMENT["PYTHONPATH"] = str(REPOSITORY)
    assert code == 1
    assert stderr[stderr.index("error: ") :] == "error: no room for a forward\nhint: take less\n"
    told = json.loads(Path("run/run.json").read_text())["result"]
    assert told == {"status": "failed", "error": "process 1: no room for a forward"}


def by_hand(rank: int, line: list[str], *more: str) -> subprocess.Popen:
    """One of two processes that nobody watches; the first has the place where they meet."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-m", "rmcli", *line, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | place | {"MASTER_PORT": str(29_500 + os.getpid() % 1000)},
    )


@pytest.mark.slow
def test_two_processes_with_different_settings_are_refused(line):
    first, second = by_hand(0, line, "-o", "run"), by_hand(1, line, "-o", "run", "-s", "train.lr=1e-5")
    code, _, stderr = result_of(first)
    assert code == 2
    assert stderr.splitlines()[-2:] == [
        "error: train.lr is 0.004 on process 0 and 1e-05 on process 1",
        "hint: start all processes with the same command, files and versions",
    ]
    assert result_of(second) == (2, "", "")
    assert not Path("run").exists()
