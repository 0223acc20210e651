"""What has no int8 form: torch operators in float or in whole numbers, with their axes as in torch.

A torch value is f32, or s32 where torch has integers or truth values. Whatever can't be said in a model file (an
operator that is not aten's, a shape that depends on data) is refused at once, all of it in one message.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import torch
from torch.fx import GraphModule, Node

from agent import graph as g
from agent.errors import ModelError
from models.intake.aten.layouts import Value, identity
from models.intake.aten.operators import aten, dtypes_of, functional, shapes_of
from models.intake.aten.walk import Walk

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_PLACES = {"device", "layout", "pin_memory", "memory_format", "non_blocking"}
_CASTS = {aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.type_as.default}


def dtype_of(dtype: torch.dtype) -> g.Dtype | None:
    """The graph's dtype for a torch value that is not quantized."""
    return "f32" if dtype in FLOATS else "s32" if dtype in WHOLE else None


def refuse_what_has_no_form(module: GraphModule) -> None:
    """Raises ``ModelError`` that lists every node of a kind that no graph can hold."""
    found = []
    for node in module.graph.nodes:
        if node.op == "call_module":
            found.append(f"'{node.name}': a call of a module; export the module with torch.export")
        elif node.op == "call_function":
            why = _refusal(node)
            if why:
                found.append(f"'{node.name}': {node.target}: {why}")
    if found:
        raise ModelError("these operators have no form in a model file:\n  " + "\n  ".join(found))


def _refusal(node: Node) -> str | None:
    target = node.target
    if target is operator.getitem or getattr(target, "namespace", "") == "quantized_decomposed":
        return None
    if isinstance(target, torch._ops.HigherOrderOperator):
        return "control flow; export each branch as a model of its own, or write it with torch.where"
    schema = str(getattr(target, "_schema", ""))
    if not schema:
        return "a computation on shapes; export the module with fixed shapes"
    if not schema.startswith("aten::"):
        return "not an aten operator; write it with torch's own operators, or leave it out of the module"
    if any(isinstance(v, Node) and "val" in v.meta and isinstance(v.meta["val"], (torch.SymInt, torch.SymFloat))
           for v in node.all_input_nodes) or "sym_" in schema:  # fmt: skip
        return "a shape that varies; export the module with fixed shapes"
    masks = target is aten.index.Tensor and any(
        isinstance(i, Node) and dtypes_of(i)[0] in (torch.bool, torch.uint8) for i in node.args[1]
    )
    dynamic = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(target.tags)
    if masks or (dynamic and target is not aten.index.Tensor):
        return "its result's shape depends on data; leave it to what reads the model's output, or use torch.where, topk"
    return None


def emit(walk: Walk, node: Node, value: Callable[[Node], Value]) -> list[Value]:
    """An ``Aten`` node; its outputs. value: what a node has become, in torch's order, not quantized."""
    target, args, kwargs = _plainly(node)
    if target is None:
        raise ModelError(f"node '{node.name}': {node.target} changes its argument and has no form that does not; "
                         "write it out of place")  # fmt: skip
    inputs: list[str] = []

    def encode(arg: Any) -> Any:
        if isinstance(arg, Node):
            constant = _float_constant(walk, arg)
            if constant is not None:
                name = walk.b.constant(f"{node.name}.{arg.name}", constant)  # fx names: no colons
                return f"#{name}:bool" if _is_bool(arg) else f"#{name}"
            t = value(arg).tensor
            if t.name not in inputs:
                inputs.append(t.name)
            return f"${inputs.index(t.name)}" + (":bool" if _is_bool(arg) else "")
        if isinstance(arg, (list, tuple)):
            return [encode(a) for a in arg]
        if isinstance(arg, float) and not math.isfinite(arg):
            raise ModelError(f"node '{node.name}': {arg} as an argument of {target} has no form in a model file; "
                             "use a finite number")  # fmt: skip
        if arg is None or (isinstance(arg, (bool, int, float, str)) and not str(arg).startswith(("$", "#"))):
            return arg
        raise ModelError(f"node '{node.name}': argument {arg!r} of {target} has no form in a model file")

    json = [msgspec.Raw(msgspec.json.encode(x)) for x in ([encode(a) for a in args],
                                                          {k: encode(v) for k, v in kwargs.items()})]  # fmt: skip
    values = []
    for i, (shape, dtype) in enumerate(zip(shapes_of(node), dtypes_of(node), strict=True)):
        kind = dtype_of(dtype)
        if kind is None:
            raise ModelError(f"node '{node.name}': {node.target} gives {dtype}, which no model file holds")
        t = walk.b.tensor(walk.name(node) if i == 0 else f"{walk.name(node)}.{i}", shape or (1,), kind)
        values.append(Value(t, identity(len(shape))))
    overload = target._overloadname
    full = target._schema.name + ("" if overload in ("", "default") else f".{overload}")
    names = tuple(v.tensor.name for v in values)
    walk.b.add(g.Aten(names[0], full, tuple(inputs), names, *json))
    return values


def _is_bool(node: Node) -> bool:
    return dtypes_of(node)[0] is torch.bool


def _float_constant(walk: Walk, node: Node) -> np.ndarray | None:
    """An attribute, or a dequantized one, in the dtypes that a model file's constants have."""
    real = walk.real(node)
    if real is None:
        return None
    if real.dtype.kind == "f":
        return real.astype(np.float32)
    return real.astype(np.int64 if real.dtype == np.int64 else np.int32)


def _plainly(node: Node) -> tuple[Any, list[Any], dict[str, Any]]:
    """The operator and its arguments, without places in memory, dtypes and infinities, which have no form in JSON."""
    target, args = functional(node.target), list(node.args)
    kwargs = {k: v for k, v in node.kwargs.items() if v is not None and k not in _PLACES}
    dtype = kwargs.pop("dtype", None)
    if target in _CASTS:
        args, kwargs = args[:1], {}
        to, source = dtypes_of(node)[0], dtypes_of(node.args[0])[0]
        if to is torch.bool:
            return aten.ne.Scalar, [args[0], 0], kwargs
        if to in FLOATS:
            return (aten.clone.default, args, kwargs) if source in FLOATS else (aten.mul.Tensor, [args[0], 1.0], kwargs)
        return (aten.trunc.default, args, kwargs) if source in FLOATS else (aten.mul.Tensor, [args[0], 1], kwargs)
    if dtype is not None and dtype not in (torch.float32, torch.int64):
        raise ModelError(f"node '{node.name}': dtype={dtype} of {target} has no form in a model file; use float32")
    args = [None if isinstance(a, torch.dtype) else a for a in args]
    return target, args, kwargs
