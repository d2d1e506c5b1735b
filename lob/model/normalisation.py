"""From ticks and sizes to what a network sees, and back.

Axes: B window, T state, L level, F field (0 price, 1 size). `mask` is bool (B, T, L, F), True where
a value is hidden. No parameter is made from a hidden value, so what the network is given can't
depend on one. There is one exception: the anchor of a window that shows no price. Its targets count
from that anchor; what the network is given does not.

The *anchor* is a price of the window from which ticks are counted, so that they stay small enough
to be exact in float32.

Schemes (`normalization`):

- 'book': the price is log1p(|d|) sign(d) / 4 of its distance d in ticks from the state's mid; the
  size is (log(size) - mean of the window's visible log sizes) / 2. Where a best price is hidden,
  the mid is linear in time. With `causal`, a state's mean is over the states up to it.
- 'minmax': the scheme of the published reference, for comparison. The price is its change relative
  to the level's first visible price, the size is as it is, and both are min-max scaled over the
  window's visible values.
"""

import torch
from torch import Tensor

SCHEMES = ("book", "minmax")
PRICE_SCALE = 4.0  # log1p of a few hundred to a few thousand ticks, brought to about 1 to 2
SIZE_SCALE = 2.0  # log sizes of a crypto book have a standard deviation near 2


