"""Chat templates rendered quickly: equal to `apply_chat_template`, at a tenth of its time where that can be proven.

Most templates only copy what the messages say, whole or trimmed, between texts that the sequence of roles alone
decides. `copies_contents` proves that from the template's syntax tree. Such a template is rendered once per sequence
of roles, with markers for contents; every further conversation of the same roles is a join of strings. Any other
template is rendered by `apply_chat_template`, always.
"""

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, nodes

from rmcli import output
from rmcli.records import Conversation, as_dicts, has_more
from rmcli.tokens import chat_templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SKELETONS = 1024  # sequences of roles that are kept

# A content that shows where the template puts it and whether it was trimmed: white space, letters of a private use
# area around its number, white space.
_MARKER = "\x0b\x0c\ue000{}\ue001\x0c\x0b"
_FOUND = re.compile("(\x0b\x0c)?\ue000([0-9]+)\ue001(\x0c\x0b)?")


class Renderer:
    """Renders whole conversations, without a generation prompt. Safe to use from several threads.

    `template_arguments`, as a group has them, and messages with further keys are rendered by `apply_chat_template`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.uses_skeletons = copies_contents(tokenizer.get_chat_template())
        self._skeletons: dict[tuple[str, ...], _Skeleton] = {}

    def render(self, conversation: Conversation, template_arguments: Mapping[str, Any] | None = None) -> str:
        """Raises jinja2's TemplateError where the template refuses the conversation."""
        if template_arguments or not self.uses_skeletons or has_more(conversation):
            return self.render_in_full(conversation, template_arguments)
        roles = tuple([message["role"] for message in conversation])
        skeleton = self._skeletons.get(roles)
        if skeleton is not None:
            return skeleton.fill(conversation)
        return self._render_first(roles, conversation)

    def render_in_full(self, conversation: Conversation, template_arguments: Mapping[str, Any] | None = None) -> str:
        """What `apply_chat_template` writes."""
        return chat_templates.render(self.tokenizer, as_dicts(conversation), **(template_arguments or {}))

    def _render_first(self, roles: tuple[str, ...], conversation: Conversation) -> str:
        """The first conversation of these roles is rendered both ways."""
        text = self.render_in_full(conversation)
        if len(self._skeletons) < NUM_SKELETONS:
            marked: Conversation = tuple(
                {"role": role, "content": _MARKER.format(index)} for index, role in enumerate(roles)
            )
            skeleton = _Skeleton(self.render_in_full(marked))
            if skeleton.fill(conversation) == text:
                self._skeletons[roles] = skeleton
            else:
                output.warn("the chat template does more than copy the messages: each is rendered in full, slower")
                self.uses_skeletons = False
        return text


class _Skeleton:
    """A rendering of markers, cut at the markers."""

    def __init__(self, rendered: str) -> None:
        self._slots: list[tuple[str, int, bool]] = []  # text before, message, whether its content is trimmed
        end = 0
        for found in _FOUND.finditer(rendered):
            self._slots.append((rendered[end : found.start()], int(found[2]), found[1] is None))
            end = found.end()
        self._tail = rendered[end:]

    def fill(self, conversation: Conversation) -> str:
        parts = []
        for before, index, is_trimmed in self._slots:
            content = conversation[index]["content"]
            parts.append(before)
            parts.append(content.strip() if is_trimmed else content)
        parts.append(self._tail)
        return "".join(parts)


_COUNTS_OF_LOOP = frozenset(
    {"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0"}
)


class _Kind(IntEnum):
    """What a value in a template may hold, for any contents. Larger holds more."""

    FIXED = 0  # the same for all conversations of the same roles
    CONTENT = 1  # or one message's content, whole or trimmed
    TEXT = 2  # or a text that contains contents
    MESSAGES = 3  # or messages: may be looped over and indexed, nothing else


class _Unproven(Exception):
    """The template does something that may depend on what a message says."""


def copies_contents(template: str) -> bool:
    """Whether the template provably does nothing with contents but copy and trim them.

    True only if no condition, filter, call or comparison can see a content; False wherever that is not plain.
    """
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # only to parse; nothing is run
    try:
        tree = environment.parse(template)
    except (TemplateError, RecursionError):  # such as an extension of transformers
        return False
    proof = _Proof()
    try:
        while proof.changed:  # until the kinds of the template's variables stand
            proof.changed = False
            proof.statements(tree.body)
    except (_Unproven, RecursionError):
        return False
    return True


