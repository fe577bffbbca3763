"""What a request asks to be scored, in tokens: off the event loop, each conversation for itself."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rmcli import output
from rmcli.records import PreferenceGroup, TokenGroup
from rmcli.rows.map_fns.contract import Contract
from rmcli.scorer import conversations as given
from rmcli.scorer.tokens import encode_apart
from rmcli.serve.texts import Texts, in_chunks
from rmcli.tokens.encode import NOTED, Encoder

Side = TokenGroup | str  # a conversation that stands alone, or why it cannot be scored
_KEYS_SAID = 20  # message keys that nothing reads, named once each: clients choose them


@dataclass(frozen=True)
class Asked:
    """What a request asks for, one side per conversation in its order.

    `activation`: the client wants what the model's own activation makes of its scores.
    """

    sides: Sequence[Side]
    activation: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(side.num_tokens for side in self.sides if isinstance(side, TokenGroup))


class Reader:
    """Turns texts, ids, conversations and answers into sides. Safe to use from several threads."""

    def __init__(self, encoder: Encoder, allow_no_prompt: bool = False) -> None:
        self.encoder = encoder
        self.texts = Texts(encoder)
        self._allow_no_prompt = allow_no_prompt
        self._said: set[str] = set()
        self._noted: set[str] = set()
        self._lock = threading.Lock()

    def conversations(self, talks: Sequence[Any]) -> list[Side]:
        """Of conversations as Python has them (docs/python.md)."""
        contract = self._contract()
        return self._encoded([given.conversation(talk, contract) for talk in talks], contract)

    def answers(self, prompt: Any, responses: Sequence[Any]) -> list[Side]:
        """Of answers to one prompt, each a text or messages."""
        contract = self._contract()
        return self._encoded([given.answer(prompt, response, contract) for response in responses], contract)

    def _contract(self) -> Contract:
        return Contract(self.encoder.template_reads.message_keys, self._allow_no_prompt)

    def _encoded(self, groups: Sequence[PreferenceGroup | str], contract: Contract) -> list[Side]:
        good = [group for group in groups if not isinstance(group, str)]
        sizes = [sum(len(message["content"]) for message in group.conversations[0]) for group in good]
        sides = (side for chunk in in_chunks(good, sizes) for (side,) in encode_apart(self.encoder, chunk))
        found = [group if isinstance(group, str) else next(sides) for group in groups]
        self._say_unread(contract)
        self._say_noted({name for side in found if isinstance(side, TokenGroup) for name in side.noted})
        return found

    def _say_noted(self, names: set[str]) -> None:
        """What the scores of conversations may not be of, each once in the server's life."""
        with self._lock:
            new = sorted(names - self._noted)
            self._noted.update(new)
        for name in new:
            output.warn(f"of a conversation that is scored: {NOTED[name]}")

    def _say_unread(self, contract: Contract) -> None:
        """Keys of messages that the template does not read, each once in the server's life."""
        with self._lock:
            new = [key for key in contract.unread_keys if key not in self._said][: _KEYS_SAID - len(self._said)]
            self._said.update(new)
        if new:
            output.warn(f"not read: {', '.join(key[:60] for key in new)} (of messages: the chat template does not)")
