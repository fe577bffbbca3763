"""`rmcli inspect-token`: the verdict on real tokenizers, each piece of evidence, and what it writes."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaModel

from rmcli.config.presets import presets_folder
from rmcli.config.resolve import resolve
from rmcli.inspect_token.run import run
from rmcli.tokens import evidence, tokenizer
from rmcli.tokens.evidence import Evidence
from support.hub_server import write_llama_70b
from support.places import REPOSITORY, find_tokenizer, write_lines


def inspected(cli, *arguments: object) -> dict:
    result = cli("inspect-token", *arguments, "--json")
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def small_model(tmp_path):
    """The tiny preset's tokenizer with a Llama of 388 rows: row 4 is zero, 384 to 387 have no token."""
    folder = tmp_path / "small"
    shutil.copytree(presets_folder() / "tiny", folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    network = LlamaModel(LlamaConfig(vocab_size=388, pad_token_id=1, bos_token_id=2, eos_token_id=3, **sizes))
    network.embed_tokens.weight.data[4] = 0
    network.save_pretrained(folder)
    return folder


# --- the verdict, by name and id, as in the published tables ---


@pytest.mark.parametrize(
    ("name", "token", "index", "kind"),
    [
        ("llama3", "<|reserved_special_token_0|>", 128_002, "reserved"),
        ("llama3_1", "<|reserved_special_token_0|>", 128_002, "reserved"),
        ("qwen3", "<|quad_end|>", 151_651, "idle"),
        ("gemma3", "<unused0>", 6, "reserved"),
        ("deepseek_v3", "<｜place▁holder▁no▁0｜>", 128_000, "reserved"),
        pytest.param("olmo2", "<|extra_id_10|>", 100_275, "reserved", marks=pytest.mark.slow),
        ("llama2", None, 32_000, "new_token"),
    ],
)
def test_a_bare_real_tokenizer_has_a_verdict(cli, name, token, index, kind):
    report = inspected(cli, find_tokenizer(name))
    best = report["candidates"][0]
    assert (best["token"], best["id"], best["kind"]) == (token, index, kind)
    assert report["num_embedding_rows"] is None
    assert "tokenizer without a model" in report["not_looked_at"][0]
    assert f"reward_token_id = {index}" in report["toml"]


@pytest.mark.slow  # in big packages
@pytest.mark.parametrize(
    ("name", "token", "index"),
    [("phi-3", "<|placeholder6|>", 32_009), ("deepseek-llm", "[PAD100015]", 100_015)],
)
def test_a_vocabulary_without_weights_has_a_verdict(cli, name, token, index):
    """DeepSeek-LLM has no reserved token: the first row without one, which llama.cpp calls [PAD100015]."""
    report = inspected(cli, find_tokenizer(f"llama-cpp/{name}.gguf"))
    assert (report["candidates"][0]["token"], report["candidates"][0]["id"]) == (token, index)
    assert "a vocabulary without a model" in report["not_looked_at"][0]


def test_among_equal_control_tokens_of_mistral_the_presets_is_taken(cli):
    """Over 700 of them are unused; what presets and inspect-token name must be one token."""
    candidates = inspected(cli, find_tokenizer("mistral-v3"))["candidates"]
    assert (candidates[0]["token"], candidates[0]["id"]) == ("[control_498]", 500)
    (second,) = candidates[1:2]
    assert second["token"] == "[control_747]"  # the last, [control_748], is what mends a missing pad token
    assert second["reason"] == (
        "equal evidence; one that a shipped preset has is taken, as later releases name the low numbers"
    )


def test_smollm2s_empty_output_is_found_by_its_rows_and_without_a_preset(cli, gguf):
    """Rows 5 and 7-16 were never trained apart: the same but for the noise of quantization, some to the bit."""
    report = inspected(cli, gguf)
    best = report["candidates"][0]
    assert (best["id"], best["token"], best["rank"]) == (16, "<empty_output>", 1)
    assert report["configured"] is None
    assert (report["num_embedding_rows"], report["num_tokens"]) == (49_152, 49_152)
    assert best["same_row_as"] == [5, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert best["identical_to"] == [8, 10, 13, 15]
    assert report["rows"]["groups"] == [[5, 9, 11], [8, 10, 13, 15, 16], [12, 14]]
    assert best["norm"] == pytest.approx(3.2937, abs=1e-4)
    assert not best["near_zero"]
    order = [candidate["id"] for candidate in report["candidates"]]
    assert order == [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 5, 6, 4, 3, 49_152]
    filename = report["candidates"][11]
    assert (filename["token"], filename["same_row_as"]) == ("<filename>", [])
    assert filename["reason"].startswith("a row of its own")
    assert {c["id"]: c["used_by"] for c in report["ruled_out"]}[2][:2] == ["eos", "pad"]


def test_gemma_and_llama_names_are_typed_differently(cli):
    """A special token is split by split_special_tokens; Gemma's <unused0>, which is not special, never is."""
    llama = inspected(cli, find_tokenizer("llama3"))["candidates"][0]
    gemma = inspected(cli, find_tokenizer("gemma3"))["candidates"][0]
    assert (llama["special"], llama["typed"], llama["typed_when_split"]) == (True, True, False)
    assert (gemma["special"], gemma["typed"], gemma["typed_when_split"]) == (False, True, True)


def test_a_real_tokenizer_under_a_smaller_embedding(cli, tmp_path):
    """Gemma-3 1B: 262,145 tokens and 262,144 rows, so <image_soft_token> has no row; no preset names the model."""
    folder = tmp_path / "gemma"
    shutil.copytree(find_tokenizer("gemma3"), folder)
    config = {"model_type": "llama", "vocab_size": 262_144, "hidden_size": 64, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    report = inspected(cli, folder)
    assert report["candidates"][0]["token"] == "<unused0>"
    assert report["num_embedding_rows"] == 262_144
    (outside,) = [c for c in report["ruled_out"] if c["inside"] is False]
    assert (outside["token"], outside["reason"]) == ("<image_soft_token>", "outside the embedding")
    assert "has no weights" in report["not_looked_at"][0]


# --- rows ---


def test_a_zero_row_is_found_and_said(cli, small_model):
    result = cli("inspect-token", small_model)
    assert result.code == 0, result.stderr
    assert "its row is near zero (untrained): train starts it from the mean of trained rows" in result.stdout
    report = inspected(cli, small_model)
    best, spare = report["candidates"]
    assert (best["id"], best["near_zero"], best["norm"], best["nearest_id"]) == (4, True, 0.0, None)
    assert (spare["id"], spare["kind"], spare["near_zero"]) == (384, "spare_row", False)
    rows = report["rows"]
    assert (rows["num_rows"], rows["num_candidate_rows"], rows["num_ordinary_rows"]) == (388, 2, 256)
    table = load_file(small_model / "model.safetensors")["embed_tokens.weight"].numpy()
    assert spare["norm"] == pytest.approx(np.linalg.norm(table[384]), rel=1e-6)
    assert spare["norm_ratio"] == pytest.approx(spare["norm"] / rows["median_norm"], rel=1e-6)


def test_near_zero_is_below_one_percent_of_the_median():
    rows = {index: np.full(4, size, np.float32) for index, size in ((1, 0.0099), (2, 0.0101), (3, 0.0))}
    ordinary = {100 + index: np.full(4, 1.0, np.float32) for index in range(5)}
    found, median, _ = evidence.add_rows([Evidence(i, f"t{i}", "special", True) for i in rows], rows, ordinary)
    assert median == 2.0
    assert [c.near_zero for c in found] == [True, False, True]
    assert [c.norm_ratio for c in found] == pytest.approx([0.0099, 0.0101, 0.0], rel=1e-6)


def test_the_nearest_row_and_the_same_rows():
    east, north = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    rows = {1: east, 2: east.copy(), 3: east * 2, 4: east + 0.001 * north, 5: north}
    ordinary = {9: east + north}
    found, _, groups = evidence.add_rows([Evidence(i, f"t{i}", "special", True) for i in rows], rows, ordinary)
    assert groups == ((1, 2),)
    assert [c.identical_to for c in found] == [(2,), (1,), (), (), ()]
    assert [c.same_row_as for c in found] == [(2, 4), (1, 4), (), (1, 2), ()]  # 3 points the same way, twice as far
    assert (found[0].nearest_id, found[0].nearest_cosine) == (2, 1.0)
    assert (found[4].nearest_id, found[4].nearest_cosine) == (9, pytest.approx(0.5**0.5, abs=1e-6))


def test_ordinary_rows_are_seeded_runs_that_leave_out_the_candidates():
    chosen = evidence.ordinary_ids(100_000, {5}, seed=0)
    assert len(chosen) == len(set(chosen)) == 256
    assert chosen == evidence.ordinary_ids(100_000, {5}, seed=0)
    assert chosen != evidence.ordinary_ids(100_000, {5}, seed=1)
    assert 5 not in evidence.ordinary_ids(10, {5})
    assert len(evidence.ordinary_ids(10, {5})) == 9
    assert len({row // 8 for row in chosen}) == 32


def test_without_all_64_candidate_rows_are_read_and_the_rest_is_not_claimed(cli, small_model):
    added = [{"content": f"<unused{number}>", "id": 384 + number} for number in range(100)]
    described = json.loads((small_model / "tokenizer.json").read_text())
    blank = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    described["added_tokens"] += [{**blank, **token} for token in added]
    (small_model / "tokenizer.json").write_text(json.dumps(described))
    config = json.loads((small_model / "config.json").read_text())
    (small_model / "config.json").write_text(json.dumps({**config, "vocab_size": 600}))
    save_file({"embed_tokens.weight": torch.randn(600, 16)}, small_model / "model.safetensors")
    some, every = inspected(cli, small_model), inspected(cli, small_model, "--all")
    assert (some["rows"]["num_candidate_rows"], every["rows"]["num_candidate_rows"]) == (64, 102)
    assert sum(candidate["norm"] is None for candidate in some["candidates"]) == 38
    assert "92 more with --all" in cli("inspect-token", small_model).stdout
    assert "<unused99>" not in cli("inspect-token", small_model).stdout
    shown = cli("inspect-token", small_model, "--all").stdout
    assert "<unused99>" in shown
    assert "used by pad" in shown


def test_a_damaged_weight_file_is_an_error_and_not_a_verdict(cli, small_model):
    (small_model / "model.safetensors").write_bytes(b"cut")
    result = cli("inspect-token", small_model)
    assert result.code == 1
    assert "model.safetensors is damaged" in result.stderr
    assert result.stdout == ""
    table = torch.randn(388, 16)
    table[4, 3] = torch.nan
    save_file({"embed_tokens.weight": table}, small_model / "model.safetensors")
    assert "row 4 is not finite" in cli("inspect-token", small_model).stderr


def test_rows_come_from_the_file_where_the_config_says_otherwise(cli, small_model):
    save_file({"embed_tokens.weight": torch.randn(384, 16)}, small_model / "model.safetensors")
    result = cli("inspect-token", small_model, "--json")
    assert "has 384 rows, the config says 388" in result.stderr
    assert [c["kind"] for c in json.loads(result.stdout)["candidates"]] == ["reserved", "resize"]


def test_a_hub_model_is_inspected_by_ranges(hub_server, tmp_path):
    """The whole command in its own process, its Hub a local server with a 70B-sized embedding."""
    remote = hub_server.folder
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(presets_folder() / "tiny" / name, remote)
    config = json.loads((remote / "config.json").read_text())
    (remote / "config.json").write_text(json.dumps({**config, "vocab_size": 128_256}))
    (remote / "generation_config.json").write_text(json.dumps({"suppress_tokens": [4]}))
    write_llama_70b(remote / "model.safetensors", dict.fromkeys(range(5, 384), 1.0))
    environment = {**os.environ, "HF_ENDPOINT": hub_server.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "rmcli", "inspect-token", "org/llama-70b", "--json"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    best = report["candidates"][0]
    assert (best["id"], best["kind"], best["near_zero"]) == (384, "spare_row", True)
    (suppressed,) = [c for c in report["ruled_out"] if c["id"] == 4]
    assert suppressed["used_by"] == ["generation_config.json suppress_tokens"]
    assert report["not_looked_at"] == []
    assert report["rows"]["num_ordinary_rows"] == 256
    assert hub_server.bytes_sent < 6_000_000


# --- uses ---


def test_ids_that_model_files_name_are_ruled_out(cli, small_model):
    (small_model / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "max_length": 384}))
    report = inspected(cli, small_model)
    assert {c["id"]: c["used_by"] for c in report["ruled_out"]}[4] == ["generation_config.json eos_token_id"]
    assert report["candidates"][0]["id"] == 384


def test_a_token_of_the_chat_template_is_ruled_out(cli, small_model):
    config = json.loads((small_model / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ '<|reserved_special_token_0|>' }}" + config["chat_template"]
    (small_model / "tokenizer_config.json").write_text(json.dumps(config))
    report = inspected(cli, small_model, "-p", "tiny", "-s", f"model.pretrained_model_name_or_path={small_model}")
    assert {c["id"]: c["used_by"] for c in report["ruled_out"]}[4] == ["chat template"]
    assert report["configured"]["rank"] is None
    assert report["configured"]["remark"].endswith("is ruled out: used by chat template")


def test_a_trained_folder_names_its_reward_token(cli, tiny_run):
    """Its chat template holds the token, as it should; its row was trained and is no longer zero."""
    report = inspected(cli, tiny_run.model)
    assert report["candidates"][0]["id"] == 4
    assert report["configured"]["remark"] == "configured '<|reserved_special_token_0|>' (4) is the verdict"


def test_a_configured_token_is_compared_and_not_put_first(cli):
    folder = find_tokenizer("llama3")
    setting = ("-p", "llama3-8b", "-s", f"model.pretrained_model_name_or_path={folder}")
    same = inspected(cli, *setting)["configured"]
    assert (same["rank"], same["remark"].rpartition(" is ")[2]) == (1, "the verdict")
    token = "model.reward_token='<|reserved_special_token_9|>'"
    other = inspected(cli, *setting, "-s", token, "-s", "model.reward_token_id=none")
    assert other["candidates"][0]["id"] == 128_002
    assert (other["configured"]["id"], other["configured"]["rank"]) == (128_014, 10)
    assert "equal evidence; the lowest number is taken" in other["configured"]["remark"]
    word = inspected(cli, *setting, "-s", "model.reward_token=hello", "-s", "model.reward_token_id=none")
    assert "is no candidate" in word["configured"]["remark"]


@pytest.mark.parametrize("preset", ["llama3-8b", "qwen3-0.6b"])
def test_the_presets_token_is_the_verdict_on_its_tokenizer(cli, preset):
    folder = find_tokenizer(preset.partition("-")[0])
    report = inspected(cli, "-p", preset, "-s", f"model.pretrained_model_name_or_path={folder}")
    assert report["configured"]["rank"] == 1


# --- ranking ---


def special(index: int, token: str, **values: object) -> Evidence:
    return Evidence(index, token, evidence._kind(token, True), True, **values)


def ranked(*candidates: Evidence) -> list[int]:
    return [candidate.id for candidate in evidence.rank(candidates)]


def test_kinds_rank_reserved_idle_spare_special_resize():
    spare = Evidence(50, None, "spare_row", True)
    resize = Evidence(60, None, "resize", True)
    reserved, idle, other = special(1, "<|reserved_1|>"), special(2, "<|quad_end|>"), special(3, "<other>")
    assert ranked(resize, other, spare, idle, reserved) == [1, 2, 50, 3, 60]


@pytest.mark.parametrize(
    ("tokens", "best"),
    [
        (["<|reserved_special_token_1|>", "<|reserved_special_token_0|>"], 1),
        (["[UNUSED_TOKEN_131]", "[UNUSED_TOKEN_130]"], 1),
        (["<|EXTRA_1_TOKEN|>", "<|EXTRA_0_TOKEN|>"], 1),
        (["<|dummy_21|>", "<|dummy_20|>"], 1),
        (["<SPECIAL_20>", "<SPECIAL_999>"], 1),  # Mistral-Nemo
        (["[control_8]", "[control_498]"], 1),  # Mistral v2: [control_8] is [IMG] later, and a pad
        (["<|placeholder1|>", "<|placeholder6|>"], 1),  # Phi-3
        (["<|extra_id_0|>", "<|extra_id_10|>"], 1),  # OLMo-2
        (["<first>", "<last>"], 1),
        (["<last_pad>", "<|fim_pad|>", "<plain>"], 2),
        (["<|reserved_special_token_250|>", "<|reserved_special_token_249|>"], 1),
    ],
)
def test_one_of_a_family(tokens, best):
    candidates = [
        special(index, token, pad_fixer=token in evidence.PAD_FIXER_NAMES or "_pad" in token)
        for index, token in enumerate(tokens)
    ]
    assert ranked(*candidates)[0] == best


def test_what_the_corpus_holds_loses_to_what_it_does_not():
    first, second = special(1, "<unused0>", occurrences=2), special(2, "<unused1>", occurrences=0)
    other, resize = special(3, "<other>", occurrences=0), Evidence(9, None, "resize", True)
    assert ranked(first, second, other, resize) == [2, 3, 1, 9]
    assert evidence.why_behind(second, first) == "found in the corpus"


def test_an_untrained_row_comes_before_a_trained_one_of_its_kind():
    trained, same = special(9, "<z>", norm=1.0), special(3, "<a>", norm=1.0, same_row_as=(4,))
    assert ranked(trained, same) == [3, 9]
    assert ranked(replace(trained, near_zero=True), same) == [9, 3]


def test_what_is_used_or_outside_is_no_candidate():
    assert ranked(special(1, "<a>", used_by=("pad",)), special(2, "<b>", inside=False), special(3, "<c>")) == [3]


def test_a_norm_is_called_ordinary_only_where_it_is():
    for ratio, words in (
        (0.6, "its row has an ordinary norm (0.60 of the median)"),
        (1.9, "its row has an ordinary norm (1.90 of the median)"),
        (3.35, "its row is longer than ordinary ones (3.35 of the median norm): it may have been trained"),
        (0.2, "its row is shorter than ordinary ones (0.20 of the median norm): it may have been trained"),
    ):
        assert words in evidence.why_first(special(1, "<a>", norm=ratio, norm_ratio=ratio, near_zero=False))


def test_words_that_look_reserved_are_none():
    assert [evidence._kind(token, False) for token in ("unused", "Ġreserved", "<unused0>")] == [
        None,
        None,
        "reserved",
    ]


# --- corpus ---


def test_a_corpus_is_counted_by_id_and_by_text(cli, small_model, tmp_path):
    token = "<|reserved_special_token_0|>"
    rows = [{"messages": [{"role": "user", "content": f"a {token} b {token}"}], "n": 3}, {"text": "plain"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    report = inspected(cli, small_model, "--corpus", "rows.jsonl")
    assert report["corpus"]["num_unreadable"] == 1
    assert report["corpus"]["num_texts"] == 3  # role, content, text
    best, reserved = report["candidates"]
    assert (best["id"], best["occurrences"]) == (384, None)
    assert (reserved["id"], reserved["occurrences"], reserved["text_occurrences"]) == (4, 2, 2)
    assert reserved["reason"] == "found in the corpus"
    assert "3 texts, " in cli("inspect-token", small_model, "--corpus", "rows.jsonl").stdout


def test_a_prepared_corpus_is_counted_without_its_reward_tokens(cli, tiny_run):
    report = inspected(cli, "tiny", "--corpus", tiny_run.data)
    manifest = json.loads((tiny_run.data / "manifest.json").read_text())
    pairs = sum(split["num_pairs"] for split in manifest["splits"].values())
    tokens = sum(split["num_tokens"] for split in manifest["splits"].values())
    assert report["corpus"]["num_texts"] == 2 * pairs
    assert report["corpus"]["num_tokens"] == tokens - 2 * pairs
    assert (report["candidates"][0]["id"], report["candidates"][0]["occurrences"]) == (4, 0)
    assert report["candidates"][0]["text_occurrences"] is None


def test_a_corpus_that_cannot_be_counted_is_one_line(cli, tiny_run, gguf, tmp_path):
    assert "prepared with another tokenizer" in cli("inspect-token", gguf, "--corpus", tiny_run.data).stderr
    assert "no such file" in cli("inspect-token", "tiny", "--corpus", "gone.jsonl").stderr
    write_lines(tmp_path / "numbers.jsonl", [{"n": 1}])
    assert "no text in it" in cli("inspect-token", "tiny", "--corpus", "numbers.jsonl").stderr


# --- what it writes ---


def test_a_written_preset_works_at_once(cli, tmp_path, monkeypatch, small_model):
    result = cli("inspect-token", small_model, "--write-preset", "mine")
    assert result.code == 0, result.stderr
    assert "next: rmcli prepare --map-fn F -c mine.toml" in result.stderr
    text = (tmp_path / "mine.toml").read_text()
    assert text.startswith("# verdict: <|reserved_special_token_0|> (4): set aside by its name; ")
    resolved = resolve(None, [tmp_path / "mine.toml"])
    assert resolved.name == "mine"
    assert resolved.config.model.pretrained_model_name_or_path == str(small_model)
    assert tokenizer.load_tokenizer(resolved.config.model).reward_token_id == 4
    prepared = cli("prepare", "tasks:50", "--map-fn", "checkable_tasks", "-c", "mine.toml", "-o", "data")
    assert prepared.code == 0, prepared.stderr
    again = cli("inspect-token", small_model, "--write-preset", "mine")
    assert (again.code, "mine.toml exists and is left alone" in again.stderr) == (2, True)
    assert (tmp_path / "mine.toml").read_text() == text
    assert inspected(cli, small_model, "--write-preset", "other")["preset"] == "other.toml"


def test_a_preset_needs_a_name_and_a_model(cli, tmp_path):
    assert "is no name" in cli("inspect-token", "tiny", "--write-preset", "a/b").stderr
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(presets_folder() / "tiny" / name, tmp_path)
    result = cli("inspect-token", tmp_path, "--write-preset", "bare")
    assert result.code == 2
    assert "is a tokenizer without a model" in result.stderr
    assert not (tmp_path / "bare.toml").exists()


def test_a_spare_rows_lines_can_be_pasted(cli, small_model, tmp_path):
    """The proposed name and id are what resolve_reward_token accepts."""
    spare = next(c for c in run(_section(small_model)).candidates if c.kind == "spare_row")
    (tmp_path / "mine.toml").write_text(f"[model]\n{spare.toml()}\n")
    pasted = resolve("tiny", [tmp_path / "mine.toml"]).config.model
    bare = tokenizer.load_bare_tokenizer(pasted)
    assert tokenizer.resolve_reward_token(bare, pasted, 388).reward_token_id == spare.id == 384


def _section(folder: Path):
    return resolve("tiny").config.model.model_copy(
        update={"pretrained_model_name_or_path": str(folder), "random_weights": False}
    )


def test_quotes_and_backslashes_in_a_name_survive_toml(tmp_path):
    (tmp_path / "odd.toml").write_text(f"[model]\n{special(7, '<' + chr(34) + chr(92) + 'é>').toml()}\n")
    assert resolve("tiny", [tmp_path / "odd.toml"]).config.model.reward_token == '<"\\é>'


def test_tiny_has_one_reserved_token(cli):
    result = cli("inspect-token", "tiny")
    assert result.code == 0, result.stderr
    assert "384 tokens, embedding rows 384" in result.stdout
    assert 'reward_token = "<|reserved_special_token_0|>"\nreward_token_id = 4\n' in result.stdout
    assert "configured '<|reserved_special_token_0|>' (4) is the verdict" in result.stdout
    assert "not looked at: embedding rows: the weights are random" in result.stdout
    assert "next: rmcli prepare --map-fn F --preset tiny" in result.stderr


def test_a_misspelt_preset_is_guessed(cli, monkeypatch):
    monkeypatch.setattr("rmcli.backbones.hub.is_reachable", lambda endpoint: False)
    assert "did you mean the preset tiny?" in cli("inspect-token", "tinny").stderr


def test_the_page_shows_what_is_printed(gguf):
    """docs/inspect-token.md holds the real output on five real tokenizers."""
    folder = find_tokenizer("llama3").parent
    for name in ("qwen3", "gemma3", "deepseek_v3"):
        find_tokenizer(name)
    spec = importlib.util.spec_from_file_location("inspect_page", REPOSITORY / "docs" / "inspect_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (REPOSITORY / "docs" / "inspect-token.md").read_text()
    assert script.renewed(page, folder, gguf) == page, "docs/inspect-token.md is old: python docs/inspect_page.py"
