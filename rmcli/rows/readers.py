"""Files to rows, streaming: JSON lines, JSON arrays, CSV, Parquet and Arrow, each from a path or a URL.

A reader yields a `Read` per row: the line or row number counted from 1, and the row, or why there is none and how its
text begins. What cannot be read any further raises RmcliError; nothing ends early in silence.
"""

from collections.abc import Callable, Iterator

from rmcli.rows.columnar_files import count_columnar_rows, read_arrow_file, read_parquet_file
from rmcli.rows.csv_files import read_csv_file, read_tsv_file
from rmcli.rows.files import LONGEST_ROW, Read, bounded_lines, open_bytes
from rmcli.rows.json_files import read_json_file, read_json_lines_file


def read_file(name: str, limit: int = LONGEST_ROW) -> Iterator[Read]:
    """All rows of one file, by its ending. A row of over `limit` bytes is a Read with the problem too_long_text."""
    kind = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    reader: Callable[[str, int], Iterator[Read]] = {
        "jsonl": read_json_lines_file,
        "json": read_json_file,
        "csv": read_csv_file,
        "tsv": read_tsv_file,
        "parquet": read_parquet_file,
        "arrow": read_arrow_file,
    }[kind]
    return reader(name, limit)


def count_rows(name: str) -> int:
    """How many rows `read_file` will give. Parses what has no other way to tell: CSV and JSON arrays.

    Raises RmcliError for a file that is broken.
    """
    if name.endswith((".parquet", ".arrow")):
        return count_columnar_rows(name)
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        with open_bytes(name) as file:
            return sum(1 for line in bounded_lines(file, LONGEST_ROW) if line.strip())
    return sum(1 for _ in read_file(name))
