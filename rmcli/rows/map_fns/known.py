"""The table of named map functions, and the recognition of a schema from a row."""

from collections.abc import Callable, Mapping
from typing import Any

from rmcli.errors import ConfigError
from rmcli.rows.map_fns import data_sets
from rmcli.rows.map_fns.beside import BESIDE
from rmcli.rows.map_fns.cells import typed
from rmcli.rows.map_fns.fields import MapFunction, Row

AUTO = "auto"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def _is_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("[")


def _is_texts(value: Any) -> bool:
    return _is_list(value) and bool(value) and all(map(_is_text, value))


def _is_reply(value: Any) -> bool:
    return _is_text(value) or (_is_object(value) and "from" in value)


def _is_objects(value: Any) -> bool:
    return _is_list(value) and bool(value) and all(map(_is_object, value))


def _is_whole(value: Any) -> bool:
    """A message list that begins with the prompt, not with the reply."""
    return _is_objects(value) and value[0].get("role") in ("system", "user")


def _columns(kind: Callable[[Any], bool], *names: str) -> dict[str, Callable[[Any], bool]]:
    return dict.fromkeys(names, kind)


_WHOLE = _columns(_is_whole, "chosen", "rejected")
_RATINGS = tuple(data_sets.HELPSTEER2_PER_CENT)
_SAFERLHF = ("prompt", "response_0", "response_1")
_RATED_SIDES = tuple(f"{side}-{what}" for side in ("chosen", "rejected") for what in ("rating", "model"))
_OF_SAFERLHF = (
    *("prompt_source", "better_response_id", "safer_response_id"),
    *(
        f"response_{number}_{what}"
        for number in "01"
        for what in ("source", "harm_category", "severity_level", "sha256")
    ),
    *(f"is_response_{number}_safe" for number in "01"),
)
_OF_POSTS = (
    *("post_id", "domain", "upvote_ratio", "seconds_difference", "score_ratio"),
    *(f"{what}_{side}" for what in ("c_root_id", "created_at_utc", "score") for side in "AB"),
)
_OF_BENCH_2 = (
    *("id", "num_correct", "num_incorrect", "total_completions", "models", "subset"),
    "additional_metadata",
)
_WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")

