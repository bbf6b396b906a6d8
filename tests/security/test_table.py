"""No id of the threat model is forgotten, and the table of what other tests prove is true."""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

from .. import security

TESTS = Path(__file__).parents[1]
ROWS = re.findall(r"^     (\S+)::(\w+)$", security.__doc__ or "", re.M)
IDS = [f"A{number:02}" for number in range(1, 46)]


@lru_cache
def proofs_in(path: Path) -> dict[str, str]:
    """The tests of a file with their docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {one.name: ast.get_docstring(one) or "" for one in functions if one.name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), ROWS)
def test_what_the_table_names_is_there(file: str, name: str) -> None:
    """A test that was renamed or taken away is noticed."""
    assert name in proofs_in(TESTS / file)


@pytest.mark.parametrize("number", IDS)
def test_each_attack_has_a_test(number: str) -> None:
    """In this folder, in the table, or by chance (``tests/fuzz``)."""
    table = (security.__doc__ or "").partition(f"\n{number}  ")[2].partition("\nA")[0]
    files = [*(TESTS / "security").glob("test_*.py"), *(TESTS / "fuzz").glob("test_*.py")]
    told = [text for path in files for proof in proofs_in(path).items() for text in proof]
    told += [path.read_text("utf-8").partition("\n")[0] for path in files]
    assert "::" in table or any(number in text or f"_{number.lower()}_" in text for text in told)
