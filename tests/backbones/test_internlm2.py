"""InternLM2's layout against a forward of our own, written from the published one, and its tokenizer against
SentencePiece itself. The models are tiny and random, the SentencePiece models trained here."""

import io
import json
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmcli import RewardModel
from rmcli.backbones.internlm2.config import llama_config
from rmcli.backbones.internlm2.weights import split_qkv
from rmcli.config.resolve import resolve
from rmcli.config.sections import ModelSection
from rmcli.errors import ConfigError, RmcliError
from rmcli.installed import install_command
from rmcli.model import batch, forward
from rmcli.model.backend import stock_attention
from rmcli.model.forward import apply_head
from rmcli.model.load import load_model
from rmcli.model.network import backbone
from rmcli.rows import tasks
from rmcli.tokens import tokenizer
from support.networks import random_group
from support.places import REPOSITORY, write_lines

LAYERS, HIDDEN, INNER, HEADS, GROUPS, SWITCH = 2, 32, 48, 4, 2, 2048
HEAD_DIM = HIDDEN // HEADS
REWARD_TOKEN, IM_END, IM_START = "[UNUSED_TOKEN_130]", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"
UNUSED = [f"[UNUSED_TOKEN_{number}]" for number in range(128, 147)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "Sort: 3 1 2 0",
    " leading, and trailing ",
    "   three  spaces\t\ttabs",
    "line one\nline two\n\n\r\nline five\n",
    "Grüße, 世界。 Привет 🙂👩‍🚀 e\u0301 \u00a0 \u200b \x00",
    "a[UNUSED_TOKEN_130]b [UNUSED_TOKEN_131] [UNUSED_TOKEN_13][UNUSED_TOKEN_132]",
    "[UNUSED_TOKEN_133]first",
    "▁ is how a space is written",
    " ",
    "",
]


# --- the published forward, in plain torch ---


