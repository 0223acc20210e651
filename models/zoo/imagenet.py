"""torchvision's classification networks, 224x224, ImageNet's 1000 classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from agent.modelfile import Preprocess
from models.build import Built, build
from models.compress.ranges import DEFAULT_RULE, parse
from models.torchvision_compat import import_torchvision
from models.zoo import CLASSIFICATION, DETECTION, SEGMENTATION
from models.zoo.detection import SIZE as SSD_SIZE
from models.zoo.detection import SsdLite

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 18
SIZE = 224


@dataclass(frozen=True)
class Result:
    built: Built
    pretrained: bool


def make(name: str, weights: str = "DEFAULT", calibrate: Path | None = None, seed: int = SEED,
         rule: str = DEFAULT_RULE) -> Result:  # fmt: skip
    """name: one of ``models.zoo.IMAGENET``. weights: ``DEFAULT`` downloads torchvision's, and falls back to seeded
    ones, loudly; ``none`` takes seeded ones.

    calibrate: a folder of pictures; without it, seeded synthetic ones, which suit seeded weights only. rule: of
    calibration, see ``models.compress.ranges``.
    """
    parse(rule)
    enum = import_torchvision().models.get_model_weights(name).DEFAULT
    net, pretrained = None, False
    if weights != "none":
        try:
            net, pretrained = architecture(name, enum), True
        except Exception as e:  # urllib's, ssl's and torch.hub's errors have no common root
            print(f"WARNING: torchvision's weights could not be downloaded ({e}).", file=sys.stderr)
    size = size_of(name)
    pictures = _read_pictures(calibrate, size) if calibrate else synthetic(16, seed, size)
    if net is None:
        print(
            f"WARNING: {name} gets SEEDED RANDOM weights. Its predictions mean nothing: for timing and parity only.",
            file=sys.stderr,
        )
        net = seeded(lambda: architecture(name), seed, size)
    elif calibrate is None:
        print("WARNING: calibrated on synthetic pictures; give real ones with --calibrate FOLDER.", file=sys.stderr)
    provenance = {
        "recipe": f"int8d-make build {name}",
        "weights": str(enum) if pretrained else f"seeded random ({seed}): for timing and parity only",
        "calibration": f"{'pictures' if calibrate else f'synthetic ({seed})'}, by {rule}",
    }
    if name in DETECTION:
        preprocess = Preprocess("x", resize=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    else:
        preprocess = Preprocess("x", resize=_shorter_side(size), crop=(size, size), mean=MEAN, std=STD)
    probes = torch.cat([pictures[:2], synthetic(2, seed + 1, size)])
    labels = enum.meta["categories"] if name in CLASSIFICATION else ()
    built = build(name, net.eval(), list(pictures.split(4)), probes, labels, preprocess,
                  provenance, golden=2, rule=rule)  # fmt: skip
    return Result(built, pretrained)


def architecture(name: str, weights: object = None) -> torch.nn.Module:
    """A network of ``models.zoo.IMAGENET`` with torchvision's weights, or with random ones."""
    if name in DETECTION:
        return SsdLite(weights)
    own: dict[str, object] = {"weights_backbone": None} if name in SEGMENTATION else {}
    if weights is None and name in ("googlenet", "inception_v3"):
        own |= {"aux_logits": False, "init_weights": False}  # heads of training alone, which need larger pictures
    return import_torchvision().models.get_model(name, weights=weights, **own)  # type: ignore[no-any-return]


def size_of(name: str) -> int:
    """Height and width of the pictures that a network takes here."""
    return SSD_SIZE if name in DETECTION else SIZE


def _shorter_side(size: int) -> int:
    return size * 8 // 7


def seeded(
    architecture: Callable[[], torch.nn.Module], seed: int, size: int = SIZE, pictures: int = 16
) -> torch.nn.Module:
    """Random weights whose batch-norms have seen pictures, so that activations keep a sane range.

    What training starts at nothing (a head or a class token of zeros, a layer scale of 1e-6) gets a size at which it
    counts.
    """
    torch.manual_seed(seed)
    net = architecture()
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over the passes
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
        elif isinstance(module, torch.nn.Linear) and not module.weight.any():
            with torch.no_grad():
                module.weight.normal_(0, module.in_features**-0.5, generator=generator)
        if isinstance(scale := getattr(module, "layer_scale", None), torch.nn.Parameter):
            with torch.no_grad():
                scale.uniform_(0.1, 1, generator=generator)
        if isinstance(token := getattr(module, "class_token", None), torch.nn.Parameter):
            with torch.no_grad():
                token.normal_(0, 1, generator=generator)
    if any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()):
        net.train()
        with torch.no_grad():
            for batch in synthetic(pictures, seed + 2, size).split(8):
                net(batch)
    return net.eval()


def synthetic(count: int, seed: int, size: int = SIZE) -> torch.Tensor:
    """[count, 3, size, size] f32, normalized: smooth random fields with noise: more like pictures than noise alone."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    pixels = (smooth + 0.1 * torch.randn(count, 3, size, size, generator=generator)).clamp(0, 1)
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _read_pictures(folder: Path, size: int) -> torch.Tensor:
    from PIL import Image

    arrays: list[np.ndarray] = []
    for path in _pictures_in(folder):
        picture = Image.open(path).convert("RGB")
        scale = _shorter_side(size) / min(picture.size)
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR
        )
        left, top = (picture.width - size) // 2, (picture.height - size) // 2
        pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32) / 255
        arrays.append((pixels - np.float32(MEAN)) / np.float32(STD))
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def _pictures_in(folder: Path) -> Sequence[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp"))
    if len(found) < 2:
        raise FileNotFoundError(f"{folder} holds {len(found)} pictures (.jpg, .png, .bmp); calibration needs 2 or more")
    return found
