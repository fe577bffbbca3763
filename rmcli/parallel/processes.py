"""How many processes work together: what a launcher has started, or `--num-processes` asks for."""

from collections.abc import Mapping

from rmcli.errors import ConfigError
from rmcli.parallel import parent

# What launchers give each process they start. SLURM_NTASKS and their like belong to an allocation, in which one
# process may run alone; SLURM_STEP_NUM_TASKS is what srun itself starts.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK = "LOCAL_RANK"
# What torchrun and accelerate say besides: which one a process is, and where all meet.
_PLACE = ("RANK", _RANK, "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_processes(environment: Mapping[str, str]) -> int:
    """How many processes a launcher has started, this one among them; 1 without a launcher.

    Raises ConfigError where several were started and nothing says where they meet: each would do all of
    it, into the same files.
    """
    told = {name: int(environment[name]) for name in (*_SIZES, _RANK) if environment.get(name, "").isdecimal()}
    missing = [name for name in _PLACE if not environment.get(name)]
    if told.get("WORLD_SIZE", 1) > 1 and not missing:
        return told["WORLD_SIZE"]
    several = next((name for name in _SIZES if told.get(name, 1) > 1), None)
    if several is None and told.get(_RANK, 0) > 0 and "WORLD_SIZE" not in told:
        several = _RANK
    if several is None:
        return 1
    count = "several" if several == _RANK else str(told[several])
    raise ConfigError(
        f"{count} processes were started ({several}={told[several]}), but nothing tells them where they meet: "
        f"{', '.join(missing)} not set",
        f"start torchrun, once per machine: torchrun ... -m rmcli ... (if it is one process, unset {several})",
    )


def wanted_processes(option: int | None, environment: Mapping[str, str]) -> int:
    """How many processes this one is to start by `--num-processes`; 1: none, it trains alone or is one of several.

    Raises ConfigError under another launcher, and where there are not as many GPUs.
    """
    started = started_processes(environment)
    if option is None or parent.is_there():
        return 1
    if started > 1:
        raise ConfigError(
            f"--num-processes {option}, but a launcher has started {started} processes (WORLD_SIZE={started})",
            "leave --num-processes out",
        )
    return option or _all_gpus()


def _all_gpus() -> int:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("--num-processes 0 is one per GPU, and no GPU is seen", "on a CPU: --num-processes N")
    return torch.cuda.device_count()


def check_gpus(num_processes: int, device_type: str) -> None:
    """Raises ConfigError where this machine has fewer GPUs than processes are to start on them."""
    import torch

    if device_type == "cuda" and num_processes > torch.cuda.device_count():
        raise ConfigError(
            f"--num-processes {num_processes}, but this machine has {torch.cuda.device_count()} GPUs",
            "one process per GPU: --num-processes 0, or use the CPU: -s train.device=cpu",
        )
