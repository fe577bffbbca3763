"""`rmcli inspect-token`: which vocabulary id should be the reward token, and why (docs/inspect-token.md)."""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomlkit

from rmcli import output
from rmcli.backbones import embedding_rows, hub
from rmcli.backbones.embedding_rows import Embedding, RowsUnavailableError
from rmcli.config.layers import ModelSection, preset_reward_tokens, pretrained_arguments, read_json, resolve
from rmcli.errors import ConfigError, RmcliError
from rmcli.inspect_token import evidence as token_evidence
from rmcli.inspect_token.evidence import Evidence, RowSummary
from rmcli.packs import writer as store
from rmcli.rows import sources
from rmcli.tokens.tokenizer import RewardTokenizer, load_bare_tokenizer, load_model_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

MAX_CANDIDATE_ROWS = 64  # without --all: Gemma-3 has 6242 candidates, of 10 kB each and alike
TEXTS_PER_BATCH = 256
NUM_SHOWN = 10


@dataclass(frozen=True)
class CorpusSummary:
    """What --corpus was. `num_texts` counts texts, or conversations of a prepared folder."""

    source: str
    num_texts: int
    num_tokens: int
    num_unreadable: int
    has_text: bool


@dataclass(frozen=True)
class Configured:
    """The reward token that a preset or file names, against the verdict. `rank` is None when it is no candidate."""

    id: int | None
    token: str | None
    rank: int | None
    remark: str


@dataclass(frozen=True)
class Report:
    """`candidates` are ranked best first; `ruled_out` are special or reserved ids that cannot serve.

    `num_embedding_rows` is None when there is neither model config nor weights.
    """

    name: str
    num_embedding_rows: int | None
    num_tokens: int
    candidates: tuple[Evidence, ...]
    ruled_out: tuple[Evidence, ...]
    rows: RowSummary | None
    corpus: CorpusSummary | None
    configured: Configured | None
    not_looked_at: tuple[str, ...]

    @property
    def best(self) -> Evidence:
        return self.candidates[0]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as --json prints it."""
        plain = asdict(self)
        for rank, (entry, candidate) in enumerate(zip(plain["candidates"], self.candidates, strict=True), 1):
            entry["rank"] = rank
            behind = token_evidence.why_behind(self.best, candidate)
            entry["reason"] = behind if rank > 1 else "; ".join(token_evidence.why_first(candidate))
        for entry, candidate in zip(plain["ruled_out"], self.ruled_out, strict=True):
            entry["reason"] = token_evidence.why_ruled_out(candidate)
        return {**plain, "toml": self.best.toml()}


def run(model: ModelSection, corpus: str | None = None, all_rows: bool = False) -> Report:
    """Gather the evidence for every candidate and rank it. Reads only the embedding rows it needs.

    Raises RmcliError when the tokenizer cannot be had or a weight file is damaged; weights that are merely not at
    hand are listed in `not_looked_at`.
    """
    missing: list[str] = []
    config = _config_of(model)
    tokenizer = load_bare_tokenizer(model)
    embedding = _open_embedding(model, config, missing)
    num_rows = _num_rows(config, embedding, missing)
    uses, own_reward_id = _uses_in_model_files(model, config, missing)
    gathered = token_evidence.gather(tokenizer, num_rows, uses, preset_reward_tokens())
    gathered = [_without_own_template(candidate, own_reward_id) for candidate in gathered]
    ruled_out = sorted((c for c in gathered if c.ruled_out), key=lambda candidate: candidate.id)
    candidates = token_evidence.add_typing(token_evidence.rank(gathered), tokenizer)
    rows, corpus_summary = None, None
    if embedding is not None:
        candidates, rows = _read_rows(candidates, embedding, tokenizer, None if all_rows else MAX_CANDIDATE_ROWS)
    if corpus is not None:
        candidates, corpus_summary = _count_corpus(candidates, corpus, tokenizer)
    ranked = token_evidence.rank(candidates)
    return Report(
        name=str(model.pretrained_model_name_or_path),
        num_embedding_rows=num_rows,
        num_tokens=len(tokenizer),
        candidates=tuple(ranked),
        ruled_out=tuple(ruled_out),
        rows=rows,
        corpus=corpus_summary,
        configured=_compare_configured(model, tokenizer, ranked, ruled_out),
        not_looked_at=tuple(missing),
    )


# --- the model's files ---


def _config_of(model: ModelSection) -> "PreTrainedConfig | None":
    """The model's config; none for a folder that holds a tokenizer alone."""
    folder = Path(model.pretrained_model_name_or_path or "").expanduser()
    if model.pretrained_model_name_or_path and folder.is_dir() and not (folder / "config.json").is_file():
        return None
    return load_model_config(model)


