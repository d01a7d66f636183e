"""No error of ours says less than what happened, to which value, by which rule, and what to do.

Reads the sources: a `raise` that no test reaches is held to the same rule.
"""

import ast
from pathlib import Path

import pytest

import rdmakit.errors

PACKAGE = Path(rdmakit.errors.__file__).parent
# Built from a completion or a report, which fill these parts in: their own tests look at the result.
BY_THE_CALLER = {"CompletionError", "DeviceFault", "HangError", "CompileError", "RdmakitError"}
HELD = set(rdmakit.errors.__all__) - BY_THE_CALLER


def lacking(source: str) -> list[str]:
    """Calls that construct an error without a rule or a remedy, or with neither a value nor a fact nor a name in it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in HELD):
            continue
        parts = {keyword.arg for keyword in node.keywords}
        if None in parts:  # **parts: made elsewhere
            continue
        missing = [part for part in ("rule", "remedy") if part not in parts]
        named = any(isinstance(argument, ast.JoinedStr) for argument in node.args)
        if not parts - {"rule", "remedy"} and not named:
            missing.append("value")
        found += [f"line {node.lineno}: {node.func.id} lacks {part}" for part in missing]
    return found


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix()
)
def test_every_error_names_value_rule_and_remedy(path):
    assert lacking(path.read_text()) == []


def test_the_reader_of_sources_sees_what_is_missing():
    assert lacking("raise BadArgument('x', value=1, rule='r', remedy='m')") == []
    assert lacking("raise BadState(f'{x} is closed', rule='r', remedy='m')") == []
    assert lacking("raise BadArgument('x')") == [f"line 1: BadArgument lacks {p}" for p in ("rule", "remedy", "value")]
    assert lacking("raise QueueFull('x', value=1, rule='r')") == ["line 1: QueueFull lacks remedy"]
    assert lacking("raise ValueError('x')") == []
