"""The files between the scripts: whole or not at all, and refused by name when damaged or stale."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import write_book

import lob.storage
from lob.book.states import identity, open_book
from lob.config import InputError
from lob.storage import (
    ArrayWriter,
    check_writable,
    find_pairs,
    new_file,
    new_folder,
    new_table,
    open_table,
)

ROW = np.dtype([("end_row", np.int64), ("value", np.float64)])


def rows_of(values) -> np.ndarray:
    rows = np.zeros(len(values), dtype=ROW)
    rows["value"] = values
    return rows


def write_table(file: Path, values, made_from="a book", **parameters) -> None:
    with new_table(file, ROW, parameters, made_from) as table:
        table.append(rows_of(values))


def all_files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_book_opens_memory_mapped(tmp_path):
    book = open_book(write_book(tmp_path, rows=100, depth=10, segment_starts=(0, 40)))
    assert (book.pair, book.rows, book.depth, book.tick_size) == ("BTC_USD", 100, 10, 0.01)
    assert isinstance(book.price_ticks, np.memmap) and not book.price_ticks.flags.writeable
    assert book.traded is None and book.top_of_book is not None
    (book.path / "top_of_book.npy").unlink()
    assert open_book(book.path).top_of_book is None


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


def edit_meta(folder: Path, **changes) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


DAMAGE = {
    "meta missing": (lambda f: (f / "meta.json").unlink(), "meta.json: run data_parser.py first"),
    "meta cut": (lambda f: cut(f / "meta.json", 0.5), "is not JSON"),
    "meta a list": (lambda f: (f / "meta.json").write_text("[1]"), "format version None"),
    "meta binary": (lambda f: (f / "meta.json").write_bytes(b"\xff\xfe\x00"), "is not JSON"),
    "version": (lambda f: edit_meta(f, format_version=9), "format version 9"),
    "array missing": (lambda f: (f / "sizes.npy").unlink(), "there is no"),
    "array cut": (lambda f: cut(f / "sizes.npy", 0.9), "sizes.npy is damaged"),
    "array empty": (lambda f: cut(f / "price_ticks.npy", 0), "price_ticks.npy is damaged"),
    "not an array": (
        lambda f: (f / "timestamps.npy").write_text("hello"),
        "timestamps.npy is damaged",
    ),
    "wrong dtype": (lambda f: np.save(f / "sizes.npy", np.ones((100, 10))), "float64"),
    "wrong rows": (
        lambda f: np.save(f / "timestamps.npy", np.arange(99)),
        "meta.json says 100 rows",
    ),
    "wrong depth": (lambda f: edit_meta(f, depth=12), "meta.json's depth 12"),
    "other sizes": (lambda f: np.save(f / "sizes.npy", np.ones((100, 8), np.float32)), "depth 10"),
    "other prices": (
        lambda f: np.save(f / "price_ticks.npy", np.ones((100, 8), np.int32)),
        "depth 10",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_book_is_refused_by_name(tmp_path, damage):
    folder = write_book(tmp_path, rows=100, depth=10)
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(InputError) as refused:
        open_book(folder)
    assert message in str(refused.value) and str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_pairs_are_found_named_and_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"there is no folder .*run data_parser.py first, or set --data_dir"
    ):
        find_pairs(tmp_path, "book_states", None, "data_parser.py")
    (tmp_path / "book_states").mkdir()
    with pytest.raises(InputError, match="is empty"):
        find_pairs(tmp_path, "book_states", None, "data_parser.py")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "updates.csv").write_text("x")
    with pytest.raises(InputError, match=r"'updates.csv' but no folder of a pair: .*raw/<PAIR>/"):
        find_pairs(tmp_path, "raw", None, "")
    for pair in ("ETH_USD", "BTC_USD"):
        write_book(tmp_path, pair, rows=10, depth=4)
    (tmp_path / "book_states" / ".BTC_USD.partial").mkdir()
    assert find_pairs(tmp_path, "book_states", None, "") == ["BTC_USD", "ETH_USD"]
    assert find_pairs(tmp_path, "book_states", ["ETH_USD"], "") == ["ETH_USD"]
    with pytest.raises(InputError, match=r"'BTC_USDT'.*did you mean 'BTC_USD'.*BTC_USD, ETH_USD"):
        find_pairs(tmp_path, "book_states", ["BTC_USDT"], "")
    with pytest.raises(InputError, match="pairs"):
        find_pairs(tmp_path, "book_states", [], "")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "deeper", "runs_dir")
    monkeypatch.setattr(lob.storage.os, "access", lambda *_: False)
    with pytest.raises(
        InputError, match=f"runs_dir = .*new/deeper can't be written: {tmp_path} is not a writable"
    ):
        check_writable(tmp_path / "new" / "deeper", "runs_dir")


def test_identity_changes_with_the_book(tmp_path):
    folder = write_book(tmp_path, rows=20, depth=4)
    before = identity(open_book(folder))
    assert before == identity(open_book(folder)) and before["rows"] == 20
    edit_meta(folder, tick_size=0.1)
    assert identity(open_book(folder)) != before


def test_a_table_comes_back_and_tells_when_it_is_stale(tmp_path):
    file = tmp_path / "new" / "BTC_USD.npy"
    with new_table(file, ROW, {"temporal_dim": 256}, {"pair": "BTC_USD"}) as table:
        for values in ([1.0, 2.0], [], [3.0]):
            table.append(rows_of(values))
        table.extra["found"] = 7
    rows, meta = open_table(file, "x.py", {"pair": "BTC_USD"}, temporal_dim=256)
    assert rows["value"].tolist() == [1, 2, 3] and isinstance(rows, np.memmap)
    assert meta["found"] == 7 and meta["rows"] == 3
    assert all_files(file.parent) == ["BTC_USD.json", "BTC_USD.npy"]
    with pytest.raises(
        InputError, match=r"temporal_dim = 256, not 512: run x.py again, or set --temporal_dim"
    ):
        open_table(file, "x.py", None, temporal_dim=512)
    with pytest.raises(InputError, match="made from another book"):
        open_table(file, "x.py", {"pair": "ETH_USD"})
    np.save(file, rows_of([1.0]))
    with pytest.raises(InputError, match=r"1 rows, its .json says 3"):
        open_table(file, "x.py", None)
    file.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"run x.py first"):
        open_table(file, "x.py", None)


def test_an_array_of_unknown_length_grows_behind_its_header(tmp_path):
    writer = ArrayWriter(tmp_path / "a.npy", np.int32, (3,))
    writer.close()
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (0, 3)
    writer = ArrayWriter(tmp_path / "a.npy", np.int32, (3,))
    expected = np.arange(3 * 123_456, dtype=np.int32).reshape(-1, 3)
    for block in np.array_split(expected, 7):
        writer.append(block)
    writer.close()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


def test_an_error_while_writing_leaves_the_old_files(tmp_path):
    write_table(tmp_path / "t.npy", [1.0], temporal_dim=4)
    with new_file(tmp_path / "f") as handle:
        handle.write(b"old")
    with new_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("old")
    with pytest.raises(RuntimeError), new_table(tmp_path / "t.npy", ROW, {}, None) as table:
        table.append(rows_of([5.0, 6.0]))
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "f") as handle:
        handle.write(b"new")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), new_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert open_table(tmp_path / "t.npy", "", None, temporal_dim=4)[0]["value"].tolist() == [1.0]
    assert (tmp_path / "f").read_bytes() == b"old" and (tmp_path / "d" / "x").read_text() == "old"
    assert all_files(tmp_path) == ["d", "d/x", "f", "t.json", "t.npy"]
    with new_folder(tmp_path / "d") as folder:
        (folder / "y").write_text("new")
    assert all_files(tmp_path) == ["d", "d/y", "f", "t.json", "t.npy"]


@pytest.mark.parametrize("step", range(8))
def test_a_kill_at_any_step_leaves_no_json_beside_another_array(tmp_path, monkeypatch, step):
    """Writing is stopped before each change of the folder in turn, as by SIGKILL: nothing after
    it runs, not even a clean-up.
    """

    class Killed(BaseException):
        pass

    changes = 0

    def stopping(change):
        def wrapped(*args, **kwargs):
            nonlocal changes
            if changes >= step:
                raise Killed
            changes += 1
            return change(*args, **kwargs)

        return wrapped

    write_table(tmp_path / "t.npy", [1.0, 2.0], temporal_dim=4)
    monkeypatch.setattr(lob.storage.os, "replace", stopping(os.replace))
    monkeypatch.setattr(Path, "unlink", stopping(Path.unlink))
    finished = True
    try:
        write_table(tmp_path / "t.npy", [7.0, 8.0], temporal_dim=8)
    except Killed:
        finished = False
    monkeypatch.undo()
    assert finished == (step >= 3)
    try:
        rows, meta = open_table(tmp_path / "t.npy", "x.py", None)
    except InputError as error:
        assert "run x.py first" in str(error)
    else:
        assert rows["value"].tolist() == (
            [1, 2] if meta["parameters"]["temporal_dim"] == 4 else [7, 8]
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path, monkeypatch):
    write_table(tmp_path / "t.npy", [1.0])
    real_open = open
    monkeypatch.setattr(
        "builtins.open",
        lambda file, *a, **k: real_open(
            "/dev/full" if str(file).endswith(".partial") else file, *a, **k
        ),
    )
    with pytest.raises(OSError, match="No space left"):
        write_table(tmp_path / "t.npy", np.zeros(100_000))
    monkeypatch.undo()
    assert open_table(tmp_path / "t.npy", "", None)[0]["value"].tolist() == [1.0]
