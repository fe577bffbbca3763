"""`rmcli export --format internlm2`: InternLM2's own names, for what reads no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from rmcli.backbones.internlm2.export import internlm2_config, internlm2_weights, join_qkv
from rmcli.backbones.internlm2.weights import fill, split_qkv
from rmcli.errors import ConfigError
from rmcli.ship import golden
from support.networks import tiny_model
from support.places import REPOSITORY, write_lines

RUN = REPOSITORY / "tests" / "written_before" / "run"  # of a Llama that InternLM2's layout can hold
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 97, "num_labels": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def test_both_layouts_of_a_run_score_the_same(cli):
    for layout, by in (("transformers", "plain transformers"), ("internlm2", "rmcli")):
        result = cli("export", RUN, "-o", layout, "--format", layout)
        assert result.code == 0, result.stderr
        assert f"golden scores by {by}, largest difference" in result.stderr
    config = json.loads(Path("internlm2/config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("internlm2", ["InternLM2ForRewardModel"])
    assert config["reward_bos_token_id"] == 2  # the tokenizer of neither declares one
    assert (config["reward_token_id"], config["rope_theta"], config["rope_scaling"]) == (4, 10000.0, None)
    names = load_file("internlm2/model.safetensors").keys()
    assert {"v_head.weight", "model.tok_embeddings.weight", "model.layers.1.attention.wqkv.weight"} <= names
    one, other = (Path(layout, golden.FILE).read_bytes() for layout in ("transformers", "internlm2"))
    assert one == other
    write_lines(Path("rows.jsonl"), [{"prompt": "Sort: 2 1", "chosen": "1 2", "rejected": "2 1"}])
    scores = [cli("score", layout, "rows.jsonl") for layout in ("transformers", "internlm2")]
    assert scores[0].code == 0, scores[0].stderr
    assert scores[0].stdout == scores[1].stdout
    assert "note: " not in scores[1].stderr


@pytest.mark.slow
def test_a_fresh_process_verifies_it_by_rmcli_and_says_so(cli):
    assert cli("export", RUN, "-o", "own", "--format", "internlm2", "--dtype", "bfloat16").code == 0
    result = cli("verify", "own", "--json")
    assert result.code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["ok"], told["scored_by"], len(told["checks"])) == (True, "rmcli", 3 + 16)
    shutil.rmtree("own")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rope", [{}, {"rope_type": "dynamic", "factor": 2.0}])
def test_weights_written_and_read_are_the_same(bias, rope):
    rope = {"rope_type": "default", "rope_theta": 5e5, **rope}
    config = LlamaConfig(**SIZES, **HEADS, attention_bias=bias, rope_parameters=rope)
    network, other = (LlamaForSequenceClassification(config) for _ in range(2))
    assert fill(other, internlm2_weights(network), "it")
    for (name, one), two in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
    told = internlm2_config(network)
    assert (told["bias"], told["rope_theta"]) == (bias, 5e5)
    assert told["rope_scaling"] == ({"type": "dynamic", "factor": 2.0} if len(rope) > 2 else None)


def test_queries_keys_and_values_are_joined_group_by_group():
    config = LlamaConfig(**SIZES, **HEADS)
    parts = tuple(
        torch.arange(rows * 3.0).reshape(rows, 3) + start for rows, start in ((32, 0), (16, 1e3), (16, 2e3))
    )
    joined = join_qkv(parts, config)
    assert torch.equal(joined[:16], parts[0][:16])
    assert torch.equal(joined[16:24], parts[1][:8])
    assert torch.equal(joined[24:32], parts[2][:8])
    assert all(torch.equal(one, other) for one, other in zip(split_qkv(joined, config), parts, strict=True))


@pytest.mark.parametrize(
    "network",
    [
        lambda: tiny_model("qwen3"),
        lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, **HEADS, mlp_bias=True)),
        lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, **HEADS, head_dim=16)),
        lambda: LlamaForSequenceClassification(
            LlamaConfig(**SIZES, **HEADS, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4})
        ),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(network):
    with pytest.raises(ConfigError, match="ForSequenceClassification cannot be written in InternLM2's own layout"):
        internlm2_config(network())
