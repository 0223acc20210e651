"""A torch module becomes a graph: an exported program in a .pt2 file, or what a Python function returns.

    int8d-make import net.pt2 -o net.int8.safetensors --calibrate pictures/
    int8d-make import mypackage.nets:small -o net.int8.safetensors --calibrate pictures/

A program that PT2E has quantized is taken as it is; a float one is quantized here. A function returns a module in eval
mode, which then takes pictures [1, 3, 224, 224]; or (module, example inputs); or an ``ExportedProgram``.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.export import ExportedProgram

from agent.errors import ModelError
from models.compress.prepare import functional_module
from models.compress.quantize import quantize_program
from models.intake.aten.operators import QUANTIZE
from models.intake.calibration import as_graph, samples, usual_pixels
from models.intake.source import Imported, Options
from models.intake.torch_export import to_graph

PICTURE = (1, 3, 224, 224)
_PICKLE = ("a pickle, which is a program and could run anything; load it where you trust it, and write it with "
           "torch.export.save(torch.export.export(module, inputs), 'net.pt2'), or name a function that returns the "
           "module: package.module:function")  # fmt: skip


def read(source: str | Path, options: Options) -> Imported:
    """The importer of torch's programs and modules. Raises ``ModelError``; writes nothing."""
    path = Path(source)
    program = _load(path) if path.exists() else _call(str(source))
    description = {"format": "torch.export", "producer": f"torch {torch.__version__}"}
    shapes = _input_shapes(program, str(source))
    taken: list[torch.Tensor] = []
    if any(node.target is QUANTIZE for node in program.graph.nodes):
        if options.calibrate is not None:
            raise ModelError(f"--calibrate: {source} is quantized already; leave it out")
        module = functional_module(program)
    else:
        if options.calibrate is None:
            raise ModelError(f"{source} is a float model: say with --calibrate FOLDER which pictures to quantize it on")
        if len(shapes) != 1:
            raise ModelError(f"{source}: only a model of one input is calibrated here; quantize it with PT2E, or call "
                             "models.compress.quantize from Python")  # fmt: skip
        taken = samples(options.calibrate, shapes[0], options.preprocess)
        module = quantize_program(program, [(x,) for x in taken], options.rule)
        description["calibration"] = f"{len(taken)} pictures or arrays, by {options.rule}"
    graph, constants = to_graph(module)
    seen = module.meta.get("calibration", ())
    return Imported(graph, constants, description, pixels=usual_pixels(shapes[0]), calibration=seen,
                    samples=as_graph(taken))  # fmt: skip


def _load(path: Path) -> ExportedProgram:
    if path.suffix.lower() in (".pt", ".pth", ".pkl", ".bin", ".ckpt"):
        raise ModelError(f"{path}: {_PICKLE}")
    try:
        with warnings.catch_warnings(), _tensors_only():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as e:  # torch's reader has no error of its own
        raise ModelError(f"{path}: torch can't read it as an exported program ({type(e).__name__}: {e}); write it with "
                         "torch.export.save") from e  # fmt: skip


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch.export.load unpickles whatever a program holds, which could run anything; here it gets tensors only."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("it holds a pickled object that is no tensor")

    load = torch.load
    with (
        patch.object(torch, "load", lambda *args, **kwargs: load(*args, **(kwargs | {"weights_only": True}))),
        patch.object(pickle, "loads", refuse),
        patch.object(torch._C, "_pickle_load_obj", refuse),
    ):
        yield


def _call(source: str) -> ExportedProgram:
    """What ``package.module:function`` returns, exported."""
    package, _, name = source.partition(":")
    sys.path.insert(0, "")  # packages of the folder that the command runs in
    try:
        function = getattr(importlib.import_module(package), name, None)
    except ImportError as e:
        raise ModelError(f"{source}: {package} can't be imported ({e}); run from the folder that holds it") from e
    finally:
        sys.path.remove("")
    if not callable(function):
        raise ModelError(f"{source}: {package} has no function {name}")
    made: Any = function()
    if isinstance(made, ExportedProgram):
        return made
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, (torch.zeros(PICTURE),))
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{source} returned {type(module).__name__}; it has to return an nn.Module, (an nn.Module, "
                         "example inputs), or an ExportedProgram")  # fmt: skip
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(module.eval(), tuple(inputs))
    except Exception as e:  # torch.export's errors have no common root
        why = str(e).strip().splitlines()
        said = why[0] if why else type(e).__name__
        raise ModelError(f"{source}: torch.export can't export the module: {said}; make its forward free of branches "
                         "on data, or return (module, example inputs)") from e  # fmt: skip


def _input_shapes(program: ExportedProgram, source: str) -> list[tuple[int, ...]]:
    """The shapes that the program was exported with. Raises ``ModelError`` where one varies."""
    wanted = set(program.graph_signature.user_inputs)
    shapes = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        shape = node.meta["val"].shape
        if not all(isinstance(d, int) for d in shape):
            raise ModelError(f"{source}: the input '{node.name}' has the shape {list(shape)}, which varies; export the "
                             "module without dynamic_shapes")  # fmt: skip
        shapes.append(tuple(shape))
    if not shapes:
        raise ModelError(f"{source}: the program has no input")
    return shapes
