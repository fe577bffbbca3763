"""Processes started and watched as one command: one of them talks, one says why all end, none is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmcli.parallel import launch
from support.places import REPOSITORY

CHILD = str(REPOSITORY / "tests" / "support" / "several_child.py")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGHUP: 143}
PARENT = "import sys; from rmcli.parallel.launch import run_together; sys.exit(run_together(sys.argv[2:], {}))"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def together(capfd, monkeypatch, *what: str, number: int = 2) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command that does `what` on each process."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    code = launch.run_together([CHILD, *what], number)
    return code, *capfd.readouterr()


@contextmanager
def started(*line: str) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A command, once its two processes take steps, and what they are; none may outlive it by more than a second."""
    process = subprocess.Popen(
        [sys.executable, *line], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    )
    ids: list[int] = []
    try:
        while not ids:
            said = process.stderr.readline()
            assert said, "ended before it took steps"
            if said.startswith("processes "):
                ids = [int(word) for word in said.split()[1:]]
        yield process, ids
        process.wait(30)
        wait_until_gone(ids)
    finally:
        process.kill()
        process.stderr.close()


def wait_until_gone(ids: list[int]) -> None:
    until = time.monotonic() + 1
    while left := [one for one in ids if is_running(one)]:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def parent(*what: str, number: int = 2) -> list[str]:
    return ["-c", PARENT.format(number), "-", CHILD, *what]


def test_the_first_talks_and_the_one_that_fails_says_why(capfd, monkeypatch):
    """Whatever the others write, by Python or past it."""
    code, stdout, stderr = together(capfd, monkeypatch, "talk_and_fail")
    assert code == 2
    assert stdout == "stdout 0\nanswer 0\n"
    lines = [line for line in stderr.splitlines() if "UserWarning" not in line and "warnings.warn" not in line]
    assert lines == ["say 0", "note: warn 0", "stderr 0", "error: a key is wrong", "hint: mend it"]
    assert stderr.count("UserWarning: warning 0") == 1


def test_a_killed_process_ends_all_and_is_named(capfd, monkeypatch):
    code, _, stderr = together(capfd, monkeypatch, "killed")
    assert code == 128 + 9
    assert stderr == "error: process 1 of 2 was killed by SIGKILL (out of memory?)\n"


def test_ctrl_c_comes_to_all_and_they_end_after_the_same_step():
    with started(*parent("steps")) as (process, _):
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == 130
    assert said[0] == "note: SIGINT: this step ends, and a checkpoint is written; once more leaves at once"
    assert len(said) == 3
    first, second = steps_in(said[1])
    assert first == second
    assert said[2] == "hint: go on"


def steps_in(line: str) -> list[int]:
    """[7, 7] of "error: stopped by SIGINT after steps [7, 7]"."""
    return [int(one) for one in line.partition("[")[2].rstrip("]").split(", ")]


def test_processes_end_with_the_one_that_watches_them():
    with started(*parent("long_step")) as (process, _):
        process.kill()


@pytest.mark.slow
def test_a_killed_process_is_named_whatever_others_make_of_it(capfd, monkeypatch):
    code, _, stderr = together(capfd, monkeypatch, "killed_while_another_writes")
    assert code == 128 + 9
    assert stderr.splitlines() == [
        "error: cannot write",
        "error: process 1 of 2 was killed by SIGKILL (out of memory?)",
    ]


@pytest.mark.slow
def test_who_does_not_hear_that_another_failed_is_ended(capfd, monkeypatch):
    began = time.monotonic()
    code, _, stderr = together(capfd, monkeypatch, "error_while_others_are_busy")
    assert (code, stderr) == (2, "error: a key is wrong\nhint: mend it\n")
    assert time.monotonic() - began < launch.GRACE + 15


@pytest.mark.slow
def test_what_all_fail_of_is_said_once(capfd, monkeypatch):
    assert together(capfd, monkeypatch, "error_of_all", number=3)[::2] == (
        2,
        "error: a key is wrong\nhint: mend it\n",
    )


