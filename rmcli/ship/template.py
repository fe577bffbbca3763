"""The chat template that ships: a finished assistant turn ends at the reward position, as training had it."""

import json
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from rmcli.errors import RmcliError
from rmcli.records import Conversation, Message, as_dicts
from rmcli.tokens import chat_templates
from rmcli.tokens.tokenizer import RewardTokenizer

# What the exported template is compared on; a template may refuse some (no system role, say), not all.
_USER, _ASSISTANT = {"role": "user", "content": " What is 2 + 2?"}, {"role": "assistant", "content": "4\n"}
_PROBES: tuple[Conversation, ...] = tuple(
    tuple(Message(role=message["role"], content=message["content"]) for message in conversation)
    for conversation in (
        [_USER, _ASSISTANT],
        [_USER, _ASSISTANT, _USER, _ASSISTANT],
        [{"role": "system", "content": "Answer."}, _USER, _ASSISTANT],
    )
)


def reward_template(template: str, reward: RewardTokenizer) -> str:
    """The chat template so that a finished assistant turn ends at the reward position.

    Reserved mode writes the reward token after it; natural mode cuts what follows the last end-of-turn token.
    """
    token = json.dumps(reward.reward_token, ensure_ascii=False)
    finished = "messages and messages[-1]['role'] == 'assistant' and not add_generation_prompt"
    # Jinja drops one newline at the very end of a template; it must not come back when text follows.
    base = template.removesuffix("\n")
    if reward.mode == "natural":
        return (
            "{% set conversation %}" + base + "{% endset %}"
            f"{{% if {finished} and {token} in conversation %}}"
            f"{{{{ conversation.rsplit({token}, 1)[0] + {token} }}}}"
            "{% else %}{{ conversation }}{% endif %}"
        )
    return base + f"{{% if {finished} %}}{{{{ {token} }}}}{{% endif %}}"


def trained_templates(shipped: str, reward: RewardTokenizer) -> list[str]:
    """What a shipped template may have been made of: itself, or what stands where `reward_template` puts its own."""
    placeholder = "\0"
    before, after = reward_template(placeholder, reward).split(placeholder)
    if not (shipped.startswith(before) and shipped.endswith(after)):
        return [shipped]
    base = shipped.removeprefix(before).removesuffix(after)
    return [shipped, base, base + "\n"]


def exported_template(reward: RewardTokenizer) -> str:
    """The chat template to ship, checked to give the ids that training used.

    Raises RmcliError when it does not, which is known before a long run as well as after it.
    """
    tokenizer = reward.tokenizer
    trained = tokenizer.chat_template
    assert isinstance(trained, str)  # encoding has refused a tokenizer without one
    rendered = [_ids(tokenizer, probe) for probe in _PROBES]
    expected = [_finish(reward, ids) for ids in rendered]
    if rendered == expected and any(rendered):
        return trained  # goes on from an exported model, or the template ends at its end-of-turn token
    shipped = reward_template(trained, reward)
    try:
        tokenizer.chat_template = shipped
        actual = [_ids(tokenizer, probe) for probe in _PROBES]
    finally:
        tokenizer.chat_template = trained
    if actual != expected or not any(expected):
        raise RmcliError(
            f"the chat template with {reward.reward_token} at its end gives other tokens than training would use",
            "this template cannot be exported; please report it with the model's name",
        )
    return shipped


def _finish(reward: RewardTokenizer, ids: list[int]) -> list[int] | None:
    """What training uses of a rendered conversation; none of what the template refused."""
    finished = reward.finish(np.array(ids)) if ids else np.empty(0, dtype=np.int64)
    return None if finished is None else finished.tolist()


def _ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Token ids of the rendered conversation; none when the template refuses it."""
    try:
        text = chat_templates.render(tokenizer, as_dicts(conversation))
    except TemplateError:
        return []
    return tokenizer(text, add_special_tokens=False)["input_ids"]
