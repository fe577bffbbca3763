"""The manifest of a prepared folder: what is in it, proven by hashes; and the files beside it."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmcli.errors import RmcliError
from rmcli.packs.schema import FORMAT_VERSION
from rmcli.packs.staging import put_back, put_back_all

MANIFEST = "manifest.json"
REJECTS = "rejects.jsonl"
TEXTS = ("eval.jsonl", REJECTS)
DATASET = "dataset_dict.json"  # by which `datasets` knows it
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}  # file names may hold any bytes
REQUIRED_KEYS = {"format_version", "splits", "shards", "manifest_sha256"}


def files_of(folder: Path) -> list[Path]:
    """The files of a prepared folder beside its splits, for what must not be written over them."""
    return [folder / name for name in (MANIFEST, *TEXTS, DATASET)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder. Raises RmcliError when it is missing, damaged or of another version."""
    path = folder / MANIFEST
    if folder.is_file():
        raise RmcliError(
            f"{folder} is a file, not a prepared folder",
            f"prepare it first: rmcli prepare {folder} --map-fn auto -o DIR, then --data DIR",
        )
    try:
        put_back(folder)
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RmcliError(f"{folder} holds no prepared data: no manifest.json", "run rmcli prepare -o DIR") from error
    except (ValueError, RecursionError) as error:
        raise RmcliError(f"{path} is damaged: {error}", "prepare it again with --overwrite") from error
    if not isinstance(manifest, dict) or not manifest.keys() >= REQUIRED_KEYS:
        raise RmcliError(f"{path} is no manifest of rmcli", "prepare it again with --overwrite")
    if manifest["format_version"] != FORMAT_VERSION:
        raise RmcliError(
            f"{path}: format version {manifest['format_version']}, this rmcli reads {FORMAT_VERSION}",
            "prepare it again with --overwrite",
        )
    said, actual = str(manifest["manifest_sha256"]), _seal(manifest)
    if said != actual:
        raise RmcliError(
            f"{path} is damaged or was edited: sha256 {actual[:12]}, it says {said[:12]}",
            "prepare it again with --overwrite",
        )
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write it with the sha256 of its own content, which `read_manifest` checks. Returns what was written."""
    whole = {**manifest, "manifest_sha256": _seal(manifest)}
    write_json(folder / MANIFEST, whole)
    return whole


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every file beside the Arrow files with its hash. Raises RmcliError for one that is gone or changed.

    A manifest from before there were such hashes says less: its texts must be there, and end with a whole line.
    """
    again = "prepare it again with --overwrite"
    for name, sha256 in (manifest.get("files") or dict.fromkeys(TEXTS)).items():
        path = folder / name
        try:
            actual = file_sha256(path)
            is_cut = name in TEXTS and not _ends_whole(path)
        except OSError as error:
            raise RmcliError(f"{path} cannot be read: {error.strerror or error}", again) from error
        if sha256 is not None and actual != sha256:
            raise RmcliError(
                f"{path} is damaged or was edited: sha256 {actual[:12]}, the manifest says {sha256[:12]}", again
            )
        if is_cut:
            raise RmcliError(f"{path} is cut short: its last line has no end", again)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read() in (b"", b"\n")


def _seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest's content, its own `manifest_sha256` left out; independent of white space."""
    content = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def find_prepared(root: Path) -> list[Path]:
    """The prepared folders directly under `root`, by name. Raises RmcliError."""
    try:
        put_back_all(root)
    except OSError as error:
        raise RmcliError(f"{root} cannot be read: {error.strerror or error}") from error
    return sorted(path.parent for path in root.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", **TEXT)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FILLED = {errno.ENOTEMPTY, errno.EEXIST}  # of the rename that puts a whole folder in its place


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An OSError while `folder` is written becomes an RmcliError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FILLED:
            raise RmcliError(
                f"output folder {folder} was filled by another command meanwhile",
                "what is there is whole; choose another with -o, or give --overwrite to replace it",
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)  # pyarrow's own text is longer
        hint = "free some space, or choose another folder with -o" if error.errno in _FULL else None
        raise RmcliError(f"cannot write {folder}: {reason}", hint or "choose another folder with -o") from error
