"""What the order book counts, and what it remembers between two calls of the kernel."""

import numpy as np

COUNTERS = (
    "messages",  # completed messages; each leaves the book in a state
    "states",  # messages that left a complete and uncrossed book: a row, unless it is thinned out
    "crossed_states",  # messages that left a crossed book
    "thin_states",  # messages that left fewer than depth / 2 levels on a side
    "ghosts_evicted",  # levels that kept the book crossed for longer than max_crossed_ms
    "ghosts_traded_through",  # of these, order by order: orders at worse prices were matched
    "ghosts_after_losses",  # of these, order by order: rows came of orders that are not there
    "unknown",  # updates of a level or an order that is not there
    "duplicate_orders",  # ADD or SNAPSHOT rows with the id of an order that is there
    "overdrawn",  # SUB or MATCH rows with more than was there
    "snapshots",
    "snapshots_differ",  # in the best depth / 2 levels of a side from the book before them
    "gaps",
    "rows_before_snapshot",  # skipped: before the first snapshot, or between a gap and the next one
    "levels_cut",  # levels past the best `book_depth` of a side
    "clock_steps_back",  # messages stamped earlier than the one before them: they get its time
)
(
    MESSAGES,
    STATES,
    CROSSED,
    THIN,
    GHOSTS,
    TRADED_THROUGH,
    AFTER_LOSSES,
    UNKNOWN,
    DUPLICATES,
    OVERDRAWN,
    SNAPSHOTS,
    SNAPSHOTS_DIFFER,
    GAPS,
    NO_BOOK,
    CUT,
    CLOCK,
) = range(len(COUNTERS))

# What the kernel has to remember between two calls. numba passes arrays by reference, but numbers
# by value. So all of it lies in one int64 array, `OrderBook.memory`, at these places: times in ns,
# counts, and flags that are 0 or 1.
(
    MESSAGE,  # number of the message that the last row belongs to
    OPEN,  # flag: more rows of this message may follow
    TIME,  # the message's time
    IN_SNAPSHOT,  # flag: the last row was a SNAPSHOT row of this message
    COMPARE,  # flag: this message holds a snapshot, to be compared with the book before it
    NEW_SEGMENT,  # flag: the next state begins a segment
    FIRST_VALID,  # time of the first state; NEVER before it
    LAST_VALID,  # time of the last state; NEVER before the first
    CROSSED_SINCE,  # time since when the book has been crossed; NEVER if it is not
    PASSED_BID,  # time of the first MATCH since then of a bid below the best bid
    PASSED_ASK,  # time of the first MATCH since then of an ask above the best ask
    PASSED_BID_PRICE,  # the best bid then
    PASSED_ASK_PRICE,  # the best ask then
    CROSSED_NS,  # how long the book was crossed, in all
    ORDERS,  # number of orders in the table
    SEEN,  # states of this segment, also those that subsampling leaves out
    PENDING,  # flag: the row after the finished ones holds a state that a later one may replace
    INTERVAL,  # number of the state interval (state_interval_ms) that the pending state lies in
    TRADED,  # signed lots traded since the last finished row: bought minus sold
    TRADED_WRITTEN,  # of these, what the pending row holds
    ROWS,  # finished rows of the output
    LEVELS,  # the first of depth / 2 counts: of messages that left 0, 1, ... levels on both sides
) = range(22)
NEVER = np.iinfo(np.int64).min

# Places in `OrderBook.kept`: best levels before a snapshot, after it, and after the first message.
BEFORE, AFTER, OPENING = range(3)

# Why a call of the kernel ends.
DONE, OUTPUT_FULL, GROW_LEVELS, GROW_ORDERS, BOOK_LOST, CLOCK_BACK, NOT_INT32 = range(7)
