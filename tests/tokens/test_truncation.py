"""truncate_left: what an overlong conversation loses and what it never does, proven by decoding."""

import importlib.util
from functools import cache

import pytest

from rmcli.config.resolve import resolve
from rmcli.config.sections import ModelSection
from rmcli.records import Comparison, PreferenceGroup, TokenGroup
from rmcli.tokens.chat_templates import BUILT_IN
from rmcli.tokens.encode import Encoder
from rmcli.tokens.engines import TokenEngine
from rmcli.tokens.tokenizer import RewardTokenizer, load_bare_tokenizer, load_tokenizer
from support.places import find_tokenizer

USER, ASSISTANT = "<|im_start|>user\n", "<|im_start|>assistant\n"
END = "<|im_end|>\n"


@pytest.fixture
def reward():
    return load_tokenizer(resolve("tiny").config.model)


def turns(*contents: str, system: str | None = None) -> tuple:
    told = tuple(
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    )
    return told if system is None else ({"role": "system", "content": system}, *told)


def group_of(*prompt: str, replies: tuple[str, ...], system: str | None = None) -> PreferenceGroup:
    order = tuple(Comparison(first, second) for second in range(len(replies)) for first in range(second))
    return PreferenceGroup(tuple(turns(*prompt, reply, system=system) for reply in replies), comparisons=order)


def decoded(reward: RewardTokenizer, group: TokenGroup) -> list[str]:
    """Each conversation's text, without the reward token."""
    return [
        str(reward.tokenizer.decode([*group.prefix, *response[:-1]], clean_up_tokenization_spaces=False))
        for response in group.responses
    ]


@cache
def engine_of(tokenizer, name) -> TokenEngine:
    return TokenEngine(tokenizer, name)


def encode(reward: RewardTokenizer, group: PreferenceGroup, max_length: int, engine="transformers"):
    encoder = Encoder(reward, max_length, "truncate_left")
    vars(encoder)["engine"] = engine_of(reward.tokenizer, engine)  # probing a vocabulary takes its time
    return encoder.encode([group])[0]


def cut_by(reward: RewardTokenizer, group: PreferenceGroup, excess: int, engine="transformers") -> TokenGroup | str:
    """The group at a max_length that its longest member exceeds by so many tokens."""
    whole = encode(reward, group, 100_000)
    assert isinstance(whole, TokenGroup)
    longest = len(whole.prefix) + max(map(len, whole.responses))
    found = encode(reward, group, longest - excess, engine)
    if isinstance(found, TokenGroup):
        assert found.truncated
        assert len(found.prefix) + max(map(len, found.responses)) == longest - excess
        both = zip(whole.responses, found.responses, strict=True)
        assert len({len(whole.prefix) + len(a) - len(found.prefix) - len(b) for a, b in both}) == 1
    return found


@cache
def real(name: str) -> RewardTokenizer:
    tokenizer = load_bare_tokenizer(ModelSection(pretrained_model_name_or_path=str(find_tokenizer(name))))
    if tokenizer.chat_template is None:
        tokenizer.chat_template = BUILT_IN["plain"]
    free = len(tokenizer) + 5  # an id that no text becomes
    return RewardTokenizer(tokenizer, "<|reward|>", free, free + 1)


# --- what goes first ---


def test_history_goes_first_after_bos_and_up_to_the_last_users_header(reward):
    group = group_of("first question", "first answer", "12 + 34?", replies=("46", "47"), system="Count well.")
    whole = encode(reward, group, 1000)
    cut = cut_by(reward, group, 7)
    assert cut.prefix.tolist() == [whole.prefix[0], *whole.prefix[8:]]  # its BOS is <|im_start|>
    last_turn = f"{USER}12 + 34?{END}{ASSISTANT}"
    (text,) = {text.partition(last_turn)[0] for text in decoded(reward, whole)}
    num_before = len(reward.tokenizer(text, add_special_tokens=False)["input_ids"])
    furthest = cut_by(reward, group, num_before - 1)
    assert decoded(reward, furthest) == [f"<|im_start|>{last_turn}{reply}{END}" for reply in ("46", "47")]
    assert decoded(reward, cut_by(reward, group, num_before)) == [
        f"<|im_start|>{USER}2 + 34?{END}{ASSISTANT}{reply}{END}" for reply in ("46", "47")
    ]


