"""`/score`: rmcli's own shape, in which one bad conversation is an error in its place."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rmcli.serve.protocols.protocol import Answer, Body, ListOf, Messages, Protocol, either
from rmcli.serve.reading import Asked, Reader

_EITHER = either(("conversations",), ("prompt", "responses"))


class ToScore(Body):
    """`conversations`, each as in Python (docs/python.md); or `responses` to one `prompt`, which is computed once."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_EITHER)

    conversations: Annotated[ListOf[Messages | dict[str, Any]], Field(min_length=1)] | None = None
    prompt: str | Messages | dict[str, Any] | None = None
    responses: Annotated[ListOf[str | Messages], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _either(self) -> "ToScore":
        if self.given not in ({"conversations"}, {"prompt", "responses"}):
            raise ValueError("give conversations alone, or prompt and responses")
        return self

    @property
    def num_items(self) -> int:
        return len(self.conversations or self.responses or ())


class OneScore(BaseModel):
    """Of `value` and `error` exactly one is null. `truncated`: tokens of the prompt were left out."""

    value: float | None
    truncated: bool
    error: str | None


class AllScores(BaseModel):
    """One entry per conversation, in order."""

    model: str
    scores: list[OneScore]


def _read(body: ToScore, reader: Reader) -> Asked:
    if body.conversations:
        return Asked(reader.conversations(body.conversations))
    return Asked(reader.answers(body.prompt, body.responses or ()))


def _write(body: ToScore, answer: Answer) -> dict[str, Any]:
    scores = [
        {"value": value, "truncated": score.truncated, "error": score.error}
        for value, score in zip(answer.values, answer.scores, strict=True)
    ]
    return {"model": answer.served.name, "scores": scores}


SCORE = Protocol(
    "/score",
    "Scores of conversations, or of responses to one prompt",
    ToScore,
    AllScores,
    {
        "conversations": {
            "conversations": [
                [{"role": "user", "content": "Sort: 3 1 2"}, {"role": "assistant", "content": "1 2 3"}],
                {"prompt": "Sort: 3 1 2", "response": "3 2 1"},
            ]
        },
        "responses": {"prompt": "Sort: 3 1 2", "responses": ["1 2 3", "3 2 1"]},
    },
    _read,
    _write,
    tells_errors=True,
)
