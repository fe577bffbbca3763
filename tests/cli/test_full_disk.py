"""A disk that gets full under each command: one line with the path, no temporary, what was there intact."""

import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.runs.metrics_file import add_metrics
from rmcli.train.disk import need_of
from rmcli.train.job import build_job
from rmcli.train.loop import Trainer
from support.cli import as_options

Small = Callable[[int], Path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Small]:
    """`small_disk(bytes)`: a folder on a file system of that size; where none may be mounted, files of that size."""
    place = tmp_path / "small"
    place.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    mounted: list[Path] = []

    def make(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.name == "posix" and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            mounted.append(place)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        return place

    try:
        yield make
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        for folder in mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


FULL = ("No space left on device", "File too large")


def refused(result, path: Path) -> str:
    """One error line that names the path and the reason, exit code 1. Returns it."""
    assert result.code == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: cannot write {path}: ")
    assert any(reason in line for reason in FULL), line
    assert "Traceback" not in result.stderr
    return line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@contextmanager
def filled(folder: Path, left: int) -> Iterator[None]:
    """The small disk with so many bytes free, in pages of 4096; does nothing where files are limited instead."""
    ballast = folder / "ballast"
    if os.path.ismount(folder):
        ballast.write_bytes(b"x" * (os.statvfs(folder).f_bavail * 4096 - left))
    yield
    ballast.unlink(missing_ok=True)


@pytest.mark.parametrize("left", [0, 4096, 8192])
def test_score_on_a_full_disk_leaves_earlier_scores(cli, tiny_run, small_disk, left):
    folder = small_disk(16384)
    earlier = '{"score": 1.0}\n'
    (folder / "scores.jsonl").write_text(earlier)
    with filled(folder, left):
        result = cli(
            "score", tiny_run.model, tiny_run.data / "eval.jsonl", "-o", folder / "scores.jsonl", "--overwrite"
        )
        refused(result, folder / "scores.jsonl")
        assert set(names(folder)) <= {"ballast", "scores.jsonl"}
    assert (folder / "scores.jsonl").read_text() == earlier


def test_a_report_on_a_full_disk_leaves_the_earlier_one(cli, tiny_run, small_disk):
    folder = small_disk(16384)
    earlier = "<!doctype html>\n<title>Audit of something</title>\n"
    (folder / "report.html").write_text(earlier)
    result = cli("audit", tiny_run.data, "--report", folder / "report.html", "--overwrite")
    refused(result, folder / "report.html")
    assert names(folder) == ["report.html"]
    assert (folder / "report.html").read_text() == earlier


def test_a_preset_on_a_full_disk_is_not_written(cli, tmp_path, small_disk, monkeypatch):
    folder = small_disk(4096)
    monkeypatch.chdir(folder)
    if not os.path.ismount(folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with filled(folder, 0):
        result = cli("inspect-token", "-p", "tiny", "--write-preset", "mine")
        refused(result, Path("mine.toml"))
        assert set(names(folder)) <= {"ballast"}
    monkeypatch.chdir(tmp_path)


def test_prepare_on_a_full_disk_leaves_the_earlier_set(cli, small_disk):
    folder = small_disk(2**18)
    assert cli("prepare", "tasks:20", "-p", "tiny", "-o", folder / "set").code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = cli("prepare", "tasks:2000", "-p", "tiny", "-o", folder / "set", "--overwrite")
    refused(result, folder / "set")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# --- train ---


def train(cli, data: Path, out: Path, *settings: str):
    options = as_options("train.pairs_per_step=8", *settings)
    return cli("train", "-p", "tiny", "--data", data, "-o", out, *options)


@pytest.fixture(scope="module")
def need():
    """Bytes of one checkpoint and of the model of the tiny preset."""
    parameters = 384 * 64 + 3 * (4 * 64**2 + 3 * 64 * 192 + 2 * 64) + 64 + 64
    return 12 * parameters, 4 * parameters


def test_dry_run_shows_what_will_be_written(cli, nano_data, need):
    settings = ("train.save_steps=1", "train.max_steps=9", "train.pairs_per_step=8", "train.save_total_limit=400")
    options = as_options(*settings)
    plan = json.loads(cli("train", "-p", "tiny", "--data", nano_data, "-n", "--json", *options).stdout)["plan"]
    assert plan["checkpoints_at_once"] == 9
    assert plan["disk_checkpoint_gib"] == round(need[0] / 2**30, 3)
    assert plan["disk_need_gib"] == round((9 * need[0] + need[1]) / 2**30, 2)
    assert plan["disk_have_gib"] > 0


def test_without_room_for_one_checkpoint_and_the_model_nothing_begins(cli, nano_data, monkeypatch, need):
    monkeypatch.setattr("rmcli.train.disk.free_disk", lambda folder: sum(need) - 1)
    result = train(cli, nano_data, Path("run"))
    assert result.code == 1
    assert (
        f"error: not enough room for run: one checkpoint and the model need {sum(need):,} bytes, and "
        f"{sum(need) - 1:,} are free there\n"
    ) in result.stderr
    assert (
        "hint: free some space, or choose another disk with -o; train.optimizer=adamw_8bit needs 1," in result.stderr
    )
    assert not Path("run").exists()


def test_a_file_system_that_counts_no_bytes_is_not_full(cli, nano_data, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0, "total": 0}))
    assert train(cli, nano_data, Path("run"), "train.max_steps=1").code == 0
    dry = cli("train", "-p", "tiny", "--data", nano_data, "-n", "--json")
    assert json.loads(dry.stdout)["plan"]["disk_have_gib"] is None


