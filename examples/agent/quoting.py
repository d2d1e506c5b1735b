"""A market maker in hftbacktest: orders that rest in a queue, latencies, fees; for gymnasium.

At each decision an agent chooses how it quotes one unit on either side (`ACTIONS`). Orders at a
price that is still wanted keep their place in the queue, others are cancelled and sent anew. They
never take (GTX); only `flatten` does. An order is not sent if the position could exceed the limit
should all open orders of its side fill. The last decision of a session is always to flatten.

Money is counted in half ticks x lots, in whole numbers: with mids as received, the change of equity
before fees is the inventory's gain, position x move of the mid, plus the spread that fills capture.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from hftbacktest import BUY, FILLED, GTC, GTX, LIMIT, MARKET, BacktestAsset
from hftbacktest import HashMapMarketDepthBacktest as Backtest
from hftbacktest.order import CANCELED
from numba import njit

ACTIONS = ("none", "symmetric", "lean to buy", "lean to sell", "wide", "flatten")
NONE, SYMMETRIC, LEAN_TO_BUY, LEAN_TO_SELL, WIDE, FLATTEN = range(len(ACTIONS))
# Whether bid and ask are away from the touch (1), at it (0), or not quoted (-1), by action.
AWAY = np.array([[-1, -1], [0, 0], [0, 1], [1, 0], [1, 1], [-1, -1]])
ACCOUNTS = ("inventory", "spread", "made", "taken", "maker_fills", "taker_fills")
INVENTORY, SPREAD, MADE, TAKEN, MAKER_FILLS, TAKER_FILLS = range(len(ACCOUNTS))


class Rules(NamedTuple):
    """What orders may be: lots of a unit, units of the position, ticks from the touch if away."""

    tick_size: float
    lot_size: float
    unit_lots: int
    limit: int
    wide_ticks: int


class Venue(NamedTuple):
    """Latency of an order each way; how cancels thin the queue; fees in bps of the value."""

    order_latency_ns: int
    queue_power: float
    maker_fee_bps: float
    taker_fee_bps: float


@njit
def count_held(hbt, rules):
    return round(hbt.position(0) / rules.lot_size)


@njit
def find_mid(hbt):
    depth = hbt.depth(0)
    return depth.best_bid_tick + depth.best_ask_tick


@njit
def own_state(hbt, rules):
    """Return the number of what an agent knows of itself, a row of `list_own_states`."""
    depth = hbt.depth(0)
    bids = asks = 0
    orders = hbt.orders(0).values()
    while orders.has_next():
        order = orders.get()
        if order.req != CANCELED:
            bids |= order.side == BUY and order.price_tick == depth.best_bid_tick
            asks |= order.side != BUY and order.price_tick == depth.best_ask_tick
    units = count_held(hbt, rules) // rules.unit_lots + rules.limit
    return (units * 2 + bids) * 2 + asks


@njit
def send_orders(hbt, rules, action, ids):
    """Cancel what the action doesn't want, and send what is missing; ids: int64 (1,), the last."""
    depth = hbt.depth(0)
    bid = depth.best_bid_tick - AWAY[action, 0] * rules.wide_ticks
    ask = depth.best_ask_tick + AWAY[action, 1] * rules.wide_ticks
    needs_bid, needs_ask = AWAY[action, 0] >= 0, AWAY[action, 1] >= 0
    flatten = action == FLATTEN
    held, most = count_held(hbt, rules), rules.limit * rules.unit_lots
    buys = sells = 0  # lots in open orders
    orders = hbt.orders(0).values()
    while orders.has_next():
        order = orders.get()
        lots = round(order.leaves_qty / rules.lot_size)
        if order.side == BUY:
            buys += lots
            wanted = AWAY[action, 0] >= 0 and order.price_tick == bid and order.req != CANCELED
            needs_bid = needs_bid and not wanted
        else:
            sells += lots
            wanted = AWAY[action, 1] >= 0 and order.price_tick == ask and order.req != CANCELED
            needs_ask = needs_ask and not wanted
        flatten = flatten and order.order_type != MARKET
        if not wanted and order.cancellable:
            hbt.cancel(0, order.order_id, False)
    unit, qty = rules.unit_lots, rules.unit_lots * rules.lot_size
    if needs_bid and held + buys + unit <= most:
        ids[0] += 1
        hbt.submit_buy_order(0, ids[0], bid * rules.tick_size, qty, GTX, LIMIT, False)
    if needs_ask and held - sells - unit >= -most:
        ids[0] += 1
        hbt.submit_sell_order(0, ids[0], ask * rules.tick_size, qty, GTX, LIMIT, False)
    if flatten and held > 0 and sells <= most:
        ids[0] += 1
        price = depth.best_bid_tick * rules.tick_size
        hbt.submit_sell_order(0, ids[0], price, held * rules.lot_size, GTC, MARKET, False)
    if flatten and held < 0 and buys <= most:
        ids[0] += 1
        price = depth.best_ask_tick * rules.tick_size
        hbt.submit_buy_order(0, ids[0], price, -held * rules.lot_size, GTC, MARKET, False)


