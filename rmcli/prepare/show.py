"""What a person sees: what is about to happen, pairs by token (--show), and the table of the splits."""

from typing import Any

from rmcli import output
from rmcli.prepare.job import Job
from rmcli.records import PAIR, TokenGroup
from rmcli.rows import sources
from rmcli.rows.accounting import equation
from rmcli.tokens import chat_templates
from rmcli.tokens.tokenizer import RewardTokenizer

SHOWN_TOKENS = 40  # of each end of a longer run


def say_start(job: Job, reward: RewardTokenizer) -> None:
    """What is about to happen, and what of it a user may not expect."""
    data = job.resolved.config.data
    if reward.grown_from is not None:
        output.warn(
            f"{reward.reward_token} is new: it takes id {reward.reward_token_id}, past the {reward.grown_from:,} "
            f"embedding rows: train grows them to {reward.num_embedding_rows:,}"
        )
    elif reward.added:
        output.warn(f"{reward.reward_token} is new: it takes the spare embedding row {reward.reward_token_id}")
    if reward.is_ordinary:
        output.warn(
            f"reward token {reward.reward_token!r} ({reward.reward_token_id}) is an ordinary word: rows whose text "
            "holds it are lost (reward_token_in_text), and training overwrites what the model knows of it"
        )
    what = "an ordinary word" if reward.is_ordinary else reward.mode
    output.say(
        f"map function {', '.join(job.map_fns)}, reward token {reward.reward_token} "
        f"({reward.reward_token_id}, {what})"
    )
    for section in [source.section for source in job.sources]:
        found = sources.found_files(section, data.split)
        if found is not None:
            found.say(section.path)
    if reward.tokens_without_row:
        ids = reward.tokens_without_row
        names = ", ".join(f"{reward.tokenizer.convert_ids_to_tokens(index)} ({index})" for index in ids[:3])
        output.warn(
            f"the tokenizer has {len(ids):,} id(s) past the {reward.num_embedding_rows:,} embedding rows: {names}"
            f"{', ...' if len(ids) > 3 else ''}: rows that hold one are rejected (token_without_row)"
        )
    for note in chat_templates.describe(reward.tokenizer).notes:
        output.say(f"chat template: {note}")


def show_tokens(title: str, group: TokenGroup, reward: RewardTokenizer) -> None:
    """One table: the shared prefix once, then each response; long runs are cut in the middle, and that is said."""
    names = (
        ["chosen", "rejected"]
        if group.comparisons == PAIR
        else [f"response {n}" for n in range(len(group.responses))]
    )
    parts = [("shared prefix", group.prefix), *zip(names, group.responses, strict=True)]
    lines: list[list[Any]] = []
    for name, ids in parts:
        start = 0 if name == "shared prefix" else len(group.prefix)
        for at, index in enumerate(ids.tolist()):
            if len(ids) > 2 * SHOWN_TOKENS and SHOWN_TOKENS <= at < len(ids) - SHOWN_TOKENS:
                if at == SHOWN_TOKENS:
                    lines.append([name, "...", "...", f"{len(ids) - 2 * SHOWN_TOKENS} more tokens"])
                continue
            last = at == len(ids) - 1 and name != "shared prefix"
            text = reward.tokenizer.decode([index])
            lines.append([name, str(start + at), str(index), repr(text) + (" <- scored here" if last else "")])
    output.table(["part", "position", "id", "token"], lines, to_answer=True, title=title)


def report_splits(manifest: dict[str, Any]) -> None:
    columns = ["split", "pairs", "packs", "tokens", "pack fill", "sharing ratio", "truncated"]
    capacity = manifest["config"]["data"]["max_packed_length"]
    lines = [
        [
            split,
            s["num_pairs"],
            s["num_rows"],
            s["num_tokens"],
            f"{s['num_tokens'] / max(s['num_rows'] * capacity, 1):.1%}",
            f"{s['num_unshared_tokens'] / max(s['num_tokens'], 1):.2f}",
            s["num_truncated"],
        ]
        for split, s in manifest["splits"].items()
    ]
    output.table(columns, lines, to_answer=False)


def report_account(manifest: dict[str, Any]) -> None:
    """What became of all rows: the last line, after whatever else is said of them."""
    output.say(equation(manifest["rows"]))
