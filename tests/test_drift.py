"""Drift: the numbers by hand and by scipy, the file that carries the base, and the verdict on real traffic."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent import graph as g
from agent.config import Drift as Settings
from agent.engine import load
from agent.engine.observation import Observer
from agent.errors import ModelError
from agent.modelfile import FORMAT, Header, Model, read, write
from agent.predict import Predictor
from agent.statistics import InputStatistics, Statistics
from agent.telemetry.drift import Drift, chance, jensen_shannon, psi
from models.statistics import with_statistics
from tests.agent_process import DIGITS, PICTURES, ROUTE, picture

EACH = Settings(every=1)


def _pictures() -> np.ndarray:
    """The forty of the zoo, u8 [40, 8, 8]; the model was not trained on them."""
    return np.stack([np.asarray(Image.open(p)) for p in sorted(PICTURES.glob("*.png"))])


def _verdict_on(pictures: np.ndarray, count: int, settings: Settings = EACH) -> dict:
    """Of ``count`` pictures drawn at random, with putting back."""
    model = read(DIGITS)
    drift, predictor = Drift(settings), Predictor(load(model))
    predictor.observe = drift.watch("digits", model)
    for i in np.random.default_rng(0).integers(0, len(pictures), count):
        predictor.predict(_png(pictures[i]))
    return drift.snapshot()["digits"]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# The numbers


def test_the_index_is_what_pen_and_paper_give() -> None:
    # 50 of 100 against 25 of 100, half an element added to each of two bins.
    p, q = (50.5 / 101, 50.5 / 101), (25.5 / 101, 75.5 / 101)
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert psi(np.array([50, 50]), np.array([25, 75])) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.2687, abs=1e-4)
    assert psi(np.array([3, 9, 0]), np.array([3, 9, 0])) == 0
    assert psi(np.array([0, 0]), np.array([1, 1])) == 0
    assert math.isfinite(psi(np.array([10, 0]), np.array([0, 10])))


def test_the_distance_is_scipys() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    rng = np.random.default_rng(1)
    for _ in range(50):
        p, q = rng.integers(0, 5, 20), rng.integers(0, 50, 20)
        assert jensen_shannon(p, q) == pytest.approx(distance.jensenshannon(p, q, 2), abs=1e-9)
    assert jensen_shannon(np.array([1, 0]), np.array([0, 7])) == 1
    assert jensen_shannon(np.array([2, 4]), np.array([1, 2])) == 0


def test_the_index_is_scipys_entropies_in_both_directions() -> None:
    stats = pytest.importorskip("scipy.stats")
    p, q = np.array([5, 0, 12, 80]), np.array([50, 9, 120, 700])
    shares = [(x + 0.5) / (x + 0.5).sum() for x in (p, q)]
    assert psi(p, q) == pytest.approx(stats.entropy(*shares) + stats.entropy(*shares[::-1]), rel=1e-9)


@pytest.mark.parametrize("bins", [2, 10, 16, 20, 1000])
def test_what_chance_alone_gives_is_the_quantile_of_chi_square(bins) -> None:
    chi2 = pytest.importorskip("scipy.stats").chi2
    assert chance(1000, 500, bins) == pytest.approx((1 / 1000 + 1 / 500) * chi2.ppf(0.999, bins - 1), rel=0.04)
    assert chance(1000, 500, 1) == 0


@pytest.mark.parametrize("n", [30, 300, 1000])
def test_draws_from_the_same_distribution_stay_below_chance(n) -> None:
    rng = np.random.default_rng(n)
    shares = rng.dirichlet(np.full(10, 5))
    draws = [psi(rng.multinomial(n, shares), rng.multinomial(360, shares)) for _ in range(2000)]
    beyond = np.mean(np.array(draws) > chance(n, 360, 10))
    assert beyond < 0.003
    assert np.quantile(draws, 0.99) > 0.5 * chance(n, 360, 10)  # nor is it so high that nothing would be seen


# What is counted


def test_an_observation_is_numpys_histogram_of_the_input() -> None:
    model = read(DIGITS)
    observer, engine = Observer(model, {}), load(model)
    pixels = _pictures()[3]
    x = pixels.reshape(1, 8, 8, 1)
    outputs = engine.run({"x": x})
    seen = observer.observe({"x": x}, outputs)
    assert seen.bins[0].tolist() == np.histogram(pixels, 16, (0, 256))[0].tolist()
    scale = model.header.graph.tensors[0].scale
    assert seen.moments[0].tolist() == pytest.approx([(pixels * scale).mean(), ((pixels * scale) ** 2).mean()])
    scores = outputs["logits" if "logits" in outputs else next(iter(outputs))].ravel().astype(np.float64)
    shares = np.exp(scores) / np.exp(scores).sum()
    assert seen.top == shares.argmax()
    assert seen.confidence == int(shares.max() * 20)
    as_float = observer.observe({"x": x.astype(np.float32) * np.float32(scale)}, outputs)
    assert as_float.bins.tolist() == seen.bins.tolist()


def _identity(dtype: str, shape: tuple[int, ...] = (1, 64), scale: float = 0.5, zero_point: int = 3) -> Model:
    """A graph that hands its input on."""
    tensor = g.Tensor("x", shape, dtype, *((scale, zero_point) if dtype in ("u8", "s8") else ()))
    return Model(Header(FORMAT, "identity", "1", g.Graph((tensor,), (), ("x",), ("x",))), {})


def test_s8_codes_are_counted_in_the_order_of_their_values() -> None:
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
    observer = Observer(_identity("s8", x.shape), {})
    seen = observer.observe({"x": x[:, ::-1]}, {})
    assert seen.bins[0].tolist() == [16] * 16
    assert observer.observe({"x": np.full((1, 256), -128, np.int8)}, {}).bins[0, 0] == 256
    assert seen.moments[0, 0] == pytest.approx(((x.astype(float) - 3) * 0.5).mean())
    assert observer.limits("x") == ((-128 - 3) * 0.5, (128 - 3) * 0.5)


def test_floats_beyond_the_recorded_range_count_in_the_outer_bins() -> None:
    x = np.array([[-9, 0, 0.06, 0.99, 1, 7, np.inf, -np.inf, np.nan]], np.float32)
    seen = Observer(_identity("f32", x.shape), {"x": (0.0, 1.0)}).observe({"x": x}, {})
    assert seen.bins[0].tolist() == [5] + [0] * 14 + [4]
    assert np.isfinite(seen.moments).all()


@pytest.mark.parametrize("side", [64, 160, 224])  # a third of 64x64x3 would be one channel alone
def test_a_large_input_is_looked_at_in_part_and_in_every_channel(side: int) -> None:
    x = np.zeros((1, side, side, 3), np.uint8)
    x[..., 1], x[..., 2] = 100, 200
    seen = Observer(_identity("u8", x.shape), {}, 4096).observe({"x": x}, {})
    counts = seen.bins[0][[0, 100 // 16, 200 // 16]]
    assert 2000 < counts.sum() <= 4096
    assert counts.max() - counts.min() <= 2


# The file


def _statistics(**changed: object) -> Statistics:
    of = InputStatistics(0.3, 0.4, 0.0, 1.0, (5,) * 16)
    return replace_struct(Statistics(20, {"x": of}, (2,) * 10, (1,) * 20), **changed)


def replace_struct(statistics: Statistics, **changed: object) -> Statistics:
    return Statistics(**{f: getattr(statistics, f) for f in statistics.__struct_fields__} | changed)


def test_statistics_come_back_as_they_were_written_and_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    model = replace(read(DIGITS), statistics=_statistics())
    files = [tmp_path / name for name in "ab"]
    for _ in range(8):  # safetensors orders its metadata at random
        for file in files:
            write(file, model)
        assert files[0].read_bytes() == files[1].read_bytes()
    again = read(files[0])
    assert again.statistics == _statistics()
    assert again.header == model.header
    assert all(np.array_equal(again.constants[k], v) for k, v in model.constants.items())


def test_a_file_without_statistics_is_read_and_not_watched(tmp_path: Path) -> None:
    write(tmp_path / "plain", replace(read(DIGITS), statistics=None))
    model = read(tmp_path / "plain")
    assert model.statistics is None
    assert Drift(EACH).watch("digits", model) is None


def test_an_agent_that_knows_no_statistics_reads_the_header_all_the_same() -> None:
    data = DIGITS.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert set(metadata) == {"int8d", "int8d.statistics"}
    assert "statistics" not in json.loads(metadata["int8d"])


BROKEN = {
    "no samples": {"samples": 0},
    "another input": {"inputs": {"y": InputStatistics(0, 1, 0, 1, (1,) * 16)}},
    "too few bins": {"inputs": {"x": InputStatistics(0, 1, 0, 1, (1,) * 15)}},
    "a negative count": {"inputs": {"x": InputStatistics(0, 1, 0, 1, (-1,) * 15 + (99,))}},
    "nothing counted": {"inputs": {"x": InputStatistics(0, 1, 0, 1, (0,) * 16)}},
    "an empty range": {"inputs": {"x": InputStatistics(0, 1, 1, 1, (1,) * 16)}},
    "a range without end": {"inputs": {"x": InputStatistics(0, 1, -1e308, 1e308, (1,) * 16)}},
    "a negative deviation": {"inputs": {"x": InputStatistics(0, -1, 0, 1, (1,) * 16)}},
    "nine classes": {"classes": (2,) * 9},
    "classes that do not add up": {"classes": (3,) * 10},
    "confidence in other bins": {"confidence": (2,) * 10},
}


@pytest.mark.parametrize("case", BROKEN)
def test_statistics_of_another_model_are_refused(case, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="statistics"):
        write(tmp_path / "model", replace(read(DIGITS), statistics=_statistics(**BROKEN[case])))
    assert not list(tmp_path.iterdir())


def test_hostile_statistics_are_refused_or_can_be_watched_by(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    data = DIGITS.read_bytes()
    size = int.from_bytes(data[:8], "little")
    outer, watched = json.loads(data[8 : 8 + size]), 0
    for _ in range(500):
        tree = [json.loads(outer["__metadata__"]["int8d.statistics"])]
        for _ in range(1 + int(rng.integers(2))):
            _mutate(rng, tree)
        metadata = outer["__metadata__"] | {"int8d.statistics": json.dumps(tree[0])}
        text = json.dumps(outer | {"__metadata__": metadata}).encode()
        (tmp_path / "model").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
        try:
            model = read(tmp_path / "model")
        except ModelError:
            continue
        drift = Drift(Settings(every=1, window=2))
        observe = drift.watch("digits", model)
        assert observe is not None
        for value in (0, 255):
            observe({"x": np.full((1, 8, 8, 1), value, np.uint8)}, {model.header.graph.outputs[0]: np.eye(1, 10)})
        found = drift.snapshot()["digits"]
        assert found["verdict"] in ("none", "moderate", "major")
        json.dumps(found, allow_nan=False)
        watched += 1
    assert 50 < watched < 450


def _mutate(rng: np.random.Generator, tree: list | dict) -> None:
    """Changes one thing somewhere below."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    key = keys[int(rng.integers(len(keys)))]
    if isinstance(tree[key], list | dict) and tree[key] and rng.random() < 0.9:
        return _mutate(rng, tree[key])
    hostile = [0, 1, -1, 2**31, 2**62, 2**64, 1e-300, 1e300, 0.5, "x", None, [], {}, tree[key], tree[key]]
    tree[key] = hostile[int(rng.integers(len(hostile)))]