@dataclass
class Reference:
    """A forward over a checkpoint's own tensors. `weights` are by InternLM2's names, without `model.`."""

    weights: dict[str, torch.Tensor]
    config: dict

    def hidden(self, ids: list[int]) -> torch.Tensor:
        """(tokens, hidden) after the last norm."""
        x = self.weights["tok_embeddings.weight"][torch.tensor(ids)]
        for number in range(LAYERS):
            layer = {
                key.removeprefix(f"layers.{number}."): value
                for key, value in self.weights.items()
                if key.startswith(f"layers.{number}.")
            }
            x = x + self.attention(layer, self.norm(x, layer["attention_norm.weight"]))
            y = self.norm(x, layer["ffn_norm.weight"])
            gate = y @ layer["feed_forward.w1.weight"].T
            x = (
                x
                + (gate * torch.sigmoid(gate) * (y @ layer["feed_forward.w3.weight"].T))
                @ layer["feed_forward.w2.weight"].T
            )
        return self.norm(x, self.weights["norm.weight"])

    def score(self, ids: list[int]) -> float:
        return float(self.hidden(ids)[-1] @ self.weights["v_head.weight"][0])

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.config["rms_norm_eps"])

    def attention(self, layer: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        fused = x @ layer["attention.wqkv.weight"].T
        if self.config["bias"]:
            fused = fused + layer["attention.wqkv.bias"]
        heads, future = [], torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), 1)
        start = 0
        for _ in range(GROUPS):
            blocks = [fused[:, start + n * HEAD_DIM : start + (n + 1) * HEAD_DIM] for n in range(HEADS // GROUPS + 2)]
            start += len(blocks) * HEAD_DIM
            *queries, key, value = blocks
            for query in queries:
                logits = self.rotate(query) @ self.rotate(key).T / HEAD_DIM**0.5
                heads.append(logits.masked_fill(future, float("-inf")).softmax(-1) @ value)
        out = torch.cat(heads, -1) @ layer["attention.wo.weight"].T
        return out + layer["attention.wo.bias"] if self.config["bias"] else out

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        base, length, switch = self.config["rope_theta"], len(x), self.config["max_position_embeddings"]
        scaling = self.config["rope_scaling"]
        if scaling and length > switch:
            factor = scaling["factor"]
            base *= (factor * length / switch - (factor - 1)) ** (HEAD_DIM / (HEAD_DIM - 2))
        half = HEAD_DIM // 2
        angle = torch.arange(length)[:, None] * base ** (-torch.arange(half) / half)
        first, second = x[:, :half], x[:, half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )


# --- folders as InternLM2's releases and XTuner have them ---


def train_sentencepiece(**options: object) -> bytes:
    """A small BPE model of the built-in tasks' text, as InternLM2's is set up unless `options` say otherwise."""
    settings = {
        "model_type": "bpe",
        "vocab_size": 440,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": UNUSED,
        "control_symbols": ["<|plugin|>"],
        "minloglevel": 2,
    } | options
    corpus = [row["prompt"][0]["content"] for row in tasks.generate(400)]
    corpus += ["user assistant system", "Grüße an die Welt, sagt sie", "def f(x): return x ** 2"] * 20
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=file, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def spm() -> bytes:
    return train_sentencepiece()


def processor_of(content: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=content)


def write_tokenizer(folder: Path, content: bytes, **changes: object) -> Path:
    """tokenizer.model and tokenizer_config.json; two unused pieces take the chat's names, as in the releases."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(content)
    processor = processor_of(content)
    decoder = {0: "<unk>", 1: "<s>", 2: "</s>"}
    decoder |= {processor.piece_to_id(IM_END): "<|im_end|>", processor.piece_to_id(IM_START): "<|im_start|>"}
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "added_tokens_decoder": {
            str(index): {"content": text, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
            for index, text in decoder.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    } | changes
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def random_weights(config: dict, head: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """By InternLM2's names without `model.`; `head` is output or v_head."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 0.25) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    weights = {"tok_embeddings.weight": draw(config["vocab_size"], HIDDEN, std=1.0)}
    for number in range(LAYERS):
        layer = {
            "attention.wqkv.weight": draw((HEADS + 2 * GROUPS) * HEAD_DIM, HIDDEN),
            "attention.wo.weight": draw(HIDDEN, HEADS * HEAD_DIM),
            "feed_forward.w1.weight": draw(INNER, HIDDEN),
            "feed_forward.w3.weight": draw(INNER, HIDDEN),
            "feed_forward.w2.weight": draw(HIDDEN, INNER),
            "attention_norm.weight": 1 + draw(HIDDEN),
            "ffn_norm.weight": 1 + draw(HIDDEN),
        }
        if config["bias"]:
            layer |= {
                "attention.wqkv.bias": draw((HEADS + 2 * GROUPS) * HEAD_DIM),
                "attention.wo.bias": draw(HIDDEN),
            }
        weights |= {f"layers.{number}.{key}": value for key, value in layer.items()}
    rows = 1 if head == "v_head" else config["vocab_size"]
    return weights | {"norm.weight": 1 + draw(HIDDEN), f"{head}.weight": draw(rows, HIDDEN)}


def config_values(spm: bytes, **changes: object) -> dict:
    processor = processor_of(spm)
    return {
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
        "model_type": "internlm2",
        "vocab_size": len(processor),
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "hidden_act": "silu",
        "max_position_embeddings": SWITCH,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "reward_token_id": processor.piece_to_id(REWARD_TOKEN),
    } | changes


def write_weights(folder: Path, weights: dict[str, torch.Tensor], form: str = "safetensors") -> None:
    """`form`: safetensors, bin, or either with "sharded " before it."""
    if not form.startswith("sharded "):
        name = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[form]
        (save_file if form == "safetensors" else torch.save)(weights, folder / name)
        return
    kind = form.removeprefix("sharded ")
    stem = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    names = list(weights)
    weight_map = {}
    for number in range(3):
        part = {name: weights[name] for name in names[number::3]}
        file = f"{stem}-{number + 1:05}-of-00003.{kind}"
        (save_file if kind == "safetensors" else torch.save)(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_model(
    folder: Path,
    spm: bytes,
    form: str = "safetensors",
    head: str = "v_head",
    prefix: str = "model.",
    **changes: object,
) -> Reference:
    """A whole folder and the forward it should have."""
    write_tokenizer(folder, spm)
    values = config_values(spm, **changes)
    (folder / "config.json").write_text(json.dumps(values))
    weights = random_weights(values, head)
    bare = ("v_head.weight", "output.weight")  # the heads stand beside the backbone
    write_weights(folder, {key if key in bare else prefix + key: value for key, value in weights.items()}, form)
    return Reference(weights, values)


def section(folder: Path, **changes: object) -> ModelSection:
    values = {"pretrained_model_name_or_path": str(folder), "reward_token": REWARD_TOKEN} | changes
    return ModelSection.model_validate(values)


def loaded(folder: Path, **changes: object) -> torch.nn.Module:
    asked = section(folder, **changes)
    return load_model(asked, tokenizer.load_tokenizer(asked))


def plain_hidden(network: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad(), stock_attention(network, "eager"):
        return backbone(network)(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]


IDS = [1, 30, 17, 5, 400, 77, 200, 8, 8, 30, 55, 3]


# --- weights ---


@pytest.mark.parametrize(
    ("form", "prefix"),
    [
        ("safetensors", "model."),
        ("sharded safetensors", "model."),
        ("bin", "model."),
        ("sharded bin", "model."),
        ("safetensors", ""),
    ],
)
def test_every_form_of_checkpoint_computes_what_the_published_forward_does(form, prefix, spm, tmp_path):
    reference = write_model(tmp_path, spm, form, prefix=prefix)
    network = loaded(tmp_path)
    assert type(network).__name__ == "LlamaForSequenceClassification"
    expected = reference.hidden(IDS)
    assert expected.std() > 0.5
    torch.testing.assert_close(plain_hidden(network, IDS), expected, atol=1e-5, rtol=0)
    score = apply_head(network, plain_hidden(network, IDS))[-1].item()
    assert score == pytest.approx(reference.score(IDS), abs=1e-5)


def test_half_precision_checkpoints_load_as_float32(spm, tmp_path):
    reference = write_model(tmp_path, spm)
    halves = {key: value.bfloat16() for key, value in reference.weights.items()}
    write_weights(tmp_path, halves)
    network = loaded(tmp_path)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    rounded = Reference({key: value.float() for key, value in halves.items()}, reference.config)
    torch.testing.assert_close(plain_hidden(network, IDS), rounded.hidden(IDS), atol=1e-5, rtol=0)


def test_biases_of_the_attention_are_split_like_its_weights(spm, tmp_path):
    reference = write_model(tmp_path, spm, bias=True)
    without = Reference(reference.weights, reference.config | {"bias": False})
    assert (reference.hidden(IDS) - without.hidden(IDS)).abs().max() > 0.1
    torch.testing.assert_close(plain_hidden(loaded(tmp_path), IDS), reference.hidden(IDS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [10, 16, 17, 40])
def test_dynamic_rope_on_both_sides_of_its_switch(length, spm, tmp_path):
    reference = write_model(tmp_path, spm, max_position_embeddings=16)
    network = loaded(tmp_path)
    assert network.config.rope_parameters == {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}
    ids = (IDS * 4)[:length]
    torch.testing.assert_close(plain_hidden(network, ids), reference.hidden(ids), atol=1e-5, rtol=0)
    plain = Reference(reference.weights, reference.config | {"rope_scaling": None})
    assert bool((reference.hidden(ids) - plain.hidden(ids)).abs().max() > 1e-3) == (length > 16)


def test_rope_scaling_under_its_newer_name(spm):
    for scaling in ({"rope_type": "linear", "factor": 4}, {"rope_type": "linear", "type": "linear", "factor": 4}):
        config = llama_config(config_values(spm, rope_scaling=scaling), "it")
        assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}


def test_a_model_without_rope_scaling_has_plain_rope(spm, tmp_path):
    reference = write_model(tmp_path, spm, rope_scaling=None, max_position_embeddings=16)
    ids = IDS * 3
    torch.testing.assert_close(plain_hidden(loaded(tmp_path), ids), reference.hidden(ids), atol=1e-5, rtol=0)


def test_packed_and_shared_equals_the_published_forward_on_each_conversation(spm, tmp_path):
    reference = write_model(tmp_path, spm)
    network = loaded(tmp_path)
    generator = np.random.default_rng(0)
    groups = [random_group(generator, prefix, (5, 3, 9)) for prefix in (11, 1, 6)]
    with torch.no_grad():
        actual = forward.scores(network, batch.build_packed(groups)).tolist()
    expected = [
        reference.score([*group.prefix.tolist(), *response.tolist()])
        for group in groups
        for response in group.responses
    ]
    assert np.std(expected) > 0.1
    assert actual == pytest.approx(expected, abs=1e-5)


def test_another_split_of_wqkv_is_another_model(spm, tmp_path, monkeypatch):
    """The reference notices a wrong reading: all queries, then all keys, then all values."""
    reference = write_model(tmp_path, spm)

    def contiguous(wqkv, config):
        return wqkv.split([HEADS * HEAD_DIM, GROUPS * HEAD_DIM, GROUPS * HEAD_DIM])

    monkeypatch.setattr("rmcli.backbones.internlm2.weights.split_qkv", contiguous)
    assert (plain_hidden(loaded(tmp_path), IDS) - reference.hidden(IDS)).abs().max() > 0.1


def test_the_rows_of_wqkv_by_hand(spm):
    """2 key/value heads with 2 queries each and heads of 1 number: q q k v, q q k v."""
    config = llama_config(config_values(spm, hidden_size=4), "it")
    rows = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert [part.tolist() for part in split_qkv(rows, config)] == [[0, 1, 4, 5], [2, 6], [3, 7]]


def test_a_language_model_gets_a_new_head_of_zeros(spm, tmp_path):
    write_model(tmp_path, spm, head="output", architectures=["InternLM2ForCausalLM"])
    network = loaded(tmp_path)
    assert network.score.weight.shape == (1, HIDDEN)
    assert not network.score.weight.any()
    assert "lm_head.weight" not in network.state_dict()
    write_model(tmp_path / "lost", spm, head="output")
    with pytest.raises(RmcliError, match=r"says InternLM2ForRewardModel, but its weights have no score\.weight"):
        loaded(tmp_path / "lost")


def test_a_config_of_internlm2_becomes_a_llama_s(spm, tmp_path):
    write_model(tmp_path, spm)
    config = tokenizer.load_model_config(section(tmp_path))
    assert config.model_type == "llama"
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (32, 48, 8)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (2, 4, 2)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (440, 2048, 1e-5)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)
    assert (config.attention_bias, config.mlp_bias, config.tie_word_embeddings) == (False, False, False)
    assert not hasattr(config, "auto_map")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": None}, "has no rope_theta"),
        ({"bias": None}, "has no bias"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling = {'type': 'yarn'"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling = {'type': 'dynamic'}"),
        ({"rope_scaling": "dynamic"}, "rope_scaling = dynamic"),
        ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, "rope_scaling = {'type': 'lin"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"hidden_size": "32"}, "has hidden_size = '32', which is no size"),
        ({"num_key_value_heads": 3}, "4 heads do not divide hidden_size = 32, or 3 key/value heads do not"),
    ],
)
def test_a_config_that_would_have_to_be_guessed_is_one_line(change, said, spm, tmp_path):
    write_model(tmp_path, spm)
    (tmp_path / "config.json").write_text(json.dumps(config_values(spm, **change)))
    with pytest.raises(RmcliError, match=re.escape(said)):
        tokenizer.load_model_config(section(tmp_path))