@njit
def pass_time(hbt, rules, until_ns, account):
    """Go on to a time, and add to `account`, int64 (6,), what was earned and filled until then."""
    mid, held = find_mid(hbt), count_held(hbt, rules)
    trades = hbt.state_values(0).num_trades
    while hbt.current_timestamp < until_ns:
        if hbt.wait_next_feed(True, until_ns - hbt.current_timestamp) == 1:
            return  # the recording's end
        before, mid = mid, find_mid(hbt)
        account[INVENTORY] += held * (mid - before)
        if hbt.state_values(0).num_trades == trades:
            continue
        trades = hbt.state_values(0).num_trades
        orders = hbt.orders(0).values()
        while orders.has_next():
            order = orders.get()
            if order.status == FILLED:
                lots = round(order.exec_qty / rules.lot_size) * order.side
                account[SPREAD] += lots * (mid - 2 * order.exec_price_tick)
                takes = 0 if order.arr[0].maker else 1
                account[MADE + takes] += abs(lots) * 2 * order.exec_price_tick
                account[MAKER_FILLS + takes] += 1
                held += lots
        hbt.clear_inactive_orders(0)


@njit
def decide(hbt, rules, action, until_ns, ids, account):
    hbt.clear_inactive_orders(0)
    send_orders(hbt, rules, action, ids)
    pass_time(hbt, rules, until_ns, account)


@njit(boundscheck=True)
def play_table(hbt, rules, times_ns, table, accounts):
    ids = np.zeros(1, np.int64)
    for number in range(len(accounts)):
        last = number == len(accounts) - 1
        action = FLATTEN if last else table[own_state(hbt, rules), number]
        decide(hbt, rules, action, times_ns[number + 1], ids, accounts[number])


def list_own_states(limit: int) -> np.ndarray:
    """Return what an agent sees of itself, float32 (S, 3): the position's share of the limit, and
    whether its bid and its ask stand at the best prices."""
    units = np.arange(-limit, limit + 1) / limit
    rows = [(held, bid, ask) for held in units for bid in (0, 1) for ask in (0, 1)]
    return np.array(rows, np.float32)


