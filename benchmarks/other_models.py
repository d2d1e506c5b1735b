"""Networks of the literature, trained from scratch beside the encoder (benchmarks/bench_labels.py).

They are written from their papers; numbers of layers, widths and states are the published ones:

- DeepLOB (Zhang, Zohren and Roberts 2019, arXiv:1808.03668): convolutions, an inception module and
  an LSTM over 100 states;
- BiN-C(TABL) (Tran, Kanniainen, Gabbouj and Iosifidis 2021, arXiv:2109.00983; C(TABL): Tran et al.
  2019, arXiv:1712.00975): normalisation along both axes, bilinear layers and temporal attention
  over 10 states;
- MLPLOB and TLOB (Berti and Kasneci 2025, arXiv:2502.15757): mixing of features and states by
  layers of neurons over 384 states, or by attention over 128.

`BookNetwork` gives them what they are made for: the 10 best levels of each side, price and size
each, z-scored by training windows. It differs from the papers in two things. Prices count from the
window's last mid and sizes are logarithms: prices as such leave the range that was fitted within
minutes. And a network sees the last states of a window, at most as many as the window has.

Axes: B window, T state, L level, F input of a state (4 a level), N outputs.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 10  # of a side
NEVER_SPREAD = 1e-4  # a deviation below this divides nothing
LARGEST_NORM = 10.0  # of a weight matrix of C(TABL)


class DeepLOB(nn.Module):
    """Inputs (B, T, F), ask price and size, bid price and size of each level, to (B, N)."""

    def __init__(self, states: int, inputs: int, outputs: int):
        super().__init__()
        if states < 19:
            raise ValueError(f"{states} states: the convolutions of DeepLOB take 19 at least")
        self.blocks = nn.Sequential(
            make_block(1, (1, 2), (1, 2), nn.LeakyReLU),  # price and size of a side
            make_block(32, (1, 2), (1, 2), nn.Tanh),  # both sides of a level
            make_block(32, (1, inputs // 4), (1, 1), nn.LeakyReLU),  # all levels
        )
        self.short = nn.Sequential(*convolve(32, 64, (1, 1)), *convolve(64, 64, (3, 1)))
        self.long = nn.Sequential(*convolve(32, 64, (1, 1)), *convolve(64, 64, (5, 1)))
        self.pooled = nn.Sequential(
            nn.MaxPool2d((3, 1), stride=1, padding=(1, 0)), *convolve(32, 64, (1, 1))
        )
        self.lstm = nn.LSTM(3 * 64, 64, batch_first=True)
        self.head = nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x.unsqueeze(1))
        x = torch.cat([self.short(x), self.long(x), self.pooled(x)], dim=1)
        hidden, _ = self.lstm(x.squeeze(3).transpose(1, 2))
        return self.head(hidden[:, -1])


def make_block(
    channels: int,
    across: tuple[int, int],
    stride: tuple[int, int],
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    """Return a convolution over the inputs of a state, and two over four states each."""
    layers: list[nn.Module] = []
    for kernel in (across, (4, 1), (4, 1)):
        step = stride if kernel == across else (1, 1)
        layers += [nn.Conv2d(channels, 32, kernel, step), activation(), nn.BatchNorm2d(32)]
        channels = 32
    return nn.Sequential(*layers)


def convolve(channels: int, width: int, kernel: tuple[int, int]) -> list[nn.Module]:
    """Return a convolution that keeps the number of states, with what follows it."""
    layer = nn.Conv2d(channels, width, kernel, padding="same")
    return [layer, nn.LeakyReLU(), nn.BatchNorm2d(width)]


class BilinearNormalisation(nn.Module):
    """BiN: z-scores of each input over the states and of each state over its inputs, (B, F, T).

    Both are scaled and shifted by learned numbers and added with learned weights, 0 or more.
    """

    def __init__(self, states: int, inputs: int):
        super().__init__()
        self.scale_in_time = nn.Parameter(nn.init.xavier_normal_(torch.empty(inputs, 1)))
        self.shift_in_time = nn.Parameter(torch.zeros(inputs, 1))
        self.scale_in_state = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, states)))
        self.shift_in_state = nn.Parameter(torch.zeros(1, states))
        self.weight_in_time = nn.Parameter(torch.full((1,), 0.5))
        self.weight_in_state = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        in_time = self.scale_in_time * standardise(x, 2) + self.shift_in_time
        in_state = self.scale_in_state * standardise(x, 1) + self.shift_in_state
        return self.weight_in_time.relu() * in_time + self.weight_in_state.relu() * in_state


def standardise(x: Tensor, dim: int) -> Tensor:
    spread = x.std(dim, keepdim=True)
    spread = torch.where(spread < NEVER_SPREAD, torch.ones_like(spread), spread)
    return (x - x.mean(dim, keepdim=True)) / spread


class Bilinear(nn.Module):
    """relu(A x B + bias): (B, F, T) to (B, F', T')."""

    def __init__(self, inputs: int, states: int, inputs_after: int, states_after: int):
        super().__init__()
        self.left = make_weight(inputs_after, inputs)
        self.right = make_weight(states, states_after)
        self.bias = nn.Parameter(torch.zeros(inputs_after, states_after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(limit(self.left) @ x @ limit(self.right) + self.bias)


class TemporalAttention(nn.Module):
    """TABL: (B, F, T) to (B, F', T'); each new input weighs the states, softly, by `mix`."""

    def __init__(self, inputs: int, states: int, inputs_after: int, states_after: int):
        super().__init__()
        self.left = make_weight(inputs_after, inputs)
        self.among_states = nn.Parameter(torch.full((states, states), 1 / states))
        self.right = make_weight(states, states_after)
        self.bias = nn.Parameter(torch.zeros(inputs_after, states_after))
        self.mix = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = limit(self.left) @ x
        states = x.shape[2]
        own = torch.eye(states, dtype=torch.bool, device=x.device)
        among = torch.where(own, 1 / states, limit(self.among_states))
        attention = torch.softmax(x @ among, dim=2)
        mix = self.mix.clamp(0, 1)
        return (mix * x + (1 - mix) * attention * x) @ limit(self.right) + self.bias


def make_weight(rows: int, columns: int) -> nn.Parameter:
    weight = torch.empty(rows, columns)
    return nn.Parameter(nn.init.kaiming_uniform_(weight, nonlinearity="relu"))


def limit(weight: Tensor) -> Tensor:
    """Return a weight matrix shrunk to a norm of LARGEST_NORM at most."""
    return weight * (LARGEST_NORM / weight.norm().clamp(min=LARGEST_NORM))


class BinCtabl(nn.Module):
    """BiN-C(TABL): inputs (B, T, F) to (B, N)."""

    def __init__(self, states: int, inputs: int, outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            BilinearNormalisation(states, inputs),
            Bilinear(inputs, states, 60, 10),
            nn.Dropout(0.1),
            Bilinear(60, 10, 120, 5),
            nn.Dropout(0.1),
            TemporalAttention(120, 5, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.transpose(1, 2)).squeeze(2)


class Mixer(nn.Module):
    """Two layers of neurons over the last axis, (B, X, D) to (B, X, D')."""

    def __init__(self, width: int, hidden: int, width_after: int):
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width_after)
        self.norm = nn.LayerNorm(width_after)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.gelu(self.first(x)))
        return F.gelu(self.norm(y + x if y.shape == x.shape else y))


