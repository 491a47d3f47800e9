"""Names and docstrings as in the house's voice: the field's words, and noun phrases or imperatives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import vmamba

SOURCES = sorted(Path(vmamba.__file__).parent.rglob("*.py"))
#: Translations of words that the field has, and riddles.
WORDS = {"least", "most", "share", "shares", "side", "joined", "upright", "suppress", "told", "found"}


def names(tree: ast.Module) -> Iterator[str]:
    """Everything that is given a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def test_names() -> None:
    assert len(SOURCES) > 150
    for path in SOURCES:
        for name in names(ast.parse(path.read_text(encoding="utf-8"))):
            words = set(re.findall("[a-z]+", re.sub("([A-Z])", r"_\1", name).lower()))
            assert not words & WORDS, f"{path}: {name}"


def test_docstrings() -> None:
    for path in SOURCES:
        for text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            assert not re.match(r"(What|Whether|Where|How|Who|Which|When)\b", text), f"{path}: {text.splitlines()[0]}"
