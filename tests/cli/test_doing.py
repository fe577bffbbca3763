"""On a terminal a command says within a second what it is busy with; off one nothing is drawn."""

import os
import pty
import subprocess
import sys
import time

import pytest

from rmcli import output

CODE = """
import sys, time
from rmcli import output
output.doing("loading the weights")
time.sleep(1.6)
output.say("loaded")
output.doing(None)
time.sleep(0.6)
output.say("done")
"""


def on_a_terminal(command: list[str]) -> list[tuple[float, str]]:
    """What came to a terminal's stderr, in pieces, each with its second."""
    ours, theirs = pty.openpty()
    start = time.monotonic()
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    pieces = []
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # all of it is read
            break
        if not data:
            break
        pieces.append((time.monotonic() - start, data.decode()))
    os.close(ours)
    assert process.wait() == 0
    return pieces


def test_what_goes_on_is_shown_and_gives_way_to_what_is_said():
    pieces = on_a_terminal([sys.executable, "-c", CODE])
    text = "".join(piece for _, piece in pieces)
    assert "loading the weights ... 1 s" in text
    assert "\r\x1b[2Kloaded\r\n" in text
    assert text.endswith("loaded\r\ndone\r\n")  # nothing is drawn once it is over


def test_off_a_terminal_nothing_is_drawn():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("", "loaded\ndone\n")


@pytest.mark.slow
def test_a_command_names_what_it_loads(tiny_run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "Sort: 2 1", "chosen": "1 2", "rejected": "2 1"}\n')
    command = [sys.executable, "-m", "rmcli", "score", str(tiny_run.model), str(tmp_path / "in.jsonl")]
    text = "".join(piece for _, piece in on_a_terminal(command))
    assert "starting ... " in text  # the import of torch takes over half a second
    assert text.rstrip().endswith("mean margin " + text.rstrip().split("mean margin ")[1])


FOREIGN = """
import sys
from rmcli.cli import app
def bars():
    from tqdm.auto import tqdm
    from transformers.utils import logging
    for _ in tqdm(range(3), desc="foreign"):
        pass
    for _ in logging.tqdm(range(3), desc="Writing model shards"):
        pass
    print("over", file=sys.stderr)
app.app = bars  # in place of a command
app.main()
"""


def test_the_bars_of_libraries_are_silent_on_a_terminal_too():
    text = "".join(piece for _, piece in on_a_terminal([sys.executable, "-c", FOREIGN]))
    assert text.split() == ["over"]


def test_a_bar_moves_within_a_unit_and_a_log_says_once_how_far_the_first_one_is(monkeypatch, capsys):
    class Bar:
        done = 0.0

        def advance(self, task: object, amount: float) -> None:
            self.done += amount

    bar = Bar()
    progress = output.Progress(bar, None)
    seen = []
    for _ in range(4):
        progress.advance_part(4)
        seen.append(bar.done)
    assert seen == [0.25, 0.5, 0.75, 1.0]

    now = [100.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    log = output.Progress(None, None)
    for _ in range(8):
        now[0] += 2.0
        log.advance_part(8)
    assert capsys.readouterr().err == "step 1: 3 of 8 forwards in 6 s\n"
    quick = output.Progress(None, None)
    for _ in range(8):
        now[0] += 0.5
        quick.advance_part(8)
    assert capsys.readouterr().err == ""
