"""`rmcli prepare`: rows -> preference groups -> tokens -> packed rows on disk, every row accounted for."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rmcli import output
from rmcli.config.layers import DataSection, Layer, Resolved, SourceSection, relayer
from rmcli.errors import ConfigError, RmcliError, Skip
from rmcli.packs import remote
from rmcli.packs import writer as store
from rmcli.packs.pack import WINDOW, pack
from rmcli.records import PAIR, Conversation, Message, PreferenceGroup, RawRow, Reject, TokenGroup
from rmcli.rows import accounting, decontaminate, readers, sources
from rmcli.rows.duplicates import Seen
from rmcli.rows.map_fns.apply import apply, find_map_function, source_code
from rmcli.rows.map_fns.fields import MapFunction
from rmcli.rows.map_fns.known import AUTO, NAMED, recognise
from rmcli.tokens import chat_templates, engines
from rmcli.tokens.encode import Encoder, group_key, is_held_out, prompt_of
from rmcli.tokens.tokenizer import RewardTokenizer, load_tokenizer

MOST_ROWS_OF_A_GROUP = 1000
CHUNK = 512  # groups rendered and tokenized at a time
FIRST_KEPT = 20  # pairs that --show can print


@dataclass(frozen=True)
class MappedSource:
    """A source, absolute so that the manifest can repeat it, and the function that maps its rows."""

    section: SourceSection
    map_fn: str
    map_function: MapFunction


@dataclass(frozen=True)
class Plan:
    """What prepare is going to do."""

    resolved: Resolved
    sources: tuple[MappedSource, ...]
    folder: Path

    @property
    def map_fns(self) -> tuple[str, ...]:
        """The map functions by name, each once, in the order of the sources."""
        return tuple(dict.fromkeys(source.map_fn for source in self.sources))


def plan(resolved: Resolved, folder: Path | None) -> Plan:
    """Check everything that can be checked without reading data (but for the first row, with auto) or a model."""
    data = resolved.config.data
    named = list(data.sources)
    if not named:
        named = _default_sources(resolved)
    sources.check_sources(named)
    _check_caps(named, data)
    mapped = tuple(_with_map_function(source, data) for source in named)
    functions = {source.map_fn for source in mapped}
    if data.dataset_map_fn == AUTO and len(functions) == 1:
        own = Layer("recognised by the columns", {"data": {"dataset_map_fn": mapped[0].map_fn}})
        resolved = relayer(resolved, own)
        data = resolved.config.data
    if data.decontaminate:
        sources.check_sources(data.decontaminate)
    if folder is None:
        name = data.dataset_map_fn or (functions.pop() if len(functions) == 1 else "mixed")
        shard = f"-shard-{data.shard_number}-of-{data.num_shards}" if data.shard else ""
        folder = Path("data") / f"{Path(name.rpartition(':')[0] or name).stem}-{resolved.name}{shard}"
    return Plan(resolved, mapped, folder)


def _check_caps(named: Sequence[SourceSection], data: DataSection) -> None:
    """Each shard would count a cap for itself, and stop a streamed source at a place of its own."""
    capped = next((source for source in named if source.max_rows is not None), None)
    if data.shard is not None and capped is not None:
        raise ConfigError(
            f"max_rows = {capped.max_rows} of {capped.label} caps all rows, but shard {data.shard} sees only its own",
            "prepare without --shard, or without the cap",
        )


def _default_sources(resolved: Resolved) -> list[SourceSection]:
    """The data set that the map function is for, with its own split unless one is asked for."""
    function = find_map_function(resolved.config.data.dataset_map_fn)
    if function.default_source is None:
        return []
    section = sources.as_section(function.default_source)
    if function.default_split != "train" and "data.split" not in resolved.explicit:
        section = section.model_copy(update={"split": function.default_split})
    return [section]


def _with_map_function(source: SourceSection, data: DataSection) -> MappedSource:
    spec = source.dataset_map_fn or data.dataset_map_fn
    if spec == AUTO:
        spec = _recognised(source, data)
        source = source.model_copy(update={"dataset_map_fn": spec})
    return MappedSource(sources.absolute_source(source), str(spec), find_map_function(spec))


def _recognised(source: SourceSection, data: DataSection) -> str:
    """The map function whose schema the source's first readable row has, said aloud."""
    first = sources.first_row(source, data.split)
    if first is None or first.value is None:
        raise RmcliError(f"no readable row in {source.path}", "name the map function with --map-fn")
    name = recognise(first.value)
    output.say(
        f"map function {name}, recognised by the columns {', '.join(first.value)} of {first.file}:{first.line}"
    )
    return name


