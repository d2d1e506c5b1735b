"""A script's source: which keys of its config the code reads, and what stands beside each key."""

import ast
from collections.abc import Iterable, Sequence

CONTINUATION = b"#   "  # begins a line that goes on with the comment of the key above it


def find_read_keys(tree: ast.Module) -> list[str]:
    """Return the keys that a script's code reads from `config` or `self.config`, in order.

    They stand between the brackets, as in `config["epochs"]`, or in a tuple that a loop goes over,
    as in `[config[key] for key in KEYS]`.
    """
    nodes = list(ast.walk(tree))
    tuples: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            tuples.setdefault(node.targets[0].id, []).append(node.value)

    def texts(node: ast.expr) -> list[str]:
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else []
        if isinstance(node, ast.Starred):
            return texts(node.value)
        if isinstance(node, ast.Name):  # of a tuple, unless the name means several things
            values = tuples.get(node.id, [])
            is_tuple = len(values) == 1 and isinstance(values[0], ast.Tuple)
            return texts(values[0]) if is_tuple else []
        if isinstance(node, ast.IfExp):
            return texts(node.body) + texts(node.orelse)
        parts = node.elts if isinstance(node, ast.Tuple | ast.List) else []
        return [text for part in parts for text in texts(part)]

    def indices(nodes: Iterable[ast.AST]) -> list[ast.expr]:
        found = [node for node in nodes if isinstance(node, ast.Subscript)]
        return [node.slice for node in found if name_of(node.value) == "config"]

    all_indices = indices(nodes)
    names = {name_of(index) for index in all_indices} - {""}
    found = [text for index in all_indices for text in texts(index)]
    for node in nodes:
        loops = [node] if isinstance(node, ast.For) else getattr(node, "generators", [])
        for loop in loops:
            name = name_of(loop.target)
            if name in names and name in map(name_of, indices(ast.walk(node))):
                found += texts(loop.iter)
    return list(dict.fromkeys(found))


def name_of(node: ast.expr) -> str:
    """Return the last part of a name such as `config` or `self.config`; "" if it is none."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def find_source(lines: Sequence[bytes], node: ast.expr) -> str:
    """Return a node's source text.

    `ast.get_source_segment` would do, but splits the whole file for each node.
    """
    rows = list(lines[node.lineno - 1 : node.end_lineno])
    rows[-1] = rows[-1][: node.end_col_offset]
    rows[0] = rows[0][node.col_offset :]
    return b"\n".join(rows).decode()


def find_comment(lines: Sequence[bytes], end: int) -> str:
    """Return the comment after `end` bytes of the first line, with the lines that continue it."""
    first = lines[0][end:].decode().lstrip(" ,)")
    if not first.startswith("#"):
        return ""
    parts = [first]
    for line in lines[1:]:
        if not line.lstrip().startswith(CONTINUATION):
            break
        parts.append(line.decode())
    return " ".join(part.strip().lstrip("# ") for part in parts)
