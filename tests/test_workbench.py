"""torch module to model file: what becomes native, what stays float, and that the numbers are PT2E's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from agent import graph as g
from agent import load
from agent.modelfile import Header, assemble, read
from models.compress.quantize import quantize
from models.intake.aten.weights import bias_and_multiplier
from models.intake.torch_export import to_graph
from models.zoo import digits
from tests.agent_process import DIGITS


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return torch.relu(self.b(y) + y)


class Cat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


class MeanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 9, 3), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).mean([2, 3]))


def conv(*rest: nn.Module, **kwargs: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, **kwargs), *rest)


NATIVE = {
    "conv": (conv, {"conv2d"}),
    "conv, batch-norm, relu": (lambda: conv(nn.BatchNorm2d(8), nn.ReLU(), bias=False), {"conv2d"}),
    "relu6": (lambda: conv(nn.ReLU6(), padding=1, stride=2), {"conv2d"}),
    "dilated": (lambda: conv(nn.ReLU(), dilation=2, padding=2), {"conv2d"}),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4)), {"conv2d"}),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), {"conv2d"}),
    "hardswish": (lambda: conv(nn.Hardswish()), {"conv2d", "lut"}),
    "silu": (lambda: conv(nn.SiLU()), {"conv2d", "lut"}),
    "sigmoid": (lambda: conv(nn.Sigmoid()), {"conv2d", "lut"}),
    "gelu": (lambda: conv(nn.GELU()), {"conv2d", "lut"}),
    "tanh": (lambda: conv(nn.Tanh()), {"conv2d", "lut"}),
    "residual": (Residual, {"conv2d", "add"}),
    "cat": (Cat, {"conv2d", "concat"}),
    "max pool": (lambda: conv(nn.MaxPool2d(3, 2, 1)), {"conv2d", "max_pool2d"}),
    "max pool with ceil": (lambda: conv(nn.MaxPool2d(3, 2, ceil_mode=True)), {"conv2d", "max_pool2d"}),
    "average pool": (lambda: conv(nn.AvgPool2d(3, 2, 1)), {"conv2d", "avg_pool2d"}),
    "average pool without padding": (
        lambda: conv(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), {"conv2d", "avg_pool2d"},
    ),
    "global pool, flatten, linear": (
        lambda: conv(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5)),
        {"conv2d", "avg_pool2d", "reshape", "linear"},
    ),
    "flatten of a map, linear, relu": (
        lambda: conv(nn.Flatten(), nn.Linear(8 * 8 * 10, 5), nn.ReLU(), nn.Linear(5, 4)),
        {"conv2d", "reshape", "linear"},
    ),
    "mean, linear": (MeanHead, {"conv2d", "avg_pool2d", "reshape", "linear"}),
    "softmax": (
        lambda: nn.Sequential(MeanHead(), nn.Softmax(-1)),
        {"conv2d", "avg_pool2d", "reshape", "linear", "softmax"},
    ),
}  # fmt: skip


def bring(module: nn.Module, seed: int = 0):
    """The converted module, the model, and inputs [8, 3, 10, 12]."""
    torch.manual_seed(seed)
    x = torch.randn(8, 3, 10, 12)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    converted = quantize(module.eval(), [x])
    graph, constants = to_graph(converted)
    return converted, assemble(Header(1, "m", "1", graph), constants), x


def outputs(converted, model, x: torch.Tensor, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Ours and torchao's, with torch's axes."""
    engine = load(model, backend=backend)
    ours, theirs = [], []
    with torch.no_grad():
        for sample in x.split(1):
            ours.append(next(iter(engine.run({"x": sample.permute(0, 2, 3, 1).contiguous().numpy()}).values())))
            theirs.append(converted(sample).numpy())
    return np.concatenate(ours), np.concatenate(theirs)


@pytest.mark.parametrize("case", NATIVE)
def test_a_module_becomes_native_and_is_within_a_step_of_pt2e(case: str) -> None:
    module, operators = NATIVE[case]
    torch.manual_seed(1)
    converted, model, x = bring(module())
    used = {str(n.__struct_config__.tag) for n in model.header.graph.nodes}
    assert used - {"dequantize", "transpose"} == operators
    ours, theirs = outputs(converted, model, x, "auto")
    assert np.array_equal(ours, outputs(converted, model, x, "torch")[0])
    last = next(n for n in reversed(model.header.graph.nodes) if isinstance(n, (g.Dequantize, g.Softmax)))
    step = next(t.scale for t in model.header.graph.tensors if t.name == last.input)
    off = np.abs(ours - theirs) / (1 if isinstance(last, g.Softmax) else step)
    # PT2E computes in float: a sum on the edge between two integers may fall to either side, in each layer.
    assert off.max() < (0.05 if isinstance(last, g.Softmax) else 2.5)
    assert (off < 0.5).mean() > 0.9


class Odd(nn.Module):
    """cumsum has no int8 form."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.cumsum(self.a(x), 1) * 0.3)


def test_what_has_no_int8_form_stays_float_between_native_neighbours() -> None:
    converted, model, x = bring(Odd())
    targets = [n.target for n in model.header.graph.nodes if isinstance(n, g.Aten)]
    assert targets == ["aten::cumsum"]
    assert sum(isinstance(n, g.Conv2d) for n in model.header.graph.nodes) == 2
    ours, theirs = outputs(converted, model, x, "auto")
    step = next(t.scale for t in model.header.graph.tensors if t.name == model.header.graph.nodes[-1].input)
    assert np.abs(ours - theirs).max() / step < 2.5


def test_bias_is_rounded_half_to_even_and_a_dead_channel_keeps_its_bias() -> None:
    weight = np.int8([[1, -3], [100, 127]])
    _, bias, multiplier = bias_and_multiplier(np.array([0.5, 1.5]), weight, 1.0, np.array([1.0, 1.0]), 2.0)
    assert bias.tolist() == [0, 2]
    assert multiplier.tolist() == [0.5, 0.5]
    weight, bias, multiplier = bias_and_multiplier(np.array([5.0]), weight[:1], 0.01, np.array([1e-7]), 0.1)
    assert abs(bias[0]) <= 2**30
    assert np.isclose(bias[0] * multiplier[0] * 0.1, 5.0)
    assert weight.tolist() == [[0, -1]]


def test_digits_is_as_good_in_int8_as_in_float() -> None:
    model = read(DIGITS)
    said = {k: float(model.header.provenance[k]) for k in ("float_accuracy", "int8_accuracy")}
    measured = digits.accuracy(model, digits.split())
    print(f"digits: float {said['float_accuracy']:.4f}, int8 {measured:.4f}")
    assert abs(measured - said["int8_accuracy"]) < 1e-4
    assert measured > said["float_accuracy"] - 0.005
    assert measured > 0.97


def test_the_same_seed_builds_the_committed_file(tmp_path) -> None:
    path = digits.save(digits.make(), tmp_path)
    assert path.stat().st_size < 200_000
    again = digits.save(digits.make(), tmp_path / ".." / tmp_path.name)
    assert path.read_bytes() == again.read_bytes()
    built, committed = read(path), read(DIGITS)
    # Another CPU's float sums may differ in their last bits, and so may weights after training; shape and skill may
    # not.
    assert [n.name for n in built.header.graph.nodes] == [n.name for n in committed.header.graph.nodes]
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == sorted(
        p.name for p in (digits.FOLDER / "digits").iterdir()
    )
    for picture in (tmp_path / "digits").glob("*.png"):
        assert picture.read_bytes() == (digits.FOLDER / "digits" / picture.name).read_bytes()