def without(name: str):
    return lambda weights: {key: value for key, value in weights.items() if key != name}


DAMAGES = {
    "missing": (without("layers.1.attention.wqkv.weight"), "lacks 1 tensor, first layers.1.attention.wqkv.weight"),
    "two missing": (lambda weights: {"v_head.weight": weights["v_head.weight"]}, "lacks 16 tensors, first tok_emb"),
    "misshapen": (
        lambda weights: weights | {"norm.weight": torch.ones(HIDDEN + 1)},
        "norm.weight is (33,) of torch.float32, not (32,) of floats",
    ),
    "misshapen wqkv": (
        lambda weights: weights | {"layers.0.attention.wqkv.weight": torch.ones(96, HIDDEN)},
        "wqkv.weight is (96, 32) of torch.float32, not (64, 32) of floats",
    ),
    "integers": (
        lambda weights: weights | {"norm.weight": torch.ones(HIDDEN, dtype=torch.int8)},
        "norm.weight is (32,) of torch.int8, not (32,) of floats",
    ),
    "left over": (
        lambda weights: weights | {"layers.2.ffn_norm.weight": torch.ones(HIDDEN)},
        "holds layers.2.ffn_norm.weight, for which an InternLM2 of 2 layers has no place",
    ),
    "a bias": (
        lambda weights: weights | {"layers.0.attention.wo.bias": torch.ones(HIDDEN)},
        "holds layers.0.attention.wo.bias, for which",
    ),
    "twice": (
        lambda weights: weights | {"model.norm.weight": torch.ones(HIDDEN)},
        "norm.weight twice",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_clear_line(damage, spm, tmp_path, cli):
    change, said = DAMAGES[damage]
    reference = write_model(tmp_path / "it", spm)
    write_weights(tmp_path / "it", change(reference.weights))
    result = cli("score", "it", stdin="{}")
    assert result.code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "the checkpoint of it" in line
    assert said in line


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_weight_file_that_is_cut_short_is_one_clear_line(form, spm, tmp_path, cli):
    write_model(tmp_path / "it", spm, form)
    (file,) = [*(tmp_path / "it").glob("*.safetensors"), *(tmp_path / "it").glob("*.bin")]
    file.write_bytes(file.read_bytes()[:1000])
    result = cli("score", "it", stdin="{}")
    assert result.code == 1
    assert f"{file.name} cannot be read: " in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_shards_and_weights_are_one_clear_line(spm, tmp_path):
    write_model(tmp_path, spm, "sharded safetensors")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(RmcliError, match=r"model-00002-of-00003\.safetensors"):
        loaded(tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()
    with pytest.raises(RmcliError, match="has no weights"):
        loaded(tmp_path)


def test_a_hub_name_is_read_from_the_cache(spm, tmp_path, monkeypatch):
    """The path a download takes, as far as it goes without a network."""
    from huggingface_hub import constants

    stored = tmp_path / "models--org--it"
    reference = write_model(stored / "snapshots" / "abc", spm, "sharded safetensors")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    network = loaded(Path("org/it"))
    torch.testing.assert_close(plain_hidden(network, IDS), reference.hidden(IDS), atol=1e-5, rtol=0)
    (stored / "snapshots" / "abc" / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(RmcliError, match="cannot load the weights of org/it"):
        loaded(Path("org/it"))


def test_a_pickle_that_would_run_code_is_refused(spm, tmp_path):
    write_model(tmp_path, spm)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"norm.weight": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RmcliError, match=r"pytorch_model\.bin cannot be read: Weights only load failed"):
        loaded(tmp_path)


# --- the tokenizer ---


def ids_by_section(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """The published slow tokenizer: special tokens first, SentencePiece on what stands between them."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    special |= {"<|im_end|>": processor.piece_to_id(IM_END), "<|im_start|>": processor.piece_to_id(IM_START)}
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, special)) + ")", text):
        ids += [special[part]] if part in special else processor.encode(part)
    return ids


SETUPS = {
    "as InternLM2": {},
    "dummy prefix": {"add_dummy_prefix": True},
    "NFKC, spaces removed": {
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": True,
        "normalization_rule_name": "nmt_nfkc",
    },
    "no byte fallback": {"byte_fallback": False, "vocab_size": 184},
    "split digits": {"split_digits": True, "allow_whitespace_only_pieces": True},
}


@pytest.mark.parametrize("setup", SETUPS)
def test_ids_are_sentencepiece_s_own(setup, tmp_path):
    content = train_sentencepiece(**SETUPS[setup])
    processor = processor_of(content)
    ours = tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path, content)))
    texts = [*TEXTS, *(row["chosen"][0]["content"] for row in tasks.generate(40, seed=9))]
    for text in texts:
        assert ours(text, add_special_tokens=False)["input_ids"] == processor.encode(text), text
    chat = "<s><|im_start|>user\n Sort: 2 1<|im_end|>\n<|im_start|>[UNUSED_TOKEN_140]x</s>"
    assert ours(chat, add_special_tokens=False)["input_ids"] == ids_by_section(processor, chat)
    assert ours(TEXTS[0])["input_ids"] == [1, *processor.encode(TEXTS[0])]


def test_tokens_inside_the_sentencepiece_model_under_their_own_names(tmp_path):
    """Nothing is renamed: the chat's tokens are user-defined pieces themselves."""
    content = train_sentencepiece(user_defined_symbols=[*UNUSED, "<|im_start|>", "<|im_end|>"])
    processor = processor_of(content)
    folder = write_tokenizer(tmp_path, content, added_tokens_decoder={}, additional_special_tokens=[])
    ours = tokenizer.load_bare_tokenizer(section(folder))
    for text in [*TEXTS, "<|im_start|>user\nSort: 2 1<|im_end|>\n[UNUSED_TOKEN_146]"]:
        assert ours(text, add_special_tokens=False)["input_ids"] == processor.encode(text), text


def test_names_ids_and_settings_of_the_tokenizer(spm, tmp_path):
    processor = processor_of(spm)
    ours = tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path, spm)))
    assert len(ours) == len(processor) == 440
    assert ours.convert_tokens_to_ids(REWARD_TOKEN) == processor.piece_to_id(REWARD_TOKEN)
    assert ours.convert_tokens_to_ids("<|im_start|>") == processor.piece_to_id(IM_START)
    assert IM_START not in ours.get_vocab()
    assert ours.convert_tokens_to_ids("<|plugin|>") == processor.piece_to_id("<|plugin|>")
    assert (ours.bos_token, ours.eos_token, ours.pad_token, ours.unk_token) == ("<s>", "</s>", "</s>", "<unk>")
    assert ours.chat_template == CHAT_TEMPLATE
    same = [piece for n in range(440) if (piece := processor.id_to_piece(n)) not in (IM_END, IM_START)]
    assert all(ours.convert_tokens_to_ids(piece) == processor.piece_to_id(piece) for piece in same)
    for text in TEXTS[:5]:
        assert ours.decode(ours(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tokenizer_comes_back_from_a_folder_the_same(spm, tmp_path):
    ours = tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path / "in", spm)))
    ours.save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in [*TEXTS, "<|im_start|>user\n a<|im_end|>"]:
        assert again(text)["input_ids"] == ours(text)["input_ids"]
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_a_tokenizer_json_is_used_as_it_is_and_runs_no_remote_code(spm, tmp_path):
    folder = write_tokenizer(tmp_path, spm)
    ours = tokenizer.load_bare_tokenizer(section(folder))
    ours.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").unlink()
    (folder / "tokenization_internlm2.py").write_text("raise SystemExit('remote code has run')")
    fast = tokenizer.load_bare_tokenizer(section(folder))
    for text in [*TEXTS, "<|im_start|>user\n a<|im_end|>"]:
        assert fast(text, add_special_tokens=False)["input_ids"] == ours(text, add_special_tokens=False)["input_ids"]
    fast.save_pretrained(tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())


