"""Hostile sources: what ``int8d-make import`` is given, as far as a model file that is written, read and run."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import BackendError, ModelError
from agent.modelfile import read, write
from agent.validate import Limits
from tests.fuzz.mutations import Rng, mutate_bytes, pick

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL = Limits(activations=64 << 20, weights=64 << 20, operations=1 << 26)


class _Source:
    """One importer. Made from seeds and the parsed form of each."""

    name = ""
    allowed: tuple[type[Exception], ...] = (ModelError, BackendError)

    def __init__(self) -> None:
        self.seeds: list[bytes] = []
        self.parsed: list[Any] = []

    def prepare(self) -> None:
        if self.seeds:
            return
        self.seeds = self.collect()
        self.parsed = [self.parse(data) for data in self.seeds]
        with tempfile.TemporaryDirectory() as folder:  # imports torch and more: seconds, which are no case's
            (Path(folder) / "source").write_bytes(self.seeds[0])
            self.run(Path(folder) / "source", np.random.default_rng(0))

    def collect(self) -> list[bytes]:
        raise NotImplementedError

    def parse(self, data: bytes) -> Any:
        raise NotImplementedError

    def make(self, rng: Rng) -> bytes:
        at = int(rng.integers(len(self.seeds)))
        kind = rng.random()
        if kind < 0.25:
            return mutate_bytes(rng, self.seeds[at])
        if kind < 0.4:
            return self.mutate_structure(rng, self.seeds[at])
        parsed = copy.deepcopy(self.parsed[at])
        for _ in range(pick(rng, [1, 1, 1, 2, 3])):
            data = self.mutate_parsed(rng, parsed)
        return data

    def mutate_structure(self, rng: Rng, data: bytes) -> bytes:
        """Changes what holds the format together, where it lies."""
        raise NotImplementedError

    def mutate_parsed(self, rng: Rng, parsed: Any) -> bytes:
        """Changes one place of a file that can still be read, and writes it."""
        raise NotImplementedError

    def run(self, path: Path, rng: Rng) -> None:
        from models.intake.source import Options, import_source

        out = path.with_name("model")
        write(out, import_source(path, Options(), SMALL))  # which has run it, for its golden outputs
        read(out)


class TfliteFile(_Source):
    """Flatbuffers: their offsets and lengths, and the model as its schema unpacks it."""

    name = "tflite"

    def collect(self) -> list[bytes]:
        from tests.test_tflite_operators import CASES

        names = ("kws", "resnet8", "ad")
        files = [SHARED / f"mlperf_tiny_{name}_int8.tflite" for name in names]
        made = [make(kind) for make in CASES.values() for kind in ("int8", "uint8")]
        return made + [f.read_bytes() for f in files if f.exists()] * (len(made) // 8)

    def parse(self, data: bytes) -> Any:
        from ai_edge_litert import schema_py_generated as schema

        return schema.ModelT.InitFromPackedBuf(data)

    def mutate_structure(self, rng: Rng, data: bytes) -> bytes:
        words = np.frombuffer(data[: len(data) // 4 * 4], "<u4").copy()
        likely = np.flatnonzero((words > 0) & (words < len(data)))  # offsets, lengths, extents, indices
        for at in rng.choice(likely, pick(rng, [1, 1, 2, 4])):
            value = int(words[at])
            words[at] = pick(rng, [0, 1, value + 1, value + 4, value - 4, value * 2, value << 16, len(data), 2**31 - 1,
                                   2**31, 2**32 - 1, 2**32 - value, int(words[pick(rng, likely)])]) % 2**32  # fmt: skip
        return words.tobytes()

    def mutate_parsed(self, rng: Rng, parsed: Any) -> bytes:
        import flatbuffers

        from tests.fuzz.trees import mutate_tree

        kept = copy.deepcopy(parsed)
        mutate_tree(rng, parsed)
        builder = flatbuffers.Builder(1 << 12)
        try:
            builder.Finish(parsed.Pack(builder), b"TFL3")
        except Exception:  # no number of that type, no bytes: the writer is stricter than a reader
            parsed.__dict__.update(kept.__dict__)
            builder = flatbuffers.Builder(1 << 12)
            builder.Finish(parsed.Pack(builder), b"TFL3")
        return bytes(builder.Output())


class OnnxFile(_Source):
    """Protocol buffers: every field of every message, and the bytes of their encoding."""

    name = "onnx"

    def collect(self) -> list[bytes]:
        from tests.fuzz.onnx_seeds import seeds

        return seeds()

    def parse(self, data: bytes) -> Any:
        import onnx

        return onnx.load_model_from_string(data)

    def mutate_structure(self, rng: Rng, data: bytes) -> bytes:
        """A varint (a key, a length, a dimension) becomes another."""
        out = bytearray(data)
        at = int(rng.integers(len(out)))
        varint = pick(rng, [b"\x00", b"\x01", b"\x7f", b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f",
                            b"\x80\x80\x04", b"\xff" * 8 + b"\x7f", b"\xff" * 9 + b"\x01", b"\xff" * 12])  # fmt: skip
        out[at : at + int(rng.integers(3))] = varint
        return bytes(out)

    def mutate_parsed(self, rng: Rng, parsed: Any) -> bytes:
        from tests.fuzz.messages import mutate_message

        mutate_message(rng, parsed)
        data: bytes = parsed.SerializeToString()
        return data
