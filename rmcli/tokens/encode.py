"""Conversations to tokens: template, reward token, length policy, longest common prefix.

The chat template renders each whole conversation once; the reward token is appended by id. The shared prefix is the
longest common *token* prefix, so nothing is assumed about templates or word boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from json import JSONEncoder
from typing import Literal

import numpy as np
from jinja2.exceptions import TemplateError

from rmcli import output
from rmcli.errors import ConfigError
from rmcli.records import PAIR, Comparison, Conversation, PreferenceGroup, TokenGroup, has_more, more_of, says_nothing
from rmcli.tokens import chat_templates, truncation
from rmcli.tokens.control_tokens import ControlTokens
from rmcli.tokens.engines import EngineName, TokenEngine
from rmcli.tokens.rendering import Renderer
from rmcli.tokens.template_reads import TemplateReads, reads_of
from rmcli.tokens.tokenizer import CHAT_TEMPLATE_HINT, RewardTokenizer, decoded

_encode = JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each call
MAX_CHARACTERS = 2_000_000  # of a conversation, the default of data.max_characters: half a million tokens
ROLES = frozenset({"system", "user", "assistant", "tool"})

# Why encode leaves a group out. Readers (rows/files.py), map functions and prepare/fate.py have reasons of their own.
REASONS = (
    "too_long_text",
    "empty_conversation",
    "unknown_role",
    "no_assistant_reply",
    "empty_reply",
    "chosen_equals_rejected",
    "reward_token_in_text",
    "control_token_in_text",
    "template_error",
    "unread_column NAME",
    "no_end_of_turn",
    "token_without_row",
    "overlong",
    "identical_after_truncation",
)

# What is counted of groups that are kept, and said.
CONTROL_TOKENS, REPLY_NOT_WHOLE = "control_tokens", "reply_not_whole"
NOTED = {
    CONTROL_TOKENS: "text holds control tokens (data.control_tokens = keep): the model reads them as the chat "
    "template's own",
    REPLY_NOT_WHOLE: "the chat template does not write the whole reply: what it leaves out is not scored",
}


@dataclass(frozen=True)
class Encoder:
    """Turns PreferenceGroups into TokenGroups. Safe to use from several threads.

    `overlong` is the policy of `data.overlong`, `pairs` is `data.pairs`, `engine_name` is `data.tokenizer_engine`,
    `control_tokens` is `data.control_tokens`. A conversation of over `max_characters` is left out before it is
    tokenized, which takes much memory.
    """

    reward: RewardTokenizer
    max_length: int
    overlong: str
    pairs: str = "all"
    engine_name: EngineName = "transformers"
    max_characters: int = MAX_CHARACTERS
    control_tokens: Literal["keep", "reject"] = "keep"
    template_says: dict[str, str] = field(default_factory=dict)  # reason -> its words on the first such conversation

    def __post_init__(self) -> None:
        if self.reward.tokenizer.chat_template is None:
            raise ConfigError(
                f"the tokenizer {self.reward.tokenizer.name_or_path!r} has no chat template", CHAT_TEMPLATE_HINT
            )
        chat_templates.check(self.reward.tokenizer)

    @cached_property
    def engine(self) -> TokenEngine:
        return TokenEngine(self.reward.tokenizer, self.engine_name)

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.reward.tokenizer)

    @cached_property
    def control(self) -> ControlTokens:
        return ControlTokens(self.reward.tokenizer)

    @cached_property
    def template_reads(self) -> TemplateReads:
        return reads_of(self.reward.tokenizer)

    def encode(self, groups: Sequence[PreferenceGroup]) -> list[TokenGroup | str]:
        """Per group its tokens, or the reason it is left out. Row and source ids are the caller's to set."""
        texts: list[str] = []
        results: list[str | tuple[range, tuple[str, ...]]] = []  # where the group's texts stand, what is noted
        for group in groups:
            texts_of = [_texts_of(conversation) for conversation in group.conversations]
            joined = ["\n".join(contents) for contents in texts_of]  # to ask all of them at once
            problem = self._problem(group, texts_of, joined)
            if problem is not None:
                results.append(problem)
                continue
            try:
                rendered = [self.renderer.render(talk, group.template_arguments) for talk in group.conversations]
            except TemplateError as error:
                self._say_first_refusal(str(error))
                results.append("template_error")
                continue
            results.append((range(len(texts), len(texts) + len(rendered)), self._noted(group, joined, rendered)))
            texts.extend(rendered)
        # The template has written BOS where the model wants one: no special tokens are added again.
        ids = self.engine.encode(texts)
        # Asked of all at once: almost always the answer is no.
        has_reward_token = bool(ids) and bool((np.concatenate(ids) == self.reward.reward_token_id).any())
        return [
            result
            if isinstance(result, str)
            else self._group([ids[index] for index in result[0]], group, result[1], has_reward_token)
            for group, result in zip(groups, results, strict=True)
        ]

    def _say_first_refusal(self, error: str) -> None:
        if "template_error" not in self.template_says:
            self.template_says["template_error"] = error
            output.warn(f"the chat template refuses a conversation: {' '.join(error.split())}")

    def _problem(
        self, group: PreferenceGroup, texts_of: Sequence[Sequence[str]], joined: Sequence[str]
    ) -> str | None:
        for name in group.template_arguments:
            if name not in self.template_reads.arguments:
                return f"unread_column {'tools' if name == 'tools' else f'chat_template_kwargs.{name}'}"
        for conversation, contents, text in zip(group.conversations, texts_of, joined, strict=True):
            if len(text) > self.max_characters < sum(map(len, contents)):
                return "too_long_text"
            if not conversation:
                return "empty_conversation"
            if not ROLES.issuperset([message["role"] for message in conversation]):
                return "unknown_role"
            if conversation[-1]["role"] != "assistant":
                return "no_assistant_reply"
            if says_nothing(conversation[-1]):
                return "empty_reply"
            # Of all contents at once the answer is almost always no.
            if self.reward.stands_in(text) and any(map(self.reward.stands_in, contents)):
                return "reward_token_in_text"
            if self.control_tokens == "reject" and self.control.first_in(text) is not None:
                return "control_token_in_text"
        first, *others = group.conversations
        if others and all(_is_same(other, first) for other in others):
            return "chosen_equals_rejected"
        return None

    def _noted(self, group: PreferenceGroup, joined: Sequence[str], rendered: Sequence[str]) -> tuple[str, ...]:
        """Which of NOTED hold for the group."""
        noted = []
        if self.control.first_in("\n".join(joined)) is not None:
            noted.append(CONTROL_TOKENS)
        # A template that only copies contents was proven to write them whole.
        if not self.renderer.uses_skeletons and not all(
            _is_whole(conversation[-1]["content"], text)
            for conversation, text in zip(group.conversations, rendered, strict=True)
        ):
            noted.append(REPLY_NOT_WHOLE)
        return tuple(noted)

    def _group(
        self, conversations: list[np.ndarray], group: PreferenceGroup, noted: tuple[str, ...], has_reward_token: bool
    ) -> TokenGroup | str:
        token_ids = [ids for ids in map(self.reward.finish, conversations) if ids is not None]
        if len(token_ids) < len(conversations):
            return "no_end_of_turn"
        if has_reward_token and any(map(self.reward.stands_within, token_ids)):
            return "reward_token_in_text"
        if self.reward.tokens_without_row and any((ids >= self.reward.num_embedding_rows).any() for ids in token_ids):
            return "token_without_row"
        return self._shorten(token_ids, group, noted)

    def _shorten(
        self, token_ids: list[np.ndarray], group: PreferenceGroup, noted: tuple[str, ...]
    ) -> TokenGroup | str:
        """Apply the length policy. Raises nothing; returns the reason when the group cannot be kept."""
        excess = max(len(ids) for ids in token_ids) - self.max_length
        if _compares_equals(token_ids, group):
            return "chosen_equals_rejected"
        if excess > 0 and self.overlong == "drop":
            return "overlong"
        if excess > 0 and self.overlong == "truncate_right":
            token_ids = [
                ids if len(ids) <= self.max_length else np.append(ids[: self.max_length - 1], ids[-1])
                for ids in token_ids
            ]
        elif excess > 0:
            cut = self._cut_left(token_ids, excess, group)
            if cut is None:
                return "overlong"
            token_ids = cut
        if excess > 0 and _compares_equals(token_ids, group):
            return "identical_after_truncation"
        shared = common_prefix_length(token_ids) if len(token_ids) > 1 else 0
        return TokenGroup(
            prefix=token_ids[0][:shared],
            responses=tuple(ids[shared:] for ids in token_ids),
            weight=group.weight,
            truncated=excess > 0,
            comparisons=select_pairs(group.comparisons, len(token_ids), self.pairs),
            ordered=is_ordered(group.comparisons, len(token_ids)),
            noted=noted,
        )

    def _cut_left(self, token_ids: list[np.ndarray], excess: int, group: PreferenceGroup) -> list[np.ndarray] | None:
        """Every member loses the same tokens of the shared prompt, so that all still answer one prompt."""
        tokenizer = self.reward.tokenizer
        bos = str(tokenizer.bos_token or "")
        render = lambda talk: self.renderer.render(talk, group.template_arguments)  # noqa: E731
        shared = num_shared_messages(group)
        prompt = truncation.find_prompt(group.conversations[0], shared, bos, render)
        if prompt is None:
            return None
        num_bos = int(token_ids[0][0] == tokenizer.bos_token_id)
        return truncation.cut_left(token_ids, excess, num_bos, prompt, self.engine.encode, self._decode)

    def _decode(self, ids: np.ndarray) -> str:
        return decoded(self.reward.tokenizer, ids)


