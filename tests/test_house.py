"""The rule of the house, read from the imports: scripts tell, rooms do (CONTRIBUTING.md)."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# A room imports only rooms of the floors below its own; of its own floor only itself.
FLOORS = (
    ("process",),
    ("source",),
    ("config",),
    ("storage",),
    ("results",),
    ("jit",),
    ("plotting",),
    ("feeds",),
    ("book",),
    ("windows",),
    ("model",),
    ("training", "evaluation", "export"),
)
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
WITHOUT_TORCH = ("feeds", "book", "windows")
ENGINE = "lob/training/te_layer.py"  # the only module that imports transformer_engine
# The one benchmark that imports a script, since it times the script's own steps.
RUN_BY = {("benchmarks/bench_training.py", "fp8_ddp_trainer")}


def find_imports(source: str) -> set[str]:
    """Return the dotted names of all that a module imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def find_config_parameters(source: str) -> list[str]:
    """Return functions with a parameter `config` that is a dict, or is not said to be otherwise."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for argument in arguments:
                kind = ast.unparse(argument.annotation) if argument.annotation else "dict"
                if argument.arg == "config" and "EncoderConfig" not in kind:
                    found.append(node.name)
    return found


def find_faults(file: str, source: str, scripts: set[str]) -> list[str]:
    """Return what in a file of the repository breaks the rule of the house."""
    imports = find_imports(source)
    faults = []
    parts = file.removesuffix(".py").split("/")
    if parts[0] == "lob" and len(parts) > 1 and parts[1] != "__init__":
        room = parts[1]
        for name in imports:
            other = name.split(".")[1] if name.startswith("lob.") else room
            if other != room and FLOOR_OF[other] >= FLOOR_OF[room]:
                faults.append(f"{file} imports {name}: {room} stands below {other}, or beside it")
        if room in WITHOUT_TORCH and any(name.split(".")[0] == "torch" for name in imports):
            faults.append(f"{file} imports torch")
        if room != "config":
            functions = find_config_parameters(source)
            faults += [f"{file}: {name} takes a config dict" for name in functions]
    taken = {name.split(".")[0] for name in imports}
    if "transformer_engine" in taken and file != ENGINE and parts[0] != "tests":
        faults.append(f"{file} imports transformer_engine")
    if parts[0] != "tests":
        for name in sorted(taken & scripts):
            if (file, name) not in RUN_BY:
                faults.append(f"{file} imports the script {name}")
    return faults


def repository() -> dict[str, str]:
    """Return the source of each Python file but the tests, by its path."""
    files = [*ROOT.glob("*.py")]
    for folder in ("lob", "benchmarks", "examples", "training_data"):
        files += (ROOT / folder).rglob("*.py")
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def test_every_import_runs_down_the_house():
    files = repository()
    scripts = {Path(file).stem for file in files if "/" not in file}
    assert len(scripts) == 7
    faults: list[str] = []
    for file, source in files.items():
        faults += find_faults(file, source, scripts)
    assert faults == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        (
            "lob/book/states.py",
            "from lob.windows.splits import window_ends",
            "book stands below windows",
        ),
        (
            "lob/training/samples.py",
            "from lob.evaluation import fills",
            "training stands below evaluation, or beside",
        ),
        ("lob/storage.py", "import lob.results", "storage stands below results, or beside"),
        ("lob/windows/statistics.py", "def f():\n    import torch.nn", "imports torch"),
        (
            "lob/model/encoder.py",
            "import transformer_engine.pytorch as te",
            "imports transformer_engine",
        ),
        (
            "lob/training/samples.py",
            "def open_dataset(config: dict[str, Any]): ...",
            "open_dataset takes a config dict",
        ),
        (
            "benchmarks/bench_windows.py",
            "import exploration_main",
            "imports the script exploration_main",
        ),
        (
            "inference_testing.py",
            "from model_exporter import compare",
            "imports the script model_exporter",
        ),
    ],
)
def test_a_planted_fault_is_found(file, source, fault):
    scripts = {"exploration_main", "model_exporter", "inference_testing"}
    (found,) = find_faults(file, source, scripts)
    assert fault in found
