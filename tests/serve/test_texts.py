"""Text on the wire in all the ways clients render it: the tokens of the conversation it is, or why not."""

import shutil
import time

import numpy as np
import pytest

from rmcli.records import PreferenceGroup
from rmcli.scorer.load import configuration_of, load_encoder
from rmcli.scorer.tokens import encode_apart
from rmcli.serve.texts import Texts, in_chunks
from support.foreign import SKYWORK_LIKE
from support.serving import WRITTEN_BEFORE, talk

BOS, END, PAD, REWARD = "<|im_start|>", "<|im_end|>", "<pad>", "<|reserved_special_token_0|>"
FRONT = "<|im_start|>user\nSort: 3 1 2<|im_end|>\n<|im_start|>assistant\n"
MODES = {
    "reserved": (),
    "natural": ("model.reward_token=natural", "model.reward_token_id=none"),
    "last": ("model.reward_token=last", "model.reward_token_id=none"),
}


def encoder_of(folder=WRITTEN_BEFORE, settings=()):
    return load_encoder(configuration_of(folder, settings=settings).config)


@pytest.fixture(scope="module", params=MODES)
def texts(request):
    return Texts(encoder_of(settings=MODES[request.param]))


@pytest.fixture(scope="module")
def reserved():
    return Texts(encoder_of())


def ids_of(side):
    assert not isinstance(side, str), side
    return side.responses[0].tolist()


def conversation_ids(texts, *contents):
    ((side,),) = encode_apart(texts.encoder, [PreferenceGroup((tuple(talk(*contents)),))])
    return ids_of(side)


