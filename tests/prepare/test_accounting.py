"""`in = kept + rejected + duplicates + not_taken`: per source and reason, with weights, caps and grouped rows."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from rmcli.config.presets import presets_folder
from rmcli.config.resolve import resolve
from rmcli.errors import Skip
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.prepare.fate import num_copies
from rmcli.records import PreferenceGroup
from rmcli.rows import sources
from rmcli.rows.files import PROBLEMS
from rmcli.rows.map_fns.data_sets import canonical
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import NAMED
from rmcli.tokens import encode
from support.cli import as_options
from support.places import REPOSITORY, write_lines

TINY = ("--preset", "tiny", "-o", "out")
CANONICAL = ("--map-fn", "canonical")


def pair(n: object, **more: object) -> dict:
    return {"prompt": f"question {n}", "chosen": f"right {n}", "rejected": f"wrong {n}", **more}


PAIRS = [pair(n) for n in range(1000)]


def prepared(cli, *arguments: object, code: int = 0) -> dict:
    result = cli("prepare", *arguments, *TINY)
    assert result.code == code, result.stderr
    return read_manifest(Path("out"))


def rejects() -> list[dict]:
    return [json.loads(line) for line in Path("out/rejects.jsonl").read_text().splitlines()]


def groups(split: str) -> list:
    packed = PackedSplit(Path("out"), split)
    return [group for row in range(len(packed)) for group in packed.groups(row)]


def adds_up(rows: dict) -> bool:
    return rows["in"] == rows["kept"] + rows["rejected"] + rows["duplicates"] + rows["not_taken"]


# --- weights and caps ---


def test_a_weight_below_one_takes_that_share_and_counts_the_rest(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", PAIRS)
    rows = prepared(cli, "--source", "path=a.jsonl,weight=0.3", *CANONICAL)["rows"]
    assert rows["in"] == 1000
    assert rows["kept"] + rows["not_taken"] == 1000
    assert 250 < rows["kept"] < 350
    assert rows["groups"] == rows["kept"] == len(groups("train")) + len(groups("eval"))


def test_what_a_small_weight_takes_a_larger_one_takes_too_and_a_seed_chooses():
    keys = [encode.group_key(canonical(row)) for row in PAIRS]

    def taken(weight: float, seed: int = 0) -> set[bytes]:
        return {key for key in keys if num_copies(key, weight, seed)}

    assert taken(0.2) < taken(0.5) < taken(1.0) == set(keys)
    assert taken(0.5) != taken(0.5, seed=1)
    assert [num_copies(key, 3.0, 0) for key in keys] == [3] * 1000
    assert 2400 < sum(num_copies(key, 2.5, 0) for key in keys) < 2600


def test_a_weight_above_one_repeats_rows_in_train_and_not_in_eval(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", PAIRS[:100])
    options = ("--source", "path=a.jsonl,weight=2", *CANONICAL, "-s", "data.eval_fraction=0.3")
    rows = prepared(cli, *options)["rows"]
    train, held_out = ([group.row_id for group in groups(split)] for split in SPLITS)
    assert sorted(train) == sorted(2 * sorted(set(train)))
    assert len(held_out) == len(set(held_out)) > 10
    assert len(set(train)) + len(held_out) == 100 == rows["kept"]
    assert rows["groups"] == len(train) + len(held_out)


def test_a_cap_keeps_the_first_rows_and_counts_the_rest(cli, tmp_path):
    lines = [json.dumps(row) for row in [PAIRS[0], *PAIRS[:20], *PAIRS[20:900]]]
    lines[5] = "bad"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    manifest = prepared(cli, "--source", "path=a.jsonl,max_rows=10", *CANONICAL)
    assert manifest["rows"] == {
        "in": 901,
        "kept": 10,
        "rejected": 1,
        "duplicates": 1,
        "not_taken": 889,
        "reasons": {"bad_json": 1},
        "groups": 10,
    }
    assert {group.row_id for split in SPLITS for group in groups(split)} == {0, 2, 3, 4, *range(6, 12)}


def test_rows_beyond_a_cap_are_no_originals_of_duplicates(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", PAIRS[:100])
    write_lines(tmp_path / "b.jsonl", PAIRS[:100])
    manifest = prepared(cli, "--source", "path=a.jsonl,max_rows=30", "--source", "b.jsonl", *CANONICAL)
    first, second = manifest["rows_by_source"]
    assert (first["kept"], first["not_taken"]) == (30, 70)
    assert (second["kept"], second["duplicates"]) == (70, 30)


def test_streaming_ends_at_the_cap(cli, monkeypatch):
    import datasets

    def endless(path, **options):
        n = 0
        while True:
            yield pair(n)
            n += 1

    monkeypatch.setattr(datasets, "load_dataset", endless)
    manifest = prepared(cli, "--source", "path=org/name,streaming=true,max_rows=600", *CANONICAL)
    (source,) = manifest["rows_by_source"]
    assert (source["in"], source["kept"], source["not_taken"], source["read_to_end"]) == (1024, 600, 424, False)


def test_a_stream_left_at_its_cap_leaves_nothing_seen_behind(cli, tmp_path, monkeypatch):
    """With threads, chunks are looked at ahead: what the stream never gave must be no original of a duplicate."""
    import datasets

    rows = [pair(n) for n in range(3000)]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: iter(rows))
    write_lines(tmp_path / "again.jsonl", rows[1024:])
    outcomes = []
    for threads in (1, 2):
        capped = ("--source", "path=org/name,streaming=true,max_rows=600", "again.jsonl")
        manifest = prepared(cli, *capped, *CANONICAL, "--overwrite", "-s", f"data.num_proc={threads}")
        hashes = [shard["sha256"] for shard in manifest["shards"].values()]
        outcomes.append((manifest["rows"]["kept"], manifest["rows"]["duplicates"], hashes))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][:2] == (600 + 3000 - 1024, 0)


def test_a_cap_with_a_shard_is_refused(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [pair(n) for n in range(9)])
    result = cli("prepare", "--source", "path=rows.jsonl,max_rows=5", *CANONICAL, *TINY, "--shard", "1/2")
    assert result.code == 2
    assert "caps all rows, but shard 1/2 sees only its own" in result.stderr


def test_shards_merged_hold_what_one_run_holds(cli, tmp_path):
    # Every row twice, and in another shard: the second of 100 apart in 3 shards, of neighbours too.
    rows = [*(pair(n) for n in range(100)), {"prompt": 1}, *(pair(n) for n in range(100)), pair(200), pair(200), "no"]
    write_lines(tmp_path / "rows.jsonl", rows)

    def held() -> list[tuple[Any, ...]]:
        """Every group of the folder out, and both texts, in one order."""
        found = [
            (split, group.row_id, group.weight, group.prefix.tolist(), [ids.tolist() for ids in group.responses])
            for split in SPLITS
            for group in groups(split)
        ]
        texts = [
            line for name in ("eval.jsonl", "rejects.jsonl") for line in Path("out", name).read_text().splitlines()
        ]
        return [*sorted(found), *sorted(texts)]

    whole = prepared(cli, "rows.jsonl", *CANONICAL)["rows"]
    assert (whole["in"], whole["kept"], whole["duplicates"], whole["rejected"]) == (204, 101, 101, 2)
    held_by_whole = held()
    for number in (1, 2, 3):
        part = ("-p", "tiny", "-o", f"part{number}", "--shard", f"{number}/3")
        assert cli("prepare", "rows.jsonl", *CANONICAL, *part).code == 0
    merged = cli("prepare", "--merge", "part1", "part2", "part3", "-o", "out", "--overwrite", "--json")
    assert merged.code == 0, merged.stderr
    answer = json.loads(merged.stdout)
    assert answer["rows"] == whole
    assert held() == held_by_whole
    assert answer["audit"]["duplicates"] == {"groups": 0, "in_both_splits": 0, "rows": []}
    for option in (("--decontaminate", "rows.jsonl"), ("--shard", "1/2"), ("--source", "path=rows.jsonl")):
        assert cli("prepare", "--merge", "part1", "part2", "-o", "no", *option).code == 2


def test_a_row_that_its_weight_repeats_is_no_duplicate(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [pair(n) for n in range(40)])
    result = cli("prepare", "--source", "path=rows.jsonl,weight=2", *CANONICAL, *TINY, "--json")
    assert json.loads(result.stdout)["audit"]["duplicates"] == {"groups": 0, "in_both_splits": 0, "rows": []}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "responses": ["a"], "ranks": [1]}, "single_response"),
        ({**pair(0), "weight": 10**310}, "bad_weight"),
        ({**pair(0), "weight": 1e39}, "bad_weight"),  # more than float32 holds
        ({**pair(0), "weight": 1e-50}, "bad_weight"),
        ({**pair(0), "margin": 10**400}, "bad_margin"),
    ],
)
def test_one_odd_row_never_ends_the_run(cli, tmp_path, row, reason):
    write_lines(tmp_path / "rows.jsonl", [pair(1), row, pair(2)])
    rows = prepared(cli, "rows.jsonl", *CANONICAL)["rows"]
    assert (rows["kept"], rows["reasons"]) == (2, {reason: 1})


def test_a_list_in_which_two_compared_answers_are_the_same_is_left_out(cli, tmp_path):
    """Tied ones may be: nothing is learned from them."""
    answers = ["w", "x " * 60 + "1", "x " * 60 + "2", "z"]
    strict = {"prompt": "q", "responses": answers, "ranks": [1, 2, 3, 4]}
    tied = {"prompt": "r", "responses": ["a", "b", "b", "c"], "ranks": [1, 2, 2, 3]}
    same = {"prompt": "s", "responses": ["a", "b", "b", "c"], "ranks": [1, 2, 3, 4]}
    write_lines(tmp_path / "rows.jsonl", [strict, tied, same])
    short = ("-s", "data.max_length=40", "-s", "data.overlong=truncate_right")
    rows = prepared(cli, "rows.jsonl", *CANONICAL, *short)["rows"]
    assert rows["kept"] == 1
    assert rows["reasons"] == {"identical_after_truncation": 1, "chosen_equals_rejected": 1}


def test_each_source_has_its_own_function_and_the_manifest_repeats_them(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", PAIRS[:50])
    lines = [{"system": "", "question": f"Q {n}", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(30)]
    write_lines(tmp_path / "b.jsonl", lines)
    tables = """
        [data]
        dataset_map_fn = "canonical"
        [[data.sources]]
        path = "a.jsonl"
        [[data.sources]]
        path = "b.jsonl"
        name = "orca"
        dataset_map_fn = "intel_orca_dpo"
        weight = 2
    """
    (tmp_path / "mixed.toml").write_text(tables)
    manifest = prepared(cli, "-c", "mixed.toml")
    assert manifest["sources"] == [
        str(tmp_path / "a.jsonl"),
        {
            "path": str(tmp_path / "b.jsonl"),
            "name": "orca",
            "dataset_map_fn": "intel_orca_dpo",
            "weight": 2.0,
        },
    ]
    assert manifest["map_fn_sha256"].keys() == {"canonical", "intel_orca_dpo"}
    assert [(s["source"], s["kept"]) for s in manifest["rows_by_source"]] == [
        (str(tmp_path / "a.jsonl"), 50),
        ("orca", 30),
    ]
    assert {group.row_id: group.source_id for group in groups("train")}[50] == 1
    again = resolve("tiny", [Path("mixed.toml")])
    (tmp_path / "again.toml").write_text(again.toml())
    assert resolve("tiny", [Path("again.toml")]).config == again.config


def test_train_prepares_several_sources_again_as_they_were(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", PAIRS[:60])
    write_lines(tmp_path / "b.jsonl", PAIRS[60:120])
    (tmp_path / "other.toml").write_text(resolve("tiny").toml().replace('name = "tiny"', 'name = "other"'))
    sources = ("--source", "path=a.jsonl,map_fn=canonical,max_rows=9", "--source", "path=b.jsonl,weight=2")
    assert cli("prepare", *sources, *CANONICAL, "-c", "other.toml").code == 0
    planned = cli("train", "--preset", "tiny", "-n")
    spelled = (
        f"--source path={tmp_path}/a.jsonl,map_fn=canonical,max_rows=9 --source path={tmp_path}/b.jsonl,weight=2.0"
    )
    assert f"hint: run: rmcli prepare {spelled} --map-fn canonical --preset tiny" in planned.stderr
    assert cli("train", "--preset", "tiny", "-s", "train.max_steps=1").code == 0
    there, here = (read_manifest(Path("data") / f"canonical-{name}") for name in ("other", "tiny"))
    assert here["rows_by_source"] == there["rows_by_source"]
    assert here["rows"]["kept"] == 69


def test_stdin_is_prepared(cli):
    result = cli("prepare", "-", *CANONICAL, *TINY, stdin="".join(json.dumps(row) + "\n" for row in PAIRS[:20]))
    assert result.code == 0, result.stderr
    assert read_manifest(Path("out"))["rows"]["kept"] == 20


# --- the system condition ---


def test_a_system_message_is_put_where_there_is_none_and_counted(cli, tmp_path):
    own = {"role": "system", "content": "own"}
    rows = [*PAIRS[:20], {**pair("x"), "prompt": [own, {"role": "user", "content": "q"}]}]
    write_lines(tmp_path / "a.jsonl", rows)
    every = ("-s", "data.eval_fraction=0.99999")
    result = cli("prepare", "--source", "path=a.jsonl,system=Be harmless, please", *CANONICAL, *TINY, *every)
    assert result.code == 0, result.stderr
    manifest = read_manifest(Path("out"))
    assert manifest["rows_by_source"][0]["system_added"] == 20
    assert manifest["rows_by_source"][0]["system_kept"] == 1
    texts = [json.loads(line) for line in Path("out/eval.jsonl").read_text().splitlines()]
    assert texts[0]["prompt"] == [
        {"role": "system", "content": "Be harmless, please"},
        {"role": "user", "content": "question 0"},
    ]
    assert texts[20]["prompt"][0] == own
    assert "put before 20 groups, 1 had one of their own" in result.stderr


# --- rejects ---


def test_a_duplicate_names_the_row_it_repeats_and_an_error_its_text(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", PAIRS[:3])
    write_lines(tmp_path / "b.jsonl", [PAIRS[7], PAIRS[2], {"n": "seven"}])
    (tmp_path / "mine.py").write_text("def f(row):\n    int(row.get('n', 0))\n    return row\n")
    prepared(cli, "a.jsonl", "b.jsonl", "--map-fn", "mine.py:f")
    duplicate, broken = rejects()
    assert (duplicate["reason"], duplicate["line"]) == ("duplicate", 2)
    assert duplicate["repeats"] == f"{tmp_path / 'a.jsonl'}:3"
    assert (broken["reason"], broken["line"]) == ("wrong_type", 3)
    assert broken["detail"] == "ValueError: invalid literal for int() with base 10: 'seven'"


@pytest.mark.parametrize("limit", ["9", "10%"])
def test_max_rejects_stops_with_the_commonest_reason_and_its_place(cli, tmp_path, limit):
    rows = [PAIRS[n] if n % 8 else {"prompt": "q", "chosen": "a"} for n in range(1, 100)]
    (tmp_path / "a.jsonl").write_text("bad\n" + "".join(json.dumps(row) + "\n" for row in rows))
    result = cli("prepare", "a.jsonl", *CANONICAL, *TINY, "--max-rejects", limit)
    assert result.code == 1
    assert [line for line in result.stderr.splitlines() if line.startswith("error")] == [
        f"error: 13 of 100 rows are rejected, over max_rejects = {limit}: 12 as missing_column rejected, "
        f"first {tmp_path / 'a.jsonl'}:9"
    ]
    assert not Path("out").exists()
    allowed = {"9": "13", "10%": "13%"}[limit]
    assert cli("prepare", "a.jsonl", *CANONICAL, *TINY, "--max-rejects", allowed).code == 0


def test_max_rejects_stops_early(cli, monkeypatch):
    monkeypatch.setattr(sources, "generate", lambda *_: ({"n": n} for n in iter(int, 1)))
    for limit, num_rows in (("0", "512 of 512"), ("50%", "1,024 of 1,024")):
        result = cli("prepare", "tasks:9", *TINY, "--max-rejects", limit)
        assert f"{num_rows} rows are rejected" in result.stderr


def test_every_reason_is_given_by_a_row(cli, tmp_path):
    """One row for each reason that docs/format.md lists."""
    import pyarrow as pa

    token = "<|reserved_special_token_0|>"
    user, reply = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    other = {"role": "assistant", "content": "b"}
    sides = {"chosen": [reply], "rejected": [other]}
    long = " ".join("word" for _ in range(400))
    rows = {
        "wrong_type": {**pair(0), "chosen": 5},
        "missing_column rejected": {"prompt": "q", "chosen": "a"},
        "empty_conversation": {"prompt": [], "chosen": [], "rejected": [reply]},
        "unknown_role": {"prompt": [{"role": "wizard", "content": "q"}], "chosen": [reply], "rejected": [other]},
        "no_assistant_reply": {"prompt": [user], "chosen": [], "rejected": [reply]},
        "empty_reply": {**pair(1), "chosen": " "},
        "chosen_equals_rejected": {**pair(2), "chosen": "same", "rejected": "same"},
        "reward_token_in_text": {**pair(3), "prompt": f"say {token}"},
        "overlong": {**pair(4), "rejected": long},
        "bad_weight": pair(5, weight=0),
        "unread_key tool_calls": {**pair(6), "chosen": [{**reply, "tool_calls": [{"name": "f"}]}]},
        "unread_column images": pair(7, images=["a.png"]),
        "no_prompt": {"prompt": None, "chosen": "a", "rejected": "b"},
        "empty_prompt": {**pair(8), "prompt": ""},
        "two_system_messages": {"prompt": [{"role": "system", "content": "a"}, user], **sides, "system": "b"},
        "unsupported_content": {**pair(9), "chosen": [{"role": "assistant", "content": [{"type": "image"}]}]},
    }
    files = {
        "bad.csv": b"prompt,chosen,rejected\n1,2\n",
        "bad.jsonl": b"{\n",
        "text.jsonl": b'{"prompt": "\\ud800"}\n',
    }
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    texts = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    batch = pa.record_batch([texts], ["prompt"])
    with pa.ipc.new_stream(str(tmp_path / "folder" / "text.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    write_lines(tmp_path / "folder" / "rows.jsonl", [*PAIRS[10:20], *rows.values()])
    reasons = dict(prepared(cli, "folder", *CANONICAL, "-s", "data.overlong=drop")["rows"]["reasons"])
    assert reasons == {**dict.fromkeys(rows, 1), "bad_csv": 1, "bad_json": 2, "bad_text": 1}

    def also(row: dict, *options: str) -> set[str]:
        write_lines(tmp_path / "more.jsonl", [*PAIRS[:20], row])
        return set(prepared(cli, "more.jsonl", *CANONICAL, "--overwrite", *options)["rows"]["reasons"])

    start = " ".join("same" for _ in range(300))
    alike = {"prompt": "q", "chosen": start + " end", "rejected": start + " stop"}
    assert also(alike, "-s", "data.overlong=truncate_right") == {"identical_after_truncation"}
    both = {"prompt": "q", "chosen": "x " * 40, "rejected": "y " * 40}
    assert also(both, "-s", "data.max_length=120", "-s", "data.max_packed_length=120") == {"longer_than_pack"}
    (tmp_path / "strict.jinja").write_text(
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('refused') }}{% endif %}"
        "{{ m.content }}{% if m.content != 'open' %}<|eot|>{% endif %}{% endfor %}"
    )
    template = ("--chat-template", "strict.jinja")
    assert also({**pair(0), "prompt": "no"}, *template) == {"template_error"}
    typed = {**pair(0), "prompt": "say <|im_end|>"}
    assert also(typed, "-s", "data.control_tokens=reject") == {"control_token_in_text"}
    (tmp_path / "open.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% if m.content != 'open' %}<|im_end|>{% endif %}{% endfor %}"
    )
    natural = ("--chat-template", "open.jinja", "-s", "model.reward_token=natural")
    assert also({"prompt": "open", "chosen": "open", "rejected": "b"}, *natural) == {"no_end_of_turn"}
    assert also({**pair(0), "prompt": "w " * 500}, "-s", "data.max_characters=900") == {"too_long_text"}
    listed = {*encode.REASONS, *PROBLEMS, "missing_column NAME", "bad_weight", "unsupported_tool_call"}
    listed |= {"longer_than_pack", "any other", "unread_key NAME", "returned_none"}
    listed |= {"no_prompt", "empty_prompt", "two_system_messages", "unsupported_content"}
    in_test_map_fns = {"transcript_in_text", "unreadable_messages", "prompt_in_reply"}
    in_test_map_fns |= {"bad_label", "bad_margin", "bad_comparisons", "tie", "single_response"}
    listed |= in_test_map_fns | {"in_evaluation_file"}
    page = (REPOSITORY / "docs" / "format.md").read_text().split("## Why a row is rejected")[1]
    documented = {line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| ")}
    assert documented - {"reason"} == listed
    provoked = {*reasons, "identical_after_truncation", "longer_than_pack", "template_error", "no_end_of_turn"}
    provoked |= {"too_long_text", "control_token_in_text"}
    elsewhere = {"in_evaluation_file", "any other", "missing_column NAME", "token_without_row", "unread_column NAME"}
    elsewhere |= {"returned_none", "unread_key NAME", "unsupported_tool_call"}
    assert listed - provoked == elsewhere | in_test_map_fns


# --- several rows, one group ---


def two_rows(rows: list) -> PreferenceGroup:
    """Rows of one prompt: the better score first."""
    if len(rows) != 2:
        raise Skip("one_response")
    better, worse = sorted(rows, key=lambda row: -row["score"])
    return canonical({"prompt": better["prompt"], "chosen": better["text"], "rejected": worse["text"]})


def test_rows_of_one_key_make_one_group_and_are_all_accounted_for(cli, tmp_path, monkeypatch):
    by_prompt = MapFunction(two_rows, ("prompt", "text", "score"), None, lambda row: row["prompt"])
    monkeypatch.setitem(NAMED, "two_rows", by_prompt)

    def rows_of(prompt: str, *scores: int) -> list[str]:
        return [json.dumps({"prompt": prompt, "text": f"text {score}", "score": score}) for score in scores]

    lines = [*rows_of("a", 1, 2), *rows_of("b", 3), *rows_of("c", 5, 4), *rows_of("a", 1, 2), "bad"]
    lines += ['{"text": "x"}', *rows_of("d", 6, 7), *rows_of("e", 8, 9), *rows_of("f", 1, 2)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    manifest = prepared(cli, "--source", "path=a.jsonl,map_fn=two_rows,max_rows=7", "-s", "data.eval_fraction=0.0")
    assert manifest["rows"] == {
        "in": 15,
        "kept": 8,
        "rejected": 3,
        "duplicates": 2,
        "not_taken": 2,
        "reasons": {"bad_json": 1, "missing_column prompt": 1, "one_response": 1},
        "groups": 4,
    }
    assert sorted(group.row_id for group in groups("train")) == [0, 3, 9, 11]
    assert [(r["reason"], r["line"]) for r in rejects()] == [
        ("one_response", 3),
        ("duplicate", 6),
        ("duplicate", 7),
        ("bad_json", 8),
        ("missing_column prompt", 9),
    ]


def test_a_key_that_never_changes_is_an_error(cli, tmp_path, monkeypatch):
    constant = MapFunction(two_rows, (), None, lambda row: 1)
    monkeypatch.setitem(NAMED, "two_rows", constant)
    result = cli("prepare", "tasks:1100", "--map-fn", "two_rows", *TINY)
    assert "tasks:1100:1001: more than 1,000 rows in a row belong to one group" in result.stderr


@pytest.mark.parametrize("which", ["all", "best_worst", "adjacent"])
def test_pairs_chooses_from_groups_in_strict_order_and_counts_the_others(which, cli, tmp_path):
    prompt = [{"role": "user", "content": "q"}]
    ranked = {"prompt": prompt, "responses": ["best", "good", "bad"], "ranks": [1, 2, 3]}
    tied = {"prompt": prompt, "responses": ["one", "two", "three"], "ranks": [1, 1, 2]}
    write_lines(tmp_path / "rows.jsonl", [ranked, tied])
    result = cli(
        "prepare", "rows.jsonl", "--map-fn", "canonical", "--pairs", which, *TINY, "-s", "data.eval_fraction=0"
    )
    assert result.code == 0, result.stderr
    found = sorted(groups("train"), key=lambda group: group.row_id)
    stored = [[(c.first, c.second) for c in group.comparisons] for group in found]
    expected = {"all": [(0, 1), (0, 2), (1, 2)], "best_worst": [(0, 2)], "adjacent": [(0, 1), (1, 2)]}
    assert stored[0] == expected[which]
    assert len(stored[1]) == 3
    said = f"data.pairs = {which}: 1 groups are in no strict order and keep all their comparisons"
    assert (said in result.stderr) == (which != "all")


# --- at scale ---


def test_all_real_files_go_through_in_one_command(cli, tmp_path, real_data):
    """With weights and a cap, in the tiny tokenizer's byte tokens: short ones only, so some rows are over-long."""
    sources = {
        "hh_rlhf_harmless": "map_fn=hh_rlhf,max_rows=1000",
        "orpo_dpo_mix_sample": "map_fn=orpo_dpo_mix_40k,weight=2",
        "orca_dpo_pairs_sample": "map_fn=intel_orca_dpo,weight=0.5",
        "gsm8k_solution_pairs": "map_fn=canonical",
        "instruction_preference": f"map_fn={REPOSITORY / 'examples' / 'instruction_preference.py'}:to_pair",
        "finegrained_qa_4way": "map_fn=auto",
    }
    options = [("--source", f"path={real_data / name}.jsonl.gz,name={name},{more}") for name, more in sources.items()]
    wide_model = shutil.copytree(presets_folder() / "tiny", tmp_path / "wide")
    config = json.loads((wide_model / "config.json").read_text())
    (wide_model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 60000}))
    settings = (f"model.pretrained_model_name_or_path={wide_model}", "data.max_length=60000")
    wide = as_options(*settings, "data.max_packed_length=130000")
    result = cli("prepare", *(part for option in options for part in option), *wide, *TINY)
    assert result.code == 0, result.stderr
    manifest = read_manifest(Path("out"))
    by_source = {rows["source"]: rows for rows in manifest["rows_by_source"]}
    assert {name: rows["in"] for name, rows in by_source.items()} == {
        "hh_rlhf_harmless": 1812,
        "orpo_dpo_mix_sample": 300,
        "orca_dpo_pairs_sample": 284,
        "gsm8k_solution_pairs": 1946,
        "instruction_preference": 900,
        "finegrained_qa_4way": 375,
    }
    assert all(adds_up(rows) for rows in [manifest["rows"], *by_source.values()])
    assert by_source["hh_rlhf_harmless"]["kept"] == 1000
    assert by_source["orpo_dpo_mix_sample"]["duplicates"] == 5
    assert 560 < by_source["orpo_dpo_mix_sample"]["groups"] <= 590
    assert 100 < by_source["orca_dpo_pairs_sample"]["not_taken"] < 184
    assert by_source["instruction_preference"]["reasons"] == {"chosen_equals_rejected": 6}
    written = sum(len(groups(split)) for split in SPLITS)
    assert written == manifest["rows"]["groups"] == sum(rows["groups"] for rows in by_source.values())
    for word in (*sources, "not taken", "groups written", "all"):
        assert word in result.stderr


