"""A model file becomes something that runs: ``load(path) -> Engine``."""

from agent.engine.answers import Tuning
from agent.engine.engine import Engine, TensorInfo, load, noise
from agent.engine.segment import StepInfo

__all__ = ["Engine", "StepInfo", "TensorInfo", "Tuning", "load", "noise"]
