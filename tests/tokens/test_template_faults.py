"""A chat template that fails, or tells no conversation from another, is one line or a rejected row."""

import codecs
import json

import pytest

from rmcli.config.files import read_json, read_toml
from rmcli.config.resolve import resolve
from rmcli.records import PreferenceGroup, TokenGroup
from rmcli.tokens import chat_templates
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_tokenizer

FAULTS = {
    "division": "{{ 1 / 0 }}",
    "type": "{{ 'a' + 1 }}",
    "attribute": "{{ messages.nothing.at_all }}",
    "index": "{{ [].pop() }}",
    "include": "{% include 'other.jinja' %}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "syntax": "{% if %}",
    "refusal": "{{ raise_exception('no') }}",
}
CHATML = chat_templates.BUILT_IN["chatml"]


def pair(prompt: str) -> PreferenceGroup:
    talks = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}] for reply in "ab"]
    return PreferenceGroup(tuple(map(tuple, talks)))


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_template_runs_into_rejects_that_row(fault, capsys):
    reward = load_tokenizer(resolve("tiny").config.model)
    template = FAULTS[fault]
    if fault != "syntax":
        template = "{% if messages[0]['content'] == 'bad' %}" + template + "{% endif %}" + CHATML
    reward.tokenizer.chat_template = template
    results = Encoder(reward, 64, "drop").encode([pair("bad"), pair("good"), pair("bad")])
    assert results[0] == results[2] == "template_error"
    assert isinstance(results[1], TokenGroup) == (fault != "syntax")
    said = capsys.readouterr().err
    assert said.count("the chat template refuses a conversation: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% include 'x' %}", "no reply", "  ", "{{ messages | length }}"]
)
def test_commands_say_it_in_a_line(cli, tmp_path, template):
    (tmp_path / "t.jinja").write_text(template + "{# #}")
    prepare = ("prepare", "tasks:20", "-p", "tiny", "--chat-template", "t.jinja", "-o", "data", "--no-audit")
    results = [cli(*prepare), cli(*prepare, "-s", "model.reward_token=natural")]
    for result in results:
        assert result.code in (1, 2)
        assert "Traceback" not in result.stderr
        assert "error: " in result.stderr


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Hello", "renders every reply alike"),
        ("{{ messages[0]['content'] }}", "renders every reply alike"),
        ("{# nothing #}", "renders nothing"),
    ],
)
def test_a_model_whose_template_renders_all_alike_gives_no_scores(cli, tmp_path, tiny_run, template, message):
    import shutil

    model = shutil.copytree(tiny_run.model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    result = cli("score", model, "--no-verify", stdin='{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    assert result.code == 2
    assert result.stdout == ""
    assert message in result.stderr


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    files = {"t.jinja": CHATML, "c.toml": "[data]\nseed = 3\n", "c.json": json.dumps({"seed": 3})}
    for name, text in files.items():
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
    tokenizer = load_tokenizer(resolve("tiny").config.model).tokenizer
    assert chat_templates.load(str(tmp_path / "t.jinja"), tokenizer) == CHATML
    assert read_toml(tmp_path / "c.toml") == {"data": {"seed": 3}}
    assert read_json(tmp_path / "c.json") == {"seed": 3}
