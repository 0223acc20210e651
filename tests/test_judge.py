"""The judge: every peer runs the network that we run, and what is said of the times is what was measured."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from agent import graph as g
from agent import load
from agent.commands.bench import compared
from agent.engine import native
from agent.errors import BackendError
from agent.modelfile import Model, Preprocess, read, write
from agent.peers import forms, judge, limits, runners, timing
from bench import kernels
from bench.table import paragraph
from models.build import build
from tests.agent_process import DIGITS, ROOT
from tests.operators import Sketch

# The least share of equal outputs, and of those within a step of the last quantization. A peer that rounds in another
# place, or leaves a quantization out, moves single outputs; a wrong weight, scale or padding moves them all.
EQUAL = {"onnxruntime": 0.98, "openvino": 0.4, "litert": 0.6, "torch": 0.4}
WITHIN_A_STEP = {"onnxruntime": 1.0, "openvino": 0.85, "litert": 0.95, "torch": 0.9}


class Small(torch.nn.Module):
    """One of each of what the five networks of the zoo are made of."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Hardswish(), nn.MaxPool2d(3, 2, 1))
        self.expand = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU6(), nn.Conv2d(32, 32, 3, 1, 1, groups=32), nn.SiLU())
        self.gates = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1), last)
            for last in (nn.Sigmoid(), nn.Hardsigmoid())
        )
        self.project = nn.Conv2d(32, 16, 1)
        self.down = nn.Sequential(nn.Conv2d(16, 24, 5, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(24, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.expand(x)
        for gate in self.gates:
            y = y * gate(y)
        return self.head(self.down(torch.relu(x + self.project(y))))


@pytest.fixture(scope="module")
def small() -> Model:
    torch.manual_seed(3)
    pictures = torch.rand(8, 3, 32, 32)
    labels = [str(i) for i in range(40)]
    return build("small", Small().eval(), [pictures], pictures[:4], labels, Preprocess("x"), {}).model


def needs(peer: str) -> None:
    for package in runners.PEERS[peer].packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{peer} needs {package}, of the extra bench")


def in_steps(model: Model, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    last = next(n for n in model.header.graph.nodes if isinstance(n, g.Dequantize)).input
    step = next(t.scale for t in model.header.graph.tensors if t.name == last)
    return np.abs(ours.astype(np.float64) - theirs) / step


@pytest.mark.parametrize("which", ["digits", "small"])
@pytest.mark.parametrize("peer", ["onnxruntime", "openvino", "litert"])
def test_a_peer_gives_our_outputs(peer: str, which: str, small: Model) -> None:
    needs(peer)
    model = read(DIGITS) if which == "digits" else small
    engine = load(model)
    name = model.header.graph.outputs[0]
    steps = []
    for golden in model.golden:
        runner = runners.make(peer, model, golden.inputs, 1)
        runner.run()
        steps.append(in_steps(model, engine.run(golden.inputs)[name], runner.outputs()[name]))
    off = np.concatenate(steps)
    assert (off < 0.01).mean() >= EQUAL[peer]
    assert (off < 1.5).mean() >= WITHIN_A_STEP[peer]


@pytest.mark.parametrize("form", ["same", "fused"])
def test_the_module_for_torch_gives_our_outputs(form: forms.Form, small: Model) -> None:
    from agent.peers.torch_qdq import to_torch

    for model in (read(DIGITS), small):
        module = to_torch(model, forms.loose_tensors(model.header.graph, form))
        steps = []
        for golden in model.golden:
            (array,) = golden.inputs.values()
            (theirs,) = module(torch.from_numpy(array.copy()).permute(0, 3, 1, 2))
            (ours,) = golden.outputs.values()
            steps.append(in_steps(model, ours, theirs.numpy()))
        off = np.concatenate(steps)
        assert (off < 0.01).mean() >= (EQUAL["torch"] if form == "fused" else 0.98)
        assert (off < 1.5).mean() >= WITHIN_A_STEP["torch"]


def test_the_float_network_is_what_the_integers_stand_for(small: Model) -> None:
    needs("onnxruntime-float")
    golden = small.golden[0]
    (ours,) = golden.outputs.values()
    (theirs,) = runners.make("onnxruntime-float", small, golden.inputs, 1).outputs().values()
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99
    assert not (ours == theirs).all()


def unsigned(far: bool) -> tuple[Model, dict[str, np.ndarray]]:
    """A convolution and a linear layer of u8 weights, and a difference. far: some less their zero point leave s8."""
    s = Sketch(np.random.default_rng(4))
    x, other = (s.tensor((1, 6, 6, 4), "u8") for _ in range(2))
    flat, y = s.tensor((1, 144), "u8"), s.tensor((1, 10), "u8")
    tensors = [
        g.Tensor(t.name, t.shape, t.dtype, 1 / 64, zp) for t, zp in zip(s.tensors, (7, 130, 120, 128), strict=True)
    ]
    conv, difference = (g.Tensor(n, x.shape, "u8", 1 / 64, 120) for n in ("conv", "difference"))
    flat = tensors[2]
    s.tensors = [*tensors, conv, difference, g.Tensor("out", y.shape, "f32")]

    def weights(shape: tuple[int, ...], zero_point: int) -> dict[str, object]:
        w = np.rint(s.rng.normal(zero_point, 20, shape)).clip(0, 255).astype(np.uint8)
        if far:
            w.ravel()[::11] = 255
        return {
            "weight": s.constant(w),
            "bias": s.constant(np.zeros(shape[0], np.int32)),
            "multiplier": s.constant(np.full(shape[0], 0.001, np.float32)),
            "weight_zero_point": zero_point,
        }

    s.nodes = [
        g.Conv2d("conv", x.name, "conv", lo=0, hi=255, padding=(1, 1, 1, 1), **weights((4, 3, 3, 4), 100)),
        g.Add("difference", ("conv", other.name), "difference", 0, 255, True),
        g.Reshape("flat", "difference", flat.name),
        g.Linear("linear", flat.name, y.name, lo=0, hi=255, **weights((10, 144), 90)),
        g.Dequantize("out", y.name, "out"),
    ]
    model = s.model([x, other], [s.tensors[-1]])
    return model, {t.name: s.rng.integers(0, 256, t.shape).astype(np.uint8) for t in (x, other)}


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("peer", ["onnxruntime", "openvino", "litert", "torch"])
def test_u8_weights_and_differences_reach_a_peer_or_are_refused(peer: str, far: bool) -> None:
    needs(peer)
    model, inputs = unsigned(far)
    if far and peer in ("litert", "torch"):
        from agent.peers import tflite, torch_qdq

        with pytest.raises(BackendError, match="node 'conv': this peer takes s8 weights"):
            (tflite.to_tflite if peer == "litert" else torch_qdq.to_torch)(model)
        return
    if peer == "torch":
        from agent.peers.torch_qdq import to_torch

        (theirs,) = to_torch(model)(*(torch.from_numpy(a).permute(0, 3, 1, 2) for a in inputs.values()))
        theirs = theirs.numpy()
    else:
        runner = runners.make(peer, model, inputs, 1)
        runner.run()
        theirs = runner.outputs()["out"]
    off = in_steps(model, load(model).run(inputs)["out"], theirs)
    assert (off < 1.5).mean() >= WITHIN_A_STEP[peer]


def test_the_fused_form_keeps_what_has_two_readers_quantized(small: Model) -> None:
    graph = small.header.graph
    loose = forms.loose_tensors(graph, "fused")
    convolutions = {n.output for n in graph.nodes if isinstance(n, g.Conv2d | g.Linear)}
    read_by_functions = {n.input for n in graph.nodes if isinstance(n, g.Lut)}
    residual = next(n for n in graph.nodes if isinstance(n, g.Add))
    assert forms.loose_tensors(graph, "same") == frozenset()
    assert convolutions & read_by_functions <= loose
    assert len(loose & set(residual.inputs)) == 1
    assert loose <= convolutions


def test_a_comparison_has_every_field_and_torch_runs_on_onednn() -> None:
    command = [sys.executable, "-m", "agent.cli", "bench", DIGITS, "--vs", "torch", "--seconds", "0.1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["failed"] == {}
    assert (result["model"], result["threads"], result["limit"]) == ("digits", 1, None)
    assert result["isa"] in native.isas()
    assert result["best_peer"] == "torch"
    ours, theirs = result["contenders"]["int8d"], result["contenders"]["torch"]
    for row in (ours, theirs):
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p95_ms"]
        assert row["runs"] > 0
    assert result["ratio"] == pytest.approx(ours["p50_ms"] / theirs["p50_ms"])
    assert result["gmac_per_s"] == pytest.approx(result["macs"] / ours["p50_ms"] / 1e6)
    assert result["of_peak"] == pytest.approx(result["gmac_per_s"] / result["peak_gmac_per_s"])
    assert theirs["same_top1"]
    assert theirs["equal"] >= EQUAL["torch"]
    convolutions = sum(isinstance(n, g.Conv2d) for n in read(DIGITS).header.graph.nodes)
    assert f"{convolutions} onednn.qconv" in theirs["ran"]


def odd(tmp_path: Path) -> Path:
    """A model that no peer has a form for, because of a table without a name."""
    s = Sketch(np.random.default_rng(1))
    x, y = s.tensor((1, 4, 4, 8)), s.tensor((1, 4, 4, 8))
    s.nodes.append(g.Lut("strange", x.name, y.name, s.constant(np.arange(256, dtype=np.uint8))))
    write(tmp_path / "odd.safetensors", s.model([x], [y]))
    return tmp_path / "odd.safetensors"


def test_a_peer_that_fails_is_named_and_the_rest_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent.cli", "bench", odd(tmp_path), "--vs", "torch", "--seconds", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "torch did not run: node 'strange'" in done.stdout
    assert "int8d" in done.stdout.splitlines()[3]
    assert "no peer to compare" in done.stdout


def test_an_unknown_peer_is_an_error_that_names_those_there_are() -> None:
    command = [sys.executable, "-m", "agent.cli", "bench", DIGITS, "--vs", "tensorflow"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "no peer 'tensorflow'" in done.stderr
    assert all(peer in done.stderr for peer in runners.PEERS)


def test_a_missing_peer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"openvino, which is not installed: pip install 'int8d\[bench\]'"):
        runners.make("openvino", read(DIGITS), {}, 1)


def test_a_contender_runs_only_while_it_is_asked(tmp_path: Path) -> None:
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    with judge.Contender("int8d", DIGITS, 2, None, tmp_path) as contender:
        pid = contender._process.pid
        assert state(pid) == "T"
        assert contender.ask({"slice": 0.01})["times"]
        assert state(pid) == "T"
        assert contender.outputs.keys() == {"logits"}
    assert not Path(f"/proc/{pid}").exists()


def test_a_contender_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    with judge.Contender("int8d", DIGITS, 1, None, tmp_path) as contender:
        contender._process.kill()
        contender._process.wait()
        with pytest.raises(judge.ContenderFailedError, match="ended with status -9"):
            contender.ask({"slice": 0.01})


def test_figures_are_order_statistics() -> None:
    times = [3_000_000, 1_000_000, 2_000_000, *[5_000_000] * 17]
    row = timing.figures(times, 10_000_000)
    assert row == {"runs": 20, "min_ms": 1.0, "p50_ms": 5.0, "p95_ms": 5.0, "gmac_per_s": 2.0}
    assert timing.figures([7], 0) == {"runs": 1, "min_ms": 7e-6, "p50_ms": 7e-6, "p95_ms": 7e-6, "gmac_per_s": 0.0}
    assert timing.figures([*range(1, 101)], 0)["p95_ms"] == 96e-6


def test_a_slice_warms_up_and_then_times_every_call() -> None:
    calls = []
    times = timing.timed_slice(lambda: calls.append(1), 0.0)
    assert len(times) == 1
    assert len(calls) >= 3


def test_agreement_counts_equal_elements() -> None:
    ours, theirs = {"y": np.float32([1, 2, 3, 2])}, {"y": np.float32([1, 2, 3, 4])}
    assert judge.agreement(ours, theirs) == {"equal": 0.75, "difference": 0.25, "same_top1": False}
    assert judge.agreement(ours, ours) == {"equal": 1.0, "difference": 0.0, "same_top1": True}


def test_a_limit_reaches_the_contender(tmp_path: Path) -> None:
    assert limits.environment(None) == {}
    assert limits.environment("avx512vnni")["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_VNNI"
    assert limits.environment("avx2")["INT8D_ISA"] == "avx2"
    isa = native.isas()[0]
    with judge.Contender("int8d", DIGITS, 1, isa, tmp_path) as contender:
        assert contender.described["isa"] == isa


def test_a_process_without_amx_is_refused_its_tiles() -> None:
    program = (
        "import ctypes; from agent.peers.limits import refuse_amx; refused = refuse_amx();"
        "libc = ctypes.CDLL(None, use_errno=True); status = libc.syscall(158, 0x1023, 18);"
        "print(refused, status, ctypes.get_errno())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    refused, status, errno = done.stdout.split()
    if refused == "False":
        pytest.skip("no seccomp here")
    assert (status, errno) == ("-1", "1")
    assert ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(ctypes.c_ulong())) is not None  # this one is as it was


def test_the_text_fits_a_hundred_columns() -> None:
    row = {"runs": 9, "min_ms": 1234.5678, "p50_ms": 1234.5678, "p95_ms": 1234.5678, "gmac_per_s": 1234.5,
           "ran": "x" * 60, "limit": "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI"}  # fmt: skip
    peer = row | {"version": "2026.10.10", "equal": 1.0, "difference": 1.234, "same_top1": True, "ratio": 12.34}
    result = {
        "model": "mobilenet_v3_large", "threads": 128, "isa": "avx512vnni", "limit": "avx512vnni", "macs": 1,
        "gmac_per_s": 1234.5, "peak_gmac_per_s": 123456.7, "of_peak": 0.99, "best_peer": "onnxruntime-float",
        "ratio": 12.34, "contenders": {"int8d": row, "onnxruntime-float": peer},
        "failed": {"openvino": "a long story " * 30},
    }  # fmt: skip
    lines = compared(result).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("onnxruntime-float" in line for line in lines) == 3


def test_kernel_benches_become_a_table_a_family() -> None:
    records = [
        {"name": "conv_fast/3x3s1_56_64_64", "GMAC/s": 400.4, "of_peak": 0.875},
        {"name": "conv_slow/3x3s1_56_64_64", "GMAC/s": 100.0},
        {"name": "conv_slow/1x1s1_56_64_64", "error_occurred": True, "error_message": "can't"},
        {"name": "depthwise_fast/3x3s1_56_64", "GMAC/s": 50.0, "of_peak": 0.1},
    ]
    lines = [*kernels.report(records)]
    assert "| 3x3s1 56 64 64 | 400 (88 %) | 100 |" in lines
    assert "| 1x1s1 56 64 64 |  | can't |" in lines
    assert "### depthwise" in lines
    assert max(map(len, paragraph("word " * 100))) <= 120
