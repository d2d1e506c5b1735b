"""The parser's surroundings: links, file systems that map no files, killed workers and Ctrl-C."""

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, write_book

import data_parser
from lob.config import CheckFailed, InputError
from lob.feeds.recordings import read_npy_chunks
from lob.model.checkpoint import find_checkpoint
from lob.storage import find_pairs, load_array, walk_files


@pytest.fixture
def raw(tmp_path):
    """A pair's folder beside other folders that hold the recordings."""
    elsewhere = tmp_path / "elsewhere" / "days"
    elsewhere.mkdir(parents=True)
    for name in ("2.csv", "1.csv"):
        (elsewhere / name).write_text("rows")
    folder = tmp_path / "raw" / "A"
    folder.mkdir(parents=True)
    return folder


def test_linked_files_and_folders_are_read(raw, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (raw / "0.csv").symlink_to(elsewhere / "days" / "1.csv")
    (raw / "more").symlink_to(elsewhere)
    (raw / ".#lock").symlink_to("user@host.1234")  # an editor's, and hidden
    names = [file.relative_to(raw).as_posix() for file in data_parser.list_files(raw)]
    assert names == ["0.csv", "more/days/1.csv", "more/days/2.csv"]
    (tmp_path / "raw" / "B").symlink_to(elsewhere / "days")
    assert find_pairs(tmp_path, "raw", None, "") == ["A", "B"]
    assert len(data_parser.list_files(tmp_path / "raw" / "B")) == 2


def test_a_link_that_leads_nowhere_is_named(raw, tmp_path):
    (raw / "days").mkdir()
    (raw / "days" / "3.csv").symlink_to("/mnt/gone/3.csv")
    with pytest.raises(InputError, match=r"days/3\.csv is a link to /mnt/gone/3\.csv, which is no"):
        data_parser.list_files(raw)
    (tmp_path / "raw" / "B").symlink_to("/mnt/gone")
    with pytest.raises(InputError, match=r"raw/B is a link to /mnt/gone, which is not there"):
        find_pairs(tmp_path, "raw", None, "")
    assert find_pairs(tmp_path, "raw", ["A"], "") == ["A"]  # B is not asked for


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_back_to_a_folder_that_it_lies_in_is_named(raw, target):
    (raw / "days").mkdir()
    (raw / "days" / "again").symlink_to(target)
    with pytest.raises(InputError, match=r"again.* is a link back to"):
        list(walk_files(raw))


def test_a_folder_that_cannot_be_read_is_not_passed_over(raw, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(type(raw), "iterdir", refuse)
    with pytest.raises(PermissionError):
        data_parser.list_files(raw)


def test_a_file_system_without_mappings_is_named_with_a_remedy(tmp_path, monkeypatch):
    file = tmp_path / "sizes.npy"
    np.save(file, np.zeros((4, 5)))

    def refuse(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    for read in (load_array, lambda path: list(read_npy_chunks(path))):
        with pytest.raises(InputError, match=r"sizes\.npy can't be memory mapped .* --data_dir"):
            read(file)


def test_other_failures_of_a_file_keep_their_reason(tmp_path, monkeypatch):
    np.save(tmp_path / "sizes.npy", np.zeros(3))

    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        load_array(tmp_path / "sizes.npy")


class KilledPool:
    """An executor whose workers are killed at each task."""

    def __init__(self, error):
        self.error = error

    def submit(self, *_):
        future = Future()
        future.set_exception(self.error)
        return future


@pytest.mark.parametrize("kind", [BrokenProcessPool, type("KilledWorker", (Exception,), {})])
def test_a_killed_worker_is_one_line_and_the_old_output_stays(tmp_path, kind):
    old = write_book(tmp_path, "A", rows=10, depth=4)
    (tmp_path / "raw" / "A").mkdir(parents=True)
    header = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount\n"
    (tmp_path / "raw" / "A" / "1.csv").write_text(f"{header}x,A,1,1,true,bid,1,1\n")
    config = {**data_parser.config, "data_dir": str(tmp_path)}
    with pytest.raises(CheckFailed, match=r"a worker process was killed, .*: set --workers=2$"):
        data_parser.parse_side_by_side(config, ["A"], KilledPool(kind("x")), 4)
    assert [path.name for path in old.parent.iterdir()] == ["A"] and len(list(old.iterdir())) == 6


def test_ctrl_c_ends_workers_and_leaves_the_old_output(tmp_path):
    old = write_book(tmp_path, "A", rows=10, depth=4)
    for pair in ("A", "B"):
        folder = tmp_path / "raw" / pair
        folder.mkdir(parents=True)
        (folder / "1.gz").symlink_to(ROOT / "training_data" / "raw" / "BTC_USD" / "20260502.csv.gz")
    command = [sys.executable, "data_parser.py", f"--data_dir={tmp_path}", "--workers=2"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    while len(list((tmp_path / "book_states").glob(".*.partial"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to workers too
    _, err = process.communicate(timeout=60)
    said = "data_parser.py: interrupted; unfinished output was not put in place\n"
    assert (process.returncode, err) == (130, said)
    assert [path.name for path in old.parent.iterdir()] == ["A"] and len(list(old.iterdir())) == 6
    for command_line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            is_worker = b"spawn_main" in command_line.read_bytes()
            assert not is_worker or os.getsid(int(command_line.parent.name)) != process.pid


def test_a_checkpoint_is_named_by_file_folder_or_run(tmp_path):
    runs = tmp_path / "runs"
    best = runs / "sample" / "checkpoints" / "best.safetensors"
    best.parent.mkdir(parents=True)
    best.touch()
    for name in ("sample", str(runs / "sample"), f"{runs}/sample/", str(best.parent), str(best)):
        assert find_checkpoint(runs, name) == best
    assert find_checkpoint(runs, None) == best
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match=r"weights holds no best checkpoint"):
        find_checkpoint(runs, str(tmp_path / "weights"))
    (tmp_path / "weights" / "encoder.safetensors").touch()
    found = find_checkpoint(runs, str(tmp_path / "weights"))
    assert found == tmp_path / "weights" / "encoder.safetensors"
    assert find_checkpoint(runs, "nowhere").name == "nowhere"  # load_checkpoint refuses it
