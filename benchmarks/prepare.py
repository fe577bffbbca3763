"""How fast `rmcli prepare` encodes: against XTuner's way, the bare tokenizer, more threads and gigatoken.

    python benchmarks/prepare.py DATA.jsonl[.gz] --llama3 FOLDER --gguf FILE [--output figures.json]

Everything that is compared runs in turn, again and again, in one process, and the medians are compared. `cpu` is the
process's own seconds over all of its threads, `wall` those of the clock: on a busy machine only the first means
something, and a speed-up by threads shows in the second only. A process's first thread has slower memory
(docs/log.md): prepare encodes in others, and the bare tokenizer is called from another, too. XTuner's way runs where
XTuner runs it; `bare, first thread` tells the difference. Pairs are in memory as groups when the clock starts;
tokenizers are loaded; engines are settled (their first texts checked); `repeat` says how often the data is taken.
With --whole N the command itself is timed, too, on N copies of the data, with one thread and with two.
"""

import argparse
import gzip
import json
import os
import platform
import queue
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core, unless a run says otherwise

import transformers

import figures
from rmcli.config.resolve import resolve
from rmcli.errors import Skip
from rmcli.prepare.units import CHUNK
from rmcli.records import PreferenceGroup, as_dicts
from rmcli.rows.map_fns.apply import apply
from rmcli.rows.map_fns.known import NAMED
from rmcli.tokens import engines
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import RewardTokenizer, load_tokenizer, resolve_reward_token

MAX_LENGTH = 2048
LLAMA3_ROWS = 128256


