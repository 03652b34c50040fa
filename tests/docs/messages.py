"""The messages that the sources can raise, read from their syntax: what is filled in stands as an ellipsis."""

from __future__ import annotations

import ast
from pathlib import Path

GAP = "…"


def text(node: ast.AST) -> str:
    """A string expression with its gaps."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(v) for v in node.values)
    if isinstance(node, ast.FormattedValue):
        return GAP + _noun(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left) + text(node.right)
    return GAP


def _noun(value: ast.AST) -> str:
    """The noun, in the plural, behind a number that `counted` says."""
    if not isinstance(value, ast.Call) or getattr(value.func, "id", "") != "counted":
        return ""
    words = [a.value for a in value.args[1:] if isinstance(a, ast.Constant)]
    return f" {words[1] if len(words) > 1 else f'{words[0]}s'}" if words else ""


def messages(source: Path) -> set[str]:
    """Every string of the sources that may be a message: whole expressions, gaps for what is filled in."""
    found = set()
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp) and " " in (said := text(node)):
                found.add(said)
    return found
