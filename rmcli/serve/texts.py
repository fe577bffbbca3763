"""Rendered conversations as text or ids to tokens: they must begin and end as the model's own conversations do.

Clients render with a chat template of theirs and send what they have: with BOS or without, with the reward token,
the end of a turn, both or neither, padded. Whatever is missing at the ends and can only be one thing is added; what
can be several things is an error. So the score of a text is that of the conversation it renders, or there is none.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from rmcli.records import TokenGroup
from rmcli.scorer.tokens import complete
from rmcli.serve.turns import Turns, decoded
from rmcli.tokens.encode import Encoder

BOS_TWICE = "bos_twice"
NO_GENERATION_PROMPT = "no_generation_prompt"
AT_ONCE = 50_000  # characters that are tokenized in one call, which takes 100 bytes for each token


class Texts:
    """Texts and ids held against what the model's template writes."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reward = encoder.reward
        tokenizer: Any = self.reward.tokenizer
        self._bos, self._bos_id = str(tokenizer.bos_token or ""), tokenizer.bos_token_id
        self._turns, self._turns_of_ids = Turns.of_texts(encoder), Turns.of_ids(encoder)
        self._num_bos = _leading(self._turns.whole, self._bos)
        self._parts = encoder.control.parts_of(self._turns.ending)  # it is written up to one of these, or not at all
        self._pad = str(tokenizer.pad_token or "") if tokenizer.pad_token != self._bos else ""
        ends = {self._pad, str(tokenizer.eos_token or ""), *self._parts[:1]} - {"", self._bos}
        self._ends = [end for end in ends if encoder.control.first_in(end) == end]

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt was written by a chat template: it holds tokens that people do not type."""
        return self.encoder.control.first_in(prompt) is not None

    def rendered_prompt(self, prompt: str) -> str | None:
        """Why a rendered prompt cannot be answered: it does not end where a reply begins. None where it does."""
        return None if prompt.endswith(self._turns.begins) else NO_GENERATION_PROMPT

    def read(self, texts: Sequence[str], add_bos: bool = True, strip_padding: bool = False) -> list[TokenGroup | str]:
        """Per text its tokens up to the reward position, or why there are none.

        `add_bos`: BOS is put in front where the model's conversations begin with it and the text does not.
        `strip_padding`: pad and end tokens around the text are taken away first, as generation leaves them.
        """
        whole = [self._whole(text, add_bos, strip_padding) for text in texts]
        good = [text for text, fault in whole if fault is None]
        chunks = in_chunks(good, [len(text) for text in good])
        ids = (one for chunk in chunks for one in self.encoder.engine.encode(chunk))
        return [fault if fault is not None else self._finished(next(ids)) for _, fault in whole]

    def read_ids(self, ids: Sequence[Any]) -> list[TokenGroup | str]:
        """The same of token ids, to which nothing is added."""
        return [self._with_reply(self._checked(one)) for one in ids]

    def _whole(self, text: str, add_bos: bool, strip_padding: bool) -> tuple[str, str | None]:
        """The text with what it lacks at its ends, and what is wrong with it."""
        if len(text) > self.encoder.max_characters:
            return text, "too_long_text"
        if strip_padding:
            text = self.without_end(text.removeprefix(self._pad * _leading(text, self._pad)))
        if not text.strip():
            return text, "empty_conversation"
        found = _leading(text, self._bos)
        if found > max(self._num_bos, 1):
            return text, BOS_TWICE
        if add_bos and found < self._num_bos:
            text = self._bos * (self._num_bos - found) + text
        if self.reward.mode == "reserved":
            text = text.removesuffix(self.reward.reward_token)
            if self.reward.stands_in(text):
                return text, "reward_token_in_text"
        text += self._missing(text)
        return text, self._turns.fault(text)

    def _missing(self, text: str) -> str:
        """The part of the ending that the text has not written. It is looked for in whole tokens."""
        for count in range(len(self._parts), 0, -1):
            if text.endswith("".join(self._parts[:count])):
                return "".join(self._parts[count:])
        return self._turns.ending

    def without_end(self, text: str) -> str:
        """The text without the pad and end tokens, and the white space behind them, that generation leaves."""
        end = last = len(text)
        while self._ends and last:
            if text[last - 1].isspace():
                last -= 1
            elif (token := next((one for one in self._ends if text.endswith(one, 0, last)), None)) is not None:
                end = last = last - len(token)
            else:
                break
        return text[:end]

    def _finished(self, ids: Any) -> TokenGroup | str:
        finished = self.reward.finish(ids)
        return "no_end_of_turn" if finished is None else self._checked(finished)

    def _checked(self, ids: Any) -> TokenGroup | str:
        side = complete(self.encoder, ids)
        if isinstance(side, str):
            return side
        found, most = side.responses[0], max(self._num_bos, 1) + 1
        if self._bos_id is not None and len(found) >= most and (found[:most] == self._bos_id).all():
            return BOS_TWICE
        return side

    def _with_reply(self, side: TokenGroup | str) -> TokenGroup | str:
        if isinstance(side, str):
            return side
        return self._turns_of_ids.fault(decoded(self.encoder, side.responses[0])) or side


Item = TypeVar("Item")


def in_chunks(items: Sequence[Item], sizes: Sequence[int], most: int = AT_ONCE) -> Iterator[list[Item]]:
    """The items in order, so many at once that their sizes add up to no more than `most`; one at least."""
    chunk: list[Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if chunk and total + size > most:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def _leading(text: str, token: str) -> int:
    """How often the text begins with the token."""
    count = 0
    while token and text.startswith(token, count * len(token)):
        count += 1
    return count
