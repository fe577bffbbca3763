"""Rows of known data sets to preference groups: chosen first, rejected second.

A map function takes one row (a dict) and returns a PreferenceGroup, or a canonical dict
(`prompt`, `chosen`, `rejected`); it raises Skip(reason) to leave the row out.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.plugins import did_you_mean, load_function
from rmcli.records import Conversation, Message, PreferenceGroup

Row = Mapping[str, Any]


@dataclass(frozen=True)
class MapFunction:
    """A named map function, the columns it reads and the data set it is used for when none is named.

    With `rows_key` it takes a list: consecutive rows of equal key, which make one group.
    """

    function: Callable[[Any], PreferenceGroup]
    columns: tuple[str, ...]
    default_source: str | None
    rows_key: Callable[[Row], object] | None = None


def canonical(row: Row) -> PreferenceGroup:
    """`prompt`, `chosen`, `rejected`: message lists, or strings (a user turn, an assistant reply).

    Without a prompt, or when they begin with it, `chosen` and `rejected` are whole conversations. A column `weight`
    (1 where it is missing) is the pair's weight in the loss.
    """
    prompt = as_messages(row["prompt"], "user") if row.get("prompt") is not None else ()
    conversations = (_whole(prompt, row["chosen"]), _whole(prompt, row["rejected"]))
    return PreferenceGroup(conversations, weight=row.get("weight", 1.0))


def orpo_dpo_mix_40k(row: Row) -> PreferenceGroup:
    """mlabonne/orpo-dpo-mix-40k, also argilla/ultrafeedback-binarized-preferences-cleaned.

    `chosen` and `rejected` are message lists that include the prompt; the column `prompt` is not needed.
    """
    return PreferenceGroup((as_messages(row["chosen"]), as_messages(row["rejected"])))


def intel_orca_dpo(row: Row) -> PreferenceGroup:
    """Intel/orca_dpo_pairs: strings `system`, `question`, `chosen`, `rejected`; an empty system is left out."""
    prompt: Conversation = (Message(role="user", content=_text(row["question"])),)
    if _text(row["system"]).strip():
        prompt = (Message(role="system", content=row["system"]), *prompt)
    return PreferenceGroup((_whole(prompt, _text(row["chosen"])), _whole(prompt, _text(row["rejected"]))))


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def hh_rlhf(row: Row) -> PreferenceGroup:
    r"""Anthropic/hh-rlhf: whole transcripts `\n\nHuman: ...\n\nAssistant: ...` in `chosen` and `rejected`.

    "Human:" without a blank line before it is text. The two may differ before the last turn.
    """
    return PreferenceGroup((_transcript(row["chosen"]), _transcript(row["rejected"])))


def _transcript(text: Any) -> Conversation:
    before, *turns = _HH_TURN.split(_text(text))
    if before.strip():
        raise Skip("wrong_type")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return tuple(Message(role=roles[name], content=content.strip()) for name, content in pairs)


def as_messages(value: Any, role: str | None = None) -> Conversation:
    """A message list, checked; a string becomes one message of `role`. Raises Skip("wrong_type")."""
    if isinstance(value, str) and role is not None:
        return (Message(role=role, content=value),)
    if not isinstance(value, list | tuple):
        raise Skip("wrong_type")
    messages = []
    for item in value:
        if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
            raise Skip("wrong_type")
        if any(item.get(key) for key in ("tool_calls", "function_call", "tool_call_id")):
            raise Skip("unsupported_tool_call")  # a template would write it; we would lose it
        messages.append(Message(role=_text(item["role"]), content=_text(item["content"])))
    return tuple(messages)


def _whole(prompt: Conversation, reply: Any) -> Conversation:
    messages = as_messages(reply, "assistant")
    includes_prompt = bool(prompt) and messages[: len(prompt)] == prompt
    return messages if includes_prompt else (*prompt, *messages)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Skip("wrong_type")
    return value


NAMED: dict[str, MapFunction] = {
    "canonical": MapFunction(canonical, ("prompt", "chosen", "rejected"), None),
    "orpo_dpo_mix_40k": MapFunction(orpo_dpo_mix_40k, ("chosen", "rejected"), "mlabonne/orpo-dpo-mix-40k"),
    "intel_orca_dpo": MapFunction(
        intel_orca_dpo, ("system", "question", "chosen", "rejected"), "Intel/orca_dpo_pairs"
    ),
    "hh_rlhf": MapFunction(hh_rlhf, ("chosen", "rejected"), "Anthropic/hh-rlhf"),
    "checkable_tasks": MapFunction(canonical, ("prompt", "chosen", "rejected"), "tasks:24000"),
}


def find_map_function(spec: str | None) -> MapFunction:
    """The map function of that name, or the one `module:function` or `file.py:function` points to."""
    if spec is None:
        raise ConfigError("no map function", f"give --map-fn, {did_you_mean('', NAMED)}, or file.py:function")
    if spec in NAMED:
        return NAMED[spec]
    if ":" not in spec:
        raise ConfigError(f"unknown map function {spec!r}", did_you_mean(spec, NAMED))
    return MapFunction(load_function(spec), (), None)


def source_code(map_function: MapFunction) -> str:
    """The text of the function, for the manifest's hash. Raises ConfigError for what has none, such as a builtin."""
    try:
        return inspect.getsource(map_function.function)
    except (TypeError, OSError) as error:
        raise ConfigError(f"map function {map_function.function!r} has no source", "write it as a def") from error


def apply(map_function: MapFunction, row: Row | Sequence[Row], where: str) -> PreferenceGroup:
    """Map one row, or the rows of one key, to a pair, checked.

    Raises Skip with a reason when the row does not fit the function, RmcliError with `where` when the function itself
    is broken or gives no pair.
    """
    try:
        result = map_function.function(row)
        group = result if isinstance(result, PreferenceGroup) else canonical(result)
        conversations = tuple(as_messages(conversation) for conversation in group.conversations)
    except KeyError as error:
        raise Skip(f"missing_column {error.args[0]}") from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise Skip("wrong_type") from error
    except (NameError, AssertionError, ArithmeticError, RuntimeError, ImportError) as error:
        raise RmcliError(f"the map function failed on {where}: {type(error).__name__}: {error}") from error
    if len(conversations) != 2:
        raise RmcliError(
            f"the map function gave {len(conversations)} conversations for {where}; a pair has 2",
            "groups of more than two answers are not built yet",
        )
    weight = group.weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise Skip("bad_weight")
    return PreferenceGroup(conversations, float(weight))
