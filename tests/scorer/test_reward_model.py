"""`RewardModel`: the scores of `rmcli score` and of plain transformers, and an error in the place of a bad item."""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmcli import RewardModel, Score
from support.foreign import TALKS, make_foreign, own_scores
from support.places import REPOSITORY

FOLDER = REPOSITORY / "tests" / "written_before" / "model"
PROMPT = "Sort: 3 1 2 0"
ANSWERS = ["0 1 2 3", "3 2 1 0", "no", "0 " * 40, "0 1 2 3"]
LONG = "Sort: " + "0 1 2 3 " * 40  # is cut
REWARD_TOKEN = 4


def talk(prompt: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]


CONVERSATIONS = [talk(PROMPT, answer) for answer in ANSWERS] + [talk(f"Copy: {n} 1", f"{n}") for n in range(8)]


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return RewardModel.load(FOLDER)


def values(scores: list[Score]) -> list[float]:
    assert all(score.error is None and isinstance(score.value, float) for score in scores)
    return [score.value for score in scores if score.value is not None]


def errors(scores: list[Score]) -> list[str | None]:
    assert all((score.value is None) == (score.error is not None) for score in scores)
    return [score.error for score in scores]


def ids_of(conversation: list[dict[str, str]]) -> list[int]:
    """As any other program has them."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def seven_digits(scores: list[float]) -> list[float]:
    """As score writes them: those of float32."""
    return [float(f"{score:.7g}") for score in scores]


# --- the same numbers ---


def test_scores_are_those_of_the_command_bit_by_bit(cli, model):
    rows = [{"messages": conversation} for conversation in [*CONVERSATIONS, talk(LONG, "0 1")]]
    result = cli("score", FOLDER, "-q", stdin="".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    scores = model.score(row["messages"] for row in rows)
    assert seven_digits(values(scores)) == [line["score"] for line in lines]
    assert [score.truncated for score in scores] == [line.get("truncated", False) for line in lines]
    assert scores[-1].truncated
    assert not any(score.truncated for score in scores[:-1])
    assert model.score(rows) == scores  # rows as they stand in a file
    together = cli("score", FOLDER, "-q", stdin=json.dumps({"prompt": PROMPT, "responses": ANSWERS}))
    assert seven_digits(values(model.score_responses(PROMPT, ANSWERS))) == json.loads(together.stdout)["scores"]


def test_scores_are_those_of_plain_transformers_on_each_conversation(model):
    network = AutoModelForSequenceClassification.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [network(torch.tensor([ids_of(one)])).logits.item() for one in CONVERSATIONS]
    assert values(model.score(CONVERSATIONS)) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.1


def test_ids_that_are_complete_have_the_score_of_their_conversation(model):
    ids = [ids_of(conversation) for conversation in CONVERSATIONS]
    scores = model.score(CONVERSATIONS)
    assert model.score_ids(ids) == scores
    assert model.score_ids(np.array(one, np.int16) for one in ids) == scores
    assert model.score_ids([torch.tensor(one) for one in ids]) == scores


def test_truths_and_the_reward_token_alone_are_no_ids_of_a_conversation(model):
    (good,) = [ids_of(one) for one in CONVERSATIONS[:1]]
    wrong = [[True, *good[1:]], [np.True_, *good[1:]], np.array([True, False]), [good[-1]]]
    assert [one.error for one in model.score_ids(wrong)] == [*["wrong_type"] * 3, "empty_conversation"]


def test_answers_to_one_prompt_have_the_scores_of_whole_conversations_and_the_prompt_runs_once(model):
    alone = values(model.score(CONVERSATIONS[: len(ANSWERS)]))
    with counted_tokens(model) as rows:
        together = values(model.score_responses(PROMPT, ANSWERS))
    assert together == pytest.approx(alone, abs=1e-6)
    different = [ids_of(conversation) for conversation in CONVERSATIONS[: len(ANSWERS) - 1]]  # the last is the first
    prefix = min(next(n for n, (a, b) in enumerate(zip(*two, strict=False)) if a != b) for two in pairwise(different))
    assert prefix > 10
    assert rows == [prefix + sum(len(ids) - prefix for ids in different)]
    messages = [{"role": "user", "content": PROMPT}]
    as_messages = model.score_responses(messages, [[{"role": "assistant", "content": one}] for one in ANSWERS])
    assert values(as_messages) == together
    assert values(model.score_responses({"messages": messages}, ANSWERS)) == together
    system = {"messages": messages, "system": "Be brief."}
    whole = [{"role": "system", "content": "Be brief."}, *CONVERSATIONS[0]]
    assert values(model.score_responses(system, ANSWERS[:1])) == values(model.score([whole]))
    assert values(model.score([whole])) != alone[:1]


def test_a_score_depends_on_no_neighbour_and_is_the_same_each_time(model):
    many = [*CONVERSATIONS, talk(LONG, "0 1"), [], talk("Say", "x")]
    scores = model.score(many)
    assert model.score(many) == scores
    for one, score in zip(many, scores, strict=True):
        (alone,) = model.score([one])
        assert (alone.truncated, alone.error) == (score.truncated, score.error)
        assert alone.value == (None if score.value is None else pytest.approx(score.value, abs=1e-6))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.score, [many] * 8)) == [scores] * 8


@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad]
)
def test_modes_that_the_program_around_it_has_set_change_nothing(model, around):
    expected = model.score(CONVERSATIONS)
    with around():
        assert model.score(CONVERSATIONS) == expected
        assert model.score_ids(map(ids_of, CONVERSATIONS)) == expected
        again = RewardModel.load(FOLDER)
    assert again.score(CONVERSATIONS) == expected


def test_no_gradients_are_kept_and_the_network_is_not_training(model):
    network = model._scorer.runner.network
    model.score(CONVERSATIONS[:1])
    assert not network.training
    assert all(weight.grad is None for weight in network.parameters())


@contextmanager
def counted_tokens(model: RewardModel) -> Iterator[list[int]]:
    """The tokens of each forward inside."""
    rows: list[int] = []
    embedding = model._scorer.runner.network.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].numel()))
    try:
        yield rows
    finally:
        handle.remove()


def test_no_forward_is_larger_than_the_configured_row(tmp_path, model):
    shutil.copytree(FOLDER, tmp_path / "model")
    toml = tmp_path / "model" / "rmcli.toml"
    toml.write_text(toml.read_text().replace("max_packed_length = 2048", "max_packed_length = 256"))
    small = RewardModel.load(tmp_path / "model")
    answers = [f"{n} " * 30 for n in range(20)]
    for bounded, limit in ((small, 256), (model, 2048)):
        with counted_tokens(bounded) as rows:
            together = bounded.score_responses(PROMPT, answers)
            apart = bounded.score([talk(PROMPT, answer) for answer in answers])
        assert max(rows) <= limit
        assert values(together) == pytest.approx(values(apart), abs=1e-6)
    with counted_tokens(small) as rows:
        small.score_responses(PROMPT, answers)
    assert len(rows) > 3


# --- bad items ---

GOOD = CONVERSATIONS[0]
BAD = {
    "empty": ([], "empty_conversation"),
    "null": (None, "wrong_type"),
    "a number": (5, "wrong_type"),
    "a text": ("Sort: 2 1", "wrong_type"),
    "messages that are none": ([None, 3], "wrong_type"),
    "unknown role": ([{"role": "robot", "content": "x"}, GOOD[1]], "unknown_role"),
    "content that is no text": ([GOOD[0], {"role": "assistant", "content": 3}], "wrong_type"),
    "a lone surrogate": (talk(PROMPT, "\ud800"), "bad_json"),
    "an image": ([GOOD[0], {"role": "assistant", "content": [{"type": "image"}]}], "unsupported_content"),
    "no reply": (GOOD[:1], "no_assistant_reply"),
    "empty reply": (talk(PROMPT, "  "), "empty_reply"),
    "no prompt": (GOOD[1:], "no_prompt"),
    "too long": (talk(PROMPT, "9 " * 900), "overlong"),
    "reward token": (talk(PROMPT, "<|reserved_special_token_0|>"), "reward_token_in_text"),
    "tools the template does not write": ({"messages": GOOD, "tools": [{"name": "f"}]}, "unread_column tools"),
    "no messages": ({"text": "x"}, "missing_column messages"),
    "names that are no text": ([{1: 2, **GOOD[0]}, GOOD[1]], "wrong_type"),
    "neither": ({3: GOOD}, "wrong_type"),
}


def test_a_bad_item_is_an_error_in_its_place(model):
    mixed = [GOOD, *(given for given, _ in BAD.values()), CONVERSATIONS[1]]
    scores = model.score(mixed)
    assert errors(scores) == [None, *(reason for _, reason in BAD.values()), None]
    assert [scores[0], scores[-1]] == model.score([GOOD, CONVERSATIONS[1]])
    answers = [ANSWERS[0], None, 3, "", "9 " * 900, [], ANSWERS[1], "\ud800"]
    scores = model.score_responses(PROMPT, answers)
    assert errors(scores) == [
        *(None, "wrong_type", "wrong_type", "empty_reply"),
        *("overlong", "no_assistant_reply", None, "bad_json"),
    ]
    assert [scores[0], scores[6]] == model.score_responses(PROMPT, ANSWERS[:2])
    assert errors(model.score_responses(5, ANSWERS[:2])) == ["wrong_type"] * 2
    assert model.score([]) == model.score_ids([]) == model.score_responses(PROMPT, []) == []


def test_ids_that_cannot_be_scored_are_errors_in_their_place(model):
    whole = ids_of(GOOD)
    bad = {
        "token_without_row": [[384, REWARD_TOKEN], [-1, REWARD_TOKEN], [10**12, REWARD_TOKEN]],
        "no_reward_token": [whole[:-1], [5]],
        "reward_token_in_text": [[REWARD_TOKEN, *whole]],
        "overlong": [[9] * 256 + [REWARD_TOKEN]],
        "empty_conversation": [[], np.zeros(0)],
        "wrong_type": ["12", None, [1.0, 4.0], [True], [[1], [4]], [1, "4"], [10**40, 4], 4, {4}, [[1], [1, 4]]],
    }
    given = [one for some in bad.values() for one in some]
    scores = model.score_ids([whole, *given, whole])
    assert errors(scores) == [None, *(reason for reason, some in bad.items() for _ in some), None]
    assert [scores[0], scores[-1]] == model.score([GOOD, GOOD])


def test_a_score_that_is_not_finite_is_an_error_of_its_own_conversation_alone(model):
    expected = model.score(CONVERSATIONS[:3])

    def poison(_module, _inputs, output):
        output[output.argmax()] = math.nan
        return output

    handle = model._scorer.runner.network.score.register_forward_hook(poison)
    try:
        for scores in (model.score(CONVERSATIONS[:3]), model.score_responses(PROMPT, ANSWERS[:3])):
            found = errors(scores)
            assert sorted(found, key=str) == [None, None, "score_not_finite"]
            best = found.index("score_not_finite")
            assert best == max(range(3), key=lambda index: values(expected)[index])
            others = [index for index in range(3) if index != best]
            assert [scores[n].value for n in others] == pytest.approx([expected[n].value for n in others], abs=1e-6)
    finally:
        handle.remove()


@pytest.mark.parametrize("given", ["Sort", b"Sort", {"messages": GOOD}, 3, None])
def test_one_item_in_place_of_a_list_is_refused(model, given):
    for call in (model.score, model.score_ids, lambda one: model.score_responses(PROMPT, one)):
        with pytest.raises(TypeError, match="not a list: score"):
            call(given)


# --- what it says ---


def test_it_says_nothing_on_streams_and_what_is_odd_in_the_log(capfd, caplog):
    with caplog.at_level(logging.DEBUG, logger="rmcli"):
        model = RewardModel.load(FOLDER)
        model.score([[GOOD[0], {**GOOD[1], "mood": "good"}], {"messages": GOOD, "id": 7}, talk(PROMPT, "<|im_end|>")])
    assert capfd.readouterr() == ("", "")
    said = {record.getMessage(): record.levelname for record in caplog.records if record.name == "rmcli"}
    levels = {
        "has no rmcli.sha256": "INFO",
        "self-test: packed + shared": "INFO",
        "not read: id (columns of what is scored)": "WARNING",
        "not read: mood": "WARNING",
        "1 of 3 conversations: text holds control tokens": "WARNING",
    }
    for text, level in levels.items():
        assert [value for key, value in said.items() if text in key] == [level], (text, said)
    assert repr(model) == f"RewardModel({str(FOLDER)!r}, device='cpu', max_length=256)"


# --- other models ---


def test_a_model_without_a_reward_token_gives_its_own_scores(tmp_path):
    model = RewardModel.load(make_foreign(tmp_path / "foreign"))
    expected = own_scores(tmp_path / "foreign")
    assert values(model.score(TALKS)) == pytest.approx(expected, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "foreign")
    ids = [tokenizer.apply_chat_template(one)["input_ids"] for one in TALKS]
    assert values(model.score_ids(ids)) == pytest.approx(expected, abs=1e-5)
    assert errors(model.score_ids([ids[0][:-1]])) == [None]  # whatever stands last is read


def test_in_natural_mode_ids_end_at_the_end_of_a_turn(tmp_path):
    folder = make_foreign(tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reward_mode": "natural", "reward_token_id": 3}))
    model = RewardModel.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.apply_chat_template(one)["input_ids"] for one in TALKS]
    assert all(one.count(3) > 1 for one in ids)  # one for each turn
    assert model.score_ids(ids) == model.score(TALKS)
    assert errors(model.score_ids([ids[0][:-1], ids[0]])) == ["no_reward_token", None]


def test_different_conversations_that_a_template_writes_alike_have_one_score_and_that_is_said(tmp_path, caplog):
    template = (
        "{% for m in messages %}{{ m.role }}:{{ 'x' if 'Sort' in messages[0].content else m.content }}{% endfor %}"
    )
    model = RewardModel.load(make_foreign(tmp_path / "foreign", template))
    first, second = values(model.score(CONVERSATIONS[:2]))
    (alone,) = values(model.score(CONVERSATIONS[:1]))
    assert (first, second) == pytest.approx((alone, alone), abs=1e-6)
    assert "writes 2 different conversations as the same" in caplog.text
