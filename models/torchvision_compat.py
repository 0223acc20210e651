"""Imports torchvision where its compiled operators are missing.

The wheel of torchvision is built for CUDA; beside a CPU build of torch its library does not load, and the import
then fails
because two operators are unknown. Classification needs neither, so their schemas alone are declared, and only where
they lack.
"""

from __future__ import annotations

from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """The torchvision module. Raises ImportError where it is not installed."""
    try:
        import torchvision
    except RuntimeError as e:
        if "torchvision::nms" not in str(e):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # a library that is collected takes its operators along
        import torchvision
    return torchvision


_KEPT: list[torch.library.Library] = []
