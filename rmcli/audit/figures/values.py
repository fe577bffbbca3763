"""The figures, from a prepared folder alone: one pass over each split, pack by pack.

What grows with the data is a few numbers per group and per comparison (hashes of token ids); token ids are kept of a
bounded number of rows only.
"""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmcli import output, threads
from rmcli.audit.figures import near_duplicates
from rmcli.audit.figures.flat_packs import Packs
from rmcli.audit.findings import findings
from rmcli.config.layers import ModelSection, SourceSection
from rmcli.errors import RmcliError
from rmcli.packs import writer as store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rmcli.tokens.tokenizer import RewardTokenizer

NUM_EXTREMES = 10  # rows listed per kind of extreme
MAX_LISTED = 100  # contradictions, duplicates and near-duplicates listed; all are counted
EXCERPT_TOKENS = 40  # of the prompt's end and of the reply's beginning
MAX_EVAL_PROMPTS = 50_000  # eval prompts that are compared with the training prompts
MAX_COMPARISONS = 20_000_000  # of two prompts: where thousands differ in a word or two, not all are looked at
TEMPLATE_SAMPLE = 2_000  # prompts from which the template's own shingles are learned
BLOCK = 2**16  # numbers held in one piece
TOKENS_AT_ONCE = 2**15  # of the packs that are read and looked at together
ENDING_SAMPLE = 100_000  # conversations per split whose endings are compared
ENDING_LENGTHS = (1, 4, 8, 16)  # tokens, the reward token included
HISTOGRAM_BINS = 30
FILL_BINS = 20

Figures = dict[str, Any]  # plain values: what --json prints


def run(
    folder: Path, model: ModelSection, prepared_with: "RewardTokenizer | None" = None, num_threads: int = 1
) -> Figures:
    """All figures of a prepared folder.

    `model`: whose tokenizer turns ids into text; when it cannot be had, or is not the one that prepared the folder,
    that is said and excerpts are ids. `prepared_with` is that tokenizer where it is at hand. Raises RmcliError when
    the folder is no prepared data or is damaged.
    """
    manifest = store.read_manifest(folder)
    text = _Text.of(model, manifest) if prepared_with is None else _Text.by(prepared_with.tokenizer)
    splits = {split: _Split(store.PackedSplit(folder, split), split, text) for split in store.SPLITS}
    gathered = [_gather(split) for split in splits.values()]
    capacity = manifest["config"]["data"]["max_packed_length"]
    figures: Figures = {
        "folder": str(folder),
        "preset": manifest["preset"],
        "rows_left_out": dict(sorted(_reject_reasons(folder).items())),
        "excerpts": text.note,
        "reply": text.reply_note,
        "splits": {
            split.name: one.figures(capacity, manifest["splits"][split.name]["num_truncated"], text)
            for split, one in zip(splits.values(), gathered, strict=True)
        },
        "sources": _source_figures(gathered, manifest["sources"]),
        "duplicates": _duplicates(gathered),
        "contradictions": _Comparisons.contradictions([one.comparisons for one in gathered]),
        "near_duplicate_prompts": _near_duplicates(splits["train"], splits["eval"], text, num_threads),
        "extremes": _extremes(gathered, text),
    }
    figures["findings"] = findings(figures)
    return figures


@dataclass
class _Text:
    """Ids to text. `header`: ids that the template writes before a reply; empty when it is not known."""

    tokenizer: "PreTrainedTokenizerBase | None"
    note: str
    header: np.ndarray

    @staticmethod
    def of(model: ModelSection, manifest: Mapping[str, Any]) -> "_Text":
        from rmcli.tokens.tokenizer import load_tokenizer

        no_header = np.empty(0, dtype=np.int64)
        try:
            reward = load_tokenizer(model)
        except RmcliError as error:
            output.warn(f"excerpts are token ids: {error.message}")
            return _Text(None, f"token ids: {error.message}", no_header)
        if reward.fingerprint()["tokenizer_sha256"] != manifest["tokenizer_sha256"]:
            note = "the tokenizer is not the one that prepared this folder"
            output.warn(f"excerpts are token ids: {note}")
            return _Text(None, f"token ids: {note}", no_header)
        return _Text.by(reward.tokenizer)

    @staticmethod
    def by(tokenizer: "PreTrainedTokenizerBase") -> "_Text":
        return _Text(tokenizer, "text", _reply_header(tokenizer))

    @property
    def reply_note(self) -> str:
        if len(self.header):
            return "from the last assistant header to the reward token"
        return "from the end of the shared prompt to the reward token"

    def ending(self, ids: np.ndarray) -> str:
        """A conversation's last tokens as they are, special ones and white space included."""
        return repr(self.tokenizer.decode(ids.tolist())) if self.tokenizer is not None else self.excerpt(ids)

    def excerpt(self, ids: np.ndarray) -> str:
        if self.tokenizer is None:
            return " ".join(map(str, ids.tolist()))
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        return " ".join(text.split())


