"""A signal ends a run after its step, with a checkpoint and the command to go on; a second one at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nano_run import files, lines, of_model, settings
from rmcli.errors import Terminated
from rmcli.runs import tensors
from rmcli.train.loop import Trainer
from support.places import REPOSITORY

STEPS = 60
KEYS = ("train.pairs_per_step=16", "train.max_epochs=50", f"train.max_steps={STEPS}", "train.log_every=1")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 143}
AGAIN = ": this step ends, and a checkpoint is written; once more leaves at once"


def first_line(model: Path, data: Path, out: str) -> list[str]:
    return ["train", "--data", str(data), "-o", out, *of_model(model), *settings(*KEYS)]


@pytest.fixture(scope="module")
def whole(nano, nano_data, tmp_path_factory) -> Path:
    """The run that no signal comes to."""
    from support.cli import run_cli

    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_cli(*first_line(nano, nano_data, str(folder))).code == 0
    return folder


def child(program: list[str], line: list[str], **options) -> subprocess.Popen:
    """A process of its own, with as many threads as this one: its bits are ours."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, *program, *line],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        **options,
    )


def wait_for_step(process: subprocess.Popen, run: str, step: int) -> None:
    path = Path(run) / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def stop_and_go_on(cli, line: list[str], whole: Path, number: int, step: int, code: int) -> None:
    """A real process gets the signal some time after `step`."""
    with child(["-m", "rmcli"], line) as process:
        wait_for_step(process, "run", step)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    name = signal.Signals(number).name
    (last,) = [path.name for path in Path("run/checkpoints").glob("step-*")]
    reached = int(last.removeprefix("step-"))
    assert step <= reached < STEPS
    assert f"{name}{AGAIN}\n" in said
    ending = (
        f"error: stopped by {name} after step {reached} of {STEPS}; the last checkpoint is run/checkpoints/{last}",
        "hint: go on with: rmcli train --resume -o run",
    )
    assert tuple(said.splitlines()[-2:]) == ending
    assert len(lines("run")) == reached
    result = cli("train", "--resume", "-o", "run")
    assert result.code == 0, result.stderr
    assert "not bitwise" not in result.stderr
    assert lines("run") == lines(whole)
    assert files(Path("run/model")) == files(whole / "model")


def test_a_signal_from_outside_ends_the_run_after_its_step(cli, nano, nano_data, whole):
    stop_and_go_on(cli, first_line(nano, nano_data, "run"), whole, signal.SIGUSR1, 7, 143)


@pytest.mark.parametrize("place", ["log", "evaluate_and_log", "save"])
def test_a_signal_between_two_steps_finds_its_checkpoint(cli, nano, nano_data, monkeypatch, place):
    """While the step is logged, evaluated or saved, after the last one, too."""
    whole = getattr(Trainer, place)

    def signalled(self, *arguments):
        whole(self, *arguments)
        if self.step in (2, 4) and self.step not in sent:
            sent.append(self.step)
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[int] = []
    monkeypatch.setattr(Trainer, place, signalled)
    saves = 2 if place == "save" else 100
    every = settings("train.eval_steps=1", f"train.save_steps={saves}", "train.max_steps=4")
    result = cli(*first_line(nano, nano_data, "run"), *every)
    for step in (2, 4):
        reached = step + (place == "save" and step == 2)  # it came once the step was asked
        assert result.code == 143
        assert f"after step {reached} of 4; the last checkpoint is run/checkpoints/step-{reached}\n" in result.stderr
        result = cli("train", "--resume", "-o", "run")
    assert result.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("seed", range(5))
