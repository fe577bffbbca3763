"""How the memory of `rmcli prepare` grows with the rows: its peak at two sizes, and the slope.

    python benchmarks/prepare_memory.py [--rows 100000 1000000]

Rows are short and all different, so that the set of seen rows is as large as it gets; the tiny preset's tokenizer.
The whole command is measured, its audit included. `memory` is the largest anonymous memory (RssAnon in /proc, looked
at twenty times a second): what the process needs. `resident` is the largest resident size, with the pages of mapped
files (shared libraries, the Arrow files it has written), which the system takes back when others need them.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_rows(path: Path, num_rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            file.write(json.dumps({"prompt": f"q{number}", "chosen": f"a{number}", "rejected": f"b{number}"}) + "\n")


def peaks(num_rows: int) -> tuple[int, int, float]:
    """(anonymous bytes, resident bytes, seconds) of one prepare in a fresh process."""
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
        process = subprocess.Popen([*command, "-o", str(Path(folder) / "out")], stdout=subprocess.DEVNULL)
        anonymous = resident = 0
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = {name: int(value) * 1024 for name, value in re.findall(r"(RssAnon|VmHWM):\s+(\d+) kB", status)}
            anonymous = max(anonymous, found.get("RssAnon", 0))
            resident = max(resident, found.get("VmHWM", 0))
            time.sleep(0.05)
        if process.returncode:
            sys.exit(f"prepare ended with {process.returncode}")
        return anonymous, resident, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=[100_000, 1_000_000])
    small, large = sorted(parser.parse_args().rows)
    memory = {}
    for num_rows in (small, large):
        memory[num_rows], resident, seconds = peaks(num_rows)
        print(
            f"{num_rows:,} rows: memory {memory[num_rows] / 1e6:,.0f} MB, resident {resident / 1e6:,.0f} MB, "
            f"{seconds:.0f} s",
            flush=True,
        )
    slope = (memory[large] - memory[small]) / (large - small)
    at_ten_million = memory[large] + slope * (10_000_000 - large)
    print(f"{slope:.0f} bytes a row; 10,000,000 rows would take {at_ten_million / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
