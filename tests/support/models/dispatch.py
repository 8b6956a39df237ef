"""Finds code that dispatches on a name and takes one kind for all the names that it does not know.

A vocabulary is a closed set of names: `Literal["a", "b"]` somewhere in the packages. Code that asks which of them a
value is has to name them all and fail for any other: a `match` that ends in `assert_never` (or raises), or a dict,
indexed. An `if`, a ternary or `.get` falls through: a name that is added later silently becomes the last kind.
Asking whether something is there at all ("none") decides nothing between kinds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NOT_A_KIND = {"none", "auto", "cpu"}
_FAILING = (ast.Raise,)


class Finding(NamedTuple):
    """One place, and what is wrong there."""

    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"


def vocabulary(trees: dict[Path, ast.Module]) -> frozenset[str]:
    """Return every name of every `Literal` of at least two names."""
    names: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                members = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                words = {m.value for m in members if isinstance(m, ast.Constant) and isinstance(m.value, str)}
                names |= words if len(words) > 1 else set()
    return frozenset(names - _NOT_A_KIND)


def find_falling_through(path: Path, tree: ast.Module, names: frozenset[str]) -> Iterator[Finding]:
    """Yield the places of one module where a name outside the vocabulary would be taken for one inside."""
    tables = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and _is_table(node.value, names)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        match node:
            case ast.IfExp() if subjects := _asked(node.test, names):
                yield Finding(path, node.lineno, f"ternary on {subjects[0]}")
            case ast.If() if (subjects := _asked(node.test, names)) and _chooses(node):
                yield Finding(path, node.lineno, f"if on {subjects[0]}")
            case ast.Match() if _has_names(node) and not _fails(node.cases[-1]):
                yield Finding(path, node.lineno, f"match on {ast.unparse(node.subject)} does not fail at its end")
            case ast.Call(func=ast.Attribute(attr="get", value=table), args=[_, *_]) if (
                isinstance(table, ast.Name) and table.id in tables
            ) or _is_table(table, names):
                yield Finding(path, node.lineno, f".get of the table {ast.unparse(table)[:40]}")


def _asked(test: ast.expr, names: frozenset[str]) -> list[str]:
    """Return the subjects that a condition compares with names."""
    found = []
    for node in ast.walk(test):
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
            sides = [node.left, node.comparators[0]]
            words = [s for s in sides if isinstance(s, ast.Constant) and s.value in names]
            found += [ast.unparse(s) for s in sides if s not in words] if words else []
    return found


def _chooses(node: ast.If) -> bool:
    """Whether both ways of an `if` go on with a result: neither ends in an error, and the first returns one."""
    if _ends_in_error(node.body) or (node.orelse and _ends_in_error(node.orelse)):
        return False
    if node.orelse:
        return True
    last = node.body[-1]
    return isinstance(last, ast.Return) and last.value is not None


def _ends_in_error(body: list[ast.stmt]) -> bool:
    last = body[-1]
    if isinstance(last, ast.If):
        return _ends_in_error(last.body) and bool(last.orelse) and _ends_in_error(last.orelse)
    return isinstance(last, _FAILING) or (
        isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and "assert_never" in ast.unparse(last.value)
    )


def _has_names(node: ast.Match) -> bool:
    return any(isinstance(value, ast.MatchValue) for case in node.cases for value in ast.walk(case.pattern))


def _fails(case: ast.match_case) -> bool:
    return case.guard is None and _takes_all(case.pattern) and _ends_in_error(case.body)


def _takes_all(pattern: ast.pattern) -> bool:
    if isinstance(pattern, ast.MatchSequence):
        return all(map(_takes_all, pattern.patterns))
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _is_table(value: ast.expr | None, names: frozenset[str]) -> bool:
    if not isinstance(value, ast.Dict) or len(value.keys) < 2:
        return False
    return all(isinstance(key, ast.Constant) and key.value in names | _NOT_A_KIND for key in value.keys)
