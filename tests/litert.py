"""LiteRT beside the engine: its interpreter, inputs for both, and how far their outputs lie apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.modelfile import Model

pytest.importorskip("tflite", reason="the extra 'make' is not installed")
litert = pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed")


class Reference:
    """LiteRT's interpreter on a file's bytes, with the kernels that it chooses itself."""

    def __init__(self, data: bytes) -> None:
        self.interpreter = litert.Interpreter(model_content=data, num_threads=1)
        self.interpreter.allocate_tensors()
        self.outputs = self.interpreter.get_output_details()

    def run(self, *inputs: np.ndarray) -> list[np.ndarray]:
        for detail, x in zip(self.interpreter.get_input_details(), inputs, strict=True):
            self.interpreter.set_tensor(detail["index"], x)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(d["index"]) for d in self.outputs]


def noise(model: Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    tensors = {t.name: t for t in model.header.graph.tensors}
    made = {}
    for name in model.header.graph.inputs:
        t = tensors[name]
        x = rng.integers(0, 256, t.shape).astype(np.uint8)
        made[name] = (
            x
            if t.dtype == "u8"
            else x.view(np.int8)
            if t.dtype == "s8"
            else rng.normal(0, 2, t.shape).astype(np.float32)
        )
    return made


def steps(ours: np.ndarray, theirs: np.ndarray, detail: dict) -> np.ndarray:
    """The distance of two outputs in containers' steps; ours may have been dequantized for its classes."""
    if ours.dtype == np.float32 and theirs.dtype != np.float32:
        scale, zero_point = detail["quantization"]
        ours = np.rint(ours / np.float32(scale)) + zero_point
    assert ours.size == theirs.size
    return np.abs(ours.astype(np.float64).reshape(theirs.shape) - theirs)


def file_of(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    return path
