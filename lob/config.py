"""One flat `config` dict per script: its comments hold the rules, the shell changes values.

A script defines `config` right under its docstring. The comment of a key is `# <rule>: <meaning>`:

    config = {
        "epochs": 9,  # int >= 1: passes over the training windows
        "mask_perc": 0.25,  # > 0 and < 1: share of the values that are hidden
        "loss": "mse",  # mse | mae: what is minimised over hidden values
        "pairs": None,  # list[str] | None: pairs to train on; None: all
    }

A rule reads like a Python type:

- `int`, `float`, `str`, `bool`, `list`, `dict` and `None` are types. An int serves for a float; a
  bool is no number;
- `int >= 1` and `float > 0 and < inf` are numbers within bounds. Bounds alone mean a float. NaN
  never fits;
- `mse | mae` are texts, one of which is chosen. `|` separates whatever is allowed;
- `list[str]` and `list[int >= 1]` are lists whose items follow the rule inside;
- `list[cpu | cuda]` is a list of one or more of these texts; `list[cpu | cuda] | []` may be empty.

The rule alone decides, whether a value was edited in the dict or given in the shell. If a comment
has no rule, the default's type is the rule. A comment goes on in the next line if that line holds
nothing else and begins with `#` and three spaces.

Before its heavy imports a script has

    if __name__ == "__main__":
        config = load_config(config, __file__)

so that it answers `--help` or a wrong key before torch or numba are imported. A key that the code
below reads and the dict lacks, as one that was misspelt, is refused there too. The script ends with
`run(main, config)`, which turns `InputError` into one line on stderr and exit status 2.
`check_rules` checks a dict that did not come through `load_config`.
"""

import ast
import difflib
import functools
import math
import operator
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lob.process import INTERRUPTED, Interrupted, prepare, requests_raise
from lob.source import find_comment, find_read_keys, find_source

COMPARISONS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list, dict)} | {"None": type(None)}

NUMBER = r"-?(?:inf|[\d_]+(?:\.\d+)?(?:e-?\d+)?)"
COMPARISON = rf"[<>]=? {NUMBER}"
BOUNDED = re.compile(rf"(?:(int|float) )?({COMPARISON}(?: and {COMPARISON})*)")
LIST = re.compile(r"list\[(.+)\]")
WORD = re.compile(r"[\w.+-]+")
BETWEEN_ALTERNATIVES = re.compile(r" \| (?![^\[]*\])")  # a bar that stands in no brackets


class OneLine(Exception):
    """An error whose text is one line, also if it cites a file that holds other characters."""

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class InputError(OneLine):
    """The user's config or input is wrong.

    The text is one line with the value and the remedy; `run` exits with status 2.
    """


class CheckFailed(OneLine):
    """A program's check of its own work failed: one line of text; `run` exits with status 1."""


class Rule(NamedTuple):
    """What a value may be: of one of `kinds`, and what the other fields ask of that kind."""

    kinds: tuple[type, ...]
    bounds: str = ""  # of a number, such as "> 0 and <= 1"; "": any number
    choices: tuple[str, ...] = ()  # the texts that are allowed; (): any text
    items: "Rule | None" = None  # rule of a list's items; None: any items
    may_be_empty: bool = False  # of a list whose items are choices; other lists always may


class Comment(NamedTuple):
    """A key of a `config` dict as its script writes it."""

    default: str  # source text
    rule: str  # "": none
    meaning: str

    @property
    def text(self) -> str:
        """The whole comment."""
        return f"{self.rule}: {self.meaning}" if self.rule else self.meaning