def test_tokens_past_the_sentencepiece_model_take_the_ids_the_folder_gives(spm, tmp_path):
    added = {"440": {"content": "<|extra|>", "special": True}}
    ours = tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path, spm, added_tokens_decoder=added)))
    assert ours("a<|extra|>", add_special_tokens=False)["input_ids"][-1] == 440
    gap = {"441": {"content": "<|extra|>", "special": True}}
    with pytest.raises(ConfigError, match=r"gives '<\|extra\|>' the id 441, but beside .* it is 440"):
        tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path, spm, added_tokens_decoder=gap)))
    clash = {"7": {"content": REWARD_TOKEN, "special": True}}
    with pytest.raises(ConfigError, match=r"give two ids to '\[UNUSED_TOKEN_130\]'"):
        tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path, spm, added_tokens_decoder=clash)))


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf.message"])
def test_a_missing_package_is_one_line_with_the_command(package, spm, tmp_path, monkeypatch):
    write_tokenizer(tmp_path, spm)
    monkeypatch.setitem(sys.modules, package, None)
    name = "protobuf" if "google" in package else package
    with pytest.raises(ConfigError, match=f"needs the package {name}") as caught:
        tokenizer.load_bare_tokenizer(section(tmp_path))
    assert caught.value.hint == install_command("internlm2")


