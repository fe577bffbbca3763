"""What a run keeps of its model gives the same tokens when it goes on, whatever class the tokenizer was of."""

import pytest

from rmcli.config.resolve import resolve
from rmcli.model.shipped_tokenizer import write_tokenizer
from rmcli.runs import backbone
from rmcli.tokens.tokenizer import RewardTokenizer, load_bare_tokenizer


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("gemma3", marks=pytest.mark.slow),
        pytest.param("llama3", marks=pytest.mark.slow),
        "mistral-v3",
        "gguf",
    ],
)
def test_a_kept_tokenizer_is_the_one_that_was_trained_with(tmp_path, tokenizer_folder, gguf, name):
    place = gguf if name == "gguf" else tokenizer_folder(name)
    model = resolve("tiny").config.model.model_copy(update={"tokenizer_name_or_path": str(place)})
    tokenizer = load_bare_tokenizer(model)
    tokenizer.chat_template = tokenizer.chat_template or "{{ messages[0]['content'] }}"
    write_tokenizer(tokenizer, tmp_path / backbone.FOLDER)
    own = backbone.section(tmp_path, model)
    assert (own.tokenizer_name_or_path, own.chat_template, own.revision) == (None, None, None)
    kept = load_bare_tokenizer(own)
    fingerprints = [RewardTokenizer(one, "x", 0, 1).fingerprint() for one in (tokenizer, kept)]
    assert fingerprints[0] == fingerprints[1]
    text = "Ärger <|im_start|>user\n  zwölf\t12,345 日本語 😀"
    assert kept(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
