"""ONNX Runtime's quantized torchvision networks, imported, beside ONNX Runtime itself.

    python -m bench.onnx_parity                                  # the table of docs/onnx.md
    python -m bench.onnx_parity mobilenet_v2 --layers            # every operator that differs, with its share

Seeded weights, quantized by ``onnxruntime.quantization.quantize_static`` (QDQ, u8 activations, s8 weights per channel).
Two shares: of the network's outputs, and of the results of single operators that are given ONNX Runtime's own inputs,
so that a difference shows where it arises.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent import graph as g
from agent import load
from agent.engine import Engine
from agent.modelfile import FORMAT, Header, assemble
from agent.validate import node_inputs, node_outputs

NETWORKS = ("resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
SEED, CALIBRATED, COMPARED = 18, 8, 8


@dataclass
class Share:
    """Of elements that are equal, and the largest difference in steps."""

    equal: int = 0
    total: int = 0
    largest: int = 0

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        difference = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
        self.equal += int((difference == 0).sum())
        self.total += difference.size
        self.largest = max(self.largest, int(difference.max()))

    def __str__(self) -> str:
        return f"{100 * self.equal / max(self.total, 1):.3f} %, at most {self.largest}"


@dataclass
class Compared:
    """operators, layers: by kind and by name, on ONNX Runtime's own inputs."""

    native: bool
    outputs: Share
    operators: dict[str, Share]
    layers: dict[str, Share]


def export(name: str, path: Path, form: str = "QDQ") -> None:
    """Writes a network of torchvision with seeded weights as ONNX Runtime quantizes it. form: QDQ or QOperator."""
    import torch
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from models.torchvision_compat import import_torchvision
    from models.zoo.imagenet import seeded, synthetic

    models = import_torchvision().models
    net = seeded(lambda: models.get_model(name, weights=None), SEED)
    plain, prepared = path.with_suffix(".float.onnx"), path.with_suffix(".prepared.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, 3, 224, 224),), plain, dynamo=False, opset_version=17,
                          input_names=["x"], output_names=["logits"])  # fmt: skip
    quant_pre_process(plain, prepared)
    quantize_static(prepared, path, _Reader(synthetic(CALIBRATED, SEED).numpy()), quant_format=QuantFormat[form],
                    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
    plain.unlink()
    prepared.unlink()


class _Reader:
    """What quantize_static asks for its pictures."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {"x": picture[None]}


def compare(path: Path, pictures: Sequence[np.ndarray]) -> Compared:
    """pictures: [3, h, w] f32. The engine and the imported graph's single operators, beside ONNX Runtime's defaults."""
    from models.intake.onnx_qdq import read
    from models.intake.source import Options

    imported = read(path, Options())
    graph, constants = imported.graph, imported.constants
    engine = load(assemble(Header(FORMAT, path.stem, "1", graph), constants))
    session, names = _instrumented(path, graph)
    tensors = {t.name: t for t in graph.tensors}
    scores = next(n for n in graph.nodes if graph.outputs[0] in node_outputs(n))
    last = tensors[node_inputs(scores)[0]] if isinstance(scores, g.Dequantize) else tensors[graph.outputs[0]]
    singles = {n.name: _single(n, tensors, constants) for n in graph.nodes}
    result = Compared(engine.backend == "native", Share(), defaultdict(Share), defaultdict(Share))
    for picture in pictures:
        fed = {graph.inputs[0]: np.ascontiguousarray(picture.transpose(1, 2, 0)[None])}
        made = session.run(list(names.values()), {graph.inputs[0]: picture[None]})
        theirs = {ours: _placed(array, tensors[ours]) for ours, array in zip(names, made, strict=True)}
        ours = engine.run(fed)[graph.outputs[0]]
        step = last.scale or 1.0
        result.outputs.add(np.rint(ours / step), np.rint(theirs[graph.outputs[0]] / step))
        for node, single in zip(graph.nodes, singles.values(), strict=True):
            output = node_outputs(node)[0]
            given = {name: theirs.get(name) for name in node_inputs(node)}
            if isinstance(node, g.Reshape) and output not in theirs and given[node.input] is not None:
                theirs[output] = given[node.input].reshape(tensors[output].shape)
            if output not in theirs or any(v is None for v in given.values()) or tensors[output].dtype == "f32":
                continue
            y = single.run(given)[output]
            result.operators[_kind(node)].add(y, theirs[output])
            result.layers[node.name].add(y, theirs[output])
    return result


def _kind(node: g.Node) -> str:
    kind = type(node).__name__
    return f"{kind} ({node.function})" if isinstance(node, g.Lut) else kind


def _instrumented(path: Path, graph: g.Graph) -> tuple[Any, dict[str, str]]:
    """A session that gives every quantized tensor, and their names by ours."""
    import onnx
    import onnxruntime

    network = onnx.load(path)
    integers = {n.input[0]: n.output[0] for n in network.graph.node if n.op_type == "QuantizeLinear"}
    made = {output for n in network.graph.node for output in n.output}
    names = {t.name: integers.get(t.name, t.name) for t in graph.tensors if t.name in made or t.name in integers}
    known = {o.name for o in network.graph.output}
    network.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names.values() if n not in known)
    options = onnxruntime.SessionOptions()
    # Without VNNI its products of u8 and s8 would be cut off at 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(network.SerializeToString(), options, ["CPUExecutionProvider"])
    return session, names


def _placed(array: np.ndarray, t: g.Tensor) -> np.ndarray:
    moved = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    return np.ascontiguousarray(moved).reshape(t.shape)


def _single(node: g.Node, tensors: dict[str, g.Tensor], constants: dict[str, np.ndarray]) -> Engine:
    """An engine of one operator."""
    names = dict.fromkeys((*node_inputs(node), *node_outputs(node)))
    inputs = tuple(dict.fromkeys(node_inputs(node)))
    alone = g.Graph(tuple(tensors[n] for n in names), (node,), inputs, node_outputs(node))
    held = {v: constants[v] for v in _strings(node) if v in constants}
    return load(assemble(Header(FORMAT, "single", "1", alone), held))


def _strings(node: g.Node) -> Iterator[str]:
    for name in node.__struct_fields__:
        value = getattr(node, name)
        if isinstance(value, str):
            yield value


def main() -> None:
    """Prints the table, or, with --layers, the operators that differ."""
    from models.zoo.imagenet import synthetic

    parser = argparse.ArgumentParser(prog="python -m bench.onnx_parity", description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--layers", action="store_true", help="every operator that differs")
    args = parser.parse_args()
    pictures = list(synthetic(COMPARED, SEED + 1).numpy())
    print("| network | native | outputs equal, largest difference | first operator that differs on equal inputs |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks:
            path = Path(folder) / f"{name}.onnx"
            export(name, path)
            made = compare(path, pictures)
            first = next((f"{k}: {s}" for k, s in made.layers.items() if s.equal < s.total), "none")
            print(f"| {name} | {'yes' if made.native else 'no'} | {made.outputs} | {first} |", flush=True)
            if args.layers:
                for kind, share in made.operators.items():
                    print(f"    {kind}: {share}")
                for layer, share in made.layers.items():
                    if share.equal < share.total:
                        print(f"    {layer}: {share}")


if __name__ == "__main__":
    main()
