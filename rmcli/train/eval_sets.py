"""What a run is evaluated on, proven before a weight is loaded: the pairs held out, and the sets of [eval]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmcli.config.sections import Config, SourceSection
from rmcli.config.sections_of_evaluation import HELD_OUT, EvalSetSection, key_of
from rmcli.errors import ConfigError, RmcliError
from rmcli.model.batch import is_used
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.same_tokens import check_same_tokens
from rmcli.packs.schema import SPLITS
from rmcli.runs import record
from rmcli.ship.same_ids import ids_sha256
from rmcli.tokens.tokenizer import RewardTokenizer


@dataclass(frozen=True)
class EvalSet:
    """A split of a prepared folder. `name`: as `[[eval.sets]]` has it, None of the pairs held out.

    `left_out`: groups of which the loss can tell nothing.
    """

    name: str | None
    path: str  # as the configuration has it
    folder: Path
    manifest: Mapping[str, Any]
    split_name: str
    split: PackedSplit
    left_out: int

    @property
    def title(self) -> str:
        return HELD_OUT if self.name is None else self.name

    @property
    def identity(self) -> str:
        """What must stay the same for its figures to be of one set."""
        return f"{self.split_name} of {self.manifest['manifest_sha256']}"

    @property
    def num_used(self) -> int:
        return sum(self.split.groups_per_pack) - self.left_out

    @property
    def source_names(self) -> list[str]:
        """What each source of its rows is called, by `source_id`."""
        return [SourceSection.model_validate(source).label for source in self.manifest.get("sources", [])]

    def named(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Figures under their names in metrics.jsonl."""
        return {key_of(figure, self.name): value for figure, value in figures.items()}


def held_out_of(folder: Path, manifest: Mapping[str, Any], loss_type: str) -> EvalSet:
    """The pairs that `prepare` held out of the training data, maybe none."""
    split = PackedSplit(folder, "eval")
    return EvalSet(None, str(folder), folder, manifest, "eval", split, count_left_out(split, loss_type))


def open_sets(config: Config, reward: RewardTokenizer, run_folder: Path | None) -> list[EvalSet]:
    """The sets of the configuration. `run_folder`: of a run that goes on, which knows where they lay.

    Raises RmcliError for one that is damaged, empty or of other tokens, ConfigError for one that does not fit.
    """
    known = (record.read(run_folder) or {}).get("eval_sets", {}) if run_folder is not None else {}
    found = []
    for section in config.eval.sets:
        try:
            found.append(_open(section, config, reward, known))
        except RmcliError as error:
            error.message = f"eval set {section.name}: {error.message}"
            raise
    return found


def _open(section: EvalSetSection, config: Config, reward: RewardTokenizer, known: Mapping[str, Any]) -> EvalSet:
    folder = _folder_of(section, known)
    manifest = read_manifest(folder)
    check_same_tokens(manifest, reward, folder, ids=ids_sha256(reward))
    split = PackedSplit(folder, section.split)
    groups = sum(split.groups_per_pack)
    if not groups:
        other = next(name for name in SPLITS if name != section.split)
        hint = f'name the other one beside its path: split = "{other}"'
        raise RmcliError(f"the split {section.split} of {folder} is empty", hint)
    longest, limit = longest_conversation(split), config.data.max_length
    if longest > limit:
        raise ConfigError(
            f"{folder} has a conversation of {longest:,} tokens, and this run takes {limit:,} (data.max_length)",
            f"prepare it again with -s data.max_length={limit}",
        )
    left_out = count_left_out(split, config.loss.loss_type)
    if left_out == groups:
        raise ConfigError(
            f"loss.loss_type = {config.loss.loss_type} tells nothing of the {groups:,} groups of {folder}",
            "they hold no comparison, ties or soft labels only: leave the set out",
        )
    return EvalSet(section.name, section.path, folder, manifest, section.split, split, left_out)


def _folder_of(section: EvalSetSection, known: Mapping[str, Any]) -> Path:
    """Where the set lies: of a run that goes on from another working folder where it lay when the run was started."""
    folder, told = Path(section.path).expanduser(), known.get(section.name)
    if not folder.exists() and isinstance(told, Mapping) and told.get("path") == section.path:
        return Path(str(told.get("folder", folder)))
    return folder


def longest_conversation(split: PackedSplit) -> int:
    """Tokens."""
    prefixes_G, numbers_G, responses_R = split.conversation_lengths()
    starts_G = np.cumsum(numbers_G) - numbers_G
    return int((prefixes_G + np.maximum.reduceat(responses_R, starts_G)).max())


def count_left_out(split: PackedSplit, loss_type: str) -> int:
    """Groups of which the loss can tell nothing; all comparisons are read once."""
    return sum(not is_used(group, loss_type) for pack in range(len(split)) for group in split.groups(pack))


def places_of(sets: Sequence[EvalSet]) -> dict[str, dict[str, str]]:
    """For run.json: by name where each set lies, from everywhere, and what it is."""
    named = [one for one in sets if one.name is not None]
    return {one.title: {"path": one.path, "folder": str(one.folder.absolute()), "set": one.identity} for one in named}
