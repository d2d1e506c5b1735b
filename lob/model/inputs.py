"""What the network takes: a window and its mask as tokens, and the fill that it corrects.

The *fill* is the first guess of each hidden value, before any learning. The *ladder* is one way to
make it, which looks hidden values up at the same price in other states (lob/model/ladder.py). A
*cell* is one level of one state.

Axes: B window, T state, L level, F field (0 price, 1 size), C inputs per state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lob.model.context import context_channels
from lob.model.encoder import MOVES, EncoderConfig
from lob.model.kernels import kernels_for
from lob.model.ladder import Ladder, find_ladder, linear_time
from lob.model.normalisation import SIZE_SCALE, fit, interpolate_time, signed_log, transform


def fill_hidden(
    ladder: Ladder | None,
    in_time: Tensor,
    sizes: Tensor,
    values: Tensor,
    mask: Tensor,
    parameters: dict[str, Tensor],
    config: EncoderConfig,
) -> Tensor:
    """Return the fill, float32 (B, T, L, F); zeros for the fill 'none'.

    in_time: `linear_time` of the values, for sizes that the ladder does not find.
    """
    if config.fill == "linear":
        return interpolate_time(values, ~mask)
    if ladder is not None:
        anchor = parameters["anchor_ticks"]
        if config.normalization == "minmax":  # has an anchor for each level; the ladder has one
            anchor = anchor[:, :, anchor.shape[2] // 2].unsqueeze(2)
        price_ticks = ladder.price.double() + anchor
        price = transform(price_ticks, sizes, parameters, config.normalization)[..., 0]
        return torch.stack([price, ladder.fill_sizes(values[..., 1], in_time[..., 1])], dim=3)
    return torch.zeros_like(values)


def build_inputs(
    price_ticks: Tensor,
    sizes: Tensor,
    mask: Tensor | None,
    config: EncoderConfig,
    times_ns: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Turn windows into what the encoder takes: tokens, base, values and parameters.

    price_ticks: int (B, T, L); sizes: float (B, T, L); mask: bool (B, T, L, F), True where hidden.
    Without a mask nothing is hidden, and the fill, which then equals the values, is not computed.
    times_ns: int64 (B, T), which an encoder that `reads_times` needs.

    - tokens: (B, T, C), or (B, T, L, CHANNELS and context) for a convolutional stem. A hidden value
      is 0 there and its mask bit is 1, so that it differs from a true zero;
    - base: the fill, (B, T, L, F);
    - values: the targets, (B, T, L, F), normalised;
    - parameters: those of the normalisation (lob/model/normalisation.py).

    Nothing in tokens or base depends on a hidden value. With `causal`, the scheme 'book' and
    nothing hidden, no token depends on a later state.
    """
    of_cells = config.cell_width and config.normalization == "book"
    of_cells = of_cells and not config.causal and not config.context
    if of_cells and (kernels := kernels_for(price_ticks, sizes)):
        return kernels.build_cells(price_ticks, sizes, mask)
    filled = mask is not None or config.fill == "none"
    ladder = None
    if config.cell_width or (filled and config.fill == "ladder"):
        ladder = find_ladder(price_ticks, mask)
    if mask is None:
        nothing = torch.zeros(sizes.shape, dtype=torch.bool, device=sizes.device)
        mask = nothing.unsqueeze(3).expand(-1, -1, -1, 2)
    parameters = fit(price_ticks, sizes, mask, config.normalization, config.causal)
    values = transform(price_ticks, sizes, parameters, config.normalization)
    joint, to_own = joint_values(values, parameters, config)
    in_time = linear_time(joint, ~mask) if filled and ladder is not None else joint
    base = values
    if filled:
        base = fill_hidden(ladder, in_time, sizes, joint, mask, parameters, config)
        if to_own is not None:
            base = torch.where(mask, base + to_own, values)
    batch, states = values.shape[:2]
    visible = values.masked_fill(mask, 0.0)
    path = mid_path(values, parameters, config)
    if ladder is not None and config.cell_width:
        windows = price_ticks, sizes, mask
        more = context_channels(config.context, *windows, parameters, times_ns)
        centre = parameters.get("size_centre") if config.causal else None
        cells = cell_channels(
            visible, mask, base, in_time, ladder, path, centre, config.causal, more
        )
        return cells, base, values, parameters
    channels = [visible.flatten(2), mask.flatten(2).to(values.dtype)]
    if config.fill != "none":
        channels.append(base.flatten(2))
    if config.normalization == "book":
        channels.append(path)
    used = sum(channel.shape[2] for channel in channels)
    channels.append(values.new_zeros(batch, states, config.input_width - used))
    return torch.cat(channels, dim=2), base, values, parameters


