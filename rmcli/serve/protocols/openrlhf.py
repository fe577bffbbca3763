"""OpenRLHF's `/get_reward`: whole conversations as text, with the policy's special tokens in it.

Shapes: `openrlhf/cli/serve_rm.py` and `openrlhf/utils/remote_rm_utils.py` of OpenRLHF, commits 58ec6ff and 07c34b3,
read on 2026-11-26. Its own server reads the last token of the text, whatever that is.
"""

from typing import Any

from pydantic import BaseModel, Field

from rmcli.serve.protocols.protocol import Answer, Body, ListOf, Protocol
from rmcli.serve.reading import Asked, Reader


class Query(Body):
    """`query`: prompts with their answers, rendered. `prompts` and `labels` are not read: they say nothing more."""

    query: ListOf[str] = Field(min_length=1)
    prompts: list[Any] | None = None
    labels: list[Any] | None = None

    @property
    def num_items(self) -> int:
        return len(self.query)


class Rewards(BaseModel):
    """`rewards` and `scores` are the same numbers: older clients read the one, newer ones both."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def _read(body: Query, reader: Reader) -> Asked:
    return Asked(reader.texts.read(body.query, strip_padding=True))


def _write(body: Query, answer: Answer) -> dict[str, Any]:
    return {"rewards": answer.values, "scores": answer.values, "extra_logs": {}}


GET_REWARD = Protocol(
    "/get_reward",
    "OpenRLHF: rewards of rendered texts",
    Query,
    Rewards,
    {"one text": {"query": ["<|im_start|>user\nSort: 3 1 2<|im_end|>\n<|im_start|>assistant\n1 2 3<|im_end|>\n"]}},
    _read,
    _write,
)
