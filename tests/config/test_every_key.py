"""Every key of the configuration acts: it changes prepared data, a tiny run or its plan, or is refused with a reason.

TABLE says for each key how that is shown; a key that is not in it fails the test. What is compared holds nothing of
the configuration as it was written down, so a key that is only recorded would be found.
"""

import hashlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rmcli.config.presets import presets_folder, pretrained_arguments
from rmcli.config.sections import SECTIONS, SourceSection
from rmcli.config.sections_of_evaluation import EvalSetSection
from rmcli.errors import RmcliError
from rmcli.model.forward import scores as loop_scores
from rmcli.runs.checkpoint import save as save_checkpoint
from rmcli.tokens import engines
from support.cli import Result, as_options, run_cli
from support.places import write_lines

KEYS = {f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields}
KEYS |= {f"data.sources.{key}" for key in SourceSection.model_fields}
KEYS |= {f"eval.sets.{key}" for key in EvalSetSection.model_fields}

LONG = " ".join(str(number) for number in range(300))
PAIRS = [
    {"prompt": f"Add {n} and {n + 1}", "chosen": str(2 * n + 1), "rejected": str(n), "margin": 1.0 + n % 3}
    for n in range(24)
]
ODD_ROWS = [
    PAIRS[0],  # a duplicate
    {"prompt": LONG, "chosen": "long", "rejected": "short"},
    {"prompt": "What is <|im_end|>?", "chosen": "a token", "rejected": "a word"},
    {"chosen": "an answer", "rejected": "to no question"},
    {"prompt": "Rank them", "responses": ["a", "b", "c"], "ranks": [1, 2, 3]},
    {"prompt": "Say " + "so " * 40, "chosen": "so", "rejected": "no"},
]
SWAPPED = """
def swapped(row):
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
"""
SMALL = ("data.eval_fraction=0.2", "data.max_packed_length=256", "data.tokenizer_engine=transformers")
OF_THE_MACHINE = ("run", "memory_have_gib", "memory_fits", "disk_have_gib")  # in a plan, from one moment to the next
SHORT = ("train.max_steps=3", "train.pairs_per_step=4")


@dataclass
class World:
    """A folder with rows, and what commands made of them; each command line runs once."""

    folder: Path
    made: dict[tuple[str, ...], Any] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self, *arguments: object) -> Result:
        return run_cli(*arguments)

    def new_folder(self) -> Path:
        return self.folder / f"new-{next(self.numbers)}"

    def _once(self, kind: str, arguments: Sequence[str], make: Callable[[Path], Any]) -> Any:
        name = (kind, *arguments)
        if name not in self.made:
            self.made[name] = make(self.new_folder())
        return self.made[name]

    def prepared(self, *arguments: str) -> dict[str, Any]:
        """What prepare made of these: the account, the packs, and what they were made for."""

        def make(folder: Path) -> dict[str, Any]:
            result = self.run("prepare", "-p", "tiny", "--no-audit", "-o", str(folder), *arguments)
            assert result.code == 0, (arguments, result.stderr)
            manifest = json.loads((folder / "manifest.json").read_text())
            names = ("rows_by_source", "splits", "reward_token_id", "reward_mode", "chat_template_sha256")
            packs = [(name, shard["sha256"]) for name, shard in manifest["shards"].items()]
            return {name: manifest[name] for name in (*names, "tokenizer_engine")} | {"packs": packs}

        return self._once("data", arguments, make)

    def trained(self, *settings: str) -> dict[str, Any]:
        """Metrics without rates, weights, and the names in the run folder and of the checkpoints."""

        def make(folder: Path) -> dict[str, Any]:
            result = self.train(folder, *settings)
            assert result.code == 0, (settings, result.stderr)
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            weights = (folder / "model" / "model.safetensors").read_bytes()
            return {
                "metrics": [_without_rates(line) for line in lines],
                "weights": hashlib.sha256(weights).hexdigest(),
                "folder": sorted(path.name for path in folder.iterdir()),
                "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
            }

        return self._once("run", settings, make)

    def train(self, folder: Path, *settings: str) -> Result:
        return self.run("train", "-p", "tiny", "--data", str(self.data()), "-o", str(folder), *as_options(*settings))

    def planned(self, *settings: str) -> dict[str, Any]:
        def make(folder: Path) -> dict[str, Any]:
            options = ("--data", str(self.data()), "-n", "--json", *as_options(*settings))
            result = self.run("train", "-p", "tiny", *options)
            assert result.code == 0, (settings, result.stderr)
            plan = json.loads(result.stdout)["plan"]
            return {name: plan[name] for name in plan if name not in OF_THE_MACHINE}

        return self._once("plan", settings, make)

    def data(self) -> Path:
        """Plain pairs with margins, for runs."""

        def make(folder: Path) -> Path:
            options = ("--map-fn", "canonical", "--no-audit", "-o", str(folder), *as_options(*SMALL))
            result = self.run("prepare", "pairs.jsonl", "-p", "tiny", *options)
            assert result.code == 0, result.stderr
            return folder

        return self._once("pairs", (), make)


