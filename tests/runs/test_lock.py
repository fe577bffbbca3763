"""One process at a time has a run folder; who comes second is told who has it, and a killed one leaves it free."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nano_run import files, lines, of_model, settings
from rmcli.runs import checkpoint, lock
from rmcli.train.loop import Trainer
from support.cli import run_cli
from support.places import REPOSITORY

KEYS = ("train.pairs_per_step=16", "train.max_epochs=50", "train.max_steps=4", "train.save_steps=2")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
HOLD = """
import sys, time
from pathlib import Path
from rmcli.runs import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def first_line(model: Path, data: Path, out: str, *keys: str) -> list[str]:
    return ["train", "--data", str(data), "-o", out, *of_model(model), *settings(*KEYS, *keys)]


@pytest.fixture(scope="module")
def stopped(nano, nano_data, tmp_path_factory) -> Path:
    """Stopped after its second step of four; `whole` lies beside it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert run_cli(*first_line(nano, nano_data, str(folder.with_name("whole")))).code == 0
    with pytest.MonkeyPatch.context() as patch:
        step = Trainer.run_step

        def signalled(self, feed):
            if feed.step.number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, feed)

        patch.setattr(Trainer, "run_step", signalled)
        assert run_cli(*first_line(nano, nano_data, str(folder))).code == 143
    return folder


@pytest.fixture
def run(cli, stopped) -> Path:
    shutil.copytree(stopped, "run")
    return Path("run")


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_is_held_is_refused_with_its_holder_and_is_free_once_that_is_killed(cli, run, stopped):
    with subprocess.Popen([sys.executable, "-c", HOLD, run], env=ENVIRONMENT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        before = content(run)
        result = cli("train", "--resume", "-o", "run")
        assert (result.code, result.stdout) == (1, "")
        assert result.stderr.endswith(
            f"error: run is held by a run that is going on (process {holder.pid} on {socket.gethostname()})\n"
            "hint: wait for it, or end it\n"
        )
        assert content(run) == before
        holder.kill()
    assert (run / lock.FILE).exists()
    assert cli("train", "--resume", "-o", "run").code == 0
    assert not (run / lock.FILE).exists()
    assert files(run / "model") == files(stopped.with_name("whole") / "model")


def test_a_lock_left_by_a_run_killed_at_its_very_end_is_cleared_and_a_held_one_not(cli, run):
    assert cli("train", "--resume", "-o", "run").code == 0
    (run / lock.FILE).write_text('{"process": 1, "host": "there"}')
    assert "run is finished: all 4 steps are done" in cli("train", "--resume", "-o", "run").stderr
    assert not (run / lock.FILE).exists()
    with lock.held(run):
        assert cli("train", "--resume", "-o", "run").code == 0
        assert (run / lock.FILE).exists()


def test_a_run_that_another_process_has_meanwhile_gone_on_with_is_left_as_it_is(cli, run, monkeypatch):
    """It was read before the folder was held; what came after its checkpoint would be taken for half written."""
    held = lock.held

    def late(folder):
        monkeypatch.setattr(lock, "held", held)
        assert cli("train", "--resume", "-o", "run").code == 0
        return held(folder)

    monkeypatch.setattr(lock, "held", late)
    result = cli("train", "--resume", "-o", "run")
    assert result.code == 1
    assert result.stderr.endswith(
        "error: run has meanwhile gone on to step-4\nhint: look again: rmcli train --resume -o run\n"
    )
    assert checkpoint.latest(run) == run / "checkpoints" / "step-4"


@pytest.mark.slow
@pytest.mark.parametrize("begun", [True, False])
def test_of_two_starts_at_once_one_goes_on(cli, nano, nano_data, begun):
    """In a folder that has a run, and in one that is not there yet."""
    first = first_line(nano, nano_data, "run", "train.max_steps=200", "train.save_steps=50")
    whole = first_line(nano, nano_data, "whole", "train.max_steps=200", "train.save_steps=50")
    assert cli(*whole).code == 0
    if begun:
        with subprocess.Popen([sys.executable, "-m", "rmcli", *first], env=ENVIRONMENT) as process:
            while checkpoint.latest(Path("run")) is None and process.poll() is None:
                pass
            process.kill()
        assert process.returncode == -signal.SIGKILL
    line = [sys.executable, "-m", "rmcli", *first, "--resume"]
    both = [subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {process.pid: process.communicate(timeout=120)[1] for process in both}
    assert sorted(process.returncode for process in both) == [0, 1], said
    winner, loser = sorted(both, key=lambda process: process.returncode)
    refusals = (
        f"error: run is held by a run that is going on (process {winner.pid} on {socket.gethostname()})",
        "error: another run has just begun in run",
        f"error: run folder run is not empty: a run that runs (process {winner.pid} on {socket.gethostname()})",
    )
    assert said[loser.pid].splitlines()[-2].startswith(refusals[:1] if begun else refusals)
    assert lines("run") == lines("whole")
    assert files(Path("run/model")) == files(Path("whole/model"))
    assert not (Path("run") / lock.FILE).exists()
