"""What memory a process may still take, where control groups and limits of its own leave less than the host has."""

import resource
import subprocess
import sys
from pathlib import Path

import psutil

from rmcli.model import limits

GIB = 2**30


def group(folder: Path, limit: object, used: int, cached: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, cached_name = names
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cached_name} {cached}\n")


TWO = ("memory.max", "memory.current", "inactive_file")
ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def left(tmp_path: Path, own: str) -> list[int]:
    (tmp_path / "own").write_text(own)
    return list(limits.left_by_groups(tmp_path / "cgroup", tmp_path / "own"))


def test_each_group_from_the_own_to_the_root_leaves_its_limit_less_its_use(tmp_path):
    group(tmp_path / "cgroup/a/b", 4 * GIB, 3 * GIB, GIB, TWO)
    group(tmp_path / "cgroup/a", "max", 3 * GIB, 0, TWO)
    group(tmp_path / "cgroup", 2 * GIB, 3 * GIB, 0, TWO)
    assert left(tmp_path, "0::/a/b\n") == [2 * GIB, 0]


def test_version_1_has_a_tree_for_memory_and_a_huge_number_for_none(tmp_path):
    group(tmp_path / "cgroup/memory/job", 8 * GIB, GIB, 0, ONE)
    group(tmp_path / "cgroup/memory", 9223372036854771712, GIB, 0, ONE)
    assert left(tmp_path, "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n") == [7 * GIB]


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    group(tmp_path / "cgroup/memory", GIB, 0, 0, ONE)
    assert left(tmp_path, "4:memory:/on/the/host\n") == [GIB]


def test_without_groups_the_host_decides(tmp_path):
    assert left(tmp_path, "0::/\n") == []
    assert list(limits.left_by_groups(tmp_path, tmp_path / "missing")) == []
    assert 0 < limits.host_memory() <= psutil.virtual_memory().total


def test_a_limit_of_the_process_is_seen():
    code = "from rmcli.model.limits import host_memory; print(host_memory())"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 * GIB, 2 * GIB))

    # In a process of its own, before its first import: numpy and torch reserve addresses as they please.
    seen = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=True)
    assert 0 <= int(seen.stdout) < 2 * GIB