def test_of_a_single_turn_the_start_of_its_content_goes(reward):
    group = group_of("0123456789", replies=("abc", "abcdefgh", "b"))
    expected = [f"{USER}6789{END}{ASSISTANT}{reply}{END}" for reply in ("abc", "abcdefgh", "b")]
    assert decoded(reward, cut_by(reward, group, 6)) == expected
    assert decoded(reward, cut_by(reward, group, 9))[2] == f"{USER}9{END}{ASSISTANT}b{END}"
    assert cut_by(reward, group, 10) == "overlong"


def test_replies_that_begin_alike_keep_their_beginning(reward):
    steps = "".join(f"Step {number}: add 1. " for number in range(20))
    group = group_of("How far do you get?", replies=(f"{steps}20", f"{steps}21"))
    assert decoded(reward, cut_by(reward, group, 3))[1].endswith(f" far do you get?{END}{ASSISTANT}{steps}21{END}")
    assert cut_by(reward, group, 60) == "overlong"


def test_two_questions_before_one_long_reply_never_become_one_text(reward):
    questions = [PreferenceGroup((turns(q, "so " * 80),)) for q in ("Add two and three.", "Name a red fruit!")]
    seen = set()
    for limit in range(90, 200):
        for question in questions:
            result = encode(reward, question, limit)
            if isinstance(result, TokenGroup):
                seen.add((question.conversations[0][0]["content"], tuple(result.responses[0])))
    texts = [text for _, text in seen]
    assert len(texts) == len(set(texts)) > 10


@pytest.mark.parametrize(
    "conversations",
    [
        (turns("one question " * 9, "a"), turns("one question " * 9 + "?", "a")),  # no message is shared
        tuple(({"role": "assistant", "content": "long " * 30 + reply},) for reply in "ab"),  # nobody asks
        (turns("q", "first " * 30, "q " * 30, "a"), turns("q", "other " * 30, "q " * 30, "b")),  # differ early
    ],
)
def test_nothing_is_cut_that_is_not_of_one_prompt(reward, conversations):
    assert cut_by(reward, PreferenceGroup(conversations), 6) == "overlong"


def test_where_conversations_differ_early_the_prompt_is_what_they_share(reward):
    group = PreferenceGroup((turns("abcdefgh", "1", "next", "2"), turns("abcdefgh", "3", "next", "4")))
    texts = decoded(reward, cut_by(reward, group, 5))
    assert texts[1] == f"{USER}fgh{END}{ASSISTANT}3{END}{USER}next{END}{ASSISTANT}4{END}"


def test_of_what_was_asked_more_than_white_space_is_left(reward):
    assert cut_by(reward, group_of("abc\n \n", replies=("1", "2")), 3) == "overlong"
    assert isinstance(cut_by(reward, group_of("abc\n \n", replies=("1", "2")), 2), TokenGroup)


# --- any template ---

