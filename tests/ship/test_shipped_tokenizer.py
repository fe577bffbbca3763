"""What an ordinary consumer's tokenizer gives of an exported folder: the tokens of training, however it is asked."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaTokenizer, pipeline

from rmcli.config.presets import presets_folder
from rmcli.config.sections import ModelSection
from rmcli.model.load import label_for_reward
from rmcli.records import PreferenceGroup
from rmcli.ship.folder import write
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import RewardTokenizer, load_tokenizer, resolve_reward_token
from support.networks import tiny_model

# Each template family of the presets whose tokenizer is at hand, by its reward token in reserved mode and by none.
FAMILIES = {
    "tiny": "<|reserved_special_token_0|>",
    "qwen3": "<|fim_pad|>",
    "gemma3": "<unused0>",
    "llama3": "<|reserved_special_token_0|>",
    "llama3_1": "<|reserved_special_token_0|>",
    "llama2": "<s><s>",  # added as a new token
    "deepseek_v3": "<｜place▁holder▁no▁0｜>",
    "mistral-v3": "[control_8]",
}
TALK = [{"role": "user", "content": " What is 2 + 2?"}, {"role": "assistant", "content": "4.\n"}]


@pytest.fixture
def reward_of(tokenizer_folder):
    """`reward_of("gemma3", "reserved")`: the family's tokenizer with its template and reward token."""

    def load(name: str, mode: str) -> RewardTokenizer:
        folder = presets_folder() / "tiny" if name == "tiny" else tokenizer_folder(name)
        loader = LlamaTokenizer if name.startswith("mistral-") else AutoTokenizer
        tokenizer = loader.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.chat_template is None:  # Llama's and Mistral's bare files: a template that writes BOS, as theirs
            tokenizer.chat_template = (
                "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
                "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
            )
        token = {"reserved": FAMILIES[name], "natural": "natural", "last": "last"}[mode]
        is_new = mode == "reserved" and token not in tokenizer.get_vocab()
        section = ModelSection(
            pretrained_model_name_or_path=name,
            reward_token=token,
            reward_token_id=len(tokenizer) if is_new else None,
        )
        return resolve_reward_token(tokenizer, section, len(tokenizer) + 64)

    return load


HEAVY = {"qwen3", "gemma3", "llama3", "llama3_1", "deepseek_v3"}  # large vocabularies, seconds each


def families(*names: str) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in HEAVY)) for name in names]


@pytest.mark.parametrize("mode", ["reserved", "natural", "last"])
@pytest.mark.parametrize("name", families(*FAMILIES))
def test_an_exported_tokenizer_gives_the_tokens_of_training_however_it_is_asked(tmp_path, reward_of, name, mode):
    reward = reward_of(name, mode)
    (encoded,) = Encoder(reward, 4096, "drop").encode([PreferenceGroup((tuple(TALK),))])
    expected = encoded.responses[0].tolist()
    before = reward.tokenizer("plain text")["input_ids"]
    write(tiny_model("llama"), reward, "", tmp_path / "model")
    assert reward.tokenizer("plain text")["input_ids"] == before  # the run's own tokenizer is left as it was

    shipped = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)
    text = shipped.apply_chat_template(TALK, tokenize=False)
    assert shipped(text)["input_ids"] == expected
    assert shipped(text, add_special_tokens=True)["input_ids"] == expected
    assert shipped(text, add_special_tokens=False)["input_ids"] == expected
    assert shipped.apply_chat_template(TALK)["input_ids"] == expected
    cut = shipped(text, truncation=True, max_length=len(expected) - 2)["input_ids"]
    assert cut[-1] == reward.reward_token_id  # cut on the left: the token that is scored stays
    plain = "Ärger, 12 words\n\tof <b>text</b>"
    assert shipped(plain)["input_ids"] == reward.tokenizer(plain, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", families("llama2", "gemma3", "llama3_1"))
def test_an_ordinary_pipeline_over_the_rendered_text_gives_the_score_of_a_forward(tmp_path, reward_of, name):
    reward = reward_of(name, "reserved")
    network = tiny_model("llama", vocab_size=reward.num_embedding_rows, pad_token_id=reward.pad_token_id)
    network.set_attn_implementation("eager")
    network.config.problem_type, network.config.num_labels = "regression", 1
    write(network, reward, "", tmp_path / "model")
    shipped = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)
    text = shipped.apply_chat_template(TALK, tokenize=False)
    classify = pipeline("text-classification", model=str(tmp_path / "model"), function_to_apply="none", device="cpu")
    (encoded,) = Encoder(reward, 4096, "drop").encode([PreferenceGroup((tuple(TALK),))])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", trust_remote_code=False).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor(encoded.responses[0][None], dtype=torch.long)).logits.item()
    assert classify(text)[0]["score"] == pytest.approx(expected, abs=1e-6)
    assert abs(expected) > 1e-3


@pytest.mark.parametrize("mode", ["reserved", "natural"])
@pytest.mark.parametrize("name", families("tiny", "llama2", "llama3_1"))
def test_bos_is_text_of_the_template_and_declared_to_nobody(tmp_path, reward_of, name, mode):
    """verl cuts a declared one off the text, NeMo-RL adds one. rmcli still keeps it where a prompt is cut."""
    reward = reward_of(name, mode)
    bos = reward.tokenizer.bos_token
    network = tiny_model("llama", vocab_size=reward.num_embedding_rows)
    label_for_reward(network.config, name, reward)
    write(network, reward, "", tmp_path / "model")
    shipped = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)
    assert shipped.bos_token is None
    assert shipped.apply_chat_template(TALK, tokenize=False).startswith(bos)
    assert reward.tokenizer.bos_token == bos

    section = ModelSection(
        pretrained_model_name_or_path=str(tmp_path / "model"),
        reward_token="natural" if mode == "natural" else reward.reward_token,
    )
    again = load_tokenizer(section)
    assert again.tokenizer.bos_token == bos
    talk = PreferenceGroup((({"role": "user", "content": "One, two, three and four. " * 9}, TALK[1]),))
    cut, cut_again = (Encoder(one, 60, "truncate_left").encode([talk])[0] for one in (reward, again))
    assert cut.truncated
    assert cut.responses[0].tolist() == cut_again.responses[0].tolist()
    assert cut.responses[0][0] == reward.tokenizer.bos_token_id
    write(network, again, "", tmp_path / "again")
    template = (tmp_path / "again" / "chat_template.jinja").read_text()
    assert template == (tmp_path / "model" / "chat_template.jinja").read_text()
