"""What a stream should give (lob/model/streaming.py), computed slowly from the whole recording.

Inputs are made by loops and a dictionary, one state after the other. The network then runs once
over all states in float64, with attention masked to a band. Nothing here is kept from state to
state, and nothing of the encoder but its weights is used.

Axes: N states, L level, C inputs, D width, H heads.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from lob.model.encoder import BookEncoder, EncoderConfig

MOVES = (1, 8, 64)


def reference_vectors(model: BookEncoder, price_ticks: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the vector of each state, float64 (N, D). price_ticks, sizes: (N, L)."""
    config = model.config
    weights = {name: x.detach().double() for name, x in model.state_dict().items()}
    prices = [[int(price) for price in row] for row in price_ticks]
    inputs = torch.from_numpy(reference_inputs(prices, sizes.astype(np.float64), config))

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    if config.cell_width:
        cells = linear(inputs, "stem.mix") + weights["stem.level"]
        for block, dilation in enumerate((1, 2, 4)):

            def conv(x, name, dilation=dilation):
                padded = F.pad(x.permute(2, 0, 1)[None], (1, 1, 2 * dilation, 0))
                kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
                return F.conv2d(padded, kernel, bias, dilation=(dilation, 1))[0].permute(1, 2, 0)

            name = f"stem.blocks.{block}"
            cells = cells + conv(gelu(conv(cells, f"{name}.conv1")), f"{name}.conv2")
        x = linear(linear(cells, "stem.pool").flatten(1), "stem.token")
    else:
        x = linear(inputs, "embed")

    states = torch.arange(len(x))
    back = states[:, None] - states
    inside = (back >= 0) & (back < config.temporal_dim)
    half = config.width // config.heads // 2
    turn = torch.polar(
        torch.ones(len(x), half, dtype=torch.float64),
        torch.outer(states.double(), 10000.0 ** (-torch.arange(half).double() / half)),
    )
    for number in range(config.layers):
        name = f"layers.{number}"
        qkv = linear(norm(x, f"{name}.norm1"), f"{name}.qkv").view(len(x), 3, config.heads, -1)
        q, k = (
            torch.complex(y[..., :half], y[..., half:]) * turn[:, None]
            for y in qkv[:, :2].unbind(1)
        )
        scores = torch.einsum("nhd,mhd->hnm", q, k.conj()).real / math.sqrt(2 * half)
        share = scores.masked_fill(~inside, -math.inf).softmax(-1)
        attended = torch.einsum("hnm,mhd->nhd", share, qkv[:, 2]).flatten(1)
        x = x + linear(attended, f"{name}.proj")
        x = x + linear(gelu(linear(norm(x, f"{name}.norm2"), f"{name}.fc1")), f"{name}.fc2")
    return norm(x, "norm").numpy()


def reference_inputs(
    prices: list[list[int]], sizes: np.ndarray, config: EncoderConfig
) -> np.ndarray:
    """Return what the network is given, float64 (N, L, 16), or (N, C) without convolutions."""
    half, states = config.depth // 2, config.temporal_dim
    logs = np.log(sizes)
    mids = [(row[half - 1] + row[half]) / 2 for row in prices]
    last_seen: dict[int, tuple[int, float]] = {}  # price -> state, log size
    rows = []
    for now, row in enumerate(prices):
        first = max(0, now - states + 1)
        centre = logs[first : now + 1].mean()
        moves = [signed_log(mids[now] - mids[max(first, now - reach)]) / 4 for reach in MOVES]
        cells = np.zeros((config.depth, 16))
        for level, price in enumerate(row):
            value = signed_log(price - mids[now]) / 4, (logs[now, level] - centre) / 2
            cells[level, [0, 1]] = cells[level, [4, 5]] = value
            cells[level, [6, 7]] = 1
            cells[level, [14, 12, 13]] = moves
            state, log_size = last_seen.get(price, (-1, 0.0))
            if state >= first:
                cells[level, 8] = (log_size - logs[now, level]) / 2
                cells[level, 10] = math.log1p(now - state) / 4
        last_seen |= {price: (now, logs[now, level]) for level, price in enumerate(row)}
        if config.cell_width:
            rows.append(cells)
            continue
        values, hidden = cells[:, :2].flatten(), np.zeros(2 * config.depth)
        fill = [] if config.fill == "none" else [values]
        flat = np.concatenate([values, hidden, *fill, moves])
        rows.append(np.pad(flat, (0, config.input_width - len(flat))))
    return np.stack(rows)


def signed_log(x: float) -> float:
    return math.copysign(math.log1p(abs(x)), x)
