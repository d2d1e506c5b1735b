"""A network as an ONNX program, made by torch's exporter and the translations that it lacks."""

import json
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lob.config import CheckFailed

OPSET = 18


def to_onnx(module: nn.Module, example: tuple[Tensor, ...], facts: dict[str, Any]) -> Any:
    """Return the `onnx.ModelProto` of a module in evaluation mode; axis 0 of every input is free.

    facts: what becomes the program's metadata. Three of them are used: `inputs` and `outputs` give
    the names, and with the `precision` bf16 matrices that bf16 holds exactly are stored in it.
    Raises CheckFailed if this torch can't translate an operation.
    """
    import onnx
    import onnxscript.optimizer

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=list(facts["inputs"]),
            output_names=list(facts["outputs"]),
            dynamic_shapes=tuple({0: batch} for _ in example),
            custom_translation_table=translations(),
            optimize=False,  # its pattern search takes 40 s, for a program that runs as fast
        )
    except torch.onnx.OnnxExporterError as error:
        lines = str(error).splitlines()
        reason = next((line for line in lines if "Error'>" in line), lines[0]).strip()
        raise CheckFailed(
            f"torch {torch.__version__} has no ONNX for this part ({reason}): set "
            "--formats=\"['torchscript']\""
        ) from None
    assert program is not None
    onnxscript.optimizer.fold_constants(program.model)
    onnxscript.optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    if facts["precision"] == "bf16":
        store_weights_in_bf16(model.graph)
    for item in (*model.graph.node, *model.graph.value_info):
        del item.metadata_props[:]  # they hold paths of this machine
    onnx.helper.set_model_props(model, {"metadata.json": json.dumps(facts, indent=1)})
    return model


def translations() -> dict[Any, Any]:
    """Return a translation for each operation of the model that torch's exporter lacks.

    All shapes but the first axis are known, so loops over them are written out: a running extreme
    takes steps that double, a search takes steps that halve.
    """
    import onnx
    from onnxscript import opset18

    op: Any = opset18

    def running(better: Any) -> Any:
        """Translate cummax or cummin; the model never reads the indices, so `x` stands for them."""

        def translate(x: Any, dim: int) -> tuple[Any, Any]:
            length = x.shape[dim]
            steps = 1
            while steps < length:
                early = op.Slice(x, [0], [length - steps], [dim])
                late = op.Slice(x, [steps], [length], [dim])
                first = op.Slice(x, [0], [steps], [dim])
                x = op.Concat(first, better(early, late), axis=dim)
                steps *= 2
            return x, x

        return translate

    def search(ordered: Any, values: Any, **unused: Any) -> Any:
        """Return how many of `ordered` (B, T, M) are less than each of `values` (B, T, L)."""
        length = ordered.shape[2]
        count = op.Cast(op.Mul(values, 0), to=onnx.TensorProto.INT64)  # zeros of any batch size
        steps = 1 << length.bit_length() - 1
        while steps:
            more = op.Add(count, steps)
            last = op.GatherElements(ordered, op.Sub(op.Min(more, length), 1), axis=2)
            less = op.And(op.Less(last, values), op.LessOrEqual(more, length))
            count = op.Where(less, more, count)
            steps //= 2
        return count

    def sort(x: Any, stable: bool, dim: int) -> tuple[Any, Any]:
        # TopK puts the earlier one of equal entries first, as a stable sort does.
        return op.TopK(x, [x.shape[dim]], axis=dim, largest=0)

    aten = torch.ops.aten
    return {
        aten.cummax.default: running(op.Max),
        aten.cummin.default: running(op.Min),
        aten.searchsorted.Tensor: search,
        aten.sort.stable: sort,
    }


def store_weights_in_bf16(graph: Any) -> None:
    """Store the matrices of an ONNX graph that bf16 holds exactly in bf16, at half the size.

    Casts at the beginning of the graph make them float32 again.
    """
    import onnx

    for number, weight in enumerate(list(graph.initializer)):
        array = onnx.numpy_helper.to_array(weight)
        if array.dtype != np.float32 or array.ndim != 2:
            continue
        short = torch.from_numpy(array.copy()).bfloat16()
        if not np.array_equal(short.float().numpy(), array):
            continue
        name = f"{weight.name}_bf16"
        raw = short.view(torch.int16).numpy().tobytes()
        kind = onnx.TensorProto.BFLOAT16
        stored = onnx.helper.make_tensor(name, kind, array.shape, raw, raw=True)
        cast = onnx.helper.make_node("Cast", [name], [weight.name], to=onnx.TensorProto.FLOAT)
        graph.node.insert(number, cast)
        graph.initializer.remove(weight)
        graph.initializer.append(stored)