def _texts_of(conversation: Conversation) -> list[str]:
    """What the messages say, and what stands in their further keys."""
    said = [message["content"] for message in conversation]
    if has_more(conversation):
        said += [str(value) for message in conversation for value in more_of(message).values()]
    return said


def _is_whole(reply: str, text: str) -> bool:
    """Whether all of the reply stands in the rendered text, whatever became of white space."""
    return reply.strip() in text or "".join(reply.split()) in "".join(text.split())


def _compares_equals(token_ids: Sequence[np.ndarray], group: PreferenceGroup) -> bool:
    """Whether one response is called better than another that is the same, token for token."""
    if len(token_ids) < 2:
        return False
    for comparison in group.comparisons:
        first, second = token_ids[comparison.first], token_ids[comparison.second]
        if not comparison.is_tie and len(first) == len(second) and (first == second).all():
            return True
    return False


def common_prefix_length(token_ids: Sequence[np.ndarray]) -> int:
    """Tokens all of them begin with, at most one less than the shortest: each keeps its last token for itself."""
    limit = min(len(ids) for ids in token_ids) - 1
    same = np.ones(limit, dtype=bool)
    for ids in token_ids[1:]:
        same &= ids[:limit] == token_ids[0][:limit]
    return limit if same.all() else int(same.argmin())


