"""data.max_length stays within the backbone's positions."""

import json
import shutil

import pytest
from transformers import CONFIG_MAPPING

from rmcli.backbones.context import check_max_length, num_positions
from rmcli.config.presets import presets_folder
from rmcli.errors import ConfigError

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "keys", "limit"),
    [
        ("llama", {"max_position_embeddings": 512}, 512),
        ("gpt2", {"n_positions": 1024}, 1024),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("gpt_neox", {"max_position_embeddings": 2048}, 2048),
        ("llama", {"max_position_embeddings": 1024, "rope_parameters": DYNAMIC}, 2048),
        ("qwen2", {"max_position_embeddings": 1024, "rope_parameters": YARN}, 4096),
        ("qwen2", {"max_position_embeddings": 4096, "rope_parameters": YARN}, 4096),
        ("llama", {"max_position_embeddings": 2048, "rope_parameters": LLAMA3}, 2048),
        ("gemma3_text", {"max_position_embeddings": 8192}, 8192),
        ("bloom", {}, None),
        ("mpt", {}, None),
        ("mamba", {}, None),
        ("jamba", {}, None),
        ("falcon", {"alibi": True}, None),
        ("falcon", {"max_position_embeddings": 2048}, 2048),
    ],
)
def test_positions_of_a_backbone(model_type, keys, limit):
    config = CONFIG_MAPPING[model_type](**keys)
    assert num_positions(config) == limit
    if limit is None:
        check_max_length(config, 10**9, "it")
        return
    check_max_length(config, limit, "it")
    with pytest.raises(ConfigError) as error:
        check_max_length(config, limit + 1, "it")
    assert error.value.message == f"data.max_length = {limit + 1:,} is above the {limit:,} positions of it"


def test_prepare_train_and_score_refuse_a_longer_max_length(cli, tmp_path):
    """The data was prepared, and the model trained, for a context of 512; the model in hand has 64."""
    assert cli("prepare", "tasks:60", "-p", "tiny", "-o", "data", "--no-audit").code == 0
    trained = cli("train", "-p", "tiny", "--data", "data", "-o", "run", "-s", "train.max_steps=1")
    assert trained.code == 0, trained.stderr
    for folder in (shutil.copytree(presets_folder() / "tiny", tmp_path / "short"), tmp_path / "run" / "model"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    short = ("-p", "tiny", "-s", f"model.pretrained_model_name_or_path={tmp_path / 'short'}")
    for command in (
        ("prepare", "tasks:60", *short, "-o", "again"),
        ("train", *short, "--data", "data"),
        ("score", "run/model", "data/eval.jsonl", "--no-verify"),
    ):
        result = cli(*command)
        assert result.code == 2
        assert "data.max_length = 256 is above the 64 positions of" in result.stderr
        assert "-s data.max_length=64" in result.stderr
    within = cli("score", "run/model", "data/eval.jsonl", "--no-verify", "-s", "data.max_length=64")
    assert within.code == 0, within.stderr
