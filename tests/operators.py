"""Random models: one generator an operator, and small networks of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agent import graph as g
from agent.arithmetic import softmax_table
from agent.modelfile import Header, Model, assemble

RANGE = {"u8": (0, 255), "s8": (-128, 127)}
NUMPY = {"u8": np.uint8, "s8": np.int8, "s32": np.int32, "f32": np.float32}


@dataclass
class Sketch:
    """Collects tensors, nodes and constants of a model in the making."""

    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.tensors: list[g.Tensor] = []
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}

    def int(self, low: int, high: int) -> int:
        """low..high, both possible."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float = 0.5) -> bool:
        return bool(self.rng.random() < p)

    def scale(self) -> float:
        return float(np.float32(2.0 ** self.rng.uniform(-8, 2)))

    def tensor(self, shape, dtype=None, like: g.Tensor | None = None, name: str = "") -> g.Tensor:
        name = name or f"t{len(self.tensors)}"
        if dtype in ("f32", "s32"):
            t = g.Tensor(name, tuple(shape), dtype)
        elif like is not None:
            t = g.Tensor(name, tuple(shape), like.dtype, like.scale, like.zero_point)
        else:
            dtype = dtype or ("u8" if self.chance(0.7) else "s8")
            low, high = RANGE[dtype]
            zp = self.int(low, high) if self.chance(0.8) else int(self.rng.choice([low, high]))
            t = g.Tensor(name, tuple(shape), dtype, self.scale(), zp)
        self.tensors.append(t)
        return t

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def clamp(self, t: g.Tensor) -> tuple[int, int]:
        low, high = RANGE[t.dtype]
        if self.chance():
            return low, high
        if self.chance():
            return t.zero_point, high  # ReLU
        a, b = self.int(low, high), self.int(low, high)
        return min(a, b), max(a, b)

    def weights(self, shape) -> tuple[np.ndarray, int]:
        """s8, or u8 with a zero point."""
        if self.chance(0.4):
            return self.unsigned_weights(shape)
        kind = self.int(0, 3)
        if kind == 0:
            w = self.rng.choice([-128, 127], shape)  # every pair saturates vpmaddubsw
        elif kind == 1:
            w = self.rng.integers(-128, 128, shape)
        elif kind == 2:
            w = np.clip(np.rint(self.rng.normal(0, 40, shape)), -128, 127)
        else:
            w = np.full(shape, self.rng.choice([-128, 127]))
        return w.astype(np.int8), 0

    def unsigned_weights(self, shape) -> tuple[np.ndarray, int]:
        zero_point = int(self.rng.choice([0, 128, 255])) if self.chance() else self.int(0, 255)
        kind = self.int(0, 3)
        if kind == 0:
            w = self.rng.choice([0, 255], shape)
        elif kind == 1:
            w = self.rng.integers(0, 256, shape)
        elif kind == 2:  # few that s8 can't hold, as in trained networks
            w = np.clip(np.rint(self.rng.normal(zero_point, 40, shape)), 0, 255)
        else:
            w = np.full(shape, self.rng.choice([0, 255]))
        return w.astype(np.uint8), zero_point

    def requantization(self, w: np.ndarray) -> dict[str, str]:
        """Bias and multiplier such that the output is spread over its range, and beyond it."""
        k = int(np.prod(w.shape[1:]))
        spread = 127.0 * 64 * np.sqrt(k)
        bias = self.rng.integers(-(2**20), 2**20, w.shape[0]).astype(np.int32)
        multiplier = (2.0 ** self.rng.uniform(-3, 2, w.shape[0]) * 64 / spread).astype(np.float32)
        return {"bias": self.constant(bias), "multiplier": self.constant(multiplier)}

    def model(self, inputs: list[g.Tensor], outputs: list[g.Tensor]) -> Model:
        graph = g.Graph(tuple(self.tensors), tuple(self.nodes), *(tuple(t.name for t in s) for s in (inputs, outputs)))
        return assemble(Header(1, "random", "1", graph), dict(self.constants))

    def conv(self, x: g.Tensor, oc: int, kernel, stride, padding, dilation=(1, 1), groups=1) -> g.Tensor:
        h = (x.shape[1] + padding[0] + padding[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
        w = (x.shape[2] + padding[1] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
        weight, zero_point = self.weights((oc, *kernel, x.shape[3] // groups))
        y = self.tensor((x.shape[0], h, w, oc))
        node = g.Conv2d(
            f"n{len(self.nodes)}", x.name, y.name, self.constant(weight), **self.requantization(weight),
            lo=(c := self.clamp(y))[0], hi=c[1], stride=stride, padding=padding, dilation=dilation, groups=groups,
            weight_zero_point=zero_point,
        )  # fmt: skip
        self.nodes.append(node)
        return y

    def linear(self, x: g.Tensor, n: int) -> g.Tensor:
        weight, zero_point = self.weights((n, x.shape[-1]))
        y = self.tensor((*x.shape[:-1], n))
        lo, hi = self.clamp(y)
        node = g.Linear(f"n{len(self.nodes)}", x.name, y.name, self.constant(weight), **self.requantization(weight),
                        lo=lo, hi=hi, weight_zero_point=zero_point)  # fmt: skip
        self.nodes.append(node)
        return y

    def product(self, a: g.Tensor, b: g.Tensor, shape, spread: float) -> g.Tensor:
        """A tensor for products of values that are `spread` quanta large, or for some that are more or less so."""
        low = self.tensor(shape)
        scale = float(np.float32(a.scale * b.scale * spread * 2.0 ** self.rng.uniform(-2, 2)))
        self.tensors[-1] = g.Tensor(low.name, low.shape, low.dtype, scale, low.zero_point)
        return self.tensors[-1]

    def add(self, a: g.Tensor, b: g.Tensor) -> g.Tensor:
        y = self.tensor(a.shape)
        self.nodes.append(g.Add(f"n{len(self.nodes)}", (a.name, b.name), y.name, *self.clamp(y), self.chance(0.4)))
        return y


def random_inputs(model: Model, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Full-range noise, or only the extremes."""
    tensors = {t.name: t for t in model.header.graph.tensors}
    arrays = {}
    for name in model.header.graph.inputs:
        t = tensors[name]
        if t.dtype == "f32":
            x = rng.normal(0, 30, t.shape).astype(np.float32)
            x.ravel()[:: max(1, x.size // 5)] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 1e30, 0.5]))
        elif t.dtype == "s32":
            x = rng.integers(-(2**31), 2**31, t.shape)
        else:
            low, high = RANGE[t.dtype]
            x = rng.choice([low, high], t.shape) if rng.random() < 0.3 else rng.integers(low, high + 1, t.shape)
        arrays[name] = x.astype(NUMPY[t.dtype])
    return arrays


def _window(s: Sketch, size: tuple[int, int], dilated: bool):
    kernel = (s.int(1, 5), s.int(1, 5)) if s.chance() else (3, 3)
    dilation = (s.int(1, 3), s.int(1, 3)) if dilated and s.chance(0.3) else (1, 1)
    padding = tuple(s.int(0, kernel[i % 2] - 1) for i in range(4))
    kernel = tuple(
        max(1, min(k, (n + padding[i] + padding[i + 2] - 1) // d + 1))
        for i, (k, n, d) in enumerate(zip(kernel, size, dilation, strict=True))
    )
    padding = tuple(min(p, kernel[i % 2] - 1) for i, p in enumerate(padding))
    kernel = tuple(
        max(1, min(k, (n + padding[i] + padding[i + 2] - 1) // d + 1))
        for i, (k, n, d) in enumerate(zip(kernel, size, dilation, strict=True))
    )
    padding = tuple(min(p, kernel[i % 2] - 1) for i, p in enumerate(padding))
    if any(
        n + padding[i] + padding[i + 2] < d * (k - 1) + 1
        for i, (k, n, d) in enumerate(zip(kernel, size, dilation, strict=True))
    ):
        kernel, padding, dilation = (1, 1), (0, 0, 0, 0), (1, 1)
    return kernel, (s.int(1, 3), s.int(1, 3)), padding, dilation


def _channels(s: Sketch, most: int) -> int:
    return s.int(1, most) if s.chance() else int(s.rng.choice([1, 3, 4, 16, 31, 32, 33, 64]))


def conv2d(s: Sketch) -> Model:
    size = s.int(1, 30), s.int(1, 30)
    groups = s.int(2, 4) if s.chance(0.25) else 1
    ic = s.int(1, 12) * groups if groups > 1 else _channels(s, 40)
    oc = s.int(1, 40) * groups if groups > 1 else _channels(s, 80)
    x = s.tensor((s.int(1, 2), *size, ic))
    kernel, stride, padding, dilation = _window(s, size, True)
    return s.model([x], [s.conv(x, oc, kernel, stride, padding, dilation, groups)])


def depthwise(s: Sketch) -> Model:
    size, c = (s.int(1, 20), s.int(1, 20)), max(2, _channels(s, 150))
    x = s.tensor((s.int(1, 2), *size, c))
    kernel, stride, padding, dilation = _window(s, size, True)
    return s.model([x], [s.conv(x, c, kernel, stride, padding, dilation, c)])


def linear(s: Sketch) -> Model:
    lead = [(s.int(1, 9),), (1,), (s.int(1, 2), s.int(1, 5)), (1, s.int(1, 3), s.int(1, 3))][s.int(0, 3)]
    x = s.tensor((*lead, s.int(1, 300)))
    return s.model([x], [s.linear(x, s.int(1, 150))])


def linear_of_many_rows(s: Sketch) -> Model:
    """As convolutions: narrow and wide maps of rank 2 to 8, at times with a table or a sum behind."""
    k, n = _channels(s, 100), _channels(s, 100)
    wide, narrow = s.int(8, 60), s.int(1, 7)
    leads = [(wide,), (1, wide), (s.int(1, 3), wide), (s.int(2, 20), narrow), (1, s.int(1, 3), s.int(1, 3), wide),
             (1, s.int(2, 9), narrow), (s.int(1, 3), 1, s.int(1, 3), 1, 1, s.int(1, 3), narrow)]  # fmt: skip
    lead = leads[s.int(0, len(leads) - 1)]
    x = s.tensor((*lead, k))
    y = s.linear(x, n)
    kind = s.int(0, 3)
    if kind == 1:
        z = s.tensor(y.shape)
        s.nodes.append(g.Lut("gelu", y.name, z.name, s.constant(s.rng.integers(0, 256, 256).astype(np.uint8))))
    elif kind == 2:
        other = s.tensor(y.shape)
        z = s.add(y, other) if s.chance() else s.add(other, y)
        return s.model([x, other], [z])
    elif kind == 3:
        z = s.add(s.linear(x, n), y)
    return s.model([x], [z if kind else y])


def matmul(s: Sketch) -> Model:
    leads = [(), (s.int(1, 3),), (s.int(1, 2), s.int(1, 3)), (1, 2, s.int(1, 2), s.int(1, 2))]
    lead, (m, k, n) = leads[s.int(0, 3)], (_channels(s, 70) for _ in range(3))
    transpose_b = s.chance()
    a, b = s.tensor((*lead, m, k)), s.tensor((*lead, n, k) if transpose_b else (*lead, k, n))
    y = s.product(a, b, (*lead, m, n), 5500 * np.sqrt(k))
    s.nodes.append(g.Matmul("n", (a.name, b.name), y.name, *s.clamp(y), transpose_b))
    return s.model([a, b], [y])


def layer_norm(s: Sketch) -> Model:
    shape = [(s.int(1, 300),), (s.int(1, 9), s.int(1, 300)), (1, s.int(1, 5), s.int(1, 5), s.int(1, 130))][s.int(0, 2)]
    x, y = s.tensor(shape), s.tensor(shape)
    gamma, beta = (s.rng.normal(0, 40, shape[-1]) * y.scale for _ in range(2))
    for values in (gamma, beta):
        values[:: s.int(1, 40)] = s.rng.choice([0, 1e20, -1e20, 1e-20])
    constants = (s.constant(values.astype(np.float32)) for values in (gamma, beta))
    epsilon = float(s.rng.choice([1e-12, 1e-6, 1e-5, 1.0, 1e9]))
    s.nodes.append(g.LayerNorm("n", x.name, y.name, *constants, epsilon, *s.clamp(y)))
    return s.model([x], [y])


def max_pool2d(s: Sketch) -> Model:
    size = s.int(1, 20), s.int(1, 20)
    x = s.tensor((s.int(1, 2), *size, s.int(1, 70)))
    kernel, stride, padding, dilation = _window(s, size, True)
    if dilation != (1, 1):
        padding = (0, 0, 0, 0)
        if any(n < d * (k - 1) + 1 for n, k, d in zip(size, kernel, dilation, strict=True)):
            dilation = kernel = (1, 1)
    out = [(n + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
           for i, n in enumerate(size)]  # fmt: skip
    y = s.tensor((x.shape[0], *out, x.shape[3]), like=x)
    s.nodes.append(g.MaxPool2d("n", x.name, y.name, kernel, stride, padding, dilation))
    return s.model([x], [y])


def avg_pool2d(s: Sketch) -> Model:
    size = s.int(1, 20), s.int(1, 20)
    x = s.tensor((s.int(1, 2), *size, _channels(s, 300)))
    kernel, stride, padding, _ = _window(s, size, False)
    if s.chance(0.3):
        kernel, stride, padding = size, (1, 1), (0, 0, 0, 0)  # global
    out = [(n + padding[i] + padding[i + 2] - kernel[i]) // stride[i] + 1 for i, n in enumerate(size)]
    low = s.tensor((x.shape[0], *out, x.shape[3]))
    y = g.Tensor(low.name, low.shape, low.dtype, float(np.float32(x.scale * s.rng.uniform(0.3, 2))), low.zero_point)
    s.tensors[-1] = y
    s.nodes.append(g.AvgPool2d("n", x.name, y.name, kernel, stride, *s.clamp(y), padding, s.chance()))
    return s.model([x], [y])


def add(s: Sketch) -> Model:
    shape = [(s.int(1, 3), s.int(1, 200)), (1, s.int(1, 9), s.int(1, 9), s.int(1, 70))][s.int(0, 1)]
    a, b = s.tensor(shape), s.tensor(shape)
    return s.model([a, b], [s.add(a, b)])


def mul(s: Sketch) -> Model:
    shape = [(s.int(1, 3), s.int(1, 200)), (s.int(1, 2), s.int(1, 9), s.int(1, 9), _channels(s, 150))][s.int(0, 1)]
    gate = len(shape) == 4 and s.chance(0.7)
    a, b = s.tensor(shape), s.tensor((shape[0], 1, 1, shape[3]) if gate else shape)
    y = s.product(a, b, shape, 64)
    s.nodes.append(g.Mul("n", (a.name, b.name), y.name, *s.clamp(y)))
    return s.model([a, b], [y])


def lut(s: Sketch) -> Model:
    shape = (1, s.int(1, 9), s.int(1, 9), s.int(1, 70))
    x, y = s.tensor(shape), s.tensor(shape)
    s.nodes.append(g.Lut("n", x.name, y.name, s.constant(s.rng.integers(0, 256, 256).astype(np.uint8))))
    return s.model([x], [y])


def concat(s: Sketch) -> Model:
    rank = s.int(1, 6)
    shape, axis = [s.int(1, 9 if rank < 5 else 4) for _ in range(rank)], s.int(0, rank - 1)
    dtype = str(s.rng.choice(["f32", "s32"])) if s.chance(0.3) else None
    out_shape, parts = list(shape), []
    out_shape[axis] = 0
    for _ in range(s.int(1, 4)):
        part = list(shape)
        part[axis] = s.int(1, 9)
        out_shape[axis] += part[axis]
        parts.append(s.tensor(part, dtype, like=parts[0] if parts and not dtype and s.chance(0.3) else None))
    y = s.tensor(out_shape, dtype, like=parts[0] if not dtype and s.chance(0.3) else None)
    s.nodes.append(g.Concat("n", tuple(p.name for p in parts), y.name, axis))
    return s.model(parts, [y])


def reshape(s: Sketch) -> Model:
    n, h, w, c = (s.int(1, 8) for _ in range(4))
    shapes = [(n, h, w, c), (n, h * w * c), (n * h * w, c), (n, h * w, c), (n * h, w * c), (n * h * w * c,),
              (n, h, 1, w, c), (1, n, h, w, 1, c)]  # fmt: skip
    a, b = shapes[s.int(0, 7)], shapes[s.int(0, 7)]
    x = s.tensor(a, str(s.rng.choice(["f32", "s32"])) if s.chance(0.3) else None)
    y = s.tensor(b, like=x)
    s.nodes.append(g.Reshape("n", x.name, y.name))
    return s.model([x], [y])


def quantize(s: Sketch) -> Model:
    shape = (1, s.int(1, 9), s.int(1, 9), s.int(1, 70))
    x, y = s.tensor(shape, "f32"), s.tensor(shape)
    s.nodes.append(g.Quantize("n", x.name, y.name))
    return s.model([x], [y])


def dequantize(s: Sketch) -> Model:
    shape = (1, s.int(1, 9), s.int(1, 9), s.int(1, 70))
    x, y = s.tensor(shape), s.tensor(shape, "f32")
    s.nodes.append(g.Dequantize("n", x.name, y.name))
    return s.model([x], [y])


def softmax(s: Sketch) -> Model:
    shape = [(s.int(1, 5), s.int(1, 400)), (1, s.int(1, 3), s.int(1, 5), s.int(1, 70))][s.int(0, 1)]
    x, y = s.tensor(shape), s.tensor(shape, None if s.chance() else "f32")
    if y.dtype != "f32":
        y = s.tensors[-1] = g.Tensor(y.name, y.shape, y.dtype, float(np.float32(y.scale / 256)), y.zero_point)
    s.nodes.append(g.Softmax("n", x.name, y.name, s.constant(softmax_table(x.scale))))
    return s.model([x], [y])


def network(s: Sketch) -> Model:
    """Several operators: residuals on either side, a tensor with two readers, padding on a shared tensor, concat."""
    size = s.int(5, 17), s.int(5, 17)
    c = _channels(s, 40)
    x = s.tensor((1, *size, s.int(1, 5)))
    trunk = s.conv(x, c, (3, 3), (1, 1), (1, 1, 1, 1))
    for _ in range(s.int(1, 3)):
        branch = s.conv(trunk, c, (3, 3), (1, 1), (1, 1, 1, 1))
        if s.chance():
            branch = s.conv(branch, c, (1, 1), (1, 1), (0, 0, 0, 0), groups=c if c > 1 and s.chance() else 1)
        other = s.conv(trunk, c, (5, 5), (1, 1), (2, 2, 2, 2)) if s.chance(0.4) else trunk
        trunk = s.add(branch, other) if s.chance() else s.add(other, branch)
    wide = s.tensor((*trunk.shape[:3], 2 * c))
    s.nodes.append(g.Concat("cat", (trunk.name, branch.name), wide.name, 3))
    flat = s.tensor((1, int(np.prod(wide.shape))), like=wide)
    s.nodes.append(g.Reshape("flat", wide.name, flat.name))
    n = s.int(1, 20)
    (weight, zero_point), y = s.weights((n, flat.shape[1])), s.tensor((1, n))
    s.nodes.append(g.Linear("head", flat.name, y.name, s.constant(weight), **s.requantization(weight),
                            lo=RANGE[y.dtype][0], hi=RANGE[y.dtype][1], weight_zero_point=zero_point))  # fmt: skip
    logits = s.tensor((1, n), "f32")
    s.nodes.append(g.Dequantize("logits", y.name, logits.name))
    return s.model([x], [logits, trunk] if s.chance() else [logits])


OPERATORS: dict[str, Callable[[Sketch], Model]] = {
    f.__name__: f
    for f in (conv2d, depthwise, linear, linear_of_many_rows, matmul, layer_norm, max_pool2d, avg_pool2d, add, mul, lut,
              concat, reshape, quantize, dequantize, softmax, network)
}  # fmt: skip
