"""What a row must keep to: columns that are read or named, numbers in CSV, parts, prompts, and own map functions."""

import json

import pytest

from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.rows.map_fns.apply import apply, find_map_function
from rmcli.rows.map_fns.contract import OF_CONVERSATIONS, Contract
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import NAMED, recognise
from support.places import write_lines

ROW = {"prompt": "q", "chosen": "good", "rejected": "bad"}
INSTRUCTION = {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}
WHOLE = {
    side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": reply}]
    for side, reply in (("chosen", "good"), ("rejected", "bad"))
}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}], "chosen": "good", "rejected": "bad"}
TINY = ("--preset", "tiny", "-o", "out", "--no-audit")


def mapped(name: str, row: dict, contract: Contract | None = None, **more: bool):
    return apply(NAMED[name], row, "rows.jsonl:7", contract=contract, **more)


def refusal(name: str, row: dict, **more: bool) -> Skip:
    with pytest.raises(Skip) as skip:
        mapped(name, row, **more)
    return skip.value


def said(group) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in group.conversations[0]]


# --- columns beside the conversation ---


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("canonical", ROW),
        ("orpo_dpo_mix_40k", {"prompt": "q", **WHOLE}),
        ("instruction", INSTRUCTION),
        ("sharegpt_ranking", SHAREGPT),
        ("canonical", {"prompt": "q", "responses": ["good", "bad"], "ranks": [1, 2]}),
    ],
)
@pytest.mark.parametrize(
    "history",
    [[["before", "then"]], [{"role": "user", "content": "before"}, {"role": "assistant", "content": "then"}]],
)
def test_system_and_history_stand_before_the_prompt_and_tools_go_to_the_template(name, row, history):
    tools = [{"type": "function", "function": {"name": "f"}}]
    beside = {"system": "Be brief.", "history": history, "tools": json.dumps(tools)}
    group = mapped(name, {**row, **beside, "chat_template_kwargs": {"enable_thinking": False, "other": None}})
    assert said(group) == [
        ("system", "Be brief."),
        ("user", "before"),
        ("assistant", "then"),
        ("user", "q"),
        ("assistant", "good"),
    ]
    assert group.conversations[1][:-1] == group.conversations[0][:-1]
    assert group.template_arguments == {"tools": tools, "enable_thinking": False}


def test_a_system_message_that_is_there_already_comes_once_and_another_one_is_refused():
    row = {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]}
    row |= {"chosen": "good", "rejected": "bad"}
    assert mapped("canonical", {**row, "system": "Be brief."}) == mapped("canonical", row)
    assert refusal("canonical", {**row, "system": "Be long."}).reason == "two_system_messages"
    with_history = mapped("canonical", {**row, "history": [["before", "then"]]})
    assert [role for role, _ in said(with_history)] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("column", sorted(set(OF_CONVERSATIONS)))
@pytest.mark.parametrize("name", ["reward_bench", "canonical", "shp"])
def test_a_column_of_the_conversation_is_used_or_refuses_its_row_by_name(name, column):
    rows = {
        "canonical": ROW,
        "reward_bench": {**ROW, "chosen_model": "m", "rejected_model": "n", "subset": "s"},
        "shp": {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1},
    }
    row = rows[name]
    value = {"tools": [{"name": "f"}], "history": [["a", "b"]], "chat_template_kwargs": {"a": 1}}.get(column, "x")
    if column in NAMED[name].known_columns:
        assert name == "shp" or mapped(name, {**row, column: value}) != mapped(name, row)
        return
    assert refusal(name, {**row, column: value}).reason == f"unread_column {column}"
    for nothing in (None, "", " ", [], {}):
        assert mapped(name, {**row, column: nothing}) == mapped(name, row)


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"system": ["Be brief."]}, "wrong_type"),
        ({"history": "before"}, "wrong_type"),
        ({"history": [["before"]]}, "wrong_type"),
        ({"tools": "no JSON"}, "bad_json"),
        ({"tools": '{"name": "f"}'}, "wrong_type"),
        ({"tools": ["f"]}, "wrong_type"),
        ({"tools": '[{"name": "\\ud800"}]'}, "bad_json"),
        ({"chat_template_kwargs": [1]}, "wrong_type"),
    ],
)
def test_what_is_wrong_beside_the_conversation_is_named(beside, reason):
    assert refusal("canonical", {**ROW, **beside}).reason == reason


