"""Runs of `rmcli train` killed with `kill -9` at random moments, and what `rmcli train --resume` makes of them.

Each run is started, killed once to three times, gone on with each time as a user does, and left to end. Then
its models must be those of a run that was never stopped, bit by bit, its metrics the same but for rates, and
nothing temporary may be left. A kill comes from outside after a random time, or before a random call that changes the
disk; anywhere, or inside a checkpoint or the export. One process imports torch, the runs are forks of it.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")

import argparse
import random
import select
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import figures
import nano_run
from rmcli.cli import app
from rmcli.runs import checkpoint
from rmcli.ship import folder
from rmcli.train import resume, run  # noqa: F401  (run: imported once, not in every child)

STEPS = ("train.pairs_per_step=16", "train.max_epochs=2", "train.log_every=4", "train.eval_steps=3")
SAVES = ("train.save_steps=2", "train.save_total_limit=2", "train.best=eval_loss")
# Which runs are killed in turn.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "async": ("train.async_checkpoint=true",),
    "split, 8 bits": ("model.dtype=bfloat16", "train.master_weights=split", "train.optimizer=adamw_8bit"),
}
ANYWHERE, CHECKPOINT, EXPORT = "anywhere", "checkpoint", "export"
# (where, how) -> how often it is drawn.
MOMENTS = {
    (CHECKPOINT, "time"): 30,
    (CHECKPOINT, "call"): 25,
    (EXPORT, "time"): 10,
    (EXPORT, "call"): 10,
    (ANYWHERE, "time"): 12,
    (ANYWHERE, "call"): 13,
}
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}  # as sys.audit names them
MOST_STARTS = 20  # of one run: more is a run that does not come to its end


@dataclass(frozen=True)
class Moment:
    """When to kill. `number`: of the place (by time), or of the call that changes the disk there (by call)."""

    where: str
    how: str
    number: int
    seconds: float = 0.0  # by time: after the place is entered, or after the start


@dataclass(frozen=True)
class Outcome:
    code: int  # -9: killed
    where: str  # it was when it ended
    entered: Counter[str]  # how often each place was
    seconds: dict[str, float]  # in all, and the longest time in each place
    calls: Counter[str]  # that change the disk, in each place; only of a run that ended


class Places:
    """In the child: tells the parent where it is, and dies before the call that it is to die at."""

    def __init__(self, pipe: int, moment: Moment | None) -> None:
        self.pipe, self.moment = pipe, moment
        self.calls, self.inside = Counter[str](), Counter[str]()

    def tell(self, text: str) -> None:
        os.write(self.pipe, f"{text}\n".encode())

    def told(self, where: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            self.inside[where] += 1
            self.tell(f"enter {where}")
            try:
                return function(*arguments, **options)
            finally:
                self.inside[where] -= 1
                self.tell(f"leave {where}")

        return call

    def watch(self) -> None:
        checkpoint.save = self.told(CHECKPOINT, checkpoint.save)
        checkpoint.save_best = self.told(CHECKPOINT, checkpoint.save_best)
        folder.fill = self.told(EXPORT, folder.fill)
        sys.addaudithook(self.before_call)

    def before_call(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE != os.O_RDONLY
        if not writes and event not in CHANGES:
            return
        for where in (ANYWHERE, *(place for place, depth in self.inside.items() if depth)):
            self.calls[where] += 1
            if self.moment == Moment(where, "call", self.calls[where]):
                os.kill(os.getpid(), signal.SIGKILL)


def child(command: Sequence[str], log: Path, pipe: int, moment: Moment | None) -> None:
    """The command line, as a process that says nothing but into `log`."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["rmcli", *command]
    places = Places(pipe, moment)
    places.watch()
    code: int | str | None = 1
    try:
        app.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stderr.flush()
        for where, number in places.calls.items():
            places.tell(f"calls {where} {number}")
        os._exit(code if isinstance(code, int) else 1)


