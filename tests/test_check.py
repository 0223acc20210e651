"""``int8d-make check``: a model is held against what it came from, and a bad layer is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from agent import graph as g
from agent.engine.engine import quantize as to_container
from agent.errors import InputError, ModelError
from agent.modelfile import Golden, Header, Model, assemble, read, write
from agent.peers.qdq import to_onnx
from agent.peers.tflite import to_tflite
from models.check import as_text, check
from models.check.samples import folder, noise
from models.cli import main
from models.compress.quantize import quantize
from models.intake.torch_export import to_graph
from tests.agent_process import DIGITS, PICTURES

CHANGED = "conv2d_3"


@pytest.fixture(scope="module")
def model() -> Model:
    return read(DIGITS)


@pytest.fixture(scope="module")
def sources(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same network in other formats, with the graph's names."""
    at = tmp_path_factory.mktemp("sources")
    (at / "digits.onnx").write_bytes(to_onnx(model).SerializeToString())
    (at / "digits.tflite").write_bytes(to_tflite(model))
    return {"onnx": str(at / "digits.onnx"), "tflite": str(at / "digits.tflite")}


def planted(model: Model) -> Model:
    """One multiplier of a layer is off by a fifth."""
    name = next(n.multiplier for n in model.header.graph.nodes if n.name == CHANGED)
    constants = dict(model.constants)
    constants[name] = constants[name] * np.float32(1.2)
    return Model(model.header, constants, model.golden)


def test_the_kernels_and_torch_give_the_same_bytes_and_the_golden_ones(model: Model) -> None:
    report = check(model, noise(model, 5), layers=True)
    assert (report.inputs, report.top1, report.golden_equal) == (5, 1, report.golden)
    assert report.golden > 0
    assert [o.tensor for o in report.outputs] == ["logits"]
    assert all(o.equal == 1 and o.largest_steps == 0 and o.sqnr_db is None for o in (*report.outputs, *report.layers))
    assert [o.tensor for o in report.layers] == [n.name for n in model.header.graph.nodes]
    assert report.first_bad_layer is report.first_difference is None


@pytest.mark.parametrize(("kind", "title"), [("onnx", "ONNX Runtime"), ("tflite", "LiteRT")])
def test_another_engine_agrees_layer_by_layer_until_one_is_changed(
    model: Model, sources: dict[str, str], kind: str, title: str
) -> None:
    report = check(model, noise(model, 10), sources[kind], layers=True)
    assert report.against.startswith(title)
    assert [o.tensor for o in report.layers] == [n.name for n in model.header.graph.nodes]
    assert all(o.within > 0.99 for o in report.layers)
    assert report.first_bad_layer is None
    assert f"first layer below 99 % within a step: {CHANGED}" not in as_text(report)
    bad = check(planted(model), noise(model, 10), sources[kind], layers=True)
    assert bad.first_bad_layer == CHANGED
    assert bad.layers[[o.tensor for o in bad.layers].index(CHANGED) - 1].equal == 1
    assert f"first layer below 99 % within a step: {CHANGED}" in as_text(bad)
    assert next(line for line in as_text(bad).splitlines() if line.endswith("<- here")).startswith(CHANGED)
    assert bad.golden_equal < bad.golden


def test_outputs_do_not_change_where_layers_are_shown(model: Model, sources: dict[str, str]) -> None:
    for source in sources.values():
        plain = check(model, noise(model, 5), source)
        assert check(model, noise(model, 5), source, layers=True).outputs == plain.outputs
        assert plain.layers is None


def test_more_layers_than_a_graph_may_have_outputs() -> None:
    tensors = tuple(g.Tensor(f"t{i}", (1, 4), "u8", 0.5, 3) for i in range(151))
    nodes = tuple(g.Lut(f"t{i + 1}", f"t{i}", f"t{i + 1}", "table", "") for i in range(150))
    graph = g.Graph(tensors, nodes, ("t0",), ("t150",))
    model = assemble(Header(1, "long", "1", graph), {"table": np.arange(256, dtype=np.uint8)[::-1].copy()})
    report = check(model, noise(model, 2), layers=True)
    assert [o.tensor for o in report.layers] == [f"t{i}" for i in range(1, 151)]
    assert all(o.equal == 1 and o.elements == 8 for o in report.layers)


