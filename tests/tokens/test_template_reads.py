"""What chat templates read: found in their syntax trees, and what rendering does with it."""

import pytest

from rmcli.records import PreferenceGroup
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


KEY_OF_A_PLAIN_PAIR = "922ed433fea2f6271023a948ca8413a3"  # as it was before messages could have more keys
