"""A suite from its rows to its entry of metrics.json: what is left out is said, and what is cut."""

import json
from contextlib import contextmanager

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmcli import output
from rmcli.errors import ConfigError, RmcliError
from rmcli.evaluate.suites import run
from rmcli.evaluate.suites.coverage import Coverage, figures
from rmcli.evaluate.suites.known import SUITES, parse_suite
from rmcli.evaluate.suites.reward_bench import REWARD_BENCH
from rmcli.evaluate.suites.suite import Asked
from rmcli.records import PreferenceGroup
from rmcli.rows.sources import as_section
from rmcli.scorer.load import configuration_of, load_encoder, load_scorer
from rmcli.scorer.scorer import Score
from support.places import REPOSITORY, write_lines
from support.ranks import on_ranks

BEFORE = REPOSITORY / "tests" / "written_before"
NAMES = "reward-bench, reward-bench-2, rm-bench, judge-bench"
OFFICIAL = {"reward-bench": 2985, "reward-bench-2": 1865, "rm-bench": 1327, "judge-bench": 620}


@pytest.fixture(scope="module")
def model():
    """Its configuration, encoder and scorer. It was trained to sort, and takes 128 tokens."""
    config = configuration_of(BEFORE / "model").config
    encoder = load_encoder(config)
    return config, encoder, load_scorer(config, encoder)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(output, "warn", lines.append)
    return lines


def pair(number: int, subset: str = "hep-go", **other: object) -> dict:
    row = {"id": number, "prompt": f"Sort: {number} 1", "chosen": f"1 {number}", "rejected": f"{number} 1"}
    return {**row, "subset": subset, **other}


def four(number: int, subset: str = "Math", **other: object) -> dict:
    rejected = [f"{number} 1", "no", f"1 {number} 1"]
    return {"id": str(number), "prompt": f"Sort: {number} 1", "chosen": [f"1 {number}"], "rejected": rejected} | {
        "num_correct": 1,
        "num_incorrect": 3,
        "total_completions": 4,
        "subset": subset,
        **other,
    }


def ties(own: str, chosen: list[str]) -> dict:
    return {"id": own, "prompt": "Sort: 2 1", "chosen": chosen, "rejected": ["2 1", "no"], "subset": "Ties"}


def styles(number: int, domain: str) -> dict:
    chosen = [f"1 {number}", f"sorted: 1 {number}", f"**1 {number}**"]
    rejected = [f"{number} 1", f"sorted: {number} 1", f"**{number} 1**"]
    return {"id": number, "prompt": f"Sort: {number} 1", "chosen": chosen, "rejected": rejected, "domain": domain}


def judged(number: int, source: str, label: str, model: str) -> dict:
    answers = {"response_A": f"1 {number}", "response_B": f"{number} 1"}
    row = {"pair_id": f"p{number}", "question": f"Sort: {number} 1", "source": source, "label": label}
    return {**row, **answers, "response_model": model}


ROWS = {
    "reward-bench": [pair(2), pair(3, "donotanswer"), pair(4, "mt-bench-easy"), pair(5, "llmbar-natural")],
    "reward-bench-2": [four(2), four(3, "Focus"), ties("ref:1", ["1 2"]), ties("tied:1", ["1 2", "1 2."])],
    "rm-bench": [styles(2, "chat"), styles(3, "safety-refuse"), styles(4, "safety-response")],
    "judge-bench": [
        judged(2, "mmlu-pro-law", "A>B", "gpt-4o-2024-05-13"),
        judged(3, "livecodebench", "B>A", "claude-3-5-sonnet-20240620"),
    ],
}


CONVERSATIONS = {"reward-bench": 8, "reward-bench-2": 15, "rm-bench": 18, "judge-bench": 4}


