"""A model folder that is damaged, edited or another's is refused when it is loaded, in one line; none scores NaN."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmcli.model.hashes import HASHES_FILE, write_hashes
from support.cli import as_options
from support.places import REPOSITORY, write_lines

ROWS = [{"prompt": f"Sort: {n} 1", "chosen": f"1 {n}", "rejected": f"{n} 1"} for n in range(2, 6)]
Tensors = dict[str, torch.Tensor]
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture
def model(tmp_path) -> Path:
    """A tiny trained model without hashes, to be damaged."""
    shutil.copytree(REPOSITORY / "tests" / "written_before" / "model", tmp_path / "model")
    write_lines(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "model"


def change_weights(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_json(folder: Path, name: str = "config.json", **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(cli, *options: object) -> str:
    """The one error line of a score that gives nothing at all."""
    result = cli("score", "model", "rows.jsonl", *options)
    assert result.code in (1, 2)
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line


def poisoned(name: str, at: tuple[int, ...], value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].__setitem__(at, value)


def wider(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].repeat(2, 1)


def two_outputs(tensors: Tensors) -> None:
    tensors["score.weight"] = tensors["score.weight"].repeat(2, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("score.weight"), "have no score.weight"),
        (lambda tensors: tensors.pop(NORM), f"1 missing, first {NORM}"),
        (lambda tensors: tensors.update({"model.layers.9.extra": torch.ones(1)}), "have no place in the model"),
        (poisoned("score.weight", (0, 3), float("inf")), "score.weight in the weights of model is not finite"),
        (poisoned("model.embed_tokens.weight", (9, 9), float("nan")), "model.embed_tokens.weight in the weights of"),
        (poisoned(NORM, (2,), float("nan")), f"{NORM} in the weights of model is not finite"),
        (
            two_outputs,
            "score.weight is (2, 16) in the weights of model, and (1, 16) by its config.json: a class",
        ),
        (wider, "model.embed_tokens.weight is (768, 16) in the weights of model, and (384, 16) by its config.json"),
    ],
)
def test_weights_that_do_not_make_the_model_are_refused_with_their_name(cli, model, change, said):
    change_weights(model, change)
    assert said in refused(cli)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_hidden_layers": 1},
            "9 weights of model have no place in the model of its config.json, first model.",
        ),
        ({"num_hidden_layers": 3}, "missing, first model.layers.2."),
        ({"num_attention_heads": 0}, "config.json of model has num_attention_heads = 0, which is no size"),
        ({"num_hidden_layers": 0}, "config.json of model has num_hidden_layers = 0, which is no size"),
        ({"vocab_size": -1}, "vocab_size = -1, which is no size"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"vocab_size": 300}, "model.embed_tokens.weight is (384, 16) in the weights of model, and (300, 16) by its"),
        ({"intermediate_size": 48}, "is (16, 32) in the weights of model, and (16, 48) by its config.json"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "model is quantized (gptq): it cannot be",
        ),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "model is quantized (awq)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "(bitsandbytes)"),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_one_line(cli, model, changes, said):
    change_json(model, **changes)
    assert said in refused(cli)


def test_a_score_that_is_not_finite_is_an_error_line_and_exit_code_1(cli, model):
    change_weights(model, lambda tensors: tensors["score.weight"].sign_().mul_(3e38))
    change_weights(model, lambda tensors: tensors["model.norm.weight"].mul_(20))
    result = cli("score", "model", "rows.jsonl", "--json")
    assert result.code == 1
    assert [json.loads(line) for line in result.stdout.splitlines()] == [{"error": "score_not_finite"}] * 4
    assert "NaN" not in result.stdout + result.stderr
    assert "Infinity" not in result.stdout + result.stderr
    assert "4 of 4 lines have no score: 4 score_not_finite" in result.stderr


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("always the same", "renders every reply alike"),
        ("", "renders nothing"),
        ("{{ messages[0]['content'] }}", "renders every reply alike"),
    ],
)
def test_a_template_that_writes_every_answer_alike_is_refused(cli, model, template, said):
    (model / "chat_template.jinja").write_text(template)
    assert said in refused(cli)


def test_a_window_of_different_conversations_that_are_all_written_alike_is_refused(cli, model, tmp_path):
    same = "{% for m in messages %}{{ m.role }}:{{ 'x' if 'Sort' in messages[0].content else m.content }}{% endfor %}"
    (model / "chat_template.jinja").write_text(same)
    assert "8 different conversations as the same" in refused(cli)
    blank = [{"prompt": "Say", "responses": ["yes", "yes ", " yes"]}]  # a template may trim
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content | trim }};{% endfor %}")
    write_lines(tmp_path / "blank.jsonl", blank)
    assert cli("score", "model", "blank.jsonl").code == 0


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"cut"])
def test_pickled_weights_that_are_damaged_are_one_line(cli, model, damage):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(damage)
    assert "cannot load the weights of model" in refused(cli)


def test_an_adapter_is_called_one(cli, model):
    change = model / "adapter_config.json"
    change.write_text(json.dumps({"base_model_name_or_path": "base", "peft_type": "LORA"}))
    (model / "adapter_model.safetensors").write_bytes(b"")
    assert "holds an adapter (adapter_model) beside whole weights" in refused(cli)
    for name in ("config.json", "model.safetensors"):
        (model / name).unlink()
    assert "cannot load the config of base" in refused(cli)


def test_training_takes_what_is_left_over_and_says_so_and_no_weight_that_is_not_finite(cli, model):
    stored = (f"model.pretrained_model_name_or_path={model}", "model.random_weights=false", "data.eval_fraction=0")
    setting = ("-p", "tiny", *as_options(*stored))
    assert cli("prepare", "rows.jsonl", "--map-fn", "canonical", "-o", "data", "--no-audit", *setting).code == 0
    change_weights(model, lambda tensors: tensors.update({"model.vision.weight": torch.ones(1)}))
    steps = ("-s", "train.max_steps=1")
    trained = cli("train", "--data", "data", "-o", "run", *setting, *steps)
    assert trained.code == 0, trained.stderr
    assert "1 weights of" in trained.stderr
    assert "first model.vision.weight: not used" in trained.stderr
    change_weights(model, poisoned(NORM, (2,), float("nan")))
    trained = cli("train", "--data", "data", "-o", "other", *setting, *steps)
    assert trained.code == 1
    assert f"error: {NORM} in the weights of {model} is not finite" in trained.stderr


def test_an_exported_folder_proves_itself(cli, model):
    write_hashes(model)
    unharmed = cli("score", "model", "rows.jsonl")
    assert unharmed.code == 0
    assert HASHES_FILE not in unharmed.stderr
    (model / "README.md").write_text("the user's own notes")
    assert cli("score", "model", "rows.jsonl").stdout == unharmed.stdout

    template = model / "chat_template.jinja"
    written = template.read_text()
    template.write_text(written.replace("assistant", "Assistant"))
    assert "chat_template.jinja was changed: sha256" in refused(cli)
    insisted = cli("score", "model", "rows.jsonl", "--no-verify")
    assert insisted.code == 0, insisted.stderr
    template.write_text(written)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert "model.safetensors was changed: sha256" in refused(cli)
    (model / "model.safetensors").unlink()
    assert "model.safetensors, which rmcli.sha256 lists, is missing" in refused(cli)


def test_a_file_that_loaders_would_read_and_the_export_did_not_write_is_refused(cli, model):
    write_hashes(model)
    (model / "generation_config.json").write_text("{}")
    assert "generation_config.json was added" in refused(cli)


def test_a_folder_without_hashes_scores_and_that_is_said(cli, model):
    result = cli("score", "model", "rows.jsonl")
    assert result.code == 0
    assert f"model has no {HASHES_FILE}: nothing proves that its files are as they were exported" in result.stderr


def test_train_exports_the_hashes_of_every_file(tiny_run):
    lines = (tiny_run.model / HASHES_FILE).read_text().splitlines()
    others = {path.name for path in tiny_run.model.iterdir()} - {HASHES_FILE, "README.md"}
    assert {line.split("  ")[1] for line in lines} == others
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json", "rmcli.toml"} <= others
