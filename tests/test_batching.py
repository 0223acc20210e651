"""A model for several inputs at once: what can have one, and that it gives the bytes of single runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent import Tuning, load
from agent import graph as g
from agent.engine import batches as batches_module
from agent.engine import build_batches, load_batches, native, noise
from agent.engine.batch_times import BatchTimes, time_batches
from agent.engine.batching import batched, join, split
from agent.modelfile import Model, read
from models.intake.source import import_source
from tests.agent_process import DIGITS
from tests.moves import MOVES
from tests.operators import OPERATORS, Sketch, random_inputs
from tests.reference import evaluate
from tests.test_tflite import DATA, REAL, needs_data

# Of the generators' cases these can always have a batch; of the others some can't: their inputs lie in the very axis
# that an operator works along, or one of their outputs does not depend on the input.
ALWAYS = {
    "conv2d", "depthwise", "max_pool2d", "avg_pool2d", "resize2d", "network", "quantize", "dequantize", "lut", "add",
    "mul",
}  # fmt: skip


def same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return got.keys() == expected.keys() and all(
        got[k].shape == expected[k].shape and got[k].tobytes() == expected[k].tobytes() for k in expected
    )


@pytest.mark.parametrize("operator", OPERATORS | MOVES)
def test_an_operator_has_a_batch_of_the_same_bytes_or_none(operator: str) -> None:
    had = 0
    for case in range(30):
        rng = np.random.default_rng([case, len(operator)])
        model = (OPERATORS | MOVES)[operator](Sketch(rng))
        n = int(rng.integers(2, 5))
        several = batched(model, n)
        if several is None:
            continue
        had += 1
        parts = [random_inputs(model, rng) for _ in range(n)]
        expected = [evaluate(model.header.graph, model.constants, part) for part in parts]
        for got in (
            evaluate(several.header.graph, several.constants, join(parts)),
            load(several, backend="native").run(join(parts)),
        ):
            assert all(same(a, b) for a, b in zip(split(got, n), expected, strict=True)), f"case {case}"
    print(f"{operator}: {had} of 30 have a batch")
    assert had == 30 or operator not in ALWAYS


def _transformer(s: Sketch) -> Model:
    """A token that all inputs share, positions, two heads, a table of keys that never changes, a gate of constants."""

    def fixed(shape: tuple[int, ...], like: g.Tensor | None = None) -> g.Tensor:
        t = s.tensor(shape, "u8", like=like)
        value = s.rng.integers(0, 256, shape).astype(np.uint8)
        s.nodes.append(g.Constant(f"n{len(s.nodes)}", t.name, s.constant(value)))
        return t

    def turn(x: g.Tensor, axes: tuple[int, ...]) -> g.Tensor:
        y = s.tensor(tuple(x.shape[a] for a in axes), like=x)
        s.nodes.append(g.Transpose(f"n{len(s.nodes)}", x.name, y.name, axes))
        return y

    def shaped(x: g.Tensor, shape: tuple[int, ...]) -> g.Tensor:
        y = s.tensor(shape, like=x)
        s.nodes.append(g.Reshape(f"n{len(s.nodes)}", x.name, y.name))
        return y

    x = s.tensor((1, 6, 8), "u8")
    token = fixed((1, 1, 8), like=x)
    tokens = s.tensor((1, 7, 8), like=x)
    s.nodes.append(g.Concat("join", (token.name, x.name), tokens.name, 1))
    placed = s.add(tokens, fixed((1, 7, 8)))
    heads = turn(shaped(placed, (1, 7, 2, 4)), (2, 0, 1, 3))  # heads, then inputs
    keys = fixed((2, 1, 5, 4))
    scores = s.product(heads, keys, (2, 1, 7, 5), 5500 * 2)
    s.nodes.append(g.Matmul("scores", (heads.name, keys.name), scores.name, *s.clamp(scores), True))
    back = shaped(turn(scores, (1, 2, 0, 3)), (1, 7, 1, 10))
    gated = s.product(back, gate := fixed((1, 1, 1, 10)), back.shape, 64)
    s.nodes.append(g.Mul("gate", (back.name, gate.name), gated.name, *s.clamp(gated)))
    return s.model([x], [s.linear(gated, 3), gated])


def test_what_does_not_depend_on_the_input_is_repeated() -> None:
    for case in range(20):
        rng = np.random.default_rng(case)
        model = _transformer(Sketch(rng))
        several = batched(model, 3)
        assert several is not None
        parts = [random_inputs(model, rng) for _ in range(3)]
        expected = [evaluate(model.header.graph, model.constants, part) for part in parts]
        assert all(same(a, b) for a, b in zip(split(load(several).run(join(parts)), 3), expected, strict=True))


def _one(make: Callable[[Sketch, g.Tensor], g.Tensor], shape: tuple[int, ...]) -> Model:
    s = Sketch(np.random.default_rng(1))
    x = s.tensor(shape, "u8")
    return s.model([x], [make(s, x)])


def _softmax(s: Sketch, x: g.Tensor) -> g.Tensor:
    y = s.tensor(x.shape, "f32")
    table = np.full(256, 1, np.int32)
    s.nodes.append(g.Softmax("n", x.name, y.name, s.constant(table)))
    return y


def _turned(s: Sketch, x: g.Tensor) -> g.Tensor:
    y = s.tensor(x.shape[::-1], like=x)
    s.nodes.append(g.Transpose("n", x.name, y.name, tuple(range(len(x.shape)))[::-1]))
    return y


@pytest.mark.parametrize(
    "model",
    [
        _one(lambda s, x: s.linear(x, 4), (8,)),  # the features are the only axis
        _one(_softmax, (8,)),
        _one(_turned, (1, 8)),  # the inputs would not come out along axis 0
        _one(lambda s, x: s.add(_turned(s, x), x), (3, 3)),  # they lie along two axes
    ],
)
def test_what_mixes_its_inputs_has_no_batch(model: Model) -> None:
    assert batched(model, 2) is None
    assert build_batches(load(model), model, [2, 4]).sizes == (1,)


@pytest.mark.parametrize("operator", ["conv2d", "depthwise", "linear", "network"])
@pytest.mark.parametrize("isa", native.isas())
def test_weights_that_are_shared_give_the_same_bytes(operator: str, isa: str) -> None:
    for case in range(20):
        rng = np.random.default_rng([case, 77])
        model = OPERATORS[operator](Sketch(rng))
        parts = [random_inputs(model, rng) for _ in range(3)]
        expected = [evaluate(model.header.graph, model.constants, part) for part in parts]
        several, first = batched(model, 3), load(model, backend="native", isa=isa)
        assert several is not None
        assert first.like is not None
        replica, together = first.like(model), first.like(several)
        del first  # what is shared outlives it
        assert all(same(replica.run(part), e) for part, e in zip(parts, expected, strict=True))
        assert all(same(a, e) for a, e in zip(split(together.run(join(parts)), 3), expected, strict=True))


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_a_real_model_gives_the_bytes_of_single_runs(name: str) -> None:
    model = import_source(DATA / f"{name}.tflite")
    engine = load(model)
    batches = build_batches(engine, model, [2, 4])
    members = [engine.check(noise(engine, seed)) for seed in range(7)]
    assert batches.parts(7) == [4, 2, 1]
    for got, values in zip(batches.run(members), members, strict=True):
        assert same(got, engine.run_checked(values))


def test_digits_in_every_size_and_on_the_torch_backend() -> None:
    model = read(DIGITS)
    for backend, sizes in (("native", [2, 4, 8, 16]), ("torch", [2])):
        engine = load(model, backend=backend)  # type: ignore[arg-type]
        for size in sizes:
            several = batched(model, size)
            assert several is not None
            assert engine.like is not None
            together = engine.like(several)
            for golden in several.golden:
                assert same(together.run(golden.inputs), golden.outputs)
            members = [noise(engine, seed) for seed in range(size)]
            got = split(together.run(join(members)), size)
            assert all(same(a, engine.run(b)) for a, b in zip(got, members, strict=True))


# Timing


class Box:
    """A machine on which time passes only by what is run: microseconds by size."""

    def __init__(self, cost: dict[int, float]) -> None:
        self.now, self.cost, self.built = 0.0, cost, []  # type: float, dict[int, float], list[int]

    def run(self, size: int) -> None:
        self.now += self.cost[size] / 1e6

    def several(self, size: int) -> Callable[[], None] | None:
        if size not in self.cost:
            return None
        self.built.append(size)
        return lambda: self.run(size)

    def time(self, most: int = 16, budget_s: float = 3.0) -> BatchTimes:
        return time_batches(lambda: self.run(1), self.several, most, budget_s, lambda: self.now)


@pytest.mark.parametrize(
    ("cost", "sizes"),
    [
        ({1: 100, 2: 150, 4: 250, 8: 450, 16: 900}, (2, 4, 8)),  # 16 gains nothing over 8
        ({1: 100, 2: 220, 4: 300, 8: 500, 16: 600}, (4, 8, 16)),
        ({1: 100, 2: 198, 4: 392, 8: 784, 16: 1568}, ()),  # two in a hundred are noise
        ({1: 100, 2: 150}, (2,)),  # there is no larger one
    ],
)
def test_a_size_is_kept_that_takes_clearly_less_an_input(cost: dict[int, float], sizes: tuple[int, ...]) -> None:
    times = Box(cost).time()
    assert times.worthwhile() == sizes
    assert times.microseconds == pytest.approx(cost)


def test_timing_keeps_to_its_budget_and_to_the_largest_size() -> None:
    slow = {n: n * 100_000 for n in (1, 2, 4, 8, 16)}
    box = Box(slow)
    times = box.time(budget_s=3.0)
    assert times.worthwhile() == ()
    assert box.now < 6
    assert max(times.microseconds) < 16
    small = Box({1: 1, 2: 1, 4: 1})
    assert small.time(most=3).worthwhile() == (2,)
    assert small.built == [2]


def test_what_pays_is_timed_once_and_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = read(DIGITS)
    engine = load(model)
    tuning = Tuning(tmp_path, 1.0)
    assert load_batches(engine, model, 4, None).sizes == (1,)
    assert load_batches(engine, model, 4, Tuning(tmp_path)).sizes == (1,)  # no budget, nothing remembered
    with caplog.at_level(logging.INFO):
        first = load_batches(engine, model, 4, tuning)
        assert caplog.text.count("one input takes") == 1
        assert load_batches(engine, model, 4, tuning).sizes == first.sizes
        assert load_batches(engine, model, 2, tuning).most <= 2
        assert caplog.text.count("one input takes") == 1
        load_batches(engine, model, 8, tuning)  # of 8 nothing is known yet
        assert caplog.text.count("one input takes") == 2
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    for damaged in (text[:100], text.replace('"1"', '"3"'), "[]"):
        file.write_text(damaged)
        assert load_batches(engine, model, 8, Tuning(tmp_path)).sizes == (1,)


def test_a_batch_of_other_bytes_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(model: Model, n: int) -> Model | None:
        made = batched(model, n)
        assert made is not None
        weight = next(name for name, c in made.constants.items() if c.dtype == np.int8)
        constants = made.constants | {weight: np.roll(made.constants[weight], 1)}
        return Model(msgspec.structs.replace(made.header), constants, made.golden)

    monkeypatch.setattr(batches_module, "batched", wrong)
    model = read(DIGITS)
    assert load_batches(load(model), model, 16, Tuning(tmp_path, 1.0)).sizes == (1,)
    assert "other bytes" in caplog.text
