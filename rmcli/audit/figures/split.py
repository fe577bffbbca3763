"""One split of a prepared folder, as every figure reads it."""

from collections.abc import Iterator
from dataclasses import dataclass

from rmcli.audit.figures.flat_packs import FlatPacks
from rmcli.audit.figures.text import Text
from rmcli.packs.reader import PackedSplit

TOKENS_AT_ONCE = 2**15  # of the packs that are read and looked at together


@dataclass(frozen=True)
class Split:
    packed: PackedSplit
    name: str
    text: Text

    def packs(self) -> Iterator[FlatPacks]:
        """So many at once that numpy's work outweighs the calls, and no more."""
        longest = max(self.packed.tokens_per_pack, default=1)
        step = max(TOKENS_AT_ONCE // int(longest), 1)
        for start in range(0, len(self.packed), step):
            yield FlatPacks.from_columns(self.packed.columns(start, min(start + step, len(self.packed))))