@pytest.mark.slow
def test_what_all_fail_of_is_said_once_where_nobody_watches():
    """The store where they met ends with the first, which leaves the others time to read who has said it."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(28_500 + os.getpid() % 1000)}
    both = [
        subprocess.Popen(
            [sys.executable, CHILD, "error_of_all"],
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert said == ["error: a key is wrong\nhint: mend it\n", ""]


@pytest.mark.slow
def test_a_fault_of_our_own_is_seen_once_wherever_it_is(capfd, monkeypatch):
    code, _, stderr = together(capfd, monkeypatch, "bug")
    assert code == 1
    assert stderr.count("Traceback") == 1
    assert stderr.splitlines()[-1].endswith("ZeroDivisionError: a bug")


@pytest.mark.slow
def test_a_process_that_ends_before_it_meets_the_others_is_named(capfd, monkeypatch):
    code, _, stderr = together(capfd, monkeypatch, "end_before_all_met")
    assert (code, stderr) == (3, "error: process 1 of 2 ended with exit code 3 and without a word\n")


@pytest.mark.slow
@pytest.mark.parametrize("line", [parent("steps", "9"), [*TORCHRUN, CHILD, "steps", "9"]], ids=["ours", "torchrun"])
def test_a_signal_to_one_process_ends_all_after_the_same_step(line):
    """The second one gets SIGUSR1 in its ninth step, from nobody that watches."""
    with started(*line) as (process, _):
        said = process.communicate(timeout=30)[1].splitlines()
    assert process.returncode == (1 if "torch.distributed.run" in line else 143)
    assert said[0] == "note: SIGUSR1: this step ends, and a checkpoint is written; once more leaves at once"
    first, second = steps_in(said[1])
    assert first == second >= 9


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once(number):
    with started(*parent("long_step")) as (process, _):
        began = time.monotonic()
        process.send_signal(number)
        time.sleep(0.3)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1].splitlines()
    assert time.monotonic() - began < launch.GRACE + 8
    assert process.returncode == CODES[number]
    assert [line for line in said if line.startswith("error")] == [said[-1]]


@pytest.mark.slow
def test_a_signal_while_processes_start_is_one_line():
    """At any moment: Python's own start has nothing that takes signals."""
    for seed in range(6):
        process = subprocess.Popen(
            [sys.executable, *parent("steps")], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        while not (children := children_of(process.pid)):
            time.sleep(0.01)
        time.sleep(seed * 0.2)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
        wait_until_gone(children)
        assert process.returncode == 130, said
        assert said.count("error: ") <= 1, said
        assert "Traceback" not in said


def children_of(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(one) for one in found] if len(found) == 2 else []


@pytest.mark.slow
def test_under_torchrun_our_two_lines_come_once():
    result = subprocess.run(
        [sys.executable, *TORCHRUN, CHILD, "talk_and_fail"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert result.returncode == 1
    assert result.stdout == "stdout 0\nanswer 0\n"
    assert result.stderr.count("error: a key is wrong\nhint: mend it\n") == 1
    assert "gloo" not in result.stderr
    assert "note: SIGTERM" not in result.stderr


@pytest.mark.slow
def test_under_torchrun_who_waits_for_one_that_failed_is_gone_before_torchrun_kills_it():
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, *TORCHRUN, CHILD, "error_while_others_step"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert result.returncode == 1
    assert result.stderr.count("error: a key is wrong\nhint: mend it\n") == 1
    assert time.monotonic() - began < 20  # torchrun kills after 30


@pytest.mark.slow
def test_under_torchrun_a_killed_process_is_told_of_once():
    result = subprocess.run(
        [sys.executable, *TORCHRUN, CHILD, "killed"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert result.returncode == 1
    assert "Signal 9 (SIGKILL) received by PID" in result.stderr  # torchrun's banner
    assert result.stderr.count("error: ") <= 1
    assert "gloo" not in result.stderr
