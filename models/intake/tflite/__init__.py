"""TFLite: int8 (per channel) and uint8 (per tensor) networks as LiteRT runs them."""

from models.intake.tflite.operators import read

__all__ = ["read"]
