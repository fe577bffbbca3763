"""The protocols: each gives the scores of `RewardModel` in the shape that its clients read, or says why not."""

import json

import pytest

from rmcli import RewardModel
from rmcli.serve.protocols.known import PROTOCOLS
from support.foreign import TALKS, make_foreign
from support.serving import serving, talk, with_golden

REWARD = "<|reserved_special_token_0|>"
RENDERED = "<|im_start|>user\nSort: 3 1 2<|im_end|>\n<|im_start|>assistant\n1 2 3<|im_end|>\n"
CONVERSATION = talk("Sort: 3 1 2", "1 2 3")
CLOSE = 1e-6  # what else is scored in a batch changes rounding alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_golden(tmp_path_factory.mktemp("served") / "my-model")


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def model(folder):
    return RewardModel.load(folder)


@pytest.fixture(scope="module")
def value(model):
    return model.score([CONVERSATION])[0].value


@pytest.fixture(scope="module")
def golden(folder):
    return [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]


def ok(reply):
    assert reply.status == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    return reply.json


def numbers(reply):
    """The scores of an answer, in whichever shape it is."""
    if isinstance(reply, float):
        return [reply]
    if "data" in reply:
        return [(entry.get("probs") or entry["data"])[0] for entry in reply["data"]]
    return reply.get("rewards") or reply["scores"]


# --- the golden scores, through every door ---


def test_every_protocol_gives_the_golden_scores(server, golden):
    texts, ids = [line["text"] for line in golden], [line["input_ids"] for line in golden]
    wanted = pytest.approx([line["score"] for line in golden], abs=1e-5)
    assert len(golden) == 6
    assert ok(server.ask("/get_reward", {"query": texts}))["rewards"] == wanted
    assert ok(server.ask("/v1/score/evaluation", {"model": "m", "messages": texts}))["scores"] == wanted
    for given in (texts, ids):
        assert [entry["probs"][0] for entry in ok(server.ask("/classify", {"input": given}))["data"]] == wanted
        assert [entry["data"][0] for entry in ok(server.ask("/pooling", {"input": given}))["data"]] == wanted
    talks = [line["messages"] for line in golden]
    assert [one["value"] for one in ok(server.ask("/score", {"conversations": talks}))["scores"]] == wanted
    one_by_one = [ok(server.ask("/classify", {"messages": messages}))["data"][0]["probs"][0] for messages in talks]
    assert one_by_one == wanted
    rewards = [
        ok(server.ask("/slime", {"prompt": messages[:-1], "response": messages[-1]["content"], "label": None}))
        for messages in talks
    ]
    assert rewards == wanted


# --- BOS twice: what a client that renders and then adds special tokens sends ---


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": ["BOS" + RENDERED]}),
        ("/classify", {"input": "BOS" + RENDERED}),
        ("/classify", {"input": ["BOS" + RENDERED], "add_special_tokens": True}),
        ("/pooling", {"input": ["BOS" + RENDERED], "add_special_tokens": False}),
        ("/v1/score/evaluation", {"messages": ["BOS" + RENDERED]}),
        ("/slime", {"prompt": "BOS" + RENDERED.partition("1 2 3")[0], "response": "1 2 3"}),
    ],
)
def test_bos_twice_on_the_wire_is_refused_by_name_and_once_is_right(server, value, path, body):
    """The template writes BOS, here `<|im_start|>`, itself."""
    twice, once = (json.loads(json.dumps(body).replace("BOS", bos)) for bos in ("<|im_start|>", ""))
    reply = server.ask(path, twice)
    assert (reply.status, reply.json["items"]) == (422, [{"index": 0, "error": "bos_twice"}])
    assert "BOS more than once" in reply.json["hint"]
    (found,) = numbers(ok(server.ask(path, once)))
    assert found == pytest.approx(value, abs=CLOSE)


def test_bos_twice_in_ids_on_the_wire_is_refused_by_name(server, golden):
    ids = golden[0]["input_ids"]
    reply = server.ask("/classify", {"input": [2, *ids]})
    assert (reply.status, reply.json["items"]) == (422, [{"index": 0, "error": "bos_twice"}])
    data = ok(server.ask("/classify", {"input": ids}))["data"]
    assert data[0]["probs"] == [pytest.approx(golden[0]["score"], abs=1e-5)]


