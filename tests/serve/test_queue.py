"""The queue: batches of many requests, each conversation with its own score; what is too much comes again later."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from rmcli import RewardModel
from rmcli.records import TokenGroup
from rmcli.scorer.load import configuration_of, load_encoder, load_scorer
from rmcli.serve.limits import Limits
from rmcli.serve.metrics import Metrics
from rmcli.serve.queue import Queue
from rmcli.serve.reading import Reader
from rmcli.serve.refusal import Refused
from rmcli.serve.shared import shared_prompts
from support.serving import WRITTEN_BEFORE, Watched, ask, serving, talk, with_golden

FRONT, MIDDLE = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
EMPTY = np.empty(0, dtype=np.int32)


@pytest.fixture(scope="module")
def scorer():
    config = configuration_of(WRITTEN_BEFORE).config
    return load_scorer(config, load_encoder(config))


@pytest.fixture(scope="module")
def reader(scorer):
    return Reader(scorer.encoder)


def side(*ids: int) -> TokenGroup:
    return TokenGroup(EMPTY, (np.array(ids, dtype=np.int32),), comparisons=())


def rendered(body):
    return FRONT + body["prompt"] + MIDDLE + body["responses"][0]


def run_in(queue, *work):
    """What each coroutine of `work` came to, run beside the queue."""

    async def whole():
        scoring = asyncio.create_task(queue.run())
        try:
            return await asyncio.gather(*(one() for one in work), return_exceptions=True)
        finally:
            scoring.cancel()
            queue.close()

    return asyncio.run(whole())


# --- prompts shared ---


def test_what_conversations_begin_with_is_found_among_all_of_a_batch():
    prompt, other = range(10, 40), range(50, 70)
    sides = [side(*prompt, 1), side(*other, 1), side(*prompt, 2), side(*other, 2, 2), side(*prompt, 3), side(99)]
    groups = shared_prompts(sides)
    assert sorted(map(sorted, groups)) == [[0, 2, 4], [1, 3], [5]]


def test_a_common_opening_does_not_keep_longer_prompts_from_being_shared():
    opening = range(10, 20)
    sides = [side(*opening, 70 + prompt, *range(100, 150), reply) for prompt in range(3) for reply in range(3)]
    groups = shared_prompts([*sides, side(*opening, 60)])
    assert sorted(map(sorted, groups)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_shared_scores_are_those_of_each_alone(scorer, reader):
    sides = reader.answers("Sort: 3 1 2 0 5 4", ["0 1 2", "5 4 3", "0 1 2", "no"]) + reader.conversations(
        [talk("Sort: 1", "1"), talk("Copy: 1", "2")]
    )
    queue = Queue(scorer, 100, Metrics())
    (scores,) = run_in(queue, lambda: queue.score(sides, 60))
    alone = [scorer.score_sides([[one]])[0][0] for one in sides]
    assert [one.value for one in scores] == pytest.approx([one.value for one in alone], abs=1e-6)
    assert len({one.value for one in alone}) == 5  # two answers are alike


# --- batches ---


def test_what_waits_goes_together_and_errors_keep_their_place(scorer, reader):
    queue = Watched(scorer, 100, Metrics(), seconds=0.05)
    sides = [reader.conversations([talk("Sort: 2 1", str(number))]) for number in range(6)]
    found = run_in(queue, *(lambda one=one: queue.score(["overlong", *one, "wrong_type"], 60) for one in sides))
    assert [[score.error for score in scores] for scores in found] == [["overlong", None, "wrong_type"]] * 6
    wanted = [score.value for (score,) in scorer.score_sides(sides)]
    assert [scores[1].value for scores in found] == pytest.approx(wanted, abs=1e-6)
    assert sum(queue.batches) == 6
    assert len(queue.batches) <= 2


def test_a_batch_holds_one_forward_and_a_large_request_lets_others_pass(scorer, reader):
    (one,) = reader.conversations([talk("Sort: 2 1", "1 2")])
    narrow = replace(scorer, runner=replace(scorer.runner, capacity=4 * one.num_tokens))
    queue = Watched(narrow, 100, Metrics(), seconds=0.02)
    ended = []

    async def ask_for(count):
        await queue.score([one] * count, 60)
        ended.append(count)

    run_in(queue, lambda: ask_for(40), lambda: ask_for(2), lambda: ask_for(3))
    assert ended[-1] == 40
    assert max(queue.batches) == 4
    assert sum(queue.batches) == 45


def test_a_batch_that_fails_is_told_to_its_requests_alone(scorer, reader):
    queue = Watched(scorer, 100, Metrics(), fails=(1,))
    sides = reader.conversations([talk("Sort: 2 1", "1 2")])

    async def later():
        await asyncio.sleep(0.2)
        return await queue.score(sides, 60)

    first, second = run_in(queue, lambda: queue.score(sides, 60), later)
    assert isinstance(first, RuntimeError)
    assert second[0].error is None


# --- memory that is short ---


class Short(Watched):
    """A device on which so many tokens fit."""

    def __init__(self, *arguments, fits, error=torch.OutOfMemoryError, **options):
        super().__init__(*arguments, **options)
        self._fits, self._error = fits, error

    def _forward(self, sides):
        if sum(one.num_tokens for one in sides) > self._fits:
            self.batches.append(-len(sides))
            raise self._error("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super()._forward(sides)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_that_does_not_fit_in_memory_is_scored_in_smaller_ones(scorer, reader, capsys, error):
    sides = reader.answers("Sort: 3 1 2", [str(number) for number in range(8)])
    queue = Short(scorer, 100, Metrics(), fits=2 * sides[0].num_tokens, error=error)
    again = Short(scorer, 100, Metrics(), fits=2 * sides[0].num_tokens, error=error)
    found = run_in(queue, lambda: queue.score(sides[:5], 60), lambda: queue.score(sides[5:], 60))
    assert queue.batches == [-8, -4, 2, 2, -4, 2, 2]
    wanted = [scorer.score_sides([[one]])[0][0].value for one in sides]
    assert [one.value for scores in found for one in scores] == pytest.approx(wanted, abs=1e-6)
    said = capsys.readouterr().err
    assert said.count("out of memory in a batch of") == 1
    assert "data.max_packed_length" in said
    run_in(again, lambda: again.score(sides[:1], 60))
    assert capsys.readouterr().err == ""


def test_a_conversation_that_alone_does_not_fit_is_told_to_its_request_and_to_no_other(scorer, reader):
    long = reader.answers("Sort: " + "3 1 2 " * 20, ["1 2 3"])
    sides = reader.answers("Sort: 2 1", ["1 2", "2 1"])
    queue = Short(scorer, 100, Metrics(), fits=60)
    given = (sides, sides + long, sides[1:])
    first, refused, last = run_in(queue, *(lambda one=one: queue.score(one, 60) for one in given))
    assert queue.batches[0] == -6  # they were one batch
    wanted = [scorer.score_sides([[one]])[0][0].value for one in sides]
    assert [one.value for one in [*first, *last]] == pytest.approx([*wanted, wanted[1]], abs=1e-6)
    assert isinstance(refused, Refused)
    assert refused.status == 413


def test_what_does_not_fit_in_memory_is_a_413_in_one_line():
    body = {"prompt": "Sort: " + "3 1 2 " * 20, "responses": ["1 2 3"]}
    with serving(WRITTEN_BEFORE, queue=lambda *given: Short(*given, fits=60)) as running:
        for path, asked in (("/score", body), ("/get_reward", {"query": [rendered(body)]})):
            reply = running.ask(path, asked)
            assert reply.status == 413
            assert reply.json == {
                "detail": "a conversation of 139 tokens does not fit in the server's memory",
                "hint": "shorten it, or serve the model where there is more memory",
            }
        assert running.ask("/score", {"prompt": "Sort: 2 1", "responses": ["1 2"]}).status == 200


def test_golden_conversations_that_no_longer_fit_in_memory_are_not_ready(tmp_path):
    fits = [10_000]

    class Shrinking(Short):
        def _forward(self, sides):
            self._fits = fits[0]
            return super()._forward(sides)

    with serving(with_golden(tmp_path / "model"), queue=lambda *given: Shrinking(*given, fits=0)) as running:
        assert running.ask("/ready").status == 200
        fits[0], running.service.ready._since = 5, float("-inf")
        until = time.monotonic() + 10
        while running.ask("/ready").status == 200:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert running.ask("/ready").status == 503


# --- too much, too late ---


def test_more_than_may_wait_is_429_with_the_seconds_to_wait(scorer, reader):
    queue = Watched(scorer, 10, Metrics(), seconds=0.2)
    (one,) = reader.conversations([talk("Sort: 2 1", "1 2")])

    async def too_many():
        await asyncio.sleep(0.05)  # the first is on the model, the second waits
        return await queue.score([one] * 6, 60)

    async def second():
        await asyncio.sleep(0.02)
        return await queue.score([one] * 5, 60)

    first, other, refused = run_in(queue, lambda: queue.score([one] * 9, 60), second, too_many)
    assert (len(first), len(other)) == (9, 5)
    assert isinstance(refused, Refused)
    assert refused.status == 429
    assert refused.detail == "5 conversations wait and 6 came, the limit is 10"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60


def test_what_is_not_scored_in_time_is_429_and_is_not_scored_any_more(scorer, reader):
    queue = Watched(scorer, 100, Metrics(), seconds=0.3)
    (one,) = reader.conversations([talk("Sort: 2 1", "1 2")])

    async def impatient():
        await asyncio.sleep(0.05)
        return await queue.score([one] * 5, 0.1)

    first, refused = run_in(queue, lambda: queue.score([one], 60), impatient)
    assert len(first) == 1
    assert (refused.status, refused.detail) == (429, "not scored within 0.1 s")
    assert queue.batches == [1]


def test_a_client_that_has_gone_is_not_scored_any_more():
    made = []

    def slow(*arguments):
        made.append(Watched(*arguments, seconds=0.3))
        return made[0]

    body = b'{"prompt": "Sort: 2 1", "responses": ["1 2"]}'
    with serving(WRITTEN_BEFORE, queue=slow) as running:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask, running.port, "/score", body)
            time.sleep(0.1)
            with running.connect() as connection:
                head = f"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                time.sleep(0.05)
            assert first.result().status == 200
        time.sleep(0.1)
    assert made[0].batches == [1]


def test_many_clients_get_their_own_scores():
    model = RewardModel.load(WRITTEN_BEFORE)
    asked = [[f"{number} {count}" for count in range(number % 7 + 1)] for number in range(60)]
    wanted = [[score.value for score in model.score_responses(f"Sort: {n}", some)] for n, some in enumerate(asked)]
    with serving(WRITTEN_BEFORE, Limits()) as running, ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(
                lambda number: running.ask("/score", {"prompt": f"Sort: {number}", "responses": asked[number]}),
                range(60),
            )
        )
        batches = running.service.metrics
    found = [[one["value"] for one in reply.json["scores"]] for reply in replies]
    assert found == [pytest.approx(some, abs=1e-6) for some in wanted]
    assert batches.batch_conversations == sum(map(len, asked))
