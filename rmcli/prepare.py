"""`rmcli prepare`: rows -> preference groups -> tokens -> packed rows on disk, every row accounted for."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rmcli import chat_templates, map_fns, output, sources, store
from rmcli.config import Layer, Resolved, relayer
from rmcli.encode import Encoder, group_key, is_held_out, prompt_of
from rmcli.errors import RmcliError, Skip
from rmcli.pack import WINDOW, pack
from rmcli.records import PAIR, PreferenceGroup, RawRow, Reject, TokenGroup
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
    """Check everything that can be checked without reading data (but for the first row, with auto) or a model."""
    if resolved.config.data.dataset_map_fn == map_fns.AUTO:
        resolved = _recognised(resolved)
    data = resolved.config.data
    map_function = map_fns.find_map_function(data.dataset_map_fn)
    named = list(data.sources)
    if not named and map_function.default_source is not None:
        named = [map_function.default_source]
        if "data.split" not in resolved.explicit:
            own_split = Layer("the map function's data set", {"data": {"split": map_function.default_split}})
            resolved = relayer(resolved, own_split)
    sources.check_sources(named)
    if folder is None:
        map_name = Path(str(data.dataset_map_fn).rpartition(":")[0] or str(data.dataset_map_fn)).stem
        folder = Path("data") / f"{map_name}-{resolved.name}"
    source = map_fns.source_code(map_function)
    digest = hashlib.sha256(source.encode("utf-8")).hexdigest()
    return Plan(resolved, map_function, digest, tuple(map(sources.absolute_source, named)), folder)


def _recognised(resolved: Resolved) -> Resolved:
    """The configuration with the map function whose schema the first readable row has, said aloud."""
    data = resolved.config.data
    sources.check_sources(data.sources)
    readable = (row for row in sources.read_rows(data.sources, data.split) if row.value is not None)
    first = next(readable, None)
    if first is None or first.value is None:
        raise RmcliError(f"no readable row in {', '.join(data.sources)}", "name the map function with --map-fn")
    name = map_fns.recognise(first.value)
    output.say(
        f"map function {name}, recognised by the columns {', '.join(first.value)} of {first.file}:{first.line}"
    )
    return relayer(resolved, Layer("recognised by the columns", {"data": {"dataset_map_fn": name}}))


def run(plan: Plan, overwrite: bool = False, show: int = 0) -> dict[str, Any]:
    """Prepare and return the manifest; print the first `show` pairs token by token.

    Raises RmcliError when not a single row is kept; nothing is written then.
    """
    config = plan.resolved.config
    data = config.data
    reward = load_tokenizer(config.model)
    encoder = Encoder(reward, data.max_length, data.overlong, data.pairs)
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
        manifest = writer.finish(_manifest(plan, reward, tally))
    for number, group in enumerate(tally.first[:show], 1):
        _show_tokens(f"pair {number} (input row {group.row_id})", group, reward)
    _report(manifest, plan.folder)
    return manifest


SHOWN_TOKENS = 40  # of each end of a longer run


def _show_tokens(title: str, group: TokenGroup, reward: RewardTokenizer) -> None:
    """One table: the shared prefix once, then each response; long runs are cut in the middle, and that is said."""
    names = (
        ["chosen", "rejected"]
        if group.comparisons == PAIR
        else [f"response {n}" for n in range(len(group.responses))]
    )
    parts = [("shared prefix", group.prefix), *zip(names, group.responses, strict=True)]
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

    with output.progress("prepare", None) as progress:
        for chunk in _chunks(sources.read_rows(plan.sources, data.split)):
            mapped: list[tuple[int, RawRow, PreferenceGroup]] = []
            for row in chunk:
                row_id = tally.rows_in
                tally.rows_in += 1
                try:
                    group = _map_row(plan.map_function, row)
                    if not data.keep_duplicates:
                        key = group_key(group)
                        if key in seen:
                            raise Skip("duplicate")
                        seen.add(key)
                    mapped.append((row_id, row, group))
                except Skip as skip:
                    reject(skip.reason, row)
            encoded = encoder.encode([group for _, _, group in mapped])
            for (row_id, row, group), tokens in zip(mapped, encoded, strict=True):
                if isinstance(tokens, str):
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
            progress.advance(len(chunk))
    for split in store.SPLITS:
        pack_window(split)
    return tally


def _map_row(map_function: map_fns.MapFunction, row: RawRow) -> PreferenceGroup:
    if row.value is None:
        raise Skip(row.problem or "wrong_type")
    return map_fns.apply(map_function, row.value, f"{row.file}:{row.line}")


def _chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def _as_canonical(group: PreferenceGroup) -> dict[str, Any]:
    """The group as `rmcli score` reads it: the messages all begin with, then what each says."""
    prompt = prompt_of(group)
    shared = len(prompt) if all(talk[: len(prompt)] == prompt for talk in group.conversations) else 0
    responses = [talk[shared:] for talk in group.conversations]
    if group.comparisons == PAIR:
        return {"prompt": prompt[:shared], "chosen": responses[0], "rejected": responses[1]}
    return {"prompt": prompt[:shared], "responses": responses, "comparisons": group.comparisons}


def _manifest(plan: Plan, reward: RewardTokenizer, tally: _Tally) -> dict[str, Any]:
    config = plan.resolved.config
    return {
        "preset": plan.resolved.name,
        "sources": list(plan.sources),
        "dataset_map_fn": config.data.dataset_map_fn,
        "map_fn_sha256": plan.map_fn_sha256,
        "reward_token": reward.reward_token,
        "reward_token_id": reward.reward_token_id,
        "reward_mode": reward.mode,
        **reward.fingerprint(),
        "rows": {
            "in": tally.rows_in,
            "kept": tally.kept,
            "rejected": tally.rejected.total(),
            "reasons": dict(sorted(tally.rejected.items())),
        },
        "config": config.model_dump(include={"model", "data"}),
    }


def _nothing_kept(tally: _Tally) -> RmcliError:
    if not tally.rows_in:
        return RmcliError("no rows in the sources", "check the files")
    reason, count = tally.rejected.most_common(1)[0]
    return RmcliError(
        f"not one of {tally.rows_in} rows was kept; {count} were rejected as {reason}",
        "does --map-fn fit the data? --map-fn auto recognises it, rmcli map-fns lists what each one reads",
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
