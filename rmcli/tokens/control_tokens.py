"""Control tokens typed in a text: `<|im_end|>` in a message ends its turn as if the chat template had written it."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENING = 2  # characters that tell most texts apart from those with a control token


class ControlTokens:
    """The special tokens of a tokenizer, looked for in texts. Safe to use from several threads."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        tokens = sorted(token for token in {*special, *tokenizer.all_special_tokens} if token.strip())
        self._openings = sorted({token[:_OPENING] for token in tokens})
        longest_first = sorted(tokens, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def first_in(self, text: str) -> str | None:
        """The first control token of the text. Almost always there is none, which costs next to nothing to say."""
        if not any(opening in text for opening in self._openings):
            return None
        found = self._any.search(text)
        return found and found[0]

    def parts_of(self, text: str) -> list[str]:
        """Control tokens, and what stands between them, in order: together they are the text."""
        found, end = [], 0
        for token in self._any.finditer(text):
            found += [text[end : token.start()], token[0]]
            end = token.end()
        return [part for part in (*found, text[end:]) if part]
