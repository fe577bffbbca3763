"""How many processes there are: what launchers say, what --num-processes asks for, and what is refused."""

from pathlib import Path

import pytest

from rmcli.errors import ConfigError
from rmcli.parallel.processes import check_gpus, started_processes, wanted_processes

PLACE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_what_torchrun_and_accelerate_set_is_several():
    assert started_processes(PLACE) == 4
    assert started_processes(PLACE | {"SLURM_STEP_NUM_TASKS": "2"}) == 4  # one torchrun per machine


def test_one_process_is_not_taken_for_several():
    """A launcher that starts one, and an allocation that would hold more."""
    assert started_processes({"WORLD_SIZE": "1", "LOCAL_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}) == 1
    assert started_processes({"SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "WORLD_SIZE": ""}) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "2 processes were started (WORLD_SIZE=2)"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "4 processes were started (OMPI_COMM_WORLD_SIZE=4)"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "8 processes were started (SLURM_STEP_NUM_TASKS=8)"),
        ({"LOCAL_RANK": "1"}, "several processes were started (LOCAL_RANK=1)"),
    ],
)
def test_several_that_cannot_meet_are_refused(cli, monkeypatch, given, said):
    """Each would train a model of its own."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    result = cli("train", "-p", "tiny", "--data", "nowhere", "-o", "run")
    assert result.code == 2
    missing = ", ".join(name for name in PLACE if name not in given)
    assert f"error: {said}, but nothing tells them where they meet: {missing} not set\n" in result.stderr
    assert "hint: start torchrun, once per machine" in result.stderr
    assert not Path("run").exists()


def test_a_launcher_in_a_launcher_is_refused():
    with pytest.raises(ConfigError, match="--num-processes 2, but a launcher has started 4 processes"):
        wanted_processes(2, PLACE)
    assert wanted_processes(None, PLACE) == 1


def test_a_process_that_we_started_starts_no_others(monkeypatch):
    monkeypatch.setenv("RMCLI_PARENT", "5")
    assert wanted_processes(4, PLACE) == 1


def test_as_many_as_there_are_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert wanted_processes(0, {}) == 2
    check_gpus(2, "cuda")
    check_gpus(3, "cpu")
    with pytest.raises(ConfigError, match="--num-processes 3, but this machine has 2 GPUs"):
        check_gpus(3, "cuda")


def test_all_gpus_of_a_machine_without_are_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU is seen"):
        wanted_processes(0, {})


def test_the_plan_of_several_processes_is_shown_by_one(cli, tiny_run):
    result = cli("train", "-p", "tiny", "--data", tiny_run.data, "--num-processes", "2", "-n")
    assert result.code == 0
    assert "# processes = 2\n" in result.stdout
    result = cli("train", "-p", "tiny", "--data", "nowhere", "--num-processes", "2")
    assert (result.code, result.stderr.count("error: ")) == (1, 1)