def run(
    plan: Plan,
    overwrite: bool = False,
    show: int = 0,
    place: str | None = None,
    reward: RewardTokenizer | None = None,
) -> dict[str, Any]:
    """Prepare and return the manifest; print the first `show` pairs token by token.

    `place` is where the user will find the folder, when that is not where it is written. `reward` is the configured
    model's tokenizer, where it has been loaded already.

    Raises RmcliError when not a single row is kept; nothing is written then.
    """
    config = plan.resolved.config
    data = config.data
    reward = reward or load_tokenizer(config.model)
    encoder = Encoder(reward, data.max_length, data.overlong, data.pairs, data.tokenizer_engine)
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
        f"map function {', '.join(plan.map_fns)}, reward token {reward.reward_token} "
        f"({reward.reward_token_id}, {reward.mode})"
    )
    for note in chat_templates.describe(reward.tokenizer).notes:
        output.say(f"chat template: {note}")
    held_out = decontaminate.read_prompts(
        {file: sources.read_rows([file], data.split) for file in data.decontaminate}, _known_prompt
    )
    with store.StoreWriter(plan.folder, overwrite) as writer:
        filling = _Filling(writer, plan, encoder, held_out)
        filling.run()
        whole = accounting.total(filling.accounts)
        if not whole.kept:
            raise _nothing_kept(whole)
        manifest = writer.finish(_manifest(plan, encoder, filling.accounts))
    for number, group in enumerate(filling.first[:show], 1):
        _show_tokens(f"pair {number} (input row {group.row_id})", group, reward)
    accounting.report(filling.accounts, f"{place or plan.folder}/rejects.jsonl")
    if filling.without_order:
        output.warn(
            f"data.pairs = {data.pairs}: {filling.without_order:,} groups are in no strict order and keep all their "
            "comparisons"
        )
    _report_splits(manifest)
    return manifest


def _known_prompt(row: Mapping[str, Any]) -> Conversation | None:
    """The prompt of an evaluation row whose schema a named map function has."""
    try:
        function = NAMED[recognise(row)]
        return prompt_of(apply(function, row, "evaluation file"))
    except (RmcliError, Skip):
        return None


@contextmanager
def folder_for(place: str, overwrite: bool) -> Iterator[Path]:
    """The folder to prepare in: `place` itself, or a temporary one where that is a URL.

    What was written there is proven, and uploaded when the context ends.
    """
    if not readers.is_url(place):
        yield Path(place)
        return
    remote.check_target(place, overwrite)
    with TemporaryDirectory(prefix="rmcli-") as temporary:
        folder = Path(temporary) / "data"
        yield folder
        for split in store.SPLITS:
            store.PackedSplit(folder, split)  # compares each file with its hash
        remote.upload(folder, place)
    output.say(f"uploaded to {place}")


def merge(parts: Sequence[Path], folder: Path, overwrite: bool = False) -> dict[str, Any]:
    """Join parts prepared with --shard into `folder`. Returns the manifest."""
    manifest = store.merge(parts, folder, overwrite)
    output.say(accounting.equation(manifest["rows"]))
    _report_splits(manifest)
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


@dataclass(frozen=True)
class _Unit:
    """The input rows that become one group: one row, or consecutive ones of one key."""

    row_id: int  # of its first row, counted from 0 over all sources
    rows: tuple[RawRow, ...]

    @property
    def place(self) -> str:
        return f"{self.rows[0].file}:{self.rows[0].line}"


@dataclass(frozen=True)
class _Waiting:
    """A mapped group that is about to be encoded."""

    group: PreferenceGroup
    key: bytes
    copies: int


@dataclass(frozen=True)
class _LeftOut:
    """Why a unit is no group. `repeats`: the place of the group it is a duplicate of."""

    reason: str
    detail: str | None = None
    repeats: str | None = None


DUPLICATE, NOT_TAKEN = "duplicate", "not_taken"  # fates of their own, no reasons to reject


