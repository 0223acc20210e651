"""The engine: which backend runs what, what it refuses, and what it never imports."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from agent import graph as g
from agent import load
from agent.engine import native
from agent.errors import BackendError, InputError
from agent.modelfile import Header, Model, assemble, read
from tests.agent_process import DIGITS, ROOT
from tests.operators import OPERATORS, Sketch, random_inputs
from tests.reference import evaluate


def mixed_model() -> Model:
    """u8 -> f32 -> aten::cumsum and aten::mul -> u8 -> f32: native, torch, native."""
    scale = 0.5
    tensors = (
        g.Tensor("x", (1, 3, 4, 2), "u8", scale, 3), g.Tensor("f", (1, 3, 4, 2), "f32"),
        g.Tensor("s", (1, 3, 4, 2), "f32"), g.Tensor("w", (1, 3, 4, 2), "f32"),
        g.Tensor("q", (1, 3, 4, 2), "u8", 2.0, 100), g.Tensor("y", (1, 3, 4, 2), "f32"),
    )  # fmt: skip
    nodes = (
        g.Dequantize("f", "x", "f"),
        g.Aten("s", "aten::cumsum", ("f",), ("s",), msgspec.Raw(b'["$0", 3]')),  # over channels
        g.Aten("w", "aten::mul.Tensor", ("s",), ("w",), msgspec.Raw(b'["$0", "#k"]')),
        g.Quantize("q", "w", "q"),
        g.Dequantize("y", "q", "y"),
    )
    constants = {"k": np.float32([2, 3])}
    return assemble(Header(1, "mixed", "1", g.Graph(tensors, nodes, ("x",), ("y",))), constants)


def test_golden_inputs_give_golden_outputs() -> None:
    model = read(DIGITS)
    assert model.golden
    for backend in ("native", "torch"):
        engine = load(model, backend=backend)
        for golden in model.golden:
            for name, array in engine.run(golden.inputs).items():
                assert array.tobytes() == golden.outputs[name].tobytes()


def test_a_mixed_graph_runs_in_segments_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = mixed_model()
    with caplog.at_level(logging.WARNING):
        engine = load(model)
    assert [r.getMessage() for r in caplog.records].count(caplog.records[0].getMessage()) == 1
    assert "aten::cumsum, aten::mul.Tensor" in caplog.text
    assert engine.backend == "mixed"
    assert [s.backend for s in engine.steps()] == ["native", "torch", "torch", "native", "native"]
    x = np.arange(24, dtype=np.uint8).reshape(1, 3, 4, 2)
    value = (x.astype(np.float32) - 3) * 0.5
    expected = np.cumsum(value, -1) * np.float32([2, 3])
    got = engine.run({"x": x})["y"]
    assert np.array_equal(got, np.clip(np.rint(expected / 2), -100, 155) * 2)
    assert got.tobytes() == load(model, backend="torch").run({"x": x})["y"].tobytes()


def test_without_the_extension_torch_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(3)
    model = OPERATORS["network"](Sketch(rng))
    inputs = random_inputs(model, rng)
    expected = evaluate(model.header.graph, model.constants, inputs)
    monkeypatch.setattr(native, "IMPORT_ERROR", ImportError("not built"))
    with caplog.at_level(logging.WARNING):
        engine = load(model)
    assert engine.backend == "torch"
    assert "can't be loaded" in caplog.text
    assert all(engine.run(inputs)[k].tobytes() == v.tobytes() for k, v in expected.items())
    with pytest.raises(BackendError, match="backend='torch'"):
        load(model, backend="native")


@pytest.mark.parametrize(
    ("target", "why"), [("aten::no_such_thing", "no operator"), ("aten::add_.Tensor", "changes its arguments")]
)
def test_an_aten_node_that_may_not_run_is_refused_at_load(target: str, why: str) -> None:
    model = mixed_model()
    nodes = tuple(msgspec.structs.replace(n, target=target) if n.name == "s" else n for n in model.header.graph.nodes)
    header = msgspec.structs.replace(model.header, graph=msgspec.structs.replace(model.header.graph, nodes=nodes))
    with pytest.raises(BackendError, match=why):
        load(assemble(header, model.constants))


def test_inputs_that_do_not_fit_are_refused() -> None:
    engine = load(DIGITS)
    good = np.zeros((1, 8, 8, 1), np.uint8)
    for inputs, why in (
        ({}, "missing"),
        ({"x": good, "z": good}, "no input 'z'"),
        ({"x": good[:, :4]}, "shape"),
        ({"x": good.astype(np.int32)}, "int32"),
    ):
        with pytest.raises(InputError, match=why):
            engine.run(inputs)


def test_f32_is_quantized_and_strided_arrays_are_taken() -> None:
    engine = load(DIGITS)
    info = engine.inputs["x"]
    q = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 1)).astype(np.uint8)[:, :, ::2]
    x = (q.astype(np.float32) - info.zero_point) * np.float32(info.scale)
    assert engine.run({"x": q})["logits"].tobytes() == engine.run({"x": x})["logits"].tobytes()


def test_an_instruction_set_that_is_not_here_is_refused_with_what_is() -> None:
    with pytest.raises(BackendError, match="this CPU has: ref"):
        load(DIGITS, isa="pdp11")


def test_the_native_path_never_imports_torch_and_obeys_int8d_isa() -> None:
    code = (
        "import sys, numpy as np, agent\n"
        f"e = agent.load({str(DIGITS)!r})\n"
        "e.run({'x': np.zeros((1, 8, 8, 1), np.uint8)})\n"
        "print(e.isa, 'torch' in sys.modules, any('ref' in s.kernel for s in e.steps()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, env={"INT8D_ISA": "ref"})
    assert done.stdout.decode().split() == ["ref", "False", "True"], done.stderr.decode()


def test_a_process_that_is_refused_amx_runs_without_it() -> None:
    if "amx" not in native.isas():
        pytest.skip("this CPU, or this process, has no AMX")
    code = (
        "from agent.peers.limits import refuse_amx\n"
        "refused = refuse_amx()\n"
        "import agent\n"
        "from agent.engine import native\n"
        "from agent.modelfile import read\n"
        f"model = read({str(DIGITS)!r})\n"
        "engine = agent.load(model, threads=2)\n"
        "same = [engine.run(golden.inputs)[name].tobytes() == array.tobytes()\n"
        "        for golden in model.golden for name, array in golden.outputs.items()]\n"
        "print(refused, *native.isas(), engine.isa, len(same) > 0 and all(same))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "INT8D_ISA"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    refused, *isas, chosen, same = done.stdout.split()
    if refused == "False":
        pytest.skip("no seccomp here")
    assert isas == [isa for isa in native.isas() if isa != "amx"]
    assert (chosen, same) == (isas[-1], "True")
    assert not done.stderr
