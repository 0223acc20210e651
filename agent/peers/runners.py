"""A contender, ready to run: ``int8d`` and its peers, each on the same network in the form that suits it best.

runner = make("openvino", model, inputs, threads=2)
runner.run()                      # one inference: what is timed
runner.outputs()["logits"]        # of the latest one
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError
from agent.modelfile import Model
from agent.peers import forms

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Runner:
    """run: one inference. outputs: of the latest one, by name, 4-D ones as NHWC. ran: what was made of the network."""

    run: Callable[[], Any]
    outputs: Callable[[], Arrays]
    ran: str


@dataclass(frozen=True)
class Peer:
    """make takes the model, its inputs as the engine takes them, and threads. packages: what must be installed."""

    make: Callable[[Model, Arrays, int], Runner]
    package: str
    packages: tuple[str, ...]
    extra: str = "bench"


def check(names: list[str]) -> None:
    """Raises ``BackendError`` for a peer that does not exist."""
    for name in names:
        if name not in PEERS:
            raise BackendError(f"no peer '{name}'; there are: {', '.join(PEERS)}")


def make(name: str, model: Model, inputs: Arrays, threads: int) -> Runner:
    """Raises ``BackendError`` for an unknown peer, one that is not installed, and a network that it can't take."""
    check([name])
    peer = PEERS[name]
    for package in peer.packages:
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"{name} needs {package}, which is not installed: pip install 'int8d[{peer.extra}]'")
    return peer.make(model, inputs, threads)


def version(name: str) -> str:
    """The installed version of a peer."""
    return importlib.metadata.version(PEERS[name].package)


def _nchw(inputs: Arrays) -> dict[str, Array]:
    return {k: np.ascontiguousarray(v.transpose(0, 3, 1, 2)) if v.ndim == 4 else v for k, v in inputs.items()}


def _nhwc(arrays: Arrays) -> Arrays:
    return {k: v.transpose(0, 2, 3, 1) if v.ndim == 4 else v for k, v in arrays.items()}


def _onnxruntime(model: Model, inputs: Arrays, threads: int) -> Runner:
    from agent.peers.qdq import to_onnx

    return _onnxruntime_session(to_onnx(model), _nchw(inputs), threads, "QDQ, quantized everywhere")


def _onnxruntime_float(model: Model, inputs: Arrays, threads: int) -> Runner:
    from agent.peers.qdq import to_float_onnx

    tensors = {t.name: t for t in model.header.graph.tensors}
    dequantized = {}
    for name, array in _nchw(inputs).items():
        t = tensors[name]
        offset = array.astype(np.float32) - np.float32(t.zero_point)
        dequantized[name] = array if t.dtype == "f32" else offset * np.float32(t.scale)
    return _onnxruntime_session(to_float_onnx(model), dequantized, threads, "float32, no quantization")


def _onnxruntime_session(network: Any, inputs: dict[str, Array], threads: int, ran: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Without VNNI its products of u8 and s8 would be cut off at 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    def outputs() -> Arrays:
        return _nhwc(dict(zip(names, session.run(None, inputs), strict=True)))

    return Runner(lambda: session.run(None, inputs), outputs, ran)


def _openvino(model: Model, inputs: Arrays, threads: int) -> Runner:
    """Both forms are tried, and the faster one is taken."""
    from agent.peers.qdq import to_onnx

    arrays = _nchw(inputs)
    tried: dict[forms.Form, tuple[float, Runner]] = {}
    for form in ("same", "fused"):
        network = to_onnx(model, forms.loose_tensors(model.header.graph, form))
        runner = _openvino_request(network.SerializeToString(), arrays, threads, f"QDQ, {forms.MEANING[form]}")
        tried[form] = (_quick(runner.run), runner)
    return min(tried.values(), key=lambda pair: pair[0])[1]


def _openvino_request(network: bytes, inputs: dict[str, Array], threads: int, ran: str) -> Runner:
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": True}  # fmt: skip
    compiled = core.compile_model(core.read_model(network), "CPU", settings)
    request = compiled.create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array))
    names = {o: o.get_any_name() for o in compiled.outputs}
    return Runner(request.infer, lambda: _nhwc({name: request.get_tensor(o).data for o, name in names.items()}), ran)


def _torch(model: Model, inputs: Arrays, threads: int) -> Runner:
    """PT2E's form, compiled by Inductor with frozen weights and its C++ wrapper, as torch's x86 guide has it."""
    import torch
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    from agent.peers.torch_qdq import to_torch

    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise BackendError("Inductor needs a C++ compiler: apt-get install g++")
    torch.set_num_threads(threads)
    graph = model.header.graph
    module = to_torch(model, forms.loose_tensors(graph, "fused"))
    tensors = [torch.from_numpy(np.array(inputs[name])) for name in graph.inputs]
    tensors = [t.permute(0, 3, 1, 2) if t.ndim == 4 else t for t in tensors]  # channels last in memory
    config.freezing = config.cpp_wrapper = True  # as options of torch.compile they come too late for the folding
    compiled = torch.compile(module)
    with torch.no_grad():
        _, sources = run_and_get_code(compiled, *tensors)
    wanted = sum(n.__struct_config__.tag == "conv2d" for n in graph.nodes)
    found = len(re.findall(r"aoti_torch_cpu__qconv\w*\(", "\n".join(sources)))
    if found < wanted:
        raise BackendError(f"Inductor lowered {found} of {wanted} convolutions to onednn.qconv: not an int8 network")

    def run() -> Any:
        with torch.no_grad():
            return compiled(*tensors)

    def outputs() -> Arrays:
        return _nhwc({k: v.numpy() for k, v in zip(graph.outputs, run(), strict=True)})

    return Runner(run, outputs, f"Inductor, {found} onednn.qconv, {forms.MEANING['fused']}")


def _litert(model: Model, inputs: Arrays, threads: int) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    from agent.peers.tflite import to_tflite

    interpreter = Interpreter(model_content=to_tflite(model), num_threads=threads)
    interpreter.allocate_tensors()
    names = {d["name"]: d["index"] for d in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    tensors = {t.name: t for t in model.header.graph.tensors}
    for name, array in inputs.items():
        interpreter.set_tensor(names[name], (array ^ 0x80).view(np.int8) if array.dtype == np.uint8 else array)

    def outputs() -> Arrays:
        read = {name: interpreter.get_tensor(names[name]) for name in model.header.graph.outputs}
        return {k: v.view(np.uint8) ^ 0x80 if tensors[k].dtype == "u8" else v for k, v in read.items()}

    return Runner(interpreter.invoke, outputs, "XNNPACK, int8, quantized everywhere")


def _quick(run: Callable[[], Any], seconds: float = 0.3) -> float:
    """The median of a few calls, for choosing between forms."""
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


PEERS: Mapping[str, Peer] = {
    "openvino": Peer(_openvino, "openvino", ("openvino", "onnx")),
    "onnxruntime": Peer(_onnxruntime, "onnxruntime", ("onnxruntime", "onnx")),
    "litert": Peer(_litert, "ai-edge-litert", ("ai_edge_litert", "flatbuffers")),
    "torch": Peer(_torch, "torch", ("torch",), extra="torch"),
    "onnxruntime-float": Peer(_onnxruntime_float, "onnxruntime", ("onnxruntime", "onnx")),
}
