"""Operators of single elements, and the norms and reductions that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from models.intake.onnx.proto import MICROSOFT, Operator, dtype_of
from models.intake.onnx.translate import Registry, Translator, Value, aten

registry = Registry()


def unary(target: Any) -> Callable[[Translator, Operator, Value], Value]:
    """A function of one element without parameters."""
    return lambda t, op, x: t.call(target, x)


for _kind, _target in {
    "Sigmoid": aten.sigmoid.default, "Tanh": aten.tanh.default, "Exp": aten.exp.default, "Log": aten.log.default,
    "Sqrt": aten.sqrt.default, "Erf": aten.erf.default, "Neg": aten.neg.default, "Abs": aten.abs.default,
    "Reciprocal": aten.reciprocal.default, "HardSwish": aten.hardswish.default, "Mish": aten.mish.default,
    "Softplus": aten.softplus.default, "Floor": aten.floor.default, "Ceil": aten.ceil.default,
    "Round": aten.round.default, "Sign": aten.sign.default, "Sin": aten.sin.default, "Cos": aten.cos.default,
    "Not": aten.logical_not.default,
}.items():  # fmt: skip
    registry.operator(_kind)(unary(_target))
registry.operator("Relu", moves=True)(unary(aten.relu.default))


@registry.operator("Identity", "Dropout", moves=True)
def identity(t: Translator, op: Operator, x: Value, *_: Value) -> Value:
    return x


@registry.operator("LeakyRelu")
def leaky_relu(t: Translator, op: Operator, x: Value) -> Value:
    return t.call(aten.leaky_relu.default, x, float(op.get("alpha", 0.01)))


@registry.operator("Elu")
def elu(t: Translator, op: Operator, x: Value) -> Value:
    return t.call(aten.elu.default, x, float(op.get("alpha", 1.0)))


@registry.operator("HardSigmoid")
def hard_sigmoid(t: Translator, op: Operator, x: Value) -> Value:
    alpha, beta = float(op.get("alpha", 0.2)), float(op.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return t.call(aten.hardsigmoid.default, x)
    scaled = t.call(aten.add.Tensor, t.call(aten.mul.Tensor, x, alpha), beta)
    return t.call(aten.clamp.default, scaled, 0.0, 1.0)


@registry.operator("Gelu")
@registry.operator("Gelu", domain=MICROSOFT)
def gelu(t: Translator, op: Operator, x: Value) -> Value:
    approximate = op.get("approximate", "none")
    t.require(approximate in ("none", "tanh"), f"the approximation '{approximate}' is unknown")
    return t.call(aten.gelu.default, x, **({"approximate": "tanh"} if approximate == "tanh" else {}))


@registry.operator("PRelu")
def prelu(t: Translator, op: Operator, x: Value, slope: Value) -> Value:
    weight = t.need(slope, "slope")
    channels = x.shape[1] if x.rank > 1 else 1
    t.require(weight.numel() in (1, channels), "one slope for each channel is needed")
    t.require(weight.numel() == 1 or tuple(weight.shape) == (channels, *[1] * (x.rank - 2)), "slopes go by channel")
    return t.call(aten.prelu.default, x, t.constant(weight.reshape(-1)))


@registry.operator("Clip", moves=True)
def clip(t: Translator, op: Operator, x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    bounds: list[float | int | None] = []
    for value, what in ((low, "lower bound"), (high, "upper bound")):
        tensor = None if value is None else t.need(value, what)
        t.require(tensor is None or tensor.numel() == 1, f"its {what} is no number")
        bounds.append(None if tensor is None else tensor.item())
    return x if bounds == [None, None] else t.call(aten.clamp.default, x, *bounds)


def binary(target: Any, commutes: bool = False) -> Callable[[Translator, Operator, Value, Value], Value]:
    """A function of two elements; a constant that is one number becomes one, as torch.export writes it."""

    def emit(t: Translator, op: Operator, a: Value, b: Value) -> Value:
        if not a.known and b.rank <= a.rank and (number := t.scalar(b)) is not None:
            return t.call(target, a, number)
        if commutes and not b.known and a.rank <= b.rank and (number := t.scalar(a)) is not None:
            return t.call(target, b, number)
        return t.call(target, a, b)

    return emit


add, multiply = binary(aten.add.Tensor, True), binary(aten.mul.Tensor, True)
registry.operator("Add")(add)
registry.operator("Mul")(multiply)
registry.operator("Sub")(binary(aten.sub.Tensor))


@registry.operator("Div")
def divide(t: Translator, op: Operator, a: Value, b: Value) -> Value:
    if a.dtype.is_floating_point or b.dtype.is_floating_point:
        return binary(aten.div.Tensor)(t, op, a, b)
    t.require(not a.known or not b.known or not bool((t.need(b, "divisor") == 0).any()), "it divides by zero")
    return t.call(aten.div.Tensor_mode, a, b, rounding_mode="trunc")


@registry.operator("Mod")
def modulo(t: Translator, op: Operator, a: Value, b: Value) -> Value:
    t.require(
        a.dtype.is_floating_point or not b.known or not bool((t.need(b, "divisor") == 0).any()), "it divides by zero"
    )
    return t.call((aten.fmod if op.get("fmod", 0) else aten.remainder).Tensor, a, b)


@registry.operator("Pow")
def power(t: Translator, op: Operator, a: Value, b: Value) -> Value:
    if not a.known and b.rank <= a.rank and (number := t.scalar(b)) is not None:
        return t.call(aten.pow.Tensor_Scalar, a, number)
    return t.call(aten.pow.Tensor_Tensor, a, b)


def _compare(target: Any) -> Callable[[Translator, Operator, Value, Value], Value]:
    return lambda t, op, a, b: t.call(target, a, b)


for _kind, _target in {
    "Equal": aten.eq.Tensor, "Less": aten.lt.Tensor, "Greater": aten.gt.Tensor, "LessOrEqual": aten.le.Tensor,
    "GreaterOrEqual": aten.ge.Tensor, "And": aten.logical_and.default, "Or": aten.logical_or.default,
}.items():  # fmt: skip
    registry.operator(_kind)(_compare(_target))


@registry.operator("Where")
def where(t: Translator, op: Operator, condition: Value, a: Value, b: Value) -> Value:
    return t.call(aten.where.self, condition, a, b)


@registry.operator("Min", "Max")
def extreme(t: Translator, op: Operator, *inputs: Value) -> Value:
    target = aten.minimum.default if op.kind == "Min" else aten.maximum.default
    made = inputs[0]
    for value in inputs[1:]:
        made = t.call(target, made, value)
    return made


@registry.operator("Sum")
def total(t: Translator, op: Operator, *inputs: Value) -> Value:
    made = inputs[0]
    for value in inputs[1:]:
        made = add(t, op, made, value)
    return made


@registry.operator("Cast")
def cast(t: Translator, op: Operator, x: Value) -> Value:
    return converted(t, x, dtype_of(op.get("to", 1), op))


@registry.operator("CastLike")
def cast_like(t: Translator, op: Operator, x: Value, like: Value) -> Value:
    return converted(t, x, like.dtype)


def converted(t: Translator, x: Value, dtype: torch.dtype) -> Value:
    """x as another type; floats of every width are one type here."""
    return x if x.dtype is dtype else t.call(aten.to.dtype, x, dtype)


# Softmax, norms and reductions


@registry.operator("Softmax", "LogSoftmax")
def softmax(t: Translator, op: Operator, x: Value, opset: int = 0) -> Value:
    opset = opset or t.opset
    target = aten.log_softmax.int if op.kind == "LogSoftmax" else aten.softmax.int
    axis = op.get("axis", 1 if opset < 13 else -1)
    t.require(-x.rank <= axis < x.rank, f"axis {axis} of a tensor of rank {x.rank}")
    axis %= x.rank
    trailing = x.shape[axis + 1 :]
    if opset < 13 and any(d != 1 for d in trailing):  # all axes from this one on were one, then
        flat = t.call(aten.reshape.default, x, [*x.shape[:axis], -1])
        return t.call(aten.reshape.default, t.call(target, flat, -1), list(x.shape))
    return t.call(target, x, axis if axis < x.rank - 1 else -1)


@registry.operator("LayerNormalization")
@registry.operator("LayerNormalization", domain=MICROSOFT)
def layer_norm(t: Translator, op: Operator, x: Value, gamma: Value, beta: Value | None = None) -> Value:
    axis = op.get("axis", -1)
    t.require(-x.rank <= axis < x.rank, f"axis {axis} of a tensor of rank {x.rank}")
    shape = list(x.shape[axis % x.rank :])
    return t.call(aten.layer_norm.default, x, shape, gamma, beta, float(op.get("epsilon", 1e-5)))


@registry.operator("BatchNormalization")
def batch_norm(t: Translator, op: Operator, x: Value, gamma: Value, beta: Value, mean: Value, var: Value) -> Value:
    t.require(op.get("training_mode", 0) == 0, "it is in training mode; export the model in eval mode")
    epsilon = float(op.get("epsilon", 1e-5))
    return t.call(aten.batch_norm.default, x, gamma, beta, mean, var, False, 0.1, epsilon, False)


@registry.operator("InstanceNormalization")
def instance_norm(t: Translator, op: Operator, x: Value, gamma: Value, beta: Value) -> Value:
    epsilon = float(op.get("epsilon", 1e-5))
    return t.call(aten.instance_norm.default, x, gamma, beta, None, None, True, 0.0, epsilon, False)


@registry.operator("GroupNormalization")
def group_norm(t: Translator, op: Operator, x: Value, gamma: Value, beta: Value) -> Value:
    groups = op.get("num_groups", 0)
    t.require(groups > 0 and x.rank >= 2 and x.shape[1] % groups == 0, "its groups must divide the channels")
    if t.opset < 21:  # one factor for each group, then
        gamma, beta = (t.constant(t.need(v, "scale").repeat_interleave(x.shape[1] // groups)) for v in (gamma, beta))
    return t.call(aten.group_norm.default, x, groups, gamma, beta, float(op.get("epsilon", 1e-5)))


@registry.operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
def reduce(t: Translator, op: Operator, x: Value, axes: Value | None = None) -> Value:
    given = t.integers(axes, "axes") if axes is not None else list(op.integers("axes") or ())
    if not given and op.get("noop_with_empty_axes", 0):
        return x
    t.require(all(-x.rank <= a < x.rank for a in given), f"axes {given} of a tensor of rank {x.rank}")
    dims = sorted({a % x.rank for a in given}) or list(range(x.rank))
    keep = bool(op.get("keepdims", 1))
    match op.kind:
        case "ReduceMean":
            return t.call(aten.mean.dim, x, dims, keep)
        case "ReduceSum":
            return t.call(aten.sum.dim_IntList, x, dims, keep)
        case "ReduceMax":
            return t.call(aten.amax.default, x, dims, keep)
        case "ReduceMin":
            return t.call(aten.amin.default, x, dims, keep)
    return t.call(aten.sqrt.default, t.call(aten.sum.dim_IntList, t.call(aten.mul.Tensor, x, x), dims, keep))


@registry.operator("ReduceProd")
def reduce_product(t: Translator, op: Operator, x: Value, axes: Value | None = None) -> Value:
    given = t.integers(axes, "axes") if axes is not None else list(op.integers("axes") or ())
    tensor = t.need(x, "factors")  # shapes are what exporters multiply
    for axis in sorted((a % tensor.ndim for a in given or range(tensor.ndim)), reverse=True):
        tensor = tensor.prod(axis, keepdim=bool(op.get("keepdims", 1)))
    return t.constant(tensor)


@registry.operator("ArgMax")
def argmax(t: Translator, op: Operator, x: Value) -> Value:
    t.require(op.get("select_last_index", 0) == 0, "the last of equal elements is not taken")
    return t.call(aten.argmax.default, x, op.get("axis", 0), bool(op.get("keepdims", 1)))
