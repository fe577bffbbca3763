"""One run under way: reads, maps, encodes and packs into the writer, and accounts for every row."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rmcli import output
from rmcli.config.sections import DataSection, SourceSection
from rmcli.packs.pack import WINDOW, pack
from rmcli.packs.schema import SPLITS
from rmcli.packs.writer import PackWriter
from rmcli.prepare.fate import DUPLICATE, NOT_TAKEN, Fates, LeftOut, Waiting, of_tokens, system_message
from rmcli.prepare.job import Job, MappedSource
from rmcli.prepare.units import Unit, in_chunks, units
from rmcli.records import PAIR, PreferenceGroup, Reject, TokenGroup
from rmcli.rows import accounting, decontaminate, sources
from rmcli.rows.map_fns.beside import TOOLS
from rmcli.rows.map_fns.contract import Contract
from rmcli.tokens import engines
from rmcli.tokens.encode import Encoder, is_held_out, prompt_of

FIRST_KEPT = 20  # pairs that --show can print


class Filling:
    """One run under way: reads, maps, encodes and packs into the writer, and accounts for every row."""

    def __init__(
        self, writer: PackWriter, job: Job, encoder: Encoder, evaluation_prompts: decontaminate.EvaluationPrompts
    ) -> None:
        self.writer, self.job, self.encoder = writer, job, encoder
        self.data = job.resolved.config.data
        self.accounts = [accounting.Account(source.section.label) for source in job.sources]
        keys = encoder.template_reads.message_keys
        self.contracts = [Contract(keys, self.data.allow_no_prompt) for _ in job.sources]
        self.fates = Fates(self.data, evaluation_prompts, self.contracts)
        self.rows_read = self.units_read = 0  # of all shards
        self.first: list[TokenGroup] = []  # the first few kept, to be shown
        self.read_back = 0  # rows with texts that were read as messages
        self.without_order = 0  # groups that data.pairs cannot choose from
        self.lists = 0  # groups of more than two answers
        self.windows = _Windows(writer, self.data)

    def run(self) -> None:
        sections = [source.section for source in self.job.sources]
        total = sources.count_rows(sections, self.data.split) if output.draws_bar() else None
        total = None if total is None else total // self.data.num_shards
        with output.progress("prepare", total, unit="rows") as progress:
            try:
                for source_id, source in enumerate(self.job.sources):
                    self._fill_from(source_id, source, progress)
            finally:
                for source, contract in zip(self.job.sources, self.contracts, strict=True):
                    contract.report(source.section.label)
        accounting.check_rejects(self.accounts, self.data.max_rejects, is_finished=True)
        self.windows.pack_what_is_left()

    def _fill_from(self, source_id: int, source: MappedSource, progress: output.Progress) -> None:
        """One source, chunk by chunk: looked at in order, encoded in threads, given their fates in order again."""
        account = self.accounts[source_id]
        rows = sources.read_source(source_id, source.section, self.data.split, self.data.max_row_bytes)
        looked_at = self._looked_at(units(rows, source.map_function, self.rows_read), source, account)

        def encode(item: tuple[list[Unit], list[Waiting | LeftOut]]) -> list[TokenGroup | str]:
            return self.encoder.encode([fate.group for fate in item[1] if isinstance(fate, Waiting)])

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

    def _looked_at(
        self, units: Iterator[Unit], source: MappedSource, account: accounting.Account
    ) -> Iterator[tuple[list[Unit], list[Waiting | LeftOut]]]:
        """The units of this shard in chunks, and what becomes of each.

        The other shards' are looked at in their turn and forgotten: what they say first, a later row repeats, in any
        shard. So shards find the duplicates that one run finds. Row numbers go on over all of them.
        """
        for chunk in in_chunks(units, self.data.num_shards):
            is_full = _is_full(account, source.section)
            own: list[Unit] = []
            fates: list[Waiting | LeftOut] = []
            for unit in chunk:
                self.rows_read = unit.row_id + len(unit.rows)
                self.units_read += 1
                is_own = (self.units_read - 1) % self.data.num_shards == self.data.shard_number - 1
                if is_own:
                    own.append(unit)
                    fates.append(LeftOut(NOT_TAKEN) if is_full else self.fates.of(unit, source))
                elif not self.data.keep_duplicates:
                    self.fates.of(unit, source)
            if own:
                yield own, fates

    def _add(
        self,
        chunk: list[Unit],
        fates: list[Waiting | LeftOut],
        encoded: Iterator[TokenGroup | str],
        source: MappedSource,
        account: accounting.Account,
    ) -> None:
        """Give every unit of a chunk its fate, in order: the cap counts the rows that are kept."""
        for unit, fate in zip(chunk, fates, strict=True):
            tokens = of_tokens(next(encoded), self.data.max_packed_length) if isinstance(fate, Waiting) else fate
            if _is_full(account, source.section):
                account.not_taken += len(unit.rows)
                if isinstance(fate, Waiting):
                    self.fates.seen.discard(fate.key)  # a later source may bring the same group
            elif isinstance(fate, Waiting) and isinstance(tokens, TokenGroup):
                self._keep(unit, fate, tokens, account, source.section.system)
            elif isinstance(tokens, LeftOut):
                self._leave_out(unit, tokens, account)

    def _leave_out(self, unit: Unit, fate: LeftOut, account: accounting.Account) -> None:
        if fate.reason == NOT_TAKEN:
            account.not_taken += len(unit.rows)
            return
        for row in unit.rows:
            if fate.reason == DUPLICATE:
                account.duplicates += 1
            else:
                account.reject(fate.reason, f"{row.file}:{row.line}", fate.about)
            reject = Reject(fate.reason, row.file, row.line, row.text, fate.detail, fate.repeats, fate.raised_at)
            self.writer.add_reject(reject)

    def _keep(
        self, unit: Unit, fate: Waiting, tokens: TokenGroup, account: accounting.Account, system: str | None
    ) -> None:
        group = fate.group
        self.read_back += fate.is_read_back
        split = "eval" if is_held_out(prompt_of(group), self.data.eval_fraction, self.data.eval_seed) else "train"
        copies = 1 if split == "eval" else fate.copies
        tokens = replace(tokens, row_id=unit.row_id, source_id=unit.rows[0].source_id)
        account.kept += len(unit.rows)
        account.groups += copies
        account.note(tokens.noted, f"{unit.rows[0].file}:{unit.rows[0].line}", len(unit.rows))
        if system is not None:
            added = any(conversation[0] == system_message(system) for conversation in group.conversations)
            account.system_added += added
            account.system_kept += not added
        self.lists += len(tokens.responses) > 2
        if self.data.pairs != "all" and not tokens.ordered:
            self.without_order += 1
        if len(self.first) < FIRST_KEPT:
            self.first.append(tokens)
        if split == "eval":
            self.writer.add_eval_text(_as_canonical(group))
        for _ in range(copies):
            self.windows.add(split, tokens)


class _Windows:
    """Groups held back per split until a window of them is packed together."""

    def __init__(self, writer: PackWriter, data: DataSection) -> None:
        self.writer, self.data = writer, data
        self._held_back: dict[str, list[TokenGroup]] = {split: [] for split in SPLITS}
        self._num_packed = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, group: TokenGroup) -> None:
        self._held_back[split].append(group)
        if len(self._held_back[split]) == WINDOW:
            self._pack(split)

    def pack_what_is_left(self) -> None:
        for split in SPLITS:
            self._pack(split)

    def _pack(self, split: str) -> None:
        groups, self._held_back[split] = self._held_back[split], []
        seed = self.data.seed + self._num_packed[split]
        packed = pack(groups, self.data.max_packed_length, self.data.shuffle_before_pack, seed)
        self.writer.add_packs(split, packed)
        self._num_packed[split] += 1


def _is_full(account: accounting.Account, source: SourceSection) -> bool:
    return source.max_rows is not None and account.kept >= source.max_rows


def _as_canonical(group: PreferenceGroup) -> dict[str, Any]:
    """The group as `rmcli score` reads it: the messages all begin with, then what each says."""
    prompt = prompt_of(group)
    shared = len(prompt) if all(talk[: len(prompt)] == prompt for talk in group.conversations) else 0
    responses = [talk[shared:] for talk in group.conversations]
    arguments = {name: value for name, value in group.template_arguments.items() if name != TOOLS}
    more = {TOOLS: group.template_arguments.get(TOOLS), "chat_template_kwargs": arguments}
    more = {name: value for name, value in more.items() if value}
    if group.comparisons == PAIR:
        return {"prompt": prompt[:shared], "chosen": responses[0], "rejected": responses[1], **more}
    return {"prompt": prompt[:shared], "responses": responses, "comparisons": group.comparisons, **more}
