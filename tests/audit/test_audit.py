"""`rmcli audit`: figures by hand, planted contradictions and leaks, the page, and real data."""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from rmcli.audit import screen
from rmcli.audit.figures import near_duplicates
from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.run import run
from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.installed import install_command
from rmcli.packs.writer import PackWriter
from rmcli.records import Comparison, Pack, TokenGroup
from support.networks import random_group
from support.places import write_lines

TINY = resolve("tiny").config.model


def group(prompt: list[int], *responses: list[int], **values) -> TokenGroup:
    arrays = [np.asarray(ids, dtype=np.int32) for ids in (prompt, *responses)]
    return TokenGroup(arrays[0], tuple(arrays[1:]), **values)


def audited(folder: Path, train: list[list[TokenGroup]], held_out=(), capacity: int = 20, sources=("a.jsonl",)):
    """Figures of packs written as they are. Their ids are no tokenizer's, so excerpts are ids."""
    with PackWriter(folder, overwrite=True) as writer:
        writer.add_packs("train", [Pack(tuple(groups)) for groups in train])
        writer.add_packs("eval", [Pack(tuple(groups)) for groups in held_out])
        manifest = {"preset": "tiny", "tokenizer_sha256": "another", "sources": list(sources)}
        writer.finish({**manifest, "config": {"data": {"max_packed_length": capacity}}})
    return run(folder, TINY)


def test_copies_that_a_weight_makes_are_listed_once(tmp_path):
    """At the same place of several packs, with equal values: only the row's number tells them apart."""
    copied = group([1, 2], [3, 4, 9], [9], row_id=0)
    other = group([7, 2], [3, 9], [9], row_id=1)
    extremes = audited(tmp_path / "set", [[copied, other], [copied], [copied]])["extremes"]
    for name, expected in (("longest", [(0, 0), (1, 0)]), ("longest_ratio", [(0, 1), (1, 1)])):
        assert [(entry["row_id"], entry["conversation"]) for entry in extremes[name]] == expected


def test_figures_by_hand(tmp_path):
    # conversations of 5, 3 | 6, 9 | 4, 5 tokens; prompts of 2, 4, 3; packs of 6 + 11 and 6 of 20 tokens
    first = group([1, 2], [3, 4, 9], [9], row_id=0)
    second = group([1, 2, 3, 4], [5, 9], [6, 7, 8, 7, 9], row_id=1)
    third = group([5, 6, 7], [9], [8, 9], row_id=2, source_id=1, comparisons=(Comparison(0, 1, 0.5),))
    sources = ("a.jsonl", {"path": "x/b.jsonl", "name": "b", "weight": 2.0})
    figures = audited(tmp_path / "set", [[first, second]], [[third]], sources=sources)
    train, held_out = figures["splits"]["train"], figures["splits"]["eval"]
    conversation = {"number": 4, "mean": 5.75, "min": 3, "p10": 3, "p50": 5, "p90": 9, "p99": 9, "max": 9}
    assert train["lengths"]["conversation"] == {
        **conversation,
        "histogram": {"bin_tokens": 1, "counts": [0, 0, 0, 1, 0, 1, 1, 0, 0, 1]},
    }
    assert train["lengths"]["prompt"]["mean"] == 3
    assert train["lengths"]["response"]["mean"] == 11 / 4
    assert held_out["lengths"]["conversation"]["mean"] == 4.5
    assert train["prompt_share"] == 12 / 23  # 2 + 2 + 4 + 4 of the tokens of the four conversations
    assert train["sharing_ratio"] == 23 / 17
    assert (train["packs"], train["tokens"], train["pack_fill"]) == (1, 17, 0.85)
    assert train["pack_fill_histogram"].index(1) == 17  # the bin from 0.85 to 0.90
    assert (held_out["groups"], held_out["pack_fill"]) == (1, 0.3)
    a, b = figures["sources"]
    assert a == {
        "source": "a.jsonl",
        "groups": 2,
        "ties": 0,
        "longer_wins": 1,
        "shorter_wins": 1,
        "same_length": 0,
        "longer_wins_share": 0.5,
    }
    assert (b["source"], b["groups"], b["ties"], b["longer_wins_share"]) == ("b", 1, 1, None)
    last_one, last_four, *_ = train["endings"]
    assert (last_one["share"], last_one["text"]) == (1.0, "9")
    assert last_four["share"] == 0.25
    assert figures["duplicates"] == {"groups": 0, "in_both_splits": 0, "rows": []}
    longest, *_ = figures["extremes"]["longest"]
    assert (longest["row_id"], longest["tokens"], longest["conversation"]) == (1, 9, 1)
    assert (longest["before_reply"], longest["reply"]) == ("1 2 3 4", "6 7 8 7 9")
    ratio, *_ = figures["extremes"]["longest_ratio"]
    assert (ratio["row_id"], ratio["longest_reply"], ratio["shortest_reply"], ratio["reply"]) == (0, 3, 1, "9")
    assert [entry["row_id"] for entry in figures["extremes"]["shortest_reply"]][:2] == [0, 2]


