"""What a row must keep to, and what of a source's rows was not read: nothing of a conversation is lost in silence."""

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any, cast

from rmcli import output
from rmcli.errors import Skip
from rmcli.records import CALLS, OWN_KEYS, Conversation, Message, PreferenceGroup, more_of
from rmcli.rows.map_fns.beside import check_json, is_given
from rmcli.rows.map_fns.fields import Row

# Columns that carry a part of a conversation, whatever the data set: a row that has one is not trained without it.
OF_CONVERSATIONS = (
    *("system", "history", "conversations", "tools", "images", "videos", "audios"),
    "chat_template_kwargs",
)


@dataclass
class Contract:
    """How the rows of one source are taken, and the columns and message keys that nothing reads, in order.

    `message_keys`: what the chat template reads of a message beside role and content; None is everything.
    """

    message_keys: frozenset[str] | None = None
    allow_no_prompt: bool = False
    unread_columns: dict[str, None] = field(default_factory=dict)
    unread_keys: dict[str, None] = field(default_factory=dict)

    def check_columns(self, row: Row, read: Container[str]) -> None:
        """Note the columns that are not read. Raises Skip("unread_column NAME") for one of a conversation."""
        unread = [column for column in row if column not in read]
        for column in unread:
            self.unread_columns[column] = None
        for column in OF_CONVERSATIONS:
            if column in unread and is_given(row[column]):
                raise Skip(f"unread_column {column}", "the map function does not read it, and it holds something")

    def settled(self, group: PreferenceGroup) -> PreferenceGroup:
        """The group with the message keys that the template reads, and no other.

        Raises Skip: no_prompt and empty_prompt, `unread_key NAME` for calls of tools that the template would not
        write, and what `check_json` finds in those keys.
        """
        talks = tuple(map(self._narrowed, group.conversations))
        if all(talks):
            for talk in talks:
                self._check_prompt(talk)
        return replace(group, conversations=talks)

    def _narrowed(self, conversation: Conversation) -> Conversation:
        if all(len(message) == 2 for message in conversation):
            return conversation
        return tuple(self._narrow(message) for message in conversation)

    def _narrow(self, message: Message) -> Message:
        kept = {}
        for key, value in more_of(message).items():
            if self.message_keys is None or key in self.message_keys:
                kept[key] = value
            elif key in CALLS:
                raise Skip(f"unread_key {key}", "the chat template does not read it, and the message calls a tool")
            else:
                self.unread_keys[key] = None
        check_json(kept)
        own = {key: value for key, value in message.items() if key in OWN_KEYS}
        return cast(Message, {**own, **kept})

    def _check_prompt(self, talk: Conversation) -> None:
        if talk[-1]["role"] != "assistant":
            return  # the encoder says so
        if not self.allow_no_prompt and all(message["role"] in ("system", "assistant") for message in talk):
            raise Skip("no_prompt")
        asked = next((message for message in reversed(talk) if message["role"] == "user"), None)
        if asked is not None and not asked["content"].strip():
            raise Skip("empty_prompt")

    def as_dict(self) -> dict[str, list[str]]:
        """What was not read, as the manifest has it; nothing where all was."""
        found = {"columns_not_read": sorted(self.unread_columns), "message_keys_not_read": sorted(self.unread_keys)}
        return {what: names for what, names in found.items() if names}

    def report(self, source: str) -> None:
        """Name what was not read, once."""
        if self.unread_columns:
            output.warn(f"not read: {', '.join(self.unread_columns)} (columns of {source})")
        self.report_keys(source)

    def report_keys(self, source: str) -> None:
        """Name the message keys alone that were not read."""
        if self.unread_keys:
            output.warn(
                f"not read: {', '.join(self.unread_keys)} (of the messages of {source}: the chat template does not "
                "use it)"
            )


class Watched(dict[str, Any]):
    """A row that notes which of its columns a user's own function looks at."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.looked_at: set[str] = set()

    def _all(self) -> None:
        self.looked_at.update(super().keys())

    def __getitem__(self, key: str) -> Any:
        self.looked_at.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.looked_at.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.looked_at.add(str(key))
        return super().__contains__(key)

    def __delitem__(self, key: str) -> None:
        self.looked_at.add(key)
        super().__delitem__(key)

    def pop(self, key: str, *default: Any) -> Any:
        self.looked_at.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Any:  # without it dict(row) and {**row} would pass __getitem__ by
        return super().__iter__()

    def items(self) -> Any:
        self._all()
        return super().items()

    def values(self) -> Any:
        self._all()
        return super().values()

    def copy(self) -> dict[str, Any]:
        self._all()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        self._all()
        return dict(super().items()) | other

    def __repr__(self) -> str:
        self._all()
        return super().__repr__()
