"""What a chat template reads: the variables it is given, and the keys of messages beside role and content.

Found in the template's syntax tree. Messages are followed through loops, assignments, slices and macros' arguments;
where one goes a way that is not followed, every name in the template counts as one that is read of it, and where it
is written whole, every key.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, meta, nodes

from rmcli.records import OWN_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TemplateReads:
    """`variables`: what the template is given by name. `message_keys`: beside role and content; None is every key."""

    variables: frozenset[str]
    message_keys: frozenset[str] | None

    @cached_property
    def arguments(self) -> frozenset[str]:
        """The variables that a row may give: not those that rendering itself sets."""
        return frozenset(name for name in self.variables - _SET_BY_RENDERING if not name.endswith("_token"))


# Of transformers' apply_chat_template, and of what it hands to every template.
_SET_BY_RENDERING = frozenset(
    {
        *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "raise_exception", "strftime_now"),
    }
)

ALL = TemplateReads(frozenset(), None)


def reads_of(tokenizer: "PreTrainedTokenizerBase") -> TemplateReads:
    """What the tokenizer's chat template reads; with tools it may be another one, which counts too."""
    plain = reads_in(tokenizer.get_chat_template())
    with_tools = reads_in(tokenizer.get_chat_template(tools=[{"type": "function"}]))
    keys = None
    if plain.message_keys is not None and with_tools.message_keys is not None:
        keys = plain.message_keys | with_tools.message_keys
    return TemplateReads((plain.variables - {"tools"}) | with_tools.variables, keys)


def reads_in(template: str) -> TemplateReads:
    """What this template reads. Of one that cannot be parsed: every key and no variable."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # only to parse; nothing is run
    try:
        tree = environment.parse(_without_generation_marks(template))
        return TemplateReads(frozenset(meta.find_undeclared_variables(tree)), _message_keys(tree))
    except (TemplateError, RecursionError):  # nested too deep to be walked
        return ALL


def _without_generation_marks(template: str) -> str:
    """transformers' own tags around what an assistant says, which jinja2 alone does not know."""
    return re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)


class _Kind(IntEnum):
    OTHER = 0
    MESSAGE = 1
    MESSAGES = 2


class _Escapes(Exception):
    """A message goes where it is not followed."""


class _IsWritten(Exception):
    """A message is written whole."""


def _message_keys(tree: nodes.Template) -> frozenset[str] | None:
    walk = _Walk(tree)
    try:
        while walk.changed:  # until the kinds of the template's variables stand
            walk.changed = False
            walk.node(tree)
    except _Escapes:
        return frozenset(_names_in(tree)) - OWN_KEYS
    except _IsWritten:
        return None
    return frozenset(walk.keys) - OWN_KEYS


def _names_in(tree: nodes.Node) -> Iterator[str]:
    """Every name that could be that of a key."""
    for node in tree.find_all((nodes.Getattr, nodes.Const)):
        name = node.attr if isinstance(node, nodes.Getattr) else node.value
        if isinstance(name, str):
            yield name


_LISTS = {"list", "reverse", "selectattr", "rejectattr", "sort", "unique", "select", "reject"}
_ONE = {"first", "last", "random"}
_COUNTED = {"length", "count"}
_WRITTEN = {"tojson", "string", "items", "dictsort", "pprint", "xmlattr", "join"}


