"""docs/troubleshooting.md knows every message, and every key that a message names is there."""

import ast
import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from conftest import ROOT

from lob.config import read_rules

FILES = [
    *sorted((ROOT / "lob").rglob("*.py")),
    *sorted(ROOT.glob("*.py")),
    *sorted((ROOT / "training_data").glob("*.py")),
    *sorted((ROOT / "examples").rglob("*.py")),
]
ERRORS = ("InputError", "CheckFailed", "WrongSymbol")
OF_THE_SYSTEM = {"No space left on device"}
OTHER_KEYS = {"key", "help", "master_port"}  # of the explanation of keys, and of torchrun
ANY = "\0"  # in place of what a message takes from the input


class Text(NamedTuple):
    place: str
    words: str


def join(node: ast.AST) -> str:
    """Return the words of a message, with ANY for each part that is not written in it."""
    match node:
        case ast.Constant(value=str(words)):
            return words
        case ast.JoinedStr(values=parts):
            return "".join(map(join, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return join(left) + join(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{join(body)}{ANY}{join(orelse)}"
    return ANY


@functools.cache
def find_nodes() -> list[tuple[str, ast.AST]]:
    """Return each node of the programs' code, and its file."""
    return [
        (str(file.relative_to(ROOT)), node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
    ]


def find_messages() -> Iterator[Text]:
    for file, node in find_nodes():
        match node:
            case ast.Call(func=ast.Name(id=name), args=[message, *_]) if name in ERRORS:
                yield Text(f"{file}:{node.lineno}", join(message))


def find_texts() -> set[str]:
    """Return all that the programs may print: every text in their code."""
    return {
        join(node) for _, node in find_nodes() if isinstance(node, ast.Constant | ast.JoinedStr)
    }


def find_parts() -> list[str]:
    """Return the parts of messages by which the tables are looked up."""
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)
    return [part for row in rows for part in re.findall(r"`([^`]+)`", row)]


def test_every_message_has_its_row() -> None:
    """A message with fewer words of its own than four is made elsewhere, where it is looked at."""
    parts = find_parts()
    assert len(parts) > 200
    unknown = [
        f"{place}: {words.replace(ANY, '...')}"
        for place, words in find_messages()
        if len(words.replace(ANY, " ").split()) > 3 and not any(part in words for part in parts)
    ]
    assert not unknown, "\n".join(["no row in docs/troubleshooting.md:", *unknown])


def test_every_row_is_of_a_message() -> None:
    texts = find_texts()
    stale = [part for part in find_parts() if not any(part in text for text in texts)]
    assert set(stale) <= OF_THE_SYSTEM


def test_every_key_that_a_message_names_is_there() -> None:
    scripts = [file for file in FILES if re.search(r"^config = \{", file.read_text(), re.M)]
    keys = {key for script in scripts for key in read_rules(script)}
    assert len(keys) > 100
    named = [
        (place, key) for place, words in find_messages() for key in re.findall(r"--(\w+)", words)
    ]
    assert len(named) > 60
    assert not [(place, key) for place, key in named if key not in keys | OTHER_KEYS]
