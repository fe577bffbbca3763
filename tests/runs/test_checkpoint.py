"""What a checkpoint promises: whole or not there, every damage found, nothing in it ever run."""

import ast
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import pytest
import torch

from rmcli.errors import RmcliError
from rmcli.model.hashes import write_hashes
from rmcli.runs import checkpoint, folder, tensors
from support.places import REPOSITORY


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "model.a": torch.randn(40, 30, generator=generator),
        "model.b": torch.randn(7, generator=generator).bfloat16(),
        "optimizer.a/exp_avg": torch.randint(0, 256, (40, 30), generator=generator).to(torch.uint8),
        "optimizer.b/master_low": torch.arange(7, dtype=torch.int16),
        "optimizer.b/step": torch.tensor(3.0),
    }


def files(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()}


def test_every_kind_of_tensor_comes_back(tmp_path, state, monkeypatch):
    monkeypatch.setattr(tensors, "FILE_BYTES", 3000)
    path = checkpoint.save(tmp_path, 3, state, {"step": 3}, keep=2)
    assert len(list(path.glob("*.safetensors"))) == 2
    empty = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    tensors.read(path, empty)
    assert all(torch.equal(empty[name], state[name]) for name in state)
    assert checkpoint.open_facts(path) == {"format_version": 1, "step": 3}
    assert tensors.first_difference(path, state) is None
    assert tensors.first_difference(path, state | {"model.b": -state["model.b"]}) == "model.b"
    with pytest.raises(RmcliError, match=r"has no model.c$"):
        tensors.read(path, {"model.c": torch.zeros(1)})
    with pytest.raises(RmcliError, match=r"model.b is bfloat16 \[7\] there and float32 \[7\] here"):
        tensors.read(path, {"model.b": torch.zeros(7)})


def test_100_damages_are_all_found(tmp_path, state):
    path = checkpoint.save(tmp_path, 3, state, {"step": 3, "config": {"train": {"lr": 0.1}}}, keep=2)
    whole = files(path)
    assert set(whole) == {"checkpoint.json", "rmcli.sha256", "shard-00001-model-00001-of-00001.safetensors"}
    chance = random.Random(0)
    for number in range(100):
        name = sorted(whole)[number % 3]
        data = bytearray(whole[name])
        place = chance.randrange(len(data))
        if number % 10 == 9:
            del data[place:]
        else:
            data[place] ^= 1 << chance.randrange(8)
        (path / name).write_bytes(data)
        with pytest.raises(RmcliError, match="is damaged: "):
            checkpoint.open_facts(path)
        (path / name).write_bytes(whole[name])
    for name in whole:
        (path / name).rename(path / "away")
        with pytest.raises(RmcliError, match=r"is damaged: |is no checkpoint"):
            checkpoint.open_facts(path)
        (path / "away").rename(path / name)
    assert checkpoint.open_facts(path)["step"] == 3


def test_of_a_damaged_checkpoint_both_hashes_and_an_older_one_are_named(tmp_path, state):
    checkpoint.save(tmp_path, 3, state, {"step": 3}, keep=2)
    path = checkpoint.save(tmp_path, 4, state, {"step": 4}, keep=2)
    (path / "checkpoint.json").write_text("{}")
    with pytest.raises(RmcliError) as raised:
        checkpoint.open_facts(path)
    assert raised.value.message.startswith(
        f"checkpoint {path} is damaged: checkpoint.json was changed: sha256 44136fa"
    )
    assert raised.value.hint == f"to go on from step-3, write that name into {tmp_path}/checkpoints/latest"


def test_only_the_newest_are_kept_and_the_best_that_is_known(tmp_path, state):
    for step in range(1, 6):
        if step in (2, 3):
            checkpoint.save_best(tmp_path, step, state, {"step": step})
        best = {"step": min(step, 3)} if step > 1 else None
        checkpoint.save(tmp_path, step, state, {"step": step, "best": best}, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best-step-3",
        "latest",
        "step-4",
        "step-5",
    ]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoints" / "step-5"


