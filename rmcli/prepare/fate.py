"""What becomes of a unit before it is tokenized: a group to encode, or left out: duplicate, not taken, rejected."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rmcli.config.sections import DataSection
from rmcli.errors import Skip
from rmcli.prepare.job import MappedSource
from rmcli.prepare.units import Unit
from rmcli.records import Conversation, Message, PreferenceGroup, TokenGroup
from rmcli.rows.decontaminate import EvaluationPrompts
from rmcli.rows.duplicates import Seen
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.cells import has_text_cells
from rmcli.rows.map_fns.contract import Contract
from rmcli.rows.map_fns.data_sets import canonical
from rmcli.rows.map_fns.written_out import read_back
from rmcli.tokens.encode import group_key, prompt_of


@dataclass(frozen=True)
class Waiting:
    """A mapped group that is about to be encoded. `is_read_back`: its row had messages written out as text."""

    group: PreferenceGroup
    key: bytes
    copies: int
    is_read_back: bool = False


@dataclass(frozen=True)
class LeftOut:
    """Why a unit is no group. `repeats`: the place of the group it is a duplicate of; `about`: what a person is told
    beside the reason. The others as `Reject` has them.
    """

    reason: str
    detail: str | None = None
    repeats: str | None = None
    raised_at: str | None = None
    about: str | None = None


DUPLICATE, NOT_TAKEN = "duplicate", "not_taken"  # fates of their own, no reasons to reject


class Fates:
    """Decides, unit after unit: what it finds depends on the units before. `contracts`: one for each source."""

    def __init__(
        self, data: DataSection, evaluation_prompts: EvaluationPrompts, contracts: Sequence[Contract]
    ) -> None:
        self.data, self.evaluation_prompts, self.contracts = data, evaluation_prompts, contracts
        self.seen = Seen()

    def of(self, unit: Unit, source: MappedSource) -> Waiting | LeftOut:
        """Map a unit; find out whether it is a duplicate and how often its source's weight takes it."""
        problem = next((row.problem for row in unit.rows if row.value is None), None)
        if problem is not None:
            return LeftOut(problem)
        values = [row.value for row in unit.rows if row.value is not None]
        takes_several = source.map_function.rows_key is not None
        contract = self.contracts[unit.rows[0].source_id]
        text_cells = has_text_cells(unit.rows[0].file)
        try:
            rows = values if takes_several else values[0]
            group = apply(source.map_function, rows, unit.place, contract=contract, text_cells=text_cells)
        except Skip as skip:
            return _why(skip)
        if source.section.system is not None:
            group = replace(group, conversations=_with_system(group.conversations, source.section.system))
        if self.evaluation_prompts.texts and self.evaluation_prompts.overlap(prompt_of(group)):
            return LeftOut("in_evaluation_file")
        key = group_key(group)
        repeats = None if self.data.keep_duplicates else self.seen.find(key)
        if repeats is not None:
            return LeftOut(DUPLICATE, repeats=repeats)
        copies = num_copies(key, source.section.weight, self.data.seed)
        if not copies:
            return LeftOut(NOT_TAKEN)
        if not self.data.keep_duplicates:
            self.seen.add(key, unit.rows[0].file, unit.rows[0].line)
        is_read_back = source.map_function.function is canonical and read_back(values[0]) is not values[0]
        return Waiting(group, key, copies, is_read_back)


def of_tokens(tokens: TokenGroup | str, max_packed_length: int) -> TokenGroup | LeftOut:
    """What the encoder made of a group, where a pack holds it; else why the group is left out."""
    if isinstance(tokens, str):
        about = "the chat template does not read it" if tokens.startswith("unread_column") else None
        return LeftOut(tokens, about, about=about)
    return tokens if tokens.num_tokens <= max_packed_length else LeftOut("longer_than_pack")


def num_copies(key: bytes, weight: float, seed: int) -> int:
    """How often a source of this weight takes the group: the whole part, and once more for the share that is left.

    The group's own text decides, so the choice depends neither on the order of rows nor on other sources, and what
    weight 0.2 takes is among what 0.5 takes.
    """
    draw = int.from_bytes(hashlib.sha256(b"%d\n" % seed + key).digest()[:8], "big") / 2**64
    return int(weight) + (draw < weight - int(weight))


def _with_system(conversations: tuple[Conversation, ...], system: str) -> tuple[Conversation, ...]:
    """The conversations with a system message in front, where they have none."""
    message = system_message(system)
    return tuple(
        conversation if any(m["role"] == "system" for m in conversation) else (message, *conversation)
        for conversation in conversations
    )


def system_message(system: str) -> Message:
    return Message(role="system", content=system)


def _why(skip: Skip) -> LeftOut:
    detail = skip.detail or _what_was_raised(skip)
    about = skip.detail if skip.raised_at is None else " at ".join(filter(None, (detail, skip.raised_at)))
    return LeftOut(skip.reason, detail, raised_at=skip.raised_at, about=about)


def _what_was_raised(skip: Skip) -> str | None:
    """The text of the exception that a map function ran into; None where it said Skip itself."""
    cause = skip.__cause__
    return None if cause is None else f"{type(cause).__name__}: {cause}"