def _open_embedding(model: ModelSection, config: "PreTrainedConfig | None", missing: list[str]) -> Embedding | None:
    if config is None:
        missing.append("embedding rows, config.json and generation_config.json: this is a tokenizer without a model")
        return None
    if model.random_weights:
        missing.append("embedding rows: the weights are random (model.random_weights)")
        return None
    try:
        return embedding_rows.open_embedding(str(model.pretrained_model_name_or_path), model.revision)
    except RowsUnavailableError as error:
        missing.append(f"embedding rows: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return None


def _num_rows(config: "PreTrainedConfig | None", embedding: Embedding | None, missing: list[str]) -> int | None:
    """The embedding's own count before the config's; a difference is said."""
    configured = None if config is None else int(config.get_text_config().vocab_size)
    if embedding is None or embedding.num_rows == configured:
        return configured
    output.warn(f"{embedding.where} has {embedding.num_rows:,} rows, the config says {configured}")
    return embedding.num_rows


def _uses_in_model_files(
    model: ModelSection, config: "PreTrainedConfig | None", missing: list[str]
) -> tuple[dict[int, list[str]], int | None]:
    """Ids that config.json and generation_config.json name, with where; and a trained model's own reward token."""
    uses: dict[int, list[str]] = {}
    if config is None:
        return uses, None
    named = {"config": config.to_dict()}
    generation = _generation_config(model, missing)
    if generation is not None:
        named["generation_config"] = generation
    own_reward_id = named["config"].pop("reward_token_id", None)
    for file, values in named.items():
        for key, value in values.items():
            if not key.endswith(("_token_id", "_token_ids", "_token_index", "_tokens")):
                continue
            for index in value if isinstance(value, list) else [value]:
                if isinstance(index, int) and not isinstance(index, bool):
                    uses.setdefault(index, []).append(f"{file}.json {key}")
    return uses, own_reward_id


def _generation_config(model: ModelSection, missing: list[str]) -> dict[str, Any] | None:
    arguments = pretrained_arguments(str(model.pretrained_model_name_or_path), model.revision)
    place = Path(arguments["pretrained_model_name_or_path"])
    if "gguf_file" in arguments:
        return None
    if place.is_dir():
        path = place / "generation_config.json"
        return read_json(path) if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        with hub.asking():
            return read_json(Path(hf_hub_download(str(place), "generation_config.json", revision=model.revision)))
    except RemoteEntryNotFoundError:
        return None
    except OSError as error:
        missing.append(f"generation_config.json: {type(error).__name__}")
        return None


def _without_own_template(candidate: Evidence, own_reward_id: int | None) -> Evidence:
    """A trained reward model's template ends with its reward token: that is no other use."""
    if candidate.id != own_reward_id:
        return candidate
    return replace(candidate, used_by=tuple(use for use in candidate.used_by if use != "chat template"))


# --- rows and corpus ---


def _read_rows(
    candidates: Sequence[Evidence], embedding: Embedding, tokenizer: "PreTrainedTokenizerBase", limit: int | None
) -> tuple[list[Evidence], RowSummary]:
    """Read the rows of the first `limit` candidates and of 256 ordinary tokens."""
    wanted = [candidate.id for candidate in candidates if candidate.id < embedding.num_rows][:limit]
    named = {candidate.id for candidate in candidates} | set(tokenizer.all_special_ids)
    ordinary = token_evidence.ordinary_ids(min(len(tokenizer), embedding.num_rows), named)
    if not ordinary:
        raise RmcliError(f"{embedding.where}: every token is special, so there is no ordinary row to compare with")
    ids = [*wanted, *ordinary]
    values = embedding.read(ids)
    if not np.isfinite(values).all():
        bad = ids[int(np.argmax(~np.isfinite(values).all(axis=1)))]
        raise RmcliError(f"{embedding.where}: row {bad} is not finite", "download the model again")
    split = len(wanted)
    found, median, groups = token_evidence.add_rows(
        candidates,
        dict(zip(wanted, values[:split], strict=True)),
        dict(zip(ordinary, values[split:], strict=True)),
    )
    summary = RowSummary(
        embedding.where, embedding.num_rows, split, len(ordinary), median, embedding.bytes_read, groups
    )
    return found, summary


def _count_corpus(
    candidates: Sequence[Evidence], corpus: str, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Evidence], CorpusSummary]:
    """Count candidates in a source as `prepare` reads it, or in a prepared folder."""
    if (Path(corpus) / "manifest.json").is_file():
        return _count_prepared(candidates, Path(corpus), tokenizer)
    id_counts = np.zeros(len(tokenizer), dtype=np.int64)
    text_counts: Counter[str] = Counter()
    names = sorted((c.token for c in candidates if c.token is not None), key=len, reverse=True)
    any_name = re.compile("|".join(map(re.escape, names)) or r"(?!)")  # (?!) matches nothing
    num_texts = num_unreadable = 0
    sources.check_sources([corpus])
    for batch in _batches(corpus):
        num_unreadable += batch.count(None)
        texts = [text for text in batch if text is not None]
        if not texts:
            continue
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:  # type: ignore[union-attr]
            id_counts += np.bincount(np.asarray(ids, dtype=np.int64), minlength=len(id_counts))
        for text in texts:
            text_counts.update(any_name.findall(text))
        num_texts += len(texts)
    if not num_texts:
        raise RmcliError(f"--corpus {corpus}: no text in it ({num_unreadable} unreadable rows)")
    summary = CorpusSummary(corpus, num_texts, int(id_counts.sum()), num_unreadable, True)
    return token_evidence.add_corpus(candidates, id_counts, text_counts), summary