def test_pairs_preferred_both_ways_are_found_and_ties_are_not(tmp_path):
    a, b, c = [3, 9], [4, 9], [5, 9]
    rows = [
        group([1, 2], a, b, row_id=0),
        group([1, 2], b, a, row_id=1),  # the opposite of row 0
        group([1, 7], b, a, row_id=2),  # another prompt
        group([1, 2], a, c, row_id=3),
        group([1, 2], a, c, row_id=4, comparisons=(Comparison(0, 1, 0.5),)),  # a tie contradicts nobody
        group([1, 2], b, c, row_id=5),
        group([1, 2], b, c, row_id=6, comparisons=(Comparison(0, 1, 0.1),)),  # c is better: the opposite of row 5
    ]
    figures = audited(tmp_path / "set", [rows], capacity=60)
    assert figures["contradictions"] == {
        "pairs_of_conversations": 2,
        "comparisons": 4,
        "rows": [[0, 1], [5, 6]],
    }
    assert "rows 0 and 1, 5 and 6" in figures["findings"][0]


def test_a_four_way_group_is_compared_pair_by_pair(tmp_path):
    a, b, c, d = [3, 9], [4, 9], [5, 9], [6, 9]
    order = (Comparison(0, 1), Comparison(1, 2), Comparison(2, 3), Comparison(0, 3))
    rows = [group([1, 2], a, b, c, d, row_id=0, comparisons=order), group([1, 2], d, a, row_id=1)]
    figures = audited(tmp_path / "set", [rows[:1], rows[1:]])
    assert figures["contradictions"]["rows"] == [[0, 1]]
    assert figures["contradictions"]["comparisons"] == 2
    cycle = (Comparison(0, 1), Comparison(1, 0), Comparison(1, 2))
    figures = audited(tmp_path / "set", [[group([1], a, b, c, row_id=7, comparisons=cycle)]])
    assert figures["contradictions"] == {"pairs_of_conversations": 1, "comparisons": 2, "rows": [[7]]}


def test_a_conversation_is_the_same_wherever_its_prompt_is_cut(tmp_path):
    # [1 2 3 9] against [1 2 4 9], then against [1 5 9]: the shared prefix has 2 tokens, then 1
    rows = [
        group([1, 2], [3, 9], [4, 9], row_id=0),
        group([1], [2, 4, 9], [5, 9], row_id=1),
        group([1], [5, 9], [2, 4, 9], row_id=2),
    ]
    figures = audited(tmp_path / "set", [rows])
    assert figures["contradictions"]["rows"] == [[1, 2]]