@dataclass(frozen=True)
class Session:
    """A recording to quote in, with n decisions.

    events: hftbacktest's; times_ns: int64 (n + 1,), local times of the decisions and of the end;
    inputs: float32 (n, P), what is seen beside the own state; mid: int64 (n,), in half ticks;
    imbalance: float64 (n,), of the best sizes.
    """

    events: np.ndarray
    times_ns: np.ndarray
    inputs: np.ndarray
    mid: np.ndarray
    imbalance: np.ndarray
    rules: Rules
    venue: Venue

    def at_fee(self, maker_fee_bps: float) -> "Session":
        return replace(self, venue=self.venue._replace(maker_fee_bps=maker_fee_bps))

    @property
    def hours(self) -> float:
        return float(self.times_ns[-1] - self.times_ns[0]) / 3.6e12

    @property
    def bps(self) -> float:
        """A half tick x lot in bps of the first value of a unit, in which all results are."""
        return 1e4 / float(self.mid[0] * self.rules.unit_lots)

    def move_bps(self) -> float:
        return float(np.diff(self.mid).std() / self.mid[0] * 1e4)

    def begin(self, number: int = 0) -> Any:
        """Return a backtest at a decision, with nothing done before. The caller closes it."""
        venue, rules = self.venue, self.rules
        asset = BacktestAsset().data(self.events)
        asset.constant_order_latency(venue.order_latency_ns, venue.order_latency_ns)
        asset.linear_asset(1.0).power_prob_queue_model(venue.queue_power)
        asset.no_partial_fill_exchange().last_trades_capacity(0)
        asset.trading_value_fee_model(venue.maker_fee_bps / 1e4, venue.taker_fee_bps / 1e4)
        asset.tick_size(rules.tick_size).lot_size(rules.lot_size)
        hbt = Backtest([asset])
        hbt.elapse(1)  # to the first event, whose time it didn't know before
        hbt.elapse(int(self.times_ns[number]) - hbt.current_timestamp)
        return hbt

    def play(self, table: np.ndarray) -> np.ndarray:
        """Return the accounts of all decisions, int64 (n, 6), one after the other.

        table: int64 (S, n), the action at each decision by own state.
        """
        accounts = np.zeros((len(self.inputs), len(ACCOUNTS)), np.int64)
        hbt = self.begin()
        play_table(hbt, self.rules, self.times_ns, table, accounts)
        hbt.close()
        return accounts

    def profit_bps(self, accounts: np.ndarray) -> np.ndarray:
        """Return what accounts, int64 (..., 6), earn after fees."""
        maker_fee = accounts[..., MADE] * self.venue.maker_fee_bps / 1e4
        taker_fee = accounts[..., TAKEN] * self.venue.taker_fee_bps / 1e4
        return (accounts[..., INVENTORY] + accounts[..., SPREAD] - maker_fee - taker_fee) * self.bps


class QuotingEnv(gymnasium.Env):
    """One market maker. Actions are ACTIONS; the reward is the profit in bps, times `scale`.

    An episode begins flat at a random decision and is truncated after `episode_steps`; then an open
    position counts at the mid. The info of a step holds ACCOUNTS.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - as gymnasium declares it

    def __init__(self, session: Session, episode_steps: int = 256, scale: float = 1.0):
        self.session, self.episode_steps, self.scale = session, episode_steps, scale
        self.own = list_own_states(session.rules.limit)
        low = np.append(session.inputs.min(axis=0), self.own.min(axis=0))
        high = np.append(session.inputs.max(axis=0), self.own.max(axis=0))
        self.observation_space = Box(low, high, dtype=np.float32)
        self.action_space = Discrete(len(ACTIONS))
        self.hbt: Any = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.close()
        self.now = int(self.np_random.integers(len(self.session.inputs)))
        self.steps, self.ids = 0, np.zeros(1, np.int64)
        self.hbt = self.session.begin(self.now)
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        own = self.own[own_state(self.hbt, self.session.rules)]
        # After the last decision nothing is decided, so its inputs are shown once more.
        number = min(self.now, len(self.session.inputs) - 1)
        return np.concatenate([self.session.inputs[number], own])

    def step(self, action: int) -> tuple:
        session, account = self.session, np.zeros(len(ACCOUNTS), np.int64)
        action = FLATTEN if self.now == len(session.inputs) - 1 else int(action)
        self.now += 1
        self.steps += 1
        decide(self.hbt, session.rules, action, int(session.times_ns[self.now]), self.ids, account)
        terminated = self.now == len(session.inputs)
        truncated = not terminated and self.steps >= self.episode_steps
        reward = float(session.profit_bps(account)) * self.scale
        info = dict(zip(ACCOUNTS, account.tolist(), strict=True))
        return self.observe(), reward, terminated, truncated, info

    def close(self) -> None:
        if self.hbt is not None:
            self.hbt.close()
            self.hbt = None
