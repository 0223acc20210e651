"""Constants that every backend derives from a graph in the same way (docs/numerics.md).

They are computed here, once, in Python, so that no two backends can round them differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.graph import Tensor

QUANTIZED = ("u8", "s8")


def canonical_zero_point(tensor: Tensor) -> int:
    """The zero point of the tensor's canonical u8 form: s8 containers are shifted by 128."""
    return tensor.zero_point + (128 if tensor.dtype == "s8" else 0)


def container_range(tensor: Tensor) -> tuple[int, int]:
    """The least and greatest q of a quantized tensor's container."""
    return (-128, 127) if tensor.dtype == "s8" else (0, 255)


def add_factors(a: Tensor, b: Tensor, out: Tensor, subtract: bool = False) -> tuple[float, float]:
    """F1 = fp32(s1 / sy), F2 = fp32(s2 / sy) of numerics.md 7; F2 is negative for a difference."""
    sy = np.float32(out.scale)
    f1, f2 = float(np.float32(a.scale) / sy), float(np.float32(b.scale) / sy)
    return f1, -f2 if subtract else f2


def product_multiplier(a: Tensor, b: Tensor, out: Tensor) -> float:
    """M = fp32(fp32(s1 * s2) / sy), as for a weight's scale in numerics.md 5."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(a.scale) * np.float32(b.scale) / np.float32(out.scale))


def average_multipliers(window: int, source: Tensor, out: Tensor) -> NDArray[np.float32]:
    """f32 [window + 1]: fp32(sx / (n * sy)) for a divisor of n, computed in double; entry 0 is never used."""
    n = np.arange(window + 1, dtype=np.float64)
    n[0] = 1.0
    return (np.float64(source.scale) / (n * np.float64(out.scale))).astype(np.float32)


def requantize_table(source: Tensor, out: Tensor) -> NDArray[np.uint8] | None:
    """u8 [256], canonical to canonical: clamp(rint(v * fp32(si / sy))) + zp; None where nothing changes."""
    zp_in, zp_out = canonical_zero_point(source), canonical_zero_point(out)
    if source.scale == out.scale and zp_in == zp_out:
        return None
    factor = np.float32(source.scale) / np.float32(out.scale)
    values = np.rint((np.arange(256) - zp_in).astype(np.float32) * factor)
    table: NDArray[np.uint8] = (np.clip(values, -zp_out, 255 - zp_out) + zp_out).astype(np.uint8)
    return table


def softmax_table(scale: float) -> NDArray[np.int32]:
    """s32 [256]: rint(exp(-d * scale) * 2**23), in double; see ``agent.graph.Softmax``."""
    return np.rint(np.exp(-np.arange(256, dtype=np.float64) * scale) * 2.0**23).astype(np.int32)


@dataclass(frozen=True)
class LayerNormFactors:
    """What ``agent.graph.LayerNorm`` derives from its tensors. gamma, beta: f32 [n], in units of the output."""

    epsilon: float  # E, in double
    gamma: NDArray[np.float32]
    beta: NDArray[np.float32]


def layer_norm_factors(
    epsilon: float, gamma: NDArray[np.float32], beta: NDArray[np.float32], source: Tensor, out: Tensor
) -> LayerNormFactors:
    """E = epsilon * n^2 / sx^2, fp32(gamma / sy), fp32(beta / sy); the quotients in double, rounded once."""
    n, sy = float(source.shape[-1]), np.float64(out.scale)
    scaled = ((values.astype(np.float64) / sy).astype(np.float32) for values in (gamma, beta))
    return LayerNormFactors(epsilon * n * n / (source.scale * source.scale), *scaled)
