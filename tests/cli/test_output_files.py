"""What commands write never replaces what a user has: one rule, by every path, and nothing half-written stays."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmcli.errors import ConfigError, RmcliError
from rmcli.output_files import OutputFile

PAIR = {"prompt": "Add 1 2", "chosen": "3", "rejected": "4"}
PAIRS = json.dumps(PAIR) + "\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: pairs under several names, a script, prepared data."""
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text(PAIRS)
    Path("link.jsonl").symlink_to("in.jsonl")
    os.link("in.jsonl", "hard.jsonl")
    Path("sub").mkdir()
    Path("loop").symlink_to("loop")
    Path("script.py").write_text("print('mine')\n")
    return tmp_path


def commands(tiny_run, name: str) -> dict[str, list[str]]:
    """Each command that writes a file of a user's choice, told to write `name`."""
    return {
        "score": ["score", str(tiny_run.model), "in.jsonl", "-o", name],
        "audit": ["audit", str(tiny_run.data), "--report", name],
        "prepare": ["prepare", "in.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "data", "--report", name],
    }


@pytest.mark.parametrize("command", ["score", "audit", "prepare"])
def test_no_command_replaces_a_users_file(cli, folder, tiny_run, command):
    names = ["in.jsonl", "link.jsonl", "hard.jsonl", "sub/../in.jsonl", str(folder / "in.jsonl"), "script.py"]
    before = {name: Path(name).read_bytes() for name in names}
    for name in names:
        for overwrite in ([], ["--overwrite"]):
            result = cli(*commands(tiny_run, name)[command], *overwrite)
            assert (result.code, result.stdout) == (2, ""), (name, overwrite)
            first, hint = result.stderr.splitlines()
            if name == "script.py" or command == "audit":
                said = f"{name} holds no " if overwrite else f"{name} exists and is left alone"
            else:
                said = f"{name} is the input "
            assert said in first
            assert hint.startswith("hint: write another file")
    assert {name: Path(name).read_bytes() for name in names} == before
    assert not Path("data").exists()


def test_scores_are_overwritten_only_when_asked(cli, folder, tiny_run):
    command = commands(tiny_run, "scores.jsonl")["score"]
    assert cli(*command).code == 0
    Path("scores.jsonl").write_text('{"score": 1.5}\n')
    refused = cli(*command)
    assert (refused.code, Path("scores.jsonl").read_text()) == (2, '{"score": 1.5}\n')
    assert refused.stderr == (
        "error: scores.jsonl exists and is left alone\nhint: write another file, or --overwrite earlier scores\n"
    )
    assert cli(*command, "--overwrite").code == 0
    assert json.loads(Path("scores.jsonl").read_text()).keys() == {"chosen_score", "rejected_score", "margin"}


def test_pairs_that_carry_a_score_are_no_scores(cli, folder, tiny_run):
    Path("rated.jsonl").write_text(json.dumps({**PAIR, "score": 4.5}) + "\n")
    result = cli(*commands(tiny_run, "rated.jsonl")["score"], "--overwrite")
    assert (result.code, "holds no scores" in result.stderr) == (2, True)


def test_a_page_is_overwritten_only_when_asked(cli, folder, tiny_run):
    command = commands(tiny_run, "page.html")["audit"]
    assert cli(*command).code == 0
    text = Path("page.html").read_text()
    assert (cli(*command).code, cli(*command, "--overwrite").code) == (2, 0)
    assert Path("page.html").read_text() == text
    Path("own.html").write_text("<!doctype html>\n<title>My page</title>")
    assert cli(*commands(tiny_run, "own.html")["audit"], "--overwrite").code == 2


def test_a_preset_is_overwritten_only_when_asked(cli, folder, tiny_run):
    command = ["inspect-token", str(tiny_run.model), "--write-preset", "mine"]
    assert [cli(*command).code, cli(*command).code, cli(*command, "--overwrite").code] == [0, 2, 0]
    Path("other.toml").write_text("[train]\nlr = 1e-5\n")
    result = cli("inspect-token", tiny_run.model, "--write-preset", "other", "--overwrite")
    assert "other.toml holds no preset of inspect-token and is left alone" in result.stderr


def test_stdin_is_an_input_too(folder, tiny_run):
    command = [sys.executable, "-m", "rmcli", "score", str(tiny_run.model), "-o", "in.jsonl", "--overwrite"]
    with Path("in.jsonl").open("rb") as rows:
        result = subprocess.run(command, stdin=rows, capture_output=True, text=True)
    assert (result.returncode, Path("in.jsonl").read_text()) == (2, PAIRS)
    assert result.stderr.startswith("error: in.jsonl is stdin: it would be replaced\n")


@pytest.mark.slow
def test_stdout_appended_to_the_input_is_refused(folder, tiny_run):
    command = [sys.executable, "-m", "rmcli", "score", str(tiny_run.model), "in.jsonl"]
    with Path("in.jsonl").open("ab") as rows:
        result = subprocess.run(command, stdout=rows, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, Path("in.jsonl").read_text()) == (2, PAIRS)
    assert result.stderr.startswith("error: stdout is the input in.jsonl")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sub", "error: sub is a folder"),
        (".", "error: . is a folder"),
        ("loop", "error: cannot write loop: Too many levels of symbolic links"),
        ("loop/x", "error: cannot write loop/x: "),
        ("in.jsonl/x", "error: cannot write in.jsonl/x: Not a directory"),
        ("x" * 300, "error: cannot write xxx"),
        ("/proc/rmcli/x.jsonl", "error: cannot write /proc/rmcli/x.jsonl: "),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_before_any_work(cli, folder, tiny_run, name, said):
    for command in ("score", "audit"):
        result = cli(*commands(tiny_run, name)[command])
        assert result.code in (1, 2)
        assert result.stderr.startswith(said)
        assert len(result.stderr.splitlines()) == 2


def as_text(path: Path) -> OutputFile:
    return OutputFile(path, "text", lambda beginning: True)


def test_a_full_disk_leaves_nothing(tmp_path):
    target = tmp_path / "out.txt"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(RmcliError, match=r"cannot write .*out.txt: File too large"), as_text(target).open() as f:
            f.write("x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_an_error_meanwhile_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), as_text(tmp_path / "new" / "out.txt").open():
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "out.txt"
    with pytest.raises(ConfigError, match="exists and is left alone"), as_text(target).open():
        target.write_text("another's")
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    assert target.read_text() == "another's"


def test_what_a_killed_command_left_is_cleared(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".out.txt.tmp-{int(gone.stdout)}").write_text("half")
    (tmp_path / ".out.txt.tmp-1").write_text("another's, still running")
    with as_text(tmp_path / "out.txt").open() as file:
        file.write("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.txt.tmp-1", "out.txt"]


@pytest.mark.slow
def test_sigterm_leaves_no_temporary(folder, tiny_run):
    command = [sys.executable, "-m", "rmcli", "score", str(tiny_run.model), "-", "-o", "scores.jsonl"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(folder.glob("scores.jsonl.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (143, "error: terminated")
    assert list(folder.glob("*scores.jsonl*")) + list(folder.glob(".scores*")) == []
