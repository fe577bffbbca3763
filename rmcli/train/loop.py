"""The loop: plan -> forwards of this step -> backward -> clip -> step -> log -> evaluate -> checkpoint."""

import copy
import gc
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from rmcli import output
from rmcli.errors import RmcliError
from rmcli.model import optim
from rmcli.model.attention.layout import BatchShape
from rmcli.model.forward import scores
from rmcli.model.losses import objective
from rmcli.model.metrics import PairMetrics
from rmcli.model.network import flop_counter
from rmcli.model.shard import expect_last_forward
from rmcli.parallel.collectives import largest_number
from rmcli.records import BatchKind
from rmcli.runs import checkpoint, record, state
from rmcli.runs.metrics_file import add_metrics
from rmcli.train import generators, window_state
from rmcli.train.best import Best
from rmcli.train.ending import stopped
from rmcli.train.evaluated import EvaluatedSet, evaluate_all, not_finite
from rmcli.train.evaluation_files import write_evaluation
from rmcli.train.feed import Feeder, StepFeed, ahead, shape_of_all
from rmcli.train.job import Job
from rmcli.train.nonfinite import Skipped, count_skipped, stop_if_skipped
from rmcli.train.out_of_memory import memory_explained
from rmcli.train.past import INEXACT, Past, identities, identity, machine
from rmcli.train.plan import Step, plan
from rmcli.train.profile import profiled
from rmcli.train.saver import Saver
from rmcli.train.share import Forward
from rmcli.train.signals import Stop, stop_on_signals
from rmcli.train.trackers import Trackers
from rmcli.train.window import Window, add_up_step, log


