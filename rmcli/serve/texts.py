"""Rendered conversations as text or ids to tokens: they must begin and end as the model's own conversations do.

Clients render with a chat template of theirs and send what they have: with BOS or without, with the reward token,
the end of a turn, both or neither, padded. Whatever is missing at the ends and can only be one thing is added; what
can be several things is an error. So the score of a text is that of the conversation it renders, or there is none.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from jinja2 import TemplateError

from rmcli.records import Message, TokenGroup
from rmcli.scorer.tokens import complete
from rmcli.tokens.encode import Encoder

BOS_TWICE = "bos_twice"
NOT_RENDERED = "not_rendered"  # the tokens in front of a reply are missing: no template, or that of another model
NO_GENERATION_PROMPT = "no_generation_prompt"
AT_ONCE = 50_000  # characters that are tokenized in one call, which takes 100 bytes for each token
_QUESTION, _REPLY = "QuestionMark7", "ReplyMark7"  # plain words, which no template changes


class Texts:
    """What the model's template writes around a question and its reply, and texts held against it.

    `between`: from the question's end to the reply's begin; `ending`: all after the reply, without a reserved reward
    token.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reward = encoder.reward
        tokenizer: Any = self.reward.tokenizer
        self._bos, self._bos_id = str(tokenizer.bos_token or ""), tokenizer.bos_token_id
        talk = (Message(role="user", content=_QUESTION), Message(role="assistant", content=_REPLY))
        rendered = encoder.renderer.render(talk)
        self._num_bos = _leading(rendered, self._bos)
        self.between = rendered.partition(_QUESTION)[2].partition(_REPLY)[0]
        self._asks = self._generation_prompt()
        self._is_known = _QUESTION in rendered and _REPLY in rendered  # else who can tell where a reply ends
        self.ending = rendered.partition(_REPLY)[2]
        if self.reward.mode == "reserved":
            self.ending = self.ending.removesuffix(self.reward.reward_token)
        self._parts = _parts(self.ending, encoder)
        self._turn, self._num_ending = self._control_ids()

    def _generation_prompt(self) -> str:
        """What the template writes after a question that is to be answered; "" where it refuses one."""
        tokenizer: Any = self.reward.tokenizer
        question = [{"role": "user", "content": _QUESTION}]
        try:
            rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            return ""
        return rendered.partition(_QUESTION)[2]

    def _control_ids(self) -> tuple[list[int], int]:
        """Control tokens between a question and its reply, in order; and how many of these the ending has."""
        common = set(_parts(self._asks, self.encoder))
        tokens = [part for part in _parts(self.between, self.encoder) if part in common]
        tokens = [token for token in tokens if self.encoder.control.first_in(token) == token]
        turn = [int(index) for ids in self.encoder.engine.encode(tokens) for index in ids]
        (ending,) = self.encoder.engine.encode([self.ending])
        finished = self.reward.finish(ending) if self.reward.mode == "natural" else ending
        return turn, sum(int(index) in turn for index in ([] if finished is None else finished))

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt was written by a chat template: it holds tokens that people do not type."""
        return self.encoder.control.first_in(prompt) is not None

    def rendered_prompt(self, prompt: str) -> str | None:
        """Why a rendered prompt cannot be answered: it does not end where a reply begins. None where it does."""
        ends = {end for end in (self.between, self._asks) if end}
        return None if any(map(prompt.endswith, ends)) else NO_GENERATION_PROMPT

    def read(self, texts: Sequence[str], add_bos: bool = True, strip_padding: bool = False) -> list[TokenGroup | str]:
        """Per text its tokens up to the reward position, or why there are none.

        `add_bos`: BOS is put in front where the model's conversations begin with it and the text does not.
        `strip_padding`: pad and end tokens around the text are taken away first, as generation leaves them.
        """
        whole = [self._whole(self.stripped(text) if strip_padding else text, add_bos) for text in texts]
        good = [text for text, fault in whole if fault is None]
        chunks = in_chunks(good, [len(text) for text in good])
        ids = (one for chunk in chunks for one in self.encoder.engine.encode(chunk))
        return [fault if fault is not None else self._finished(next(ids)) for _, fault in whole]

    def read_ids(self, ids: Sequence[Any]) -> list[TokenGroup | str]:
        """The same of token ids, to which nothing is added."""
        return [self._checked(one) for one in ids]

    def _whole(self, text: str, add_bos: bool) -> tuple[str, str | None]:
        """The text with what it lacks at its ends, and what is wrong with it."""
        if not self._is_known:
            return text, "template_error"
        if not text.strip():
            return text, "empty_conversation"
        if len(text) > self.encoder.max_characters:
            return text, "too_long_text"
        found = _leading(text, self._bos)
        if found > max(self._num_bos, 1):
            return text, BOS_TWICE
        if add_bos and found < self._num_bos:
            text = self._bos * (self._num_bos - found) + text
        if self.reward.mode == "reserved":
            text = text.removesuffix(self.reward.reward_token)
            if self.reward.stands_in(text):
                return text, "reward_token_in_text"
        return text + self._missing(text), None

    def _missing(self, text: str) -> str:
        """The part of the ending that the text has not written. It is looked for in whole tokens."""
        for count in range(len(self._parts), 0, -1):
            if text.endswith("".join(self._parts[:count])):
                return "".join(self._parts[count:])
        return self.ending

    def stripped(self, text: str) -> str:
        """Without pad tokens around it, and without ends of a turn or of a text after it."""
        tokenizer: Any = self.reward.tokenizer
        pad = str(tokenizer.pad_token or "")
        while pad and pad != self._bos and text.startswith(pad):
            text = text.removeprefix(pad)
        ends = {pad, str(tokenizer.eos_token or ""), *self._parts[:1]} - {"", self._bos}
        ends = {end for end in ends if self.encoder.control.first_in(end) == end}
        while ends and text.endswith(tuple(ends)):
            for end in ends:
                text = text.removesuffix(end)
        return text

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
        return side if self._has_turn(found) else NOT_RENDERED

    def _has_turn(self, ids: Any) -> bool:
        """Whether a reply begins somewhere in front of the ending, as the template begins one."""
        control = ids[np.isin(ids, self._turn)].tolist()
        control = control[: len(control) - self._num_ending]
        length = len(self._turn)
        return any(control[at : at + length] == self._turn for at in range(len(control) - length + 1))


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


def _parts(text: str, encoder: Encoder) -> list[str]:
    """Control tokens, and what stands between them: an ending is written up to one of these, or not at all."""
    parts: list[str] = []
    while (token := encoder.control.first_in(text)) is not None:
        before, _, text = text.partition(token)
        parts += [part for part in (before, token) if part]
    return parts + [text] * bool(text)
