"""Map functions, templates, prefixes, length policies and the reasons a row is left out."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from rmcli.config.resolve import resolve
from rmcli.config.sections import ModelSection
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.records import Comparison, PreferenceGroup, TokenGroup
from rmcli.rows.map_fns.apply import apply, find_map_function
from rmcli.rows.map_fns.data_sets import canonical
from rmcli.rows.map_fns.known import NAMED
from rmcli.tokens.encode import Encoder, common_prefix_length, is_held_out, prompt_of
from rmcli.tokens.tokenizer import (
    load_bare_tokenizer,
    load_model_config,
    load_tokenizer,
    resolve_reward_token,
)

REWARD_ID = 4


@pytest.fixture(scope="module")
def reward():
    return load_tokenizer(resolve("tiny").config.model)


def turns(*contents: str) -> tuple:
    return tuple(
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    )


def pair(prompt: str, chosen: str, rejected: str) -> PreferenceGroup:
    return PreferenceGroup((turns(prompt, chosen), turns(prompt, rejected)))


def test_conversations_are_the_rendered_template_and_the_reward_token(reward):
    (group,) = Encoder(reward, 256, "drop").encode([pair("What is 1 + 2?", "3", "4")])
    tokenizer = reward.tokenizer
    for response, reply in zip(group.responses, "34", strict=True):
        ids = [*group.prefix, *response]
        assert ids[-1] == REWARD_ID
        assert tokenizer.decode(ids[:-1]) == (
            f"<|im_start|>user\nWhat is 1 + 2?<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n"
        )
    assert [len(response) for response in group.responses] == [4, 4]  # the digit, <|im_end|>, newline, reward token


def test_the_prefix_is_the_longest_common_one_and_leaves_each_its_last_token():
    def length(*rows):
        return common_prefix_length([np.array(row) for row in rows])

    assert length([1, 2, 3, 9], [1, 2, 4, 9]) == 2
    assert length([1, 2, 9], [1, 2, 9, 9]) == 2
    assert length([1], [1, 2]) == 0
    assert length([5, 2], [1, 2]) == 0
    assert length([1, 2, 3], [1, 2, 3]) == 2
    assert length([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 7, 5]) == 2


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (PreferenceGroup(((), ())), "empty_conversation"),
        (PreferenceGroup((turns("a", "b"), ({"role": "bot", "content": "c"},))), "unknown_role"),
        (PreferenceGroup((turns("a", "b"), turns("a", "b", "c"))), "no_assistant_reply"),
        (pair("a", "b", " \n"), "empty_reply"),
        (pair("a", "b", "b"), "chosen_equals_rejected"),
        (pair("a <|reserved_special_token_0|>", "b", "c"), "reward_token_in_text"),
        (pair("a", "b <|reserved_special_token_0|>", "c"), "reward_token_in_text"),
        (pair("a", "b" * 300, "c"), "overlong"),
    ],
)
def test_reasons(reward, group, reason):
    good = pair("a", "b", "c")
    first, second, third = Encoder(reward, 64, "truncate_left").encode([good, group, good])
    assert second == reason
    assert isinstance(first, TokenGroup)
    assert np.array_equal(first.responses[0], third.responses[0])


def test_a_template_that_refuses_a_row_rejects_that_row(reward, monkeypatch):
    template = "{% if messages[0]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}" + str(
        reward.tokenizer.chat_template
    )
    monkeypatch.setattr(reward.tokenizer, "chat_template", template)
    results = Encoder(reward, 64, "drop").encode([pair("bad", "b", "c"), pair("good", "b", "c")])
    assert results[0] == "template_error"
    assert isinstance(results[1], TokenGroup)


def test_truncate_right_ends_with_the_reward_token_and_finds_what_became_identical(reward):
    encoder = Encoder(reward, 30, "truncate_right")
    differs_early, differs_late = pair("q", "a" + "x" * 80, "b" + "x" * 80), pair("q", "x" * 80 + "a", "x" * 80 + "b")
    kept, lost = encoder.encode([differs_early, differs_late])
    assert [len(kept.prefix) + len(response) for response in kept.responses] == [30, 30]
    assert [int(response[-1]) for response in kept.responses] == [REWARD_ID, REWARD_ID]
    assert lost == "identical_after_truncation"


def test_max_length_counts_the_reward_token(reward):
    group = pair("q", "a", "b")
    (whole,) = Encoder(reward, 256, "drop").encode([group])
    exact = len(whole.prefix) + len(whole.responses[0])
    assert isinstance(Encoder(reward, exact, "drop").encode([group])[0], TokenGroup)
    assert Encoder(reward, exact - 1, "drop").encode([group]) == ["overlong"]


def test_prompts_decide_the_split_and_about_the_asked_share_is_held_out():
    prompts = [turns(f"question {number}") for number in range(4000)]
    held = [prompt for prompt in prompts if is_held_out(prompt, 0.2)]
    assert 0.17 < len(held) / len(prompts) < 0.23
    assert all(is_held_out(prompt, 0.4) for prompt in held)
    others = [prompt for prompt in prompts if is_held_out(prompt, 0.2, eval_seed=1)]
    both = [prompt for prompt in held if prompt in others]
    assert 0.1 < len(both) / len(held) < 0.3  # another fifth, chosen independently
    assert prompt_of(pair("a", "b", "c")) == turns("a")
    assert prompt_of(PreferenceGroup((turns("a", "b", "c", "d"), turns("a", "b", "x", "d")))) == turns("a", "b")


def test_a_tokenizer_without_a_template_is_refused(reward, monkeypatch):
    monkeypatch.setattr(reward.tokenizer, "chat_template", None)
    with pytest.raises(ConfigError, match="no chat template"):
        Encoder(reward, 64, "drop")


# --- the reward token ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_token": None, "reward_token_id": None}, "reward_token is not set"),
        ({"reward_token": "<|nope|>", "reward_token_id": None}, "'<|nope|>' is not in the tokenizer"),
        ({"reward_token": "<|nope|>", "reward_token_id": 5}, "'<|nope|>' is not in the tokenizer"),
        ({"reward_token_id": 5}, "reward_token_id = 5 is '!' in the tokenizer"),
        ({"reward_token_id": 384}, "reward_token_id = 384 is out of range"),
        ({"reward_token": "<|im_end|>", "reward_token_id": 3}, "is the eos token"),
        ({"reward_token": "<pad>", "reward_token_id": 1}, "is the pad token"),
        (
            {"reward_token": "natural"},
            "reward_token_id = 4, but the end-of-turn token of {presets}/tiny is '<|im_end|>' (3)",
        ),
    ],
)
def test_wrong_reward_tokens(settings, message):
    model = resolve("tiny").config.model.model_copy(update=settings)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(model)
    assert message in error.value.message
    assert error.value.hint


def test_a_new_token_takes_the_first_spare_row():
    model = resolve("tiny").config.model
    tokenizer = load_tokenizer(model).tokenizer
    first_spare = len(tokenizer)
    wanted = model.model_copy(update={"reward_token": "<|reward|>", "reward_token_id": first_spare})
    found = resolve_reward_token(tokenizer, wanted, first_spare + 8)
    assert (found.reward_token_id, found.added) == (first_spare, True)
    assert tokenizer("<|reward|>", add_special_tokens=False)["input_ids"] == [first_spare]


def test_one_of_name_and_id_is_enough():
    model = resolve("tiny").config.model
    by_name = load_tokenizer(model.model_copy(update={"reward_token_id": None}))
    by_id = load_tokenizer(model.model_copy(update={"reward_token": None}))
    assert by_name.reward_token_id == REWARD_ID
    assert by_id.reward_token == "<|reserved_special_token_0|>"


def test_an_ordinary_word_is_no_reward_token_unless_the_user_insists():
    word = resolve("tiny").config.model.model_copy(update={"reward_token": None, "reward_token_id": 300})
    with pytest.raises(ConfigError) as error:
        load_tokenizer(word)
    assert "model.reward_token_id = 300 ('cu', the text 'cu') is an ordinary word" in error.value.message
    assert error.value.hint.startswith("candidates: <|reserved_special_token_0|> (4), ")
    insisted = load_tokenizer(word.model_copy(update={"allow_ordinary_reward_token": True}))
    assert (insisted.reward_token_id, insisted.is_ordinary) == (300, True)
    assert not load_tokenizer(resolve("tiny").config.model).is_ordinary


@pytest.mark.parametrize("settings", [{"reward_token": "cat"}, {"reward_token_id": 92527}])
def test_another_models_reward_token_is_refused_with_candidates(tokenizer_folder, settings):
    """92527 is [UNUSED_TOKEN_130] of InternLM2 and a word of Llama-3."""
    name = str(tokenizer_folder("llama3"))
    model = ModelSection(pretrained_model_name_or_path=name, **settings)
    with pytest.raises(ConfigError, match="is an ordinary word") as error:
        resolve_reward_token(load_bare_tokenizer(model), model, 128256)
    assert "<|reserved_special_token_0|> (128002)" in error.value.hint


def test_a_model_that_was_trained_with_an_ordinary_word_keeps_it():
    word = resolve("tiny").config.model.model_copy(update={"reward_token": None, "reward_token_id": 300})
    config = load_model_config(word)
    config.reward_token_id = 300
    assert resolve_reward_token(load_bare_tokenizer(word), word, 384, config).is_ordinary
    config.reward_token_id = 301
    with pytest.raises(ConfigError, match="ordinary word"):
        resolve_reward_token(load_bare_tokenizer(word), word, 384, config)


# --- map functions on the rows they are for ---


def first_row(path, number: int = 0) -> dict:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return json.loads(next(line for index, line in enumerate(lines) if index == number))


def test_canonical_takes_lists_strings_and_whole_conversations():
    as_lists = {"prompt": [*turns("q")], "chosen": [*turns("q", "a")[1:]], "rejected": [*turns("q", "b")[1:]]}
    as_text = {"prompt": "q", "chosen": "a", "rejected": "b"}
    whole = {"chosen": [*turns("q", "a")], "rejected": [*turns("q", "b")]}
    assert canonical(as_lists) == canonical(as_text) == canonical(whole) == pair("q", "a", "b")
    assert canonical({**whole, "prompt": [*turns("q")]}) == pair("q", "a", "b")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "missing_column rejected"),
        ({"prompt": "q", "chosen": True, "rejected": "b"}, "wrong_type"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": -1}, "bad_weight"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": float("nan")}, "bad_weight"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": "2"}, "bad_weight"),
    ],
)
def test_rows_that_do_not_fit(row, reason):
    with pytest.raises(Skip) as skip:
        apply(NAMED["canonical"], row, "here")
    assert skip.value.reason == reason


def test_a_rows_weight_is_the_pairs():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 3}
    assert apply(NAMED["canonical"], row, "here").weight == 3.0
    assert apply(NAMED["canonical"], {**row, "weight": 0.5}, "here").weight == 0.5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return PreferenceGroup((a,))", "gave 1 conversations for rows.jsonl:7"),
        ("return missing_name", "failed on rows.jsonl:7: NameError: name 'missing_name' is not defined"),
        ("return 1 / 0", "failed on rows.jsonl:7: ZeroDivisionError"),
    ],
)
def test_a_broken_map_function_stops_with_its_place(tmp_path, body, message):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rmcli.records import Comparison, PreferenceGroup\n"
        "a = ({'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'})\n"
        f"def f(row):\n    {body}\n"
    )
    with pytest.raises(RmcliError) as error:
        apply(find_map_function(f"{file}:f"), {}, "rows.jsonl:7")
    assert message in error.value.message


def test_map_functions_are_found_by_name_file_and_module(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def swap(row):\n    return {**row, 'chosen': row['rejected'], 'rejected': row['chosen']}\n")
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert apply(find_map_function(f"{file}:swap"), row, "here") == pair("q", "b", "a")
    assert apply(find_map_function("rmcli.rows.map_fns.data_sets:canonical"), row, "here") == pair("q", "a", "b")
    assert find_map_function("orpo_dpo_mix_40k").default_source == "mlabonne/orpo-dpo-mix-40k"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hh_rlfh", "unknown map function 'hh_rlfh'"),
        ("nowhere.py:f", "no such file"),
        ("no_such_module:f", "cannot import no_such_module"),
        (".:dict", "cannot import ."),
        ("rmcli.rows.map_fns.data_sets:canonicl", "has no function 'canonicl'"),
        (None, "no map function"),
    ],
)
def test_map_functions_that_are_not_there(spec, message):
    with pytest.raises(ConfigError) as error:
        find_map_function(spec)
    assert message in error.value.message
    assert error.value.hint


# --- K-way groups ---

ORDER = tuple(Comparison(first, second) for first in range(4) for second in range(first + 1, 4))


def k_way_tokens(reward, comparisons, pairs="all"):
    group = PreferenceGroup(tuple(turns("q", answer) for answer in "abcd"), comparisons=comparisons)
    (tokens,) = Encoder(reward, 256, "drop", pairs).encode([group])
    return tokens


@pytest.mark.parametrize(
    ("pairs", "kept"),
    [("all", ORDER), ("best_worst", (Comparison(0, 3),)), ("adjacent", (ORDER[0], ORDER[3], ORDER[5]))],
)
def test_pairs_of_a_group_in_strict_order_are_chosen(reward, pairs, kept):
    tokens = k_way_tokens(reward, ORDER, pairs)
    assert tokens.comparisons == kept
    assert tokens.ordered  # Plackett-Luce still takes the whole list
    assert len(tokens.responses) == 4


def test_groups_without_a_strict_order_keep_all_comparisons(reward):
    tied = (*ORDER[:5], Comparison(2, 3, 0.5))
    assert k_way_tokens(reward, tied, "best_worst").comparisons == tied
    for comparisons in (tied, (Comparison(1, 0),), ORDER[:3], (*ORDER, Comparison(3, 0))):
        assert not k_way_tokens(reward, comparisons).ordered


def test_a_text_with_an_id_past_the_embedding_is_left_out(reward):
    """As with Gemma-3's image token in a text model."""
    past = load_tokenizer(resolve("tiny").config.model)
    assert past.tokens_without_row == ()
    past.tokenizer.add_tokens(["<image>"], special_tokens=True)
    past = replace(past, num_embedding_rows=len(past.tokenizer) - 1)
    assert past.tokens_without_row == (past.num_embedding_rows,)
    texts = [pair("ab", "c", "d"), pair("ab <image>", "c", "d"), pair("ab", "c", "<image>")]
    first, *others = Encoder(past, 256, "drop").encode(texts)
    assert isinstance(first, TokenGroup)
    assert others == ["token_without_row"] * 2
    assert isinstance(Encoder(reward, 256, "drop").encode(texts)[2], TokenGroup)
