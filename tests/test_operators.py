"""Every operator gives the reference's bytes: natively on every instruction set of this CPU, and in torch."""

from __future__ import annotations

import numpy as np
import pytest

from agent import load
from agent.engine import native
from tests.moves import MOVES
from tests.operators import OPERATORS, Sketch, random_inputs
from tests.reference import evaluate

CASES = 200


@pytest.mark.parametrize("operator", OPERATORS | MOVES)
def test_every_backend_gives_the_reference_bytes(operator: str) -> None:
    assert "avx2" not in native.isas() or len(native.isas()) > 1
    for case in range(CASES):
        rng = np.random.default_rng([case, len(operator)])
        model = (OPERATORS | MOVES)[operator](Sketch(rng))
        inputs = random_inputs(model, rng)
        expected = evaluate(model.header.graph, model.constants, inputs)
        engines = {f"native {isa} x{1 + case % 2}": load(model, 1 + case % 2, "native", isa) for isa in native.isas()}
        engines["torch"] = load(model, backend="torch")
        for which, engine in engines.items():
            for name, array in engine.run(inputs).items():
                same = array.shape == expected[name].shape and array.tobytes() == expected[name].tobytes()
                assert same, (
                    f"{operator} case {case}: '{name}' differs on {which}: {_difference(array, expected[name])}"
                )


def test_a_window_too_large_for_the_vector_kernels_runs_on_the_reference() -> None:
    for groups in (1, 6):
        rng = np.random.default_rng(groups)
        s = Sketch(rng)
        x = s.tensor((1, 20, 20, 6))
        model = s.model([x], [s.conv(x, 6, (17, 17), (1, 1), (0, 0, 0, 0), groups=groups)])
        inputs = random_inputs(model, rng)
        (expected,) = evaluate(model.header.graph, model.constants, inputs).values()
        engine = load(model, 2)
        assert "ref" in engine.steps()[0].kernel
        (got,) = engine.run(inputs).values()
        assert got.tobytes() == expected.tobytes()


def _difference(got: np.ndarray, expected: np.ndarray) -> str:
    wrong = np.argwhere(got != expected)
    at = tuple(wrong[0])
    return f"{len(wrong)} of {got.size}, first at {at}: {got[at]}, expected {expected[at]}"


def test_a_program_runs_again_and_again_with_the_same_bytes() -> None:
    rng = np.random.default_rng(5)
    model = OPERATORS["network"](Sketch(rng))
    engine = load(model, 2)
    first, other = random_inputs(model, rng), random_inputs(model, rng)
    expected = {k: v.tobytes() for k, v in engine.run(first).items()}
    for _ in range(50):
        engine.run(other)
        assert {k: v.tobytes() for k, v in engine.run(first).items()} == expected