class Attention(nn.Module):
    """Self-attention over the middle axis, then a mixer over the last, (B, X, D) to (B, X, D').

    Queries, keys and values are projected before and within the attention, as the authors do.
    """

    def __init__(self, width: int, width_after: int, heads: int):
        super().__init__()
        inner = width * heads
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.attention = nn.MultiheadAttention(inner, heads, batch_first=True)
        self.join = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)
        self.mixer = Mixer(width, 4 * width, width_after)

    def forward(self, x: Tensor) -> Tensor:
        given = self.query(x), self.key(x), self.value(x)
        attended, _ = self.attention(*given, need_weights=False)
        y = self.mixer(self.norm(self.join(attended) + x))
        return y + x if y.shape == x.shape else y


class DualNetwork(nn.Module):
    """MLPLOB and TLOB: layers over features and over states in turn, (B, T, F) to (B, N).

    The last pair of layers keeps a quarter of the features and of the states.
    """

    def __init__(self, states: int, inputs: int, outputs: int, width: int, first: nn.Module):
        super().__init__()
        self.normalise = BilinearNormalisation(states, inputs)
        self.embed = nn.Sequential(nn.Linear(inputs, width), first)
        self.pairs = nn.ModuleList()
        numbers = (width // 4) * (states // 4)
        layers: list[nn.Module] = []
        while numbers > 128:
            layers += [nn.Linear(numbers, numbers // 4), nn.GELU()]
            numbers //= 4
        self.head = nn.Sequential(*layers, nn.Linear(numbers, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.normalise(x.transpose(1, 2)).transpose(1, 2))
        for over_features, over_states in self.pairs:
            x = over_states(over_features(x).transpose(1, 2)).transpose(1, 2)
        return self.head(x.transpose(1, 2).flatten(1))


class MLPLOB(DualNetwork):
    """Three pairs of mixers of width 40."""

    def __init__(self, states: int, inputs: int, outputs: int, width: int = 40, pairs: int = 3):
        super().__init__(states, inputs, outputs, width, nn.GELU())
        for number in range(pairs):
            wider, less = (2, 4) if number == pairs - 1 else (4, 1)
            mixers = [Mixer(axis, wider * axis, axis // less) for axis in (width, states)]
            self.pairs.append(nn.ModuleList(mixers))


class TLOB(DualNetwork):
    """Four pairs of attention layers of width 40 and one head, with sinusoidal positions."""

    def __init__(
        self,
        states: int,
        inputs: int,
        outputs: int,
        width: int = 40,
        pairs: int = 4,
        heads: int = 1,
    ):
        super().__init__(states, inputs, outputs, width, Positions(states, width))
        for number in range(pairs):
            less = 4 if number == pairs - 1 else 1
            layers = [Attention(axis, axis // less, heads) for axis in (width, states)]
            self.pairs.append(nn.ModuleList(layers))


class Positions(nn.Module):
    """Adds sines and cosines of each state's position (Vaswani et al. 2017, arXiv:1706.03762)."""

    table: Tensor

    def __init__(self, states: int, width: int):
        super().__init__()
        frequency = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        angle = torch.outer(torch.arange(states).float(), frequency)
        table = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Published(NamedTuple):
    """A network of the literature and the number of states that it was published with."""

    make: Callable[[int, int, int], nn.Module]  # states, inputs of a state, outputs
    states: int
    words: str


PUBLISHED = {
    "deeplob": Published(DeepLOB, 100, "DeepLOB"),
    "binctabl": Published(BinCtabl, 10, "BiN-C(TABL)"),
    "mlplob": Published(MLPLOB, 384, "MLPLOB"),
    "tlob": Published(TLOB, 128, "TLOB"),
}


class BookNetwork(nn.Module):
    """A network of the literature as one of windows: price_ticks and sizes (B, T, L) to (B,).

    windows: (price_ticks, sizes, times) of training windows, in batches, which the z-scores are
    fitted on.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, name: str, states: int, depth: int, windows: Iterable[tuple[Tensor, ...]]):
        super().__init__()
        published = PUBLISHED[name]
        self.states, self.levels = min(states, published.states), min(LEVELS, depth // 2)
        inputs = [
            read_levels(price, sizes, self.states, self.levels) for price, sizes, *_ in windows
        ]
        seen = torch.cat(inputs).flatten(0, 1)
        self.register_buffer("mean", seen.mean(0))
        self.register_buffer("spread", seen.std(0).clamp(min=NEVER_SPREAD))
        self.network = published.make(self.states, 4 * self.levels, 1)

    def forward(self, price_ticks: Tensor, sizes: Tensor, _: Tensor | None = None) -> Tensor:
        inputs = read_levels(price_ticks, sizes, self.states, self.levels)
        return self.network((inputs - self.mean) / self.spread)[:, 0]


def read_levels(price_ticks: Tensor, sizes: Tensor, states: int, levels: int) -> Tensor:
    """Return inputs of the last `states` states, float32 (B, states, 4 levels).

    For each level from the best on: ask price, log ask size, bid price, log bid size. Prices are
    bps from the window's last mid.
    """
    half = price_ticks.shape[2] // 2
    last = price_ticks[:, -1, half - 1 : half + 1].double().mean(1).view(-1, 1, 1)
    price = (price_ticks[:, -states:].double() - last) / last.abs().clamp(min=0.5) * 1e4
    found = []
    for side in (slice(half, half + levels), slice(half - levels, half)):
        for values in (price.float(), sizes[:, -states:].float().log()):
            some = values[:, :, side]
            found.append(some if side.start == half else some.flip(2))
    return torch.stack(found, dim=3).flatten(2)
