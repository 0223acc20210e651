"""A peer, ready to run: ``Runner()`` does one inference. Each takes the network as ``agent.peers.qdq`` writes it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError
from agent.modelfile import Model

Array = NDArray[Any]
Run = Callable[[], Mapping[str, Array]]
PEERS = ("onnxruntime", "openvino")


def make(peer: str, model: Model, inputs: Mapping[str, Array], threads: int) -> Run:
    """One inference a call, outputs by name. ``inputs``: NHWC arrays as the engine takes them.

    Raises ``BackendError`` for an unknown peer, or one that is not installed.
    """
    if peer not in PEERS:
        raise BackendError(f"no peer '{peer}'; there are: {', '.join(PEERS)}")
    for package in (peer, "onnx"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"{package} is not installed; pip install 'int8d[bench]'")
    from agent.peers.qdq import to_onnx

    data = to_onnx(model).SerializeToString()
    arrays = {k: np.ascontiguousarray(v.transpose(0, 3, 1, 2)) if v.ndim == 4 else v for k, v in inputs.items()}
    return _onnxruntime(data, arrays, threads) if peer == "onnxruntime" else _openvino(data, arrays, threads)


def version(peer: str) -> str:
    """The installed version."""
    return importlib.metadata.version(peer)


def _onnxruntime(data: bytes, inputs: dict[str, Array], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda: dict(zip(names, session.run(None, inputs), strict=True))


def _openvino(data: bytes, inputs: dict[str, Array], threads: int) -> Run:
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": True}  # fmt: skip
    compiled = core.compile_model(core.read_model(data), "CPU", settings)
    request = compiled.create_infer_request()
    for name, array in inputs.items():
        request.set_tensor(name, openvino.Tensor(array))
    names = {o: o.get_any_name() for o in compiled.outputs}

    def run() -> Mapping[str, Array]:
        request.infer()
        return {name: request.get_tensor(output).data for output, name in names.items()}

    return run
