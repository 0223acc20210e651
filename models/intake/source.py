"""A model of another format becomes a model file's contents.

    write("net.int8.safetensors", import_source("net.tflite", Options(labels=Path("labels.txt"))))

An importer is one function, ``read(source, options) -> Imported``, which knows its format and nothing else. What is
the same for all is here: which importer it is, labels, pictures, classes, provenance, golden outputs.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from agent import __version__, load
from agent import graph as g
from agent.engine.engine import noise
from agent.errors import ModelError
from agent.modelfile import FORMAT, Golden, Header, Model, Postprocess, Preprocess, assemble
from agent.validate import Limits, node_outputs
from models.compress import ranges
from models.compress.report import Observed
from models.statistics import with_statistics

GOLDEN = 2
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TAKEN = ("taken are TFLite (.tflite), ONNX (.onnx), torch's exported programs (.pt2, written by torch.export.save), "
          "and package.module:function, a function that returns an nn.Module")  # fmt: skip
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Options:
    """What a person can say about an import; an importer reads the last two."""

    name: str | None = None
    labels: Path | None = None
    preprocess: str | None = None  # raw, 0..1, -1..1, imagenet, or JSON
    calibrate: Path | None = None  # a folder of pictures
    rule: str = ranges.DEFAULT_RULE  # see models.compress.ranges


@dataclass(frozen=True)
class Imported:
    """What an importer gives.

    description: for the file's provenance. pixels: what a pixel means where no --preprocess says it. fit: how a
    picture gets the input's size: ``whole`` is resized to it (bicubic), of ``centre`` the shorter side is resized to
    8/7 of the input's and the centre cut out (bilinear), as torchvision does. calibration: what it saw, where it was
    done here; samples: what it was done on, each as the graph's only input.
    """

    graph: g.Graph
    constants: dict[str, np.ndarray]
    description: dict[str, str] = field(default_factory=dict)
    pixels: Literal["raw", "0..1", "-1..1", "imagenet"] = "raw"
    fit: Literal["whole", "centre"] = "centre"
    calibration: Sequence[Observed] = ()
    samples: Sequence[np.ndarray] = ()


def import_source(source: str | Path, options: Options = Options(), limits: Limits = Limits()) -> Model:
    """A path, or ``package.module:function``, to a validated model with golden outputs. Writes nothing.

    Where it is calibrated here, the model has statistics, too.

    Raises ``ModelError`` for what is not taken, is damaged, or has no form here.
    """
    return import_calibrated(source, options, limits)[0]


def import_calibrated(
    source: str | Path, options: Options, limits: Limits = Limits()
) -> tuple[Model, Sequence[Observed]]:
    """As ``import_source``, and what calibration saw; nothing where the source is quantized already."""
    ranges.parse(options.rule)
    source = str(source)
    kind = recognize(source)
    read = importlib.import_module({"tflite": "models.intake.tflite", "onnx": "models.intake.onnx_qdq",
                                    "torch": "models.intake.torch_source"}[kind]).read  # fmt: skip
    imported: Imported = read(source, options)
    name = options.name or re.sub(r"[^\w.-]+", "_", source.rpartition(":")[2] if kind == "torch" else Path(source).stem)
    labels = _labels(options.labels)
    imported, post = _classes(imported, labels, options.labels)
    pre = picture_preprocess(imported, options.preprocess)
    provenance = _provenance(source) | imported.description
    header = Header(FORMAT, name, "1", imported.graph, pre, post, labels, provenance)
    model = with_golden(assemble(header, imported.constants, limits))
    if imported.samples:
        model = with_statistics(model, [{imported.graph.inputs[0]: x} for x in imported.samples])
    return model, imported.calibration


def recognize(source: str) -> Literal["tflite", "onnx", "torch"]:
    """By content; a file's name decides only what content leaves open. Raises ``ModelError`` for anything else."""
    path = Path(source)
    if not path.exists():
        if _FUNCTION.fullmatch(source):
            return "torch"
        raise ModelError(f"{source}: there is no such file; {_TAKEN}")
    if path.is_dir():
        raise ModelError(f"{source}: a folder; a SavedModel has to be converted to TFLite first; {_TAKEN}")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as e:
        raise ModelError(f"{source}: can't be read ({e.strerror})") from e
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:2] == b"PK":
        return _recognize_archive(path)
    # ModelProto opens with its IR version, a small number; then comes a string or a submessage.
    if len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 64 and head[2] & 7 in (0, 2):
        return "onnx"
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return "onnx"  # its reader says what is wrong with it
    if suffix == ".tflite":
        raise ModelError(f"{source}: not a readable TFLite file: the mark TFL3 is missing")
    raise ModelError(f"{source}: not a format that can be imported; {_TAKEN}")


