"""Reads an argparse parser out of Python source, without running it.

Understands what ``comfy/cli_args.py`` has used since 2023: options on the parser, on
groups and on exclusive groups, literal choices, choices held in a constant, and values of
an ``Enum`` given as ``type``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

SWITCHES = frozenset({"store_true", "store_false", "store_const", "append_const", "count"})
EXITING = frozenset({"help", "version"})

Flags = dict[str, tuple[str, ...]]


def options_from_source(source: str) -> tuple[Flags, dict[str, str], tuple[frozenset[str], ...]]:
    """Options with their choices, their arity (argparse's nargs, "0" for a switch), groups.

    Everything is empty when the text is not Python or when an option's name is computed,
    for then the table would be incomplete.
    """
    reader = _Reader()
    try:
        reader.read(ast.parse(source))
    except (SyntaxError, ValueError, _ComputedError):
        return {}, {}, ()
    groups = tuple(frozenset(names) for names in reader.groups.values() if len(names) > 1)
    return reader.flags, reader.arity, groups


class _ComputedError(Exception):
    """A value is not a literal."""


class _Reader:
    def __init__(self) -> None:
        self.flags: Flags = {}
        self.arity: dict[str, str] = {}
        self.groups: dict[str, list[str]] = {}  # variable of an exclusive group → options
        self._constants: dict[str, tuple[str, ...]] = {}

    def read(self, tree: ast.Module) -> None:
        for node in _in_order(tree):
            if isinstance(node, ast.ClassDef):
                self._note_enum(node)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._note_assignment(node.targets[0].id, node.value)
            elif isinstance(node, ast.Call) and _method(node) == "add_argument":
                self._note_option(node)

    def _note_enum(self, node: ast.ClassDef) -> None:
        values = [
            str(item.value.value)
            for item in node.body
            if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
        ]
        if values and any("Enum" in ast.unparse(base) for base in node.bases):
            self._constants[node.name] = tuple(values)

    def _note_assignment(self, name: str, value: ast.expr) -> None:
        if isinstance(value, ast.Call):
            if _method(value) == "add_mutually_exclusive_group":
                self.groups[name] = []
        elif isinstance(value, ast.List | ast.Tuple):
            self._constants[name] = _literals(value)

    def _note_option(self, node: ast.Call) -> None:
        names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        if len(names) != len(node.args):
            raise _ComputedError
        keywords = {k.arg: k.value for k in node.keywords if k.arg}
        action = _text(keywords.get("action"))
        if action in EXITING:
            return
        for name in names:
            if not isinstance(name, str) or not name.startswith("-"):
                continue
            self.flags[name] = self._choices(keywords)
            self.arity[name] = _arity(action, keywords.get("nargs"))
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id in self.groups:
                self.groups[owner.id].append(name)

    def _choices(self, keywords: dict[str, ast.expr]) -> tuple[str, ...]:
        choices = keywords.get("choices")
        if isinstance(choices, ast.List | ast.Tuple | ast.Set):
            return _literals(choices)
        for candidate in (choices, keywords.get("type")):
            if isinstance(candidate, ast.Name) and candidate.id in self._constants:
                return self._constants[candidate.id]
        return ()


def _in_order(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node in source order, without the bodies of functions: they are not run."""
    for child in ast.iter_child_nodes(tree):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _in_order(child)


def _method(node: ast.Call) -> str | None:
    return node.func.attr if isinstance(node.func, ast.Attribute) else None


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _literals(node: ast.List | ast.Tuple | ast.Set) -> tuple[str, ...]:
    """The elements as text; nothing when one is computed, for then all may be allowed."""
    values = [e.value for e in node.elts if isinstance(e, ast.Constant)]
    return tuple(str(v) for v in values) if len(values) == len(node.elts) else ()


def _arity(action: str | None, nargs: ast.expr | None) -> str:
    if action in SWITCHES:
        return "0"
    return str(nargs.value) if isinstance(nargs, ast.Constant) else "1"
