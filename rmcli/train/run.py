"""A job run: weights loaded, self-test, loop, export. The run folder holds what comes of it."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from accelerate.utils import set_seed

from rmcli import output
from rmcli.backbones import architectures
from rmcli.model import kernels, model_folder, optim, self_test
from rmcli.model.load import load_model, rebuild_network
from rmcli.model.network import score_head, whole_row_layers
from rmcli.model.recompute import checkpoint_activations
from rmcli.runs import backbone, checkpoint, lock
from rmcli.runs.folder import BEST_MODEL, MODEL, claim, claim_next, reopen, write_config
from rmcli.runs.metrics_file import open_metrics
from rmcli.runs.state import read_weights
from rmcli.train import proofs
from rmcli.train.collapse import collapse_warning
from rmcli.train.describe import describe
from rmcli.train.determinism import deterministic
from rmcli.train.disk import check_disk
from rmcli.train.ending import recorded
from rmcli.train.job import Job
from rmcli.train.loop import Trainer
from rmcli.train.memory import check_memory
from rmcli.train.resume import check_untouched


def run(job: Job, with_profile: bool = False, command: str | None = None) -> dict[str, Any]:
    """Train, evaluate, export. Returns the summary; the run folder holds everything else.

    `with_profile` writes `profile/` into it; `command` is what the user typed, for run.json.
    """
    with deterministic(job.config.train.deterministic):
        _say_plan(describe(job))
        _say_use(job)
        check_memory(job)
        check_disk(job)
        job = _claimed(job)
        with lock.held(job.run_folder):
            if job.goes_on:
                check_untouched(job)
                reopen(job.run_folder, None if job.past is None else job.past.checkpoint)
            if job.past is not None:  # who wrote it may have been killed before older ones were gone
                checkpoint.remove_older(job.past.checkpoint, job.past.facts, job.config.train.save_total_limit)
            with recorded(job, command) as figures:
                figures |= _train(job, with_profile)
    if (warning := collapse_warning(figures)) is not None:
        output.warn(warning)
    return figures


def _claimed(job: Job) -> Job:
    if job.goes_on:
        return job
    if job.run_folder_is_named:
        claim(job.run_folder)
        return job
    return replace(job, run_folder=claim_next(job.run_folder.parent, job.resolved.name))


def _train(job: Job, with_profile: bool) -> dict[str, Any]:
    config = job.config
    write_config(job.run_folder, job.resolved.toml())
    set_seed(config.train.seed)
    network = _network(job)
    expected = self_test.expect(network, job.batch_choice, config.model.dtype, config.train.seed)
    if config.train.kernels == "liger":
        kernels.use_liger(network)
    # Split weights become bfloat16 here: the second half of the self-test runs on them.
    optimizer = optim.build_optimizer(network, score_head(network), config.train)
    kind = self_test.settle_batches(network, job.batch_choice, config.model.dtype, config.train.seed, expected).kind
    proofs.prove(job, network, optimizer, kind)
    if config.train.activation_checkpointing != "none":
        checkpoint_activations(network, config.train.activation_checkpointing)
    if config.train.kernels == "compile":
        kernels.compile_layers(whole_row_layers(network))
    trainer = Trainer(job, network, optimizer, kind)
    if job.past is not None:
        trainer.go_on(job.past)
    with (
        open_metrics(job.run_folder, job.past and job.past.facts["metrics_bytes"]) as metrics_file,
        kernels.explained() if config.train.kernels == "compile" else nullcontext(),
    ):
        summary = trainer.fit(metrics_file, job.run_folder / "profile" if with_profile else None)
    optim.restore_float32(optimizer)
    shipped = {"model": _export(job, network, MODEL)}
    if trainer.best is not None:
        read_weights(job.run_folder / checkpoint.FOLDER / f"{checkpoint.BEST}{trainer.best['step']}", network)
        shipped["model_best"] = _export(job, network, BEST_MODEL)
    return {**summary, **shipped, "run": str(job.run_folder)}


def _network(job: Job) -> Any:
    """From its model, and what a later start needs of that is kept; or from the run's own checkpoint."""
    config, kind = job.config, job.batch_choice.kind
    if job.past is None:
        network = load_model(config.model, job.reward, config.train.seed, kind, job.device)
        backbone.keep(job.run_folder, network, job.reward)
    else:
        output.say(f"going on from {job.past.checkpoint}, after step {job.past.step} of {job.total_steps}")
        own = backbone.section(job.run_folder, config.model)
        network = rebuild_network(own, config.train.seed, kind, job.device)
        network.config.name_or_path = str(config.model.pretrained_model_name_or_path)
        read_weights(job.past.checkpoint, network)
    if architectures.loads_only_here(network.config):
        output.warn(f"transformers has no {type(network).__name__}: the model folder will load in rmcli only")
    return network


def _export(job: Job, network: Any, name: str) -> str:
    folder = job.run_folder / name
    model_folder.export(network, job.reward, job.resolved.toml(), folder)
    return str(folder)


def _say_plan(numbers: Mapping[str, Any]) -> None:
    output.say(
        f"{numbers['pairs']:,} pairs in {numbers['packs']:,} packs, {numbers['steps']:,} steps of about "
        f"{numbers['pairs_per_step']:,} pairs, {numbers['eval_pairs']:,} pairs held out"
    )
    output.say(
        f"{numbers['parameters'] / 1e6:,.1f}M parameters on {numbers['device']}; memory: need about "
        f"{numbers['memory_need_gib']:.2f} GiB, have {numbers['memory_have_gib']:.2f} GiB"
    )


def _say_use(job: Job) -> None:
    """How the loss takes groups that are no plain pairs; what it cannot use is left out, counted."""
    loss_type = job.config.loss.loss_type
    use = job.use
    if use.lists:
        output.say(f"{use.lists:,} groups train as lists in strict order, {use.pairwise:,} pairwise")
    elif loss_type == "plackett_luce":
        output.warn("loss_type = plackett_luce, but no group has more than two answers in strict order: pairs it is")
    if use.left_out:
        output.warn(f"{use.left_out:,} groups are left out: {loss_type} cannot learn from ties alone")
    if use.comparisons_left_out:
        output.warn(f"{use.comparisons_left_out:,} ties and soft labels are left out: {loss_type} takes preferences")
    if loss_type == "margin" and not use.margins:
        output.warn("loss_type = margin, but the data has no margins: it is the ranking loss")
