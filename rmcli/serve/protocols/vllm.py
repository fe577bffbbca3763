"""vLLM's `/classify` and `/pooling`: texts, token ids or one conversation in `messages`.

Shapes: `vllm/entrypoints/pooling/{base,classify,pooling}/protocol.py` of vLLM, commits 020638a, dff4cad and 01cfbaf,
read on 2026-11-26. `activation` is the older name of `use_activation`; the removed `normalize` is refused there too.
Fields that ask for what this server does not do are read, and refused unless they ask for nothing.
"""

from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from rmcli.serve.protocols.protocol import NULL, Answer, Body, Messages, Protocol, either
from rmcli.serve.reading import Asked, Reader, Side

_EITHER = either(("input",), ("messages",))
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
        NULL,
    ]
}


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _checked_input(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        first = value[0]
        alike = _is_id if _is_id(first) else (lambda one: isinstance(one, type(first)))
        if (isinstance(first, str | list) or _is_id(first)) and all(map(alike, value)):
            return value
    raise ValueError("input is a text, a list of texts, a list of token ids, or a list of such lists")


def _not_asked(value: bool) -> bool:
    if value:
        raise ValueError("true is not done here: a reply is scored as it is, and none is generated")
    return value


_NotDone = Annotated[bool, AfterValidator(_not_asked), WithJsonSchema({"type": "boolean", "const": False})]


class Pooled(Body):
    """One of `input` and `messages`. `model`, `user`, `request_id`, `priority` and `cache_salt` change nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_EITHER)

    input: Annotated[Any, AfterValidator(_checked_input), WithJsonSchema(_INPUT)] = None
    messages: Annotated[Messages, Field(min_length=1)] | None = None
    activation: bool | None = None
    use_activation: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    user: str | None = None
    request_id: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    task: Literal["classify"] | None = None
    encoding_format: Literal["float"] | None = None
    padding: Literal["do_not_pad"] | None = None
    add_generation_prompt: _NotDone | None = None
    continue_final_message: _NotDone | None = None
    truncate_prompt_tokens: None = None
    truncation_side: None = None
    dimensions: None = None
    chat_template: None = None
    mm_processor_kwargs: None = None
    media_io_kwargs: None = None

    @model_validator(mode="after")
    def _settled(self) -> "Pooled":
        if len(self.given & {"input", "messages"}) != 1:
            raise ValueError("give one of input and messages")
        if None not in (self.activation, self.use_activation) and self.activation != self.use_activation:
            raise ValueError("activation and use_activation are two names of one thing, and differ")
        if self.chat_template_kwargs and not self.messages:
            raise ValueError("chat_template_kwargs is for messages: input is rendered already")
        return self

    @property
    def num_items(self) -> int:
        return len(self.input) if isinstance(self.input, list) and not _is_id(self.input[0]) else 1


class Classified(BaseModel):
    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class Classification(BaseModel):
    """`probs` holds the score: raw, unless an activation was asked for and the model has one."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class PooledOne(BaseModel):
    index: int
    object: str = "pooling"
    data: list[float]


class Pooling(BaseModel):
    """`data` of each entry holds the score."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[PooledOne]
    usage: Usage


def _read(body: Pooled, reader: Reader) -> Asked:
    return Asked(_sides(body, reader), activation=bool(body.activation or body.use_activation))


def _sides(body: Pooled, reader: Reader) -> list[Side]:
    """`add_special_tokens` adds what the model's conversations have: to messages the template has written it."""
    if body.messages:
        return reader.conversations(
            [{"messages": body.messages, "chat_template_kwargs": body.chat_template_kwargs or {}}]
        )
    inputs: list[Any] = body.input if isinstance(body.input, list) and not _is_id(body.input[0]) else [body.input]
    if isinstance(inputs[0], str):
        return reader.texts.read(inputs, add_bos=body.add_special_tokens is not False)
    return reader.texts.read_ids(inputs)


def _around(answer: Answer, prefix: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    count = answer.num_tokens
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
    head = {"id": f"{prefix}-{uuid4().hex}", "object": "list", "created": int(time())}
    return {**head, "model": answer.served.name, "data": data, "usage": usage}


def _write_classes(body: Pooled, answer: Answer) -> dict[str, Any]:
    label = answer.served.label
    entries = enumerate(answer.values)
    data = [{"index": index, "label": label, "probs": [value], "num_classes": 1} for index, value in entries]
    return _around(answer, "classify", data)


def _write_pooling(body: Pooled, answer: Answer) -> dict[str, Any]:
    data = [{"index": index, "object": "pooling", "data": [value]} for index, value in enumerate(answer.values)]
    return _around(answer, "pool", data)


HINTS = {
    "normalize": "it was removed from vLLM; use_activation is its name, and false gives the raw score",
    "softmax": "it was removed from vLLM; use_activation is its name, and false gives the raw score",
}
_EXAMPLES = {
    "messages": {
        "messages": [{"role": "user", "content": "Sort: 3 1 2"}, {"role": "assistant", "content": "1 2 3"}],
        "use_activation": False,
    },
    "text": {"input": "<|im_start|>user\nSort: 3 1 2<|im_end|>\n<|im_start|>assistant\n1 2 3<|im_end|>\n"},
}
CLASSIFY = Protocol("/classify", "vLLM: scores as probs", Pooled, Classification, _EXAMPLES, _read, _write_classes)
POOLING = Protocol("/pooling", "vLLM: scores as data", Pooled, Pooling, _EXAMPLES, _read, _write_pooling)
