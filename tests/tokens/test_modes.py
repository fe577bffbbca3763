"""Natural mode, the reward token's row, chat templates: what a conversation ends with and where it is scored."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError, RmcliError
from rmcli.model import batch, forward
from rmcli.model.load import label_for_reward, load_model, prepare_reward_row
from rmcli.packs.manifest import read_manifest
from rmcli.records import PreferenceGroup
from rmcli.ship.template import exported_template
from rmcli.tokens import chat_templates
from rmcli.tokens import tokenizer as tokenizers
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import RewardTokenizer, load_tokenizer
from support.networks import tiny_model
from support.places import REPOSITORY, write_lines

NATURAL = ("-s", "model.reward_token=natural")
TINY = ("--preset", "tiny")


def tiny_reward(*settings: str) -> RewardTokenizer:
    return load_tokenizer(resolve("tiny", settings=settings).config.model)


def conversation(*contents: str) -> tuple:
    return tuple({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents))


# --- natural mode ---


def test_natural_is_the_templates_own_end_of_turn_token():
    reward = tiny_reward("model.reward_token=natural")
    assert (reward.reward_token, reward.reward_token_id, reward.mode) == ("<|im_end|>", 3, "natural")
    assert reward.pad_token_id == 1  # never the reward token


def test_natural_cuts_the_tail_after_the_last_end_of_turn_token():
    reward = tiny_reward("model.reward_token=natural")
    pair = PreferenceGroup((conversation("a", "b", "c", "d"), conversation("a", "b", "c", "x")))
    (group,) = Encoder(reward, 256, "drop").encode([pair])
    chosen = [*group.prefix.tolist(), *group.responses[0].tolist()]
    rendered = reward.tokenizer.apply_chat_template(list(pair.conversations[0]), tokenize=False)
    assert rendered.endswith("<|im_end|>\n")
    assert chosen == reward.tokenizer(rendered.removesuffix("\n"), add_special_tokens=False)["input_ids"]
    assert chosen.count(3) == 4  # each turn has one: it is scored by position, not by searching for the id


def test_in_natural_mode_only_the_contents_are_searched_for_the_token():
    encoder = Encoder(tiny_reward("model.reward_token=natural"), 256, "drop")
    bad = PreferenceGroup((conversation("a", "b<|im_end|>"), conversation("a", "c")))
    good = PreferenceGroup((conversation("a", "b<|reserved_special_token_0|>"), conversation("a", "c")))
    assert encoder.encode([bad]) == ["reward_token_in_text"]
    assert not isinstance(encoder.encode([good])[0], str)


@pytest.fixture(scope="module")
def natural_run(tmp_path_factory):
    """The tiny preset in natural mode, trained for 60 steps."""
    from support.cli import run_cli

    folder = tmp_path_factory.mktemp("natural")
    prepared = run_cli("prepare", "tasks:3000", *TINY, *NATURAL, "-o", folder / "data")
    assert prepared.code == 0, prepared.stderr
    assert "reward token <|im_end|> (3, natural)" in prepared.stderr
    steps = ("-s", "train.max_steps=60")
    trained = run_cli("train", *TINY, *NATURAL, "--data", folder / "data", "-o", folder / "run", *steps)
    assert trained.code == 0, trained.stderr
    return folder


def test_natural_mode_trains_and_plain_transformers_gives_the_same_scores(natural_run, cli, tmp_path):
    metrics = [json.loads(line) for line in (natural_run / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["eval_accuracy"] > 0.6
    folder, held_out = natural_run / "run" / "model", natural_run / "data" / "eval.jsonl"
    result = cli("score", folder, held_out, "-o", "scores.jsonl", "--json")
    assert json.loads(result.stdout)["accuracy"] == pytest.approx(metrics[-1]["eval_accuracy"], abs=1e-9)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [json.loads(line) for line in held_out.read_text().splitlines()[:6]]
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()[:6]]
    texts = [tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False) for row in rows]
    assert all(text.endswith("<|im_end|>") for text in texts)
    with torch.no_grad():
        batch = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
        together = network(**batch).logits[:, 0].tolist()
    assert together == pytest.approx([score["chosen_score"] for score in scores], abs=1e-5)
    prompt = tokenizer.apply_chat_template(rows[0]["prompt"], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n")  # generation prompts are left as they were


def test_a_natural_model_folder_alone_says_what_it_is(natural_run, cli, tmp_path):
    shutil.copytree(natural_run / "run" / "model", tmp_path / "model")
    line = (natural_run / "data" / "eval.jsonl").read_text().splitlines()[0]
    expected = cli("score", tmp_path / "model", "-q", stdin=line)
    (tmp_path / "model" / "rmcli.toml").unlink()
    alone = cli("score", tmp_path / "model", "-q", stdin=line)
    assert alone.code == 0, alone.stderr
    assert json.loads(alone.stdout) == json.loads(expected.stdout)


def test_data_of_one_mode_is_refused_by_the_other(natural_run, cli):
    result = cli("train", *TINY, "--data", natural_run / "data", "-o", "run")
    assert result.code == 1
    assert "reward token <|im_end|> (3, natural), not <|reserved_special_token_0|> (4, reserved)" in result.stderr


def test_a_template_without_an_end_of_turn_token_has_no_natural_mode():
    with pytest.raises(ConfigError, match="writes no special token after a reply"):
        tiny_reward("model.reward_token=natural", "model.chat_template=plain")


@pytest.mark.parametrize(
    ("name", "token", "pad"),
    [
        ("llama3", "<|eot_id|>", "<|end_of_text|>"),
        ("qwen3", "<|im_end|>", "<|endoftext|>"),
        ("gemma3", "<end_of_turn>", "<pad>"),
        ("deepseek_v3", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),  # its pad is its eos
    ],
)
def test_natural_mode_in_real_tokenizers(tokenizer_folder, name, token, pad):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(name))
    found = tokenizers.end_of_turn_id(tokenizer)
    assert tokenizer.convert_ids_to_tokens(found) == token
    reward = RewardTokenizer(tokenizer, token, found, 300_000, mode="natural")
    pad_token = tokenizer.convert_ids_to_tokens(reward.pad_token_id)
    assert pad_token != token
    assert pad_token in tokenizer.get_added_vocab()
    if name != "llama3":
        assert pad_token == pad
    assert exported_template(reward)  # checked there to give the ids of training


@pytest.mark.parametrize("name", ["llama3", "qwen3", "gemma3", "deepseek_v3"])
def test_reserved_mode_is_exported_by_real_templates(tokenizer_folder, name):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(name))
    token = {
        "llama3": "<|reserved_special_token_0|>",
        "qwen3": "<|quad_end|>",
        "gemma3": "<unused0>",
        "deepseek_v3": "<｜place▁holder▁no▁0｜>",
    }[name]
    index = tokenizer.convert_tokens_to_ids(token)
    assert token in exported_template(RewardTokenizer(tokenizer, token, index, 300_000))


def test_the_natural_tokens_row_learns_where_it_is_the_pad_token_too(gguf):
    """SmolLM2 pads with <|im_end|>: transformers would keep the gradient of its row at zero."""
    settings = [f"model.pretrained_model_name_or_path={gguf}", "model.reward_token=natural"]
    section = resolve(None, settings=settings).config.model
    reward = load_tokenizer(section)
    assert (reward.reward_token_id, reward.pad_token_id) == (2, 0)
    network = load_model(section, reward)
    torch.nn.init.normal_(network.score.weight)
    pair = PreferenceGroup((conversation("a", "b"), conversation("a", "c")))
    (group,) = Encoder(reward, 256, "drop").encode([pair])
    forward.scores(network, batch.build_packed([group])).sum().backward()
    assert network.get_input_embeddings().weight.grad[2].norm() > 1


def test_a_template_whose_last_turn_ends_otherwise_has_no_natural_mode(tmp_path):
    """It would be scored at the end of the turn before, whatever the reply says."""
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] }}"
        "{% if messages|length < 3 or not loop.last %}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="writes no special token after a reply"):
        tiny_reward("model.reward_token=natural", f"model.chat_template={tmp_path / 't.jinja'}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('system first') }}", "refuses a plain question and answer: system first"),
        (
            "{% for m in messages %}{{ m['content'] | lower }}{% endfor %}",
            "does not write the assistant's reply as it is",
        ),
        (
            "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
            "does not write the assistant's",
        ),
    ],
)
def test_templates_that_refuse_or_alter_a_conversation_are_one_line(cli, tmp_path, template, message):
    (tmp_path / "t.jinja").write_text(template)
    result = cli("prepare", "tasks:20", *TINY, *NATURAL, "--chat-template", "t.jinja", "-o", "out")
    assert result.code == 2
    assert message in result.stderr
    chat_templates.describe(
        tiny_reward(f"model.chat_template={tmp_path / 't.jinja'}").tokenizer
    )  # reserved: no fault


# --- rows of the reward token ---


def test_a_pad_token_past_the_embedding_is_not_taken(cli, tmp_path):
    """Some tokenizers had one added without a row: the exported folder could not be loaded."""
    folder = tmp_path / "padded"
    shutil.copytree(REPOSITORY / "presets" / "tiny", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 384
    tokenizer.save_pretrained(folder)
    base = (*TINY, "-s", f"model.pretrained_model_name_or_path={folder}")
    assert cli("prepare", "tasks:200", *base, "-o", "data").code == 0
    assert cli("train", *base, "--data", "data", "-o", "run", "-s", "train.max_steps=2").code == 0
    assert AutoModelForSequenceClassification.from_pretrained("run/model").config.pad_token_id < 384
    assert cli("score", "run/model", "data/eval.jsonl", "-q").code == 0


def test_going_on_from_a_trained_model_with_another_token_prepares_that_tokens_row(cli, tiny_run, capsys):
    base = (*TINY, "-s", f"model.pretrained_model_name_or_path={tiny_run.model}", "-s", "model.random_weights=false")
    new = (*base, "-s", "model.reward_token='<|more|>'", "-s", "model.reward_token_id=384")
    new = (*new, "--chat-template", "chatml")
    assert cli("prepare", "tasks:200", *new, "-o", "data").code == 0
    settings = (*new[:-2], "-s", "model.chat_template=chatml")
    result = cli("train", *settings, "--data", "data", "-o", "run", "-s", "train.max_steps=2")
    assert result.code == 0, result.stderr
    assert "note: the embedding grows from 384 to 448 rows for <|more|> (384)" in result.stderr


def test_the_text_models_own_config_pads_alike():
    """transformers pools by the nested config's pad token."""
    from transformers import Gemma3Config

    text = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 1, "pad_token_id": 3}
    config = Gemma3Config(text_config=text)
    label_for_reward(config, "nested", RewardTokenizer(tiny_reward().tokenizer, "<|im_end|>", 3, 97))
    assert config.pad_token_id == config.get_text_config().pad_token_id == 1


