"""Hostile files, a few hundred of each kind; and what the long form (``make fuzz``) once found, each as a test."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent import graph as g
from agent import load
from agent.demand import demand
from agent.errors import BackendError, ModelError
from agent.modelfile import Header, Model, assemble, read, write
from agent.validate import Limits, validate
from models.intake.source import import_source
from tests.fuzz import driver
from tests.fuzz.__main__ import environment, target_named
from tests.fuzz.rogue import OUTCOMES
from tests.moves import MOVES
from tests.operators import OPERATORS, Sketch

CASES = 300


@pytest.mark.parametrize("name", ["model", "tflite", "onnx"])
def test_a_hostile_file_is_refused_clearly_or_valid(name: str) -> None:
    summary = driver.run(target_named(name), range(CASES), 2, environment())
    assert not summary.failures
    assert summary.refused + summary.valid == CASES
    assert summary.valid > CASES // 20
    assert summary.refused > CASES // 5


def test_the_driver_sees_all_that_a_case_must_not_do(tmp_path: Path) -> None:
    target = target_named("rogue")
    summary = driver.run(target, range(len(OUTCOMES)), 2, environment(), tmp_path)
    found = {f.case: f.what for f in summary.failures}
    expected = {i: what for i, what in enumerate(OUTCOMES) if what not in ("", "refused")}
    assert found.keys() == expected.keys()
    for case, what in expected.items():
        assert what in found[case]
    assert (summary.valid, summary.refused) == (2, 1)
    assert {p.name for p in tmp_path.iterdir()} == {f"rogue-{case}" for case in expected}


def test_a_case_is_the_same_file_each_time() -> None:
    one, other = target_named("model"), target_named("model")
    for target in (one, other):
        target.prepare()
    for case in range(50):
        assert one.make(driver.case_rng(case)) == other.make(driver.case_rng(case))


# What a model asks of the device


def small(operator: str, seed: int) -> Model:
    return (OPERATORS | MOVES)[operator](Sketch(np.random.default_rng([seed, 7])))


@pytest.mark.parametrize("operator", OPERATORS | MOVES)
def test_the_demand_is_never_less_than_what_a_program_takes(operator: str) -> None:
    for seed in range(25):
        model = small(operator, seed)
        needed = demand(model.header.graph, model.constants)
        engine = load(model, 1 + seed % 2)
        assert engine.weight_bytes <= needed.weights
        assert engine.arena_bytes <= 2 * needed.activations + 4096 * len(model.header.graph.nodes)


@pytest.mark.parametrize("field", ["activations", "weights", "operations"])
def test_more_than_a_limit_is_refused_by_its_name(field: str) -> None:
    model = small("network", 1)
    needed = getattr(demand(model.header.graph, model.constants), field)
    validate(model.header.graph, model.constants, Limits(**{field: needed}))
    with pytest.raises(ModelError, match=rf"{field}: {needed:,}.* the limit is {needed - 1:,}"):
        validate(model.header.graph, model.constants, Limits(**{field: needed - 1}))


def repeated(count: int) -> Model:
    """One large weight, prepared for each of many layers."""
    s = Sketch(np.random.default_rng(3))
    x = s.tensor((1, 2048), "u8")
    weight = s.constant(np.ones((2048, 2048), np.int8))
    quantities = s.requantization(np.ones((2048, 1), np.int8))
    for i in range(count):
        y = s.tensor((1, 2048), "u8")
        s.nodes.append(g.Linear(f"n{i}", x.name, y.name, weight, **quantities, lo=0, hi=255))
    return s.model([x], [y])


def test_a_small_file_that_prepares_a_weight_again_and_again_is_refused() -> None:
    with pytest.raises(ModelError, match=r"weights: .* bytes are needed, the limit is"):
        repeated(1000)


def test_a_small_file_that_asks_for_huge_maps_is_refused() -> None:
    s = Sketch(np.random.default_rng(3))
    x = s.tensor((1, 1, 1, 1), "u8")
    wide = [s.tensor((1, 1 << 14, 1 << 14, 1), like=x) for _ in range(40)]
    s.nodes += [g.Expand(f"n{i}", x.name, y.name) for i, y in enumerate(wide)]
    with pytest.raises(ModelError, match="activations: "):
        s.model([x], [wide[-1]])


def test_a_pool_counts_its_window() -> None:
    s = Sketch(np.random.default_rng(3))
    x = s.tensor((1, 4096 + 2048, 4096 + 2048, 4), "u8")
    y = s.tensor((1, 2049, 2049, 4), like=x)
    s.nodes.append(g.MaxPool2d("n", x.name, y.name, (4096, 4096), (1, 1)))
    with pytest.raises(ModelError, match="operations: "):
        s.model([x], [y])


def test_a_header_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path, small("network", 1))
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    read(path, Limits(header=size))
    with pytest.raises(ModelError, match=f"a header of {size:,} bytes, the limit is {size - 1:,}"):
        read(path, Limits(header=size - 1))


def test_more_arrays_than_the_limit_are_not_read(tmp_path: Path) -> None:
    path, model = tmp_path / "m", small("network", 1)
    write(path, model)
    count = len(model.constants)
    read(path, Limits(arrays=count))
    with pytest.raises(ModelError, match=f"{count} arrays, the limit is {count - 1}"):
        read(path, Limits(arrays=count - 1))


def test_a_graph_of_many_segments_loads() -> None:
    """Cut in quadratic time, it took minutes."""
    s = Sketch(np.random.default_rng(3))
    x = s.tensor((1, 4), "f32")
    at = x
    for i in range(2000):
        q, f, y = s.tensor((1, 4), "u8"), s.tensor((1, 4), "f32"), s.tensor((1, 4), "f32")
        s.nodes += [g.Quantize(f"q{i}", at.name, q.name), g.Dequantize(f"d{i}", q.name, f.name),
                    g.Aten(f"a{i}", "aten::relu", (f.name,), (y.name,), msgspec.Raw(b'["$0"]'))]  # fmt: skip
        at = y
    engine = load(s.model([x], [at]))
    assert len(engine.steps()) == 6000


# Found by make fuzz


def test_concatenating_a_tensor_of_lower_rank_is_refused() -> None:
    s = Sketch(np.random.default_rng(3))
    a, b = s.tensor((2, 3, 4), "u8"), s.tensor((2, 3), "u8")
    y = s.tensor((2, 3, 8), like=a)
    s.nodes.append(g.Concat("n", (a.name, b.name), y.name, 2))
    with pytest.raises(ModelError, match="another rank"):
        s.model([a, b], [y])


def test_a_window_whose_product_wraps_is_no_linear_layer() -> None:
    """641 * 6700417 is 1 modulo 2^32: taken for a single pixel, the map was read beyond its end."""
    s = Sketch(np.random.default_rng(3))
    x = s.tensor((1, 6_700_417, 1, 1), "u8")
    model = s.model([x], [s.conv(x, 2, (641, 1), (4096, 1), (0, 0, 0, 0))])
    assert "linear" not in load(model).steps()[0].kernel


def test_an_output_that_is_an_input_is_a_new_array() -> None:
    s = Sketch(np.random.default_rng(3))
    x, y = s.tensor((1, 4), "u8"), s.tensor((1, 4), "u8")
    s.nodes.append(g.Lut("n", x.name, y.name, s.constant(np.arange(256, dtype=np.uint8))))
    given = np.zeros((1, 4), np.uint8)
    assert not np.shares_memory(load(s.model([x], [x, y])).run({x.name: given})[x.name], given)


def aten(target: str, args: object, kwargs: object = None, shape: tuple[int, ...] = (1, 4)) -> Model:
    x, y = g.Tensor("x", (1, 4), "f32"), g.Tensor("y", shape, "f32")
    node = g.Aten("n", target, ("x",), ("y",), *(msgspec.Raw(json.dumps(v).encode()) for v in (args, kwargs or {})))
    constants = {"c": np.ones(4, np.float32), "bytes": np.ones(4, np.uint8)}
    return assemble(Header(1, "m", "1", g.Graph((x, y), (node,), ("x",), ("y",))), constants)


@pytest.mark.parametrize(
    ("args", "kwargs", "why"),
    [
        ("$0", {}, "args is a list"),
        (None, {}, "args is a list"),
        (["$0"], ["x"], "kwargs an object"),
        (["$1"], {}, "'\\$1' is neither"),
        (["$x"], {}, "neither"),
        (["$"], {}, "neither"),
        (["$٠"], {}, "neither"),
        (["#nothing"], {}, "neither"),
        (["#bytes"], {}, "neither"),
        (["$0:int"], {}, "only bool"),
        ([[[[[[[[[["$0"]]]]]]]]]], {}, "nested"),
        (["$0", {"a": 1}], {}, "object"),
        (["$0"], {"dim": "#nothing"}, "neither"),
    ],
)
def test_arguments_of_a_torch_operator_that_lead_nowhere_are_refused(args: object, kwargs: object, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        aten("aten::add.Tensor", args, kwargs)


@pytest.mark.parametrize(
    ("target", "args", "why"),
    [
        ("aten::from_file", ["written", True, 100], "may not run"),
        ("aten::empty_like", ["$0"], "may not run"),
        ("aten::relu_", ["$0"], "may not run"),
        ("aten::__class__", ["$0"], "no operator"),
        ("aten::relu.__class__", ["$0"], "no operator"),
        ("aten::repeat", ["$0", [1 << 20, 1 << 20]], "gives shape"),
        ("aten::ones", [[1 << 20, 1 << 20]], "gives shape"),
        ("aten::unbind.int", ["$0", 1], "4 results, for 1 output"),
    ],
)
def test_a_torch_operator_that_may_not_run_is_refused_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, args: object, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=why):
        load(aten(target, args))
    assert not list(tmp_path.iterdir())


def test_what_torch_raises_is_an_error_of_the_model() -> None:
    engine = load(aten("aten::add.Tensor", ["$0", [1 << 40]]))
    with pytest.raises(BackendError, match=r"node 'n' \(aten::add.Tensor\): torch refuses it"):
        engine.run({"x": np.zeros((1, 4), np.float32)})


def test_a_constant_is_found_however_its_name_is_spelled() -> None:
    x, y = g.Tensor("x", (1, 4), "f32"), g.Tensor("y", (1, 4), "f32")
    node = g.Aten("n", "aten::add.Tensor", ("x",), ("y",), msgspec.Raw(b'["$0", "\\u0023c"]'))
    model = assemble(Header(1, "m", "1", g.Graph((x, y), (node,), ("x",), ("y",))), {"c": np.ones(4, np.float32)})
    assert load(model).run({"x": np.zeros((1, 4), np.float32)})["y"].tolist() == [[1, 1, 1, 1]]


def test_unsigned_weights_need_no_zero_point() -> None:
    s = Sketch(np.random.default_rng(3))
    x, y = s.tensor((1, 4), "u8"), s.tensor((1, 5), "u8")
    weight = np.arange(20, dtype=np.uint8).reshape(5, 4) * 12
    node = g.Linear("n", x.name, y.name, s.constant(weight), **s.requantization(weight), lo=0, hi=255)
    s.nodes.append(node)
    model = s.model([x], [y])
    inputs = {x.name: np.array([[0, 1, 254, 255]], np.uint8)}
    assert load(model).run(inputs)[y.name].tobytes() == load(model, backend="torch").run(inputs)[y.name].tobytes()


@pytest.mark.parametrize("constant", ["weights", "bias"])
def test_a_scale_of_tflite_that_is_not_a_number_is_refused(tmp_path: Path, constant: str) -> None:
    from tests.tflite_file import File

    f = File()
    x, weights, y = f.activation((1, 4, 4, 3)), f.weights((4, 3, 3, 3), 0), f.activation((1, 4, 4, 4))
    f.tensors[weights[constant == "bias"]].quantization.scale[1] = np.nan
    f.add("CONV_2D", [x, *weights], y, "Conv2DOptions", strideW=1, strideH=1)
    (tmp_path / "m.tflite").write_bytes(f.write([x], [y]))
    with pytest.raises(ModelError, match="a scale that is not a number"):
        import_source(tmp_path / "m.tflite")
