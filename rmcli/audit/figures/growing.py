"""Numbers that are appended to without end, and those of them that repeat."""

from collections.abc import Sequence

import numpy as np

BLOCK = 2**16  # numbers held in one piece


class Growing:
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
    def joined(parts: "Sequence[Growing]") -> np.ndarray:
        """All numbers of all parts; a copy."""
        filled = [b[: part._length - n * BLOCK] for part in parts for n, b in enumerate(part._blocks)]
        return np.concatenate([np.empty(0, dtype=parts[0]._kind), *filled])


def repeated(values: np.ndarray) -> np.ndarray:
    """Sorted: each value that occurs more than once."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
