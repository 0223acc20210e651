"""Whole networks of torchvision at 224x224: one answer, to the byte, from every backend and for every choice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent import Tuning, load
from agent.engine import native
from agent.engine.answers import key_of
from agent.engine.choice import Choice
from agent.engine.tuner import Answer
from agent.modelfile import Model, read
from tests.agent_process import ROOT, Agent

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("imagenet")

    def path_of(name: str) -> Path:
        path = folder / f"{name}.int8.safetensors"
        if not path.exists():
            command = [sys.executable, "-m", "models.cli", "build", name, "--weights", "none", "-o", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
            assert done.returncode == 0, done.stderr
            assert "SEEDED RANDOM" in done.stderr
        return path

    return path_of


@pytest.fixture(scope="module")
def resnet18(built: Callable[[str], Path]) -> Path:
    return built("resnet18")


def logits(model: Model, x: np.ndarray, *args: object, **options: object) -> bytes:
    return load(model, *args, **options).run({"x": x})["logits"].tobytes()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_backend_gives_the_same_bytes(name: str, built: Callable[[str], Path]) -> None:
    model = read(built(name))
    golden = model.golden[0]
    noise = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    for x in (golden.inputs["x"], noise):
        expected = logits(model, x, backend="torch")
        for isa in native.isas():
            for threads in (1, 2) if isa != "ref" else (2,):  # the reference takes seconds
                assert logits(model, x, threads, "native", isa) == expected, f"{isa}, {threads} threads"
    assert logits(model, golden.inputs["x"]) == golden.outputs["logits"].tobytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_choice_of_the_tuner_gives_the_same_bytes(
    name: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    model = read(built(name))
    golden = model.golden[0]
    expected, isa = golden.outputs["logits"].tobytes(), native.isas()[-1]
    for threads in (1, 2):
        options = load(model, threads, isa=isa).options()
        tuning, key = Tuning(tmp_path), key_of(model, isa, threads)
        seen: set[str] = set()
        for k in range(max(len(o.candidates) for o in options)):  # all operators at once
            choices: dict[str, Choice] = {o.operator: o.candidates[k % len(o.candidates)] for o in options}
            tuning.remember(key, name, Answer(choices, {}, 0.0, 0.0, True, 0.0))
            engine = load(model, threads, isa=isa, tuning=tuning)
            seen.add(str(engine.steps()))
            assert engine.run(golden.inputs)["logits"].tobytes() == expected, f"candidate {k}, {threads} threads"
        assert len(seen) > 1  # they do differ in how they run


def test_everything_is_native_and_the_sums_ride_on_convolutions(resnet18: Path) -> None:
    engine = load(resnet18)
    assert engine.backend == "native"
    adds = [s for s in engine.steps() if s.name.startswith("add")]
    assert len(adds) == 8
    assert all("(in " in s.kernel for s in adds)
    assert 1.8e9 < sum(s.macs for s in engine.steps()) < 1.9e9


def test_the_daemon_serves_it_in_little_memory(resnet18: Path, tmp_path: Path, broker, peer, stack) -> None:
    import io

    from PIL import Image

    agent = Agent(tmp_path, broker.port, model=resnet18)
    stack.callback(agent.kill)
    client = peer("predictions/#")
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    for _ in range(5):
        client.send("cameras/1/frame", buffer.getvalue())
        assert len(client.reply()["classes"]) == 5
    print(f"resident: {agent.resident_mb():.1f} MB")
    assert agent.resident_mb() < 110
