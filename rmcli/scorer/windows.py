"""What is encoded, packed and scored together: so many lines, or so much text, whichever is reached first."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rmcli.records import PreferenceGroup

WINDOW = 1024  # lines or conversations
CHARACTERS = 2**22  # about a million tokens: enough to fill forwards well, and bounded however long the lines are

Item = TypeVar("Item")


def windows(
    items: Iterable[Item], size: Callable[[Item], int], most: int = WINDOW, characters: int = CHARACTERS
) -> Iterator[list[Item]]:
    """The items in order, in lists of at most `most`; a list ends with the item that brings it to `characters`.

    Where a window ends depends on its own items alone, so that whoever begins at one's end finds the same next ones.
    """
    window: list[Item] = []
    held = 0
    for item in items:
        window.append(item)
        held += size(item)
        if len(window) == most or held >= characters:
            yield window
            window, held = [], 0
    if window:
        yield window


def characters_of(group: object) -> int:
    """Characters of a group's conversations; 0 of what is no group."""
    if not isinstance(group, PreferenceGroup):
        return 0
    return sum(len(message["content"]) for talk in group.conversations for message in talk)
