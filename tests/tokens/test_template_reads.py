"""What chat templates read: found in their syntax trees, and what rendering does with it."""

import pytest

from rmcli.errors import Skip
from rmcli.records import PreferenceGroup
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.contract import Contract
from rmcli.rows.map_fns.known import NAMED
from rmcli.tokens.encode import Encoder, group_key
from rmcli.tokens.rendering import Renderer
from rmcli.tokens.template_reads import reads_in, reads_of
from rmcli.tokens.tokenizer import RewardTokenizer

LOOP = "{% for message in messages %}"


@pytest.mark.parametrize(
    ("template", "keys"),
    [
        (LOOP + "{{ message['role'] + message.content }}{% endfor %}", set()),
        (LOOP + "{{ message.thinking }}{% endfor %}", {"thinking"}),
        (LOOP + "{{ message['name'] }}{% endfor %}", {"name"}),
        (LOOP + "{{ message.get('name', '') }}{% endfor %}", {"name"}),
        (LOOP + "{% if 'note' in message %}x{% endif %}{% endfor %}", {"note"}),
        (LOOP + "{% if message.name is defined %}x{% endif %}{% endfor %}", {"name"}),
        (LOOP + "{% set m = message %}{{ m.name }}{% endfor %}", {"name"}),
        ("{{ messages[0].name }}{{ messages[-1]['note'] }}", {"name", "note"}),
        ("{% for m in messages[1:] | reverse %}{{ m.name }}{% endfor %}", {"name"}),
        ("{% set rest = messages[1:] if messages[0].role == 'system' else messages %}{{ rest[0].name }}", {"name"}),
        (LOOP + "{{ loop.previtem.name }}{% endfor %}", {"name"}),
        ("{{ messages | map(attribute='name') | join }}", {"name"}),
        ("{{ (messages | selectattr('note') | list)[0].name }}", {"note", "name"}),
        ("{% macro show(m) %}{{ m.name }}{% endmacro %}" + LOOP + "{{ show(message) }}{% endfor %}", {"name"}),
        # a tool's name is no message's
        ("{% for tool in tools %}{{ tool.name }}{% endfor %}" + LOOP + "{{ message.content }}{% endfor %}", set()),
        # a message that goes where it is not followed: every name in the template may be one of its keys
        ("{% set ns = namespace(last=messages[0]) %}{{ ns.last.name }}", {"last", "name"}),
        (LOOP + "{% generation %}{{ message.name }}{% endgeneration %}{% endfor %}", {"name"}),
        (LOOP + "{{ message | tojson }}{% endfor %}", None),
        (LOOP + "{{ message }}{% endfor %}", None),
        (LOOP + "{% for key, value in message.items() %}{{ value }}{% endfor %}{% endfor %}", None),
        (LOOP + "{% for key in message %}{{ message[key] }}{% endfor %}{% endfor %}", None),
        ("{% broken", None),
    ],
)
def test_the_keys_that_a_template_reads_of_a_message(template, keys):
    found = reads_in(template).message_keys
    assert found == keys if keys is None else set(found or ()) == keys


def test_what_a_row_may_give_a_template_is_what_it_reads_and_rendering_does_not_set():
    reads = reads_in(
        "{{ bos_token }}{{ messages }}{{ enable_thinking }}{% if add_generation_prompt %}{{ tools }}{% endif %}"
    )
    assert reads.arguments == {"enable_thinking", "tools"}


@pytest.fixture(scope="module")
def qwen3(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder("qwen3"))


def talk(reply: str, **more: object) -> tuple:
    return ({"role": "user", "content": "Is 7 prime?"}, {"role": "assistant", "content": reply, **more})


def test_qwen3_reads_reasoning_tools_and_enable_thinking(qwen3):
    reads = reads_of(qwen3)
    assert reads.message_keys == {"reasoning_content", "tool_calls"}
    assert {"tools", "enable_thinking"} <= reads.arguments


def test_reasoning_and_tools_are_rendered_as_transformers_does(qwen3):
    renderer = Renderer(qwen3)
    plain = renderer.render(talk("Yes."))
    assert "<think>\nOnly 1 and 7.\n</think>\n\nYes." in renderer.render(
        talk("Yes.", reasoning_content="Only 1 and 7.")
    )
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert '"name": "weather"' in renderer.render(talk("Yes."), {"tools": tools})
    assert renderer.render(talk("Yes.")) == plain  # a plain conversation of the same roles is as before