def read_rows(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_groups(path: Path) -> list[PreferenceGroup]:
    """The pairs that can be encoded: what is compared must be the same work."""
    groups = []
    for row in read_rows(path):
        try:
            groups.append(apply(NAMED["hh_rlhf"], row, ""))
        except Skip:
            continue
    return groups


def encodable(reward: RewardTokenizer, groups: list[PreferenceGroup]) -> list[PreferenceGroup]:
    encoder = Encoder(reward, MAX_LENGTH, "truncate_right")
    return [g for g, tokens in zip(groups, encoder.encode(groups), strict=True) if not isinstance(tokens, str)]


def xtuner_way(reward: RewardTokenizer, groups: list[PreferenceGroup]) -> int:
    """As XTuner's reward data set does it, one pair after the other.

    Prompt, chosen and rejected are rendered and encoded apart, and travel as lists, labels beside them, through a
    queue. XTuner's queue is between processes, which costs more than this one.
    """
    tokenizer = reward.tokenizer
    results: queue.SimpleQueue = queue.SimpleQueue()
    for group in groups:
        chosen, rejected = (as_dicts(conversation) for conversation in group.conversations)
        texts = [tokenizer.apply_chat_template(chosen[:-1], tokenize=False, add_generation_prompt=True)]
        texts += [tokenizer.apply_chat_template(turns, tokenize=False) for turns in (chosen, rejected)]
        _, *sides = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        ids = [[*side[:MAX_LENGTH], reward.reward_token_id] for side in sides]
        labels = [[-100] * (len(side) - 1) + [number] for number, side in enumerate(ids)]
        results.put({"chosen_ids": ids[0], "rejected_ids": ids[1], "labels": labels})
    return sum(len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in _drain(results))


def _drain(results: queue.SimpleQueue) -> list[dict[str, Any]]:
    return [results.get() for _ in range(results.qsize())]


def our_way(encoder: Encoder, groups: list[PreferenceGroup], num_proc: int = 1) -> int:
    """prepare's own inner loop: chunks, in order, over so many threads."""
    chunks = (groups[start : start + CHUNK] for start in range(0, len(groups), CHUNK))
    done = engines.in_order(encoder.encode, chunks, num_proc, lambda: encoder.engine.is_settled)
    return sum(tokens.num_unshared_tokens for _, encoded in done for tokens in encoded if not isinstance(tokens, str))


def bare(reward: RewardTokenizer, texts: list[str]) -> int:
    """The tokenizer's Rust side alone, in the same batches, ids taken out as lists."""
    backend = reward.tokenizer.backend_tokenizer
    batches = (texts[start : start + 2 * CHUNK] for start in range(0, len(texts), 2 * CHUNK))
    encode = backend.encode_batch_fast  # without offsets, as prepare calls it
    ids = [encoding.ids for batch in batches for encoding in encode(batch, add_special_tokens=False)]
    return sum(map(len, ids))


def settled(reward: RewardTokenizer, engine: str, groups: list[PreferenceGroup]) -> Encoder:
    """An encoder whose engine has had its first texts checked, and nothing more: gigatoken's caches are cold."""
    encoder = Encoder(reward, MAX_LENGTH, "truncate_right", engine_name=engine)
    encoder.encode(groups[: engines.SAMPLE // 2 + 1])
    assert encoder.engine.is_settled
    if encoder.engine.name != engine:
        raise SystemExit(f"{engine} did not take this tokenizer")
    return encoder


IN_FIRST_THREAD = ("xtuner", "bare, first thread")


def measure(run: Callable[[], int], in_first_thread: bool = False) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    if in_first_thread:
        tokens = run()
    else:
        with ThreadPoolExecutor(1) as pool:
            tokens = pool.submit(run).result()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "tokens": tokens}


def compare(reward: RewardTokenizer, groups: list[PreferenceGroup], alternations: int, with_gigatoken: bool) -> dict:
    """Medians over `alternations` rounds; each round runs every way once."""
    encoder = settled(reward, "transformers", groups)
    texts = [encoder.renderer.render(conversation) for group in groups for conversation in group.conversations]
    runs: dict[str, Callable[[], Callable[[], int]]] = {  # outer call: what is not timed
        "xtuner": lambda: lambda: xtuner_way(reward, groups),
        "bare": lambda: lambda: bare(reward, texts),
        "bare, first thread": lambda: lambda: bare(reward, texts),
        "transformers": lambda: lambda: our_way(encoder, groups),
        "transformers, num_proc 2": lambda: lambda: our_way(encoder, groups, 2),
    }
    if with_gigatoken:

        def gigatoken() -> Callable[[], int]:
            fresh = settled(reward, "gigatoken", groups)
            return lambda: our_way(fresh, groups)

        runs["gigatoken"] = gigatoken
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(alternations):
        for name, prepare in runs.items():
            seen[name].append(measure(prepare(), in_first_thread=name in IN_FIRST_THREAD))
    medians = {
        name: {unit: statistics.median(result[unit] for result in results) for unit in ("wall", "cpu")}
        for name, results in seen.items()
    }
    cpu = {name: result["cpu"] for name, result in medians.items()}
    ratios = {
        "over XTuner's way, transformers (cpu)": cpu["xtuner"] / cpu["transformers"],
        "of the bare tokenizer's time, transformers (cpu)": cpu["transformers"] / cpu["bare"],
        "in the first thread over one of its own, bare (cpu)": cpu["bare, first thread"] / cpu["bare"],
        "num_proc 2 over 1 (wall)": medians["transformers"]["wall"] / medians["transformers, num_proc 2"]["wall"],
        "num_proc 2 over 1 (cpu: what threads cost)": cpu["transformers, num_proc 2"] / cpu["transformers"],
    }
    if with_gigatoken:
        ratios["over XTuner's way, gigatoken (cpu)"] = cpu["xtuner"] / cpu["gigatoken"]
    tokens = seen["transformers"][0]["tokens"]
    return {"pairs": len(groups), "tokens": tokens, "seconds": medians, "ratios": ratios, "rounds": seen}


def shuffled(transcript: str, copy: int) -> str:
    """Copy 0 is the transcript itself. Equal turns are shuffled alike: a pair goes on sharing its prompt."""
    if copy == 0:
        return transcript
    parts = re.split(r"(\n\n(?:Human|Assistant):)", transcript)
    for place in range(2, len(parts), 2):
        first, *words = parts[place].split(" ")  # nothing, as a rule: a space follows the colon
        random.Random(f"{copy} {parts[place]}").shuffle(words)
        parts[place] = " ".join([first, *words])
    return "".join(parts)


def whole_command(data: Path, gguf: Path, copies: int, alternations: int) -> dict[str, Any]:
    """`rmcli prepare` from start to end, imports and audit included, with one thread and with two, by the clock.

    Each round's CPU seconds stand beside it: where they are well above those of other rounds the host was busy.

    The words of every turn of a further copy are shuffled: mere copies would be dropped as duplicates, and rows that
    differ in a word would all be near-duplicates, for the audit to compare with each other.
    """
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    cpu: dict[str, list[float]] = {"1": [], "2": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
            for copy, row in product(range(copies), read_rows(data)):
                shuffled_row = {side: shuffled(row[side], copy) for side in ("chosen", "rejected")}
                file.write(json.dumps(shuffled_row) + "\n")
        for _, num_proc in product(range(alternations), seconds):
            settings = (f"model.pretrained_model_name_or_path={gguf}", f"data.num_proc={num_proc}")
            command = [sys.executable, "-m", "rmcli", "prepare", "-q", str(folder / "rows.jsonl")]
            command += ["--map-fn", "hh_rlhf", "--overwrite", "-o", str(folder / "set")]
            started, used = time.perf_counter(), _cpu_of_children()
            subprocess.run([*command, *(part for one in settings for part in ("-s", one))], check=True)
            seconds[num_proc].append(time.perf_counter() - started)
            cpu[num_proc].append(_cpu_of_children() - used)
        rows = json.loads((folder / "set" / "manifest.json").read_text(encoding="utf-8"))["rows"]
    medians = {num_proc: statistics.median(values) for num_proc, values in seconds.items()}
    return {
        "rows": rows["in"],
        "kept": rows["kept"],
        "seconds": medians,
        "num_proc 2 over 1 (wall)": figures.ratio_of_medians_by_step(seconds["1"], seconds["2"]),
        "rounds": seconds,
        "rounds, cpu": cpu,
    }


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of encoding; see the head of this file.")
    parser.add_argument("data", type=Path, help="Anthropic/hh-rlhf rows as JSON lines")
    parser.add_argument("--llama3", type=Path, help="a folder with Llama-3's tokenizer")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's .gguf file")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=1, help="take the data so many times")
    parser.add_argument(
        "--whole", type=int, default=0, help="time the whole command, too, on so many copies of the data"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    rewards = {}
    if arguments.gguf:
        setting = f"model.pretrained_model_name_or_path={arguments.gguf}"
        rewards["smollm2"] = load_tokenizer(resolve("smollm2-135m", settings=[setting]).config.model)
    if arguments.llama3:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.llama3, trust_remote_code=False)
        rewards["llama3"] = resolve_reward_token(tokenizer, resolve("llama3-8b").config.model, LLAMA3_ROWS)
    if not rewards:
        parser.error("give --llama3, --gguf or both")
    if arguments.whole and not arguments.gguf:
        parser.error("--whole needs --gguf")
    groups = read_groups(arguments.data)
    versions = {
        name: engines.version(name) for name in ("transformers", "tokenizers", "gigatoken", "numpy", "jinja2")
    }
    report: dict[str, Any] = {
        **figures.heading("prepare.py"),
        "versions": {"python": platform.python_version(), **versions},
        "repeat": arguments.repeat,
        "alternations": arguments.alternations,
    }
    for name, reward in rewards.items():
        fit = encodable(reward, groups) * arguments.repeat
        report[name] = compare(reward, fit, arguments.alternations, with_gigatoken=name == "llama3")
    if arguments.whole:
        report["whole command"] = whole_command(
            arguments.data, arguments.gguf, arguments.whole, arguments.alternations
        )

    print(f"{report['machine']}\n{report['versions']}")
    for name in rewards:
        found = report[name]
        print(f"\n{name}: {found['pairs']:,} pairs, {found['tokens']:,.0f} tokens, {arguments.alternations} rounds")
        for way, seconds in found["seconds"].items():
            rate = found["pairs"] / seconds["cpu"]
            print(
                f"  {way:<28} cpu {seconds['cpu']:7.3f} s   wall {seconds['wall']:7.3f} s   {rate:9,.0f} pairs/cpu s"
            )
        for what, ratio in found["ratios"].items():
            print(f"  {ratio:6.2f}x {what}")
    if arguments.whole:
        whole = report["whole command"]
        ratio = whole["num_proc 2 over 1 (wall)"]
        print(f"\nwhole command, {whole['rows']:,} rows: {whole['seconds']} s, {ratio:.2f}x with two threads")
    figures.write(arguments.output, report)


if __name__ == "__main__":
    main()
