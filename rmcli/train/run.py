"""A job run: weights loaded, self-test, loop, export. The run folder holds what comes of it."""

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, TextIO

import torch
from accelerate.utils import set_seed
from torch import Tensor

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.model import adapter, fp8, kernels, optim, self_test
from rmcli.model.network import score_head, whole_row_layers
from rmcli.model.recompute import checkpoint_activations
from rmcli.model.shard import gathered
from rmcli.parallel import world
from rmcli.parallel.collectives import on_first, together
from rmcli.runs import checkpoint, lock
from rmcli.runs.folder import ADAPTER, BEST_MODEL, MODEL, claim, claim_next, reopen, write_config
from rmcli.runs.metrics_file import open_metrics
from rmcli.ship.export import Run, export, export_adapter
from rmcli.ship.place import no_base_for_peft
from rmcli.train import generators, proofs
from rmcli.train.collapse import collapse_warning
from rmcli.train.describe import describe
from rmcli.train.determinism import deterministic
from rmcli.train.disk import check_disk
from rmcli.train.ending import recorded
from rmcli.train.evaluation_files import name_model
from rmcli.train.job import Job
from rmcli.train.loop import Trainer
from rmcli.train.memory import check_memory
from rmcli.train.network import in_working_precision, network_of
from rmcli.train.resume import check_untouched
from rmcli.train.trackers import tracking


def run(job: Job, with_profile: bool = False, command: str | None = None) -> dict[str, Any]:
    """Train, evaluate, export. Returns the summary; the run folder holds everything else.

    `with_profile` writes `profile/` into it; `command` is what the user typed, for run.json.
    """
    with deterministic(job.config.train.deterministic), ExitStack() as held:
        _say_plan(job, describe(job))
        _say_use(job)
        with together():
            check_memory(job)
            check_disk(job)
        job = _claimed(job)
        on_first(lambda: _open(job, held))
        with recorded(job, command) as figures:
            trained = _train(job, with_profile)
            figures |= {**trained.summary, **on_first(lambda: _ship(job, trained)), "run": str(job.run_folder)}
    if (warning := collapse_warning(figures)) is not None:
        output.warn(warning)
    return figures


def _claimed(job: Job) -> Job:
    """The run folder is this run's own. Of several processes the first one makes it."""
    if job.goes_on:
        return job
    if job.run_folder_is_named:
        on_first(lambda: claim(job.run_folder))
        return job
    return replace(job, run_folder=on_first(lambda: claim_next(job.run_folder.parent, job.resolved.name)))


def _open(job: Job, held: ExitStack) -> None:
    """Lock the folder for as long as `held` is, and make it as it was at the checkpoint that the run goes on from."""
    held.enter_context(lock.held(job.run_folder))
    if job.goes_on:
        check_untouched(job)
        reopen(job.run_folder, None if job.past is None else job.past.checkpoint)
    if job.past is not None:  # who wrote it may have been killed before older ones were gone
        checkpoint.remove_older(job.past.checkpoint, job.past.facts, job.config.train.save_total_limit)


def _train(job: Job, with_profile: bool) -> "_Trained":
    """All steps, the last checkpoint included; network and optimizer are let go."""
    config = job.config
    on_first(lambda: write_config(job.run_folder, job.resolved.toml()))
    set_seed(config.train.seed)
    network = network_of(job)
    expected = self_test.expect(network, job.batch_choice, config.model.dtype, config.train.seed)
    network = in_working_precision(job, network)
    if config.train.kernels == "liger":
        kernels.use_liger(network)
    # Split weights become bfloat16 here: the second half of the self-test runs on them.
    optimizer = optim.build_optimizer(network, score_head(network), config.train)
    kind = self_test.settle_batches(network, job.batch_choice, config.model.dtype, config.train.seed, expected).kind
    proofs.prove(job, network, optimizer, kind)
    if config.train.activation_checkpointing != "none":
        checkpoint_activations(network, config.train.activation_checkpointing)
    if config.train.fp8 != "none":
        fp8.use_fp8(whole_row_layers(network), config.train.fp8)
    if config.train.kernels == "compile":
        kernels.compile_layers(whole_row_layers(network))
    trainer = Trainer(job, network, optimizer, kind)
    if job.spread.processes > 1:
        generators.seed_apart(config.train.seed)
    if job.past is not None:
        trainer.go_on(job.past)
    with (
        _metrics(job) as metrics_file,
        tracking(job) as trackers,
        kernels.explained() if config.train.kernels == "compile" else nullcontext(),
    ):
        profile_folder = job.run_folder / "profile" if with_profile and world.is_first() else None
        summary = trainer.fit(metrics_file, profile_folder, trackers)
    optim.restore_float32(optimizer)
    best = None if trainer.best.found is None else trainer.best.found["step"]
    return _Trained(summary, gathered(network), trainer.step, best)


