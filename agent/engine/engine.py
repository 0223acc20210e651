"""A model file becomes something that runs.

    engine = load("models/zoo/digits.int8.safetensors", threads=2)
    engine.run({"x": picture})["logits"]

Nodes with a native kernel run natively, the rest in torch; which, is said once in the log and shown by ``steps()``.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agent import arithmetic
from agent import graph as g
from agent.engine import native, tuner
from agent.engine.answers import Remembered, Tuning, key_of
from agent.engine.choice import Choices, Option
from agent.engine.segment import Array, Segment, StepInfo
from agent.errors import BackendError, InputError
from agent.modelfile import Header, Model, read
from agent.validate import node_inputs, node_outputs, operator_name

Backend = Literal["auto", "native", "torch"]
_NUMPY: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "s32": np.dtype(np.int32), "f32": np.dtype(np.float32)
}  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. dtype: u8, s8 or f32; value = (q - zero_point) * scale for the first two."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int


class Engine:
    """A model, ready to run. Safe to call from several threads, which then take turns."""

    def __init__(self, header: Header, segments: list[Segment], threads: int) -> None:
        self.header, self.threads = header, threads
        self.segments = segments
        tensors = {t.name: t for t in header.graph.tensors}
        self._tensors = tensors
        self.inputs = {name: _info(tensors[name]) for name in header.graph.inputs}
        self.outputs = {name: _info(tensors[name]) for name in header.graph.outputs}
        self._wanted = [(name, info.shape, _NUMPY[info.dtype], info) for name, info in self.inputs.items()]
        # All there is to it, mostly: one program that gives the outputs and nothing else.
        alone = len(segments) == 1 and segments[0].outputs == header.graph.outputs
        self._only = segments[0] if alone and not self.inputs.keys() & self.outputs.keys() else None
        backends = {s.backend for s in segments}
        self.backend = backends.pop() if len(backends) == 1 else "mixed"
        self.isa = next((s.isa for s in segments if s.backend == "native"), "torch")
        self.arena_bytes = sum(s.arena_bytes for s in segments)
        self.weight_bytes = sum(s.weight_bytes for s in segments)
        self.tuned: Remembered | None = None  # the tuner's answer that it was built by
        # Builds the same model, or one with the same nodes, in the same way; packed weights are shared.
        self.like: Callable[[Model], Engine] | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name to arrays by output name.

        An input has the shape and dtype that ``inputs`` states; float32 is taken for u8 and s8 too, and quantized by
        the rule of ``agent.graph.Quantize``. Raises ``InputError`` for anything else. Outputs are new arrays.
        """
        return self.run_checked(self.check(inputs))

    def check(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs as the model takes them: all there, each C-contiguous in its shape and dtype; as ``run``."""
        values: dict[str, Array] = {}
        for name, shape, dtype, info in self._wanted:
            array = inputs.get(name)
            if array is None:
                self._unknown(inputs)
                raise InputError(f"input '{name}' is missing")
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                array = self._checked(array, info)
            values[name] = array
        if len(inputs) != len(values):
            self._unknown(inputs)
        return values

    def run_checked(self, values: dict[str, Array]) -> dict[str, Array]:
        """``run`` for what comes from ``check``."""
        if self._only is not None:
            return self._only.run(values)
        values = dict(values)
        for segment in self.segments:
            values |= segment.run(values)
        # An input may be an output, too.
        return {name: values[name].copy() if name in self.inputs else values[name] for name in self.outputs}

    def profile(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """Runs once; the nanoseconds of each node, by name. A node that runs within another one's kernel takes 0."""
        values = self.check(inputs)
        times: dict[str, int] = {}
        for segment in self.segments:
            outputs, taken = segment.profile(values)
            values |= outputs
            times |= taken
        return times

    def steps(self) -> list[StepInfo]:
        """How each node runs, in order."""
        return [step for segment in self.segments for step in segment.steps()]

    def options(self) -> list[Option]:
        """The nodes that can be had in several ways."""
        return [option for segment in self.segments for option in segment.options]

    def _unknown(self, inputs: Mapping[str, Array]) -> None:
        unknown = inputs.keys() - self.inputs.keys()
        if unknown:
            raise InputError(f"there is no input '{min(unknown)}'; the model has: {', '.join(self.inputs)}")

    def _checked(self, array: Array, info: TensorInfo) -> Array:
        if array.shape != info.shape:
            raise InputError(f"input '{info.name}' has shape {list(array.shape)}, the model takes {list(info.shape)}")
        if array.dtype == np.float32 and info.dtype in arithmetic.QUANTIZED:
            array = quantize(array, self._tensors[info.name])
        if array.dtype != _NUMPY[info.dtype]:
            raise InputError(f"input '{info.name}' is {array.dtype}, the model takes {_NUMPY[info.dtype]}")
        return np.ascontiguousarray(array)


def quantize(array: Array, tensor: g.Tensor) -> Array:
    """f32 to the tensor's container, by the rule of ``agent.graph.Quantize``."""
    low, high = arithmetic.container_range(tensor)
    q = np.divide(array, np.float32(tensor.scale), dtype=np.float32)
    np.rint(q, out=q)
    np.maximum(q, np.float32(low - tensor.zero_point), out=q)
    np.minimum(q, np.float32(high - tensor.zero_point), out=q)
    if math.isnan(np.add.reduce(q, None)):  # what is left is small: a sum of it is finite
        q[np.isnan(q)] = 0
    q += np.float32(tensor.zero_point)
    container: Array = q.astype(_NUMPY[tensor.dtype])
    return container


def load(
    model: str | os.PathLike[str] | Model,
    threads: int = 1,
    backend: Backend = "auto",
    isa: str = "auto",
    spin_us: int = 50,
    tuning: Tuning | None = None,
) -> Engine:
    """Reads, validates and prepares a model.

    threads: workers of a run, the caller among them. backend: ``auto`` is native where there is a kernel, else torch.
    isa: an instruction set of ``native.isas()``, or ``auto``: the variable INT8D_ISA, else the best of this CPU.
    spin_us: how long a waiting worker spins before it sleeps, in microseconds.
    tuning: where the tuner's answers are remembered, and whether to look for one; None: the default choices.
    Raises ``ModelError`` for a bad file, ``BackendError`` where no backend here can run a node.
    """
    if not 1 <= threads <= 256:
        raise BackendError(f"threads must lie in 1..256, not {threads}")
    if not isinstance(model, Model):
        model = read(model)
    graph = model.header.graph
    use_native = backend != "torch" and native.available()
    if backend == "native" and not native.available():
        raise BackendError(f"the native kernels can't be loaded ({native.IMPORT_ERROR}); use backend='torch'")
    in_torch = [n for n in graph.nodes if not (use_native and native.supports(n))]
    if in_torch:
        names = ", ".join(sorted({operator_name(n) for n in in_torch}))
        if backend == "native":
            raise BackendError(f"no native kernel for: {names}")
        if importlib.util.find_spec("torch") is None:
            raise BackendError(
                f"torch is not installed, and these operators need it: {names}; pip install 'int8d[torch]'"
            )
        if backend == "auto":
            why = "" if native.available() else f" (the native kernels can't be loaded: {native.IMPORT_ERROR})"
            log.warning("model %s: %d of %d operators run in torch%s: %s", model.header.name, len(in_torch),
                        len(graph.nodes), why, names)  # fmt: skip

    def build(model: Model, choices: Choices, twins: Sequence[Segment] = ()) -> Engine:
        fallback = {n.name for n in model.header.graph.nodes if not (use_native and native.supports(n))}
        try:
            return Engine(model.header, _segments(model, fallback, threads, isa, spin_us, choices, twins), threads)
        except ValueError as e:  # from the builder: a forced instruction set that is not here
            raise BackendError(str(e)) from e
        except MemoryError as e:
            raise BackendError("there is not enough memory here for the model's weights and activations") from e

    tuned = _tuned(model, threads, isa, tuning, build) if use_native and tuning is not None else None
    choices = tuned.answer.choices if tuned else {}
    engine = build(model, choices)
    engine.tuned, engine.like = tuned, _Like(model, engine.segments, tuned, choices, build)
    return engine


@dataclass(frozen=True)
class _Like:
    """``Engine.like``. It refers to no engine: without a cycle, one that is replaced is freed at once."""

    model: Model
    segments: list[Segment]
    tuned: Remembered | None
    choices: Choices
    build: Callable[[Model, Choices, Sequence[Segment]], Engine]

    def __call__(self, other: Model) -> Engine:
        same = all(other.constants.get(name) is array for name, array in self.model.constants.items())
        made = self.build(other, self.choices, self.segments if same else ())
        made.tuned, made.like = self.tuned, self
        return made


def noise(engine: Engine, seed: int = 0) -> dict[str, Any]:
    """Seeded inputs that fit the engine; for f32, whole numbers of 0..255."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Any] = {}
    for info in engine.inputs.values():
        bytes_ = rng.integers(0, 256, info.shape, np.uint8)
        inputs[info.name] = bytes_.view(np.int8) if info.dtype == "s8" else bytes_.astype(_NUMPY[info.dtype])
    return inputs


class _Trial:
    """What the tuner asks of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._inputs = engine, noise(engine)

    def run(self) -> object:
        return self._engine.run(self._inputs)

    def profile(self) -> Mapping[str, int]:
        return self._engine.profile(self._inputs)

    def plan(self) -> Mapping[str, str]:
        return {s.name: f"{s.kernel} {s.split}" for s in self._engine.steps()}


def _tuned(
    model: Model, threads: int, isa: str, tuning: Tuning, build: Callable[[Model, Choices], Engine]
) -> Remembered | None:
    """What is remembered for the model, or found now."""
    try:
        key = key_of(model, isa, threads)
    except ValueError as e:
        raise BackendError(str(e)) from e
    known = tuning.recall(key)
    if tuning.budget_s <= 0 or (known and not tuning.again):
        return known
    options = build(model, {}).options()
    if not options:
        return None
    log.info("model %s: timing the choices of %d operators on this box, for %.1f s at most", model.header.name,
             len(options), tuning.budget_s)  # fmt: skip
    answer = tuner.tune(lambda choices: _Trial(build(model, choices)), options, tuning.budget_s)
    log.info("model %s: after %.2f s: %s", model.header.name, answer.spent_s, answer)
    return tuning.remember(key, model.header.name, answer)


def _segments(
    model: Model, fallback: set[str], threads: int, isa: str, spin_us: int, choices: Choices, twins: Sequence[Segment]
) -> list[Segment]:
    graph = model.header.graph
    programs = [s.program for s in twins if isinstance(s, native.NativeSegment)]
    groups = [list(nodes) for _, nodes in itertools.groupby(graph.nodes, lambda n: n.name in fallback)]
    segments: list[Segment] = []
    later = set(graph.outputs)  # what is read behind a group
    for nodes in reversed(groups):
        made = {t for n in nodes for t in node_outputs(n)}
        reads = _unique(t for n in nodes for t in node_inputs(n) if t not in made)
        gives = _unique(t for n in nodes for t in node_outputs(n) if t in later)
        if not gives:  # nothing reads what these nodes make
            continue
        later |= set(reads)
        if nodes[0].name in fallback:
            from agent.engine.torch_backend import TorchSegment

            used = {k: model.constants[k] for n in nodes for k in g.node_constants(n)}
            segments.append(TorchSegment(graph, used, nodes, reads, gives))
        else:
            segments.append(
                native.NativeSegment(
                    graph, model.constants, nodes, reads, gives, threads, isa, spin_us, choices, programs
                )
            )
    return segments[::-1]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _info(t: g.Tensor) -> TensorInfo:
    return TensorInfo(t.name, t.shape, t.dtype, t.scale, t.zero_point)
