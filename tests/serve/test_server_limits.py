"""What a client may not do: too much, too fast, too slowly, without the token. Always 4xx, and others are served."""

import asyncio
import gzip
import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from rmcli.serve.json_body import parse
from rmcli.serve.limits import Limits
from rmcli.serve.protocols.known import PROTOCOLS
from rmcli.serve.protocols.protocol import validated
from rmcli.serve.receive import Receiver
from rmcli.serve.refusal import Refused
from support.serving import WRITTEN_BEFORE, serving, talk

RENDERED = "<|im_start|>user\nSort: 3 1 2<|im_end|>\n<|im_start|>assistant\n1 2 3<|im_end|>\n"
SMALL = Limits(max_body=20_000, max_items=8, max_tokens=100, max_queue=16, receive_seconds=0.4)


@pytest.fixture(scope="module")
def small():
    with serving(WRITTEN_BEFORE, SMALL) as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    with serving(WRITTEN_BEFORE, token="s3cret") as running:
        yield running


def read_all(connection) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def reply_of(connection) -> bytes:
    """One answer with its JSON, on a connection that stays open."""
    found = b""
    while not found.endswith(b"}"):
        found += connection.recv(65536)
    return found


def status_of(content: bytes) -> int:
    return int(content.split()[1])


# --- sizes ---


def test_a_body_that_says_it_is_too_large_is_not_read(small):
    with small.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 20001\r\n\r\n")
        reply = reply_of(connection)
    assert status_of(reply) == 413
    assert b"the body has 20,001 bytes, the limit is 20,000" in reply


def test_a_body_that_does_not_say_is_read_up_to_the_limit(small):
    with small.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.sendall(b"7530\r\n" + b" " * 30_000 + b"\r\n0\r\n\r\n")
        reply = reply_of(connection)
    assert status_of(reply) == 413
    assert b"the limit is 20,000" in reply
    assert small.service.receiver.held == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": [RENDERED] * 9}),
        ("/classify", {"input": [RENDERED] * 9}),
        ("/classify", {"input": [[4]] * 9}),
        ("/v1/score/evaluation", {"messages": [RENDERED] * 9}),
        ("/score", {"conversations": [talk("a", "b")] * 9}),
        ("/score", {"prompt": "a", "responses": ["b"] * 9}),
    ],
)
def test_too_many_conversations(small, path, body):
    reply = small.ask(path, body)
    assert reply.status == 413
    assert reply.json["detail"] == "the request has 9 conversations, the limit is 8"
    assert "--max-items" in reply.json["hint"]


def test_too_many_tokens(small):
    assert small.ask("/get_reward", {"query": [RENDERED] * 4}).status == 200  # 96 tokens
    reply = small.ask("/get_reward", {"query": [RENDERED] * 5})
    assert (reply.status, reply.json["detail"]) == (413, "the request has 120 tokens, the limit is 100")


MANY = 50_000
WRONG = [
    ("/score", {"conversations": [1] * MANY}),
    ("/score", {"conversations": [[1] * MANY]}),
    ("/score", {"prompt": [1] * MANY, "responses": ["a"]}),
    ("/score", {"prompt": "a", "responses": [1] * MANY}),
    ("/score", {"prompt": "a", "responses": [[1] * MANY]}),
    ("/get_reward", {"query": [1] * MANY}),
    ("/classify", {"input": [{}] * MANY}),
    ("/pooling", {"messages": [1] * MANY}),
    ("/v1/score/evaluation", {"messages": [1] * MANY}),
    ("/slime", {"prompt": [1] * MANY, "response": "a"}),
]


