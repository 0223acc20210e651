"""The tuner: what it chooses, on a box that is played; and what is remembered, on this one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent import Tuning, load
from agent import graph as g
from agent.config import load as load_config
from agent.daemon import Daemon
from agent.engine import native, tuner
from agent.engine.answers import Key, default_folder, key_of
from agent.engine.choice import Choice, Choices, Option
from agent.engine.tuner import Answer, Timed, tune
from agent.modelfile import Model
from agent.notify import Notifier
from tests.agent_process import DIGITS, ROOT, Agent
from tests.operators import Sketch, random_inputs
from tests.reference import evaluate

FAST, SLOW, ALONE = Choice("fast"), Choice("slow"), Choice(fused=False)
OPTIONS = (
    Option("a", "", (Choice(), SLOW, FAST)),
    Option("b", "sum", (Choice(), FAST, ALONE)),
    Option("c", "", (Choice(), SLOW)),
)


class Box:
    """A machine on which time passes only by what is done: 10 ms a build, and microseconds of operators as given."""

    def __init__(self, cost: Callable[[str, Choice], float], whole: Callable[[Choices], float] | None = None) -> None:
        self.now = 0.0
        self.builds = 0
        self.cost, self.whole = cost, whole

    def clock(self) -> float:
        return self.now

    def build(self, choices: Choices) -> _Played:
        self.now += 0.01
        self.builds += 1
        return _Played(self, choices)

    def tune(self, budget_s: float = 3.0) -> Answer:
        return tune(self.build, OPTIONS, budget_s, self.clock)


class _Played:
    def __init__(self, box: Box, choices: Choices) -> None:
        self.box, self.choices = box, choices

    def choice(self, operator: str) -> Choice:
        return self.choices.get(operator, Choice())

    def profile(self) -> Mapping[str, int]:
        times = {name: round(1000 * self.box.cost(name, self.choice(name))) for name in ("a", "b", "c")}
        times["sum"] = 50_000 if not self.choice("b").fused else 0
        self.box.now += sum(times.values()) / 1e9
        return times

    def run(self) -> None:
        whole = self.box.whole
        self.box.now += whole(self.choices) if whole else sum(self.profile().values()) / 1e9

    def plan(self) -> Mapping[str, str]:
        plan = {name: str(self.choice(name)) for name in ("a", "b", "c")}
        return plan | {"sum": f"in b: {self.choice('b').fused}"}


def _by_kernel(operator: str, choice: Choice) -> float:
    return {"": 100.0, "fast": 60.0, "slow": 140.0}[choice.kernel] - (30 if not choice.fused else 0)


def _credulous(choices: Choices) -> float:
    """A whole run in which any choice looks like a win: the last comparison would pass it."""
    return 3e-4 / (1 + len(choices))


def test_the_fast_is_chosen_and_the_slow_is_not() -> None:
    answer = Box(_by_kernel).tune()
    assert answer.choices == {"a": FAST, "b": FAST}
    assert answer.operators["a"] == Timed(100.0, 60.0)
    assert answer.operators["c"] == Timed(100.0, 100.0)
    assert answer.default_us == pytest.approx(300)
    assert answer.tuned_us == pytest.approx(220)
    assert answer.complete


def test_an_operator_is_judged_together_with_what_takes_it_over() -> None:
    # Alone, b is 30 us faster, but then the sum takes 50.
    assert Box(lambda name, choice: 100.0 - (30 if not choice.fused else 0), _credulous).tune().choices == {}
    assert Box(lambda name, choice: 100.0 - (60 if not choice.fused else 0)).tune().choices == {"b": ALONE}


def test_a_lead_within_the_margin_does_not_count() -> None:
    assert Box(lambda name, choice: 100.0 if choice.kernel != "fast" else 98.0, _credulous).tune().choices == {}


def test_where_the_whole_run_is_not_faster_the_default_stays() -> None:
    for slower in (1.0, 1.2):
        box = Box(_by_kernel, lambda choices, slower=slower: 3e-4 * (slower if len(choices) > 1 else 1))
        assert box.tune().choices == {}


def test_what_wins_by_luck_must_win_again() -> None:
    box = Box(_by_kernel, _credulous)
    lucky = box.builds + 3  # the round of FAST for a; later it is as slow as the rest
    box.cost = lambda name, choice: 100.0 if box.builds > lucky else _by_kernel(name, choice)
    assert box.tune().choices == {}


def test_a_choice_that_no_program_can_have_is_passed_over() -> None:
    class Same(Box):
        def build(self, choices: Choices) -> _Played:
            return super().build({})

    box = Same(_by_kernel)
    assert box.tune().choices == {}
    assert box.now < 0.035  # nothing was compared


@pytest.mark.parametrize("budget_s", [0.012, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.3, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("run_ms", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("lead", [40, 3])
def test_the_budget_is_kept(budget_s: float, run_ms: float, lead: float) -> None:
    rng = np.random.default_rng(0)

    def cost(name: str, choice: Choice) -> float:
        """Noise that keeps verdicts from settling, but not the run's length from being foreseen."""
        nonlocal shift
        shift = rng.uniform(-40, 40) if name == "a" else shift
        usual = 100 if choice == Choice() else 100 - lead
        return 10 * run_ms * (usual + {"a": shift, "b": 0, "c": -shift}[name])

    shift = 0.0
    box = Box(cost)
    answer = box.tune(budget_s)
    first = 0.01 + 2 * 3 * run_ms * 1e-3  # the default is built, and run twice, in any case
    assert box.now <= max(budget_s, first) + 1e-9
    assert answer.spent_s == pytest.approx(box.now)
    if budget_s >= 1.0 and run_ms == 0.1 and lead == 40:
        assert answer.choices
    if budget_s <= 0.02:
        assert not answer.complete


