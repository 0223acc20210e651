"""docs/numerics.md in plain numpy and int64: what every backend is compared with. Written from the page alone."""

from __future__ import annotations

import numpy as np

from agent import graph as g

RANGE = {"u8": (0, 255), "s8": (-128, 127)}
NUMPY = {"u8": np.uint8, "s8": np.int8, "s32": np.int32, "f32": np.float32}


def evaluate(graph: g.Graph, constants: dict, inputs: dict) -> dict:
    tensors = {t.name: t for t in graph.tensors}
    values = dict(inputs)
    for node in graph.nodes:
        values[node.output] = _NODE[type(node)](node, tensors, constants, values)
    return {name: values[name] for name in graph.outputs}


def _finish(scaled, lo, hi, t):
    """Rule 6: clamp(rint(x), lo - zp, hi - zp) + zp, x in float32."""
    assert scaled.dtype == np.float32
    q = np.clip(np.rint(scaled).astype(np.float64), lo - t.zero_point, hi - t.zero_point) + t.zero_point
    return q.astype(np.int64).astype(NUMPY[t.dtype])


def _value(values, tensors, name):
    return values[name].astype(np.int64) - tensors[name].zero_point


def _patches(x, kernel, stride, padding, dilation, fill):
    """[n, oh, ow, kh, kw, c] of a padded map."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    oh = (x.shape[1] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    ow = (x.shape[2] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    out = np.empty((x.shape[0], oh, ow, *kernel, x.shape[3]), x.dtype)
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            y0, x0 = ky * dilation[0], kx * dilation[1]
            out[:, :, :, ky, kx] = x[:, y0 : y0 + oh * stride[0] : stride[0], x0 : x0 + ow * stride[1] : stride[1]][
                :, :oh, :ow
            ]
    return out


def _requantize(node, constants, acc, t):
    total = acc + constants[node.bias].astype(np.int64)
    assert np.abs(total).max() < 2**31
    return _finish(total.astype(np.int32).astype(np.float32) * constants[node.multiplier], node.lo, node.hi, t)


def _weight(node, constants):
    return constants[node.weight].astype(np.int64) - node.weight_zero_point


def _conv2d(node, tensors, constants, values):
    w = _weight(node, constants)
    p = _patches(_value(values, tensors, node.input), w.shape[1:3], node.stride, node.padding, node.dilation, 0)
    ocg, icg = w.shape[0] // node.groups, w.shape[3]
    parts = [
        np.einsum("nhwyxc,oyxc->nhwo", p[..., i * icg : (i + 1) * icg], w[i * ocg : (i + 1) * ocg])
        for i in range(node.groups)
    ]
    return _requantize(node, constants, np.concatenate(parts, -1), tensors[node.output])


def _linear(node, tensors, constants, values):
    acc = _value(values, tensors, node.input) @ _weight(node, constants).T
    return _requantize(node, constants, acc, tensors[node.output])


def _max_pool2d(node, tensors, constants, values):
    p = _patches(values[node.input].astype(np.int64), node.kernel, node.stride, node.padding, node.dilation, -1000)
    return p.max((3, 4)).astype(NUMPY[tensors[node.output].dtype])


def _avg_pool2d(node, tensors, constants, values):
    x, y = tensors[node.input], tensors[node.output]
    total = _patches(_value(values, tensors, node.input), node.kernel, node.stride, node.padding, (1, 1), 0).sum((3, 4))
    inside = np.ones((1, *x.shape[1:3], 1), np.int64)
    n = _patches(inside, node.kernel, node.stride, node.padding, (1, 1), 0).sum((3, 4))
    if node.count_include_pad:
        n = np.full_like(n, node.kernel[0] * node.kernel[1])
    m = (np.float64(x.scale) / (n * np.float64(y.scale))).astype(np.float32)
    return _finish(total.astype(np.float32) * m, node.lo, node.hi, y)


def _add(node, tensors, constants, values):
    (a, b), y = node.inputs, tensors[node.output]
    t = _value(values, tensors, a).astype(np.float32) * (np.float32(tensors[a].scale) / np.float32(y.scale))
    u = _value(values, tensors, b).astype(np.float32) * (np.float32(tensors[b].scale) / np.float32(y.scale))
    return _finish(t - u if node.subtract else t + u, node.lo, node.hi, y)


def _mul(node, tensors, constants, values):
    (a, b), y = node.inputs, tensors[node.output]
    m = np.float32(tensors[a].scale) * np.float32(tensors[b].scale) / np.float32(y.scale)
    product = _value(values, tensors, a) * _value(values, tensors, b)
    return _finish(product.astype(np.float32) * m, node.lo, node.hi, y)


def _lut(node, tensors, constants, values):
    x, y = tensors[node.input], tensors[node.output]
    q = constants[node.table][values[node.input].astype(np.int64) - RANGE[x.dtype][0]].astype(np.int64)
    return (q + RANGE[y.dtype][0]).astype(NUMPY[y.dtype])


def _concat(node, tensors, constants, values):
    y = tensors[node.output]
    if y.dtype not in RANGE:
        return np.concatenate([values[n] for n in node.inputs], node.axis)
    parts = []
    for name in node.inputs:
        factor = np.float32(tensors[name].scale) / np.float32(y.scale)
        parts.append(_finish(_value(values, tensors, name).astype(np.float32) * factor, *RANGE[y.dtype], y))
    return np.concatenate(parts, node.axis)


def _reshape(node, tensors, constants, values):
    return values[node.input].reshape(tensors[node.output].shape)


def _transpose(node, tensors, constants, values):
    return np.transpose(values[node.input], node.axes)


def _slice(node, tensors, constants, values):
    counts = tensors[node.output].shape
    ranges = [[b + i * s for i in range(n)] for b, s, n in zip(node.begin, node.step, counts, strict=True)]
    return values[node.input][np.ix_(*ranges)]


def _expand(node, tensors, constants, values):
    return np.broadcast_to(values[node.input], tensors[node.output].shape)


def _pad(node, tensors, constants, values):
    x = values[node.input]
    y = np.full(tensors[node.output].shape, node.value, x.dtype)
    places = [
        [b + i * (gap + 1) for i in range(n)] for b, gap, n in zip(node.before, node.interior, x.shape, strict=True)
    ]
    y[np.ix_(*places)] = x
    return y


def _resize2d(node, tensors, constants, values):
    x = values[node.input].astype(np.int64)
    y0, y1, wy = (v[None, :, None, None] for v in constants[node.rows].astype(np.int64).T)
    x0, x1, wx = (v[None, None, :, None] for v in constants[node.columns].astype(np.int64).T)
    n, c = np.arange(x.shape[0])[:, None, None, None], np.arange(x.shape[3])

    def row(y):
        return (2048 - wx) * x[n, y, x0, c] + wx * x[n, y, x1, c]

    q = ((2048 - wy) * row(y0) + wy * row(y1) + 2**21) >> 22
    return q.astype(values[node.input].dtype)


def _argmax(node, tensors, constants, values):
    return values[node.input].argmax(-1).astype(np.int32).reshape(tensors[node.output].shape)


def _constant(node, tensors, constants, values):
    return constants[node.value]


def _quantize(node, tensors, constants, values):
    y = tensors[node.output]
    x = values[node.input] / np.float32(y.scale)
    return _finish(np.where(np.isnan(x), np.float32(0), x), *RANGE[y.dtype], y)


def _dequantize(node, tensors, constants, values):
    return _value(values, tensors, node.input).astype(np.float32) * np.float32(tensors[node.input].scale)


def _softmax(node, tensors, constants, values):
    y, q = tensors[node.output], values[node.input].astype(np.int64)
    e = constants[node.table].astype(np.int64)[q.max(-1, keepdims=True) - q]
    p = (e.astype(np.float64) / e.sum(-1, keepdims=True).astype(np.float64)).astype(np.float32)
    return p if y.dtype == "f32" else _finish(p / np.float32(y.scale), *RANGE[y.dtype], y)


def _matmul(node, tensors, constants, values):
    (a, b), y = node.inputs, tensors[node.output]
    second = _value(values, tensors, b)
    acc = _value(values, tensors, a) @ (np.swapaxes(second, -1, -2) if node.transpose_b else second)
    assert np.abs(acc).max() < 2**31
    m = np.float32(tensors[a].scale) * np.float32(tensors[b].scale) / np.float32(y.scale)
    return _finish(acc.astype(np.float32) * m, node.lo, node.hi, y)


def _layer_norm(node, tensors, constants, values):
    x, y, v = tensors[node.input], tensors[node.output], _value(values, tensors, node.input)
    n, total = v.shape[-1], v.sum(-1, keepdims=True)
    d = n * (v * v).sum(-1, keepdims=True) - total * total
    epsilon = node.epsilon * n * n / (x.scale * x.scale)
    r = (1 / np.sqrt(d.astype(np.float64) + epsilon)).astype(np.float32)
    t = (n * v - total).astype(np.float32) * r
    gamma, beta = (
        (constants[name].astype(np.float64) / y.scale).astype(np.float32) for name in (node.gamma, node.beta)
    )
    return _finish(t * gamma + beta, node.lo, node.hi, y)


_NODE = {
    g.Conv2d: _conv2d,
    g.Linear: _linear,
    g.MaxPool2d: _max_pool2d,
    g.AvgPool2d: _avg_pool2d,
    g.Add: _add,
    g.Mul: _mul,
    g.Lut: _lut,
    g.Concat: _concat,
    g.Reshape: _reshape,
    g.Transpose: _transpose,
    g.Slice: _slice,
    g.Expand: _expand,
    g.Pad: _pad,
    g.Resize2d: _resize2d,
    g.ArgMax: _argmax,
    g.Constant: _constant,
    g.Quantize: _quantize,
    g.Dequantize: _dequantize,
    g.Softmax: _softmax,
    g.Matmul: _matmul,
    g.LayerNorm: _layer_norm,
}
