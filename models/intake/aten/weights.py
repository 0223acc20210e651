"""Weights, biases and multipliers, as numerics.md 2, 4 and 5 have them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Weight:
    """A quantized weight: (q - zero_point) * scale. scale: f32 [n] along ``axis``, or [1], where axis is None."""

    q: np.ndarray
    scale: np.ndarray
    axis: int | None
    zero_point: int = 0

    def permute(self, dims: tuple[int, ...]) -> Weight:
        """torch.permute."""
        axis = None if self.axis is None else dims.index(self.axis)
        return replace(self, q=self.q.transpose(dims), axis=axis)

    def unsqueeze(self, axis: int) -> Weight:
        """torch.unsqueeze, axis not negative."""
        moved = self.axis if self.axis is None or self.axis < axis else self.axis + 1
        return replace(self, q=np.expand_dims(self.q, axis), axis=moved)

    def contained(self) -> Weight:
        """In the containers that the graph takes: s8 of zero point 0, else u8."""
        if self.q.dtype == np.uint8 or self.zero_point == 0:
            return self
        shifted = (self.q.astype(np.int16) + 128).astype(np.uint8)
        return replace(self, q=shifted, zero_point=self.zero_point + 128)

    def channels(self) -> np.ndarray | None:
        """Scales f32 by the first axis; None where they go along another."""
        if self.axis not in (None, 0):
            return None
        return np.broadcast_to(self.scale.astype(np.float32), self.q.shape[:1])

    def real(self) -> np.ndarray:
        """f32: what the weight means."""
        along = [1] * self.q.ndim
        if self.axis is not None:
            along[self.axis] = -1
        return (self.q.astype(np.float32) - np.float32(self.zero_point)) * self.scale.astype(np.float32).reshape(along)


def bias_and_multiplier(
    bias: np.ndarray | None, weight: np.ndarray, sx: float, sw: np.ndarray, sy: float, zero_point: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight [oc, …] as it came, bias s32 [oc], multiplier f32 [oc] by numerics.md 4 and 5.

    bias: real values [oc]. A channel of almost no weight has a scale so small that its bias would leave int32; such a
    channel's weights are rounded to a coarser scale, at which the bias fits.
    """
    oc = weight.shape[0]
    sx32, sw32 = np.float32(sx), sw.astype(np.float32)
    b = np.zeros(oc) if bias is None else bias.astype(np.float64)
    least = np.abs(b) / (np.float64(sx32) * 2.0**30)
    coarse = least > sw32
    if coarse.any():
        wider = np.where(coarse, least * 1.0001, sw32).astype(np.float32)
        ratio = (sw32.astype(np.float64) / wider).reshape(-1, *[1] * (weight.ndim - 1))
        centred = weight.astype(np.int16) - zero_point
        weight = (np.rint(centred * ratio) + zero_point).astype(weight.dtype)
        sw32 = wider
    product = sx32 * sw32
    q = np.rint(b / (np.float64(sx32) * sw32.astype(np.float64)))
    return weight, q.astype(np.int32), (product / np.float32(sy)).astype(np.float32)
