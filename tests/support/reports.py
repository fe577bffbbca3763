"""Figures as an evaluation and a training write them, for pages: literal, with texts that would break a page."""

import json
from pathlib import Path
from typing import Any

from rmcli.metrics.figures import figures
from rmcli.metrics.judged import Judged
from rmcli.records import Comparison, TokenGroup

HOSTILE = '<script>alert(1)</script> & "q" $x$ \x00\x1b[31m \u202eright to left \ud800 </div><svg onload=alert(2)>'
LONG = "A long line that has no end. " * 60 + "x" * 600


def judged(pairs: int = 60, shift: float = 0.0) -> Judged:
    """Pairs whose margins run evenly from below 0 to above it, and whose lengths differ by turns."""

    def group(number: int) -> TokenGroup:
        longer, shorter = [5] * (10 + number % 7), [5] * 6
        responses = (longer, shorter) if number % 3 else (shorter, longer)
        return TokenGroup([1, 2], responses, row_id=number, comparisons=(Comparison(0, 1),))

    scored = [(group(number), (number / pairs * 4 - 1 + shift, 0.1 * (number % 5))) for number in range(pairs)]
    return Judged.of(scored)


def one_set(name: str = "hh_rlhf_harmless", shift: float = 0.0) -> dict[str, Any]:
    """A set of an evaluation with every section filled."""
    by_length = [
        {"value": value, "pairs": 20, "accuracy": share, "interval": [share - 0.1, share + 0.05], "mean_margin": 0.4}
        for value, share in (("-50 or less", 0.61), ("-49 to 0", 0.72), ("1 or more", 0.93))
    ]
    source = {"value": "x.jsonl", "pairs": 60, "accuracy": 0.75, "interval": [0.63, 0.84], "mean_margin": None}
    worst = {"margin": -3.14159, "chosen_score": -1.0, "rejected_score": 2.14159, "where": "x.jsonl:12"}
    return {
        "name": name,
        "input": "x.jsonl.gz",
        "map_fn": "hh_rlhf",
        "lines": 62,
        "errors": {"overlong": 2},
        "truncated": 3,
        "noted": {"control_tokens": 1},
        "figures": figures(judged(shift=shift)),
        "by": {"source": [source], "length_difference": by_length, HOSTILE: [source | {"value": HOSTILE}]},
        "against": {
            "not_compared": 2,
            "pairs": 60,
            "accuracy": 0.7,
            "interval": [0.58, 0.8],
            "difference": {
                "difference": 0.05,
                "interval": [0.01, 0.09],
                "favours_ours": 0.99,
                "rounds": 2000,
                "seed": 0,
            },
        },
        "format_bias": [
            {
                "edit": "bold",
                "answers": 100,
                "mean_change": 0.12,
                "interval": [0.1, 0.14],
                "rises": 0.71,
                "unchanged": 3,
                "cut_or_unscored": 2,
            }
        ],
        "worst": [
            worst | {"prompt": "Which is right?", "chosen": HOSTILE, "rejected": LONG},
            worst | {"prompt": LONG, "chosen": "שלום עולם, a mixed line", "rejected": "日本語のとても長い文章" * 40},
        ],
    }


def evaluation(**values: Any) -> dict[str, Any]:
    """A whole metrics.json."""
    suite = {
        "suite": "reward-bench",
        "headline": 0.7125,
        "figures": {
            "sections": {"Chat": 0.9, "Chat Hard": 0.525},
            "pairs": 2985,
            "not_official": "12 rows are missing",
        },
        "table": {
            "columns": ["section", "accuracy", "pairs"],
            "rows": [["Chat", 0.9, 358], ["Chat Hard", 0.525, 456]],
        },
    }
    return {
        "kind": "rmcli evaluation",
        "model": "runs/first/model",
        "model_sha256": "ab" * 32,
        "against": "runs/other/model",
        "against_sha256": "cd" * 32,
        "versions": {"rmcli": "0.1.0", "torch": "2.13.0"},
        "machine": {"device": "cpu", "threads": 2},
        "config": {"model": {"dtype": "float32"}, "data": {"sources": []}},
        "seconds": 12.345,
        "conversations": 400,
        "conversations_per_second": 32.4,
        "run": None,
        "sets": [one_set(), one_set("gsm8k_solution_pairs", 0.5)],
        "suites": [suite],
        **values,
    }


def write_run(
    folder: Path,
    *,
    steps: int = 8,
    shift: float = 0.0,
    manifest: str = "12" * 32,
    lr: float = 1e-3,
    data: Path | None = None,
) -> Path:
    """A run folder with what a page reads of it; of no `steps` only what a run has before its first one."""
    folder.mkdir(parents=True)
    told = {
        "command": f"rmcli train -s train.lr={lr}",
        "preset": "tiny",
        "base": {"name": "nano"},
        "data": {"folder": str(data or "no-data"), "manifest_sha256": manifest},
        "device": "cpu",
        "processes": 1,
        "started": "2026-11-26T11:18:21+00:00",
        "ended": "2026-11-26T11:19:21+00:00",
        "versions": {"rmcli": "0.1.0", "torch": "2.13.0"},
        "eval_sets": {"gsm8k": {"path": "data/gsm8k", "set": "eval of 56"}},
        "process": {"id": 1, "host": "another"},
        "result": {"status": "finished", "step": steps},
    }
    (folder / "run.json").write_text(json.dumps(told))
    (folder / "resolved.toml").write_text(f'[model]\ndtype = "float32"\n[train]\nlr = {lr}\n# {"<script>"}\n')
    if not steps:
        return folder
    lines = []
    for step in range(1, steps + 1):
        share = step / steps
        lines.append(
            {
                **{"step": step, "epoch": 0, "lr": lr * (1 - share), "loss": 0.63 - 0.4 * share + shift},
                **{"accuracy": 0.5 + 0.4 * share, "margin": 3 * share, "grad_norm": 0.1 + share},
                **{"score_mean": 0.1, "score_min": -2 * share, "score_max": 2 * share},
                **{
                    "pairs": 16,
                    "tokens": 500,
                    "tokens_per_s": 900.0 + step,
                    "pairs_per_s": 30.5,
                    "flops_per_s": 1e12,
                },
            }
        )
        if step % 4 == 0:
            shares = {"eval_accuracy": 0.6 + 0.3 * share, "eval_longer_accuracy": 0.9, "eval_log_loss": 0.5}
            shares |= {"eval_gsm8k_accuracy": 0.5, "eval_gsm8k_margin": 0.1, "eval_gsm8k_log_loss": 0.7}
            lines.append(
                {"step": step, "eval_loss": 0.5 - share / 4, "eval_margin": share, "eval_pairs": 60, **shares}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = evaluation(run={"path": str(folder), "step": steps}, sets=[one_set("held-out", shift)], suites=[])
    (folder / "metrics.json").write_text(json.dumps(told))
    margins = [
        {"set": "held-out", "row_id": row, "first": 0, "second": 1, "margin": row / 60 * 4 - 1 + shift}
        for row in range(60)
    ]
    (folder / "eval_margins.jsonl").write_text("".join(json.dumps(one) + "\n" for one in margins))
    return folder
