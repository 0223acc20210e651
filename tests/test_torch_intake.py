"""The torch road: what each pattern becomes, that the numbers are PT2E's, layouts, outputs, fallbacks, refusals."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.passes.shape_prop import ShapeProp

from agent import graph as g
from agent import load
from agent.errors import ModelError
from agent.modelfile import Header, Model, assemble
from models.compress.quantize import quantize
from models.intake.source import Options
from models.intake.torch_export import to_graph
from models.intake.torch_source import read

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
Inputs = tuple[torch.Tensor, ...]


class Of(nn.Module):
    """A module of a function of its input and of its parts."""

    def __init__(self, function: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(self, *inputs)


def bring(module: nn.Module, *shapes: tuple[int, ...], samples: int = 4) -> tuple[GraphModule, Model, list[Inputs]]:
    """The quantized module, the model, and samples of its inputs, on which it is calibrated."""
    torch.manual_seed(0)
    inputs = [tuple(torch.randn(1, *s[1:]) for s in shapes) for _ in range(samples)]
    converted = quantize(module.eval(), inputs)
    graph, constants = to_graph(converted)
    return converted, assemble(Header(1, "m", "1", graph), constants), inputs


def counts(model: Model) -> Counter[str]:
    """Nodes by operator, without dequantize."""
    names = (n.target if isinstance(n, g.Aten) else str(n.__struct_config__.tag) for n in model.header.graph.nodes)
    return Counter(name for name in names if name != "dequantize")


def steps_off(converted: GraphModule, model: Model, inputs: list[Inputs]) -> float:
    """The largest difference from PT2E's simulation over all outputs, in steps of that output."""
    engine, graph = load(model, backend="torch"), model.header.graph
    tensors = {t.name: t for t in graph.tensors}
    scale = {n.output: tensors[n.input].scale for n in graph.nodes if isinstance(n, g.Dequantize)}
    worst = 0.0
    for sample in inputs:
        given = {name: _as_taken(x) for name, x in zip(graph.inputs, sample, strict=True)}
        ours = engine.run(given)
        theirs = torch.utils._pytree.tree_leaves(converted(*sample))
        for (name, y), t in zip(ours.items(), theirs, strict=True):
            assert y.shape == (tuple(t.shape) or (1,)), name
            worst = max(worst, float(np.abs(y - t.numpy()).max()) / scale.get(name, 1e-3))
    return worst


