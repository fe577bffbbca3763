"""Map functions and presets are what the user names: no row, manifest, run or model folder leads to one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from rmcli import RewardModel
from rmcli.packs.manifest import read_manifest, write_manifest
from support.cli import run_cli
from support.hostile import BEFORE, ROWS, in_one_line, marker, sealed
from support.places import write_lines


@pytest.fixture
def evil(cli) -> str:
    """A map function that would leave RAN behind as soon as its file is imported."""
    Path("evil.py").write_text(f"open({str(marker())!r}, 'w').close()\n\n\ndef best(row):\n    return row\n")
    return f"{Path('evil.py').absolute()}:best"


def name_evil(toml: Path, evil: str) -> None:
    """The file says that data was prepared with it, and by a preset elsewhere."""
    text = re.sub(r"dataset_map_fn = .*", f'dataset_map_fn = "{evil}"', toml.read_text())
    toml.write_text(re.sub(r"sources = .*", f'sources = [{{path = "tasks:60", dataset_map_fn = "{evil}"}}]', text))


def test_the_function_would_run_where_its_user_names_it(evil):
    write_lines(Path("rows.jsonl"), [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    run_cli("prepare", "rows.jsonl", "--map-fn", evil, "-p", "tiny", "-o", "data", "--no-audit")
    assert marker().exists()


def test_a_model_folder_cannot_name_one(model, evil):
    name_evil(model / "rmcli.toml", evil)
    sealed(model)
    scored = run_cli("score", "model", ROWS)
    assert scored.code == 0, scored.stderr
    assert run_cli("inspect-token", "model").code == 0
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert RewardModel.load(model).score([talk])[0].error is None
    assert not marker().exists()


def test_a_run_cannot_name_one(run, evil):
    name_evil(run / "resolved.toml", evil)
    assert run_cli("export", "run", "-o", "out").code == 0
    run_cli("train", "--resume", "-o", "run", "--data", BEFORE / "data")
    assert not marker().exists()
    assert "evil.py:best" in Path("out/README.md").read_text()
    assert str(Path.cwd()) not in Path("out/README.md").read_text()


def test_a_manifest_cannot_name_one(evil):
    shutil.copytree(BEFORE / "data", "data/other")
    manifest = read_manifest(Path("data/other"))
    manifest |= {"preset": "other", "dataset_map_fn": evil, "map_fn_sha256": {evil: "0" * 64}}
    manifest["config"]["data"]["dataset_map_fn"] = evil
    write_manifest(Path("data/other"), manifest)
    assert "which runs code: it is loaded only when you name it" in in_one_line("train", "-p", "tiny", "-o", "run")
    assert run_cli("audit", "data/other").code in (0, 1)
    run_cli("train", "-p", "tiny", "--data", "data/other", "-o", "run", "-s", "train.max_steps=1")
    assert not marker().exists()


def test_a_row_cannot_name_one(cli, evil):
    row = {"prompt": "Sort: 2 1", "chosen": "1 2", "rejected": "2 1", "map_fn": evil, "dataset_map_fn": evil}
    write_lines(Path("rows.jsonl"), [row | {"preset": "../evil"}])
    result = cli(
        "prepare", "rows.jsonl", "--map-fn", "auto", "-p", "tiny", "-o", "data", "-s", "data.eval_fraction=0"
    )
    assert result.code == 0, result.stderr
    assert not marker().exists()


@pytest.mark.parametrize("name", ["../../evil", "/evil", ".", "a/b"])
def test_a_name_in_a_folder_leads_nowhere(model, name):
    toml = model / "rmcli.toml"
    toml.write_text(toml.read_text().replace('name = "tiny"', f"name = {json.dumps(name)}"))
    sealed(model)
    said = in_one_line("score", "model", ROWS)
    assert f"name = {name!r} would lead out of" in said or f"name = {name!r} is no name" in said


def test_files_that_a_model_folder_names_are_not_read(model):
    Path("secret").write_text("{{ 'SECRET' }}")
    toml = model / "rmcli.toml"
    line = 'chat_template = "secret"\ntokenizer_name_or_path = "secret"\nrevision = "secret"\n'
    before = run_cli("score", "model", ROWS).stdout
    toml.write_text(toml.read_text().replace("random_weights = true\n", f"random_weights = true\n{line}"))
    sealed(model)
    result = run_cli("score", "model", ROWS)
    assert (result.code, result.stdout) == (0, before), result.stderr
