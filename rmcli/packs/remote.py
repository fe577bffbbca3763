"""Prepared data at a URL: uploaded whole and manifest last, fetched once into a local cache.

A set that takes another's place is first uploaded whole beside it, under NAME.rmcli-new, and then copied over: at
every moment the old one or the new one is whole, at its place or beside it, and `fetch` finds it.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from rmcli import output
from rmcli.errors import RmcliError, explained
from rmcli.rows.files import is_url

MANIFEST = "manifest.json"
UPLOADING = ".rmcli-uploading"  # in a folder whose upload began and has not ended: ours, so --overwrite may take it
BESIDE = ".rmcli-new"
CACHE = Path("~/.cache/rmcli/data")


def check_target(url: str, overwrite: bool) -> None:
    """Raise RmcliError when the folder at `url` is taken, as the local one would be."""
    file_system, root = _open(url)
    with explained(f"{url} cannot be reached", "check the address and your access"):
        is_taken = bool(_files(file_system, root)) or _is_whole(file_system, root + BESIDE)
        is_prepared = any(file_system.exists(f"{root}/{name}") for name in (MANIFEST, UPLOADING))
        is_prepared |= _is_whole(file_system, root + BESIDE)
    if is_taken and not overwrite:
        raise RmcliError(f"output folder {url} is not empty", "choose another with -o, or give --overwrite")
    if is_taken and not is_prepared:
        raise RmcliError(
            f"output folder {url} holds no prepared data, so --overwrite leaves it alone",
            "choose another folder with -o",
        )


def upload(folder: Path, url: str) -> None:
    """Put a prepared folder at `url`, in place of what is there.

    Whoever reads meanwhile finds a whole set or none; a first upload that was cut can be done again with --overwrite.
    Raises RmcliError when a file does not arrive whole.
    """
    file_system, root = _open(url)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names.sort(key=lambda name: name == MANIFEST)  # last
    beside = root + BESIDE

    def put(name: str, target: str) -> None:
        file_system.put_file(str(folder / name), target)
        if (arrived := file_system.size(target)) != (size := (folder / name).stat().st_size):
            raise RmcliError(f"{url}: {name} arrived with {arrived} of {size} bytes")

    with explained(f"cannot write {url}", "check the address and your access"):
        if not _is_whole(file_system, root) and not _is_whole(file_system, beside):
            _fill(file_system, root, names, put)
            return
        if _is_whole(file_system, root):  # else what lies beside is all there is: it stays until the new one is there
            _fill(file_system, beside, names, put)
            _fill(file_system, root, names, lambda name, target: file_system.cp_file(f"{beside}/{name}", target))
        else:
            _fill(file_system, root, names, put)
        _clear(file_system, beside)
        file_system.rm(beside, recursive=True)


def _fill(file_system: Any, root: str, names: list[str], put: Callable[[str, str], None]) -> None:
    """Clear `root` and put the files there, its manifest removed first of all and put last."""
    file_system.makedirs(root, exist_ok=True)
    file_system.pipe_file(f"{root}/{UPLOADING}", b"")
    _clear(file_system, root, keep=UPLOADING)
    for name in names:
        target = f"{root}/{name}"
        file_system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
        put(name, target)
    file_system.rm_file(f"{root}/{UPLOADING}")


def _clear(file_system: Any, root: str, keep: str | None = None) -> None:
    """All files below `root`, the manifest first: what is left is no set."""
    for file in sorted(_files(file_system, root), key=lambda file: not file.endswith(f"/{MANIFEST}")):
        if PurePosixPath(file).name != keep:
            file_system.rm_file(file)


def _files(file_system: Any, root: str) -> list[str]:
    return file_system.find(root) if file_system.exists(root) else []


def _is_whole(file_system: Any, root: str) -> bool:
    return file_system.exists(f"{root}/{MANIFEST}")


def local(place: str) -> Path:
    """The prepared folder itself, or a local copy of the one at a URL."""
    return fetch(place) if is_url(place) else Path(place)


def fetch(url: str, cache: Path | None = None) -> Path:
    """A local copy of the prepared folder at `url`; one that was fetched before is taken again.

    The copy is found by the content of the manifest, whose hashes are checked when the data is opened. Raises
    RmcliError when there is none at `url` or it cannot be read.
    """
    file_system, root = _open(url)
    with explained(f"{url} cannot be read", "is there prepared data? rmcli prepare -o URL"):
        if not _is_whole(file_system, root) and _is_whole(file_system, root + BESIDE):
            output.warn(f"{url} is being replaced, or that was cut short: the new set beside it is taken")
            root += BESIDE
        manifest: bytes = file_system.cat_file(f"{root}/{MANIFEST}")
        copy = (cache or CACHE.expanduser()) / hashlib.sha256(manifest).hexdigest()[:32]
        if (copy / MANIFEST).is_file():
            return copy
        shutil.rmtree(copy, ignore_errors=True)  # what an interrupted fetch left
        for file in sorted(file_system.find(root)):
            target = copy / PurePosixPath(file).relative_to(root)
            if target.name not in (MANIFEST, UPLOADING):
                target.parent.mkdir(parents=True, exist_ok=True)
                file_system.get_file(file, str(target))
        (copy / MANIFEST).write_bytes(manifest)
    return copy


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    with explained(url, "install what fsspec needs for it, e.g. s3fs or gcsfs"):
        file_system, root = fsspec.core.url_to_fs(url)
    return file_system, root.rstrip("/")