def test_answers_that_differ_only_in_a_key_that_the_template_writes_are_a_pair(qwen3):
    encoder = Encoder(RewardTokenizer(qwen3, "<|im_end|>", 151645, 151936, mode="natural"), 256, "drop")
    by_reasoning = PreferenceGroup((talk("Yes.", reasoning_content="good"), talk("Yes.", reasoning_content="bad")))
    (tokens,) = encoder.encode([by_reasoning])
    ends = [qwen3.decode(response) for response in tokens.responses]
    assert ends == ["good\n</think>\n\nYes.<|im_end|>", "bad\n</think>\n\nYes.<|im_end|>"]


def test_an_argument_that_the_template_does_not_read_rejects_the_row_by_name(qwen3):
    encoder = Encoder(RewardTokenizer(qwen3, "<|im_end|>", 151645, 151936, mode="natural"), 256, "drop")
    pair = (talk("Yes."), talk("No."))
    for arguments, reason in (
        ({"enable_thinkin": True}, "unread_column chat_template_kwargs.enable_thinkin"),
        ({"tokenize": True}, "unread_column chat_template_kwargs.tokenize"),
        ({"add_generation_prompt": True}, "unread_column chat_template_kwargs.add_generation_prompt"),
    ):
        assert encoder.encode([PreferenceGroup(pair, template_arguments=arguments)]) == [reason]


def test_duplicates_differ_in_what_the_template_gets():
    keys = [
        PreferenceGroup((talk("Yes."), talk("No."))),
        PreferenceGroup((talk("Yes.", reasoning_content="good"), talk("No."))),
        PreferenceGroup((talk("Yes.", reasoning_content="bad"), talk("No."))),
        PreferenceGroup((talk("Yes."), talk("No.")), template_arguments={"tools": [{"name": "f"}]}),
    ]
    assert len({group_key(group) for group in keys}) == 4
    assert group_key(keys[0]).hex() == KEY_OF_A_PLAIN_PAIR


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
ASKED = {"role": "user", "content": "Rain?"}


def calling(**call: object) -> dict:
    return {"prompt": [ASKED], "chosen": [{"role": "assistant", **call}], "rejected": "I cannot know."}


def mapped(row: dict, keys: set[str]) -> PreferenceGroup:
    return apply(NAMED["canonical"], row, "here", contract=Contract(frozenset(keys)))


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_a_call_of_a_tool_is_a_reply_where_the_template_writes_it(qwen3, content):
    encoder = Encoder(RewardTokenizer(qwen3, "<|im_end|>", 151645, 151936, mode="natural"), 256, "drop")
    group = mapped(calling(**content, tool_calls=[CALL]), set(encoder.template_reads.message_keys))
    (tokens,) = encoder.encode([group])
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert qwen3.decode(tokens.responses[0]).endswith(f"{call}<|im_end|>")
    other = {**CALL, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    both = {
        **calling(content=None, tool_calls=[CALL]),
        "rejected": calling(content=None, tool_calls=[other])["chosen"],
    }
    (tokens,) = encoder.encode([mapped(both, {"tool_calls"})])
    assert [qwen3.decode(response)[:4] for response in tokens.responses] == ["Rome", "Oslo"]


def test_calls_and_their_answers_in_the_prompt_reach_the_template(qwen3):
    encoder = Encoder(RewardTokenizer(qwen3, "<|im_end|>", 151645, 151936, mode="natural"), 256, "drop")
    turns = [ASKED, {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "c1"}]}]
    turns.append({"role": "tool", "content": "sunny", "tool_call_id": "c1"})
    contract = Contract(encoder.template_reads.message_keys)
    group = apply(
        NAMED["canonical"], {"prompt": turns, "chosen": "No.", "rejected": "Yes."}, "here", contract=contract
    )
    (tokens,) = encoder.encode([group])
    said = qwen3.decode(tokens.prefix)
    assert '{"name": "weather", "arguments": {"city": "Rome"}}' in said
    assert "<tool_response>\nsunny\n</tool_response>" in said
    assert list(contract.unread_keys) == ["tool_call_id"]  # the call stands before its answer


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_a_call_that_the_template_would_not_write_refuses_its_row_by_name(key):
    with pytest.raises(Skip) as skip:
        mapped(calling(content="Let me see.", **{key: [CALL]}), {"reasoning_content"})
    assert (skip.value.reason, skip.value.detail) == (
        f"unread_key {key}",
        "the chat template does not read it, and the message calls a tool",
    )
    for nothing in (None, [], {}):
        contract = Contract(frozenset())
        apply(NAMED["canonical"], calling(content="No.", **{key: nothing}), "here", contract=contract)
        assert contract.unread_keys == {}


def test_null_without_a_call_is_no_reply():
    for row in (calling(content=None), calling(content=None, tool_calls=[]), calling()):
        with pytest.raises(Skip, match="wrong_type"):
            mapped(row, {"tool_calls"})


KEY_OF_A_PLAIN_PAIR = "922ed433fea2f6271023a948ca8413a3"  # as it was before messages could have more keys
