"""What `RewardModel.load` takes and refuses, and the page that says so."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rmcli import RewardModel
from rmcli.config.presets import presets_folder
from rmcli.errors import ConfigError, RmcliError
from rmcli.model.hashes import write_hashes
from support.foreign import make_foreign
from support.places import REPOSITORY, write_lines

FOLDER = REPOSITORY / "tests" / "written_before" / "model"
TALK = [{"role": "user", "content": "Sort: 3 1"}, {"role": "assistant", "content": "1 3"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny trained model with hashes, to be damaged."""
    shutil.copytree(FOLDER, tmp_path / "model")
    write_hashes(tmp_path / "model")
    return tmp_path / "model"


def refused(*arguments: object, **options: object) -> str:
    """Message and hint of the refusal."""
    with pytest.raises(RmcliError) as caught:
        RewardModel.load(*arguments, **options)
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def change_toml(folder: Path, before: str, after: str) -> None:
    text = (folder / "rmcli.toml").read_text()
    assert before in text
    (folder / "rmcli.toml").write_text(text.replace(before, after))


def test_what_is_no_trained_model_is_refused_with_a_hint(tmp_path, folder):
    assert refused(tmp_path / "gone") == (
        f"model {tmp_path / 'gone'}: no such folder\n"
        "hint: give a folder with config.json, a .gguf file, or a Hub id such as org/name"
    )
    assert "not a ...ForSequenceClassification" in refused(presets_folder() / "tiny")
    assert f"hint: try {folder}" in refused(tmp_path)
    (tmp_path / "some.gguf").write_bytes(b"")
    assert "a .gguf file has no trained head" in refused(tmp_path / "some.gguf")
    assert "is a folder here" in refused(folder, revision="main")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "tpu"}, "device = 'tpu' is no device\nhint: auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device = 'meta' is no device"),
        ({"device": "cuda:99"}, "device = 'cuda:99', but torch sees"),
        (
            {"dtype": "int8"},
            "model.dtype = 'int8' (RewardModel.load): Input should be 'auto', 'float32' or 'bfloat16'",
        ),
    ],
)
def test_a_device_or_precision_that_is_none_is_refused(options, said):
    assert said in refused(FOLDER, **options)
    with pytest.raises(ConfigError):
        RewardModel.load(FOLDER, **options)


def test_a_folder_that_is_not_as_it_was_exported_is_refused(folder):
    (whole,) = RewardModel.load(folder).score([TALK])
    assert whole.error is None
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "model.safetensors was changed: sha256" in refused(folder)
    write_hashes(folder)
    assert "score.weight in the weights of" in refused(folder)
    assert "is not finite" in refused(folder)


def test_what_training_ran_on_does_not_bind_who_scores(folder):
    """A model that was trained on a GPU, by a kernel of its own, loads on a CPU."""
    (expected,) = RewardModel.load(folder).score([TALK])
    change_toml(folder, 'device = "auto"', 'device = "cuda"')
    change_toml(folder, 'attention = "auto"', 'attention = "flash"')
    write_hashes(folder)
    model = RewardModel.load(folder, device=torch.device("cpu"))
    assert model.score([TALK]) == [expected]
    assert model.device == torch.device("cpu")


def test_rmcli_score_is_not_bound_by_them_either_but_by_what_its_user_asks_for(cli, folder, tmp_path):
    write_lines(tmp_path / "talks.jsonl", [{"messages": TALK}])
    expected = cli("score", folder, "talks.jsonl")
    assert expected.code == 0, expected.stderr
    change_toml(folder, 'device = "auto"', 'device = "cuda"')
    change_toml(folder, 'attention = "auto"', 'attention = "flash"')
    write_hashes(folder)
    result = cli("score", folder, "talks.jsonl", "-s", "train.device=cpu")
    assert (result.code, result.stdout) == (0, expected.stdout), result.stderr
    shown = cli("score", folder, "talks.jsonl", "--dry-run", "--json")
    told = json.loads(shown.stdout)["config"]
    assert (told["train"]["device"], told["model"]["attention"]) == ("auto", "auto")
    asked = cli("score", folder, "talks.jsonl", "-s", "model.attention=flash", "-s", "train.device=cpu")
    assert asked.code == 2
    assert "model.attention = 'flash'" in asked.stderr


def test_bfloat16_is_asked_for_by_name(folder):
    (exact,) = RewardModel.load(folder, dtype="float32").score([TALK])
    (rounded,) = RewardModel.load(folder, dtype="bfloat16").score([TALK])
    assert rounded.value != exact.value
    assert rounded.value == pytest.approx(exact.value, rel=0.05)


def into_cache(cache: Path, name: str, folder: Path) -> None:
    """What a download leaves there."""
    place, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)


def test_a_hub_name_is_loaded_as_a_folder_is(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    into_cache(tmp_path / "cache", "org/reward", folder)
    model = RewardModel.load("org/reward")
    assert model.name == "org/reward"
    assert model.score([TALK]) == RewardModel.load(folder).score([TALK])
    (tmp_path / "cache/models--org--reward/snapshots" / ("0" * 40) / "added_config.json").write_text("{}")
    assert "added_config.json was added" in refused("org/reward")
    said = refused("org/other")
    assert said.startswith("cannot fetch org/other from the Hub: ")
    assert "hint: check the name" in said
    assert "cannot fetch org/reward" in refused("org/reward", revision="other")


def test_code_that_comes_with_a_model_is_not_run(tmp_path, caplog):
    folder = make_foreign(tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil", "AutoConfig": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'run')!r}).touch()\n")
    (score,) = RewardModel.load(folder).score([TALK])
    assert score.error is None
    assert not (tmp_path / "run").exists()
    assert "comes with Python code of its own (auto_map): not run" in caplog.text


def test_names_for_python_are_found_and_no_others():
    code = "import rmcli; rmcli.Other"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError: module 'rmcli' has no attribute 'Other'" in result.stderr


def test_the_page_runs_as_it_stands(cli, tmp_path, capsys):
    page = (REPOSITORY / "docs" / "python.md").read_text()
    shutil.copytree(FOLDER, tmp_path / "runs" / "smollm2-135m-1" / "model")
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    first, second = capsys.readouterr().out.splitlines()
    (expected,) = RewardModel.load(FOLDER).score([names["conversation"]])
    assert first == f"{expected.value} False"
    assert second == "None no_assistant_reply"
    assert names["same"] == expected
    calls = {name for name in vars(RewardModel) if not name.startswith("_")}
    assert calls == {"load", "score", "score_responses", "score_ids", "device", "max_length"}
    assert all(re.search(rf"## {name}\n|`model\.{name}`", page) for name in calls)
