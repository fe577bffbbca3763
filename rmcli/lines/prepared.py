"""A prepared folder as it is stored: its groups in tokens, pack by pack."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from rmcli.config.sections import SourceSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.lines.read import Line
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.same_tokens import check_same_tokens
from rmcli.packs.schema import SPLITS
from rmcli.records import TokenGroup
from rmcli.ship.template import trained_templates
from rmcli.tokens.encode import Encoder

SPLIT = "eval"  # that is scored where none is named


def read(source: SourceSection, encoder: Encoder) -> tuple[Iterator[Line], int]:
    """The groups of a split as lines, each with its `row_id`, and how many they are.

    Raises ConfigError for a split that there is none of, RmcliError for a set that is damaged or of other tokens.
    """
    folder, name = Path(source.path), source.split or SPLIT
    if name not in SPLITS:
        raise ConfigError(f"input {folder} has no split {name}", f"a prepared folder has {' and '.join(SPLITS)}")
    templates = trained_templates(str(encoder.reward.tokenizer.chat_template), encoder.reward)
    check_same_tokens(read_manifest(folder), encoder.reward, folder, templates)
    split = PackedSplit(folder, name)
    if not sum(split.groups_per_pack):
        raise RmcliError(
            f"input {folder}: its split {name} is empty", f"path={folder},split={SPLITS[0]} is the other"
        )
    groups = (group for pack in range(len(split)) for group in split.groups(pack))
    return (_as_line(group, folder, encoder.max_length) for group in groups), sum(split.groups_per_pack)


def _as_line(group: TokenGroup, folder: Path, max_length: int) -> Line:
    digest = blake2b(group.prefix.tobytes(), digest_size=16)
    for response in group.responses:
        digest.update(response.tobytes())
    longest = len(group.prefix) + max(map(len, group.responses))
    return Line(
        group if longest <= max_length else None,
        None if longest <= max_length else "overlong",  # cut for a model that takes more
        form="pair" if len(group.responses) == 2 else "scores",
        kept={"row_id": group.row_id},
        where=f"{folder}, row {group.row_id}",
        digest=digest.digest(),
    )
