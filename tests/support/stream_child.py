"""Every command against every kind of stdout, in one process; what came of each goes to a file as JSON.

stream_child.py RESULTS COMMANDS: COMMANDS is a JSON list of argument lists. Each result is {"command", "stdout" (its
kind), "code", "said" (stderr), "answer" (what a file got)}.
"""

import contextlib
import io
import json
import os
import sys
import traceback

from rmcli.cli import app

KINDS = ("latin-1", "ascii", "full", "closed")


def set_stdout(kind: str, target: str) -> None:
    if kind == "closed":
        sys.stdout = None
        os.close(1)
        return
    number = os.open("/dev/full" if kind == "full" else target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if number != 1:
        os.dup2(number, 1)
        os.close(number)
    encoding = kind if kind in ("latin-1", "ascii") else "utf-8"
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding=encoding, errors="strict")


def run(command: list[str], kind: str, target: str) -> dict[str, object]:
    set_stdout(kind, target)
    sys.argv = ["rmcli", *command]
    sys.stderr = io.StringIO()
    code = None
    try:
        app.main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  (its traceback is what is looked for)
        traceback.print_exc()
    with contextlib.suppress(OSError):  # a stream given up takes what is left
        sys.stdout.flush()
    answer = ""
    if kind in ("latin-1", "ascii"):
        with open(target, encoding=kind) as file:
            answer = file.read()
    return {"command": command, "stdout": kind, "code": code or 0, "said": sys.stderr.getvalue(), "answer": answer}


def main() -> None:
    results, commands = sys.argv[1], json.loads(sys.argv[2])
    target = results + ".stdout"
    found = [run(command, kind, target) for kind in KINDS for command in commands]
    with open(results, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
