"""An exported float module in the form in which it is quantized.

Constants are computed once; operators that change their arguments become ones that don't; attention, einsum and
batch-norms that no convolution takes in are written with the operators that have an int8 form.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from models.intake.aten.operators import CONVOLUTIONS, TRANSPOSED, argument, aten, functional, is_move, shape_of

# What these give depends on their tensor's shape and dtype only.
_LIKE = {aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
         aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}  # fmt: skip


def functional_module(program: ExportedProgram) -> GraphModule:
    """The program's module, of operators that change nothing. Every node's ``meta["val"]`` is kept."""
    if _writes_into_what_is_read(program.graph_module):
        program = program.run_decompositions({})
    module: GraphModule = program.module(check_guards=False)
    fold_constants(module)
    for node in module.graph.nodes:
        if node.op == "call_function" and hasattr(node.target, "_schema"):
            node.target = functional(node.target) or node.target
    module.recompile()
    return module


def prepare(program: ExportedProgram) -> GraphModule:
    """The module, ready for the quantizer."""
    module = functional_module(program)
    for node in list(module.graph.nodes):
        rewrite = _REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is not None:
            result = rewrite(_Before(module, node), node)
            if result is not None:
                node.replace_all_uses_with(result)
                module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    fold_constants(module)
    module.graph.lint()
    module.recompile()
    return module


# Operators that change their arguments


def _writes_into_what_is_read(module: GraphModule) -> bool:
    """Whether a value is read after it was changed through another name, so that names alone don't tell values."""
    order = {n: i for i, n in enumerate(module.graph.nodes)}
    constant = _constant_nodes(module)
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable or node in constant:
            continue
        base = node.args[0]
        while is_move(base):
            base = base.args[0]
        family, left = {base}, [base]
        while left:
            for user in left.pop().users:
                if is_move(user) and user not in family:
                    family.add(user)
                    left.append(user)
        if any(order[u] > order[node] for member in family for u in member.users) or functional(node.target) is None:
            return True
    return False


# Constants


def _constant_nodes(module: GraphModule) -> set[Node]:
    """Nodes whose values follow from attributes and numbers alone."""
    constant: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            constant.add(node)
        elif node.op == "call_function" and (node.target in _LIKE or all(a in constant for a in node.all_input_nodes)):
            namespace = str(getattr(node.target, "_schema", node.target))
            seeded = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            if (namespace.startswith("aten::") or node.target is operator.getitem) and not seeded:
                constant.add(node)
    return constant


def fold_constants(module: GraphModule) -> None:
    """Replaces what never changes by buffers."""
    graph, constant = module.graph, _constant_nodes(module)
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node not in constant:
                continue
            if node.op == "get_attr":
                values[node] = _attribute(module, node).detach().clone()
                continue
            given = values if node.target not in _LIKE else {a: torch.empty(shape_of(a), dtype=a.meta["val"].dtype)
                                                             for a in node.all_input_nodes}  # fmt: skip
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda a, given=given: given[a])
            values[node] = node.target(*args, **{k: v for k, v in kwargs.items() if k != "device"})
    folded = 0
    for node in [n for n in graph.nodes if n in constant and n.op == "call_function"]:
        users = [u for u in node.users if u not in constant]
        if not users or not isinstance(values[node], torch.Tensor):
            continue
        while hasattr(module, f"_folded_{folded}"):
            folded += 1
        attribute = _buffer(module, f"_folded_{folded}", values[node].clone().contiguous(), node)
        for user in users:
            user.replace_input_with(node, attribute)
    for node in reversed(list(graph.nodes)):
        if node in constant and not node.users:
            graph.erase_node(node)


def _attribute(module: GraphModule, node: Node) -> torch.Tensor:
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value  # type: ignore[no-any-return]


