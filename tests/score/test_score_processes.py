"""Several processes score what one would, byte for byte; one that dies costs what is not written yet."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmcli.lines.team import scored
from support.places import REPOSITORY, write_lines

MODEL = REPOSITORY / "tests" / "written_before" / "model"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
LINE = [sys.executable, "-m", "rmcli", "score", str(MODEL), "in.jsonl", "--by-prompt"]


def rows(count: int) -> list[dict]:
    return [
        {"id": n, "prompt": f"Sort: {n} 1", "responses": [f"{n} {k}" for k in range(1 + n % 4)]} for n in range(count)
    ]


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([*LINE, *options], capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_one_process_takes_a_window_at_a_time_in_order():
    asked: list[int] = []

    def windows():
        for number in range(3):
            asked.append(number)
            yield number

    found = scored(windows(), lambda window: window * 10)
    assert next(found) == (0, 0)
    assert asked == [0]
    assert list(found) == [(1, 10), (2, 20)]


def test_stdin_is_not_shared_out(cli):
    result = cli("score", MODEL, "-", "--num-processes", "2", stdin="")
    assert (result.code, result.stderr.splitlines()[-2]) == (2, "error: --num-processes 2 reads no stdin")


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one_and_go_on_from_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", rows(5500))  # six windows: three rounds of two
    alone = run("-o", "one.jsonl", "--json")
    assert alone.returncode == 0, alone.stderr
    two = run("-o", "two.jsonl", "--json", "--num-processes", "2")
    assert two.returncode == 0, two.stderr
    assert Path("two.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
    assert json.loads(two.stdout) == json.loads(alone.stdout)
    assert two.stderr.count("self-test:") == 1
    command = [*LINE, "-o", "out.jsonl", "--num-processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    told = Path("out.jsonl.part.settings")
    while process.poll() is None and not (told.exists() and json.loads(told.read_text())["done"]["rows"]):
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 137, said
    assert Path("out.jsonl.part").is_file()
    again = run("-o", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert "going on with" in again.stderr
    assert Path("out.jsonl").read_bytes() == Path("one.jsonl").read_bytes()
