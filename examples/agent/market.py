"""A recorded market as an agent meets it: decisions, positions, and what each of them earns.

Every `stride` states there is a decision. The agent chooses the position that it wants: -1 (short),
0 (flat) or 1 (long) unit. Its order meets the book `latency_states` later, and is filled in one of
two ways:

- `take`: a buy at the best ask and a sale at the best bid;
- `mid`: both at the mid. Nobody can trade so. It bounds what a patient trader could save.

Prices are counted in half ticks, in which mids, asks and bids are whole. So inventory and spread
are exact, and only the fee is rounded. At the last decision of a segment (a run of states without a
gap) the position is closed at once. An order is filled in full and doesn't change the book.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lob.book.states import Book

FILLS = ("take", "mid")
BLOCKS = 20  # of a test period, of equally many decisions each
NUMBERS = ("gross", "traded", "trades")  # accounts that are summed in each block
TARGETS = np.array([-1, 0, 1])  # the position that each action asks for


@dataclass(frozen=True)
class Market:
    """What agents meet in a recording: an entry for each decision, (n,).

    inputs: float32 (n, P), what an agent sees beside its position; mid, half_spread: int64, mid and
    half the spread at the decision, in half ticks; fill_mid, fill_half_spread: the same when the
    order meets the book (half the spread is 0 if orders are filled at the mid); is_last: bool, the
    last decision of its segment, where the position is closed; time_ns: int64; imbalance: float64,
    of the best sizes; fee_bps: fee of a fill in bps of its price; bps: half a tick in bps of the
    first mid, in which all results are.
    """

    inputs: np.ndarray
    mid: np.ndarray
    half_spread: np.ndarray
    fill_mid: np.ndarray
    fill_half_spread: np.ndarray
    is_last: np.ndarray
    time_ns: np.ndarray
    imbalance: np.ndarray
    fee_bps: float
    bps: float

    @property
    def decisions(self) -> np.ndarray:
        """The numbers of the entries at which something is decided, int64."""
        return np.flatnonzero(~self.is_last)

    @property
    def hours(self) -> float:
        """The time from the first to the last decision of each segment, summed."""
        now = self.decisions
        return float((self.time_ns[now + 1] - self.time_ns[now]).sum()) / 3.6e12

    def move_bps(self) -> float:
        """The standard deviation of the mid's moves from one decision to the next."""
        now = self.decisions
        return float((self.mid[now + 1] - self.mid[now]).std() * self.bps)


class Accounts(NamedTuple):
    """What decisions earn in bps of the first mid, float64 (n,) each; trades counts units."""

    inventory: np.ndarray
    spread: np.ndarray
    fee: np.ndarray
    traded: np.ndarray
    trades: np.ndarray

    @property
    def gross(self) -> np.ndarray:
        return self.inventory - self.spread

    @property
    def profit(self) -> np.ndarray:
        return self.inventory - self.spread - self.fee


def make_market(
    book: Book,
    ends: np.ndarray,
    inputs: np.ndarray,
    fill: str,
    fee_bps: float = 0.0,
    latency_states: int = 1,
) -> Market:
    """Return the market of decisions after the windows that end at `ends`, int64 (n,).

    The windows of a segment follow each other at one stride, which `latency_states` doesn't exceed.
    """
    segment = np.searchsorted(book.segment_starts, ends - 1, side="right")
    is_last = np.append(np.diff(segment) != 0, True)
    seen = ends - 1
    met = np.where(is_last, seen, seen + latency_states)
    half = book.depth // 2
    bid, ask = (book.price_ticks[seen, half + side].astype(np.int64) for side in (-1, 0))
    met_bid, met_ask = (book.price_ticks[met, half + side].astype(np.int64) for side in (-1, 0))
    bid_size, ask_size = (book.sizes[seen, half + side].astype(float) for side in (-1, 0))
    paid = int(fill == "take")
    return Market(
        inputs=inputs,
        mid=bid + ask,
        half_spread=paid * (ask - bid),
        fill_mid=met_bid + met_ask,
        fill_half_spread=paid * (met_ask - met_bid),
        is_last=is_last,
        time_ns=np.asarray(book.timestamps[seen]),
        imbalance=(bid_size - ask_size) / (bid_size + ask_size),
        fee_bps=fee_bps,
        bps=1e4 / float(bid[0] + ask[0]),
    )


