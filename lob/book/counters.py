"""What the counters of a parsed pair mean, in words."""

# What is printed of a counter: its meaning, what it is a share of, and what is usual.
COUNTER_WORDS = {
    "messages": ("messages", "", ""),
    "states": ("messages after which the book was complete", "message", ""),
    "crossed_states": (
        "messages after which the best bid was at or above the best ask",
        "message",
        "left out; usual where a taker's order is announced before its fills",
    ),
    "thin_states": ("messages after which a side had too few levels", "message", "left out"),
    "ghosts_evicted": ("levels that crossed the book for longer than max_crossed_ms", "", ""),
    "ghosts_traded_through": (
        "of these, orders at worse prices were matched meanwhile",
        "",
        "",
    ),
    "ghosts_after_losses": ("of these, rows of unknown orders show that rows were lost", "", ""),
    "levels_cut": ("levels past the best book_depth of a side", "", ""),
    "unknown": (
        "updates of a level or order that was not there",
        "row",
        "usual, up to a third, where levels beyond the snapshot are deleted",
    ),
    "duplicate_orders": ("orders whose id was there already", "row", ""),
    "overdrawn": ("reductions by more than was there", "row", ""),
    "snapshots": ("whole books (snapshots)", "", ""),
    "snapshots_differ": (
        "of them differ from the book before",
        "",
        "usual after a silence, else updates are missing",
    ),
    "gaps": ("gaps, at which updates are missing", "", ""),
    "rows_before_snapshot": (
        "rows before a snapshot",
        "row",
        "left out: there is no book yet",
    ),
    "clock_steps_back": ("messages stamped before the one before them", "message", ""),
    "lines_passed_by": (
        "lines that hold no message of this book",
        "",
        "trades, answers to subscriptions, other instruments",
    ),
    "rows_passed_by": (
        "rows that change nothing in this book",
        "",
        "fills told twice, trades, other instruments",
    ),
    "files_passed_by": (
        "files that are no recordings by their names",
        "",
        "licences, .md, .txt, .pdf and notes of vendors",
    ),
    "snapshots_unused": ("snapshots that no message continues", "", "left out"),
    "messages_repeated": ("messages delivered twice", "", "left out; usual where files overlap"),
    "crossed_ms": ("milliseconds in which the book was crossed", "", ""),
}


def as_share(count: int, whole: int) -> str:
    """Return a share in per cent; it is 0 % or 100 % if the count is 0 or the whole, else not."""
    percent = 100 * count / whole
    if 0 < percent < 0.001:
        return "less than 0.001 %"
    if percent > 99.9 and count != whole:
        return "over 99.9 %"
    return f"{percent:.3g} %"