def test_without_room_for_all_checkpoints_the_run_warns(cli, nano_data, monkeypatch, need):
    monkeypatch.setattr("rmcli.train.disk.free_disk", lambda folder: 2 * need[0] + need[1])
    result = train(cli, nano_data, Path("run"), "train.max_steps=3", "train.save_steps=1")
    assert result.code == 0, result.stderr
    assert f"note: 3 checkpoints at a time and the model need {3 * need[0]:,} bytes, and " in result.stderr
    assert "it will be full; train.save_total_limit=1 fits" in result.stderr
    few = train(cli, nano_data, Path("few"), "train.max_steps=1")
    assert "it will be full" not in few.stderr


@pytest.mark.parametrize(
    "settings", [(), ("train.optimizer=adamw_8bit",), ("model.dtype=bfloat16", "train.master_weights=split")]
)
def test_what_is_written_is_as_large_as_was_said(cli, nano_data, settings):
    told = need_of(build_job(resolve("tiny", settings=settings), nano_data, Path("other")))
    assert train(cli, nano_data, Path("run"), "train.max_steps=1", *settings).code == 0
    for folder, said in (("checkpoints/step-1", told.one), ("model", told.model)):
        written = sum(path.stat().st_size for path in Path("run", folder).rglob("*") if path.is_file())
        assert 0 <= written - said < 400_000  # the tokenizer; some kilobytes for each tensor


def test_checkpoints_that_fill_the_disk_leave_the_last_good_one(cli, nano_data, small_disk, monkeypatch, need):
    folder = small_disk(int(2.5 * need[0]))
    monkeypatch.setattr("rmcli.train.run.check_disk", lambda job: None)
    if not os.path.ismount(folder):
        monkeypatch.setattr("rmcli.runs.tensors.write", _full_after(2, "rmcli.runs.tensors", "write"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    run = folder / "run"
    settings = ("train.max_steps=4", "train.save_steps=1", "train.save_total_limit=3")
    result = train(cli, nano_data, run, *settings)
    line = _error(result)
    assert line.startswith(f"error: cannot write checkpoint {run}/checkpoints/step-3 of ")
    assert " bytes: No space left on device; " in line
    assert line.endswith(f"; the last checkpoint is {run}/checkpoints/step-2")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step-1", "step-2"]
    assert json.loads((run / "run.json").read_text())["result"]["status"] == "failed"


def test_a_model_that_has_no_room_leaves_the_last_checkpoint(cli, nano_data, small_disk, monkeypatch, need):
    folder = small_disk(need[0] + need[1] // 2 + 300_000)
    monkeypatch.setattr("rmcli.train.run.check_disk", lambda job: None)
    run = folder / "run"
    if not os.path.ismount(folder):
        whole = Trainer.save

        def save(self, step, last):
            whole(self, step, last)
            resource.setrlimit(resource.RLIMIT_FSIZE, (need[1] // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        monkeypatch.setattr(Trainer, "save", save)
    line = _error(train(cli, nano_data, run, "train.max_steps=2"))
    assert line.startswith(f"error: cannot write {run}/model: ")
    assert any(reason in line for reason in FULL)
    assert f"(its weights have {need[1]:,} bytes)" in line
    assert line.endswith(f"; the last checkpoint is {run}/checkpoints/step-2")
    assert [path.name for path in run.iterdir() if ".tmp-" in path.name or path.name == "model"] == []


def test_metrics_that_have_no_room_are_one_line_and_no_half_line(cli, nano_data, monkeypatch):
    whole, calls = os.write, []

    def half(descriptor, content):
        if b'"loss"' in bytes(content) or calls:
            calls.append(1)
            if len(calls) > 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(descriptor, content[: len(content) // 2] if len(calls) == 3 else content)
        return whole(descriptor, content)

    monkeypatch.setattr("os.write", half)
    line = _error(train(cli, nano_data, Path("run"), "train.max_steps=6", "train.log_every=1", "train.save_steps=1"))
    assert line.startswith("error: cannot write run/metrics.jsonl: No space left on device (")
    assert line.endswith("; the last checkpoint is run/checkpoints/step-2")
    assert [json.loads(one)["step"] for one in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2]


def add_many(file) -> None:
    for step in range(1, 1000):
        add_metrics(file, {"step": step, "text": "x" * 300})


def test_metrics_on_a_disk_that_is_full(small_disk):
    folder = small_disk(8192)
    reason = r"cannot write .*metrics.jsonl: (No space left|File too large)"
    with (folder / "metrics.jsonl").open("w") as file, pytest.raises(RmcliError, match=reason):
        add_many(file)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) > 5


def _error(result) -> str:
    assert result.code == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.stderr
    return line


def _full_after(number: int, module: str, name: str):
    import importlib

    whole, calls = getattr(importlib.import_module(module), name), []

    def write(*arguments, **options):
        calls.append(1)
        if len(calls) > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(*arguments, **options)

    return write