@pytest.mark.slow
def test_the_table_of_all_real_files_in_the_docs_is_what_the_real_tokenizer_gives(cli, real_data, gguf):
    """The command of docs/format.md, which holds its table and its other figures."""
    page = (REPOSITORY / "docs" / "format.md").read_text(encoding="utf-8")
    (typed,) = re.findall(r"\$ (rmcli prepare --source .*?) -o data/all\n", page, flags=re.DOTALL)
    typed = re.sub(r"path=(\w+\.jsonl\.gz)", lambda found: f"path={real_data / found[1]}", typed.replace("\\\n", " "))
    typed = typed.replace("map_fn=examples", f"map_fn={REPOSITORY / 'examples'}")
    model = ("-s", f"model.pretrained_model_name_or_path={gguf}", "-o", "all")
    result = cli(*shlex.split(typed)[1:], *model)
    assert result.code == 0, result.stderr
    manifest = read_manifest(Path("all"))
    columns = ("in", "kept", "rejected", "duplicates", "not_taken", "groups")
    for rows in [*manifest["rows_by_source"], {"source": "all", **manifest["rows"]}]:
        name = Path(rows["source"]).name.removesuffix(".jsonl.gz")
        assert f"| {name} | {' | '.join(f'{rows[column]:,}' for column in columns)} |" in page
    train, held_out = manifest["splits"]["train"], manifest["splits"]["eval"]
    fill = [split["num_tokens"] / split["num_rows"] / 4096 for split in (train, held_out)]
    assert (
        f"{train['num_rows']} packs of 4,096 tokens are {fill[0]:.1%} full, {held_out['num_rows']} of\n".replace(
            "%", " %"
        )
        in page
    )