def test_files_that_are_no_such_tokenizer_are_one_line(spm, tmp_path):
    folder = write_tokenizer(tmp_path, train_sentencepiece(model_type="unigram", vocab_size=380))
    with pytest.raises(ConfigError, match=r"tokenizer\.model is no SentencePiece BPE model"):
        tokenizer.load_bare_tokenizer(section(folder))
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match=r"tokenizer\.model cannot be read as a SentencePiece model"):
        tokenizer.load_bare_tokenizer(section(folder))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"has neither tokenizer\.json nor tokenizer\.model"):
        tokenizer.load_bare_tokenizer(section(folder))


def test_ids_that_differ_from_sentencepiece_s_are_refused(spm, tmp_path, monkeypatch):
    """As a model would be whose merges our reading did not reproduce."""
    monkeypatch.setattr("rmcli.backbones.internlm2.bpe._merges", lambda scores: [])
    with pytest.raises(ConfigError, match="SentencePiece's ids for 'Sort these: 3, 1 and 2"):
        tokenizer.load_bare_tokenizer(section(write_tokenizer(tmp_path, spm)))


# --- the command line ---


def chat_ids(spm: bytes, conversation: list[dict]) -> list[int]:
    """What the published get_score would feed: the rendered chat, then the reward token."""
    processor = processor_of(spm)
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation]
    return [*ids_by_section(processor, "<s>" + "".join(turns)), processor.piece_to_id(REWARD_TOKEN)]


