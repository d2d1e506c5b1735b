"""One history of a book, packed as users hold it, gives the states of the reference book."""

import gzip
import io
import struct
import zipfile

import pytest
import zstandard
from test_feeds import parse, refuse, tell_states, tell_story, write_tardis

SKIPPED_FRAME = struct.pack("<III", 0x184D2A50, 4, 1234)  # as pzstd writes them
PADDING = b"\0" * 1000


def cut(data: bytes, parts: int = 3) -> list[bytes]:
    size = -(-len(data) // parts)
    return [data[at : at + size] for at in range(0, len(data), size)]


def pack_zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def pack_zip_of_several(data: bytes) -> bytes:
    """Return an archive whose members lie in another order than their names; each has a header."""
    header, *rows = data.splitlines(keepends=True)
    first, second = b"".join(rows[:500]), b"".join(rows[500:])
    notes = {"__MACOSX/._1.csv": b"\0", "README.txt": b"x", "folder/": b"", "metadata.json": b"{}"}
    return pack_zip({"8-10.csv": header + second, **notes, "8-9.csv": header + first})


PACKED = {
    "a zip of one member": lambda data: pack_zip({"1.csv": data}),
    "a zip of several members": pack_zip_of_several,
    "a zip of a gzip": lambda data: pack_zip({"1.csv.gz": gzip.compress(data)}),
    "several gzip streams": lambda data: b"".join(map(gzip.compress, cut(data))),
    "gzip streams with zeros after each": lambda data: b"".join(
        gzip.compress(part) + PADDING for part in cut(data)
    ),
    "gzip and a single zero": lambda data: gzip.compress(data) + b"\0",
    "an empty gzip stream before it": lambda data: gzip.compress(b"") + gzip.compress(data),
    "several zstd frames": lambda data: b"".join(map(zstandard.compress, cut(data))),
    "pzstd": lambda data: b"".join(SKIPPED_FRAME + zstandard.compress(part) for part in cut(data)),
}


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_a_packed_file_is_read_to_its_end(tmp_path, pack) -> None:
    story = tell_story()
    folder = tmp_path / "raw" / "A_B"
    folder.mkdir(parents=True)
    (folder / "1.packed").write_bytes(pack(write_tardis(story)))
    assert parse(tmp_path) == tell_states(story)


def test_notes_beside_a_recording_are_no_recordings(tmp_path) -> None:
    story = tell_story(30)
    folder = tmp_path / "raw" / "A_B"
    folder.mkdir(parents=True)
    for note in ("LICENSE", "README.md", "metadata.json", "symbology.json", ".hidden"):
        (folder / note).write_text("{}")
    (folder / "1.csv").write_bytes(write_tardis(story))
    assert parse(tmp_path) == tell_states(story)


@pytest.mark.parametrize("lost", [5, 1000])
@pytest.mark.parametrize("kind", ["zip", "gzip", "gzip streams", "pzstd"])
def test_a_packed_file_that_was_cut_off_is_refused(tmp_path, kind, lost) -> None:
    name = {"zip": "a zip of one member", "gzip": "gzip and a single zero", "pzstd": "pzstd"}
    data = PACKED[name.get(kind, "several gzip streams")](write_tardis(tell_story()))
    folder = tmp_path / "raw" / "A_B"
    folder.mkdir(parents=True)
    (folder / "1.packed").write_bytes(data[:-lost])
    assert "cannot be decompressed" in refuse(tmp_path)
