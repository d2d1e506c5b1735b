"""A share of the fuzzer: damaged recordings of every feed, always the same ones."""

import fuzz
import pytest
from fuzz_files import make_bases

from lob.feeds.batch import FEEDS
from lob.feeds.json_lines import LevelStream

FILES = 300


def test_damaged_recordings_give_the_states_of_the_twin_readings_or_one_line() -> None:
    counts, failures = fuzz.try_cases(list(range(FILES)), 60.0, None, None)
    assert failures == []
    assert set(counts) == {base.feed for base in make_bases().values()} <= set(FEEDS)
    for feed, ends in counts.items():
        assert ends["states"] >= 3 and ends["refused"] >= 3, feed
    assert sum(ends["unsure"] for ends in counts.values()) < FILES / 5


@pytest.mark.parametrize("fault", ["a message delivered twice is a gap", "a size is doubled"])
def test_the_fuzzer_finds_a_planted_fault(monkeypatch, fault) -> None:
    if fault == "a size is doubled":
        follow = LevelStream.follow

        def double(stream, change):
            bids, asks = follow(stream, change)
            return [(price, str(2 * float(size))) for price, size, *_ in bids], asks

        monkeypatch.setattr(LevelStream, "follow", double)
    else:
        monkeypatch.setattr(LevelStream, "is_repeated", lambda stream, change: False)
    _, failures = fuzz.try_cases(list(range(600)), 60.0, None, ["bybit"])
    assert failures