def _without_rates(line: dict[str, Any]) -> dict[str, Any]:
    """Rates stay by name; model FLOPs per token do not depend on the time."""
    timed = {name for name in line if name.endswith("_per_s") or "mfu" in name or name == "seconds"}
    kept = {name: None if name in timed else value for name, value in line.items()}
    if "flops_per_s" in line:
        kept["flops_per_token"] = f"{line['flops_per_s'] / line['tokens_per_s']:.6g}"
    return kept


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "is_available", lambda: False)  # the same everywhere
        write_lines(folder / "rows.jsonl", PAIRS + ODD_ROWS)
        write_lines(folder / "pairs.jsonl", PAIRS)
        write_lines(folder / "evaluation.jsonl", PAIRS[3:5])
        (folder / "swap.py").write_text(SWAPPED)
        (folder / "both").mkdir()
        write_lines(folder / "both" / "train.jsonl", PAIRS[:20])
        write_lines(folder / "both" / "test.jsonl", PAIRS[20:])
        shutil.copytree(presets_folder() / "tiny", folder / "shallow")
        config = json.loads((folder / "shallow" / "config.json").read_text())
        (folder / "shallow" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
        yield World(folder)


# --- ways to show it ---

Shown = Callable[[World], None]
CANONICAL = ("rows.jsonl", "--map-fn", "canonical")


def prepares(change: str, *base: str, source: Sequence[str] = CANONICAL) -> Shown:
    """The prepared data differ."""

    def show(world: World) -> None:
        common = (*source, *as_options(*SMALL, *base))
        assert world.prepared(*common, *as_options(change)) != world.prepared(*common)

    return show


def reads(change: str, *base: str) -> Shown:
    """The same for a key of a source: `--source path=...,KEY=VALUE`."""

    def show(world: World) -> None:
        options = ("--map-fn", "canonical", *as_options(*SMALL))
        sources = [",".join(("path=rows.jsonl", *base, *added)) for added in ((), (change,))]
        before, after = (world.prepared("--source", source, *options) for source in sources)
        assert before != after

    return show


def asks_the_hub(key: str, text: str, name: str, value: Any) -> Shown:
    """What a Hub data set is asked for."""

    def show(world: World) -> None:
        asked: list[dict[str, Any]] = []

        def load_dataset(path: str, **options: Any) -> None:
            asked.append(options)
            raise ValueError("enough")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.load_dataset", load_dataset)
            source = f"path=org/name{',' if key else ''}{key}{'=' if key else ''}{text}"
            result = world.run("prepare", "-p", "tiny", "--map-fn", "canonical", "--source", source, "-o", "hub")
        assert result.code != 0
        assert asked[0][name] == value

    return show


def trains(change: str, *base: str) -> Shown:
    """Metrics, weights or checkpoints of a run of three steps differ."""
    return lambda world: _differ(world.trained(*SHORT, *base), world.trained(*SHORT, *base, change))


def plans(change: str, *base: str) -> Shown:
    return lambda world: _differ(world.planned(*base), world.planned(*base, change))


def _differ(before: object, after: object) -> None:
    assert before != after


def refuses(change: str, said: str, *base: str) -> Shown:
    """`train` stops before it begins, and says why; without the key it plans."""

    def show(world: World) -> None:
        world.planned(*base)
        refused = world.train(world.new_folder(), *base, change)
        assert refused.code != 0
        assert said in refused.stderr, refused.stderr

    return show


def prepare_refuses(change: str, said: str, *base: str) -> Shown:
    def show(world: World) -> None:
        common = (*CANONICAL, *as_options(*SMALL, *base))
        world.prepared(*common)
        refused = world.run("prepare", "-p", "tiny", *common, *as_options(change), "-o", world.new_folder())
        assert refused.code != 0
        assert said in refused.stderr, refused.stderr

    return show


def allows(change: str, refused_before: str, *base: str) -> Shown:
    """Without the key prepare refuses; with it, it runs."""

    def show(world: World) -> None:
        common = (*CANONICAL, *as_options(*SMALL, *base))
        before = world.run("prepare", "-p", "tiny", *common, "-o", world.new_folder())
        assert before.code != 0
        assert refused_before in before.stderr, before.stderr
        world.prepared(*common, *as_options(change))

    return show


def reaches(target: str, change: str, seen_of: Callable[..., Any], before: Any, after: Any) -> Shown:
    """What a function of the run is called with, or finds; the run stops there. None: it is not called in a run."""

    def show(world: World) -> None:
        def seen(*settings: str) -> Any:
            found: list[Any] = []

            def stop(*arguments: Any, **options: Any) -> None:
                found.append(seen_of(*arguments, **options))
                raise RmcliError("far enough")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(target, stop)
                world.train(world.new_folder(), *SHORT, *settings)
            return found[0] if found else None

        assert (seen(), seen(change)) == (before, after)

    return show


def number_of_threads(world: World) -> None:
    """Any number of threads gives the same data; here it is seen where they begin."""
    seen: list[int] = []
    real = engines.in_order

    def in_order(work: Any, batches: Any, num_threads: int, settled: Any) -> Any:
        seen.append(num_threads)
        return real(work, batches, num_threads, settled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "in_order", in_order)
        for threads in (1, 3):
            options = as_options(*SMALL, f"data.num_proc={threads}")
            result = world.run("prepare", "-p", "tiny", *CANONICAL, *options, "-o", world.new_folder())
            assert result.code == 0, result.stderr
    assert seen == [1, 3]


def engine_is_asked(world: World) -> None:
    """gigatoken cannot take this tokenizer, which is said (or is not installed); transformers says nothing of it."""
    said = []
    for engine in ("transformers", "gigatoken"):
        options = as_options(*SMALL, f"data.tokenizer_engine={engine}")
        result = world.run("prepare", "-p", "tiny", *CANONICAL, *options, "-o", world.new_folder())
        said.append("gigatoken" in result.stderr)
    assert said == [False, True]


def revision_of_a_model(world: World) -> None:
    """Of a Hub model it goes to transformers; of any other it is said to have no effect."""
    assert pretrained_arguments("org/name", "abc")["revision"] == "abc"
    assert "revision" not in pretrained_arguments("org/name", None)
    result = world.train(world.new_folder(), "model.revision=abc", "model.attention=flex")
    assert "model.revision = 'abc' (--set model.revision) has no effect" in result.stderr


def memory_is_checked(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmcli.train.memory.free_memory", lambda device, processes: 1)
        refused = world.train(world.new_folder(), *SHORT)
        assert "not enough memory" in refused.stderr
        taken = world.train(world.new_folder(), *SHORT, "train.check_memory=false")
    assert taken.code == 0, taken.stderr


def run_with_bad_steps(world: World, count: int, *settings: str) -> Result:
    """A run of three steps; the scores of the first ones are not finite."""
    calls = itertools.count()

    def bad_scores(*arguments: Any) -> torch.Tensor:
        return loop_scores(*arguments) * (float("nan") if next(calls) < count else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmcli.train.loop.scores", bad_scores)
        return world.train(world.new_folder(), *SHORT, *settings)


def bad_step_is_left_out(world: World) -> None:
    stopped = run_with_bad_steps(world, 1)
    assert stopped.code == 1
    assert "loss or gradient of step 1 is not finite" in stopped.stderr
    skipped = run_with_bad_steps(world, 1, "train.nonfinite=skip")
    assert skipped.code == 0, skipped.stderr
    assert "left out, 1 of at most 10" in skipped.stderr


def so_many_bad_steps_are_left_out(world: World) -> None:
    for most, code in ((2, 0), (1, 1)):
        result = run_with_bad_steps(world, 2, "train.nonfinite=skip", f"train.max_skipped={most}")
        assert result.code == code, result.stderr
        assert ("more than train.max_skipped = 1" in result.stderr) == (code == 1)


def checkpoint_is_written_by_a_thread(world: World) -> None:
    writers: list[bool] = []

    def save(*arguments: Any) -> Path:
        writers.append(threading.current_thread() is threading.main_thread())
        return save_checkpoint(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmcli.train.loop.checkpoint.save", save)
        for beside in ("false", "true"):
            result = world.train(world.new_folder(), *SHORT, f"train.async_checkpoint={beside}")
            assert result.code == 0, result.stderr
    assert writers == [True, False]


def evaluates(other_set: str) -> Shown:
    """A run evaluated on one set is another than that evaluated on the other, or on none."""

    def show(world: World) -> None:
        for folder, fraction in (("pairs", "0.2"), ("more", "0.5")):
            options = ("--map-fn", "canonical", "--no-audit", "-o", folder, "--overwrite")
            own = as_options("data.tokenizer_engine=transformers", f"data.eval_fraction={fraction}")
            result = world.run("prepare", "pairs.jsonl", "-p", "tiny", *options, *own)
            assert result.code == 0, result.stderr
        one = "{name='one', path='pairs'}"
        _differ(*(world.trained(*SHORT, f"eval.sets=[{sets}]") for sets in (one, other_set)))

    return show


EVALUATED = ("train.best=eval_loss", "train.eval_steps=1")
NOT_PACKED = "train.pairs_per_step=none"
TABLE: dict[str, Shown] = {
    "model.pretrained_model_name_or_path": plans("model.pretrained_model_name_or_path=shallow"),
    "model.revision": revision_of_a_model,
    "model.tokenizer_name_or_path": prepare_refuses(
        "model.tokenizer_name_or_path=./none", "model ./none: no such folder"
    ),
    "model.random_weights": refuses("model.random_weights=false", "cannot load the weights of {presets}/tiny"),
    "model.chat_template": prepares("model.chat_template=plain"),
    "model.reward_token": prepares("model.reward_token=natural", "model.reward_token_id=none"),
    "model.reward_token_id": prepare_refuses(
        "model.reward_token_id=5", "model.reward_token_id = 5 is '!' in the tokenizer"
    ),
    "model.allow_ordinary_reward_token": allows(
        "model.allow_ordinary_reward_token=true",
        "model.allow_ordinary_reward_token",
        "model.reward_token=z",
        "model.reward_token_id=none",
    ),
    "model.use_varlen_attn": trains("model.use_varlen_attn=false"),
    "model.attention": refuses("model.attention=flex", "runs on CUDA only"),
    "model.trim_last_layer": trains("model.trim_last_layer=false"),
    "model.dtype": trains("model.dtype=bfloat16"),
    "model.quantization": refuses("model.quantization=nf4", "without adapters"),
    "lora.r": trains("lora.r=4"),
    "lora.lora_alpha": trains("lora.lora_alpha=64", "lora.r=4"),
    "lora.lora_dropout": trains("lora.lora_dropout=0.5", "lora.r=4"),
    "lora.target_modules": trains('lora.target_modules=["q_proj"]', "lora.r=4"),
    "lora.use_rslora": trains("lora.use_rslora=true", "lora.r=4"),
    "data.dataset_map_fn": prepares("data.dataset_map_fn=swap.py:swapped", source=("pairs.jsonl",)),
    "data.sources": prepares('data.sources=["rows.jsonl"]', 'data.sources=["pairs.jsonl"]', source=()),
    "data.split": prepares("data.split=test", source=("both", "--map-fn", "canonical")),
    "data.max_length": prepares("data.max_length=64"),
    "data.overlong": prepares("data.overlong=drop"),
    "data.max_characters": prepares("data.max_characters=100"),
    "data.max_row_bytes": prepares("data.max_row_bytes=150"),
    "data.control_tokens": prepares("data.control_tokens=reject"),
    "data.max_packed_length": prepares("data.max_packed_length=512"),
    "data.shuffle_before_pack": prepares("data.shuffle_before_pack=false"),
    "data.pairs": prepares("data.pairs=best_worst"),
    "data.eval_fraction": prepares("data.eval_fraction=0.5"),
    "data.eval_seed": prepares("data.eval_seed=1"),
    "data.allow_no_prompt": prepares("data.allow_no_prompt=true"),
    "data.keep_duplicates": prepares("data.keep_duplicates=true"),
    "data.max_rejects": prepare_refuses("data.max_rejects=0", "2 of 30 rows are rejected, over max_rejects = 0"),
    "data.decontaminate": prepares('data.decontaminate=["evaluation.jsonl"]'),
    "data.seed": prepares("data.seed=1"),
    "data.num_proc": number_of_threads,
    "data.tokenizer_engine": engine_is_asked,
    "data.shard": prepares("data.shard=1/2"),
    "data.sources.path": prepares('data.sources=[{path="rows.jsonl"}]', 'data.sources=["pairs.jsonl"]', source=()),
    "data.sources.name": reads("name=mine"),
    "data.sources.dataset_map_fn": reads("map_fn=swap.py:swapped"),
    "data.sources.split": asks_the_hub("split", "test", "split", "test"),
    "data.sources.subset": asks_the_hub("subset", "en", "name", "en"),
    "data.sources.revision": asks_the_hub("revision", "abc", "revision", "abc"),
    "data.sources.streaming": asks_the_hub("streaming", "true", "streaming", True),
    "data.sources.weight": reads("weight=2"),
    "data.sources.max_rows": reads("max_rows=3"),
    "data.sources.system": reads("system=Be brief."),
    "loss.loss_type": trains("loss.loss_type=focal"),
    "loss.gamma": trains("loss.gamma=0.5", "loss.loss_type=focal"),
    "loss.label_smoothing": trains("loss.label_smoothing=0.2"),
    "loss.margin_scale": trains("loss.margin_scale=0.5", "loss.loss_type=margin"),
    "loss.tie_threshold": trains("loss.tie_threshold=0.1", "loss.loss_type=ties"),
    "loss.penalty_type": trains("loss.penalty_type=none"),
    "loss.penalty_weight": trains("loss.penalty_weight=0.5"),
    "loss.penalty_bound": trains("loss.penalty_bound=3"),
    "train.batch_size": plans("train.batch_size=2", NOT_PACKED),
    "train.accumulative_counts": plans("train.accumulative_counts=2", NOT_PACKED),
    "train.pairs_per_step": plans("train.pairs_per_step=3"),
    "train.max_epochs": plans("train.max_epochs=2"),
    "train.max_steps": plans("train.max_steps=1", "train.pairs_per_step=4"),
    "train.lr": trains("train.lr=1e-3"),
    "train.head_lr": trains("train.head_lr=1e-2"),
    "train.optimizer": trains("train.optimizer=adamw_8bit"),
    "train.master_weights": trains("train.master_weights=split", "model.dtype=bfloat16"),
    "train.betas": trains("train.betas=[0.5, 0.9]"),
    "train.weight_decay": trains("train.weight_decay=0.5"),
    "train.warmup_ratio": trains("train.warmup_ratio=1.0"),
    "train.min_lr_ratio": trains("train.min_lr_ratio=1.0"),
    "train.max_norm": trains("train.max_norm=1e-6"),
    "train.seed": trains("train.seed=1"),
    "train.device": refuses("train.device=cuda", "torch sees no CUDA device"),
    "train.deterministic": reaches(
        "rmcli.train.run.check_memory",
        "train.deterministic=true",
        lambda job: torch.are_deterministic_algorithms_enabled(),
        False,
        True,
    ),
    "train.activation_checkpointing": reaches(
        "rmcli.train.run.checkpoint_activations",
        "train.activation_checkpointing=full",
        lambda network, kind: kind,
        None,
        "full",
    ),
    "train.kernels": refuses("train.kernels=compile", "is for CUDA"),
    "train.fp8": refuses("train.fp8=rowwise", "is for CUDA"),
    "train.check_memory": memory_is_checked,
    "train.peak_tflops": trains("train.peak_tflops=1"),
    "train.trackers": reaches(
        "rmcli.train.tracker_options.maker", 'train.trackers=["wandb"]', lambda name, *rest: name, None, "wandb"
    ),
    "train.log_every": trains("train.log_every=1"),
    "train.eval_steps": trains("train.eval_steps=1"),
    "train.save_steps": trains("train.save_steps=1"),
    "train.save_minutes": trains("train.save_minutes=1e-6"),
    "train.save_total_limit": trains("train.save_total_limit=1", "train.save_steps=1"),
    "train.async_checkpoint": checkpoint_is_written_by_a_thread,
    "train.best": trains("train.best=eval_loss"),
    "train.early_stopping_patience": trains(
        "train.early_stopping_patience=1", "train.early_stopping_threshold=5.0", *EVALUATED
    ),
    "train.early_stopping_threshold": trains(
        "train.early_stopping_threshold=5.0", "train.early_stopping_patience=1", *EVALUATED
    ),
    "eval.sets": evaluates(""),
    "eval.sets.name": evaluates("{name='other', path='pairs'}"),
    "eval.sets.path": evaluates("{name='one', path='more'}"),
    "eval.sets.split": evaluates("{name='one', path='pairs', split='train'}"),
    "train.nonfinite": bad_step_is_left_out,
    "train.max_skipped": so_many_bad_steps_are_left_out,
    # What they do on several processes: tests/train/test_processes.py.
    "parallel.data_parallel": refuses("parallel.data_parallel=shard", "on one process: there is nothing to cut"),
    "parallel.dp_replicate_size": refuses("parallel.dp_replicate_size=2", "= 2 does not divide the 1 process"),
    "parallel.sequence_parallel_size": refuses(
        "parallel.sequence_parallel_size=2", "= 2 does not divide the 1 process"
    ),
}


def test_every_key_is_in_the_table():
    assert TABLE.keys() == KEYS


@pytest.mark.parametrize("key", TABLE)
def test_the_key_acts(world, key):
    TABLE[key](world)


def test_what_is_compared_stays_the_same_where_nothing_changes(world):
    """Else every key would seem to act."""
    common = (*CANONICAL, *as_options(*SMALL))
    assert world.prepared(*common, "-s", "train.lr=1e-3") == world.prepared(*common)
    assert world.trained(*SHORT, "train.check_memory=false") == world.trained(*SHORT)
    assert world.planned("train.lr=1e-3") == world.planned()