def is_ordered(comparisons: Sequence[Comparison], num_responses: int) -> bool:
    """Whether the comparisons say that each response is better than the next, and nothing against it.

    A soft label says less than an order does; margins do not matter to it.
    """
    if comparisons is PAIR:
        return num_responses == 2
    if any(c.label != 1 or c.first >= c.second for c in comparisons):
        return False
    pairs = {(c.first, c.second) for c in comparisons}
    return all((index, index + 1) in pairs for index in range(num_responses - 1))


def select_pairs(comparisons: tuple[Comparison, ...], num_responses: int, which: str) -> tuple[Comparison, ...]:
    """The comparisons that `data.pairs` keeps of a group in strict order; all of any other."""
    if which == "all" or not is_ordered(comparisons, num_responses):
        return comparisons
    wanted = [(0, num_responses - 1)] if which == "best_worst" else [(i, i + 1) for i in range(num_responses - 1)]
    among = set(wanted)
    kept = tuple(comparison for comparison in comparisons if (comparison.first, comparison.second) in among)
    return kept or tuple(Comparison(*pair) for pair in wanted)


def num_shared_messages(group: PreferenceGroup) -> int:
    """Messages before the first difference; all of them where one conversation is alone."""
    first = group.conversations[0]
    length = 0
    while all(len(c) > length and c[length] == first[length] for c in group.conversations):
        length += 1
    return length


def prompt_of(group: PreferenceGroup) -> Conversation:
    """The messages before the first difference; the whole first conversation when they differ from the start."""
    first = group.conversations[0]
    return first[: num_shared_messages(group)] or first


def is_held_out(prompt: Conversation, eval_fraction: float, eval_seed: int = 0) -> bool:
    """Whether a prompt belongs to the eval split: a hash of its text decides, so one prompt is on one side only."""
    salt = f"{eval_seed}\n" if eval_seed else ""
    digest = sha256((salt + _as_key(prompt)).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < eval_fraction * 2**64


def group_key(group: PreferenceGroup) -> bytes:
    """16 bytes that are equal for exact duplicates: the same texts with the same verdict."""
    texts = "\n".join(map(_as_key, group.conversations))
    arguments = f"\n{_encode(group.template_arguments)}" if group.template_arguments else ""
    return sha256(f"{texts}\n{group.comparisons}{arguments}".encode()).digest()[:16]


def _is_same(one: Conversation, other: Conversation) -> bool:
    """Whether message for message they are equal. They differ at the end when they do."""
    return len(one) == len(other) and all(a == b for a, b in zip(reversed(one), reversed(other), strict=True))


def _as_key(conversation: Conversation) -> str:
    return _encode(
        [
            [message["role"], message["content"], *([sorted(more_of(message).items())] if len(message) > 2 else [])]
            for message in conversation
        ]
    )