def load_config(
    defaults: Mapping[str, Any],
    script: str | Path,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return `defaults`, changed by the `--key=value` words of `argv` (default: the command line).

    A value is a Python literal, or else text. Each value, even a default, must follow its rule. On
    `--help` the keys are printed and the program exits with status 0. If anything is wrong, one
    line is printed and the program exits with status 2.
    """
    words = sys.argv[1:] if argv is None else argv
    if argv is None:
        prepare(script)
    config = dict(defaults)
    try:
        if "--help" in words or "-h" in words:
            print(describe(script), flush=True)
            sys.exit(0)
        rules = read_rules(str(script))
        for word in words:
            key, text = split_word(word, defaults)
            config[key] = read_value(text, rules[key])
        return check_rules(config, script)
    except BrokenPipeError:  # as by `--help | head`; a normal exit would try to print again
        os._exit(1)
    except InputError as error:
        fail(script, error)


def check_rules(config: Mapping[str, Any], script: str | Path) -> dict[str, Any]:
    """Return a script's config once it has passed the rules in the script's comments.

    Ints become floats if the rule asks for floats. The script's file is read once per process.
    Raises InputError if a key is unknown or missing, or if a value breaks its rule.
    """
    rules = read_rules(str(script))
    for key in config:
        if key not in rules:
            raise InputError(f"unknown key {key!r} (= {config[key]!r}){nearest(key, rules)}")
    checked = {}
    for key, rule in rules.items():
        if key not in config:
            raise InputError(f"the config lacks the key {key!r} of {Path(script).name}")
        value = as_float(config[key], rule)
        fault = find_fault(key, value, rule)
        if fault:
            raise InputError(f"{key} = {value!r} {fault}")
        checked[key] = value
    return checked


def split_word(word: str, known: Iterable[str]) -> tuple[str, str]:
    """Split `--key=value`. Raises InputError if it has another form or the key is unknown."""
    if not word.startswith("--") or "=" not in word:
        raise InputError(f"{word!r} is not of the form --key=value (--help lists the keys)")
    key, text = word[2:].split("=", 1)
    if key not in known:
        near = nearest(key, known)
        raise InputError(f"unknown key {key!r} (= {text}){near}; --help lists the keys")
    return key, text


def read_value(text: str, rule: Rule | None) -> Any:
    """Return the value of a Python literal; the text itself if it is none or text is asked for."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if rule is not None and str in rule.kinds and type(value) not in rule.kinds:
        return text
    return value


def as_float(value: Any, rule: Rule | None) -> Any:
    """Return an int as a float if the rule asks for floats; return other values as they are."""
    if rule is None or type(value) is not int or int in rule.kinds or float not in rule.kinds:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def find_fault(key: str, value: Any, rule: Rule | None) -> str:
    """Return what is wrong with a value, in words that follow "key = value"; "" if nothing is."""
    if rule is None:
        return ""
    may_be_none = type(None) in rule.kinds
    fits = isinstance(value, rule.kinds)
    if isinstance(value, bool):  # a bool is an int to isinstance
        fits = bool in rule.kinds
    if rule.choices and (isinstance(value, str) or not fits):
        if value in rule.choices:
            return ""
        allowed = [*map(repr, rule.choices), *["None"] * may_be_none]
        return f"is none of {', '.join(allowed)}{nearest(value, rule.choices)}"
    if not fits:
        kinds = " or ".join(name for name, kind in TYPES.items() if kind in rule.kinds)
        return f"is of type {type(value).__name__}, not {kinds}{example(key, value, rule)}"
    if is_number(value) and not is_within(value, rule.bounds):
        return f"must be {rule.bounds or 'a number'}{' or None' * may_be_none}"
    if isinstance(value, list) and rule.items is not None:
        if not value and rule.items.choices and not rule.may_be_empty:
            return f"must be some of {', '.join(rule.items.choices)}"
        return find_fault_of_items(value, rule.items)
    return ""


def find_fault_of_items(values: list, rule: Rule) -> str:
    """Return what is wrong with the first item that breaks the items' rule; "" if none does."""
    for item in values:
        fault = find_fault("", as_float(item, rule), rule)
        if fault and rule.choices:
            return f"must be some of {', '.join(rule.choices)}{nearest(item, rule.choices)}"
        if fault and rule.kinds == (str,):
            return f"holds {item!r}, which is no text: write it in quotes, '{item}'"
        if fault:
            return f"holds {item!r}, which {fault}"
    return ""


def example(key: str, value: Any, rule: Rule) -> str:
    """Return how a bool, an int or a list is written in the shell, if the rule asks for one.

    Return "" if no value that the rule allows can be read out of `value`.
    """
    if bool in rule.kinds:
        return f": write --{key}=True or --{key}=False"
    if list in rule.kinds and rule.items is not None:
        items = as_items(value, rule.items)
        if items and not find_fault_of_items(items, rule.items):
            return f': write --{key}="{items}"'
    if int in rule.kinds and isinstance(value, float) and value.is_integer():
        return f": write --{key}={int(value)}" if is_within(value, rule.bounds) else ""
    return ""


def as_items(value: Any, rule: Rule) -> list:
    """Return the items that a value was meant to list, such as both words of "[A, B]"."""
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else [value]
    words = [word.strip(" '\"") for word in value.strip(" []()").split(",")]
    return [read_value(word, rule) for word in words if word]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_within(value: float, bounds: str) -> bool:
    """Whether a number fulfils all of `bounds`, such as "> 0 and <= 1"; NaN never does."""
    if value != value:  # NaN; `math.isnan` fails for an int that no float can hold
        return False
    comparisons = [comparison.split() for comparison in bounds.split(" and ") if comparison]
    return all(COMPARISONS[sign](value, float(limit)) for sign, limit in comparisons)


def nearest(name: Any, known: Any) -> str:
    """Return ", did you mean ...?" with the closest of `known`; "" if none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 window" or "2 windows"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@functools.cache
def read_rules(script: str) -> dict[str, Rule | None]:
    """Return the rule of each key of the script's `config` dict; None: any value is allowed.

    Raises InputError if the dict lacks a key that the script's code reads, or holds one that the
    code does not read.
    """
    tree, comments = read_script(script)
    read = find_read_keys(tree)
    for key in comments:
        if read and key not in read:
            lacking = [name for name in read if name not in comments]
            near = nearest(key, lacking) or nearest(key, read)
            raise InputError(f"unknown key {key!r} (= {comments[key].default}){near}")
    for key in read:
        if key not in comments:
            raise InputError(f"the config lacks the key {key!r} of {Path(script).name}")
    rules = {}
    for key, found in comments.items():
        rules[key] = parse_rule(found.rule) or rule_of_default(found.default)
    return rules


def parse_rule(text: str) -> Rule | None:
    """Return the rule that `text` states; None if it is no rule but words for the reader."""
    kinds: list[type] = []
    choices: list[str] = []
    bounds, items, may_be_empty = "", None, False
    for part in BETWEEN_ALTERNATIVES.split(text):
        if part in TYPES:
            kinds.append(TYPES[part])
        elif (found := BOUNDED.fullmatch(part)) and not bounds:
            kinds.append(int if found[1] == "int" else float)
            bounds = found[2]
        elif found := LIST.fullmatch(part):
            kinds.append(list)
            items = parse_rule(found[1])
            if items is None:
                return None
        elif part == "[]":
            may_be_empty = True
        elif WORD.fullmatch(part):
            choices.append(part)
        else:
            return None
    if kinds == [type(None)] and not choices:  # words, as in "None: all pairs"
        return None
    if len(choices) == 1 and not kinds:  # words, as in "note: ..."
        return None
    if may_be_empty and list not in kinds:
        return None
    return Rule((*kinds, *[str] * bool(choices)), bounds, tuple(choices), items, may_be_empty)


def rule_of_default(source: str) -> Rule | None:
    """Return the type of a default as a rule; None if the default is None or no literal."""
    try:
        default = ast.literal_eval(source)
    except ValueError:
        return None
    return None if default is None else Rule((type(default),))


def read_comments(script: str | Path) -> dict[str, Comment]:
    """Return default, rule and meaning of each key of the script's `config` dict."""
    return read_script(script)[1]


def read_script(script: str | Path) -> tuple[ast.Module, dict[str, Comment]]:
    """Return a script's code, and default, rule and meaning of each key of its `config` dict.

    Raises InputError if the dict is written in another way than a key a line, or holds a key twice.
    """
    source = read_source(script)
    tree = ast.parse(source)
    node = find_dict(tree, script)
    lines = source.encode().splitlines()  # the positions of a node count bytes
    found = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            written = "**" if key is None else ast.unparse(key)
            raise InputError(f"the config holds {written}, which is no key in quotes: write one")
        if key.value in found:
            raise InputError(f"the config holds the key {key.value!r} twice: remove one of them")
        assert value.end_lineno and value.end_col_offset
        comment = find_comment(lines[value.end_lineno - 1 :], value.end_col_offset)
        found[key.value] = Comment(find_source(lines, value), *split_comment(comment))
    return tree, found


def read_source(script: str | Path) -> str:
    """Return a script's source. Raises InputError if there is none, as in a frozen program."""
    try:
        return Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(
            f"{script} can't be read, but its comments hold the config's rules: run it from source"
        ) from None


def find_dict(tree: ast.Module, script: str | Path) -> ast.Dict:
    """Return the dict literal that a script's code assigns to `config`."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id == "config":
            assert isinstance(node, ast.Assign)
            if isinstance(node.value, ast.Dict):
                return node.value
            break
    raise InputError(
        f"{Path(script).name} has no dict of its own named config: write config = {{...}}, "
        "a key a line"
    )


def split_comment(comment: str) -> tuple[str, str]:
    """Split a comment into rule and meaning; the rule is "" if the comment begins with none."""
    rule, colon, meaning = comment.partition(": ")
    return (rule, meaning) if colon and parse_rule(rule) else ("", comment)


def describe(script: str | Path) -> str:
    """Return the script's docstring and a line for each key: name, default, rule, meaning."""
    doc = ast.get_docstring(ast.parse(read_source(script))) or ""
    comments = read_comments(script)
    words = {key: f"--{key}={found.default}" for key, found in comments.items()}
    width = max(len(word) for word in words.values())
    keys = "\n".join(f"  {words[key]:<{width}}  {found.text}" for key, found in comments.items())
    usage = f"python {Path(script).name} --key=value"
    return f"{doc}\n\nKeys of the config dict: default, rule, meaning ({usage}):\n\n{keys}"


def do_each(work: Callable[[str], None], pairs: Sequence[str], over: Callable = map) -> None:
    """Do `work` for each pair, and go on with the others if it fails for one.

    `over` maps a function over a list, such as `map` or an executor's. If there are several pairs,
    each failure is printed on stderr when it happens. In the end one error is raised for all of
    them: InputError if each was one, else CheckFailed.
    """
    failed: list[Exception] = []

    def attempt(pair: str) -> None:
        try:
            work(pair)
        except BrokenPipeError:  # no one reads what is printed
            raise
        except (InputError, CheckFailed, OSError) as error:
            failed.append(error)
            if len(pairs) > 1:
                script = Path(sys.argv[0]).name
                print(f"{script}: {pair}: {reason(error)}", file=sys.stderr, flush=True)

    list(over(attempt, pairs))
    if failed:
        kind = InputError if all(isinstance(error, InputError) for error in failed) else CheckFailed
        if len(pairs) == 1:
            raise kind(f"{pairs[0]}: {reason(failed[0])}")
        raise kind(f"{len(failed)} of {len(pairs)} pairs failed, the lines above say why")


def reason(error: Exception) -> str:
    """Return an error's text, without the number that a failed system call has."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def fail(script: str | Path, error: BaseException, status: int = 2) -> NoReturn:
    """Print one line on stderr and exit."""
    print(f"{Path(script).name}: {error}", file=sys.stderr)
    sys.exit(status)


def run(main: Callable[[dict[str, Any]], int | None], config: dict[str, Any]) -> NoReturn:
    """Call `main(config)` and exit with its status.

    Exits with one line and status 2 on InputError; 1 on CheckFailed, a full disk and too little
    memory; 130 on Ctrl-C, 143 on SIGTERM and 129 on SIGHUP. Other exceptions are our own mistakes
    and pass with their traceback.
    """
    script = sys.argv[0]
    try:
        with requests_raise():
            status = main(config)
        if sys.stdout is not None:
            sys.stdout.flush()
    except InputError as error:
        fail(script, error)
    except CheckFailed as error:
        fail(script, error, 1)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        if error.filename is None and error.strerror is None:  # raised by Python code
            raise
        fail(script, RuntimeError(reason(error)), 1)
    except MemoryError as error:
        fail(script, RuntimeError(f"this machine's memory is used up: {error or 'no more'}"), 1)
    except KeyboardInterrupt as error:
        status = 128 + error.number if isinstance(error, Interrupted) else INTERRUPTED
        fail(script, RuntimeError("interrupted; unfinished output was not put in place"), status)
    sys.exit(status or 0)
