"""`rmcli inspect-token`: which vocabulary ids could serve as the reward token, ranked, each with its reason."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmcli import output
from rmcli.config import ModelSection
from rmcli.errors import ConfigError
from rmcli.tokenizer import load_bare_tokenizer, load_model_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESERVED_NAME = re.compile(
    r"reserved|unused|place.?holder|dummy|^\[control_\d+\]$|^<SPECIAL_\d+>$|extra_(id|\d+_token)"
    r"|empty_output|quad_(start|end)",
    re.IGNORECASE,
)
USES = ("pad", "bos", "eos", "unk")


@dataclass(frozen=True)
class Candidate:
    """One id. `kind` is reserved, spare_row or special; `rank` counts from 1."""

    rank: int
    id: int
    token: str | None
    kind: str
    special: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """Candidates of one tokenizer, best first. `num_embedding_rows` is None when there is no model config."""

    name: str
    num_embedding_rows: int | None
    num_tokens: int
    candidates: tuple[Candidate, ...]

    def as_dict(self) -> dict[str, Any]:
        best = {"toml": toml_line(self.candidates[0])} if self.candidates else {}
        return {**asdict(self), "candidates": [asdict(candidate) for candidate in self.candidates], **best}


def run(model: ModelSection) -> Report:
    """Inspect the tokenizer of a model, folder or .gguf file; weights are not read."""
    name = model.pretrained_model_name_or_path
    folder = Path(name or "").expanduser()
    bare = folder.is_dir() and not (folder / "config.json").is_file()
    num_rows = None if bare else load_model_config(model).get_text_config().vocab_size
    tokenizer = load_bare_tokenizer(model)
    candidates = find_candidates(tokenizer, num_rows, model)
    return Report(str(name), num_rows, len(tokenizer), tuple(candidates))


def find_candidates(
    tokenizer: "PreTrainedTokenizerBase", num_rows: int | None, model: ModelSection
) -> list[Candidate]:
    """The configured token first, then reserved names, spare embedding rows, and specials no template mentions."""
    in_use = {getattr(tokenizer, f"{use}_token_id"): use for use in USES}
    template = str(tokenizer.chat_template or "")
    chosen = _configured_id(tokenizer, model)
    special_ids = set(tokenizer.all_special_ids)
    special_ids |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: list[tuple[tuple, int, str | None, str, str]] = []
    for token, index in tokenizer.get_vocab().items():
        if index in in_use or (num_rows is not None and index >= num_rows):
            continue
        special = index in special_ids
        if token in template and index != chosen:
            continue
        if RESERVED_NAME.search(token) and (special or re.fullmatch(r"[<\[>].*[>\]<]", token)):
            found.append(
                ((0, not special, _number_in(token), index), index, token, "reserved", "reserved by its name")
            )
        elif special:
            found.append(((2, -index), index, token, "special", "special and not in the chat template"))
    if num_rows is not None and len(tokenizer) < num_rows:
        count = num_rows - len(tokenizer)
        reason = f"{count} embedding row{'s' * (count > 1)} without a token; a new token takes the first"
        found.append(((1,), len(tokenizer), None, "spare_row", reason))
    found.sort(key=lambda entry: (entry[1] != chosen, entry[0]))
    return [
        Candidate(
            rank=rank,
            id=index,
            token=token,
            kind=kind,
            special=index in special_ids,
            reason=reason + ("; the configured reward token" if index == chosen else ""),
        )
        for rank, (_, index, token, kind, reason) in enumerate(found, 1)
    ]


def _configured_id(tokenizer: "PreTrainedTokenizerBase", model: ModelSection) -> int | None:
    if model.reward_token is not None:
        return tokenizer.get_vocab().get(model.reward_token)
    return model.reward_token_id


def _number_in(token: str) -> int:
    digits = re.findall(r"\d+", token)
    return int(digits[-1]) if digits else 0


def toml_line(candidate: Candidate) -> str:
    """What to paste under [model]."""
    token = candidate.token or "<|reward|>"
    quoted = token.replace("\\", "\\\\").replace('"', '\\"')
    return f'reward_token = "{quoted}"\nreward_token_id = {candidate.id}'


def show(report: Report, limit: int) -> None:
    """The table, the verdict and the lines to paste."""
    rows = "unknown" if report.num_embedding_rows is None else f"{report.num_embedding_rows:,}"
    output.say(f"{report.name}: {report.num_tokens:,} tokens, embedding rows {rows}")
    if not report.candidates:
        raise ConfigError(f"{report.name}: no candidate for a reward token", "the embedding would have to grow")
    output.table(
        ["rank", "id", "token", "kind", "special", "reason"],
        [
            [c.rank, str(c.id), c.token or "(new)", c.kind, "yes" if c.special else "no", c.reason]
            for c in report.candidates[:limit]
        ],
        to_answer=True,
    )
    if len(report.candidates) > limit:
        output.say(f"{len(report.candidates) - limit} more with --all")
    output.answer(f"[model]\n{toml_line(report.candidates[0])}")
