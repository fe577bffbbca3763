"""What must be the same on all processes that train one model together."""

from typing import Any

from rmcli.parallel.agreement import check_same
from rmcli.parallel.collectives import gather
from rmcli.runs.record import versions
from rmcli.train.job import Job, with_spread


def check_same_options(**given: bool) -> None:
    """Before anything else is asked of the others: raises ConfigError where two were started otherwise."""
    check_same({f"--{name.replace('_', '-')} given": value for name, value in given.items()})


def agreed(job: Job) -> Job:
    """The same job on all: where `auto` has to cut the weights for one process it does for all.

    Raises ConfigError on the first process, with both values, where two are about to train something else.
    """
    check_same({**_settings(job), **_data(job), **_versions(), **_ways(job)})
    most_cut = max(gather(job.spread), key=lambda spread: spread.mesh.shard)
    return job if most_cut == job.spread else with_spread(job, most_cut)


def _settings(job: Job) -> dict[str, Any]:
    """Each key of the configuration by its name, as `-s` has it."""
    return {
        f"{section}.{key}": value
        for section, values in job.config.model_dump().items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def _data(job: Job) -> dict[str, Any]:
    return {
        "manifest_sha256 of the data": job.manifest["manifest_sha256"],
        **{f"eval set {one.title}": one.identity for one in job.eval_sets},
        "the step to go on from": None if job.past is None else job.past.step,
        "the output": str(job.run_folder) if job.run_folder_is_named else None,
    }


def _ways(job: Job) -> dict[str, Any]:
    return {"the kind of device": job.device.type, "the kind of rows": job.batch_choice.kind}


def _versions() -> dict[str, str]:
    return {f"{name}'s version": versions()[name] for name in ("rmcli", "torch", "transformers")}
