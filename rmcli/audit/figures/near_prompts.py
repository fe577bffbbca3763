"""Eval prompts that a training prompt nearly repeats."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np

from rmcli import threads
from rmcli.audit.figures import near_duplicates
from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.split import Split
from rmcli.audit.figures.text import Text
from rmcli.audit.figures.values import EXCERPT_TOKENS, MAX_LISTED, Figures

MAX_EVAL_PROMPTS = 50_000  # eval prompts that are compared with the training prompts
MAX_COMPARISONS = 20_000_000  # of two prompts: where thousands differ in a word or two, not all are looked at
TEMPLATE_SAMPLE = 2_000  # prompts from which the template's own shingles are learned


def near_duplicate_prompts(train: Split, held_out: Split, text: Text, num_threads: int) -> Figures:
    """Eval prompts that a training prompt nearly repeats. Each is listed with its most similar training row."""
    rows: list[int] = []
    ends: list[np.ndarray] = []
    parts: list[near_duplicates.Shingles] = []
    for packs in held_out.packs():
        parts.append(_shingles(packs))
        rows += packs.row_ids.tolist()
        ends += [packs.prompt(group)[-EXCERPT_TOKENS:].copy() for group in range(len(packs.starts))]
        if len(rows) >= MAX_EVAL_PROMPTS:
            break
    best: dict[int, tuple[float, int, np.ndarray]] = {}
    num_found = 0
    compared = train_compared = 0
    if parts:
        eval_prompts = near_duplicates.concatenate(parts)
        sample = near_duplicates.concatenate([eval_prompts, *_some_shingles(train)])
        index = near_duplicates.PromptIndex(eval_prompts, near_duplicates.template_shingles(sample))
        compared = int((index.sizes >= near_duplicates.MIN_SHINGLES).sum())
        comparisons = 0

        find = lambda packs: index.find(_shingles(packs))  # noqa: E731
        with closing(threads.in_order(find, train.packs(), num_threads)) as looked_at:
            for packs, alike in looked_at:
                comparisons += alike.comparisons
                train_compared += len(packs.starts)
                num_found += len(alike.mine)
                for mine, theirs, similarity in alike.best(packs.row_ids):
                    row_id = int(packs.row_ids[mine])
                    if theirs not in best or (similarity, -row_id) > (best[theirs][0], -best[theirs][1]):
                        best[theirs] = (similarity, row_id, packs.prompt(mine)[-EXCERPT_TOKENS:].copy())
                if comparisons >= MAX_COMPARISONS:
                    break
    listed = sorted(best.items(), key=lambda item: (-item[1][0], rows[item[0]]))
    return {
        "threshold": near_duplicates.THRESHOLD,
        "eval_prompts": sum(held_out.packed.groups_per_pack),
        "eval_prompts_compared": compared,
        "eval_prompts_found": len(best),
        "train_prompts": sum(train.packed.groups_per_pack),
        "train_prompts_compared": train_compared,
        "pairs": num_found,
        "listed": [
            {
                "similarity": similarity,
                "eval_row_id": rows[theirs],
                "train_row_id": row_id,
                "eval_prompt_end": text.excerpt(ends[theirs]),
                "train_prompt_end": text.excerpt(prompt),
            }
            for theirs, (similarity, row_id, prompt) in listed[:MAX_LISTED]
        ],
    }


def _shingles(packs: FlatPacks) -> near_duplicates.Shingles:
    return near_duplicates.shingles_of(packs.ids, packs.starts, packs.prompt_lengths)


def _some_shingles(train: Split) -> Iterator[near_duplicates.Shingles]:
    """Of the first training packs: their groups are shuffled, so these are as good as any."""
    taken = 0
    for packs in train.packs():
        yield _shingles(packs)
        taken += len(packs.starts)
        if taken >= TEMPLATE_SAMPLE:
            return
