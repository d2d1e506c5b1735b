"""Which arithmetic a run uses and why, and the encoder that is built for it.

Transformer Engine (TE) is NVIDIA's library of layers that multiply in FP8. A *recipe* is its way to
scale values into FP8's range, or under 'nvfp4' into that of four bits.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lob.config import InputError
from lob.model.encoder import BookEncoder, EncoderConfig, attend
from lob.training.objective import OUTLOOK_EVERY
from lob.training.te_layer import (
    TELayer,
    fp8_autocast,
    load_plain_state,
    recipe_obstacle,
    te_obstacle,
)

RECIPES = {  # compute capability it needs
    "delayed": (8, 9),
    "current": (8, 9),
    "block": (9, 0),
    "mxfp8": (10, 0),
    "nvfp4": (10, 0),
}
WITHOUT_MXFP8 = (12, 0)  # Transformer Engine 2.20 has it for the GPUs before this capability
FP8_PAYS_FROM_WIDTH = 768  # below it plain compiled bf16 was faster (H200, bench_widths)

# In order of preference: cuDNN's attention took 0.40 ms where FlashAttention 2 took 0.51 (H100, 192
# windows, 8 heads of width 24, forward and backward).
ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# With windows that are no multiple of so many states, cuDNN's attention ended in an illegal memory
# access within a CUDA graph (H200).
WHOLE_STATES = 128


@dataclass(frozen=True)
class Precision:
    """The arithmetic of the layers, and the reason for it."""

    name: str  # 'fp8', 'bf16' or 'fp32'
    recipe: str  # under FP8 one of RECIPES, else empty
    reason: str
    cudnn: bool = True  # whether cuDNN's attention is used if the GPU has it

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run a forward pass under this arithmetic.

        fp32 needs no autocast, bf16 torch's own, and fp8 Transformer Engine's within torch's.
        """
        has_gpu = torch.cuda.is_available()
        with contextlib.ExitStack() as stack:
            if has_gpu:
                kernels = ATTENTION if self.cudnn else ATTENTION[1:]
                stack.enter_context(sdpa_kernel(kernels, set_priority=True))
            if self.name != "fp32":
                stack.enter_context(torch.autocast("cuda" if has_gpu else "cpu", torch.bfloat16))
            if self.name == "fp8":
                stack.enter_context(fp8_autocast(self.recipe))
            yield


def choose_precision(
    requested: str, fp8_recipe: str, width: int, device: torch.device, temporal_dim: int
) -> Precision:
    """Return the precision to use, with the reason for it.

    requested: 'auto', 'fastest', 'fp8', 'bf16' or 'fp32'; fp8_recipe: 'auto' or one of RECIPES;
    width: of the encoder; temporal_dim: states of a window. Raises InputError if the hardware lacks
    what was asked for.
    """
    cudnn = temporal_dim % WHOLE_STATES == 0
    if device.type != "cuda":
        if requested in ("fp8", "bf16"):
            raise InputError(
                f"precision = {requested!r} needs an NVIDIA GPU, this machine shows none: "
                "use 'auto' or 'fp32'"
            )
        return Precision("fp32", "", "no NVIDIA GPU on this machine", cudnn)
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    gpu = f"{name}, compute capability {capability[0]}.{capability[1]}"
    recipe, chosen = choose_recipe(fp8_recipe, capability)
    missing = fp8_obstacle(recipe, capability)
    if requested == "fp8" and missing:
        other = fp8_obstacle("delayed", capability)
        remedy = "precision = 'bf16'" if other else "fp8_recipe = 'auto'"
        raise InputError(
            f"precision = 'fp8' with fp8_recipe = {fp8_recipe!r}: {missing} ({gpu}): use {remedy}"
        )
    if requested == "fp8":
        return Precision("fp8", recipe, f"asked for; {chosen}; {gpu}", cudnn)
    if requested in ("bf16", "fp32"):
        return Precision(requested, "", f"asked for; {gpu}", cudnn)
    if missing:
        return Precision("bf16", "", f"{missing} ({gpu})", cudnn)
    if requested == "fastest" and width < FP8_PAYS_FROM_WIDTH:
        why = f"at width {width} < {FP8_PAYS_FROM_WIDTH} bf16 was measured faster than FP8 ({gpu})"
        return Precision("bf16", "", why, cudnn)
    return Precision("fp8", recipe, f"the GPU has FP8; {chosen} ({gpu})", cudnn)