def test_damaged_statistics_in_a_file_are_refused(tmp_path: Path) -> None:
    data = DIGITS.read_bytes()
    (tmp_path / "model").write_bytes(data.replace(b'\\"samples\\":360', b'\\"samples\\":"60'))
    with pytest.raises(ModelError, match="damaged"):
        read(tmp_path / "model")


def test_the_workbench_records_what_the_model_sees_and_says(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from models.cli import main

    file = tmp_path / "digits.int8.safetensors"
    write(file, replace(read(DIGITS), statistics=None))
    assert main(["record", str(file), str(PICTURES)]) == 0
    recorded = read(file).statistics
    assert recorded is not None
    pixels = _pictures()
    assert recorded.samples == sum(recorded.classes) == sum(recorded.confidence) == 40
    assert recorded.inputs["x"].counts == tuple(np.histogram(pixels, 16, (0, 256))[0].tolist())
    scale = read(file).header.graph.tensors[0].scale
    assert recorded.inputs["x"].mean == pytest.approx((pixels * scale).mean())
    assert recorded.inputs["x"].std == pytest.approx((pixels * scale).std())
    labels = json.loads((PICTURES / "labels.json").read_text()).values()
    assert np.abs(np.bincount(list(labels), minlength=10) - recorded.classes).sum() <= 2
    assert main(["record", str(file), str(tmp_path)]) == 2  # no pictures there


def test_an_import_records_what_it_was_calibrated_on(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchao")
    from models.cli import main
    from models.zoo.digits import DigitsNet

    program = torch.export.export(DigitsNet().eval(), (torch.zeros(1, 1, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    file = tmp_path / "net.int8.safetensors"
    assert main(["import", str(tmp_path / "net.pt2"), "-o", str(file), "--calibrate", str(PICTURES)]) == 0
    recorded = read(file).statistics
    assert recorded is not None
    assert recorded.samples == sum(recorded.classes) == 40
    drift = Drift(EACH)
    predictor = Predictor(load(read(file)))
    predictor.observe = drift.watch("net", read(file))
    for i in range(40):
        predictor.predict(picture(i))
    found = drift.snapshot()["net"]
    assert found["psi"] == {"classes": 0, "confidence": 0, "inputs": {"x": 0}}  # the same pictures


# The verdict


@pytest.fixture(scope="module")
def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Pictures that the model was not trained on, u8 [360, 8, 8], and their labels."""
    pytest.importorskip("sklearn")
    from models.zoo import digits

    data = digits.split()
    return data.held_out, data.held_out_labels


def test_pictures_as_they_were_are_no_drift(held_out) -> None:
    found = _verdict_on(held_out[0], 1000)
    assert found["verdict"] == "none"
    assert found["psi"]["inputs"]["x"] < 0.05
    assert found["inputs"]["x"]["mean"] == pytest.approx(found["inputs"]["x"]["recorded_mean"], abs=0.02)


def test_inverted_pictures_are_major_drift() -> None:
    found = _verdict_on(255 - _pictures(), 100)
    assert found["verdict"] == "major"
    assert found["psi"]["inputs"]["x"] > 1
    assert found["js"]["inputs"]["x"] > 0.4
    assert found["psi"]["confidence"] > 1


def test_one_class_only_is_major_drift(held_out) -> None:
    pictures, labels = held_out
    found = _verdict_on(pictures[labels == 3], 100)
    assert found["verdict"] == "major"
    assert found["psi"]["classes"] > 2
    assert found["psi"]["inputs"]["x"] < 0.1


def test_a_few_inferences_say_nothing_yet() -> None:
    assert _verdict_on(255 - _pictures(), 29)["verdict"] == "unknown"
    assert _verdict_on(255 - _pictures(), 0)["psi"] == {"classes": 0, "confidence": 0, "inputs": {"x": 0}}


def test_thresholds_are_the_settings() -> None:
    assert _verdict_on(255 - _pictures(), 100, Settings(every=1, moderate=50, major=60))["verdict"] == "none"
    assert _verdict_on(255 - _pictures(), 100, Settings(every=1, moderate=0.1, major=60))["verdict"] == "moderate"


def test_the_window_forgets_and_the_whole_remembers() -> None:
    pictures = _pictures().reshape(-1, 1, 8, 8, 1)
    model = with_statistics(read(DIGITS), [{"x": x} for x in pictures])
    drift, engine = Drift(Settings(every=1, window=100)), load(model)
    observe = drift.watch("digits", model)
    assert observe is not None
    for turn, expected in ((pictures, "none"), (255 - pictures, "major"), (pictures, "none")):
        for i in range(120):
            x = {"x": turn[i % 40]}
            observe(x, engine.run(x))
        assert drift.snapshot()["digits"]["verdict"] == expected
    found = drift.snapshot()["digits"]
    assert (found["n"], found["since_start"]["n"]) == (100, 360)
    assert found["since_start"]["psi"]["inputs"]["x"] > 0.15 > found["psi"]["inputs"]["x"]


def test_one_in_so_many_is_looked_at_and_senders_that_take_turns_are_all_seen() -> None:
    model = read(DIGITS)
    drift = Drift(Settings(every=20))
    observe = drift.watch("digits", model)
    assert observe is not None
    dark, light = (np.full((1, 8, 8, 1), v, np.uint8) for v in (0, 255))
    output = {model.header.postprocess.output: np.zeros((1, 10), np.float32)}
    for i in range(20_000):
        observe({"x": light if i % 20 == 7 else dark}, output)
    found = drift.snapshot()["digits"]
    assert 850 < found["since_start"]["n"] < 1150  # 1000 on average
    assert 0.01 < found["inputs"]["x"]["mean"] < 0.1  # a twentieth of it is light


def test_the_daemon_publishes_the_verdict(agent, peer) -> None:
    agent(rest=ROUTE + "[drift]\nevery = 1\nwindow = 40\n")
    client = peer("predictions/#")
    stats = peer("int8d/box1/stats")

    def settled(n: int) -> dict:
        while True:
            found = stats.reply()["drift"]["digits"]
            if found["since_start"]["n"] == n:
                return found

    for i in range(40):
        client.send(f"cameras/{i}/frame", picture(i))
    assert settled(40)["verdict"] == "none"
    for i, pixels in enumerate(_pictures()):
        client.send(f"cameras/{i}/frame", _png(255 - pixels))
    found = settled(80)
    assert (found["verdict"], found["n"], found["recorded"]) == ("major", 40, 360)


def test_of_a_model_that_takes_encrypted_messages_only_the_verdict_is_published(tmp_path: Path, agent, peer) -> None:
    pytest.importorskip("cryptography")
    from agent.wire import keys

    keys.create(str(tmp_path / "key"))
    sealed = (
        ROUTE.replace("{1}", "all")
        + f'encryption = "hpke"\n[encryption]\nkey = "{tmp_path}/key"\n[home_assistant]\nenabled = true\n'
    )
    agent(rest=sealed + "[drift]\nevery = 1\n")
    client = peer("int8d/box1/v2/models/digits/infer/response")  # the device's own topics take the clear text still
    client.send("int8d/box1/v2/models/digits/infer", picture(0))
    client.receive()
    stats = peer("int8d/box1/stats")
    while not (found := stats.reply()["drift"]["digits"])["n"]:
        pass
    assert found == {"verdict": "unknown", "n": 1, "recorded": 360}
    components = peer("homeassistant/#").reply()["components"]
    assert "json_attributes_topic" not in components["digits_drift"]
    assert "digits_class" not in components  # what the route publishes can't be read


def test_switched_off_nothing_is_watched(agent, peer) -> None:
    agent(rest=ROUTE + "[drift]\nenabled = false\n")
    assert peer("int8d/box1/stats").reply()["drift"] == {}