def test_duplicates_are_equal_ids_in_equal_order_also_across_splits(tmp_path):
    rows = [
        group([1, 2], [3, 9], [4, 9], row_id=0),
        group([1, 2], [3, 9], [4, 9], row_id=5),
        group([1, 2], [4, 9], [3, 9], row_id=6),
        group([1, 2], [3, 9], [4, 8, 9], row_id=7),
    ]
    figures = audited(tmp_path / "set", [rows], [[group([1, 2], [3, 9], [4, 9], row_id=8)]], capacity=40)
    assert figures["duplicates"] == {"groups": 2, "in_both_splits": 1, "rows": [[0, 5, 8]]}
    assert any("1 groups are in train and in eval" in finding for finding in figures["findings"])


def test_conversation_hashes_are_equal_just_where_the_ids_are():
    generator = np.random.default_rng(0)
    groups = [random_group(generator, prefix, (2, 1, 2)) for prefix in (0, 1, 2, 3)]
    # few different ids, so that many short conversations come out equal
    small = [group((g.prefix % 3).tolist(), *((r % 3).tolist() for r in g.responses)) for g in groups * 8]
    pack = FlatPacks.from_columns(
        {
            "input_ids": np.concatenate([ids for g in small for ids in (g.prefix, *g.responses)]),
            "prefix_lengths": np.array([len(g.prefix) for g in small]),
            "num_responses": np.array([3] * len(small)),
            "response_lengths": np.array([len(r) for g in small for r in g.responses]),
            "row_ids": np.arange(len(small)),
            "source_ids": np.zeros(len(small), dtype=int),
            "num_comparisons": np.zeros(len(small), dtype=int),
            **{f"comparison_{name}": np.empty(0, dtype=int) for name in ("first", "second", "labels")},
        }
    )
    texts = [(*g.prefix.tolist(), *r.tolist()) for g in small for r in g.responses]
    hashes = pack.conversation_hashes().tolist()
    assert len(set(hashes)) == len(set(texts)) < len(texts)
    assert len(set(zip(texts, hashes, strict=True))) == len(set(texts))
    for length in (1, 3, 6):
        expected = [[-1] * (length - len(text)) + list(text[-length:]) for text in texts]
        assert pack.endings(length).tolist() == expected


