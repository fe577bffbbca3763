"""Run folders: each run has its own, however many begin at once, and what a killed one left is named and cleared."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rmcli.errors import RmcliError
from rmcli.runs import folder as folders
from rmcli.runs import record

GONE = 2**22 + 1  # above any process number of Linux


def killed(folder: Path, host: str | None = None) -> None:
    """run.json as a run leaves it whose process is gone, or on another machine."""
    record.begin(folder, {"command": "rmcli train"})
    told = json.loads((folder / record.FILE).read_text())
    told["process"] = {"id": GONE, "host": host or told["process"]["host"]}
    (folder / record.FILE).write_text(json.dumps(told))


def test_runs_that_begin_at_once_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda _: folders.claim_next(tmp_path / "runs", "tiny"), range(48)))
    assert {path.name for path in claimed} == {f"tiny-{number}" for number in range(1, 49)}


def test_a_name_taken_between_looking_and_making_is_passed_over(tmp_path, monkeypatch):
    looked = iter([tmp_path / "tiny-1", tmp_path / "tiny-2"])
    monkeypatch.setattr(folders, "next_run_folder", lambda root, name: next(looked))
    (tmp_path / "tiny-1").mkdir()  # by another run, after this one looked
    assert folders.claim_next(tmp_path, "tiny") == tmp_path / "tiny-2"


def test_of_runs_that_name_one_folder_one_gets_it(tmp_path):
    def refusal(_) -> str | None:
        try:
            folders.claim(tmp_path / "run")
        except RmcliError as error:
            return error.message
        return None

    with ThreadPoolExecutor(16) as pool:
        refusals = list(pool.map(refusal, range(32)))
    assert refusals.count(None) == 1
    assert all("just begun in" in said or "is not empty" in said for said in refusals if said is not None)


def test_what_a_killed_run_left_half_written_is_named_and_removed(tmp_path, capsys):
    killed(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    half = tmp_path / "checkpoints" / f"step-20.tmp-{GONE}"
    for path in (half, tmp_path / f"model.tmp-{GONE}", tmp_path / "checkpoints" / "step-10"):
        path.mkdir(parents=True)
        (path / "part").touch()
    with pytest.raises(RmcliError) as refused:
        folders.claim(tmp_path)
    assert refused.value.message == (
        f"run folder {tmp_path} is not empty: a run that was killed; it has checkpoints/step-10"
    )
    said = capsys.readouterr().err
    assert f"half written: checkpoints/step-20.tmp-{GONE}, model.tmp-{GONE}" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl", "run.json"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]


@pytest.mark.parametrize("host", [None, "another-machine"])
def test_what_a_process_may_still_hold_stays(tmp_path, host):
    holder = GONE if host else os.getppid()
    killed(tmp_path, host)
    (tmp_path / f"model.tmp-{holder}").mkdir()
    with pytest.raises(RmcliError, match="is not empty"):
        folders.claim(tmp_path)
    assert (tmp_path / f"model.tmp-{holder}").is_dir()


def test_a_folder_whose_run_ended_before_its_first_step_is_used_again(tmp_path, capsys):
    killed(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "resolved.toml").write_text("name = 'tiny'\n")
    folders.claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert "ended before its first step: its folder is used again" in capsys.readouterr().err


def test_files_that_no_run_wrote_are_never_removed(tmp_path):
    for name in ("metrics.jsonl", "resolved.toml"):
        (tmp_path / name).touch()
    with pytest.raises(RmcliError, match=r"is not empty$"):
        folders.claim(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(RmcliError, match="cannot write"):
        folders.claim_next(tmp_path / "runs", "tiny")
    with pytest.raises(RmcliError, match="cannot write"):
        folders.claim(tmp_path / "runs")