NAMED: dict[str, MapFunction] = {
    "canonical": MapFunction(
        data_sets.canonical,
        ("prompt", "chosen", "rejected"),
        None,
        description="pairs as text or messages, with label, margin, weight; or K responses with ranks, scores or "
        "comparisons",
        reads=data_sets.CANONICAL_COLUMNS,
        numbers=data_sets.CANONICAL_NUMBERS,
    ),
    "orpo_dpo_mix_40k": MapFunction(
        data_sets.whole_conversations,
        ("chosen", "rejected"),
        "mlabonne/orpo-dpo-mix-40k",
        description="whole conversations; also argilla/ultrafeedback-binarized-preferences-cleaned",
        schema=_columns(_is_text, "prompt") | _WHOLE,
        reads=BESIDE,
        passes_over=("source", "prompt", "question", *_RATED_SIDES),
    ),
    "intel_orca_dpo": MapFunction(
        data_sets.intel_orca_dpo,
        ("system", "question", "chosen", "rejected"),
        "Intel/orca_dpo_pairs",
        description="strings, one turn after a system message",
        schema=_columns(_is_text, "system", "question", "chosen", "rejected"),
    ),
    "hh_rlhf": MapFunction(
        data_sets.hh_rlhf,
        ("chosen", "rejected"),
        "Anthropic/hh-rlhf",
        description="transcripts of Human: and Assistant:",
        schema=_columns(_is_transcript, "chosen", "rejected"),
    ),
    "ultrafeedback_binarized": MapFunction(
        data_sets.ultrafeedback_binarized,
        ("chosen", "rejected", "score_chosen", "score_rejected"),
        "HuggingFaceH4/ultrafeedback_binarized",
        description="whole conversations, margin from the scores, equal scores a tie; also trl-lib's",
        default_split="train_prefs",
        schema=_WHOLE | _columns(_is_number, "score_chosen", "score_rejected"),
        reads=BESIDE,
        passes_over=("prompt", "prompt_id", "messages"),
        numbers=("score_chosen", "score_rejected"),
    ),
    "skywork": MapFunction(
        data_sets.whole_conversations,
        ("chosen", "rejected"),
        "Skywork/Skywork-Reward-Preference-80K-v0.2",
        description="whole conversations, no prompt column",
        schema=_WHOLE,
        reads=BESIDE,
        passes_over=("source",),
    ),
    "helpsteer2": MapFunction(
        data_sets.helpsteer2,
        ("prompt", "response", *_RATINGS),
        "nvidia/HelpSteer2",
        rows_key=lambda row: row["prompt"],
        description="one response per row, rows of one prompt together; margin from NVIDIA's weights, ties left out",
        schema=_columns(_is_text, "prompt", "response") | _columns(_is_number, *_RATINGS),
        numbers=_RATINGS,
    ),
    "helpsteer3": MapFunction(
        data_sets.helpsteer3,
        ("context", "response1", "response2", "overall_preference"),
        "nvidia/HelpSteer3",
        description="signed preference, its size the margin, ties left out",
        schema=_columns(_is_text, "response1", "response2") | _columns(_is_number, "overall_preference"),
        passes_over=("domain", "language", "individual_preference"),
        numbers=("overall_preference",),
    ),
    "nectar": MapFunction(
        data_sets.nectar,
        ("prompt", "answers"),
        "berkeley-nest/Nectar",
        description="seven ranked answers, equal ranks ties",
        schema=_columns(_is_transcript, "prompt") | _columns(_is_objects, "answers"),
        passes_over=("turns", "num_responses", "source", "good_natured"),
    ),
    "shp": MapFunction(
        data_sets.shp,
        ("history", "human_ref_A", "human_ref_B", "labels"),
        "stanfordnlp/SHP",
        description="two replies to a post, labels 1 for A",
        schema=_columns(_is_text, "history", "human_ref_A", "human_ref_B") | _columns(_is_number, "labels"),
        passes_over=_OF_POSTS,
        numbers=("labels",),
    ),
    "pku_saferlhf": MapFunction(
        data_sets.pku_saferlhf,
        (*_SAFERLHF, "better_response_id"),
        "PKU-Alignment/PKU-SafeRLHF",
        description="the more helpful of two responses",
        schema=_columns(_is_text, *_SAFERLHF) | _columns(_is_number, "better_response_id"),
        passes_over=_OF_SAFERLHF,
        numbers=("better_response_id",),
    ),
    "pku_saferlhf_safer": MapFunction(
        data_sets.pku_saferlhf_safer,
        (*_SAFERLHF, "safer_response_id"),
        "PKU-Alignment/PKU-SafeRLHF",
        description="the safer of two responses; never chosen by auto",
        passes_over=_OF_SAFERLHF,
        numbers=("safer_response_id",),
    ),
    "arena": MapFunction(
        data_sets.arena,
        ("prompt", "response_a", "response_b", *_WINNERS),
        "lmarena-ai/arena-human-preference-55k",
        description="turns as JSON lists, ties kept as ties",
        schema=_columns(_is_json_list, "prompt", "response_a", "response_b") | _columns(_is_number, *_WINNERS),
        passes_over=("id", "model_a", "model_b"),
        numbers=_WINNERS,
    ),
    "sharegpt_ranking": MapFunction(
        data_sets.sharegpt_ranking,
        ("system", "conversations", "chosen", "rejected"),
        None,
        description="LLaMA-Factory's: turns of {from, value}; replies as turns or text",
        schema=_columns(_is_objects, "conversations") | _columns(_is_reply, "chosen", "rejected"),
        reads=BESIDE,
    ),
    "openai_dpo": MapFunction(
        data_sets.openai_dpo,
        ("input", "preferred_output", "non_preferred_output"),
        None,
        description="OpenAI's and Azure's: input.messages and two outputs",
        schema=_columns(_is_object, "input") | _columns(_is_list, "preferred_output", "non_preferred_output"),
    ),
    "instruction": MapFunction(
        data_sets.instruction,
        ("instruction", "input", "chosen", "rejected"),
        None,
        description="Alpaca's: strings, the input may be empty",
        schema=_columns(_is_text, "instruction", "chosen", "rejected"),
        reads=BESIDE,
        passes_over=("output",),
    ),
    "reward_bench": MapFunction(
        data_sets.reward_bench,
        ("prompt", "chosen", "rejected"),
        "allenai/reward-bench",
        description="strings, one turn",
        default_split="filtered",
        schema=_columns(_is_text, "prompt", "chosen", "rejected", "chosen_model", "rejected_model", "subset"),
        passes_over=("id", "chosen_model", "rejected_model", "subset"),
    ),
    "reward_bench_2": MapFunction(
        data_sets.reward_bench_2,
        ("prompt", "chosen", "rejected"),
        "allenai/reward-bench-2",
        description="lists of answers, each chosen better than each rejected",
        default_split="test",
        schema=_columns(_is_text, "prompt") | _columns(_is_texts, "chosen", "rejected"),
        passes_over=_OF_BENCH_2,
    ),
    "xtuner": MapFunction(
        data_sets.xtuner,
        ("prompt", "chosen", "rejected"),
        None,
        description="message lists, chosen and rejected only the reply; auto says canonical, which reads it too",
        reads=BESIDE,
    ),
    "finegrained_qa": MapFunction(
        data_sets.finegrained_qa,
        ("question", "passages", *data_sets.FINEGRAINED_ANSWERS, "preference"),
        None,
        description="four answers from passages with six verdicts, ties and cycles kept",
        schema=_columns(_is_text, "question", *data_sets.FINEGRAINED_ANSWERS)
        | _columns(_is_list, "passages", "preference"),
    ),
    "checkable_tasks": MapFunction(
        data_sets.canonical,
        ("prompt", "chosen", "rejected"),
        "tasks:24000",
        description="generated, see tasks:N",
        reads=data_sets.CANONICAL_COLUMNS,
        passes_over=("task",),
        numbers=data_sets.CANONICAL_NUMBERS,
    ),
}