class _Trained(NamedTuple):
    """The last figures, the weights by name (on the first process), their step, and that of the best evaluation."""

    summary: dict[str, Any]
    weights: dict[str, Tensor]
    step: int
    best: int | None


def _metrics(job: Job) -> AbstractContextManager[TextIO | None]:
    """metrics.jsonl, which of several processes the first one writes."""
    if not world.is_first():
        return nullcontext()
    return open_metrics(job.run_folder, job.past and job.past.facts["metrics_bytes"])


def _ship(job: Job, trained: _Trained) -> dict[str, str]:
    """The model folders, of the last step and of the best one. The first process writes them alone."""
    gc.collect()  # network and optimizer refer to themselves
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
    run = Run.of(job.run_folder, job.data_folder)
    made = {"model": str(job.run_folder / MODEL)}
    if run.has_adapters and (why := no_base_for_peft(job.config.model)) is not None:
        output.say(f"no folder of adapters alone: {why}")
        network = adapter.merge(run.adapted(trained.weights))
    elif run.has_adapters:
        network = _with_adapters_shipped(job, run, trained.weights, made)
    else:
        network = run.network_with(trained.weights)
    export(run, network, job.run_folder / MODEL, step=trained.step)
    del network
    name_model(job.run_folder, job.run_folder / MODEL, trained.step)
    if trained.best is not None:
        best = job.run_folder / checkpoint.FOLDER / f"{checkpoint.BEST}{trained.best}"
        export(run, run.network_of(best), job.run_folder / BEST_MODEL, step=trained.best)
        made["model_best"] = str(job.run_folder / BEST_MODEL)
    return made


def _with_adapters_shipped(job: Job, run: Run, weights: Mapping[str, Tensor], made: dict[str, str]) -> Any:
    """The merged network; what hinders peft's folder costs no merged one."""
    try:
        network = export_adapter(run, run.adapted(weights), job.run_folder / ADAPTER)
        made["adapter"] = str(job.run_folder / ADAPTER)
    except RmcliError as error:
        output.warn(f"no folder of adapters alone: {error.message}")
        network = adapter.merge(run.adapted(weights))
    return network


def _say_plan(job: Job, numbers: Mapping[str, Any]) -> None:
    if job.spread.processes > 1:
        output.say(job.spread.told)
    output.say(
        f"{numbers['pairs']:,} pairs in {numbers['packs']:,} packs, {numbers['steps']:,} steps of about "
        f"{numbers['pairs_per_step']:,} pairs, {numbers['eval_pairs']:,} pairs held out"
    )
    trained = f", {numbers['trained_parameters'] / 1e6:,.2f}M of them train" if job.has_adapters else ""
    output.say(
        f"{numbers['parameters'] / 1e6:,.1f}M parameters{trained} on {numbers['device']}; memory: need about "
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
    for one in job.eval_sets:
        if one.left_out and one.num_used:
            output.warn(
                f"{one.title}: {one.left_out:,} of {one.left_out + one.num_used:,} groups are not evaluated: "
                f"{loss_type} tells nothing of them"
            )
    if loss_type == "margin" and not use.margins:
        output.warn("loss_type = margin, but the data has no margins: it is the ranking loss")
