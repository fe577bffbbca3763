"""A checkpoint that several processes write: whole or not at all, and read by other numbers of them."""

import errno
from pathlib import Path

import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.tensor import DTensor, Shard

from rmcli.errors import RmcliError
from rmcli.parallel import world
from rmcli.parallel.mesh import MeshShape, build_mesh
from rmcli.parallel.parts import part_of
from rmcli.runs import checkpoint, tensors
from support.ranks import on_ranks

SHAPES = {"model.a": (7, 5), "model.b": (3,), "optimizer.a/exp_avg": (7, 5), "optimizer.a/exp_avg_scale": (7, 1)}
DTYPES = {"model.b": torch.bfloat16, "optimizer.a/exp_avg": torch.uint8}


def whole_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (100 * torch.rand(shape, generator=generator)).to(DTYPES.get(name, torch.float32))
        for name, shape in SHAPES.items()
    }


def cut_state(empty: bool = False) -> dict[str, torch.Tensor]:
    """Cut along first axes that do not divide; a number of its own for each process, and one that all have."""
    full = whole_state()
    found = {"optimizer.a/step": torch.tensor(0.0 if empty else 3.0)}
    if world.size() == 1:
        return found | {name: torch.zeros_like(tensor) if empty else tensor for name, tensor in full.items()}
    mesh = build_mesh(MeshShape(1, world.size()), torch.device("cpu"))
    for name, tensor in full.items():

        def cut(own: torch.Tensor, tensor: torch.Tensor = tensor) -> DTensor:
            sizes = {"shape": tensor.shape, "stride": tensor.stride()}
            return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, **sizes)

        own = part_of(tensor, cut(torch.empty(0))).clone()
        found[name] = cut(own.zero_() if empty else own)
    return found | {f"generator_{world.rank()}.cpu": torch.full((4,), 0 if empty else world.rank() + 1)}


def save(folder: str, step: int) -> str:
    return checkpoint.save(Path(folder), step, cut_state(), {"step": step}, keep=2).name


def read(folder: str, step: int, generators: int) -> bool:
    path = Path(folder) / "checkpoints" / f"step-{step}"
    assert checkpoint.open_facts(path)["step"] == step
    found = cut_state(empty=True)
    if world.rank() >= generators:
        found = {name: tensor for name, tensor in found.items() if not name.startswith("generator")}
    tensors.read(path, found)
    expected = cut_state()
    own = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in found.items()}
    there = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in expected.items()}
    return all(torch.equal(own[name], there[name]) for name in own)


def test_it_is_read_by_any_number_of_processes(tmp_path):
    assert on_ranks(2, save, str(tmp_path), 1) == ["step-1", "step-1"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-1", "latest"}
    assert len(list((tmp_path / "checkpoints" / "step-1").glob("shard-0000[12]-*.safetensors"))) == 2
    assert read(str(tmp_path), 1, 0)
    assert on_ranks(2, read, str(tmp_path), 1, 2) == [True, True]
    assert on_ranks(4, read, str(tmp_path), 1, 2) == [True] * 4
    save(str(tmp_path), 2)
    assert on_ranks(4, read, str(tmp_path), 2, 0) == [True] * 4


def save_on_a_full_disk(folder: str, full: int) -> str:
    """Of one process the disk is full while it writes."""
    write = filesystem._write_files_from_queue

    def failing(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if world.rank() == full:
        filesystem._write_files_from_queue = failing
    try:
        save(folder, 2)
    except RmcliError as error:
        return error.message
    finally:
        filesystem._write_files_from_queue = write
    return ""


def test_a_disk_that_is_full_for_one_is_said_and_leaves_the_older_one(tmp_path):
    on_ranks(2, save, str(tmp_path), 1)
    for full in (0, 1):
        for said in on_ranks(2, save_on_a_full_disk, str(tmp_path), full):
            assert "cannot write checkpoint" in said
            assert "No space left on device" in said
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-1", "latest"}
        assert checkpoint.latest(tmp_path).name == "step-1"
    assert on_ranks(2, read, str(tmp_path), 1, 2) == [True, True]


def save_what_does_not_arrive(folder: str) -> str:
    """The second process's file is other than what it meant to write."""
    write = tensors.write

    def faulty(target: Path, given: dict[str, torch.Tensor], group: object) -> None:
        if world.rank() == 1:
            key = "generator_1.cpu"
            given = given | {key: given[key] + 1}
        write(target, given, group)

    tensors.write = faulty
    try:
        save(folder, 3)
    except RmcliError as error:
        return error.message
    finally:
        tensors.write = write
    return ""


def test_what_one_process_does_not_read_back_is_no_checkpoint(tmp_path):
    for said in on_ranks(2, save_what_does_not_arrive, str(tmp_path)):
        assert "generator_1.cpu reads back otherwise than it was written: the disk is faulty" in said
    assert checkpoint.latest(tmp_path) is None
