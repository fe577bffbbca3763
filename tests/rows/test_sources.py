"""Every format and place that rows come from; what is broken costs its own row, or the run says why not."""

import csv
import gzip
import io
import json
import sys
import tracemalloc

import datasets
import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from rmcli.config.resolve import parse_source
from rmcli.errors import ConfigError, RmcliError
from rmcli.rows import sources
from rmcli.rows.duplicates import Seen
from rmcli.rows.folders import find_files
from rmcli.rows.readers import read_file
from support.places import write_lines

ROWS = [
    {"prompt": f"q {n}", "chosen": f"größer\n{n}", "rejected": f'"{n}", 2024-01-0{n % 9 + 1}'} for n in range(3000)
]


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_csv(rows) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_arrow(rows, opener) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with opener(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    return sink.getvalue().to_pybytes()


def as_parquet(rows) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS).encode()
FORMATS = {
    "a.jsonl": LINES,
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zst(LINES[: len(LINES) // 2]) + zst(LINES[len(LINES) // 2 :]),
    "array.json": ARRAY,
    "array.json.gz": gzip.compress(ARRAY),
    "indented.json": b"\xef\xbb\xbf\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "lines.json": LINES,
    "lines.json.zst": zst(LINES),
    "a.csv": as_csv(ROWS),
    "a.csv.gz": gzip.compress(as_csv(ROWS)),
    "a.csv.zst": zst(as_csv(ROWS)),
    "a.parquet": as_parquet(ROWS),
    "file.arrow": as_arrow(ROWS, pa.ipc.new_file),
    "stream.arrow": as_arrow(ROWS, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["path", "file://", "memory://"])
def test_every_format_gives_the_same_rows_from_a_path_and_a_url(tmp_path, name, place):
    address = str(tmp_path / name) if place == "path" else f"{place}{tmp_path}/{name}"
    with fsspec.open(address, "wb") as file:
        file.write(FORMATS[name])
    sources.check_sources([address])
    read = list(sources.read_rows([address], "train"))
    assert [row.value for row in read] == ROWS
    assert [row.line for row in read] == list(range(1, 3001))
    assert {row.file for row in read} == {address}


@pytest.mark.parametrize("place", ["path", "memory://"])
def test_a_folder_is_all_its_files_in_sorted_order(tmp_path, place):
    root = str(tmp_path) if place == "path" else f"memory://{tmp_path}"
    for name in ("b/2.jsonl", "a.csv", "notes.txt"):
        with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True) as file:
            file.write(as_csv(ROWS[:2]) if name.endswith("csv") else b'{"prompt": "last"}\n')
    read = list(sources.read_rows([root], "train"))
    assert [row.file for row in read] == [f"{root}/a.csv", f"{root}/a.csv", f"{root}/b/2.jsonl"]
    assert read[2].value == {"prompt": "last"}


@pytest.mark.parametrize("place", ["path", "memory://"])
def test_a_saved_data_set_is_its_rows_and_of_several_splits_one(tmp_path, place, monkeypatch):
    """What save_to_disk writes beside its Arrow files is JSON, but no rows."""
    rows = datasets.Dataset.from_list(ROWS[:20])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select(range(3))}).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "only")
    monkeypatch.chdir(tmp_path / "one")
    root = str(tmp_path)
    if place != "path":
        root = f"memory://{tmp_path}"
        fsspec.filesystem("memory").put(str(tmp_path), str(tmp_path), recursive=True)
    for folder in (f"{root}/one", f"{root}/only", f"{root}/two/train", *(["."] if place == "path" else [])):
        assert [row.value for row in sources.read_rows([folder], "train")] == ROWS[:20]
    assert [row.value for row in sources.read_rows([f"{root}/two"], "train")] == ROWS[:20]
    named = {"path": f"{root}/two", "split": "test"}
    assert [row.value for row in sources.read_rows([named], "train")] == ROWS[:3]
    (tmp_path / "state.json").write_text('{"a": 1}\n')  # of that name, but no saved set's
    assert find_files(str(tmp_path / "state.json")).files == [str(tmp_path / "state.json")]


def test_stdin_is_json_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n\nbad\n{"a": 2}')))
    read = list(sources.read_rows(["-"], "train"))
    assert [(row.file, row.line, row.value, row.problem) for row in read] == [
        ("-", 1, {"a": 1}, None),
        ("-", 3, None, "bad_json"),
        ("-", 4, {"a": 2}, None),
    ]
    with pytest.raises(ConfigError, match="stdin can be read once"):
        sources.check_sources(["-", "-"])


