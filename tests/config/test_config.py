"""Layers, origins, and what is refused."""

from pathlib import Path

import pytest

from rmcli.config.presets import preset_names, pretrained_arguments
from rmcli.config.resolve import resolve
from rmcli.errors import ConfigError

PRESETS = preset_names()


@pytest.mark.parametrize(
    ("preset", "token", "token_id"),
    [
        ("llama3-8b", "<|reserved_special_token_0|>", 128002),
        ("internlm2-1_8b", "[UNUSED_TOKEN_130]", 92527),
        ("smollm2-135m", "<empty_output>", 16),
        ("qwen3-0.6b", "<|quad_end|>", 151651),
        ("tiny", "<|reserved_special_token_0|>", 4),
    ],
)
def test_reward_tokens_of_the_presets(preset, token, token_id):
    model = resolve(preset).config.model
    assert (model.reward_token, model.reward_token_id) == (token, token_id)


def test_later_layers_win_and_say_where_a_value_is_from(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nlr = 1e-4\nmax_epochs = 2\n")
    resolved = resolve("tiny", [file], ["train.lr=3e-4"])
    train = resolved.config.train
    assert (train.lr, train.max_epochs, train.pairs_per_step, train.max_norm) == (3e-4, 2, 64, 1.0)
    assert resolved.origins["train.lr"] == "--set train.lr"
    assert resolved.origins["train.max_epochs"] == str(file)
    assert resolved.origins["train.pairs_per_step"] == "preset tiny"
    assert "train.max_norm" not in resolved.origins
    shown = resolved.toml(with_origins=True)
    assert "lr = 0.0003 # --set train.lr" in shown
    assert "max_norm = 1.0 # default" in shown


@pytest.mark.parametrize("preset", PRESETS)
def test_the_resolved_toml_loads_back_equal(preset, tmp_path):
    resolved = resolve(preset, settings=["data.sources=['a.jsonl', 'b']", "train.max_steps=7"])
    file = tmp_path / "resolved.toml"
    file.write_text(resolved.toml())
    again = resolve(None, [file])
    assert again.config == resolved.config
    assert again.name == preset


def test_batch_size_takes_the_place_of_a_presets_pairs_per_step():
    train = resolve("tiny", settings=["train.batch_size=4"]).config.train
    assert (train.batch_size, train.pairs_per_step) == (4, None)
    both = resolve("tiny", settings=["train.batch_size=4", "train.pairs_per_step=8"]).config.train
    assert (both.batch_size, both.pairs_per_step) == (4, 8)


def test_none_clears_an_optional_key():
    assert resolve("tiny", settings=["train.pairs_per_step=none"]).config.train.pairs_per_step is None
    with pytest.raises(ConfigError, match=r"train\.lr = None"):
        resolve("tiny", settings=["train.lr=none"])


def test_a_config_file_that_names_a_model_takes_no_default_preset(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[model]\npretrained_model_name_or_path = 'org/model'\n")
    resolved = resolve(None, [file])
    assert resolved.name == "mine"
    assert resolved.config.model.reward_token is None
    assert resolve(None, [], ["model.pretrained_model_name_or_path=org/m"]).config.model.reward_token_id == 16


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("data.max_lenght=5", "unknown key data.max_lenght", "did you mean max_length?"),
        ("train.loss_type=focal", "unknown key train.loss_type", "did you mean loss.loss_type?"),
        ("trian.lr=1", "unknown section [trian]", "did you mean train?"),
        ("train.lr='fast'", "train.lr = 'fast' (--set train.lr): Input should be a valid number", None),
        ("train.lr=true", "train.lr = True (--set train.lr): Input should be a valid number", None),
        ("train.max_epochs=1.5", "train.max_epochs = 1.5", None),
        ("train.lr=inf", "train.lr = inf", None),
        ("train.betas=[2.0, 0.9]", "betas = [2.0, 0.9] must lie in [0, 1)", None),
        ("loss.loss_type=hinge", "loss.loss_type = 'hinge'", None),
        ("data.eval_fraction=1.0", "data.eval_fraction = 1.0", None),
        ("data.max_packed_length=100", "max_packed_length = 100 is below max_length = 1024", None),
        ("parallel.data_parallel=zero3", "parallel.data_parallel = 'zero3'", None),
        ("lr=1", "--set 'lr=1' is not of the form section.key=value", "write -s train.lr=1"),
    ],
)
def test_wrong_settings_are_one_clear_error(setting, message, hint):
    with pytest.raises(ConfigError) as error:
        resolve(None, settings=[setting])
    assert message in error.value.message
    assert "\n" not in error.value.message
    if hint is not None:
        assert error.value.hint == hint


def test_unknown_presets_and_files():
    with pytest.raises(ConfigError, match="unknown preset 'llama3_8b'") as error:
        resolve("llama3_8b")
    assert error.value.hint == "did you mean llama3-8b?"
    with pytest.raises(ConfigError, match="no such file"):
        resolve(None, [Path("none.toml")])


def test_broken_toml_is_named(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("[train\nlr = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml: not valid TOML"):
        resolve(None, [file])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/model", {"pretrained_model_name_or_path": "org/model", "revision": "main"}),
        ("gpt2", {"pretrained_model_name_or_path": "gpt2", "revision": "main"}),
    ],
)
def test_hub_ids_keep_their_revision(name, expected):
    assert pretrained_arguments(name, "main") == expected


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "a/b/c", "weights.gguf"])
def test_paths_that_are_not_there(name):
    with pytest.raises(ConfigError, match="no such"):
        pretrained_arguments(name)


@pytest.mark.parametrize("setting", ["loss.penalty_type=none", 'loss.penalty_type="none"'])
def test_none_is_a_text_where_it_is_one_of_the_choices(setting):
    assert resolve("tiny", settings=[setting]).config.loss.penalty_type == "none"