def _buffer(module: GraphModule, name: str, value: torch.Tensor, before: Node) -> Node:
    module.register_buffer(name, value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(name)
    mode = next(v.fake_mode for n in module.graph.nodes if hasattr(v := n.meta.get("val"), "fake_mode"))
    node.meta["val"] = mode.from_tensor(value)
    return node


# Operators in terms of others


class _Before:
    """Adds nodes before one, with what they give."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self.module, self.node = module, node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        with self.module.graph.inserting_before(self.node):
            made = self.module.graph.call_function(target, args, kwargs)
        values, named = torch.fx.node.map_arg((args, kwargs), lambda a: a.meta["val"])
        made.meta["val"] = target(*values, **named)
        return made

    def tensor(self, node: Node | None) -> torch.Tensor | None:
        """The constant that a node stands for."""
        return _attribute(self.module, node).detach() if node is not None and node.op == "get_attr" else None

    def constant(self, value: torch.Tensor) -> Node:
        """A buffer with this value."""
        i = next(i for i in range(1 << 20) if not hasattr(self.module, f"_prepared_{i}"))
        return _buffer(self.module, f"_prepared_{i}", value, self.node)


def _attention(add: _Before, node: Node) -> Node | None:
    """softmax(q @ k^T * scale + mask) @ v."""
    q, k, v = node.args[:3]
    mask, causal = argument(node, 3, "attn_mask"), argument(node, 5, "is_causal", False)
    scale = argument(node, 6, "scale") or 1 / math.sqrt(shape_of(q)[-1])
    heads = (shape_of(q)[-3], shape_of(k)[-3]) if len(shape_of(q)) > 2 else (1, 1)
    if argument(node, 7, "enable_gqa", False) and heads[0] != heads[1]:
        k, v = (add(aten.repeat_interleave.self_int, t, heads[0] // heads[1], -3) for t in (k, v))
    logits = add(aten.mul.Tensor, add(aten.matmul.default, q, add(aten.transpose.int, k, -2, -1)), scale)
    if causal:
        square = shape_of(logits)[-2:]
        mask = add.constant(torch.zeros(square).masked_fill(torch.ones(square).tril().logical_not(), NEVER))
    elif mask is not None and mask.meta["val"].dtype is torch.bool:
        known = add.tensor(mask)
        if known is None:
            return None
        mask = add.constant(torch.zeros(known.shape).masked_fill(known.logical_not(), NEVER))
    elif mask is not None and (known := add.tensor(mask)) is not None:
        mask = add.constant(known.clamp(min=NEVER))
    if mask is not None:
        logits = add(aten.add.Tensor, logits, mask)
    return add(aten.matmul.default, add(aten.softmax.int, logits, -1), v)


NEVER = -100.0  # added to a logit: what it stands for never gets any attention


def _matmul(add: _Before, node: Node) -> Node | None:
    """(a * number) @ b is (a @ b) * number, which the product's multiplier takes in."""
    scaled = node.args[0]
    number = scaled.args[1] if scaled.target is aten.mul.Tensor and len(scaled.users) == 1 else None
    if not isinstance(number, (int, float)) or number <= 0:
        return None
    return add(aten.mul.Tensor, add(node.target, scaled.args[0], node.args[1]), number)


def _normalized(add: _Before, node: Node) -> Node | None:
    """x / max(|x|, epsilon) along the last axis: half of the layer norm of x beside -x, whose mean is 0."""
    x, divisor = node.args
    while isinstance(divisor, Node) and divisor.target in (aten.expand_as.default, aten.expand.default):
        divisor = divisor.args[0]
    if not isinstance(divisor, Node) or divisor.target is not aten.clamp_min.default:
        return None
    norm, last = divisor.args[0], len(shape_of(x)) - 1
    if norm.target is not aten.linalg_vector_norm.default or norm.args[0] is not x:
        return None
    if argument(norm, 1, "ord", 2) != 2 or [d % (last + 1) for d in argument(norm, 2, "dim") or []] != [last]:
        return None
    n = shape_of(x)[-1]
    gamma = add.constant(torch.full((2 * n,), n**-0.5))
    both = add(aten.cat.default, [x, add(aten.neg.default, x)], -1)
    return add(aten.slice.Tensor, add(aten.layer_norm.default, both, [2 * n], gamma, None, 1e-12), last, 0, n)


def _baddbmm(add: _Before, node: Node) -> Node:
    """beta * input + alpha * (a @ b); addmm, too."""
    base, a, b = node.args[:3]
    product = add(aten.matmul.default, a, b)
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    if alpha != 1:
        product = add(aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    return add(aten.add.Tensor, product, add(aten.mul.Tensor, base, beta) if beta != 1 else base)


def _einsum(add: _Before, node: Node) -> Node | None:
    """Of two operands without repeated labels: permute, matrix product, permute."""
    equation, operands = node.args[0].replace(" ", ""), node.args[1]
    if len(operands) != 2 or "->" not in equation or "." in equation:
        return None
    terms, result = equation.split("->")
    first, second = terms.split(",")
    if any(len(set(t)) != len(t) for t in (first, second, result)):
        return None
    batch = [c for c in first if c in second and c in result]
    inner = [c for c in first if c in second and c not in result]
    rows, columns = [c for c in first if c not in second], [c for c in second if c not in first]
    if not set(rows + columns) <= set(result):
        return None
    extent = {c: n for t, o in zip((first, second), operands, strict=True) for c, n in zip(t, shape_of(o), strict=True)}

    def arranged(term: str, x: Node, groups: list[list[str]]) -> Node:
        order = [term.index(c) for group in groups for c in group]
        if order != list(range(len(term))):
            x = add(aten.permute.default, x, order)
        shape = [*(extent[c] for c in groups[0]), *(math.prod(extent[c] for c in group) for group in groups[1:])]
        return x if list(shape_of(x)) == shape else add(aten.reshape.default, x, shape)

    y = add(aten.matmul.default, arranged(first, operands[0], [batch, rows, inner]),
            arranged(second, operands[1], [batch, inner, columns]))  # fmt: skip
    labels = [*batch, *rows, *columns]
    shape = [extent[c] for c in labels]
    if list(shape_of(y)) != shape:
        y = add(aten.reshape.default, y, shape)
    order = [labels.index(c) for c in result]
    return y if order == list(range(len(order))) else add(aten.permute.default, y, order)


def _batch_norm(add: _Before, node: Node) -> Node | None:
    """One that no convolution before it takes in is a depthwise convolution of one tap."""
    x, weight, bias, mean, variance = node.args[:5]
    if x.target in CONVOLUTIONS | TRANSPOSED and len(x.users) == 1:
        return None
    rank, epsilon = len(shape_of(x)), node.args[7]
    known = [add.tensor(t) for t in (weight, bias, mean, variance)]
    gamma, beta, mu, var = known
    if mu is None or var is None or rank not in (3, 4):
        return None
    scale = (torch.ones_like(mu) if gamma is None else gamma) / torch.sqrt(var + epsilon)
    shift = (torch.zeros_like(mu) if beta is None else beta) - mu * scale
    w = add.constant(scale.reshape(-1, *[1] * (rank - 1)).contiguous())
    conv = aten.conv1d.default if rank == 3 else aten.conv2d.default
    return add(conv, x, w, add.constant(shift), [1] * (rank - 2), [0] * (rank - 2), [1] * (rank - 2), len(mu))


_REWRITES: dict[Any, Callable[[_Before, Node], Node | None]] = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.div.Tensor: _normalized,
    aten.matmul.default: _matmul,
    aten.bmm.default: _matmul,
    aten.baddbmm.default: _baddbmm,
    aten.addmm.default: _baddbmm,
    aten.einsum.default: _einsum,
    aten.batch_norm.default: _batch_norm,
}
