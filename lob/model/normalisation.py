"""From ticks and sizes to what a network sees, and back; scriptable torch, on any device.

Axes: B window, T state, L level, F field (0 price, 1 size). `mask` is bool (B, T, L, F), True where
a value is hidden. No parameter is made from a hidden value, so what the network is given can't
depend on one. There is one exception: the anchor of a window that shows no price. Its targets count
from that anchor; what the network is given does not.

Schemes (`normalization`):
- 'book': price as signed log of the distance in ticks from the state's mid, log1p(|d|) sign(d) / 4;
  size as (log(size) - mean of the window's visible log sizes) / 2. The mid is linear in time where
  a best price is hidden. Where `causal`, the mean is over the states up to each one.
- 'minmax': price divided by the level's first visible price, sizes as they are, each min-max scaled
  over the window's visible values: the scheme of the published reference, for comparison.
"""

import torch
from torch import Tensor

SCHEMES = ("book", "minmax")
PRICE_SCALE = 4.0  # log1p of a few hundred to a few thousand ticks, brought to about 1 to 2
SIZE_SCALE = 2.0  # log sizes of a crypto book have a standard deviation near 2


def nearest_known(known: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Where along `dim` the nearest known entry at or before and at or after each one lies, int64
    of `known`'s shape.

    -1 stands for none before, the axis' length for none after.
    """
    size = known.shape[dim]
    shape = [1] * known.dim()
    shape[dim] = size
    at = torch.arange(size, device=known.device).view(shape).expand_as(known)
    before = torch.cummax(torch.where(known, at, torch.full_like(at, -1)), dim=dim)[0]
    after = torch.cummin(torch.where(known, at, torch.full_like(at, size)).flip([dim]), dim=dim)[
        0
    ].flip([dim])
    return before, after


def interpolate_time(values: Tensor, known: Tensor) -> Tensor:
    """Fill `values` (B, T, ...) where not `known`, linearly in T between the nearest known ones of
    the same column.

    Before the first and after the last known one its value is carried; a column with none known
    becomes 0.
    """
    steps = values.shape[1]
    before, after = nearest_known(known)
    has_before, has_after = before >= 0, after < steps
    before = torch.where(has_before, before, torch.where(has_after, after, torch.zeros_like(after)))
    after = torch.where(has_after, after, before)
    left, right = torch.gather(values, 1, before), torch.gather(values, 1, after)
    time = torch.arange(steps, device=values.device).view([1, steps] + [1] * (values.dim() - 2))
    share = (time - before).to(values.dtype) / (after - before).clamp(min=1)
    return torch.where(
        has_before | has_after, left + (right - left) * share, torch.zeros_like(left)
    )


def signed_log(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(torch.abs(x))


def signed_exp(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.expm1(torch.abs(x))


def masked_mean(x: Tensor, known: Tensor) -> Tensor:
    """Mean of `x` (B, T, L) over the known entries of each window, (B, 1, 1); 0 where none is
    known.

    Summed by state first: in one run over 25,000 entries a runtime that adds them in turn loses a
    digit and a half.
    """
    total = (
        torch.where(known, x, torch.zeros_like(x)).sum(dim=2, keepdim=True).sum(dim=1, keepdim=True)
    )
    return total / known.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def running_mean(x: Tensor, known: Tensor) -> Tensor:
    """Mean of `x` (B, T, L) over the known entries of each state and those before it, (B, T, 1); 0
    where none is.
    """
    total = torch.where(known, x, torch.zeros_like(x)).sum(dim=2, keepdim=True).cumsum(dim=1)
    return total / known.sum(dim=2, keepdim=True).cumsum(dim=1).clamp(min=1)


def masked_range(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Least known value of each window and the range above it, both (B, 1, 1); 1 for a window of
    equal values.
    """
    low = torch.where(known, x, torch.full_like(x, float("inf"))).amin(dim=(1, 2), keepdim=True)
    high = torch.where(known, x, torch.full_like(x, float("-inf"))).amax(dim=(1, 2), keepdim=True)
    low = torch.where(torch.isinf(low), torch.zeros_like(low), low)
    return low, torch.where(high > low, high - low, torch.ones_like(low))


def first_known_price(price_ticks: Tensor, known: Tensor) -> Tensor:
    """Return the first visible price of each level in time, int64 (B, 1, L).

    A level that shows none takes the window's first visible price. A window that shows none takes
    its first entry, so that targets stay small; `Reconstruction` undoes that.
    """
    first = known.to(torch.int8).argmax(dim=1, keepdim=True)
    per_level = torch.gather(price_ticks, 1, first)
    flat = known.flatten(1).to(torch.int8).argmax(dim=1, keepdim=True)
    any_level = torch.gather(price_ticks.flatten(1), 1, flat).unsqueeze(2)
    return torch.where(known.any(dim=1, keepdim=True), per_level, any_level)


def state_mids(offset: Tensor, known: Tensor) -> Tensor:
    """Mid of each state, (B, T, 1), in the units of the prices `offset` (B, T, L), from visible
    prices alone.

    Exact where both best prices are visible, linear in time between such states. A window without
    one takes the mean of the innermost visible bid and ask of each state instead, and one without
    such a state the mean visible price.
    """
    half = offset.shape[2] // 2
    best = known[:, :, half - 1] & known[:, :, half]
    mid = (offset[:, :, half - 1] + offset[:, :, half]) * 0.5
    bids, asks = known[:, :, :half], known[:, :, half:]
    inner_bid = torch.where(
        bids, offset[:, :, :half], torch.full_like(offset[:, :, :half], float("-inf"))
    ).amax(dim=2)
    inner_ask = torch.where(
        asks, offset[:, :, half:], torch.full_like(offset[:, :, half:], float("inf"))
    ).amin(dim=2)
    inner = bids.any(dim=2) & asks.any(dim=2)
    inner_mid = torch.where(inner, (inner_bid + inner_ask) * 0.5, torch.zeros_like(mid))
    mean = masked_mean(offset, known).squeeze(2).expand_as(mid)
    fallback = torch.where(inner.any(dim=1, keepdim=True), interpolate_time(inner_mid, inner), mean)
    mids = torch.where(best.any(dim=1, keepdim=True), interpolate_time(mid, best), fallback)
    return mids.unsqueeze(2)


def fit(
    price_ticks: Tensor, sizes: Tensor, mask: Tensor, scheme: str, causal: bool = False
) -> dict[str, Tensor]:
    """Return the parameters of `scheme` for each window, from its visible values alone.

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
        return {
            "anchor_ticks": anchor,
            "mid": state_mids(offset, known_price),
            "size_centre": running_mean(log_sizes, known_size)
            if causal
            else masked_mean(log_sizes, known_size),
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
    """Return the normalised values, float32 (B, T, L, 2); prices may be fractions of a tick
    (float64).
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
    """Undo `transform`: price in ticks, float64 (B, T, L), not rounded, and size, float32 (B, T,
    L).
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
