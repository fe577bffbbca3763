"""Engines give transformers' ids, skeletons give apply_chat_template's text, threads and shards lose nothing."""

import gzip
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from rmcli import output, threads
from rmcli.config.resolve import parse_source, resolve
from rmcli.errors import ConfigError, RmcliError
from rmcli.installed import install_command
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.rows import sources
from rmcli.rows.map_fns.known import NAMED
from rmcli.tokens import chat_templates, engines
from rmcli.tokens.encode import Encoder
from rmcli.tokens.rendering import Renderer, copies_contents
from rmcli.tokens.tokenizer import load_tokenizer, resolve_reward_token
from support.places import REPOSITORY, write_lines

TINY = ("--preset", "tiny")
ROWS = [{"prompt": f"question {n % 700}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(2000)]


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return load_tokenizer(resolve("tiny").config.model).tokenizer


@pytest.fixture(scope="module")
def llama3(tokenizer_folder) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tokenizer_folder("llama3"))


@pytest.fixture(scope="module")
def transcripts(real_data) -> list:
    with gzip.open(real_data / "hh_rlhf_harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [NAMED["hh_rlhf"].function(row) for row in rows[:400]]


def conversation(*contents: str) -> tuple:
    return tuple(
        {"role": "assistant" if number % 2 else "user", "content": content} for number, content in enumerate(contents)
    )


# --- rendering ---

HEAD = "{% for message in messages %}"


@pytest.mark.parametrize(
    ("template", "copies"),
    [
        (chat_templates.BUILT_IN["chatml"], True),
        (chat_templates.BUILT_IN["llama3"], True),
        (chat_templates.BUILT_IN["plain"], True),
        (
            "{% set all = messages[1:] %}{{ messages[0].content.strip() }}{% for m in all %}{{ m.role }}{% endfor %}",
            True,
        ),
        (HEAD + "{% set c = message['content'] | trim %}{{ '[' + c + ']' }}{% endfor %}", True),
        (
            HEAD + "{% if loop.index0 % 2 and messages | length > 1 %}{{ message.content }}{% endif %}{% endfor %}",
            True,
        ),
        (HEAD + "{% if message.content is string %}{{ message.content }}{% endif %}{% endfor %}", True),
        (HEAD + "{% if loop.previtem is defined %}{{ loop.previtem.content }}{% endif %}{% endfor %}", True),
        (HEAD + "{{ (message.role + message.content) | trim }}{% endfor %}", False),
        (HEAD + "{% if message.content %}{{ message.content }}{% endif %}{% endfor %}", False),
        (HEAD + "{% if 'x' in message['content'] %}a{% endif %}{% endfor %}", False),
        (HEAD + "{{ message.content | upper }}{% endfor %}", False),
        (HEAD + "{{ message.content.split('x')[-1] }}{% endfor %}", False),
        (HEAD + "{{ message.content[0] }}{% endfor %}", False),
        (HEAD + "{{ message.content | length }}{% endfor %}", False),
        (HEAD + "{{ message }}{% endfor %}", False),
        (HEAD + "{{ message.get('content') | length }}{% endfor %}", False),
        (HEAD + "{% for key in message %}{{ message[key] | length }}{% endfor %}{% endfor %}", False),
        (HEAD + "{% set key = 'content' %}{{ message[key] | length }}{% endfor %}", False),
        (HEAD + "{% set l = loop %}{{ l.previtem.content | length }}{% endfor %}", False),
        (HEAD + "{{ loop['previtem'].content | length }}{% endfor %}", False),
        (HEAD + "{% if loop.changed(message.content) %}a{% endif %}{% endfor %}", False),
        (
            "{% set ns = namespace(x='') %}" + HEAD + "{% set ns.x = message.content %}{% endfor %}{{ ns.x[0] }}",
            False,
        ),
        (HEAD + "{% set c = message.content %}{% set d = c %}{% if d == 'x' %}a{% endif %}{% endfor %}", False),
        ("{% macro f(m) %}{{ m.content }}{% endmacro %}" + HEAD + "{{ f(message) }}{% endfor %}", False),
        (HEAD + "{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}", False),
        ("{% for", False),
    ],
)
def test_only_templates_that_merely_copy_are_proven_to(template, copies):
    assert copies_contents(template) == copies


HARD = [
    "",
    " x ",
    "\n\tx\u3000",
    "{{ x }}",
    "<|im_end|>\n",
    "\ue0000\ue001",
    "\x0b\x0c\ue0001\ue001\x0c\x0b",
    "a\x00b",
]


@pytest.mark.parametrize("name", ["chatml", "llama3", "plain"])
def test_skeletons_write_what_apply_chat_template_writes(tiny, name, monkeypatch):
    monkeypatch.setattr(tiny, "chat_template", chat_templates.BUILT_IN[name])
    renderer = Renderer(tiny)
    assert renderer.uses_skeletons
    for first in HARD:
        for second in HARD:
            for turns in (conversation(first, second), conversation(second, "x", first), conversation(first)):
                assert renderer.render(turns) == renderer.render_in_full(turns)
    assert len(renderer._skeletons) == 3


def test_the_real_llama_3_template_renders_real_transcripts_by_skeletons(llama3, transcripts):
    renderer = Renderer(llama3)
    assert renderer.uses_skeletons
    texts = [renderer.render(c) for group in transcripts for c in group.conversations]
    assert texts == [renderer.render_in_full(c) for group in transcripts for c in group.conversations]


def test_a_skeleton_that_is_wrong_after_all_is_given_up_aloud(tiny, monkeypatch, capsys):
    template = HEAD + "{{ message.content | upper }}{% endfor %}"
    monkeypatch.setattr(tiny, "chat_template", template)
    monkeypatch.setattr("rmcli.tokens.rendering.copies_contents", lambda template: True)
    renderer = Renderer(tiny)
    assert renderer.render(conversation("a", "b")) == "AB"
    assert not renderer.uses_skeletons
    assert renderer.render(conversation("c", "d")) == "CD"
    assert "note: the chat template does more than copy the messages" in capsys.readouterr().err


# --- engines ---


@pytest.mark.parametrize("wanted", ["transformers", "gigatoken"])
def test_an_engine_gives_the_ids_of_transformers_on_real_transcripts(llama3, transcripts, wanted):
    engine = engines.TokenEngine(llama3, wanted)
    assert engine.name == wanted
    texts = [Renderer(llama3).render(c) for group in transcripts for c in group.conversations]
    ids = [*engine.encode(texts[:100]), *engine.encode(texts[100:])]
    assert engine.is_settled
    assert engine.name == wanted
    expected = llama3(texts, add_special_tokens=False)["input_ids"]
    assert [row.tolist() for row in ids] == expected
    assert {row.dtype for row in ids} == {np.dtype(np.int32)}


def test_gigatoken_is_used_where_it_is_installed_and_agrees(llama3):
    assert engines.TokenEngine(llama3, "auto").name == "gigatoken"


@pytest.mark.parametrize(
    ("wanted", "begins"), [("gigatoken", "note: gigatoken refuses"), ("auto", "gigatoken refuses")]
)
def test_a_tokenizer_that_gigatoken_refuses_is_encoded_by_transformers_aloud(tiny, capsys, wanted, begins):
    engine = engines.TokenEngine(tiny, wanted)
    assert engine.name == "transformers"
    assert capsys.readouterr().err.startswith(begins)


class Wrong:
    """Encodes as transformers does, but for texts with a z."""

    name, version = "gigatoken", "0.10.0"

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, texts):
        ids = engines.reference_ids(self.tokenizer, texts)
        return [row[:-1] if "z" in text else row for text, row in zip(texts, ids, strict=True)]


def test_an_engine_that_differs_on_the_sample_gives_no_id(tiny, monkeypatch, capsys):
    monkeypatch.setattr(engines, "_Gigatoken", Wrong)
    monkeypatch.setattr(engines, "_probes", lambda tokenizer: ["probe"])
    engine = engines.TokenEngine(tiny, "gigatoken")
    assert engine.name == "gigatoken"
    texts = ["abc", "xyz", *["abc"] * 300]
    ids = engine.encode(texts)
    assert engine.name == "transformers"
    assert [row.tolist() for row in ids] == tiny(texts, add_special_tokens=False)["input_ids"]
    assert "gives other ids than tokenizer(...) for a text of this data" in capsys.readouterr().err


def test_an_engine_that_differs_on_a_probe_is_not_used(tiny, monkeypatch, capsys):
    monkeypatch.setattr(engines, "_Gigatoken", Wrong)
    monkeypatch.setattr(engines, "_probes", lambda tokenizer: ["z"])
    assert engines.TokenEngine(tiny, "auto").name == "transformers"
    assert "for a probe" in capsys.readouterr().err


def test_an_engine_that_differs_later_stops_the_run(tiny, monkeypatch):
    monkeypatch.setattr(engines, "_Gigatoken", Wrong)
    monkeypatch.setattr(engines, "_probes", lambda tokenizer: ["probe"])
    engine = engines.TokenEngine(tiny, "gigatoken")
    engine.encode(["abc"] * 300)
    with pytest.raises(RmcliError, match="gives other ids than transformers for 'xyz'") as error:
        engine.encode(["xyz"] * 600)
    assert "tokenizer_engine=transformers" in error.value.hint


def test_a_tokenizer_whose_call_changes_the_ids_is_encoded_through_it(tiny, monkeypatch, capsys):
    plain = type(tiny)._encode_plus

    def doubled(self, text, **options):
        return plain(self, [part * 2 for part in text], **options)

    monkeypatch.setattr(type(tiny), "_encode_plus", doubled)
    engine = engines.TokenEngine(tiny)
    assert [row.tolist() for row in engine.encode(["ab"])] == tiny(["ab"], add_special_tokens=False)["input_ids"]
    assert "the tokenizer's Rust side gives other ids" in capsys.readouterr().err


def test_a_missing_package_is_one_line_with_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gigatoken", None)
    with pytest.raises(ConfigError, match="tokenizer_engine = 'gigatoken'") as error:
        engines.TokenEngine(tiny, "gigatoken")
    assert install_command("fast") in error.value.hint
    assert engines.TokenEngine(tiny, "auto").name == "transformers"


@pytest.mark.parametrize("engine", ["transformers", "gigatoken"])
def test_both_engines_give_the_same_groups(llama3, transcripts, engine):
    model = resolve("llama3-8b").config.model
    reward = resolve_reward_token(llama3, model, 128256)
    groups = Encoder(reward, 256, "truncate_left", engine_name=engine).encode(transcripts)
    kept = [group for group in groups if not isinstance(group, str)]
    assert len(kept) > 350
    by_call = [
        [*llama3.apply_chat_template([dict(m) for m in c], return_dict=False), reward.reward_token_id]
        for group, tokens in zip(transcripts, groups, strict=True)
        if not isinstance(tokens, str) and not tokens.truncated
        for c in group.conversations
    ]
    ours = [[*g.prefix, *response] for g in kept if not g.truncated for response in g.responses]
    assert len(ours) > 200
    assert ours == by_call


# --- threads ---


def test_batches_come_in_order_and_no_more_than_a_few_wait():
    given = []

    def batches():
        for number in range(40):
            given.append(number)
            yield number

    def encode(number: int) -> str:
        names.add(threading.current_thread().name)
        return f"{number}!"

    names = set()
    seen = []
    for number, encoded in engines.in_order(encode, batches(), 3, lambda: True):
        assert encoded == f"{number}!"
        seen.append(number)
        assert len(given) - len(seen) <= 3 * threads.BATCHES_AHEAD + 1
    assert seen == list(range(40))
    assert names - {threading.current_thread().name}


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_no_more_work_at_once_than_there_are_threads_and_none_of_it_by_the_caller(num_threads):
    """Each batch waits until all threads are busy, so that the most at once is reached every time."""
    all_busy = threading.Barrier(num_threads)
    lock = threading.Lock()
    at_work, most, workers = 0, 0, set()

    def work(number: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
            workers.add(threading.current_thread())
        all_busy.wait(30)
        with lock:
            at_work -= 1
        return -number

    batches = range(4 * num_threads)
    assert list(threads.in_order(work, batches, num_threads)) == [(number, -number) for number in batches]
    assert most == len(workers) == num_threads
    assert threading.main_thread() not in workers


def test_one_thread_takes_a_batch_only_when_the_last_result_has_been_used():
    """A stream that stops early must not have counted rows beyond the last it used."""
    events = []

    def batches():
        for number in range(3):
            events.append(f"taken {number}")
            yield number

    for number, _ in threads.in_order(str, batches(), 1):
        events.append(f"used {number}")
    assert events == [f"{what} {number}" for number in range(3) for what in ("taken", "used")]


def test_a_failure_in_a_thread_reaches_the_caller():
    def encode(number: int) -> int:
        if number == 5:
            raise RmcliError("five")
        return number

    with pytest.raises(RmcliError, match="five"):
        list(engines.in_order(encode, range(40), 2, lambda: True))


def test_of_several_failures_the_first_in_order_reaches_the_caller_after_what_came_before_it():
    """The second batch fails after the third has: what is raised is decided by the order, not by the clock."""
    has_failed = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            assert has_failed.wait(30)
            raise KeyError(number)
        if number > 1:
            has_failed.set()
            raise ValueError(number)
        return number

    seen = []
    with pytest.raises(KeyError, match="1"):
        seen.extend(number for number, _ in threads.in_order(work, range(9), 2))
    assert seen == [0]


def test_tokenizers_start_no_threads_of_their_own_meanwhile(monkeypatch):
    import os

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    seen = [os.environ["TOKENIZERS_PARALLELISM"] for _ in engines.in_order(str, range(3), 1, lambda: True)]
    assert seen == ["false"] * 3
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def files_of(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_any_number_of_threads_writes_the_same_bytes(cli, tmp_path):
    rows = [*ROWS, ROWS[7], {"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q"}, *ROWS[:3]]
    write_lines(tmp_path / "rows.jsonl", rows)
    for number in (1, 2, 5):
        options = ("-o", f"out{number}", "-s", f"data.num_proc={number}")
        assert cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, *options).code == 0
    assert files_of("out1") == files_of("out2") == files_of("out5")
    rows = read_manifest(Path("out5"))["rows"]
    assert (rows["in"], rows["kept"], rows["rejected"], rows["duplicates"]) == (2006, 2000, 2, 4)


def test_the_manifest_names_the_engine(cli, tmp_path):
    import transformers

    write_lines(tmp_path / "rows.jsonl", ROWS[:40])
    assert cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out").code == 0
    assert read_manifest(Path("out"))["tokenizer_engine"] == f"transformers {transformers.__version__}"


def test_prepare_uses_gigatoken_and_says_so_in_the_manifest(cli, tmp_path, llama3, real_data):
    model = tmp_path / "model"
    llama3.save_pretrained(model)
    LlamaConfig(vocab_size=128256).save_pretrained(model)
    base = ("prepare", real_data / "hh_rlhf_harmless.jsonl.gz", "--map-fn", "hh_rlhf", "-p", "llama3-8b")
    base = (*base, "-s", f"model.pretrained_model_name_or_path={model}", "-s", "data.num_proc=2")
    for engine in ("auto", "transformers"):
        result = cli(*base, "-o", engine, "-s", f"data.tokenizer_engine={engine}")
        assert result.code == 0, result.stderr
    fast, slow = (read_manifest(Path(engine)) for engine in ("auto", "transformers"))
    assert fast["tokenizer_engine"].startswith("gigatoken 0.")
    assert slow["tokenizer_engine"].startswith("transformers 5.")
    assert fast["rows"] == slow["rows"]
    assert fast["rows"]["in"] == 1812
    assert fast["shards"] == slow["shards"]


# --- shards ---


def pairs_of(folder: str) -> dict[int, str]:
    found = {}
    for split in SPLITS:
        stored = PackedSplit(Path(folder), split)
        for row in range(len(stored)):
            for group in stored.groups(row):
                found[group.row_id] = split + str([group.prefix.tolist(), [r.tolist() for r in group.responses]])
    return found


def test_shards_hold_every_row_once_on_the_same_side_of_the_split(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", ROWS[:301])
    base = ("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY)
    assert cli(*base, "-o", "whole").code == 0
    together: dict[int, str] = {}
    for number in (1, 2, 3):
        result = cli(*base, "-o", f"shard{number}", "--shard", f"{number}/3")
        assert result.code == 0
        manifest = read_manifest(Path(f"shard{number}"))
        assert manifest["shard"] == f"{number}/3"
        assert manifest["rows"]["in"] == (101 if number == 1 else 100)
        found = pairs_of(f"shard{number}")
        assert {row % 3 for row in found} == {number - 1}
        together |= found
    assert together == pairs_of("whole")
    assert read_manifest(Path("whole"))["shard"] is None


def test_a_shard_has_a_folder_of_its_own(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", ROWS[:40])
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, "--shard", "2/2")
    assert result.stdout == "data/canonical-tiny-shard-2-of-2\n"


@pytest.mark.parametrize("shard", ["3/2", "0/2", "1", "1/0", "x/2"])
def test_a_shard_that_is_none_is_refused(cli, tmp_path, shard):
    write_lines(tmp_path / "rows.jsonl", ROWS[:40])
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, "--shard", shard)
    assert result.code == 2
    assert "shard" in result.stderr.splitlines()[0]


# --- progress ---


def test_the_bar_knows_the_number_of_rows_of_files_and_hub_sets(tmp_path, monkeypatch):
    write_lines(tmp_path / "a.jsonl", ROWS[:40])
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"a": 1}\n\n{broken\n')
    parquet.write_table(pa.Table.from_pylist(ROWS[:7]), tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text('prompt,chosen\n"two\nlines",b\nc,d\nbroken\n')
    (tmp_path / "e.json").write_text(json.dumps(ROWS[:5], indent=1))
    for name, writer in (("f", pa.ipc.new_file), ("g", pa.ipc.new_stream)):
        table = pa.Table.from_pylist(ROWS[:6])
        with writer(str(tmp_path / f"{name}.arrow"), table.schema) as file:
            file.write_table(table)
    local = [str(tmp_path), "tasks:11"]
    number = 40 + 2 + 7 + 3 + 5 + 6 + 6 + 11
    assert sources.count_rows(local, "train") == len(list(sources.read_rows(local, "train"))) == number
    asked = []
    monkeypatch.setattr(sources, "_load_hub", lambda source, split: asked.append((source.path, split)) or ROWS[:9])
    assert sources.count_rows([*local, "org/name"], "test") == number + 9
    assert asked == [("org/name", "test")]
    for unknown in ("memory://a.jsonl", "-", "path=org/name,streaming=true"):
        assert sources.count_rows([parse_source(unknown) if "=" in unknown else unknown], "train") is None


def test_prepare_draws_its_bar_on_a_terminal(tmp_path):
    """A JSON array, whose rows are counted first; stderr is a terminal, stdout is not."""
    (tmp_path / "rows.json").write_text(json.dumps(ROWS * 5))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rmcli", "prepare", "rows.json", "--map-fn", "canonical", "--preset", "tiny"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)}
    environment = {name: value for name, value in environment.items() if name not in ("NO_COLOR", "CI")}
    with subprocess.Popen(
        [*command, "--no-audit", "-o", "out"], stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 4096):
                shown += part
        assert process.wait() == 0, shown.decode()
        assert process.stdout.read() == b"out\n"
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"prepare .* [1-9]\d*/10000 +[\d,]+ rows/s +0:00:\d\d", text)
    assert "10,000 in" in text


def test_the_bar_shows_rows_per_second_and_the_time_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with output.progress("prepare", 1000, unit="rows") as progress:
        for _ in range(4):
            progress.advance(100)
            time.sleep(0.15)
    shown = sys.stderr.getvalue()
    assert "400/1000" in shown
    assert re.search(r"[0-9,]+ rows/s", shown)
    assert re.search(r"0:00:0[0-9]", shown)