class _Filling:
    """One run under way: reads, maps, encodes and packs into the writer, and accounts for every row."""

    def __init__(
        self, writer: store.StoreWriter, plan: Plan, encoder: Encoder, held_out: decontaminate.EvaluationPrompts
    ) -> None:
        self.writer, self.plan, self.encoder, self.held_out = writer, plan, encoder, held_out
        self.data = plan.resolved.config.data
        self.accounts = [accounting.Account(source.section.label) for source in plan.sources]
        self.seen = Seen()
        self.rows_read = self.units_read = 0  # of all shards
        self.first: list[TokenGroup] = []  # the first few kept, to be shown
        self.without_order = 0  # groups that data.pairs cannot choose from
        self._held_back: dict[str, list[TokenGroup]] = {split: [] for split in store.SPLITS}
        self._windows = dict.fromkeys(store.SPLITS, 0)

    def run(self) -> None:
        sections = [source.section for source in self.plan.sources]
        total = sources.count_rows(sections, self.data.split) if output.draws_bar() else None
        total = None if total is None else total // self.data.num_shards
        with output.progress("prepare", total, unit="rows") as progress:
            for source_id, source in enumerate(self.plan.sources):
                self._fill_from(source_id, source, progress)
        accounting.check_rejects(self.accounts, self.data.max_rejects, is_finished=True)
        for split in store.SPLITS:
            self._pack_window(split)

    def _fill_from(self, source_id: int, source: MappedSource, progress: output.Progress) -> None:
        """One source, chunk by chunk: looked at in order, encoded in threads, given their fates in order again."""
        account = self.accounts[source_id]
        rows = sources.read_source(source_id, source.section, self.data.split)
        chunks = _chunks(self._own(_units(rows, source.map_function, self.rows_read)))
        looked_at = ((chunk, self._look_at_all(chunk, source, account)) for chunk in chunks)

        def encode(item: tuple[list[_Unit], list[_Waiting | _LeftOut]]) -> list[TokenGroup | str]:
            return self.encoder.encode([fate.group for fate in item[1] if isinstance(fate, _Waiting)])

        settled = lambda: self.encoder.engine.is_settled  # noqa: E731
        # What is looked at ahead of a stream that is about to stop would count as seen.
        stops_early = source.section.streaming and source.section.max_rows is not None
        num_threads = 1 if stops_early else self.data.num_proc
        for (chunk, fates), encoded in engines.in_order(encode, looked_at, num_threads, settled):
            num_rows = sum(len(unit.rows) for unit in chunk)
            account.rows_in += num_rows
            self._add(chunk, fates, iter(encoded), source, account)
            accounting.check_rejects(self.accounts, self.data.max_rejects, is_finished=False)
            progress.advance(num_rows)
            if source.section.streaming and _is_full(account, source.section):
                account.is_read_to_end = False
                return

    def _own(self, units: Iterator[_Unit]) -> Iterator[_Unit]:
        """The units of this shard. Row numbers go on over the others, so that shards never share one."""
        for unit in units:
            self.rows_read = unit.row_id + len(unit.rows)
            self.units_read += 1
            if (self.units_read - 1) % self.data.num_shards == self.data.shard_number - 1:
                yield unit

    def _look_at_all(
        self, chunk: list[_Unit], source: MappedSource, account: accounting.Account
    ) -> list[_Waiting | _LeftOut]:
        if _is_full(account, source.section):
            return [_LeftOut(NOT_TAKEN)] * len(chunk)
        return [self._look_at(unit, source) for unit in chunk]

    def _add(
        self,
        chunk: list[_Unit],
        fates: list[_Waiting | _LeftOut],
        encoded: Iterator[TokenGroup | str],
        source: MappedSource,
        account: accounting.Account,
    ) -> None:
        """Give every unit of a chunk its fate, in order: the cap counts the rows that are kept."""
        for unit, fate in zip(chunk, fates, strict=True):
            tokens = next(encoded) if isinstance(fate, _Waiting) else None
            if _is_full(account, source.section):
                account.not_taken += len(unit.rows)
                if isinstance(fate, _Waiting):
                    self.seen.discard(fate.key)  # a later source may bring the same group
            elif isinstance(fate, _LeftOut):
                self._leave_out(unit, fate, account)
            elif isinstance(tokens, TokenGroup) and tokens.num_tokens <= self.data.max_packed_length:
                self._keep(unit, fate, tokens, account, source.section.system)
            else:
                why = _LeftOut(tokens) if isinstance(tokens, str) else _LeftOut("longer_than_pack")
                self._leave_out(unit, why, account)

    def _look_at(self, unit: _Unit, source: MappedSource) -> _Waiting | _LeftOut:
        """Map a unit; find out whether it is a duplicate and how often its source's weight takes it."""
        problem = next((row.problem for row in unit.rows if row.value is None), None)
        if problem is not None:
            return _LeftOut(problem)
        values = [row.value for row in unit.rows if row.value is not None]
        takes_several = source.map_function.rows_key is not None
        try:
            group = apply(source.map_function, values if takes_several else values[0], unit.place)
        except Skip as skip:
            return _LeftOut(skip.reason, _what_was_raised(skip))
        if source.section.system is not None:
            group = replace(group, conversations=_with_system(group.conversations, source.section.system))
        if self.held_out.texts and self.held_out.overlap(prompt_of(group)):
            return _LeftOut("in_evaluation_file")
        key = group_key(group)
        repeats = None if self.data.keep_duplicates else self.seen.find(key)
        if repeats is not None:
            return _LeftOut(DUPLICATE, repeats=repeats)
        copies = num_copies(key, source.section.weight, self.data.seed)
        if not copies:
            return _LeftOut(NOT_TAKEN)
        if not self.data.keep_duplicates:
            self.seen.add(key, unit.rows[0].file, unit.rows[0].line)
        return _Waiting(group, key, copies)

    def _leave_out(self, unit: _Unit, fate: _LeftOut, account: accounting.Account) -> None:
        if fate.reason == NOT_TAKEN:
            account.not_taken += len(unit.rows)
            return
        for row in unit.rows:
            if fate.reason == DUPLICATE:
                account.duplicates += 1
            else:
                account.reject(fate.reason, f"{row.file}:{row.line}")
            self.writer.add_reject(Reject(fate.reason, row.file, row.line, row.text, fate.detail, fate.repeats))

    def _keep(
        self, unit: _Unit, fate: _Waiting, tokens: TokenGroup, account: accounting.Account, system: str | None
    ) -> None:
        group = fate.group
        split = "eval" if is_held_out(prompt_of(group), self.data.eval_fraction, self.data.eval_seed) else "train"
        copies = 1 if split == "eval" else fate.copies
        tokens = replace(tokens, row_id=unit.row_id, source_id=unit.rows[0].source_id)
        account.kept += len(unit.rows)
        account.groups += copies
        if system is not None:
            added = any(conversation[0] == _system_message(system) for conversation in group.conversations)
            account.system_added += added
            account.system_kept += not added
        if self.data.pairs != "all" and not tokens.ordered:
            self.without_order += 1
        if len(self.first) < FIRST_KEPT:
            self.first.append(tokens)
        if split == "eval":
            self.writer.add_eval_text(_as_canonical(group))
        for _ in range(copies):
            self._held_back[split].append(tokens)
            if len(self._held_back[split]) == WINDOW:
                self._pack_window(split)

    def _pack_window(self, split: str) -> None:
        groups, self._held_back[split] = self._held_back[split], []
        seed = self.data.seed + self._windows[split]
        packed = pack(groups, self.data.max_packed_length, self.data.shuffle_before_pack, seed)
        self.writer.add_rows(split, packed)
        self._windows[split] += 1