def jaccard(a: list[int], b: list[int], common: set) -> float:
    one, other = ({tuple(ids[n : n + 3]) for n in range(len(ids) - 2)} - common for ids in (a, b))
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("most_at_once", [1, 100, 1_000_000])
def test_near_duplicates_are_those_of_a_full_comparison(most_at_once, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_AT_ONCE", most_at_once)
    generator = np.random.default_rng(1)
    held_out = [generator.integers(0, 30, generator.integers(8, 40)).tolist() for _ in range(60)]
    train = []
    for _ in range(300):
        ids = list(held_out[generator.integers(60)])
        for _ in range(generator.integers(0, 6)):
            ids[generator.integers(len(ids))] = int(generator.integers(30))
        train.append(ids)

    def shingles(prompts: list[list[int]]) -> near_duplicates.Shingles:
        lengths = np.array([len(ids) for ids in prompts])
        return near_duplicates.shingles_of(np.concatenate(prompts), np.cumsum(lengths) - lengths, lengths)

    index = near_duplicates.PromptIndex(shingles(held_out), np.empty(0, dtype=np.uint64))
    alike = index.find(shingles(train))
    listed = zip(alike.mine.tolist(), alike.theirs.tolist(), alike.similarity.tolist(), strict=True)
    found = {(mine, theirs): value for mine, theirs, value in listed}
    assert len(found) == len(alike.mine)
    expected = {
        (mine, theirs): value
        for mine, one in enumerate(train)
        for theirs, other in enumerate(held_out)
        if (value := jaccard(one, other, set())) >= 0.6
    }
    assert 100 < len(expected) < 300
    assert len(found) <= alike.comparisons < 300 * 60  # most are told apart without being compared
    assert found == pytest.approx(expected)

    row_ids = generator.permutation(300)  # of equal ones the first row counts
    best: dict[int, tuple[int, float]] = {}
    for (mine, theirs), value in sorted(found.items(), key=lambda item: (-item[1], row_ids[item[0][0]])):
        best.setdefault(theirs, (mine, value))
    assert {theirs: (mine, value) for mine, theirs, value in alike.best(row_ids)} == best


@pytest.mark.parametrize("cut", [10, 10**6])
def test_neither_threads_nor_how_much_is_read_at_once_change_a_figure(tmp_path, monkeypatch, cut):
    """But for the cut, which falls between what is read at once."""
    generator = np.random.default_rng(2)
    prompts = [generator.integers(0, 40, generator.integers(9, 30)).tolist() for _ in range(20)]
    rows = []
    for number in range(120):
        prompt = list(prompts[number % 20])
        prompt[int(generator.integers(len(prompt)))] = int(generator.integers(40))
        replies = [generator.integers(40, 90, generator.integers(2, 12)).tolist() for _ in range(2)]
        rows.append(group(prompt, *replies, row_id=number))
    packs = [rows[start : start + 3] for start in range(0, 120, 3)]
    audited(tmp_path / "set", packs[:30], packs[30:], capacity=200)
    monkeypatch.setattr("rmcli.audit.figures.near_prompts.MAX_COMPARISONS", cut)
    expected = {}
    for at_once in (1, 500, 2**17):
        monkeypatch.setattr("rmcli.audit.figures.split.TOKENS_AT_ONCE", at_once)
        for num_threads in (1, 3):
            figures = run(tmp_path / "set", TINY, num_threads=num_threads)
            near = figures["near_duplicate_prompts"]
            assert near["pairs"] > (10 if cut > 10 else 0)
            assert near["train_prompts_compared"] == 90 or cut == 10
            assert figures == expected.setdefault(at_once if cut == 10 else None, figures)


PLANTED = "Please explain to a child of seven how the tide in the harbour follows the moon, and why it comes twice"
CHANGED = PLANTED.replace("harbour", "channel")
TOPICS = (
    "volcano",
    "library",
    "kangaroo",
    "parliament",
    "oxygen",
    "violin",
    "glacier",
    "harvest",
    "puzzle",
    "desert",
)


def held_out_and_train(system: str = "") -> list[dict]:
    """Rows about ten topics, and one prompt that differs in a word from another that lies in the other split."""
    rows = [
        {"prompt": f"Tell me something about the {topic} that {n} people in {topic}s know", "n": n}
        for n, topic in enumerate(TOPICS)
    ]
    rows += [{"prompt": PLANTED, "n": 10}, {"prompt": CHANGED, "n": 11}]
    return [{"prompt": system + row["prompt"], "chosen": f"yes {row['n']}", "rejected": "no"} for row in rows]


def test_a_changed_word_is_found_between_the_splits_and_other_prompts_are_not(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", held_out_and_train())
    from rmcli.tokens.encode import is_held_out

    def side(text: str, seed: int) -> bool:
        return is_held_out(({"role": "user", "content": text},), 0.4, seed)

    seed = next(seed for seed in range(100) if side(PLANTED, seed) and not side(CHANGED, seed))
    settings = ("-s", "data.eval_fraction=0.4", "-s", f"data.eval_seed={seed}")
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "out", "--json", *settings)
    near = json.loads(result.stdout)["audit"]["near_duplicate_prompts"]
    (found,) = near["listed"]
    assert (found["eval_row_id"], found["train_row_id"], near["pairs"]) == (10, 11, 1)
    assert 0.6 <= found["similarity"] < 1
    assert "harbour follows" in found["eval_prompt_end"] or "it comes twice" in found["eval_prompt_end"]
    assert "eval prompts are nearly a training prompt" in result.stderr


def test_a_template_that_all_prompts_share_makes_no_two_of_them_alike(tmp_path):
    template = list(range(100, 160))
    generator = np.random.default_rng(2)

    def prompts(number: int, first_row: int) -> list[TokenGroup]:
        return [
            group(template + generator.integers(0, 90, 12).tolist(), [1, 9], [2, 9], row_id=first_row + n)
            for n in range(number)
        ]

    train, held_out = prompts(30, 0), prompts(6, 30)
    figures = audited(tmp_path / "set", [train], [held_out], capacity=4000)
    assert figures["near_duplicate_prompts"]["eval_prompts_compared"] == 6
    assert figures["near_duplicate_prompts"]["pairs"] == 0
    assert jaccard(train[0].prefix.tolist(), held_out[0].prefix.tolist(), set()) > 0.6  # but for the template


def test_prompts_that_are_not_compared_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("rmcli.audit.figures.near_prompts.MAX_EVAL_PROMPTS", 2)
    monkeypatch.setattr("rmcli.audit.figures.split.TOKENS_AT_ONCE", 1)
    packs = [[group(list(range(n, n + 9)), [1, 99], [2, 99], row_id=n)] for n in (10, 30, 50)]
    short = [group([1, 2, 3], [1, 99], [2, 99], row_id=60)]
    near = audited(tmp_path / "set", [packs[0]], [short, *packs])["near_duplicate_prompts"]
    assert (near["eval_prompts"], near["eval_prompts_compared"], near["eval_prompts_found"]) == (4, 1, 1)
    monkeypatch.setattr("rmcli.audit.figures.near_prompts.MAX_COMPARISONS", 1)
    figures = audited(tmp_path / "set2", [packs[0], packs[1]], packs)
    near = figures["near_duplicate_prompts"]
    assert (near["train_prompts"], near["train_prompts_compared"], near["eval_prompts_found"]) == (2, 1, 1)
    assert "with the first 1 of 2 training prompts" in screen.summary_lines(figures)[-1]


def test_shortcuts_and_losses_are_said_in_words(tmp_path):
    longer = [group([1, n], [3, 3, 8, 9], [4, 9], row_id=n) for n in range(40)]
    figures = audited(tmp_path / "set", [longer], capacity=400)
    assert figures["sources"][0]["longer_wins_share"] == 1.0
    assert any("the longer answer wins 100% of the comparisons of a.jsonl" in text for text in figures["findings"])
    assert any("100% of the better and 0% of the worse answers end in" in text for text in figures["findings"])
    mixed = [group([1, n], *([[3, 3, 9], [4, 9]][:: 1 if n % 2 else -1]), row_id=n) for n in range(40)]
    assert audited(tmp_path / "set", [mixed], capacity=400)["findings"] == []
    few = audited(tmp_path / "set", [longer[:28]], [mixed[:1]], capacity=400)["findings"]
    assert few == ["eval has 1 groups: the standard error of an accuracy on them is up to 0.50; raise "
                   "data.eval_fraction"]  # fmt: skip
    no_prompt = audited(tmp_path / "set", [[group([], [3, 9], [4, 9])]])["findings"]
    assert no_prompt == ["train: 1 of 1 groups have answers that share no prompt: check the map function"]


GOOD = [{"prompt": f"question {n}", "chosen": f"right {n} <b>&", "rejected": "wrong"} for n in range(40)]
PREPARE = ("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "-o", "out")


@pytest.fixture
def prepared(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [*GOOD, GOOD[0]])
    assert cli(*PREPARE, "--no-audit").code == 0
    return tmp_path / "out"


def test_prepare_prints_the_audit_unless_told_not_to(cli, prepared):
    result = cli(*PREPARE, "--overwrite")
    assert "does the longer answer win?" in result.stderr
    assert "duplicates by token ids: 0 groups, 0 in both splits" in result.stderr
    assert "rows left out: 1 duplicate" in result.stderr
    assert result.stdout == "out\n"
    audit = result.stderr.split("lengths: so many")[1].split("next: ")[0]
    assert len(audit.splitlines()) < 25
    without = cli(*PREPARE, "--overwrite", "--no-audit")
    assert "does the longer answer win?" not in without.stderr
    assert "audit" not in json.loads(cli(*PREPARE, "--overwrite", "--no-audit", "--json").stdout)


def test_a_row_stands_once_in_a_list_by_its_most_extreme_answer(tmp_path):
    even = group([1, 2], [3, 9], [4, 9], row_id=0)
    long_second = group([1, 3], [3, 9], [4, 5, 6, 9], row_id=1)
    extremes = audited(tmp_path / "set", [[even, long_second]])["extremes"]
    found = {name: [(entry["row_id"], entry["conversation"]) for entry in extremes[name]] for name in extremes}
    assert found["longest"] == [(1, 1), (0, 0)]
    assert found["shortest_reply"] == [(0, 0), (1, 0)]
    assert found["longest_ratio"] == [(1, 0)]  # answers of equal lengths do not differ


def test_the_account_is_the_last_line_and_paths_are_as_typed(cli, prepared):
    lines = cli("audit", "out").stdout.splitlines()
    assert lines[-1] == "rows: 41 in = 40 kept + 0 rejected + 1 duplicates + 0 not taken"
    assert any(line.split()[:2] == ["rows.jsonl", "40"] for line in lines)


def test_excerpts_are_cut_at_words():
    text = "one two three four"
    assert (screen.cut_end(text, 9), screen.cut_start(text, 9)) == ("one two", "four")
    assert (screen.cut_end(text, 7), screen.cut_start(text, 10)) == ("one two", "three four")
    assert (screen.cut_end(text, 18), screen.cut_start(text, 18)) == (text, text)
    assert (screen.cut_end("x" * 30, 9), screen.cut_start("日" * 30, 9)) == ("x" * 9, "日" * 9)


def test_the_page_is_made_for_phones_and_dark_screens(cli, prepared):
    cli("audit", "out", "--report", "one.html")
    text = Path("one.html").read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<table>") == text.count('<div class="wide"><table>') > 5
    assert ".wide { overflow-x: auto; }" in text
    figures = re.findall(r"<td( class=\"number\")?>([^<]*)</td>", text)
    assert len(figures) > 100
    for marked, cell in figures:
        assert bool(marked) == bool(re.fullmatch(r"-|[\d.,]+%?(/[\d.,]+)?", cell)), cell


def test_audit_answers_on_stdout_and_in_json(cli, prepared):
    shown = cli("audit", "out")
    assert shown.code == 0, shown.stderr
    assert "rows left out: 1 duplicate" in shown.stdout
    assert "right 10 <b>&" in shown.stdout  # text, not ids: the reply of one of the longest
    assert "look at:" in shown.stdout
    assert shown.stderr == "next: rmcli train --preset tiny --data out\n"
    figures = json.loads(cli("audit", "out", "--json").stdout)
    assert figures["rows_left_out"] == {"duplicate": 1}
    assert figures["sources"][0]["longer_wins"] == 40
    assert figures["splits"]["train"]["replies_without_header"] == 0
    assert [len(rows) for rows in figures["extremes"].values()] == [10, 10, 10]
    longest = figures["extremes"]["longest"][0]
    assert (longest["before_reply"], longest["reply"]) == (
        f"user question {longest['row_id']}",
        f"right {longest['row_id']} <b>&",
    )
    dry = cli("audit", "out", "-n", "--report", "page.html")
    assert "# audit = out" in dry.stdout
    assert not Path("page.html").exists()


def test_the_report_is_one_file_that_needs_nothing_else(cli, prepared):
    assert "audit in one.html" in cli("audit", "out", "--report", "one.html").stderr
    assert "audit in sub/two.html" in cli(*PREPARE, "--overwrite", "--report", "sub/two.html").stderr
    text = Path("one.html").read_text()
    assert text == Path("sub/two.html").read_text()
    assert text.count("<svg") == 5  # three lengths, pack fill, sources
    assert "right 10 &lt;b&gt;&amp;" in text
    assert "<script" not in text
    assert "<link" not in text
    assert "<img" not in text
    for heading in ("Look at", "Splits", "Lengths in tokens", "How conversations end", "The shortest replies"):
        assert f"<h2>{heading}</h2>" in text


def test_without_matplotlib_only_the_report_is_refused(cli, prepared, monkeypatch):
    advice = install_command("report")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    for command in (("audit", "out"), (*PREPARE, "--overwrite")):
        result = cli(*command, "--report", "page.html")
        assert result.code == 2
        assert result.stderr.splitlines() == [
            "error: --report draws with matplotlib, which is not installed",
            f"hint: run: {advice}",
        ]
    assert not Path("page.html").exists()
    assert cli("audit", "out").code == 0


def test_another_tokenizer_gives_ids_and_says_so(cli, prepared):
    result = cli("audit", "out", "--json", "-s", "model.pretrained_model_name_or_path=./gone")
    assert "note: excerpts are token ids: model ./gone: no such folder" in result.stderr
    figures = json.loads(result.stdout)
    assert figures["extremes"]["longest"][0]["reply"].replace(" ", "").isdecimal()
    assert figures["reply"] == "from the end of the shared prompt to the reward token"


def test_what_is_no_prepared_folder_is_refused(cli, prepared, tmp_path):
    assert cli("audit", "gone").stderr.splitlines()[0] == "error: gone holds no prepared data: no manifest.json"
    (prepared / "rejects.jsonl").write_text("{}\n")
    with pytest.raises(RmcliError, match=r"rejects.jsonl cannot be read"):
        run(prepared, TINY)
    shard = next((prepared / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "is damaged: sha256" in cli("audit", "out").stderr


def test_the_figures_of_the_real_hh_set_and_of_pairs_planted_in_it(cli, tmp_path, real_data, gguf):
    with gzip.open(real_data / "hh_rlhf_harmless.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    turned = [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[100:105]]
    write_lines(tmp_path / "rows.jsonl", [*rows, *turned])
    model = ("-s", f"model.pretrained_model_name_or_path={gguf}", "-o", "out", "--json", "-q")
    result = cli("prepare", "rows.jsonl", "--map-fn", "hh_rlhf", *model)
    assert result.code == 0, result.stderr
    figures = json.loads(result.stdout)["audit"]
    assert figures["rows_left_out"] == {"empty_reply": 4}
    assert figures["splits"]["train"]["groups"] + figures["splits"]["eval"]["groups"] == 1813
    (source,) = figures["sources"]
    assert (source["longer_wins"], source["shorter_wins"], source["same_length"]) == (805, 975, 33)
    assert figures["duplicates"] == {"groups": 0, "in_both_splits": 0, "rows": []}
    assert figures["contradictions"]["rows"] == [[row, 1712 + row] for row in range(100, 105)]
    train = figures["splits"]["train"]
    assert train["lengths"]["conversation"]["max"] == 1024
    assert train["prompt_share"] == pytest.approx(0.755, abs=0.002)
    assert train["replies_without_header"] == 0
    ends = {ending["tokens"]: ending for ending in train["endings"]}
    assert (ends[1]["share"], ends[1]["text"]) == (1.0, "'<empty_output>'")
    assert ends[4]["text"] == r"'.<|im_end|>\n<empty_output>'"
    shortest = figures["extremes"]["shortest_reply"][0]
    assert (shortest["row_id"], shortest["reply"], shortest["reply_tokens"]) == (24, "Ok", 5)
    longest = figures["extremes"]["longest"][0]
    assert (longest["row_id"], longest["tokens"], longest["reply_tokens"]) == (926, 1024, 560)
    assert longest["reply"].startswith("A house fire")
    longest, apart, shortest = screen.extreme_lines(figures)  # what prepare prints of them
    assert longest.startswith("the longest conversations, row (tokens): 926 (1,024), ")
    assert shortest.startswith("the shortest replies, row (tokens): 24 (5), ")
    assert re.fullmatch(r"answers to one prompt [^:]*: (\d+ \([\d,]+/\d+\), ){9}\d+ \([\d,]+/\d+\)", apart)
