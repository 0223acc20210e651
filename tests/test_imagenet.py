"""A whole ResNet18 at 224x224: one answer, to the byte, from every backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent import load
from agent.engine import native
from agent.modelfile import read
from tests.agent_process import ROOT, Agent


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet18") / "resnet18.int8.safetensors"
    command = [sys.executable, "-m", "models.cli", "build", "resnet18", "--weights", "none", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "SEEDED RANDOM" in done.stderr
    return path


def test_every_backend_gives_the_same_bytes(resnet18: Path) -> None:
    model = read(resnet18)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    for x in (model.golden[0].inputs["x"], noise):
        expected = load(model, backend="torch").run({"x": x})["logits"].tobytes()
        for isa in native.isas():
            for threads in (1, 2):
                engine = load(model, threads, "native", isa)
                assert engine.isa == isa
                assert engine.run({"x": x})["logits"].tobytes() == expected, f"{isa}, {threads} threads"
    assert load(model).run(model.golden[0].inputs)["logits"].tobytes() == model.golden[0].outputs["logits"].tobytes()


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
