"""Changes of an answer's form that leave what it says: a score that rises with them looks at form."""

import re
from collections.abc import Callable, Mapping

OPENING = "Thank you for your question! I'm happy to help. "
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def bold(answer: str) -> str:
    """The first sentence in bold."""
    first, *rest = _SENTENCE.split(answer.strip(), maxsplit=1)
    return " ".join([f"**{first}**", *rest])


def as_list(answer: str) -> str:
    """Each sentence as an item of a list; an answer of one sentence, or with lines of its own, stays as it is."""
    sentences = _SENTENCE.split(answer.strip())
    if len(sentences) < 2 or "\n" in answer.strip():
        return answer
    return "\n".join(f"- {sentence}" for sentence in sentences)


def polite(answer: str) -> str:
    """A polite opening before it."""
    return OPENING + answer


def doubled(answer: str) -> str:
    """The same text twice."""
    return f"{answer}\n\n{answer}"


EDITS: Mapping[str, Callable[[str], str]] = {
    "bold": bold,
    "list": as_list,
    "polite opening": polite,
    "doubled text": doubled,
}
