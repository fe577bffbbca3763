"""auto_map executes nothing, in any command: its Python is beside the model, and is never imported."""

import shutil
from pathlib import Path

import pytest

from rmcli import RewardModel
from rmcli.errors import RmcliError
from rmcli.packs.manifest import read_manifest, write_manifest
from rmcli.ship import own, plain, verify
from support.hostile import BEFORE, ROWS, change_json, in_one_line, marker, sealed

OF_CONFIG = {
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
    "model_type": "evil",
}
OF_TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
NEEDS = "needs Python code of its own (auto_map), which rmcli never runs"


def plant(folder: Path, which: str) -> None:
    (folder / "evil.py").write_text(f"open({str(marker())!r}, 'w').close()\n")
    if which == "config":
        change_json(folder / "config.json", **OF_CONFIG)
    else:
        change_json(folder / "tokenizer_config.json", **OF_TOKENIZER)


@pytest.fixture
def in_this_process(monkeypatch):
    """`verify` without the seconds that a fresh process takes to import."""

    def answers(folder, cases, by):
        cases, loaders = list(cases), (own.load_model, own.load_tokenizer, own.score) if by == "rmcli" else ()
        yield from zip([None, *cases], plain.measure(str(folder), cases, *loaders), strict=False)

    monkeypatch.setattr(verify, "answers", answers)


@pytest.mark.parametrize("which", ["config", "tokenizer"])
def test_a_run_whose_backbone_brings_code_is_not_exported(run, which):
    plant(run / "backbone", which)
    assert NEEDS in in_one_line("export", "run", "-o", "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("which", ["config", "tokenizer"])
def test_a_run_whose_backbone_brings_code_does_not_go_on(run, which):
    plant(run / "backbone", which)
    assert NEEDS in in_one_line("train", "--resume", "-o", "run", "--data", BEFORE / "data")


def test_a_folder_with_code_is_not_verified(model):
    plant(model, "config")
    sealed(model)
    assert "auto_map names code: loaders would ask for it to be run" in in_one_line("verify", "model")


@pytest.mark.slow
def test_the_process_that_verifies_runs_no_code_of_a_tokenizer(model):
    plant(model, "tokenizer")
    sealed(model)
    assert "model: tokenizer: " in in_one_line("verify", "model")


def test_what_verifies_runs_no_code_of_a_tokenizer(model, in_this_process):
    plant(model, "tokenizer")
    sealed(model)
    with pytest.raises(ValueError, match="trust_remote_code"):
        verify.verify(model)
    assert not marker().exists()


@pytest.mark.parametrize("which", ["config", "tokenizer"])
def test_a_model_with_code_is_not_loaded_in_python(model, which):
    plant(model, which)
    sealed(model)
    with pytest.raises(RmcliError, match="needs Python code of its own"):
        RewardModel.load(model)
    assert not marker().exists()


def test_a_tokenizer_that_a_manifest_names_brings_no_code_to_the_audit(model, cli):
    plant(model, "tokenizer")
    shutil.copytree(BEFORE / "data", "data")
    manifest = read_manifest(Path("data"))
    manifest["config"]["model"]["pretrained_model_name_or_path"] = "model"
    write_manifest(Path("data"), manifest)
    result = cli("audit", "data")
    assert not marker().exists()
    assert result.code == 0, result.stderr
    assert NEEDS in result.stdout + result.stderr


def test_an_adapter_config_leads_to_no_other_model(model):
    """With peft installed transformers would load the base model that it names."""
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/evil", "peft_type": "LORA"}')
    sealed(model)
    for arguments in (("score", "model", ROWS), ("verify", "model"), ("inspect-token", "model")):
        assert "holds an adapter (adapter_config.json) beside whole weights" in in_one_line(*arguments)
