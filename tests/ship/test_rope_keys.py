"""config.json says a model's rotations in the keys of transformers 5 and in those of 4, which knows no other."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Olmo3Config, PhiConfig, Qwen3Config

from rmcli.ship.rope_keys import older_keys, write_both_forms

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SLIDING, FULL = "sliding_attention", "full_attention"


def test_older_keys_of_each_kind_of_rope():
    assert older_keys({}) == older_keys({"rope_parameters": None}) == {}
    default = {"rope_type": "default", "rope_theta": 1e6}
    assert older_keys({"rope_parameters": default}) == {"rope_theta": 1e6, "rope_scaling": None}
    llama = {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    assert older_keys(llama) == {"rope_theta": 5e5, "rope_scaling": LLAMA3}
    half = {"rope_parameters": {**default, "partial_rotary_factor": 0.5}}
    assert older_keys(half) == {"rope_theta": 1e6, "rope_scaling": None, "partial_rotary_factor": 0.5}
    nested = {FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, SLIDING: default | {"rope_theta": 1e4}}
    assert older_keys({"rope_parameters": nested}) == {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 1e4,
    }


NESTED = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
    SLIDING: {"rope_type": "default", "rope_theta": 2e4},
}
CONFIGS = {
    "llama": lambda: LlamaConfig(rope_parameters={**LLAMA3, "rope_theta": 5e5}),
    "qwen3": lambda: Qwen3Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "gemma3": lambda: Gemma3TextConfig(rope_parameters=NESTED),
    "phi": lambda: PhiConfig(
        rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.4}
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}
    ),
    "olmo3": lambda: Olmo3Config(rope_parameters={**LLAMA3, "rope_theta": 5e5}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_forms_are_written_and_read_as_before(tmp_path, name, capsys):
    config = CONFIGS[name]()
    config.save_pretrained(tmp_path)
    write_both_forms(tmp_path)
    written = json.loads(Path(tmp_path, "config.json").read_text())
    assert written["rope_theta"] in (5e5, 1e6, 2e6, 2e4)
    assert "rope_scaling" in written
    assert "rope_parameters" in written
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters
    assert "note" not in capsys.readouterr().err


def test_keys_that_would_change_what_is_read_are_left_out_and_that_is_said(tmp_path, monkeypatch, capsys):
    CONFIGS["qwen3"]().save_pretrained(tmp_path)
    before = Path(tmp_path, "config.json").read_text()
    monkeypatch.setattr("rmcli.ship.rope_keys.older_keys", lambda _: {"rope_parameters": {"rope_theta": 1.0}})
    write_both_forms(tmp_path)
    assert Path(tmp_path, "config.json").read_text() == before
    assert "config.json has no rope keys for transformers 4" in capsys.readouterr().err
