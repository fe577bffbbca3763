"""The same odd rows in every input format, by two tokenizers: each accounted for, each text as it was given."""

import csv
import gzip
import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from rmcli.config.resolve import resolve
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.tokens.rendering import Renderer
from rmcli.tokens.tokenizer import load_tokenizer

KEPT = "kept"
LETTERS = (
    "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?-_()[]{}\"'\\/|<>äßéñ漢字ひ한ع🙂\u0301\u200d\u2028\u00a0\ufeff\n\t "
)
COLUMNS = ("prompt", "chosen", "rejected")
NUM_ROWS = 400

# kind -> (what replaces the cells of a good row, its fate, its fate where cells are text and null is none)
KINDS = {
    "good": ({}, KEPT, KEPT),
    "null-like": ({"chosen": "null", "rejected": "NaN"}, KEPT, KEPT),
    "numbers": ({"chosen": "1e3", "rejected": "007"}, KEPT, KEPT),
    "a date": ({"chosen": "2024-01-31T00:00:00Z"}, KEPT, KEPT),
    "a formula": ({"chosen": "=1+1", "rejected": "'x"}, KEPT, KEPT),
    "quotes": ({"chosen": 'a ""quoted"", "cell"', "rejected": '"'}, KEPT, KEPT),
    "many lines": ({"chosen": "a\n\nb,c\td\n", "rejected": "\n x"}, KEPT, KEPT),
    "template marks": ({"chosen": "{{ x }} {% raw %}"}, KEPT, KEPT),
    "empty reply": ({"chosen": ""}, "empty_reply", "empty_reply"),
    "blank reply": ({"rejected": " \n\t"}, "empty_reply", "empty_reply"),
    "null reply": ({"chosen": None}, "wrong_type", "empty_reply"),
    "blank prompt": ({"prompt": " "}, "empty_prompt", "empty_prompt"),
    "null prompt": ({"prompt": None}, "no_prompt", "empty_prompt"),
    "the same twice": ({"chosen": "same", "rejected": "same"}, "chosen_equals_rejected", "chosen_equals_rejected"),
}


def rows_of(seed: int, reward_token: str) -> list[tuple[str, dict]]:
    """(kind, row) in order; every kind comes, and the number of the row stands in its prompt."""
    draw = random.Random(seed)
    kinds = [*KINDS, "reward token", *draw.choices(["good", *KINDS], k=NUM_ROWS - len(KINDS) - 1)]
    draw.shuffle(kinds)
    found = []
    for number, kind in enumerate(kinds):
        text = ["".join(draw.choices(LETTERS, k=draw.randint(1, 40))) for _ in COLUMNS]
        row = {"prompt": f"{number} {text[0]} ?", "chosen": f"A{text[1]}.", "rejected": f"B{text[2]}."}
        change = {"chosen": f"x {reward_token} y"} if kind == "reward token" else KINDS[kind][0]
        found.append((kind, row | change))
    return found


def as_messages(row: dict) -> dict:
    roles = ("user", "assistant", "assistant")
    return {name: [{"role": role, "content": row[name]}] for name, role in zip(COLUMNS, roles, strict=True)}


def as_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_array(rows: list[dict]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_cells(rows: list[dict], delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=64)
    return sink.getvalue()


def as_arrow(rows: list[dict]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=64)
    return sink.getvalue()


WRITERS = {
    "jsonl": as_lines,
    "json": as_array,
    "csv": lambda rows: as_cells(rows, ","),
    "tsv": lambda rows: as_cells(rows, "\t"),
    "parquet": as_parquet,
    "arrow": as_arrow,
}
FORMATS = ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "json.gz", "csv.gz", "tsv.gz"]


def fate_of(kind: str, is_cells: bool, has_messages: bool) -> str:
    if kind == "reward token":
        return "reward_token_in_text"
    if has_messages and kind == "null prompt":
        return "wrong_type"
    return KINDS[kind][2 if is_cells else 1]


def check(cli, folder: Path, name: str, settings: list[str], reward, has_messages: bool) -> None:
    """One file through prepare: every fate in order, every kept text decoded and compared."""
    kinds, rows = zip(*rows_of(len(name), reward.reward_token), strict=True)
    ending = name.removesuffix(".gz")
    given = [as_messages(row) if has_messages else row for row in rows]
    data = WRITERS[ending](given)
    file = folder / f"rows-{has_messages}.{name}"
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    out = folder / f"{file.name}.out"
    options = [*settings, "-s", "data.eval_fraction=0.1", "--keep-duplicates", "--no-audit"]
    result = cli("prepare", file, "--map-fn", "canonical", "-o", out, *options)
    assert result.code == 0, result.stderr

    expected = [fate_of(kind, ending in ("csv", "tsv"), has_messages) for kind in kinds]
    account = read_manifest(out)["rows"]
    assert (account["in"], account["kept"]) == (NUM_ROWS, expected.count(KEPT))
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text("utf-8").split("\n")[:-1]]
    assert [reject["reason"] for reject in rejects] == [fate for fate in expected if fate != KEPT]

    renderer, seen = Renderer(reward.tokenizer), set()
    for split in SPLITS:
        packed = PackedSplit(out, split)
        for group in (group for number in range(len(packed)) for group in packed.groups(number)):
            seen.add(group.row_id)
            row = rows[group.row_id]
            for side, response in zip(("chosen", "rejected"), group.responses, strict=True):
                ids = np.concatenate([group.prefix, response])[:-1]  # the last is the reward token
                said = reward.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                turns = ({"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]})
                assert said == renderer.render_in_full(turns), (name, kinds[group.row_id], group.row_id)
                assert row["prompt"].strip() in said
                assert row[side].strip() in said
    assert seen == {number for number, fate in enumerate(expected) if fate == KEPT}


def check_all(cli, folder: Path, settings: list[str], reward) -> None:
    for name in FORMATS:
        check(cli, folder, name, settings, reward, has_messages=False)
        if name.partition(".")[0] not in ("csv", "tsv"):
            check(cli, folder, name, settings, reward, has_messages=True)


@pytest.mark.slow
def test_every_format_by_the_tokenizer_of_tiny(cli, tmp_path):
    check_all(cli, tmp_path, ["-p", "tiny"], load_tokenizer(resolve("tiny").config.model))


@pytest.mark.slow
def test_every_format_by_the_tokenizer_of_smollm2(cli, tmp_path, gguf):
    settings = [f"model.pretrained_model_name_or_path={gguf}"]
    reward = load_tokenizer(resolve("smollm2-135m", settings=settings).config.model)
    check_all(cli, tmp_path, ["-p", "smollm2-135m", "-s", settings[0]], reward)
