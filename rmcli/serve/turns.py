"""Where the reply of a rendered conversation begins, as the model's template begins one, and whether there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from rmcli.records import Conversation, Message
from rmcli.tokens.encode import Encoder

NOT_RENDERED = "not_rendered"  # no reply begins anywhere: no template, or that of another model
QUESTION, REPLY = "QuestionMark7", "ReplyMark7"  # plain words, which no template changes
_TALK = (Message(role="user", content=QUESTION), Message(role="assistant", content=REPLY))


@dataclass(frozen=True)
class Turns:
    """What the template writes around turns.

    `begins`: what stands in front of a reply, in a conversation and in a prompt that is to be answered. `goes_on`:
    what stands between a reply and the next question. `ending`: all after the last reply. `is_known`: whether a
    question and its reply stand in what the template writes; else who can tell where a reply ends.
    """

    encoder: Encoder
    whole: str
    begins: tuple[str, ...]
    goes_on: str
    ending: str
    is_known: bool

    @classmethod
    def of_texts(cls, encoder: Encoder) -> "Turns":
        """Of texts, without a reserved reward token."""
        token = encoder.reward.reward_token if encoder.reward.mode == "reserved" else ""
        return cls._of(encoder, str, lambda whole: whole.removesuffix(token))

    @classmethod
    def of_ids(cls, encoder: Encoder) -> "Turns":
        """Of what token ids decode to, up to the reward position."""

        def finished(whole: str) -> str:
            (ids,) = encoder.engine.encode([whole])
            up_to = encoder.reward.finish(ids)
            return decoded(encoder, ids if up_to is None else up_to)

        return cls._of(encoder, lambda text: decoded(encoder, encoder.engine.encode([text])[0]), finished)

    @classmethod
    def _of(cls, encoder: Encoder, passed: Callable[[str], str], finished: Callable[[str], str]) -> "Turns":
        """`passed`: what becomes of a rendered text on its way; `finished`: of one with its reply."""
        whole = finished(encoder.renderer.render(_TALK))
        asked = passed(_rendered(encoder, _TALK[:1], add_generation_prompt=True))
        twice = passed(_rendered(encoder, _TALK * 2))
        between, _, ending = whole.partition(QUESTION)[2].partition(REPLY)
        begins = tuple(one for one in (between, asked.partition(QUESTION)[2]) if one)
        goes_on = twice.partition(REPLY)[2].partition(QUESTION)[0]
        return cls(encoder, whole, begins, goes_on, ending, QUESTION in whole and REPLY in whole)

    def fault(self, text: str) -> str | None:
        """Why the text has no last reply that can be scored. None where it has."""
        if not self.is_known:
            return "template_error"
        marks = [mark for mark in self.begins if mark.strip()]  # white space alone begins nothing
        places = [at + len(mark) for mark in marks if (at := text.rfind(mark)) >= 0]
        if marks and not places:
            return NOT_RENDERED
        reply = text[max(places, default=0) :].removesuffix(self.ending)
        if not "".join(self._words(reply)).strip():
            return "empty_reply"
        return "no_assistant_reply" if self._has_turn(reply) else None

    def _words(self, text: str) -> list[str]:
        return [part for part in self.encoder.control.parts_of(text) if not self._is_control(part)]

    def _controls(self, text: str) -> list[str]:
        return [part for part in self.encoder.control.parts_of(text) if self._is_control(part)]

    def _is_control(self, part: str) -> bool:
        return self.encoder.control.first_in(part) == part

    def _has_turn(self, reply: str) -> bool:
        """Whether another turn begins in it, of whichever role: by its control tokens, or by the words of a template
        that has none."""
        found = self._controls(reply)
        wanted = [some for some in map(self._controls, (*self.begins, self.goes_on)) if some]
        if not wanted:
            return bool(self.goes_on.strip()) and self.goes_on in reply
        return any(some == found[at : at + len(some)] for some in wanted for at in range(len(found)))


def decoded(encoder: Encoder, ids: Any) -> str:
    """The text of ids, control tokens and all."""
    tokenizer: Any = encoder.reward.tokenizer
    text = tokenizer.decode([int(one) for one in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def _rendered(encoder: Encoder, talk: Conversation, **arguments: bool) -> str:
    """ "" where the template refuses it."""
    try:
        return encoder.renderer.render_in_full(talk, arguments)
    except TemplateError:
        return ""
