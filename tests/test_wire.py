"""Requests, tensors and content types: what is taken, and how it is read."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from agent import load
from agent.errors import InputError
from agent.predict import Predictor
from agent.wire import kinds, oip, tensors
from tests.agent_process import DIGITS, picture


def test_kinds_by_content_type_then_by_first_bytes() -> None:
    assert kinds.kind_of(b"", "image/png; q=1") == "image"
    assert kinds.kind_of(b"\xff\xd8\xff\xe0", None) == "image"
    assert kinds.kind_of(b"\x93NUMPY\x01", None) == "npy"
    assert kinds.kind_of(b' \n{"a"', None) == "json"
    assert kinds.kind_of(b"\x00\x01", None) == "raw"
    with pytest.raises(InputError, match="text/html"):
        kinds.kind_of(b"x", "text/html")


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_are_read_as_numpy_reads_them(dtype: type, order: str) -> None:
    array = np.asarray(np.random.default_rng(0).normal(0, 50, (2, 3, 4)).astype(dtype), order=order)
    buffer = io.BytesIO()
    np.save(buffer, array)
    got = tensors.from_npy(buffer.getvalue())
    assert got.dtype == array.dtype
    assert np.array_equal(got, array)


def test_every_way_of_sending_the_same_input_gives_the_same_output() -> None:
    engine = load(DIGITS)
    predictor = Predictor(engine)
    info = engine.inputs["x"]
    q = np.random.default_rng(1).integers(0, 256, info.shape).astype(np.uint8)
    f = (q.astype(np.float32) - info.zero_point) * np.float32(info.scale)
    npy = io.BytesIO()
    np.save(npy, q)
    tensor = {"name": "x", "shape": list(info.shape), "datatype": "UINT8"}
    binary = {"inputs": [tensor | {"parameters": {"binary_data_size": q.size}}]}
    payloads = [
        q.tobytes(),
        f.tobytes(),
        npy.getvalue(),
        json.dumps({"inputs": [tensor | {"data": q.ravel().tolist()}]}).encode(),
        json.dumps({"inputs": [tensor | {"data": q.tolist()}]}).encode(),
        json.dumps({"inputs": [tensor | {"datatype": "FP32", "data": f.ravel().tolist()}]}).encode(),
        json.dumps(binary).encode() + q.tobytes(),
    ]
    outputs = [json.loads(predictor.predict(p))["outputs"] for p in payloads]
    assert all(o == outputs[0] for o in outputs)


def test_a_reply_has_the_protocols_fields() -> None:
    reply = json.loads(Predictor(load(DIGITS), "served", "3").predict(picture(0), None, None, "id-1"))
    assert reply["model_name"] == "served"
    assert reply["model_version"] == "3"
    assert reply["id"] == "id-1"
    assert sum(c["probability"] for c in reply["classes"]) <= 1.0001
    probabilities = [c["probability"] for c in reply["classes"]]
    assert probabilities == sorted(probabilities, reverse=True)


def test_binary_tensors_that_do_not_fit_are_refused() -> None:
    tensor = {"name": "x", "shape": [4], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
    for size, tail in ((4, b"abc"), (5, b"abcde"), (-1, b""), (4, b"abcdef"), ("4", b"abcd")):
        request = {"inputs": [tensor | {"parameters": {"binary_data_size": size}}]}
        with pytest.raises(InputError):
            oip.decode(json.dumps(request).encode() + tail)


def test_odd_but_honest_or_dishonest_numbers_and_headers() -> None:
    tensor = {"name": "x", "shape": [4], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
    _, arrays = oip.decode(b" \n" + json.dumps({"inputs": [tensor]}).encode() + b"abcd")
    assert arrays["x"].tobytes() == b"abcd"
    with pytest.raises(InputError, match="outside FP32"):
        oip.decode(json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1e300]}]}).encode())
    header = b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}".ljust(80)
    with pytest.raises(InputError, match="dtype"):
        tensors.from_npy(b"\x93NUMPY\x01\x00\x50\x00" + header)