def test_score_on_xtuner_s_own_reward_model(spm, tmp_path, cli):
    reference = write_model(tmp_path / "xtuner", spm, "sharded bin")
    rows = list(tasks.generate(12, seed=4))
    result = cli("score", "xtuner", "-q", stdin="".join(json.dumps(row) + "\n" for row in rows))
    assert result.code == 0, result.stderr
    for row, line in zip(rows, map(json.loads, result.stdout.splitlines()), strict=True):
        for side in ("chosen", "rejected"):
            expected = reference.score(chat_ids(spm, row["prompt"] + row[side]))
            assert line[f"{side}_score"] == pytest.approx(expected, abs=1e-5)
    model = RewardModel.load("xtuner")
    scores = model.score(row["prompt"] + row["chosen"] for row in rows)
    chosen = [json.loads(line)["chosen_score"] for line in result.stdout.splitlines()]
    assert [score.value for score in scores] == pytest.approx(chosen, abs=1e-6)


def test_score_on_polar_s_comparison_with_a_reference(spm, tmp_path, cli):
    """The same layout under other names: the text is composed by hand, the reward token appended."""
    reference = write_model(tmp_path / "polar", spm, architectures=["InternLM2ForRewardModel"])
    processor = processor_of(spm)
    reward, split = processor.piece_to_id(REWARD_TOKEN), processor.piece_to_id("[UNUSED_TOKEN_131]")
    names = {reward: "<|reward|>", split: "<|split_token|>"}
    decoder = {str(index): {"content": text, "special": True} for index, text in names.items()}
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    write_tokenizer(tmp_path / "polar", spm, added_tokens_decoder=decoder, chat_template=template)
    first, second = "Sort: 2 1\n1 2", "Sort: 2 1\n2 1"
    text = f"{first}<|split_token|>{second}"
    row = {"messages": [{"role": "assistant", "content": text}]}
    result = cli("score", "polar", "-q", "-s", "data.allow_no_prompt=true", stdin=json.dumps(row))
    assert result.code == 0, result.stderr
    ids = [*processor.encode(first), split, *processor.encode(second), reward]
    assert json.loads(result.stdout)["score"] == pytest.approx(reference.score(ids), abs=1e-5)


