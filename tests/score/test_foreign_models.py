"""Public reward models, trained elsewhere without a reward token: their own scores, and a word where they are not."""

import json

import pytest

from support.foreign import SKYWORK_LIKE, TALKS, make_foreign, own_scores
from support.places import write_lines


@pytest.mark.parametrize("after", ["", "\n"])
def test_a_model_without_a_reward_token_gives_its_own_scores(cli, tmp_path, after):
    template = SKYWORK_LIKE.replace("<|im_end|>'", "<|im_end|>" + after.replace("\n", "\\n") + "'")
    folder = make_foreign(tmp_path / "foreign", template)
    write_lines(tmp_path / "rows.jsonl", [{"messages": talk} for talk in TALKS])
    result = cli("score", folder, "rows.jsonl")
    assert result.code == 0, result.stderr
    scores = [json.loads(line)["score"] for line in result.stdout.splitlines()]
    expected = own_scores(folder)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.1
    assert "note:" not in result.stderr
    padded = cli("score", folder, "rows.jsonl", "-s", "model.use_varlen_attn=false")
    assert [json.loads(line)["score"] for line in padded.stdout.splitlines()] == pytest.approx(expected, abs=1e-5)


def test_another_mode_than_the_one_it_was_trained_in_is_warned_of(cli, tmp_path, tiny_run):
    folder = make_foreign(tmp_path / "foreign")
    write_lines(tmp_path / "rows.jsonl", [{"messages": talk} for talk in TALKS])
    reserved = "<|reserved_special_token_0|>"
    for token, here in (("natural", "<|im_end|> (3, natural)"), (reserved, f"{reserved} (4, reserved)")):
        result = cli("score", folder, "rows.jsonl", "-s", f"model.reward_token={token}")
        assert result.code == 0, result.stderr
        said = f"the head of {folder} was trained at the last token of the template and now reads {here}"
        assert said in result.stderr
    result = cli("score", tiny_run.model, "rows.jsonl", "-s", "model.reward_token=last")
    assert f"the head of {tiny_run.model} was trained at token 4 (reserved) and now reads" in result.stderr
    assert "was trained at" not in cli("score", tiny_run.model, "rows.jsonl").stderr


def test_last_is_no_token_that_texts_must_not_hold(cli, tmp_path):
    ends_in_a_word = SKYWORK_LIKE.replace("<|im_end|>'", " END'")
    folder = make_foreign(tmp_path / "foreign", ends_in_a_word)
    talk = [{"role": "user", "content": "Spell DDD"}, {"role": "assistant", "content": "D D D"}]
    result = cli("score", folder, stdin=json.dumps({"messages": talk}))
    assert result.code == 0, result.stdout


def test_a_reward_token_id_with_last_is_refused(cli, tmp_path):
    folder = make_foreign(tmp_path / "foreign")
    both = ("-s", "model.reward_token=last", "-s", "model.reward_token_id=4")
    result = cli("score", folder, *both, stdin="{}")
    assert result.code == 2
    assert "model.reward_token_id = 4, but model.reward_token = 'last' is whatever token comes last" in result.stderr
