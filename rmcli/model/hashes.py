"""What a model folder or a checkpoint proves itself by: `rmcli.sha256`, in the form that `sha256sum -c` reads."""

import hashlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.packs.manifest import file_sha256

HASHES_FILE = "rmcli.sha256"
CARD_FILE = "README.md"  # read by people, who may write in it: it is not proven
CONFIG_FILE = "rmcli.toml"  # the resolved configuration the model was trained with
# What loaders read: a file of such a name that the export did not write would change the model as an edit does.
_READ_BY_LOADERS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*",
    "*config.json",
    "*token*.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)


def write_hashes(folder: Path) -> None:
    """The sha256 of every file of the folder but the card, into its `rmcli.sha256`."""
    names = _files(folder)
    lines = [f"{digest}  {name}\n" for name, digest in _hash(folder, names).items()]
    (folder / HASHES_FILE).write_text("".join(lines), encoding="utf-8")


def verify(folder: Path) -> None:
    """Raise RmcliError for a file that was changed, is missing or was added since the export.

    A folder without hashes is of an earlier export or of another tool: that is said. Without rmcli.toml a folder
    still says what it is in config.json.
    """
    if not (folder / HASHES_FILE).is_file():
        output.say(f"{folder} has no {HASHES_FILE}: nothing proves that its files are as they were exported")
        return
    fault = first_fault(folder, may_be_missing=(CONFIG_FILE,), may_be_added=read_by_no_loader)
    if fault is not None:
        raise RmcliError(
            f"model {folder}: {fault}",
            f"export it again or copy it whole; --no-verify scores with the files as they are ({folder})",
        )


def of_folder(folder: Path, is_verified: bool) -> str:
    """One sha256 of all that a model is loaded from. Of a folder that was verified its list of hashes is enough."""
    if is_verified and (folder / HASHES_FILE).is_file():
        return file_sha256(folder / HASHES_FILE)
    told = "".join(f"{digest}  {name}\n" for name, digest in _hash(folder, _files(folder)).items())
    return hashlib.sha256(told.encode()).hexdigest()


def first_fault(
    folder: Path,
    may_be_missing: Collection[str] = (),
    may_be_added: Callable[[str], bool] = lambda name: False,
) -> str | None:
    """What is not as `write_hashes` saw it, with both hashes; None where all is."""
    said: dict[str, str] = {}
    try:
        text = (folder / HASHES_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return f"{HASHES_FILE} is missing"
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            return f"{HASHES_FILE}, line {number}: not of the form `sha256  file`"
        said[name] = digest
    said.pop(CARD_FILE, None)
    here = set(_files(folder))
    missing = sorted(said.keys() - here - set(may_be_missing))
    if missing:
        return f"{missing[0]}, which {HASHES_FILE} lists, is missing"
    added = sorted(name for name in here - said.keys() if not may_be_added(name))
    if added:
        return f"{added[0]} was added ({HASHES_FILE} does not list it)"
    for name, digest in _hash(folder, sorted(said.keys() & here)).items():
        if digest != said[name]:
            return f"{name} was changed: sha256 {digest[:12]}, {HASHES_FILE} says {said[name][:12]}"
    return None


def listed_names(folder: Path) -> set[str]:
    """The files that `rmcli.sha256` lists; none where there is no such file."""
    path = folder / HASHES_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {line.partition("  ")[2] for line in text.splitlines()}


def read_by_no_loader(name: str) -> bool:
    return not any(fnmatch(name, pattern) for pattern in _READ_BY_LOADERS)


def _files(folder: Path) -> list[str]:
    left_out = (HASHES_FILE, CARD_FILE)
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in left_out)


def _hash(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: file_sha256(folder / name), names), strict=True))
