"""One pass over a split: every figure is given each of its packs."""

import numpy as np

from rmcli.audit.figures.contradictions import Contradictions
from rmcli.audit.figures.duplicates import Duplicates
from rmcli.audit.figures.endings import Endings
from rmcli.audit.figures.extremes import Extremes
from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.lengths import Lengths
from rmcli.audit.figures.sources import BySource
from rmcli.audit.figures.split import Split
from rmcli.audit.figures.text import Text
from rmcli.audit.figures.values import Figures
from rmcli.audit.figures.written_out import WrittenOut

FILL_BINS = 20


class Gathered:
    """What one pass over a split adds up."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.lengths = {name: Lengths() for name in ("conversation", "prompt", "response")}
        self.shared_tokens = self.conversation_tokens = 0
        self.num_groups = self.num_without_prompt = 0
        self.duplicates, self.contradictions = Duplicates(), Contradictions()
        self.by_source, self.endings, self.extremes = BySource(), Endings(), Extremes(split)
        self.written_out = WrittenOut(split.text)

    def add(self, packs: FlatPacks) -> None:
        conversations = packs.conversation_lengths
        self.lengths["conversation"].add(conversations)
        self.lengths["prompt"].add(packs.prompt_lengths)
        self.lengths["response"].add(packs.response_lengths)
        self.conversation_tokens += int(conversations.sum())
        self.shared_tokens += int((packs.prompt_lengths * packs.num_responses).sum())
        self.num_groups += len(packs.starts)
        self.num_without_prompt += int((packs.prompt_lengths == 0).sum())
        hashes = packs.conversation_hashes()
        self.duplicates.add(packs, hashes)
        self.contradictions.add(packs, hashes)
        self.by_source.add(packs)
        self.endings.add(packs)
        self.extremes.add(packs)
        self.written_out.add(packs)

    def figures(self, capacity: int, num_truncated: int, text: Text) -> Figures:
        """What is said of this split alone."""
        tokens = self.split.packed.tokens_per_pack
        fill = np.bincount(np.minimum(tokens * FILL_BINS // capacity, FILL_BINS - 1), minlength=FILL_BINS)
        return {
            "groups": self.num_groups,
            "groups_without_prompt": self.num_without_prompt,
            "truncated": num_truncated,
            "replies_without_header": self.extremes.num_without_header,
            "lengths": {name: lengths.figures() for name, lengths in self.lengths.items()},
            "prompt_share": self.shared_tokens / max(self.conversation_tokens, 1),
            "sharing_ratio": self.conversation_tokens / max(int(tokens.sum()), 1),
            "packs": len(tokens),
            "tokens": int(tokens.sum()),
            "pack_fill": int(tokens.sum()) / max(len(tokens) * capacity, 1),
            "pack_fill_histogram": fill.tolist(),
            "endings": self.endings.figures(text),
            "written_out": self.written_out.figures(),
        }


def gather(split: Split) -> Gathered:
    gathered = Gathered(split)
    for packs in split.packs():
        gathered.add(packs)
    return gathered
