"""The rule in the comment of every key of every config dict: read, broken and kept once.

`examples` reads the rules by code of its own, so that a rule that `lob/config.py` mistakes for
something else, or for prose, is noticed.
"""

import ast
import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lob.config import InputError, load_config, read_comments

FOLDERS = (".", "benchmarks", "examples", "training_data")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py"))]
SCRIPTS = [str(file.relative_to(ROOT)) for file in FILES if "load_config(" in file.read_text()]
KEYS = [(script, key) for script in SCRIPTS for key in read_comments(ROOT / script)]

# Values of one wrong type each, and the kinds of rules that take them nevertheless.
ODD_VALUES: list[tuple[Any, set[str]]] = [
    (None, {"None"}),
    (True, {"bool"}),
    (1, {"int", "float"}),
    (1.5, {"float"}),
    (math.nan, set()),
    ("no such word", {"str"}),
    (["no such word"], {"list"}),
    ({"a": 1}, {"dict"}),
]


def read_config(script: str) -> dict[str, Any]:
    """Return the config dict as the script defines it."""
    for node in ast.parse((ROOT / script).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "config":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{script} has no config")


def around(comparison: str, whole: bool) -> tuple[float, float]:
    """Return the last number that fulfils a comparison, and the first that does not."""
    sign, text = comparison.split()
    inwards = math.inf if sign[0] == ">" else -math.inf
    limit = int(float(text)) if whole else float(text)

    def step(towards: float) -> float:
        return limit + (1 if towards > 0 else -1) if whole else math.nextafter(limit, towards)

    return (limit, step(-inwards)) if sign.endswith("=") else (step(inwards), limit)


def examples(rule: str) -> tuple[list[Any], list[Any]]:
    """Return values that a rule allows, and values that it forbids."""
    allowed: list[Any] = []
    forbidden: list[Any] = []
    kinds = set()
    if found := re.fullmatch(r"list\[(.*?)\]( \| \[\])?( \| None)?", rule):
        good, bad = examples(found[1])
        allowed += [good] * bool(good) + [[value] for value in good]
        forbidden += [[*good, value] for value in bad]
        some_of = good and isinstance(good[0], str)
        (forbidden if some_of and not found[2] else allowed).append([])
        rule = "list" + (found[3] or "")
    alternatives = rule.split(" | ")
    for alternative in alternatives:
        kind, _, bounds = alternative.partition(" ")
        if kind in (">", ">=", "<", "<="):
            kind, bounds = "float", alternative
        kinds.add(kind)
        for comparison in bounds.split(" and ") if bounds else ():
            inside, outside = around(comparison, kind == "int")
            allowed.append(inside)
            forbidden.append(outside)
    known = {kind for _, takers in ODD_VALUES for kind in takers}
    choices = kinds - known
    allowed += [None] * ("None" in kinds) + sorted(choices)
    forbidden += [choice + "x" for choice in sorted(choices)]
    forbidden += [value for value, takers in ODD_VALUES if not takers & kinds]
    return allowed, forbidden


def load(script: str, capsys, config: dict[str, Any], *words: str) -> tuple[dict | None, str]:
    """Return a config and nothing, or None and the one line that refuses it."""
    try:
        return load_config(config, ROOT / script, words), ""
    except SystemExit as stopped:
        out, err = capsys.readouterr()
        assert stopped.code == 2 and out == "" and err.count("\n") == 1
        assert err.startswith(f"{Path(script).name}: ")
        return None, err


def as_word(key: str, value: Any) -> str:
    return f"--{key}={value!r}".replace("inf", "1e999")


def test_every_script_with_a_config_loads_it_by_the_same_line():
    assert len(SCRIPTS) >= 13 and {"fp8_ddp_trainer.py", "benchmarks/prove.py"} <= set(SCRIPTS)
    for script in SCRIPTS:
        calls = re.findall(r"^.*load_config\(.*$", (ROOT / script).read_text(), re.MULTILINE)
        assert calls == ["    config = load_config(config, __file__)"], script
        assert set(read_config(script)) == set(read_comments(ROOT / script))


@pytest.mark.parametrize(("script", "key"), KEYS)
def test_a_rule_takes_what_it_allows_and_refuses_what_it_forbids(script, key, capsys):
    """In an edited dict and from the shell, which can't give NaN and takes numbers for text."""
    default, rule, meaning = read_comments(ROOT / script)[key]
    assert rule, f"{script}: the comment of {key} begins with no rule: {meaning}"
    assert meaning and rule not in meaning
    config = read_config(script)
    allowed, forbidden = examples(rule)
    for value in allowed:
        expected = {**config, key: value}
        assert load(script, capsys, expected) == (expected, "")
        assert load(script, capsys, config, as_word(key, value)) == (expected, "")
    for value in forbidden:
        found, line = load(script, capsys, {**config, key: value})
        assert found is None and f" {key} = " in line, value
        if "nan" not in repr(value) and "str" not in rule:
            found, line = load(script, capsys, config, as_word(key, value))
            assert found is None and f" {key} = " in line, value
    print(f"{script}: {key} = {default}; rule: {rule}; meaning: {meaning}")  # seen with -s


def test_choices_are_those_of_the_code():
    from lob.model.encoder import FILLS, PRESETS
    from lob.model.masking import MASKS, MODES
    from lob.model.normalisation import SCHEMES
    from lob.training.objective import LOSSES
    from lob.training.precision import RECIPES

    trainer = read_comments(ROOT / "fp8_ddp_trainer.py")
    tester = read_comments(ROOT / "inference_testing.py")
    for rule, known in (
        (trainer["mask_mode"].rule, MODES),
        (trainer["loss"].rule, LOSSES),
        (trainer["fill"].rule, FILLS),
        (trainer["normalization"].rule, SCHEMES),
        (trainer["model_size"].rule, PRESETS),
        (trainer["fp8_recipe"].rule, {"auto", *RECIPES}),
        (tester["masks"].rule[len("list[") : -1], MASKS),
    ):
        assert set(rule.split(" | ")) == set(known)


MAINS = [script for script in SCRIPTS if "/" not in script]


@pytest.mark.parametrize("script", MAINS)
def test_a_dict_that_did_not_come_from_the_shell_is_checked_too(script):
    module = importlib.import_module(Path(script).stem)
    with pytest.raises(InputError, match="data_dir = 3 is of type int, not str"):
        module.main({**module.config, "data_dir": 3})
    with pytest.raises(InputError, match=r"unknown key 'data_dri' .* did you mean 'data_dir'"):
        module.main({**module.config, "data_dri": "training_data"})


def test_ranks_and_benchmarks_check_the_trainers_dict():
    import fp8_ddp_trainer
    from benchmarks import bench_training

    with pytest.raises(InputError, match=r"mask_perc = 1\.0 must be > 0 and < 1"):
        fp8_ddp_trainer.train(0, 1, None, {**fp8_ddp_trainer.config, "mask_perc": 1})
    with pytest.raises(InputError, match="unknown key 'batchsize'"):
        bench_training.trainer_config(bench_training.config, {"batchsize": 8})