def test_prepare_train_and_score_from_internlm2_s_layout(spm, tmp_path, cli):
    write_model(tmp_path / "base", spm, "bin", head="output", architectures=["InternLM2ForCausalLM"])
    (tmp_path / "base.toml").write_text(
        f'[model]\npretrained_model_name_or_path = "{tmp_path / "base"}"\nreward_token = "{REWARD_TOKEN}"\n'
        "[train]\nlr = 1e-3\nmax_steps = 3\npairs_per_step = 8\n[data]\nmax_length = 256\nmax_packed_length = 512\n"
    )
    prepared = cli("prepare", "tasks:120", "--map-fn", "checkable_tasks", "-c", "base.toml", "-o", "data", "-q")
    assert prepared.code == 0, prepared.stderr
    trained = cli("train", "-c", "base.toml", "--data", "data", "-o", "run", "-q")
    assert trained.code == 0, trained.stderr
    folder = tmp_path / "run" / "model"
    shipped = json.loads((folder / "config.json").read_text())
    assert (shipped["architectures"], shipped["model_type"]) == (["LlamaForSequenceClassification"], "llama")
    assert "auto_map" not in shipped
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    plain_tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = list(tasks.generate(8, seed=6))
    write_lines(tmp_path / "rows.jsonl", rows)
    scored = cli("score", "run/model", "rows.jsonl", "-q")
    assert scored.code == 0, scored.stderr
    scores = []
    for row, line in zip(rows, map(json.loads, scored.stdout.splitlines()), strict=True):
        for side in ("chosen", "rejected"):
            text = plain_tokenizer.apply_chat_template(row["prompt"] + row[side], tokenize=False)
            inputs = plain_tokenizer(text, add_special_tokens=False, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == chat_ids(spm, row["prompt"] + row[side])
            with torch.no_grad():
                scores.append(float(network(**inputs).logits))
            assert line[f"{side}_score"] == pytest.approx(scores[-1], abs=1e-5)
    assert np.std(scores) > 1e-3  # three steps have moved the head from zero


def test_inspect_token_reads_the_sentencepiece_model(spm, tmp_path, cli):
    write_model(tmp_path / "it", spm)
    result = cli("inspect-token", "it", "--json")
    assert result.code == 0, result.stderr
    found = {candidate["token"]: candidate["id"] for candidate in json.loads(result.stdout)["candidates"]}
    assert found[REWARD_TOKEN] == processor_of(spm).piece_to_id(REWARD_TOKEN)


def test_the_extra_and_the_preset_name_what_they_need():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"protobuf", "sentencepiece"} == {re.split("[<>=]", text)[0] for text in project["internlm2"]}
    assert set(project["internlm2"]) <= set(project["test"])
    preset = resolve("internlm2-1_8b").config.model
    assert (preset.reward_token, preset.reward_token_id) == ("[UNUSED_TOKEN_130]", 92527)