def _batches(corpus: str) -> Iterator[list[str | None]]:
    """The texts of a source in batches; None stands for a row that cannot be read."""
    batch: list[str | None] = []
    for row in sources.read_rows([corpus], "train"):
        batch.extend([None] if row.value is None else _texts_in(row.value))
        if len(batch) >= TEXTS_PER_BATCH:
            yield batch
            batch = []
    yield batch


def _texts_in(value: object) -> Iterator[str]:
    """Every text field, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, Iterable):
        for inner in value:
            yield from _texts_in(inner)


def _count_prepared(
    candidates: Sequence[Evidence], folder: Path, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[Evidence], CorpusSummary]:
    """Count ids in prepared rows: each shared prompt once, each response without its reward token."""
    manifest = store.read_manifest(folder)
    _check_same_tokenizer(manifest, folder, tokenizer)
    id_counts = np.zeros(len(tokenizer) + 1, dtype=np.int64)
    num_texts = 0
    for split in store.SPLITS:
        packed = store.PackedSplit(folder, split)
        for row in range(len(packed)):
            for group in packed.groups(row):
                ids = np.concatenate([group.prefix, *(response[:-1] for response in group.responses)])
                id_counts += np.bincount(ids, minlength=len(id_counts))
                num_texts += len(group.responses)
    summary = CorpusSummary(str(folder), num_texts, int(id_counts.sum()), 0, False)
    return token_evidence.add_corpus(candidates, id_counts, None), summary


def _check_same_tokenizer(manifest: Mapping[str, Any], folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    own = copy.deepcopy(tokenizer)
    if manifest["reward_token"] not in own.get_vocab():
        own.add_tokens([manifest["reward_token"]], special_tokens=True)
    here = RewardTokenizer(own, manifest["reward_token"], 0, 0).fingerprint()["tokenizer_sha256"]
    if here != manifest["tokenizer_sha256"]:
        raise RmcliError(
            f"--corpus {folder} was prepared with another tokenizer: {manifest['tokenizer_sha256'][:16]} there, "
            f"{here[:16]} here",
            "give the file it was prepared from",
        )


# --- the configured token ---


def _compare_configured(
    model: ModelSection,
    tokenizer: "PreTrainedTokenizerBase",
    ranked: Sequence[Evidence],
    ruled_out: Sequence[Evidence],
) -> Configured | None:
    """What the preset or file names, and where the evidence puts it."""
    token, index = model.reward_token, model.reward_token_id
    if token is None and index is None:
        return None
    known = token in tokenizer.get_vocab() if token is not None else False
    found = tokenizer.get_vocab()[token] if token is not None and known else index
    name = f"configured {token!r} ({found})" if token is not None else f"configured id {found}"
    for rank, candidate in enumerate(ranked, 1):
        if candidate.id == found and (candidate.token is None or token is None or known):
            behind = "the verdict" if rank == 1 else f"rank {rank}: {token_evidence.why_behind(ranked[0], candidate)}"
            return Configured(found, token, rank, f"{name} is {behind}")
    for candidate in ruled_out:
        if candidate.id == found:
            return Configured(found, token, None, f"{name} is ruled out: {token_evidence.why_ruled_out(candidate)}")
    return Configured(found, token, None, f"{name} is no candidate: no special or reserved token, nor a free row")


# --- showing ---


def show(report: Report, everything: bool) -> None:
    """The table, the verdict in words and the lines to paste."""
    rows = "unknown" if report.num_embedding_rows is None else f"{report.num_embedding_rows:,}"
    output.answer(f"{report.name}: {report.num_tokens:,} tokens, embedding rows {rows}")
    for missing in report.not_looked_at:
        output.answer(f"not looked at: {missing}")
    for line in [*_rows_lines(report), *_corpus_lines(report)]:
        output.answer(line)
    limit = len(report.candidates) if everything else NUM_SHOWN
    _show_table(report, report.candidates[:limit])
    if len(report.candidates) > limit:
        output.answer(f"{len(report.candidates) - limit:,} more with --all")
    if everything and report.ruled_out:
        output.table(
            ["ruled out", "token", "why"],
            [[str(c.id), c.token, token_evidence.why_ruled_out(c)] for c in report.ruled_out],
            to_answer=True,
        )
    for line in _verdict_lines(report):
        output.answer(line)
    output.answer(f"\n[model]\n{report.best.toml()}")


def _rows_lines(report: Report) -> list[str]:
    rows = report.rows
    if rows is None:
        return []
    read = f"{rows.num_candidate_rows} candidate and {rows.num_ordinary_rows} ordinary rows"
    lines = [f"read {read} ({rows.bytes_read:,} bytes); the median norm of ordinary rows is {rows.median_norm:.4g}"]
    groups = [_id_range(group) for group in rows.groups]
    return lines + ([f"bit-identical rows, never trained apart: {' | '.join(groups)}"] if groups else [])


def _id_range(ids: Sequence[int]) -> str:
    if len(ids) > NUM_SHOWN:
        return f"{ids[0]} ... {ids[-1]} ({len(ids)} rows)"
    return " ".join(map(str, ids))


def _corpus_lines(report: Report) -> list[str]:
    corpus = report.corpus
    if corpus is None:
        return []
    what = "texts" if corpus.has_text else "prepared conversations (ids only; their text is not kept)"
    unreadable = f", {corpus.num_unreadable:,} unreadable rows" if corpus.num_unreadable else ""
    return [f"corpus {corpus.source}: {corpus.num_texts:,} {what}, {corpus.num_tokens:,} tokens{unreadable}"]


def _show_table(report: Report, candidates: Sequence[Evidence]) -> None:
    columns = ["rank", "id", "token", "kind", "special", "typed text"]
    columns += ["norm", "nearest"] if report.rows is not None else []
    columns += ["in corpus"] if report.corpus is not None else []
    table = []
    for rank, c in enumerate(candidates, 1):
        row: list[Any] = [rank, str(c.id), c.token or f"(new) {token_evidence.NEW_TOKEN}", c.kind]
        row += ["yes" if c.special else "no", _typed(c)]
        row += [_norm(c), _nearest(c)] if report.rows is not None else []
        row += ["-" if c.occurrences is None else str(c.occurrences)] if report.corpus is not None else []
        table.append(row)
    output.table(columns, table, to_answer=True)


def _typed(candidate: Evidence) -> str:
    if candidate.typed is None:
        return "-"
    if not candidate.typed:
        return "is not it"
    return "always is it" if candidate.typed_when_split else "is it unless split"


def _norm(candidate: Evidence) -> str:
    if candidate.norm is None:
        return "not read"
    ratio = "" if candidate.norm_ratio is None else f" ({candidate.norm_ratio:.2f}x)"
    return f"{candidate.norm:.4g}{ratio}" + (" ~zero" if candidate.near_zero else "")


def _nearest(candidate: Evidence) -> str:
    if candidate.nearest_id is None:
        return "-"
    same = " same bits" if candidate.nearest_id in candidate.identical_to else ""
    return f"{candidate.nearest_cosine:.4f} to {candidate.nearest_id}{same}"


def _verdict_lines(report: Report) -> list[str]:
    best = report.best
    token = best.token or f"a new token {token_evidence.NEW_TOKEN}"
    lines = [f"verdict: {token} ({best.id}): {'; '.join(token_evidence.why_first(best))}"]
    behind: dict[str, list[Evidence]] = {}
    for candidate in report.candidates[1:]:
        behind.setdefault(token_evidence.why_behind(best, candidate), []).append(candidate)
    for reason, those in behind.items():
        first = those[0].token or f"a new token ({those[0].id})"
        more = f" and {len(those) - 1:,} more" if len(those) > 1 else ""
        lines.append(f"behind it: {first}{more}: {reason}")
    ruled_out = Counter(reason for candidate in report.ruled_out for reason in _short_reasons(candidate))
    if ruled_out:
        counted = ", ".join(f"{count:,} {reason}" for reason, count in ruled_out.most_common())
        lines.append(f"ruled out: {len(report.ruled_out):,} ids ({counted})")
    return lines + ([report.configured.remark] if report.configured else [])


def _short_reasons(candidate: Evidence) -> Sequence[str]:
    return ["outside the embedding"] if candidate.inside is False else candidate.used_by[:1]


# --- a preset of one's own ---


def preset_path(name: str) -> Path:
    """NAME.toml in the current folder. Raises ConfigError when the name is none or the file exists."""
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ConfigError(
            f"--write-preset {name!r} is no name", "letters, digits, - and _: it becomes NAME.toml here"
        )
    path = Path(f"{name.removesuffix('.toml')}.toml")
    if path.exists():
        raise ConfigError(f"--write-preset: {path} exists and is left alone", "choose another name")
    return path


def write_preset(report: Report, model: ModelSection, path: Path) -> None:
    """A config file for `-c`: the model, its reward token, the evidence as a comment, and keys to start from.

    Raises ConfigError when only a tokenizer was inspected.
    """
    config = _config_of(model)
    if config is None:
        raise ConfigError(
            f"--write-preset: {report.name} is a tokenizer without a model",
            "give the model, and this tokenizer with -s model.tokenizer_name_or_path=FOLDER",
        )
    text = _preset_text(report, model, config)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RmcliError(f"cannot write {path}: {error.strerror or error}") from error
    resolve(None, [path])  # what was written loads


def _preset_text(report: Report, model: ModelSection, config: "PreTrainedConfig") -> str:
    document = tomlkit.document()
    for line in [*_verdict_lines(report), *_rows_lines(report), *_corpus_lines(report)]:
        document.add(tomlkit.comment(line))
    for missing in report.not_looked_at:
        document.add(tomlkit.comment(f"not looked at: {missing}"))
    kept = ("revision", "tokenizer_name_or_path", "random_weights")
    own = {key: getattr(model, key) for key in kept if getattr(model, key)}
    local = Path(str(model.pretrained_model_name_or_path)).expanduser()
    name = str(local.absolute()) if local.exists() else model.pretrained_model_name_or_path
    token = {"reward_token": report.best.token or token_evidence.NEW_TOKEN, "reward_token_id": report.best.id}
    document.add("model", tomlkit.item({"pretrained_model_name_or_path": name, **own, **token}))
    text_config = config.get_text_config()
    max_length = min(2048, int(getattr(text_config, "max_position_embeddings", None) or 2048))
    document.add("data", tomlkit.item({"max_length": max_length, "max_packed_length": 8 * max_length}))
    document.add("train", tomlkit.item(_train_keys(text_config)))
    return tomlkit.dumps(document)


def _train_keys(config: "PreTrainedConfig") -> dict[str, Any]:
    """A learning rate by size, as the shipped presets have it."""
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    num_parameters = 12 * layers * hidden**2 + int(config.vocab_size) * hidden
    if num_parameters < 5e8:
        return {"pairs_per_step": 32, "lr": 2e-5}
    if num_parameters < 4e9:
        return {"pairs_per_step": 64, "lr": 1e-5}
    return {"pairs_per_step": 128, "lr": 5e-6, "activation_checkpointing": "full"}
