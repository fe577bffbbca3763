"""Text that looks like a conversation written out: a transcript, or a message list as JSON or Python prints it."""

import re
from functools import cached_property

from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.text import Text
from rmcli.audit.figures.values import Figures

SAMPLE = 1000  # groups of a split, its first, whose text is looked at
LISTED = 20  # rows

KINDS = {
    "transcript": re.compile(
        r"(?:^|\n|\s{2})(?:Human|HUMAN|Assistant|ASSISTANT|USER|### ?(?:Instruction|Response|Human|Assistant)):"
        r"|\[/INST\]"
    ),
    "message_list": re.compile(r"\{\s*(?P<quote>['\"])(?:role|content|from|value)(?P=quote)\s*:\s*['\"]"),
}


class WrittenOut:
    """How many of a split's first groups hold such text, within a turn.

    The template's own words are none: a kind that it writes itself is not looked for, nor is any without a tokenizer.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self.looked_at = 0
        self.rows: dict[str, list[int]] = {kind: [] for kind in KINDS}

    @cached_property
    def sought(self) -> list[str]:
        neutral = self.text.neutral_conversation
        return [] if neutral is None else [kind for kind, sign in KINDS.items() if not sign.search(neutral)]

    def add(self, packs: FlatPacks) -> None:
        conversation = 0
        for group, number in enumerate(packs.num_responses.tolist()):
            if self.looked_at == SAMPLE or not self.sought:
                return
            self.looked_at += 1
            parts = [packs.prompt(group), *(packs.response(at) for at in range(conversation, conversation + number))]
            conversation += number
            texts = [self.text.whole(part) for part in parts]
            for kind in self.sought:
                if any(map(KINDS[kind].search, texts)):
                    self.rows[kind].append(int(packs.row_ids[group]))

    def figures(self) -> Figures:
        kinds = {kind: {"groups": len(rows), "rows": rows[:LISTED]} for kind, rows in self.rows.items()}
        return {"groups_looked_at": self.looked_at, "sought": self.sought, **kinds}
