"""The pairs that a model has most wrong, as text."""

import heapq
from dataclasses import dataclass, field
from typing import Any

from rmcli.lines.read import Line
from rmcli.records import Conversation, Message, TokenGroup
from rmcli.scorer.scorer import Scored
from rmcli.tokens.pair_texts import texts_of


@dataclass
class Worst:
    """The `most` comparisons of the smallest margin; of equal ones the first. Others are not kept."""

    most: int
    _held: list[tuple[float, int, Line, Scored, int, int]] = field(default_factory=list)
    _offered: int = 0

    def offer(self, line: Line, scored: Scored, better: int, worse: int) -> None:
        margin = scored.scores[better] - scored.scores[worse]
        self._offered += 1
        entry = (-margin, -self._offered, line, scored, better, worse)
        if len(self._held) < self.most:
            heapq.heappush(self._held, entry)
        elif self.most and entry[:2] > self._held[0][:2]:
            heapq.heapreplace(self._held, entry)

    def texts(self, tokenizer: Any) -> list[dict[str, Any]]:
        """The worst first: margin, both scores, where the row stands, the prompt and both answers."""
        ordered = sorted(self._held, key=lambda entry: entry[:2], reverse=True)
        return [
            {
                "margin": -minus_margin,
                "chosen_score": scored.scores[better],
                "rejected_score": scored.scores[worse],
                "where": line.where,
                **_texts(line, better, worse, tokenizer),
            }
            for minus_margin, _, line, scored, better, worse in ordered
        ]


def _texts(line: Line, better: int, worse: int, tokenizer: Any) -> dict[str, str]:
    group = line.group
    assert group is not None  # it was scored
    if isinstance(group, TokenGroup):
        return texts_of(tokenizer, group, better, worse)
    chosen, rejected = group.conversations[better], group.conversations[worse]
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return {
        "prompt": _as_text(chosen[:shared]),
        "chosen": _as_text(chosen[shared:]),
        "rejected": _as_text(rejected[shared:]),
    }


def _as_text(messages: Conversation) -> str:
    """One answer is its content alone; of several messages each is named."""
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        return messages[0]["content"]
    return "\n\n".join(map(_named, messages))


def _named(message: Message) -> str:
    return f"{message['role']}: {message['content']}"
