"""What a release must pass before the service loads it, in the child process that tests it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.config.tables import ModelConfig, Tuner
from agent.engine import Tuning, load, noise
from agent.modelfile import Golden, Model, read, write
from agent.repository.reasons import Refused
from agent.repository.release import Release
from agent.updates import child, identity, selftest
from agent.updates.selftest import Ask, ModelFile
from agent.validate import Limits
from tests.agent_process import DIGITS, ROOT
from tests.operators import Sketch
from tests.test_vault import RELEASE, encrypted
from tests.updates.bad import golden_differs


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tuner remembers."""
    return tmp_path_factory.mktemp("tuner")


@pytest.fixture
def tested(answers: Path):
    def run(file: Path, release: Release = Release("digits", 1), timeout_s: float = 60, tune: bool = True,
            model: dict[str, Any] | None = None, **rest: Any) -> selftest.Tested:  # fmt: skip
        ask = Ask(
            file=ModelFile(str(file), release), model=ModelConfig(name="digits", path="", **(model or {})),
            tuner=Tuner(enabled=tune, folder=str(answers)), **rest,
        )  # fmt: skip
        return child.run("test", ask, selftest.Tested, timeout_s)

    return run


@pytest.fixture
def refused(tested):
    def run(file: Path, **kwargs: Any) -> Refused:
        with pytest.raises(Refused) as e:
            tested(file, **{"tune": False} | kwargs)
        return e.value

    return run


def large(path: Path) -> Path:
    """A model of 8 MB of weights that answers as its golden pair says."""
    sketch = Sketch(np.random.default_rng(3))
    x = sketch.tensor((1, 4096), "u8")
    model = sketch.model([x], [sketch.linear(x, 2048)])
    engine = load(model)
    inputs = noise(engine)
    write(path, Model(model.header, model.constants, (Golden(inputs, engine.run(inputs)),)))
    return path


def test_a_good_model_passes_and_its_figures_are_told(tested, answers: Path) -> None:
    found = tested(DIGITS, model={"replicas": 2}, in_service=ModelFile(str(DIGITS), Release("digits", 0)),
                   latency_budget_ms=1000, memory_budget_bytes=64 << 20)  # fmt: skip
    assert found.golden == len(read(DIGITS).golden) > 0
    assert 0 < found.median_us < 1_000_000
    assert found.reference_us > 0
    assert 0 < found.resident_bytes < 64 << 20
    assert found.backend == "native"
    # The service will find what the tuner found.
    assert load(DIGITS, tuning=Tuning(answers)).tuned is not None


def test_every_backend_gives_the_golden_outputs(tested) -> None:
    assert tested(DIGITS, tune=False, model={"backend": "torch"}).backend == "torch"


def test_one_bit_of_a_golden_output_refuses_it(tmp_path: Path, refused) -> None:
    e = refused(golden_differs(tmp_path))
    assert e.code == "golden_differs"
    assert "1 of 10 values of output 'logits'" in str(e)


def test_a_release_without_golden_inputs_is_not_taken(tmp_path: Path, refused) -> None:
    write(tmp_path / "model", replace(read(DIGITS), golden=()))
    e = refused(tmp_path / "model")
    assert e.code == "not_a_model"
    assert "no golden inputs" in str(e)


def test_a_model_over_its_latency_budget_is_refused_with_figures(refused) -> None:
    e = refused(DIGITS, latency_budget_ms=0.0001, in_service=ModelFile(str(DIGITS), Release("digits", 0)))
    assert e.code == "latency_budget"
    assert "its budget is 0.0001 ms" in str(e)
    assert "the model in service takes" in str(e)


def test_a_model_over_its_memory_budget_is_refused_with_figures(tmp_path: Path, refused, tested) -> None:
    file = large(tmp_path / "model")
    e = refused(file, memory_budget_bytes=8_000_000)
    assert e.code == "memory_budget"
    assert "updates.memory_budget_bytes is 8,000,000" in str(e)
    assert tested(file, tune=False, memory_budget_bytes=64 << 20).resident_bytes > 8_000_000


def test_what_is_no_model_is_refused_as_such(tmp_path: Path, refused) -> None:
    data = DIGITS.read_bytes()
    for content in (b"<html>", data[:1000], data[:-1]):
        (tmp_path / "model").write_bytes(content)
        e = refused(tmp_path / "model")
        assert e.code == "not_a_model"
        assert str(tmp_path / "model") in str(e)


def test_a_model_over_the_limits_is_refused(refused) -> None:
    e = refused(DIGITS, model_limits=Limits(weights=1000))
    assert e.code == "not_a_model"
    assert "1,000" in str(e)


def test_a_model_that_cannot_run_as_configured_is_refused(refused) -> None:
    assert refused(DIGITS, model={"cores": [4095]}).code == "not_a_model"


def test_a_model_in_service_that_cannot_be_read_does_not_matter(tmp_path: Path, tested) -> None:
    found = tested(DIGITS, tune=False, in_service=ModelFile(str(tmp_path / "none"), Release("digits", 0)))
    assert found.reference_us == 0


def test_an_encrypted_model_is_tested_in_memory(tmp_path: Path, tested, refused) -> None:
    key = str(tmp_path / "box1.age")
    identity.create(key)
    file = encrypted(tmp_path / "model", Path(key))
    assert tested(file, RELEASE, tune=False, key=key, in_service=ModelFile(str(file), RELEASE)).reference_us > 0
    assert refused(file, release=RELEASE).code == "no_key"


def test_an_encrypted_file_that_is_no_model_is_named_as_it_lies_on_disk(tmp_path: Path, refused) -> None:
    key = str(tmp_path / "box1.age")
    identity.create(key)
    file, plain = tmp_path / "model", b"<html>" * 100
    encrypted(file, Path(key), plain=plain)
    release = Release("digits", 1, encryption="age", plaintext_sha256=hashlib.sha256(plain).hexdigest(),
                      plaintext_bytes=len(plain))  # fmt: skip
    e = refused(file, release=release, key=key)
    assert (e.code, str(file) in str(e), "/proc" in str(e)) == ("not_a_model", True, False)


@pytest.fixture
def plant(tmp_path: Path, monkeypatch):
    """A fault in loading the model."""

    def plant(fault: str) -> None:
        monkeypatch.setattr(child, "MODULE", "tests.planted_step")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PLANT_STEP", fault)
        monkeypatch.chdir(tmp_path)

    return plant


def test_a_model_that_crashes_on_load_is_refused(plant, refused) -> None:
    plant("crash")
    e = refused(DIGITS)
    assert (e.code, "signal 11" in str(e)) == ("crashed", True)


@pytest.mark.parametrize("fault", ["hang", "freeze"])
def test_a_model_that_hangs_on_load_is_refused(plant, refused, fault: str) -> None:
    plant(fault)
    assert refused(DIGITS, timeout_s=2).code == "hung"


def test_a_model_that_takes_all_memory_is_stopped_by_its_budget(plant, refused) -> None:
    plant("allocate")
    assert refused(DIGITS, memory_budget_bytes=1 << 20).code == "memory_budget"


def test_a_model_that_fills_the_disk_is_stopped(tmp_path: Path, plant, refused) -> None:
    plant("fill")
    e = refused(DIGITS)
    assert (e.code, "File too large" in str(e)) == ("crashed", True)
    assert (tmp_path / "filled").stat().st_size <= 16 << 20
