"""Prompts with all their answers: of one row, or of rows of one answer each that stand together in the input."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rmcli.lines.read import Line
from rmcli.records import Conversation, PreferenceGroup
from rmcli.tokens.encode import num_shared_messages

MOST_ROWS = 1024  # that one prompt may go over


@dataclass
class Prompt:
    """A prompt's answers in the order of the input, and the rows that they come from, bad ones among them.

    `group`: None where no row can be scored. `kept`: the user's own columns, once for all answers or for each one.
    `digests`: of its rows, in order. `problems`: where and why, of rows that hold no answer.
    """

    group: PreferenceGroup | None
    kept: list[Mapping[str, Any]]
    digests: list[bytes]
    problems: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    where: str = ""

    def first(self, count: int | None) -> "Prompt":
        """The prompt with its first `count` answers alone; None is all."""
        if self.group is None or count is None or len(self.group.conversations) <= count:
            return self
        talks = self.group.conversations[:count]
        return replace(self, group=replace(self.group, conversations=talks, comparisons=()), kept=self.kept[:count])

    def own(self, answers: Sequence[int]) -> dict[str, Any]:
        """The user's own columns of these answers: where their rows differ in one, a list of a value for each."""
        assert self.group is not None
        if len(self.kept) < len(self.group.conversations):
            return dict(self.kept[0])
        rows = [self.kept[index] for index in answers]
        columns = dict.fromkeys(name for row in rows for name in row)
        values = {name: [row.get(name) for row in rows] for name in columns}
        return {name: of[0] if all(value == of[0] for value in of) else of for name, of in values.items()}

    def opening(self) -> int:
        """How many messages are the prompt: those that all answers share, and never a whole conversation."""
        assert self.group is not None
        shortest = min(map(len, self.group.conversations))
        return min(num_shared_messages(self.group), shortest - 1)


def joined(lines: Iterator[Line], most: int | None) -> Iterator[Prompt]:
    """A prompt for each row of several answers; rows of one answer that ask the same, in a row, are one prompt.

    `most`: answers of rows that are put together, and of them the next row begins a new prompt. Rows that hold none
    go with the prompt before them, so that they part nothing.
    """
    waiting: Prompt | None = None
    for line in lines:
        if waiting is not None and _belongs(line, waiting, most):
            _add(line, waiting)
            continue
        if waiting is not None:
            yield waiting
        waiting = _begun(line)
    if waiting is not None:
        yield waiting


def _begun(line: Line) -> Prompt:
    if line.group is None:
        return Prompt(None, [], [line.digest], [(line.where, str(line.problem), line.kept)], line.where)
    assert isinstance(line.group, PreferenceGroup)
    return Prompt(line.group, [line.kept], [line.digest], where=line.where)


def _belongs(line: Line, prompt: Prompt, most: int | None) -> bool:
    if prompt.group is None or len(prompt.digests) >= MOST_ROWS:
        return False
    together = prompt.group.conversations
    is_full = most is not None and len(together) >= most
    if len(prompt.kept) < len(together):  # of one row of several answers
        return False
    if line.group is None:
        return not is_full
    assert isinstance(line.group, PreferenceGroup)
    return (
        not is_full
        and len(line.group.conversations) == 1
        and _asked(line.group.conversations[0]) == _asked(together[0])
        and line.group.template_arguments == prompt.group.template_arguments
    )


def _asked(talk: Conversation) -> Conversation:
    return talk[:-1]


def _add(line: Line, prompt: Prompt) -> None:
    prompt.digests.append(line.digest)
    if line.group is None:
        prompt.problems.append((line.where, str(line.problem), line.kept))
        return
    assert isinstance(line.group, PreferenceGroup)
    assert prompt.group is not None
    talks = (*prompt.group.conversations, *line.group.conversations)
    prompt.group = PreferenceGroup(talks, 1.0, (), prompt.group.template_arguments)
    prompt.kept.append(line.kept)
