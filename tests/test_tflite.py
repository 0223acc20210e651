"""TFLite files: real ones beside LiteRT; what is refused, and how."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent import graph as g
from agent import load
from agent.errors import ModelError
from agent.modelfile import read
from models.intake.source import Options, import_source
from tests.agent_process import ROOT
from tests.litert import Reference, file_of, noise, steps
from tests.tflite_file import File

DATA = ROOT.parent / "shared" / "data"
REAL = ["mlperf_tiny_ad_int8", "mlperf_tiny_kws_int8", "mlperf_tiny_resnet8_int8", "mlperf_tiny_vww_int8",
        "mobilenet_v1_0.25_128_quant", "tf2_mobilenet_v2_1.0_224_ptq"]  # fmt: skip
LABELS = DATA / "imagenet_labels.txt"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the folder ../shared/data is missing")


def run(module: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)


# Real files


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_native_and_gives_litert_s_numbers(name: str) -> None:
    path = DATA / f"{name}.tflite"
    model = import_source(path)
    assert not [n.name for n in model.header.graph.nodes if isinstance(n, g.Aten)]
    engine, reference = load(model, backend="native"), Reference(path.read_bytes())
    rng = np.random.default_rng(1)
    off = np.concatenate([
        steps(*engine.run(x).values(), *reference.run(*x.values()), *reference.outputs).ravel()
        for x in (noise(model, rng) for _ in range(100))
    ])  # fmt: skip
    print(f"{name}: {100 * (off == 0).mean():.3f} % equal, {100 * (off <= 1).mean():.3f} % within a step, "
          f"at most {off.max():.0f}")  # fmt: skip
    assert (off <= 1).mean() >= 0.995
    pre = model.header.preprocess
    if pre is None:
        assert name == "mlperf_tiny_ad_int8"
        return
    info = engine.inputs[pre.input]
    for picture in sorted(p for p in DATA.iterdir() if p.suffix in (".jpg", ".bmp")):
        # As LiteRT's label_image does it.
        pixels = np.asarray(Image.open(picture).convert(pre.mode).resize((info.shape[2], info.shape[1])), np.uint8)
        x = (pixels.astype(np.int16) - (128 if info.dtype == "s8" else 0)).reshape(info.shape)
        x = x.astype(np.int8 if info.dtype == "s8" else np.uint8)
        (ours,), (theirs,) = engine.run({pre.input: x}).values(), reference.run(x)
        assert ours.argmax() == theirs.argmax(), picture.name


@needs_data
def test_import_and_infer_name_what_is_in_the_pictures(tmp_path: Path) -> None:
    out = tmp_path / "v2.safetensors"
    source = DATA / "tf2_mobilenet_v2_1.0_224_ptq.tflite"
    done = run("models.cli", "import", source, "-o", out, "--labels", LABELS, "--name", "v2")
    assert done.returncode == 0, done.stderr
    done = run("agent.cli", "infer", out, DATA / "grace_hopper.bmp", DATA / "parrot.jpg")
    assert done.returncode == 0, done.stderr
    hopper, parrot = done.stdout.splitlines()
    assert ": military uniform " in hopper
    assert ": macaw " in parrot
    header = read(out).header
    assert header.name == "v2"
    assert header.provenance["source"] == source.name
    assert len(header.provenance["sha256"]) == 64
    assert header.postprocess is not None
    assert header.postprocess.softmax is False  # the model ends in one


@needs_data
@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda lines: lines[1:], "1000 labels for 1001 classes; one too few"),
        (lambda lines: ["extra", *lines], "1002 labels for 1001 classes; one too many"),
        (lambda lines: lines[:3], "3 labels for 1001 classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(edit: Callable, expected: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(edit(LABELS.read_text().splitlines())) + "\n")
    with pytest.raises(ModelError, match=expected):
        import_source(DATA / "mobilenet_v1_0.25_128_quant.tflite", Options(labels=labels))


@needs_data
def test_a_pixel_is_the_container_by_default() -> None:
    from agent.wire.images import pixel_tables

    for name in ("mlperf_tiny_vww_int8", "mobilenet_v1_0.25_128_quant"):
        model = import_source(DATA / f"{name}.tflite")
        assert model.header.preprocess is not None
        info = load(model).inputs[model.header.preprocess.input]
        (table,) = pixel_tables(model.header.preprocess, info)
        assert np.array_equal(table.astype(int), np.arange(256) - (128 if info.dtype == "s8" else 0))


def test_the_digits_come_back_from_tflite(tmp_path: Path) -> None:
    """The third road: what torch made goes out as TFLite, comes in again, and says the same of every picture."""
    from agent.peers.tflite import to_tflite
    from models.zoo import digits

    own = read(ROOT / "models" / "zoo" / "digits.int8.safetensors")
    back = import_source(file_of(tmp_path, to_tflite(own)), Options())
    first, second = load(own), load(back, backend="native")
    (x,) = back.header.graph.inputs
    for picture in digits.split().held_out:
        pixels = picture.reshape(1, 8, 8, 1)
        theirs = pixels if second.inputs[x].dtype == "u8" else (pixels ^ 0x80).view(np.int8)
        ours = first.run({"x": (pixels / np.float32(255)).astype(np.float32)})
        made = second.run({x: theirs})
        assert next(iter(ours.values())).argmax() == next(iter(made.values())).argmax()


# Refusals


def refused(tmp_path: Path, data: bytes) -> str:
    """The error's text; a model must not come of it, nor a file."""
    source, out = file_of(tmp_path, data), tmp_path / "out.safetensors"
    with pytest.raises(ModelError) as caught:
        import_source(source)
    from models.cli import main

    assert main(["import", str(source), "-o", str(out)]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.tflite"]
    return str(caught.value)


def test_what_has_no_form_is_listed_by_operator_index_and_tensor(tmp_path: Path) -> None:
    f = File()
    x = f.activation((1, 4, 4, 2))
    a, b, c, y = (f.activation((1, 4, 4, 2)) for _ in range(4))
    f.add("RELU", [x], a)
    f.add("LOCAL_RESPONSE_NORMALIZATION", [a], b, "LocalResponseNormalizationOptions")
    f.add("CUSTOM", [b], c, custom="TFLite_Detection_PostProcess")
    f.add("WHILE", [c], y, "WhileOptions")
    text = refused(tmp_path, f.write([x], [y]))
    assert "operator 1, LOCAL_RESPONSE_NORMALIZATION ('t2')" in text
    assert "operator 2, TFLite_Detection_PostProcess ('t3'): a custom operator: cut the model before it" in text
    assert "operator 3, WHILE ('t4'): control flow" in text
    assert "RELU" not in text


def _refusal(name: str) -> bytes:
    f = File(21)
    x, y = f.activation((1, 4, 4, 2)), f.activation((1, 4, 4, 2))
    match name:
        case "float":
            x, y = f.tensor((1, 4), "float32"), f.tensor((1, 4), "float32")
            f.add("RELU", [x], y)
        case "hybrid":
            x, y = f.tensor((1, 8), "float32"), f.tensor((1, 3), "float32")
            f.add("FULLY_CONNECTED", [x, f.weights((3, 8), 0)[0]], y, "FullyConnectedOptions")
        case "int16":
            x = f.tensor((1, 4), "int16", 0.1)
            f.add("RELU", [x], x)
        case "variable":
            f.tensors[y].isVariable = True
            f.add("RELU", [x], y)
        case "sparse":
            from ai_edge_litert import schema_py_generated as schema

            f.tensors[x].sparsity = schema.SparsityParametersT()
            f.add("RELU", [x], y)
        case "dynamic":
            f.tensors[x].shapeSignature = [1, -1, -1, 2]
            f.add("RELU", [x], y)
        case "several subgraphs":
            f.add("RELU", [x], y)
            return f.write([x], [y], subgraphs=2)
        case "read before produced":
            f.add("ADD", [x, y], y, "AddOptions")
        case "product of two activations by DIV":
            z = f.activation((1, 4, 4, 2))
            f.add("DIV", [x, z], y, "DivOptions")
            return f.write([x, z], [y])
        case "shapes that contradict each other":
            z = f.activation((1, 5, 4, 2))
            f.add("ADD", [x, z], y, "AddOptions")
            return f.write([x, z], [y])
    return f.write([x], [y])


REFUSALS = {
    "float": "'t2' is float32: operators compute in int8 or uint8 here; convert with full integer quantization",
    "hybrid": "dynamic range quantization",
    "int16": "is int16, which can't be imported; only 8-bit activations are",
    "variable": "is a variable",
    "sparse": "is sparse",
    "dynamic": "axes of unknown extent, [1, 2]: convert the model with a fixed input shape",
    "several subgraphs": "2 subgraphs; only one can be imported",
    "read before produced": "is read before it is produced",
    "product of two activations by DIV": "one operand must be a constant of one element",
    "shapes that contradict each other": "can't be broadcast",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_can_not_be_imported_is_refused_with_advice(name: str, tmp_path: Path) -> None:
    assert REFUSALS[name] in refused(tmp_path, _refusal(name))


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.tflite", b"nonsense that is long enough", "the mark TFL3 is missing"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(32), "not a format that can be imported; taken are TFLite"),
        ("a.tflite", b"\x1c\x00\x00\x00TFL3", "not a readable TFLite file"),
        ("a.pt", b"PK\x03\x04" + bytes(32), "a damaged archive"),
    ],
)
def test_what_is_no_model_is_refused_by_content(name: str, data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError, match=expected):
        import_source(path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file; taken are TFLite"):
        import_source(tmp_path / "nowhere.tflite")
    with pytest.raises(ModelError, match="a folder"):
        import_source(tmp_path)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("sideways", "it is raw, 0..1, -1..1, imagenet, or a JSON object"),
        ('{"resize": "big"}', "--preprocess: "),
        ('{"colour": 3}', "--preprocess: "),
    ],
)
def test_preprocessing_that_is_not_understood_is_refused(said: str, expected: str, tmp_path: Path) -> None:
    f = File()
    x, y = f.activation((1, 4, 4, 3)), f.activation((1, 4, 4, 3))
    f.add("RELU", [x], y)
    with pytest.raises(ModelError, match=expected):
        import_source(file_of(tmp_path, f.write([x], [y])), Options(preprocess=said))


def test_preprocessing_can_be_said_in_full(tmp_path: Path) -> None:
    f = File()
    x, y = f.activation((1, 4, 4, 3)), f.activation((1, 4, 4, 3))
    f.add("RELU", [x], y)
    path = file_of(tmp_path, f.write([x], [y]))
    own = import_source(path, Options(preprocess='{"resize": 8, "crop": [4, 4], "mean": [0.5], "std": [0.25]}'))
    assert own.header.preprocess is not None
    assert (own.header.preprocess.resize, own.header.preprocess.std) == (8, (0.25,))
    unit = import_source(path, Options(preprocess="-1..1")).header.preprocess
    assert unit is not None
    assert (unit.mean, unit.std, unit.interpolation) == ((0.5,), (0.5,), "bicubic")
