"""Digits models that answer differently, so that an answer shows which of them ran.

    variant(folder, 3)     # says 3 where the model of the zoo says 0, 4 for 1, … 2 for 9

Each tag gives another file, ten of them another answer. Golden outputs are the engine's own; torch is not needed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from agent.engine import load
from agent.modelfile import Golden, Model, read, write
from tests.agent_process import DIGITS


def variant(folder: Path, tag: int) -> Path:
    """Writes ``digits-<tag>.int8.safetensors``, whose ``version`` is the tag and whose answers are ``tag`` further."""
    path = folder / f"digits-{tag}.int8.safetensors"
    write(path, shifted(read(DIGITS), tag))
    return path


def shifted(model: Model, tag: int) -> Model:
    """The digits model with its last layer's rows ``tag`` further: every class answers for the one ``tag`` before."""
    rows = {name: np.roll(model.constants[f"linear.{name}"], tag, axis=0) for name in ("weight", "bias", "multiplier")}
    constants = model.constants | {f"linear.{name}": array for name, array in rows.items()}
    header = msgspec.structs.replace(model.header, version=str(tag))
    bare = Model(header, constants)
    engine = load(bare)
    golden = tuple(Golden(g.inputs, engine.run(g.inputs)) for g in model.golden)
    return Model(header, constants, golden)