def problems(path) -> list[tuple[int, str]]:
    return [(row.number, row.problem) for row in read_file(str(path)) if row.problem]


def test_a_bad_line_costs_no_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n'  # a byte order mark is no part of the first line
        b'{"a": 1, "a": 2}\n'
        b'{"a": {"b": 1, "b": 1}}\n'
        b'{"a": "\\ud800"}\n'
        b'{"a": "\xff"}\n'
        b"[1]\n" + b"[" * 100_000 + b"\n"
        b'{"a": "2024-01-01"}\n'
    )
    assert problems(path) == [
        (2, "bad_json"),
        (3, "bad_json"),
        (4, "bad_json"),
        (5, "bad_json"),
        (6, "wrong_type"),
        (7, "bad_json"),
    ]
    assert [row.value for row in read_file(str(path)) if row.value] == [{"a": 1}, {"a": "2024-01-01"}]


def test_a_bad_element_of_an_array_costs_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, 5, {"a": 1, "a": 2}, {"a": "\xff"}, {"a": "\\ud800"}, null, {"a": 2} ]\n')
    assert problems(path) == [(2, "wrong_type"), (3, "bad_json"), (4, "bad_json"), (5, "bad_json"), (6, "wrong_type")]


def test_elements_longer_than_the_buffer_and_numbers_at_its_end_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("rmcli.rows.json_files._CHARACTERS_AT_A_TIME", 7)
    rows = [{"n": 10**n, "text": "x" * 3**n, "nothing": None, "yes": True, "e": -1.5e-7} for n in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [row.value for row in read_file(str(tmp_path / "a.json"))] == rows
    (tmp_path / "numbers.json").write_text("[123456789, 1234567890, 12]")
    assert [row.text for row in read_file(str(tmp_path / "numbers.json"))] == [
        "123456789",
        "1234567890",
        "12",
    ]
    (tmp_path / "empty.json").write_text(" [ \n\n ] ")
    assert list(read_file(str(tmp_path / "empty.json"))) == []
    (tmp_path / "nothing.json").write_text("")
    assert list(read_file(str(tmp_path / "nothing.json"))) == []


def test_reading_an_array_holds_a_few_elements_at_a_time(tmp_path):
    element = json.dumps({"text": "x" * 1000})
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",\n".join([element] * 20_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in read_file(str(tmp_path / "a.json"))) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # the file has 20 MB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": 2}', "after element 2 of the array the array is cut short"),
        ('[{"a": 1}, {"a": ', "after element 1 of the array what comes is no JSON"),
        ('[{"a": 1} {"a": 2}]', "after element 1 of the array a comma is missing"),
        ('[{"a": 1}, {"a" 2}' + " " * 40 + "]", "after element 1 of the array what comes is no JSON"),
        ('[{"a": 1}, ]', "after element 1 of the array what comes is no JSON"),
        ('[{"a": 1}] [2]', "after element 1 of the array there is more text behind the array"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_broken_array_stops_the_run(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RmcliError, match=message):
        list(read_file(str(tmp_path / "a.json")))


def test_a_bad_csv_row_costs_no_other(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,2\n\n3\n4,5,6\n"x"y,2\n\xff,8\n"two\nlines",' + b"z" * 200_000 + b'\n"open,1\n')
    assert problems(path) == [(2, "bad_csv"), (3, "bad_csv"), (4, "bad_csv"), (5, "bad_text"), (7, "bad_csv")]
    values = [row.value for row in read_file(str(path)) if row.value]
    assert values == [{"a": "1", "b": "2"}, {"a": "two\nlines", "b": "z" * 200_000}]
    path.write_text("a,a\n1,2\n")
    with pytest.raises(RmcliError, match="column 'a' stands twice"):
        list(read_file(str(path)))


def test_a_text_that_is_not_utf8_costs_its_own_arrow_row(tmp_path):
    offsets, data = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, data])
    batch = pa.record_batch([texts, pa.array([7, 8, 9])], ["t", "n"])
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    read = list(read_file(str(tmp_path / "a.arrow")))
    assert [(row.number, row.value, row.problem) for row in read] == [
        (1, {"t": "a", "n": 7}, None),
        (2, None, "bad_text"),
        (3, {"t": "c", "n": 9}, None),
    ]
    assert read[1].text == '{"t": "(not UTF-8)", "n": 8}'


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"a.jsonl", "lines.json", "a.csv"}))
def test_a_file_cut_in_the_middle_is_never_read_as_whole(tmp_path, name):
    data = FORMATS[name]
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(RmcliError, match=name):
        list(read_file(str(tmp_path / name)))