# What chat templates, vLLM's and OpenRLHF's generation and clients of other servers leave at the end of a reply.
ENDINGS = ["", END, f"{END}\n"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_is_missing_at_the_end_is_added(texts, ending):
    (side,) = texts.read([f"{FRONT}1 2 3{ending}"])
    assert ids_of(side) == conversation_ids(texts, "Sort: 3 1 2", "1 2 3")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_text_that_ends_with_the_reward_token_is_not_given_another(reserved, ending):
    (side,) = reserved.read([f"{FRONT}1 2 3{ending}{REWARD}"])
    found = ids_of(side)
    assert found == conversation_ids(reserved, "Sort: 3 1 2", "1 2 3")
    assert found.count(4) == 1
    assert found[-1] == 4


@pytest.mark.parametrize("inside", [f"{FRONT}1 {REWARD} 3", f"{FRONT}1 2 3{REWARD}{REWARD}", f"{REWARD}{FRONT}1"])
def test_the_reward_token_inside_a_text_is_an_error(reserved, inside):
    assert reserved.read([inside]) == ["reward_token_in_text"]


def test_bos_is_added_once_and_never_twice(texts):
    wanted = conversation_ids(texts, "Sort: 3 1 2", "1 2 3")
    (with_bos, without) = texts.read([f"{FRONT}1 2 3", f"{FRONT}1 2 3".removeprefix(BOS)])
    assert ids_of(with_bos) == ids_of(without) == wanted
    assert texts.read([f"{BOS}{FRONT}1 2 3"]) == ["bos_twice"]
    assert texts.read([f"{BOS}{BOS}{FRONT}1 2 3"]) == ["bos_twice"]
    assert texts.read_ids([[2, *wanted]]) == ["bos_twice"]
    (as_given,) = texts.read([f"{FRONT}1 2 3".removeprefix(BOS)], add_bos=False)
    assert ids_of(as_given) == wanted[1:]


@pytest.mark.parametrize("left", ["", PAD, PAD * 5])
@pytest.mark.parametrize(
    "right", ["", END, PAD, END + PAD * 3, PAD * 3, END * 3, f"{END}\n", f"{END}{END}\n", f"{END}\n{PAD}\n"]
)
def test_padding_around_a_text_is_taken_away(texts, left, right):
    (side,) = texts.read([f"{left}{FRONT}1 2 3{right}"], strip_padding=True)
    assert ids_of(side) == conversation_ids(texts, "Sort: 3 1 2", "1 2 3")


@pytest.mark.parametrize("behind", [END * 190_000, f"{END}\n" * 170_000, PAD * 380_000])
def test_padding_without_end_takes_no_time(reserved, behind):
    """Looked at token by token, and a text that is too long not at all."""
    started = time.monotonic()
    good, other = reserved.read([f"{FRONT}1 2 3{behind}", f"{FRONT}1 2 3{behind * 3}"], strip_padding=True)
    assert ids_of(good) == conversation_ids(reserved, "Sort: 3 1 2", "1 2 3")
    assert other == "too_long_text"
    assert time.monotonic() - started < 6  # minutes where each is taken away from a text of its own


def test_an_ending_is_found_in_whole_tokens(texts):
    """`<` begins `<|im_end|>`, and is the reply's."""
    (side,) = texts.read([f"{FRONT}1 <"])
    assert ids_of(side) == conversation_ids(texts, "Sort: 3 1 2", "1 <")


def test_a_cut_reply_is_not_read_at_the_end_of_the_question(texts):
    """Natural: the last end of turn of such a text is the user's."""
    (side,) = texts.read([f"{FRONT}1 2 3"])
    found = ids_of(side)
    assert len(found) > len(texts.encoder.engine.encode([FRONT])[0])


@pytest.mark.parametrize(
    "text", ["plain words", f"plain words{END}", f"{BOS}user\nSort", "User: a\n\nAssistant: b", "[INST] a [/INST] b"]
)
def test_text_that_no_template_of_the_model_wrote_is_an_error(texts, text):
    assert texts.read([text]) == ["not_rendered"]


BEGUN = f"{END}\n<|im_start|>"
NO_REPLY = {
    "": "empty_reply",
    "   ": "empty_reply",
    "\n\n": "empty_reply",
    END: "empty_reply",
    f" {END}\n": "empty_reply",
    f"1 2 3{BEGUN}user\nq2": "no_assistant_reply",
    f"1 2 3{BEGUN}user\nq2{END}\n": "no_assistant_reply",
    f"1 2 3{BEGUN}user\nq2{BEGUN}assistant\n": "empty_reply",
    f"1 2 3{BEGUN}system\nx": "no_assistant_reply",
    f"1 2 3{BEGUN}tool\nx{END}\n": "no_assistant_reply",
}


@pytest.mark.parametrize("strip_padding", [False, True])
@pytest.mark.parametrize("after", NO_REPLY)
def test_a_text_without_a_last_reply_has_no_score(texts, after, strip_padding):
    assert texts.read([FRONT + after], strip_padding=strip_padding) == [NO_REPLY[after]]


@pytest.mark.parametrize(
    "text",
    [
        f"{BOS}system\ns{BEGUN}user\nq{END}\n",  # nobody answers
        f"{BOS}user\nq{BEGUN}tool\nx{END}\n",
        f"{BOS}user\nq{BEGUN}assistant",
        f"{BOS}user\nq{END}{BOS}assistant\n1",  # another template's
        f"junk{BEGUN}system\nxx",
    ],
)
def test_a_text_in_which_no_reply_begins_is_an_error(texts, text):
    assert texts.read([text]) == ["not_rendered"]


def test_the_last_reply_of_several_turns_is_scored(texts):
    (side,) = texts.read([f"{FRONT}1 2 3{BEGUN}user\nq2{BEGUN}assistant\n4"])
    assert ids_of(side) == conversation_ids(texts, "Sort: 3 1 2", "1 2 3", "q2", "4")


@pytest.mark.parametrize("after", ["1 2 3", *NO_REPLY])
def test_ids_are_held_to_the_same(texts, after):
    text = FRONT + after.removesuffix(f"{END}\n").removesuffix(END) + f"{END}\n"
    (ids,) = texts.encoder.engine.encode([text])
    finished = texts.reward.finish(ids).tolist()
    (side,) = texts.read_ids([finished])
    assert side == NO_REPLY[after] if after in NO_REPLY else ids_of(side) == finished


MISTRAL_LIKE = (
    "{{ '<|im_start|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
WORDS_ALONE = (
    "{% for m in messages %}{{ '\n\n' + m['role'] + ': ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nassistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "front", "further"),
    [
        (SKYWORK_LIKE, "[user]\n\nq<|im_end|>[assistant]\n\n", "<|im_end|>[user]\n\nq2"),
        (MISTRAL_LIKE, "[INST]q[/INST]", "<|im_end|>[INST]q2"),
        (WORDS_ALONE, "\n\nuser: q\n\nassistant: ", "\n\nuser: q2"),
    ],
)
def test_templates_of_other_shapes_are_held_to_the_same(tmp_path, template, front, further):
    folder = tmp_path / "other"
    shutil.copytree(WRITTEN_BEFORE, folder)
    (folder / "chat_template.jinja").write_text(template)
    texts = Texts(encoder_of(folder))
    good, *others = texts.read([f"{front}1 2", front, f"{front}1 2{further}", "plain words"])
    assert ids_of(good) == conversation_ids(texts, "q", "1 2")
    assert others == ["empty_reply", "no_assistant_reply", "not_rendered"]


def test_texts_that_say_nothing_or_too_much(texts):
    assert texts.read(["", " \n"]) == ["empty_conversation", "empty_conversation"]
    assert texts.read([FRONT + "1 " * 300]) == ["overlong"]
    assert texts.read([FRONT + "1" * 2_000_001]) == ["too_long_text"]


def test_each_text_stands_for_itself(reserved):
    good, bad, other = reserved.read([f"{FRONT}1", "plain", f"{FRONT}2"])
    assert bad == "not_rendered"
    assert ids_of(good) == conversation_ids(reserved, "Sort: 3 1 2", "1")
    assert ids_of(other) == conversation_ids(reserved, "Sort: 3 1 2", "2")


def test_a_template_without_bos_gets_none(tmp_path):
    folder = tmp_path / "no_bos"
    shutil.copytree(WRITTEN_BEFORE, folder)
    (folder / "chat_template.jinja").write_text(SKYWORK_LIKE.replace("{{ '<|im_start|>' }}", "", 1))
    texts = Texts(encoder_of(folder))
    front = "[user]\n\nSort: 3 1 2<|im_end|>[assistant]\n\n"
    wanted = conversation_ids(texts, "Sort: 3 1 2", "1 2 3")
    assert wanted[0] != 2
    assert [ids_of(side) for side in texts.read([f"{front}1 2 3", f"{front}1 2 3{END}"])] == [wanted, wanted]
    (with_bos,) = texts.read([f"{BOS}{front}1 2 3"])  # the client's own: as given
    assert ids_of(with_bos) == [2, *wanted]
    assert texts.read(["plain words", f"{BOS}{BOS}{front}1"]) == ["not_rendered", "bos_twice"]


def test_a_rendered_prompt_ends_where_a_reply_begins(reserved):
    assert reserved.is_rendered(FRONT)
    assert not reserved.is_rendered("Sort: 3 1 2")
    assert reserved.rendered_prompt(FRONT) is None
    assert reserved.rendered_prompt(FRONT.removesuffix("assistant\n")) == "no_generation_prompt"


def test_chunks_hold_what_fits_and_one_at_least():
    assert list(in_chunks("abcdef", [3, 3, 3, 9, 1, 1], most=6)) == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert list(in_chunks("", [], most=6)) == []


def test_ids_are_whole_and_left_as_they_are(reserved):
    ids = conversation_ids(reserved, "Sort: 3 1 2", "1 2 3")
    (side,) = reserved.read_ids([np.array(ids)])
    assert ids_of(side) == ids
    assert reserved.read_ids([ids[:-1], [5, 4], []]) == ["no_reward_token", "not_rendered", "empty_conversation"]


def test_a_template_that_rewrites_replies_leaves_no_text_to_be_read(tmp_path):
    folder = tmp_path / "upper"
    shutil.copytree(WRITTEN_BEFORE, folder)
    written = (WRITTEN_BEFORE / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(written.replace("message['content']", "message['content'] | upper"))
    texts = Texts(encoder_of(folder))
    assert texts.read([f"{FRONT}1 2 3"]) == ["template_error"]