class Watched:
    """In the parent: what the child has told so far."""

    def __init__(self, pipe: int) -> None:
        self.pipe, self.rest, self.start = pipe, "", time.perf_counter()
        self.entered, self.inside, self.calls = Counter[str](), Counter[str](), Counter[str]()
        self.since: dict[str, float] = {}
        self.longest: dict[str, float] = {}

    def read(self, until: float | None) -> bool:
        """What comes next; False where nothing comes until then, or ever."""
        wait = None if until is None else max(0.0, until - time.perf_counter())
        if not select.select([self.pipe], [], [], wait)[0]:
            return False
        text = os.read(self.pipe, 65536).decode()
        *whole, self.rest = (self.rest + text).split("\n")
        for line in whole:
            self.take(*line.split())
        return bool(text)

    def take(self, what: str, where: str, number: str = "") -> None:
        now = time.perf_counter()
        if what == "calls":
            self.calls[where] = int(number)
        elif what == "enter":
            self.entered[where] += 1
            self.inside[where] += 1
            self.since[where] = now
        else:
            self.inside[where] -= 1
            self.longest[where] = max(self.longest.get(where, 0.0), now - self.since[where])

    def outcome(self, status: int) -> Outcome:
        where = next((place for place in (EXPORT, CHECKPOINT) if self.inside[place]), ANYWHERE)
        seconds = self.longest | {ANYWHERE: time.perf_counter() - self.start}
        return Outcome(os.waitstatus_to_exitcode(status), where, self.entered, seconds, self.calls)


def start(command: Sequence[str], log: Path, moment: Moment | None = None) -> Outcome:
    """Run the command in a fork, killed at the moment if it comes."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        child(command, log, write, moment)
    os.close(write)
    watched = Watched(read)
    if moment is not None and moment.how == "time":
        goes_on = moment.where == ANYWHERE or wait_for(watched, moment)
        until = time.perf_counter() + moment.seconds
        while goes_on and watched.read(until):
            pass
        os.kill(process, signal.SIGKILL)  # one that has ended waits for us, and keeps its number
    while watched.read(None):
        pass
    os.close(read)
    return watched.outcome(os.waitpid(process, 0)[1])


def wait_for(watched: Watched, moment: Moment) -> bool:
    while watched.entered[moment.where] < moment.number:
        if not watched.read(None):
            return False
    return True


def draw(chance: random.Random, whole: Outcome) -> Moment:
    """`whole` is a run of this kind that was not killed: where it was, how long, with how many calls."""
    where, how = chance.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    if how == "call":
        return Moment(where, how, chance.randint(1, whole.calls[where]))
    number = 0 if where == ANYWHERE else chance.randint(1, whole.entered[where])
    return Moment(where, how, number, chance.uniform(0, whole.seconds[where]))


def differences(folder: Path, whole: Path) -> list[str]:
    """What a run that was killed has otherwise than the one that was not."""
    found = [
        f"{name} differs"
        for name in ("model", "model-best")
        if not (folder / name).is_dir() or nano_run.files(folder / name) != nano_run.files(whole / name)
    ]
    if nano_run.lines(folder) != nano_run.lines(whole):
        found.append("metrics.jsonl differs")
    there, expected = ({str(path.relative_to(one)) for path in one.rglob("*")} for one in (folder, whole))
    found += [f"{name} is left" for name in sorted(there - expected)]
    return found + [f"{name} is missing" for name in sorted(expected - there)]


class Ground:
    """The folder of all runs: model, data, and of each variant the run that is never killed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.data = nano_run.make_model(root / "nano"), root / "data"
        self.whole: dict[str, Outcome] = {}
        self.expect(start(nano_run.prepare_line(self.model, self.data), self.log("prepare")), "prepare")
        for name in VARIANTS:
            folder = self.root / f"whole {name}"
            self.whole[name] = self.expect(start(self.first_line(name, folder), self.log(folder.name)), folder.name)

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    def expect(self, outcome: Outcome, name: str) -> Outcome:
        if outcome.code != 0:
            raise SystemExit(f"{name} ended with {outcome.code}:\n{self.log(name).read_text()}")
        return outcome

    def first_line(self, variant: str, folder: Path) -> list[str]:
        """One that begins a run, and goes on with it where there is one."""
        keys = nano_run.settings(*STEPS, *SAVES, *VARIANTS[variant])
        where = ["--data", str(self.data), "-o", str(folder)]
        return ["train", "--resume", *where, *nano_run.of_model(self.model), *keys]


