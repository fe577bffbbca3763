"""No stream, signal or unreadable place shows a traceback: each is one line and an exit code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rmcli.errors import RmcliError
from support.places import REPOSITORY

TEXT = "日本語 😀 é"


def came_of(commands: list[list[str]], folder: Path) -> dict[tuple[str, str], dict]:
    """What came of each command with each kind of stdout."""
    child = [sys.executable, REPOSITORY / "tests" / "support" / "stream_child.py"]
    # Python's own view of the environment: readline, which pytest loads, sets COLUMNS below it.
    run = {"cwd": folder, "check": True, "timeout": 300, "env": dict(os.environ)}
    subprocess.run([*child, "results.json", json.dumps(commands)], **run)
    found = json.loads((folder / "results.json").read_text())
    return {(" ".join(one["command"]), one["stdout"]): one for one in found}


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """The commands that load no torch."""
    commands = ["--help", "--version", "score --help", "presets", "presets --json", "presets show tiny", "map-fns"]
    return came_of([command.split() for command in commands], tmp_path_factory.mktemp("light"))


@pytest.fixture(scope="module")
def heavy(tiny_run, tmp_path_factory) -> dict[tuple[str, str], dict]:
    folder = tmp_path_factory.mktemp("streams")
    row = {"prompt": TEXT, "chosen": f"good {TEXT}", "rejected": f"bad {TEXT}"}
    (folder / "zh.jsonl").write_text("".join(json.dumps({**row, "prompt": f"{TEXT} {n}"}) + "\n" for n in range(40)))
    prepare = ["prepare", "zh.jsonl", "--map-fn", "canonical", "-p", "tiny", "--overwrite"]
    commands = [
        [*prepare, "-o", "out", "--show", "2"],
        [*prepare, "-o", "out", "-n"],
        ["audit", "out"],
        ["audit", "out", "--json"],
        ["train", "-p", "tiny", "--data", str(tiny_run.data), "-n"],
        ["score", str(tiny_run.model), "zh.jsonl"],
        ["inspect-token", str(tiny_run.model)],
        ["inspect-token", str(tiny_run.model), "--json"],
    ]
    return came_of(commands, folder)


def check(results: dict[tuple[str, str], dict]) -> None:
    """No traceback; what takes nothing is one line and exit code 1; what cannot be encoded is there, escaped."""
    reasons = {"full": "No space left on device", "closed": "Bad file descriptor"}
    for (command, kind), one in results.items():
        assert "Traceback" not in one["said"], (command, kind, one["said"])
        if kind in reasons:
            assert one["code"] == 1, (command, kind)
            assert one["said"].splitlines()[-1] == f"error: cannot write to stdout: {reasons[kind]}", (command, kind)
            assert one["said"].count("error:") == 1
        else:
            assert one["code"] == 0, (command, kind, one["said"])
            assert one["answer"], (command, kind)


def test_light_commands_bear_any_stdout(light):
    assert len(light) == 4 * 7
    check(light)


@pytest.mark.slow
def test_every_command_bears_any_stdout(heavy):
    assert len(heavy) == 4 * 8
    check(heavy)
    for kind, accent in (("latin-1", "é"), ("ascii", r"\u00e9")):
        assert rf"\u65e5\u672c\u8a9e \ud83d\ude00 {accent}" in heavy["audit out", kind]["answer"]
        figures = json.loads(heavy["audit out --json", kind]["answer"])
        assert figures["extremes"]["longest"][0]["reply"].endswith(TEXT)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["presets"]])
def test_a_full_or_closed_stdout_is_exit_code_1_to_the_very_end(arguments, tmp_path):
    command = f"{sys.executable} -m rmcli {' '.join(arguments)}"
    for end in (">/dev/full", ">&-"):
        result = subprocess.run(f"{command} {end}", shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
        assert result.stderr.startswith("error: cannot write to stdout: ")


def test_closed_streams_take_the_number_of_no_file(tmp_path):
    """What is printed would go into the first file that is opened."""
    code = "import os, rmcli.output as o; o.open_streams(); os._exit(os.open('x', os.O_CREAT | os.O_WRONLY))"
    for end in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        number = subprocess.run(f'{sys.executable} -c "{code}" {end}', shell=True, cwd=tmp_path).returncode
        assert number > 2, end


def test_talk_that_cannot_be_written_costs_nothing(tmp_path):
    for end in ("2>/dev/full", "2>&-"):
        command = f"{sys.executable} -m rmcli presets show tiny {end}"
        result = subprocess.run(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        assert result.returncode == 0
        assert "[model]" in result.stdout


def test_a_reader_that_has_had_enough_hears_nothing(tmp_path):
    command = f"{sys.executable} -m rmcli presets show tiny | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert [line for line in result.stderr.splitlines() if not line.startswith("next:")] == []
    assert result.stdout.strip() in ("0", "1")  # 0 where it was quicker


# `rmcli ARGUMENTS`, with a signal as soon as the module NAME is looked for: argv is NAME, SIGNAL, ARGUMENTS.
SIGNAL_AT = """
import os, signal, sys, time
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
class Look:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
wanted, number = sys.argv[1], int(sys.argv[2])
sys.argv = ["rmcli", *sys.argv[3:]]
sys.meta_path.insert(0, Look())
from rmcli.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module", ["rmcli.cli.app", "typer", "rmcli.cli.train", "rmcli.config.presets", "pydantic", "tomlkit"]
)
def test_ctrl_c_is_exit_code_130_from_the_first_import_on(module, tmp_path):
    command = [sys.executable, "-c", SIGNAL_AT, module, str(int(signal.SIGINT)), "presets"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_are_exit_code_143_while_commands_are_imported(number, tmp_path):
    command = [sys.executable, "-c", SIGNAL_AT, "typer", str(int(number)), "presets"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (143, "error: terminated\n")


def test_sigterm_during_a_command_is_exit_code_143(tmp_path):
    command = [sys.executable, "-c", SIGNAL_AT, "rmcli.config.presets", str(int(signal.SIGTERM)), "presets"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (143, "error: terminated\n")


def test_an_ignored_signal_stays_ignored(tmp_path):
    command = [
        sys.executable,
        "-c",
        SIGNAL_AT,
        "rmcli.config.presets",
        str(int(signal.SIGHUP)),
        "presets",
        "show",
        "tiny",
    ]
    ignoring = ["bash", "-c", 'trap "" HUP; exec "$@"', "-", *command]
    result = subprocess.run(ignoring, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, "[model]" in result.stdout) == (0, True)


def test_what_the_system_refuses_is_one_line(cli, tiny_run, monkeypatch, tmp_path):
    """Unreadable files: as root nothing is, so the refusal is made here."""
    (tmp_path / "own.toml").write_text("[train]\n")
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    read = Path.read_text

    def refuse(path, *arguments, **options):
        if path.name in ("own.toml", "rmcli.toml", "template.jinja"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    for command in (
        ["train", "-c", "own.toml"],
        ["score", tiny_run.model, "-"],
        ["inspect-token", tiny_run.model],
        ["prepare", "tasks:9", "-p", "tiny", "-o", "out", "--chat-template", "template.jinja"],
    ):
        result = cli(*command, stdin="")
        assert result.code in (1, 2), command
        assert len(result.stderr.splitlines()) <= 2, result.stderr
        assert "Permission denied" in result.stderr, result.stderr


def test_nothing_replaces_the_folder_one_is_in(cli, tmp_path):
    result = cli("prepare", "tasks:50", "-p", "tiny", "-o", ".")
    assert (result.code, result.stderr.splitlines()[-2:]) == (
        2,
        [
            "error: . is the folder you are in, or above it: it cannot be replaced",
            "hint: name a new one with -o",
        ],
    )


def test_a_name_leads_nowhere_else(cli, tmp_path):
    for name in ("../../etc", "/tmp/x", "a/b", "..", "", " ", "a\\b", "a\0b", "x" * 101):
        (tmp_path / "own.toml").write_text(f"name = {json.dumps(name)}\n[train]\n")
        result = cli("prepare", "tasks:50", "-c", "own.toml")
        assert (result.code, "own.toml: name = " in result.stderr) == (2, True), name
    (tmp_path / "own.toml").write_text("[name]\nx = 1\n")
    assert "is no name" in cli("presets", "-c", "own.toml").stderr
    (tmp_path / "own.toml").write_text('name = "日本 v1.2+a"\n')
    assert 'name = "日本 v1.2+a"' in cli("presets", "-c", "own.toml").stdout


def test_an_answer_nobody_takes_is_an_error_of_its_own(monkeypatch):
    from rmcli import output

    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def fileno(self) -> int:
            raise OSError("no file")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(RmcliError, match="cannot write to stdout: No space left on device"):
        output.answer_stream().write("x")