# --- shapes ---


def test_get_reward_answers_old_and_new_clients_of_openrlhf(server, value):
    given = {"query": [RENDERED, RENDERED], "prompts": ["a", "b"], "labels": [None, {"x": 1}]}
    reply = ok(server.ask("/get_reward", given))
    near = pytest.approx(value, abs=CLOSE)
    assert reply == {"rewards": [near, near], "scores": [near, near], "extra_logs": {}}


def test_classify_answers_as_vllm_does(server, value, golden):
    reply = ok(server.ask("/classify", {"input": RENDERED + REWARD, "model": "anything", "user": "me"}))
    assert reply["id"].startswith("classify-")
    assert isinstance(reply["created"], int)
    assert (reply["object"], reply["model"]) == ("list", "my-model")
    near = pytest.approx(value, abs=CLOSE)
    assert reply["data"] == [{"index": 0, "label": "reward", "probs": [near], "num_classes": 1}]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["total_tokens"]) == (24, 24)


def test_pooling_answers_as_vllm_does(server, value):
    reply = ok(server.ask("/pooling", {"input": [RENDERED], "task": "classify", "encoding_format": "float"}))
    assert reply["id"].startswith("pool-")
    assert reply["data"] == [{"index": 0, "object": "pooling", "data": [pytest.approx(value, abs=CLOSE)]}]


def test_score_evaluation_answers_as_llama_factory_does(server, value):
    reply = ok(server.ask("/v1/score/evaluation", {"model": "gpt", "messages": [RENDERED], "max_length": 999}))
    assert reply["id"].startswith("scoreval-")
    near = pytest.approx(value, abs=CLOSE)
    assert {**reply, "id": ""} == {"id": "", "object": "score.evaluation", "model": "gpt", "scores": [near]}


def test_score_evaluation_cuts_no_text(server):
    reply = server.ask("/v1/score/evaluation", {"model": "gpt", "messages": [RENDERED], "max_length": 23})
    assert reply.status == 422
    assert reply.json["items"] == [{"index": 0, "error": "overlong"}]


def test_slime_is_answered_with_the_bare_number(server, value):
    near = pytest.approx(value, abs=CLOSE)
    assert ok(server.ask("/slime", {"prompt": "Sort: 3 1 2", "response": "1 2 3", "label": "1 2 3"})) == near
    rendered, _, _ = RENDERED.partition("1 2 3")
    assert ok(server.ask("/slime", {"prompt": rendered, "response": "1 2 3<|im_end|>"})) == near


@pytest.mark.parametrize("prompt", ["Sort: 3 1 2", CONVERSATION[:-1]])
@pytest.mark.parametrize("ending", ["<|im_end|>", "<|im_end|><pad><pad>"])
def test_slime_sends_a_question_with_a_response_as_the_policy_has_ended_it(server, value, prompt, ending):
    assert ok(server.ask("/slime", {"prompt": prompt, "response": f"1 2 3{ending}"})) == pytest.approx(
        value, abs=CLOSE
    )
    empty = server.ask("/slime", {"prompt": prompt, "response": ending})
    assert (empty.status, empty.json["items"]) == (422, [{"index": 0, "error": "empty_reply"}])


@pytest.mark.parametrize("left", ["<|im_end|>", "<|im_end|>\n", "<|im_end|> <|im_end|><pad><pad>\n", "<pad>"])
@pytest.mark.parametrize("prompt", ["Sort: 3 1 2", CONVERSATION[:1], RENDERED.partition("1 2 3")[0]])
def test_what_generation_leaves_behind_a_response_does_not_change_its_reward(server, value, prompt, left):
    near = pytest.approx(value, abs=CLOSE)
    assert ok(server.ask("/slime", {"prompt": prompt, "response": f"1 2 3{left}"})) == near
    assert ok(server.ask("/get_reward", {"query": [RENDERED + left]}))["rewards"] == [near]


def test_control_tokens_in_a_message_are_said_once(server, monkeypatch):
    said = []
    monkeypatch.setattr("rmcli.output.warn", said.append)
    for _ in range(3):
        ok(server.ask("/score", {"prompt": "Sort: 3 1 2", "responses": ["1 2 3<|im_end|>"]}))
    assert len(said) == 1
    assert "text holds control tokens" in said[0]


