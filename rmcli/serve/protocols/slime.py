"""slime's remote reward model: one sample, answered with one number.

Shapes: `remote_rm` in `slime/rollout/rm_hub/__init__.py` of slime, commit 0b420f1, read on 2026-11-26: what comes
back is the sample's reward itself. A prompt is text, which its `--apply-chat-template` has rendered, or messages.
"""

from typing import Any

from pydantic import Field

from rmcli.serve.protocols.protocol import Answer, Body, Messages, Protocol
from rmcli.serve.reading import Asked, Reader


class Sample(Body):
    """`prompt`: a question, messages, or a text that a chat template has rendered. `label` is not read.

    What generation leaves behind a `response`, its end of turn and padding, is no part of the reply.
    """

    prompt: str | Messages
    response: str
    label: Any = Field(default=None)

    @property
    def num_items(self) -> int:
        return 1


def _read(body: Sample, reader: Reader) -> Asked:
    prompt, response = body.prompt, reader.texts.without_end(body.response)
    if not isinstance(prompt, str) or not reader.texts.is_rendered(prompt):
        return Asked(reader.answers(prompt, [response]))
    fault = reader.texts.rendered_prompt(prompt)
    return Asked([fault] if fault else reader.texts.read([prompt + response]))


def _write(body: Sample, answer: Answer) -> Any:
    return answer.values[0]


SLIME = Protocol(
    "/slime",
    "slime: the reward of one sample, a bare number",
    Sample,
    float,
    {"a question": {"prompt": "Sort: 3 1 2", "response": "1 2 3", "label": None}},
    _read,
    _write,
)
