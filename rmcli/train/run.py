"""The loop: plan -> forwards of this step -> backward -> clip -> step -> log -> evaluate -> checkpoint."""

import gc
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from torch import Tensor

from rmcli import output
from rmcli.backbones import architectures
from rmcli.config.layers import Config
from rmcli.errors import RmcliError
from rmcli.model import batch as batches
from rmcli.model import forward as model
from rmcli.model import kernels, model_folder, optim, self_test
from rmcli.model.attention.layout import RowShape
from rmcli.model.losses import objective
from rmcli.model.metrics import PairMetrics
from rmcli.packs import writer as store
from rmcli.records import Rows
from rmcli.runs import checkpoint
from rmcli.train.determinism import deterministic
from rmcli.train.feed import Feeder, StepFeed, ahead, groups_of, shape_of_all
from rmcli.train.job import Job, check_memory, describe
from rmcli.train.plan import Slice, Step, plan
from rmcli.train.profile import profiled


def run(job: Job, with_profile: bool = False) -> dict[str, Any]:
    """Train, evaluate, export. Returns the summary; the run folder holds everything else.

    `with_profile` writes `profile/` into it.
    """
    with deterministic(job.config.train.deterministic):
        return _run(job, with_profile)


def _run(job: Job, with_profile: bool) -> dict[str, Any]:
    config = job.config
    _say_plan(describe(job))
    _say_use(job)
    check_memory(job)
    _make_run_folder(job.run_folder)
    toml = job.resolved.toml()
    (job.run_folder / "resolved.toml").write_text(toml, encoding="utf-8")
    set_seed(config.train.seed)
    network: Any = model.load_model(config.model, job.reward, config.train.seed, job.row_choice.rows, job.device)
    if architectures.loads_only_here(network.config):
        output.warn(f"transformers has no {type(network).__name__}: the model folder will load in rmcli only")
    expected = self_test.expect(network, job.row_choice, config.model.dtype, config.train.seed)
    if config.train.kernels == "liger":
        kernels.use_liger(network)
    # Split weights become bfloat16 here: the second half of the self-test runs on them.
    optimizer = optim.build_optimizer(network, model.score_head(network), config.train)
    rows = self_test.settle_rows(network, job.row_choice, config.model.dtype, config.train.seed, expected).rows
    if config.train.activation_checkpointing != "none":
        model.checkpoint_activations(network, config.train.activation_checkpointing)
    if config.train.kernels == "compile":
        kernels.compile_layers(model.whole_row_layers(network))
    trainer = _Trainer(job, network, optimizer, rows)
    folder = job.run_folder / "model"
    try:
        with (
            (job.run_folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics_file,
            kernels.explained() if config.train.kernels == "compile" else nullcontext(),
        ):
            summary = trainer.fit(metrics_file, job.run_folder / "profile" if with_profile else None)
        optim.restore_float32(optimizer)
        model_folder.export(network, job.reward, toml, folder)
    except (OSError, SafetensorError) as error:
        raise RmcliError(f"cannot write into {job.run_folder}: {error}", "is the disk full?") from error
    if "eval_accuracy" in summary:
        output.say(f"held-out accuracy {summary['eval_accuracy']:.3f} ({summary['eval_pairs']} pairs)")
    output.say(f"model in {folder}")
    return {**summary, "model": str(folder), "run": str(job.run_folder)}


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


def _make_run_folder(folder: Path) -> None:
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise RmcliError(f"run folder {folder} is not empty", "choose another with -o")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").touch()
    except OSError as error:
        raise RmcliError(
            f"cannot write {folder}: {error.strerror or error}", "choose another folder with -o"
        ) from error


class _Trainer:
    """The loop and what it keeps between steps."""

    def __init__(self, job: Job, network: Any, optimizer: optim.Optimizer, rows: Rows) -> None:
        self.job, self.network, self.optimizer, self.config = job, network, optimizer, job.config
        self.rows: Rows = rows
        self.feeder = Feeder(
            split=job.train_split,
            loss_type=job.config.loss.loss_type,
            rows=rows,
            pad_token_id=job.reward.pad_token_id,
            device=job.device,
            counter=model.flop_counter(network),
            shape=self._row_shape(),
        )
        self.window = _Window(job.peak_flops)

    def _row_shape(self) -> RowShape | None:
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
                skipped = self.run_step(feed)
                _stop_if_skipped(unread)
                unread = skipped
                if profiler is not None:
                    profiler.step()
                progress.advance()
                last = step.number == total
                if step.number % train.log_every == 0 or step.number == 1 or last:
                    _stop_if_skipped(unread)
                    summary = {
                        "step": step.number,
                        "epoch": step.epoch,
                        "lr": train.lr * share,
                        **self.window.result(),
                    }
                    self.window = _Window(self.job.peak_flops)
                    gc.collect()
                    _log(progress, metrics_file, summary)
                if last or (train.eval_steps and step.number % train.eval_steps == 0):
                    summary |= self.evaluate_and_log(step.number, metrics_file, progress)
                    self.window.restart_clock()
                if step.number % train.save_steps == 0:
                    state = model_folder.state_of(self.network, self.optimizer, step.number)
                    path = checkpoint.save(self.job.run_folder, step.number, state, train.save_total_limit)
                    output.detail(f"checkpoint {path}")
                    self.window.restart_clock()
        return summary

    def step(self, step: Step) -> "_Skipped":
        """One optimizer step, its batches built first."""
        return self.run_step(self.feeder.build(step))

    def run_step(self, feed: StepFeed) -> "_Skipped":
        """One optimizer step over all forwards of this rank. Nothing in it waits for the device."""
        self.network.train()
        loss = torch.zeros((), device=self.job.device)
        if not feed.row_ids:
            return _Skipped(feed.step.number, loss, ())  # nothing to learn from in this step
        # Conversations run one by one are several forwards, too, though their backward is one.
        optim.expect_gradients(self.optimizer, several=len(feed.forwards) > 1 or self.rows == "single")
        for forward in feed.forwards:
            scores_S = model.scores(self.network, forward.batch, self.config.model.dtype)
            preference_loss, penalty = objective(
                scores_S, forward.targets, self.config.loss, feed.total_weight, feed.total_scores
            )
            (preference_loss + penalty).backward()
            loss += (preference_loss + penalty).detach()
            self.window.metrics.add(scores_S, forward.targets.better, forward.targets.worse)
        norm, skipped = optim.clip_and_step(self.network, self.optimizer, self.config.train.max_norm, loss)
        self.window.add_step(feed, loss, norm)
        return _Skipped(feed.step.number, skipped, feed.row_ids)

    def evaluate_and_log(self, step: int, metrics_file: TextIO, progress: output.Progress) -> dict[str, Any]:
        pad_token_id = self.job.reward.pad_token_id
        result = evaluate(self.network, self.job.eval_split, self.config, pad_token_id, self.rows)
        if result:
            metrics_file.write(json.dumps({"step": step, **result}) + "\n")
            metrics_file.flush()
            progress.note(
                f"step {step}: held-out accuracy {result['eval_accuracy']:.3f}, loss {result['eval_loss']:.4f}, "
                f"margin {result['eval_margin']:.3f}, {result['eval_pairs']} pairs"
            )
        return result


def evaluate(network: Any, split: store.PackedSplit, config: Config, pad_token_id: int, rows: Rows) -> dict[str, Any]:
    """Loss (as in training), accuracy, margin and score range over all held-out pairs; empty without any."""
    # Rows keep their own sizes here: compiled layers would be built again and again.
    compiled = config.train.kernels == "compile"
    with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return _evaluate(network, split, config, pad_token_id, rows)


def _evaluate(
    network: Any, split: store.PackedSplit, config: Config, pad_token_id: int, rows: Rows
) -> dict[str, Any]:
    forwards = [[Slice(row, 0, count)] for row, count in enumerate(split.groups_per_row)]
    if rows == "padded":
        single = [Slice(row, g, g + 1) for row, count in enumerate(split.groups_per_row) for g in range(count)]
        size = config.train.batch_size
        forwards = [single[at : at + size] for at in range(0, len(single), size)]
    if not forwards:
        return {}
    network.eval()
    metrics = PairMetrics()
    loss_sum, weight_sum, penalty_sum = 0.0, 0.0, 0.0
    for forward in forwards:
        groups = groups_of(split, forward, config.loss.loss_type)
        if not groups:
            continue
        batch = batches.build(rows, groups, pad_token_id, network.device)
        targets = batches.build_targets(groups, config.loss.loss_type, network.device)
        scores_S = model.scores(network, batch, config.model.dtype)
        preference_loss, penalty = objective(scores_S, targets, config.loss, 1.0, 1)
        loss_sum, penalty_sum = loss_sum + float(preference_loss), penalty_sum + float(penalty)
        weight_sum += sum(group.weight for group in groups)
        metrics.add(scores_S, targets.better, targets.worse)
    if not metrics.num_scores:
        return {}
    values = {
        "loss": loss_sum / weight_sum + penalty_sum / metrics.num_scores,
        **metrics.result(),
        "pairs": metrics.num_pairs,
    }
    return {f"eval_{name}": value for name, value in values.items()}


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


class _Window:
    """What one log line is about: the steps since the last one."""

    def __init__(self, peak_flops: float | None) -> None:
        self.metrics = PairMetrics()
        self.peak_flops = peak_flops
        self.num_tokens = 0
        self.flops = self.effective_flops = 0.0
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.seconds = 0.0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.started = time.perf_counter()

    def add_step(self, feed: StepFeed, loss: Tensor, norm: Tensor) -> None:
        self.num_tokens += feed.num_tokens
        self.flops += feed.flops
        self.effective_flops += feed.effective_flops
        self.losses.append(loss)
        self.norms.append(norm)
        self.seconds += time.perf_counter() - self.started
        self.restart_clock()

    def result(self) -> dict[str, Any]:
        seconds = self.seconds + time.perf_counter() - self.started
        return {
            "loss": float(torch.stack(self.losses).mean()) if self.losses else float("nan"),
            **self.metrics.result(),
            "grad_norm": float(torch.stack(self.norms).mean()) if self.norms else float("nan"),
            "pairs": self.metrics.num_pairs,
            "tokens": self.num_tokens,
            "tokens_per_s": self.num_tokens / seconds,
            "pairs_per_s": self.metrics.num_pairs / seconds,
            **self._rates(seconds),
        }

    def _rates(self, seconds: float) -> dict[str, float]:
        """Model FLOP/s, and their share of what the device can do where that is known."""
        rates = {"flops_per_s": self.flops / seconds, "effective_flops_per_s": self.effective_flops / seconds}
        if self.peak_flops is not None:
            rates["mfu"] = rates["flops_per_s"] / self.peak_flops
            rates["effective_mfu"] = rates["effective_flops_per_s"] / self.peak_flops
        return rates


def _log(progress: output.Progress, metrics_file: TextIO, values: Mapping[str, Any]) -> None:
    metrics_file.write(json.dumps(values) + "\n")
    metrics_file.flush()
    progress.line(
        {
            "step": str(values["step"]),
            "loss": f"{values['loss']:.4f}",
            "accuracy": f"{values['accuracy']:.3f}",
            "margin": f"{values['margin']:.3f}",
            "score": f"{values['score_mean']:.3f}",
            "min..max": f"{values['score_min']:.2f}..{values['score_max']:.2f}",
            "lr": f"{values['lr']:.2e}",
            "tokens/s": f"{values['tokens_per_s']:,.0f}",
            "pairs/s": f"{values['pairs_per_s']:.2f}",
            **({"MFU": f"{values['mfu']:.1%}"} if "mfu" in values else {}),
        }
    )
