"""torchao's PT2E observer of activations that chooses its range by a rule of ``models.compress.ranges``.

spec = QuantizationSpec(..., observer_or_fake_quant_ctr=RuleObserver.with_args(rule="mse"))
prepared = prepare_pt2e(exported, quantizer)
prepared(sample)
observed(prepared)  # what each activation was, and what its range costs
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import ObserverBase

from models.compress import ranges
from models.compress.report import Observed


class RuleObserver(ObserverBase):
    """Counts what passes, and gives u8's scale and zero point by ``rule``, which may be set until it is asked for."""

    qscheme = torch.per_tensor_affine
    quant_min, quant_max = 0, 255

    def __init__(self, rule: str = ranges.DEFAULT_RULE, **of_the_spec: object) -> None:
        super().__init__(dtype=torch.uint8)
        self.rule = rule
        self.histogram = ranges.Histogram()
        self._chosen: tuple[str, int, tuple[float, float]] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.histogram.add(x.detach().numpy())
        return x

    def range(self) -> tuple[float, float]:
        """By the rule, for what was seen so far."""
        seen = self.histogram.total
        if self._chosen is None or self._chosen[:2] != (self.rule, seen):
            self._chosen = self.rule, seen, ranges.choose(self.histogram, self.rule)
        return self._chosen[2]

    def calculate_qparams(self, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale f32 [1] and zero point s64 [1]; 1 and 0 where nothing was seen."""
        scale, zero_point = ranges.affine(*self.range()) if self.histogram.total else (1.0, 0)
        return torch.tensor([float(scale)]), torch.tensor([zero_point])


def observed(prepared: GraphModule) -> tuple[Observed, ...]:
    """One for each activation, in order of execution, under the name of the node that makes it."""
    made: dict[str, Observed] = {}
    for node in prepared.graph.nodes:
        observer = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = getattr(node.args[0], "name", "") if node.args else ""
        if isinstance(observer, RuleObserver) and observer.histogram.total and name not in made:
            made[name] = Observed.of(name, observer.rule, observer.histogram, *observer.range())
    return tuple(made.values())