def test_every_column_that_nothing_reads_is_named_once_for_each_source(cli, tmp_path):
    write_lines(tmp_path / "a.jsonl", [{**ROW, "prompt": f"q {n}", "topic": "t", "id": n} for n in range(30)])
    write_lines(tmp_path / "b.jsonl", [{**INSTRUCTION, "instruction": f"i {n}", "output": "good"} for n in range(30)])
    result = cli("prepare", "a.jsonl", "b.jsonl", "--map-fn", "auto", *TINY, "-q")
    assert result.code == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if "not read" in line] == [
        f"note: not read: topic, id (columns of {tmp_path / 'a.jsonl'})"
    ]
    first, second = json.loads((tmp_path / "out" / "manifest.json").read_text())["rows_by_source"]
    assert first["columns_not_read"] == ["id", "topic"]
    assert "columns_not_read" not in second


def test_the_manifest_names_what_was_not_read_of_parts_and_of_the_whole_alike(cli, tmp_path):
    rows = [{**ROW, "prompt": f"q {n}", "topic": "t"} for n in range(30)]
    reply = {"role": "assistant", "content": "good", "thinking": "hm"}
    write_lines(tmp_path / "rows.jsonl", [*rows, {**ROW, "chosen": [reply], "a": 1}, {**ROW, "prompt": "p", "b": 1}])
    arguments = ("prepare", "rows.jsonl", "--map-fn", "canonical", "-p", "tiny", "--no-audit", "-o")
    assert cli(*arguments, "whole").code == 0
    for number in (1, 2):
        assert cli(*arguments, f"part-{number}", "--shard", f"{number}/2").code == 0
    assert cli("prepare", "--merge", "part-1", "part-2", "-o", "merged", "--no-audit").code == 0
    for name in ("whole", "merged"):
        (source,) = json.loads((tmp_path / name / "manifest.json").read_text())["rows_by_source"]
        assert source["columns_not_read"] == ["a", "b", "topic"]
        assert source["message_keys_not_read"] == ["thinking"]


def test_keys_of_messages_that_the_template_does_not_read_are_named_and_change_nothing(cli, tmp_path):
    def rows(**more: str) -> list[dict]:
        reply = {"role": "assistant", "content": "good", **more}
        return [{**WHOLE, "chosen": [{"role": "user", "content": f"q {n}"}, reply]} for n in range(30)]

    manifests = []
    for name, more in (("plain", {}), ("thinking", {"thinking": "hm"})):
        write_lines(tmp_path / f"{name}.jsonl", rows(**more))
        result = cli("prepare", f"{name}.jsonl", "--map-fn", "skywork", "--preset", "tiny", "-o", name)
        assert result.code == 0, result.stderr
        assert ("not read: thinking (of the messages" in result.stderr) == bool(more)
        manifests.append(json.loads((tmp_path / name / "manifest.json").read_text())["shards"])
        texts = (tmp_path / name / "eval.jsonl").read_text()
        assert "hm" not in texts
    assert manifests[0] == manifests[1]
    write_lines(
        tmp_path / "same.jsonl", [{**WHOLE, "rejected": [*WHOLE["chosen"][:1], {**WHOLE["chosen"][1], "id": "x"}]}]
    )
    result = cli("prepare", "same.jsonl", "plain.jsonl", "--map-fn", "skywork", *TINY)
    assert "chosen_equals_rejected" in result.stderr


def test_the_held_out_texts_hold_what_the_template_gets(cli, tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% if tools %}{{ tools | tojson }}{% endif %}{{ mood }}"
        "{% for m in messages %}{{ m.role }}:{{ m.thinking }}{{ m.content }}<|im_end|>{% endfor %}"
    )
    reply = [{"role": "assistant", "content": "same", "thinking": "well"}], [{"role": "assistant", "content": "same"}]
    more = {"tools": [{"name": "f"}], "chat_template_kwargs": {"mood": "glad"}}
    rows = [{"prompt": f"q {n}", "chosen": reply[0], "rejected": reply[1], **more} for n in range(20)]
    write_lines(tmp_path / "rows.jsonl", rows)
    template = ("--chat-template", "t.jinja", "-s", "data.eval_fraction=0.5")
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, *template, "--show", "1")
    assert result.code == 0, result.stderr
    assert "20 in = 20 kept" in result.stderr
    texts = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    assert len(texts) > 3
    for row in texts:
        assert (row["chosen"], row["rejected"]) == reply
        assert {name: row[name] for name in more} == more


# --- prompts ---


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": None, "chosen": "good", "rejected": "bad"},
        {"prompt": [], "responses": ["good", "bad"], "ranks": [1, 2]},
        {"chosen": WHOLE["chosen"][1:], "rejected": WHOLE["rejected"][1:]},
        {"chosen": WHOLE["chosen"], "rejected": "bad"},
        {"system": "Be brief.", "chosen": "good", "rejected": "bad"},
    ],
)
def test_answers_without_a_question_are_refused_unless_it_is_meant(row):
    assert refusal("canonical", row).reason == "no_prompt"
    assert len(mapped("canonical", row, Contract(allow_no_prompt=True)).conversations) == 2