def nearest_known(known: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Return where along `dim` the nearest known entries up to each entry and from it on lie.

    Both are int64 of `known`'s shape. -1 stands for none before, the axis' length for none after.
    """
    size = known.shape[dim]
    shape = [1] * known.dim()
    shape[dim] = size
    at = torch.arange(size, device=known.device).view(shape).expand_as(known)
    before = torch.cummax(torch.where(known, at, torch.full_like(at, -1)), dim=dim)[0]
    backwards = torch.where(known, at, torch.full_like(at, size)).flip([dim])
    after = torch.cummin(backwards, dim=dim)[0].flip([dim])
    return before, after


def states_to_known(known: Tensor) -> Tensor:
    """Return the number of states to the nearest one in which a level is known, int64 (B, T, L).

    known: bool (B, T, L). For a level that no state knows it is T.
    """
    states = known.shape[1]
    time = torch.arange(states, device=known.device).view(1, -1, 1)
    before, after = nearest_known(known)
    since = torch.where(before < 0, states, time - before)
    until = torch.where(after == states, states, after - time)
    return torch.minimum(since, until)


def interpolate_time(values: Tensor, known: Tensor) -> Tensor:
    """Fill `values` (B, T, ...) where not `known`, linearly in time between the nearest known ones.

    Before the first known value of a column and after its last one, that value is repeated. A
    column without a known value becomes 0.
    """
    steps = values.shape[1]
    before, after = nearest_known(known)
    has_before, has_after = before >= 0, after < steps
    before = torch.where(has_before, before, torch.where(has_after, after, torch.zeros_like(after)))
    after = torch.where(has_after, after, before)
    left, right = torch.gather(values, 1, before), torch.gather(values, 1, after)
    time = torch.arange(steps, device=values.device).view([1, steps] + [1] * (values.dim() - 2))
    share = (time - before).to(values.dtype) / (after - before).clamp(min=1)
    has_any = has_before | has_after
    return torch.where(has_any, left + (right - left) * share, torch.zeros_like(left))


def signed_log(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(torch.abs(x))


def signed_exp(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.expm1(torch.abs(x))


def masked_mean(x: Tensor, known: Tensor) -> Tensor:
    """Return the mean of `x` (B, T, L) over each window's known entries, (B, 1, 1); 0 if none is.

    Each state is summed first: a runtime (of an exported network) that adds 25,000 entries one by
    one loses a digit and a half.
    """
    by_state = torch.where(known, x, torch.zeros_like(x)).sum(dim=2, keepdim=True)
    total = by_state.sum(dim=1, keepdim=True)
    return total / known.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def running_mean(x: Tensor, known: Tensor) -> Tensor:
    """Return the mean of `x` (B, T, L) over the known entries up to each state, (B, T, 1).

    It is 0 where none is known.
    """
    total = torch.where(known, x, torch.zeros_like(x)).sum(dim=2, keepdim=True).cumsum(dim=1)
    return total / known.sum(dim=2, keepdim=True).cumsum(dim=1).clamp(min=1)


def masked_range(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least known value of each window and the range above it, (B, 1, 1) each.

    The range is 1 if all known values are equal or none is known.
    """
    low = torch.where(known, x, torch.full_like(x, float("inf"))).amin(dim=(1, 2), keepdim=True)
    high = torch.where(known, x, torch.full_like(x, float("-inf"))).amax(dim=(1, 2), keepdim=True)
    low = torch.where(torch.isinf(low), torch.zeros_like(low), low)
    return low, torch.where(high > low, high - low, torch.ones_like(low))


def first_known_price(price_ticks: Tensor, known: Tensor) -> Tensor:
    """Return the first visible price of each level in time, int64 (B, 1, L).

    A level without a visible price takes the window's first visible one. A window without any takes
    its first entry although it is hidden, so that targets stay small; `Reconstruction` keeps it
    from reaching the output.
    """
    first = known.to(torch.int8).argmax(dim=1, keepdim=True)
    per_level = torch.gather(price_ticks, 1, first)
    flat = known.flatten(1).to(torch.int8).argmax(dim=1, keepdim=True)
    any_level = torch.gather(price_ticks.flatten(1), 1, flat).unsqueeze(2)
    return torch.where(known.any(dim=1, keepdim=True), per_level, any_level)


def state_mids(offset: Tensor, known: Tensor) -> Tensor:
    """Return the mid of each state, (B, T, 1), from visible prices (B, T, L) alone.

    It is exact where both best prices are visible and linear in time between such states. A window
    without such a state takes the middle of each state's innermost visible bid and ask instead, and
    a window without any visible bid and ask in one state takes its mean visible price.
    """
    half = offset.shape[2] // 2
    best = known[:, :, half - 1] & known[:, :, half]
    mid = (offset[:, :, half - 1] + offset[:, :, half]) * 0.5
    bids, asks = known[:, :, :half], known[:, :, half:]
    bid_prices, ask_prices = offset[:, :, :half], offset[:, :, half:]
    shown_bids = torch.where(bids, bid_prices, torch.full_like(bid_prices, float("-inf")))
    inner_bid = shown_bids.amax(dim=2)
    shown_asks = torch.where(asks, ask_prices, torch.full_like(ask_prices, float("inf")))
    inner_ask = shown_asks.amin(dim=2)
    inner = bids.any(dim=2) & asks.any(dim=2)
    inner_mid = torch.where(inner, (inner_bid + inner_ask) * 0.5, torch.zeros_like(mid))
    mean = masked_mean(offset, known).squeeze(2).expand_as(mid)
    fallback = torch.where(inner.any(dim=1, keepdim=True), interpolate_time(inner_mid, inner), mean)
    mids = torch.where(best.any(dim=1, keepdim=True), interpolate_time(mid, best), fallback)
    return mids.unsqueeze(2)


def fit(
    price_ticks: Tensor, sizes: Tensor, mask: Tensor, scheme: str, causal: bool = False
) -> dict[str, Tensor]:
    """Return the parameters of `scheme` for each window, made of its visible values alone.

    price_ticks: int (B, T, L); sizes: float (B, T, L), > 0; mask: bool (B, T, L, 2). With `causal`
    and nothing hidden, the parameters of 'book' at a state depend on no later state.
    """
    price_ticks = price_ticks.to(torch.int64)
    known_price, known_size = ~mask[..., 0], ~mask[..., 1]
    anchor = first_known_price(price_ticks, known_price)
    if scheme == "book":
        anchor = anchor[:, :, anchor.shape[2] // 2].unsqueeze(2)
        offset = (price_ticks - anchor).float()
        log_sizes = torch.log(sizes.float().clamp(min=1e-30))
        mean = running_mean if causal else masked_mean
        return {
            "anchor_ticks": anchor,
            "mid": state_mids(offset, known_price),
            "size_centre": mean(log_sizes, known_size),
        }
    ratio = (price_ticks - anchor).float() / anchor.float().abs().clamp(min=1.0)
    price_low, price_range = masked_range(ratio, known_price)
    size_low, size_range = masked_range(sizes.float(), known_size)
    return {
        "anchor_ticks": anchor,
        "price_low": price_low,
        "price_range": price_range,
        "size_low": size_low,
        "size_range": size_range,
    }


def transform(
    price_ticks: Tensor, sizes: Tensor, parameters: dict[str, Tensor], scheme: str
) -> Tensor:
    """Return the normalised values, float32 (B, T, L, 2).

    price_ticks: int (B, T, L), or float64 for fractions of a tick; sizes: float (B, T, L).
    """
    offset = (price_ticks - parameters["anchor_ticks"]).float()
    if scheme == "book":
        price = signed_log(offset - parameters["mid"]) / PRICE_SCALE
        size = (torch.log(sizes.float().clamp(min=1e-30)) - parameters["size_centre"]) / SIZE_SCALE
    else:
        ratio = offset / parameters["anchor_ticks"].float().abs().clamp(min=1.0)
        price = (ratio - parameters["price_low"]) / parameters["price_range"]
        size = (sizes.float() - parameters["size_low"]) / parameters["size_range"]
    return torch.stack([price, size], dim=3)


def invert(values: Tensor, parameters: dict[str, Tensor], scheme: str) -> tuple[Tensor, Tensor]:
    """Undo `transform`: return prices in ticks, float64, not rounded, and sizes, float32.

    values: (B, T, L, 2); both results are (B, T, L).
    """
    price, size = values[..., 0].float(), values[..., 1].float()
    if scheme == "book":
        offset = signed_exp(price * PRICE_SCALE) + parameters["mid"]
        sizes = torch.exp(size * SIZE_SCALE + parameters["size_centre"])
    else:
        ratio = price * parameters["price_range"] + parameters["price_low"]
        offset = ratio * parameters["anchor_ticks"].float().abs().clamp(min=1.0)
        sizes = size * parameters["size_range"] + parameters["size_low"]
    return parameters["anchor_ticks"].double() + offset.double(), sizes
