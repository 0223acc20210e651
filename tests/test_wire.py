"""Requests, tensors and content types: what is taken, and how it is read."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from agent import load
from agent.errors import InputError
from agent.predict import Predictor, best, best_few, request_id_of
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


@pytest.mark.parametrize(
    ("datatype", "inside", "outside"),
    [("UINT8", [0, 255], 256), ("INT8", [-128, 127], -129), ("INT32", [-(2**31), 2**31 - 1], 2**31),
     ("FP32", [1, -2.5e38], 4e38)],
)  # fmt: skip
def test_flat_and_nested_numbers_are_read_alike(datatype: str, inside: list[float], outside: float) -> None:
    def read(data: object) -> list[float]:
        tensor = {"name": "x", "shape": [2], "datatype": datatype, "data": data}
        array = oip.decode(json.dumps({"inputs": [tensor]}).encode())[1]["x"]
        return array.astype(np.float64).tolist()

    expected = [float(np.float32(x)) for x in inside] if datatype == "FP32" else inside
    assert read(inside) == read([inside]) == read([[inside[0]], [inside[1]]]) == expected
    for bad in ([0, outside], [[0, outside]]):
        with pytest.raises(InputError, match=f"outside {datatype}"):
            read(bad)
    for bad in ([0, "1"], [True, 0], [0, None], {"0": 1}, [0], [0, 1, 2]):
        with pytest.raises(InputError):
            read(bad)
    if datatype != "FP32":
        assert read([1.0, 2]) == [1, 2]
        with pytest.raises(InputError, match="fraction"):
            read([1.5, 2])


@pytest.mark.parametrize("softmax", [False, True])
def test_few_scores_are_ranked_as_many_are(softmax: bool) -> None:
    rng = np.random.default_rng(0)
    for scores in (*rng.normal(0, 5, (50, 12)), [1.0, 3.0, 3.0, -1.0, 3.0], [0.0], [3e38, -3e38, 3e38]):
        row = np.array(scores, np.float32)
        few, many = best_few(row.tolist(), softmax, 5), best(row, softmax, 5)
        assert few is not None
        assert [i for i, _ in few] == [i for i, _ in many]
        assert [p for _, p in few] == pytest.approx([p for _, p in many], rel=1e-14)
    for odd in (np.nan, np.inf, -np.inf):
        assert best_few([1.0, odd], softmax, 5) is None


def test_what_is_no_text_and_no_size_is_refused_by_name() -> None:
    for text in (b'{"id":"\xff"}', b'{"\xe9":1}', b'{"binary_data_size":"\xff"}'):
        with pytest.raises(InputError, match="not an Open Inference"):
            oip.decode(text)
        assert request_id_of(text) is None
    assert oip.wishes(b'{"\xe9":1, "timeout":5}').timeout is None
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (True, 1)}".ljust(80)
    with pytest.raises(InputError, match="shape"):
        tensors.from_npy(b"\x93NUMPY\x01\x00\x50\x00" + header + b"x")


@pytest.mark.parametrize("text", [
    b'{"\xf3\x00": 1, "timeout"', b'{"id": "\xff\xfe", "timeout": 1, "inputs": []}',
    b'{"\xf3timeout": 1, "inputs": [], "timeout": 1}', b'{"parameters": {"timeout": "\xff"}}',
    b'{"timeout": ' + b"[" * 100_000, b'\xff{"timeout"', b'{"inputs": [{"name": "\xc3"}]}',
])  # fmt: skip
def test_bytes_that_are_no_text_are_refused_and_never_raise_anything_else(text: bytes) -> None:
    with pytest.raises(InputError):
        oip.decode(text)
    assert oip.wishes(text) == oip.Wishes()
    assert request_id_of(text) is None


def test_a_timeout_without_end_is_a_long_one() -> None:
    for zeros in (3, 20, 400):
        text = b'{"parameters": {"timeout": 1' + b"0" * zeros + b', "priority": 3}}'
        assert oip.wishes(text) == oip.Wishes(min(10**zeros, 10**15), 3)


def test_the_jsons_size_may_be_told() -> None:
    head = b'{"inputs":[{"name":"x","shape":[3],"datatype":"UINT8","parameters":{"binary_data_size":3}}]}'
    for text, size in ((head, len(head)), (head + b"  ", len(head) + 2)):
        _, arrays = oip.decode(text + b"}{\x00", size)
        assert bytes(arrays["x"]) == b"}{\x00"
    for size in (0, len(head) - 1, len(head) + 1, 10_000):
        with pytest.raises(InputError):
            oip.decode(head + b"abc", size)
    assert kinds.json_size("application/json; charset=utf-8; JSON-size= 12") == 12
    assert kinds.json_size("application/json") is kinds.json_size(None) is None
    with pytest.raises(InputError, match="json-size"):
        kinds.json_size("application/json; json-size=-1")


def test_many_small_binary_tensors_in_a_long_payload_are_not_copied_each() -> None:
    count, tail = 20_000, bytes(8 * 1024 * 1024)
    sizes = [0] * (count - 1) + [len(tail)]
    inputs = ",".join(
        f'{{"name":"{i}","shape":[{n}],"datatype":"UINT8","parameters":{{"binary_data_size":{n}}}}}'
        for i, n in enumerate(sizes)
    )
    _, arrays = oip.decode(f'{{"inputs":[{inputs}]}}'.encode() + tail)
    assert len(arrays) == count
    assert np.shares_memory(arrays[str(count - 1)], arrays[str(count - 1)].base)
