"""What an exported model folder proves itself by: `rmcli.sha256`, in the form that `sha256sum -c` reads."""

from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.packs.manifest import file_sha256

HASHES_FILE = "rmcli.sha256"
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
    """The sha256 of every file of the folder, into its `rmcli.sha256`."""
    names = _files(folder)
    lines = [f"{digest}  {name}\n" for name, digest in _hash(folder, names).items()]
    (folder / HASHES_FILE).write_text("".join(lines), encoding="utf-8")


def verify(folder: Path) -> None:
    """Raise RmcliError for a file that was changed, is missing or was added since the export.

    A folder without hashes is of an earlier export or of another tool: that is said. Without rmcli.toml a folder
    still says what it is in config.json.
    """
    path = folder / HASHES_FILE
    if not path.is_file():
        output.say(f"{folder} has no {HASHES_FILE}: nothing proves that its files are as they were exported")
        return
    said = _read(path)
    insist = f"export it again or copy it whole; --no-verify scores with the files as they are ({folder})"
    here = set(_files(folder))
    missing = sorted(said.keys() - here - {CONFIG_FILE})
    if missing:
        raise RmcliError(f"model {folder}: {missing[0]} of the export is missing", insist)
    for name in sorted(here - said.keys()):
        if any(fnmatch(name, pattern) for pattern in _READ_BY_LOADERS):
            raise RmcliError(f"model {folder}: {name} is not of the export ({HASHES_FILE} does not list it)", insist)
    for name, digest in _hash(folder, sorted(said.keys() & here)).items():
        if digest != said[name]:
            raise RmcliError(
                f"model {folder}: {name} was changed since the export: sha256 {digest[:12]}, {HASHES_FILE} says "
                f"{said[name][:12]}",
                insist,
            )


def _read(path: Path) -> dict[str, str]:
    """Name to hash. Raises RmcliError for a line of another form."""
    said = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise RmcliError(
                f"{path}, line {number}: not of the form `sha256  file`", "--no-verify scores all the same"
            )
        said[name] = digest
    return said


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != HASHES_FILE)


def _hash(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: file_sha256(folder / name), names), strict=True))