def _is_full(account: accounting.Account, source: SourceSection) -> bool:
    return source.max_rows is not None and account.kept >= source.max_rows


def num_copies(key: bytes, weight: float, seed: int) -> int:
    """How often a source of this weight takes the group: the whole part, and once more for the share that is left.

    The group's own text decides, so the choice depends neither on the order of rows nor on other sources, and what
    weight 0.2 takes is among what 0.5 takes.
    """
    draw = int.from_bytes(hashlib.sha256(b"%d\n" % seed + key).digest()[:8], "big") / 2**64
    return int(weight) + (draw < weight - int(weight))


def _with_system(conversations: tuple[Conversation, ...], system: str) -> tuple[Conversation, ...]:
    """The conversations with a system message in front, where they have none."""
    message = _system_message(system)
    return tuple(
        conversation if any(m["role"] == "system" for m in conversation) else (message, *conversation)
        for conversation in conversations
    )


def _system_message(system: str) -> Message:
    return Message(role="system", content=system)


def _what_was_raised(skip: Skip) -> str | None:
    """The text of the exception that a map function ran into; None where it said Skip itself."""
    cause = skip.__cause__
    return None if cause is None else f"{type(cause).__name__}: {cause}"


def _units(rows: Iterator[RawRow], map_function: MapFunction, row_id: int) -> Iterator[_Unit]:
    """Rows one by one, or consecutive rows of one key together where the map function takes them so.

    A row that cannot be read, or has no key, is a unit of its own. Raises RmcliError for too many rows of one key.
    """
    together: list[RawRow] = []
    last_key: object = None

    def finished() -> Iterator[_Unit]:
        nonlocal together, row_id
        if together:
            yield _Unit(row_id, tuple(together))
            row_id += len(together)
            together = []

    for row in rows:
        row, key = _with_key(row, map_function)
        if key is None or key != last_key or (together and row.file != together[-1].file):
            yield from finished()
        together.append(row)
        last_key = key
        if key is None:
            yield from finished()
        elif len(together) > MOST_ROWS_OF_A_GROUP:
            raise RmcliError(
                f"{row.file}:{row.line}: more than {MOST_ROWS_OF_A_GROUP:,} rows in a row belong to one group",
                "does the map function fit the data? It tells groups apart by its rows_key",
            )
    yield from finished()