def _recognize_archive(path: Path) -> Literal["torch"]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as e:
        raise ModelError(f"{path}: a damaged archive ({e}); {_TAKEN}") from e
    if any(m.rpartition("/")[2] == "archive_format" for m in members):
        return "torch"
    if any(m.endswith(".pkl") for m in members):
        raise ModelError(f"{path}: a pickle of torch.save, which could run code and is not loaded; write it with "
                         "torch.export.save, or name a function that builds the module; " + _TAKEN)  # fmt: skip
    raise ModelError(f"{path}: an archive, but not of torch.export.save; {_TAKEN}")


def with_golden(model: Model) -> Model:
    """The model with the engine's outputs for seeded noise."""
    engine, graph = load(model), model.header.graph
    made = []
    for seed in range(GOLDEN):
        inputs = noise(engine, seed)
        for x in graph.tensors:
            if x.name in inputs and x.dtype == "f32":  # bytes, as what they mean
                scale, zero_point = _container(graph, x)
                inputs[x.name] = (inputs[x.name] - np.float32(zero_point)) * np.float32(scale)
        made.append(Golden(inputs, engine.run(inputs)))
    return replace(model, golden=tuple(made))


def _provenance(source: str) -> dict[str, str]:
    made = {"source": Path(source).name, "importer": f"int8d {__version__}"}
    if Path(source).is_file():
        with open(source, "rb") as file:
            made["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return made


def versions(*packages: str) -> str:
    """Installed packages with their versions, for an importer's description."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


# Classes


def _labels(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as e:
        raise ModelError(f"{path}: labels are UTF-8 text, one a line ({e})") from e
    return tuple(line.strip() for line in text.rstrip().splitlines())


def _classes(
    imported: Imported, labels: Sequence[str], path: Path | None
) -> tuple[Imported, Postprocess | None]:  # fmt: skip
    """The graph with its scores as real numbers, and what to do with them, where its only output is one of classes."""
    graph = imported.graph
    tensors = {t.name: t for t in graph.tensors}
    y = tensors[graph.outputs[0]]
    elements = int(np.prod(y.shape))
    # What gives back as many values as it takes is an auto-encoder rather than a classifier.
    encoder = any(int(np.prod(tensors[name].shape)) == elements for name in graph.inputs)
    classes = len(graph.outputs) == 1 and y.dtype != "s32" and elements == y.shape[-1] > 1
    if path is not None:
        if not classes:
            raise ModelError(f"--labels: the model has no output of one score a class, but {_shapes(graph)}")
        _check_labels(len(labels), y.shape[-1], labels, path)
    if not classes or (encoder and path is None):
        return imported, None
    origin = _origin(graph, y.name)
    softmax = not (isinstance(origin, g.Softmax) or (isinstance(origin, g.Lut) and origin.function == "sigmoid"))
    if y.dtype != "f32":
        scores = g.Tensor(_free("logits" if softmax else "probabilities", tensors), y.shape, "f32")
        node = g.Dequantize(scores.name, y.name, scores.name)
        graph = g.Graph((*graph.tensors, scores), (*graph.nodes, node), graph.inputs, (scores.name,))
        imported = replace(imported, graph=graph)
    return imported, Postprocess(graph.outputs[0], softmax, min(5, y.shape[-1]))


def _check_labels(given: int, needed: int, labels: Sequence[str], path: Path) -> None:
    if given == needed:
        return
    why = "one label a line is needed"
    if given == needed + 1:
        why = f"one too many: is the first, '{labels[0]}', a background that the model lacks? Then remove that line"
    if given == needed - 1:
        why = "one too few: is the model's first class a background? Then put it before the others, as the first line"
    raise ModelError(f"{path}: {given} labels for {needed} classes; {why}")


def _shapes(graph: g.Graph) -> str:
    tensors = {t.name: t for t in graph.tensors}
    return ", ".join(f"'{name}' {tensors[name].dtype} {list(tensors[name].shape)}" for name in graph.outputs)


def _origin(graph: g.Graph, name: str) -> g.Node | None:
    """The node whose values a tensor has, past those that only store them in another way."""
    makers = {output: node for node in graph.nodes for output in node_outputs(node)}
    node = makers.get(name)
    while isinstance(node, (g.Dequantize, g.Quantize, g.Reshape)) or (
        isinstance(node, g.Lut) and node.function in ("requantize", "reinterpret")
    ):
        node = makers.get(node.input)
    return node


def _free(name: str, taken: dict[str, g.Tensor]) -> str:
    base, i = name, 1
    while name in taken:
        name, i = f"{base}_{i}", i + 1
    return name


# Pictures


def picture_preprocess(imported: Imported, said: str | None) -> Preprocess | None:
    """How a picture becomes the only input, where that is [1, h, w, 1 or 3]."""
    graph = imported.graph
    x = next(t for t in graph.tensors if t.name == graph.inputs[0])
    picture = len(graph.inputs) == 1 and len(x.shape) == 4 and x.shape[0] == 1 and x.shape[3] in (1, 3)
    if not picture or x.dtype == "s32":
        if said is not None:
            raise ModelError(f"--preprocess: the model takes no picture [1, h, w, 1 or 3], but {list(x.shape)}")
        return None
    height, width, channels = x.shape[1:]
    fields: dict[str, object] = {"input": x.name, "mode": "RGB" if channels == 3 else "L"}
    if imported.fit == "whole":
        fields["interpolation"] = "bicubic"
    else:
        fields |= {"resize": [round(height * 8 / 7), round(width * 8 / 7)] if height != width else
                   round(height * 8 / 7), "crop": [height, width]}  # fmt: skip
    said = said or imported.pixels
    if said.lstrip().startswith("{"):
        try:
            own = msgspec.json.decode(said, type=dict[str, object])
            return msgspec.convert({"input": x.name, "mode": fields["mode"]} | own, Preprocess)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as e:
            raise ModelError(f"--preprocess: {e}") from e
    match said:
        case "raw":
            scale, zero_point = _container(graph, x)
            fields |= {"mean": [zero_point / 255], "std": [1 / (255 * scale)]}
        case "0..1":
            pass
        case "-1..1":
            fields |= {"mean": [0.5], "std": [0.5]}
        case "imagenet" if channels == 3:
            fields |= {"mean": _MEAN, "std": _STD}
        case "imagenet":
            raise ModelError("--preprocess imagenet: the model takes pictures of one channel")
        case _:
            raise ModelError(f"--preprocess {said}: it is raw, 0..1, -1..1, imagenet, or a JSON object")
    return msgspec.convert(fields, Preprocess)


def _container(graph: g.Graph, x: g.Tensor) -> tuple[float, int]:
    """Scale and zero point by which the byte of a pixel is what the graph computes with; 1 and 0 where there is none.

    A float input that is quantized at once counts as quantized.
    """
    if x.dtype == "f32":
        tensors = {t.name: t for t in graph.tensors}
        made = [tensors[n.output] for n in graph.nodes if isinstance(n, g.Quantize) and n.input == x.name]
        x = made[0] if len(made) == 1 else g.Tensor("", (), "u8", 1.0)
    return x.scale, x.zero_point + (128 if x.dtype == "s8" else 0)
