"""How much memory this process may still take: of the host's, and of what its control groups and own limits leave."""

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 2**60  # version 1 writes the largest whole number of pages


def host_memory() -> int:
    """Bytes that this process can have on the host now: the least that the host, a group or a limit leaves it."""
    return min([psutil.virtual_memory().available, *left_by_groups(), *_left_by_limits()])


def left_by_groups(mounted: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> Iterator[int]:
    """Of each control group that this process is in, from its own to the root: limit less use.

    Cached files that nobody uses count as free, for the kernel gives them up first. Both versions: 2 has one tree,
    1 one for memory. In a container the group's path may be that of the host and not be there: its root is.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = (
                mounted / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            yield from _left_by_group(folder, *names)


def _left_by_group(folder: Path, limit_name: str, used_name: str, cached_name: str) -> Iterator[int]:
    try:
        limit = (folder / limit_name).read_text(encoding="ascii").strip()
        used = int((folder / used_name).read_text(encoding="ascii"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return  # the root has no limit, and a group may end while it is read
    if limit.isdecimal() and int(limit) < _UNLIMITED:
        yield max(0, int(limit) - used + int(counts.get(cached_name, 0)))


def _left_by_limits() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    if sys.platform == "win32":
        return
    import resource

    used = psutil.Process().memory_info()
    for limit, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, getattr(used, "data", 0))):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - taken)