def test_an_older_best_stays_until_a_checkpoint_knows_of_the_new_one(tmp_path, state):
    """A run killed in between goes on from a checkpoint that names the older one."""
    checkpoint.save_best(tmp_path, 2, state, {"step": 2})
    checkpoint.save(tmp_path, 2, state, {"step": 2, "best": {"step": 2}}, keep=1)
    checkpoint.save_best(tmp_path, 4, state, {"step": 4})
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path, checkpoint.BEST)] == [
        "best-step-2",
        "best-step-4",
    ]
    folder.reopen(tmp_path, checkpoint.latest(tmp_path))
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path, checkpoint.BEST)] == ["best-step-2"]


def test_a_write_that_fails_leaves_the_older_one_as_it_was(tmp_path, state, monkeypatch):
    path = checkpoint.save(tmp_path, 3, state, {"step": 3}, keep=1)
    before = files(path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    for target in (
        "rmcli.runs.tensors.save_state",
        "rmcli.runs.checkpoint.write_hashes",
        "rmcli.runs.checkpoint.sync",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, lambda *_, **__: full())
            with pytest.raises(RmcliError) as raised:
                checkpoint.save(tmp_path, 4, state, {"step": 4}, keep=1)
        needed = f"{40 * 30 * 5 + 7 * 4 + 4:,} bytes"
        there = tmp_path / "checkpoints" / "step-4"
        assert raised.value.message == f"cannot write checkpoint {there} of {needed}: No space left on device"
        assert checkpoint.latest(tmp_path) == path
        assert files(path) == before
        assert sorted(one.name for one in path.parent.iterdir()) == ["latest", "step-3"]


def test_what_the_disk_does_not_give_back_is_no_checkpoint(tmp_path, state, monkeypatch):
    path = checkpoint.save(tmp_path, 3, state, {"step": 3}, keep=1)
    write = tensors.write

    def faulty(target, given, group):
        write(target, given | {"model.a": given["model.a"] + 1}, group)

    monkeypatch.setattr(tensors, "write", faulty)
    with pytest.raises(RmcliError, match=r"model.a reads back otherwise than it was written: the disk is faulty"):
        checkpoint.save(tmp_path, 4, state, {"step": 4}, keep=1)
    assert checkpoint.latest(tmp_path) == path


def test_what_latest_does_not_name_is_not_finished(tmp_path, state):
    path = checkpoint.save(tmp_path, 3, state, {"step": 3}, keep=1)
    shutil.copytree(path, path.with_name("step-4"))
    (path.parent / "step-5.tmp-1").mkdir()
    assert checkpoint.latest(tmp_path) == path
    folder.reopen(tmp_path, path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["latest", "step-3"]
    (path.parent / "latest").write_text("../../elsewhere\n")
    with pytest.raises(RmcliError, match=r"names '../../elsewhere', which is no checkpoint there \(there: step-3\)"):
        checkpoint.latest(tmp_path)


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("hacked",))


@pytest.mark.parametrize("name", [".metadata", "evil.pt", "shard-00002-model-00002-of-00002.safetensors"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, state, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = checkpoint.save(tmp_path / "run", 3, state, {"step": 3}, keep=1)
    (path / name).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(RmcliError, match=r"in a format that can run code: it is not read|was added"):
        checkpoint.open_facts(path)
    (path / "rmcli.sha256").unlink()
    write_hashes(path)  # as whoever made it would
    try:
        checkpoint.open_facts(path)
        tensors.read(path, {name: torch.zeros_like(tensor) for name, tensor in state.items()})
    except RmcliError:
        pass
    assert not Path("hacked").exists()


def test_nothing_unpickles():
    """torch.load and DCP's FileSystemReader run what a file says; .bin files of others are read by weights alone."""
    for path in (REPOSITORY / "rmcli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert not {"FileSystemReader", "cloudpickle", "joblib"} & set(names), path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("pickle.load", "pickle.loads", "Unpickler"), path
            if called == "torch.load":
                assert "weights_only=True" in ast.unparse(node)


def test_facts_that_are_no_json_number_are_refused_before_anything_is_renamed(tmp_path, state):
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.save(tmp_path, 3, state, {"loss": float("nan")}, keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_format_of_another_version_is_refused(tmp_path, state):
    path = checkpoint.save(tmp_path, 3, state, {"step": 3}, keep=1)
    told = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(told | {"format_version": 9}))
    write_hashes(path)
    with pytest.raises(RmcliError, match="has format 9, this rmcli reads 1"):
        checkpoint.open_facts(path)