def _network(seed: int) -> Model:
    """All that can be chosen: Winograd's shapes, a sum of two convolutions, tables, depthwise windows."""
    s = Sketch(np.random.default_rng(seed))
    s.weights = lambda shape: (s.rng.integers(-30, 31, shape).astype(np.int8), 0)  # type: ignore[method-assign]

    def lut(x: g.Tensor) -> g.Tensor:
        y = s.tensor(x.shape)
        table = s.constant(s.rng.integers(0, 256, 256).astype(np.uint8))
        s.nodes.append(g.Lut(f"n{len(s.nodes)}", x.name, y.name, table))
        return y

    three, one = ((3, 3), (1, 1), (1, 1, 1, 1)), ((1, 1), (1, 1), (0, 0, 0, 0))
    x = s.tensor((1, 16, 16, 3))
    stem = lut(s.conv(x, 64, *three))
    wide = lut(s.conv(stem, 64, *three, groups=64))
    total = s.add(s.conv(wide, 96, *one), s.conv(stem, 96, *three))
    small = lut(s.conv(total, 64, (5, 5), (2, 2), (2, 2, 2, 2)))
    return s.model([x], [s.conv(small, 64, *three), total])


def _answer(choices: dict[str, Choice]) -> Answer:
    return Answer(choices, {}, 0.0, 0.0, True, 0.0)