@pytest.mark.parametrize(
    ("path", "body"), [*WRONG, *((protocol.path, {f"x{n}": n for n in range(MANY)}) for protocol in PROTOCOLS)]
)
def test_many_wrong_things_are_one_error(path, body):
    """An error of each took a kilobyte, and all of them a gigabyte."""
    (protocol,) = [one for one in PROTOCOLS if one.path == path]
    tracemalloc.start()
    with pytest.raises(Refused) as refused:
        validated(protocol, body, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.status == 422
    assert peak < 40 * MANY


def test_values_are_counted_before_they_are_built():
    parse(b'{"input": [' + b"1," * 90 + b"1]}", max_values=100)
    for many in (b"[" + b"1," * 300 + b"1]", b"[" + b"[]," * 150 + b"[]]", b"[" + b"{}," * 150 + b"{}]"):
        with pytest.raises(Refused) as refused:
            parse(many, max_values=100)
        assert refused.value.status == 413
    text = '{"x": "' + ",[]{}" * 500 + '\\",[{"}'
    assert parse(text.encode(), max_values=5) == json.loads(text)  # what stands in strings is no value
    assert parse(b"[" * 64 + b"]" * 64, max_values=100) == json.loads("[" * 64 + "]" * 64)


def test_a_string_without_an_end_is_no_way_around_the_limits():
    for body in (b'{"x": "' + b"[" * 1000, b'"' + b"\\" * 1001, b'{"x": "\\' + b'"' + b"[" * 1000):
        with pytest.raises(Refused) as refused:
            parse(body, max_values=5000)
        assert refused.value.status == 422


def test_bytes_of_all_requests_together_are_bounded():
    """Four of the largest at the same time; the fifth is told to come again, and what has ended is given back."""
    receiver = Receiver(replace(SMALL, max_body=100))

    def client(*chunks, ends):
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

        async def receive():
            if waiting:
                return waiting.pop(0)
            await ends.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        return receive

    async def whole():
        ends = asyncio.Event()

        async def one():
            async with receiver.body_of(client(b"a" * 60, b"b" * 30, ends=ends), None) as body:
                return len(body)

        held = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert receiver.held == 360
        with pytest.raises(Refused) as refused:
            await one()
        assert refused.value.status == 429
        assert refused.value.headers == {"Retry-After": "1"}
        assert receiver.held == 360
        ends.set()
        assert await asyncio.gather(*held, one()) == [90] * 5
        assert receiver.held == 0

    asyncio.run(whole())


# --- slow clients ---


def test_a_body_that_does_not_come_is_408(small):
    with small.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        started = time.monotonic()
        reply = read_all(connection)
    assert status_of(reply) == 408
    assert b"the request was not sent within 0.4 s: 1 bytes came" in reply
    assert b"larger --receive-timeout" in reply
    assert 0.3 < time.monotonic() - started < 5
    assert small.service.receiver.held == 0


@pytest.mark.parametrize("begun", [b"", b"POST /score HT", b"POST /score HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_do_not_come_are_408(small, begun):
    with small.connect() as connection:
        connection.sendall(begun)
        assert status_of(read_all(connection)) == 408


def test_a_client_that_trickles_is_not_waited_for(small):
    with small.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\n")
        started = time.monotonic()
        while time.monotonic() - started < 5:
            try:
                connection.sendall(b"x")
                time.sleep(0.05)
            except OSError:
                break
    assert time.monotonic() - started < 3


def test_a_connection_is_kept_between_requests_longer_than_a_request_may_take(small):
    ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with small.connect() as connection:
        connection.sendall(ask)
        assert status_of(reply_of(connection)) == 200
        time.sleep(0.6)
        connection.sendall(ask)
        assert status_of(reply_of(connection)) == 200


def test_a_packed_body_is_415(small):
    reply = small.ask("/score", gzip.compress(b"{}"), content_encoding="gzip")
    assert reply.status == 415
    assert reply.json == {"detail": "the body is packed: Content-Encoding 'gzip'", "hint": "send JSON as it is"}
    assert small.ask("/get_reward", {"query": [RENDERED]}, content_encoding="identity").status == 200


# --- slow work ---


@pytest.fixture
def reads_slowly():
    """One thread reads, a second for each request; `read` has those that were."""
    with serving(WRITTEN_BEFORE, replace(Limits(), score_seconds=0.3)) as running:
        read, asked = [], running.service._asked

        def slow(protocol, content):
            read.append(protocol.path)
            time.sleep(1)
            return asked(protocol, content)

        running.service._asked = slow
        running.service._threads = ThreadPoolExecutor(1)
        yield running, read


def test_the_time_of_a_request_is_counted_from_before_it_is_read(reads_slowly):
    running, read = reads_slowly
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: running.ask("/get_reward", {"query": [RENDERED]}), range(3)))
    assert time.monotonic() - started < 0.9
    assert [(reply.status, reply.json["detail"]) for reply in replies] == [(429, "not scored within 0.3 s")] * 3
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies)
    time.sleep(0.9)
    assert read == ["/get_reward"]  # the others were given up before their turn


