"""Which precision and recipe a GPU gets, and which dimensions they take, on any machine.

tests/test_gpu.py runs the recipes of the GPU that is there.
"""

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lob.config import InputError
from lob.model.encoder import encoder_config
from lob.training.precision import RECIPES, Precision, check_dimensions, choose_precision
from lob.training.te_layer import RECIPE_CLASSES, make_recipe


@pytest.mark.parametrize(
    ("name", "capability", "requested", "expected", "reason"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), "auto", "bf16", "needs compute capability 8.9 or newer"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "fastest", "bf16", "A100"),
        ("NVIDIA L4", (8, 9), "bf16", "bf16", "asked for"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "auto", "fp8", "the GPU has FP8"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "fastest", "bf16", "measured faster"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "fp8", None, "compute capability 8.9 or newer"),
    ],
)
def test_precision_follows_the_gpu(monkeypatch, name, capability, requested, expected, reason):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("lob.training.precision.te_obstacle", lambda: "")
    choose = (requested, "delayed", 192, torch.device("cuda"), 256)
    if expected is None:
        with pytest.raises(InputError, match=reason):
            choose_precision(*choose)
        return
    precision = choose_precision(*choose)
    assert precision.name == expected
    assert reason in precision.reason and name in precision.reason


class Engine:
    """Stands in for Transformer Engine on a GPU of any compute capability."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.recipe = ModuleType("transformer_engine.common.recipe")
        self.recipe.Format = SimpleNamespace(HYBRID="hybrid")
        for name in RECIPE_CLASSES.values():
            setattr(self.recipe, name, lambda name=name, **options: (name, options))
        common, te = ModuleType("transformer_engine.common"), ModuleType("transformer_engine")
        common.recipe, te.common, te.__version__ = self.recipe, common, "2.0.0"
        for module in (te, common, self.recipe):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr("lob.training.precision.te_obstacle", lambda: "")
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
        monkeypatch.setattr(torch.version, "cuda", "12.9")

    def choose(self, requested, recipe, capability, width=2048):
        self.monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return choose_precision(requested, recipe, width, torch.device("cuda"), 256)


@pytest.fixture
def engine(monkeypatch):
    made = Engine(monkeypatch)
    make_recipe.cache_clear()
    yield made
    make_recipe.cache_clear()


@pytest.mark.parametrize(
    ("capability", "recipe", "reason"),
    [
        ((8, 9), "delayed", "the mxfp8 recipe needs compute capability 10.0 or newer"),
        ((9, 0), "delayed", "the mxfp8 recipe needs compute capability 10.0 or newer"),
        ((10, 0), "mxfp8", "recipe mxfp8"),
        ((10, 3), "mxfp8", "recipe mxfp8"),
        ((12, 0), "delayed", "no mxfp8 recipe for compute capability 12.0"),
    ],
)
@pytest.mark.parametrize("requested", ["auto", "fastest", "fp8"])
def test_auto_takes_the_best_recipe_that_the_gpu_has(engine, capability, recipe, reason, requested):
    precision = engine.choose(requested, "auto", capability)
    assert (precision.name, precision.recipe) == ("fp8", recipe)
    assert reason in precision.reason


def test_auto_takes_delayed_if_transformer_engine_is_too_old(engine):
    del engine.recipe.MXFP8BlockScaling
    precision = engine.choose("auto", "auto", (10, 0))
    assert precision.recipe == "delayed"
    assert "Transformer Engine 2.0.0 has no mxfp8 recipe" in precision.reason


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_each_recipe_is_had_from_its_capability_on_and_refused_below(engine, recipe):
    needed = RECIPES[recipe]
    assert engine.choose("fp8", recipe, needed).recipe == recipe
    below = (needed[0], needed[1] - 1) if needed[1] else (needed[0] - 1, 9)
    remedy = "fp8_recipe = 'auto'" if below >= RECIPES["delayed"] else "precision = 'bf16'"
    words = (
        rf"fp8_recipe = '{recipe}': .* needs compute .* {needed[0]}\.{needed[1]} .* use {remedy}$"
    )
    with pytest.raises(InputError, match=words):
        engine.choose("fp8", recipe, below)
    precision = engine.choose("auto", recipe, below)
    assert (precision.name, precision.recipe) == ("bf16", "")
    assert "needs compute capability" in precision.reason


@pytest.mark.parametrize("recipe", ["block", "mxfp8", "nvfp4"])
def test_a_recipe_that_the_library_lacks_is_refused(engine, recipe):
    delattr(engine.recipe, RECIPE_CLASSES[recipe])
    with pytest.raises(InputError, match=f"Transformer Engine 2.0.0 has no {recipe} recipe"):
        engine.choose("fp8", recipe, (10, 0))


def test_no_mxfp8_where_transformer_engine_has_none_yet(engine):
    with pytest.raises(InputError, match=r"no mxfp8 recipe for .* 12.0 .* use fp8_recipe = 'auto'"):
        engine.choose("fp8", "mxfp8", (12, 0))
    assert engine.choose("fp8", "nvfp4", (12, 0)).recipe == "nvfp4"


def test_recipes_are_those_of_transformer_engine(engine):
    assert set(RECIPE_CLASSES) == set(RECIPES)
    assert make_recipe("mxfp8") == ("MXFP8BlockScaling", {})
    assert make_recipe("nvfp4") == ("NVFP4BlockScaling", {})
    name, options = make_recipe("delayed")
    assert name == "DelayedScaling" and options["reduce_amax"] is False


def test_fp8_takes_dimensions_of_multiples_of_16_alone():
    fp8, good = Precision("fp8", "delayed", ""), encoder_config("deep_narrow_transformer")
    check_dimensions(good, 3, fp8)
    wrong: list[tuple[dict, int, str]] = [
        ({"width": 200, "heads": 4}, 16, "width = 200"),
        ({"ffn_width": 1000}, 16, "ffn_width = 1000"),
        ({"temporal_dim": 100}, 3, "batch_size x temporal_dim = 300"),
    ]
    for changes, size, said in wrong:
        config = replace(good, **changes)
        with pytest.raises(InputError, match=f"{said} must be a multiple of 16"):
            check_dimensions(config, size, fp8)
        check_dimensions(config, size, Precision("bf16", "", ""))
    with pytest.raises(InputError, match="even multiple"):
        check_dimensions(replace(good, heads=7), 16, Precision("fp32", "", ""))


@pytest.mark.parametrize(
    ("recipe", "changes", "batch", "said"),
    [
        ("mxfp8", {"width": 208, "heads": 4}, 32, "width = 208 must be a multiple of 32"),
        ("mxfp8", {"ffn_width": 1008}, 32, "ffn_width = 1008 must be a multiple of 32"),
        ("mxfp8", {"temporal_dim": 48}, 3, "batch_size x temporal_dim = 144 must .* of 32"),
        ("mxfp8", {"temporal_dim": 48}, 4, "temporal_dim = 48 must be a multiple of 32"),
        ("mxfp8", {"temporal_dim": 64, "width": 224, "outlook": True}, 1, ""),
        ("nvfp4", {"temporal_dim": 40}, 2, "temporal_dim = 40 must be a multiple of 16"),
        ("nvfp4", {"temporal_dim": 48, "width": 208, "heads": 4}, 3, ""),
        ("block", {"temporal_dim": 40}, 2, "temporal_dim = 40 must be a multiple of 16"),
        # A window alone has 40 rows, enough for a forward pass; 2 of 8 are asked for an outlook.
        ("delayed", {"temporal_dim": 40, "outlook": True}, 8, ""),
        ("delayed", {"temporal_dim": 40, "outlook": True}, 10, "rounded up, x temporal_dim = 120"),
        ("delayed", {"temporal_dim": 40, "outlook": False}, 10, ""),
        ("current", {"temporal_dim": 36}, 4, "temporal_dim = 36 must be a multiple of 8"),
    ],
)
def test_each_recipe_has_its_own_dimensions(recipe, changes, batch, said):
    config = replace(encoder_config("deep_narrow_transformer"), **changes)
    if not said:
        check_dimensions(config, batch, Precision("fp8", recipe, ""))
        return
    with pytest.raises(InputError, match=said):
        check_dimensions(config, batch, Precision("fp8", recipe, ""))
