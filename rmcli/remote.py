"""Prepared data at a URL: uploaded whole and manifest last, fetched once into a local cache."""

import hashlib
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from rmcli.errors import RmcliError, explained

MANIFEST = "manifest.json"
UPLOADING = ".rmcli-uploading"  # in a folder whose upload began and has not ended: ours, so --overwrite may take it
CACHE = Path("~/.cache/rmcli/data")


def check_target(url: str, overwrite: bool) -> None:
    """Raise RmcliError when the folder at `url` is taken, as the local one would be."""
    file_system, root = _open(url)
    with explained(f"{url} cannot be reached", "check the address and your access"):
        is_taken = file_system.exists(root) and bool(file_system.find(root))
        is_prepared = any(file_system.exists(f"{root}/{name}") for name in (MANIFEST, UPLOADING))
    if is_taken and not overwrite:
        raise RmcliError(f"output folder {url} is not empty", "choose another with -o, or give --overwrite")
    if is_taken and not is_prepared:
        raise RmcliError(
            f"output folder {url} holds no prepared data, so --overwrite leaves it alone",
            "choose another folder with -o",
        )


def upload(folder: Path, url: str) -> None:
    """Put a prepared folder at `url`. Its manifest goes last, and an older one first of all.

    So whoever reads meanwhile finds a whole set or none; an upload that was cut can be done again with --overwrite.
    Raises RmcliError when a file does not arrive whole.
    """
    file_system, root = _open(url)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with explained(f"cannot write {url}", "check the address and your access"):
        old = file_system.find(root) if file_system.exists(root) else []
        file_system.makedirs(root, exist_ok=True)
        file_system.pipe_file(f"{root}/{UPLOADING}", b"")
        for file in sorted(old, key=lambda file: not file.endswith(f"/{MANIFEST}")):
            if not file.endswith(f"/{UPLOADING}"):
                file_system.rm_file(file)
        for path in [*files, folder / MANIFEST]:
            target = f"{root}/{path.relative_to(folder).as_posix()}"
            file_system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            file_system.put_file(str(path), target)
            if (arrived := file_system.size(target)) != path.stat().st_size:
                raise RmcliError(f"{url}: {path.name} arrived with {arrived} of {path.stat().st_size} bytes")
        file_system.rm_file(f"{root}/{UPLOADING}")


def fetch(url: str, cache: Path | None = None) -> Path:
    """A local copy of the prepared folder at `url`; one that was fetched before is taken again.

    The copy is found by the content of the manifest, whose hashes are checked when the data is opened. Raises
    RmcliError when there is none at `url` or it cannot be read.
    """
    file_system, root = _open(url)
    with explained(f"{url} cannot be read", "is there prepared data? rmcli prepare -o URL"):
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
