"""`score` keeps the contract of a row that `prepare` keeps: an error per line, and nothing left out in silence."""

import json

from support.places import write_lines

USER, REPLY = {"role": "user", "content": "Sort: 3 1"}, {"role": "assistant", "content": "1 3"}
PAIR = {"prompt": "Sort: 3 1", "chosen": "1 3", "rejected": "3 1"}


def test_each_line_is_scored_with_all_of_its_conversation_or_says_why_not(cli, tmp_path, tiny_run):
    lines = [
        PAIR,
        {**PAIR, "system": "Be brief."},
        {**PAIR, "prompt": [{"role": "system", "content": "Be brief."}, USER]},
        {"messages": [USER, REPLY]},
        {"messages": [USER, REPLY], "system": "Be brief."},
        {"messages": [USER, {**REPLY, "content": [{"type": "text", "text": "1 3"}]}]},
        {"messages": [USER, {**REPLY, "reasoning_content": "hm"}]},
        {"messages": [USER, REPLY], "tools": [{"name": "f"}]},
        {"messages": [USER, REPLY], "images": ["a.png"]},
        {"question": "Sort", "chosen": "1 2", "rejected": "2 1"},
        {**PAIR, "prompt": ""},
    ]
    write_lines(tmp_path / "in.jsonl", lines)
    result = cli("score", tiny_run.model, "in.jsonl", "-o", "out.jsonl", "-q")
    assert result.code == 1  # some lines have errors
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    plain, with_system, as_message = found[:3]
    assert with_system == as_message
    assert with_system["chosen_score"] != plain["chosen_score"]
    alone, alone_with_system, in_parts, with_a_key = found[3:7]
    assert alone == in_parts == with_a_key
    assert alone["score"] == plain["chosen_score"]
    assert alone_with_system["score"] == with_system["chosen_score"]
    assert [line["error"] for line in found[7:]] == [
        *("unread_column tools", "unread_column images", "no_prompt", "empty_prompt")
    ]
    assert "note: not read: reasoning_content (of the messages of in.jsonl" in result.stderr
