"""What is kept of one inference for drift: a few counts. The workbench and the device count by the same code.

observer = Observer(model)
seen = observer.observe(inputs, outputs)
seen.top, seen.bins[0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent import graph as g
from agent.arithmetic import QUANTIZED
from agent.engine.engine import quantize
from agent.engine.segment import Array
from agent.modelfile import Model
from agent.statistics import BINS, CONFIDENCE_BINS

_CODES = 256
Range = tuple[float, float]
Observe = Callable[[Mapping[str, Array], Mapping[str, Array]], None]  # shown an inference: inputs and outputs


class Observers:
    """Several who look at the same inferences, as one ``Observe``."""

    def __init__(self, several: tuple[Observe, ...]) -> None:
        self._several = several

    def __call__(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        for observe in self._several:
            observe(inputs, outputs)

    @staticmethod
    def of(observe: Observe | None) -> tuple[Observe, ...]:
        """Each of those that ``observe`` stands for."""
        if observe is None:
            return ()
        return observe._several if isinstance(observe, Observers) else (observe,)

    @staticmethod
    def together(several: tuple[Observe, ...]) -> Observe | None:
        """All of them as one; a lone one as it is, None where there is none."""
        return Observers(several) if len(several) > 1 else several[0] if several else None


class Observed(NamedTuple):
    """Of one inference. bins: elements by bin, moments: mean and mean square, for each input.

    top: the class, or -1; confidence: the bin of its probability.
    """

    top: int
    confidence: int
    bins: NDArray[np.int64]  # [inputs, BINS]
    moments: NDArray[np.float64]  # [inputs, 2]


class Observer:
    """Of a model's inferences.

    ranges: of inputs whose bins do not follow from the graph, see ``open_ranges``. elements: how many of an input are
    looked at, at most; they lie at an odd distance that 3 does not divide, so that each channel has its share.
    """

    def __init__(self, model: Model, ranges: Mapping[str, Range], elements: int = 1 << 62) -> None:
        graph = model.header.graph
        tensors = {t.name: t for t in graph.tensors}
        known = _ranges(graph)
        self._inputs = [_Input(tensors[name], known.get(name) or ranges[name], elements) for name in graph.inputs]
        self._post = model.header.postprocess

    def limits(self, name: str) -> Range:
        """Where an input's first bin begins and its last one ends."""
        return next(of.limits for of in self._inputs if of.name == name)

    def observe(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Observed:
        """inputs: arrays that the engine took, f32 for quantized ones or not; outputs: what it gave."""
        bins = np.empty((len(self._inputs), BINS), np.int64)
        moments = np.empty((len(self._inputs), 2))
        for i, of in enumerate(self._inputs):
            of.count(inputs[of.name], bins[i], moments[i])
        top, confidence = -1, 0
        if self._post is not None:
            output = outputs[self._post.output]
            scores = output.reshape(-1, output.shape[-1])[0]
            top = int(scores.argmax())
            share = 1 / np.exp(scores - scores[top]).sum() if self._post.softmax else scores[top]
            confidence = min(CONFIDENCE_BINS - 1, int(share * CONFIDENCE_BINS)) if share > 0 else 0  # a NaN is not
        return Observed(top, confidence, bins, moments)


class _Input:
    def __init__(self, tensor: g.Tensor, limits: Range, elements: int) -> None:
        self.name, self.limits, self._tensor = tensor.name, limits, tensor
        self._low, self._high = limits
        step = max(1, -(-int(np.prod(tensor.shape)) // elements))
        self._step = step if step == 1 else next(s for s in range(step, step + 6) if s % 2 and s % 3)
        # Of every code of a quantized tensor, in canonical order: its value, and that squared.
        values = np.linspace(self._low, self._high, _CODES, endpoint=False)
        self._powers = np.stack([values, values * values], 1)

    def count(self, array: Array, bins: NDArray[np.int64], moments: NDArray[np.float64]) -> None:
        """Of some of the elements: fills ``bins`` [BINS] and ``moments`` [2]."""
        flat = array.reshape(-1)[:: self._step]
        dtype = self._tensor.dtype
        if dtype in QUANTIZED:
            if flat.dtype == np.float32:
                flat = quantize(flat, self._tensor)
            codes = np.bincount(flat.view(np.uint8), minlength=_CODES)
            if dtype == "s8":
                codes = np.roll(codes, _CODES // 2)
            bins[:] = codes.reshape(BINS, -1).sum(1)
            moments[:] = codes @ self._powers / len(flat)
            return
        values = np.nan_to_num(flat.astype(np.float64), nan=0.0, posinf=self._high, neginf=self._low)
        values = np.clip(values, self._low, self._high)
        places = ((values - self._low) * (BINS / (self._high - self._low))).astype(np.int64)
        bins[:] = np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
        moments[:] = values.mean(), (values * values).mean()


def _ranges(graph: g.Graph) -> dict[str, Range]:
    """What a quantized input can hold, and an f32 one that is quantized at once."""
    tensors = {t.name: t for t in graph.tensors}
    stored = {n.input: tensors[n.output] for n in graph.nodes if isinstance(n, g.Quantize)}
    found = {}
    for name in graph.inputs:
        tensor = tensors[name] if tensors[name].dtype in QUANTIZED else stored.get(name)
        if tensor is not None:
            least = -128 if tensor.dtype == "s8" else 0
            ends = (least - tensor.zero_point, least + _CODES - tensor.zero_point)
            found[name] = ends[0] * tensor.scale, ends[1] * tensor.scale
    return found


def open_ranges(graph: g.Graph) -> list[str]:
    """Inputs whose range does not follow from the graph."""
    known = _ranges(graph)
    return [name for name in graph.inputs if name not in known]