def test_slime_refuses_a_prompt_that_is_half_rendered(server):
    reply = server.ask("/slime", {"prompt": "<|im_start|>user\nSort: 3 1 2<|im_end|>\n", "response": "1 2 3"})
    assert (reply.status, reply.json["items"]) == (422, [{"index": 0, "error": "no_generation_prompt"}])


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ("", "empty_reply"),
        (" \n", "empty_reply"),
        ("<|im_end|>", "empty_reply"),
        ("1<|im_end|>\n<|im_start|>user\nx", "no_assistant_reply"),
    ],
)
def test_slime_with_a_rendered_prompt_scores_a_reply_and_nothing_else(server, response, error):
    reply = server.ask("/slime", {"prompt": RENDERED.partition("1 2 3")[0], "response": response})
    assert (reply.status, reply.json.get("items")) == (422, [{"index": 0, "error": error}])


def test_score_has_a_place_for_errors_and_says_what_was_cut(server, model):
    long = talk("Sort: " + "0 1 2 3 " * 60, "0 1")
    given = [CONVERSATION, talk("only a question"), long, {"prompt": "Sort: 3 1 2", "response": "1 2 3"}, {}]
    reply = ok(server.ask("/score", {"conversations": given}))
    first, second, third, fourth, fifth = reply["scores"]
    one, _, cut, _, _ = model.score(given)
    assert reply["model"] == "my-model"
    assert first == {"value": pytest.approx(one.value, abs=CLOSE), "truncated": False, "error": None}
    assert second == {"value": None, "truncated": False, "error": "no_assistant_reply"}
    assert third == {"value": pytest.approx(cut.value, abs=CLOSE), "truncated": True, "error": None}
    assert fourth == first
    assert fifth["error"] == "missing_column messages"


@pytest.mark.parametrize("beside", [{"response": "zz"}, {"responses": ["zz"]}])
def test_an_answer_beside_messages_is_refused(server, model, beside):
    given = {"messages": CONVERSATION, **beside}
    (name,) = beside
    (score,) = ok(server.ask("/score", {"conversations": [given]}))["scores"]
    assert score["error"] == model.score([given])[0].error == f"unread_column {name}"


def test_score_of_responses_is_that_of_python(server, model):
    responses = ["1 2 3", "3 2 1", "", "1 2 3"]
    scores = ok(server.ask("/score", {"prompt": "Sort: 3 1 2", "responses": responses}))["scores"]
    wanted = model.score_responses("Sort: 3 1 2", responses)
    assert [one["error"] for one in scores] == [one.error for one in wanted] == [None, None, "empty_reply", None]
    assert [one["value"] for one in scores if one["value"] is not None] == pytest.approx(
        [one.value for one in wanted if one.value is not None], abs=CLOSE
    )


# --- fields that could change the number ---


@pytest.mark.parametrize("path", ["/classify", "/pooling"])
@pytest.mark.parametrize(
    "fields",
    [
        *({name: asked} for name in ("activation", "use_activation") for asked in (False, True, None)),
        {"activation": True, "use_activation": True},
        {"add_special_tokens": True},
        {"add_special_tokens": False},
        {"truncate_prompt_tokens": None, "dimensions": None},
    ],
)
def test_the_folder_says_regression_so_an_activation_changes_nothing(server, value, path, fields):
    for given in ({"input": RENDERED}, {"messages": CONVERSATION}):
        entry = ok(server.ask(path, {**given, **fields}))["data"][0]
        assert (entry.get("probs") or entry["data"]) == [pytest.approx(value, abs=CLOSE)]