def _outputs(model: Model, inputs: dict[str, np.ndarray], **options: object) -> dict[str, bytes]:
    return {k: v.tobytes() for k, v in load(model, **options).run(inputs).items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_every_choice_gives_the_same_bytes(isa: str, threads: int, tmp_path: Path) -> None:
    model = _network(1)
    inputs = random_inputs(model, np.random.default_rng(2))
    expected = {k: v.tobytes() for k, v in evaluate(model.header.graph, model.constants, inputs).items()}
    options = load(model, threads, isa=isa).options()
    tuning, key = Tuning(tmp_path), key_of(model, isa, threads)
    tried = [{o.operator: choice} for o in options for choice in o.candidates]
    rng = np.random.default_rng(3)
    tried += [{o.operator: o.candidates[rng.integers(len(o.candidates))] for o in options} for _ in range(20)]
    plans = set()
    for choices in tried:
        tuning.remember(key, "network", _answer(choices))
        engine = load(model, threads, isa=isa, tuning=tuning)
        plans.add(str(engine.steps()))
        got = {k: v.tobytes() for k, v in engine.run(inputs).items()}
        assert got == expected, choices
    assert len(plans) > 1  # they do differ in how they run


def test_what_is_remembered_is_used_and_not_tuned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network(1)
    first = load(model, tuning=Tuning(tmp_path, 0.3))
    assert first.tuned is not None
    monkeypatch.setattr(tuner, "tune", lambda *_: pytest.fail("tuned again"))
    again = load(model, tuning=Tuning(tmp_path, 0.3))
    assert again.tuned == first.tuned
    assert again.steps() == first.steps()
    split = {"n0": Choice(split="panels")}
    Tuning(tmp_path).remember(key_of(model, "auto", 2), "network", _answer(split))
    steps = load(model, 2, tuning=Tuning(tmp_path)).steps()
    assert next(s.split for s in steps if s.name == "n0") == "panels"
    assert load(model, 2).tuned is None


def test_an_answer_holds_for_its_model_cpu_and_threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _network(1)
    keys = [key_of(model, "auto", 1), key_of(model, "auto", 2), key_of(_network(2), "auto", 1),
            key_of(model, "ref", 1)]  # fmt: skip
    monkeypatch.setattr(native, "cpu", lambda: "another")
    keys.append(key_of(model, "auto", 1))
    assert len({k.file for k in keys}) == len(keys)
    name = next(iter(model.constants))
    changed = dict(model.constants)
    changed[name] = changed[name].copy()
    changed[name].reshape(-1)[-1] ^= 1
    assert key_of(Model(model.header, changed), "auto", 1) != key_of(model, "auto", 1)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "not JSON": lambda data: b"\xff\xfe nonsense",
    "deep": lambda data: b"[" * 100_000,
    "of another form": lambda data: b'{"choices": {}}',
    "of another model": lambda data: data.replace(b'"model": "', b'"model": "x'),
    "of other kernels": lambda data: data.replace(b'"kernels": "', b'"kernels": "x'),
    "of a wrong type": lambda data: data.replace(b'"threads": 1', b'"threads": "1"'),
    "with an unknown split": lambda data: data.replace(b'"choices": {', b'"choices": {"n0": {"split": "diagonal"},'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_answer_is_ignored_and_replaced(damage: str, tmp_path: Path) -> None:
    model = _network(1)
    key = key_of(model, "auto", 1)
    Tuning(tmp_path).remember(key, "network", _answer({"x": Choice()}))
    file = tmp_path / key.file
    good = file.read_bytes()
    file.write_bytes(DAMAGES[damage](good))
    assert file.read_bytes() != good
    assert load(model, tuning=Tuning(tmp_path)).tuned is None
    assert load(model, tuning=Tuning(tmp_path, 0.05)).tuned is not None
    found = Tuning(tmp_path).recall(key)
    assert found is not None
    assert found.key == key


def test_choices_that_are_gone_fall_back_to_the_default(tmp_path: Path) -> None:
    model = _network(1)
    inputs = random_inputs(model, np.random.default_rng(2))
    gone = {"n0": Choice("conv_of_the_future"), "no_such_node": Choice(split="rows"), "n2": Choice("conv_u8s8_ref")}
    tuning = Tuning(tmp_path)
    tuning.remember(key_of(model, "auto", 1), "network", _answer(gone))
    assert load(model, tuning=tuning).steps() == load(model).steps()
    assert _outputs(model, inputs, tuning=tuning) == _outputs(model, inputs)


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    tuning = Tuning(tmp_path / "file" / "folder", 0.05)
    model = _network(1)
    with caplog.at_level(logging.WARNING):
        for threads in (1, 2):
            assert load(model, threads, tuning=tuning).tuned is not None
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "enabled = false" in caplog.text


def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path)
    for i in range(105):
        tuning.remember(Key(f"{i}", "cpu", "isa", 1, "k"), "m", _answer({}))
    assert len(list(tmp_path.iterdir())) == 100
    assert tuning.recall(Key("104", "cpu", "isa", 1, "k")) is not None


def test_the_state_folder_is_systemds_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert default_folder() == Path("/x/int8d/tuner")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert default_folder() == Path("/h/.local/state/int8d/tuner")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/int8d:/var/lib/other")
    assert default_folder() == Path("/var/lib/int8d/tuner")


def test_the_daemon_tunes_at_its_first_start_only(agent: Callable[..., Agent], tmp_path: Path) -> None:
    running = agent(top=f'tuner = {{ folder = "{tmp_path / "answers"}" }}')
    assert "for 3.0 s at most" in running.log()
    assert "one input takes" in running.log()
    assert len(list((tmp_path / "answers").iterdir())) == 2  # of kernels, and of batches
    assert running.terminate() == 0
    running.start()
    assert "at most" not in running.log()
    assert "one input takes" not in running.log()


def test_tuning_can_be_turned_off(agent: Callable[..., Agent], tmp_path: Path) -> None:
    running = agent(top=f'tuner = {{ enabled = false, folder = "{tmp_path / "answers"}" }}')
    assert "at most" not in running.log()
    assert not (tmp_path / "answers").exists()
    assert load_config(running.config).tuner.budget_s == 3.0


def test_systemd_is_told_how_long_tuning_may_take(tmp_path: Path) -> None:
    class Recorder(Notifier):
        sent: list[str] = []  # noqa: RUF012

        def send(self, state: str) -> None:
            self.sent.append(state)

    def start(tuner: str) -> list[str]:
        file = tmp_path / "int8d.toml"
        file.write_text(f'device = "box1"\n[tuner]\n{tuner}\n[[model]]\nname = "digits"\npath = "{DIGITS}"\n')
        Recorder.sent = []
        Daemon(load_config(file), Recorder())
        return Recorder.sent

    folder = f'folder = "{tmp_path / "answers"}"'
    assert start(f"budget_s = 2.5\n{folder}") == ["EXTEND_TIMEOUT_USEC=65000000"]
    assert start(f"enabled = false\n{folder}") == ["EXTEND_TIMEOUT_USEC=60000000"]


def test_bench_tunes_and_inspect_tells(tmp_path: Path) -> None:
    def int8d(*args: str) -> str:
        command = [sys.executable, "-m", "agent.cli", *args, str(DIGITS), "--tuner-folder", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout

    assert json.loads(int8d("inspect", "--json"))["tuner"] is None
    assert "int8d bench --tune" in int8d("inspect")
    assert list(tmp_path.iterdir()) == []
    int8d("bench", "--tune", "--seconds", "0.1")
    file, batches = sorted(tmp_path.iterdir(), key=lambda f: len(f.name))
    assert json.loads(batches.read_bytes())["times"]["most"] == 16
    told = json.loads(int8d("inspect", "--json"))
    assert told["tuner"]["file"] == str(file)
    assert told["tuner"]["complete"]
    assert 0 <= told["tuner"]["age_s"] < 100
    assert any(o["tuner"] and o["tuner"]["default_us"] > 0 for o in told["operators"])
    stored = msgspec.json.decode(file.read_bytes())
    stored["made"] -= 3 * 86_400
    stored["answer"]["choices"] = {"conv1": {"kernel": "x"}}
    file.write_bytes(msgspec.json.encode(stored))
    assert "tuned 3 days ago: 1 operators changed" in int8d("inspect")
    before = file.read_bytes()
    int8d("bench", "--seconds", "0.1")
    assert file.read_bytes() == before
    int8d("bench", "--tune", "--seconds", "0.1")
    assert "conv1" not in msgspec.json.decode(file.read_bytes())["answer"]["choices"]
