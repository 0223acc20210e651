"""What a model is held against: its source, in the engine that source is made for.

    source = open_source("net.tflite", model)
    source.run({"x": array}, ["x", "conv1"])["conv1"].real()

Inputs go in and tensors come out under the graph's names and in its layout, whichever the source's is.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agent import graph as g
from agent import load
from agent.arithmetic import QUANTIZED
from agent.engine import Engine
from agent.engine.engine import Backend, quantize
from agent.errors import ModelError
from agent.modelfile import Header, Model, assemble
from models.check.compare import Value

Arrays = Mapping[str, np.ndarray]
MOST_OUTPUTS = 64  # see agent.validate


class Source(Protocol):
    """title: names the engine, and what it runs."""

    title: str

    def has(self, tensor: str) -> bool:
        """Whether ``run`` can give the tensor."""
        ...

    def run(self, inputs: Arrays, tensors: Sequence[str]) -> dict[str, Value]:
        """inputs: by the graph's names, in its containers. The tensors that the source has in the graph's shape."""
        ...


def open_source(source: str, model: Model, layers: bool = False) -> Source:
    """source: a .tflite or .onnx file, a .pt2 file, or package.module:function. layers: other tensors than outputs will
    be asked for. Raises ``ModelError`` for anything else."""
    path = Path(source)
    if path.suffix not in (".tflite", ".onnx", ".pt2"):
        if ":" in source and not path.exists():
            return TorchSource(_built(source), model, source)
        raise ModelError(f"{source}: a source is a .tflite, .onnx or .pt2 file, or package.module:function")
    if not path.is_file():
        raise ModelError(f"{source}: there is no such file")
    try:
        if path.suffix == ".tflite":
            return TfliteSource(path, model, layers)
        if path.suffix == ".onnx":
            return OnnxSource(path, model, layers)
        return TorchSource(_exported(path), model, path.name)
    except ModelError:
        raise
    except Exception as e:  # each library has errors of its own, with no common root
        raise ModelError(f"{source}: can't be opened ({type(e).__name__}: {e})") from e


class EngineSource:
    """The model itself on another backend of the engine."""

    def __init__(self, model: Model, backend: Backend = "torch") -> None:
        self.title = f"int8d's {backend} backend"
        self._model, self._backend = model, backend
        self._tensors = {t.name: t for t in model.header.graph.tensors}
        self._engines: dict[tuple[str, ...], list[Engine]] = {}

    def has(self, tensor: str) -> bool:
        return tensor in self._tensors

    def run(self, inputs: Arrays, tensors: Sequence[str]) -> dict[str, Value]:
        key = tuple(tensors)
        if key not in self._engines:
            self._engines[key] = list(engines(self._model, tensors, self._backend))
        made = (engine.run(inputs).items() for engine in self._engines[key])
        return {name: _same(array, self._tensors[name]) for arrays in made for name, array in arrays}


def engines(model: Model, tensors: Sequence[str], backend: Backend = "auto") -> Iterator[Engine]:
    """Engines that give these tensors, each as many as a graph may have outputs."""
    graph, header = model.header.graph, model.header
    for start in range(0, len(tensors), MOST_OUTPUTS):
        outputs = tuple(tensors[start : start + MOST_OUTPUTS])
        wanted = g.Graph(graph.tensors, graph.nodes, graph.inputs, outputs)
        bare = Header(header.format, header.name, header.version, wanted)
        yield load(assemble(bare, model.constants), backend=backend)


class TfliteSource:
    """LiteRT with its default kernels; all tensors are kept where layers are asked for."""

    def __init__(self, path: Path, model: Model, layers: bool) -> None:
        import warnings

        from ai_edge_litert.interpreter import Interpreter

        self.title = f"LiteRT on {path.name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that all tensors are kept costs memory
            self._interpreter = Interpreter(
                model_content=path.read_bytes(), num_threads=1, experimental_preserve_all_tensors=layers
            )
        self._interpreter.allocate_tensors()
        self._graph = {t.name: t for t in model.header.graph.tensors}
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._inputs = _paired([d["name"] for d in inputs], model, inputs)
        self._found = {d["name"]: d for d in (*self._interpreter.get_tensor_details(), *outputs) if d["name"]}
        self._readable = None if layers else {d["name"] for d in (*inputs, *outputs)}

    def has(self, tensor: str) -> bool:
        return tensor in self._found and (self._readable is None or tensor in self._readable)

    def run(self, inputs: Arrays, tensors: Sequence[str]) -> dict[str, Value]:
        for name, details in self._inputs.items():
            scale, zero_point = details["quantization"]
            like = Value(np.empty(0, details["dtype"]), scale, zero_point)
            fitted = _fitted(inputs[name], self._graph[name], like)
            self._interpreter.set_tensor(details["index"], fitted.reshape(details["shape"]))
        self._interpreter.invoke()
        made = {}
        for name in filter(self.has, tensors):
            details = self._found[name]
            try:
                array = self._interpreter.get_tensor(details["index"])
            except ValueError:  # a constant, or a tensor that a delegate has kept to itself
                continue
            if array.shape == self._graph[name].shape:
                made[name] = Value(array, *map(_plain, details["quantization"]))
        return made


class OnnxSource:
    """ONNX Runtime as it runs by default; where layers are asked for, with every tensor as an output."""

    def __init__(self, path: Path, model: Model, layers: bool) -> None:
        import onnx
        import onnxruntime

        self.title = f"ONNX Runtime on {path.name}"
        self._graph = {t.name: t for t in model.header.graph.tensors}
        network = onnx.load(path)
        options = onnxruntime.SessionOptions()
        # Without VNNI its products of u8 and s8 would be cut off at 16 bits.
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3
        if layers:  # that a quantized tensor is an output does not keep a convolution from running in int8
            shown = {o.name for o in network.graph.output}
            made = [o for node in network.graph.node for o in node.output if o in self._graph and o not in shown]
            network.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
        self._session = onnxruntime.InferenceSession(
            network.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = self._session.get_inputs()
        self._inputs = _paired([i.name for i in inputs], model, inputs)
        self._outputs = {o.name for o in self._session.get_outputs()}

    def has(self, tensor: str) -> bool:
        return tensor in self._outputs

    def run(self, inputs: Arrays, tensors: Sequence[str]) -> dict[str, Value]:
        fed = {}
        for name, described in self._inputs.items():
            t = self._graph[name]
            kind = described.type.removeprefix("tensor(").rstrip(")").replace("float", "float32")
            x = _fitted(inputs[name], t, Value(np.empty(0, np.dtype(kind)), t.scale, _shifted(t, np.dtype(kind))))
            shape = [d if isinstance(d, int) else None for d in described.shape]
            fed[described.name] = _to_source(x, shape)
        wanted = [name for name in tensors if name in self._outputs]
        arrays = self._session.run(wanted, fed) if wanted else []
        return _placed(dict(zip(wanted, arrays, strict=True)), self._graph)


class TorchSource:
    """A torch module, its nodes run one by one as ``torch.export`` has them."""

    def __init__(self, module: Any, model: Model, title: str) -> None:
        import torch

        self.title = f"torch on {title}"
        graph = model.header.graph
        self._graph = {t.name: t for t in graph.tensors}
        if isinstance(module, torch.nn.Module):
            shapes = [_nchw(self._graph[name].shape) for name in graph.inputs]
            with torch.no_grad():
                module = torch.export.export(module.eval(), tuple(torch.zeros(s) for s in shapes))
        self._program = module.module(check_guards=False)
        placeholders = [n.name for n in self._program.graph.nodes if n.op == "placeholder"]
        self._inputs = _paired(placeholders, model, placeholders)
        results = next(n for n in self._program.graph.nodes if n.op == "output").args[0]
        results = list(results) if isinstance(results, (tuple, list)) else [results]
        # Outputs go by position: the graph may have given them names of its own.
        self._named = {n.name: n.name for n in self._program.graph.nodes}
        if len(results) == len(graph.outputs):
            self._named |= dict(zip(graph.outputs, (r.name for r in results), strict=True))

    def has(self, tensor: str) -> bool:
        return tensor in self._named

    def run(self, inputs: Arrays, tensors: Sequence[str]) -> dict[str, Value]:
        import torch

        fed = []
        for name in self._inputs:
            t = self._graph[name]
            x = Value(inputs[name], t.scale if t.dtype in QUANTIZED else 0.0, t.zero_point).real()
            fed.append(torch.from_numpy(_to_source(x, list(_nchw(x.shape)))).to(
                torch.int64 if t.dtype == "s32" else torch.float32))  # fmt: skip
        wanted = {self._named[name] for name in tensors if name in self._named}
        kept: dict[str, np.ndarray] = {}

        class Keeper(torch.fx.Interpreter):
            def run_node(self, node: Any) -> Any:
                made = super().run_node(node)
                if node.name in wanted and isinstance(made, torch.Tensor):
                    kept[node.name] = made.detach().clone().numpy()
                return made

        with torch.no_grad():
            Keeper(self._program).run(*fed)
        arrays = {name: kept[self._named[name]] for name in tensors if self._named.get(name) in kept}
        return _placed(arrays, self._graph)


def _exported(path: Path) -> Any:
    import torch

    return torch.export.load(path)


def _built(source: str) -> Any:
    """What a function that takes nothing returns: a module or an exported program."""
    name, _, function = source.partition(":")
    try:
        made = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError) as e:
        raise ModelError(f"{source}: {e}") from e
    return made() if inspect.isfunction(made) else made


def _paired(names: Sequence[str], model: Model, values: Sequence[Any]) -> dict[str, Any]:
    """The source's inputs by the graph's names: by name, else, where there are as many, by position."""
    wanted = model.header.graph.inputs
    by_name = dict(zip(names, values, strict=True))
    if all(name in by_name for name in wanted) and len(names) == len(wanted):
        return {name: by_name[name] for name in wanted}
    if len(names) != len(wanted):
        raise ModelError(f"the source has {len(names)} inputs ({', '.join(names)}), the model {len(wanted)} "
                         f"({', '.join(wanted)}): is it the one that the model was imported from?")  # fmt: skip
    return dict(zip(wanted, values, strict=True))


def _fitted(array: np.ndarray, t: g.Tensor, source: Value) -> np.ndarray:
    """An input of the graph in the source's dtype, with the source's quantization."""
    real = Value(array, t.scale if t.dtype in QUANTIZED else 0.0, t.zero_point)
    kind = source.array.dtype
    if kind in (np.uint8, np.int8) and source.scale:
        if t.dtype in QUANTIZED and np.float32(source.scale) == np.float32(t.scale):  # the same integers, moved
            moved = array.astype(np.int32) - t.zero_point + source.zero_point
            return np.clip(moved, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        like = g.Tensor("", t.shape, "u8" if kind == np.uint8 else "s8", source.scale, source.zero_point)
        return quantize(real.real().astype(np.float32), like)
    return real.real().astype(kind)


def _shifted(t: g.Tensor, kind: np.dtype[Any]) -> int:
    """The tensor's zero point in a container of this dtype."""
    own = {"u8": 128, "s8": 0}.get(t.dtype, 0)
    return t.zero_point - own + {"uint8": 128, "int8": 0}.get(kind.name, own)


def _same(array: np.ndarray, t: g.Tensor) -> Value:
    """An array whose integers have the tensor's quantization, in its container or the other one."""
    if t.dtype in QUANTIZED and array.dtype.kind in "iu":
        return Value(array, t.scale, _shifted(t, array.dtype))
    return Value(array)


def _placed(arrays: Arrays, graph: Mapping[str, g.Tensor]) -> dict[str, Value]:
    """Channels-first arrays as the graph has them; those of another shape are left out."""
    made = {}
    for name, given in arrays.items():
        t = graph[name]
        array = given.transpose(0, 2, 3, 1) if given.ndim == 4 and given.shape == _nchw(t.shape) else given
        if array.shape == t.shape or (not array.shape and t.shape == (1,)):
            made[name] = _same(array.reshape(t.shape), t)
    return made


def _to_source(array: np.ndarray, shape: Sequence[int | None]) -> np.ndarray:
    """Channels first where the source wants it; None in the shape fits anything."""
    if array.ndim == 4 and all(w in (None, h) for w, h in zip(shape, _nchw(array.shape), strict=False)):
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array)


def _nchw(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape


def _plain(number: Any) -> Any:
    return number.item() if hasattr(number, "item") else number
