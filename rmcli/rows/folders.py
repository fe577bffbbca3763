"""Which files a path or URL stands for: itself, or what holds rows below a folder, and why the rest is left alone."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from rmcli import output
from rmcli.errors import ConfigError, RmcliError, explained
from rmcli.rows.files import ENDINGS, is_url
from rmcli.rows.splits import choose_split, split_of

# Why a file or folder below a source is not read. Those of OF_NO_CONCERN are what every such folder has.
HIDDEN, BY_FILE, NO_DATA = "hidden", "of other tools", "no data file"
PREPARED, DEAD_LINK, LINKED_FOLDER = "prepared by rmcli", "links to nothing", "linked folders"
OF_NO_CONCERN = (HIDDEN, BY_FILE, NO_DATA)

# Hidden by a name: what dots, Jupyter, macOS archives, Python and table formats (_delta_log, _temporary) put there.
_HIDDEN_FOLDERS = (".*", "_*")
_HIDDEN_FILES = (".*",)
# JSON that other tools keep beside data: datasets, LLaMA-Factory, Croissant, Kaggle, models, trainers, rmcli itself.
_BY_FILES = (
    *("dataset_infos.json", "dataset_info.json", "dataset_dict.json"),
    *("croissant.json", "datapackage.json", "dataset-metadata.json", "metadata.json", "manifest.json", "schema.json"),
    *("config.json", "*_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("*.index.json", "trainer_state.json", "*_results.json", "package.json", "package-lock.json", "rejects.jsonl"),
    *("README.*", "readme.*", "LICENSE.*"),
)
_PREPARED = ("manifest.json", "eval.jsonl", "rejects.jsonl", "dataset_dict.json")  # a folder that prepare wrote
_SHOWN = 3  # names in a line that says what is read


@dataclass(frozen=True)
class Found:
    """The files of a source, sorted; of a folder also what is left out, by why, with names below the folder."""

    files: list[str]
    is_folder: bool = False
    left_out: Mapping[str, list[str]] = field(default_factory=dict)

    def say(self, name: str) -> None:
        """What is read of a folder and what is not; nothing of a single file, which its user named."""
        if not self.is_folder:
            return
        root = name.rstrip("/") + "/"
        number = f"{len(self.files):,} file" + "s" * (len(self.files) > 1)
        output.say(f"reading {number} of {name}: {_listed([file.removeprefix(root) for file in self.files])}")
        for why, names in self.left_out.items():
            tell = output.say if why in OF_NO_CONCERN else output.warn
            tell(f"not read of {name}, {why}: {_listed(names)}")


def find_files(name: str, asked: str | None = None, default: str | None = "train") -> Found:
    """What `name`, a path or URL, stands for. Of several splits that `asked` for is read, else `default`.

    Raises ConfigError when there is nothing, or nothing that can be read, or several splits and none of these.
    """
    listed = _list_url(name) if is_url(name) else _list_path(name)
    if listed is None:
        if asked is not None:
            raise ConfigError(f"source {name}: split is for Hub data sets and folders", "leave it out")
        if not name.endswith(ENDINGS):
            raise ConfigError(f"source {name}: not one of {', '.join(ENDINGS)}")
        file = name if is_url(name) else str(Path(name).expanduser())
        return Found([file])
    root, below, left_out = listed
    if {*_PREPARED} <= set(below):
        raise ConfigError(
            f"source {name} is what rmcli prepare wrote, not rows",
            f"rmcli train --data {name}; parts of one set are joined by rmcli prepare --merge",
        )
    saved = _saved_splits(below)
    by_split: dict[str | None, list[str]] = {}
    for file in _holding_rows(below, left_out):
        split = saved.get(file.rpartition("/")[0]) or split_of(file, root)
        by_split.setdefault(split, []).append(file)
    if not by_split:
        there = "; ".join(f"{why}: {_listed(names)}" for why, names in left_out.items())
        raise ConfigError(
            f"source {name}: no {', '.join(ENDINGS)} file in this folder" + (f" ({there})" if there else ""),
            "a file that is named itself is read, whatever it is called" if there else None,
        )
    chosen = choose_split(name, by_split, asked, default)
    for split in by_split.keys() - set(chosen):
        left_out[f"split {split}" if split else "of no split"] = by_split[split]
    return Found(sorted(root + file for split in chosen for file in by_split[split]), True, left_out)


_Listed = tuple[str, list[str], dict[str, list[str]]]  # root with its slash, files below it, what is left out already


def _list_path(name: str) -> _Listed | None:
    """All files below a folder; None for a file. Folders that are never read are not gone into."""
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"source {name}: no such file or folder", "a Hub data set is written org/name")
    if not path.is_dir():
        return None
    below: list[str] = []
    left_out: dict[str, list[str]] = {}
    root = "" if path == Path() else f"{path}{os.sep}" if path.name else str(path)
    for folder, folders, files in os.walk(path, onerror=_raise):
        here = os.path.relpath(folder, path).replace(os.sep, "/")
        start = "" if here == "." else f"{here}/"
        for inner in sorted(folders):
            is_hidden = _fits(inner, _HIDDEN_FOLDERS)
            if is_hidden or os.path.islink(os.path.join(folder, inner)):
                folders.remove(inner)
                left_out.setdefault(HIDDEN if is_hidden else LINKED_FOLDER, []).append(f"{start}{inner}/")
        for file in sorted(files):
            if os.path.isfile(os.path.join(folder, file)):
                below.append(start + file)
            elif not _fits(file, _HIDDEN_FILES):
                left_out.setdefault(DEAD_LINK, []).append(start + file)
    return root, below, left_out


def _raise(error: OSError) -> None:
    raise RmcliError(f"{error.filename} cannot be read: {error.strerror}") from error


def _list_url(url: str) -> _Listed | None:
    """All files below a folder; None for a file."""
    import fsspec

    with explained(f"source {url} cannot be listed", "check the address and your access"):
        file_system, root = fsspec.core.url_to_fs(url)
        if not file_system.exists(root):
            raise ConfigError(f"source {url}: no such file or folder")
        files = [file_system.unstrip_protocol(file) for file in file_system.find(root)]
        start = file_system.unstrip_protocol(root).rstrip("/")
    if files == [start]:
        return None
    return f"{start}/", [file.removeprefix(f"{start}/") for file in files], {}


def _saved_splits(below: Iterable[str]) -> dict[str, str]:
    """The folders of a saved DatasetDict (save_to_disk) -> the split that each holds, whatever it is called."""
    everything = set(below)
    folders = {file.removesuffix("/state.json") for file in everything if file.endswith("/state.json")}
    parts = {folder: folder.rpartition("/") for folder in folders}
    return {
        folder: split
        for folder, (above, slash, split) in parts.items()
        if f"{folder}/dataset_info.json" in everything and f"{above}{slash}dataset_dict.json" in everything
    }


def _holding_rows(below: Iterable[str], left_out: dict[str, list[str]]) -> list[str]:
    """The files that may hold rows, sorted; the others go to `left_out`."""
    everything = set(below)
    prepared = {
        folder
        for folder in (file.removesuffix(_PREPARED[0]) for file in everything if file.endswith(f"/{_PREPARED[0]}"))
        if all(folder + file in everything for file in _PREPARED)
    }
    rows = []
    for file in sorted(everything):
        why, place = _why_not(file, prepared)
        if file.removesuffix("state.json") + "dataset_info.json" in everything and file.endswith("state.json"):
            why = why or BY_FILE  # of a saved data set
        if why is None:
            rows.append(file)
        elif place not in left_out.setdefault(why, []):
            left_out[why].append(place)
    return rows


def _why_not(file: str, prepared: set[str]) -> tuple[str | None, str]:
    """Why a file is not read, and what to say of it: itself, or the folder that is not read as a whole."""
    *folders, name = PurePosixPath(file).parts
    for depth, folder in enumerate(folders, 1):
        place = "/".join(folders[:depth]) + "/"
        if _fits(folder, _HIDDEN_FOLDERS) or place in prepared:
            return PREPARED if place in prepared else HIDDEN, place
    if _fits(name, _HIDDEN_FILES):
        return HIDDEN, file
    if not file.endswith(ENDINGS):
        return NO_DATA, file
    return (BY_FILE if _fits(name, _BY_FILES) else None), file


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _listed(names: list[str]) -> str:
    """The names, or of many the first ones and the last."""
    if len(names) <= _SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN])} ... {names[-1]} ({len(names):,} in all)"
