"""The model file: round trip, the same bytes, and a clear error for anything damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from agent.errors import ModelError
from agent.modelfile import Golden, Model, read, write
from tests.agent_process import DIGITS
from tests.operators import OPERATORS, Sketch, random_inputs
from tests.reference import evaluate


def small_model(seed: int = 1) -> Model:
    rng = np.random.default_rng(seed)
    model = OPERATORS["network"](Sketch(rng))
    inputs = random_inputs(model, rng)
    outputs = evaluate(model.header.graph, model.constants, inputs)
    return Model(model.header, model.constants, (Golden(inputs, outputs),))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = small_model()
    write(tmp_path / "m", model)
    again = read(tmp_path / "m")
    assert again.header.graph.nodes == model.header.graph.nodes
    assert again.constants.keys() == model.constants.keys()
    for name, array in model.constants.items():
        assert np.array_equal(array, again.constants[name])
    for name, array in model.golden[0].outputs.items():
        assert np.array_equal(array, again.golden[0].outputs[name])


def test_the_same_model_gives_the_same_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    write(tmp_path / "a", small_model())
    write(tmp_path / "b", read(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_constants_are_views_of_the_mapped_file() -> None:
    model = read(DIGITS)
    assert all(not array.flags.owndata and not array.flags.writeable for array in model.constants.values())


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    data = DIGITS.read_bytes()
    for length in [*range(0, 64), *range(64, len(data), 997), len(data) - 1]:
        (tmp_path / "m").write_bytes(data[:length])
        with pytest.raises(ModelError, match="m:"):
            read(tmp_path / "m")


def test_flipped_bits_give_an_error_or_a_valid_model(tmp_path: Path) -> None:
    data = DIGITS.read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        for at in rng.integers(0, header_end, rng.integers(1, 4)):
            damaged[at] ^= 1 << rng.integers(0, 8)
        (tmp_path / "m").write_bytes(damaged)
        try:
            read(tmp_path / "m")
        except ModelError:
            refused += 1
    assert refused > 1000


def _with_header(change) -> bytes:
    """The digits model with its int8d header changed as JSON."""
    data = DIGITS.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    outer = json.loads(data[8 : 8 + size])
    header = json.loads(outer["__metadata__"]["int8d"])
    change(header)
    outer["__metadata__"]["int8d"] = json.dumps(header)
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


CHANGES = {
    "another format": (lambda h: h.update(format=2), "format 2"),
    "an unknown field": (lambda h: h.update(surprise=1), "surprise"),
    "an unknown operator": (lambda h: h["graph"]["nodes"][0].update(op="exec"), "exec"),
    "a missing constant": (lambda h: h["graph"]["nodes"][0].update(weight="nowhere"), "nowhere"),
    "a wrong shape": (lambda h: h["graph"]["tensors"][1].update(shape=[1, 8, 8, 31]), "shape"),
    "a label too many": (lambda h: h["labels"].append("x"), "11 labels"),
    "preprocessing of nothing": (lambda h: h["preprocess"].update(input="y"), "preprocess"),
    "a golden output of nothing": (lambda h: h["graph"].update(outputs=[h["graph"]["nodes"][0]["output"]]), "post"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_header_that_breaks_a_rule_is_refused(tmp_path: Path, case: str) -> None:
    change, expected = CHANGES[case]
    (tmp_path / "m").write_bytes(_with_header(change))
    with pytest.raises(ModelError, match=expected):
        read(tmp_path / "m")


def test_a_safetensors_file_of_something_else_is_named_as_such(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, str(tmp_path / "m"))
    with pytest.raises(ModelError, match="not an int8d model"):
        read(tmp_path / "m")


def test_a_bad_model_is_not_written(tmp_path: Path) -> None:
    model = small_model()
    broken = Model(model.header, {k: v for k, v in list(model.constants.items())[1:]}, ())
    with pytest.raises(ModelError):
        write(tmp_path / "m", broken)
    assert not list(tmp_path.iterdir())