def test_twenty_of_twenty_signals_end_the_run_after_its_step(cli, nano, nano_data, whole, number, seed):
    step = random.Random(f"{number.name} {seed}").randint(1, STEPS * 2 // 3)
    stop_and_go_on(cli, first_line(nano, nano_data, "run"), whole, number, step, CODES[number])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(cli, nano, nano_data, monkeypatch, number):
    """While a step is long, which is here asleep."""

    def long(self, feed):
        began.append(time.monotonic())
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        time.sleep(60)

    began = []
    monkeypatch.setattr(Trainer, "run_step", long)
    result = cli(*first_line(nano, nano_data, "run"))
    assert result.code == CODES[number]
    assert time.monotonic() - began[0] < 2
    what = "interrupted" if number == signal.SIGINT else "terminated"
    assert result.stderr.endswith(f"{number.name}{AGAIN}\nerror: {what}; no checkpoint yet\n")
    assert signal.set_wakeup_fd(-1) == -1


# `rmcli ARGUMENTS`, whose third step is one call of some twenty seconds in which Python runs nothing.
LONG_CALL = """
import sys, torch
from rmcli.__main__ import main
from rmcli.train.loop import Trainer
whole = Trainer.run_step
def long(self, feed):
    if feed.step.number == 3:
        one = torch.ones(9000, 9000)
        print("in step 3", file=sys.stderr, flush=True)
        one @ one
    return whole(self, feed)
Trainer.run_step = long
sys.argv = ["rmcli", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_second_signal_leaves_at_once_from_within_a_long_call(cli, nano, nano_data, number):
    with child(["-c", LONG_CALL], first_line(nano, nano_data, "run")) as process:
        while process.stderr.readline() not in ("in step 3\n", ""):
            pass
        began = time.monotonic()
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
        seconds = time.monotonic() - began
    assert process.returncode == CODES[number], said
    assert seconds < 2
    last = f"error: {number.name} once more: left at once, in the middle of a step or a checkpoint"
    assert said.splitlines()[-1] == last
    assert cli("train", "--resume", "-o", "run").code == 0


def test_a_signal_inside_a_checkpoint_is_no_fault_of_the_disk(tmp_path, monkeypatch):
    """torch puts what interrupts its writing into an error of its own."""

    def interrupted(*_):
        raise Terminated

    monkeypatch.setattr(tensors.HuggingFaceStorageWriter, "write_data", interrupted)
    with pytest.raises(Terminated):
        tensors.write(tmp_path / "step-1", {"weight": torch.zeros(2)})


def test_sigusr1_before_the_first_step_is_one_line(cli, nano, nano_data, monkeypatch):
    def signalled(*_):
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(60)

    monkeypatch.setattr("rmcli.train.network.load_model", signalled)
    result = cli(*first_line(nano, nano_data, "run"))
    assert result.code == 143
    assert [line for line in result.stderr.splitlines() if line.startswith(("error", "hint"))] == [
        "error: terminated; no checkpoint yet"
    ]
    assert json.loads(Path("run/run.json").read_text())["result"] == {"status": "interrupted"}
    assert sorted(path.name for path in Path("run").iterdir()) == ["metrics.jsonl", "resolved.toml", "run.json"]


def test_an_ignored_hangup_stays_ignored(cli, nano, nano_data, monkeypatch):
    """As nohup starts it."""
    whole_step, before = Trainer.run_step, signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def step(self, feed):
        os.kill(os.getpid(), signal.SIGHUP)
        return whole_step(self, feed)

    monkeypatch.setattr(Trainer, "run_step", step)
    try:
        result = cli(*first_line(nano, nano_data, "run"), *settings("train.max_steps=3"))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.code, result.stdout) == (0, "run/model\n")


@pytest.mark.slow
def test_a_run_under_nohup_outlives_its_terminal(cli, nano, nano_data, whole):
    line = first_line(nano, nano_data, "run")
    with child(
        ["-c", "import os, sys; os.execvp('nohup', ['nohup', sys.executable, '-m', 'rmcli', *sys.argv[1:]])"], line
    ) as process:
        wait_for_step(process, "run", 3)
        process.send_signal(signal.SIGHUP)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert files(Path("run/model")) == files(whole / "model")
