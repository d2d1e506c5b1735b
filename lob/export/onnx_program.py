"""A network as an ONNX program: torch's own exporter, and translations of the scans and sorts that it lacks."""

import json
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lob.config import CheckFailed

OPSET = 18


def to_onnx(module: nn.Module, example: tuple[Tensor, ...], facts: dict[str, Any]) -> Any:
    """Return the `onnx.ModelProto` of a module in evaluation mode whose inputs and outputs `facts` names.

    Axis 0 of every input is free. `facts` become the program's metadata; with precision bf16 its matrices that bf16
    holds exactly are stored so. CheckFailed where this torch can't translate an operation.
    """
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=OPSET, verbose=False, input_names=list(facts["inputs"]),
            output_names=list(facts["outputs"]), dynamic_shapes=tuple({0: batch} for _ in example),
            custom_translation_table=translations(),
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = next((line for line in str(error).splitlines() if "Error'>" in line), str(error).splitlines()[0])
        raise CheckFailed(f"torch {torch.__version__} has no ONNX for this part ({reason.strip()}): "
                          "set --formats=\"['torchscript']\"") from None  # fmt: skip
    assert program is not None
    model = program.model_proto
    if facts["precision"] == "bf16":
        store_weights_in_bf16(model.graph)
    for item in (*model.graph.node, *model.graph.value_info):
        del item.metadata_props[:]  # this machine's paths
    onnx.helper.set_model_props(model, {"metadata.json": json.dumps(facts, indent=1)})
    return model


def translations() -> dict[Any, Any]:
    """What ONNX has no operation for, in steps that double or halve; shapes but the first axis are known."""
    import onnx
    from onnxscript import opset18

    op: Any = opset18

    def running(better: Any) -> Any:
        """cummax, cummin: the better of an entry and one before it; nobody reads the indices."""

        def translate(x: Any, dim: int) -> tuple[Any, Any]:
            steps, length = 1, x.shape[dim]
            while steps < length:
                early, late = op.Slice(x, [0], [length - steps], [dim]), op.Slice(x, [steps], [length], [dim])
                x = op.Concat(op.Slice(x, [0], [steps], [dim]), better(early, late), axis=dim)
                steps *= 2
            return x, x

        return translate

    def search(ordered: Any, values: Any, **unused: Any) -> Any:
        """How many of `ordered` (B, T, M) are less than each of `values` (B, T, L)."""
        count, steps = op.Cast(op.Mul(values, 0), to=onnx.TensorProto.INT64), 1 << ordered.shape[2].bit_length() - 1
        while steps:
            more = op.Add(count, steps)
            last = op.GatherElements(ordered, op.Sub(op.Min(more, ordered.shape[2]), 1), axis=2)
            less = op.And(op.Less(last, values), op.LessOrEqual(more, ordered.shape[2]))
            count, steps = op.Where(less, more, count), steps // 2
        return count

    def sort(x: Any, stable: bool, dim: int) -> tuple[Any, Any]:
        return op.TopK(x, [x.shape[dim]], axis=dim, largest=0)  # of equal ones the first comes first

    aten = torch.ops.aten
    return {aten.cummax.default: running(op.Max), aten.cummin.default: running(op.Min),
            aten.searchsorted.Tensor: search, aten.sort.stable: sort}  # fmt: skip


def store_weights_in_bf16(graph: Any) -> None:
    """Halve the matrices of an ONNX graph that bf16 holds exactly; casts in front of the graph widen them again."""
    import onnx

    for number, weight in enumerate(list(graph.initializer)):
        array = onnx.numpy_helper.to_array(weight)
        short = torch.from_numpy(array.copy()).bfloat16() if array.dtype == np.float32 and array.ndim == 2 else None
        if short is None or not np.array_equal(short.float().numpy(), array):
            continue
        raw, name = short.view(torch.int16).numpy().tobytes(), f"{weight.name}_bf16"
        stored = onnx.helper.make_tensor(name, onnx.TensorProto.BFLOAT16, array.shape, raw, raw=True)
        graph.node.insert(number, onnx.helper.make_node("Cast", [name], [weight.name], to=onnx.TensorProto.FLOAT))
        graph.initializer.remove(weight)
        graph.initializer.append(stored)
