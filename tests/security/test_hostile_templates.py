"""Chat templates come with models: they run in jinja's sandbox, and what they run into is one line."""

import json
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from rmcli import RewardModel
from rmcli.config.presets import presets_folder
from rmcli.tokens.chat_templates import describe
from rmcli.tokens.rendering import Renderer
from rmcli.tokens.template_reads import reads_of
from support.cli import run_cli
from support.hostile import ROWS, in_one_line, marker, sealed
from support.places import write_lines

TOUCH = ".__globals__['os'].system('touch RAN')"
ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ self.__init__" + TOUCH + " }}",
    "cycler": "{{ cycler.__init__" + TOUCH + " }}",
    "namespace": "{{ namespace.__init__" + TOUCH + " }}",
    "raise_exception": "{{ raise_exception" + TOUCH + " }}",
    "tojson": "{{ ''|attr('__class__')|attr('__mro__')|list|first|attr('__subclasses__') }}" + "{{ 1/0 }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch RAN') }}",
    "changes": "{{ messages.append(messages[0]) }}",
}
EXHAUSTS = {
    "range": "{% for a in range(10**9) %}x{% endfor %}",
    "memory": "{{ 'a' * 10**15 }}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "brackets": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nesting": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "sum": "{{ " + "+".join(["'a'"] * 2000) + " }}",
}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
FAULTS = {"syntax": "{{ ", "lines": "{{ raise_exception('a\\nb\\n\\x1b[2J') }}"}


@pytest.fixture
def tokenizer(cli):
    """In a folder where nothing has run."""
    return AutoTokenizer.from_pretrained(presets_folder() / "tiny", trust_remote_code=False)


@pytest.mark.parametrize("name", [*ESCAPES, *EXHAUSTS, *FAULTS])
def test_a_hostile_template_is_an_error_of_the_conversation(tokenizer, name):
    tokenizer.chat_template = {**ESCAPES, **EXHAUSTS, **FAULTS}[name]
    reads_of(tokenizer)
    describe(tokenizer)
    with pytest.raises(TemplateError):
        Renderer(tokenizer).render(TALK)
    assert not marker().exists()


@pytest.mark.parametrize("name", ["globals", "range", "brackets"])
def test_a_hostile_template_of_a_model_leaves_its_lines_without_scores(model, name):
    (model / "chat_template.jinja").write_text({**ESCAPES, **EXHAUSTS}[name])
    sealed(model)
    assert "8 of 8 lines have no score: 8 template_error" in in_one_line("score", "model", ROWS)
    assert RewardModel.load(model).score([TALK])[0].error == "template_error"
    assert run_cli("inspect-token", "model").code == 0
    assert not marker().exists()


@pytest.mark.parametrize("form", ["text", "named"])
def test_neither_is_one_in_tokenizer_config(model, form):
    template = ESCAPES["globals"]
    (model / "chat_template.jinja").unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = template if form == "text" else [{"name": "default", "template": template}]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    sealed(model)
    assert "template_error" in in_one_line("score", "model", ROWS)


@pytest.mark.parametrize("name", ["globals", "brackets"])
def test_data_is_not_prepared_with_one(model, name):
    (model / "chat_template.jinja").write_text({**ESCAPES, **EXHAUSTS}[name])
    setting = ("-p", "tiny", "-s", "model.pretrained_model_name_or_path=model")
    said = in_one_line("prepare", ROWS, "--map-fn", "canonical", "-o", "data", *setting)
    assert "not one of 8 rows was kept; 8 were rejected as template_error" in said
    assert not Path("data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["globals", "range"])
def test_the_process_that_verifies_says_it_in_a_line(model, name):
    (model / "chat_template.jinja").write_text({**ESCAPES, **EXHAUSTS}[name])
    sealed(model)
    assert "model: tokenizer: " in in_one_line("verify", "model")


@pytest.mark.parametrize("key", ["chat_template", "tokenize", "tokenizer_kwargs", "return_dict"])
def test_a_row_cannot_bring_a_template_or_change_how_it_is_used(model, key):
    talk = {"prompt": "Sort: 2 1", "chosen": "1 2", "rejected": "2 1"}
    write_lines(Path("plain.jsonl"), [talk])
    value = ESCAPES["globals"] if key == "chat_template" else True
    write_lines(Path("rows.jsonl"), [talk | {"chat_template_kwargs": {key: value}}])
    assert run_cli("score", "model", "plain.jsonl").code == 0
    assert "1 of 1 lines have no score: 1 " in in_one_line("score", "model", "rows.jsonl")
