"""A run of nodes as a native program: the graph in the kernels' terms.

Inside, every quantized tensor is u8 ("canonical"): an s8 tensor's zero point and clamps are shifted by 128, and its
bytes are flipped at the border of the program. The value of an element does not depend on its container.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from agent import arithmetic
from agent import graph as g
from agent.engine.choice import Choice, Choices, Option, Split
from agent.engine.segment import Array, StepInfo

try:
    from agent import _kernels

    IMPORT_ERROR: ImportError | None = None
except ImportError as e:  # not built for this machine: the engine falls back to torch, and says so
    IMPORT_ERROR = e

_NUMPY: dict[str, np.dtype[np.generic]] = {
    "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "s32": np.dtype(np.int32), "f32": np.dtype(np.float32)
}  # fmt: skip
# To give the interpreter lock away and get it back costs two switches of threads where others want it: more than a run
# of less than this.
_SHORT_S = 30e-6
_SHORT_MACS, _SHORT_BYTES, _SHORT_STEPS = 20_000_000, 2 << 20, 1000  # what takes longer, whatever the kernels


def available() -> bool:
    """Whether the extension could be loaded."""
    return IMPORT_ERROR is None


def supports(node: g.Node) -> bool:
    """Whether the node has a native kernel."""
    return not isinstance(node, g.Aten)


def isas() -> list[str]:
    """The instruction sets that can be forced here, the reference first, the best last."""
    return _kernels.isas() if available() else []


def resolve_isa(isa: str) -> str:
    """The instruction set that ``isa`` stands for here. Raises ValueError where there is none."""
    return _kernels.resolve_isa(isa)


def cpu() -> str:
    """Names this processor."""
    return _kernels.cpu()


@functools.cache
def kernels_digest() -> str:
    """Names the kernels' very build."""
    return hashlib.sha256(Path(_kernels.__file__).read_bytes()).hexdigest()[:32]


def peak_gmacs(isa: str) -> float:
    """10^9 multiply-accumulates a second of one thread when nothing but registers is touched; 0 for the reference."""
    return _kernels.peak_gmacs(isa) if available() else 0.0