WHOLE_ONLY = "{% if not messages or messages[-1]['role'] == 'user' %}{{ raise_exception('not whole') }}{% endif %}"
CHATML = BUILT_IN["chatml"]
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
)
TRIMS = CHATML.replace("message['content']", "message['content'] | trim")
LOOKS_INSIDE = TRIMS.replace("| trim", ".split('@@')[-1] | trim")
# The last reply is written otherwise than those before it, as with think blocks.
THINKS = CHATML.replace(
    "'\\n' + message['content']",
    "'\\n' + ('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)
ENDS_OPEN = CHATML + "<|im_start|>assistant\n"
IN_THE_TURN = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for message in messages if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
    "{% if loop.index == loop.length - 1 %}{{ system }}\n\n{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("system", [None, "Count well."])
@pytest.mark.parametrize(
    "template",
    [CHATML, WHOLE_ONLY + CHATML, DEFAULT_SYSTEM, TRIMS, LOOKS_INSIDE, THINKS, ENDS_OPEN, IN_THE_TURN],
    ids=["chatml", "whole", "default_system", "trims", "looks_inside", "thinks", "ends_open", "in_the_turn"],
)
def test_header_and_reply_stay_whole_under_any_template(reward, monkeypatch, template, system):
    """At every length, with and without history: the header, an end of the question, and all that follows it."""
    monkeypatch.setattr(reward.tokenizer, "chat_template", template)
    question = " Which of 123 and 456 is larger, and why?\n"
    header = USER + (f"{system or ''}\n\n" if template == IN_THE_TURN else "")
    for history in ((), ("What is 1 + 2?", "3.")):
        group = group_of(*history, question, replies=("The larger one is 456", "The larger one is 123 I think"))
        group = PreferenceGroup(tuple(turns(*[m["content"] for m in c], system=system) for c in group.conversations))
        whole = encode(reward, group, 1000)
        (start,) = {text.index(question.strip()) for text in decoded(reward, whole)}
        kept_whole = cut_inside = 0
        for excess in range(1, 90, 2):
            cut = cut_by(reward, group, excess)
            if cut == "overlong":
                break
            for before, after in zip(decoded(reward, whole), decoded(reward, cut), strict=True):
                rest = before[start + len(question.strip()) :]
                assert after.endswith(rest)
                asked = after.removesuffix(rest).rpartition(header)[2]
                assert header in after
                assert question.strip().endswith(asked.lstrip())
                assert asked.strip()
                kept_whole += asked.strip() == question.strip()
                cut_inside += asked.strip() != question.strip()
        assert cut_inside > 15
        assert kept_whole > (10 if history else -1)


def test_a_token_over_the_border_of_header_and_content_is_cut_with_its_like_or_stays():
    """Llama-3 writes ` What` as one token: after `user: ` it holds the end of the header."""
    reward = real("llama3")
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    tokenizer, before = reward.tokenizer, reward.tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        group = group_of("What are the three (3) largest lakes?", replies=("Baikal", "None"))
        words = [decoded(reward, cut_by(reward, group, excess))[0] for excess in range(1, 6)]
    finally:
        tokenizer.chat_template = before
    rest = "\nassistant: Baikal\n"
    assert [text.removesuffix(rest) for text in words] == [
        "user: are the three (3) largest lakes?",
        "user: the three (3) largest lakes?",
        "user: three (3) largest lakes?",
        "user: (3) largest lakes?",
        "user: What) largest lakes?",
    ]


REAL_HEADERS = {
    "qwen3": "<|im_start|>user\n",
    "gemma3": "<start_of_turn>user\n",
    "llama3_1": "<|start_header_id|>user<|end_header_id|>\n\n",
    "mistral-v3": "### User:\n",  # its folder has no template: plain
    "deepseek_v3": "<｜User｜>",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "gemma3" else []) for name in REAL_HEADERS]
)
def test_real_tokenizers_keep_header_and_reply(name):
    reward = real(name)
    header = REAL_HEADERS[name]
    question = "Is naïve 猫 larger than 12,345 lakes, don't you think?"
    replies = ("Well, it is said that it is.", "Well, it is said that it is not 🙂.")
    for history in ((), ("Hello there", "Hello!")):
        group = group_of(*history, question, replies=replies)
        whole = encode(reward, group, 1000)
        lengths = []
        for excess in range(1, 60):
            cut = cut_by(reward, group, excess)
            if cut == "overlong":
                break
            for before, after in zip(decoded(reward, whole), decoded(reward, cut), strict=True):
                rest = before.rpartition(question)[2]
                assert after.endswith(rest)
                asked = after.removesuffix(rest).rpartition(header)[2]
                assert header in after
                assert question.endswith(asked.lstrip(" \ufffd"))
                lengths.append(len(asked))
        assert min(lengths) <= 8
        assert len(lengths) > (40 if history else 20)


@pytest.mark.skipif(
    importlib.util.find_spec("gigatoken") is None, reason="the package gigatoken (make test installs it)"
)
@pytest.mark.parametrize("name", ["llama3_1", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_both_engines_cut_the_same(name):
    reward = real(name)
    group = group_of("Hello there", "Hello!", "What is the largest lake of all?", replies=("Baikal", "None of them"))
    for excess in range(1, 24):
        slow, fast = (cut_by(reward, group, excess, engine) for engine in ("transformers", "gigatoken"))
        if slow == "overlong":
            assert fast == "overlong"
            continue
        assert slow.prefix.tolist() == fast.prefix.tolist()
        assert [r.tolist() for r in slow.responses] == [r.tolist() for r in fast.responses]
