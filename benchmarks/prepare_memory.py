"""How the memory of `rmcli prepare` grows with the rows: largest resident size at two sizes, and the slope.

python benchmarks/prepare_memory.py [--rows 100000 1000000]

Rows are short and all different, so that the set of seen rows is as large as it gets; the tiny preset's tokenizer.
The figure is ru_maxrss of the whole command, its audit included.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_rows(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            file.write(json.dumps({"prompt": f"q{number}", "chosen": f"a{number}", "rejected": f"b{number}"}) + "\n")


def peak_kilobytes(num_rows: int) -> tuple[int, float]:
    """Of a fresh process, started by a small one: a child's peak counts from its parent's size."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        write_rows(rows, num_rows)
        command = [
            sys.executable,
            "-m",
            "rmcli",
            "prepare",
            str(rows),
            "--map-fn",
            "canonical",
            "--preset",
            "tiny",
            "-q",
        ]
        started = time.perf_counter()
        subprocess.run([*command, "-o", str(Path(folder) / "out")], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 1_000_000])
    small, large = sorted(parser.parse_args().rows)  # ru_maxrss is the largest child's so far: the small one first
    peaks = {}
    for num_rows in (small, large):
        peaks[num_rows], seconds = peak_kilobytes(num_rows)
        print(f"{num_rows:,} rows: {peaks[num_rows] / 1024:,.0f} MiB, {seconds:.0f} s", flush=True)
    slope = (peaks[large] - peaks[small]) * 1024 / (large - small)
    at_ten_million = peaks[large] * 1024 + slope * (10_000_000 - large)
    print(f"{slope:.0f} bytes a row; 10,000,000 rows would take {at_ten_million / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
