"""Killed at any point, or with the disk full: the old set stays whole, nothing is left, a rerun is the same."""

import errno
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmcli.errors import RmcliError
from rmcli.packs import staging
from rmcli.packs.manifest import find_prepared, read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.packs.writer import PackWriter
from support.cli import run_cli
from support.crash_child import Interrupted, write_set
from support.places import REPOSITORY

ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
Run = Callable[..., dict]


@contextmanager
def child() -> Iterator[Run]:
    """`run(write=DIR, ..., kill_at=N)`: one job of crash_child.py."""
    command = [sys.executable, REPOSITORY / "tests" / "support" / "crash_child.py"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:

        def ask(**job: object) -> dict:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with child() as ask:
        yield ask


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opens(folder: Path) -> None:
    """The loader, which checks every sha256, accepts the set."""
    for split in SPLITS:
        PackedSplit(folder, split)


def expect_whole(folder: Path, *allowed: dict[str, bytes]) -> dict[str, bytes]:
    """The set at `folder` loads and is byte for byte one of those allowed. Returns it."""
    read_manifest(folder)  # puts an older set back where that needs doing
    opens(folder)
    assert content(folder) in allowed
    return content(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_before_any_change_of_the_disk_a_whole_set_is_there(run, tmp_path, exchange):
    write_set(tmp_path / "old", "old", overwrite=False)
    write_set(tmp_path / "new", "new", overwrite=False)
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    place = tmp_path / "place"
    target = place / "set"
    shutil.copytree(tmp_path / "old", target)
    job = {"write": str(target), "marker": "new", "overwrite": True, "exchange": exchange}
    total = run(**job)["calls"]
    assert total >= 30
    outcomes = []
    put_back = 0
    # the fallback differs only where the folder is put in place
    for call in range(0 if exchange else total // 2, total):
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "old", target)
        assert run(**job, kill_at=call)["status"] == -9
        put_back += not target.exists()
        outcomes.append(expect_whole(target, old, new) == new)
        assert run(**job)["status"] == 0
        expect_whole(target, new)
        assert names(place) == ["set"]
    # old until the one step in which they change places, new ever after; the fallback has a gap between the two
    assert outcomes == sorted(outcomes)
    assert 0 < sum(outcomes) < len(outcomes)
    assert put_back == 0 if exchange else put_back > 0


def test_killed_before_any_change_of_a_first_run_there_is_no_set_or_a_whole_one(run, tmp_path):
    write_set(tmp_path / "new", "new", overwrite=False)
    new = content(tmp_path / "new")
    place = tmp_path / "place"
    place.mkdir()
    job = {"write": str(place / "set"), "marker": "new", "overwrite": False}
    total = run(**job)["calls"]
    whole = 0
    for call in range(0, total):
        shutil.rmtree(place / "set", ignore_errors=True)
        run(**job, kill_at=call)
        if (place / "set").exists():
            expect_whole(place / "set", new)
            whole += 1
        else:
            assert run(**job)["status"] == 0
            expect_whole(place / "set", new)
        assert names(place) == ["set"]
    assert 0 < whole < total


def prepare_arguments(folder: Path, num_rows: int, overwrite: bool) -> list[str]:
    arguments = ["prepare", f"tasks:{num_rows}", "--preset", "tiny", "-o", str(folder)]
    return [*arguments, "--overwrite"] if overwrite else arguments


@pytest.mark.slow  # the default run kills before every change of the disk
@pytest.mark.parametrize("overwrite", [True, False])
def test_twenty_five_random_kills_of_prepare(run, tmp_path, overwrite):
    for name, num_rows in (("old", 40), ("new", 300)):
        assert run_cli(*prepare_arguments(tmp_path / name, num_rows, False)).code == 0
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    place = tmp_path / "place"
    place.mkdir()
    target = place / "set"
    command = prepare_arguments(target, 300, overwrite)
    seconds = run(command=command)["seconds"]  # others may slow this one down: some kills come too late
    expect_whole(target, new)
    draw = random.Random(0)
    killed = tried = 0
    while killed < 25:
        tried += 1
        assert tried <= 200, f"{killed} of {tried} kills came in time"
        shutil.rmtree(target)
        if overwrite:
            shutil.copytree(tmp_path / "old", target)
        killed += run(command=command, kill_after=draw.uniform(0, seconds))["status"] == -9
        if target.exists():
            expect_whole(target, old, new)
        else:
            assert not overwrite
        assert run(command=prepare_arguments(target, 300, True))["status"] == 0
        expect_whole(target, new)
        assert names(place) == ["set"]


@pytest.mark.slow
def test_fifty_random_kills_of_a_real_process(tmp_path):
    """The same with a fresh `python -m rmcli` each time, half of them over an older set; two side by side."""
    for name, num_rows in (("old", 40), ("new", 3000)):
        assert run_cli(*prepare_arguments(tmp_path / name, num_rows, False)).code == 0
    old, new = content(tmp_path / "old"), content(tmp_path / "new")

    def start(target: Path, overwrite: bool) -> subprocess.Popen:
        command = [sys.executable, "-m", "rmcli", *prepare_arguments(target, 3000, overwrite)]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_for_writing(process: subprocess.Popen, place: Path) -> None:
        """Imports are most of a short run; the temporary folder is there once rows are written."""
        while process.poll() is None and not any(".tmp-" in name for name in names(place)):
            time.sleep(0.005)

    def kill(run: Run, target: Path, draw: random.Random, seconds_writing: float, number: int) -> bool:
        place, overwrite = target.parent, number % 2 == 0
        shutil.rmtree(target)
        if overwrite:
            shutil.copytree(tmp_path / "old", target)
        with start(target, overwrite) as process:
            if number % 10 == 0:  # somewhere in the imports
                time.sleep(draw.uniform(0, 4))
            else:
                wait_for_writing(process, place)
                time.sleep(draw.uniform(0, seconds_writing))
            process.kill()
        if target.exists():
            expect_whole(target, old, new)
        else:
            assert not overwrite
        assert run(command=prepare_arguments(target, 3000, True))["status"] == 0
        expect_whole(target, new)
        assert names(place) == ["set"]
        return process.returncode == -9

    def kills(seed: int) -> int:
        target = tmp_path / f"place-{seed}" / "set"
        target.parent.mkdir()
        with start(target, overwrite=False) as process:
            wait_for_writing(process, target.parent)
            began = time.perf_counter()
        seconds_writing = time.perf_counter() - began
        expect_whole(target, new)
        draw = random.Random(seed)
        with child() as run:
            landed = (kill(run, target, draw, seconds_writing, number) for number in range(100))
            return len(list(itertools.islice(filter(None, landed), 25)))

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(kills, (1, 2))) == 50


def test_a_half_replaced_set_is_put_back_and_that_is_said(tmp_path, capsys):
    write_set(tmp_path / ".set.old-999999999", "old", overwrite=False)
    assert find_prepared(tmp_path) == [tmp_path / "set"]
    assert read_manifest(tmp_path / "set")["marker"] == "old"
    assert f"note: {tmp_path / 'set'} was being replaced" in capsys.readouterr().err


def test_a_set_that_a_running_process_is_replacing_is_left_to_it(tmp_path):
    write_set(tmp_path / f".set.old-{os.getppid()}", "old", overwrite=False)
    with pytest.raises(RmcliError, match="holds no prepared data"):
        read_manifest(tmp_path / "set")
    assert names(tmp_path) == [f".set.old-{os.getppid()}"]


def test_leftovers_of_our_own_number_are_swept_and_strange_names_are_not(tmp_path):
    """In a container every command may run as process 1."""
    for name in (
        f".set.tmp-{os.getpid()}",
        ".set.tmp-backup",
        ".set.tmp-",
        ".sets.tmp-999999999",
        ".set.tmp-9" + 30 * "9",
    ):
        (tmp_path / name).mkdir()
    write_set(tmp_path / "set", "new", overwrite=False)
    assert names(tmp_path) == [".set.tmp-", ".set.tmp-backup", ".sets.tmp-999999999", "set"]


def test_a_link_goes_on_pointing_to_the_set(tmp_path):
    write_set(tmp_path / "real", "old", overwrite=False)
    (tmp_path / "link").symlink_to("real")
    write_set(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert read_manifest(tmp_path / "real")["marker"] == "new"
    assert names(tmp_path) == ["link", "real"]


def test_a_folder_filled_meanwhile_is_not_replaced_without_overwrite(tmp_path):
    def write_while_another_does() -> None:
        with PackWriter(tmp_path / "set") as writer:
            (tmp_path / "set").mkdir()
            (tmp_path / "set" / "theirs").touch()
            writer.finish({})

    with pytest.raises(RmcliError, match="filled by another command meanwhile"):
        write_while_another_does()
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["theirs"]


# --- disk full ---


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_full_disk_at_any_call_is_one_line_and_leaves_the_old_set(tmp_path, monkeypatch, exchange):
    place = tmp_path / "place"
    target = place / "set"
    write_set(tmp_path / "old", "old", overwrite=False)
    write_set(tmp_path / "new", "new", overwrite=False)
    old, new = content(tmp_path / "old"), content(tmp_path / "new")
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)

    def write(failing: int | None) -> int:
        """Returns the number of calls that put something on the disk; what removes takes no space."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "old", target)
        with monkeypatch.context() as patched:
            calls = Interrupted(failing, disk_full, patched.setattr, removing=False)
            write_set(target, "new", overwrite=True)
        return calls.count

    total = write(None)
    assert total >= 30
    expect_whole(target, new)
    for failing in range(1, total):  # call 0 would make the parent folder, which is there
        with pytest.raises(RmcliError) as error:
            write(failing)
        assert error.value.message == f"cannot write {target}: No space left on device"
        assert error.value.hint == "free some space, or choose another folder with -o"
        assert names(place) == ["set"]
        assert content(target) in (old, new)


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.99])
def test_prepare_on_a_full_disk_ends_with_one_line_and_no_temporary_files(cli, tmp_path, share):
    """The system itself refuses to let a file grow past a limit; the failed write is real."""
    assert cli(*prepare_arguments(tmp_path / "whole", 300, False)).code == 0
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*"))
    place = tmp_path / "place"
    place.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest * share), hard))  # Python ignores SIGXFSZ: EFBIG comes
    try:
        result = cli(*prepare_arguments(place / "deeper" / "set", 300, False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.code == 1
    assert [line for line in result.stderr.splitlines() if line.startswith("error:")] == [
        f"error: cannot write {place / 'deeper' / 'set'}: File too large"
    ]
    assert "Traceback" not in result.stderr
    assert names(place) == []
