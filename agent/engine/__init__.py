"""A model file becomes something that runs: ``load(path) -> Engine``."""

from agent.engine.answers import Tuning
from agent.engine.batches import Batches, build_batches, load_batches
from agent.engine.engine import Engine, TensorInfo, load, noise
from agent.engine.segment import StepInfo

__all__ = [
    "Batches", "Engine", "StepInfo", "TensorInfo", "Tuning", "build_batches", "load", "load_batches", "noise"
]  # fmt: skip
