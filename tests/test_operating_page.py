"""The operator's page knows every line that the server writes to its log and every status that it answers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from kaem import errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
TREES = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "serve").glob("*.py")}


def _log_lines():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and isinstance(node.func.value, ast.Name) and node.func.value.id == "_log":
                yield pytest.param(node.args[0].value, id=f"{name}:{node.lineno}")


@pytest.mark.parametrize("line", list(_log_lines()))
def test_every_line_of_the_log_is_explained(line):
    fixed = max((part.strip(" :,'\"") for part in re.split(r"%[-.\d]*[a-z]", line)), key=len)
    assert fixed in PAGE


def test_every_status_is_explained():
    named = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "StatusCode"
        and node.attr != "OK"
    }
    classes = (value for value in vars(errors).values() if isinstance(value, type))
    named |= {cls.grpc_status for cls in classes if issubclass(cls, errors.KaemError)}
    assert named - {name for name in named if re.search(rf"^\| [^|]*\b{name}\b", PAGE, flags=re.MULTILINE)} == set()