def _with_key(row: RawRow, map_function: MapFunction) -> tuple[RawRow, object]:
    """The row and what it shares with the others of its group; None when it stands alone."""
    if map_function.rows_key is None or row.value is None:
        return row, None
    try:
        return row, map_function.rows_key(row.value)
    except KeyError as error:
        return replace(row, value=None, problem=f"missing_column {error.args[0]}"), None
    except (TypeError, AttributeError, ValueError, IndexError):
        return replace(row, value=None, problem="wrong_type"), None


def _chunks(units: Iterator[_Unit]) -> Iterator[list[_Unit]]:
    while chunk := list(islice(units, CHUNK)):
        yield chunk


def _as_canonical(group: PreferenceGroup) -> dict[str, Any]:
    """The group as `rmcli score` reads it: the messages all begin with, then what each says."""
    prompt = prompt_of(group)
    shared = len(prompt) if all(talk[: len(prompt)] == prompt for talk in group.conversations) else 0
    responses = [talk[shared:] for talk in group.conversations]
    if group.comparisons == PAIR:
        return {"prompt": prompt[:shared], "chosen": responses[0], "rejected": responses[1]}
    return {"prompt": prompt[:shared], "responses": responses, "comparisons": group.comparisons}


def _manifest(plan: Plan, encoder: Encoder, accounts: list[accounting.Account]) -> dict[str, Any]:
    config = plan.resolved.config
    reward = encoder.reward
    return {
        "preset": plan.resolved.name,
        "sources": [source.section.model_dump() for source in plan.sources],
        "dataset_map_fn": config.data.dataset_map_fn or (plan.map_fns[0] if len(plan.map_fns) == 1 else None),
        "map_fn_sha256": {source.map_fn: _source_sha256(source.map_function) for source in plan.sources},
        "reward_token": reward.reward_token,
        "reward_token_id": reward.reward_token_id,
        "reward_mode": reward.mode,
        **reward.fingerprint(),
        "tokenizer_engine": f"{encoder.engine.name} {encoder.engine.version}",
        "shard": config.data.shard,
        "rows": accounting.total(accounts).as_dict(),
        "rows_by_source": [account.as_source_dict() for account in accounts],
        # num_proc changes nothing in the data, and the shard is no part of what all shards share.
        "config": config.model_dump(
            include={"model": True, "data": set(DataSection.model_fields) - {"num_proc", "shard"}}
        ),
    }


def _source_sha256(map_function: MapFunction) -> str:
    return hashlib.sha256(source_code(map_function).encode("utf-8")).hexdigest()


def _nothing_kept(whole: accounting.Account) -> RmcliError:
    if not whole.rows_in:
        return RmcliError("no rows in the sources", "check the files")
    reason, count = whole.reasons.most_common(1)[0]
    return RmcliError(
        f"not one of {whole.rows_in} rows was kept; {count} were rejected as {reason}, first {whole.first[reason]}",
        "does --map-fn fit the data? --map-fn auto recognises it, rmcli map-fns lists what each one reads",
    )


def _report_splits(manifest: dict[str, Any]) -> None:
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