class Trainer:
    """The loop and what it keeps between steps."""

    def __init__(self, job: Job, network: Any, optimizer: optim.Optimizer, kind: BatchKind) -> None:
        self.job, self.network, self.optimizer, self.config = job, network, optimizer, job.config
        self.kind: BatchKind = kind
        self.feeder = Feeder(
            split=job.train_split,
            loss_type=job.config.loss.loss_type,
            kind=kind,
            pad_token_id=job.reward.pad_token_id,
            device=job.device,
            counter=flop_counter(network),
            shape=self._batch_shape(),
            rank=job.spread.rank,
            ranks=job.spread.ranks,
        )
        self.window = self._new_window()
        self.saver = Saver(job.config.train.async_checkpoint, job.spread.mesh)
        self.step = 0  # done
        self.num_skipped = 0
        self.best = Best(job.config)
        self.evaluations: list[EvaluatedSet] = []  # the last ones
        self.summary: dict[str, Any] = {}  # the last log line and the last evaluation
        self.progress, self.trackers = output.Progress(None, None), Trackers()  # those of `fit`
        self._saved_at = time.monotonic()
        self._has_warned = False  # of scores that are not finite

    def _batch_shape(self) -> BatchShape | None:
        """What rows are filled up to, so that layers are compiled once; None where they are not compiled."""
        if self.config.train.kernels != "compile":
            return None
        forwards = (forward for step in self._plan() for of_rank in step.forwards for forward in of_rank if forward)
        return shape_of_all(forwards, self.job.train_split)

    def _plan(self) -> Iterator[Step]:
        limit, ranks = self.config.data.max_packed_length, self.job.spread.ranks
        return plan(self.job.sizes, self.config.train, self.kind, limit, ranks)

    def _new_window(self) -> Window:
        peak = self.job.peak_flops
        return Window(peak and peak * self.job.spread.processes, self.config.train.fp8 != "none")

    def fit(
        self, metrics_file: TextIO | None, profile_folder: Path | None = None, trackers: Trackers | None = None
    ) -> dict[str, Any]:
        """All steps that are not behind it, or until it stops early. Returns the last log line joined with the last
        evaluation.
        """
        train, total = self.config.train, self.job.total_steps
        self.trackers = trackers or self.trackers
        unread: Skipped | None = None  # the flag of the last step, read one step later
        steps = (step for step in ([] if self.job.is_done else self._plan()) if step.number > self.step)
        with (
            output.progress("train", total) as progress,
            _no_garbage_collection(),
            profiled(profile_folder, self.job.device, total) as profiler,
            stop_on_signals() as stop,
            closing(self.saver),
            closing(ahead(self.feeder.build, steps)) as feeds,
        ):
            self.progress = progress
            progress.advance(self.step)
            for feed in feeds:
                share = optim.schedule(feed.step.number, total, train.warmup_ratio, train.min_lr_ratio)
                optim.set_rates(self.optimizer, share)
                skipped = self.run_or_skip(feed)
                stop_if_skipped(unread, self.job.manifest)
                self.step = feed.step.number
                if profiler is not None:
                    profiler.step()
                unread = self._do_what_is_due(feed.step, share, skipped, metrics_file, stop)
                if self.best.stopped_early is not None:
                    break
            self._wait_for_the_last()
            if stop.agreed():  # since the last step
                raise stopped(self.job, stop, self.step)
        return self.summary | self.best.told()

    def _do_what_is_due(
        self, step: Step, share: float, skipped: Skipped, metrics_file: TextIO | None, stop: Stop
    ) -> Skipped | None:
        """Log, evaluate, save and stop after this step. Returns its flag where nothing had to read it."""
        train, number, last = self.config.train, step.number, step.number == self.job.total_steps
        is_logged = last or number == 1 or number % train.log_every == 0
        is_evaluated = last or (train.eval_steps is not None and number % train.eval_steps == 0)
        is_saved = last or number % train.save_steps == 0 or self._is_time_to_save()
        if is_logged:
            stop_if_skipped(skipped, self.job.manifest)
            self.log(step, share, metrics_file)
        if is_evaluated:
            self.evaluate_and_log(number, metrics_file)
        if is_evaluated and not last and self.best.has_waited_enough:
            last = is_saved = True
            self.progress.note(self.best.stop_early(number, self.job.total_steps))
            if not is_logged:
                self.window.restart_clock()  # an evaluation is no part of the steps
                stop_if_skipped(skipped, self.job.manifest)
                self.log(step, share, metrics_file)
        if last:
            write_evaluation(self.job, number, self.evaluations)
        is_stopping = stop.agreed()  # asked once a step: what is stopped is saved
        is_saved = is_saved or is_stopping
        if is_saved:
            stop_if_skipped(skipped, self.job.manifest)
            self.save(metrics_file, last)
        if is_evaluated or is_saved:
            self.window.restart_clock()
        self.saver.check()
        if is_stopping:
            self.saver.wait()
            raise stopped(self.job, stop, number)
        return None if is_logged or is_saved else skipped

    def log(self, step: Step, share: float, metrics_file: TextIO | None) -> None:
        """One line about the steps since the last one."""
        values = {"step": step.number, "epoch": step.epoch, "lr": self.config.train.lr * share}
        values |= self.window.result()
        if self.config.train.nonfinite == "skip":
            values["skipped_steps"] = self.num_skipped
        self.summary = {**self.summary, **values}
        self.window = self._new_window()
        gc.collect()
        log(self.progress, metrics_file, values)
        self.trackers.log(values)

    def run_or_skip(self, feed: StepFeed) -> Skipped:
        """A step; with `nonfinite = skip` one that is not finite leaves no trace but its count."""
        if self.config.train.nonfinite == "stop":
            return self.run_step(feed)
        before = copy.deepcopy(self.window.metrics)
        skipped = self.run_step(feed)
        if skipped.read():
            self.window.take_back(before)
            most = self.config.train.max_skipped
            self.num_skipped = count_skipped(skipped, self.num_skipped, most, self.job.manifest)
            return Skipped(feed.step.number, torch.zeros(()), ())
        return skipped

    def run_step(self, feed: StepFeed) -> Skipped:
        """One optimizer step over all forwards of this process. Nothing in it waits for the device."""
        self.network.train()
        loss, pair_loss, all_penalty = (torch.zeros((), device=self.job.device) for _ in range(3))
        if not feed.row_ids:
            self.progress.advance()
            return Skipped(feed.step.number, loss, ())  # nothing to learn from in this step
        # Conversations run one by one are several forwards, too, though their backward is one.
        optim.expect_gradients(self.optimizer, several=len(feed.forwards) > 1 or self.kind == "single")
        metrics, share = PairMetrics(), self.job.spread.share
        for number, forward in enumerate(feed.forwards, 1):
            expect_last_forward(self.network, number == len(feed.forwards))
            here = f" in step {feed.step.number}, at a forward of {forward.num_tokens:,} tokens"
            with memory_explained(self.job, here):
                pairs, penalty = self._run_forward(forward, feed, metrics)
                ((pairs + penalty) * share).backward()
            loss += (pairs + penalty).detach()
            pair_loss += pairs.detach()
            all_penalty += penalty.detach()
            self.progress.advance_part(len(feed.forwards))
        sums = add_up_step(feed, pair_loss, all_penalty, loss, share)
        self.window.metrics.merge(metrics.summed(self.job.device, share))
        norm, skipped = optim.clip_and_step(self.network, self.optimizer, self.config.train.max_norm, sums.loss)
        self.window.add_step(sums, norm)
        return Skipped(feed.step.number, skipped, feed.row_ids)

    def _run_forward(self, forward: Forward, feed: StepFeed, metrics: PairMetrics) -> tuple[Tensor, Tensor]:
        """This forward's share of the step's loss: of the pairs, and the penalty. An empty one adds nothing."""
        scores_S = forward.own(scores(self.network, forward.batch, self.config.model.dtype))
        metrics.add(scores_S, forward.targets.better, forward.targets.worse)
        return objective(scores_S, forward.targets, self.config.loss, feed.total_weight, feed.total_scores)

    def save(self, metrics_file: TextIO | None, last: bool) -> None:
        """A checkpoint. That of the last step stands before the model is exported, which may fail."""
        num_bytes = 0
        if metrics_file is not None:
            os.fsync(metrics_file.fileno())
            num_bytes = os.fstat(metrics_file.fileno()).st_size
        tensors = state.tensors_of(self.network, self.optimizer) | generators.states(self.job.device)
        facts = self.facts(num_bytes)
        folder, step, keep = self.job.run_folder, self.step, self.config.train.save_total_limit
        self._saved_at = time.monotonic()
        try:
            self.saver.save(
                tensors, lambda tensors, group: checkpoint.save(folder, step, tensors, facts, keep, group)
            )
        except RmcliError as error:
            self._go_on_without(error, last)

    def _wait_for_the_last(self) -> None:
        try:
            self.saver.wait()
        except RmcliError as error:
            self._go_on_without(error, last=True)

    def _go_on_without(self, error: RmcliError, last: bool) -> None:
        if not last:
            raise error
        output.warn(f"{error.message}; the model, which needs a third of its room, is written all the same")

    def _is_time_to_save(self) -> bool:
        """Agreed on by all processes, whose clocks are not one."""
        minutes = self.config.train.save_minutes
        return minutes is not None and largest_number(time.monotonic() - self._saved_at >= 60 * minutes) > 0

    def facts(self, metrics_bytes: int) -> dict[str, Any]:
        """What a checkpoint holds that is no tensor."""
        shape = self.feeder.shape
        return {
            "step": self.step,
            "total_steps": self.job.total_steps,
            "name": self.job.resolved.name,
            "config": self.config.model_dump(),
            "identity": identity(self.job.manifest, self.job.reward),
            "machine": machine(self.job.device),
            "rows": self.kind,
            "ranks": self.job.spread.ranks,
            "metrics_bytes": metrics_bytes,
            "window": window_state.to_numbers(self.window),
            "summary": record.json_values(self.summary),
            **self.best.facts(),
            "eval_sets": identities(self.job.eval_sets, self.job.past),
            "skipped": self.num_skipped,
            "shape": None if shape is None else asdict(shape),
        }

    def go_on(self, past: Past) -> None:
        """Take over what a checkpoint holds besides the weights; the generators last: nothing may draw from here."""
        facts = past.facts
        if facts["rows"] != self.kind:
            output.warn(f"rows run {self.kind}, before they ran {facts['rows']}: {INEXACT}")
        self.step, self.num_skipped = past.step, facts["skipped"]
        self.best.go_on(facts, self.job.is_done)
        self.summary = dict(facts["summary"])
        window_state.fill(self.window, facts["window"], self.job.device, self.job.spread.processes > 1)
        if facts["shape"] is not None and self.feeder.shape is not None:
            self.feeder.shape = BatchShape(**facts["shape"])
        state.read_optimizer(past.checkpoint, self.network, self.optimizer)
        generators.restore(past.checkpoint, self.job.device)

    def evaluate_and_log(self, step: int, metrics_file: TextIO | None) -> None:
        """All sets; one line of figures, and one on the screen for each set that has any."""
        self.evaluations = evaluate_all(self.network, self.job, self.kind)
        result = {name: value for one in self.evaluations for name, value in one.named.items()}
        if not result:
            return
        earlier = {name: value for name, value in self.summary.items() if not name.startswith("eval_")}
        self.summary = earlier | result  # a set may have been left out since
        add_metrics(metrics_file, {"step": step, **result})
        self.trackers.log({"step": step, **result})
        if (said := not_finite(self.evaluations)) is not None and not self._has_warned:
            output.warn(f"step {step}: {said}")
            self._has_warned = True
        for one in self.evaluations:
            self.progress.note(f"step {step}: {one.told}")
        if self.best.is_new(step, result):
            self._keep_the_best(step)

    def _keep_the_best(self, step: int) -> None:
        self.saver.wait()
        facts = {"step": step, "name": self.job.resolved.name, "best": self.best.found}
        checkpoint.save_best(self.job.run_folder, step, state.weights_of(self.network, self.optimizer), facts)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector stops all threads at moments of its own, on several ranks at different ones.

    What lives now is kept out of it, unless the caller has kept things out already; the loop collects when it logs.
    """
    freezes = not gc.get_freeze_count()
    gc.collect()
    if freezes:
        gc.freeze()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freezes:
            gc.unfreeze()
        if was_enabled:
            gc.enable()