def settle(market: Market, now: np.ndarray, held: np.ndarray, wanted: np.ndarray) -> Accounts:
    """Return what is earned from decisions `now` to the next, int64 (n,), none of them the last.

    held, wanted: int64 (n,), the position before and after the order of each decision.
    """
    order = wanted - held
    after = now + 1
    closed = np.where(market.is_last[after], wanted, 0)
    fill_mid, fill_half_spread = market.fill_mid[now], market.fill_half_spread[now]
    inventory = held * (fill_mid - market.mid[now]) + wanted * (market.mid[after] - fill_mid)
    spread = abs(order) * fill_half_spread + abs(closed) * market.half_spread[after]
    opening = abs(order) * fill_mid + order * fill_half_spread
    closing = abs(closed) * market.mid[after] - closed * market.half_spread[after]
    traded = (opening + closing) * market.bps
    return Accounts(
        inventory * market.bps,
        spread * market.bps,
        traded * market.fee_bps / 1e4,
        traded,
        (abs(order) + abs(closed)).astype(float),
    )


def play(market: Market, table: np.ndarray) -> Accounts:
    """Return what a policy earns at each decision of the whole recording, one after the other.

    table: int64 (3, n), the position that the policy wants at each decision if it holds -1, 0, 1.
    """
    wants = table.T.tolist()
    held, before = 0, []
    for number, last in enumerate(market.is_last.tolist()):
        before.append(held)
        held = 0 if last else wants[number][held + 1]
    now = market.decisions
    held_before = np.array(before)[now]
    return settle(market, now, held_before, table[held_before + 1, now])


def sum_blocks(market: Market, table: np.ndarray) -> np.ndarray:
    """Return the sums of NUMBERS in each block of a recording, float64 (3, BLOCKS)."""
    accounts = play(market, table)
    block = np.arange(len(accounts.fee)) * BLOCKS // len(accounts.fee)
    return np.stack([np.bincount(block, getattr(accounts, name), BLOCKS) for name in NUMBERS])


class Replay:
    """Traders that replay a market side by side, each at its own place.

    Each trader meets a random place, and goes on for `episode_steps` decisions or to the end of the
    segment. Its rewards are profits in bps, times `scale`.
    """

    def __init__(self, market: Market, traders: int, episode_steps: int, scale: float = 1.0):
        self.market, self.episode_steps, self.scale = market, episode_steps, scale
        self.now, self.held, self.steps = np.zeros((3, traders), dtype=np.int64)

    def restart(self, who: np.ndarray, rng: np.random.Generator) -> None:
        """Send the traders `who`, int64 (n,), to new places with no position."""
        self.now[who] = rng.choice(self.market.decisions, len(who))
        self.held[who] = self.steps[who] = 0

    def observe(self) -> np.ndarray:
        """Return what each trader sees, float32 (traders, P + 1): inputs, then its position."""
        position = self.held[:, None].astype(np.float32)
        return np.concatenate([self.market.inputs[self.now], position], axis=1)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Accounts]:
        """Take actions, int64 (traders,); return rewards, terminated, truncated and accounts.

        terminated: the segment ended, and the position was closed. truncated: the episode ended
        before; its position counts at the mid.
        """
        wanted = TARGETS[actions]
        accounts = settle(self.market, self.now, self.held, wanted)
        self.now += 1
        self.steps += 1
        terminated = self.market.is_last[self.now]
        self.held = np.where(terminated, 0, wanted)
        truncated = ~terminated & (self.steps >= self.episode_steps)
        return (accounts.profit * self.scale).astype(np.float32), terminated, truncated, accounts