def llama_reward(index: int, num_rows: int = 97) -> RewardTokenizer:
    return RewardTokenizer(tiny_reward().tokenizer, "<|reward|>", index, num_rows)


def test_an_untrained_row_starts_as_the_mean_of_trained_rows_and_that_is_said(capsys):
    network = tiny_model("llama")
    weight = network.get_input_embeddings().weight
    with torch.no_grad():
        weight[90] = 0
        weight[91] = weight[5] * 1e-3  # near zero counts as untrained
        expected = weight[torch.tensor([row not in (0, 90, 91) for row in range(97)])].mean(dim=0)
        weight[0] = 0
    before = weight.detach().clone()
    prepare_reward_row(network, llama_reward(90))
    torch.testing.assert_close(weight[90], expected, atol=1e-6, rtol=0)
    others = [row for row in range(97) if row != 90]
    assert torch.equal(weight[others], before[others])
    said = capsys.readouterr().err
    assert "note: the embedding row of <|reward|> (90) is untrained (norm 0, median" in said
    assert "it starts as the mean of 94 trained rows" in said


def test_a_trained_row_is_left_alone_and_identical_rows_are_reported(capsys):
    network = tiny_model("llama")
    weight = network.get_input_embeddings().weight
    with torch.no_grad():
        weight[12] = weight[90]
    before = weight.detach().clone()
    prepare_reward_row(network, llama_reward(90))
    assert torch.equal(weight, before)
    assert "the embedding of <|reward|> (90) is identical to that of id 12: kept" in capsys.readouterr().err
    prepare_reward_row(network, llama_reward(40))
    assert capsys.readouterr().err == ""