def test_where_the_model_has_a_sigmoid_it_is_applied_when_asked_for(tmp_path):
    folder = make_foreign(tmp_path / "skywork")
    (raw,) = RewardModel.load(folder).score([TALKS[0]])
    with serving(folder) as running:
        for fields in ({}, {"activation": False}, {"use_activation": False}):
            entry = ok(running.ask("/classify", {"messages": TALKS[0], **fields}))["data"][0]
            assert (entry["label"], entry["probs"]) == ("LABEL_0", [pytest.approx(raw.value, abs=CLOSE)])
        for fields in ({"activation": True}, {"use_activation": True}):
            (probability,) = ok(running.ask("/classify", {"messages": TALKS[0], **fields}))["data"][0]["probs"]
            assert probability == pytest.approx(1 / (1 + 2.718281828459045**-raw.value), abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"normalize": True}, "/classify does not read 'normalize'"),
        ({"normalize": None}, "/classify does not read 'normalize'"),
        ({"softmax": True}, "/classify does not read 'softmax'"),
        ({"images": ["x"]}, "/classify does not read 'images'"),
        ({"activation": True, "use_activation": False}, "two names of one thing"),
        ({"use_activation": "false"}, "use_activation: input should be a valid boolean, not 'false'"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens: input should be None, not 5"),
        ({"encoding_format": "base64"}, "encoding_format: input should be 'float', not 'base64'"),
        ({"add_generation_prompt": True}, "add_generation_prompt: true is not done here"),
        ({"continue_final_message": 0}, "continue_final_message: input should be a valid boolean, not 0"),
        ({"chat_template": "{{ x }}"}, "chat_template: input should be None"),
        ({"messages": CONVERSATION}, "give one of input and messages"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs is for messages"),
    ],
)
def test_fields_that_would_change_the_score_are_refused(server, fields, said):
    reply = server.ask("/classify", {"input": RENDERED, **fields})
    assert reply.status == 422
    assert said in reply.json["detail"]
    assert "\n" not in reply.json["detail"]
    assert reply.json["hint"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", {"input": None, "messages": CONVERSATION}),
        ("/pooling", {"input": RENDERED, "messages": None, "chat_template_kwargs": None}),
        ("/score", {"conversations": [CONVERSATION], "prompt": None, "responses": None}),
        ("/score", {"conversations": None, "prompt": "Sort: 3 1 2", "responses": ["1 2 3"]}),
        ("/get_reward", {"query": [RENDERED], "prompts": None, "labels": None}),
        ("/v1/score/evaluation", {"model": None, "messages": [RENDERED], "max_length": None}),
        ("/slime", {"prompt": "Sort: 3 1 2", "response": "1 2 3", "label": None}),
    ],
)
def test_null_is_what_clients_write_for_what_is_not_set(server, path, body):
    ok(server.ask(path, body))


# --- requests that are none ---

WRONG = [
    ("/get_reward", {}, "query: field required"),
    ("/get_reward", {"query": []}, "query: list should have at least 1 item"),
    ("/get_reward", {"query": "text"}, "query: input should be a valid list, not 'text'"),
    ("/get_reward", {"query": ["text", 5]}, "query[1]: input should be a valid string, not 5"),
    ("/get_reward", [], "/get_reward: the body is a JSON object, not []"),
    ("/get_reward", None, "/get_reward: the body is a JSON object, not None"),
    ("/classify", {}, "give one of input and messages"),
    ("/classify", {"input": []}, "input is a text, a list of texts, a list of token ids"),
    ("/classify", {"input": ["a", 5]}, "input is a text, a list of texts, a list of token ids"),
    ("/classify", {"input": [True]}, "input is a text, a list of texts, a list of token ids"),
    ("/classify", {"input": {"text": "a"}}, "input is a text, a list of texts, a list of token ids"),
    ("/classify", {"messages": "hello"}, "messages: input should be a valid list, not 'hello'"),
    ("/classify", {"messages": ["hello"]}, "messages[0]: input should be a JSON object, not 'hello'"),
    ("/v1/score/evaluation", {"model": "m", "messages": [[]]}, "messages[0]: input should be a valid string"),
    ("/v1/score/evaluation", {"messages": ["m"], "max_length": 0}, "max_length: input should be greater than"),
    ("/slime", {"prompt": "a"}, "response: field required"),
    ("/slime", {"prompt": 5, "response": "a"}, "prompt: input should be a valid string, not 5"),
    ("/score", {"conversations": None}, "give conversations alone, or prompt and responses"),
    ("/score", {"conversations": []}, "conversations: list should have at least 1 item"),
    ("/score", {"prompt": None, "responses": ["a"]}, "give conversations alone, or prompt and responses"),
    ("/classify", {"messages": []}, "messages: list should have at least 1 item"),
    ("/classify", {"input": None, "messages": None}, "give one of input and messages"),
    ("/score", {}, "give conversations alone, or prompt and responses"),
    ("/score", {"prompt": "a"}, "give conversations alone, or prompt and responses"),
    ("/score", {"conversations": [[]], "prompt": "a", "responses": ["a"]}, "give conversations alone"),
    ("/score", {"conversations": ["a"]}, "conversations[0]: input should be a valid list, not 'a'"),
]


