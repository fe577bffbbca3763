"""The figures as tables on the screen."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmcli import output
from rmcli.report.data import LENGTH_COLUMNS, SPLIT_COLUMNS, length_rows, split_rows
from rmcli.rows.accounting import equation

EXCERPT_CHARACTERS = 60
SOURCES_IN_BRIEF = 5


def show(figures: Mapping[str, Any], *, brief: bool) -> None:
    """As the answer of `rmcli audit`, or in brief as talk at the end of `rmcli prepare`, after its account."""
    if brief:
        _show_brief(figures)
        return
    _show_lengths(figures, list(figures["splits"]), to_answer=True)
    output.table(SPLIT_COLUMNS, split_rows(figures), to_answer=True, title="splits")
    output.table(
        ["source", "groups", "longer wins", "longer", "shorter", "same length", "ties"],
        [[as_typed(name), *values] for name, *values in source_rows(figures)],
        to_answer=True,
        title="does the longer answer win?",
    )
    for line in summary_lines(figures):
        output.answer(line)
    _show_endings(figures)
    _show_rows(figures)
    _show_findings(figures, output.answer)
    if figures["rows"]:
        output.answer(equation(figures["rows"]))


def _show_brief(figures: Mapping[str, Any]) -> None:
    """A screen at most: the training split's lengths, a line for every other figure."""
    filled = [name for name, one in figures["splits"].items() if one["groups"]]
    _show_lengths(figures, filled[:1], to_answer=False)
    shares = (f"{name} {figures['splits'][name]['prompt_share']:.1%}" for name in filled)
    output.say(f"prompt share of all tokens, unshared: {', '.join(shares)}")
    sources = source_rows(figures)
    for name, groups, share, *_ in sources[:SOURCES_IN_BRIEF]:
        found = "no two of different lengths" if share == "-" else f"in {share} of the decided comparisons"
        output.say(f"does the longer answer win? {found} ({as_typed(name)}, {groups:,} groups)")
    if len(sources) > SOURCES_IN_BRIEF:
        output.say(f"... and {len(sources) - SOURCES_IN_BRIEF} more sources")
    for line in (*summary_lines(figures), *extreme_lines(figures)):
        output.say(line)
    output.say(f"their texts, and how conversations end: rmcli audit {figures['folder']}")
    _show_findings(figures, output.say)


def _show_lengths(figures: Mapping[str, Any], splits: Sequence[str], *, to_answer: bool) -> None:
    output.table(
        LENGTH_COLUMNS,
        [row for row in length_rows(figures) if row[1] in splits],
        to_answer=to_answer,
        title="lengths: so many per cent are at most as long",
    )


def _show_findings(figures: Mapping[str, Any], write: Callable[[str], None]) -> None:
    if not figures["findings"]:
        write("nothing in these figures calls for a look")
        return
    write("look at:")
    for finding in figures["findings"]:
        write(f"  - {finding}")


def as_typed(source: str) -> str:
    """A path below the current folder as it is typed there: manifests hold absolute ones."""
    here = Path.cwd()
    path = Path(source)
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else source


def cut_end(text: str, width: int) -> str:
    """The beginning, at most `width` characters, to the end of a word."""
    if len(text) <= width:
        return text
    whole = text[: width + 1].rpartition(" ")[0]
    return whole if len(whole) > width // 3 else text[:width]


def cut_start(text: str, width: int) -> str:
    """The end, at most `width` characters, from the beginning of a word."""
    if len(text) <= width:
        return text
    whole = text[-width - 1 :].partition(" ")[2]
    return whole if len(whole) > width // 3 else text[-width:]


def source_rows(figures: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [
            one["source"],
            one["groups"],
            "-" if one["longer_wins_share"] is None else f"{one['longer_wins_share']:.1%}",
            one["longer_wins"],
            one["shorter_wins"],
            one["same_length"],
            one["ties"],
        ]
        for one in figures["sources"]
    ]


