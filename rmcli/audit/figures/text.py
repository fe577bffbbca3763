"""Ids to text, and where a reply begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rmcli import output
from rmcli.config.sections import ModelSection
from rmcli.errors import RmcliError
from rmcli.tokens import chat_templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Text:
    """Ids to text. `header`: ids that the template writes before a reply; empty when it is not known."""

    tokenizer: "PreTrainedTokenizerBase | None"
    note: str
    header: np.ndarray

    @staticmethod
    def of(model: ModelSection, manifest: Mapping[str, Any]) -> "Text":
        from rmcli.tokens.tokenizer import load_tokenizer

        no_header = np.empty(0, dtype=np.int64)
        try:
            reward = load_tokenizer(model)
        except RmcliError as error:
            output.warn(f"excerpts are token ids: {error.message}")
            return Text(None, f"token ids: {error.message}", no_header)
        if reward.fingerprint()["tokenizer_sha256"] != manifest["tokenizer_sha256"]:
            note = "the tokenizer is not the one that prepared this folder"
            output.warn(f"excerpts are token ids: {note}")
            return Text(None, f"token ids: {note}", no_header)
        return Text.by(reward.tokenizer)

    @staticmethod
    def by(tokenizer: "PreTrainedTokenizerBase") -> "Text":
        return Text(tokenizer, "text", _reply_header(tokenizer))

    @property
    def reply_note(self) -> str:
        if len(self.header):
            return "from the last assistant header to the reward token"
        return "from the end of the shared prompt to the reward token"

    @property
    def neutral_conversation(self) -> str | None:
        """What the chat template makes of a few plain words; None where it cannot be known."""
        from jinja2.exceptions import TemplateError

        if self.tokenizer is None:
            return None
        talk = [{"role": "user", "content": "word"}, {"role": "assistant", "content": "word"}]
        try:
            return chat_templates.render(self.tokenizer, [*talk, *talk])
        except TemplateError:
            return None

    def whole(self, ids: np.ndarray) -> str:
        """All of the text, white space as it is and special tokens left out."""
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def ending(self, ids: np.ndarray) -> str:
        """A conversation's last tokens as they are, special ones and white space included."""
        return repr(self.tokenizer.decode(ids.tolist())) if self.tokenizer is not None else self.excerpt(ids)

    def excerpt(self, ids: np.ndarray) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, ids.tolist()))
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        return " ".join(text.split())


def _reply_header(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """Ids of the generation prompt, but for the white space at its end: that may merge with the reply's first word.

    Empty when the template writes nothing there, or refuses to.
    """
    from jinja2.exceptions import TemplateError

    messages = [{"role": "user", "content": "Hello"}]
    try:
        texts = [chat_templates.render(tokenizer, messages, add_generation_prompt=wanted) for wanted in (False, True)]
    except TemplateError:
        return np.empty(0, dtype=np.int64)
    # Cut from the whole rendered text: some tokenizers write the first word of a text in another way.
    without, whole = (tokenizer(str(text).rstrip(), add_special_tokens=False)["input_ids"] for text in texts)
    header = whole[len(without) :] if whole[: len(without)] == without else []
    return np.asarray(_printed(tokenizer, header), dtype=np.int64)


def _printed(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Without white space at the beginning, which the message before the header may end in."""
    while ids and not str(tokenizer.decode(ids[:1])).strip():
        ids = ids[1:]
    return ids
