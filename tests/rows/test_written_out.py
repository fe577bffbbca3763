"""Conversations written out as one text: read back where there is one way to, else refused by name."""

import json

import pytest

from rmcli.errors import Skip
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.known import NAMED
from support.cli import run_cli
from support.places import write_lines


def said(**row) -> list[list[str]]:
    """`role: content` of every message of each conversation."""
    talks = apply(NAMED["canonical"], row, "here").conversations
    return [[f"{message['role']}: {message['content']}" for message in talk] for talk in talks]


TURNS = "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: More"
TALK = ["user: Hello", "assistant: Hi", "user: More"]
LIST = [{"role": "user", "content": 'It\'s "so"\n'}, {"role": "assistant", "content": "Yes"}]
OTHER = [LIST[0], {"role": "assistant", "content": "No"}]


@pytest.mark.parametrize("prompt", [f"{TURNS}\n\nAssistant:", TURNS, f"{TURNS.strip()}\n\nAssistant: "])
def test_a_transcript_as_the_prompt_is_read_as_its_turns(prompt):
    expected = [[*TALK, "assistant: Sure."], [*TALK, "assistant: No: never."]]
    assert said(prompt=prompt, chosen=" Sure.", rejected="No: never.") == expected
    assert said(prompt=prompt, chosen="Assistant: Sure.", rejected=" No: never.") == expected
    assert said(prompt=prompt, chosen=f"{TURNS}\n\nAssistant: Sure.", rejected="No: never.") == expected
    assert said(prompt=prompt, responses=[" Sure.", "No: never."], ranks=[1, 2]) == expected


def test_whole_transcripts_as_answers_are_read_with_and_without_the_prompt():
    chosen, rejected = (f"{TURNS}\n\nAssistant: {word}" for word in ("Sure", "No"))
    expected = [[*TALK, "assistant: Sure"], [*TALK, "assistant: No"]]
    assert said(chosen=chosen, rejected=rejected) == expected
    single = "USER: Hello\nASSISTANT: "
    hello = [["user: Hello", "assistant: A"], ["user: Hello", "assistant: B"]]
    assert said(prompt="Hello", chosen=f"{single}A", rejected=f"{single}B") == hello


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=2)])
def test_a_message_list_as_text_is_read_as_its_messages(write):
    talk = 'user: It\'s "so"\n'
    assert said(prompt=LIST[0]["content"], chosen=write(LIST), rejected=write(OTHER)) == [
        [talk, "assistant: Yes"],
        [talk, "assistant: No"],
    ]
    assert said(prompt=write(LIST[:1]), chosen=write(LIST[1]), rejected="No") == [
        [talk, "assistant: Yes"],
        [talk, "assistant: No"],
    ]
    turns = [{"from": "human", "value": "Hi"}]
    assert said(prompt=write(turns), chosen="A", rejected="B")[0] == ["user: Hi", "assistant: A"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "\n\nHuman: a\n\nAssistant: b"}, "transcript_in_text"),  # over, or does the reply go on?
        ({"prompt": "Human: a\n\nHuman: b\n\nAssistant:"}, "transcript_in_text"),
        ({"prompt": "Human: a\n\nAssistant:\n\nHuman: b\n\nAssistant:"}, "transcript_in_text"),
        ({"prompt": "A chat.\n\nHuman: a\n\nAssistant:"}, "transcript_in_text"),
        ({"prompt": "### Instruction:\nDo it\n\n### Response:\n"}, "transcript_in_text"),
        ({"prompt": "[INST] Do it [/INST]"}, "transcript_in_text"),
        ({"prompt": "<|im_start|>user\nDo it<|im_end|>\n<|im_start|>assistant\n"}, "transcript_in_text"),
        ({"prompt": "Other", "chosen": f"{TURNS}\n\nAssistant: Sure"}, "transcript_in_text"),
        ({"prompt": "Other", "chosen": json.dumps(LIST)}, "transcript_in_text"),
        ({"prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': 'b'}]"}, "unreadable_messages"),
        ({"prompt": '[{"role": "user", "content": "cut'}, "unreadable_messages"),
        ({"prompt": "why " * 10, "chosen": "why " * 10 + "so", "rejected": "why " * 10 + "no"}, "prompt_in_reply"),
    ],
)
def test_what_can_be_read_in_more_ways_than_one_is_refused(row, reason):
    with pytest.raises(Skip) as skipped:
        said(**{"chosen": "yes", "rejected": "no", **row})
    assert skipped.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "Who wrote Human: A History?",
        "Human: an essay on people",
        "User: root\nPassword: none",
        "What does Assistant: mean in\n\nHuman: hi\n\nAssistant: hello\nand why?",
        "Question: why?\nAnswer:",
        '["a", "b"]',
        '{"name": "x", "role": "admin"} to YAML, please',
        "x = [1, 2]",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert said(prompt=text, chosen="yes", rejected="Sure.\n\nHuman: and?\n\nAssistant: no") == [
        [f"user: {text}", "assistant: yes"],
        [f"user: {text}", "assistant: Sure.\n\nHuman: and?\n\nAssistant: no"],
    ]
    messages = [{"role": "user", "content": f"{TURNS}\n\nAssistant:"}]  # messages are taken as they are
    assert said(prompt=messages, chosen="a", rejected="b")[0] == [f"user: {TURNS}\n\nAssistant:", "assistant: a"]


def test_prepare_counts_the_rows_it_reads_back_and_the_audit_names_what_is_left(cli, tmp_path):
    rows = [{"prompt": f"Human: {n}?\n\nAssistant:", "chosen": f"Yes {n}", "rejected": "No"} for n in range(8)]
    odd = {"role": "user", "content": "\n\nHuman: a\n\nAssistant: b"}
    listed = {"role": "user", "content": "see [{'role': 'user', 'content': 'x'}]"}
    rows += [{"prompt": [message], "chosen": "Yes", "rejected": "No"} for message in (odd, listed)]
    write_lines(tmp_path / "a.jsonl", rows)
    arguments = ("--map-fn", "canonical", "-p", "tiny", "-o", "out", "-s", "data.eval_fraction=0.0")
    result = run_cli("prepare", "a.jsonl", *arguments, "--json")
    assert "8 rows hold text that is a transcript or a message list written out" in result.stderr
    audit = json.loads(result.stdout)["audit"]
    found = audit["splits"]["train"]["written_out"]
    assert found["groups_looked_at"] == 10
    assert (found["transcript"], found["message_list"]) == (
        {"groups": 1, "rows": [8]},
        {"groups": 1, "rows": [9]},
    )
    sentences = [sentence for sentence in audit["findings"] if "within a turn looks like" in sentence]
    assert len(sentences) == 2
    assert "train: in 1 of the first 10 groups text within a turn looks like a transcript" in sentences[0]
    # The template's own words are no finding.
    (tmp_path / "plain.jinja").write_text(
        "{% for m in messages %}{{ '\n\n' ~ {'user': 'Human', 'assistant': 'Assistant'}[m.role] ~ ': ' ~ m.content }}"
        "{% endfor %}"
    )
    result = run_cli("prepare", "a.jsonl", *arguments, "--json", "--overwrite", "--chat-template", "plain.jinja")
    assert json.loads(result.stdout)["audit"]["splits"]["train"]["written_out"]["sought"] == ["message_list"]