def _reply_header(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """Ids of the generation prompt, but for the white space at its end: that may merge with the reply's first word.

    Empty when the template writes nothing there, or refuses to.
    """
    from jinja2.exceptions import TemplateError

    messages = [{"role": "user", "content": "Hello"}]
    try:
        texts = [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=wanted)
            for wanted in (False, True)
        ]
    except TemplateError:
        return np.empty(0, dtype=np.int64)
    # Cut from the whole rendered text: some tokenizers write the first word of a text in another way.
    without, whole = (tokenizer(str(text).rstrip(), add_special_tokens=False)["input_ids"] for text in texts)
    header = whole[len(without) :] if whole[: len(without)] == without else []
    return np.asarray(_printed(tokenizer, header), dtype=np.int64)


def _printed(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Without white space at the beginning, which the message before the header may end in."""
    while ids and not str(tokenizer.decode(ids[:1])).strip():
        ids = ids[1:]
    return ids


@dataclass(frozen=True)
class _Split:
    packed: store.PackedSplit
    name: str
    text: _Text

    def packs(self) -> Iterator[Packs]:
        """So many at once that numpy's work outweighs the calls, and no more."""
        longest = max(self.packed.tokens_per_row, default=1)
        step = max(TOKENS_AT_ONCE // int(longest), 1)
        for start in range(0, len(self.packed), step):
            yield Packs.from_columns(self.packed.columns(start, min(start + step, len(self.packed))))


@dataclass
class _Lengths:
    """How many values there are of each length: exact, and no larger than the longest."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def add(self, values: np.ndarray) -> None:
        more = np.bincount(values, minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        self.counts = more

    def figures(self) -> Figures:
        """Percentiles are lengths that occur: the shortest that so many per cent do not exceed."""
        number = int(self.counts.sum())
        if not number:
            return {"number": 0}
        total = np.cumsum(self.counts)
        lengths = np.arange(len(self.counts))
        longest = int(lengths[self.counts > 0].max())
        width = max(-(-(longest + 1) // HISTOGRAM_BINS), 1)
        bins = -(-(longest + 1) // width)
        padded = np.zeros(bins * width, dtype=np.int64)
        padded[: longest + 1] = self.counts[: longest + 1]
        percentiles = {
            f"p{share}": int(np.searchsorted(total, np.ceil(share / 100 * number))) for share in (10, 50, 90, 99)
        }
        return {
            "number": number,
            "mean": float((lengths * self.counts).sum() / number),
            "min": int(lengths[self.counts > 0].min()),
            **percentiles,
            "max": longest,
            "histogram": {"bin_tokens": width, "counts": padded.reshape(bins, width).sum(axis=1).tolist()},
        }


class _Growing:
    """Numbers of one kind, appended again and again. In blocks: what grows in one piece leaves holes in the heap."""

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind, self._blocks, self._length = kind, list[np.ndarray](), 0

    def __len__(self) -> int:
        return self._length

    def add(self, values: np.ndarray) -> None:
        while len(values):
            at = self._length % BLOCK
            if at == 0:
                self._blocks.append(np.empty(BLOCK, dtype=self._kind))
            some = values[: BLOCK - at]
            self._blocks[-1][at : at + len(some)] = some
            self._length += len(some)
            values = values[len(some) :]

    @staticmethod
    def joined(parts: "Sequence[_Growing]") -> np.ndarray:
        """All numbers of all parts; a copy."""
        filled = [b[: part._length - n * BLOCK] for part in parts for n, b in enumerate(part._blocks)]
        return np.concatenate([np.empty(0, dtype=parts[0]._kind), *filled])


def _repeated(values: np.ndarray) -> np.ndarray:
    """Sorted: each value that occurs more than once."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


class _Comparisons:
    """Per comparison that is no tie a hash of its two conversations, which of them is better, and its row."""

    def __init__(self) -> None:
        self.keys, self.lower_is_better, self.row_ids = (_Growing(kind) for kind in (np.uint64, np.bool_, np.int64))

    def add(self, packs: Packs, hashes: np.ndarray) -> None:
        decided = ~packs.tied
        better, worse = hashes[packs.better[decided]], hashes[packs.worse[decided]]
        low, high = np.minimum(better, worse), np.maximum(better, worse)
        self.keys.add(near_duplicates.scramble(low ^ near_duplicates.scramble(high)))
        self.lower_is_better.add(better < worse)
        self.row_ids.add(packs.row_ids[packs.compared_group[decided]])

    @staticmethod
    def contradictions(parts: Sequence["_Comparisons"]) -> Figures:
        """Two conversations that are compared in both orders. `rows` lists the rows of each such two."""
        keys = _Growing.joined([part.keys for part in parts])
        compared_twice = near_duplicates.is_in(
            keys, _repeated(keys)
        )  # few are; the others cannot contradict each other
        keys = keys[compared_twice]
        lower = _Growing.joined([part.lower_is_better for part in parts])[compared_twice]
        row_ids = _Growing.joined([part.row_ids for part in parts])[compared_twice]
        unique, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        one_way = np.bincount(inverse, weights=lower, minlength=len(unique)).astype(np.int64)
        both = (one_way > 0) & (one_way < counts)
        members = np.flatnonzero(both[inverse])
        rows: dict[int, set[int]] = {}
        for member in members.tolist():
            rows.setdefault(int(inverse[member]), set()).add(int(row_ids[member]))
        return {
            "pairs_of_conversations": int(both.sum()),
            "comparisons": len(members),
            "rows": sorted(sorted(group) for group in rows.values())[:MAX_LISTED],
        }


class _Extreme:
    """The few conversations with the largest value; of equal ones the earliest rows. Copies of a row count once."""

    def __init__(self) -> None:
        self._offered = 0
        self._kept: list[tuple[float, int, int, Figures]] = []  # a heap: value, -row, -place, description

    def offer(self, values: np.ndarray, row_ids: np.ndarray, describe: Callable[[int], Figures]) -> None:
        """`values` and `row_ids` (N,) of some packs; `describe(n)` is called for those that are kept."""
        worst = self._kept[0][0] if len(self._kept) == NUM_EXTREMES else -np.inf
        for index in np.flatnonzero(values >= worst).tolist():
            key = (float(values[index]), -int(row_ids[index]), -(self._offered + index))
            if len(self._kept) < NUM_EXTREMES or key > self._kept[0][:3]:
                self._keep((*key, describe(index)))
        self._offered += len(values)

    def _keep(self, entry: tuple[float, int, int, Figures]) -> None:
        value, row, _, described = entry
        if any((value, row, described["conversation"]) == (k[0], k[1], k[3]["conversation"]) for k in self._kept):
            return  # another copy of a row that its source's weight repeats
        push = heapq.heappush if len(self._kept) < NUM_EXTREMES else heapq.heapreplace
        push(self._kept, entry)

    @staticmethod
    def best(parts: Sequence["_Extreme"]) -> list[Figures]:
        """Of several splits together, the most extreme first."""
        everything = [entry for part in parts for entry in part._kept]
        return [entry[3] for entry in sorted(everything, key=lambda entry: entry[:3], reverse=True)[:NUM_EXTREMES]]


class _Gathered:
    """What one pass over a split adds up."""

    def __init__(self, split: _Split) -> None:
        self.split = split
        self.lengths = {name: _Lengths() for name in ("conversation", "prompt", "response")}
        self.shared_tokens = self.conversation_tokens = 0
        self.num_groups = self.num_without_prompt = 0
        self.group_hashes, self.group_rows = _Growing(np.uint64), _Growing(np.int64)
        self.comparisons = _Comparisons()
        self.by_source: dict[str, np.ndarray] = {}  # (sources,) each
        self.endings: list[np.ndarray] = []
        self.standing: list[np.ndarray] = []
        self.num_endings = self.num_without_header = 0
        self.extremes = {name: _Extreme() for name in ("longest", "longest_ratio", "shortest_reply")}

    def add(self, packs: Packs) -> None:
        conversations = packs.conversation_lengths
        self.lengths["conversation"].add(conversations)
        self.lengths["prompt"].add(packs.prompt_lengths)
        self.lengths["response"].add(packs.response_lengths)
        self.conversation_tokens += int(conversations.sum())
        self.shared_tokens += int((packs.prompt_lengths * packs.num_responses).sum())
        self.num_groups += len(packs.starts)
        self.num_without_prompt += int((packs.prompt_lengths == 0).sum())
        hashes = packs.conversation_hashes()
        self.group_hashes.add(packs.group_hashes(hashes))
        self.group_rows.add(packs.row_ids)
        self.comparisons.add(packs, hashes)
        self._add_sources(packs)
        self._add_endings(packs)
        self._add_extremes(packs)

    def _add_sources(self, packs: Packs) -> None:
        """Whether the longer answer wins: both have one prompt, so responses differ as conversations do."""
        longer_by = packs.response_lengths[packs.better] - packs.response_lengths[packs.worse]
        source_of = packs.source_ids[packs.compared_group]
        counted = {
            "groups": packs.source_ids,
            "ties": source_of[packs.tied],
            "longer_wins": source_of[~packs.tied & (longer_by > 0)],
            "shorter_wins": source_of[~packs.tied & (longer_by < 0)],
            "same_length": source_of[~packs.tied & (longer_by == 0)],
        }
        for name, sources in counted.items():
            before = self.by_source.get(name, np.zeros(0, dtype=np.int64))
            more = np.bincount(sources, minlength=len(before))
            more[: len(before)] += before
            self.by_source[name] = more

    def _add_endings(self, packs: Packs) -> None:
        if self.num_endings < ENDING_SAMPLE:
            self.endings.append(packs.endings(max(ENDING_LENGTHS)).astype(np.int32))
            self.standing.append(np.sign(packs.standing()).astype(np.int8))
            self.num_endings += len(packs.group_of)

    def _add_extremes(self, packs: Packs) -> None:
        replies, has_header = packs.reply_lengths(self.split.text.header)
        self.num_without_header += int((~has_header).sum())
        first = np.cumsum(packs.num_responses) - packs.num_responses
        longest, shortest = np.maximum.reduceat(replies, first), np.minimum.reduceat(replies, first)
        conversations = packs.conversation_lengths

        def describe(conversation: int) -> Figures:
            group = int(packs.group_of[conversation])
            whole = np.concatenate([packs.prompt(group), packs.response(conversation)])
            start = len(whole) - replies[conversation]
            header = self.split.text.header
            end = start - len(header)  # where the header begins, if one stands before the reply
            before = whole[:end] if end >= 0 and np.array_equal(whole[end:start], header) else whole[:start]
            return {
                "row_id": int(packs.row_ids[group]),
                "source_id": int(packs.source_ids[group]),
                "split": self.split.name,
                "conversation": int(conversation - first[group]),
                "tokens": int(conversations[conversation]),
                "reply_tokens": int(replies[conversation]),
                "longest_reply": int(longest[group]),
                "shortest_reply": int(shortest[group]),
                "prompt_ids": before[-EXCERPT_TOKENS:].copy(),
                "reply_ids": whole[start : start + EXCERPT_TOKENS].copy(),
            }

        def describe_shortest_of(group: int) -> Figures:
            members = replies[first[group] : first[group] + packs.num_responses[group]]
            return describe(int(first[group] + members.argmin()))

        rows = packs.row_ids[packs.group_of]
        self.extremes["longest"].offer(conversations, rows, describe)
        self.extremes["shortest_reply"].offer(-replies, rows, describe)
        self.extremes["longest_ratio"].offer(longest / shortest, packs.row_ids, describe_shortest_of)

    def figures(self, capacity: int, num_truncated: int, text: _Text) -> Figures:
        """What is said of this split alone."""
        tokens = self.split.packed.tokens_per_row
        fill = np.bincount(np.minimum(tokens * FILL_BINS // capacity, FILL_BINS - 1), minlength=FILL_BINS)
        return {
            "groups": self.num_groups,
            "groups_without_prompt": self.num_without_prompt,
            "truncated": num_truncated,
            "replies_without_header": self.num_without_header,
            "lengths": {name: lengths.figures() for name, lengths in self.lengths.items()},
            "prompt_share": self.shared_tokens / max(self.conversation_tokens, 1),
            "sharing_ratio": self.conversation_tokens / max(int(tokens.sum()), 1),
            "packs": len(tokens),
            "tokens": int(tokens.sum()),
            "pack_fill": int(tokens.sum()) / max(len(tokens) * capacity, 1),
            "pack_fill_histogram": fill.tolist(),
            "endings": self._ending_figures(text),
        }

    def _ending_figures(self, text: _Text) -> list[Figures]:
        """The most common last tokens, and whose they are: better answers, worse ones."""
        if not self.endings:
            return []
        endings, standing = np.concatenate(self.endings), np.concatenate(self.standing)
        found = []
        for length in ENDING_LENGTHS:
            ends = endings[:, -length:]
            hashes = near_duplicates.hashes_of(ends.T)
            _, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
            first = firsts[counts == counts.max()].min()  # of several as common ones that which comes first
            commonest, ids = hashes == hashes[first], ends[first]
            found.append(
                {
                    "tokens": length,
                    "share": float(commonest.mean()),
                    "share_of_better": _share(commonest[standing > 0]),
                    "share_of_worse": _share(commonest[standing < 0]),
                    "text": text.ending(ids[ids >= 0]),
                }
            )
        return found


def _gather(split: _Split) -> _Gathered:
    gathered = _Gathered(split)
    for packs in split.packs():
        gathered.add(packs)
    return gathered


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _reject_reasons(folder: Path) -> Counter[str]:
    """Rows left out, by reason, counted in rejects.jsonl."""
    path = folder / "rejects.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            return Counter(json.loads(line)["reason"] for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RmcliError(f"{path} cannot be read: {error}", "prepare it again with --overwrite") from error


def _source_figures(gathered: Sequence[_Gathered], sources: Sequence[Any]) -> list[Figures]:
    """Per source of the manifest. Of the comparisons with a winner, the share that the longer answer wins."""
    found = []
    for source_id, source in enumerate(sources):
        counts = {
            name: sum(
                int(one.by_source[name][source_id])
                for one in gathered
                if name in one.by_source and source_id < len(one.by_source[name])
            )
            for name in ("groups", "ties", "longer_wins", "shorter_wins", "same_length")
        }
        decided = counts["longer_wins"] + counts["shorter_wins"]
        share = counts["longer_wins"] / decided if decided else None
        found.append({"source": SourceSection.model_validate(source).label, **counts, "longer_wins_share": share})
    return found


def _duplicates(gathered: Sequence[_Gathered]) -> Figures:
    """Groups whose token ids are those of an earlier group. `rows` lists the rows of each such set."""
    hashes = _Growing.joined([one.group_hashes for one in gathered])
    parts = np.split(hashes, np.cumsum([len(one.group_hashes) for one in gathered])[:-1])
    repeated = _repeated(hashes)
    members = near_duplicates.is_in(hashes, repeated)
    keys, rows = hashes[members], _Growing.joined([one.group_rows for one in gathered])[members]
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    # A row that its source's weight takes several times is no duplicate of itself.
    other = np.ones(len(keys), dtype=bool)
    other[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
    keys, rows = keys[other], rows[other]
    repeated = _repeated(keys)
    several = near_duplicates.is_in(keys, repeated)
    sets: dict[int, list[int]] = {}
    for key, row in zip(keys[several].tolist(), rows[several].tolist(), strict=True):
        sets.setdefault(key, []).append(row)
    train, held_out = (np.unique(part[near_duplicates.is_in(part, repeated)]) for part in parts)
    return {
        "groups": int(several.sum()) - len(repeated),
        "in_both_splits": len(np.intersect1d(train, held_out, assume_unique=True)),
        "rows": sorted(sets.values())[:MAX_LISTED],
    }


def _near_duplicates(train: _Split, held_out: _Split, text: _Text, num_threads: int) -> Figures:
    """Eval prompts that a training prompt nearly repeats. Each is listed with its most similar training row."""
    rows: list[int] = []
    ends: list[np.ndarray] = []
    parts: list[near_duplicates.Shingles] = []
    for packs in held_out.packs():
        parts.append(_shingles(packs))
        rows += packs.row_ids.tolist()
        ends += [packs.prompt(group)[-EXCERPT_TOKENS:].copy() for group in range(len(packs.starts))]
        if len(rows) >= MAX_EVAL_PROMPTS:
            break
    best: dict[int, tuple[float, int, np.ndarray]] = {}
    num_found = 0
    compared = train_compared = 0
    if parts:
        eval_prompts = near_duplicates.concatenate(parts)
        sample = near_duplicates.concatenate([eval_prompts, *_some_shingles(train)])
        index = near_duplicates.PromptIndex(eval_prompts, near_duplicates.template_shingles(sample))
        compared = int((index.sizes >= near_duplicates.MIN_SHINGLES).sum())
        comparisons = 0

        find = lambda packs: index.find(_shingles(packs))  # noqa: E731
        with closing(threads.in_order(find, train.packs(), num_threads)) as looked_at:
            for packs, alike in looked_at:
                comparisons += alike.comparisons
                train_compared += len(packs.starts)
                num_found += len(alike.mine)
                for mine, theirs, similarity in alike.best(packs.row_ids):
                    row_id = int(packs.row_ids[mine])
                    if theirs not in best or (similarity, -row_id) > (best[theirs][0], -best[theirs][1]):
                        best[theirs] = (similarity, row_id, packs.prompt(mine)[-EXCERPT_TOKENS:].copy())
                if comparisons >= MAX_COMPARISONS:
                    break
    listed = sorted(best.items(), key=lambda item: (-item[1][0], rows[item[0]]))
    return {
        "threshold": near_duplicates.THRESHOLD,
        "eval_prompts": sum(held_out.packed.groups_per_row),
        "eval_prompts_compared": compared,
        "eval_prompts_found": len(best),
        "train_prompts": sum(train.packed.groups_per_row),
        "train_prompts_compared": train_compared,
        "pairs": num_found,
        "listed": [
            {
                "similarity": similarity,
                "eval_row_id": rows[theirs],
                "train_row_id": row_id,
                "eval_prompt_end": text.excerpt(ends[theirs]),
                "train_prompt_end": text.excerpt(prompt),
            }
            for theirs, (similarity, row_id, prompt) in listed[:MAX_LISTED]
        ],
    }


def _shingles(packs: Packs) -> near_duplicates.Shingles:
    return near_duplicates.shingles_of(packs.ids, packs.starts, packs.prompt_lengths)


def _some_shingles(train: _Split) -> Iterator[near_duplicates.Shingles]:
    """Of the first training packs: their groups are shuffled, so these are as good as any."""
    taken = 0
    for packs in train.packs():
        yield _shingles(packs)
        taken += len(packs.starts)
        if taken >= TEMPLATE_SAMPLE:
            return


def _extremes(gathered: Sequence[_Gathered], text: _Text) -> dict[str, list[Figures]]:
    """Ten of each kind over both splits, with the end of what came before the reply and how the reply begins."""
    found = {}
    for name in ("longest", "longest_ratio", "shortest_reply"):
        found[name] = [
            {
                **{key: value for key, value in entry.items() if not key.endswith("_ids")},
                "before_reply": text.excerpt(entry["prompt_ids"]),
                "reply": text.excerpt(entry["reply_ids"]),
            }
            for entry in _Extreme.best([one.extremes[name] for one in gathered])
        ]
    return found
