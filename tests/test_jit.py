"""Compiled kernels are those of the sources as they are now."""

import shutil
import subprocess
import sys

from conftest import ROOT

CALLER = """
from lob.callee import double
from lob.jit import compiled, is_compiled


@compiled
def run(x):
    return double(x) + 1


print(is_compiled(run), run(2), is_compiled(run))
"""
CALLEE = "from lob.jit import compiled\n\n\n@compiled\ndef double(x):\n    return x * {factor}\n"


def test_a_change_of_what_a_kernel_calls_is_compiled_anew(tmp_path):
    """The caller's own file stays as it is, and numba would look at that file alone."""
    package = tmp_path / "lob"
    package.mkdir()
    shutil.copy(ROOT / "lob" / "jit.py", package)
    (package / "__init__.py").touch()
    (package / "caller.py").write_text(CALLER)
    command = [sys.executable, "-m", "lob.caller"]
    printed = []
    for factor in (2, 2, 3):
        (package / "callee.py").write_text(CALLEE.format(factor=factor))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        printed.append(done.stdout.strip())
    assert printed == ["False 5 True", "True 5 True", "False 7 True"]