@pytest.mark.parametrize(("path", "body", "said"), WRONG)
def test_what_is_no_request_is_named_in_one_line(server, path, body, said):
    reply = server.ask(path, json.dumps(body).encode())
    assert reply.status == 422
    assert said in reply.json["detail"]
    assert "\n" not in reply.json["detail"]
    assert reply.json["hint"]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.path)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is no JSON"),
        (b"{", "the body is no JSON"),
        (b"\xff{}", "the body is not UTF-8"),
        (b'{"x": NaN}', "the body holds NaN"),
        (b'{"query": ["a"], "query": ["a"]}', "the body has an object that names 'query' twice"),
        (b'{"a": 1, "x": [{"role": 1, "content": 2, "role": 1}]}', "the body has an object that names 'role' twice"),
        (b'{"x": ' + b"1" * 5000 + b"}", "a number that cannot be read"),
        (b'{"x": "\\ud800"}', "a lone surrogate"),
        (b"[" * 65, "nests deeper than 64"),
        (b'{"x": ' * 100_000, "nests deeper than 64"),
        (b"5", "the body is a JSON object, not 5"),
    ],
)
def test_what_is_no_json_is_422_everywhere(server, protocol, body, said):
    reply = server.ask(protocol.path, body)
    assert (reply.status, said in reply.json["detail"]) == (422, True), reply.text
    assert reply.json["hint"]


def test_half_characters_in_pairs_are_whole(server, value):
    given = json.dumps({"query": [RENDERED.replace("Sort", "\U0001f642")]}).encode()
    assert b"\\ud83d\\ude42" in given
    assert server.ask("/get_reward", given).status == 200


def test_one_bad_conversation_is_named_where_the_shape_has_no_place_for_it(server):
    reply = server.ask("/get_reward", {"query": [RENDERED, " ", RENDERED, "plain words"]})
    assert reply.status == 422
    assert reply.json == {
        "detail": "/get_reward: 2 of 4 conversations have no score: [1] empty_conversation, [3] not_rendered",
        "hint": "send a whole conversation",
        "items": [{"index": 1, "error": "empty_conversation"}, {"index": 3, "error": "not_rendered"}],
    }


def test_ids_that_are_none_are_errors_in_their_place(server, golden):
    good = golden[0]["input_ids"]
    given = [
        good,
        [4],
        [True, *good[1:]],
        good[:-1],
        [*good, 4],
        [999999],
        [-1, 4],
        [2**70],
        ["a"],
        [],
        [2, *good],
        [5, 6, 4],
    ]
    reply = server.ask("/classify", {"input": given})
    assert reply.status == 422
    assert [entry["error"] for entry in reply.json["items"]] == [
        *("empty_conversation", "wrong_type"),
        *("no_reward_token", "reward_token_in_text", "token_without_row", "token_without_row", "wrong_type"),
        *("wrong_type", "empty_conversation", "bos_twice", "not_rendered"),
    ]


# --- the page ---


def test_the_openapi_page_has_every_path_and_its_examples_are_served(server):
    page = ok(server.ask("/openapi.json"))
    assert page["paths"].keys() == {*(one.path for one in PROTOCOLS), "/health", "/ready", "/metrics"}
    for protocol in PROTOCOLS:
        described = page["paths"][protocol.path]["post"]
        assert {"200", "408", "413", "415", "422", "429", "503"} == described["responses"].keys()
        content = described["requestBody"]["content"]["application/json"]
        shape = page["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        assert shape["additionalProperties"] is False
        for example in content["examples"].values():
            ok(server.ask(protocol.path, example["value"]))
    assert server.ask("/docs").status == 200
