"""A model that takes some milliseconds, so that ten times what a box sustains can be sent from the same box."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.modelfile import write
from tests.operators import Sketch

SIDE = 32
INPUT = bytes(SIDE * SIDE)  # a raw tensor


def heavy(path: Path, layers: int = 64) -> Path:
    """u8 [1, 32, 32, 1] to 10 numbers over ``layers`` 3x3 convolutions of 128 channels, random weights."""
    sketch = Sketch(np.random.default_rng(5))
    first = x = sketch.tensor((1, SIDE, SIDE, 1), "u8")
    for _ in range(layers):
        x = sketch.conv(x, 128, (3, 3), (1, 1), (1, 1, 1, 1))
    x = sketch.conv(x, 128, (3, 3), (8, 8), (1, 1, 1, 1))
    write(path, sketch.model([first], [sketch.conv(x, 10, (4, 4), (1, 1), (0, 0, 0, 0))]))
    return path