class Small(nn.Module):
    """A branch and an addition; the names of its layers are those of torch.export."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return self.head((self.b(y) + y).mean([2, 3]))


def small() -> nn.Module:
    torch.manual_seed(3)
    return Small().eval()


def test_torch_is_a_source_as_a_function_and_as_an_exported_program(tmp_path: Path) -> None:
    x = torch.randn(8, 3, 10, 12, generator=torch.Generator().manual_seed(0))
    graph, constants = to_graph(quantize(small(), [x]))
    model = assemble(Header(1, "small", "1", graph), constants)
    name, info = graph.inputs[0], graph.tensors[0]
    samples = [{name: to_container(a[None], info)} for a in x.permute(0, 2, 3, 1).numpy()]
    with torch.no_grad():
        torch.export.save(torch.export.export(small(), (x[:1],)), tmp_path / "small.pt2")
    reports = [check(model, samples, s, layers=True) for s in (f"{__name__}:small", str(tmp_path / "small.pt2"))]
    assert reports[0].outputs == reports[1].outputs
    assert reports[0].outputs[0].sqnr_db > 25  # int8 beside float
    assert {"add", "linear"} <= {o.operator for o in reports[0].layers}
    assert all(o.within > 0.99 for o in reports[0].layers)  # a clamp is part of the layer before it here


def test_pictures_and_arrays_of_a_folder_in_the_order_of_their_names(model: Model, tmp_path: Path) -> None:
    name, info = model.header.graph.inputs[0], model.header.graph.tensors[0]
    (tmp_path / "b.png").write_bytes((PICTURES / "00.png").read_bytes())
    q = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    for file, array in (("a.npy", q), ("c.npy", q.astype(np.float32)[0] * np.float32(info.scale))):
        buffer = io.BytesIO()
        np.save(buffer, array)
        (tmp_path / file).write_bytes(buffer.getvalue())
    (tmp_path / "readme.txt").write_text("not an input")
    taken = [sample[name] for sample in folder(model, tmp_path)]
    assert [t.tobytes() for t in (taken[0], taken[2])] == [q.tobytes()] * 2
    assert (len(taken), taken[1].shape, taken[1].dtype) == (3, (1, 8, 8, 1), np.uint8)
    (tmp_path / "d.npy").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"d\.npy"):
        folder(model, tmp_path)


def test_exit_status_tells_whether_top1_agrees(
    model: Model, sources: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Another order of the classes: every prediction differs; golden pairs are made to fit.
    nodes = [n for n in model.header.graph.nodes if isinstance(n, g.Linear)]
    constants = dict(model.constants)
    for key in (nodes[-1].weight, nodes[-1].bias, nodes[-1].multiplier):
        constants[key] = np.roll(constants[key], 1, axis=0)
    golden = [Golden(p.inputs, {k: np.roll(v, 1, -1) for k, v in p.outputs.items()}) for p in model.golden]
    write(tmp_path / "rolled", Model(model.header, constants, tuple(golden)))
    options = ["--against", sources["onnx"], "--inputs", str(PICTURES), "--count", "20"]
    assert main(["check", str(DIGITS), *options]) == 0
    assert "top-1" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "rolled"), *options, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["inputs"], document["top1"], document["golden_equal"]) == (20, 0, len(model.golden))
    assert main(["check", str(tmp_path / "rolled"), *options, "--at-least", "0"]) == 0
    write(tmp_path / "planted", planted(model))
    assert main(["check", str(tmp_path / "planted"), "--at-least", "0"]) == 1  # its golden pairs do not come out


def test_what_can_not_be_a_source_is_refused_with_what_can(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bad.onnx", "bad.tflite", "bad.pt2"):
        (tmp_path / name).write_bytes(b"TFL3 nonsense" * 4)
        assert main(["check", str(DIGITS), "--against", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err
    for source, why in (
        ("nowhere.onnx", "no such file"),
        ("model.h5", r"\.tflite, \.onnx or \.pt2"),
        ("no_such_module:function", "no_such_module"),
        ("tests.test_check:nothing", "nothing"),
    ):
        with pytest.raises(ModelError, match=why):
            check(model, noise(model, 1), source)


def test_a_source_without_the_outputs_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes(to_onnx(model).SerializeToString())
    renamed = msgspec.json.encode(model.header).replace(b'"logits"', b'"scores"')
    other = assemble(msgspec.json.decode(renamed, type=Header), model.constants)
    with pytest.raises(ModelError, match="none of the model's outputs"):
        check(other, noise(other, 1), str(tmp_path / "digits.onnx"))