def scores_of(scorer, prompt: str, answers: list[str]) -> list[float]:
    """Each answer scored alone."""
    talks = [({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}) for answer in answers]
    alone = [PreferenceGroup((talk,), comparisons=()) for talk in talks]
    return [found.value for (found,) in scorer.score_each(alone)]


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_from_a_file_is_scored_and_says_that_it_is_not_whole(model, said, tmp_path, name):
    file = write_lines(tmp_path / "rows.jsonl", ROWS[name])
    entry = run.evaluate_suite(*model, *parse_suite(f"{name}={file}"))
    assert list(entry) == ["suite", "headline", "figures", "against", "table"]
    assert (entry["suite"], entry["headline"]) == (name, entry["figures"]["headline"])
    assert 0 <= entry["headline"] <= 1.01
    count, all_of_it = len(ROWS[name]), OFFICIAL[name]
    assert entry["figures"]["rows"] == {
        "official": all_of_it,
        "read": count,
        "scored": count,
        "missing": all_of_it - count,
        "extra": 0,
        "left_out": {},
        "first_left_out": None,
        "truncated": 0,
        "conversations": CONVERSATIONS[name],
    }
    assert not entry["figures"]["complete"]
    missing = f"this is not the official number: {all_of_it - count:,} of {all_of_it:,} rows missing"
    assert said == [f"{name}: {missing}"]
    columns = entry["table"]["columns"]
    assert {len(row) for row in entry["table"]["rows"]} == {len(columns)}
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_the_figures_are_those_of_each_answer_scored_alone(model, tmp_path):
    _, _, scorer = model
    rows = [pair(number, subset) for number, subset in zip(range(2, 9), ["hep-go", "donotanswer"] * 4, strict=False)]
    entry = run.evaluate_suite(*model, REWARD_BENCH, as_section(str(write_lines(tmp_path / "a.jsonl", rows))))
    right: dict[str, list[bool]] = {"hep-go": [], "donotanswer": []}
    for row in rows:
        chosen, rejected = scores_of(scorer, row["prompt"], [row["chosen"], row["rejected"]])
        right[row["subset"]].append(chosen > rejected)
    expected = {name: (len(values), sum(values) / len(values)) for name, values in right.items()}
    subsets = entry["figures"]["subsets"]
    assert {name: (subsets[name]["rows"], subsets[name]["accuracy"]) for name in right} == expected
    assert {share for _, share in expected.values()} != {0.0}
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    other = run.evaluate_suite(*model, REWARD_BENCH, as_section(str(write_lines(tmp_path / "b.jsonl", turned))))
    assert entry["headline"] + other["headline"] == pytest.approx(1, abs=1e-12)