class _Walk:
    """Which variables hold messages, and what is read of those."""

    def __init__(self, tree: nodes.Template) -> None:
        self.kinds: dict[str, _Kind] = {"messages": _Kind.MESSAGES}
        self.macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        self.keys: set[str] = set()
        self.changed = True

    def node(self, node: nodes.Node) -> None:
        """A statement and what is in it."""
        match node:
            case nodes.For(target=target, iter=over):
                kind = self.kind(over)
                if kind == _Kind.MESSAGE:
                    raise _IsWritten  # key for key
                self._bind(target, _Kind.MESSAGE if kind == _Kind.MESSAGES else _Kind.OTHER)
                self._children(node, but=(target, over))
            case nodes.Assign(target=target, node=value):
                self._bind(target, self.kind(value))
            case nodes.Output():
                for part in node.nodes:
                    if self.kind(part) > _Kind.OTHER:
                        raise _IsWritten
            case nodes.Expr():
                self.kind(node)
            case _:
                self._children(node)

    def kind(self, node: nodes.Node) -> _Kind:
        """What an expression holds; notes the keys that it reads."""
        match node:
            case nodes.Name(name=name):
                return self.kinds.get(name, _Kind.OTHER)
            case nodes.Getattr(node=nodes.Name(name="loop"), attr="previtem" | "nextitem"):
                return _Kind.MESSAGE  # of whatever loop it is
            case nodes.Getattr(node=value, attr=key) | nodes.Getitem(node=value, arg=nodes.Const(value=key)):
                return self._item(value, key)
            case nodes.Getitem(node=value, arg=arg):
                return self._at(value, arg)
            case nodes.Filter(node=value, name=name) if value is not None and self.kind(value) > _Kind.OTHER:
                return self._filtered(node, name, self.kind(value))
            case nodes.Call(node=nodes.Getattr(node=value, attr=method)) if self.kind(value) > _Kind.OTHER:
                return self._called(node, method, self.kind(value))
            case nodes.Call(node=nodes.Name(name=name)) if name in self.macros:
                return self._macro(node, self.macros[name])
            case nodes.Compare(expr=nodes.Const(value=str(key)), ops=[nodes.Operand(op="in" | "notin", expr=other)]):
                if self.kind(other) == _Kind.MESSAGE:
                    self.keys.add(key)
                return _Kind.OTHER
            case nodes.Test(node=value):
                self.kind(value)
                return _Kind.OTHER
            case nodes.And(left=left, right=right) | nodes.Or(left=left, right=right):
                return max(self.kind(left), self.kind(right))
            case nodes.Add(left=left, right=right):
                return self._of_all([left, right])
            case nodes.CondExpr(test=test, expr1=first, expr2=second):
                self.kind(test)
                return max(self.kind(branch) for branch in (first, second) if branch is not None)
            case nodes.List(items=items):
                return _Kind.MESSAGES if self._of_all(items) > _Kind.OTHER else _Kind.OTHER
            case nodes.Not(node=value):
                self.kind(value)
                return _Kind.OTHER
        self._children(node)
        return _Kind.OTHER

    def _of_all(self, parts: Iterable[nodes.Node]) -> _Kind:
        return max((self.kind(part) for part in parts), default=_Kind.OTHER)

    def _item(self, value: nodes.Node, key: Any) -> _Kind:
        kind = self.kind(value)
        if kind == _Kind.MESSAGE and isinstance(key, str):
            self.keys.add(key)
            return _Kind.OTHER
        return _Kind.MESSAGE if kind == _Kind.MESSAGES else _Kind.OTHER

    def _at(self, value: nodes.Node, arg: nodes.Node) -> _Kind:
        kind = self.kind(value)
        self.kind(arg)
        if kind == _Kind.MESSAGE:
            raise _IsWritten  # by keys that the template computes
        if kind == _Kind.MESSAGES:
            return _Kind.MESSAGES if isinstance(arg, nodes.Slice) else _Kind.MESSAGE
        return _Kind.OTHER

    def _filtered(self, node: nodes.Filter, name: str, kind: _Kind) -> _Kind:
        named = [*node.args[:1], *(keyword.value for keyword in node.kwargs if keyword.key == "attribute")]
        if name in {"selectattr", "rejectattr", "map", "sort", "groupby", "sum", "unique"}:
            self.keys.update(str(part.value).split(".")[0] for part in named if isinstance(part, nodes.Const))
        if name in _LISTS:
            return kind
        if name in _ONE:
            return _Kind.MESSAGE
        if name in _COUNTED or (name == "map" and any(keyword.key == "attribute" for keyword in node.kwargs)):
            return _Kind.OTHER
        raise _IsWritten if name in _WRITTEN else _Escapes

    def _called(self, node: nodes.Call, method: str, kind: _Kind) -> _Kind:
        if method == "get" and kind == _Kind.MESSAGE and node.args and isinstance(node.args[0], nodes.Const):
            self.keys.add(str(node.args[0].value))
            return self._of_all(node.args[1:])
        if method in ("items", "keys", "values"):
            raise _IsWritten
        raise _Escapes

    def _macro(self, node: nodes.Call, macro: nodes.Macro) -> _Kind:
        for target, value in zip(macro.args, node.args, strict=False):
            self._bind(target, self.kind(value))
        given = {keyword.key: keyword.value for keyword in node.kwargs}
        for target in macro.args:
            if target.name in given:
                self._bind(target, self.kind(given[target.name]))
        return _Kind.OTHER

    def _children(self, node: nodes.Node, but: Iterable[nodes.Node] = ()) -> None:
        for child in node.iter_child_nodes():
            if child in but:
                continue
            if not isinstance(child, nodes.Expr):
                self.node(child)
            elif self.kind(child) > _Kind.OTHER and not isinstance(node, nodes.If | nodes.Compare):
                raise _Escapes  # an argument, an operand, an entry of something

    def _bind(self, target: nodes.Node, kind: _Kind) -> None:
        if isinstance(target, nodes.Name):
            if kind > self.kinds.get(target.name, _Kind.OTHER):
                self.kinds[target.name] = kind
                self.changed = True
        elif kind > _Kind.OTHER:
            raise _Escapes  # a namespace's attribute, or several names at once