def test_allow_no_prompt_is_a_key(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(10)])
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY)
    assert "10 were rejected as no_prompt, first" in result.stderr
    allowed = cli("prepare", "rows.jsonl", "--map-fn", "canonical", *TINY, "-s", "data.allow_no_prompt=true")
    assert "10 in = 10 kept" in allowed.stderr


@pytest.mark.parametrize("prompt", ["", " \n", [{"role": "user", "content": ""}]])
def test_an_empty_prompt_is_refused(prompt):
    assert refusal("canonical", {**ROW, "prompt": prompt}).reason == "empty_prompt"


def test_files_of_a_folder_are_recognised_one_by_one(cli, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [{**ROW, "prompt": f"q {n}"} for n in range(8)])
    write_lines(folder / "b.jsonl", [{**INSTRUCTION, "instruction": f"i {n}"} for n in range(8)])
    (folder / "c.jsonl").write_text("no JSON\n")
    result = cli("prepare", "mixed", *TINY, "--map-fn", "auto")
    assert result.code == 0, result.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    named = [(source["path"].rpartition("/")[2], source["dataset_map_fn"]) for source in manifest["sources"]]
    assert named == [("a.jsonl", "canonical"), ("b.jsonl", "instruction"), ("c.jsonl", "canonical")]
    assert (manifest["rows"]["kept"], manifest["rows"]["reasons"]) == (16, {"bad_json": 1})
    capped = cli("prepare", "--source", "path=mixed,max_rows=3", *TINY, "--map-fn", "auto", "--overwrite")
    assert "max_rows = 3 of mixed: its files have several schemas, canonical, instruction" in capped.stderr
    write_lines(folder / "b.jsonl", [{**ROW, "prompt": f"p {n}"} for n in range(8)])
    result = cli("prepare", "mixed", *TINY, "--map-fn", "auto", "--overwrite")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [source["path"] for source in manifest["sources"]] == [str(folder)]  # of one schema: one source


def test_without_a_map_function_the_columns_say_which(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{**INSTRUCTION, "instruction": f"i {n}"} for n in range(8)])
    no_map_fn = ("--preset", "tiny", "-s", "data.dataset_map_fn=none")
    plan = json.loads(cli("prepare", "rows.jsonl", *no_map_fn, "-n", "--json").stdout)
    assert plan["config"]["data"]["dataset_map_fn"] == "instruction"
    write_lines(tmp_path / "rows.jsonl", [{"text": "x"}])
    result = cli("prepare", "rows.jsonl", *no_map_fn, "-n")
    assert "error: no map function fits the columns text" in result.stderr


# --- CSV ---


@pytest.mark.parametrize(
    ("cells", "margin", "weight"),
    [
        ({"margin": "1.5", "weight": "2"}, 1.5, 2.0),
        ({"margin": " 1e-3 ", "weight": ".5"}, 0.001, 0.5),
        ({"margin": "", "weight": " "}, 0.0, 1.0),
    ],
)
def test_numbers_of_a_csv_are_read_from_text_and_an_empty_cell_is_null(tmp_path, cells, margin, weight):
    own = tmp_path / "mine.py"
    own.write_text("def same(row):\n    return row\ndef new(row):\n    return {**row}\n")
    for function in (NAMED["canonical"], *(find_map_function(f"{own}:{name}") for name in ("same", "new"))):
        group = apply(function, {**ROW, **cells}, "a.csv:1", text_cells=True)
        assert (group.comparisons[0].margin, group.weight) == (margin, weight)


def test_text_that_is_no_number_is_refused_in_a_csv_and_every_text_is_elsewhere():
    for cell in ("much", "1,5", "nan", "inf", "1_0", "0x1", "9" * 400):
        assert refusal("canonical", {**ROW, "margin": cell}, text_cells=True).reason == "bad_margin"
    assert refusal("canonical", {**ROW, "margin": "1.5"}).reason == "bad_margin"


def test_a_csv_with_ratings_is_recognised_and_read(cli, tmp_path):
    ratings = "helpfulness,correctness,coherence,complexity,verbosity"
    lines = [f"q {n},{side} {n},{score},3,4,1,2" for n in range(10) for side, score in (("good", 4), ("bad", 1))]
    (tmp_path / "a.csv").write_text("\n".join([f"prompt,response,{ratings}", *lines]) + "\n")
    row = dict(zip(["prompt", "response", *ratings.split(",")], lines[0].split(","), strict=True))
    assert recognise(row, text_cells=True) == "helpsteer2"
    result = cli("prepare", "a.csv", "--map-fn", "auto", *TINY)
    assert "20 in = 20 kept" in result.stderr


