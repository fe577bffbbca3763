"""golden.jsonl: conversations, the ids training would use of them, and their float32 scores."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from rmcli.errors import RmcliError
from rmcli.model import forward
from rmcli.model.batch import build_batch
from rmcli.model.hashes import HASHES_FILE
from rmcli.records import Conversation, Message, PreferenceGroup, as_dicts
from rmcli.tokens.encode import Encoder

FILE = "golden.jsonl"
MAX_LENGTH = 1024  # tokens of a conversation: the file is scored on a CPU, by models of any size
_LARGEST = 3.5e38  # past what float32 holds
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


def read(folder: Path) -> list[Golden]:
    """The lines of golden.jsonl. Raises RmcliError where there are none, or they cannot be read."""
    path = folder / FILE
    if not path.is_file():
        raise RmcliError(
            f"{folder} has no {FILE}: there is nothing to hold its scores against",
            "give a folder that rmcli train or rmcli export has written",
        )
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not lines or not all(_is_golden(line) for line in lines):
            raise ValueError(f"each line needs {', '.join(Golden.__annotations__)}, the score a finite number")
        json.dumps(lines, ensure_ascii=False).encode()  # half a character is no text
    except (ValueError, RecursionError) as error:
        raise RmcliError(
            f"{path} cannot be read: {error}", f"{HASHES_FILE} tells which files were changed"
        ) from error
    return lines


def _is_golden(line: Any) -> bool:
    """Whether a line is of the form of `Golden`. NaN would be no further from any score than another."""
    if not isinstance(line, dict) or not Golden.__annotations__.keys() <= line.keys():
        return False
    messages, ids = line["messages"], line["input_ids"]
    return (
        isinstance(messages, list)
        and all(isinstance(message, dict) for message in messages)
        and isinstance(line["text"], str)
        and isinstance(ids, list)
        and all(type(one) is int for one in ids)
        and type(line["score"]) in (int, float)
        and abs(line["score"]) < _LARGEST
    )
