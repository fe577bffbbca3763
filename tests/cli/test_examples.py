"""The scripts in examples/ run in bash, with commands that write down what they get; our parsers must take that."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from rmcli.cli.app import app
from support.places import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
SLURM = sorted((EXAMPLES / "slurm").glob("*.sbatch"))
# As the schedulers set them: SkyPilot's documentation, Slurm's manual of sbatch.
GIVEN = {
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_CPUS_PER_TASK": "8",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}
COMMANDS = {
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "torchrun": 'printf "%s\\n" "$@" > torchrun.said',
    "rmcli": 'printf "%s\\n" "$@" > rmcli.said',
    "scontrol": 'if [ "$1" = show ]; then printf "node1\\nnode2\\n"; else echo "$@" > scontrol.said; fi',
}


def start(script: str, folder: Path, **commands: str) -> subprocess.Popen:
    """The script in a folder where each command is what COMMANDS says."""
    for name, body in (COMMANDS | commands).items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **GIVEN}
    return subprocess.Popen(
        ["bash", "-u", "-c", script], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def said(folder: Path, script: str, command: str) -> list[str]:
    process = start(script, folder)
    assert (process.communicate(timeout=20)[1], process.returncode) == ("", 0)
    return (folder / f"{command}.said").read_text().splitlines()


def check_rmcli(words: list[str]) -> dict:
    """What our command line makes of them; it raises for an option that there is not."""
    name, *arguments = words
    return get_command(app).commands[name].make_context(f"rmcli {name}", arguments).params


def check_torchrun(words: list[str]):
    from torch.distributed.run import get_args_parser

    told = get_args_parser().parse_args(words)
    assert (told.module, told.training_script) == (True, "rmcli")
    return told


def test_the_slurm_script_starts_torchrun_on_two_machines(tmp_path):
    told = check_torchrun(said(tmp_path, (EXAMPLES / "slurm/train_2_nodes.sbatch").read_text(), "torchrun"))
    assert (told.nnodes, told.nproc_per_node, told.rdzv_endpoint) == ("2", "8", "node1:29500")
    assert "SIGUSR1" in told.signals_to_handle.split(",")
    assert check_rmcli(told.training_script_args)["resume"]


def test_the_slurm_script_is_queued_again_when_its_time_is_up(tmp_path):
    """bash gets the signal, hands it on, and waits for the checkpoint."""
    waits = 'trap "sleep 0.3; touch saved; exit 1" USR1; touch begun; while true; do sleep 0.05; done'
    process = start((EXAMPLES / "slurm/train_2_nodes.sbatch").read_text(), tmp_path, torchrun=waits)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "scontrol.said").read_text() == "requeue 7\n"


def test_the_skypilot_file_starts_torchrun_on_two_machines(tmp_path):
    task = yaml.safe_load((EXAMPLES / "skypilot/train_2_nodes.yaml").read_text())
    assert (task["num_nodes"], task["resources"]) == (2, {"accelerators": "H100:8"})
    told = check_torchrun(said(tmp_path, task["run"], "torchrun"))
    assert (told.nnodes, told.nproc_per_node, told.node_rank, told.master_addr) == ("2", "8", 1, "10.0.0.1")
    given = check_rmcli(told.training_script_args)
    assert given["resume"]
    assert str(given["out"]).startswith("/shared/")


def test_the_parts_that_an_array_prepares_are_those_that_are_joined(tmp_path):
    one = check_rmcli(said(tmp_path, (EXAMPLES / "slurm/prepare_array.sbatch").read_text(), "rmcli"))
    assert (one["shard"], str(one["out"])) == ("3/8", "data/parts/3")
    joined = check_rmcli(said(tmp_path, (EXAMPLES / "slurm/prepare_merge.sbatch").read_text(), "rmcli"))
    assert joined["merge"]
    assert [str(part) for part in joined["source"]] == [f"data/parts/{number}" for number in range(1, 9)]


@pytest.mark.parametrize("script", SLURM, ids=lambda path: path.stem)
def test_the_lines_for_slurm_come_before_the_first_command(script):
    """sbatch reads no further."""
    lines = [line for line in script.read_text().splitlines() if line]
    for_slurm = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(for_slurm) >= 3
    assert all(line.startswith("#") for line in lines[: for_slurm[-1]])
