"""How many processes a launcher has started this training on."""

from collections.abc import Mapping

from rmcli.errors import ConfigError

# What launchers give each process they start. SLURM_NTASKS and their like belong to an allocation, in which one
# process may run alone; SLURM_STEP_NUM_TASKS is what srun itself starts.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_RANK = "LOCAL_RANK"


def check_one_process(environment: Mapping[str, str]) -> None:
    """Raises ConfigError on several processes: each would train a model of its own, in the same folders."""
    told = {name: int(environment[name]) for name in (*_SIZES, _RANK) if environment.get(name, "").isdecimal()}
    several = next((name for name in _SIZES if told.get(name, 1) > 1), None)
    if several is None and told.get(_RANK, 0) > 0:
        several = _RANK
    if several is not None:
        count = f" on {told[several]} processes" if several != _RANK else " on several processes"
        raise ConfigError(
            f"training{count} is not built yet ({several}={told[several]})",
            f"start one process: rmcli train ... (where it is one, unset {several})",
        )
