"""The figures in words: what to look at before training, worst first. Limits are stated in docs/audit.md."""

from collections.abc import Iterator, Mapping
from typing import Any

from rmcli.tokens.encode import NOTED

LENGTH_DECIDES = 0.70  # share of comparisons won by the longer answer, or by the shorter one
MIN_COMPARISONS = 30  # fewer say nothing about a share
ENDING_GAP = 0.20  # between the shares of better and of worse answers with one ending
LOW_FILL = 0.90
MIN_PACKS = 8  # the last pack of few is not full, which is nobody's fault
MANY_TRUNCATED = 0.05
MANY_LEFT_OUT = 0.10
FEW_EVAL = 100
WITHOUT_PROMPT = 0.05
WRITTEN_OUT = {"transcript": "a transcript (Human: ... Assistant: ...)", "message_list": "a message list written out"}


def findings(figures: Mapping[str, Any]) -> list[str]:
    """One sentence for each figure that calls for a look; none when all is well."""
    return [*_labels(figures), *_leaks(figures), *_shortcuts(figures), *_losses(figures)]


def _labels(figures: Mapping[str, Any]) -> Iterator[str]:
    both = figures["contradictions"]
    if both["comparisons"]:
        yield (
            f"{both['pairs_of_conversations']:,} pairs of answers are preferred both ways "
            f"({both['comparisons']:,} comparisons): they pull against each other; "
            f"rows {_rows(both['rows'])}"
        )
    repeated = figures["duplicates"]
    if repeated["groups"]:
        yield (
            f"{repeated['groups']:,} groups repeat another one token for token: each counts as often as it occurs; "
            f"rows {_rows(repeated['rows'])}"
        )
    for name, split in figures["splits"].items():
        if split["groups_without_prompt"] > WITHOUT_PROMPT * split["groups"]:
            yield (
                f"{name}: {split['groups_without_prompt']:,} of {split['groups']:,} groups have answers that share "
                "no prompt: check the map function"
            )
        for kind, words in WRITTEN_OUT.items():
            found = split["written_out"][kind]
            if found["groups"]:
                rows = ", ".join(map(str, found["rows"][:3])) + (", ..." if found["groups"] > 3 else "")
                looked_at = split["written_out"]["groups_looked_at"]
                yield (
                    f"{name}: in {found['groups']:,} of the first {looked_at:,} groups text within a turn looks like "
                    f"{words}: did the map function take a whole talk for one turn? rows {rows}"
                )


def _leaks(figures: Mapping[str, Any]) -> Iterator[str]:
    if figures["duplicates"]["in_both_splits"]:
        yield (
            f"{figures['duplicates']['in_both_splits']:,} groups are in train and in eval: held-out accuracy will be "
            "too high"
        )
    near = figures["near_duplicate_prompts"]
    if near["eval_prompts_found"]:
        rows = [[entry["eval_row_id"], entry["train_row_id"]] for entry in near["listed"]]
        yield (
            f"{near['eval_prompts_found']:,} of {near['eval_prompts']:,} eval prompts are nearly a training prompt "
            f"(similarity {near['threshold']} or more): held-out accuracy is flattered by them; rows {_rows(rows)}"
        )
    num_eval = figures["splits"]["eval"]["groups"]
    if 0 < num_eval < FEW_EVAL:
        yield (
            f"eval has {num_eval} groups: the standard error of an accuracy on them is up to "
            f"{0.5 / num_eval**0.5:.2f}; raise data.eval_fraction"
        )


def _shortcuts(figures: Mapping[str, Any]) -> Iterator[str]:
    for source in figures["sources"]:
        decided = source["longer_wins"] + source["shorter_wins"]
        if decided < MIN_COMPARISONS:
            continue
        for kind, share in (("longer", source["longer_wins_share"]), ("shorter", 1 - source["longer_wins_share"])):
            if share > LENGTH_DECIDES:
                yield (
                    f"the {kind} answer wins {share:.0%} of the comparisons of {source['source']}: "
                    "the reward model may learn length"
                )
    for name, split in figures["splits"].items():
        for ending in split["endings"]:
            better, worse = ending["share_of_better"], ending["share_of_worse"]
            if better is None or worse is None or split["groups"] < MIN_COMPARISONS:
                continue
            if abs(better - worse) > ENDING_GAP:
                yield (
                    f"{name}: {better:.0%} of the better and {worse:.0%} of the worse answers end in "
                    f"{ending['text']}: the reward model may learn the ending"
                )
                break  # longer endings of the same answers say it again


def _losses(figures: Mapping[str, Any]) -> Iterator[str]:
    for name, count in figures["rows_noted"].items():
        yield f"{count:,} rows: {NOTED[name]}"
    kept = sum(split["groups"] for split in figures["splits"].values())
    left_out = sum(figures["rows_left_out"].values())
    if left_out > MANY_LEFT_OUT * (kept + left_out):
        reason, count = max(figures["rows_left_out"].items(), key=lambda item: item[1])
        yield f"{left_out:,} of {kept + left_out:,} rows are left out, {count:,} as {reason}: see rejects.jsonl"
    for name, split in figures["splits"].items():
        if split["truncated"] > MANY_TRUNCATED * split["groups"]:
            yield (
                f"{name}: {split['truncated']:,} of {split['groups']:,} groups are cut to data.max_length: raise it, "
                "or the model judges prompts it does not see whole"
            )
        if split["packs"] >= MIN_PACKS and split["pack_fill"] < LOW_FILL:
            yield (
                f"{name}: packs are {split['pack_fill']:.0%} full: more forwards than needed; raise "
                "data.max_packed_length"
            )


def _rows(rows: list[list[int]]) -> str:
    """The first few sets of rows: `3 and 17, 4 and 9, ...`."""
    shown = ", ".join(" and ".join(map(str, members[:3])) for members in rows[:3])
    return shown + (", ..." if len(rows) > 3 else "")