# What `rmcli score` reads beside canonical.
ONE_CONVERSATION = MapFunction(data_sets.one_conversation, ("messages",), None, reads=BESIDE)

NUMBERS = frozenset(name for known in NAMED.values() for name in known.numbers)


def recognise(row: Row, text_cells: bool = False) -> str:
    """The name of the map function whose schema the row has; the one that asks for most columns wins.

    Canonical is taken when no other fits. `text_cells`: the row is of a CSV, where numbers are spelt out. Raises
    ConfigError when none does, or two ask for equally many.
    """
    if text_cells:
        row = typed(row, NUMBERS, row)
    seen = ", ".join(row) or "none"
    fitting = {name: len(known.schema) for name, known in NAMED.items() if known.schema and _fits(known.schema, row)}
    if not fitting and _is_canonical(row):
        return "canonical"
    best = [name for name, count in fitting.items() if count == max(fitting.values())]
    if not best:
        nearest = _nearest(row) or "rmcli map-fns lists what each one reads"
        raise ConfigError(
            f"no map function fits the columns {seen}",
            f"name one with --map-fn, or write file.py:function; {nearest}",
        )
    if len(best) > 1:
        raise ConfigError(
            f"several map functions fit the columns {seen}: {', '.join(best)}", "name one with --map-fn"
        )
    return best[0]


def _fits(schema: Mapping[str, Callable[[Any], bool]], row: Row) -> bool:
    return all(column in row and is_kind(row[column]) for column, is_kind in schema.items())


def _is_canonical(row: Row) -> bool:
    """Text needs a prompt; message lists may be whole conversations. A question in another column would be lost."""
    if row.get("responses") is not None:
        return any(row.get(name) is not None for name in ("ranks", "scores", "comparisons"))
    sides = [row.get("chosen"), row.get("rejected")]
    if row.get("prompt") is not None:
        return all(_is_text(side) or _is_objects(side) for side in sides)
    return all(map(_is_whole, sides))


def _nearest(row: Row) -> str:
    """The three that share most columns with the row, with what they read."""
    shared = {name: sum(column in row for column in known.columns) for name, known in NAMED.items()}
    nearest = sorted(filter(shared.get, shared), key=lambda name: (-shared[name], len(NAMED[name].columns)))
    return "; ".join(f"{name} reads {', '.join(NAMED[name].columns)}" for name in nearest[:3])
