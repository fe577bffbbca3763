"""`rmcli prepare`: rows -> preference groups -> tokens -> packed rows on disk, every row accounted for."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rmcli import chat_templates, engines, map_fns, output, sources, store
from rmcli.config import DataSection, Resolved
from rmcli.encode import Encoder, group_key, is_held_out, prompt_of
from rmcli.errors import RmcliError, Skip
from rmcli.pack import WINDOW, pack
from rmcli.records import PreferenceGroup, RawRow, Reject, TokenGroup
from rmcli.tokenizer import RewardTokenizer, load_tokenizer

CHUNK = 512  # rows rendered and tokenized at a time
FIRST_KEPT = 20  # pairs that --show can print


@dataclass(frozen=True)
class Plan:
    """What prepare is going to do. `sources` are absolute, so that the manifest can repeat them."""

    resolved: Resolved
    map_function: map_fns.MapFunction
    map_fn_sha256: str
    sources: tuple[str, ...]
    folder: Path


def plan(resolved: Resolved, folder: Path | None) -> Plan:
    """Check everything that can be checked without reading data or a model."""
    data = resolved.config.data
    map_function = map_fns.find_map_function(data.dataset_map_fn)
    named = list(data.sources)
    if not named and map_function.default_source is not None:
        named = [map_function.default_source]
    sources.check_sources(named)
    if folder is None:
        map_name = Path(str(data.dataset_map_fn).rpartition(":")[0] or str(data.dataset_map_fn)).stem
        shard = f"-shard-{data.shard_number}-of-{data.num_shards}" if data.shard else ""
        folder = Path("data") / f"{map_name}-{resolved.name}{shard}"
    source = map_fns.source_code(map_function)
    digest = hashlib.sha256(source.encode("utf-8")).hexdigest()
    return Plan(resolved, map_function, digest, tuple(map(sources.absolute_source, named)), folder)


def run(plan: Plan, overwrite: bool = False, show: int = 0) -> dict[str, Any]:
    """Prepare and return the manifest; print the first `show` pairs token by token.

    Raises RmcliError when not a single row is kept; nothing is written then.
    """
    config = plan.resolved.config
    data = config.data
    reward = load_tokenizer(config.model)
    encoder = Encoder(reward, data.max_length, data.overlong, data.tokenizer_engine)
    if data.shard is not None:
        output.warn(f"shard {data.shard}: duplicates are found among the rows of this shard alone")
    if reward.grown_from is not None:
        output.warn(
            f"{reward.reward_token} is new: it takes id {reward.reward_token_id}, past the {reward.grown_from:,} "
            f"embedding rows: train grows them to {reward.num_embedding_rows:,}"
        )
    elif reward.added:
        output.warn(f"{reward.reward_token} is new: it takes the spare embedding row {reward.reward_token_id}")
    output.say(
        f"map function {data.dataset_map_fn}, reward token {reward.reward_token} "
        f"({reward.reward_token_id}, {reward.mode})"
    )
    for note in chat_templates.describe(reward.tokenizer).notes:
        output.say(f"chat template: {note}")
    with store.StoreWriter(plan.folder, overwrite) as writer:
        tally = _fill(writer, plan, encoder)
        if not tally.kept:
            raise _nothing_kept(tally)
        manifest = writer.finish(_manifest(plan, encoder, tally))
    for number, group in enumerate(tally.first[:show], 1):
        _show_tokens(f"pair {number} (input row {group.row_id})", group, reward)
    _report(manifest, plan.folder)
    return manifest


SHOWN_TOKENS = 40  # of each end of a longer run


def _show_tokens(title: str, group: TokenGroup, reward: RewardTokenizer) -> None:
    """One table: the shared prefix once, then each response; long runs are cut in the middle, and that is said."""
    parts = [("shared prefix", group.prefix), ("chosen", group.responses[0]), ("rejected", group.responses[1])]
    lines: list[list[Any]] = []
    for name, ids in parts:
        start = 0 if name == "shared prefix" else len(group.prefix)
        for at, index in enumerate(ids.tolist()):
            if len(ids) > 2 * SHOWN_TOKENS and SHOWN_TOKENS <= at < len(ids) - SHOWN_TOKENS:
                if at == SHOWN_TOKENS:
                    lines.append([name, "...", "...", f"{len(ids) - 2 * SHOWN_TOKENS} more tokens"])
                continue
            last = at == len(ids) - 1 and name != "shared prefix"
            text = reward.tokenizer.decode([index])
            lines.append([name, str(start + at), str(index), repr(text) + (" <- scored here" if last else "")])
    output.table(["part", "position", "id", "token"], lines, to_answer=True, title=title)


@dataclass
class _Tally:
    """Rows in, and what became of each: `in = kept + rejected`."""

    rows_in: int
    kept: int
    rejected: Counter[str]
    first: list[TokenGroup] = field(default_factory=list)  # the first few kept, to be shown


# Row number, row, and its group or the reason it has none.
_Mapped = list[tuple[int, RawRow, PreferenceGroup | str]]


def _fill(writer: store.StoreWriter, plan: Plan, encoder: Encoder) -> _Tally:
    """Read, map, encode and pack into the writer, window by window."""
    data = plan.resolved.config.data
    tally = _Tally(0, 0, Counter())
    seen: set[bytes] = set()
    held_back: dict[str, list[TokenGroup]] = {split: [] for split in store.SPLITS}
    windows = dict.fromkeys(store.SPLITS, 0)

    def pack_window(split: str) -> None:
        groups, held_back[split] = held_back[split], []
        seed = data.seed + windows[split]
        writer.add_rows(split, pack(groups, data.max_packed_length, data.shuffle_before_pack, seed))
        windows[split] += 1

    def reject(reason: str, row: RawRow) -> None:
        tally.rejected[reason] += 1
        writer.add_reject(Reject(reason, row.file, row.line, row.text))

    def map_chunk(chunk: list[tuple[int, RawRow]]) -> _Mapped:
        """Rows to groups; one that comes to nothing keeps its place with its reason."""
        mapped: _Mapped = []
        for row_id, row in chunk:
            try:
                group = _map_row(plan.map_function, row)
                if not data.keep_duplicates:
                    key = group_key(group)
                    if key in seen:
                        raise Skip("duplicate")
                    seen.add(key)
                mapped.append((row_id, row, group))
            except Skip as skip:
                mapped.append((row_id, row, skip.reason))
        return mapped

    def encode_chunk(mapped: _Mapped) -> list[TokenGroup | str]:
        """Tokens, or the reason, of each row in turn."""
        encoded = iter(encoder.encode([group for _, _, group in mapped if not isinstance(group, str)]))
        return [group if isinstance(group, str) else next(encoded) for _, _, group in mapped]

    rows = sources.read_rows(plan.sources, data.split)
    chunks = map(map_chunk, _chunks(islice(enumerate(rows), data.shard_number - 1, None, data.num_shards)))
    total = sources.count_rows(plan.sources) if output.draws_bar() else None
    if total is not None:
        total = len(range(data.shard_number - 1, total, data.num_shards))
    with output.progress("prepare", total, unit="rows") as progress:
        for mapped, encoded in engines.in_order(
            encode_chunk, chunks, data.num_proc, lambda: encoder.engine.is_settled
        ):
            tally.rows_in += len(mapped)
            for (row_id, row, group), tokens in zip(mapped, encoded, strict=True):
                if isinstance(group, str):
                    reject(group, row)
                elif isinstance(tokens, str):
                    reject(tokens, row)
                elif tokens.num_tokens > data.max_packed_length:
                    reject("longer_than_pack", row)
                else:
                    tally.kept += 1
                    split = "eval" if is_held_out(prompt_of(group), data.eval_fraction, data.eval_seed) else "train"
                    tokens = replace(tokens, row_id=row_id, source_id=row.source_id)
                    held_back[split].append(tokens)
                    if len(tally.first) < FIRST_KEPT:
                        tally.first.append(tokens)
                    if split == "eval":
                        writer.add_eval_text(_as_canonical(group))
                    if len(held_back[split]) == WINDOW:
                        pack_window(split)
            progress.advance(len(mapped))
    for split in store.SPLITS:
        pack_window(split)
    return tally


def _map_row(map_function: map_fns.MapFunction, row: RawRow) -> PreferenceGroup:
    if row.value is None:
        raise Skip(row.problem or "wrong_type")
    return map_fns.apply(map_function, row.value, f"{row.file}:{row.line}")


def _chunks(rows: Iterator[tuple[int, RawRow]]) -> Iterator[list[tuple[int, RawRow]]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _as_canonical(group: PreferenceGroup) -> dict[str, Any]:
    """The pair as `rmcli score` reads it: the messages both begin with, then what each says."""
    chosen, rejected = group.conversations
    prompt = prompt_of(group)
    shared = len(prompt) if chosen[: len(prompt)] == rejected[: len(prompt)] else 0
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _manifest(plan: Plan, encoder: Encoder, tally: _Tally) -> dict[str, Any]:
    config = plan.resolved.config
    reward = encoder.reward
    return {
        "preset": plan.resolved.name,
        "sources": list(plan.sources),
        "dataset_map_fn": config.data.dataset_map_fn,
        "map_fn_sha256": plan.map_fn_sha256,
        "reward_token": reward.reward_token,
        "reward_token_id": reward.reward_token_id,
        "reward_mode": reward.mode,
        **reward.fingerprint(),
        "tokenizer_engine": f"{encoder.engine.name} {encoder.engine.version}",
        "shard": config.data.shard,
        "rows": {
            "in": tally.rows_in,
            "kept": tally.kept,
            "rejected": tally.rejected.total(),
            "reasons": dict(sorted(tally.rejected.items())),
        },
        # num_proc changes nothing in the data, so nothing here either.
        "config": config.model_dump(include={"model": True, "data": set(DataSection.model_fields) - {"num_proc"}}),
    }


def _nothing_kept(tally: _Tally) -> RmcliError:
    if not tally.rows_in:
        return RmcliError("no rows in the sources", "check the files")
    reason, count = tally.rejected.most_common(1)[0]
    known = "; ".join(f"{name} reads {', '.join(f.columns)}" for name, f in map_fns.NAMED.items())
    return RmcliError(
        f"not one of {tally.rows_in} rows was kept; {count} were rejected as {reason}",
        f"does --map-fn fit the data? {known}",
    )


def _report(manifest: dict[str, Any], folder: Path) -> None:
    rows = manifest["rows"]
    output.say(f"rows: {rows['in']:,} in = {rows['kept']:,} kept + {rows['rejected']:,} rejected")
    if rows["rejected"]:
        output.table(["rejected because", "rows"], list(rows["reasons"].items()), to_answer=False)
        output.say(f"each with file, line and text in {folder / 'rejects.jsonl'}")
    columns = ["split", "pairs", "packs", "tokens", "pack fill", "sharing ratio", "truncated"]
    capacity = manifest["config"]["data"]["max_packed_length"]
    lines = [
        [
            split,
            s["num_pairs"],
            s["num_rows"],
            s["num_tokens"],
            f"{s['num_tokens'] / max(s['num_rows'] * capacity, 1):.1%}",
            f"{s['num_unshared_tokens'] / max(s['num_tokens'], 1):.2f}",
            s["num_truncated"],
        ]
        for split, s in manifest["splits"].items()
    ]
    output.table(columns, lines, to_answer=False)
