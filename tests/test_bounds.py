"""The order book's tests again with numba's bounds check.

numba compiles with the check only into an empty cache, so the tests get one of their own. All run
in one process, so that each kernel is compiled once.
"""

import os
import subprocess
import sys

from conftest import ROOT

CHECKED = """
import numpy as np
import pytest

class KernelAlone:
    def pytest_collection_finish(self):
        "Leave out the book of dictionaries: it is slow, and was asked without the check."
        import test_book_properties as books

        def run(seed, rows, by_order, depth, thinning, book_depth=None, **market):
            updates = books.make_updates(np.random.default_rng(seed), rows, by_order, **market)
            settings = depth, *thinning, market["step_ms"] * 5, book_depth
            return books.run_kernel(np.random.default_rng(seed), updates, *settings)[1]

        books.compare = run

tests = ["tests/test_book.py", "tests/test_book_properties.py", "-k", "not whole_sample"]
status = pytest.main(["-p", "no:cacheprovider", *tests], [KernelAlone()])
print(f"the tests ended with status {int(status)}")

from lob.book.order_book import OrderBook
from lob.feeds.batch import SET

book = OrderBook(2, 1.0, lambda out: None)
one = np.ones(1, dtype=np.int64)
book.side_arrays[0][:] = 4000, 5000  # the sides end past the end of their arrays of 4,096
book.apply(one, one, np.full(1, SET, np.uint8), one == 1, one, one)
"""


def test_the_kernels_read_and_write_inside_their_arrays(tmp_path) -> None:
    """A planted read out of bounds proves that the check is on."""
    settings = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CHECKED],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the tests ended with status 0" in done.stdout, done.stdout[-3000:] + done.stderr
    assert done.returncode == 1
    assert "IndexError" in done.stderr