def test_what_cannot_be_scored_is_left_out_counted_and_said(model, said, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROWS", 2)  # several windows
    lines = [
        json.dumps(pair(2)),
        json.dumps(pair(3, "hep-perl")),
        "no json",
        json.dumps(pair(4, rejected="  ")),  # one of two answers is enough
        json.dumps(pair(5, prompt="9 " * 200)),  # its prompt is cut
        json.dumps(pair(6, chosen="9 " * 200)),  # its answer does not fit
        json.dumps(pair(7, "donotanswer")),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n")
    found = run.evaluate_suite(*model, *parse_suite(f"reward-bench={file}"))["figures"]
    assert found["rows"] == {
        "official": 2985,
        "read": 7,
        "scored": 3,
        "missing": 2982,
        "extra": 0,
        "left_out": {"unknown_subset": 1, "bad_json": 1, "empty_reply": 1, "overlong": 1},
        "first_left_out": f"unknown_subset (subset is 'hep-perl') at {file}:2",
        "truncated": 1,
        "conversations": 6,
    }
    assert found["subsets"]["hep-go"]["rows"] == 2
    assert said == [
        "reward-bench: this is not the official number: 2,982 of 2,985 rows missing, 4 left out "
        "(1 unknown_subset, 1 bad_json, 1 empty_reply, 1 overlong; first: unknown_subset (subset is 'hep-perl') at "
        f"{file}:2), 1 scored truncated"
    ]


def test_windows_change_no_figure(model, tmp_path, monkeypatch):
    file = write_lines(tmp_path / "rows.jsonl", [four(number) for number in range(2, 9)])
    suite, source = parse_suite(f"reward-bench-2={file}")
    whole = run.evaluate_suite(*model, suite, source)
    monkeypatch.setattr(run, "ROWS", 3)
    assert run.evaluate_suite(*model, suite, source) == whole


@pytest.mark.parametrize("name", SUITES)
def test_every_kind_of_file_gives_the_same(model, tmp_path, name):
    lines = write_lines(tmp_path / "rows.jsonl", ROWS[name])
    expected = run.evaluate_suite(*model, *parse_suite(f"{name}={lines}"))
    (tmp_path / "total_dataset.json").write_text(json.dumps(ROWS[name], indent=1))  # as RM-Bench has it
    pq.write_table(pa.Table.from_pylist(ROWS[name]), tmp_path / "rows.parquet")  # as the Hub has most sets
    for file in ("total_dataset.json", "rows.parquet"):
        assert run.evaluate_suite(*model, *parse_suite(f"{name}={tmp_path / file}")) == expected


def test_the_hub_is_read_where_no_file_is_given_all_splits_of_it(model, monkeypatch):
    asked: list[tuple[str, str]] = []
    rows = dict(zip(("gpt", "claude"), ROWS["judge-bench"], strict=True))

    def load_dataset(path: str, split: str) -> datasets.Dataset:
        asked.append((path, split))
        return datasets.Dataset.from_list([rows[split]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = run.evaluate_suite(*model, *parse_suite("judge-bench"))["figures"]
    assert set(asked) == {("ScalerLab/JudgeBench", "gpt"), ("ScalerLab/JudgeBench", "claude")}
    assert found["rows"]["scored"] == 2
    assert {name: of["rows"] for name, of in found["responses"].items()} == {"gpt": 1, "claude": 1}


def test_what_is_odd_of_conversations_is_counted_and_said(model, said, tmp_path):
    rows = [pair(2), pair(3, rejected="3 1 <|im_start|>")]
    entry = run.evaluate_suite(*model, *parse_suite(f"reward-bench={write_lines(tmp_path / 'rows.jsonl', rows)}"))
    assert entry["figures"]["noted"] == {"control_tokens": 1}
    assert said[0].startswith("reward-bench: 1 of 4 conversations: text holds control tokens")


def test_progress_is_of_rows_and_comes_to_the_last_one(model, tmp_path, monkeypatch):
    told: list[float] = []

    class Progress:
        def advance(self, amount: float) -> None:
            told.append(amount)

    @contextmanager
    def progress(description: str, total: int | None, unit: str):
        assert (description, total, unit) == ("scoring reward-bench", 5, "rows")
        yield Progress()

    monkeypatch.setattr(output, "progress", progress)
    monkeypatch.setattr(run, "ROWS", 2)
    rows = [pair(2), pair(3, "hep-perl"), pair(4), pair(5, chosen=""), pair(6, "hep-perl")]
    run.evaluate_suite(*model, *parse_suite(f"reward-bench={write_lines(tmp_path / 'rows.jsonl', rows)}"))
    assert sum(told) == 5
    assert min(told) >= 0


def entry_of(name: str, file: str) -> dict:
    """On each of several processes: in windows of two rows, so that all have something to score."""
    run.ROWS = 2
    config = configuration_of(BEFORE / "model").config
    encoder = load_encoder(config)
    return run.evaluate_suite(config, encoder, load_scorer(config, encoder), *parse_suite(f"{name}={file}"))


@pytest.mark.slow
def test_several_processes_find_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ROWS", run.ROWS)  # which comes back
    rows = [four(number) for number in range(2, 9)] + [four(9, "Humour")]
    file = str(write_lines(tmp_path / "rows.jsonl", rows))
    first, second = on_ranks(2, entry_of, "reward-bench-2", file)
    alone = entry_of("reward-bench-2", file)
    assert first == second == alone
    assert alone["figures"]["rows"]["scored"] == 7


def covered(*counts: tuple[str, int], truncated: int = 0) -> dict:
    scored = Coverage()
    for name, count in counts:
        for number in range(count):
            cut = number < truncated
            scored.add(Asked(name, name), [Score(1.0, cut), Score(0.0)], "file:1")
    return figures(REWARD_BENCH, scored)


def test_all_rows_once_and_whole_make_the_official_number():
    rows = list(REWARD_BENCH.official.items())
    found = covered(*rows)
    assert (found["complete"], found["not_official"]) == (True, None)
    assert found["headline"] == 1.0
    cut = covered(*rows, truncated=1)  # of each of 23 subsets
    assert (cut["complete"], cut["rows"]["truncated"]) == (False, 23)
    twice = covered(*rows, ("hep-go", 3))
    assert (twice["complete"], twice["rows"]["missing"], twice["rows"]["extra"]) == (False, 0, 3)
    assert twice["not_official"] == "this is not the official number: 3 more than there should be"
    swapped = covered(*rows[1:], ("hep-go", 100))  # as many rows in all, and not the same
    assert (swapped["rows"]["missing"], swapped["rows"]["extra"]) == (100, 100)


def test_rows_of_another_set_end_in_one_line(model, tmp_path):
    file = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(RmcliError) as error:
        run.evaluate_suite(*model, *parse_suite(f"reward-bench={file}"))
    assert error.value.message == (
        f"suite reward-bench: no row of {file} can be scored by it; the first: missing_column subset at {file}:1"
    )
    file.write_text("")
    with pytest.raises(RmcliError, match=r"it is empty$"):
        run.evaluate_suite(*model, *parse_suite(f"reward-bench={file}"))


def test_a_prepared_folder_is_no_suite(model):
    with pytest.raises(ConfigError, match=r"is prepared, and a suite is read as its authors publish it$"):
        run.evaluate_suite(*model, *parse_suite(f"rm-bench={BEFORE / 'data'}"))


def test_without_the_hub_a_file_is_asked_for(model, monkeypatch):
    def unreachable(source):
        raise RmcliError(f"data set {source.path} (split {source.split}) cannot be had from the Hub: no network")

    monkeypatch.setattr(run.inputs, "count_rows", unreachable)
    with pytest.raises(RmcliError) as error:
        run.evaluate_suite(*model, *parse_suite("rm-bench"))
    assert error.value.message.startswith("data set THU-KEG/RM-Bench (split train) cannot be had from the Hub")
    assert error.value.hint is not None
    assert error.value.hint.endswith("--suite rm-bench=FILE")


def test_suite_by_name_from_the_hub_or_from_a_file():
    assert list(SUITES) == ["reward-bench", "reward-bench-2", "rm-bench", "judge-bench"]
    for name, suite in SUITES.items():
        assert parse_suite(name) == (suite, None)
        assert sum(suite.official.values()) == OFFICIAL[name]
    places = {name: [(source.path, source.split) for source in suite.hub] for name, suite in SUITES.items()}
    assert places == {
        "reward-bench": [("allenai/reward-bench", "filtered")],
        "reward-bench-2": [("allenai/reward-bench-2", "test")],
        "rm-bench": [("THU-KEG/RM-Bench", "train")],
        "judge-bench": [("ScalerLab/JudgeBench", "gpt"), ("ScalerLab/JudgeBench", "claude")],
    }
    own = "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"  # as JudgeBench's repository names it
    assert parse_suite(f"judge-bench={own}")[1] == as_section(own)
    _, source = parse_suite("rm-bench=path=my/set,split=test")
    assert source is not None
    assert (source.path, source.split) == ("my/set", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward-bench-3", f"unknown suite 'reward-bench-3': the suites are {NAMES}"),
        ("rows.jsonl", f"unknown suite 'rows.jsonl': the suites are {NAMES}"),
        ("rm-bench=", "suite 'rm-bench=' names no file"),
        ("rm-bench=path=a.jsonl,weight=2", "input 'path=a.jsonl,weight=2': weight is for prepare"),
    ],
)
def test_what_is_no_suite_is_one_line(text, message):
    with pytest.raises(ConfigError) as error:
        parse_suite(text)
    assert error.value.message == message