@dataclass
class Killed:
    """What became of one run."""

    variant: str
    kills: list[tuple[str, str, str]]  # where it was meant, how, where it was
    starts: int
    faults: list[str]


def kill_one(ground: Ground, number: int, chance: random.Random) -> Killed:
    """A run killed up to three times, then left to end. A moment that does not come is drawn again."""
    variant = list(VARIANTS)[number % len(VARIANTS)]
    folder = ground.root / f"run-{number}"
    first, bare = ground.first_line(variant, folder), ["train", "--resume", "-o", str(folder)]
    repeats_first = chance.random() < 0.5  # as a queue does
    wanted = chance.choice([1, 1, 2, 3])
    killed = Killed(variant, [], 0, [])
    log = ground.log(folder.name)
    while killed.starts < MOST_STARTS:
        line = bare if not repeats_first and resume.is_run(folder) else first
        moment = draw(chance, ground.whole[variant]) if len(killed.kills) < wanted else None
        outcome = start(line, log, moment)
        killed.starts += 1
        if moment is not None and outcome.code == -signal.SIGKILL:
            killed.kills.append((moment.where, moment.how, outcome.where))
        elif outcome.code != 0:
            killed.faults.append(f"ended with {outcome.code}: {' '.join(log.read_text().splitlines()[-2:])}")
            break
        elif killed.kills:
            killed.faults += differences(folder, ground.root / f"whole {variant}")
            break
        else:
            shutil.rmtree(folder)
    else:
        killed.faults.append(f"not at its end after {MOST_STARTS} starts")
    if not killed.faults:
        shutil.rmtree(folder)
    return killed


def summary(runs: Sequence[Killed]) -> dict[str, Any]:
    kills = [kill for one in runs for kill in one.kills]
    inside = [where for _, _, where in kills if where != ANYWHERE]
    table = Counter((where, how) for _, how, where in kills)
    faults = [f"run {number} ({one.variant}): {fault}" for number, one in enumerate(runs) for fault in one.faults]
    return {
        "runs": len(runs),
        "runs_equal": sum(not one.faults for one in runs),
        "variants": dict(Counter(one.variant for one in runs)),
        "starts": sum(one.starts for one in runs),
        "kills": len(kills),
        "kills_inside": len(inside),
        "kills_by_place": [{"where": where, "by": how, "kills": table[where, how]} for where, how in sorted(table)],
        "faults": faults,
    }


def show(result: dict[str, Any]) -> None:
    print(f"{'killed in':<12} {'by':<5} {'kills':>5}")
    for row in result["kills_by_place"]:
        print(f"{row['where']:<12} {row['by']:<5} {row['kills']:>5}")
    print(f"{result['runs']} runs, {result['kills']} kills, {result['kills_inside']} of them inside what is written")
    print(f"{result['runs_equal']} runs ended as the one never killed, bit by bit, with nothing left")
    for fault in result["faults"]:
        print(fault)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs; those with faults stay there")
    parser.add_argument("--output", type=Path, help="the result as JSON")
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # it would be counted as a change of the disk
    began = time.perf_counter()
    result = figures.heading("kills.py", seed=options.seed)
    with TemporaryDirectory() as folder:
        ground = Ground(options.keep or Path(folder))
        chance = random.Random(options.seed)
        result |= summary([kill_one(ground, number, chance) for number in range(options.runs)])
    result["seconds"] = round(time.perf_counter() - began, 1)
    show(result)
    figures.write(options.output, result)
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