def test_an_arrow_stream_without_its_end_mark_is_said_aloud(tmp_path, capsys):
    (tmp_path / "a.arrow").write_bytes(FORMATS["stream.arrow"][:-8])
    assert len(list(read_file(str(tmp_path / "a.arrow")))) == 3000
    assert "ends without Arrow's end-of-stream mark" in capsys.readouterr().err
    (tmp_path / "a.arrow").write_bytes(FORMATS["stream.arrow"])
    list(read_file(str(tmp_path / "a.arrow")))
    assert capsys.readouterr().err == ""


def test_a_hub_set_is_asked_for_with_subset_split_revision_and_streaming(monkeypatch):
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return datasets.Dataset.from_list(ROWS[:3])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = parse_source("path=org/name,subset=en,split=test,revision=abc,streaming=true")
    sources.check_sources([source])
    read = list(sources.read_rows([source, "org/other"], "train"))
    assert asked == [
        ("org/name", {"split": "test", "name": "en", "revision": "abc", "streaming": True}),
        ("org/other", {"split": "train"}),
    ]
    assert [(row.source_id, row.file, row.line) for row in read[2:4]] == [(0, "org/name", 3), (1, "org/other", 1)]


def test_what_only_the_hub_knows_is_refused_elsewhere(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS[:1])
    with pytest.raises(ConfigError, match="split is for Hub data sets"):
        sources.check_sources([parse_source(f"path={tmp_path / 'a.jsonl'},split=test")])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nonsense://bucket/a.jsonl", "nonsense://bucket/a.jsonl: Protocol not known"),
        ("memory://gone.jsonl", "source memory://gone.jsonl: no such file"),
        ("{tmp}/a.xml", "a.xml: not one of .jsonl"),
        ("{tmp}/empty", "no .jsonl, .* file in this folder"),
    ],
)
def test_a_source_that_is_not_there_is_one_clear_line(tmp_path, source, message):
    (tmp_path / "a.xml").touch()
    (tmp_path / "empty").mkdir()
    source = source.format(tmp=tmp_path)

    def check_and_read() -> None:
        sources.check_sources([source])
        list(sources.read_rows([source], "train"))

    with pytest.raises(ConfigError, match=message):
        check_and_read()


def test_the_first_row_can_be_looked_at_but_not_that_of_stdin(tmp_path):
    (tmp_path / "a.jsonl").write_text('bad\n{"question": 1}\n')
    assert sources.first_row(str(tmp_path / "a.jsonl"), "train").value == {"question": 1}
    with pytest.raises(ConfigError, match="schema of stdin"):
        sources.first_row("-", "train")


# --- the duplicate set ---


def test_seen_keys_are_found_with_their_place_and_can_be_forgotten():
    seen = Seen()
    keys = [n.to_bytes(2, "big") + bytes(10) + (n * n).to_bytes(4, "big") for n in range(500)]
    keys += [bytes(12) + n.to_bytes(4, "big") for n in range(1000, 1500)]  # all in one bucket
    for n, key in enumerate(keys):
        assert seen.find(key) is None
        seen.add(key, f"file{n % 3}", n + 1)
    assert [seen.find(key) for key in keys] == [f"file{n % 3}:{n + 1}" for n in range(1000)]
    seen.discard(keys[600])
    assert seen.find(keys[600]) is None
    assert seen.find(keys[601]) == "file1:602"
    shifted = keys[700][:2] + keys[700][3:] + bytes(1)  # the bytes are there, but not as one entry
    assert seen.find(shifted) is None


def test_ten_million_seen_keys_would_take_less_than_half_a_gigabyte():
    """The slope from 50,000 to 250,000 keys, in bytes for each: 24 stored, and room for the buckets to grow."""
    import hashlib

    tracemalloc.start()
    seen, sizes = Seen(), {}
    for n in range(250_000):
        seen.add(hashlib.sha256(b"%d" % n).digest()[:16], "file", n + 1)
        if n + 1 in (50_000, 250_000):
            sizes[n + 1] = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 24 <= (sizes[250_000] - sizes[50_000]) / 200_000 < 50