def summary_lines(figures: Mapping[str, Any]) -> list[str]:
    """One line per figure that is a count."""
    near, both, repeated = (figures[key] for key in ("near_duplicate_prompts", "contradictions", "duplicates"))
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in figures["rows_left_out"].items())
    return [
        f"rows left out: {reasons or 'none'}",
        f"duplicates by token ids: {repeated['groups']:,} groups, {repeated['in_both_splits']:,} in both splits",
        f"contradictions: {both['pairs_of_conversations']:,} pairs of answers preferred both ways "
        f"({both['comparisons']:,} comparisons)",
        f"eval prompts nearly in train: {near['eval_prompts_found']:,} of {near['eval_prompts_compared']:,} compared "
        f"({near['eval_prompts']:,} in eval; similarity {near['threshold']} or more"
        + (
            f"; with the first {near['train_prompts_compared']:,} of {near['train_prompts']:,} training prompts)"
            if near["train_prompts_compared"] < near["train_prompts"] and near["eval_prompts_compared"]
            else ")"
        ),
    ]


def ending_rows(figures: Mapping[str, Any]) -> list[list[Any]]:
    shares = ("share", "share_of_better", "share_of_worse")
    return [
        [name, one["tokens"], *(_per_cent(one[key]) for key in shares), one["text"]]
        for name, split in figures["splits"].items()
        for one in split["endings"]
    ]


EXTREME_TITLES = {
    "longest": "the longest conversations",
    "longest_ratio": "answers to one prompt that differ most in length (the shortest is shown)",
    "shortest_reply": "the shortest replies",
}


def extreme_rows(entries: list[dict[str, Any]], width: int) -> list[list[Any]]:
    return [
        [
            one["row_id"],
            one["split"],
            one["tokens"],
            one["reply_tokens"],
            f"{one['longest_reply']:,}/{one['shortest_reply']:,}",
            cut_start(one["before_reply"], width),
            cut_end(one["reply"], width),
        ]
        for one in entries
    ]


def extreme_lines(figures: Mapping[str, Any]) -> list[str]:
    """The same rows by number and length alone: a line for each kind."""
    shown = {
        "longest": lambda one: f"{one['tokens']:,}",
        "longest_ratio": lambda one: f"{one['longest_reply']:,}/{one['shortest_reply']:,}",
        "shortest_reply": lambda one: f"{one['reply_tokens']:,}",
    }
    return [
        f"{EXTREME_TITLES[name].partition(' (')[0]}, row (tokens): "
        + ", ".join(f"{one['row_id']} ({length(one)})" for one in figures["extremes"][name])
        for name, length in shown.items()
        if figures["extremes"][name]
    ]


EXTREME_COLUMNS = ["row", "split", "tokens", "reply", "longest/shortest", "... prompt", "reply ..."]
ENDING_COLUMNS = ["split", "last tokens", "commonest", "of better", "of worse", "text"]
NEAR_COLUMNS = ["eval row", "train row", "similarity", "... eval prompt", "... train prompt"]


def near_rows(figures: Mapping[str, Any], width: int) -> list[list[Any]]:
    return [
        [
            one["eval_row_id"],
            one["train_row_id"],
            f"{one['similarity']:.2f}",
            cut_start(one["eval_prompt_end"], width),
            cut_start(one["train_prompt_end"], width),
        ]
        for one in figures["near_duplicate_prompts"]["listed"]
    ]


def _show_endings(figures: Mapping[str, Any]) -> None:
    title = "how conversations end: the share with the commonest last tokens"
    output.table(ENDING_COLUMNS, ending_rows(figures), to_answer=True, title=title)


def _show_rows(figures: Mapping[str, Any]) -> None:
    listed = near_rows(figures, EXCERPT_CHARACTERS)
    if listed:
        output.table(NEAR_COLUMNS, listed[:10], to_answer=True, title="eval prompts nearly in train")
    output.answer(f"a reply counts {figures['reply']}; row is the input row, counted from 0 over all sources")
    for name, title in EXTREME_TITLES.items():
        rows = extreme_rows(figures["extremes"][name], EXCERPT_CHARACTERS)
        output.table(EXTREME_COLUMNS, rows, to_answer=True, title=title)


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
