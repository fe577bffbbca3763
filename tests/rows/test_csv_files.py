"""CSV: a quote that is never closed stops the run, an answer over many lines does not."""

import csv
import io

import pytest

from rmcli.errors import RmcliError
from rmcli.rows.readers import count_rows, read_file

HEADER = "prompt,chosen,rejected\n"
ROWS = [f"Count to {n},To {n},No {n}\n" for n in range(2, 1002)]


def read(tmp_path, text: str | bytes, name: str = "a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_file(str(path)))


@pytest.mark.parametrize(
    ("rows", "line", "what"),
    [
        ({5: 'Count,"To 5,No 5\n'}, 5, "is never closed"),
        ({900: '"Count,To,No\n', 901: "x,y\n"}, 900, "is never closed"),
        ({5: 'Count,"To 5,No\n', 60: '"Count",To 60,No\n'}, 5, "takes in the next 55 lines, 55 of which are rows"),
        # Three cells, as it should be.
        ({5: 'Count,To,"No\n', 160: 'Count,To,No"\n'}, 5, "takes in the next 155 lines"),
        ({5: 'Count,"two\nlines","To 5\n'}, 6, "is never closed"),
        ({5: 'Count,"a ""word"" of","To 5\n', 9: 'Count,"x, y",No\n'}, 5, "takes in the next 4 lines, 4 of which"),
    ],
)
def test_a_quote_that_swallows_rows_stops_with_the_line_that_opens_it(tmp_path, rows, line, what):
    lines = [HEADER, *ROWS]
    for number, text in rows.items():
        lines[number - 1] = text
    with pytest.raises(RmcliError, match=rf"a.csv: line {line}: a quote is opened that {what}") as error:
        read(tmp_path, "".join(lines))
    assert "doubled" in (error.value.hint or "")
    with pytest.raises(RmcliError):
        count_rows(str(tmp_path / "a.csv"))


ANSWERS = [
    "one\ntwo, with a comma\nthree",
    'say "so"\n"and so"\n',
    "\n".join(f"step {n}: a, b and c" for n in range(200)),
    "a,b,c\n" * 15,  # a table as wide as the file
    "x = [\n    1,\n    2,\n]\n" * 30,
    "first\r\nsecond\rthird",
]


def test_answers_over_many_lines_are_read_whole(tmp_path, capsys):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["prompt", "chosen", "rejected"])
    writer.writerows([answer, answer[::-1], "no"] for answer in ANSWERS)
    values = [row.value for row in read(tmp_path, text.getvalue())]
    assert values == [{"prompt": a, "chosen": a[::-1], "rejected": "no"} for a in ANSWERS]
    said = [line for line in capsys.readouterr().err.splitlines() if "takes in" in line]
    assert len(said) == 1  # of the table
    assert said[0].endswith("28 of which are rows themselves: '\",\"'; read as it stands, one row")


def test_a_bad_record_over_a_few_lines_costs_itself_alone(tmp_path):
    rows = read(tmp_path, f'{HEADER}a,"two\nlines"x,c\nd,e,f\n')
    assert [(row.number, row.problem) for row in rows] == [(1, "bad_csv"), (2, None)]


def test_tabs_are_read_from_tsv_and_other_separators_are_named(tmp_path):
    rows = read(tmp_path, 'prompt\tchosen\nwhat, now?\t"two\nlines"\n', "a.tsv")
    assert [row.value for row in rows] == [{"prompt": "what, now?", "chosen": "two\nlines"}]
    for name, header, words in (
        ("a.csv", "prompt;chosen;rejected\n", "semicolons, not commas"),
        ("a.csv", "prompt\tchosen\n", "tabs, not commas"),
        ("a.tsv", "prompt,chosen\n", "commas, not tabs"),
    ):
        with pytest.raises(RmcliError, match=f"its cells stand between {words}"):
            read(tmp_path, header + "a;b;c\n", name)
    assert [row.value for row in read(tmp_path, "prompt\nwhy; and how?\n")] == [{"prompt": "why; and how?"}]
    with pytest.raises(RmcliError, match="the header, line 1, cannot be read"):
        read(tmp_path, 'prompt,"chosen\n')
