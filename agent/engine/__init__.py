"""A model file becomes something that runs: ``load(path) -> Engine``."""

from agent.engine.engine import Engine, TensorInfo, load
from agent.engine.segment import StepInfo

__all__ = ["Engine", "StepInfo", "TensorInfo", "load"]
