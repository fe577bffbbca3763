"""LLaMA-Factory's `/v1/score/evaluation`: `messages` are whole conversations as text.

Shapes: `ScoreEvaluationRequest` and `ScoreEvaluationResponse` in `src/llamafactory/api/protocol.py` of LLaMA-Factory,
commit 4f2176f, read on 2026-11-26. Its own server cuts a text at `max_length` from the right, the reward token first.
"""

from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field

from rmcli.records import TokenGroup
from rmcli.serve.protocols.protocol import Answer, Body, ListOf, Protocol
from rmcli.serve.reading import Asked, Reader, Side


class Evaluation(Body):
    """`model` is not looked at and comes back. A text of more than `max_length` tokens is an error, never cut."""

    model: str | None = None
    messages: ListOf[str] = Field(min_length=1)
    max_length: int | None = Field(default=None, ge=1)

    @property
    def num_items(self) -> int:
        return len(self.messages)


class Scores(BaseModel):
    id: str
    object: str = "score.evaluation"
    model: str
    scores: list[float]


def _read(body: Evaluation, reader: Reader) -> Asked:
    sides = reader.texts.read(body.messages)
    return Asked([_within(side, body.max_length) for side in sides])


def _within(side: Side, max_length: int | None) -> Side:
    return "overlong" if isinstance(side, TokenGroup) and side.num_tokens > (max_length or side.num_tokens) else side


def _write(body: Evaluation, answer: Answer) -> dict[str, Any]:
    name = body.model if body.model is not None else answer.served.name
    return {"id": f"scoreval-{uuid4().hex}", "object": "score.evaluation", "model": name, "scores": answer.values}


EVALUATION = Protocol(
    "/v1/score/evaluation",
    "LLaMA-Factory: scores of rendered texts",
    Evaluation,
    Scores,
    {
        "one text": {
            "model": "reward",
            "messages": ["<|im_start|>user\nSort: 3 1 2<|im_end|>\n<|im_start|>assistant\n1 2 3<|im_end|>\n"],
        }
    },
    _read,
    _write,
)