def test_no_spare_row_grows_the_embedding_to_a_multiple_of_64_and_that_is_said(cli, tiny_run, tmp_path):
    folder = tmp_path / "full"  # 384 tokens and 384 rows
    network = AutoModelForSequenceClassification.from_pretrained(tiny_run.model)
    network.base_model.save_pretrained(folder)
    shutil.copy(REPOSITORY / "presets" / "tiny" / "tokenizer.json", folder)
    shutil.copy(REPOSITORY / "presets" / "tiny" / "tokenizer_config.json", folder)
    grown = (
        *("-s", f"model.pretrained_model_name_or_path={folder}", "-s", "model.random_weights=false"),
        *("-s", "model.reward_token='<|reward|>'", "-s", "model.reward_token_id=384"),
    )
    result = cli("prepare", "tasks:300", *TINY, *grown, "-o", "data")
    assert result.code == 0, result.stderr
    assert "<|reward|> is new: it takes id 384, past the 384 embedding rows: train grows them to 448" in result.stderr
    result = cli("train", *TINY, *grown, "--data", "data", "-o", "run", "-s", "train.max_steps=3")
    assert result.code == 0, result.stderr
    assert "note: the embedding grows from 384 to 448 rows for <|reward|> (384)" in result.stderr
    trained = AutoModelForSequenceClassification.from_pretrained("run/model")
    assert trained.config.vocab_size == 448
    assert trained.get_input_embeddings().weight.shape[0] == 448
    line = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
    scored = cli("score", "run/model", "-q", stdin=line)
    tokenizer = AutoTokenizer.from_pretrained("run/model")
    text = tokenizer.apply_chat_template(list(conversation("q", "a")), tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids[0, -1] == 384
    with torch.no_grad():
        expected = float(trained(input_ids=ids).logits)
    assert json.loads(scored.stdout)["chosen_score"] == pytest.approx(expected, abs=1e-5)


def test_a_trained_reward_model_is_scored_as_it_is(tiny_run, tmp_path, capsys):
    """A zero row under a trained head belongs to that head."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_run.model, folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        network.get_input_embeddings().weight[4] = 0
    network.save_pretrained(folder)
    section = resolve("tiny").config.model.model_copy(
        update={"pretrained_model_name_or_path": str(folder), "random_weights": False}
    )
    loaded = load_model(section, load_tokenizer(section))
    assert loaded.get_input_embeddings().weight[4].abs().max() == 0


# --- chat templates ---


def test_a_missing_template_asks_for_one_and_takes_it(cli, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(REPOSITORY / "presets" / "tiny", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    bare = ("-s", f"model.pretrained_model_name_or_path={folder}")
    result = cli("prepare", "tasks:50", *TINY, *bare, "-o", "none")
    assert result.code == 2
    assert "has no chat template" in result.stderr
    assert "hint: give one: --chat-template FILE, or a built-in one: chatml, llama3, plain" in result.stderr
    (tmp_path / "template.jinja").write_text(template)
    manifests = []
    for name, choice in (("built_in", "chatml"), ("file", "template.jinja"), ("plain", "plain")):
        result = cli("prepare", "tasks:50", *TINY, *bare, "--chat-template", choice, "-o", name)
        assert result.code == 0, result.stderr
        manifests.append(read_manifest(tmp_path / name))
    assert manifests[0]["splits"]["train"]["num_tokens"] == manifests[1]["splits"]["train"]["num_tokens"]
    assert manifests[0]["splits"]["train"]["num_tokens"] != manifests[2]["splits"]["train"]["num_tokens"]
    chosen = ("-s", f"model.chat_template={tmp_path / 'template.jinja'}")
    result = cli("train", *TINY, *bare, *chosen, "--data", "file", "-o", "run", "-s", "train.max_steps=2")
    assert result.code == 0, result.stderr
    result = cli("score", "run/model", "-q", stdin=json.dumps({"messages": list(conversation("q", "a"))}))
    assert "score" in json.loads(result.stdout)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("chatlm", "'chatlm' is no file and no built-in template"),
        ("llama3", "'llama3' needs <|start_header_id|>, <|end_header_id|>, <|eot_id|>"),
        ("empty.jinja", "holds no template text"),
        ("wrong.json", "cannot be read"),
    ],
)
def test_templates_that_cannot_be_used(cli, tmp_path, choice, message):
    (tmp_path / "empty.jinja").write_text(" ")
    (tmp_path / "wrong.json").write_text('{"template": ""}')
    result = cli("prepare", "tasks:50", *TINY, "--chat-template", choice)
    assert result.code == 2
    assert message in result.stderr


def test_the_built_in_templates_render():
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    tokenizer = tiny_reward().tokenizer
    tokenizer.chat_template = chat_templates.BUILT_IN["chatml"]
    expected = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected
    tokenizer.chat_template = chat_templates.BUILT_IN["plain"]
    expected = "### System:\ns\n\n### User:\nu\n\n### Assistant:\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True).endswith(expected)
    tokenizer.chat_template = chat_templates.BUILT_IN["llama3"]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert "<|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>" in text


def described(tokenizer_folder, name: str) -> chat_templates.Description:
    return chat_templates.describe(AutoTokenizer.from_pretrained(tokenizer_folder(name)))


def test_what_real_templates_add_is_found(tokenizer_folder):
    llama3 = described(tokenizer_folder, "llama3")
    assert llama3.generation_tail is not None
    assert "assistant" in llama3.generation_tail
    assert not llama3.think_block
    assert llama3.default_system_prompt is None
    qwen3 = described(tokenizer_folder, "qwen3")
    assert qwen3.think_block
    assert qwen3.generation_tail is None
    assert not qwen3.double_bos
    gemma3 = described(tokenizer_folder, "gemma3")
    assert gemma3.double_bos
    assert not gemma3.drops_system  # folded into the user's turn
    assert not gemma3.think_block
    assert not described(tokenizer_folder, "deepseek_v3").think_block


def test_the_default_models_system_prompt_is_found(gguf, cli):
    section = resolve(None, settings=[f"model.pretrained_model_name_or_path={gguf}"]).config.model
    found = chat_templates.describe(tokenizers.load_bare_tokenizer(section))
    assert found.default_system_prompt == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert found.generation_tail is None


def test_a_template_that_writes_the_date_is_found():
    tokenizer = tiny_reward().tokenizer
    assert chat_templates.describe(tokenizer).notes == []
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    assert chat_templates.describe(tokenizer).notes == [
        "writes today's date: the same conversation has other tokens on another day"
    ]


def test_a_template_that_refuses_system_messages_is_found():
    tokenizer = tiny_reward().tokenizer
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    assert chat_templates.describe(tokenizer).notes == ["leaves system messages out, or refuses them"]


def test_show_prints_the_first_pairs_token_by_token(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"prompt": "2+2", "chosen": "4", "rejected": "5"}] * 3)
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out", "--show", "2")
    assert result.code == 0, result.stderr
    assert "pair 1 (input row 0)" in result.stdout
    assert "pair 2" not in result.stdout  # the others are duplicates
    lines = [line.split() for line in result.stdout.splitlines()]
    prefix = [line for line in lines if line[:2] == ["shared", "prefix"]]
    chosen = [line for line in lines if line[:1] == ["chosen"]]
    assert prefix[0][2:4] == ["0", "2"]  # position 0, <|im_start|>
    assert chosen[0][1] == str(len(prefix))
    assert chosen[0][-1] == "'4'"
    assert chosen[-1][2:4] == ["4", "'<|reserved_special_token_0|>'"]
    assert "<- scored here" in result.stdout


def test_show_says_what_it_leaves_out(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"prompt": "xy " * 80, "chosen": "4", "rejected": "5"}])
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out", "--show", "1")
    assert "more tokens" in result.stdout


def test_a_pad_token_is_never_an_ordinary_one():
    """Made a pad token, an ordinary one would be cut out of the texts it occurs in."""
    reward = tiny_reward()
    reward.tokenizer.pad_token = None
    only = RewardTokenizer(reward.tokenizer, "<|im_end|>", 3, 384, mode="natural")
    assert reward.tokenizer.convert_ids_to_tokens(only.pad_token_id) in reward.tokenizer.get_added_vocab()
    assert only.pad_token_id != 3


def test_score_says_when_the_self_test_fails(tiny_run, cli, monkeypatch):
    from rmcli.model.attention.layout import PackedLayout

    full = lambda self, q, k, window, device: torch.ones(q, k, dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(PackedLayout, "mask", full)
    result = cli("score", tiny_run.model, stdin=json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    assert result.code == 1
    assert "self-test failed" in result.stderr
    assert RmcliError.exit_code == 1
