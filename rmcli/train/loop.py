"""The loop: plan -> forwards of this step -> backward -> clip -> step -> log -> evaluate -> checkpoint."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
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
from rmcli.model.network import flop_counter
from rmcli.records import BatchKind
from rmcli.runs import checkpoint
from rmcli.runs.metrics_file import add_metrics
from rmcli.train.evaluate import evaluate
from rmcli.train.feed import Feeder, StepFeed, ahead, shape_of_all
from rmcli.train.job import Job
from rmcli.train.plan import plan
from rmcli.train.profile import profiled
from rmcli.train.window import Window, log


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
        )
        self.window = Window(job.peak_flops)

    def _batch_shape(self) -> BatchShape | None:
        """What rows are filled up to, so that layers are compiled once; None where they are not compiled."""
        if self.config.train.kernels != "compile":
            return None
        steps = plan(self.job.sizes, self.config.train, self.job.plans_packs, self.config.data.max_packed_length)
        return shape_of_all((forward for step in steps for forward in step.forwards[0]), self.job.train_split)

    def fit(self, metrics_file: TextIO, profile_folder: Path | None = None) -> dict[str, Any]:
        """All steps. Returns the last log line joined with the last evaluation."""
        train, total = self.config.train, self.job.total_steps
        packed, limit = self.job.plans_packs, self.config.data.max_packed_length
        unread: _Skipped | None = None  # the flag of the last step, read one step later
        summary: dict[str, Any] = {}
        steps = plan(self.job.sizes, train, packed, limit)
        with (
            output.progress("train", total) as progress,
            _no_garbage_collection(),
            profiled(profile_folder, self.job.device, total) as profiler,
        ):
            for feed in ahead(self.feeder.build, steps):
                step = feed.step
                share = optim.schedule(step.number, total, train.warmup_ratio, train.min_lr_ratio)
                optim.set_rates(self.optimizer, share)
                skipped = self.run_step(feed, progress)
                _stop_if_skipped(unread)
                unread = skipped
                if profiler is not None:
                    profiler.step()
                last = step.number == total
                if step.number % train.log_every == 0 or step.number == 1 or last:
                    _stop_if_skipped(unread)
                    summary = {
                        "step": step.number,
                        "epoch": step.epoch,
                        "lr": train.lr * share,
                        **self.window.result(),
                    }
                    self.window = Window(self.job.peak_flops)
                    gc.collect()
                    log(progress, metrics_file, summary)
                if last or (train.eval_steps and step.number % train.eval_steps == 0):
                    summary |= self.evaluate_and_log(step.number, metrics_file, progress)
                    self.window.restart_clock()
                if last or step.number % train.save_steps == 0:
                    self.save(step.number, last)
                    self.window.restart_clock()
        return summary

    def run_step(self, feed: StepFeed, progress: output.Progress | None = None) -> "_Skipped":
        """One optimizer step over all forwards of this rank. Nothing in it waits for the device."""
        progress = progress or output.Progress(None, None)
        self.network.train()
        loss, pair_loss, all_penalty = (torch.zeros((), device=self.job.device) for _ in range(3))
        if not feed.row_ids:
            progress.advance()
            return _Skipped(feed.step.number, loss, ())  # nothing to learn from in this step
        # Conversations run one by one are several forwards, too, though their backward is one.
        optim.expect_gradients(self.optimizer, several=len(feed.forwards) > 1 or self.kind == "single")
        for forward in feed.forwards:
            scores_S = scores(self.network, forward.batch, self.config.model.dtype)
            preference_loss, penalty = objective(
                scores_S, forward.targets, self.config.loss, feed.total_weight, feed.total_scores
            )
            (preference_loss + penalty).backward()
            loss += (preference_loss + penalty).detach()
            pair_loss += preference_loss.detach()
            all_penalty += penalty.detach()
            self.window.metrics.add(scores_S, forward.targets.better, forward.targets.worse)
            progress.advance_part(len(feed.forwards))
        norm, skipped = optim.clip_and_step(self.network, self.optimizer, self.config.train.max_norm, loss)
        self.window.add_step(feed, loss, pair_loss, all_penalty, norm)
        return _Skipped(feed.step.number, skipped, feed.row_ids)

    def save(self, step: int, last: bool) -> None:
        """A checkpoint. That of the last step stands before the model is exported, which may fail."""
        state = checkpoint.state_of(self.network, self.optimizer, step)
        try:
            path = checkpoint.save(self.job.run_folder, step, state, self.config.train.save_total_limit)
        except RmcliError as error:
            if not last:
                raise
            output.warn(f"{error.message}; the model, which needs a third of its room, is written all the same")
        else:
            output.detail(f"checkpoint {path}")

    def evaluate_and_log(self, step: int, metrics_file: TextIO, progress: output.Progress) -> dict[str, Any]:
        pad_token_id = self.job.reward.pad_token_id
        result = evaluate(self.network, self.job.eval_split, self.config, pad_token_id, self.kind)
        if result:
            add_metrics(metrics_file, {"step": step, **result})
            progress.note(
                f"step {step}: held-out accuracy {result['eval_accuracy']:.3f}, loss {result['eval_loss']:.4f}, "
                f"margin {result['eval_margin']:.3f}, {result['eval_pairs']} pairs"
            )
        return result


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector stops all threads at moments of its own, on several ranks at different ones.

    What lives now is kept out of it; the loop collects when it logs.
    """
    gc.collect()
    gc.freeze()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class _Skipped:
    """Whether a step's update was left out, to be read one step later.

    The flag is on its way to the host when the step is queued: reading it waits for its own step, not for the next.
    """

    def __init__(self, step: int, flag: Tensor, row_ids: tuple[int, ...]) -> None:
        self.step, self.row_ids = step, row_ids
        self._flag, self._copied = flag, None
        if flag.is_cuda:
            self._flag = torch.empty((), dtype=flag.dtype, pin_memory=True).copy_(flag, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)


def _stop_if_skipped(unread: _Skipped | None) -> None:
    if unread is not None and unread.read():
        rows = ", ".join(map(str, unread.row_ids[:8])) + (", ..." if len(unread.row_ids) > 8 else "")
        raise RmcliError(
            f"loss or gradient of step {unread.step} is not finite (input rows {rows}); the weights were not changed",
            "lower train.lr, or look at these rows",
        )
