"""`rmcli prepare`: sources, accounting, the eval split, and what bad input says."""

import gzip
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from rmcli.backbones.pretrained import from_pretrained
from rmcli.config.resolve import resolve
from rmcli.errors import RmcliError
from rmcli.installed import install_command
from rmcli.packs.manifest import read_manifest
from rmcli.packs.reader import PackedSplit
from rmcli.packs.schema import SPLITS
from rmcli.tokens import tokenizer
from rmcli.tokens.encode import is_held_out
from support.places import write_lines

TINY = ("--preset", "tiny")
GOOD = [{"prompt": f"question {n}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(40)]


def prepare(cli, *arguments, code: int = 0):
    result = cli("prepare", *arguments)
    assert result.code == code, result.stderr
    return result


def manifest_of(folder) -> dict:
    return read_manifest(Path(folder))


def rejects_of(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "rejects.jsonl").read_text().splitlines()]


def pairs_on_disk(folder) -> int:
    return sum(sum(PackedSplit(Path(folder), split).groups_per_pack) for split in SPLITS)


def test_every_row_is_accounted_for(cli, tmp_path):
    lines = [json.dumps(row) for row in GOOD]
    lines[3:3] = ["{not json", '"a string"', json.dumps({"prompt": "q", "chosen": "a"}), json.dumps(GOOD[0]), ""]
    lines += [json.dumps({**GOOD[1], "rejected": GOOD[1]["chosen"]}), json.dumps({**GOOD[1], "chosen": "\ud800"})]
    lines += [json.dumps({**GOOD[2], "prompt": "say <|reserved_special_token_0|>"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    result = prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out")
    rows = manifest_of("out")["rows"]
    assert rows == {
        "in": 47,
        "kept": 40,
        "rejected": 6,
        "duplicates": 1,
        "not_taken": 0,
        "reasons": {
            "bad_json": 2,
            "chosen_equals_rejected": 1,
            "missing_column rejected": 1,
            "reward_token_in_text": 1,
            "wrong_type": 1,
        },
        "groups": 40,
    }
    assert pairs_on_disk("out") == 40
    account, following = result.stderr.splitlines()[-2:]  # after the audit
    assert account == "rows: 47 in = 40 kept + 6 rejected + 1 duplicates + 0 not taken"
    assert following.startswith("next: rmcli train")
    assert result.stderr.count("rows: 47 in") == 1
    assert "next: rmcli train --preset tiny --data out" in result.stderr
    assert result.stdout == "out\n"
    found = [(reject["reason"], reject["line"]) for reject in rejects_of("out")]
    # the blank line 8 is no row, and each line number is the file's own
    assert sorted(found, key=lambda entry: entry[1]) == [
        ("bad_json", 4),
        ("wrong_type", 5),
        ("missing_column rejected", 6),
        ("duplicate", 7),
        ("chosen_equals_rejected", 46),
        ("bad_json", 47),
        ("reward_token_in_text", 48),
    ]
    assert all(reject["file"] == str(tmp_path / "rows.jsonl") for reject in rejects_of("out"))
    assert rejects_of("out")[0]["text"].startswith(("{not json", '"a string"'))


def test_duplicates_can_be_kept(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [*GOOD, *GOOD])
    prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out", "--keep-duplicates")
    assert manifest_of("out")["rows"]["kept"] == 80


def test_all_local_formats_and_folders_give_the_same_pairs(cli, tmp_path):
    (tmp_path / "folder").mkdir()
    write_lines(tmp_path / "one.jsonl", GOOD)
    with gzip.open(tmp_path / "folder" / "two.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in GOOD)
    parquet.write_table(pa.Table.from_pylist(GOOD), tmp_path / "three.parquet")
    shards = []
    for number, source in enumerate(("one.jsonl", "folder", "three.parquet")):
        prepare(cli, source, "--map-fn", "canonical", *TINY, "-o", f"out{number}")
        shards.append(manifest_of(f"out{number}")["shards"])
    assert shards[0] == shards[1] == shards[2]
    prepare(cli, "one.jsonl", "three.parquet", "--map-fn", "canonical", *TINY, "-o", "both", "--keep-duplicates")
    split = PackedSplit(tmp_path / "both", "train")
    sources = {(g.row_id // 40, g.source_id) for row in range(len(split)) for g in split.groups(row)}
    assert sources == {(0, 0), (1, 1)}


def test_a_prompt_is_on_one_side_of_the_eval_split_and_eval_text_matches(cli, tmp_path):
    rows = [{"prompt": f"q {n % 50}", "chosen": f"right {n}", "rejected": f"wrong {n}"} for n in range(200)]
    write_lines(tmp_path / "rows.jsonl", rows)
    prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out", "-s", "data.eval_fraction=0.3")
    held = [n for n in range(200) if is_held_out(({"role": "user", "content": rows[n]["prompt"]},), 0.3)]
    assert 20 < len(held) < 120
    split = PackedSplit(tmp_path / "out", "eval")
    assert sorted(g.row_id for row in range(len(split)) for g in split.groups(row)) == held
    texts = [json.loads(line) for line in (tmp_path / "out" / "eval.jsonl").read_text().splitlines()]
    assert [text["chosen"][0]["content"] for text in texts] == [rows[n]["chosen"] for n in held]


def test_the_same_command_gives_the_same_bytes(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    for name in ("one", "two"):
        prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", name)
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_settings_reach_the_rows(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    base = ("rows.jsonl", "--map-fn", "canonical", *TINY)
    prepare(cli, *base, "-o", "plain")
    prepare(cli, *base, "-o", "seeded", "-s", "data.seed=1")
    prepare(cli, *base, "-o", "ordered", "-s", "data.shuffle_before_pack=false", "-s", "data.eval_fraction=0.0")
    prepare(cli, *base, "-o", "short", "-s", "data.max_length=24", "-s", "data.max_packed_length=80")
    train = {name: PackedSplit(tmp_path / name, "train") for name in ("plain", "seeded", "ordered", "short")}
    ids = {name: [g.row_id for row in range(len(s)) for g in s.groups(row)] for name, s in train.items()}
    assert ids["plain"] != ids["seeded"]
    assert ids["ordered"] == list(range(40))
    assert max(train["short"].group_tokens(row).sum() for row in range(len(train["short"]))) <= 80
    assert manifest_of("short")["splits"]["train"]["num_truncated"] > 0
    assert manifest_of("plain")["splits"]["train"]["num_truncated"] == 0


def test_longer_than_a_pack_is_a_counted_reject(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [*GOOD, {"prompt": "q", "chosen": "x " * 40, "rejected": "y " * 40}])
    small = ("-s", "data.max_length=120", "-s", "data.max_packed_length=120")
    prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out", *small)
    assert manifest_of("out")["rows"]["reasons"] == {"longer_than_pack": 1}


def test_dry_run_shows_and_writes_nothing(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    result = prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-n")
    assert 'dataset_map_fn = "canonical" # command line' in result.stdout
    assert "# output = data/canonical-tiny" in result.stdout
    assert not (tmp_path / "data").exists()


def test_json_and_quiet(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    result = prepare(cli, "rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out", "--json", "-q")
    assert json.loads(result.stdout)["rows"]["kept"] == 40
    assert result.stderr == ""


def test_a_hub_data_set_is_read_by_name_and_split(cli, tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, split, streaming=False):
        asked.append((name, split))
        return datasets.Dataset.from_list(GOOD)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    prepare(cli, "org/pairs", "--map-fn", "canonical", *TINY, "-o", "out", "-s", "data.split=train_prefs")
    assert asked == [("org/pairs", "train_prefs")]
    assert manifest_of("out")["sources"] == ["org/pairs"]
    assert manifest_of("out")["rows"]["kept"] == 40
    prepare(cli, "--map-fn", "orpo_dpo_mix_40k", *TINY, "-o", "default", "-n")
    with_default = json.loads(prepare(cli, "--map-fn", "orpo_dpo_mix_40k", *TINY, "-n", "--json").stdout)
    assert with_default["plan"]["sources"] == ["mlabonne/orpo-dpo-mix-40k"]


def test_the_next_command_can_be_typed(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    (tmp_path / "my own.toml").write_text(resolve("tiny").toml().replace('name = "tiny"', 'name = "mine"'))
    arguments = ("rows.jsonl", "--map-fn", "canonical", "-c", "my own.toml", "-s", "train.lr=1e-3")
    result = prepare(cli, *arguments)
    assert result.stdout == "data/canonical-mine\n"
    assert "next: rmcli train -c 'my own.toml' -s train.lr=1e-3\n" in result.stderr


def test_a_full_disk_is_one_line_and_leaves_nothing(cli, tmp_path, monkeypatch):
    write_lines(tmp_path / "rows.jsonl", GOOD)

    class FullDisk:
        def write_batch(self, batch):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_stream", lambda *_: FullDisk())
    refused(cli, tmp_path, *BASE, code=1, message="cannot write out: No space left on device", hint="-o")


def test_a_killed_prepare_is_swept_and_a_running_one_is_not(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    dead, alive = tmp_path / ".out.tmp-999999999", tmp_path / f".out.tmp-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    prepare(cli, *BASE)
    assert not dead.exists()
    assert alive.exists()


def test_names_of_sets(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    (tmp_path / "mine.py").write_text("def f(row):\n    return row\n")
    assert prepare(cli, "rows.jsonl", "--map-fn", "mine.py:f", *TINY).stdout == "data/mine-tiny\n"


# --- bad input: one clear line, the right exit code, nothing half-written ---


def refused(cli, tmp_path, *arguments, code: int, message: str, hint: str | None = ""):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = cli("prepare", *arguments)
    assert result.code == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    if hint is not None:
        assert any(line.startswith("hint: ") and hint in line for line in result.stderr.splitlines()), result.stderr
    assert result.stdout == ""
    left = ["out.rejects.jsonl"] if "was kept; " in errors[0] else []
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, *left])


BASE = ("rows.jsonl", "--map-fn", "canonical", *TINY, "-o", "out")


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("gone.jsonl", "--map-fn", "canonical", *TINY), 2, "source gone.jsonl: no such file", "Hub data set"),
        (
            ("rows.jsonl", "--map-fn", "canonicl", *TINY),
            2,
            "unknown map function 'canonicl'",
            "did you mean canonical?",
        ),
        (("rows.jsonl", "--map-fn", "canonical", "-p", "tiyn"), 2, "unknown preset 'tiyn'", "did you mean tiny?"),
        ((*BASE, "-s", "data.max_lenght=9"), 2, "unknown key data.max_lenght", "did you mean max_length?"),
        ((*BASE, "-s", "data.max_length='x'"), 2, "data.max_length = 'x'", None),
        ((*BASE, "-s", "model.reward_token_id=384"), 2, "reward_token_id = 384 is out of range", "inspect-token"),
        ((*BASE, "-s", "model.reward_token_id=9"), 2, "reward_token_id = 9 is", "model.reward_token_id = 4"),
        ((*BASE, "-s", "model.pretrained_model_name_or_path=./gone"), 2, "model ./gone: no such folder", "Hub id"),
        (
            ("rows.jsonl", "--map-fn", "hh_rlhf", *TINY, "-o", "out"),
            1,
            "not one of 40 rows was kept",
            "rmcli map-fns lists what each one reads; each row with its reason is in out.rejects.jsonl",
        ),
        (("empty.jsonl", "--map-fn", "canonical", *TINY, "-o", "out"), 1, "no rows in the sources", ""),
        (("rows.xml", "--map-fn", "canonical", *TINY), 2, "source rows.xml: not one of .jsonl", None),
        (("cut.jsonl.gz", "--map-fn", "canonical", *TINY, "-o", "out"), 1, "cut.jsonl.gz cannot be read", None),
        (("bad.parquet", "--map-fn", "canonical", *TINY, "-o", "out"), 1, "not a readable Parquet file", None),
        (("--map-fn", "canonical", *TINY), 2, "no source to prepare", ""),
        (("tasks:many", *TINY, "-o", "out"), 2, "not of the form tasks:NUM_ROWS[:SEED]", None),
    ],
)
def test_bad_input(cli, tmp_path, arguments, code, message, hint):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "rows.xml").write_text("<a/>\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    refused(cli, tmp_path, *arguments, code=code, message=message, hint=hint)


def test_an_occupied_output_folder(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    refused(cli, tmp_path, *BASE, code=1, message="output folder out is not empty", hint="-o")


def test_no_permission_to_write(cli, tmp_path):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    # root may write anywhere but in /sys
    target = Path("/sys") / "rmcli" if os.geteuid() == 0 else locked / "out"
    refused(cli, tmp_path, *BASE[:-1], target, code=1, message=f"cannot write {target}", hint="-o")


@pytest.mark.parametrize("source", ["org/data-set", None])
def test_hub_data_off_line_is_one_line_with_a_way_out(cli, tmp_path, monkeypatch, source):
    monkeypatch.setattr("rmcli.backbones.hub.is_reachable", lambda endpoint: False)
    arguments = [argument for argument in (source, "--map-fn", "orpo_dpo_mix_40k", *TINY) if argument]
    name = source or "mlabonne/orpo-dpo-mix-40k"
    refused(
        cli, tmp_path, *arguments, code=1, message=f"data set {name} (split train) cannot be had", hint="local files"
    )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("prepare", "rows.jsonl", "--map-fn", "canonical"), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        (("inspect-token",), "HuggingFaceTB/SmolLM2-135M-Instruct"),
        (("inspect-token", "llama3-8b"), "meta-llama/Meta-Llama-3-8B-Instruct"),
    ],
)
def test_hub_models_off_line_are_one_line_with_a_way_out(cli, tmp_path, monkeypatch, arguments, name):
    monkeypatch.setattr("rmcli.backbones.hub.is_reachable", lambda endpoint: False)
    write_lines(tmp_path / "rows.jsonl", GOOD)
    result = cli(*arguments)
    assert result.code == 1
    assert len(result.stderr.splitlines()) == 2
    assert f"cannot load the config of {name}" in result.stderr
    assert "pretrained_model_name_or_path=PATH" in result.stderr


def test_a_gguf_file_without_its_package_names_the_extra(monkeypatch):
    class Loader:
        @staticmethod
        def from_pretrained(**_):
            raise ImportError("Please install torch and gguf>=0.10.0 to load a GGUF checkpoint")

    with pytest.raises(RmcliError, match="needs a package") as error:
        from_pretrained(Loader, "config", "x.gguf", {"pretrained_model_name_or_path": ".", "gguf_file": "x.gguf"})
    assert install_command("gguf") in error.value.hint


def test_a_new_reward_token_is_said_aloud(cli, tmp_path, monkeypatch):
    write_lines(tmp_path / "rows.jsonl", GOOD)
    model = resolve("tiny").config.model
    bare = tokenizer.load_bare_tokenizer(model)
    folder = tmp_path / "wider"
    bare.save_pretrained(folder)
    config = tokenizer.load_model_config(model)
    config.vocab_size = len(bare) + 8
    config.save_pretrained(folder)
    settings = (
        f"pretrained_model_name_or_path={folder}",
        "reward_token='<|reward|>'",
        f"reward_token_id={len(bare)}",
    )
    result = prepare(cli, *BASE, *(part for setting in settings for part in ("-s", f"model.{setting}")))
    assert f"note: <|reward|> is new: it takes the spare embedding row {len(bare)}" in result.stderr
