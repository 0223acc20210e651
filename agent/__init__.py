"""int8d on the device: ``load`` a model and run it, or serve it over MQTT (the ``int8d`` command)."""

from agent.engine import Engine, Tuning, load

__version__ = "0.1.0"
__all__ = ["Engine", "Tuning", "__version__", "load"]
