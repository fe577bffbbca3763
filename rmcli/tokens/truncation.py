"""`truncate_left`: what a conversation that is too long loses, and what it never does.

Tokens go after BOS, up to the header of the prompt's last user message; where that is not enough, and where nothing
stands before that message, from the start of its content. Its header, the generation header and the replies stay
whole. Borders are found in the rendered text and carried over to tokens by encoding the text up to them: a token that
reaches over a border is on neither side of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from jinja2 import TemplateError

from rmcli.records import Conversation, Message

# A content that shows where the template puts it: letters of a private use area, which no template trims or splits.
_MARKER = "\ue000\ue002\ue001"
_CONTEXT = 4  # tokens decoded before a border: some decoders drop white space at the start of a text


@dataclass(frozen=True)
class Prompt:
    """The rendered text of a conversation, and where in it the last user message of the prompt stands.

    In characters: `header` is where the message's header begins, `content` to `end` is what the user said.
    """

    text: str
    header: int
    content: int
    end: int


def find_prompt(
    conversation: Conversation, num_shared: int, bos: str, render: Callable[[Conversation], str]
) -> Prompt | None:
    """The last user message among the first `num_shared` messages; None where there is none or it cannot be found.

    Any template will do: one that refuses what is no whole conversation, too. `bos`: BOS as text, if there is one.
    """
    users = [index for index, message in enumerate(conversation[:num_shared]) if message["role"] == "user"]
    if not users:
        return None
    at = users[-1]
    text = render(conversation)
    content, end = _find_content(conversation, at, text, render)
    if content is None:
        return None
    return Prompt(text, _find_header(conversation, at, text, content, bos, render), content, end)


def _find_content(
    conversation: Conversation, at: int, text: str, render: Callable[[Conversation], str]
) -> tuple[int | None, int]:
    """Where the text of a message's content begins and ends, by rendering another content in its place."""
    said = conversation[at]["content"].strip()
    before, _, after = _rendered(_with_marker(conversation, at), render).partition(_MARKER)
    end = len(text) - len(after)
    if text.startswith(before) and text.endswith(after) and text[len(before) : end].strip() == said:
        return len(before), end
    # The template looks into contents: then the text has to occur but once.
    return (text.index(said), text.index(said) + len(said)) if said and text.count(said) == 1 else (None, 0)


def _find_header(
    conversation: Conversation, at: int, text: str, content: int, bos: str, render: Callable[[Conversation], str]
) -> int:
    """Where the header of message `at` begins: never too far, at worst at 0."""
    if at == 0:
        return 0
    before = _rendered(conversation[:at], render)
    if before and text.startswith(before):
        return min(len(before), content)
    # The template renders no unfinished conversation, or ends it in another way. A conversation that begins with this
    # message begins with its header, unless the template writes more there.
    marked = _with_marker(conversation, at)
    alone = _rendered(marked[at:], render).partition(_MARKER)[0]
    for header in (alone, alone.removeprefix(bos)):
        if header.strip() and text[:content].endswith(header):
            return content - len(header)
    # A system message may stand inside it. What else is equal is left in peace.
    system = conversation[:1] if conversation[0]["role"] == "system" else ()
    alone = _rendered((*system, *marked[at:]), render)
    header = alone.partition(_MARKER)[0] if _MARKER in alone else text[:content]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(text[:content]), reversed(header), strict=False))
    return content - sum(1 for _ in same)


def _with_marker(conversation: Conversation, at: int) -> Conversation:
    marked: Message = {**conversation[at], "content": _MARKER}
    return (*conversation[:at], marked, *conversation[at + 1 :])


def _rendered(conversation: Conversation, render: Callable[[Conversation], str]) -> str:
    """The text, or nothing where the template refuses it."""
    try:
        return render(conversation)
    except TemplateError:
        return ""


def cut_left(
    token_ids: Sequence[np.ndarray],
    excess: int,
    num_bos: int,
    prompt: Prompt,
    encode: Callable[[Sequence[str]], list[np.ndarray]],
    decode: Callable[[np.ndarray], str],
) -> list[np.ndarray] | None:
    """The conversations, each (tokens,) and beginning with the same prompt, without `excess` tokens of it.

    `num_bos` tokens at the start stay. None where the prompt has not as many to give: of what the user said at least
    a token is left that is not white space.
    """
    first = token_ids[0]
    shared = min(_num_equal(first, ids) for ids in token_ids)
    header, head, whole = _encode_prefixes(prompt, encode)
    num_before = max(min(_num_equal(header, first), shared) - num_bos, 0)
    from_before = min(excess, num_before)
    from_content = excess - from_before
    kept = [(0, num_bos)]
    if from_content:
        content_end = min(_num_equal(whole, first), shared)
        start = _content_start(head, first, from_content, decode)
        start = None if start is None else max(start, num_bos + from_before)
        if start is None or not decode(first[start + from_content : content_end]).strip():
            return None
        kept += [(num_bos + from_before, start), (start + from_content, None)]
    else:
        kept += [(num_bos + from_before, None)]
    return [np.concatenate([ids[begin:end] for begin, end in kept]) for ids in token_ids]


def _encode_prefixes(prompt: Prompt, encode: Callable[[Sequence[str]], list[np.ndarray]]) -> list[np.ndarray]:
    """Tokens of the text up to the header, the content and its end."""
    ends = (prompt.header, prompt.content, prompt.end)
    encoded = iter(encode([prompt.text[:end] for end in ends if end]))
    return [next(encoded) if end else np.empty(0, dtype=np.int32) for end in ends]


def _content_start(
    head: np.ndarray, ids: np.ndarray, num_cut: int, decode: Callable[[np.ndarray], str]
) -> int | None:
    """The token from which `num_cut` tokens of the content are cut. `head`: tokens of the text up to the content.

    Where a token reaches from the header into the content (` What` after `user: `), it goes with the content if what
    then follows completes the header again, as another word with its space does; else it stays.
    """
    shared = _num_equal(head, ids)
    if shared == len(head):
        return shared
    context = max(shared - _CONTEXT, 0)
    wanted = decode(head[context:])
    furthest = 2 * (len(head) - shared) + _CONTEXT
    after_cut = ids[shared + num_cut : shared + num_cut + furthest]
    if decode(np.concatenate([ids[context:shared], after_cut])).startswith(wanted):
        return shared
    ends = range(shared + 1, min(shared + furthest, len(ids)))
    return next((end for end in ends if decode(ids[context:end]).startswith(wanted)), None)


def _num_equal(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens both begin with."""
    limit = min(len(one), len(other))
    same = one[:limit] == other[:limit]
    return limit if same.all() else int(same.argmin())
