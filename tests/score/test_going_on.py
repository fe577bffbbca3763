"""Scoring that was killed goes on: no line twice, none missing, every byte as without the kill."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rmcli.model import hashes
from rmcli.score import run as score
from rmcli.score import unfinished
from support.places import REPOSITORY, write_lines

MODEL = REPOSITORY / "tests" / "written_before" / "model"
PART, TOLD = Path("out.jsonl.part"), Path("out.jsonl.part.settings")
PAIRS = ("--mine-pairs", "all")


def rows(count: int = 20) -> list[dict]:
    """Prompts of one to four answers, in one row and in several, some of them bad."""
    made: list[dict] = []
    for n in range(count):
        answers = [f"{n} {k}" for k in range(1 + n % 4)]
        if n % 3:
            made.append({"id": n, "prompt": f"Sort: {n} 1", "responses": answers})
        else:
            made += [{"id": n, "prompt": f"Sort: {n} 1", "response": answer} for answer in answers]
        if n % 7 == 0:
            made.append({"id": n, "prompt": "no answer"})
    return made


@pytest.fixture
def folder(cli, tmp_path, monkeypatch) -> Path:
    write_lines(tmp_path / "in.jsonl", rows())
    monkeypatch.setattr(score, "WINDOW", 5)
    return tmp_path


def run(cli, *arguments: object, code: int = 1):
    """Exit code 1: there are bad rows."""
    result = cli("score", MODEL, "in.jsonl", "-o", "out.jsonl", *arguments)
    assert result.code == code, result.stderr
    return result


def stopped(cli, monkeypatch, *arguments: object, after: int = 3) -> None:
    """A command that ends without a word at its window number `after`."""
    real, seen = unfinished.Unfinished.commit, []

    def commit(self, summary):
        real(self, summary)
        seen.append(self.done.rows)
        if len(seen) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Unfinished, "commit", commit)
        run(cli, *arguments, code=130)
    assert PART.is_file()


@pytest.mark.parametrize(
    "choice", [(), ("--by-prompt",), pytest.param(PAIRS, marks=pytest.mark.slow)], ids=["rows", "prompts", "pairs"]
)
def test_killed_at_any_point_the_same_command_gives_the_same_bytes(cli, folder, monkeypatch, choice):
    """What lies on the disk at each point where a kill may come is kept aside, and gone on from."""
    moments: list[Path] = []

    def keep(*_: object) -> None:
        aside = folder / "aside" / str(len(moments))
        aside.mkdir(parents=True)
        for path in folder.glob("out.jsonl*"):
            shutil.copy(path, aside / path.name)
        moments.append(aside)

    def kept_around(function):
        def call(*arguments):
            keep()
            result = function(*arguments)
            keep()
            return result

        return call

    written: list[str] = []

    def write(self, text):
        real_write(self, text)
        written.append(text)
        if len(written) in (1, 12):  # in the middle of a window, its half on the disk
            self._file.flush()
            keep()

    real_write = unfinished.Unfinished.write
    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Unfinished, "write", write)
        patch.setattr(unfinished.Unfinished, "_tell", kept_around(unfinished.Unfinished._tell))
        patch.setattr(
            Path, "unlink", lambda path, missing_ok=False, real=Path.unlink: (keep(), real(path, missing_ok))
        )
        whole = run(cli, *choice, "--json")
    expected, summary = Path("out.jsonl").read_bytes(), json.loads(whole.stdout)
    assert len(expected.splitlines()) > 15
    assert not PART.exists()
    assert not TOLD.exists()
    went_on = 0
    for aside in moments[:3] + moments[3:-2:12] + moments[-2:]:
        for path in folder.glob("out.jsonl*"):
            path.unlink()
        for path in aside.iterdir():
            shutil.copy(path, folder / path.name)
        if Path("out.jsonl").exists():  # in its place already
            assert Path("out.jsonl").read_bytes() == expected
            continue
        again = run(cli, *choice, "--json")
        assert Path("out.jsonl").read_bytes() == expected
        assert json.loads(again.stdout) == summary
        went_on += "going on with" in again.stderr
        assert not [path for path in folder.glob("out.jsonl*") if path.name != "out.jsonl"]
    assert went_on >= 2


def test_another_command_is_refused_in_one_line_and_nothing_is_lost(cli, folder, monkeypatch):
    stopped(cli, monkeypatch)
    before = PART.read_bytes(), TOLD.read_bytes()
    other = folder / "other"
    shutil.copytree(MODEL, other)
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    shutil.copy("in.jsonl", "same.jsonl")
    lines = Path("in.jsonl").read_text().splitlines(keepends=True)
    cases = {
        "data.max_length = 256, not 64": ("-s", "data.max_length=64"),
        "--by-prompt = False, not True": ("--by-prompt",),
        "--min-score = None, not 0.5": ("--min-score", "0.5"),
        "map_fn = None, not 'canonical'": ("--map-fn", "canonical"),
    }
    for what, arguments in cases.items():
        error, hint = run(cli, *arguments, code=2).stderr.splitlines()[-2:]
        assert error == f"error: {folder}/out.jsonl.part was begun with {what}"
        assert hint.startswith("hint: give the same command to go on, or remove ")
    for model, source, key in ((other, "in.jsonl", "model_sha256"), (MODEL, "same.jsonl", "input")):
        result = cli("score", model, source, "-o", "out.jsonl")
        assert (result.code, f"was begun with {key} = " in result.stderr) == (2, True), result.stderr
    for changed in (["{}\n", *lines[1:]], lines[:7]):
        Path("in.jsonl").write_text("".join(changed))
        error, _ = run(cli, code=2).stderr.splitlines()[-2:]
        assert error.endswith("holds the scores of 15 rows, and the input does not begin with them")
    assert (PART.read_bytes(), TOLD.read_bytes()) == before
    TOLD.unlink()
    assert "out.jsonl.part is there without" in run(cli, code=2).stderr


def test_an_input_that_has_grown_goes_on_and_counts_all(cli, folder, monkeypatch):
    lines = Path("in.jsonl").read_text()
    Path("in.jsonl").write_text("".join(lines.splitlines(keepends=True)[:20]))
    stopped(cli, monkeypatch)
    Path("in.jsonl").write_text(lines)
    said = run(cli, "--json")
    grown = Path("out.jsonl").read_bytes()
    Path("out.jsonl").unlink()
    assert json.loads(said.stdout) == json.loads(run(cli, "--json").stdout)
    assert Path("out.jsonl").read_bytes() == grown


def test_stdin_goes_on_where_it_is_given_again(cli, folder, monkeypatch):
    text = Path("in.jsonl").read_text()
    assert cli("score", MODEL, "-", "-o", "whole.jsonl", stdin=text).code == 1
    real = unfinished.Unfinished.commit

    def commit(self, summary):
        real(self, summary)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unfinished.Unfinished, "commit", commit)
        assert cli("score", MODEL, "-", "-o", "out.jsonl", stdin=text).code == 130
    assert "5 rows are done" in cli("score", MODEL, "-", "-o", "out.jsonl", stdin=text).stderr
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_finished_file_needs_overwrite_and_an_overwriting_command_goes_on_too(cli, folder, monkeypatch):
    run(cli)
    expected = Path("out.jsonl").read_bytes()
    assert "exists and is left alone" in run(cli, code=2).stderr
    stopped(cli, monkeypatch, "--overwrite")
    assert Path("out.jsonl").read_bytes() == expected  # until the new ones are whole
    assert "exists and is left alone" in run(cli, code=2).stderr
    assert "going on with" in run(cli, "--overwrite").stderr
    assert Path("out.jsonl").read_bytes() == expected


def test_what_is_damaged_or_held_or_read_is_refused(cli, folder, monkeypatch):
    stopped(cli, monkeypatch)
    part, told = PART.read_bytes(), TOLD.read_bytes()
    PART.write_bytes(part[:50])
    assert "is shorter than" in run(cli).stderr
    PART.write_bytes(part)
    TOLD.write_text("{")
    assert "part.settings cannot be read" in run(cli).stderr
    TOLD.write_bytes(told)
    with PART.open("ab") as held:
        unfinished.fcntl.flock(held, unfinished.fcntl.LOCK_EX)
        assert "is being written by another command" in run(cli).stderr
    assert PART.read_bytes() == part
    result = cli("score", MODEL, PART, "-o", "out.jsonl")
    assert (result.code, "is the input" in result.stderr) == (2, True)


def test_other_threads_or_versions_are_said(cli, folder, monkeypatch):
    stopped(cli, monkeypatch)
    monkeypatch.setattr(score.torch, "get_num_threads", lambda: 77)
    assert "threads 77 (was " in run(cli).stderr


def test_a_verified_folder_is_known_by_its_list_of_hashes_another_by_its_files(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    first = hashes.of_folder(tmp_path / "model", False)
    (tmp_path / "model" / "config.json").write_text("{}")
    assert hashes.of_folder(tmp_path / "model", True) != first  # nothing to verify it by
    hashes.write_hashes(tmp_path / "model")
    listed = hashes.of_folder(tmp_path / "model", True)
    (tmp_path / "model" / "config.json").write_text("[]")
    assert hashes.of_folder(tmp_path / "model", True) == listed
    assert hashes.of_folder(tmp_path / "model", False) != listed


@pytest.mark.slow
def test_a_real_process_killed_again_and_again_ends_as_one_that_never_was(cli, folder):
    write_lines(folder / "in.jsonl", rows(2600))
    line = [sys.executable, "-m", "rmcli", "score", str(MODEL), "in.jsonl", "--by-prompt", "-q"]
    subprocess.run([*line, "-o", "whole.jsonl"], check=False, cwd=folder)
    kills = 0
    while not Path("out.jsonl").exists():
        process = subprocess.Popen([*line, "-o", "out.jsonl"], cwd=folder)
        before = TOLD.read_bytes() if TOLD.exists() else b""
        while process.poll() is None and (not TOLD.exists() or TOLD.read_bytes() in (b"", before)):
            time.sleep(0.02)
        if process.poll() is None and kills < 2:
            process.kill()
            kills += 1
        process.wait()
    assert kills == 2
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
