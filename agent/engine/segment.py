"""What the engine asks of a backend: a segment, some consecutive nodes made ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.engine.choice import Option

Array = NDArray[np.generic]


@dataclass(frozen=True)
class StepInfo:
    """How one node runs: ``kernel`` names the variant; ``macs`` counts multiply-accumulates of one run.

    split: what several threads share, ``rows`` or ``panels`` of output channels; empty where there is no choice.
    """

    name: str
    backend: str
    kernel: str
    macs: int
    split: str = ""


class Segment(Protocol):
    """Nodes that one backend runs. Arrays are C-contiguous, in the tensors' shapes and dtypes."""

    backend: str
    isa: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arena_bytes: int
    weight_bytes: int
    options: tuple[Option, ...]  # nodes that can be had in several ways

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]: ...

    def profile(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, int]]:
        """As ``run``, and the nanoseconds of each node; 0 for one that is fused into another or is no work."""
        ...

    def steps(self) -> list[StepInfo]: ...
