"""No pickle is read: what holds more than tensors is refused, and nothing of it runs."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from rmcli import RewardModel
from rmcli.backbones.internlm2.weights import stored_tensors
from rmcli.errors import RmcliError
from support.cli import run_cli
from support.hostile import BEFORE, ROWS, Payload, in_one_line, marker, sealed
from support.places import REPOSITORY

PRESET = ("-p", "tiny", "-s", "model.pretrained_model_name_or_path=model", "-s", "model.random_weights=false")


def plant(model: Path, form: str) -> None:
    """The weights as a pickle: of old, as torch writes them, or through an index."""
    (model / "model.safetensors").unlink()
    weights = {"model.embed_tokens.weight": Payload(marker())}
    if form == "plain":
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(weights))
    elif form == "torch":
        torch.save(weights, model / "pytorch_model.bin")
    else:
        torch.save(weights, model / "shard.bin")
        (model / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, "shard.bin")})
        )
    sealed(model)


def test_the_payload_would_run(cli):
    pickle.loads(pickle.dumps(Payload(marker())))
    assert marker().exists()


@pytest.mark.parametrize(
    ("command", "form"),
    [
        *(("score", form) for form in ("plain", "torch", "index")),
        *(("inspect-token", form) for form in ("plain", "torch", "index")),
        *((command, "torch") for command in ("train", "verify", "RewardModel")),
    ],
)
def test_pickled_weights_run_nothing(model, command, form):
    plant(model, form)
    if command == "RewardModel":
        with pytest.raises(RmcliError, match="a pickled file is damaged, or holds more than tensors"):
            RewardModel.load(model)
        assert not marker().exists()
        return
    if command == "train":
        prepared = ("prepare", ROWS, "--map-fn", "canonical", "-o", "data", "--no-audit", *PRESET)
        assert run_cli(*prepared, "-s", "data.eval_fraction=0").code == 0
    arguments = {
        "score": ("score", "model", ROWS),
        "train": ("train", "--data", "data", "-o", "out", *PRESET, "-s", "train.max_steps=1"),
        "inspect-token": ("inspect-token", "model"),
        "verify": ("verify", "model"),
    }[command]
    expected = {
        "inspect-token": "cannot be read:",
        "verify": "model has no weights in .safetensors\nhint: pickled weights are not shipped",
    }
    assert expected.get(command, "a pickled file is damaged, or holds more than tensors") in in_one_line(*arguments)


def test_internlm2s_own_pickled_weights_run_nothing(model):
    plant(model, "torch")
    with pytest.raises(RmcliError, match=r"pytorch_model.bin cannot be read: Weights only load failed"):
        list(stored_tensors({"pretrained_model_name_or_path": str(model)}))
    assert not marker().exists()


@pytest.mark.parametrize("command", ["export", "train"])
def test_a_pickled_checkpoint_runs_nothing(run, command):
    checkpoint = run / "checkpoints" / "step-3"
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (checkpoint / name).write_bytes(pickle.dumps(Payload(marker())))
    arguments = {
        "export": ("export", checkpoint, "-o", "out"),
        "train": ("train", "--resume", "-o", "run", "--data", BEFORE / "data"),
    }[command]
    assert "in a format that can run code: it is not read" in in_one_line(*arguments)


@pytest.mark.parametrize("command", ["export", "train"])
def test_a_pickle_under_the_name_of_a_checkpoints_tensors_runs_nothing(run, command):
    checkpoint = run / "checkpoints" / "step-3"
    shard = next(checkpoint.glob("*.safetensors"))
    shard.write_bytes(pickle.dumps(Payload(marker())))
    sealed(checkpoint)
    arguments = {
        "export": ("export", "run", "-o", "out"),
        "train": ("train", "--resume", "-o", "run", "--data", BEFORE / "data"),
    }[command]
    assert "cannot be read" in in_one_line(*arguments)


def test_an_arrow_file_whose_type_is_a_pickle_runs_nothing(cli):
    """pyarrow before 14.0.1 unpickled it (CVE-2023-47248)."""
    extension = {"ARROW:extension:name": "arrow.py_extension_type"}
    metadata = {**extension, "ARROW:extension:metadata": pickle.dumps(Payload(marker()), protocol=0).decode()}
    field = pa.field("prompt", pa.string(), metadata=metadata)
    schema = pa.schema([field, pa.field("chosen", pa.string()), pa.field("rejected", pa.string())])
    table = pa.table([["Sort: 2 1"], ["1 2"], ["2 1"]], schema=schema)
    with pa.OSFile("rows.arrow", "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(table)
    result = cli(
        "prepare", "rows.arrow", "--map-fn", "canonical", "-p", "tiny", "-o", "data", "-s", "data.eval_fraction=0"
    )
    assert result.code == 0, result.stderr
    assert "1 in = 1 kept" in result.stderr
    assert not marker().exists()


def test_what_could_unpickle_is_called_nowhere():
    """torch.load reads tensors alone; there is no other reader of pickles, and YAML is read safely."""
    forbidden = {"joblib", "dill", "cloudpickle", "shelve", "marshal"}
    called = ("pickle.load", "yaml.load(", "yaml.unsafe_load(", "np.load(", "eval(", "exec(")
    loads = []
    for path in sorted((REPOSITORY / "rmcli").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not any(word in text for word in (*forbidden, *called, "torch.load")):
            continue
        for node in ast.walk(ast.parse(text)):
            names = {alias.name.split(".")[0] for alias in getattr(node, "names", ()) if isinstance(node, ast.Import)}
            assert not names & forbidden, path
            if isinstance(node, ast.Call):
                call = ast.unparse(node)
                assert not call.startswith(called), path
                if call.startswith("torch.load("):
                    loads.append(call)
    assert len(loads) == 2
    assert all("weights_only=True" in call for call in loads)
