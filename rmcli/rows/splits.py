"""Which split a file of a folder belongs to, by its name, and which one of several is read.

The names are those that `datasets` goes by: `train`, `validation`, `test` and their usual synonyms as a word of the
name of a file or folder, and `data/NAME-00000-of-00001.parquet` of the Hub, where NAME is the split whatever it is
called.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from rmcli.errors import ConfigError

_KIND_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout", "holdout"), "test"),
}
_HELD_OUT = re.compile(r"h(e|o)ld[-_ ]out")
_NUMBERED = re.compile(r"(\w[\w.]*)-\d{5}-of-\d{5}")  # how the Hub names the files of a split
_NO_SPLIT = ("data", "part")  # NAMEs that say nothing: save_to_disk writes data-00000-of-00001.arrow


def split_of(file: str, root: str) -> str | None:
    """The split that `file`, a path below the source's folder `root`, is named after; None for no split.

    The file's own name decides, then its folders', the nearest first; of the root the Hub's `data` alone.
    """
    *folders, name = PurePosixPath(file).parts
    numbered = _NUMBERED.match(name)
    in_data = (folders or PurePosixPath(root).parts)[-1:] in (["data"], ("data",))
    of_the_hub = numbered and (kind_of(numbered[1]) or in_data) and numbered[1] not in _NO_SPLIT
    if numbered and of_the_hub:
        return numbered[1]
    return next(filter(None, map(kind_of, [name, *reversed(folders)])), None)


def kind_of(name: str) -> str | None:
    """`train`, `validation` or `test` by a word of the name; None for none of them, or for several."""
    words = re.split(r"[^a-z]+", _HELD_OUT.sub("heldout", name.lower()))
    kinds = {_KIND_OF_WORD[word] for word in words if word in _KIND_OF_WORD}
    return kinds.pop() if len(kinds) == 1 else None


def choose_split(
    name: str, files: Mapping[str | None, Sequence[str]], asked: str | None, default: str | None
) -> list[str | None]:
    """Which of the splits of source `name` are read (split -> its files; None -> those of no split).

    `asked` is the split its user names for it. Else `default` is taken where there are several, and files of no split
    count as training data. Raises ConfigError where that leaves none, or several.
    """
    splits = [split for split in files if split is not None]
    matching = _matching(splits, asked or default)
    if asked is not None and len(matching) != 1:
        raise ConfigError(f"source {name} has no split {asked}", _name_one(name, splits))
    is_one = len(files) == 1 or (len(splits) == 1 and kind_of(splits[0]) == "train")
    if asked is None and is_one:
        return list(files)
    if len(matching) == 1:
        return list(matching)
    if not matching and None in files and default == "train":
        return [None]
    raise ConfigError(f"source {name} holds several splits: {', '.join(splits)}", _name_one(name, splits))


def _matching(splits: Sequence[str], wanted: str | None) -> list[str]:
    """The split of that name, or those of its kind: `train` is asked for, and there is `train_prefs`."""
    if wanted in splits:
        return [wanted] if wanted is not None else []
    return [split for split in splits if wanted is not None and kind_of(split) == wanted]


def _name_one(name: str, splits: Sequence[str]) -> str:
    if not splits:
        return "its files are named after no split; leave split out"
    best = next((split for split in splits if kind_of(split) == "train"), splits[0])
    return f"name one: --source path={name},split={best}, or its files themselves"