def choose_recipe(asked: str, capability: tuple[int, int]) -> tuple[str, str]:
    """Return the recipe that `asked`, 'auto' or one of RECIPES, means here, and words about it.

    'auto' takes mxfp8, Transformer Engine's own choice, where it can be had, and otherwise delayed
    scaling, which trains the recipes of docs/results.md. It never takes nvfp4: nobody has measured
    what four bits do to the loss.
    """
    if asked != "auto":
        return asked, f"recipe {asked}"
    missing = fp8_obstacle("mxfp8", capability)
    return ("delayed", f"recipe delayed: {missing}") if missing else ("mxfp8", "recipe mxfp8")


def fp8_obstacle(recipe: str, capability: tuple[int, int]) -> str:
    """Return why FP8 can't be used on a GPU of this compute capability, or an empty text."""
    need = RECIPES[recipe]
    if capability < need:
        return f"the {recipe} recipe needs compute capability {need[0]}.{need[1]} or newer"
    major, minor, *_ = (torch.version.cuda or "0.0").split(".")
    if recipe == "block" and (int(major), int(minor)) < (12, 9):
        return f"the block recipe needs CUDA 12.9, torch was built with {torch.version.cuda}"
    if recipe == "mxfp8" and capability >= WITHOUT_MXFP8:
        end = f"{WITHOUT_MXFP8[0]}.{WITHOUT_MXFP8[1]}"
        return f"Transformer Engine has no mxfp8 recipe for compute capability {end} and newer"
    return te_obstacle() or recipe_obstacle(recipe)


def check_dimensions(config: EncoderConfig, batch_size: int, precision: Precision) -> None:
    """Raise InputError if heads don't divide the width, or FP8's products can't take the shapes.

    batch_size: windows per pass. Every dimension of a product of a training pass must be a multiple
    of 16, under 'mxfp8' of 32. Validation may take a single window, forward only, for which eight
    are enough where a tensor has one scale.
    """
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise InputError(
            f"width {config.width} must be an even multiple of the number of heads {config.heads}"
        )
    if precision.name != "fp8":
        return
    recipe, states = precision.recipe, config.temporal_dim
    unit = 32 if recipe == "mxfp8" else 16
    sizes = {
        "width": (config.width, unit),
        "ffn_width": (config.ffn_width, unit),
        "batch_size x temporal_dim": (batch_size * states, unit),
        "temporal_dim": (states, 8 if recipe in ("delayed", "current") else unit),
    }
    if config.outlook:
        asked = -(-batch_size // OUTLOOK_EVERY)
        sizes[f"batch_size / {OUTLOOK_EVERY}, rounded up, x temporal_dim"] = asked * states, unit
    for name, (size, divisor) in sizes.items():
        if size % divisor:
            under = f"FP8, recipe {recipe}" if unit > 16 else "FP8"
            other = "fp8_recipe 'delayed' or " if unit > 16 else ""
            raise InputError(
                f"{name} = {size} must be a multiple of {divisor} under {under}: "
                f"change it or use {other}precision 'bf16'"
            )


@functools.cache
def compiled_attend() -> Callable[..., Tensor]:
    """Return `attend` compiled: the rotation becomes one pass over queries and keys."""
    return torch.compile(attend, dynamic=False)


def build_encoder(
    config: EncoderConfig, precision: Precision, device: torch.device, compiled: bool = False
) -> BookEncoder:
    """Return the encoder on `device`: of Transformer Engine layers under FP8, of plain ones
    otherwise.

    Both start from the same weights for the same torch seed. `compiled`: on a GPU, torch.compile is
    applied to plain layers, to Transformer Engine layers' attention, and to stem and decoder.
    """
    model = plain = BookEncoder(config)
    if precision.name == "fp8":
        model = BookEncoder(config, TELayer)
        load_plain_state(model.to(device), plain.state_dict())
    if compiled and device.type == "cuda":
        modules: list[nn.Module] = []
        for layer in model.layers:  # compiled one by one: one layer's code serves all
            if isinstance(layer, TELayer):
                layer.attend = compiled_attend()
            else:
                modules.append(layer)
        if config.cell_width:
            modules += [model.stem, model.decoder]
        # Windows that are no multiple of WHOLE_STATES broke mixed-order reductions too.
        options = {} if precision.cudnn else {"triton.mix_order_reduction": False}
        for module in modules:
            module.compile(dynamic=False, options=options)
    return model.to(device)
