"""A detector with its boxes decoded, ready to be exported: no lists of pictures, no suppression of overlaps.

Which boxes to keep depends on the scores, so it is left to what reads the model's output.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from models.torchvision_compat import import_torchvision

SIZE = 320


class SsdLite(nn.Module):
    """[1, 3, 320, 320] f32, -1..1, to boxes [1, n, 4] and scores [1, n, classes].

    A box is (left, top, right, bottom) in shares of the picture; the scores' first class is the background.
    """

    def __init__(self, weights: object = None) -> None:
        super().__init__()
        detection = import_torchvision().models.detection
        net = detection.ssdlite320_mobilenet_v3_large(weights=weights, weights_backbone=None).eval()
        self.backbone, self.head = net.backbone, net.head
        self.scales = net.box_coder.weights
        self.limit = net.box_coder.bbox_xform_clip
        with torch.no_grad():
            picture = torch.zeros(1, 3, SIZE, SIZE)
            features = list(self.backbone(picture).values())
            sizes = detection.image_list.ImageList(picture, [(SIZE, SIZE)])
            corners = net.anchor_generator(sizes, features)[0] / SIZE
        self.register_buffer("sizes", corners[:, 2:] - corners[:, :2])
        self.register_buffer("centres", (corners[:, 2:] + corners[:, :2]) / 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The boxes around the default ones that the head moves and stretches."""
        found = self.head(list(self.backbone(x).values()))
        moved, stretched = found["bbox_regression"].split(2, -1)
        wx, _, ww, _ = self.scales
        centres = moved * (self.sizes / wx) + self.centres
        halves = torch.exp((stretched / ww).clamp(max=min(self.limit, math.log(1000 / 16)))) * (self.sizes / 2)
        return {"boxes": torch.cat([centres - halves, centres + halves], -1),
                "scores": torch.softmax(found["cls_logits"], -1)}  # fmt: skip
