"""A row that is too long is rejected by name and never held whole; many answers cost no more than their pairs."""

import gzip
import json
import time
import tracemalloc

import pyarrow as pa
import pytest
from pyarrow import parquet

from rmcli.errors import RmcliError
from rmcli.prepare.units import CHUNK_CHARACTERS, Unit, in_chunks
from rmcli.records import RawRow
from rmcli.rows.map_fns.comparisons import from_scores, order_of
from rmcli.rows.readers import count_rows, read_file
from support.cli import run_cli

LIMIT = 1000
SHORT, LONG = {"a": "x" * 900}, {"a": 'y"\\,][{' * 9000}


def as_csv(row: dict[str, str]) -> str:
    return '"' + row["a"].replace('"', '""') + '",0\n'


FILES = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in (SHORT, LONG, SHORT)).encode(),
    "cut.jsonl": "".join(json.dumps(row) + "\n" for row in (SHORT, LONG, SHORT)).encode().rstrip(b"\n"),
    "array.json": json.dumps([SHORT, LONG, SHORT]).encode(),
    "indented.json": json.dumps([SHORT, LONG, SHORT], indent=1).encode(),
    "a.csv": ("a,n\n" + "".join(map(as_csv, (SHORT, LONG, SHORT)))).encode(),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("buffer", [7, 2**16])
def test_a_row_over_the_limit_costs_no_other(tmp_path, monkeypatch, name, packed, buffer):
    monkeypatch.setattr("rmcli.rows.json_files._CHARACTERS_AT_A_TIME", buffer)
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(gzip.compress(FILES[name]) if packed else FILES[name])
    rows = list(read_file(str(path), LIMIT))
    assert [(row.number, row.problem) for row in rows] == [(1, None), (2, "too_long_text"), (3, None)]
    assert [row.value["a"] for row in rows if row.value] == [SHORT["a"], SHORT["a"]]
    assert 'y\\"' in rows[1].text or 'y"' in rows[1].text
    assert len(rows[1].text) <= 200
    assert count_rows(str(path)) == 3


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_columnar_row_over_the_limit_costs_no_other(tmp_path, suffix):
    table = pa.Table.from_pylist([SHORT, LONG, SHORT])
    if suffix == "parquet":
        parquet.write_table(table, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
    # Rows are looked at one by one only where they take much together.
    path = str(tmp_path / f"a.{suffix}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmcli.rows.columnar_files._BYTES_AT_A_TIME", LIMIT)
        assert [row.problem for row in read_file(path, LIMIT)] == [None, "too_long_text", None]
    assert [row.problem for row in read_file(path)] == [None, None, None]


def test_an_array_whose_long_element_never_ends_is_cut_short(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": "' + "x" * 5000)
    with pytest.raises(RmcliError, match="the array is cut short"):
        list(read_file(str(tmp_path / "a.json"), LIMIT))


def test_an_open_quote_stops_at_the_limit_with_its_line(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,2\n"open,3\n' + "more,4\n" * 1000)
    with pytest.raises(RmcliError, match="line 3: a quote is opened that is not closed within 1,000 characters"):
        list(read_file(str(tmp_path / "a.csv"), LIMIT))


def test_a_line_of_gigabytes_is_never_held(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"a": "')
        for _ in range(60):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"a": 1}\n')
    tracemalloc.start()
    rows = list(read_file(str(tmp_path / "a.jsonl.gz"), 2_000_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.problem for row in rows] == ["too_long_text", None]
    assert peak < 10_000_000  # the line has 60 MB


def test_a_small_parquet_file_that_stands_for_much_is_read_in_parts(tmp_path):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["word " * 100_000]))
    parquet.write_table(pa.table({"a": texts}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 2000  # for 100 MB
    tracemalloc.start()
    assert sum(1 for row in read_file(str(tmp_path / "a.parquet")) if row.value) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


def test_a_chunk_holds_a_bounded_amount_of_text():
    rows = [RawRow(0, "f", n, {"messages": [{"content": "x" * (CHUNK_CHARACTERS // 4)}]}) for n in range(10)]
    sizes = [len(chunk) for chunk in in_chunks(Unit(n, (row,)) for n, row in enumerate(rows))]
    assert sizes == [4, 4, 2]


def test_prepare_rejects_what_is_over_data_max_characters_and_max_row_bytes(tmp_path):
    rows = [{"prompt": "w " * size, "chosen": "yes", "rejected": "no"} for size in (10, 500, 2000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = ("-s", "data.max_characters=900", "-s", "data.max_row_bytes=3000")
    arguments = ("--map-fn", "canonical", "-p", "tiny", "--no-audit", "-o", tmp_path / "out")
    result = run_cli("prepare", tmp_path / "a.jsonl", *arguments, *limits)
    assert "rows: 3 in = 1 kept + 2 rejected" in result.stderr
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["reason"], reject["line"]) for reject in rejects] == [("too_long_text", 2), ("too_long_text", 3)]


def test_the_order_of_many_answers_takes_one_look_at_each_pair():
    started = time.process_time()
    comparisons = from_scores([(7 * n) % 401 for n in range(401)])  # 80,200 pairs
    assert order_of(comparisons, 401) == tuple(sorted(range(401), key=lambda n: -((7 * n) % 401)))
    assert time.process_time() - started < 3  # a look at each pair for each answer takes some 8 s
