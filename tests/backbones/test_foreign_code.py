"""Python that comes with a model is never run, never asked about, and no call of transformers could."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from rmcli.config.presets import presets_folder
from support.places import REPOSITORY, write_lines

ROWS = [{"prompt": f"Sort: {n} 1", "chosen": f"1 {n}", "rejected": f"{n} 1"} for n in range(2, 9)]
# The one place that takes any of the loaders below; each of these says it itself.
PASSES_ON = {
    "rmcli/backbones/pretrained.py": "loader.from_pretrained(**arguments)",
    "rmcli/ship/plain.py": "PeftModel.from_pretrained(base, folder)",  # peft's: weights and JSON
}


def calls_of_transformers(path: Path) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    loaders = ("from_pretrained", "from_config")
    found = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in loaders]
    return [call for call in found if ast.unparse(call) != PASSES_ON.get(str(path.relative_to(REPOSITORY)))]


def test_every_call_of_transformers_refuses_remote_code():
    folders = ("rmcli", "benchmarks", "docs", "examples")
    calls = {
        (path.relative_to(REPOSITORY), call.lineno): call
        for folder in folders
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for call in calls_of_transformers(path)
    }
    assert len([path for path, _ in calls if path.parts[0] == "rmcli"]) >= 6
    for place, call in calls.items():
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", place
    for path in (REPOSITORY / "rmcli").rglob("*.py"):
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), path


def plant(folder: Path, config: dict, tokenizer_config: dict) -> Path:
    """A copy of the tiny backbone whose Python, if it is ever imported, leaves a file RAN behind."""
    shutil.copytree(presets_folder() / "tiny", folder)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))
    code = f"open({str(folder / 'RAN')!r}, 'w').close()\n"
    for module in ("configuration_mine", "modeling_mine", "tokenization_mine"):
        (folder / f"{module}.py").write_text(code)
    return folder


MODEL_CODE = {
    "AutoConfig": "configuration_mine.Config",
    "AutoModel": "modeling_mine.Model",
    "AutoModelForSequenceClassification": "modeling_mine.Model",
}
TOKENIZER_CODE = {
    "tokenizer_class": "MineTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_mine.Tokenizer", "tokenization_mine.Tokenizer"]},
}
CLASSIFIER = {"architectures": ["MineForSequenceClassification"], "reward_token_id": 4, "reward_mode": "reserved"}


@pytest.mark.parametrize("what", ["config", "tokenizer"])
@pytest.mark.parametrize("command", ["prepare", "train", "inspect-token", "score"])
def test_a_models_own_python_is_one_error_line_and_stdin_is_left_alone(cli, tmp_path, tiny_run, command, what):
    if what == "config":
        folder = plant(tmp_path / "hostile", {"model_type": "mine", "auto_map": MODEL_CODE, **CLASSIFIER}, {})
    else:
        folder = plant(tmp_path / "hostile", CLASSIFIER, TOKENIZER_CODE)
    write_lines(tmp_path / "rows.jsonl", ROWS)
    setting = ("-p", "tiny", "-s", f"model.pretrained_model_name_or_path={folder}")
    arguments = {
        "prepare": ("rows.jsonl", "--map-fn", "canonical", "-o", "data", *setting),
        "train": ("--data", tiny_run.data, "-o", "run", *setting),
        "inspect-token": (folder,),
        "score": (folder, "rows.jsonl"),
    }[command]
    result = cli(command, *arguments, stdin="y\ny\ny\n")
    assert not (folder / "RAN").exists()
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert f"the {what} of {folder} needs Python code of its own (auto_map), which rmcli never runs" in errors[0]
    assert "hint: choose a model that transformers has built in" in result.stderr
    assert result.code in (1, 2)
    assert "y/N" not in result.stdout + result.stderr


def test_where_transformers_has_the_architecture_its_own_code_runs_and_stdin_is_data(cli, tmp_path):
    folder = plant(tmp_path / "hostile", {"auto_map": MODEL_CODE}, {})
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    setting = ("-p", "tiny", "-s", f"model.pretrained_model_name_or_path={folder}", "-s", "data.eval_fraction=0")
    prepared = cli("prepare", "-", "--map-fn", "canonical", "-o", "data", "--no-audit", *setting, stdin=lines)
    assert prepared.code == 0, prepared.stderr
    assert "7 in = 7 kept" in prepared.stderr
    trained = cli("train", "--data", "data", "-o", "run", *setting, "-s", "train.max_steps=1", stdin="y\n")
    assert trained.code == 0, trained.stderr
    assert "comes with Python code of its own (auto_map): not run; transformers' Llama" in trained.stderr
    assert not (folder / "RAN").exists()
    assert "auto_map" not in (tmp_path / "run" / "model" / "config.json").read_text()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("kernel", ["flash_attention_2", "kernels-community/flash-attn2"])
def test_the_implementation_a_config_names_is_not_asked_for(cli, tmp_path, tiny_run, key, kernel):
    folder = tmp_path / "model"
    shutil.copytree(tiny_run.model, folder)
    (folder / "rmcli.sha256").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: kernel}))
    write_lines(tmp_path / "rows.jsonl", ROWS)
    for kind in ("true", "false"):
        result = cli("score", folder, "rows.jsonl", "-s", f"model.use_varlen_attn={kind}")
        assert result.code == 0, result.stderr
        assert (
            result.stdout == cli("score", tiny_run.model, "rows.jsonl", "-s", f"model.use_varlen_attn={kind}").stdout
        )
