"""Chat templates: a few built in, for tokenizers that have none, and what a tokenizer's own template does.

`describe` renders a probe conversation and names what surprises people: a default system prompt, think blocks, an
assistant header after a finished conversation, BOS written by the template and by the tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli.errors import ConfigError
from rmcli.plugins import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_PLAIN = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
# chatml needs <|im_start|> and <|im_end|> in the vocabulary, llama3 its header tokens; plain needs no special token.
BUILT_IN = {"chatml": _CHATML, "llama3": _LLAMA3, "plain": _PLAIN}
HINT = f"give one: --chat-template FILE, or a built-in one: {', '.join(BUILT_IN)}"
_NEEDS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}


def load(name_or_path: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template of that built-in name, or the text of that file (a .json file's "chat_template").

    Raises ConfigError for what is neither, and for a built-in whose special tokens the tokenizer lacks.
    """
    if name_or_path in BUILT_IN:
        lacking = [token for token in _NEEDS.get(name_or_path, ()) if token not in tokenizer.get_vocab()]
        if lacking:
            raise ConfigError(
                f"model.chat_template = {name_or_path!r} needs {', '.join(lacking)}, which "
                f"{tokenizer.name_or_path} lacks",
                "the built-in template plain needs no special token",
            )
        return BUILT_IN[name_or_path]
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"model.chat_template = {name_or_path!r} is no file and no built-in template",
            did_you_mean(name_or_path, BUILT_IN),
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            text = json.loads(text)["chat_template"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.chat_template {path} cannot be read: {error!r}") from error
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"model.chat_template {path} holds no template text")
    return text


# What Python raises for a template's own fault: 1 / 0, a name that is none, an include, a macro without end.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], **arguments: Any) -> str:
    """What `apply_chat_template` writes for a conversation.

    Raises jinja2's TemplateError whatever the template runs into.
    """
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)  # type: ignore[arg-type]
    except _FAULTS as error:
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    assert isinstance(text, str)
    return text


def check(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ConfigError for a template that tells no reply from another: all scores would be one.

    A template that refuses these plain conversations may take others.
    """
    from jinja2.exceptions import TemplateError

    question = {"role": "user", "content": "Wxq one"}
    replies = ("Wxq two", "Wxq three")
    try:
        one, other = (render(tokenizer, [question, {"role": "assistant", "content": reply}]) for reply in replies)
    except TemplateError:
        return
    if one == other:
        what = "renders every reply alike" if one.strip() else "renders nothing"
        raise ConfigError(f"the chat template of {tokenizer.name_or_path} {what}: all scores would be the same", HINT)


@dataclass(frozen=True)
class Description:
    """What a template adds to the messages' own text. `notes`: one line per surprise, for a person."""

    default_system_prompt: str | None
    think_block: bool
    generation_tail: str | None
    double_bos: bool
    drops_system: bool
    writes_date: bool
    strips_reasoning: bool

    @property
    def notes(self) -> list[str]:
        lines = []
        if self.default_system_prompt is not None:
            lines.append(f"adds a system prompt of its own when there is none: {self.default_system_prompt!r}")
        if self.think_block:
            lines.append("writes a think block into the last reply")
        if self.generation_tail is not None:
            lines.append(f"ends a finished conversation with an assistant header: {self.generation_tail!r}")
        if self.double_bos:
            lines.append("writes BOS, and so would the tokenizer: it is added once, by the template")
        if self.drops_system:
            lines.append("leaves system messages out, or refuses them")
        if self.writes_date:
            lines.append("writes today's date: the same conversation has other tokens on another day")
        if self.strips_reasoning:
            lines.append("leaves reasoning (<think> ... </think>) out of the reply that is scored")
        return lines


def describe(tokenizer: "PreTrainedTokenizerBase") -> Description:
    """Render probes with the tokenizer's chat template and compare. The tokenizer must have one."""
    user, reply, system = "Wxq one", "Wxq two", "Wxq three"
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    text = _render(tokenizer, turns)
    longer = _render(tokenizer, [*turns, *turns])
    with_system = _render(tokenizer, [{"role": "system", "content": system}, *turns])
    before_user, before_reply, tail = "", "", ""
    if user in text and reply in text.partition(user)[2]:
        before_user, _, rest = text.partition(user)
        before_reply = rest.partition(reply)[0]
        tail = text.rpartition(reply)[2]
    last_turn = longer.rpartition(user)[2] if user in longer else ""
    return Description(
        default_system_prompt=_default_system(tokenizer, before_user),
        think_block="think>" in before_reply or "think>" in last_turn,
        generation_tail=_generation_tail(tail, before_reply),
        double_bos=_doubles_bos(tokenizer, text),
        drops_system=system not in with_system,
        writes_date="strftime_now" in str(tokenizer.chat_template),
        strips_reasoning=_strips_reasoning(tokenizer, user, reply),
    )


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> str:
    """The text, or nothing where the template refuses it."""
    from jinja2.exceptions import TemplateError

    try:
        return render(tokenizer, messages)
    except TemplateError:
        return ""


def _default_system(tokenizer: Any, before_user: str) -> str | None:
    """The words before the first user turn that are neither special tokens nor role names."""
    rest = before_user
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        rest = rest.replace(token, "\n")
    roles = {"system", "user", "human", "assistant", "###", "[inst]", "### user:"}
    lines = [line.strip() for line in rest.splitlines()]
    words = [line for line in lines if line and line.lower().rstrip(":") not in roles]
    return " ".join(words) if sum(map(len, words)) > 12 else None


def _strips_reasoning(tokenizer: "PreTrainedTokenizerBase", user: str, reply: str) -> bool:
    thought = "Wxq four"
    text = _render(
        tokenizer,
        [
            {"role": "user", "content": user},
            {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{reply}"},
        ],
    )
    return reply in text and thought not in text


def _generation_tail(tail: str, before_reply: str) -> str | None:
    """The end of a finished conversation, when it repeats the header that opened the reply."""
    header = before_reply[before_reply.rfind("<") :] if "<" in before_reply else before_reply
    opening = before_reply[-24:].strip()
    return tail if opening and "assistant" in header + before_reply and tail.strip().endswith(opening) else None


def _doubles_bos(tokenizer: Any, text: str) -> bool:
    bos = tokenizer.bos_token_id
    if bos is None or not text:
        return False
    return tokenizer(text)["input_ids"][:2] == [bos, bos]
