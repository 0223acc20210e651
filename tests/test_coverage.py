"""The native share: what counts as a multiply-accumulate, and what a device without torch says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent import coverage, load
from agent import graph as g
from agent.modelfile import Header, Model, assemble, read, write
from tests.agent_process import DIGITS, ROOT
from tests.test_engine import mixed_model

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from agent.cli import main; sys.exit(main(sys.argv[1:]))"


def aten(target: str, args: list, shapes: list[tuple[int, ...]], y: tuple[int, ...], **constants: np.ndarray) -> int:
    """MACs of one node whose inputs have these shapes."""
    tensors = {f"x{i}": g.Tensor(f"x{i}", shape, "f32") for i, shape in enumerate(shapes)}
    tensors["y"] = g.Tensor("y", y, "f32")
    node = g.Aten("y", f"aten::{target}", tuple(tensors)[:-1], ("y",), msgspec.Raw(msgspec.json.encode(args)))
    return coverage.macs(node, tensors, constants)


def weight(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_torch_operators_count_what_torch_computes() -> None:
    args = [None] * 6
    assert aten("conv2d", ["$0", "#w"], [(1, 6, 9, 9)], (1, 8, 7, 7), w=weight(8, 3, 3, 3)) == 8 * 49 * 27
    assert aten("conv2d", ["$0", "$1"], [(1, 6, 9, 9), (8, 3, 3, 3)], (1, 8, 7, 7)) == 8 * 49 * 27
    forward = ["$0", "#w", *args[2:], False, [0, 0], 1]
    assert aten("convolution", forward, [(1, 6, 9, 9)], (1, 8, 7, 7), w=weight(8, 6, 3, 3)) == 8 * 49 * 54
    backward = ["$0", "#w", *args[2:], True, [0, 0], 1]
    assert aten("convolution", backward, [(1, 6, 9, 9)], (1, 8, 19, 19), w=weight(6, 8, 3, 3)) == 6 * 81 * 72
    assert aten("linear", ["$0", "#w"], [(2, 5, 16)], (2, 5, 4), w=weight(4, 16)) == 2 * 5 * 4 * 16
    assert aten("addmm", ["#b", "$0", "#w"], [(3, 16)], (3, 4), b=weight(4), w=weight(16, 4)) == 3 * 4 * 16
    assert aten("mm", ["$0", "$1"], [(3, 16), (16, 4)], (3, 4)) == 3 * 4 * 16
    assert aten("bmm", ["$0", "$1"], [(7, 3, 16), (7, 16, 4)], (7, 3, 4)) == 7 * 3 * 4 * 16
    assert aten("matmul", ["$0", "$1"], [(16,), (16,)], (1,)) == 16
    heads = [(1, 2, 10, 8), (1, 2, 12, 8), (1, 2, 12, 6)]
    assert aten("scaled_dot_product_attention", ["$0", "$1", "$2"], heads, (1, 2, 10, 6)) == 2 * 10 * 12 * (8 + 6)


def test_what_multiplies_no_matrices_and_what_makes_no_sense_has_none() -> None:
    assert aten("add.Tensor", ["$0", "$1"], [(3, 16), (3, 16)], (3, 16)) == 0
    for args in ([], ["$0"], ["$0", "$7"], ["$0", "#none"], [1, {}], ["$x", "$"]):
        assert aten("mm", args, [(3, 16)], (3, 4)) == 0


def test_native_operators_count_what_the_kernels_do() -> None:
    model = read(DIGITS)
    share = coverage.share(model.header.graph, model.constants)
    assert share.macs == share.native_macs == sum(s.macs for s in load(model).steps()) > 0
    assert (share.of_operators, share.of_macs, share.fallbacks) == (1, 1, ())


def half_native() -> Model:
    """A linear layer of 4 x 3 in int8, and one of 3 x 2 in torch."""
    tensors = (
        g.Tensor("x", (1, 4), "u8", 0.5, 3), g.Tensor("h", (1, 3), "u8", 0.5, 3), g.Tensor("f", (1, 3), "f32"),
        g.Tensor("y", (1, 2), "f32"),
    )  # fmt: skip
    nodes = (
        g.Linear("h", "x", "h", "w", "b", "m", 0, 255),
        g.Dequantize("f", "h", "f"),
        g.Aten("y", "aten::linear", ("f",), ("y",), msgspec.Raw(b'["$0", "#v"]')),
    )
    constants = {
        "w": np.ones((3, 4), np.int8), "b": np.zeros(3, np.int32), "m": np.full(3, 0.1, np.float32),
        "v": np.ones((2, 3), np.float32),
    }  # fmt: skip
    return assemble(Header(1, "half", "1", g.Graph(tensors, nodes, ("x",), ("y",))), constants)


def test_share_names_what_fell_back_with_its_macs() -> None:
    model = half_native()
    share = coverage.share(model.header.graph, model.constants)
    assert (share.operators, share.native_operators, share.macs, share.native_macs) == (3, 2, 18, 12)
    assert share.fallbacks == (coverage.Fallback("aten::linear", 1, 6),)


def command(*args: object, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "agent.cli"]
    return subprocess.run([sys.executable, *start, *map(str, args)], capture_output=True, text=True, cwd=ROOT)


def test_inspect_prints_the_native_share_and_names_what_fell_back(tmp_path: Path) -> None:
    write(tmp_path / "half", half_native())
    document = json.loads(command("inspect", tmp_path / "half", "--json").stdout)
    assert document["macs"] == 18
    assert document["native_share"] == {
        "operators": pytest.approx(2 / 3), "macs": pytest.approx(2 / 3),
        "fallbacks": [{"operator": "aten::linear", "count": 1, "macs": 6}],
    }  # fmt: skip
    assert [o["macs"] for o in document["operators"]] == [12, 0, 6]
    text = command("inspect", tmp_path / "half").stdout
    assert "native share: 66.67 % of operators, 66.67 % of MACs; in torch: 1 aten::linear (0.00 MMAC)" in text


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_device_without_torch_refuses_at_load_and_names_the_operators(tmp_path: Path, backend: str) -> None:
    write(tmp_path / "mixed", mixed_model())
    done = command("inspect", tmp_path / "mixed", "--backend", backend, code=WITHOUT_TORCH)
    assert done.returncode == 2
    assert "aten::cumsum, aten::mul.Tensor" in done.stderr
    assert "int8d[torch]" in done.stderr
    assert "Traceback" not in done.stderr
    assert command("inspect", DIGITS, code=WITHOUT_TORCH).returncode == 0