def _as_taken(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray((x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy())


class Block(nn.Module):
    """A transformer's: patches, attention, MLP, both with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 12, 16) * 0.3)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).permute(0, 2, 1) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Windows(nn.Module):
    """Swin's: shifted windows of 2x2, a bias by position, a mask made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(9, 2) * 0.5)
        self.register_buffer("index", torch.randint(0, 9, (16,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        y = torch.roll(self.norm(x), (-1, -1), (1, 2))
        y = y.view(1, 2, 2, 3, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(6, 4, 8)
        q, k, v = self.qkv(y).reshape(6, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5).matmul(k.transpose(-2, -1))
        scores = scores + self.table[self.index].view(4, 4, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        region = x.new_zeros((4, 6))
        region[3:, :] = 1
        region[:, 5:] += 2
        region = region.view(2, 2, 3, 2).permute(0, 2, 1, 3).reshape(6, 4)
        mask = region.unsqueeze(1) - region.unsqueeze(2)
        mask = mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)
        scores = scores.view(1, 6, 2, 4, 4) + mask.unsqueeze(1).unsqueeze(0)
        y = scores.view(6, 2, 4, 4).softmax(-1).matmul(v).transpose(1, 2).reshape(6, 4, 8)
        y = self.out(y).view(1, 2, 3, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(1, 4, 6, 8)
        return x + torch.roll(y, (1, 1), (1, 2))


def segmentation() -> nn.Module:
    return Of(
        lambda m, x: {
            "out": F.interpolate(m.head(m.body(x) * m.gate(m.body(x))), (16, 12), mode="bilinear", align_corners=False),
            "aux": F.interpolate(m.aux(m.body(x)), scale_factor=2.0),
        },
        body=nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        gate=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid()),
        head=nn.Conv2d(8, 4, 1), aux=nn.Conv2d(8, 4, 1),
    )  # fmt: skip


def convolutions(m: Of, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = m.same(x)
    return m.up(y), m.line(y.flatten(2)), torch.relu(m.norm(torch.cat([y, -y], 1)))


def pointwise(m: Of, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y, z = m.a(x), m.b(x)
    gate = y.mean((2, 3), keepdim=True)
    return (y - z, y * z, z * gate, y * torch.sigmoid(y), y * F.relu6(y + 3) / 6, 1 - F.softplus(z),
            y + z.mean(1, keepdim=True), m.prelu(y), F.normalize(y, dim=-1), ((y / 2).clamp(-0.3, 0.4) + 1).pow(2),
            (y.abs() + 1).sqrt())  # fmt: skip


def moving(m: Of, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = m.a(x)
    left, right = y.chunk(2, 1)
    shuffled = y.view(1, 2, 4, 8, 6).transpose(1, 2).reshape(1, 8, 8, 6)
    return (left + right, F.pixel_shuffle(y, 2), shuffled, torch.roll(y, (1, -2), (2, 3)), F.pad(y, (1, 0, 2, 1)),
            y[:, 1:, ::2], y.permute(2, 0, 3, 1), y.flip(3), torch.stack([left, right], 2), y.unbind(1)[3],
            y[:, :1].expand(1, 5, 8, 6), y.repeat(1, 1, 2, 1))  # fmt: skip


def rows(m: Of, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = m.a(x)
    last = F.layer_norm(y.permute(0, 2, 3, 1), (8,), m.n.weight, m.n.bias).permute(0, 3, 1, 2)
    return last, m.g(y), F.layer_norm(y, (8, 6)), torch.softmax(y, 1) + y, y.mean(1), y.mean((1, 3)), y.mean()


PATTERNS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "convolutions": (
        lambda: Of(convolutions, same=nn.Conv2d(3, 6, (3, 2), padding="same"), line=nn.Conv1d(6, 5, 3, 2, 1),
                   up=nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1), norm=nn.BatchNorm2d(12)),
        (1, 3, 8, 6), {"conv2d", "pad", "lut", "concat", "transpose", "reshape"},
    ),
    "pointwise": (
        lambda: Of(pointwise, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 3, 1, 1), prelu=nn.PReLU()),
        (1, 3, 8, 6), {"conv2d", "add", "mul", "lut", "avg_pool2d", "expand", "layer_norm", "concat", "slice",
                         "transpose", "reshape"},
    ),
    "moves": (
        lambda: Of(moving, a=nn.Conv2d(3, 8, 1)),
        (1, 3, 8, 6), {"conv2d", "add", "slice", "concat", "pad", "expand", "transpose", "reshape"},
    ),
    "rows": (
        lambda: Of(rows, a=nn.Conv2d(3, 8, 1), n=nn.LayerNorm(8), g=nn.GroupNorm(1, 8)),
        (1, 3, 8, 6), {"conv2d", "layer_norm", "softmax", "add", "avg_pool2d", "transpose", "reshape"},
    ),
    "a transformer's block": (
        Block, (1, 3, 16, 12),
        {"conv2d", "linear", "matmul", "softmax", "layer_norm", "add", "lut", "constant", "slice", "transpose",
         "reshape"},
    ),
    "a block of shifted windows": (
        Windows, (1, 3, 8, 12),
        {"conv2d", "linear", "matmul", "softmax", "layer_norm", "add", "lut", "constant", "expand", "slice", "concat",
         "transpose", "reshape"},
    ),
    "a segmentation head": (
        segmentation, (1, 3, 16, 12), {"conv2d", "mul", "lut", "avg_pool2d", "resize2d", "transpose", "reshape"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PATTERNS)
def test_a_pattern_is_native_and_as_pt2e_has_it(case: str) -> None:
    make, shape, operators = PATTERNS[case]
    torch.manual_seed(1)
    converted, model, inputs = bring(make(), shape)
    assert set(counts(model)) <= operators
    # A step of an inner layer may be several of the output, where float sums lie on an edge.
    assert steps_off(converted, model, inputs) < 4.5


def test_permutations_that_cancel_copy_nothing() -> None:
    module = Of(lambda m, x: m.b(F.layer_norm(m.a(x).permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)).mean((2, 3)),
                a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))  # fmt: skip
    _, model, _ = bring(module, (1, 3, 8, 6))
    assert counts(model) == {"conv2d": 2, "layer_norm": 1, "avg_pool2d": 1, "reshape": 1}


def test_a_transpose_that_several_read_is_made_once() -> None:
    module = Of(lambda m, x: m.a(x.transpose(1, 2)) @ m.b(x.transpose(1, 2)).transpose(1, 2),
                a=nn.Linear(6, 4), b=nn.Linear(6, 4))  # fmt: skip
    _, model, _ = bring(module, (1, 6, 5))
    assert counts(model) == {"transpose": 1, "linear": 2, "matmul": 1}


def test_a_flattened_map_has_its_columns_permuted_in_place_of_a_copy() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 48, 5))
    converted, model, inputs = bring(module, (1, 3, 8, 6))
    assert counts(model) == {"conv2d": 1, "reshape": 1, "linear": 1}
    assert steps_off(converted, model, inputs) < 2.5


def test_attention_absorbs_its_scale_and_the_logits_keep_their_range_beside_a_mask() -> None:
    torch.manual_seed(1)
    _, model, _ = bring(Windows(), (1, 3, 8, 12))
    tensors = {t.name: t for t in model.header.graph.tensors}
    softmax = next(n for n in model.header.graph.nodes if isinstance(n, g.Softmax))
    assert tensors[softmax.input].scale * 255 < 30  # not the mask's 100


def test_outputs_are_named_by_their_keys_and_inputs_by_the_module() -> None:
    module = Of(lambda m, a, b: {"sum": (m.a(a) + m.a(b)).mean(1), "first": a + 1}, a=nn.Linear(6, 4))
    converted, model, inputs = bring(module, (1, 5, 6), (1, 5, 6))
    graph = model.header.graph
    assert graph.outputs == ("sum", "first")
    assert len(graph.inputs) == 2
    assert steps_off(converted, model, inputs) < 1.5


def test_an_input_that_is_also_read_in_float_stays_float() -> None:
    module = Of(lambda m, x: (m.a(x), torch.cumsum(x, 1)), a=nn.Conv2d(3, 4, 1))
    converted, model, inputs = bring(module, (1, 3, 8, 6))
    tensors = {t.name: t for t in model.header.graph.tensors}
    assert tensors["x"].dtype == "f32"
    assert tensors["x"].shape == (1, 8, 6, 3)
    assert counts(model)["aten::cumsum"] == 1
    assert steps_off(converted, model, inputs) < 1.5


def test_operators_of_several_outputs_whole_numbers_and_truth_fall_back_to_torch() -> None:
    def forward(m: Of, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = m.a(x)
        values, indices = torch.topk(y, 3)
        return values + 1, torch.gather(y, 1, indices), torch.where(y > 0, y, torch.log_softmax(y, -1)), y.max(1)[0]

    converted, model, inputs = bring(Of(forward, a=nn.Linear(6, 9)), (1, 6))
    used = counts(model)
    assert {"aten::topk", "aten::gather", "aten::gt.Scalar", "aten::where.self", "aten::log_softmax.int"} <= set(used)
    assert used["linear"] == 1
    assert steps_off(converted, model, inputs) < 1.5


def test_an_argmax_is_an_index_along_channels() -> None:
    module = Of(lambda m, x: m.a(x).argmax(1), a=nn.Conv2d(3, 5, 1))
    _, model, inputs = bring(module, (1, 3, 8, 6))
    assert counts(model) == {"conv2d": 1, "argmax": 1}
    engine = load(model, backend="torch")
    assert engine.run({"x": _as_taken(inputs[0][0])})["logits"].shape == (1, 8, 6)


def test_an_operator_that_changes_its_argument_is_brought_over_by_what_it_means() -> None:
    def forward(m: Of, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        y[:, 0] = 0.25
        F.relu_(y)
        return m.b(y)

    module = Of(forward, a=nn.Linear(6, 8), b=nn.Linear(8, 4))
    converted, model, inputs = bring(module, (1, 6))
    with torch.no_grad():
        expected = module(*inputs[0])
    assert float((converted(*inputs[0]) - expected).abs().max()) < 0.1
    assert steps_off(converted, model, inputs) < 2.5


def by_hand(dtype: torch.dtype, low: int, high: int, points: tuple[int, int, int], weight: torch.Tensor) -> GraphModule:
    """Linear [4, 5] to [4, 6] with an activation's and a per-tensor weight's zero point, as an importer writes it."""
    root, graph = nn.Module(), Graph()
    root.weight = weight
    x = graph.placeholder("x")
    quantize_, dequantize = decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default
    to = (low, high, dtype)
    q = graph.call_function(quantize_, (x, 0.05, points[0], *to))
    a = graph.call_function(dequantize, (q, 0.05, points[0], *to))
    w = graph.call_function(dequantize, (graph.get_attr("weight"), 0.01, points[1], -128, 255, weight.dtype))
    y = graph.call_function(aten.linear.default, (a, w))
    y.meta["source_name"] = "scores/0:dense"
    q = graph.call_function(quantize_, (y, 0.04, points[2], *to))
    graph.output(graph.call_function(dequantize, (q, 0.04, points[2], *to)))
    module = GraphModule(root, graph)
    ShapeProp(module).propagate(torch.randn(4, 5))
    return module


@pytest.mark.parametrize(
    ("dtype", "low", "high", "points", "container"),
    [
        (torch.int8, -128, 127, (-3, 0, 5), "int8"),
        (torch.int8, -128, 127, (-3, 4, 5), "uint8"),
        (torch.uint8, 0, 255, (120, 100, 130), "uint8"),
    ],
)
def test_weights_with_a_zero_point_and_signed_activations(
    dtype: torch.dtype, low: int, high: int, points: tuple[int, int, int], container: str
) -> None:
    kind = torch.uint8 if points[1] > 50 else torch.int8
    info = torch.iinfo(kind)
    module = by_hand(dtype, low, high, points, torch.randint(info.min, info.max, (6, 5), dtype=kind))
    graph, constants = to_graph(module)
    model = assemble(Header(1, "m", "1", graph), constants)
    node = next(n for n in graph.nodes if isinstance(n, g.Linear))
    assert node.output == "scores/0:dense"
    assert str(constants[node.weight].dtype) == container
    assert steps_off(module, model, [(torch.randn(4, 5),)]) < 1.5


def test_all_that_has_no_form_is_named_at_once() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    first = graph.call_function(aten.nonzero.default, (x,))
    second = graph.call_function(aten.masked_select.default, (x, graph.call_function(aten.gt.Scalar, (x, 0))))
    graph.output((first, second))
    module = GraphModule(nn.Module(), graph)
    ShapeProp(module).propagate(torch.randn(4))
    with pytest.raises(ModelError, match=r"(?s)'nonzero_default'.*depends on data.*'masked_select_default'"):
        to_graph(module)


def test_control_flow_is_refused_with_a_way_out() -> None:
    def forward(m: Of, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))

    program = torch.export.export(Of(forward), (torch.randn(4),))
    with pytest.raises(ModelError, match=r"control flow.*torch.where"):
        to_graph(program.module(check_guards=False))


def test_an_input_that_nothing_reads_is_named() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.placeholder("mask")
    graph.output(graph.call_function(aten.relu.default, (x,)))
    module = GraphModule(nn.Module(), graph)
    ShapeProp(module).propagate(torch.randn(4), torch.randn(4))
    with pytest.raises(ModelError, match="'mask'"):
        to_graph(module)


def test_a_quantized_program_comes_from_a_file_and_a_pickle_does_not(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    converted, model, inputs = bring(module, (1, 3, 8, 6))
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(converted, inputs[0]), path)
    imported = read(path, Options())
    assert [type(n) for n in imported.graph.nodes] == [type(n) for n in model.header.graph.nodes]
    assert steps_off(converted, assemble(Header(1, "m", "1", imported.graph), imported.constants), inputs) < 1.5
    with pytest.raises(ModelError, match="quantized already"):
        read(path, Options(calibrate=tmp_path))
    torch.save(module, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=r"a pickle.*torch.export.save"):
        read(tmp_path / "net.pt", Options())
    (tmp_path / "bad.pt2").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ModelError, match="exported program"):
        read(tmp_path / "bad.pt2", Options())


class Evil:
    """What unpickling it does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_inside_a_program_runs_nothing(tmp_path: Path) -> None:
    path, marker = tmp_path / "net.pt2", tmp_path / "it ran"
    torch.export.save(torch.export.export(nn.Linear(3, 4), (torch.randn(1, 3),)), path)
    evil = io.BytesIO()
    torch.save({"x": Evil(marker)}, evil)
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    inputs = [name for name in members if "sample_inputs" in name]
    assert inputs
    with zipfile.ZipFile(path, "w") as changed:
        for name, data in members.items():
            changed.writestr(name, evil.getvalue() if name in inputs else data)
    with pytest.raises(ModelError):
        read(path, Options())
    assert not marker.exists()


def test_a_function_must_be_there_and_return_a_module() -> None:
    with pytest.raises(ModelError, match="can't be imported"):
        read("no_such_package:net", Options())
    with pytest.raises(ModelError, match="has no function"):
        read("tests.test_torch_intake:nothing_here", Options())
    with pytest.raises(ModelError, match="float model"):
        read("tests.test_torch_intake:small_net", Options())
    with pytest.raises(ModelError, match="returned str"):
        read("tests.test_torch_intake:no_module", Options())


def small_net() -> nn.Module:
    """What ``package.module:function`` names above."""
    return nn.Conv2d(3, 4, 3)


def no_module() -> str:
    """As ``small_net``, but wrong."""
    return "net"
