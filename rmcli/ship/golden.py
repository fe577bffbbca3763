"""golden.jsonl: conversations, the ids training would use of them, and their float32 scores."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from rmcli.model import forward
from rmcli.model.batch import build_batch
from rmcli.records import Conversation, Message, PreferenceGroup, as_dicts
from rmcli.tokens.encode import Encoder

FILE = "golden.jsonl"
MAX_LENGTH = 1024  # tokens of a conversation: the file is scored on a CPU, by models of any size
HELD_OUT = 8  # conversations of the run's own, at most

_LONG = "A reward model reads a whole conversation and gives one number. " * 6
_TALKS = (
    ("What is 2 + 2?", "4"),
    ("What is 2 + 2?", "It is 5, as everybody knows."),
    ("Hello", "Hi! What can I do?", "Sort these: 3 1 2", "1 2 3"),
    (" Grüße,\n\n世界?\t", "Ärger: zwölf\n- <b>eins</b>\n- 🙂 \n"),
    ("def f(x):\n    return x", "    return x ** 2  # squared"),
    ("Explain it at length.", _LONG),
)


class Golden(TypedDict):
    """A line of the file. `text` is the conversation as the folder's template writes it."""

    messages: list[dict[str, Any]]
    text: str
    input_ids: list[int]
    score: float


def conversations() -> list[Conversation]:
    """The fixed ones: short and long, of several turns, with a system message, outside ASCII, good and bad."""
    fixed = [_talk(*texts) for texts in _TALKS]
    return [*fixed, (Message(role="system", content="Be brief."), *_talk("The capital of France?", "Paris"))]


def held_out(data_folder: Path | None, tokens: Iterable[str]) -> list[Conversation]:
    """The first few that the run was evaluated on; none where its data is not at hand.

    Conversations with more than roles and texts, or with any of these tokens in a text, are passed over: what they
    become depends on how the data was prepared.
    """
    path = data_folder / "eval.jsonl" if data_folder is not None else None
    if path is None or not path.is_file():
        return []
    found: list[Conversation] = []
    tokens = tuple(tokens)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            sides = [row[key] for key in ("chosen", "rejected") if isinstance(row.get(key), list)]
            found += [(*row["prompt"], *side) for side in sides if _is_plain(row, side, tokens)]
            if len(found) >= HELD_OUT:
                break
    return found[:HELD_OUT]


@torch.no_grad()
def score(network: Any, encoder: Encoder, template: str, talks: Sequence[Conversation]) -> list[Golden]:
    """Each conversation that the template takes, as training encodes it, with its score by this float32 network."""
    found: list[Golden] = []
    encoded = encoder.encode([PreferenceGroup((talk,)) for talk in talks])
    for talk, group in zip(talks, encoded, strict=True):
        if isinstance(group, str):  # no system message in this template, say
            continue
        batch = build_batch("padded", [group], encoder.reward.pad_token_id, network.device)
        (value,) = forward.scores(network, batch, "float32").tolist()
        messages = as_dicts(talk)
        text = encoder.reward.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        found.append(Golden(messages=messages, text=str(text), input_ids=group.responses[0].tolist(), score=value))
    return found


def write(folder: Path, lines: Sequence[Golden]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    (folder / FILE).write_text(text, encoding="utf-8")


def _talk(*texts: str) -> Conversation:
    return tuple(
        Message(role="assistant" if number % 2 else "user", content=text) for number, text in enumerate(texts)
    )


def _is_plain(row: dict[str, Any], side: list[dict[str, Any]], tokens: Sequence[str]) -> bool:
    if not isinstance(row.get("prompt"), list) or row.keys() & {"tools", "chat_template_kwargs"}:
        return False
    messages = [*row["prompt"], *side]
    return all(
        message.keys() == {"role", "content"} and not any(token in message["content"] for token in tokens)
        for message in messages
    )
