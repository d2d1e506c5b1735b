"""The kernels' tests again with numba's bounds check.

numba compiles with the check only into an empty cache, so the tests get one of their own.
"""

import os
import subprocess
import sys

from conftest import ROOT

PLANTED = """
import numpy as np
from lob.book.order_book import OrderBook
from lob.feeds.batch import SET

book = OrderBook(2, 1.0, lambda out: None)
one = np.ones(1, dtype=np.int64)
book.side_arrays[0][:] = 4000, 5000  # the sides end past the end of their arrays of 4,096
book.apply(one, one, np.full(1, SET, np.uint8), one == 1, one, one)
"""


def run_checked(cache, *words: str) -> subprocess.CompletedProcess:
    settings = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_kernels_read_and_write_inside_their_arrays(tmp_path) -> None:
    """A planted read out of bounds proves that the check is on.

    All tests run in one process, so that each kernel is compiled once.
    """
    tests = ["tests/test_book.py", "tests/test_book_properties.py", "-k", "not whole_sample"]
    done = run_checked(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout[-3000:]
    planted = run_checked(tmp_path, "-c", PLANTED)
    assert planted.returncode == 1
    assert "IndexError" in planted.stderr
