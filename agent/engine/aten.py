"""One ``aten::`` node, ready to call: which operators of torch a model file may name, and what they may do.

A file is not trusted. Its operator must neither change its arguments nor touch files or memory that is not its own; its
results' shapes are derived from the inputs' before it first runs, and must be the ones that the graph states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import torch

from agent import graph as g
from agent.errors import BackendError

Tensors = dict[str, torch.Tensor]
CONTAINER = {"u8": torch.uint8, "s8": torch.int8, "s32": torch.int32, "f32": torch.float32}
# They read files, hand out memory as others left it, or trust arguments that only another library makes for them.
_REFUSED = ("from_file", "empty", "new_empty", "set_", "_test", "_debug", "mkldnn", "_mkldnn", "fbgemm", "_fbgemm",
            "quantized_", "sparse_", "_sparse", "_nested", "_cudnn", "cudnn", "miopen", "_sobol")  # fmt: skip


class AtenCall:
    """A node's operator with its arguments.

    Raises ``BackendError`` where torch has no such operator, where it may not run, or where its results don't have the
    shapes that the graph states; the last as far as it follows from the inputs' shapes, else in the call.
    """

    def __init__(self, node: g.Aten, tensors: Mapping[str, g.Tensor], constants: Mapping[str, torch.Tensor]) -> None:
        self.node, self.outputs = node, [tensors[name] for name in node.outputs]
        self.operator = _resolve(node)
        self.args = msgspec.json.decode(node.args)
        self.kwargs = msgspec.json.decode(node.kwargs)
        shapes = {t.name: torch.empty(t.shape, dtype=CONTAINER[t.dtype], device="meta")
                  for t in (tensors[name] for name in node.inputs)}  # fmt: skip
        device = {"device": "meta"} if any(a.name == "device" for a in self.operator._schema.arguments) else {}
        try:
            results = self._results(shapes, {k: v.to("meta") for k, v in constants.items()}, device)
        except Exception:  # the shapes depend on the values, or the arguments are wrong: the call will tell
            return
        self._check(results)

    def __call__(self, values: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor]) -> Tensors:
        """Activations and constants, by name, to the outputs, by name: contiguous, in their dtypes and shapes."""
        try:
            results = self._results(values, constants, {})
            self._check(results)
            return {
                t.name: y.to(CONTAINER[t.dtype]).reshape(t.shape).contiguous()
                for t, y in zip(self.outputs, results, strict=True)
            }
        except BackendError:
            raise
        except Exception as e:  # torch raises what it likes
            raise self._error(f"torch refuses it: {str(e)[:500]}") from e

    def _error(self, why: str) -> BackendError:
        return BackendError(f"node '{self.node.name}' ({self.node.target}): {why}")

    def _results(
        self, values: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor], more: dict[str, str]
    ) -> list[Any]:
        def bind(value: Any) -> Any:
            if isinstance(value, str) and value[:1] in ("$", "#"):
                name, _, kind = value[1:].partition(":")
                x = values[self.node.inputs[int(name)]] if value[0] == "$" else constants[name]
                return x.bool() if kind == "bool" else x.long() if x.dtype == torch.int32 else x
            return [bind(v) for v in value] if isinstance(value, list) else value

        kwargs = {k: bind(v) for k, v in self.kwargs.items()} | more
        result = self.operator(*(bind(v) for v in self.args), **kwargs)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def _check(self, results: list[Any]) -> None:
        if len(results) != len(self.outputs):
            raise self._error(f"it gives {len(results)} results, for {len(self.outputs)} outputs")
        for t, y in zip(self.outputs, results, strict=True):
            if not isinstance(y, torch.Tensor):
                raise self._error(f"it gives no tensor for '{t.name}'")
            if tuple(y.shape) != t.shape and (y.ndim or math.prod(t.shape) != 1):
                raise self._error(f"it gives shape {list(y.shape)} for '{t.name}'")


def _resolve(node: g.Aten) -> torch._ops.OpOverload:
    """The operator that a node names, where a model file may have it run."""
    name, _, overload = node.target.removeprefix("aten::").partition(".")
    operator = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise BackendError(f"node '{node.name}': this torch has no operator {node.target}")
    if operator._schema.is_mutable:
        raise BackendError(f"node '{node.name}': {node.target} changes its arguments and may not run")
    if name.startswith(_REFUSED):
        raise BackendError(f"node '{node.name}': {node.target} reaches beyond its arguments and may not run")
    return operator
