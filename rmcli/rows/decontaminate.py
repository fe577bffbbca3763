"""Prepared rows that an evaluation file also holds: found by their prompts, so that they can be left out.

A row overlaps when the user's words in its prompt are those of an evaluation prompt, or share 13 words in a row with
one. Words are lower-case, without punctuation, split at white space, as in GPT-3's test of its training data (arXiv
2005.14165, appendix C). Where GPT-3 cut a window around a match out of long documents we leave the row out: a prompt
has no other half to keep. Like GPT-3 we pass over stock phrases: 13 words that stand in more than ten evaluation
prompts are an instruction template, not a question.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.records import Conversation, RawRow

GRAM = 13  # words in a row
STOCK_PHRASE = 10  # a gram in more evaluation prompts than this is a template

TEXT_FIELDS = ("prompt", "question", "instruction", "history", "query", "context", "problem", "input")
MESSAGE_FIELDS = ("prompt", "messages", "conversations", "context", "input")
ANSWER_FIELDS = ("chosen", "rejected")  # whole conversations, where the prompt has no field of its own
_TURN = re.compile(r"\n\n(Human|Assistant):")  # transcripts: Anthropic/hh-rlhf, Nectar
_USER = frozenset({"user", "human"})


@dataclass(frozen=True)
class EvaluationPrompts:
    """What the evaluation files ask. `texts` and `grams` are 8-byte digests, so that a large file stays small."""

    texts: frozenset[bytes]
    grams: frozenset[bytes]

    def overlap(self, prompt: Conversation) -> bool:
        """Whether the user's messages of this prompt are in an evaluation file; the other roles' are not looked at:
        a system prompt is shared by many.
        """
        messages = [words(message["content"]) for message in prompt if message["role"] == "user"]
        if not any(messages):
            return False
        return _digest(_joined(messages)) in self.texts or any(
            gram in self.grams for message in messages for gram in _grams(message)
        )


def read_prompts(
    files: Mapping[str, Iterable[RawRow]],
    read_prompt: Callable[[Mapping[str, Any]], Conversation | None] = lambda _: None,
) -> EvaluationPrompts:
    """The prompts of evaluation files, given as name -> rows in any schema that names its fields as usual.

    `read_prompt` knows further schemas; None is for a row that it does not know.

    Rows without a prompt cannot be compared, which is said. Raises RmcliError for a file in which no row has one.
    """
    texts: set[bytes] = set()
    counts: Counter[bytes] = Counter()
    for name, rows in files.items():
        without: list[int] = []
        num_rows = 0
        for row in rows:
            num_rows += 1
            prompts = [] if row.value is None else list(prompts_of(row.value))
            known = None if row.value is None else read_prompt(row.value)
            if known is not None:
                prompts.append(_user_messages(known))
                prompts = [prompt for prompt in prompts if any(prompt)]
            if not prompts:
                without.append(row.line)
            for prompt in prompts:
                text = _digest(_joined(prompt))
                if text not in texts:  # many rows about one prompt make no template of it
                    texts.add(text)
                    counts.update({gram for message in prompt for gram in _grams(message)})
        if len(without) == num_rows:
            raise RmcliError(
                f"evaluation file {name}: no prompt in any of its {num_rows} rows",
                f"a prompt is text in {', '.join(TEXT_FIELDS)} or messages in "
                f"{', '.join((*MESSAGE_FIELDS, *ANSWER_FIELDS))}",
            )
        if without:
            output.warn(
                f"evaluation file {name}: {len(without)} of {num_rows} rows have no prompt to compare, "
                f"the first in line {without[0]}"
            )
    return EvaluationPrompts(
        frozenset(texts), frozenset(gram for gram, count in counts.items() if count <= STOCK_PHRASE)
    )


def prompts_of(row: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    """The prompts a row may hold, each as the words of its user messages.

    `chosen` and `rejected` are read only where no other field has the prompt. An `input` beside an `instruction`
    belongs to it.
    """
    texts = {field: value for field in TEXT_FIELDS if isinstance(value := row.get(field), str)}
    if "instruction" in texts and "input" in texts:
        texts["instruction"] += "\n" + texts.pop("input")
    found = [_user_turns(text) for text in texts.values()]
    found += [_user_messages(row.get(field)) for field in MESSAGE_FIELDS]
    if not any(any(prompt) for prompt in found):
        answers = [row.get(field) for field in ANSWER_FIELDS]
        found += [_user_messages(answer) for answer in answers]
        found += [_user_turns(answer) for answer in answers if isinstance(answer, str) and _TURN.match(answer)]
    yield from (prompt for prompt in found if any(prompt))


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and symbols; compatible forms of a character (full width) are one."""
    plain = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[^\w\s]|_", " ", plain).split()


def _user_messages(value: Any) -> list[list[str]]:
    """The words of each user message in a list of {role, content}, or of ShareGPT's {from, value}."""
    messages = [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []
    return [
        words(str(item.get("content", item.get("value", ""))))
        for item in messages
        if item.get("role", item.get("from")) in _USER
    ]


def _user_turns(text: str) -> list[list[str]]:
    """The user's turns of a transcript; any other text is one turn."""
    before, *rest = _TURN.split(text)
    if before.strip() or not rest:
        return [words(text)]
    return [words(said) for role, said in zip(rest[::2], rest[1::2], strict=True) if role == "Human"]


def _joined(messages: list[list[str]]) -> str:
    return " ".join(word for message in messages for word in message)


def _grams(message: list[str]) -> Iterator[bytes]:
    return (_digest(" ".join(message[at : at + GRAM])) for at in range(len(message) - GRAM + 1))


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8"), digest_size=8).digest()
