r"""The schemas of known data sets, one function each: a row (or the rows of one prompt) to a PreferenceGroup.

Columns were taken from the data sets' cards and from the files at hand. A row that does not fit is left out by
Skip(reason); a missing column is a KeyError, which `apply` turns into `missing_column NAME`.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from rmcli.errors import Skip
from rmcli.records import Comparison, Conversation, Message, PreferenceGroup
from rmcli.rows.map_fns import comparisons
from rmcli.rows.map_fns.beside import BESIDE, template_arguments
from rmcli.rows.map_fns.fields import (
    Row,
    as_messages,
    assistant,
    choice,
    message,
    number,
    pair,
    text,
    user,
    with_prompt,
)
from rmcli.rows.map_fns.written_out import read_back

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
CANONICAL_NUMBERS = ("label", "margin", "weight")
CANONICAL_COLUMNS = (
    *(*PAIR_COLUMNS, *CANONICAL_NUMBERS, "responses", "ranks", "scores", "comparisons"),
    *BESIDE,
)


def canonical(row: Row) -> PreferenceGroup:
    """Our own schema: a pair (`prompt`, `chosen`, `rejected`), or K answers (`prompt`, `responses`, ranks).

    Each text is a message list, or a string (a user turn, an assistant reply). Without a prompt, or when they begin
    with it, answers are whole conversations. A pair may have `label` (probability that chosen is better, default 1)
    and `margin` (how much better, default 0). Of K answers one of `ranks` (1 the best), `scores` (the highest is the
    best, differences are margins) or `comparisons` ([first, second, label, margin], the last two optional) tells
    which is better. `weight` (default 1) is the group's in the loss. In all of these null stands for the default.
    """
    row = read_back(row)
    prompt = as_messages(row["prompt"], "user") if row.get("prompt") is not None else ()
    weight = 1.0 if row.get("weight") is None else row["weight"]
    if row.get("responses") is not None:
        if not isinstance(row["responses"], list | tuple):
            raise Skip("wrong_type")
        answers = tuple(with_prompt(prompt, response) for response in row["responses"])
        return PreferenceGroup(answers, weight, _known_of(row, len(answers)))
    conversations = (with_prompt(prompt, row["chosen"]), with_prompt(prompt, row["rejected"]))
    if row.get("label") is None and row.get("margin") is None:
        return PreferenceGroup(conversations, weight)
    label = 1.0 if row.get("label") is None else row["label"]
    margin = 0.0 if row.get("margin") is None else row["margin"]
    return PreferenceGroup(conversations, weight, (Comparison(0, 1, label, margin),))


def _known_of(row: Row, num_responses: int) -> tuple[Comparison, ...]:
    given = [name for name in ("ranks", "scores", "comparisons") if row.get(name) is not None]
    if len(given) != 1 or not isinstance(row[given[0]], list | tuple):
        raise Skip("bad_comparisons")
    values = row[given[0]]
    if given == ["comparisons"]:
        return comparisons.from_list(values)
    if len(values) != num_responses:
        raise Skip("bad_comparisons")
    return comparisons.from_ranks(values) if given == ["ranks"] else comparisons.from_scores(values)


def whole_conversations(row: Row) -> PreferenceGroup:
    """Message lists that include the prompt; a column `prompt` is not needed.

    mlabonne/orpo-dpo-mix-40k, argilla/ultrafeedback-binarized-preferences-cleaned, Skywork's preference sets.
    """
    return PreferenceGroup((as_messages(row["chosen"]), as_messages(row["rejected"])))


def one_conversation(row: Row) -> PreferenceGroup:
    """`messages`, a whole conversation that is only to be scored."""
    return PreferenceGroup((as_messages(row["messages"]),))


def ultrafeedback_binarized(row: Row) -> PreferenceGroup:
    """HuggingFaceH4/ and trl-lib/ultrafeedback_binarized: whole conversations with a score for each.

    The difference of the scores is the margin; equal scores, which are there, make a tie.
    """
    conversations = (as_messages(row["chosen"]), as_messages(row["rejected"]))
    difference = number(row["score_chosen"], "bad_margin") - number(row["score_rejected"], "bad_margin")
    tie = (Comparison(0, 1, comparisons.TIE),)
    return PreferenceGroup(
        conversations, comparisons=tie if difference == 0 else (Comparison(0, 1, 1.0, difference),)
    )


def intel_orca_dpo(row: Row) -> PreferenceGroup:
    """Intel/orca_dpo_pairs: strings `system`, `question`, `chosen`, `rejected`; an empty system is left out."""
    prompt = user(row["question"])
    if text(row["system"]).strip():
        prompt = (Message(role="system", content=row["system"]), *prompt)
    return pair(prompt, row["chosen"], row["rejected"])


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def hh_rlhf(row: Row) -> PreferenceGroup:
    r"""Anthropic/hh-rlhf: whole transcripts `\n\nHuman: ...\n\nAssistant: ...` in `chosen` and `rejected`.

    "Human:" without a blank line before it is text. The two may differ before the last turn.
    """
    return PreferenceGroup((_transcript(row["chosen"]), _transcript(row["rejected"])))


def _transcript(value: Any) -> Conversation:
    before, *turns = _HH_TURN.split(text(value))
    if before.strip():
        raise Skip("wrong_type")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return tuple(Message(role=roles[name], content=content.strip()) for name, content in pairs)


# Per cent of each attribute in the score of NVIDIA's Llama3-70B-SteerLM-RM (HelpSteer2, arXiv 2406.08673).
HELPSTEER2_PER_CENT = {"helpfulness": 65, "correctness": 80, "coherence": 45, "complexity": 55, "verbosity": -40}
_HELPSTEER2_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def helpsteer2(rows: Sequence[Row]) -> PreferenceGroup:
    """nvidia/HelpSteer2: one response per row, the rows of one prompt one after the other.

    A response's score is the sum of its five attributes (0 to 4) with NVIDIA's weights for its 70B model, 0.65, 0.8,
    0.45, 0.55 and -0.4; their difference is the margin, and a tie is left out. Several turns of a prompt are marked
    by `<extra_id_1>User` and `<extra_id_1>Assistant`. A prompt with one response only is left out.
    """
    if len(rows) < 2:
        raise Skip("single_response")
    # In whole per cent, so that equal scores are equal.
    per_cent = [
        sum(weight * choice(row[name], range(5)) for name, weight in HELPSTEER2_PER_CENT.items()) for row in rows
    ]
    if len(set(per_cent)) == 1:
        raise Skip("tie")
    prompt = _helpsteer2_prompt(row["prompt"] for row in rows)
    answers = tuple((*prompt, *assistant(row["response"])) for row in rows)
    known = comparisons.from_scores(per_cent)
    return PreferenceGroup(answers, comparisons=tuple(c._replace(margin=c.margin / 100) for c in known))


def _helpsteer2_prompt(prompts: Any) -> Conversation:
    first, *marked = _HELPSTEER2_TURN.split(text(next(iter(prompts))))
    roles = {"User": "user", "Assistant": "assistant"}
    turns = zip(marked[::2], marked[1::2], strict=True)
    return (*user(first), *(Message(role=roles[name], content=content) for name, content in turns))


def helpsteer3(row: Row) -> PreferenceGroup:
    """nvidia/HelpSteer3, preference: `overall_preference` from -3, response 1 is much better, to 3; 0 is left out.

    Its size is the margin. `context` is the messages so far.
    """
    strength = choice(row["overall_preference"], range(-3, 4))
    if strength == 0:
        raise Skip("tie")
    prompt = as_messages(row["context"], "user")
    answers = ((*prompt, *assistant(row["response1"])), (*prompt, *assistant(row["response2"])))
    better, worse = (0, 1) if strength < 0 else (1, 0)
    return PreferenceGroup(answers, comparisons=(Comparison(better, worse, 1.0, abs(strength)),))


def nectar(row: Row) -> PreferenceGroup:
    r"""berkeley-nest/Nectar: seven `answers` with `rank` (1 the best) to a transcript that ends in `\n\nAssistant: `.

    Ranks need not be 1 to 7; equal ones are ties.
    """
    prompt = _transcript(row["prompt"])
    if prompt and prompt[-1]["role"] == "assistant" and not prompt[-1]["content"]:
        prompt = prompt[:-1]
    answers = tuple((*prompt, *assistant(answer["answer"])) for answer in row["answers"])
    return PreferenceGroup(answers, comparisons=comparisons.from_ranks([answer["rank"] for answer in row["answers"]]))


def shp(row: Row) -> PreferenceGroup:
    """stanfordnlp/SHP: two replies to a post; `labels` 1 says that A is better, 0 that B is."""
    better, worse = ("A", "B") if choice(row["labels"], (0, 1)) == 1 else ("B", "A")
    return pair(user(row["history"]), row[f"human_ref_{better}"], row[f"human_ref_{worse}"])


def pku_saferlhf(row: Row) -> PreferenceGroup:
    """PKU-Alignment/PKU-SafeRLHF: the more helpful response, `better_response_id` (0 or 1), is chosen."""
    return _by_response_id(row, "better_response_id")


def pku_saferlhf_safer(row: Row) -> PreferenceGroup:
    """PKU-Alignment/PKU-SafeRLHF: the safer response, `safer_response_id` (0 or 1), is chosen."""
    return _by_response_id(row, "safer_response_id")


def _by_response_id(row: Row, column: str) -> PreferenceGroup:
    better = choice(row[column], (0, 1))
    return pair(user(row["prompt"]), row[f"response_{better}"], row[f"response_{1 - better}"])


def arena(row: Row) -> PreferenceGroup:
    """lmarena-ai/arena-human-preference-55k: a list of turns, as JSON text, for the user and each of two models.

    `winner_model_a`, `winner_model_b` and `winner_tie` are 0 or 1, one of them 1; a tie is kept as one.
    """
    turns = _json_texts(row["prompt"])
    answers = (_interleaved(turns, _json_texts(row[f"response_{side}"])) for side in "ab")
    a_won, b_won, tied = (choice(row[f"winner_{who}"], (0, 1)) for who in ("model_a", "model_b", "tie"))
    if a_won + b_won + tied != 1:
        raise Skip("bad_label")
    return PreferenceGroup(tuple(answers), comparisons=(Comparison(0, 1, a_won + tied * comparisons.TIE),))


def _json_texts(value: Any) -> list[str]:
    try:
        entries = json.loads(text(value))
    except (ValueError, RecursionError):
        raise Skip("bad_json") from None
    if not isinstance(entries, list):
        raise Skip("wrong_type")
    return [text(entry, f"entry {number} of a JSON list") for number, entry in enumerate(entries, 1)]


def _interleaved(questions: list[str], replies: list[str]) -> Conversation:
    if len(questions) != len(replies):
        raise Skip("wrong_type")
    both = zip(questions, replies, strict=True)
    return tuple(message for question, reply in both for message in (*user(question), *assistant(reply)))


_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}


def sharegpt_ranking(row: Row) -> PreferenceGroup:
    """LLaMA-Factory's ranking form: `conversations` of {from, value}, and the replies as such turns or as text.

    A text in `system` comes first. Turns of `function_call` are not built yet.
    """
    if not isinstance(row["conversations"], list | tuple):
        raise Skip("wrong_type")
    prompt = tuple(_sharegpt_turn(turn) for turn in row["conversations"])
    if row.get("system"):
        prompt = (Message(role="system", content=text(row["system"])), *prompt)
    sides = (
        assistant(row[side]) if isinstance(row[side], str) else (_sharegpt_turn(row[side]),)
        for side in ("chosen", "rejected")
    )
    return PreferenceGroup(tuple((*prompt, *side) for side in sides))


def _sharegpt_turn(turn: Row) -> Message:
    role = text(turn["from"], "from")
    if role == "function_call":
        raise Skip("unsupported_tool_call")
    return message(_SHAREGPT_ROLES.get(role, role), turn["value"], turn, ("from", "value"), "a turn")


def openai_dpo(row: Row) -> PreferenceGroup:
    """OpenAI's and Azure's form for preference tuning: `input.messages` and two lists of answering messages.

    `input.tools` go to the chat template.
    """
    prompt = as_messages(row["input"]["messages"])
    sides = (as_messages(row[side]) for side in ("preferred_output", "non_preferred_output"))
    arguments = template_arguments({"tools": row["input"].get("tools")})
    return PreferenceGroup(tuple((*prompt, *side) for side in sides), template_arguments=arguments)


def instruction(row: Row) -> PreferenceGroup:
    """Alpaca's form with two answers: `instruction`, `input` (may be empty or missing), `chosen`, `rejected`."""
    task, context = text(row["instruction"]), text(row.get("input") or "")
    return pair(user(f"{task}\n\n{context}" if context else task), row["chosen"], row["rejected"])