class _Proof:
    """Kinds of a template's variables, found by walking it as if every branch were taken."""

    def __init__(self) -> None:
        self.kinds: dict[str, _Kind] = {"messages": _Kind.MESSAGES}
        self.changed = True

    def statements(self, body: Sequence[nodes.Node]) -> None:
        for statement in body:
            self._statement(statement)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    self._at_most(_Kind.TEXT, part)
            case nodes.If():
                self._at_most(_Kind.FIXED, node.test)
                self.statements([*node.body, *node.elif_, *node.else_])
            case nodes.For(target=nodes.Name(name=name)) if not node.recursive:
                self._bind(name, self._one_of(self._expression(node.iter)))
                if node.test is not None:
                    self._at_most(_Kind.FIXED, node.test)
                self.statements([*node.body, *node.else_])
            case nodes.Assign(target=nodes.Name(name=name)):
                self._bind(name, self._expression(node.node))
            case nodes.Assign(target=nodes.NSRef()) | nodes.ExprStmt():
                self._at_most(_Kind.FIXED, node.node)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise _Unproven

    def _bind(self, name: str, kind: _Kind) -> None:
        before = self.kinds.get(name, _Kind.FIXED)
        if _Kind.MESSAGES in (kind, before) and max(kind, before) != min(kind, before) > _Kind.FIXED:
            raise _Unproven
        if kind > before:
            self.kinds[name] = kind
            self.changed = True

    def _one_of(self, kind: _Kind) -> _Kind:
        """What a loop over it yields. A text would yield letters."""
        if kind in (_Kind.CONTENT, _Kind.TEXT):
            raise _Unproven
        return kind

    def _at_most(self, limit: _Kind, node: nodes.Node) -> None:
        if self._expression(node) > limit:
            raise _Unproven

    def _expression(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Getattr(node=nodes.Name(name="loop"), attr=attribute):
                if attribute in ("previtem", "nextitem"):
                    return _Kind.MESSAGES
                if attribute in _COUNTS_OF_LOOP:
                    return _Kind.FIXED
                raise _Unproven
            case nodes.Name(name="loop"):
                raise _Unproven
            case nodes.Name(name=name):
                return self.kinds.get(name, _Kind.FIXED)
            case nodes.Getattr(node=value, attr=key) | nodes.Getitem(node=value, arg=nodes.Const(value=key)):
                return self._item(value, key)
            case nodes.Getitem(node=value, arg=arg):
                if self._expression(value) > _Kind.FIXED and not _is_position(arg):
                    raise _Unproven
                self._at_most(_Kind.FIXED, arg)
                return self._one_of(self._expression(value))
            case nodes.Filter(node=value, name="trim", args=[], kwargs=[]) if value is not None:
                return self._trimmed(value)
            case nodes.Call(node=nodes.Getattr(node=value, attr="strip"), args=[], kwargs=[]):
                return self._trimmed(value)
            case nodes.Filter(node=value, name="length" | "count") if value is not None:
                kind = self._expression(value)  # how many messages there are is told by the roles
                if kind not in (_Kind.FIXED, _Kind.MESSAGES):
                    raise _Unproven
                return _Kind.FIXED
            case nodes.Filter(name="random"):
                raise _Unproven
            case nodes.Test(node=value, name="defined" | "none" | "string" | "mapping"):
                self._expression(value)
                return _Kind.FIXED  # a content is a string always
            case nodes.Add() | nodes.Concat():
                operands = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
                for operand in operands:
                    self._at_most(_Kind.TEXT, operand)
                return _Kind.TEXT if any(map(self._expression, operands)) else _Kind.FIXED
            case nodes.CondExpr(test=test, expr1=first, expr2=second):
                self._at_most(_Kind.FIXED, test)
                for branch in (first, second):
                    if branch is not None:
                        self._at_most(_Kind.TEXT, branch)
                return max(self._expression(branch) for branch in (first, second) if branch is not None)
            case nodes.Expr() | nodes.Helper():
                for child in node.iter_child_nodes():
                    self._at_most(_Kind.FIXED, child)
                return _Kind.FIXED
            case _:
                raise _Unproven

    def _item(self, value: nodes.Node, key: Any) -> _Kind:
        """`value[key]` or `value.key` for a key that stands in the template."""
        kind = self._expression(value)
        if kind == _Kind.FIXED:
            return kind
        if kind != _Kind.MESSAGES or hasattr(dict, str(key)) or hasattr(list, str(key)):
            raise _Unproven  # a part or a method of a content, or a method of the messages
        if isinstance(key, int):
            return kind
        return _Kind.CONTENT if key == "content" else _Kind.FIXED  # a message has no other key that varies

    def _trimmed(self, value: nodes.Node) -> _Kind:
        self._at_most(_Kind.CONTENT, value)  # of a longer text only the ends would be trimmed
        return self._expression(value)


def _is_position(node: nodes.Node | None) -> bool:
    """Whether the index is a number or a slice for sure, and can be no key of a message."""
    match node:
        case None | nodes.Const(value=int()) | nodes.Slice() | nodes.Neg() | nodes.Sub():
            return True
        case nodes.Getattr(node=nodes.Name(name="loop"), attr="index" | "index0"):
            return True
        case nodes.Add(left=left, right=right):
            return _is_position(left) or _is_position(right)
    return False