# --- contents ---


def test_parts_of_text_are_joined_and_anything_else_is_refused():
    parts = [{"type": "text", "text": "go", "cache": None}, "o", {"type": "output_text", "text": "d"}]
    reply = [{"role": "assistant", "content": parts}]
    assert mapped("canonical", {**ROW, "chosen": reply}) == mapped("canonical", ROW)
    for part in ({"type": "image", "image": "a.png"}, {"type": "text"}, {"text": "x"}, 7, None):
        reply = [{"role": "assistant", "content": [{"type": "text", "text": "x"}, part]}]
        skip = refusal("canonical", {**ROW, "chosen": reply})
        assert skip.reason == "unsupported_content"
        assert "the content of message 1 of chosen has a part that is " in skip.detail


def test_a_null_system_message_is_left_out_and_any_other_null_is_named():
    user = {"role": "user", "content": "q"}
    assert mapped("canonical", {**ROW, "prompt": [{"role": "system", "content": None}, user]}) == mapped(
        "canonical", ROW
    )
    for row, detail in (
        ({**ROW, "chosen": None}, "chosen is null"),
        ({**ROW, "prompt": [{**user, "content": None}]}, "the content of message 1 of prompt is null, not text"),
        ({**ROW, "prompt": [{"content": "q"}]}, "message 1 of prompt has no role"),
        ({**ROW, "rejected": [user, None]}, "message 2 of rejected is null"),
    ):
        skip = refusal("canonical", row)
        assert (skip.reason, skip.detail) == ("wrong_type", detail)


# --- a user's own function ---


def own(tmp_path, body: str) -> MapFunction:
    (tmp_path / "mine.py").write_text(f"import json\ndef f(row):\n    {body}\n")
    return find_map_function(f"{tmp_path / 'mine.py'}:f")


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("return {**row, 'promt': 'q'}", "gave an unknown key 'promt' for rows.jsonl:7", "did you mean prompt?"),
        ("return {'chosen': 'a', 'wieght': 3}", "gave an unknown key 'wieght' for rows.jsonl:7", "mean weight?"),
        ("return {'margn': 2}", "gave an unknown key 'margn' for rows.jsonl:7", "did you mean margin?"),
        ("return row['prompt'], row['chosen']", "gave a tuple for rows.jsonl:7", "return a dict with prompt"),
        ("yield row", "gave a generator for rows.jsonl:7", "return a dict"),
        ("return [row]", "gave a list for rows.jsonl:7", "return a dict"),
        ("raise StopIteration", "failed on rows.jsonl:7: StopIteration", "mend the function"),
        ("raise MemoryError", "failed on rows.jsonl:7: MemoryError", "mend the function"),
        ("open('/no/such/file')", "failed on rows.jsonl:7: FileNotFoundError: [Errno 2]", "mend the function"),
        ("raise Exception('own')", "failed on rows.jsonl:7: Exception: own", "mend the function"),
        ("raise type('Mine', (BaseException,), {})", "failed on rows.jsonl:7: Mine", "mend the function"),
        ("raise SystemExit(3)", "failed on rows.jsonl:7: SystemExit: 3", "mend the function"),
    ],
)
def test_a_broken_function_is_one_line_with_its_file_line_and_row(tmp_path, body, message, hint):
    with pytest.raises(RmcliError) as error:
        apply(own(tmp_path, body), ROW, "rows.jsonl:7")
    assert error.value.message.startswith(f"the map function mine.py:{2 if 'gave' in message else 3} (f) {message}")
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("body", "reason", "line"),
    [
        ("return None", "returned_none", 2),
        ("return {**row, 'chosen': row['chosen'] + 1}", "wrong_type", 3),
        ("return {'a': 1}[row['prompt']]", "wrong_type", 3),
        ("return row['question']", "missing_column question", 3),
        ("return json.loads(row['prompt'])", "wrong_type", 3),
    ],
)
def test_a_row_that_a_function_cannot_take_is_left_out_with_the_line(tmp_path, body, reason, line):
    with pytest.raises(Skip) as skip:
        apply(own(tmp_path, body), ROW, "rows.jsonl:7")
    assert (skip.value.reason, skip.value.raised_at) == (reason, f"mine.py:{line} (f)")