def reward_bench(row: Row) -> PreferenceGroup:
    """allenai/reward-bench: strings, one turn each."""
    return pair(user(row["prompt"]), row["chosen"], row["rejected"])


def reward_bench_2(row: Row) -> PreferenceGroup:
    """allenai/reward-bench-2: `chosen` and `rejected` are lists of answers, each chosen better than each rejected."""
    good, bad = ([assistant(answer) for answer in _as_list(row[side])] for side in ("chosen", "rejected"))
    prompt = user(row["prompt"])
    known = tuple(Comparison(i, len(good) + j) for i in range(len(good)) for j in range(len(bad)))
    return PreferenceGroup(tuple((*prompt, *answer) for answer in (*good, *bad)), comparisons=known)


def _as_list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise Skip("wrong_type")
    return value


def xtuner(row: Row) -> PreferenceGroup:
    """XTuner's form: message lists, the prompt in `prompt` and only the reply in `chosen` and `rejected`."""
    prompt = as_messages(row["prompt"])
    return PreferenceGroup(tuple((*prompt, *as_messages(row[side])) for side in ("chosen", "rejected")))


FINEGRAINED_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
FINEGRAINED_ANSWERS = tuple(f"prediction {number}" for number in (1, 2, 3, 4))


def finegrained_qa(row: Row) -> PreferenceGroup:
    """allenai/FineGrainedRLHF, qa_feedback: four answers and six verdicts: 0 equal, 1 the first, 2 the second.

    The pairs are 12, 13, 14, 23, 24, 34. The prompt is the passages, each under its title, then the question.
    Verdicts may fit no order; they are kept as they are.
    """
    passages = [f"{text(title)}\n{' '.join(map(text, sentences))}" for title, *sentences in _as_list(row["passages"])]
    prompt = user("\n\n".join([*passages, text(row["question"])]))
    verdicts = [choice(verdict, (0, 1, 2)) for verdict in _as_list(row["preference"])]
    label = {0: comparisons.TIE, 1: 1.0, 2: 0.0}
    known = (Comparison(*two, label[verdict]) for two, verdict in zip(FINEGRAINED_PAIRS, verdicts, strict=True))
    answers = tuple((*prompt, *assistant(row[column])) for column in FINEGRAINED_ANSWERS)
    return PreferenceGroup(answers, comparisons=tuple(known))
