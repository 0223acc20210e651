"""What every importer fills: the graph in the making, with its tensors, nodes and constants.

    b = GraphBuilder()
    x = b.tensor("x", (1, 8, 8, 1), "u8", 1 / 255, 0)
    y = b.tensor("y", (1, 8, 8, 1), "u8", 1 / 255, 0)
    b.lut(x, y, np.tanh, "tanh")
    graph, constants = b.finish([x], [y])

A tensor carries the name of the source's tensor that it equals, so that both can be compared layer by layer; a node
has the name of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from agent import graph as g
from agent.arithmetic import container_range, requantize_table, softmax_table
from agent.errors import ModelError
from agent.validate import node_inputs, node_outputs


class GraphBuilder:
    """Collects tensors, nodes and constants, and keeps their names unique."""

    def __init__(self, constant_bytes: int = 1 << 33) -> None:
        """constant_bytes: how much constants may take, where a file could name the same bytes again and again."""
        self.nodes: list[g.Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._tensors: dict[str, g.Tensor] = {}
        self._left = constant_bytes
        self._numbers: dict[str, int] = {}  # the last one given to a name

    def tensor(
        self, name: str, shape: Sequence[int], dtype: g.Dtype, scale: float = 0.0, zero_point: int = 0
    ) -> g.Tensor:
        """A new activation; its scale is rounded to fp32, its name made unique."""
        t = g.Tensor(self.unique(name), tuple(map(int, shape)), dtype, float(np.float32(scale)), int(zero_point))
        self._tensors[t.name] = t
        return t

    def like(self, x: g.Tensor, name: str, shape: Sequence[int]) -> g.Tensor:
        """A new activation of x's dtype and quantization."""
        return self.tensor(name, shape, x.dtype, x.scale, x.zero_point)

    def unique(self, name: str) -> str:
        """The name, or, where it is taken, the name with a number."""
        return self._free(name, self._tensors)

    def _free(self, name: str, taken: Mapping[str, object]) -> str:
        base = name
        while name in taken:
            self._numbers[base] = self._numbers.get(base, 0) + 1
            name = f"{base}_{self._numbers[base]}"
        return name

    def constant(self, name: str, array: np.ndarray) -> str:
        """Adds a constant under a name of its own, and returns that."""
        name = self._free(name, self.constants)
        self._left -= array.nbytes
        if self._left < 0:
            raise ModelError(f"'{name}': the constants take more memory than the source can need")
        self.constants[name] = np.asarray(array, order="C")  # which keeps a scalar a scalar
        return name

    def add(self, node: g.Node) -> None:
        """Appends a node; its inputs have been produced."""
        self.nodes.append(node)

    def finish(self, inputs: Sequence[g.Tensor], outputs: Sequence[g.Tensor]) -> tuple[g.Graph, dict[str, np.ndarray]]:
        """The graph and its constants, without what no output needs."""
        needed = {t.name for t in outputs}
        kept: list[g.Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node_outputs(node)):
                needed.update(node_inputs(node))
                kept.append(node)
        made = {t.name for t in inputs}.union(*(node_outputs(n) for n in kept))
        tensors = tuple(t for name, t in self._tensors.items() if name in made)
        used = {str(getattr(n, field)) for n in kept for field in n.__struct_fields__}
        text = "".join(str(bytes(n.args) + bytes(n.kwargs)) for n in kept if isinstance(n, g.Aten))
        constants = {k: v for k, v in self.constants.items() if k in used or f'"#{k}' in text}
        names = (tuple(t.name for t in side) for side in (inputs, outputs))
        return g.Graph(tensors, tuple(reversed(kept)), *names), constants

    # Nodes whose constants follow from their tensors

    def lut(
        self,
        x: g.Tensor,
        y: g.Tensor,
        function: Callable[[np.ndarray], np.ndarray],
        name: str,
        lo: int | None = None,
        hi: int | None = None,
    ) -> None:
        """y = function(x), evaluated in double for each of the 256 containers (numerics.md 8). lo, hi: containers."""
        low, high = container_range(y)
        least, _ = container_range(x)
        values = (np.arange(256, dtype=np.float64) + least - x.zero_point) * x.scale
        q = np.rint(np.asarray(function(values), np.float64) / y.scale)
        q = np.where(np.isnan(q), 0, q) + y.zero_point
        q = np.clip(q, low if lo is None else lo, high if hi is None else hi) - low
        table = self.constant(f"{y.name}.table", q.astype(np.uint8))
        self.add(g.Lut(y.name, x.name, y.name, table, name))

    def requantize(self, x: g.Tensor, y: g.Tensor) -> None:
        """y holds x's values in its own quantization."""
        table = requantize_table(x, y)
        table = np.arange(256).astype(np.uint8) if table is None else table
        self.add(g.Lut(y.name, x.name, y.name, self.constant(f"{y.name}.table", table), "requantize"))

    def softmax(self, x: g.Tensor, y: g.Tensor, beta: float = 1.0) -> None:
        """y = softmax(beta * x) over the last axis."""
        table = self.constant(f"{y.name}.table", softmax_table(x.scale * beta))
        self.add(g.Softmax(y.name, x.name, y.name, table))

    def resize2d(self, x: g.Tensor, y: g.Tensor, rows: np.ndarray, columns: np.ndarray) -> None:
        """rows, columns: s32 [oh, 3], [ow, 3], of ``resize_table``."""
        names = (self.constant(f"{y.name}.{n}", t) for n, t in (("rows", rows), ("columns", columns)))
        self.add(g.Resize2d(y.name, x.name, y.name, *names))


def resize_table(positions: np.ndarray, extent: int, nearest: bool = False) -> np.ndarray:
    """s32 [n, 3] (low, high, weight of high in 2048ths) for sampling an axis of ``extent`` elements.

    positions: f64 [n], where each output lies among the elements, by whichever convention the source follows; they are
    clamped to the axis. nearest: the caller has rounded them.
    """
    at = np.clip(positions, 0, extent - 1)
    low = np.floor(at).astype(np.int32)
    weight = np.zeros_like(low) if nearest else np.rint((at - low) * 2048).astype(np.int32)
    return np.stack([low, np.minimum(low + 1, extent - 1), weight], axis=1).astype(np.int32)