@pytest.mark.parametrize(
    ("body", "unread"),
    [
        ("return {'prompt': row['prompt'], 'chosen': row.get('chosen'), 'rejected': row['rejected']}", ["id"]),
        ("return row", ["id"]),
        ("return {**row}", []),
        ("return dict(row, chosen='other')", []),
        ("return row | {'chosen': 'other'}", []),
        ("json.dumps(row); return row", []),
        ("return {name: value for name, value in row.items()}", []),
        ("row.pop('id'); return row", []),
    ],
)
def test_what_an_own_function_looks_at_is_what_it_reads(tmp_path, body, unread):
    contract = Contract()
    assert apply(own(tmp_path, body), {**ROW, "id": 7}, "rows.jsonl:7", contract=contract)
    assert list(contract.unread_columns) == unread


def test_an_own_function_must_look_at_what_belongs_to_the_conversation(tmp_path):
    row = {**ROW, "images": ["a.png"]}
    pair = "return {name: row[name] for name in ('prompt', 'chosen', 'rejected')}"
    for body in (pair, "return row", "return {**row}"):
        with pytest.raises(Skip, match="unread_column images"):
            apply(own(tmp_path, body), row, "rows.jsonl:7")
        assert apply(own(tmp_path, f"row.pop('images'); {body}"), row, "rows.jsonl:7")
    assert row["images"] == ["a.png"]  # the function was given a row of its own


def test_a_file_without_a_function_offers_those_in_it_and_does_not_run_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit\ndef pairs(row): ...\ndef _help(): ...\ndef others(row): ...\n")
    with pytest.raises(ConfigError) as error:
        find_map_function(str(file))
    assert error.value.message == f"map function {str(file)!r} names a file and no function in it"
    assert error.value.hint == f"write {file}:FUNCTION, one of pairs, others"
    with pytest.raises(ConfigError) as error:
        find_map_function(str(tmp_path / "gone.py"))
    assert "gone.py cannot be read: No such file" in error.value.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise Exception('own')", "Exception: own"),
        ("raise MemoryError", "MemoryError"),
    ],
)
def test_a_file_that_does_not_import_is_one_line_with_its_line(tmp_path, body, said):
    file = tmp_path / "mine.py"
    file.write_text(f"x = 1\n{body}\n")
    with pytest.raises(ConfigError) as error:
        find_map_function(f"{file}:f")
    assert error.value.message == f"map function '{file}:f': {file} does not import: {said} ({file}:2)"


def test_a_key_function_that_fails_is_the_functions_fault(cli, tmp_path, monkeypatch):
    def key(row: dict) -> object:
        raise OSError("no network")

    monkeypatch.setitem(NAMED, "keyed", MapFunction(lambda rows: None, ("prompt",), None, rows_key=key))
    write_lines(tmp_path / "rows.jsonl", [ROW])
    result = cli("prepare", "rows.jsonl", "--map-fn", "keyed", *TINY)
    assert f"(key) failed on {tmp_path / 'rows.jsonl'}:1: OSError: no network" in result.stderr


def test_rejects_stay_beside_the_folder_when_nothing_else_is_written(cli, tmp_path):
    (tmp_path / "mine.py").write_text("def f(row):\n    return None\n")
    write_lines(tmp_path / "rows.jsonl", [{**ROW, "prompt": f"q {n}"} for n in range(3)])
    (tmp_path / "out.rejects.jsonl").write_text('{"mine": 1}\n')
    for _ in range(2):  # the second time its own is replaced
        result = cli("prepare", "rows.jsonl", "--map-fn", "mine.py:f", *TINY)
        assert result.code == 1
        assert "3 were rejected as returned_none, first " in result.stderr
        assert "each row with its reason is in out.rejects-2.jsonl" in result.stderr
        lines = [json.loads(line) for line in (tmp_path / "out.rejects-2.jsonl").read_text().splitlines()]
        assert [(row["line"], row["reason"], row["raised_at"]) for row in lines] == [
            (line, "returned_none", "mine.py:1 (f)") for line in (1, 2, 3)
        ]
    assert (tmp_path / "out.rejects.jsonl").read_text() == '{"mine": 1}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("mine.py", "out.rejects-2.jsonl", "out.rejects.jsonl", "rows.jsonl")
    ]


def test_a_null_text_is_named_too():
    row = {"system": "", "question": "q", "chosen": "good", "rejected": "bad"}
    for column in ("system", "question", "chosen"):
        assert refusal("intel_orca_dpo", {**row, column: None}).detail.startswith(f"{column} is null")
    assert (
        refusal("canonical", {"prompt": None, "chosen": WHOLE["chosen"], "rejected": 7}).detail == "rejected is a int"
    )
