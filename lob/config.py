"""One flat `config` dict a script, overridden from the shell: `--key=value`, `--help`, one-line errors.

A script defines `config` right under its docstring, one comment a line, and says before its heavy imports:

    if __name__ == "__main__":
        config = load_config(config, __file__, optional={"pairs": list}, choices={"loss": ("mse", "mae")},
                             bounds={"epochs": ">= 1", "mask_perc": "> 0 and < 1"})

so that `--help` and a misspelt key are answered before torch or numba load. It ends with
`run(main, config)`, which turns `InputError` into one line on stderr and exit status 2.
"""

import ast
import difflib
import io
import operator
import os
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


class InputError(Exception):
    """The user's configuration or input is at fault: one line that holds the value and the remedy; exit status 2."""


class CheckFailed(Exception):
    """A program's check of its own work failed: one line; exit status 1."""


def load_config(
    defaults: Mapping[str, Any],
    script: str | Path,
    optional: Mapping[str, type | tuple[type, ...]] | None = None,
    choices: Mapping[str, Sequence[Any]] | None = None,
    bounds: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return `defaults` with the `--key=value` words of `argv` (default: the command line's) put in.

    A value is a Python literal, or else text. It must have its default's type (an int serves for a float); a key
    whose default is None takes None and what `optional` names. `choices` lists the values a key may have, `bounds`
    says what its number must be, such as "> 0 and <= 1"; None may stay, NaN never fits.
    Prints the keys and exits 0 on `--help`; prints one line and exits 2 on a word that does not fit.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--help" in words or "-h" in words:
        try:
            print(describe(script), flush=True)
        except BrokenPipeError:  # --help | head
            os._exit(1)
        sys.exit(0)
    config = dict(defaults)
    try:
        for word in words:
            key, value = parse_override(word, defaults)
            check_value(key, value, defaults[key], (optional or {}).get(key, object))
            config[key] = float(value) if type(defaults[key]) is float else value
        for key, allowed in (choices or {}).items():
            if config[key] not in allowed:
                near = nearest(config[key], allowed)
                raise InputError(f"{key} = {config[key]!r} is none of {', '.join(map(repr, allowed))}{near}")
        for key, wanted in (bounds or {}).items():
            if config[key] is not None and not is_within(config[key], wanted):
                raise InputError(f"{key} = {config[key]} must be {wanted}{' or None' * (defaults[key] is None)}")
    except InputError as error:
        fail(script, error)
    return config


def parse_override(word: str, defaults: Mapping[str, Any]) -> tuple[str, Any]:
    """Split `--key=value`; InputError where it has another form or the key is unknown."""
    if not word.startswith("--") or "=" not in word:
        raise InputError(f"{word!r} is not of the form --key=value (--help lists the keys)")
    key, text = word[2:].split("=", 1)
    if key not in defaults:
        raise InputError(f"unknown key {key!r} (= {text}){nearest(key, defaults)}; --help lists the keys")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text
    return key, text if isinstance(defaults[key], str) and not isinstance(value, str) else value


def check_value(key: str, value: Any, default: Any, optional: type | tuple[type, ...]) -> None:
    """Raise InputError unless `value` has the type of `default`, or `optional`'s where the default is None."""
    kinds: tuple[type, ...] = optional if isinstance(optional, tuple) else (optional,)
    if default is not None:
        kinds = (type(default),)
    if (default is None and value is None) or (type(value) is bool and bool in kinds):
        return
    if default is None and isinstance(value, list) and (odd := [item for item in value if not isinstance(item, str)]):
        raise InputError(f"{key} = {value!r} holds {odd[0]!r}, which is no text: write it in quotes, '{odd[0]}'")
    if (isinstance(value, kinds) and type(value) is not bool) or (float in kinds and type(value) is int):
        return
    wanted = " or ".join(kind.__name__ for kind in kinds) + (" or None" if default is None else "")
    example = ""
    if bool in kinds:
        example = f": write --{key}=True or --{key}=False"
    elif list in kinds and isinstance(value, str):
        example = f': write --{key}="{[value]}"'
    raise InputError(f"{key} = {value!r} is of type {type(value).__name__}, not {wanted}{example}")


def is_within(value: float, bounds: str) -> bool:
    """Whether a number fulfils each of the comparisons in `bounds`, such as "> 0 and <= 1"."""
    comparisons = (comparison.split() for comparison in bounds.split(" and "))
    return all(COMPARISONS[sign](value, float(limit)) for sign, limit in comparisons)


def nearest(name: Any, known: Any) -> str:
    """Return ', did you mean ...?' for the closest of `known`, or nothing."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def counted(number: int, noun: str) -> str:
    """Return '1 window', '2 windows'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def read_comments(script: str | Path) -> dict[str, tuple[str, str]]:
    """Map each key of the script's `config` dict to its default's source text and its comment."""
    source = Path(script).read_text()
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == "config":
            assert isinstance(node.value, ast.Dict), f"config in {script} is not a dict literal"
            found = {}
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                assert isinstance(key, ast.Constant)
                text = ast.get_source_segment(source, value) or lines[value.lineno - 1]
                found[str(key.value)] = (text, comments.get(value.end_lineno or value.lineno, ""))
            return found
    raise AssertionError(f"{script} defines no config dict")


def describe(script: str | Path) -> str:
    """Return the script's docstring and a line a key: name, default, comment."""
    doc = ast.get_docstring(ast.parse(Path(script).read_text())) or ""
    rows = read_comments(script)
    width = max(len(f"--{key}={text}") for key, (text, _) in rows.items())
    keys = "\n".join(f"  {f'--{key}={text}':<{width}}  {comment}" for key, (text, comment) in rows.items())
    return f"{doc}\n\nKeys of the config dict, with their defaults (python {Path(script).name} --key=value):\n\n{keys}"


def do_each(work: Callable[[str], None], pairs: Sequence[str], over: Callable = map) -> None:
    """Do `work` for each pair, by `over` (a mapping of a function over a list), also where it fails for some.

    Of several pairs each that fails gets its line on stderr as it fails, and the error raised in the end tells how
    many: InputError where all of these were, else CheckFailed.
    """
    failed: list[Exception] = []

    def attempt(pair: str) -> None:
        try:
            work(pair)
        except (InputError, CheckFailed, OSError) as error:
            failed.append(error)
            if len(pairs) > 1:
                print(f"{Path(sys.argv[0]).name}: {pair}: {reason(error)}", file=sys.stderr, flush=True)

    list(over(attempt, pairs))
    if failed:
        kind = InputError if all(isinstance(error, InputError) for error in failed) else CheckFailed
        if len(pairs) == 1:
            raise kind(f"{pairs[0]}: {reason(failed[0])}")
        raise kind(f"{len(failed)} of {len(pairs)} pairs failed, the lines above say why")


def reason(error: Exception) -> str:
    """Return an error's text; of a failed system call what failed and the file, without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def fail(script: str | Path, error: BaseException, status: int = 2) -> NoReturn:
    """Print one line and exit."""
    print(f"{Path(script).name}: {error}", file=sys.stderr)
    sys.exit(status)


def run(main: Callable[[dict[str, Any]], int | None], config: dict[str, Any]) -> NoReturn:
    """Call `main(config)` and exit with its status; one line and status 2 for InputError, 1 for a full disk."""
    try:
        status = main(config)
    except InputError as error:
        fail(sys.argv[0], error)
    except CheckFailed as error:
        fail(sys.argv[0], error, 1)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        fail(sys.argv[0], RuntimeError(reason(error)), 1)
    except KeyboardInterrupt:
        fail(sys.argv[0], RuntimeError("interrupted; unfinished output was not put in place"), 130)
    sys.exit(status or 0)
