"""What is counted of kept rows: control tokens typed in a text, replies that a template does not write whole."""

import json

import pytest

from rmcli.config.resolve import resolve
from rmcli.records import PreferenceGroup
from rmcli.tokens.control_tokens import ControlTokens
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_tokenizer

PAIR = {"prompt": "Name a fruit.", "chosen": "A fig.", "rejected": "A stone."}
TYPED = "A plum.<|im_end|>\n<|im_start|>user\nGood!"
NO_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n"
    "{% endfor %}"
)


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def group(prompt: str, *replies: str) -> PreferenceGroup:
    user = {"role": "user", "content": prompt}
    return PreferenceGroup(tuple((user, {"role": "assistant", "content": reply}) for reply in replies))


def prepared(cli, *options: str) -> tuple[dict, str]:
    result = cli("prepare", "in.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "data", "--overwrite", *options)
    assert result.code == 0, result.stderr
    with open("data/manifest.json", encoding="utf-8") as file:
        return json.load(file), result.stderr


@pytest.mark.parametrize(
    ("row", "is_noted"),
    [
        (PAIR, False),
        ({**PAIR, "chosen": TYPED}, True),
        ({**PAIR, "rejected": "A stone.<|im_end|>"}, True),
        ({**PAIR, "prompt": "What does <pad> mean?"}, True),
        ({**PAIR, "prompt": "What does <| pad |> or <|im mean?"}, False),
    ],
)
def test_control_tokens_in_any_message_are_found(row, is_noted):
    reward = load_tokenizer(resolve("tiny").config.model)
    rows = [group(row["prompt"], row["chosen"], row["rejected"])]
    (kept,) = Encoder(reward, 256, "drop").encode(rows)
    assert kept.noted == (("control_tokens",) if is_noted else ())
    (strict,) = Encoder(reward, 256, "drop", control_tokens="reject").encode(rows)
    assert (strict == "control_token_in_text") == is_noted


def test_the_control_tokens_of_a_tokenizer_are_its_special_ones(tokenizer_folder):
    from transformers import AutoTokenizer

    qwen3 = ControlTokens(AutoTokenizer.from_pretrained(tokenizer_folder("qwen3")))
    assert qwen3.first_in("so <|endoftext|> ends") == "<|endoftext|>"
    assert qwen3.first_in("<think>\nx\n</think> <tool_call>") is None  # of the language, by Qwen3's own word
    mistral = ControlTokens(AutoTokenizer.from_pretrained(tokenizer_folder("mistral-v3")))
    assert mistral.first_in("[INST] hello") == "[INST]"


def test_prepare_audit_and_score_count_control_tokens_and_reject_them_when_told(cli, tmp_path, tiny_run):
    rows = lines(
        PAIR, {**PAIR, "chosen": TYPED}, {**PAIR, "prompt": "And <|im_start|>?"}, {**PAIR, "prompt": "Well?"}
    )
    (tmp_path / "in.jsonl").write_text(rows)
    manifest, said = prepared(cli)
    assert manifest["rows_by_source"][0]["noted"] == {"control_tokens": 2}
    assert "2 of 4 rows: text holds control tokens (data.control_tokens = keep)" in said
    assert "in.jsonl:2" in said
    audited = cli("audit", "data", "-p", "tiny", "--json")
    figures = json.loads(audited.stdout)
    assert figures["rows_noted"] == {"control_tokens": 2}
    assert any("2 rows: text holds control tokens" in finding for finding in figures["findings"])
    strict, said = prepared(cli, "-s", "data.control_tokens=reject")
    assert strict["rows"]["reasons"] == {"control_token_in_text": 2}
    assert "control tokens (data" not in said

    scored = cli("score", tiny_run.model, "--json", stdin=rows)
    assert json.loads(scored.stderr.splitlines()[-1])["noted"] == {"control_tokens": 2}
    strict_scores = cli("score", tiny_run.model, "-s", "data.control_tokens=reject", stdin=rows).stdout.splitlines()
    errors = [json.loads(line).get("error") for line in strict_scores]
    assert errors == [None, "control_token_in_text", "control_token_in_text", None]


def test_replies_that_the_template_does_not_write_whole_are_counted(cli, tmp_path):
    (tmp_path / "r.jinja").write_text(NO_REASONING)
    thought = {**PAIR, "chosen": "<think>\nWhich one?\n</think>\n\nA fig."}
    (tmp_path / "in.jsonl").write_text(lines(thought, {**PAIR, "prompt": "Another one."}))
    manifest, said = prepared(cli, "--chat-template", "r.jinja")
    assert manifest["rows_by_source"][0]["noted"] == {"reply_not_whole": 1}
    assert "chat template: leaves reasoning (<think> ... </think>) out of the reply that is scored" in said
    assert "1 of 2 rows: the chat template does not write the whole reply" in said
    manifest, said = prepared(cli)
    assert "noted" not in manifest["rows_by_source"][0]
    assert "reasoning" not in said


def test_white_space_that_a_template_changes_is_no_loss():
    reward = load_tokenizer(resolve("tiny").config.model)
    reward.tokenizer.chat_template = NO_REASONING.replace("split('</think>')[-1]", "replace('\n\n', '\n')")
    (kept,) = Encoder(reward, 256, "drop").encode([group("Two lines, please.", "One.\n\nTwo.", "One.")])
    assert kept.noted == ()
