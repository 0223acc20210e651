"""Models that ``int8d-make build`` makes."""

IMAGENET = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