def test_a_client_that_has_gone_is_not_read_any_more(reads_slowly):
    running, read = reads_slowly
    for _ in range(3):
        with running.connect() as connection:
            connection.sendall(b"POST /slime HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            time.sleep(0.05)
    time.sleep(0.1)
    assert running.service.active == 0
    time.sleep(1)
    assert read == ["/slime"]


# --- the token ---


def test_without_the_token_only_probes_are_answered(guarded):
    assert guarded.ask("/health").status == 200
    assert guarded.ask("/ready").status == 200
    for path in (*(one.path for one in PROTOCOLS), "/metrics", "/openapi.json", "/docs", "/nowhere"):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": ""},
        ):
            reply = guarded.ask(path, b"{}" if path in [one.path for one in PROTOCOLS] else None, **headers)
            assert reply.status == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "s3cret" not in reply.text


def test_with_the_token_all_is_served(guarded):
    right = {"Authorization": "Bearer s3cret"}
    assert guarded.ask("/get_reward", {"query": [RENDERED]}, **right).status == 200
    assert guarded.ask("/metrics", **right).status == 200
    page = guarded.ask("/openapi.json", authorization="bearer s3cret").json
    assert page["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert page["paths"]["/score"]["post"]["security"] == [{"token": []}]
    assert "401" in page["paths"]["/score"]["post"]["responses"]


# --- what is counted ---


def test_metrics_are_prometheus_text_and_clients_cannot_make_them_grow(small):
    for number in range(5):
        small.ask(f"/made-up-{number}")
    small.ask("/score", {"conversations": [{"messages": [], f"made_up_{number}": 1} for number in range(3)]})
    small.ask("/get_reward", {"query": [RENDERED]})
    reply = small.ask("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "made" not in reply.text
    lines = [line for line in reply.text.splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert values['rmcli_requests_total{path="other",status="404"}'] >= 5
    assert values['rmcli_requests_total{path="/get_reward",status="200"}'] >= 1
    assert values['rmcli_conversations_total{result="scored"}'] >= 1
    assert values["rmcli_tokens_total"] >= 24
    assert values["rmcli_batch_seconds_count"] == values['rmcli_batch_seconds_bucket{le="+Inf"}'] >= 1
    assert (values["rmcli_queue_conversations"], values["rmcli_ready"]) == (0, 1)
    named = {line.split()[2] for line in reply.text.splitlines() if line.startswith("# TYPE")}
    bare = {name.split("{")[0] for name in values}
    assert {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in bare} <= named | bare


def test_other_paths_and_verbs_are_4xx_with_a_hint(small):
    for path, body, status, said, hint in (
        ("/nowhere", None, 404, "GET '/nowhere': Not Found", "GET /openapi.json names the paths"),
        ("/score", None, 405, "GET '/score': Method Not Allowed", "ask it by POST"),
        ("/health", b"{}", 405, "POST '/health': Method Not Allowed", "ask it by GET"),
    ):
        reply = small.ask(path, body)
        assert (reply.status, reply.json) == (status, {"detail": said, "hint": hint})
    with small.connect() as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        assert status_of(read_all(connection)) == 400


@pytest.mark.parametrize("before", range(65_530, 65_540))
def test_what_is_counted_does_not_depend_on_where_blocks_end(before):
    start = '["' + "a" * before
    for inside in ('\\"', '\\\\\\"', "[[", '\\\\",["b'):
        text = start + inside + '"' + "]" * (1 + inside.count('",[')) + " "
        assert parse(text.encode(), max_values=3) == json.loads(text)
    with pytest.raises(Refused):
        parse((start + '"' + ",[]" * 9 + "]").encode(), max_values=3)
