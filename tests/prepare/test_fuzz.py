"""Ten thousand broken, odd and good rows through the real `prepare`: no crash, none lost, every text intact."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rmcli.config.resolve import resolve
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.tokens.encode import Encoder
from rmcli.tokens.tokenizer import load_tokenizer

KEPT = "kept"
REWARD_TOKEN = "<|reserved_special_token_0|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-_()[]{}\"'\\/äßéñ漢字ひ🙂\u0301\u200d\u2028\u00a0\n\t"


def text(draw: random.Random, number: int) -> str:
    """Never empty, never twice: the number of the row stands in it."""
    return f"{number} {''.join(draw.choices(LETTERS, k=draw.randint(1, 30)))} ."


def good(draw: random.Random, number: int) -> dict:
    return {"prompt": text(draw, number), "chosen": "A " + text(draw, number), "rejected": "B " + text(draw, number)}


def turn(role: object, content: object) -> dict:
    return {"role": role, "content": content}


def dialogue(draw: random.Random, number: int) -> dict:
    row = good(draw, number)
    return {
        "prompt": [turn("system", "Be brief."), turn("user", row["prompt"])],
        "chosen": [turn("assistant", row["chosen"])],
        "rejected": [turn("assistant", row["rejected"])],
    }


def whole(draw: random.Random, number: int, side: str) -> list[dict]:
    return [turn("user", f"{number} ?"), turn("assistant", f"{side} {text(draw, number)}")]


def line_of(row: object, **options: object) -> bytes:
    return json.dumps(row, ensure_ascii=False, **options).encode("utf-8", "surrogatepass")


def changed(**values: object) -> Callable:
    """A good row with other values; what is callable gets (draw, number)."""

    def make(draw: random.Random, number: int) -> bytes:
        new = {key: value(draw, number) if callable(value) else value for key, value in values.items()}
        return line_of(good(draw, number) | new)

    return make


def talk(reply: object, *before: object) -> Callable:
    """A good dialogue, its chosen side replaced; `before` stands before the reply."""

    def make(draw: random.Random, number: int) -> bytes:
        return line_of(dialogue(draw, number) | {"chosen": [*before, reply]})

    return make


def spoiled(spoil: Callable[[bytes], bytes]) -> Callable:
    return lambda draw, number: spoil(line_of(good(draw, number)))


def without(key: str) -> Callable:
    return lambda draw, number: line_of({k: v for k, v in good(draw, number).items() if k != key})


def same_sides(draw: random.Random, number: int) -> bytes:
    row = good(draw, number)
    return line_of(row | {"rejected": row["chosen"]})


def nested(depth: int, key: str) -> Callable:
    return spoiled(lambda line: line[:-1] + f', "{key}": '.encode() + b"[" * depth + b"]" * depth + b"}")


# kind -> (the line, what becomes of it)
KINDS: dict[str, tuple[Callable[[random.Random, int], bytes], str]] = {
    "good": (lambda d, n: line_of(good(d, n)), KEPT),
    "good dialogue": (lambda d, n: line_of(dialogue(d, n)), KEPT),
    "escaped text": (lambda d, n: json.dumps(good(d, n)).encode(), KEPT),
    "spaces around": (spoiled(lambda line: b" \t" + line + b"  "), KEPT),
    "carriage return": (spoiled(lambda line: line + b"\r"), KEPT),
    "extra columns": (changed(id=7, rating={"a": [1, None]}, note=None), KEPT),
    "date-like text": (changed(chosen=lambda d, n: f"2024-01-{n % 28 + 1:02}T00:00:00Z of {n}"), KEPT),
    "numeric text": (changed(chosen=lambda d, n: f"{n}.0", rejected=lambda d, n: f"{n}"), KEPT),
    "null-like text": (changed(chosen="null", rejected="NaN"), KEPT),
    "NUL in the text": (changed(chosen=lambda d, n: f"a\x00b {n}"), KEPT),
    "line separator in the text": (changed(chosen=lambda d, n: f"a\u2028b\u2029c\x85d {n}"), KEPT),
    "end-of-turn in the text": (changed(chosen=lambda d, n: f"a {{{{ x }}}} {{% raw %}} {n}"), KEPT),
    "surrogate pair": (spoiled(lambda line: line.replace(b'"chosen": "', b'"chosen": "\\ud83d\\ude00')), KEPT),
    "huge integer aside": (changed(id=10**300), KEPT),
    "null prompt": (changed(prompt=None), "no_prompt"),
    "null prompt, whole answers": (
        lambda d, n: line_of({"prompt": None} | {side: whole(d, n, side) for side in ("chosen", "rejected")}),
        KEPT,
    ),
    "empty prompt": (changed(prompt=" \n"), "empty_prompt"),
    "system column": (changed(system="Be brief."), KEPT),
    "two system messages": (
        lambda d, n: line_of(dialogue(d, n) | {"system": "Be long."}),
        "two_system_messages",
    ),
    "images": (changed(images=["a.png"]), "unread_column images"),
    "no images": (changed(images=[], tools=None, history="", conversations=[]), KEPT),
    "an unread key of a message": (talk({**turn("assistant", "x y"), "thinking": "hm"}), KEPT),
    "weight": (changed(weight=2.5), KEPT),
    "nested aside": (nested(50, "extra"), KEPT),
    "two user turns": (talk(turn("assistant", "yes"), turn("user", "again")), KEPT),
    "no user turn": (changed(prompt=[], chosen="only an answer"), "no_prompt"),
    "cut JSON": (spoiled(lambda line: line[:-3]), "bad_json"),
    "not JSON": (lambda d, n: f"row {n}".encode(), "bad_json"),
    "trailing comma": (spoiled(lambda line: line[:-1] + b",}"), "bad_json"),
    "single quotes": (lambda d, n: repr(good(d, n)).encode(), "bad_json"),
    "two values on a line": (spoiled(lambda line: line + b" " + line), "bad_json"),
    "comma after the row": (spoiled(lambda line: line + b","), "bad_json"),
    "a key twice": (spoiled(lambda line: line[:-1] + b', "chosen": "again"}'), "bad_json"),
    "a key twice below": (spoiled(lambda line: line[:-1] + b', "x": {"a": 1, "a": 2}}'), "bad_json"),
    "lone surrogate": (spoiled(lambda line: line.replace(b'"chosen": "', b'"chosen": "\\ud800')), "bad_json"),
    "lone surrogate in a key": (spoiled(lambda line: line[:-1] + b', "\\udfff": 1}'), "bad_json"),
    "invalid UTF-8": (spoiled(lambda line: line[:-4] + b"\xff\xfe" + line[-4:]), "bad_json"),
    "Latin-1": (lambda d, n: f'{{"prompt": "caf\xe9 {n}"}}'.encode("latin-1"), "bad_json"),
    "raw surrogate bytes": (changed(chosen="\ud800"), "bad_json"),
    "raw control character": (spoiled(lambda line: line.replace(b'"chosen": "', b'"chosen": "\x01')), "bad_json"),
    "UTF-16": (lambda d, n: json.dumps(good(d, n)).encode("utf-16-le"), "bad_json"),
    "byte order mark inside": (spoiled(lambda line: b"\xef\xbb\xbf" + line), "bad_json"),
    "bottomless": (nested(100_000, "extra"), "bad_json"),
    "endless number": (spoiled(lambda line: line[:-1] + b', "id": ' + b"9" * 5000 + b"}"), "bad_json"),
    "a list": (lambda d, n: line_of([good(d, n)]), "wrong_type"),
    "a text": (lambda d, n: line_of(f"row {n}"), "wrong_type"),
    "a number": (lambda d, n: str(n).encode(), "wrong_type"),
    "null": (lambda d, n: b"null", "wrong_type"),
    "boolean reply": (changed(chosen=True), "wrong_type"),
    "number as reply": (changed(rejected=7), "wrong_type"),
    "NaN as reply": (changed(rejected=float("nan")), "wrong_type"),
    "Infinity as reply": (changed(rejected=float("inf")), "wrong_type"),
    "null reply": (changed(chosen=None), "wrong_type"),
    "object as reply": (changed(chosen={"text": "x"}), "wrong_type"),
    "messages as texts": (changed(chosen=["a", "b"]), "wrong_type"),
    "message without role": (talk({"content": "x"}), "wrong_type"),
    "message without content": (talk({"role": "assistant"}), "wrong_type"),
    "null content": (talk(turn("assistant", None)), "wrong_type"),
    "content in parts": (
        talk(turn("assistant", [{"type": "text", "text": "x"}, {"type": "text", "text": " y"}])),
        KEPT,
    ),
    "an image among parts": (talk(turn("assistant", [{"type": "image"}, "x"])), "unsupported_content"),
    "numeric role": (talk(turn(1, "x")), "wrong_type"),
    "no chosen": (without("chosen"), "missing_column chosen"),
    "no rejected": (without("rejected"), "missing_column rejected"),
    "empty object": (lambda d, n: b"{}", "missing_column chosen"),
    "unknown role": (talk(turn("assistant", "x"), turn("gpt", "y")), "unknown_role"),
    "role in capitals": (talk(turn("Assistant", "x")), "unknown_role"),
    "user has the last word": (talk(turn("user", "x")), "no_assistant_reply"),
    "empty reply": (changed(chosen=""), "empty_reply"),
    "blank reply": (changed(rejected=" \n\t\u00a0"), "empty_reply"),
    "empty conversation": (changed(prompt=None, chosen=[]), "empty_conversation"),
    "the same twice": (same_sides, "chosen_equals_rejected"),
    "reward token in the reply": (changed(chosen=f"x {REWARD_TOKEN} y"), "reward_token_in_text"),
    "reward token in the prompt": (changed(prompt=REWARD_TOKEN), "reward_token_in_text"),
    "tool call": (talk({**turn("assistant", "x"), "tool_calls": [{"name": "f"}]}), "unread_key tool_calls"),
    "no tool call": (talk({**turn("assistant", "x"), "tool_calls": [], "function_call": None}), KEPT),
    "null beside a tool call": (
        talk({**turn("assistant", None), "function_call": {"name": "f"}}),
        "unread_key function_call",
    ),
    "huge reply": (changed(chosen=lambda d, n: f"{n} " + "long " * 20_000), "overlong"),
    "negative weight": (changed(weight=-1), "bad_weight"),
    "weight as text": (changed(weight="1"), "bad_weight"),
    "NaN weight": (changed(weight=float("nan")), "bad_weight"),
    "boolean weight": (changed(weight=True), "bad_weight"),
}
RARE = {"bottomless", "huge reply"}  # half a megabyte each


def write_file(path: Path, count: int, seed: int) -> tuple[dict[int, str], int]:
    """Returns line -> kind, and how many lines are blank. Every kind comes; good rows stand between."""
    draw = random.Random(seed)
    kinds = [kind for kind in KINDS if kind not in RARE]
    chosen = [*KINDS, *RARE, *draw.choices(kinds, k=count - len(KINDS) - len(RARE))]
    draw.shuffle(chosen)
    kind_of: dict[int, str] = {}
    line = 0
    with path.open("wb") as file:
        file.write(b"\xef\xbb\xbf")  # of the file, no part of its first row
        for number, kind in enumerate(chosen):
            if number and draw.random() < 0.02:
                file.write(draw.choice([b"\n", b"  \n", b"\r\n"]))
                line += 1
            data = KINDS[kind][0](draw, number)
            assert b"\n" not in data or kind == "UTF-16", kind
            file.write(data.replace(b"\n", b"") + b"\n")
            line += 1
            kind_of[line] = kind
    return kind_of, line - len(kind_of)


def messages_of(row: dict, side: str) -> list[dict]:
    def said(content: object) -> object:
        return "".join(part["text"] for part in content) if isinstance(content, list) else content

    def listed(value: object, role: str) -> list[dict]:
        messages = [turn(role, value)] if isinstance(value, str) else value or []
        return [turn(message["role"], said(message["content"])) for message in messages]

    opening = [turn("system", row["system"])] if "system" in row else []
    return opening + listed(row.get("prompt"), "user") + listed(row[side], "assistant")


def check(cli: Callable, folder: Path, count: int, seed: int) -> Counter[str]:
    """One file of `count` rows through prepare, everything about it compared. Returns the fates."""
    file = folder / "rows.jsonl"
    kind_of, _ = write_file(file, count, seed)
    settings = ("-s", "data.eval_fraction=0.1", "--keep-duplicates")
    result = cli("prepare", file, "--map-fn", "canonical", "--preset", "tiny", "-o", folder / "out", *settings)
    assert result.code == 0, result.stderr
    rows = read_manifest(folder / "out")["rows"]
    assert rows["in"] == count
    fates = {name: rows[name] for name in ("kept", "rejected", "duplicates", "not_taken") if name in rows}
    assert sum(fates.values()) == count
    assert sum(rows["reasons"].values()) == rows["rejected"]

    expected = {line: KINDS[kind][1] for line, kind in kind_of.items()}
    rejects = [json.loads(text) for text in (folder / "out" / "rejects.jsonl").read_text("utf-8").split("\n")[:-1]]
    got = {reject["line"]: reject["reason"] for reject in rejects}
    assert len(got) == len(rejects) == rows["rejected"]
    assert {reject["file"] for reject in rejects} == {str(file)}
    wrong = {line: (kind_of[line], expected[line], got.get(line, KEPT)) for line in kind_of}
    assert {line: fate for line, fate in wrong.items() if fate[1] != fate[2]} == {}
    assert got.keys() <= kind_of.keys()

    config = resolve("tiny").config
    encoder = Encoder(load_tokenizer(config.model), config.data.max_length, config.data.overlong)
    lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    in_order = sorted(kind_of)  # row ids count the rows, not the lines
    seen = set()
    for split in SPLITS:
        packed = PackedSplit(folder / "out", split)
        for number in range(len(packed)):
            for group in packed.groups(number):
                line = in_order[group.row_id]
                assert expected[line] == KEPT
                seen.add(line)
                row = json.loads(lines[line - 1])
                for side, response in zip(("chosen", "rejected"), group.responses, strict=True):
                    tokens = np.concatenate([group.prefix, response])[:-1]  # the last is the reward token
                    said = encoder.reward.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
                    assert said == encoder.renderer.render(messages_of(row, side)), (kind_of[line], line)
                    assert all(message["content"].strip() in said for message in messages_of(row, side))
                assert group.weight == row.get("weight", 1)
    assert seen == {line for line, fate in expected.items() if fate == KEPT}
    return Counter(expected.values())


def test_ten_thousand_rows_of_seventy_kinds(cli, tmp_path):
    assert len(KINDS) >= 70
    fates = check(cli, tmp_path, 10_000, seed=0)
    assert fates[KEPT] > 2000
    assert len(fates) >= 13


@pytest.mark.parametrize("seed", range(1, 9))
def test_short_files_in_any_order(cli, tmp_path, seed):
    check(cli, tmp_path, 100 + seed, seed)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_counted_line_by_line(cli, tmp_path, seed):
    """Good rows with one to five bytes replaced, dropped or doubled anywhere, line ends too."""
    draw = random.Random(seed)
    data = bytearray(b"".join(line_of(good(draw, number)) + b"\n" for number in range(500)))
    for _ in range(600):
        at = draw.randrange(len(data))
        data[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
    (tmp_path / "rows.jsonl").write_bytes(data)
    result = cli("prepare", "rows.jsonl", "--map-fn", "canonical", "--preset", "tiny", "-o", "out")
    assert result.code == 0, result.stderr
    rows = read_manifest(tmp_path / "out")["rows"]
    written = [line for line in bytes(data).removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert rows["in"] == len(written)
    assert sum(rows.get(name, 0) for name in ("kept", "rejected", "duplicates", "not_taken")) == len(written)
    assert rows["kept"] > 50
    assert rows["rejected"] > 50
