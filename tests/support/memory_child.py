"""The peak memory of one `train`, in a process of its own: `python memory_child.py DATA RUN KEY=VALUE ...`.

The baseline is what the process holds once everything is imported and the data is read. Prints a JSON line: bytes at
the peak above it, and what the estimate says of it.
"""

import json
import re
import sys
from pathlib import Path

import psutil

from rmcli import output
from rmcli.config.resolve import resolve
from rmcli.train.job import build_job
from rmcli.train.run import run

if __name__ == "__main__":
    output.set_verbosity(-1)
    data, folder, *settings = sys.argv[1:]
    job = build_job(resolve("tiny", settings=settings), Path(data), Path(folder))
    before = psutil.Process().memory_info().rss
    run(job)
    # Of this program alone: getrusage's figure begins with that of the process which started it.
    highest = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert highest is not None
    peak = int(highest[1]) * 1024 - before
    print(json.dumps({"peak": peak, "estimate": job.memory.total, "largest_forward": job.memory.tokens}))