def joint_values(
    values: Tensor, parameters: dict[str, Tensor], config: EncoderConfig
) -> tuple[Tensor, Tensor | None]:
    """Return `values` with sizes less one mean for the whole window, and what takes them back.

    A fill joins sizes of several states. With `causal` each state's are less a mean of its own,
    (B, T, 1), so they must be brought together first, and the fill of a state back to its own mean.
    The second result, (B, T, 1, F), is to be added for that, or None where all have one mean.
    """
    if not config.causal or config.normalization != "book" or config.fill == "none":
        return values, None
    centre = parameters["size_centre"]
    of_sizes = F.pad((centre[:, -1:] - centre).unsqueeze(3) / SIZE_SCALE, (1, 0))
    return values - of_sizes, of_sizes


def mid_path(values: Tensor, parameters: dict[str, Tensor], config: EncoderConfig) -> Tensor:
    """Return signed logs of how far the mid has moved, float32 (B, T, P); zeros for 'minmax'.

    P is 1: from each state to the window's last. With `causal` it is len(MOVES): to each state from
    that many states before it, at most from the window's first. Such moves don't depend on where
    the window begins, so they are the same in a stream (lob/model/streaming.py).
    """
    batch, states = values.shape[:2]
    if config.normalization != "book":
        return values.new_zeros(batch, states, len(MOVES) if config.causal else 1)
    mid = parameters["mid"]
    if not config.causal:
        return signed_log(mid - mid[:, -1:]) / 4.0
    state = torch.arange(states, device=values.device)
    moves = [mid - mid[:, (state - reach).clamp(min=0)] for reach in MOVES]
    return signed_log(torch.cat(moves, dim=2)) / 4.0


def cell_channels(
    visible: Tensor,
    mask: Tensor,
    base: Tensor,
    in_time: Tensor,
    ladder: Ladder,
    path: Tensor,
    centre: Tensor | None,
    causal: bool,
    context: list[Tensor],
) -> Tensor:
    """Return the inputs of a convolutional stem, float32 (B, T, L, CHANNELS and context).

    They are, in this order,

    - the visible values, mask bits and fill of price and size;
    - whether price and size are visible or were found by the ladder;
    - the last and the next size at the same price, less the fill, and log1p of how many states
      away each of them is;
    - linear interpolation of price and size in time, less the fill;
    - the path of the mid, the same for all levels;
    - the level's mean visible size, less the fill;
    - `context`, (B, T, L) each.

    With `causal` they hold nothing of later states and no mean; the mid's longer moves stand in the
    place of linear interpolation. `centre`, (B, T, 1), is then the mean log size that was taken
    from each state's sizes: sizes of two states are compared by the later one's.
    """
    size = base[..., 1]
    levels = size.shape[2]
    own = torch.arange(size[0].numel(), device=size.device).view(size.shape[1:])  # t * L + l
    seen, fill = visible[..., 1], size
    if centre is not None:
        seen, fill = seen + centre / SIZE_SCALE, size + centre / SIZE_SCALE
    left, right = ladder.neighbours(seen)
    state = torch.arange(size.shape[1], device=size.device).unsqueeze(1)
    states_away = [(state - at // levels).abs() for at in (ladder.before, ladder.after)]
    far = [torch.log1p(away.to(size.dtype)) / 4.0 for away in states_away]
    nothing = torch.zeros_like(size)
    left, right = (torch.where(ladder.carried, x - fill, nothing) for x in (left, right))
    total = visible[..., 1].sum(1, keepdim=True)
    count = (~mask[..., 1]).sum(1, keepdim=True).clamp(min=1)
    mean = total / count - size
    in_time = in_time - base
    move, *moves = (x.expand_as(size) for x in path.split(1, dim=2))
    if causal:
        earlier = ladder.before < own
        left = torch.where(earlier, left, nothing)
        far = [torch.where(earlier, far[0], nothing), nothing]
        right, mean, in_time = nothing, nothing, torch.stack(moves, dim=3)
    channels = [
        *visible.unbind(3),
        *mask.to(size.dtype).unbind(3),
        *base.unbind(3),
        ladder.price_known.to(size.dtype),
        ladder.size_known.to(size.dtype),
        left,
        right,
        *far,
        *in_time.unbind(3),
        move,
        mean,
        *context,
    ]
    return torch.stack(channels, dim=3)
