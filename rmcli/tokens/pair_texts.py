"""A pair in tokens as text again."""

from typing import Any

from rmcli.records import TokenGroup
from rmcli.tokens.tokenizer import decoded


def texts_of(tokenizer: Any, group: TokenGroup, better: int, worse: int) -> dict[str, str]:
    """`prompt`, `chosen`, `rejected`, in the chat template's words; the prompt is what all answers begin with."""
    return {
        "prompt": decoded(tokenizer, group.prefix),
        "chosen": decoded(tokenizer, group.responses[better]),
        "rejected": decoded(tokenizer, group.responses[worse]),
    }
