"""Prepared data at a URL: whole or not there, and trained from."""

import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rmcli.errors import RmcliError
from rmcli.packs import remote
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.prepare.run import _manifest
from support.places import write_lines

ROWS = [{"prompt": f"question {n}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(40)]


@pytest.fixture(params=["memory://", "file://"])
def url(request, tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(remote, "CACHE", tmp_path / "cache")
    return f"{request.param}{tmp_path}/there/out"


def prepare_command(rows: str, url: str) -> tuple[str, ...]:
    return ("prepare", rows, "--map-fn", "canonical", "--preset", "tiny", "-o", url)


def test_prepare_writes_to_a_url_what_it_writes_to_a_folder_and_train_reads_it(cli, tmp_path, url):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    here = cli(*prepare_command("rows.jsonl", "out"))
    there = cli(*prepare_command("rows.jsonl", url))
    assert (here.code, there.code) == (0, 0), there.stderr
    assert there.stdout == f"{url}\n"
    assert f"next: rmcli train --preset tiny --data {url}" in there.stderr
    copy = remote.fetch(url)
    files = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert all((copy / file).read_bytes() == (tmp_path / "out" / file).read_bytes() for file in files)
    trained = cli("train", "--preset", "tiny", "--data", url, "-o", "run", "-s", "train.max_steps=1")
    assert trained.code == 0, trained.stderr


def test_what_is_prepared_at_a_url_is_audited_there(cli, tmp_path, url):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    there = cli(*prepare_command("rows.jsonl", url), "--json", "--report", tmp_path / "there.html")
    assert there.code == 0, there.stderr
    assert f"their texts, and how conversations end: rmcli audit {url}" in there.stderr
    assert "prompt share" in there.stderr
    figures = json.loads(there.stdout)["audit"]
    assert figures["folder"] == url
    assert url in (tmp_path / "there.html").read_text(encoding="utf-8")
    assert cli(*prepare_command("rows.jsonl", "out")).code == 0
    audits = [json.loads(cli("audit", place, "--json").stdout) for place in ("out", url)]
    assert [one.pop("folder") for one in audits] == ["out", url]
    assert audits[0] == audits[1] == {key: value for key, value in figures.items() if key != "folder"}


def test_parts_at_urls_are_merged_into_a_url(cli, tmp_path, url, monkeypatch):
    """One of them by another engine, as on a machine without gigatoken: both have proven their ids."""
    write_lines(tmp_path / "rows.jsonl", ROWS)
    versions = iter(["gigatoken 0.10.0", "transformers 5.23.0"])
    real = _manifest
    named = lambda *arguments: {**real(*arguments), "tokenizer_engine": next(versions)}  # noqa: E731
    monkeypatch.setattr("rmcli.prepare.run._manifest", named)
    parts = [f"{url}-{number}" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        assert cli(*prepare_command("rows.jsonl", part), "--shard", f"{number}/2").code == 0
    merged = cli("prepare", "--merge", *parts, "-o", url)
    assert merged.code == 0, merged.stderr
    assert "40 in = 40 kept" in merged.stderr
    assert f"their texts, and how conversations end: rmcli audit {url}" in merged.stderr
    manifest = read_manifest(remote.fetch(url))
    assert manifest["tokenizer_engine"] == "gigatoken 0.10.0, transformers 5.23.0"
    assert manifest["rows"]["kept"] == 40
    assert cli("prepare", "--merge", *parts, "-o", url).code == 1
    assert cli("prepare", "--merge", *parts, "-o", url, "--overwrite").code == 0


def test_a_url_that_is_taken_is_left_alone_or_replaced_whole(cli, tmp_path, url):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "fewer.jsonl", ROWS[:30])
    assert cli(*prepare_command("rows.jsonl", url)).code == 0
    refused = cli(*prepare_command("fewer.jsonl", url))
    assert refused.code == 1
    assert f"output folder {url} is not empty" in refused.stderr
    with fsspec.open(f"{url}/stale.txt", "w") as file:
        file.write("of the old set")
    assert cli(*prepare_command("fewer.jsonl", url), "--overwrite").code == 0
    copy = remote.fetch(url)
    assert read_manifest(copy)["rows"]["kept"] == 30
    assert not (copy / "stale.txt").exists()
    with fsspec.open(f"{url}/manifest.json", "w") as file:  # as a foreign folder would be
        file.write("{}")
    fsspec.core.url_to_fs(url)[0].rm_file(fsspec.core.url_to_fs(f"{url}/manifest.json")[1])
    foreign = cli(*prepare_command("rows.jsonl", url), "--overwrite")
    assert "holds no prepared data, so --overwrite leaves it alone" in foreign.stderr


class Killed(BaseException):
    """Nothing catches it: what comes after it is not done."""


CHANGES = ("put_file", "cp_file", "rm_file", "pipe_file", "makedirs", "rm")


@pytest.mark.parametrize("over_an_old_set", [True, False])
def test_an_upload_killed_at_any_point_leaves_the_old_set_or_the_new_one(
    cli, tmp_path, url, monkeypatch, over_an_old_set
):
    """Before each call that changes something: what is fetched is whole, and the next upload leaves nothing over."""
    for name, rows in (("old", ROWS), ("new", ROWS[:30])):
        write_lines(tmp_path / f"{name}.jsonl", rows)
        assert cli(*prepare_command(f"{name}.jsonl", name), "--no-audit").code == 0
    file_system, root = fsspec.core.url_to_fs(url)
    seen, calls, last = set(), 0, None

    def at_most(number: int | None) -> None:
        for name in CHANGES:
            real = getattr(type(file_system), name)
            real = getattr(real, "real", real)

            def limited(self, *arguments, real=real, **options):
                nonlocal calls
                calls += 1
                if number is not None and calls > number:
                    raise Killed
                return real(self, *arguments, **options)

            limited.real = real
            monkeypatch.setattr(type(file_system), name, limited)

    def whole() -> int | None:
        try:
            copy = remote.fetch(url)
        except RmcliError:
            return None
        for split in SPLITS:
            PackedSplit(copy, split)  # compares each file with its hash
        return read_manifest(copy)["rows"]["kept"]

    while last is None or calls > last:
        at_most(None)
        if file_system.exists(root):
            file_system.rm(root, recursive=True)
        if over_an_old_set:
            remote.upload(tmp_path / "old", url)
        last = 0 if last is None else last + 1
        calls = 0
        at_most(last)
        try:
            remote.upload(tmp_path / "new", url)
        except Killed:
            pass
        else:
            break
        at_most(None)
        seen.add(found := whole())
        assert found in (40, 30) if over_an_old_set else found in (None, 30)
        remote.check_target(url, overwrite=True)
        remote.upload(tmp_path / "new", url)
        assert whole() == 30
        assert not file_system.exists(root + remote.BESIDE)
        assert not file_system.exists(f"{root}/{remote.UPLOADING}")
    assert last > 20
    assert seen == ({40, 30} if over_an_old_set else {None, 30})


@pytest.mark.parametrize("files_before_the_cut", [0, 1, 3])
def test_an_upload_that_was_cut_can_be_done_again(cli, tmp_path, url, monkeypatch, files_before_the_cut):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    write_lines(tmp_path / "fewer.jsonl", ROWS[:30])
    assert cli(*prepare_command("rows.jsonl", url)).code == 0
    file_system, _ = fsspec.core.url_to_fs(url)
    real, put = type(file_system).put_file, []

    def cut(self, *arguments, **options):
        if len(put) == files_before_the_cut:
            raise OSError("the line is dead")
        put.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(file_system), "put_file", cut)
    failed = cli(*prepare_command("fewer.jsonl", url), "--overwrite")
    assert (failed.code, "the line is dead" in failed.stderr) == (1, True)
    assert read_manifest(remote.fetch(url))["rows"]["kept"] == 40
    monkeypatch.setattr(type(file_system), "put_file", real)
    assert cli(*prepare_command("fewer.jsonl", url)).code == 1  # not without --overwrite
    assert cli(*prepare_command("fewer.jsonl", url), "--overwrite").code == 0
    assert read_manifest(remote.fetch(url))["rows"]["kept"] == 30
    assert not file_system.exists(f"{url}/{remote.UPLOADING}")
    assert not file_system.exists(f"{url}{remote.BESIDE}")


def test_a_copy_is_fetched_once_and_a_cut_one_again(cli, tmp_path, url, monkeypatch):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    assert cli(*prepare_command("rows.jsonl", url)).code == 0
    copy = remote.fetch(url)
    (copy / "mark").touch()
    assert remote.fetch(url) == copy
    assert (copy / "mark").exists()
    (copy / "manifest.json").unlink()  # what a killed fetch leaves
    assert remote.fetch(url) == copy
    assert not (copy / "mark").exists()
    assert json.loads((copy / "manifest.json").read_text())["rows"]["kept"] == 40


@pytest.mark.parametrize("call", [remote.fetch, lambda url: remote.check_target(url, False)])
def test_an_unknown_protocol_is_one_line(call):
    with pytest.raises(RmcliError, match="nonsense://x: Protocol not known"):
        call("nonsense://x")


class NoCredentials(Exception):
    """As botocore's of that name: neither an OSError nor a ValueError."""


class LockedCloud(MemoryFileSystem):
    protocol = "cloud"
    locked = ("find", "exists", "cat_file", "_open", "put_file", "makedirs")

    def __getattribute__(self, name: str) -> object:
        if name in type(self).locked:
            raise NoCredentials("Unable to locate\ncredentials")
        return super().__getattribute__(name)


@pytest.mark.parametrize("locked", [LockedCloud.locked, ("_open", "put_file", "cat_file")])
@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "cloud://x/rows.jsonl", "--map-fn", "canonical", "-o", "out"),
        ("prepare", "rows.jsonl", "--map-fn", "canonical", "-o", "cloud://x/out"),
        ("train", "--data", "cloud://x/out"),
    ],
)
def test_a_clouds_own_errors_are_one_line(cli, tmp_path, monkeypatch, command, locked):
    write_lines(tmp_path / "rows.jsonl", ROWS)
    fsspec.register_implementation("cloud", LockedCloud, clobber=True)
    monkeypatch.setattr(LockedCloud, "locked", ())
    fsspec.filesystem("cloud").pipe_file("cloud://x/rows.jsonl", b"{}")
    monkeypatch.setattr(LockedCloud, "locked", locked)
    result = cli(*command, "--preset", "tiny")
    assert result.code == 1
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cloud://x" in errors[0]
    assert errors[0].endswith(": Unable to locate credentials")


def test_no_data_at_the_url_is_one_line(cli, tmp_path, url):
    result = cli("train", "--preset", "tiny", "--data", url)
    assert result.code == 1
    assert f"error: {url} cannot be read" in result.stderr