class NativeSegment:
    """Consecutive nodes as one program. ``inputs`` and ``outputs`` name the tensors that cross its border.

    twins: programs of the same model, whose packed weights are shared where they fit.
    """

    backend = "native"

    def __init__(
        self,
        graph: g.Graph,
        constants: Mapping[str, Array],
        nodes: Sequence[g.Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        threads: int,
        isa: str,
        spin_us: int = 50,
        choices: Choices | None = None,
        twins: Sequence[_kernels.Program] = (),
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        tensors = {t.name: t for t in graph.tensors}
        self._made = [(tensors[name].shape, _NUMPY[tensors[name].dtype]) for name in outputs]
        self._nodes = tuple(nodes)
        builder = _kernels.Builder(isa, threads, spin_us)
        for name, c in (choices or {}).items():
            builder.choose(name, c.kernel, c.split, c.fused)
        for twin in twins:
            builder.share(twin)
        lowering = _Lowering(builder, tensors, constants)
        for name in inputs:
            builder.input(lowering.id(name), tensors[name].dtype == "s8")
        for node in nodes:
            lowering.lower(node)
        for name in outputs:
            builder.output(lowering.id(name), tensors[name].dtype == "s8")
        self.options = tuple(_option(*option) for option in builder.options())
        self.program = builder.build()
        self.isa = self.program.isa
        self.arena_bytes, self.weight_bytes = self.program.arena_bytes, self.program.weight_bytes
        self._keep_lock = self._short([np.zeros(tensors[n].shape, _NUMPY[tensors[n].dtype]) for n in inputs])

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Input arrays, C-contiguous, to new output arrays."""
        outputs = [np.empty(shape, dtype) for shape, dtype in self._made]
        self.program.run([arrays[name] for name in self.inputs], outputs, self._keep_lock)
        return dict(zip(self.outputs, outputs))  # noqa: B905  (strict costs more than it says)

    def _short(self, inputs: list[Array]) -> bool:
        """Whether a run is so short that the interpreter lock is better kept. Several threads may have to wait for a
        core, and then take as long as they like.
        """
        steps = self.program.steps()
        macs = sum(cast(int, step["macs"]) for step in steps)
        large = macs > _SHORT_MACS or self.arena_bytes > _SHORT_BYTES or len(steps) > _SHORT_STEPS
        if self.program.threads > 1 or large:
            return False
        outputs = [np.empty(shape, dtype) for shape, dtype in self._made]
        for _ in range(4):  # the first is cold; another thread may have been given the core in any
            before = time.perf_counter()
            self.program.run(inputs, outputs)
            taken = time.perf_counter() - before
            if taken < _SHORT_S or taken > 100 * _SHORT_S:
                return taken < _SHORT_S
        return False

    def profile(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, int]]:
        """As ``run``, and the nanoseconds of each node."""
        outputs = [np.empty(shape, dtype) for shape, dtype in self._made]
        taken = self.program.profile([arrays[name] for name in self.inputs], outputs)
        times = {n.name: 0 for n in self._nodes}
        for step, nanoseconds in zip(self.program.steps(), taken, strict=True):
            times[cast(list[str], step["names"])[0]] = nanoseconds
        return dict(zip(self.outputs, outputs, strict=True)), times

    def steps(self) -> list[StepInfo]:
        """What was chosen for each node."""
        kernels = {}
        for step in self.program.steps():
            names = cast(list[str], step["names"])
            for i, name in enumerate(names):
                fused = f" (in {names[0]})" if i else ""
                split = str(step["split"]).replace("auto", "")
                kernels[name] = (str(step["kernel"]) + fused, 0 if i else cast(int, step["macs"]), split)
        return [StepInfo(node.name, "native", *kernels[node.name]) for node in self._nodes]


def _option(operator: str, taker: str, candidates: Sequence[tuple[str, str, bool]]) -> Option:
    choices = (Choice(kernel, cast(Split, split), fused) for kernel, split, fused in candidates)
    return Option(operator, taker, tuple(choices))


class _Lowering:
    def __init__(
        self, builder: _kernels.Builder, tensors: Mapping[str, g.Tensor], constants: Mapping[str, Array]
    ) -> None:
        self.builder, self.tensors, self.constants = builder, tensors, constants
        self.ids: dict[str, int] = {}

    def id(self, name: str) -> int:
        if name not in self.ids:
            t = self.tensors[name]
            quantized = t.dtype in arithmetic.QUANTIZED
            dtype, zero_point = ("u8", arithmetic.canonical_zero_point(t)) if quantized else (t.dtype, 0)
            self.ids[name] = self.builder.tensor(list(t.shape), dtype, zero_point)
        return self.ids[name]

    def weight(self, node: g.Conv2d | g.Linear) -> tuple[NDArray[np.int8], NDArray[np.int16] | None]:
        """The weights, and what s8 does not hold of them; both of the constant's shape."""
        array = self.constants[node.weight]
        if array.dtype == np.int8:
            return cast(NDArray[np.int8], array), None
        whole = array.astype(np.int16) - np.int16(node.weight_zero_point)
        held = whole.clip(-128, 127).astype(np.int8)
        rest = whole - held
        return held, rest if rest.any() else None

    def s32(self, name: str) -> NDArray[np.int32]:
        return cast(NDArray[np.int32], self.constants[name])

    def f32(self, name: str) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self.constants[name])

    def clamp(
        self, node: g.Conv2d | g.Linear | g.AvgPool2d | g.Add | g.Mul | g.LayerNorm | g.Matmul
    ) -> tuple[int, int]:
        shift = self.shift(node.output)
        return node.lo + shift, node.hi + shift

    def shift(self, name: str) -> int:
        """From the tensor's container units to canonical ones."""
        return 128 if self.tensors[name].dtype == "s8" else 0

    def lower(self, node: g.Node) -> None:
        b, t = self.builder, self.tensors
        match node:
            case g.Conv2d():
                b.conv2d(
                    node.name, self.id(node.input), self.id(node.output), *self.weight(node), self.s32(node.bias),
                    self.f32(node.multiplier), node.stride, node.padding, node.dilation, node.groups,
                    *self.clamp(node),
                )  # fmt: skip
            case g.Linear():
                b.linear(
                    node.name, self.id(node.input), self.id(node.output), *self.weight(node), self.s32(node.bias),
                    self.f32(node.multiplier), *self.clamp(node),
                )  # fmt: skip
            case g.MaxPool2d():
                b.max_pool2d(
                    node.name, self.id(node.input), self.id(node.output), node.kernel, node.stride, node.padding,
                    node.dilation,
                )  # fmt: skip
            case g.AvgPool2d():
                window = node.kernel[0] * node.kernel[1]
                multipliers = arithmetic.average_multipliers(window, t[node.input], t[node.output])
                b.avg_pool2d(
                    node.name, self.id(node.input), self.id(node.output), node.kernel, node.stride, node.padding,
                    node.count_include_pad, multipliers, *self.clamp(node),
                )  # fmt: skip
            case g.Add():
                factors = arithmetic.add_factors(t[node.inputs[0]], t[node.inputs[1]], t[node.output], node.subtract)
                a, c = (self.id(name) for name in node.inputs)
                b.add(node.name, a, c, self.id(node.output), *factors, *self.clamp(node))
            case g.Mul():
                multiplier = arithmetic.product_multiplier(t[node.inputs[0]], t[node.inputs[1]], t[node.output])
                a, c = (self.id(name) for name in node.inputs)
                b.mul(node.name, a, c, self.id(node.output), multiplier, *self.clamp(node))
            case g.Lut():
                table = cast(NDArray[np.uint8], self.constants[node.table])
                b.lut(node.name, self.id(node.input), self.id(node.output), table)
            case g.Concat():
                out = t[node.output]
                quantized = out.dtype in arithmetic.QUANTIZED
                tables = [arithmetic.requantize_table(t[n], out) if quantized else None for n in node.inputs]
                b.concat(node.name, [self.id(n) for n in node.inputs], self.id(node.output), node.axis, tables)
            case g.Reshape():
                b.reshape(node.name, self.id(node.input), self.id(node.output))
            case g.Transpose():
                b.transpose(node.name, self.id(node.input), self.id(node.output), node.axes)
            case g.Slice():
                b.slice(node.name, self.id(node.input), self.id(node.output), node.begin, node.step)
            case g.Expand():
                b.expand(node.name, self.id(node.input), self.id(node.output))
            case g.Pad():
                value = node.value + self.shift(node.output)
                b.pad(
                    node.name, self.id(node.input), self.id(node.output), node.before, node.after, node.interior, value
                )
            case g.Resize2d():
                b.resize2d(
                    node.name, self.id(node.input), self.id(node.output), self.s32(node.rows), self.s32(node.columns)
                )
            case g.ArgMax():
                b.argmax(node.name, self.id(node.input), self.id(node.output))
            case g.Constant():
                array = self.constants[node.value]
                if array.dtype == np.int8:
                    array = array.view(np.uint8) ^ np.uint8(128)
                b.constant(node.name, self.id(node.output), array)
            case g.Quantize():
                b.quantize(node.name, self.id(node.input), self.id(node.output), t[node.output].scale)
            case g.Dequantize():
                b.dequantize(node.name, self.id(node.input), self.id(node.output), t[node.input].scale)
            case g.Softmax():
                b.softmax(
                    node.name, self.id(node.input), self.id(node.output), self.s32(node.table), t[node.output].scale
                )
            case g.LayerNorm():
                gamma, beta = self.f32(node.gamma), self.f32(node.beta)
                norm = arithmetic.layer_norm_factors(node.epsilon, gamma, beta, t[node.input], t[node.output])
                b.layer_norm(
                    node.name, self.id(node.input), self.id(node.output), norm.epsilon, norm.gamma, norm.beta,
                    *self.clamp(node),
                )  # fmt: skip
            case g.Matmul():
                multiplier = arithmetic.product_multiplier(t[node.inputs[0]], t[node.inputs[1]], t[node.output])
                a, c = (self.id(name) for name in node.inputs)
                b.matmul(node.name, a, c, self.id(node.output), node.transpose_b, multiplier, *self.clamp(node))
            case g.Aten():
                raise AssertionError("aten nodes are not lowered")
