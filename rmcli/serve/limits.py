"""What a client may ask for at once, and how long it may take."""

from dataclasses import dataclass

MIB = 1024 * 1024
MAX_DEPTH = 64  # brackets within brackets: tools of a conversation need a dozen
VALUES_PER_ITEM = 64  # of JSON, beside token ids: messages with all that may stand beside them


@dataclass(frozen=True)
class Limits:
    """`max_body`: bytes of one request; of all that are being received, four times as much.

    `max_items`, `max_tokens`: conversations of one request, and tokens of them all. `max_queue`: conversations that
    wait to be scored. `receive_seconds`: for a client to send its request. `score_seconds`: until it is answered.
    """

    max_body: int = 4 * MIB
    max_items: int = 1024
    max_tokens: int = 262_144
    max_queue: int = 8192
    receive_seconds: float = 30.0
    score_seconds: float = 300.0

    @property
    def max_values(self) -> int:
        """JSON values of one request: what they take in memory is bounded before they are built."""
        return self.max_tokens + VALUES_PER_ITEM * self.max_items
